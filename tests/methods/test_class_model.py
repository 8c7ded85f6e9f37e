"""ClassModel: the closed form on a linear model, literal loops for every aid, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import spelled
from test_conformance import Breaks, state_of
from torch import Tensor, nn

import backlight
from backlight.data import Preprocessing
from backlight.engine.paths import blur
from backlight.errors import BacklightError, InputError, NonFiniteError, TargetError, UnknownNameError
from backlight.methods.class_model import READABLE, ClassModel, Fourier

SHAPE = (3, 6, 5)


def linear(classes: int = 4) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, classes)).double()
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"step": 0.5 / 0.7, "n_steps": 1}, 1e-13),  # a Newton step
        ({"step": 0.3, "n_steps": 80}, 1e-12),
        ({"step": 0.2, "n_steps": 300, "fourier": True}, 1e-12),
        ({"step": 0.05, "n_steps": 700, "optimiser": "adam"}, 1e-12),
        ({"step": 0.05, "n_steps": 700, "optimiser": "adam", "fourier": True}, 1e-12),
    ],
)
def test_on_a_linear_model_it_is_the_weights_over_twice_the_penalty(settings: dict[str, Any], tolerance: float) -> None:
    model, penalty = linear(), 0.7
    found = ClassModel(model, penalty=penalty, **settings).visualise([2, 0], SHAPE)
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    for n, index in enumerate((2, 0)):
        expected = weight[index].reshape(SHAPE) / (2 * penalty)
        assert (found.image[n] - expected).abs().max() < tolerance
        best = weight[index].square().sum() / (4 * penalty) + bias[index]  # of the ridge objective
        assert abs(float(found.objective[-1, n] - best)) < 1e-9
        assert abs(float(found.scores[-1, n] - best - penalty * expected.square().sum())) < 1e-9


def by_hand(model: nn.Module, index: int, size: tuple[int, ...], setting: ClassModel) -> tuple[Tensor, list[float]]:
    """Plain ascent of one class in pixels, with jitter, blur and total variation, by loops and autograd."""
    generator = torch.Generator().manual_seed(setting.seed)
    image, scores = torch.zeros(1, *size, dtype=torch.float64), []
    for number in range(1, setting.n_steps + 1):
        down, right = torch.randint(-setting.jitter, setting.jitter + 1, (2,), generator=generator).tolist()
        leaf = image.clone().requires_grad_()
        height, width = size[1:]
        rows = [leaf[:, :, (i - down) % height] for i in range(height)]
        moved = torch.stack(rows, 2)
        moved = torch.stack([moved[:, :, :, (j - right) % width] for j in range(width)], 3)
        score = model(moved)[0, index]
        total = torch.zeros((), dtype=torch.float64)
        for i in range(height):
            for j in range(width):
                if i + 1 < height:
                    total = total + (leaf[0, :, i + 1, j] - leaf[0, :, i, j]).abs().sum()
                if j + 1 < width:
                    total = total + (leaf[0, :, i, j + 1] - leaf[0, :, i, j]).abs().sum()
        objective = score - setting.penalty * (leaf**2).sum() - setting.total_variation * total
        (gradient,) = torch.autograd.grad(objective, leaf)
        image = image + setting.step * gradient
        if setting.blur and number % setting.blur_every == 0:
            image = blur(image, setting.blur)
        scores.append(score.item())
    return image, scores


@pytest.mark.parametrize(
    "aids",
    [
        {},
        {"jitter": 2},
        {"blur": 0.8, "blur_every": 2},
        {"total_variation": 0.05},
        {"jitter": 3, "blur": 0.6, "blur_every": 3, "total_variation": 0.02, "seed": 5},
    ],
)
def test_the_ascent_and_its_aids_by_hand(aids: dict[str, Any]) -> None:
    model, size = spelled("F.relu"), (3, 8, 8)
    setting = ClassModel(model, n_steps=7, step=0.3, penalty=0.05, **aids)
    found = setting.visualise([0, 2], size)
    for n, index in enumerate((0, 2)):
        image, scores = by_hand(model, index, size, setting)
        assert torch.allclose(found.image[n : n + 1], image, atol=1e-12)
        assert torch.allclose(found.scores[:-1, n], torch.tensor(scores, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(found.scores[-1, n], model(image)[0, index], atol=1e-12)
    assert found.image.abs().max() > 0.1


def test_every_aid_is_off_by_default() -> None:
    settings = ClassModel.settings()
    aids = {key: settings[key] for key in ("optimiser", "jitter", "blur", "total_variation", "fourier")}
    assert aids == {"optimiser": "ascent", "jitter": 0, "blur": 0.0, "total_variation": 0.0, "fourier": False}
    readable = ClassModel.readable(nn.Identity(), jitter=3)
    assert (readable.jitter, readable.fourier, readable.blur) == (3, READABLE["fourier"], READABLE["blur"])


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (6, 5), (5, 6), (1, 1)])
def test_the_fourier_basis_reaches_every_image_and_weighs_by_frequency(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    basis = Fourier(image)
    assert torch.allclose(basis.image(basis.coefficients(image)), image, atol=1e-12)
    white = torch.randn(400, 1, *size, dtype=torch.float64)
    coloured = Fourier(white).image(torch.view_as_real(torch.fft.rfft2(white, norm="ortho")))
    assert abs(float(coloured.std()) - 1) < 0.1
    if size == (6, 6):  # 1 / frequency: one period against three, horizontally
        assert abs(float(basis.scale[0, 1] / basis.scale[0, 3]) - 3) < 1e-6
        assert basis.scale[0, 0] == basis.scale[0, 1]


def test_classes_do_not_depend_on_each_other_and_seeds_decide() -> None:
    model, size = spelled("modules"), (3, 8, 8)
    aids = {"n_steps": 6, "step": 0.1, "jitter": 3, "optimiser": "adam", "fourier": True, "blur": 0.7}
    explainer = ClassModel(model, **aids)
    whole = explainer.visualise(torch.tensor([2, 0, 1]), size)
    for n, index in enumerate((2, 0, 1)):
        alone = explainer.visualise(index, size)
        assert torch.allclose(whole.image[n : n + 1], alone.image, atol=1e-12)
        assert torch.allclose(whole.scores[:, n : n + 1], alone.scores, atol=1e-12)
    parts = explainer.visualise([2, 0, 1], size, internal_batch_size=2)
    assert torch.allclose(parts.image, whole.image, atol=1e-12)
    assert torch.equal(explainer.visualise([2, 0, 1], size).image, whole.image)
    assert (ClassModel(model, **aids, seed=1).visualise(2, size).image - whole.image[:1]).abs().max() > 1e-3
    assert (whole.cost.forwards, whole.cost.backwards) == (3 * 7, 3 * 6)
    assert whole.scores.shape == whole.objective.shape == (7, 3)


def test_any_target_has_an_image() -> None:
    model = spelled("modules")
    conv: nn.Conv2d = model.net[0]
    found = ClassModel(model, n_steps=1, step=1.0, penalty=0.0).visualise(
        backlight.Unit("net.0", channel=[3, 1], position=(4, 4)), (3, 8, 8)
    )
    for n, channel in enumerate((3, 1)):  # one step along the gradient of a convolution's unit is its kernel
        assert torch.allclose(found.image[n, :, 3:6, 3:6], conv.weight[channel].detach(), atol=1e-12)
    assert found.image[:, :, 6:].abs().max() == 0
    contrast = ClassModel(linear(), n_steps=1, step=0.5, penalty=0.0).visualise(backlight.Contrast(1, 3), SHAPE)
    assert contrast.image.shape == (1, *SHAPE)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model = Breaks(after=2 if fails else 1000).double().eval()
    model.net.net[9].bias.grad = torch.ones(3, dtype=torch.float64)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before, rng = state_of(model), torch.get_rng_state()
    explainer = ClassModel(model, n_steps=4, optimiser="adam", step=0.1, jitter=2)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            explainer.visualise(1, (3, 8, 8))
    else:
        found = explainer.visualise(1, (3, 8, 8))
        assert not found.image.requires_grad
        assert not found.scores.requires_grad
    after = state_of(model)
    assert before.pop("grads")[-1] is after.pop("grads")[-1]
    assert before == after
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in list(model.parameters())[:-3])


def test_the_picture_has_the_training_mean_added_back() -> None:
    mean = Preprocessing(size=(6, 5), resize=(6, 5), mean=(0.2, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    model = linear()
    found = ClassModel(model, n_steps=1, step=0.01, penalty=0.1).visualise([0, 3], mean)
    picture = found.picture(mean)
    for c in range(3):
        expected = found.image[:, c] * mean.std[c] + mean.mean[c]
        assert torch.allclose(picture[:, c], expected, atol=1e-7)
    strong = ClassModel(model, n_steps=1, step=1.0, penalty=0.1).visualise([0, 3], mean)
    assert strong.picture(mean).min() == 0
    soft = strong.picture(Preprocessing(std=(1.0, 1.0, 1.0), mean=(0.5, 0.5, 0.5)), contrast=0.05)
    assert torch.allclose(soft.flatten(1).std(1), torch.tensor(0.05).double(), atol=1e-6)


def test_half_precision_points_the_same_way() -> None:
    double = ClassModel(spelled("modules"), n_steps=4, step=0.1).visualise(1, (3, 8, 8))
    half = ClassModel(spelled("modules").bfloat16(), n_steps=4, step=0.1, fourier=False).visualise(1, (3, 8, 8))
    assert half.image.dtype == torch.float32
    assert torch.cosine_similarity(half.image.double().flatten(), double.image.flatten(), dim=0) > 0.9


def test_what_does_not_fit_is_said() -> None:
    model = linear()
    with pytest.raises(TargetError, match="needs a class"):
        ClassModel(model).visualise(None, SHAPE)
    with pytest.raises(TargetError, match="out of range"):
        ClassModel(model).visualise(4, SHAPE)
    with pytest.raises(InputError, match=r"\(C, H, W\)"):
        ClassModel(model).visualise(1, (6, 5))
    with pytest.raises(UnknownNameError, match="adam"):
        ClassModel(model, optimiser="adan")
    with pytest.raises(InputError, match="n_steps"):
        ClassModel(model, n_steps=0)
    with pytest.raises(InputError, match="step must be positive"):
        ClassModel(model, step=-1.0)
    with pytest.raises(NonFiniteError, match="too large a step"):
        ClassModel(model, step=1e30, n_steps=20).visualise(1, SHAPE)


def test_on_a_real_network_the_class_becomes_certain() -> None:
    try:
        loaded = backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    for explainer in (ClassModel(loaded.model, n_steps=25), ClassModel.readable(loaded.model, n_steps=25)):
        found = explainer.visualise([130, 340], (3, 128, 128))
        assert (found.scores[-1] > found.scores[0] + 10).all()
        assert (loaded.model(found.image).softmax(1)[[0, 1], [130, 340]] > 0.9).all()
