"""What all metrics stand on: scores in batches, seeded draws, maps, correlations, fills, patches, cases, explainers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

import backlight
from backlight.engine.targets import Logit, Probability
from backlight.errors import InputError, ModelError, TargetError, UnknownNameError
from backlight.methods import method
from backlight.metrics import METRICS, Case, Infidelity, Metric, as_explainer, metric
from backlight.metrics.correlation import pearson, precise, ranks, spearman
from backlight.metrics.draws import drawn, further, generators, normal, uniform, whole
from backlight.metrics.explainers import CaptumExplainer, FunctionExplainer, MethodExplainer, explained
from backlight.metrics.fills import filled
from backlight.metrics.maps import positions, region_sums, stacked
from backlight.metrics.patches import grid, pixels
from backlight.metrics.scorer import Scorer


class Counted(nn.Module):
    """A small network that notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5, 3)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.head(torch.tanh(self.conv(x)).square().mean((2, 3)))


@pytest.fixture
def net() -> Counted:
    torch.manual_seed(3)
    return Counted().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------------- scorer


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_versions_are_scored_in_batches_of_at_most_that_size(batch_size: int, net: Counted, x: Tensor) -> None:
    scorer = Scorer(net, x, [0, 1, 2], batch_size)
    factors = torch.tensor([0.5, 2.0, -1.0, 3.0], dtype=torch.float64)
    found = scorer.versions(4, lambda rows, numbers: x[rows] * factors[numbers, None, None, None])
    assert max(net.batches) <= batch_size
    assert sum(net.batches) == 12
    assert scorer.cost.forwards == 12
    for row in range(3):
        for number, factor in enumerate(factors):
            assert torch.allclose(found[row, number], net(x[row : row + 1] * factor)[0, row], rtol=1e-12, atol=0)
    assert found.dtype == torch.float64
    assert not found.requires_grad


def test_drops_are_falls_from_the_samples_score(net: Counted, x: Tensor) -> None:
    scorer = Scorer(net, x, 1)
    drops = scorer.drops(1, lambda rows, _: torch.zeros_like(x[rows]))
    assert torch.allclose(drops[:, 0], (net(x) - net(torch.zeros_like(x)))[:, 1].detach(), atol=1e-14)
    assert torch.equal(scorer.scores, scorer.scores)
    assert scorer.cost.forwards == 6  # the samples' own scores are kept


def test_the_class_is_chosen_at_the_samples_and_kept(net: Counted, x: Tensor) -> None:
    scorer = Scorer(net, x, None, batch_size=2)
    classes = net(x).argmax(1)
    assert isinstance(scorer.target, Logit)
    assert torch.equal(scorer.target.index, classes)
    moved = scorer.versions(1, lambda rows, _: -3 * x[rows])[:, 0]
    assert torch.allclose(moved, net(-3 * x)[range(3), classes].detach(), atol=1e-14)


def test_other_targets_are_scored_too(net: Counted, x: Tensor) -> None:
    found = Scorer(net, x, Probability(2)).scores
    assert torch.allclose(found, net(x).softmax(1)[:, 2].detach(), atol=1e-14)


def test_scores_of_training_mode_are_refused(x: Tensor) -> None:
    for module in (nn.BatchNorm2d(2), nn.Dropout(0.5)):
        model = nn.Sequential(module, nn.Flatten(), nn.Linear(128, 2)).double()
        with pytest.raises(ModelError, match="0 is in training mode"):
            Scorer(model, x, 0)
        Scorer(model.eval(), x, 0)
    Scorer(nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).double().train(), x, 0)  # where it makes no difference


def test_what_cannot_be_scored_is_named(net: Counted, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"\[0, 2, 8, 8\]"):
        Scorer(net, x[:0])
    with pytest.raises(InputError, match="got 0"):
        Scorer(net, x, batch_size=0)
    with pytest.raises(TargetError):
        Scorer(net, x, [0, 1])


# ---------------------------------------------------------------------------------------------------- draws


def test_draws_of_a_sample_come_from_its_own_seed(x: Tensor) -> None:
    together = uniform([5, 6, 7], (4,), -1.0, 1.0, x)
    alone = torch.cat([uniform([seed], (4,), -1.0, 1.0, x[:1]) for seed in (5, 6, 7)])
    assert torch.equal(together, alone)
    assert len(together.unique()) == 12
    same = normal(5, (2, 3), 0.5, x)
    assert same.shape == (3, 2, 3)
    assert torch.equal(same[0], same[2])
    assert torch.equal(same[:1], normal([5], (2, 3), 0.5, x[:1]))


