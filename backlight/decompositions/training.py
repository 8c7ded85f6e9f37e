"""Training by gradients: seeded, streamed, with a checkpoint after passes that goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.scaling import moments
from backlight.decompositions.schedules import SCHEDULES, share
from backlight.decompositions.scores import score
from backlight.errors import InputError, NonFiniteError
from backlight.shapes import Bool, Float, Int
from backlight.store.rows import Chosen, pieces, shuffled

SETTLING = 0.7  # of the passes: after them nothing is revived, so that what was revived last is trained
NEEDY = 8192  # rows among which those with the largest residual are looked for


@dataclass(frozen=True)
class Pass:
    """What a batch gives: the loss to minimise, what the batch is decoded to, which modes were on, and how often."""

    loss: Tensor
    decoded: Tensor
    on: Bool[Tensor, "K"]
    active: Tensor

    @classmethod
    def of(cls, loss: Tensor, decoded: Tensor, z: Float[Tensor, "n K"]) -> Self:
        """The same of loadings."""
        on = z.detach() != 0
        return cls(loss, decoded, on.any(0), on.count_nonzero())


@dataclass(kw_only=True)
class TrainedDecomposition(Decomposition):
    """Modes that Adam finds. Subclasses say how tensors begin, what a batch costs, and how a dead mode is revived.

    Length: `epochs` over the rows; or so many updates, `steps`; or so many rows, `tokens`, repeated or not. A pass is
    an epoch, or `pass_steps` updates where an epoch has more: after it there are news, scores and a checkpoint.

    `schedule` of the learning rate: "constant"; "plateau", halved after ten passes without a smaller training loss;
    "step", times 0.98 every 25 passes; "cosine" and "linear", down to `last_rate` of it at the end ("linear": over the
    last `decay` of the steps). `warm_up`: steps over which the rate rises from 0. `beta2`: of Adam's second moment.
    `clip`: the largest norm of all gradients together; 0 is any. `drop_last`: leave out the last batch of an epoch
    where it is smaller. `revive_every`: passes after which modes that were on in no row of the last one are set to rows
    that are told worst; 0 is never. `dead_after`: rows without it, after which a mode counts as dead; None is an epoch.
    `autocast`: matrix products in bfloat16.

    `per_mode`: the tensors with a row for each mode, whose optimiser state is forgotten for a revived one.
    """

    per_mode: ClassVar[tuple[str, ...]] = ()

    epochs: int = 100
    steps: int | None = None
    tokens: int | None = None
    pass_steps: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 128
    schedule: str = "constant"
    warm_up: int = 0
    decay: float = 0.2
    last_rate: float = 0.0
    beta2: float = 0.999
    clip: float = 0.0
    drop_last: bool = False
    revive_every: int = 0
    dead_after: int | None = None
    autocast: bool = False
    done: int = field(default=0, init=False, repr=False, compare=False)  # updates so far
    length: int = field(default=0, init=False, repr=False, compare=False)  # updates in all

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        """The tensors before training, on the CPU; all of them are trained, except those that begin with `_`."""
        raise NotImplementedError

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        """A batch; `draw`: of dropout; `silent`: modes that are dead."""
        raise NotImplementedError

    def _rate(self, n_modes: int) -> float:
        """The learning rate, for so many modes."""
        return self.learning_rate

    def _before_step(self) -> None:
        """Change gradients before the optimiser's step."""

    def _after_step(self) -> None:
        """Bring tensors back to where they must be after a step."""

    def _revive(
        self,
        dead: Int[Tensor, "d"],
        residual: Float[Tensor, "d C"],
    ) -> None:
        """Set dead modes to what is missing of as many rows."""
        raise NotImplementedError

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.epochs < 1 or self.batch_size < 1 or self.revive_every < 0 or not self.learning_rate > 0:
            raise InputError("epochs and batch_size are at least 1, learning_rate is positive, revive_every at least 0")
        if self.steps is not None and self.tokens is not None:
            raise InputError(f"a length is told once: got steps={self.steps} and tokens={self.tokens}")
        if min(one for one in (self.steps, self.tokens, self.dead_after, 1) if one is not None) < 1:
            raise InputError("steps, tokens and dead_after are at least 1, or None")
        if min(self.pass_steps, self.warm_up, self.clip) < 0 or not 0 <= self.last_rate <= 1:
            raise InputError("pass_steps, warm_up and clip are at least 0, last_rate lies in [0, 1]")
        if not 0 < self.decay <= 1 or not 0 <= self.beta2 < 1:
            raise InputError("decay lies in (0, 1], beta2 in [0, 1)")

    def _fit(self, work: Work, device: torch.device) -> None:
        training = _Training(self, work, device)
        while training.step < training.steps:
            training.run_pass()
            training.tell()
            training.save()
        self.history = training.history


