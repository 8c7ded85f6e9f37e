"""The run: forward passes under a rule set.

A torch function mode intercepts what the model calls, so the model is never written to. `running(model, rules)` is the
context in which forward passes are recorded; the backward pass may be taken outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from backlight.engine.adjoint import Phase
from backlight.engine.coverage import Coverage
from backlight.engine.memory import Memory
from backlight.engine.operations import (
    AFFINE,
    MAPS,
    PRODUCTS,
    STRUCTURAL,
    is_in_place,
    is_metadata,
    operation_name,
    out_of_place,
)
from backlight.engine.rules import GRADIENT, Call, Mark, Rule, RuleSet, matches, needs_gradient
from backlight.engine.sites import Site
from backlight.errors import ModelError, SiteError, UncoveredOperationError, UnknownNameError


class Run(TorchFunctionMode):
    """One or more forward passes under a rule set: intercepts torch functions and keeps the coverage table.

    Parameters are replaced by detached aliases (or by what `parameters` maps them to), so that nothing is kept for
    gradients nobody asked for. `one`: the augmented coordinate of appendix D of the Semantic Pullbacks paper; where it
    is given, every additive constant is multiplied by it, and its gradient is the share of the biases.
    `differentiable`: the explanation will be differentiated; `phase.explaining` has to be set to False before that.
    `samples`: how many a batch has, where rules need to tell them apart; None: the length of every first axis.
    `observe`: see to it that `features`, the last feature map, can be read after the forward pass (`@features`).
    """

    def __init__(
        self,
        model: nn.Module,
        rules: RuleSet,
        strict: bool = True,
        parameters: Mapping[nn.Parameter, Tensor] | None = None,
        one: Tensor | None = None,
        differentiable: bool = False,
        samples: int | None = None,
        observe: bool = False,
    ) -> None:
        super().__init__()
        self.observe = observe
        self.features: Tensor | None = None
        self.model, self.parameters = model, parameters
        self.rules, self.strict, self.one, self.samples = rules, strict, one, samples
        self.checkpoints: list[Any] = []  # of the checkpointed module that is running
        self.inside: dict[str, Tensor] = {}  # what was captured in it
        self.unrecorded: set[str] = set()  # sites in checkpointed modules
        self.phase = Phase(differentiable)
        self.coverage = Coverage()
        self.marks: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._layers: list[tuple[nn.Module, Any]] = []
        self._sets: dict[str, RuleSet] = {}
        self._frozen = {id(key): (key, value) for key, value in (parameters or {}).items()}
        self.memory = Memory()
        _check_layers(model, rules)

    @property
    def layer(self) -> str:
        """The dotted name of the module that is running."""
        return self._names.get(id(self._layers[-1][0]), "") if self._layers else ""

    @property
    def _innermost(self) -> bool:
        """Whether this is the run that answers, in this thread: an explanation may be computed during another."""
        return current_run() is self

    def keep(self, tensor: Tensor) -> None:
        """See to it that later in-place calls leave this tensor as it is."""
        self.memory.keep(tensor)

    def watch(self, address: str, tensor: Tensor) -> None:
        """Take note of what is captured at a site."""
        self.keep(tensor)
        if not torch.is_grad_enabled():
            if not self.checkpoints:
                raise SiteError(f"the model computes site {address!r} without gradients")
            if Site.parse(address).call is not None:
                raise SiteError(f"site {address!r} numbers a call in a checkpointed module: leave that module out")
            self.inside[address] = tensor
            self.unrecorded.add(address)

    def check_recorded(self, sites: Iterable[str], what: str) -> None:
        """Raise `SiteError` for a site in a checkpointed module, whose tensor is in no graph."""
        for site in sites:
            if site in self.unrecorded:
                raise SiteError(f"{what} site {site!r}, which is in a checkpointed module: leave that module out")

    def forget(self) -> None:
        """Let go of every tensor: graphs refer to the run, and would never be freed if it referred to them."""
        self.memory = Memory()
        self.marks = WeakIdKeyDictionary()
        self.features = None
        self._layers.clear()
        self._frozen.clear()
        self.checkpoints.clear()
        self.inside = {}

    def bias(self, y: Tensor, constant: Callable[[], Any]) -> Tensor:
        """y, with `constant()` counted as its share that does not come from the input (appendix D)."""
        if self.one is None:
            return y
        finite = torch.nan_to_num(
            torch.as_tensor(constant(), dtype=y.dtype), posinf=0, neginf=0
        )  # padding of a max-pool
        return y + finite * (self.one - self.one.detach())

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._innermost:
            return function(*args, **(kwargs or {}))
        args, kwargs = self.present(args), {key: self.present(value) for key, value in (kwargs or {}).items()}
        if not torch.is_grad_enabled() or is_metadata(function) or not _any_needs_gradient(args, kwargs):
            return function(*args, **kwargs)
        operation = operation_name(function)
        rules = self._rules_here()
        rule = rules.rules.get(operation)
        if self.one is not None:
            args, kwargs = self._augment(operation, args, kwargs)
        target, pure = _in_place(function, args, kwargs)
        if target is not None and ((rule is not None and pure is not None) or self.memory.is_kept(target)):
            if "inplace" in kwargs:
                kwargs = {**kwargs, "inplace": False}
            call = Call(pure or function, args, kwargs, operation, self.layer, self)
            return self._written(target, call, rules, rule, pure is not None)
        if target is not None:
            self.marks.pop(target, None)
            self.memory.copies.pop(target, None)
        return self._answer(Call(function, args, kwargs, operation, self.layer, self), rules, rule)

    def _answer(self, call: Call, rules: RuleSet, rule: Rule | None) -> Any:
        result: Any = NotImplemented
        if rule is not None:
            for value in call.args:
                if isinstance(value, Tensor):
                    self.keep(value)
            result = rule(call)
            answer = getattr(rule, "label", type(rule).__name__)
        if result is NotImplemented:
            answer = self._autograd_answer(call, rules)
            result = call.original()
            self._pass_marks(call, result)
            if self.one is not None and call.operation == "pad":
                result = self.bias(result, lambda: call.on(torch.zeros_like(call.input)))
        if _any_needs_gradient((result,), {}):
            self.coverage.add(call.operation, answer, call.layer)
        self.memory.note_views(result)
        if self.observe:
            self._observe(call, result)
        return result

    def _observe(self, call: Call, result: Any) -> None:
        """Note a feature map; what a softmax is taken of over its last axis were attention logits, and no map."""
        if call.operation in MAPS and has_positions(result) and result.requires_grad:
            self.features = result
            self.keep(result)
        elif call.operation == "softmax" and self.features is not None:
            logits = call.input
            last = call.argument(1, "dim", None) in (-1, logits.ndim - 1)
            if last and logits.untyped_storage().data_ptr() == self.features.untyped_storage().data_ptr():
                self.features = None

    def _autograd_answer(self, call: Call, rules: RuleSet) -> str:
        if call.operation in AFFINE | STRUCTURAL | PRODUCTS and len(call.signals()) < 2:
            return "exact"
        if rules.lenient:
            return "gradient"
        if self.strict:
            raise UncoveredOperationError(
                f"{rules.name!r} has no rule for the operation {call.operation!r} in layer {call.layer or '(root)'!r}; "
                "strict=False lets the plain gradient through, an override for the layer answers for it"
            )
        return "gradient (no rule)"

    def _written(self, target: Tensor, call: Call, rules: RuleSet, rule: Rule | None, pure: bool) -> Any:
        """An in-place call made out of place; `pure` says whether `call` computes what is written, or writes."""
        if pure:
            return self.memory.write(target, self._answer(call, rules, rule), call.function)
        again = self._answer
        return self.memory.write(target, None, lambda at: again(replace(call, args=(at, *call.args[1:])), rules, rule))

    def _rules_here(self) -> RuleSet:
        layer = self.layer
        if layer not in self._sets:
            self._sets[layer] = self.rules.at(layer)
        return self._sets[layer]

    def present(self, value: Any) -> Any:
        """What an argument stands for now: successors of tensors written in place, frozen parameters."""
        if isinstance(value, Tensor):
            if isinstance(value, nn.Parameter):
                if value.requires_grad or id(value) in self._frozen:
                    return self._frozen.setdefault(id(value), (value, value.detach()))[1]
                return value
            return self.memory.present(value)
        if type(value) in (tuple, list):
            return type(value)(self.present(item) for item in value)
        return value

    def _augment(self, operation: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Additive constants times the augmented coordinate, which is 1: values stay, their share gets a gradient."""

        def times_one(value: Any) -> Any:
            constant = isinstance(value, (Tensor, float, int)) and not isinstance(value, bool)
            if not constant or _any_needs_gradient((value,), {}):
                return value
            share = value * self.one
            self.marks[share] = Mark("constant")  # no signal, though it has a gradient
            return share

        if operation in ("linear", "conv", "conv_transpose"):
            args = (*args[:2], *(times_one(value) for value in args[2:3]), *args[3:])
            kwargs = {key: times_one(value) if key == "bias" else value for key, value in kwargs.items()}
        elif operation in ("add", "sub", "addmm"):
            end = 1 if operation == "addmm" else 2
            args = (*(times_one(value) for value in args[:end]), *args[end:])
            kwargs = {key: times_one(value) if key == "other" else value for key, value in kwargs.items()}
        elif operation in ("cat", "stack") and args:
            args = (type(args[0])(times_one(value) for value in args[0]), *args[1:])
        elif operation == "where":
            args = (*args[:1], *(times_one(value) for value in args[1:3]), *args[3:])
        elif operation in ("masked_fill", "setitem") and len(args) > 2 and _is_finite(args[2]):
            args = (*args[:2], times_one(args[2]), *args[3:])
        return args, kwargs

    def _pass_marks(self, call: Call, result: Any) -> None:
        """What is moved stays what it is; a gate plus a constant is a gate; mixed weights are weights."""
        marks = self.marks
        sources = [v for v in call.args if needs_gradient(v) and not (v in marks and marks[v].kind == "constant")]
        if len(sources) == 1 and call.operation in STRUCTURAL | {"linear", "conv", "add", "sub"}:
            self.pass_mark(call, sources[0], result)

    def pass_mark(self, call: Call, source: Tensor, result: Any) -> None:
        """Mark the result of a call as what its source is; what the mark carries goes through the same call."""
        mark = self.marks.get(source)
        if mark is None or result is source or not isinstance(result, Tensor):
            return
        kinds = {"linear": ("weights",), "conv": ("weights",)}.get(call.operation, ("weights", "gate"))
        if call.operation in STRUCTURAL and mark.kind == "mean":
            self.marks[result] = mark
        elif mark.kind in kinds:
            carried = mark.source if mark.kind == "weights" else None  # a gate that was changed is no SiLU's any more
            if carried is not None:
                with torch.set_grad_enabled(self.phase.differentiable):
                    args = tuple(carried if value is source else value for value in call.args)
                    carried = call.function(*args, **call.kwargs)
            self.marks[result] = Mark(mark.kind, carried)

    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Global forward pre-hook: notes the running module; a module with a rule of its own runs undifferentiated."""
        if not self._innermost:
            return None
        self._layers.append((module, None))
        rule = self._rules_here().modules.get(type(module).__name__)
        if rule is None or not args or not needs_gradient(args[0]):
            return None
        args = self.present(args)
        self._layers[-1] = (module, (rule, args))
        return (args[0].detach(), *args[1:])

    def leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Global forward hook: attaches the module rule's vector-Jacobian product to the value that was computed.

        A module may return a tensor that it wrote to in place: what leaves it is what that tensor stands for now.
        """
        if not self._innermost:
            return None
        while self._layers:
            entered, pending = self._layers.pop()
            if entered is module:
                break
        else:
            return None
        if pending is None or output is None:
            return self.present(output) if self.memory.written else None
        rule, original_args = pending
        layer = self._names.get(id(module), "")

        def function(*args: Any) -> Any:  # the value is known; only a second derivative asks for it again
            return module.forward(*args) if torch.is_grad_enabled() else output

        call = Call(function, original_args, {}, type(module).__name__, layer, self)
        with torch._C.DisableTorchFunction():
            return self._answer(call, self._rules_here(), rule)


