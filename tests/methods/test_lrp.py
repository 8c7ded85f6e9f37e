"""LRP and its composites: conservation, BatchNorm folded on the fly, first layers, real networks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
from networks import small_vgg, spelled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import backlight
from backlight.errors import InputError, UncoveredOperationError, UnknownNameError
from backlight.methods import method
from backlight.rules.composites import COMPOSITES, Composite
from backlight.rules.relevance import AlphaBetaRule, EpsilonRule, GammaRule, ZPlusRule

assert backlight  # before torchvision: it may not fit the build of torch

EXACT = {"epsilon": 0.0}  # no stabiliser: nothing is absorbed but by biases
FIRST = [name for name in COMPOSITES if name.endswith(("flat", "box"))]


class Block(nn.Module):
    """conv, norm, relu, conv, norm, + identity or projection, relu in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        plain = inputs == outputs and stride == 1
        self.short = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)


class Joined(nn.Module):
    """Concatenation of what came in and what was made of it, as in DenseNet and SqueezeNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 3, 1, bias=False), nn.Conv2d(channels, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.one(x), inplace=True), self.two(x).relu_()], 1)


def network(biases: bool = False) -> nn.Sequential:
    """Residuals, projections, folded and free norms, concatenation, max- and average pooling, in-place ReLU."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=biases), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        Block(4, 4), Block(4, 6, 2), Joined(6), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 8, bias=biases), nn.ReLU(), nn.Linear(8, 3, bias=biases),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if biases:
                nn.init.normal_(module.bias, std=0.3)
                module.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
    return model.double().eval()


def images(size: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", COMPOSITES)
def test_without_biases_all_relevance_reaches_the_input(name: str) -> None:
    model, x = network(), images()
    found = method("LRP")(model, composite=name, **EXACT).explain(x, [0, 2])
    score = model(x)[[0, 1], [0, 2]].detach()
    assert score.abs().min() > 1e-3
    assert torch.allclose(found.value.flatten(1).sum(1), score, rtol=1e-9)
    assert found.coverage.uncovered == ()


@pytest.mark.parametrize("name", COMPOSITES)
def test_with_biases_what_they_absorb_is_known(name: str) -> None:
    model, x = network(biases=True), images()
    for eps in (0.0, 0.1):
        found = method("LRP")(model, composite=name, epsilon=eps).explain(x, 1, bias=True)
        assert found.residual.abs().max() < 1e-10
        assert found.bias.abs().min() > 1e-3
        total = found.value.flatten(1).sum(1) + found.bias
        assert torch.allclose(total, model(x)[:, 1].detach(), atol=1e-10)
        assert torch.allclose(method("LRP")(model, composite=name, epsilon=eps).attribute(x, 1), found.value)


def test_gates_and_norms_of_all_kinds_account_for_their_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SiLU(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, groups=4), nn.GELU(),
        nn.ConvTranspose2d(4, 4, 2), nn.Hardswish(), nn.AvgPool2d(3, padding=1), nn.ELU(), nn.BatchNorm2d(4),
        nn.Sigmoid(), nn.Flatten(), nn.LayerNorm(100), nn.Linear(100, 3),
    ).double().eval()  # fmt: skip
    x = images(16)
    for name in COMPOSITES:
        found = method("LRP")(model, composite=name).explain(x, 1, bias=True)
        assert found.residual.abs().max() < 1e-10


def fused(model: nn.Sequential) -> nn.Sequential:
    """The same function with its norms folded into the convolutions before them, for good."""
    found: list[nn.Module] = []
    for module in model:
        if isinstance(module, nn.BatchNorm2d) and found and isinstance(found[-1], nn.Conv2d):
            found[-1] = fuse_conv_bn_eval(found[-1], module)
        else:
            found.append(module)
    for module in found:
        if isinstance(module, Block):
            module.conv1, module.bn1 = fuse_conv_bn_eval(module.conv1, module.bn1), nn.Identity()
            module.conv2, module.bn2 = fuse_conv_bn_eval(module.conv2, module.bn2), nn.Identity()
            if isinstance(module.short, nn.Sequential):
                module.short = nn.Sequential(fuse_conv_bn_eval(module.short[0], module.short[1]))
    return nn.Sequential(*found)


