"""What a bank stores of an image: some of a layer's pointwise feature vectors, where they were, and their relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.bank_draws import CLASS_TOKEN, NOTHING, check_sampling, draw
from backlight.concepts.bank_relevance import Positions, Relevance, chosen_relevance
from backlight.contributions.collector import Collection, ContributionCollector
from backlight.data.labelled import Sample
from backlight.errors import InputError, NonFiniteError
from backlight.store import Collected
from backlight.store.collected import joined

PFVS, PLACE, RELEVANCE, GRID = "pfvs", "place", "relevance", "grid"


@dataclass(frozen=True)
class PfvCollector:
    """How positions are drawn, and their relevance found: what `backlight.store.extract` is given for a bank.

    - `source`: the network, its sites and the target; see `ContributionCollector`, of which nothing else is used;
    - `sampling`, `per_image`, `replacement`, `class_token`, `seed`: see `make_bank`;
    - `attributor`: a name of `RELEVANCES`, or None, which leaves relevance out;
    - `told`: plain values that help to find the network and the images again.
    """

    source: ContributionCollector
    sampling: str = "relevance"
    per_image: int = 1
    replacement: bool = False
    class_token: str = "drop"
    attributor: str | None = "auto"
    seed: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sampling(self.sampling, self.per_image, self.class_token)
        if self.attributor is not None:
            object.__setattr__(self, "attributor", chosen_relevance(self.source.network, self.attributor))
        elif self.sampling == "relevance":
            raise InputError("sampling by relevance needs an attributor")

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the bank."""
        own = self.source.identity
        return {
            **{name: own[name] for name in ("model", "preprocessing", "sites")},
            "target": None if self.attributor is None else own["target"],
            "bank": {
                "sampling": self.sampling,
                "per_image": None if self.sampling == "all" else self.per_image,
                "replacement": self.replacement,
                "class_token": self.class_token,
                "attributor": self.attributor,
                "seed": self.seed,
            },
        }

    @property
    def about(self) -> Mapping[str, Any]:
        """What helps to find the network and the images again."""
        return {**self.source.about, **self.told}

    @property
    def resources(self) -> Mapping[str, float]:
        """See `ContributionCollector.resources`."""
        return self.source.resources

    def open(self, worker: int) -> PfvCollection:
        """The network on its device."""
        return PfvCollection(self, self.source.open(worker))


class PfvCollection:
    """A `PfvCollector` with its network."""

    def __init__(self, of: PfvCollector, opened: Collection) -> None:
        self.of, self.opened = of, opened
        self.relevance = Relevance(opened.network, of.source.sites, of.attributor)

    def collect(self, samples: Sequence[Sample]) -> Collected:
        """The vectors of some samples; those whose relevance is not finite are NaN, and the others computed alone."""
        try:
            return self._collect(samples)
        except NonFiniteError:
            if len(samples) == 1:
                raise
        found: list[Collected | None] = []
        for one in samples:
            try:
                found.append(self._collect([one]))
            except NonFiniteError:
                found.append(None)
        good = next((one for one in found if one is not None), None)
        if good is None:
            raise NonFiniteError(f"no sample from {samples[0].name!r} to {samples[-1].name!r} has a finite relevance")
        return joined([good.map(_not_a_number) if one is None else one for one in found])

    def _collect(self, samples: Sequence[Sample]) -> Collected:
        x = self.opened.inputs(samples)
        target = self.opened.targets(samples) if self.of.attributor is not None else None
        found, outputs = self.relevance.of(x, target)
        values: dict[tuple[str, str], Tensor] = {}
        entries: dict[tuple[str, str, str], Tensor] = {}
        for site, positions in found.items():
            taken = [self._taken(positions, row, site, one.name) for row, one in enumerate(samples)]
            kept = [_kept(positions, row, numbers) for row, numbers in enumerate(taken)]
            values[site, PFVS], entries[site, PFVS, PLACE], entries[site, PFVS, RELEVANCE] = map(
                torch.stack, zip(*kept, strict=True)
            )
            entries[site, PFVS, GRID] = torch.tensor([positions.grid] * len(samples))
        classes = outputs.ndim == 2 and self.of.told.get("unit") != "feature"
        columns = {"prediction": outputs.argmax(1).cpu()} if classes else {}
        return Collected({}, values, columns, entries=entries)

    def _taken(self, positions: Positions, row: int, site: str, name: str) -> np.ndarray:
        """The numbers of the positions of one image that are kept: `[count]`, the last ones NOTHING where too few."""
        of, grid = self.of, positions.grid[0] * positions.grid[1]
        if of.class_token != "drop" and not positions.class_token:
            raise InputError(f"{site!r} has no class token: class_token='drop'")
        token = [grid] if of.class_token == "keep" else []
        last = grid + (of.class_token == "draw")
        if of.sampling == "all":
            return np.array([*range(last), *token])
        relevance = positions.relevance[row, :last].cpu().numpy()
        if of.sampling == "relevance" and not np.isfinite(relevance).all():
            raise NonFiniteError(f"the relevance of {name!r} at {site!r} is not finite")
        weights = relevance.clip(min=0) if of.sampling == "relevance" else np.ones(last, np.float32)
        found = draw(weights, of.per_image, of.seed, f"{name}\0{site}", of.replacement)
        missing = [NOTHING] * (of.per_image - len(found))
        return np.array([*found, *missing, *token])


def _kept(positions: Positions, row: int, taken: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """(vectors `[P, C]`, places `[P]`, relevance `[P]`) of one image; zeros and NaN where nothing was left to draw."""
    numbers = torch.from_numpy(np.where(taken == NOTHING, 0, taken))
    there = torch.from_numpy(taken != NOTHING)
    values = positions.values[row].cpu()[numbers].masked_fill(~there[:, None], 0)
    relevance = positions.relevance[row].cpu().double()[numbers].masked_fill(~there, torch.nan)
    grid = positions.grid[0] * positions.grid[1]
    return values, torch.from_numpy(np.where(taken == grid, CLASS_TOKEN, taken)), relevance


def _not_a_number(value: Tensor) -> Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value
