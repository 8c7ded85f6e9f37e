"""Are contribution maps faithful? Insertion and deletion of their pixels, against what the mode itself contributes.

The paper computes no such score. The score along the curves is the set's contribution at the perturbed picture, which
is what its map claims to place, and beside it the target's own. Maps that know nothing of the set stand as controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.algorithms import Algorithm
from backlight.contributions.channel_sets import set_weights
from backlight.contributions.contribution import contribute
from backlight.contributions.input_decomposition import InputDecomposition
from backlight.contributions.maps import contribution_maps
from backlight.contributions.reduction import Layout
from backlight.engine.sites import captured, patched
from backlight.engine.targets import Target
from backlight.errors import InputError
from backlight.methods.class_activation import GradCAM
from backlight.metrics.case import Case
from backlight.metrics.insertion_deletion import Deletion, Insertion
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float

ABLATION = "ablation"
OF_MODE, OF_CLASS = "mode", "class"


class ModeScore(nn.Module):
    """A network whose only output, `[n, 1]`, is what one set of units contributes to a target of `model`.

    By an algorithm of `backlight.contributions.ALGORITHMS` at each input, or by "ablation": the target less the target
    with the set's activations multiplied by 1 - weight, which uses no gradient.

    Args:
        weights: of the units, broadcasting to `[n, *site]`.
        target: decided, of one sample.
    """

    def __init__(
        self, model: nn.Module, site: str, weights: Tensor, target: Target, by: str | Algorithm = "ActGrad"
    ) -> None:
        super().__init__()
        self.model, self.site, self.target, self.by = model, site, target, by
        self.weights = weights.detach()

    def forward(self, x: Tensor) -> Float[Tensor, "n 1"]:
        if self.by == ABLATION:
            whole = self._target(x)
            with patched(self.model, {self.site: lambda h: h * (1 - self.weights.to(h))}):
                return (whole - self._target(x))[:, None]
        units = contribute(self.model, x, self.site, self.target, algorithm=self.by).values[self.site]
        return (self.weights.to(units) * units).flatten(1).sum(1, keepdim=True)

    def _target(self, x: Tensor) -> Tensor:
        with captured(self.model, self.target.sites) as hidden:
            return self.target(self.model(x), hidden)


@dataclass(frozen=True)
class MapFaithfulness:
    """Areas under curves, `{score: [K, M, N]}` for K kinds of maps, M sets and N samples; scores: "mode", "class".

    `maps`, the kinds: "mode", "positive" (its positive part), and the controls: "random channels" (the mean over draws
    of as many other channels), "all channels" of the site, "Grad-CAM" at the site, and "random" (noise).
    Insertion: higher is better; deletion: lower. Units are those of the score: compare maps, not scores.
    """

    maps: tuple[str, ...]
    insertion: dict[str, Float[Tensor, "K M N"]]
    deletion: dict[str, Float[Tensor, "K M N"]]

    def gain(self, score: str = OF_MODE) -> Float[Tensor, "K M N"]:
        """Insertion less deletion of each map: what its order of pixels is worth; about 0 for one that orders nothing.

        On canvases that differ (the defaults of both do) the random map's is not 0: compare with it.
        """
        return self.insertion[score] - self.deletion[score]


def map_faithfulness(
    model: nn.Module,
    inputs: Float[Tensor, "N C H W"],
    site: str,
    modes: Any,
    target: Any = None,
    *,
    algorithm: str | InputDecomposition = "InputGrad",
    by: str | Algorithm = "ActGrad",
    baseline: Any = None,
    draws: int = 3,
    insertion: Insertion | None = None,
    deletion: Deletion | None = None,
    seed: int = 0,
    layout: Layout | str | None = None,
    batch_size: int = BATCH_SIZE,
) -> MapFaithfulness:
    """Insertion and deletion of contribution maps and controls, scored by the set's contribution and by the target.

    Cost: for each sample, set and map (5 + `draws`), two curves of the metrics' steps: forward passes of the class
    score, forward and backward passes down to the site of the mode's.

    Args:
        modes: sets of channels or weights, as `contribution_maps` takes them; weights of single units have no random
            channels to be compared with.
        algorithm, baseline: of the maps.
        by: what scores the set at perturbed inputs: "ActGrad", activation times gradient (the default: it takes one
            pass, and no path through the input, so that it does not repeat what InputGrad's map is made of), any other
            algorithm, or "ablation", without gradients.
        draws: of random channels.
        insertion, deletion: with settings of their own (steps, patches, canvas); the metrics' defaults.

    Raises:
        InputError: a set of all channels, which no others can be drawn beside; a site without feature maps.
    """
    insertion, deletion = insertion or Insertion(), deletion or Deletion()
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    decided = Scorer(model, inputs, target, batch_size).target
    areas: dict[str, list[Tensor]] = {}
    kinds: tuple[str, ...] = ()
    settings = {"algorithm": algorithm, "baseline": baseline, "layout": layout}
    for row in range(len(inputs)):
        x, own = inputs[row : row + 1], decided.rows(torch.tensor([row]))
        found = contribution_maps(model, x, site, _of_sample(modes, row, len(inputs)), own, **settings)
        assert found.units is not None
        value = torch.empty_like(found.units)
        weights = set_weights(_of_sample(modes, row, len(inputs)), value, found.layout)
        shared = _class_maps(model, x, site, own, found.layout, value, settings, seed)
        for number, weight in enumerate(weights):
            assert found.positive is not None
            generator = torch.Generator().manual_seed(seed)
            others = _other_channels(weight, value, found.layout, draws, generator)
            random = contribution_maps(model, x, site, others, own, split=False, **settings).total
            maps = {"mode": found.total[number], "positive": found.positive[number]}
            maps |= {f"random channels {draw}": one for draw, one in enumerate(random)} | shared
            kinds = ("mode", "positive", "random channels", *shared)
            scored = {OF_MODE: ModeScore(model, site, weight, own, by), OF_CLASS: model}
            for score, network in scored.items():
                case = Case(network, x, 0 if score == OF_MODE else own, maps=maps, seed=seed, batch_size=batch_size)
                for name, metric in (("insertion", insertion), ("deletion", deletion)):
                    area = metric(case)[:, 0]
                    mean = area[2 : 2 + draws].mean(0, keepdim=True)
                    areas.setdefault(f"{name} {score}", []).append(torch.cat((area[:2], mean, area[2 + draws :])))
    shape = (len(inputs), -1, len(kinds))
    of = {key: torch.stack(rows).reshape(shape).permute(2, 1, 0) for key, rows in areas.items()}
    by_score = ({score: of[f"{name} {score}"] for score in (OF_MODE, OF_CLASS)} for name in ("insertion", "deletion"))
    return MapFaithfulness(kinds, *by_score)


def _of_sample(modes: Any, row: int, samples: int) -> Any:
    """The sets of one sample: rows of tensors that have one a sample."""
    if isinstance(modes, Tensor):
        by_sample = modes.ndim > 2 and modes.shape[1] == samples and samples > 1
        return modes[:, row : row + 1] if by_sample else modes
    if isinstance(modes, (list, tuple)):
        return [
            one[row : row + 1] if isinstance(one, Tensor) and one.ndim == 2 and len(one) == samples else one
            for one in modes
        ]
    return modes


def _class_maps(
    model: nn.Module, x: Tensor, site: str, target: Target, layout: Layout, value: Tensor, settings: Any, seed: int
) -> dict[str, Tensor]:
    """Maps that do not depend on the set."""
    channels = layout.flattened(value).shape[1]
    whole = contribution_maps(model, x, site, torch.ones(1, channels), target, split=False, **settings).total[0]
    cam = {}
    if layout.kind == "maps" and value.ndim == 4:
        cam["Grad-CAM"] = GradCAM(model, layer=site).explain(x, target).value
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    return {"all channels": whole, **cam, "random": noise}


def _other_channels(
    weight: Tensor, value: Tensor, layout: Layout, draws: int, generator: torch.Generator
) -> list[list[int]]:
    """As many channels that are not in the set, drawn without replacement."""
    inside = layout.flattened(weight.expand(1, *value.shape[1:])).ne(0).any(2)[0]
    outside, count = (~inside).nonzero().flatten(), int(inside.sum())
    if not 0 < count <= len(outside):
        raise InputError(
            f"{count} of {len(inside)} channels are in the set: as many others cannot be drawn for the control"
        )
    return [
        outside[torch.randperm(len(outside), generator=generator)[:count].to(outside.device)].tolist()
        for _ in range(draws)
    ]
