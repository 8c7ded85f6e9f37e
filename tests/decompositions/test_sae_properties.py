"""What sparse autoencoders are for: atoms in superposition, coarse before fine, k at inference, stable mixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions import Decomposition, decomposition
from backlight.decompositions.archetypal_sae import ArchetypalSAE
from backlight.decompositions.batch_topk_sae import BatchTopKSAE
from backlight.decompositions.matching import dictionary_stability, match
from backlight.decompositions.matryoshka_sae import MatryoshkaSAE
from backlight.decompositions.topk_sae import TopKSAE

pytest.importorskip("sklearn")
ATOMS, CHANNELS, ACTIVE = 48, 24, 3


def superposed(rows: int = 8000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Twice as many atoms as channels, three of them in a row: atoms, rows, codes."""
    draw = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(ATOMS, CHANNELS, generator=draw))
    on = torch.rand(rows, ATOMS, generator=draw) < ACTIVE / ATOMS
    codes = (0.5 + torch.rand(rows, ATOMS, generator=draw)) * on
    return atoms, codes @ atoms, codes


def recovery(one: Decomposition, atoms: Tensor, x: Tensor, codes: Tensor) -> tuple[float, float]:
    """The mean largest cosine of true atoms, and the mean correlation of codes matched one to one (MCC)."""
    cosine = float((F.normalize(one.modes) @ atoms.T).max(0).values.mean())
    z = one.encode(x)
    correlation = match((z - z.mean(0)).T, (codes - codes.mean(0)).T)[2]
    return cosine, float(correlation.sum()) / len(atoms)


LEAST: dict[str, tuple[dict[str, Any], float, float]] = {
    "TopKSAE": ({"k": 3}, 0.95, 0.75),
    "BatchTopKSAE": ({"k": 3, "dead_after": 8000}, 0.9, 0.7),
    "JumpReLUSAE": ({"target": 3.0, "epochs": 40}, 0.95, 0.8),
    "ArchetypalSAE": ({"k": 3, "points": 128, "relaxation": 1.0}, 0.9, 0.7),
    "ReLUSAE": ({"l1": 0.15}, 0.8, 0.6),
}


@pytest.mark.parametrize("name", LEAST)
def test_atoms_in_superposition_are_found(name: str) -> None:
    settings, cosine, correlation = LEAST[name]
    atoms, x, codes = superposed()
    one = decomposition(name)(**{"n_modes": 72, "batch_size": 400, "learning_rate": 3e-3, "epochs": 20, **settings})
    found = recovery(one.fit(x[:7000]), atoms, x[7000:], codes[7000:])
    assert found[0] > cosine
    assert found[1] > correlation
    draw = torch.Generator().manual_seed(1)
    chance = F.normalize(torch.randn(72, CHANNELS, generator=draw)) @ atoms.T
    assert found[0] > float(chance.max(0).values.mean()) + 0.2


def test_the_threshold_keeps_k_on_average_and_depends_on_no_other_row() -> None:
    _, x, _ = superposed()
    for cls in (BatchTopKSAE, MatryoshkaSAE):
        one = cls(n_modes=72, k=4, batch_size=400, learning_rate=3e-3, epochs=10).fit(x[:7000], held_out=x[7000:])
        z = one.encode(x[7000:])
        assert float((z > 0).sum(1).double().mean()) == pytest.approx(4, rel=0.08)
        assert one.history[-1].held_out_l0 == pytest.approx(4, rel=0.08)
        assert len(set((z > 0).sum(1).tolist())) > 4
        torch.testing.assert_close(one.encode(x[7000:7001]), z[:1], rtol=1e-4, atol=1e-5)
        assert float(z[z > 0].min()) > float(one.state["_threshold"]) - 1e-6


def test_early_groups_reconstruct_alone_what_others_of_their_size_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    parents = F.normalize(torch.randn(4, 32, generator=draw))
    children = F.normalize(parents.repeat_interleave(8, 0) + 0.12 * torch.randn(32, 32, generator=draw))
    which = torch.randint(32, (6000, 2), generator=draw)
    x = ((0.5 + torch.rand(6000, 2, 1, generator=draw)) * children[which]).sum(1)
    settings = {"n_modes": 32, "k": 3, "batch_size": 300, "learning_rate": 3e-3, "epochs": 20, "dead_after": 6000}
    nested = MatryoshkaSAE(**settings, groups=(0.125, 0.125, 0.25, 0.5)).fit(x[:5000])
    flat = BatchTopKSAE(**settings).fit(x[:5000])
    rows = x[5000:]

    def alone(one: Decomposition, chosen: Tensor) -> float:
        z = one.encode(rows)
        mask = torch.zeros(32).index_fill(0, chosen, 1.0)
        missing = rows - one.decode(z * mask)
        return float(missing.square().sum() / (rows - rows.mean(0)).square().sum())

    assert nested.prefixes() == [4, 8, 16, 32]
    for size in (4, 8, 16):
        first = alone(nested, torch.arange(size))
        for one in (nested, flat):  # random latents of its own, and of a dictionary without groups
            others = [alone(one, torch.randperm(32, generator=draw)[:size]) for _ in range(20)]
            assert first < min(others), (size, one)
    # what children have in common is a latent of the first two groups, and none where there are no groups
    near = (nested.modes[:8] @ parents.T).max(0).values
    assert float(near.min()) > 0.88
    assert float(near.min()) > float((flat.modes @ parents.T).max())


