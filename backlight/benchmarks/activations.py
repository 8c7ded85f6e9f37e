"""iERF, Table II: which explanations survive another activation? Networks of six activations, trained here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backlight.benchmarks.cifar import Cifar, Training, accuracy, kept
from backlight.benchmarks.protocols import ACTIVATIONS
from backlight.benchmarks.published import published
from backlight.benchmarks.report import NONE, Report, Table, report
from backlight.benchmarks.study import Options, study
from backlight.benchmarks.subjects import DATA, Subject
from backlight.errors import InputError
from backlight.evaluation import TensorSamples
from backlight.models.cifar_models import ACTIVATIONS as KINDS

FILE = DATA.parent / "cifar10.npz"
QUICK = {"depth": 8, "epochs": 6}


def cifar_file(data: Path | None) -> Path:
    """The file that was named, or the one beside the repository.

    Raises:
        InputError: none was named, and there is none.
    """
    if data is None and not FILE.is_file():
        raise InputError(
            "this trains networks on pictures of 32 pixels: give --data FILE.npz with x_train, y_train, x_test, y_test "
            f"(there is none at {str(FILE)!r})"
        )
    return data or FILE


def default_training(options: Options) -> Training:
    """The training of the exact or of the quick protocol."""
    return Training(seed=options.seed, **(QUICK if options.quick else {}))


def activations(
    options: Options,
    training: Training | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    device: torch.device | str = "cpu",
    told: Callable[[str], None] = lambda text: None,
) -> Report:
    """Train a network for each activation, and measure Fidelity: rows are methods, columns networks.

    The weights are kept in `options.out`, and not trained again by a call with the same settings. `options.data`: an
    `.npz` of CIFAR's form; `told`: hears what is under way.
    """
    data = Cifar.load(cifar_file(options.data))
    training = training or default_training(options)
    studies, right = [], {}
    limit = min(options.number(ACTIVATIONS), len(data.x_test))
    samples = TensorSamples(data.x_test[:limit], data.y_test[:limit])
    for kind in kinds:

        def epoch(number: int, kind: str = kind) -> None:
            told(f"{kind}: epoch {number + 1} of {training.epochs}")

        network = kept(options.out / "networks", kind, data, training, device, progress=epoch)
        right[kind] = accuracy(network, data, device)
        told(f"{kind}: {right[kind]:.3f} of the test pictures are classified right")
        subject = Subject(kind, network, size=data.x_test.shape[-1])
        studies.append(study(ACTIVATIONS, subject, replace(options, data=None), samples))
    made = report(ACTIVATIONS, studies, options.quick)
    found = replace(
        made,
        tables=[_accuracies(right, training), *made.tables],
        records=[
            *made.records,
            *(
                {"source": "measured", "network": kind, "metric": "accuracy", "method": "the network", "mean": value}
                for kind, value in right.items()
            ),
        ],
        run={**made.run, "training": training.__dict__, "accuracy": right},
    )
    found.write(options.out)
    return found


def _accuracies(right: dict[str, float], training: Training) -> Table:
    theirs = {one.network.split()[-1]: one.mean for one in published("activations") if one.column == "accuracy"}
    rows = [[kind, f"{value:.3f}", f"{theirs[kind]:.3f}" if kind in theirs else NONE] for kind, value in right.items()]
    ours = f"ResNet-{training.depth}, {training.epochs} epochs"
    return Table("Accuracy ↑", ["activation", ours, "ResNet50 on CIFAR-100 (iERF, Table II)"], rows)
