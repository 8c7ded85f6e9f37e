"""FullGrad: the gradient times the input, and the gradient times the bias of every layer, as one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.engine.adjoint import Phase, alias
from backlight.engine.attribution import Attribution, attribute
from backlight.engine.paths import Inputs
from backlight.engine.rules import Call, RuleSet, needs_gradient
from backlight.engine.sites import INPUT
from backlight.engine.structures import tensors_of
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.feature_maps import feature_maps
from backlight.methods.method import Method
from backlight.methods.position_maps import resized
from backlight.shapes import Float

RESCALINGS = ("map", "layer", "none")

# activations whose tangent does not pass through the origin; of the others (ReLU, LeakyReLU) it does
_POINTWISE = (
    "relu6 elu selu celu silu gelu hardswish mish softplus hardtanh tanh sigmoid hardsigmoid softsign logsigmoid "
    "tanhshrink hardshrink softshrink threshold clamp"
).split()


@dataclass(kw_only=True)
class FullGrad(Method):
    """The full gradient as a saliency map: how much the input and the biases of all layers speak, position by position.

    psi(t): the absolute value of t, each channel's map rescaled to [0, 1], resized to the input, summed over channels.
    b_l: the additive constants of convolutions and linear layers, of BatchNorm (beta - gamma mu / sigma), of sums with
    constants, and a(z) - a'(z) z of activations. `explain(...)` gives their whole share as `bias`, and as `residual`
    what s(x) = <x, grad s> + sum_l <b_l, g_l> leaves: nothing, for networks of these layers, pooling and selections;
    products of two signals and normalisations by a layer's own statistics are not affine, and leave a residual.

    `rescale`: each `map` (the paper's psi), each `layer` (all its channels alike), or `none`, which keeps the units of
    the score. Layers without positions have no map. Values are 0 at least, and not scaled in the end.
    """

    source: ClassVar[str] = "Srinivas and Fleuret 2019, equations 2 and 3, section 4"
    formula: ClassVar[str] = "psi(x * grad s) + sum_l psi(b_l * g_l), g_l the gradient at layer l's output"
    positions: ClassVar[bool] = True
    reads_sites: ClassVar[bool] = False

    rescale: str = "map"

    def __post_init__(self) -> None:
        if self.rescale not in RESCALINGS:
            raise UnknownNameError("rescaling", self.rescale, RESCALINGS)

    def explain(
        self, inputs: Tensor | Inputs, target: Any = None, *, sites: str | tuple[str, ...] = INPUT, **settings: Any
    ) -> Attribution:
        """The map `[N, 1, H, W]`, the biases' share and the residual; settings as in `engine.attribute`.

        Raises:
            InputError: several inputs, or one without positions.
            SiteError: a site, of which this method has none.
        """
        if not isinstance(inputs, Tensor) or inputs.ndim < 3:
            raise InputError("FullGrad takes one input tensor [N, C, H, W]")
        if sites not in (INPUT, (INPUT,)):
            raise SiteError(f"FullGrad sums over all layers: it cannot be read at {sites!r}")
        settings.pop("bias", None)  # it is always counted
        size = inputs.shape[2:]
        terms = _BiasGradients(size, self.rescale)
        found = attribute(
            self.model, inputs, target, rules=terms.rules(), readout=terms.read, strict=self.strict, **settings
        )
        values = found.value
        found.values = {INPUT: values[:, :-2].unflatten(1, (1, *size))}
        if found.scores is not None:
            found.bias = values[:, -1].detach()
            found.residual = found.scores - values[:, -2:].sum(1).detach()
        return found


class _BiasGradients:
    """A rule for every call that adds a constant: what the constant's gradient is, is noted in the backward pass.

    The rules of one forward pass share a list, which the next forward pass replaces; the closures hold nothing else.
    """

    def __init__(self, size: Sequence[int], rescale: str) -> None:
        self.size, self.rescale = tuple(size), rescale
        self._phase: Phase | None = None
        self._terms: list[tuple[Tensor, Tensor | None]] = []

    def rules(self) -> RuleSet:
        constants: dict[str, Callable[[Call], Any]] = {
            "conv": lambda call: _bias_of(call, 2, 1),
            "conv_transpose": lambda call: _bias_of(call, 2, 1),
            "linear": lambda call: _bias_of(call, 2, -1),
            "batch_norm": _of_batch_norm,
            "instance_norm": lambda call: _bias_of(call, 4, 1),
            "layer_norm": lambda call: _bias_of(call, 3, -1),
            "group_norm": lambda call: _bias_of(call, 3, 1),
            **dict.fromkeys(("add", "sub", "rsub", "addmm", "cat", "stack", "where"), _at_zero),
            **dict.fromkeys(_POINTWISE, _of_tangent),
        }
        rules = {name: _Noting(self, constant) for name, constant in constants.items()}
        return RuleSet("full_grad", rules, lenient=True, whole=True)

    def note(self, call: Call, result: Tensor, constant: Tensor) -> None:
        """Have the constant times the result's cotangent noted, when that is known."""
        phase, samples = call.run.phase, call.run.samples
        if phase is not self._phase:
            self._phase, self._terms = phase, []
        terms, psi = self._terms, self.psi

        def hook(cotangent: Tensor) -> None:
            if phase.explaining:
                term = _wide(cotangent) * constant
                if samples and len(term) % samples == 0:
                    terms.append((term.reshape(samples, -1).sum(1), psi(term) if len(term) == samples else None))

        result.register_hook(hook)

    def psi(self, term: Tensor) -> Float[Tensor, "N 1 *size"] | None:
        """The term as a map of the input's size; None without positions."""
        try:
            maps = feature_maps(term, self.size).abs()
        except SiteError:
            return None
        if self.rescale != "none":
            axes = tuple(range(2 if self.rescale == "map" else 1, maps.ndim))
            low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
            maps = (maps - low) / torch.where(high > low, high - low, 1)
        return resized(maps.sum(1, keepdim=True), self.size)

    def read(self, value: Tensor, cotangent: Tensor, difference: Tensor) -> Float[Tensor, "N entries"]:
        """The map's entries, <x, grad s>, and the biases' share, side by side."""
        product = _wide(value) * _wide(cotangent)
        share = product.flatten(1).sum(1)
        total, biases = self.psi(product), torch.zeros_like(share)
        for term, part in self._terms:
            biases = biases + term
            total = part if total is None else total if part is None else total + part
        self._phase, self._terms = None, []
        if total is None:
            raise InputError(f"FullGrad takes an input with positions, got {list(value.shape)}")
        return torch.cat([total.flatten(1), share[:, None], biases[:, None]], 1)


@dataclass(frozen=True)
class _Noting:
    """The call as it is, its bias-gradient noted."""

    terms: _BiasGradients
    constant: Callable[[Call], Tensor | None]
    label: str = "bias-gradient"

    def __call__(self, call: Call) -> Any:
        result = call.original()
        constant = self.constant(call) if needs_gradient(result) else None
        if constant is not None:
            self.terms.note(call, result, _wide(constant))
        return result


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _bias_of(call: Call, position: int, axis: int) -> Tensor | None:
    """The bias argument, along its axis of the result."""
    bias = call.argument(position, "bias")
    return bias if bias is None or axis == -1 else bias.reshape(-1, *(1,) * (call.input.ndim - 2))


def _of_batch_norm(call: Call) -> Tensor | None:
    """beta - gamma mu / sigma; beta alone where mu and sigma are the batch's own."""
    return _bias_of(call, 4, 1) if call.argument(5, "training", False) else call.on(torch.zeros_like(call.input[:1]))


def _at_zero(call: Call) -> Tensor | None:
    """What an affine call gives where its signals are 0; None where all of its operands are signals."""
    operands = call.args[0] if call.operation in ("cat", "stack") else call.args[call.operation == "where" :][:3]
    others = [call.kwargs[key] for key in ("other", "input") if key in call.kwargs]
    if all(needs_gradient(value) for value in (*operands, *others)):
        return None
    signals = [x for x in tensors_of((call.args, call.kwargs)) if needs_gradient(x)]
    with torch.no_grad():
        return call.replaced({id(x): torch.zeros_like(x) for x in signals})


def _of_tangent(call: Call) -> Tensor:
    """a(z) - a'(z) z: where the tangent of an activation meets the axis."""
    again = call.run.phase.differentiable
    z = alias(call.input) if again else call.input.detach().requires_grad_()  # an alias: the input's hook is not to run
    with torch.enable_grad():
        y = call.on(z)
        (slope,) = torch.autograd.grad(y.sum(), z, create_graph=again)
    constant = y - slope * z
    return constant if again else constant.detach()
