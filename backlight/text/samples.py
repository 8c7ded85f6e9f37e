"""Texts as samples of an extraction: whole, or every position with the token that comes next."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backlight.data.labelled import Sample
from backlight.errors import InputError, UnknownNameError
from backlight.models.language_models import LanguageModel
from backlight.shapes import Int

PER = ("text", "position")


@dataclass(frozen=True)
class TextSample(Sample):
    """Token ids, `[L]`, and a class: of the text, or the token that comes next."""

    inputs: Int[Tensor, "L"]


class TextSamples:
    """Texts in an order; `backlight.store.Samples`.

    Args:
        texts: words or token ids.
        per: "text": a sample a text, with its class where `labels` are given; "position": a sample for every token
            that has something before it: all that is before it, and itself as the label. Such samples are of causal
            models, and cost a pass of their own each.
        first: "position": tokens before the first one that is asked for.
        limit: the most samples; None: all.

    Raises:
        InputError: no texts, an empty one, labels that are not as many, or a text without a position to ask at.
        UnknownNameError: another `per`.
    """

    def __init__(
        self,
        language: LanguageModel,
        texts: Sequence[str | Sequence[int]],
        *,
        per: str = "text",
        labels: Sequence[int] | None = None,
        first: int = 1,
        limit: int | None = None,
        special_tokens: bool = True,
    ) -> None:
        if per not in PER:
            raise UnknownNameError("way to take samples of texts", per, PER)
        if isinstance(texts, str) or not texts or first < 1 or (limit is not None and limit < 1):
            raise InputError("texts are several, first >= 1 and limit >= 1")
        if labels is not None and (per == "position" or len(labels) != len(texts)):
            raise InputError(f"{len(labels)} labels of {len(texts)} texts; per='position' has labels of its own")
        self._entries: dict[str, tuple[list[int], int | None]] = {}
        for number, text in enumerate(texts):
            if limit is not None and len(self._entries) >= limit:
                break
            ids = language.ids(text, special_tokens=special_tokens)
            if per == "text":
                self._entries[str(number)] = ids, None if labels is None else int(labels[number])
                continue
            if len(ids) <= first:
                raise InputError(f"text {number} has {len(ids)} tokens: none has {first} before it")
            for place in range(first, len(ids)):
                self._entries[f"{number}:{place}"] = ids[:place], ids[place]
        self.names: list[str] = list(self._entries)[:limit]
        self._about = (per, first, special_tokens, self._entries[self.names[0]])

    @classmethod
    def of_file(
        cls,
        language: LanguageModel,
        path: str | os.PathLike[str],
        *,
        per: str = "text",
        first: int = 1,
        limit: int | None = None,
        special_tokens: bool = True,
    ) -> TextSamples:
        """The lines of a UTF-8 file that are not blank, a text each. Raises `InputError` where it cannot be read."""
        try:
            lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read texts from {os.fspath(path)!r}: {error}") from None
        if not lines:
            raise InputError(f"{os.fspath(path)!r} has no line that is not blank")
        return cls(language, lines, per=per, first=first, limit=limit, special_tokens=special_tokens)

    @property
    def fingerprint(self) -> str:
        """Of the first sample, and how samples are taken: more of the same texts have it too."""
        return hashlib.sha256(repr(self._about).encode()).hexdigest()

    def content(self, name: str) -> str:
        """A hash of a sample's tokens and class."""
        return hashlib.sha256(repr(self._entries[name]).encode()).hexdigest()[:16]

    def load(self, name: str) -> TextSample:
        """A sample by name: "12" is text 12, "12:5" what comes before its token 5."""
        ids, label = self._entries[name]
        return TextSample(name, torch.tensor(ids), label)
