"""What `evaluate` computes: rows that depend on no other sample, failures that stay where they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
from small_run import Numbered, assert_same_rows, explainers, metrics, network, pictures, run

import backlight
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.evaluation import Evaluation, Failure, Skipped, Step, TensorSamples, evaluate
from backlight.evaluation.identity import sample_seed
from backlight.metrics import Case, Infidelity, Metric, infidelity
from backlight.metrics.controls import CONTROLS


@dataclass(frozen=True, kw_only=True)
class Probe(Metric):
    """The map's sum; fails where the first entry of the input is below `least`."""

    sees_sign_: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    least: float = -10.0

    def __call__(self, case: Case) -> torch.Tensor:
        if bool((case.inputs[:, 0, 0, 0] < self.least).any()):
            raise RuntimeError("below the\nleast")
        return case.attributions.flatten(2).sum(2).double()


@dataclass(frozen=True, kw_only=True)
class Inside(Metric):
    """The map's sum over the mask."""

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    def __call__(self, case: Case) -> torch.Tensor:
        return (case.attributions * case.object_masks()[:, None]).flatten(2).sum(2).double()


def test_rows_are_those_of_the_functions(tmp_path: Path) -> None:
    found = run(tmp_path)
    model, x = network(), pictures()
    maps = {name: one.attribute(x, [p % 5 for p in range(7)]) for name, one in explainers(model).items()}
    seeds = [sample_seed(0, str(place)) for place in range(7)]
    for place, (name, value) in enumerate(maps.items()):
        scores = infidelity(model, x, value, [p % 5 for p in range(7)], repeats=2, seed=seeds)
        np.testing.assert_allclose(found.values("Infidelity")[place], scores.numpy(), rtol=1e-5)
        assert found.methods[place] == name
    outputs = model(x).detach()
    assert list(found.rows["predicted"][:: len(found.methods)]) == outputs.argmax(1).tolist()
    expected = outputs[torch.arange(7), torch.arange(7) % 5]
    np.testing.assert_allclose(found.rows["score"][:: len(found.methods)], expected.numpy(), rtol=1e-5)
    assert found.methods[2:] == ["minus gradient", *(f"control: {name}" for name in CONTROLS)]
    assert found.cost("forwards") | {} == {**dict.fromkeys(found.methods, 0.0), **passes(found)}
    assert all(seconds > 0 for seconds in found.cost("seconds").values())


def passes(found: Evaluation) -> dict[str, float]:
    return {"gradient": 1.0, "noisy": 3.0, "minus gradient": 1.0}


def test_group_and_batch_sizes_change_nothing(tmp_path: Path) -> None:
    found = [run(tmp_path / str(n), images_at_once=n, batch_size=b) for n, b in ((1, 32), (3, 5), (7, 1))]
    for other in found[1:]:
        assert_same_rows(found[0].rows, other.rows)


def test_the_seed_changes_the_draws_of_metrics_and_controls(tmp_path: Path) -> None:
    one, other = run(tmp_path / "0"), run(tmp_path / "1", seed=1)
    assert np.abs(one.values("Infidelity") - other.values("Infidelity")).min() > 0
    random = one.methods.index("control: random")
    assert np.abs(one.values("signed")[random] - other.values("signed")[random]).min() > 0
    np.testing.assert_allclose(one.values("signed")[0], other.values("signed")[0], rtol=1e-6)
    draws = [sample_seed(0, name) for name in "abc"] + [sample_seed(1, name) for name in "abc"]
    assert len(set(draws)) == 6


def test_without_controls_only_methods_and_chosen_negatives(tmp_path: Path) -> None:
    assert run(tmp_path / "a", controls=False, negatives=False).methods == ["gradient", "noisy"]
    assert run(tmp_path / "b", controls=False, negatives=["noisy"]).methods == ["gradient", "noisy", "minus noisy"]
    found = run(tmp_path / "c", controls=False, baseline="noisy")
    assert found.methods == ["gradient", "noisy", "minus noisy"]
    assert found.baseline == "noisy"
    np.testing.assert_allclose(found.values("signed")[1], -found.values("signed")[2])


