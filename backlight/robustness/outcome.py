"""What a manipulation attack came to: images, maps, losses, and what changed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backlight.engine.targets import Target
from backlight.robustness.attack import Attack
from backlight.robustness.similarity import Similarity, similarity
from backlight.shapes import Bool, Float, Int


@dataclass(frozen=True)
class PredictionChange:
    """The network's own outputs `[N, K]` before and after."""

    before: Float[Tensor, "N *K"]
    after: Float[Tensor, "N *K"]

    @property
    def top1(self) -> Int[Tensor, "N *P"]:
        """The class of the largest output, before."""
        return self.before.argmax(1)

    @property
    def kept(self) -> Bool[Tensor, "N *P"]:
        """Whether the largest output is still that of the same class."""
        return self.after.argmax(1) == self.top1

    @property
    def probability(self) -> tuple[Float[Tensor, "N *P"], Float[Tensor, "N *P"]]:
        """The softmax probability of the class that was largest before: before, and after."""
        index = self.top1.unsqueeze(1)
        before, after = (outputs.softmax(1).gather(1, index).squeeze(1) for outputs in (self.before, self.after))
        return before, after

    @property
    def largest(self) -> Float[Tensor, "N"]:
        """The largest absolute change of an output."""
        return (self.after - self.before).abs().flatten(1).amax(1)


@dataclass(frozen=True)
class Manipulation:
    """The outcome of `manipulate`, for N images.

    `image`: x_adv, `[N, C, H, W]`, in units of the input; `original`: x. `before`, `after`, `aim`: the maps phi(x),
    phi(x_adv), and the one that was aimed at, `[N, H, W]`, all of the network as it is. `explanation_loss`,
    `output_loss`: `[n_steps, N]`, both distances before their weights, at the point that each step started from; NaN
    after a sample has stopped. `steps`: `[N]`, how many were taken. `prediction`: the outputs before and after.
    `target`: what was explained. `scale`: units of the input a unit of a pixel, `[C, 1, 1]` or a number. `beta`: the
    schedule that was used, None where nothing was smoothed.
    """

    image: Float[Tensor, "N *shape"]
    original: Float[Tensor, "N *shape"]
    before: Float[Tensor, "N *space"]
    after: Float[Tensor, "N *space"]
    aim: Float[Tensor, "N *space"]
    explanation_loss: Float[Tensor, "steps N"]
    output_loss: Float[Tensor, "steps N"]
    steps: Int[Tensor, "N"]
    prediction: PredictionChange
    target: Target
    attack: Attack
    beta: float | tuple[float, float] | None
    scale: Tensor

    @property
    def moved(self) -> Similarity:
        """SSIM and PCC of the map before and the map after: low where the attack succeeds (the papers' measure)."""
        return similarity(self.before, self.after)

    @property
    def reached(self) -> Similarity:
        """SSIM and PCC of the map after and the map that was aimed at: high where the attack succeeds."""
        return similarity(self.after, self.aim)

    @property
    def apart(self) -> Similarity:
        """SSIM and PCC of the map before and the map that was aimed at: what `reached` started from."""
        return similarity(self.before, self.aim)

    @property
    def mse(self) -> Float[Tensor, "N"]:
        """The mean squared change of the image, in units of the input."""
        return (self.image - self.original).square().flatten(1).mean(1)

    @property
    def largest_change(self) -> Float[Tensor, "N C"]:
        """The largest absolute change of each channel, in pixel units: 1/255 is one step of an 8-bit image."""
        change = (self.image - self.original).abs() / self.scale
        return change.flatten(2).amax(2) if change.ndim > 2 else change
