"""Training: its length, its rate, its checkpoints amid an epoch, and what is measured on the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from decomposition_data import planted

from backlight.decompositions import Decomposition, Epoch, decomposition
from backlight.decompositions.decomposition import Work
from backlight.decompositions.matching import dictionary_stability, match
from backlight.decompositions.normalisation import geometric_median
from backlight.decompositions.pca import PCA
from backlight.decompositions.relu_sae import ReLUSAE
from backlight.decompositions.schedules import share
from backlight.decompositions.scores import score
from backlight.decompositions.topk_sae import TopKSAE
from backlight.decompositions.training import _Training
from backlight.errors import InputError
from backlight.store.rows import TensorRows, shuffled

pytest.importorskip("sklearn")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "steps", "passes"),
    [
        ({"epochs": 3}, 12, 3),  # 130 rows in batches of 40: 4 a pass
        ({"epochs": 3, "drop_last": True}, 9, 3),
        ({"steps": 10}, 10, 3),
        ({"tokens": 401}, 11, 3),
        ({"epochs": 2, "pass_steps": 3}, 8, 4),  # 3 + 1 of each epoch
        ({"steps": 6, "pass_steps": 3}, 6, 3),
        ({"steps": 7, "pass_steps": 3}, 7, 3),
        ({"steps": 2, "pass_steps": 100}, 2, 1),
    ],
)
def test_a_training_is_as_long_as_it_is_told(settings: dict[str, Any], steps: int, passes: int) -> None:
    x, _ = planted(130, channels=12)
    one = TopKSAE(n_modes=20, k=3, batch_size=40, **settings)
    run = _Training(one, Work(TensorRows(x)), CPU)
    assert (run.steps, run.passes) == (steps, passes)
    told: list[Epoch] = []
    one.fit(x, progress=told.append)
    assert [epoch.number for epoch in told] == list(range(1, passes + 1))
    assert {epoch.total for epoch in told} == {passes}
    assert one.done == steps - 1


def test_passes_are_the_epoch_in_parts() -> None:
    x, _ = planted(130, channels=12)
    given = {"n_modes": 20, "k": 3, "batch_size": 40, "auxiliary": 0.0, "epochs": 3}
    whole, parts = TopKSAE(**given).fit(x), TopKSAE(**given, pass_steps=3).fit(x)
    assert torch.equal(whole.modes, parts.modes)
    seen = [(40, 40, 40, 10)] * 3
    assert [tuple(len(batch) for batch in shuffled(TensorRows(x), 40, 0, epoch)) for epoch in range(3)] == seen
    for number, epoch in enumerate(whole.history):
        first, second = parts.history[2 * number : 2 * number + 2]
        assert (120 * first.loss + 10 * second.loss) / 130 == pytest.approx(epoch.loss, rel=1e-9)
        assert (120 * first.l0 + 10 * second.l0) / 130 == pytest.approx(epoch.l0, rel=1e-9)


def test_the_rate_rises_and_falls() -> None:
    cosine = [share("cosine", step, 110, 10, 0.2, 0.1) for step in range(110)]
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[60] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0.1 < cosine[-1] < 0.101
    linear = [share("linear", step, 100, 0, 0.25, 0.0) for step in range(100)]
    assert linear[:76] == [1.0] * 76
    assert linear[75:] == pytest.approx([(100 - step) / 25 for step in range(75, 100)])
    assert [share("constant", step, 100, 4, 0.2, 0.0) for step in (0, 3, 99)] == [0.25, 1.0, 1.0]


def test_the_rate_is_the_steps_and_returns() -> None:
    x, _ = planted(40, channels=6)
    one = ReLUSAE(n_modes=4, batch_size=10, epochs=2, schedule="cosine", warm_up=3, learning_rate=0.1)
    run = _Training(one, Work(TensorRows(x)), CPU)
    rates, step = [], run.optimiser.step

    def recorded() -> None:
        rates.append(run.optimiser.param_groups[0]["lr"])
        step()

    run.optimiser.step = recorded  # type: ignore[method-assign, assignment]
    run.run_pass()
    run.run_pass()
    assert rates == pytest.approx([0.1 * share("cosine", i, 8, 3, 0.2, 0.0) for i in range(8)])
    assert run.optimiser.param_groups[0]["lr"] == 0.1
    wide = decomposition("BatchTopKSAE")(rate_by_width=True, learning_rate=2e-4)
    assert wide._rate(2**16) == pytest.approx(1e-4)  # type: ignore[attr-defined]


def test_gradients_are_clipped_together() -> None:
    x, _ = planted(40, channels=6)
    one = ReLUSAE(n_modes=4, clip=1e-3, loss="sum")
    run = _Training(one, Work(TensorRows(x)), CPU)
    run.run_pass()
    gradients = [tensor.grad for tensor in run.trained.values() if tensor.grad is not None]
    assert float(torch.stack([g.norm() for g in gradients]).norm()) == pytest.approx(1e-3, rel=1e-3)


class StopError(Exception):
    """Of a test."""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MatryoshkaSAE", {"k": 3, "random_prefixes": 4, "threshold_start": 3, "anneal": 5, "dead_after": 60}),
        ("JumpReLUSAE", {"target": 3.0, "schedule": "plateau", "price_warm_up": 6, "normalise": "token"}),
        ("ArchetypalSAE", {"k": 3, "points": 20, "schedule": "cosine", "warm_up": 2}),
        ("ReLUSAE", {"revive_every": 2, "schedule": "step", "normalise": "global", "centre": "median"}),
        ("ThresholdSAE", {"dropout": 0.5, "threshold": 0.5}),
    ],
)
def test_what_stops_amid_an_epoch_goes_on_bit_for_bit(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = planted(130, channels=12)
    monkeypatch.setattr("backlight.decompositions.checkpoints.SHARE", float("inf"))
    given = {"n_modes": 20, "batch_size": 30, "epochs": 2, "pass_steps": 2, **settings}
    whole = decomposition(name)(**given).fit(x, held_out=x[:20])
    for stop in (1, 2, 4):

        def tell(epoch: Epoch, stop: int = stop) -> None:
            if epoch.number == stop:
                raise StopError

        folder = tmp_path / str(stop)
        with pytest.raises(StopError):  # after the pass, before its checkpoint: it is done again
            decomposition(name)(**given).fit(x, held_out=x[:20], folder=folder, progress=tell)
        again = decomposition(name)(**given).fit(x, held_out=x[:20], folder=folder)
        assert set(again.state) == set(whole.state)
        for key, tensor in whole.state.items():
            assert torch.equal(again.state[key], tensor), (stop, key)
        assert again.history == whole.history


def test_dead_is_counted_in_rows() -> None:
    x, _ = planted(100, channels=12)
    seen: list[int] = []

    class Watched(TopKSAE):
        def _pass(self, x: Any, draw: Any, silent: Any) -> Any:
            seen.append(int(silent.sum()))
            return super()._pass(x, draw, silent)

    one = Watched(n_modes=50, k=1, batch_size=20, epochs=2, dead_after=40, auxiliary=0.0)
    run = _Training(one, Work(TensorRows(x)), CPU)
    with torch.no_grad():
        one.state["bias"][:7] = -100.0
    run.run_pass()
    run.run_pass()
    assert seen[:2] == [0, 0]  # 0 and 20 rows without
    assert min(seen[2:]) >= 7


def test_what_is_measured_on_held_out_rows() -> None:
    x, _ = planted(200, channels=12)
    held_out = torch.cat((x[150:], torch.zeros(2, 12)))
    one = TopKSAE(n_modes=20, k=3, epochs=3, batch_size=40).fit(x[:150], held_out=held_out)
    z = one.encode(held_out)
    length = held_out.norm(dim=1)
    error = ((held_out - (z @ one.modes + one.offset)).norm(dim=1) / length)[length > 0]
    assert 10 < len(error) < 51
    last = one.history[-1]
    assert last.held_out_relative == pytest.approx(float(error.mean()), rel=1e-5)  # rows of 0 have none
    assert last.held_out_l0 == pytest.approx(float((z != 0).sum(1).double().mean()))
    assert last.dead_share == 1 - last.alive / 20
    found = score(one, TensorRows(held_out))
    assert found.dead_share == pytest.approx(1 - float((z != 0).any(0).double().mean()))
    assert found.record()["relative"] == pytest.approx(float(error.mean()), rel=1e-5)


def test_modes_of_two_fits_are_matched_one_to_one() -> None:
    x, _ = planted(100, channels=12)
    one, other = PCA(n_modes=5).fit(x), PCA(n_modes=5).fit(x)
    other.state["modes"] = one.modes[torch.tensor([3, 1, 4, 0, 2])] * torch.tensor([[2.0], [1], [1], [3], [1]])
    assert dictionary_stability([one, other]) == pytest.approx(1)
    rows, columns, cosine = match(one.modes, other.modes)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 3), (1, 1), (2, 4), (3, 0), (4, 2)]
    assert cosine.tolist() == pytest.approx([1] * 5)
    with pytest.raises(InputError, match="two fits"):
        dictionary_stability([one])


def test_the_geometric_median_is_not_moved_far_by_outliers() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=draw)
    x[:20] += 1000
    found = geometric_median(x)
    assert float(found.norm()) < 0.5
    assert float(x.mean(0).norm()) > 100
    assert float((x - found).norm(dim=1).sum()) < float((x - found - 0.01).norm(dim=1).sum())
    directions = torch.nn.functional.normalize(x.double() - found.double(), dim=1)
    torch.testing.assert_close(directions.mean(0), torch.zeros(3).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3, "tokens": 3},
        {"steps": 0},
        {"dead_after": 0},
        {"clip": -1.0},
        {"last_rate": 2.0},
        {"decay": 0.0},
        {"beta2": 1.0},
        {"normalise": "layer"},
        {"centre": "middle"},
        {"loss": "l2"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ReLUSAE(n_modes=4, **settings).fit(torch.rand(20, 5))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BatchTopKSAE", {"k": 2, "threshold_rate": 0.0}),
        ("MatryoshkaSAE", {"k": 2, "groups": (0.5, 0.4)}),
        ("MatryoshkaSAE", {"k": 2, "groups": (0.001, 0.999)}),
        ("JumpReLUSAE", {"penalty": "l1"}),
        ("JumpReLUSAE", {"penalty": "tanh"}),
        ("JumpReLUSAE", {"bandwidth": 0.0}),
        ("ArchetypalSAE", {"k": 2, "normalise": "token"}),
        ("ArchetypalSAE", {"k": 2, "relaxation": -1.0}),
    ],
)
def test_settings_of_kinds_that_cannot_be_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        decomposition(name)(n_modes=20, **settings).fit(torch.rand(20, 5))


def test_presets_are_settings_of_their_class(tmp_path: Path) -> None:
    for name in ("ReLUSAE", "BatchTopKSAE", "MatryoshkaSAE", "JumpReLUSAE", "ArchetypalSAE"):
        cls = decomposition(name)
        for preset in cls.presets:
            one = cls.preset(preset)
            one.check(100_000, 384)
        assert cls.preset(next(iter(cls.presets))) == cls()
    bussmann = decomposition("MatryoshkaSAE")()
    assert isinstance(bussmann, Decomposition)
    expected = {"k": 32, "learning_rate": 3e-4, "beta2": 0.99, "batch_size": 4096, "auxiliary": 1 / 32, "spare": 512}
    assert {key: bussmann.settings()[key] for key in expected} == expected
    assert bussmann.count(1024) == 16384
    assert bussmann.prefixes(16384) == [1024, 2048, 4096, 8192, 16384]  # type: ignore[attr-defined]


@pytest.mark.parametrize("preset", ["dictionary_learning", "pach"])
def test_a_short_training_learns_its_threshold_too(preset: str) -> None:
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    one = decomposition("MatryoshkaSAE").preset(preset, n_modes=64, k=4, batch_size=100, epochs=3, spare=8).fit(rows)
    assert 2 < float((one.encode(rows) > 0).float().sum(1).mean()) < 8


def test_a_warm_up_ends_within_the_training() -> None:
    assert [share("constant", step, 8, 1000, 0.2, 0.0) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
