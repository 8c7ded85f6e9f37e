"""What contributions cost: hidden integrated gradients at all block outputs against the bare passes, and memory.

    python benchmarks/contribution_speed.py [--model resnet50] [--batch 4] [--steps 10] [--repeats 5] [--device cuda]

Random weights. A call of `contribute` at every block of the network is timed against `steps + 1` bare forward and
backward passes (parameters frozen, gradient at the input) of the same batch; both alternate, after a warm-up, and the
median of the pairs' ratios is printed. Seconds are of processor time with --cpu-time, so that another load on the
machine counts little, else of the clock. Peak memory is that above the loaded model, taken in a process of its own.

CODEC (Contribution Decomposition) states, for the 16 blocks of a ResNet-50 on its GPU, 293 ms an image for hidden
integrated gradients at 10 steps and 93 ms for ActNormGrad: on a GPU, both are timed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import backlight
from backlight.contributions import HiddenIntegratedGradients
from backlight.contributions.sites import default_sites


def network(settings: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(settings.model, pretrained=False).eval().requires_grad_(False).to(settings.device)
    return model, torch.randn(settings.batch, 3, settings.size, settings.size, device=settings.device)


def contributions(model: nn.Module, x: Tensor, settings: argparse.Namespace) -> backlight.Contributions:
    return backlight.contribute(model, x, settings.sites, algorithm=HiddenIntegratedGradients(settings.steps))


def one_pass(model: nn.Module, x: Tensor, settings: argparse.Namespace) -> backlight.Contributions:
    return backlight.contribute(model, x, settings.sites, algorithm="ActNormGrad")


def bare(model: nn.Module, x: Tensor, settings: argparse.Namespace) -> None:
    for _ in range(settings.steps + 1):
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf).amax(1).sum(), leaf)


RUNS = {"bare": bare, "contribute": contributions}


def seconds(run: Any, model: nn.Module, x: Tensor, settings: argparse.Namespace) -> float:
    clock = time.process_time if settings.cpu_time else time.perf_counter
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    start = clock()
    run(model, x, settings)
    wait()
    return clock() - start


def peak(model: nn.Module, x: Tensor, settings: argparse.Namespace) -> float:
    """GiB above the loaded model, of this process or of its GPU."""
    run = RUNS[settings.peak]
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        run(model, x, settings)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    before = _resident()
    run(model, x, settings)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before


def _resident() -> float:
    """GiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"model": "resnet50", "batch": 4, "size": 224, "steps": 10, "repeats": 5}.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--peak", choices=RUNS, help="print the peak memory of one run, in GiB, and nothing else")
    settings = parser.parse_args()
    model, x = network(settings)
    settings.sites = default_sites(model)
    if settings.peak:
        print(peak(model, x, settings))
        return
    one_pass(model, x, settings)
    pairs = [
        (seconds(contributions, model, x, settings), seconds(bare, model, x, settings)) for _ in range(settings.repeats)
    ]
    ratios = sorted(a / b for a, b in pairs)
    own = statistics.median(a for a, _ in pairs)
    command = [sys.executable, *sys.argv, "--peak"]
    memory = {name: float(subprocess.run([*command, name], capture_output=True, check=True).stdout) for name in RUNS}
    print(f"{settings.model}, {len(settings.sites)} sites, {settings.steps} steps, batch {settings.batch}, {x.device}")
    print(f"{own:.2f} s ({'processor' if settings.cpu_time else 'clock'}), {1000 * own / len(x):.0f} ms an image")
    print(
        f"times {settings.steps + 1} bare passes: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    print(f"peak memory above the model: {memory['contribute']:.2f} GiB (bare passes: {memory['bare']:.2f})")
    if x.is_cuda:
        single = statistics.median(seconds(one_pass, model, x, settings) for _ in range(settings.repeats))
        print(f"ActNormGrad: {1000 * single / len(x):.0f} ms an image; CODEC states 293 and 93 ms on its GPU")


if __name__ == "__main__":
    main()
