"""Control: what a network does when channels are removed, or when nothing but them is left (CODEC, section 5).

The paper sets the channels of a mode to zero at all positions, or all the others. A contribution is measured against a
baseline's activation, which is not zero: mean and resampled activations remove what a channel says and leave the
network where it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.reduction import Layout, layout_of
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.sites import Edit, edited
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.shapes import Bool, Float, Int
from backlight.store.rows import Rows, pieces

ACTIONS = ("ablate", "preserve")
FILLS = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class ChannelEdit:
    """What happens to the channels of one site.

    - `channels`: their numbers, in any order;
    - `action`: `"ablate"` removes them, `"preserve"` removes all the others;
    - `fill`: what removed channels hold: `"zero"` (the paper); `"mean"`, with `values` `[C]`, or of the site's shape
      without the batch, as `site_means` gives it; `"resample"`: the activation of another input, with `values`
      `[R, *site]`, as `site_values` gives them (see `donors`);
    - `layout`: where the channels are (`"maps"`, `"tokens+1"`, a `Layout`); None: as `layout_of` finds them;
    - `class_token`: False leaves prefix tokens (class, registers) as they are;
    - `seed`: of the draw of resampled activations.

    Raises:
        UnknownNameError: another action or fill.
        InputError: no values where they are needed, or values that are not used; negative or repeated channels.
    """

    channels: Sequence[int] | Int[Tensor, "k"]
    action: str = "ablate"
    fill: str = "zero"
    values: Tensor | None = None
    layout: Layout | str | None = None
    class_token: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UnknownNameError("action", self.action, ACTIONS)
        if self.fill not in FILLS:
            raise UnknownNameError("fill", self.fill, FILLS)
        if (self.values is None) != (self.fill == "zero"):
            needed = "needs values" if self.values is None else "has no use for values"
            raise InputError(f"fill {self.fill!r} {needed}; see site_means and site_values")
        given = torch.as_tensor(self.channels).detach().cpu()
        if given.numel() and (given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool):
            raise InputError(f"channels are a list of numbers, got {given.dtype} {list(given.shape)}")
        numbers = [int(channel) for channel in given.flatten()]
        if len(set(numbers)) < len(numbers) or min(numbers, default=0) < 0:
            raise InputError(f"channels are different numbers from 0, got {numbers[:12]}")
        object.__setattr__(self, "channels", tuple(numbers))

    def removed(self, width: int) -> Bool[Tensor, "C"]:
        """Which of `width` channels are removed. Raises `InputError` for a channel that is not among them."""
        chosen = torch.zeros(width, dtype=torch.bool)
        if max(self.channels, default=0) >= width:
            raise InputError(f"channel {max(self.channels)} of a site with the channels 0 to {width - 1}")
        chosen[list(self.channels)] = True
        return chosen if self.action == "ablate" else ~chosen

    def applied(self, value: Tensor, layout: Layout, samples: Sequence[int] | None = None) -> Tensor:
        """The site's value with its channels removed. `samples`: the numbers of the batch's samples, for `donors`.

        What is kept is kept bit for bit; gradients of what is removed are zero, and those of the rest untouched.
        """
        removed, filling = self.parts(value, layout, samples)
        return torch.where(removed, filling, value)

    def parts(self, value: Tensor, layout: Layout, samples: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """What is removed of a site's value, and what comes in its place; both broadcast to it."""
        axis = channel_axis(layout)
        shape = [1] * value.ndim
        shape[axis] = value.shape[axis]
        removed = self.removed(value.shape[axis]).reshape(shape)
        if not self.class_token and layout.prefix:
            removed = removed & (torch.arange(value.shape[1]) >= layout.prefix)[None, :, None]
        return removed.to(value.device), self._filling(value, shape, samples)

    def _filling(self, value: Tensor, shape: list[int], samples: Sequence[int] | None) -> Tensor:
        if self.values is None:
            return torch.zeros((), dtype=value.dtype, device=value.device)
        given = self.values.detach()
        if self.fill == "mean":
            whole = given.shape == value.shape[1:]
            if not whole and given.shape != (max(shape),):
                raise InputError(f"means {list(given.shape)} fit no site {list(value.shape)}: [C], or the site's shape")
            return (given[None] if whole else given.reshape(shape)).to(value)
        if given.ndim < 2 or given.shape[1:] != value.shape[1:]:
            raise InputError(f"values to resample {list(given.shape)} are [R, ...] of the site {list(value.shape)}")
        if samples is not None and len(samples) != len(value):
            raise InputError(f"{len(samples)} numbers of samples for a batch of {len(value)}")
        return given[donors([0] if samples is None else samples, len(given), self.seed).to(given.device)].to(value)


