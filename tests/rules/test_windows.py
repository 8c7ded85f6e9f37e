"""Affine layers taken apart: windows and pools against explicit taps, and maps against their adjoints."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError
from backlight.rules import windows
from backlight.rules.windows import Layer, Pool, Window, safe_ratio, safe_sqrt

# beartype, which checks shapes, draws which items it looks at
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
SMALL = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def geometries(draw: Any, rank: int | None = None) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """(window, size of the source, size of the target), over one or two axes."""
    axes = []
    for _ in range(draw(st.integers(1, 2)) if rank is None else rank):
        kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        span = dilation * (kernel - 1) + 1
        size = draw(st.integers(max(1, span - before - after), 6))
        axes.append((kernel, stride, dilation, (before, after), size, (size + before + after - span) // stride + 1))
    kernel, stride, dilation, padding, size, out = zip(*axes, strict=True)
    return Window(kernel, stride, dilation, padding), size, out


@st.composite
def layers(draw: Any) -> tuple[Layer, Tensor, Tensor]:
    """(a layer, its source, a cotangent of its value), grouped, scaled or pooled or not."""
    window, size, out = draw(geometries())
    torch.manual_seed(draw(st.integers(0, 10**6)))
    groups = draw(st.sampled_from((1, 2, 4)))
    width = 4 if groups > 1 else draw(st.sampled_from((2, 4)))
    outputs = groups * draw(st.sampled_from((1, 2))) if groups > 1 else draw(st.sampled_from((2, 5, 8)))
    weight = normal(outputs, width // groups, *window.kernel)
    scale = normal(outputs) if draw(st.booleans()) else None
    source, pool = normal(2, width, *size), None
    if draw(st.booleans()):
        source = normal(2, width, *(2 * n + 1 for n in size))
        around = Window((3,) * len(size), (2,) * len(size), (1,) * len(size), ((1, 1),) * len(size))
        _, winners = max_pool(source, around)
        cuts = tuple(slice(0, n) for n in size)
        pool = Pool.won(around, tuple(source.shape[2:]), winners[(..., *cuts)])
    return Layer(window, out, weight, groups, scale, normal(outputs), pool=pool), source, normal(2, outputs, *out)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def max_pool(x: Tensor, window: Window, ceil: bool = False) -> tuple[Tensor, Tensor]:
    pool = F.max_pool1d if x.ndim == 3 else F.max_pool2d
    padding = [before for before, _ in window.padding]
    values, winners = pool(x, window.kernel, window.stride, padding, window.dilation, ceil, return_indices=True)
    return values, winners


def cells(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*map(range, size)))


def reads(window: Window, target: tuple[int, ...], tap: tuple[int, ...], size: tuple[int, ...]) -> Any:
    """The position that a tap reads, None outside."""
    axes = zip(target, tap, window.stride, window.dilation, window.padding, strict=True)
    at = tuple(t * s + h * d - before for t, h, s, d, (before, _) in axes)
    return at if all(0 <= p < n for p, n in zip(at, size, strict=True)) else None


def taps_of(layer: Layer, x: Tensor) -> Tensor:
    """u_h(j) `[N, T, D, *out]`, one tap after the other; places of the pool's window first."""
    assert layer.weight is not None
    size, found = layer.pool.out if layer.pool else tuple(x.shape[2:]), []
    for source in layer.sources(x):
        for tap in cells(layer.window.kernel):
            values = torch.zeros(len(x), len(layer.weight), *layer.out, dtype=x.dtype)
            for target in cells(layer.out):
                at = reads(layer.window, target, tap, size)
                if at is not None:
                    pieces = source[(..., *at)].unflatten(1, (layer.groups, -1))
                    weight = layer.weight[(..., *tap)].unflatten(0, (layer.groups, -1))
                    values[(..., *target)] = torch.einsum("gdc,ngc->ngd", weight, pieces).flatten(1)
            if layer.scale is not None:
                values = values * layer.scale.reshape(-1, *(1,) * len(layer.out))
            found.append(values)
    return torch.stack(found, 1)


# windows


@SMALL
@given(geometries())
def test_pieces_are_what_taps_read(geometry: tuple[Window, tuple[int, ...], tuple[int, ...]]) -> None:
    window, size, out = geometry
    x = normal(2, 3, *size)
    pieces = list(window.pieces(x, out))
    assert len(pieces) == window.taps
    for piece, tap in zip(pieces, cells(window.kernel), strict=True):
        for target in cells(out):
            at = reads(window, target, tap, size)
            expected = torch.zeros(2, 3, dtype=torch.float64) if at is None else x[(..., *at)]
            assert torch.equal(piece[(..., *target)], expected)


