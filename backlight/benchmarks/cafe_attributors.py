"""What an insertion benchmark ranks: attributors by both readouts, and controls that know nothing of the latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.concepts.attributors import LatentAttributor, LatentScores, attributor
from backlight.concepts.latent_units import LatentTask
from backlight.methods.token_fields import TokenScores

DEFAULT = (
    "AttnLRP", "CPLRP", "SRD", "IntegratedGradients", "Gradient", "GradientTimesInput", "SoftPullback", "KernelSHAP",
    "ActivationRanking", "Nearest", "Random",
)  # fmt: skip
CONTROLS = ("ActivationRanking", "Nearest", "Random")
ONE_READOUT = (*CONTROLS, "Gradient", "KernelSHAP")
SIGNED = ", signed"
QUICK: dict[str, dict[str, Any]] = {
    "IntegratedGradients": {"n_steps": 8},
    "KernelSHAP": {"n_samples": 96, "block": 2},
}


@dataclass(kw_only=True)
class Nearest(LatentAttributor):
    """Minus the distance of a patch to the one where the latent is read: the control of looking where it fires.

    Of a prefix token, the distance to the middle of the picture.
    """

    source: ClassVar[str] = "control"
    formula: ClassVar[str] = "-|p - token|_2"
    passes: ClassVar[str] = "0"

    readout: str = "signed"

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        height, width = task.grid
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        maps = torch.stack([self._map(task, token, rows, columns) for token in self._tokens(task)]).to(task.images)
        return LatentScores(TokenScores(maps, maps), maps.new_full((len(task),), torch.nan))

    def _tokens(self, task: LatentTask) -> list[int]:
        return [-1] * len(task) if task.tokens is None else (task.tokens - task.layout.prefix).tolist()

    def _map(self, task: LatentTask, token: int, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = task.grid
        row, column = divmod(token, width) if token >= 0 else ((height - 1) / 2, (width - 1) / 2)
        return -((rows - row) ** 2 + (columns - column) ** 2).float().sqrt()


@dataclass(frozen=True)
class Entrant:
    """An attributor, and the names of the orders it gives: by its readout, and by the signed sum."""

    name: str
    attributor: LatentAttributor
    both: bool

    @property
    def orders(self) -> list[str]:
        """The names of its rows."""
        return [self.name, *([self.name + SIGNED] if self.both else [])]

    def scores(self, task: LatentTask) -> tuple[dict[str, Tensor], LatentScores]:
        """`[T, h, w]` for each order."""
        found = self.attributor.explain(task)
        maps = [self.attributor.chosen(found), found.patches.signed]
        return dict(zip(self.orders, maps, strict=False)), found

    @property
    def costly(self) -> bool:
        """Whether it passes through the network hundreds of times a latent."""
        return self.attributor.passes == "n_samples"

    def described(self) -> dict[str, Any]:
        """Its class and settings."""
        return {"class": type(self.attributor).__name__, "settings": vars(self.attributor), "signed": self.both}


def entrants(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    signed: bool | Sequence[str] = True,
    quick: bool = False,
) -> list[Entrant]:
    """The attributors of these names with their settings; `signed`: which of those with a sign also by the signed sum.

    Raises:
        UnknownNameError: a name or setting that is not there.
    """
    found = []
    for name in dict.fromkeys(names):
        own = {**(QUICK.get(name, {}) if quick else {}), **settings.get(name, {})}
        one = Nearest(**own) if name.lower() == "nearest" else attributor(name, **own)
        label = type(one).__name__
        wanted = signed if isinstance(signed, bool) else label in signed
        found.append(Entrant(label, one, wanted and label not in ONE_READOUT and one.readout == "norm"))
    return found


def is_control(name: str) -> bool:
    """Whether an order is a control's."""
    return name in CONTROLS
