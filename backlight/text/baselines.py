"""Where paths to a text begin: embeddings that say little, and at which a language model is smooth."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.models.language_models import LanguageModel, Text
from backlight.shapes import Float

BASELINES = ("neutral", "vocabulary", "text", "zero")
Baseline = str | int | Tensor
PIECE = 4096  # tokens that are embedded at once


def text_baseline(language: LanguageModel, text: Text, baseline: Baseline = "neutral") -> Float[Tensor, "1 L D"]:
    """An embedding for every token of a text.

    - "neutral": the mean embedding of the vocabulary, at the length of a token: the median of theirs. An RMSNorm
      divides by the length of what it is given, so that the network is singular at zero, and a mean of random
      directions comes near it; between points of one length the path stays far from there;
    - "vocabulary": that mean as it is; "text": the mean of this text's embeddings; "zero";
    - a token, written " the" or by number: its embedding; a tensor `[D]`, `[L, D]` or `[1, L, D]`.

    All but "text" are the same for every text, so that contributions of several texts are measured from one point.

    Raises:
        InputError: a word that is no single token, a token whose embedding is zero, a tensor that does not fit.
    """
    like = text.embeddings
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(like).expand_as(like[:1])
        except RuntimeError:
            raise InputError(
                f"a baseline {list(baseline.shape)} does not broadcast to embeddings {list(like.shape)}"
            ) from None
    if baseline == "zero":
        return torch.zeros_like(like[:1])
    if baseline == "text":
        mask = text.mask[:1, :, None].to(like)
        found = (like[:1] * mask).sum((0, 1)) / mask.sum()
    elif baseline in ("neutral", "vocabulary"):
        found = _of_vocabulary(language, scaled=baseline == "neutral")
    else:
        found = _of_token(language, baseline)
    return found.to(like).expand_as(like[:1])


def _of_token(language: LanguageModel, token: str | int) -> Float[Tensor, "D"]:
    try:
        number = language.token(token) if isinstance(token, str) else token
    except InputError as error:
        raise UnknownNameError("baseline of texts", str(token), BASELINES, hint=f"or a token; {error}") from None
    found = language.read_ids([[number]]).embeddings[0, 0]
    if not bool(found.any()):
        raise InputError(f"the embedding of {language.piece(number)!r} is zero, where RMSNorm is singular")
    return found


def _of_vocabulary(language: LanguageModel, scaled: bool) -> Float[Tensor, "D"]:
    """The mean of all embeddings, as the model gives them; scaled to the median of the lengths that are not zero."""
    embedding = language.model.get_input_embeddings()  # type: ignore[operator]
    count, device = embedding.weight.shape[0], embedding.weight.device
    total, lengths = None, []
    with torch.no_grad():
        for start in range(0, count, PIECE):
            piece = embedding(torch.arange(start, min(start + PIECE, count), device=device)).float()
            total = piece.sum(0) if total is None else total + piece.sum(0)
            lengths.append(piece.norm(dim=1))
    assert total is not None
    mean, found = total / count, torch.cat(lengths)
    if not scaled:
        return mean
    size, length = mean.norm(), found[found > 0].median() if bool((found > 0).any()) else found.new_zeros(())
    return mean * (length / size) if size > 0 else mean
