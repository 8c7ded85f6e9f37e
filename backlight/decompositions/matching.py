"""Modes of two dictionaries, one to one: how alike what two fits found is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition
from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float, Int


def match(
    first: Float[Tensor, "K C"], second: Float[Tensor, "L D"]
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Float[Tensor, "pairs"]]:
    """Modes one to one, with the largest sum of cosines; min(K, L) pairs, the most alike first. O(K^2 L).

    Raises:
        InputError: modes of different numbers of channels.
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "contributions") from None
    cosine = cosines(first, second)
    rows, columns = (torch.from_numpy(one) for one in linear_sum_assignment(cosine.numpy(), maximize=True))
    found = cosine[rows, columns]
    order = found.argsort(descending=True, stable=True)
    return rows[order], columns[order], found[order]


def cosines(first: Float[Tensor, "K C"], second: Float[Tensor, "L D"]) -> Float[Tensor, "K L"]:
    """Of each mode with each, in float64. Raises `InputError` for modes of different numbers of channels."""
    if first.shape[1] != second.shape[1]:
        raise InputError(f"modes over {first.shape[1]} and {second.shape[1]} channels cannot be compared")
    return unit(first) @ unit(second).T


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float64 on the CPU; a row of zeros stays."""
    return torch.nn.functional.normalize(x.double().cpu(), dim=1, eps=1e-300)


def dictionary_stability(fits: Sequence[Decomposition]) -> float:
    """How alike dictionaries of several seeds are: the mean cosine of modes matched one to one, over all pairs of fits.

    1 is the same modes in any order (Fel et al. 2025, section 3).

    Raises:
        InputError: fewer than two fits, or of different numbers of channels.
        MissingExtraError: scipy is not installed.
    """
    if len(fits) < 2:
        raise InputError(f"stability is of two fits or more, got {len(fits)}")
    pairs = [float(match(one.modes, other.modes)[2].mean()) for one, other in combinations(fits, 2)]
    return sum(pairs) / len(pairs)
