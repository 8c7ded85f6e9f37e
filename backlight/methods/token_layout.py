"""Where a transformer's patch tokens are: the sites of its embedding, the grid of its patches, its prefix tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from backlight.engine.sites import Site
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.shapes import Float

AUTO = "auto"

# (patch embedding, sequence of tokens with their position embedding) of the families that are known, by module name
_KNOWN = (
    ("patch_embed", "norm_pre:input"),  # timm: ViT, DeiT, DINOv2, CLIP
    ("patch_embed", "blocks.0:input"),  # timm: others
    ("embeddings.patch_embeddings", "embeddings"),  # Hugging Face: ViT, DeiT, DINOv2
    ("embeddings.patch_embedding", "embeddings"),  # Hugging Face: CLIP, SigLIP
    ("conv_proj", "encoder.dropout:input"),  # torchvision
    ("conv1", "ln_pre:input"),  # OpenCLIP
)


@dataclass(frozen=True)
class TokenSites:
    """`patches`: the site of the patch embedding. `sequence`: where position embedding and prefix tokens are in."""

    patches: str
    sequence: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.patches,) if self.sequence is None else (self.patches, self.sequence)


@dataclass(frozen=True)
class TokenLayout:
    """A sequence of tokens: `prefix` of them first (class token, registers), then the patches of a grid, row by row."""

    height: int
    width: int
    prefix: int

    def token(self, row: int, column: int) -> int:
        """The index in the sequence of a patch.

        Raises:
            InputError: a patch outside the grid.
        """
        if not (0 <= row < self.height and 0 <= column < self.width):
            raise InputError(f"patch ({row}, {column}) is outside the grid of {self.height} x {self.width}")
        return self.prefix + row * self.width + column

    @property
    def count(self) -> int:
        """The number of patches."""
        return self.height * self.width


def find_sites(model: nn.Module, patches: str = AUTO, sequence: str | None = AUTO) -> TokenSites:
    """The sites of a model's patch tokens, as given; where they are not, those of the families that are known.

    Raises:
        SiteError: the model is of no known family.
        UnknownNameError: a site that is no module of the model.
    """
    modules = dict(model.named_modules())
    if patches != AUTO:
        given = TokenSites(patches, None if sequence == AUTO else sequence)
        for site in given.names:
            if Site.parse(site).layer not in modules:
                raise UnknownNameError("layer", Site.parse(site).layer, [name for name in modules if name])
        return given
    for end, then in _KNOWN:
        for name in modules:
            if name == end or name.endswith("." + end):
                parent = name[: len(name) - len(end)]
                if parent + Site.parse(then).layer in modules:
                    return TokenSites(name, parent + then if sequence == AUTO else sequence)
    raise SiteError(
        f"{type(model).__name__} is of no family whose patch tokens are known: say where they are, "
        "patches=the patch embedding, sequence=the first block's input (or None)"
    )


def as_tokens(value: Tensor, site: str, model: nn.Module) -> tuple[Float[Tensor, "N L D"], tuple[int, int] | None]:
    """Tokens `[N, L, D]`, and their grid where the shape says it, of a sequence, or a map of either layout.

    A convolution's map is `[N, D, h, w]`, any other `[N, h, w, D]`.

    Raises:
        SiteError: neither a sequence nor a map.
    """
    if value.ndim == 3:
        return value, None
    if value.ndim != 4:
        raise SiteError(f"site {site!r} has shape {list(value.shape)}, which is neither tokens [N, L, D] nor a map")
    module = model.get_submodule(Site.parse(site).layer)
    last = value.movedim(1, -1) if isinstance(module, nn.Conv2d) else value
    return last.flatten(1, 2), (last.shape[1], last.shape[2])


def grid_of(count: int, size: Sequence[int], given: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of a grid of `count` patches on an image of a size; patches are square where none is given.

    Raises:
        InputError: no such grid, or a given one of another number of patches.
    """
    if given is not None:
        if given[0] * given[1] != count:
            raise InputError(f"a grid of {given[0]} x {given[1]} for {count} patch tokens")
        return given
    if len(size) == 2:
        for height in range(1, count + 1):
            if count % height == 0 and size[0] * (count // height) == size[1] * height:
                return height, count // height
    raise InputError(f"{count} patch tokens are no grid of squares on an input of {list(size)}: pass grid=(h, w)")
