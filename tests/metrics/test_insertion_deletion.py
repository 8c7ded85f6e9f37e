"""Insertion and deletion against closed forms of linear models and a literal loop; canvases."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from counted_networks import Counted, Linear
from torch import Tensor, nn

from backlight.engine import Probability
from backlight.errors import InputError, ModelError, SiteError, UnknownNameError
from backlight.metrics import (
    Case,
    Deletion,
    Insertion,
    RelevanceGain,
    auc,
    deletion_curve,
    insertion_curve,
    relevance_gain,
)
from backlight.metrics.canvas import canvas_of
from backlight.metrics.insertion_deletion import token_side

SHAPE = (2, 8, 8)


class Tokens(nn.Module):
    """A transformer's shape, as far as its patches go."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__()
        self.patch_embed, self.blocks = nn.Conv2d(2, 3, 4, stride=stride), nn.ModuleList([nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.patch_embed(x).flatten(2).transpose(1, 2)).square().mean(1)


@pytest.fixture
def net() -> Counted:
    return Counted().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, *SHAPE, dtype=torch.float64)


@pytest.fixture
def maps(x: Tensor) -> Tensor:
    """Of two methods."""
    return torch.randn(2, *x.shape, dtype=torch.float64)


def by_loops(net: nn.Module, sample: Tensor, phi: Tensor, side: int, canvas: Tensor, insert: bool) -> list[float]:
    """The definition at one sample, patch by patch."""
    start, end = (canvas, sample) if insert else (sample, canvas)
    boxes = [(top, left) for top in range(0, 8, side) for left in range(0, 8, side)]
    boxes.sort(key=lambda box: -float(phi[:, box[0] : box[0] + side, box[1] : box[1] + side].sum()))
    now, scores = start.clone(), []
    for box in (None, *boxes):
        if box is not None:
            area = (slice(None), slice(box[0], box[0] + side), slice(box[1], box[1] + side))
            now[area] = end[area]
        scores.append(float(net(now[None])[0, 1].detach()))
    return scores


