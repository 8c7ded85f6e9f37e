"""Localised or not: how widely a latent fires, how widely it looks, and how far from where it fires.

    found = localise(model, dictionary, "blocks.2", images, count=100)
    found.non_localised(10)          # the latents whose iERFs lie farthest from the tokens where they fire
    print(found.markdown())

The iERF paper (Kim, Han, Kwak 2026, section 3) speaks of localised and non-localised features without a measure. Here
maps are read as distributions p over the h x w patches, and the iERF's is compared with the token where z is largest.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from backlight.concepts.attributors import LatentAttributor
from backlight.concepts.cafe import Cafe, LatentFields
from backlight.concepts.latent_units import BATCH, layout_at, placed, stream
from backlight.decompositions import Decomposition
from backlight.errors import InputError
from backlight.metrics.sparseness import gini
from backlight.shapes import Bool, Float, Int

SUMMARISED = tuple("frequency activation_patches field_patches outside outside_by_chance distance offset".split())
RADIUS = 2.0  # patches: what is no farther from the firing token counts as where it fires


def distribution(maps: Float[Tensor, "*T h w"]) -> Float[Tensor, "*T h w"]:
    """The absolute values of maps, divided by their sum; NaN where that is 0."""
    size = maps.abs().double()
    total = size.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, size / total, torch.nan)


def entropy(maps: Float[Tensor, "*T h w"]) -> Float[Tensor, "*T"]:
    """- sum_p p log p in nats: 0 of a point, log(h w) of a constant map; NaN of a map of zeros."""
    p = distribution(maps)
    return -torch.special.xlogy(p, p).sum((-2, -1)) + 0.0


def effective_patches(maps: Float[Tensor, "*T h w"]) -> Float[Tensor, "*T"]:
    """exp of the entropy: n where a map is constant on n patches and 0 elsewhere."""
    return entropy(maps).exp()


def centre(maps: Float[Tensor, "*T h w"]) -> Float[Tensor, "*T 2"]:
    """The centre of mass, (row, column)."""
    p = distribution(maps)
    axes = (torch.arange(length, device=maps.device).double() for length in maps.shape[-2:])
    return torch.stack([(p.sum(other) * at).sum(-1) for other, at in zip((-1, -2), axes, strict=True)], -1)


def distances(places: Float[Tensor, "*T 2"], grid: tuple[int, int]) -> Float[Tensor, "*T h w"]:
    """How far each patch of a grid is from a (row, column), in patches."""
    rows, columns = (torch.arange(length, device=places.device).to(places) for length in grid)
    down, across = rows[:, None] - places[..., 0, None, None], columns - places[..., 1, None, None]
    return (down.square() + across.square()).sqrt()


def spread(maps: Float[Tensor, "*T h w"]) -> Float[Tensor, "*T"]:
    """The root of the second moment about the centre of mass, in patches: 0 of a point."""
    far = distances(centre(maps), (maps.shape[-2], maps.shape[-1]))
    return (distribution(maps) * far.square()).sum((-2, -1)).sqrt()


def concentration(maps: Float[Tensor, "T h w"]) -> Float[Tensor, "T"]:
    """The Gini index: 0 of a constant map, 1 - 1 / (h w) of a point."""
    return gini(maps.abs().double().flatten(1))


def outside(maps: Float[Tensor, "T h w"], places: Int[Tensor, "T 2"], radius: float = RADIUS) -> Float[Tensor, "T"]:
    """The share of a map's mass that is farther than `radius` patches from a place; NaN where the place is none."""
    far = distances(places.double(), (maps.shape[1], maps.shape[2])) > radius
    return _where_placed((distribution(maps) * far).sum((1, 2)), places)


def outside_by_chance(grid: tuple[int, int], places: Int[Tensor, "T 2"], radius: float = RADIUS) -> Float[Tensor, "T"]:
    """`outside` of a constant map: it depends on where the place is."""
    return outside(torch.ones(len(places), *grid, device=places.device), places, radius)


def mean_distance(maps: Float[Tensor, "T h w"], places: Int[Tensor, "T 2"]) -> Float[Tensor, "T"]:
    """sum_p p |p - place|: how far from a place the mass lies on average, in patches."""
    far = distances(places.double(), (maps.shape[1], maps.shape[2]))
    return _where_placed((distribution(maps) * far).sum((1, 2)), places)


def offset(maps: Float[Tensor, "T h w"], places: Int[Tensor, "T 2"]) -> Float[Tensor, "T"]:
    """|centre of mass - place| in patches: 0 also of a wide map that lies around the place."""
    return _where_placed((centre(maps) - places.double()).norm(dim=1), places)


def _where_placed(values: Tensor, places: Tensor) -> Tensor:
    return torch.where((places >= 0).all(1), values, torch.nan)


