"""Attribution operators against literal references on tiny networks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from interlayer import pictures, random_codes, relu_network
from torch import Tensor, nn

from backlight.engine.segment import Segment
from backlight.errors import InputError, ModelError, SiteError, UncoveredOperationError
from backlight.graph.coded import Coded, code_sites
from backlight.graph.icat import edges
from backlight.graph.operators import (
    LRP,
    OPERATORS,
    SRD,
    Ablation,
    AttnLRP,
    GradientSHAP,
    GradientTimesInput,
    IntegratedGradients,
    KernelSHAP,
    LRPEpsilon,
    Random,
    RuleTimesInput,
)
from backlight.graph.scores import Alignment, Classes

ALL = list(OPERATORS)


def run(attribution, start="1", stop: str | None = "5", *, model=None, targets=(2, 0), x=None, **settings):
    model = relu_network() if model is None else model
    x = pictures() if x is None else x
    parents = random_codes(model, x, start, 7, 1)
    children = None if stop is None else random_codes(model, x, stop, 6, 2)
    return edges(model, x, parents, children, list(targets), attribution=attribution, **settings)


# scores


def test_cotangents_are_gradients() -> None:
    x = pictures()
    coded = random_codes(relu_network(), x, "3", 6, 2)
    value = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    value[0, :, 2, 3] = 0.0
    rows = torch.tensor([1, 0])
    for scores in (Alignment.of_concepts(coded, [4, 1]), Classes((3, 0))):
        there = value if isinstance(scores, Alignment) else value[:, :4, 0, 0]
        for target, cotangent in enumerate(scores.cotangents(there, rows)):
            leaf = there.clone().requires_grad_()
            total = scores.of(leaf, target, rows)
            (expected,) = torch.autograd.grad(total.sum(), leaf)
            torch.testing.assert_close(cotangent, expected)
            torch.testing.assert_close(scores.all(there, rows)[:, target], total.detach())


@pytest.mark.parametrize("zero", ["none", "start", "end", "both"])
def test_what_lies_between_two_points_is_taken_apart_exactly(zero: str) -> None:
    scores = Alignment.of_concepts(random_codes(relu_network(), pictures(), "3", 6, 2), [4, 1])
    start, end, rows = torch.randn(2, 5, 6, 6).double(), torch.randn(2, 5, 6, 6).double(), torch.arange(2)
    if zero in ("start", "both"):
        start[:, :, 1:4] = 0
    if zero in ("end", "both"):
        end[:, :, 2:5] = 0
    for target in range(2):
        found = scores.between(start, end, target, rows)
        change = scores.of(end, target, rows) - scores.of(start, target, rows)
        torch.testing.assert_close((found * (end - start)).flatten(1).sum(1), change)
        near = scores.between(end, end + 1e-7 * (start - end), target, rows)
        if zero == "none":
            torch.testing.assert_close(near, list(scores.cotangents(end, rows))[target], rtol=1e-5, atol=1e-6)


def test_held_norms_let_all_of_the_score_set_out() -> None:
    scores = Alignment.of_concepts(random_codes(relu_network(), pictures(), "3", 6, 2), [4, 1])
    value, rows = torch.randn(2, 5, 6, 6).double(), torch.arange(2)
    for held, expected in ((True, scores.all(value, rows)), (False, torch.zeros(2, 2).double())):
        found = [(value * one).flatten(1).sum(1) for one in scores.cotangents(value, rows, held)]
        torch.testing.assert_close(torch.stack(found, 1), expected)


# rules


@pytest.mark.parametrize("operator", [LRPEpsilon(epsilon=0.0, held=False), AttnLRP(held=False)])
@pytest.mark.parametrize("stop", ["5", None])
def test_lrp_0_of_a_piecewise_linear_network_without_biases_is_gradient_times_input(operator, stop) -> None:
    model = relu_network(bias=False)
    plain = run(GradientTimesInput(), stop=stop, model=model)
    found = run(operator, stop=stop, model=model)
    torch.testing.assert_close(found.values, plain.values, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.residual, plain.residual, rtol=1e-6, atol=1e-9)


def test_lrp_conserves_the_score_without_biases() -> None:
    model = relu_network(bias=False)
    x = pictures()
    parents = random_codes(model, x, "1", 7, 1)
    nothing = Coded("1", parents.vectors, parents.codes, parents.atoms, None, parents.layout, parents.shape)
    for operator in (LRP(), LRPEpsilon(), LRP(composite="gamma")):
        found = edges(model, x, nothing, random_codes(model, x, "5", 6, 2), [2, 0], attribution=operator)
        torch.testing.assert_close(found.values.sum(2) + found.residual, found.reached, rtol=1e-4, atol=1e-5)


def test_zplus_against_loops() -> None:
    """One 1 x 1 convolution, R_q = sum_j u_q v_qc w_jc+ / sum z+ R_j, by hand."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1, bias=False), nn.ReLU()).double()
    x = torch.rand(1, 3, 2, 2).double()
    atoms, codes = torch.rand(4, 3).double(), torch.rand(4, 4).double()
    parents = code_sites(model, x, {"0": (lambda v: codes, atoms, None)})["0"]
    children = random_codes(model, x, "2", 3, 5, nonnegative=True)
    found = edges(model, x, parents, children, [1], attribution=LRP())
    w = model[1].weight[:, :, 0, 0].detach()
    expected = torch.zeros(4).double()
    for p in range(4):
        a = x[0].flatten(1)[:, p]
        z = w @ a
        y = z.clamp(min=0)
        direction = children.atoms[1] / children.atoms[1].norm()
        for j in range(2):
            if y.norm() == 0:
                continue
            relevance = float(children.codes[0, p, 1] * y[j] * direction[j] / y.norm())
            plus = w[j].clamp(min=0)
            for q in range(4):
                expected[q] += relevance * float((codes[p, q] * atoms[q]) @ plus) / float(a @ plus)
    torch.testing.assert_close(found.values[0, 0], expected)


