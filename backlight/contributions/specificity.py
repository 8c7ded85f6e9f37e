"""Is a mode about one class or many, and is a class covered by one mode or many? (CODEC, section 4)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float


@dataclass(frozen=True)
class Specificity:
    """Of each column, over the masks it is positively correlated with; NaN where there is none.

    With p = r+ / sum of r+ over M masks:

    Attributes:
        entropy: 1 - H(p) / log M, in [0, 1]; 1: one mask alone.
        gini: sum_i (2 i - M - 1) p_(i) / M of ascending p, in [0, 1 - 1/M].
        top1, top5: the share of the largest, and of the five largest.
    """

    entropy: Float[Tensor, "C"]
    gini: Float[Tensor, "C"]
    top1: Float[Tensor, "C"]
    top5: Float[Tensor, "C"]


def specificity(r: Float[Tensor, "C M"]) -> Specificity:
    """Four measures of how few masks share a column's positive correlations. Raises `InputError` for fewer than 2."""
    masks = r.shape[1]
    if masks < 2:
        raise InputError(f"expected correlations with at least 2 classes or concepts, got {masks}")
    clipped = r.double().clamp_min(0)
    total = clipped.sum(1, keepdim=True)
    p = torch.where(total > 0, clipped / total, torch.nan)
    ascending = p.sort(1).values
    rank = 2 * torch.arange(1, masks + 1, dtype=torch.float64, device=r.device) - masks - 1
    return Specificity(
        1 + torch.special.xlogy(p, p).sum(1) / torch.log(torch.tensor(float(masks), dtype=torch.float64)),
        (ascending * rank).sum(1) / masks,
        ascending[:, -1],
        ascending[:, -5:].sum(1),
    )


def coverage(r: Float[Tensor, "C M"]) -> tuple[Float[Tensor, "C"], Float[Tensor, "M"]]:
    """The mean r of a class's k-th best column, for each k; and of a column's k-th best class.

    The first falls slowly where many columns say the same, the second where columns are about many classes.
    """
    return r.sort(0, descending=True).values.mean(1), r.sort(1, descending=True).values.mean(0)
