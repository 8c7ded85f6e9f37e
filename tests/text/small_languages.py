"""Small language models of every family, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from backlight.models.language_models import LanguageModel, load_language_model

DATA = Path(__file__).parents[2].parent / "shared/data/weights"
SMALL: dict[str, Any] = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
HEADS = {**WIDE, "head_dim": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "llama": WIDE,
    "gemma": HEADS,
    "gemma2": HEADS,
    "gemma3_text": HEADS,
    "qwen2": WIDE,
    "qwen3": HEADS,
    "mistral": WIDE,
    "bert": {key: value for key, value in WIDE.items() if key != "num_key_value_heads"},
}
IDS = [1, 5, 7, 9, 11, 3, 20, 22]


def small(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    return load_language_model(kind, pretrained=False, config=CONFIGS[kind], encoder=kind == "bert")


def trained() -> LanguageModel:
    return load_language_model(DATA / "aidreams260K.bin", tokenizer=DATA / "tok512.bin")
