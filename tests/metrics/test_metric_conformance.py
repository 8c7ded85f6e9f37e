"""What every metric of the registry keeps: the conformance suite. New metrics are tested from their registry line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import backlight.metrics
from backlight.engine.targets import TopK
from backlight.errors import BacklightError, InputError
from backlight.methods import method
from backlight.metrics import METRICS, Case, Metric
from backlight.metrics.controls import Control, Negative
from backlight.metrics.explainers import Explainer, as_explainer

SIZE = 16
CLASSES = [0, 3, 1]
SEEDS = [3, 4, 5]

# smaller settings than the presets', for speed: only where a metric has the setting, and does not leave it empty
SMALL: dict[str, Any] = {
    "blocks": 6, "step": 128, "n_draws": 2, "runs": 12, "subset": 20, "repeats": 2, "squares": 6, "draws": 2,
    "steps": 5, "patch": 1 / 4, "tolerance": 2.0, "hit": None, "sigma": 1 / 8, "ParameterRandomisation.layers": 2,
}  # fmt: skip

PRESETS = [
    (name, preset)
    for name, found in METRICS.items()
    for number, preset in enumerate(found.presets)
    if found.preset(preset) not in [found.preset(other) for other in list(found.presets)[:number]]
]

DEFAULTS = [(name, next(iter(found.presets))) for name, found in METRICS.items()]

# (metric, preset or *, test, reason): what cannot be kept; strict
CANNOT: list[tuple[str, str, str, str]] = []


def made(name: str, preset: str) -> Metric:
    """A metric in a protocol's settings, made small."""
    found = METRICS[name].preset(preset)
    small = {key: SMALL[key] for key, value in found.settings().items() if key in SMALL and value}
    return replace(found, **small, **{key.partition(".")[2]: SMALL[key] for key in SMALL if key.startswith(f"{name}.")})


@pytest.fixture(autouse=True)
def exceptions(request: pytest.FixtureRequest) -> None:
    """What a metric cannot keep is declared, with its reason, and has to fail."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    for name, preset, test, reason in CANNOT:
        known = (name, test) == (parameters.get("name"), request.node.originalname)
        if known and preset in ("*", parameters.get("preset")):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


@cache
def network() -> nn.Module:
    """Two convolutions, a softplus and a ReLU, batch normalisation; five classes."""
    torch.manual_seed(5)
    body = [nn.Conv2d(3, 6, 5, stride=2), nn.BatchNorm2d(6), nn.Softplus(), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 5)).double().eval()


@cache
def images() -> Tensor:
    smooth = torch.rand(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return nn.functional.interpolate(smooth, (SIZE, SIZE), mode="bilinear")


@cache
def masks() -> Tensor:
    found = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    for row, (top, left) in enumerate(((2, 3), (6, 1), (0, 8))):
        found[row, top : top + 6, left : left + 7] = True
    return found


class Changed(Explainer):
    """Another explainer's maps, changed."""

    def __init__(self, explainer: Explainer, change: Callable[[Tensor], Tensor]) -> None:
        self.explainer, self.change = explainer, change

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return self.change(self.explainer(inputs, target))

    def reseeded(self, seed: int) -> Explainer:
        again = self.explainer.reseeded(seed)
        return self if again is self.explainer else Changed(again, self.change)

    def on(self, model: nn.Module) -> Explainer:
        return Changed(self.explainer.on(model), self.change)


def explainers(model: nn.Module) -> dict[str, Explainer]:
    """One that is a plain gradient, one that draws, one of one value a position, and a control."""
    gradient = as_explainer(method("Saliency")(model))
    return {
        "gradient": gradient,
        "smooth": as_explainer(method("SmoothGrad")(model, n_samples=2, stdev=0.3)),
        "positions": Changed(gradient, lambda maps: maps.abs().sum(1, keepdim=True)),
        "input": Control("input"),
    }


def case_of(
    model: nn.Module | None = None,
    rows: Any = slice(None),
    change: Callable[[Explainer], Explainer] = lambda made: made,
    names: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **settings: Any,
) -> Case:
    """A case of some of the images; `change`: of each explainer; `names`: which of them, all if none is named."""
    model = model or network()
    index = torch.arange(3)[rows]
    known = {name: change(made) for name, made in explainers(model).items() if not names or name in names}
    given = {"seed": [SEEDS[row] for row in index], "masks": masks()[index].to(device), "batch_size": 7} | settings
    classes = [CLASSES[row] for row in index]
    return Case(model, images()[index].to(device, dtype), classes, known, **given)


