"""The manipulation attack: it reaches its aim, keeps to its bounds, and is what its presets say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import Soft, convolutional, images, state_of
from torch import Tensor, nn

import backlight
from backlight.data import Preprocessing
from backlight.errors import InputError, NonFiniteError, UnknownNameError
from backlight.methods import method
from backlight.robustness import PAPER, REFERENCE, Attack, Manipulation, manipulate, pearson
from backlight.robustness.manipulation import _check

UNIT: dict[str, Any] = {"box": (0.0, 1.0), "scale": 1.0}


def attacked(name: str, activation: type[nn.Module] = Soft, count: int = 2, **settings: Any) -> Manipulation:
    """Two images in [0, 1], 150 steps, with a weight that lets the small network's logits stay within 0.02."""
    chosen = {"n_steps": 150, "lr": 2e-3, "explanation_weight": 1e8, **UNIT, **settings}
    own = {"n_steps": 4} if name == "IntegratedGradients" else {}
    return manipulate(method(name)(convolutional(activation), **own), images(count, 1), images(count, 2), **chosen)


# settings: how far each method is moved depends on the method; the least share of the gap in PCC that is closed
CLOSED = {"Saliency": 0.4, "InputXGradient": 0.35, "GuidedBackprop": 0.35, "IntegratedGradients": 0.35,
          "SoftPullback": 0.3, "GradCAM": 0.35, "LRP": 0.25}  # fmt: skip


@pytest.mark.parametrize(("name", "activation"), [*((name, nn.ReLU) for name in CLOSED), ("Saliency", Soft)])
def test_the_map_moves_to_its_aim_while_image_and_output_stay(name: str, activation: type[nn.Module]) -> None:
    found = attacked(name, activation)
    gap, left = 1 - found.apart.pcc, 1 - found.reached.pcc
    assert (left < (1 - CLOSED[name]) * gap).all(), (gap, left)
    assert (found.largest_change <= 8 / 255).all()
    assert (found.prediction.largest < 0.02).all()
    assert (found.prediction.before.abs().amax(1) > 1).all()
    assert found.prediction.kept.all()
    # noise of the same size does not do it
    noise = torch.randn(found.image.shape, dtype=torch.float64).sign() * 8 / 255
    explainer = method(name)(convolutional(activation), **({"n_steps": 4} if name == "IntegratedGradients" else {}))
    noisy = PAPER.reduced(explainer.explain((found.original + noise).clamp(0, 1), found.target).value)
    assert (1 - pearson(noisy, found.aim) > left).all()


def test_maps_are_those_of_the_network_as_it_is() -> None:
    found = attacked("Saliency", nn.ReLU, n_steps=5)
    assert found.beta == (10.0, 100.0)
    saliency, other = backlight.Saliency(convolutional(nn.ReLU)), images(2, 2)
    for maps, x, target in ((found.before, images(2, 1), None), (found.after, found.image, found.target),
                            (found.aim, other, None)):  # fmt: skip
        absolute = saliency.attribute(x, target).abs().sum(1)
        assert torch.allclose(maps, absolute / absolute.sum((1, 2), keepdim=True), atol=1e-15)
    logits = convolutional(nn.ReLU)(found.image)
    assert torch.equal(found.prediction.after, logits)
    assert torch.equal(found.prediction.before, convolutional(nn.ReLU)(images(2, 1)))
    assert torch.equal(found.target.index, found.prediction.top1)
    before, after = found.prediction.probability
    assert torch.allclose(after, logits.softmax(1).gather(1, found.prediction.top1[:, None])[:, 0])
    assert before.shape == after.shape == (2,)


