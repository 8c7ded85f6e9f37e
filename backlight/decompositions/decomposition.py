"""The shape that all decompositions share: settings, then `fit`, `encode`, `decode`, and tensors that are saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.folder import (
    make_folder,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from backlight.decompositions.scaling import kept
from backlight.displayed import Displayed
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float, Int
from backlight.store.rows import Rows, TensorRows

CONFIG, TENSORS = "config.json", "tensors.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """What is known after a pass over the rows: `number` of `total`.

    `loss` and `r2`: of the pass, while it changed the modes; `held_out_r2`: of rows that were not fitted, where there
    are some. `l0`: modes that are on in a row; `alive`: of `modes`, how many were on in at least one row.
    `held_out_relative`, `held_out_l0`: the relative error (see `Scores.relative`) and l0 of rows that were not fitted.
    """

    number: int
    total: int
    loss: float
    r2: float
    held_out_r2: float | None
    l0: float
    alive: int
    modes: int
    held_out_relative: float | None = None
    held_out_l0: float | None = None

    @property
    def dead_share(self) -> float:
        """The share of modes that were on in no row of the pass."""
        return 1 - self.alive / self.modes


Progress = Callable[[Epoch], None]


@dataclass(kw_only=True)
class Decomposition(Displayed):
    """Modes `[K, C]`, and the loadings `[n, K]` that rows `[n, C]` have of them. Subclasses fit, encode and decode.

    `n_modes`: a number, or a multiple of the channels as "3x". `seed`: of all draws.

    `source`: the paper. `formula`: what is computed. `needs`: what rows must be or have: "nonnegative", "labels".
    `claims`: what is true of the result: "nonnegative loadings", "nonnegative modes", "unit modes", "orthogonal modes",
    "one mode" (a row has one). `presets`: settings by the protocol they belong to; the defaults are the first.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    claims: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    n_modes: int | str = "3x"
    seed: int = 0
    state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    history: list[Epoch] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """The decomposition in a protocol's settings, some of them replaced.

        Raises:
            UnknownNameError: a protocol that is not in `presets`.
        """
        if name not in cls.presets:
            raise UnknownNameError(f"preset of {cls.__name__}", name, cls.presets)
        return cls(**{**cls.presets[name], **settings})

    def settings(self) -> dict[str, Any]:
        """`{name: value}` of the settings."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    def fit(
        self,
        rows: Rows | Tensor | np.ndarray,
        *,
        held_out: Rows | Tensor | np.ndarray | None = None,
        labels: Tensor | np.ndarray | None = None,
        folder: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Fit the modes to rows `[n, C]`, as they are: `decompose` divides them by their standard deviation before.

        `held_out`: rows that the fit is measured on after each pass. `labels`: a class `[n]` of each row, -1 for none.
        `folder`: where long fits keep checkpoints, and go on from; the result is the same, bit for bit, on a CPU. The
        fitted tensors are on the CPU in the end.

        Raises:
            InputError: rows, labels or settings that do not fit each other, or a checkpoint of another fit.
        """
        rows = _as_rows(rows)
        others = None if held_out is None else _as_rows(held_out)
        if others is not None and others.shape[1] != rows.shape[1]:
            raise InputError(f"held-out rows have {others.shape[1]} channels, the others {rows.shape[1]}")
        self.check(*rows.shape)
        self.state, self.history = {}, []
        place = None if folder is None else make_folder(Path(folder))
        work = Work(kept(rows), None if others is None else kept(others), self._classes(rows, labels), place, progress)
        self._fit(work, torch.device(device))
        return self.to("cpu")

    def encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        """The loadings of rows; those of a row depend on no other row.

        Raises:
            InputError: not fitted yet, or another number of channels.
        """
        modes = self.modes
        if x.ndim != 2 or x.shape[1] != modes.shape[1]:
            raise InputError(f"this was fitted to rows [n, {modes.shape[1]}], got {list(x.shape)}")
        with torch.no_grad():
            return self._encode(x.to(modes))

    def latents(
        self, x: Float[Tensor, "*batch C"], indices: Int[Tensor, "n"] | None = None
    ) -> Float[Tensor, "*batch n"]:
        """`encode(x)[..., indices]` as a differentiable function of x: what an attribution of a latent starts from.

        Which latents are on, which are the largest, and the statistics that rows are normalised by are held constant.
        One pass through the encoder; of its rows only those of `indices`, unless which latents are on depends on all.

        Raises:
            InputError: not fitted, no encoder, another number of channels, or indices that no latent has.
        """
        modes = self.modes
        if not x.ndim or x.shape[-1] != modes.shape[1]:
            raise InputError(f"this was fitted to rows [..., {modes.shape[1]}], got {list(x.shape)}")
        if indices is not None:
            indices = self._checked(indices).to(modes.device)
        found = self._latents(x.reshape(-1, x.shape[-1]).to(modes), indices)
        return found.reshape(*x.shape[:-1], found.shape[1])

    def encoder_rows(self, indices: Int[Tensor, "n"] | None = None) -> Float[Tensor, "n C"]:
        """The directions that a linear encoder measures rows along, before what switches latents on or off.

        Raises:
            InputError: not fitted, no linear encoder, or indices that no latent has.
        """
        modes = self.modes
        return self._encoder_rows(slice(None) if indices is None else self._checked(indices).to(modes.device)).detach()

    def decode(self, z: Float[Tensor, "n K"]) -> Float[Tensor, "n C"]:
        """What loadings stand for: `z @ modes`, and the offset where there is one."""
        modes = self.modes
        if z.ndim != 2 or z.shape[1] != len(modes):
            raise InputError(f"expected loadings [n, {len(modes)}], got {list(z.shape)}")
        with torch.no_grad():
            found = z.to(modes) @ modes
            return found + self.offset if self.offset is not None else found

    def reconstruct(self, x: Float[Tensor, "n C"], z: Float[Tensor, "n K"] | None = None) -> Float[Tensor, "n C"]:
        """What rows are told as: `decode(encode(x))`, and what a row's own normalisation took away, where it did."""
        return self.decode(self.encode(x) if z is None else z)

    @property
    def modes(self) -> Float[Tensor, "K C"]:
        """The dictionary, a mode a row. Raises `InputError` before `fit`."""
        if not self.state:
            raise InputError(f"{type(self).__name__} has no modes yet: call fit(rows), or load a folder")
        return self._modes().detach()

    @property
    def atoms(self) -> Float[Tensor, "K C"]:
        """The modes, by their name in dictionary learning: the directions that codes combine."""
        return self.modes

    @property
    def offset(self) -> Float[Tensor, "C"] | None:
        """What is added to `z @ modes`; None where nothing is."""
        return self.state.get("offset")

    def to(self, device: str | torch.device) -> Self:
        """The same, with its tensors on a device."""
        self.state = {name: tensor.detach().to(device) for name, tensor in self.state.items()}
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tensors.safetensors` and `config.json`, the last as the sign that all is there."""
        place, modes = make_folder(Path(folder)), self.modes
        (place / CONFIG).unlink(missing_ok=True)
        write_tensors(place / TENSORS, self.state)
        about = {"format": FORMAT, "class": type(self).__name__, "settings": self.settings()}
        epochs = [asdict(epoch) for epoch in self.history]
        write_json(place / CONFIG, {**about, "modes": len(modes), "channels": modes.shape[1], "history": epochs})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """What `save` wrote; `Decomposition.load` takes any kind.

        Raises:
            InputError: no such folder, files that cannot be read, or of another class.
            UnknownNameError: a class that is not in `DECOMPOSITIONS`.
        """
        from backlight.decompositions import decomposition

        place = Path(folder)
        config = read_json(place / CONFIG)
        if config.get("format") != FORMAT:
            raise InputError(f"{str(place)!r} is of format {config.get('format')!r}; this Backlight reads {FORMAT}")
        found = decomposition(str(config.get("class")))
        if not issubclass(found, cls):
            raise InputError(f"{str(place)!r} holds a {found.__name__}, not a {cls.__name__}")
        known = {one.name for one in fields(found) if one.init}  # one that came after has its default, as it was
        if not set(config["settings"]) <= known:
            raise InputError(f"{str(place)!r} has settings {sorted(config['settings'])}, expected {sorted(known)}")
        given: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in config["settings"].items()
        }
        made = found(**given)
        made.state, _ = read_tensors(place / TENSORS)
        made.history = [Epoch(**epoch) for epoch in config["history"]]
        return made

    def count(self, channels: int) -> int:
        """The number of modes for so many channels. Raises `InputError` for what is no number and no multiple."""
        return count_modes(self.n_modes, channels)

    def check(self, n: int, channels: int) -> None:
        """Raise `InputError` for settings that cannot be, or not with so many rows and channels."""
        self.count(channels)

    def _fit(self, work: Work, device: torch.device) -> None:
        """Set `state`, the fitted tensors, and tell of each pass."""
        raise NotImplementedError

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        raise NotImplementedError

    def _latents(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Tensor:
        raise InputError(f"{type(self).__name__} has no encoder to differentiate; a sparse autoencoder has one")

    def _encoder_rows(self, chosen: Tensor | slice) -> Tensor:
        raise InputError(f"{type(self).__name__} has no linear encoder; a sparse autoencoder of one layer has one")

    def _checked(self, indices: Tensor) -> Int[Tensor, "n"]:
        n_modes = len(self.modes)
        if indices.ndim != 1 or (len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < n_modes):
            raise InputError(f"indices are a vector of numbers from 0 to {n_modes - 1}, got {indices.tolist()}")
        return indices

    def _modes(self) -> Float[Tensor, "K C"]:
        return self.state["modes"]

    def _classes(self, rows: Rows, labels: Tensor | np.ndarray | None) -> Tensor | None:
        if "labels" not in self.needs:
            return None
        if labels is None:
            raise InputError(f"{type(self).__name__} needs the rows' labels")
        found = torch.as_tensor(labels).long()
        if found.shape != (rows.shape[0],):
            raise InputError(f"expected a label for each of {rows.shape[0]} rows, got {list(found.shape)}")
        return found


@dataclass(frozen=True)
class Work:
    """What a fit is given."""

    rows: Rows
    held_out: Rows | None = None
    labels: Tensor | None = None
    folder: Path | None = None
    progress: Progress | None = None


def count_modes(n_modes: int | str, channels: int) -> int:
    """960 of 960, or of "3x" and 320 channels. Raises `InputError` for anything else."""
    try:
        text = str(n_modes)
        found = round(float(text[:-1]) * channels) if text.endswith("x") else int(text)
    except (ValueError, OverflowError):  # OverflowError: of infinity
        found = 0
    if found < 1:
        raise InputError(f"modes are a number from 1 on, or a multiple of the channels such as '3x'; got {n_modes!r}")
    return found


def plain_settings(one: Decomposition) -> dict[str, Any]:
    """Its settings as JSON holds them."""
    return json.loads(json.dumps(one.settings()))


def _as_rows(rows: Rows | Tensor | np.ndarray) -> Rows:
    return TensorRows(rows) if isinstance(rows, (Tensor, np.ndarray)) else rows
