"""Bisecting k-means: a literal loop of one split after the other, scikit-learn, and clusters of equal rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import backlight.decompositions.bisecting_k_means as module
from backlight.decompositions import Decomposition
from backlight.decompositions.bisecting_k_means import BisectingKMeans
from backlight.decompositions.halving import halves
from backlight.decompositions.k_means import KMeans
from backlight.decompositions.split_tree import SplitTree
from backlight.decompositions.two_means import two_means
from backlight.errors import InputError


def clustered(n: int = 400, channels: int = 6, seed: int = 0) -> Tensor:
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((40, channels)) * 3
    rows = centres[draw.integers(40, size=n)] + 0.4 * draw.standard_normal((n, channels))
    return torch.from_numpy(rows).float()


def one_by_one(
    x: np.ndarray, count: int, strategy: str, distant: bool, seed: int, sample: int
) -> list[tuple[np.ndarray, int]]:
    """The leaves, as members and depth: the greatest cluster is split, one at a time, in float64."""
    x = x.astype(np.float64)
    enough = 1e-4 * x.var(0).mean()

    def lloyd(rows: np.ndarray, means: np.ndarray, steps: int) -> np.ndarray:
        side = None
        for _ in range(steps):
            new = ((rows - means[1]) ** 2).sum(1) < ((rows - means[0]) ** 2).sum(1)
            if side is not None and (new == side).all():
                break
            later = np.stack((rows[~new].mean(0), rows[new].mean(0)))
            done = side is not None and ((later - means) ** 2).sum() <= enough
            side, means = new, later
            if done:
                break
        return side

    def halves(members: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.random.default_rng((seed, depth, 0)).random((2, len(x)))[:, members]
        rows = x[members]
        first = rows[draws[0].argmax()]
        apart = ((rows - first) ** 2).sum(1)
        with np.errstate(divide="ignore"):
            key = np.log(draws[1]) / apart if distant else draws[1]
        means = np.stack((first, rows[np.where(apart > 0, key, -np.inf).argmax()]))
        if 0 < sample < len(rows):
            few = rows[draws[1].argsort()[:sample]]
            side = lloyd(few, means, 300)
            means = np.stack((few[~side].mean(0), few[side].mean(0)))
        side = lloyd(rows, means, 2 if 0 < sample < len(rows) else 300)
        return members[~side], members[side]

    def size(one: tuple[np.ndarray, int]) -> float:
        rows = x[one[0]]
        return ((rows - rows.mean(0)) ** 2).sum() if strategy == "biggest_inertia" else len(rows)

    leaves = [(np.arange(len(x)), 0)]
    while len(leaves) < count:
        at = max(range(len(leaves)), key=lambda place: size(leaves[place]))
        members, depth = leaves.pop(at)
        leaves += [(part, depth + 1) for part in halves(members, depth)]
    return leaves


@pytest.mark.parametrize(
    ("strategy", "start"),
    [("biggest_inertia", "random"), ("largest_cluster", "random"), ("biggest_inertia", "k-means++")],
)
@pytest.mark.parametrize("count", [2, 7, 60])
@pytest.mark.parametrize("sample", [0, 50])
def test_rounds_of_splits_give_what_one_split_after_the_other_gives(
    strategy: str, start: str, count: int, sample: int
) -> None:
    x = clustered()
    one = BisectingKMeans(n_modes=count, strategy=strategy, start=start, seed=3, sample=sample).fit(x)
    leaves = one_by_one(x.numpy(), count, strategy, start == "k-means++", 3, sample)
    expected = torch.from_numpy(np.stack([x.numpy()[members].astype(np.float64).mean(0) for members, _ in leaves]))
    gaps = torch.cdist(one.modes.double(), expected)
    if strategy == "biggest_inertia":
        assert gaps.argmin(1).sort().values.equal(torch.arange(count))
        assert float(gaps.amin(1).max()) < 1e-5
    else:  # clusters of equal size are split in another order, which decides only the last splits
        assert float((gaps.amin(1) < 1e-5).float().mean()) > 0.8
    assert len(one.history) < count or count < 8


@pytest.mark.parametrize("distant", [False, True])
@pytest.mark.parametrize("sample", [0, 100])
@pytest.mark.parametrize("steps", [1, 2, 300])
def test_clusters_at_once_and_one_after_another_are_halved_alike(distant: bool, sample: int, steps: int) -> None:
    x = clustered(900, 6)
    x[-3:] = 1.0  # equal rows
    own = torch.cat((torch.zeros(1), torch.ones(396), torch.full((500,), 2.0), torch.full((3,), 3.0))).long()
    rows = torch.cat((torch.randperm(897, generator=torch.Generator().manual_seed(0)), torch.arange(897, 900)))
    centres = torch.stack([x[rows[own == one]].double().mean(0) for one in range(4)])
    draws = torch.rand(2, 900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings_ = {"distant": distant, "enough": 1e-4, "steps": steps, "sample": sample}
    there = halves(x, rows, own, centres, draws, **settings_)
    here = two_means(x[rows] - centres[own].float(), own, draws, **settings_)
    assert here.split.tolist() == there.split.tolist() == [False, True, True, False]
    assert torch.equal(here.side, there.side)
    for name in ("means", "inertia"):
        torch.testing.assert_close(getattr(here, name)[1:3], getattr(there, name)[1:3], rtol=1e-5, atol=1e-5)
    assert torch.equal(here.sizes[1:3], there.sizes[1:3])


@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
def test_the_inertia_is_scikit_learns(strategy: str) -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    x = clustered(1500, 16)
    ours, theirs = [], []
    for seed in range(2):
        one = BisectingKMeans(n_modes=60, strategy=strategy, seed=seed).fit(x)
        ours.append(float(one.state["tree.inertia"][one.leaves].sum()))
        other = sklearn.BisectingKMeans(60, bisecting_strategy=strategy, random_state=seed).fit(x.numpy())
        theirs.append(float(other.inertia_))
    assert np.mean(ours) < 1.03 * np.mean(theirs)
    several = BisectingKMeans(n_modes=60, strategy=strategy, n_init=4).fit(x)
    assert float(several.state["tree.inertia"][several.leaves].sum()) < np.mean(ours)


def test_the_tree_holds_what_its_rows_say() -> None:
    x = clustered()
    one = BisectingKMeans(n_modes=30).fit(x)
    children, sizes = one.children, one.state["tree.sizes"]
    assert children.shape == (59, 2)
    inner = (children[:, 0] >= 0).nonzero().flatten()
    assert torch.equal(sizes[children[inner]].sum(1), sizes[inner])
    assert int(sizes[0]) == 400
    inertia = one.state["tree.inertia"]
    assert (inertia[children[inner]].sum(1) <= inertia[inner]).all()
    order = inner[children[inner, 0].argsort()]  # parts are numbered as they are split off
    assert (inertia[order].diff() <= 0).all()
    assert inertia[order[-1]] >= inertia[one.leaves].max()
    assert torch.equal(one.state["tree.means"][one.leaves], one.modes)
    down = BisectingKMeans(n_modes=30, descend=True).fit(x)
    place = down.encode(x).argmax(1)
    assert torch.equal(place.bincount(minlength=30), sizes[one.leaves])  # rows of the fit come back to their leaves
    for leaf in range(30):
        torch.testing.assert_close(x[place == leaf].mean(0), one.modes[leaf], rtol=1e-4, atol=1e-5)
    error = (x - one.modes[place]).double().square().sum()
    torch.testing.assert_close(error, inertia[one.leaves].sum(), rtol=1e-5, atol=0)
    assert one.history[-1].r2 == pytest.approx(1 - float(error / (x - x.mean(0)).double().square().sum()), rel=1e-5)
    nearest = torch.cdist(x, one.modes).argmin(1)
    assert torch.equal(one.encode(x).argmax(1), nearest)


def test_fewer_clusters_are_the_first_splits_of_more() -> None:
    x = clustered()
    few, many = (BisectingKMeans(n_modes=count).fit(x) for count in (9, 70))
    torch.testing.assert_close(many.state["tree.means"][:17], few.state["tree.means"])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=40),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 100.0]),
    strategy=st.sampled_from(["biggest_inertia", "largest_cluster"]),
    start=st.sampled_from(["random", "k-means++"]),
    data=st.data(),
)
def test_as_many_centroids_as_asked_for_of_rows_that_repeat(
    rows: list[tuple[int, int]], scale: float, shift: float, strategy: str, start: str, data: Any
) -> None:
    x = torch.tensor(rows, dtype=torch.float64) * scale + shift * scale
    different = len(set(rows))
    count = data.draw(st.integers(1, min(len(rows), different + 2)))
    one = BisectingKMeans(n_modes=count, strategy=strategy, start=start)
    if count > different:
        with pytest.raises(InputError, match=f"{different} differ"):
            one.fit(x.float())
        return
    one.fit(x.float())
    assert len(one.modes) == count
    assert (one.encode(x.float()).sum(0) > 0).sum() <= count
    if count == different:
        assert len(one.modes.unique(dim=0)) == count
        assert float((one.decode(one.encode(x.float())) - x).abs().max()) <= 1e-4 * scale * (1 + shift)


def test_one_row_far_away_at_a_time_and_all_rows_equal() -> None:
    x = torch.cat((torch.zeros(50, 2), 2.0 ** torch.arange(20)[:, None] * torch.ones(1, 2)))
    one = BisectingKMeans(n_modes=21).fit(x)
    assert len(one.modes) == 21
    torch.testing.assert_close(one.decode(one.encode(x)), x, rtol=1e-5, atol=0.01)
    same = BisectingKMeans(n_modes=1).fit(torch.ones(5, 3))
    torch.testing.assert_close(same.modes, torch.ones(1, 3))
    with pytest.raises(InputError, match="1 differ"):
        BisectingKMeans(n_modes=2).fit(torch.ones(5, 3))


def test_lloyds_steps_among_all_centroids_end_where_k_means_does() -> None:
    x = clustered()
    plain, refined = (BisectingKMeans(n_modes=20, refine=steps).fit(x) for steps in (0, 50))
    assert refined.history[-1].r2 > plain.history[-1].r2
    place = refined.encode(x).argmax(1)
    for mode in range(20):
        torch.testing.assert_close(x[place == mode].mean(0), refined.modes[mode], rtol=1e-4, atol=1e-5)
    flat = KMeans(n_modes=20).fit(x)
    assert refined.history[-1].r2 > flat.history[-1].r2 - 0.1


def test_a_killed_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered()
    whole = BisectingKMeans(n_modes=60).fit(x, held_out=x[:50])

    class Killed(Exception): ...

    def stop(epoch: Any) -> None:
        if epoch.number == 4:
            raise Killed

    monkeypatch.setattr("backlight.decompositions.checkpoints.SHARE", 1e9)
    with pytest.raises(Killed):
        BisectingKMeans(n_modes=60).fit(x, held_out=x[:50], folder=tmp_path, progress=stop)
    calls: list[int] = []
    real = module.halves
    monkeypatch.setattr(module, "halves", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    again = BisectingKMeans(n_modes=60).fit(x, held_out=x[:50], folder=tmp_path)
    assert len(calls) == len(whole.history) - 3
    assert again.history == whole.history
    assert all(torch.equal(again.state[name], whole.state[name]) for name in whole.state)
    again.save(tmp_path / "saved")
    loaded = Decomposition.load(tmp_path / "saved")
    assert isinstance(loaded, BisectingKMeans)
    assert torch.equal(loaded.children, whole.children)
    with pytest.raises(InputError, match="strategy"):
        BisectingKMeans(n_modes=60, strategy="largest_cluster").fit(x, held_out=x[:50], folder=tmp_path)


def test_leaves_are_wanted_while_they_have_a_place() -> None:
    tree = SplitTree.root(100, 64.0, 1)

    def split(node: int, *parts: float) -> None:
        sizes = torch.tensor([[50, 50]])
        inertia = torch.tensor([parts], dtype=torch.float64)
        tree.grow(torch.tensor([node]), torch.tensor([True]), torch.zeros(1, 2, 1).double(), sizes, inertia)

    assert tree.wanted(1, "biggest_inertia").tolist() == []
    assert tree.wanted(2, "biggest_inertia").tolist() == [0]
    split(0, 30.0, 4.0)
    assert tree.wanted(2, "biggest_inertia").tolist() == []
    assert tree.wanted(3, "biggest_inertia").tolist() == [1]
    assert tree.wanted(5, "biggest_inertia").tolist() == [1]  # halves of 30, 15 and 15, come before 4
    assert tree.wanted(9, "biggest_inertia").tolist() == [1]  # root, 30, two of 15, four of 7.5
    assert tree.wanted(10, "biggest_inertia").tolist() == [1, 2]
    split(1, 3.0, 2.0)
    assert tree.wanted(4, "biggest_inertia").tolist() == [2]
    cut = tree.cut(3, "biggest_inertia")
    assert cut.children.tolist() == [[1, 2], [3, 4], [-1, -1], [-1, -1], [-1, -1]]
    assert cut.inertia.tolist() == [64.0, 30.0, 4.0, 3.0, 2.0]


def test_settings_that_cannot_be() -> None:
    x = clustered(20)
    for wrong, words in (
        ({"n_modes": 21}, "fewer modes"),
        ({"strategy": "any"}, "biggest_inertia"),
        ({"start": "far"}, "k-means"),
        ({"steps": 0}, "at least 1"),
        ({"refine": 1, "descend": True}, "no tree"),
    ):
        with pytest.raises(InputError, match=words):
            BisectingKMeans(**{"n_modes": 3, **wrong}).fit(x)
    with pytest.raises(InputError, match="no modes yet"):
        _ = BisectingKMeans().children
