"""CompletenessError: do a map's entries sum to what the score has gained over a baseline?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.engine.paths import baseline_like
from backlight.errors import UnknownNameError
from backlight.metrics.allowed import NOT_NEGATIVE, Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.correlation import precise
from backlight.metrics.maps import finite, stacked
from backlight.metrics.metric import Metric
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float

ERRORS = ("relative", "absolute", "signed")


def completeness_error(
    model: nn.Module,
    inputs: Float[Tensor, "N C *space"],
    attributions: Tensor,
    target: Any = None,
    *,
    baseline: Any = "zero",
    error: str = "relative",
    times_input: bool = False,
    stabiliser: float = 1e-9,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """e = sum phi - (f(x) - f(b)) (Sundararajan et al. 2017): 0 where the map is complete. Lower is better.

    Args:
        attributions: `[N, C, *space]`, `[N, 1, *space]` (one value a position, of all channels together), or either
            with a leading axis of methods.
        baseline: b: "zero", "mean" (each channel's), "blur", a number, or a tensor that broadcasts, as of the methods
            (`backlight.engine.paths.baseline_like`); "min", the sample's smallest entry; "none", for maps that sum to
            f(x), as relevances do.
        error: "relative", |e| / (|f(x) - f(b)| + stabiliser), without units; "absolute", |e|, and "signed", e, in units
            of the score.
        times_input: sum (x - b) * phi, for maps that are gradients; without a baseline, x * phi.

    Returns:
        `[N]`, or `[M, N]` for several methods.

    Raises:
        UnknownNameError: another error or baseline.
    """
    if error not in ERRORS:
        raise UnknownNameError("error", error, ERRORS)
    maps, single = stacked(attributions, inputs)
    scorer = Scorer(model, inputs, target, batch_size)
    x = scorer.inputs
    start = _baseline(baseline, x)
    if times_input:
        totals = (precise(maps) * precise(x if start is None else x - start)).flatten(2).sum(-1)
    else:
        given = attributions[None] if single else attributions
        totals = torch.where(finite(maps, 2), precise(given).flatten(2).sum(-1).to(maps.device), torch.nan)
    gain = scorer.scores
    if start is not None:
        gain = gain - scorer.versions(1, lambda rows, _: start[rows])[:, 0]
    signed = totals.cpu() - gain
    relative = signed.abs() / (gain.abs() + stabiliser)
    scores = {"relative": relative, "absolute": signed.abs(), "signed": signed}[error]
    return scores[0] if single else scores


def _baseline(baseline: Any, x: Tensor) -> Tensor | None:
    if isinstance(baseline, str) and baseline == "none":
        return None
    if isinstance(baseline, str) and baseline == "min":
        return x.flatten(1).amin(1).reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)
    return baseline_like(baseline, x)


@dataclass(frozen=True, kw_only=True)
class CompletenessError(Metric):
    """By how much a map's sum misses the gain of the score; settings as in `completeness_error`."""

    source: ClassVar[str] = "Sundararajan et al. 2017; Shrikumar et al. 2017; Montavon et al. 2018"
    formula: ClassVar[str] = "|sum phi - (f(x) - f(b))| / |f(x) - f(b)|"
    higher_is_better: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "completeness": {},
        "conservation": {"baseline": "none"},
        "gradients": {"times_input": True},
        "signed": {"error": "signed"},
        "quantus": {"baseline": "min", "error": "absolute"},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "error": one_of(ERRORS),
        "stabiliser": NOT_NEGATIVE,
    }

    baseline: Any = "zero"
    error: str = "relative"
    times_input: bool = False
    stabiliser: float = 1e-9

    def __call__(self, case: Case) -> Tensor:
        maps = case.attributions
        if not self.times_input:  # sums over channels, before one value a position is spread over them
            maps = torch.stack([precise(case.map(name)).sum(1, keepdim=True) for name in case.names])
        return completeness_error(
            case.model, case.inputs, maps, case.chosen, batch_size=case.batch_size, **self.settings()
        )

    @property
    def sees_sign(self) -> bool:
        return True
