"""Layer-wise relevance propagation: how affine layers share the relevance of their outputs among their inputs.

With contributions z_ij = w_ij x_i to y_j = sum_i z_ij + b_j, z = z+ + z- by sign, all rules but the last three are

    R_i = sum_j (z_ij+ f_j+ + z_ij- f_j-) R_j / y_j,

and because relevance is value times cotangent here, the cotangent of x_i is that without the factor x_i. Sums below run
over i and include the bias, which absorbs its share. With P_j = sum z_ij+ and N_j = sum z_ij-:

- epsilon: f+ = f- = y / (y + epsilon sign(y)) (Bach et al. 2015, equation 58);
- gamma: f+ = (1 + gamma) y / (y + gamma P), f- = y / (y + gamma P) where y > 0; for y < 0 the signs change places
  (Montavon et al. 2019; for inputs and outputs of both signs, Andeol et al. 2021);
- alpha-beta: f+ = alpha y / P, f- = -beta y / N with alpha - beta = 1 (Bach et al. 2015, equation 60);
- z+: alpha = 1, beta = 0 (Montavon et al. 2017; for inputs of both signs);
- flat: R_i = sum_j R_j / #i (Lapuschkin et al. 2019); w^2: sum_j w_ij^2 / sum_i w_ij^2 R_j (Montavon et al. 2017);
- z-box: contributions x w - low w+ - high w- of inputs in [low, high] (Montavon et al. 2017).

Where the papers are silent: where all contributions have one sign, they share R_j in proportion under alpha-beta and
z+, so that nothing is lost.

The last three are rules of the first layer, in `backlight.rules.first_layer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.engine.adjoint import replace_adjoint
from backlight.engine.rules import Call, Mark
from backlight.errors import InputError
from backlight.rules.affine_layers import AffineLayer, Function, bound, read_layer

_Shares = tuple[Tensor, Tensor]


@dataclass
class AffineMark(Mark):
    """The value of an affine layer: under which rule, of which input (`source`). So a BatchNorm can be folded in."""

    rule: AffineRule | None = None
    layer: AffineLayer | None = None
    function: Function | None = None


@dataclass(frozen=True)
class AffineRule:
    """Answers linear layers and (transposed) convolutions; others say what inputs receive, and what is absorbed."""

    def __call__(self, call: Call) -> Any:
        read = read_layer(call)
        if read is None:
            return NotImplemented
        return self.answer(call, call.input, read, bound(call))

    def answer(self, call: Call, x: Tensor, layer: AffineLayer, function: Function) -> Tensor:
        """function(x), bit for bit, as the value of an affine layer under this rule."""

        def vjp(z: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
            cast = layer.to(z.dtype)
            wide = cast.weight.dtype
            return self.cotangent(cast, z.to(wide), y.to(wide), cotangent.to(wide)).to(z.dtype)

        return self.answered(call, x, layer, function, vjp)

    def answered(self, call: Call, x: Tensor, layer: AffineLayer, function: Function, vjp: Any) -> Tensor:
        """function(x) with a vector-Jacobian product, marked as the value of the layer."""
        y = replace_adjoint(x, function, vjp, "zy", call.run.phase)
        call.run.keep(y)

        def constant() -> Tensor:
            with torch.no_grad():
                cast = layer.to(x.dtype)
                return self.absorbed(cast, x.to(cast.weight.dtype), y.to(cast.weight.dtype))

        y = call.run.bias(y, constant)
        call.run.marks[y] = AffineMark("affine", x, self, layer, function)
        return y

    def cotangent(self, layer: AffineLayer, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """What x receives: its product with x is the relevance of x."""
        raise NotImplementedError

    def absorbed(self, layer: AffineLayer, x: Tensor, y: Tensor) -> Tensor:
        """Its product with the cotangent of y is the relevance that no input gets: of biases and stabilisers."""
        raise NotImplementedError


def ratio(numerator: Tensor, denominator: Tensor, absent: Tensor | None = None) -> Tensor:
    """numerator / denominator, and 0 where the denominator is absent: 0, if not given."""
    absent = denominator == 0 if absent is None else absent
    return (numerator / torch.where(absent, 1, denominator)).masked_fill(absent, 0)


@dataclass(frozen=True)
class EpsilonRule(AffineRule):
    """R_i = sum_j z_ij / (y_j + epsilon sign(y_j)) R_j. `epsilon` absorbs the relevance of small outputs.

    Raises:
        InputError: a negative epsilon.
    """

    epsilon: float = 1e-6
    label: str = "epsilon"

    def __post_init__(self) -> None:
        _not_negative("epsilon", self.epsilon)

    def cotangent(self, layer: AffineLayer, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return layer.adjoint(g * self._factor(y), layer.weight, x)

    def absorbed(self, layer: AffineLayer, x: Tensor, y: Tensor) -> Tensor:
        return y - (y - layer.constant(y)) * self._factor(y)

    def _factor(self, y: Tensor) -> Tensor:
        size = y.abs()
        return size / (size + self.epsilon) if self.epsilon else torch.ones_like(y)


@dataclass(frozen=True)
class SignedRule(AffineRule):
    """A rule that treats positive and negative contributions differently."""

    def shares(self, layer: AffineLayer, x: Tensor, y: Tensor) -> _Shares:
        """(f+, f-): what the cotangent of y is multiplied by, for contributions of either sign."""
        raise NotImplementedError

    def cotangent(self, layer: AffineLayer, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        plus, minus = self.shares(layer, x, y)
        return signed_adjoint(layer, x, g * plus, g * minus)

    def absorbed(self, layer: AffineLayer, x: Tensor, y: Tensor) -> Tensor:
        plus, minus = self.shares(layer, x, y)
        bias = layer.constant(y)
        positive = contributions(layer, x, 1) - bias.clamp(min=0)
        negative = contributions(layer, x, -1) - bias.clamp(max=0)
        return y - positive * plus - negative * minus


@dataclass(frozen=True)
class GammaRule(SignedRule):
    """Contributions of the output's own sign count 1 + gamma times; gamma = 0 is epsilon -> 0, large gamma like z+.

    Raises:
        InputError: a negative gamma.
    """

    gamma: float = 0.25
    label: str = "gamma"

    def __post_init__(self) -> None:
        _not_negative("gamma", self.gamma)

    def shares(self, layer: AffineLayer, x: Tensor, y: Tensor) -> _Shares:
        positive = contributions(layer, x, 1)
        same = torch.where(y > 0, positive, y - positive)
        base = ratio(y, y + self.gamma * same, y == 0)
        return base * (1 + self.gamma * (y > 0)), base * (1 + self.gamma * (y < 0))


@dataclass(frozen=True)
class ZPlusRule(SignedRule):
    """R_i = sum_j z_ij+ / P_j R_j: positive contributions take all; where there is none, negative ones."""

    label: str = "z-plus"

    def shares(self, layer: AffineLayer, x: Tensor, y: Tensor) -> _Shares:
        positive = contributions(layer, x, 1)
        none = _negligible(positive, y)
        return ratio(y, positive, none), none.to(y.dtype)  # there N = y


@dataclass(frozen=True)
class AlphaBetaRule(SignedRule):
    """R_i = sum_j (alpha z_ij+ / P_j - beta z_ij- / N_j) R_j; where contributions have one sign, they take all.

    Raises:
        InputError: alpha - beta is not 1, or beta is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0
    label: str = "alpha-beta"

    def __post_init__(self) -> None:
        _not_negative("beta", self.beta)
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise InputError(f"alpha - beta must be 1 for relevance to be conserved, got {self.alpha} - {self.beta}")

    def shares(self, layer: AffineLayer, x: Tensor, y: Tensor) -> _Shares:
        positive, negative = contributions(layer, x, 1), contributions(layer, x, -1)
        no_plus, no_minus = _negligible(positive, y), _negligible(negative, y)
        plus = torch.where(no_minus, 1.0, self.alpha) * ratio(y, positive, no_plus)
        minus = torch.where(no_plus, 1.0, -self.beta) * ratio(y, negative, no_minus)
        return plus.to(y.dtype), minus.to(y.dtype)


