"""What dictionaries and codes cost: bisecting k-means and the LASSO of many rows, against scikit-learn's, in one run.

    OMP_NUM_THREADS=1 python benchmarks/concept_extraction.py [--rows 50000] [--channels 256] [--concepts 2048]
    OMP_NUM_THREADS=1 python benchmarks/concept_extraction.py --part codes [--coded 10000] [--share 0.1]

Rows: sparse non-negative mixtures of directions, rectified, as feature vectors are; or `--data rows.npy`, `[n, C]`.
Both sides alternate, after a warm-up, and the median of the pairs' ratios is printed. Seconds are of processor time of
the whole process, of all its threads; with --clock of the clock. Several threads want a quiet machine: on a busy one,
both sides wait for threads that are not running.

Clusters: scikit-learn's `BisectingKMeans` of the same number, "biggest_inertia", both from random rows, and the ratio
of inertias. Codes: atoms are the centroids of rows; `Lasso` is fitted for one row at a time, at a tolerance of the
duality gap that is ours (its `tol` is of |x|^2, ours of half of it), for `--theirs` of the rows, and the seconds a row
compared; and the ratio of objectives. With --device cuda, ours run there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.bisecting_k_means import BisectingKMeans
from backlight.decompositions.codes import lasso

TOLERANCE = 1e-4


def made(n: int, channels: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * channels, channels, generator=draw)
    parts = []
    for start in range(0, n, 4096):
        size = min(4096, n - start)
        on = torch.rand(size, 4 * channels, generator=draw) < 12 / (4 * channels)
        codes = -torch.rand(size, 4 * channels, generator=draw).clamp(min=1e-6).log() * on
        noise = 0.2 * torch.randn(size, channels, generator=draw)
        parts.append((codes @ directions / 3 + noise).relu())
    return torch.cat(parts)


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, Any]:
    start = clock()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start, found


def clusters(x: Tensor, settings: argparse.Namespace, clock: Callable[[], float]) -> None:
    from sklearn.cluster import BisectingKMeans as Theirs

    ratios, inertias, own = [], [], []
    BisectingKMeans(n_modes=8).fit(x[:1000], device=settings.device)
    array = x.numpy()
    for seed in range(settings.repeats):
        took, one = seconds(
            lambda seed=seed: BisectingKMeans(n_modes=settings.concepts, seed=seed).fit(x, device=settings.device),
            clock,
        )
        own.append(took)
        inertia = float(one.state["tree.inertia"][one.leaves].sum())
        if not settings.alone:
            other, theirs = seconds(lambda seed=seed: Theirs(settings.concepts, random_state=seed).fit(array), clock)
            ratios.append(other / took)
            inertias.append(inertia / float(theirs.inertia_))
            print(f"  ours {took:.2f} s in {len(one.history)} rounds, theirs {other:.2f} s", flush=True)
    n, channels = x.shape
    print(f"bisecting k-means, {n} x {channels} into {settings.concepts}: ours {statistics.median(own):.2f} s", end="")
    if ratios:
        print(f", {statistics.median(ratios):.2f} times as fast, inertia {statistics.median(inertias):.4f} of theirs")
    else:
        print()


def codes(x: Tensor, settings: argparse.Namespace, clock: Callable[[], float]) -> None:
    from sklearn.linear_model import Lasso as Theirs

    rows = x[-settings.coded :].contiguous()
    atoms = BisectingKMeans(n_modes=settings.concepts).fit(x[: -settings.coded], device=settings.device).modes
    penalty = settings.share * (rows @ atoms.T).abs().amax(1)
    there = (rows.to(settings.device), atoms.to(settings.device), penalty.to(settings.device))
    lasso(there[0][:256], there[1], there[2][:256], tolerance=TOLERANCE)
    columns, few = np.asfortranarray(atoms.T.numpy()), range(min(settings.theirs, len(rows)))

    def theirs() -> np.ndarray:
        found = np.zeros((len(few), len(atoms)))
        for row in few:
            alpha = float(penalty[row]) / atoms.shape[1]
            one = Theirs(alpha=alpha, fit_intercept=False, tol=TOLERANCE / 2, max_iter=10_000)
            found[row] = one.fit(columns, rows[row].numpy()).coef_
        return found

    ratios, objectives, own = [], [], []
    for _ in range(settings.repeats):
        took, found = seconds(lambda: lasso(*there, tolerance=TOLERANCE), clock)
        other, coefficients = seconds(theirs, clock)
        own.append(took)
        ratios.append((other / len(few)) / (took / len(rows)))
        error = (rows[: len(few)].double() - torch.from_numpy(coefficients) @ atoms.double()).square().sum(1) / 2
        objective = error + penalty[: len(few)].double() * torch.from_numpy(coefficients).abs().sum(1)
        objectives.append(float((found.objective[: len(few)].cpu().double() / objective).mean()))
        print(f"  ours {took / len(rows) * 1e3:.3f} ms a row, theirs {other / len(few) * 1e3:.3f} ms", flush=True)
    on = float((found.values != 0).float().sum(1).mean())
    size = f"{len(rows)} x {rows.shape[1]} on {len(atoms)} atoms"
    print(f"LASSO codes, {size}, {on:.1f} on a row, penalty {settings.share:g} of each row's greatest:")
    ratio, objective = statistics.median(ratios), statistics.median(objectives)
    print(
        f"  ours {statistics.median(own):.2f} s, {ratio:.2f} times as fast a row, objective {objective:.5f} of theirs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("clusters", "codes", "both"), default="both")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--concepts", type=int, default=2048)
    parser.add_argument("--coded", type=int, default=10_000)
    parser.add_argument("--theirs", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data")
    parser.add_argument("--alone", action="store_true", help="clusters without scikit-learn")
    parser.add_argument("--clock", action="store_true", help="seconds of the clock in place of processor time")
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    n = settings.rows + (settings.coded if settings.part != "clusters" else 0)
    x = made(n, settings.channels) if settings.data is None else torch.from_numpy(np.load(settings.data)[:n]).float()
    clock = time.perf_counter if settings.clock or settings.device != "cpu" else time.process_time
    print(f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}, torch with {torch.get_num_threads()} threads")
    if settings.part != "codes":
        clusters(x[: settings.rows], settings, clock)
    if settings.part != "clusters":
        codes(x, settings, clock)


if __name__ == "__main__":
    main()
