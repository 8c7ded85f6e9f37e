"""Networks of the retina: three layers from a movie's last frames to the firing rates of ganglion cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.errors import InputError
from backlight.shapes import Float

NORMS = ("unit", "channel")
EPSILON, MOMENTUM = 1e-3, 0.01  # of the batch norms
WIDE = 13  # pixels: from here on, filters are fitted by Fourier transform on a CPU


class AbsBatchNorm(nn.Module):
    """Batch norm whose scale is |scale|, so that no unit changes its sign: (x - m) / sqrt(v + eps) |scale| + shift.

    `features`: channels, one statistic each over samples and positions; or the units (channel x position) of a map,
    one statistic each over samples alone, which is told by the input having more entries than that on its first axis.
    """

    def __init__(self, features: int, epsilon: float = EPSILON, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.features, self.epsilon, self.momentum = features, epsilon, momentum
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Float[Tensor, "N C *space"]) -> Float[Tensor, "N C *space"]:
        flat = x if x.shape[1] == self.features else x.flatten(1)
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        scale = self.scale.abs()
        found = F.batch_norm(flat, mean, variance, scale, self.shift, self.training, self.momentum, self.epsilon)
        return found if flat is x else found.unflatten(1, x.shape[1:])

    def extra_repr(self) -> str:
        return f"{self.features}, epsilon={self.epsilon}, momentum={self.momentum}"


class GaussianNoise(nn.Module):
    """x + std e, e ~ N(0, 1), in training; x itself in evaluation. `generator`: of the draws; None: the global one."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.std:
            return x
        drawn = torch.empty_like(x).normal_(generator=self.generator)
        return torch.add(x, drawn, alpha=self.std)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class MapConvolution(nn.Conv2d):
    """`nn.Conv2d` without padding and stride; in training on a CPU, by Fourier transform where filters are `WIDE`.

    In evaluation it is `F.conv2d`, which rules of attribution answer for; the same sums in another order, equal to
    rounding. At the published sizes (40 frames of 50 x 50 pixels, 8 filters of 15) a step of a fit takes about a ninth
    of the time: the gradient of so wide a filter is slow there.
    """

    def __init__(self, entering: int, channels: int, kernel: int) -> None:
        super().__init__(entering, channels, kernel)

    def forward(self, input: Float[Tensor, "*N C H W"]) -> Float[Tensor, "*N D h w"]:
        wide = self.training and input.ndim == 4 and min(self.kernel_size) >= WIDE
        known = input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64)
        if wide and known and not torch.is_autocast_enabled("cpu"):
            return correlate_maps(input, self.weight, self.bias)
        return super().forward(input)


def correlate_maps(
    x: Float[Tensor, "N C H W"], weight: Float[Tensor, "D C k l"], bias: Float[Tensor, "D"] | None = None
) -> Float[Tensor, "N D h w"]:
    """`F.conv2d(x, weight, bias)` by the convolution theorem: a product of matrices a frequency.

    The circular correlation over the whole map is the plain one wherever the filter lies within the map: on the first
    H - k + 1 rows and W - l + 1 columns.

    Raises:
        InputError: a filter that is larger than the map.
    """
    size, kernel = x.shape[-2:], weight.shape[-2:]
    if kernel[0] > size[0] or kernel[1] > size[1]:
        raise InputError(f"a filter of {list(kernel)} pixels does not fit into a map of {list(size)}")
    maps = torch.fft.rfft2(x)
    filters = torch.fft.rfft2(weight, s=size).conj().flatten(2).permute(2, 1, 0)
    products = (maps.flatten(2).permute(2, 0, 1) @ filters).permute(1, 2, 0)
    found = torch.fft.irfft2(products.unflatten(2, maps.shape[2:]), s=size)
    found = found[..., : size[0] - kernel[0] + 1, : size[1] - kernel[1] + 1]
    return found if bias is None else found + bias[:, None, None]


class RetinaStage(nn.Module):
    """`convolution`, `norm`, `noise`, `activation`: a layer of interneurons. The first is where CODEC reads it."""

    def __init__(self, entering: int, channels: int, kernel: int, features: int, noise: float) -> None:
        super().__init__()
        self.convolution = MapConvolution(entering, channels, kernel)
        self.norm = AbsBatchNorm(features)
        self.noise = GaussianNoise(noise)
        self.activation = nn.ReLU()

    def forward(self, x: Float[Tensor, "N F H W"]) -> Float[Tensor, "N C h w"]:
        return self.activation(self.noise(self.norm(self.convolution(x))))


class GanglionCells(nn.Module):
    """From the maps of the second layer to rates: a filter a cell, `norm`, softplus.

    With `positions` `[cells, 2]` (row, column of the last map) the filter is a convolution's and the cell its output
    there; without, it spans the whole map.
    """

    def __init__(
        self, channels: int, cells: int, size: Sequence[int], kernel: int, positions: Tensor | None, epsilon: float
    ) -> None:
        super().__init__()
        self.local = positions is not None
        if positions is None:
            self.weights: nn.Module = nn.Linear(channels * size[0] * size[1], cells)
        else:
            self.weights = nn.Conv2d(channels, cells, kernel)
            self.register_buffer("positions", positions.long().clone())
        self.norm = AbsBatchNorm(cells, epsilon)
        self.activation = nn.Softplus()

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N cells"]:
        if self.local:
            maps, places = self.weights(x), self.get_buffer("positions")
            flat = maps.flatten(1)
            cells = torch.arange(maps.shape[1], device=places.device)
            chosen = flat[:, (cells * maps.shape[2] + places[:, 0]) * maps.shape[3] + places[:, 1]]
        else:
            chosen = self.weights(x.flatten(1))
        return self.activation(self.norm(chosen))


