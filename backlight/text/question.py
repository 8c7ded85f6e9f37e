"""What a language model is asked of a text: a target at a position, in words too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.engine.targets import Contrast, Logit, Target, output_tensor
from backlight.engine.token_targets import At, SpanLoss
from backlight.errors import InputError, TargetError
from backlight.models.language_models import LanguageModel, Text
from backlight.shapes import Float

Asked = str | int | Target | None


@dataclass(frozen=True, eq=False)
class Question:
    """One text, and what is asked of it.

    `target`: of the whole outputs `[1, L, V]`; `words`: what it is; `place`: behind which token, from 0;
    `predicted`: the model's own next tokens there, likeliest first, with their probabilities.
    """

    text: Text
    target: Target
    words: str
    place: int
    predicted: tuple[tuple[str, float], ...]

    @property
    def length(self) -> int:
        return int(self.text.mask.sum())


def ask(
    language: LanguageModel,
    text: str | Sequence[int] | Text,
    target: Asked = None,
    *,
    against: str | int | None = None,
    position: int | None = None,
    special_tokens: bool = True,
) -> Question:
    """A text, read, and a target as `explain_text` is given it. Cost: one forward pass.

    `position` None: the mask of a text that has one (for an encoder), else the last token.

    Raises:
        InputError: several texts, a target that is no single token, a position that is not there.
        TargetError: a number that is no token.
    """
    read = one_text(language, text, special_tokens)
    length = int(read.mask.sum())
    position = _mask(language, read) if position is None else position
    if not -length <= position < length:
        raise InputError(f"position {position} of a text of {length} tokens")
    place = position % length
    with torch.no_grad():
        logits = output_tensor(language.network(read.embeddings, read.mask))[0, place]
    asked, words = _target(language, target, against, place, logits)
    return Question(read, asked, words, place, likeliest(language, logits))


def one_text(language: LanguageModel, text: str | Sequence[int] | Text, special_tokens: bool = True) -> Text:
    """One text, of words or token ids. Raises `InputError`: several."""
    if isinstance(text, str):
        text = language.read(text, special_tokens=special_tokens)
    elif not isinstance(text, Text):
        text = language.read_ids([text])
    if len(text) != 1:
        raise InputError(f"one text at a time, got {len(text)}")
    return text


def token_number(language: LanguageModel, token: str | int, vocabulary: int) -> int:
    """A token by its writing or number. Raises `InputError` or `TargetError` where it is none."""
    if isinstance(token, str):
        return language.token(token)
    if not 0 <= token < vocabulary:
        raise TargetError(f"token {token} of a vocabulary of {vocabulary}")
    return token


def likeliest(language: LanguageModel, logits: Float[Tensor, "V"], count: int = 5) -> tuple[tuple[str, float], ...]:
    """The tokens with the largest logits, and their probabilities."""
    top = logits.float().softmax(0).topk(min(count, len(logits)))
    return tuple((language.piece(int(one)), float(share)) for share, one in zip(top.values, top.indices, strict=True))


def _mask(language: LanguageModel, text: Text) -> int:
    """The position of the only mask; -1 where there is none, or several."""
    mask = getattr(language.tokenizer, "mask_token_id", None)
    places = [] if mask is None else (text.ids[0] == mask).nonzero().flatten().tolist()
    return places[0] if len(places) == 1 else -1


def _target(
    language: LanguageModel, target: Asked, against: str | int | None, place: int, logits: Float[Tensor, "V"]
) -> tuple[Target, str]:
    """The target, and what it is in words."""
    if isinstance(target, Target):
        if against is not None:
            raise InputError("against= is for a target that is a token")
        whole = isinstance(target, (At, SpanLoss))
        return (target if whole else At(target, place)), type(target).__name__
    one = int(logits.argmax()) if target is None else token_number(language, target, len(logits))
    if against is None:
        return At(Logit(one), place), f"logit of {language.piece(one)!r}"
    other = token_number(language, against, len(logits))
    return At(Contrast(one, other), place), f"logit of {language.piece(one)!r} less that of {language.piece(other)!r}"
