"""How much of a correlation is there: the strongest of many, what chance gives, and what is left on other samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.correlation import Correlation, correlation
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int
from backlight.store.rows import Rows, pieces

CORRELATED = 0.2  # the paper's threshold of a mode that is correlated with a class
PIECE = 1024
ROUNDING = 1e-12  # of a mean square: a variance below it is that of a constant


@dataclass(frozen=True)
class Evidence:
    """Columns (modes or channels) and masks (classes or concepts).

    Attributes:
        correlation: all of them.
        alive: columns that are not 0 on every sample.
        strongest, best: each column's largest signed r, and its mask. It is the largest of M noisy numbers: it is above
            0 also where nothing is to be found.
        dealt: what `strongest` is when the masks are dealt to other samples, for each permutation.
        held_out: the mask is chosen on one half of the samples, r is measured on the other; the mean of both ways.
            Unbiased by the choice. NaN without a split.
        draws, held_out_draws: bootstrap draws of the medians over alive columns of r with the best mask, and of
            `held_out`, over samples, with the choices of masks held fixed.
    """

    correlation: Correlation
    alive: Bool[Tensor, "C"]
    strongest: Float[Tensor, "C"]
    best: Int[Tensor, "C"]
    dealt: Float[Tensor, "permutations C"]
    held_out: Float[Tensor, "C"]
    draws: Float[np.ndarray, "draws"]
    held_out_draws: Float[np.ndarray, "draws"]

    @property
    def chance(self) -> Float[Tensor, "C"]:
        """The mean over permutations; NaN without any."""
        return self.dealt.mean(0)

    def summary(self) -> dict[str, float | int]:
        """Counts, and medians over columns, as in the paper's figures 5C and 5D; `..._chance`: of dealt masks."""
        strongest, alive = self.strongest, self.alive
        medians = [median(one, alive) for one in self.dealt]
        return {
            "columns": len(alive),
            "alive": int(alive.sum()),
            "median_r": median(strongest, alive),
            "median_r_all": median(strongest, torch.ones_like(alive)),
            "median_r_chance": float(np.mean(medians)) if medians else float("nan"),
            "median_r_held_out": median(self.held_out, alive),
            "correlated": int((strongest > CORRELATED).sum()),
            "correlated_held_out": int((self.held_out > CORRELATED).sum()),
            "correlated_chance": float((self.dealt > CORRELATED).double().sum(1).mean()),
            "covered": int((self.correlation.r > CORRELATED).any(0).sum()),
        }


def median(values: Tensor, chosen: Tensor) -> float:
    """The middle value; NaN of none."""
    return float(np.median(values[chosen].numpy())) if bool(chosen.any()) else float("nan")


@dataclass(frozen=True)
class Difference:
    """Modes' median minus channels', and its 95 % interval over samples."""

    estimate: float
    low: float
    high: float


