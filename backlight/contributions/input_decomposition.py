"""Contributions of hidden units, taken apart over the input: what each entry of the input adds to each unit's.

Complete in the sense of CODEC's definition 1 (section 10.7, equation 4): over the entries k of the input, c_jk sums to
the contribution c_j of the unit. For a set of units the sum over them is taken first, by one backward pass with the
cotangents of the others set to zero, so that no c_jk is ever there on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.contributions.algorithms import ActGrad, Algorithm, HiddenIntegratedGradients, InputGrad
from backlight.contributions.linearisation import Linearisation
from backlight.contributions.occasion import Occasion
from backlight.engine.paths import line_rule
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float


@dataclass(frozen=True)
class InputDecomposition:
    """c_jk of a contribution algorithm. x_0: the baseline, zero where none is given.

    `anew`: whether the cotangent g of h is that of each point on the path, or that at the input.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    anew: ClassVar[bool] = True

    def nodes(self) -> list[tuple[float, float]]:
        """The points on the line from x_0 (0) to x (1), and their weights, of sum 1."""
        return [(1.0, 1.0)]

    def algorithm(self) -> Algorithm:
        """The contribution algorithm whose c_j this is a decomposition of."""
        raise NotImplementedError

    def units(self, here: Linearisation, start: Float[Tensor, "n *axes"]) -> Float[Tensor, "n *site"]:
        """c_j, the contribution of every unit."""
        occasion = Occasion(here.decided(), (here.x.detach(),), (start,), here.passed())
        return self.algorithm().contributions(occasion)[0][here.site]

    def maps(
        self, here: Linearisation, start: Float[Tensor, "n *axes"], weights: Sequence[Float[Tensor, "_ *site"]]
    ) -> list[Float[Tensor, "n *axes"]]:
        """sum_j w_j c_jk for each of several weightings of the units, `[n, *axes]`.

        A backward pass from h a weighting and node, beside the pass of each node; memory independent of the nodes.
        """
        x = here.x.detach()
        wide = torch.promote_types(x.dtype, torch.float32)
        totals = [torch.zeros_like(x, dtype=wide) for _ in weights]
        for node, share in self.nodes():
            if share == 0:
                continue
            at = here if node == 1 else Linearisation(here.decided(), start + node * (x - start))
            cotangent = at.cotangent if self.anew else here.cotangent
            for total, weight in zip(totals, weights, strict=True):
                total.add_(at.pull(weight * cotangent), alpha=share)
        return [total.mul_((x - start).to(wide)) for total in totals]


@dataclass(frozen=True)
class InputGradMaps(InputDecomposition):
    """The product of the input with the gradient that passes through the unit: exact at any input.

    c_j = g_j (dh_j/dx · (x - x_0)), with the paper's zero as x_0 by default.
    """

    source: ClassVar[str] = "CODEC, section 10.7, equations 6 to 9"
    formula: ClassVar[str] = "c_jk = g_j(x) * dh_j/dx_k(x) * (x - x_0)_k"
    passes: ClassVar[str] = "1, and 1 backward pass from h a set"

    def algorithm(self) -> Algorithm:
        return InputGrad()


@dataclass(frozen=True)
class _AlongLine(InputDecomposition):
    """On the line from the baseline to the input. `n_steps`: intervals of the trapezoid; of other rules, nodes."""

    n_steps: int = 10
    rule: str = "trapezoid"

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise InputError(f"n_steps must be at least 1, got {self.n_steps}")
        line_rule(self.rule, self.n_steps)

    def nodes(self) -> list[tuple[float, float]]:
        nodes, weights = line_rule(self.rule, self.n_steps + 1 if self.rule == "trapezoid" else self.n_steps)
        return list(zip(nodes.tolist(), weights.tolist(), strict=True))


@dataclass(frozen=True)
class IntegratedGradientsMaps(_AlongLine):
    """The part of Integrated Gradients at the input that passes through the unit.

    c_j is that of `HiddenIntegratedGradients` along the input's line, at as many steps: both are sums that come to the
    same integral. Over all units of a layer that everything passes through, the maps sum to Integrated Gradients.
    """

    source: ClassVar[str] = "CODEC, section 10.7, equations 13 to 15"
    formula: ClassVar[str] = "c_jk = (x - x_0)_k * integral of g_j(a) * dh_j/dx_k(a), a on the line from x_0 to x"
    passes: ClassVar[str] = "n_steps + 1, and n_steps + 1 backward passes from h a set; c_j: n_steps more"

    def algorithm(self) -> Algorithm:
        return HiddenIntegratedGradients(self.n_steps)


@dataclass(frozen=True)
class ActGradMaps(_AlongLine):
    """The gradient at the input times Integrated Gradients of the activation. c_j = (h_j(x) - h_j(x_0)) g_j(x)."""

    source: ClassVar[str] = "CODEC, section 10.7, equations 22 to 26"
    formula: ClassVar[str] = "c_jk = g_j(x) * (x - x_0)_k * integral of dh_j/dx_k(a), a on the line from x_0 to x"
    passes: ClassVar[str] = "n_steps + 1, and n_steps + 1 backward passes from h a set; c_j: 1 forward pass more"
    anew: ClassVar[bool] = False

    def algorithm(self) -> Algorithm:
        return ActGrad()


INPUT_DECOMPOSITIONS: dict[str, type[InputDecomposition]] = {
    "InputGrad": InputGradMaps,
    "IntegratedGradients": IntegratedGradientsMaps,
    "ActGrad": ActGradMaps,
}


def as_input_decomposition(algorithm: str | InputDecomposition) -> InputDecomposition:
    """A decomposition by name, with its default settings, or as given.

    Raises:
        UnknownNameError: a name that is not in `INPUT_DECOMPOSITIONS`.
    """
    if isinstance(algorithm, InputDecomposition):
        return algorithm
    if algorithm not in INPUT_DECOMPOSITIONS:
        raise UnknownNameError("algorithm of maps", algorithm, INPUT_DECOMPOSITIONS)
    return INPUT_DECOMPOSITIONS[algorithm]()
