"""How alike two explanations are: structural similarity and Pearson's correlation of maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backlight.errors import InputError
from backlight.metrics.correlation import pearson as correlation
from backlight.metrics.structural_similarity import ssim
from backlight.shapes import Float

__all__ = ["Similarity", "pearson", "similarity", "ssim"]


@dataclass(frozen=True)
class Similarity:
    """`ssim`, `pcc`: one number a sample, 1 where the maps are equal."""

    ssim: Float[Tensor, "N"]
    pcc: Float[Tensor, "N"]


def similarity(a: Float[Tensor, "N *space"], b: Float[Tensor, "M *other"]) -> Similarity:
    """SSIM and PCC of maps; see `ssim` and `pearson`."""
    return Similarity(ssim(a, b), pearson(a, b))


def pearson(a: Float[Tensor, "N *space"], b: Float[Tensor, "M *other"]) -> Float[Tensor, "N"]:
    """Pearson's correlation coefficient over positions, in [-1, 1]; NaN where a map is constant, which has none."""
    if a.shape != b.shape:
        raise InputError(f"maps of shapes {list(a.shape)} and {list(b.shape)} cannot be compared")
    return correlation(a.flatten(1), b.flatten(1))