def channel_axis(layout: Layout) -> int:
    """The axis of the channels: 1 of maps and vectors, else the last."""
    return 1 if layout.kind in ("maps", "vectors") else -1


def donors(samples: Sequence[int], count: int, seed: int = 0) -> Int[Tensor, "N"]:
    """Which of `count` reference inputs each sample takes its activations from.

    A random cycle through all references: sample i takes the successor of i mod `count`. It depends on the sample's
    number and the seed alone, and a reference whose number is the sample's own never comes to itself.
    """
    generator = torch.Generator().manual_seed(seed)
    cycle = torch.randperm(count, generator=generator)
    successor = torch.empty(count, dtype=torch.long)
    successor[cycle] = cycle.roll(-1)
    return successor[torch.as_tensor([int(sample) % count for sample in samples], dtype=torch.long)]


@contextmanager
def control(model: nn.Module, edits: Mapping[str, ChannelEdit], samples: Sequence[int] | None = None) -> Iterator[None]:
    """Remove channels at one or several sites of a network while the context lasts; nothing is left after it.

    A network is explained, or run in half precision, as it is without: the edit is a selection, which every rule set
    answers for exactly. Contexts may be nested; the inner one acts on what the outer one left.

    Args:
        edits: `{site: ChannelEdit}`, sites as in `backlight.engine.sites` (`layer4.1`, `blocks.3.mlp.fc2:input`).
        samples: the numbers of the samples of every batch that is run here, where `fill="resample"` should give each
            its own donor; without them all samples of all batches have the same one.

    Raises:
        UnknownNameError: a site that is no module of the model.
        SiteError: a site without channels; at the end, a site that no forward pass of the model came to.
        InputError: channels or values that do not fit the site.
    """
    numbers = None if samples is None else [int(sample) for sample in samples]
    layouts: dict[str, Layout] = {}

    def act(address: str, value: Tensor, size: Any) -> Tensor:
        edit = edits[address]
        if address not in layouts:
            layouts[address] = layout_of(value, model, address, size=size, layout=edit.layout)
        return edit.applied(value, layouts[address], numbers)

    with _passing(model, edits, act) as passes:
        yield
    missed = [address for address in edits if address not in layouts]
    if passes.runs and missed:
        raise SiteError(f"site {missed[0]!r} was not reached in {passes.runs} forward passes: nothing was edited there")


