"""Labelled folders: layouts, masks, limits, and what is wrong with them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlight.data import ClassNames, Preprocessing
from backlight.data.labelled import LabelledFolder, read_mask
from backlight.errors import ImageError, InputError, TargetError, UnknownNameError

CLASSES = ClassNames(("tench, Tinca tinca", "tiger cat", "crane", "crane"), ("n1", "n2", "n3", "n4"))
HOW = Preprocessing((16, 16), (16, 16))


def picture(path: Path, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def targets(folder: LabelledFolder) -> dict[str, int | None]:
    return {name: folder.load(name).target for name in sorted(folder.names)}


def table(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text(text, encoding="utf-8")


def test_folders_by_synset_name_and_index(tmp_path: Path) -> None:
    for name in ("n1/a.png", "tiger_cat/b.png", "tiger cat/sub/c.png", "2/d.jpg", "TINCA TINCA/e.png"):
        picture(tmp_path / name)
    picture(tmp_path / ".hidden" / "f.png")
    picture(tmp_path / "n1" / ".thumbs" / "g.png")
    (tmp_path / "n1" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()  # no class, and no picture either
    found = LabelledFolder(tmp_path, CLASSES, HOW)
    expected = {"n1/a.png": 0, "tiger_cat/b.png": 1, "tiger cat/sub/c.png": 1, "2/d.jpg": 2, "TINCA TINCA/e.png": 0}
    assert targets(found) == dict(sorted(expected.items()))
    assert len(found) == 5
    assert found.masked == 0


def test_inputs_are_the_pixels_that_the_front_takes(tmp_path: Path) -> None:
    path = picture(tmp_path / "n1" / "a.png", (40, 30))
    sample = LabelledFolder(tmp_path, CLASSES, HOW).load("n1/a.png")
    torch.testing.assert_close(sample.inputs, 2 * HOW.image(path) - 1)
    assert (sample.name, sample.target, sample.mask) == ("n1/a.png", 0, None)


def test_a_table_of_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "below" / "b.png")
    picture(tmp_path / "unlisted.png")
    table(tmp_path, "\ufefffile, author, class_index \n./a.png,me,1\nbelow/b.png,you,3\nlost.png,they,0\n")
    found = LabelledFolder(tmp_path, CLASSES, HOW)
    assert set(found.names) == {"a.png", "below/b.png", "lost.png"}
    assert found.load("below/b.png").target == 3
    with pytest.raises(ImageError, match="no such file"):
        found.load("lost.png")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\na.png,1\n", "needs the column 'file'; its columns: name, label"),
        ("file,label\na.png,1\n", "needs the column 'class_index'; its columns: file, label"),
        ("", "its columns: none"),
        ("file,class_index\na.png,cat\n", "line 2: a class_index is a whole number, got 'cat'"),
        ("file,class_index\na.png,1\nb.png\n", "line 3: a class_index is a whole number, got None"),
        ("file,class_index\na.png,4\n", "line 2: the class index 4 is out of range: expected 0 to 3"),
        ("file,class_index\na.png,-1\n", "out of range"),
        ("file,class_index\na.png,1\na.png,2\n", "line 3: 'a.png' is listed twice"),
        ("file,class_index\n,1\n", "line 2: there is no file name"),
        ("file,class_index\n", "labels.csv' has no rows below its header"),
    ],
)
def test_wrong_tables_say_where(tmp_path: Path, text: str, said: str) -> None:
    table(tmp_path, text)
    with pytest.raises((InputError, ImageError)) as caught:
        LabelledFolder(tmp_path, CLASSES, HOW)
    assert said in str(caught.value)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(InputError, match=r"cannot read .*labels\.csv"):
        LabelledFolder(tmp_path, CLASSES, HOW)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        LabelledFolder(tmp_path / "none", CLASSES, HOW)
    with pytest.raises(InputError, match="neither labels nor pictures"):
        LabelledFolder(tmp_path, CLASSES, HOW)
    picture(tmp_path / "tiger kat" / "a.png")
    with pytest.raises(UnknownNameError, match="close matches: tiger cat"):
        LabelledFolder(tmp_path, CLASSES, HOW)
    (tmp_path / "tiger kat").rename(tmp_path / "crane")
    with pytest.raises(TargetError, match="'crane' is ambiguous"):
        LabelledFolder(tmp_path, CLASSES, HOW)
    (tmp_path / "crane").rename(tmp_path / "9")
    with pytest.raises(TargetError, match="out of range"):
        LabelledFolder(tmp_path, CLASSES, HOW)
    (tmp_path / "9").rename(tmp_path / "n3")
    picture(tmp_path / "loose.png")
    with pytest.raises(InputError, match=r"'loose\.png' has no label .* expected a labels\.csv"):
        LabelledFolder(tmp_path, CLASSES, HOW)
    with pytest.raises(InputError, match="limit"):
        LabelledFolder(tmp_path, CLASSES, HOW, limit=0)


def test_classes_that_nobody_told_are_indices(tmp_path: Path) -> None:
    picture(tmp_path / "17" / "a.png")
    assert targets(LabelledFolder(tmp_path, ClassNames(), HOW)) == {"17/a.png": 17}
    picture(tmp_path / "cat" / "a.png")
    with pytest.raises(UnknownNameError, match="give the index"):
        LabelledFolder(tmp_path, ClassNames(), HOW)


def test_pictures_without_labels_explain_the_prediction(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "any name" / "b.png")
    found = LabelledFolder(tmp_path, CLASSES, HOW, labelled=False)
    assert targets(found) == {"a.png": None, "any name/b.png": None}
    picture(tmp_path / "masks" / "a.png")
    assert len(LabelledFolder(tmp_path, CLASSES, HOW, labelled=False)) == 2


def test_a_limit_takes_the_first_of_an_order_that_names_alone_decide(tmp_path: Path) -> None:
    for place in range(12):
        picture(tmp_path / f"n{1 + place % 4}" / f"{place}.png")
    whole = LabelledFolder(tmp_path, CLASSES, HOW)
    for limit in (1, 5, 11, 50):
        part = LabelledFolder(tmp_path, CLASSES, HOW, limit=limit)
        assert part.names == whole.names[:limit]
        assert part.fingerprint == whole.fingerprint
    assert whole.names != sorted(whole.names)
    assert len(set(targets(LabelledFolder(tmp_path, CLASSES, HOW, limit=6)).values())) > 1


def test_the_fingerprint_sees_names_labels_and_preprocessing_and_the_content_files(tmp_path: Path) -> None:
    def now(name: str, how: Preprocessing = HOW) -> tuple[str, str]:
        found = LabelledFolder(tmp_path, CLASSES, how)
        return found.fingerprint, found.content(name)

    path = picture(tmp_path / "n1" / "a.png")
    (tmp_path / "n1" / "other.png").write_text("broken")
    seen = [now("n1/a.png")]
    path.rename(tmp_path / "n1" / "b.png")
    seen.append(now("n1/b.png"))
    (tmp_path / "n1").rename(tmp_path / "n2")
    seen.append(now("n2/b.png"))
    seen.append(now("n2/b.png", replace(HOW, interpolation="nearest")))
    assert len({fingerprint for fingerprint, _ in seen}) == 4
    assert len({content for _, content in seen}) == 1
    before = now("n2/b.png")
    picture(tmp_path / "n2" / "other.png")
    assert now("n2/b.png") == before  # another one was repaired
    pixels = (tmp_path / "n2" / "b.png").read_bytes()
    (tmp_path / "n2" / "b.png").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))  # of the same size
    changed = now("n2/b.png")
    picture(tmp_path / "masks" / "b.png")
    masked = now("n2/b.png")
    assert before[0] == changed[0] == masked[0]
    assert len({before[1], changed[1], masked[1]}) == 3
    found = LabelledFolder(tmp_path, CLASSES, HOW)
    (tmp_path / "n2" / "b.png").unlink()
    with pytest.raises(ImageError, match="No such file"):
        found.content("n2/b.png")


def test_masks_keep_the_pictures_geometry(tmp_path: Path) -> None:
    mask = np.zeros((30, 48), dtype=np.uint8)
    mask[6:20, 10:37] = 255
    path = picture(tmp_path / "n1" / "a.png", (48, 30))
    (tmp_path / "masks" / "n1").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "n1" / "a.png")
    Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(path)  # the picture is its own mask
    for how in (
        HOW,
        Preprocessing((16, 16), (20, 20)),
        Preprocessing((16, 12), (16, 12), fit="squash"),
        Preprocessing((16, 16), (16, 16), fit="contain"),
    ):
        sample = LabelledFolder(tmp_path, CLASSES, replace(how, mean=(0.0, 0.0, 0.0))).load("n1/a.png")
        assert sample.mask is not None
        assert sample.mask.shape == sample.inputs.shape[1:]
        assert sample.mask.dtype == torch.bool
        agree = (sample.mask == (sample.inputs[0] > 0)).float().mean()
        assert agree > 0.93  # but for pixels on the edge, which the picture blends
        assert 0.1 < sample.mask.float().mean() < 0.9


def test_masks_elsewhere_by_stem_and_missing_ones(tmp_path: Path) -> None:
    data, masks = tmp_path / "data", tmp_path / "objects"
    for name in ("n1/a.jpg", "n1/b.jpg"):
        picture(data / name)
    masks.mkdir()
    Image.new("L", (20, 16), 1).save(masks / "a.png")  # 1 of 255 is not zero
    found = LabelledFolder(data, CLASSES, HOW, masks=masks)
    assert found.masked == 1
    assert bool(found.load("n1/a.jpg").mask.all())
    assert found.load("n1/b.jpg").mask is None
    with pytest.raises(ImageError, match="cannot read masks"):
        LabelledFolder(data, CLASSES, HOW, masks=tmp_path / "none")


def test_a_mask_is_of_one_picture(tmp_path: Path) -> None:
    data, masks = tmp_path / "data", tmp_path / "objects"
    for name in ("n1/a.jpg", "n2/a.jpg", "n2/b.jpg"):
        picture(data / name)
    picture(masks / "b.png")
    picture(masks / "n1" / "a.png")
    assert LabelledFolder(data, CLASSES, HOW, masks=masks).masked == 2
    picture(masks / "a.png")  # n1's has its own: this is n2's
    assert LabelledFolder(data, CLASSES, HOW, masks=masks).masked == 3
    (masks / "n1" / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"a\.png' may be that of 'n[12]/a\.jpg' or of 'n[12]/a\.jpg'.* 'n[12]/a\.png'"
    ):
        LabelledFolder(data, CLASSES, HOW, limit=1, masks=masks)
    picture(masks / "n1" / "a.png")
    picture(data / "n1" / "a.png")
    with pytest.raises(InputError, match="may be that of"):
        LabelledFolder(data, CLASSES, HOW, masks=masks)


def test_the_mask_of_a_loose_picture_is_not_that_of_one_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "below/a.png"):
        picture(tmp_path / name)
    picture(tmp_path / "masks" / "a.png")
    found = LabelledFolder(tmp_path, CLASSES, HOW, labelled=False)
    assert found.load("a.png").mask is not None
    assert found.load("below/a.png").mask is None


def test_masks_that_do_not_fit_or_cannot_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "n1" / "a.png", (20, 16))
    picture(tmp_path / "n1" / "b.png", (20, 16))
    picture(tmp_path / "masks" / "a.png", (16, 20))
    (tmp_path / "masks" / "b.png").write_text("no mask")
    found = LabelledFolder(tmp_path, CLASSES, HOW)
    with pytest.raises(ImageError, match=r"has \(16, 20\) pixels, its picture has \(20, 16\)"):
        found.load("n1/a.png")
    with pytest.raises(ImageError, match=r"cannot read the mask .*b\.png"):
        found.load("n1/b.png")


def test_masks_of_every_mode(tmp_path: Path) -> None:
    plain = np.zeros((4, 5), dtype=np.uint8)
    plain[1:3, 2:] = 7
    grey = Image.fromarray(plain)
    colours = Image.fromarray(np.stack([plain * 0, plain, plain * 0], -1))
    clear = colours.convert("RGBA")
    clear.putalpha(Image.fromarray(255 - plain))
    palette = grey.convert("P")
    palette.putpalette([0, 0, 0] * 256)  # all black, told apart by index
    for name, image in {"L": grey, "RGB": colours, "RGBA": clear, "P": palette}.items():
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(plain.astype(np.uint16) * 300).save(tmp_path / "I16.png")
    Image.fromarray(plain > 0).save(tmp_path / "1.png")
    grey.convert("LA").save(tmp_path / "LA.png")
    for name in ("L", "RGB", "RGBA", "P", "I16", "1", "LA"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), plain > 0, err_msg=name)


def test_masks_are_not_blended(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((32, 32)) < 0.5
    picture(tmp_path / "n1" / "a.png", (32, 32))
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    found = LabelledFolder(tmp_path, CLASSES, HOW).load("n1/a.png").mask
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), mask[1::2, 1::2])  # 32 to 16 pixels: one of four, no mean of them


def test_the_photographs_beside_the_repository(data_dir: Path) -> None:
    folder = data_dir / "images" / "photos_500"
    if not os.path.isdir(folder):
        pytest.skip("no photographs")
    found = LabelledFolder(folder, ClassNames.generic(1000), HOW, limit=3)
    assert all(0 <= found.load(name).target < 1000 for name in found.names)
