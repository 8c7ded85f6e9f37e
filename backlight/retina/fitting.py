"""Fitting a retina network to spikes: by Poisson likelihood, until other frames are told no better; resumable."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.decompositions.folder import make_folder, read_json, read_tensors, write_json, write_tensors
from backlight.errors import InputError, NonFiniteError
from backlight.evaluation.identity import differences, tensor_hash
from backlight.models.retina import GaussianNoise, RetinaNetwork, predict
from backlight.models.retina_checkpoints import load_retina, save_retina
from backlight.retina.recording import Recording, correlations, noise_ceiling
from backlight.shapes import Float
from backlight.store.record import locked

NETWORK, REPORT, CHECKPOINT = "network.safetensors", "report.json", "checkpoint.safetensors"
TINY = 1e-8  # added to rates before their logarithm is taken


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a network is fitted.

    Adam on the Poisson loss, the mean of rate - count log rate, and `weight_penalty` times the mean square of the
    filters. `held_out`: the share of frames, at the movie's end, that stop the fit; the windows between them and the
    fitted ones, which share frames with both, are left out. The fit ends after `patience` epochs without a better
    held-out loss, and the best epoch's weights are kept.

    Raises:
        InputError: a setting out of its range.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_penalty: float = 0.0
    held_out: float = 0.1
    patience: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience) < 1 or not self.learning_rate > 0:
            raise InputError("epochs, batch_size and patience are at least 1, and learning_rate is positive")
        if not 0 < self.held_out < 1 or self.weight_penalty < 0 or self.seed < 0:
            raise InputError("held_out lies in (0, 1), weight_penalty and seed are not negative")


@dataclass(frozen=True)
class FitEpoch:
    """After epoch `number` of at most `total`: losses, the mean correlation on held-out frames, and the best epoch."""

    number: int
    total: int
    loss: float
    held_out_loss: float
    held_out_correlation: float
    best: int


@dataclass(frozen=True, eq=False)
class FittedRetina:
    """A fitted network in evaluation mode, and how it was fitted; `stopped`: early, by its held-out frames."""

    network: RetinaNetwork
    settings: FitSettings
    history: list[FitEpoch] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether the fit ended before its last epoch."""
        return self.history[-1].number < self.settings.epochs


@dataclass(frozen=True, eq=False)
class RetinaScores:
    """How well rates are told on a recording: `correlation` `[cells]` with the mean over repeats.

    `ceiling` `[cells]`: what the true rate would have; None of one repeat. `share`: the first over the second, NaN
    where there is no signal.
    """

    correlation: Float[Tensor, "cells"]
    ceiling: Float[Tensor, "cells"] | None

    @property
    def share(self) -> Float[Tensor, "cells"] | None:
        """Of the noise ceiling."""
        if self.ceiling is None:
            return None
        return torch.where(self.ceiling > 0, self.correlation / self.ceiling, torch.nan)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        share = None if self.share is None else [None if math.isnan(one) else one for one in self.share.tolist()]
        ceiling = None if self.ceiling is None else self.ceiling.tolist()
        return {"correlation": self.correlation.tolist(), "ceiling": ceiling, "share": share}


def score_retina(network: nn.Module, recording: Recording) -> RetinaScores:
    """Correlations of a network's rates with a recording, which it should not have been fitted to. A forward pass."""
    rates = predict(network, recording.windows)
    if rates.shape != recording.counts.shape[1:]:
        cells = recording.counts.shape[2]
        raise InputError(f"the network gives rates {list(rates.shape)}, the recording has {cells} cells")
    ceiling = noise_ceiling(recording.counts) if len(recording.counts) > 1 else None
    return RetinaScores(correlations(rates, recording.response), ceiling)


