"""Hidden integrated gradients, streamed: along the path that a line in the input warps to, and along a straight one.

Of the path only the running total and the previous point are kept, so that memory does not grow with the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.contributions.occasion import Occasion, wide
from backlight.engine.paths import Inputs, line_rule


def along_input(occasion: Occasion, n_steps: int, rule: str, spacing: float) -> tuple[dict[str, Tensor], Tensor]:
    """sum_{i=1..S} w(g_{i-1}, g_i) * (h_i - h_{i-1}), h_i at x_0 + a_i (x - x_0) (CODEC, equations 20 and 21).

    w is the mean of both gradients (trapezoid), or the left or right one; a_i = (i / S)^spacing. The path is walked
    from the input, whose pass is known, to the baseline: n_steps further forward and backward passes for all sites
    together.

    Returns:
        (totals by site, the target at the baseline).
    """
    here, start = occasion.here, occasion.baseline
    totals = {site: torch.zeros_like(wide(value)) for site, value in here.activations.items()}
    h, g, scores = dict(here.activations), dict(here.gradients), here.scores
    for i in reversed(range(n_steps)):
        point = _between(start, occasion.inputs, (i / n_steps) ** spacing)
        if i == 0 and rule == "riemann_right":  # whose gradient at the baseline has no weight
            scores, before = occasion.activations_at(point)
            gradients = dict(g)
        else:
            passed = occasion.at(point)
            scores, before, gradients = passed.scores, passed.activations, passed.gradients
            del passed
        for site, total in totals.items():  # what is no longer needed goes at once
            h_i, h_before = h.pop(site), before.pop(site)
            g_i, g_before = g.pop(site), gradients[site]
            difference = wide(h_i) - h_before
            if rule == "trapezoid":
                total.add_(difference.mul_((wide(g_i) + g_before).mul_(0.5)))
            else:
                total.addcmul_(difference, wide(g_before if rule == "riemann_left" else g_i))
            h[site], g[site] = h_before, g_before
    return totals, scores


def along_hidden(occasion: Occasion, n_steps: int, rule: str) -> tuple[dict[str, Tensor], Tensor]:
    """(h - h_0) * sum_i w_i g at h_0 + a_i (h - h_0), the site replaced (CODEC, equation 12).

    The rest of the network sees the input, so that what passes by the site stays as it is. A pass a site and node,
    and a forward pass at the baseline; at the node 1 the pass at the input is used.

    Returns:
        (contributions by site, the target at the baseline).
    """
    nodes, weights = line_rule(rule, n_steps + 1 if rule == "trapezoid" else n_steps)
    scores, before = occasion.activations_at(occasion.baseline)
    values: dict[str, Tensor] = {}
    for site, h in occasion.here.activations.items():
        h_0 = before.pop(site)
        total = torch.zeros_like(wide(h))
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            if node == 1:
                gradient = occasion.here.gradients[site]
            else:
                gradient = occasion.patched_at(site, h_0 + node * (h - h_0)).gradients[site]
            total.add_(wide(gradient), alpha=weight)
        values[site] = total.mul_(wide(h) - h_0)
    return values, scores


def _between(start: Inputs, end: Inputs, share: float) -> Inputs:
    return tuple(s + share * (x - s) for s, x in zip(start, end, strict=True)) if share else start
