"""Contribution algorithms: from activations and gradients at hidden units to what each unit adds to the target.

Each is a small frozen dataclass; `ALGORITHMS` holds them by name. Section 10.7 of CODEC (Contribution Decomposition).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from backlight.contributions.input_gradient import input_gradients
from backlight.contributions.occasion import Occasion, wide
from backlight.contributions.warped_path import along_hidden, along_input
from backlight.engine.paths import Noise, line_rule, norms
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float

Found = tuple[dict[str, Tensor], Float[Tensor, "n"] | None]


@dataclass(frozen=True)
class Algorithm:
    """How contributions are computed on an occasion. Subclasses say what they claim.

    `source`: where it comes from. `formula`: h activation, g its cotangent, h_0 the activation at the baseline.
    `complete`: whether the contributions of a layer that everything passes through sum to the target at the input less
    that at the baseline (exactly, as the number of steps grows). `passes`: forward and backward passes a sample.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    complete: ClassVar[bool] = False
    passes: ClassVar[str] = "1"

    def contributions(self, occasion: Occasion) -> Found:
        """({site: contributions of the site's shape}, the target at the baseline `[n]` where it was visited)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ActGrad(Algorithm):
    """Activation times gradient; with a baseline, the activation's difference to that at the baseline."""

    source: ClassVar[str] = "CODEC, section 10.7, equation 5"
    formula: ClassVar[str] = "(h - h_0) * g; without a baseline h * g"

    def contributions(self, occasion: Occasion) -> Found:
        here = occasion.here
        if occasion.starts is None:
            return {site: wide(h) * here.gradients[site] for site, h in here.activations.items()}, None
        scores, before = occasion.activations_at(occasion.starts)
        return {site: (wide(h) - before[site]) * here.gradients[site] for site, h in here.activations.items()}, scores


@dataclass(frozen=True)
class ActNormGrad(ActGrad):
    """ActGrad with each sample's gradient scaled to length 1 over the whole site.

    Within a sample as ActGrad; between samples, magnitudes say nothing about the target any more.
    """

    source: ClassVar[str] = "CODEC's reference implementation, act_normgrad"
    formula: ClassVar[str] = "(h - h_0) * g / max(|g|, 1e-8), |g| over all units and positions of a sample"

    def contributions(self, occasion: Occasion) -> Found:
        values, scores = super().contributions(occasion)
        for site, value in values.items():
            values[site] = value / norms(occasion.here.gradients[site]).clamp(min=1e-8)
        return values, scores


@dataclass(frozen=True)
class HiddenIntegratedGradients(Algorithm):
    """Integrated gradients of hidden units: complete where everything passes through the layer.

    `path="input"`: along the path that the straight line from baseline to input draws in hidden space, `n_steps`
    intervals; one pass a point for all sites, memory independent of `n_steps`. `rule`: trapezoid, riemann_left or
    riemann_right. `spacing`: p of the points (i / n_steps)^p; 1 gives CODEC's, above 1 they crowd at the baseline,
    where the outputs of trained networks change most: compare residuals.
    `path="hidden"`: along the straight line in hidden space, the site replaced by its points; a pass a site and node.
    `rule`: any of `backlight.engine.paths.line_rule` with `n_steps` nodes, the trapezoid with `n_steps` intervals.
    """

    source: ClassVar[str] = "CODEC, section 10.7, equations 15 to 21 (path='input') and 12 (path='hidden')"
    formula: ClassVar[str] = "sum_i (g_{i-1} + g_i) / 2 * (h_i - h_{i-1}); hidden: (h - h_0) * mean_i g_i"
    complete: ClassVar[bool] = True
    passes: ClassVar[str] = "n_steps + 1; hidden: 1 + n_steps a site"

    n_steps: int = 10
    path: str = "input"
    rule: str = "trapezoid"
    spacing: float = 1.0

    def __post_init__(self) -> None:
        if not self.spacing > 0 or (self.path == "hidden" and self.spacing != 1):
            raise InputError(f"spacing is positive, and 1 on the hidden path, got {self.spacing}")
        if self.path not in ("input", "hidden"):
            raise UnknownNameError("path", self.path, ["input", "hidden"])
        line_rule(self.rule, self.n_steps)
        if self.path == "input" and self.rule not in ("trapezoid", "riemann_left", "riemann_right"):
            raise UnknownNameError(
                "rule of a path in the input", self.rule, ["trapezoid", "riemann_left", "riemann_right"],
                hint="others need path='hidden'",
            )  # fmt: skip

    def contributions(self, occasion: Occasion) -> Found:
        if self.path == "hidden":
            return along_hidden(occasion, self.n_steps, self.rule)
        occasion.check_continuous(type(self).__name__)
        return along_input(occasion, self.n_steps, self.rule, self.spacing)


@dataclass(frozen=True)
class InputGrad(Algorithm):
    """The unit's gradient times what the whole input (less its baseline) adds to the unit to first order.

    The units of a layer that everything passes through sum to the sum of input x gradient.
    """

    source: ClassVar[str] = "CODEC, section 10.7, equation 8"
    formula: ClassVar[str] = "g_j * sum_k (dh_j / dx_k) (x - x_0)_k; without a baseline x_0 = 0"
    passes: ClassVar[str] = "1, and 1 forward in forward mode; other rules: 1 forward and 2 backward a site"

    def contributions(self, occasion: Occasion) -> Found:
        occasion.check_continuous("InputGrad")
        return input_gradients(occasion), None


@dataclass(frozen=True)
class SmoothGrad(Algorithm):
    """The mean of another algorithm's contributions at noisy copies of the input; the class stays the input's.

    `of`: the algorithm, or its name. `stdev` in units of the input. The noise is drawn once for all samples. Not
    complete: the contributions are those of other inputs. The defaults are those of CODEC's reference.
    """

    source: ClassVar[str] = "Smilkov et al. 2017; as contributions in CODEC's reference implementation"
    formula: ClassVar[str] = "mean over e ~ N(0, stdev^2) of contributions at x + e"
    passes: ClassVar[str] = "1 + n_samples times those of the algorithm"

    of: Algorithm | str = field(default_factory=ActGrad)
    n_samples: int = 5
    stdev: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", as_algorithm(self.of))
        if self.n_samples < 1 or self.stdev < 0:
            raise InputError(f"n_samples >= 1 and stdev >= 0, got {self.n_samples} and {self.stdev}")

    def contributions(self, occasion: Occasion) -> Found:
        occasion.check_continuous("SmoothGrad")
        totals: dict[str, Tensor] = {}
        scores = None
        noise = Noise(self.n_samples, self.stdev, self.seed)
        for step in noise.steps(occasion.inputs, occasion.evaluator.model):
            values, scores = as_algorithm(self.of).contributions(occasion.moved(step.inputs))
            for site in tuple(values):
                value = wide(values.pop(site)) * step.weight
                totals[site] = totals[site].add_(value) if site in totals else value
        return totals, scores


ALGORITHMS: dict[str, type[Algorithm]] = {
    algorithm.__name__: algorithm
    for algorithm in (ActGrad, ActNormGrad, HiddenIntegratedGradients, InputGrad, SmoothGrad)
}


def as_algorithm(algorithm: str | Algorithm) -> Algorithm:
    """An algorithm by name, with its default settings, or as given.

    Raises:
        UnknownNameError: a name that is not in `ALGORITHMS`.
        InputError: something else.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    if not isinstance(algorithm, str):
        raise InputError(f"an algorithm is a name or an instance, such as ActGrad(), not {algorithm!r}")
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("contribution algorithm", algorithm, ALGORITHMS)
    return ALGORITHMS[algorithm]()
