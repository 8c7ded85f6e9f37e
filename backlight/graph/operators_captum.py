"""Operators by Captum: DeepLIFT, GradientSHAP, and KernelSHAP with concepts as players."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.engine.rules import Call, Rule, RuleSet, needs_gradient
from backlight.engine.segment import Segment
from backlight.errors import InputError, MissingExtraError, ModelError
from backlight.graph.coded import Coded, vectors_of
from backlight.graph.operators_base import Ends, Operator, Passes, Shares, active, value_at
from backlight.graph.operators_rescale import SELECTIONS, batch_norm
from backlight.graph.scores import Scores
from backlight.methods.baseline import unchanged
from backlight.rules.gates import gate_rules
from backlight.shapes import Float


def _captum(name: str) -> Any:
    try:
        return getattr(import_module("captum.attr"), name)
    except ModuleNotFoundError:
        raise MissingExtraError("captum", "baselines") from None


class Scored(nn.Module):
    """A segment and one score as Captum takes them: from tensors `[B, *site]` to scores `[B]`.

    `modules_between`: those that Captum may put hooks on; what lies before the segment is answered with stand-ins, and
    has to stay as it is. `cotangent`: the score is <later, it>; None: the score itself.
    """

    def __init__(
        self, segment: Segment, scores: Scores, passes: Passes, modules_between: dict[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.training = False
        self.between = nn.ModuleList((modules_between or {}).values())
        self._segment, self.scores, self.passes = [segment], scores, passes
        self.target, self.rows = 0, torch.zeros(0, dtype=torch.long)
        self.cotangent: Tensor | None = None

    def forward(self, value: Tensor) -> Float[Tensor, "B"]:
        rows = self.rows.repeat(len(value) // len(self.rows))
        later = self._segment[0](value, rows)
        self.passes.forwards += len(rows)
        if self.cotangent is None:
            return self.scores.of(later, self.target, rows)
        twice = self.cotangent.repeat(len(later) // len(self.cotangent), *(1,) * (later.ndim - 1))
        return (later * twice).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class DeepLIFT(Operator):
    """Differences to what is there without concepts, carried back through activations by Captum's rescale rule.

    Captum hooks modules of its own list (ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, MaxPool, Softmax), each called
    once in the segment. Whatever else is not linear is refused: ReLU6, say, for which there is `Rescale`. The cosine
    of the score is taken apart exactly (see `Alignment.between`). Two forward passes and as many backward, a score.

    Raises:
        MissingExtraError: Captum is not installed.
        ModelError: an activation that Captum does not see.
    """

    source: ClassVar[str] = "Shrikumar, Greenside, Kundaje 2017, by Captum"
    complete: ClassVar[bool] = True

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        method = _captum("DeepLift")
        supported = frozenset(import_module(method.__module__).SUPPORTED_NON_LINEAR)
        found = ends.end.new_zeros(len(scores), *ends.end.shape)
        checks = _Checks(segment.model, supported)
        guarded = segment.under(checks.rules())
        for rows in torch.arange(len(ends.end)).split(max(1, self.batch_size // 2)):
            own = rows.to(ends.end.device)
            end, start = value_at(coded, ends.end[own]), value_at(coded, ends.base[own]).contiguous()
            checks.seen.clear()
            later = guarded(torch.cat([end, start]).requires_grad_(), rows.repeat(2)).detach()
            after, before = later.split(len(rows))
            scored = Scored(segment, scores, passes, checks.seen)
            scored.rows = rows
            for target in range(len(scores)):
                scored.cotangent = scores.between(before, after, target, rows)
                gradient = _rescaled(method(scored), scored, segment, end, start)
                passes.backwards += 2 * len(rows)
                found[target, own] = vectors_of(gradient, coded.layout)
        return found


def _rescaled(method: Any, scored: Scored, segment: Segment, end: Tensor, start: Tensor) -> Tensor:
    """Captum's multipliers."""
    with unchanged(segment.model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
        try:
            found: Tensor = method.attribute(
                end.clone().requires_grad_(), start, custom_attribution_func=lambda multipliers, *_: multipliers
            )
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"Captum's DeepLIFT cannot explain this network: {error}") from error
    return found.detach()


@dataclass
class _Checks:
    """A rule set that leaves every call as it is, and refuses what Captum's hooks do not see; `seen`: what they do."""

    model: nn.Module
    supported: frozenset[type]

    def __post_init__(self) -> None:
        self.seen: dict[str, nn.Module] = {}
        self._modules = dict(self.model.named_modules())

    def rules(self) -> RuleSet:
        rules: dict[str, Rule] = dict.fromkeys((*SELECTIONS, "softmax"), self._hooked)
        return RuleSet("DeepLIFT by Captum", {**rules, **gate_rules(self._hooked), "batch_norm": batch_norm})

    def _hooked(self, call: Call) -> Any:
        if not any(needs_gradient(value) for value in call.args):
            return NotImplemented
        module = self._modules.get(call.layer)
        if type(module) not in self.supported:
            known = ", ".join(sorted(one.__name__ for one in self.supported))
            raise ModelError(
                f"Captum's DeepLIFT does not see {call.operation!r} in layer {call.layer or '(root)'!r}: it is no "
                f"module of {known}, and would get the plain gradient; Rescale has the same rule for any activation"
            )
        if call.layer in self.seen:
            raise ModelError(f"Captum's DeepLIFT needs a module of its own for each call: {call.layer!r} ran twice")
        assert module is not None
        self.seen[call.layer] = module
        return call.original()


