"""Latents of a hidden layer as something that can be explained: a target, and their values at every token."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.decompositions import Decomposition
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.sites import captured, edited
from backlight.engine.targets import Target, pick
from backlight.errors import InputError, SiteError, TargetError, UnknownNameError
from backlight.methods.token_fields import TokenFields
from backlight.methods.token_layout import TokenLayout
from backlight.shapes import Float, Int

TOKEN_CHOICES = ("argmax", "patch", "class", "sum")
BATCH = 8  # images, or scalars, in one pass


def as_rows(value: Tensor, channels: int, site: str) -> tuple[Float[Tensor, "N L C"], tuple[int, int] | None]:
    """The feature vectors of a site, `[N, L, C]`, row by row, and the grid of a map; the dictionary tells the channels.

    Raises:
        SiteError: neither tokens nor a map of that many channels.
    """
    if value.ndim == 3 and value.shape[2] == channels:
        return value, None
    if value.ndim == 4 and channels in (value.shape[1], value.shape[3]):
        last = value.movedim(1, 3) if value.shape[1] == channels else value
        return last.flatten(1, 2), (last.shape[1], last.shape[2])
    raise SiteError(
        f"site {site!r} has shape {list(value.shape)}, the dictionary {channels} channels: expected tokens "
        f"[N, L, {channels}] or a map [N, {channels}, h, w] of that width"
    )


class Until(nn.Module):
    """A model that stops once a site is reached, and gives what is there; its layers are those of `model`, by `at`.

    What follows has no part in a latent: it takes no time, and its operations need no rules. A site that is reached
    several times is left at the first: `layout_at` refuses it.
    """

    def __init__(self, model: nn.Module, site: str) -> None:
        super().__init__()
        self.training = model.training
        self.model, self.site = model, site

    def at(self, site: str) -> str:
        """The address here of a site of the model."""
        return f"model.{site}"

    def forward(self, *arguments: Any) -> Tensor:
        reached: list[Tensor] = []

        def end(value: Tensor) -> Tensor:
            reached.append(value)
            raise _Reached

        with edited(self.model, {self.site: end}):  # the last hook there: others have seen the value before
            try:
                self.model(*arguments)
            except _Reached:
                return reached[0]
        raise SiteError(f"site {self.site!r} was not reached")


class _Reached(Exception):
    """The site is there: the rest of the model is not run."""


@dataclass(frozen=True, eq=False)
class LatentUnit(Target):
    """z_k at one token of a site, or summed over all; iERF paper, section 3: what CAFE starts from.

    `latent`, `token`: one for all, or one a sample; token None: the sum over tokens. Discrete choices (which latents
    are on, which are the largest) and the statistics of a normalisation are held, see `Decomposition.latents`.

    Raises:
        SiteError: a site that holds neither tokens nor a map of the dictionary's width.
        TargetError: a token or latent out of range.
        InputError: a dictionary without an encoder to differentiate.
    """

    site: str
    dictionary: Decomposition
    latent: Any
    token: Any = None
    per_sample = ("latent", "token")

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.site,)

    def score(self, outputs: Any, hidden: Any) -> Tensor:
        atoms, value = self.dictionary.modes, hidden[self.site]
        rows, _ = as_rows(value, atoms.shape[1], self.site)
        if self.token is not None:
            rows = pick(rows, self.token)[:, None]
        wanted, place = torch.as_tensor(self.latent).reshape(-1).unique(return_inverse=True)
        if int(wanted[0]) < 0 or int(wanted[-1]) >= len(atoms):
            raise TargetError(f"latent {self.latent} is out of range: the dictionary has {len(atoms)}")
        return pick(self.dictionary.latents(rows, wanted).sum(1), place)


@dataclass(frozen=True, eq=False)
class LatentActivations:
    """z of n latents at every token of N images, `[N, L, n]`, and where the tokens lie."""

    values: Float[Tensor, "N L n"]
    layout: TokenLayout

    @property
    def patches(self) -> Float[Tensor, "N n h w"]:
        """At the patches, or the positions of a map."""
        shape = (self.layout.height, self.layout.width)
        return self.values[:, self.layout.prefix :].movedim(1, 2).unflatten(2, shape)

    @property
    def prefix(self) -> Float[Tensor, "N n P"]:
        """At the class token (first) and registers; P may be 0."""
        return self.values[:, : self.layout.prefix].movedim(1, 2)


def placed(dictionary: Decomposition, model: nn.Module) -> Decomposition:
    """The dictionary on the model's device; the one given stays where it is."""
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    return dictionary if dictionary.modes.device == device else copy.copy(dictionary).to(device)


def layout_at(model: nn.Module, site: str, dictionary: Decomposition, images: Float[Tensor, "N C H W"]) -> TokenLayout:
    """Grid and number of prefix tokens of a site; costs two forward passes of one image.

    Raises:
        SiteError: tokens that are no patches with some tokens before them, or a model whose patches are not known.
        ModelError: a model in training mode.
    """
    check_evaluation_mode(model)
    with torch.no_grad(), captured(model, [site]) as store:  # which sees to it that the site is reached once
        model(images[:1])
    rows, grid = as_rows(store[site], dictionary.modes.shape[1], site)
    if grid is not None:
        return TokenLayout(*grid, 0)
    known = TokenFields(model).layout(images)
    if rows.shape[1] < known.count:
        raise SiteError(f"site {site!r} has {rows.shape[1]} tokens, fewer than the {known.count} patches")
    return TokenLayout(known.height, known.width, rows.shape[1] - known.count)


