"""What training a sparse autoencoder costs: against its bare matrix products, and against Overcomplete's trainer.

    python benchmarks/sae_training.py [--channels 384] [--modes 6144] [--k 32] [--batch 4096] [--repeats 7]

Bare products: x W, z D, and those of the backward pass, g D', z' g and h' x, as dense matrices of the same type and
batch: five products `[n, C] [C, K]`. A step of training is everything else too: choosing latents, the loss, the
optimiser, unit norms, counts, and reading rows. All alternate, after a warm-up; seconds are of processor time, the
median of the pairs' ratios is printed. On a CPU, choose the number of threads with OMP_NUM_THREADS.

`--overcomplete` adds Overcomplete's `train_sae` on its TopK and BatchTopK autoencoders, with its linear encoder, mean
squared error, Adam and no monitoring, where the package is installed (its trainer alone is imported, without
torchvision).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backlight.decompositions import decomposition
from backlight.decompositions.decomposition import Work
from backlight.decompositions.training import _Training
from backlight.store.rows import TensorRows

SAES: dict[str, dict[str, Any]] = {
    "TopKSAE": {},
    "BatchTopKSAE": {},
    "MatryoshkaSAE": {},
    "ReLUSAE": {"revive_every": 0},
    "JumpReLUSAE": {},
    "ArchetypalSAE": {},
}


def bare(settings: argparse.Namespace, rows: Tensor) -> Callable[[], None]:
    """The five products of a step, dense."""
    batches = rows.to(settings.device).split(settings.batch)
    kind = torch.bfloat16 if settings.autocast else torch.float32
    encoder = torch.randn(settings.modes, settings.channels, device=settings.device, dtype=kind)

    def run() -> None:
        for batch in batches:
            x = batch.to(kind)
            z = x @ encoder.T
            told = z @ encoder
            back = told @ encoder.T
            _ = z.T @ told, back.T @ x

    return run


def ours(name: str, settings: argparse.Namespace, rows: Tensor) -> Callable[[], None]:
    """A pass of a training that goes on."""
    given = {"k": settings.k} if "k" in decomposition(name)().settings() else {}
    common = {"n_modes": settings.modes, "batch_size": settings.batch, "autocast": settings.autocast}
    one = decomposition(name)(**common, **SAES[name], **given, epochs=10**6, pass_steps=0)
    training = _Training(one, Work(TensorRows(rows)), torch.device(settings.device))
    return training.run_pass


def overcomplete(name: str, settings: argparse.Namespace, rows: Tensor) -> Callable[[], None]:
    """An epoch of Overcomplete's trainer, and its optimiser."""
    if "overcomplete" not in sys.modules:
        spec = importlib.util.find_spec("overcomplete")
        if spec is None:
            sys.exit("--overcomplete needs the package: pip install overcomplete==0.3.0")
        whole = types.ModuleType("overcomplete")  # its own __init__ imports image models
        whole.__path__ = list(spec.submodule_search_locations or [])  # type: ignore[attr-defined]
        sys.modules["overcomplete"] = whole
    from overcomplete import sae
    from overcomplete.sae.train import train_sae

    torch.manual_seed(0)
    k = settings.k if name == "TopKSAE" else settings.k * settings.batch  # theirs is a batch's
    model = getattr(sae, name)(settings.channels, settings.modes, top_k=k, encoder_module="linear")
    model = model.to(settings.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    batches = rows.split(settings.batch)

    def loss(x: Tensor, told: Tensor, *_: Tensor) -> Tensor:
        return (x - told).square().mean()

    return lambda: train_sae(
        model, batches, loss, optimiser, nb_epochs=1, clip_grad=0, monitoring=0, device=settings.device
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in {"channels": 384, "modes": 6144, "k": 32, "batch": 4096, "batches": 2, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--overcomplete", action="store_true")
    parser.add_argument("--only", help="NAME,NAME")
    settings = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    parts = torch.randn(4 * settings.channels, settings.channels, generator=draw)
    codes = torch.rand(settings.batches * settings.batch, len(parts), generator=draw)
    rows = (codes * (codes > 0.97)) @ parts
    names = settings.only.split(",") if settings.only else list(SAES)
    runs = {"bare": bare(settings, rows)} | {name: ours(name, settings, rows) for name in names}
    if settings.overcomplete:
        for name in ("TopKSAE", "BatchTopKSAE"):
            runs[f"Overcomplete {name}"] = overcomplete(name, settings, rows)
    wait = torch.cuda.synchronize if settings.device.startswith("cuda") else lambda: None
    clock = time.perf_counter if settings.device.startswith("cuda") else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(settings.repeats + 1):
        for name, run in runs.items():
            wait()
            begun = clock()
            run()
            wait()
            if number:
                taken[name].append(clock() - begun)
    tokens = len(rows)
    print(f"{settings}, {torch.get_num_threads()} threads\n{'':24} {'tokens/s':>10} {'of bare products':>18}")
    for name, all_of_it in taken.items():
        ratio = statistics.median(one / other for one, other in zip(all_of_it, taken["bare"], strict=True))
        print(f"{name:24} {tokens / statistics.median(all_of_it):10.0f} {ratio:18.2f}")


if __name__ == "__main__":
    main()
