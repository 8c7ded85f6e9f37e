"""What modes mean: planted classes and concepts are found, named, and written down."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backlight.contributions.mode_tables import finite, mode_record, summary_record, write_tables
from backlight.contributions.modes import Modes, describe
from backlight.data import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.decompositions.class_means import ClassMeans
from backlight.errors import InputError, UnknownNameError
from backlight.store.rows import Rows, TensorRows

NAMES = ClassNames(("pug", "tabby", "boat", "car"))
TREE = Hierarchy({"thing": ["pet", "vehicle"], "pet": [0, 1], "vehicle": [2, 3]})


@dataclass
class Planted:
    """Modes 0 to 3: a class each; 4: pets; 5: noise; 6: dead. Channels: sums of classes, and noise."""

    site: str = "layer"
    quantity: str = "contributions"
    sign: str = "positive"
    n: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.labels = torch.arange(self.n) % 4
        one = torch.nn.functional.one_hot(self.labels, 4).float()
        noise = torch.rand(self.n, 7, generator=draw)
        self.pure = torch.cat([one, one[:, :2].sum(1, keepdim=True), torch.zeros(self.n, 2)], 1)
        self.z = 0.3 * noise + self.pure
        self.z[:, 6] = 0
        self.modes = torch.rand(7, 12, generator=torch.Generator().manual_seed(9))
        self.loadings: Rows = TensorRows(self.z)
        self.names = [f"{place:03d}.png" for place in range(self.n)]
        self.mixed = one @ torch.rand(4, 12, generator=draw) + torch.rand(self.n, 12, generator=draw)
        self.active = torch.rand(self.n, 12, generator=draw)

    @property
    def store(self) -> Any:
        return self

    def column(self, name: str) -> np.ndarray:
        return self.labels.numpy() if name == "label" else self.labels.flip(0).numpy()

    def quantities(self, site: str) -> tuple[str, ...]:
        return ("contributions", "activations")

    def rows(self, site: str, quantity: str, sign: str) -> Rows:
        values = {"contributions": self.mixed, "activations": self.active}[quantity]
        return TensorRows(-values if sign == "negative" else values)


@pytest.fixture(scope="module")
def found() -> Modes:
    return describe(Planted(), hierarchy=TREE, classes=NAMES, permutations=3, draws=30)


def test_planted_modes_are_about_their_classes_and_concepts(found: Modes) -> None:
    classes, concepts = found.levels["classes"], found.levels["concepts"]
    assert [classes.best_concepts(mode)[0][0] for mode in range(4)] == list(NAMES.names)
    assert concepts.best_concepts(4)[0][0] == "pet"
    assert concepts.concepts.left_out == {"thing": 120}
    assert found.level is concepts
    assert [mode for mode, _ in classes.best_modes("boat", 1)] == [2]
    assert found.ranked("vehicle", 2) in ([2, 3], [3, 2])
    assert found.ranked(count=1) == [4]
    assert found.ranked(count=7)[-1] == 6  # the dead one is last


def test_modes_are_more_correlated_than_the_channels_they_are_mixed_to(found: Modes) -> None:
    for kind in ("r", "held_out"):
        one = found.levels["classes"].differences()["contributions"][kind]
        assert 0 < one.low < one.estimate < one.high
    record = summary_record(found)["classes"]
    assert record["modes"]["alive"] == 6
    assert record["modes"]["covered"] == 4
    assert record["channels"]["activations"]["correlated_held_out"] <= 2  # of 12, of noise
    assert record["modes"]["median_r_chance"] < record["modes"]["median_r_held_out"]


def test_specificity_tells_class_modes_from_concept_modes(found: Modes) -> None:
    one = found.levels["classes"].specificity
    assert one is not None
    assert (one.top1[:4] > 0.99).all()
    assert one.top1[4] == pytest.approx(0.5, abs=0.05)
    assert (one.entropy[:4] > one.entropy[4]).all()


def test_a_record_says_what_a_mode_is(found: Modes) -> None:
    record = mode_record(found, 1)
    assert record["classes"]["best"][0]["name"] == "tabby"
    assert all(one["label"] == "tabby" for one in record["exemplars"])
    weights = [one["weight"] for one in record["channels"]]
    assert weights == sorted(found.modes[1].tolist(), reverse=True)[:10]
    assert not mode_record(found, 6)["alive"]
    assert mode_record(found, 6)["exemplars"] == []
    json.dumps(finite(mode_record(found, 6)), allow_nan=False)


def test_signs_have_their_own_channels() -> None:
    both = describe(Planted(sign="concat"), classes=NAMES, permutations=0, draws=0, channels=False)
    assert {name[-1] for name, _ in both.channels(0, 12)} == {"+", "-"}
    assert {name[:-1] for name, _ in both.channels(0, 12)} == set("012345")
    down = describe(Planted(sign="negative"), classes=NAMES, permutations=0, draws=0)
    weights = [weight for _, weight in down.channels(0)]
    assert weights == sorted(weights)
    up = describe(Planted(), classes=NAMES, permutations=0, draws=0)
    r = [one.levels["classes"].channels["contributions"].strongest for one in (up, down)]
    torch.testing.assert_close(r[0], r[1])


def test_predictions_need_no_labels() -> None:
    unlabelled = Planted()
    unlabelled.column = lambda name: np.full(120, -1) if name == "label" else unlabelled.labels.numpy()  # type: ignore
    with pytest.raises(InputError, match="prediction"):
        describe(unlabelled)
    assert describe(unlabelled, by="prediction", permutations=0, draws=0).levels["classes"].best_concepts(0)
    with pytest.raises(UnknownNameError, match="label"):
        describe(Planted(), by="labels")


def test_samples_without_a_label_are_neither_inside_nor_outside() -> None:
    """The numbers are those of the labelled samples alone; the notes count the others."""
    part, alone = Planted(sign="negative"), Planted(n=60, sign="negative")
    part.labels = part.labels.clone()
    part.labels[60:] = -1
    alone.mixed, alone.loadings = part.mixed[:60], TensorRows(part.z[:60])
    part.quantities = alone.quantities = lambda site: ("contributions",)  # type: ignore[method-assign]
    settings = {"hierarchy": TREE, "classes": NAMES, "permutations": 3, "draws": 20}
    found, expected = (describe(one, **settings) for one in (part, alone))  # type: ignore[arg-type]
    records = [summary_record(one) for one in (found, expected)]
    for level in ("classes", "concepts"):
        assert records[0][level] == records[1][level]
    assert found.levels["classes"].concepts.images == [15] * 4
    assert "60 of 120 samples have no label" in found.notes[0]
    assert (records[0]["samples"], records[0]["counted"]) == (120, 60)
    assert len(found.exemplars.samples[0]) == 8
    shared = [one.against(part).by_class for one in (found, expected)]
    torch.testing.assert_close(shared[0], shared[1])


@dataclass
class MadeOfLabels(Planted):
    """Class means of noise, as `decompose` leaves them."""

    share: float = 0.5

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.labels = torch.arange(self.n) % 4
        self.mixed = self.active = torch.rand(self.n, 40, generator=draw)
        self.held_out = (torch.rand(self.n, generator=draw) < self.share).numpy()
        self.decomposition = ClassMeans().fit(self.mixed[~self.held_out], labels=self.labels[~self.held_out])
        self.loadings = TensorRows(self.decomposition.encode(self.mixed))
        self.modes = self.decomposition.modes
        self.names = [f"{place:03d}.png" for place in range(self.n)]

    def quantities(self, site: str) -> tuple[str, ...]:
        return ("contributions",)


def test_modes_made_of_labels_are_measured_on_what_they_were_not_made_of() -> None:
    """Of noise nothing is left on the samples that were held out."""
    settings = {"permutations": 0, "draws": 50, "classes": NAMES}
    noise = describe(MadeOfLabels(n=400), **settings)  # type: ignore[arg-type]
    one = noise.levels["classes"]
    assert noise.counted == len(one.concepts.masks) < 250
    assert f"ClassMeans is made of labels: correlations are of the {noise.counted} samples" in noise.notes[0]
    assert abs(one.modes.held_out.mean()) < 0.12
    assert one.differences()["contributions"]["held_out"].low < 0
    fitted = describe(MadeOfLabels(n=400, share=0.0), **settings)  # type: ignore[arg-type]
    assert fitted.counted == 400
    assert "no r is held out" in fitted.notes[0]
    assert fitted.levels["classes"].differences()["contributions"]["held_out"].low > 0.1  # why the note is needed
    with pytest.raises(InputError, match=r"ClassMeans is made of labels.*min_images"):
        describe(MadeOfLabels(n=60, share=0.2))


def test_the_store_may_know_the_names_of_classes() -> None:
    told = Planted()
    told.about = {"classes": list(NAMES.names)}  # type: ignore[attr-defined]
    assert describe(told, permutations=0, draws=0).levels["classes"].concepts.names == NAMES.names
    assert describe(Planted(), permutations=0, draws=0).levels["classes"].concepts.names[0] == "class 0"


def test_a_class_that_is_asked_for_is_there_before_anything_is_computed() -> None:
    steps: list[int] = []
    with pytest.raises(UnknownNameError, match="boat"):
        describe(Planted(), classes=NAMES, about="boot", progress=lambda done, _: steps.append(done))
    assert not steps
    found = describe(Planted(), hierarchy=TREE, classes=NAMES, about="boat", permutations=0, draws=0)
    assert found.level is found.levels["classes"]
    assert found.ranked(count=1) == [2]
    assert found.ranked("pet", 1) == [4]
    assert len(found.against(Planted()).by_class) == 4


def test_too_few_images_are_refused_or_noted() -> None:
    with pytest.raises(InputError, match=r"4 of 4 classes.*largest has 30.*hierarchy"):
        describe(Planted(), min_images=31)
    found = describe(Planted(), hierarchy=TREE, min_images=31, permutations=0, draws=0)
    assert set(found.levels) == {"concepts"}
    assert any("4 of 4 classes" in note for note in found.notes)


def test_two_runs_share_their_class_modes_and_not_their_noise(found: Modes) -> None:
    same = found.against(Planted())
    torch.testing.assert_close(same.by_class, torch.ones(2).double())
    other = Planted(seed=5)
    order = torch.tensor([3, 1, 0, 2, 4, 6, 5])
    other.modes, other.loadings = other.modes[order], TensorRows(other.z[:, order])
    moved = found.against(other)
    torch.testing.assert_close(moved.by_class, torch.ones(2).double())
    assert len(moved.cosine) == 6
    other.site = "another"
    with pytest.raises(InputError, match="another"):
        found.against(other)


def test_numbers_out_of_range_are_refused_before_anything_is_computed() -> None:
    for wrong in ({"seed": -1}, {"permutations": -1}, {"draws": -2}):
        with pytest.raises(InputError, match=rf"{next(iter(wrong))} must be .*at least 0, got -"):
            describe(Planted(), **wrong, progress=lambda *_: pytest.fail("too late"))  # type: ignore[arg-type]
    plain = describe(Planted(), permutations=0, draws=0, channels=False)
    with pytest.raises(InputError, match="seed must be"):
        plain.against(Planted(), seed=-1)


def test_progress_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    describe(Planted(), permutations=2, draws=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 18) for done in range(1, 19)]


def test_tables_hold_what_was_found(found: Modes, tmp_path: Path) -> None:
    files = {path.name for path in write_tables(found, tmp_path)}
    assert files == {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "summary.json").read_text())["classes"]["masks"] == 4
    rows = list(csv.DictReader((tmp_path / "modes.csv").open()))
    assert [row["mode"] for row in rows] == list("012345")
    assert rows[4]["concepts_best"].startswith("pet; ")
    concepts = {row["name"]: row for row in csv.DictReader((tmp_path / "classes.csv").open())}
    assert concepts["boat"]["best_mode"] == "2"
    curve = list(csv.DictReader((tmp_path / "coverage-classes.csv").open()))
    assert [bool(row["mean_r_of_masks"]) for row in curve] == [True] * 4 + [False] * 2


def test_figures_are_drawn(found: Modes) -> None:
    pytest.importorskip("matplotlib")
    from backlight.contributions.mode_figures import correlation_figure, coverage_figure, exemplar_sheet

    left, right = correlation_figure(found, "classes").axes
    medians = sorted(line.get_xdata()[0] for line in right.lines)
    expected = [one.held_out[one.alive].median() for one in found.levels["classes"].channels.values()]
    assert any(abs(float(one) - medians[0]) < 0.1 for one in expected)
    assert len(left.lines) == len(right.lines) + 1  # chance
    curves = coverage_figure(found, "classes").axes[0].get_lines()
    assert len(curves) == 4  # modes, contributions, activations, zero
    sheet = exemplar_sheet(found, [0, 6], lambda name: torch.zeros(3, 8, 8))
    assert len(sheet.axes) == 8 + 2  # pictures of mode 0, none of the dead one, and two sets of channels
    assert "mode 0" in sheet.texts[1].get_text()


def test_figures_leave_out_what_was_not_dealt_or_is_not_alive() -> None:
    pytest.importorskip("matplotlib")
    from backlight.contributions.mode_figures import correlation_figure, exemplar_sheet

    plain = describe(Planted(), classes=NAMES, permutations=0, draws=0)
    left, right = correlation_figure(plain, "classes").axes
    assert len(left.lines) == len(right.lines) == 3  # medians of modes and two quantities, none of chance
    assert "chance" not in exemplar_sheet(plain, [0]).texts[1].get_text()
    dead = Planted()
    dead.loadings = TensorRows(torch.zeros(120, 7))
    none = describe(dead, classes=NAMES, permutations=2, draws=0, channels=False)
    assert not correlation_figure(none, "classes").axes[0].lines