@dataclass(frozen=True, eq=False)
class Measures:
    """Of T fields, each `[T]`: how wide activation maps and iERFs are, and how far apart.

    `activation_patches`, `field_patches`: effective numbers of patches; `activation_gini`, `field_gini`: 0 is
    spread, 1 is a point; `activation_spread`, `field_spread`: in patches. `outside`: the iERF's share that is farther
    than the radius from the explained token; `outside_by_chance`: a constant map's; `distance`: the iERF's mean
    distance from it; `offset`: that of its centre. The last four are NaN for prefix tokens and sums over tokens, which
    lie nowhere.
    """

    activation_patches: Float[Tensor, "T"]
    activation_gini: Float[Tensor, "T"]
    activation_spread: Float[Tensor, "T"]
    field_patches: Float[Tensor, "T"]
    field_gini: Float[Tensor, "T"]
    field_spread: Float[Tensor, "T"]
    outside: Float[Tensor, "T"]
    outside_by_chance: Float[Tensor, "T"]
    distance: Float[Tensor, "T"]
    offset: Float[Tensor, "T"]


MEASURES = tuple(one.name for one in fields(Measures))


def measure(found: LatentFields, radius: float = RADIUS) -> Measures:
    """The measures of the fields of latents; nothing of the network is needed."""
    if radius < 0:
        raise InputError(f"a radius is not negative, got {radius}")
    maps, places = found.map, found.positions
    return Measures(
        activation_patches=effective_patches(found.activation),
        activation_gini=concentration(found.activation),
        activation_spread=spread(found.activation),
        field_patches=effective_patches(maps),
        field_gini=concentration(maps),
        field_spread=spread(maps),
        outside=outside(maps, places, radius),
        outside_by_chance=outside_by_chance((found.layout.height, found.layout.width), places, radius),
        distance=mean_distance(maps, places),
        offset=offset(maps, places),
    )


@dataclass(frozen=True)
class LocalisedLatent:
    """One latent on the images where it is largest: means of `Measures` over them, None where none is defined.

    `images`: on how many it is on, of all; `shown`: on how many it was explained. `frequency`: the share of tokens
    where it is on. `z`: the mean of the explained values. `at_prefix`: the share of explained images where the class
    token, or a register, is where it is largest. `prefix_share`: of the norms of all tokens.
    """

    latent: int
    images: int
    shown: int
    frequency: float
    z: float
    at_prefix: float
    prefix_share: float | None
    activation_patches: float | None
    activation_gini: float | None
    activation_spread: float | None
    field_patches: float | None
    field_gini: float | None
    field_spread: float | None
    outside: float | None
    outside_by_chance: float | None
    distance: float | None
    offset: float | None

    @property
    def excess(self) -> float | None:
        """`outside` as a part of what a constant map has there: about 1 is anywhere, near 0 is at the token."""
        return None if self.outside is None or not self.outside_by_chance else self.outside / self.outside_by_chance


