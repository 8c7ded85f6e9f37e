"""FullGrad: the decomposition of the score is exact, and the map is its equation written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import SPELLINGS, spelled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods import method

FullGrad = method("FullGrad")


class Branches(nn.Module):
    """Convolutions with and without bias, BatchNorms, a residual branch, sums with constants, pooling, a head."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.stem, self.conv1, self.conv2 = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.Conv2d(6, 6, 1),
        )
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(12, 3)
        self.up, self.offset = nn.ConvTranspose2d(6, 6, 2), nn.Parameter(torch.randn(6, 1, 1))
        self.activation = activation
        for bn in (self.bn1, self.bn2):
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2)
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem((x - 0.4) / 0.3))
        y = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)) + self.offset)))
        x = F.max_pool2d(self.activation(1 - self.up(x + y)), 2)
        x = torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1), torch.ones(len(x), 6, dtype=x.dtype)], 1)
        return self.head(x)


ACTIVATIONS = [F.relu, F.leaky_relu, F.relu6, F.elu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.softplus, F.hardswish]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_score_is_the_gradient_s_share_and_the_biases(activation: Callable[[Tensor], Tensor], x: Tensor) -> None:
    model = Branches(activation).double().eval()
    found = FullGrad(model).explain(x, 1)
    gradient = method("Saliency")(model).attribute(x, 1)
    score = model(x)[:, 1].detach()
    assert torch.equal(found.scores, score)
    assert torch.allclose((x * gradient).flatten(1).sum(1) + found.bias, score, rtol=0, atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    assert found.bias.abs().min() > 1e-3


@pytest.mark.parametrize("activation", [F.relu, F.leaky_relu])
def test_the_biases_share_is_the_engine_s(activation: Callable[[Tensor], Tensor], x: Tensor) -> None:
    model = Branches(activation).double().eval()
    expected = method("Pullback")(model).explain(x, 1, bias=True).bias
    assert torch.allclose(FullGrad(model).explain(x, 1).bias, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_decomposition_is_exact_in_every_spelling(spelling: str) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert FullGrad(spelled(spelling)).explain(x, [0, 2]).residual.abs().max() < 1e-12


def test_what_is_not_affine_leaves_a_residual(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)).double()
    assert FullGrad(model).explain(x, 1).residual.abs().min() > 1e-3


def rescaled(maps: Tensor, how: str) -> Tensor:
    """`[C, H, W]`, absolute; each channel, or all of them, to [0, 1]."""
    maps = maps.abs()
    if how == "layer":
        return (maps - maps.min()) / (maps.max() - maps.min())
    if how == "map":
        return torch.stack([(m - m.min()) / (m.max() - m.min()) if m.max() > m.min() else m * 0 for m in maps])
    return maps


def literal(model: nn.Module, layers: dict[str, Tensor], x: Tensor, target: int, how: str) -> Tensor:
    """The map of one sample `[1, C, H, W]`, from gradients at the layers' outputs and their constants."""
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: outputs.update({name: y}))
        for name in layers
    ]
    x = x.clone().requires_grad_()
    score = model(x)[0, target]
    for handle in handles:
        handle.remove()
    first, *gradients = torch.autograd.grad(score, [x, *outputs.values()])
    total = rescaled((x * first)[0], how).sum(0)
    for name, g in zip(outputs, gradients, strict=True):
        for one in rescaled(layers[name][:, None, None] * g[0], how):
            total = total + F.interpolate(one[None, None], x.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return total.detach()


@pytest.mark.parametrize("how", ["map", "layer", "none"])
def test_the_map_is_its_equation(how: str, x: Tensor) -> None:
    torch.manual_seed(3)
    bn = nn.BatchNorm2d(5)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        bn,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    nn.init.normal_(bn.running_mean)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    nn.init.normal_(bn.weight)
    model.eval()
    constants = {
        "0": model[0].bias,
        "1": bn.bias - bn.weight * bn.running_mean / (bn.running_var + bn.eps).sqrt(),
        "4": model[4].bias,
    }
    expected = torch.stack([literal(model, constants, one[None], 1, how)[None] for one in x])
    found = FullGrad(model, rescale=how).attribute(x, 1)
    assert found.shape == (3, 1, 9, 9)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert found.min() >= 0


def test_maps_with_channels_last_count(x: Tensor) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.mix, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1), nn.Linear(4, 3)
            self.last = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if self.last:
                x = F.linear(x.permute(0, 2, 3, 1), self.mix.weight[:, :, 0, 0], self.mix.bias).permute(0, 3, 1, 2)
            else:
                x = self.mix(x)
            return self.head((F.relu(x) ** 1).mean((2, 3)))

    model = Last().double()
    first = FullGrad(model).explain(x, 1)
    model.last = True
    last = FullGrad(model).explain(x, 1)
    assert torch.allclose(first.value, last.value, atol=1e-12)
    assert last.residual.abs().max() < 1e-12


def test_batches_that_do_not_fit_leave_nothing_in_the_next(x: Tensor) -> None:
    class Small(nn.Module):
        """Has no memory for more than one sample, which it says after its first layers."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Branches().double().eval()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            if len(x) > 1:
                raise RuntimeError("out of memory")
            return y

    found = FullGrad(Small()).explain(x, 1)
    expected = FullGrad(Branches().double().eval()).explain(x, 1)
    assert torch.allclose(found.value, expected.value, atol=1e-13)
    assert torch.allclose(found.bias, expected.bias, atol=1e-13)


def test_a_map_can_be_differentiated_in_the_input(x: Tensor) -> None:
    model = Branches(F.softplus).double().eval()
    x = x[:1].clone().requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64)

    def size(at: Tensor) -> Tensor:
        return (FullGrad(model, rescale="none").attribute(at, 1, create_graph=True) ** 2).sum()

    (gradient,) = torch.autograd.grad(size(x), x)
    step = 1e-6
    slope = (size((x + step * direction).detach()) - size((x - step * direction).detach())) / (2 * step)
    assert float((gradient * direction).sum().detach()) == pytest.approx(float(slope.detach()), rel=1e-5)


def test_what_it_cannot_do_is_named(x: Tensor) -> None:
    model = Branches().double().eval()
    with pytest.raises(UnknownNameError, match="rescaling"):
        FullGrad(model, rescale="maps")
    with pytest.raises(SiteError, match="'stem'"):
        FullGrad(model).attribute(x, 1, sites="stem")
    with pytest.raises(InputError, match="one input"):
        FullGrad(model).attribute((x, x), 1)
    with pytest.raises(InputError, match=r"\[N, C, H, W\]"):
        FullGrad(nn.Linear(4, 3)).attribute(torch.randn(2, 4), 1)
