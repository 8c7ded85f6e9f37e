"""Explainers: what makes a map, so that metrics can ask for maps of changed inputs, classes, seeds and networks."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from backlight.engine.evaluation import Cost
from backlight.errors import InputError
from backlight.methods.method import Method
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
    """A method of Backlight. `batch_size`: the most samples in one of its passes."""

    method: Method
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self.cost = Cost()

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        found = self.method.explain(inputs, target, internal_batch_size=self.batch_size)
        assert self.cost is not None
        self.cost.forwards += found.cost.forwards
        self.cost.backwards += found.cost.backwards
        return found.value

    def reseeded(self, seed: int) -> Explainer:
        if not self.random:
            return self
        return MethodExplainer(replace(self.method, seed=seed), self.batch_size)  # type: ignore[call-arg]

    @property
    def random(self) -> bool:
        """Whether the method draws."""
        return "seed" in self.method.settings()

    def on(self, model: nn.Module) -> Explainer:
        return MethodExplainer(replace(self.method, model=model), self.batch_size)


@dataclass
class FunctionExplainer(Explainer):
    """Any function `(inputs, target) -> maps`."""

    function: Callable[[Tensor, Any], Tensor]

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return self.function(inputs, target)


@dataclass
class CaptumExplainer(Explainer):
    """An attribution object of Captum, with the keywords of its `attribute`. Captum's draws are torch's global ones."""

    attribution: Any
    settings: dict[str, Any]

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return self.attribution.attribute(inputs, target=target, **self.settings).detach()

    def on(self, model: nn.Module) -> Explainer:
        moved = copy(self.attribution)
        moved.forward_func = model
        return CaptumExplainer(moved, self.settings)


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
