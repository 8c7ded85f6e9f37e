"""Small convolutional networks as lists of steps, and as torch modules. Nothing of Backlight is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": F.relu, "elu": F.elu, "leaky_relu": F.leaky_relu, "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh,
    "relu6": F.relu6, "hardswish": F.hardswish,
}  # fmt: skip


@dataclass
class Network:
    """Steps (kind, numbers of the values that it reads, settings); value 0 is the input, value n + 1 that of step n."""

    channels: int
    size: tuple[int, ...]
    seed: int = 0
    bias_scale: float = 0.4
    steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # for their shapes

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.values.append(torch.zeros(1, self.channels, *self.size, dtype=torch.float64))

    def width(self, x: int) -> int:
        return self.values[x].shape[1]

    def space(self, x: int) -> tuple[int, ...]:
        return tuple(self.values[x].shape[2:])

    @property
    def rank(self) -> int:
        return len(self.size)

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def step(self, kind: str, *inputs: int, **settings: Any) -> int:
        self.steps.append((kind, inputs, settings))
        self.values.append(Operation(kind, settings)(*(self.values[x] for x in inputs)))
        return len(self.steps)

    def conv(
        self, x: int, width: int, kernel: int | tuple[int, ...] = 3, stride: int = 1, padding: Any = None,
        dilation: int = 1, groups: int = 1, bias: bool = True,
    ) -> int:  # fmt: skip
        kernel = (kernel,) * self.rank if isinstance(kernel, int) else kernel
        padding = tuple(dilation * (k - 1) // 2 for k in kernel) if padding is None else padding
        weight = self.draw(width, self.width(x) // groups, *kernel)
        weight *= (1.6 / weight[0].numel()) ** 0.5
        offset = self.draw(width, scale=self.bias_scale) if bias else None
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return self.step("conv", x, weight=weight, bias=offset, **settings)

    def bn(self, x: int) -> int:
        c = self.width(x)
        gamma, mean = 1 + self.draw(c, scale=0.3), self.draw(c, scale=self.bias_scale)
        beta, var = self.draw(c, scale=self.bias_scale), 0.5 + self.draw(c).abs()
        return self.step("bn", x, gamma=gamma, beta=beta, mean=mean, var=var)

    def se(self, x: int) -> int:
        c = self.width(x)
        return self.step("se", x, down=self.draw(3, c), up=self.draw(c, 3))

    def act(self, x: int, name: str) -> int:
        return self.step("act", x, name=name)

    def add(self, a: int, b: int) -> int:
        return self.step("add", a, b)

    def cat(self, *values: int) -> int:
        return self.step("cat", *values)


class Drawn(nn.Module):
    """The network as a torch module: its steps, then global average pooling and a linear head of 5 classes.

    `style`: `modules`, `functional` or `in place` (where nothing else reads a layer's value).
    """

    def __init__(self, network: Network, style: str = "functional") -> None:
        super().__init__()
        self.network = network
        self.steps = nn.ModuleList(
            Operation(kind, settings, style == "in place" and self._alone(inputs[0]))
            if style != "modules"
            else as_module(kind, settings, network)
            for kind, inputs, settings in network.steps
        )
        self.head = nn.Linear(network.values[-1].shape[1], 5).double()
        with torch.no_grad():
            nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(network.seed))
        self.eval()

    def _alone(self, x: int) -> bool:
        """Whether a value may be written to: a layer's own, which is read once."""
        readers = [y for _, inputs, _ in self.network.steps for y in inputs]
        return x > 0 and readers.count(x) == 1 and self.network.steps[x - 1][0] in ("conv", "bn", "add", "act")

    def features(self, x: Tensor) -> Tensor:
        values = [x]
        for step, (_, inputs, _) in zip(self.steps, self.network.steps, strict=True):
            values.append(step(*(values[n] for n in inputs)))
        return values[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).mean(2))


class Operation(nn.Module):
    """One step, as torch functions."""

    def __init__(self, kind: str, settings: dict[str, Any], in_place: bool = False) -> None:
        super().__init__()
        self.kind, self.settings, self.in_place = kind, settings, in_place

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        s, rank = self.settings, x.ndim - 2
        if self.kind == "conv":
            return getattr(F, f"conv{rank}d")(x, **s)
        if self.kind == "bn":
            return F.batch_norm(x, s["mean"], s["var"], s["gamma"], s["beta"])
        if self.kind == "act":
            here = {"inplace": True} if self.in_place and s["name"] not in ("gelu", "tanh") else {}
            return ACTIVATIONS[s["name"]](x, **here)
        if self.kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
            return getattr(F, f"{self.kind}{rank}d")(x, **s)
        if self.kind == "add":
            if self.in_place:
                x += others[0]
                return x
            return x + others[0]
        if self.kind == "cat":
            return torch.cat((x, *others), 1)
        if self.kind == "se":
            gate = torch.sigmoid(F.relu(x.flatten(2).mean(2) @ s["down"].T) @ s["up"].T)
            return x * gate.reshape(*gate.shape, *(1,) * rank)
        if self.kind in ("pad", "widen"):
            return F.pad(x, (*(0, 0) * rank, *s["pads"]) if self.kind == "widen" else s["pads"])
        if self.kind == "cut":
            return x[(slice(None), slice(None), *s["cuts"])]
        if self.kind == "flip":
            return x.flip(s["axis"])
        if self.kind == "shift":
            return x + s["constant"].reshape(-1, *(1,) * rank)
        assert self.kind == "shuffle"
        return x.unflatten(1, (s["groups"], -1)).transpose(1, 2).flatten(1, 2)


def as_module(kind: str, s: dict[str, Any], network: Network) -> nn.Module:
    """The step as the module of torch that networks use for it."""
    rank = network.rank
    if kind == "conv":
        weight = s["weight"]
        settings = {key: s[key] for key in ("stride", "padding", "dilation", "groups")}
        conv = getattr(nn, f"Conv{rank}d")(
            weight.shape[1] * s["groups"], len(weight), tuple(weight.shape[2:]), bias=s["bias"] is not None, **settings
        ).double()
        state = {"weight": weight} | ({} if s["bias"] is None else {"bias": s["bias"]})
        conv.load_state_dict(state)
        return conv
    if kind == "bn":
        norm = getattr(nn, f"BatchNorm{rank}d")(len(s["gamma"])).double()
        state = {"weight": s["gamma"], "bias": s["beta"], "running_mean": s["mean"], "running_var": s["var"]}
        norm.load_state_dict(state, strict=False)
        return norm
    names = {"relu": "ReLU", "elu": "ELU", "leaky_relu": "LeakyReLU", "silu": "SiLU", "gelu": "GELU", "tanh": "Tanh"}
    if kind == "act" and s["name"] in names:
        return getattr(nn, names[s["name"]])()
    if kind in ("max_pool", "avg_pool"):
        return getattr(nn, {"max_pool": "MaxPool", "avg_pool": "AvgPool"}[kind] + f"{rank}d")(**s)
    return Operation(kind, s)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number (to 1 where all are tiny: a dead network)."""
    scale = expected.abs().max()
    return ((found - expected).abs().max() / (scale if scale > 1e-8 else 1)).item()


def pictures(network: Network, count: int = 2) -> Tensor:
    return network.draw(count, network.channels, *network.size)
