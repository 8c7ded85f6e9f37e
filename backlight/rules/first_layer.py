"""Rules of the first layer, which give relevance to inputs that are 0: flat, w^2, z-box.

- flat: R_i = sum_j R_j / #i (Lapuschkin et al. 2019);
- w^2: R_i = sum_j w_ij^2 / (sum_i w_ij^2) R_j (Montavon et al. 2017, DTD: unbounded inputs);
- z-box: R_i = sum_j z_ij / (sum_i z_ij) R_j with z_ij = x_i w_ij - low w_ij+ - high w_ij- (the same: inputs in a box).

Everywhere else relevance is value times cotangent; of an input that is 0 that is 0. These rules therefore send nothing
back: `InputRelevance` takes their relevance itself to the model's input, and adds it there to value times cotangent.
Biases take no part. Where all weights or contributions are 0, inputs share equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.engine.rules import Call, Mark
from backlight.errors import InputError
from backlight.rules.affine_layers import AffineLayer, Function
from backlight.rules.relevance import AffineRule, ratio, silent


@dataclass(frozen=True)
class InputRule(AffineRule):
    """A rule of the first layer: it gives relevance also to inputs that are 0.

    In another place, where relevance is value times cotangent, it raises if an input that is 0 gets any.
    """

    def relevance(self, layer: AffineLayer, x: Tensor, relevance: Tensor, seen: Tensor) -> Tensor:
        """The relevance of x, given that of the output. `seen`: 1 where x is input, 0 where it is padding."""
        raise NotImplementedError

    def check(self, layer: AffineLayer, x: Tensor) -> None:
        """Raise `InputError` if x is no input that the rule is for."""

    def cotangent(self, layer: AffineLayer, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        found = self.relevance(layer, x, y * g, torch.ones_like(x[:1]))
        if bool(((x == 0) & (found != 0)).any()):
            raise InputError(
                f"{type(self).__name__} gives relevance to inputs that are 0, which value times cotangent cannot hold: "
                "it is a rule of the first layer; backlight.LRP(model, composite='epsilon_plus_flat') reads it there"
            )
        return ratio(found, x)

    def absorbed(self, layer: AffineLayer, x: Tensor, y: Tensor) -> Tensor:
        return unreached(layer, torch.ones_like(x[:1]), y)


def unreached(layer: AffineLayer, seen: Tensor, y: Tensor) -> Tensor:
    """y where it has no input at all: what it is comes from the bias, or from padding."""
    return torch.where(layer.apply(seen, torch.ones_like(layer.weight)) > 0, 0.0, y)


@dataclass(frozen=True)
class FlatRule(InputRule):
    """R_i = sum_j R_j / (number of inputs of j): each output's relevance, shared equally by what it sees."""

    label: str = "flat"

    def relevance(self, layer: AffineLayer, x: Tensor, relevance: Tensor, seen: Tensor) -> Tensor:
        ones = torch.ones_like(layer.weight)
        return seen * layer.adjoint(ratio(relevance, layer.apply(seen, ones)), ones, x)


@dataclass(frozen=True)
class WSquareRule(InputRule):
    """R_i = sum_j w_ij^2 / (sum_i w_ij^2) R_j: as flat, in proportion to the squared weights."""

    label: str = "w-square"

    def relevance(self, layer: AffineLayer, x: Tensor, relevance: Tensor, seen: Tensor) -> Tensor:
        squares = layer.weight.square()
        total = layer.apply(seen, squares)
        return seen * layer.adjoint(ratio(relevance, total), squares, x) + _equally(layer, x, relevance, seen, total)


