"""Checkpointing: what modules compute inside is not held for the backward pass, but computed again in it.

An explanation then holds what goes into each of the modules, and the inside of one of them at a time (Chen et al. 2016,
Training deep nets with sublinear memory cost), for one more forward pass. What `torch.utils.checkpoint` computes again
would run without the rules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.rules import Mark, needs_gradient
from backlight.engine.run import Run, current_run, running
from backlight.engine.sites import captured
from backlight.engine.structures import mapped, tensors_of
from backlight.errors import InputError, ModelError, UnknownNameError


@contextmanager
def checkpointed(model: nn.Module, layers: str | Iterable[str]) -> Iterator[None]:
    """Checkpoint these modules of `model` in every explanation that is computed while the context lasts.

    Values and relevance stay what they are, up to the rounding of a second pass; sites inside the modules can be read.
    The model is not written to. For long texts and large pictures: `checkpointed(network, default_sites(network))`.

    Args:
        layers: dotted names of modules that are functions of what they are called with, such as a transformer's
            blocks.

    Raises:
        UnknownNameError: a name that is no module's.
        InputError, in an explanation: one that will be differentiated itself, counts the share of the biases, reads
            `@features`, or has rules that need the whole pass (SRD, FullGrad).
        SiteError, in an explanation: a target that reads inside one of the modules.
        ModelError, in an explanation: a module that gives a gate, a mean or weights to those behind it; other hooks on
            it that would act twice.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name in dict.fromkeys((layers,) if isinstance(layers, str) else layers):
            if not name or name not in modules:
                raise UnknownNameError("layer", name, [one for one in modules if one])
            stack.callback(_Bracket(modules[name]).remove)
        yield


_local = threading.local()


def _again() -> list[nn.Module]:
    """The modules that are computed again in this thread."""
    if not hasattr(_local, "again"):
        _local.again = []
    return _local.again


class _Bracket:
    """The hooks on a module between which is what will be computed again."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
        self._after = module.register_forward_hook(self._leave, always_call=True)

    def remove(self) -> None:
        self._before.remove()
        self._after.remove()

    def check(self) -> None:
        """Raise `ModelError` where hooks stand outside the bracket: calling the module again would call them too."""
        first, last = next(iter(self.module._forward_pre_hooks)), next(reversed(self.module._forward_hooks))
        if (first, last) != (self._before.id, self._after.id):
            raise ModelError(
                f"other hooks on a checkpointed {type(self.module).__name__} would act twice: edit outputs outside of "
                "checkpointed(), inputs inside, or leave that module out"
            )

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        run = current_run()
        if run is None or not torch.is_grad_enabled() or any(one is module for one in _again()):
            return None
        _check(run)
        with torch._C.DisableTorchFunction():
            call = run.present(args), {key: run.present(value) for key, value in kwargs.items()}
            run.checkpoints.append(_Checkpoint.of(run, self, call))
            torch.set_grad_enabled(False)
            return mapped(call, Tensor, lambda x: x.detach().clone() if x.requires_grad else x)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = current_run()
        if run is None or not run.checkpoints or run.checkpoints[-1].bracket is not self:
            return None
        torch.set_grad_enabled(True)
        return run.checkpoints.pop().attached(output)


def _check(run: Run) -> None:
    whole = next((rules.name for rules in (run.rules, *run.rules.layers.values()) if rules.whole), None)
    why = {
        "is differentiated itself": run.phase.differentiable,
        "counts the share of the biases": run.one is not None,
        "reads '@features'": run.observe,
        f"has rules that need the whole pass ({whole})": whole is not None,
    }
    for words in (words for words, holds in why.items() if holds):
        raise InputError(f"an explanation that {words} cannot have checkpointed modules")


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor that autograd holds."""

    number: int


