"""What CODEC finds of a simulated retina whose wiring is known: python benchmarks/retina_recovery.py --seeds 5

Each seed has a retina, movies and a network of its own, and a folder under --out: a run that was stopped goes on. The
network is fitted to one trial of natural movies, noise and moving objects; modes are fitted on another natural movie,
and read on a third. The table is of medians over seeds, with the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from backlight.data.retina_stimuli import stimulus
from backlight.decompositions import ThresholdSAE
from backlight.evaluation.journal import write_text
from backlight.models.retina import RetinaNetwork, predict
from backlight.retina.analysis import QUANTITIES, SITES, analyse_retina, extract_retina, surprisal
from backlight.retina.fitting import FitSettings, fit_retina, score_retina
from backlight.retina.recording import Recording
from backlight.retina.recovery import field_recovery, recovery, subunit_activity
from backlight.retina.simulator import RetinaSimulator

SIZE, FRAMES, CELLS = (20, 20), 20, 12
STARTS = 20
MIX = ("natural_movie", "white_noise", "moving_objects", "natural_movie")


def one_seed(seed: int, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one retina."""
    begun = time.process_time()
    simulator = RetinaSimulator(cells=CELLS, size=SIZE, frames=FRAMES, subunit=0.8, pool=1.8, seed=seed).eval()

    def movie(names: Any, count: int, number: int, repeats: int) -> Recording:
        shown = stimulus(names, count + FRAMES - 1, SIZE, seed=100 * seed + number)
        return simulator.record(shown, repeats=repeats, seed=100 * seed + number)

    train, test = movie(MIX, args.frames, 1, 1), movie(["natural_movie", "moving_objects"], 2000, 2, 20)
    fitted, held_out = movie("natural_movie", args.movie, 3, 1), movie("natural_movie", args.movie // 2, 4, 1)
    settings = FitSettings(epochs=args.epochs, learning_rate=2e-3, patience=args.epochs, seed=seed)
    found = fit_retina(train, settings=settings, kernels=(7, 5), folder=out / "fit", progress=told(f"seed {seed}"))
    network, scores = found.network, score_retina(found.network, test)
    record: dict[str, Any] = {"seed": seed, "types": simulator.types, "scores": scores.record(), "sites": {}}
    record["fields"] = field_recovery(network, simulator, held_out.windows).record()
    record["columns"] = columns(network, simulator, fitted, held_out, out / "modes", seed, args.paper)
    if args.paper:
        record["starts"] = starts(network, fitted, out / "modes")
    record["cpu_seconds"] = time.process_time() - begun
    return record


def starts(network: RetinaNetwork, fitted: Recording, out: Path) -> dict[str, int]:
    """Of `STARTS` first weights of the published preset, how many have a mode on in any row, after one pass of 800."""
    store = extract_retina(network, fitted, surprisal(network, fitted), next(out.glob("fitted-*")))
    found = {}
    for site in SITES:
        rows = store.rows(site, "contributions", "concat")
        x = rows.read(0, rows.shape[0])
        x = x / x.std()
        fits = (ThresholdSAE.preset("retina", seed=draw, epochs=1).fit(x) for draw in range(STARTS))
        found[site] = sum(bool((one.encode(x) != 0).any()) for one in fits)
    return found


def columns(
    network: RetinaNetwork,
    simulator: RetinaSimulator,
    fitted: Recording,
    held_out: Recording,
    out: Path,
    seed: int,
    paper: bool,
) -> dict[str, Any]:
    """What is recovered by each kind of columns, at each site."""
    activity = subunit_activity(simulator, held_out.stimulus)
    methods: list[tuple[str, Any, dict[str, Any]]] = [
        ("SAE, revived", ThresholdSAE.preset("retina_revived", seed=seed), {}),
        ("NMF", "NMF", {"modes": 16}),
        ("cell means", "ClassMeans", {}),
    ]
    found: dict[str, Any] = {}
    for quantity in QUANTITIES:
        extra: list[tuple[str, Any, dict[str, Any]]] = [
            ("SAE, retina preset", ThresholdSAE.preset("retina", seed=seed), {})
        ]
        for name, method, given in [*methods, *(extra if paper and quantity == "contributions" else [])]:
            analysis = analyse_retina(
                network, fitted, held_out, out, method=method, quantity=quantity, seed=seed, **given
            )
            for site, modes in analysis.sites.items():
                got = recovery(modes.loadings, analysis.rates, simulator, activity, seed=seed)
                about = {key: modes.record()[key] for key in ("modes", "alive", "l0", "r2_held_out_movie")}
                found[f"{quantity} | {name} | {site}"] = {**got.record(), **about}
            print(f"seed {seed}: {quantity}, {name}", flush=True)
    target = surprisal(network, fitted)
    stores = {p.name.split("-")[0]: p for p in out.glob("held-*")}
    store = extract_retina(network, held_out, target, stores["held"])
    rates = predict(network, held_out.windows)
    for quantity in QUANTITIES:
        for site in SITES:
            rows = store.rows(site, quantity, "concat")
            got = recovery(rows.read(0, rows.shape[0]), rates, simulator, activity, seed=seed)
            found[f"{quantity} | channels | {site}"] = got.record()
    found["rates | cells | -"] = recovery(rates, rates, simulator, activity, seed=seed).record()
    return found


def told(name: str) -> Any:
    """One line an epoch."""
    return lambda e: print(f"{name}: epoch {e.number}, r {e.held_out_correlation:.3f}", flush=True)


def table(records: list[dict[str, Any]]) -> str:
    """Medians over seeds, and the range."""

    def cell(values: list[float]) -> str:
        told = [f"{round(one, 2) + 0.0:.2f}" for one in (statistics.median(values), min(values), max(values))]
        return f"{told[0]} ({told[1]} to {told[2]})"

    shares = [statistics.mean(s for s in one["scores"]["share"] if s is not None) for one in records]
    lines = [f"{len(records)} seeds; share of the noise ceiling {cell(shares)}"]
    for name in ("frames", "means", "shuffled"):
        values = [statistics.mean(one["fields"][name]) for one in records]
        lines.append(f"receptive fields, {name}: {cell(values)}")
    lines += ["", "| columns | types of cells | number told | groups of subunits | tracked |", "|---|---|---|---|---|"]
    for key in records[0]["columns"]:
        rows = [one["columns"][key] for one in records]
        named = [[row[what]["index"] for row in rows] for what in ("types", "types_told", "groups")]
        tracked = [statistics.mean(row["tracked"]) for row in rows]
        lines.append(f"| {key.replace(' | ', ', ')} | {' | '.join(map(cell, [*named, tracked]))} |")
    every = [row for one in records for row in one["columns"].values() if row.get("alive", 1)]
    lines.append("")
    for what in ("types", "groups"):
        lines.append(f"chance, {what}, 95 %: {cell([row[what]['chance_high'] for row in every])}")
    if all("starts" in one for one in records):
        total = sum(sum(one["starts"].values()) for one in records)
        lines.append(f"retina preset: a mode is on from the start in {total} of {len(records) * len(SITES) * STARTS}")
    lines.append(f"chance, tracked: {cell([statistics.mean(row['tracked_chance']) for row in every])}")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds that have no result yet, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/retina_recovery"))
    parser.add_argument("--frames", type=int, default=16_000, help="windows that the network is fitted to")
    parser.add_argument("--movie", type=int, default=3000, help="windows that modes are fitted to")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--paper", action="store_true", help="the paper's own preset of the SAE as well: 800 epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for seed in range(args.seeds):
        place = args.out / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        result = place / "result.json"
        if not result.exists():
            write_text(result, json.dumps(one_seed(seed, place, args), indent=1) + "\n")
        records.append(json.loads(result.read_text()))
        print(table(records), flush=True)


if __name__ == "__main__":
    main()
