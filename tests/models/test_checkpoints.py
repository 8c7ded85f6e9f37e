"""Weights from files: every usual container is read, nothing but tensors is unpickled, and misfits are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backlight.errors import ModelError
from backlight.models.checkpoints import load_strictly, read_state_dict


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return network().state_dict()


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_torch_files(tmp_path: Path, state: dict, wrapper: str | None, prefix: str) -> None:
    prefixed = {prefix + key: value for key, value in state.items()}
    torch.save(prefixed if wrapper is None else {wrapper: prefixed, "epoch": 3}, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"), state)


def test_safetensors_and_objects(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "a.safetensors")
    assert set(read_state_dict(tmp_path / "a.safetensors")) == set(state)
    assert same(read_state_dict(str(tmp_path / "a.safetensors")), dict(sorted(state.items())))
    assert same(read_state_dict(state), state)


class Pickled:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Pickled(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="Python objects") as caught:
        read_state_dict(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"save model\.state_dict"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"some words", b"PK\x03\x04 half a zip"])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3, "loss": 0.5}, {"a": {"b": 1}}])
def test_checkpoints_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="expected a state dict"):
        read_state_dict(tmp_path / "a.pth")


def test_misfits_are_named_and_leave_the_model_alone(state: dict) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = {"0.weight": state["0.weight"], "0.bias": state["0.bias"][:3], "9.weight": state["2.weight"]}
    with pytest.raises(ModelError) as caught:
        load_strictly(model, wrong, "the file")
    message = str(caught.value)
    assert "2 missing (2.weight, 2.bias)" in message
    assert "1 unexpected (9.weight)" in message
    assert "0.bias [3] for [4]" in message
    assert same(model.state_dict(), before)


def test_many_misfits_are_cut_short() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)])
    with pytest.raises(ModelError, match=r"100 missing \(0\.weight, 0\.bias, 1\.weight, 1\.bias, \.\.\.\)"):
        load_strictly(model, {"x": torch.zeros(1)})
