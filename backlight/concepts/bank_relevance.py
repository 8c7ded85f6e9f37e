"""What the positions of hidden layers are worth: their feature vectors, and the relevance of each for the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.attribution import attribute
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.sites import captured
from backlight.engine.targets import Function, Logit, Target, as_target, output_tensor
from backlight.errors import SiteError, UnknownNameError
from backlight.methods.feature_maps import feature_maps, prefix_tokens
from backlight.methods.sharing_operator import SharingOperator
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields
from backlight.methods.token_layout import TokenLayout
from backlight.rules.attn_lrp import attn_lrp
from backlight.shapes import Float

RELEVANCES = ("srd", "attnlrp", "gradient")
AUTO, NORM, PREDICTION = "auto", "norm", "prediction"


def output_norm(outputs: Any) -> Float[Tensor, "N"]:
    """The l2 norm of a network's output, a target for networks that give features: what there is, not which class."""
    return torch.linalg.vector_norm(output_tensor(outputs).flatten(1), dim=1)


def bank_target(target: Target | str, features: bool) -> Target | str:
    """The target of a bank: `auto` is the predicted class, or the norm of the output where it holds features."""
    if target == AUTO:
        target = NORM if features else PREDICTION
    return {NORM: Function(output_norm), PREDICTION: Logit()}.get(target, target) if isinstance(target, str) else target


def chosen_relevance(model: nn.Module, attributor: str) -> str:
    """`attributor` by its name; `auto` is AttnLRP where a module is called attention, SRD elsewhere.

    Raises:
        UnknownNameError: another name.
    """
    if attributor == AUTO:
        attention = any("attention" in type(module).__name__.lower() for module in model.modules())
        return "attnlrp" if attention else "srd"
    if attributor not in RELEVANCES:
        raise UnknownNameError("attributor of a bank", attributor, (AUTO, *RELEVANCES))
    return attributor


@dataclass(frozen=True)
class Positions:
    """A site's vectors of the positions of a grid, row by row, then that of the class token where there is one.

    `values` `[N, P, C]`; `relevance` `[N, P]`, with its sign, NaN where it was not asked for; `grid`: (height, width).
    """

    values: Float[Tensor, "N P C"]
    relevance: Float[Tensor, "N P"]
    grid: tuple[int, int]
    class_token: bool


class Relevance:
    """Reads feature vectors at sites, and the relevance of their positions for a target.

    R_i = <x_i, g_i>, with the cotangent g of the target's score at the site: under AttnLRP's rules (`attnlrp`), or the
    plain gradient (`gradient`; of feature maps it is Grad-CAM with its weights by position). `srd`: SRD's relevance,
    iERF paper, section 3. `None`: no relevance. Cost: a forward pass, and one or two with a backward pass.
    """

    def __init__(self, network: nn.Module, sites: Sequence[str], attributor: str | None) -> None:
        self.network, self.sites, self.attributor = network, tuple(sites), attributor
        self._layout: dict[tuple[int, ...], TokenLayout | None] = {}

    def of(self, x: Float[Tensor, "N C *size"], target: Any) -> tuple[dict[str, Positions], Tensor]:
        """What is at the sites for a batch of inputs, and the network's outputs.

        Raises:
            SiteError: a site without positions on a grid, or (`srd`) without a relevance of its own.
            UncoveredOperationError: an operation that the attributor's rules do not know.
            NonFiniteError: a relevance that is not finite.
        """
        with torch.no_grad(), captured(self.network, self.sites) as store:
            outputs = output_tensor(self.network(x))
        values = {site: store[site].detach() for site in self.sites}
        relevance = self._relevance(x, target, values)
        return {site: self._positions(site, values[site], relevance[site], x) for site in self.sites}, outputs.detach()

    def _relevance(self, x: Tensor, target: Any, values: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Of each site, `[N, h, w]` (SRD) or value times cotangent, of the value's shape."""
        if self.attributor is None:
            return dict.fromkeys(self.sites)
        if self.attributor == "srd":
            return dict(_srd(self.network, x, target, self.sites))
        rules: RuleSet = attn_lrp() if self.attributor == "attnlrp" else GRADIENT
        found = attribute(self.network, x, target, rules=rules, sites=self.sites, readout="value")
        return dict(found.values)

    def _positions(self, site: str, value: Tensor, relevance: Tensor | None, x: Tensor) -> Positions:
        grid, vectors, prefix = self._on_grid(site, value, x)
        every = torch.cat((vectors, prefix), 1).float()
        if relevance is None:
            scores = torch.full(every.shape[:2], torch.nan, device=every.device)
        elif relevance.ndim == 3 and self.attributor == "srd":
            scores = relevance.flatten(1).float()
        else:
            _, on_grid, on_prefix = self._on_grid(site, relevance, x)
            scores = torch.cat((on_grid, on_prefix), 1).double().sum(2).float()
        return Positions(every, scores, grid, bool(prefix.shape[1]))

    def _on_grid(self, site: str, value: Tensor, x: Tensor) -> tuple[tuple[int, int], Tensor, Tensor]:
        """(grid, `[N, h * w, C]`, the class token `[N, 0 or 1, C]`)."""
        layout = self._tokens(x) if value.ndim == 3 else None
        if layout is not None and value.shape[1] == layout.prefix + layout.count:
            whole, prefix = value[:, layout.prefix :], value[:, : min(layout.prefix, 1)]
            return (layout.height, layout.width), whole, prefix
        maps = feature_maps(value, x.shape[2:])
        if maps.ndim not in (3, 4):
            raise SiteError(f"{site!r} gives {list(value.shape)}: positions lie on a grid of one or two axes")
        grid = (1, maps.shape[2]) if maps.ndim == 3 else (maps.shape[2], maps.shape[3])
        vectors = maps.flatten(2).movedim(1, 2)
        return grid, vectors, prefix_tokens(value, maps)[:, :1] if value.ndim == 3 < maps.ndim else vectors[:, :0]

    def _tokens(self, x: Tensor) -> TokenLayout | None:
        """The layout of tokens at inputs of this size, where the model is of a known family; costs a pass, once."""
        size = tuple(x.shape[2:])
        if size not in self._layout:
            try:
                self._layout[size] = TokenFields(self.network).layout(x)
            except SiteError:
                self._layout[size] = None
        return self._layout[size]


def _srd(network: nn.Module, x: Tensor, target: Any, sites: Sequence[str]) -> dict[str, Tensor]:
    operator = SRD(network).prepare(x)
    for site in sites:
        check_srd_site(operator, site)
    seed = operator.seed(as_target(target))
    return {site: operator.relevance(seed, to=site) for site in sites}


def check_srd_site(operator: SharingOperator, site: str) -> None:
    """Raise `SiteError` for a site that SRD has no relevance of, with those nearby that it has."""
    try:
        operator.node(site)
    except SiteError:
        named = [name for name in operator.names if name not in ("input", "@features", "low")]
        near = get_close_matches(site, named, 6, 0.3) or named[-6:]
        raise SiteError(
            f"SRD has no relevance of {site!r}: it is defined where the output is an activation, or a sum or "
            f"concatenation of several. Near it: {', '.join(near)}; or attributor='gradient', which is defined at any "
            "feature map"
        ) from None
