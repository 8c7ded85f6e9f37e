"""The insertion test: a latent while patches are put onto a canvas, the highest score first.

An attributor says which patches a latent z_k is made of. If it is right, the first few bring z_k back (iERF paper, Kim,
Han, Kwak 2026, section 5.3: CAFE). What is put where, and what is read, is a `Response`; here are only orders, curves
and areas, which know of no network. `backlight.concepts.insertion_latents` has the responses of latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.correlation import precise
from backlight.metrics.draws import Seed, drawn
from backlight.metrics.insertion_deletion import auc
from backlight.shapes import Bool, Float, Int

SCHEDULES = ("lab", "doubling")
STRIDE = 8  # of the lab's schedule, after the first powers of two
BATCH_SIZE = 32
FLOOR = 1e-6

Steps = str | int | Sequence[int]
Response = Callable[[Int[Tensor, "b"], Bool[Tensor, "b P"]], Float[Tensor, "b"]]


def budgets_of(steps: Steps, count: int) -> Int[Tensor, "T"]:
    """How many of `count` patches are there at each step, from 0 to all of them.

    Args:
        steps: "lab": 0, 1, 2, 4, 8, then every 8th; "doubling": 0 and the powers of two; a number: so many steps of
            equal size, one apart where it does not divide the patches; or the budgets themselves, to which 0 and
            `count` are added.

    Raises:
        UnknownNameError: another name.
        InputError: no patches, no steps, or budgets that are not in 0..count.
    """
    if count < 1:
        raise InputError(f"an insertion needs at least one patch, got {count}")
    if isinstance(steps, str):
        if steps not in SCHEDULES:
            raise UnknownNameError("schedule of steps", steps, SCHEDULES)
        powers = [1 << power for power in range(count.bit_length())]
        found = powers if steps == "doubling" else [*(p for p in powers if p < STRIDE), *range(STRIDE, count, STRIDE)]
    elif isinstance(steps, int):
        if steps < 1:
            raise InputError(f"an insertion needs at least one step, got {steps}")
        found = [round(step * count / steps) for step in range(steps + 1)]
    else:
        found = list(steps)
        if any(isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= count for one in found):
            raise InputError(f"budgets are whole numbers from 0 to the number of patches, {count}; got {found}")
    return torch.tensor(sorted({0, count, *found}))


def ranks_of(scores: Float[Tensor, "*B P"]) -> Int[Tensor, "*B P"]:
    """The place of each patch in the order of descending scores, 0 first. Equal scores keep the order of their index.

    Raises:
        InputError: scores that are not finite, which have no order.
    """
    if not torch.isfinite(scores).all():
        raise InputError("scores that are NaN or infinite have no order")
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def insertion_curve(
    response: Response,
    scores: Float[Tensor, "B P"],
    budgets: Int[Tensor, "T"],
    *,
    delete: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "B T"]:
    """The response of each row when as many patches as each budget says are there, those of the highest scores.

    Args:
        response: `(rows [b], masks [b, P]) -> [b]`: the value of these rows when the patches of the masks are there.
        delete: take the highest away instead: the budgets say how many are gone.
        batch_size: the most rows that `response` is asked for at once; the curves do not depend on it.

    Cost: B T responses. Raises `InputError` for scores without an order, or budgets that are none.
    """
    return insertion_curves(response, scores[None], budgets, delete=delete, batch_size=batch_size)[0]


def insertion_curves(
    response: Response,
    scores: Float[Tensor, "M B P"],
    budgets: Int[Tensor, "T"],
    *,
    delete: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "M B T"]:
    """Curves of M orders of the same rows; see `insertion_curve`. Nothing and everything is asked for once a row."""
    methods, rows, count = scores.shape
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if not len(budgets) or int(budgets.min()) < 0 or int(budgets.max()) > count:
        raise InputError(f"budgets lie in 0..{count}, got {budgets.tolist()}")
    ranks = ranks_of(scores)
    found = torch.empty(methods, rows, len(budgets), dtype=torch.float64)
    inner = [place for place, budget in enumerate(budgets.tolist()) if 0 < budget < count]
    for place, budget in enumerate(budgets.tolist()):
        if place not in inner:
            there = torch.full((rows, count), (budget == count) != delete, device=scores.device)
            for part in torch.arange(rows).split(batch_size):
                found[:, part, place] = response(part, there[part]).double().cpu()
    if inner:
        sizes, inside = budgets[inner].to(ranks.device), torch.tensor(inner)
        for flat in torch.arange(methods * rows * len(inner)).split(batch_size):
            one, row, step = flat // (rows * len(inner)), flat // len(inner) % rows, flat % len(inner)
            there = (ranks[one, row] < sizes[step.to(sizes.device)][:, None]) != delete
            found[one, row, inside[step]] = response(row, there).double().cpu()
    return found


def normalised(
    curves: Float[Tensor, "*M B T"], full: Float[Tensor, "B"], floor: float = FLOOR, clip: bool = False
) -> Float[Tensor, "*M B T"]:
    """Curves divided by the value of the whole image: 1 where all is there.

    A row whose |value| is at most `floor` is NaN. `clip`: cut off above 1, which curves exceed where patches that speak
    against the latent come last.
    """
    value = precise(full)[:, None]
    found = torch.where(value.abs() > floor, precise(curves) / value, torch.nan)
    return found.clamp(max=1) if clip else found


@dataclass(frozen=True, eq=False)
class InsertionCurves:
    """Of M orders of N pairs: `values` `[M, N, T]`, the latent; `budgets` `[T]` of `count` patches; `delete`.

    `names` of the orders; `tokens` `[N]`: where the latent was read (-1: the largest of all).
    """

    names: tuple[str, ...]
    values: Float[Tensor, "M N T"]
    budgets: Int[Tensor, "T"]
    count: int
    tokens: Int[Tensor, "N"]
    delete: bool = False
    floor: float = FLOOR
    clip: bool = False

    @property
    def fractions(self) -> Float[Tensor, "T"]:
        """The budgets as shares of the patches, from 0 to 1."""
        return self.budgets.double() / self.count

    @property
    def full(self) -> Float[Tensor, "N"]:
        """The latent of the whole image."""
        return self.values[0, :, 0 if self.delete else -1]

    @property
    def empty(self) -> Float[Tensor, "N"]:
        """The latent of the canvas."""
        return self.values[0, :, -1 if self.delete else 0]

    @property
    def normalised(self) -> Float[Tensor, "M N T"]:
        """Divided by `full`; NaN where that is no more than `floor`."""
        return normalised(self.values, self.full, self.floor, self.clip)

    @property
    def auc(self) -> Float[Tensor, "M N"]:
        """Areas under the normalised curves, by the trapezoidal rule on [0, 1]; NaN for dropped pairs."""
        return auc(self.normalised, self.fractions)

    @property
    def dropped(self) -> int:
        """Pairs without a value to divide by."""
        return int((self.full.abs() <= self.floor).sum())


def stochastic_gain(
    response: Response,
    scores: Float[Tensor, "B P"],
    budgets: Int[Tensor, "T"],
    *,
    draws: int = 8,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "B T"]:
    """The mean curve of orders drawn in proportion to the scores, minus that of uniform orders.

    A patch is the next with a probability proportional to its score (Plackett-Luce, by Gumbel noise; negative scores
    count as 0, and come last). The uniform orders have the same noise, so that scores that are all equal give exactly
    0. Where `scores` orders by size alone, this asks for the sizes too.

    Args:
        seed: of the draws: one for all rows, or one a row.

    Cost: 2 draws B T responses.
    """
    if draws < 1:
        raise InputError(f"needs at least one draw, got {draws}")
    ranks_of(scores)  # finite ones only
    shape = (draws, scores.shape[1])
    noise = drawn(seed, len(scores), lambda one: torch.rand(shape, generator=one), scores).double().transpose(0, 1)
    gumbel = -torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-12)))
    logs = precise(scores).clamp(min=0).clamp(min=1e-30).log()
    orders = torch.cat((gumbel + logs.to(gumbel), gumbel))
    curves = insertion_curves(response, orders, budgets, batch_size=batch_size)
    told, uniform = curves.chunk(2)
    return told.mean(0) - uniform.mean(0)
