"""Fits of retina networks: what they reach, that a kill changes nothing, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backlight.data.retina_stimuli import stimulus
from backlight.errors import InputError, NonFiniteError
from backlight.models.retina import RetinaNetwork
from backlight.retina.fitting import (
    FitEpoch,
    FitSettings,
    fit_retina,
    open_fitted,
    poisson_loss,
    score_retina,
    split_windows,
)
from backlight.retina.recording import Recording
from backlight.retina.simulator import RetinaSimulator

SIZES = {"channels": (3, 3), "kernels": (4, 3)}


@pytest.fixture(scope="module")
def simulator() -> RetinaSimulator:
    return RetinaSimulator(["ON", "OFF"], size=(9, 9), frames=10, subunit=0.7, pool=1.2, seed=1)


@pytest.fixture(scope="module")
def recording(simulator: RetinaSimulator) -> Recording:
    return simulator.record(stimulus("natural_movie", 1200, (9, 9), seed=1), repeats=4, seed=1)


class _Stopped(Exception):
    pass


def _stop_after(number: int):
    def tell(epoch: FitEpoch) -> None:
        if epoch.number == number:
            raise _Stopped

    return tell


def test_a_fit_tells_other_movies(recording: Recording, simulator: RetinaSimulator) -> None:
    settings = FitSettings(epochs=8, batch_size=32, learning_rate=5e-3)
    state = torch.random.get_rng_state()
    found = fit_retina(recording, settings=settings, **SIZES)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in found.network.modules())
    _, held_out = split_windows(len(recording.windows), 10, settings.held_out)
    others = Recording(recording.stimulus[held_out.start :], recording.counts[:, held_out.start :], 10)
    best = found.history[found.history[-1].best - 1]
    r = score_retina(found.network, others).correlation
    assert float(r.mean()) == pytest.approx(best.held_out_correlation, abs=1e-5)
    scores = score_retina(
        found.network, simulator.record(stimulus("natural_movie", 600, (9, 9), seed=2), repeats=10, seed=2)
    )
    assert scores.share is not None
    assert float(scores.share.min()) > 0.6
    assert best.held_out_loss == min(one.held_out_loss for one in found.history)
    assert best.held_out_loss < found.history[0].held_out_loss


def test_a_stopped_fit_goes_on_bit_for_bit(recording: Recording, tmp_path: Path) -> None:
    settings = FitSettings(epochs=4, batch_size=64, seed=3)
    straight = fit_retina(recording, settings=settings, folder=tmp_path / "a", **SIZES)
    for number in (1, 3):
        with pytest.raises(_Stopped):
            fit_retina(recording, settings=settings, folder=tmp_path / "b", progress=_stop_after(number), **SIZES)
        assert not (tmp_path / "b" / "report.json").exists()
        with pytest.raises(InputError, match="no finished fit"):
            open_fitted(tmp_path / "b")
    again = fit_retina(recording, settings=settings, folder=tmp_path / "b", **SIZES)
    assert again.history == straight.history
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    read = open_fitted(tmp_path / "b")
    assert (read.settings, read.history) == (settings, straight.history)
    assert torch.equal(read.network(recording.windows[:3]), straight.network(recording.windows[:3]))
    in_memory = fit_retina(recording, settings=settings, **SIZES)
    assert in_memory.history == straight.history
    other = FitSettings(epochs=4, batch_size=32, seed=3)
    with pytest.raises(InputError, match=r"holds another fit: fit\.batch_size: 64 there, 32 now"):
        fit_retina(recording, settings=other, folder=tmp_path / "b", **SIZES)


def test_the_best_epoch_is_kept_and_patience_ends(recording: Recording) -> None:
    """With a learning rate that spoils everything the first epochs are best, and the fit ends early."""
    settings = FitSettings(epochs=30, batch_size=64, learning_rate=0.3, patience=2)
    found = fit_retina(recording, settings=settings, **SIZES)
    assert found.stopped
    last = found.history[-1]
    assert last.number - last.best == 2
    _, held_out = split_windows(len(recording.windows), 10, settings.held_out)
    chosen = slice(held_out.start, held_out.stop)
    with torch.no_grad():
        rates = found.network(recording.windows[chosen]).double()
    loss = float(poisson_loss(rates, recording.response[chosen].double()))
    assert loss == pytest.approx(found.history[last.best - 1].held_out_loss, rel=1e-4)


def test_the_given_network_is_not_changed(recording: Recording) -> None:
    network = RetinaNetwork(2, frames=10, size=(9, 9), **SIZES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit_retina(recording, network, settings=FitSettings(epochs=1))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    with pytest.raises(InputError, match="given twice"):
        fit_retina(recording, network, channels=(2, 2))
    with pytest.raises(InputError, match="for 3 cells"):
        fit_retina(recording, RetinaNetwork(3, frames=10, size=(9, 9), **SIZES))


def test_what_is_refused(recording: Recording) -> None:
    with pytest.raises(InputError, match="held_out lies in"):
        FitSettings(held_out=1.0)
    broken = Recording(recording.stimulus * float("nan"), recording.counts, 10)
    with pytest.raises(NonFiniteError, match="smaller learning_rate"):
        fit_retina(broken, settings=FitSettings(epochs=1), **SIZES)


def test_held_out_windows_share_no_frame() -> None:
    fitted, held_out = split_windows(100, 8, 0.1)
    assert (fitted.stop, held_out) == (83, range(90, 100))
    assert fitted[-1] + 8 - 1 < held_out[0]
    with pytest.raises(InputError, match="too few"):
        split_windows(8, 8, 0.2)


def test_poisson_loss_is_least_at_the_truth() -> None:
    counts = torch.tensor([[0.0, 2.0]])
    rates = torch.tensor([[1e-6, 2.0]])
    assert float(poisson_loss(rates, counts)) == pytest.approx((2 - 2 * 0.6931472) / 2, abs=1e-5)
    for factor in (0.8, 1.2):
        assert poisson_loss(rates * factor, counts) > poisson_loss(rates, counts)
