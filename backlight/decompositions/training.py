"""Training by gradients: seeded, streamed, with a checkpoint after epochs that goes on bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.scaling import moments
from backlight.decompositions.scores import score
from backlight.errors import InputError, NonFiniteError
from backlight.shapes import Bool, Float, Int
from backlight.store.rows import Chosen, pieces, shuffled

SETTLING = 0.7  # of the epochs: after them nothing is revived, so that what was revived last is trained
NEEDY = 8192  # rows among which those with the largest residual are looked for
SCHEDULES = ("constant", "plateau", "step")


@dataclass(frozen=True)
class Pass:
    """What a batch gives: the loss to minimise, what the batch is decoded to, and its loadings."""

    loss: Tensor
    decoded: Tensor
    z: Tensor


@dataclass(kw_only=True)
class TrainedDecomposition(Decomposition):
    """Modes that Adam finds. Subclasses say how tensors begin, what a batch costs, and how a dead mode is revived.

    `schedule` of the learning rate: "constant"; "plateau", halved after ten epochs without a smaller training loss;
    "step", times 0.98 every 25 epochs. `drop_last`: leave out the last batch of an epoch where it is smaller.
    `revive_every`: epochs after which modes that were on in no row of the last epoch are set to rows that are told
    worst; 0 is never. `autocast`: matrix products in bfloat16.

    `per_mode`: the tensors with a row for each mode, whose optimiser state is forgotten for a revived one.
    """

    per_mode: ClassVar[tuple[str, ...]] = ()

    epochs: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 128
    schedule: str = "constant"
    drop_last: bool = False
    revive_every: int = 0
    autocast: bool = False

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        """The tensors before training, on the CPU; all of them are trained, except those that begin with `_`."""
        raise NotImplementedError

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        """A batch; `draw`: of dropout; `silent`: modes that were on in no row for an epoch."""
        raise NotImplementedError

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

    def _fit(self, work: Work, device: torch.device) -> None:
        training = _Training(self, work, device)
        while training.epoch < self.epochs:
            training.run_epoch()
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
        found = moments(work.rows)
        self.spread = float(found.squares.sum()) / found.n  # of a row about the means of the channels
        n_modes = one.count(work.rows.shape[1])
        begun = one._initial(work, n_modes, generator(torch.device("cpu"), one.seed, 1))
        one.state = {name: tensor.to(device) for name, tensor in begun.items()}
        self.trained = {name: t.requires_grad_() for name, t in one.state.items() if not name.startswith("_")}
        self.optimiser = torch.optim.Adam(self.trained.values(), lr=one.learning_rate, fused=True)
        self.schedule = _scheduler(one.schedule, self.optimiser)
        self.silent = torch.zeros(n_modes, dtype=torch.long, device=device)
        self.epoch, self.revived, self.history = 0, 0, list[Epoch]()
        self.kept = Checkpoints(one, work)
        self.restore()

    def run_epoch(self) -> None:
        """A pass over the rows in the epoch's own order."""
        one, rows, device = self.one, self.work.rows, self.device
        draw = generator(device, one.seed, 2, self.epoch)
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, squared error, modes that are on
        seen = 0
        for batch in shuffled(rows, one.batch_size, one.seed, self.epoch):
            if one.drop_last and len(batch) < one.batch_size <= self.n:
                continue
            x = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=one.autocast):
                found = one._pass(x, draw, self.silent >= self.n)
            self.optimiser.zero_grad()
            found.loss.backward()
            with torch.no_grad():
                one._before_step()
                self.optimiser.step()
                one._after_step()
                on = found.z.detach() != 0
                self.silent = torch.where(on.any(0), 0, self.silent + len(x))
                error = (x - found.decoded).double().square().sum()
                sums += torch.stack((found.loss.detach().double() * len(x), error, on.sum().double()))
            seen += len(x)
        self.epoch += 1
        loss, error, on_rows = (sums / seen).tolist()
        if not np.isfinite(loss):
            raise NonFiniteError(f"the loss of epoch {self.epoch} is {loss}: a smaller learning_rate may help")
        if one.schedule == "plateau":
            self.schedule.step(loss)
        elif self.schedule is not None:
            self.schedule.step()
        alive = int((self.silent < seen).sum())
        self._revive(seen)
        r2 = 1 - error / self.spread if self.spread > 0 else 0.0
        self.history.append(Epoch(self.epoch, one.epochs, loss, r2, self._held_out(), on_rows, alive, len(self.silent)))

    def tell(self) -> None:
        """Report the epoch."""
        if self.work.progress is not None:
            self.work.progress(self.history[-1])

    def _held_out(self) -> float | None:
        return None if self.work.held_out is None else score(self.one, self.work.held_out).r2

    def _revive(self, seen: int) -> None:
        one = self.one
        if not one.revive_every or self.epoch % one.revive_every or self.epoch > SETTLING * one.epochs:
            return
        dead = (self.silent >= seen).nonzero().flatten()
        if not len(dead):
            return
        draw = generator(torch.device("cpu"), one.seed, 3, self.epoch)
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
        residual = sample - self.one.decode(self.one.encode(sample))
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
            "epoch": self.epoch,
            "revived": self.revived,
            "rate": self.optimiser.param_groups[0]["lr"],
            "schedule": None if self.schedule is None else _plain_schedule(self.schedule),
        }
        self.kept.write(tensors, state, self.history, self.epoch == self.one.epochs)

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
        self.epoch, self.revived = state["epoch"], state["revived"]
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
