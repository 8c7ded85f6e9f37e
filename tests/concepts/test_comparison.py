"""Comparing dictionaries: literal errors of held-out rows, the same coder for all, kill and resume, the paper's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import backlight.concepts.comparison as module
from backlight.concepts.comparison import compare, open_comparison
from backlight.concepts.comparison_tables import Compared, markdown, published, published_beside
from backlight.contributions.decompose import split_rows
from backlight.decompositions import Decomposition
from backlight.decompositions.bisecting_k_means import BisectingKMeans
from backlight.decompositions.codes import OMP, Lasso, lasso, omp
from backlight.decompositions.pca import PCA
from backlight.decompositions.topk_sae import TopKSAE
from backlight.errors import InputError, UnknownNameError

TWO = (BisectingKMeans(n_modes=12), PCA(n_modes=4))


def layers() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {}
    for site, channels in (("layer1.1", 6), ("b", 9)):
        atoms = torch.randn(14, channels, generator=draw)
        codes = torch.rand(200, 14, generator=draw) * (torch.rand(200, 14, generator=draw) < 0.15)
        found[site] = codes @ atoms + 0.5
    return found


def test_numbers_are_those_of_rows_that_were_not_fitted(tmp_path: Path) -> None:
    rows = layers()
    coders = (Lasso(penalty=0.05), OMP(k=3))
    found = compare(rows, TWO, tmp_path, coders=coders, held_out=0.3, seed=4)
    assert [(one.site, one.extractor, one.coder) for one in found.rows[:4]] == [
        ("layer1.1", "BisectingKMeans", "Lasso"),
        ("layer1.1", "BisectingKMeans", "OMP"),
        ("layer1.1", "BisectingKMeans", "own encoder"),
        ("layer1.1", "PCA", "Lasso"),
    ]
    assert len(found.rows) == 12
    flags = torch.from_numpy(split_rows(200, 0.3, 4))
    for site, all_rows in rows.items():
        x = all_rows[flags]
        for plain in (BisectingKMeans(n_modes=12), PCA(n_modes=4)):
            fitted = plain.fit(all_rows[~flags])
            about = x if fitted.offset is None else x - fitted.offset
            codes = {
                "Lasso": lasso(about, fitted.atoms, 0.05, relative=True).values,
                "OMP": omp(about, fitted.atoms, 3),
                "own encoder": fitted.encode(x),
            }
            for coder, z in codes.items():
                one = next(
                    row
                    for row in found.rows
                    if (row.site, row.extractor, row.coder) == (site, type(plain).__name__, coder)
                )
                rest = (x - z @ fitted.atoms - (0 if fitted.offset is None else fitted.offset)).norm(dim=1)
                assert one.relative == pytest.approx(float((rest / x.norm(dim=1)).mean()), rel=1e-4)
                assert one.l0 == pytest.approx(float((z != 0).float().sum(1).mean()), rel=1e-4)
                assert one.ratio == pytest.approx(1 - one.l0 / len(fitted.atoms))
                assert (one.fitted, one.held_out, one.modes) == (140, 60, len(fitted.atoms))
                assert one.share == len(fitted.atoms) / 140
    best = found.best("b", "OMP")
    others = [one.relative for one in found.rows if (one.site, one.coder) == ("b", "OMP")]
    assert best.relative == min(value for value in others if value is not None)


def test_a_killed_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = layers()
    extractors = (TopKSAE(n_modes=10, k=2, epochs=3), *TWO)
    whole = compare(rows, extractors, tmp_path / "whole")

    class Killed(Exception): ...

    def stop(site: str, extractor: str, what: str) -> None:
        if (site, extractor) == ("b", "TopKSAE") and what.startswith("pass 2"):
            raise Killed

    monkeypatch.setattr("backlight.decompositions.checkpoints.SHARE", 1e9)
    with pytest.raises(Killed):
        compare(rows, extractors, tmp_path / "cut", progress=stop)
    assert len(open_comparison(tmp_path / "cut").rows) == 6
    told: list[tuple[str, str, str]] = []
    again = compare(rows, extractors, tmp_path / "cut", progress=lambda *what: told.append(what))
    assert {site for site, _, _ in told} == {"b"}  # the first layer was done
    assert [what for _, name, what in told if name == "TopKSAE"][1].startswith("pass 2 of 3")  # from its checkpoint

    def plain(found: Any) -> list[Any]:
        return [{**vars(one), "seconds": None} for one in found.rows]

    assert plain(again) == plain(whole)
    assert plain(open_comparison(tmp_path / "cut")) == plain(whole)
    told.clear()
    compare(rows, extractors, tmp_path / "cut", progress=lambda *what: told.append(what))
    assert told == []
    assert isinstance(Decomposition.load(tmp_path / "cut" / "b" / "PCA" / "fitted"), PCA)
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        compare(rows, extractors, tmp_path / "cut", seed=1)
    with pytest.raises(InputError, match="another comparison"):
        compare({**rows, "b": rows["b"] + 1}, extractors, tmp_path / "cut")


def test_tables_hold_the_papers_numbers(tmp_path: Path) -> None:
    rows = {"layer1.1": layers()["layer1.1"]}
    found = compare(rows, (BisectingKMeans(n_modes="8x"), BisectingKMeans(n_modes=10)), tmp_path)
    names = [one.extractor for one in found.rows]
    assert names == ["BisectingKMeans"] * 2 + ["BisectingKMeans 2"] * 2
    assert published_beside(found.rows[0]) == (0.3651, 0.9947)
    assert all(published_beside(one) is None for one in found.rows[1:])
    text = (tmp_path / "comparison.md").read_text()
    assert text == markdown(found)
    assert "| 0.3651 | 0.9947 |" in text
    assert "| ReLUSAE | Rel-l2 ↓ | 1.8952 | 1.5028 |" in text
    assert "| SparseDictionaryLearning | l0 ratio ↑ | 0.9952 |" in text
    with (tmp_path / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert float(table[0]["paper_relative"]) == 0.3651
    assert [float(one["relative"]) for one in table] == [one.relative for one in found.rows]
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][0]["modes"] == 48


def test_the_published_table_is_whole() -> None:
    assert len(published()) == 22
    assert published()["ReLUSAE", "4.2"] == (0.4816, 0.9913)
    assert published()["SparseDictionaryLearning", "3.4"] == (0.7851, 0.9982)
    relative = {layer: values[0] for (name, layer), values in published().items() if name == "BisectingKMeans"}
    others = {layer: values[0] for (name, layer), values in published().items() if name == "ReLUSAE"}
    assert [layer for layer in relative if others[layer] < relative[layer]] == ["4.0", "4.2"]
    one = Compared("layer4.2", "ReLUSAE", "own encoder", 2048, 16384, 9, 9, 0.1, 0.1, 1.0, 0.1, 1, None)
    assert published_beside(one) == (0.4816, 0.9913)


def test_a_banks_images_are_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeBank:
        sites = ("b",)
        identity: ClassVar[dict[str, Any]] = {"bank": 1}
        images = ("x",) * 20
        model_name = "small"

        def rows(self, site: str) -> Any:
            return module.TensorRows(layers()[site])

        def image(self, site: str) -> Tensor:
            return torch.arange(200) // 10

    monkeypatch.setattr(module, "Bank", FakeBank)
    bank: Any = FakeBank()
    found = compare(bank, TWO, tmp_path, held_out=0.25)
    assert (found.rows[0].fitted, found.rows[0].held_out) == (150, 50)
    flags = split_rows(200, 0.25, 0, np.arange(200) // 10)
    assert set(flags.reshape(20, 10).sum(1).tolist()) == {0, 10}
    x = layers()["b"]
    expected = BisectingKMeans(n_modes=12).fit(x[torch.from_numpy(~flags)]).modes
    assert torch.equal(Decomposition.load(tmp_path / "b" / "BisectingKMeans" / "fitted").modes, expected)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"held_out": 0.0}, "between 0 and 1"),
        ({"extractors": ()}, "at least one extractor"),
        ({"coders": (OMP(k=1), OMP(k=2))}, "of each kind"),
        ({"sites": ["a"]}, "layer1.1, b"),
        ({"extractors": ("ClassMeans",)}, "labels"),
    ],
)
def test_what_cannot_be_compared_is_said(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        compare(layers(), **{"extractors": TWO, "out": tmp_path, **wrong})
    with pytest.raises(UnknownNameError, match="BisectingKMeans"):
        compare(layers(), ["BisectingKMean"], tmp_path)
