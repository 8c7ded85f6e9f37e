"""Banks: vectors are drawn as their relevance says, and kept with where they were, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("zarr")
pytest.importorskip("timm")
from concept_banks import CLASSES, cnn, contents, pictures, pixels, small, vit

from backlight.concepts.bank import Bank, make_bank
from backlight.concepts.bank_draws import draw
from backlight.engine.attribution import attribute
from backlight.engine.sites import captured
from backlight.errors import InputError, SiteError, TargetError, UnknownNameError
from backlight.evaluation.samples import TensorSamples
from backlight.methods.srd import SRD
from backlight.rules.attn_lrp import attn_lrp
from backlight.store import Store


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = shares * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def same_picture(count: int) -> tuple[TensorSamples, torch.Tensor, torch.Tensor]:
    """One picture under many names; weights of a linear network; the relevance of its four positions."""
    one = torch.tensor([[3.0, 1.0], [-2.0, 0.5]])[None].repeat(2, 1, 1)
    weights = torch.tensor([[1.0, 1.0], [0.1, 0.0], [0.0, 0.1]])
    names = [f"n{number}" for number in range(count)]
    return TensorSamples(one[None].expand(count, -1, -1, -1), names=names), weights, 2 * one[0].flatten() / 4


def test_draws_have_the_frequencies_of_a_linear_network_and_uniform_ones_have_not(tmp_path: Path) -> None:
    samples, weights, relevance = same_picture(150)
    model = pixels(2, weights)
    settings: dict[str, Any] = {"per_image": 8, "replacement": True, "batch_size": 50, "block": 150}
    bank = make_bank(model, samples, "features", tmp_path / "r", attributor="gradient", **settings)
    position = bank.position("features")
    flat = (2 * position[:, 0] + position[:, 1]).numpy()
    torch.testing.assert_close(bank.relevance("features"), relevance.double()[flat])
    counts, positive = np.bincount(flat, minlength=4), relevance.clamp(min=0).numpy()
    assert counts[2] == 0  # its relevance is negative
    shares = (positive / positive.sum())[[0, 1, 3]]
    assert chi_square(counts[[0, 1, 3]], shares) < 16  # two degrees of freedom: p = 3e-4
    control = make_bank(model, samples, "features", tmp_path / "u", sampling="uniform", **settings)
    position = control.position("features")
    uniform = np.bincount((2 * position[:, 0] + position[:, 1]).numpy(), minlength=4)
    assert chi_square(uniform, np.full(4, 0.25)) < 19
    assert chi_square(counts + 1e-9, np.full(4, 0.25)) > 300
    assert bank.settings["attributor"] == "gradient"
    assert control.settings["attributor"] is None
    assert control.relevance("features").isnan().all()


def test_draws_without_replacement_come_one_after_the_other_from_those_that_are_left() -> None:
    weights = np.array([4.0, 0.0, 2.0, 1.0], dtype=np.float32)
    pairs = np.zeros((4, 4))
    for number in range(7000):
        first, second, third = draw(weights, 9, 3, str(number), replacement=False)
        assert {first, second, third} == {0, 2, 3}
        pairs[first, second] += 1
    shares = np.array(
        [[4 / 7 * w / (7 - 4) for w in (2, 1)], [2 / 7 * w / 5 for w in (4, 1)], [w / 42 for w in (4, 2)]]
    )
    found = np.array([pairs[0, [2, 3]], pairs[2, [0, 3]], pairs[3, [0, 2]]])
    assert chi_square(found.ravel(), shares.ravel()) < 23  # five degrees of freedom
    assert not len(draw(np.zeros(4, np.float32), 2, 0, "a", replacement=True))


def test_a_draw_is_the_inverse_of_the_cumulative_weights() -> None:
    from backlight.evaluation.identity import sample_seed

    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0], dtype=np.float32)
    uniform = np.random.default_rng(sample_seed(5, "x")).random(50)
    assert draw(weights, 50, 5, "x", replacement=True).tolist() == [1 if u < 0.25 else 3 for u in uniform]


def test_rows_are_the_vectors_at_their_positions_with_the_relevance_of_srd(tmp_path: Path) -> None:
    bank, model = small(tmp_path), cnn()
    x = torch.stack([pictures().load(name).inputs for name in bank.images])
    operator = SRD(model).prepare(x)
    seed = operator.seed(None)
    with captured(model, ("act1", "act2")) as store:
        predicted = model(x).argmax(1)
    assert bank.images == [f"p{n}" for n in range(9)]
    assert bank.predictions.tolist() == predicted.tolist()
    assert bank.labels.tolist() == [n % CLASSES for n in range(9)]
    assert (bank.grid("act1"), bank.grid("act2")) == ((8, 8), (4, 4))
    for site in ("act1", "act2"):
        image, (row, column) = bank.image(site), bank.position(site).T
        rows = bank.rows(site)
        assert rows.shape == (len(image), store[site].shape[1])
        torch.testing.assert_close(rows.read(0, len(image)), store[site][image, :, row, column].detach())
        torch.testing.assert_close(rows.read(3, 5), store[site][image[3:5], :, row[3:5], column[3:5]].detach())
        expected = operator.relevance(seed, to=site)
        torch.testing.assert_close(bank.relevance(site).float(), expected[image, row, column].detach())
        assert (bank.relevance(site) > 0).all()
        assert (image.diff() >= 0).all()
        assert len({(int(i), int(r), int(c)) for i, r, c in zip(image, row, column, strict=True)}) == len(image)


def test_an_image_without_positive_relevance_gives_no_row_and_few_positions_give_few(tmp_path: Path) -> None:
    weights = torch.tensor([[1.0, 1.0], [-9.0, -9.0], [-9.0, -9.0]])
    inputs = torch.ones(4, 2, 2, 2)
    inputs[1] = -1e-3  # every logit comes from negative products
    inputs[2, :, 1] = -0.1
    samples = TensorSamples(inputs, [0, 0, 0, 0])
    bank = make_bank(
        pixels(2, weights), samples, "features", tmp_path, target="label", attributor="gradient", per_image=3
    )
    assert bank.image("features").tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    assert bank.rows("features").shape == (8, 2)
    assert bank.relevance("features").isfinite().all()
    assert torch.equal(bank.rows("features").read(0, 8), torch.ones(8, 2))


@pytest.mark.parametrize("registers", [0, 2])
def test_tokens_have_the_relevance_of_attn_lrp_and_registers_are_left_out(tmp_path: Path, registers: int) -> None:
    model, samples = vit(registers), pictures(4, 16)
    x = torch.stack([samples.load(name).inputs for name in samples.names])
    bank = make_bank(model, samples, "blocks.0", tmp_path / "keep", per_image=3, class_token="keep")
    found = attribute(model, x, None, rules=attn_lrp(), sites="blocks.0", readout="value").value.sum(2)
    with torch.no_grad(), captured(model, ("blocks.0",)) as store:
        model(x)
    image, position = bank.image("blocks.0"), bank.position("blocks.0")
    token = torch.where(position[:, 0] < 0, 0, 1 + registers + 4 * position[:, 0] + position[:, 1])
    assert (token == 0).sum() == 4
    assert ((token == 0) | (token > registers)).all()
    torch.testing.assert_close(bank.relevance("blocks.0").float(), found[image, token], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bank.rows("blocks.0").read(0, 99), store["blocks.0"][image, token])
    assert bank.settings["attributor"] == "attnlrp"
    every = make_bank(model, samples, "blocks.0", tmp_path / "all", sampling="all", class_token="draw")
    assert every.rows("blocks.0").shape == (4 * 17, 8)
    assert every.position("blocks.0")[:17].tolist() == [[r, c] for r in range(4) for c in range(4)] + [[-1, -1]]
    without = make_bank(model, samples, "blocks.0", tmp_path / "drop", sampling="all")
    assert without.rows("blocks.0").shape == (4 * 16, 8)


def test_draws_depend_on_no_other_image_site_or_batch(tmp_path: Path) -> None:
    whole, samples = small(tmp_path / "whole"), pictures()
    inputs = torch.stack([samples.load(name).inputs for name in samples.names])
    turned = TensorSamples(inputs.flip(0)[:5], names=samples.names[::-1][:5])
    other = make_bank(cnn(), turned, "act2", tmp_path / "turned", per_image=2, batch_size=5)
    for number, name in enumerate(other.images):
        mine = whole.image("act2") == whole.images.index(name)
        here = other.image("act2") == number
        assert torch.equal(whole.position("act2")[mine], other.position("act2")[here])
    again = small(tmp_path / "seed", seed=1)
    assert not torch.equal(again.position("act2"), whole.position("act2"))


def test_two_workers_give_the_same_bytes_and_nothing_is_left_on_the_network(tmp_path: Path) -> None:
    one = small(tmp_path / "one")
    model, state = cnn(), torch.get_rng_state()
    settings: dict[str, Any] = {"per_image": 2, "batch_size": 2, "block": 4, "workers": 2}
    make_bank(model, pictures(), ("act1", "act2"), tmp_path / "two", **settings)
    assert contents(tmp_path / "two") == contents(one.folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_banks_and_concepts_that_are_killed_end_with_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("concept_bank_killing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    for name, events in kills.items():
        assert len(events) == 3
        for event in events:
            assert contents(tmp_path / f"{name}-{event}") == contents(tmp_path / f"{name}-whole"), (name, event)


def test_more_images_later_are_added(tmp_path: Path) -> None:
    samples = pictures()
    inputs = torch.stack([samples.load(name).inputs for name in samples.names])
    few = TensorSamples(inputs[:5], [n % CLASSES for n in range(5)], names=samples.names[:5])
    settings: dict[str, Any] = {"per_image": 2, "batch_size": 2, "block": 4}
    make_bank(cnn(), few, ("act1", "act2"), tmp_path / "grown", **settings)
    grown = make_bank(cnn(), samples, ("act1", "act2"), tmp_path / "grown", **settings)
    assert contents(grown.folder) == contents(small(tmp_path / "whole").folder)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model, samples = cnn(), pictures()
    with pytest.raises(UnknownNameError, match="uniform"):
        make_bank(model, samples, "act1", tmp_path / "a", sampling="unifrom")
    with pytest.raises(UnknownNameError, match="srd"):
        make_bank(model, samples, "act1", tmp_path / "a", attributor="sdr")
    with pytest.raises(InputError, match="per_image must be at least 1, got 0"):
        make_bank(model, samples, "act1", tmp_path / "a", per_image=0)
    with pytest.raises(InputError, match="needs an attributor"):
        make_bank(model, samples, "act1", tmp_path / "a", attributor=None)
    with pytest.raises(SiteError, match=r"no relevance of 'second'.*act2.*attributor='gradient'"):
        make_bank(model, samples, "second", tmp_path / "b")
    with pytest.raises(InputError, match="'act1' has no class token"):
        make_bank(model, samples, "act1", tmp_path / "c", class_token="draw")
    unlabelled = TensorSamples(torch.randn(2, 3, 8, 8), names=["p0", "p1"])
    with pytest.raises(TargetError, match="'p0' has none"):
        make_bank(model, unlabelled, "act1", tmp_path / "d", target="label")
    bank = small(tmp_path / "e")
    with pytest.raises(InputError, match=r"bank\.per_image: 2 there, 3 now"):
        small(tmp_path / "e", per_image=3)
    with pytest.raises(UnknownNameError, match="act2"):
        bank.rows("atc2")
    Store.of(tmp_path / "f", {"a": torch.randn(3, 2)})
    with pytest.raises(InputError, match="no bank of feature vectors"):
        Bank.open(tmp_path / "f")


def test_networks_and_images_are_found_again_or_asked_for(tmp_path: Path) -> None:
    small(tmp_path)
    with pytest.raises(InputError, match="a Sequential has no name to load it by"):
        _ = Bank.open(tmp_path).loaded
    other = cnn()
    with torch.no_grad():
        other.head.weight.zero_()
    with pytest.raises(InputError, match="other weights"):
        _ = Bank.open(tmp_path, model=other).loaded
    with pytest.raises(InputError, match="where the images"):
        _ = Bank.open(tmp_path, model=cnn()).samples
    found = Bank.open(tmp_path, model=cnn(), samples=pictures())
    assert torch.equal(found.inputs(4)[0], pictures().load("p4").inputs)


def test_features_have_the_norm_of_the_output_as_target(tmp_path: Path) -> None:
    model, samples = vit(), pictures(3, 16)
    model.head = torch.nn.Identity().eval()
    x = torch.stack([samples.load(name).inputs for name in samples.names])
    bank = make_bank(model, samples, "blocks.0", tmp_path, sampling="all", target="norm", attributor="attnlrp")
    found = attribute(model, x, lambda out: out.norm(dim=1), rules=attn_lrp(), sites="blocks.0", readout="value")
    expected = found.value.sum(2)[:, 1:].flatten()
    torch.testing.assert_close(bank.relevance("blocks.0").float(), expected, rtol=1e-4, atol=1e-6)
