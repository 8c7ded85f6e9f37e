"""Concepts: a dictionary of raw vectors whose images are held out whole, and codes that a stop does no harm to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")
from concept_banks import Positive, contents, fitted, pixels, small

from backlight.concepts import concepts_codes
from backlight.concepts.bank import Bank, make_bank
from backlight.concepts.concepts import Concepts, codings, encode_concepts, fit_concepts
from backlight.concepts.concepts_codes import LargestOfImage
from backlight.contributions.decompose import split_rows
from backlight.decompositions.k_means import KMeans
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.samples import TensorSamples
from backlight.store import TensorRows


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return small(tmp_path_factory.mktemp("bank"), per_image=3)


def test_a_dictionary_is_fitted_to_raw_vectors_of_whole_images_and_codes_all(bank: Bank, tmp_path: Path) -> None:
    concepts = fit_concepts(bank, "act2", KMeans(n_modes=3, epochs=7, seed=2), tmp_path, held_out=0.34, seed=2)
    image, held_out = bank.image("act2").numpy(), concepts.held_out
    left_out = set(image[held_out])
    assert len(left_out) == 3
    assert not left_out & set(image[~held_out])
    rows = bank.rows("act2").read(0, len(image))
    alone = KMeans(n_modes=3, epochs=7, seed=2).fit(rows[torch.from_numpy(~held_out)])
    torch.testing.assert_close(concepts.dictionary.modes, alone.modes)
    assert torch.equal(concepts.codes.read(0, 99), alone.encode(rows))
    assert concepts.decomposed.scale == 1.0
    opened = Concepts.open(tmp_path)
    assert (opened.site, opened.model_name, len(opened)) == ("act2", "Sequential", 3)
    assert opened.bank.images == bank.images
    assert torch.equal(opened.statistics["alive"], torch.ones(3, dtype=torch.bool))
    assert torch.equal(opened.rows.read(0, 99), rows)
    frequency = alone.encode(rows[torch.from_numpy(held_out)]).mean(0)
    torch.testing.assert_close(opened.statistics["frequency"], frequency)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=30), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_groups_are_held_out_whole_and_as_many_as_asked(groups: list[int], seed: int) -> None:
    known = len(set(groups))
    if not 0 < round(0.3 * known) < known:
        return
    flags = split_rows(len(groups), 0.3, seed, np.array(groups))
    sides = {group: {bool(flag) for flag, own in zip(flags, groups, strict=True) if own == group} for group in groups}
    assert all(len(one) == 1 for one in sides.values())
    assert sum(True in one for one in sides.values()) == round(0.3 * known)


def test_codes_of_another_coder_go_on_after_a_stop(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts_codes, "PIECE", 5)
    fitted(bank, tmp_path / "whole")
    fitted(bank, tmp_path / "stopped", code=False)
    concepts, asked = Concepts.open(tmp_path / "stopped", bank=bank), []

    def stop(done: int, total: int) -> None:
        asked.append(done)
        if done == 15 and len(asked) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_concepts(concepts, None, Positive(), progress=stop)
    assert codings(tmp_path / "stopped") == ["encoder"]
    coded: Any = encode_concepts(concepts, None, Positive(), progress=stop)
    assert asked[:5] == [0, 5, 10, 15, 15]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    rows = bank.rows("act2").read(0, 99)
    torch.testing.assert_close(coded.codes.read(0, 99), (rows @ coded.dictionary.modes.T).relu())
    assert coded.coder.startswith("Positive-")
    assert Concepts.open(tmp_path / "stopped", "positive", bank=bank).coder == coded.coder
    held = rows[torch.from_numpy(coded.held_out)]
    error = (held - coded.dictionary.decode((held @ coded.dictionary.modes.T).relu())).square().sum()
    expected = 1 - error / (held - held.mean(0)).square().sum()
    assert coded.report["held_out"]["r2"] == pytest.approx(float(expected), rel=1e-4)
    before = contents(tmp_path / "stopped")
    encode_concepts(concepts, None, Positive(), progress=lambda done, total: pytest.fail("computed again"))
    assert contents(tmp_path / "stopped") == before


def test_other_rows_are_coded_elsewhere(bank: Bank, tmp_path: Path) -> None:
    fitted(bank, tmp_path / "c", code=False)
    concepts, rows = Concepts.open(tmp_path / "c", bank=bank), torch.rand(4, 5)
    found: Any = encode_concepts(concepts, rows, Positive(2.0), tmp_path / "codes")
    torch.testing.assert_close(found.read(0, 4), 2 * (rows @ concepts.dictionary.modes.T).relu())
    own: Any = encode_concepts(concepts, bank, Positive(), tmp_path / "bank")
    assert own.shape == (bank.rows("act2").shape[0], 3)
    with pytest.raises(InputError, match="other rows, or by another coder"):
        encode_concepts(concepts, rows, Positive(3.0), tmp_path / "codes")
    with pytest.raises(InputError, match="other rows, or by another coder"):
        encode_concepts(concepts, rows + 1, Positive(2.0), tmp_path / "codes")
    fit_concepts(bank, "act2", "KMeans", tmp_path / "other", modes=3, epochs=5, seed=5)
    with pytest.raises(InputError, match="other rows, or by another"):
        encode_concepts(Concepts.open(tmp_path / "other", bank=bank), rows, Positive(2.0), tmp_path / "codes")
    with pytest.raises(InputError, match="give out= for other rows"):
        encode_concepts(concepts, rows, Positive())
    with pytest.raises(InputError, match="5 channels, the rows have 4"):
        encode_concepts(concepts, torch.rand(2, 4), Positive(), tmp_path / "d")
    with pytest.raises(InputError, match="given twice"):
        encode_concepts(concepts, None, Positive(), scale=2.0)


@given(st.lists(st.integers(0, 8), max_size=20), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_largest_of_an_image_is_what_a_loop_finds(images: list[int], piece: int) -> None:
    image = np.sort(np.array(images, dtype=np.int64))
    if not len(image):
        return
    rows = torch.randn(len(image), 3, generator=torch.Generator().manual_seed(len(images)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concepts_codes, "READ", piece)
        found = LargestOfImage(TensorRows(rows), image, 10)
        values = torch.cat([found.read(start, start + 4) for start in range(0, 10, 4)])
    assert values.shape == found.shape == (10, 3)
    for number in range(10):
        own = rows[torch.from_numpy(image == number)]
        assert torch.equal(values[number], own.max(0).values if len(own) else torch.zeros(3))
        low, high = found.span(number)
        assert list(range(low, high)) == np.flatnonzero(image == number).tolist()


def test_what_does_not_fit_is_said_of_concepts(bank: Bank, tmp_path: Path) -> None:
    fitted(bank, tmp_path / "c", code=False)
    with pytest.raises(InputError, match=r"settings\.n_modes: 3 there, 2 now"):
        fit_concepts(bank, "act2", "KMeans", tmp_path / "c", modes=2, epochs=5)
    with pytest.raises(InputError, match="site: act2 there, act1 now"):
        fit_concepts(bank, "act1", "KMeans", tmp_path / "c", modes=3, epochs=5)
    with pytest.raises(UnknownNameError, match="encoder"):
        Concepts.open(tmp_path / "c", "Lasso", bank=bank)
    with pytest.raises(InputError, match="no decomposition"):
        Concepts.open(tmp_path / "nothing")
    other = small(tmp_path / "b", TensorSamples(torch.randn(3, 3, 8, 8)))
    with pytest.raises(InputError, match="not the samples that were decomposed"):
        _ = Concepts.open(tmp_path / "c", bank=other).bank
    dark = make_bank(
        pixels(2, -torch.ones(3, 2)), TensorSamples(torch.ones(2, 2, 2, 2)), "features", tmp_path / "d",
        attributor="gradient",
    )  # fmt: skip
    with pytest.raises(InputError, match="no image has a positive relevance"):
        fit_concepts(dark, "features", "KMeans", tmp_path / "e", modes=1)