@pytest.mark.parametrize("name", COMPOSITES)
def test_norms_folded_on_the_fly_are_norms_folded_for_good(name: str) -> None:
    model, x = network(biases=True), images()
    found = method("LRP")(model, composite=name).explain(x, 1)
    assert found.coverage.calls("batch_norm", "folded") == 7
    with torch.no_grad():
        for module in model.modules():  # nothing was written
            assert not isinstance(module, nn.Conv2d) or not hasattr(module, "folded")
    other = fused(network(biases=True))
    assert len([m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]) == 1
    expected = method("LRP")(other, composite=name).attribute(x, 1)
    assert ((found.value - expected).norm() / expected.norm()).item() < 1e-10


def test_folding_matters_where_signs_do() -> None:
    """A negative scale turns positive weights into negative ones."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).double().eval()  # fmt: skip
    nn.init.constant_(model[1].weight, -1.0)
    x = images(4)
    apart = method("LRP")(model, composite="zplus").rules().override({"1": method("CPLRP")(model).rules()})
    found = backlight.attribute(model, x, 1, rules=apart, readout="value").value
    assert (found - method("LRP")(model, composite="zplus").attribute(x, 1)).abs().max() > 1e-3


def test_a_sum_splits_relevance_in_proportion_to_its_parts() -> None:
    model = nn.Sequential(Block(2, 2), nn.Flatten(), nn.Linear(32, 1, bias=False)).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    rules = method("LRP")(model, composite="epsilon", epsilon=0.0).rules()
    found = backlight.attribute(model, x, 0, rules=rules, sites=("0.bn2", "0.short"), readout="value").values
    total = (model[0](x) * model[2].weight.view(1, 2, 4, 4)).detach()
    with torch.no_grad():
        block = model[0]
        main = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.allclose(found["0.bn2"], total * main / (main + x), atol=1e-10)
    assert torch.allclose(found["0.short"], total * x / (main + x), atol=1e-10)


def test_relevance_is_conserved_from_layer_to_layer() -> None:
    model, x = network(), images()
    sites = ("0", "3", "4", "5", "6", "8", "9", "11", "12")
    found = method("LRP")(model, composite="zplus").attribute(x, 1, sites=sites)
    score = model(x)[:, 1].detach()
    for value in found:
        assert torch.allclose(value.flatten(1).sum(1), score, rtol=1e-9)


def test_z_plus_gives_no_negative_relevance_to_a_positive_score() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 2), nn.ReLU(),
    ).double().eval()  # fmt: skip
    x = images(12)
    target = model(x).argmax(1)
    assert method("LRP")(model, composite="zplus").attribute(x, target).min() >= 0
    assert method("LRP")(model, composite="epsilon").attribute(x, target).min() < -1e-4


# first layers


class Prepared(nn.Module):
    """A network that moves and rescales its input before the first layer."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(self.prepare(x))).flatten(1))


MEAN, STD = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 2.0, 0.25]).view(3, 1, 1)
MOVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # what the network does, and what becomes of the relevance R of the convolution's input
    "nothing": (lambda x: x, lambda r: r),
    "channels turned round": (lambda x: x[:, [2, 1, 0]], lambda r: r[:, [2, 1, 0]]),
    "normalised": (lambda x: (x - MEAN) / STD, lambda r: r),
    "normalised in place": (lambda x: x.clone().sub_(MEAN).div_(STD), lambda r: r),
    "channel by channel": (
        lambda x: torch.cat([x[:, 0:1] * 2 + 1, x[:, 1].unsqueeze(1) * -3, 1 - x[:, 2:]], 1), lambda r: r
    ),
    "taken apart": (lambda x: torch.stack(x.contiguous().unbind(1), 1), lambda r: r),
    "summed over three": (lambda x: x.clone().expand_as(x).to(torch.float64), lambda r: r),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("move", MOVES)
def test_the_first_layer_is_found_behind_moves_and_normalisation(move: str, name: str) -> None:
    prepare, back = MOVES[move]
    torch.manual_seed(0)
    model = Prepared(prepare).double()
    x = images(8)
    x[:, :, 2, 2] = 0
    with torch.no_grad():
        prepared = prepare(x)
    plain = Prepared(lambda x: x).double()
    plain.load_state_dict(model.state_dict())
    expected = back(method("LRP")(plain, composite=name).attribute(prepared, 1))
    assert torch.allclose(method("LRP")(model, composite=name).attribute(x, 1), expected, atol=1e-10)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("prepare", [lambda x: x, lambda x: (x - MEAN) / STD], ids=["plain", "normalised"])
