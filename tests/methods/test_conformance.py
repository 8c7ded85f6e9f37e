"""What every method of the registry keeps: the conformance suite. New methods are tested from their registry line."""

from __future__ import annotations

import gc
import weakref
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from exceptions import CANNOT
from networks import SPELLINGS, Modules, spelled
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import backlight
from backlight.engine import Attribution
from backlight.errors import UnknownNameError
from backlight.methods import METHODS, Method, method

# smaller settings than the defaults, for speed: only where a method has the setting, or for one method
SMALL = {"n_steps": 3, "n_samples": 3, "n_weights": 2, "step": 0.5, "temperature": 0.8} | {
    "DeepLIFT.strict": False, "AblationCAM.strict": False, "KernelSHAP.n_samples": 20, "LIME.n_samples": 20,
    "patch": 4, "window": 4, "stride": 2, "alpha": 1e-4
}  # fmt: skip


def made(name: str, model: nn.Module, **settings: Any) -> Method:
    """A method with small settings."""
    cls = method(name)
    keys = {key: f"{name}.{key}" if f"{name}.{key}" in SMALL else key for key in cls.settings()}
    return cls(model, **{**{key: SMALL[known] for key, known in keys.items() if known in SMALL}, **settings})


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(autouse=True)
def exceptions(request: pytest.FixtureRequest) -> None:
    """What a method cannot keep is declared, with its reason, and has to fail."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or "name" not in parameters.params:
        return
    rest = "-".join(str(value) for key, value in parameters.params.items() if key != "name")
    for name, test, pattern, reason in CANNOT:
        if (name, test) == (parameters.params["name"], request.node.originalname) and fnmatchcase(rest, pattern):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture
def x() -> Tensor:
    return images()


@cache
def plain_explanation(name: str) -> Attribution:
    """What a method says of the network that is written in modules."""
    return made(name, spelled("modules")).explain(images(), [0, 1, 2])


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", METHODS)
def test_the_spelling_of_a_network_does_not_matter(name: str, spelling: str, x: Tensor) -> None:
    other = spelled(spelling)
    assert torch.equal(spelled("modules")(x), other(x.clone()))
    expected = plain_explanation(name)
    found = made(name, other).explain(x, [0, 1, 2])
    assert (found.value - expected.value).abs().max() < 1e-10
    assert found.value.abs().max() > 1e-4
    for operation in ("relu", "max_pool") if method(name).engine else ():
        label = next(row.rule for row in expected.coverage if row.operation == operation)
        if label not in ("gradient", "exact"):
            assert found.coverage.calls(rule=label) == expected.coverage.calls(rule=label), operation


@pytest.mark.parametrize("name", METHODS)
def test_every_operation_is_in_the_table(name: str, x: Tensor) -> None:
    table = made(name, Modules().double().eval()).explain(x, 1).coverage
    if not method(name).engine:
        assert list(table) == []  # an adapter of another library, which has no table
        return
    assert table.uncovered == ()
    counts = {operation: table.calls(operation) for operation in ("relu", "max_pool", "adaptive_max_pool", "conv")}
    passes = counts["max_pool"]
    assert passes >= 1
    assert counts == {"relu": 3 * passes, "max_pool": passes, "adaptive_max_pool": passes, "conv": 2 * passes}
    assert table.calls("linear") == 2 * passes
    assert table.calls("add") == passes


@pytest.mark.parametrize("name", METHODS)
def test_completeness_is_kept_where_it_is_claimed(name: str, x: Tensor) -> None:
    model = spelled("modules")
    kind = method(name)(model).completeness
    score = model(x)[:, 1].detach()
    if kind == "line":
        found = made(name, model, n_steps=60).explain(x, 1)
        difference = score - model(torch.zeros_like(x))[:, 1].detach()
        assert torch.allclose(found.value.flatten(1).sum(1) + found.residual, difference, atol=1e-10)
        assert (found.residual / difference.abs().clamp(min=0.1)).abs().max() < 2e-2
    elif kind == "bias":
        found = made(name, model).explain(x, 1, bias=True)
        assert found.residual.abs().max() < 1e-10
        share = found.value if made(name, model).readout == "value" else found.value * x
        assert torch.allclose(share.flatten(1).sum(1) + found.bias, score, atol=1e-10)
    else:
        assert kind is None


def hooks_of(model: nn.Module) -> list[int]:
    names = [key for key in vars(global_hooks) if key.startswith("_global_") and key.endswith("hooks")]
    counts = [len(getattr(global_hooks, key)) for key in names]
    assert len(counts) >= 4
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return counts + [len(getattr(module, key)) for module in model.modules() for key in own]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model, and of the random generators, that a method must not change."""
    return {
        "hooks": hooks_of(model),
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "grad mode": torch.is_grad_enabled(),
        "modes": torch.overrides._get_current_function_mode_stack(),
    }


