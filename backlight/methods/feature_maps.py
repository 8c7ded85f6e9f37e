"""What a layer gives, as feature maps `[N, C, *space]`: channels moved to axis 1, tokens laid out on their grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, isqrt, prod

from torch import Tensor

from backlight.errors import SiteError
from backlight.shapes import Float

MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens: timm's models have at most 9


def feature_maps(
    values: Float[Tensor, "N *axes"],
    size: Sequence[int],
    grid: Sequence[int] | None = None,
    channels_last: bool | None = None,
) -> Float[Tensor, "N C *space"]:
    """A layer's values as maps of their channels.

    Args:
        values: maps `[N, C, *space]` or `[N, *space, C]`, or tokens `[N, L, D]`, of which those before the grid (class,
            distillation and register tokens) are left out.
        size: of the input, without samples and channels: `(H, W)`.
        grid: how tokens are laid out, row by row; None: as many as there can be, of whole pixels, in the input's
            proportions.
        channels_last: where the channels of maps are; None: first, unless only the other reading has the input's
            proportions.

    Raises:
        SiteError: values that are neither maps nor tokens of such a grid.
    """
    shape = list(values.shape)
    if values.ndim == len(size) + 2:
        last = _is_channels_last(shape, size) if channels_last is None else channels_last
        return values.movedim(-1, 1) if last else values
    if values.ndim == 3:
        cells = tuple(grid) if grid is not None else _grid(shape[1], size)
        prefix = shape[1] - prod(cells)
        tiles = len(cells) == len(size) and prod(cells) > 1 and prefix >= 0
        if grid is None:
            tiles &= prefix <= MOST_PREFIX_TOKENS and not any(s % c for s, c in zip(size, cells, strict=True))
        if tiles:
            return values[:, prefix:].movedim(-1, 1).unflatten(2, cells)
        raise SiteError(
            f"{shape[1]} tokens do not lie on a grid of {'x'.join(map(str, cells))} over an input of "
            f"{'x'.join(map(str, size))}: give grid=({', '.join('hw'[: len(size)])}) of the tokens without prefix"
        )
    raise SiteError(
        f"the layer gives {shape}: expected maps [N, C, ...] with {len(size)} axes of positions, as the input has, or "
        "tokens [N, L, D]; name another layer"
    )


def prefix_tokens(values: Tensor, maps: Tensor) -> Tensor:
    """The tokens that `feature_maps` left out, `[N, P, D]`; none where there are no tokens."""
    return values[:, : values.shape[1] - maps.shape[2:].numel()] if values.ndim == 3 != maps.ndim else values[:, :0]


def _grid(tokens: int, size: Sequence[int]) -> tuple[int, ...]:
    """The largest grid of the input's proportions that so many tokens can fill."""
    if len(size) == 1:
        return (tokens,)
    unit = [side // gcd(*size) for side in size]
    per_cell = prod(unit)
    times = isqrt(tokens // per_cell) if len(size) == 2 else round((tokens // per_cell) ** (1 / len(size)))
    return tuple(max(times, 1) * side for side in unit)


def _is_channels_last(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Whether the map has the input's proportions only if its last axis holds the channels."""

    def fits(space: Sequence[int]) -> bool:
        strides = [side / cells for side, cells in zip(size, space, strict=True)]
        return max(strides) - min(strides) < 0.02 * max(strides)

    return fits(shape[1:-1]) and not fits(shape[2:])
