"""A report on a network: what it is, what it takes, its layers, and which methods and rules fit it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.coverage import Coverage
from backlight.errors import BacklightError
from backlight.evaluation.identity import model_hash, plain, versions
from backlight.methods import METHODS, Method, method
from backlight.models import LoadedModel
from backlight.shapes import Float
from backlight.viz.report_markup import Markup, join, table, tag
from backlight.viz.report_page import Report, Section, page, settings_section

ONCE = {"n_steps": 1, "n_samples": 1}  # a method that fits does so with one point of its path
DEPTH = 2  # dots in a name, of the layers that are shown without unfolding


@dataclass(frozen=True)
class Fit:
    """Whether a method runs on a network: `reason`, why not; `tried`: False for those that pass hundreds of times."""

    name: str
    coverage: Coverage | None
    seconds: float
    reason: str = ""
    tried: bool = True

    @property
    def fits(self) -> bool:
        return self.tried and not self.reason


def fitting_methods(
    loaded: LoadedModel,
    x: Float[Tensor, "1 3 H W"],
    methods: Sequence[str] = tuple(METHODS),
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Fit]:
    """Each method at one point of its path, on one input in [-1, 1]. Adapters of other libraries are not tried.

    Cost: a forward and a backward pass a method, some a few.
    """
    front = loaded.pixels()
    found = []
    for place, name in enumerate(methods):
        if progress is not None:
            progress(name, place, len(methods))
        kind = method(name)
        if not kind.engine:
            found.append(Fit(name, None, 0.0, "", tried=False))
            continue
        start = time.perf_counter()
        try:
            result = _made(kind, front).explain(x)
            found.append(Fit(name, result.coverage, time.perf_counter() - start))
        except (BacklightError, RuntimeError, TypeError, ValueError) as error:
            found.append(Fit(name, None, time.perf_counter() - start, " ".join(str(error).split())))
    return found


def _made(kind: type[Method], front: nn.Module) -> Method:
    once: dict[str, Any] = {name: value for name, value in ONCE.items() if name in kind.settings()}
    return kind(front, **once)


def model_report(
    loaded: LoadedModel,
    image: Any = None,
    methods: Sequence[str] = tuple(METHODS),
    *,
    title: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """A network on one page: parameters, input, layers with their shapes, methods that fit, rules for every operation.

    Args:
        image: a picture; None: seeded noise, with which everything runs that runs on a picture.
        methods: those that are tried.

    Raises:
        UnknownNameError: a method that there is not. ImageError: a picture that cannot be read.
    """
    for name in methods:
        method(name)
    device = next(loaded.model.parameters(), torch.zeros(())).device
    if image is None:
        noise = torch.rand(1, 3, *loaded.preprocessing.size, generator=torch.Generator().manual_seed(0))
        x = (2 * noise - 1).to(device)
    else:
        x = (2 * loaded.preprocessing.image(image) - 1)[None].to(device)
    fits = fitting_methods(loaded, x, methods, progress)
    sections = [
        Section("The network", summary_table(loaded)),
        Section("Methods", methods_table(fits)),
        Section("Operations and rules", rules_table(fits)),
        Section("Layers and sites", layers_table(loaded, x), new_page=True),
        settings_section(
            {
                "model": {"name": loaded.name, "weights": loaded.source, "parameters": model_hash(loaded.model)},
                "preprocessing": plain(vars(loaded.preprocessing)),
                "input": "seeded noise, seed 0" if image is None else "a picture",
                "methods at": ONCE,
                "versions": versions(),
                "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            }
        ),
    ]
    fitting = sum(one.fits for one in fits)
    tried = sum(one.tried for one in fits)
    said = tag("p", f"{type(loaded.model).__name__}; {fitting} of {tried} methods that were tried fit.")
    heading = title or loaded.name
    failed = {one.name: one.reason for one in fits if one.reason}
    return Report(heading, page(heading, said, sections), failed)


def summary_table(loaded: LoadedModel) -> Markup:
    """What a loaded network is, in some lines."""
    counts = parameter_counts(loaded.model)
    pre = loaded.preprocessing
    outputs = (
        f"{len(loaded.classes)} classes" if len(loaded.classes) else f"without names, each a {loaded.classes.unit}"
    )
    rows = [
        ("class", type(loaded.model).__name__),
        ("weights", loaded.source),
        ("parameters", f"{counts['parameters']:,}, in {counts['tensors']:,} tensors, {counts['megabytes']:.1f} MB"),
        ("buffers", f"{counts['buffers']:,}"),
        ("type", ", ".join(counts["types"])),
        ("modules", f"{len(loaded.layers):,}"),
        ("input", f"{pre.size[0]} × {pre.size[1]} pixels, {pre.fit}, {pre.interpolation}"),
        ("mean, std", f"{_rounded(pre.mean)}, {_rounded(pre.std)}"),
        ("outputs", outputs),
    ]
    return tag("div", table(("", ""), rows), class_="scroll")


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """Parameters (shared ones once), their tensors, bytes and types; entries of buffers."""
    own = list(model.parameters())
    return {
        "parameters": sum(one.numel() for one in own),
        "tensors": len(own),
        "megabytes": sum(one.numel() * one.element_size() for one in own) / 1e6,
        "types": list(dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in own)),
        "buffers": sum(one.numel() for one in model.buffers()),
    }


def methods_table(fits: Sequence[Fit]) -> Markup:
    """Which methods run here, what they cost and claim; of others the reason."""
    claims = {None: "", "line": "difference of scores", "bias": "score, with the biases' share"}
    rows = []
    for one in fits:
        kind = method(one.name)
        state = "fits" if one.fits else "not tried" if not one.tried else "does not fit"
        rows.append((one.name, state, kind.passes, claims.get(kind.completeness, ""), one.reason or kind.formula))
    said = "Each was run at one point of its path; adapters of other libraries pass hundreds of times and were not."
    drawn = table(("method", "here", "passes", "sums to", "formula, or why it does not fit"), rows)
    return join([tag("p", said, class_="muted"), tag("div", drawn, class_="scroll")])


def rules_table(fits: Sequence[Fit]) -> Markup:
    """For every operation of the network, which rule answers, by methods that share all their rules."""
    groups: dict[tuple[Any, ...], list[Fit]] = {}
    for one in fits:
        if one.fits and one.coverage is not None and list(one.coverage):
            key = tuple(sorted((row.operation, row.rule) for row in one.coverage))
            groups.setdefault(key, []).append(one)
    parts = [tag("p", "What happens to a vector that travels back, operation by operation.", class_="muted")]
    for group in groups.values():
        coverage = group[0].coverage
        assert coverage is not None
        names = tag("p", tag("b", ", ".join(one.name for one in group)))
        parts.append(tag("div", names, coverage_table(coverage), class_="layer"))
    return join(parts)


def coverage_table(coverage: Coverage) -> Markup:
    """The table of operations and rules; an operation that no rule answers for is marked."""
    rows = []
    for row in coverage:
        rule = tag("b", row.rule) if row in coverage.uncovered else row.rule
        rows.append((row.operation, rule, f"{row.calls:,}", f"{len(row.layers):,}"))
    return tag("div", table(("operation", "rule", "calls", "layers"), rows), class_="scroll")


def layers_table(loaded: LoadedModel, x: Float[Tensor, "1 3 H W"]) -> Markup:
    """Every module with its class, parameters and what it gives; the deeper ones can be unfolded."""
    shapes = output_shapes(loaded, x)
    rows = [
        (name, type(module).__name__, f"{sum(one.numel() for one in module.parameters()):,}", shapes.get(name, "–"))
        for name, module in loaded.model.named_modules()
        if name
    ]
    heads = ("layer", "class", "parameters", "gives")
    shown = [row for row in rows if row[0].count(".") < DEPTH]
    first = tag("div", table(heads, shown), class_="scroll")
    if len(shown) == len(rows):
        return first
    every = tag("div", table(heads, rows), class_="scroll")
    return join([first, tag("details", tag("summary", f"All {len(rows)} layers"), every, class_="screen-only")])


def output_shapes(loaded: LoadedModel, x: Float[Tensor, "1 3 H W"]) -> dict[str, str]:
    """What each module gives for an input in [-1, 1], without the samples; of one that runs several times, the last."""
    found: dict[str, str] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[name] = " × ".join(map(str, output.shape[1:]))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in loaded.model.named_modules():
            stack.callback(module.register_forward_hook(note(name)).remove)
        loaded.pixels()(x)
    return found


def _rounded(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
