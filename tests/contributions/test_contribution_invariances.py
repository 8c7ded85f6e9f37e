"""What contributions must not depend on: batches, spelling, dtype, other sites; and what they leave behind: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contribution_networks import SITES, images, residual_network
from probes import Spelled
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from backlight.contributions import (
    ALGORITHMS,
    ChannelEdit,
    HiddenIntegratedGradients,
    InputGrad,
    SmoothGrad,
    contribute,
    contribution_maps,
)
from backlight.contributions.control import site_means
from backlight.contributions.control_export import controlled
from backlight.contributions.directional import directional_derivative
from backlight.engine import Contrast, Entropy, Logit, Probability, Surprisal, TopK, Unit
from backlight.errors import BacklightError, ModelError, UncoveredOperationError
from backlight.rules import pullback

KINDS: dict[str, Any] = {
    **dict.fromkeys(ALGORITHMS),
    "straight": HiddenIntegratedGradients(3, "hidden"),
    "smooth paths": SmoothGrad(HiddenIntegratedGradients(2), 2),
}
for _name in ALGORITHMS:
    KINDS[_name] = HiddenIntegratedGradients(4) if _name == "HiddenIntegratedGradients" else _name
HIDDEN = tuple(site for site in SITES if site != "input")


def equal(a: Any, b: Any, rows: Any = slice(None), tolerance: float = 1e-11) -> bool:
    parts = [(a.values, b.values), (a.activations, b.activations), (a.gradients, b.gradients), (a.residual, b.residual)]
    scores = [(x, y) for x, y in ((a.scores, b.scores), (a.outputs, b.outputs)) if x is not None]
    pairs = [(p[site], q[site]) for p, q in parts for site in q] + scores
    return all(torch.allclose(p[rows].to(q.dtype), q, rtol=tolerance, atol=tolerance) for p, q in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_see_its_batch(kind: str) -> None:
    model, x = residual_network(), images(4)
    settings: dict[str, Any] = {"algorithm": KINDS[kind], "baseline": images(7)[3:]}
    whole = contribute(model, x, HIDDEN, [0, 2, 1, 1], **settings)
    for size in (1, 3):
        assert equal(whole, contribute(model, x, HIDDEN, [0, 2, 1, 1], internal_batch_size=size, **settings)), size
    order = torch.tensor([2, 0, 3])
    settings["baseline"] = settings["baseline"][order]
    assert equal(whole, contribute(model, x[order], HIDDEN, [1, 0, 1], **settings), order)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_above_and_below_each_other_are_read_as_alone(kind: str) -> None:
    model, x = residual_network(), images(2)
    together = contribute(model, x, SITES, algorithm=KINDS[kind])
    assert list(together.values) == list(SITES)
    for site in SITES:
        assert equal(together, contribute(model, x, site, algorithm=KINDS[kind])), site
    assert equal(together, contribute(model, x, SITES[::-1], algorithm=KINDS[kind]))


def shared(relu: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda net, x: net.head(relu(net.b(relu(net.a(x)))).flatten(1))


SPELLINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "functional": lambda net, x: net.head(F.relu(net.b(F.relu(net.a(x)))).flatten(1)),
    "in place": lambda net, x: net.head(torch.relu_(net.b(net.a(x).relu_())).flatten(1)),
    "clamped": lambda net, x: net.head(net.b(net.a(x).clamp(min=0)).clamp_(min=0).flatten(1)),
    "one module": shared(nn.ReLU()),
    "one module in place": shared(nn.ReLU(inplace=True)),
}


class Net(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(64, 3)
        self.spelled = forward
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.spelled(self, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_spelling_does_not_matter(kind: str) -> None:
    x, sites = images(2), ("a", "b", "b:input", "head:input")
    first, *others = (
        contribute(Net(spelling), x, sites, algorithm=KINDS[kind], baseline=0.1) for spelling in SPELLINGS.values()
    )
    assert all(equal(first, other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_agrees_with_double(kind: str) -> None:
    model, x = residual_network(), images(2)
    wide = contribute(model, x, HIDDEN, algorithm=KINDS[kind])
    single = contribute(model.float(), x.float(), HIDDEN, algorithm=KINDS[kind])
    assert all(value.dtype == torch.float32 for value in single.values.values())
    assert equal(single, wide, tolerance=2e-4)


def test_sums_of_halves_are_taken_in_single_precision() -> None:
    model, x = residual_network().bfloat16(), images(2).bfloat16()
    for kind in ("ActGrad", "HiddenIntegratedGradients", "straight"):
        found = contribute(model, x, HIDDEN, algorithm=KINDS[kind])
        assert all(value.dtype == torch.float32 for value in found.values.values())
        assert all(value.dtype == torch.bfloat16 for value in found.activations.values())
        exact = contribute(residual_network(), images(2), HIDDEN, algorithm=KINDS[kind])
        for site in HIDDEN:
            assert (found.values[site] - exact.values[site]).norm() < 0.2 * exact.values[site].norm(), (kind, site)


def state(model: nn.Module) -> tuple[Any, ...]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    tensors = [t.clone() for t in (*model.parameters(), *model.buffers())]
    return hooks, flags, [p.grad for p in model.parameters()], tensors, [sorted(vars(m)) for m in model.modules()]


def same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    plain = all(before[k] == after[k] for k in (0, 1, 2, 4))
    return plain and all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind(kind: str) -> None:
    model, x = residual_network(), images(2).requires_grad_()
    model.fc.bias.requires_grad_(False)
    before, random = state(model), torch.get_rng_state()
    found = contribute(model, x, SITES, algorithm=KINDS[kind])
    assert same(before, state(model))
    assert torch.equal(random, torch.get_rng_state())
    assert x.grad is None
    assert not any(value.requires_grad for value in found.values.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [0, 1])
def test_nothing_is_left_behind_by_an_exception(kind: str, call: int) -> None:
    model, x, calls = residual_network(), images(2), [0]
    if kind == "ActGrad" and call == 1:
        return  # a single pass

    def fail(y: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > call:
            raise KeyboardInterrupt
        return y[:, 0]

    before = state(model)
    if kind in ("InputGrad", "ActNormGrad") and call == 1:
        contribute(model, x, SITES, fail, algorithm=KINDS[kind])
    else:
        with pytest.raises(KeyboardInterrupt):
            contribute(model, x, SITES, fail, algorithm=KINDS[kind])
    assert same(before, state(model))
    assert torch.is_grad_enabled()


class Results(TorchDispatchMode):
    """The memory of every result of an operation, forward or backward, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.numel():
                storage = value.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    @property
    def alive(self) -> int:
        self.sizes = {reference: size for reference, size in self.sizes.items() if not reference.expired()}
        return sum(self.sizes.values())


