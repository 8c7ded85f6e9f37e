"""`backlight maps`: where in pictures the contributions of channels, or of modes, come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli import console
from backlight.cli.options import Classes, Device, Format, Json, Kind, Model, OnDevice, Out, Random, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from backlight.cli.networks import Network
    from backlight.contributions.decomposed import Decomposed
    from backlight.contributions.input_decomposition import InputDecomposition
    from backlight.contributions.maps import ContributionMaps
    from backlight.contributions.mode_sets import ChannelSet


class By(StrEnum):
    """How maps are computed."""

    input_grad = "InputGrad"
    integrated_gradients = "IntegratedGradients"
    act_grad = "ActGrad"


class Shown(StrEnum):
    """How a map becomes a mask."""

    paper = "paper"
    reference = "reference"


def maps(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    model: Model = "efficientnet_lite0",
    layer: Annotated[str | None, typer.Option(help="A name of `backlight layers`.")] = None,
    channels: Annotated[
        list[str] | None, typer.Option(metavar="1,2,3", help="A set of channels; repeat for several.")
    ] = None,
    modes: Annotated[Path | None, typer.Option(metavar="DIR", help="What `backlight decompose` wrote.")] = None,
    mode: Annotated[list[int] | None, typer.Option(min=0, help="A mode; repeat for several.")] = None,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Modes of this class [default: of the target].")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many modes of a class.")] = 3,
    top: Annotated[int, typer.Option(min=1, help="How many channels of a mode.")] = 3,
    algorithm: Annotated[By, typer.Option(help="What the maps sum to.")] = By.input_grad,
    steps: Annotated[int, typer.Option(min=1, help="Of the path, for the algorithms that have one.")] = 10,
    baseline: Annotated[str, typer.Option(help="grey, black, white, blur, mean, or a file.")] = "grey",
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="CLASS", help="Whose logit [default: the predicted class].")
    ] = None,
    positive: Annotated[bool, typer.Option("--positive/--signed", help="Draw the positive part, or the whole.")] = True,
    display: Annotated[Shown, typer.Option(help="How maps become masks.")] = Shown.paper,
    out: Out = Path("maps"),
    device: OnDevice = Device.auto,
    kind: Format = Kind.png,
    as_json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Map what channels or modes contribute to a class onto pictures: a figure and .npz for each."""
    from backlight.cli.explaining import find_pictures
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.contributions.decomposed import open_decomposed
    from backlight.contributions.input_decomposition import INPUT_DECOMPOSITIONS
    from backlight.errors import InputError

    if (channels is None) == (modes is None):
        raise InputError("give either --channels 1,2,3 with --layer, or --modes DIR")
    if channels is not None and (layer is None or mode or class_ is not None):
        raise InputError("--channels needs --layer, and neither --mode nor --class")
    network = open_network(model, weights, random_weights, classes, device.value)
    decomposed = None if modes is None else open_decomposed(modes)
    settings = {} if algorithm is By.input_grad else {"n_steps": steps}
    mapping = _Mapping(
        network,
        _site(network, layer, decomposed),
        INPUT_DECOMPOSITIONS[algorithm.value](**settings),
        baseline,
        None if target is None else network.class_index(target),
        [_numbers(one) for one in channels or []],
        decomposed,
        mode or [],
        None if class_ is None else network.class_index(class_),
        count,
        top,
        positive,
        display.value,
        output_folder(out),
        kind.value,
    )
    paths, failed = find_pictures(images)
    done = _map_all(mapping, paths, failed, as_json)
    if not done:
        raise typer.Exit(2)


def _numbers(text: str) -> tuple[int, ...]:
    from backlight.errors import InputError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise InputError(f"a set of channels is written 1,2,3, got {text!r}")
    return tuple(map(int, parts))


def _site(network: Network, layer: str | None, decomposed: Decomposed | None) -> str:
    """The layer that is asked for, or that was decomposed, of the same network."""
    from backlight.errors import InputError, ModelError
    from backlight.evaluation.identity import model_hash

    if decomposed is None:
        assert layer is not None
        network.site(layer)
        return layer
    if layer not in (None, decomposed.site):
        raise InputError(f"the modes are of {decomposed.site!r}, not of --layer {layer}")
    made = decomposed.identity["data"].get("store", {}).get("model")
    if made is not None and made["parameters"] != model_hash(network.loaded.model):
        raise ModelError(f"the modes are of {made['name']!r} with other weights than --model {network.loaded.name}")
    network.site(decomposed.site)
    return decomposed.site


def _map_all(mapping: _Mapping, paths: Sequence[Path], failed: list[dict[str, Any]], as_json: bool) -> bool:
    """All pictures; the records go to stdout also when interrupted. Returns whether every picture was done."""
    from backlight.cli.explaining import FAILURES
    from backlight.cli.outputs import distinct_names

    records = list(failed)
    try:
        with console.progress(len(paths), "mapping") as step:
            for path, name in zip(paths, distinct_names(paths), strict=True):
                step(path.name)
                try:
                    records.append(mapping.picture(path, name))
                except FAILURES as error:
                    console.report_error(error, path)
                    records.append({"image": str(path), "error": " ".join(str(error).split())})
                else:
                    console.say(f"{path} -> {records[-1]['figure']}")
    finally:
        if as_json:
            console.print_json(records)
    return not any("error" in record for record in records)


