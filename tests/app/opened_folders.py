"""Folders as a server's owner opens them: dictionaries and decomposed contributions of a network's random weights."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import backlight
from backlight.app.workspace import Workspace
from backlight.concepts.bank import make_bank
from backlight.concepts.concepts import fit_concepts
from backlight.contributions.algorithms import HiddenIntegratedGradients
from backlight.contributions.collector import ContributionCollector
from backlight.contributions.decompose import decompose
from backlight.data import ClassNames
from backlight.data.labelled import LabelledFolder
from backlight.models import LoadedModel
from backlight.store import extract

NAME, SITES = "test_resnet", ("layer2", "layer4")
CLASSES = (281, 282, 817)  # tabby, tiger cat, sports car
PICTURES = 15


@dataclass(frozen=True)
class Folders:
    """What was made: `dictionaries/km` and `dictionaries/sae` of two layers, `contributions/nmf` of one."""

    place: Path
    loaded: LoadedModel

    def workspace(self) -> Workspace:
        """A workspace that has them open, and holds the network under its name."""
        found = Workspace(
            default_model=NAME, dictionaries=self.place / "dictionaries", contributions=self.place / "contributions"
        )
        found._models[NAME, "", ""] = self.loaded
        return found

    def picture(self, number: int = 0) -> Image.Image:
        """One of the pictures that all of it was made of."""
        return Image.open(self.place / "pictures" / f"{number:02d}.png").convert("RGB")


def network() -> LoadedModel:
    """As a bank finds its network with random weights again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return backlight.load(NAME, pretrained=False)


@cache
def folders() -> Folders:
    """Made once for all tests."""
    place = Path(tempfile.mkdtemp(prefix="backlight-opened-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    loaded = network()
    samples = _pictures(place / "pictures", loaded)
    bank = make_bank(
        NAME, samples, SITES, place / "bank", sampling="uniform", per_image=4, random_weights=True, batch_size=5
    )
    for site in SITES:
        fit_concepts(bank, site, "KMeans", place / "dictionaries" / "km" / site, modes=6, epochs=3)
        fit_concepts(bank, site, "TopKSAE", place / "dictionaries" / "sae" / site, modes=8, **_quick())
    source = ContributionCollector(
        NAME, ("layer4",), algorithm=HiddenIntegratedGradients(n_steps=2), random_weights=True
    )
    store = extract(source, samples, place / "store")
    decompose(store, "layer4", "NMF", place / "contributions" / "nmf" / "layer4", modes=5)
    return Folders(place, loaded)


def _quick() -> dict[str, Any]:
    return {"k": 2, "epochs": 3}


def _pictures(place: Path, loaded: LoadedModel) -> LabelledFolder:
    """Pictures of three classes: each reddish, greenish or bluish noise."""
    place.mkdir()
    draw, rows = np.random.default_rng(0), ["file,class_index"]
    for number in range(PICTURES):
        values = draw.integers(0, 120, (64, 64, 3))
        values[..., number % 3] += 110
        Image.fromarray(values.astype(np.uint8)).resize((160, 160)).save(place / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{CLASSES[number % 3]}")
    (place / "labels.csv").write_text("\n".join(rows))
    return LabelledFolder(place, ClassNames.imagenet(), loaded.preprocessing)
