"""What `describe` found as records and files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backlight.contributions.modes import Level, Modes
from backlight.errors import InputError
from backlight.evaluation.journal import write_text

SUMMARY, MODES = "summary.json", "modes.json"


def mode_record(modes: Modes, mode: int) -> dict[str, Any]:
    """One mode: channels, exemplars, and for each level its best masks, r, chance and specificity."""
    samples = modes.exemplars
    record: dict[str, Any] = {
        "mode": mode,
        "alive": bool(modes.level.modes.alive[mode]),
        "active": float(samples.active[mode]),
        "channels": [{"channel": name, "weight": weight} for name, weight in modes.channels(mode)],
        "exemplars": [
            {"sample": modes.names[sample], "loading": loading, "label": modes.label(sample)}
            for sample, loading in zip(samples.samples[mode].tolist(), samples.loadings[mode].tolist(), strict=True)
            if loading != 0
        ],
    }
    for name, level in modes.levels.items():
        one = level.modes
        record[name] = {
            "best": [{"name": title, "r": r} for title, r in level.best_concepts(mode)],
            "r": float(one.strongest[mode]),
            "r_held_out": float(one.held_out[mode]),
            "r_chance": float(one.chance[mode]),
        }
        if level.specificity is not None:
            measures = vars(level.specificity).items()
            record[name] |= {f"specificity_{measure}": float(values[mode]) for measure, values in measures}
    return record


def concept_records(level: Level) -> list[dict[str, Any]]:
    """For every class or concept: its samples and its best modes."""
    concepts = level.concepts
    return [
        {
            "name": name,
            "also": list(concepts.also[place]),
            "images": concepts.images[place],
            "modes": [{"mode": mode, "r": r} for mode, r in level.best_modes(name)],
        }
        for place, name in enumerate(concepts.names)
    ]


def summary_record(modes: Modes) -> dict[str, Any]:
    """Counts and medians of modes and of channels, their differences, and how specific modes are."""
    found: dict[str, Any] = {
        "site": modes.site,
        "quantity": modes.quantity,
        "sign": modes.sign,
        "samples": len(modes.names),
        "counted": modes.counted,
        "modes": len(modes.modes),
        "channels": modes.modes.shape[1],
        "settings": modes.settings,
        "notes": list(modes.notes),
    }
    for name, level in modes.levels.items():
        measures = {} if level.specificity is None else vars(level.specificity)
        found[name] = {
            "masks": len(level.concepts),
            "modes": level.modes.summary(),
            "channels": {quantity: one.summary() for quantity, one in level.channels.items()},
            "modes_minus_channels": {
                quantity: {kind: asdict(one) for kind, one in kinds.items()}
                for quantity, kinds in level.differences().items()
            },
            "specificity": {measure: float(torch.nanmedian(values)) for measure, values in measures.items()},
        }
    return found


def write_tables(modes: Modes, folder: Path, summary: Mapping[str, Any] | None = None) -> list[Path]:
    """Write a summary, the modes that are alive (JSON and CSV), and for each level a table and the coverage.

    `summary`: what `summary.json` holds, in place of `summary_record(modes)`.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    alive = modes.level.modes.alive.nonzero().flatten().tolist()
    records = [mode_record(modes, mode) for mode in alive]
    texts = {
        SUMMARY: _json(summary_record(modes) if summary is None else summary),
        MODES: _json(records),
        "modes.csv": _csv([_flat(record, modes) for record in records]),
    }
    for name, level in modes.levels.items():
        texts[f"{name}.csv"] = _csv([_flat_concept(record) for record in concept_records(level)])
        by_mask, by_mode = (one.tolist() for one in level.coverage())
        curves = [
            {"rank": rank + 1, "mean_r_of_modes": _at(by_mask, rank), "mean_r_of_masks": _at(by_mode, rank)}
            for rank in range(max(len(by_mask), len(by_mode)))
        ]
        texts[f"coverage-{name}.csv"] = _csv(curves)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def finite(value: Any) -> Any:
    """Plain values without NaN: None stands for it, as strict JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(finite(record) for record in records)
    return text.getvalue()


def _flat(record: Mapping[str, Any], modes: Modes) -> dict[str, Any]:
    """A mode's record as a row of a table."""
    row: dict[str, Any] = {name: record[name] for name in ("mode", "alive", "active")}
    for name in modes.levels:
        values = dict(record[name])
        row[f"{name}_best"] = "; ".join(one["name"] for one in values.pop("best"))
        row |= {f"{name}_{measure}": value for measure, value in values.items()}
    row["channels"] = "; ".join(f"{one['channel']}: {one['weight']:.4g}" for one in record["channels"])
    row["exemplars"] = "; ".join(one["sample"] for one in record["exemplars"])
    return row


def _flat_concept(record: Mapping[str, Any]) -> dict[str, Any]:
    best = record["modes"]
    return {
        "name": record["name"],
        "also": "; ".join(record["also"]),
        "images": record["images"],
        "best_mode": best[0]["mode"],
        "r": best[0]["r"],
        "modes": "; ".join(f"{one['mode']}: {one['r']:.3f}" for one in best),
    }


def _at(values: Sequence[float], place: int) -> float | str:
    return values[place] if place < len(values) else ""