def activations(
    model: nn.Module,
    site: str,
    dictionary: Decomposition,
    images: Float[Tensor, "N C H W"],
    latents: Int[Tensor, "n"] | None = None,
    batch_size: int = BATCH,
) -> LatentActivations:
    """z of latents (None: of all) at every token of images, without gradients: a forward pass each."""
    layout = layout_at(model, site, dictionary, images)
    return LatentActivations(torch.cat([*stream(model, site, dictionary, images, latents, batch_size)]), layout)


def stream(
    model: nn.Module,
    site: str,
    dictionary: Decomposition,
    images: Float[Tensor, "N C H W"],
    latents: Int[Tensor, "n"] | None = None,
    batch_size: int = BATCH,
) -> Iterator[Float[Tensor, "B L n"]]:
    """The same, batch by batch, for many images and latents."""
    dictionary = placed(dictionary, model)
    device, stopped = dictionary.modes.device, Until(model, site)
    if latents is not None and len(latents):
        _check_range("latent", latents, len(dictionary.modes))
    for batch in images.split(batch_size):
        with torch.no_grad():
            value = stopped(batch.to(device))
        rows, _ = as_rows(value, dictionary.modes.shape[1], site)
        codes = dictionary.encode(rows.flatten(0, 1))
        chosen = codes if latents is None else codes[:, latents.to(device)]
        yield chosen.unflatten(0, tuple(rows.shape[:2]))


def choose_tokens(values: Float[Tensor, "T L"], token: str | int, layout: TokenLayout) -> Int[Tensor, "T"] | None:
    """The token whose z is explained, one a row of activations; None: the sum over tokens.

    "argmax": where z is largest, prefix tokens included; "patch": where it is largest among the patches; "class": the
    class token; "sum"; or the number of a token. Decision 10 of the re-implementation: the paper does not say.

    Raises:
        UnknownNameError, InputError: no such choice, or no such token.
    """
    count = values.shape[1]
    if isinstance(token, str):
        if token not in TOKEN_CHOICES:
            raise UnknownNameError("token", token, TOKEN_CHOICES, "or the number of a token")
        if token == "sum":
            return None
        if token == "argmax":
            return values.argmax(1)
        if token == "patch":
            return values[:, layout.prefix :].argmax(1) + layout.prefix
        if layout.prefix == 0:
            raise InputError("the layer has no class token: token='argmax', 'sum' or the number of a token")
        token = 0
    if not -count <= token < count:
        raise InputError(f"token {token} is out of range: the layer has {count}")
    return torch.full((len(values),), token % count, device=values.device)


@dataclass(frozen=True, eq=False)
class LatentTask:
    """T latents to explain: each on its image, at its token. `images`: one for all, or T; `tokens` None: their sum."""

    model: nn.Module
    site: str
    dictionary: Decomposition
    images: Float[Tensor, "N C H W"]
    latents: Int[Tensor, "T"]
    tokens: Int[Tensor, "T"] | None
    layout: TokenLayout = field(default_factory=lambda: TokenLayout(0, 0, 0))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        site: str,
        dictionary: Decomposition,
        images: Float[Tensor, "N C H W"],
        latents: Any,
        tokens: Any,
        layout: TokenLayout | None = None,
    ) -> LatentTask:
        """Latents and tokens as numbers, lists or tensors; the dictionary goes to the model's device.

        Raises:
            InputError: numbers of images, latents and tokens that do not agree.
            TargetError: a latent or token that is not there.
        """
        dictionary = placed(dictionary, model)
        images = images.to(dictionary.modes.device)
        wanted = torch.as_tensor(latents, device=images.device).reshape(-1)
        places = None if tokens is None else torch.as_tensor(tokens, device=images.device).reshape(-1)
        sizes = {len(images), len(wanted), 1 if places is None else len(places)} - {1}
        if len(sizes) > 1 or not len(wanted) or not len(images):
            raise InputError(
                f"{len(images)} images, {len(wanted)} latents and {1 if places is None else len(places)} tokens: give "
                "as many of each, or one for all"
            )
        count = max(sizes, default=1)
        layout = layout or layout_at(model, site, dictionary, images)
        _check_range("latent", wanted, len(dictionary.modes))
        if places is not None:
            length = layout.prefix + layout.count
            _check_range("token", places, length, -length)
            places = (places % length).expand(count)
        return cls(model, site, dictionary, images, wanted.expand(count), places, layout)

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""
        return self.layout.height, self.layout.width

    @property
    def unit(self) -> LatentUnit:
        """The target of all."""
        return LatentUnit(self.site, self.dictionary, self.latents, self.tokens)

    @property
    def stopped(self) -> tuple[Until, LatentUnit]:
        """The model that stops at the layer, and the target of it."""
        until = Until(self.model, self.site)
        return until, LatentUnit(until.at(self.site), self.dictionary, self.latents, self.tokens)

    @property
    def each(self) -> Float[Tensor, "T C H W"]:
        """The image of each latent."""
        return self.images.expand(len(self), *self.images.shape[1:]) if len(self.images) == 1 else self.images

    def part(self, rows: Tensor) -> LatentTask:
        """Some of them."""
        return LatentTask(
            self.model,
            self.site,
            self.dictionary,
            self.images if len(self.images) == 1 else self.images[rows],
            self.latents[rows],
            None if self.tokens is None else self.tokens[rows],
            self.layout,
        )


def _check_range(what: str, given: Tensor, count: int, least: int = 0) -> None:
    if given.is_floating_point() or int(given.min()) < least or int(given.max()) >= count:
        raise TargetError(f"{what} {given.tolist()} is out of range: there are {count}")
