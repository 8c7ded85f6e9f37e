"""Time and saved activations of every single-pass method, as a ratio to a plain input gradient with frozen parameters.

    python benchmarks/speed.py [--device cpu] [--batch 4] [--repeats 7] [--networks resnet50 vgg11_bn pvt_v2_b1]
    python benchmarks/speed.py --sharing [--device cpu] [--repeats 7] [--networks resnet50]

With `--sharing`, of Sharing Ratio Decomposition at batch 1: one map by the backward rules; building the operator;
each further map; one receptive field; those of all positions of the last feature map.

Random weights; times are medians of paired ratios in one process; bytes are those of the distinct storages that
autograd keeps for the backward pass, parameters and buffers apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import backlight
from backlight.methods import METHODS, method

NETWORKS = ("resnet50", "vgg11_bn", "pvt_v2_b1")


def plain_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """What everything is compared with."""
    x = x.detach().requires_grad_()
    scores = model(x)[torch.arange(len(x), device=x.device), target]
    return torch.autograd.grad(scores.sum(), x)[0]


def saved_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """Bytes of the storages that autograd keeps while `run` lasts."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def network(name: str, device: torch.device) -> nn.Module:
    """A network with random weights, parameters frozen, as the plain gradient needs it to be at its best."""
    import timm

    return timm.create_model(name).eval().to(device).requires_grad_(False)


def measure(name: str, batch: int, repeats: int, device: torch.device, methods: list[str]) -> list[dict]:
    """One row a method."""
    torch.manual_seed(0)
    model = network(name, device)
    x = torch.rand(batch, 3, 224, 224, device=device) * 2 - 1
    target = torch.arange(batch, device=device)
    runs: dict[str, Callable[[], object]] = {"gradient": lambda: plain_gradient(model, x, target)}
    for label in methods:
        bare, _, temperature = label.partition("@")
        settings = {"temperature": temperature} if temperature else {}
        runs[label] = partial(method(bare)(model, **settings).attribute, x, target)
    size = {label: saved_bytes(run, model) for label, run in runs.items()}  # also the warm-up
    return _rows(name, _timed(runs, repeats, device), size)


def measure_sharing(name: str, repeats: int, device: torch.device) -> list[dict]:
    """One row for each way to use sharing ratios, at batch 1."""
    torch.manual_seed(0)
    model = network(name, device)
    x = torch.rand(1, 3, 224, 224, device=device) * 2 - 1
    target = torch.zeros(1, dtype=torch.long, device=device)
    srd = backlight.SRD(model)
    operator = srd.prepare(x)
    seed = operator.seed(0)
    runs: dict[str, Callable[[], object]] = {
        "gradient": lambda: plain_gradient(model, x, target),
        "SRD, one map by backward rules": lambda: srd.attribute(x, 0),
        "SRD, the same without biases": lambda: backlight.SRD(model, bias="drop").attribute(x, 0),
        "operator, built": lambda: srd.prepare(x),
        "operator, a further map": lambda: operator.relevance(seed),
        "operator, one receptive field": lambda: operator.ierf("low", [0]),
        f"operator, all {seed[0].numel()} of the last map": lambda: operator.ierf("low"),
    }
    size = {label: saved_bytes(run, model) for label, run in runs.items()}
    return _rows(name, _timed(runs, repeats, device), size)


def _timed(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats):
        for label, run in runs.items():
            times[label].append(seconds(run, device))
    return times


def _rows(name: str, times: dict[str, list[float]], size: dict[str, int]) -> list[dict]:
    base = times.pop("gradient")
    return [
        {
            "network": name,
            "method": label,
            "gradient_seconds": statistics.median(base),
            "time_ratio": statistics.median(t / b for t, b in zip(found, base, strict=True)),
            "bytes_ratio": size[label] / size["gradient"],
        }
        for label, found in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=None)
    parser.add_argument("--sharing", action="store_true", help="sharing ratios, on ResNet-50 if no network is named")
    single = [name for name in METHODS if method(name).passes == "1" and method(name).engine]
    parser.add_argument("--methods", nargs="+", default=[*single, "SoftPullback@paper", "SoftPullback@relative"])
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"backlight {backlight.__version__}, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for name in options.networks or (["resnet50"] if options.sharing else NETWORKS):
        if options.sharing:
            rows = measure_sharing(name, options.repeats, device)
        else:
            rows = measure(name, options.batch, options.repeats, device, options.methods)
        for row in rows:
            if options.json:
                print(json.dumps(row), flush=True)
                continue
            ratios = f"time x{row['time_ratio']:.3g}  bytes x{row['bytes_ratio']:.2f}"
            seconds_ = f"(gradient {row['gradient_seconds']:.3f} s)"
            print(f"{row['network']:<12} {row['method']:<34} {ratios}  {seconds_}", flush=True)


if __name__ == "__main__":
    main()
