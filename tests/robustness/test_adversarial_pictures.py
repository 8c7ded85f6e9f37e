"""Attacked pictures as files: what is written is what was attacked, by any preprocessing; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("typer")
import typer
from typer.testing import CliRunner

from backlight.cli.attack import attack
from backlight.data import ClassNames, Preprocessing
from backlight.errors import InputError, UnknownNameError
from backlight.models import LoadedModel
from backlight.robustness import evade, framed

app = typer.Typer()
app.command()(attack)


def photograph(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=(32, 32), resize=(37, 37), interpolation="bicubic"),
        Preprocessing(size=(32, 32), resize=(32, 32)),
        Preprocessing(size=(24, 32), resize=(30, 40), fit="squash"),
        Preprocessing(size=(24, 32), resize=(30, 40)),
        Preprocessing(size=(32, 32), resize=(40, 40), fit="contain"),
        Preprocessing.paper(32),
    ],
)
@pytest.mark.parametrize("size", [(50, 81), (90, 90), (61, 44)])
def test_a_file_is_read_as_exactly_the_attacked_pixels(
    preprocessing: Preprocessing, size: tuple[int, int], tmp_path: Path
) -> None:
    original = photograph(*size)
    x = preprocessing.image(original)
    other = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    for image in (other, x):
        Image.fromarray(framed(image, original, preprocessing)).save(tmp_path / "attacked.png")
        assert torch.equal(preprocessing.image(tmp_path / "attacked.png"), image)
    with pytest.raises(InputError, match="size"):
        framed(image[:, 1:], original, preprocessing)


def network() -> LoadedModel:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    names = ClassNames(("red", "green", "blue"))
    preprocessing = Preprocessing(size=(24, 24), resize=(28, 28), interpolation="bicubic")
    return LoadedModel("small", model.eval(), preprocessing, names, (), "drawn")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backlight.cli.networks.load", lambda *args, **kwargs: network())


def run(*arguments: Any) -> dict[str, Any]:
    found = CliRunner().invoke(app, [str(one) for one in (*arguments, "--json")])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def test_the_command_writes_what_evade_finds(tmp_path: Path) -> None:
    photograph(40, 60).save(tmp_path / "photo.png")
    loaded = network()
    x = loaded.preprocessing.image(tmp_path / "photo.png")[None]
    ranked = loaded.model(loaded.preprocessing.normalise(x))[0].argsort(descending=True).tolist()
    to = loaded.classes.name(ranked[1])
    record = run(tmp_path / "photo.png", "--to", to, "--eps", 24, "--steps", 12, "--out", tmp_path / "out")
    found = evade(loaded, x, to=ranked[1], eps=24 / 255, n_steps=12)
    assert torch.equal(loaded.preprocessing.image(record["picture"]), found.image[0])
    assert record["read_back"]["same_pixels"]
    assert record["read_back"]["prediction"]["name"] == record["after"]["name"] == to
    assert record["read_back"]["prediction"]["logit"] == record["after"]["logit"]
    assert record["reached"]
    assert record["change"]["linf_levels"] == 24
    assert record["classes"][1]["after"]["probability"] > record["classes"][1]["before"]["probability"]
    assert record == json.loads((tmp_path / "out" / f"photo.to-{to}.json").read_text())
    grey = np.asarray(Image.open(record["difference"]))
    change = (found.image[0] - x[0]).permute(1, 2, 0).numpy()
    assert np.array_equal(grey > 128, change > 0)

    record = run(tmp_path / "photo.png", "--method", "fgsm", "--norm", "l2", "--eps", 0.5, "--out", tmp_path / "out")
    assert record["change"]["l2"] <= 0.5
    assert record["steps"] == 1
    assert len(record["classes"]) == 2


def test_wrong_calls(tmp_path: Path) -> None:
    photograph(40, 60).save(tmp_path / "photo.png")
    with pytest.raises(UnknownNameError, match="green"):
        run(tmp_path / "photo.png", "--to", "gren", "--out", tmp_path)
    with pytest.raises(InputError, match="a level"):
        run(tmp_path / "photo.png", "--eps", 0.5, "--out", tmp_path)
