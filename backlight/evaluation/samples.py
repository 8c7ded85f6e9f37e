"""What is evaluated: samples by name, loaded when their turn comes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from backlight.data.labelled import Sample
from backlight.errors import InputError
from backlight.evaluation.identity import combined_hash, tensor_hash
from backlight.shapes import Bool, Float


@runtime_checkable
class Samples(Protocol):
    """Samples in an order.

    `names`: unique. `fingerprint`: says which data these are; a limit on how many are taken must not change it, so that
    a run may go on with a larger one. `content(name)`: a hash of all that one sample is made of, found without decoding
    it: where a run goes on, samples that have rows must be what they were. `load(name)` and `content(name)` raise
    `ImageError` where the sample cannot be read.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def content(self, name: str) -> str: ...

    def load(self, name: str) -> Sample: ...


class TensorSamples:
    """Samples that are in memory already.

    Args:
        inputs: `[N, C, H, W]`.
        targets: class indices; None: the classes that are predicted.
        masks: `[N, H, W]`, True where the object is.
        names: "0", "1", ... by default.

    Raises:
        InputError: other numbers of targets, masks or names, or a name twice.
    """

    def __init__(
        self,
        inputs: Float[Tensor, "N C H W"],
        targets: Sequence[int] | Tensor | None = None,
        masks: Bool[Tensor, "N H W"] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        count = len(inputs)
        self.names = [str(place) for place in range(count)] if names is None else list(names)
        self._targets = [None] * count if targets is None else [int(target) for target in targets]
        self._inputs, self._masks = inputs, masks
        lengths = {"targets": len(self._targets), "names": len(self.names)}
        lengths |= {} if masks is None else {"masks": len(masks)}
        wrong = {what: length for what, length in lengths.items() if length != count}
        if wrong or len(set(self.names)) != count:
            raise InputError(f"expected {count} targets, masks and distinct names, got {wrong or 'a name twice'}")
        self._places = {name: place for place, name in enumerate(self.names)}

    @property
    def fingerprint(self) -> str:
        """Of the first name and of the inputs' shape and type: more of the same data have it too."""
        about = (self.names[:1], list(self._inputs.shape[1:]), str(self._inputs.dtype))
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def content(self, name: str) -> str:
        """A hash of a sample's input, target and mask."""
        place = self._places[name]
        mask = None if self._masks is None else tensor_hash(self._masks[place])
        return combined_hash(tensor_hash(self._inputs[place]), str(self._targets[place]), str(mask))

    def load(self, name: str) -> Sample:
        """A sample by name."""
        place = self._places[name]
        mask = None if self._masks is None else self._masks[place]
        return Sample(name, self._inputs[place], self._targets[place], mask)