@cache
def plain(name: str, preset: str) -> Tensor:
    """The scores of the case as it is."""
    return made(name, preset)(case_of())


def close(one: Tensor, other: Tensor, rtol: float = 1e-6, atol: float = 1e-9) -> bool:
    return torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)


# ---------------------------------------------------------------------------------------------------- what a score is


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_scores_are_numbers_a_method_and_sample(name: str, preset: str) -> None:
    found = plain(name, preset)
    assert found.shape == (4, 3)
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert not found.isinf().any()
    assert found[:2].isfinite().all()  # of gradients every metric is defined
    assert len(found.unique()) > 2 or name == "PointingGame"  # it measures something


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_says_of_itself(name: str) -> None:
    found = METRICS[name]
    assert re.search(r"(19|20)\d\d|[A-Z]\w+", found.source)
    assert len(found.formula) > 10
    assert (found.__doc__ or "").strip().endswith((".", ")"))
    assert set(found.needs) <= {"explainers", "masks", "classes"}
    first, *_ = found.presets
    assert found.preset(first) == found(), "the defaults are the first preset"
    for preset in found.presets:
        metric = found.preset(preset)
        assert metric == found(**metric.settings())
        assert isinstance(metric.sees_sign, bool)
        assert hash(metric) == hash(found.preset(preset))
        assert {entry.name for entry in fields(metric)} == set(metric.settings())
    assert name in backlight.metrics.__all__


# ---------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_sample_s_score_does_not_depend_on_its_batch(name: str, preset: str) -> None:
    """A single run, another order, other batch sizes."""
    metric, expected = made(name, preset), plain(name, preset)
    assert close(metric(case_of(rows=[1], batch_size=1)), expected[:, [1]])
    assert close(metric(case_of(rows=[2, 0], batch_size=100)), expected[:, [2, 0]])


@pytest.mark.parametrize(("name", "preset"), DEFAULTS)
def test_several_methods_at_once_are_one_at_a_time(name: str, preset: str) -> None:
    metric, expected = made(name, preset), plain(name, preset)
    assert close(metric(case_of(names=("smooth",))), expected[[1]])
    assert close(metric(case_of(names=("positions",), rows=[0]))[0], expected[2, [0]])


