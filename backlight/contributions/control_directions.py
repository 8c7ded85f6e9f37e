"""Directions: in which order channels are taken to control a class or concept.

The paper takes those of the mode that correlates best with the class. Beside it stand what has to be beaten: modes of
activations, the class's mean contribution and activation, single channels, and channels drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.correlation import correlate, correlation
from backlight.contributions.modes import Negated
from backlight.data.hierarchy import Concept
from backlight.errors import InputError
from backlight.evaluation.identity import sample_seed
from backlight.shapes import Bool, Float, Int
from backlight.store.rows import Chosen, Rows, pieces

if TYPE_CHECKING:
    from backlight.contributions.decomposed import Decomposed
    from backlight.store.store import Store

CONTRIBUTIONS, ACTIVATIONS = "contributions", "activations"
RANDOM = "random channels"


@dataclass(frozen=True)
class Direction:
    """`orders[site][m, d]`: the channels for concept m, best first, in draw d (one draw where nothing is random).

    `notes`: of concept m, for the reader: which modes, how well they correlate.
    """

    name: str
    orders: Mapping[str, Int[Tensor, "M D C"]]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_scores(cls, name: str, scores: Mapping[str, Float[Tensor, "M C"]], notes: Sequence[str] = ()) -> Direction:
        """The channels with the largest scores first; equal ones in the order of the channels."""
        orders = {
            site: torch.argsort(one, dim=1, descending=True, stable=True)[:, None] for site, one in scores.items()
        }
        return cls(name, orders, tuple(notes))


def concept_masks(labels: Int[np.ndarray, "n"], concepts: Sequence[Concept]) -> Bool[Tensor, "n M"]:
    """Which samples belong to which concept; a label of -1 belongs to none."""
    columns = [np.isin(labels, concept.indices) for concept in concepts]
    return torch.from_numpy(np.stack(columns, 1)) if columns else torch.zeros(len(labels), 0, dtype=torch.bool)


@dataclass(frozen=True)
class ModeScores:
    """`scores [M, C]`: weights of channels for each concept; `modes`: those it was made of; `r`: the largest r."""

    scores: Float[Tensor, "M C"]
    modes: tuple[tuple[int, ...], ...]
    r: tuple[float, ...]


def mode_scores(
    decomposed: Decomposed,
    concepts: Sequence[Concept],
    used: Bool[np.ndarray, "n"] | None = None,
    above: float | None = None,
) -> ModeScores:
    """The mode whose loadings correlate best with each concept (section 5); with `above` the sum of all modes of a
    larger r, as the paper's super-classes have it (.2), and the best one where there is none.

    Args:
        used: rows that may choose; None is all.

    Raises:
        InputError: a concept none of whose samples is used, or all.
    """
    masks = concept_masks(decomposed.store.labels, concepts)
    weights = torch.ones(len(masks)) if used is None else torch.from_numpy(used).float()
    _check(masks[weights > 0], concepts)
    r = correlation(decomposed.loadings, masks, weights).r
    scores, chosen = [], []
    for column in r.T:
        several = [] if above is None else (column > above).nonzero().flatten().tolist()
        chosen.append(tuple(several or [int(column.argmax())]))
        scores.append(decomposed.modes[list(chosen[-1])].cpu().double().sum(0))
    return ModeScores(by_channel(torch.stack(scores), decomposed.sign), tuple(chosen), tuple(r.amax(0).tolist()))


def by_channel(weights: Float[Tensor, "M C"], sign: str) -> Float[Tensor, "M D"]:
    """Weights of rows as those of channels: negative parts count by their size, and halves of `concat` are added."""
    if sign == "concat":
        half = weights.shape[1] // 2
        return weights[:, :half] + weights[:, half:]
    return -weights if sign == "negative" else weights


def channel_rows(store: Store, site: str, quantity: str, sign: str) -> Rows:
    """A row's entry for each channel, the larger the more: parts of one sign by their size, else the sum."""
    if sign == "negative":
        return Negated(store.rows(site, quantity, sign))
    return store.rows(site, quantity, "positive" if sign == "positive" else "sum")


def mean_scores(
    rows: Rows, masks: Bool[Tensor, "n M"], used: Bool[np.ndarray, "n"] | None = None, contrast: bool = False
) -> Float[Tensor, "M C"]:
    """The mean of a concept's rows; `contrast`: less the mean of the others. float64, one pass."""
    there = masks.double() if used is None else masks.double() * torch.from_numpy(used)[:, None]
    total = torch.ones(len(masks), 1).double() if used is None else torch.from_numpy(used).double()[:, None]
    sums = torch.zeros(masks.shape[1] + 1, rows.shape[1], dtype=torch.float64)
    both = torch.cat((there, total), 1)
    for start, piece in pieces(rows):
        sums += both[start : start + len(piece)].T @ piece.double()
    inside = there.sum(0)[:, None]
    means = sums[:-1] / inside
    return means - (sums[-1] - sums[:-1]) / (total.sum() - inside) if contrast else means