def evidence(
    rows: Rows,
    masks: Bool[Tensor, "n M"],
    *,
    permutations: int = 20,
    draws: int = 200,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Evidence:
    """Correlate, permute, split and draw again.

    The same seed gives the same permutations, halves and draws for any rows of the same samples, so those of modes and
    of channels are paired. Rows are read 5 + `permutations` times.

    Raises:
        InputError: no masks, or permutations, draws or a seed that are no whole numbers of at least 0.
    """
    n, columns = rows.shape
    if not masks.shape[1]:
        raise InputError("there is no class or concept with enough samples: lower min_images, or use a hierarchy")
    check_whole(permutations=permutations, draws=draws, seed=seed)
    tell = progress or (lambda: None)
    whole = correlation(rows, masks)
    strongest, best = whole.r.max(1)
    alive = nonzero(rows)
    tell()
    dealt = _permuted(rows, masks, permutations, seed, tell)
    first = halves(masks, seed)
    weights = _weights(n, draws, seed)
    held = torch.zeros(1 + draws, columns).double()
    for chosen_on, other in ((first, ~first), (~first, first)):
        choice = correlation(rows, masks, chosen_on.double()).r.argmax(1)
        held += with_fixed(rows, masks, choice, weights * other.double()) / 2
        tell()
    fixed = with_fixed(rows, masks, best, weights)[1:]
    tell()
    return Evidence(
        whole,
        alive,
        strongest,
        best,
        dealt,
        held[0],
        np.array([median(one, alive) for one in fixed]),
        np.array([median(one, alive) for one in held[1:]]),
    )


def check_whole(**numbers: Any) -> None:
    """Raises `InputError` for what is no whole number of at least 0."""
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value < 0:
            raise InputError(f"{name} must be a whole number of at least 0, got {value!r}")


def steps(permutations: int) -> int:
    """How often `evidence` reports progress."""
    return 4 + permutations


def difference(modes: Evidence, channels: Evidence, *, held_out: bool) -> Difference:
    """Between the medians over alive columns; the interval is that of paired bootstrap draws, centred."""
    pair = [one.held_out if held_out else one.strongest for one in (modes, channels)]
    estimate = median(pair[0], modes.alive) - median(pair[1], channels.alive)
    drawn = modes.held_out_draws - channels.held_out_draws if held_out else modes.draws - channels.draws
    if not len(drawn) or np.isnan(drawn).all():
        return Difference(estimate, float("nan"), float("nan"))
    low, high = np.nanquantile(drawn - np.nanmean(drawn), [0.025, 0.975])
    return Difference(estimate, estimate + float(low), estimate + float(high))


def nonzero(rows: Rows) -> Bool[Tensor, "C"]:
    """Columns with any entry other than 0."""
    found = torch.zeros(rows.shape[1], dtype=torch.bool)
    for _, piece in pieces(rows):
        found |= (piece != 0).any(0)
    return found


def halves(masks: Bool[Tensor, "n M"], seed: int) -> Bool[Tensor, "n"]:
    """One half of the samples, at random, balanced within classes and, as far as they go, concepts.

    Samples are ordered by their masks, shuffled among equal ones, and taken in turn.
    """
    draw = np.random.default_rng((seed, 1))
    _, groups = np.unique(np.packbits(masks.numpy(), axis=1), axis=0, return_inverse=True)
    order = np.lexsort((draw.random(len(masks)), groups.reshape(-1)))
    first = torch.zeros(len(masks), dtype=torch.bool)
    first[torch.from_numpy(order[int(draw.integers(2)) :: 2].copy())] = True
    return first


def with_fixed(
    rows: Rows, masks: Bool[Tensor, "n M"], choice: Int[Tensor, "C"], weights: Float[Tensor, "J n"]
) -> Float[Tensor, "J C"]:
    """Pearson's r of each column with its own mask, for several weights of the samples; 0 for constants.

    Reads the rows once; four products `[J, n] @ [n, C]`.
    """
    columns = rows.shape[1]
    sums = torch.zeros(4, len(weights), columns).double()
    shift: Tensor | None = None
    for start, piece in pieces(rows, PIECE):
        x, stop = piece.double(), start + len(piece)
        shift = x[0] if shift is None else shift
        x, member, w = x - shift, masks[start:stop][:, choice].double(), weights[:, start:stop].double()
        for total, values in zip(sums, (x, x * x, member, x * member), strict=True):
            total += w @ values
    x, square, member, product = sums / weights.double().sum(1)[:, None]
    variance = square - x**2
    variance = torch.where(variance > ROUNDING * square, variance, 0.0)
    spread = member * (1 - member)
    scale = (variance * torch.where(spread > ROUNDING, spread, 0.0)).sqrt()
    return torch.where(scale > 0, (product - x * member) / scale, 0.0).clamp(-1, 1)


def _permuted(
    rows: Rows, masks: Tensor, permutations: int, seed: int, tell: Callable[[], None]
) -> Float[Tensor, "permutations C"]:
    draw = np.random.default_rng((seed, 2))
    found = torch.zeros(permutations, rows.shape[1]).double()
    for one in found:
        dealt = torch.from_numpy(draw.permutation(len(masks)))
        one.copy_(correlation(rows, masks[dealt]).r.amax(1))
        tell()
    return found


def _weights(n: int, draws: int, seed: int) -> Float[Tensor, "J n"]:
    """All ones, and how often each sample is drawn."""
    draw = np.random.default_rng((seed, 3))
    counts = draw.multinomial(n, np.full(n, 1 / n), size=draws)
    return torch.cat([torch.ones(1, n), torch.from_numpy(counts.astype(np.float32))])
