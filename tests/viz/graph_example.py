"""A made-up concept graph of any size: seeded weights, crops of 32 x 32 pixels, a map on every node."""

from __future__ import annotations

import base64
import io
import itertools
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {"281": "tabby", "282": "tiger cat", "242": "boxer"}
WORDS = ("edge", "fur", "stripe", "ear", "eye", "paw", "grass", "curve", "dark", "corner", "whisker", "nose")

HOSTILE = (
    "</script x</script><script>alert(1)</script><!-- & \u2028 ]]> \"'><img src=x onerror=alert(2)> %DATA% \\u003c"
)


def example_graph(layers: int = 7, nodes: int = 20, seed: int = 0, pictures: bool = True) -> dict[str, Any]:
    """Format 1: `layers` columns of `nodes` (the last: classes), all edges between successive layers."""
    random = np.random.default_rng(seed)
    sites = [*(f"blocks.{number}" for number in range(layers - 1)), "output"]
    columns = [_concepts(site, nodes, depth, random, pictures) for depth, site in enumerate(sites[:-1])]
    classes = (list(CLASSES.items()) + [(str(300 + one), f"class {300 + one}") for one in range(nodes)])[:nodes]
    columns.append([_class(key, name, 9.0 - place / 2) for place, (key, name) in enumerate(classes)])
    told = [_layer(site, depth) for depth, site in enumerate(sites[:-1])]
    return {
        "format": 1,
        "about": {
            "model": "made up", "image": "nothing.png", "attribution": "IntegratedGradients", "n_steps": 20,
            "classes": CLASSES, "seed": seed,
        },
        "layers": [*told, {"site": "output", "classes": True}],
        "nodes": [node for column in columns for node in column],
        "edges": [
            edge for early, late in itertools.pairwise(columns) for edge in _edges(early, late, random)
        ],
        "completeness": [
            {"source": one, "target": other, "reached": [1.0, 2.0], "base": [0.1, 0.0], "gap": [0.009, -0.01]}
            for one, other in itertools.pairwise(sites)
        ],
    }  # fmt: skip


def _layer(site: str, depth: int) -> dict[str, Any]:
    side = max(28 >> depth, 3)
    return {"site": site, "atoms": 64 << min(depth, 4), "grid": [side, side], "relative_error": 0.2 + 0.05 * depth}


def _concepts(site: str, nodes: int, depth: int, random: np.random.Generator, pictures: bool) -> list[dict[str, Any]]:
    side = max(28 >> depth, 3)
    found = []
    for concept in random.choice(64, nodes - 2, replace=False).tolist():
        importance = {key: float(random.normal()) for key in CLASSES}
        found.append({
            "id": f"{site}/{concept}", "layer": site, "kind": "concept", "concept": concept,
            "label": f"{random.choice(WORDS)} {random.choice(WORDS)}",
            "tags": [[name, float(random.uniform(0.1, 0.6))] for name in CLASSES.values()][: depth % 3 + 1],
            "importance": importance, "activation": float(random.exponential()), "shared": bool(random.random() < 0.15),
            "map": _blob(side, random).tolist(),
            **({"field": _crop(random), "exemplars": [
                {"image": f"photo {one}.jpg", "crop": _crop(random)} for one in range(3)
            ]} if pictures else {}),
        })  # fmt: skip
    for kind in ("residual", "rest"):
        importance = {key: float(random.normal() / 3) for key in CLASSES}
        found.append(
            {"id": f"{site}/{kind}", "layer": site, "kind": kind, "label": kind, "tags": [], "importance": importance}
        )
    return found


def _class(key: str, name: str, output: float) -> dict[str, Any]:
    return {
        "id": f"output/{key}", "layer": "output", "kind": "class", "label": name, "tags": [], "importance": {},
        "activation": output,
    }  # fmt: skip


def _edges(
    early: list[dict[str, Any]], late: list[dict[str, Any]], random: np.random.Generator
) -> list[dict[str, Any]]:
    sparse = random.normal(size=(len(early), len(late))) * random.exponential(size=(len(early), len(late))) ** 2
    targets = [node["kind"] in ("concept", "class") for node in late]
    share = sparse / np.abs(sparse).sum(0)
    return [
        {"source": one["id"], "target": other["id"], "weight": float(sparse[i, j]), "share": float(share[i, j])}
        for i, one in enumerate(early)
        for j, other in enumerate(late)
        if targets[j]
    ]


def _blob(side: int, random: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    middle = random.uniform(0.2, 0.8, 2)
    return np.round(np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 0.03), 6)


def _crop(random: np.random.Generator) -> str:
    """Stripes of two colours at a random angle, under a soft round window."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    angle, width = random.uniform(0, np.pi), random.uniform(4, 14)
    wave = (np.sin(width * (x * np.cos(angle) + y * np.sin(angle)))[..., None] + 1) / 2
    colours = random.uniform(0, 1, (2, 3))
    window = np.clip(1.4 - np.hypot(x, y), 0, 1)[..., None]
    pixels = (wave * colours[0] + (1 - wave) * colours[1]) * window + 0.5 * (1 - window)
    file = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
