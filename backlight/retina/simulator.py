"""A retina whose wiring is known: bipolar-like subunits, amacrine-like inhibition, ganglion cells of several types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.data.retina_stimuli import stimulus
from backlight.errors import InputError, UnknownNameError
from backlight.retina.recording import Recording
from backlight.shapes import Float

SUBUNITS = ("ON fast", "ON slow", "OFF fast", "OFF slow")
PATHWAYS = (*SUBUNITS, *(f"{name}, inhibition" for name in SUBUNITS))
CHUNK = 1024  # frames of a movie that are computed at once


@dataclass(frozen=True)
class CellType:
    """How ganglion cells of a type are wired.

    `excitation`, `inhibition`: weights of the four `SUBUNITS`, directly and by way of an amacrine-like cell. `delay` of
    the inhibition, as a share of the longest; `spread`: its width, relative to the cell's own; `offset`: how far it is
    moved along the null direction, in units of the cell's width (0: it has none).
    """

    excitation: tuple[float, float, float, float]
    inhibition: tuple[float, float, float, float]
    delay: float = 0.0
    spread: float = 1.0
    offset: float = 0.0


CELL_TYPES: dict[str, CellType] = {
    "ON": CellType((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.5)),  # crossover inhibition
    "OFF": CellType((0.0, 0.0, 0.0, 1.0), (0.0, 0.5, 0.0, 0.0)),
    "ON-OFF": CellType((1.0, 0.0, 1.0, 0.0), (0.5, 0.0, 0.5, 0.0), delay=0.5, spread=2.0),  # transient
    "motion": CellType((1.0, 0.0, 0.0, 0.0), (1.5, 0.0, 0.0, 0.0), delay=1.0, offset=1.25),  # Barlow and Levick 1965
}


class RetinaSimulator(nn.Module):
    """Movie windows `[N, F, H, W]` to expected spike counts `[N, cells]`: an LN-LN cascade that can be differentiated.

    Subunit of type b at a pixel: v = relu(k_b * s - threshold), k_b a biphasic filter in time times a Gaussian in
    space, of length 1. Cell c: g = sum_b w_cb E_c . v_b - sum_b u_cb relu(I_c . v_b(t - d_c) - 0.1), E and I Gaussians
    of sum 1; s = 0.3 softplus(2.5 ((g - mean) / std - 0.8)), mean and std those of a natural movie of its own; and the
    rate is s / (1 + s / 4), at most 4 a frame.

    Args:
        types: a name of `CELL_TYPES` a cell; or, with `cells`, these in turn.
        size, frames: of the stimulus. frames is at least 8.
        subunit, pool: widths (sigma, in pixels) of subunits and cells.
        fast, slow: the peaks of the two filters in time, in frames; None: 0.09 and 0.18 of `frames`.
        delay: the longest delay of inhibition in frames; None: a tenth of `frames`.
        seed: of the places of cells, directions, and the movie that rates are scaled by.

    Raises:
        UnknownNameError: a type that there is not.
        InputError: sizes out of range.
    """

    def __init__(
        self,
        types: Sequence[str] = tuple(CELL_TYPES),
        *,
        cells: int | None = None,
        size: Sequence[int] = (50, 50),
        frames: int = 40,
        subunit: float = 1.0,
        pool: float = 2.5,
        fast: float | None = None,
        slow: float | None = None,
        delay: int | None = None,
        threshold: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name in types:
            if name not in CELL_TYPES:
                raise UnknownNameError("type of ganglion cell", name, CELL_TYPES)
        longest = max(1, frames // 10) if delay is None else delay
        if not types or (cells is not None and cells < 1) or len(size) != 2 or frames < 8 or not 0 <= longest < frames:
            raise InputError(f"cells, a size (H, W), 8 frames or more: got {cells}, {list(size)}, {frames}, {longest}")
        if min(subunit, pool) <= 0:
            raise InputError(f"widths are positive, got {subunit} and {pool}")
        count = len(types) if cells is None else cells
        self.types = [types[i % len(types)] for i in range(count)]
        self.size, self.frames, self.seed, self.threshold = (int(size[0]), int(size[1])), frames, seed, float(threshold)
        self.length = frames - longest
        peaks = [0.09 * frames if fast is None else fast, 0.18 * frames if slow is None else slow]
        self.register_buffer("temporal", torch.stack([s * _biphasic(self.length, p) for s in (1, -1) for p in peaks]))
        self.register_buffer("spatial", _gaussian_line(subunit))
        self._wire(pool, longest)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        movie = stimulus("natural_movie", 600 + frames, self.size, seed=10_007 + seed)
        generator = self.pathways(movie).sum(2).double()
        self.register_buffer("mean", generator.mean(0).float())
        self.register_buffer("std", generator.std(0).clamp(min=1e-6).float())

    def _wire(self, pool: float, longest: int) -> None:
        """Places, directions, delays and weights of the cells."""
        draw = torch.Generator().manual_seed(self.seed)
        height, width = self.size
        margin = min(1.5 * pool, (min(self.size) - 1) / 2)
        room = torch.tensor([height - 1 - 2 * margin, width - 1 - 2 * margin])
        self.register_buffer("places", margin + torch.rand((len(self.types), 2), generator=draw) * room)
        angles = 2 * math.pi * torch.rand(len(self.types), generator=draw)
        self.register_buffer("directions", torch.stack((angles.sin(), angles.cos()), 1))
        kinds = [CELL_TYPES[name] for name in self.types]
        self.delays = [round(kind.delay * longest) for kind in kinds]
        excitation, inhibition = [], []
        for i, kind in enumerate(kinds):
            place, direction = self.get_buffer("places")[i], self.get_buffer("directions")[i]
            own = _gaussian(self.size, place, pool)
            other = _gaussian(self.size, place - kind.offset * pool * direction, kind.spread * pool)
            excitation.append(torch.tensor(kind.excitation)[:, None, None] * own)
            inhibition.append(other.expand(len(SUBUNITS), -1, -1))
        self.register_buffer("excitation", torch.stack(excitation))
        self.register_buffer("inhibition", torch.stack(inhibition))
        self.register_buffer("strength", torch.tensor([kind.inhibition for kind in kinds]))

    def forward(self, windows: Float[Tensor, "N F H W"]) -> Float[Tensor, "N cells"]:
        return self._rates(self._pathways(windows).sum(3))[:, 0]

    def subunits(self, movies: Float[Tensor, "N T H W"]) -> Float[Tensor, "N t four H W"]:
        """Activities of the four kinds of subunits at every pixel, from the frame on that has a whole filter."""
        n, frames, height, width = movies.shape
        temporal, spatial = self.get_buffer("temporal").to(movies), self.get_buffer("spatial").to(movies)
        course = movies.permute(0, 2, 3, 1).reshape(-1, 1, frames)
        course = F.conv1d(course, temporal[:, None]).reshape(n, height, width, len(SUBUNITS), -1)
        maps = course.permute(0, 4, 3, 1, 2).reshape(-1, 1, height, width)
        reach = len(spatial) // 2
        maps = F.conv2d(maps, spatial[None, None, :, None], padding=(reach, 0))
        maps = F.conv2d(maps, spatial[None, None, None], padding=(0, reach))
        return (maps.reshape(n, -1, len(SUBUNITS), height, width) - self.threshold).relu()

    def _pathways(self, movies: Float[Tensor, "N T H W"]) -> Float[Tensor, "N n cells paths"]:
        v = self.subunits(movies)
        count = movies.shape[1] - self.frames + 1
        weights = [self.get_buffer(name).to(movies) for name in ("excitation", "inhibition", "strength")]
        excited = torch.einsum("ntbyx,cbyx->ntcb", v[:, -count:], weights[0])
        pooled = (torch.einsum("ntbyx,cbyx->ntcb", v, weights[1]) - 0.1).relu() * weights[2]
        last = pooled.shape[1] - count
        inhibited = torch.stack([pooled[:, last - d : last - d + count, c] for c, d in enumerate(self.delays)], 2)
        return torch.cat((excited, -inhibited), 3)

    def _rates(self, generator: Float[Tensor, "*n cells"]) -> Float[Tensor, "*n cells"]:
        mean, std = self.get_buffer("mean").to(generator), self.get_buffer("std").to(generator)
        free = 0.3 * F.softplus(2.5 * ((generator - mean) / std - 0.8))
        return free / (1 + free / 4)

    @torch.no_grad()
    def pathways(self, movie: Float[Tensor, "T H W"]) -> Float[Tensor, "n cells paths"]:
        """What each of `PATHWAYS` adds to each cell in the last frame of every window: the ground truth of groups."""
        if movie.shape[1:] != self.size or len(movie) < self.frames:
            raise InputError(f"expected a movie [{self.frames} or more, *{self.size}], got {list(movie.shape)}")
        count = len(movie) - self.frames + 1
        parts = []
        for start in range(0, count, CHUNK):
            stop = min(count, start + CHUNK)
            parts.append(self._pathways(movie[None, start : stop + self.frames - 1])[0])
        return torch.cat(parts)

    def rates(self, movie: Float[Tensor, "T H W"]) -> Float[Tensor, "n cells"]:
        """Expected counts in the last frame of every window: `forward` of all windows, at a fraction of the cost."""
        return self._rates(self.pathways(movie).sum(2))

    def record(self, movie: Float[Tensor, "T H W"], repeats: int = 1, seed: int = 0) -> Recording:
        """Poisson counts of a movie that is shown `repeats` times."""
        if repeats < 1:
            raise InputError(f"a movie is shown once or more, got {repeats}")
        rates = self.rates(movie)
        draw = torch.Generator().manual_seed(seed)
        counts = torch.poisson(rates.expand(repeats, -1, -1), generator=draw)
        about = {"types": self.types, "places": self.get_buffer("places").tolist(), "simulator_seed": self.seed}
        return Recording(movie, counts, self.frames, rates, about)


def _biphasic(length: int, peak: float) -> Float[Tensor, "L"]:
    """A lobe that peaks `peak` frames ago and an opposite one at twice that, 0.7 of its height; length 1.

    (t / p e^(1 - t / p))^4 - 0.7 (t / 2p e^(1 - t / 2p))^4, t frames before the last; the last entry is the present.
    """
    t = torch.arange(length - 1, -1, -1, dtype=torch.float64)
    lobes = [(t / p * torch.exp(1 - t / p)) ** 4 for p in (peak, 2 * peak)]
    found = lobes[0] - 0.7 * lobes[1]
    return (found / found.norm()).float()


def _gaussian_line(sigma: float) -> Float[Tensor, "k"]:
    """Of an odd number of pixels; of length 1, so that white noise comes out with the variance that it has."""
    reach = max(1, math.ceil(3 * sigma))
    found = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return found / found.norm()


def _gaussian(size: Sequence[int], place: Float[Tensor, "two"], sigma: float) -> Float[Tensor, "H W"]:
    """About a place (row, column), of sum 1."""
    y, x = (
        torch.exp(-((torch.arange(side) - p) ** 2) / (2 * sigma**2))
        for side, p in zip(size, place.tolist(), strict=True)
    )
    found = y[:, None] * x
    return found / found.sum()
