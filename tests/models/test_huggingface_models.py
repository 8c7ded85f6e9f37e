"""Hugging Face classifiers, from a folder and from an architecture's name; no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backlight.data import Preprocessing
from backlight.errors import ModelError, UnknownNameError
from backlight.models import load

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    labels = {0: "ant, emmet", 1: "bee", 2: "cow"}
    config = transformers.ViTConfig(**TINY, id2label=labels, label2id={v: k for k, v in labels.items()})
    transformers.ViTForImageClassification(config).save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def test_a_folder(folder: Path) -> None:
    loaded = load(str(folder))
    assert type(loaded.model) is transformers.ViTForImageClassification
    assert not loaded.model.training
    assert (loaded.classes.index("emmet"), loaded.classes.name(0), len(loaded.classes)) == (0, "ant", 3)
    assert loaded.preprocessing == Preprocessing((32, 32), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3, "squash")
    again = load(f"hf:{folder}").model
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.model(x).logits, again(x).logits)


def test_a_folder_with_other_weights(folder: Path) -> None:
    state = {name: torch.zeros_like(value) for name, value in load(str(folder)).model.state_dict().items()}
    loaded = load(str(folder), weights=state)
    assert loaded.model(torch.randn(1, 3, 32, 32)).logits.abs().max() == 0


def test_a_network_without_a_classifier_is_refused(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no image classifier.*classifier\.bias"):
        load(str(tmp_path))


def test_an_architecture_with_random_weights() -> None:
    loaded = load("hf:mobilenet_v2", pretrained=False, classes=["a", "b"])
    assert loaded.source == "random weights"
    assert loaded.model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 2)
    assert loaded.preprocessing.size == (224, 224)


def test_an_architecture_has_no_weights() -> None:
    with pytest.raises(ModelError, match="pretrained=False"):
        load("hf:vit")
    with pytest.raises(UnknownNameError, match="vit"):
        load("hf:vitt")


def test_processors_that_do_something_else_are_refused() -> None:
    with pytest.raises(ModelError, match="preprocessing="):  # MobileViT's flips red and blue
        load("hf:mobilevit", pretrained=False)
    assert load("hf:mobilevit", pretrained=False, preprocessing=Preprocessing()).preprocessing == Preprocessing()


@pytest.mark.parametrize("kind", ["deit", "convnext", "poolformer", "clip"])
def test_the_processors_pixels_are_ours(kind: str) -> None:
    from backlight.models import huggingface_models

    processor = huggingface_models._processor(kind, True, transformers)
    ours = huggingface_models.preprocessing(processor, torch.nn.Identity())
    picture = huggingface_models._probe().resize((190, 260))
    theirs = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])[0]
    assert ours.tensor(picture).shape == theirs.shape
    # a grey level is 0.017 here; PoolFormer's rounds the longer side up, which moves the crop by under half a pixel
    assert (ours.tensor(picture) - theirs).abs().mean() < 0.005
