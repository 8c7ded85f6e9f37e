"""Which samples a network gets right with channels removed, each condition and sample computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.contributions.control import ChannelEdit, control, site_layouts, site_values
from backlight.contributions.reduction import Layout
from backlight.engine.targets import output_tensor
from backlight.errors import InputError
from backlight.evaluation.samples import Samples
from backlight.shapes import Bool, Float, Int

RANKS = (1, 5)
_UNKNOWN = 255


@dataclass(frozen=True, eq=False)
class Condition:
    """Channels that are removed, `{site: [C]}`. `lasting`: asked for again in later trials."""

    removed: Mapping[str, Bool[np.ndarray, "C"]]
    lasting: bool = False
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        text = hashlib.sha256()
        for site, one in sorted(self.removed.items()):
            text.update(f"{site} {len(one)} ".encode() + np.packbits(one).tobytes())
        object.__setattr__(self, "key", text.digest() if any(one.any() for one in self.removed.values()) else b"")


@dataclass
class Outcomes:
    """Right answers of a network under conditions.

    - `model`: takes what `samples` give; `sites`: where conditions remove channels; `prefix`: of their addresses in the
      model, where it holds the network that they are of (`network.` behind a front of pixels);
    - `labels`: a class for each sample;
    - `fill`, `values`, `seed`: see `ChannelEdit`, values by site;
    - `numbers`: of the samples, for their donors; `layouts`: of sites, where they are known.

    Raises:
        InputError: a network in training mode, in which a sample's outcome depends on its batch mates.
    """

    model: nn.Module
    samples: Samples
    labels: Int[np.ndarray, "n"]
    sites: Sequence[str]
    prefix: str = ""
    fill: str = "zero"
    values: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Sequence[int] | None = None
    seed: int = 0
    batch_size: int = 64
    layouts: Mapping[str, Layout | str] = field(default_factory=dict)
    forwards: int = 0
    _known: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)
    _lasting: set[bytes] = field(default_factory=set, repr=False)
    _layouts: dict[str, Layout] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.model.training:
            raise InputError("the network is in training mode; call model.eval() first")

    def hits(
        self, conditions: Iterable[Condition], places: Sequence[int], progress: Callable[[], None] = lambda: None
    ) -> dict[bytes, Bool[np.ndarray, "p 2"]]:
        """Whether each sample's label is the first, and among the first five, by condition.

        Each batch of samples is loaded once for all conditions. Cost: one forward pass for each condition and batch
        that is not known yet. `progress` is called after each batch.
        """
        wanted = {condition.key: condition for condition in conditions}
        chosen = np.asarray(places, dtype=np.int64)
        for key, condition in wanted.items():
            self._known.setdefault(key, np.full((len(self.labels), len(RANKS)), _UNKNOWN, np.uint8))
            self._lasting |= {key} if condition.lasting or not key else set()
        for start in range(0, len(chosen), self.batch_size):
            self._batch(list(wanted.values()), chosen[start : start + self.batch_size])
            progress()
        found = {key: self._known[key][chosen].astype(bool) for key in wanted}
        for key in set(self._known) - self._lasting:
            del self._known[key]
        return found

    def _batch(self, conditions: Sequence[Condition], places: np.ndarray) -> None:
        loaded: Tensor | None = None
        for condition in conditions:
            known = self._known[condition.key]
            missing = known[places, 0] == _UNKNOWN
            if not missing.any():
                continue
            if loaded is None:
                loaded = torch.stack([self.samples.load(self.samples.names[int(place)]).inputs for place in places])
            new = places[missing]
            known[new] = self._run(condition, loaded[torch.from_numpy(missing)], new)

    def _run(self, condition: Condition, inputs: Tensor, places: np.ndarray) -> np.ndarray:
        parameter = next(self.model.parameters(), torch.zeros(()))
        inputs = inputs.to(parameter.device, parameter.dtype)
        numbers = None if self.numbers is None else [self.numbers[int(place)] for place in places]
        removed = {site: one for site, one in condition.removed.items() if one.any()}
        if removed and not self._layouts:
            self._look(inputs[:1], {site: len(one) for site, one in condition.removed.items()})
        edits = {self.prefix + site: self._edit(site, one) for site, one in removed.items()}
        inside = control(self.model, edits, numbers) if edits else nullcontext()
        with torch.no_grad(), inside:
            logits = output_tensor(self.model(inputs))
        self.forwards += 1
        return hits(logits, torch.from_numpy(self.labels[places])).numpy()

    def _edit(self, site: str, removed: np.ndarray) -> ChannelEdit:
        channels = [int(channel) for channel in np.flatnonzero(removed)]
        values = self.values.get(site)
        return ChannelEdit(channels, fill=self.fill, values=values, layout=self._layouts[site], seed=self.seed)

    def _look(self, inputs: Tensor, widths: Mapping[str, int]) -> None:
        """Find where the channels are, and that they are as many as are ordered."""
        addresses = {self.prefix + site: self.layouts.get(site) for site in self.sites}
        layouts = site_layouts(self.model, inputs, addresses)
        values = site_values(self.model, inputs, addresses)
        for site in self.sites:
            layout = layouts[self.prefix + site]
            there = layout.flattened(values[self.prefix + site]).shape[1]
            if widths.get(site, there) != there:
                what = "rows of heads, or of another network"
                raise InputError(f"{widths[site]} channels were ordered at {site!r}, which has {there}: {what}")
            self._layouts[site] = layout


def hits(logits: Float[Tensor, "N K"], labels: Int[Tensor, "N"]) -> Bool[Tensor, "N 2"]:
    """Whether the label is the first, and among the first five. Of equal logits the lower class goes first; a sample
    with NaN among its logits is wrong.

    Raises:
        InputError: a label that is no class of the network.
    """
    logits, count = logits.detach().cpu(), logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise InputError(f"labels from {int(labels.min())} to {int(labels.max())} for a network of {count} classes")
    own = logits.gather(1, labels[:, None])
    before = (logits > own) | ((logits == own) & (torch.arange(count) < labels[:, None]))
    rank = before.sum(1)
    defined = ~logits.isnan().any(1)
    return torch.stack([(rank < most) & defined for most in RANKS], 1)


def removed_at(order: Int[np.ndarray, "C"], fraction: float, action: str) -> Bool[np.ndarray, "C"]:
    """The channels removed: the first int(C x fraction) of an order, or all but these."""
    first = np.zeros(len(order), dtype=bool)
    first[order[: channel_count(len(order), fraction)]] = True
    return first if action == "ablate" else ~first


def channel_count(channels: int, fraction: float) -> int:
    """int(C x fraction), the paper's; 100 x 0.29 counts as 29, which binary fractions do not give."""
    return int(channels * fraction + 1e-9)


def donor_numbers(count: int, reference: Sequence[int]) -> list[int]:
    """Numbers of `count` samples for `control`: one that is a reference has its place there, and never itself."""
    numbers: list[Any] = list(range(count))
    for place, sample in enumerate(reference):
        numbers[sample] = place
    return numbers