class RetinaNetwork(nn.Module):
    """Movie windows `[N, F, H, W]` to expected spike counts `[N, cells]` in the window's last frame.

    Two layers of convolution, absolute batch norm, noise (in training alone) and ReLU, and one of ganglion cells
    (Maheswaranathan et al. 2023, Neuron 111; McIntosh et al. 2016). Frame F - 1 is the present one. Stimuli are
    z-scored: 0 is the mean luminance. Defaults are the published sizes.

    Sites: `first.convolution` and `second.convolution`, before the nonlinearity, which are the reference's; and
    `first.activation`, `second.activation`, after it.

    Args:
        cells: ganglion cells.
        channels: of the two layers: types of interneurons.
        kernels: widths of the filters: of the first and the second layer, and, with `positions`, of the cells.
        norm: "unit", a statistic a channel and position; "channel".
        noise: standard deviation of the noise in training.
        positions: of the cells in the last map; None: each sees the whole map.
        seed: of the initial weights.

    Raises:
        InputError: sizes that leave no map, or positions outside of it.
    """

    def __init__(
        self,
        cells: int,
        *,
        frames: int = 40,
        size: Sequence[int] = (50, 50),
        channels: Sequence[int] = (8, 8),
        kernels: Sequence[int] = (15, 11, 11),
        norm: str = "unit",
        noise: float = 0.05,
        positions: Sequence[Sequence[int]] | None = None,
        output_epsilon: float = EPSILON,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "cells": cells,
            "frames": frames,
            "size": list(size),
            "channels": list(channels),
            "kernels": list(kernels),
            "norm": norm,
            "noise": noise,
            "positions": None if positions is None else [[int(one) for one in place] for place in positions],
            "output_epsilon": output_epsilon,
        }
        maps = map_sizes(size, kernels, positions is not None)
        places = None if positions is None else _places(positions, cells, maps[2])
        if norm not in NORMS or len(channels) != 2 or min(cells, frames, *channels) < 1 or noise < 0:
            raise InputError(f"norm is one of {NORMS}, channels are two numbers from 1 on, got {self.settings}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [c * (math.prod(maps[i]) if norm == "unit" else 1) for i, c in enumerate(channels)]
            self.first = RetinaStage(frames, channels[0], kernels[0], widths[0], noise)
            self.second = RetinaStage(channels[0], channels[1], kernels[1], widths[1], noise)
            self.cells = GanglionCells(
                channels[1], cells, maps[1], kernels[2] if places is not None else 0, places, output_epsilon
            )

    def forward(self, windows: Float[Tensor, "N F H W"]) -> Float[Tensor, "N cells"]:
        return self.cells(self.second(self.first(windows)))

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.settings["frames"]


def map_sizes(size: Sequence[int], kernels: Sequence[int], local: bool) -> list[tuple[int, int]]:
    """The sizes of the maps of the layers. Raises `InputError` where one is empty."""
    if len(size) != 2 or len(kernels) < 2 + local or min(*size, *kernels) < 1:
        raise InputError(f"expected a size (H, W) and {2 + local} kernels, got {list(size)} and {list(kernels)}")
    found, height, width = [], *size
    for kernel in kernels[: 2 + local]:
        height, width = height - kernel + 1, width - kernel + 1
        found.append((height, width))
    if min(height, width) < 1:
        raise InputError(f"kernels {list(kernels)} leave nothing of {size[0]} x {size[1]} pixels")
    return found


def _places(positions: Sequence[Sequence[int]], cells: int, size: tuple[int, int]) -> Tensor:
    found = torch.as_tensor([list(place) for place in positions], dtype=torch.long)
    if found.shape != (cells, 2):
        raise InputError(f"expected a position (row, column) for each of {cells} cells, got {list(found.shape)}")
    if bool((found < 0).any()) or bool((found >= torch.tensor(size)).any()):
        raise InputError(f"positions of cells lie in a map of {size[0]} x {size[1]}, got {found.tolist()}")
    return found


def windows(stimulus: Float[Tensor, "T H W"], frames: int) -> Float[Tensor, "n F H W"]:
    """All windows of a movie, as a view: window i holds frames i to i + F - 1, and its response is that of the last.

    Raises:
        InputError: a movie shorter than a window.
    """
    if frames < 1 or len(stimulus) < frames:
        raise InputError(f"a movie of {len(stimulus)} frames has no window of {frames}")
    return stimulus.unfold(0, frames, 1).movedim(-1, 1)


@torch.no_grad()
def predict(network: nn.Module, windows: Float[Tensor, "n F H W"], batch_size: int = 256) -> Float[Tensor, "n cells"]:
    """Rates of all windows, in evaluation mode; the network's mode is what it was, after an error too."""
    place = next(network.parameters(), torch.zeros(0))
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        parts = [network(windows[i : i + batch_size].to(place)).cpu() for i in range(0, len(windows), batch_size)]
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.cat(parts)