@pytest.mark.parametrize(("name", "preset"), DEFAULTS)
def test_one_seed_for_all_samples_is_that_seed_for_each(name: str, preset: str) -> None:
    metric = made(name, preset)
    both = metric(case_of(seed=3, rows=[0, 1], names=("smooth",)))
    assert close(both[:, 0], plain(name, preset)[1, [0]])
    assert close(both[:, 1:], metric(case_of(seed=[3], rows=[1], names=("smooth",))))


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_single_precision_gives_the_score_too(name: str, preset: str) -> None:
    case = case_of(deepcopy(network()).float(), dtype=torch.float32)
    found = made(name, preset)(case)
    assert found.dtype == torch.float64
    assert close(found, plain(name, preset), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_gpu_gives_the_score_of_the_cpu(name: str, preset: str) -> None:
    case = case_of(deepcopy(network()).cuda(), device="cuda")
    assert close(made(name, preset)(case), plain(name, preset), rtol=1e-5)


@pytest.mark.parametrize(("name", "preset"), DEFAULTS)
def test_a_map_that_is_not_finite_has_no_score_and_the_others_keep_theirs(name: str, preset: str) -> None:
    case = case_of(names=("gradient", "positions"))
    for method_, (row, value) in {"gradient": (1, torch.nan), "positions": (2, -torch.inf)}.items():
        maps = case.map(method_).clone()
        maps[row, 0, 3, 4] = value
        case._maps[method_] = maps
    found, expected = made(name, preset)(case), plain(name, preset)[[0, 2]].clone()
    expected[0, 1] = expected[1, 2] = torch.nan
    assert close(found, expected)


# ---------------------------------------------------------------------------------------------------- leave no trace


def traces(model: nn.Module) -> dict[str, Any]:
    """All that a metric could leave on a model or elsewhere."""
    tables = [key for key in vars(global_hooks) if key.startswith("_global_") and key.endswith("hooks")]
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    state: Any = np.random.get_state()
    return {
        "state": {key: value.clone().numpy().tobytes() for key, value in model.state_dict().items()},
        "flags": [(part.training, type(part), sorted(vars(part))) for part in model.modules()],
        "gradients": [(one.grad, one.requires_grad) for one in model.parameters()],
        "hooks": [len(getattr(global_hooks, key)) for key in tables]
        + [len(getattr(part, key)) for part in model.modules() for key in own],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (state[1].tobytes(), state[2]),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_the_same_seed_gives_the_same_score_and_nothing_is_left_behind(name: str, preset: str) -> None:
    model = deepcopy(network())
    case = case_of(model)
    before, inputs = traces(model), case.inputs.clone()
    found = made(name, preset)(case)
    assert torch.equal(found.nan_to_num(7), plain(name, preset).nan_to_num(7))  # the same seed, the same score
    assert traces(model) == before
    assert torch.equal(case.inputs, inputs)


# ---------------------------------------------------------------------------------------------------- signs and scales


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_signs_are_seen_where_it_is_said(name: str, preset: str) -> None:
    """A metric that does not see signs gives a map and its negative one score; the others tell some of them apart."""
    metric, expected = made(name, preset), plain(name, preset)
    found = metric(case_of(change=Negative))
    if metric.sees_sign:
        assert not close(found, expected, rtol=1e-5)
    else:
        assert close(found, expected)


SIX = (
    "Infidelity", "FaithfulnessCorrelation", "FaithfulnessEstimate", "MonotonicityCorrelation", "MaxSensitivity",
    "RandomLogit",
)  # fmt: skip


@pytest.mark.parametrize("name", SIX)
def test_the_six_of_the_pullback_paper_see_neither_scale_nor_sign(name: str) -> None:
    for factor in (1000.0, -1e-6):
        found = made(name, "pullbacks")(case_of(change=lambda made, by=factor: Changed(made, lambda maps: by * maps)))
        assert close(found, plain(name, "pullbacks"), rtol=1e-5, atol=1e-7), factor
    assert not METRICS[name].preset("pullbacks").sees_sign


@pytest.mark.parametrize("name", [name for name in SIX if "signed" in METRICS[name].presets])
def test_of_the_six_those_with_signed_versions_see_the_sign(name: str) -> None:
    assert METRICS[name].preset("signed").sees_sign


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shape", [(3, 3, SIZE, SIZE - 1), (2, 3, SIZE, SIZE), (3, 2, SIZE, SIZE), (3, SIZE, SIZE)])
def test_maps_of_other_shapes_are_named(shape: tuple[int, ...], name: str) -> None:
    def wrong(inputs: Tensor, target: Any) -> Tensor:
        return torch.ones(shape, dtype=torch.float64)

    case = Case(network(), images(), CLASSES, {"wrong": wrong}, masks=masks(), batch_size=3)
    with pytest.raises(InputError, match=r"\[3, 3, 16, 16\]|\[3, 16, 16\]"):
        made(name, next(iter(METRICS[name].presets)))(case)


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_needs_is_asked_for(name: str) -> None:
    metric, needs = made(name, next(iter(METRICS[name].presets))), METRICS[name].needs
    without: dict[str, Callable[[], Case]] = {
        "masks": lambda: case_of(masks=None),
        "explainers": lambda: Case(network(), images(), CLASSES, maps={"given": images()}, masks=masks()),
        "classes": lambda: Case(network(), images(), TopK(2), explainers(network()), masks=masks()),
    }
    for need, build in without.items():
        if need in needs:
            with pytest.raises(BacklightError):
                metric(build())
        else:
            assert metric(build()).shape[1] == 3


# ---------------------------------------------------------------------------------------------------- orderings


class Reader(nn.Module):
    """A network that reads a checkerboard of +1 and -1 in one square, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        board = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 * 2.0 - 1
        self.region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        self.region[4:12, 8:16] = True
        self.pattern = (board * self.region).double()

    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.softplus(3 * (x * self.pattern).sum(1)) * self.region
        score = found.sum((1, 2))
        return torch.stack([score, -score], 1)


def evidence(reader: Reader) -> Tensor:
    """Noise everywhere; the reader's checkerboard, of random strength, in its square."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(8, 1, SIZE, SIZE, generator=generator, dtype=torch.float64) * 2 - 1
    return torch.where(reader.region, reader.pattern * (noise.abs() + 0.2), noise)


# of each metric that claims to rank maps by their evidence: its settings, and whether its maps are gradients (which
# multiply the input) or relevances (which are the input's share already)
ORDERED: dict[str, tuple[dict[str, Any], str]] = {
    "Infidelity": ({"scaling": "positive"}, "gradient"),
    "FaithfulnessCorrelation": ({"absolute": False}, "relevance"),
    "Fidelity": ({"subset": 60, "runs": 60}, "relevance"),
    "FaithfulnessEstimate": ({"absolute": False, "blocks": 8}, "relevance"),
    "MonotonicityCorrelation": ({"blocks": 8}, "relevance"),
    "Insertion": ({"patch": 1 / 8}, "relevance"),
    "Deletion": ({"patch": 1 / 8}, "relevance"),
    "RelevanceGain": ({"patch": 1 / 8}, "relevance"),
    "PointingGame": ({"tolerance": 0.0}, "relevance"),
    "AttributionLocalisation": ({}, "relevance"),
    "EnergyPointingGame": ({}, "relevance"),
    "RelevanceRankAccuracy": ({}, "relevance"),
    "SegmentationOverlap": ({}, "relevance"),
    "Focus": ({}, "gradient"),
}
NOT_ORDERED = {
    "MaxSensitivity": "says how much a map changes, not whether it is right",
    "Stability": "says how much a map changes, not whether it is right",
    "Sparseness": "says how many entries a map needs, not whether they are the right ones",
    "RandomLogit": "says whether a map depends on the class",
    "ParameterRandomisation": "says whether a map depends on what was learnt",
    "ComplexityRise": "says whether a map depends on what was learnt",
    "CompletenessError": "says what a map sums to, not where it lies",
}


def test_every_metric_is_ordered_or_says_why_not() -> None:
    assert set(ORDERED) | set(NOT_ORDERED) == set(METRICS)
    assert not set(ORDERED) & set(NOT_ORDERED)


@pytest.mark.parametrize("name", ORDERED)
def test_true_maps_are_better_than_random_ones_and_these_than_inverted_ones(name: str) -> None:
    settings, kind = ORDERED[name]
    reader = Reader()
    x = evidence(reader)
    gradient = reader.pattern.expand_as(x)
    true = gradient if kind == "gradient" else (gradient * x).clamp(min=0)
    chance = torch.rand(true.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    chance = chance * 2 - 1 if kind == "gradient" else chance
    inverted = torch.where(reader.region, -gradient, chance) if kind == "gradient" else true.max() - true
    maps = {"true": true, "random": chance, "inverted": inverted}
    metric = METRICS[name](**settings)
    scores = metric(Case(reader, x, 0, maps=maps, masks=reader.region.expand(8, -1, -1), seed=list(range(8))))
    better = scores.mean(1) if metric.higher_is_better else -scores.mean(1)
    assert better[0] > better[1] > better[2], scores
    assert (better[0] - better[1]) > 0.05 * (better[0] - better[2])


# ---------------------------------------------------------------------------------------------------- the guide

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@cache
def guide() -> dict[str, list[str]]:
    """The rows of the guide's table of metrics, by name."""
    rows = [line.strip("| ").split(" | ") for line in GUIDE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row for row in rows if len(row) == 6}


@pytest.mark.parametrize("name", METRICS)
def test_the_guide_lists_what_is_there(name: str) -> None:
    """Direction, presets, and which of them see signs."""
    _, arrow, _, presets, signs, _ = guide()[name]
    found = METRICS[name]
    assert arrow == ("↑" if found.higher_is_better else "↓")
    assert re.findall(r"`([\w-]+)`", presets) == list(found.presets)
    seeing = [preset for preset in found.presets if found.preset(preset).sees_sign]
    assert signs == ("yes" if seeing == list(found.presets) else ", ".join(f"`{one}`" for one in seeing) or "no")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("methods", [1, 2])
def test_the_guide_s_costs_are_counted(methods: int, name: str) -> None:
    """In the defaults; besides, a metric may look at the network by a pass of one sample, once a method."""
    passes: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 6), nn.Tanh(), Counted(6, 4)).double().eval()
    known = {str(number): method("Saliency")(model) for number in range(methods)}
    case = Case(model, images()[:2], [0, 1], known, masks=masks()[:2])
    assert case.attributions.shape[0] == methods
    passes.clear()
    METRICS[name]()(case)
    words = guide()[name][-1].replace("none", "0").replace("forwards", "").replace("maps", "").strip()
    numbers = {"M": methods, "L": 2}
    expected = sum(
        math.prod(numbers.get(factor) or int(factor) for factor in part.split()) if part.strip() != "0" else 0
        for part in words.split("+")
    )
    assert 0 <= sum(passes) - 2 * expected <= methods, (sum(passes) / 2, expected)
