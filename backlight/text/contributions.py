"""What the hidden units of a language model contribute to what it says: by block, head and unit, and by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.algorithms import Algorithm, HiddenIntegratedGradients, as_algorithm
from backlight.contributions.contribution import Contributions, contribute
from backlight.contributions.sites import default_sites
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost
from backlight.errors import InputError, UnknownNameError
from backlight.models.language_models import LanguageModel, Text
from backlight.shapes import Float
from backlight.text.baselines import Baseline, text_baseline
from backlight.text.question import Asked, ask

KINDS = ("blocks", "attention", "mlp")
STEPS = 20


@dataclass(frozen=True, eq=False)
class LayerContributions:
    """Contributions at the sites of one kind, one a block, first to last.

    - `values`: `[S, L]`, of each token's hidden units together;
    - `units`: `[S, C]`, of each unit over all tokens: channels of a block, MLP units after the gate, dimensions of
      heads;
    - `heads`: `[S, H, L]` at the attention, of the units of each head; None at other kinds;
    - `residual`: `[S]`, score less baseline score less the sum: what the sum of the steps misses at blocks, which
      everything passes through; at others it is also what passes by them. None where the algorithm is not complete.
    """

    sites: tuple[str, ...]
    values: Float[Tensor, "S L"]
    units: Float[Tensor, "S C"]
    heads: Float[Tensor, "S H L"] | None = None
    residual: Float[Tensor, "S"] | None = None


@dataclass(frozen=True, eq=False)
class TextContributions:
    """What the hidden units of a language model contribute to a target of a text.

    `layers`: by kind. `score`, `baseline_score`: the target at the text and at the baseline, None where it was not
    visited. `asked`, `predicted`: as in `ExplainedText`.
    """

    tokens: tuple[str, ...]
    layers: dict[str, LayerContributions]
    score: float
    baseline_score: float | None
    asked: str
    algorithm: str
    predicted: tuple[tuple[str, float], ...]
    coverage: Coverage = field(default_factory=Coverage)
    cost: Cost = field(default_factory=Cost)

    @property
    def undistributed(self) -> float | None:
        """The largest share, over blocks, of score less baseline score that the contributions do not sum to."""
        blocks = self.layers.get("blocks")
        if blocks is None or blocks.residual is None or self.baseline_score is None:
            return None
        difference = abs(self.score - self.baseline_score)
        return float(blocks.residual.abs().max()) / difference if difference else None

    def record(self) -> dict[str, Any]:
        """The same as plain values, without the units."""
        return {
            "asked": self.asked,
            "algorithm": self.algorithm,
            "score": self.score,
            "baseline_score": self.baseline_score,
            "undistributed": self.undistributed,
            "tokens": list(self.tokens),
            "layers": {
                kind: {
                    "sites": list(one.sites),
                    "values": one.values.tolist(),
                    "heads": None if one.heads is None else one.heads.sum(2).tolist(),
                    "residual": None if one.residual is None else one.residual.tolist(),
                }
                for kind, one in self.layers.items()
            },
        }


def text_contributions(
    language: LanguageModel,
    text: str | Sequence[int] | Text,
    target: Asked = None,
    *,
    against: str | int | None = None,
    position: int | None = None,
    kinds: str | Sequence[str] = KINDS,
    algorithm: str | Algorithm | None = None,
    baseline: Baseline = "neutral",
    special_tokens: bool = True,
    strict: bool = True,
) -> TextContributions:
    """Contributions at every block, attention and MLP in the same passes (CODEC, section 10.7).

    Args:
        text, target, against, position: as in `explain_text`.
        kinds: of "blocks" (their outputs), "attention" (what the output projection takes: heads, side by side) and
            "mlp" (hidden units, what the second linear layer takes); see `backlight.contributions.default_sites`.
        algorithm: None is HiddenIntegratedGradients with 20 intervals: 21 passes. "ActGrad": one, and one forward.
        baseline: see `text_baseline`.

    Raises:
        UnknownNameError: another kind, algorithm or baseline.
        InputError, TargetError, SiteError: a question, baseline or network that does not fit.
    """
    wanted = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise UnknownNameError("kind of text contributions", kind, KINDS)
    if not wanted:
        raise InputError(f"no kind of sites; kinds: {', '.join(KINDS)}")
    chosen = HiddenIntegratedGradients(STEPS) if algorithm is None else as_algorithm(algorithm)
    question = ask(language, text, target, against=against, position=position, special_tokens=special_tokens)
    sites = {kind: default_sites(language.network, kind) for kind in wanted}
    read, length = question.text, question.length
    found = contribute(
        language.network,
        read.embeddings,
        [site for several in sites.values() for site in several],
        question.target,
        algorithm=chosen,
        baseline=text_baseline(language, read, baseline),
        additional_forward_args=(read.mask,),
        strict=strict,
    )
    before = found.baseline_scores
    return TextContributions(
        tuple(read.tokens[0]),
        {kind: _layers(found, kind, several, length, head_count(language)) for kind, several in sites.items()},
        float(found.scores[0]),
        None if before is None else float(before[0]),
        question.words,
        type(chosen).__name__,
        question.predicted,
        found.coverage,
        found.cost,
    )


def head_count(language: LanguageModel) -> int:
    """The heads of an attention: those that ask, where several share keys. Raises `InputError` where nobody says."""
    config: Any = getattr(language.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(config, "num_attention_heads", None)
    if not isinstance(count, int):
        raise InputError(f"the configuration of {language.name} does not say how many heads there are")
    return count


def _layers(found: Contributions, kind: str, sites: Sequence[str], length: int, heads: int) -> LayerContributions:
    """What a kind's sites hold, `[1, L, C]` each, summed; sums are float64."""
    rows = []
    for site in sites:
        value = found.values.pop(site)
        if value.ndim != 3 or value.shape[1] < length:
            raise InputError(f"site {site!r} gives {list(value.shape)}: expected [1, {length}, C]")
        rows.append(value[0, :length].double().cpu())
    by_head = None
    if kind == "attention":
        if rows[0].shape[1] % heads:
            raise InputError(f"{rows[0].shape[1]} dimensions at {sites[0]!r} do not divide into {heads} heads")
        by_head = torch.stack([row.unflatten(1, (heads, -1)).sum(2).T for row in rows]).float()
    return LayerContributions(
        tuple(sites),
        torch.stack([row.sum(1) for row in rows]).float(),
        torch.stack([row.sum(0) for row in rows]).float(),
        by_head,
        torch.stack([found.residual[site][0].cpu() for site in sites]).float() if found.residual else None,
    )
