"""Batches, lack of memory, biases, dtypes, inputs that are refused, and what is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import Spelled
from torch import Tensor, nn

from backlight.engine import READOUTS, Ascent, Line, Noise, WeightNoise, attribute
from backlight.errors import BacklightError, InputError, NonFiniteError, SiteError, UnknownNameError
from backlight.rules import pullback, soft_pullback

PATHS = {"point": None, "line": Line(4), "noise": Noise(4), "weights": WeightNoise(2, 2), "ascent": Ascent(2, 0.5)}


def cnn() -> nn.Sequential:
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LayerNorm(16), nn.Linear(16, 3)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 2, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rules", [pullback(), soft_pullback("relative")], ids=["pullback", "relative"])
def test_the_internal_batch_size_does_not_matter(path: str, rules: Any, x: Tensor) -> None:
    model = cnn()
    sizes = [
        attribute(model, x, [0, 1, 2, 0, 1], rules=rules, path=PATHS[path], internal_batch_size=size).value
        for size in (None, 1, 2, 7, 100)
    ]
    for other in sizes[1:]:
        assert torch.allclose(other, sizes[0], atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_batches_are_no_larger_than_asked(path: str, x: Tensor) -> None:
    seen: list[int] = []
    model = cnn()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    attribute(model, x, 0, path=PATHS[path], internal_batch_size=3)
    assert max(seen) == 3
    seen.clear()
    attribute(model, x, 0, path=PATHS[path])
    assert max(seen) == 5


class Small(nn.Module):
    """A network whose memory holds two samples."""

    def __init__(self, words: str, holds: int = 2) -> None:
        super().__init__()
        self.net, self.words, self.holds, self.batches = cnn(), words, holds, []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.holds:
            raise RuntimeError(self.words)
        self.batches.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: 12 bytes"]
)
def test_batches_that_do_not_fit_are_halved(path: str, words: str, x: Tensor) -> None:
    model = Small(words)
    found = attribute(model, x, [0, 1, 2, 0, 1], rules=soft_pullback("paper"), path=PATHS[path])
    assert max(model.batches) <= 2
    expected = attribute(model.net, x, [0, 1, 2, 0, 1], rules=soft_pullback("paper"), path=PATHS[path])
    assert torch.allclose(found.value, expected.value, atol=1e-12)
    assert found.cost.backwards == expected.cost.backwards


def test_other_errors_and_single_samples_are_not_halved(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="another error"):
        attribute(Small("another error"), x, 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        attribute(Small("out of memory", holds=0), x, 0)


def test_the_pullback_of_a_cnn_and_its_biases_make_up_the_score(x: Tensor) -> None:
    model = cnn()
    found = attribute(model, x, 1, rules=pullback(), bias=True)
    assert found.residual.abs().max() < 1e-10
    assert torch.allclose(found.scores, model(x)[:, 1], atol=1e-12)
    total = (found.value * x).flatten(1).sum(1) + found.bias
    assert torch.allclose(total, found.scores, atol=1e-10)
    value = attribute(model, x, 1, rules=pullback(), bias=True, readout="value")
    assert value.residual.abs().max() < 1e-10
    assert torch.allclose(value.value, found.value * x)


def test_the_residual_of_soft_gates_is_what_they_miss(x: Tensor) -> None:
    found = attribute(cnn(), x, 1, rules=soft_pullback("paper"), bias=True)
    missing = found.scores - (found.value * x).flatten(1).sum(1) - found.bias
    assert torch.allclose(found.residual, missing, atol=1e-12)
    assert found.residual.abs().min() > 1e-3
    assert attribute(cnn(), x, 1, rules=soft_pullback("paper")).residual is None


def test_the_share_of_the_biases_is_their_own_pullback() -> None:
    """W3 G2 W2 G1 b1 + W3 G2 b2 + b3, by explicit matrices."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    (w1, b1, w2, b2, w3, b3) = (p.detach() for p in model.parameters())
    g1 = torch.diag((w1 @ x[0] + b1 > 0).double())
    g2 = torch.diag((w2 @ g1 @ (w1 @ x[0] + b1) + b2 > 0).double())
    found = attribute(model, x, 1, rules=pullback(), bias=True)
    assert torch.allclose(found.value[0], (w3 @ g2 @ w2 @ g1 @ w1)[1], atol=1e-12)
    assert torch.allclose(found.bias[0], (w3 @ g2 @ w2 @ g1 @ b1 + w3 @ g2 @ b2 + b3)[1], atol=1e-12)


