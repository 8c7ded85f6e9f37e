"""Codes: optimality conditions, scikit-learn as oracle, closed forms, and coders on any dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backlight.decompositions.codes import (
    CODERS,
    OMP,
    Amortised,
    Lasso,
    TopK,
    coder,
    largest,
    lasso,
    omp,
    residual,
)
from backlight.decompositions.k_means import KMeans
from backlight.decompositions.lasso_support import Restricted
from backlight.decompositions.pca import PCA
from backlight.errors import InputError, NonFiniteError, UnknownNameError


def problem(
    n: int = 40, atoms: int = 70, channels: int = 24, seed: int = 0, shared: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Rows and atoms of several lengths; `shared`: how much of one direction is in all atoms."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(atoms, channels, generator=draw, dtype=torch.float64)
    found = (found + shared * torch.randn(1, channels, generator=draw)) * (0.5 + torch.rand(atoms, 1, generator=draw))
    codes = torch.randn(n, atoms, generator=draw) * (torch.rand(n, atoms, generator=draw) < 0.1)
    return codes.double() @ found + 0.1 * torch.randn(n, channels, generator=draw), found


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_codes_and_objectives_are_scikit_learns(nonnegative: bool, share: float, shared: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, atoms = problem(shared=shared)
    penalty = share * (x @ atoms.T).abs().amax(1)
    found = lasso(x, atoms, penalty, nonnegative=nonnegative, tolerance=1e-10)
    for row in range(0, len(x), 3):
        theirs = linear.Lasso(
            alpha=float(penalty[row]) / x.shape[1],  # its loss is divided by twice the channels
            fit_intercept=False,
            positive=nonnegative,
            tol=1e-12,
            max_iter=100_000,
        ).fit(atoms.T.numpy(), x[row].numpy())
        np.testing.assert_allclose(found.values[row].numpy(), theirs.coef_, atol=1e-4)
        error = 0.5 * ((x[row].numpy() - theirs.coef_ @ atoms.numpy()) ** 2).sum()
        objective = error + float(penalty[row]) * np.abs(theirs.coef_).sum()
        assert float(found.objective[row]) == pytest.approx(objective, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 6),
    count=st.integers(1, 60),
    channels=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    share=st.floats(0.01, 1.2),
    shared=st.sampled_from([0.0, 1.0, 4.0]),
    repeated=st.booleans(),
    nonnegative=st.booleans(),
    double=st.booleans(),
)
def test_optimality_conditions_hold(
    n: int,
    count: int,
    channels: int,
    seed: int,
    share: float,
    shared: float,
    repeated: bool,
    nonnegative: bool,
    double: bool,
) -> None:
    x, atoms = problem(n, count, channels, seed, shared)
    if repeated:
        atoms[count // 2] = atoms[0]
        atoms[-1] = 0
        x[-1] = 0
    if not double:
        x, atoms = x.float(), atoms.float()
    tolerance = 1e-10 if double else 1e-4
    found = lasso(x, atoms, share, relative=True, nonnegative=nonnegative, tolerance=tolerance, rounds=200)
    fits = x @ atoms.T
    penalty = share * (fits if nonnegative else fits.abs()).amax(1).clamp(min=torch.finfo(x.dtype).tiny)
    power = x.square().sum(1) / 2
    assert (found.gap <= tolerance * power).all()
    rest = x - found.values @ atoms
    objective = rest.square().sum(1) / 2 + penalty * found.values.abs().sum(1)
    torch.testing.assert_close(found.objective, objective, rtol=1e-4, atol=1e-6 * float(power.max()) + 1e-30)
    assert (objective <= power * (1 + 1e-4)).all()  # the code 0 is no better
    slack = (2 * found.gap).sqrt()[:, None] * atoms.norm(dim=1) * 2 + 1e-4 * (penalty[:, None] + 1e-6)
    correlation = rest @ atoms.T
    signed = correlation if nonnegative else correlation.abs()
    assert (signed <= penalty[:, None] + slack).all()
    if nonnegative:
        assert (found.values >= 0).all()
    if share >= 1:
        assert (found.values == 0).all()
    if double:
        on = found.values.abs() > 1e-4 * found.values.abs().max()
        wrong = (correlation - penalty[:, None] * found.values.sign()).abs() > slack
        assert not (on & wrong).any()


def test_orthogonal_atoms_have_the_closed_form() -> None:
    draw = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=draw, dtype=torch.float64))[0]
    length = 0.5 + torch.rand(16, 1, generator=draw, dtype=torch.float64)
    x = torch.randn(9, 16, generator=draw, dtype=torch.float64)
    found = lasso(x, basis * length, 0.3, tolerance=1e-12)
    fits = x @ (basis * length).T
    expected = fits.sign() * (fits.abs() - 0.3).clamp(min=0) / length[:, 0] ** 2
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-7)
    plus = lasso(x, basis * length, 0.3, nonnegative=True, tolerance=1e-12).values
    torch.testing.assert_close(plus, expected.clamp(min=0), rtol=1e-6, atol=1e-7)


def test_the_gap_bounds_what_is_missing_at_any_time() -> None:
    x, atoms = problem(shared=2.0)
    best = lasso(x, atoms, 0.05, relative=True, tolerance=1e-11)
    for rounds in (1, 2, 4):
        early = lasso(x, atoms, 0.05, relative=True, tolerance=1e-11, rounds=rounds)
        missing = early.objective - best.objective
        assert (missing >= -1e-9).all()
        assert (missing <= early.gap + 1e-9).all()
    assert early.iterations == 4
    loose = lasso(x, atoms, 0.05, relative=True, tolerance=1e-2)
    assert loose.iterations < best.iterations


def test_a_rows_code_is_its_own() -> None:
    x, atoms = problem()
    together = lasso(x, atoms, 0.1, relative=True, tolerance=1e-9).values
    alone = torch.cat([lasso(row[None], atoms, 0.1, relative=True, tolerance=1e-9).values for row in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    scaled = lasso(x * 1000, atoms, 0.1, relative=True, tolerance=1e-9).values
    torch.testing.assert_close(scaled, 1000 * together, atol=1e-2, rtol=1e-4)


def test_polishing_never_makes_it_worse_and_is_exact_for_the_right_signs() -> None:
    draw = torch.Generator().manual_seed(3)
    half = torch.randn(50, 12, 20, generator=draw, dtype=torch.float64)
    penalty = torch.full((50,), 0.4, dtype=torch.float64)
    for nonnegative in (False, True):
        one = Restricted(half @ half.mT, torch.randn(50, 12, generator=draw, dtype=torch.float64), penalty, nonnegative)

        def objective(u: Tensor, one: Restricted = one) -> Tensor:
            square = (u * (one.gram @ u[:, :, None])[:, :, 0]).sum(1) / 2
            return square - (one.aim * u).sum(1) + one.penalty * u.abs().sum(1)

        start = torch.randn(50, 12, generator=draw, dtype=torch.float64)
        start = start.abs() if nonnegative else start
        better = one.polished(start)
        assert (objective(better) <= objective(start) + 1e-12).all()
        assert float((objective(better) < objective(start)).double().mean()) > 0.9
        solved = one.accelerated(start, 3000)
        near = one.polished(solved * (1 + 1e-3))
        torch.testing.assert_close(objective(near), objective(solved), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_pursuit_is_scikit_learns(count: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, atoms = problem()
    unit = atoms / atoms.norm(dim=1, keepdim=True)
    expected = linear.orthogonal_mp(unit.T.numpy(), x.T.numpy(), n_nonzero_coefs=count).T
    np.testing.assert_allclose(omp(x, unit, count).numpy(), expected, atol=1e-8)
    length = atoms.norm(dim=1)
    torch.testing.assert_close(omp(x, atoms, count) * length, omp(x, unit, count))


def test_pursuit_of_rows_that_are_told_and_atoms_that_repeat() -> None:
    draw = torch.Generator().manual_seed(2)
    atoms = torch.randn(3, 8, generator=draw)
    atoms = torch.cat((atoms, atoms * 2, atoms - 3 * atoms.flip(0)))
    x = torch.cat((2 * atoms[:1] - atoms[1:2], torch.zeros(1, 8), atoms[2:3], torch.randn(1, 8, generator=draw)))
    found = omp(x, atoms, 6)
    assert (found[1] == 0).all()
    assert (found[2] != 0).sum() == 1
    torch.testing.assert_close(found[:3] @ atoms, x[:3], atol=1e-4, rtol=1e-4)
    best = x[3] - torch.linalg.lstsq(atoms[:3].T, x[3:4].T).solution.T @ atoms[:3]
    torch.testing.assert_close(x[3] - found[3] @ atoms, best[0], atol=1e-4, rtol=1e-4)


def test_the_largest_projections() -> None:
    atoms = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    x = torch.tensor([[1.0, 0.2], [-0.1, -4.0]])
    expected = torch.tensor([[0.5, 0.0, 0.0], [0.0, -4.0, 0.0]])
    torch.testing.assert_close(largest(x, atoms, 1), expected)
    assert (largest(x, atoms, 2) != 0).sum(1).tolist() == [2, 2]


def test_coders_take_any_dictionary_about_its_offset() -> None:
    x, _ = problem(100, 30, 12)
    x = x.float() + 5
    centres, components = KMeans(n_modes=20).fit(x), PCA(n_modes=6).fit(x)
    assert components.offset is not None
    for dictionary in (centres, components):
        about = x if dictionary.offset is None else x - dictionary.offset
        codes = Lasso(penalty=0.1).encode(x, dictionary)
        torch.testing.assert_close(codes, lasso(about, dictionary.atoms, 0.1, relative=True).values)
        length = dictionary.atoms.norm(dim=1)
        same = lasso(about, dictionary.atoms / length[:, None], 0.1, relative=True).values / length
        torch.testing.assert_close(Lasso(penalty=0.1, unit=True).encode(x, dictionary), same)
        torch.testing.assert_close(OMP(k=3).encode(x, dictionary), omp(about, dictionary.atoms, 3))
        torch.testing.assert_close(TopK(k=2).encode(x, dictionary), largest(about, dictionary.atoms, 2))
        torch.testing.assert_close(Amortised().encode(x, dictionary), dictionary.encode(x))
        rest = residual(x, codes, dictionary)
        torch.testing.assert_close(rest + dictionary.decode(codes), x)
        assert float(rest.norm()) < float(about.norm())
    # all that six components tell, but for what the penalty takes of each: its share of the greatest
    strict = Lasso(penalty=1e-5, tolerance=1e-6).encode(x, components)
    torch.testing.assert_close(strict, components.encode(x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"penalty": 0.0}, "positive"),
        ({"penalty": torch.ones(3)}, "one of each row"),
        ({"atoms": torch.ones(4, 7)}, r"\[40, 24\]"),
        ({"atoms": torch.ones(4, 24).double()}, "one floating type"),
    ],
)
def test_what_cannot_be_coded_is_said(wrong: dict[str, Any], words: str) -> None:
    x, atoms = (one.float() for one in problem())
    with pytest.raises(InputError, match=words):
        lasso(**{"x": x, "atoms": atoms, "penalty": 0.1, **wrong})


def test_names_of_coders_and_errors() -> None:
    x, atoms = problem()
    assert coder("omp", k=3) == OMP(k=3)
    assert set(CODERS) == {"Lasso", "OMP", "TopK", "Amortised"}
    with pytest.raises(UnknownNameError, match="Lasso"):
        coder("lassoo")
    with pytest.raises(UnknownNameError, match="penalty"):
        coder("lasso", penality=1)
    for count in (0, 71):
        with pytest.raises(InputError, match="between 1 and 70"):
            omp(x, atoms, count)
    x[3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="rows"):
        lasso(x, atoms, 0.1)
    with pytest.raises(InputError, match=r"\[n, 24\]"):
        Lasso().encode(x[:, :3], KMeans(n_modes=3).fit(problem()[0].float()))
