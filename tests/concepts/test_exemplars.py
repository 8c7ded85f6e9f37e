"""Exemplars: the strongest positions, one of an image, and what each is made of in its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")
pytest.importorskip("timm")
from concept_banks import Positive, cnn, pictures, small, vit

from backlight.concepts.bank import Bank, make_bank
from backlight.concepts.concepts import Concepts, encode_concepts, fit_concepts
from backlight.concepts.exemplars import exemplars
from backlight.concepts.receptive_fields import ReceptiveField, ReceptiveFields, faded, smallest_box
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return small(tmp_path_factory.mktemp("bank"), sampling="all")


@pytest.fixture(scope="module")
def concepts(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Concepts:
    own = fit_concepts(bank, "act2", "KMeans", tmp_path_factory.mktemp("concepts"), modes=4, epochs=9)
    found: Any = encode_concepts(own, None, Positive())
    return found


def test_exemplars_are_the_largest_codes_one_of_an_image(bank: Bank, concepts: Concepts) -> None:
    codes, image, position = concepts.codes.read(0, 999), bank.image("act2"), bank.position("act2")
    for k in range(4):
        best = [(float(codes[image == n, k].max()), -n) for n in range(9)]
        expected = [-n for value, n in sorted(best, reverse=True) if value > 0]
        found = exemplars(concepts, k, 5)
        assert [one.image for one in found] == expected[:5]
        for rank, one in enumerate(found):
            assert one.row == int((image == one.image).nonzero()[0]) + int(codes[image == one.image, k].argmax())
            assert one.position == tuple(position[one.row].tolist())
            assert (one.code, one.rank, one.concept) == (float(codes[one.row, k]), rank, k)
            assert (one.name, one.label) == (f"p{one.image}", one.image % 3)


def test_clusters_show_the_vectors_nearest_to_their_centres(bank: Bank, concepts: Concepts) -> None:
    own = Concepts(concepts.decomposed, bank=bank)
    rows, image = bank.rows("act2").read(0, 999), bank.image("act2")
    distance = torch.cdist(rows.double(), own.dictionary.modes.double())
    for k in range(4):
        mine = own.codes.read(0, 999)[:, k] > 0
        near = {int(n): float(distance[(image == n) & mine, k].min()) for n in image[mine].unique()}
        found = exemplars(own, k, 4)
        expected = sorted(near.values())[:4]
        np.testing.assert_allclose([float(distance[one.row, k]) for one in found], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([1 / one.strength - 1 for one in found], expected, rtol=1e-3, atol=1e-4)
        assert all(one.code == 1 for one in found)


def test_diverse_ones_are_farthest_first_or_of_each_class_in_turn(bank: Bank, concepts: Concepts) -> None:
    every = exemplars(concepts, 1, 9)
    rows = torch.stack([bank.rows("act2").read(one.row, one.row + 1)[0] for one in every]).double()
    directions = rows / rows.norm(dim=1, keepdim=True)
    chosen = [0]
    for _ in range(3):
        apart = [min(float((directions[i] - directions[j]).norm()) for j in chosen) for i in range(len(every))]
        chosen.append(int(np.argmax(apart)))
    assert [one.rank for one in exemplars(concepts, 1, 4, diverse=True)] == chosen
    assert chosen != [0, 1, 2, 3]
    turns = exemplars(concepts, 1, 6, diverse="classes")
    assert {one.label for one in turns[:3]} == {0, 1, 2}
    firsts = [next(one.rank for one in every if one.label == label) for label in (0, 1, 2)]
    assert sorted(one.rank for one in turns[:3]) == sorted(firsts)


def test_a_field_is_srd_s_and_is_computed_once(bank: Bank, concepts: Concepts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = exemplars(concepts, 0, 1)[0]
    expected = SRD(cnn()).prepare(bank.inputs(one.image)).ierf("act2", [one.position])[0, 0]
    torch.testing.assert_close(one.field.values, expected.detach())
    assert float(one.ierf.sum()) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(SRD, "prepare", lambda *_: pytest.fail("computed again"))
    again = exemplars(concepts, 0, 1)[0]
    assert torch.equal(again.field.values, one.field.values)
    assert again.field.size == (8, 8)
    x0, y0, x1, y1 = one.box(0.5)
    assert torch.equal(one.crop(0.5), one.picture[:, y0:y1, x0:x1])
    mask = one.field.mask(0.5)
    masked = one.crop(0.5, masked=True)
    assert torch.equal(masked, faded(one.picture, mask)[:, y0:y1, x0:x1])


def test_keys_tell_networks_images_sites_positions_and_kinds_apart(bank: Bank, tmp_path: Path) -> None:
    fields = ReceptiveFields(bank)
    asked = [(0, "act2", (0, 0)), (1, "act2", (0, 0)), (0, "act1", (0, 0)), (0, "act2", (0, 1))]
    paths = {fields.path(*one) for one in asked} | {ReceptiveFields(bank, kind="gradient").path(*asked[0])}
    assert len(paths) == 5
    model = cnn()
    with torch.no_grad():
        model.head.bias += 1
    other = make_bank(model, pictures(), "act2", tmp_path, sampling="all")
    assert ReceptiveFields(other, fields.folder).path(*asked[0]) not in paths
    few = ReceptiveFields(bank, tmp_path / "f").of(2, "act2", [(0, 0), (3, 1)])
    both = ReceptiveFields(bank, tmp_path / "f").of(2, "act2", [(3, 1), (2, 2), (0, 0)])
    assert torch.equal(both[0].values, few[1].values)
    assert torch.equal(both[2].values, few[0].values)


def test_fields_of_tokens_are_those_of_token_fields(tmp_path: Path) -> None:
    model = vit()
    bank = make_bank(model, pictures(2, 16), "blocks.0", tmp_path, per_image=2, class_token="keep")
    found = ReceptiveFields(bank).of(1, "blocks.0", [(-1, -1), (2, 3)])
    expected = TokenFields(model).of(bank.inputs(1), "blocks.0", [0, 1 + 4 * 2 + 3]).shares
    torch.testing.assert_close(torch.stack([one.values for one in found]), expected, rtol=1e-4, atol=1e-6)
    at_input = found[0].at_input
    assert at_input.shape == (16, 16)
    torch.testing.assert_close(at_input[4:8, 8:12], expected[0, 1, 2].expand(4, 4) / 16)
    assert all(side % 4 == 0 for side in found[1].box(0.6))


def test_the_gradient_answers_where_srd_has_no_node(bank: Bank) -> None:
    with pytest.raises(SiteError, match="no feature map with a relevance"):
        ReceptiveFields(bank).of(0, "second", [(1, 1)])
    with pytest.raises(InputError, match="class token"):
        ReceptiveFields(bank).of(0, "act2", [(-1, -1)])
    (found,) = ReceptiveFields(bank, kind="gradient").of(0, "second", [(1, 2)])
    x, parts = bank.inputs(0).requires_grad_(), cnn()
    vector = parts.second(parts.pool(parts.act1(parts.first(x))))[0, :, 1, 2]
    (gradient,) = torch.autograd.grad(vector.norm(), x)
    torch.testing.assert_close(found.values, (x * gradient).sum(1)[0].detach())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_smallest_box_is_what_all_boxes_say(height: int, width: int, seed: int, mass: float) -> None:
    values = torch.randn(height, width, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    positive = values.clamp(min=0).double()
    if not positive.sum() > 0:
        with pytest.raises(InputError, match="no positive entry"):
            smallest_box(values, mass)
        return
    boxes = [
        ((y1 - y0) * (x1 - x0), y0, x0, (x0, y0, x1, y1))
        for y0 in range(height)
        for y1 in range(y0 + 1, height + 1)
        for x0 in range(width)
        for x1 in range(x0 + 1, width + 1)
        if positive[y0:y1, x0:x1].sum() >= mass * positive.sum() * (1 - 1e-6)
    ]
    x0, y0, x1, y1 = smallest_box(values, mass)
    assert positive[y0:y1, x0:x1].sum() >= mass * positive.sum() * (1 - 1e-6)
    assert (y1 - y0) * (x1 - x0) == min(boxes)[0]


def test_masks_hold_the_share_with_the_fewest_cells_and_boxes_are_of_pixels() -> None:
    field = ReceptiveField(torch.tensor([[0.5, 0.3], [0.2, -0.1]]), (4, 6), "tokens")
    assert field.box(0.8) == (0, 0, 6, 2)
    assert field.box(0.5) == (0, 0, 3, 2)
    assert int(field.mask(0.5).sum()) == 6
    assert field.mask(0.5)[:2, :3].all()
    assert int(field.mask(0.8).sum()) == 12
    torch.testing.assert_close(field.at_input.sum(), torch.tensor(0.9))
    uneven = ReceptiveField(torch.rand(3, 3), (7, 8), "srd")
    torch.testing.assert_close(uneven.at_input.sum(), uneven.values.sum())


def test_what_does_not_fit_is_said_of_exemplars(concepts: Concepts) -> None:
    with pytest.raises(InputError, match="concepts 0 to 3, not 4"):
        exemplars(concepts, 4)
    with pytest.raises(InputError, match="at least 1"):
        exemplars(concepts, 0, 0)
    with pytest.raises(UnknownNameError, match="classes"):
        exemplars(concepts, 0, diverse="class")
    with pytest.raises(UnknownNameError, match="tokens"):
        ReceptiveFields(concepts.bank, kind="token")
    with pytest.raises(InputError, match=r"lies in \(0, 1\]"):
        smallest_box(torch.ones(2, 2), 1.5)
