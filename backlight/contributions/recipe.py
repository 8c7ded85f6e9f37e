"""What is typed of a contribution: targets and baselines by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.data.images import Preprocessing
from backlight.engine.targets import Contrast, Entropy, Logit, LogProbability, Probability, Target, TopK
from backlight.errors import ImageError, InputError, TargetError
from backlight.evaluation.samples import Samples
from backlight.shapes import Float

LABEL = "label"
TARGETS = (
    "top1 (the largest logit), topK (the sum of the K largest), topK:probability, top1:floating, logit:C, probability, "
    "probability:C, log_probability[:C], contrast (of the two largest), contrast:A,B, entropy, label"
)
BASELINES = ("grey", "black", "white", "blur", "mean", "none")
DATA_MEAN, MEANT = "data-mean", 1000  # a baseline of the command: the mean of so many pictures


def parse_target(text: str) -> Target | str:
    """The target that a word stands for; `label` is the sample's own class, and stays a word.

    Of `top1`, `topK` and `contrast`, `:floating` chooses the classes at every point of a path anew, as CODEC's
    reference does; without, they are chosen at the input.

    Raises:
        TargetError: another word; the message lists them.
    """
    word, *settings = text.strip().split(":")
    floating = "floating" in settings
    rest = [one for one in settings if one != "floating"]
    if top := re.fullmatch(r"top(\d+)", word):
        probability = rest == ["probability"]
        if not rest or probability:
            count = int(top[1])
            plain = count == 1 and not probability
            return Logit(floating=floating) if plain else TopK(count, probability=probability, floating=floating)
    simple: dict[str, Any] = {"logit": Logit, "probability": Probability, "log_probability": LogProbability}
    if word in simple and len(rest) < 2 and all(one.isdigit() for one in rest):
        return simple[word](int(rest[0])) if rest else simple[word](floating=floating)
    if word == "contrast" and len(rest) < 2 and (not rest or re.fullmatch(r"\d+,\d+", rest[0])):
        return Contrast(*map(int, rest[0].split(","))) if rest else Contrast(floating=floating)
    if not settings and word == "entropy":
        return Entropy()
    if not settings and word == LABEL:
        return LABEL
    raise TargetError(f"unknown target {text!r}; targets: {TARGETS}")


def baseline_inputs(
    baseline: str | Tensor | os.PathLike[str] | None, preprocessing: Preprocessing | None
) -> str | Tensor | None:
    """A baseline as `contribute` takes it, in the network's normalised space.

    - "grey": zero there, the mean colour of the training pictures, as the paper has it; "none": no baseline;
    - "black", "white": such pictures; "blur", "mean": of each input, see `backlight.engine.paths.baseline_like`;
    - a tensor, or a file with one (`.npy`, `.pt`), `[3, H, W]` in [-1, 1] as samples are, such as their mean.

    Raises:
        InputError: another word that is no file either, or a file that holds something else.
    """
    if baseline is None or baseline == "none":
        return None
    if isinstance(baseline, str) and baseline in ("grey", "blur", "mean"):
        return baseline
    if baseline in ("black", "white"):
        if preprocessing is None:
            raise InputError(f"what is {baseline!r} is not known without preprocessing: give a tensor")
        return preprocessing.bounds()[0 if baseline == "black" else 1]
    given = baseline if isinstance(baseline, Tensor) else _read(Path(baseline))
    return given if preprocessing is None else preprocessing.normalise((given.float() + 1) / 2)


def mean_picture(samples: Samples) -> Float[Tensor, "C H W"]:
    """The mean of the pictures that can be read, as they are, in [-1, 1]: a baseline. Raises `InputError`: none can."""
    total, count = None, 0
    for name in samples.names:
        try:
            picture = samples.load(name).inputs.double()
        except ImageError:
            continue
        total, count = picture if total is None else total + picture, count + 1
    if total is None:
        raise InputError("there is no picture to take the mean of")
    return (total / count).float()


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise InputError(f"a baseline is one of {', '.join(BASELINES)}, or a file; there is no file {str(path)!r}")
    try:
        if path.suffix == ".npy":
            import numpy as np

            found = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make both readers raise nearly anything
        raise InputError(f"cannot read a baseline from {str(path)!r}: {' '.join(str(error).split())}") from None
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise InputError(f"{str(path)!r} holds no tensor of floating point numbers")
    return found
