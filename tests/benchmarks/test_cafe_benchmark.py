"""The insertion benchmark: pairs by the rule, rows that survive a kill, statistics by latent, the command."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import photographs

from backlight.benchmarks import cafe as room
from backlight.benchmarks.cafe import CafeOptions, SiteDictionary, cafe
from backlight.benchmarks.cafe_attributors import Nearest, entrants
from backlight.benchmarks.cafe_pairs import Choice, Rule, choose_pairs, kept_pairs
from backlight.benchmarks.cafe_report import by_latent
from backlight.concepts.insertion_latents import InsertionTest
from backlight.concepts.latent_units import LatentTask, activations
from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.decompositions.topk_sae import TopKSAE
from backlight.engine.sites import captured
from backlight.errors import InputError, UnknownNameError
from backlight.models.loaded import LoadedModel

timm = pytest.importorskip("timm")
pytest.importorskip("pyarrow")

SITES = ("blocks.0", "blocks.1")
NAMES = ("AttnLRP", "Nearest", "Random")
TESTS = (
    InsertionTest(token="patch", steps=[2, 6]),
    InsertionTest(token="patch", unit="pixels", steps=[2, 6]),
)
RULE = Rule(latents=2, images=2, least=0.0, most=1.0)


def loaded() -> LoadedModel:
    torch.manual_seed(3)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=0
    ).eval()
    return LoadedModel("tiny", model, Preprocessing((32, 32), (32, 32)), ClassNames(unit="feature"), (), "random")


def dictionaries(one: LoadedModel, folder: LabelledFolder) -> list[SiteDictionary]:
    x = torch.stack([folder.load(name).inputs for name in folder.names])
    with torch.no_grad(), captured(one.model, SITES) as store:
        one.model(x)
    return [
        SiteDictionary(site, TopKSAE(n_modes=16, k=6, epochs=1).fit(store[site].flatten(0, 1).detach()))
        for site in SITES
    ]


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn by one test alone: they take longer than all the rest."""
    if request.node.name != "test_the_command":
        monkeypatch.setattr(room, "write_curves", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("cafe") / "pictures", 5)


def options(out: Path, data: Path, **others: object) -> CafeOptions:
    return CafeOptions(out=out, data=data, attributors=NAMES, tests=TESTS, rule=RULE, **others)  # type: ignore[arg-type]


def folder_of(one: LoadedModel, data: Path) -> LabelledFolder:
    return LabelledFolder(data, one.classes, one.preprocessing, labelled=False)


def test_pairs_are_those_of_the_rule(data: Path) -> None:
    one = loaded()
    folder = folder_of(one, data)
    site, dictionary = SITES[1], dictionaries(one, folder)[1].dictionary
    x = torch.stack([folder.load(name).inputs for name in folder.names])
    z = activations(one.model, site, dictionary, x).patches.flatten(2)  # [N, K, P]
    choice = choose_pairs(one.model, site, dictionary, folder, RULE, batch_size=2)
    assert len(choice.pairs) == 4
    assert [pair.rank for pair in choice.pairs] == [0, 1, 0, 1]
    for pair in choice.pairs:
        best = z[:, pair.latent].amax(1).sort(descending=True)
        row = folder.names.index(pair.image)
        assert int(best.indices[pair.rank]) == row
        assert abs(pair.value - float(best.values[pair.rank])) < 1e-5
        assert pair.token == 1 + int(z[row, pair.latent].argmax())
        assert abs(pair.frequency - float((z[:, pair.latent] > 0).double().mean())) < 1e-9
    more = choose_pairs(one.model, site, dictionary, folder, replace(RULE, latents=5))
    assert {pair.name for pair in choice.pairs} < {pair.name for pair in more.pairs}
    other = choose_pairs(one.model, site, dictionary, folder, replace(RULE, seed=1))
    assert {pair.latent for pair in other.pairs} != {pair.latent for pair in choice.pairs}
    with pytest.raises(InputError, match="no latent"):
        choose_pairs(one.model, site, dictionary, folder, replace(RULE, most=0.0, least=0.0, images=5))
    with pytest.raises(InputError, match="least"):
        Rule(least=0.5, most=0.1)


