"""A page for each method of the registry, and the list of them.

The idea, the settings, the formula, the source, the cost and the claims are the class's own; what to use a method for,
when it misleads and its limits stand in docs/methods.toml; measured numbers are read from docs/benchmarks.md.
"""

from __future__ import annotations

import inspect
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from measured import Measured, measured

from backlight.methods import METHODS, Method, method

DOCS = Path(__file__).resolve().parents[1]
TOKENS = ("AttnLRP", "CPLRP")  # shown, and tried, on a transformer
FAMILIES = {
    "Gradients": "One pass with the gradient, or with a gradient that is clipped on its way.",
    "Averages": "The gradient at many points: on a line, or in a neighbourhood of the input or of the weights.",
    "Activation maps": "Channels of a feature map, weighted by the gradient: where, not what.",
    "Pullbacks": "The adjoint of the network with its gates held, hard or softened.",
    "Relevance": "The score shared out from layer to layer.",
    "Pictures that change": "The input moved towards a class, and what that changes.",
    "Other libraries": "By Captum and pytorch-grad-cam, behind the same shape: the extra `baselines`.",
}
COMPLETENESS = {
    "line": "The attribution sums to the score at the input less that at the baseline; `explain(...).residual` is what "
    "is missing.",
    "bias": "With `bias=True` the attribution (times the input, where it is a cotangent) and the share of the biases "
    "sum to the score; `explain(...).residual` is what is missing.",
    None: "None: nothing is said about its sum.",
}
REQUIRED = ("family", "guide", "use", "misleads", "limits")


