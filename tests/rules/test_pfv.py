"""The rules of sharing ratios: each operation by itself, in closed form, and in both forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from probes import Spelled
from sharing_networks import relative
from torch import Tensor, nn
from torch.nn import functional as F

from backlight import SRD
from backlight.engine import attribute
from backlight.errors import InputError, UncoveredOperationError, UnknownNameError
from backlight.rules.pfv import srd
from backlight.rules.relevance_flow import class_activation

Step = Callable[[Tensor], Tensor]
CONSTANT = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(-1, 1, 1)
PLANE = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(1, 1, 6, 6)


class Around(nn.Module):
    """conv, tanh, the step, conv, tanh, mean, linear: what a step does to relevance on its way."""

    def __init__(self, step: Step, width: int = 4, last: bool = True) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.head, self.step, self.last = nn.Linear(4 if last else width, 5), step, last
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.first(x).tanh())
        x = self.second(x).tanh() if self.last else x.tanh()
        return self.head(x.flatten(2).mean(2))


def image(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def both(model: nn.Module, x: Tensor, bias: str = "norm") -> tuple[Tensor, Tensor]:
    """(map, residual), which both forms agree on."""
    explainer = SRD(model, head="raw", bias=bias)
    found = explainer.explain(x, 1)
    operator = explainer.prepare(x)
    assert relative(operator.relevance(operator.seed(1))[:, None], found.value) < 1e-10
    assert found.value.abs().max() > 1e-4
    return found.value, found.residual


# nodes and layers, in closed form


def test_a_node_sends_its_pre_activation_back() -> None:
    """g_z = z R / <z, z>, with R = <a, g_a>, whatever the activation."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(4, 4, 1, bias=False).double()
    for act in (torch.tanh, F.gelu, F.elu, F.silu, F.leaky_relu):
        x = image()
        z = first(x)
        a = act(z)
        model = Spelled(lambda x, act=act: second(act(first(x))).tanh().flatten(2).mean(2))
        found = attribute(model, x, 1, rules=srd("drop"), readout="cotangent").value
        b = second(a)
        seed = b.tanh()[:, 1:2] / 36  # Grad-CAM of the second unit
        carried = torch.einsum("dc,ndhw->nchw", second.weight[..., 0, 0], b * seed / (b * b).sum(1, keepdim=True))
        relevance = (a * carried).sum(1, keepdim=True)
        assert relative(relevance, seed) < 1e-12  # one source at every position
        at_z = z * relevance / (z * z).sum(1, keepdim=True)
        assert relative(found, torch.einsum("dc,ndhw->nchw", first.weight[..., 0, 0], at_z)) < 1e-10


def test_a_convolution_shares_its_bias_by_norms() -> None:
    """mu_h = <u_h + b |u_h| / sum |u|, z> / <z, z>, for two taps."""
    torch.manual_seed(0)
    conv = nn.Conv1d(2, 3, 2).double()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    model = Spelled(lambda x: conv(x).tanh().sum(2))
    u = torch.stack([torch.einsum("dc,cj->dj", conv.weight[..., h], x[0, :, h : h + 2]) for h in (0, 1)])
    z = u.sum(0) + conv.bias[:, None]
    seed = z.tanh()[0]  # of the sum over positions, Grad-CAM's weights are 1
    for bias in ("norm", "uniform", "drop"):
        portions = u.norm(dim=1) if bias == "norm" else torch.ones(2, 2, dtype=torch.float64)
        share = portions / portions.sum(0) if bias != "drop" else torch.zeros(2, 2, dtype=torch.float64)
        mu = ((u + share[:, None] * conv.bias[:, None]) * z).sum(1) / (z * z).sum(0)
        expected = torch.stack([mu[0, 0] * seed[0], mu[1, 0] * seed[0] + mu[0, 1] * seed[1], mu[1, 1] * seed[1]])
        found = SRD(model, head="raw", bias=bias).attribute(x, 0)
        assert relative(found.flatten(), expected.detach()) < 1e-10, bias


