"""`backlight explain`: pictures in; figures, arrays and a summary out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import backlight
from backlight.cli.console import print_json, progress, report_error, say
from backlight.cli.networks import Network, bars, described
from backlight.cli.outputs import distinct_names, write_arrays, write_figure
from backlight.cli.settings import plain_settings
from backlight.data import image_paths
from backlight.engine import Attribution
from backlight.engine.sites import FEATURES, INPUT
from backlight.errors import BacklightError, ImageError, SiteError
from backlight.methods import Method
from backlight.viz import explanation_figure

FAILURES = (BacklightError, OSError, RuntimeError)  # a picture's own; the next one may do (RuntimeError: no memory)


@dataclass(frozen=True)
class Explaining:
    """What is done with each picture. `target` None: the class predicted for it."""

    network: Network
    methods: dict[str, Method]
    target: int | None
    layer: str
    out: Path
    kind: str
    batch_size: int

    def __post_init__(self) -> None:
        for name, method in self.methods.items():
            if method.moves_input and self.layer != INPUT:
                raise SiteError(f"{name} moves the input: it cannot be read at {self.layer!r}, only at 'input'")
            if not method.reads_sites and self.layer != INPUT:
                fix = f"it takes its own by --set layer={self.layer}" if hasattr(method, "layer") else "only at 'input'"
                raise SiteError(f"{name} cannot be read at {self.layer!r}, the --layer: {fix}")
            self._placed(method)

    def _placed(self, method: Method) -> Method:
        """The method with a layer of its own by the front's address of it."""
        layer = getattr(method, "layer", None)
        return method if layer in (None, FEATURES) else replace(method, layer=self.network.site(layer))  # type: ignore[call-arg]

    def picture(self, path: Path, name: str, step: Callable[[str], None]) -> dict[str, Any]:
        """Explain one picture, write its files, and give its record; `step` hears of each method before it runs."""
        start = time.perf_counter()
        x = self.network.picture(path)
        logits = self.network.logits(x)[0]
        best = self.network.best(logits)
        index = best[0]["index"] if self.target is None else self.target
        target = self.network.prediction(logits, index)
        maps: dict[str, Tensor] = {}
        methods: dict[str, dict[str, Any]] = {}
        for label, method in self.methods.items():
            step(f"{path.name}: {label}")
            maps[label], methods[label] = self._explained(method, x, index)
            about = self._about(path, target, label, methods[label]["settings"])
            arrays = {"attribution": maps[label].numpy(), "input": x[0].cpu().numpy(), "target": index}
            methods[label]["array"] = write_arrays(self.out / f"{name}.{label}.npz", arrays, about)
        place = "" if self.layer == INPUT else f", at {self.layer}"
        title = f"{path.name} · {self.network.loaded.name} · explained: {described(target)}{place}"
        figure = explanation_figure(x[0], maps, bars(best, target), title)
        shown = write_figure(self.out / f"{name}.explanation.{self.kind}", figure, self.kind)
        return {
            "image": str(path),
            "model": self.network.loaded.name,
            "layer": self.layer,
            "target": target,
            "top5": best,
            "figure": shown,
            "methods": methods,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _explained(self, method: Method, x: Tensor, index: int) -> tuple[Tensor, dict[str, Any]]:
        start = time.perf_counter()
        site = self.network.site(self.layer)
        found = self._placed(method).explain(x, index, sites=site, internal_batch_size=self.batch_size)
        value = found.value[0].cpu()
        seconds = round(time.perf_counter() - start, 3)
        return value, {**summary(found), "settings": plain_settings(method), "seconds": seconds}

    def _about(self, path: Path, target: dict[str, Any], label: str, settings: dict[str, Any]) -> dict[str, Any]:
        loaded = self.network.loaded
        return {
            "image": str(path),
            "target": target,
            "method": label,
            "settings": settings,
            "layer": self.layer,
            "model": loaded.name,
            "weights": loaded.source,
            "version": backlight.__version__,
        }


def summary(found: Attribution) -> dict[str, Any]:
    """Of one sample's attribution: its norm, score, completeness residual, cost and coverage table."""
    value = found.value[0].double()
    return {
        "shape": list(value.shape),
        "norm": float(value.norm()),
        "score": None if found.scores is None else float(found.scores[0]),
        "residual": None if found.residual is None else float(found.residual[0]),
        "cost": asdict(found.cost),
        "coverage": [
            {"operation": row.operation, "rule": row.rule, "calls": row.calls, "layers": len(row.layers)}
            for row in found.coverage
        ],
    }


def find_pictures(named: Sequence[str]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The picture files, each once, and a record of each path that gives none, which is reported."""
    paths: dict[Path, None] = {}
    failed: list[dict[str, Any]] = []
    for one in named:
        try:
            paths.update(dict.fromkeys(image_paths(one)))
        except ImageError as error:
            failed.append(_failure(error, one))
    return list(paths), failed


def explain_pictures(work: Explaining, paths: Sequence[Path], failed: list[dict[str, Any]], as_json: bool) -> bool:
    """Explain all pictures; the records go to stdout also when interrupted. Returns whether every picture was done."""
    records = list(failed)
    try:
        with progress(len(paths) * len(work.methods), "explaining") as step:
            for path, name in zip(paths, distinct_names(paths), strict=True):
                records.append(_one(work, path, name, step))
    finally:
        if as_json:
            print_json(records)
    return not any("error" in record for record in records)


def _one(work: Explaining, path: Path, name: str, step: Callable[[str], None]) -> dict[str, Any]:
    try:
        record = work.picture(path, name, step)
    except FAILURES as error:
        return _failure(error, path)
    say(f"{path}: {described(record['target'])} -> {record['figure']}")
    return record


def _failure(error: BaseException, place: object) -> dict[str, Any]:
    report_error(error, place)
    return {"image": str(place), "error": " ".join(str(error).split())}
