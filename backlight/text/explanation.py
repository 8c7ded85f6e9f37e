"""Which tokens of a text a language model's answer comes from.

Any method of the registry that reads at the input explains the embeddings of the tokens; a token's relevance is the
sum over its embedding, or the norm. What is asked is a target at one position: the next token, a contrast of two, the
entropy of the answer; or the loss of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor

from backlight.displayed import Displayed
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost
from backlight.engine.sites import INPUT
from backlight.engine.targets import Target
from backlight.errors import InputError, UnknownNameError
from backlight.methods.method import Method
from backlight.models.language_models import LanguageModel, Text
from backlight.shapes import Float
from backlight.text.baselines import text_baseline
from backlight.text.question import ask

READOUTS = ("sum", "norm")


@dataclass(frozen=True, eq=False, repr=False)
class ExplainedText(Displayed):
    """The relevance of each token of a text for what was asked.

    Attributes:
        tokens: as they are written, with the spaces that they stand for.
        relevance: `[L]`; with the readout "sum" it has a sign, and sums to what the method's own sums to.
        score: the target at the text; asked: in words.
        predicted: the model's own next tokens, likeliest first, with their probabilities.
        residual: score less baseline's less the sum, where the method is complete; None where it is not.
    """

    tokens: tuple[str, ...]
    relevance: Float[Tensor, "L"]
    score: float
    asked: str
    method: str
    predicted: tuple[tuple[str, float], ...]
    residual: float | None = None
    coverage: Coverage = field(default_factory=Coverage)
    cost: Cost = field(default_factory=Cost)

    def record(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "asked": self.asked,
            "method": self.method,
            "score": self.score,
            "residual": self.residual,
            "predicted": [{"token": token, "probability": share} for token, share in self.predicted],
            "tokens": [
                {"token": token, "relevance": float(value)}
                for token, value in zip(self.tokens, self.relevance, strict=True)
            ],
        }


def explain_text(
    language: LanguageModel,
    text: str | Sequence[int] | Text,
    target: str | int | Target | None = None,
    *,
    against: str | int | None = None,
    position: int | None = None,
    method: str | Method = "AttnLRP",
    readout: str = "sum",
    special_tokens: bool = True,
    **settings: Any,
) -> ExplainedText:
    """The relevance of the tokens of a text for what a language model says after it.

    Args:
        text: a text, its token ids, or a `Text` of one.
        target: a token, written (" cat") or by number, whose logit at `position` is explained; None: the likeliest; a
            `Target` of the outputs there (`Entropy()`), or of the whole sequence (`SpanLoss`, `At`).
        against: a second token, whose logit is taken off.
        position: the token behind which the model is asked; -1 is the last. None: the mask of a text that has one, as
            an encoder's has, else the last.
        method: a name of `METHODS`, or a method of `language.network`; `settings` are its own. A `baseline` is as
            `text_baseline` takes it, "neutral" by default.
        readout: a token's relevance is the "sum" over its embedding, or the "norm" (never negative).

    Raises:
        InputError: several texts, a target that is no single token, a position that is not there.
        UnknownNameError: an unknown method, setting or readout.
    """
    if readout not in READOUTS:
        raise UnknownNameError("readout of tokens", readout, READOUTS)
    asked = ask(language, text, target, against=against, position=position, special_tokens=special_tokens)
    read, length = asked.text, asked.length
    chosen = _method(language, read, method, settings)
    found = chosen.explain(read.embeddings, asked.target, additional_forward_args=(read.mask,))
    value = found.values[INPUT].float()
    relevance = value.sum(2) if readout == "sum" else value.norm(dim=2)
    return ExplainedText(
        tuple(read.tokens[0]),
        relevance[0, :length].cpu(),
        float(found.scores[0]) if found.scores is not None else float("nan"),
        asked.words,
        type(chosen).__name__,
        asked.predicted,
        None if found.residual is None else float(found.residual[0]),
        found.coverage,
        found.cost,
    )


def _method(language: LanguageModel, text: Text, method: str | Method, settings: dict[str, Any]) -> Method:
    from backlight.methods import METHODS

    if isinstance(method, Method):
        if settings:
            raise InputError("settings go with a method's name; this one has its own already")
        return method
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    kind = getattr(import_module(f"backlight.methods.{METHODS[method]}"), method)
    for name in settings:
        if name not in kind.settings():
            raise UnknownNameError(f"setting of {method}", name, kind.settings())
    if "baseline" in kind.settings():
        given = settings.get("baseline")
        settings = {**settings, "baseline": text_baseline(language, text, "neutral" if given is None else given)}
    return kind(language.network, **settings)
