"""The kinds of convolutional networks, each in a few layers, and random sequences of their blocks."""

from __future__ import annotations

import random
from collections.abc import Callable

from sharing_networks import Network

Kind = Callable[[str, int], Network]
KINDS: dict[str, Kind] = {}


def kind(build: Kind) -> Kind:
    KINDS[build.__name__] = build
    return build


@kind
def vgg(act: str, seed: int) -> Network:
    n = Network(3, (6, 7), seed)
    x = n.act(n.conv(0, 4), act)
    x = n.step("max_pool", n.act(n.conv(x, 4, bias=False), act), kernel_size=2)
    x = n.act(n.conv(x, 5), act)
    n.step("avg_pool", x, kernel_size=1)
    return n


@kind
def vgg_bn(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.step("max_pool", n.act(n.bn(n.conv(0, 4)), act), kernel_size=2)
    n.act(n.bn(n.conv(x, 5, bias=False)), act)
    return n


@kind
def overlapping_pools(act: str, seed: int) -> Network:
    n = Network(3, (7, 7), seed)
    x = n.step("max_pool", n.act(n.bn(n.conv(0, 4)), act), kernel_size=3, stride=2, padding=1)
    x = n.act(n.conv(x, 4), act)
    x = n.step("max_pool", x, kernel_size=2, stride=1, ceil_mode=True, dilation=2)
    x = n.act(n.conv(x, 4, 1), act)
    n.act(n.bn(n.step("max_pool", n.conv(x, 4), kernel_size=(1, 2))), act)  # pooled before the activation
    return n


@kind
def ceiling_pool(act: str, seed: int) -> Network:
    n = Network(3, (6, 7), seed)
    x = n.step("max_pool", n.act(n.conv(0, 4), act), kernel_size=3, stride=2, ceil_mode=True)
    x = n.act(n.bn(n.conv(x, 5)), act)
    n.act(n.bn(n.step("adaptive_max_pool", x, output_size=(3, 1))), act)
    return n


@kind
def resnet_basic(act: str, seed: int) -> Network:
    n = Network(3, (7, 7), seed)
    x = n.act(n.bn(n.conv(0, 4, stride=2)), act)
    y = n.act(n.bn(n.conv(x, 4, bias=False)), act)
    x = n.act(n.add(n.bn(n.conv(y, 4, bias=False)), x), act)
    y = n.act(n.conv(x, 5, stride=2), act)
    n.act(n.add(n.bn(n.conv(y, 5)), n.bn(n.conv(x, 5, 1, stride=2))), act)
    return n


@kind
def resnet_bottleneck(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.step("max_pool", n.act(n.bn(n.conv(0, 4, 5, padding=2)), act), kernel_size=2)
    for stride in (1, 2):
        y = n.act(n.bn(n.conv(x, 3, 1)), act)
        y = n.act(n.bn(n.conv(y, 3, stride=stride)), act)
        y = n.bn(n.conv(y, 5, 1))
        shortcut = n.bn(n.conv(x, 5, 1, stride=stride)) if stride > 1 or n.width(x) != 5 else x
        x = n.act(n.add(y, shortcut), act)
    return n


@kind
def residual_of_one_layer(act: str, seed: int) -> Network:
    n = Network(3, (5, 5), seed)
    x = n.act(n.conv(0, 4), act)
    x = n.act(n.add(n.conv(x, 4), x), act)
    x = n.cat(x, n.bn(n.conv(x, 3)), n.step("avg_pool", x, kernel_size=3, stride=1, padding=1))
    n.act(n.bn(n.conv(x, 4, 1)), act)
    return n


@kind
def densenet(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.step("max_pool", n.act(n.bn(n.conv(0, 4, bias=False)), act), kernel_size=3, stride=2, padding=1)
    for _ in range(2):
        y = n.conv(n.act(n.bn(x), act), 5, 1, bias=False)
        x = n.cat(x, n.conv(n.act(n.bn(y), act), 2, bias=False))
    x = n.step("avg_pool", n.conv(n.act(n.bn(x), act), 4, 1), kernel_size=2, stride=1)
    n.act(n.bn(x), act)
    return n


@kind
def mobilenet(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.act(n.bn(n.conv(0, 4, stride=2, bias=False)), act)
    x = n.bn(n.conv(n.act(n.bn(n.conv(x, 4, groups=4)), act), 3, 1))  # a linear bottleneck
    for stride in (1, 2):
        y = n.act(n.bn(n.conv(x, 6, 1, bias=False)), act)
        y = n.act(n.bn(n.conv(y, 6, groups=6, stride=stride)), act)
        y = n.bn(n.conv(y, 3, 1, bias=False))
        x = n.add(x, y) if stride == 1 else y  # with no activation after it
    n.act(n.bn(n.conv(x, 5, 1)), act)
    return n


@kind
def efficientnet(act: str, seed: int) -> Network:
    n = Network(3, (5, 5), seed)
    x = n.act(n.bn(n.conv(0, 4)), act)
    y = n.act(n.bn(n.conv(x, 6, 1)), act)
    y = n.se(n.act(n.bn(n.conv(y, 6, 5, groups=6)), act))
    x = n.add(n.bn(n.conv(y, 4, 1)), x)
    n.act(n.bn(n.conv(n.se(x), 6, 3)), act)
    return n


@kind
def resnet_preactivated(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.conv(0, 4)
    y = n.act(n.bn(n.conv(n.act(n.bn(x), act), 4)), act)
    x = n.add(x, n.conv(y, 4))
    y = n.act(n.bn(x), act)
    x = n.add(n.conv(y, 5, 1, stride=2), n.conv(n.act(n.bn(n.conv(y, 4, stride=2)), act), 5))
    n.act(n.bn(x), act)
    return n


@kind
def dilated_and_grouped(act: str, seed: int) -> Network:
    n = Network(4, (6, 6), seed)
    x = n.act(n.bn(n.conv(0, 6, dilation=2, groups=2)), act)
    x = n.act(n.conv(x, 4, (2, 3), padding="same"), act)
    x = n.act(n.conv(x, 8, (3, 2), stride=2, groups=4, padding=0), act)
    n.act(n.conv(x, 4, 1, groups=2, padding=1), act)
    return n


@kind
def channels_shuffled(act: str, seed: int) -> Network:
    n = Network(4, (5, 5), seed)
    x = n.act(n.bn(n.conv(0, 4)), act)
    y = n.step("shuffle", n.act(n.bn(n.conv(x, 4, 1, groups=2)), act), groups=2)
    y = n.bn(n.conv(n.bn(n.conv(y, 4, groups=4)), 4, 1, groups=2))
    n.act(n.add(y, x), act)
    return n


@kind
def one_axis(act: str, seed: int) -> Network:
    n = Network(2, (12,), seed)
    x = n.act(n.bn(n.conv(0, 4, 5, stride=2)), act)
    x = n.step("max_pool", x, kernel_size=3, stride=2, padding=1)
    x = n.act(n.add(n.conv(x, 4), n.conv(x, 4, 1)), act)
    x = n.step("avg_pool", x, kernel_size=2, stride=1, padding=1)
    n.act(n.conv(x, 3, 2, padding="same"), act)
    return n


@kind
def averages(act: str, seed: int) -> Network:
    n = Network(3, (7, 7), seed)
    x = n.act(n.conv(0, 4), act)
    x = n.act(n.conv(n.step("avg_pool", x, kernel_size=3, stride=2, padding=1), 4, 1), act)
    x = n.step("avg_pool", x, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    x = n.step("avg_pool", n.act(n.conv(x, 4), act), kernel_size=3, stride=2, ceil_mode=True, padding=1)
    n.act(n.bn(n.step("adaptive_avg_pool", x, output_size=(3, 1))), act)
    return n


@kind
def affine_in_sequence(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.conv(n.conv(n.bn(0), 4), 4)  # a node in between that is no activation
    x = n.conv(n.act(n.conv(x, 4, 1), act), 3, 1)
    x = n.bn(n.act(n.conv(x, 4), act))
    x = n.step("shift", n.step("max_pool", x, kernel_size=2), constant=n.draw(4))
    n.act(n.conv(x, 4), act)
    return n


@kind
def shortcut_by_slices(act: str, seed: int) -> Network:
    n = Network(3, (6, 6), seed)
    x = n.act(n.conv(0, 4), act)
    y = n.conv(n.act(n.conv(x, 6, stride=2), act), 6)
    every = n.step("cut", x, cuts=(slice(None, None, 2), slice(None, None, 2)))
    n.act(n.add(n.step("widen", every, pads=(1, 1)), y), act)
    return n


@kind
def positions_moved(act: str, seed: int) -> Network:
    n = Network(3, (6, 5), seed)
    x = n.step("pad", 0, pads=(1, 2, 0, 1))
    x = n.act(n.conv(x, 4, padding=0), act)
    x = n.act(n.conv(n.step("flip", x, axis=3), 4), act)
    x = n.cat(x, n.step("flip", x, axis=2))
    n.act(n.conv(n.step("cut", x, cuts=(slice(1, 4), slice(0, 3))), 4, 1), act)
    return n


def program(seed: int, act: str) -> Network:
    """A random sequence of blocks, of any kind, in any order."""
    draw = random.Random(seed)
    n = Network(draw.choice((1, 3)), draw.choice(((5, 6), (6, 6), (9,))), seed)
    x = 0
    for _ in range(draw.randint(2, 5)):
        x = _block(n, x, draw, act)
    n.act(x if draw.random() < 0.5 else n.bn(n.conv(x, 4, 1)), act)
    return n


def _block(n: Network, x: int, draw: random.Random, act: str) -> int:
    some = draw.random() < 0.5
    cells = min(n.space(x))
    width = n.width(x)
    name = draw.choice("conv conv unit unit pointwise bn act residual cat se max_pool avg_pool move shift".split())
    if name == "conv":
        return n.conv(x, 4, stride=2 if some and cells > 3 else 1, dilation=draw.choice((1, 2)), bias=some)
    if name == "unit":
        y = n.conv(x, 4, draw.choice((2, 3)), groups=2 if some and width % 2 == 0 else 1, padding="same")
        return n.act(n.bn(y) if draw.random() < 0.7 else y, act)
    if name == "pointwise":
        return n.conv(x, draw.randint(2, 5), 1)
    if name in ("bn", "se"):
        return getattr(n, name)(x)
    if name == "act":
        return n.act(x, act)
    if name == "shift":
        return n.step("shift", x, constant=n.draw(width))
    if name in ("residual", "cat"):
        y = _block(n, x, draw, act)
        if n.space(y) != n.space(x) or (name == "residual" and n.width(y) != width):
            return n.act(y, act)
        return n.add(y, x) if name == "residual" else n.cat(x, y)
    if cells < 4 or name == "move":
        return n.step("flip", x, axis=2) if some else n.step("pad", x, pads=(1, 0) * n.rank)
    if name == "max_pool":
        return n.step("max_pool", x, kernel_size=3 if some else 2, stride=2, padding=int(some), ceil_mode=some)
    return n.step("avg_pool", x, kernel_size=2, stride=1, padding=int(some), count_include_pad=some)