def constant_parts(
    model: nn.Module, edits: Mapping[str, ChannelEdit], inputs: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """What `ChannelEdit.parts` gives at each site, of any input of the size of an example. Raises as `control` does."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(address: str, value: Tensor, layout: Layout) -> None:
        found[address] = edits[address].parts(value, layout)

    _watch(model, inputs, {address: edit.layout for address, edit in edits.items()}, note, once=False)
    return {address: found[address] for address in edits}


Layouts = Mapping[str, Layout | str | None] | Iterable[str]


def site_layouts(model: nn.Module, inputs: Tensor, sites: Layouts) -> dict[str, Layout]:
    """Where channels and positions are at sites. Cost: one forward pass, without gradients.

    Raises:
        UnknownNameError: a site that is no module of the model.
        SiteError: a site without channels, or whose layout cannot be told, or that the inputs do not come to.
    """
    found: dict[str, Layout] = {}
    wanted = _layouts(sites)
    _watch(model, inputs, wanted, lambda site, _, layout: found.update({site: layout}), once=False)
    return {site: found[site] for site in wanted}


def site_means(
    model: nn.Module, inputs: Tensor | Iterable[Tensor], sites: Layouts, positions: bool = False
) -> dict[str, Tensor]:
    """The mean activation at sites, over inputs and positions, `[C]`; with `positions` over inputs alone.

    Sums over inputs are float64. Cost: one forward pass, without gradients. `inputs`: a batch, or several. `sites`:
    addresses, with their layouts where these cannot be found.

    Raises:
        InputError: no inputs.
        SiteError: a site that a forward pass does not come to, or more than once.
    """
    wanted, sums, count = _layouts(sites), dict[str, Tensor](), 0

    def add(address: str, value: Tensor, layout: Layout) -> None:
        value = value if value.dtype == torch.float64 else value.float()
        value = value if positions else layout.flattened(value).mean(2)
        total = value.cpu().double().sum(0)
        sums[address] = sums[address] + total if address in sums else total

    for batch in (inputs,) if isinstance(inputs, Tensor) else inputs:
        _watch(model, batch, wanted, add)
        count += len(batch)
    if not count:
        raise InputError("the mean of no inputs")
    return {address: sums[address] / count for address in wanted}


def site_values(model: nn.Module, inputs: Tensor | Iterable[Tensor], sites: Layouts) -> dict[str, Tensor]:
    """The activations of reference inputs at sites, `[R, *site]`, on the CPU. Raises as `site_means` does."""
    wanted, parts = _layouts(sites), dict[str, list[Tensor]]()

    def keep(address: str, value: Tensor, layout: Layout) -> None:  # a copy: what follows may write to it
        parts.setdefault(address, []).append(value.to("cpu", copy=True))

    for batch in (inputs,) if isinstance(inputs, Tensor) else inputs:
        _watch(model, batch, wanted, keep)
    if not parts:
        raise InputError("the activations of no inputs")
    return {address: torch.cat(parts[address]) for address in wanted}


def mean_of_rows(rows: Rows, positions: int) -> Float[Tensor, "C"]:
    """The mean activation of channels from a store's rows, which are sums over `positions` (all tokens, all pixels)."""
    if positions < 1:
        raise InputError(f"a channel has at least one position, got {positions}")
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _, piece in pieces(rows):
        total += piece.double().sum(0)
    return total / rows.shape[0] / positions


def _layouts(sites: Layouts) -> dict[str, Layout | str | None]:
    return dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites)


@dataclass
class _Passes:
    """Forward passes of a model: how many, and the (H, W) of the present one's input."""

    runs: int = 0
    size: Any = None


@contextmanager
def _passing(
    model: nn.Module, addresses: Iterable[str], act: Callable[[str, Tensor, Any], Tensor]
) -> Iterator[_Passes]:
    """Pass what comes to sites through `act(address, value, size)`; calls are counted in each forward pass anew."""
    passes = _Passes()

    def at(address: str) -> Edit:
        return lambda value: act(address, value, passes.size)

    with edited(model, {address: at(address) for address in addresses}) as counts:

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            passes.runs += 1
            sizes = [value.shape[2:] for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            passes.size = sizes[0] if sizes and len(sizes[0]) > 1 else None
            for count in counts.values():
                count[0] = 0

        hook = model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
        try:
            yield passes
        finally:
            hook.remove()


def _watch(
    model: nn.Module,
    batch: Tensor,
    sites: Mapping[str, Layout | str | None],
    see: Callable[[str, Tensor, Layout], None],
    once: bool = True,
) -> None:
    """Show what comes to the sites in one forward pass without gradients, detached."""
    check_evaluation_mode(model)
    seen = dict.fromkeys(sites, 0)

    def act(address: str, value: Tensor, size: Any) -> Tensor:
        seen[address] += 1
        if once and seen[address] > 1:
            raise SiteError(f"site {address!r} is reached several times: say which with {address + '#0'!r}")
        see(address, value.detach(), layout_of(value, model, address, size=size, layout=sites[address]))
        return value

    with torch.no_grad(), _passing(model, sites, act):
        model(batch)
    for address, calls in seen.items():
        if not calls:
            raise SiteError(f"site {address!r} was not reached in a forward pass")
