"""What an extraction stores of texts: contributions of a language model's hidden units, summed over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.algorithms import Algorithm, HiddenIntegratedGradients, as_algorithm
from backlight.contributions.collector import QUANTITIES, Collection, columns, described, structure_hash
from backlight.contributions.contribution import contribute
from backlight.contributions.recipe import LABEL, parse_target
from backlight.contributions.reduction import Layout, reduce
from backlight.contributions.sites import default_sites
from backlight.data.labelled import Sample
from backlight.engine.rules import RuleSet
from backlight.engine.targets import Logit, Target
from backlight.engine.token_targets import At, SpanLoss
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.evaluation.identity import model_hash, plain
from backlight.models.language_models import LanguageModel, Text
from backlight.rules import rule_set
from backlight.shapes import Float
from backlight.store import Collected
from backlight.text.baselines import Baseline, text_baseline
from backlight.text.contributions import STEPS, head_count

LOSS = "loss"


@dataclass(frozen=True)
class TextCollector:
    """How contributions to texts are computed and reduced to channels: what `backlight.store.extract` is given.

    - `language`: the model, which is pickled where several processes work;
    - `sites`: of `language.network`; empty: the hidden units of every MLP;
    - `target`: "label" (the logit of the sample's token, behind its last), "loss" (of the whole text), a word of
      `backlight.contributions.recipe.parse_target` behind the last token, or a `Target`, put there unless it is an
      `At` or a `SpanLoss`;
    - `baseline`: a word or token of `text_baseline`, or a tensor `[D]`;
    - `heads`: sum over the dimensions of each head; then all `sites` are of attention;
    - `algorithm`: None is HiddenIntegratedGradients(20); `rules`, `quantities`, `strict`: see `ContributionCollector`.

    Rows are sums over a text's tokens, split by sign at every token first (CODEC, section 10.1); columns: `score`,
    `baseline_score`, `token` (the last that was read), `prediction` (the likeliest next), and where samples have
    labels `loss`, -log p of the label as the next token.

    Raises:
        UnknownNameError: a quantity, algorithm or rule set that there is not. TargetError: an unknown target.
    """

    language: LanguageModel
    sites: tuple[str, ...] = ()
    algorithm: Algorithm | str | None = None
    rules: RuleSet | str = "gradient"
    target: Target | str = LABEL
    baseline: Baseline = "neutral"
    quantities: tuple[str, ...] = QUANTITIES
    heads: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        own = HiddenIntegratedGradients(STEPS) if self.algorithm is None else as_algorithm(self.algorithm)
        object.__setattr__(self, "algorithm", own)
        if isinstance(self.sites, str):
            raise InputError("sites are a tuple of addresses")
        kind = "attention" if self.heads else "mlp"
        object.__setattr__(self, "sites", tuple(self.sites) or default_sites(self.language.network, kind))
        if isinstance(self.rules, str):
            rule_set(self.rules)
        if isinstance(self.target, str) and self.target != LOSS:
            parse_target(self.target)
        for name in self.quantities:
            if name not in QUANTITIES:
                raise UnknownNameError("quantity", name, QUANTITIES)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What decides the numbers."""
        model = self.language.model
        return {
            "model": {"name": self.language.name, "parameters": model_hash(model), "structure": structure_hash(model)},
            "preprocessing": None,
            "sites": list(self.sites),
            "algorithm": described(self.algorithm),
            "rules": self.rules if isinstance(self.rules, str) else described(self.rules),
            "target": self.target if isinstance(self.target, str) else described(self.target),
            "baseline": plain(self.baseline) if isinstance(self.baseline, Tensor) else self.baseline,
            "quantities": list(self.quantities),
            "reduction": {"heads": self.heads},
            "strict": self.strict,
        }

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the weights are from, and how tokens are written: the names of what comes next."""
        count = self.language.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        written = self.language.tokenizer is not None
        return {
            "source": self.language.source,
            "classes": [self.language.piece(token) for token in range(count)] if written else [],
        }

    @property
    def resources(self) -> Mapping[str, float]:
        """A GPU for each of Ray's actors, where the model is on one."""
        return {"num_gpus": 1} if self.language.device.type == "cuda" else {}

    def open(self, worker: int) -> TextCollection:
        """Ready to collect; the model is where the caller put it."""
        return TextCollection(self)


class TextCollection(Collection):
    """A `TextCollector` at work: texts of a batch are padded on the right, and nothing of the padding is stored."""

    def __init__(self, of: TextCollector) -> None:
        self.by, self.language = of, of.language
        self.rules = rule_set(of.rules) if isinstance(of.rules, str) else of.rules
        self._start: Float[Tensor, "D"] | None = None
        if not (isinstance(of.baseline, str) and of.baseline == "text"):
            if isinstance(of.baseline, Tensor) and of.baseline.ndim != 1:
                raise InputError(f"a baseline of texts of any length is [D], got {list(of.baseline.shape)}")
            self._start = text_baseline(self.language, self.language.read_ids([[0]]), of.baseline)[0, 0]
        self._heads = head_count(self.language) if of.heads else None

    def _collect(self, samples: Sequence[Sample]) -> Collected:
        text = self.language.read_ids([one.inputs.tolist() for one in samples])
        labels = [one.target for one in samples]
        found = contribute(
            self.language.network,
            text.embeddings,
            self.by.sites,
            self._target(text, labels),
            algorithm=as_algorithm(self.by.algorithm or "ActGrad"),
            rules=self.rules,
            baseline=self._baseline(text),
            additional_forward_args=(text.mask,),
            strict=self.by.strict,
        )
        rows = {}
        values = {"contributions": found.values, "activations": found.activations, "gradients": found.gradients}
        for site in self.by.sites:
            for quantity in self.by.quantities:
                value = values[quantity].pop(site)
                value = value.masked_fill(text.mask[:, :, None] == 0, 0)
                signed = reduce(value, Layout("tokens"), heads=self._heads)
                rows[site, quantity] = signed.positive.cpu(), signed.negative.cpu()
        residuals = {site: value.cpu() for site, value in found.residual.items()}
        return Collected(rows, {}, {**columns(found, None), **_told(found.outputs, text, labels)}, residuals)

    def _target(self, text: Text, labels: list[int | None]) -> Target:
        target = self.by.target
        if target == LOSS:
            return SpanLoss(text.ids.masked_fill(text.mask == 0, -1))
        if target == LABEL:
            if None in labels:
                raise TargetError("the target is the label, and a text has none: per='position', or target='top1'")
            return At(Logit(torch.tensor(labels, device=text.ids.device)), text.last)
        own = parse_target(target) if isinstance(target, str) else target
        return own if isinstance(own, (At, SpanLoss)) else At(own, text.last)

    def _baseline(self, text: Text) -> Float[Tensor, "N L D"]:
        if self._start is not None:
            return self._start.to(text.embeddings).expand_as(text.embeddings)
        mask = text.mask[:, :, None].to(text.embeddings)
        mean = (text.embeddings * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return mean.expand_as(text.embeddings)


def _told(outputs: Tensor | None, text: Text, labels: list[int | None]) -> dict[str, Tensor]:
    """The last token of each text, the likeliest next one, and what the label costs."""
    rows = torch.arange(len(text), device=text.ids.device)
    found = {"token": text.ids[rows, text.last].cpu()}
    if outputs is None or outputs.ndim != 3:
        return found
    told = outputs[rows, text.last].float().log_softmax(1).cpu()
    found["prediction"] = told.argmax(1)
    if None not in labels and all(0 <= int(label or 0) < told.shape[1] for label in labels):
        found["loss"] = -told.gather(1, torch.tensor(labels)[:, None])[:, 0]
    return found
