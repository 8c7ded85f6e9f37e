"""Insertion and deletion of parents, and a network whose wiring is known."""

from __future__ import annotations

import math

import pytest
import torch
from interlayer import pictures, random_codes, relu_network
from torch import Tensor
from wiring import CLASSES, PARTS, TEXTURES, WIRING, layers, scenes, wired

from backlight.engine.segment import Segment
from backlight.errors import InputError, UnknownNameError
from backlight.graph.coded import Coded
from backlight.graph.icat import edges
from backlight.graph.operators import IntegratedGradients, KernelSHAP
from backlight.graph.validation import METRICS, Protocol, choose_targets, curves, most_important, strongest, validate


def literal(
    model: torch.nn.Sequential, parents: Coded, children: Coded, target: int, order: Tensor, points: int, residual: bool
) -> dict[str, list[tuple[float, float]]]:
    """The protocol, one mask at a time: {metric: [(inserted, deleted)]}, not divided."""
    on = [q for q in range(len(order)) if bool((parents.codes[0, :, q] != 0).any())]
    ranked = sorted(on, key=lambda q: -float(order[q]))
    found: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for step in range(points):
        first = ranked[: round(step / (points - 1) * len(on))]
        values = []
        for kept in (first, [q for q in on if q not in first]):
            x = parents.base.repeat(len(parents.codes[0]), 1)
            for q in kept:
                x = x + parents.codes[0, :, q, None] * parents.atoms[q]
            if residual:
                x = x + parents.residual[0]
            later = model[2:6](x.T.reshape(1, *parents.shape))[0].flatten(1).T.detach()
            cos = torch.nn.functional.cosine_similarity(later, children.atoms[target][None], dim=1)
            largest = cos.sort(descending=True).values
            values.append((largest[0], cos.mean(), largest[: math.ceil(0.3 * len(cos))].mean(),
                           (cos * children.codes[0, :, target]).sum()))  # fmt: skip
        for metric, inserted, deleted in zip(METRICS, *values, strict=True):
            found[metric].append((float(inserted), float(deleted)))
    return found


@pytest.mark.parametrize("residual", [True, False])
def test_curves_against_loops(residual: bool) -> None:
    model, x = relu_network(), pictures(1)
    parents = random_codes(model, x, "1", 9, 1, share=0.1)
    children = random_codes(model, x, "5", 6, 2, nonnegative=True)
    order = torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    protocol = Protocol(points=5, residual=residual, top=0.3, least=-math.inf, batch_size=3)
    found = curves(Segment(model, x, "1", "5"), parents, children, [4, 1], order, protocol)
    for t, target in enumerate((4, 1)):
        expected = literal(model, parents, children, target, order[t], 5, residual)
        for m, metric in enumerate(METRICS):
            inserted, deleted = torch.tensor(expected[metric], dtype=torch.float64).T
            torch.testing.assert_close(found.full[m, t], inserted[-1])
            torch.testing.assert_close(found.inserted[m, t] * found.full[m, t], inserted)
            torch.testing.assert_close(found.deleted[m, t] * found.full[m, t], deleted)
    torch.testing.assert_close(found.inserted[:, :, -1], torch.ones(4, 2).double())
    torch.testing.assert_close(found.deleted[:, :, 0], torch.ones(4, 2).double())
    torch.testing.assert_close(found.deleted[:, :, -1], found.inserted[:, :, 0])
    area = (found.inserted[0, 0, :-1] + found.inserted[0, 0, 1:]).sum() / 8
    torch.testing.assert_close(found.insertion[0, 0], area)


def test_small_values_are_not_divided_by() -> None:
    model, x = relu_network(), pictures(1)
    parents, children = random_codes(model, x, "1", 9, 1), random_codes(model, x, "5", 6, 2)
    order = torch.zeros(6, 9).double()
    found = curves(Segment(model, x, "1", "5"), parents, children, range(6), order, Protocol(points=3, least=0.3))
    units = torch.ones_like(found.full)
    units[METRICS.index("score")] = children.codes[0].abs().sum(0)  # a sum of cosines, weighed
    low = (found.full < 0.3 * units) | (found.full == 0)
    assert bool(low.any())
    assert not bool(low.all())
    assert torch.equal(found.insertion.isnan(), low)
    assert torch.equal(found.deletion.isnan(), low)


