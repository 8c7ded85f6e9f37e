"""SSIM and PCC of maps: closed forms, a literal reference, and other libraries."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from backlight.errors import InputError, MissingExtraError
from backlight.robustness import pearson, similarity, ssim


def maps(seed: int, count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window, over the windows that lie inside."""
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            p, q = (t[top : top + 11, left : left + 11] for t in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_wang_et_al() -> None:
    a, b = maps(1), 1e-5 * (0.6 * maps(1) + 0.4 * maps(2))
    expected = [literal_ssim(p, q) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-10)
    assert 0.1 < min(expected) < max(expected) < 0.9


def test_equal_maps_are_equal_in_any_units() -> None:
    a = maps(3)
    for b in (a, 1e-6 * a, 1e6 * a):
        found = similarity(a, b)
        assert torch.allclose(found.ssim, torch.ones(3, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(found.pcc, torch.ones(3, dtype=torch.float64), atol=1e-12)


def test_pearson_is_numpys() -> None:
    a, b = maps(4), maps(5)
    expected = [np.corrcoef(p.ravel(), q.ravel())[0, 1] for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert pearson(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert pearson(a, 2 - 3 * a).tolist() == pytest.approx([-1] * 3, abs=1e-12)
    assert pearson(a, torch.ones_like(a)).isnan().all()
    assert pearson(torch.ones_like(a) / 3, a).isnan().all()


def test_maps_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"\[3, 16, 16\] and \[3, 8, 8\]"):
        pearson(maps(1), maps(1, side=8))
    with pytest.raises(InputError, match="11 x 11"):
        ssim(maps(1, side=8), maps(2, side=8))
    assert ssim(maps(1, side=8), maps(2, side=8), sigma=0.8).shape == (3,)
    with pytest.raises(InputError, match=r"\[N, H, W\]"):
        ssim(maps(1)[0], maps(2)[0])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingExtraError, match=r"backlight\[demo\]"):
        ssim(maps(1), maps(2))
    assert pearson(maps(1), maps(2)).shape == (3,)
