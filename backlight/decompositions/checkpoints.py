"""Checkpoints of a fit: after a pass over the rows, whole or not at all, and only of the same fit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from backlight.decompositions.decomposition import Decomposition, Epoch, Work, plain_settings
from backlight.decompositions.folder import read_tensors, write_tensors
from backlight.errors import InputError
from backlight.evaluation.identity import differences, tensor_hash
from backlight.store.rows import Rows, pieces

CHECKPOINT = "checkpoint.safetensors"
SHARE = 0.05  # of the time may go into checkpoints: one after a pass, unless that is exceeded


def content(rows: Rows) -> str:
    """A hash of the shape and of all entries, read in pieces."""
    found = hashlib.sha256(repr(tuple(rows.shape)).encode())
    for _, piece in pieces(rows):
        found.update(piece.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


class Checkpoints:
    """The checkpoint of one fit, in the folder of its work; without a folder nothing is kept."""

    def __init__(self, one: Decomposition, work: Work) -> None:
        self.path = None if work.folder is None else work.folder / CHECKPOINT
        self.fit: dict[str, Any] = {}
        if self.path is not None:
            held_out = None if work.held_out is None else content(work.held_out)
            labels = None if work.labels is None else tensor_hash(work.labels)
            made = {"class": type(one).__name__, "settings": plain_settings(one)}
            self.fit = {**made, "rows": content(work.rows), "held_out": held_out, "labels": labels}
        self._at, self._took = time.monotonic(), 0.0

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any], list[Epoch]] | None:
        """Tensors, plain values and the epochs so far, as they were written; None where there are none.

        Raises:
            InputError: the checkpoint is of another fit, or cannot be read.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, about = read_tensors(self.path)
        found = differences(about.get("fit"), self.fit)
        if found:
            raise InputError(f"{str(self.path)!r} is of another fit: {'; '.join(found[:6])}. Give another folder")
        return tensors, about["state"], [Epoch(**epoch) for epoch in about["history"]]

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], history: list[Epoch], last: bool) -> None:
        """Keep what a pass left, unless the write before took too much of the time since; `last` is always kept."""
        now = time.monotonic()
        if self.path is None or (not last and self._took > SHARE * (now - self._at)):
            return
        epochs = [asdict(epoch) for epoch in history]
        write_tensors(self.path, tensors, {"fit": self.fit, "state": dict(state), "history": epochs})
        self._at = time.monotonic()
        self._took = self._at - now
