"""Targets of sequences: what a language model says at a position, or of a span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from backlight.engine.targets import Logit, Target, as_target, output_tensor, pick
from backlight.errors import TargetError
from backlight.shapes import Float


@dataclass(frozen=True)
class At(Target):
    """A target of the outputs at one token of a sequence: of `[N, L, V]`, those at `position`, `[N, V]`.

    `At(Logit(17))`: the logit of token 17 as the next one; `At(Contrast(17, 4))`, `At(Entropy())`. `position`: one for
    all, or one a sample; -1 is the last, which is right for sequences that are padded on the left or not at all.
    """

    target: Any = field(default_factory=Logit)
    position: Any = -1
    per_sample = ("position",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "target", as_target(self.target))

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.target.sites

    @property
    def chooses(self) -> bool:
        return self.target.chooses

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        return self.target(self._there(outputs), hidden)

    def fixed(self, outputs: Any) -> At:
        return replace(self, target=self.target.fixed(self._there(outputs)))

    def check(self, samples: int) -> None:
        super().check(samples)
        self.target.check(samples)

    def rows(self, rows: Tensor) -> At:
        own = super().rows(rows)
        assert isinstance(own, At)
        return replace(own, target=self.target.rows(rows))

    def _there(self, outputs: Any) -> Float[Tensor, "N V"]:
        found = output_tensor(outputs)
        if found.ndim != 3:
            raise TargetError(f"a target at a token needs outputs [N, L, V], got {list(found.shape)}")
        return pick(found, self.position)


@dataclass(frozen=True, eq=False)
class SpanLoss(Target):
    """Mean negative log-likelihood, in nats, of the tokens `start..stop - 1`, each given all before it.

    `tokens`: `[N, L]`, or `[L]` for all; `start` at least 1: the first token is given nothing. None: from 1, to the
    end. A negative number is no token, such as padding: it does not count.

    Raises:
        TargetError: tokens that do not fit the outputs, or a span without tokens.
    """

    tokens: Tensor
    start: int = 1
    stop: int | None = None

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        logits = output_tensor(outputs)
        tokens = self.tokens.to(logits.device).expand(len(logits), -1)
        stop = tokens.shape[1] if self.stop is None else self.stop
        if logits.ndim != 3 or logits.shape[1] != tokens.shape[1]:
            raise TargetError(f"outputs {list(logits.shape)} for tokens {list(tokens.shape)}: expected [N, L, V]")
        if not 1 <= self.start < stop <= tokens.shape[1]:
            raise TargetError(f"a span {self.start}..{stop} of {tokens.shape[1]} tokens: 1 <= start < stop <= L")
        told = logits[:, self.start - 1 : stop - 1].log_softmax(2)
        wanted = tokens[:, self.start : stop]
        there = wanted >= 0
        if not bool(there.any(1).all()):
            raise TargetError(f"a span {self.start}..{stop} without a token in one of {len(tokens)} sequences")
        losses = -told.gather(2, wanted.clamp(min=0)[..., None])[..., 0]
        return losses.masked_fill(~there, 0).sum(1) / there.sum(1)

    def check(self, samples: int) -> None:
        if self.tokens.ndim == 2 and len(self.tokens) not in (1, samples):
            raise TargetError(f"tokens of {len(self.tokens)} sequences for {samples} samples")

    def rows(self, rows: Tensor) -> SpanLoss:
        several = self.tokens.ndim == 2 and len(self.tokens) > 1
        return replace(self, tokens=self.tokens[rows.to(self.tokens.device)]) if several else self


def last_tokens(mask: Tensor) -> Tensor:
    """The position of the last token that is there, of a mask `[N, L]` that is 1 at tokens and 0 at padding."""
    return mask.shape[1] - 1 - mask.flip(1).to(torch.long).argmax(1)