@pytest.mark.parametrize(
    "algorithm", [HiddenIntegratedGradients, lambda n: SmoothGrad(HiddenIntegratedGradients(2), n)]
)
def test_memory_does_not_grow_with_the_steps(algorithm: Callable[[int], Any]) -> None:
    def most(n_steps: int) -> int:
        model, found = residual_network(), [0]
        with Results() as results:
            model.fc.register_forward_hook(lambda *_: found.append(results.alive))
            contribute(model, images(2), ("stem", "blocks.0", "blocks.1"), algorithm=algorithm(n_steps))
        return max(found)

    few, many = most(4), most(12)
    one_step = 3 * 2 * 4 * 16 * 8  # activations of all sites at one point
    assert few > 3 * one_step
    assert many < few + one_step / 2


TARGETS = {
    "class": 1,
    "top k": TopK(2),
    "top k probability": TopK(2, probability=True),
    "probability": Probability(),
    "floating probability": Probability(floating=True),
    "entropy": Entropy(),
    "contrast": Contrast(),
    "contrast of two": Contrast(2, 0),
    "surprisal": Surprisal(torch.zeros(3), torch.eye(3) + 0.5),
    "function": lambda y: y.square().sum(1),
    "hidden unit": Unit("blocks.1", 2),
    "floating": Logit(floating=True),
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_complete(target: str) -> None:
    algorithm = HiddenIntegratedGradients(60)
    found = contribute(residual_network(), images(2), "stem", TARGETS[target], algorithm=algorithm, baseline=3.0)
    change = (found.scores - found.baseline_scores).abs().max()
    assert change > 1e-3
    assert found.residual["stem"].abs().max() < 0.05 * change
    assert torch.allclose(
        found.values["stem"].flatten(1).sum(1) + found.residual["stem"], found.scores - found.baseline_scores
    )


def test_the_class_is_that_of_the_input_or_floats_along_the_path() -> None:
    """y = (1, 2 t): class 1 at t = 1, class 0 below t = 1/2. Fixed, 2 - 0 is distributed; floating, max: 2 - 1."""
    unit = nn.Identity()
    model = Spelled(lambda x: torch.cat([torch.ones_like(x), 2 * unit(x)], 1), unit)
    x = torch.ones(1, 1, dtype=torch.float64)
    algorithm = HiddenIntegratedGradients(100)
    fixed = contribute(model, x, "modules_.0", algorithm=algorithm)
    floating = contribute(model, x, "modules_.0", Logit(floating=True), algorithm=algorithm)
    assert fixed.values["modules_.0"].item() == pytest.approx(2, abs=1e-12)
    assert (fixed.scores.item(), fixed.baseline_scores.item()) == (2, 0)
    assert floating.values["modules_.0"].item() == pytest.approx(1, abs=0.011)  # half a step at the kink
    assert (floating.scores.item(), floating.baseline_scores.item()) == (2, 1)
    other = contribute(model, x, "modules_.0", 0, algorithm=algorithm)
    assert other.values["modules_.0"].item() == 0


def test_further_arguments_follow_their_samples() -> None:
    first = nn.Linear(3, 4).double()
    model = Spelled(lambda x, gain, shift: torch.tanh(first(x)) * gain[:, None] + shift, first)
    x, gain, shift = torch.randn(3, 3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]).double(), torch.ones(4)
    for algorithm in ("HiddenIntegratedGradients", "InputGrad", HiddenIntegratedGradients(2, "hidden")):
        given: dict[str, Any] = {"algorithm": algorithm, "baseline": 0.5}
        whole = contribute(model, x, "modules_.0", 1, additional_forward_args=(gain, shift), **given)
        split = contribute(
            model, x, "modules_.0", 1, additional_forward_args=(gain, shift), internal_batch_size=1, **given
        )
        assert equal(whole, split)


