"""Contributions of blocks, heads and hidden units of language models: autograd, completeness, where paths begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from small_languages import CONFIGS, DATA, IDS, small, trained

from backlight.contributions import HiddenIntegratedGradients, default_sites
from backlight.engine import checkpointed
from backlight.engine.coverage import Coverage
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.methods import method
from backlight.text import explain_text, text_baseline, text_contributions

real = pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}")
MODULES = {
    "gpt2": ("transformer.h.{}", "attn.c_proj", "mlp.c_proj"),
    "llama": ("model.layers.{}", "self_attn.o_proj", "mlp.down_proj"),
    "bert": ("bert.encoder.layer.{}", "attention.output.dense", "output.dense"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_act_grad_is_autograds_activation_times_gradient(kind: str) -> None:
    language = small(kind)
    block, attention, mlp = MODULES[kind]
    kept: dict[str, Tensor] = {}

    def keep(name: str, entering: bool) -> None:
        def hook(module: object, given: tuple[Tensor, ...], found: Tensor | tuple[Tensor, ...] = ()) -> None:
            value = given[0] if entering else found[0] if isinstance(found, tuple) else found
            value.retain_grad()
            kept[name] = value

        module = language.model.get_submodule(name)
        module.register_forward_pre_hook(hook) if entering else module.register_forward_hook(hook)

    copy = small(kind)  # hooks are put on a model of the test's own
    found = text_contributions(copy, IDS, 4, against=9, position=5, algorithm="ActGrad", baseline="zero")
    places = [block.format(number) for number in range(2)]
    for place in places:
        keep(place, False)
        keep(f"{place}.{attention}", True)
        keep(f"{place}.{mlp}", True)

    def passed(x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits = language.model(inputs_embeds=x.detach().requires_grad_()).logits[0, 5]
        (logits[4] - logits[9]).backward()
        return {n: v.detach() for n, v in kept.items()}, {n: v.grad for n, v in kept.items() if v.grad is not None}

    x = language.read_ids([IDS]).embeddings
    before, _ = passed(torch.zeros_like(x))
    here, gradients = passed(x)
    for number, place in enumerate(places):
        for name, layer in ((place, "blocks"), (f"{place}.{attention}", "attention"), (f"{place}.{mlp}", "mlp")):
            expected = ((here[name] - before[name]) * gradients[name])[0]
            torch.testing.assert_close(found.layers[layer].values[number], expected.sum(1))
            torch.testing.assert_close(found.layers[layer].units[number], expected.sum(0))
        heads = ((here[f"{place}.{attention}"] - before[f"{place}.{attention}"]) * gradients[f"{place}.{attention}"])[0]
        by_head = found.layers["attention"].heads
        assert by_head is not None
        for head in range(4):
            torch.testing.assert_close(by_head[number, head], heads[:, 4 * head : 4 * head + 4].sum(1))
    if kind != "bert":
        assert found.layers["blocks"].values[:, 6:].abs().max() == 0  # what comes later cannot contribute
    assert found.layers["mlp"].units.shape == (2, 64 if kind == "gpt2" else 24)


@pytest.mark.parametrize("kind", CONFIGS)
def test_contributions_of_every_block_sum_to_the_difference_of_the_scores(kind: str) -> None:
    """At most 2 % are missing with 20 intervals, the default, and the trapezoid's error falls with their square."""
    language = small(kind)
    missing = []
    for steps in (20, 40):
        found = text_contributions(
            language, IDS, position=3, kinds="blocks", algorithm=HiddenIntegratedGradients(steps)
        )
        residual = found.layers["blocks"].residual
        assert residual is not None
        assert found.baseline_score is not None
        torch.testing.assert_close(
            found.layers["blocks"].values.sum(1) + residual,
            torch.full((2,), found.score - found.baseline_score),
            atol=1e-5, rtol=1e-4,
        )  # fmt: skip
        missing.append(found.undistributed)
    assert missing[0] < 0.02
    assert missing[1] < max(missing[0] / 3, 1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_a_path_from_zero_does_not_sum_where_rms_norm_is_singular(kind: str) -> None:
    settings = {"kinds": "blocks", "algorithm": HiddenIntegratedGradients(10)}
    from_zero = text_contributions(small(kind), IDS, baseline="zero", **settings).undistributed
    neutral = text_contributions(small(kind), IDS, **settings).undistributed
    assert from_zero is not None
    assert neutral is not None
    assert from_zero > 0.1
    assert neutral < from_zero / 5


@real
def test_contributions_of_the_trained_model_are_complete() -> None:
    found = text_contributions(
        trained(), "Echoes of prior knowledge hum, a gentle hum", algorithm=HiddenIntegratedGradients(40)
    )
    assert found.undistributed is not None
    assert found.undistributed < 0.02
    assert found.layers["attention"].heads is not None
    assert found.layers["attention"].heads.shape == (4, 4, len(found.tokens))
    assert found.cost.backwards == 41  # all sites of all kinds in the same passes


def test_baselines() -> None:
    language = small("llama")
    text = language.read_ids([IDS])
    embedding = language.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    lengths = embedding.norm(dim=1)
    neutral = text_baseline(language, text)
    assert neutral.shape == text.embeddings.shape
    torch.testing.assert_close(neutral.norm(dim=2), lengths[lengths > 0].median().expand(1, len(IDS)))
    mean = embedding.mean(0)
    torch.testing.assert_close(neutral[0, 3] / neutral[0, 3].norm(), mean / mean.norm())
    torch.testing.assert_close(text_baseline(language, text, "vocabulary")[0, 0], mean)
    torch.testing.assert_close(text_baseline(language, text, "text")[0, 5], text.embeddings[0].mean(0))
    assert torch.equal(text_baseline(language, text, 7)[0, 2], embedding[7])
    assert torch.equal(text_baseline(language, text, mean)[0, 2], mean)
    assert text_baseline(language, text, "zero").abs().max() == 0
    with pytest.raises(InputError, match="is zero"):
        text_baseline(language, text, 0)  # the padding's embedding
    with pytest.raises(InputError, match="broadcast"):
        text_baseline(language, text, mean[:5])
    with pytest.raises(UnknownNameError, match="neutral"):
        text_baseline(language, text, "nuetral")


def test_integrated_gradients_of_tokens_begin_at_the_neutral_embedding() -> None:
    language = small("llama")
    found = explain_text(language, IDS, 4, method="IntegratedGradients", n_steps=40)
    text = language.read_ids([IDS])
    with torch.no_grad():
        scores = [language.network(x).logits[0, -1, 4] for x in (text.embeddings, text_baseline(language, text))]
    assert float(found.relevance.sum()) == pytest.approx(float(scores[0] - scores[1]), rel=1e-2)
    given = explain_text(language, IDS, 4, method="IntegratedGradients", n_steps=40, baseline="neutral")
    assert torch.equal(given.relevance, found.relevance)
    other = explain_text(language, IDS, 4, method="IntegratedGradients", n_steps=40, baseline=7)
    assert not torch.equal(other.relevance, found.relevance)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["AttnLRP", "CPLRP", "SoftPullback", "InputXGradient"])
