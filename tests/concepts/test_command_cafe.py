"""`backlight cafe` and `backlight concepts localise`, on a small network with an SAE that is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from routed_network import drawn_dictionary
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.concepts.cafe import Cafe
from backlight.data import ClassNames, Preprocessing
from backlight.models import LoadedModel

timm = pytest.importorskip("timm")
pytest.importorskip("matplotlib")
RUN = CliRunner()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, a dictionary of 12 latents, and a ViT that `--model` gives whatever it is called."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / "pictures" / f"{name}.png"
        )
    made = drawn_dictionary(12, n_modes=12, k=3)
    made.state = {name: tensor.float() for name, tensor in made.state.items()}
    made.save(tmp_path / "sae")
    torch.manual_seed(3)
    size: dict[str, Any] = {"img_size": 24, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 3}
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **size).eval()
    preprocessing = Preprocessing(size=(24, 24), resize=(24, 24))
    layers = tuple(name for name, _ in network.named_modules() if name)
    loaded = LoadedModel("small", network, preprocessing, ClassNames.of(["a", "b", "c"]), layers, "drawn")
    monkeypatch.setattr("backlight.cli.networks.load", lambda *args, **kwargs: loaded)
    return tmp_path


def run(*arguments: Any) -> Any:
    return RUN.invoke(app, [str(one) for one in arguments])


def cafe(place: Path, *more: Any) -> Any:
    return run(
        "cafe",
        place / "pictures" / "a.png",
        "--site",
        "blocks.1",
        "--dictionary",
        place / "sae",
        "--out",
        place / "out",
        *more,
    )


def test_pages_and_numbers_of_the_strongest_latents(place: Path) -> None:
    done = cafe(place, "--top", 2, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert len(told["latents"]) == 2
    for record in told["latents"]:
        figure = Path(record["figure"])
        assert figure.is_file()
        assert json.loads((figure.parent / f"latent-{record['latent']}.json").read_text()) == record
        (picture,) = record["pictures"]
        assert np.shape(picture["field"]) == (3, 3)
        values = [*np.ravel(picture["activation"]), picture["class_activation"]]
        assert max(values) == pytest.approx(picture["z"])
        assert 0 <= picture["prefix_share"] <= 1


def test_one_latent_on_two_pictures_is_what_the_api_gives(place: Path) -> None:
    every = json.loads(cafe(place, "--top", 1, "--json").stdout)["latents"][0]["latent"]
    done = cafe(
        place,
        place / "pictures" / "b.png",
        "-k",
        every,
        "--attributor",
        "integrated-gradients",
        "--set",
        "n_steps=3",
        "--json",
    )
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)["latents"]
    assert record["attributor"] == "IntegratedGradients"
    from backlight.cli.cafe import attributor_with_settings, open_dictionary
    from backlight.cli.networks import open_network

    network = open_network("small", None, False, None)
    integrated = attributor_with_settings("IntegratedGradients", ["n_steps=3"])
    made = Cafe(network.front, open_dictionary(place / "sae"), network.site("blocks.1"), attributor=integrated)
    for picture, name in zip(record["pictures"], ("a", "b"), strict=True):
        expected = made.explain(network.picture(place / "pictures" / f"{name}.png"), every)
        assert np.allclose(picture["field"], expected.map[0].numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-k", "99"], "latent [99] is out of range: there are 12"),
        (["--token", "clss"], "close matches: class"),
        (["--attributor", "AtnLRP"], "close matches: AttnLRP"),
        (["--set", "steps=3"], "setting of AttnLRP"),
        (["--dictionary", "nowhere"], "nowhere"),
        (["--site", "blocks.7"], "blocks.7"),
        (["--site", "head"], "the dictionary 12 channels"),
        (["nothing.png"], "nothing.png"),
    ],
)
def test_errors_are_one_line(place: Path, more: list[str], message: str) -> None:
    done = cafe(place, *more)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_latent_that_is_off_is_told_with_those_that_are_on(place: Path) -> None:
    told = json.loads(cafe(place, "--token", "class", "--top", 12, "--json").stdout)["latents"]
    off = next(number for number in range(12) if number not in [one["latent"] for one in told])
    done = cafe(place, "--token", "class", "-k", off)
    assert done.exit_code == 2
    assert f"latent {off} is off at token 'class'; on in a.png are {told[0]['latent']}, " in done.stderr


def test_localise_writes_a_table_and_a_figure(place: Path) -> None:
    arguments = ("--site", "blocks.1", "--dictionary", place / "sae", "--out", place / "local", "--count", 5)
    done = run("concepts", "localise", place / "pictures", *arguments, "--radius", 1, "--top", 3)
    assert done.exit_code == 0, done.output
    record = json.loads((place / "local" / "localisation.json").read_text())
    assert (record["site"], record["radius"], record["images"], record["modes"]) == ("blocks.1", 1.0, 2, 12)
    assert len(record["latents"]) == min(5, 12 - record["dead"])
    assert done.stdout.strip() == (place / "local" / "localisation.md").read_text().strip()
    assert (place / "local" / "localisation.csv").read_text().count("\n") == 1 + len(record["latents"])
    assert (place / "local" / "localisation.png").stat().st_size > 1000
    again = run("concepts", "localise", place / "pictures", *arguments, "--radius", 1, "--top", 3, "--json")
    assert json.loads(again.stdout)["latents"] == record["latents"]


def test_a_checkpoint_of_another_library_is_a_dictionary_too(tmp_path: Path) -> None:
    import json as plain_json

    from safetensors.torch import save_file

    from backlight.cli.cafe import open_dictionary

    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    tensors = {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    (tmp_path / "cfg.json").write_text(plain_json.dumps({"architecture": "standard", "d_in": 4, "d_sae": 6}))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    x = torch.randn(5, 4, generator=draw)
    found = open_dictionary(tmp_path).encode(x)
    before = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(found, before.relu())