def test_padding_by_hand_is_padding(prepare: Callable[[Tensor], Tensor], name: str) -> None:
    """What is padded by hand, with zeros, gets no share, as what a convolution pads by itself."""

    class Padded(nn.Module):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=0 if by_hand else 1, stride=2), nn.Linear(64, 2)
            self.by_hand = by_hand

        def forward(self, x: Tensor) -> Tensor:
            x = prepare(x)
            return self.head(F.relu(self.conv(F.pad(x, (1, 1, 1, 1)) if self.by_hand else x)).flatten(1))

    model, other = Padded(True).double(), Padded(False).double()
    other.load_state_dict(model.state_dict())
    box = {"low": -20.0, "high": 20.0}
    found, expected = (method("LRP")(m, composite=name, **box).explain(images(8), 1, bias=True) for m in (model, other))
    assert torch.allclose(found.value, expected.value, atol=1e-12)
    assert found.residual.abs().max() < 1e-12


def test_what_goes_past_the_first_layer_keeps_its_relevance() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Linear(48, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(x) + x * 2).flatten(1))

    model, x = Skipping().double(), images(4)
    g = model.head.weight[1].detach().reshape(1, 3, 4, 4)
    flat = method("LRP")(model.conv, composite="epsilon_plus_flat").attribute(x, lambda y: (y * g).flatten(1).sum(1))
    found = method("LRP")(model, composite="epsilon_plus_flat", epsilon=0.0).attribute(x, 1)
    assert torch.allclose(found, flat + 2 * x * g, atol=1e-12)
    assert torch.allclose(found.flatten(1).sum(1), model(x)[:, 1], atol=1e-12)


def test_hidden_layers_are_no_first_layers() -> None:
    """Read at a hidden site, or at the same time as the input, a composite says the same of the layers behind it."""
    model, x = network(), images()
    hidden = method("LRP")(model, composite="epsilon_plus_flat").attribute(x, 1, sites="3")
    plain = method("LRP")(model, composite="epsilon_plus").attribute(x, 1, sites="3")
    both = method("LRP")(model, composite="epsilon_plus_flat").attribute(x, 1, sites=("input", "3"))
    assert torch.equal(hidden, plain)
    assert torch.equal(both[1], plain)
    assert torch.equal(both[0], method("LRP")(model, composite="epsilon_plus_flat").attribute(x, 1))


def test_before_the_first_layer_there_is_no_site() -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)).double()
    with pytest.raises(InputError, match="choose the site 'input'"):
        method("LRP")(model, composite="epsilon_plus_flat").attribute(images(4), 1, sites="0")
    assert method("LRP")(model, composite="epsilon_plus").attribute(images(4), 1, sites="0").shape == (2, 3, 6, 6)


def test_a_composite_whose_first_layer_is_missing_says_so() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).double()
    with pytest.raises(UncoveredOperationError, match="epsilon_plus"):
        method("LRP")(model, composite="epsilon_plus_flat").attribute(images(4), 1)


def test_an_unknown_composite_lists_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="epsilon_plus_flat"):
        method("LRP")(network(), composite="epsilon_flat_plus").attribute(images(), 1)


def test_several_inputs_have_a_first_layer_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(F.relu(self.a(x[:, [2, 0, 1]]) + self.b(y[:, [4, 3, 2, 1, 0]])))

    model = Two().double()
    for parameter in (model.a.bias, model.b.bias, model.head.bias):
        nn.init.zeros_(parameter)
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    found = method("LRP")(model, composite="epsilon_plus_flat", epsilon=0.0).attribute((x, y), 1)
    assert [value.shape for value in found] == [x.shape, y.shape]
    assert torch.allclose(found[0].sum(1) + found[1].sum(1), model(x, y)[:, 1], atol=1e-12)
    assert found[0].std(1).max() < 1e-12  # flat: equal shares of the first input, and of the second
    assert found[1].std(1).max() < 1e-12