@dataclass(frozen=True, kw_only=True)
class GradientSHAP(Operator):
    """Expected gradients: the gradient at random points between what is there without concepts and with them.

    The base of a coefficient is 0, so that there is one baseline, and this is Integrated Gradients by draws. The draws
    are the same for every image and score. `n_samples` forward and backward passes a score.

    Raises:
        MissingExtraError: Captum is not installed.
        InputError: no samples.
    """

    source: ClassVar[str] = "Lundberg and Lee 2017; Erion et al. 2021, by Captum"

    n_samples: int = 20
    seed: int = 0

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        if self.n_samples < 1:
            raise InputError(f"n_samples must be at least 1, got {self.n_samples}")
        scored = Scored(segment, scores, passes)
        method = _captum("GradientShap")(scored, multiply_by_inputs=False)
        found = ends.end.new_zeros(len(scores), *ends.end.shape)
        for row in range(len(ends.end)):
            end, start = value_at(coded, ends.end[row : row + 1]), value_at(coded, ends.base[row : row + 1])
            scored.rows = torch.tensor([row])
            for target in range(len(scores)):
                scored.target = target
                with _drawing(segment.model, self.seed):
                    gradient = method.attribute(end.clone(), start, n_samples=self.n_samples, stdevs=0.0).detach()
                passes.backwards += self.n_samples
                found[target, row] = vectors_of(gradient, coded.layout)[0]
        return found


@dataclass(frozen=True, kw_only=True)
class KernelSHAP(Operator):
    """Shapley values of the concepts that are on in an image, and of the residual, by regression on coalitions.

    A coalition is there at all positions; S is measured with it. One coalition serves all scores: `n_samples` forward
    passes an image, and none backward. None: twice as many as there are players, and 64 at least.

    Raises:
        MissingExtraError: Captum or scikit-learn is not installed.
        InputError: fewer samples than players.
    """

    source: ClassVar[str] = "Lundberg and Lee 2017, by Captum"
    complete: ClassVar[bool] = True

    n_samples: int | None = None
    seed: int = 0

    def shares(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Shares:
        method = _captum("KernelShap")
        values = ends.end.new_zeros(len(ends.end), len(scores), len(coded.atoms))
        rest = ends.end.new_zeros(len(ends.end), len(scores))
        for row in range(len(ends.end)):
            game = _Game(segment, coded.image(row), ends, scores, row, passes)
            players = len(game.on) + ends.residual
            if not players:
                continue
            for target in range(len(scores)):
                found = self._fit(method, game, players, target).to(values)
                values[row, target, game.on] = found[: len(game.on)]
                if ends.residual:
                    rest[row, target] = found[-1]
        return Shares(values, rest)

    def _fit(self, method: Any, game: _Game, players: int, target: int) -> Tensor:
        if players == 1:
            whole, nothing = game(torch.tensor([[1.0], [0.0]]), target)
            return (whole - nothing)[None]
        samples = max(64, 2 * players) if self.n_samples is None else self.n_samples
        if samples < players + 1:
            raise InputError(f"{samples} samples do not determine {players} players: give {players + 1} or more")
        game.known.rewind()
        with _drawing(game.segment.model, self.seed):
            try:
                found: Tensor = method(lambda coalitions: game(coalitions, target)).attribute(
                    torch.ones(1, players), n_samples=samples, perturbations_per_eval=self.batch_size
                )
            except (ValueError, AssertionError) as error:
                if "sklearn" in str(error) or "scikit" in str(error):
                    raise MissingExtraError("scikit-learn", "baselines") from None
                raise
        return found[0]


class _Game:
    """S of coalitions of the concepts of one image. What was measured for one score is known for the others."""

    def __init__(self, segment: Segment, own: Coded, ends: Ends, scores: Scores, row: int, passes: Passes) -> None:
        self.segment, self.own, self.scores, self.row, self.passes = segment, own, scores, row, passes
        self.on = active(own)
        self.base = ends.base[row]
        self.rest = own.residual[0] if ends.residual else None
        self.codes, self.atoms = own.codes[0][:, self.on], own.atoms[self.on]
        self.known = _Known()

    def __call__(self, coalitions: Float[Tensor, "B players"], target: int) -> Float[Tensor, "B"]:
        found = self.known.next(coalitions)
        if found is None:
            found = self._measured(coalitions)
            self.known.add(coalitions, found)
        return found[:, target]

    def _measured(self, coalitions: Tensor) -> Float[Tensor, "B T"]:
        there = coalitions.to(self.codes)
        vectors = self.base + (self.codes * there[:, None, : len(self.on)]) @ self.atoms
        if self.rest is not None:
            vectors = vectors + there[:, -1, None, None] * self.rest
        rows = torch.full((len(there),), self.row)
        self.passes.forwards += len(rows)
        with torch.no_grad():
            return self.scores.all(self.segment(value_at(self.own, vectors), rows), rows)


class _Known:
    """Coalitions in the order in which they were drawn, with their scores: the same seed draws them again."""

    def __init__(self) -> None:
        self._all: list[tuple[Tensor, Tensor]] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def next(self, coalitions: Tensor) -> Tensor | None:
        self._next += 1
        if self._next > len(self._all) or not torch.equal(self._all[self._next - 1][0], coalitions):
            return None
        return self._all[self._next - 1][1]

    def add(self, coalitions: Tensor, scores: Tensor) -> None:
        self._all[self._next - 1 :] = [(coalitions.clone(), scores)]


@contextmanager
def _drawing(model: nn.Module, seed: int) -> Iterator[None]:
    """Captum draws from the global generators: they are seeded, and put back."""
    with unchanged(model):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        yield
