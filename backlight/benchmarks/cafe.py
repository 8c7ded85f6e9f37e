"""CAFE's insertion test, iERF paper, Figure 7: which attributor finds the patches that bring a latent back."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.benchmarks.cafe_attributors import DEFAULT, Entrant, entrants
from backlight.benchmarks.cafe_pairs import Choice, Pair, Rule, choose_pairs, kept_pairs
from backlight.benchmarks.cafe_report import Layer, cafe_report, write_curves
from backlight.benchmarks.report import Report
from backlight.benchmarks.study import slug
from backlight.concepts.insertion import budgets_of
from backlight.concepts.insertion_latents import InsertionTest
from backlight.concepts.latent_units import LatentTask
from backlight.data.labelled import LabelledFolder
from backlight.decompositions import Decomposition
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.evaluation.identity import model_hash, names_hash, plain, tensor_hash, versions
from backlight.evaluation.journal import COST, Failure, Journal, read_rows
from backlight.models.loaded import LoadedModel

TESTS = (
    InsertionTest(token="patch"),
    InsertionTest(token="patch", canvas="zero"),
    InsertionTest(token="patch", unit="pixels"),
    InsertionTest(token="patch", unit="pixels", canvas="blur"),
)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SiteDictionary:
    """A dictionary of a site."""

    site: str
    dictionary: Decomposition


@dataclass(frozen=True, kw_only=True)
class CafeOptions:
    """What a user chooses. `data`: pictures that the dictionaries were not fitted to.

    `attributors`: names, with `settings` by name; `signed`: those that are also ranked by their signed sums (True:
    all). `few`: the most pairs a layer for attributors that pass through the network hundreds of times. `reference`:
    what the others are compared with. `precision`: of the passes that curves are read from; attributions are in
    float32.
    """

    out: Path
    data: Path
    attributors: Sequence[str] = DEFAULT
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tests: Sequence[InsertionTest] = TESTS
    rule: Rule = field(default_factory=Rule)
    signed: bool | Sequence[str] = True
    few: int | None = None
    reference: str = "AttnLRP"
    precision: str = "float32"
    limit: int | None = None
    quick: bool = False
    told: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        names = [test.name for test in self.tests]
        if not names or len(set(names)) < len(names):
            raise InputError(f"tests need names that differ, got {names}")


def cafe(loaded: LoadedModel, concepts: Sequence[SiteDictionary], options: CafeOptions) -> Report:
    """Measure attributors on latents of some layers, write tables, curves and figures to `options.out`.

    A pair of a latent and an image is attributed by all, and its curves are read for all tests, before the next; layers
    take turns, so that an interrupted run is a smaller one. What is done is not done again by a call with the same
    settings; attributors, latents and layers may be added.

    Raises:
        BacklightError: no pictures, a folder with other settings, no attributor that runs.
    """
    model, folder = loaded.model, _folder(loaded, options)
    runs = entrants(options.attributors, options.settings, options.signed, options.quick)
    subjects = [_subject(loaded, one, folder, options) for one in concepts]
    chosen = [_choice(loaded, one, subject, folder, options) for one, subject in zip(concepts, subjects, strict=True)]
    other = model if options.precision == "float32" else copy.deepcopy(model).to(PRECISIONS[options.precision])
    with ExitStack() as stack:
        works = []
        for one, subject, choice in zip(concepts, subjects, chosen, strict=True):
            work = _Work(loaded, other, one, subject, choice, folder, options)
            work.journals = {run.name: stack.enter_context(work.journal(run)) for run in runs}
            works.append(work)
        turns = max(len(choice.pairs) for choice in chosen)
        for turn in range(turns):
            for work in works:
                if turn < len(work.choice.pairs):
                    work.do(turn, runs)
        layers = [Layer(work.concepts.site, work.choice, *work.rows(runs)) for work in works]
    run = {"benchmark": "cafe", "versions": versions(), "identities": [work.identities(runs) for work in works]}
    found = cafe_report(loaded.name, layers, runs, options, run)
    found.write(options.out)
    write_curves(loaded.name, layers, runs, options)
    return found


def _folder(loaded: LoadedModel, options: CafeOptions) -> LabelledFolder:
    return LabelledFolder(options.data, loaded.classes, loaded.preprocessing, options.limit, labelled=False)


def _choice(
    loaded: LoadedModel, one: SiteDictionary, subject: Mapping[str, Any], folder: LabelledFolder, options: CafeOptions
) -> Choice:
    """The pairs of a layer, from the folder where they were chosen before."""
    path = options.out / slug(loaded.name) / slug(one.site) / "pairs.json"
    identity = {**subject, "rule": asdict(options.rule)}
    options.told(f"{one.site}: choosing latents")
    return kept_pairs(
        path, identity, lambda: choose_pairs(loaded.model, one.site, one.dictionary, folder, options.rule)
    )


def _subject(loaded: LoadedModel, one: SiteDictionary, folder: LabelledFolder, options: CafeOptions) -> dict[str, Any]:
    """What decides which pairs there are, but for the rule."""
    tensors = names_hash(f"{name} {tensor_hash(tensor)}" for name, tensor in sorted(one.dictionary.state.items()))
    return {
        "backlight": versions()["backlight"],
        "model": {"name": loaded.name, "parameters": model_hash(loaded.model)},
        "site": one.site,
        "dictionary": {"class": type(one.dictionary).__name__, "tensors": tensors},
        "data": folder.fingerprint,
        "limit": options.limit,
    }


@dataclass
class _Work:
    """One layer: its pairs, and a journal for each attributor."""

    loaded: LoadedModel
    other: nn.Module
    concepts: SiteDictionary
    subject: Mapping[str, Any]
    choice: Choice
    folder: LabelledFolder
    options: CafeOptions
    journals: dict[str, Journal] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The area of each test, then its curve."""
        count = self.choice.layout.count
        curves = [f"{test.name} @{b}" for test in self.options.tests for b in budgets_of(test.steps, count).tolist()]
        return [*(test.name for test in self.options.tests), *curves]

    def journal(self, run: Entrant) -> Journal:
        """The rows of an attributor."""
        place = self.options.out / slug(self.loaded.name) / slug(self.concepts.site) / slug(run.name)
        return Journal(place, self._identity(run), self.columns)

    def _identity(self, run: Entrant) -> dict[str, Any]:
        rule = self.options.rule
        return plain(
            {
                **self.subject,
                "attributor": run.described(),
                "tests": [{"name": test.name, **_settings(test)} for test in self.options.tests],
                "precision": self.options.precision,
                "rule": {"images": rule.images, "least": rule.least, "most": rule.most, "seed": rule.seed},
            }
        )

    def identities(self, runs: Sequence[Entrant]) -> dict[str, Any]:
        """What decides the numbers of each attributor."""
        return {run.name: self._identity(run) for run in runs}

    def pairs(self, run: Entrant) -> list[Pair]:
        """The pairs of an attributor; where it has few of them, the best images of as many latents."""
        if not run.costly or self.options.few is None:
            return list(self.choice.pairs)
        return sorted(self.choice.pairs, key=lambda pair: pair.rank)[: self.options.few]

    def do(self, turn: int, runs: Sequence[Entrant]) -> None:
        """One pair, by all attributors that have it not."""
        pair = self.choice.pairs[turn]
        left = [run for run in runs if pair in self.pairs(run) and pair.name not in self.journals[run.name].done]
        if not left:
            return
        started = time.perf_counter()
        x = self.folder.load(pair.image).inputs[None].to(next(self.loaded.model.parameters()))
        scores, costs, failures = self._scores(x, pair, left)
        values, full = self._values(x, pair, scores)
        about = {"sample": pair.name, "target": pair.latent, "predicted": pair.token, "score": full}
        about["data"] = self.folder.content(pair.image)
        for run in left:
            nothing = dict.fromkeys((*self.columns, *COST), float("nan"))
            rows = [
                {**about, "method": name, **nothing, **values.get(name, {}), **costs.get(run.name, {})}
                for name in run.orders
            ]
            why = [Failure(pair.name, run.name, "", failures[run.name])] if run.name in failures else []
            self.journals[run.name].append(rows, why)
        at = f"{self.concepts.site}: {pair.name}, {turn + 1} of {len(self.choice.pairs)}"
        self.options.told(f"{at}, {time.perf_counter() - started:.0f} s")

    def _scores(
        self, x: Tensor, pair: Pair, runs: Sequence[Entrant]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, float]], dict[str, str]]:
        """Maps by order; costs, or why there is none, by attributor."""
        site, dictionary = self.concepts.site, self.concepts.dictionary
        task = LatentTask.of(self.loaded.model, site, dictionary, x, pair.latent, pair.token)
        scores: dict[str, Tensor] = {}
        costs: dict[str, dict[str, float]] = {}
        failures: dict[str, str] = {}
        for run in runs:
            begun = time.perf_counter()
            try:
                maps, found = run.scores(task)
            except (BacklightError, RuntimeError) as error:
                failures[run.name] = " ".join(str(error).split())
                continue
            scores |= maps
            passes = (found.cost.forwards, found.cost.backwards)
            costs[run.name] = dict(zip(COST, (time.perf_counter() - begun, *map(float, passes)), strict=True))
        return scores, costs, failures

    def _values(self, x: Tensor, pair: Pair, scores: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, float]], float]:
        """By order: the areas and normalised curves of all tests; and z of the whole image."""
        found: dict[str, dict[str, float]] = {name: {} for name in scores}
        full = float("nan")
        if not scores:
            return found, full
        images = x.to(PRECISIONS[self.options.precision])
        latent, token = torch.tensor([pair.latent]), torch.tensor([pair.token])
        for test in self.options.tests:
            site, dictionary = self.concepts.site, self.concepts.dictionary
            curves = test.run(self.other, site, dictionary, images, latent, scores, tokens=token)
            full = float(curves.full[0])
            areas, shown = curves.auc[:, 0].tolist(), curves.normalised[:, 0].tolist()
            for name, area, curve in zip(curves.names, areas, shown, strict=True):
                points = zip(curves.budgets.tolist(), curve, strict=True)
                found[name] |= {test.name: area, **{f"{test.name} @{budget}": value for budget, value in points}}
        return found, full

    def rows(self, runs: Sequence[Entrant]) -> tuple[list[dict[str, Any]], list[Failure]]:
        """The rows of the pairs of this call, and what failed."""
        found, failed = [], []
        for run in runs:
            wanted = {pair.name for pair in self.pairs(run)}
            table, failures = read_rows(self.journals[run.name].folder)
            failed += [one for one in failures if one.sample in wanted]
            found += [row for row in (table.to_pylist() if table is not None else []) if row["sample"] in wanted]
        return found, failed


def _settings(test: InsertionTest) -> dict[str, Any]:
    return {name: value for name, value in vars(test).items() if name != "batch_size"}
