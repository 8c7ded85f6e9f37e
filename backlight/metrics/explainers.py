"""Explainers: what makes a map, so that metrics can ask for maps of changed inputs, classes, seeds and networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.engine.evaluation import Cost
from backlight.engine.targets import Logit, Target, as_target
from backlight.errors import InputError
from backlight.methods.baseline import unchanged
from backlight.methods.method import Method
from backlight.methods.position_maps import resized
from backlight.shapes import Float


class Explainer:
    """`explainer(inputs, target)`: maps `[N, C, *space]` or `[N, 1, *space]`, each of its own sample alone.

    `cost`: the passes of the network so far, in samples, where they are known.
    """

    cost: Cost | None = None

    def __call__(self, inputs: Float[Tensor, "N C *space"], target: Any) -> Tensor:
        raise NotImplementedError

    def reseeded(self, seed: int) -> Explainer:
        """The same with other random draws; itself where there are none."""
        return self

    def on(self, model: nn.Module) -> Explainer:
        """The same for another network, of the same architecture.

        Raises:
            InputError: the explainer is a function that cannot be moved.
        """
        raise InputError(f"{type(self).__name__} explains one network only: give a Method in place of a function")


@dataclass
class MethodExplainer(Explainer):
    """A method of Backlight. `batch_size`: the most samples in one of its passes.

    With other draws or for another network it counts into the same `cost`.
    """

    method: Method
    batch_size: int | None = None
    cost: Cost = field(default_factory=Cost)

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        found = self.method.explain(inputs, target, internal_batch_size=self.batch_size)
        self.cost.forwards += found.cost.forwards
        self.cost.backwards += found.cost.backwards
        return found.value

    def reseeded(self, seed: int) -> Explainer:
        if not self.random:
            return self
        return replace(self, method=replace(self.method, seed=seed))  # type: ignore[call-arg]

    @property
    def random(self) -> bool:
        """Whether the method draws."""
        return "seed" in self.method.settings()

    def on(self, model: nn.Module) -> Explainer:
        return replace(self, method=replace(self.method, model=model))


@dataclass
class FunctionExplainer(Explainer):
    """Any function `(inputs, target) -> maps`. The target is a tensor `[N]` of class indices where it is a logit."""

    function: Callable[[Tensor, Any], Tensor]

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return self.function(inputs, class_indices(target, inputs))


@dataclass
class CaptumExplainer(Explainer):
    """An attribution object of Captum, with the keywords of its `attribute`, which are the same for all samples.

    Captum draws from global generators: they are seeded here and put back. Methods that draw get one sample at a time,
    so that its draws depend on no other. Attributions of a hidden layer, `[N, K, h, w]`, are summed over its channels
    and resized to `[N, 1, H, W]`.
    """

    attribution: Any
    settings: dict[str, Any]
    seed: int = 0
    draws: bool | None = None  # found out at the first batch

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        model = self.attribution.forward_func
        index = class_indices(target, inputs)
        inputs = inputs.detach()  # a failing one leaves `requires_grad` on what it was given
        with unchanged(model if isinstance(model, nn.Module) else nn.Identity()):
            if not self.draws or len(inputs) == 1:
                found, self.draws = self._attributed(inputs, index)
                if not self.draws or len(inputs) == 1:
                    return found
            each = index.split(1) if isinstance(index, Tensor) else [index] * len(inputs)
            return torch.cat([self._attributed(x, one)[0] for x, one in zip(inputs.split(1), each, strict=True)])

    def _attributed(self, inputs: Tensor, index: Any) -> tuple[Tensor, bool]:
        """The maps, and whether they were drawn for."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        before = _generator_states(inputs.device)
        with _rules_kept(self.attribution):
            found = self.attribution.attribute(inputs, target=index, **self.settings).detach()
        if found.ndim == inputs.ndim and found.shape != inputs.shape and hasattr(self.attribution, "layer"):
            found = resized(found.sum(1, keepdim=True), inputs.shape[2:])
        return found, before != _generator_states(inputs.device)

    def reseeded(self, seed: int) -> Explainer:
        return self if self.draws is False else replace(self, seed=seed)

    def on(self, model: nn.Module) -> Explainer:
        if not isinstance(self.attribution.forward_func, nn.Module):
            raise InputError("this attribution of Captum explains a function, not a module: it cannot be moved")
        return replace(self, attribution=_moved(self.attribution, self.attribution.forward_func, model))


@contextmanager
def _rules_kept(attribution: Any) -> Iterator[None]:
    """Put back what Captum's LRP does to modules: it takes the user's rules away, and leaves its own where it fails."""
    while hasattr(attribution, "attribution_method"):  # noise tunnels and the like
        attribution = attribution.attribution_method
    if not any(cls.__name__ == "LRP" for cls in type(attribution).__mro__):
        yield
        return
    kept = [(module, vars(module).copy()) for module in attribution.model.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            for name in ("rule", "activations", "activation"):
                vars(module).pop(name, None)
                if name in attributes:
                    vars(module)[name] = attributes[name]


def _generator_states(device: torch.device) -> tuple[bytes, ...]:
    """Of torch and numpy, to see whether they were drawn from."""
    state: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    return torch.get_rng_state().numpy().tobytes(), state[1].tobytes(), str(state[2]).encode(), cuda


def _moved(attribution: Any, old: nn.Module, new: nn.Module) -> Any:
    """Captum's object with a network and its layers replaced by those of another network, by name."""
    moved = copy(attribution)
    names = {id(module): name for name, module in old.named_modules()}
    for key, value in vars(attribution).items():
        if id(value) in names:
            setattr(moved, key, new.get_submodule(names[id(value)]))
        elif hasattr(value, "attribute") and hasattr(value, "forward_func"):
            setattr(moved, key, _moved(value, old, new))
    return moved


def class_indices(target: Any, inputs: Tensor) -> Any:
    """One class index a sample, `[N]`, where the target is a logit; other targets as they are."""
    if type(target) is not Logit or target.index is None or isinstance(target.index, tuple):
        return target
    return torch.as_tensor(target.index, device=inputs.device).reshape(-1).expand(len(inputs))


def decided(target: Any, samples: int) -> Target:
    """A target that is the same wherever the inputs move.

    Raises:
        InputError: one that is left to the output, whose largest class may be another one there.
        TargetError: one that does not fit the samples.
    """
    found = as_target(target)
    if found.chooses:
        raise InputError("an explanation is made again: give the class of each sample, it must not be chosen anew")
    found.check(samples)
    return found


def explained(explainer: Explainer, inputs: Float[Tensor, "N C *space"], target: Target, batch_size: int) -> Tensor:
    """Maps of all samples, of at most `batch_size` at a time; in the shape that the explainer gives them."""
    pieces = torch.arange(len(inputs)).split(_positive(batch_size))
    return torch.cat([explainer(inputs[rows], target.rows(rows)).detach() for rows in pieces])


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def as_explainer(explainer: Any, **settings: Any) -> Explainer:
    """The explainer that a method of Backlight, an attribution object of Captum, or a function stands for.

    `settings`: keywords of Captum's `attribute`.

    Raises:
        InputError: anything else.
    """
    if isinstance(explainer, Explainer):
        return explainer
    if isinstance(explainer, Method):
        return MethodExplainer(explainer)
    if hasattr(explainer, "attribute") and hasattr(explainer, "forward_func"):
        return CaptumExplainer(explainer, settings)
    if callable(explainer):
        return FunctionExplainer(explainer)
    raise InputError(f"an explainer is a Method, an attribution of Captum or a function, not {explainer!r}")