def test_draws_have_the_range_the_type_and_the_spread(x: Tensor) -> None:
    found = uniform(1, (20_000,), -2.0, 4.0, x[:1])
    assert found.dtype == torch.float64
    assert -2 <= found.min() < -1.99
    assert 3.99 < found.max() <= 4
    assert abs(float(found.mean()) - 1) < 0.05
    assert abs(float(normal(1, (20_000,), 0.5, x[:1]).std()) - 0.5) < 0.01
    single = uniform(1, (5,), 0.0, 1.0, x[:1].float())
    assert single.dtype == torch.float32
    assert torch.equal(single.double(), uniform(1, (5,), 0.0, 1.0, x[:1]))  # the same draws in every type


def test_integers_are_not_rounded_to_the_type_of_the_samples() -> None:
    like = torch.zeros(2, 1, dtype=torch.bfloat16)
    found = drawn(0, 2, lambda g: torch.randint(100_001, 200_000, (50,), generator=g), like)
    assert found.dtype == torch.int64
    assert (found % 2 == 1).any()
    assert torch.equal(found[0], found[1])


def test_further_streams_differ_and_the_global_generator_is_left_alone(x: Tensor) -> None:
    before = torch.get_rng_state()
    first, second = (uniform(further(3, number), (8,), 0.0, 1.0, x) for number in (0, 1))
    assert torch.equal(first, uniform(3, (8,), 0.0, 1.0, x))
    assert not torch.equal(first, second)
    assert further([3, 4], 2) == [further(3, 2), further(4, 2)]
    assert torch.equal(before, torch.get_rng_state())


def test_a_wrong_number_of_seeds_is_named() -> None:
    with pytest.raises(InputError, match="2 seeds for 3 samples"):
        generators([1, 2], 3)


# ---------------------------------------------------------------------------------------------------- maps


def test_maps_of_one_method_and_of_several(x: Tensor) -> None:
    maps, single = stacked(x, x)
    assert single
    assert torch.equal(maps[0], x)
    maps, single = stacked(x[None, :, :1].expand(4, -1, -1, -1, -1), x)
    assert not single
    assert maps.shape == (4, 3, 2, 8, 8)
    assert torch.equal(maps[3, :, 1], x[:, 0])  # one value a position stands for every channel


@pytest.mark.parametrize("shape", [(3, 2, 8, 7), (2, 2, 8, 8), (3, 3, 8, 8), (3, 8, 8), (1, 3, 2, 4, 4)])
def test_maps_of_other_shapes_are_named(shape: tuple[int, ...], x: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected attributions \[3, 2, 8, 8\]"):
        stacked(torch.zeros(shape), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_nan_throughout_and_the_others_stay(value: float, x: Tensor) -> None:
    maps = x.clone()
    maps[1, 0, 2, 3] = value
    found = stacked(maps, x)[0][0]
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], x[[0, 2]])
    assert maps[1].isfinite().sum() == x[1].numel() - 1  # what was given is not changed


def test_sums_over_channels_and_regions_are_in_double_precision() -> None:
    maps = torch.tensor([1.0, 1e-9, -1.0]).reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    assert torch.allclose(positions(maps), torch.full((1, 1, 2, 2), 1e-9, dtype=torch.float64), rtol=1e-6)
    values = torch.arange(12, dtype=torch.float32).reshape(2, 6)
    regions = torch.tensor([0, 0, 1, -1, 2, 1])
    assert region_sums(values, regions, 3).tolist() == [[1, 7, 4], [13, 19, 10]]


# ---------------------------------------------------------------------------------------------------- correlation


@pytest.mark.parametrize("values", [7, 50])
def test_correlations_are_scipy_s(values: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, values))
    a[1], b[2] = np.round(a[1]), np.round(b[2])  # ties
    for ours, theirs in ((pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)):
        expected = [theirs(one, other)[0] for one, other in zip(a, b, strict=True)]
        assert np.allclose(ours(torch.tensor(a), torch.tensor(b)), expected, rtol=0, atol=1e-14)
    assert np.array_equal(ranks(torch.tensor(a)), scipy.stats.rankdata(a, axis=1))


