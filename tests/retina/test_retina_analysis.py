"""The analysis end to end on a small network: the target, both signs, movies that modes have not seen, and a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backlight.contributions import HiddenIntegratedGradients, contribute
from backlight.data.retina_stimuli import stimulus
from backlight.decompositions import NMF, ClassMeans, ThresholdSAE
from backlight.errors import InputError
from backlight.models.retina import RetinaNetwork, predict
from backlight.retina.analysis import (
    SITES,
    SITES_AFTER,
    RetinaAnalysis,
    analyse_retina,
    extract_retina,
    loudest,
    surprisal,
)
from backlight.retina.clusters import cell_modes
from backlight.retina.recording import Recording
from backlight.retina.recovery import dominant, field_recovery, recovery, subunit_activity
from backlight.retina.simulator import RetinaSimulator
from backlight.viz.retina_figures import matched, retina_figure


@pytest.fixture(scope="module")
def simulator() -> RetinaSimulator:
    return RetinaSimulator(["ON", "OFF"], cells=4, size=(8, 8), frames=10, subunit=0.6, pool=1.2).eval()


@pytest.fixture(scope="module")
def movies(simulator: RetinaSimulator) -> tuple[Recording, Recording]:
    first, second = (stimulus("natural_movie", count, (8, 8), seed=count) for count in (129, 89))
    return simulator.record(first), simulator.record(second)


@pytest.fixture(scope="module")
def network() -> RetinaNetwork:
    made = RetinaNetwork(4, frames=10, size=(8, 8), channels=(3, 2), kernels=(3, 3))
    made.train()
    with torch.no_grad():
        for seed in range(40):  # statistics of the batch norms
            made(torch.randn((32, 10, 8, 8), generator=torch.Generator().manual_seed(seed)))
    return made.eval()


@pytest.fixture(scope="module")
def analysis(
    network: RetinaNetwork, movies: tuple[Recording, Recording], tmp_path_factory: pytest.TempPathFactory
) -> RetinaAnalysis:
    folder = tmp_path_factory.mktemp("analysis")
    return analyse_retina(network, *movies, folder, method=NMF(n_modes=4, epochs=5), n_steps=4, batch_size=32)


def test_rows_are_both_signs_of_complete_contributions(
    network: RetinaNetwork, movies: tuple[Recording, Recording], tmp_path: Path
) -> None:
    first, second = movies
    target = surprisal(network, first)
    rates = predict(network, first.windows)
    torch.testing.assert_close(target.mean, rates.double().mean(0))
    assert 0 < target.shrinkage < 1
    store = extract_retina(network, second, target, tmp_path, sites=(*SITES, *SITES_AFTER), n_steps=64, batch_size=32)
    x = second.windows[:5].contiguous()
    found = contribute(network, x, SITES, target, algorithm=HiddenIntegratedGradients(n_steps=64))
    for site, channels in zip(SITES, (3, 2), strict=True):
        rows = store.rows(site, "contributions", "concat").read(0, 5)
        value = found.values[site].flatten(2)
        assert rows.shape == (5, 2 * channels)
        torch.testing.assert_close(rows[:, :channels], value.clamp(min=0).sum(2), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(rows[:, channels:], value.clamp(max=0).sum(2), rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        ends = [target.score(network(one), {}) for one in (x, torch.zeros_like(x))]
    for site in (*SITES, *SITES_AFTER):  # everything passes through each of them
        total = store.rows(site, "contributions", "concat").read(0, 5).sum(1)
        residual = torch.as_tensor(store.residual(site))[:5].float()
        torch.testing.assert_close(total + residual, ends[0] - ends[1], rtol=1e-3, atol=1e-4)
        assert bool((residual.abs() <= 0.08 * (ends[0] - ends[1]).abs() + 2e-3).all())  # 64 steps over the kinks


def test_modes_are_read_on_the_other_movie(analysis: RetinaAnalysis, movies: tuple[Recording, Recording]) -> None:
    for site, modes in analysis.sites.items():
        assert modes.loadings.shape == (80, 4)
        assert modes.decomposed.loadings.shape == (120, 4)
        assert modes.decomposed.quantity == "contributions"
        torch.testing.assert_close(modes.association, cell_modes(analysis.rates, modes.loadings))
        assert modes.record()["site"] == site
        assert modes.r2 is not None
        assert modes.r2 > 0.3
    torch.testing.assert_close(analysis.rates, predict(analysis.network, movies[1].windows))


def test_controls_and_a_second_call(
    analysis: RetinaAnalysis, network: RetinaNetwork, movies: tuple[Recording, Recording]
) -> None:
    folder = analysis.sites[SITES[0]].decomposed.folder.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = analyse_retina(network, *movies, folder, method=NMF(n_modes=4, epochs=5), n_steps=4, batch_size=32)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    for site in SITES:
        assert torch.equal(again.sites[site].loadings, analysis.sites[site].loadings)
    control = analyse_retina(
        network, *movies, folder, method="ClassMeans", quantity="activations", n_steps=4, batch_size=32
    )
    fitted = control.sites[SITES[0]].decomposed.decomposition
    assert isinstance(fitted, ClassMeans)
    assert set(fitted.classes.tolist()) <= set(range(4))
    assert any("modes of activations" in text.get_text() for text in retina_figure(control, side=6).texts)
    with pytest.raises(InputError, match="a recording has 4 cells"):
        analyse_retina(RetinaNetwork(3, frames=10, size=(8, 8), kernels=(3, 3)).eval(), *movies, folder)


def test_the_loudest_cell() -> None:
    rates = torch.tensor([[10.0, 0.1, 1.0], [10.1, 0.0, 1.0], [9.9, 0.5, 1.0]])
    assert loudest(rates).tolist() == [0, 0, 1]  # the third does not vary: 0 of its own deviations


def test_recovery_of_the_truth_itself(simulator: RetinaSimulator, movies: tuple[Recording, Recording]) -> None:
    """Columns that are the subunits' own activity track them exactly; noise does so by chance alone."""
    _, second = movies
    activity = subunit_activity(simulator, second.stimulus)
    assert activity.shape == (80, 4)
    torch.testing.assert_close(activity, simulator.pathways(second.stimulus)[..., :4].sum(1))
    assert second.rates is not None
    true = recovery(activity, second.rates, simulator, activity)
    torch.testing.assert_close(true.tracked, torch.tensor([0.0, 1.0, 0.0, 1.0]))  # no cell has fast subunits
    assert float(true.tracked_chance.max()) < 0.9
    # frames by their strongest kind: one-hot columns are that grouping
    exact = recovery(torch.eye(4)[dominant(activity)], second.rates, simulator, activity)
    assert exact.groups.index == pytest.approx(1)
    noise = recovery(torch.randn(80, 4), second.rates, simulator, activity)
    assert float(noise.tracked.max()) < 0.6
    assert noise.groups.index < 0.2


