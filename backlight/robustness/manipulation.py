"""The manipulation attack: an image that looks the same, is classified the same, and is explained like another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backlight.data.images import Preprocessing
from backlight.engine.attribution import Attribution
from backlight.engine.run import running
from backlight.engine.targets import Target, as_target, output_tensor
from backlight.errors import DifferentiabilityError, InputError, NonFiniteError
from backlight.methods.method import Method
from backlight.robustness.attack import Attack, as_attack
from backlight.robustness.bounds import Pixels, Room
from backlight.robustness.outcome import Manipulation, PredictionChange
from backlight.robustness.smoothing import Smoothed, is_kinked, schedule
from backlight.shapes import Float

GROWTH = (10.0, 100.0)  # of beta, as in the public code of Dombrowski et al. 2019

# after each step: its number, both losses `[N]`; to return True is to stop there
Progress = Callable[[int, Tensor, Tensor], Any]


def manipulate(
    method: Method,
    x: Float[Tensor, "N *shape"],
    x_target: Tensor | None = None,
    *,
    target_map: Tensor | None = None,
    target: Any = None,
    target_of_x_target: Any = None,
    preset: str | Attack = "paper",
    preprocessing: Preprocessing | None = None,
    scale: Any = None,
    box: tuple[Any, Any] | None = None,
    internal_batch_size: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Manipulation:
    """Find x_adv near x whose explanation is that of another image, while the output stays.

    L(x_adv) = a |phi(x_adv) - phi_target|^2 + b |F(x_adv) - F(x)|^2, minimised by Adam from x, inside the bounds
    (Dombrowski et al. 2019; Kim, Han, Kwak 2026). The derivative of the explanation is the engine's own: any method of
    the registry that is differentiable will do. Images are attacked independently of their batch mates.

    Args:
        method: a method with its model, such as `backlight.Saliency(model)`.
        x_target: the image, or one for each of `x`, whose explanation is aimed at; or
        target_map: that map itself, `[N, H, W]` or `[1, H, W]`, as `Attack.reduced` gives it; its sum is set to 1.
        target: what is explained at `x`, as in `method.attribute`; chosen once, at `x`, and kept.
        target_of_x_target: what is explained at `x_target`; by default what `target` chooses there, or, where it names
            a class, the largest logit.
        preset: "paper", "reference", or an `Attack`; `settings` replace its settings.
        preprocessing: the network's, for `scale` and `box`.
        scale: units of the input a unit of a pixel, a number or one a channel: 1 / std.
        box: (low, high) of valid inputs, numbers or tensors that broadcast.
        internal_batch_size: the most images in one pass; a path's points multiply them.
        progress: called after each step with its number and both losses `[N]`; to return True is to stop.

    Nothing is left on the model, also after Ctrl-C, which raises. Cost a step: one explanation with its derivative
    (about three times the explanation), and one forward and backward pass.

    Raises:
        DifferentiabilityError: an explanation that has no derivative in the input, or one that is zero.
        InputError: images, maps or bounds that do not fit.
        NonFiniteError: losses or derivatives that are not finite.
    """
    attack = as_attack(preset, **settings)
    _check(method, x, x_target, target_map)
    room = Room(x.detach(), attack.bound, attack.clamp, Pixels.of(preprocessing, scale, box))
    course = _Course(method, x.detach(), attack, room, target, internal_batch_size)
    if target_map is not None:
        aim = _fitted(attack, target_map, course.before)
    else:
        assert x_target is not None
        aim = course.map_of_other(x_target.detach(), target_of_x_target)
    course.run(aim, progress)
    return course.outcome(aim)


def _check(method: Any, x: Any, x_target: Any, target_map: Any) -> None:
    if not isinstance(method, Method):
        raise InputError(f"a method with its model, such as Saliency(model), is attacked; got {method!r}")
    name = type(method).__name__
    if not method.engine:
        raise DifferentiabilityError(f"{name} comes from another library: its maps have no derivative in the input")
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
        raise InputError("x is a tensor of images, [N, ...], of floating-point numbers")
    if x.dtype in (torch.float16, torch.bfloat16):
        raise InputError(f"{x.dtype} does not resolve the steps of an attack: give x and the model in float32")
    if (x_target is None) == (target_map is None):
        raise InputError("either x_target, another image, or target_map, a map, is aimed at: give one of them")
    if x_target is not None and (x_target.shape[1:] != x.shape[1:] or len(x_target) not in (1, len(x))):
        raise InputError(f"x_target has the shape of x, {list(x.shape)}, or one image; got {list(x_target.shape)}")


def _fitted(attack: Attack, given: Tensor, like: Tensor) -> Tensor:
    if given.shape[1:] != like.shape[1:] or len(given) not in (1, len(like)):
        raise InputError(
            f"target_map has the shape of the maps, {list(like.shape)}, or is one; got {list(given.shape)}"
        )
    if not bool((given.isfinite() & (given >= 0)).all()):
        raise InputError("target_map is finite, and 0 at least, as absolute values are")
    given = given.detach().to(like).expand_as(like)
    return attack.normalised(given) if attack.normalise else given


class _Course:
    """One attack under way: where its images stand, and what has been seen."""

    def __init__(
        self, method: Method, x: Tensor, attack: Attack, room: Room, target: Any, internal_batch_size: int | None
    ) -> None:
        self.method, self.x, self.attack, self.room = method, x, attack, room
        self.size = internal_batch_size or len(x)
        if self.size < 1:
            raise InputError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
        self.outputs = self._outputs(x)
        chosen = as_target(target)
        chosen.check(len(x))
        self.chooses, self.given = chosen.chooses, chosen
        self.target: Target = chosen.fixed(self.outputs) if chosen.chooses else chosen
        self.before, kinked = self._maps(x, self.target)
        self.beta = (GROWTH if kinked else None) if isinstance(attack.beta, str) else attack.beta
        self.smoothed = None if self.beta is None else Smoothed(method.model, schedule(self.beta, 0, 1) or 1.0)
        self.explainer = method if self.smoothed is None else replace(method, model=self.smoothed)
        self.point = x.clone()
        self.active = torch.ones(len(x), dtype=torch.bool)
        self.steps = torch.zeros(len(x), dtype=torch.long)
        self.losses: list[tuple[Tensor, Tensor]] = []

    def map_of_other(self, x_target: Tensor, target: Any) -> Tensor:
        """The map aimed at, one for each image."""
        if target is None and self.chooses:
            target = self.given
        phi, _ = self._maps(x_target.to(self.x), as_target(target))
        return phi.expand_as(self.before)

    def run(self, aim: Tensor, progress: Progress | None) -> None:
        """Adam from x, until the steps are done or every image has gone far enough."""
        attack = self.attack
        leaf = self.x.clone().requires_grad_()
        adam = torch.optim.Adam([leaf], lr=attack.lr)
        for step in range(attack.n_steps):
            if self.smoothed is not None:
                self.smoothed.beta = schedule(self.beta, step, attack.n_steps) or self.smoothed.beta
            leaf.grad, explained, output = self._gradient(aim, first=step == 0)
            self.losses.append((explained, output))
            adam.step()
            with torch.no_grad():
                stays = ~self.active.to(leaf.device).reshape(-1, *(1,) * (leaf.ndim - 1))
                leaf.copy_(torch.where(stays, self.point, self.room.clamp(leaf)))
            self.point = leaf.detach().clone()
            self.steps += self.active
            if attack.stop_mse is not None:
                mse = (self.point - self.x).square().flatten(1).mean(1)
                self.active &= (mse < attack.stop_mse).cpu()
            if (progress is not None and progress(step, explained, output) is True) or not bool(self.active.any()):
                return

    def outcome(self, aim: Tensor) -> Manipulation:
        """What the attack came to, by the network as it is."""
        after, _ = self._maps(self.point, self.target)
        explained, output = (torch.stack(losses) for losses in zip(*self.losses, strict=True))
        return Manipulation(
            self.point, self.x, self.before, after, aim, explained, output, self.steps,
            PredictionChange(self.outputs, self._outputs(self.point)), self.target, self.attack, self.beta,
            self.room.scale,
        )  # fmt: skip

    def _pieces(self, rows: Tensor) -> Iterator[Tensor]:
        return iter(rows.split(self.size))

    def _outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = torch.cat([output_tensor(self.method.model(part)) for part in x.split(self.size)])
        if found.ndim < 2 or len(found) != len(x):
            raise InputError(f"the model's output is [N, K], got {list(found.shape)} for {len(x)} images")
        return found

    def _maps(self, x: Tensor, target: Target) -> tuple[Tensor, bool]:
        """(phi by the network as it is, whether an activation with a kink was passed by a step)."""
        found: list[Tensor] = []
        kinked = False
        for rows in self._pieces(torch.arange(len(x))):
            explained = self.method.explain(x[rows], target.rows(rows))
            found.append(self.attack.reduced(explained.value))
            kinked = kinked or is_kinked(explained.coverage)
        return torch.cat(found), kinked

    def _gradient(self, aim: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(dL / dx_adv, both distances of each image): zero, and NaN, for images that have stopped."""
        gradient = torch.zeros_like(self.point)
        explained = torch.full((len(self.x),), torch.nan, dtype=aim.dtype, device=aim.device)
        output = explained.clone()
        for rows in self._pieces(self.active.nonzero().flatten()):
            towards, explained[rows] = self._of_explanation(rows, aim, first)
            keeping, output[rows] = self._of_output(rows)
            gradient[rows] = self.attack.explanation_weight * towards + self.attack.output_weight * keeping
        finite = gradient.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            stray = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError(f"the loss of images {stray} has no finite derivative ({gradient.dtype}): try float32")
        return gradient, explained, output

    def _of_explanation(self, rows: Tensor, aim: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = self.point[rows].clone().requires_grad_()
            found: Attribution = self.explainer.explain(leaf, self.target.rows(rows), create_graph=True)
            if not found.value.requires_grad:
                raise DifferentiabilityError(self._reason(found, "does not depend on the input"))
            loss = self.attack.distance(self.attack.reduced(found.value), aim[rows])
            (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True, materialize_grads=True)
        if first:
            self._check_direction(found, gradient, loss.detach(), rows)
        return gradient, loss.detach()

    def _of_output(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        model = self.method.model
        if self.smoothed is not None and self.attack.smooth_output:
            model = self.smoothed
        with torch.enable_grad():
            leaf = self.point[rows].clone().requires_grad_()
            with running(model):
                outputs = self.attack.read(output_tensor(model(leaf)))
            loss = self.attack.distance(outputs, self.attack.read(self.outputs[rows]))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return gradient, loss.detach()

    def _check_direction(self, found: Attribution, gradient: Tensor, loss: Tensor, rows: Tensor) -> None:
        """Raise where the derivative of a map is zero: to an optimiser, the most robust of all methods."""
        still = (gradient == 0).flatten(1).all(1)
        if not bool(still.any()):
            return
        which = f"(images {rows[still.cpu()].tolist()})"
        if bool((found.value.detach()[still] == 0).all()):
            raise DifferentiabilityError(f"the map of {type(self.method).__name__} is zero {which}: nothing to attack")
        what = "is the one aimed at" if bool((loss[still] == 0).all()) else "has a derivative of zero everywhere"
        raise DifferentiabilityError(self._reason(found, f"{what} {which}"))

    def _reason(self, found: Attribution, what: str) -> str:
        text = f"the map of {type(self.method).__name__} {what}: there is no direction to attack it in"
        if self.smoothed is None and is_kinked(found.coverage):
            return f"{text}; the map of a ReLU network is piecewise constant: pass beta=(10, 100)"
        return f"{text}; its rules do not look at the input, or both images are explained alike"
