"""Movies that retinas are shown: noise, natural-like scenes, bars, objects and flashes; drawn by a seed, z-scored.

All are `[T, H, W]` of mean 0 and standard deviation 1 over all entries: 0 is the mean luminance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float

Size = Sequence[int]


def white_noise(frames: int, size: Size, *, check: int = 1, hold: int = 2, seed: int = 0) -> Float[Tensor, "T H W"]:
    """Binary checks of `check` pixels, each picture shown for `hold` frames."""
    draw = _begin(frames, size, seed)
    coarse = [-(-side // check) for side in size]
    pictures = torch.randint(0, 2, (-(-frames // hold), *coarse), generator=draw).float()
    fine = pictures.repeat_interleave(check, 1).repeat_interleave(check, 2)[:, : size[0], : size[1]]
    return z_scored(fine.repeat_interleave(hold, 0)[:frames])


def natural_movie(
    frames: int,
    size: Size,
    *,
    jitter: float = 0.35,
    fixation: int = 50,
    exponent: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "T H W"]:
    """Pictures with amplitude 1 / f^`exponent`, seen by an eye that drifts and jumps.

    The eye walks at random, `jitter` pixels a frame (standard deviation, an axis), and jumps every `fixation` frames to
    another place of a new picture. Between pixels it is interpolated, so that what moves is the picture.
    """
    draw = _begin(frames, size, seed)
    side = 2 * max(size) + 8
    parts = []
    for start in range(0, frames, fixation):
        count = min(fixation, frames - start)
        picture = _one_over_f(side, exponent, draw)
        walk = (torch.randn((count, 2), generator=draw) * jitter).cumsum(0)
        centre = torch.rand(2, generator=draw) * (side - torch.tensor(size, dtype=torch.float)) * 0.5
        parts.append(_seen(picture, size, walk + centre + 0.25 * (side - torch.tensor(size, dtype=torch.float))))
    return z_scored(torch.cat(parts))


def moving_bars(
    frames: int, size: Size, *, width: float = 3.0, speed: float = 0.5, seed: int = 0
) -> Float[Tensor, "T H W"]:
    """Bars, brighter or darker than the ground, that cross it one after the other in random directions.

    `width` in pixels, `speed` in pixels a frame.
    """
    draw = _begin(frames, size, seed)
    rows, columns = _grid(size)
    reach = math.hypot(*size) / 2 + width
    duration = max(1, math.ceil(2 * reach / speed))
    parts = []
    for _ in range(-(-frames // duration)):
        angle = 2 * math.pi * float(torch.rand((), generator=draw))
        sign = 1.0 if float(torch.rand((), generator=draw)) < 0.5 else -1.0
        along = rows * math.sin(angle) + columns * math.cos(angle)
        place = -reach + speed * torch.arange(duration)[:, None, None]
        parts.append(sign * torch.sigmoid(4 * (width / 2 - (along - place).abs())))
    return z_scored(torch.cat(parts)[:frames])


def moving_objects(
    frames: int, size: Size, *, radius: float = 4.0, speed: float = 0.4, jitter: float = 0.2, seed: int = 0
) -> Float[Tensor, "T H W"]:
    """Discs with a texture of their own that move over a background, which jitters as the eye does.

    `radius` in pixels; `speed` of a disc and `jitter` of the ground in pixels a frame.
    """
    draw = _begin(frames, size, seed)
    rows, columns = _grid(size)
    side = 2 * max(size) + 8
    reach = math.hypot(*size) / 2 + radius
    duration = max(1, math.ceil(2 * reach / speed))
    parts = []
    for _ in range(-(-frames // duration)):
        ground, texture = _one_over_f(side, 1.0, draw), 1.5 * _one_over_f(side, 1.0, draw)
        angle = 2 * math.pi * float(torch.rand((), generator=draw))
        miss = (float(torch.rand((), generator=draw)) - 0.5) * min(size)
        place = -reach + speed * torch.arange(duration)
        y = place * math.sin(angle) + miss * math.cos(angle)
        x = place * math.cos(angle) - miss * math.sin(angle)
        middle = torch.full((duration, 2), side / 4.0)
        eye = (torch.randn((duration, 2), generator=draw) * jitter).cumsum(0)
        own = middle - torch.stack((y, x), 1).clamp(-side / 4, side / 4)  # the texture goes with the disc
        inside = torch.sigmoid(4 * (radius - torch.hypot(rows - y[:, None, None], columns - x[:, None, None])))
        parts.append(torch.lerp(_seen(ground, size, middle + eye), _seen(texture, size, own), inside))
    return z_scored(torch.cat(parts)[:frames])


def flashes(frames: int, size: Size, *, period: int = 40, seed: int = 0) -> Float[Tensor, "T H W"]:
    """The whole field, at a new contrast in [-1, 1] every half `period`, grey in between."""
    draw = _begin(frames, size, seed)
    half = max(1, period // 2)
    steps = 2 * torch.rand(-(-frames // (2 * half)), generator=draw) - 1
    course = torch.stack((steps, torch.zeros_like(steps)), 1).flatten().repeat_interleave(half)[:frames]
    return z_scored(course[:, None, None].expand(frames, *size).clone())


STIMULI: dict[str, Callable[..., Tensor]] = {
    one.__name__: one for one in (white_noise, natural_movie, moving_bars, moving_objects, flashes)
}


def stimulus(names: str | Sequence[str], frames: int, size: Size, seed: int = 0) -> Float[Tensor, "T H W"]:
    """Movies of `STIMULI` one after the other, of `frames` in all, in equal parts; each with draws of its own.

    Raises:
        UnknownNameError: a movie that there is not.
        InputError: fewer frames than movies.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in STIMULI:
            raise UnknownNameError("stimulus", name, STIMULI)
    if not wanted or frames < len(wanted):
        raise InputError(f"{frames} frames for {len(wanted)} movies")
    ends = [frames * (i + 1) // len(wanted) for i in range(len(wanted))]
    lengths = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    parts = [
        STIMULI[name](count, size, seed=seed * 1009 + i)
        for i, (name, count) in enumerate(zip(wanted, lengths, strict=True))
    ]
    return torch.cat(parts)


def z_scored(movie: Float[Tensor, "T H W"]) -> Float[Tensor, "T H W"]:
    """(x - mean) / standard deviation over all entries; a movie that does not vary is 0."""
    wide = movie.double()
    spread = wide.std(correction=0)
    return ((wide - wide.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))).float()


