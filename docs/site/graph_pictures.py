"""Draw docs/images/graph-{right,wrong,attacked}.webp and say what their diagnoses say.

    python docs/site/graph_pictures.py --data photographs/ --work out/graphs

Concepts are fitted on the labelled photographs of `--data`; the pictures that are explained come with scikit-image. In
`--work` are the banks, the concepts, and of each case its graphs as JSON and as a page, and the diagnosis.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import backlight
from backlight.concepts.bank import make_bank
from backlight.concepts.concepts import fit_concepts
from backlight.data import sample_image
from backlight.data.labelled import LabelledFolder
from backlight.graph import diagnose, diagnose_change, open_layers
from backlight.models import LoadedModel
from backlight.robustness import evade
from backlight.viz import graph_figure, write_page

IMAGES = Path(__file__).resolve().parents[1] / "images"
SITES = {
    "efficientnet_lite0": ("blocks.2", "blocks.3", "blocks.4", "blocks.5"),
    "mobilenet_v2": ("features.6", "features.10", "features.13", "features.16"),
}
CONCEPTS, PER_IMAGE, PENALTY = 256, 16, 0.1
EPS = 4 / 255
CASES = {  # the network, the picture, its class, and the other one
    "right": ("efficientnet_lite0", "coffee", "espresso", None),
    "wrong": ("mobilenet_v2", "rocket", "n03773504", "drilling platform"),
    "attacked": ("efficientnet_lite0", "chelsea", "tiger cat", "monarch"),
}


def layers(loaded: LoadedModel, data: Path, work: Path) -> dict[str, Any]:
    """Fitted concepts of a network's layers; what is there already is read."""
    sites, folder = SITES[loaded.name], work / loaded.name
    samples = LabelledFolder(data, loaded.classes, loaded.preprocessing)
    bank = make_bank(loaded, samples, sites, folder / "bank", per_image=PER_IMAGE)
    for site in sites:
        fit_concepts(bank, site, "BisectingKMeans", folder / "concepts" / site, modes=CONCEPTS)
    return open_layers([folder / "concepts"], "Lasso", model=loaded.model, penalty=PENALTY)


def case(name: str, data: Path, work: Path) -> None:
    model, picture, true, other = CASES[name]
    loaded = backlight.load(model)
    known, place = layers(loaded, data, work), work / name
    a, b = (None if one is None else loaded.classes.index(one) for one in (true, other))
    pixels = loaded.preprocessing.image(sample_image(picture))[None]
    x = loaded.preprocessing.normalise(pixels)
    if name == "attacked":
        attack = evade(loaded, pixels, to=b, eps=EPS)
        found: Any = diagnose_change(
            loaded, x, attack.inputs, known, true=a, predicted=b, image_names=(picture, f"{picture}, attacked")
        )
        graphs = {"before": found.before, "after": found.after}
    else:
        found = diagnose(loaded, x, known, true=a, predicted=b, name=picture)
        graphs = {"graph": found.graph}
    place.mkdir(parents=True, exist_ok=True)
    (place / "diagnosis.md").write_text(found.markdown())
    print(f"== {name}\n{found.text()}\n")
    for kind, graph in graphs.items():
        graph.save(place / f"{kind}.json")
        write_page(graph, place / f"{kind}.html")
    draw(list(graphs.values())[-1], IMAGES / f"graph-{name}.webp")


def draw(graph: Any, path: Path) -> None:
    held = BytesIO()
    graph_figure(graph, nodes=5, min_share=0.03).savefig(held, format="png", dpi=110)
    Image.open(held).convert("RGB").save(path, "WEBP", quality=82)
    print(f"-> {path} ({path.stat().st_size // 1000} kB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/graphs"))
    settings = parser.parse_args()
    torch.manual_seed(0)
    for name in settings.cases or CASES:
        case(name, settings.data, settings.work)


if __name__ == "__main__":
    main()