@contextmanager
def running(model: nn.Module, rules: RuleSet = GRADIENT, **settings: Any) -> Iterator[Run]:
    """Record forward passes of `model` under `rules`; settings are those of `Run`.

    The backward pass may be taken outside. Nothing is left behind, also after an exception.

    Raises:
        ModelError: a scripted, compiled or data-parallel part, which a function mode cannot see into.
        UncoveredOperationError: in a strict run, an operation without a rule.
    """
    _check_transparent(model)
    run = Run(model, rules, **settings)
    hooks = [
        register_module_forward_pre_hook(run.enter_module),  # type: ignore[arg-type]
        register_module_forward_hook(run.leave_module, always_call=True),
    ]
    _runs().append(run)
    try:
        with run:
            yield run
    finally:
        _runs().remove(run)
        run.forget()
        for hook in hooks:
            hook.remove()


def current_run() -> Run | None:
    """The run that answers, in this thread: the innermost."""
    return _runs()[-1] if _runs() else None


_local = threading.local()


def _runs() -> list[Run]:
    """The runs under way in this thread, outermost first."""
    if not hasattr(_local, "runs"):
        _local.runs = []
    return _local.runs


def _check_transparent(model: nn.Module) -> None:
    for name, module in model.named_modules():
        opaque = {
            "scripted": isinstance(module, torch.jit.ScriptModule),
            "compiled": type(module).__name__ == "OptimizedModule"
            or bool(getattr(module, "_compiled_call_impl", None)),
            "data-parallel": isinstance(module, nn.DataParallel),
        }
        for kind in (kind for kind, found in opaque.items() if found):
            raise ModelError(f"layer {name or '(root)'!r} is {kind}: rules cannot see into it; pass the plain module")


def _check_layers(model: nn.Module, rules: RuleSet) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in rules.layers:
        if not any(matches(pattern, name) for name in names):
            raise UnknownNameError("layer", pattern, names)


def has_positions(value: Any) -> bool:
    """Whether something is a map `[N, C, H, W, ...]` with more than one position."""
    return isinstance(value, Tensor) and value.ndim >= 4 and value.shape[2:].numel() > 1


def _is_finite(value: Any) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value)).all())


def _any_needs_gradient(args: Any, kwargs: Mapping[str, Any]) -> bool:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif type(value) in (tuple, list) and _any_needs_gradient(value, {}):
            return True
    return False


def _in_place(function: Any, args: Any, kwargs: Any) -> tuple[Tensor | None, Any]:
    """(the tensor that a call writes to, or None; the function that computes what it writes, or None)."""
    if not args or not isinstance(args[0], Tensor):
        return None, function
    if kwargs.get("inplace") is True:
        return args[0], function
    return (args[0], out_of_place(function)) if is_in_place(function) else (None, function)
