"""One backward pass a set of channels against one a unit: the cost of a contribution map, and how far the two differ.

ResNet-50 with random weights, the output of block 13 (`layer4.0`, 7 x 7), 3 channels: 147 units, the loop of CODEC's
reference against `contribution_maps`. CPU seconds of one thread, so that other processes do not count.

    python benchmarks/contribution_map_speed.py [--site layer4.0] [--channels 3]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import backlight
from backlight.contributions import contribution_maps
from backlight.engine import captured


def loop(model: torch.nn.Module, x: Tensor, site: str, channels: list[int], target: int) -> tuple[Tensor, Tensor]:
    """(map, positive part), a backward pass for every channel and position."""
    x = x.clone().requires_grad_()
    with captured(model, [site]) as store:
        score = model(x)[0, target]
    h = store[site]
    g = torch.autograd.grad(score, h, retain_graph=True)[0]
    total, positive = torch.zeros_like(x), torch.zeros_like(x)
    for channel in channels:
        for row in range(h.shape[2]):
            for column in range(h.shape[3]):
                unit = h[0, channel, row, column]
                part = g[0, channel, row, column] * torch.autograd.grad(unit, x, retain_graph=True)[0] * x.detach()
                total += part
                positive += part if part.sum() > 0 else 0
    return total.detach(), positive.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", default="layer4.0")
    parser.add_argument("--channels", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = backlight.load("resnet50", pretrained=False).model.requires_grad_(False)
    x = torch.randn(1, 3, 224, 224)
    channels = torch.linspace(100, 900, given.channels).long().tolist()
    contribution_maps(model, x[..., :64, :64], given.site, [channels], 0)  # what the first call imports
    begun = time.process_time()
    total, positive = loop(model, x, given.site, channels, 0)
    theirs = time.process_time() - begun
    print(f"a backward pass a unit: {theirs:.2f} s of CPU")
    for split, expected in ((False, total), (True, positive)):
        begun = time.process_time()
        found = contribution_maps(model, x, given.site, [channels], 0, split=split)
        ours = time.process_time() - begun
        value = found.positive if split else found.total
        assert value is not None
        error = (value[0] - expected).abs().max() / total.abs().max()
        what = "both parts and contributions" if split else "the map"
        print(f"{what}: {ours:.2f} s of CPU, {theirs / ours:.0f} times less; largest relative difference {error:.1e}")


if __name__ == "__main__":
    main()
