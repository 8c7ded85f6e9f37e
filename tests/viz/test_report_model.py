"""Reports on networks: counts, shapes, and which methods fit, as the API has them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from report_networks import small_network, small_picture
from torch import Tensor, nn

import backlight
from backlight.errors import UnknownNameError
from backlight.viz import model_report
from backlight.viz.report_model import fitting_methods, output_shapes


@pytest.fixture(scope="module")
def loaded() -> Any:
    return small_network()


def test_counts_layers_and_fits_are_those_of_the_network(loaded: Any) -> None:
    found = model_report(loaded, small_picture(), ["Saliency", "IntegratedGradients", "CPLRP", "LIME"])
    count = sum(one.numel() for one in loaded.model.parameters())
    assert f"<td>{count:,}, in 6 tensors" in found.html
    assert (
        re.findall(r'<th scope="row">2</th><td>Conv2d</td><td>296</td><td>([^<]+)</td>', found.html)[0] == "8 × 8 × 8"
    )
    assert "not tried" in found.html  # LIME: another library's
    assert "drawn &lt;at&gt; random" in found.html
    x = (2 * loaded.preprocessing.image(small_picture()) - 1)[None]
    coverage = backlight.Saliency(loaded.pixels()).explain(x).coverage
    for row in coverage:
        assert re.search(rf'<th scope="row">{row.operation}</th><td>{row.rule}</td><td>{row.calls}</td>', found.html)


class Odd(nn.Module):
    """An operation that no rule of pullbacks answers for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_a_method_that_does_not_fit_says_why(loaded: Any) -> None:
    x = (2 * loaded.preprocessing.image(small_picture()) - 1)[None]
    assert fitting_methods(loaded, x, ["SRD"])[0].fits
    odd = replace(loaded, model=nn.Sequential(*loaded.model[:2], Odd(), *loaded.model[2:]))
    (refused,) = fitting_methods(odd, x, ["SoftPullback"])
    assert not refused.fits
    assert "bessel_j0" in refused.reason
    page = model_report(odd, None, ["SoftPullback"])
    assert page.failed == {"SoftPullback": refused.reason}
    assert "0 of 1 methods that were tried fit" in page.html
    with pytest.raises(UnknownNameError, match="close matches: SRD"):
        model_report(loaded, None, ["SRDD"])


def test_hooks_are_gone(loaded: Any) -> None:
    x = (2 * loaded.preprocessing.image(small_picture()) - 1)[None]
    assert output_shapes(loaded, x)["6"] == "6"
    assert not any(module._forward_hooks for module in loaded.model.modules())
