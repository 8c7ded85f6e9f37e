"""COCO's object classes as classes of ImageNet, and photographs with COCO masks as objects to localise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backlight.data.folders import SUFFIXES
from backlight.data.images import Preprocessing, read_image
from backlight.errors import ImageError, InputError, UnknownNameError
from backlight.shapes import Bool, Float

# COCO's category ids of "things" (2017; panoptic ids are the same)
COCO_IDS: dict[str, int] = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "truck": 8, "boat": 9,
    "traffic light": 10, "fire hydrant": 11, "stop sign": 13, "parking meter": 14, "bench": 15, "bird": 16, "cat": 17,
    "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "elephant": 22, "bear": 23, "zebra": 24, "giraffe": 25,
    "backpack": 27, "umbrella": 28, "handbag": 31, "tie": 32, "suitcase": 33, "frisbee": 34, "skis": 35,
    "snowboard": 36, "sports ball": 37, "kite": 38, "baseball bat": 39, "baseball glove": 40, "skateboard": 41,
    "surfboard": 42, "tennis racket": 43, "bottle": 44, "wine glass": 46, "cup": 47, "fork": 48, "knife": 49,
    "spoon": 50, "bowl": 51, "banana": 52, "apple": 53, "sandwich": 54, "orange": 55, "broccoli": 56, "carrot": 57,
    "hot dog": 58, "pizza": 59, "donut": 60, "cake": 61, "chair": 62, "couch": 63, "potted plant": 64, "bed": 65,
    "dining table": 67, "toilet": 70, "tv": 72, "laptop": 73, "mouse": 74, "remote": 75, "keyboard": 76,
    "cell phone": 77, "microwave": 78, "oven": 79, "toaster": 80, "sink": 81, "refrigerator": 82, "book": 84,
    "clock": 85, "vase": 86, "scissors": 87, "teddy bear": 88, "hair drier": 89, "toothbrush": 90,
}  # fmt: skip

# Classes of ImageNet (1000) whose pictures COCO's annotators would label so. Things that ImageNet has no class for are
# missing (person, giraffe, skateboard, ...), and so are names that mean another thing there: its kite is a bird.
IMAGENET_CLASSES: dict[str, tuple[int, ...]] = {
    "bicycle": (444, 671),
    "car": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "motorcycle": (665, 670),
    "airplane": (404, 895),
    "bus": (654, 779, 874),
    "train": (466, 547, 565, 705, 820),
    "truck": (555, 569, 675, 717, 864, 867),
    "boat": (472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "traffic light": (920,),
    "stop sign": (919,),
    "parking meter": (704,),
    "bench": (703,),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "dog": tuple(range(151, 269)),
    "horse": (339,),
    "sheep": (348, 349),
    "cow": (345,),
    "elephant": (101, 385, 386),
    "bear": tuple(range(294, 298)),
    "zebra": (340,),
    "backpack": (414,),
    "umbrella": (879,),
    "handbag": (748,),
    "tie": (457, 906),
    "skis": (795,),
    "sports ball": (429, 430, 522, 574, 722, 768, 805, 852, 890),
    "tennis racket": (752,),
    "bottle": (440, 720, 737, 898, 907),
    "wine glass": (572, 966),
    "cup": (504, 968),
    "knife": (499, 623),
    "spoon": (618, 910),
    "bowl": (659, 809),
    "banana": (954,),
    "apple": (948,),
    "sandwich": (933,),
    "orange": (950,),
    "broccoli": (937,),
    "hot dog": (934,),
    "pizza": (963,),
    "chair": (423, 559, 765),
    "couch": (831,),
    "potted plant": (738,),
    "bed": (564,),
    "dining table": (532,),
    "toilet": (861,),
    "tv": (664, 782, 851),
    "laptop": (620, 681),
    "mouse": (673,),
    "remote": (761,),
    "keyboard": (508,),
    "cell phone": (487,),
    "microwave": (651,),
    "oven": (827,),
    "toaster": (859,),
    "sink": (896,),
    "refrigerator": (760,),
    "clock": (409, 530, 892),
    "vase": (883,),
    "teddy bear": (850,),
    "hair drier": (589,),
}


@dataclass(frozen=True)
class MaskedPhotograph:
    """A photograph, its file of COCO category ids, one class of thing in it, and the class's share of the pixels."""

    image: Path
    mask: Path
    thing: str
    share: float

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of ImageNet that the thing may be."""
        return IMAGENET_CLASSES[self.thing]

    def target(self, logits: Float[Tensor, "K"]) -> int:
        """Of the classes that the thing may be, the one that a network gives the highest score."""
        return max(self.classes, key=lambda index: float(logits[index]))

    def load(self, preprocessing: Preprocessing) -> tuple[Float[Tensor, "3 H W"], Bool[Tensor, "H W"]]:
        """The network's input, and where in it the thing is: both are resized and cropped alike, the mask unblended.

        The crop may leave nothing of the thing.
        """
        picture = read_image(self.image)
        mask = class_mask(self.mask, self.thing)
        if mask.shape != picture.size[::-1]:
            raise ImageError(f"the mask {str(self.mask)!r} has {mask.shape[::-1]} pixels, its picture {picture.size}")
        geometry = replace(preprocessing, interpolation="nearest", mean=(0.0, 0.0, 0.0))
        shown = geometry.picture(Image.fromarray(mask.astype(np.uint8) * 255))
        return preprocessing.tensor(picture), torch.from_numpy(np.asarray(shown)[..., 0] > 127)


def class_mask(path: str | os.PathLike[str], thing: str) -> Bool[np.ndarray, "H W"]:
    """True where a file of category ids, one a pixel (8-bit grey or a palette), shows a class of thing.

    Raises:
        UnknownNameError: a name that is no COCO thing.
        ImageError: a file that cannot be read, or has several channels.
    """
    if thing not in COCO_IDS:
        raise UnknownNameError("COCO class", thing, COCO_IDS)
    return category_ids(path) == COCO_IDS[thing]


def category_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """The category id of each pixel, `[H, W]`. Raises `ImageError` as `class_mask` does."""
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ImageError(f"cannot read the mask {str(path)!r}: {' '.join(str(error).split())}") from None
    if ids.ndim != 2:
        raise ImageError(f"expected one category id a pixel in {str(path)!r}, got an image of shape {list(ids.shape)}")
    return ids


def masked_photographs(
    folder: str | os.PathLike[str], *, min_share: float = 0.02, things: Sequence[str] | None = None
) -> list[MaskedPhotograph]:
    """The photographs of a folder with `images/` and `masks/` that show things which ImageNet has classes for.

    One item for each such thing of each photograph, the largest first, photographs in the order of their names.

    Args:
        min_share: the least share of the pixels that the thing's mask holds.
        things: only these; None: all of `IMAGENET_CLASSES`.

    Raises:
        InputError: a folder without masks.
        UnknownNameError: a thing that ImageNet has no class for.
        ImageError: a mask that cannot be read, or without its photograph.
    """
    for thing in things or ():
        if thing not in IMAGENET_CLASSES:
            raise UnknownNameError("COCO class in ImageNet", thing, IMAGENET_CLASSES)
    masks = sorted((Path(folder) / "masks").glob("*.png"))
    if not masks:
        raise InputError(f"there are no masks/*.png in {str(folder)!r}")
    wanted = IMAGENET_CLASSES if things is None else things
    found: list[MaskedPhotograph] = []
    for mask in masks:
        counts = np.bincount(category_ids(mask).ravel(), minlength=256) / category_ids(mask).size
        shares = {thing: float(counts[COCO_IDS[thing]]) for thing in wanted}
        held = sorted((thing for thing in shares if shares[thing] >= min_share), key=lambda thing: -shares[thing])
        if held:
            image = _photograph(Path(folder) / "images", mask)
            found.extend(MaskedPhotograph(image, mask, thing, shares[thing]) for thing in held)
    return found


def _photograph(folder: Path, mask: Path) -> Path:
    files = sorted(file for file in folder.glob(f"{mask.stem}.*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ImageError(f"the mask {str(mask)!r} has no picture {mask.stem}.* in {str(folder)!r}")
    return files[0]
