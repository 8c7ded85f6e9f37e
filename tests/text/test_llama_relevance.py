"""AttnLRP of a whole Llama against its explicit rules: RMSNorm, SwiGLU, grouped queries, rotary embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explicit_rules import drawn, relative, through_linear, through_product, through_sum
from torch import Tensor

pytest.importorskip("transformers")

from small_languages import CONFIGS, IDS

from backlight.methods import method
from backlight.models.language_models import load_language_model
from backlight.text import explain_text

HEADS, GROUPS, SIZE = 4, 2, 4  # queries' heads, keys' heads, and the width of each
LAYER = "network.model.layers.{}"


def rms(norm: Any, x: Tensor) -> Tensor:
    """Its deviation is held, so that it is a scale of each entry: relevance passes as it is."""
    single = x.float()  # Llama's, in single precision whatever x is
    return norm.weight * (single * (single.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()).to(x.dtype)


def rotation(length: int) -> Tensor:
    """`[L, d, d]`: what the rotary embedding does to a head's vector at each position; entries i and i + d/2 turn."""
    matrices, half = torch.zeros(length, SIZE, SIZE, dtype=torch.float64), SIZE // 2
    for place in range(length):
        for i in range(half):
            angle = place * torch.tensor(10000.0 ** (-2 * i / SIZE))  # in single precision too
            matrices[place, i, i] = matrices[place, i + half, i + half] = angle.cos()
            matrices[place, i, i + half], matrices[place, i + half, i] = -angle.sin(), angle.sin()
    return matrices


def turned(x: Tensor, turn: Tensor) -> Tensor:
    return torch.einsum("hld,led->hle", x, turn)


def through_turn(x: Tensor, turn: Tensor, relevance: Tensor) -> Tensor:
    return x * torch.einsum("hle,led->hld", relevance / turned(x, turn), turn)


def split(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, SIZE)).transpose(0, 1)


def joined(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def through_causal_softmax(logits: Tensor, relevance: Tensor) -> Tensor:
    """Row t has t + 1 logits, and no others."""
    found = torch.zeros_like(logits)
    for t in range(logits.shape[1]):
        x, r = logits[:, t, : t + 1], relevance[:, t, : t + 1]
        found[:, t, : t + 1] = x * (r - x.softmax(-1) * r.sum(-1, keepdim=True))
    return found


def through_layer(layer: Any, x: Tensor, relevance: Tensor) -> Tensor:
    """The relevance of a layer's input, `[L, D]`, rule by rule, from the end to the beginning."""
    attention, mlp, length = layer.self_attn, layer.mlp, len(x)
    turn, normed = rotation(length), rms(layer.input_layernorm, x)
    q, k, v = (split(part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    scale, shared = SIZE**-0.5, HEADS // GROUPS
    turned_q, turned_k = scale * turned(q, turn), turned(k, turn).repeat_interleave(shared, 0)
    values = v.repeat_interleave(shared, 0)
    logits = turned_q @ turned_k.mT
    later = torch.ones(length, length).triu(1).bool()
    weights = logits.masked_fill(later, -torch.inf).softmax(-1)
    mixed = joined(weights @ values)
    attended = attention.o_proj(mixed)
    middle = x + attended
    again = rms(layer.post_attention_layernorm, middle)
    gate, up = mlp.gate_proj(again), mlp.up_proj(again)
    hidden = torch.nn.functional.silu(gate) * up

    on_middle, on_mlp = through_sum(middle, mlp.down_proj(hidden), relevance)
    on_hidden = through_linear(hidden, mlp.down_proj.weight, 0.0, on_mlp)
    on_again = through_linear(again, mlp.gate_proj.weight, 0.0, on_hidden / 2)  # the activation passes its half on
    on_again = on_again + through_linear(again, mlp.up_proj.weight, 0.0, on_hidden / 2)
    on_x, on_attended = through_sum(x, attended, on_middle + on_again)
    on_mixed = split(through_linear(mixed, attention.o_proj.weight, 0.0, on_attended))
    on_weights, on_values = through_product(weights, values, on_mixed)
    on_logits = through_causal_softmax(logits, on_weights)
    share = on_logits.masked_fill(later, 0) / (2 * logits)  # the product of queries and keys, half to each
    on_q, on_k = turned_q * (share @ turned_k), turned_k * (share.mT @ turned_q)
    on_k, on_v = (one.unflatten(0, (GROUPS, shared)).sum(1) for one in (on_k, on_values))  # heads that share keys
    on_q, on_k = through_turn(q, turn, on_q), through_turn(k, turn, on_k)
    on_normed = through_linear(normed, attention.v_proj.weight, 0.0, joined(on_v))
    on_normed = on_normed + through_linear(normed, attention.q_proj.weight, 0.0, joined(on_q))
    return on_x + on_normed + through_linear(normed, attention.k_proj.weight, 0.0, joined(on_k))


def output(layer: Any, x: Tensor) -> Tensor:
    """A layer's output, by hand; the logits check it."""
    turn, normed = rotation(len(x)), rms(layer.input_layernorm, x)
    parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    q, k, v = (split(part(normed)) for part in parts)
    k, v = (one.repeat_interleave(HEADS // GROUPS, 0) for one in (turned(k, turn), v))
    logits = SIZE**-0.5 * turned(q, turn) @ k.mT
    later = torch.ones(len(x), len(x)).triu(1).bool()
    x = x + layer.self_attn.o_proj(joined(logits.masked_fill(later, -torch.inf).softmax(-1) @ v))
    again = rms(layer.post_attention_layernorm, x)
    mlp = layer.mlp
    return x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(again)) * mlp.up_proj(again))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_llama_is_its_explicit_rules(attention: str) -> None:
    torch.manual_seed(0)
    config = {**CONFIGS["llama"], "attn_implementation": attention}
    language = load_language_model("llama", pretrained=False, config=config)
    model: Any = drawn(language.model)
    text = language.read_ids([IDS])
    with torch.no_grad():
        layers, states = model.model.layers, [text.embeddings[0]]
        for layer in layers:
            states.append(output(layer, states[-1]))
        pooled = rms(model.model.norm, states[-1])
        logits = model.lm_head(pooled)
        torch.testing.assert_close(logits, model(text.ids).logits[0], rtol=1e-6, atol=1e-6)
        relevance = torch.zeros_like(logits)
        relevance[5, 9] = logits[5, 9]
        on_state = through_linear(pooled, model.lm_head.weight, 0.0, relevance)
        on_second = through_layer(layers[1], states[1], on_state)
        expected = through_layer(layers[0], states[0], on_second)
    explainer = method("AttnLRP")(language.network)
    found = explainer.explain(
        text.embeddings, lambda outputs: outputs.logits[:, 5, 9], sites=("input", LAYER.format("1") + ":input"),
        additional_forward_args=(text.mask,),
    )  # fmt: skip
    assert relative(found.values["input"][0], expected) < 1e-6
    assert relative(found.values[LAYER.format("1") + ":input"][0], on_second) < 1e-6
    plain = method("InputXGradient")(language.network).explain(
        text.embeddings, lambda outputs: outputs.logits[:, 5, 9], additional_forward_args=(text.mask,)
    )
    assert relative(plain.values["input"][0], expected) > 1e-2
    told = explain_text(language, IDS, 9, position=5)
    torch.testing.assert_close(told.relevance, expected.sum(1).float())