def test_the_tables_hold_what_the_test_gives(data: Path, tmp_path: Path) -> None:
    one = loaded()
    folder = folder_of(one, data)
    found = dictionaries(one, folder)
    report = cafe(one, found, options(tmp_path, data))
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    orders = {line["order"] for line in lines}
    assert orders == {*NAMES, "AttnLRP, signed"}
    assert {line["layer"] for line in lines} == {*SITES, "all layers"}
    choice = choose_pairs(one.model, SITES[0], found[0].dictionary, folder, RULE)
    areas = []
    for pair in choice.pairs:
        x = folder.load(pair.image).inputs[None]
        task = LatentTask.of(one.model, SITES[0], found[0].dictionary, x, pair.latent, pair.token)
        scores, _ = entrants(["AttnLRP"], {})[0].scores(task)
        curves = TESTS[0].run(one.model, SITES[0], found[0].dictionary, x, task.latents, scores, tokens=task.tokens)
        areas.append(curves.auc[:, 0].numpy())
    expected = by_latent(np.array(areas), [pair.latent for pair in choice.pairs]).mean(0)
    for order, value in zip(("AttnLRP", "AttnLRP, signed"), expected, strict=True):
        (line,) = [
            line
            for line in lines
            if (line["test"], line["layer"], line["order"]) == ("tokens, position", SITES[0], order)
        ]
        assert abs(float(line["area_mean"]) - value) < 1e-5
        assert line["pairs"] == "4"
        assert line["area_n"] == "2"
    text = report.markdown()
    assert "Figure 7" in text
    assert (tmp_path / "table.md").read_text() == text


def test_what_is_done_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded()
    found = dictionaries(one, folder_of(one, data))
    first = cafe(one, found[:1], options(tmp_path, data)).csv()
    calls: list[int] = []
    whole = room._Work._scores
    monkeypatch.setattr(
        room._Work, "_scores", lambda self, x, pair, runs: calls.append(len(runs)) or whole(self, x, pair, runs)
    )
    assert cafe(one, found[:1], options(tmp_path, data)).csv() == first
    assert calls == []
    more = replace(options(tmp_path, data), attributors=(*NAMES, "Gradient"))
    cafe(one, found[:1], more)
    assert calls == [1] * 4
    changed = replace(options(tmp_path, data), tests=TESTS[:1])
    with pytest.raises(InputError, match="other settings"):
        cafe(one, found[:1], changed)


