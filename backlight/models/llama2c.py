"""Small language models in llama2.c's format, as Hugging Face's own Llama: one file of weights, one of tokens.

Weights: seven int32 (width, width of the MLP, layers, heads, key-value heads, vocabulary, longest sequence; a negative
vocabulary says that the classifier has weights of its own), then float32: embedding, attention norms, wq, wk, wv, wo,
MLP norms, w1 (gate), w2 (down), w3 (up), last norm, two tables of the rotary embedding, and the classifier, if any.
Rotary embeddings turn neighbouring entries there, and halves of a head here: rows of wq and wk are reordered.

Tokens: int32 longest token; then for each token float32 score, int32 length, and its bytes.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import MissingExtraError, ModelError

HEADER = struct.Struct("<7i")
EPSILON, THETA = 1e-5, 10000.0


@dataclass(frozen=True)
class Header:
    """What the first 28 bytes say."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    shared: bool

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.width // self.heads


def read_llama2c(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """The header, and the state dict of Hugging Face's `LlamaForCausalLM`.

    Raises:
        ModelError: a file that cannot be read, or that is not of this format or length.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}") from None
    header = _header(content, path)
    shapes = _shapes(header)
    needed = HEADER.size + 4 * sum(map(math.prod, shapes.values()))
    if len(content) != needed:
        raise ModelError(f"{str(path)!r} has {len(content)} bytes; its header asks for {needed}")
    arrays, offset = {}, HEADER.size
    for name, shape in shapes.items():
        count = math.prod(shape)
        arrays[name] = torch.from_numpy(np.frombuffer(content, "<f4", count, offset).astype(np.float32).reshape(shape))
        offset += 4 * count
    return header, _state(header, arrays)


def _header(content: bytes, path: Any) -> Header:
    if len(content) < HEADER.size:
        raise ModelError(f"{str(path)!r} is too short for a header of llama2.c")
    width, hidden, layers, heads, kv_heads, vocabulary, length = HEADER.unpack_from(content)
    sizes = (width, hidden, layers, heads, kv_heads, abs(vocabulary), length)
    if min(sizes) < 1 or max(sizes) > 2**24 or width % heads or heads % kv_heads:
        raise ModelError(f"{str(path)!r} is not in llama2.c's format: its header reads {sizes}")
    return Header(width, hidden, layers, heads, kv_heads, abs(vocabulary), length, vocabulary > 0)


def _shapes(h: Header) -> dict[str, tuple[int, ...]]:
    """The arrays in the order of the file."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (h.vocabulary, h.width),
        "attention_norm": (h.layers, h.width),
        "wq": (h.layers, h.heads * h.head, h.width),
        "wk": (h.layers, h.kv_heads * h.head, h.width),
        "wv": (h.layers, h.kv_heads * h.head, h.width),
        "wo": (h.layers, h.width, h.heads * h.head),
        "mlp_norm": (h.layers, h.width),
        "w1": (h.layers, h.hidden, h.width),
        "w2": (h.layers, h.width, h.hidden),
        "w3": (h.layers, h.hidden, h.width),
        "norm": (h.width,),
        "cosines": (h.length, h.head // 2),
        "sines": (h.length, h.head // 2),
    }
    return shapes if h.shared else {**shapes, "classifier": (h.vocabulary, h.width)}


def _state(h: Header, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {"model.embed_tokens.weight": arrays["embedding"], "model.norm.weight": arrays["norm"]}
    state["lm_head.weight"] = arrays.get("classifier", arrays["embedding"])
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
        "self_attn.v_proj": "wv",
        "self_attn.o_proj": "wo",
        "mlp.gate_proj": "w1",
        "mlp.down_proj": "w2",
        "mlp.up_proj": "w3",
    }
    for layer in range(h.layers):
        place = f"model.layers.{layer}"
        for ours, theirs in names.items():
            state[f"{place}.{ours}.weight"] = arrays[theirs][layer]
        for ours, theirs, heads in (("q_proj", "wq", h.heads), ("k_proj", "wk", h.kv_heads)):
            state[f"{place}.self_attn.{ours}.weight"] = _halves(arrays[theirs][layer], heads)
    return state


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (0, 1, 2, 3, ...) of each head as (0, 2, ..., 1, 3, ...): pairs of neighbours become pairs of halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def load_llama2c(path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Any:
    """Hugging Face's `LlamaForCausalLM` with these weights, in evaluation mode, as if `from_pretrained` had made it.

    `model.save_pretrained(folder)` converts the file for good.

    Raises:
        ModelError: see `read_llama2c`; MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, LlamaConfig
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "hf") from None
    header, state = read_llama2c(path)
    config = LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.width,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.length,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=header.shared,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(state, strict=True)
    return model.eval()


def load_llama2c_tokens(path: str | os.PathLike[str], vocabulary: int) -> Any:
    """The tokeniser, as a `PreTrainedTokenizerFast`: byte-pair merges in the order of the scores, bytes for the rest.

    A text begins with `<s>` and a space, as llama2.c has it.

    Raises:
        ModelError: a file that is not of this format; MissingExtraError: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, processors
        from transformers import PreTrainedTokenizerFast
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "hf") from None
    tokens = read_tokens(path, vocabulary)
    names = {text: number for number, (text, _) in reversed(list(enumerate(tokens)))}
    tokenizer = Tokenizer(models.BPE(names, _merges(tokens), unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read_tokens(path: str | os.PathLike[str], vocabulary: int) -> list[tuple[str, float]]:
    """(text, score) of each token; the first three are `<unk>`, `<s>` and `</s>`, the next 256 the bytes.

    Raises:
        ModelError: a file that cannot be read, or that is not of this format.
    """
    try:
        content = Path(path).read_bytes()
        found, offset = [], 4
        for _ in range(vocabulary):
            score, length = struct.unpack_from("<fi", content, offset)
            offset += 8
            if length < 0 or offset + length > len(content):
                raise ValueError("a token reaches past the end")
            found.append((content[offset : offset + length].decode(), score))
            offset += length
    except (OSError, struct.error, ValueError) as error:
        raise ModelError(f"{str(path)!r} does not hold {vocabulary} tokens of llama2.c's format: {error}") from None
    return [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *found[3:]]


def _merges(tokens: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first: llama2.c merges the pair whose token scores best."""
    known = {text for text, _ in tokens}
    ranked = sorted(tokens[259:], key=lambda one: -one[1])
    return [
        (text[:cut], text[cut:])
        for text, _ in ranked
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
