"""The sites at which a network's hidden units are looked at, where the user names none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from torch import nn

from backlight.errors import SiteError, UnknownNameError

KINDS = ("blocks", "tokens", "mlp", "attention")
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WHOLE = ("_DenseBlock", "DenseBlock", "XceptionModule")  # made of blocks, past which their input goes on
_FUSED = "calls its output projection as a function, not as a module"
_WINDOWED = "lays its windows out along the samples"
_UNREADABLE = {"MultiheadAttention": _FUSED, "ShiftedWindowAttention": _FUSED, "ShiftedWindowAttentionV2": _FUSED}
_UNREADABLE |= {"WindowAttention": _WINDOWED, "WindowMultiHeadAttention": _WINDOWED}
_ASIDE = re.compile(r"(aux|head|classifier|fc)", re.IGNORECASE)
_PROJECTIONS = ("proj", "out_proj", "c_proj", "o_proj", "output.dense", "to_out.0", "to_out")
_NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)


def default_sites(model: nn.Module, kind: str = "blocks") -> tuple[str, ...]:
    """Addresses of the layers that the paper looks at, in module order (sections 2 and 10.5).

    - `blocks`: outputs of the repeated blocks: the 16 residual blocks of a ResNet-50, the blocks of any network that
      has some, dense blocks as a whole; without blocks, the outputs of the activations;
    - `tokens`: outputs of the blocks with attention: the token features of a transformer;
    - `mlp`: inputs of the second linear layer of each block's MLP: its hidden units after the nonlinearity;
    - `attention`: inputs of each attention's output projection: its heads, side by side.

    A block is the outermost module with at least two layers with weights that is no list of such modules, where its
    class occurs again, or it stands in a list with those; where no class occurs again, any that stands in a list. It
    goes by the structure alone: the model is not run.

    Raises:
        UnknownNameError: another kind.
        SiteError: there are none, or attention that keeps its heads to itself; the message says what to do.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of sites", kind, KINDS)
    modules = dict(model.named_modules())
    blocks = _blocks(model)
    if kind == "blocks":
        found = tuple(blocks or [name for name, module in modules.items() if _is_activation(module)])
        if not found:
            raise SiteError(
                f"{type(model).__name__} has neither repeated blocks nor activations that are modules: name the sites "
                "(`backlight layers MODEL` lists them)"
            )
        return found
    attending = [name for name in blocks if _attention(modules[name])]
    if kind == "tokens":
        found = tuple(attending)
    elif kind == "mlp":
        found = tuple(f"{name}.{inner}:input" for name in blocks if (inner := _second_linear(modules[name])))
    else:
        found = tuple(_projection(name, modules[name]) for name in attending)
    if not found:
        raise SiteError(f"{type(model).__name__} has no sites of kind {kind!r}: its blocks have no such layer")
    return found


def _blocks(model: nn.Module) -> list[str]:
    """The names of the repeated blocks."""
    stages = {type(module) for module in model.modules() if not _is_list(module) and _has_a_row(module)}
    found = {name: module for name, module in _outermost(model, "", stages | {type(model)}) if not _ASIDE.match(name)}
    counts = Counter(type(module) for module in found.values())
    repeated = [name for name, module in found.items() if counts[type(module)] > 1]
    repeated = repeated or [name for name in found if _list(model, name)]
    if not repeated:
        return []
    lists = {_list(model, name) for name in repeated} - {""}
    order = list(found)
    within = order[order.index(repeated[0]) : order.index(repeated[-1]) + 1]
    return [name for name in order if name in within or _list(model, name) in lists]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, _LISTS) and type(module).__name__ not in _WHOLE


def _is_composite(module: nn.Module) -> bool:
    """At least two layers with weights, in a class of its own."""
    weighted = [m for m in module.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    return len(weighted) > 1 and not _is_list(module)


def _has_a_row(module: nn.Module) -> bool:
    """Whether there are two blocks of one class in a list below, or numbered ones: then it is a stage, or a model."""
    if type(module).__name__ in _WHOLE:
        return False
    for inner in module.modules():
        rows: Counter[tuple[type, str]] = Counter()
        for name, child in inner.named_children():
            stem = "" if isinstance(inner, _LISTS) else name.rstrip("0123456789")
            if _is_composite(child) and (isinstance(inner, _LISTS) or stem != name):
                rows[type(child), stem] += 1
        if any(count > 1 for count in rows.values()):
            return True
    return False


def _outermost(module: nn.Module, name: str, stages: set[type]) -> Iterator[tuple[str, nn.Module]]:
    """The outermost composite modules, inside of lists and stages."""
    for part, child in module.named_children():
        inner = f"{name}.{part}" if name else part
        if type(child).__name__ in _WHOLE:
            yield inner, child
        elif _is_list(child) or type(child) in stages:
            yield from _outermost(child, inner, stages)
        elif _is_composite(child):
            yield inner, child


def _list(model: nn.Module, name: str) -> str:
    """The outermost of the lists that a module is directly in; empty where it is in none."""
    found, above = "", name.rpartition(".")[0]
    while above and _is_list(model.get_submodule(above)):
        found, above = above, above.rpartition(".")[0]
    return found


def _is_activation(module: nn.Module) -> bool:
    """An activation of PyTorch or timm that is no softmax."""
    home = type(module).__module__
    known = home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations")
    return known and not isinstance(module, _NOT_ACTIVATIONS)


def _attention(block: nn.Module) -> tuple[str, nn.Module] | None:
    """The outermost attention of a block, by the name of its class."""
    for name, module in block.named_modules():
        if name and re.search("attention|attn", type(module).__name__, re.IGNORECASE):
            return name, module
    return None


def _second_linear(block: nn.Module) -> str | None:
    """The last linear layer of a block that narrows: it takes the hidden units of an MLP."""
    narrowing = [n for n, m in block.named_modules() if (widths := _widths(m)) and widths[0] > widths[1]]
    return narrowing[-1] if narrowing else None


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, or of the one that GPT-2 has in its place: its weight the other way round.

    By name: transformers need not be there.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        weight = module.get_parameter("weight")
        return weight.shape[0], weight.shape[1]
    return None


def _projection(name: str, block: nn.Module) -> str:
    """The site of the concatenated heads: what the attention's output projection takes."""
    found = _attention(block)
    assert found is not None
    inner, attention = found
    for module in attention.modules():
        if reason := _UNREADABLE.get(type(module).__name__):
            raise SiteError(
                f"{name}.{inner} is a {type(module).__name__}, which {reason}: its heads cannot be read; those of "
                "timm's and Hugging Face's vision transformers can"
            )
    linear = [n for n, m in attention.named_modules() if _widths(m)]
    known = [n for n in linear if n in _PROJECTIONS]
    if not linear:
        raise SiteError(f"{name}.{inner} ({type(attention).__name__}) has no linear output projection: name the sites")
    return f"{name}.{inner}.{(known or linear)[-1]}:input"
