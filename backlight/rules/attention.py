"""Attention: queries and keys are held, the cotangent passes the values only (Semantic Pullbacks, A.5).

o = A v with A = softmax(q k^T / sqrt(d)); delta_v = B^T delta_o, delta_q = delta_k = 0, where B = A, or the softer
softmax(q k^T / (sqrt(d) tau)) (equation 17). Attention written by hand is caught at its softmax and at the product with
the values. `F.multi_head_attention_forward` is Python that calls other torch functions where no mode is active; its
mathematics is spelled out here, call by call, and re-enters the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine.adjoint import replace_adjoint
from backlight.engine.rules import Call, Mark, needs_gradient


@dataclass(frozen=True)
class AttentionRule:
    """The fused kernel with q and k held; at another temperature than 1, its softer weights in the backward pass."""

    temperature: float = 1.0
    label: str = "held weights"

    def __call__(self, call: Call) -> Any:
        names = ("query", "key", "value")
        q, k, v = (call.argument(position, name) for position, name in enumerate(names))
        rest = {key: value for key, value in call.kwargs.items() if key not in names}

        def fused(value: Tensor, q: Tensor, k: Tensor) -> Any:
            return call.function(q, k, value, *call.args[3:], **rest)

        if not needs_gradient(v) or (self.temperature == 1 and not call.run.phase.differentiable):
            return fused(v, q.detach(), k.detach())

        def vjp(value: Tensor, y: Any, cotangent: Tensor, q: Tensor, k: Tensor) -> Tensor:
            weights = self._soft_weights(call, q, k)
            groups = weights.shape[-3] // value.shape[-3] if value.ndim > 2 else 1
            result = weights.transpose(-2, -1) @ cotangent
            if groups > 1:  # grouped queries share a value head
                result = result.unflatten(-3, (value.shape[-3], groups)).sum(-3)
            return result

        return replace_adjoint(v, fused, vjp, "z", call.run.phase, (q, k))

    def _soft_weights(self, call: Call, q: Tensor, k: Tensor) -> Tensor:
        mask, causal = call.argument(3, "attn_mask"), call.argument(5, "is_causal", False)
        scale = call.argument(6, "scale") or 1 / math.sqrt(q.shape[-1])
        if k.ndim > 2 and q.shape[-3] != k.shape[-3]:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        logits = q @ k.transpose(-2, -1) * scale
        if causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        return softened(logits, self.temperature)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) on the last axis; at 0, equal shares of the largest."""
    if temperature > 0:
        return (logits / temperature).softmax(-1)
    largest = (logits == logits.amax(-1, keepdim=True)).to(logits.dtype)
    return largest / largest.sum(-1, keepdim=True)


@dataclass(frozen=True)
class SoftmaxRule:
    """A softmax, remembered as weights: products hold it. Where it is no weight (a model's output), the gradient.

    At another temperature than 1 products meet softer weights in the backward pass.
    """

    temperature: float = 1.0
    label: str = "weights"

    def __call__(self, call: Call) -> Any:
        result = call.original()
        softer = None
        if self.temperature != 1:
            axis = call.argument(1, "dim")
            logits = call.input if call.run.phase.differentiable else call.input.detach()
            logits = logits.movedim(-1 if axis is None else axis, -1)
            softer = softened(logits, self.temperature).movedim(-1, -1 if axis is None else axis)
        call.run.marks[result] = Mark("weights", softer)
        return result


@dataclass(frozen=True)
class MultiheadRule:
    """`F.multi_head_attention_forward`, spelled out in torch functions that re-enter the run.

    The arguments are PyTorch's (`torch.nn.functional.multi_head_attention_forward`), and so is the order of operations:
    forward values are equal bit for bit.
    """

    label: str = "spelled out"

    def __call__(self, call: Call) -> Any:
        given = _arguments(call)
        with call.run:
            return _multihead(**given)


_NAMES = [
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
    "training",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "use_separate_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "static_k",
    "static_v",
    "average_attn_weights",
    "is_causal",
]


def _arguments(call: Call) -> dict[str, Any]:
    defaults = {"training": True, "need_weights": True, "average_attn_weights": True}
    return {**dict.fromkeys(_NAMES), **defaults, **dict(zip(_NAMES, call.args, strict=False)), **call.kwargs}