def fit_retina(
    recording: Recording,
    network: RetinaNetwork | None = None,
    *,
    settings: FitSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[FitEpoch], None] | None = None,
    device: str | torch.device = "cpu",
    **sizes: Any,
) -> FittedRetina:
    """Fit a network to the mean counts of a recording.

    After a kill the same call goes on from the last whole epoch; on a CPU the result is that of a fit that was not
    stopped, bit for bit. Windows are views of the movie: memory is that of the movie and of a batch.

    Args:
        network: where to begin; it is not changed. None: one of the recording's size, `sizes` (see `RetinaNetwork`).
        folder: where checkpoints and the result go; a folder that is finished is read.
        progress: called after each epoch.

    Raises:
        InputError: a network of another size; a folder of another fit (the message says what differs), or in use.
        NonFiniteError: the loss is not finite.
    """
    cells, size = recording.counts.shape[2], list(recording.stimulus.shape[1:])
    chosen = FitSettings() if settings is None else settings
    if network is None:
        network = RetinaNetwork(cells, **{"frames": recording.frames, "size": size, "seed": chosen.seed, **sizes})
        _begin_at_mean(network, recording)
    elif sizes:
        raise InputError(f"sizes are given twice: with the network, and as {', '.join(sizes)}")
    told = network.settings
    if (told["cells"], told["frames"], told["size"]) != (cells, recording.frames, size):
        given = f"{told['cells']} cells, {told['frames']} frames of {told['size']}"
        raise InputError(f"the network is for {given}, the recording has {cells}, {recording.frames} and {size}")
    if folder is None:
        return _Fit(recording, network, chosen, None, progress, torch.device(device)).run()
    place = make_folder(Path(folder))
    try:
        with locked(place / ".lock"):
            return _Fit(recording, network, chosen, place, progress, torch.device(device)).run()
    except BlockingIOError:
        raise InputError(f"another process fits in {str(place)!r}") from None


def open_fitted(folder: str | os.PathLike[str]) -> FittedRetina:
    """A finished fit. Raises `InputError` where there is none."""
    place = Path(folder)
    if not (place / REPORT).exists():
        raise InputError(f"{str(place)!r} holds no finished fit of a retina")
    told = read_json(place / REPORT)
    history = [FitEpoch(**one) for one in told["history"]]
    return FittedRetina(load_retina(place / NETWORK), FitSettings(**told["settings"]), history)


def _begin_at_mean(network: RetinaNetwork, recording: Recording) -> None:
    """Let the cells begin at their mean counts: shift = log(e^mean - 1)."""
    mean = recording.response.mean(0).clamp(min=1e-3)
    with torch.no_grad():
        network.cells.norm.shift.copy_(mean.expm1().log())
        network.cells.norm.scale.fill_(0.2)


def split_windows(count: int, frames: int, share: float) -> tuple[range, range]:
    """(fitted, held out): the last windows are held out, and share no frame with the fitted ones.

    Raises:
        InputError: too few windows for both.
    """
    begin = count - max(2, round(share * count))
    if begin - frames + 1 < 1:
        raise InputError(f"{count} windows of {frames} frames are too few to hold {share:g} of them out")
    return range(begin - frames + 1), range(begin, count)


