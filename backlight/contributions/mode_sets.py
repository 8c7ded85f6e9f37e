"""The channels that stand for a mode in a map, and the modes that stand for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from backlight.contributions.control_directions import by_channel
from backlight.contributions.correlation import correlate
from backlight.contributions.modes import labels_of, top_channels
from backlight.errors import InputError

if TYPE_CHECKING:
    from backlight.contributions.decomposed import Decomposed


@dataclass(frozen=True)
class ChannelSet:
    """Channels, best first. `mode`: whose they are; `r`: its correlation with the class it was chosen for."""

    channels: tuple[int, ...]
    mode: int | None = None
    r: float | None = None

    @property
    def title(self) -> str:
        """`channels 3, 17` or `mode 12, r 0.41: channels 3, 17`; a long list is cut."""
        shown = ", ".join(map(str, self.channels[:4])) + (", ..." if len(self.channels) > 4 else "")
        channels = f"channel{'s' if len(self.channels) > 1 else ''} {shown}"
        if self.mode is None:
            return channels
        return f"mode {self.mode}{'' if self.r is None else f', r {self.r:.2f}'}: {channels}"


def mode_sets(decomposed: Decomposed, modes: Sequence[int], top: int = 3) -> list[ChannelSet]:
    """The `top` channels of each mode, by signed weight (the paper's maps take 3, unweighted: Fig. 7).

    Of negative parts the most negative weights count; where both parts of a channel were decomposed, their sum.

    Raises:
        InputError: a mode that is not there, or more channels than there are.
    """
    weights = by_channel(decomposed.modes.cpu().float(), decomposed.sign)
    for mode in modes:
        if not 0 <= mode < len(weights):
            raise InputError(f"there is no mode {mode}: {decomposed.site!r} has {len(weights)}, numbered from 0")
    return [ChannelSet(tuple(top_channels(weights[mode], count=top).tolist()), mode) for mode in modes]


def class_sets(decomposed: Decomposed, index: int, count: int = 3, top: int = 3, by: str = "label") -> list[ChannelSet]:
    """The channels of the `count` modes whose loadings correlate best with a class, best first.

    `by`: "label", or "prediction", what the network took the samples for.

    Raises:
        InputError: no sample of the class, or none of another.
        UnknownNameError: another `by`.
    """
    inside = torch.from_numpy(labels_of(decomposed, by) == index)
    if not bool(inside.any()) or bool(inside.all()):
        which = "all samples are" if bool(inside.any()) else "no sample is"
        raise InputError(f"{which} of class {index} by {by}: nothing correlates with it; name the modes")
    r = correlate(decomposed.loadings, inside[:, None])[:, 0]
    best = top_channels(r, count=min(count, len(r))).tolist()
    sets = mode_sets(decomposed, best, top)
    return [ChannelSet(one.channels, one.mode, float(r[mode])) for one, mode in zip(sets, best, strict=True)]
