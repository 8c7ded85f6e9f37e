"""What a language model says, and how well, when channels are removed or nothing but them is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.control import ChannelEdit, control
from backlight.engine.targets import output_tensor
from backlight.errors import InputError
from backlight.models.language_models import LanguageModel, Text
from backlight.shapes import Float
from backlight.text.question import token_number


@dataclass(frozen=True, eq=False)
class TextControl:
    """Of `N` texts, without the edits and with them.

    - `loss`, `edited_loss`: `[N]`, nats a token, of each token given all before it; NaN of a text of one token;
    - `probabilities`, `edited_probabilities`: `[N, K]`, of the `tokens` behind the text;
    - `divergence`: `[N]`, KL of the next token's distribution from the edited one, in nats.
    """

    tokens: tuple[str, ...]
    loss: Float[Tensor, "N"]
    edited_loss: Float[Tensor, "N"]
    probabilities: Float[Tensor, "N K"]
    edited_probabilities: Float[Tensor, "N K"]
    divergence: Float[Tensor, "N"]

    def record(self) -> dict[str, Any]:
        """The means over texts as plain values."""
        return {
            "texts": len(self.loss),
            "loss": float(self.loss.nanmean()),
            "loss_change": float((self.edited_loss - self.loss).nanmean()),
            "divergence": float(self.divergence.mean()),
            "tokens": {
                token: {
                    "probability": float(self.probabilities[:, number].mean()),
                    "change": float((self.edited_probabilities - self.probabilities)[:, number].mean()),
                }
                for number, token in enumerate(self.tokens)
            },
        }


def text_control(
    language: LanguageModel,
    texts: Sequence[str | Sequence[int]],
    edits: Mapping[str, ChannelEdit],
    tokens: Sequence[str | int] = (),
    *,
    batch_size: int = 8,
    special_tokens: bool = True,
) -> TextControl:
    """Measure texts without edits and with them (CODEC, section 5). Cost: two forward passes a text.

    Args:
        edits: `{site: ChannelEdit}`, sites of `language.network`; the channels of a mode come from
            `backlight.contributions.mode_sets`. See `backlight.contributions.control`.
        tokens: whose probability behind the text is told, written or by number.
        batch_size: texts in one pass, padded on the right; for causal models that changes nothing.

    Raises:
        InputError: no texts, a token that is none, channels that are not there.
        SiteError, UnknownNameError: a site that is not there, or is not reached.
    """
    if isinstance(texts, str) or not texts or batch_size < 1:
        raise InputError("texts are several, and batch_size >= 1")
    ids = [language.ids(text, special_tokens=special_tokens) for text in texts]
    vocabulary = language.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    numbers = [token_number(language, token, vocabulary) for token in tokens]
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(ids), batch_size):
        text = language.read_ids(ids[start : start + batch_size])
        loss, told = _measured(language, text)
        with control(language.network, edits, samples=range(start, start + len(text))):
            edited_loss, edited = _measured(language, text)
        divergence = (told.exp() * (told - edited)).sum(1)
        parts.append((loss, edited_loss, told[:, numbers].exp(), edited[:, numbers].exp(), divergence))
    pieces = tuple(language.piece(number) for number in numbers)
    return TextControl(pieces, *(torch.cat(several).cpu().float() for several in zip(*parts, strict=True)))


def _measured(language: LanguageModel, text: Text) -> tuple[Float[Tensor, "N"], Float[Tensor, "N V"]]:
    """(the loss of each text, log-probabilities of what comes behind it)."""
    with torch.no_grad():
        logits = output_tensor(language.network(text.embeddings, text.mask)).float()
    rows = torch.arange(len(text), device=logits.device)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), text.ids[:, 1:], reduction="none")
    told = logits[rows, text.last].double().log_softmax(1)
    return (losses * text.mask[:, 1:]).sum(1) / text.mask[:, 1:].sum(1), told