def test_the_first_step_is_adams_along_the_derivative_of_the_loss() -> None:
    """x_1 = x - lr sign(dL/dx), where |dL/dx| is far above Adam's epsilon; dL/dx by finite differences."""
    found = attacked("Saliency", n_steps=1, count=1, lr=1e-4)
    saliency = backlight.Saliency(convolutional(Soft))

    def loss(x: Tensor) -> float:
        phi = saliency.attribute(x, found.target).abs().sum(1)
        phi = phi / phi.sum((1, 2), keepdim=True)
        out = convolutional(Soft)(x) - found.prediction.before
        return float(1e8 * (phi - found.aim).square().sum() + 1e6 * out.square().sum().detach())

    x, generator, seen = found.original, torch.Generator().manual_seed(1), 0
    assert float(found.explanation_loss[0]) == pytest.approx(loss(x) / 1e8)
    assert float(found.output_loss[0]) == 0
    for flat in torch.randperm(x.numel(), generator=generator)[:20].tolist():
        step = torch.zeros_like(x).flatten()
        step[flat] = 1e-6
        step = step.reshape(x.shape)
        slope = (loss(x + step) - loss(x - step)) / 2e-6
        if abs(slope) > 10 and bool(((x.flatten()[flat] > 2e-4) & (x.flatten()[flat] < 1 - 2e-4)).all()):
            seen += 1
            assert float((found.image - x).flatten()[flat]) == pytest.approx(-1e-4 * (1 if slope > 0 else -1), rel=1e-3)
    assert seen > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_are_never_exceeded_by_a_bit(dtype: torch.dtype) -> None:
    preprocessing = Preprocessing()
    model = convolutional(Soft).to(dtype)
    mean, std = (torch.tensor(t, dtype=dtype).reshape(3, 1, 1) for t in (preprocessing.mean, preprocessing.std))
    x, other = ((images(3, seed).to(dtype).mul(1.2).clamp(0, 1) - mean) / std for seed in (1, 2))
    for bound in (8 / 255, 0.013):
        found = manipulate(
            backlight.Saliency(model), x, other, preprocessing=preprocessing, n_steps=12, lr=0.05, bound=bound,
            stop_mse=None,
        )  # fmt: skip
        assert (found.largest_change <= bound).all()
        assert (found.largest_change > 0.999 * bound).all()
        low, high = -mean / std, (1 - mean) / std
        inside = (found.image >= torch.minimum(low, x)) & (found.image <= torch.maximum(high, x))
        assert inside.all()
        assert ((found.image == low) | (found.image == high)).any()


def test_an_image_stops_when_it_has_gone_far_enough() -> None:
    found = attacked("Saliency", n_steps=60, stop_mse=1e-5, count=3)
    assert (found.mse >= 1e-5).all()
    assert (found.mse < 4e-5).all()
    assert len(found.explanation_loss) == int(found.steps.max()) < 60
    for n, steps in enumerate(found.steps.tolist()):
        assert found.explanation_loss[:steps, n].isfinite().all()
        assert found.explanation_loss[steps:, n].isnan().all()
    free = attacked("Saliency", n_steps=60, stop_mse=None, count=3)
    assert (free.steps == 60).all()
    assert (free.mse > found.mse).all()


@pytest.mark.parametrize("name", ["Saliency", "SoftPullback", "SmoothGrad"])
def test_an_attack_on_a_batch_is_that_on_its_images(name: str) -> None:
    explainer = method(name)(convolutional(nn.ReLU), **({"n_samples": 2} if name == "SmoothGrad" else {}))
    x, other = images(3, 1), images(3, 2)
    settings: dict[str, Any] = {"n_steps": 15, "stop_mse": 1.5e-4, **UNIT}
    whole = manipulate(explainer, x, other, **settings)
    for size in (1, 2):
        parts = manipulate(explainer, x, other, internal_batch_size=size, **settings)
        assert torch.allclose(parts.image, whole.image, atol=1e-9)
    for n in range(3):
        single = manipulate(explainer, x[n : n + 1], other[n : n + 1], target=int(whole.target.index[n]), **settings)
        assert torch.allclose(single.image[0], whole.image[n], atol=1e-9)
        assert single.steps.item() == whole.steps[n].item()
    given = manipulate(explainer, x, target_map=7 * whole.aim, **settings)
    assert torch.allclose(given.image, whole.image, atol=1e-9)


