"""Accentuation and Counterfactual: perturbed images inside the valid range, and what they do to the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.displayed import Displayed
from backlight.engine.attribution import Attribution
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.targets import Logit, as_target, output_tensor, pick
from backlight.errors import InputError, UnknownNameError
from backlight.methods.ascent import PullbackAscent
from backlight.shapes import Float, Int


@dataclass(frozen=True, repr=False)
class Perturbation(Displayed):
    """`points`: `[K + 1, N, ...]`, the inputs that were visited, start and end included; `outputs`: `[K + 1, N, C]`,
    the model's at each; `attribution`: the ascent's, with its coverage and cost; `target`: the class of each sample.
    """

    points: Float[Tensor, "K N *shape"]
    outputs: Float[Tensor, "K N C"]
    target: Any
    attribution: Attribution

    @property
    def image(self) -> Float[Tensor, "N *shape"]:
        """The perturbed input."""
        return self.points[-1]

    @property
    def difference(self) -> Float[Tensor, "N *shape"]:
        """The perturbed input less the input."""
        return self.points[-1] - self.points[0]

    @property
    def scores(self) -> Float[Tensor, "K N"]:
        """The target's logit at each point."""
        return torch.stack([pick(output, self.target) for output in self.outputs])

    @property
    def predictions(self) -> Int[Tensor, "K N"]:
        """The class of the largest logit at each point."""
        return self.outputs.argmax(2)

    @property
    def probabilities(self) -> Float[Tensor, "K N"]:
        """The target's softmax probability at each point."""
        return self.probability(self.target)

    def probability(self, index: Any) -> Float[Tensor, "K N"]:
        """The softmax probability of a class (one for all, or one a sample) at each point."""
        return torch.stack([pick(output.softmax(1), index) for output in self.outputs])


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

    def __post_init__(self) -> None:
        if self.along not in ("pullback", "gradient"):
            raise UnknownNameError("direction", self.along, ["pullback", "gradient"])

    def rules(self) -> RuleSet:
        return GRADIENT if self.along == "gradient" else super().rules()

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
        points = torch.stack([point[0] for point in found.points])
        size = settings.get("internal_batch_size") or len(inputs)
        with torch.no_grad():
            flat = torch.cat([output_tensor(self.model(part)) for part in points.flatten(0, 1).split(size)])
        outputs = flat.unflatten(0, points.shape[:2])
        scorer = as_target(target).fixed(outputs[0])
        if not isinstance(scorer, Logit) or outputs.ndim != 3:
            raise InputError("a perturbation needs a class as its target")
        return Perturbation(points, outputs, scorer.index, found)

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
