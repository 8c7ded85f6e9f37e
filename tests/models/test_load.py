"""`load`: names, families, modules, heads, and the errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from torch import nn

from backlight.data import ClassNames, Preprocessing
from backlight.errors import MissingExtraError, ModelError, UnknownNameError
from backlight.models import available_models, find_layers, layer_names, load, resolve_layer

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without network: no host has an address, and nothing is cached."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_a_loaded_model() -> None:
    loaded = load("resnet18", pretrained=False)
    assert type(loaded.model) is timm.models.resnet.ResNet
    assert loaded.name == "resnet18"
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.layers == layer_names(loaded.model)
    assert loaded.layers[:4] == ("conv1", "bn1", "act1", "maxpool")
    assert loaded.classes == ClassNames.imagenet()
    assert loaded.source == "random weights"
    with pytest.raises(FrozenInstanceError):
        loaded.name = "other"  # type: ignore[misc]


def test_prefixes_and_family_choose() -> None:
    by_prefix = load("torchvision:resnet18", pretrained=False)
    by_family = load("resnet18", pretrained=False, family="torchvision")
    assert type(by_prefix.model) is type(by_family.model) is torchvision.models.resnet.ResNet
    assert type(load("timm:resnet18", pretrained=False).model) is timm.models.resnet.ResNet
    assert load("torchvision:mobilenet_v2", pretrained=False).preprocessing.resize == (232, 232)
    assert load("mobilenet_v2", pretrained=False).preprocessing.resize == (256, 256)
    assert load("squeezenet1_1", pretrained=False).preprocessing == Preprocessing()


def test_a_torchvision_tag_decides_the_preprocessing() -> None:
    new, old = (load(f"torchvision:resnet50{tag}", pretrained=False).preprocessing for tag in ("", ".IMAGENET1K_V1"))
    assert (new.resize, old.resize) == ((232, 232), (256, 256))


def test_googlenet_rescales_as_its_weights_need() -> None:
    assert load("torchvision:googlenet", pretrained=False).model.transform_input


def test_timm_preprocessing_is_read() -> None:
    found = load("vit_tiny_patch16_224", pretrained=False).preprocessing
    assert (found.size, found.resize, found.interpolation, found.mean) == (
        (224, 224),
        (248, 248),
        "bicubic",
        (0.5,) * 3,
    )


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet81", "resnet51q"),
        ("efficientnet_lite9", "efficientnet_lite1"),
        ("torchvision:resnet51", "resnet50"),
        ("timm:resnet18.a9_in1k", "resnet18.a1_in1k"),
        ("torchvision:resnet18.V1", "resnet18.IMAGENET1K_V1"),
        ("embedded:mobilenet", "mobilenet_v2"),
    ],
)
def test_unknown_names(name: str, close: str) -> None:
    with pytest.raises(UnknownNameError, match=close):
        load(name)


def test_an_unknown_family() -> None:
    with pytest.raises(UnknownNameError, match="torchvision"):
        load("resnet18", family="torchvison")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "torchvision:shufflenet_v2_x2_0"])
def test_without_network(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(ModelError, match=r"cannot fetch.*weights=FILE.*pretrained=False") as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert before == constants.HF_HUB_OFFLINE


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    loaded = load("resnet10t", weights=tmp_path / "w.pth", classes=["ant", "bee", "cow"])
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.model(x), source.eval()(x))
    assert loaded.classes.index("bee") == 1
    assert "w.pth" in loaded.source


def test_another_head_says_what_to_do() -> None:
    state = timm.create_model("resnet10t", num_classes=3).state_dict()
    with pytest.raises(ModelError, match=r"fc\.weight \[3, 512\] for \[1000, 512\].*classes="):
        load("resnet10t", weights=state)


@pytest.mark.parametrize("name", ["resnet10t", "torchvision:squeezenet1_1"])
def test_classes_size_a_random_head(name: str) -> None:
    loaded = load(name, pretrained=False, classes=["a", "b"])
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_loading_draws_no_random_numbers_of_the_callers() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load("resnet10t", pretrained=False).model
    assert torch.equal(torch.random.get_rng_state(), before)
    again = load("resnet10t", pretrained=False).model
    assert torch.equal(first.fc.weight, again.fc.weight)


def test_a_module_is_kept_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    loaded = load(model, preprocessing=Preprocessing.paper())
    assert loaded.model is model
    assert (loaded.name, loaded.layers, len(loaded.classes)) == ("Sequential", ("0", "1"), 0)


def test_a_module_of_timm_knows_its_preprocessing() -> None:
    loaded = load(timm.create_model("resnet10t").eval())
    assert loaded.preprocessing == load("resnet10t", pretrained=False).preprocessing
    assert len(loaded.classes) == 1000


def test_a_module_of_timm_knows_its_own_class_names() -> None:
    model = timm.create_model("resnet10t", num_classes=2, pretrained_cfg_overlay={"label_names": ["ant", "bee"]})
    assert load(model.eval()).classes == ClassNames(("ant", "bee"))


def test_modules_that_cannot_be_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    with pytest.raises(ModelError, match="preprocessing="):
        load(model)
    model[1].train()
    with pytest.raises(ModelError, match=r"training mode \(1\).*eval\(\)"):
        load(model, preprocessing=Preprocessing())
    assert model[1].training


def test_pixels_take_minus_one_to_one() -> None:
    network = nn.Conv2d(3, 2, 3).eval()
    loaded = load(network, preprocessing=Preprocessing((9, 9), (9, 9)))
    front = loaded.pixels()
    image = torch.rand(2, 3, 9, 9)
    expected = network(loaded.preprocessing.normalise(image))
    assert torch.allclose(front(2 * image - 1), expected, atol=1e-6)
    assert front.network is network
    assert not front.training
    assert list(front.state_dict()) == ["network.weight", "network.bias"]
    assert torch.allclose(front.double()(2 * image.double() - 1).float(), expected, atol=1e-5)


def test_the_pixel_front_writes_no_training_flag() -> None:
    network = nn.Sequential(nn.Dropout()).eval()
    loaded = load(network, preprocessing=Preprocessing())
    network.train()
    front = loaded.pixels()
    assert front.training
    assert network[0].training


def test_available_models() -> None:
    listed = available_models()
    assert "efficientnet_lite0" in listed["embedded"]
    assert len(listed["timm"]) > 1000
    assert "resnet50" in listed["torchvision"]
    assert not any(name.startswith(("fasterrcnn", "deeplab")) for name in listed["torchvision"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"backlight\[vision\]"):
        load("timm:resnet18")
    with pytest.raises(MissingExtraError, match=r"backlight\[vision\]"):
        load("resnet26d")
    assert type(load("resnet18", pretrained=False).model) is torchvision.models.resnet.ResNet


def test_importing_loads_no_optional_package() -> None:
    code = (
        "import sys, backlight.models, backlight.data\n"
        "print([name for name in ('timm', 'torchvision', 'transformers', 'onnx', 'skimage') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.strip() == "[]"


def test_layers_by_name_and_pattern() -> None:
    model = torchvision.models.resnet18()
    assert resolve_layer(model, "layer4.1.conv2") is model.layer4[1].conv2
    assert find_layers(model, "layer4.?.conv1") == ("layer4.0.conv1", "layer4.1.conv1")
    for wrong in ("layer4.1.conv3", ""):
        with pytest.raises(UnknownNameError):
            resolve_layer(model, wrong)
    with pytest.raises(UnknownNameError, match=r"layer4\.1\.conv"):
        find_layers(model, "layer4.1.convx")


def test_a_shared_module_has_both_its_names() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Identity(), shared)
    assert layer_names(model) == ("0", "1")
    assert resolve_layer(model, "2") is shared