def test_a_batch_norm_is_part_of_the_layer_before_it() -> None:
    """The same map as that of the folded convolution, to whose constants the biases of both belong."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    fused = torch.nn.utils.fuse_conv_bn_eval(conv.double().eval(), norm.double().eval())
    tail = nn.Sequential(nn.ELU(), nn.Conv2d(4, 4, 3), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    for bias in ("norm", "uniform", "drop"):
        found, _ = both(nn.Sequential(conv, norm, tail), image(), bias)
        assert relative(found, both(nn.Sequential(fused, tail), image(), bias)[0]) < 1e-10


def test_branches_share_by_their_part_of_the_sum() -> None:
    """<F_j, z_j> / <z_j, z_j> and <a_j, z_j> / <z_j, z_j>."""
    model = Around(lambda a: a, last=False)
    pointwise = nn.Conv2d(4, 4, 1).double()
    shift = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False).double()  # each position reads its left neighbour
    nn.init.zeros_(shift.weight[..., 1:])
    model.step = lambda a: pointwise(a) + shift(a)
    x = image(1)
    a = model.first(x).tanh().detach()
    ours, left = pointwise(a), shift(a)
    z = (ours + left).detach()
    mu = (left * z).sum(1) / (z * z).sum(1)
    operator = SRD(model, head="raw").prepare(x)
    edges = next(edges for edges in operator.edges.values() if len(edges) == 2)
    assert relative(edges[0].total, 1 - mu) < 1e-10
    assert relative(edges[1].total, mu) < 1e-10
    ones = torch.ones(1, 1, 6, 6, dtype=torch.float64)
    assert relative(edges[0].back(ones)[:, 0], 1 - mu) < 1e-10  # at its own position
    assert relative(edges[1].back(ones)[:, 0, :, :-1], mu[..., 1:]) < 1e-10  # at its left neighbour


# constants


@pytest.mark.parametrize(
    ("name", "step", "scale", "shift"),
    [
        ("x + c", lambda x: x + CONSTANT, 1, CONSTANT),
        ("c + x", lambda x: CONSTANT + x, 1, CONSTANT),
        ("x - c", lambda x: x - CONSTANT, 1, -CONSTANT),
        ("c - x", lambda x: CONSTANT - x, -1, CONSTANT),
        ("1 - x", lambda x: 1 - x, -1, torch.ones_like(CONSTANT)),
        ("0.5 + x", lambda x: 0.5 + x, 1, torch.full_like(CONSTANT, 0.5)),
        ("add, alpha", lambda x: torch.add(x, CONSTANT, alpha=2), 1, 2 * CONSTANT),
        ("add to a constant, alpha", lambda x: torch.add(CONSTANT.expand_as(x), x, alpha=2), 2, CONSTANT),
        ("sub, alpha", lambda x: torch.sub(CONSTANT.expand_as(x), x, alpha=3), -3, CONSTANT),
        ("rsub, alpha", lambda x: torch.rsub(x, CONSTANT.expand_as(x), alpha=3), -3, CONSTANT),
        ("in place", lambda x: x.clone().add_(CONSTANT), 1, CONSTANT),
        ("times and plus", lambda x: x * 2 + CONSTANT, 2, CONSTANT),
        ("divided", lambda x: (x + CONSTANT) / 2, 0.5, CONSTANT / 2),
    ],
)
@pytest.mark.parametrize("bias", ["norm", "uniform", "drop"])
def test_a_constant_is_a_bias_of_a_position_wise_layer(
    name: str, step: Step, scale: float, shift: Tensor, bias: str
) -> None:
    x = image()
    layer = nn.Conv2d(4, 4, 1).double()
    with torch.no_grad():
        layer.weight.copy_(scale * torch.eye(4, dtype=torch.float64).reshape(4, 4, 1, 1))
        layer.bias.copy_(shift.flatten())
    assert relative(Around(step)(x), Around(layer)(x)) < 1e-12
    for last in (True, False):
        found, lost = both(Around(step, last=last), x, bias)
        expected, known = both(Around(layer, last=last), x, bias)
        assert relative(found, expected) < 1e-10, name
        assert (lost - known).abs().max() < 1e-12


def test_constant_channels_are_biases() -> None:
    """As in CoordConv: a concatenation with constants is a position-wise layer with a bias."""
    x = image()
    step = lambda a: torch.cat([PLANE.expand(len(a), 1, 6, 6), a, PLANE.expand(len(a), 1, 6, 6)], 1)  # noqa: E731
    for bias in ("norm", "uniform"):
        for last in (True, False):
            _, lost = both(Around(step, 6, last), x, bias)
            assert lost.abs().max() < 1e-12
    assert both(Around(step, 6), x, "drop")[1].abs().min() > 1e-5
    zeros = lambda a: torch.cat([a, torch.zeros_like(a)], 1)  # noqa: E731
    padded = lambda a: F.pad(a, (0, 0, 0, 0, 0, 4))  # noqa: E731
    assert relative(both(Around(zeros, 8), x)[0], both(Around(padded, 8), x)[0]) < 1e-12


def test_what_fills_a_margin_comes_from_nowhere() -> None:
    x = image()
    assert both(Around(lambda a: F.pad(a, (1, 1, 0, 1))), x)[1].abs().max() < 1e-12
    wide = both(Around(lambda a: F.pad(a, (1, 1, 0, 2))), x)  # the last row sees nothing: it is made of the bias alone
    assert wide[1].abs().min() > 1e-3
    ones = both(Around(lambda a: F.pad(a, (1, 1, 0, 1), value=1.0)), x)
    assert ones[1].abs().min() > 1e-3  # what it makes of the score is lost, and said to be
    seed = SRD(Around(lambda a: F.pad(a, (1, 1, 0, 1), value=1.0)), head="raw").prepare(x).seed(1)
    assert relative(ones[0].flatten(1).sum(1) + ones[1], seed.flatten(1).sum(1)) < 1e-10


# moving positions


@pytest.mark.parametrize(
    ("step", "width"),
    [
        (lambda a: F.pad(a, (1, 2, 0, 1), mode="reflect"), 4),
        (lambda a: F.pad(a, (1, 2, 0, 1), mode="replicate"), 4),
        (lambda a: F.pad(a, (1, 2, 0, 1), mode="circular"), 4),
        (lambda a: F.max_pool2d(F.pad(a, (1, 1, 1, 1), value=-torch.inf), 3, 2), 4),
        (lambda a: a.roll((1, -2), (2, 3)), 4),
        (lambda a: a.roll(1, 1), 4),
        (lambda a: a.flip(2, 3), 4),
        (lambda a: a.rot90(1, (2, 3)), 4),
        (lambda a: a[:, :, 1:, ::2], 4),
        (lambda a: a[:, 1:3], 2),
        (lambda a: a.narrow(2, 1, 3), 4),
        (lambda a: a.repeat(1, 1, 2, 1), 4),
        (lambda a: a.repeat(1, 2, 1, 1), 8),
        (lambda a: F.pixel_shuffle(a, 2), 1),
        (lambda a: a.index_select(3, torch.tensor([0, 0, 5])), 4),
        (lambda a: torch.cat([a.chunk(2, 1)[1], a.chunk(2, 1)[0]], 1), 4),
        (lambda a: a.view(2, 2, 2, 6, 6).transpose(1, 2).reshape(2, 4, 6, 6), 4),
        (lambda a: torch.stack([a, 2 * a]).mean(0), 4),
        (lambda a: a.mean(1, keepdim=True), 1),
        (lambda a: F.dropout(a, training=False), 4),
        (lambda a: a.contiguous().clone(), 4),
        (lambda a: F.max_pool2d(a, 2, return_indices=True)[0], 4),
        (lambda a: F.max_pool2d(input=a, kernel_size=2), 4),
        (lambda a: F.adaptive_avg_pool2d(a, (3, 2)), 4),
        (lambda a: F.avg_pool2d(a, 2, divisor_override=3), 4),
        (lambda a: F.group_norm(a, 2), 4),
        (lambda a: F.instance_norm(a), 4),
        (lambda a: a * torch.sigmoid(a.mean(1, keepdim=True)), 4),
        (lambda a: torch.sigmoid(a.mean((2, 3), keepdim=True)) * a, 4),
    ],
)
def test_steps_that_lose_nothing(step: Step, width: int) -> None:
    _, lost = both(Around(step, width), image())
    assert lost.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("step", "width"),
    [
        (lambda a: F.interpolate(a, scale_factor=2), 4),
        (lambda a: F.interpolate(a, size=(4, 9), mode="bilinear"), 4),
        (lambda a: F.adaptive_avg_pool2d(a, 4), 4),
        (lambda a: F.adaptive_max_pool2d(a, 4), 4),
        (lambda a: torch.cat([a, a.flip(2)], 2), 4),
        (lambda a: F.pixel_unshuffle(a, 2), 16),
    ],
)
def test_steps_that_only_the_backward_rules_follow(step: Step, width: int) -> None:
    """They are linear, so that backward rules are exact; windows or weights differ from position to position."""
    model, x = Around(step, width), image()
    found = SRD(model, head="raw").explain(x, 1)
    assert found.residual.abs().max() < 1e-12
    assert found.value.abs().max() > 1e-4
    with pytest.raises(UncoveredOperationError):
        SRD(model).prepare(x)


# activations, however they are spelled


def test_an_activation_by_hand_is_the_activation() -> None:
    x = image()
    expected, _ = both(Around(F.silu), x)
    assert relative(both(Around(lambda a: a * torch.sigmoid(a)), x)[0], expected) < 1e-10
    assert relative(both(Around(lambda a: torch.sigmoid(a) * a), x)[0], expected) < 1e-10
    relu, _ = both(Around(F.relu), x)
    for spelled in (torch.relu, lambda a: a.clamp(min=0), lambda a: torch.maximum(a, torch.zeros_like(a)),
                    lambda a: torch.maximum(torch.zeros_like(a), a), lambda a: F.threshold(a, 0.0, 0.0),
                    lambda a: a.clone().relu_()):  # fmt: skip
        assert relative(both(Around(spelled), x)[0], relu) < 1e-12


def test_hand_written_activations_of_transformers_are_known() -> None:
    activations = pytest.importorskip("transformers").activations
    x = image()
    quick = both(Around(activations.QuickGELUActivation()), x)[0]
    other = both(Around(lambda a: F.gelu(a)), x)[0]
    assert relative(quick, other) < 0.2
    new = both(Around(activations.NewGELUActivation()), x)[0]
    assert relative(new, both(Around(lambda a: F.gelu(a, approximate="tanh")), x)[0]) < 1e-10


# the rule set by itself


def test_the_rule_set_is_the_method() -> None:
    model, x = Around(lambda a: F.max_pool2d(a, 2)), image()
    found = attribute(model, x, 1, rules=srd(), readout="value").value.sum(1, keepdim=True)
    assert relative(found, SRD(model, head="raw").attribute(x, 1)) < 1e-12
    leaf = x.clone().requires_grad_()
    again = attribute(model, leaf, 1, rules=srd(), readout="value", create_graph=True).value.sum(1, keepdim=True)
    assert torch.equal(again.detach(), found)
    assert torch.autograd.grad(again.square().sum(), leaf)[0].abs().max() > 1e-6
    clamped = attribute(model, x, 1, rules=srd(clamp=True), readout="value").value
    low = SRD(model, head="raw").explain(x, 1, sites="low").value.clamp(min=0)
    assert relative(clamped.flatten(1).sum(1), low.flatten(1).sum(1)) < 1e-10
    with pytest.raises(UnknownNameError, match="sharing of biases"):
        srd("none")


def test_the_coverage_table_names_what_was_done() -> None:
    model, x = Around(lambda a: F.max_pool2d(a, 2) * torch.sigmoid(a.mean((2, 3), keepdim=True))), image()
    table = SRD(model).explain(x, 1).coverage
    rules = {row.operation: row.rule for row in table}
    assert rules["conv"] == rules["max_pool"] == "sharing"
    assert rules["tanh"] == "PFV"
    assert rules["mul"] == "held gate"
    assert table.calls("conv") == 2
    assert table.uncovered == ()


def test_three_axes_are_refused_where_a_bias_has_to_be_shared() -> None:
    def model(bias: bool) -> nn.Module:
        conv = nn.Conv3d(2, 3, 3, padding=1, bias=bias)
        return nn.Sequential(conv, nn.ReLU(), nn.Conv3d(3, 3, 3, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
                             nn.Flatten()).double()  # fmt: skip

    x = torch.randn(1, 2, 5, 5, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="over one or two axes of positions, not over three"):
        SRD(model(True), head="raw").attribute(x, 1)
    found = SRD(model(False), head="raw").explain(x, 1)
    assert found.value.shape == (1, 1, 5, 5, 5)
    assert found.residual.abs().max() < 1e-12


def test_the_head_of_one_map() -> None:
    """R_i = sum_k A_ik mean_i' g_i'k."""
    values, cotangent = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = (values * cotangent.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
    assert torch.allclose(class_activation(False)(values, cotangent), expected, atol=1e-6)
    assert torch.allclose(class_activation(True)(values, cotangent), expected.clamp(min=0), atol=1e-6)
