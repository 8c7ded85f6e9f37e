"""Sparse dictionary learning: atoms of length 1 whose sparse combinations are the rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.lasso import lasso
from backlight.decompositions.scaling import moments
from backlight.decompositions.scores import score
from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float
from backlight.store.rows import Chosen, pieces, shuffled

FITS = ("cd", "lars")
CLOSE = 1e-6  # duality gap of the codes, of |x|^2 / 2


@dataclass(kw_only=True)
class SparseDictionaryLearning(Decomposition):
    """min over u and |d| = 1 of 1/2 |x - u D|^2 + penalty |u|_1: the baseline of Table III.

    D is learnt online by scikit-learn's `MiniBatchDictionaryLearning` (Mairal et al. 2009), from `n_modes` rows: codes
    of a batch, then a step of all atoms on the sums so far. penalty = `alpha` times the rows' root mean square length,
    so that it does not depend on their scale. The loadings are the LASSO codes for the same penalty, by `lasso`.

    `algorithm`: how the codes of a batch are found, "cd" (coordinate descent) or "lars". `positive`: codes are not
    negative. It takes far longer than clusters or an SAE: minutes for hundreds of atoms, on the CPU.
    """

    source: ClassVar[str] = "Mairal, Bach, Ponce and Sapiro 2009"
    formula: ClassVar[str] = "x_hat = z D, z = argmin_u 1/2 |x - u D|^2 + penalty |u|_1, |d| = 1"
    claims: ClassVar[tuple[str, ...]] = ("unit modes",)

    n_modes: int | str = "8x"
    alpha: float = 0.1
    epochs: int = 3
    batch_size: int = 256
    algorithm: str = "cd"
    positive: bool = False

    def check(self, n: int, channels: int) -> None:
        count = self.count(channels)
        if count > n:
            raise InputError(f"{count} atoms of {n} rows: give fewer modes")
        if self.epochs < 1 or self.batch_size < 1 or not self.alpha > 0:
            raise InputError("epochs and batch_size are at least 1, alpha is positive")
        if self.algorithm not in FITS:
            raise InputError(f"algorithm is one of {', '.join(FITS)}; got {self.algorithm!r}")

    def _fit(self, work: Work, device: torch.device) -> None:
        (n, channels), found, kept = work.rows.shape, moments(work.rows), Checkpoints(self, work)
        spread = float(found.squares.sum())
        scale = (spread / n + float(found.mean.square().sum())) ** 0.5
        if not scale > 0:
            raise InputError(f"all of the {n} rows are zero: there is nothing to learn")
        begun = kept.read()
        if begun is None:
            learner = self._learner(self._first(work, channels) / scale)
        else:
            tensors, about, self.history = begun
            learner = self._restored(tensors, about, n)
        while (done := len(self.history)) < self.epochs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # ConvergenceWarning: codes of a batch need not be exact
                for batch in shuffled(work.rows, self.batch_size, self.seed, done):
                    learner.partial_fit((batch.double() / scale).numpy())
            self._set(learner.components_, scale)
            self._tell(work, spread, done + 1)
            tensors, about = _kept(learner)
            kept.write(tensors, about, self.history, done + 1 == self.epochs)
        self._set(learner.components_, scale)

    def _first(self, work: Work, channels: int) -> Float[Tensor, "K C"]:
        """Rows that differ from zero, drawn by the seed."""
        length = torch.cat([piece.norm(dim=1) for _, piece in pieces(work.rows)]).numpy()
        draw, count = np.random.default_rng((self.seed, 0)), self.count(channels)
        usable = np.flatnonzero(length)
        if len(usable) < count:
            raise InputError(f"{count} atoms of {len(usable)} rows that are not zero: give fewer modes")
        chosen = Chosen(work.rows, np.sort(draw.choice(usable, count, replace=False)))
        return torch.cat([piece for _, piece in pieces(chosen)])

    def _learner(self, rows: Tensor) -> Any:
        try:
            from sklearn.decomposition import MiniBatchDictionaryLearning
        except ModuleNotFoundError:
            raise MissingExtraError("scikit-learn", "contributions") from None
        return MiniBatchDictionaryLearning(
            len(rows),
            alpha=self.alpha,
            fit_algorithm=self.algorithm,
            positive_code=self.positive,
            dict_init=(rows.double() / rows.double().norm(dim=1, keepdim=True)).numpy(),
            batch_size=self.batch_size,
            transform_max_iter=1000,
            random_state=self.seed,
        )

    def _restored(self, tensors: dict[str, Tensor], about: dict[str, Any], n: int) -> Any:
        """A learner as it was after a pass: scikit-learn keeps its sums in attributes of these names."""
        atoms = np.asfortranarray(tensors["components"].numpy())
        found = self._learner(tensors["components"])
        found._check_params(np.empty((n, atoms.shape[1]), dtype=atoms.dtype))
        found.components_, found.n_steps_, found.n_features_in_ = atoms, about["steps"], atoms.shape[1]
        found._A, found._B = (tensors[name].numpy() for name in ("a", "b"))
        found._random_state = np.random.RandomState()
        found._random_state.set_state(("MT19937", tensors["draws"].numpy().astype(np.uint32), *about["draws"]))
        return found

    def _set(self, components: np.ndarray, scale: float) -> None:
        atoms = torch.from_numpy(np.array(components, dtype=np.float32, order="C"))
        unit = atoms / atoms.norm(dim=1, keepdim=True).clamp(min=torch.finfo(atoms.dtype).tiny)
        self.state = {"modes": unit, "penalty": torch.tensor(self.alpha * scale)}

    def _tell(self, work: Work, spread: float, number: int) -> None:
        n, channels = work.rows.shape
        own = score(self, work.rows)
        other = None if work.held_out is None else score(self, work.held_out).r2
        r2 = 1 - own.error / spread if spread > 0 else 0.0
        alive, count = int(own.alive.sum()), len(self.state["modes"])
        self.history.append(Epoch(number, self.epochs, own.error / n / channels, r2, other, own.l0, alive, count))
        if work.progress is not None:
            work.progress(self.history[-1])

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        penalty = float(self.state["penalty"])
        return lasso(x, self.state["modes"], penalty, nonnegative=self.positive, tolerance=CLOSE).values


def _kept(learner: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the next pass needs of a learner."""
    _, keys, *rest = learner._random_state.get_state()
    arrays = {"components": learner.components_, "a": learner._A, "b": learner._B, "draws": keys.astype(np.int64)}
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
    return tensors, {"steps": int(learner.n_steps_), "draws": rest}
