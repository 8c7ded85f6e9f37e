"""What the Explain tab computes and shows: the library's own numbers, drawn and packed without loss."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import backlight
from backlight.app.computation import Stopped, Watch
from backlight.app.drawing import SIDE, drawn_map
from backlight.app.explanation import begin, explained_by
from backlight.app.fields import effective_field, field_layers, position_at
from backlight.app.fitting import offered_methods, refusals
from backlight.app.method_settings import chosen_settings, method_settings
from backlight.app.predictions import PREDICTED, network_input
from backlight.app.shown import archive, pictures, summary_table
from backlight.data import sample_image
from backlight.errors import BacklightError, InputError
from backlight.methods import method
from backlight.methods.srd import SRD
from backlight.rules import Relative
from backlight.viz import signed_map

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def convolutional() -> Any:
    return replace(
        backlight.load("test_resnet", pretrained=False), preprocessing=backlight.data.Preprocessing((64, 64))
    )


@pytest.fixture(scope="module")
def transformer() -> Any:
    return backlight.load("test_vit", pretrained=False)


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return sample_image("chelsea")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("SoftPullback", {}), ("IntegratedGradients", {"n_steps": 5}), ("GradCAM", {"layer": "layer2"}), ("SRD", {})],
)
def test_a_map_is_the_librarys(name: str, settings: dict[str, Any], convolutional: Any, cat: Image.Image) -> None:
    about = begin(convolutional, cat, 7)
    found = explained_by(convolutional, cat, about, name, settings, Watch())
    placed = {**settings, **({"layer": f"network.{settings['layer']}"} if "layer" in settings else {})}
    bare = method(name)(convolutional.pixels(), **placed)
    bare = bare.explain(network_input(convolutional, cat), 7, internal_batch_size=8)
    assert np.array_equal(found.values, bare.value[0].numpy())
    assert found.score == float(bare.scores[0])  # type: ignore[index]
    assert found.cost["backwards"] == bare.cost.backwards
    assert found.settings == settings


def test_the_predicted_class_and_a_contrast_are_explained(convolutional: Any, cat: Image.Image) -> None:
    x = network_input(convolutional, cat)
    logits = convolutional.pixels()(x)[0].detach()
    about = begin(convolutional, cat, PREDICTED, against=3)
    assert about.target.index == int(logits.argmax())
    found = explained_by(convolutional, cat, about, "Saliency", {}, Watch())
    bare = backlight.Saliency(convolutional.pixels()).attribute(x, backlight.Contrast(about.target.index, 3))
    assert np.array_equal(found.values, bare[0].numpy())
    assert found.score == pytest.approx(float(logits.max() - logits[3]), abs=1e-5)
    with pytest.raises(BacklightError, match="out of range"):
        begin(convolutional, cat, 1000)


def test_a_misspelled_layer_gets_close_matches(convolutional: Any, cat: Image.Image) -> None:
    about = begin(convolutional, cat, 7)
    with pytest.raises(BacklightError, match=r"layer 'layer22'; close matches: layer2"):
        explained_by(convolutional, cat, about, "GradCAM", {"layer": "layer22"}, Watch())


def test_a_stopped_computation_ends_at_the_next_pass(convolutional: Any, cat: Image.Image) -> None:
    class Impatient(Watch):
        def passed(self) -> None:
            if self._passes == 2:
                self.stop()
            super().passed()

    about, watch = begin(convolutional, cat, 7), Impatient()
    watch.say("SmoothGrad")
    with pytest.raises(Stopped):
        explained_by(convolutional, cat, about, "SmoothGrad", {"n_samples": 100_000}, watch)
    assert watch.words == "SmoothGrad: pass 2"
    assert not convolutional.model._forward_pre_hooks


def test_every_setting_has_a_control_that_gives_its_default() -> None:
    for name in offered_methods():
        settings = method_settings(name)
        assert {one.name for one in settings} == {*method(name).settings(), "strict"} - {"feature_mask"}
        assert chosen_settings(name, {one.name: one.shown for one in settings}) == {}
        for one in settings:
            assert one.about, f"{name}.{one.name} says nothing of itself"


def test_every_choice_of_a_setting_is_one_that_the_method_takes(convolutional: Any) -> None:
    x = torch.zeros(1, 3, 32, 32)
    for name in ("IntegratedGradients", "SoftPullback", "LRP", "SRD", "FullGrad"):
        for one in method_settings(name):
            for choice in one.choices:
                given = {"n_steps": 2} if name == "IntegratedGradients" else {}
                built = method(name)(convolutional.pixels(), **chosen_settings(name, {**given, one.name: choice}))
                assert built.attribute(x, 0).shape[2:] == (32, 32), (one.name, choice)


def test_what_is_typed_becomes_a_setting_of_its_type() -> None:
    typed = {"n_steps": 8.0, "rule": "trapezoid", "baseline": "0.5", "strict": False}
    assert chosen_settings("IntegratedGradients", typed) == {
        "n_steps": 8, "rule": "trapezoid", "baseline": 0.5, "strict": False,
    }  # fmt: skip
    assert chosen_settings("IntegratedGradients", {"baseline": "blur"}) == {"baseline": "blur"}
    assert chosen_settings("SoftPullback", {"temperature": "relative:0.5"}) == {"temperature": Relative(0.5)}
    assert chosen_settings("SoftPullback", {"temperature": "0.3"}) == {"temperature": 0.3}
    assert chosen_settings("GradCAM", {"grid": "14, 14", "channels_last": "true"}) == {
        "grid": (14, 14), "channels_last": True,
    }  # fmt: skip
    for name, given in (("IntegratedGradients", {"n_steps": 2.5}), ("SoftPullback", {"temperature": "warm"})):
        with pytest.raises(InputError, match=r"is a (whole )?number"):
            chosen_settings(name, given)


def test_a_drawn_map_has_zero_in_the_middle_and_its_scale_below() -> None:
    values = np.zeros((8, 8), np.float32)
    values[0, 0], values[7, 7] = 2.0, -1.0
    picture = Image.new("RGB", (8, 8), (10, 200, 90))
    drawn, scale = drawn_map(picture, values, opacity=1.0, percentile=100.0)
    assert scale == signed_map(values, 1.0)[1] == 2.0
    pixels, cell = np.asarray(drawn).astype(int), SIDE // 8
    red, blue, zero = pixels[0, 0], pixels[8 * cell - 1, 8 * cell - 1], pixels[cell * 4, cell * 4]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert zero.min() > 240
    assert abs(red[0] - 103) <= 1  # the full red of RdBu_r; half of the scale is a paler blue
    assert blue.sum() > red.sum()
    grey = np.asarray(drawn_map(picture, values, opacity=0.0)[0])[cell * 4, cell * 4]
    assert grey.tolist() == [grey[0]] * 3  # the picture's greys alone
    assert np.asarray(drawn_map(picture, values, 1.0, 90.0)[0]).shape == np.asarray(drawn).shape


def test_the_sliders_need_no_new_computation(convolutional: Any, cat: Image.Image) -> None:
    about = begin(convolutional, cat, 7)
    about = replace(about, maps=(explained_by(convolutional, cat, about, "Saliency", {}, Watch()),))
    _, (name, caption, data) = pictures(about, 0.75, 99.5)
    scale = signed_map(about.maps[0].values, 0.995)[1]
    assert (name, caption) == ("Saliency", f"Saliency, ±{scale:.2g}")
    assert pictures(about, 0.75, 90.0)[1][1] == f"Saliency, ±{signed_map(about.maps[0].values, 0.9)[1]:.2g}"
    assert pictures(about, 0.2, 99.5)[1][2] != data


def test_the_archive_holds_the_maps_bit_for_bit(convolutional: Any, cat: Image.Image) -> None:
    about = begin(convolutional, cat, 7)
    one = explained_by(convolutional, cat, about, "SoftPullback", {"temperature": 0.3}, Watch())
    about = replace(about, maps=(one,), failures={"SRD": "no"})
    with zipfile.ZipFile(io.BytesIO(archive(about, pictures(about, 1.0, 99.5)))) as pack:
        assert sorted(pack.namelist()) == ["SoftPullback.npy", "SoftPullback.png", "about.json", "input.png"]
        array = np.load(io.BytesIO(pack.read("SoftPullback.npy")), allow_pickle=False)
        facts = json.loads(pack.read("about.json"))
    assert np.array_equal(array, one.values)
    assert facts["target"]["index"] == 7
    assert facts["maps"]["SoftPullback"]["settings"] == {"temperature": 0.3}
    assert facts["failures"] == {"SRD": "no"}
    assert "temperature = 0.3" in summary_table(about)


def test_only_methods_that_fit_are_offered(convolutional: Any, transformer: Any) -> None:
    refused = refusals(convolutional, Watch())
    assert {"AttnLRP", "CPLRP"} <= set(refused)
    assert not {"SRD", "SoftPullback", "GradCAM"} & set(refused)
    refused = refusals(transformer, Watch())
    assert {"SRD", "DeepLIFT"} <= set(refused)
    assert "softmax" in refused["SRD"] or "attention" in refused["SRD"]
    assert not {"AttnLRP", "CPLRP", "SoftPullback"} & set(refused)


def test_the_field_of_a_position_is_the_sharing_ratios(convolutional: Any, cat: Image.Image) -> None:
    layers = field_layers(convolutional, Watch())
    layer, grid = next((name, grid) for name, grid in reversed(layers.items()) if grid[0] > 1)
    found = effective_field(convolutional, cat, layer, 1, 0, Watch())
    operator = SRD(convolutional.pixels()).prepare(network_input(convolutional, cat))
    assert operator.size(f"network.{layer}") == grid == found.grid
    assert np.array_equal(found.values, operator.ierf(f"network.{layer}", [(1, 0)])[0, 0].detach().numpy())
    assert found.values.sum() == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match=rf"outside the {grid[0]} x {grid[1]} positions"):
        effective_field(convolutional, cat, layer, grid[0], 0, Watch())
    with pytest.raises(InputError, match="choose a layer"):
        effective_field(convolutional, cat, "", 0, 0, Watch())


def test_the_field_of_a_token_is_attn_lrps(transformer: Any, cat: Image.Image) -> None:
    layers = field_layers(transformer, Watch())
    assert list(layers) == [name for name in transformer.layers if name.startswith("blocks.") and name.count(".") == 1]
    layer, grid = list(layers.items())[-1]
    found = effective_field(transformer, cat, layer, 2, 3, Watch())
    fields = backlight.TokenFields(transformer.pixels())
    x = network_input(transformer, cat)
    bare = fields.of(x, f"network.{layer}", [fields.layout(x).token(2, 3)])
    assert found.grid == grid == tuple(bare.shares.shape[1:])
    assert np.array_equal(found.values, bare.shares[0].detach().numpy())
    assert found.values.sum() == pytest.approx(1, abs=1e-5)


def test_a_click_finds_its_position() -> None:
    assert position_at(0.0, 0.0, (448, 448), (7, 7)) == (0, 0)
    assert position_at(447.0, 64.0, (448, 448), (7, 7)) == (1, 6)
    assert position_at(63.9, 447.9, (448, 448), (7, 7)) == (6, 0)
    assert position_at(999.0, -5.0, (448, 448), (7, 7)) == (0, 6)  # the border belongs to the cell beside it
    assert position_at(100.0, 10.0, (200, 20), (2, 20)) == (1, 10)
