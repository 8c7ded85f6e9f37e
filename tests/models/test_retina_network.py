"""The retina network against a literal forward pass, and the published layout written by hand."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import backlight
from backlight.errors import InputError, ModelError
from backlight.models.retina import WIDE, AbsBatchNorm, MapConvolution, RetinaNetwork, predict, windows
from backlight.models.retina_checkpoints import composed, load_retina, save_retina

FRAMES, SIDE, CELLS = 4, 12, 3
COUNT = (2, 3)  # channels


def _norm(x: Tensor, part: dict[str, Tensor], epsilon: float) -> Tensor:
    flat = x if x.shape[1] == len(part["scale"]) else x.flatten(1)
    shape = (1, -1, *[1] * (flat.ndim - 2))
    entries = {name: value.reshape(shape) for name, value in part.items()}
    found = (flat - entries["running_mean"]) / (entries["running_var"] + epsilon).sqrt() * entries["scale"].abs()
    return (found + entries["shift"]).reshape(x.shape)


def _norm_part(features: int) -> dict[str, Tensor]:
    return {
        "scale": torch.randn(features),
        "shift": torch.randn(features) / 4,
        "running_mean": torch.randn(features) / 4,
        "running_var": torch.rand(features) + 0.5,
    }


def _published(stacked: bool, unit: bool, local: bool) -> dict[int, dict[str, Tensor]]:
    """The modules of a network of the published family; kernels of 5, 3 and 3."""
    a, b = COUNT
    first: dict[str, Tensor] = {"weight": torch.randn(a, FRAMES, 5, 5) / 10, "bias": torch.randn(a)}
    if stacked:  # two convolutions of three, with a batch norm and dropout (no weights) between them
        first = {"convs.0.weight": torch.randn(4, FRAMES, 3, 3) / 6}
        first |= {f"convs.1.{name}": value for name, value in _norm_part(4).items()}
        first |= {"convs.3.weight": torch.randn(a, 4, 3, 3) / 6, "convs.3.bias": torch.randn(a)}
    last = torch.randn(CELLS, b, 3, 3) / 5 if local else torch.randn(CELLS, b * 36) / 10
    places = [0, 2, 4, 6, 8, 10, 12, 15] if unit else [0, 1, 2, 4, 5, 6, 8, 10]
    parts = [
        first,
        _norm_part(a * 64 if unit else a),
        {"sigma": torch.full((1,), 0.1)},
        {"weight": torch.randn(b, a, 3, 3) / 4},
        _norm_part(b * 36 if unit else b),
        {"sigma": torch.full((1,), 0.1)},
        {"weight": last, "bias": torch.randn(CELLS)},
        _norm_part(CELLS),
    ]
    return dict(zip(places, parts, strict=True))


def _literal(modules: dict[int, dict[str, Tensor]], x: Tensor, positions: list[list[int]] | None) -> Tensor:
    parts = [part for part in modules.values() if "sigma" not in part]
    for place, part in enumerate(parts[:4]):
        if place % 2:
            x = _norm(x, part, 1e-3).relu()
        elif "weight" in part:
            x = F.conv2d(x, part["weight"], part.get("bias"))
        else:
            x = F.conv2d(x, part["convs.0.weight"])
            x = _norm(x, {name[8:]: value for name, value in part.items() if name.startswith("convs.1.")}, 1e-5)
            x = F.conv2d(x, part["convs.3.weight"], part["convs.3.bias"])
    last = parts[4]
    if positions is None:
        y = x.flatten(1) @ last["weight"].T + last["bias"]
    else:
        maps = F.conv2d(x, last["weight"], last["bias"])
        y = torch.stack([maps[:, cell, row, column] for cell, (row, column) in enumerate(positions)], 1)
    return F.softplus(_norm(y, parts[5], 1e-3))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_published_layout(tmp_path: Path, stacked: bool, unit: bool, local: bool) -> None:
    modules = _published(stacked, unit, local)
    state = OrderedDict((f"sequential.{i}.{name}", v) for i, part in modules.items() for name, v in part.items())
    hyps = {"img_shape": (FRAMES, SIDE, SIDE), "softplus": True, "centers": [(5, 6), (2, 9), (8, 3)]}
    stats = {"mean": np.float64(51.5), "std": np.ones(1)}
    torch.save({"model_state_dict": state, "model_hyps": hyps, "norm_stats": stats}, tmp_path / "found.pt")
    network = load_retina(tmp_path / "found.pt")
    assert not network.training
    assert network.settings["kernels"] == ([5, 3, 3] if local else [5, 3])
    assert network.settings["noise"] == pytest.approx(0.1)
    # half = 4 + 2 + 1 = 7; min(max(0, c - 7), 12 - 12): 0 for all cells
    positions = [[0, 0]] * CELLS if local else None
    x = torch.randn(5, FRAMES, SIDE, SIDE)
    torch.testing.assert_close(network(x), _literal(modules, x, positions), rtol=1e-4, atol=1e-5)
    if local:
        chosen = [[1, 2], [3, 0], [0, 3]]
        found = load_retina(tmp_path / "found.pt", positions=chosen)
        torch.testing.assert_close(found(x), _literal(modules, x, chosen), rtol=1e-4, atol=1e-5)


def test_positions_with_the_published_sizes(tmp_path: Path) -> None:
    """half = 14 + 10 + 5 = 29, the last map is 16 wide, min(., 50 - 56) = -6: row 10 of 16 for any centre."""
    parts = [{"weight": torch.zeros(1, 2, 15, 15)}, _norm_part(1), {"weight": torch.zeros(1, 1, 11, 11)}]
    parts += [_norm_part(1), {"weight": torch.zeros(2, 1, 11, 11)}, _norm_part(2)]
    state = {f"sequential.{i}.{name}": v for i, part in enumerate(parts) for name, v in part.items()}
    told = {"img_shape": [2, 50, 50], "centers": [[10, 40], [25, 25]]}
    torch.save({"model_state_dict": state, "hyps": told}, tmp_path / "x.pt")
    assert load_retina(tmp_path / "x.pt").settings["positions"] == [[10, 10], [10, 10]]


def test_refused_files(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (print, ("code runs",))

    torch.save({"model_state_dict": {}, "hyps": Code()}, tmp_path / "code.pt")
    with pytest.raises(ModelError, match="as tensors and plain values"):
        load_retina(tmp_path / "code.pt")
    with pytest.raises(ModelError, match="no such file"):
        load_retina(tmp_path / "none.pt")
    modules = _published(False, False, False)
    state = {f"sequential.{i}.{name}": v for i, part in modules.items() for name, v in part.items()}
    for told, message in (
        ({}, "give size="),
        ({"img_shape": [4, 12, 12], "softplus": False}, "softplus=False"),
        ({"img_shape": [4, 12, 12], "paddings": [2, 0]}, "paddings"),
    ):
        torch.save({"model_state_dict": state, "hyps": told}, tmp_path / "x.pt")
        with pytest.raises(ModelError, match=message):
            load_retina(tmp_path / "x.pt")
    torch.save({"model_state_dict": {**state, "amacrine.0.weight": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"amacrine\.0\.weight"):
        load_retina(tmp_path / "x.pt", size=(12, 12))
    torch.save({"model_state_dict": {**state, "sequential.20.scale_param": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="scale_param"):
        load_retina(tmp_path / "x.pt", size=(12, 12))


@pytest.mark.parametrize("positions", [None, [[0, 1], [2, 2], [3, 3]]])
def test_own_files(tmp_path: Path, positions: list[list[int]] | None) -> None:
    made = RetinaNetwork(3, frames=4, size=(12, 12), channels=(2, 3), kernels=(5, 3, 3), positions=positions, seed=3)
    made.train()
    for _ in range(3):
        made(torch.randn(8, 4, 12, 12))
    made.eval()
    save_retina(made, tmp_path / "own.safetensors")
    found = load_retina(tmp_path / "own.safetensors")
    x = torch.randn(2, 4, 12, 12)
    assert torch.equal(found(x), made(x))
    assert found.settings == made.settings
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_composed_kernel() -> None:
    first, second = torch.randn(4, 3, 5, 5), torch.randn(2, 4, 3, 3)
    x = torch.randn(1, 3, 11, 11)
    kernel = composed(first, second)
    assert kernel.shape == (2, 3, 7, 7)
    torch.testing.assert_close(F.conv2d(x, kernel), F.conv2d(F.conv2d(x, first), second), rtol=1e-4, atol=1e-4)


def test_training_statistics_and_noise() -> None:
    norm = AbsBatchNorm(8, momentum=1.0)
    norm.scale.data = torch.tensor([-2.0] * 8)
    x = torch.randn(64, 2, 2, 2)
    y = norm(x)
    flat = x.flatten(1)
    spread = flat.var(0, correction=0)
    expected = (flat - flat.mean(0)) / (spread + 1e-3).sqrt() * 2  # of -2 the size alone
    torch.testing.assert_close(y.flatten(1), expected)
    torch.testing.assert_close(norm.get_buffer("running_mean"), flat.mean(0))
    torch.testing.assert_close(norm.get_buffer("running_var"), flat.var(0))
    network = RetinaNetwork(2, frames=3, size=(8, 8), kernels=(3, 3), noise=0.5)
    network.first.noise.generator = torch.Generator().manual_seed(1)
    network.first.noise.train()
    state = torch.random.get_rng_state()
    drawn = network.first.noise(torch.zeros(4000))
    assert torch.equal(state, torch.random.get_rng_state())
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.05)
    network.eval()
    assert torch.equal(network.first.noise(torch.ones(3)), torch.ones(3))


def test_windows_are_a_view() -> None:
    movie = torch.arange(6 * 2 * 3).float().reshape(6, 2, 3)
    found = windows(movie, 4)
    assert found.shape == (3, 4, 2, 3)
    assert found.untyped_storage().data_ptr() == movie.untyped_storage().data_ptr()
    for i in range(3):
        assert torch.equal(found[i], movie[i : i + 4])
    with pytest.raises(InputError, match="no window"):
        windows(movie, 7)


def test_predict_leaves_the_mode() -> None:
    network = RetinaNetwork(2, frames=3, size=(8, 8), kernels=(3, 3))
    network.train()
    network.second.eval()
    x = windows(torch.randn(30, 8, 8), 3)
    before = network.first.norm.get_buffer("running_mean").clone()
    rates = predict(network, x, batch_size=5)
    assert (network.training, network.first.training, network.second.training) == (True, True, False)
    assert torch.equal(before, network.first.norm.get_buffer("running_mean"))
    torch.testing.assert_close(rates, predict(network, x, batch_size=28))
    with pytest.raises(InputError, match="leave nothing"):
        RetinaNetwork(2, frames=3, size=(8, 8), kernels=(7, 3))
    with pytest.raises(InputError, match="lie in a map of 4 x 4"):
        RetinaNetwork(1, frames=3, size=(8, 8), kernels=(3, 3, 1), positions=[[4, 0]])


@pytest.mark.parametrize("size", [(20, 17), (15, 50)])
def test_wide_filters_by_fourier_transform(size: tuple[int, int]) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    convolution = MapConvolution(5, 2, WIDE + 2).double()
    found = convolution(x)
    true = F.conv2d(x, convolution.weight, convolution.bias)
    assert found.shape == true.shape
    torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
    told = [x, convolution.weight, convolution.bias]
    pushed = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, told, pushed), torch.autograd.grad(true, told, pushed), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    with pytest.raises(InputError, match="does not fit"):
        convolution(x[..., : WIDE + 1, :])


def test_wide_filters_at_published_sizes() -> None:
    torch.manual_seed(5)
    convolution, x = RetinaNetwork(4).first.convolution.train(), torch.randn(2, 40, 50, 50)
    true = F.conv2d(x.double(), convolution.weight.double(), convolution.bias.double())
    torch.testing.assert_close(convolution(x).double(), true, rtol=0, atol=1e-5)
    plain = F.conv2d(x, convolution.weight, convolution.bias)
    assert torch.equal(convolution.eval()(x), plain)  # what rules of attribution know
    narrow = MapConvolution(5, 2, WIDE - 1)
    assert torch.equal(narrow(x[:, :5]), F.conv2d(x[:, :5], narrow.weight, narrow.bias))


def test_rules_answer_for_wide_filters() -> None:
    network = RetinaNetwork(2, frames=3, size=(22, 22), kernels=(WIDE + 2, 5)).eval()
    x = torch.randn((1, 3, 22, 22), generator=torch.Generator().manual_seed(6))
    told = {row.operation for row in backlight.AttnLRP(network).explain(x, 1).coverage}
    assert "conv" in told
    assert not any("fft" in name for name in told)
