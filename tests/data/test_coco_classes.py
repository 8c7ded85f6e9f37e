"""COCO's things as ImageNet's classes: the table by names, masks from category ids, photographs with their objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlight.data import ClassNames, Preprocessing
from backlight.data.coco_classes import (
    COCO_IDS,
    IMAGENET_CLASSES,
    category_ids,
    class_mask,
    masked_photographs,
)
from backlight.errors import ImageError, InputError, UnknownNameError

NAMES = {
    "bicycle": "tandem, mountain bike",
    "car": "ambulance, wagon, cab, convertible, jeep, limousine, minivan, Model T, racer, sports car",
    "motorcycle": "moped, motor scooter",
    "airplane": "airliner, warplane",
    "bus": "minibus, school bus, trolleybus",
    "train": "bullet train, electric locomotive, freight car, passenger car, steam locomotive",
    "truck": "fire engine, garbage truck, moving van, pickup, tow truck, trailer truck",
    "boat": "canoe, catamaran, container ship, fireboat, gondola, lifeboat, liner, pirate, schooner, speedboat, "
    "trimaran, yawl",
    "traffic light": "traffic light",
    "stop sign": "street sign",
    "parking meter": "parking meter",
    "bench": "park bench",
    "horse": "sorrel",
    "sheep": "ram, bighorn",
    "cow": "ox",
    "elephant": "tusker, Indian elephant, African elephant",
    "bear": "brown bear, American black bear, polar bear, sloth bear",
    "zebra": "zebra",
    "backpack": "backpack",
    "umbrella": "umbrella",
    "handbag": "purse",
    "tie": "bow tie, Windsor tie",
    "skis": "ski",
    "sports ball": "baseball, basketball, croquet ball, golf ball, ping-pong ball, rugby ball, soccer ball, "
    "tennis ball, volleyball",
    "tennis racket": "racket",
    "bottle": "beer bottle, pill bottle, pop bottle, water bottle, wine bottle",
    "wine glass": "goblet, red wine",
    "cup": "coffee mug, cup",
    "knife": "cleaver, letter opener",
    "spoon": "ladle, wooden spoon",
    "bowl": "mixing bowl, soup bowl",
    "banana": "banana",
    "apple": "Granny Smith",
    "sandwich": "cheeseburger",
    "orange": "orange",
    "broccoli": "broccoli",
    "hot dog": "hotdog",
    "pizza": "pizza",
    "chair": "barber chair, folding chair, rocking chair",
    "couch": "studio couch",
    "potted plant": "pot",
    "bed": "four-poster",
    "dining table": "dining table",
    "toilet": "toilet seat",
    "tv": "monitor, screen, television",
    "laptop": "laptop, notebook",
    "mouse": "computer mouse",
    "remote": "remote control",
    "keyboard": "computer keyboard",
    "cell phone": "cellular telephone",
    "microwave": "microwave",
    "oven": "stove",
    "toaster": "toaster",
    "sink": "washbasin",
    "refrigerator": "refrigerator",
    "clock": "analog clock, digital clock, wall clock",
    "vase": "vase",
    "teddy bear": "teddy",
    "hair drier": "hair dryer",
}


def test_the_table_by_names() -> None:
    pytest.importorskip("timm")
    classes = ClassNames.imagenet()
    for thing, names in NAMES.items():
        assert len(names.split(", ")) == len(IMAGENET_CLASSES[thing]), thing
        for name, index in zip(names.split(", "), IMAGENET_CLASSES[thing], strict=True):
            assert name.lower() in classes.names[index].lower(), (thing, name, classes.names[index])
    assert IMAGENET_CLASSES.keys() - NAMES.keys() == {"bird", "cat", "dog"}
    dogs = [classes.name(index).lower() for index in IMAGENET_CLASSES["dog"]]
    assert (dogs[0], dogs[-1], len(dogs)) == ("chihuahua", "mexican hairless", 118)
    cats = [classes.name(index).lower() for index in IMAGENET_CLASSES["cat"]]
    assert cats == ["tabby", "tiger cat", "persian cat", "siamese cat", "egyptian cat"]
    birds = [classes.name(index).lower() for index in IMAGENET_CLASSES["bird"]]
    ends = [birds[0], birds[17], birds[18], birds[38], birds[39], birds[-1]]
    assert ends == ["cock", "great grey owl", "black grouse", "black swan", "white stork", "albatross"]
    assert len(birds) == 59, "all of ImageNet's birds"


def test_no_class_belongs_to_two_things() -> None:
    every = [index for indices in IMAGENET_CLASSES.values() for index in indices]
    assert len(every) == len(set(every))
    assert set(IMAGENET_CLASSES) < set(COCO_IDS)
    assert len(COCO_IDS) == len(set(COCO_IDS.values())) == 80
    assert not {"person", "giraffe", "kite", "skateboard"} & set(IMAGENET_CLASSES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs: a zebra (left half) and a small cat; a person."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    ids = np.zeros((40, 60), np.uint8)
    ids[:, :30], ids[10:20, 40:50], ids[0, 59] = COCO_IDS["zebra"], COCO_IDS["cat"], COCO_IDS["dog"]
    for name, values in (("a", ids), ("b", np.full((40, 60), COCO_IDS["person"], np.uint8))):
        Image.fromarray(values).save(tmp_path / "masks" / f"{name}.png")
        Image.fromarray(np.where(values[..., None] == COCO_IDS["zebra"], 255, 0).repeat(3, -1).astype(np.uint8)).save(
            tmp_path / "images" / f"{name}.jpg", quality=100
        )
    return tmp_path


def test_photographs_with_things_of_imagenet(folder: Path) -> None:
    found = masked_photographs(folder)
    assert [(item.image.name, item.thing) for item in found] == [("a.jpg", "zebra"), ("a.jpg", "cat")]
    assert found[0].share == 0.5
    assert found[0].classes == (340,)
    assert [item.thing for item in masked_photographs(folder, things=["cat"])] == ["cat"]
    assert len(masked_photographs(folder, min_share=0.0001)) == 3
    assert class_mask(folder / "masks" / "a.png", "cat").sum() == 100
    assert class_mask(folder / "masks" / "b.png", "person").all()


def test_picture_and_mask_are_cropped_alike(folder: Path) -> None:
    item = masked_photographs(folder)[0]
    half = (0.5, 0.5, 0.5)
    for fit, size, share in (("cover", (20, 20), 0.5), ("squash", (20, 20), 0.5), ("contain", (30, 30), 1 / 3)):
        preprocessing = Preprocessing(size, size, "bilinear", half, half, fit)
        x, mask = item.load(preprocessing)
        assert x.shape == (3, *size)
        assert float(mask.double().mean()) == pytest.approx(share, abs=0.05)
        inner = mask & ~(mask.roll(-1, 1) ^ mask)  # away from the blended edge
        assert (x[0][inner] > 0.5).float().mean() > 0.95, "the white half of the photograph is the mask"
        assert (x[0][~mask] > 0.5).float().mean() < 0.1


def test_the_target_is_the_likeliest_of_the_things_classes(folder: Path) -> None:
    item = masked_photographs(folder, things=["cat"])[0]
    logits = torch.zeros(1000)
    logits[207], logits[283], logits[281] = 9, 3, 2
    assert item.target(logits) == 283


def test_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="zebra"):
        class_mask(folder / "masks" / "a.png", "zebras")
    with pytest.raises(UnknownNameError, match="in ImageNet"):
        masked_photographs(folder, things=["person"])
    with pytest.raises(InputError, match="no masks"):
        masked_photographs(tmp_path / "images")
    with pytest.raises(ImageError, match="one category id"):
        category_ids(folder / "images" / "a.jpg")
    with pytest.raises(ImageError, match="cannot read"):
        category_ids(folder / "none.png")
    Image.new("L", (10, 10), 24).save(folder / "masks" / "a.png")
    with pytest.raises(ImageError, match="has \\(10, 10\\) pixels"):
        masked_photographs(folder)[0].load(Preprocessing())
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(ImageError, match="has no picture"):
        masked_photographs(folder)


def test_the_photographs_beside_the_repository(data_dir: Path) -> None:
    folder = data_dir / "images" / "coco_masks"
    lines = [line.strip().partition(": ") for line in (folder / "classes.yaml").read_text().splitlines()]
    theirs = {name: int(number) for number, _, name in lines if number.isdecimal()}
    assert all(COCO_IDS[name] == number for name, number in theirs.items() if name in COCO_IDS)
    found = masked_photographs(folder)
    assert len({item.image for item in found}) >= 50
    assert len({item.thing for item in found}) >= 30
    x, mask = found[0].load(Preprocessing.paper())
    assert x.shape == (3, 224, 224)
    assert mask.any()
    shares = [item.share for item in found if item.image == found[0].image]
    assert shares == sorted(shares, reverse=True)
