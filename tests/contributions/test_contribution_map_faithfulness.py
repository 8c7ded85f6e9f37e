"""Faithfulness of contribution maps on networks whose evidence is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.contributions.map_faithfulness import ModeScore, map_faithfulness
from backlight.contributions.maps import contribution_maps
from backlight.engine import Logit
from backlight.errors import InputError
from backlight.metrics import Deletion, Insertion

PIXELS = {"unit": "pixel", "steps": None, "canvas": "zero"}
METRICS = {"insertion": Insertion(**PIXELS), "deletion": Deletion(**PIXELS)}


class Halves(nn.Module):
    """Linear: channel 0 of `h` counts in the left half of the picture, channel 1 in the right, channel 2 nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Conv2d(1, 3, 1, bias=False)
        self.head = nn.Linear(3 * 16, 2, bias=False)
        weight = torch.zeros(2, 3, 4, 4)
        weight[0, 0, :, :2] = torch.arange(1, 9).reshape(4, 2) / 4
        weight[0, 1, :, 2:] = torch.arange(9, 17).reshape(4, 2) / 4
        weight[1] = torch.linspace(-1, 1, 48).reshape(3, 4, 4)
        with torch.no_grad():
            self.h.weight.copy_(torch.tensor([1.0, 0.5, 2.0]).reshape(3, 1, 1, 1))
            self.head.weight.copy_(weight.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.h(x).flatten(1))


@pytest.fixture
def halves() -> Halves:
    return Halves().double().eval()


def area(evidence: Tensor, order: Tensor, insert: bool) -> float:
    """Of one curve, pixel by pixel: the evidence that is there."""
    evidence, order = evidence.flatten(), order.flatten().argsort(descending=True, stable=True)
    there = torch.zeros_like(evidence) if insert else torch.ones_like(evidence)
    scores = [float((evidence * there).sum())]
    for pixel in order:
        there[pixel] = 1 if insert else 0
        scores.append(float((evidence * there).sum()))
    return float(torch.trapezoid(torch.tensor(scores, dtype=torch.float64), dx=1 / len(order)))


@pytest.mark.parametrize("by", ["ActGrad", "InputGrad", "HiddenIntegratedGradients", "ablation"])
def test_areas_are_those_of_the_known_evidence(halves: Halves, by: str) -> None:
    x = torch.rand(2, 1, 4, 4).double() + 0.1
    found = map_faithfulness(halves, x, "h", [[0], [1]], 0, by=by, draws=1, **METRICS)
    left, right = torch.arange(4) < 2, torch.arange(4) >= 2
    weights = halves.head.weight[0].reshape(3, 4, 4) * halves.h.weight.reshape(3, 1, 1)
    for sample in range(2):
        parts = (weights * x[sample]).detach()
        for mode, half in ((0, left), (1, right)):
            assert torch.all(parts[mode][:, ~half] == 0)
            for name, insert in (("insertion", True), ("deletion", False)):
                of_mode, of_class = getattr(found, name)["mode"], getattr(found, name)["class"]
                total = parts.sum(0)
                place = found.maps.index("mode")
                assert of_mode[place, mode, sample] == pytest.approx(area(parts[mode], parts[mode], insert), abs=1e-9)
                assert of_class[place, mode, sample] == pytest.approx(area(total, parts[mode], insert), abs=1e-9)
                every = found.maps.index("all channels")
                assert of_mode[every, mode, sample] == pytest.approx(area(parts[mode], total, insert), abs=1e-9)


def test_the_mode_s_own_map_is_best_for_it_and_the_class_s_for_the_class(halves: Halves) -> None:
    """In a linear network with evidence of one sign per half, no other order of pixels can be better."""
    x = torch.rand(3, 1, 4, 4).double() + 0.1
    found = map_faithfulness(halves, x, "h", [[0], [1]], 0, draws=2, **METRICS)
    assert found.maps == ("mode", "positive", "random channels", "all channels", "Grad-CAM", "random")
    gain = found.gain()
    assert torch.all(gain[0] >= gain[1:] - 1e-9)
    assert torch.all(gain[0] > gain[5] + 1e-3)
    whole = found.gain("class")
    assert torch.all(whole[3] >= whole - 1e-9)
    for areas in (found.insertion, found.deletion):
        for one in areas.values():
            assert one.shape == (6, 2, 3)


def test_scores_of_a_mode(halves: Halves) -> None:
    x = torch.rand(5, 1, 4, 4).double()
    weights = torch.zeros(1, 3, 1, 1).double()
    weights[0, 1] = 1
    expected = contribution_maps(halves, x, "h", [[1]], 0).contributions[0]
    for by in ("ActGrad", "ablation", "HiddenIntegratedGradients"):
        score = ModeScore(halves, "h", weights, Logit(0), by)
        with torch.no_grad():
            assert torch.allclose(score(x)[:, 0], expected, atol=1e-9)
    assert not any(module._forward_hooks for module in halves.modules())


def test_a_sample_does_not_depend_on_its_batch(halves: Halves) -> None:
    x = torch.rand(3, 1, 4, 4).double()
    sets = [torch.tensor([[0], [1], [2]]), [0]]
    together = map_faithfulness(halves, x, "h", sets, [0, 1, 0], draws=2, **METRICS)
    alone = map_faithfulness(halves, x[1:2], "h", [[1], [0]], 1, draws=2, batch_size=3, **METRICS)
    assert torch.allclose(together.insertion["mode"][:, :, 1:2], alone.insertion["mode"], atol=1e-12)
    assert torch.allclose(together.deletion["class"][:, :, 1:2], alone.deletion["class"], atol=1e-12)
    decided = map_faithfulness(halves, x, "h", [[0]], draws=1, **METRICS)
    given = map_faithfulness(halves, x, "h", [[0]], halves(x).argmax(1), draws=1, **METRICS)
    assert torch.equal(decided.deletion["class"], given.deletion["class"])


def test_no_other_channels(halves: Halves) -> None:
    with pytest.raises(InputError, match="2 of 3 channels"):
        map_faithfulness(halves, torch.rand(1, 1, 4, 4).double(), "h", [[0, 1]], 0)
    with pytest.raises(InputError, match="draws"):
        map_faithfulness(halves, torch.rand(1, 1, 4, 4).double(), "h", [[0]], 0, draws=0)
