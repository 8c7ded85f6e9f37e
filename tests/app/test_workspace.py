"""What users share: models by plain names alone, entries of opened folders alone, and one computation at a time."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import backlight
from backlight.app.computation import Running, Stopped, Watch
from backlight.app.predictions import PREDICTED, best, chosen_class, class_choices, network_input, outputs, prediction
from backlight.app.workspace import Workspace, model_names
from backlight.data import sample_image
from backlight.errors import BacklightError, ImageError, InputError, ModelError, TargetError, UnknownNameError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network with random weights, all of whose classes are its own."""
    pytest.importorskip("timm")
    loaded = backlight.load("test_resnet", pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "mine.pt"
    torch.save(loaded.model.state_dict(), path)
    return path


def test_a_model_is_loaded_once_for_all_and_the_oldest_goes(checkpoint: Path) -> None:
    workspace = Workspace(max_models=2)
    first = workspace.model("test_resnet", str(checkpoint))
    assert workspace.model(" test_resnet ", str(checkpoint)) is first
    copy = checkpoint.with_name("copy.pt")
    copy.write_bytes(checkpoint.read_bytes())
    assert workspace.model("test_resnet", str(copy)) is first  # the same bytes under another name
    for last in ("a", "b"):
        workspace.model("test_resnet", str(checkpoint), "\n".join([*map(str, range(999)), last]))
    assert len(workspace._models) == 2
    assert workspace.model("test_resnet", str(checkpoint)) is not first


def test_a_model_is_as_its_checkpoint_says(checkpoint: Path) -> None:
    loaded = Workspace().model("test_resnet", str(checkpoint), "\n".join(f"kind {i}" for i in range(1000)))
    assert loaded.classes.name(7) == "kind 7"
    assert loaded.source == "the uploaded file mine.pt"
    saved = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    "/etc|..|models|hf:org/name|hf-hub:org/name|timm/resnet|local-dir:/etc|org/name||timm:/a|hf:vit|retina:x|"
    "resnet18 ; ls|timm:hf-hub:a/b".split("|"),
)
def test_paths_and_hub_addresses_are_no_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"  # a folder that `backlight.load` would take
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UnknownNameError, match="unknown model"):
        Workspace().model(name)


def test_offered_names_are_names_that_are_taken() -> None:
    from backlight.app.workspace import _family

    assert {"efficientnet_lite0", "resnet50", "mobilenet_v2"} <= set(model_names())
    for name in ("efficientnet_lite0", "resnet50", "resnet50.a1_in1k", "torchvision:resnet50.IMAGENET1K_V1"):
        assert _family(name) in ("embedded", "timm", "torchvision")


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run by the unpickler",)


def test_a_checkpoint_runs_no_code_and_names_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    for save in (lambda: torch.save({"a": Evil()}, path), lambda: path.write_bytes(pickle.dumps(Evil(), 2))):
        save()
        with pytest.raises(ModelError, match=r"evil\.pt") as caught:
            Workspace().model("test_resnet", str(path))
        assert str(tmp_path) not in str(caught.value)
    assert "unpickler" not in capsys.readouterr().out
    path.write_bytes(bytes(2 * 2**20))
    with pytest.raises(ModelError, match="at most 1 MB"):
        Workspace(max_upload_bytes=2**20).model("test_resnet", str(path))


def test_entries_of_opened_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "open" / "bank").mkdir(parents=True)
    (tmp_path / "open" / ".hidden").mkdir()
    (tmp_path / "closed").mkdir()
    workspace = Workspace(dictionaries=tmp_path / "open")
    assert workspace.dictionary_names() == ["bank"]
    assert workspace.dictionary("bank") == tmp_path / "open" / "bank"
    for name in ("../closed", "..", ".", "", ".hidden", str(tmp_path / "closed"), "bank/.."):
        with pytest.raises(UnknownNameError):
            workspace.dictionary(name)
    assert workspace.contribution_names() == []
    with pytest.raises(UnknownNameError, match="there is none to choose from"):
        workspace.contribution("bank")
    with pytest.raises(InputError, match="is not there"):
        Workspace(contributions=tmp_path / "none")


def test_predictions_are_those_of_the_library() -> None:
    try:
        loaded = backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    picture = sample_image("chelsea")
    with torch.no_grad():
        logits = loaded.model(loaded.preprocessing.tensor(picture)[None])[0]
    found = best(loaded, outputs(loaded, network_input(loaded, picture))[0])
    assert [one.index for one in found] == logits.topk(5).indices.tolist()
    assert found[0].name == loaded.classes.name(int(logits.argmax()))
    assert found[0].probability == pytest.approx(float(logits.double().softmax(0).max()), abs=1e-5)
    choices = class_choices(loaded, 1000)
    assert choices[0][1] == PREDICTED
    assert sorted(index for _, index in choices[1:]) == list(range(1000))
    assert chosen_class(logits, PREDICTED) == int(logits.argmax())
    assert chosen_class(logits, 7) == 7
    names = [
        str(best(loaded, torch.nn.functional.one_hot(torch.tensor(crane), 1000).float(), 1)[0]) for crane in (134, 517)
    ]
    assert names[0].startswith("crane (134)")  # two classes are called crane
    assert names[1].startswith("crane (517)")
    with pytest.raises(TargetError, match="out of range"):
        prediction(loaded, logits, 1000)
    with pytest.raises(ImageError, match="choose a picture first"):
        network_input(loaded, None)


def test_a_computation_gives_its_words_and_its_result() -> None:
    lock = threading.Lock()

    def work(watch: Watch) -> int:
        assert lock.locked()
        watch.say("halfway")
        time.sleep(0.3)
        return 7

    running = Running(lock, work)
    assert "halfway" in list(running)
    assert running.result == 7
    assert not lock.locked()


def test_a_computation_ends_when_its_listener_is_closed() -> None:
    lock, passes, ended = threading.Lock(), [], threading.Event()

    def work(watch: Watch) -> None:
        try:
            while True:
                watch.passed()
                passes.append(1)
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    def listener() -> Iterator[str]:
        yield from Running(lock, work)

    generator = listener()
    next(generator)
    generator.close()
    assert ended.wait(5)
    count = len(passes)
    time.sleep(0.1)
    assert len(passes) == count
    with lock:  # given back
        pass


def test_computations_run_one_at_a_time() -> None:
    lock, active, most = threading.Lock(), [0], [0]

    def work(watch: Watch) -> None:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.2)
        active[0] -= 1

    def listen(running: Running[None]) -> None:
        list(running)
        assert running.result is None

    threads = [threading.Thread(target=listen, args=(Running(lock, work),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_the_error_of_a_computation_reaches_its_listener() -> None:
    def work(watch: Watch) -> None:
        raise InputError("no such thing")

    running = Running(threading.Lock(), work)
    list(running)
    with pytest.raises(InputError, match="no such thing"):
        _ = running.result
