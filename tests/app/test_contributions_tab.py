"""What the Contributions tab shows is what the library gives: modes, loadings of a new picture, control, maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gradio")
pytest.importorskip("zarr")
pytest.importorskip("sklearn")
pytest.importorskip("timm")

from opened_folders import NAME, Folders, folders

from backlight.app.contributions import controlled_table, listing
from backlight.app.mode_control import OpenModes, controlled, listed, maps_figure, most_active, open_modes
from backlight.app.opened import Opened, by_name, check_model, decompositions, number_of, without_paths
from backlight.app.predictions import network_input, outputs
from backlight.app.workspace import Workspace
from backlight.contributions.collector import ContributionCollector
from backlight.contributions.control import ChannelEdit, control
from backlight.contributions.maps import contribution_maps
from backlight.contributions.modes import describe
from backlight.contributions.recollection import collector_of, loadings_of, rows_of
from backlight.errors import InputError, ModelError, UnknownNameError


@pytest.fixture(scope="module")
def made() -> Folders:
    return folders()


@pytest.fixture(scope="module")
def one(made: Folders) -> Opened:
    return by_name(decompositions(made.workspace()), "layer", "nmf/layer4")


@pytest.fixture(scope="module")
def opened(one: Opened) -> OpenModes:
    return open_modes(one)


@pytest.fixture(scope="module")
def best(made: Folders, opened: OpenModes) -> int:
    return most_active(opened, made.loaded, made.picture())[0].mode


def test_a_new_picture_is_told_as_the_extraction_would_have(made: Folders, opened: OpenModes) -> None:
    pictures = torch.cat([network_input(made.loaded, made.picture(number)) for number in (0, 4)])
    store = opened.decomposed.store
    places = [store.names.index(name) for name in ("00.png", "04.png")]
    stored = store.rows("layer4", "contributions", "positive").read(0, len(store))[places]
    assert torch.allclose(rows_of(opened.decomposed, made.loaded, pictures), stored, rtol=1e-5, atol=1e-8)
    kept = opened.decomposed.loadings.read(0, len(store))[places]
    assert torch.allclose(loadings_of(opened.decomposed, made.loaded, pictures), kept, atol=1e-5)
    rows = most_active(opened, made.loaded, made.picture(4))
    assert rows[0].mode == int(kept[1].argmax())
    assert rows[0].loading == pytest.approx(float(kept[1].max()), rel=1e-4)


def test_the_collector_is_the_one_that_made_the_store(made: Folders, opened: OpenModes) -> None:
    found = collector_of(opened.decomposed, made.loaded).identity
    before = opened.decomposed.identity["data"]["store"]
    for name in ("algorithm", "target", "rules", "baseline", "reduction", "preprocessing", "strict", "sites"):
        assert found[name] == before[name], name


def test_another_network_is_refused(made: Folders, opened: OpenModes, one: Opened) -> None:
    torch.manual_seed(5)
    other = replace(made.loaded, model=ContributionCollector(NAME, ("layer4",), random_weights=True, seed=9).network)
    with pytest.raises(ModelError, match="with other weights"):
        most_active(opened, other, made.picture())
    with pytest.raises(InputError, match="is of test_resnet, and the model chosen above is mobilenet_v2"):
        check_model(one, "mobilenet_v2")


def test_modes_are_listed_by_their_correlation(opened: OpenModes) -> None:
    found = describe(opened.decomposed, channels=False, min_images=5, permutations=0, draws=0)
    level = found.levels["classes"]
    rows = listed(opened, "tabby")
    assert [row.mode for row in rows] == [mode for mode, _ in level.best_modes("tabby")]
    assert rows[0].r == pytest.approx(level.best_modes("tabby")[0][1])
    assert rows[0].channels == ", ".join(name for name, _ in found.channels(rows[0].mode, 3))
    assert "at least 5 of 15 pictures. With so few" in opened.note
    with pytest.raises(InputError, match="a class called 'zebra'; the first of its classes: tabby"):
        listed(opened, "zebra")


def test_control_is_the_librarys(made: Folders, opened: OpenModes, best: int) -> None:
    x, count = network_input(made.loaded, made.picture()), 9
    found = controlled(opened, made.loaded, made.picture(), best, count, "ablate")
    weights = opened.decomposed.modes[best]
    channels = np.argsort(-weights.numpy(), kind="stable")[:count].tolist()
    assert list(found.channels) == channels
    model = made.loaded.model
    normal = made.loaded.preprocessing.normalise((x + 1) / 2)
    with torch.no_grad():
        before = model(normal)[0].double().softmax(0)
        with control(model, {"layer4": ChannelEdit(channels)}):
            after = model(normal)[0].double().softmax(0)
    assert torch.allclose(found.before, before, atol=1e-7)
    assert torch.allclose(found.after, after, atol=1e-7)
    assert not torch.allclose(found.after, found.before, atol=1e-7)
    names = [row[0] for row in found.rows()]
    assert names[:5] == [made.loaded.classes.name(int(k)) for k in before.topk(5).indices]
    assert f"{100 * float(before.max()):.1f} %" in controlled_table(found)


def test_all_channels_kept_is_no_change_and_random_ones_are_drawn_by_a_seed(
    made: Folders, opened: OpenModes, best: int
) -> None:
    kept = controlled(opened, made.loaded, made.picture(), best, opened.width, "preserve")
    assert torch.equal(kept.before, kept.after)
    assert torch.allclose(kept.before, kept.random, atol=1e-12)
    first, again = (controlled(opened, made.loaded, made.picture(), best, 4, "ablate") for _ in range(2))
    assert torch.equal(first.random, again.random)
    assert not torch.equal(first.random, first.after)
    with pytest.raises(UnknownNameError, match="unknown action"):
        controlled(opened, made.loaded, made.picture(), best, 4, "remove")


def test_the_map_is_the_librarys(made: Folders, opened: OpenModes, best: int) -> None:
    x = network_input(made.loaded, made.picture())
    index = int(outputs(made.loaded, x)[0].argmax())
    found = contribution_maps(
        made.loaded.model, made.loaded.preprocessing.normalise((x + 1) / 2), "layer4",
        [list(opened.channels(best, 2))], index,
    )  # fmt: skip
    assert found.contributions is not None
    figure = maps_figure(opened, made.loaded, made.picture(), [best], 2, -1)
    titles = " ".join(axes.get_title() for axes in figure.axes)
    assert f"{float(found.contributions[0, 0]):+.3g} to the logit" in titles
    assert f"mode {best}" in titles


def test_the_list_is_a_table(opened: OpenModes) -> None:
    rows = listed(opened, count=3)
    line, table, _ = listing(opened, rows, "Three modes.")
    assert line == "Three modes."
    for row in rows:
        assert f'<th class="words" scope="row">{row.mode}</th>' in table


@pytest.mark.parametrize("name", ["../store", "/etc", "nmf", "", None])
def test_only_what_is_listed_can_be_reached(made: Folders, name: str | None) -> None:
    with pytest.raises((UnknownNameError, InputError)):
        by_name(decompositions(made.workspace()), "layer", name)


def test_what_is_no_decomposition_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{broken")
    (tmp_path / "half" / "report.json").write_text("{}")
    assert decompositions(Workspace(contributions=tmp_path)) == []


def test_errors_name_no_path_of_the_server() -> None:
    with pytest.raises(InputError) as told, without_paths():
        raise InputError("the store '/srv/secret/run 1/store.zarr' is gone; /home/me/x.json too")
    assert "/srv" not in str(told.value)
    assert "/home" not in str(told.value)
    assert "store.zarr" in str(told.value)


@pytest.mark.parametrize("given", ["", None, "many", "-1", "1.5"])
def test_a_mode_is_a_number(given: str | None) -> None:
    with pytest.raises(InputError, match="mode"):
        number_of("mode", given)
    assert number_of("mode", " 12 ") == 12
