"""In-place calls, made out of place: what a rule keeps for its backward pass must stay as it is.

A network may write to a tensor whose old value a rule needs (`relu_`, `x += y`, `x[:, 0] = 0`). The write then goes to
a new tensor, and from there on the old one *stands for* the new one: every later use of it, or of a view of it, is
answered with the successor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


def _base(tensor: Tensor) -> Tensor:
    return tensor._base if tensor._is_view() and tensor._base is not None else tensor


class Memory:
    """Which tensors are kept, which see each other's memory, and what stands for what.

    `copies`: of a view that was written to, what was written.
    """

    def __init__(self) -> None:
        self.copies: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._views: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> references to those that see its memory
        self._successors: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def keep(self, tensor: Tensor) -> None:
        """See to it that later in-place calls leave this tensor, and what it is a view of, as it is."""
        self._kept[tensor] = self._kept[_base(tensor)] = True

    def is_kept(self, tensor: Tensor) -> bool:
        """Whether a write to the tensor would change something that is kept."""
        return tensor in self._kept or _base(tensor) in self._kept

    def note_views(self, result: Any) -> None:
        """Remember which of the results of a call are views."""
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value._is_view() and value._base is not None:
                self._views.setdefault(value._base, []).append(weakref.ref(value))

    def present(self, tensor: Tensor) -> Tensor:
        """What the tensor stands for now."""
        while self._successors and tensor in self._successors:
            tensor = self._successors[tensor]
        return tensor

    @property
    def written(self) -> bool:
        """Whether anything stands for something else."""
        return bool(self._successors)

    def write(self, target: Tensor, result: Tensor | None, in_place: Callable[[Tensor], Any]) -> Tensor:
        """What the target stands for after a write of `result`, or, if that is None, after `in_place` of a copy."""
        if result is target:  # dropout in evaluation mode gives what it was given
            return target
        base = _base(target)
        if base is target and result is not None and target not in self._views:
            self._successors[target] = result
            return result
        fresh = base.clone()  # other tensors see this memory: all of them move to the copy

        def moved(view: Tensor) -> Tensor:
            return fresh.as_strided(view.size(), view.stride(), view.storage_offset() - base.storage_offset())

        at = fresh if base is target else moved(target)
        if result is None:
            in_place(at)
        else:
            at.copy_(result)
            self.copies[at] = result
        self._successors[base] = fresh
        family = (reference() for reference in self._views.get(base, ()))
        for view in (*family, *([] if base is target else [target])):
            if view is not None:
                self._successors[view] = at if view is target else moved(view)
        return at
