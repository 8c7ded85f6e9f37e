"""CODEC's analysis of a retina network: contributions to surprisal, their modes, and the cells that go with them.

Modes are fitted on one movie and read on another: what is told of them is told of frames that they have not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.algorithms import HiddenIntegratedGradients
from backlight.contributions.collector import ContributionCollector
from backlight.contributions.decompose import chosen, decompose
from backlight.contributions.decomposed import Decomposed
from backlight.decompositions.decomposition import Decomposition
from backlight.decompositions.folder import make_folder
from backlight.decompositions.scaling import Scaled
from backlight.decompositions.scores import score
from backlight.engine.surprisal import Surprisal
from backlight.errors import InputError
from backlight.evaluation.identity import combined_hash, names_hash, tensor_hash
from backlight.evaluation.samples import TensorSamples
from backlight.models.retina import RetinaNetwork, predict
from backlight.retina.clusters import Agreement, CellClusters, agreement, cell_modes, cluster_cells, standardised
from backlight.retina.recording import Recording
from backlight.shapes import Float, Int
from backlight.store.arrays import part
from backlight.store.extraction import Progress, extract
from backlight.store.rows import Rows, pieces
from backlight.store.store import Store

SITES = ("first.convolution", "second.convolution")  # before the nonlinearity, as in the reference
SITES_AFTER = ("first.activation", "second.activation")
STEPS = 20
QUANTITIES = ("contributions", "activations")
METHOD = "ThresholdSAE:retina_revived"  # of the published preset, "retina", hardly any mode is ever on


@dataclass(frozen=True, eq=False)
class SiteModes:
    """The modes of a site. All but `decomposed` are of the held-out movie.

    `decomposed`: the fit. `loadings` `[n, K]`. `association` `[cells, K]`: correlations of rates with loadings.
    `clusters`: of the cells, by their rows of `association`. `r2`: of the rows; None where they do not vary.
    """

    site: str
    decomposed: Decomposed
    loadings: Float[Tensor, "n K"]
    association: Float[Tensor, "cells K"]
    clusters: CellClusters
    r2: float | None

    @property
    def alive(self) -> Int[Tensor, "k"]:
        """Modes that are on in at least one frame of the held-out movie."""
        return (self.loadings != 0).any(0).nonzero().flatten()

    @property
    def l0(self) -> float:
        """Modes that are on in a frame, on average."""
        return float((self.loadings != 0).double().sum(1).mean())

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "site": self.site,
            "method": self.decomposed.identity["method"],
            "quantity": self.decomposed.quantity,
            "modes": self.loadings.shape[1],
            "alive": len(self.alive),
            "l0": self.l0,
            "r2_fitted_movie": self.decomposed.report["fitted"]["r2"],
            "r2_held_out_movie": self.r2,
            "clusters": self.clusters.labels.tolist(),
            "silhouettes": {str(k): value for k, value in self.clusters.silhouettes.items()},
        }


@dataclass(frozen=True, eq=False)
class RetinaAnalysis:
    """What `analyse_retina` finds. `rates` `[n, cells]`: the network's, on the held-out movie."""

    network: RetinaNetwork
    held_out: Recording
    target: Surprisal
    rates: Float[Tensor, "n cells"]
    sites: dict[str, SiteModes]

    def types(self, *, seed: int = 0) -> dict[str, Agreement]:
        """Clusters of the cells at each site against the cells' types, where the recording tells these; else empty."""
        told = self.held_out.about.get("types")
        if told is None or len(told) != self.rates.shape[1]:
            return {}
        truth = torch.tensor([sorted(set(told)).index(name) for name in told])
        return {site: agreement(modes.clusters.labels, truth, seed=seed) for site, modes in self.sites.items()}


def surprisal(network: RetinaNetwork, recording: Recording, shrinkage: float | str = "ledoit_wolf") -> Surprisal:
    """The target: how unlikely a population response is, by mean and covariance of the network's own on a movie.

    CODEC, section 7: (r - m)^T S^-1 (r - m) / 2; the reference takes `shrinkage=0.0` and the movie that it explains.
    """
    return Surprisal.fit(predict(network, recording.windows), shrinkage)


def extract_retina(
    network: RetinaNetwork,
    recording: Recording,
    target: Surprisal,
    folder: str | os.PathLike[str],
    *,
    sites: Sequence[str] = SITES,
    n_steps: int = STEPS,
    batch_size: int = 64,
    progress: Callable[[Progress], None] | None = None,
) -> Store:
    """Contributions and activations of the channels at every window, in a store; resumable.

    Integrated Gradients along the straight line from the mean luminance, n_steps + 1 forward and backward passes a
    batch for all sites. Rows of sign "concat" are [P, N]: for and against, summed over positions apart: 16 for 8
    channels.
    """
    collector = ContributionCollector(
        network, tuple(sites), HiddenIntegratedGradients(n_steps=n_steps), target=target, quantities=QUANTITIES
    )
    samples = TensorSamples(recording.windows)
    tell = (lambda _: None) if progress is None else progress
    return extract(collector, samples, folder, batch_size=batch_size, block=8 * batch_size, progress=tell)


