"""Targets: which scalar of a model's output is explained.

A target maps a model's outputs to one score a sample, `[N]`. `as_target` takes what Captum takes (an index, a list, a
tensor, a tuple for outputs of higher rank), any `Target`, and any callable `outputs -> [N]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from backlight.errors import TargetError
from backlight.shapes import Float, Int

_OUTPUT_KEYS = ("logits", "out", "output", "pred", "prediction", "last_hidden_state")


def output_tensor(outputs: Any) -> Tensor:
    """The tensor of a model's outputs that targets read: the outputs, their logits, or their first entry.

    Raises:
        TargetError: no tensor is found.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) or hasattr(outputs, "logits"):
        get = outputs.get if isinstance(outputs, Mapping) else lambda key: getattr(outputs, key, None)
        found = next((value for key in _OUTPUT_KEYS if isinstance(value := get(key), Tensor)), None)
        tensors = [v for v in outputs.values() if isinstance(v, Tensor)] if isinstance(outputs, Mapping) else []
        if found is None and len(tensors) == 1:
            found = tensors[0]
        if found is not None:
            return found
        raise TargetError(f"no logits among the outputs {list(outputs)}: give a callable target, outputs -> [N]")
    if isinstance(outputs, Sequence) and outputs:
        return output_tensor(outputs[0])
    raise TargetError(f"a model output of type {type(outputs).__name__} has no tensor: give a callable target")


class Target:
    """One score a sample. Subclasses say how it is read from `[N, K]` outputs.

    `per_sample`: the names of fields that may hold one entry a sample, as a `[N]` tensor.
    `sites`: names of hidden sites that the target reads; they reach `score` as `hidden`.
    """

    per_sample: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.per_sample:
            value = getattr(self, name)
            entries = tuple(map(_per_sample, value)) if isinstance(value, tuple) else _per_sample(value)
            object.__setattr__(self, name, entries)

    def __call__(self, outputs: Any, hidden: Mapping[str, Tensor] | None = None) -> Float[Tensor, "N"]:
        scores = self.score(outputs, hidden or {})
        if scores.ndim != 1:
            raise TargetError(f"a target gives one score a sample, [N]; got shape {list(scores.shape)}")
        return scores

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        """The scores `[N]`."""
        raise NotImplementedError

    def check(self, samples: int) -> None:
        """Raise TargetError where a field with one entry a sample has another number of entries."""
        for name in self.per_sample:
            value = getattr(self, name)
            for entry in value if isinstance(value, tuple) else (value,):
                if isinstance(entry, Tensor) and len(entry) not in (1, samples):
                    raise TargetError(f"{len(entry)} target indices for {samples} samples")

    def rows(self, rows: Tensor) -> Target:
        """The target of a batch that is made of these samples of the present one, in this order."""
        fields = {name: _taken(getattr(self, name), rows) for name in self.per_sample}
        return replace(self, **fields) if fields else self  # type: ignore[type-var]

    def fixed(self, outputs: Any) -> Target:
        """The same target with every choice that depends on the output (its top classes) made at these outputs."""
        return self

    @property
    def chooses(self) -> bool:
        """Whether `fixed` has a choice to make."""
        return False


def _taken(value: Any, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_taken(entry, rows) for entry in value)
    return value[rows.to(value.device)] if isinstance(value, Tensor) and len(value) > 1 else value


def _per_sample(index: Any) -> Any:
    """None or an int as given, anything else as an integer tensor `[N]` or `[N, k]`."""
    if index is None or (isinstance(index, int) and not isinstance(index, bool)):
        return index
    try:
        tensor = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"a class index is an integer, not {index!r}") from None
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TargetError(f"a class index is an integer, not {index!r}")
    return tensor.reshape(-1) if tensor.ndim == 0 else tensor


