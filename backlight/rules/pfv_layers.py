"""The rules of Sharing Ratio Decomposition for layers: convolutions, normalisation, pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

from torch import Tensor

from backlight.engine.adjoint import replace_adjoint, true_gradients
from backlight.engine.rules import Call
from backlight.rules.affine import max_pooled, read_convolution, with_share
from backlight.rules.affine_layers import bound
from backlight.rules.normalisation import read_norm
from backlight.rules.origins import positions, value_on
from backlight.rules.pfv_nodes import Nodes
from backlight.rules.windows import Layer


@dataclass
class Layers(Nodes):
    """Affine layers and pooling, by the call of each."""

    def convolution(self, call: Call) -> Any:
        x = call.input
        if len(call.signals()) > 1:
            return NotImplemented
        if not positions(x):
            return self.made(call.original(), x)
        origin, source = self.origin(x), x
        y = value_on(call, x.detach())
        layer = read_convolution(call, y)
        if origin.pool is not None:
            source, pool = origin.pool
            layer = changed(layer, pool=pool)
        elif not layer.window.pointwise:
            source = self.at_node(call, x)
        return self.layered(
            call, source, layer, y, lambda z: call.on(z if layer.pool is None else layer.pool.pooled(z))
        )

    def layered(
        self, call: Call, source: Tensor, layer: Layer, y: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The value y = function(source) of an affine layer."""
        values = [y.detach()]
        answer = replace_adjoint(
            source, lambda z: values.pop() if values else function(z), self.flow.layer(layer), "z", call.run.phase
        )
        windowed = not layer.window.pointwise or layer.pool is not None or self.origin(source).windowed
        return self.made(answer, source, windowed=windowed, layer=(source, layer, function))

    def norm(self, call: Call) -> Any:
        x = call.input
        statistics, weight, bias = read_norm(call)
        if not positions(x):
            return self.made(call.original(), x)

        def affine(z: Tensor) -> tuple[Tensor, Tensor]:
            mean, scale = statistics(z)
            scale = scale if weight is None else scale * weight
            return scale, (-mean * scale if bias is None else bias - mean * scale)

        known = self.origin(x).layer
        if known is None or call.operation != "batch_norm":
            return self.pointwise(call, x, bound(call), affine)
        source, layer, function = known
        scale, shift = affine(x)
        return self.layered(
            call, source, layer.folded(scale.flatten(), shift.flatten()), value_on(call, x.detach()),
            lambda z: call.on(function(z)),
        )  # fmt: skip

    def pointwise(
        self, call: Call, x: Tensor, function: Callable[[Tensor], Tensor],
        affine: Callable[[Tensor], tuple[Any, Tensor]],
    ) -> Any:  # fmt: skip
        """function(x) = scale x + shift, position by position; `affine` gives (scale, shift), held but in the head."""
        at, flow = self.flow.last, self.flow

        def vjp(z: Tensor, y: Any, cotangent: Tensor) -> Tensor:
            if flow.in_head(at):
                true: Tensor = true_gradients(function, (z,), cotangent)[0]
                return true
            scale, shift = affine(z)
            back = (cotangent * scale).to(z.dtype)
            return back if flow.bias == "drop" else with_share(back, z, (cotangent * shift).sum(1, keepdim=True))

        return self.made(replace_adjoint(x, function, vjp, "z", call.run.phase), x)

    def average(self, call: Call) -> Any:
        result = call.original()
        if not positions(result):
            return self.made(result, call.input)
        source = self.at_node(call, call.input)
        return self.averaged(call, source, result if source is call.input else call.on(source))

    def averaged(self, call: Call, source: Tensor, result: Tensor) -> Any:
        return self.made(result, source, windowed=True)

    def max_pool(self, call: Call) -> Any:
        x = call.input
        if not positions(x):
            return self.made(call.original(), x)
        x = self.at_node(call, x)
        found = max_pooled(call, x)
        if found is None:
            return self.made(call.on(x), x, windowed=True)
        y, pool = found
        self.made(y, x, windowed=True, pool=(x, pool))
        several = call.function.__name__.endswith("_with_indices") or call.kwargs.get("return_indices") is True
        return (y, pool.winners) if several else y
