"""What contributions of blocks miss of the score, by where their path begins: families of language models.

    python benchmarks/text_baselines.py [--model FILE.bin --tokenizer TOKENS.bin]

Two blocks of width 16 with random weights, three texts of 8 tokens; a trained model in llama2.c's format beside them,
three texts of 12 tokens. The logit of the likeliest next token, hidden integrated gradients at the last block. Printed
is the worst text's |residual| / |score - baseline score|.
"""

from __future__ import annotations

import argparse

import torch

from backlight.contributions import HiddenIntegratedGradients, contribute, default_sites
from backlight.engine.targets import Logit
from backlight.engine.token_targets import At
from backlight.models.language_models import LanguageModel, Text, load_language_model
from backlight.text import text_baseline

SMALL = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "bert": WIDE,
    "llama": GROUPED,
    **{name: {**GROUPED, "head_dim": 4} for name in ("qwen3", "gemma2", "gemma3_text")},
}
IDS = [[1, 5, 7, 9, 11, 3, 20, 22], [1, 4, 4, 8, 15, 16, 23, 28], [1, 30, 29, 6, 2, 19, 10, 12]]
WORDS = (
    "Echoes of prior knowledge hum, a gentle hum of precision",
    "I sense the nodes around me and they whisper",
    "The data stream flows through the lattice of light",
)
BASELINES: tuple[str | int, ...] = ("zero", "vocabulary", "text", "neutral", 2)
SETTINGS = ((10, 1.0), (10, 2.0), (40, 1.0))


def missed(language: LanguageModel, texts: list[Text], baseline: str | int, steps: int, spacing: float) -> float:
    worst = 0.0
    site = default_sites(language.network)[-1]
    for text in texts:
        found = contribute(
            language.network, text.embeddings, site, At(Logit()),
            algorithm=HiddenIntegratedGradients(steps, spacing=spacing),
            baseline=text_baseline(language, text, baseline), additional_forward_args=(text.mask,),
        )  # fmt: skip
        assert found.baseline_scores is not None
        share = found.residual[site].abs() / (found.scores - found.baseline_scores).abs()
        worst = max(worst, float(share[0]))
    return worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--tokenizer")
    settings = parser.parse_args()
    models: dict[str, LanguageModel] = {}
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        models[name] = load_language_model(name, pretrained=False, config=config, encoder=name == "bert")
    if settings.model:
        models["trained"] = load_language_model(settings.model, tokenizer=settings.tokenizer)
    print("model | baseline | " + " | ".join(f"{steps} intervals, spacing {spacing:g}" for steps, spacing in SETTINGS))
    for name, language in models.items():
        ids = [language.ids(words)[:12] for words in WORDS] if name == "trained" else IDS
        texts = [language.read_ids([one]) for one in ids]
        for baseline in BASELINES:
            cells = [f"{missed(language, texts, baseline, *one):.2g}" for one in SETTINGS]
            print(f"| {name} | {baseline} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
