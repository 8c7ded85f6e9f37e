"""What the Concepts tab shows is what the library gives: lists, pages, where a concept fires and where it looks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("gradio")
pytest.importorskip("zarr")
pytest.importorskip("sklearn")
pytest.importorskip("timm")

from opened_folders import Folders, folders

from backlight.app.concept_pages import (
    AUTO,
    OpenConcepts,
    fitting,
    listed,
    localised,
    look,
    open_concepts,
    page_figure,
    strongest,
)
from backlight.app.opened import by_name, dictionaries
from backlight.app.predictions import network_input
from backlight.concepts.cafe import Cafe
from backlight.concepts.exemplars import exemplars
from backlight.concepts.localisation import measure
from backlight.concepts.naming import name_by_class
from backlight.errors import InputError, TargetError

LARGEST = "where it is largest"


@pytest.fixture(scope="module")
def made() -> Folders:
    return folders()


def opened_by(made: Folders, name: str) -> OpenConcepts:
    return open_concepts(by_name(dictionaries(made.workspace()), "dictionary", name))


@pytest.fixture(scope="module")
def opened(made: Folders) -> OpenConcepts:
    return opened_by(made, "sae/layer4")


def test_dictionaries_are_listed_by_layer(made: Folders) -> None:
    found = dictionaries(made.workspace())
    assert [one.name for one in found] == ["km/layer2", "km/layer4", "sae/layer2", "sae/layer4"]
    assert found[3].label == "sae/layer4 · TopKSAE of test_resnet, layer4"


def test_concepts_are_listed_by_what_is_lost_without_them(opened: OpenConcepts) -> None:
    rows, statistics = listed(opened), opened.concepts.statistics
    alive = [k for k in range(len(opened.concepts)) if bool(statistics["alive"][k])]
    assert sorted(row.concept for row in rows) == alive
    assert [row.explained for row in rows] == sorted((row.explained for row in rows), reverse=True)
    assert rows[0].frequency == pytest.approx(float(statistics["frequency"][rows[0].concept]))


def test_a_search_is_by_the_correlation_with_the_class(opened: OpenConcepts) -> None:
    naming = name_by_class(opened.concepts, min_images=5)
    r = naming.r[:, naming.masks.names.index("tabby")].where(opened.concepts.statistics["alive"], -torch.inf)
    rows = listed(opened, "Tabby")
    assert rows[0].concept == int(r.argmax())
    assert f"tabby {float(r.max()):.2f}" in rows[0].classes
    assert "domestic cat" in opened.names  # a set of classes, of WordNet
    with pytest.raises(InputError, match="a class called 'zebra'"):
        listed(opened, "zebra")


def test_the_strongest_on_a_picture_are_cafes(made: Folders, opened: OpenConcepts) -> None:
    rows = strongest(opened, made.loaded, made.picture(), LARGEST)
    cafe = Cafe(made.loaded.pixels(), opened.concepts.dictionary, "network.layer4", attributor="Gradient")
    x = network_input(made.loaded, made.picture())
    assert [row.concept for row in rows] == cafe.strongest(x, 8).tolist()
    assert rows[0].z == pytest.approx(float(cafe.explain(x, rows[0].concept).z[0]), rel=1e-5)


@pytest.mark.parametrize("token", [LARGEST, "all tokens together", "7"])
def test_where_a_concept_looks_is_the_librarys(made: Folders, opened: OpenConcepts, token: str) -> None:
    rows = strongest(opened, made.loaded, made.picture(), token)
    k, place = rows[0].concept, {LARGEST: "argmax", "all tokens together": "sum"}.get(token, 7)
    found = look(opened, made.loaded, made.picture(), k, "SRD", token)
    cafe = Cafe(made.loaded.pixels(), opened.concepts.dictionary, "network.layer4", attributor="SRD", token=place)
    bare = cafe.explain(network_input(made.loaded, made.picture()), k)
    assert torch.allclose(found.fields.map, bare.map, atol=1e-7)
    assert found.sentence == localised(bare, k)
    if token == "all tokens together":
        assert "summed over all tokens, which lies nowhere in the picture" in found.sentence
    else:
        numbers = measure(bare)
        share, chance = float(numbers.outside[0]), float(numbers.outside_by_chance[0])
        assert f"{100 * share:.0f} % of its iERF lies farther than 2 patches" in found.sentence
        assert ("it looks where it fires" in found.sentence) == (share / chance < 0.5)
    assert "iERF, SRD" in " ".join(text.get_text() for text in found.figure.texts)


def test_what_cannot_be_explained_gets_a_sentence(made: Folders, opened: OpenConcepts) -> None:
    on = {row.concept for row in strongest(opened, made.loaded, made.picture(), LARGEST)}
    off = next(k for k in range(len(opened.concepts)) if k not in on)
    with pytest.raises(InputError, match=f"concept {off} is off in this picture at that token; those that are on"):
        look(opened, made.loaded, made.picture(), off, "Gradient", LARGEST)
    with pytest.raises(InputError, match="has no encoder"):
        strongest(opened_by(made, "km/layer4"), made.loaded, made.picture(), LARGEST)
    with pytest.raises((TargetError, InputError)):
        look(opened, made.loaded, made.picture(), 99, "Gradient", LARGEST)


def test_the_attributor_fits_the_network(made: Folders) -> None:
    import backlight

    assert fitting(AUTO, made.loaded) == "SRD"
    assert fitting(AUTO, backlight.load("test_vit", pretrained=False)) == "AttnLRP"
    assert fitting("Gradient", made.loaded) == "Gradient"


def test_a_page_has_the_exemplars(opened: OpenConcepts) -> None:
    k = listed(opened)[0].concept
    figure = page_figure(opened, k, 2)
    found = exemplars(opened.concepts, k, 2)
    texts = [text.get_text() for text in figure.texts]
    assert texts[0].startswith(f"test_resnet · layer4 · concept {k}, on in ")
    for one in found:
        row, column = one.position
        assert f"{one.strength:.3g} at ({row}, {column})" in texts
        assert opened.concepts.bank.classes.name(one.label) in texts


def test_the_sentence_says_where_a_concept_looks(made: Folders, opened: OpenConcepts) -> None:
    k = strongest(opened, made.loaded, made.picture(), LARGEST)[0].concept
    fields = look(opened, made.loaded, made.picture(), k, "Gradient", LARGEST).fields
    flat = torch.ones_like(fields.map)
    row, column = fields.positions[0].tolist()
    point = torch.zeros_like(flat)
    point[0, row, column] = flat.sum()
    for map_, verdict in (
        (flat, "it looks anywhere"), (flat + 0.4 * point, "it looks elsewhere too"), (point, "it looks where it fires"),
    ):  # fmt: skip
        assert verdict in localised(replace(fields, map=map_), k)
