"""RandomLogit: closed forms on a linear network, which other classes, and what a score may not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backlight.engine.targets import Contrast, Entropy, Probability
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.methods.saliency import Saliency
from backlight.methods.smooth_grad import SmoothGrad
from backlight.metrics.case import Case
from backlight.metrics.controls import Control, Negative
from backlight.metrics.correlation import pearson, spearman
from backlight.metrics.explainers import as_explainer
from backlight.metrics.random_logit import RandomLogit, every_class, random_classes, random_logit, second_class
from backlight.metrics.structural_similarity import ssim


def linear(classes: int = 5, side: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes)).double()


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5)).double().eval()


def samples(count: int = 4, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_correlation_of_the_rows_of_a_linear_network() -> None:
    model = linear()
    weights = model[1].weight.detach().numpy()  # type: ignore[union-attr]
    found = random_logit(Saliency(model), samples(), [0, 1, 2, 3], torch.tensor([4, 0, 1, 2]))
    expected = [np.corrcoef(weights[a], weights[b])[0, 1] for a, b in ((0, 4), (1, 0), (2, 1), (3, 2))]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_opposite_classes_and_blind_maps() -> None:
    """With two logits w and -w the maps are opposite; a map that knows no class scores 1."""
    model = linear(2)
    with torch.no_grad():
        model[1].weight[1] = -model[1].weight[0]  # type: ignore[index,union-attr]
    assert random_logit(Saliency(model), samples(), 0, 2).tolist() == pytest.approx([-1.0] * 4, abs=1e-12)
    for name in ("edges", "input", "random"):
        assert random_logit(Control(name), samples(), 0, 5).tolist() == pytest.approx([1.0] * 4, abs=1e-12)
    assert random_logit(Control("constant"), samples(), 0, 5).isnan().all()


def test_several_other_classes_give_the_mean() -> None:
    model, x = network(), samples()
    every = every_class(torch.tensor([3, 0, 4, 1]), 5)
    assert every.tolist() == [[0, 1, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 2, 3, 4]]
    explain = Saliency(model).attribute
    expected = [
        float(torch.stack([pearson(explain(x[r : r + 1], own).flatten(1), explain(x[r : r + 1], o).flatten(1))
                           for o in range(5) if o != own]).mean())
        for r, own in enumerate([3, 0, 4, 1])
    ]  # fmt: skip
    for batch_size in (3, 32):
        found = random_logit(Saliency(model), x, [3, 0, 4, 1], every, batch_size=batch_size)
        assert found.tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("absolute", [True, False])
def test_other_similarities(absolute: bool) -> None:
    model, x = linear(side=12), samples(2, 12)
    a, b = (Saliency(model).attribute(x, [c, 1 - c]) for c in (0, 1))
    a, b = (a.abs(), b.abs()) if absolute else (a, b)
    others = torch.tensor([1, 0])
    found = random_logit(Saliency(model), x, [0, 1], others, similarity="ssim", absolute=absolute)
    assert torch.allclose(found, ssim(a.sum(1), b.sum(1)))
    found = random_logit(Saliency(model), x, [0, 1], others, similarity="spearman", absolute=absolute)
    assert torch.allclose(found, spearman(a.flatten(1), b.flatten(1)))
    with pytest.raises(UnknownNameError, match="close matches: spearman"):
        random_logit(Saliency(model), x, 0, 5, similarity="spearmann")


def test_other_classes_may_be_lists() -> None:
    net, x = network(), samples()
    expected = random_logit(Saliency(net), x[:2], [0, 1], torch.tensor([[1, 2], [0, 2]]))
    for others in ([[1, 2], [0, 2]], ((1, 2), (0, 2)), torch.tensor([[1, 2], [0, 2]]).int()):
        assert torch.equal(random_logit(Saliency(net), x[:2], [0, 1], others), expected)
    for others in ([1.0, 0.0], [1, 0, 2], torch.ones(2, 1, 1).long(), torch.zeros(2, 0).long()):
        with pytest.raises(InputError, match=r"class indices \[N\] or \[N, R\] of 2 samples"):
            random_logit(Saliency(net), x[:2], [0, 1], others)


def test_random_classes_are_never_the_target_and_all_others_come() -> None:
    own = torch.arange(4).repeat(500)
    drawn = random_classes(own, 4, list(range(2000)))
    assert (drawn[:, 0] != own).all()
    counts = torch.zeros(4, 4).index_put_((own, drawn[:, 0]), torch.ones(2000), accumulate=True)
    assert (counts[~torch.eye(4, dtype=torch.bool)] > 120).all()  # of 167
    assert torch.equal(random_classes(own, 4, 7), random_classes(own, 4, [7] * 2000))
    assert random_classes(torch.tensor([-1]), 2, 0).tolist() == [[0]]
    with pytest.raises(InputError, match="no other one"):
        random_classes(own, 1, 0)


def test_the_second_class() -> None:
    logits = torch.tensor([[1.0, 5, 3], [1, 5, 3], [1, 5, 3]])
    assert second_class(torch.tensor([1, 0, 2]), logits).tolist() == [[2], [1], [1]]


def test_scale_and_sign_of_maps_play_no_part() -> None:
    model, x = network(), samples()
    explain = Saliency(model).attribute
    expected = random_logit(explain, x, 1, 5)
    for factor in (-1.0, 1e3):
        found = random_logit(lambda x, target, by=factor: by * explain(x, target), x, 1, 5)
        assert torch.allclose(found, expected, rtol=1e-10)


def test_batch_mates_order_batch_size_and_seed() -> None:
    model, x, classes, seeds = network(), samples(), torch.tensor([3, 0, 4, 1]), [5, 9, 5, 2]
    for explain in (Saliency(model), SmoothGrad(model, n_samples=3)):
        whole = random_logit(explain, x, classes, 5, seed=seeds)
        for batch_size in (1, 3):
            again = random_logit(explain, x, classes, 5, seed=seeds, batch_size=batch_size)
            assert torch.allclose(again, whole, rtol=1e-10)
        turned = random_logit(explain, x.flip(0), classes.flip(0), 5, seed=seeds[::-1])
        assert torch.allclose(turned.flip(0), whole, rtol=1e-10)
        alone = random_logit(explain, x[2:3], classes[2:3], 5, seed=5)
        assert torch.allclose(alone, whole[2:3], rtol=1e-10)


def test_methods_that_draw_keep_their_draws() -> None:
    """The two classes of a linear network with equal weights: only the draws could make their maps differ."""
    model = network()
    with torch.no_grad():
        model[3].weight[1] = model[3].weight[0]  # type: ignore[index,union-attr]
    found = random_logit(SmoothGrad(model, n_samples=2, stdev=2.0), samples(), 0, torch.ones(4, dtype=torch.long))
    assert found.tolist() == pytest.approx([1.0] * 4, abs=1e-12)


def test_a_probability_stays_one() -> None:
    model, x = network(), samples(1)
    found = random_logit(Saliency(model), x, Probability(2), torch.tensor([3]))
    maps = [Saliency(model).attribute(x, Probability(c)).flatten(1) for c in (2, 3)]
    assert torch.allclose(found, pearson(*maps))


def test_the_metric_over_a_case() -> None:
    model, x = network(), samples()
    explainers: dict[str, Any] = {"a": Saliency(model), "b": Negative(as_explainer(Saliency(model)))}
    case = Case(model, x, explainers=explainers, seed=4, batch_size=3)
    found = RandomLogit()(case)
    assert found.shape == (2, 4)
    assert torch.allclose(found[0], found[1])
    predicted = model(x).argmax(1)
    assert torch.allclose(found[0], random_logit(Saliency(model), x, predicted, 5, seed=4))
    second = model(x).topk(2, 1).indices[:, 1]
    expected = random_logit(Saliency(model), x, predicted, second)
    assert torch.allclose(RandomLogit(classes="second")(case)[0], expected)
    expected = random_logit(Saliency(model), x, predicted, every_class(predicted, 5))
    assert torch.allclose(RandomLogit(classes="all")(case)[0], expected)
    with pytest.raises(UnknownNameError, match="close matches: random"):
        RandomLogit(classes="randon")(case)


def test_what_is_refused() -> None:
    model, x = network(), samples()
    with pytest.raises(InputError, match="is the target"):
        random_logit(Saliency(model), x, 1, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(InputError, match="give the class"):
        random_logit(Saliency(model), x, None, 5)
    for target in (Entropy(), Contrast(1, 2)):
        with pytest.raises(TargetError, match="need a class index"):
            random_logit(Saliency(model), x, target, 5)