def test_pixels_have_rules_that_layers_do_not() -> None:
    with pytest.raises(InputError, match="epsilon_plus"):
        run(LRP(composite="epsilon_gamma_box"))


# SRD


def test_srd_against_loops() -> None:
    """Sharing ratios position by position: conv (padded), ReLU, strided conv, by the definition of mu_ij."""
    model = relu_network()
    x = pictures(1)
    parents, children = random_codes(model, x, "1", 7, 1), random_codes(model, x, "5", 6, 2)
    found = edges(model, x, parents, children, [2, 0], attribution=SRD())
    a = [model[: n + 1](x)[0].detach() for n in range(6)]
    for row, target in enumerate([2, 0]):
        after = a[5].flatten(1)
        direction = children.atoms[target] / children.atoms[target].norm()
        norm = after.norm(dim=0)
        relevance = children.codes[0, :, target] * (direction @ after) / torch.where(norm > 0, norm, 1)
        for layer, before, pre in ((4, a[3], a[4]), (2, a[1], a[2])):
            relevance = literal_ratios(model[layer], before, pre).T @ relevance
        vectors = parents.vectors[0]
        for q in range(7):
            part = parents.codes[0, :, q, None] * parents.atoms[q]
            expected = float(((part * vectors).sum(1) / vectors.square().sum(1).clamp(min=1e-30) * relevance).sum())
            assert math.isclose(float(found.values[0, row, q]), expected, rel_tol=1e-7, abs_tol=1e-9)


def literal_ratios(layer: nn.Conv2d, before: Tensor, pre: Tensor) -> Tensor:
    """mu `[targets, sources]`: each tap's part of z_j, with the bias shared by the norms of the parts."""
    (h, w), (oh, ow) = before.shape[1:], pre.shape[1:]
    found = torch.zeros(oh * ow, h * w, dtype=torch.float64)
    for y, x in itertools.product(range(oh), range(ow)):
        parts = {}
        for dy, dx in itertools.product(range(3), range(3)):
            sy, sx = y * layer.stride[0] + dy - layer.padding[0], x * layer.stride[1] + dx - layer.padding[1]
            if 0 <= sy < h and 0 <= sx < w:
                parts[sy * w + sx] = layer.weight[:, :, dy, dx].detach() @ before[:, sy, sx]
        norms = sum(part.norm() for part in parts.values())
        z = pre[:, y, x]
        for source, part in parts.items():
            whole = part + layer.bias.detach() * part.norm() / norms
            found[y * ow + x, source] = whole @ z / (z @ z)
    return found


def test_srd_conserves_what_is_aligned() -> None:
    x = pictures()
    model = relu_network()
    parents = random_codes(model, x, "1", 7, 1)
    found = edges(model, x, parents, random_codes(model, x, "5", 6, 2), [2, 0], attribution=SRD(), positions=True)
    offset = torch.einsum("c,tnpc->nt", parents.base, found.multipliers)
    torch.testing.assert_close(found.values.sum(2) + found.residual + offset, found.reached)


