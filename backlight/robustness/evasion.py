"""Evasion: a picture changed within a bound that nobody sees, until the network takes it for another class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.data.images import Preprocessing
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.run import running
from backlight.engine.targets import output_tensor
from backlight.errors import InputError, NonFiniteError, TargetError, UnknownNameError
from backlight.models import LoadedModel
from backlight.robustness.bounds import Pixels, Room
from backlight.robustness.evasion_outcome import LEVELS, Evasion, levels, of_levels
from backlight.robustness.outcome import PredictionChange
from backlight.shapes import Float, Int

METHODS, NORMS, LOSSES = ("pgd", "fgsm"), ("linf", "l2"), ("cross_entropy", "margin")

# after each step: its number, the loss of each picture `[N]`; to return True is to stop there
Progress = Callable[[int, Tensor], Any]


@dataclass(frozen=True)
class Adversary:
    """How pictures, with values in [0, 1], are changed.

    - `method`: "pgd", projected gradient descent, p <- P(p - a d) (Madry et al. 2018, equation 1); "fgsm", the fast
      gradient sign method, one step of the whole bound from the picture itself (Goodfellow et al. 2015, equation 1).
    - `norm`, `eps`: the bound on the change. "linf": of each channel of each pixel, d = sign(dL/dp); "l2": of all of
      them together, d = dL/dp / |dL/dp|.
    - `n_steps`, `step`: of PGD, how many and how long; None: 2.5 eps / n_steps, as Madry et al. have it.
    - `random_start`: PGD starts at a point drawn uniformly from the ball, by `seed`, the same for all pictures.
    - `loss`: L. "cross_entropy": of the class to be reached, or minus that of the one to be left. "margin": the largest
      other logit minus that of the class to be reached, or the logit of the class to be left minus the largest other;
      it keeps its slope where probabilities are 0 or 1 to machine precision.
    - `eight_bit`: only 8-bit pictures are visited, so that a PNG file keeps the outcome exactly. Steps add up in real
      numbers, are rounded inside the bound, and the gradient is that at the rounded picture.
    - `stop`: a picture stops as soon as the aim is reached.

    Raises:
        InputError, UnknownNameError: a setting out of its range.
    """

    method: str = "pgd"
    eps: float = 4 / 255
    norm: str = "linf"
    n_steps: int = 10
    step: float | None = None
    random_start: bool = False
    seed: int = 0
    loss: str = "cross_entropy"
    eight_bit: bool = True
    stop: bool = False

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("norm", NORMS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        for name in ("eps", "step"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is positive and finite, got {getattr(self, name)}")
        if self.n_steps < 1:
            raise InputError(f"n_steps must be at least 1, got {self.n_steps}")
        if self.method == "fgsm" and (self.step is not None or self.random_start):
            raise InputError("fgsm is one step of length eps from the picture: step and random_start are for pgd")
        if self.eight_bit and self.eps * LEVELS < 1 - 1e-6:
            raise InputError(
                f"eps {self.eps:.3g} is less than 1/255, a level of an 8-bit picture: a larger one, or eight_bit=False"
            )

    @property
    def steps(self) -> int:
        """How many steps are taken at most."""
        return 1 if self.method == "fgsm" else self.n_steps

    @property
    def length(self) -> float:
        """Of a step."""
        if self.method == "fgsm":
            return self.eps
        return 2.5 * self.eps / self.n_steps if self.step is None else self.step


def evade(
    model: nn.Module | LoadedModel,
    pictures: Float[Tensor, "N *shape"],
    *,
    to: Any = None,
    label: Any = None,
    preprocessing: Preprocessing | None = None,
    internal_batch_size: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evasion:
    """Change pictures, within a bound, until the network sees another class in them.

    Args:
        model: a `LoadedModel`, or a module; with `preprocessing` it takes normalised pictures, without one pictures in
            [0, 1] as they are.
        pictures: `[N, C, H, W]` in [0, 1], as the network is to see them: `loaded.preprocessing.image(path)[None]`.
        to: the class to be reached, an index or one a picture; None: any other than `label`.
        label: the class to be left; None: the predicted one.
        internal_batch_size: the most pictures in one pass.
        progress: called after each step with its number and the loss of each picture; to return True is to stop.
        settings: of `Adversary`.

    Pictures are attacked independently of their batch mates; nothing is left on the model. Cost: a forward and a
    backward pass a step, and two forward passes.

    Raises:
        InputError: pictures that leave [0, 1]; with `eight_bit`, that are no 8-bit pictures; a target that they are
            taken for already, where no `label` is given.
        TargetError: classes that there are not, a model whose outputs are not one row a picture.
        ModelError: a module in training mode. NonFiniteError: gradients that are not finite.
    """
    adversary = Adversary(**_known(settings))
    if isinstance(model, LoadedModel):
        preprocessing = preprocessing or model.preprocessing
        model = model.model
    check_evaluation_mode(model)
    if not isinstance(pictures, Tensor) or pictures.ndim < 2 or not len(pictures) or not pictures.is_floating_point():
        raise InputError("pictures are a tensor [N, ...] of floating-point numbers in [0, 1]")
    course = _Course(model, pictures.detach(), adversary, preprocessing, internal_batch_size or len(pictures))
    course.aim(to, label)
    course.run(progress)
    return course.outcome()


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in Adversary.__dataclass_fields__:
            raise UnknownNameError("setting of an adversary", name, Adversary.__dataclass_fields__)
    return settings


class _Course:
    """One attack under way: where its pictures stand."""

    def __init__(
        self, model: nn.Module, x: Tensor, adversary: Adversary, preprocessing: Preprocessing | None, size: int
    ) -> None:
        self.model, self.adversary, self.preprocessing, self.size = model, adversary, preprocessing, size
        if size < 1:
            raise InputError(f"internal_batch_size must be at least 1, got {size}")
        bound = adversary.eps if adversary.norm == "linf" else None
        self.room = Room(x, bound, True, Pixels(scale=1.0, box=(0.0, 1.0)))
        self.whole = levels(x)
        if adversary.eight_bit:
            if float((self.whole - x.double() * LEVELS).abs().max()) > 1e-3:
                raise InputError("these are no 8-bit pictures, multiples of 1/255: eight_bit=False takes any")
            x = of_levels(self.whole, x)
        self.x, self.point = x, x.clone()
        self.outputs = self._outputs(x)
        self.active = torch.ones(len(x), dtype=torch.bool)
        self.taken = torch.zeros(len(x), dtype=torch.long)
        self.losses: list[Tensor] = []

    def aim(self, to: Any, label: Any) -> None:
        """Choose the classes."""
        predicted = self.outputs.argmax(1)
        self.label = predicted if label is None else self._classes(label)
        self.to = None if to is None else self._classes(to)
        if self.to is not None and bool((same := self.to == self.label).any()):
            which = same.nonzero().flatten().tolist()
            raise InputError(f"pictures {which} are to be taken for the class they are to leave: give another to=")

    def run(self, progress: Progress | None) -> None:
        """Steps, until they are done or every picture has come where it should."""
        if self.adversary.random_start:
            self.point = self._inside(self.x + self._drawn())
        for step in range(self.adversary.steps):
            rows = self.active.nonzero().flatten()
            gradient, loss, reached = self._slope(rows)
            if self.adversary.stop and bool(reached.any()):
                self.active[rows[reached]] = False
                gradient, rows = gradient[~reached], self.active.nonzero().flatten()
            self.losses.append(loss)
            moved = self.point[rows] - self.adversary.length * self._direction(gradient)
            self.point[rows] = self._inside(moved, rows)
            self.taken[rows] += 1
            if (progress is not None and progress(step, loss) is True) or not bool(self.active.any()):
                return

    def outcome(self) -> Evasion:
        """What the attack came to."""
        image = self._shown(self.point)
        change = PredictionChange(self.outputs, self._outputs(image))
        return Evasion(
            image, self.x, self._inputs(image), self.label, self.to, change, torch.stack(self.losses), self.taken,
            self.adversary,
        )  # fmt: skip

    def _classes(self, given: Any) -> Int[Tensor, "N"]:
        index = torch.as_tensor(given, device=self.x.device)
        if index.is_floating_point() or index.ndim > 1 or (index.ndim == 1 and len(index) not in (1, len(self.x))):
            raise TargetError(f"a class is an index, or one for each of {len(self.x)} pictures; got {given!r}")
        index, count = index.long().expand(len(self.x)), self.outputs.shape[1]
        if bool(((index < 0) | (index >= count)).any()):
            raise TargetError(f"class {given!r} of a model with {count} outputs")
        return index

    def _inputs(self, pictures: Tensor) -> Tensor:
        return pictures if self.preprocessing is None else self.preprocessing.normalise(pictures)

    def _outputs(self, pictures: Tensor) -> Tensor:
        parts = pictures.split(self.size)
        with torch.no_grad():
            found = torch.cat([output_tensor(self.model(self._inputs(part))) for part in parts])
        if found.ndim != 2 or len(found) != len(pictures) or found.shape[1] < 2:
            raise TargetError(f"expected outputs [N, classes] of a classifier, got {list(found.shape)}")
        return found

    def _slope(self, rows: Int[Tensor, "R"]) -> tuple[Tensor, Tensor, Tensor]:
        """(dL/dp at what is shown, L of all pictures with NaN where they rest, whether the aim is reached there)."""
        gradients, reached = [], []
        losses = self.outputs.new_full((len(self.x),), torch.nan)
        for part in rows.split(self.size):
            with torch.enable_grad(), running(self.model):
                leaf = self._shown(self.point[part], part).requires_grad_()
                outputs = output_tensor(self.model(self._inputs(leaf)))
                loss = self._loss(outputs, part)
            gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
            losses[part] = loss.detach()
            found = outputs.detach().argmax(1)
            reached.append(found != self.label[part] if self.to is None else found == self.to[part])
        gradient = torch.cat(gradients)
        if not bool(gradient.isfinite().all()):
            raise NonFiniteError(f"the loss has no finite gradient in the picture ({gradient.dtype}): try float32")
        return gradient, losses, torch.cat(reached).cpu()

    def _loss(self, outputs: Float[Tensor, "R K"], rows: Tensor) -> Float[Tensor, "R"]:
        """What the attack descends."""
        index, sign = (self.label, -1) if self.to is None else (self.to, 1)
        column = index[rows].unsqueeze(1)
        if self.adversary.loss == "cross_entropy":
            return -sign * outputs.log_softmax(1).gather(1, column).squeeze(1)
        own = outputs.gather(1, column).squeeze(1)
        others = outputs.masked_fill(torch.zeros_like(outputs, dtype=torch.bool).scatter(1, column, True), -torch.inf)
        return sign * (others.amax(1) - own)

    def _direction(self, gradient: Float[Tensor, "R *shape"]) -> Float[Tensor, "R *shape"]:
        if self.adversary.norm == "linf":
            return gradient.sign()
        size = _spread(gradient.double().flatten(1).norm(dim=1), gradient)
        return torch.where(size > 0, gradient / size.clamp(min=torch.finfo(gradient.dtype).tiny), 0.0).to(gradient)

    def _inside(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """The nearest points of the ball, then of the box: with pictures inside the box both hold after both."""
        chosen = slice(None) if rows is None else rows
        x = self.x[chosen]
        if self.adversary.norm == "l2":
            size = _spread((points - x).double().flatten(1).norm(dim=1), points)
            points = torch.where(size > self.adversary.eps, x + (points - x) * (self.adversary.eps / size), points)
        return torch.minimum(torch.maximum(points.to(x), self.room.low[chosen]), self.room.high[chosen])

    def _shown(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """What the network is given: the points, or the 8-bit pictures near them that keep the bound."""
        if not self.adversary.eight_bit:
            return points.clone()
        whole = self.whole if rows is None else self.whole[rows]
        change = points.double() * LEVELS - whole
        bound = self.adversary.eps * LEVELS * (1 + 1e-9)
        if self.adversary.norm == "linf":
            change = change.round().clamp(-math.floor(bound), math.floor(bound))
        else:
            change = torch.stack([rounded(one, bound) for one in change])
        return of_levels((whole + change).clamp(0, LEVELS), points)

    def _drawn(self) -> Tensor:
        """A point of the ball, uniformly; the same for every picture, so that none depends on its mates."""
        draw = torch.Generator().manual_seed(self.adversary.seed)
        shape, eps = self.x.shape[1:], self.adversary.eps
        if self.adversary.norm == "linf":
            found = eps * (2 * torch.rand(shape, generator=draw, dtype=torch.float64) - 1)
        else:
            way = torch.randn(shape, generator=draw, dtype=torch.float64)
            far = torch.rand((), generator=draw, dtype=torch.float64) ** (1 / way.numel())
            found = eps * far * way / way.norm()
        return found.to(self.x)


def rounded(change: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """Whole numbers near a change of an l2 norm of at most `bound`, whose norm is no larger either.

    All are rounded towards zero, then those with the largest fractions away from it, which costs (k + 1)^2 - k^2 each:
    fractions of a half and more as long as the bound allows, smaller ones as long as the norm is not that of `change`.
    A change of less than half a level everywhere so becomes one of a level where it is largest.
    """
    size = change.abs().flatten()
    down = size.floor()
    fraction, order = (size - down).sort(descending=True, stable=True)
    cost = down.square().sum() + (2 * down[order] + 1).cumsum(0)
    up = ((fraction >= 0.5) & (cost <= bound**2)) | ((fraction > 0) & (cost <= size.square().sum().clamp(max=bound**2)))
    down[order] += up.double()
    return down.reshape(change.shape) * change.sign()


def _spread(values: Float[Tensor, "N"], like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(torch.promote_types(like.dtype, torch.float32))
