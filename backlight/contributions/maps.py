"""contribution_maps(): where in the input the contributions of channels, or of modes, come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.channel_sets import set_weights
from backlight.contributions.input_decomposition import InputDecomposition, as_input_decomposition
from backlight.contributions.linearisation import Linearisation
from backlight.contributions.occasion import is_plain
from backlight.contributions.reduction import Layout, layout_of
from backlight.displayed import Displayed
from backlight.engine.attribution import checked_inputs, pass_limit
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost, Evaluator, check_evaluation_mode, halved_on_lack_of_memory
from backlight.engine.paths import baseline_like
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.sites import FEATURES
from backlight.engine.targets import as_target
from backlight.errors import InputError, NonFiniteError
from backlight.shapes import Float


@dataclass(repr=False)
class ContributionMaps(Displayed):
    """What `contribution_maps` returns, of M sets of channels at N samples; nothing of it attached to a graph.

    `total`: `[M, N, *input]`, the signed map. `positive`, `negative`: its parts that pass through units (channels at
    positions) which contribute positively, and negatively; they sum to it. Neither is of one sign itself. None without
    `split`.

    `contributions`: `[M, N]`, what the sets contribute by the algorithm, which the maps sum to. `units`:
    `[N, *site]`, the contribution of every unit of the site. `channels`: `[N, C]`, the same summed over positions. All
    None without `split`. `scores`: `[N]`, the target at the input.
    """

    total: Float[Tensor, "M N *input"]
    positive: Float[Tensor, "M N *input"] | None
    negative: Float[Tensor, "M N *input"] | None
    contributions: Float[Tensor, "M N"] | None
    units: Float[Tensor, "N *site"] | None
    channels: Float[Tensor, "N C"] | None
    scores: Float[Tensor, "N"]
    layout: Layout
    coverage: Coverage
    cost: Cost

    @property
    def residual(self) -> Float[Tensor, "M N"]:
        """Contribution of each set less the sum of its map: rounding for InputGrad, else what the steps leave.

        Raises:
            InputError: the maps were computed without `split`.
        """
        if self.contributions is None:
            raise InputError("the contributions are not known: compute the maps with split=True")
        return self.contributions - _sums(self.total)


def contribution_maps(
    model: nn.Module,
    inputs: Any,
    site: str,
    modes: Any,
    target: Any = None,
    *,
    algorithm: str | InputDecomposition = "InputGrad",
    baseline: Any = None,
    split: bool = True,
    rules: RuleSet = GRADIENT,
    layout: Layout | str | None = None,
    internal_batch_size: int | None = None,
    additional_forward_args: Any = (),
    strict: bool = True,
) -> ContributionMaps:
    """Maps over the input of what sets of channels at a hidden site contribute to a target (CODEC, section 10.7).

    One forward pass, one backward pass to the site and one from there to the input for each set, or two with `split`,
    which needs the contribution of every unit too: one pass in forward mode. Algorithms with a path take as many passes
    a node of it.

    Args:
        inputs: a tensor `[N, ...]` of floating point.
        site: the name of a module (see `backlight.engine.sites`).
        modes: sets of channels: a list of numbers is one set, a list of lists or tensors several (a tensor `[N, n]` has
            a row a sample). Weights `[C]`, `[M, C]` or `[M, N, C]` count each channel's contribution that often.
            Weights `[M, N or 1, *site]` choose units. The paper takes the top channels of a mode, unweighted.
        target: an index, `[N]` indices, a `Target`, a callable, or None: the largest logit. The gradient of a
            probability vanishes where it is near 1, and its maps with it: explain the logit.
        algorithm: a name or an instance of `INPUT_DECOMPOSITIONS`.
        baseline: x_0, see `backlight.engine.paths.baseline_like`; zero by default.
        split: compute positive and negative parts, and the contributions.
        rules: how cotangents travel back. Maps under other rules than the gradient's sum to no contribution of another
            algorithm, and exist in parts only where the rules are linear in the cotangent (Guided Backprop's are not).
        layout: where the channels are, where the site's shape leaves it open.
        internal_batch_size: the most samples in one pass (default: N). Halved where memory does not suffice.
        additional_forward_args: further arguments of the model; tensors with one entry a sample follow the samples.
        strict: raise where no rule answers for an operation; otherwise let the gradient through and list it.

    Raises:
        BacklightError: inputs, sets, targets, sites or operations that do not fit; the message says which.
    """
    algorithm, x = as_input_decomposition(algorithm), _one_input(inputs)
    check_evaluation_mode(model)
    arguments = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
    evaluator = Evaluator(
        model, as_target(target), rules, (site,), len(x), strict, arguments=() if arguments == (None,) else arguments
    )
    evaluator.target.check(len(x))
    start = baseline_like(baseline, x)
    work = _Work(algorithm, evaluator, x, start, modes, split, layout)
    parts: list[ContributionMaps] = []
    limit = pass_limit(internal_batch_size, len(x))
    for first in range(0, len(x), limit):
        piece = slice(first, min(len(x), first + limit))
        halved_on_lack_of_memory(lambda rows: parts.append(work.piece(rows)), piece)
    found = _joined(parts)
    if not torch.isfinite(found.total).all():
        raise NonFiniteError(f"the maps of {site!r} are not finite ({x.dtype}); try bfloat16 or float32")
    return found


def _one_input(inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise InputError("maps are of one input, a tensor [N, ...]: give others as additional_forward_args")
    return checked_inputs(inputs)[0].detach()


@dataclass
class _Work:
    """What is asked for, of all samples."""

    algorithm: InputDecomposition
    evaluator: Evaluator
    x: Tensor
    start: Tensor
    modes: Any
    split: bool
    given: Layout | str | None

    def piece(self, rows: slice) -> ContributionMaps:
        """The maps of some of the samples."""
        part = self.evaluator.part(torch.arange(rows.start, rows.stop))
        x, start = self.x[rows], self.start[rows]
        here = Linearisation(part, x)
        given = "maps" if here.site == FEATURES and self.given is None else self.given
        layout = layout_of(here.value, part.model, here.site, size=x.shape[2:], layout=given)
        everyone = here.value[:1].expand(len(self.x), *here.value.shape[1:])  # sets may have a row a sample
        weights = [w if len(w) == 1 else w[rows] for w in set_weights(self.modes, everyone, layout)]
        facts: dict[str, Any] = {"scores": here.scores, "layout": layout, "coverage": part.coverage, "cost": part.cost}
        if not self.split:
            total = torch.stack(self.algorithm.maps(here, start, weights))
            return ContributionMaps(total, None, None, None, None, None, **facts)
        units = self.algorithm.units(here, start)
        positive = [w * (w * units > 0) for w in weights]
        negative = [w * (w * units < 0) for w in weights]
        if not is_plain(part):
            for parts in zip(weights, positive, negative, strict=True):
                self._check_additive(here, *parts)
        maps = torch.stack(self.algorithm.maps(here, start, [*positive, *negative]))
        wide = _wide(units)
        sums = torch.stack([(w * units).flatten(1).sum(1, dtype=wide).to(maps.dtype) for w in weights])
        up, down = maps[: len(weights)], maps[len(weights) :]
        return ContributionMaps(
            up + down, up, down, sums, units, layout.flattened(units).sum(2, dtype=wide).to(maps.dtype), **facts
        )

    def _check_additive(self, here: Linearisation, *weights: Tensor) -> None:
        """Under rules that are not linear in the cotangent, parts of it do not come to parts of the map."""
        whole, *parts = (here.pull(weight * here.cotangent) for weight in weights)
        if (sum(parts) - whole).abs().max() > torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max():
            raise InputError(
                f"the rules {self.evaluator.rules.name!r} are not linear in the cotangent: their maps have no positive "
                "and negative parts; ask for split=False"
            )


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64


def _sums(maps: Float[Tensor, "M N *input"]) -> Float[Tensor, "M N"]:
    return maps.flatten(2).sum(2, dtype=_wide(maps)).to(maps.dtype)


def _joined(parts: list[ContributionMaps]) -> ContributionMaps:
    """Along the samples: the second axis of what is there for each set, else the first."""

    def joined(name: str, axis: int) -> Any:
        found = [getattr(part, name) for part in parts]
        return found[0] if found[0] is None or len(found) == 1 else torch.cat(found, axis)

    by_set = {name: joined(name, 1) for name in ("total", "positive", "negative", "contributions")}
    return replace(parts[0], **by_set, **{name: joined(name, 0) for name in ("units", "channels", "scores")})
