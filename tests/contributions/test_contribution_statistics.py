"""Statistics of channels: closed forms, literal loops, and the same numbers however the rows are read."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import comb, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backlight.contributions import layer_statistics, store_statistics
from backlight.contributions.heads import HeadTally
from backlight.contributions.statistics import (
    ClassMeans,
    Median,
    hoyer,
    interval,
    principal_components,
    sign_correlation,
)
from backlight.contributions.statistics_tables import curve, groups, markdown, published
from backlight.errors import InputError, UnknownNameError

pytest.importorskip("zarr")
from backlight.store import Store

RESNET_50 = [(f"layer{s}.{b}", 128 * 2**s) for s, count in enumerate((3, 4, 6, 3), 1) for b in range(count)]


def test_hoyer_is_one_for_one_entry_and_zero_for_equal_ones() -> None:
    rows = torch.tensor([[0.0, -3.0, 0.0, 0.0], [2.0, -2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    found = hoyer(rows, offset=0.0)
    torch.testing.assert_close(found[:2], torch.tensor([1.0, 0.0]).double())
    assert found[2].isnan()
    assert found[3].item() == pytest.approx((2 - 2 / sqrt(2)) / (2 - 1))
    assert hoyer(torch.ones(1, 1)).isnan().all()
    with pytest.raises(InputError):
        hoyer(rows, offset=-1.0)


def test_hoyer_is_the_published_formula() -> None:
    rows = torch.randn(6, 10)
    for row, found in zip(rows.double().tolist(), hoyer(rows).tolist(), strict=True):
        one, two = sum(abs(v) for v in row), sqrt(sum(v * v for v in row))
        assert found == pytest.approx((sqrt(10) - one / (two + 1e-6)) / (sqrt(10) - 1), abs=1e-14)
    torch.testing.assert_close(hoyer(1e-9 * rows, 0.0), hoyer(rows, 0.0), rtol=1e-6, atol=0)  # whatever the scale
    assert (hoyer(1e-6 * rows) > hoyer(rows) + 0.01).all()  # the offset lifts small rows


def test_sign_correlation_is_one_for_a_mirror_and_undefined_for_a_constant() -> None:
    p = torch.rand(4, 50)
    torch.testing.assert_close(sign_correlation(p, -3 * p), torch.ones(4).double())
    torch.testing.assert_close(sign_correlation(p, p - 2), -torch.ones(4).double())
    assert sign_correlation(p, torch.zeros(4, 50)).isnan().all()
    n = -torch.rand(4, 50)
    expected = [np.corrcoef(a, -b)[0, 1] for a, b in zip(p.numpy(), n.numpy(), strict=True)]
    np.testing.assert_allclose(sign_correlation(p, n), expected, rtol=1e-5)


def test_sign_correlation_finds_what_was_planted() -> None:
    shared, own = torch.rand(2, 20_000), torch.rand(2, 20_000)
    found = sign_correlation(0.6 * shared + 0.8 * own, -shared)
    np.testing.assert_allclose(found, [0.6, 0.6], atol=0.02)


@pytest.mark.parametrize(("rank", "columns"), [(1, 30), (5, 30), (7, 7), (12, 40)])
def test_components_of_a_planted_rank(rank: int, columns: int) -> None:
    """Equal variances on `rank` orthogonal directions: 95 % of it takes that share of them, rounded up."""
    basis = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))[0][:, :rank]
    scores = torch.linalg.qr(torch.randn(60, rank, dtype=torch.float64) - 0.0)[0]
    scores = torch.linalg.qr(scores - scores.mean(0))[0]
    means = 5.0 + scores @ basis.T
    assert principal_components(means) == int(np.ceil(0.95 * rank - 1e-9))
    assert principal_components(means, share=1.0) == rank


def test_components_leave_the_mean_out_and_count_none_where_all_is_equal() -> None:
    assert principal_components(torch.full((5, 4), 7.0)) == 0
    line = 100.0 + torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0]))
    assert principal_components(line) == 1
    with pytest.raises(InputError):
        principal_components(line, share=0.0)


def test_intervals_of_medians_are_the_tightest_order_statistics_that_hold() -> None:
    """Literal: the exact chance that fewer than k of n values lie below the median, and for k + 1."""
    for count in (6, 7, 20, 21, 72, 101, 1000):
        for level in (0.5, 0.9, 0.95):
            found = interval(np.arange(1.0, count + 1), level)
            assert found is not None
            k, most = map(int, found)
            assert most == count + 1 - k
            outside = [2 * sum(comb(count, below) for below in range(k + more)) / 2**count for more in (0, 1)]
            assert outside[0] <= 1 - level < outside[1]


def test_few_values_have_no_interval() -> None:
    values = np.arange(6.0)
    assert interval(values) == (0.0, 5.0)  # outside: 2 of 64
    assert interval(values[:5]) is None  # 2 of 32 are more than 5 %
    assert interval(values[:5], 0.9) == (0.0, 4.0)
    found = Median.of(values[:5])
    assert (found.n, found.median, found.low, found.high) == (5, 2.0, None, None)
    with pytest.raises(InputError, match="level"):
        interval(values, 1.0)


@pytest.mark.parametrize("count", [7, 21, 72])
def test_intervals_hold_the_median_at_least_as_often_as_they_say(count: int) -> None:
    """At 21, percentiles of the bootstrap held it in 92 % of the draws."""
    draws = np.sort(np.random.default_rng(0).standard_normal((4000, count)), 1)
    found = [interval(one) for one in draws]
    held = [one is not None and one[0] <= 0 <= one[1] for one in found]
    assert np.mean(held) >= 0.945  # of 4000 draws: a standard error of 0.0034


def test_medians_leave_out_what_is_undefined() -> None:
    found = Median.of(np.array([np.nan, 3.0, 1.0, 2.0, np.nan]))
    assert (found.n, found.undefined, found.median) == (3, 2, 2.0)
    none = Median.of(np.array([np.nan]))
    assert (none.n, none.median, none.low) == (0, None, None)


def test_class_means_are_those_of_the_whole_matrix_however_it_is_read() -> None:
    rows, labels = torch.randn(23, 4), np.array([3, 7, -1] * 7 + [9, 9])
    whole, parts = ClassMeans(labels, 4, 0), ClassMeans(labels, 4, 0)
    whole.add(0, rows)
    for start in range(0, 23, 5):
        parts.add(start, rows[start : start + 5])
    for way in ClassMeans.WAYS:
        torch.testing.assert_close(whole.means(way), parts.means(way), rtol=1e-12, atol=1e-12)
    expected = torch.stack([rows[torch.from_numpy(labels == k)].double().mean(0) for k in (3, 7, 9)])
    torch.testing.assert_close(whole.means("all"), expected)
    sizes = torch.tensor([3.0, 3.0, 1.0]).double()[:, None]  # of each half: of 7, 7 and 2 images
    assert whole.images == 16
    both = (whole.means("first") + whole.means("second")) * sizes
    left = expected * torch.tensor([7.0, 7.0, 2.0]).double()[:, None] - both
    assert left[2].abs().max() < 1e-12  # all images of the third class are in a half
    spare = [rows[torch.from_numpy(labels == k)].double() for k in (3, 7)]
    assert all((found - rest).abs().amax(1).min() < 1e-6 for found, rest in zip(left[:2], spare, strict=True))
    permuted = whole.means("permuted") * torch.tensor([7.0, 7.0, 2.0]).double()[:, None]
    torch.testing.assert_close(permuted.sum(0), rows[torch.from_numpy(labels >= 0)].double().sum(0))
    assert not torch.allclose(permuted / permuted.sum(), expected / expected.sum())


def test_heads_that_specialise_are_sparser_than_random_ones() -> None:
    rows = torch.zeros(30, 48)
    for image in range(30):
        rows[image, 4 * (image % 12) : 4 * (image % 12) + 4] = 1.0
    tally = HeadTally(48, 12, seed=0)
    tally.add(rows[:7])
    tally.add(rows[7:])
    found = tally.found()
    assert found.learned.median == pytest.approx(1, abs=1e-5)
    assert found.random.median is not None
    assert found.random.median < 0.8
    assert found.difference.low is not None
    assert found.difference.low > 0.2
    order = torch.from_numpy(np.random.default_rng(0).permutation(48))  # the first draw of the seed
    literal = hoyer(torch.stack([rows[:, order[4 * h : 4 * h + 4]].sum(1) for h in range(12)], 1))
    torch.testing.assert_close(tally._random[0][:, 0], literal[:7])


def test_random_channels_show_no_specialisation() -> None:
    tally = HeadTally(96, 12, seed=3)
    tally.add(torch.randn(400, 96))
    found = tally.found()
    assert found.difference.median == pytest.approx(0, abs=0.02)
    assert 0 < found.deviation < 0.02
    with pytest.raises(InputError, match="5 heads of 96 channels"):
        HeadTally(96, 5, seed=0)


def made(folder: Path, sites: dict[str, tuple[Tensor, Tensor]], labels: np.ndarray | None = None) -> Store:
    columns = {} if labels is None else {"label": torch.from_numpy(labels)}
    quantities = {
        site: {"contributions": (value.clamp(min=0), value.clamp(max=0)), "activations": (active, 0 * active)}
        for site, (value, active) in sites.items()
    }
    return Store.of(folder, quantities, columns=columns, block=16, identity={"model": {"name": "toy"}})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    draw = torch.Generator().manual_seed(0)
    labels = np.arange(60) % 6
    sites = {}
    for name, width in (("blocks.0.attn.proj:input", 12), ("blocks.1.attn.proj:input", 12)):
        value = torch.randn(60, width, generator=draw) ** 3
        value[5] = 0
        sites[name] = value, torch.rand(60, width, generator=draw)
    return made(tmp_path_factory.mktemp("store") / "s", sites, labels)


def test_a_store_s_statistics_are_those_of_its_whole_matrices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_statistics, "PIECE", 7)
    found = store_statistics(store, heads=4, seed=2)
    monkeypatch.setattr(layer_statistics, "PIECE", 1024)
    whole = store_statistics(store, heads=4, seed=2)
    assert found == whole
    assert (found.samples, found.classes, found.images, found.fewest) == (60, 6, 60, 10)
    for site, layer in zip(store.sites, found.layers, strict=True):
        rows = store.rows(site, "contributions", "sum").read(0, 60)
        one = layer.quantities["contributions"]
        values = hoyer(rows).numpy()
        np.testing.assert_allclose(one.values["hoyer"], values, rtol=1e-12)
        assert (one.hoyer.n, one.hoyer.undefined) == (59, 1)  # the row of zeros
        assert one.hoyer.median == pytest.approx(np.nanmedian(values))
        means = torch.stack([rows[k::6].double().mean(0) for k in range(6)])
        assert one.dimensions is not None
        assert one.dimensions.components == principal_components(means)
        assert one.dimensions.limit == 5
        active = layer.quantities["activations"]
        assert (active.sign_correlation.n, active.sign_correlation.median) == (0, None)
        difference = values - hoyer(store.rows(site, "activations").read(0, 60)).numpy()
        assert layer.difference is not None
        assert layer.difference.median == pytest.approx(np.nanmedian(difference))
        assert layer.difference.low is not None
        assert layer.difference.low > 0  # cubes of normal numbers are sparser than uniform ones


def test_what_cancels_within_channels_is_sparse_net_and_not_gross(tmp_path: Path) -> None:
    """All channels say 1 for and against, one of them 1 more for: net sparsity 1, gross nearly that of equal ones."""
    p, n = torch.ones(20, 16), -torch.ones(20, 16)
    p[torch.arange(20), torch.arange(20) % 16] += 1
    active = torch.ones(20, 16), torch.zeros(20, 16)
    store = Store.of(tmp_path / "s", {"a": {"contributions": (p, n), "activations": active}})
    (layer,) = store_statistics(store, offset=0.0).layers
    one = layer.quantities["contributions"]
    gross = (4 - 33 / sqrt(15 * 4 + 9)) / 3
    assert one.hoyer.median == pytest.approx(1)
    assert one.gross_hoyer.median == pytest.approx(gross)
    assert layer.difference is not None
    assert layer.gross_difference is not None
    assert layer.difference.median == pytest.approx(1)
    assert layer.gross_difference.median == pytest.approx(gross)
    assert layer.quantities["activations"].hoyer.median == pytest.approx(0)


def test_dimensions_come_with_their_noise(tmp_path: Path) -> None:
    """Six classes on a plane: two components of means of many images, more of few, and more of permuted ones."""
    draw = torch.Generator().manual_seed(1)
    labels = np.arange(600) % 6
    centres = torch.randn(6, 2, generator=draw) @ torch.randn(2, 20, generator=draw)
    value = centres[torch.from_numpy(labels)] + 0.8 * torch.randn(600, 20, generator=draw)
    few = made(tmp_path / "few", {"a": (value[:12], value[:12])}, labels[:12])
    many = made(tmp_path / "many", {"a": (value, value)}, labels)
    dimensions = [store_statistics(s).layers[0].quantities["contributions"].dimensions for s in (few, many)]
    assert dimensions[0] is not None
    assert dimensions[1] is not None
    assert dimensions[1].components == 2
    assert dimensions[1].halves == (2, 2)
    assert dimensions[1].permuted == 5
    assert dimensions[0].components > 2
    assert dimensions[0].halves is not None
    alone = made(tmp_path / "alone", {"a": (value[:13], value[:13])}, np.append(labels[:12], 6))
    found = store_statistics(alone).layers[0].quantities["contributions"].dimensions
    assert found is not None
    assert found.halves is None  # the seventh class has one image: halves would be of fewer classes


def test_heads_are_of_attention_alone_unless_sites_are_named(tmp_path: Path) -> None:
    value = torch.randn(9, 8)
    store = made(tmp_path / "s", {"blocks.0": (value, value), "blocks.0.attn.proj:input": (value, value)})
    tokens, attention = store_statistics(store, heads=4).layers
    assert tokens.quantities["contributions"].heads is None
    assert attention.quantities["contributions"].heads is not None
    (named,) = store_statistics(store, ["blocks.0"], heads=4).layers
    assert named.quantities["contributions"].heads is not None


def test_without_classes_there_are_no_dimensions(tmp_path: Path) -> None:
    value = torch.randn(9, 6)
    found = store_statistics(made(tmp_path / "s", {"a": (value, value)}))
    assert found.classes == 0
    assert found.layers[0].quantities["contributions"].dimensions is None
    json.dumps(found.record(), allow_nan=False)


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(UnknownNameError, match=r"blocks\.1\.attn\.proj:input"):
        store_statistics(store, ["blocks.1.attn.proj"])
    with pytest.raises(UnknownNameError, match="prediction"):
        store_statistics(store, classes="predictions")
    with pytest.raises(InputError, match="gradients"):
        store_statistics(store, quantities=["gradients"])
    with pytest.raises(InputError, match="5 heads"):
        store_statistics(store, heads=5)
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        store_statistics(store, seed=-1)


def test_published_numbers_stand_beside_sites_of_their_number_and_width(tmp_path: Path) -> None:
    assert {len(values) for key, values in published().items() if key[0] == "ResNet-50"} == {16}
    assert published()["ResNet-50", "blocks", "contributions", "hoyer"][-1] == 0.629
    sites = {name: (torch.randn(2, width), torch.rand(2, width)) for name, width in RESNET_50}
    found = store_statistics(made(tmp_path / "resnet", sites))
    known = curve(found.layers, "contributions", "sign_correlation")
    assert known == ("ResNet-50, blocks", published()["ResNet-50", "blocks", "contributions", "sign_correlation"])
    assert curve(found.layers[1:], "contributions", "hoyer") is None
    assert "(0.629)" in markdown(found)
    middle = found.layers[0].quantities["contributions"].hoyer.median
    assert f"| {middle:.3f} (" in markdown(found)  # of two images: no interval, and the median all the same
    layers = [replace(found.layers[0], site=f"blocks.{i}{end}") for end in ("", ".attn.proj:input") for i in range(12)]
    for layer in layers:
        narrow = {name: replace(one, channels=768) for name, one in layer.quantities.items()}
        layers[layers.index(layer)] = replace(layer, quantities=narrow)
    names = [curve(group, "activations", "hoyer") for group in groups(layers)]
    assert [name and name[0] for name in names] == ["ViT-B, tokens", "ViT-B, attention"]


def test_tables_and_figure_hold_the_numbers(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = store_statistics(store, heads=4)
    paths = {path.suffix: path for path in found.write(tmp_path / "out")}
    assert set(paths) == {".csv", ".md", ".json", ".npz", ".png"}
    with paths[".csv"].open() as file:
        rows = [row for row in csv.DictReader(file) if row["statistic"] == "hoyer"]
    assert len(rows) == 6  # two sites: two quantities and their difference
    one = found.layers[0].quantities["contributions"].hoyer
    assert float(rows[0]["value"]) == one.median
    assert int(rows[0]["undefined"]) == 1
    arrays = np.load(paths[".npz"])
    assert np.nanmedian(arrays["blocks.0.attn.proj:input/contributions/hoyer"]) == one.median
    assert json.loads(paths[".json"].read_text())["layers"][0]["site"] == "blocks.0.attn.proj:input"
    text = paths[".md"].read_text()
    assert f"{one.median:.3f}" in text
    assert "2 rows are zero" in text