@dataclass(eq=False)
class _Checkpoint:
    """One call of a module. `inputs`: what it was called with and is differentiated in; they go when it is done."""

    run: Run
    bracket: _Bracket
    call: Any
    inputs: list[Tensor]
    marks: list[Mark | None]
    autocast: tuple[str, torch.dtype, bool] | None
    sites: tuple[str, ...] = field(default=(), init=False)

    @classmethod
    def of(cls, run: Run, bracket: _Bracket, call: Any) -> _Checkpoint:
        inputs: list[Tensor] = []

        def place(x: Tensor) -> Any:
            if not needs_gradient(x):
                return x
            inputs.append(x)
            return _Place(len(inputs) - 1)

        held = mapped(call, Tensor, place)
        marks = [run.marks.get(x) for x in inputs]
        for mark in marks:
            if mark is not None and mark.kind != "input":
                raise _cuts_through(bracket.module, mark)
        marks = [None if m is None else replace(m, source=_detached(m, x)) for m, x in zip(marks, inputs, strict=True)]
        kind = inputs[0].device.type if inputs else None
        autocast = None
        if kind is not None and torch.amp.is_autocast_available(kind):
            autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return cls(run, bracket, held, inputs, marks, autocast)

    def attached(self, output: Any) -> Any:
        """The output, in the graph."""
        inside, self.run.inside = self.run.inside, {}
        self.sites = tuple(inside)
        given, self.inputs = self.inputs, []
        results = _results(output)
        if not results or not (given or inside):
            return output
        with torch._C.DisableTorchFunction():
            places = {id(x): number for number, x in enumerate(results)}
            found = _Recomputed.apply(self, len(given), results, *given, *inside.values())
        for x in found:
            self.run.keep(x)
        return mapped(output, Tensor, lambda x: found[places[id(x)]] if id(x) in places else x)

    def cotangents(self, inputs: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """Of the inputs, and of what was captured inside: from one more forward pass under the same rules."""
        self.bracket.check()
        run = self.run
        leaves = [x.detach().requires_grad_() for x in inputs]
        args, kwargs = mapped(self.call, _Place, lambda place: leaves[place.number])
        settings: dict[str, Any] = {"strict": run.strict, "parameters": run.parameters, "samples": run.samples}
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if self.autocast is not None:
                kind, dtype, enabled = self.autocast
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            again = stack.enter_context(running(run.model, run.rules, **settings))
            for leaf, mark in zip(leaves, self.marks, strict=True):
                again.keep(leaf)
                if mark is not None:
                    again.marks[leaf] = replace(mark, source=leaf) if mark.source is None else mark
            with captured(run.model, self.sites, again.watch) as store:
                results = self._computed(args, kwargs)
            for x in results:
                if x in again.marks:
                    raise _cuts_through(self.bracket.module, again.marks[x])
        pairs = [(y, c) for y, c in zip(results, cotangents, strict=True) if c is not None and y.requires_grad]
        wanted = [*leaves, *(store[site] for site in self.sites)]
        found: tuple[Any, ...] = (None,) * len(wanted)
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True)
        run.coverage.merge(again.coverage)  # with what was computed again within it
        return found

    def _computed(self, args: Any, kwargs: Any) -> list[Tensor]:
        _again().append(self.bracket.module)
        try:
            return _results(self.bracket.module(*args, **kwargs))
        finally:
            _again().pop()


def _results(output: Any) -> list[Tensor]:
    """What a module gives that has gradients, each once."""
    return list({id(x): x for x in tensors_of(output) if x.is_floating_point()}.values())


def _detached(mark: Mark, x: Tensor) -> Tensor | None:
    """What the mark carries, without its graph; None where that is the tensor itself."""
    return None if mark.source is x or mark.source is None else mark.source.detach()


def _cuts_through(module: nn.Module, mark: Mark) -> ModelError:
    return ModelError(
        f"checkpointing {type(module).__name__} would part its {mark.kind} from what that is for: name whole blocks"
    )


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, checkpoint: _Checkpoint, count: int, results: list[Tensor], *leaves: Tensor) -> Any:
        ctx.checkpoint = checkpoint
        ctx.save_for_backward(*leaves[:count])
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, *ctx.checkpoint.cotangents(ctx.saved_tensors, cotangents)
