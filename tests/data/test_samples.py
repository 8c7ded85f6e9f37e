"""The sample photographs load from disk alone."""

from __future__ import annotations

import numpy as np
import pytest

from backlight.data import sample_image, sample_images, sample_names
from backlight.errors import MissingExtraError, UnknownNameError


def test_samples_are_scikit_images_own() -> None:
    data = pytest.importorskip("skimage.data")
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        assert np.array_equal(np.asarray(sample_image(name)), getattr(data, name)())


def test_every_name_gives_an_rgb_photograph() -> None:
    pytest.importorskip("skimage")
    samples = sample_images()
    assert len(samples) == len(sample_names()) >= 4
    assert all(image.mode == "RGB" and min(image.size) > 200 for image in samples.values())


def test_unknown_samples() -> None:
    pytest.importorskip("skimage")
    assert "chelsey" not in sample_images()
    with pytest.raises(UnknownNameError, match="chelsea"):
        sample_image("chelsey")


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"backlight\[demo\]"):
        sample_names()