def pick(values: Float[Tensor, "N *K"], index: Any) -> Float[Tensor, "N *P"]:
    """`values[i, index[i]]`, with one index for all or one a sample; a tuple holds the indices of further axes.

    Raises:
        TargetError: an index out of range, or a number of indices that is not the number of samples.
    """
    if values.ndim == 1:
        values = values[:, None]
    indices = index if isinstance(index, tuple) else (index,)
    if len(indices) >= values.ndim:
        raise TargetError(f"{len(indices)} indices a sample for values of shape {list(values.shape)}")
    rows = torch.arange(len(values), device=values.device)
    columns = []
    for axis, entry in enumerate(indices, 1):
        column = torch.as_tensor(entry, device=values.device)
        if column.numel() not in (1, len(values)):
            raise TargetError(f"{column.numel()} target indices for {len(values)} samples")
        if column.numel() and not (-values.shape[axis] <= int(column.min()) <= int(column.max()) < values.shape[axis]):
            raise TargetError(f"target {entry} is out of range: the output has {values.shape[axis]} entries")
        columns.append(column.reshape(-1).expand(len(values)))
    return values[(rows, *columns)]


@dataclass(frozen=True)
class Choice(Target):
    """A target that chooses classes by the outputs, where none are given.

    On a path, the choice is made once, at the explained input. `floating`: at every point anew; what is integrated
    then is the largest logit (its gradient is that of the class that is largest there), not one class's.
    """

    floating: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floating and not self._open:
            raise TargetError("floating=True chooses the class at every point: give none")

    @property
    def _open(self) -> bool:
        """Whether a choice is left to the outputs."""
        raise NotImplementedError

    def _chosen(self, outputs: Any) -> Any:
        """The same target, with what is left open chosen at these outputs."""
        raise NotImplementedError

    def fixed(self, outputs: Any) -> Target:
        return self._chosen(outputs) if self.chooses else self

    @property
    def chooses(self) -> bool:
        return self._open and not self.floating


@dataclass(frozen=True)
class Logit(Choice):
    """Entry `index` of the output, as the model gives it. None: the entry that is largest."""

    index: Any = None
    per_sample = ("index",)

    def values(self, outputs: Any) -> Tensor:
        """`[N, K]` numbers that the index picks from."""
        return output_tensor(outputs)

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        return pick(self.values(outputs), self._chosen(outputs).index)

    @property
    def _open(self) -> bool:
        return self.index is None

    def _chosen(self, outputs: Any) -> Logit:
        if not self._open:
            return self
        output = output_tensor(outputs)
        if output.ndim == 1 or output.shape[1:] == (1,):
            return replace(self, index=0, floating=False)
        if output.ndim != 2:
            raise TargetError(f"outputs of shape {list(output.shape)} need a target: one index for each axis")
        return replace(self, index=output.detach().argmax(1), floating=False)


@dataclass(frozen=True)
class Probability(Logit):
    """Softmax probability of a class, in [0, 1]."""

    def values(self, outputs: Any) -> Tensor:
        return output_tensor(outputs).softmax(1)


@dataclass(frozen=True)
class LogProbability(Logit):
    """Log-softmax of a class, at most 0."""

    def values(self, outputs: Any) -> Tensor:
        return output_tensor(outputs).log_softmax(1)


@dataclass(frozen=True)
class TopK(Choice):
    """Sum of the k largest logits; which they are is decided once, at the explained input.

    `probability`: the sum of their softmax probabilities.
    """

    k: int = 5
    index: Any = None
    probability: bool = field(default=False, kw_only=True)
    per_sample = ("index",)

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        output = output_tensor(outputs)
        index = self._chosen(outputs).index.expand(len(output), -1)
        return (output.softmax(1) if self.probability else output).gather(1, index).sum(1)

    @property
    def _open(self) -> bool:
        return self.index is None

    def _chosen(self, outputs: Any) -> TopK:
        if not self._open:
            return self
        output = output_tensor(outputs)
        if output.ndim != 2 or not 1 <= self.k <= output.shape[1]:
            raise TargetError(f"the top {self.k} of outputs {list(output.shape)}: k must be in 1..K of [N, K]")
        return replace(self, index=output.detach().topk(self.k, 1).indices, floating=False)


