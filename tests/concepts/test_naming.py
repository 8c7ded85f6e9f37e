"""Names: planted concepts go with their classes, and texts with what exemplars show."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("zarr")
from concept_banks import Positive, pixels

from backlight.concepts.bank import make_bank
from backlight.concepts.concepts import Concepts, encode_concepts, fit_concepts
from backlight.concepts.exemplars import exemplars
from backlight.concepts.naming import Encoders, name_by_class, name_by_profile, name_by_text, open_clip_encoders
from backlight.concepts.receptive_fields import ReceptiveFields
from backlight.data.classes import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, MissingExtraError, UnknownNameError
from backlight.evaluation.samples import TensorSamples

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Concepts:
    """30 grey pictures with a pixel of the colour of their class; a concept for each colour."""
    labels = [n % 3 for n in range(30)]
    inputs = 0.05 * torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for number, label in enumerate(labels):
        inputs[number, label, number % 4, number // 8] += 1
    samples = TensorSamples(inputs, labels)
    folder = tmp_path_factory.mktemp("planted")
    bank = make_bank(pixels(3, torch.eye(3)), samples, "features", folder / "bank", sampling="all")
    own = fit_concepts(bank, "features", "KMeans", folder / "concepts", modes=4, epochs=30, seed=1)
    found = encode_concepts(own, None, Positive())
    assert isinstance(found, Concepts)
    return found


def colour_of(concepts: Concepts) -> dict[int, int]:
    """The colour of each concept that has one, by its atom."""
    atoms = concepts.dictionary.modes
    return {k: int(atom.argmax()) for k, atom in enumerate(atoms) if atom.max() > 0.5}


def test_planted_concepts_go_with_their_classes(concepts: Concepts) -> None:
    found = name_by_class(concepts, names=ClassNames(COLOURS), min_images=5)
    planted = colour_of(concepts)
    assert sorted(planted.values()) == [0, 1, 2]
    codes = np.stack([concepts.of_images().read(n, n + 1)[0].numpy() for n in range(30)])
    for k, colour in planted.items():
        (name, r), *_ = found.top(k)
        assert name == COLOURS[colour]
        assert r == pytest.approx(np.corrcoef(codes[:, k], np.arange(30) % 3 == colour)[0, 1], abs=1e-6)
        assert r > 0.95
    warm = Hierarchy({"warm": [0, 1], "cold": [2], "all": ["warm", "cold"]})
    above = name_by_class(concepts, hierarchy=warm, min_images=5)
    cold = next(k for k, colour in planted.items() if colour == 2)
    assert above.top(cold, 1)[0][0] == "cold"


def test_without_classes_there_are_no_names(concepts: Concepts, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no class has 25 images"):
        name_by_class(concepts, min_images=25)
    monkeypatch.setattr(type(concepts.bank), "labels", np.full(30, -1))
    with pytest.raises(InputError, match="no sample has a label"):
        name_by_class(concepts)
    with pytest.raises(UnknownNameError, match="prediction"):
        name_by_class(concepts, by="predictions")


def colours() -> Encoders:
    """The mean colour of a picture, beside a constant that every text is near to; texts are colours."""

    def images(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x.amax((2, 3)), torch.ones(len(x), 1)), 1)

    def texts(words: list[str]) -> torch.Tensor:
        common = torch.tensor([float(word == "picture") for word in words])[:, None]
        return torch.cat((torch.tensor([[float(word == one) for one in COLOURS] for word in words]), common), 1)

    return Encoders(images, texts)


def test_texts_name_what_crops_show_and_not_what_every_picture_is(concepts: Concepts) -> None:
    words, planted = ["picture", *COLOURS], colour_of(concepts)
    fields = ReceptiveFields(concepts.bank, kind="gradient")
    shown = {k: exemplars(concepts, k, 4, fields=fields) for k in planted}
    for k, colour in planted.items():
        others = [one for other, group in shown.items() if other != k for one in group]
        named = name_by_text(shown[k], words, colours(), control=others, size=8)
        assert named.top(1)[0][0] == COLOURS[colour]
        alone = name_by_text(shown[k], words, colours(), size=8)
        assert alone.scores[0] > 0.5  # without a control, "picture" is near to all
    profiles = name_by_profile(concepts, list(planted), words, colours(), batch_size=7)
    for colour, named in zip(planted.values(), profiles, strict=True):
        assert named.top(1)[0][0] == COLOURS[colour]


def test_a_profile_is_the_correlation_of_codes_and_cosines(concepts: Concepts) -> None:
    words, encoders = ["red", "blue", "picture"], colours()
    (found,) = name_by_profile(concepts, [2], words, encoders)
    x = torch.stack([concepts.bank.picture(n) for n in range(30)])
    images, texts = (v / v.norm(dim=1, keepdim=True) for v in (encoders.images(x), encoders.texts(words)))
    cosines = (images @ texts.T).double()
    cosines -= cosines.mean(1, keepdim=True)
    codes = concepts.of_images().read(0, 30)[:, 2].numpy()
    expected = [np.corrcoef(codes, cosines[:, place].numpy())[0, 1] for place in range(3)]
    np.testing.assert_allclose(found.scores.numpy(), expected, atol=1e-6)


def test_encoders_need_their_package_and_weights(monkeypatch: pytest.MonkeyPatch, concepts: Concepts) -> None:
    with pytest.raises(InputError, match="give the weights"):
        open_clip_encoders()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"open_clip.*backlight\[clip\]"):
        open_clip_encoders(pretrained="laion2b_s34b_b79k")
    with pytest.raises(InputError, match="at least one"):
        name_by_text([], ["a"], colours())
    with pytest.raises(InputError, match="at least one text"):
        name_by_profile(concepts, [0], [], colours())
