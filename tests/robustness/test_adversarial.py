"""FGSM and PGD: closed forms on linear networks, bounds that hold, pictures that files keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import Soft, convolutional, images, state_of
from torch import Tensor, nn

from backlight.data import Preprocessing
from backlight.errors import InputError, ModelError, TargetError, UnknownNameError
from backlight.models import PixelModel
from backlight.robustness import Adversary, Evasion, evade
from backlight.robustness.evasion import rounded
from backlight.robustness.evasion_outcome import levels, of_levels


class Linear(nn.Module):
    """Two logits, W x, of pictures `[N, 3, 6, 6]`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 108, dtype=torch.float64, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T

    def towards(self, one: int) -> Tensor:
        """The slope of its logit above the other's."""
        return (self.weight[one] - self.weight[1 - one]).detach().reshape(1, 3, 6, 6)


def grey(count: int = 1, seed: int = 0) -> Tensor:
    """8-bit pictures, far from black and white."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(80, 170, (count, 3, 6, 6), generator=draw).double() / 255


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("eight_bit", [True, False])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_the_best_change_of_a_linear_network_is_the_sign_of_its_weights(
    method: str, eight_bit: bool, loss: str
) -> None:
    model, x, eps = Linear(), grey(), 5 / 255
    before = int(model(x).argmax())
    for settings, one in (({"to": 1 - before}, 1 - before), ({}, 1 - before), ({"label": 1 - before}, before)):
        found = evade(model, x, method=method, eps=eps, eight_bit=eight_bit, loss=loss, **settings)
        assert torch.allclose(found.image, x + eps * model.towards(one).sign(), atol=1e-15)
        margin = (model(found.image) - model(x)).detach() @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
        gained = eps * model.towards(1).abs().sum()  # eps |w|_1 (Goodfellow et al. 2015, section 4)
        assert float(margin.abs() - gained) == pytest.approx(0, abs=1e-9)
        assert float(found.linf) == pytest.approx(eps, abs=1e-15)


def test_the_best_change_of_a_given_length_is_along_the_weights() -> None:
    model, x = Linear(), grey()
    one = 1 - int(model(x).argmax())
    found = evade(model, x, norm="l2", eps=0.3, eight_bit=False, n_steps=4)
    way = model.towards(one)
    assert torch.allclose(found.image - x, 0.3 * way / way.norm(), atol=1e-12)
    assert float(found.l2) == pytest.approx(0.3, rel=1e-12)
    whole = evade(model, x, norm="l2", eps=0.3, n_steps=4)
    assert float(whole.l2) <= 0.3
    assert float(whole.l2) > 0.29
    cosine = nn.functional.cosine_similarity((whole.image - x).flatten(1), way.flatten(1))
    assert float(cosine) > 0.98
    assert torch.equal(of_levels(levels(whole.image), x), whole.image)


def test_losses_fall_step_by_step_and_the_point_stays_where_it_is_best() -> None:
    model, x = Linear(), grey(3)
    found = evade(model, x, n_steps=8, eps=8 / 255, step=1 / 255, loss="margin")
    assert (found.losses.diff(dim=0) < 0).all()
    per_step = found.losses.diff(dim=0)
    assert torch.allclose(per_step, -model.towards(1).abs().sum() / 255 * torch.ones_like(per_step))
    far = evade(model, x, n_steps=20, eps=8 / 255, step=1 / 255, loss="margin")
    assert torch.equal(far.image, found.image)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eight_bit", [True, False])
def test_bound_and_box_hold(norm: str, dtype: torch.dtype, eight_bit: bool) -> None:
    model, preprocessing = convolutional(Soft).to(dtype), Preprocessing(size=(16, 16))
    x = of_levels(levels((images(3) * 1.6 - 0.3).clamp(0, 1)), torch.zeros((), dtype=dtype))
    for eps in (1.3 / 255, 20 / 255) if norm == "linf" else (0.05, 3.0):
        found = evade(
            model, x, preprocessing=preprocessing, norm=norm, eps=eps, n_steps=6, random_start=True, eight_bit=eight_bit
        )
        size = found.linf if norm == "linf" else found.l2
        assert (size <= eps * (1 + (1e-6 if dtype == torch.float32 else 1e-12))).all()
        assert (size > (0.5 if eight_bit else 0.9) * eps).all()
        assert found.image.min() >= 0
        assert found.image.max() <= 1
        assert torch.equal(found.inputs, preprocessing.normalise(found.image))
        if eight_bit:
            assert torch.equal(of_levels(levels(found.image), x), found.image)


def balanced() -> nn.Sequential:
    """A network whose classes are about as likely."""
    model = convolutional(Soft)
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        model[-1].bias.sub_(model(images(8, 5)).mean(0))  # type: ignore[union-attr, operator]
    return model


def attacked(count: int = 3, **settings: Any) -> Evasion:
    x = of_levels(levels(images(count)), torch.zeros((), dtype=torch.float64))
    return evade(balanced(), x, **{"eps": 16 / 255, "random_start": True, **settings})


def test_outputs_are_the_networks_own_and_the_aim_is_reached() -> None:
    model, found = balanced(), attacked(to=None)
    assert torch.equal(found.prediction.before, model(found.original))
    assert torch.equal(found.prediction.after, model(found.image))
    assert torch.equal(found.label, found.prediction.before.argmax(1))
    assert found.reached.any()
    assert torch.equal(found.reached, found.prediction.after.argmax(1) != found.label)
    before, after = found.probability(found.label)
    assert torch.allclose(before, model(found.original).softmax(1).amax(1))
    assert (after < before).all()
    second = found.prediction.before.topk(2).indices[:, 1]
    aimed = attacked(to=second)
    assert torch.equal(aimed.reached, aimed.prediction.after.argmax(1) == second)
    before, after = aimed.probability(second)
    assert (after > before).all()


def test_a_picture_does_not_know_its_mates_and_stops_on_its_own() -> None:
    many = attacked(stop=True, eps=24 / 255, n_steps=25, step=1 / 255)
    for n in range(3):
        x = many.original[n : n + 1]
        one = evade(balanced(), x, eps=24 / 255, random_start=True, stop=True, n_steps=25, step=1 / 255)
        assert torch.equal(one.image[0], many.image[n])
        assert int(one.steps[0]) == int(many.steps[n])
    parts = attacked(stop=True, eps=24 / 255, n_steps=25, step=1 / 255, internal_batch_size=2)
    assert torch.equal(parts.image, many.image)
    stopped = many.steps < 25
    assert stopped.any()
    assert many.reached[stopped].all()
    for n, steps in enumerate(many.steps.tolist()):
        assert many.losses[:steps, n].isfinite().all()
        assert many.losses[steps + 1 :, n].isnan().all()


def test_seeds() -> None:
    assert torch.equal(attacked(seed=1).image, attacked(seed=1).image)
    assert not torch.equal(attacked(seed=1).image, attacked(seed=2).image)
    assert torch.equal(attacked(seed=1, random_start=False).image, attacked(seed=2, random_start=False).image)


def test_nothing_is_left_behind() -> None:
    model = convolutional(nn.ReLU)
    before = state_of(model)
    x = of_levels(levels(images(2)), torch.zeros((), dtype=torch.float64))
    evade(model, x, random_start=True)

    def stop(step: int, loss: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evade(model, x, progress=stop)
    assert state_of(model) == before
    assert len(evade(model, x, progress=lambda step, loss: step == 2).losses) == 3


def test_the_front_of_pixels_is_attacked_alike() -> None:
    model, preprocessing = convolutional(Soft), Preprocessing(size=(16, 16))
    x = of_levels(levels(images(1)), torch.zeros((), dtype=torch.float64))
    front = PixelModel(model, preprocessing.mean, preprocessing.std)
    one = evade(model, x, preprocessing=preprocessing, n_steps=3)
    other = evade(nn.Sequential(Stretch(), front).eval(), x, n_steps=3)
    assert (one.image - other.image).abs().max() < 1e-12


class Stretch(nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def test_rounding_keeps_the_norm() -> None:
    draw = torch.Generator().manual_seed(0)
    for scale in (0.05, 0.4, 3.0):
        change = scale * torch.randn(500, dtype=torch.float64, generator=draw)
        bound = float(change.norm())
        whole = rounded(change, bound)
        assert torch.equal(whole, whole.round())
        assert float(whole.norm()) <= bound
        assert float(whole.norm()) > 0.8 * bound
        assert ((whole - change).abs() < 1).all()
    assert torch.equal(rounded(torch.tensor([2.6, -0.7, 0.2]), 9.0), torch.tensor([3.0, -1.0, 0.0]))


def test_wrong_calls() -> None:
    model, x = Linear(), grey()
    label = int(model(x).argmax())
    with pytest.raises(InputError, match="they are to leave"):
        evade(model, x, to=label)
    for settings, error, told in (
        ({"to": 7}, TargetError, "2 outputs"),
        ({"method": "pdg"}, UnknownNameError, "pgd"),
        ({"epsilon": 0.1}, UnknownNameError, "eps"),
        ({"eps": 0.001}, InputError, "1/255"),
        ({"eps": -1.0}, InputError, "positive"),
        ({"n_steps": 0}, InputError, "at least 1"),
        ({"method": "fgsm", "random_start": True}, InputError, "for pgd"),
    ):
        with pytest.raises(error, match=told):
            evade(model, x, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="box"):
        evade(model, x + 1)
    with pytest.raises(InputError, match="8-bit"):
        evade(model, x + 0.4 / 255)
    with pytest.raises(ModelError, match="training"):
        evade(nn.Sequential(nn.Dropout(), Linear()).train(), x)
    assert Adversary(method="fgsm").length == Adversary().eps
