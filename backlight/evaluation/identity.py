"""What decides an evaluation's numbers, as plain values that can be written, compared and hashed."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import backlight
from backlight.metrics.explainers import CaptumExplainer, Explainer, FunctionExplainer, MethodExplainer
from backlight.metrics.metric import Metric

_SCALARS = (bool, int, float, str)
LIBRARIES = ("torch", "numpy", "pillow", "pyarrow", "torchvision", "timm", "transformers", "captum", "grad-cam")


def sample_seed(seed: int, name: str) -> int:
    """The seed of one sample's draws: it depends on no other sample, nor on the order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "little")


def tensor_hash(tensor: Tensor) -> str:
    """A hash of a tensor's type, shape and entries."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    values = tensor.detach().cpu().contiguous()
    found.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return found.hexdigest()


def model_hash(model: nn.Module) -> str:
    """A hash of the class, and of the name, type, shape and entries of every parameter and buffer."""
    found = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {tensor_hash(tensor)}\n".encode())
    return found.hexdigest()


def names_hash(names: Iterable[str]) -> str:
    """A hash of a list of names, in its order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def combined_hash(*hashes: str) -> str:
    """One hash of several, 32 hexadecimal digits of it."""
    return names_hash(hashes)[:32]


def versions() -> dict[str, str]:
    """Of Backlight, Python, and of the libraries that are installed among those that may change numbers."""
    found = {"backlight": backlight.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def described_explainer(explainer: Explainer) -> dict[str, Any]:
    """An explainer's class and settings, those of what it wraps too. Of a function only the name is known."""
    if isinstance(explainer, MethodExplainer):
        one = explainer.method
        return {"class": type(one).__name__, "settings": {name: plain(getattr(one, name)) for name in one.settings()}}
    if isinstance(explainer, CaptumExplainer):
        return {**_constructed(explainer.attribution), "settings": plain(explainer.settings)}
    if isinstance(explainer, FunctionExplainer):
        return {"class": "function", "settings": {"function": plain(explainer.function)}}
    own = {name: value for name, value in vars(explainer).items() if isinstance(value, (*_SCALARS, Explainer))}
    settings = {
        name: described_explainer(value) if isinstance(value, Explainer) else value
        for name, value in sorted(own.items())
    }
    return {"class": type(explainer).__name__, "settings": settings}


def _constructed(attribution: Any) -> dict[str, Any]:
    """What an attribution object of Captum was made with: its layers by name, its numbers, and what it wraps."""
    model = attribution.forward_func
    names = {module: name for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}

    def told(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return f"layer {names.get(value, type(value).__name__)}"
        if isinstance(value, (list, tuple)):
            return [told(entry) for entry in value]
        return _constructed(value) if hasattr(value, "forward_func") else value if isinstance(value, _SCALARS) else None

    made = {name: told(value) for name, value in sorted(vars(attribution).items()) if name != "forward_func"}
    return {
        "class": f"captum {type(attribution).__name__}",
        "made with": {name: value for name, value in made.items() if value is not None},
    }


def described_metric(metric: Metric) -> dict[str, Any]:
    """A metric's class, settings and direction."""
    return {
        "class": type(metric).__name__,
        "settings": {name: plain(value) for name, value in metric.settings().items()},
        "higher_is_better": metric.higher_is_better,
        "sees_sign": metric.sees_sign,
    }


def plain(value: Any) -> Any:
    """A setting as JSON can hold it, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {tensor_hash(value)[:16]}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(entry) for entry in (sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, functools.partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text  # an address differs from run to run


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two plain values differ: `methods.SmoothGrad.settings.n_samples: 20 there, 40 now`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys((*old, *new)):
            path = f"{place}.{key}" if place else str(key)
            if key not in new or key not in old:
                found.append(f"{path}: {'there, not now' if key in old else 'now, not there'}")
            else:
                found += differences(old[key], new[key], path)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for place_, pair in enumerate(zip(old, new, strict=True))
            for line in differences(*pair, f"{place}[{place_}]")
        ]
    return [] if old == new else [f"{place}: {_short(old)} there, {_short(new)} now"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "…"
