"""What an extraction stores is what `contribute` and `reduce` give, in whatever process, and nothing is left behind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contribution_networks import residual_network
from torch import nn

pytest.importorskip("zarr")

import backlight
from backlight.contributions import ActGrad, ContributionCollector, HiddenIntegratedGradients, contribute, reduce
from backlight.contributions.recipe import baseline_inputs, parse_target
from backlight.contributions.reduction import Layout
from backlight.data.images import Preprocessing
from backlight.data.labelled import Sample
from backlight.engine.targets import Contrast, Entropy, Function, Logit, LogProbability, Probability, TopK
from backlight.errors import BacklightError, InputError, ModelError, TargetError, UnknownNameError
from backlight.evaluation import TensorSamples
from backlight.store import extract

SITES = ("stem", "blocks.1", "blocks.1.conv:input", "fc:input")
CIFAR = "cifar10_resnet20"


def pictures(count: int = 5, size: int = 8, channels: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def samples(x: torch.Tensor, labels: list[int | None] | None = None) -> list[Sample]:
    given = [None] * len(x) if labels is None else labels
    return [Sample(f"s{place}", one, label) for place, (one, label) in enumerate(zip(x, given, strict=True))]


def test_rows_are_the_reduced_contributions_at_the_input(tmp_path: Path) -> None:
    model, x = residual_network(), pictures()
    algorithm = HiddenIntegratedGradients(n_steps=6)
    collector = ContributionCollector(model, SITES, algorithm=algorithm, positions=("stem",))
    found = collector.open(0).collect(samples(x))
    expected = contribute(model, x.double(), SITES, algorithm=algorithm)
    for site in SITES:
        layout = Layout("vectors" if site == "fc:input" else "maps")
        for name, value in (("contributions", expected.values), ("activations", expected.activations)):
            signed = reduce(value[site], layout)
            assert torch.equal(found.rows[site, name][0], signed.positive)
            assert torch.equal(found.rows[site, name][1], signed.negative)
    assert torch.equal(found.positions["stem", "gradients"], expected.gradients["stem"])
    assert {site for site, _ in found.positions} == {"stem"}
    assert torch.equal(found.columns["prediction"], expected.outputs.argmax(1))
    assert torch.equal(found.logits, expected.outputs)
    for site in ("stem", "blocks.1", "fc:input"):  # everything passes through them: complete
        total = sum(found.rows[site, "contributions"]).sum(1) + found.residuals[site]
        torch.testing.assert_close(total, found.columns["score"] - found.columns["baseline_score"])


def test_a_store_holds_it_in_single_precision(tmp_path: Path) -> None:
    model, x = residual_network(), pictures(5)
    collector = ContributionCollector(model, ("blocks.1",), algorithm=ActGrad(), baseline="none")
    store = extract(collector, TensorSamples(x, [0, 1, 2, 0, 1]), tmp_path, batch_size=2, block=4)
    expected = contribute(model, x.double(), "blocks.1", algorithm=ActGrad()).values["blocks.1"].sum((2, 3))
    torch.testing.assert_close(store.rows("blocks.1").read(0, 5), expected.float(), rtol=1e-5, atol=1e-6)
    assert "baseline_score" not in store.columns
    assert store.labels.tolist() == [0, 1, 2, 0, 1]
    assert store.identity["algorithm"] == {"class": "ActGrad"}
    assert store.identity["baseline"] is None


def test_quantities_heads_and_tokens_are_reduced_as_asked() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x[:, 0]).mean(1))

    torch.manual_seed(0)
    model, x = Tokens().eval(), pictures(3, 4)
    settings: dict[str, Any] = {"layouts": {"embed": "tokens+1"}, "algorithm": "ActGrad", "baseline": None}
    collector = ContributionCollector(
        model, ("embed",), class_token=False, heads=2, quantities=("contributions",), **settings
    )
    found = collector.open(0).collect(samples(x))
    value = contribute(model, x, "embed", algorithm="ActGrad").values["embed"][:, 1:]
    expected = value.clamp(min=0).sum(1).unflatten(1, (2, 3)).sum(2)
    assert list(found.rows) == [("embed", "contributions")]
    torch.testing.assert_close(found.rows["embed", "contributions"][0], expected)


def test_pictures_are_normalised_and_the_grey_baseline_is_the_mean_colour() -> None:
    loaded = backlight.load(CIFAR, pretrained=False)
    x = pictures(3, 32, 3)
    collector = ContributionCollector(CIFAR, ("layer3.2",), random_weights=True, seed=7)
    other = ContributionCollector(CIFAR, ("layer3.2",), random_weights=True, seed=8)
    assert collector.identity["model"] != other.identity["model"]
    found = collector.open(0).collect(samples(x))
    network: Any = collector.network
    inputs = loaded.preprocessing.normalise((x + 1) / 2)
    torch.testing.assert_close(found.logits, network(inputs))
    grey = network(torch.zeros(1, 3, 32, 32))
    expected = grey[0, found.columns["prediction"]]
    torch.testing.assert_close(found.columns["baseline_score"], expected)


def test_baselines_by_name_tensor_and_file(tmp_path: Path) -> None:
    preprocessing = Preprocessing((8, 8), (8, 8))
    colour = torch.full((3, 8, 8), -1.0)
    np.save(tmp_path / "mean.npy", colour.numpy())
    torch.save(colour, tmp_path / "mean.pt")
    black = preprocessing.normalise(torch.zeros(1, 3, 1, 1))
    for given in ("black", colour, tmp_path / "mean.npy", str(tmp_path / "mean.pt")):
        found = baseline_inputs(given, preprocessing)
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found.expand(1, 3, 8, 8), black.expand(1, 3, 8, 8))
    white = baseline_inputs("white", preprocessing)
    torch.testing.assert_close(white, preprocessing.normalise(torch.ones(1, 3, 1, 1)))
    assert [baseline_inputs(name, preprocessing) for name in ("grey", "blur", "mean")] == ["grey", "blur", "mean"]
    assert baseline_inputs("none", None) is None
    assert baseline_inputs(colour, None) is colour
    np.save(tmp_path / "whole.npy", np.zeros((3, 8, 8), np.int64))
    (tmp_path / "broken.npy").write_bytes(b"x")
    for given, said in (
        ("gray", "one of grey, black, white, blur, mean, none, or a file"),
        (tmp_path / "whole.npy", "no tensor of floating point"),
        (tmp_path / "broken.npy", "cannot read a baseline from"),
    ):
        with pytest.raises(InputError, match=said):
            baseline_inputs(given, preprocessing)
    with pytest.raises(InputError, match="'black' is not known without preprocessing"):
        baseline_inputs("black", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1", Logit()),
        ("top1:floating", Logit(floating=True)),
        ("top5", TopK(5)),
        ("top5:probability", TopK(5, probability=True)),
        ("top3:floating", TopK(3, floating=True)),
        ("logit:7", Logit(7)),
        ("probability", Probability()),
        ("probability:2", Probability(2)),
        ("log_probability", LogProbability()),
        ("contrast", Contrast()),
        ("contrast:floating", Contrast(floating=True)),
        ("contrast:3,4", Contrast(3, 4)),
        ("entropy", Entropy()),
        ("label", "label"),
    ],
)
def test_targets_by_name(text: str, expected: Any) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    "text", ["top", "top0x", "contrast:3", "logit:a", "entropy:2", "label:1", "", "probability:1:2"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match=r"unknown target .*; targets: top1"):
        parse_target(text)


def test_the_label_is_each_samples_own_class() -> None:
    model, x = residual_network(), pictures(3)
    collection = ContributionCollector(model, ("stem",), target="label", algorithm="ActGrad").open(0)
    found = collection.collect(samples(x, [2, 0, 1]))
    assert torch.equal(found.columns["score"], model(x.double())[torch.arange(3), torch.tensor([2, 0, 1])])
    with pytest.raises(TargetError, match="the target is the label, and 's1' has none"):
        collection.collect(samples(x, [2, None, 1]))


def test_a_pickled_recipe_has_no_network_and_gives_the_same_numbers() -> None:
    collector = ContributionCollector(CIFAR, ("layer2.0",), random_weights=True, rules="soft_pullback")
    here = collector.open(0).collect(samples(pictures(2, 32, 3)))
    sent = pickle.dumps(collector)
    assert len(sent) < 5000
    copy = pickle.loads(sent)
    assert "loaded" not in vars(copy)
    state = torch.get_rng_state()
    there = copy.open(1).collect(samples(pictures(2, 32, 3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert copy.identity == collector.identity
    for key, pair in here.rows.items():
        assert all(torch.equal(*both) for both in zip(pair, there.rows[key], strict=True))
    module = pickle.loads(pickle.dumps(ContributionCollector(residual_network(), ("stem",))))
    assert module.identity == ContributionCollector(residual_network(), ("stem",)).identity


def test_another_networks_weights_are_noticed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = backlight.load(CIFAR, pretrained=False).model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    collector = ContributionCollector(CIFAR, ("layer1.0",), weights=str(tmp_path / "w.safetensors"))
    assert collector.identity["model"]["name"] == CIFAR
    assert collector.about["weights"] == str(tmp_path / "w.safetensors")
    copy = pickle.loads(pickle.dumps(collector))
    state["linear.bias"] += 1
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="loads other weights"):
        copy.open(1)


def test_every_setting_that_decides_numbers_is_in_the_identity() -> None:
    model = residual_network()
    plain = ContributionCollector(model, ("stem",)).identity
    changes: list[dict[str, Any]] = [
        {"sites": ("stem", "fc")},
        {"algorithm": HiddenIntegratedGradients(n_steps=11)},
        {"rules": "pullback"},
        {"rules": backlight.rule_set("soft_pullback", temperature=2.0)},
        {"target": "top3"},
        {"target": Logit(2)},
        {"baseline": "blur"},
        {"baseline": torch.zeros(2, 8, 8)},
        {"baseline": torch.ones(2, 8, 8)},
        {"quantities": ("contributions",)},
        {"positions": True},
        {"class_token": False},
        {"heads": 2},
        {"layouts": {"stem": "maps"}},
        {"preprocessing": Preprocessing()},
    ]
    found = [str(ContributionCollector(model, **{"sites": ("stem",), **one}).identity) for one in changes]
    assert len({str(plain), *found}) == len(changes) + 1
    assert not any(" at 0x" in text for text in found)
    same = ContributionCollector(model, ("stem",), device="cpu", internal_batch_size=1)
    assert same.identity == plain
    other = residual_network()
    other.fc.bias.data[0] += 1e-9
    assert ContributionCollector(other, ("stem",)).identity != plain


def test_a_sample_without_finite_contributions_leaves_the_others(tmp_path: Path) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack((self.scale(x.flatten(1)[:, :1]).abs()[:, 0].sqrt(), x.flatten(1).sum(1)), 1)

    model = Root().eval()
    nn.init.ones_(model.scale.weight)
    nn.init.zeros_(model.scale.bias)
    x = pictures(4)
    x[2, 0, 0, 0] = 0.0  # the root has no derivative there
    collector = ContributionCollector(model, ("scale",), target="logit:0", algorithm="ActGrad", baseline=None)
    store = extract(collector, TensorSamples(x), tmp_path, batch_size=4)
    assert store.names == ["0", "1", "3"]
    assert [one.sample for one in store.skipped] == ["2"]
    expected = contribute(model, x[[0, 1, 3]], "scale", 0, algorithm="ActGrad").values["scale"]
    torch.testing.assert_close(store.rows("scale").read(0, 3), expected)
    with pytest.raises(InputError, match="no sample"):
        extract(collector, TensorSamples(x[[2, 2]]), tmp_path / "none")
    alone = extract(collector, TensorSamples(x), tmp_path / "alone", batch_size=1)
    assert alone.names == store.names
    assert "not finite" in alone.skipped[0].reason


def test_what_has_no_weights_is_part_of_the_identity() -> None:
    """Activations and target functions decide the numbers, too: a store of others is not gone on with."""
    relu, gelu = (nn.Sequential(nn.Linear(2, 2), one, nn.Linear(2, 2)).eval() for one in (nn.ReLU(), nn.GELU()))
    gelu.load_state_dict(relu.state_dict())
    assert ContributionCollector(relu, ("0",)).identity != ContributionCollector(gelu, ("0",)).identity
    with pytest.raises(TargetError, match="lambda"):
        ContributionCollector(relu, ("0",), target=Function(lambda outputs: outputs[:, 0]))


def test_without_a_baseline_the_algorithm_decides() -> None:
    """ActGrad without one is h g, as in `contribute`; a path begins at the mean colour."""
    model, x = residual_network(), pictures(2)
    for algorithm in ("ActGrad", "HiddenIntegratedGradients"):
        found = ContributionCollector(model, ("stem",), algorithm=algorithm, positions=True).open(0).collect(samples(x))
        expected = contribute(model, x.double(), "stem", algorithm=algorithm).values["stem"]
        torch.testing.assert_close(found.positions["stem", "contributions"], expected)


def test_nothing_is_left_on_the_module() -> None:
    model = residual_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ContributionCollector(model, SITES).open(0).collect(samples(pictures(2)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.training


def test_what_does_not_fit_is_said_before_anything_is_loaded() -> None:
    for wrong, said in (
        ({"sites": ()}, "at least one address"),
        ({"sites": "stem"}, "at least one address"),
        ({"algorithm": "ActGard"}, "close matches: ActGrad"),
        ({"rules": "softpullback"}, "close matches: soft_pullback"),
        ({"target": "top"}, "unknown target"),
        ({"quantities": ("contribution",)}, "close matches: contributions"),
        ({"positions": ("fc",)}, "site among those that are read 'fc'"),
        ({"layouts": {"fc": "maps"}}, "site among those that are read 'fc'"),
    ):
        with pytest.raises(BacklightError, match=said):
            ContributionCollector("nowhere", **{"sites": ("stem",), **wrong})
    with pytest.raises(ModelError, match="training mode"):
        _ = ContributionCollector(residual_network().train(), ("stem",)).identity
    with pytest.raises(UnknownNameError):
        ContributionCollector(residual_network(), ("stum",)).open(0).collect(samples(pictures(1)))
    mixed = [Sample("a", pictures(1)[0], None), Sample("b", pictures(1, 6)[0], None)]
    with pytest.raises(InputError, match="samples of one batch have one shape"):
        ContributionCollector(residual_network(), ("stem",)).open(0).collect(mixed)
