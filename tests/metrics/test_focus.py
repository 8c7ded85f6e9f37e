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

LABELS = [index % 4 for index in range(12)]


class Colours(nn.Module):
    """Logit c is the mean of (x - s)(s' - x) around the class's own grey: evidence is where the class is shown."""

    def forward(self, x: Tensor) -> Tensor:
        greys = torch.linspace(-0.75, 0.75, 4).to(x)
        return torch.stack([-((x - grey) ** 2).flatten(1).mean(1) for grey in greys], 1)


def grey(index: int) -> Tensor:
    return torch.full((3, 8, 8), float(torch.linspace(-0.75, 0.75, 4)[LABELS[index]]))


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
    x, _, masks = composed(layouts, grey, 8)
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
    """The gradient vanishes on the tiles of the class, so a map that is not relevance scores at most chance there;
    relevance by occlusion finds them."""
    layouts = mosaics(LABELS, 8)
    x, targets, masks = composed(layouts, grey, 8)
    case = Case(
        Colours(),
        x,
        targets,
        {"gradient": method("Saliency")(Colours())},
        masks=masks,
        maps={"mask": masks[:, None].float()},
    )
    assert torch.equal(Focus(times_input=False)(case)[1], torch.ones(8).double())
    assert Focus()(case)[0].nan_to_num(0).max() <= 0.5


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
