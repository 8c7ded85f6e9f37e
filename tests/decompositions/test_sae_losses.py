"""Losses and gradients of sparse autoencoders, against their formulas written out with plain matrices and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decomposition_data import planted
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions import decomposition
from backlight.decompositions.decomposition import Work
from backlight.decompositions.selection import (
    combine,
    combine_groups,
    largest_of_all,
    largest_of_rows,
    where_true,
)
from backlight.decompositions.training import TrainedDecomposition, generator
from backlight.store.rows import TensorRows

CPU = torch.device("cpu")
MODES, CHANNELS = 40, 12


def begun(name: str, **settings: Any) -> tuple[TrainedDecomposition, Tensor]:
    """A dictionary before training, in float64, of parameters that are not special; and a batch."""
    x, _ = planted(70, channels=CHANNELS)
    one = decomposition(name)(n_modes=MODES, **settings)
    assert isinstance(one, TrainedDecomposition)
    one.check(70, CHANNELS)
    draw = torch.Generator().manual_seed(5)
    state = {name: t.double() for name, t in one._initial(Work(TensorRows(x)), MODES, draw).items()}
    for key in ("encoder", "offset", "bias"):
        if key in state:
            state[key] += 0.3 * torch.randn(state[key].shape, generator=draw, dtype=torch.float64)
    one.state = {key: t.requires_grad_(not key.startswith("_")) for key, t in state.items()}
    return one, x.double()


def compare(one: TrainedDecomposition, x: Tensor, literal: Tensor, silent: Tensor | None = None) -> None:
    """The loss of a pass, and its gradients in all tensors, against a literal loss."""
    trained = {key: t for key, t in one.state.items() if t.requires_grad}
    expected = torch.autograd.grad(literal, list(trained.values()), allow_unused=True)
    quiet = torch.zeros(MODES, dtype=torch.bool) if silent is None else silent
    found = one._pass(x, generator(CPU, 1), quiet)
    torch.testing.assert_close(found.loss, literal)
    given = torch.autograd.grad(found.loss, list(trained.values()), allow_unused=True)
    for key, ours, theirs in zip(trained, given, expected, strict=True):
        assert theirs is not None, key
        assert ours is not None, key
        assert theirs.abs().max() > 0, key
        torch.testing.assert_close(ours, theirs, msg=lambda said, key=key: f"{key}: {said}")


def before(one: TrainedDecomposition, x: Tensor) -> Tensor:
    centred = x - one.state["offset"] if "offset" in one.state else x
    return centred @ one.state["encoder"].T + one.state["bias"]


def largest(z: Tensor, count: int) -> Tensor:
    """All but the `count` largest entries of a whole matrix set to 0."""
    kept = torch.zeros_like(z).flatten()
    places = z.flatten().argsort(descending=True)[:count]
    kept[places] = 1
    return z * kept.view_as(z)


@pytest.mark.parametrize("shift", [0.0, -3.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_relu(loss: str, shift: float) -> None:
    one, x = begun("ReLUSAE", loss=loss, l1=0.3)
    with torch.no_grad():
        one.state["bias"] += shift
    z = before(one, x).relu()
    assert (float((z > 0).double().mean()) < 1 / 16) == (shift < 0)
    missing = x - (z @ one.state["modes"] + one.state["offset"])
    if loss == "mean":
        literal = (missing**2).mean() + 0.3 / CHANNELS**0.5 * z.sum(1).mean()
    else:
        literal = (missing**2).sum(1).mean() + 0.3 * z.abs().sum(1).mean()  # equation 9
    compare(one, x, literal)


@pytest.mark.parametrize("dead", [False, True])
def test_top_k(dead: bool) -> None:
    one, x = begun("TopKSAE", k=3, spare=5, auxiliary=0.2)
    p = before(one, x)
    z = torch.stack([largest(row[None].relu(), 3)[0] for row in p])
    modes, offset = one.state["modes"], one.state["offset"]
    decoded = z @ modes + offset
    literal = ((x - decoded) ** 2).mean()
    silent = torch.arange(MODES) % 3 == 0
    if dead:
        spare = torch.stack([largest(row[None], 5)[0] for row in (p * silent).relu()])
        literal = literal + 0.2 * ((spare @ modes - (x - decoded).detach()) ** 2).mean()
    compare(one, x, literal, silent if dead else None)


@pytest.mark.parametrize("normalise", ["none", "global", "token"])
def test_batch_top_k(normalise: str) -> None:
    one, x = begun("BatchTopKSAE", k=2, normalise=normalise)
    rows = x
    if normalise == "global":
        rows = x / one.state["_scale"]
        assert float((rows**2).sum(1).mean()) == pytest.approx(1, rel=1e-6)
    if normalise == "token":
        rows = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    z = largest(before(one, rows).relu(), 2 * len(x))
    assert int((z > 0).sum()) == 140
    assert len(set((z > 0).sum(1).tolist())) > 2  # rows differ
    compare(one, x, ((rows - (z @ one.state["modes"] + one.state["offset"])) ** 2).mean())
    assert float(one.state["_threshold"]) == pytest.approx(float(z[z > 0].min().detach()))
    one._pass(x[:30], generator(CPU, 1), torch.zeros(MODES, dtype=torch.bool))
    other = largest(before(one, rows[:30]).relu(), 60)
    expected = 0.99 * float(z[z > 0].min().detach()) + 0.01 * float(other[other > 0].min().detach())
    assert float(one.state["_threshold"]) == pytest.approx(expected)


def test_k_comes_down_and_the_threshold_waits() -> None:
    one, x = begun("BatchTopKSAE", k=2, anneal=10, threshold_start=10)
    counts = []
    for done in (0, 5, 10):
        one.done = done
        counts.append(int(one._pass(x, generator(CPU, 1), torch.zeros(MODES, dtype=torch.bool)).active))
        assert (float(one.state["_threshold"]) >= 0) == (done == 10)
    positive = int((before(one, x) > 0).sum())
    assert counts == [min(20 * 70, positive), min(11 * 70, positive), 140]


@pytest.mark.parametrize("bare", [True, False])
def test_matryoshka(bare: bool) -> None:
    one, x = begun("MatryoshkaSAE", k=3, bare=bare, groups=(0.1, 0.2, 0.3, 0.4))
    z = largest(before(one, x).relu(), 3 * len(x))  # one top-k for all prefixes
    modes, offset = one.state["modes"], one.state["offset"]
    losses = [((x - offset) ** 2).mean()] if bare else []
    for end in (4, 12, 24, 40):
        losses.append(((x - (z[:, :end] @ modes[:end] + offset)) ** 2).mean())
    compare(one, x, torch.stack(losses).mean())


def test_random_prefixes() -> None:
    one, x = begun("MatryoshkaSAE", k=3, random_prefixes=6, bare=False)
    ends = one._ends(MODES, generator(CPU, 1)).tolist()
    assert ends[-1] == MODES
    assert ends == sorted(set(ends))
    z = largest(before(one, x).relu(), 3 * len(x))
    modes, offset = one.state["modes"], one.state["offset"]
    losses = [((x - (z[:, :end] @ modes[:end] + offset)) ** 2).mean() for end in ends]
    compare(one, x, torch.stack(losses).mean())
    one.random_prefixes = 2
    many = torch.tensor([int(one._ends(10_000, generator(CPU, seed))[0]) for seed in range(600)]).double()
    # a Pareto law of exponent 1/2 on [1, 10000]: P(length < a) = (1 - a^-1/2) / (1 - 1/100)
    for end in (4, 100):
        assert float((many < end).double().mean()) == pytest.approx((1 - end**-0.5) / 0.99, abs=0.06)


@pytest.mark.parametrize("shift", [0.0, -0.35], ids=["dense", "sparse"])
@pytest.mark.parametrize("penalty", ["price", "target", "tanh"])
def test_jump_relu(penalty: str, shift: float) -> None:
    settings = {"price": {"target": None}, "target": {"target": 4.0}, "tanh": {"target": None, "penalty": "tanh"}}
    one, x = begun("JumpReLUSAE", price=0.7, bandwidth=0.2, threshold=0.15, **settings[penalty])
    with torch.no_grad():
        one.state["log_threshold"] += 0.1 * torch.randn(MODES, generator=torch.Generator().manual_seed(1))
        one.state["bias"] += shift * 2
    rows = x / one.state["_scale"]
    p, modes, offset = before(one, rows), one.state["modes"], one.state["offset"]
    theta = one.state["log_threshold"].exp()
    on = (p > theta).double()
    assert (float(on.mean()) < 1 / 16) == (shift < 0)
    near = ((p - theta).abs() < 0.1).double()
    z = p * on
    # the value of z with the gradient - theta / bandwidth in theta, and of l0 with - 1 / bandwidth
    moving = theta - theta.detach()
    z = z - near * theta.detach() / 0.2 * moving
    l0 = (on - near / 0.2 * moving).sum(1).mean()
    literal = ((rows - (z @ modes + offset)) ** 2).sum(1).mean()
    if penalty == "tanh":
        literal = literal + 0.7 * torch.tanh(4.0 * z).sum(1).mean()
    else:
        literal = literal + 0.7 * (l0 if penalty == "price" else (l0 / 4.0 - 1) ** 2)
    compare(one, x, literal)


def test_archetypal() -> None:
    one, x = begun("ArchetypalSAE", k=3, points=15, relaxation=0.2)
    with torch.no_grad():
        one.state["relaxed"] += 0.1 * torch.randn(MODES, CHANNELS, generator=torch.Generator().manual_seed(1))
    z = torch.stack([largest(row[None].relu(), 3)[0] for row in before(one, x)])
    modes = one.state["mixture"] @ one.state["_points"] + one.state["_bound"] * one.state["relaxed"]
    compare(one, x, ((x - z @ modes) ** 2).mean())


def test_places_are_what_matrices_are() -> None:
    draw = torch.Generator().manual_seed(0)
    values, modes = torch.randn(9, 20, generator=draw), torch.randn(20, 6, generator=draw)
    for guess in (0.0, 0.5, 100.0):
        places = largest_of_all(values, 30, guess)
        z = torch.zeros(9, 20)
        z[places.rows, places.columns] = values[places.rows, places.columns]
        torch.testing.assert_close(z, largest(values.relu(), 30))
        torch.testing.assert_close(combine(places, values[places.rows, places.columns], modes), z @ modes)
        groups = combine_groups(places, values[places.rows, places.columns], modes, torch.tensor([5, 6, 20]))
        expected = torch.stack([z[:, a:b] @ modes[a:b] for a, b in ((0, 5), (5, 6), (6, 20))], 1)
        torch.testing.assert_close(groups, expected)
    assert len(largest_of_all(values, 1000).rows) == int((values > 0).sum())
    top = largest_of_rows(values, 4)
    assert torch.equal(top.starts, torch.arange(0, 36, 4))
    few = where_true(values > 2)
    torch.testing.assert_close(combine(few, values[values > 2], modes), F.threshold(values, 2, 0) @ modes)
    none = where_true(values > 1000)
    assert not combine(none, values[:0, 0], modes).any()