def test_a_kill_loses_the_pair_at_work(data: Path, tmp_path: Path) -> None:
    """The run that goes on gives what a run without a kill gives."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "import test_cafe_benchmark as t\n"
        "t.room.write_curves = lambda *_: None\n"
        "from pathlib import Path\n"
        "one = t.loaded(); data = Path(sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "t.cafe(one, t.dictionaries(one, t.folder_of(one, data)), t.options(Path(sys.argv[1]), data))\n"
    )
    here = str(Path(__file__).parent)
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}:{Path(here).parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out), str(data), here], env=environment, stdout=subprocess.PIPE
    )
    started = time.monotonic()
    while time.monotonic() - started < 60 and len(list(out.rglob("parts/*.parquet"))) < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "table.csv").exists()
    one = loaded()
    found = dictionaries(one, folder_of(one, data))
    again = cafe(one, found, options(out, data))
    straight = cafe(one, found, options(tmp_path / "straight", data))
    assert again.markdown() == straight.markdown()


def test_few_pairs_for_costly_attributors(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    one = loaded()
    found = dictionaries(one, folder_of(one, data))[1:]
    chosen = replace(
        options(tmp_path, data),
        attributors=("AttnLRP", "KernelSHAP"),
        settings={"KernelSHAP": {"n_samples": 40}},
        few=2,
        tests=TESTS[:1],
    )
    cafe(one, found, chosen)
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    counts = {line["order"]: line["pairs"] for line in lines}
    assert counts == {"AttnLRP": "4", "AttnLRP, signed": "4", "KernelSHAP": "2"}


def test_an_attributor_that_fails_is_said_to(data: Path, tmp_path: Path) -> None:
    one = loaded()
    found = dictionaries(one, folder_of(one, data))[1:]
    chosen = replace(options(tmp_path, data), attributors=("Random", "KernelSHAP"), tests=TESTS[:1])
    chosen = replace(chosen, settings={"KernelSHAP": {"n_samples": 3}})  # too few
    text = cafe(one, found, chosen).markdown()
    assert "KernelSHAP has no value" in text
    with pytest.raises(UnknownNameError, match="Random"):
        cafe(one, found, replace(chosen, attributors=("Randon",)))


def test_nearest_is_the_distance_to_the_token(data: Path) -> None:
    one = loaded()
    folder = folder_of(one, data)
    dictionary = dictionaries(one, folder)[0].dictionary
    x = folder.load(folder.names[0]).inputs[None]
    found = Nearest().scores(one.model, SITES[0], dictionary, x, 0, 1 + 4 * 2 + 1)  # row 2, column 1 of 4 x 4
    expected = [[-(((row - 2) ** 2 + (column - 1) ** 2) ** 0.5) for column in range(4)] for row in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected))
    middle = Nearest().scores(one.model, SITES[0], dictionary, x, 0, 0)
    assert torch.equal(middle, middle.flip(0, 1))


def test_latents_are_the_unit() -> None:
    values = np.array([[1.0], [3.0], [5.0], [np.nan]])
    assert by_latent(values, [7, 7, 2, 2])[:, 0].tolist() == [2.0, 5.0]


def test_the_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from backlight.cli.commands import app

    one = loaded()
    monkeypatch.setattr("backlight.models.load", lambda *_, **__: one)
    for found in dictionaries(one, folder_of(one, data)):
        found.dictionary.save(tmp_path / found.site)
    call = [
        "benchmark", "cafe", "--model", "tiny", "--dictionaries", f"blocks.0={tmp_path / 'blocks.0'}",
        "--dictionaries", f"blocks.1={tmp_path / 'blocks.1'}", "--data", str(data), "--attributors", "AttnLRP,Random",
        "--latents-per-layer", "2", "--images-per-latent", "1", "--most", "1", "--unit", "tokens", "--canvas",
        "position,zero", "--steps", "2,4", "--out", str(tmp_path / "out"), "--quick",
    ]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "tokens, zero" in result.output
    out = tmp_path / "out"
    curves = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    full = [float(line["value"]) for line in curves if line["budget"] == "16"]
    np.testing.assert_allclose(full, 1, atol=1e-5)
    assert len(list(out.glob("curves-*.png"))) == 2
    run = json.loads((out / "run.json").read_text())
    assert set(run["identities"][0]) == {"AttnLRP", "Random"}
    assert CliRunner().invoke(app, [*call[:5], "blocks.0", *call[6:]]).exit_code != 0


def test_pairs_are_chosen_once(data: Path, tmp_path: Path) -> None:
    one = loaded()
    folder = folder_of(one, data)
    dictionary = dictionaries(one, folder)[0].dictionary
    path, calls = tmp_path / "layer" / "pairs.json", []

    def choose() -> Choice:
        calls.append(1)
        return choose_pairs(one.model, SITES[0], dictionary, folder, RULE)

    first = kept_pairs(path, {"seed": 1}, choose)
    assert kept_pairs(path, {"seed": 1}, choose) == first
    assert len(calls) == 1
    kept_pairs(path, {"seed": 2}, choose)
    assert len(calls) == 2
    path.write_text("{")
    with pytest.raises(InputError, match="remove it to choose again"):
        kept_pairs(path, {"seed": 2}, choose)