@dataclass(frozen=True)
class _Mapping:
    """What is done with each picture. `target` None: the class predicted for it."""

    network: Network
    site: str
    algorithm: InputDecomposition
    baseline: str
    target: int | None
    channels: list[tuple[int, ...]]
    decomposed: Decomposed | None
    modes: list[int]
    of_class: int | None
    count: int
    top: int
    positive: bool
    display: str
    out: Path
    kind: str

    def sets(self, index: int) -> list[ChannelSet]:
        """The sets of channels for a picture with this target."""
        from backlight.contributions.mode_sets import ChannelSet, class_sets, mode_sets

        if self.decomposed is None:
            return [ChannelSet(one) for one in self.channels]
        if self.modes:
            return mode_sets(self.decomposed, self.modes, self.top)
        by = "label" if (self.decomposed.store.column("label") >= 0).any() else "prediction"
        chosen = index if self.of_class is None else self.of_class
        return class_sets(self.decomposed, chosen, self.count, self.top, by)

    def picture(self, path: Path, name: str) -> dict[str, Any]:
        """Map one picture, write its files, and give its record."""
        from backlight.contributions.map_display import map_masks, masked
        from backlight.contributions.maps import contribution_maps
        from backlight.contributions.recipe import baseline_inputs

        shown = self.network.picture(path)
        logits = self.network.logits(shown)[0]
        index = int(logits.argmax()) if self.target is None else self.target
        target = self.network.prediction(logits, index)
        sets = self.sets(index)
        loaded = self.network.loaded
        x = loaded.preprocessing.normalise((shown + 1) / 2)  # the space that contributions are extracted in
        found = contribution_maps(
            loaded.model,
            x,
            self.site,
            [list(one.channels) for one in sets],
            index,
            algorithm=self.algorithm,
            baseline=baseline_inputs(self.baseline, loaded.preprocessing),
        )
        masks = map_masks(found, self.display)
        record = self._record(path, target, sets, found)
        black = masked(shown, masks, ground=-1.0)[:, 0].cpu()
        return {**record, **self._write(name, record, shown[0].cpu(), found, masks[:, 0].cpu(), black)}

    def _record(
        self, path: Path, target: dict[str, Any], sets: list[ChannelSet], found: ContributionMaps
    ) -> dict[str, Any]:
        import backlight

        assert found.contributions is not None
        assert found.positive is not None
        assert found.negative is not None
        up, down = (part[:, 0].flatten(1).sum(1).tolist() for part in (found.positive, found.negative))
        described = [
            {
                "channels": list(one.channels),
                "mode": one.mode,
                "r": one.r,
                "contribution": float(found.contributions[place, 0]),
                "positive": up[place],
                "negative": down[place],
                "residual": float(found.residual[place, 0]),
            }
            for place, one in enumerate(sets)
        ]
        return {
            "image": str(path),
            "model": self.network.loaded.name,
            "weights": self.network.loaded.source,
            "layer": self.site,
            "target": target,
            "algorithm": type(self.algorithm).__name__.removesuffix("Maps"),
            "baseline": self.baseline,
            "display": self.display,
            "version": backlight.__version__,
            "sets": described,
        }

    def _write(
        self, name: str, record: dict[str, Any], shown: Tensor, found: ContributionMaps, masks: Tensor, black: Tensor
    ) -> dict[str, str]:
        from backlight.cli.networks import described
        from backlight.cli.outputs import write_arrays, write_figure
        from backlight.viz.contribution_maps import contribution_figure

        drawn = found.positive if self.positive else found.total
        assert drawn is not None
        assert found.positive is not None
        titles = [_title(one) for one in record["sets"]]
        part = "positive part" if self.positive else "signed"
        title = f"{Path(record['image']).name} · {described(record['target'])}\n{record['model']} · {self.site}"
        figure = contribution_figure(
            shown,
            dict(zip(titles, drawn[:, 0].cpu(), strict=True)),
            dict(zip(titles, black, strict=True)),
            f"{title} · {record['algorithm']}, {part}",
        )
        arrays = {
            "total": found.total[:, 0].cpu().numpy(),
            "positive": found.positive[:, 0].cpu().numpy(),
            "masks": masks.numpy(),
            "input": shown.numpy(),
        }
        if found.channels is not None:
            arrays["channels"] = found.channels[0].cpu().numpy()
        return {
            "figure": write_figure(self.out / f"{name}.maps.{self.kind}", figure, self.kind),
            "array": write_arrays(self.out / f"{name}.maps.npz", arrays, record),
        }


def _title(one: dict[str, Any]) -> str:
    from backlight.contributions.mode_sets import ChannelSet

    head = ChannelSet(tuple(one["channels"]), one["mode"], one["r"]).title.replace(": ", "\n")
    numbers = f"{one['contribution']:+.3g} ({one['positive']:+.3g} {one['negative']:+.3g})"
    return f"{head}\n{numbers.replace('-', '−')}"
