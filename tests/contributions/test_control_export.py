"""Copies with the edit in them: equal, loadable, independent; programs that run without Backlight; folded weights."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backlight.contributions.control import ChannelEdit, control, site_means, site_values
from backlight.contributions.control_export import controlled, folded, save_program
from backlight.errors import InputError, ModelError, SiteError, UnknownNameError


class Net(nn.Module):
    """A batch norm, one ReLU for all that works in place, tokens, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.fc1, self.fc2, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x))).flatten(2).mT
        return self.head(x.add(self.fc2(self.relu(self.fc1(x)))).mean(1))


@pytest.fixture
def net() -> Net:
    net = Net().eval()
    nn.init.normal_(net.norm.running_mean)
    nn.init.normal_(net.norm.weight)
    return net


def edits_of(net: Net, x: Tensor) -> dict[str, ChannelEdit]:
    means, values = site_means(net, x, ["norm"])["norm"], site_values(net, x, ["fc2:input"])["fc2:input"]
    return {
        "norm": ChannelEdit([0, 4], fill="mean", values=means),
        "fc2:input": ChannelEdit([1, 2, 8], "preserve", fill="resample", values=values, layout="tokens"),
        "relu#0": ChannelEdit([5], layout="maps"),
    }


def test_the_copy_is_the_controlled_network(net: Net) -> None:
    x, weights, kind = torch.randn(4, 3, 7, 7), copy.deepcopy(net.state_dict()), type(net.norm)
    edits, expected = edits_of(net, x), net(x)
    twin = controlled(net, edits, x)
    with control(net, edits):
        inside = net(x)
    for model in (twin, copy.deepcopy(twin)):
        for _ in range(2):  # calls are counted anew
            assert torch.equal(model(x), inside)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in twin.modules())
    assert isinstance(twin, Net)
    assert isinstance(twin.norm, nn.BatchNorm2d)
    assert torch.equal(net(x), expected)
    assert type(net.norm) is kind
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    twin.load_state_dict(net.state_dict())
    other = Net().eval()
    other.load_state_dict(twin.state_dict())
    twin.load_state_dict({name: torch.zeros_like(value) for name, value in weights.items()})
    assert torch.equal(net(x), expected)
    assert torch.equal(other(x), expected)


def test_calls_by_keyword_and_tuples() -> None:
    class Inner(nn.Module):
        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"a": x + 1, "b": x}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(x=x)
            return found["a"] * found["b"]

    x, sites = torch.randn(2, 4), ["inner:input", "inner"]
    model = Outer()
    for site in sites:
        edits = {site: ChannelEdit([1])}
        with control(model, edits):
            inside = model(x)
        assert torch.equal(controlled(model, edits, x)(x), inside)
        assert not torch.equal(inside, model(x))


def test_a_program_runs_where_there_is_no_backlight(net: Net, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 7, 7)
    edits = edits_of(net, x)
    path = save_program(net, edits, x[:1], tmp_path / "net.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys; sys.modules['backlight'] = None; import torch\n"
        "program = torch.export.load('net.pt2').module()\n"
        "torch.save([program(torch.load('x.pt')), program(torch.load('x.pt')[:3])], 'y.pt')\n"
        "try:\n    import backlight\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit('it is here')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad(), control(net, edits):
        assert torch.allclose(torch.load(tmp_path / "y.pt")[0], net(x), atol=1e-6)
        assert torch.allclose(torch.load(tmp_path / "y.pt")[1], net(x[:3]), atol=1e-6)
    assert path == tmp_path / "net.pt2"


@pytest.mark.parametrize("address", ["norm", "conv", "fc1", "fc2:input", "head:input", "head"])
@pytest.mark.parametrize("action", ["ablate", "preserve"])
def test_folded_weights_are_the_edit(net: Net, address: str, action: str) -> None:
    x, weights = torch.randn(4, 3, 7, 7), copy.deepcopy(net.state_dict())
    for values in (None, site_means(net, x, [address])[address].float()):
        edits = {address: ChannelEdit([0, 2], action, "zero" if values is None else "mean", values)}
        twin = folded(net, edits)
        with control(net, edits):
            assert torch.allclose(twin(x), net(x), atol=1e-6)
        assert not torch.allclose(twin(x), net(x), atol=1e-3)
        if values is None:
            plain = Net().eval()
            plain.load_state_dict(twin.state_dict())  # which needs nothing of Backlight
            assert torch.equal(plain(x), twin(x))
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())


def test_folding_leaves_tied_weights_elsewhere(net: Net) -> None:
    net.fc1 = nn.Linear(6, 6)
    net.fc2 = nn.Linear(6, 6)
    net.fc2.weight = net.fc1.weight
    x, edits = torch.randn(2, 3, 7, 7), {"fc2:input": ChannelEdit([1])}
    with control(net, edits):
        assert torch.allclose(folded(net, edits)(x), net(x), atol=1e-6)


def test_what_is_refused(net: Net, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 7, 7)
    for address, edit, why in [
        ("relu", ChannelEdit([0]), "no weights"),
        ("fc1", ChannelEdit([0], class_token=False), "every position"),
        ("norm", ChannelEdit([0], fill="mean", values=torch.zeros(6, 5, 5)), "one number"),
        ("fc1", ChannelEdit([0], fill="resample", values=torch.zeros(2, 25, 9)), "one number"),
        ("conv:input", ChannelEdit([0], fill="mean", values=torch.zeros(3)), "padding"),
        ("norm:input", ChannelEdit([0]), "no weights"),
        ("conv#0", ChannelEdit([0]), "every call"),
    ]:
        with pytest.raises(SiteError, match=why):
            folded(net, {address: edit})
    with pytest.raises(UnknownNameError, match="norm"):
        folded(net, {"nrom": ChannelEdit([0])})
    with pytest.raises(UnknownNameError, match="norm"):
        controlled(net, {"nrom": ChannelEdit([0], layout="maps")}, x)
    with pytest.raises(InputError, match="channel 6"):
        controlled(net, {"norm": ChannelEdit([6])}, x)
    with pytest.raises(SiteError, match="not reached"):
        controlled(net, {"norm#1": ChannelEdit([0])}, x)
    with pytest.raises(InputError, match="pt2"):
        save_program(net, {"norm": ChannelEdit([0])}, x, tmp_path / "net.pt")

    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(ModelError, match="cannot be exported"):
        save_program(Odd().eval(), {"norm": ChannelEdit([0])}, x, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
