"""Structural similarity of maps (SSIM), by scikit-image."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float

SIGMA = 1.5  # of the Gaussian window, Wang et al. 2004
TRUNCATE = 3.5  # scikit-image's, in sigmas: 11 x 11 positions, as in the paper


def ssim(a: Float[Tensor, "N *space"], b: Float[Tensor, "M *other"], sigma: float = SIGMA) -> Float[Tensor, "N"]:
    """Mean structural similarity (Wang et al. 2004), by scikit-image, in [-1, 1].

    Each map is divided by its largest absolute value first, so that units do not matter; the data range is 1, with
    K1 = 0.01 and K2 = 0.03. The window is a Gaussian of standard deviation `sigma` in pixels, cut off at 3.5 sigma (11
    x 11 positions), with population covariances. A map of zeros stays one.

    Raises:
        MissingExtraError: scikit-image is not installed.
        InputError: maps of different shapes, without two axes of positions, or smaller than the window.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise InputError(f"SSIM compares maps [N, H, W] of one shape, got {list(a.shape)} and {list(b.shape)}")
    width = 2 * int(TRUNCATE * sigma + 0.5) + 1
    if min(a.shape[1:]) < width:
        raise InputError(
            f"SSIM's window is {width} x {width} at sigma {sigma}: larger than maps of {list(a.shape[1:])}"
        )
    pairs = zip(_scaled(a), _scaled(b), strict=True)
    return torch.tensor([_ssim_of_pair(first, second, sigma) for first, second in pairs], dtype=torch.float64)


def _scaled(maps: Tensor) -> np.ndarray:
    maps = maps.detach().double().cpu()
    largest = maps.abs().flatten(1).amax(1).reshape(-1, 1, 1)
    return (maps / torch.where(largest > 0, largest, 1)).numpy()


def _ssim_of_pair(a: Any, b: Any, sigma: float) -> float:
    try:
        structural_similarity = import_module("skimage.metrics").structural_similarity
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-image", "demo") from None
    return float(
        structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=sigma, use_sample_covariance=False, K1=0.01, K2=0.03
        )
    )
