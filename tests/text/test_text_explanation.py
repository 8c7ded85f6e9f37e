"""Relevance of tokens: against autograd, and what was asked."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from backlight.engine import Entropy
from backlight.engine.token_targets import SpanLoss
from backlight.errors import InputError, UnknownNameError
from backlight.models.language_models import LanguageModel, load_language_model
from backlight.text.explanation import explain_text

SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
IDS = [5, 7, 9, 11, 3]


@pytest.fixture
def language() -> LanguageModel:
    torch.manual_seed(0)
    return load_language_model("llama", pretrained=False, config=SIZES)


def test_gradient_times_embedding_is_autograds(language: LanguageModel) -> None:
    x = language.read_ids([IDS]).embeddings.requires_grad_()
    logits = language.model(inputs_embeds=x).logits[0]
    for position, asked, score in (
        (-1, {"target": 4}, logits[-1, 4]),
        (2, {"target": 4, "against": 8}, logits[2, 4] - logits[2, 8]),
        (-1, {}, logits[-1].max()),
        (-1, {"target": Entropy()}, torch.distributions.Categorical(logits=logits[-1]).entropy()),
        (-1, {"target": SpanLoss(torch.tensor(IDS), 2)},
         torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(IDS[2:]))),
    ):  # fmt: skip
        (gradient,) = torch.autograd.grad(score, x, retain_graph=True)
        found = explain_text(language, IDS, position=position, method="InputXGradient", **asked)
        torch.testing.assert_close(found.relevance, (x * gradient).sum(2)[0].detach())
        assert found.score == pytest.approx(float(score.detach()), rel=1e-5)
        if position == 2:
            assert found.relevance[3:].abs().max() == 0  # what comes later cannot matter


def test_what_the_model_says_is_told(language: LanguageModel) -> None:
    found = explain_text(language, IDS)
    with torch.no_grad():
        shares = language.model(torch.tensor([IDS])).logits[0, -1].softmax(0)
    assert [token for token, _ in found.predicted] == [str(int(one)) for one in shares.topk(5).indices]
    assert found.asked == f"logit of '{int(shares.argmax())}'"
    assert found.method == "AttnLRP"
    assert found.record()["tokens"][0]["relevance"] == pytest.approx(float(found.relevance[0]))


def test_the_norm_is_not_the_sum(language: LanguageModel) -> None:
    norms = explain_text(language, IDS, 4, readout="norm").relevance
    sums = explain_text(language, IDS, 4).relevance
    assert (norms >= sums.abs() / 4 - 1e-6).all()  # |sum| <= sqrt(16) norm
    assert (norms > 0).all()


def test_a_masked_model_is_asked_at_its_mask() -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    torch.manual_seed(0)
    language = load_language_model("bert", pretrained=False, config=sizes, encoder=True)
    found = explain_text(language, IDS, 4, position=1)
    assert found.relevance[3:].abs().min() > 0  # it reads both ways


def test_errors(language: LanguageModel) -> None:
    with pytest.raises(InputError, match="position 5 of a text of 5"):
        explain_text(language, IDS, position=5)
    with pytest.raises(InputError, match="no tokeniser"):
        explain_text(language, "text")
    with pytest.raises(InputError, match="one text"):
        explain_text(language, language.read_ids([IDS, IDS]))
    with pytest.raises(UnknownNameError, match="AttnLRP"):
        explain_text(language, IDS, method="AtnLRP")
    with pytest.raises(UnknownNameError, match="n_steps"):
        explain_text(language, IDS, method="IntegratedGradients", nsteps=3)
    with pytest.raises(UnknownNameError, match="norm"):
        explain_text(language, IDS, readout="nrm")
    with pytest.raises(InputError, match="against="):
        explain_text(language, IDS, Entropy(), against=3)
