"""Targets: which scalar is explained, in every form that Captum takes, and what is refused."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from probes import Spelled
from torch import Tensor, nn

from backlight.engine import (
    Contrast,
    Entropy,
    Function,
    Line,
    Logit,
    LogProbability,
    Noise,
    Probability,
    Target,
    TopK,
    Unit,
    as_target,
    attribute,
)
from backlight.errors import BacklightError, TargetError

OUT = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, -2.0, 4.0, 1.5], [2.0, 2.5, 0.0, 1.0]], dtype=torch.float64)
P = OUT.softmax(1)
W = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def scored(target: Any, outputs: Any = OUT) -> list[float]:
    return as_target(target)(outputs).tolist()


@pytest.mark.parametrize(
    ("target", "picks"),
    [
        (2, [2, 2, 2]),
        (-1, [3, 3, 3]),
        ([0, 1, 2], [0, 1, 2]),
        ([3], [3, 3, 3]),
        (torch.tensor([2, 0, 1]), [2, 0, 1]),
        (torch.tensor(1), [1, 1, 1]),
        (torch.tensor([1]), [1, 1, 1]),
        (np.array([2, 0, 1]), [2, 0, 1]),
        (np.int64(2), [2, 2, 2]),
        ((1,), [1, 1, 1]),
        ([(0,), (1,), (3,)], [0, 1, 3]),
        (None, [1, 2, 1]),
        (Logit(torch.tensor([0, 0, 3])), [0, 0, 3]),
    ],
)
def test_an_index_picks_an_entry_of_each_sample(target: Any, picks: list[int]) -> None:
    assert scored(target) == [OUT[n, k].item() for n, k in enumerate(picks)]


def test_outputs_of_higher_rank_take_an_index_for_each_axis() -> None:
    outputs = torch.arange(24.0).reshape(2, 3, 4)
    assert scored((1, 2), outputs) == [6.0, 18.0]
    assert scored([(0, 1), (2, 3)], outputs) == [1.0, 23.0]
    assert scored((torch.tensor([0, 2]), 1), outputs) == [1.0, 21.0]
    for target in (1, None, (1, 2, 0)):
        with pytest.raises(TargetError):
            scored(target, outputs) if target != 1 else as_target(target)(outputs)


@pytest.mark.parametrize("outputs", [torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]])])
def test_a_single_output_needs_no_target(outputs: Tensor) -> None:
    assert scored(None, outputs) == [1.0, 2.0]
    assert scored(0, outputs) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Probability(1), P[:, 1]),
        (Probability(), P.amax(1)),
        (LogProbability([0, 1, 2]), P.log()[[0, 1, 2], [0, 1, 2]]),
        (TopK(2), OUT.sort(1).values[:, 2:].sum(1)),
        (TopK(4), OUT.sum(1)),
        (Contrast(1, 0), OUT[:, 1] - OUT[:, 0]),
        (Contrast([0, 1, 2], 3), OUT[[0, 1, 2], [0, 1, 2]] - OUT[:, 3]),
        (Contrast(), torch.tensor([1.0, 2.5, 0.5])),
        (Contrast(a=0), torch.tensor([-2.0, -3.5, -0.5])),
        (Contrast(b=0), torch.tensor([2.0, 3.5, 0.5])),
        (Entropy(), -(P * P.log()).sum(1)),
        (Function(lambda o: o[:, 0] ** 2), OUT[:, 0] ** 2),
        (lambda o: o.sum(1), OUT.sum(1)),
    ],
)
def test_scores_are_their_formulas(target: Any, expected: Tensor) -> None:
    assert scored(target) == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_entropy_of_a_certain_network_is_zero_and_its_gradient_finite() -> None:
    x = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64)
    found = attribute(nn.Identity(), x, Entropy())
    assert found.scores.item() == 0.0
    assert torch.isfinite(found.value).all()


Named = namedtuple("Named", ["hidden", "logits"])


class HF(dict):  # an output object with attributes, as Hugging Face has them
    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y},
        lambda y: {"aux": y * 0, "out": y},
        lambda y: {"anything": y},
        lambda y: (y, y * 0),
        lambda y: [y],
        lambda y: Named(y * 0, y),
        lambda y: HF(logits=y, hidden_states=(y * 0,)),
        lambda y: HF(loss=None, last_hidden_state=y),
    ],
)
def test_the_logits_are_found_in_what_models_return(wrap: Any) -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    model = Spelled(lambda x: wrap(x @ W.T))
    assert torch.allclose(attribute(model, x, 1).value, W[1].expand(2, 5))


@pytest.mark.parametrize("outputs", [{}, {"a": OUT, "b": OUT}, (), None, 3.0, {"logits": "text"}])
def test_outputs_without_logits_are_refused(outputs: Any) -> None:
    with pytest.raises(TargetError):
        as_target(0)(outputs)


@pytest.mark.parametrize(
    "target",
    [
        4,
        -5,
        [0, 1],
        [0, 1, 9],
        1.5,
        True,
        torch.tensor([0.5, 1.0, 2.0]),
        "cat",
        (0, 0),
        TopK(5),
        TopK(0),
        Contrast(0, 9),
    ],
)
def test_targets_that_do_not_fit_are_refused(target: Any) -> None:
    with pytest.raises(TargetError):
        as_target(target)(OUT)


def test_classes_that_are_ruled_out_add_nothing_to_the_entropy() -> None:
    outputs = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    entropy = as_target(Entropy())(outputs)
    assert entropy.item() == pytest.approx(0.6931471805599453)
    assert torch.isfinite(torch.autograd.grad(entropy.sum(), outputs)[0]).all()


@pytest.mark.parametrize("function", [lambda o: o, lambda o: o.sum(), lambda o: 3.0])
def test_a_target_function_gives_one_score_a_sample(function: Any) -> None:
    with pytest.raises(TargetError):
        as_target(function)(OUT)


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 4)).double()


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "norm"])
@pytest.mark.parametrize(
    ("channel", "position"), [(1, None), (None, (2, 3)), (1, (2, 3)), ([0, 2], None), (None, None)]
)
def test_units_are_entries_of_hidden_tensors(reduce: str, channel: Any, position: Any) -> None:
    model, x = conv_net(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = attribute(model, x, Unit("0", channel, position, reduce))
    leaf = x.clone().requires_grad_()
    hidden = model[0](leaf)
    if position is not None:
        hidden = hidden[:, :, 2, 3]
    if channel is not None:
        hidden = hidden[torch.arange(2), channel] if isinstance(channel, list) else hidden[:, channel]
    flat = hidden.reshape(2, -1)
    score = {"sum": flat.sum(1), "mean": flat.mean(1), "max": flat.amax(1), "norm": flat.norm(dim=1)}[reduce]
    assert torch.allclose(found.scores, score)
    assert torch.allclose(found.value, torch.autograd.grad(score.sum(), leaf)[0], atol=1e-12)


def test_units_of_tokens_are_on_the_last_axis() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    found = attribute(model, x, Unit("0", channel=2, position=(1,), channel_axis=-1)).value
    expected = torch.zeros_like(x)
    expected[:, 1] = model[0].weight[2].detach()
    assert torch.allclose(found, expected)


@pytest.mark.parametrize(
    "unit",
    [
        Unit("0", 3),
        Unit("0", [0, 1, 2]),
        Unit("0", 0, (1,)),
        Unit("0", 0, (9, 0)),
        Unit("0", reduce="min"),
        Unit("nothing"),
    ],
)
def test_units_that_are_not_there_are_refused(unit: Unit) -> None:
    with pytest.raises(BacklightError):
        attribute(conv_net(), torch.randn(2, 2, 6, 6, dtype=torch.float64), unit)


@pytest.mark.parametrize("target", [[3, 0, 1], torch.tensor([3, 0, 1]), Contrast([3, 0, 1], 2), TopK(2), None])
@pytest.mark.parametrize("size", [1, 2, None])
def test_targets_follow_their_samples_through_batches(target: Any, size: int | None) -> None:
    model, x = (
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double(),
        torch.randn(3, 5, dtype=torch.float64),
    )
    path = Line(n_steps=4)
    found = attribute(model, x, target, path=path, internal_batch_size=size).value
    for n in range(3):
        own: Any = target
        if isinstance(target, (list, Tensor)):
            own = int(target[n])
        elif isinstance(target, Contrast):
            own = Contrast(target.a[n], 2)
        assert torch.allclose(found[n], attribute(model, x[n : n + 1], own, path=path).value[0], atol=1e-12)


@pytest.mark.parametrize("target", [None, TopK(1), Contrast()])
def test_a_choice_is_made_once_at_the_input(target: Target | None) -> None:
    """With large noise the largest class changes on the way: the explanation stays with the input's own class."""
    model, x = Spelled(lambda x: x @ W.T), 0.1 * torch.randn(4, 5, dtype=torch.float64)
    best = (x @ W.T).topk(2, 1).indices
    expected = W[best[:, 0]] - (W[best[:, 1]] if isinstance(target, Contrast) else 0)
    assert torch.allclose(attribute(model, x, target, path=Noise(8, 5.0)).value, expected, atol=1e-6)