def test_every_family_is_explained_without_an_operation_that_no_rule_answers_for(kind: str, name: str) -> None:
    language = small(kind)
    text = language.read_ids([IDS])
    with torch.no_grad():
        logits = language.network(text.embeddings, text.mask).logits
    seen: list[Tensor] = []

    def last(outputs: object) -> Tensor:
        seen.append(outputs.logits.detach())  # type: ignore[attr-defined]
        return seen[-1].new_zeros(1) + outputs.logits[:, -1, 4]  # type: ignore[attr-defined]

    found = method(name)(language.network).explain(text.embeddings, last, additional_forward_args=(text.mask,))
    assert torch.equal(seen[-1], logits)  # bit for bit, under every rule
    assert isinstance(found.coverage, Coverage)
    relevance = explain_text(language, IDS, 4, method=name).relevance
    assert torch.isfinite(relevance).all()
    assert relevance.abs().min() > 0


def test_errors() -> None:
    language = small("llama")
    with pytest.raises(UnknownNameError, match="blocks"):
        text_contributions(language, IDS, kinds="block")
    with pytest.raises(UnknownNameError, match="ActGrad"):
        text_contributions(language, IDS, algorithm="ActGrd")
    with pytest.raises(TargetError, match="token 31 of a vocabulary of 31"):
        text_contributions(language, IDS, 31)
    with pytest.raises(InputError, match="no kind"):
        text_contributions(language, IDS, kinds=())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointed_blocks_change_nothing(kind: str, dtype: torch.dtype) -> None:
    language = small(kind)
    language.model.to(dtype)
    found = explain_text(language, IDS, 4)
    inside = text_contributions(language, IDS, 4, algorithm="ActGrad")
    with checkpointed(language.network, default_sites(language.network)):
        again = explain_text(language, IDS, 4)
        inside_again = text_contributions(language, IDS, 4, algorithm="ActGrad")
    assert again.score == found.score
    scale = found.relevance.abs().max()
    assert (again.relevance - found.relevance).abs().max() <= 1e-6 * scale
    assert scale > 0
    for name, layer in inside.layers.items():
        assert torch.allclose(inside_again.layers[name].units, layer.units, rtol=1e-5, atol=1e-7), name


def test_checkpointing_of_training_changes_nothing() -> None:
    language = small("llama")
    before = explain_text(language, IDS, 4).relevance
    language.model.gradient_checkpointing_enable()  # type: ignore[operator]
    assert torch.equal(explain_text(language, IDS, 4).relevance, before)
