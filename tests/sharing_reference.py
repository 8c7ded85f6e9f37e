"""Sharing ratios, slowly and literally: the ratios of small networks as matrices, position by position.

Nothing of Backlight is used. `Reference(network, x, bias)` has the ratios of a `Network` of `sharing_networks`.

Each position of each value is a sum of parts, (node, position of that node, vector): z_j = sum of v_ij, and mu_ij =
<v_ij, z_j> / <z_j, z_j>. A layer with a window makes parts, v_h = W_h a_i + beta_h b with beta_h = |W_h a_i| / sum; a
position-wise layer sends a part v of x to W v + b <x, v> / <x, x>; a sum and a concatenation unite parts. Nodes are
the input, activations, sums, concatenations, and what a layer with a window reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from sharing_networks import ACTIVATIONS, Network
from torch import Tensor
from torch.nn import functional as F

Part = tuple[int, int, np.ndarray]


@dataclass
class Value:
    """`array` `[C, P]` at the positions of `size`; parts at each of them; the node that it is, or None.

    `layer`: what to call with a scale and a shift to fold a BatchNorm in. `pool`: (pooled value, window) of a max-pool.
    """

    array: np.ndarray
    size: tuple[int, ...]
    parts: list[list[Part]]
    node: int | None = None
    layer: Any = None
    pool: Any = None


@dataclass
class Matrix:
    """A node's ratios: M[j, i] of each source, sum |mu| over the parts of each position."""

    size: tuple[int, ...]
    ratios: dict[int, np.ndarray] = field(default_factory=dict)
    magnitude: np.ndarray | None = None

    @property
    def total(self) -> np.ndarray:
        return sum(m.sum(1) for m in self.ratios.values())  # type: ignore[return-value]


