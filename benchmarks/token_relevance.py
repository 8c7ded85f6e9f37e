"""Does a method's relevance of tokens rank what taking them away does? A small trained model on texts of its own.

    python benchmarks/token_relevance.py MODEL.bin --tokenizer TOKENS.bin [--texts 40] [--seed 0] [--out FILE.json]

Texts are sampled from the model itself. Asked is the logit of the token that it finds likeliest behind the text. The
effect of a token is the drop of that logit, the token kept by number, when

- `replaced`: the token is exchanged for others, drawn from all texts: the mean over --draws of them;
- `neutral`: its embedding is the neutral one, at which paths begin;
- `removed`: it is not there, and what follows moves up.

The first token (<s>) and the last, which is asked of directly, are left out with --inner. Of each text: Spearman's
correlation over tokens, of values with their signs, and of magnitudes. Means over texts with 95 % intervals of a
bootstrap over texts, and of the paired differences from the gradient: input x gradient with signs, its norm without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.contributions import contribute
from backlight.engine import attribute
from backlight.engine.targets import Logit
from backlight.engine.token_targets import At
from backlight.evaluation.statistics import bootstrap
from backlight.metrics.correlation import spearman
from backlight.models.language_models import LanguageModel, Text, load_language_model
from backlight.rules import rule_set
from backlight.text import explain_text, text_baseline

METHODS = ("AttnLRP", "CPLRP", "IntegratedGradients", "InputXGradient")
EFFECTS = ("replaced", "neutral", "removed")
STEPS = 64


def sampled(language: LanguageModel, count: int, length: int, seed: int) -> list[list[int]]:
    """Texts of the model: its own tokens one by one, from <s> on, at temperature 1."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.ones(count, 1, dtype=torch.long)
    while ids.shape[1] < length:
        with torch.no_grad():
            shares = language.model(ids).logits[:, -1].softmax(1)
        shares[:, :3] = 0  # <unk>, <s> and </s> end a text
        ids = torch.cat((ids, torch.multinomial(shares, 1, generator=draw)), 1)
    return ids.tolist()


def effects(language: LanguageModel, text: Text, token: int, pool: Tensor, draws: int, draw: Any) -> dict[str, Tensor]:
    """The drop of the token's logit, `[L]`, by what is done to each token."""
    ids, length = text.ids[0], text.ids.shape[1]
    embedding = language.model.get_input_embeddings()  # type: ignore[operator]

    def logit(embeddings: Tensor) -> Tensor:
        with torch.no_grad():
            return language.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1, token]

    score = logit(text.embeddings)
    rows = torch.arange(length)
    neutral = text.embeddings.repeat(length, 1, 1)
    neutral[rows, rows] = text_baseline(language, text)[0]
    replaced = torch.zeros(length)
    for _ in range(draws):
        others = ids.repeat(length, 1)
        others[rows, rows] = pool[torch.randint(len(pool), (length,), generator=draw)]
        replaced += (score - logit(embedding(others).detach())) / draws
    shorter = torch.stack([torch.cat((ids[:place], ids[place + 1 :])) for place in range(length)])
    return {
        "replaced": replaced,
        "neutral": score - logit(neutral),
        "removed": score - logit(embedding(shorter).detach()),
    }


def relevances(language: LanguageModel, text: Text, token: int, draw: Any) -> dict[str, tuple[Tensor | None, Tensor]]:
    """(values with their signs, magnitudes), `[L]` each, by method; no signs of a norm."""
    target, found = At(Logit(token)), {}
    for name in METHODS:
        settings = {"n_steps": STEPS} if name == "IntegratedGradients" else {}
        value = explain_text(language, text, token, method=name, **settings).relevance
        found[name] = value, value.abs()
    start = text_baseline(language, text)
    value = contribute(language.network, text.embeddings, "input", target, algorithm="ActGrad", baseline=start)
    summed = value.values["input"][0].sum(1)
    found["(input - neutral) x gradient"] = summed, summed.abs()
    for name, rules in (("gradient norm", "gradient"), ("soft pullback norm", "soft_pullback")):
        cotangent = attribute(language.network, text.embeddings, target, rules=rule_set(rules)).value
        found[name] = None, cotangent[0].norm(dim=1)
        if rules == "soft_pullback":
            product = (cotangent * text.embeddings)[0].sum(1)
            found["input x soft pullback"] = product, product.abs()
    noise = torch.randn(text.ids.shape[1], generator=draw)
    found["random"] = noise, noise.abs()
    return found


def interval(values: np.ndarray) -> list[float]:
    """[mean, low, high] over texts, 95 %."""
    low, high = bootstrap(values[:, None])
    return [float(values.mean()), low[0], high[0]]


def study(language: LanguageModel, settings: argparse.Namespace) -> dict[str, Any]:
    """{kind: {effect: {method: {"rho": [...], "difference": [...]}}}}."""
    texts = sampled(language, settings.texts, settings.length, settings.seed)
    draw = torch.Generator().manual_seed(settings.seed + 1)
    pool = torch.tensor(texts)[:, 1:].flatten()
    rho: dict[tuple[str, str, str], list[float]] = {}
    inner = slice(1, -1) if settings.inner else slice(None)
    for ids in texts:
        text = language.read_ids([ids])
        with torch.no_grad():
            token = int(language.model(text.ids).logits[0, -1].argmax())
        drops = effects(language, text, token, pool, settings.draws, draw)
        for name, (signed, size) in relevances(language, text, token, draw).items():
            for effect, drop in drops.items():
                pairs = [("magnitude", size, drop.abs())] + ([] if signed is None else [("signed", signed, drop)])
                for kind, ours, theirs in pairs:
                    value = float(spearman(ours[None, inner], theirs[None, inner])[0])
                    rho.setdefault((kind, effect, name), []).append(value)
    table: dict[str, Any] = {}
    for (kind, effect, name), values in rho.items():
        base = rho[kind, effect, "InputXGradient" if kind == "signed" else "gradient norm"]
        row = {"rho": interval(np.array(values)), "difference": interval(np.array(values) - base)}
        table.setdefault(kind, {}).setdefault(effect, {})[name] = row
    asked = {name: getattr(settings, name) for name in ("texts", "length", "draws", "seed", "inner")}
    return {"settings": asked, "table": table, "first": [language.tokenizer.decode(ids) for ids in texts[:2]]}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokenizer", required=True)
    for name, default in {"texts": 40, "length": 40, "draws": 16, "seed": 0}.items():
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--inner", action="store_true", help="leave out the first and the last token of each text")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    language = load_language_model(settings.model, tokenizer=settings.tokenizer)
    found = study(language, settings)
    for kind, by_effect in found["table"].items():
        for effect, rows in by_effect.items():
            print(f"\n{kind}, {effect}: rho [95 %], difference from the gradient [95 %]")
            for name, row in sorted(rows.items(), key=lambda one: -one[1]["rho"][0]):
                (mean, low, high), (other, least, most) = row["rho"], row["difference"]
                print(f"| {name} | {mean:.2f} [{low:.2f}, {high:.2f}] | {other:+.2f} [{least:+.2f}, {most:+.2f}] |")
    print("\n".join(found["first"]))
    if settings.out:
        settings.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
