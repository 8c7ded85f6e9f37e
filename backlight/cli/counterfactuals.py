"""`backlight counterfactual`: a picture near the given one that the network takes for another class."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

import backlight
from backlight.cli.explaining import summary
from backlight.cli.networks import Network
from backlight.cli.outputs import LONGEST, slug, write_arrays, write_figure, write_picture
from backlight.cli.settings import plain_settings
from backlight.errors import InputError
from backlight.methods.perturbation import Counterfactual
from backlight.viz import counterfactual_figure


def make_counterfactual(
    network: Network, method: Counterfactual, path: Path, target: int, out: Path, kind: str
) -> dict[str, Any]:
    """Write the perturbed picture, a figure and the arrays; returns the record, with the trajectories `[K + 1]`.

    Raises:
        InputError: the network gives features, not classes.
    """
    if network.loaded.classes.unit == "feature":
        raise InputError(f"{network.loaded.name!r} gives features: a counterfactual needs a classifier")
    start = time.perf_counter()
    x = network.picture(path)
    found = method.perturb(x, target)
    points, logits = found.points[:, 0], found.outputs[:, 0]
    original = int(found.predictions[0, 0])
    trajectories = {
        "target_probability": found.probabilities[:, 0].tolist(),
        "original_probability": found.probability(original)[:, 0].tolist(),
        "target_logit": found.scores[:, 0].tolist(),
        "prediction": found.predictions[:, 0].tolist(),
        "distance": (points - x).flatten(1).norm(dim=1).tolist(),
    }
    record = {
        "image": str(path),
        "model": network.loaded.name,
        "version": backlight.__version__,
        "original": network.prediction(logits[0], original),
        "target": network.prediction(logits[-1], target),
        "reached": bool(logits[-1].argmax() == target),
        "settings": plain_settings(method),
        "range": [float(points[-1].min()), float(points[-1].max())],
        "trajectories": trajectories,
        "cost": summary(found.attribution)["cost"],
        "coverage": summary(found.attribution)["coverage"],
    }
    files = _write(network, points, record, out / f"{path.stem[:LONGEST]}.to-{slug(record['target']['name'])}", kind)
    return {**record, **files, "seconds": round(time.perf_counter() - start, 3)}


def _write(network: Network, points: Tensor, record: dict[str, Any], base: Path, kind: str) -> dict[str, str]:
    x, perturbed = points[0].cpu(), points[-1].cpu()
    arrays = {"input": x.numpy(), "perturbed": perturbed.numpy(), "difference": (perturbed - x).numpy()}
    paths = record["trajectories"]
    curves = {record["target"]["name"]: paths["target_probability"]}
    if record["original"]["index"] != record["target"]["index"]:
        curves[record["original"]["name"]] = paths["original_probability"]
    title = (
        f"{Path(record['image']).name} · {network.loaded.name} · {record['original']['name']} to "
        f"{record['target']['name']} · along the {record['settings']['along']}, l2 distance {paths['distance'][-1]:.3g}"
    )
    figure = counterfactual_figure(x, perturbed, curves, title)
    return {
        "perturbed": write_picture(base.with_name(f"{base.name}.png"), perturbed),
        "figure": write_figure(base.with_name(f"{base.name}.figure.{kind}"), figure, kind),
        "array": write_arrays(base.with_name(f"{base.name}.npz"), arrays, record),
    }
