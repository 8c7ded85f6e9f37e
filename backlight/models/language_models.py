"""Language models of Hugging Face, unmodified, and the front that takes token embeddings."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.errors import InputError, MissingExtraError, ModelError
from backlight.models.hub import fetching
from backlight.models.layers import layer_names
from backlight.models.llama2c import load_llama2c, load_llama2c_tokens, read_llama2c
from backlight.shapes import Float, Int


class EmbeddedNetwork(nn.Module):
    """Token embeddings `[N, L, D]` -> `network`: attributions then have an input that they can be of, and a path.

    The network is held, not copied or changed; its outputs come back as they are, without a cache. `mask` `[N, L]`: 1
    at tokens, 0 at padding. Layers are addressed by their own names behind `network.`: `network.model.layers.3`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training  # not train(): that would write to the network's modules
        accepted = inspect.signature(network.forward).parameters
        if "inputs_embeds" not in accepted:
            raise ModelError(f"{type(network).__name__} does not take embeddings (inputs_embeds)")
        self._further = {"use_cache": False} if "use_cache" in accepted or _open_ended(accepted) else {}

    def forward(self, embeddings: Float[Tensor, "N L D"], mask: Int[Tensor, "N L"] | None = None) -> Any:
        return self.network(inputs_embeds=embeddings, attention_mask=mask, **self._further)


def _open_ended(parameters: Any) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


