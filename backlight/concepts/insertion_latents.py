"""The insertion test of latents on a network: what is mixed, onto which canvas, and where the latent is read.

The lab's protocol is the default: patch tokens are put onto the position embedding at the first block's input, the
class token stays, z_k is read at the token where it is largest on the whole image, and divided by that value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.concepts.attributors import cell_numbers
from backlight.concepts.insertion import BATCH_SIZE, FLOOR, InsertionCurves, Steps, budgets_of, insertion_curves
from backlight.concepts.latent_units import as_rows, choose_tokens, layout_at, placed
from backlight.concepts.token_canvas import TOKEN_CANVASES, picture_canvas, token_canvas
from backlight.decompositions import Decomposition
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.segment import Segment
from backlight.engine.sites import INPUT
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.token_fields import TokenFields
from backlight.methods.token_layout import find_sites
from backlight.metrics.canvas import CANVASES
from backlight.shapes import Bool, Float, Int

UNITS = ("tokens", "pixels")
READINGS = ("fixed", "max")
DEFAULT_CANVAS = {"tokens": "position", "pixels": "zero"}


@dataclass(frozen=True, kw_only=True)
class InsertionTest:
    """The settings of an insertion test of latents; the defaults are the lab's.

    Args:
        unit: "tokens": patch tokens are mixed at the first block's input, canvas + mask (token - canvas), and prefix
            tokens (class, registers) stay as they are; "pixels": the pixels of patches are, on an image. Networks
            without patch tokens have pixels alone.
        canvas: None: "position" for tokens, "zero" for pixels, which is the mean colour where inputs are normalised by
            it. See `token_canvas` and `backlight.metrics.canvas.canvas_of`.
        reading: "fixed": z_k at one token throughout; "max": the largest over the patch tokens, wherever it is.
        token: which one, on the whole image: "argmax", "patch", "class" or a number; see `latent_units.choose_tokens`.
        steps: see `backlight.concepts.insertion.budgets_of`.
        delete: take patches away from the image, highest first; good orders have small areas.
        clip: cut normalised curves off above 1. floor: pairs whose z_k on the whole image is no more are dropped.
        sigma: of the canvas "blur". seed: of the canvas "noise".
        batch_size: the most images in a pass of the network.

    Raises:
        UnknownNameError: another unit, canvas or reading.
    """

    unit: str = "tokens"
    canvas: str | Tensor | None = None
    reading: str = "fixed"
    token: str | int = "argmax"
    steps: Steps = "lab"
    delete: bool = False
    clip: bool = False
    floor: float = FLOOR
    sigma: float = 1 / 20
    seed: int = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UnknownNameError("unit", self.unit, UNITS)
        if self.reading not in READINGS:
            raise UnknownNameError("reading of the latent", self.reading, READINGS)
        known = TOKEN_CANVASES if self.unit == "tokens" else CANVASES
        if isinstance(self.canvas, str) and self.canvas not in known:
            raise UnknownNameError(f"canvas of {self.unit}", self.canvas, known)

    @property
    def ground(self) -> str | Tensor:
        """The canvas, by default that of the unit."""
        return DEFAULT_CANVAS[self.unit] if self.canvas is None else self.canvas

    @property
    def name(self) -> str:
        """`tokens, position`, and what else is not the default."""
        ground = self.ground if isinstance(self.ground, str) else f"tensor {list(self.ground.shape)}"
        others = ["max"] * (self.reading == "max") + ["deletion"] * self.delete
        return ", ".join([self.unit, ground, *others])

    def run(
        self,
        model: nn.Module,
        site: str,
        dictionary: Decomposition,
        images: Float[Tensor, "N C H W"],
        latents: Int[Tensor, "n"],
        scores: Mapping[str, Float[Tensor, "m h w"]],
        *,
        tokens: Int[Tensor, "N"] | None = None,
        mean_patch: Float[Tensor, "D"] | None = None,
    ) -> InsertionCurves:
        """The curves of orders of patches, for N pairs of an image and a latent.

        Args:
            site: where the dictionary's rows come from, `[N, L, C]` or a map.
            scores: by the name of the attributor, on one grid of patches.
            tokens: where the latents are read; None: where `token` says.
            mean_patch: of the canvas "patch".

        Cost: a forward pass as far as the site for each pair, attributor and step, and about four a pair.

        Raises:
            InputError: numbers or grids that do not agree; scores that are not finite.
            SiteError: a site that is not reached, or comes before the tokens; unknown patch tokens.
            ModelError: a model in training mode.
        """
        if not scores:
            raise InputError("no scores to order patches by")
        stacked = torch.stack([torch.as_tensor(one) for one in scores.values()])
        if stacked.ndim != 4 or stacked.shape[1] != len(images) or len(latents) != len(images):
            raise InputError(
                f"{len(images)} images, {len(latents)} latents, scores {list(stacked.shape[1:])}: expected N, N and "
                "[N, h, w]"
            )
        grid = (stacked.shape[2], stacked.shape[3])
        budgets = budgets_of(self.steps, grid[0] * grid[1])
        values, read = [], []
        for rows in torch.arange(len(images)).split(self.batch_size):
            chosen = None if tokens is None else tokens[rows]
            response = LatentResponse(
                self, model, site, dictionary, images[rows.to(images.device)], latents[rows], grid, chosen, mean_patch
            )
            flat = stacked[:, rows].flatten(2)
            values.append(insertion_curves(response, flat, budgets, delete=self.delete, batch_size=self.batch_size))
            read.append(response.tokens)
        told = (tuple(scores), torch.cat(values, 1), budgets, grid[0] * grid[1], torch.cat(read))
        return InsertionCurves(*told, self.delete, self.floor, self.clip)


class LatentResponse:
    """z_k of N pairs when patches of a grid are there: the `Response` of an `InsertionTest`.

    `tokens` `[N]`: where each latent is read, -1 for the largest of the patch tokens; positions of a map are counted
    row by row. The network runs from the tokens, or the image, to the site; nothing is left on it.
    """

    def __init__(
        self,
        test: InsertionTest,
        model: nn.Module,
        site: str,
        dictionary: Decomposition,
        images: Float[Tensor, "N C H W"],
        latents: Int[Tensor, "N"],
        grid: tuple[int, int],
        tokens: Int[Tensor, "N"] | None = None,
        mean_patch: Float[Tensor, "D"] | None = None,
    ) -> None:
        check_evaluation_mode(model)
        self.regions: Tensor | None = None
        self.prefix = 0
        self.test, self.site, self.dictionary = test, site, placed(dictionary, model)
        self.device = self.dictionary.modes.device
        images = images.detach().to(self.device)
        self.latents = _checked(latents, len(images), len(self.dictionary.modes)).to(self.device)
        with torch.no_grad():
            if test.unit == "tokens":
                self._begin_tokens(model, images, grid, mean_patch)
            else:
                self._begin_pixels(model, images, grid)
        self.layout = layout_at(model, site, self.dictionary, images)
        self.tokens = self._tokens(tokens)

    def __call__(self, rows: Int[Tensor, "b"], masks: Bool[Tensor, "b P"]) -> Float[Tensor, "b"]:
        rows, masks = rows.to(self.device), masks.to(self.device)
        with torch.no_grad():
            return self._read(self.segment(self._mixed(rows, masks), rows), rows)

    def _begin_tokens(self, model: nn.Module, images: Tensor, grid: tuple[int, int], mean: Tensor | None) -> None:
        sites = find_sites(model)
        if sites.sequence is None:
            raise SiteError("the network has no sequence of tokens to mix in: use unit='pixels'")
        known = TokenFields(model).layout(images)
        if (known.height, known.width) != grid:
            raise InputError(f"scores on a grid of {grid} for {known.height} x {known.width} patch tokens")
        test = self.test
        self.canvas = token_canvas(
            model, images, test.ground, mean_patch=mean, sigma=test.sigma, seed=test.seed, sites=sites
        )
        self.segment = Segment(model, images, sites.sequence, self.site, skip=False)
        self.prefix = known.prefix

    def _begin_pixels(self, model: nn.Module, images: Tensor, grid: tuple[int, int]) -> None:
        height, width = images.shape[2:]
        self.canvas = picture_canvas(self.test.ground, images, self.test.sigma, self.test.seed)
        self.segment = Segment(model, images, INPUT, self.site)
        self.regions = cell_numbers((height, width), grid, self.device)

    def _mixed(self, rows: Tensor, masks: Tensor) -> Tensor:
        whole, canvas = self.segment.start_value[rows], self.canvas[rows]
        if self.regions is not None:
            return torch.where(masks[:, self.regions][:, None], whole, canvas)
        mixed = torch.where(masks[:, :, None], whole[:, self.prefix :], canvas)
        return torch.cat((whole[:, : self.prefix], mixed), 1)

    def _tokens(self, given: Tensor | None) -> Int[Tensor, "N"]:
        count = len(self.latents)
        if self.test.reading == "max":
            return torch.full((count,), -1)
        if given is None:
            rows = self._rows(self.segment.stop_value)
            values = self.dictionary.encode(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            own = values[torch.arange(count, device=self.device), :, self.latents]
            given = choose_tokens(own, self.test.token, self.layout)
            if given is None:
                raise InputError("an insertion reads one token, or reading='max'; not their sum")
        length = self.layout.prefix + self.layout.count
        if len(given) != count or not 0 <= int(given.min()) <= int(given.max()) < length:
            raise InputError(f"tokens {given.tolist()} for {count} images and {length} tokens at {self.site!r}")
        return given.cpu().long()

    def _read(self, value: Tensor, rows: Tensor) -> Float[Tensor, "b"]:
        hidden, latents = self._rows(value), self.latents[rows]
        every = torch.arange(len(rows), device=self.device)
        if self.test.reading == "max":
            patches = hidden[:, self.layout.prefix :]
            codes = self.dictionary.encode(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
            return codes[every, :, latents].amax(1)
        chosen = hidden[every, self.tokens.to(self.device)[rows]]
        return self.dictionary.encode(chosen)[every, latents]

    def _rows(self, value: Tensor) -> Float[Tensor, "b L C"]:
        return as_rows(value, self.dictionary.modes.shape[1], self.site)[0]


def _checked(latents: Tensor, count: int, known: int) -> Int[Tensor, "N"]:
    found = torch.as_tensor(latents).reshape(-1).long()
    if len(found) != count:
        raise InputError(f"{len(found)} latents for {count} images: one each")
    if int(found.min()) < 0 or int(found.max()) >= known:
        raise InputError(f"latents {int(found.min())}..{int(found.max())} of a dictionary of {known}")
    return found