def test_fields_of_the_truth_itself(
    simulator: RetinaSimulator, network: RetinaNetwork, movies: tuple[Recording, Recording]
) -> None:
    same = field_recovery(simulator, simulator, movies[1].windows, frames=6)
    torch.testing.assert_close(same.frames, torch.ones(4))
    torch.testing.assert_close(same.means, torch.ones(4))
    assert float(same.shuffled.max()) < 1
    other = field_recovery(network, simulator, movies[1].windows, frames=6)
    assert float(other.frames.abs().max()) < 0.6  # it was never fitted


def test_the_figure(analysis: RetinaAnalysis) -> None:
    figure = retina_figure(analysis, side=6)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert sum(title.startswith("B ") for title in titles) == 2
    assert any(title.startswith("A ") for title in titles)
    said = [text.get_text() for text in figure.texts]
    assert any(text.startswith("D ") for text in said)
    assert any(text.startswith("C ") and "6 x 6 pixels" in text for text in said)
    assert any("modes of contributions to surprisal" in text for text in said)
    ticks = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert sum(sorted(one) == ["OFF 1", "OFF 3", "ON 0", "ON 2"] for one in ticks) == 3  # A, and B at both sites
    figure.canvas.draw()


def test_clusters_of_two_sites_under_the_same_numbers() -> None:
    others = torch.tensor([0, 0, 1, 1, 1, 2])
    assert matched(torch.tensor([2, 2, 0, 0, 0, 1]), others).tolist() == others.tolist()
    assert matched(torch.tensor([1, 1, 0, 0, 2, 2]), others).tolist() == [0, 0, 1, 1, 2, 2]
    assert matched(torch.tensor([0, 1, 2, 3, 3, 4]), others).tolist() == [0, 3, 4, 1, 1, 2]
    assert matched(torch.zeros(6, dtype=torch.long), others).tolist() == [1] * 6


def test_types_and_the_default_method(
    network: RetinaNetwork, movies: tuple[Recording, Recording], analysis: RetinaAnalysis, tmp_path: Path
) -> None:
    assert set(analysis.types()) == set(SITES)
    truth = torch.tensor([1, 0, 1, 0])  # ON, OFF, in turn
    labels = analysis.sites[SITES[0]].clusters.labels
    same = (labels[:, None] == labels).eq(truth[:, None] == truth).all()
    assert (analysis.types()[SITES[0]].index == 1) == bool(same)
    unknown = replace(analysis, held_out=replace(movies[1], about={}))
    assert unknown.types() == {}
    found = analyse_retina(network, *movies, tmp_path, n_steps=2, batch_size=32, modes=6, epochs=2)
    told = found.sites[SITES[0]].decomposed.decomposition.settings()
    assert {**told} == {**ThresholdSAE.preset("retina_revived", n_modes=6, epochs=2).settings()}