# conformance of the other composites


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_takes_batches_and_any_precision(name: str) -> None:
    model, x = network(biases=True), images(count=3)
    explainer = method("LRP")(model, composite=name)
    whole = explainer.attribute(x, [0, 1, 2])
    for n in range(3):
        assert torch.allclose(explainer.attribute(x[n : n + 1], n), whole[n : n + 1], atol=1e-12)
    assert torch.allclose(explainer.attribute(x, [0, 1, 2], internal_batch_size=2), whole, atol=1e-12)
    single = method("LRP")(network(biases=True).float(), composite=name).attribute(x.float(), [0, 1, 2])
    assert ((single - whole).norm() / whole.norm()).item() < 1e-4
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    whole = method("LRP")(spelled("modules"), composite=name).attribute(x, 1)
    for dtype in (torch.bfloat16, torch.float16):
        half = method("LRP")(spelled("modules").to(dtype), composite=name).attribute(x.to(dtype), 1)
        assert half.dtype == dtype
        assert torch.cosine_similarity(half.double().flatten(), whole.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("spelling", ["modules in place", "one shared ReLU in place", "clamp(min=0)", "+="])
def test_a_composite_does_not_see_how_a_network_is_written(name: str, spelling: str) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    a, b = (method("LRP")(spelled(one), composite=name).attribute(x, 1) for one in ("modules", spelling))
    assert (a - b).abs().max() < 1e-10
    assert a.abs().max() > 1e-4


def test_a_composite_of_one_s_own() -> None:
    model, x = network(biases=True), images()
    own = Composite(GammaRule(0.25), EpsilonRule(1e-6), GammaRule(0.25))
    mixed = method("LRP")(model, composite=own).rules().override({"0": method("LRP")(model, composite="zplus").rules()})
    assert torch.isfinite(backlight.attribute(model, x, 1, rules=mixed, readout="value").value).all()
    half = Composite(AlphaBetaRule(1.5, 0.5), EpsilonRule(1e-6), ZPlusRule())
    assert not torch.allclose(
        method("LRP")(model, composite=own).attribute(x, 1), method("LRP")(model, composite=half).attribute(x, 1)
    )


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_keeps_nothing_alive(name: str, graph: bool) -> None:
    model, x = network(biases=True), images()
    seen: list[weakref.ref] = []
    handles = [
        module.register_forward_hook(lambda m, args, y: seen.append(weakref.ref(y)))
        for module in model
        if not isinstance(module, nn.Flatten)
    ]
    gc.collect()
    gc.disable()  # graphs go by themselves, without the collector
    try:
        found = method("LRP")(model, composite=name).attribute(x.clone().requires_grad_(), 1, create_graph=graph)
        assert found.requires_grad == graph
        del found
        assert len(seen) == 13
        assert [ref for ref in seen if ref() is not None] == []
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()


# real networks


def zoo() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")

    def tv(name: str, **settings: bool) -> Callable[[], nn.Module]:
        return lambda: torchvision.models.get_model(name, weights=None, num_classes=7, **settings)

    return {
        "resnet18": (tv("resnet18"), 48),
        "vgg11_bn": (small_vgg, 32),
        "densenet121": (tv("densenet121"), 32),
        "mobilenet_v2": (tv("mobilenet_v2"), 32),
        "squeezenet1_1": (tv("squeezenet1_1"), 48),
        "googlenet": (tv("googlenet", aux_logits=False, init_weights=False, transform_input=True), 64),
        "efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=7), 32),
        "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=7), 32),  # SE and SiLU
    }


NAMES = "resnet18 vgg11_bn densenet121 mobilenet_v2 squeezenet1_1 googlenet efficientnet_lite0 efficientnet_b0".split()


@cache
def real(name: str) -> nn.Module:
    """Random weights without biases, in layers or in statistics."""
    torch.manual_seed(0)
    model = zoo()[name][0]().double().eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif key.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.0)
        else:
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("composite", "epsilon zplus epsilon_plus_flat epsilon_alpha2_beta1 epsilon_gamma_box".split())
@pytest.mark.parametrize("name", NAMES)
def test_a_real_network_without_biases_conserves_relevance(name: str, composite: str) -> None:
    model, side = real(name), zoo()[name][1]
    x = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = method("LRP")(model, composite=composite, epsilon=0.0).explain(x, 3, bias=True)
    assert torch.isfinite(found.value).all()
    assert found.coverage.uncovered == ()
    size = found.value.abs().sum().item() + found.scores.abs().item()
    assert found.residual.abs().item() < 1e-9 * size
    if name != "googlenet" or composite in FIRST:  # its transform_input adds constants: a bias
        assert found.bias.abs().item() < 1e-9 * size
        assert (found.value.sum() - found.scores).abs().item() < 1e-9 * size
    assert size > 1e-12
    if composite == "zplus":
        assert torch.allclose(
            method("LRP")(model, composite="zplus").attribute(x, 3), found.value, rtol=1e-6, atol=1e-12 * size
        )
