"""ClassSaliency against literal references: a linear model, loops over pixels, ten sub-images one by one."""

from __future__ import annotations

import pytest
import torch
from networks import Modules, spelled
from torch import Tensor, nn
from torch.nn import functional as F

import backlight
from backlight.engine.targets import Contrast
from backlight.errors import InputError, SiteError
from backlight.methods.class_saliency import windows


def linear(*shape: int, classes: int = 3) -> nn.Sequential:
    generator = torch.Generator().manual_seed(2)
    head = nn.Linear(int(torch.tensor(shape).prod()), classes).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator, dtype=torch.float64))
    return nn.Sequential(nn.Flatten(), head)


def images(count: int = 2, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(count, channels, height, width, dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
def test_of_a_linear_model_it_is_the_largest_weight_of_a_pixel(channels: int) -> None:
    model, x = linear(channels, 5, 6), images(2, channels, 5, 6)
    found = backlight.ClassSaliency(model).attribute(x, [2, 0])
    weight = model[1].weight.detach().reshape(3, channels, 5, 6)
    for n, index in enumerate((2, 0)):
        for i in range(5):
            for j in range(6):
                largest = max(abs(float(weight[index, c, i, j])) for c in range(channels))
                assert abs(float(found[n, 0, i, j]) - largest) < 1e-14
    assert found.shape == (2, 1, 5, 6)


def test_it_is_the_reduced_saliency_and_explains_the_logit_not_the_posterior() -> None:
    model, x = spelled("modules"), images()
    gradient = backlight.Saliency(model).attribute(x, 1)
    assert torch.equal(backlight.ClassSaliency(model).attribute(x, 1), gradient.abs().amax(1, keepdim=True))
    posterior = backlight.Saliency(model).attribute(x, backlight.Probability(1)).abs().amax(1, keepdim=True)
    assert (backlight.ClassSaliency(model).attribute(x, 1) - posterior).abs().max() > 1e-3


def test_vectors_have_no_channels_and_hidden_layers_do() -> None:
    model, x = linear(7), torch.randn(2, 7, dtype=torch.float64)
    weight = model[1].weight.detach()
    assert torch.equal(backlight.ClassSaliency(model).attribute(x, 1), weight[1].abs().expand(2, 7))
    net = spelled("modules")
    hidden = backlight.ClassSaliency(net).attribute(images(), 1, sites="net.4")
    expected = backlight.Saliency(net).attribute(images(), 1, sites="net.4").abs().amax(1, keepdim=True)
    assert hidden.shape == expected.shape == (2, 1, 4, 4)


def by_hand(model: nn.Module, x: Tensor, target: int, crop: float) -> Tensor:
    """Ten sub-images of one image, cut, mirrored, resized, differentiated, and put back pixel by pixel."""
    height, width = x.shape[2:]
    h, w = round(crop * height), round(crop * width)
    total, cover = torch.zeros(height, width).double(), torch.zeros(height, width).double()
    places = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w), ((height - h) // 2, (width - w) // 2)]
    for top, left in places:
        for mirrored in (False, True):
            view = x[:, :, top : top + h, left : left + w]
            view = torch.stack(list(reversed(view.unbind(3))), 3) if mirrored else view
            view = F.interpolate(view, (height, width), mode="bilinear").detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(view)[0, target], view)
            seen = gradient[0].abs().max(0).values
            seen = torch.stack(list(reversed(seen.unbind(1))), 1) if mirrored else seen
            seen = F.interpolate(seen[None, None], (h, w), mode="bilinear")[0, 0]
            for i in range(h):
                for j in range(w):
                    total[top + i, left + j] += seen[i, j]
                    cover[top + i, left + j] += 1
    return total / cover


@pytest.mark.parametrize(("height", "width", "crop"), [(8, 8, 0.875), (16, 24, 0.875), (9, 7, 0.6), (8, 8, 1.0)])
def test_crops_by_hand(height: int, width: int, crop: float) -> None:
    model, x = spelled("F.relu"), images(2, 3, height, width)
    found = backlight.ClassSaliency(model, crops=True, crop=crop).attribute(x, [1, 2])
    for n, target in enumerate((1, 2)):
        assert torch.allclose(found[n, 0], by_hand(model, x[n : n + 1], target, crop), atol=1e-13)
    assert found.max() > 1e-3


def test_the_papers_windows() -> None:
    found = {(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in windows(256, 256, 0.875)}
    assert found == {(0, 224, 0, 224), (0, 224, 32, 256), (32, 256, 0, 224), (32, 256, 32, 256), (16, 240, 16, 240)}
    assert windows(1, 1, 0.1)[0] == (slice(0, 1), slice(0, 1))


def test_with_crops_a_map_turns_with_its_mirrored_image() -> None:
    model, x = spelled("modules"), images(2, 3, 16, 16)
    explainer = backlight.ClassSaliency(model, crops=True)
    whole = explainer.attribute(x, 1)
    assert torch.allclose(explainer.attribute(x.flip(3), 1), whole.flip(3), atol=1e-13)
    plain = backlight.ClassSaliency(model)
    assert not torch.allclose(plain.attribute(x.flip(3), 1), plain.attribute(x, 1).flip(3), atol=1e-3)


def test_with_crops_the_class_is_chosen_once_at_the_whole_image() -> None:
    model, x = spelled("modules"), images(4)
    explainer = backlight.ClassSaliency(model, crops=True)
    predicted = model(x).argmax(1)
    found = explainer.explain(x)
    assert torch.equal(found.value, explainer.attribute(x, predicted))
    assert (found.cost.forwards, found.cost.backwards) == (4 + 40, 40)
    assert found.coverage.calls("max_pool") == 10
    assert torch.allclose(explainer.attribute(x, internal_batch_size=3), found.value, atol=1e-13)
    contrast = explainer.attribute(x, Contrast())
    best = model(x).topk(2, 1).indices
    assert torch.allclose(contrast, explainer.attribute(x, Contrast(best[:, 0], best[:, 1])), atol=1e-13)


def test_with_crops_scores_are_means_over_the_sub_images() -> None:
    model, x = linear(3, 8, 8), torch.ones(1, 3, 8, 8, dtype=torch.float64)
    found = backlight.ClassSaliency(model, crops=True).explain(x, 1)
    assert torch.allclose(found.scores, model(x)[:, 1], atol=1e-12)  # every sub-image of a constant image is the image


def test_a_batch_with_crops_is_its_samples_and_leaves_nothing() -> None:
    model, x = Modules().double().eval(), images(3)
    explainer = backlight.ClassSaliency(model, crops=True)
    whole = explainer.attribute(x, [0, 1, 2])
    for n in range(3):
        assert torch.allclose(explainer.attribute(x[n : n + 1], n), whole[n : n + 1], atol=1e-13)
    assert torch.allclose(explainer.attribute(x, [0, 1, 2], internal_batch_size=2), whole, atol=1e-13)
    assert not whole.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_it_can_be_differentiated_with_crops_and_without() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(48, 2)).double()
    x = images(1, 2, 4, 4).requires_grad_()
    for crops in (False, True):
        explainer = backlight.ClassSaliency(model, crops=crops, crop=0.75)

        def total(x: Tensor, explainer: backlight.ClassSaliency = explainer) -> Tensor:
            return explainer.attribute(x, 1, create_graph=True).sum()

        assert torch.autograd.gradcheck(total, (x,), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_crops_in_half_precision(dtype: torch.dtype) -> None:
    model, x = spelled("modules"), images(1)
    double = backlight.ClassSaliency(model, crops=True).attribute(x, 1)
    half = backlight.ClassSaliency(spelled("modules").to(dtype), crops=True).attribute(x.to(dtype), 1)
    assert half.dtype == dtype
    assert torch.cosine_similarity(half.double().flatten(), double.flatten(), dim=0) > 0.95


def test_what_does_not_fit_is_said() -> None:
    model = spelled("modules")
    with pytest.raises(InputError, match="fraction"):
        backlight.ClassSaliency(model, crop=0.0)
    with pytest.raises(InputError, match="images"):
        backlight.ClassSaliency(linear(7), crops=True).attribute(torch.randn(1, 7).double(), 1)
    with pytest.raises(SiteError, match="crops are read at 'input'"):
        backlight.ClassSaliency(model, crops=True).attribute(images(), 1, sites="net.4")
    with pytest.raises(InputError, match="biases"):
        backlight.ClassSaliency(model).explain(images(), 1, bias=True)
