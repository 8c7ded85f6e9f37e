"""FaithfulnessEstimate: does the score fall most where the map's largest values are removed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from backlight.metrics.allowed import COUNT_OR_NONE, PAIR, Check, one_of
from backlight.metrics.blocks import UNITS, block_drops, map_blocks
from backlight.metrics.case import Case
from backlight.metrics.correlation import pearson
from backlight.metrics.draws import Seed
from backlight.metrics.fills import FILLS, Fill, filled
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float


def faithfulness_estimate(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    blocks: int = 48,
    step: int | None = None,
    unit: str = "feature",
    fill: Fill = 0.0,
    low: float = -1.0,
    high: float = 1.0,
    absolute: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """Pearson's correlation of block masses with the falls of the score where each block alone is replaced.

    Alvarez-Melis & Jaakkola 2018: the units of the input, sorted by the map from large to small, are cut into blocks
    S_1, S_2, ...; the score is corr_k(sum_{S_k} phi, f(x) - f(x without S_k)). Higher is better, in [-1, 1]; NaN where
    masses or falls do not vary. Cost: one forward a block and map, and one a sample.

    Args:
        model: or a `Scorer` of it at these samples: what it has computed for another metric is not computed again.
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods.
        blocks: how many, of equal size: 48 are the 3136 entries a block of Semantic Pullbacks at 224.
        step: units a block, in place of `blocks`; Quantus's features_in_step.
        unit: "feature": entries of the input, channels apart. "position": positions, all channels together.
        fill: what replaces a block; see `backlight.metrics.fills`. low, high: of "uniform".
        absolute: sort and sum absolute values, which cannot tell a map from its negative.
        seed: one for all samples, or one a sample.

    Raises:
        UnknownNameError: another unit or fill.
        InputError: fewer than two blocks.
    """
    maps, single = stacked(attributions, inputs)
    scorer = Scorer.of(model, inputs, target, batch_size)
    ordered = map_blocks(maps, unit, blocks, step, absolute=absolute, descending=True)
    fills = filled(fill, scorer.inputs, ordered.count, seed, low, high)
    scores = pearson(ordered.masses, block_drops(scorer, ordered, fills[..., None])[..., 0])
    return scores[0] if single else scores


@dataclass(frozen=True, kw_only=True)
class FaithfulnessEstimate(Metric):
    """Correlation of a map's block masses, in its own order, with falls of the score."""

    source: ClassVar[str] = "Alvarez-Melis & Jaakkola 2018; Semantic Pullbacks, appendix E"
    formula: ClassVar[str] = "Pearson over blocks S_k of the sorted map of (sum_S |phi|, f(x) - f(x without S))"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "signed": {"absolute": False},
        "quantus": {"step": 1, "fill": "min", "absolute": False},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "blocks": PAIR,
        "step": COUNT_OR_NONE,
        "unit": one_of(UNITS),
        "fill": one_of(FILLS, others=(int, float)),
    }

    blocks: int = 48
    step: int | None = None
    unit: str = "feature"
    fill: Fill = 0.0
    low: float = -1.0
    high: float = 1.0
    absolute: bool = True

    def __call__(self, case: Case) -> Tensor:
        return self._of_maps(faithfulness_estimate, case)

    @property
    def sees_sign(self) -> bool:
        return not self.absolute
