"""Contribution maps against literal loops over units, closed forms of linear networks, and what they must sum to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlight.contributions.contribution import contribute
from backlight.contributions.input_decomposition import (
    INPUT_DECOMPOSITIONS,
    ActGradMaps,
    InputGradMaps,
    IntegratedGradientsMaps,
)
from backlight.contributions.maps import ContributionMaps, contribution_maps
from backlight.engine import Line, Probability, attribute, captured, running
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.rules import guided, soft_pullback

SETS = [[0, 2], [1], [0, 1, 2, 3]]


class Small(nn.Module):
    """A convolutional network with one hidden layer that everything passes through, `h`."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(2, 3, 3, padding=1), act
        self.second, self.h = nn.Conv2d(3, 4, 3, stride=2, padding=1), type(act)()
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.h(self.second(self.act(self.first(x))))
        y = self.head(torch.tanh(h).flatten(1))
        return y if shift is None else y + shift * h.mean((1, 2, 3))[:, None]


class Attending(nn.Module):
    """Tokens [N, L, D] at `block`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.block = (
            nn.Conv2d(2, 4, 2, 2),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.LayerNorm(4),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).flatten(2).transpose(1, 2)
        t = self.block(t + self.attn(t, t, t)[0])
        return self.head(F.gelu(t).mean(1))


@pytest.fixture
def relu() -> Small:
    return Small(nn.ReLU()).double().eval()


@pytest.fixture
def smooth() -> Small:
    return Small(nn.Softplus()).double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(2)).double()


def units(model: nn.Module, x: Tensor, site: str, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """(h, dT/dh, dh/dx [*site, *input]) of one sample `[1, ...]`, a backward pass for every unit."""
    x = x.clone().requires_grad_()
    with captured(model, [site]) as store:
        score = model(x)[0, target]
    h = store[site]
    g = torch.autograd.grad(score, h, retain_graph=True)[0][0]
    rows = [torch.autograd.grad(unit, x, retain_graph=True)[0][0] for unit in h.flatten()]
    return h[0].detach(), g, torch.stack(rows).reshape(*h.shape[1:], *x.shape[1:])


def by_loop(
    model: nn.Module, x: Tensor, site: str, weight: Tensor, target: int, nodes: list[tuple[float, float]], anew: bool
) -> tuple[Tensor, Tensor]:
    """(c_jk summed over no unit, dT/dh) of one sample: equations 6, 13 and 22, unit by unit and node by node."""
    g_here = units(model, x, site, target)[1]
    total = None
    for node, share in nodes:
        _, g, jacobian = units(model, node * x, site, target)
        term = share * (g if anew else g_here)[..., None, None, None] * jacobian * x[0]
        total = term if total is None else total + term
    assert total is not None
    return weight[..., None, None, None] * total, g_here


def axes(units_by_input: Tensor) -> tuple[int, ...]:
    return tuple(range(units_by_input.ndim - 3))


@pytest.mark.parametrize(
    "algorithm",
    [InputGradMaps(), ActGradMaps(3), IntegratedGradientsMaps(4), IntegratedGradientsMaps(3, "gausslegendre")],
    ids=str,
)
@pytest.mark.parametrize("network", ["cnn", "tokens"])
def test_one_backward_pass_is_the_loop_over_units(algorithm: Any, network: str) -> None:
    model: nn.Module = (Small(nn.ReLU()) if network == "cnn" else Attending()).double().eval()
    site = "h" if network == "cnn" else "block"
    x = images(2)
    found = contribution_maps(model, x, site, SETS, 1, algorithm=algorithm)
    assert found.positive is not None
    assert found.negative is not None
    assert found.units is not None
    for sample in range(2):
        for number, chosen in enumerate(SETS):
            weight = torch.zeros(4, 2, 2) if network == "cnn" else torch.zeros(4, 4)
            for channel in chosen:
                weight[channel if network == "cnn" else (slice(None), channel)] = 1
            parts, _ = by_loop(model, x[sample : sample + 1], site, weight, 1, algorithm.nodes(), algorithm.anew)
            assert torch.allclose(found.total[number, sample], parts.sum(axes(parts)), atol=1e-12)
            sign = found.units[sample] > 0
            up = (parts * sign[..., None, None, None]).sum(axes(parts))
            assert torch.allclose(found.positive[number, sample], up, atol=1e-12)
            assert torch.allclose(found.negative[number, sample], parts.sum(axes(parts)) - up, atol=1e-12)


def test_units_of_input_grad_are_the_sums_over_the_input(relu: Small) -> None:
    x = images(2)
    found = contribution_maps(relu, x, "h", [1, 3], 0)
    for sample in range(2):
        parts, _ = by_loop(relu, x[sample : sample + 1], "h", torch.ones(4, 2, 2), 0, [(1.0, 1.0)], True)
        assert found.units is not None
        assert found.channels is not None
        assert found.contributions is not None
        assert torch.allclose(found.units[sample], parts.sum((3, 4, 5)), atol=1e-12)
        assert torch.allclose(found.channels[sample], parts.sum((1, 2, 3, 4, 5)), atol=1e-12)
        assert torch.allclose(found.contributions[0, sample], parts[[1, 3]].sum(), atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    assert torch.allclose(found.scores, relu(x)[:, 0])


@pytest.mark.parametrize("name", INPUT_DECOMPOSITIONS)
def test_contributions_are_those_of_the_algorithm(relu: Small, name: str) -> None:
    x, baseline = images(), 0.3
    decomposition = INPUT_DECOMPOSITIONS[name]()
    found = contribution_maps(relu, x, "h", [[0, 1], [3]], 2, algorithm=name, baseline=baseline)
    expected = contribute(relu, x, "h", 2, algorithm=decomposition.algorithm(), baseline=baseline).values["h"]
    assert found.units is not None
    assert found.contributions is not None
    assert torch.allclose(found.units, expected, atol=1e-12)
    sums = torch.stack([expected[:, [0, 1]].sum((1, 2, 3)), expected[:, 3].sum((1, 2))])
    assert torch.allclose(found.contributions, sums, atol=1e-12)


@pytest.mark.parametrize("kind", [ActGradMaps, IntegratedGradientsMaps])
def test_maps_sum_to_the_contribution_as_steps_grow(smooth: Small, kind: Any) -> None:
    """The trapezoid's error falls with the square of the steps: 1/16 of it is left at four times as many."""
    x = images()
    gaps = [contribution_maps(smooth, x, "h", SETS, 0, algorithm=kind(n)).residual.abs() for n in (4, 16, 64)]
    for coarse, fine in pairwise(gaps):
        assert torch.all(fine < coarse / 12)
        assert torch.all(fine > coarse / 20)
    assert gaps[-1].max() < 1e-4


