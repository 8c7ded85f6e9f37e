"""Names of concepts: the classes that they go with, and texts that a joint encoder of images and texts puts near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.concepts.concepts import Concepts
from backlight.concepts.exemplars import Exemplar, strength
from backlight.concepts.receptive_fields import MASS
from backlight.contributions.concepts import IMAGES
from backlight.contributions.concepts import Concepts as Masks
from backlight.contributions.correlation import correlation
from backlight.data.classes import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, MissingExtraError, UnknownNameError
from backlight.shapes import Float


@dataclass(frozen=True)
class ClassNaming:
    """What goes with concepts, over images: `r` `[K, M]`, Pearson's correlation of an image's largest code with masks.

    `masks`: of classes, or of a hierarchy's sets of them. `constant` `[K]`: concepts that do not vary, with r = 0.
    """

    r: Float[Tensor, "K M"]
    masks: Masks
    constant: Tensor

    def top(self, k: int, count: int = 3) -> list[tuple[str, float]]:
        """The masks with the largest r, and it."""
        best = self.r[k].topk(min(count, self.r.shape[1]))
        return [(self.masks.names[place], float(r)) for r, place in zip(best.values, best.indices, strict=True)]


def name_by_class(
    concepts: Concepts,
    *,
    hierarchy: Hierarchy | None = None,
    names: ClassNames | None = None,
    by: str = "label",
    min_images: int = IMAGES,
) -> ClassNaming:
    """Correlate concepts with classes, or with a hierarchy's concepts, over all images of the bank that have a class.

    The number of an image is its largest code (nearness, where rows have one concept each). Correlations of many
    concepts with many masks are large by chance, too: `contributions.modes` tells how large.

    Args:
        by: "label", or "prediction" of the network: it needs no labels.
        min_images: a class, or set of classes, with fewer images is left out.

    Raises:
        InputError: no image has a class, or no class has enough images.
    """
    bank = concepts.bank
    if by not in ("label", "prediction"):
        raise UnknownNameError("by", by, ("label", "prediction"))
    labels = bank.labels if by == "label" else bank.predictions
    if hierarchy is None:
        masks = Masks.of_classes(labels, names or bank.classes, min_images)
    else:
        masks = Masks.of_hierarchy(labels, hierarchy, min_images)
    if not len(masks):
        raise InputError(
            f"no class has {min_images} images inside and outside: give a smaller min_images, or a hierarchy, whose "
            "concepts join classes"
        )
    known = torch.from_numpy(labels >= 0).double()
    found = correlation(concepts.of_images(strength(concepts)), masks.masks, known)
    return ClassNaming(found.r, masks, found.constant)


@dataclass(frozen=True)
class Encoders:
    """A pair that puts images and texts into one space: `images`: `[N, 3, H, W]` in [-1, 1] to `[N, d]`; `texts`: a
    list of N to `[N, d]`.
    """

    images: Callable[[Tensor], Tensor]
    texts: Callable[[list[str]], Tensor]


def open_clip_encoders(name: str = "ViT-B-32", pretrained: str = "", device: str = "cpu") -> Encoders:
    """OpenCLIP's, with weights that are at hand: `pretrained` is a tag that is downloaded, or a file.

    Raises:
        MissingExtraError: open_clip_torch is not installed.
        InputError: no weights are named; random ones would name at random.
    """
    if not pretrained:
        raise InputError("give the weights of the encoders, pretrained=a tag of open_clip or a file")
    try:
        import open_clip
    except ModuleNotFoundError:
        raise MissingExtraError("open_clip", "clip") from None
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    normalise: Any = transform.transforms[-1]
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)

    def images(x: Tensor) -> Tensor:
        resized = torch.nn.functional.interpolate((x + 1) / 2, (height, width), mode="bicubic", antialias=True)
        with torch.no_grad():
            return model.encode_image(normalise(resized.clamp(0, 1)).to(device))

    def texts(words: list[str]) -> Tensor:
        with torch.no_grad():
            return model.encode_text(tokenizer(words).to(device))

    return Encoders(images, texts)


@dataclass(frozen=True)
class TextNaming:
    """`scores` `[M]`: of each of the `texts`, for one concept; the largest names it."""

    texts: tuple[str, ...]
    scores: Float[Tensor, "M"]

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """The best texts and their scores."""
        best = self.scores.topk(min(count, len(self.texts)))
        return [(self.texts[place], float(one)) for one, place in zip(best.values, best.indices, strict=True)]


def name_by_text(
    exemplars: Sequence[Exemplar],
    texts: Sequence[str],
    encoders: Encoders,
    *,
    control: Sequence[Exemplar] = (),
    size: int = 224,
    mass: float = MASS,
) -> TextNaming:
    """How near texts are to what a concept's exemplars show in their crops.

    The score of a text is the mean cosine between it and the crops (the boxes of their fields), less its mean cosine
    with the crops of `control` (exemplars of other concepts): a text that is near every picture names none.

    Raises:
        InputError: no exemplar, or no text.
    """
    if not exemplars or not texts:
        raise InputError("texts are chosen for exemplars: give at least one of each")
    words = _unit(encoders.texts(list(texts)))
    means = [
        (_unit(encoders.images(_crops(group, size, mass))) @ words.T).mean(0) if group else torch.zeros(len(words))
        for group in (list(exemplars), list(control))
    ]
    return TextNaming(tuple(texts), means[0] - means[1])


def name_by_profile(
    concepts: Concepts,
    k: Sequence[int],
    texts: Sequence[str],
    encoders: Encoders,
    *,
    batch_size: int = 32,
) -> list[TextNaming]:
    """How well texts tell on which images a concept is strong: the idea of CLIP-Dissect (Oikarinen and Weng 2023).

    The score is Pearson's correlation, over the bank's images, of the concept's largest code with the cosine between
    image and text, less the image's mean cosine with all texts. It needs whole images, no fields.

    Raises:
        InputError: no text.
    """
    if not texts:
        raise InputError("give at least one text")
    bank, words = concepts.bank, _unit(encoders.texts(list(texts)))
    near = []
    for numbers in torch.arange(len(bank)).split(batch_size):
        pictures = torch.stack([bank.picture(int(one)) for one in numbers])
        near.append((_unit(encoders.images(pictures)) @ words.T).cpu())
    cosines = torch.cat(near)
    cosines = _standard(cosines - cosines.mean(1, keepdim=True) if len(texts) > 1 else cosines)
    ranked = concepts.of_images(strength(concepts))
    codes = torch.cat([ranked.read(start, start + 1024)[:, list(k)] for start in range(0, len(bank), 1024)])
    r = _standard(codes.double()).T @ cosines / len(bank)
    return [TextNaming(tuple(texts), row) for row in r]


def _crops(group: Sequence[Exemplar], size: int, mass: float) -> Float[Tensor, "N 3 s s"]:
    wide = [
        torch.nn.functional.interpolate(one.crop(mass)[None], (size, size), mode="bilinear", antialias=True)
        for one in group
    ]
    return torch.cat(wide)


def _unit(vectors: Tensor) -> Float[Tensor, "N d"]:
    return torch.nn.functional.normalize(vectors.detach().double(), dim=1)


def _standard(columns: Tensor) -> Tensor:
    moved = columns.double() - columns.double().mean(0)
    scale = moved.square().mean(0).sqrt()
    return moved / scale.where(scale > 0, 1)
