"""Weights of retina networks: Backlight's own files, and the layout of the published torch-deep-retina checkpoints.

A published file is a dictionary with `model_state_dict` and, under `hyps` or `model_hyps`, what the network was made
with. The state dict numbers the modules of one sequence, `sequential.{i}.`:

- a convolution: `weight` [C, c, k, k] and `bias`; or, made of a stack of smaller ones without nonlinearity, the same
  behind `convs.{j}.`, with absolute batch norms between them or not;
- an absolute batch norm: `scale`, `shift`, `running_mean`, `running_var`, over channels, or channels x positions;
- noise: `sigma` [1]; the ganglion cells: a convolution, or a `weight` [cells, units].

Cells of the convolutional kind are read at positions that follow from `centers` among the hyperparameters.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError, ModelError
from backlight.models.checkpoints import load_strictly
from backlight.models.retina import EPSILON, RetinaNetwork, map_sizes
from backlight.shapes import Float

KIND = "backlight.retina"
STACKED = 1e-5  # epsilon of the batch norms inside a stack
_NORM = ("scale", "shift", "running_mean", "running_var")
_REFUSED = {"softplus": True, "infr_exp": False, "inference_exp": False, "one2one": False, "recurrent": False}


def save_retina(network: RetinaNetwork, path: str | os.PathLike[str]) -> None:
    """Write a network with its settings as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    about = {"about": json.dumps({"kind": KIND, "settings": network.settings})}
    where = Path(path)
    partial = where.with_name(f".{where.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(save({name: one.cpu().contiguous() for name, one in network.state_dict().items()}, about))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(where)
    except OSError as error:
        raise ModelError(f"cannot write {str(where)!r}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def load_retina(
    path: str | os.PathLike[str],
    *,
    size: Sequence[int] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    output_epsilon: float = EPSILON,
) -> RetinaNetwork:
    """A network in evaluation mode, of a file of `save_retina`, or of a published checkpoint (`.pt` or safetensors).

    Stacks of convolutions become the one convolution that they are. Nothing but tensors, arrays and plain values is
    ever unpickled.

    Args:
        size: (H, W) of the stimulus, where the file does not say.
        positions: of the cells in the last map; None: from the file's `centers`.
        output_epsilon: of the cells' batch norm, which the file does not say: 1e-3 in the last version of the
            published code; versions before have 1e-5 for convolutional cells.

    Raises:
        ModelError: a file that cannot be read, or of another layout; the message says which part.
    """
    where = Path(path)
    if not where.is_file():
        raise ModelError(f"cannot read {str(where)!r}: there is no such file")
    if where.suffix.lower() == ".safetensors":
        state, about = _read_safetensors(where)
        if about.get("kind") == KIND:
            network = RetinaNetwork(**about["settings"])
            load_strictly(network, state, repr(str(where)))
            return network.eval()
        told: Mapping[str, Any] = about
    else:
        state, told = _published(where)
    try:
        return _Layout(state, told).network(size, positions, output_epsilon)
    except (ModelError, InputError) as error:
        raise ModelError(f"{str(where)!r}: {error}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}") from None


def _published(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        with torch.serialization.safe_globals(_plain_arrays()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the unpickler raise nearly anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot read {str(path)!r} as tensors and plain values: {line}") from None
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{str(path)!r} holds a {type(loaded).__name__}, not a checkpoint")
    state = loaded.get("model_state_dict", loaded.get("state_dict", loaded))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{str(path)!r} has no model_state_dict of tensors")
    told = next((loaded[key] for key in ("hyps", "model_hyps") if isinstance(loaded.get(key), Mapping)), None)
    return dict(state), told or {}


def _plain_arrays() -> list[Any]:
    """What NumPy's arrays and numbers are pickled as; the published files keep the stimulus' statistics so."""
    from numpy._core import multiarray

    kinds = [type(np.dtype(one)) for one in ("f4", "f8", "i4", "i8", "b1")]
    functions = {name: getattr(multiarray, name) for name in ("_reconstruct", "scalar")}
    before = [(one, f"numpy.core.multiarray.{name}") for name, one in functions.items()]  # as NumPy 1 names them
    return [np.ndarray, np.dtype, *functions.values(), *before, *kinds]


class _Layout:
    """A published state dict, by its modules in their order."""

    def __init__(self, state: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        self.told = told
        modules: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            found = re.fullmatch(r"(?:module\.)?sequential\.(\d+)\.(.+)", name)
            if not found:
                raise ModelError(f"{name!r} is no part of a sequence of layers, sequential.NUMBER.NAME")
            modules.setdefault(int(found[1]), {})[found[2]] = value.float()
        self.parts = [modules[place] for place in sorted(modules) if set(modules[place]) != {"sigma"}]
        self.noise = next((float(one["sigma"].reshape(-1)[0]) for one in modules.values() if "sigma" in one), 0.05)
        kinds = [_kind(part) for part in self.parts]
        if kinds not in ([["filter", "norm"] * 3]):
            raise ModelError(
                f"expected three times filter and absolute batch norm, got {', '.join(kinds) or 'nothing'}"
            )
        for name, wanted in _REFUSED.items():
            if bool(told.get(name, wanted)) != wanted:
                raise ModelError(f"it was made with {name}={told[name]!r}: such networks are not read")
        if any(map(int, told.get("paddings") or ())):
            raise ModelError(f"it was made with paddings={told['paddings']!r}: padded stacks are not one convolution")

    def network(
        self, size: Sequence[int] | None, positions: Sequence[Sequence[int]] | None, output_epsilon: float
    ) -> RetinaNetwork:
        """The network, with its weights."""
        filters = [_collapsed(part) for part in self.parts[::2]]
        norms = self.parts[1::2]
        shape = self.told.get("img_shape")
        if size is None and shape is None:
            raise ModelError("it does not say how large the stimulus is: give size=(H, W)")
        pixels = [int(one) for one in (size if size is not None else shape[-2:])]  # type: ignore[index]
        local = filters[2][0].ndim == 4
        kernels = [weight.shape[-1] for weight, _ in filters[: 2 + local]]
        maps = map_sizes(pixels, kernels, local)
        if local and positions is None:
            positions = self._positions(pixels, kernels, maps[2])
        channels = [len(weight) for weight, _ in filters[:2]]
        norm = "channel" if len(norms[0]["scale"]) == channels[0] else "unit"
        network = RetinaNetwork(
            len(filters[2][0]),
            frames=filters[0][0].shape[1],
            size=pixels,
            channels=channels,
            kernels=kernels,
            norm=norm,
            noise=self.noise,
            positions=positions if local else None,
            output_epsilon=output_epsilon,
        )
        names = ("first.convolution", "second.convolution", "cells.weights")
        state = {name: value for name, value in network.state_dict().items() if name == "cells.positions"}
        for name, (weight, bias) in zip(names, filters, strict=True):
            state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        for name, part in zip(("first.norm", "second.norm", "cells.norm"), norms, strict=True):
            state |= {f"{name}.{entry}": part[entry] for entry in _NORM}
        load_strictly(network, state)
        return network.eval()

    def _positions(self, size: Sequence[int], kernels: Sequence[int], last: tuple[int, int]) -> list[list[int]]:
        """min(max(0, center - half), side - 2 (half - 1)), half = k1 - 1 + k2 - 1 + floor(k3 / 2): the published rule.

        It counts from the end where it is negative, which it is with the published sizes: all cells are then read at
        one position, and their filters tell them apart.
        """
        centers = self.told.get("centers")
        if centers is None:
            raise ModelError("it does not say where the cells are: give positions=[(row, column), ...]")
        half = kernels[0] - 1 + kernels[1] - 1 + kernels[2] // 2
        found = []
        for center in centers:
            place = [min(max(0, int(c) - half), side - 2 * (half - 1)) for c, side in zip(center, size, strict=True)]
            found.append([one + side if one < 0 else one for one, side in zip(place, last, strict=True)])
        return found


def _kind(part: Mapping[str, Tensor]) -> str:
    if set(part) == set(_NORM):
        return "norm"
    return "filter" if "weight" in part or any(name.startswith("convs.") for name in part) else "/".join(sorted(part))


def _collapsed(part: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a filter; of a stack, those of the one convolution that it is."""
    places = sorted({int(name.split(".")[1]) for name in part if name.startswith("convs.")})
    stack = [{name.split(".", 2)[2]: part[name] for name in part if name.startswith(f"convs.{i}.")} for i in places]
    if not places:
        stack = [dict(part)]
    weight: Tensor | None = None
    bias = torch.zeros(0)
    for layer in stack:
        if set(layer) == set(_NORM) and weight is not None:
            gain = layer["scale"].abs() * (layer["running_var"] + STACKED).rsqrt()
            weight = weight * gain[:, None, None, None]
            bias = (bias - layer["running_mean"]) * gain + layer["shift"]
            continue
        if not {"weight"} <= set(layer) <= {"weight", "bias"}:
            raise ModelError(f"a stack of convolutions has a layer of {sorted(layer)}")
        own, shift = layer["weight"], layer.get("bias", torch.zeros(len(layer["weight"])))
        if weight is None:
            weight, bias = own, shift
        else:
            if own.shape[1] != len(weight):
                raise ModelError(f"filters {list(own.shape)} do not take the {len(weight)} channels before them")
            weight, bias = composed(weight, own), own.sum((2, 3)) @ bias + shift
    assert weight is not None
    return weight, bias


def composed(first: Float[Tensor, "b a k k"], second: Float[Tensor, "c b l l"]) -> Float[Tensor, "c a m m"]:
    """The kernel, k + l - 1 wide, that a convolution and one behind it are together (no padding, stride 1).

    W[c, a] = sum_b second[c, b] * first[b, a], * the full convolution; float64 inside.
    """
    pad = second.shape[-1] - 1
    maps = F.pad(first.double().transpose(0, 1), (pad, pad, pad, pad))  # [a, b, ...]
    return F.conv2d(maps, second.double().flip(2, 3)).transpose(0, 1).to(first.dtype)