@dataclass(frozen=True, eq=False)
class Text:
    """Texts as a language model is given them.

    `ids`, `mask`: `[N, L]`, padded on the right; `embeddings`: `[N, L, D]`, before anything is added to them.
    `tokens`: the pieces of each text, as they are written, without the padding.
    """

    ids: Int[Tensor, "N L"]
    mask: Int[Tensor, "N L"]
    embeddings: Float[Tensor, "N L D"]
    tokens: list[list[str]]

    @property
    def last(self) -> Int[Tensor, "N"]:
        """The position of each text's last token."""
        return self.mask.sum(1) - 1

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, or an encoder, with its tokeniser.

    - `model`: Hugging Face's, in evaluation mode; takes token ids;
    - `network`: the same behind a front that takes embeddings;
    - `layers`: the dotted names of the submodules of `model`;
    - `source`: where the weights come from.
    """

    name: str
    model: nn.Module
    network: EmbeddedNetwork
    tokenizer: Any
    layers: tuple[str, ...]
    source: str

    def read(self, texts: str | Sequence[str], *, special_tokens: bool = True) -> Text:
        """Texts as ids, mask and embeddings, on the model's device.

        Raises:
            InputError: no text, a text without tokens, or one longer than the model takes.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.read_ids([self.ids(text, special_tokens=special_tokens) for text in texts])

    def ids(self, text: str | Sequence[int], *, special_tokens: bool = True) -> list[int]:
        """The tokens of a text, by number; ids are given back. Raises `InputError` without a tokeniser."""
        if not isinstance(text, str):
            return [int(one) for one in text]
        if self.tokenizer is None:
            raise InputError(f"{self.name} has no tokeniser: give token ids")
        return list(self.tokenizer(text, add_special_tokens=special_tokens)["input_ids"])

    def read_ids(self, ids: Sequence[Sequence[int]] | Int[Tensor, "N L"]) -> Text:
        """Token ids, one list a text, as ids, mask and embeddings. Raises `InputError`, as `read` does."""
        rows = [[int(one) for one in row] for row in ids]
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        longest, limit = max(map(len, rows), default=0), self.limit
        if not rows or not min(map(len, rows)):
            raise InputError("nothing to read: a text needs at least one token")
        if limit is not None and longest > limit:
            raise InputError(f"a text of {longest} tokens; {self.name} takes up to {limit}")
        vocabulary = embedding.weight.shape[0]
        wrong = next((one for row in rows for one in row if not 0 <= one < vocabulary), None)
        if wrong is not None:
            raise InputError(f"token {wrong} of a vocabulary of {vocabulary}")
        device = embedding.weight.device
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        with torch.no_grad():
            embeddings = embedding(padded)
        return Text(padded, mask, embeddings.detach(), [[self.piece(one) for one in row] for row in rows])

    def piece(self, token: int) -> str:
        """How a token is written, with the space that it stands for."""
        if self.tokenizer is None:
            return str(token)
        raw = self.tokenizer.convert_ids_to_tokens(token)
        written = self.tokenizer.convert_tokens_to_string([raw]) if raw is not None else ""
        lead = " " if raw and raw[0] in "Ġ▁ " and not written.startswith(" ") else ""
        return lead + written if written else str(raw)

    def token(self, text: str) -> int:
        """The token that a piece of text is.

        Raises:
            InputError: it is several tokens, or none; they are listed.
        """
        known = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        forms = [text, text.replace(" ", "Ġ"), text.replace(" ", "▁")]
        if not any(one[0] in "Ġ▁" for one in known if one):  # BERT's tokens do not tell of the space before them
            forms.append(text.strip())
        for written in forms:
            if written in known:
                return int(known[written])
        pieces = self.tokenizer.tokenize(text) if self.tokenizer is not None else []
        raise InputError(f"{text!r} is no single token of {self.name}: it is read as {pieces}")

    @property
    def device(self) -> torch.device:
        """Where the model's embeddings are."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    @property
    def limit(self) -> int | None:
        """The longest text, in tokens; None where the model does not say."""
        config = getattr(self.model, "config", None)
        found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(found) if found else None


def load_language_model(
    name: str | os.PathLike[str] | nn.Module,
    *,
    tokenizer: Any = None,
    pretrained: bool = True,
    config: dict[str, Any] | None = None,
    encoder: bool = False,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """A language model: ORG/NAME of Hugging Face, a folder of `save_pretrained`, a llama2.c file, or a module.

    Args:
        name: `hf:ORG/NAME` or `ORG/NAME`; a folder; `FILE.bin` in llama2.c's format; with `pretrained=False` a type of
            model ("gpt2", "llama", "gemma", "qwen2", "bert"), built with random weights that depend on torch's seed.
        tokenizer: in place of the model's own; the path of the file of tokens, for a llama2.c file.
        config: settings of a type's configuration, such as `{"num_hidden_layers": 2}`.
        encoder: a masked language model (BERT) in place of a causal one.
        dtype: of the weights; None: that of the model's file, float32 for random ones.

    Raises:
        InputError: a type for a module.
        ModelError: a model that cannot be fetched or read, does not take embeddings, or is in training mode.
        MissingExtraError: transformers is not installed.
    """
    if isinstance(name, nn.Module):
        if dtype is not None:
            raise InputError("a module has its type already: give it module.to(dtype)")
        return _made(type(name).__name__, name, tokenizer, "the caller's module")
    text = os.fspath(name).removeprefix("hf:")
    if text.endswith(".bin") and Path(text).is_file():
        model = load_llama2c(text, dtype or torch.float32)
        tokens = load_llama2c_tokens(tokenizer, read_llama2c(text)[0].vocabulary) if _is_path(tokenizer) else tokenizer
        return _made(Path(text).stem, model, tokens, f"the file {text}")
    transformers = _transformers()
    kind = transformers.AutoModelForMaskedLM if encoder else transformers.AutoModelForCausalLM
    settings = {} if dtype is None else {"dtype": dtype}
    if pretrained:
        with fetching(f"hf:{text}"):
            model = kind.from_pretrained(text, **settings)
            own = transformers.AutoTokenizer.from_pretrained(text) if tokenizer is None else tokenizer
        return _made(text, model.eval(), own, f"Hugging Face {text}, licence: see its model card")
    with fetching(f"hf:{text}"), torch.random.fork_rng(devices=[]):
        known = transformers.AutoConfig.for_model(text, **(config or {}))
        model = kind.from_config(known, **settings)
    return _made(text, model.eval(), tokenizer, "random weights")


def _made(name: str, model: nn.Module, tokenizer: Any, source: str) -> LanguageModel:
    if model.training:
        raise ModelError(f"{name} is in training mode: call model.eval() first")
    if not hasattr(model, "get_input_embeddings"):
        raise ModelError(f"{name} has no get_input_embeddings(): it is no language model of Hugging Face's kind")
    return LanguageModel(name, model, EmbeddedNetwork(model), tokenizer, layer_names(model), source)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "hf") from None
    return transformers