def test_no_target_is_the_prediction(tmp_path: Path) -> None:
    found = run(tmp_path, TensorSamples(pictures()))
    assert list(found.rows["target"]) == list(found.rows["predicted"])


def test_broken_samples_are_skipped_listed_and_tried_again(tmp_path: Path) -> None:
    steps: list[Step] = []
    found = run(tmp_path, Numbered(broken=("1", "4")), progress=steps.append)
    assert found.samples == ["0", "2", "3", "5", "6"]
    assert found.skipped == [Skipped(name, f"cannot read '{name}': it is broken") for name in ("1", "4")]
    assert [one.sample for step in steps for one in step.skipped] == ["1", "4"]
    assert (steps[0].done, steps[-1].done, steps[-1].total) == (0, 7, 7)
    mended = run(tmp_path, Numbered())
    assert mended.skipped == []
    assert_same_rows(mended.rows, run(tmp_path / "whole").rows)


def test_nothing_readable_is_an_empty_evaluation(tmp_path: Path) -> None:
    found = run(tmp_path, Numbered(broken=[str(place) for place in range(7)]))
    assert found.samples == []
    assert len(found.skipped) == 7
    assert "0 samples, 7 could not be read" in found.to_markdown()
    assert json.loads(found.to_json())["table"] == []
    found.write()


def test_a_method_that_fails_at_a_sample_fails_there_alone(tmp_path: Path) -> None:
    def moody(inputs: torch.Tensor, target: Any) -> torch.Tensor:
        if any(torch.equal(x, pictures()[2]) for x in inputs):
            raise InputError("not this one")
        return inputs * (float("nan") if any(torch.equal(x, pictures()[5]) for x in inputs) else 1)

    chosen = {**explainers(network()), "moody": moody}
    found = run(tmp_path / "a", explainers=chosen)
    assert {(one.sample, one.method, one.metric) for one in found.failures} == {("2", "moody", ""), ("5", "moody", "")}
    assert found.failures[0].reason == "InputError: not this one"
    assert "must be finite" in found.failures[1].reason
    whole = run(tmp_path / "b")
    for metric in ("Infidelity", "signed"):
        own = found.values(metric)[found.methods.index("moody")]
        assert list(np.isnan(own)) == [place in (2, 5) for place in range(7)]
        kept = [found.methods.index(name) for name in whole.methods]
        np.testing.assert_allclose(found.values(metric)[kept], whole.values(metric), rtol=1e-5)
    assert Evaluation.load(tmp_path / "a").failures == found.failures
    assert np.isnan(found.cost("forwards")["moody"])


def test_a_metric_that_fails_at_a_sample_fails_there_alone(tmp_path: Path) -> None:
    least = float(pictures()[:, 0, 0, 0].sort().values[1])  # one sample is below
    worst = str(int(pictures()[:, 0, 0, 0].argmin()))
    found = run(tmp_path, metrics={"probe": Probe(least=least), "Infidelity": Infidelity(repeats=1)})
    expected = [Failure(worst, name, "probe", "RuntimeError: below the least") for name in found.methods]
    assert list(found.failures) == expected
    assert np.isnan(found.values("probe")[:, int(worst)]).all()
    assert np.isnan(found.values("probe")).sum() == len(found.methods)
    assert not np.isnan(found.values("Infidelity")).any()


