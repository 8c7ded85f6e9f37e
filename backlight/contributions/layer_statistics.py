"""The statistics of section 3 of every layer of a store: contributions, and activations of the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.heads import DRAWS, HeadSparsity, HeadTally
from backlight.contributions.statistics import (
    LEVEL,
    OFFSET,
    SHARE,
    ClassMeans,
    Median,
    hoyer,
    principal_components,
    sign_correlation,
)
from backlight.errors import InputError, UnknownNameError
from backlight.store.store import Store

QUANTITIES = ("contributions", "activations")
PIECE = 1024  # rows at once
ATTENTION = "att"  # in the addresses of attention layers
CLASSES = ("auto", "label", "prediction")


@dataclass(frozen=True)
class Dimensions:
    """Principal components to `SHARE` of the variance of class means.

    They grow with the noise of means of few images, so they come with what bounds it.

    - `components`: of the means over all images; at most `limit` = min(classes - 1, channels);
    - `halves`: of either half of every class's images; None where a class has one image alone, so that there are
      fewer classes in them. Far above `components`: more images a class would lower that, too;
    - `permuted`: with the classes permuted over the images, what means of noise need.
    """

    components: int
    limit: int
    halves: tuple[int, int] | None
    permuted: int


@dataclass(frozen=True)
class QuantityStatistics:
    """One quantity at one site. `values`: what the medians are of, by image, NaN where undefined.

    `hoyer` is of the net values P + N, in which what a channel says for and against cancels; `gross_hoyer` of P - N, in
    which it adds up. Where only the first is high, few channels are left over, not few at work.
    """

    site: str
    quantity: str
    channels: int
    hoyer: Median
    gross_hoyer: Median
    sign_correlation: Median
    dimensions: Dimensions | None
    heads: HeadSparsity | None
    values: Mapping[str, np.ndarray] = field(repr=False, compare=False)


@dataclass(frozen=True)
class LayerStatistics:
    """One site: its quantities, and Hoyer's sparsity of the first minus the second, image by image.

    `difference`: of net values; `gross_difference`: of P - N, without cancellation.
    """

    site: str
    quantities: Mapping[str, QuantityStatistics]
    difference: Median | None
    gross_difference: Median | None


@dataclass(frozen=True)
class StoreStatistics:
    """All sites of a store, in its order. `classes`, `images`, `fewest`: what class means are of."""

    layers: tuple[LayerStatistics, ...]
    samples: int
    grouped_by: str
    classes: int
    images: int
    fewest: int
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.quantities))

    def record(self) -> dict[str, Any]:
        """Everything but the values by image, as plain values."""
        layers = []
        for layer in self.layers:
            found = {name: {**_plain(one), "channels": one.channels} for name, one in layer.quantities.items()}
            differences = {"hoyer_difference": layer.difference, "gross_hoyer_difference": layer.gross_difference}
            plain = {name: None if one is None else asdict(one) for name, one in differences.items()}
            layers.append({"site": layer.site, "quantities": found, **plain})
        means = {"by": self.grouped_by, "classes": self.classes, "images": self.images, "fewest": self.fewest}
        return {"samples": self.samples, "class_means": means, "settings": dict(self.settings), "layers": layers}

    def write(self, folder: str | Path, figure: bool = True, kind: str = "png") -> list[Path]:
        """Tables (CSV, Markdown, JSON), the values by image (NPZ), and the figure. Returns the paths.

        Raises:
            MissingExtraError: `figure`, and matplotlib is not installed.
        """
        from backlight.contributions.statistics_tables import write_tables

        found = write_tables(self, Path(folder))
        if figure:
            from backlight.evaluation.journal import whole
            from backlight.viz import save_figure
            from backlight.viz.contribution_figures import statistics_figure

            path = Path(folder) / f"statistics.{kind}"
            with whole(path) as partial:
                save_figure(statistics_figure(self), partial, kind)
            found.append(path)
        return found


def store_statistics(
    store: Store,
    sites: Sequence[str] | None = None,
    *,
    quantities: Sequence[str] = QUANTITIES,
    heads: int | None = None,
    classes: str = "auto",
    seed: int = 0,
    offset: float = OFFSET,
    share: float = SHARE,
    level: float = LEVEL,
    draws: int = DRAWS,
    progress: Callable[[str], None] | None = None,
) -> StoreStatistics:
    """Sparsity, correlation of the signs, dimensions of class means, and head sparsity, of each layer.

    Rows are read once, in pieces; a class needs four sums of a row's width, an image a few numbers.

    Args:
        sites: of the store; all by default.
        quantities: those of them that a site has. The first minus the second is compared image by image.
        heads: how many the attention has; None: no head sparsity. For sites with "att" in their address (those of
            `default_sites(model, "attention")`), or all those named in `sites`, where heads divide the channels.
        classes: what class means go by: "label", "prediction", "auto" (labels where there are any).
        seed: of halves, permutation and random heads.
        progress: called with a site and a quantity as each begins.

    Raises:
        UnknownNameError: a site, or way to group, that there is not.
        InputError: no site has one of the quantities, or channels of attention that the heads divide; a seed below 0.
    """
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    if classes not in CLASSES:
        raise UnknownNameError("grouping of class means", classes, CLASSES)
    for site in sites or ():
        if site not in store.sites:
            raise UnknownNameError("site of the store", site, store.sites)
    by, group = _classes(store, classes)
    settings = {"seed": seed, "offset": offset, "share": share, "level": level, "heads": heads, "draws": draws}
    layers = []
    for site in sites or store.sites:
        there = [name for name in quantities if name in store.quantities(site)]
        found = {}
        for name in there:
            if progress is not None:
                progress(f"{site} {name}")
            by_heads = heads if sites is not None or ATTENTION in site.lower() else None
            found[name] = _of_quantity(store, site, name, group, {**settings, "heads": by_heads})
        if found:
            differences = [_difference(list(found.values()), name, level) for name in ("hoyer", "gross_hoyer")]
            layers.append(LayerStatistics(site, found, *differences))
    if not layers:
        raise InputError(f"no site of {store!r} has {' or '.join(quantities)}")
    if heads is not None and not any(one.heads for layer in layers for one in layer.quantities.values()):
        raise InputError(f"{heads} heads divide the channels of no attention among {', '.join(sites or store.sites)}")
    counts = np.unique(group[group >= 0], return_counts=True)[1]
    means = (len(counts), int(counts.sum()), int(counts.min()) if len(counts) else 0)
    return StoreStatistics(tuple(layers), len(store), by, *means, settings, store.identity)


def _classes(store: Store, wanted: str) -> tuple[str, np.ndarray]:
    """The name of the column of classes, and its values, -1 where there is none."""
    if wanted == "auto":
        wanted = "label" if "label" in store.columns and (store.column("label") >= 0).any() else "prediction"
    if wanted not in store.columns:
        return "none", np.full(len(store), -1)
    return wanted, np.asarray(store.column(wanted)).astype(np.int64)


def _of_quantity(
    store: Store, site: str, quantity: str, group: np.ndarray, settings: Mapping[str, Any]
) -> QuantityStatistics:
    positive, negative = (store.rows(site, quantity, sign) for sign in ("positive", "negative"))
    count, channels = positive.shape
    means, heads = ClassMeans(group, channels, settings["seed"]), settings["heads"]
    tally = None
    if heads is not None and channels % heads == 0:
        tally = HeadTally(channels, heads, settings["seed"], settings["draws"], settings["offset"])
    parts: dict[str, list[Tensor]] = {"hoyer": [], "gross_hoyer": [], "sign_correlation": []}
    for start in range(0, count, PIECE):
        p, n = (rows.read(start, min(start + PIECE, count)).double() for rows in (positive, negative))
        both = p + n
        parts["hoyer"].append(hoyer(both, settings["offset"]))
        parts["gross_hoyer"].append(hoyer(p - n, settings["offset"]))
        parts["sign_correlation"].append(sign_correlation(p, n))
        means.add(start, both)
        if tally is not None:
            tally.add(both)
    values = {name: torch.cat(part).numpy() for name, part in parts.items()}
    medians = {name: Median.of(found, settings["level"]) for name, found in values.items()}
    return QuantityStatistics(
        site,
        quantity,
        channels,
        medians["hoyer"],
        medians["gross_hoyer"],
        medians["sign_correlation"],
        _dimensions(means, channels, settings["share"]),
        None if tally is None else tally.found(settings["level"]),
        values,
    )


def _dimensions(means: ClassMeans, channels: int, share: float) -> Dimensions | None:
    """None for fewer than three classes, whose means lie on a line."""
    if len(means.classes) < 3:
        return None
    halved = [means.means(way) for way in ("first", "second")]
    halves = None
    if len(halved[0]) == len(means.classes):
        halves = principal_components(halved[0], share), principal_components(halved[1], share)
    own, permuted = (principal_components(means.means(way), share) for way in ("all", "permuted"))
    return Dimensions(own, min(len(means.classes) - 1, channels), halves, permuted)


def _difference(found: Sequence[QuantityStatistics], name: str, level: float) -> Median | None:
    if len(found) < 2:
        return None
    return Median.of(found[0].values[name] - found[1].values[name], level)


def _plain(one: QuantityStatistics) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return None if value is None else asdict(value)

    names = ("hoyer", "gross_hoyer", "sign_correlation", "dimensions", "heads")
    return {name: plain(getattr(one, name)) for name in names}