def test_all_units_come_to_the_attribution_at_the_input(relu: Small, smooth: Small) -> None:
    x = images()
    everything = [list(range(4))]
    found = contribution_maps(relu, x, "h", everything, 1, split=False)
    assert torch.allclose(found.total[0], x * attribute(relu, x, 1).value, atol=1e-12)
    for rule, n in (("trapezoid", 7), ("gausslegendre", 5), ("riemann_left", 4)):
        ours = contribution_maps(smooth, x, "h", everything, 1, algorithm=IntegratedGradientsMaps(n, rule), split=False)
        line = Line(n + 1 if rule == "trapezoid" else n, rule)
        assert torch.allclose(ours.total[0], attribute(smooth, x, 1, path=line, readout="difference").value, atol=1e-12)


def test_completeness_of_integrated_gradients(smooth: Small) -> None:
    """Over all units and the whole input: the score less the baseline's."""
    x, baseline = images(), images()[:1].flip(3)
    found = contribution_maps(
        smooth, x, "h", [list(range(4))], 2, algorithm=IntegratedGradientsMaps(64), baseline=baseline
    )
    change = smooth(x)[:, 2] - smooth(baseline)[:, 2]
    assert torch.allclose(found.total.flatten(2).sum(2)[0], change, atol=1e-4)


