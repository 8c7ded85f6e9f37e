"""Sparse autoencoders that other libraries trained, read from their files as the class of ours that computes the same.

A format is a function of a dictionary's tensors and settings, by the tensors' names and shapes; nothing that a file
holds is run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.decompositions import decomposition
from backlight.decompositions.decomposition import Decomposition
from backlight.decompositions.folder import read_json, read_tensors
from backlight.errors import InputError, UnknownNameError

SAELENS_FILES = ("cfg.json", "sae_weights.safetensors")
DICTIONARY_LEARNING_FILES = ("config.json", "ae.pt")
Tensors = Mapping[str, Tensor]


def load_foreign(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    kind: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
) -> Decomposition:
    """A fitted dictionary from a checkpoint of another library.

    "saelens": a folder with `cfg.json` and `sae_weights.safetensors`; standard, topk, jumprelu, gated, and training
    checkpoints of batchtopk and matryoshka_batchtopk. "dictionary_learning": a folder with `ae.pt` and `config.json`,
    or the file alone; AutoEncoder, GatedAutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and
    JumpReluAutoEncoder. "overcomplete": a state dict, as safetensors or written by `torch.save`; SAE, TopKSAE,
    BatchTopKSAE and JumpSAE with the linear encoder. "auto" finds which by the names.

    A gated autoencoder becomes a `JumpReLUSAE`, which it is: on where W x + b_gate > 0 is above a threshold of the
    magnitude. Codes are the other library's, but for rows that SAELens normalises by a layer norm: there ours are in
    the rows' units (see `UnitSAE`). Modes are as long as in the file.

    `kind`, `k`, `threshold`: what a file does not hold: Overcomplete keeps neither the class, where it is not JumpSAE,
    nor TopKSAE's k, nor BatchTopKSAE's running threshold.

    Raises:
        InputError: no such file, one that holds more than tensors, or tensors and settings that are not understood.
        UnknownNameError: a format that is none of these.
    """
    if format not in ("auto", *FORMATS):
        raise UnknownNameError("format", format, ("auto", *FORMATS))
    place = Path(path)
    found = _format(place) if format == "auto" else format
    config, tensors = _read(place, found)
    told = {"kind": kind, "k": k, "threshold": threshold}
    try:
        return FORMATS[found](tensors, config, told)
    except UnknownNameError:
        raise
    except KeyError as error:
        raise InputError(
            f"{str(place)!r}, read as {found}, has no {error}: {', '.join(sorted(tensors))} and settings "
            f"{', '.join(sorted(config)) or 'none'}"
        ) from None


def _saelens(tensors: Tensors, config: Mapping[str, Any], told: Mapping[str, Any]) -> Decomposition:
    """W_enc [C, K], W_dec [K, C], biases b_enc and b_dec; by `architecture`, threshold, b_gate, r_mag and b_mag."""
    architecture = str(config.get("architecture", "standard"))
    normalisation = config.get("normalize_activations", "none")
    if normalisation not in ("none", "layer_norm"):
        raise InputError(
            f"SAELens' normalize_activations={normalisation!r} divides rows by a number that the file does not hold: "
            f"fold it into the weights first (fold_activation_norm_scaling_factor)"
        )
    if config.get("reshape_activations", "none") != "none" or config.get("finetuning_scaling_factor"):
        raise InputError("SAELens' reshape_activations and finetuning_scaling_factor are not read")
    modes, encoder, offset = tensors["W_dec"], tensors["W_enc"].T, tensors["b_dec"]
    shift = torch.zeros(len(modes)) if config.get("apply_b_dec_to_input", True) else encoder @ offset
    made = {"encoder": encoder, "modes": modes, "offset": offset}
    normalise = {"normalise": "token" if normalisation == "layer_norm" else "none"}
    if architecture == "gated":
        if normalise["normalise"] != "none":
            raise InputError("a gated autoencoder of SAELens with a layer norm is not read")
        return _gated({**made, "gate": tensors["b_gate"] + shift}, tensors["r_mag"], tensors["b_mag"], shift)
    made["bias"] = tensors["b_enc"] + shift
    if config.get("rescale_acts_by_decoder_norm"):
        length = modes.norm(dim=1)
        made |= {"modes": modes / length[:, None], "encoder": encoder * length[:, None], "bias": made["bias"] * length}
    if architecture == "standard" and config.get("activation_fn_str", "relu") == "topk":
        return _made("TopKSAE", made, k=int(config["activation_fn_kwargs"]["k"]), **normalise)
    if architecture == "standard":
        return _made("ReLUSAE", made, **normalise)
    if architecture == "topk":
        return _made("TopKSAE", made, k=int(config["k"]), **normalise)
    if architecture == "jumprelu":
        return _made("JumpReLUSAE", made | _thresholds(tensors["threshold"]), **normalise)
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        made["_threshold"] = tensors["topk_threshold"].float().reshape(())
        return _made("BatchTopKSAE", made, k=round(float(config["k"])), **normalise)
    raise UnknownNameError(
        "architecture of SAELens", architecture, ("standard", "topk", "jumprelu", "gated", "batchtopk")
    )


def _dictionary_learning(tensors: Tensors, config: Mapping[str, Any], told: Mapping[str, Any]) -> Decomposition:
    """`encoder.weight` [K, C] and `decoder.weight` [C, K], or W_enc [C, K] and W_dec [K, C], by class."""
    name = str(config.get("trainer", {}).get("dict_class") or told["kind"] or _class_by_names(tensors))
    if name in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        modes, encoder, bias = tensors["W_dec"], tensors["W_enc"].T, tensors["b_enc"]
    else:
        modes, encoder = tensors["decoder.weight"].T, tensors["encoder.weight"]
        bias = tensors["encoder.bias"] if name != "GatedAutoEncoder" else tensors["gate_bias"]
    made = {"modes": modes, "encoder": encoder}
    if name == "GatedAutoEncoder":
        made |= {"gate": bias, "offset": tensors["decoder_bias"]}
        return _gated(made, tensors["r_mag"], tensors["mag_bias"], torch.zeros(len(modes)))
    if name == "AutoEncoder":
        return _made("ReLUSAE", {**made, "bias": bias, "offset": tensors["bias"]})
    made |= {"offset": tensors["b_dec"], "bias": bias}
    if name == "JumpReluAutoEncoder":
        if not config.get("trainer", {}).get("apply_b_dec_to_input", False):
            made["bias"] = bias + encoder @ tensors["b_dec"]
        return _made("JumpReLUSAE", made | _thresholds(tensors["threshold"]))
    k = int(tensors["k"])
    if name == "AutoEncoderTopK":
        return _made("TopKSAE", made, k=k)
    made["_threshold"] = tensors["threshold"].float().reshape(())
    if name == "BatchTopKSAE":
        return _made("BatchTopKSAE", made, k=k)
    if name == "MatryoshkaBatchTopKSAE":
        sizes = tensors["group_sizes"].tolist()
        return _made("MatryoshkaSAE", made, k=k, groups=tuple(size / sum(sizes) for size in sizes))
    raise UnknownNameError("class of dictionary_learning", name, ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"))


def _overcomplete(tensors: Tensors, config: Mapping[str, Any], told: Mapping[str, Any]) -> Decomposition:
    """`encoder.final_block.0` is linear, the dictionary is `_weights` [K, C] times exp(`multiplier`); no offset."""
    if "dictionary._weights" not in tensors:
        raise InputError("Overcomplete's archetypal dictionaries do not keep the bound on their relaxation: not read")
    known = {"encoder.final_block.0.weight", "encoder.final_block.0.bias", "thresholds"}
    others = [name for name in tensors if not name.startswith("dictionary.") and name not in known]
    if others:
        raise InputError(f"of Overcomplete's encoders the linear one is read, this has {', '.join(sorted(others)[:4])}")
    made = {
        "encoder": tensors["encoder.final_block.0.weight"],
        "bias": tensors["encoder.final_block.0.bias"],
        "modes": tensors["dictionary._weights"] * tensors["dictionary.multiplier"].exp(),
    }
    kind, k, threshold = told["kind"], told["k"], told["threshold"]
    if "thresholds" in tensors:
        return _made("JumpReLUSAE", {**made, "log_threshold": tensors["thresholds"]})
    if kind == "SAE":
        return _made("ReLUSAE", made)
    if kind == "TopKSAE" and k is not None:
        return _made("TopKSAE", made, k=k)
    if kind == "BatchTopKSAE" and threshold is not None:
        below = torch.nextafter(torch.tensor(threshold, dtype=torch.float32), torch.tensor(-torch.inf))
        return _made("BatchTopKSAE", {**made, "_threshold": below})  # theirs is on at the threshold too
    raise InputError(
        "Overcomplete's file does not say what it is: give kind='SAE'; kind='TopKSAE' and k; or kind='BatchTopKSAE' "
        f"and threshold (its running_threshold); got kind={kind!r}, k={k}, threshold={threshold}"
    )


FORMATS: dict[str, Callable[[Tensors, Mapping[str, Any], Mapping[str, Any]], Decomposition]] = {
    "saelens": _saelens,
    "dictionary_learning": _dictionary_learning,
    "overcomplete": _overcomplete,
}


def _made(name: str, state: Tensors, **settings: Any) -> Decomposition:
    """A fitted dictionary of a class, where shapes are what they must be."""
    modes, channels = state["modes"].shape
    expected = {"encoder": (modes, channels), "bias": (modes,), "offset": (channels,), "log_threshold": (modes,)}
    for key, shape in expected.items():
        if key in state and tuple(state[key].shape) != shape:
            raise InputError(f"{key} is {list(state[key].shape)}, expected {list(shape)} beside modes [K, C]")
    if settings.get("normalise") == "token":  # the mean row is not known: `decode` tells what is above a row's mean
        state = {**state, "_level": torch.zeros(()), "_scale": torch.ones(())}
    one = decomposition(name)(n_modes=modes, **{"normalise": "none", **settings})
    one.state = {key: tensor.detach().float().contiguous() for key, tensor in state.items()}
    return one


def _gated(made: Tensors, r_mag: Tensor, magnitude: Tensor, shift: Tensor) -> Decomposition:
    """z = relu(e^r W x + m) where W x + g > 0. With y = e^r W x + m, that is where y > m - e^r g."""
    gain = r_mag.exp()
    theta = magnitude - gain * (made["gate"] - shift)
    state = {key: tensor for key, tensor in made.items() if key != "gate"}
    state |= {"encoder": made["encoder"] * gain[:, None], "bias": magnitude + gain * shift}
    return _made("JumpReLUSAE", state | _thresholds(theta))


def _thresholds(theta: Tensor) -> dict[str, Tensor]:
    """As logarithms; below 0 the ReLU is the threshold."""
    return {"log_threshold": theta.clamp(min=0).log()}


def _class_by_names(tensors: Tensors) -> str:
    names = set(tensors)
    if "group_sizes" in names:
        return "MatryoshkaBatchTopKSAE"
    if "r_mag" in names:
        return "GatedAutoEncoder"
    if {"W_enc", "threshold"} <= names:
        return "JumpReluAutoEncoder"
    if {"bias", "encoder.weight"} <= names:
        return "AutoEncoder"
    raise InputError("without its config.json, give kind='AutoEncoderTopK' or kind='BatchTopKSAE'")


def _format(place: Path) -> str:
    if place.is_dir():
        for name, files in (("saelens", SAELENS_FILES), ("dictionary_learning", DICTIONARY_LEARNING_FILES[1:])):
            if all((place / file).exists() for file in files):
                return name
        raise InputError(
            f"{str(place)!r} holds neither {' and '.join(SAELENS_FILES)} (SAELens) nor ae.pt (dictionary_learning); a "
            f"state dict of Overcomplete is given by its file"
        )
    return "overcomplete" if any(name.startswith("dictionary.") for name in _tensors(place)) else "dictionary_learning"


def _read(place: Path, found: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors."""
    if found == "saelens":
        return read_json(place / SAELENS_FILES[0]), _tensors(place / SAELENS_FILES[1])
    if found == "dictionary_learning" and place.is_dir():
        settings, weights = (place / file for file in DICTIONARY_LEARNING_FILES)
        return read_json(settings) if settings.exists() else {}, _tensors(weights)
    return {}, _tensors(place)


def _tensors(path: Path) -> dict[str, Tensor]:
    """A file of named tensors, safetensors or torch's; never a pickle that runs code."""
    if path.suffix == ".safetensors":
        found = read_tensors(path)[0]
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            first = str(error).partition("\n")[0]
            raise InputError(f"cannot read {str(path)!r} as tensors alone: {first}") from None
    if not isinstance(found, Mapping) or not all(isinstance(one, Tensor) for one in found.values()):
        raise InputError(f"{str(path)!r} holds more than named tensors: save the autoencoder's state_dict()")
    return {str(name): one.float() if one.is_floating_point() else one for name, one in found.items()}