class _Fit:
    """A fit on its way: network, optimiser, the best weights so far."""

    def __init__(
        self,
        recording: Recording,
        network: RetinaNetwork,
        settings: FitSettings,
        folder: Path | None,
        progress: Callable[[FitEpoch], None] | None,
        device: torch.device,
    ) -> None:
        self.settings, self.folder, self.progress, self.device = settings, folder, progress, device
        self.windows, self.response = recording.windows, recording.response
        self.fitted, self.held_out = split_windows(len(self.windows), recording.frames, settings.held_out)
        self.network = RetinaNetwork(**network.settings)
        self.network.load_state_dict(network.state_dict())
        self.network.to(device)
        self.identity: dict[str, Any] = {}
        if folder is not None:
            self.identity = {
                "fit": asdict(settings),
                "network": network.settings,
                "stimulus": tensor_hash(recording.stimulus)[:16],
                "counts": tensor_hash(recording.counts)[:16],
                "start": _state_hash(network.state_dict()),
            }
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self.history: list[FitEpoch] = []
        self.best = _copied(self.network.state_dict())

    def run(self) -> FittedRetina:
        """Train to the end, and write the result."""
        if self.folder is not None and (self.folder / REPORT).exists():
            self._refuse(read_json(self.folder / REPORT)["identity"])
            return open_fitted(self.folder)
        self._restore()
        while not self._done():
            self._epoch()
            self._save()
            if self.progress is not None:
                self.progress(self.history[-1])
        self.network.load_state_dict(self.best)
        found = FittedRetina(self.network.cpu().eval(), self.settings, self.history)
        if self.folder is not None:
            save_retina(found.network, self.folder / NETWORK)
            history = [asdict(one) for one in self.history]
            write_json(
                self.folder / REPORT,
                {"identity": self.identity, "settings": asdict(self.settings), "history": history},
            )
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return found

    def _done(self) -> bool:
        if not self.history:
            return False
        last = self.history[-1]
        return last.number >= self.settings.epochs or last.number - last.best >= self.settings.patience

    def _epoch(self) -> None:
        settings, number = self.settings, len(self.history) + 1
        order = torch.from_numpy(np.random.default_rng((settings.seed, number)).permutation(len(self.fitted)))
        draws = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + number)
        noises = [module for module in self.network.modules() if isinstance(module, GaussianNoise)]
        for noise in noises:
            noise.generator = draws
        self.network.train()
        total = 0.0
        try:
            batches = [one for one in order.split(settings.batch_size) if len(one) > 1]  # one has no variance
            for chosen in batches:
                total += self._step(chosen) * len(chosen)
        finally:
            self.network.eval()
            for noise in noises:
                noise.generator = None
        loss = total / sum(map(len, batches))
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of epoch {number} is {loss}: a smaller learning_rate may help")
        self._judge(number, loss)

    def _step(self, chosen: Tensor) -> float:
        rates = self.network(self.windows[chosen].to(self.device))
        loss = poisson_loss(rates, self.response[chosen].to(self.device))
        penalty = self.settings.weight_penalty
        if penalty:
            filters = [self.network.first.convolution.weight, self.network.second.convolution.weight]
            loss = loss + penalty * sum(one.square().mean() for one in filters)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _judge(self, number: int, loss: float) -> None:
        others = slice(self.held_out.start, self.held_out.stop)
        rates, response = predict(self.network, self.windows[others]), self.response[others]
        held_out = float(poisson_loss(rates.double(), response.double()))
        best = min(self.history, key=lambda one: one.held_out_loss, default=None)
        if best is None or held_out < best.held_out_loss:
            self.best = _copied(self.network.state_dict())
        at = number if best is None or held_out < best.held_out_loss else best.number
        r = float(correlations(rates, response).mean())
        self.history.append(FitEpoch(number, self.settings.epochs, loss, held_out, r, at))

    def _refuse(self, told: Mapping[str, Any]) -> None:
        found = differences(told, self.identity)
        if found:
            where = repr(str(self.folder))
            raise InputError(f"{where} holds another fit: {'; '.join(found[:6])}. Give another folder")

    def _save(self) -> None:
        if self.folder is None:
            return
        tensors = {f"now.{name}": one for name, one in self.network.state_dict().items()}
        tensors |= {f"best.{name}": one for name, one in self.best.items()}
        for place, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{place}.{name}": value for name, value in state.items()}
        about = {"identity": self.identity, "history": [asdict(one) for one in self.history]}
        write_tensors(self.folder / CHECKPOINT, tensors, about)

    def _restore(self) -> None:
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return
        tensors, about = read_tensors(self.folder / CHECKPOINT)
        self._refuse(about.get("identity", {}))
        self.history = [FitEpoch(**one) for one in about["history"]]
        self.network.load_state_dict(_part(tensors, "now."))
        self.best = _part(tensors, "best.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "adam.").items():
            place, _, entry = name.partition(".")
            state.setdefault(int(place), {})[entry] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})


def poisson_loss(rates: Float[Tensor, "n cells"], counts: Float[Tensor, "n cells"]) -> Float[Tensor, ""]:
    """The mean of rate - count log rate: the negative log-likelihood of counts, less what no rate changes."""
    return (rates - counts * (rates + TINY).log()).mean()


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _state_hash(state: Mapping[str, Tensor]) -> str:
    names: Sequence[str] = sorted(state)
    return tensor_hash(torch.cat([state[name].double().flatten() for name in names]))[:16]
