"""Weights from files: reading a state dict safely, and loading it strictly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.errors import ModelError

Weights = str | os.PathLike[str] | Mapping[str, Any]

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "params")  # keys that training scripts save under
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's


def read_state_dict(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a state dict, of a `.safetensors` file, or of a file that `torch.save` wrote.

    A checkpoint that holds the state dict under "state_dict", "model", ... is unwrapped, and the prefixes "module."
    and "_orig_mod." are taken off. Only tensors and plain containers are unpickled (`weights_only=True`), always.

    Raises:
        ModelError: no such file, not a checkpoint, other Python objects inside, or no tensors.
    """
    if isinstance(weights, Mapping):
        return _tensors(weights, "the state dict given")
    path = Path(weights)
    where = f"{str(path)!r}"
    if not path.is_file():
        raise ModelError(f"cannot read weights from {where}: there is no such file")
    if path.suffix.lower() == ".safetensors":
        return _tensors(_read_safetensors(path), where)
    return _tensors(_read_torch(path), where)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str = "the state dict") -> None:
    """Load a state dict whose names and shapes must all fit.

    Raises:
        ModelError: missing or unexpected names, or other shapes, a few of each listed; the model is then unchanged.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if not (missing or unexpected or shapes):
        model.load_state_dict(state, strict=True)
        return
    parts = [
        f"{len(names)} {what} ({_few(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    hint = "; classes= with one name per output builds a matching head" if shapes and not missing else ""
    raise ModelError(f"{where} does not fit {type(model).__name__}: {', '.join(parts)}{hint}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"cannot read weights from {str(path)!r}: {_first_line(error)}") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the unpickler raise nearly anything
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds Python objects besides tensors, or is no checkpoint; save model.state_dict() alone"
        else:
            reason = _first_line(error)
        raise ModelError(f"cannot read weights from {str(path)!r}: {reason}") from None


def _tensors(loaded: Any, where: str) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is not None:
            loaded = inner
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        kind = f"keys {_few(map(str, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ModelError(f"expected a state dict (names to tensors) in {where}, got {kind}")
    state = {str(name): tensor for name, tensor in loaded.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _few(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
