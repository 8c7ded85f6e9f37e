"""What the Change tab shows is what the library gives: both ascents, their numbers, their files."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("timm")

import backlight
from backlight.app.animation import LAST, frames, gif, png
from backlight.app.ascents import (
    TITLES,
    Ascending,
    Change,
    as_picture,
    change,
    difference_figure,
    probabilities,
    sentence,
    temperature_of,
    trajectories_figure,
)
from backlight.app.change import table
from backlight.app.computation import Running, Stopped, Watch
from backlight.app.predictions import PREDICTED, network_input
from backlight.data import ClassNames, Preprocessing, sample_image
from backlight.errors import ImageError, InputError
from backlight.methods.perturbation import Counterfactual
from backlight.models import LoadedModel

SETTINGS = Ascending(n_steps=3, step=5.0, radius=12.0, temperature=0.5)
TARGET = 7


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return replace(backlight.load("test_resnet", pretrained=False), preprocessing=Preprocessing((48, 64), (48, 64)))


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return sample_image("chelsea")


@pytest.fixture(scope="module")
def made(loaded: LoadedModel, cat: Image.Image) -> Change:
    return change(loaded, cat, TARGET, SETTINGS)


@pytest.mark.parametrize("along", list(TITLES))
def test_both_ascents_are_the_librarys(along: str, made: Change, loaded: LoadedModel, cat: Image.Image) -> None:
    method = Counterfactual(
        loaded.pixels(), n_steps=3, step=5.0, radius=12.0, project="every", temperature=0.5, along=along
    )
    bare = method.perturb(network_input(loaded, cat), TARGET, internal_batch_size=1)
    assert torch.equal(made.found[along].points, bare.points)
    assert torch.equal(made.found[along].outputs, bare.outputs)
    assert made.distance(along) == pytest.approx(float((bare.points[-1] - bare.points[0]).norm()))
    assert f"l2 distance {made.distance(along):.3g}" in sentence(made, along)
    assert f"{100 * float(bare.probabilities[-1, 0]):.1f} % after 3 steps" in sentence(made, along)


def test_the_two_ascents_differ(made: Change) -> None:
    assert not torch.equal(made.found["pullback"].image, made.found["gradient"].image)


def test_the_table_has_the_softmax_before_and_after(made: Change, loaded: LoadedModel, cat: Image.Image) -> None:
    rows = probabilities(made)
    with torch.no_grad():
        before = loaded.pixels()(network_input(loaded, cat))[0].double().softmax(0)
    name, *shares = rows[0]
    assert name == loaded.classes.name(TARGET)
    assert rows[1][0] == loaded.classes.name(int(before.argmax()))
    assert shares[0] == pytest.approx(float(before[TARGET]), rel=1e-5)
    for value, along in zip(shares[1:], TITLES, strict=True):
        assert value == pytest.approx(float(made.found[along].probabilities[-1, 0]), rel=1e-5)
    assert f"{100 * shares[1]:.1f} %" in table(made)


def test_names_reach_the_table_as_text(made: Change) -> None:
    hostile = ClassNames(tuple(f"<img src=x onerror=alert({k})>" for k in range(1000)))
    shown = table(replace(made, loaded=replace(made.loaded, classes=hostile)))
    assert "<img" not in shown
    assert "&lt;img" in shown


def test_what_is_not_projected_is_said_to_be_clipped(loaded: LoadedModel, cat: Image.Image) -> None:
    settings = replace(SETTINGS, project="never", step=60.0, radius=0.0, n_steps=1)
    found = change(loaded, cat, TARGET, settings)
    end = found.found["gradient"].image
    outside = float(((end < -1) | (end > 1)).float().mean())
    assert outside > 0
    assert f"{100 * found.outside('gradient'):.0f} % of its values are no colours" in sentence(found, "gradient")
    assert found.outside("gradient") == pytest.approx(outside, abs=1e-3)
    assert found.distance("gradient") == pytest.approx(60, rel=1e-4)  # radius 0 is none


def test_the_predicted_class_is_the_target_where_none_is_chosen(loaded: LoadedModel, cat: Image.Image) -> None:
    found = change(loaded, cat, PREDICTED, replace(SETTINGS, n_steps=1))
    assert found.target == found.original
    assert "which was predicted before" in sentence(found, "pullback")


def test_figures_carry_the_scale_and_all_curves(made: Change) -> None:
    difference = made.found["pullback"].difference[0].sum(0).abs().numpy()
    bar = difference_figure(made, "pullback").axes[1]
    ticks = [label.get_text() for label in bar.get_xticklabels()]
    assert ticks[1] == "0"
    assert float(ticks[2]) == pytest.approx(float(np.quantile(difference, 0.995)), rel=0.06)
    curves = trajectories_figure(made).axes[0].lines
    drawn = {line.get_label(): list(map(float, line.get_ydata())) for line in curves}
    assert len(drawn) == 4
    for along, title in TITLES.items():
        label = f"{made.name(TARGET)[:26]}, {title}"
        assert drawn[label] == pytest.approx(made.found[along].probabilities[:, 0].tolist())


def test_the_animation_has_a_frame_a_step_and_ends(made: Change) -> None:
    pictures = frames(made)
    assert len(pictures) == 4
    with Image.open(io.BytesIO(gif(pictures))) as moving:
        assert (moving.n_frames, moving.format, moving.size) == (4, "GIF", pictures[0].size)
        assert moving.info["loop"] == 2  # twice again, then it stands still
        moving.seek(3)
        assert moving.info["duration"] == LAST


def test_the_png_is_the_perturbed_picture(made: Change) -> None:
    end = made.found["gradient"].image[0]
    with Image.open(io.BytesIO(png(as_picture(end)))) as read:
        values = np.asarray(read)
    assert values.shape == (48, 64, 3)
    assert np.abs(values / 127.5 - 1 - end.permute(1, 2, 0).numpy()).max() <= 1 / 255 + 1e-6


def test_cancel_stops_between_two_steps_and_frees_the_lock(loaded: LoadedModel, cat: Image.Image) -> None:
    lock, hooks = threading.Lock(), len(loaded.model._forward_pre_hooks)
    running = Running(lock, lambda watch: change(loaded, cat, TARGET, replace(SETTINGS, n_steps=50), watch))
    words = iter(running)
    next(words)
    words.close()  # type: ignore[attr-defined]  # as Gradio does when the listener is cancelled
    assert running._done.wait(20)
    with pytest.raises(Stopped):
        _ = running.result
    assert lock.acquire(timeout=1)
    assert len(loaded.model._forward_pre_hooks) == hooks


def test_steps_are_told(loaded: LoadedModel, cat: Image.Image) -> None:
    told: list[str] = []

    class Heard(Watch):
        def say(self, words: str) -> None:
            told.append(words)

    change(loaded, cat, TARGET, SETTINGS, Heard())
    assert [one for one in dict.fromkeys(told) if one.startswith("Pullback")] == [
        "Pullback Ascent: step 1 of 3", "Pullback Ascent: step 2 of 3", "Pullback Ascent: step 3 of 3",
        "Pullback Ascent: probabilities",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("paper", "paper"), (" Relative ", "relative"), ("0.3", 0.3), ("2", 2.0)])
def test_temperatures_are_names_or_numbers(text: str, value: Any) -> None:
    assert temperature_of(text) == value


@pytest.mark.parametrize("text", ["", "warm", "-1", "nan", "inf"])
def test_other_temperatures_get_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match="a temperature is paper, relative, excitation or a number"):
        temperature_of(text)


@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"n_steps": 51}, {"step": 0.0}, {"radius": -1.0}])
def test_settings_out_of_range_get_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="got"):
        Ascending(**wrong)


def test_features_and_no_picture_get_a_sentence(loaded: LoadedModel, cat: Image.Image) -> None:
    features = replace(loaded, classes=ClassNames(unit="feature"))
    with pytest.raises(InputError, match="gives features and knows no classes"):
        change(features, cat, 0, SETTINGS)
    with pytest.raises(ImageError, match="choose a picture first"):
        change(loaded, None, 0, SETTINGS)