class Breaks(nn.Module):
    """Raises inside forward, from the call on that it is told."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.net, self.bn, self.after, self.calls = Modules(), nn.BatchNorm2d(3), after, 0

    def forward(self, x: Tensor) -> Tensor:
        object.__setattr__(self, "calls", self.calls + 1)
        y = self.net(self.bn(x))
        if self.calls > self.after:
            raise KeyboardInterrupt
        return y


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_behind(name: str, fails: bool, x: Tensor) -> None:
    model = Breaks(after=0 if fails else 1000).double().eval()
    model.net.net[0].train()
    model.net.net[7].weight.requires_grad_(False)
    model.net.net[9].bias.grad = torch.ones(3, dtype=torch.float64)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before, rng = state_of(model), torch.get_rng_state()
    if fails:
        with pytest.raises(KeyboardInterrupt):
            made(name, model).attribute(x, 1)
    else:
        made(name, model).attribute(x, 1)
    after = state_of(model)
    assert {key: after[key] for key in before if key != "grads"} == {k: before[k] for k in before if k != "grads"}
    assert all(a is b for a, b in zip(before["grads"], after["grads"], strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("name", METHODS)
def test_no_tensor_stays_alive(name: str, x: Tensor) -> None:
    model = Modules().double().eval()
    seen: list[weakref.ref] = []

    def remember(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(weakref.ref(output))

    handles = [module.register_forward_hook(remember) for module in model.net]
    explainer = made(name, model)
    result = explainer.attribute(x, 1)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert len(seen) >= 10
    assert [ref for ref in seen if ref() is not None] == []
    assert not result.requires_grad
    assert result.grad_fn is None


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_samples(name: str, x: Tensor) -> None:
    model = spelled("F.relu")
    explainer = made(name, model)
    target = [0, 1, 2]
    whole = explainer.attribute(x, target)
    order = torch.tensor([2, 0, 1])
    turned = explainer.attribute(x[order], torch.tensor(target)[order])
    assert torch.allclose(turned, whole[order], atol=1e-12)
    for n in range(3):
        assert torch.allclose(explainer.attribute(x[n : n + 1], target[n]), whole[n : n + 1], atol=1e-12)
    for size in (1, 2, 100):
        assert torch.allclose(explainer.attribute(x, target, internal_batch_size=size), whole, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_a_second_call_gives_the_same(name: str, x: Tensor) -> None:
    explainer = made(name, spelled("F.relu"))
    first = explainer.attribute(x, 1)
    torch.manual_seed(123)
    made("SoftPullback", explainer.model).attribute(x, 2)
    assert torch.equal(explainer.attribute(x, 1), first)


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_agrees_with_double(name: str, x: Tensor) -> None:
    double = made(name, spelled("modules")).attribute(x, 1)
    single = made(name, spelled("modules").float()).attribute(x.float(), 1)
    assert single.dtype == torch.float32
    assert ((single - double).norm() / double.norm()).item() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_runs_and_points_the_same_way(name: str, dtype: torch.dtype, x: Tensor) -> None:
    double = made(name, spelled("modules")).attribute(x, 1)
    half = made(name, spelled("modules").to(dtype)).attribute(x.to(dtype), 1)
    assert half.dtype == dtype
    assert torch.cosine_similarity(half.double().flatten(), double.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_autocast_runs_and_points_the_same_way(name: str, x: Tensor) -> None:
    model = spelled("modules").float()
    single = made(name, model).attribute(x.float(), 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(name, model).attribute(x.float(), 1)
    assert mixed.dtype == torch.float32
    assert torch.cosine_similarity(mixed.flatten(), single.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    cls = method(name)
    assert cls is method(name.lower()) is getattr(backlight, name)
    assert cls.__name__ == name
    assert cls.source
    assert cls.formula
    assert cls.__doc__
    assert "model" not in cls.settings()
    assert eval(cls.passes, {}, cls.settings()) >= 1
    assert name in dir(backlight)
    keyword = cls(nn.Linear(2, 2), strict=False)
    assert keyword.strict is False


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_is_what_the_method_says(name: str, x: Tensor) -> None:
    explainer = made(name, spelled("F.relu"))
    found = explainer.explain(x, 1)
    passes = eval(explainer.passes, {}, {key: getattr(explainer, key) for key in explainer.settings()})
    if explainer.engine:
        assert found.cost.backwards == passes * len(x)
    else:
        assert found.cost.forwards >= passes * len(x)


def test_an_unknown_method_lists_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="SoftPullback"):
        method("soft_pulback")
    with pytest.raises(AttributeError, match="Softpulback"):
        _ = backlight.Softpulback
    assert method("soft-pullback") is method("SOFT_PULLBACK") is backlight.SoftPullback
