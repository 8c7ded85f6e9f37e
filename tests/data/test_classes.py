"""Class names: ImageNet's order, the ways to name a class, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from backlight.data import ClassNames
from backlight.errors import InputError, TargetError, UnknownNameError

TABLE = Path(__file__).parents[3] / "shared" / "data" / "images" / "imagenet_classes.json"


@pytest.fixture(scope="module")
def imagenet() -> ClassNames:
    pytest.importorskip("timm")
    return ClassNames.imagenet()


@pytest.mark.skipif(not TABLE.exists(), reason="the class table lies beside the repository, not in it")
def test_imagenet_is_in_order(imagenet: ClassNames) -> None:
    table = json.loads(TABLE.read_text())
    assert list(imagenet.synsets) == [synset for synset, _ in table]
    assert list(imagenet.names) == [names for _, names in table]


def test_the_ways_to_name_a_class(imagenet: ClassNames) -> None:
    queries = ["tiger cat", " Tiger CAT", "n02123159", "N02123159", 282, "282", torch.tensor(282)]
    assert [imagenet.index(query) for query in queries] == [282] * 7
    assert imagenet.index("Tinca tinca") == imagenet.index("tench, Tinca tinca") == 0
    assert (imagenet.name(0), imagenet.synset(0), imagenet.synonyms(0)) == (
        "tench",
        "n01440764",
        ("tench", "Tinca tinca"),
    )
    assert len(imagenet) == 1000


def test_every_synset_and_full_name_finds_its_class(imagenet: ClassNames) -> None:
    assert [imagenet.index(synset) for synset in imagenet.synsets] == list(range(1000))
    full = [i for i, name in enumerate(imagenet.names) if "," in name]
    assert [imagenet.index(imagenet.names[i]) for i in full] == full


@pytest.mark.parametrize(
    ("name", "indices"), [("crane", (134, 517)), ("maillot", (638, 639)), ("cardigan", (264, 474))]
)
def test_ambiguous_names(imagenet: ClassNames, name: str, indices: tuple[int, int]) -> None:
    with pytest.raises(TargetError, match="ambiguous") as caught:
        imagenet.index(name)
    assert all(str(index) in str(caught.value) for index in indices)


def test_unknown_names_list_close_matches(imagenet: ClassNames) -> None:
    with pytest.raises(UnknownNameError, match="tiger cat"):
        imagenet.index("tigre cat")


@pytest.mark.parametrize("query", [-1, 1000, "1000", "-1"])
def test_indices_out_of_range(imagenet: ClassNames, query: int | str) -> None:
    with pytest.raises(TargetError, match="0 to 999"):
        imagenet.index(query)


@pytest.mark.parametrize("query", [2.5, None])
def test_queries_that_are_neither_name_nor_index(imagenet: ClassNames, query: object) -> None:
    with pytest.raises((TargetError, TypeCheckError), match=r"index or name|SupportsIndex"):
        imagenet.index(query)  # type: ignore[arg-type]


def test_names_of_digits_go_before_numbers() -> None:
    assert ClassNames(("3", "1", "0")).index("0") == 2
    assert ClassNames(("3", "1", "0")).index(0) == 0


def test_without_names() -> None:
    unknown = ClassNames()
    assert (unknown.index("7"), unknown.index(7), unknown.name(7), unknown.synset(7)) == (7, 7, "class 7", "")
    assert ClassNames(unit="feature").name(7) == "feature 7"
    assert len(unknown) == 0
    with pytest.raises(UnknownNameError, match="give the index"):
        unknown.index("cat")


def test_generic_and_hugging_face() -> None:
    assert ClassNames.generic(3).index("class 2") == 2
    assert ClassNames.from_id2label({0: "LABEL_0", 1: "LABEL_1"}) == ClassNames.generic(2)
    assert ClassNames.from_id2label({"1": "dog, hound", "0": "cat"}).index("hound") == 1


def test_from_files(tmp_path: Path) -> None:
    for name, text in {
        "a.txt": "cat\ndog\n\n",
        "a.json": '["cat", "dog"]',
        "b.json": '{"0": "cat", "1": "dog"}',
    }.items():
        (tmp_path / name).write_text(text)
        assert ClassNames.of(tmp_path / name) == ClassNames.of(["cat", "dog"]) == ClassNames(("cat", "dog"))
    (tmp_path / "c.json").write_text('[["n1", "cat"]]')
    for name in ("c.json", "missing.txt"):
        with pytest.raises(InputError, match=name):
            ClassNames.of(tmp_path / name)


def test_synsets_for_every_name_or_none() -> None:
    with pytest.raises(InputError, match="synset"):
        ClassNames(("a", "b"), ("n1",))
