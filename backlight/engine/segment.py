"""Segment: the part of a model between two sites, run on its own, as a function of the tensor at the first.

Nothing of the model is copied or cut. What lies before the first site is skipped: the torch functions that the model
calls there are answered with stand-ins of the recorded shapes, and with the recorded values where a later part asks
for them (a connection that leaps over the site). What lies behind the second is not reached.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.run import running
from backlight.engine.sites import INPUT, Edit, Site, edited
from backlight.engine.structures import mapped, tensors_of
from backlight.engine.targets import output_tensor
from backlight.errors import InputError, SiteError
from backlight.shapes import Float

OUTPUT = "output"
FEW = 3  # entries of the passes that tell what more of them give


class _Reached(Exception):
    """The second site is there: the rest of the model is not run."""


@dataclass
class _Recording:
    """Of one batch size: what each call before the first site gave, and which of it is asked for behind it."""

    results: list[Any]
    needed: dict[int, Tensor]


@dataclass(eq=False)
class Segment:
    """A model from site `start` to site `stop`, differentiable in the tensor at `start`.

    `start`: an address, or `input`. `stop`: an address, or `output`, the tensor that targets read of the model's
    outputs. `rules`: how cotangents travel. `skip=False`: run what lies before `start` too.

    `start_value`, `stop_value`: what the model has there at `inputs`, `[N, ...]`.

    Raises:
        UnknownNameError, SiteError: a site that is not there, has no tensor, is called several times and not said
            which, or a `stop` that comes before `start`.
        ModelError: a model in training mode.
    """

    model: nn.Module
    inputs: Tensor | Inputs
    start: str
    stop: str = OUTPUT
    rules: RuleSet = GRADIENT
    strict: bool = True
    skip: bool = True
    start_value: Tensor = field(init=False, repr=False)
    stop_value: Tensor = field(init=False, repr=False)
    _given: Inputs = field(init=False, repr=False)
    _recordings: dict[int | tuple[int, ...], _Recording] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._given = (self.inputs,) if isinstance(self.inputs, Tensor) else tuple(self.inputs)
        seen: list[str] = []

        def note(address: str) -> Edit:
            def edit(value: Tensor) -> Tensor:
                seen.append(address)
                setattr(self, "start_value" if address == self.start else "stop_value", value.detach().clone())
                return value

            return edit

        check_evaluation_mode(self.model)
        if self.start == self.stop:
            raise SiteError(f"a segment lies between two sites, got {self.start!r} twice")
        sites = [site for site in (self.start, self.stop) if site not in (INPUT, OUTPUT)]
        with torch.no_grad(), edited(self.model, {site: note(site) for site in sites}):
            outputs = self.model(*self._given)
        for site in sites:
            if seen.count(site) != 1 and Site.parse(site).call is None:
                raise SiteError(
                    f"site {site!r} was reached {seen.count(site)} times"
                    + (f": say which with {site + '#0'!r}" if site in seen else " in the forward pass")
                )
        if len(sites) == 2 and seen.index(self.stop) < seen.index(self.start):
            raise SiteError(f"{self.stop!r} comes before {self.start!r}: a segment runs forwards")
        if self.start == INPUT:
            self.start_value = self._given[0].detach()
        if self.stop == OUTPUT:
            self.stop_value = output_tensor(outputs).detach()

    def __call__(self, value: Float[Tensor, "B *start"], rows: Tensor | None = None) -> Float[Tensor, "B *stop"]:
        """The tensor at `stop` when that at `start` is `value`.

        `rows` `[B]`: of which of the inputs each entry is a version; None: of the only one, or each of its own. The
        backward pass may be taken later. What lies before `start` is computed once, for at most three entries; where
        values leap over `start`, once for each choice of rows.

        Raises:
            InputError: numbers of entries and inputs that do not agree, or a value of another shape.
        """
        rows = self._rows(value, rows)
        if self.start == INPUT:
            arguments = (value, *(argument[rows.to(argument.device)] for argument in self._given[1:]))
            return self._until_stop(arguments, {})
        found = self._recorded(rows) if self.skip else None
        arguments = tuple(argument[rows.to(argument.device)] for argument in self._given)
        if found is None:
            return self._until_stop(arguments, {self.start: lambda _: value.clone()})
        replay = _Replay(found)

        def begin(_: Tensor) -> Tensor:
            replay.skipping = False
            return value.clone()  # the model may write to it in place

        return self._until_stop(arguments, {self.start: begin}, replay)

    def under(self, rules: RuleSet) -> Segment:
        """The same segment under other rules; what is known of the model before `start` is shared."""
        found = copy.copy(self)
        found.rules = rules
        return found

    def _rows(self, value: Tensor, rows: Tensor | None) -> Tensor:
        count = len(self.start_value)
        if value.shape[1:] != self.start_value.shape[1:]:
            raise InputError(
                f"{self.start!r} holds {list(self.start_value.shape[1:])} a sample, got {list(value.shape[1:])}"
            )
        if rows is None:
            if count not in (1, len(value)):
                raise InputError(f"{len(value)} values for {count} inputs: say by rows= which each is a version of")
            return torch.arange(len(value)) if count > 1 else torch.zeros(len(value), dtype=torch.long)
        if len(rows) != len(value):
            raise InputError(f"{len(rows)} rows for {len(value)} values")
        return rows

    def _until_stop(self, arguments: Inputs, edits: dict[str, Edit], mode: TorchFunctionMode | None = None) -> Tensor:
        reached: list[Tensor] = []

        def end(value: Tensor) -> Tensor:
            reached.append(value)
            raise _Reached

        sites = dict(edits) if self.stop == OUTPUT else {**edits, self.stop: end}
        with edited(self.model, sites), running(self.model, self.rules, strict=self.strict, samples=len(arguments[0])):
            try:
                with mode or nullcontext():
                    outputs = self.model(*arguments)
            except _Reached:
                return reached[0]
        if self.stop != OUTPUT:
            raise SiteError(f"site {self.stop!r} was not reached")
        return output_tensor(outputs)

    def _recorded(self, rows: Tensor) -> _Recording | None:
        """What the model computes before `start` for these rows; None where it cannot be skipped."""
        for key in (len(rows), tuple(rows.tolist())):  # a number where no value leaps over the site, else which rows
            if key in self._recordings:
                return self._recordings[key]
        if len(rows) > FEW:
            found = self._told_by_few(rows)
            if found is not None or not self.skip:
                return found
        return self._record(rows)

    def _told_by_few(self, rows: Tensor) -> _Recording | None:
        """What passes of one, two and three entries tell of a pass of more; None where values are asked for."""
        one, two, three = (self._recordings.get(n) or self._record(rows[:1].repeat(n)) for n in range(1, FEW + 1))
        if one is None or two is None or three is None or one.needed or two.needed or three.needed:
            return None
        try:
            if _continued(one.results, two.results, FEW) != three.results:
                return None
            found = _Recording(_continued(one.results, two.results, len(rows)), {})
        except _Unseen:
            return None
        self._recordings[len(rows)] = found
        return found

    def _record(self, rows: Tensor) -> _Recording | None:
        recorder = _Recorder()
        checks: list[Tensor] = []

        def begin(value: Tensor) -> Tensor:
            recorder.before = False
            with torch._C.DisableTorchFunction():
                checks.append(value.detach().clone())
                return value.clone()  # no result of what lies before

        def end(value: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                checks.append(value.detach().clone())
            raise _Reached

        arguments = tuple(argument[rows.to(argument.device)] for argument in self._given)
        sites = {self.start: begin} if self.stop == OUTPUT else {self.start: begin, self.stop: end}
        with torch.no_grad(), edited(self.model, sites), recorder, suppress(_Reached):
            checks.append(output_tensor(self.model(*arguments)))
        found = recorder.recording()
        self._recordings[tuple(rows.tolist()) if found.needed else len(rows)] = found
        if not self._answers(found, arguments, *checks):
            self.skip = False
            self._recordings.clear()
            return None
        return found

    def _answers(self, found: _Recording, arguments: Inputs, start: Tensor, stop: Tensor) -> bool:
        """Whether the segment gives what the model gave: not where the model computes unseen before `start`."""
        replay = _Replay(found)

        def begin(_: Tensor) -> Tensor:
            replay.skipping = False
            return start.clone()

        with torch.no_grad():
            try:
                again = self._until_stop(arguments, {self.start: begin}, replay)
            except (_Unseen, RuntimeError):
                return False
        return torch.equal(again, stop) or torch.allclose(again, stop, rtol=1e-4, atol=1e-6, equal_nan=True)


class _Unseen(Exception):
    """A call that was not recorded: the model does not run as it did."""


class _Recorder(TorchFunctionMode):
    """Notes the results of torch functions before the first site, and which of them are used behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = True
        self._results: list[Any] = []
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._needed: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.before:
            for tensor in tensors_of((args, kwargs)):
                number = self._made.get(tensor)
                if number is not None and number not in self._needed:
                    self._needed[number] = tensor.detach().clone()
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        self._results.append(mapped(result, (Tensor, _StandIn), self._stand_in))
        return result

    def _stand_in(self, tensor: Tensor) -> _StandIn:
        number = len(self._results) if tensor not in self._made else self._made[tensor]
        self._made[tensor] = number
        return _StandIn(number, tensor.shape, tensor.dtype, tensor.device)

    def recording(self) -> _Recording:
        return _Recording(self._results, self._needed)


