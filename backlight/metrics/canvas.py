"""Canvases: the images that parts of a sample are put on, or that show where parts are taken away."""

from __future__ import annotations

from torch import Tensor

from backlight.engine.paths import blur
from backlight.errors import InputError, UnknownNameError
from backlight.metrics.draws import Seed, normal
from backlight.metrics.fills import filled
from backlight.shapes import Float

Canvas = int | float | str | Tensor
CANVASES = ("zero", "mean", "blur", "noise")


def canvas_of(
    canvas: Canvas, inputs: Float[Tensor, "N C H W"], seed: Seed = 0, sigma: float = 1 / 20
) -> Float[Tensor, "N C H W"]:
    """One canvas for each sample, of itself and its seed alone.

    Args:
        canvas: "zero"; "mean", of each channel of the image; "blur", the image blurred by a Gaussian; "noise", N(mean,
            variance) of each channel of the image in every entry; a number for all entries; or a tensor that
            broadcasts to the samples.
        sigma: the Gaussian's standard deviation, in pixels, or below 1 as a part of the shorter side.

    Raises:
        UnknownNameError: another name.
        InputError: a tensor that does not broadcast; a sigma that is not positive.
    """
    if isinstance(canvas, Tensor):
        try:
            return canvas.detach().to(inputs).expand(inputs.shape)
        except RuntimeError:
            raise InputError(f"a canvas {list(canvas.shape)} does not broadcast to {list(inputs.shape)}") from None
    if canvas == "blur":
        if sigma <= 0:
            raise InputError(f"a blur needs a positive sigma, got {sigma}")
        return blur(inputs, sigma * min(inputs.shape[2:]) if sigma < 1 else sigma)
    mean = inputs.mean((2, 3), keepdim=True)
    if canvas == "noise":
        spread = inputs.std((2, 3), correction=0, keepdim=True)
        return mean + spread * normal(seed, inputs.shape[1:], 1.0, inputs)
    if canvas == "mean":
        return mean.expand(inputs.shape)
    if isinstance(canvas, str) and canvas != "zero":
        raise UnknownNameError("canvas", canvas, CANVASES)
    value = 0.0 if isinstance(canvas, str) else float(canvas)
    return filled(value, inputs, 1, seed)[:, :, None, None].expand(inputs.shape)