@dataclass(frozen=True)
class Sliding:
    """Where windows read; `before`: the padding before the first position of each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]

    def reads(self, target: tuple[int, ...], tap: tuple[int, ...], size: tuple[int, ...]) -> int | None:
        """The flat position that a tap reads; None outside."""
        at = [t * s + h * d - b for t, h, s, d, b in zip(
            target, tap, self.stride, self.dilation, self.before, strict=True)]  # fmt: skip
        if any(p < 0 or p >= n for p, n in zip(at, size, strict=True)):
            return None
        return int(np.ravel_multi_index(at, size))

    @property
    def taps(self) -> list[tuple[int, ...]]:
        return list(product(*map(range, self.kernel)))


def cells(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*map(range, size)))


def tuples(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


class Reference:
    """The sharing ratios of a network at one input `[C, *space]`: `nodes`, and `at[n]`, the node of value n, or None.

    `bias`: `norm`, `uniform` (equally among taps that read something), `drop`.
    """

    def __init__(self, network: Network, x: Tensor, bias: str = "norm") -> None:
        self.network, self.bias, self.nodes = network, bias, [Matrix(network.size)]
        flat = x.flatten(1).numpy()
        values = [Value(flat, network.size, [[(0, j, flat[:, j])] for j in range(flat.shape[1])], 0)]
        for kind, inputs, settings in network.steps:
            values.append(getattr(self, kind)(*(values[n] for n in inputs), **settings))
        self.values, self.at = values, [value.node for value in values]

    # what follows from the ratios

    def relevance(self, seed: np.ndarray, at: int, to: int = 0) -> np.ndarray:
        """Left multiplication: the relevance `[P]` of node `to`, given that of node `at`."""
        known = {at: seed.reshape(-1)}
        for n in range(at, to, -1):
            if n in known:
                for source, ratios in self.nodes[n].ratios.items():
                    known[source] = known.get(source, 0) + known[n] @ ratios
        return known[to]

    def fields(self, at: int) -> np.ndarray:
        """The forward recursion, iERF(z_j) = sum_i mu_ij iERF(a_i) with iERF(pixel p) = E^p: `[P, pixels]`."""
        fields = [np.eye(int(np.prod(self.nodes[0].size)))]
        for node in self.nodes[1 : at + 1]:
            fields.append(sum(ratios @ fields[source] for source, ratios in node.ratios.items()))  # type: ignore[arg-type]
        return fields[at]

    # nodes

    def node(self, z: Value, array: np.ndarray | None = None) -> Value:
        made = Matrix(z.size, magnitude=np.zeros(z.array.shape[1]))
        for j, parts in enumerate(z.parts):
            here = z.array[:, j]
            square = here @ here
            for source, i, v in parts:
                ratios = made.ratios.setdefault(
                    source, np.zeros((z.array.shape[1], int(np.prod(self.nodes[source].size))))
                )
                mu = v @ here / square if square > 0 else 0.0
                ratios[j, i] += mu
                made.magnitude[j] += abs(mu)  # type: ignore[index]
        self.nodes.append(made)
        number, array = len(self.nodes) - 1, z.array if array is None else array
        return Value(array, z.size, [[(number, j, array[:, j])] for j in range(array.shape[1])], number)

    def as_node(self, x: Value) -> Value:
        return x if x.node is not None else self.node(x)

    def act(self, x: Value, name: str) -> Value:
        return self.node(x, ACTIVATIONS[name](torch.from_numpy(x.array)).numpy())

    def add(self, a: Value, b: Value) -> Value:
        parts = [p + q for p, q in zip(a.parts, b.parts, strict=True)]
        return self.node(Value(a.array + b.array, a.size, parts))

    def cat(self, *values: Value) -> Value:
        array = np.concatenate([v.array for v in values])
        parts: list[list[Part]] = [[] for _ in range(array.shape[1])]
        start = 0
        for value in values:
            for j, known in enumerate(value.parts):
                for source, i, v in known:
                    wide = np.zeros(len(array))
                    wide[start : start + len(v)] = v
                    parts[j].append((source, i, wide))
            start += len(value.array)
        return self.node(Value(array, values[0].size, parts))

    # layers

    def pointwise(self, x: Value, weight: np.ndarray, bias: np.ndarray, layer: Any = None) -> Value:
        array = weight @ x.array + bias[:, None]
        parts: list[list[Part]] = []
        for j, known in enumerate(x.parts):
            here = x.array[:, j]
            square = here @ here
            shared = self.bias != "drop" and square > 0
            parts.append([(n, i, weight @ v + (bias * (here @ v / square) if shared else 0)) for n, i, v in known])
        return Value(array, x.size, parts, layer=layer)

    def conv(
        self, x: Value, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Value:
        rank, kernel = len(x.size), tuple(weight.shape[2:])
        stride, dilation = tuples(stride, rank), tuples(dilation, rank)
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same":
            pads = [(span // 2, span - span // 2) for span in spans]
        else:
            pads = [(p, p) for p in tuples(0 if padding == "valid" else padding, rank)]
        out = tuple((n + sum(p) - span - 1) // s + 1 for n, p, span, s in zip(x.size, pads, spans, stride, strict=True))
        sliding = Sliding(kernel, stride, dilation, tuple(before for before, _ in pads))
        dense = np.zeros((len(sliding.taps), len(weight), x.array.shape[0]))
        d, c = len(weight) // groups, x.array.shape[0] // groups
        for g in range(groups):
            block = weight[g * d : (g + 1) * d].flatten(2).permute(2, 0, 1).numpy()
            dense[:, g * d : (g + 1) * d, g * c : (g + 1) * c] = block
        offset = np.zeros(len(weight)) if bias is None else bias.numpy()
        alone = len(sliding.taps) == 1 and set(stride) == {1} and not any(map(any, pads)) and x.pool is None
        source = x if alone or x.pool is not None else self.as_node(x)

        def layer(scale: np.ndarray, shift: np.ndarray) -> Value:
            taps, constant = scale[:, None] * dense, scale * offset + shift

            def folded(s: np.ndarray, t: np.ndarray) -> Value:
                return layer(s * scale, s * shift + t)

            if alone:
                return self.pointwise(source, taps[0], constant, folded)
            return self.windows(source, sliding, taps, constant, out, folded)

        return layer(np.ones(len(weight)), np.zeros(len(weight)))

    def windows(
        self, x: Value, sliding: Sliding, taps: np.ndarray, constant: np.ndarray, out: tuple[int, ...], layer: Any
    ) -> Value:
        """Parts of every (place in the pool's window, tap), the constant shared among them."""
        sources = [(x.array, list(range(x.array.shape[1])), x.node)] if x.pool is None else x.pool
        array, parts = np.tile(constant[:, None], (1, int(np.prod(out)))), []
        for j, target in enumerate(cells(out)):
            found: list[tuple[int, int, np.ndarray, float]] = []
            for pieces, origins, number in sources:
                for tap, weight in zip(sliding.taps, taps, strict=True):
                    at = sliding.reads(target, tap, x.size)
                    if at is None or origins[at] is None:
                        continue
                    u = weight @ pieces[:, at]
                    portion = float(pieces[:, at].any()) if self.bias == "uniform" else float(np.linalg.norm(u))
                    found.append((number, origins[at], u, portion))  # type: ignore[arg-type]
            total = sum(portion for *_, portion in found)
            shared = self.bias != "drop" and total > 0
            array[:, j] += sum(u for _, _, u, _ in found)
            parts.append([(n, i, u + portion / total * constant if shared else u) for n, i, u, portion in found])
        return Value(array, out, parts, layer=layer)

    def bn(self, x: Value, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Value:
        scale = (gamma / (var + 1e-5).sqrt()).numpy()
        shift = beta.numpy() - scale * mean.numpy()
        return self.pointwise(x, np.diag(scale), shift) if x.layer is None else x.layer(scale, shift)

    def se(self, x: Value, down: Tensor, up: Tensor) -> Value:
        hidden = np.maximum(down.numpy() @ x.array.mean(1), 0)
        gate = 1 / (1 + np.exp(-(up.numpy() @ hidden)))
        return self.pointwise(x, np.diag(gate), np.zeros(len(gate)))

    def shift(self, x: Value, constant: Tensor) -> Value:
        return self.pointwise(x, np.eye(len(x.array)), constant.numpy())

    def shuffle(self, x: Value, groups: int) -> Value:
        order = np.arange(len(x.array)).reshape(groups, -1).T.reshape(-1)
        return self.pointwise(x, np.eye(len(order))[order], np.zeros(len(order)))

    def widen(self, x: Value, pads: tuple[int, int]) -> Value:
        c = len(x.array)
        embedding = np.concatenate([np.zeros((pads[0], c)), np.eye(c), np.zeros((pads[1], c))])
        return self.pointwise(x, embedding, np.zeros(len(embedding)))

    def max_pool(
        self, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Value:  # fmt: skip
        x, rank = self.as_node(x), len(x.size)
        kernel, stride = tuples(kernel_size, rank), tuples(stride or kernel_size, rank)
        padding, dilation = tuples(padding, rank), tuples(dilation, rank)
        sliding = Sliding(kernel, stride, dilation, padding)
        return self.largest(x, sliding, pooled_size(x.size, sliding, ceil_mode))

    def adaptive_max_pool(self, x: Value, output_size: Any) -> Value:
        x, out = self.as_node(x), tuples(output_size, len(x.size))
        kernel = tuple(n // m for n, m in zip(x.size, out, strict=True))
        return self.largest(x, Sliding(kernel, kernel, (1,) * len(out), (0,) * len(out)), out)

    def largest(self, x: Value, sliding: Sliding, out: tuple[int, ...]) -> Value:
        origins = [[sliding.reads(target, tap, x.size) for target in cells(out)] for tap in sliding.taps]
        read = np.stack([[x.array[:, i] if i is not None else np.full(len(x.array), -np.inf) for i in places]
                         for places in origins])  # fmt: skip
        winner, array = read.argmax(0).T, read.max(0).T  # [C, P]
        pool = [(array * (winner == q), places, x.node) for q, places in enumerate(origins)]
        parts: list[list[Part]] = [
            [(n, places[j], piece[:, j]) for piece, places, n in pool if places[j] is not None]
            for j in range(array.shape[1])
        ]  # type: ignore[misc]
        return Value(array, out, parts, pool=pool)

    def avg_pool(
        self, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Value:  # fmt: skip
        x, rank = self.as_node(x), len(x.size)
        kernel, stride, padding = (tuples(v, rank) for v in (kernel_size, stride or kernel_size, padding))
        sliding = Sliding(kernel, stride, (1,) * rank, padding)
        out = pooled_size(x.size, sliding, ceil_mode)
        windows = []
        for target in cells(out):
            inside = [i for tap in sliding.taps if (i := sliding.reads(target, tap, x.size)) is not None]
            ends = [min(t * s - p + k, n + p) - (t * s - p) for t, s, p, k, n in zip(
                target, stride, padding, kernel, x.size, strict=True)]  # fmt: skip
            windows.append((inside, int(np.prod(ends)) if count_include_pad else len(inside)))
        return self.means(x, windows, out)

    def adaptive_avg_pool(self, x: Value, output_size: Any) -> Value:
        x, out = self.as_node(x), tuples(output_size, len(x.size))
        windows = []
        for target in cells(out):
            spans = [range(t * n // m, -(-(t + 1) * n // m)) for t, n, m in zip(target, x.size, out, strict=True)]
            inside = [int(np.ravel_multi_index(at, x.size)) for at in product(*spans)]
            windows.append((inside, len(inside)))
        return self.means(x, windows, out)

    def means(self, x: Value, windows: list[tuple[list[int], int]], out: tuple[int, ...]) -> Value:
        assert x.node is not None
        parts: list[list[Part]] = [[(x.node, i, x.array[:, i] / n) for i in inside] for inside, n in windows]
        return Value(np.stack([sum(v for *_, v in known) for known in parts], 1), out, parts)  # type: ignore[arg-type]

    def moved(self, x: Value, move: Any) -> Value:
        """Positions moved, found by moving their numbers; -1 where there is none."""
        x = self.as_node(x)
        numbers = move(torch.arange(1, 1 + x.array.shape[1]).reshape(1, 1, *x.size))[0, 0]
        order = (numbers - 1).flatten().tolist()
        array = np.stack([x.array[:, i] if i >= 0 else np.zeros(len(x.array)) for i in order], 1)
        parts: list[list[Part]] = [[(x.node, i, x.array[:, i])] if i >= 0 else [] for i in order]  # type: ignore[list-item]
        return Value(array, tuple(numbers.shape), parts)

    def pad(self, x: Value, pads: tuple[int, ...]) -> Value:
        return self.moved(x, lambda t: F.pad(t, pads))

    def cut(self, x: Value, cuts: tuple[slice, ...]) -> Value:
        return self.moved(x, lambda t: t[(slice(None), slice(None), *cuts)])

    def flip(self, x: Value, axis: int) -> Value:
        return self.moved(x, lambda t: t.flip(axis))


def pooled_size(size: tuple[int, ...], sliding: Sliding, ceil: bool) -> tuple[int, ...]:
    """With ceil, windows that start inside the input or the padding before it."""
    found = []
    for n, k, s, d, p in zip(size, sliding.kernel, sliding.stride, sliding.dilation, sliding.before, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil else room // s) + 1
        found.append(count - 1 if ceil and (count - 1) * s >= n + p else count)
    return tuple(found)
