"""What an extraction stores: contributions, activations and gradients of a network's hidden units, by channel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.algorithms import Algorithm, as_algorithm
from backlight.contributions.contribution import Contributions, contribute
from backlight.contributions.recipe import BASELINES, LABEL, baseline_inputs, parse_target
from backlight.contributions.reduction import Layout, layout_of, reduce
from backlight.data.images import Preprocessing
from backlight.data.labelled import Sample
from backlight.engine.rules import RuleSet
from backlight.engine.targets import Function, Logit, Target, as_target
from backlight.errors import InputError, ModelError, NonFiniteError, TargetError, UnknownNameError
from backlight.evaluation.identity import model_hash, plain
from backlight.models import LoadedModel, load
from backlight.rules import rule_set
from backlight.store import Collected
from backlight.store.collected import joined

QUANTITIES = ("contributions", "activations", "gradients")


@dataclass(frozen=True)
class ContributionCollector:
    """How contributions are computed and reduced to channels: what `backlight.store.extract` is given.

    It is sent to other processes without the network, which each loads; a module is pickled.

    - `model`: a name of `backlight.load`, with its `weights`, `random_weights` (drawn from `seed`) and `classes`; its
      samples are pictures in [-1, 1], and its sites those of `backlight layers`. Or a module in evaluation mode, which
      takes samples as they are unless `preprocessing` says what its inputs are;
    - `sites`, `algorithm`, `rules` (a name of `RULE_SETS`, or a set): see `contribute`;
    - `target`: a word (see `parse_target`; "label": the sample's class) or a `Target`;
    - `baseline`: a word, a tensor or a file, see `baseline_inputs`; None: the mean colour where the algorithm follows a
      path, and none at all where it does not, as in `contribute`;
    - `quantities`: of contributions, activations and gradients (at the input), all reduced alike;
    - `positions`: sites whose quantities are kept by position as well; True: all;
    - `class_token`, `heads`, `layouts` (by site): see `reduce` and `layout_of`;
    - `device`: by default where the module is, or the CPU; "cuda" gives each worker one of the devices;
    - `internal_batch_size`, `strict`: see `contribute`.

    Raises:
        UnknownNameError: a quantity, algorithm or rule set that there is not. TargetError: an unknown target.
        InputError: no site, or a position of a site that is not read.
    """

    model: str | nn.Module
    sites: tuple[str, ...]
    algorithm: Algorithm | str = "HiddenIntegratedGradients"
    rules: RuleSet | str = "gradient"
    target: Target | str = "top1"
    baseline: Any = None
    quantities: tuple[str, ...] = QUANTITIES
    positions: bool | tuple[str, ...] = False
    class_token: bool = True
    heads: int | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    weights: str | None = None
    random_weights: bool = False
    classes: Any = None
    seed: int = 0
    device: str | None = None
    internal_batch_size: int | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.sites, str) or not self.sites:
            raise InputError("sites are a tuple of at least one address")
        object.__setattr__(self, "sites", tuple(dict.fromkeys(self.sites)))
        object.__setattr__(self, "algorithm", as_algorithm(self.algorithm))
        if isinstance(self.rules, str):
            rule_set(self.rules)
        if isinstance(self.target, str):
            parse_target(self.target)
        elif isinstance(self.target, Function) and "<" in getattr(self.target.function, "__qualname__", "<>"):
            raise TargetError(
                "a target function that is stored is one of a module, def name(outputs): a lambda, a function inside "
                "another or an object cannot be told from the next one by its name"
            )
        for name in self.quantities:
            if name not in QUANTITIES:
                raise UnknownNameError("quantity", name, QUANTITIES)
        for site in (*self.kept, *self.layouts):
            if site not in self.sites:
                raise UnknownNameError("site among those that are read", site, self.sites)

    @property
    def kept(self) -> tuple[str, ...]:
        """The sites that are kept by position."""
        return (self.sites if self.positions else ()) if isinstance(self.positions, bool) else tuple(self.positions)

    @cached_property
    def loaded(self) -> LoadedModel | nn.Module:
        """The network on the CPU, as `load` gives it, or the module."""
        if isinstance(self.model, nn.Module):
            training = [name or "the model itself" for name, part in self.model.named_modules() if part.training]
            if training:
                raise ModelError(f"the model is in training mode ({training[0]}): call model.eval() first")
            return self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # random weights are the same in every process
            return load(
                self.model,
                weights=self.weights,
                pretrained=not self.random_weights,
                classes=self.classes,
                preprocessing=self.preprocessing,
            )

    @property
    def network(self) -> nn.Module:
        """The network itself, which takes normalised inputs."""
        return self.loaded.model if isinstance(self.loaded, LoadedModel) else self.loaded

    @property
    def normalisation(self) -> Preprocessing | None:
        """From pictures to the network's inputs."""
        return self.loaded.preprocessing if isinstance(self.loaded, LoadedModel) else self.preprocessing

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What decides the numbers."""
        network, preprocessing = self.network, self.normalisation
        named = self.model if isinstance(self.model, str) else type(network).__name__
        target = parse_target(self.target) if isinstance(self.target, str) else self.target
        baseline = baseline_inputs(self.baseline, preprocessing)
        named_baseline = isinstance(self.baseline, str) and self.baseline in BASELINES  # else a tensor or a file
        return {
            "model": {"name": named, "parameters": model_hash(network), "structure": structure_hash(network)},
            "preprocessing": None if preprocessing is None else described(preprocessing),
            "sites": list(self.sites),
            "algorithm": described(self.algorithm),
            "rules": self.rules if isinstance(self.rules, str) else described(self.rules),
            "target": target if isinstance(target, str) else described(target),
            "baseline": None if baseline is None else self.baseline if named_baseline else plain(baseline),
            "quantities": list(self.quantities),
            "reduction": {
                "positions": list(self.kept),
                "class_token": self.class_token,
                "heads": self.heads,
                "layouts": dict(self.layouts),
            },
            "strict": self.strict,
        }

    @property
    def about(self) -> Mapping[str, Any]:
        """What helps to find the network again, and to name its outputs."""
        found = self.loaded
        classes = list(found.classes.names) if isinstance(found, LoadedModel) else []
        return {"weights": self.weights, "random_weights": self.random_weights, "seed": self.seed, "classes": classes}

    @property
    def resources(self) -> Mapping[str, float]:
        """A GPU for each of Ray's actors, where one is asked for."""
        return {"num_gpus": 1} if self.device is not None and self.device.startswith("cuda") else {}

    def open(self, worker: int) -> Collection:
        """The network on its device. Raises `ModelError` where it is another one than the first process saw."""
        network = self.network
        if model_hash(network) != self.identity["model"]["parameters"]:
            raise ModelError("this process loads other weights than the one that began the extraction")
        here = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
        place = here if self.device is None else torch.device(self.device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", worker % max(1, torch.cuda.device_count()))
        if place != here:
            network = (deepcopy(network) if isinstance(self.model, nn.Module) else network).to(place)
        return Collection(self, network, place)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "loaded"}


class Collection:
    """A `ContributionCollector` with its network."""

    def __init__(self, of: ContributionCollector, network: nn.Module, device: torch.device) -> None:
        self.of, self.network, self.device = of, network, device
        self.rules = rule_set(of.rules) if isinstance(of.rules, str) else of.rules
        self.target = parse_target(of.target) if isinstance(of.target, str) else of.target
        baseline = baseline_inputs(of.baseline, of.normalisation)
        self.baseline = baseline.to(device) if isinstance(baseline, Tensor) else baseline
        self._layouts: dict[str, Layout] = {}

    def collect(self, samples: Sequence[Sample]) -> Collected:
        """The rows of some samples; where some are not finite, those are NaN and the others computed one by one."""
        try:
            return self._collect(samples)
        except NonFiniteError:
            if len(samples) == 1:
                raise
        found: list[Collected | None] = []
        for one in samples:
            try:
                found.append(self._collect([one]))
            except NonFiniteError:
                found.append(None)
        good = next((one for one in found if one is not None), None)
        if good is None:
            raise NonFiniteError(f"no sample from {samples[0].name!r} to {samples[-1].name!r} has finite contributions")
        return joined([good.map(_not_a_number) if one is None else one for one in found])

    def _collect(self, samples: Sequence[Sample]) -> Collected:
        x = self.inputs(samples)
        found = contribute(
            self.network,
            x,
            self.of.sites,
            self.targets(samples),
            algorithm=self.of.algorithm,
            rules=self.rules,
            baseline=self.baseline,
            internal_batch_size=self.of.internal_batch_size,
            strict=self.of.strict,
        )
        rows, positions = {}, {}
        values = {"contributions": found.values, "activations": found.activations, "gradients": found.gradients}
        for site in self.of.sites:
            layout = self._layout(site, found.activations[site], x)
            for quantity in self.of.quantities:
                value = values[quantity].pop(site)
                signed = reduce(value, layout, class_token=self.of.class_token, heads=self.of.heads)
                rows[site, quantity] = signed.positive.cpu(), signed.negative.cpu()
                if site in self.of.kept:
                    positions[site, quantity] = value.cpu()
        logits = found.outputs if found.outputs is not None and found.outputs.ndim == 2 else None
        return Collected(
            rows,
            positions,
            columns(found, logits),
            {site: value.cpu() for site, value in found.residual.items()},
            None if logits is None else logits.cpu(),
        )

    def inputs(self, samples: Sequence[Sample]) -> Tensor:
        """The network's inputs, normalised, on its device. Raises `InputError` for shapes that differ."""
        shapes = {tuple(one.inputs.shape) for one in samples}
        if len(shapes) > 1:
            raise InputError(f"samples of one batch have one shape, got {sorted(shapes)}: batch_size=1 takes any")
        x = torch.stack([one.inputs for one in samples]).to(self.device)
        preprocessing = self.of.normalisation
        x = x if preprocessing is None else preprocessing.normalise((x + 1) / 2)
        kinds = (parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point())
        return x.to(next(kinds, x.dtype))

    def targets(self, samples: Sequence[Sample]) -> Target:
        """The target of these samples. Raises `TargetError` where it is the label and one has none."""
        if self.target != LABEL:
            return as_target(self.target)
        without = next((one.name for one in samples if one.target is None), None)
        if without is not None:
            raise TargetError(f"the target is the label, and {without!r} has none")
        return Logit(torch.tensor([one.target for one in samples], device=self.device))

    def _layout(self, site: str, value: Tensor, x: Tensor) -> Layout:
        if site not in self._layouts:
            given = self.of.layouts.get(site)
            self._layouts[site] = layout_of(value, self.network, site, size=x.shape[2:], layout=given)
        return self._layouts[site]


def columns(found: Contributions, logits: Tensor | None) -> dict[str, Tensor]:
    """One number a sample: the score, that of the baseline where it was visited, and the predicted class."""
    named = {"score": found.scores.cpu()}
    if found.baseline_scores is not None:
        named["baseline_score"] = found.baseline_scores.cpu()
    return named if logits is None else {"prediction": logits.argmax(1).cpu(), **named}


def structure_hash(network: nn.Module) -> str:
    """A hash of the modules' classes and settings: activations have no weights, and decide the numbers all the same."""
    return hashlib.sha256(repr(network).encode()).hexdigest()[:16]


def described(value: Any) -> Any:
    """A setting as JSON can hold it: of data classes the class and the fields."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {one.name: described(getattr(value, one.name)) for one in fields(value) if one.init}
        return {"class": type(value).__name__, **own}
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    return plain(value)


def _not_a_number(value: Tensor) -> Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value
