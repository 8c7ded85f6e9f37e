"""Token canvases: what stands in a sequence of tokens where a patch is not there yet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlight.engine.sites import captured, patched
from backlight.errors import InputError, UnknownNameError
from backlight.methods.token_layout import TokenSites, as_tokens, find_sites
from backlight.metrics.canvas import canvas_of
from backlight.metrics.draws import Seed
from backlight.shapes import Float

TOKEN_CANVASES = ("position", "zero", "mean", "blur", "noise", "patch")
PICTURES = ("mean", "blur", "noise")  # of the image, embedded as the image is


def token_canvas(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    canvas: str | Tensor = "position",
    *,
    mean_patch: Float[Tensor, "D"] | None = None,
    sigma: float = 1 / 20,
    seed: Seed = 0,
    sites: TokenSites | None = None,
) -> Float[Tensor, "N P D"]:
    """The tokens at the first block's input of an image without patches.

    Args:
        canvas: "position": the position embedding alone, as where the patch embedding gives nothing; "zero": zeros;
            "mean", "blur", "noise": the tokens of that picture of each image (`backlight.metrics.canvas.canvas_of`);
            "patch": `mean_patch` and the position embedding; or a tensor that broadcasts to `[N, P, D]`.
        mean_patch: the mean output of the patch embedding over a data set; see `mean_patch_of`.
        sigma: of the blur. seed: of the noise, one for all images or one an image.

    Cost: at most one forward pass an image.

    Raises:
        UnknownNameError: another name.
        InputError: a tensor that does not broadcast; "patch" without `mean_patch`.
        SiteError: a model whose patch tokens are not known.
    """
    sites = sites or find_sites(model)
    if isinstance(canvas, str) and canvas not in TOKEN_CANVASES:
        raise UnknownNameError("canvas of tokens", canvas, TOKEN_CANVASES)
    if isinstance(canvas, str) and canvas in PICTURES:
        return tokens_of(model, picture_canvas(canvas, images, sigma, seed), sites)[0]
    whole, _ = tokens_of(model, images[:1], sites)
    shape = (len(images), *whole.shape[1:])
    if isinstance(canvas, Tensor):
        try:
            return canvas.detach().to(whole).expand(shape)
        except RuntimeError:
            raise InputError(f"a canvas {list(canvas.shape)} does not broadcast to tokens {list(shape)}") from None
    if canvas == "zero":
        return torch.zeros((), dtype=whole.dtype, device=whole.device).expand(shape)
    content = None
    if canvas == "patch":
        if mean_patch is None or mean_patch.shape != whole.shape[-1:]:
            given = None if mean_patch is None else list(mean_patch.shape)
            raise InputError(f"the canvas 'patch' needs mean_patch [{whole.shape[-1]}], got {given}: see mean_patch_of")
        content = mean_patch
    return _with_content(model, images[:1], content, sites).expand(shape)


def picture_canvas(
    canvas: str | float | Tensor, images: Float[Tensor, "N C H W"], sigma: float, seed: Seed
) -> Float[Tensor, "N C H W"]:
    """`canvas_of` in at least single precision: a blur in bfloat16 takes minutes an image on a CPU."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    return canvas_of(canvas, wide, seed, sigma).to(images)


def mean_patch_of(model: nn.Module, images: Float[Tensor, "N C H W"], batch_size: int = 32) -> Float[Tensor, "D"]:
    """The mean output of the patch embedding, over images and patches. Cost: one forward pass an image."""
    sites = find_sites(model)
    total: Tensor | float = 0.0
    count = 0
    for part in images.split(batch_size):
        with torch.no_grad(), captured(model, (sites.patches,)) as store:
            model(part)
        tokens = as_tokens(store[sites.patches], sites.patches, model)[0].flatten(0, 1)
        total, count = total + tokens.double().sum(0), count + len(tokens)
    return (total / count).to(images.dtype)  # type: ignore[union-attr]


def tokens_of(
    model: nn.Module, images: Float[Tensor, "N C H W"], sites: TokenSites
) -> tuple[Float[Tensor, "N P D"], int]:
    """The patch tokens of images as the first block gets them, and the number of tokens before them."""
    with torch.no_grad(), captured(model, sites.names) as store:
        model(images)
    return _patch_tokens(model, store, sites)


def _with_content(
    model: nn.Module, image: Float[Tensor, "1 C H W"], content: Float[Tensor, "D"] | None, sites: TokenSites
) -> Float[Tensor, "1 P D"]:
    """The sequence where the patch embedding gives the same vector, or 0, at every patch."""
    conv = isinstance(model.get_submodule(sites.patches.partition(":")[0]), nn.Conv2d)

    def edit(value: Tensor) -> Tensor:
        if content is None:
            return torch.zeros_like(value)
        vector = content.to(value)
        return (vector[:, None, None] if conv and value.ndim == 4 else vector).expand_as(value).clone()

    with torch.no_grad(), patched(model, {sites.patches: edit}), captured(model, sites.names) as store:
        model(image)
    return _patch_tokens(model, store, sites)[0]


def _patch_tokens(model: nn.Module, store: dict[str, Tensor], sites: TokenSites) -> tuple[Tensor, int]:
    patches, _ = as_tokens(store[sites.patches], sites.patches, model)
    if sites.sequence is None:
        return patches, 0
    prefix = store[sites.sequence].shape[1] - patches.shape[1]
    return store[sites.sequence][:, prefix:], prefix
