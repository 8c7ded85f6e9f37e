"""`backlight methods`, `metrics`, `models` and `layers`: what there is to choose from."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backlight.cli.settings import plain_defaults
from backlight.errors import UnknownNameError
from backlight.evaluation.identity import plain
from backlight.methods import METHODS, method
from backlight.metrics import METRICS
from backlight.models import available_models, load


def method_records() -> list[dict[str, Any]]:
    """Every method of the registry with what it claims and takes."""
    records = []
    for name in METHODS:
        cls = method(name)
        records.append(
            {
                "name": name,
                "summary": (cls.__doc__ or "").strip().splitlines()[0],
                "formula": cls.formula,
                "source": cls.source,
                "passes": cls.passes,
                "completeness": cls.completeness,
                "settings": plain_defaults(cls),
            }
        )
    return records


def show_methods(records: list[dict[str, Any]]) -> None:
    """The methods as a table on stdout."""
    table = Table(show_header=False, box=HORIZONTALS, show_lines=True)
    table.add_column(no_wrap=True, style="bold")
    claims = {"line": "score less the baseline's", "bias": "the score, together with the biases' share"}
    for one in records:
        lines = [
            escape(one["summary"]),
            f"[cyan]{escape(one['formula'])}[/cyan]",
            f"[dim]{escape(one['source'])}[/dim]",
        ]
        lines.append(f"passes: {escape(one['passes'])}")
        if one["completeness"]:
            lines.append(f"sums to: {claims.get(one['completeness'], one['completeness'])}")
        lines.append("settings: " + escape(", ".join(f"{key}={value}" for key, value in one["settings"].items())))
        table.add_row(one["name"], "\n".join(lines))
    Console(highlight=False).print(table)


def metric_records() -> list[dict[str, Any]]:
    """Every metric of the registry with its direction, what it needs, and its settings by protocol."""
    return [
        {
            "name": name,
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
            "formula": cls.formula,
            "source": cls.source,
            "better": "higher" if cls.higher_is_better else "lower",
            "needs": list(cls.needs),
            "presets": {preset: plain(cls.preset(preset).settings()) for preset in cls.presets},
            "sees_sign": {preset: cls.preset(preset).sees_sign for preset in cls.presets},
        }
        for name, cls in METRICS.items()
    ]


def show_metrics(records: list[dict[str, Any]]) -> None:
    """The metrics as a table on stdout; of a preset, what differs from the first one."""
    table = Table(show_header=False, box=HORIZONTALS, show_lines=True)
    table.add_column(no_wrap=True, style="bold")
    for one in records:
        first: dict[str, Any] = next(iter(one["presets"].values()), {})
        lines = [
            escape(one["summary"]),
            f"[cyan]{escape(one['formula'])}[/cyan]",
            f"[dim]{escape(one['source'])}[/dim]",
            f"{one['better']} is better" + (f"; needs {', '.join(one['needs'])}" if one["needs"] else ""),
        ]
        for preset, settings in one["presets"].items():
            shown = settings if settings is first else {k: v for k, v in settings.items() if v != first[k]}
            sign = "" if one["sees_sign"][preset] else " (blind to sign)"
            lines.append(escape(f"{preset}{sign}: " + ", ".join(f"{key}={value}" for key, value in shown.items())))
        table.add_row(one["name"], "\n".join(lines))
    Console(highlight=False).print(table)


def model_records(pattern: str | None) -> dict[str, list[str]]:
    """The names of models by family; those that contain the pattern, or match it as a shell pattern.

    Raises:
        UnknownNameError: none does.
    """
    listed = available_models()
    if pattern is None:
        return listed
    wanted = pattern.lower() if any(sign in pattern for sign in "*?[") else f"*{pattern.lower()}*"
    found = {family: [name for name in names if fnmatchcase(name.lower(), wanted)] for family, names in listed.items()}
    if not any(found.values()):
        raise UnknownNameError("model", pattern, [name for names in listed.values() for name in names])
    return found


def show_models(records: dict[str, list[str]]) -> None:
    """The models as text on stdout: a family, then one name a line."""
    console = Console(highlight=False)
    for family, names in records.items():
        if names:
            console.print(f"[bold]{escape(family)}[/bold] ({len(names)})")
            console.print("\n".join(f"  {escape(name)}" for name in names))


def layer_records(name: str) -> list[dict[str, Any]]:
    """The layers of a model with their classes and parameters, those inside them counted; no weights are fetched."""
    modules = dict(load(name, pretrained=False).model.named_modules())
    return [
        {
            "name": layer,
            "class": type(module).__name__,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }
        for layer, module in modules.items()
        if layer
    ]


def show_layers(records: list[dict[str, Any]]) -> None:
    """The layers as a table on stdout."""
    table = Table("layer", "class", box=None)
    table.add_column("parameters", justify="right")
    for one in records:
        table.add_row(escape(one["name"]), one["class"], f"{one['parameters']:,}")
    Console(highlight=False).print(table)
