"""torchvision imports beside a torch its operators were not built for; where they were, nothing is added."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from backlight import torchvision_ops


def extension(has_ops: bool) -> ModuleType:
    module = ModuleType("torchvision.extension")
    module._has_ops = lambda: has_ops  # type: ignore[attr-defined]
    return module


class Recorder:
    """Stands for torch.library.Library, and keeps what is defined."""

    made: list[Recorder] = []  # noqa: RUF012

    def __init__(self, namespace: str, kind: str) -> None:
        self.where, self.schemas = (namespace, kind), list[str]()
        self.made.append(self)

    def define(self, schema: str) -> None:
        self.schemas.append(schema)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(torch.library, "Library", Recorder)
    monkeypatch.setattr(torchvision_ops, "_library", [])
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder


def test_whole_operators_are_left_alone(library: type[Recorder]) -> None:
    assert not torchvision_ops.define_missing(extension(has_ops=True))
    assert library.made == []
    assert torchvision_ops._library == []


def test_missing_operators_get_their_schemas(library: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "torchvision", ModuleType("torchvision"))
    assert torchvision_ops.define_missing(extension(has_ops=False))
    (made,) = library.made
    assert made.where == ("torchvision", "FRAGMENT")
    assert made.schemas == list(torchvision_ops.SCHEMAS.values())
    assert torchvision_ops._library == [made]  # a library that is collected takes its operators with it


def test_operators_that_exist_are_not_defined_twice(library: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    present = ModuleType("torchvision")
    present.nms = object()  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.ops, "torchvision", present)
    assert torchvision_ops.define_missing(extension(has_ops=False))
    assert library.made[0].schemas == [torchvision_ops.SCHEMAS["qnms"]]


def test_the_hook_looks_at_one_module_only() -> None:
    finder = torchvision_ops._Finder()
    assert finder.find_spec("torchvision") is None
    assert finder.find_spec("json") is None


def test_the_hook_runs_the_module_before_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Inner:
        def create_module(self, spec: ModuleSpec) -> None:
            order.append("create")

        def exec_module(self, module: ModuleType) -> None:
            order.append("exec")

    monkeypatch.setattr(torchvision_ops, "define_missing", lambda module: order.append("define"))
    loader = torchvision_ops._Loader(Inner())  # type: ignore[arg-type]
    loader.create_module(ModuleSpec("m", None))
    loader.exec_module(ModuleType("m"))
    assert order == ["create", "exec", "define"]


def test_installing_twice_adds_one_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, torchvision_ops.MODULE, raising=False)
    torchvision_ops.install()
    torchvision_ops.install()
    assert [type(finder) for finder in sys.meta_path] == [torchvision_ops._Finder]


def test_torchvision_imports_after_backlight() -> None:
    pytest.importorskip("torchvision")
    code = (
        "import backlight, torch, torchvision\n"
        "print(torch.ops.torchvision.nms.default._schema)\n"
        "print(torchvision.models.resnet18().fc.out_features)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert out.returncode == 0, out.stderr
    schema, outputs = out.stdout.strip().splitlines()
    assert schema.startswith("torchvision::nms(Tensor dets, Tensor scores, float iou_threshold)")
    assert outputs == "1000"
