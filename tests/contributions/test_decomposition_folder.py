"""`decompose` and its folder: kills, refusals, scores by their formulas, what is read again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decomposition_data import planted
from torch import Tensor

from backlight.contributions.decompose import decompose, split_rows
from backlight.contributions.decomposed import Decomposed, open_decomposed
from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Work
from backlight.decompositions.pca import PCA
from backlight.decompositions.relu_sae import ReLUSAE
from backlight.decompositions.scaling import Scaled, global_std, kept, moments
from backlight.decompositions.scores import Scores
from backlight.decompositions.topk_sae import TopKSAE
from backlight.errors import InputError, UnknownNameError
from backlight.store.rows import TensorRows

pytest.importorskip("sklearn")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_a_kill_at_any_write_leaves_a_folder_that_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    script = Path(__file__).with_name("decomposition_killing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
    folders = sorted(tmp_path.iterdir())
    for folder in folders:
        name = folder.name.partition("-")[0]
        whole = {path.relative_to(tmp_path / f"{name}-whole"): path for path in (tmp_path / f"{name}-whole").rglob("*")}
        assert {path.relative_to(folder) for path in folder.rglob("*")} == set(whole), folder.name
        for part, path in whole.items():
            if path.is_file():
                assert (folder / part).read_bytes() == path.read_bytes(), f"{folder.name}: {part}"


def made(folder: Path, x: Tensor, **settings: Any) -> Decomposed:
    given = {"method": "TopKSAE", "modes": 8, "k": 2, "epochs": 2, **settings}
    return decompose(TensorRows(x), "layer4.1", given.pop("method"), folder, **given)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    x, _ = planted(100, channels=12)
    told: list[int] = []
    one = made(tmp_path, x, progress=lambda epoch: told.append(epoch.number), sign="positive")
    again = open_decomposed(tmp_path)
    assert told == [1, 2]
    made(tmp_path, x, progress=lambda epoch: told.append(epoch.number))
    assert told == [1, 2]  # nothing is fitted again
    assert (again.site, again.quantity, again.sign) == ("layer4.1", "contributions", "positive")
    assert again.held_out.sum() == 20
    fit = x[torch.from_numpy(~again.held_out)]
    assert again.scale == pytest.approx(float(fit.std(unbiased=False)), rel=1e-6)
    z = again.decomposition.encode(x / again.scale)
    torch.testing.assert_close(again.loadings.read(0, 100), z)
    assert again.loadings.shape == (100, 8)
    assert again.loadings.read(3, 5).shape == (2, 8)
    assert torch.equal(one.modes, again.modes)
    # what was held out was not seen
    other = x.clone()
    other[torch.from_numpy(again.held_out)] += 3
    assert torch.equal(made(tmp_path / "other", other).modes, again.modes)
    assert {path.name for path in tmp_path.iterdir()} - {"other"} == {
        "run.json",
        "report.json",
        "decomposition",
        "loadings.npy",
        "held_out.npy",
        "modes.safetensors",
        ".lock",
    }
    with pytest.raises(InputError, match="without a store"):
        _ = again.store


def test_scores_are_their_formulas(tmp_path: Path) -> None:
    x, _ = planted(100, channels=12)
    one = made(tmp_path, x)
    for part, rows in (("fitted", ~one.held_out), ("held_out", one.held_out)):
        y = (x.numpy() / one.scale).astype(np.float64)[rows]
        z = one.loadings.read(0, 100).numpy()[rows].astype(np.float64)
        offset = one.decomposition.offset
        assert offset is not None
        modes = one.modes.double().numpy()
        decoded = z @ modes + offset.double().numpy()
        error = ((y - decoded) ** 2).sum()
        total = ((y - y.mean(0)) ** 2).sum()
        report = one.report[part]
        assert report["r2"] == pytest.approx(1 - error / total, rel=1e-5)
        grand = 1 - ((y - decoded) ** 2).mean() / (((y - y.mean()) ** 2).mean() + 1e-6)
        assert report["grand_mean_r2"] == pytest.approx(grand, rel=1e-5)
        assert report["l0"] == pytest.approx((z != 0).sum(1).mean())
        assert report["rows"] == rows.sum()
    everything = one.loadings.read(0, 100)
    assert torch.equal(one.alive, (everything > 0).any(0))
    assert one.report["alive"] == int(one.alive.sum())
    assert one.report["dead_share"] == pytest.approx(1 - float(one.alive.float().mean()))
    np.testing.assert_allclose(one.frequency.numpy(), (z != 0).mean(0), rtol=1e-6)
    for mode in range(8):
        without = ((y - decoded + z[:, mode : mode + 1] * modes[mode]) ** 2).sum()
        assert float(one.explained[mode]) == pytest.approx((without - error) / total, rel=1e-3, abs=1e-6)


def test_the_means_of_channels_score_zero_and_the_references_score_more() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(400, 20, generator=draw) * torch.linspace(0.2, 3, 20)
    mean = x.mean(0)
    found = Scores()
    for part in x.split(70):
        found.add(part, mean.expand(len(part), 20), torch.zeros(len(part), 1), torch.zeros(1, 20))
    assert found.r2 == pytest.approx(0, abs=1e-5)
    assert found.grand_mean_r2 > 0.3
    flat = Scores()
    flat.add(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, 1), torch.zeros(1, 2))
    assert flat.r2 is None


def test_moments_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(9001, 5, generator=draw) * torch.tensor([1.0, 2, 3, 4, 5]) + 1000
    found = moments(TensorRows(x))
    torch.testing.assert_close(found.mean, x.double().mean(0))
    torch.testing.assert_close(found.squares / 9001, x.double().var(0, unbiased=False))
    assert global_std(TensorRows(x)) == pytest.approx(float(x.double().std(unbiased=False)))
    torch.testing.assert_close(Scaled(TensorRows(x), 4.0).read(3, 5), x[3:5] / 4)
    with pytest.raises(InputError, match="equal"):
        global_std(TensorRows(torch.ones(3, 2)))
    rows = Scaled(TensorRows(x), 1.0)
    assert kept(rows, 100) is rows
    assert isinstance(kept(rows), TensorRows)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"modes": 9}, "settings.n_modes: 8 there, 9 now"),
        ({"epochs": 3}, "settings.epochs: 2 there, 3 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"held_out": 0.1}, "held_out: 0.2 there, 0.1 now"),
        ({"sign": "sum"}, "sign: positive there, sum now"),
        ({"method": "ReLUSAE", "k": None}, "method: TopKSAE there, ReLUSAE now"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    x, _ = planted(40, channels=6)
    made(tmp_path, x)
    if changed.get("k", 0) is None:
        changed = {"method": ReLUSAE(n_modes=8, epochs=2), "modes": None}
        with pytest.raises(InputError, match=said):
            decompose(TensorRows(x), "layer4.1", changed["method"], tmp_path)
        return
    with pytest.raises(InputError, match=said):
        made(tmp_path, x, **changed)


def test_other_rows_other_files_and_another_process_are_refused(tmp_path: Path) -> None:
    x, _ = planted(40, channels=6)
    made(tmp_path / "a", x)
    with pytest.raises(InputError, match=r"data\.entries"):
        made(tmp_path / "a", x + 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("")
    with pytest.raises(InputError, match="other files"):
        made(tmp_path / "b", x)
    pytest.importorskip("fcntl")
    import fcntl

    with (tmp_path / "a" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            made(tmp_path / "a", x)
    (tmp_path / "a" / "report.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        open_decomposed(tmp_path / "a")
    with pytest.raises(InputError, match="no decomposition"):
        open_decomposed(tmp_path / "none")


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x, _ = planted(40, channels=6)
    with pytest.raises(UnknownNameError, match="auxiliary"):
        made(tmp_path, x, auxilary=1.0)
    with pytest.raises(UnknownNameError, match="revived"):
        decompose(TensorRows(x), "a", "ThresholdSAE:revive", tmp_path)
    with pytest.raises(InputError, match="twice"):
        decompose(TensorRows(x), "a", PCA(n_modes=2), tmp_path, modes=3)
    with pytest.raises(InputError, match="needs labels"):
        decompose(TensorRows(x), "a", "ClassMeans", tmp_path)
    for share in (-0.1, 1.0, 0.001):
        with pytest.raises(InputError, match=str(share)):
            split_rows(40, share, 0)
    with pytest.raises(InputError, match="seed"):
        split_rows(40, 0.2, -1)
    with pytest.raises(InputError, match="infx"):
        made(tmp_path, x, modes="infx")
    assert not split_rows(40, 0.0, 0).any()
    assert (split_rows(40, 0.2, 0) != split_rows(40, 0.2, 1)).any()


def test_labels_of_held_out_rows_are_not_used(tmp_path: Path) -> None:
    x, _ = planted(50, channels=6)
    labels = np.arange(50) % 5
    one = decompose(TensorRows(x), "a", "ClassMeans", tmp_path / "a", labels=labels)
    fit = ~one.held_out
    expected = np.stack([x.numpy()[fit & (labels == label)].mean(0) for label in range(5)]) / one.scale
    np.testing.assert_allclose(one.modes.numpy(), expected, rtol=1e-5)
    with pytest.raises(InputError, match="labels"):
        decompose(TensorRows(x), "a", "ClassMeans", tmp_path / "a", labels=labels[::-1].copy())


def test_a_store_is_decomposed_and_found_again(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    from backlight.store import Store

    x, _ = planted(60, channels=6)
    store = Store.of(tmp_path / "store", {"layer4.1": x - 0.3}, columns={"label": torch.arange(60) % 3})
    one = decompose(store, "layer4.1", "PCA", tmp_path / "out", sign="positive")
    assert one.store is store
    assert one.report["scale"] > 0
    expected = decompose(TensorRows((x - 0.3).clamp(min=0)), "layer4.1", "PCA", tmp_path / "rows")
    assert torch.equal(one.modes, expected.modes)
    assert decompose(store, "layer4.1", "ClassMeans", tmp_path / "means").modes.shape == (3, 6)
    again = open_decomposed(tmp_path / "out")
    assert again.store.names == store.names
    shutil.move(tmp_path / "store", tmp_path / "moved")
    with pytest.raises(InputError, match="store=") as error:
        _ = open_decomposed(tmp_path / "out").store
    assert "is no store" in str(error.value)
    assert open_decomposed(tmp_path / "out", tmp_path / "moved").store.names == store.names
    Store.of(tmp_path / "wrong", {"layer4.1": x[:20]})
    with pytest.raises(InputError, match="has not the samples"):
        _ = open_decomposed(tmp_path / "out", tmp_path / "wrong").store


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    x, _ = planted(40, channels=6)
    TopKSAE(n_modes=8, k=2, epochs=2).fit(x, folder=tmp_path)
    with pytest.raises(InputError, match=r"settings\.k: 2 there, 3 now"):
        TopKSAE(n_modes=8, k=3, epochs=2).fit(x, folder=tmp_path)
    with pytest.raises(InputError, match="rows"):
        TopKSAE(n_modes=8, k=2, epochs=2).fit(x[:30], folder=tmp_path)
    with pytest.raises(InputError, match="rows"):
        TopKSAE(n_modes=8, k=2, epochs=2).fit(x + 1, folder=tmp_path)  # as many others
    (tmp_path / "checkpoint.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot read"):
        TopKSAE(n_modes=8, k=2, epochs=2).fit(x, folder=tmp_path)


def test_checkpoints_take_little_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))  # a write takes a second
    one = PCA(n_modes=1)
    kept = Checkpoints(one, Work(TensorRows(torch.rand(3, 2)), folder=tmp_path))
    written = []
    for number in range(100):
        before = kept._at
        kept.write({"x": torch.tensor(number)}, {}, [], last=number == 99)
        if kept._at != before:
            written.append(number)
    assert written[0] == 0
    assert written[-1] == 99
    assert 4 <= len(written) <= 8
    found = kept.read()
    assert found is not None
    assert int(found[0]["x"]) == 99


def test_saved_settings_must_be_known(tmp_path: Path) -> None:
    x, _ = planted(40, channels=6)
    PCA(n_modes=2).fit(x).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        Decomposition.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "settings": {"x": 1}}))
    with pytest.raises(InputError, match="settings"):
        Decomposition.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="not a TopKSAE"):
        TopKSAE.load(tmp_path)