def test_the_wiring_is_recovered() -> None:
    """Edges into a part, as shares of all that lead there: those above a tenth are the wiring, all of it."""
    model, x = wired(), scenes()
    coded = layers(model, x)
    between = edges(model, x, coded["textures"], coded["parts"], range(4)).values
    shares = between / between.abs().sum(2, keepdim=True)
    last = edges(model, x, coded["parts"], None, [0, 1]).values
    for image in range(len(x)):
        found = {(TEXTURES[q], PARTS[t]) for t in range(4) for q in range(6) if shares[image, t, q] > 0.1}
        assert len(found & WIRING) / len(found) == 1.0  # precision
        assert len(found & WIRING) / len(WIRING) == 1.0  # recall
        assert {(PARTS[q], c) for c in range(2) for q in range(4) if last[image, c, q] > 1e-6} == CLASSES


def test_the_true_order_beats_chance_and_integrated_gradients_finds_it() -> None:
    model, x = wired(), scenes(1)
    coded = layers(model, x)
    true = torch.tensor([[float((texture, part) in WIRING) for texture in TEXTURES] for part in PARTS[:3]]).double()
    segment, protocol = Segment(model, x, "textures", "parts"), Protocol(points=7)
    best = curves(segment, coded["textures"], coded["parts"], range(3), true, protocol)
    worst = curves(segment, coded["textures"], coded["parts"], range(3), -true, protocol)
    chance = [
        curves(segment, coded["textures"], coded["parts"], range(3), torch.randn(3, 6).double(), protocol)
        for _ in range(10)
    ]
    found = validate(model, x, coded["textures"], coded["parts"], range(3), {"IG": "IntegratedGradients"}, protocol)
    ours = found.curves["IG"]
    for metric in range(len(METRICS)):
        inserted = [float(one.insertion[metric].mean()) for one in (worst, *chance)]
        deleted = [float(one.deletion[metric].mean()) for one in (worst, *chance)]
        assert float(best.insertion[metric].mean()) > max(inserted)
        assert float(best.deletion[metric].mean()) < min(deleted)
        assert float(ours.insertion[metric].mean()) >= 0.99 * float(best.insertion[metric].mean())
        assert float(ours.deletion[metric].mean()) <= 1.01 * float(best.deletion[metric].mean())


def test_operators_that_cannot_are_left_out() -> None:
    model, x = relu_network(activation=torch.nn.ReLU6), pictures(1)
    parents, children = random_codes(model, x, "1", 9, 1), random_codes(model, x, "5", 6, 2)
    found = validate(model, x, parents, children, [2], {"IG": IntegratedGradients(), "DeepLIFT": "DeepLIFT"})
    assert set(found.curves) == set(found.edges) == {"IG"}
    assert "does not see" in found.left_out["DeepLIFT"]
    torch.testing.assert_close(found.edges["IG"].values, edges(model, x, parents, children, [2], residual=False).values)
    with pytest.raises(InputError, match="samples do not determine"):
        validate(model, x, parents, children, [2], {"SHAP": KernelSHAP(n_samples=2)})


def test_targets_are_the_strongest_or_the_most_important() -> None:
    model, x = wired(), scenes(1)
    coded = layers(model, x)["parts"]
    mass = coded.codes[0].clamp(min=0).sum(0)
    assert strongest(coded, 2) == mass.topk(2).indices.tolist()
    for target, parts in ((0, {0, 1}), (1, {2})):
        assert set(most_important(model, x, coded, len(parts), target=target)) == parts
    predicted = int(model(x).argmax())
    assert choose_targets("importance", model, x, coded, 3) == most_important(model, x, coded, 3, predicted)
    with pytest.raises(UnknownNameError, match="mass"):
        choose_targets("weight", model, x, coded, 1)


def test_errors() -> None:
    model, x = relu_network(), pictures()
    parents, children = random_codes(model, x, "1", 9, 1), random_codes(model, x, "5", 6, 2)
    with pytest.raises(InputError, match="one by one"):
        validate(model, x[:1], parents, children, [0], {"IG": "IntegratedGradients"})
    with pytest.raises(UnknownNameError, match="Random"):
        validate(model, x[:1], parents.image(0), children.image(0), [0], {"x": "Randm"})
    with pytest.raises(InputError, match="an order of"):
        curves(Segment(model, x, "1", "5"), parents, children, [0], torch.zeros(1, 3).double(), Protocol())
    with pytest.raises(InputError, match="at least 2 points"):
        Protocol(points=1)
