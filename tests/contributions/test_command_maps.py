"""`backlight maps`: pictures, and channels or a decomposition's folder, to figures, arrays and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

pytest.importorskip("zarr")
pytest.importorskip("matplotlib")

import backlight
from backlight.cli.contribution_maps import maps as command
from backlight.contributions.decompose import decompose
from backlight.contributions.map_display import map_masks
from backlight.contributions.maps import contribution_maps
from backlight.contributions.mode_sets import class_sets, mode_sets
from backlight.contributions.modes import top_channels
from backlight.data import sample_image
from backlight.errors import BacklightError, InputError, ModelError, UnknownNameError
from backlight.store import Store

app = typer.Typer()
app.command()(command)
LAYER = "blocks.6.0"  # 320 channels
CAT = 281


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    sample_image("chelsea").save(path)
    return path


def stored(place: Path, sign: str = "positive", identity: dict | None = None) -> Path:
    """Modes of 60 samples, of which a third are cats, to whom column 7 belongs."""
    generator = torch.Generator().manual_seed(0)
    labels = np.array([CAT, 3, 5] * 20)
    rows = torch.rand(60, 320, generator=generator)
    rows[:, 7] += torch.from_numpy(4.0 * (labels == CAT))
    parts = (rows, -rows.flip(1))
    store = Store.of(place / "store", {LAYER: {"contributions": parts}}, columns={"label": labels}, identity=identity)
    method = "NMF" if sign == "positive" else "KMeans"
    decompose(store, LAYER, method, place / "modes", modes=4, sign=sign, held_out=0.0)
    return place / "modes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("modes"))


def run(*arguments: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def test_channels(cat: Path, tmp_path: Path) -> None:
    """What is written is what the library computes."""
    given = (cat, "--layer", LAYER, "--channels", "1,2,3", "--channels", "40", "--target", "tiger cat", "--json")
    code, out, err = run(*given, "--out", tmp_path / "out")
    assert code == 0
    (record,) = json.loads(out)
    assert record["target"]["name"] == "tiger cat"
    assert [one["channels"] for one in record["sets"]] == [[1, 2, 3], [40]]
    assert Path(record["figure"]).read_bytes()[:4] == b"\x89PNG"
    assert record["figure"] in err
    loaded = backlight.load("efficientnet_lite0")
    x = loaded.preprocessing.normalise(loaded.preprocessing.image(cat))[None]
    expected = contribution_maps(loaded.model, x, LAYER, [[1, 2, 3], [40]], record["target"]["index"])
    with np.load(record["array"]) as arrays:
        scale = expected.total.abs().max()
        assert np.allclose(arrays["total"], expected.total[:, 0], atol=1e-4 * scale)
        assert np.allclose(arrays["positive"], expected.positive[:, 0], atol=1e-4 * scale)
        assert np.allclose(arrays["masks"], map_masks(expected)[:, 0], atol=1e-2)
        assert arrays["input"].shape == (3, 224, 224)
        assert arrays["channels"].shape == (320,)
        assert json.loads(str(arrays["metadata"]))["layer"] == LAYER
    for one, number in zip(record["sets"], expected.contributions[:, 0], strict=True):
        assert one["contribution"] == pytest.approx(float(number), rel=1e-3, abs=1e-4)
        assert one["positive"] + one["negative"] == pytest.approx(one["contribution"], abs=1e-3)


def test_modes(cat: Path, folder: Path, tmp_path: Path) -> None:
    given = (cat, "--modes", folder, "--json", "--out", tmp_path / "out", "--signed", "--format", "svg")
    code, out, _ = run(*given, "--class", CAT, "--count", 2, "--display", "reference")
    assert code == 0
    (record,) = json.loads(out)
    assert len(record["sets"]) == 2
    first = record["sets"][0]
    assert 7 in first["channels"]
    assert first["r"] > 0.8
    assert first["r"] >= record["sets"][1]["r"]
    assert record["layer"] == LAYER
    text = Path(record["figure"]).read_text()
    assert "<svg" in text
    code, out, _ = run(*given, "--mode", 3, "--mode", 0, "--top", 5, "--algorithm", "ActGrad", "--steps", 1)
    (record,) = json.loads(out)
    assert code == 0
    assert [one["mode"] for one in record["sets"]] == [3, 0]
    assert [len(one["channels"]) for one in record["sets"]] == [5, 5]
    assert record["algorithm"] == "ActGrad"


def test_pictures_that_fail(cat: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    code, out, err = run(broken, "--layer", LAYER, "--channels", "0", "--json", "--out", tmp_path / "out")
    assert code == 2
    assert "broken.png" in err
    assert "error" in json.loads(out)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --channels"),
        (("--channels", "1"), "--layer"),
        (("--channels", "1,x", "--layer", LAYER), "written 1,2,3"),
        (("--channels", "1", "--layer", LAYER, "--mode", "2"), "neither --mode"),
    ],
)
def test_options_that_do_not_fit(cat: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(cat, *arguments)


def test_layers_and_networks_that_do_not_fit(cat: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not of --layer blocks\.5\.3"):
        run(cat, "--modes", folder, "--layer", "blocks.5.3", "--out", tmp_path)
    with pytest.raises(UnknownNameError, match=r"blocks\.6\.0"):
        run(cat, "--channels", "1", "--layer", "blocks.6.00", "--out", tmp_path)
    other = stored(tmp_path, identity={"model": {"name": "resnet50", "parameters": "0" * 64}})
    with pytest.raises(ModelError, match="resnet50"):
        run(cat, "--modes", other, "--out", tmp_path)


def test_sets_of_modes_and_classes(folder: Path, tmp_path: Path) -> None:
    from backlight.contributions.decomposed import open_decomposed

    decomposed = open_decomposed(folder)
    (one,) = mode_sets(decomposed, [2], top=4)
    assert list(one.channels) == top_channels(decomposed.modes[2], count=4).tolist()
    assert one.title.startswith("mode 2: channels ")
    best = class_sets(decomposed, CAT, count=4, top=1)
    assert [s.r for s in best] == sorted((s.r for s in best), reverse=True)
    assert best[0].channels == (7,)
    with pytest.raises(InputError, match="no mode 4"):
        mode_sets(decomposed, [4])
    with pytest.raises(InputError, match="no sample is of class 9"):
        class_sets(decomposed, 9)
    negative = open_decomposed(stored(tmp_path, "negative"))
    assert class_sets(negative, CAT, count=1, top=1)[0].channels == (320 - 1 - 7,)
