"""Control curves: a planted network, paired images, resumption, trials; areas, intervals and their coverage."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backlight.contributions.control_curves import ControlCurves, Design, Told, control_curves
from backlight.contributions.control_directions import (
    Direction,
    by_channel,
    concept_masks,
    directions_of,
    mean_scores,
    mode_scores,
    random_orders,
)
from backlight.contributions.control_outcomes import channel_count, donor_numbers, hits, removed_at
from backlight.contributions.control_statistics import ControlStatistics, area, cluster_counts
from backlight.contributions.control_trials import Trial, every_concept, paper_trials
from backlight.data.hierarchy import Concept
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.samples import TensorSamples
from backlight.store import Store
from backlight.store.rows import TensorRows

CLASSES, EACH, WIDTH = 4, 3, 20  # channels 3 k, 3 k + 1, 3 k + 2 are the evidence of class k, the last eight of none
CONCEPTS = [Concept((f"class {k}",), (k,)) for k in range(CLASSES)]
FRACTIONS = (0.05, 0.15, 0.5)


class Planted(nn.Module):
    """Every class is seen by its own three channels, and by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.Linear(WIDTH, CLASSES, bias=False)
        self.forwards, self.images = 0, 0
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(WIDTH)[:, :, None, None])
            self.head.weight.copy_(evidence().float())

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.images += len(x)
        return self.head(self.conv(x).mean((2, 3))) + torch.tensor([-1e-3, 0.0, 0.0, 1e-3])


