"""Preprocessing: timm's and torchvision's pixels to the bit, and its own laws on pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image

from backlight.data import Preprocessing
from backlight.errors import InputError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 300),
    fit=st.sampled_from(["cover", "squash", "contain"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos", "nearest"]),
    crop_square=st.booleans(),
)
def test_any_picture_gives_the_size_and_the_range(height, width, fit, size, interpolation, crop_square) -> None:
    chosen = Preprocessing.from_crop(size, 0.875, fit=fit, interpolation=interpolation, crop_square=crop_square)
    image = chosen.image(noise(height, width))
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    tensor = chosen.normalise(image)
    low, high = (bound[0] for bound in chosen.bounds())
    assert bool(((tensor >= low) & (tensor <= high)).all())
    assert torch.allclose(chosen.denormalise(tensor), image, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1), (3, 5000)])
def test_extreme_proportions_stay_small(shape: tuple[int, int]) -> None:
    assert Preprocessing().image(noise(*shape)).shape == (3, 224, 224)


def test_the_centre_of_a_long_picture_is_kept() -> None:
    picture = np.zeros((4, 4001, 3), dtype=np.uint8)
    picture[:, 1998:2003] = 255
    image = Preprocessing((8, 8), (8, 8)).image(picture)
    assert image.mean() > 0.9


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "mode"),
    [
        ((224, 224), 0.875, "center"),
        ((96, 96), 1.0, "center"),
        ((96, 128), 0.9, "center"),
        ((64, 64), 0.9, "squash"),
        ((64, 64), 0.9, "border"),
    ],
)
@pytest.mark.parametrize("shape", [(150, 211), (300, 200), (97, 97)])
def test_timm_to_the_bit(interpolation: str, size: tuple[int, int], crop_pct: float, mode: str, shape) -> None:
    pytest.importorskip("timm")
    from timm.data import create_transform

    from backlight.models.timm_models import FITS

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    theirs = create_transform(
        (3, *size), interpolation=interpolation, mean=mean, std=std, crop_pct=crop_pct, crop_mode=mode
    )
    ours = Preprocessing.from_crop(size, crop_pct, interpolation=interpolation, mean=mean, std=std, fit=FITS[mode])
    picture = noise(*shape)
    assert torch.equal(ours.tensor(picture), theirs(Image.fromarray(picture)))


def test_every_torchvision_weight_to_the_bit() -> None:
    pytest.importorskip("torchvision")
    import torchvision

    from backlight.models import torchvision_models

    picture, seen = noise(150, 211), {}
    for name in torchvision_models.names():
        for weights in torchvision.models.get_model_weights(name):
            seen.setdefault(torchvision_models.preprocessing(weights), weights)
    assert len(seen) > 10
    for ours, weights in seen.items():
        theirs = weights.transforms()(Image.fromarray(picture))
        assert torch.equal(ours.tensor(picture), theirs), weights


def test_the_papers_protocol() -> None:
    paper = Preprocessing.paper()
    square, wide = noise(300, 300), noise(300, 400)
    as_square = Image.fromarray(square).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(paper.picture(square)), np.asarray(as_square))
    as_wide = Image.fromarray(wide).resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(np.asarray(paper.picture(wide)), np.asarray(as_wide))
    low, high = paper.bounds()
    assert torch.equal(low, torch.full((1, 3, 1, 1), -1.0))
    assert torch.equal(high, torch.full((1, 3, 1, 1), 1.0))


def test_bounds_are_those_of_black_and_white() -> None:
    chosen = Preprocessing((4, 4), (4, 4))
    low, high = chosen.bounds()
    assert torch.equal(chosen.tensor(np.zeros((9, 9), np.uint8)), low[0].expand(3, 4, 4))
    assert torch.equal(chosen.tensor(np.full((9, 9), 255, np.uint8)), high[0].expand(3, 4, 4))


def test_batches_and_dtypes_pass_through() -> None:
    x = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    out = Preprocessing().normalise(x)
    assert out.dtype == torch.float64
    assert torch.allclose(out[..., 1, :, :], (x[..., 1, :, :] - 0.456) / 0.224)


@pytest.mark.parametrize(
    "bad",
    [{"size": (0, 2)}, {"std": (1.0, 1.0, 0.0)}, {"mean": (1.0, 1.0)}, {"interpolation": "cubic"}, {"fit": "crop"}],
)
def test_bad_settings(bad: dict) -> None:
    with pytest.raises((InputError, TypeCheckError)):  # the second where the suite runs with types checked
        Preprocessing(**bad)


def test_grey_tensors_are_refused() -> None:
    with pytest.raises((InputError, TypeCheckError), match=r"3,? H,? W"):
        Preprocessing().normalise(torch.zeros(1, 1, 4, 4))