def test_correlations_broadcast_and_do_not_see_scale_or_shift() -> None:
    a, b = torch.randn(3, 5, 9), torch.randn(5, 9)
    found = pearson(a, b)
    assert found.shape == (3, 5)
    assert torch.allclose(found[2], pearson(a[2], b))
    assert torch.allclose(found, -pearson(a * 1e-12, 4 - 1e9 * b), atol=1e-6)
    assert torch.allclose(pearson(b, b), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_what_does_not_vary_has_no_correlation(correlate: type, recwarn: pytest.WarningsRecorder) -> None:
    constant = torch.full((1, 9), 0.1, dtype=torch.float64)
    assert constant.mean() != 0.1  # what rounding leaves of it is no variation
    assert correlate(constant, torch.randn(1, 9)).isnan().all()
    assert correlate(torch.randn(1, 9), constant).isnan().all()
    assert not recwarn.list


def test_precision_and_ranks_of_what_is_no_number() -> None:
    assert precise(torch.zeros(2, dtype=torch.float16, requires_grad=True)).dtype == torch.float64
    assert ranks(torch.tensor([3.0, float("nan"), 1.0])).isnan().tolist() == [False, True, False]


# ---------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda seeds: torch.tensor(seeds).int()])
def test_seeds_may_be_any_sequence_of_whole_numbers(kind: Any, x: Tensor) -> None:
    expected = uniform([3, 5, 7], (4,), 0.0, 1.0, x)
    assert torch.equal(uniform(kind([3, 5, 7]), (4,), 0.0, 1.0, x), expected)
    assert further(kind([3, 5, 7]), 2) == [one + 2_000_006 for one in (3, 5, 7)]
    with pytest.raises(InputError, match="2 seeds for 3 samples"):
        generators(kind([3, 5]), 3)


def test_one_seed_may_be_of_any_kind_of_whole_number() -> None:
    assert [whole(seed) for seed in (3, np.int64(3), np.array(3), torch.tensor(3))] == [3] * 4
    for seed in (0.5, "3", None, True, 2**64, [1, 2.0], torch.tensor([1.0]), np.array([0.5]), torch.ones(2, 2).long()):
        with pytest.raises(InputError, match="a seed is a whole number"):
            whole(seed)


# ---------------------------------------------------------------------------------------------------- fills, patches


def test_fills_are_numbers_of_each_sample(x: Tensor) -> None:
    flat = x.flatten(1)
    for name, expected in (("min", flat.amin(1)), ("mean", flat.mean(1)), ("max", flat.amax(1))):
        assert torch.equal(filled(name, x, 4, 0), expected[:, None].expand(-1, 4))
    assert torch.equal(filled(0.25, x, 4, 0), torch.full((3, 4), 0.25, dtype=torch.float64))
    assert torch.equal(filled("uniform", x, 4, 9, -2.0, 1.0), uniform(9, (4,), -2.0, 1.0, x))
    with pytest.raises(UnknownNameError, match="mean"):
        filled("means", x, 4, 0)


def test_patches_in_pixels_and_parts_of_the_side(x: Tensor) -> None:
    assert [pixels(side, x) for side in (1 / 2, 1 / 4, 3.0, 8.0, 0.01)] == [4, 2, 3, 8, 1]
    assert pixels(1 / 4, torch.zeros(1, 1, 224, 300)) == 56
    for side in (0.0, -1.0, 9.0, float("inf")):
        with pytest.raises(InputError):
            pixels(side, x)


def test_a_grid_covers_every_position_once() -> None:
    regions, count = grid((5, 4), 2)
    assert count == 6
    assert regions.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5]]
    with pytest.raises(InputError):
        grid((4, 4), 5)


# ---------------------------------------------------------------------------------------------------- cases


def test_a_case_explains_once_in_batches_and_in_order(net: Counted, x: Tensor) -> None:
    calls: list[int] = []

    def times_two(inputs: Tensor, target: Tensor) -> Tensor:
        calls.append(len(inputs))
        return inputs * 2 + target.reshape(-1, 1, 1, 1)

    case = Case(net, x, [2, 0, 1], {"twice": times_two, "soft": method("SoftPullback")(net)}, {"own": x}, batch_size=2)
    assert case.names == ["twice", "soft", "own"]
    assert case.attributions.shape == (3, 3, 2, 8, 8)
    assert torch.equal(case.attributions[0], x * 2 + torch.tensor([2.0, 0.0, 1.0]).reshape(-1, 1, 1, 1))
    assert torch.equal(case.attributions[1], method("SoftPullback")(net).attribute(x, [2, 0, 1]))
    assert torch.equal(case.attributions[2], x)
    assert calls == [2, 1]
    assert case.map("twice") is case.map("twice")
    assert case.classes.tolist() == [2, 0, 1]
    assert case.class_count == 3


def test_a_case_of_the_predicted_classes(net: Counted, x: Tensor) -> None:
    case = Case(net, x, maps={"own": x})
    assert torch.equal(case.classes, net(x).argmax(1))
    assert Case(net, x, 1, maps={"own": x}).classes.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="class index"):
        _ = Case(net, x, backlight.engine.Contrast(0, 1), maps={"own": x}).classes


def test_what_a_case_lacks_is_named(net: Counted, x: Tensor) -> None:
    with pytest.raises(InputError, match="at least one explanation"):
        Case(net, x, 0)
    with pytest.raises(InputError, match="only maps of 'own'"):
        Case(net, x, 0, maps={"own": x}).explainer("own")
    with pytest.raises(InputError, match="masks"):
        Case(net, x, 0, maps={"own": x}).object_masks()
    case = Case(net, x, 0, maps={"own": x})
    for masks in (torch.ones(3, 8, 7, dtype=torch.bool), torch.ones(3, 8, 8)):
        case.masks = masks
        with pytest.raises(InputError, match=r"expected bool masks \[3, 8, 8\]"):
            case.__post_init__()
    with pytest.raises(InputError, match="'own' is one explanation"):
        _ = Case(net, x, 0, maps={"own": x[None].expand(2, -1, -1, -1, -1)}).attributions