def test_presets_hold_the_published_constants() -> None:
    assert (PAPER.explanation_weight, PAPER.output_weight, PAPER.lr) == (1e11, 1e6, 1e-3)
    assert (PAPER.stop_mse, PAPER.bound, PAPER.norm, PAPER.output, PAPER.pool) == (
        1e-3, 8 / 255, "sum", "logits", "sum_abs")  # fmt: skip
    assert (REFERENCE.explanation_weight, REFERENCE.output_weight, REFERENCE.lr) == (1e11, 1e6, 2e-4)
    assert (REFERENCE.n_steps, REFERENCE.norm, REFERENCE.output, REFERENCE.clamp) == (1500, "mean", "softmax", True)
    assert (REFERENCE.stop_mse, REFERENCE.bound, REFERENCE.normalise, REFERENCE.pool) == (None, None, True, "sum_abs")
    explainer, x, other = backlight.Saliency(convolutional(nn.ReLU)), images(1, 1), images(1, 2)
    for preset, attack in (("paper", PAPER), ("reference", REFERENCE), (REFERENCE, REFERENCE)):
        found = manipulate(explainer, x, other, preset=preset, **UNIT, n_steps=2)
        assert found.attack == attack.with_settings(n_steps=2)
        assert found.beta == (10.0, 100.0)


def test_the_reference_takes_mean_squares_of_softmax_outputs_of_the_smoothed_network() -> None:
    found = manipulate(
        backlight.Saliency(convolutional(nn.ReLU)), images(1, 1), images(1, 2), preset="reference", beta=10.0,
        n_steps=1, **UNIT,
    )  # fmt: skip
    soft, hard = convolutional(Soft)(images(1, 1)).softmax(1), convolutional(nn.ReLU)(images(1, 1)).softmax(1)
    assert float(found.output_loss[0]) == pytest.approx((soft - hard).square().mean().item())
    smooth = backlight.Saliency(convolutional(Soft)).attribute(images(1, 1), found.target).abs().sum(1)
    expected = (smooth / smooth.sum() - found.aim).square().mean()
    assert float(found.explanation_loss[0]) == pytest.approx(expected.item())


def test_how_channels_become_one() -> None:
    h = torch.tensor([[[[1.0, -2.0]], [[-3.0, 1.0]]]])
    assert PAPER.reduced(h).flatten().tolist() == pytest.approx([4 / 7, 3 / 7])
    assert PAPER.with_settings(pool="abs_sum").reduced(h).flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert PAPER.with_settings(normalise=False).reduced(h).flatten().tolist() == [4, 3]
    assert PAPER.reduced(0 * h).flatten().tolist() == [0, 0]
    assert PAPER.reduced(torch.tensor([[1.0, -3.0]])).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("fails", [False, True])
def test_an_attack_leaves_nothing_behind(fails: bool) -> None:
    model, x, other = convolutional(nn.ReLU), images(2, 1), images(2, 2)
    model[7].weight.requires_grad_(False)
    model[9].bias.grad = torch.ones(4, dtype=torch.float64)
    before, grad = state_of(model), model[9].bias.grad
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    seen: list[int] = []

    def progress(step: int, explained: Tensor, output: Tensor) -> None:
        assert explained.shape == output.shape == (2,)
        seen.append(step)
        if fails and step == 2:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            manipulate(backlight.Saliency(model), x, other, n_steps=5, progress=progress, **UNIT)
    else:
        found = manipulate(backlight.Saliency(model), x, other, n_steps=5, progress=progress, **UNIT)
        assert not found.image.requires_grad
        assert found.image.grad_fn is found.after.grad_fn is None
    assert seen == ([0, 1, 2] if fails else [0, 1, 2, 3, 4])
    after = state_of(model)
    assert {key: after[key] for key in after if key != "grads"} == {k: before[k] for k in before if k != "grads"}
    assert model[9].bias.grad is grad
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(x, images(2, 1))
    assert not x.requires_grad


