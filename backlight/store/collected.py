"""What a collector gives, and under which names a store keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.store.arrays import part

POSITIVE, NEGATIVE, POSITIONS, RESIDUAL = "positive", "negative", "positions", "residual"
SITES, SAMPLES, LOGITS, LABEL = "sites", "samples", "logits", "label"
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Collected:
    """Of some samples, one entry a sample on the first axis of everything.

    - `rows`: (positive part, negative part), `[n, C]` each, by site and quantity;
    - `positions`: what is kept by position, `[n, *site's shape]`, by site and quantity;
    - `columns`: `[n]` numbers, by name, such as "prediction", "score", "baseline_score";
    - `residuals`: `[n]`, by site; `logits`: `[n, K]`;
    - `entries`: `[n, ...]` numbers that belong to what is kept by position, such as where it was; by site, quantity and
      name. They are kept as they are, not in the store's type.
    """

    rows: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    positions: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    entries: Mapping[tuple[str, str, str], Tensor] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, in order."""
        return tuple(dict.fromkeys(site for site, _ in (*self.rows, *self.positions)))

    def __len__(self) -> int:
        wide = [pair[0] for pair in self.rows.values()]
        return len(next(iter((*wide, *self.positions.values(), *self.columns.values())), ()))

    def map(self, change: Callable[[Tensor], Tensor]) -> Collected:
        """The same with every tensor changed."""
        return Collected(
            {key: (change(pair[0]), change(pair[1])) for key, pair in self.rows.items()},
            {key: change(value) for key, value in self.positions.items()},
            {name: change(value) for name, value in self.columns.items()},
            {site: change(value) for site, value in self.residuals.items()},
            None if self.logits is None else change(self.logits),
            {key: change(value) for key, value in self.entries.items()},
        )

    def arrays(self, dtype: str) -> dict[str, np.ndarray]:
        """The arrays of the store by key; rows and positions in `dtype`, logits in float32.

        Raises:
            InputError: other numbers of samples, or a number out of the range of float16.
        """
        arrays = {key: stored(value, dtype, key) for key, value in self._wide()}
        if self.logits is not None:
            arrays[column_key(LOGITS)] = stored(self.logits, "float32", LOGITS)
        arrays |= {column_key(name): _column(value) for name, value in self.columns.items()}
        arrays |= {residual_key(site): _column(value) for site, value in self.residuals.items()}
        arrays |= {row_key(*key): _numbers(value) for key, value in self.entries.items()}
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"everything needs one entry a sample, got {lengths}")
        return arrays

    def _wide(self) -> Iterator[tuple[str, Tensor]]:
        for (site, quantity), (positive, negative) in self.rows.items():
            yield row_key(site, quantity, POSITIVE), positive
            yield row_key(site, quantity, NEGATIVE), negative
        for (site, quantity), value in self.positions.items():
            yield row_key(site, quantity, POSITIONS), value


def joined(parts: Sequence[Collected]) -> Collected:
    """What was collected of some samples and then of others, in this order."""
    first = parts[0]
    pairs = {key: tuple(zip(*(one.rows[key] for one in parts), strict=True)) for key in first.rows}
    return Collected(
        {key: (torch.cat(positive), torch.cat(negative)) for key, (positive, negative) in pairs.items()},
        {key: torch.cat([one.positions[key] for one in parts]) for key in first.positions},
        {name: torch.cat([one.columns[name] for one in parts]) for name in first.columns},
        {site: torch.cat([one.residuals[site] for one in parts]) for site in first.residuals},
        None if first.logits is None else torch.cat([one.logits for one in parts if one.logits is not None]),
        {key: torch.cat([one.entries[key] for one in parts]) for key in first.entries},
    )


def row_key(site: str, quantity: str, what: str) -> str:
    """`sites/layer4.1/contributions/positive`."""
    return f"{SITES}/{part(site)}/{quantity}/{what}"


def residual_key(site: str) -> str:
    """`sites/layer4.1/residual`."""
    return f"{SITES}/{part(site)}/{RESIDUAL}"


def column_key(name: str) -> str:
    """`samples/label`."""
    return f"{SAMPLES}/{name}"


def stored(value: Any, dtype: str, key: str) -> np.ndarray:
    """A tensor as an array of the store's type.

    Raises:
        InputError: a finite number that is infinite in float16.
    """
    tensor = torch.as_tensor(value).detach().cpu().float()
    with np.errstate(over="ignore"):
        array = tensor.numpy().astype(dtype, copy=False)
    if dtype == "float16" and np.isinf(array).any() and not bool(tensor.isinf().any()):
        raise InputError(
            f"{key!r} has numbers up to {float(tensor.abs().max()):.3g}: too large for float16, use float32"
        )
    return array


def _column(value: Any) -> np.ndarray:
    if torch.as_tensor(value).ndim != 1:
        raise InputError(f"a column has one number a sample, got {list(torch.as_tensor(value).shape)}")
    return _numbers(value)


def _numbers(value: Any) -> np.ndarray:
    tensor = torch.as_tensor(value).detach().cpu()
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64).numpy()
