"""Parents taken out of the running model."""

from __future__ import annotations

import math

import pytest
import torch
from interlayer import pictures, random_codes, relu_network
from torch import Tensor
from wiring import layers, scenes, wired

from backlight.engine.segment import Segment
from backlight.engine.sites import captured, patched
from backlight.graph.causal import agreement, changes
from backlight.graph.coded import vectors_of
from backlight.graph.icat import edges
from backlight.graph.scores import cosine


def test_changes_are_those_of_the_running_model() -> None:
    """Every parent is taken out by a hook on the model itself, one at a time."""
    model, x = relu_network(), pictures()
    parents, children = random_codes(model, x, "1", 9, 1, share=0.05), random_codes(model, x, "5", 6, 2)

    def encode(vectors: Tensor) -> Tensor:
        return (vectors @ children.atoms.T).clamp(min=0)

    def state(row: int, edit) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), patched(model, {"1": edit}), captured(model, ["5"]) as found:
            model(x[row : row + 1])
        after = vectors_of(found["5"], children.layout)
        cosines = torch.stack([cosine(after, children.atoms[t])[0] for t in (4, 1)], 1)
        weights = children.codes[row][:, [4, 1]]
        return (cosines * weights).sum(0), cosines.amax(0), encode(after[0])[:, [4, 1]].sum(0)

    for row in range(2):
        found = changes(Segment(model, x, "1", "5"), parents, children, [4, 1], row, encode=encode, batch_size=2)
        assert found.concepts.tolist() == (parents.codes[row] != 0).any(0).nonzero().flatten().tolist()
        whole = state(row, lambda value: value)
        for place, q in enumerate(found.concepts.tolist()):
            part = (parents.codes[row, :, q, None] * parents.atoms[q]).T.reshape(1, *parents.shape)
            without = state(row, lambda value, part=part: value - part)
            for ours, before, after in zip((found.score, found.largest, found.codes), whole, without, strict=True):
                torch.testing.assert_close(ours[place], before - after)


def test_edges_that_are_changes_agree() -> None:
    model, x = relu_network(), pictures(1)
    parents, children = random_codes(model, x, "1", 9, 1), random_codes(model, x, "5", 6, 2)
    measured = changes(Segment(model, x, "1", "5"), parents, children, [4, 1])
    found = edges(model, x, parents, children, [4, 1], attribution="Ablation").values[0]
    for t in range(2):
        one = agreement(found[t], measured.score[:, t], measured.concepts)
        assert math.isclose(one.pearson, 1.0, abs_tol=1e-9)
        assert math.isclose(one.spearman, 1.0, abs_tol=1e-9)
        other = agreement(-found[t].exp(), measured.score[:, t], measured.concepts)
        assert other.spearman == pytest.approx(-1.0)
        assert -1 < other.pearson < 0


def test_known_wiring_agrees_with_edges() -> None:
    model, x = wired(), scenes(1)
    coded = layers(model, x)
    measured = changes(Segment(model, x, "textures", "parts"), coded["textures"], coded["parts"], range(3))
    found = edges(model, x, coded["textures"], coded["parts"], range(3)).values[0]
    assert all(agreement(found[t], measured.score[:, t], measured.concepts).pearson > 0.9 for t in range(3))


def test_silent_layers_and_few_parents() -> None:
    model, x = relu_network(), pictures(1)
    parents, children = random_codes(model, x, "1", 9, 1, share=0.0), random_codes(model, x, "5", 6, 2)
    found = changes(Segment(model, x, "1", "5"), parents, children, [4, 1])
    assert found.score.shape == found.largest.shape == (0, 2)
    assert math.isnan(agreement(torch.zeros(9).double(), found.score[:, 0], found.concepts).pearson)
    assert math.isnan(agreement(torch.zeros(9).double(), torch.randn(4).double(), torch.arange(4)).spearman)
