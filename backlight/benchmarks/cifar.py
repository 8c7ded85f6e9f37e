"""Pictures of 32 pixels, and the training of small residual networks of any activation on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.errors import InputError
from backlight.evaluation.identity import tensor_hash
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.cifar_models import CifarResNet
from backlight.shapes import Float, Int, UInt8


@dataclass(frozen=True)
class Training:
    """How a network is trained: SGD with Nesterov momentum 0.9, one cycle of rates, flips and shifts by four pixels."""

    depth: int = 20
    width: int = 16
    epochs: int = 20
    rate: float = 0.2
    decay: float = 5e-4
    batch: int = 128
    seed: int = 314


@dataclass(frozen=True)
class Cifar:
    """Pictures `[N, 3, 32, 32]` in [-1, 1] and labels, to train on and to test on."""

    x: Float[Tensor, "N 3 H W"]
    y: Int[Tensor, "N"]
    x_test: Float[Tensor, "M 3 H W"]
    y_test: Int[Tensor, "M"]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(max(self.y.max(), self.y_test.max())) + 1

    @classmethod
    def load(cls, path: Path) -> Cifar:
        """From an `.npz` with x_train, y_train, x_test, y_test: uint8 `[N, H, W, 3]`, and labels from 0.

        Raises:
            InputError: another file.
        """
        try:
            with np.load(path) as arrays:
                found = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read {str(path)!r} as .npz of x_train, y_train, x_test, y_test: {error}"
            ) from None
        for split in ("train", "test"):
            _refuse_others(path, split, found[f"x_{split}"], found[f"y_{split}"])
        labels = [torch.from_numpy(found[name].astype(np.int64).reshape(-1)) for name in ("y_train", "y_test")]
        return cls(pixels(found["x_train"]), labels[0], pixels(found["x_test"]), labels[1])


def _refuse_others(path: Path, split: str, x: np.ndarray, y: np.ndarray) -> None:
    """Raise `InputError` where arrays are not 8-bit pictures `[N, H, W, 3]` and a label from 0 for each."""
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or not x.size:
        raise InputError(
            f"{str(path)!r}: x_{split} is {x.dtype} {list(x.shape)}, expected pictures of uint8 [N, H, W, 3], 0 to 255"
        )
    if x.shape[1] != x.shape[2]:
        raise InputError(f"{str(path)!r}: x_{split} has pictures of {x.shape[1]} x {x.shape[2]}, expected square ones")
    if y.dtype.kind not in "iu" or y.size != len(x) or y.min() < 0:
        raise InputError(
            f"{str(path)!r}: y_{split} is {y.dtype} {list(y.shape)}, expected {len(x)} class indices from 0"
        )


def pixels(pictures: UInt8[np.ndarray, "N H W 3"]) -> Float[Tensor, "N 3 H W"]:
    """8-bit pictures in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def trained(
    activation: str,
    data: Cifar,
    training: Training,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda epoch: None,
) -> CifarResNet:
    """A network in evaluation mode; the same one for the same seed on the same machine. Random states stay."""
    devices = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(training.seed)
        network = CifarResNet(training.depth, activation, training.width, data.classes).to(device)
        steps = training.epochs * -(-len(data.x) // training.batch)
        sgd = torch.optim.SGD(network.parameters(), training.rate, 0.9, weight_decay=training.decay, nesterov=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, training.rate, total_steps=steps, pct_start=0.3)
        for epoch in range(training.epochs):
            progress(epoch)
            for rows in torch.randperm(len(data.x)).split(training.batch):
                loss = F.cross_entropy(network(varied(data.x[rows]).to(device)), data.y[rows].to(device))
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                cycle.step()
    return network.eval().requires_grad_(False)


def varied(x: Float[Tensor, "N 3 H W"], shift: int = 4) -> Float[Tensor, "N 3 H W"]:
    """Pictures flipped by chance, and moved by up to `shift` pixels, grey where nothing is known."""
    size = x.shape[-1]
    flipped = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
    padded = F.pad(flipped, (shift,) * 4)
    down, across = torch.randint(0, 2 * shift + 1, (2, len(x), 1))
    rows, columns = down + torch.arange(size), across + torch.arange(size)
    places = torch.arange(len(x))[:, None, None, None], torch.arange(3)[:, None, None]
    return padded[places[0], places[1], rows[:, None, :, None], columns[:, None, None, :]]


def accuracy(network: nn.Module, data: Cifar, device: torch.device | str = "cpu", batch: int = 500) -> float:
    """The share of test pictures whose largest logit is the label's."""
    with torch.no_grad():
        found = torch.cat([network(x.to(device)).argmax(1).cpu() for x in data.x_test.split(batch)])
    return float((found == data.y_test).double().mean())


def kept(
    folder: Path, activation: str, data: Cifar, training: Training, device: torch.device | str, **settings: Any
) -> CifarResNet:
    """The network that was trained into this folder by the same settings, or a new one, which is written there."""
    from safetensors.torch import save_file

    path, about = folder / f"{activation}.safetensors", folder / f"{activation}.json"
    hashes = {"pictures": tensor_hash(data.x), "labels": tensor_hash(data.y)}
    told = json.dumps({**asdict(training), "activation": activation, **hashes}, indent=2)
    if path.exists() and about.exists() and about.read_text(encoding="utf-8") == told:
        network = CifarResNet(training.depth, activation, training.width, data.classes)
        load_strictly(network, read_state_dict(path), str(path))
        return network.to(device).eval().requires_grad_(False)
    network = trained(activation, data, training, device, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, path)
    about.write_text(told, encoding="utf-8")
    return network