def generator(device: torch.device, *parts: int) -> torch.Generator:
    """Draws that depend on numbers alone."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(seed)


class _Training:
    """The state of a training: tensors, optimiser, schedule, and how long each mode was silent, in rows."""

    def __init__(self, one: TrainedDecomposition, work: Work, device: torch.device) -> None:
        self.one, self.work, self.device = one, work, device
        self.n = work.rows.shape[0]
        self._measure()
        found = moments(work.rows)
        self.spread = float(found.squares.sum()) / found.n  # of a row about the means of the channels
        n_modes = one.count(work.rows.shape[1])
        begun = one._initial(work, n_modes, generator(torch.device("cpu"), one.seed, 1))
        one.state = {name: tensor.to(device) for name, tensor in begun.items()}
        self.trained = {name: t.requires_grad_() for name, t in one.state.items() if not name.startswith("_")}
        rate = one._rate(n_modes)
        self.optimiser = torch.optim.Adam(self.trained.values(), lr=rate, betas=(0.9, one.beta2), fused=True)
        self.schedule = _scheduler(one.schedule, self.optimiser)
        self.silent = torch.zeros(n_modes, dtype=torch.long, device=device)
        self.step, self.number, self.revived, self.history = 0, 0, 0, list[Epoch]()
        self.stream: Iterator[Tensor] = iter(())
        self.kept = Checkpoints(one, work)
        self.restore()

    def _measure(self) -> None:
        """How many batches an epoch has, updates the training, updates a pass, and passes the training."""
        one = self.one
        whole, rest = divmod(self.n, one.batch_size)
        self.batches = whole if whole and one.drop_last else whole + (rest > 0)
        told = one.steps if one.tokens is None else -(-one.tokens // one.batch_size)
        self.steps = one.epochs * self.batches if told is None else told
        one.length = self.steps
        self.pass_steps = min(one.pass_steps or self.batches, self.batches)
        epochs, left = divmod(self.steps, self.batches)
        self.passes = epochs * -(-self.batches // self.pass_steps) + -(-left // self.pass_steps)

    def run_pass(self) -> None:
        """An epoch in its own order, or the next part of one."""
        one, device = self.one, self.device
        epoch, start = divmod(self.step, self.batches)
        if not start:
            self.stream = self._batches(epoch)
        draw = generator(device, one.seed, 2, epoch, *([start] if start else []))
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, squared error, modes that are on
        seen = 0
        for batch in islice(self.stream, min(self.pass_steps, self.batches - start, self.steps - self.step)):
            sums += self._update(batch.to(device), draw)
            seen += len(batch)
        self.number += 1
        loss, error, on_rows = (sums / seen).tolist()
        if not np.isfinite(loss):
            raise NonFiniteError(f"the loss of epoch {self.number} is {loss}: a smaller learning_rate may help")
        if one.schedule == "plateau":
            self.schedule.step(loss)
        elif self.schedule is not None:
            self.schedule.step()
        alive = int((self.silent < seen).sum())
        self._revive(seen)
        r2 = 1 - error / self.spread if self.spread > 0 else 0.0
        scores = None if self.work.held_out is None else score(one, self.work.held_out)
        others = (None, None, None) if scores is None else (scores.r2, scores.relative, scores.l0)
        modes = len(self.silent)
        self.history.append(Epoch(self.number, self.passes, loss, r2, others[0], on_rows, alive, modes, *others[1:]))

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        return islice(shuffled(self.work.rows, self.one.batch_size, self.one.seed, epoch), self.batches)

    def _update(self, x: Float[Tensor, "n C"], draw: torch.Generator) -> Float[Tensor, "3"]:
        """A step; the batch's loss and squared error, and how many loadings are on."""
        one = self.one
        one.done = self.step
        dead = self.silent >= (one.dead_after or self.n)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=one.autocast):
            found = one._pass(x, draw, dead)
        self.optimiser.zero_grad()
        found.loss.backward()
        with torch.no_grad():
            one._before_step()
            if one.clip:
                torch.nn.utils.clip_grad_norm_(self.trained.values(), one.clip)
            self._step()
            one._after_step()
            self.silent = torch.where(found.on, 0, self.silent + len(x))
            error = (x - found.decoded).double().square().sum()
            return torch.stack((found.loss.detach().double() * len(x), error, found.active.double()))

    def _step(self) -> None:
        one, group = self.one, self.optimiser.param_groups[0]
        rate = group["lr"]
        group["lr"] = rate * share(one.schedule, self.step, self.steps, one.warm_up, one.decay, one.last_rate)
        self.optimiser.step()
        group["lr"] = rate
        self.step += 1

    def tell(self) -> None:
        """Report the pass."""
        if self.work.progress is not None:
            self.work.progress(self.history[-1])

    def _revive(self, seen: int) -> None:
        one = self.one
        if not one.revive_every or self.number % one.revive_every or self.number > SETTLING * self.passes:
            return
        dead = (self.silent >= seen).nonzero().flatten()
        if not len(dead):
            return
        draw = generator(torch.device("cpu"), one.seed, 3, self.number)
        with torch.no_grad():
            residual = self._needy(len(dead), draw)
            dead = dead[: len(residual)]
            one._revive(dead, residual)
            for name in one.per_mode:
                moved = self.optimiser.state[self.trained[name]]
                moved["exp_avg"][dead] = 0
                moved["exp_avg_sq"][dead] = 0
        self.silent[dead] = 0
        self.revived += len(dead)

    def _needy(self, most: int, draw: torch.Generator) -> Float[Tensor, "d C"]:
        """What is missing of distinct rows, drawn in proportion to its square."""
        rows = self.work.rows
        if self.n > NEEDY:
            rows = Chosen(rows, torch.randperm(self.n, generator=draw)[:NEEDY].sort().values.numpy())
        sample = torch.cat([piece for _, piece in pieces(rows)]).to(self.device)
        residual = sample - self.one.reconstruct(sample)
        need = residual.double().square().sum(1).cpu()
        count = min(most, int((need > 0).sum()))
        chosen = torch.multinomial(need, count, generator=draw) if count else torch.zeros(0, dtype=torch.long)
        chosen = chosen.to(self.device)
        return residual[chosen]

    def save(self) -> None:
        """Keep a checkpoint."""
        tensors = {f"tensor.{name}": tensor for name, tensor in self.one.state.items()} | {"silent": self.silent}
        for name, tensor in self.trained.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimiser.state[tensor].items()}
        state = {
            "step": self.step,
            "number": self.number,
            "revived": self.revived,
            "rate": self.optimiser.param_groups[0]["lr"],
            "schedule": None if self.schedule is None else _plain_schedule(self.schedule),
        }
        self.kept.write(tensors, state, self.history, self.step == self.steps)

    def restore(self) -> None:
        """Go on from a checkpoint, where there is one."""
        begun = self.kept.read()
        if begun is None:
            return
        tensors, state, self.history = begun
        with torch.no_grad():
            for name, tensor in self.one.state.items():
                tensor.copy_(tensors[f"tensor.{name}"])
        for name, tensor in self.trained.items():
            self.optimiser.state[tensor] = {
                key: tensors[f"adam.{key}.{name}"].to(self.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.silent = tensors["silent"].to(self.device)
        self.step, self.number, self.revived = state["step"], state["number"], state["revived"]
        epoch, start = divmod(self.step, self.batches)
        self.stream = islice(self._batches(epoch), start, None)
        self.optimiser.param_groups[0]["lr"] = state["rate"]
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


def _scheduler(name: str, optimiser: torch.optim.Optimizer) -> Any:
    if name == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=10)
    return torch.optim.lr_scheduler.StepLR(optimiser, 25, 0.98) if name == "step" else None


def _plain_schedule(schedule: Any) -> Mapping[str, Any]:
    return {key: value for key, value in schedule.state_dict().items() if value is None or _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))
