"""What the evaluation of the pullback papers' tables costs: passes counted, rates measured, hours computed.

    python benchmarks/evaluation_cost.py [--model efficientnet_lite0] [--device cpu] [--images 1000]
        [--forwards PER_SECOND --gradients PER_SECOND]

Passes of the exact protocol of `backlight benchmark pullbacks` are counted, not derived: by hooks on a small network,
whose passes are those of any network. A gradient is a forward and a backward pass. The rates of a network are measured
in batches of 32 images, or given. Published for the reference: 7 hours on one A100, 1000 images, ResNet50.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import backlight
from backlight.benchmarks.protocols import PULLBACKS, Column, Row
from backlight.methods import method
from backlight.metrics import Case, metric
from backlight.metrics.controls import controls

BATCH, SIZE, REFERENCE = 32, 16, 7.0


class Counted(nn.Module):
    """A network small enough that only its passes matter; it counts the samples that go through it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)
        self.head = nn.Linear(4 * SIZE * SIZE // 16, 10)
        self.forwards = self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients += len(x)
        else:
            self.forwards += len(x)
        return self.head(self.pool(self.act(self.conv(x))).flatten(1))


def counted(rows: dict[str, Row], columns: dict[str, Column]) -> dict[str, tuple[int, int]]:
    """(forwards, gradients) an image: of the explanations, then of each metric given them."""
    network = Counted().eval().requires_grad_(False)
    x = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    methods = {label: method(row.method)(network, **row.settings) for label, row in rows.items()}
    case = Case(network, x, [3], {**methods, **controls()}, batch_size=BATCH)
    found: dict[str, tuple[int, int]] = {}

    def note(label: str, run: Callable[[], object]) -> None:
        network.forwards = network.gradients = 0
        run()
        found[label] = (network.forwards, network.gradients)

    note("explanations", lambda: case.attributions)
    for label, column in columns.items():
        measure = metric(column.metric).preset(column.preset, **column.settings)
        note(label, lambda measure=measure: measure(case))  # type: ignore[misc]
    return found


def rates(name: str, device: str, repeats: int = 5) -> tuple[float, float]:
    """(forwards, gradients) a second, medians."""
    loaded = backlight.load(name)
    model, size = loaded.pixels().to(device), loaded.preprocessing.size
    x = (torch.rand(BATCH, 3, *size) * 2 - 1).to(device)
    saliency = backlight.Saliency(model)

    def forward() -> None:
        with torch.no_grad():
            model(x.contiguous(memory_format=torch.channels_last))

    def timed(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return BATCH / statistics.median(seconds[1:])

    return timed(forward), timed(lambda: saliency.attribute(x, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--forwards", type=float, help="a second, in place of measuring")
    parser.add_argument("--gradients", type=float)
    given = parser.parse_args()
    rows = {label: row for label, row in PULLBACKS.rows.items() if row.published}
    columns = {label: column for label, column in PULLBACKS.columns.items() if "(" not in label}
    passes = counted(rows, columns)
    if given.forwards and given.gradients:
        forwards, gradients = given.forwards, given.gradients
    else:
        forwards, gradients = rates(given.model, given.device)
    print(f"{given.model} on {given.device}: {forwards:.0f} forwards and {gradients:.0f} gradients a second\n")
    print(f"{len(rows)} methods and {len(controls())} controls, {len(columns)} metrics, {given.images} images\n")
    print("| | forwards an image | gradients an image | hours |\n|---|---:|---:|---:|")
    total = 0.0
    for label, (forward, gradient) in passes.items():
        hours = given.images * (forward / forwards + gradient / gradients) / 3600
        total += hours
        print(f"| {label} | {forward} | {gradient} | {hours:.2f} |")
    sums = [sum(one[place] for one in passes.values()) for place in (0, 1)]
    print(f"| **all** | {sums[0]} | {sums[1]} | **{total:.2f}** |")
    print(f"\nThe reference took {REFERENCE:.0f} hours for 12 methods without controls on an A100.")


if __name__ == "__main__":
    main()
