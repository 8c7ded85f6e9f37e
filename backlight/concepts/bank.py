"""Banks: pointwise feature vectors (PFVs) of hidden layers, each with its image, position and relevance, in a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.concepts.bank_collector import GRID, PFVS, PLACE, RELEVANCE, PfvCollector
from backlight.concepts.bank_draws import CLASS_TOKEN, NOTHING
from backlight.concepts.bank_relevance import AUTO, bank_target
from backlight.contributions.collector import ContributionCollector
from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.displayed import Displayed
from backlight.engine.targets import Target
from backlight.errors import InputError
from backlight.evaluation.identity import model_hash
from backlight.evaluation.samples import Samples
from backlight.models import LoadedModel, load
from backlight.shapes import Float, Int
from backlight.store import ArraySamples, Progress, Rows, Store, extract
from backlight.store.extraction import BATCH, BLOCK


class Bank(Displayed):
    """PFVs of some sites, a row each, in the images' order; `make_bank` makes one, `Bank.open` reads it.

    A bank that is being made can be read: the images that are finished when it is opened.

    Attributes:
        folder, store: where it lies, and what it is kept in.
        sites: addresses, as `backlight layers` prints them.
        images: names of the images; labels, predictions: their classes, -1 where there is none.
    """

    def __init__(
        self, store: Store, network: nn.Module | LoadedModel | None = None, samples: Samples | None = None
    ) -> None:
        if "bank" not in store.identity:
            raise InputError(f"{str(store.folder)!r} is a store, but no bank of feature vectors: make_bank makes one")
        self.store, self.folder = store, store.folder
        self.sites: tuple[str, ...] = store.sites
        self.images: list[str] = store.names
        self._given, self._samples = network, samples
        self._valid: dict[str, np.ndarray] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: nn.Module | LoadedModel | None = None,
        samples: Samples | None = None,
    ) -> Bank:
        """The bank in a folder.

        Args:
            model: the network, where its name is not enough to load it again; `samples`: the images, where they are
                no folder or file, or have moved. Both are only needed for receptive fields and pictures.

        Raises:
            InputError: there is none, or no image of it is finished.
        """
        return cls(Store.open(folder), model, samples)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Bank({str(self.folder)!r}, {len(self)} images, sites {', '.join(self.sites)})"

    @property
    def identity(self) -> dict[str, Any]:
        """What decided the numbers, as plain values."""
        return self.store.identity

    @property
    def settings(self) -> dict[str, Any]:
        """How positions were drawn: sampling, per_image, replacement, class_token, attributor, seed."""
        return dict(self.identity["bank"])

    @property
    def model_name(self) -> str:
        """The network's name, as `backlight.load` takes it, or its class."""
        return str(self.store.about.get("model") or self.identity["model"]["name"])

    def rows(self, site: str) -> Rows:
        """The PFVs, `[n, C]`, raw. Raises `UnknownNameError`: no such site."""
        places = self._places(site)
        return self.store.pointwise(site, PFVS, None if (places != NOTHING).all() else self._numbers(site))

    def image(self, site: str) -> Int[Tensor, "n"]:
        """The image of each row: a number into `images`, ascending."""
        return torch.from_numpy(self._numbers(site) // self._places(site).shape[1])

    def position(self, site: str) -> Int[Tensor, "n 2"]:
        """(row, column) in the site's grid of each row; (-1, -1) is the class token."""
        numbers, places = self._numbers(site), self._places(site)
        flat = places.reshape(-1)[numbers]
        widths = self.store.entries(site, PFVS, GRID)[numbers // places.shape[1], 1]
        pairs = np.stack((flat // widths, flat % widths), 1)
        pairs[flat == CLASS_TOKEN] = -1
        return torch.from_numpy(pairs)

    def relevance(self, site: str) -> Float[Tensor, "n"]:
        """The relevance of each row's position for the target, with its sign; NaN where the bank has none."""
        return torch.from_numpy(self.store.entries(site, PFVS, RELEVANCE).reshape(-1)[self._numbers(site)])

    def grid(self, site: str) -> tuple[int, int]:
        """(height, width) of the site's grid.

        Raises:
            InputError: images of several sizes, which have several grids.
        """
        found = np.unique(self.store.entries(site, PFVS, GRID), axis=0)
        if len(found) > 1:
            raise InputError(f"images of {site!r} have grids of {len(found)} sizes, such as {found[:2].tolist()}")
        return int(found[0, 0]), int(found[0, 1])

    @property
    def labels(self) -> np.ndarray:
        """The class of each image; -1 where there is none."""
        return self.store.labels

    @property
    def predictions(self) -> np.ndarray:
        """The class that the network gives each image; -1 where its outputs are no classes."""
        known = "prediction" in self.store.columns
        return self.store.column("prediction") if known else np.full(len(self), -1)

    @property
    def classes(self) -> ClassNames:
        """The names of the classes: the network's, or those of the images' labels where it has none."""
        return ClassNames(tuple(self.store.about.get("classes") or ()))

    @cached_property
    def loaded(self) -> LoadedModel | nn.Module:
        """The network: what was given, or `backlight.load` of its name.

        Raises:
            InputError: it has other weights than the bank was made with, or cannot be loaded by name.
        """
        found = self._given
        if found is None:
            if not self.store.about.get("model"):
                raise InputError(f"a {self.model_name} has no name to load it by: Bank.open(folder, model=...)")
            found = self._load()
        network = found.model if isinstance(found, LoadedModel) else found
        if model_hash(network) != self.identity["model"]["parameters"]:
            raise InputError(f"the bank {str(self.folder)!r} was made with other weights than this {self.model_name}'s")
        return found

    def _load(self) -> LoadedModel:
        about = self.store.about
        own = about.get("unit") == "class" and about["classes"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(about.get("seed", 0))
            return load(
                about["model"],
                weights=about.get("weights"),
                pretrained=not about.get("random_weights"),
                classes=about["classes"] if own else None,
            )

    @property
    def network(self) -> nn.Module:
        """The network itself, which takes normalised inputs."""
        return self.loaded.model if isinstance(self.loaded, LoadedModel) else self.loaded

    @cached_property
    def samples(self) -> Samples:
        """The images, of the names in `images`: what was given, or the folder or file they came from.

        Raises:
            InputError: they were given as samples that nothing tells where to find.
        """
        if self._samples is not None:
            return self._samples
        data = self.store.about.get("data") or {}
        if "file" in data:
            return ArraySamples(data["file"], data["split"])
        if "folder" in data and isinstance(self.loaded, LoadedModel):
            return LabelledFolder(data["folder"], ClassNames(), self.loaded.preprocessing, labelled=False)
        raise InputError(f"nothing tells where the images of {str(self.folder)!r} are: Bank.open(folder, samples=...)")

    def picture(self, image: int) -> Float[Tensor, "C H W"]:
        """An image as it was given to the bank, in [-1, 1] where the network's preprocessing is known."""
        return self.samples.load(self.images[image]).inputs

    def inputs(self, image: int) -> Float[Tensor, "1 C H W"]:
        """An image as the network takes it."""
        x = self.picture(image)[None]
        preprocessing = self.loaded.preprocessing if isinstance(self.loaded, LoadedModel) else None
        x = x if preprocessing is None else preprocessing.normalise((x + 1) / 2)
        kinds = (parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point())
        return x.to(next(kinds, x.dtype))

    def _places(self, site: str) -> np.ndarray:
        """Of each image and draw, the number of the position, `CLASS_TOKEN` or `NOTHING`: `[images, P]`."""
        return self.store.entries(site, PFVS, PLACE)

    def _numbers(self, site: str) -> np.ndarray:
        """The numbers of the draws that gave a row."""
        if site not in self._valid:
            self._valid[site] = np.flatnonzero(self._places(site) != NOTHING)
        return self._valid[site]


def make_bank(
    model: str | nn.Module | LoadedModel,
    samples: Samples,
    sites: str | Sequence[str],
    folder: str | os.PathLike[str],
    *,
    sampling: str = "relevance",
    per_image: int = 1,
    replacement: bool = False,
    class_token: str = "drop",
    target: Target | str = AUTO,
    attributor: str | None = AUTO,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    classes: Any = None,
    device: str | None = None,
    engine: str = "process",
    workers: int = 1,
    threads: int | None = None,
    batch_size: int = BATCH,
    block: int = BLOCK,
    dtype: str = "float32",
    progress: Callable[[Progress], None] | None = None,
) -> Bank:
    """Sample feature vectors of hidden layers, in proportion to what they contribute to the output (iERF paper, §4).

    Of each image and site, R_i = max(0, relevance of position i), and positions are drawn with probability
    R_i / sum R. An image without any positive relevance at a site gives no row there. A kill costs the block under
    way; the same call goes on, and the finished bank is the same, bit for bit, however many workers there were. The
    draws depend on `seed` and the image's name alone. Cost: of an image, a forward pass, and the attributor's.

    Args:
        model: a name of `backlight.load`, what that gave, or a module (`preprocessing` where inputs are pictures).
        samples: the images; `LabelledFolder`, `ArraySamples`, `TensorSamples`.
        sites: addresses of layers with feature maps `[N, C, H, W]` or tokens `[N, L, D]`.
        folder: of this one bank.
        sampling: "relevance"; "uniform", the control; "all" positions.
        per_image: how many are drawn of an image (the paper: 1), `replacement`: may a position be drawn twice?
        class_token: "drop", "draw" it as any other position, or "keep" it besides what is drawn. Registers are never
            in a bank.
        target: "auto" (the predicted class; the norm of the output where it holds features), "prediction", "label",
            "norm", any word of `parse_target`, or a `Target`.
        attributor: of the relevance: "srd" (convolutional networks), "attnlrp" (transformers), "gradient" (activation
            times gradient, which of the last feature map is Grad-CAM); "auto": one of the first two. For "uniform" and
            "all" it says whether relevance is kept beside the rows; there, "auto" and None leave it out.
        seed: of the draws, and of random weights.
        preprocessing, weights, random_weights, classes, device: see `ContributionCollector`.
        engine, workers, threads, batch_size, block, dtype, progress: see `backlight.store.extract`.

    Raises:
        SiteError: a site without positions, or without a relevance.
        UnknownNameError, InputError, TargetError: settings that there are not, or that do not fit.
        UncoveredOperationError: an operation that the attributor's rules do not know.
    """
    if sampling != "relevance" and attributor == AUTO:
        attributor = None
    given = model.model if isinstance(model, LoadedModel) else model
    source = ContributionCollector(
        given,
        (sites,) if isinstance(sites, str) else tuple(sites),
        preprocessing=model.preprocessing if isinstance(model, LoadedModel) else preprocessing,
        weights=weights,
        random_weights=random_weights,
        classes=classes,
        seed=seed,
        device=device,
    )
    loaded = model if isinstance(model, LoadedModel) else source.loaded
    features = isinstance(loaded, LoadedModel) and loaded.classes.unit == "feature"
    source = _aimed(source, bank_target(target, features))
    collector = PfvCollector(
        source, sampling, per_image, replacement, class_token, attributor, seed, told=_told(loaded, model, samples)
    )
    settings: dict[str, Any] = {} if progress is None else {"progress": progress}
    store = extract(
        collector, samples, folder, engine=engine, workers=workers, threads=threads, batch_size=batch_size,
        block=block, dtype=dtype, **settings,
    )  # fmt: skip
    return Bank(store, None if isinstance(model, str) else model, samples)


def _aimed(source: ContributionCollector, target: Target | str) -> ContributionCollector:
    """The same with a target, and the network that it has loaded already."""
    from dataclasses import replace

    found = replace(source, target=target)
    found.__dict__["loaded"] = source.loaded
    return found


def _told(loaded: LoadedModel | nn.Module, model: Any, samples: Samples) -> dict[str, Any]:
    """What helps to find network and images again."""
    found: dict[str, Any] = {"model": None, "data": None}
    if isinstance(loaded, LoadedModel):
        found |= {"model": loaded.name, "classes": list(loaded.classes.names), "unit": loaded.classes.unit}
    if isinstance(samples, LabelledFolder):
        found["classes"] = found.get("classes") or list(samples.classes.names)
        found["data"] = {"folder": str(Path(samples.folder).absolute())}
    elif isinstance(samples, ArraySamples):
        found["data"] = {"file": str(samples.path), "split": samples.split}
    return found
