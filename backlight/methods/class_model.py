"""ClassModel: the image that a network scores highest for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from backlight.data.images import Preprocessing
from backlight.displayed import Displayed
from backlight.engine.attribution import attribute
from backlight.engine.evaluation import Cost, Evaluator
from backlight.engine.paths import blur
from backlight.engine.rules import GRADIENT
from backlight.engine.sites import INPUT
from backlight.engine.targets import Target, as_target
from backlight.errors import InputError, NonFiniteError, TargetError, UnknownNameError
from backlight.shapes import Float

OPTIMISERS = ("ascent", "adam")
# what makes the images of convolutional networks at 224 pixels readable: chosen by eye on three of them
READABLE: dict[str, Any] = {
    "optimiser": "adam",
    "step": 0.05,
    "penalty": 1e-4,
    "fourier": True,
    "jitter": 16,
    "blur": 1.0,
    "blur_every": 10,
}


@dataclass(frozen=True, repr=False)
class ClassImage(Displayed):
    """`image`: `[K, C, H, W]`, in the network's input space, one for each class.

    `scores`: `[n_steps + 1, K]`, S_c before each step and at the end (with `jitter`, of the shifted image that the step
    was taken at). `objective`: the same less the regularisers. `cost`: passes.
    """

    image: Float[Tensor, "K C H W"]
    scores: Float[Tensor, "steps K"]
    objective: Float[Tensor, "steps K"]
    cost: Cost

    def picture(self, preprocessing: Preprocessing, contrast: float | None = None) -> Float[Tensor, "K 3 H W"]:
        """The image for display, in [0, 1]: the training mean added back, then clipped.

        `contrast`: the standard deviation over all entries, around the mean, that each image is brought to (0.15 is
        that of a soft photograph); None leaves it as it is, and strong images are cut off.
        """
        image = self.image
        if contrast is not None:
            spread = image.flatten(1).std(1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
            image = image * (contrast / (spread * sum(preprocessing.std) / 3))
        return preprocessing.denormalise(image).clamp(0, 1)


@dataclass(kw_only=True)
class ClassModel:
    """The image that maximises S_c(I) - penalty |I|^2: gradient ascent on the input from the zero image, weights fixed.

    Zero is the training mean: give the network that takes normalised inputs. S_c is the logit (any `Target` may stand
    in its place: a hidden unit, a contrast). The defaults are the paper's objective and plain ascent,
    I <- I + step (dS_c/dI - 2 penalty I). Later practice, off by default:

    - `optimiser="adam"`: Adam (Kingma and Ba 2015) in place of plain ascent, with `step` as its rate;
    - `jitter`: each step sees the image shifted, around its edges, by up to so many pixels (Mordvintsev et al. 2015);
    - `blur`: after every `blur_every` steps a Gaussian of this many pixels (Yosinski et al. 2015);
    - `total_variation`: times the sum of |I(i+1,j) - I(i,j)| + |I(i,j+1) - I(i,j)| (Mahendran and Vedaldi 2015);
    - `fourier`: ascend in the coefficients of the image's Fourier transform, scaled by 1 / frequency, as natural images
      are (Olah et al. 2017).

    On a linear model the image is w_c / (2 penalty), whatever optimiser and parametrisation find it.

    `step` and `penalty` are this library's: the paper names none. 1 and 0.001 climb steadily on EfficientNet-Lite0,
    MobileNetV2 and SqueezeNet at 224 pixels, whose gradients at the zero image have norms from 0.01 to 6; an image of
    such a climb looks like noise with traces of the class. `ClassModel.readable` puts the aids together.

    Cost: `n_steps` + 1 forward, `n_steps` backward passes a class. Nothing is left on the model.
    """

    model: nn.Module = field(kw_only=False)
    n_steps: int = 100
    step: float = 1.0
    penalty: float = 1e-3
    optimiser: str = "ascent"
    jitter: int = 0
    blur: float = 0.0
    blur_every: int = 4
    total_variation: float = 0.0
    fourier: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.optimiser, OPTIMISERS)
        for name, least in (("n_steps", 1), ("blur_every", 1), ("jitter", 0), ("blur", 0), ("total_variation", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.step > 0 or not self.penalty >= 0:
            raise InputError(f"step must be positive and penalty not negative, got {self.step} and {self.penalty}")

    def visualise(
        self, target: Any, shape: Sequence[int] | Preprocessing, *, internal_batch_size: int | None = None
    ) -> ClassImage:
        """The images of one class, or of several at once (a list or tensor of indices).

        `shape`: (C, H, W) of one input, or the network's `Preprocessing`. The images of several classes do not depend
        on each other; the shifts of `jitter` are the same for all.

        Raises:
            TargetError: no class, or a target that chooses one by itself.
            NonFiniteError: an ascent that left the finite numbers; a smaller step keeps it in.
        """
        scorer = _fixed_target(target)
        climb = _Climb(self, scorer, self._zeros(_samples(scorer), shape), internal_batch_size)
        for number in range(self.n_steps):
            climb.ascend(number)
        return climb.result()

    def _zeros(self, count: int, shape: Sequence[int] | Preprocessing) -> Tensor:
        size = (3, *shape.size) if isinstance(shape, Preprocessing) else tuple(shape)
        if len(size) != 3 or min(size) < 1:
            raise InputError(f"the shape of an image is (C, H, W), got {size}")
        dtype = torch.promote_types(_like(self.model).dtype, torch.float32)  # small steps are lost in half precision
        return torch.zeros(count, *size, dtype=dtype, device=_like(self.model).device)

    @classmethod
    def readable(cls, model: nn.Module, **settings: Any) -> ClassModel:
        """Every aid but total variation, as in `READABLE`, with other settings in their place where given."""
        return cls(model, **{**READABLE, **settings})

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """`{name: default}` of the settings that a user may choose."""
        return {f.name: f.default for f in fields(cls) if f.name != "model"}


class _Climb:
    """Where an ascent stands: the parameters of the image, the optimiser, the generator of the shifts."""

    def __init__(self, setting: ClassModel, target: Target, zero: Tensor, limit: int | None) -> None:
        self.setting, self.target, self.limit = setting, target, limit
        self.dtype = _like(setting.model).dtype
        self.basis: Pixels | Fourier = Fourier(zero) if setting.fourier else Pixels()
        self.parameters = self.basis.coefficients(zero).requires_grad_()
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.cost = Cost()
        self.scores: list[Tensor] = []
        self.objective: list[Tensor] = []
        self.adam = (
            torch.optim.Adam([self.parameters], lr=setting.step, maximize=True) if setting.optimiser == "adam" else None
        )

    def ascend(self, number: int) -> None:
        """One step up."""
        gradient = self._gradient()
        with torch.no_grad():
            if self.adam is not None:
                self.parameters.grad = gradient
                self.adam.step()
            else:
                self.parameters += self.setting.step * gradient
            if self.setting.blur and (number + 1) % self.setting.blur_every == 0:
                smooth = blur(self.basis.image(self.parameters), self.setting.blur)
                self.parameters.copy_(self.basis.coefficients(smooth))
        if not bool(self.parameters.isfinite().all() and self.objective[-1].isfinite().all()):
            left = f"the ascent left the finite numbers at step {number}"
            raise NonFiniteError(f"{left}: {self.setting.step:g} is too large a step")

    def _gradient(self) -> Tensor:
        """Of the objective in the parameters: the score's by the engine, the regularisers' by autograd."""
        shift = torch.randint(-self.setting.jitter, self.setting.jitter + 1, (2,), generator=self.generator).tolist()
        with torch.enable_grad():
            image = self.basis.image(self.parameters)
            penalties = self._penalties(image)
        shown = image.detach().roll(shift, (2, 3)).to(self.dtype)
        found = attribute(self.setting.model, shown, self.target, internal_batch_size=self.limit)
        self._note(found.scores, penalties, found.cost)
        upstream = found.value.roll([-pixels for pixels in shift], (2, 3)).to(image.dtype)
        back = [upstream, -torch.ones_like(penalties)]
        return torch.autograd.grad([image, penalties], [self.parameters], back)[0]

    def _penalties(self, image: Tensor) -> Float[Tensor, "K"]:
        total = self.setting.penalty * image.square().flatten(1).sum(1)
        if self.setting.total_variation:
            steps = [image.diff(dim=axis).abs().flatten(1).sum(1) for axis in (2, 3)]
            total = total + self.setting.total_variation * (steps[0] + steps[1])
        return total

    def _note(self, scores: Tensor | None, penalties: Tensor, cost: Cost) -> None:
        assert scores is not None
        scores = scores.to(penalties.dtype)
        self.scores.append(scores)
        self.objective.append(scores - penalties.detach())
        self.cost.forwards += cost.forwards
        self.cost.backwards += cost.backwards

    def result(self) -> ClassImage:
        """The image where the ascent has come to, and the scores on the way."""
        with torch.no_grad():
            image = self.basis.image(self.parameters.detach())
            penalties = self._penalties(image)
        evaluator = Evaluator(self.setting.model, self.target, GRADIENT, (INPUT,), len(image))
        rows, size = torch.arange(len(image)), self.limit or len(image)
        parts = zip(image.to(self.dtype).split(size), rows.split(size), strict=True)
        scores = torch.cat([evaluator.scores((part,), row) for part, row in parts])
        self._note(scores, penalties, evaluator.cost)
        return ClassImage(image, torch.stack(self.scores), torch.stack(self.objective), self.cost)


class Pixels:
    """An image by its pixels."""

    def image(self, coefficients: Tensor) -> Tensor:
        """The image."""
        return coefficients

    def coefficients(self, image: Tensor) -> Tensor:
        """What gives the image."""
        return image


class Fourier:
    """An image by its Fourier coefficients times 1 / frequency, as real and imaginary parts `[K, C, H, W // 2 + 1, 2]`.

    The lowest frequency counts as one period an image, and the mean square of the factors is 1, so that white
    coefficients of variance 1 give an image of variance 1.
    """

    def __init__(self, like: Float[Tensor, "K C H W"]) -> None:
        self.size = tuple(like.shape[2:])
        height, width = self.size
        rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
        frequency = (rows[:, None] ** 2 + columns[None] ** 2).sqrt().clamp(min=1 / max(self.size))
        scale = (1 / frequency) / (1 / frequency).square().mean().sqrt()
        self.scale = scale[:, : width // 2 + 1].to(like)

    def image(self, coefficients: Tensor) -> Tensor:
        """The image."""
        return torch.fft.irfft2(torch.view_as_complex(coefficients) * self.scale, s=self.size, norm="ortho")

    def coefficients(self, image: Tensor) -> Tensor:
        """What gives the image."""
        return torch.view_as_real(torch.fft.rfft2(image, norm="ortho") / self.scale)


def _like(model: nn.Module) -> Tensor:
    """A parameter, whose type and device the image takes."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def _fixed_target(target: Any) -> Target:
    scorer = as_target(target)
    if scorer.chooses:
        raise TargetError("a class model needs a class: give an index, a list of them, or a Target that names one")
    return scorer


def _samples(target: Target) -> int:
    """How many images a target asks for: the length of its fields with one entry a sample."""
    values = (getattr(target, name) for name in target.per_sample)
    entries = [entry for value in values for entry in (value if isinstance(value, tuple) else (value,))]
    counts = {len(entry) for entry in entries if isinstance(entry, Tensor)} - {1}
    if len(counts) > 1:
        raise TargetError(f"fields of a target with {sorted(counts)} entries do not belong together")
    return counts.pop() if counts else 1