def test_mixtures_of_rows_stay_so_and_are_found_again() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(30, 16, generator=draw)
    x = centres[torch.randint(30, (3000,), generator=draw)] + torch.randn(3000, 16, generator=draw)
    settings = {"n_modes": 40, "k": 3, "batch_size": 300, "epochs": 10, "learning_rate": 3e-3}
    strict = [ArchetypalSAE(**settings, points=64, relaxation=0.0, seed=seed).fit(x) for seed in range(3)]
    relaxed = ArchetypalSAE(**{**settings, "learning_rate": 0.02}, points=64, relaxation=0.05).fit(x)
    free = [TopKSAE(**settings, seed=seed).fit(x) for seed in range(3)]
    length = float(x.double().square().sum(1).mean().sqrt())
    for one, bound in ((strict[0], 0.0), (relaxed, 0.05 * length)):
        mixture, points = one.state["mixture"], one.state["_points"]
        assert (mixture >= 0).all()
        torch.testing.assert_close(mixture.sum(1), torch.ones(40))
        rest = (one.modes - mixture @ points).norm(dim=1)
        assert float(rest.max()) <= bound * (1 + 1e-5) + 1e-6
        assert bool(rest.max() > 0.99 * bound) or not bound  # the relaxation is used up
        assert one.offset is None
    # k-means centres are means of rows, so that strict modes lie within the box of the rows, and their hull
    assert (strict[0].modes <= x.max(0).values + 1e-5).all()
    assert (strict[0].modes >= x.min(0).values - 1e-5).all()
    assert dictionary_stability(strict) > dictionary_stability(free) + 0.1


@pytest.mark.parametrize("normalise", ["global", "token"])
def test_codes_of_normalised_rows_are_in_the_rows_units(normalise: str) -> None:
    _, x, _ = superposed(1500)
    x = 40 * x + 7
    settings = {"n_modes": 72, "k": 4, "batch_size": 300, "learning_rate": 3e-3, "epochs": 8, "centre": "mean"}
    one = TopKSAE(**settings, normalise=normalise).fit(x, held_out=x[:200])
    state = one.state
    if normalise == "global":
        scale, level = x.double().square().sum(1).mean().sqrt().float(), torch.zeros(1)
        torch.testing.assert_close(state["_scale"], scale)
    else:
        scale, level = x.std(1, keepdim=True) + 1e-5, x.mean(1, keepdim=True)
    p = ((x - level) / scale - state["offset"]) @ state["encoder"].T + state["bias"]
    top = p.relu().topk(4, dim=1)
    z = torch.zeros_like(p).scatter(1, top.indices, top.values)
    torch.testing.assert_close(one.encode(x), z * scale, rtol=1e-3, atol=1e-3)
    told = (z @ one.modes + state["offset"]) * scale + level
    torch.testing.assert_close(one.reconstruct(x), told, rtol=1e-3, atol=1e-2)
    r2 = 1 - float((x[:200] - told[:200]).double().square().sum())
    assert one.history[-1].held_out_r2 == pytest.approx(
        1 + (r2 - 1) / float((x[:200] - x[:200].mean(0)).double().square().sum()), abs=1e-4
    )
    given = x[:5].clone().requires_grad_()
    latent = int(z[0].argmax())
    (gradient,) = torch.autograd.grad(one.latents(given, torch.tensor([latent]))[0].sum(), given)
    torch.testing.assert_close(gradient[0], one.encoder_rows(torch.tensor([latent]))[0])
    assert not gradient[1:].any()
    if normalise == "global":
        torch.testing.assert_close(one.decode(one.encode(x)), told, rtol=1e-3, atol=1e-2)
        # ten times the rows is the same dictionary, with codes ten times as large
        other = TopKSAE(**settings, normalise=normalise).fit(10 * x)
        torch.testing.assert_close(other.modes, one.modes, atol=0.02, rtol=0)
    else:
        # a row times a number and plus another has its codes times the number
        torch.testing.assert_close(one.encode(3 * x + 5), 3 * one.encode(x), rtol=1e-2, atol=0.1)
