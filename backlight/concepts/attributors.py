"""Attributors of latents: by what rule the relevance of z_k is sent back to the patches of a picture.

    from backlight.concepts.attributors import attributor
    attributor("AttnLRP").scores(model, "blocks.8", dictionary, image, latent=14, token=37)      # [h, w]

A new one is a class, here or in a file beside, and a line in `ATTRIBUTORS`; the insertion test, the command line and
the documentation read it from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.concepts.latent_units import BATCH, LatentTask
from backlight.decompositions import Decomposition
from backlight.engine.evaluation import Cost
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.token_fields import TokenScores
from backlight.methods.token_layout import find_sites
from backlight.shapes import Float

ATTRIBUTORS: dict[str, str] = {
    "AttnLRP": "attributors_by_rules",
    "CPLRP": "attributors_by_rules",
    "SRD": "attributors_by_rules",
    "IntegratedGradients": "attributors_by_change",
    "Gradient": "attributors_by_change",
    "GradientTimesInput": "attributors_by_rules",
    "SoftPullback": "attributors_by_rules",
    "KernelSHAP": "attributors_by_change",
    "ActivationRanking": "attributors_controls",
    "Random": "attributors_controls",
}
LEVELS = ("auto", "tokens", "pixels")
READOUTS = ("norm", "signed")


@dataclass(frozen=True, eq=False)
class LatentScores:
    """What an attributor says of T latents.

    `patches`: of each patch; of tokens, the content and position embedding together. `prefix`, `position`, `content`:
    of the class token and registers, and of the two parts of the patches, where an attributor tells them apart.
    `pixels`: value times cotangent at the input, where asked for. `z` `[T]`: the scalars. `residual` `[T]`: for those
    that claim to sum to a difference of z, what is missing.
    """

    patches: TokenScores
    z: Float[Tensor, "T"]
    prefix: TokenScores | None = None
    position: TokenScores | None = None
    content: TokenScores | None = None
    pixels: Float[Tensor, "T C H W"] | None = None
    residual: Float[Tensor, "T"] | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(kw_only=True)
class LatentAttributor:
    """Scores of the patches of a picture for one latent at one token.

    `level`: "tokens", the input of the first block (content and position embedding), or "pixels", in the cells of the
    patch grid; "auto" is tokens where the network has them. `readout`: what `scores` gives: "norm", the l2 norm over
    the channels of a patch (the paper's; unsigned, not conservative, not additive), or "signed", the sum.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    passes: ClassVar[str] = "1"

    level: str = "auto"
    readout: str = "norm"
    internal_batch_size: int = BATCH

    def __post_init__(self) -> None:
        for kind, value, choices in (("level", self.level, LEVELS), ("readout", self.readout, READOUTS)):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)
        if self.internal_batch_size < 1:
            raise InputError(f"internal_batch_size must be at least 1, got {self.internal_batch_size}")

    def scores(
        self,
        model: nn.Module,
        site: str,
        dictionary: Decomposition,
        image: Float[Tensor, "1 C H W"],
        latent: int,
        token: int | None,
    ) -> Float[Tensor, "h w"]:
        """The scores of one latent at one token of a site (None: summed over tokens), by the readout."""
        return self.chosen(self.explain(LatentTask.of(model, site, dictionary, image, latent, token)))[0]

    def chosen(self, found: LatentScores) -> Float[Tensor, "T h w"]:
        """The scores by the readout."""
        return found.patches.norm if self.readout == "norm" else found.patches.signed

    def explain(self, task: LatentTask, pixels: bool = False) -> LatentScores:
        """The scores of T latents; none depends on the others."""
        parts = [
            self._explain(task.part(rows), pixels)
            for rows in torch.arange(len(task), device=task.latents.device).split(self.internal_batch_size)
        ]
        return joined(parts)

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        raise NotImplementedError

    def on_tokens(self, task: LatentTask) -> bool:
        """Whether the level is tokens. Raises `SiteError` where it is to be, and the network has none."""
        if self.level != "auto":
            if self.level == "tokens":
                find_sites(task.model)
            return self.level == "tokens"
        try:
            find_sites(task.model)
        except SiteError:
            return False
        return True


def attributor(name: str, **settings: Any) -> LatentAttributor:
    """An attributor by its name, with settings; case, hyphens and underscores do not matter.

    Raises:
        UnknownNameError: a name that is not in `ATTRIBUTORS`, or a setting it does not have.
    """
    plain = {known.lower(): known for known in ATTRIBUTORS}
    key = name.replace("_", "").replace("-", "").lower()
    if key not in plain:
        raise UnknownNameError("attributor", name, ATTRIBUTORS)
    found = getattr(import_module(f"backlight.concepts.{ATTRIBUTORS[plain[key]]}"), plain[key])
    known = [one.name for one in fields(found)]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of {plain[key]}", setting, known)
    return found(**settings)


def joined(parts: list[LatentScores]) -> LatentScores:
    """One result of several batches'."""
    if len(parts) == 1:
        return parts[0]

    def scores(name: str) -> TokenScores | None:
        every = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        pair = (torch.cat([getattr(one, kind) for one in every]) for kind in ("norm", "signed") if every)
        return TokenScores(*pair) if every else None

    def tensors(name: str) -> Tensor | None:
        every = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return torch.cat(every) if every else None

    patches = scores("patches")
    assert patches is not None
    return LatentScores(
        patches,
        torch.cat([part.z for part in parts]),
        prefix=scores("prefix"),
        position=scores("position"),
        content=scores("content"),
        pixels=tensors("pixels"),
        residual=tensors("residual"),
        cost=Cost(sum(part.cost.forwards for part in parts), sum(part.cost.backwards for part in parts)),
    )


def cell_numbers(size: tuple[int, int], grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """The number of the cell of an h x w grid that each pixel lies in, `[H, W]`, row by row.

    Raises:
        InputError: more cells than pixels along an axis.
    """
    if grid[0] > size[0] or grid[1] > size[1]:
        raise InputError(f"a grid of {list(grid)} cells on an input of {list(size)}")
    rows, columns = (
        torch.arange(length, device=device) * count // length for length, count in zip(size, grid, strict=True)
    )
    return rows[:, None] * grid[1] + columns


def in_cells(values: Float[Tensor, "T C H W"], grid: tuple[int, int]) -> TokenScores:
    """l2 norm and sum over the entries of each cell of a grid on the input."""
    numbers = cell_numbers((values.shape[2], values.shape[3]), grid, values.device).flatten()

    def gathered(entries: Tensor) -> Tensor:
        found = entries.new_zeros(len(entries), grid[0] * grid[1])
        return found.index_add_(1, numbers, entries.flatten(1)).unflatten(1, grid)

    return TokenScores(gathered(values.square().sum(1)).sqrt(), gathered(values.sum(1)))
