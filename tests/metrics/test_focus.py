"""Focus: mosaics, relevance x phi, chance, and the sign that most metrics cannot see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.data.mosaics import composed, mosaics
from backlight.errors import InputError
from backlight.methods import method
from backlight.metrics import Case
from backlight.metrics.attribution_localisation import attribution_localisation
from backlight.metrics.focus import Focus, focus

LABELS = [index % 3 for index in range(12)]


class Colours(nn.Module):
    """Logit c is the mean of colour c: the evidence for it is where it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def coloured(index: int) -> Tensor:
    """A picture of the colour of its class, with texture."""
    return torch.eye(3)[LABELS[index]][:, None, None] * (0.5 + torch.rand(3, 8, 8))


def test_by_hand() -> None:
    x = torch.tensor([2.0, -1, 1, 1]).reshape(1, 1, 2, 2)
    phi = torch.tensor([1.0, -3, 2, -5]).reshape(1, 1, 2, 2)
    mask = torch.tensor([[[True, False], [False, True]]])
    assert focus(x, phi, mask).item() == pytest.approx(2 / 7)
    assert focus(x, phi, mask, times_input=False).item() == pytest.approx(1 / 3)
    assert focus(x, -phi, mask).item() == 1


def test_channels_are_not_summed_before_the_positive_part_is_taken() -> None:
    x = torch.ones(1, 3, 1, 2)
    phi = torch.tensor([[[[1.0, 1]], [[-1.0, 1]], [[0.0, 1]]]])
    mask = torch.tensor([[[True, False]]])
    assert focus(x, phi, mask).item() == pytest.approx(1 / 4)
    assert focus(x, phi, mask, unit="position").item() == 0


def test_it_is_the_share_of_relevance_on_the_tiles() -> None:
    layouts = mosaics(LABELS, 6)
    x, _, masks = composed(layouts, coloured, 8)
    phi = torch.randn(2, 6, 3, 8, 8)
    assert torch.allclose(focus(x, phi, masks), attribution_localisation(phi * x, masks, unit="feature"))
    assert torch.equal(focus(x, phi, masks)[0], focus(x, phi[0], masks))


def test_chance_is_one_half_and_the_sign_is_seen() -> None:
    layouts = mosaics(LABELS, 200)
    x, targets, masks = composed(layouts, lambda i: torch.rand(3, 8, 8) * 2 - 1, 8)
    case = Case(
        nn.Flatten(), x, targets, maps={"noise": torch.randn(200, 3, 8, 8), "true": x * masks[:, None]}, masks=masks
    )
    noise, true = Focus()(case)
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)
    assert (true == 1).all()
    opposite = Case(nn.Flatten(), x, targets, maps={"minus": -x * masks[:, None] + x * ~masks[:, None]}, masks=masks)
    assert (Focus()(opposite) == 0).all()
    assert Focus().sees_sign


def test_a_network_that_looks_at_its_class() -> None:
    """Gradient times input lies on the tiles of the class; the gradient alone is the same everywhere."""
    x, targets, masks = composed(mosaics(LABELS, 8), coloured, 8)
    gradient = {"gradient": method("Saliency")(Colours())}
    assert torch.allclose(Focus()(Case(Colours(), x, targets, gradient, masks=masks)), torch.ones(1, 8).double())
    assert torch.allclose(
        Focus(times_input=False)(Case(Colours(), x, targets, gradient, masks=masks)), torch.full((1, 8), 0.5).double()
    )
    shown = [next(label for label in layout.labels if label != layout.target) for layout in mosaics(LABELS, 8)]
    assert (Focus()(Case(Colours(), x, shown, gradient, masks=masks)) == 0).all(), "evidence for another class"


def test_presets_and_errors() -> None:
    assert Focus().settings() == {
        "part": "positive", "region": "mask", "unit": "feature", "weighted": False, "times_input": True,
    }  # fmt: skip
    assert not Focus.preset("quantus").times_input
    assert Focus.needs == ("masks",)
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(InputError, match="expected attributions"):
        focus(x, torch.ones(1, 3, 4, 5), torch.ones(1, 4, 4).bool())
    assert focus(x, torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4).bool()).isnan().all()