def _projected(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v `[L, N, E]`, in the three forms that PyTorch has."""
    query, key, value = given["query"], given["key"], given["value"]
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    if given["use_separate_proj_weight"]:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        weights = (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v
    size = query.shape[-1]
    if key is value and query is key:
        packed = F.linear(query, weight, bias).unflatten(-1, (3, size)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        packed = packed.contiguous()
        return packed[0], packed[1], packed[2]
    if key is value:
        w_q, w_kv = weight.split([size, size * 2])
        b_q, b_kv = (None, None) if bias is None else bias.split([size, size * 2])
        packed = F.linear(key, w_kv, b_kv).unflatten(-1, (2, size)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        packed = packed.contiguous()
        return F.linear(query, w_q, b_q), packed[0], packed[1]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True))
    return q, k, v


def _mask(given: dict[str, Any], batch: int, heads: int, targets: int, sources: int, dtype: torch.dtype) -> Any:
    """Attention and key-padding masks merged into one additive float mask, or None."""

    def additive(mask: Tensor | None) -> Tensor | None:
        if mask is None or mask.is_floating_point():
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)

    attention, padding = additive(given["attn_mask"]), additive(given["key_padding_mask"])
    if attention is not None and attention.ndim == 2:
        attention = attention.unsqueeze(0)
    if padding is None:
        return attention
    padding = padding.view(batch, 1, 1, sources).expand(-1, heads, -1, -1).reshape(batch * heads, 1, sources)
    return padding if attention is None else attention + padding


def _grown(given: dict[str, Any], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the learned extra token, and masks that let it pass."""
    if given["bias_k"] is None or given["bias_v"] is None:
        return k, v
    batch = k.shape[1]
    k = torch.cat([k, given["bias_k"].repeat(1, batch, 1)])
    v = torch.cat([v, given["bias_v"].repeat(1, batch, 1)])
    _pad_masks(given)
    return k, v


def _pad_masks(given: dict[str, Any]) -> None:
    for name in ("attn_mask", "key_padding_mask"):
        if given[name] is not None:
            given[name] = F.pad(given[name], (0, 1))


def _batch(given: dict[str, Any]) -> None:
    """A batch of one; as in PyTorch, tensors that were the same are no longer projected together."""
    given.update({name: given[name].unsqueeze(1) for name in ("query", "key", "value")})
    if given["key_padding_mask"] is not None:
        given["key_padding_mask"] = given["key_padding_mask"].unsqueeze(0)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Attention with its weights at hand; q, k, v `[N heads, L, width]`; output `[L, N heads, width]`."""
    scaled, k = q * math.sqrt(1.0 / q.shape[-1]), k.transpose(-2, -1)
    logits = torch.bmm(scaled, k) if mask is None else torch.baddbmm(mask, scaled, k)
    weights = F.softmax(logits, dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return torch.bmm(weights, v).transpose(0, 1), weights


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, batch: int, causal: bool
) -> tuple[Tensor, None]:
    """The fused kernel; q, k, v `[N heads, L, width]`; output `[L, N, heads, width]`."""
    heads, sources = len(q) // batch, k.shape[1]
    if mask is not None:
        mask = mask.unsqueeze(0) if mask.shape[0] == 1 else mask.view(batch, heads, -1, sources)
    q, k, v = (x.view(batch, heads, x.shape[1], x.shape[2]) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).permute(2, 0, 1, 3), None


def _multihead(**given: Any) -> tuple[Tensor, Tensor | None]:
    unbatched = given["query"].ndim == 2
    if unbatched:
        _batch(given)
    causal = bool(given["is_causal"]) and not given["need_weights"] and given["key_padding_mask"] is None
    if causal:
        given["attn_mask"] = None
    targets, batch, size = given["query"].shape
    heads = given["num_heads"]
    width = size // heads
    q, k, v = _projected(given)
    k, v = _grown(given, k, v)
    q = q.view(targets, batch * heads, width).transpose(0, 1)
    k, v = (x.view(x.shape[0], batch * heads, width).transpose(0, 1) for x in (k, v))
    k = k if given["static_k"] is None else given["static_k"]
    v = v if given["static_v"] is None else given["static_v"]
    if given["add_zero_attn"]:
        k, v = (torch.cat([x, x.new_zeros(batch * heads, 1, width)], 1) for x in (k, v))
        _pad_masks(given)
    sources = k.shape[1]
    mask = _mask(given, batch, heads, targets, sources, q.dtype)
    dropout = given["dropout_p"] if given["training"] else 0.0
    weigh = _explicit if given["need_weights"] else partial(_fused, batch=batch, causal=causal)
    output, weights = weigh(q, k, v, mask, dropout)
    output = output.reshape(targets * batch, size)
    output = F.linear(output, given["out_proj_weight"], given["out_proj_bias"])
    output = output.view(targets, batch, output.shape[1])
    if weights is not None:
        weights = weights.view(batch, heads, targets, sources)
        weights = weights.mean(dim=1) if given["average_attn_weights"] else weights
    if unbatched:
        output = output.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return output, weights