def random_orders(channels: int, draws: int, seed: int, key: str = "") -> Int[Tensor, "D C"]:
    """Channels in `draws` random orders, others for each key; more draws begin with the same ones."""
    seeds = [sample_seed(seed, f"{key} {draw}") for draw in range(draws)]
    return torch.from_numpy(np.stack([np.random.default_rng(one).permutation(channels) for one in seeds]))


def directions_of(
    decomposed: Sequence[Decomposed],
    concepts: Sequence[Concept],
    used: Mapping[str, Bool[np.ndarray, "n"]] | None = None,
    *,
    above: float | None = None,
    random: int = 3,
    seed: int = 0,
) -> list[Direction]:
    """All directions that decompositions of some sites, and their stores, have.

    - "mode of contributions", "mode of activations": of what was decomposed at each site; contributions first;
    - "mean contribution", "mean activation" of the concept, where the store has them; "contrast of ...": the mean less
      that of all others, and "best channels by ...": their own correlation with the concept, of what was decomposed;
    - "random channels", `random` draws for each concept.

    Args:
        used: rows that may choose, by the folder of a decomposition; None is all.
        above: see `mode_scores`.

    Raises:
        InputError: two decompositions of the same site and quantity, or a concept without used samples.
    """
    by_quantity: dict[str, dict[str, Decomposed]] = {}
    for one in decomposed:
        if one.site in by_quantity.setdefault(one.quantity, {}):
            raise InputError(f"two decompositions of the {one.quantity} at {one.site!r}: give one of each")
        by_quantity[one.quantity][one.site] = one
    by_quantity = dict(sorted(by_quantity.items(), key=lambda item: item[0] != CONTRIBUTIONS))
    first = next(iter(by_quantity.values()))
    rows_of = {str(one.folder): None if used is None else used[str(one.folder)] for one in decomposed}
    found = []
    for quantity, sites in by_quantity.items():
        if set(sites) != set(first):
            raise InputError(
                f"{quantity} were decomposed at {sorted(sites)}, {decomposed[0].quantity} at {sorted(first)}"
            )
        scored = {site: mode_scores(one, concepts, rows_of[str(one.folder)], above) for site, one in sites.items()}
        notes = [_note(scored, place) for place in range(len(concepts))]
        found.append(Direction.of_scores(f"mode of {quantity}", {s: one.scores for s, one in scored.items()}, notes))
    found += _controls(by_quantity, concepts, rows_of)
    if random:
        orders = {}
        for site in first:
            width = found[0].orders[site].shape[-1]
            orders[site] = torch.stack(
                [random_orders(width, random, seed, f"{site} {concept.name}") for concept in concepts]
            )
        found.append(Direction(RANDOM, orders))
    return found


def _controls(
    by_quantity: Mapping[str, Mapping[str, Decomposed]],
    concepts: Sequence[Concept],
    rows_of: Mapping[str, np.ndarray | None],
) -> list[Direction]:
    """Means of what the stores hold; contrasts and single channels of what was decomposed."""
    first = next(iter(by_quantity.values()))
    scores: dict[str, dict[str, Tensor]] = {}
    for quantity in dict.fromkeys((*by_quantity, CONTRIBUTIONS, ACTIVATIONS)):
        for site, one in by_quantity.get(quantity, first).items():
            if quantity not in one.store.quantities(site):
                continue
            own = quantity == one.quantity
            rows = channel_rows(one.store, site, quantity, one.sign if own else "sum")
            masks, used = concept_masks(one.store.labels, concepts), rows_of[str(one.folder)]
            scores.setdefault(f"mean {quantity.removesuffix('s')}", {})[site] = mean_scores(rows, masks, used)
            if own:
                scores.setdefault(f"contrast of {quantity}", {})[site] = mean_scores(rows, masks, used, contrast=True)
                scores.setdefault(f"best channels by {quantity}", {})[site] = _correlations(rows, masks, used)
    return [Direction.of_scores(name, one) for name, one in scores.items() if set(one) == set(first)]


def _correlations(rows: Rows, masks: Tensor, used: np.ndarray | None) -> Tensor:
    chosen = rows if used is None else Chosen(rows, np.flatnonzero(used))
    return correlate(chosen, masks if used is None else masks[torch.from_numpy(used)]).T


def _note(scored: Mapping[str, ModeScores], place: int) -> str:
    parts = []
    for site, one in scored.items():
        modes = one.modes[place]
        what = f"mode {modes[0]}" if len(modes) == 1 else f"{len(modes)} modes"
        parts.append(f"{site}: {what}, r = {one.r[place]:.3f}")
    return "; ".join(parts)


def _check(masks: Tensor, concepts: Sequence[Concept]) -> None:
    for concept, count in zip(concepts, masks.sum(0).tolist(), strict=True):
        if not 0 < count < len(masks):
            raise InputError(f"{count} of {len(masks)} samples that may choose channels belong to {concept.name!r}")