@pytest.mark.parametrize("start", ["1", "5"])
def test_srd_of_classes_starts_from_grad_cam(start: str) -> None:
    """Up to the last feature map the engine's; where the layer is that map, Grad-CAM itself."""
    model = nn.Sequential(*list(relu_network())[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4).double())
    x = pictures(1)
    parents = random_codes(model, x, start, 7, 1)
    found = edges(model, x, parents, None, [3], attribution=SRD(), positions=True)
    whole = torch.einsum("npc,tnpc->t", parents.vectors, found.multipliers)
    last = model[:6](x)[0].detach()
    torch.testing.assert_close(whole[0], (model[8].weight[3] @ last.mean((1, 2))).detach())


def test_srd_says_where_its_theory_ends() -> None:
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1)

    model = nn.Sequential(*list(relu_network())[:4], Squared(), nn.Conv2d(5, 4, 1).double(), nn.ReLU())
    x = pictures(1)
    parents, children = random_codes(model, x, "3", 7, 1), random_codes(model, x, "6", 6, 2)
    with pytest.raises(UncoveredOperationError, match="softmax"):
        edges(model, x, parents, children, [0], attribution="SRD")
    with pytest.raises(UncoveredOperationError, match="softmax"):
        edges(model, x, parents, random_codes(model, x, "4", 6, 2), [0], attribution="SRD")
    flat = relu_network()
    vectors = random_codes(flat, x, "6", 3, 1)
    with pytest.raises(SiteError, match="vectors"):
        edges(flat, x, vectors, None, [0], attribution="SRD")


# differences


def test_deeplift_of_linear_networks_is_integrated_gradients() -> None:
    model = relu_network(activation=nn.Identity)
    exact = run(IntegratedGradients(), stop=None, model=model)
    for name in ("DeepLIFT", "Rescale"):
        torch.testing.assert_close(run(name, stop=None, model=model).values, exact.values)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ELU])
@pytest.mark.parametrize("stop", ["5", None])
@pytest.mark.parametrize("residual", [True, False])
def test_the_rescale_rule_is_captums_and_complete(activation, stop, residual) -> None:
    model = relu_network(activation=activation)
    ours, theirs = (run(name, stop=stop, model=model, residual=residual) for name in ("Rescale", "DeepLIFT"))
    torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(ours.residual, theirs.residual)
    torch.testing.assert_close(ours.completeness_gap, torch.zeros(2, 2).double(), rtol=0, atol=1e-9)


def test_rescale_follows_what_captum_does_not_see() -> None:
    for activation in (nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish):
        model = relu_network(activation=activation)
        found = run("Rescale", model=model)
        torch.testing.assert_close(found.completeness_gap, torch.zeros(2, 2).double(), rtol=0, atol=1e-9)
        with pytest.raises(ModelError, match=r"does not see .* Rescale"):
            run("DeepLIFT", model=model)


def test_in_place_and_reused_activations() -> None:
    plain, layers = relu_network(), list(relu_network())
    layers[3] = layers[5] = nn.ReLU(inplace=True)
    reused = nn.Sequential(*layers[:4], layers[4], nn.Sequential(layers[5]), *layers[6:])
    x = pictures()
    parents, children = random_codes(plain, x, "1", 7, 1), random_codes(plain, x, "5", 6, 2)
    expected = edges(plain, x, parents, children, [2, 0], attribution="Rescale").values
    torch.testing.assert_close(edges(reused, x, parents, children, [2, 0], attribution="Rescale").values, expected)
    with pytest.raises(ModelError, match="ran twice"):
        edges(reused, x, parents, children, [2, 0], attribution="DeepLIFT")
    apart = relu_network(activation=lambda: nn.ReLU(inplace=True))
    torch.testing.assert_close(edges(apart, x, parents, children, [2, 0], attribution="DeepLIFT").values, expected)


def test_rescale_refuses_selections_and_products() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    for layer, match in ((nn.MaxPool2d(1), "max_pool"), (Gated(), "mul")):
        model = nn.Sequential(*list(relu_network())[:4], layer, nn.Conv2d(5, 4, 1).double(), nn.ReLU())
        with pytest.raises(UncoveredOperationError, match=match):
            run("Rescale", "3", "6", model=model, x=pictures(1))


# draws


def test_gradient_shap_comes_to_integrated_gradients() -> None:
    x = pictures(1)
    few, many = (run(GradientSHAP(n_samples=n), x=x).values for n in (20, 2000))
    exact = run(IntegratedGradients(n_steps=200), x=x).values
    off = [float((one - exact).norm() / exact.norm()) for one in (few, many)]
    assert off[1] < 0.05
    assert off[1] < off[0]
    with pytest.raises(InputError, match="n_samples"):
        run(GradientSHAP(n_samples=0))


def additive() -> tuple[nn.Sequential, Coded]:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    parents = random_codes(model, pictures(1), "0", 5, 1)
    return model, parents