@dataclass(frozen=True)
class Contrast(Choice):
    """Logit of class `a` minus logit of class `b`. Where they are not given: the two largest at the explained input."""

    a: Any = None
    b: Any = None
    per_sample = ("a", "b")

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        chosen = self._chosen(outputs)
        output = output_tensor(outputs)
        return pick(output, chosen.a) - pick(output, chosen.b)

    @property
    def _open(self) -> bool:
        return self.a is None or self.b is None

    def _chosen(self, outputs: Any) -> Contrast:
        if not self._open:
            return self
        output = output_tensor(outputs).detach()
        if output.ndim != 2 or output.shape[1] < 2:
            raise TargetError(f"a contrast needs two classes, the output is {list(output.shape)}")
        best = output.topk(2, 1).indices
        a, b = self.a, self.b
        if a is None:  # the largest class that is not b
            a = best[:, 0] if b is None else _other_than(b, best, output.shape[1])
        a = torch.as_tensor(a, device=output.device).expand(len(output))
        return replace(self, a=a, b=_other_than(a, best, output.shape[1]) if b is None else b, floating=False)


def _other_than(given: Any, best: Int[Tensor, "N 2"], classes: int) -> Int[Tensor, "N"]:
    """The first of the best two that is not the given class."""
    same = best[:, 0] == torch.as_tensor(given, device=best.device) % classes
    return torch.where(same, best[:, 1], best[:, 0])


@dataclass(frozen=True)
class Entropy(Target):
    """Entropy of the softmax distribution in nats, in [0, log K]; finite also where probabilities vanish."""

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        log_p = output_tensor(outputs).log_softmax(1)
        p = log_p.exp()
        return -(p * torch.where(p > 0, log_p, 0)).sum(1)


@dataclass(frozen=True)
class Unit(Target):
    """A hidden unit: an entry, or a reduction, of the tensor at a site.

    `channel`: index on axis 1 (None: all channels; pass `channel_axis=-1` for tokens). `position`: indices on the other
    axes (None: all). What remains is reduced by `reduce`: "sum", "mean", "max" or "norm" (l2).
    """

    site: str
    channel: Any = None
    position: tuple[int, ...] | None = None
    reduce: str = "sum"
    channel_axis: int = 1
    per_sample = ("channel",)

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.site,)

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        value = hidden[self.site]
        if value.ndim < 2:
            raise TargetError(f"site {self.site!r} has shape {list(value.shape)}: no channels to choose from")
        value = value.movedim(self.channel_axis, 1)
        if self.position is not None:
            if len(self.position) != value.ndim - 2:
                raise TargetError(f"site {self.site!r} has {value.ndim - 2} position axes, got {self.position}")
            try:
                value = value[(slice(None), slice(None), *self.position)]  # type: ignore[index]
            except IndexError as error:
                raise TargetError(f"position {self.position} at site {self.site!r}: {error}") from None
        if self.channel is not None:
            value = pick(value, self.channel)
        flat = value.reshape(len(value), -1)
        reductions: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda v: v.sum(1),
            "mean": lambda v: v.mean(1),
            "max": lambda v: v.amax(1),
            "norm": lambda v: torch.linalg.vector_norm(v, dim=1),
        }
        if self.reduce not in reductions:
            raise TargetError(f"unknown reduction {self.reduce!r}; choices: {', '.join(reductions)}")
        return reductions[self.reduce](flat)


@dataclass(frozen=True)
class Function(Target):
    """Any callable from the model's outputs to `[N]` scores."""

    function: Callable[[Any], Tensor]

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        scores = self.function(outputs)
        if not isinstance(scores, Tensor):
            raise TargetError(f"a target function gives a tensor [N], not {type(scores).__name__}")
        return scores


def as_target(target: Any) -> Target:
    """The target that an index, list, tensor, tuple, callable or `Target` stands for; None: the largest logit.

    Raises:
        TargetError: anything else.
    """
    if isinstance(target, Target):
        return target
    if target is None:
        return Logit()
    if isinstance(target, tuple):
        return Logit(target)
    if isinstance(target, list) and target and isinstance(target[0], (tuple, list)):
        return Logit(tuple(torch.as_tensor(column) for column in zip(*target, strict=True)))
    if isinstance(target, (int, list, Tensor)) or hasattr(target, "__array__"):
        return Logit(target)
    if callable(target):
        return Function(target)
    raise TargetError(f"a target is a class index, one a sample, a Target or a callable, not {target!r}")