@SMALL
@given(geometries())
def test_scatter_is_the_adjoint_of_pieces(geometry: tuple[Window, tuple[int, ...], tuple[int, ...]]) -> None:
    window, size, out = geometry
    x, values = normal(2, 1, *size), normal(2, window.taps, *out)
    back = window.scatter(values, size)
    assert back.shape == x.shape
    forth = torch.cat(list(window.pieces(x, out)), 1)
    assert torch.allclose((back * x).sum(), (forth * values).sum(), atol=1e-12)


@SMALL
@given(geometries())
def test_aligned_reads_each_tap_of_its_own_map(geometry: tuple[Window, tuple[int, ...], tuple[int, ...]]) -> None:
    window, size, out = geometry
    values = normal(2, window.taps, *size)
    found = window.aligned(values, out)
    for t in range(window.taps):
        assert torch.equal(found[:, t : t + 1], list(window.pieces(values[:, t : t + 1], out))[t])


def test_a_pointwise_window_reads_its_own_position_only() -> None:
    one = Window((1, 1), (1, 1), (3, 2), ((0, 0), (0, 0)))
    assert one.pointwise
    for other in (
        Window((1, 2), (1, 1), (1, 1), ((0, 0), (0, 0))),
        Window((1, 1), (1, 2), (1, 1), ((0, 0), (0, 0))),
        Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 1))),
    ):
        assert not other.pointwise


def test_three_axes_are_refused() -> None:
    window = Window((1,) * 3, (1,) * 3, (1,) * 3, ((0, 0),) * 3)
    with pytest.raises(InputError, match="one or two axes of positions, not over three"):
        window.scatter(normal(1, 1, 2, 2, 2), (2, 2, 2))


# pools


