"""Class activation maps: the channels of a layer's feature maps, weighted by what the score's gradient says of them.

A are the maps `[N, C, H, W]`, g the gradient of the score in them; sums and means without an index run over positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.engine.attribution import Attribution, attribute
from backlight.engine.paths import Inputs
from backlight.engine.readouts import Readout
from backlight.engine.sites import FEATURES, INPUT
from backlight.errors import InputError, SiteError
from backlight.methods.clipped_backprop import GuidedBackprop
from backlight.methods.feature_maps import feature_maps, prefix_tokens
from backlight.methods.method import Method
from backlight.methods.position_maps import resized
from backlight.rules.windows import safe_ratio
from backlight.shapes import Float


@dataclass(kw_only=True)
class ClassActivation(Method):
    """What all class activation maps share: weights w times maps A, summed over channels.

    `layer`: a site, whose output is read; None: the last feature map, wherever it comes from. `relu`: keep only what
    speaks for the target. `upsample`: bring the map to the input's size, bilinearly; otherwise it has the layer's.
    `grid`, `channels_last`: how tokens and maps lie, see `backlight.methods.feature_maps`.

    Values are in units of the score and are not scaled to [0, 1], as pytorch-grad-cam does for each image.
    """

    positions: ClassVar[bool] = True
    reads_sites: ClassVar[bool] = False

    layer: str | None = None
    relu: bool = True
    upsample: bool = True
    grid: tuple[int, ...] | None = None
    channels_last: bool | None = None

    def weights(self, maps: Float[Tensor, "N C *space"], g: Float[Tensor, "N C *space"]) -> Float[Tensor, "N C *any"]:
        """The weight of each channel, or of each channel at each position."""
        raise NotImplementedError

    def explain(
        self,
        inputs: Tensor | Inputs,
        target: Any = None,
        *,
        sites: str | tuple[str, ...] = INPUT,
        additional_forward_args: Any = (),
        internal_batch_size: int | None = None,
        create_graph: bool = False,
        bias: bool = False,
    ) -> Attribution:
        """The map with its scores, coverage table and cost; see `engine.attribute`.

        Raises:
            SiteError: a site other than `layer`; a layer that gives no map.
        """
        _check_site(self, sites)
        size = image_size(inputs)
        site = self.layer or FEATURES
        found = attribute(
            self.model,
            inputs,
            target,
            rules=self.rules(),
            sites=site,
            readout=self._map_at(site, size),
            bias=bias,
            strict=self.strict,
            create_graph=create_graph,
            internal_batch_size=internal_batch_size,
            additional_forward_args=additional_forward_args,
        )
        if self.upsample:
            found.values[site] = resized(found.values[site], size)
        return found

    def _map_at(self, site: str, size: Sequence[int]) -> Readout:
        def read(value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
            wide = torch.promote_types(value.dtype, torch.float32)
            maps, g = (feature_maps(t.to(wide), size, self.grid, self.channels_last) for t in (value, cotangent))
            if bool(prefix_tokens(cotangent, g).any()) and not bool(g.any()):
                raise SiteError(
                    f"the score depends on {site!r} through its prefix tokens only: name a layer before the last "
                    "attention, for example the first normalisation of the last block"
                )
            weighted = (self.weights(maps, g) * maps).sum(1, keepdim=True)
            return weighted.relu() if self.relu else weighted

        return read


def _check_site(method: Method, sites: str | tuple[str, ...]) -> None:
    if sites not in (INPUT, (INPUT,)):
        name = type(method).__name__
        raise SiteError(f"{name} reads at a layer of its own: {name}(model, layer={sites!r}) in place of a site")


def image_size(inputs: Tensor | Inputs) -> tuple[int, ...]:
    """(H, W) of the first input that has positions.

    Raises:
        InputError: none has.
    """
    for x in (inputs,) if isinstance(inputs, Tensor) else inputs:
        if x.ndim > 2:
            return tuple(x.shape[2:])
    raise InputError("a map over positions needs an input [N, C, H, W]")


def _over_positions(values: Float[Tensor, "N C *space"]) -> tuple[int, ...]:
    return tuple(range(2, values.ndim))


@dataclass(kw_only=True)
class GradCAM(ClassActivation):
    """Channels weighted by their mean gradient."""

    source: ClassVar[str] = "Selvaraju et al. 2017, equations 1 and 2"
    formula: ClassVar[str] = "relu(sum_k mean(g_k) A_k)"

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        return g.mean(_over_positions(g), keepdim=True)


@dataclass(kw_only=True)
class GradCAMPlusPlus(ClassActivation):
    """Channels weighted by a weighted sum of their positive gradients.

    The closed form for Y = exp(s), equation 19, in which exp(s) cancels; the factor exp(s) > 0 that it leaves on the
    whole map is dropped. Where g^2 is not 0 it cancels as well, so that small gradients do not underflow:
    alpha = 1 / (2 + sum(A) g), and 0 where that denominator is 0, which maps A >= 0 never reach.
    """

    source: ClassVar[str] = "Chattopadhay et al. 2018, equations 5 to 7 and 19"
    formula: ClassVar[str] = "relu(sum_k w_k A_k), w_k = sum(alpha relu(g_k)), alpha = g^2 / (2 g^2 + sum(A_k) g^3)"

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        positive = g.relu()
        alpha = safe_ratio(torch.ones_like(g), 2 + maps.sum(_over_positions(maps), keepdim=True) * positive)
        return (alpha * positive).sum(_over_positions(g), keepdim=True)


@dataclass(kw_only=True)
class XGradCAM(ClassActivation):
    """Channels weighted by their gradients' mean over activations: each map sums to its share of <A, g>.

    The weight of a map that sums to 0 is 0.
    """

    source: ClassVar[str] = "Fu et al. 2020, equation 8"
    formula: ClassVar[str] = "relu(sum_k w_k A_k), w_k = sum(g_k A_k) / sum(A_k)"

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        axes = _over_positions(maps)
        return safe_ratio((g * maps).sum(axes, keepdim=True), maps.sum(axes, keepdim=True))


@dataclass(kw_only=True)
class LayerCAM(ClassActivation):
    """Every position of every channel weighted by its own positive gradient; made for layers of any depth."""

    source: ClassVar[str] = "Jiang et al. 2021, equations 5 to 7"
    formula: ClassVar[str] = "relu(sum_k relu(g_k) A_k)"

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        return g.relu()


@dataclass(kw_only=True)
class GuidedGradCAM(GradCAM):
    """GradCAM at the input's size times GuidedBackprop: of the input's shape.

    Guided backpropagation hardly depends on the class; the map does.
    """

    source: ClassVar[str] = "Selvaraju et al. 2017, section 3.3"
    formula: ClassVar[str] = "upsampled GradCAM * GuidedBackprop"
    passes: ClassVar[str] = "2"
    positions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.upsample:
            raise InputError("GuidedGradCAM multiplies at the input's size: upsample=False has no meaning")

    def explain(
        self, inputs: Tensor | Inputs, target: Any = None, *, sites: str | tuple[str, ...] = INPUT, **settings: Any
    ) -> Attribution:
        if not isinstance(inputs, Tensor):
            raise InputError("GuidedGradCAM takes one input tensor")
        found = super().explain(inputs, target, sites=sites, **settings)
        guided = GuidedBackprop(self.model, strict=self.strict).explain(inputs, target, **settings)
        found.values = {INPUT: found.value * guided.value}
        found.coverage.merge(guided.coverage)
        found.cost.forwards += guided.cost.forwards
        found.cost.backwards += guided.cost.backwards
        return found
