"""What metrics cost: against the bare passes of the network that they need, and against Quantus.

    python benchmarks/metric_speed.py [--model torchvision:resnet18] [--images 8] [--metrics A,B] [--no-quantus]

Each metric is timed against as many bare passes as it needs, in full batches: forwards of images that are there
already, gradients of their scores. Quantus gets the same network, images, maps and numbers of perturbations.
Runs alternate, after a warm-up; the table gives medians. Seconds are of processor time a sample with --cpu-time, so
that another load on the machine counts little, else of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import backlight
from backlight.metrics import Case, Metric, metric

Run = Callable[[], object]


@dataclass(frozen=True)
class Contest:
    """A metric, the passes a sample that it needs, and what Quantus needs to be told for the same."""

    metric: Callable[[], Metric]
    forwards: int
    gradients: int
    quantus: tuple[str, dict[str, Any]]


def contests(size: int) -> dict[str, Contest]:
    """The six of the pullback paper at the numbers of draws of the published comparison."""
    entries = 3 * size * size
    uniform = {"perturb_baseline": "uniform", "perturb_func_kwargs": {"uniform_low": -1.0, "uniform_high": 1.0}}
    blocks = {"features_in_step": entries // 48, "abs": True}
    return {
        "Infidelity, n = 5": Contest(
            lambda: metric("Infidelity")(repeats=5),
            101,
            0,
            ("Infidelity", {"perturb_patch_sizes": [size // 2, size // 4], "n_perturb_samples": 5, **uniform}),
        ),
        "FaithfulnessCorrelation, n = 10": Contest(
            lambda: metric("FaithfulnessCorrelation").preset("quantus", runs=10),
            11,
            0,
            ("FaithfulnessCorrelation", {"nr_runs": 10, "subset_size": 224}),
        ),
        "FaithfulnessEstimate": Contest(
            lambda: metric("FaithfulnessEstimate")(),
            49,
            0,
            ("FaithfulnessEstimate", {**blocks, "perturb_baseline": 0.0}),
        ),
        "MonotonicityCorrelation, n = 3": Contest(
            lambda: metric("MonotonicityCorrelation")(n_draws=3),
            145,
            0,
            ("MonotonicityCorrelation", {**blocks, "nr_samples": 3, **uniform}),
        ),
        "MaxSensitivity, n = 3": Contest(
            lambda: metric("MaxSensitivity")(draws=3),
            0,
            3,
            ("MaxSensitivity", {"nr_samples": 3, "lower_bound": 0.02}),
        ),
        "RandomLogit": Contest(lambda: metric("RandomLogit")(), 0, 1, ("RandomLogit", {"seed": 42})),
    }


def ours(contest: Contest, model: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> Run:
    """The metric on maps that are there already, as Quantus gets them."""

    def run() -> object:
        method = backlight.Saliency(model)
        case = Case(model, x, y, {"gradient": method}, {"gradient": maps}, batch_size=len(x))
        return contest.metric()(case)

    return run


def bare(contest: Contest, model: nn.Module, x: Tensor, y: Tensor) -> Run:
    """As many passes at full batch."""

    def run() -> None:
        with torch.no_grad():
            for _ in range(contest.forwards):
                model(x)
        for _ in range(contest.gradients):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(model(leaf).gather(1, y[:, None]).sum(), leaf)

    return run


def theirs(contest: Contest, model: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> Run:
    """Quantus, with a plain gradient of PyTorch as its explanation function."""
    import quantus

    name, settings = contest.quantus
    built = getattr(quantus, name)(**settings, disable_warnings=True, display_progressbar=False)

    def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        leaf = torch.as_tensor(np.asarray(inputs)).float().requires_grad_()
        rows = torch.as_tensor(np.asarray(targets)).long()
        return torch.autograd.grad(model(leaf).gather(1, rows[:, None]).sum(), leaf)[0].numpy()

    def run() -> object:
        return built(
            model=model,
            x_batch=x.numpy(),
            y_batch=y.numpy(),
            a_batch=maps.numpy().copy(),
            explain_func=gradient,
            softmax=False,
            batch_size=len(x),
        )

    return run


def timed(runs: dict[str, Run], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, the runs alternating."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            found[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--metrics", default="", help="parts of names, with commas")
    parser.add_argument("--no-quantus", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = backlight.load(given.model, pretrained=False).model.to(given.device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(given.images, 3, given.size, given.size, generator=generator) * 2 - 1).to(given.device)
    y = torch.arange(given.images, device=given.device)
    maps = backlight.Saliency(model).attribute(x, y)
    clock = time.process_time if given.cpu_time else time.perf_counter
    print(f"{given.model}, {given.images} images of {given.size} x {given.size}, {given.device}; seconds a sample\n")
    print("| metric | bare passes | ours | ratio | Quantus | Quantus / ours |\n|---|---|---|---|---|---|")
    parts = [part.lower() for part in given.metrics.split(",") if part]
    for name, contest in contests(given.size).items():
        if parts and not any(part in name.lower() for part in parts):
            continue
        runs = {"bare": bare(contest, model, x, y), "ours": ours(contest, model, x, y, maps)}
        runs["bare"]()
        if not given.no_quantus:
            runs["quantus"] = theirs(contest, model, x.cpu(), y.cpu(), maps.cpu())
        seconds = {key: value / given.images for key, value in timed(runs, given.repeats, clock).items()}
        own = seconds["ours"]
        rest = f"{seconds['quantus']:.3f} | {seconds['quantus'] / own:.1f}" if "quantus" in runs else "- | -"
        print(f"| {name} | {seconds['bare']:.3f} | {own:.3f} | {own / seconds['bare']:.2f} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