def test_operations_without_a_rule_are_told() -> None:
    model = Spelled(lambda x: torch.cumsum(torch.erfinv(x.clamp(-0.5, 0.5)), 1).flatten(1))
    with pytest.raises(UncoveredOperationError, match="erfinv"):
        contribute(model, images(1), "input", 0, rules=pullback())
    found = contribute(model, images(1), "input", 0, rules=pullback(), strict=False, algorithm=InputGrad())
    assert any(row.operation == "erfinv" for row in found.coverage.uncovered)
    with pytest.raises(BacklightError):
        contribute(model, images(1), "nowhere", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_numbers_of_the_cpu(kind: str) -> None:
    model, x = residual_network(), images(2)
    here = contribute(model, x, HIDDEN, algorithm=KINDS[kind])
    there = contribute(model.cuda(), x.cuda(), HIDDEN, algorithm=KINDS[kind])
    for site in HIDDEN:
        assert torch.allclose(here.values[site], there.values[site].cpu(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.Dropout(0.5)])
def test_a_network_that_would_draw_or_write_is_refused(module: nn.Module) -> None:
    """One pass in training mode would move the user's running statistics, and mix the samples of a batch."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(3, 3, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = {
        "contribute": lambda: contribute(model, x, "2"),
        "contribution_maps": lambda: contribution_maps(model, x, "2", [0]),
        "directional_derivative": lambda: directional_derivative(model, x, x, "2"),
        "site_means": lambda: site_means(model, x, ["2"]),
        "controlled": lambda: controlled(model, {"2": ChannelEdit([0])}, x),
    }
    for name, call in calls.items():
        model.train()
        with pytest.raises(ModelError, match="training mode"):
            call()
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), name
        model.eval()
        call()