@pytest.mark.parametrize("error", [KeyError("class"), AssertionError(), ZeroDivisionError("by 0"), StopIteration()])
def test_whatever_a_users_function_raises_is_its_failure_at_that_sample(tmp_path: Path, error: Exception) -> None:
    def moody(inputs: torch.Tensor, target: Any) -> torch.Tensor:
        if any(torch.equal(x, pictures()[2]) for x in inputs):
            raise error
        return inputs

    class Moody(Probe):
        def __call__(self, case: Case) -> torch.Tensor:
            if any(torch.equal(x, pictures()[4]) for x in case.inputs):
                raise error
            return super().__call__(case)

    found = run(tmp_path, explainers={"moody": moody}, metrics={"m": Moody()}, controls=False, negatives=False)
    text = f"{type(error).__name__}: {error}".rstrip()
    told = [(one.sample, one.metric, one.reason.rstrip()) for one in found.failures]
    assert told == [("2", "", text), ("4", "m", text)]
    assert list(np.isnan(found.values("m")[0])) == [place in (2, 4) for place in range(7)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_ends_a_program_ends_the_run(tmp_path: Path, error: type[BaseException]) -> None:
    def ends(inputs: torch.Tensor, target: Any) -> torch.Tensor:
        raise error

    with pytest.raises(error):
        run(tmp_path, explainers={"ends": ends})


def test_a_setting_that_names_nothing_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="scaling"):
        run(tmp_path, metrics={"Infidelity": Infidelity(scaling="optimum")})


def test_masks_are_measured_where_there_are_some(tmp_path: Path) -> None:
    found = run(tmp_path, Numbered(masked=("1", "2", "6")), metrics={"inside": Inside(), "probe": Probe()})
    assert not found.failures
    values = found.values("inside")
    assert list(np.isnan(values[0])) == [place not in (1, 2, 6) for place in range(7)]
    gradient = backlight.Saliency(network()).attribute(pictures(), [place % 5 for place in range(7)])
    np.testing.assert_allclose(values[0, [1, 2, 6]], gradient[[1, 2, 6], :, 2:5, 3:6].sum((1, 2, 3)), rtol=1e-4)
    assert found.table("inside")["gradient"].n == 3
    assert "inside is defined for 3 of 7 samples." in found.to_markdown()


def test_samples_of_several_sizes(tmp_path: Path) -> None:
    class Mixed(Numbered):
        def load(self, name: str) -> Any:
            found = super().load(name)
            cut = slice(0, 6 if int(name) % 2 else 8)
            return type(found)(name, found.inputs[:, cut], found.target)

    found = run(tmp_path, Mixed())
    assert found.samples == [str(place) for place in range(7)]
    assert not np.isnan(found.values("Infidelity")).any()
    assert list(found.rows["sample"][:: len(found.methods)]) == found.samples


def test_what_cannot_be_evaluated_is_said_at_once(tmp_path: Path) -> None:
    for wrong, said in (
        ({"explainers": {}}, "nothing to evaluate"),
        ({"metrics": {}}, "nothing to measure"),
        ({"metrics": {"seconds": Infidelity()}}, "another column's"),
        ({"explainers": {"control: edges": lambda x, t: x}}, "taken by a control"),
        ({"images_at_once": 0}, "at least 1"),
        ({"samples": Numbered(0)}, "no samples"),
    ):
        with pytest.raises(InputError, match=said):
            run(tmp_path, **wrong)
    for wrong in ({"baseline": "gradeint"}, {"negatives": ["gradeint"]}):
        with pytest.raises(UnknownNameError, match="close matches: gradient"):
            run(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TargetError, match="the label 5 of '0' is out of range: the network has 5 outputs"):
        run(tmp_path, TensorSamples(pictures(1), [5]))


def test_run_json_says_what_decided_the_numbers(tmp_path: Path) -> None:
    run(tmp_path, settings={"model": "tiny"})
    said = json.loads((tmp_path / "run.json").read_text())
    identity = said["identity"]
    assert identity["methods"]["noisy"] == {
        "class": "SmoothGrad",
        "settings": {"strict": True, **{k: v for k, v in backlight.SmoothGrad.settings().items() if k != "strict"}}
        | {"n_samples": 3},
    }
    assert identity["metrics"]["Infidelity"]["settings"]["repeats"] == 2
    assert identity["seed"] == 0
    assert len(identity["model"]["parameters"]) == 64
    (session,) = said["sessions"]
    assert session["versions"]["torch"] == torch.__version__
    assert session["samples"] == 7
    assert len(session["names"]) == 64


def test_nothing_is_left_on_the_model_and_no_draw_of_torchs_is_taken(tmp_path: Path) -> None:
    model = network()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    evaluate(model, Numbered(), explainers(model), metrics(), out=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
