"""The score that is explained, at many versions of the samples, in batches of a size that bounds memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from backlight.engine.evaluation import Cost, Evaluator
from backlight.engine.rules import GRADIENT
from backlight.engine.sites import INPUT
from backlight.engine.targets import Target, as_target
from backlight.errors import InputError, ModelError
from backlight.shapes import Float

BATCH_SIZE = 32


class Scorer:
    """A model and a target at samples `[N, ...]`: which class is scored is decided there, once.

    Raises:
        InputError: no samples, or a batch size below 1.
        ModelError: batch normalisation or dropout in training mode: scores would depend on batch mates, or on chance.
        TargetError: a target that does not fit the samples.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, target: Any = None, batch_size: int = BATCH_SIZE) -> None:
        if inputs.ndim < 2 or not len(inputs):
            raise InputError(f"expected samples [N, ...] with N >= 1, got {list(inputs.shape)}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        for name, module in model.named_modules():
            if module.training and isinstance(module, (_BatchNorm, _DropoutNd)):
                raise ModelError(f"{name or type(module).__name__} is in training mode: call model.eval() first")
        self.inputs, self.batch_size = inputs.detach(), batch_size
        self._drops: dict[tuple[Any, ...], Tensor] = {}
        self._evaluator = Evaluator(model, as_target(target), GRADIENT, (INPUT,), len(inputs))
        self._evaluator.target.check(len(inputs))
        if self._evaluator.target.chooses:
            rows = torch.arange(len(inputs))
            found = [self._evaluator.outputs((inputs[piece],), piece) for piece in rows.split(batch_size)]
            self._evaluator.target = self._evaluator.target.fixed(torch.cat(found))

    @classmethod
    def of(cls, model: nn.Module | Scorer, inputs: Tensor, target: Any, batch_size: int) -> Scorer:
        """A scorer that is there already, with what it has computed, or a new one."""
        return model if isinstance(model, Scorer) else cls(model, inputs, target, batch_size)

    @property
    def target(self) -> Target:
        """The target, with its choices made."""
        return self._evaluator.target

    @property
    def cost(self) -> Cost:
        """Passes so far, in samples."""
        return self._evaluator.cost

    @cached_property
    def scores(self) -> Float[Tensor, "N"]:
        """The score at each sample."""
        return self.versions(1, lambda rows, _: self.inputs[rows])[:, 0]

    def versions(self, count: int, make: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, "N count"]:
        """The scores of `count` versions of each sample, in double precision.

        `make(rows, numbers)`: the versions with these numbers of the samples in these rows, `[b, ...]`; both are `[b]`
        on the samples' device, with b at most the batch size. No more than b versions exist at a time.
        """
        found = []
        for flat in torch.arange(len(self.inputs) * count).split(self.batch_size):
            rows = flat // count
            versions = make(rows.to(self.inputs.device), (flat % count).to(self.inputs.device))
            if versions.ndim == 4:  # convolutions without the copies of their layout
                versions = versions.contiguous(memory_format=torch.channels_last)
            found.append(self._evaluator.scores((versions,), rows))
        return torch.cat(found).cpu().double().reshape(len(self.inputs), count)

    def drops(
        self, count: int, make: Callable[[Tensor, Tensor], Tensor], of: tuple[Any, ...] = ()
    ) -> Float[Tensor, "N count"]:
        """By how much each version's score is below the sample's.

        `of`: all that decides the versions, besides the samples; what was asked for with an equal one is not computed
        again. Tensors are compared by content.
        """
        key = tuple(_content(entry) if isinstance(entry, Tensor) else entry for entry in of)
        if not key or key not in self._drops:
            self._drops[key] = self.scores[:, None] - self.versions(count, make)
        return self._drops[key] if key else self._drops.pop(key)


def _content(tensor: Tensor) -> tuple[torch.Size, torch.dtype, bytes]:
    """What makes two tensors equal; NumPy has not all of their types."""
    return tensor.shape, tensor.dtype, tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
