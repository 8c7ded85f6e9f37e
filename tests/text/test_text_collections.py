"""Texts in a store, their modes, and what a language model says without them: against literal loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("zarr")

from small_languages import small

from backlight.contributions import ChannelEdit, contribute, correlate, decompose, default_sites, mode_sets
from backlight.engine import Entropy
from backlight.engine.targets import Logit
from backlight.engine.token_targets import At, SpanLoss
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.store import extract
from backlight.text import TextCollector, TextSamples, text_baseline, text_control

TEXTS = [[1, 5, 7, 9, 11], [1, 3, 4], [1, 30, 29, 6, 2, 19], [1, 8, 12, 5]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_are_those_of_every_text_alone_split_by_sign_and_summed(kind: str, tmp_path: Path) -> None:
    language = small(kind)
    sites = (*default_sites(language.network, "mlp"), default_sites(language.network)[0])
    store = extract(
        TextCollector(language, sites, algorithm="ActGrad", target=Entropy()),
        TextSamples(language, TEXTS, labels=[4, 5, 6, 7]),
        tmp_path / "store",
        batch_size=3,
    )
    for number, ids in enumerate(TEXTS):
        text = language.read_ids([ids])
        found = contribute(
            language.network, text.embeddings, sites, At(Entropy()), algorithm="ActGrad",
            baseline=text_baseline(language, text),
        )  # fmt: skip
        for site in sites:
            for quantity in ("contributions", "activations", "gradients"):  # those of padding are in none
                values = found.values if quantity == "contributions" else getattr(found, quantity)
                for sign, expected in (
                    ("positive", values[site][0].clamp(min=0).sum(0)),
                    ("negative", values[site][0].clamp(max=0).sum(0)),
                ):
                    row = store.rows(site, quantity, sign).read(number, number + 1)[0]
                    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)
        assert store.column("score")[number] == pytest.approx(float(found.scores[0]), rel=1e-5)
        assert found.outputs is not None
        told = found.outputs[0, -1].log_softmax(0)
        assert store.column("token")[number] == ids[-1]
        assert store.column("prediction")[number] == int(told.argmax())
        assert store.column("loss")[number] == pytest.approx(-float(told[4 + number]), rel=1e-5)


def test_every_position_is_a_sample_with_the_token_that_comes_next(tmp_path: Path) -> None:
    language = small("llama")
    samples = TextSamples(language, TEXTS, per="position", first=2, limit=6)
    assert samples.names == ["0:2", "0:3", "0:4", "1:2", "2:2", "2:3"]
    assert samples.load("2:3").inputs.tolist() == [1, 30, 29]
    assert samples.load("2:3").target == 6
    more = TextSamples(language, TEXTS, per="position", first=2)
    assert more.fingerprint == samples.fingerprint
    assert more.content("0:3") == samples.content("0:3") != samples.content("0:4")
    collector = TextCollector(language, heads=True, algorithm="ActGrad", quantities=("contributions",))
    store = extract(collector, samples, tmp_path / "store", batch_size=4)
    assert store.labels.tolist() == [7, 9, 11, 4, 29, 6]
    assert store.rows(collector.sites[0]).shape == (6, 4)  # a row a sample, a column a head
    with torch.no_grad():
        logits = language.model(torch.tensor([[1, 30, 29]])).logits[0, -1]
    assert store.column("score")[5] == pytest.approx(float(logits[6]), rel=1e-4)
    grown = extract(collector, more, tmp_path / "store", batch_size=4)
    assert len(grown) == len(more.names)


def test_a_loss_is_that_of_each_text_whatever_the_padding(tmp_path: Path) -> None:
    language = small("llama")
    store = extract(
        TextCollector(language, target="loss", baseline="text", algorithm="ActGrad", quantities=("contributions",)),
        TextSamples(language, TEXTS),
        tmp_path / "store",
    )
    losses = []
    for ids in TEXTS:
        with torch.no_grad():
            logits = language.model(torch.tensor([ids])).logits[0]
        losses.append(float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))))
    np.testing.assert_allclose(store.column("score"), losses, rtol=1e-5)
    np.testing.assert_allclose(text_control(language, TEXTS, {}).loss, losses, rtol=1e-5)
    with pytest.raises(TargetError, match="without a token"):
        SpanLoss(torch.tensor([[3, -1]]))(torch.zeros(1, 2, 5), {})


def test_modes_of_texts_are_decomposed_correlated_and_removed(tmp_path: Path) -> None:
    language = small("llama")
    for parameter in language.model.parameters():
        parameter.requires_grad_(False).mul_(8 if parameter.ndim > 1 else 1)  # so that channels matter
    draw = np.random.default_rng(0)
    texts = [[1, *draw.integers(3, 31, 5).tolist()] for _ in range(8)]
    collector = TextCollector(language, algorithm="ActGrad", quantities=("contributions",))
    store = extract(collector, TextSamples(language, texts, per="position"), tmp_path / "store")
    found = decompose(store, collector.sites[1], "PCA", tmp_path / "modes", modes=3, held_out=0.0)
    masks = torch.from_numpy(store.column("token")[:, None] == np.array([1, 5]))
    assert correlate(found.loadings, masks).shape == (3, 2)
    channels = mode_sets(found, [0], top=4)[0].channels
    outcome = text_control(language, texts, {collector.sites[1]: ChannelEdit(channels)}, [4, 9], batch_size=3)

    down = language.model.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(down, torch.nn.Linear)
    kept = down.weight.detach().clone()
    with torch.no_grad():
        down.weight[:, list(channels)] = 0  # what an edit of these channels is
        for number, ids in enumerate(texts):
            logits = language.model(torch.tensor([ids])).logits[0]
            shares = logits[-1].softmax(0)
            loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
            torch.testing.assert_close(outcome.edited_loss[number], loss, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(outcome.edited_probabilities[number], shares[[4, 9]], rtol=1e-4, atol=1e-6)
        down.weight.copy_(kept)
    assert outcome.divergence.min() > 0
    assert (outcome.edited_loss - outcome.loss).abs().min() > 1e-4
    record = outcome.record()
    assert record["loss_change"] == pytest.approx(float((outcome.edited_loss - outcome.loss).mean()))
    assert set(record["tokens"]) == {"4", "9"}
    nothing = text_control(language, texts, {collector.sites[1]: ChannelEdit(range(24), "preserve")}, batch_size=3)
    assert torch.equal(nothing.edited_loss, nothing.loss)


def test_lines_of_a_file_are_texts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{n}": n for n in range(1, 31)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    own = small("llama")
    language = type(own)(own.name, own.model, own.network, PreTrainedTokenizerFast(tokenizer_object=words),
                         own.layers, own.source)  # fmt: skip
    path = tmp_path / "texts.txt"
    path.write_text("w3 w4\n\nw5\n", encoding="utf-8")
    samples = TextSamples.of_file(language, path)
    assert [samples.load(name).inputs.tolist() for name in samples.names] == [[3, 4], [5]]
    assert TextCollector(language, algorithm="ActGrad").about["classes"][:3] == ["<unk>", "w1", "w2"]
    with pytest.raises(InputError, match="cannot read texts"):
        TextSamples.of_file(language, tmp_path / "none.txt")


def test_errors(tmp_path: Path) -> None:
    language = small("llama")
    with pytest.raises(UnknownNameError, match="position"):
        TextSamples(language, TEXTS, per="positon")
    with pytest.raises(InputError, match="3 labels of 4 texts"):
        TextSamples(language, TEXTS, labels=[1, 2, 3])
    with pytest.raises(InputError, match="text 1 has 3 tokens"):
        TextSamples(language, TEXTS, per="position", first=3)
    with pytest.raises(TargetError, match="a text has none"):
        extract(TextCollector(language), TextSamples(language, TEXTS), tmp_path / "store")
    with pytest.raises(InputError, match="any length"):
        TextCollector(language, baseline=torch.zeros(3, 16)).open(0)
    with pytest.raises(TargetError, match="unknown target"):
        TextCollector(language, target="labl")
    with pytest.raises(UnknownNameError, match="contributions"):
        TextCollector(language, quantities=("contribution",))
    with pytest.raises(InputError, match="texts are several"):
        text_control(language, [], {})
    assert TextCollector(language, target=Logit(3)).identity["target"]["class"] == "Logit"
