"""The learning rate of a step, as a share of the setting: warm-up, and what comes after."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "plateau", "step", "cosine", "linear")


def share(schedule: str, step: int, steps: int, warm_up: int, decay: float, last: float) -> float:
    """The share at step 0..steps-1.

    The rate rises in a straight line over the first `warm_up` steps, a quarter of all at most. "cosine" goes from 1 to
    `last` over all steps after it; "linear" stays, and goes to `last` in a straight line over the last `decay` of all
    steps. The others are by passes, and change the rate itself.
    """
    warm_up = min(warm_up, steps // 4)
    begin = min((step + 1) / warm_up, 1.0) if warm_up else 1.0
    if schedule == "cosine":
        way = min(max((step - warm_up) / max(steps - warm_up, 1), 0.0), 1.0)
        return begin * (last + (1 - last) * (1 + math.cos(math.pi * way)) / 2)
    if schedule == "linear":
        left = (steps - step) / max(decay * steps, 1.0)
        return begin * (last + (1 - last) * min(left, 1.0))
    return begin