@pytest.mark.parametrize("name", INPUT_DECOMPOSITIONS)
def test_linear_network(name: str) -> None:
    """All three are W2[y, S] W1[S, k] (x - x_0)_k."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
    x, start = torch.randn(4, 5).double(), torch.randn(5).double()
    found = contribution_maps(model, x, "0", [[1, 4], [0]], 2, algorithm=name, baseline=start)
    through = model[1].weight[2][:, None] * model[0].weight
    for number, chosen in enumerate(([1, 4], [0])):
        assert torch.allclose(found.total[number], through[chosen].sum(0) * (x - start), atol=1e-12)
    assert found.positive is not None
    per_unit = through * (x - start)[:, None]
    sign = per_unit.sum(2, keepdim=True) > 0
    assert torch.allclose(found.positive[0], (per_unit * sign)[:, [1, 4]].sum(1), atol=1e-12)
    assert found.residual.abs().max() < 1e-12


def test_sets_by_sample_weights_and_units(relu: Small) -> None:
    x = images(3)
    alone = [contribution_maps(relu, x, "h", [[c]], 0) for c in range(4)]

    def expected(of: str, weights: Tensor) -> Tensor:
        return sum(weights[:, c, None, None, None] * getattr(alone[c], of)[0] for c in range(4))

    rows = torch.tensor([[0, 1], [2, 3], [1, 2]])
    members = torch.zeros(3, 4).scatter_(1, rows, 1.0).double()
    by_sample = contribution_maps(relu, x, "h", [rows, [0]], 0, internal_batch_size=2)
    assert torch.allclose(by_sample.total[0], expected("total", members), atol=1e-12)
    assert torch.allclose(by_sample.positive[0], expected("positive", members), atol=1e-12)
    assert torch.allclose(by_sample.total[1], alone[0].total[0], atol=1e-12)
    atoms = torch.tensor([[0.5, 0, 2.0, 1.0], [-1.0, 1.0, 0, 0]]).double()
    weighted = contribution_maps(relu, x, "h", atoms, 0)
    for mode in range(2):
        assert torch.allclose(weighted.total[mode], expected("total", atoms[mode].expand(3, 4)), atol=1e-12)
    swapped = alone[1].positive[0] - alone[0].negative[0]  # what channel 0 takes away, mode 1 counts as added
    assert torch.allclose(weighted.positive[1], swapped, atol=1e-12)
    each = contribution_maps(relu, x, "h", torch.stack([atoms[:1].expand(3, 4), members]), 0, internal_batch_size=1)
    assert torch.allclose(each.total[0], weighted.total[0], atol=1e-12)
    assert torch.allclose(each.total[1], by_sample.total[0], atol=1e-12)
    corner = torch.zeros(1, 1, 4, 2, 2).double()
    corner[0, 0, 1, 0, 1] = 1
    unit = contribution_maps(relu, x, "h", corner, 0)
    parts, _ = by_loop(relu, x[:1], "h", corner[0, 0], 0, [(1.0, 1.0)], True)
    assert torch.allclose(unit.total[0, 0], parts.sum((0, 1, 2)), atol=1e-12)
    assert torch.equal(
        contribution_maps(relu, x, "h", [1, 1, 3], 0).total, contribution_maps(relu, x, "h", [3, 1], 0).total
    )


@pytest.mark.parametrize("name", INPUT_DECOMPOSITIONS)
def test_a_sample_does_not_depend_on_its_batch(relu: Small, name: str) -> None:
    x, shift = images(4), torch.tensor([0.1, 0.2, -0.3, 0.0]).double()
    arguments = (shift[:, None],)
    targets = torch.tensor([0, 2, 1, 1])
    together = contribution_maps(relu, x, "h", [[0, 3]], targets, algorithm=name, additional_forward_args=arguments)
    pieces = contribution_maps(
        relu, x, "h", [[0, 3]], targets, algorithm=name, additional_forward_args=arguments, internal_batch_size=3
    )
    order = torch.tensor([3, 1, 0, 2])
    moved = contribution_maps(
        relu, x[order], "h", [[0, 3]], targets[order], algorithm=name, additional_forward_args=(shift[order][:, None],)
    )
    for field in ("total", "positive", "negative", "contributions"):
        assert torch.allclose(getattr(together, field), getattr(pieces, field), atol=1e-13)
        assert torch.allclose(getattr(together, field)[:, order], getattr(moved, field), atol=1e-13)
    assert torch.allclose(together.units, pieces.units, atol=1e-13)
    assert together.cost.forwards == pieces.cost.forwards


def test_the_class_is_decided_at_the_input(smooth: Small) -> None:
    """Not at each point of the path: here another class is the largest at the baseline."""
    x = images(1)
    with torch.no_grad():
        start = smooth(torch.zeros_like(x))[0]
        least = int((smooth(x)[0] - start).argmin())
        smooth.head.bias -= start
        smooth.head.bias[least] += 1e-6
    chosen = smooth(x).argmax(1)
    assert smooth(torch.zeros_like(x)).argmax() == least != chosen[0]
    for name in INPUT_DECOMPOSITIONS:
        given = contribution_maps(smooth, x, "h", [[0, 1]], chosen, algorithm=name)
        assert torch.equal(contribution_maps(smooth, x, "h", [[0, 1]], algorithm=name).total, given.total)


def test_parts_add_up_and_are_not_of_one_sign(relu: Small) -> None:
    found = contribution_maps(relu, images(), "h", SETS, 0)
    plain = contribution_maps(relu, images(), "h", SETS, 0, split=False)
    assert torch.allclose(found.positive + found.negative, plain.total, atol=1e-12)
    assert torch.all(found.positive.flatten(2).sum(2) >= 0)
    assert torch.all(found.negative.flatten(2).sum(2) <= 0)
    assert (found.positive < 0).any()
    assert plain.contributions is None
    with pytest.raises(InputError, match="split=True"):
        _ = plain.residual


def pulled(model: nn.Module, x: Tensor, rules: Any, cotangent: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    with running(model, rules) as run:
        run.keep(leaf)
        with captured(model, ["h"], run.watch) as store:
            model(leaf)
    return torch.autograd.grad(store["h"], leaf, cotangent)[0]


def test_under_other_rules(relu: Small) -> None:
    """A soft pullback is linear in the cotangent, and its map has parts; Guided Backprop is not, and has none."""
    x, rules = images(1), soft_pullback()
    found = contribution_maps(relu, x, "h", [[0, 2]], 0, rules=rules)
    g = attribute(relu, x, 0, rules=rules, sites="h").value
    total, up = torch.zeros_like(x), torch.zeros_like(x)
    for channel in (0, 2):
        for row in range(2):
            for column in range(2):
                one = torch.zeros_like(g)
                one[0, channel, row, column] = g[0, channel, row, column]
                part = x * pulled(relu, x, rules, one)
                total, up = total + part, up + part * (part.sum() > 0)
    assert torch.allclose(found.total[0], total, atol=1e-12)
    assert torch.allclose(found.positive[0], up, atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    x = images(3)
    with pytest.raises(InputError, match="not linear"):
        contribution_maps(relu, x, "h", [[0, 1, 2, 3]], 0, rules=guided(), baseline=x.flip(0))
    whole = contribution_maps(relu, x, "h", [[0, 1, 2, 3]], 0, rules=guided(), split=False)
    assert torch.allclose(whole.total[0], x * attribute(relu, x, 0, rules=guided()).value, atol=1e-12)


def test_a_certain_class_has_no_map_of_its_probability(relu: Small) -> None:
    """Why the default target is the logit."""
    with torch.no_grad():
        relu.head.bias[0] += 800
    x = images(1)
    assert contribution_maps(relu, x, "h", [0, 1, 2, 3], Probability(0)).total.abs().max() == 0
    assert contribution_maps(relu, x, "h", [0, 1, 2, 3]).total.abs().max() > 0


def test_features_and_half_precision(relu: Small) -> None:
    x = images(2)
    last = contribution_maps(relu, x, "@features", SETS, 0, split=False)
    assert torch.allclose(last.total, contribution_maps(relu, x, "h", SETS, 0).total, atol=1e-12)
    half = contribution_maps(relu.bfloat16(), x.bfloat16(), "h", SETS, 0)
    assert half.total.dtype == torch.float32
    scale = last.total.abs().max()
    assert (half.total - last.total).abs().max() < 0.05 * scale


def state(model: nn.Module) -> list[Any]:
    return [p.detach().clone() for p in model.parameters()] + [model.training, torch.get_rng_state()]


def test_no_trace(relu: Small) -> None:
    x = images(2)
    before, copy = state(relu), x.clone()
    for name in INPUT_DECOMPOSITIONS:
        contribution_maps(relu, x, "h", SETS, 0, algorithm=name)
    with pytest.raises(InputError):
        contribution_maps(relu, x, "h", [[7]], 0)
    assert torch.equal(x, copy)
    for kept, now in zip(before, state(relu), strict=True):
        assert torch.equal(kept, now) if isinstance(kept, Tensor) else kept == now
    for module in relu.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None and p.requires_grad for p in relu.parameters())
    found = contribution_maps(relu, x, "h", SETS, 0)
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in vars(found).values())


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ([], "no set of channels"),
        ([[0, 4]], "has 4, numbered from 0"),
        ([-1], "numbered from 0"),
        ([[0.5]], "list of numbers"),
        (["a"], "list of numbers"),
        (torch.zeros(2, 5), "C = 4 channels"),
        (torch.zeros(1, 2, 4), "N = 3 samples"),
        ([torch.zeros(2, 2).long()], "N = 3 samples"),
    ],
)
def test_sets_that_do_not_fit(relu: Small, modes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        contribution_maps(relu, images(), "h", modes, 0)


def test_errors(relu: Small) -> None:
    x = images()
    with pytest.raises(UnknownNameError, match="InputGrad"):
        contribution_maps(relu, x, "h", [0], 0, algorithm="InputGard")
    with pytest.raises(UnknownNameError, match="first"):
        contribution_maps(relu, x, "frist", [0], 0)
    with pytest.raises(SiteError, match="hidden site"):
        contribution_maps(relu, x, "input", [0], 0)
    with pytest.raises(InputError, match="one input"):
        contribution_maps(relu, (x, x), "h", [0], 0)
    with pytest.raises(InputError, match="embeddings"):
        contribution_maps(relu, x.long(), "h", [0], 0)
    with pytest.raises(InputError, match="n_steps"):
        ActGradMaps(0)


def test_declared_costs(relu: Small) -> None:
    """InputGrad of two sets: a forward and a backward pass, one in forward mode, and two backward passes a set."""
    found: ContributionMaps = contribution_maps(relu, images(3), "h", [[0], [1]], 0)
    assert (found.cost.forwards, found.cost.backwards) == (6, 15)
    plain = contribution_maps(relu, images(3), "h", [[0], [1]], 0, split=False)
    assert (plain.cost.forwards, plain.cost.backwards) == (3, 9)
