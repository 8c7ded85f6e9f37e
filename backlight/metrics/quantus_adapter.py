"""Backlight's methods for Quantus: `quantus.evaluate` and its metrics call what `explain_func` gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from backlight.engine.targets import Logit
from backlight.errors import InputError, UnknownNameError
from backlight.methods import method
from backlight.metrics.explainers import Explainer, as_explainer, explained
from backlight.metrics.maps import positions
from backlight.metrics.scorer import BATCH_SIZE

_THEIRS = ("method",)  # what `quantus.evaluate` passes for its own explanations: the name in its table


@dataclass(frozen=True)
class ExplainFunc:
    """`(model, inputs, targets, **settings) -> maps` on arrays, as Quantus calls it; see `explain_func`."""

    explanation: str | Explainer
    settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int = BATCH_SIZE
    sum_channels: bool = False

    def __call__(self, model: Any, inputs: np.ndarray, targets: np.ndarray, **settings: Any) -> np.ndarray:
        """Maps `[N, C, H, W]` of single precision, or `[N, 1, H, W]`.

        Args:
            model: the network that is explained: Quantus gives randomised ones here, too.
            inputs: `[N, C, H, W]`; brought to the type of the network's parameters.
            targets: `[N]` class indices.
            settings: device, batch_size, and settings of the method, in place of those that were given before.

        Raises:
            InputError: something else.
        """
        model = model.get_model() if hasattr(model, "get_model") else model
        device, batch_size = settings.pop("device", None), settings.pop("batch_size", self.batch_size)
        explainer = self._explainer(model, {key: value for key, value in settings.items() if key not in _THEIRS})
        first = next((found for found in model.parameters() if found.is_floating_point()), torch.zeros(()))
        x = torch.as_tensor(np.asarray(inputs)).to(device or first.device, first.dtype)
        classes = torch.as_tensor(np.asarray(targets)).long().reshape(-1)
        maps = explained(explainer, x, Logit(classes), batch_size)
        return (positions(maps)[:, None] if self.sum_channels else maps).float().cpu().numpy()

    def _explainer(self, model: nn.Module, settings: dict[str, Any]) -> Explainer:
        if isinstance(self.explanation, str):
            known = method(self.explanation).settings()
            unknown = [key for key in (self.settings | settings) if key not in known]
            if unknown:
                raise UnknownNameError(f"setting of {self.explanation}", unknown[0], known)
            return as_explainer(method(self.explanation)(model, **(self.settings | settings)))
        if settings:
            raise InputError(f"settings belong to the explanation that was given, not here: {sorted(settings)}")
        return self.explanation.on(model)


def explain_func(
    explanation: Any,
    *,
    batch_size: int = BATCH_SIZE,
    sum_channels: bool = False,
    **settings: Any,
) -> ExplainFunc:
    """What `quantus.evaluate(xai_methods={name: ...})` and `explain_func=` of its metrics take.

        quantus.evaluate(metrics, {"soft": explain_func("SoftPullback")}, model, x, y, explain_func_kwargs={})

    Args:
        explanation: a method's name, or a method, control or attribution of Captum, which is moved to the network of
            each call.
        batch_size: the most samples that are explained at once.
        sum_channels: one value a position, the sum over channels, which Quantus's metrics of localisation need.
        settings: of the method that is named.

    Raises:
        UnknownNameError: a method, or a setting of it, that is not there.
        InputError: settings without a name, or what is no explanation.
    """
    if isinstance(explanation, str):
        method(explanation)
        return ExplainFunc(explanation, settings, batch_size, sum_channels)
    if settings:
        raise InputError(f"settings belong to a method's name, not to {explanation!r}: {sorted(settings)}")
    return ExplainFunc(as_explainer(explanation), {}, batch_size, sum_channels)
