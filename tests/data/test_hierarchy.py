"""Concepts above classes: WordNet's over ImageNet, and those of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backlight.data import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, UnknownNameError


@pytest.fixture(scope="module")
def imagenet() -> Hierarchy:
    return Hierarchy.imagenet()


def test_dogs_are_classes_151_to_268(imagenet: Hierarchy) -> None:
    assert imagenet.indices("dog.n.01") == tuple(range(151, 269))
    assert imagenet.concept("dog") is imagenet.concept("dog.n.01")
    assert {one.name for one in imagenet.parents("dog")} == {"canine.n.02", "domestic_animal.n.01"}


@pytest.mark.parametrize(
    ("concept", "count"), [("bird.n.01", 59), ("snake.n.01", 17), ("spider.n.01", 6), ("animal.n.01", 398)]
)
def test_counts_that_are_known_of_imagenet(imagenet: Hierarchy, concept: str, count: int) -> None:
    assert len(imagenet.indices(concept)) == count


def test_every_class_is_below_the_root_and_a_concept_of_its_own(imagenet: Hierarchy) -> None:
    assert imagenet.indices("entity.n.01") == tuple(range(1000))
    assert imagenet.concepts[0] is imagenet.concept("entity")
    assert not imagenet.parents("entity")
    assert sorted(one.indices for one in imagenet.concepts if len(one.indices) == 1) == [(i,) for i in range(1000)]


def test_a_leaf_has_the_name_of_its_class(imagenet: Hierarchy) -> None:
    """The shipped table and timm's names come from different packages."""
    pytest.importorskip("timm")
    names = ClassNames.imagenet()
    for one in imagenet.concepts:
        if len(one.indices) == 1:
            known = {name.lower().replace(" ", "_") for name in names.synonyms(one.indices[0])}
            assert one.name.rpartition(".n.")[0] in known, one


def test_a_set_is_the_union_of_those_below(imagenet: Hierarchy) -> None:
    for one in imagenet.concepts:
        below = imagenet.children(one.name)
        assert all(set(child.indices) < set(one.indices) for child in below)
        if below:
            assert set(one.indices) == {index for child in below for index in child.indices}
        assert all(one in imagenet.parents(child.name) for child in below)


def test_equal_sets_are_one_concept_that_keeps_every_name(imagenet: Hierarchy) -> None:
    from importlib import resources

    table = json.loads((resources.files("backlight.data") / "imagenet_hierarchy.json").read_text())
    assert sorted(name for one in imagenet.concepts for name in one.names) == sorted(table)
    assert len({one.indices for one in imagenet.concepts}) == len(imagenet)
    assert any(len(one.names) > 2 and len(one.indices) > 1 for one in imagenet.concepts)


def test_chains_are_merged_the_most_specific_name_first() -> None:
    found = Hierarchy({"entity": ["object"], "object": ["pet", 7], "pet": ["cat"], "cat": [1]})
    assert [(one.names, one.indices) for one in found.concepts] == [
        (("object", "entity"), (1, 7)),
        (("cat", "pet"), (1,)),
    ]
    assert found.parents("pet") == (found.concept("entity"),)
    assert found.children("cat") == ()


def test_masks(imagenet: Hierarchy) -> None:
    masks = imagenet.masks(torch.tensor([151, 268, 269, -1]))
    assert masks.shape == (4, len(imagenet))
    dogs = imagenet.concepts.index(imagenet.concept("dog"))
    assert masks[:, dogs].tolist() == [True, True, False, False]
    assert masks[:, 0].tolist() == [True, True, True, False]
    assert Hierarchy({"a": [3]}).masks([3, 99, -1]).tolist() == [[True], [False], [False]]


def test_unknown_names_list_close_ones(imagenet: Hierarchy) -> None:
    with pytest.raises(UnknownNameError, match=r"dog\.n\.01"):
        imagenet.indices("dog.n.0")
    with pytest.raises(UnknownNameError, match="crane"):  # the bird and the machine
        Hierarchy({"crane.n.04": [1], "crane.n.05": [2]}).indices("crane")


def test_lists_and_trees_of_json(tmp_path: Path) -> None:
    names = ClassNames(("tench", "tabby, tabby cat", "pug"))
    flat, tree = tmp_path / "flat.json", tmp_path / "tree.json"
    flat.write_text(json.dumps({"pet": ["cat", "dog"], "cat": ["tabby cat"], "dog": [2], "all": ["pet", 0]}))
    tree.write_text(json.dumps({"all": {"pet": {"cat": "tabby", "dog": ["pug"]}, "fish": [0]}}))
    for file in (flat, tree):
        found = Hierarchy.from_json(file, names)
        assert found.indices("pet") == (1, 2)
        assert found.indices("all") == (0, 1, 2)
        assert found.indices("cat") == (1,)
        assert found.parents("cat") == (found.concept("pet"),)
    assert Hierarchy.of(str(flat), names).indices("pet") == (1, 2)


def test_a_concept_with_the_name_of_its_class(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"tench": ["tench"]}')
    assert Hierarchy.from_json(path, ClassNames(("pug", "tench"))).indices("tench") == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "an object"),
        ("{", "cannot read"),
        ('{"a": 1.5}', "list or an object"),
        ('{"a": [true]}', "class index or a name"),
        ('{"a": []}', "without classes: a"),
        ('{"a": ["b"], "b": ["a"]}', "below itself"),
    ],
)
def test_files_that_are_no_hierarchy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Hierarchy.from_json(path)
