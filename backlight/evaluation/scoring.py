"""Scores of a few samples: every explanation, every metric, and a row for each sample and explanation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.data.labelled import Sample
from backlight.engine.targets import output_tensor
from backlight.errors import BacklightError, MissingExtraError, NonFiniteError, TargetError, UnknownNameError
from backlight.evaluation.identity import sample_seed
from backlight.evaluation.journal import Failure
from backlight.metrics.case import Case
from backlight.metrics.controls import Control, Negative
from backlight.metrics.explainers import Explainer
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric

EXPLANATION = ""  # in place of a metric's name, where there is no map
_EVERYONES = (UnknownNameError, MissingExtraError, MemoryError)  # what no sample can do with; others may be its own
Row = dict[str, Any]


@dataclass(frozen=True)
class _Explained:
    """One explanation's maps of the samples that have one, by row; and what it cost a sample."""

    maps: dict[int, Tensor]
    seconds: float = np.nan
    forwards: float = np.nan
    backwards: float = np.nan


@dataclass
class Scoring:
    """What is done with each sample. `explainers`: methods, their negatives (`Negative`) and controls by name."""

    model: nn.Module
    explainers: Mapping[str, Explainer]
    metrics: Mapping[str, Metric]
    seed: int
    batch_size: int
    step: Callable[[str], None]

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[Row], list[Failure]]:
        """A row for each sample and explanation, in order; and what failed.

        Raises:
            TargetError: a target that is not among the network's outputs.
        """
        groups: dict[Any, list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample.inputs.shape, sample.mask is None), []).append(sample)
        rows, failures = [], list[Failure]()
        for alike in groups.values():
            group = _Group(self, alike)
            rows += group.rows()
            failures += group.failures
        places = {sample.name: place for place, sample in enumerate(samples)}
        return sorted(rows, key=lambda row: places[row["sample"]]), failures