def _negligible(part: Tensor, y: Tensor) -> Tensor:
    """Whether one sign's contributions are nothing beside the output: their quotient would overflow."""
    return part.abs() <= torch.finfo(y.dtype).eps ** 2 * y.abs()


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise InputError(f"{name} must not be negative, got {value}")


def silent(q: Tensor) -> bool:
    """Whether nothing passes; with a graph also zeros do."""
    return not torch.is_grad_enabled() and not bool(q.any())


def contributions(layer: AffineLayer, x: Tensor, sign: int) -> Tensor:
    """P or N: the sum of the contributions of one sign, that of the bias included."""
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    same, other = (positive, negative) if sign > 0 else (negative, positive)
    total = layer.apply(x.clamp(min=0), same)
    if bool((x < 0).any()):
        total = total + layer.apply(x.clamp(max=0), other)
    bias = layer.constant(total)
    return total + (bias.clamp(min=0) if sign > 0 else bias.clamp(max=0))


def signed_adjoint(layer: AffineLayer, x: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """What x receives where positive contributions meet the cotangent `plus`, and negative ones `minus`."""
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)

    def back(a: Tensor, b: Tensor) -> Tensor:
        parts = [layer.adjoint(q, w, x) for q, w in ((a, positive), (b, negative)) if not silent(q)]
        return torch.zeros_like(x) if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]

    above = back(plus, minus)
    if not bool((x < 0).any()):
        return above
    return torch.where(x < 0, back(minus, plus), above)
