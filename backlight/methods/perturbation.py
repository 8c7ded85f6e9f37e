"""Accentuation and Counterfactual: perturbed images inside the valid range, and what they do to the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.engine.attribution import Attribution
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.targets import Logit, as_target, output_tensor, pick
from backlight.errors import InputError
from backlight.methods.ascent import PullbackAscent
from backlight.rules import soft_pullback
from backlight.shapes import Float, Int


@dataclass(frozen=True)
class Perturbation:
    """`image`: the perturbed input. `difference`: image - input. `scores`, `probabilities`: `[K + 1, N]`, the target's
    score and softmax probability at each visited point, start and end included; `predictions`: the largest class there.
    """

    image: Float[Tensor, "N ..."]
    difference: Float[Tensor, "N ..."]
    scores: Float[Tensor, "K N"]
    probabilities: Float[Tensor, "K N"]
    predictions: Int[Tensor, "K N"]


@dataclass(kw_only=True)
class Accentuation(PullbackAscent):
    """x' = P(x + E(x)), E the ascent's displacement, P the projection to the valid range `box`, after the last step.

    `along`: "pullback" or "gradient". `box`: (low, high), [-1, 1] by default, numbers or tensors.
    """

    source: ClassVar[str] = "Semantic Pullbacks, section 3.4, equation 7"
    formula: ClassVar[str] = "x' - x, x' = clip(x + E(x))"
    passes: ClassVar[str] = "n_steps"

    box: tuple[Any, Any] | None = (-1.0, 1.0)
    project: str = "last"
    along: str = "pullback"

    def rules(self) -> RuleSet:
        return GRADIENT if self.along == "gradient" else soft_pullback(self.temperature)

    def explain(self, inputs: Tensor | Inputs, target: Any = None, **settings: Any) -> Attribution:
        for x in (inputs,) if isinstance(inputs, Tensor) else inputs:
            self._check_range(x)
        return super().explain(inputs, target, **settings)

    def perturb(self, inputs: Tensor, target: Any = None, **settings: Any) -> Perturbation:
        """The perturbed inputs, and the target's score and probability on the way; settings as in `explain`.

        Raises:
            InputError: inputs outside `box`.
        """
        found = self.explain(inputs, target, **settings)
        points = [point[0] for point in found.points]
        size = settings.get("internal_batch_size") or len(inputs)
        with torch.no_grad():
            outputs = [torch.cat([output_tensor(self.model(x)) for x in point.split(size)]) for point in points]
        start, scorer = outputs[0], as_target(target).fixed(outputs[0])
        if not isinstance(scorer, Logit) or start.ndim != 2:
            raise InputError("a perturbation needs a class as its target")
        scores = torch.stack([scorer(output) for output in outputs])
        chances = torch.stack([pick(output.softmax(1), scorer.index) for output in outputs])
        predictions = torch.stack([output.argmax(1) for output in outputs])
        return Perturbation(points[-1], points[-1] - inputs, scores, chances, predictions)

    def _check_range(self, x: Tensor) -> None:
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in self.box or (-1, 1))
        slack = 1e-3 * (high - low)
        if bool((x < low - slack).any() or (x > high + slack).any()):
            raise InputError(
                f"inputs from {float(x.min()):.3g} to {float(x.max()):.3g} lie outside the valid range; "
                "pass box=(low, high), for a normalised model preprocessing.bounds()"
            )


@dataclass(kw_only=True)
class Counterfactual(Accentuation):
    """An image near x that the network takes for the target class: the ascent, projected after every step.

    The defaults are those of the predecessor's app: 10 steps of length 20 within a ball of radius 100.
    """

    formula: ClassVar[str] = "x' - x, x_(k+1) = clip(x_k + step * g_k / |g_k|)"

    n_steps: int = 10
    radius: float | None = 100.0
    project: str = "every"
