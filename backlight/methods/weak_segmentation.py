"""Weakly supervised segmentation: from an attribution map to an object's mask and box, by colour and a graph cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.data.images import Picture, as_image
from backlight.displayed import Displayed
from backlight.errors import InputError, MissingExtraError, UnknownNameError
from backlight.methods.position_maps import resized
from backlight.shapes import Bool, Float, Int, UInt8

Box = tuple[int, int, int, int]

REDUCTIONS = ("magnitude", "positive")


@dataclass(frozen=True, repr=False)
class Segmentation(Displayed):
    """`mask`: the object's pixels. `box`: the smallest that holds them, (x0, y0, x1, y1), half-open, in pixels.

    `saliency`: the map that the seeds were taken from, at the image's size. `seeds`: 1 foreground, -1 background, 0
    undecided. `from_cut`: False where the cut left no foreground, and the mask is the largest component of the seeds.
    """

    mask: Bool[np.ndarray, "H W"]
    box: Box
    saliency: Float[np.ndarray, "H W"]
    seeds: Int[np.ndarray, "H W"]
    from_cut: bool


def weak_segmentation(
    image: Picture | Tensor,
    attribution: Tensor | np.ndarray,
    *,
    foreground: float = 0.95,
    background: float = 0.30,
    reduce: str | None = None,
    fixed_seeds: bool = False,
    n_iterations: int = 1,
    longest: int = 400,
    seed: int = 0,
) -> Segmentation:
    """The object that an attribution points at: colour models of its seeds, a graph cut, the largest component.

    Simonyan, Vedaldi, Zisserman 2014, section 3.2: pixels above the `foreground` quantile of saliency and below the
    `background` quantile are seeds; a Gaussian mixture in colour is fitted to each; the cut (Boykov and Jolly 2001,
    OpenCV's grabCut) labels every pixel by the two models and a smoothness that gives way at edges of colour.

    Args:
        image: the picture that the map lies on, as the network saw it (all of it, not more): a path, a PIL image, an
            array, or a tensor `[3, H, W]` in [0, 1].
        attribution: `[H, W]`, `[C, H, W]`, or a batch of one of them, of any size; it is resized to the image.
        reduce: how a map becomes saliency: "magnitude", the largest absolute value over channels (of gradients, whose
            sign says nothing of the object), or "positive", the positive part of the sum over channels (of relevance,
            whose negative part speaks against the class). None: "magnitude" for several channels, "positive" for one.
        fixed_seeds: the cut may not relabel seeds. The paper's seeds only train the colour models.
        n_iterations: 1 cuts once with the seeds' models, as the paper; more refit them to the last cut (Rother,
            Kolmogorov and Blake 2004).
        longest: side to which larger images are reduced for the cut; the mask is enlarged again.
        seed: of the mixtures' first clusters; where colours are many, masks depend on it. Neither NumPy's, torch's nor
            OpenCV's generators are touched.

    Cost: no pass of the network; some tenths of a second of OpenCV.

    Raises:
        InputError: a map that is constant (after `reduce`), not finite, or of another shape; settings out of range.
        MissingExtraError: OpenCV is not installed.
    """
    if n_iterations < 1 or longest < 1:
        raise InputError(f"n_iterations and longest must be at least 1, got {n_iterations} and {longest}")
    full = _pixels(image)
    pixels = _reduced(full, longest)
    small = saliency_map(attribution, pixels.shape[:2], reduce)
    seeds = quantile_seeds(small, foreground, background)
    labels = _cut(pixels, seeds, fixed_seeds, n_iterations, seed)
    from_cut = bool(labels.any())
    found = largest_component(labels if from_cut else seeds > 0)
    mask, seeds = _enlarged(found, full.shape), _enlarged(seeds, full.shape)
    saliency = small if full.shape == pixels.shape else saliency_map(attribution, full.shape[:2], reduce)
    return Segmentation(mask, bounding_box(mask), saliency, seeds, from_cut)


def saliency_map(
    attribution: Tensor | np.ndarray, size: tuple[int, ...], reduce: str | None = None
) -> Float[np.ndarray, "H W"]:
    """An attribution as one number of at least 0 a pixel, at `size`; `reduce` as in `weak_segmentation`.

    Raises:
        InputError: a map that is not finite, or of another shape.
        UnknownNameError: another reduction.
    """
    values = torch.as_tensor(attribution).detach().to("cpu", torch.float64)
    given = list(values.shape)
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise InputError(f"expected a map [H, W] or [C, H, W] of one picture, got {given}")
    if not bool(values.isfinite().all()):
        raise InputError("a map to segment by must be finite")
    reduce = reduce or ("positive" if len(values) == 1 else "magnitude")
    if reduce not in REDUCTIONS:
        raise UnknownNameError("reduction", reduce, REDUCTIONS)
    flat = values.abs().amax(0) if reduce == "magnitude" else values.sum(0).clamp(min=0)
    return resized(flat[None, None], size)[0, 0].numpy()


def quantile_seeds(
    saliency: Float[np.ndarray, "H W"], foreground: float = 0.95, background: float = 0.30
) -> Int[np.ndarray, "H W"]:
    """1 at and above the `foreground` quantile, -1 at and below the `background` quantile, 0 between.

    Maps with plateaus (many zeros, say) may have both quantiles at one value: then the plateau is background where
    anything lies above it, and otherwise foreground.

    Raises:
        InputError: a constant map, or quantiles that are not 0 <= background < foreground <= 1.
    """
    if not 0 <= background < foreground <= 1:
        raise InputError(f"expected 0 <= background < foreground <= 1, got {background} and {foreground}")
    low, high = np.quantile(saliency, (background, foreground))
    if saliency.min() == saliency.max():
        level = f"{saliency.flat[0]:.3g}"
        raise InputError(f"the map is constant ({level}): no pixel stands out, there is nothing to segment")
    above, below = saliency >= high, saliency <= low
    if low == high:
        above, below = saliency > high, saliency <= low
        if not above.any():
            above, below = saliency >= high, saliency < low
    return above.astype(np.int8) - below.astype(np.int8)


def largest_component(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The largest of the mask's components, where pixels touch by sides or corners; of equals, the topmost."""
    count, labels, statistics, _ = _opencv().connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(statistics[1:, -1].argmax())


