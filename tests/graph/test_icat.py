"""ICAT: edges of concepts are what attributing every coefficient on its own gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backlight.contributions.reduction import Layout
from backlight.engine.paths import line_rule
from backlight.engine.segment import Segment
from backlight.errors import InputError, UnknownNameError
from backlight.graph.coded import Coded, code_sites, value_of, vectors_of
from backlight.graph.icat import Edges, edges
from backlight.graph.operators import IntegratedGradients
from backlight.graph.scores import Alignment, Classes, cosine


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.Tanh(),
              nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(28, 4)]  # fmt: skip
    return nn.Sequential(*layers).double().eval()


def coded(model: nn.Module, x: Tensor, site: str, k: int, seed: int) -> Coded:
    """A layer with random atoms and sparse random codes."""
    draw = torch.Generator().manual_seed(seed)
    channels = {"1": 6, "3": 5, "5": 7}[site]
    atoms = torch.randn(k, channels, generator=draw, dtype=torch.float64)
    offset = torch.randn(channels, generator=draw, dtype=torch.float64) / 10

    def encode(vectors: Tensor) -> Tensor:
        codes = torch.randn(len(vectors), k, generator=draw, dtype=torch.float64)
        return codes * (torch.rand(len(vectors), k, generator=draw) < 0.4)

    return code_sites(model, x, {site: (encode, atoms, offset)})[site]


@pytest.fixture
def model() -> nn.Sequential:
    return network()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def literal(model: nn.Module, parents: Coded, children: Coded | None, targets: list[int], residual: bool) -> Tensor:
    """Integrated Gradients of every coefficient on its own, by autograd through the codes, image by image."""
    start, stop = int(parents.site), len(list(model)) - 1 if children is None else int(children.site)  # type: ignore[call-overload]
    part = model[start + 1 : stop + 1]  # type: ignore[index]
    nodes, weights = line_rule("gausslegendre", 7)
    found = torch.zeros(len(parents.vectors), len(targets), len(parents.atoms), dtype=torch.float64)
    for n in range(len(parents.vectors)):
        for row, target in enumerate(targets):
            for node, weight in zip(nodes, weights, strict=True):
                codes = parents.codes[n].clone().requires_grad_()
                rest = parents.residual[n] if residual else 0
                vectors = float(node) * (codes @ parents.atoms + rest) + parents.base
                value = vectors.T.reshape(1, *parents.shape)
                later = part(value.clone())
                if children is None:
                    score = later[0, target]
                else:
                    there = later[0].flatten(1).T
                    cos = torch.nn.functional.cosine_similarity(there, children.atoms[target][None], dim=1)
                    score = (children.codes[n, :, target] * cos).sum()
                (gradient,) = torch.autograd.grad(score, codes)
                found[n, row] += float(weight) / float(node) * (parents.codes[n] * gradient).sum(0)
    return found


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("start", "stop"), [("1", "3"), ("1", "5"), ("3", "5"), ("1", None), ("5", None)])
def test_edges_are_those_of_every_coefficient(
    model: nn.Sequential, x: Tensor, start: str, stop: str | None, residual: bool
) -> None:
    parents = coded(model, x, start, 9, 1)
    children = None if stop is None else coded(model, x, stop, 6, 2)
    targets = [3, 0]
    found = edges(model, x, parents, children, targets, attribution=IntegratedGradients(n_steps=7), residual=residual)
    torch.testing.assert_close(
        found.values, literal(model, parents, children, targets, residual), rtol=1e-9, atol=1e-11
    )


def test_shares_sum_to_what_is_reached(model: nn.Sequential, x: Tensor) -> None:
    parents, children = coded(model, x, "1", 9, 1), coded(model, x, "5", 6, 2)
    found = edges(model, x, parents, children, [0, 1, 2], attribution=IntegratedGradients(n_steps=400))
    assert float(found.completeness_gap.abs().max()) < 2e-3 * float((found.reached - found.base).abs().max())
    there = torch.einsum("npt,npt->nt", children.codes[:, :, :3], torch.stack(
        [cosine(children.vectors, children.atoms[t]) for t in range(3)], 2))  # fmt: skip
    torch.testing.assert_close(found.reached, there)  # with the residual, the later layer is the model's own


def test_places_sum_to_the_edge(model: nn.Sequential, x: Tensor) -> None:
    parents, children = coded(model, x, "1", 9, 1), coded(model, x, "3", 6, 2)
    found = edges(model, x, parents, children, [4, 2], positions=True)
    for concept in range(9):
        torch.testing.assert_close(found.places(parents, concept).sum(2), found.values[:, :, concept])
    with pytest.raises(InputError, match="positions=True"):
        edges(model, x, parents, children, [4]).places(parents, 0)


def test_an_image_does_not_know_its_mates_and_batches_do_not_matter(model: nn.Sequential, x: Tensor) -> None:
    parents, children = coded(model, x, "1", 9, 1), coded(model, x, "5", 6, 2)
    whole = edges(model, x, parents, children, [1, 5])
    small = edges(model, x, parents, children, [1, 5], attribution=IntegratedGradients(batch_size=3))
    torch.testing.assert_close(whole.values, small.values)
    alone = edges(model, x[1:], parents.image(1), children.image(1), [1, 5])
    torch.testing.assert_close(alone.values[0], whole.values[1])
    assert alone.passes.forwards == 20
    assert alone.passes.backwards == 40


def test_layers_outside_have_no_influence(model: nn.Sequential, x: Tensor) -> None:
    parents, children = coded(model, x, "3", 9, 1), coded(model, x, "5", 6, 2)
    before = edges(model, x, parents, children, [1, 5]).values
    with torch.no_grad():
        for outside in (model[0], model[2], model[7]):
            outside.weight.normal_()
    assert torch.equal(edges(model, x, parents, children, [1, 5]).values, before)


def test_zero_vectors_have_no_direction_and_no_gradient() -> None:
    vectors = torch.zeros(1, 3, 4, requires_grad=True)
    found = cosine(vectors, torch.ones(4))
    found.sum().backward()
    assert torch.equal(found, torch.zeros(1, 3))
    assert torch.equal(vectors.grad, torch.zeros(1, 3, 4))
    assert torch.equal(cosine(torch.ones(1, 1, 4), torch.zeros(4)), torch.zeros(1, 1))


def test_silent_layers_give_edges_of_zero(x: Tensor) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
        model[2].bias.zero_()
    parents, children = coded(model, x, "1", 9, 1), coded(model, x, "3", 6, 2)
    found: Edges = edges(model, x, parents, children, [0])
    assert torch.isfinite(found.values).all()
    assert float(found.reached.abs().max()) == 0.0


@pytest.mark.parametrize("kind", ["maps", "tokens+1", "vectors", "channels-last"])
def test_vectors_and_back(kind: str) -> None:
    value = torch.randn({"maps": (2, 3, 4, 5), "tokens+1": (2, 5, 3), "vectors": (2, 3)}.get(kind, (2, 4, 5, 3)))
    layout = Layout.parse(kind)
    vectors = vectors_of(value, layout)
    assert vectors.shape == (2, {"vectors": 1, "tokens+1": 5}.get(kind, 20), 3)
    assert torch.equal(value_of(vectors, layout, tuple(value.shape[1:])), value)


def test_a_linear_network_says_what_matrices_say() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Identity(), nn.Conv2d(3, 4, 1, bias=False),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()  # fmt: skip
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    atoms = torch.randn(5, 3, dtype=torch.float64)
    parents = code_sites(model, x, {"1": (lambda v: torch.ones(len(v), 5, dtype=v.dtype), atoms, None)})["1"]
    found = edges(model, x, parents, None, [2])
    expected = atoms @ model[2].weight[2, :, 0, 0]
    np.testing.assert_allclose(found.values[0, 0].numpy(), expected.detach().numpy())
    torch.testing.assert_close(found.completeness_gap, torch.zeros(1, 1, dtype=torch.float64))


def test_errors(model: nn.Sequential, x: Tensor) -> None:
    parents, children = coded(model, x, "1", 9, 1), coded(model, x, "3", 6, 2)
    with pytest.raises(InputError, match="dictionary of 6"):
        edges(model, x, parents, children, [6])
    with pytest.raises(InputError, match="at least one target"):
        edges(model, x, parents, children, [])
    with pytest.raises(UnknownNameError, match="IntegratedGradients"):
        edges(model, x, parents, children, [0], attribution="IntegratedGradient")
    with pytest.raises(InputError, match="do not fit"):
        Coded("1", parents.vectors, parents.codes, parents.atoms[:3], None, parents.layout, parents.shape)
    assert len(Classes((1, 2))) == 2
    assert len(Alignment.of_concepts(children, [0, 1, 2])) == 3
    assert Segment(model, x, "1", "3").stop_value.shape == (2, 5, 6, 6)
