"""The mean of each class as its mode: what any decomposition has to be better than."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition, Work
from backlight.errors import InputError
from backlight.shapes import Float, Int
from backlight.store.rows import pieces


@dataclass(kw_only=True)
class ClassMeans(Decomposition):
    """A mode is the mean row of a class; loadings are the least-squares projection, z = x D^+, x_hat = z D.

    The class with the smallest number first; `classes` are the numbers. A class mean's own loading is 1 and all others
    0, where the means are linearly independent. Among more classes than channels the shortest loadings are taken.
    Rows with the label -1 are left out. `n_modes` is what the labels say.
    """

    source: ClassVar[str] = "a control: labels in place of a decomposition"
    formula: ClassVar[str] = "D_k = mean of the rows of class k; z = x D^+"
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    n_modes: int | str = "classes"

    @property
    def classes(self) -> Int[Tensor, "K"]:
        """The label of each mode."""
        return self.state["classes"]

    def check(self, n: int, channels: int) -> None:
        if self.n_modes != "classes":
            raise InputError(f"ClassMeans has a mode for each class: n_modes is 'classes', got {self.n_modes!r}")

    def _fit(self, work: Work, device: torch.device) -> None:
        assert work.labels is not None
        classes, places = work.labels.unique(return_inverse=True)
        known = classes >= 0
        if not known.any():
            raise InputError("no row has a label")
        sums = torch.zeros(len(classes), work.rows.shape[1], dtype=torch.float64)
        for start, piece in pieces(work.rows):
            sums.index_add_(0, places[start : start + len(piece)], piece.double())
        modes = (sums / places.bincount(minlength=len(classes))[:, None])[known]
        dual = torch.linalg.pinv(modes, rtol=1e-6)
        self.state = {"modes": modes.float(), "dual": dual.float(), "classes": classes[known]}

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return x @ self.state["dual"]
