"""ClassSaliency: the largest absolute gradient over the channels of each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine.attribution import Attribution, attribute
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost, Evaluator
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT
from backlight.engine.sites import INPUT
from backlight.engine.targets import Target, as_target
from backlight.errors import InputError, SiteError
from backlight.methods.method import Method
from backlight.methods.position_maps import resized
from backlight.shapes import Float

Window = tuple[slice, slice]


def largest_over_channels(value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
    """max over channels of |cotangent|, `[N, 1, ...]`; of `[N, D]`, which has no positions, |cotangent|."""
    size = cotangent.abs()
    return size.amax(1, keepdim=True) if size.ndim > 2 else size


@dataclass(kw_only=True)
class ClassSaliency(Method):
    """How much each position sways the score: the largest absolute gradient over its colour channels.

    `crops`: the average of the maps of ten sub-images (the four corners and the centre, each also mirrored), which the
    paper shows: a window of the fraction `crop` of height and width (224 of 256 pixels), resized to the input's size
    (bilinear); its map is mirrored and resized back to the window; a pixel's value is the mean over the windows that
    cover it. The class of `target=None` is chosen once, at the whole image.

    S_c is the logit where the model gives logits; the posterior grows also when other classes are lowered. The map has
    no sign: evidence against the class is as bright as evidence for it (`Saliency` keeps signs). At a hidden layer,
    where only `crops=False` can be read, channels are axis 1.
    """

    source: ClassVar[str] = "Simonyan, Vedaldi, Zisserman 2014, section 3"
    formula: ClassVar[str] = "M_ij = max_c |dS / dx_cij|"
    passes: ClassVar[str] = "10 if crops else 1"
    positions: ClassVar[bool] = True

    crops: bool = False
    crop: float = 0.875

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise InputError(f"crop is a fraction of the image in (0, 1], got {self.crop}")

    def explain(
        self,
        inputs: Tensor | Inputs,
        target: Any = None,
        *,
        sites: str | tuple[str, ...] = INPUT,
        internal_batch_size: int | None = None,
        bias: bool = False,
        **settings: Any,
    ) -> Attribution:
        """The map, at the input `[N, 1, H, W]`; settings as in `Method.explain`. With `crops`, `scores` are the means.

        Raises:
            InputError: with `crops`, inputs that are not one batch of images `[N, C, H, W]`; a share of the biases,
                which absolute values do not sum up with.
            SiteError: with `crops`, a site other than the input.
        """
        if bias:
            raise InputError("absolute gradients have no share of the biases: bias=True is for Saliency")
        settings |= {"readout": largest_over_channels, "strict": self.strict, "rules": self.rules()}
        settings["internal_batch_size"] = internal_batch_size
        if not self.crops:
            return attribute(self.model, inputs, target, sites=sites, **settings)
        if sites not in (INPUT, (INPUT,), [INPUT]):
            raise SiteError(f"crops are read at 'input', not at {sites!r}: the maps are put back into the image")
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            raise InputError("crops are made of one batch of images [N, C, H, W]")
        return self._over_crops(inputs, target, settings)

    def _over_crops(self, x: Float[Tensor, "N C H W"], target: Any, settings: dict[str, Any]) -> Attribution:
        chosen, cost = self._chosen(x, target, settings)
        result = Attribution({}, Coverage(), cost)
        wide = torch.promote_types(x.dtype, torch.float32)
        total, scores, cover = torch.zeros_like(x[:, :1], dtype=wide), [], x.new_zeros(x.shape[2:], dtype=wide)
        for window in windows(x.shape[2], x.shape[3], self.crop):
            view = resized(x[:, :, *window], x.shape[2:])
            for mirrored in (False, True):
                found = attribute(self.model, view.flip(3) if mirrored else view, chosen, **settings)
                seen = found.value.flip(3) if mirrored else found.value
                total = total + _in_place(seen.to(wide), window, x.shape[2:])
                cover[window] += 1
                scores.append(found.scores)
                result.coverage.merge(found.coverage)
                cost.forwards += found.cost.forwards
                cost.backwards += found.cost.backwards
        result.values = {INPUT: (total / cover).to(x.dtype)}
        result.scores = torch.stack([score for score in scores if score is not None]).mean(0)
        return result

    def _chosen(self, x: Tensor, target: Any, settings: dict[str, Any]) -> tuple[Target, Cost]:
        """The target, with what depends on the output decided at the whole image, and what that cost."""
        given = settings.get("additional_forward_args")
        arguments = given if isinstance(given, tuple) else () if given is None else (given,)
        evaluator = Evaluator(self.model, as_target(target), GRADIENT, (INPUT,), len(x), arguments=arguments)
        if evaluator.target.chooses:
            rows, size = torch.arange(len(x)), settings["internal_batch_size"] or len(x)
            outputs = [
                evaluator.outputs((part,), row) for part, row in zip(x.split(size), rows.split(size), strict=True)
            ]
            return evaluator.target.fixed(torch.cat(outputs)), evaluator.cost
        return evaluator.target, evaluator.cost


def windows(height: int, width: int, crop: float) -> list[Window]:
    """The four corners and the centre: windows of the fraction `crop` of each side, at least one pixel."""
    h, w = max(1, round(crop * height)), max(1, round(crop * width))
    down, right = height - h, width - w
    corners = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    return [(slice(top, top + h), slice(left, left + w)) for top, left in corners]


def _in_place(seen: Float[Tensor, "N 1 H W"], window: Window, size: torch.Size) -> Float[Tensor, "N 1 H W"]:
    """A window's map at its place in the image, zero elsewhere."""
    rows, columns = window
    part = resized(seen, (rows.stop - rows.start, columns.stop - columns.start))
    return F.pad(part, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))
