"""The coverage table, strict runs, overrides by layer, and what a function mode cannot see into."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from probes import Spelled, pull
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import RuleSet, attribute, running
from backlight.engine.coverage import Coverage
from backlight.errors import ModelError, UncoveredOperationError, UnknownNameError
from backlight.methods import method
from backlight.rules import excitation_pullback, gradient, guided, pullback, soft_pullback


class Net(nn.Module):
    """Two layers, three ReLUs (one functional), a pool; all of them named."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.layer4 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = F.relu(self.pool(x) - 0.3)
        x = self.relu(self.layer4(x) - 0.2)
        return self.fc(x.flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 2, 8, 8, dtype=torch.float64)


def test_the_table_counts_every_call_by_rule(net: Net, x: Tensor) -> None:
    table = attribute(net, x, 0, rules=soft_pullback("paper")).coverage
    assert {(row.operation, row.rule): row.calls for row in table} == {
        ("relu", "soft gate"): 4,
        ("conv", "exact"): 2,
        ("sub", "exact"): 2,
        ("max_pool", "soft routing"): 1,
        ("flatten", "exact"): 1,
        ("linear", "exact"): 1,
    }
    (relu,) = (row for row in table if row.operation == "relu")
    assert set(relu.layers) == {"relu", "", "layer4.1"}
    assert table.calls("relu") == table.calls(rule="soft gate") == 4
    assert table.uncovered == ()
    assert str(table).splitlines()[0].split() == ["operation", "rule", "calls"]
    assert any(line.split() == ["relu", "soft", "gate", "4"] for line in str(table).splitlines())


def test_tables_of_several_passes_add_up(net: Net, x: Tensor) -> None:
    single = attribute(net, x, 0, rules=pullback()).coverage
    double = attribute(net, x, 0, rules=pullback(), internal_batch_size=1).coverage
    assert {(r.operation, r.rule): 2 * r.calls for r in single} == {(r.operation, r.rule): r.calls for r in double}
    merged = Coverage()
    merged.merge(single)
    merged.merge(double)
    assert merged.calls("relu") == 3 * single.calls("relu")
    assert {r.operation: set(r.layers) for r in merged} == {r.operation: set(r.layers) for r in single}


@pytest.mark.parametrize(
    ("function", "name"), [(torch.exp, "exp"), (lambda z: z.cumprod(1), "cumprod"), (torch.sin, "sin")]
)
@pytest.mark.parametrize("rules", [pullback, soft_pullback, excitation_pullback])
def test_a_strict_run_names_the_layer_and_the_operation(
    function: Callable[[Tensor], Tensor], name: str, rules: Callable[[], RuleSet]
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Spelled(function)))
    x = torch.rand(2, 3)
    with pytest.raises(UncoveredOperationError, match=rf"{name}.*1\.1"):
        attribute(model, x, 0, rules=rules())
    table = attribute(model, x, 0, rules=rules(), strict=False).coverage
    (row,) = table.uncovered
    assert (row.operation, row.rule, row.calls, row.layers) == (name, "gradient (no rule)", 1, ("1.1",))
    assert attribute(model, x, 0, rules=gradient()).coverage.calls(name, "gradient") == 1


def test_the_gradient_passes_where_no_rule_is_asked_for() -> None:
    z = torch.rand(2, 3, dtype=torch.float64)
    found = attribute(Spelled(torch.exp), z, 0, rules=pullback(), strict=False).value
    assert torch.allclose(found[:, 0], z[:, 0].exp())


def test_products_of_signals_need_a_rule() -> None:
    bilinear = Spelled(lambda x: F.bilinear(x, x, torch.ones(1, 3, 3)))
    with pytest.raises(UncoveredOperationError, match="bilinear"):
        pull(bilinear, torch.randn(2, 3), pullback())
    linear = Spelled(lambda x: F.bilinear(x, torch.ones(2, 3), torch.ones(1, 3, 3)))
    assert torch.equal(pull(linear, torch.randn(2, 3), pullback()), torch.full((2, 3), 3.0))


def phi(u: Tensor) -> Tensor:
    return (1 + torch.erf(u / 2**0.5)) / 2