def test_the_caller_may_stop_an_attack() -> None:
    found = attacked("Saliency", progress=lambda step, explained, output: step == 3)
    assert found.steps.tolist() == [4, 4]
    assert len(found.explanation_loss) == 4


def test_targets_are_chosen_at_their_own_images() -> None:
    model, x, other = convolutional(Soft), images(2, 1), images(2, 2)
    saliency = backlight.Saliency(model)
    own = model(other).argmax(1)
    found = manipulate(saliency, x, other, target=[3, 0], n_steps=2, **UNIT)
    assert torch.equal(found.aim, PAPER.reduced(saliency.attribute(other, own)))
    assert torch.equal(found.before, PAPER.reduced(saliency.attribute(x, [3, 0])))
    found = manipulate(saliency, x, other[:1], target=3, target_of_x_target=1, n_steps=2, **UNIT)
    assert torch.equal(found.aim, PAPER.reduced(saliency.attribute(other[:1], 1)).expand(2, 16, 16))


def test_wrong_requests_are_errors() -> None:
    saliency, x, other = backlight.Saliency(convolutional(Soft)), images(2, 1), images(2, 2)
    with pytest.raises(UnknownNameError, match="paper"):
        manipulate(saliency, x, other, preset="papper", **UNIT)
    with pytest.raises(UnknownNameError, match="n_steps"):
        manipulate(saliency, x, other, n_step=3, **UNIT)
    with pytest.raises(UnknownNameError, match="softmax"):
        Attack(output="soft_max")
    with pytest.raises(UnknownNameError, match="auto"):
        Attack(beta="automatic")
    for wrong in ({"lr": 0.0}, {"n_steps": 0}, {"bound": -1.0}, {"beta": (0.0, 1.0)}, {"output_weight": -1.0}):
        with pytest.raises(InputError):
            Attack(**wrong)
    with pytest.raises(InputError, match="preprocessing="):
        manipulate(saliency, x, other)
    with pytest.raises(InputError, match="box="):
        manipulate(saliency, x, other, scale=1)
    with pytest.raises(InputError, match="leaves the box"):
        manipulate(saliency, 3 * x, other, **UNIT)
    with pytest.raises(InputError, match="does not broadcast"):
        manipulate(saliency, x, other, scale=[1.0, 2.0], box=(0, 1))
    with pytest.raises(InputError, match="one of them"):
        manipulate(saliency, x, **UNIT)
    with pytest.raises(InputError, match="one of them"):
        manipulate(saliency, x, other, target_map=torch.rand(1, 16, 16), **UNIT)
    with pytest.raises(InputError, match="shape of x"):
        manipulate(saliency, x, other[:, :, :8], **UNIT)
    with pytest.raises(InputError, match="shape of the maps"):
        manipulate(saliency, x, target_map=torch.rand(1, 3, 16, 16), **UNIT)
    with pytest.raises(InputError, match="0 at least"):
        manipulate(saliency, x, target_map=-torch.rand(1, 16, 16), **UNIT)
    with pytest.raises(InputError, match=r"Saliency\(model\)"):
        _check("Saliency", x, other, None)
    with pytest.raises(InputError, match="float32"):
        manipulate(saliency, x.bfloat16(), other, **UNIT)
    with pytest.raises(InputError, match="internal_batch_size"):
        manipulate(saliency, x, other, internal_batch_size=-1, **UNIT)


def test_a_loss_beyond_its_type_is_an_error() -> None:
    saliency = backlight.Saliency(convolutional(Soft).float())
    with pytest.raises(NonFiniteError, match="float32"):
        manipulate(saliency, images(1, 1).float(), images(1, 2).float(), explanation_weight=1e42, **UNIT)