def retina_rows(store: Store, site: str, quantity: str, one: Decomposition) -> Rows:
    """[P, N] `[n, 2 C]` of a site; [P, |N|] for decompositions of what is not negative."""
    rows = store.rows(site, quantity, "concat")
    return _Magnitudes(rows) if _unsigned(one) else rows


def analyse_retina(
    network: RetinaNetwork,
    fitted: Recording,
    held_out: Recording,
    folder: str | os.PathLike[str],
    *,
    method: str | Decomposition = METHOD,
    modes: int | str | None = None,
    sites: Sequence[str] = SITES,
    quantity: str = "contributions",
    n_steps: int = STEPS,
    shrinkage: float | str = "ledoit_wolf",
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str, Any], None] | None = None,
    **settings: Any,
) -> RetinaAnalysis:
    """Fit modes to one movie, and read them on another (CODEC, section 7 and figure 8).

    A call that was stopped goes on where it was; the stores are shared by all methods and quantities in one folder.

    Args:
        network: in evaluation mode.
        fitted, held_out: movies; the target's mean and covariance are of the first.
        method, modes, settings: see `decompose`; `ClassMeans` is given the cell that fires most, relative to its own.
        quantity: "contributions", or "activations" as a control.
        progress: called with what is done ("fitted", "held-out", a site) and its news.

    Raises:
        InputError: movies of another size than the network's, or settings of another run in the folder.
    """
    for recording in (fitted, held_out):
        if recording.counts.shape[2] != network.settings["cells"] or recording.frames != network.frames:
            raise InputError(
                f"a recording has {recording.counts.shape[2]} cells and {recording.frames} frames a window"
            )
    place = make_folder(Path(folder))
    target = surprisal(network, fitted, shrinkage)
    stores = {}
    for name, recording in (("fitted", fitted), ("held-out", held_out)):
        tell = None if progress is None else (lambda news, name=name: progress(name, news))
        where = place / f"{name}-{_key(target, sites, n_steps)}"
        stores[name] = extract_retina(
            network, recording, target, where, sites=sites, n_steps=n_steps, batch_size=batch_size, progress=tell
        )
    rates = {name: predict(network, one.windows) for name, one in (("fitted", fitted), ("held-out", held_out))}
    found = {}
    for site in sites:
        one = chosen(method, modes, seed, settings)
        tell = None if progress is None else (lambda news, site=site: progress(site, news))
        decomposed = decompose(
            _Magnitudes(stores["fitted"].rows(site, quantity, "concat")) if _unsigned(one) else stores["fitted"],
            site,
            one,
            place / f"{part(site)}-{quantity}-{type(one).__name__}-{_settings_key(one)}",
            quantity=quantity,
            sign="concat",
            held_out=0.1,
            seed=seed,
            labels=loudest(rates["fitted"]).numpy(),
            progress=tell,
        )
        rows = retina_rows(stores["held-out"], site, quantity, decomposed.decomposition)
        found[site] = read_modes(decomposed, rows, rates["held-out"], seed=seed)
    return RetinaAnalysis(network, held_out, target, rates["held-out"], found)


def read_modes(decomposed: Decomposed, rows: Rows, rates: Float[Tensor, "n cells"], *, seed: int = 0) -> SiteModes:
    """Modes on rows of a movie, beside the rates of the cells there."""
    scaled = Scaled(rows, decomposed.scale)
    loadings = torch.cat([decomposed.decomposition.encode(x) for _, x in pieces(scaled)])
    association = cell_modes(rates, loadings)
    clusters = cluster_cells(association, seed=seed)
    r2 = score(decomposed.decomposition, scaled).r2
    return SiteModes(decomposed.site, decomposed, loadings, association, clusters, r2)


def loudest(rates: Float[Tensor, "n cells"]) -> Int[Tensor, "n"]:
    """The cell whose rate is farthest above its mean, in its own standard deviations."""
    return standardised(rates).argmax(1)


def _unsigned(one: Decomposition) -> bool:
    return "nonnegative" in one.needs


@dataclass(frozen=True)
class _Magnitudes:
    """Rows of others without their signs."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        return self.rows.read(start, stop).abs()


def _key(target: Surprisal, sites: Sequence[str], n_steps: int) -> str:
    """What stores in one folder are told apart by."""
    hashes = (tensor_hash(target.mean), tensor_hash(target.covariance), str(target.shrinkage), str(n_steps))
    return combined_hash(*hashes, names_hash(sites))[:8]


def _settings_key(one: Decomposition) -> str:
    told: Mapping[str, Any] = one.settings()
    return names_hash([f"{name}={told[name]!r}" for name in sorted(told)])[:8]