@pytest.mark.parametrize("insert", [True, False])
@pytest.mark.parametrize("side", [1, 2, 3])  # 3 does not divide 8: patches at the border are smaller
def test_a_curve_is_its_definition(net: nn.Module, x: Tensor, maps: Tensor, insert: bool, side: int) -> None:
    curve = insertion_curve if insert else deletion_curve
    unit = {"unit": "pixel"} if side == 1 else {"patch": side}
    found = curve(net, x, maps, 1, steps=None, canvas="mean", **unit)
    ground = x.mean((2, 3), keepdim=True).expand_as(x)
    expected = [[by_loops(net, x[i], phi[i], side, ground[i], insert) for i in range(3)] for phi in maps]
    assert torch.allclose(found.scores, torch.tensor(expected, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found.fractions, torch.linspace(0, 1, len(expected[0][0]), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("steps", [16, 5, 1, 100])
def test_groups_go_together(net: nn.Module, x: Tensor, maps: Tensor, steps: int) -> None:
    """A curve of groups is the curve of every unit, read where groups end."""
    each = deletion_curve(net, x, maps, 1, patch=2, steps=None)
    some = deletion_curve(net, x, maps, 1, patch=2, steps=steps)
    assert len(some.fractions) == min(steps, 16) + 1
    read = (some.fractions * 16).round().long()
    assert torch.allclose(some.fractions * 16, read.double(), atol=1e-12)
    assert torch.allclose(some.scores, each.scores[..., read], atol=1e-10)


def test_a_linear_model_in_closed_form(x: Tensor) -> None:
    weight = torch.randn(1, *SHAPE, dtype=torch.float64)
    model, phi = Linear(weight, 0.7), weight * x
    masses = phi.sum(1).reshape(3, 4, 2, 4, 2).sum((2, 4)).flatten(1).sort(1, descending=True).values
    ahead = torch.cat((torch.zeros(3, 1), masses.cumsum(1)), 1)
    whole = phi.sum((1, 2, 3)) + 0.7
    deleted = deletion_curve(model, x, phi, 0, patch=2, steps=None)
    inserted = insertion_curve(model, x, phi, 0, patch=2, steps=None)
    assert torch.allclose(deleted.scores, whole[:, None] - ahead, atol=1e-10)
    assert torch.allclose(inserted.scores, 0.7 + ahead, atol=1e-10)
    area = whole - (masses * (16.5 - torch.arange(1, 17))).sum(1) / 16  # a mass counts from half a step before its end
    assert torch.allclose(deleted.auc, area, atol=1e-10)
    assert torch.allclose(deleted.auc + inserted.auc, whole + 0.7, atol=1e-10)


def test_no_order_deletes_a_linear_model_faster_than_its_contributions() -> None:
    weight, x = torch.randn(1, 1, 2, 2).double(), torch.randn(1, 1, 2, 2).double()
    model = Linear(weight)
    orders = torch.tensor(list(permutations([1.0, 2.0, 3.0, 4.0])), dtype=torch.float64).reshape(24, 1, 1, 2, 2)
    settings = {"unit": "pixel", "steps": None}
    best = deletion_curve(model, x, weight * x, 0, **settings).auc
    others = deletion_curve(model, x, orders, 0, **settings).auc[:, 0]
    assert others.min().item() == pytest.approx(best.item())
    assert others.max() - others.min() > 0.1
    assert insertion_curve(model, x, weight * x, 0, **settings).auc.item() == pytest.approx(
        insertion_curve(model, x, orders, 0, **settings).auc.max().item()
    )


def test_the_opposite_order_inserts_what_the_other_left(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    """Taking away the smallest first is putting the largest first, read backwards."""
    deleted = deletion_curve(net, x, -maps, 1, patch=2, steps=8, canvas="blur")
    inserted = insertion_curve(net, x, maps, 1, patch=2, steps=8, canvas="blur")
    assert torch.allclose(deleted.scores, inserted.scores.flip(-1), atol=1e-10)


def test_the_gain_of_the_negative_map_is_the_negative_gain(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    maps = maps.round()  # many ties
    gain = relevance_gain(net, x, maps, 1, patch=2, steps=None)
    assert torch.equal(relevance_gain(net, x, -maps, 1, patch=2, steps=None), -gain)
    pair = [deletion_curve(net, x, sign * maps, 1, patch=2, steps=None).auc for sign in (-1, 1)]
    assert torch.allclose(gain, pair[0] - pair[1], atol=1e-10)
    assert torch.allclose(relevance_gain(net, x, maps[1], 1, patch=2, steps=None), gain[1], atol=1e-10)
    assert bool((relevance_gain(net, x, torch.ones_like(x), 1) == 0).all())
    blind = relevance_gain(net, x, maps, 1, absolute=True)
    assert torch.equal(blind, relevance_gain(net, x, -maps, 1, absolute=True))


def test_who_sees_the_sign_and_nobody_the_scale(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    for kind in (Deletion, Insertion, RelevanceGain):
        for metric in (kind(), kind(absolute=True)):
            plain, negative, scaled = (
                metric(Case(net, x, 1, maps={"a": factor * maps[0], "b": factor * maps[1]})) for factor in (1, -1, 1024)
            )
            assert torch.equal(plain, negative) != metric.sees_sign
            assert torch.equal(plain, scaled)


def test_true_mask_against_random_and_inverted() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 2:6, 2:6] = 1
    model, x = Linear(mask.expand(1, 2, -1, -1)), torch.rand(4, *SHAPE, dtype=torch.float64) + 2 * mask
    tables = {"true": mask.expand(4, -1, -1, -1), "random": torch.rand(4, 1, 8, 8).double()}
    tables["inverted"] = 1 - tables["true"]
    for metric in (
        *(kind(canvas="zero") for kind in (Deletion, Insertion, RelevanceGain)),
        *(kind(unit="pixel", canvas="noise") for kind in (Deletion, Insertion, RelevanceGain)),
    ):
        true, random, inverted = metric(Case(model, x, 0, maps=tables))
        sign = 1 if metric.higher_is_better else -1
        assert bool((sign * true > sign * random).all())
        assert bool((sign * random > sign * inverted).all())


def test_a_score_is_its_samples_alone(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    settings = {"canvas": "noise", "patch": 2, "steps": 5}
    whole = insertion_curve(net, x, maps, [0, 1, 2], seed=[5, 6, 7], **settings).scores
    for batch_size in (1, 7, 1000):
        again = insertion_curve(net, x, maps, [0, 1, 2], seed=[5, 6, 7], batch_size=batch_size, **settings).scores
        assert torch.allclose(again, whole, atol=1e-10)
    order = [2, 0]
    mates = insertion_curve(net, x[order], maps[:, order], [2, 0], seed=[7, 5], **settings).scores
    assert torch.allclose(mates, whole[:, order], atol=1e-10)
    alone = insertion_curve(net, x[1:2], maps[1, 1:2], 1, seed=6, **settings).scores
    assert torch.allclose(alone, whole[1, 1:2], atol=1e-10)


def test_both_ends_are_scored_once_for_all_maps(net: Counted, x: Tensor, maps: Tensor) -> None:
    state = torch.get_rng_state()
    deletion_curve(net, x, maps, 1, patch=2, steps=8, batch_size=5, canvas="noise")
    assert sum(net.batches) == 2 * 3 * 7 + 2 * 3
    assert max(net.batches) == 5
    assert torch.equal(torch.get_rng_state(), state)
    net.batches.clear()
    case = Case(net, x, 1, maps={"a": maps[0], "b": maps[1]})
    for metric in (Deletion(patch=2, steps=8), Insertion(patch=2, steps=8)):
        metric(case)
    assert sum(net.batches) == 2 * (2 * 3 * 7 + 3) + 3  # metrics of one case share the scores of the images
    net.batches.clear()
    relevance_gain(net, x, maps, 1, patch=2, steps=8)
    assert sum(net.batches) == 2 * 2 * 3 * 7 + 2 * 3


def test_normalisations(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    for curve in (deletion_curve, insertion_curve):
        plain = curve(net, x, maps, 1).scores
        whole, empty = (net(v).detach()[:, 1][:, None] for v in (x, x * 0))
        assert torch.allclose(curve(net, x, maps, 1, normalise="image").scores, plain / whole)
        ranged = curve(net, x, maps, 1, normalise="range").scores
        assert torch.allclose(ranged, (plain - empty) / (whole - empty))
        ends = ranged[..., [0, -1]] if curve is insertion_curve else ranged[..., [-1, 0]]
        assert torch.equal(ends, torch.tensor([0.0, 1.0]).double().expand_as(ends))
    blind = Linear(torch.zeros(1, *SHAPE, dtype=torch.float64))
    for normalise in ("image", "range"):
        assert bool(deletion_curve(blind, x, maps, 0, normalise=normalise).auc.isnan().all())


def test_the_area_is_by_trapezoids() -> None:
    fractions = torch.tensor([0, 0.25, 0.5, 1]).double()
    scores = torch.tensor([[1, 0.5, 0.25, 0], [2, 2, 2, 2]]).double()
    assert auc(scores, fractions).tolist() == [0.25 * 0.75 + 0.25 * 0.375 + 0.5 * 0.125, 2]


def test_units_of_tokens(x: Tensor) -> None:
    model = Tokens().double()
    assert token_side(model) == 4
    phi = torch.randn_like(x)
    tokens = deletion_curve(model, x, phi, 1, unit="token", steps=None)
    assert torch.equal(tokens.scores, deletion_curve(model, x, phi, 1, patch=4, steps=None).scores)
    case = Case(model, x, 1, maps={"map": phi})
    assert torch.equal(Deletion(unit="token", steps=None).curve(case).scores[0], tokens.scores)
    with pytest.raises(InputError, match="read from the network"):
        deletion_curve(case.scorer, x, phi, unit="token")
    with pytest.raises(ModelError, match="patch="):
        token_side(Tokens(stride=2))
    with pytest.raises(SiteError, match="patch tokens"):
        deletion_curve(Counted().double(), x, phi, 1, unit="token")


def test_canvases(x: Tensor) -> None:
    assert torch.equal(canvas_of("zero", x), torch.zeros_like(x))
    assert torch.equal(canvas_of(-1, x), -torch.ones_like(x))
    assert torch.allclose(canvas_of("mean", x)[2, 1], x[2, 1].mean().expand(8, 8))
    given = torch.randn(2, 1, 1)
    assert torch.equal(canvas_of(given, x), given.double().expand_as(x))
    noise = canvas_of("noise", x.repeat(1, 1, 8, 8), seed=[1, 2, 1])
    assert noise.std((2, 3)).allclose(x.std((2, 3), correction=0), rtol=0.1)
    assert noise.mean((2, 3)).allclose(x.mean((2, 3)), atol=0.1)
    assert torch.equal(canvas_of("noise", x, seed=[1, 2, 1])[1:2], canvas_of("noise", x[1:2], seed=2))

    step = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    step[..., 20:] = 1
    row = canvas_of("blur", step, sigma=2.0)[0, 0, 20]
    normal = torch.distributions.Normal(0.0, 2.0)
    assert torch.allclose(row, normal.cdf(torch.arange(41) - 19.5).double(), atol=5e-3)
    assert torch.equal(canvas_of("blur", step, sigma=2 / 41)[0, 0, 20], row)


def test_the_blur_of_petsiuk() -> None:
    """Their kernel: a Gaussian filter of 5 pixels on a point in the middle of 11 x 11, with reflected borders."""
    ndimage = pytest.importorskip("scipy.ndimage")
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = ndimage.gaussian_filter(point, 5)
    places = np.arange(-5, 6)
    assert np.sqrt((kernel.sum(0) * places**2).sum()) == pytest.approx(3.13, abs=2e-3)
    steps = torch.fft.fftfreq(128)
    spectrum = (steps[:, None] ** 2 + steps**2).sqrt()
    spectrum[0, 0] = 1  # amplitudes fall as 1 / frequency, as those of natural images do
    image = torch.fft.ifft2(torch.fft.fft2(torch.randn(1, 1, 128, 128)) / spectrum).real
    theirs = nn.functional.conv2d(image, torch.as_tensor(kernel).float()[None, None], padding=5)
    inside = (..., slice(16, -16), slice(16, -16))
    ours = 224 * Insertion.presets["petsiuk"]["sigma"]
    gap, nominal = ((canvas_of("blur", image, sigma=s) - theirs)[inside].std() for s in (ours, 5.0))
    assert gap < 0.13 * theirs[inside].std()
    assert gap < 0.6 * nominal


def test_classes_are_their_functions(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    case = Case(net, x, [2, 0, 1], maps={"a": maps[0], "b": maps[1]}, seed=4)
    target = Probability([2, 0, 1])
    petsiuk = {"unit": "pixel", "steps": 224}
    found = Insertion.preset("petsiuk")(case)
    assert torch.equal(found, insertion_curve(net, x, maps, target, canvas="blur", sigma=3.13 / 224, **petsiuk).auc)
    found = Deletion.preset("petsiuk")(case)
    assert torch.equal(found, deletion_curve(net, x, maps, target, **petsiuk).auc)
    assert torch.equal(Deletion().curve(case).scores, deletion_curve(net, x, maps, [2, 0, 1]).scores)
    assert torch.equal(RelevanceGain()(case), relevance_gain(net, x, maps, [2, 0, 1]))
    assert Insertion().higher_is_better
    assert not Deletion().higher_is_better


def test_errors(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    for name, value in (("unit", "patches"), ("canvas", "blurred"), ("normalise", "images")):
        with pytest.raises(UnknownNameError, match=value):
            deletion_curve(net, x, maps, 1, **{name: value})
    with pytest.raises(InputError, match="at least 1"):
        deletion_curve(net, x, maps, 1, steps=0)
    with pytest.raises(InputError, match="patch of 9"):
        deletion_curve(net, x, maps, 1, patch=9)
    with pytest.raises(InputError, match="broadcast"):
        deletion_curve(net, x, maps, 1, canvas=torch.zeros(3, 5))
    with pytest.raises(InputError, match="sigma"):
        deletion_curve(net, x, maps, 1, canvas="blur", sigma=0.0)
    assert np.isfinite(deletion_curve(net, x, maps, 1, steps=1).auc.numpy()).all()