class _Group:
    """Samples of one shape, all with masks or all without."""

    def __init__(self, scoring: Scoring, samples: Sequence[Sample]) -> None:
        self.scoring, self.samples = scoring, samples
        tensor = next((one for one in (*scoring.model.parameters(), *scoring.model.buffers())), samples[0].inputs)
        self.inputs = torch.stack([sample.inputs for sample in samples]).to(tensor.device)
        masks = [sample.mask for sample in samples if sample.mask is not None]
        self.masks = torch.stack(masks).to(tensor.device) if masks else None
        self.failures: list[Failure] = []
        self.outputs = self._outputs()
        self.predicted = self.outputs.argmax(1).tolist()
        self.targets = [self._target(row) for row in range(len(samples))]

    def rows(self) -> list[Row]:
        explained, every = self._explained(), range(len(self.samples))
        complete = all(len(one.maps) == len(every) for one in explained.values())
        case = self._case(every, explained) if complete else None
        scores = {label: self._scores(label, explained, case) for label in self.scoring.metrics}
        return [
            {
                "sample": sample.name,
                "method": name,
                "target": self.targets[row],
                "predicted": self.predicted[row],
                "score": float(self.outputs[row, self.targets[row]]),
                **{label: float(values[place, row]) for label, values in scores.items()},
                "seconds": found.seconds,
                "forwards": found.forwards,
                "backwards": found.backwards,
            }
            for row, sample in enumerate(self.samples)
            for place, (name, found) in enumerate(explained.items())
        ]

    def _outputs(self) -> Tensor:
        with torch.no_grad():
            found = [output_tensor(self.scoring.model(x)) for x in self.inputs.split(self.scoring.batch_size)]
        outputs = torch.cat(found)
        if outputs.ndim != 2:
            raise TargetError(f"expected outputs [N, K] of a classifier, got {list(outputs.shape)}")
        return outputs.double().cpu()

    def _target(self, row: int) -> int:
        target, count = self.samples[row].target, self.outputs.shape[1]
        if target is None:
            return self.predicted[row]
        if not 0 <= target < count:
            name = self.samples[row].name
            raise TargetError(f"the label {target} of {name!r} is out of range: the network has {count} outputs")
        return target

    def _case(self, rows: Sequence[int], explained: Mapping[str, _Explained]) -> Case:
        """A case of some rows, with the maps that are there already."""
        index = torch.tensor(rows, device=self.inputs.device)
        return Case(
            self.scoring.model,
            self.inputs[index],
            [self.targets[row] for row in rows],
            {name: self.scoring.explainers[name] for name in explained},
            {name: torch.stack([found.maps[row] for row in rows]) for name, found in explained.items() if found.maps},
            None if self.masks is None else self.masks[index],
            [sample_seed(self.scoring.seed, self.samples[row].name) for row in rows],
            self.scoring.batch_size,
        )

    def _explained(self) -> dict[str, _Explained]:
        found: dict[str, _Explained] = {}
        for name, explainer in self.scoring.explainers.items():
            self.scoring.step(name)
            found[name] = self._negated(explainer, found) or self._explain(name, explainer)
        return found

    def _negated(self, explainer: Explainer, found: Mapping[str, _Explained]) -> _Explained | None:
        """The negative of maps that are there already."""
        if not isinstance(explainer, Negative):
            return None
        for name, other in found.items():
            if self.scoring.explainers[name] is explainer.explainer:
                maps = {row: -one for row, one in other.maps.items()}
                return _Explained(maps, other.seconds, other.forwards, other.backwards)
        return None

    def _explain(self, name: str, explainer: Explainer) -> _Explained:
        before = _passes(explainer)
        start = time.perf_counter()
        every = range(len(self.samples))
        try:
            maps = dict(enumerate(self._maps(name, every)))
        except _EVERYONES:
            raise
        except Exception:  # a function of the user's raises what it likes
            before, start, maps = _passes(explainer), time.perf_counter(), {}
            for row in every:
                try:
                    maps[row] = self._maps(name, [row])[0]
                except _EVERYONES:
                    raise
                except Exception as own:
                    self._failed(row, name, EXPLANATION, own)
        passes = [(after - start) / len(every) for after, start in zip(_passes(explainer), before, strict=True)]
        return _Explained(maps, (time.perf_counter() - start) / len(every), *passes)

    def _maps(self, name: str, rows: Sequence[int]) -> Tensor:
        found = self._case(rows, {name: _Explained({})}).map(name)
        stacked(found, self.inputs[: len(rows)])  # raises where it is no map
        if not bool(found.isfinite().all()):
            raise NonFiniteError("a map to measure must be finite")
        if found.is_cuda:
            torch.cuda.synchronize(found.device)
        return found

    def _scores(self, label: str, explained: Mapping[str, _Explained], case: Case | None) -> np.ndarray:
        """`[M, N]` of one metric. What fails for all at once is tried sample by sample, then method by method."""
        metric, names = self.scoring.metrics[label], list(explained)
        found = np.full((len(names), len(self.samples)), np.nan)
        if "masks" in metric.needs and self.masks is None:
            return found
        self.scoring.step(label)
        if case is not None:
            try:
                return _checked(metric(case), found.shape)
            except _EVERYONES:
                raise
            except Exception:  # below, where it is found out whose it is
                pass
        for row in range(len(self.samples)):
            there = {name: one for name, one in explained.items() if row in one.maps}
            self._score_row(label, row, there, found, names)
        return found

    def _score_row(
        self, label: str, row: int, there: Mapping[str, _Explained], found: np.ndarray, names: Sequence[str]
    ) -> None:
        if not there:
            return
        places = [names.index(name) for name in there]
        try:
            scores = self.scoring.metrics[label](self._case([row], there))
            found[places, row] = _checked(scores, (len(there), 1))[:, 0]
        except _EVERYONES:
            raise
        except Exception as error:
            if len(there) == 1:
                self._failed(row, next(iter(there)), label, error)
                return
            for name, one in there.items():
                self._score_row(label, row, {name: one}, found, names)

    def _failed(self, row: int, name: str, label: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.failures.append(Failure(self.samples[row].name, name, label, reason))


def _checked(scores: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    values = scores.detach().cpu().double().numpy()
    if values.shape != shape:
        raise BacklightError(f"a metric gave scores of shape {list(values.shape)}, expected {list(shape)}")
    return values


def _passes(explainer: Explainer) -> tuple[float, float]:
    """(forwards, backwards) so far; NaN where nobody counts them."""
    if isinstance(explainer, Control):
        return 0.0, 0.0
    return (np.nan, np.nan) if explainer.cost is None else (explainer.cost.forwards, explainer.cost.backwards)