def test_presets_and_names() -> None:
    assert Infidelity.preset("signed").scaling == "positive"
    assert Infidelity.preset("signed", repeats=2).settings()["repeats"] == 2
    assert metric("in-fidelity") is Infidelity
    assert all(issubclass(found, Metric) and found.__name__ == name for name, found in METRICS.items())
    with pytest.raises(UnknownNameError, match="Infidelity"):
        metric("infidelty")
    with pytest.raises(UnknownNameError, match="pullbacks"):
        Infidelity.preset("pullback")


# ---------------------------------------------------------------------------------------------------- explainers


def test_explainers_of_methods_move_and_count(net: Counted, x: Tensor) -> None:
    explainer = as_explainer(method("SmoothGrad")(net, n_samples=3))
    assert isinstance(explainer, MethodExplainer)
    first = explainer(x, [0, 1, 2])
    assert explainer.cost.backwards == 9
    assert torch.equal(first, explainer(x, [0, 1, 2]))
    assert not torch.allclose(first, explainer.reseeded(7)(x, [0, 1, 2]))
    other = Counted().double().eval()
    expected = method("SmoothGrad")(other, n_samples=3).attribute(x, [0, 1, 2])
    assert torch.equal(explainer.on(other)(x, [0, 1, 2]), expected)
    assert not as_explainer(method("Saliency")(net)).random  # type: ignore[attr-defined]


def test_functions_get_class_indices_and_cannot_be_moved(net: Counted, x: Tensor) -> None:
    seen: list[Tensor] = []
    explainer = as_explainer(lambda inputs, target: (seen.append(target), inputs)[1])
    assert isinstance(explainer, FunctionExplainer)
    assert torch.equal(explained(explainer, x, Logit(torch.tensor([2, 1, 0])), 2), x)
    assert [one.tolist() for one in seen] == [[2, 1], [0]]
    assert explainer.reseeded(3) is explainer
    with pytest.raises(InputError, match="one network only"):
        explainer.on(net)
    with pytest.raises(InputError, match="an explainer is a Method"):
        as_explainer(3)
    assert as_explainer(explainer) is explainer


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_s_attributions_give_our_scores(net: Counted, x: Tensor) -> None:
    """Captum's Saliency and Integrated Gradients, and ours, through one metric."""
    captum = pytest.importorskip("captum.attr")
    pairs = {
        "Saliency": as_explainer(captum.Saliency(net), abs=False),
        "IntegratedGradients": as_explainer(captum.IntegratedGradients(net), n_steps=20),
    }
    settings: dict[str, dict] = {"Saliency": {}, "IntegratedGradients": {"n_steps": 20}}
    for name, theirs in pairs.items():
        case = Case(net, x, [0, 1, 2], {"theirs": theirs, "ours": method(name)(net, **settings[name])}, batch_size=2)
        assert torch.allclose(case.map("theirs"), case.map("ours"), atol=1e-12)
        scores = Infidelity(patches=(1 / 2,), repeats=2)(case)
        assert torch.allclose(scores[0], scores[1], rtol=1e-8, atol=0), name
        assert scores.min() > 1e-8
        assert case.attributions[0].abs().max() > 1e-3


def test_captum_s_maps_of_a_layer_come_at_the_size_of_the_input(net: Counted, x: Tensor) -> None:
    captum = pytest.importorskip("captum.attr")
    theirs = as_explainer(captum.LayerGradCam(net, net.conv))
    assert isinstance(theirs, CaptumExplainer)
    case = Case(net, x, [0, 1, 2], {"theirs": theirs, "ours": method("GradCAM")(net, layer="conv", relu=False)})
    assert case.map("theirs").shape == (3, 1, 8, 8)
    assert torch.allclose(case.map("theirs"), case.map("ours"), atol=1e-12)
    scores = Infidelity(patches=(1 / 2,), repeats=1)(case)
    assert torch.allclose(scores[0], scores[1], rtol=1e-9)
    hidden = as_explainer(captum.LayerGradientXActivation(net, net.conv))(x, 0)
    assert hidden.shape == (3, 1, 8, 8)
    other = Counted().double().eval()
    moved = theirs.on(other)(x, [0, 1, 2])
    assert torch.allclose(moved, method("GradCAM")(other, layer="conv", relu=False).attribute(x, [0, 1, 2]), atol=1e-12)
