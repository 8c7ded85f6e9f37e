"""How alike two maps of a sample are."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.correlation import pearson, spearman
from backlight.metrics.maps import finite, positions
from backlight.metrics.structural_similarity import ssim
from backlight.shapes import Float

SIMILARITIES = ("pearson", "spearman", "ssim")


def map_similarity(
    a: Float[Tensor, "N C *space"], b: Float[Tensor, "N C *space"], kind: str = "pearson", absolute: bool = False
) -> Float[Tensor, "N"]:
    """One number a sample, in [-1, 1] and 1 where the maps are equal; on the CPU. NaN where a map is not finite.

    "pearson", "spearman": correlation over all entries; NaN where a map is constant. "ssim": structural similarity of
    the maps summed over channels; see `backlight.metrics.structural_similarity`. `absolute`: of absolute values.

    Raises:
        UnknownNameError: another kind.
        InputError: "ssim" of maps that are not `[N, C, H, W]`, or are smaller than its window.
    """
    if kind not in SIMILARITIES:
        raise UnknownNameError("similarity", kind, SIMILARITIES)
    a, b = (a.abs(), b.abs()) if absolute else (a, b)
    if kind == "ssim":
        if a.ndim != 4:
            raise InputError(f"SSIM compares maps of images [N, C, H, W], got {list(a.shape)}")
        found = ssim(positions(a), positions(b))
    else:
        found = (pearson if kind == "pearson" else spearman)(a.flatten(1), b.flatten(1)).cpu()
    return torch.where((finite(a, 1) & finite(b, 1)).cpu(), found, torch.nan)
