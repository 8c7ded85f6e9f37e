"""Language models: what goes in as embeddings is what goes in as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from backlight.errors import InputError, ModelError
from backlight.models.language_models import LanguageModel, load_language_model

DATA = Path(__file__).parents[2].parent / "shared/data/weights"
SMALL = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "gpt2": {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "llama": WIDE,
    "gemma": {**WIDE, "head_dim": 4},
    "gemma2": {**WIDE, "head_dim": 4},
    "qwen2": WIDE,
    "qwen3": {**WIDE, "head_dim": 4},
    "mistral": WIDE,
    "bert": {key: value for key, value in WIDE.items() if key != "num_key_value_heads"},
}


def small(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    return load_language_model(kind, pretrained=False, config=CONFIGS[kind], encoder=kind == "bert")


@pytest.mark.parametrize("kind", CONFIGS)
def test_embeddings_in_place_of_tokens_change_nothing(kind: str) -> None:
    language = small(kind)
    text = language.read_ids([[5, 7, 9, 11], [3, 4], [30]])
    with torch.no_grad():
        ours = language.network(text.embeddings, text.mask).logits
        theirs = language.model(text.ids, attention_mask=text.mask).logits
    assert torch.equal(ours, theirs)
    assert text.last.tolist() == [3, 1, 0]
    for row, length in enumerate((4, 2, 1)):
        alone = language.read_ids([text.ids[row, :length].tolist()])
        with torch.no_grad():
            torch.testing.assert_close(
                language.network(alone.embeddings, alone.mask).logits[0], ours[row, :length], rtol=1e-4, atol=1e-5
            )


def test_random_weights_leave_the_callers_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_language_model("gpt2", pretrained=False, config=CONFIGS["gpt2"])
    assert torch.equal(torch.rand(2), expected)


def test_a_saved_folder_is_read_again(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = {"<unk>": 0, **{f"w{n}": n for n in range(1, 31)}}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(names, "<unk>")))
    language = small("llama")
    language.model.save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path)
    again = load_language_model(tmp_path)
    text = again.read("w7")
    assert text.ids.tolist() == [[7]]
    assert text.tokens == [["w7"]]
    with torch.no_grad():
        assert torch.equal(again.model(text.ids).logits, language.model(text.ids).logits)


@pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}")
def test_the_trained_model_reads_and_writes() -> None:
    language = load_language_model(DATA / "aidreams260K.bin", tokenizer=DATA / "tok512.bin")
    text = language.read(["Echoes of prior knowledge", "Echoes"])
    assert "".join(text.tokens[0]) == "<s> Echoes of prior knowledge"
    assert text.ids[1, text.last[1] + 1 :].eq(0).all()
    assert language.piece(language.token(" of")) == " of"
    with pytest.raises(InputError, match="no single token"):
        language.token(" knowledge")


def test_weights_have_the_type_that_is_asked_for(tmp_path: Path) -> None:
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    small("llama").model.save_pretrained(tmp_path)  # type: ignore[operator]
    words = object()
    read = {
        "random": load_language_model("llama", pretrained=False, config=CONFIGS["llama"], **half),
        "saved": load_language_model(tmp_path, tokenizer=words, **half),
    }
    if (DATA / "aidreams260K.bin").exists():
        read["llama2.c"] = load_language_model(DATA / "aidreams260K.bin", tokenizer=words, **half)
    for name, language in read.items():
        assert {p.dtype for p in language.model.parameters()} == {torch.bfloat16}, name
        assert {b.dtype for b in language.model.buffers()} == {torch.float32}, name  # angles of the rotary embedding
        assert language.model.get_input_embeddings()(torch.tensor([1])).dtype == torch.bfloat16  # type: ignore[operator]
    with pytest.raises(InputError, match=r"module\.to\(dtype\)"):
        load_language_model(small("gpt2").model, **half)


def test_errors() -> None:
    language = small("gpt2")
    with pytest.raises(InputError, match="at least one token"):
        language.read_ids([[]])
    with pytest.raises(InputError, match="up to 32"):
        language.read_ids([[1] * 33])
    with pytest.raises(InputError, match="vocabulary of 31"):
        language.read_ids([[31]])
    with pytest.raises(InputError, match="no tokeniser"):
        language.read("hello")
    with pytest.raises(ModelError, match="training mode"):
        load_language_model(small("gpt2").model.train())
    with pytest.raises(ModelError, match="get_input_embeddings"):
        load_language_model(torch.nn.Linear(2, 2).eval())
    with pytest.raises(ModelError):
        load_language_model("no/such-model")


def test_tokens_that_do_not_tell_of_spaces_are_found_with_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def of(names: list[str]) -> LanguageModel:
        known = {name: number for number, name in enumerate(names)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(known, "[UNK]")))
        return load_language_model(small("bert").model, tokenizer=tokenizer)

    assert of(["[UNK]", "a", "cat"]).token(" cat") == 2
    with pytest.raises(InputError, match="no single token"):
        of(["[UNK]", "cat", "Ġcats"]).token(" cat")