def test_temperatures_follow_operations_and_layers() -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.ReLU())
    model.add_module("layer4", nn.Sequential(nn.ReLU()))
    z = torch.rand(1, 5, dtype=torch.float64) + 0.1  # positive: ReLU changes nothing on the way
    rules = soft_pullback({"layer4": 1.0, "relu": 0.3})
    assert torch.allclose(pull(model, z, rules), phi(z / 0.3) * phi(z / 1.0), atol=1e-12)
    nested = soft_pullback({"layer4": {"relu": 2.0}})
    assert torch.allclose(pull(model, z, nested), phi(z / 0.6) * phi(z / 2.0), atol=1e-12)


def test_the_last_matching_override_wins() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.ReLU()))
    z = torch.rand(1, 5, dtype=torch.float64) + 0.1
    rules = soft_pullback(0.3).override({"1": pullback(), "1.1": soft_pullback(2.0)})
    assert torch.allclose(pull(model, z, rules), phi(z / 0.3) * phi(z / 2.0), atol=1e-12)
    stars = pullback().override({"*": soft_pullback(1.0)}).override({"1.?": pullback()})
    assert torch.allclose(pull(model, z, stars), phi(z), atol=1e-12)
    again = rules.override({"1.1": pullback()})
    assert torch.allclose(pull(model, z, again), phi(z / 0.3), atol=1e-12)


def test_an_override_may_allow_the_gradient_in_one_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Spelled(torch.exp), nn.ReLU()).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    table = attribute(model, x, 0, rules=pullback().override({"1": gradient()})).coverage
    assert table.calls("exp", "gradient") == 1


def test_an_unknown_layer_lists_close_matches(net: Net, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="layer4") as raised:
        attribute(net, x, 0, rules=soft_pullback({"layr4": 1.0}))
    assert raised.value.given == "layr4"
    with pytest.raises(UnknownNameError, match="close matches: paper"):
        soft_pullback("papr")


@pytest.mark.parametrize("kind", ["scripted", "compiled", "compiled in place", "data-parallel"])
@pytest.mark.parametrize("place", ["model", "part"])
def test_opaque_models_are_refused(kind: str, place: str, net: Net, x: Tensor) -> None:
    wrap = {
        "scripted": torch.jit.script,
        "compiled": torch.compile,
        "compiled in place": lambda m: (m.compile(), m)[1],
        "data-parallel": nn.DataParallel,
    }[kind]
    if place == "model":
        model = wrap(net)
    else:
        model = copy.deepcopy(net)
        model.layer4 = wrap(model.layer4)
    with pytest.raises(ModelError, match=rf"{kind.split()[0]}.*plain module"):
        attribute(model, x, 0, rules=pullback())


def test_the_plain_module_of_a_compiled_one_is_explained(net: Net, x: Tensor) -> None:
    expected = attribute(net, x, 0, rules=pullback()).value
    assert torch.equal(attribute(torch.compile(net)._orig_mod, x, 0, rules=pullback()).value, expected)


def test_two_threads_with_two_rule_sets_do_not_meet(net: Net, x: Tensor) -> None:
    sets = {"SoftPullback": soft_pullback("paper"), "GuidedBackprop": guided(), "Pullback": pullback()}
    expected = {name: attribute(net, x, 1, rules=rules).value for name, rules in sets.items()}
    barrier, failures = threading.Barrier(len(sets)), []

    def work(name: str) -> None:
        barrier.wait()
        for _ in range(8):
            if not torch.equal(attribute(net, x, 1, rules=sets[name]).value, expected[name]):
                failures.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_runs_may_be_nested(net: Net, x: Tensor) -> None:
    expected = attribute(net, x, 1, rules=pullback()).value
    with running(net, soft_pullback("paper")):
        inner = attribute(net, x, 1, rules=pullback()).value
    assert torch.equal(inner, expected)


def test_a_run_does_not_outlive_its_context(net: Net, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with pytest.raises(ZeroDivisionError), running(net, soft_pullback("paper")):
        raise ZeroDivisionError
    (plain,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    assert torch.equal(method("Saliency")(net).attribute(x, 1), plain)
    assert not torch.equal(method("SoftPullback")(net).attribute(x, 1), plain)