@dataclass(frozen=True)
class _StandIn:
    """What is known of a tensor that is not computed."""

    number: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Replay(TorchFunctionMode):
    """Answers torch functions before the first site from a recording, and lets the others pass."""

    def __init__(self, found: _Recording) -> None:
        super().__init__()
        self.skipping = True
        self._found, self._next = found, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.skipping:
            return function(*args, **(kwargs or {}))
        if self._next >= len(self._found.results):
            raise _Unseen
        result = self._found.results[self._next]
        self._next += 1
        return mapped(result, (Tensor, _StandIn), self._made)

    def _made(self, one: _StandIn) -> Tensor:
        known = self._found.needed.get(one.number)
        if known is not None:
            return known.clone()
        return torch.zeros((), dtype=one.dtype, device=one.device).expand(one.shape)


def _continued(one: Any, two: Any, count: int) -> Any:
    """What a pass of `count` entries gives, where passes of one and of two gave this: sizes go on evenly.

    Raises:
        _Unseen: they do not go on so.
    """
    if isinstance(one, _StandIn) and isinstance(two, _StandIn) and one.number == two.number:
        return replace(one, shape=_continued(one.shape, two.shape, count))
    if type(one) is not type(two) or isinstance(one, _StandIn):
        raise _Unseen
    if isinstance(one, (tuple, list)):
        if len(one) != len(two):
            raise _Unseen
        items = [_continued(*items, count) for items in zip(one, two, strict=True)]
        return type(one)(*items) if hasattr(one, "_fields") else type(one)(items)
    if type(one) is int:
        return one + (count - 1) * (two - one)
    if one != two:
        raise _Unseen
    return one