CONSTANTS = {
    "added": lambda z: z + 1.5,
    "reversed": lambda z: 2.0 - z,
    "subtracted": lambda z: z - torch.ones(6, dtype=z.dtype),
    "scaled when added": lambda z: torch.add(z, torch.ones(6, dtype=z.dtype), alpha=2),
    "concatenated": lambda z: torch.cat((z, torch.ones_like(z)), 1),
    "stacked": lambda z: torch.stack((z, torch.ones_like(z)), 2).flatten(1),
    "addmm": lambda z: torch.addmm(torch.ones(6, dtype=z.dtype), z, torch.eye(6, dtype=z.dtype)),
    "in place": lambda z: (z * 1).add_(3.0),
    "padded": lambda z: nn.functional.pad(z, (1, 1), value=2.0),
    "filled": lambda z: z.masked_fill(torch.arange(6) > 3, 2.0),
    "chosen": lambda z: torch.where(torch.arange(6) > 3, torch.full_like(z, 2.0), z),
    "raised": lambda z: z.clamp(min=0.7),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_in_the_network_are_biases(name: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    model = Spelled(lambda x: CONSTANTS[name](2 * x).sum(1, keepdim=True))
    found = attribute(model, x, 0, rules=pullback(), bias=True)
    assert found.residual.abs().max() < 1e-10
    plain = (CONSTANTS[name](torch.zeros_like(x))).sum(1)
    if name != "raised":
        assert torch.allclose(found.bias, plain, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in READOUTS if not name.startswith("token_")])  # those need tokens
def test_readouts_are_their_formulas(name: str, x: Tensor) -> None:
    model = cnn()
    gradient = attribute(model, x, 1).value
    expected = {
        "cotangent": gradient,
        "value": x * gradient,
        "difference": x * gradient,
        "positive": (x * gradient).clamp(min=0),
        "value_over_channels": (x * gradient).sum(1),
        "value_over_space": (x * gradient).sum((2, 3)),
    }[name]
    assert torch.allclose(attribute(model, x, 1, readout=name).value, expected, atol=1e-14)
    with pytest.raises(UnknownNameError, match="cotangent"):
        attribute(model, x, 1, readout="cotangents")


def test_float16_that_overflows_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False), nn.Linear(64, 2)).half()
    for layer in (model[0], model[1]):
        nn.init.constant_(layer.weight, 300.0)
    nn.init.constant_(model[2].weight, 300.0)
    with pytest.raises(NonFiniteError, match="bfloat16"):
        attribute(model, torch.full((1, 64), 1e-4).half(), 0)
    assert torch.isfinite(attribute(model.bfloat16(), torch.full((1, 64), 1e-4).bfloat16(), 0).value).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS)
def test_attributions_have_the_input_s_dtype(dtype: torch.dtype, path: str, x: Tensor) -> None:
    model = cnn().to(dtype)
    found = attribute(model, x.to(dtype), 1, rules=soft_pullback("paper"), path=PATHS[path])
    assert found.value.dtype == dtype
    assert found.value.shape == x.shape


@pytest.mark.parametrize(
    "inputs",
    [torch.tensor(1.0), torch.zeros(0, 3), (torch.ones(2, 3), torch.ones(3, 3)), (), torch.ones(2, 3).long()],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any) -> None:
    with pytest.raises(InputError):
        attribute(nn.Linear(3, 2), inputs, 0)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_have_at_least_one_sample(size: int) -> None:
    with pytest.raises(InputError):
        attribute(nn.Linear(3, 2), torch.ones(1, 3), 0, internal_batch_size=size)


def test_an_ascent_has_no_hidden_site(x: Tensor) -> None:
    with pytest.raises(SiteError, match="input"):
        attribute(cnn(), x, 0, path=Ascent(2), sites="0")


def test_a_score_that_does_not_depend_on_the_input_has_no_attribution() -> None:
    found = attribute(Spelled(lambda x: torch.ones(len(x), 2)), torch.randn(3, 4), 0)
    assert not found.value.any()
    assert found.scores.tolist() == [1.0, 1.0, 1.0]


def test_every_error_is_one_of_ours(x: Tensor) -> None:
    for call in ({"target": 99}, {"target": 0, "sites": "none"}, {"target": 0, "readout": "none"}):
        with pytest.raises(BacklightError):
            attribute(cnn(), x, **call)


def test_a_model_under_no_grad_or_inference_mode_is_explained(x: Tensor) -> None:
    model = cnn()
    expected = attribute(model, x, 1, rules=soft_pullback("paper")).value
    with torch.no_grad():
        assert torch.equal(attribute(model, x, 1, rules=soft_pullback("paper")).value, expected)
    model.requires_grad_(False)
    assert torch.equal(attribute(model, x, 1, rules=soft_pullback("paper")).value, expected)