@SMALL
@given(
    rank=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    padding=st.integers(0, 1), ceil=st.booleans(), size=st.integers(5, 7), seed=st.integers(0, 100),
)  # fmt: skip
def test_winners_and_their_places_are_those_of_max_pool(
    rank: int, kernel: int, stride: int, dilation: int, padding: int, ceil: bool, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    padding = min(padding, kernel // 2)
    x = normal(2, 3, *(size,) * (rank - 1), size + 1)
    window = Window((kernel,) * rank, (stride,) * rank, (dilation,) * rank, ((padding, padding),) * rank)
    values, winners = max_pool(x, window, ceil)
    pool = Pool.won(window, tuple(x.shape[2:]), winners)
    assert pool.out == tuple(values.shape[2:])
    assert torch.equal(pool.pooled(x), values)
    assert pool.places is not None
    for n, c, *target in cells(tuple(values.shape)):
        tap = cells(window.kernel)[int(pool.places[(n, c, *target)])]
        at = reads(window, tuple(target), tap, tuple(x.shape[2:]))
        assert at is not None  # never the padding
        assert x[(n, c, *at)] == values[(n, c, *target)]
        flat = torch.arange(x[0, 0].numel()).view(x.shape[2:])[at]
        assert flat == winners[(n, c, *target)]


# layers


@SMALL
@given(layers())
def test_products_and_norms_are_those_of_explicit_taps(drawn: tuple[Layer, Tensor, Tensor]) -> None:
    layer, x, q = drawn
    taps = taps_of(layer, x)
    assert torch.allclose(layer.products(x, q), (taps * q[:, None]).sum(2), atol=1e-12)
    assert torch.allclose(layer.norms(x), taps.norm(dim=2), atol=1e-7)  # the root of a rounded square
    assert torch.allclose(layer.norms(x).square(), taps.square().sum(2), atol=1e-12)
    assert torch.equal(layer.active(x), (taps != 0).any(2).to(x.dtype))


@SMALL
@given(layers())
def test_taps_sum_to_the_convolution(drawn: tuple[Layer, Tensor, Tensor]) -> None:
    layer, x, q = drawn
    w = layer.window
    read = x if layer.pool is None else layer.pool.pooled(x)
    conv = F.conv1d if read.ndim == 3 else F.conv2d
    pads = [p for pair in reversed(w.padding) for p in pair]
    assert layer.weight is not None
    y = conv(F.pad(read, pads), layer.weight, None, w.stride, 0, w.dilation, layer.groups)
    y = y if layer.scale is None else y * layer.scale.reshape(-1, *(1,) * len(layer.out))
    assert y.shape == q.shape
    assert torch.allclose(layer.products(x, q).sum(1), (y * q).sum(1), atol=1e-12)
    assert torch.allclose(taps_of(layer, x).sum(1), y, atol=1e-12)


@SMALL
@given(layers())
def test_gather_is_the_adjoint_of_scatter(drawn: tuple[Layer, Tensor, Tensor]) -> None:
    layer, x, _ = drawn
    taps = layer.window.taps * (1 if layer.pool is None else layer.pool.window.taps)
    f, values = normal(2, 1, *x.shape[2:]), normal(2, taps, *layer.out)
    back = layer.scatter(values, tuple(x.shape[2:]))
    assert back.shape == f.shape
    forth = layer.gather(f)
    assert forth.shape == values.shape
    assert torch.allclose((back * f).sum(), (forth * values).sum(), atol=1e-12)


@SMALL
@given(layers(), st.booleans())
def test_amounts_are_shared_whole(drawn: tuple[Layer, Tensor, Tensor], uniform: bool) -> None:
    layer, x, _ = drawn
    amounts = normal(2, 1, *layer.out)
    shared = layer.shared(x, amounts, uniform)
    taps = taps_of(layer, x)
    norms = (taps != 0).any(2).to(x.dtype) if uniform else taps.norm(dim=2)
    read = norms.sum(1, keepdim=True) > 0
    if not layer.single:
        assert torch.allclose(shared.sum(1, keepdim=True), amounts * read, atol=1e-12)
        assert torch.allclose(shared, amounts * norms / norms.sum(1, keepdim=True).where(read, 1), atol=1e-7)
        assert (shared[norms == 0] == 0).all()
    else:
        assert torch.equal(shared, amounts)


@SMALL
@given(layers())
def test_a_batch_norm_folds_into_scale_and_constant(drawn: tuple[Layer, Tensor, Tensor]) -> None:
    layer, x, q = drawn
    scale, shift = normal(q.shape[1]), normal(q.shape[1])
    folded = layer.folded(scale, shift)
    reshaped = scale.reshape(-1, *(1,) * len(layer.out))
    assert torch.allclose(taps_of(folded, x), taps_of(layer, x) * reshaped, atol=1e-12)
    assert layer.constant is not None
    assert folded.constant is not None
    assert torch.allclose(folded.constant, layer.constant * scale + shift)
    bare = Layer(layer.window, layer.out, layer.weight, layer.groups).folded(scale, shift)
    assert bare.constant is shift


@SMALL
@given(geometries())
def test_an_average_is_a_layer_of_equal_taps(geometry: tuple[Window, tuple[int, ...], tuple[int, ...]]) -> None:
    window, size, out = geometry
    x, q = normal(2, 3, *size), normal(2, 3, *out)
    layer = Layer(window, out, factor=torch.rand(out, dtype=torch.float64))
    taps = torch.stack(list(window.pieces(x, out)), 1) * layer.factor
    assert torch.allclose(layer.products(x, q), (taps * q[:, None]).sum(2), atol=1e-12)
    assert torch.allclose(layer.norms(x), taps.norm(dim=2), atol=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_few_taps_at_a_time_give_the_same(pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x, pool = normal(2, 4, 6, 6), None
    if pooled:
        around = Window((2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)))
        pool = Pool.won(around, (6, 6), max_pool(x, around)[1])
    out = (3, 3) if pooled else (6, 6)
    layer = Layer(window, out, normal(3, 4, 3, 3), pool=pool)
    expected = layer.norms(x)
    monkeypatch.setattr(windows, "_CHUNK", 1)
    assert torch.allclose(layer.norms(x), expected, atol=1e-12)


# roots and ratios


def test_roots_and_ratios_are_zero_at_zero_and_so_are_their_derivatives() -> None:
    x = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    root = safe_sqrt(x)
    assert root.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(root.sum(), x)[0].tolist() == [0.0, 0.25]
    top = torch.tensor([3.0, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    below = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    ratio = safe_ratio(top, below)
    assert ratio.tolist() == [0.0, 1.5, 0.0]
    over, under = torch.autograd.grad(ratio.sum(), (top, below))
    assert over.tolist() == [0.0, 0.5, 0.0]
    assert under.tolist() == [0.0, -0.75, 0.0]