def bounding_box(mask: Bool[np.ndarray, "H W"]) -> Box:
    """(x0, y0, x1, y1), half-open; of an empty mask, zeros."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut(
    pixels: UInt8[np.ndarray, "H W 3"], seeds: Int[np.ndarray, "H W"], fixed: bool, iterations: int, seed: int
) -> Bool[np.ndarray, "H W"]:
    """The foreground of the cut. In a thread of its own: OpenCV's random generator is one a thread."""
    cv2 = _opencv()

    def work() -> Any:
        cv2.setRNGSeed(seed)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        decided = seeds != 0
        samples = np.ascontiguousarray(pixels[decided][None])  # the seeds alone, as a picture of one row
        which = np.where(seeds[decided] > 0, cv2.GC_FGD, cv2.GC_BGD)[None].astype(np.uint8)
        cv2.grabCut(samples, which, None, *models, 0, cv2.GC_INIT_WITH_MASK)  # no cut: fits the mixtures
        mask = np.where(seeds > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        if fixed:
            mask[seeds > 0], mask[seeds < 0] = cv2.GC_FGD, cv2.GC_BGD
        cv2.grabCut(pixels, mask, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
        for _ in range(iterations - 1):
            if not _both(mask, cv2):  # a mixture cannot be fitted to nothing
                break
            cv2.grabCut(pixels, mask, None, *models, 1, cv2.GC_EVAL)
        return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _both(mask: np.ndarray, cv2: Any) -> bool:
    front = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    return bool(front.any() and not front.all())


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError:
        raise MissingExtraError("opencv-python-headless", "segmentation") from None
    return cv2


def _pixels(image: Picture | Tensor) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"expected an image tensor [3, H, W], got {list(image.shape)}")
        image = image.detach().cpu().double().permute(1, 2, 0).numpy()
    return np.asarray(as_image(image))


def _reduced(pixels: UInt8[np.ndarray, "H W 3"], longest: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, made smaller where a side is longer than `longest`."""
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return np.ascontiguousarray(pixels)
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _opencv().resize(pixels, size, interpolation=_opencv().INTER_AREA)


def _enlarged(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels at another size, without mixing them."""
    if labels.shape == shape[:2]:
        return labels
    cv2 = _opencv()
    found = cv2.resize(labels.astype(np.int8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    return found.astype(labels.dtype)