@dataclass(frozen=True)
class Localisation:
    """The latents of a layer, those that were explained; see `localise`.

    `modes`: of the dictionary; `dead`: of them, on at no token of these images; `skipped`: alive and not drawn.
    """

    site: str
    attributor: str
    radius: float
    images: int
    grid: tuple[int, int]
    modes: int
    dead: int
    skipped: int
    latents: tuple[LocalisedLatent, ...]

    def non_localised(self, count: int = 10) -> list[LocalisedLatent]:
        """Those that look farthest from where they fire: the largest `outside` first, of patch tokens."""
        placed_ = [one for one in self.latents if one.outside is not None]
        return sorted(placed_, key=lambda one: (-(one.outside or 0.0), one.latent))[:count]

    def at_class_token(self, count: int = 10) -> list[LocalisedLatent]:
        """Those that are largest at the class token or a register on most images, the widest iERF first.

        They fire at no patch: all of them look elsewhere.
        """
        nowhere = [one for one in self.latents if one.at_prefix > 0.5]
        return sorted(nowhere, key=lambda one: (-(one.field_patches or 0.0), one.latent))[:count]

    def summary(self) -> dict[str, Any]:
        """Medians over latents, and shares of those that are not localised by `outside` > 1/2."""
        named = (
            "activation_patches",
            "field_patches",
            "outside",
            "outside_by_chance",
            "distance",
            "offset",
            "frequency",
        )
        medians = {name: _median([getattr(one, name) for one in self.latents]) for name in named}
        away = [one.outside > 0.5 for one in self.latents if one.outside is not None]
        class_token = sum(one.at_prefix > 0.5 for one in self.latents)
        return {
            "site": self.site,
            "explained": len(self.latents),
            "dead": self.dead,
            "modes": self.modes,
            **medians,
            "mostly_outside": sum(away) / len(away) if away else None,
            "at_class_token": class_token / len(self.latents) if self.latents else None,
        }

    def record(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        about = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "latents"}
        return {**about, "summary": self.summary(), "latents": [asdict(one) for one in self.latents]}

    def csv(self) -> str:
        """A row a latent."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [one.name for one in fields(LocalisedLatent)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in self.latents)
        return out.getvalue()

    def markdown(self, count: int = 10) -> str:
        """The most non-localised latents, and those of the class token."""
        chosen = self.non_localised(count)
        rest = [one for one in self.at_class_token(count) if one not in chosen]
        return table(chosen + rest)


COLUMNS: tuple[tuple[str, Callable[[LocalisedLatent], str]], ...] = (
    ("latent", lambda one: str(one.latent)),
    ("images", lambda one: str(one.images)),
    ("tokens on", lambda one: f"{100 * one.frequency:.2g} %"),
    ("at class token", lambda one: f"{100 * one.at_prefix:.0f} %"),
    ("fires on (patches)", lambda one: _told(one.activation_patches, ".1f")),
    ("looks at (patches)", lambda one: _told(one.field_patches, ".1f")),
    ("outside", lambda one: _told(one.outside, ".2f")),
    ("chance", lambda one: _told(one.outside_by_chance, ".2f")),
    ("mean distance", lambda one: _told(one.distance, ".1f")),
)


def table(latents: Sequence[LocalisedLatent]) -> str:
    """A Markdown table, a row a latent."""
    heads = [head for head, _ in COLUMNS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    lines += ["| " + " | ".join(tell(one) for _, tell in COLUMNS) + " |" for one in latents]
    return "\n".join(lines)


def localise(
    model: nn.Module,
    dictionary: Decomposition,
    site: str,
    images: Float[Tensor, "N C H W"],
    *,
    latents: Sequence[int] | None = None,
    count: int | None = 64,
    per_latent: int = 4,
    radius: float = RADIUS,
    attributor: str | LatentAttributor = "AttnLRP",
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Localisation:
    """Measure how localised latents are, each on the images where it is largest.

    Cost: a forward pass an image, and the attributor's passes for each of `count` x `per_latent` fields.

    Args:
        latents: which; None: `count` of those that are on somewhere, drawn with `seed` (None: all of them).
        per_latent: images for each latent; fewer where it is on in fewer.
        radius: in patches, see `outside`.
        progress: called with the latents that are done, and their number.

    Raises:
        InputError: settings that cannot be; latents that are on nowhere in these images.
    """
    if per_latent < 1 or radius < 0 or (count is not None and count < 1):
        raise InputError(
            f"per_latent and count are at least 1, the radius not negative; got {per_latent}, {count}, {radius}"
        )
    cafe = Cafe(model, dictionary, site, attributor=attributor, batch_size=batch_size)
    assert isinstance(cafe.attributor, LatentAttributor)
    layout = layout_at(model, site, dictionary, images.to(placed(dictionary, model).modes.device))
    length = layout.prefix + layout.count
    peaks, on = _survey(model, site, dictionary, images, batch_size)
    alive = (peaks > 0).any(0)
    chosen = _chosen(alive, latents, count, seed)
    found = []
    for done, latent in enumerate(chosen):
        best = peaks[:, latent].topk(min(per_latent, len(peaks)))
        rows = best.indices[best.values > 0]
        explained = cafe.explain(images[rows.to(images.device)], latent)
        about = (latent, int((peaks[:, latent] > 0).sum()), float(on[latent]) / (len(images) * length))
        found.append(_summed(explained, radius, *about))
        if progress is not None:
            progress(done + 1, len(chosen))
    return Localisation(
        site=site,
        attributor=type(cafe.attributor).__name__,
        radius=radius,
        images=len(images),
        grid=(layout.height, layout.width),
        modes=len(alive),
        dead=int((~alive).sum()),
        skipped=int(alive.sum()) - len(chosen),
        latents=tuple(found),
    )


def _survey(
    model: nn.Module, site: str, dictionary: Decomposition, images: Tensor, batch_size: int
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "K"]]:
    """The largest z of each latent on each image, and on how many tokens of all it is on."""
    peaks, on = [], torch.zeros(len(dictionary.modes), dtype=torch.long)
    for values in stream(model, site, dictionary, images, None, batch_size):
        peaks.append(values.amax(1).cpu())
        on += (values > 0).sum((0, 1)).cpu()
    return torch.cat(peaks), on


def _chosen(alive: Bool[Tensor, "K"], latents: Sequence[int] | None, count: int | None, seed: int) -> list[int]:
    if latents is not None:
        off = [one for one in latents if not 0 <= one < len(alive) or not alive[one]]
        if off:
            raise InputError(f"latents {off} are on at no token of these images, of {len(alive)} latents")
        return list(latents)
    known = alive.nonzero().flatten()
    if count is not None and count < len(known):
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        known = known[order[:count]].sort().values
    return known.tolist()


def _summed(found: LatentFields, radius: float, latent: int, images: int, frequency: float) -> LocalisedLatent:
    measures = measure(found, radius)
    means = {name: _mean(getattr(measures, name)) for name in MEASURES}
    share = found.prefix_share
    return LocalisedLatent(
        latent=latent,
        images=images,
        shown=len(found),
        frequency=frequency,
        z=float(found.z.double().mean()),
        at_prefix=float((found.positions[:, 0] < 0).double().mean()),
        prefix_share=None if share is None else _mean(share.double()),
        **means,
    )


def _mean(values: Tensor) -> float | None:
    """Of those that are defined; None where none is."""
    kept = values[values.isfinite()]
    return float(kept.mean()) if len(kept) else None


def _median(values: Sequence[float | None]) -> float | None:
    kept = torch.tensor([one for one in values if one is not None], dtype=torch.float64)
    return float(kept.quantile(0.5)) if len(kept) else None


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
