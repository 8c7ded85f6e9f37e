"""Targets that choose classes once or at every point, sums of top probabilities, and surprisal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from probes import Spelled
from torch import Tensor

import backlight
from backlight.engine import Contrast, Entropy, Line, Logit, LogProbability, Probability, Surprisal, TopK, attribute
from backlight.engine.surprisal import ledoit_wolf, shrunk
from backlight.errors import TargetError

OUT = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, -2.0, 4.0, 1.5], [2.0, 2.5, 0.0, 1.0]], dtype=torch.float64)
OTHER = OUT.flip(1)


@pytest.mark.parametrize("make", [Logit, Probability, LogProbability, lambda **s: TopK(2, **s), Contrast])
def test_a_floating_target_chooses_at_every_output(make: Any) -> None:
    fixed, floating = make(), make(floating=True)
    assert torch.equal(fixed(OUT), floating(OUT))
    assert (fixed.chooses, floating.chooses) == (True, False)
    assert floating.fixed(OUT) is floating
    assert torch.equal(floating(OTHER), make()(OTHER))
    assert not torch.allclose(fixed.fixed(OUT)(OTHER), floating(OTHER))
    assert torch.equal(floating.rows(torch.tensor([2, 0]))(OTHER[[2, 0]]), make()(OTHER)[[2, 0]])


def test_a_floating_class_makes_integrated_gradients_those_of_the_largest_logit() -> None:
    """y = (1, 2 x): the gradient is 0 up to x = 1/2, and 2 from there on."""
    model = Spelled(lambda x: torch.cat([torch.ones_like(x), 2 * x], 1))
    x = torch.ones(1, 1, dtype=torch.float64)
    path = Line(10, "riemann_middle")
    assert attribute(model, x, path=path, readout="difference").value.item() == pytest.approx(2)
    found = attribute(model, x, Logit(floating=True), path=path, readout="difference")
    assert found.value.item() == pytest.approx(1)
    assert found.residual.item() == pytest.approx(0)


def test_a_floating_contrast_may_keep_one_class() -> None:
    target = Contrast(a=0, floating=True)
    assert torch.equal(target(OUT), OUT[:, 0] - OUT[:, 1:].max(1).values)
    assert torch.equal(target(OTHER), OTHER[:, 0] - OTHER[:, 1:].max(1).values)


def test_the_other_class_of_a_contrast_is_another_one() -> None:
    assert torch.equal(Contrast(b=1)(OUT), OUT[:, [0, 2, 3]].max(1).values - OUT[:, 1])
    assert torch.equal(Contrast(b=-3)(OUT), Contrast(b=1)(OUT))
    assert torch.equal(Contrast(a=-3)(OUT), OUT[:, 1] - OUT[:, [0, 2, 3]].max(1).values)
    assert torch.equal(Contrast(b=[1, 2, 0])(OUT), torch.tensor([-1.0, -2.5, 0.5], dtype=torch.float64))


def test_the_top_probabilities_are_summed() -> None:
    p = OUT.softmax(1)
    assert torch.allclose(TopK(2, probability=True)(OUT), p.sort(1).values[:, 2:].sum(1))
    assert torch.allclose(TopK(4, probability=True)(OUT), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Logit(1, floating=True),
        lambda: Probability([0, 1, 2], floating=True),
        lambda: TopK(2, [0, 1], floating=True),
        lambda: Contrast(0, 1, floating=True),
    ],
)
def test_a_class_that_is_given_does_not_float(make: Any) -> None:
    with pytest.raises(TargetError, match="give none"):
        make()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_entropy_and_its_gradient_are_finite(scale: float, dtype: torch.dtype) -> None:
    y = (scale * torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-1.0, -1.0, 3.0]])).to(dtype).requires_grad_()
    h = Entropy()(y)
    (gradient,) = torch.autograd.grad(h.sum(), y)
    assert torch.isfinite(h).all()
    assert torch.isfinite(gradient).all()
    assert h[1].item() == pytest.approx(np.log(3), rel=1e-2)


def sample(n: int, k: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(k, k, generator=generator, dtype=torch.float64)
    return torch.randn(n, k, generator=generator, dtype=torch.float64) @ mixed + 3


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_surprisal_is_half_the_squared_mahalanobis_distance(shrinkage: float) -> None:
    x, y = sample(40), sample(3)
    covariance = np.cov(x.numpy().T)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 5 * np.eye(5)
    away = (y - x.mean(0)).numpy()
    expected = 0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    target = Surprisal.fit(x, shrinkage)
    assert np.allclose(target(y).numpy(), expected, rtol=1e-9)
    assert torch.allclose(Surprisal(x.mean(0), torch.cov(x.T), shrinkage)(y), target(y))
    assert torch.allclose(target(y.float()), target(y).float(), rtol=1e-4)
    found = attribute(Spelled(lambda x: x), y, target).value
    assert np.allclose(found.numpy(), away @ np.linalg.inv(covariance), rtol=1e-8)


@pytest.mark.parametrize("n", [4, 6, 30, 500])
def test_the_default_shrinkage_is_ledoit_and_wolf_s(n: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    x = sample(n)
    expected, shrinkage = covariance.ledoit_wolf(x.numpy())
    assert ledoit_wolf(x) == pytest.approx(shrinkage, rel=1e-9)
    target = Surprisal.fit(x)
    assert target.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    found = shrunk(target.covariance, target.shrinkage) * (n - 1) / n
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_singular_covariance_is_refused_without_shrinkage() -> None:
    with pytest.raises(TargetError, match=r"5 outputs has rank 3 .*shrinkage > 0"):
        Surprisal.fit(sample(4), 0.0)
    assert torch.isfinite(Surprisal.fit(sample(4), 1e-3)(sample(2))).all()
    assert torch.isfinite(Surprisal.fit(sample(4))(sample(2))).all()
    with pytest.raises(TargetError, match="rank 0"):
        Surprisal.fit(torch.ones(6, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Surprisal(torch.zeros(3), torch.eye(2)), r"\[3\] and \[2, 2\]"),
        (lambda: Surprisal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: Surprisal(torch.zeros(2), torch.full((2, 2), torch.nan)), "finite"),
        (lambda: Surprisal(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), "rank 1"),
        (lambda: Surprisal(torch.zeros(2), torch.eye(2), 1.5), r"\[0, 1\]"),
        (lambda: Surprisal.fit(torch.zeros(1, 3)), "two inputs"),
        (lambda: Surprisal.fit(sample(9), "oas"), "ledoit_wolf"),
        (lambda: Surprisal.fit(sample(9))(OUT), "fitted to 5 outputs"),
    ],
)
def test_what_does_not_fit_a_surprisal_is_refused(make: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        make()


def test_words_of_a_surprisal_tell_it_from_others() -> None:
    one, same, other = Surprisal.fit(sample(9)), Surprisal.fit(sample(9)), Surprisal.fit(sample(9) + 1)
    assert repr(one) == repr(same) != repr(other)
    assert backlight.Surprisal is Surprisal