@cache
def entries() -> dict[str, dict[str, Any]]:
    """What docs/methods.toml says, by method."""
    return tomllib.loads((DOCS / "methods.toml").read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """`{address: Markdown}` of the list and of every method's page."""
    return {"methods/index.md": index(), **{f"methods/{name}.md": page(name) for name in METHODS}}


def page(name: str) -> str:
    """One method's page."""
    kind, entry = method(name), entries()[name]
    idea, rest = parts(kind)
    shown = f"![A picture explained with {name}](../images/methods/{name}.webp)\n\n*{caption(name)}*"
    sections = [
        f"# {name}",
        f"*{idea}*",
        shown,
        f"**Use it.** {entry['use']}",
        f"**When it misleads.** {entry['misleads']}",
        f"## What is computed\n\n```text\n{kind.formula}\n```",
        f"Source: {kind.source}.",
        rest,
        f"## Call it\n\n```python\n{snippet(name)}```",
        settings(kind),
        f"## Cost and claims\n\n{facts(kind)}",
        f"**Limits.** {entry['limits']}",
        numbers(entry.get("rows", [name])),
        f"More: [the guide](../{entry['guide']}), [which method?](../which-method.md), [all methods](index.md), "
        "[the class](../api/methods.md).",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def parts(kind: type[Method]) -> tuple[str, str]:
    """The first paragraph of the class's docstring, and the others."""
    idea, _, rest = (inspect.getdoc(kind) or "").partition("\n\n")
    return " ".join(idea.split()), rest


def caption(name: str) -> str:
    """What the picture shows."""
    scale = "red speaks for it, blue against it; each map has its own scale, which stands below it"
    if name in ("Accentuation", "Counterfactual"):
        return (
            f"EfficientNet-Lite0: a cat, moved towards the class tiger, and the difference over all colours; {scale}."
        )
    if name in TOKENS:
        return f"DINOv2-S: two photographs, and what the length of their class token is made of; {scale}."
    return (
        "EfficientNet-Lite0: a cat beside a cup of coffee, explained for each of the two classes. A method that "
        f"answers for a class shows two maps; {scale}."
    )


def snippet(name: str) -> str:
    """Code that calls the method with the settings that decide its cost spelled out."""
    defaults = method(name).settings()
    counts = "".join(f", {key}={value}" for key, value in defaults.items() if key.startswith("n_"))
    network = "dinov2_small" if name in TOKENS else "efficientnet_lite0"
    target = "lambda features: features.norm(dim=1)" if name in TOKENS else 'loaded.classes.index("tiger cat")'
    if name == "Counterfactual":
        target = 'loaded.classes.index("tiger")'
    lines = [
        "import backlight",
        "from backlight.data import sample_image",
        "",
        f'loaded = backlight.load("{network}")',
    ]
    if name == "DeepLIFT":  # the embedded networks have ReLU6, which Captum's DeepLIFT does not know
        lines += [
            "import torch",
            "",
            "model = torch.nn.Sequential(",
            "    torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1000)",
            ").eval()",
        ]
    else:
        lines.append("model = loaded.pixels()  # takes pictures in [-1, 1]")
    lines.append('x = (2 * loaded.preprocessing.image(sample_image("chelsea")) - 1)[None]')
    if name == "DeepLIFT":
        lines.append("model(x)")
    lines += [
        "",
        f"found = backlight.{name}(model{counts}).explain(x, {target})",
        "print(found.value.shape, found.scores, found.cost)",
    ]
    return "\n".join(lines) + "\n"


def settings(kind: type[Method]) -> str:
    """The settings and their defaults."""
    rows = [f"| `{name}` | `{_default(value)}` |" for name, value in kind.settings().items()]
    return "\n".join(["| setting | default |", "|---|---|", *rows])


def _default(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def facts(kind: type[Method]) -> str:
    """Cost, shape and completeness."""
    shape = "one value a position, `[N, 1, H, W]`" if kind.positions else "one value an entry: the input's shape"
    sites = "the input and any hidden site (`sites=`)" if kind.reads_sites else "the input only"
    engine = "the engine; `explain(...).coverage` lists which rule answered for which operation"
    if not kind.engine:
        engine = "another library; there is no coverage table"
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| passes a sample | {cost(kind)} |",
            f"| attribution | {shape} |",
            f"| read at | {sites} |",
            f"| completeness | {COMPLETENESS[kind.completeness]} |",
            f"| computed by | {engine} |",
        ]
    )


def cost(kind: type[Method]) -> str:
    """Passes in terms of the settings, and with the defaults."""
    least = "" if kind.engine else "at least "
    unit = "forward and backward" if kind.engine else "forward"
    if kind.passes.isdigit():
        return f"{least}{kind.passes} {unit}"
    try:
        default = eval(kind.passes, {"__builtins__": {}}, kind.settings())
    except (NameError, TypeError):
        return f"{least}`{kind.passes}` {unit}"
    return f"{least}`{kind.passes}` {unit}: {default} with the defaults"


def numbers(rows: list[str]) -> str:
    """What docs/benchmarks.md measured of these rows; nothing where there is none."""
    table = measured()
    known = [row for row in rows if any(row in found.values for found in table)]
    if not known:
        return ""
    networks = list(dict.fromkeys(found.network for found in table))
    cells = [_row(row, metric, networks, table) for row in known for metric in dict.fromkeys(m.metric for m in table)]
    head = ["| row | metric | " + " | ".join(networks) + " |", "|---|---|" + "---:|" * len(networks)]
    return (
        "## What was measured\n\nMeans and, in brackets, the place among all methods of that table. They are of two "
        "small networks, at fewer draws than the papers': [protocol, controls, and what of it means something]"
        "(../benchmarks.md).\n\n" + "\n".join([*head, *(cell for cell in cells if cell)])
    )


def _row(row: str, metric: str, networks: list[str], table: list[Measured]) -> str:
    by_network = {found.network: found for found in table if found.metric == metric and row in found.values}
    if not by_network:
        return ""
    cells = [by_network[name].cell(row) if name in by_network else "–" for name in networks]
    return f"| {row} | {metric} | " + " | ".join(cells) + " |"


def index() -> str:
    """The list of all methods, by family."""
    lines = [
        "# Methods",
        f"*{len(METHODS)} methods in one shape: `Method(model, **settings).attribute(inputs, target)`. "
        "[Which one?](../which-method.md)*",
    ]
    for family, about in FAMILIES.items():
        rows = [
            f"| [{name}]({name}.md) | {parts(method(name))[0]} | {cost(method(name))} |"
            for name in METHODS
            if entries()[name]["family"] == family
        ]
        table = "\n".join(["| method | idea | passes a sample |", "|---|---|---|", *rows])
        lines.append(f"## {family}\n\n{about}\n\n{table}")
    return "\n\n".join(lines) + "\n"