def test_kernel_shap_of_additive_games_is_exact() -> None:
    model, parents = additive()
    found = edges(model, pictures(1), parents, None, [2, 0], attribution=KernelSHAP(n_samples=100))
    expected = edges(model, pictures(1), parents, None, [2, 0], attribution=GradientTimesInput())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-4, atol=1e-5)
    assert found.passes.forwards == 100  # one game for both scores


def test_kernel_shap_comes_to_shapley_values() -> None:
    model, x = relu_network(), pictures(1)
    parents, children = random_codes(model, x, "3", 4, 1, share=0.8), random_codes(model, x, "5", 6, 2)
    found = edges(model, x, parents, children, [2], attribution=KernelSHAP(n_samples=2000), residual=False)
    segment, scores = Segment(model, x, "3", "5"), Alignment.of_concepts(children, [2])

    def worth(coalition: tuple[int, ...]) -> float:
        there = torch.zeros(4).double()
        there[list(coalition)] = 1
        vectors = parents.base + (parents.codes[0] * there) @ parents.atoms
        return float(scores.of(segment(vectors.T.reshape(1, 5, 6, 6)), 0, torch.zeros(1).long()))

    for q in range(4):
        rest = [one for one in range(4) if one != q]
        value = sum(
            math.factorial(size) * math.factorial(3 - size) / 24 * (worth((*group, q)) - worth(group))
            for size in range(4)
            for group in itertools.combinations(rest, size)
        )
        assert math.isclose(float(found.values[0, 0, q]), value, abs_tol=0.05 * float(found.values.abs().max()))


def test_kernel_shap_needs_samples() -> None:
    with pytest.raises(InputError, match="give 9 or more"):
        run(KernelSHAP(n_samples=5))


# controls


def test_ablation_is_what_is_measured() -> None:
    model, x = relu_network(), pictures()
    parents, children = random_codes(model, x, "1", 7, 1), random_codes(model, x, "5", 6, 2)
    scores = Alignment.of_concepts(children, [2, 0])
    for residual in (True, False):
        found = edges(model, x, parents, children, [2, 0], attribution=Ablation(batch_size=3), residual=residual)
        whole = parents.vectors if residual else parents.reconstruction
        for q in range(8):
            if q == 7 and not residual:
                break
            part = parents.codes[:, :, q, None] * parents.atoms[q] if q < 7 else parents.residual
            without = (whole - part).transpose(1, 2).reshape(2, 6, 6, 6)
            with torch.no_grad():
                expected = found.reached - scores.all(model[2:6](without), torch.arange(2))
            torch.testing.assert_close(found.values[:, :, q] if q < 7 else found.residual, expected)


def test_controls_know_nothing_of_the_network() -> None:
    model, x = relu_network(), pictures()
    parents, children = random_codes(model, x, "1", 7, 1), random_codes(model, x, "5", 6, 2)
    found = edges(model, x, parents, children, [2, 0], attribution="Activation")
    torch.testing.assert_close(found.values[:, 1], parents.codes.abs().sum(1))
    one, two = (edges(model, x, parents, children, [2, 0], attribution=Random(seed=n)).values for n in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, edges(model, x, parents, children, [2, 0], attribution="Random").values)


# all of them


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("residual", [True, False])
def test_an_image_does_not_know_its_mates_and_nothing_is_left_behind(name: str, residual: bool) -> None:
    model, x = relu_network(), pictures()
    parents, children = random_codes(model, x, "1", 7, 1), random_codes(model, x, "5", 6, 2)
    state = torch.get_rng_state()
    segment = Segment(model, x, "1", "5")
    both = edges(model, x, parents, children, [2, 0], attribution=name, residual=residual, segment=segment)
    alone = edges(model, x[1:], parents.image(1), children.image(1), [2, 0], attribution=name, residual=residual)
    torch.testing.assert_close(both.values[1:], alone.values)
    torch.testing.assert_close(both.residual[1:], alone.residual)
    assert torch.isfinite(both.values).all()
    silent = (parents.codes != 0).any(1).logical_not()[:, None].expand_as(both.values)
    assert not bool(both.values[silent].any())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    if not residual:
        assert not bool(both.residual.any())


@pytest.mark.parametrize("name", [name for name in ALL if OPERATORS[name]().complete])
def test_complete_operators_are(name: str) -> None:
    found = run(IntegratedGradients(n_steps=400) if name == "IntegratedGradients" else name)
    size = float((found.reached - found.base).abs().max())
    assert float(found.completeness_gap.abs().max()) < 1e-2 * size


def test_a_rule_of_ones_own() -> None:
    torch.testing.assert_close(run(RuleTimesInput(held=False)).values, run(GradientTimesInput()).values)