def _begin(frames: int, size: Size, seed: int) -> torch.Generator:
    if frames < 1 or len(size) != 2 or min(size) < 1:
        raise InputError(f"a movie has frames and a size (H, W) from 1 on, got {frames} and {list(size)}")
    return torch.Generator().manual_seed(seed)


def _grid(size: Size) -> tuple[Tensor, Tensor]:
    """Rows and columns about the middle, in pixels."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in size)
    return rows[:, None], columns[None, :]


def _one_over_f(side: int, exponent: float, draw: torch.Generator) -> Float[Tensor, "S S"]:
    """A picture with random phases and amplitude 1 / f^exponent, of mean 0 and variance 1; it is periodic."""
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :])
    weight = torch.where(frequency > 0, frequency.clamp(min=1e-9) ** -exponent, torch.zeros_like(frequency))
    spectrum = torch.fft.rfft2(torch.randn((side, side), generator=draw)) * weight
    picture = torch.fft.irfft2(spectrum, s=(side, side))
    return picture / picture.std(correction=0)


def _seen(picture: Float[Tensor, "S S"], size: Size, corners: Float[Tensor, "n two"]) -> Float[Tensor, "n H W"]:
    """What a window of `size` sees of a picture with its first pixel at (row, column), bilinear, without an edge."""
    side = len(picture)
    rows = (corners[:, 0, None] + torch.arange(size[0])).clamp(0, side - 1)
    columns = (corners[:, 1, None] + torch.arange(size[1])).clamp(0, side - 1)
    y, x = (2 * one / (side - 1) - 1 for one in (rows, columns))
    grid = torch.stack((x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])), 3)
    pictures = picture.expand(len(corners), 1, side, side)
    return F.grid_sample(pictures, grid, align_corners=True)[:, 0]
