"""Each decomposition: claims of the registry, closed forms, literal references, and what was planted is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decomposition_data import matched, planted
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.decompositions import DECOMPOSITIONS, Decomposition, decomposition
from backlight.decompositions.class_means import ClassMeans
from backlight.decompositions.decomposition import Work, count_modes
from backlight.decompositions.k_means import KMeans
from backlight.decompositions.nmf import NMF, nonnegative_loadings
from backlight.decompositions.pca import PCA
from backlight.decompositions.relu_sae import ReLUSAE
from backlight.decompositions.scaling import kept
from backlight.decompositions.threshold_sae import ThresholdSAE
from backlight.decompositions.topk_sae import TopKSAE
from backlight.decompositions.training import _Training, generator
from backlight.errors import InputError, NonFiniteError, UnknownNameError
from backlight.store.rows import TensorRows

pytest.importorskip("sklearn")

QUICK: dict[str, dict[str, Any]] = {
    "ThresholdSAE": {"epochs": 3, "learning_rate": 1e-3, "threshold": 0.5, "n_modes": 12},
    "ReLUSAE": {"epochs": 3, "revive_every": 1, "n_modes": 12},
    "TopKSAE": {"epochs": 3, "k": 3, "n_modes": 12},
    "BatchTopKSAE": {"epochs": 3, "k": 3, "n_modes": 12, "batch_size": 50, "threshold_rate": 0.3},
    "MatryoshkaSAE": {"epochs": 3, "k": 3, "n_modes": 16, "batch_size": 50, "threshold_rate": 0.3},
    "JumpReLUSAE": {"epochs": 3, "target": 3.0, "n_modes": 12, "batch_size": 50},
    "ArchetypalSAE": {"epochs": 3, "k": 3, "n_modes": 12, "points": 20, "batch_size": 50},
    "NMF": {"epochs": 3, "batch_size": 50, "n_modes": 8},
    "PCA": {"n_modes": 8},
    "KMeans": {"epochs": 3, "n_modes": 8},
    "BisectingKMeans": {"n_modes": 8},
    "SparseDictionaryLearning": {"epochs": 2, "batch_size": 50, "n_modes": 12},
    "ClassMeans": {},
}


def quick(name: str, **settings: Any) -> Decomposition:
    return decomposition(name)(**{**QUICK[name], **settings})


def fitted(name: str, x: Tensor, **given: Any) -> Decomposition:
    return quick(name).fit(x, labels=torch.arange(len(x)) % 5, **given)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_what_is_claimed_holds(name: str, tmp_path: Path) -> None:
    x, _ = planted(150, channels=12)
    told = []
    state = torch.random.get_rng_state()
    one = fitted(name, x, held_out=x[:20], progress=told.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    z, modes = one.encode(x), one.modes
    assert z.shape == (150, len(modes))
    assert modes.shape[1] == 12
    assert not z.requires_grad
    assert not modes.requires_grad
    expected = z @ modes + (0 if one.offset is None else one.offset)
    torch.testing.assert_close(one.decode(z), expected)
    torch.testing.assert_close(one.encode(x[7:8]), z[7:8], rtol=1e-4, atol=1e-5)  # whatever rows are beside it
    if "nonnegative loadings" in one.claims:
        assert (z >= 0).all()
        assert (z > 0).any()
    if "nonnegative modes" in one.claims:
        assert (modes >= 0).all()
    if "unit modes" in one.claims:
        torch.testing.assert_close(modes.norm(dim=1), torch.ones(len(modes)))
    if "orthogonal modes" in one.claims:
        torch.testing.assert_close(modes @ modes.T, torch.eye(len(modes)), atol=1e-5, rtol=0)
    if "one mode" in one.claims:
        assert ((z > 0).sum(1) == 1).all()
    assert [epoch.number for epoch in told] == list(range(1, len(told) + 1))
    one.save(tmp_path)
    again = Decomposition.load(tmp_path)
    assert type(again) is type(one)
    assert again.settings() == one.settings()
    assert again.history == one.history
    assert torch.equal(again.encode(x), z)
    assert torch.equal(again.decode(z), one.decode(z))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_two_fits_are_equal_and_another_seed_is_not(name: str) -> None:
    x, _ = planted(150, channels=12)
    labels = torch.arange(150) % 5
    one, two, other = (quick(name, seed=seed).fit(x, labels=labels).modes for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (name in ("PCA", "ClassMeans"))


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_rows_that_are_read_are_rows_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Read:
        """Rows that cannot be told to be in memory."""

        shape = (150, 12)

        def read(self, start: int, stop: int) -> Tensor:
            return x[start:stop].clone()

    x, _ = planted(150, channels=12)
    labels = torch.arange(150) % 5
    expected = fitted(name, x).modes
    for limit in (0, 2**30):
        monkeypatch.setattr(sys.modules[Decomposition.__module__], "kept", lambda rows, most=limit: kept(rows, most))
        assert torch.equal(quick(name).fit(Read(), labels=labels).modes, expected)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_errors_say_what_is_expected(name: str, tmp_path: Path) -> None:
    x, _ = planted(60, channels=12)
    with pytest.raises(InputError, match="call fit"):
        quick(name).encode(x)
    one = fitted(name, x)
    with pytest.raises(InputError, match=r"\[n, 12\]"):
        one.encode(x[:, :5])
    with pytest.raises(InputError, match="expected loadings"):
        one.decode(x[:, :3])
    with pytest.raises(InputError, match="5 channels"):
        fitted(name, x, held_out=x[:, :5])
    broken = x.clone()
    broken[9, 2] = torch.nan
    if name != "ClassMeans":
        with pytest.raises(NonFiniteError, match="row 9"):
            fitted(name, broken)
    one.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "class": "Nonsense"}))
    with pytest.raises(UnknownNameError, match="Nonsense"):
        Decomposition.load(tmp_path)


def test_names_and_numbers() -> None:
    assert decomposition("topk-sae") is TopKSAE
    with pytest.raises(UnknownNameError, match="KMeans"):
        decomposition("kmean")
    assert [count_modes(given, 320) for given in ("3x", "0.5x", 7, "7")] == [960, 160, 7, 7]
    for wrong in (0, "x", "-1x", "many"):
        with pytest.raises(InputError, match="got"):
            count_modes(wrong, 320)


class Literal(nn.Module):
    """The paper's autoencoder as its sections say it, of torch's own layers."""

    def __init__(self, state: dict[str, Tensor], nonnegative: bool, threshold: float) -> None:
        super().__init__()
        width, channels = state["first.weight"].shape
        modes = len(state["head"])
        self.encoder = nn.Sequential(
            nn.Linear(channels, width),
            nn.Dropout(0.0),
            nn.ReLU(),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Dropout(0.0),
            nn.ReLU(),
            nn.LayerNorm(width),
            nn.Linear(width, modes, bias=False),
            nn.Sigmoid(),
        )
        self.dictionary = nn.Parameter(state["dictionary"].clone())
        self.nonnegative, self.threshold = nonnegative, threshold
        names = ("first.weight", "first.bias", "first.scale", "first.shift")
        names += tuple(name.replace("first", "second") for name in names)
        with torch.no_grad():
            for parameter, name in zip(self.encoder.parameters(), (*names, "head"), strict=True):
                parameter.copy_(state[name])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.encoder(x)
        z = s * (s >= self.threshold).float()
        dictionary = self.dictionary.relu() if self.nonnegative else self.dictionary
        return z @ dictionary, z, dictionary


@pytest.mark.parametrize("nonnegative", [True, False])
def test_the_papers_autoencoder_is_its_formulas_over_steps(nonnegative: bool) -> None:
    x, _ = planted(30, channels=6)
    settings = {"n_modes": 18, "dropout": 0.0, "threshold": 0.6, "learning_rate": 0.01, "batch_size": 30, "hidden": 5}
    begun = ThresholdSAE(**settings, epochs=1, nonnegative=nonnegative)
    work = Work(TensorRows(x))
    state = begun._initial(work, 18, generator(torch.device("cpu"), 0, 1))
    literal = Literal(state, nonnegative, 0.6)
    optimiser = torch.optim.Adam(literal.parameters(), lr=0.01)
    for _ in range(3):
        decoded, _, dictionary = literal(x)
        loss = ((decoded - x) ** 2).mean() + 5e-5 * dictionary.abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    one = ThresholdSAE(**settings, epochs=3, nonnegative=nonnegative).fit(x)
    assert one.history[-1].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    decoded, z, dictionary = literal.eval()(x)
    assert 0 < float((z > 0).float().mean()) < 1
    torch.testing.assert_close(one.encode(x), z.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.modes, dictionary.detach(), rtol=1e-4, atol=1e-5)


def test_the_papers_autoencoder_begins_and_drops_as_it_says() -> None:
    x, _ = planted(400, channels=30)
    one = ThresholdSAE()
    assert (one.count(30), one.threshold, one.epochs, one.learning_rate, one.batch_size) == (90, 0.9, 300, 5e-5, 128)
    work = Work(TensorRows(x))
    one.state = one._initial(work, 90, generator(torch.device("cpu"), 0, 1))
    assert one.state["first.weight"].shape == (30, 30)
    bound = (6 / (90 + 30)) ** 0.5
    assert 0.98 * bound < float(one.state["dictionary"].abs().max()) <= bound
    assert 0.98 * 30**-0.5 < float(one.state["head"].abs().max()) <= 30**-0.5
    assert (one.modes >= 0).all()
    assert 0.4 < float((one.modes == 0).float().mean()) < 0.6  # the ReLU's: they have no gradient, and stay
    many = ThresholdSAE(dropout=0.5)
    many.state = {**one.state, "second.weight": torch.eye(30), "second.bias": torch.zeros(30)}
    draw = generator(torch.device("cpu"), 0, 2)
    dropped = many._hidden(x, draw)
    assert not torch.equal(dropped, many._hidden(x, draw))
    assert torch.equal(many._hidden(x), many._hidden(x))
    z = one.encode(x)
    assert ((z == 0) | (z >= 0.9)).all()
    reference = ThresholdSAE.preset("reference")
    assert (reference.nonnegative, reference.hidden, reference.threshold) == (False, 2048, 0.8)
    assert ThresholdSAE.preset("retina", epochs=2).count(16) == 160


def test_entries_that_begin_negative_stay_zero_under_the_relu_and_not_when_projected() -> None:
    x, _ = planted(200, channels=12)
    settings = {"n_modes": 24, "epochs": 5, "learning_rate": 1e-2, "threshold": 0.5}
    for projected in (False, True):
        one = ThresholdSAE(**settings, projected=projected)
        work = Work(TensorRows(x))
        begun = one._initial(work, 24, generator(torch.device("cpu"), 0, 1))["dictionary"]
        one.fit(x)
        assert (one.modes >= 0).all()
        frozen = (one.modes == 0) & (begun <= 0)
        assert bool(frozen.sum() == (begun < 0).sum()) is (not projected or not (begun < 0).any())
    assert (begun >= 0).all()


def test_rows_that_modes_cannot_add_up_to_are_refused() -> None:
    x, _ = planted(40, channels=6)
    for settings in ({}, {"projected": True}):
        with pytest.raises(InputError, match=r"row 0 has negative entries.*nonnegative=False"):
            ThresholdSAE(**settings, epochs=1).fit(x - 1)
    one = ThresholdSAE.preset("revived", nonnegative=False, epochs=1).fit(x - 1)
    assert (one.modes < 0).any()


@pytest.mark.parametrize("name", ["ThresholdSAE", "ReLUSAE", "TopKSAE", "BatchTopKSAE", "MatryoshkaSAE", "JumpReLUSAE"])
def test_autocast_rounds_and_leaves_float32(name: str) -> None:
    x, _ = planted(150, channels=12)
    one, rounded = (quick(name, autocast=autocast).fit(x) for autocast in (False, True))
    assert rounded.modes.dtype == torch.float32
    assert not torch.equal(one.modes, rounded.modes)
    torch.testing.assert_close(one.modes, rounded.modes, atol=0.02, rtol=0)
    assert rounded.history[-1].loss == pytest.approx(one.history[-1].loss, rel=0.05)


def test_schedules_change_the_rate() -> None:
    x, _ = planted(20, channels=4)
    one = ThresholdSAE(epochs=30, schedule="step", hidden=3, n_modes=4)
    run = _Training(one, Work(TensorRows(x)), torch.device("cpu"))
    rates = []
    for _ in range(26):
        rates.append(run.optimiser.param_groups[0]["lr"])
        run.run_pass()
    assert rates[0] == rates[24] == 5e-5
    assert rates[25] == pytest.approx(5e-5 * 0.98)
    other = ThresholdSAE(epochs=30, schedule="plateau", n_modes=4)
    plateau = _Training(other, Work(TensorRows(x)), torch.device("cpu"))
    for loss in [1.0] * 12:
        plateau.schedule.step(loss)
    assert plateau.optimiser.param_groups[0]["lr"] == 2.5e-5  # after ten epochs that were no better, the eleventh
    with pytest.raises(InputError, match="plateau"):
        ThresholdSAE(schedule="cosinus").fit(x)


def test_off_is_off_without_a_surrogate_and_comes_back_with_it() -> None:
    x, _ = planted(300)
    settings = {"epochs": 20, "batch_size": 20, "n_modes": 48, "learning_rate": 3e-3}
    paper = ThresholdSAE(**settings).fit(x)
    revived = ThresholdSAE.preset("revived", **settings).fit(x)
    assert paper.history[-1].alive < 12
    assert revived.history[-1].alive > 36
    assert revived.history[-1].r2 > paper.history[-1].r2 + 0.2
    z, s = revived.encode(x), torch.sigmoid(revived._hidden(x) @ revived.state["head"].T)
    torch.testing.assert_close(z, torch.where(s >= 0.9, s, 0.0))  # the surrogate changes gradients alone
    hidden, weight = revived._hidden(x)[:1].detach(), revived.state["head"]
    gradients = []
    for surrogate in (0.0, 0.1):
        weight.requires_grad_()
        (gradient,) = torch.autograd.grad(revived._codes(hidden, surrogate).sum(), weight)
        gradients.append(gradient)
    on = z[0] > 0
    torch.testing.assert_close(gradients[0][on], gradients[1][on])
    slope = (s[0] * (1 - s[0]))[:, None].detach()
    assert not gradients[0][~on].any()
    torch.testing.assert_close(gradients[1][~on], 0.1 * (slope * hidden)[~on])
    with pytest.raises(InputError, match="surrogate"):
        ThresholdSAE(revive_every=5).fit(x)


def test_dead_modes_become_what_is_missing_and_forget_their_past() -> None:
    x, _ = planted(100, channels=12)
    one = ReLUSAE(n_modes=6, epochs=10, revive_every=1)
    run = _Training(one, Work(TensorRows(x)), torch.device("cpu"))
    run.run_pass()
    assert run.revived == 0
    with torch.no_grad():
        one.state["bias"][2] = -100.0
    assert run.optimiser.state[run.trained["modes"]]["exp_avg"][2].any()
    before = {name: tensor.detach().clone() for name, tensor in one.state.items()}
    run.run_pass()
    assert run.revived == 1
    assert run.history[-1].alive == 5  # counted before the revival
    assert float(one.state["bias"][2].detach()) == 0
    assert not run.optimiser.state[run.trained["modes"]]["exp_avg"][2].any()
    assert run.optimiser.state[run.trained["modes"]]["exp_avg"][1].any()
    assert float((one.modes[2] * before["modes"][2]).sum().abs()) < 0.99
    torch.testing.assert_close(one.modes[2].norm(), torch.tensor(1.0))
    run.number = 7  # of ten: what is revived later would not be trained
    with torch.no_grad():
        one.state["bias"][2] = -100.0
    run.run_pass()
    assert run.revived == 1


@pytest.mark.parametrize(
    ("one", "least"),
    [
        (NMF(n_modes=10, epochs=60, batch_size=200), 0.9),
        (ReLUSAE(n_modes=20, epochs=100, learning_rate=3e-3), 0.8),
        (TopKSAE(n_modes=20, k=3, epochs=60, learning_rate=3e-3), 0.85),
        (ThresholdSAE.preset("revived", n_modes=48, learning_rate=3e-3, epochs=50), 0.75),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Decomposition) else "",
)
def test_planted_parts_are_found(one: Decomposition, least: float) -> None:
    x, parts = planted()
    one.fit(x[:500], held_out=x[500:])
    draw = torch.Generator().manual_seed(0)
    # chance: as many modes, with the entries of each in another order
    shuffled = torch.stack([mode[torch.randperm(24, generator=draw)] for mode in one.modes])
    assert matched(one.modes, parts) > least
    assert matched(one.modes, parts) > matched(shuffled, parts) + 0.05
    last = one.history[-1]
    assert last.held_out_r2 is not None
    assert last.held_out_r2 > 0.6


def test_unit_modes_gradients_have_no_part_along_them() -> None:
    x, _ = planted(50)
    one = ReLUSAE(n_modes=6, epochs=1).fit(x)
    modes = one.state["modes"].clone().requires_grad_()
    one.state["modes"] = modes
    modes.grad = torch.randn(6, 24)
    with torch.no_grad():
        one._before_step()
    torch.testing.assert_close((modes.grad * modes.detach()).sum(1), torch.zeros(6), atol=1e-6, rtol=0)


def test_relu_and_topk_are_their_formulas() -> None:
    x, _ = planted(50)
    one = ReLUSAE(n_modes=6, epochs=2).fit(x)
    w, c, b = (one.state[name] for name in ("encoder", "bias", "offset"))
    z = ((x - b) @ w.T + c).clamp(min=0)
    torch.testing.assert_close(one.encode(x), z)
    found = one._pass(x, generator(torch.device("cpu"), 0), torch.zeros(6, dtype=torch.bool))
    expected = F.mse_loss(z @ one.modes + b, x) + 0.1 * z.sum() / 50 / 24**0.5
    torch.testing.assert_close(found.loss, expected)

    k = TopKSAE(n_modes=6, k=2, epochs=2).fit(x)
    w, c, b = (k.state[name] for name in ("encoder", "bias", "offset"))
    z = ((x - b) @ w.T + c).clamp(min=0)
    kept = torch.zeros_like(z)
    for row, values in enumerate(z):
        for place in values.argsort(descending=True)[:2]:
            kept[row, place] = values[place]
    torch.testing.assert_close(k.encode(x), kept)
    silent = torch.tensor([True, False, True, False, True, True])
    missing = x - (kept @ k.modes + b)
    only = z * silent
    told = torch.zeros_like(z).scatter(1, only.topk(4).indices, only.topk(4).values) @ k.modes
    expected = F.mse_loss(kept @ k.modes + b, x) + F.mse_loss(told, missing) / 32
    torch.testing.assert_close(k._pass(x, generator(torch.device("cpu"), 0), silent).loss, expected)
    with pytest.raises(InputError, match="from 1 to"):
        TopKSAE(n_modes=6, k=7).fit(x)


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA as Theirs

    x, _ = planted(300)
    ours, theirs = PCA(n_modes=7).fit(x), Theirs(7, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(ours.modes.numpy(), theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.encode(x).numpy(), theirs.transform(x.double().numpy()), atol=1e-4)
    np.testing.assert_allclose(ours.state["variance"].numpy(), theirs.explained_variance_, rtol=1e-5)
    with pytest.raises(InputError, match="as many modes as channels"):
        PCA(n_modes=25).fit(x)


def test_k_means_is_scikit_learns_from_the_same_centres() -> None:
    from sklearn.cluster import KMeans as Theirs
    from sklearn.cluster import kmeans_plusplus

    x, _ = planted(300)
    first = kmeans_plusplus(x.numpy(), 8, random_state=4)[0]
    theirs = Theirs(8, init=first, n_init=1, algorithm="lloyd").fit(x.numpy())
    ours = KMeans(n_modes=8, seed=4).fit(x)
    np.testing.assert_allclose(ours.modes.numpy(), theirs.cluster_centers_, atol=1e-4)
    assert (ours.encode(x).argmax(1).numpy() == theirs.predict(x.numpy())).all()
    with pytest.raises(InputError, match="400 centres of 300 rows"):
        KMeans(n_modes=400).fit(x)


def test_a_centre_without_rows_takes_the_farthest_row() -> None:
    x = torch.cat((torch.zeros(5, 2), torch.ones(5, 2), torch.tensor([[9.0, 9.0]])))
    one = KMeans(n_modes=3, epochs=1)
    one._first = lambda work, count: torch.tensor([[0.0, 0.0], [1.5, 1.5], [50.0, 50.0]])  # type: ignore[method-assign]
    assert one.fit(x).modes.tolist() == [[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]


def test_nmf_is_scikit_learns_batch_by_batch() -> None:
    from sklearn.decomposition import MiniBatchNMF

    x, _ = planted(120)
    ours = NMF(n_modes=6, epochs=4, batch_size=120).fit(x)
    draw = generator(torch.device("cpu"), 0, 1)
    begun = ((float(x.double().mean()) / 6) ** 0.5 * torch.randn((6, 24), generator=draw).abs()).numpy()
    theirs = MiniBatchNMF(6, init="custom", fresh_restarts=True, batch_size=120)
    rng = np.random.default_rng
    for epoch in range(4):
        draws = rng((0, epoch))
        draws.permutation(1)
        order = draws.permutation(120)
        batch = x.numpy()[order]
        given = {} if epoch else {"H": begun.copy(), "W": np.ones((120, 6), dtype=np.float32)}
        theirs.partial_fit(batch, **given)
    np.testing.assert_allclose(ours.modes.numpy(), theirs.components_, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="row 3 has negative"):
        NMF(n_modes=2).fit(x - 5 * F.one_hot(torch.tensor(3), 120)[:, None])


def test_nonnegative_loadings_are_least_squares() -> None:
    from scipy.optimize import nnls

    draw = torch.Generator().manual_seed(1)
    modes, x = torch.rand(9, 14, generator=draw).double(), torch.randn(12, 14, generator=draw).double() + 0.3
    found = nonnegative_loadings(x, modes, tolerance=1e-9)
    expected = np.stack([nnls(modes.numpy().T, row)[0] for row in x.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_class_means_are_means_and_their_own_loadings() -> None:
    x, _ = planted(100)
    labels = torch.arange(100) % 4
    labels[labels == 3] = -1
    labels[labels == 2] = 7
    one = ClassMeans().fit(x, labels=labels)
    assert one.classes.tolist() == [0, 1, 7]
    torch.testing.assert_close(one.modes, torch.stack([x[labels == label].mean(0) for label in (0, 1, 7)]))
    torch.testing.assert_close(one.encode(one.modes), torch.eye(3), atol=1e-4, rtol=0)
    residual = x - one.decode(one.encode(x))
    torch.testing.assert_close(residual @ one.modes.T, torch.zeros(100, 3), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="labels"):
        ClassMeans().fit(x)
    with pytest.raises(InputError, match="classes"):
        ClassMeans(n_modes=5).fit(x, labels=labels)
    with pytest.raises(InputError, match="no row has a label"):
        ClassMeans().fit(x, labels=torch.full((100,), -1))
