"""The explicit rules of AttnLRP in plain matrices, epsilon -> 0: from an operation's output to its inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def through_linear(x: Tensor, weight: Tensor, bias: Tensor | float, relevance: Tensor) -> Tensor:
    return x * ((relevance / (x @ weight.T + bias)) @ weight)


def through_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    return a * relevance / (a + b), b * relevance / (a + b)


def through_softmax(x: Tensor, relevance: Tensor) -> Tensor:
    return x * (relevance - x.softmax(-1) * relevance.sum(-1, keepdim=True))


def through_product(a: Tensor, v: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    share = relevance / (2 * (a @ v))
    return a * (share @ v.mT), v * (a.mT @ share)


def through_layer_norm(norm: nn.LayerNorm, x: Tensor, relevance: Tensor) -> Tensor:
    centring = torch.eye(x.shape[-1], dtype=x.dtype) - 1 / x.shape[-1]
    deviation = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    scaled = (x @ centring) / deviation * norm.weight
    on_scaled = through_sum(scaled, norm.bias.expand_as(scaled), relevance)[0]
    return through_linear(x, centring, 0.0, on_scaled)  # identity through the scale and through 1 / deviation


class Block(nn.Module):
    """A pre-norm transformer block with the fused kernel; `by_hand` spells the attention out."""

    def __init__(self, size: int = 8, heads: int = 2, by_hand: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.fc1, self.fc2 = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.heads, self.by_hand = heads, by_hand

    def forward(self, x: Tensor) -> Tensor:
        n, length, size = x.shape
        packed = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, size // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if self.by_hand:
            mixed = (q * (size // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, length, size))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def drawn(model: nn.Module, bias: float = 0.3) -> Any:
    """The model in float64, with weights that let a signal through."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(noise * (1 / math.sqrt(parameter[0].numel())) * 1.5)
            elif "weight" in name or "gamma" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(bias * noise)
    return model


def through_block(block: Any, x: Tensor, relevance: Tensor, names: dict[str, str] | None = None) -> Tensor:
    """The relevance of a block's input, `[L, D]`, rule by rule, from the end to the beginning."""
    names = names or {}

    def part(name: str) -> Any:
        return block.get_submodule(names.get(name, name))

    width = x.shape[1]
    heads = block.heads if hasattr(block, "heads") else block.attn.num_heads
    normed = part("norm1")(x)
    q, k, v = part("qkv")(normed).reshape(len(x), 3, heads, width // heads).permute(1, 2, 0, 3)
    scale = (width // heads) ** -0.5
    logits = scale * q @ k.mT
    weights = logits.softmax(-1)
    mixed = (weights @ v).transpose(0, 1).reshape(x.shape)
    attended = part("proj")(mixed)
    middle = x + attended
    z = part("fc1")(part("norm2")(middle))
    a = F.gelu(z)

    on_middle, on_mlp = through_sum(middle, part("fc2")(a), relevance)
    on_a = through_linear(a, part("fc2").weight, part("fc2").bias, on_mlp)  # the identity rule: relevance of z
    on_norm2 = through_linear(part("norm2")(middle), part("fc1").weight, part("fc1").bias, on_a)
    on_middle = on_middle + through_layer_norm(part("norm2"), middle, on_norm2)

    on_x, on_attended = through_sum(x, attended, on_middle)
    on_mixed = through_linear(mixed, part("proj").weight, part("proj").bias, on_attended)
    on_mixed = on_mixed.reshape(len(x), heads, -1).transpose(0, 1)
    on_weights, on_v = through_product(weights, v, on_mixed)
    on_logits = through_softmax(logits, on_weights)
    on_q, on_k = through_product(scale * q, k.mT, on_logits)
    on_qkv = torch.stack((on_q, on_k.mT, on_v)).permute(2, 0, 1, 3).reshape(len(x), -1)
    on_normed = through_linear(normed, part("qkv").weight, part("qkv").bias, on_qkv)
    return on_x + through_layer_norm(part("norm1"), x, on_normed)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