def evidence() -> Tensor:
    return torch.stack([(torch.arange(WIDTH) // EACH == k) & (torch.arange(WIDTH) < 12) for k in range(CLASSES)])


def planted_data(n: int = 24) -> tuple[TensorSamples, np.ndarray]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % CLASSES
    x = 0.2 * torch.rand(n, WIDTH, 2, 2, generator=draw) + evidence()[labels].float()[:, :, None, None]
    return TensorSamples(x, labels), labels.numpy()


@pytest.fixture
def planted(tmp_path: Path) -> Any:
    """Network, samples, labels, and what `decompose` would find at "conv"."""
    samples, labels = planted_data()
    x = torch.stack([samples.load(name).inputs for name in samples.names])
    rows = x.sum((2, 3)) * evidence().float()[torch.from_numpy(labels)]
    store = Store.of(
        tmp_path / "store", {"conv": {"contributions": rows, "activations": x.sum((2, 3))}}, columns={"label": labels}
    )
    noise = torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(1))
    loadings = torch.cat((torch.eye(CLASSES)[torch.from_numpy(labels)], noise), 1)
    modes = torch.cat((evidence().float(), torch.rand(2, WIDTH)), 0)
    decomposed = SimpleNamespace(
        folder=tmp_path / "modes", site="conv", quantity="contributions", sign="positive", modes=modes,
        loadings=TensorRows(loadings), store=store,
    )  # fmt: skip
    return SimpleNamespace(net=Planted().eval(), samples=samples, labels=labels, decomposed=decomposed)


def design_of(planted: Any, few: bool = False, **changes: Any) -> Design:
    directions = directions_of([planted.decomposed], CONCEPTS, random=2)
    directions = [directions[0], directions[-1]] if few else directions
    given = {
        "directions": directions,
        "trials": every_concept(planted.labels, CONCEPTS),
        "places": [["conv"]],
        "fractions": FRACTIONS,
    }
    return Design(CONCEPTS, **(given | changes))


def run(planted: Any, design: Design, **settings: Any) -> ControlCurves:
    return control_curves(planted.net, planted.samples, planted.labels, design, **settings)


@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_a_planted_mode_controls_its_class_and_random_channels_do_not(planted: Any, fill: str) -> None:
    values = {
        "zero": None,
        "mean": {"conv": torch.full((WIDTH,), -0.1)},
        "resample": {"conv": -0.2 * torch.rand(5, WIDTH, 2, 2)},
    }[fill]
    curves = run(planted, design_of(planted), fill=fill, values=values)
    assert np.array_equal(curves.before, np.ones((4, 2, 2)))
    statistics = ControlStatistics(curves)
    ablated = statistics.values("conv", "mode of contributions", "ablate")
    assert np.array_equal(ablated[:, 0, :3], [[1, 1, 0]] * 4)  # none, one and three of the class's channels
    assert np.array_equal(ablated[:, 1, :3], np.ones((4, 3)))
    kept = statistics.values("conv", "mode of contributions", "preserve")
    assert np.array_equal(kept[:, 0, 2], np.ones(4))
    if fill == "zero":
        assert np.array_equal(kept[:, 1, 2], np.zeros(4))
    areas = statistics.areas("conv", "mode of contributions", "ablate")
    random = statistics.areas("conv", "random channels", "ablate")
    assert areas.absolute.value < -0.25
    assert areas.absolute.high < 0
    assert abs(random.absolute.value) < 0.1
    paired = statistics.against("conv", "mode of contributions", "random channels", "ablate")
    assert paired.absolute.high < 0
    assert paired.relative.high < 0
    assert np.isclose(paired.absolute.value, areas.absolute.value - random.absolute.value)


def test_ends_are_measured_and_the_same_for_all(planted: Any) -> None:
    curves = run(planted, design_of(planted))
    a, p = curves.actions.index("ablate"), curves.actions.index("preserve")
    assert np.array_equal(curves.after[:, :, 0, :, a, 0], np.broadcast_to(curves.before[:, :, None], (4, 2, 6, 2)))
    assert np.array_equal(curves.after[:, :, 0, :, a, -1], curves.after[:, :, 0, :, p, 0])
    assert np.array_equal(curves.after[:, :, 0, :, p, -1], curves.after[:, :, 0, :, a, 0])
    everything = curves.after[:, 0, 0, 0, a, -1, 0]
    assert np.array_equal(everything, [0, 0, 0, 1])  # what is left is a bias for the last class


def test_every_cell_is_the_literal_loop(planted: Any) -> None:
    design = design_of(planted)
    curves = run(planted, design, batch_size=7)
    x = torch.stack([planted.samples.load(name).inputs for name in planted.samples.names])
    for d, direction in enumerate(design.directions):
        for a, action in enumerate(design.actions):
            for f, fraction in enumerate(design.grid):
                for t in range(CLASSES):
                    found = np.zeros((2, 2))
                    orders = direction.orders["conv"][t]
                    for order in orders:
                        top = order[: int(WIDTH * fraction + 1e-9)].tolist()
                        gone = top if action == "ablate" else [c for c in range(WIDTH) if c not in top]
                        y = x.clone()
                        y[:, gone] = 0
                        logits = planted.net(y).detach().numpy()
                        for side, inside in enumerate((planted.labels == t, planted.labels != t)):
                            right = [int(logits[i].argmax() == planted.labels[i]) for i in np.flatnonzero(inside)]
                            found[side] += np.array([np.mean(right), 1.0]) / len(orders)
                    assert np.allclose(curves.after[t, :, 0, d, a, f], found), (direction.name, action, fraction)


def test_each_condition_and_batch_costs_one_forward(planted: Any) -> None:
    planted.net.forwards = planted.net.images = 0
    design = design_of(planted)
    run(planted, design, batch_size=24)
    looked = 2  # to see where the channels are
    assert planted.net.images == design.images() + looked
    assert planted.net.forwards == design.images() // 24 + looked
    cells = sum(len(draws) for trial in range(CLASSES) for _, draws in design.conditions(trial))
    assert design.images() < 24 * cells / 1.5  # what removes the same channels is one condition


def test_results_do_not_depend_on_batches_or_images_of_other_trials(planted: Any) -> None:
    values = {"conv": torch.rand(9, WIDTH, 2, 2)}
    design = design_of(planted)
    whole = run(planted, design, fill="resample", values=values, reference=range(9), batch_size=24)
    for size in (1, 5):
        again = run(planted, design, fill="resample", values=values, reference=range(9), batch_size=size)
        assert np.array_equal(whole.after, again.after)
    alone = run(
        planted, design_of(planted, trials=design.trials[2:3]), fill="resample", values=values, reference=range(9)
    )
    assert np.array_equal(alone.after[0], whole.after[2])


def test_a_stopped_run_goes_on(planted: Any, tmp_path: Path) -> None:
    out, design = tmp_path / "out", design_of(planted, few=True)
    whole = run(planted, design)

    def stop(told: Told) -> None:
        if told.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planted, design, out=out, progress=stop)
    assert len(list((out / "trials").glob("*.npz"))) == 2
    planted.net.images = 0
    told: list[Told] = []
    again = run(planted, design, out=out, progress=told.append)
    assert np.array_equal(again.after, whole.after)
    assert told[0] == Told(0, 4)
    assert told[-1] == Told(4, 4)
    used = planted.net.images
    planted.net.images = 0
    assert np.array_equal(run(planted, design, out=out).after, whole.after)
    assert planted.net.images == 0 < used
    assert json.loads((out / "run.json").read_text())["directions"][0] == "mode of contributions"
    for changed in ({"seed": 1}, {"fill": "mean", "values": {"conv": torch.zeros(WIDTH)}}):
        with pytest.raises(InputError, match="other settings"):
            run(planted, design, out=out, **changed)
    with torch.no_grad():
        planted.net.head.weight[0, 0] += 1
    with pytest.raises(InputError, match="model"):
        run(planted, design, out=out)


def test_several_sites_are_one_place(planted: Any) -> None:
    one = design_of(planted, few=True).directions
    both = [Direction(d.name, {**d.orders, "head:input": d.orders["conv"]}, d.notes) for d in one]
    trials = every_concept(planted.labels, CONCEPTS)
    curves = run(planted, Design(CONCEPTS, both, trials, [["conv"], ["conv", "head:input"]], fractions=FRACTIONS))
    assert curves.places == ("conv", "conv + head:input")
    assert np.array_equal(curves.after[:, :, 0], curves.after[:, :, 1])  # the second edit removes what is gone


def test_super_classes(planted: Any) -> None:
    concepts = [Concept(("low",), (0, 1)), Concept(("odd",), (1, 3))]
    directions = directions_of([planted.decomposed], concepts, above=0.5, random=1)
    assert "2 modes" in directions[0].notes[0]
    assert set(directions[0].orders["conv"][0, 0, :6].tolist()) == set(range(6))
    trials = every_concept(planted.labels, concepts)
    curves = run(planted, Design(concepts, directions, trials, [["conv"]], fractions=(0.3,)))
    values = ControlStatistics(curves).values("conv", "mode of contributions", "ablate")
    assert np.array_equal(values[:, :, 1], [[0, 1], [0, 1]])
    single = mode_scores(planted.decomposed, concepts)
    assert [len(modes) for modes in single.modes] == [1, 1]


def test_only_used_rows_choose(planted: Any) -> None:
    used = np.arange(24) < 12
    wrong = torch.eye(CLASSES + 2)[(torch.from_numpy(planted.labels) + 1) % CLASSES]
    right = torch.eye(CLASSES + 2)[torch.from_numpy(planted.labels)]
    planted.decomposed.loadings = TensorRows(torch.where(torch.from_numpy(used)[:, None], right, wrong))
    assert mode_scores(planted.decomposed, CONCEPTS, used).modes == ((0,), (1,), (2,), (3,))
    assert mode_scores(planted.decomposed, CONCEPTS, ~used).modes == ((1,), (2,), (3,), (0,))
    rows, masks = planted.decomposed.store.rows("conv"), concept_masks(planted.labels, CONCEPTS)
    values = rows.read(0, 24).double()
    for contrast in (False, True):
        found = mean_scores(rows, masks, used, contrast)
        for k in range(CLASSES):
            inside = torch.from_numpy(used & (planted.labels == k))
            others = torch.from_numpy(used & (planted.labels != k))
            expected = values[inside].mean(0) - (values[others].mean(0) if contrast else 0)
            assert torch.allclose(found[k], expected, atol=1e-12)
    names = [one.name for one in directions_of([planted.decomposed], CONCEPTS, {str(planted.decomposed.folder): used})]
    assert names == [
        "mode of contributions",
        "mean contribution",
        "contrast of contributions",
        "best channels by contributions",
        "mean activation",
        "random channels",
    ]
    with pytest.raises(InputError, match="0 of 12"):
        mode_scores(planted.decomposed, CONCEPTS, used & (planted.labels != 1) | ~used & (planted.labels == 0))


def test_signs_of_rows_become_channels() -> None:
    weights = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    assert by_channel(weights, "concat").tolist() == [[4.0, 2.0]]
    assert by_channel(weights, "negative").tolist() == [[-1.0, 2.0, -3.0, -4.0]]
    assert by_channel(weights, "positive") is weights


def test_random_orders_are_permutations_that_more_draws_extend() -> None:
    few, many = random_orders(30, 2, 5), random_orders(30, 6, 5)
    assert torch.equal(few, many[:2])
    assert all(sorted(one.tolist()) == list(range(30)) for one in many)
    assert len({tuple(one.tolist()) for one in many}) == 6


def test_papers_trials_never_coincide_and_extend() -> None:
    labels = np.repeat(np.arange(7), 30)
    concepts = [Concept((str(k),), (k,)) for k in range(6)] + [Concept(("all",), (0, 1, 2))]
    few, many = (paper_trials(labels, concepts, trials=n, seed=4) for n in (10, 200))
    assert many[:10] == few
    for trial in many:
        assert len(trial.target) == len(trial.off) == 10
        assert not set(labels[list(trial.target)]) & set(labels[list(trial.off)])
        assert set(labels[list(trial.target)]) <= set(concepts[trial.concept].indices)
    assert {trial.concept for trial in many} == set(range(7))
    allowed = range(0, 210, 3)
    assert all(set(trial.target) | set(trial.off) <= set(allowed) for trial in paper_trials(labels, concepts, allowed))
    with pytest.raises(InputError, match="disjoint"):
        paper_trials(labels, [concepts[0], concepts[6]])


def test_every_concept_takes_all_or_some() -> None:
    labels = np.array([0, 1, -1, 1, 2, 2, 0])
    concepts = [Concept(("a",), (0,)), Concept(("b",), (1, 2))]
    assert every_concept(labels, concepts) == [Trial(0, (0, 6), (1, 3, 4, 5)), Trial(1, (1, 3, 4, 5), (0, 6))]
    some = every_concept(labels, concepts, images=1, off_images=3, seed=1)
    assert [(len(trial.target), len(trial.off)) for trial in some] == [(1, 3), (1, 2)]
    with pytest.raises(InputError, match="0 images of 'a'"):
        every_concept(labels, concepts, among=[1, 3])


def test_hits_and_counts_of_channels() -> None:
    logits = torch.tensor(
        [[1.0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0]]
    )
    logits[3, 1] = torch.nan
    found = hits(logits, torch.tensor([0, 1, 5, 0]))
    assert found.tolist() == [[True, True], [False, True], [False, False], [False, False]]
    with pytest.raises(InputError, match="7 classes"):
        hits(logits, torch.tensor([0, 1, 7, 0]))
    assert [channel_count(100, f) for f in (0.0, 0.29, 0.99, 1.0)] == [0, 29, 99, 100]
    assert channel_count(16, 0.05) == 0
    order = np.array([3, 1, 0, 2])
    assert removed_at(order, 0.5, "ablate").tolist() == [False, True, False, True]
    assert removed_at(order, 0.5, "preserve").tolist() == [True, False, True, False]
    assert donor_numbers(5, [4, 2]) == [0, 1, 1, 3, 0]


def curves_of(after: np.ndarray, before: np.ndarray, grid: tuple[float, ...], concepts: list[str] | None = None) -> Any:
    """Curves of one direction an entry of axis 1 of `after [T, D, 2, F]`."""
    trials, directions = after.shape[:2]
    whole = np.repeat(after.transpose(0, 2, 1, 3)[:, :, None, :, None, :, None], 2, -1)
    names = tuple(f"d{d}" for d in range(directions))
    return ControlCurves(
        tuple(concepts or map(str, range(trials))), np.ones((trials, 2), dtype=int), ("site",), names, ("ablate",),
        grid, np.repeat(before[..., None], 2, -1), whole, {}, {},
    )  # fmt: skip


def test_areas_have_closed_forms() -> None:
    grid = (0.0, 0.01, 0.1, 0.3, 0.7, 1.0)
    f = np.array(grid)
    assert np.isclose(area(1 - f, f), 0.5)
    assert np.isclose(area(np.ones(6), f), 1.0)
    assert np.isclose(area((f == 0).astype(float), f), 0.005)  # gone with the first channels
    after = np.stack([np.stack([0.5 * (1 - f), 0.8 * np.ones(6)])])[:, None]
    after = np.concatenate((after, after, after))
    curves = curves_of(after, np.array([[0.5, 0.8]] * 3), grid)
    found = ControlStatistics(curves).areas("site", "d0", "ablate")
    assert np.isclose(found.target.value, 0.5)
    assert np.isclose(found.off.value, 1.0)
    assert np.isclose(found.absolute.value, -0.5)
    assert np.isclose(found.relative.value, -0.5)
    assert np.isclose(found.absolute.low, -0.5)
    assert np.isclose(found.absolute.high, -0.5)
    plain = ControlStatistics(curves, measure="accuracy").areas("site", "d0", "ablate")
    assert np.isclose(plain.absolute.value, 0.25 - 0.8)
    assert np.isclose(plain.relative.value, (0.25 - 0.8) / 0.8)


def test_the_papers_figure_6d_gives_its_figure_6e() -> None:
    """Digitised ratios; without end points and in percent, as the reference does it, and relative."""
    pct = np.array([1, 2, 5, 10, 18, 25, 50, 80, 99.0])
    target = np.array([0.031, 0.106, 0.272, 0.629, 0.844, 0.940, 1.055, 1.049, 1.023])
    off = np.array([0, 0, 0, 0, 0.041, 0.074, 0.443, 0.877, 0.989])
    a, b = area(target, pct), area(off, pct)
    assert np.isclose(a, 91.20, atol=0.05)
    assert np.isclose(b, 44.56, atol=0.05)
    assert np.isclose((a - b) / b, 1.047, atol=0.002)


def test_trials_without_a_ratio_are_counted_and_left_out() -> None:
    grid, f = (0.0, 0.5, 1.0), np.array([0.0, 0.5, 1.0])
    after = np.stack([np.stack([1 - f, 1 - f / 2])] * 4)[:, None]
    before = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    statistics = ControlStatistics(curves_of(after, before, grid))
    band = statistics.band("site", "d0", "ablate", 0)
    assert (band.n, band.excluded) == (3, 1)
    assert np.allclose(band.mean, 1 - f)
    assert np.isfinite(band.low).all()
    assert statistics.areas("site", "d0", "ablate").excluded == (1, 1)
    assert np.isclose(statistics.areas("site", "d0", "ablate").absolute.value, 0.5 - 0.75)
    with pytest.raises(UnknownNameError, match="ablate"):
        statistics.band("site", "d0", "preserve", 0)


def test_one_concept_has_no_interval_and_no_warning() -> None:
    f = np.array([0.0, 0.5, 1.0])
    after = np.stack([np.stack([1 - f, 1 - f / 2])] * 3)[:, None]
    found = ControlStatistics(curves_of(after, np.ones((3, 2)), (0.0, 0.5, 1.0), ["a", "a", "a"]))
    assert np.isnan(found.areas("site", "d0", "ablate").absolute.low)
    assert np.isclose(found.areas("site", "d0", "ablate").absolute.value, -0.25)


def test_trials_of_a_concept_are_resampled_together() -> None:
    counts = cluster_counts(("a", "b", "a", "c"), 500, 0)
    assert np.array_equal(counts[:, 0], counts[:, 2])
    assert np.array_equal(counts[:, 0] + counts[:, 1] + counts[:, 3], np.full(500, 3.0))


def simulated(draw: np.random.Generator, trials: int, each: int, effect: float) -> Any:
    """Areas with a spread between concepts and one between the trials of a concept."""
    grid, f = (0.0, 0.5, 1.0), np.array([0.0, 0.5, 1.0])
    concepts = [f"c{t // each}" for t in range(trials)]
    shift = np.repeat(draw.normal(0, 0.2, trials // each), each) + draw.normal(0, 0.1, trials)
    own = 1 - f * (0.5 + effect + shift[:, None])
    off = 1 - f * (0.5 + draw.normal(0, 0.1, trials)[:, None])
    return curves_of(np.stack((own, off), 1)[:, None], np.ones((trials, 2)), grid, concepts)


@pytest.mark.parametrize(("trials", "each"), [(30, 1), (60, 3)])
def test_intervals_cover_what_they_should(trials: int, each: int) -> None:
    draw, effect, inside = np.random.default_rng(0), 0.3, 0
    for number in range(100):
        curves = simulated(draw, trials, each, effect)
        found = ControlStatistics(curves, resamples=300, seed=number).areas("site", "d0", "ablate").absolute
        inside += found.low <= -effect / 2 <= found.high
    assert 0.86 <= inside / 100 <= 0.99


def test_what_is_refused(planted: Any) -> None:
    design = design_of(planted)
    with pytest.raises(InputError, match="training mode"):
        control_curves(Planted(), planted.samples, planted.labels, design)
    with pytest.raises(InputError, match="needs values"):
        run(planted, design, fill="mean")
    with pytest.raises(UnknownNameError, match="resample"):
        run(planted, design, fill="resampled")
    for wrong in ((0.5, 0.1), (0.0, 0.5), (0.5, 1.0), ()):
        with pytest.raises(InputError, match="fractions"):
            design_of(planted, fractions=wrong)
    heads = [Direction("heads", {"conv": torch.arange(5).expand(4, 1, -1)})]
    with pytest.raises(InputError, match="5 channels were ordered at 'conv', which has 20"):
        run(planted, design_of(planted, few=True, directions=heads))
    with pytest.raises(InputError, match="no channels"):
        design_of(planted, places=[["head"]])
    with pytest.raises(UnknownNameError, match="preserve"):
        design_of(planted, actions=["keep"])
