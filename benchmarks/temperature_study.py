"""Which temperature? Soft pullbacks at absolute and relative temperatures, against gradients and controls.

    python benchmarks/temperature_study.py --data FOLDER --weights FOLDER [--limit 100] [--ascents] --out FOLDER

FOLDER holds `photos_500/` with `labels.csv` (file, class_index) and, for the CIFAR networks, `cifar10.npz`. Measures:

- *Infidelity* in the protocol of the Semantic Pullbacks paper (cumulative sweeps of patches of a half and a quarter of
  the side, filled with one scalar an image; optimal scaling): E[(beta a - b)^2], a = <phi, x - x'>, b = f(x) - f(x').
  Lower is better; blind to sign and scale. All methods see the same perturbations.
- *Patch correlation*: signed Pearson correlation, over the 16 patches of a 4 x 4 grid replaced by grey, of the map's
  share <phi, x - x'> and the change of the logit. Higher is better; -phi gets minus the score.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import backlight
from backlight.benchmarks.cifar import CifarResNet, pixels
from backlight.data import Preprocessing
from backlight.engine.operations import operation_name
from backlight.engine.paths import blur
from backlight.methods import method
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.rules import Relative

Maps = dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]
PHOTO_NETWORKS = {
    "efficientnet_lite0": {},
    "efficientnet_lite1": {},
    "efficientnet_lite2": {},
    "mobilenet_v2": {},
    "timm:deit_tiny_patch16_224": {"weights": "deit_tiny_patch16_224.safetensors"},
    "torchvision:squeezenet1_1": {"weights": "squeezenet1_1.safetensors"},
}
SIZES = {"efficientnet_lite1": 240, "efficientnet_lite2": 260}
CIFAR_NETWORKS = {"cifar10_resnet20": 20, "cifar10_resnet56": 56}


def photographs(folder: Path, limit: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """(image in [-1, 1], label)."""
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:limit]
    prepare = Preprocessing.paper(size)
    for row in rows:
        yield prepare.tensor(folder / row["file"]), int(row["class_index"])


def cifar(file: Path, limit: int) -> Iterator[tuple[Tensor, int]]:
    """(image in [-1, 1], label)."""
    with np.load(file) as arrays:
        images, labels = arrays["x_test"][:limit], arrays["y_test"][:limit]
    for image, label in zip(pixels(images), labels, strict=True):
        yield image, int(label)


def temperatures() -> dict[str, object]:
    """The settings under study."""
    settings: dict[str, object] = {"paper": "paper"}
    settings |= {f"absolute {tau:g}": tau for tau in (0.3, 1.0, 1.5, 2.0)}
    settings |= {f"relative {c:g}": Relative(c) for c in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)}
    settings |= {f"relative {c:g} per channel": Relative(c, "channel") for c in (0.5, 1.0)}
    return settings


def maps(ascents: bool, step: float) -> Maps:
    """The maps that are compared, by name; the last four are controls."""

    def of(name: str, **settings: object) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        return lambda model, x, target: method(name)(model, **settings).attribute(x, target)

    def noise(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    found: Maps = {
        "gradient": of("Saliency"),
        "pullback (hard)": of("Pullback"),
        "excitation": of("ExcitationPullback"),
    }
    found |= {f"soft, {label}": of("SoftPullback", temperature=value) for label, value in temperatures().items()}
    if ascents:
        chosen = {label: temperatures()[label] for label in ("paper", "relative 1")}
        found["gradient ascent"] = of("GradientAscent", step=step)
        found |= {f"ascent, {label}": of("PullbackAscent", step=step, temperature=v) for label, v in chosen.items()}
    return found | {
        "control: random": noise,
        "control: blurred random": lambda model, x, target: blur(noise(model, x, target), x.shape[-1] / 16),
        "control: constant": lambda model, x, target: torch.ones_like(x),
        "control: input itself": lambda model, x, target: x,
    }


def sweeps(x: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Perturbed images `[J, C, H, W]`: cumulative raster sweeps of patches of a half and a quarter of the side."""
    side, found = x.shape[-1], []
    for _ in range(repeats):
        for patch in (side // 2, side // 4):
            canvas = x.clone()
            for top in range(0, patch * (side // patch), patch):
                for left in range(0, patch * (side // patch), patch):
                    fill = torch.rand((), generator=generator) * 2 - 1
                    canvas[:, top : top + patch, left : left + patch] = fill
                    found.append(canvas.clone())
    return torch.stack(found)


def occlusions(x: Tensor) -> Tensor:
    """The image with each of 4 x 4 patches grey, `[16, C, H, W]`."""
    patch = x.shape[-1] // 4
    found = x.repeat(16, 1, 1, 1)
    for number in range(16):
        top, left = number // 4 * patch, number % 4 * patch
        found[number, :, top : top + patch, left : left + patch] = 0
    return found


def scores(model: nn.Module, x: Tensor, label: int, compared: Maps, repeats: int, seed: int) -> dict[str, list[float]]:
    """{map: [infidelity, patch correlation]} of one image, plus the trivial map's infidelity."""
    generator = torch.Generator().manual_seed(seed)
    swept, occluded = sweeps(x, repeats, generator), occlusions(x)
    with torch.no_grad():
        logits = torch.cat([model(part)[:, label] for part in (x[None], *swept.split(20), *occluded.split(20))])
    b = (logits[0] - logits[1:]).double()
    differences = (x - torch.cat([swept, occluded])).flatten(1).double()
    cut, target = len(swept), torch.tensor([label])
    result = {"trivial": [float(b[:cut].square().mean()), 0.0]}
    for name, explain in compared.items():
        phi = explain(model, x[None], target)[0].flatten().double()
        a = differences @ phi
        power = float(a[:cut].square().sum())
        beta = float((a[:cut] * b[:cut]).sum()) / (power or 1.0)
        infidelity = float((beta * a[:cut] - b[:cut]).square().mean())
        pair = torch.stack([a[cut:], b[cut:]])
        result[name] = [infidelity, float(torch.corrcoef(pair)[0, 1].nan_to_num())]
    return result


def networks(options: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Iterator[tuple[Tensor, int]], float]]:
    """(name, model of images in [-1, 1], images, ascent step: 20 for 224 pixels, scaled with the side elsewhere)."""
    weights = Path(options.weights)
    for name, settings in PHOTO_NETWORKS.items():
        if not options.networks or name.split(":")[-1] in options.networks:
            files = {key: weights / value for key, value in settings.items()}
            size = SIZES.get(name, 224)
            images = photographs(Path(options.data) / "photos_500", options.limit, size)
            yield name.split(":")[-1], backlight.load(name, **files).pixels(), images, 20.0 * size / 224
    for name, depth in CIFAR_NETWORKS.items():
        if not options.networks or name in options.networks:
            network = CifarResNet(depth).eval()
            path = weights / f"{name}.safetensors"
            counters = {key: value for key, value in network.state_dict().items() if "num_batches" in key}
            load_strictly(network, {**counters, **read_state_dict(path)}, str(path))
            front = Preprocessing(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
            model = backlight.load(network, preprocessing=front, classes=[str(n) for n in range(10)]).pixels()
            yield name, model, cifar(Path(options.data) / "cifar10.npz", options.limit), 20.0 * 32 / 224


class Spreads(TorchFunctionMode):
    """Collects the standard deviation of every layer's pre-activations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if operation_name(function) in ("relu", "hardtanh", "gelu"):
            self.found.append(float(args[0].std()))
        return function(*args, **(kwargs or {}))


def spread(model: nn.Module, images: Iterator[tuple[Tensor, int]]) -> list[float]:
    """The standard deviation of each layer's pre-activations, averaged over images."""
    found = []
    for x, _ in images:
        with torch.no_grad(), Spreads() as spreads:
            model(x[None])
        found.append(spreads.found)
    return np.mean(found, axis=0).tolist()


def summary(rows: list[dict[str, list[float]]]) -> list[dict[str, object]]:
    """Mean, median and win share against the gradient of the infidelity, mean patch correlation, for each map."""
    table = []
    for name in rows[0]:
        infidelity = [row[name][0] for row in rows]
        table.append(
            {
                "map": name,
                "mean": statistics.fmean(infidelity),
                "median": statistics.median(infidelity),
                "win": statistics.fmean(row[name][0] < row["gradient"][0] for row in rows),
                "correlation": statistics.fmean(row[name][1] for row in rows),
            }
        )
    return table


def markdown(out: Path) -> str:
    """A table a measure: maps down, networks across; infidelity as mean / median (win share against the gradient)."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    names = [row["map"] for row in next(iter(found.values()))["summary"]]
    lines = []
    for title, cell in (
        (
            "Infidelity, mean / median (win share)",
            lambda row: f"{row['mean']:.2f} / {row['median']:.2f} ({row['win']:.2f})",
        ),
        ("Patch correlation", lambda row: f"{row['correlation']:.3f}"),
    ):
        lines += [f"### {title}", "", "| map | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
        for name in names:
            cells = [cell(next(row for row in each["summary"] if row["map"] == name)) for each in found.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".")
    parser.add_argument("--weights", default=".")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--ascents", action="store_true")
    parser.add_argument("--out", required=True, help="a folder: one JSON file a network, with every image's scores")
    parser.add_argument("--report", action="store_true", help="only print the tables of the JSON files in --out")
    parser.add_argument("--spreads", action="store_true", help="only print the spread of the pre-activations")
    options = parser.parse_args()
    out = Path(options.out)
    if options.report:
        print(markdown(out))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, model, images, step in networks(options):
        if options.spreads:
            layers = spread(model, images)
            print(
                f"| {name} | {len(layers)} | {statistics.median(layers):.2f} | {min(layers):.2f} | {max(layers):.2f} |"
            )
            continue
        compared = maps(options.ascents, step)
        rows = []
        for number, (x, label) in enumerate(images):
            rows.append(scores(model, x, label, compared, options.repeats, number))
        (out / f"{name}.json").write_text(json.dumps({"network": name, "summary": summary(rows), "images": rows}))
        print(name)
        for row in summary(rows):
            numbers = f"{row['mean']:8.2f} {row['median']:8.2f} {row['win']:6.2f} {row['correlation']:7.3f}"
            print(f"  {row['map']:<30} {numbers}", flush=True)


if __name__ == "__main__":
    main()
