"""SRD: Sharing Ratio Decomposition, the relevance of positions in convolutional networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.engine.attribution import Attribution, attribute
from backlight.engine.paths import Inputs
from backlight.engine.sites import INPUT, edited
from backlight.engine.targets import Logit, Target, as_target, output_tensor
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.method import Method
from backlight.methods.position_maps import resized
from backlight.methods.sharing_operator import SharingOperator
from backlight.rules.affine import inner
from backlight.rules.pfv import Sharing
from backlight.rules.relevance_flow import BIASES, Flow, class_activation

HEADS = ("raw", "mean", "clamped")
RESOLUTIONS = ("low", "high", "input")


@dataclass(frozen=True)
class CentredLogit(Logit):
    """The logit of a class less the mean logit of all classes (iERF paper, equation 5)."""

    def values(self, outputs: Any) -> Tensor:
        logits = output_tensor(outputs)
        return logits - logits.mean(1, keepdim=True)


@dataclass(kw_only=True)
class SRD(Method):
    """The relevance of each position: activations share it among positions in proportion to their contributions.

    `head`: the relevance of the last feature map is Grad-CAM's, of the logit (`raw`), of the logit less the mean logit
    (`mean`), or of the latter with its negative part set to 0 (`clamped`, the paper's); another target than a class is
    taken as it is. `resolution`: where the relevance is read, then resized to the input: at the last feature map
    (`low`), at the stage an eighth of the input's size (`high`: 28 x 28 of 224 x 224), at the input, or in a layer by
    name. `bias`: `norm`, in proportion to the norms of contributions, so that ratios sum to 1; `uniform`, equally;
    `drop`, an approximation that loses the biases' relevance.

    Relevance is conserved from layer to layer; `explain(...).residual` is what was lost on the way: at feature vectors
    that are zero, and to dropped biases. Maps change, mildly, when the channels of hidden layers are rescaled. For
    convolutional networks; where others leave the theory, an error names the layer.
    """

    source: ClassVar[str] = "Kim, Han, Kwak 2026 (iERF), section 3; Han et al. 2024 (SRD)"
    formula: ClassVar[str] = "R_i = sum_j mu_ij R_j, mu_ij = <v_ij, z_j> / <z_j, z_j>"
    positions: ClassVar[bool] = True

    head: str = "clamped"
    resolution: str = "input"
    bias: str = "norm"

    def __post_init__(self) -> None:
        for kind, value, choices in (("head", self.head, HEADS), ("sharing of biases", self.bias, BIASES)):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)

    def target(self, target: Any) -> Target:
        """The target whose Grad-CAM the relevance starts from."""
        chosen = as_target(target)
        return CentredLogit(chosen.index) if type(chosen) is Logit and self.head != "raw" else chosen

    def explain(
        self, inputs: Tensor | Inputs, target: Any = None, *, sites: str | tuple[str, ...] = INPUT, **settings: Any
    ) -> Attribution:
        """The relevance map `[N, 1, H, W]`, of the input's size; with `sites`, maps of the sites' own sizes.

        Raises:
            UncoveredOperationError: a layer that leaves the theory.
            SiteError: a site whose output is no feature map that relevance is defined for.
            ModelError: the score reads several feature maps directly.
            InputError: several inputs.
        """
        if not isinstance(inputs, Tensor):
            raise InputError("relevance of positions is defined for one input")
        if settings.pop("bias", False):
            raise InputError("the biases' relevance is shared among positions (`bias` of SRD), not kept apart")
        wants = (self.resolution,) if sites == INPUT else (sites,) if isinstance(sites, str) else tuple(sites)
        relevance = _Relevance(Sharing(Flow(class_activation(self.head == "clamped"), self.bias, wants)))
        layers = [want for want in wants if want not in RESOLUTIONS]
        with edited(self.model, {layer: relevance.naming(layer) for layer in layers}), relevance.checked(self.model):
            found = attribute(
                self.model, inputs, self.target(target), rules=relevance.sharing.rules(), readout=relevance.read,
                strict=self.strict, **settings,
            )  # fmt: skip
        found.values = {want: torch.cat(relevance.maps[want]).to(inputs.dtype) for want in wants}
        found.residual = (torch.cat(relevance.seeds) - found.values[wants[-1]].flatten(1).sum(1)).detach()
        if sites == INPUT:
            found.values = {INPUT: resized(found.values[self.resolution], inputs.shape[2:])}
        if not settings.get("create_graph"):
            found.values = {name: value.detach() for name, value in found.values.items()}
        return found

    def prepare(self, x: Tensor) -> SharingOperator:
        """The sharing ratios of a batch, after which maps and receptive fields cost next to nothing.

        `prepare(x).relevance(prepare(x).seed(target))` is `attribute(x, target)`, without its axis of channels.
        """
        flow = Flow(class_activation(self.head == "clamped"), self.bias)
        return SharingOperator.of(self.model, x, flow, self.target)


class _Relevance:
    """Collects the maps that were asked for, batch by batch."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.maps: dict[str, list[Tensor]] = {want: [] for want in sharing.flow.wants}
        self.seeds: list[Tensor] = []

    def naming(self, layer: str) -> Any:
        def note(value: Tensor) -> Tensor:
            origin = self.sharing.origins.get(value)
            if origin is None or origin.node is None:
                raise SiteError(
                    f"{layer!r} gives no feature map with a relevance of its own: name a layer whose output is an "
                    "activation, or a sum or concatenation of several"
                )
            self.sharing.flow.named[layer] = origin.node
            return value

        return note

    @contextmanager
    def checked(self, model: nn.Module) -> Iterator[None]:
        """See to it that the score is read from the last feature map alone."""
        handle = model.register_forward_hook(lambda module, args, outputs: self.sharing.check_head(outputs))
        try:
            yield
        finally:
            handle.remove()

    def read(self, value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
        """The readout: the relevance of the input; the others were kept on the way."""
        flow = self.sharing.flow
        if flow.seed is None:
            raise SiteError("the model has no feature map [N, C, *space] to start from, or its score depends on none")
        at_input = inner(value, cotangent)
        for want in flow.wants:
            self.maps[want].append(at_input if want == INPUT else flow.kept[want])
        self.seeds.append(flow.seed.flatten(1).sum(1))
        return at_input
