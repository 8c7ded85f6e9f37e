"""CAFE: where in a picture a latent looks, which need not be where it fires.

    from backlight.concepts.cafe import Cafe
    fields = Cafe(model, dictionary, "blocks.8").explain(image, [14, 69])
    fields.patches.norm          # [2, h, w], the iERF of z_k at the token where it is largest
    fields.activation            # [2, h, w], z_k at each patch

iERF_k(I) = {(p, A(p | z_k, I))} with A(p | z_k, I) = |x_p * g_p|_2 and g the cotangent of z_k under AttnLRP, through
the encoder's row and the network (iERF paper, Kim, Han, Kwak 2026, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.concepts.attributors import LatentAttributor, LatentScores, attributor
from backlight.concepts.latent_units import BATCH, LatentTask, choose_tokens, layout_at, placed, stream
from backlight.decompositions import Decomposition
from backlight.displayed import Displayed
from backlight.engine.evaluation import Cost
from backlight.methods.token_fields import TokenScores
from backlight.methods.token_layout import TokenLayout
from backlight.shapes import Float, Int


@dataclass(frozen=True, eq=False, repr=False)
class LatentFields(Displayed):
    """Of T latents, each on its image: where it fires, and where it looks.

    `activation` `[T, h, w]`: z_k at the patches; `prefix_activation` `[T, P]`: at the class token (first) and
    registers. `tokens` `[T]`: the token of the layer whose z is explained, -1 for the sum over all; `z` `[T]`: that
    scalar. `patches`: the iERF, `norm` and `signed`; `map` is the one that the attributor is read by. `prefix`,
    `position`, `content`: what prefix tokens, the position embedding and the patch embedding alone have of it, where
    the attributor tells. `pixels` `[T, C, H, W]`: relevance at the input, where asked for. `residual`: see
    `LatentScores`.

    Norms are unsigned, not conservative and not additive. A latent that is off at its token has a field of zeros.
    """

    latents: Int[Tensor, "T"]
    tokens: Int[Tensor, "T"]
    z: Float[Tensor, "T"]
    activation: Float[Tensor, "T h w"]
    prefix_activation: Float[Tensor, "T P"]
    patches: TokenScores
    map: Float[Tensor, "T h w"]
    layout: TokenLayout
    prefix: TokenScores | None = None
    position: TokenScores | None = None
    content: TokenScores | None = None
    pixels: Float[Tensor, "T C H W"] | None = None
    residual: Float[Tensor, "T"] | None = None
    cost: Cost = field(default_factory=Cost)

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def class_activation(self) -> Float[Tensor, "T"] | None:
        """z_k at the class token; None where there is none."""
        return self.prefix_activation[:, 0] if self.layout.prefix else None

    @property
    def positions(self) -> Int[Tensor, "T 2"]:
        """(row, column) of the explained token; (-1, -1) of a prefix token, or the sum."""
        place = self.tokens - self.layout.prefix
        found = torch.stack((place // self.layout.width, place % self.layout.width), 1)
        return found.where(place[:, None] >= 0, -1)

    @property
    def prefix_share(self) -> Float[Tensor, "T"] | None:
        """The share of prefix tokens in the norms of all tokens; None where the attributor does not tell."""
        if self.prefix is None:
            return None
        own, rest = self.prefix.norm.sum(1), self.patches.norm.flatten(1).sum(1)
        return own / (own + rest).where(own + rest > 0, 1)


@dataclass(kw_only=True)
class Cafe:
    """The iERF of latents on images: which patches, and pixels, z_k at a token comes from.

    Cost: a forward pass an image for the activations, then the attributor's passes a latent.

    Args:
        model: any network that the attributor can explain; transformers are read at patch tokens, others at pixels.
        dictionary: with an encoder (`Decomposition.latents`), fitted to rows of the site.
        site: tokens `[N, L, C]`, or a map `[N, C, h, w]`.
        attributor: a name of `ATTRIBUTORS`, or one with settings.
        token: whose z is explained: "argmax" (the default, as in the lab's later code; the paper does not say),
            "patch", "class", "sum", or a number; see `choose_tokens`.
        batch_size: images in one pass for the activations.
    """

    model: nn.Module = field(kw_only=False)
    dictionary: Decomposition = field(kw_only=False)
    site: str = field(kw_only=False)
    attributor: str | LatentAttributor = "AttnLRP"
    token: str | int = "argmax"
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        self.dictionary = placed(self.dictionary, self.model)
        if isinstance(self.attributor, str):
            self.attributor = attributor(self.attributor)

    def explain(
        self, images: Float[Tensor, "N C H W"], latents: Any, *, tokens: Any = None, pixels: bool = False
    ) -> LatentFields:
        """The fields of T latents.

        Args:
            images: one for all latents, or T.
            latents: one for all images, or T.
            tokens: of each latent, instead of the choice by `token`.
            pixels: keep the relevance at the input too.

        Raises:
            InputError: numbers of images, latents and tokens that do not agree; a dictionary without an encoder.
            TargetError: a latent or token out of range.
            SiteError: a site of another width, or that the attributor cannot explain.
        """
        assert isinstance(self.attributor, LatentAttributor)
        layout = layout_at(self.model, self.site, self.dictionary, images.to(self.dictionary.modes.device))
        task = LatentTask.of(self.model, self.site, self.dictionary, images, latents, tokens, layout)
        values = self._values(task)
        chosen = choose_tokens(values, self.token, layout) if tokens is None else task.tokens
        task = LatentTask.of(self.model, self.site, self.dictionary, images, task.latents, chosen, layout)
        found = self.attributor.explain(task, pixels)
        return self._fields(task, values, found)

    def strongest(self, image: Float[Tensor, "1 C H W"], count: int = 4) -> Int[Tensor, "k"]:
        """The latents that are largest on an image at the token that would be explained; fewer where fewer are on."""
        layout = layout_at(self.model, self.site, self.dictionary, image.to(self.dictionary.modes.device))
        (values,) = stream(self.model, self.site, self.dictionary, image, None, 1)
        rows = values[0].T
        tokens = choose_tokens(rows, self.token, layout)
        z = rows.sum(1) if tokens is None else rows.gather(1, tokens[:, None])[:, 0]
        best = z.topk(min(max(count, 0), len(z)))
        return best.indices[best.values > 0]

    def _values(self, task: LatentTask) -> Float[Tensor, "T L"]:
        """z of each latent at every token of its image."""
        wanted, place = task.latents.unique(return_inverse=True)
        if len(task.images) == 1:
            (values,) = stream(self.model, self.site, self.dictionary, task.images, wanted, 1)
            return values[0].T[place]
        parts = stream(self.model, self.site, self.dictionary, task.images, wanted, self.batch_size)
        picked = [
            part.movedim(2, 1)[torch.arange(len(part), device=part.device), rows]
            for part, rows in zip(parts, place.split(self.batch_size), strict=True)
        ]
        return torch.cat(picked)

    def _fields(self, task: LatentTask, values: Tensor, found: LatentScores) -> LatentFields:
        assert isinstance(self.attributor, LatentAttributor)
        prefix = task.layout.prefix
        if task.tokens is None:
            tokens, z = torch.full_like(task.latents, -1), values.sum(1)
        else:
            tokens = task.tokens
            z = values.gather(1, tokens[:, None])[:, 0]
        return LatentFields(
            latents=task.latents,
            tokens=tokens,
            z=z,
            activation=values[:, prefix:].unflatten(1, task.grid),
            prefix_activation=values[:, :prefix],
            patches=found.patches,
            map=self.attributor.chosen(found),
            layout=task.layout,
            prefix=found.prefix,
            position=found.position,
            content=found.content,
            pixels=found.pixels,
            residual=found.residual,
            cost=found.cost,
        )