@dataclass(frozen=True)
class ZBoxRule(InputRule):
    """z_ij = x_i w_ij - low w_ij+ - high w_ij-, which is not negative for inputs in [low, high]; biases take no part.

    `low`, `high`: numbers or tensors that broadcast to the layer's input; None: its least and largest value, of each
    sample and channel.

    Raises:
        InputError: inputs outside of [low, high], or bounds that do not broadcast.
    """

    low: Any = None
    high: Any = None
    label: str = "z-box"

    def check(self, layer: AffineLayer, x: Tensor) -> None:
        x = x.detach()
        low, high = self._box(layer, x)
        slack = 1e-3 * (high - low)
        if not bool(((x >= low - slack) & (x <= high + slack)).all()):
            raise InputError(
                f"the first layer's input reaches from {float(x.min()):.4g} to {float(x.max()):.4g}, outside of the "
                f"z-box; low and high are bounds of what that layer gets, after all preprocessing"
            )

    def relevance(self, layer: AffineLayer, x: Tensor, relevance: Tensor, seen: Tensor) -> Tensor:
        low, high = self._box(layer, x)
        above, below = seen * (x - low).clamp(min=0), seen * (x - high).clamp(max=0)
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        total = layer.apply(above, positive) + layer.apply(below, negative)
        q = ratio(relevance, total)
        shared = above * layer.adjoint(q, positive, x) + below * layer.adjoint(q, negative, x)
        return shared + _equally(layer, x, relevance, seen, total)

    def _box(self, layer: AffineLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = layer.range_axes(x)
        found = []
        for given, extreme in ((self.low, torch.amin), (self.high, torch.amax)):
            value = extreme(x, axes, keepdim=True) if given is None else torch.as_tensor(given).to(x)
            try:
                found.append(value.expand_as(x))
            except RuntimeError:
                raise InputError(
                    f"bounds {list(value.shape)} do not broadcast to the first layer's input {list(x.shape)}"
                ) from None
        return found[0], found[1]


def _equally(layer: AffineLayer, x: Tensor, relevance: Tensor, seen: Tensor, total: Tensor) -> Tensor:
    """The relevance of outputs whose contributions are all 0, shared equally."""
    left = relevance.masked_fill(total.expand_as(relevance) != 0, 0)
    return torch.zeros_like(x) if silent(left) else FlatRule().relevance(layer, x, left, seen)


@dataclass
class InputMark(Mark):
    """What became of the model's input. `seen`: 1 where it is an entry of the input, 0 where it is padding."""

    seen: Tensor | None = None


def seen(mark: Mark) -> Tensor:
    """Where what became of the model's input is input."""
    known = mark.seen if isinstance(mark, InputMark) else None
    if known is not None:
        return known
    assert mark.source is not None
    return torch.ones_like(mark.source)


class InputRelevance:
    """Takes the relevance that a first layer's rule gives its input to the model's input.

    The model's input may be moved (padding, indexing) and rescaled (normalisation) before the first layer gets it;
    relevance is moved back, and does not change where entries are rescaled. One object serves one forward and backward
    pass at a time; `read` is its readout: value times cotangent, of whatever else uses the input, plus that relevance.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.clear()

    def clear(self, phase: Any = None) -> None:
        """Let go of every tensor: graphs refer to this object, and would never be freed if it referred to them."""
        self._phase = phase
        self._terms: list[tuple[Tensor, Tensor]] = []
        self._between: list[Tensor] = []

    def rule(self, inner: InputRule, call: Call) -> AffineRule:
        """The rule of a layer that gets the model's input."""
        if call.run.phase is not self._phase:
            self.clear(call.run.phase)
        self.answered += 1
        self._between += [x for x, known in call.run.marks.items() if known.kind == "input" and known.source is not x]
        mark = call.run.marks[call.input]
        return _Noted(inner, self, mark.source, seen(mark))

    def note(self, phase: Any, source: Tensor, relevance: Tensor) -> None:
        """`source` is what became of the model's input by moves alone."""
        if phase is self._phase:
            self._terms.append((source, relevance.to(source.dtype)))

    def read(self, value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
        """The readout at the input and at hidden sites.

        Raises:
            InputError: a site between the input and the first layer.
        """
        if any(value is x for x in self._between):
            raise InputError(
                "between the input and the first layer relevance is not value times cotangent: choose the site 'input'"
            )
        total = value * cotangent
        for source, relevance in self._terms:
            again = relevance.requires_grad
            (moved,) = torch.autograd.grad(
                source, value, relevance, retain_graph=True, create_graph=again, allow_unused=True
            )
            total = total if moved is None else total + moved
        return total


@dataclass(frozen=True)
class _Noted(AffineRule):
    """A first layer's rule whose relevance is noted, and not sent back as a cotangent."""

    inner: InputRule
    record: InputRelevance
    source: Any
    seen: Tensor

    def answer(self, call: Call, x: Tensor, layer: AffineLayer, function: Function) -> Tensor:
        inner, record, source, phase = self.inner, self.record, self.source, call.run.phase
        present = self.seen
        inner.check(layer, x)

        def vjp(z: Tensor, y: Tensor, cotangent: Tensor) -> None:
            cast = layer.to(z.dtype)
            z, y, g = (value.to(cast.weight.dtype) for value in (z, y, cotangent))
            record.note(phase, source, inner.relevance(cast, z, y * g, present.to(z.dtype)))

        return self.answered(call, x, layer, function, vjp)

    def absorbed(self, layer: AffineLayer, x: Tensor, y: Tensor) -> Tensor:
        return unreached(layer, self.seen.to(x.dtype), y)


@dataclass(frozen=True)
class FirstLayerRule:
    """`first` where a layer gets the model's input, moved or rescaled entry by entry; `other` elsewhere."""

    first: InputRule
    other: AffineRule
    record: InputRelevance | None = None

    @property
    def label(self) -> str:
        return f"{getattr(self.other, 'label', '')}, first layer {getattr(self.first, 'label', '')}"

    def __call__(self, call: Call) -> Any:
        mark = call.run.marks.get(call.input)
        if mark is None or mark.kind != "input":
            return self.other(call)
        return self.first(call) if self.record is None else self.record.rule(self.first, call)(call)
