"""The insertion test of latents on a small transformer and a small network of convolutions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backlight.concepts.insertion_latents import InsertionTest, LatentResponse
from backlight.concepts.token_canvas import mean_patch_of, token_canvas, tokens_of
from backlight.decompositions import Decomposition
from backlight.decompositions.topk_sae import TopKSAE
from backlight.engine.sites import captured
from backlight.errors import InputError, ModelError, SiteError, UnknownNameError
from backlight.methods.token_layout import find_sites

timm = pytest.importorskip("timm")

SITE, GRID, COUNT = "blocks.1", (4, 4), 16


def transformer() -> nn.Module:
    torch.manual_seed(3)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=0, reg_tokens=1
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


class Maps(nn.Module):
    """Two convolutions; the second has maps of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def rows_at(model: nn.Module, site: str, x: Tensor) -> Tensor:
    with torch.no_grad(), captured(model, [site]) as store:
        model(x)
    value = store[site]
    return value if value.ndim == 3 else value.movedim(1, -1).flatten(1, 2)


def dictionary_of(model: nn.Module, site: str, x: Tensor) -> Decomposition:
    return TopKSAE(n_modes=20, k=8, epochs=2, batch_size=32).fit(rows_at(model, site, x).flatten(0, 1))


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Decomposition, Tensor]:
    model, x = transformer(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model, dictionary_of(model, SITE, x), x


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, Decomposition, Tensor]:
    torch.manual_seed(0)
    model, x = Maps().eval(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model, dictionary_of(model, "second", x), x


def pairs_of(model: nn.Module, site: str, dictionary: Decomposition, x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """For each image the latent, and the patch token, where z is largest."""
    rows = rows_at(model, site, x)[:, prefix:]
    z = dictionary.encode(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
    flat = z.flatten(1).argmax(1)
    return flat % z.shape[2], flat // z.shape[2] + prefix


def full_values(model: nn.Module, site: str, dictionary: Decomposition, x: Tensor, latents: Tensor, tokens: Tensor):
    rows = rows_at(model, site, x)[torch.arange(len(x)), tokens]
    return dictionary.encode(rows)[torch.arange(len(x)), latents]


@pytest.mark.parametrize("unit", ["tokens", "pixels"])
def test_all_patches_are_the_image_and_none_is_the_canvas(vit: tuple, unit: str) -> None:
    model, dictionary, x = vit
    latents, tokens = pairs_of(*vit[:1], SITE, dictionary, x, 2)
    test = InsertionTest(unit=unit, token="patch", batch_size=4)
    found = test.run(model, SITE, dictionary, x, latents, {"a": torch.rand(4, *GRID)})
    assert torch.equal(found.tokens, tokens)
    expected = full_values(model, SITE, dictionary, x, latents, tokens)
    assert torch.equal(found.full.float(), expected)
    if unit == "pixels":
        blank = full_values(model, SITE, dictionary, torch.zeros_like(x), latents, tokens)
        torch.testing.assert_close(found.empty.float(), blank, atol=1e-5, rtol=1e-5)


def test_tokens_are_mixed_and_the_prefix_stays(vit: tuple) -> None:
    """Against the network run by hand from the mixed sequence."""
    model, dictionary, x = vit
    latents, tokens = pairs_of(model, SITE, dictionary, x, 2)
    test = InsertionTest(canvas="zero")
    response = LatentResponse(test, model, SITE, dictionary, x, latents, GRID, tokens)
    masks = torch.rand(4, COUNT) < 0.5
    found = response(torch.arange(4), masks)
    with torch.no_grad():
        sequence = model._pos_embed(model.patch_embed(x))
        assert sequence.shape == (4, 2 + COUNT, 12)
        mixed = sequence.clone()
        mixed[:, 2:] *= masks[:, :, None]
        hidden = model.blocks[1](model.blocks[0](mixed))[torch.arange(4), tokens]
    torch.testing.assert_close(found, dictionary.encode(hidden)[torch.arange(4), latents], atol=1e-5, rtol=1e-5)


def test_token_canvases(vit: tuple) -> None:
    model, _, x = vit
    with torch.no_grad():
        content = model.patch_embed(x)
        position = (model._pos_embed(content) - torch.cat((torch.zeros(4, 2, 12), content), 1))[:, 2:]
    torch.testing.assert_close(token_canvas(model, x), position, atol=1e-5, rtol=1e-5)
    assert token_canvas(model, x, "zero").eq(0).all()
    mean = mean_patch_of(model, x, batch_size=3)
    torch.testing.assert_close(mean, content.mean((0, 1)))
    torch.testing.assert_close(token_canvas(model, x, "patch", mean_patch=mean), mean + position, atol=1e-5, rtol=1e-5)
    grey = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(token_canvas(model, x, "mean"), tokens_of(model, grey, find_sites(model))[0])
    own = torch.randn(COUNT, 12)
    assert torch.equal(token_canvas(model, x, own)[2], own)
    with pytest.raises(InputError, match="mean_patch"):
        token_canvas(model, x, "patch")
    with pytest.raises(InputError, match="broadcast"):
        token_canvas(model, x, torch.zeros(5, 12))
    with pytest.raises(UnknownNameError, match="position"):
        token_canvas(model, x, "positions")


@pytest.mark.parametrize("canvas", ["mean", "blur", "noise"])
def test_pixels_and_tokens_agree_where_the_canvas_is_a_picture(vit: tuple, canvas: str) -> None:
    """Patches that do not overlap are embedded one by one: mixing before the embedding, or behind it, is the same."""
    model, dictionary, x = vit
    latents, _ = pairs_of(model, SITE, dictionary, x, 2)
    scores = {"a": torch.rand(4, *GRID), "b": torch.rand(4, *GRID)}
    curves = [
        InsertionTest(unit=unit, canvas=canvas).run(model, SITE, dictionary, x, latents, scores).values
        for unit in ("tokens", "pixels")
    ]
    torch.testing.assert_close(*curves, atol=1e-4, rtol=1e-4)


def test_the_largest_token_is_at_least_the_fixed_one(vit: tuple) -> None:
    model, dictionary, x = vit
    latents, _ = pairs_of(model, SITE, dictionary, x, 2)
    scores = {"a": torch.rand(4, *GRID)}
    test = InsertionTest(token="patch")
    fixed = test.run(model, SITE, dictionary, x, latents, scores)
    largest = replace(test, reading="max").run(model, SITE, dictionary, x, latents, scores)
    assert (largest.values >= fixed.values - 1e-6).all()
    assert (largest.values > fixed.values + 1e-6).any()
    torch.testing.assert_close(largest.full, fixed.full)  # the token was chosen where it is largest
    assert largest.tokens.eq(-1).all()


def test_a_class_token_is_read_where_it_is_asked_for(vit: tuple) -> None:
    model, dictionary, x = vit
    rows = rows_at(model, SITE, x)[:, 0]
    latents = dictionary.encode(rows).argmax(1)
    found = InsertionTest(token="class").run(model, SITE, dictionary, x, latents, {"a": torch.rand(4, *GRID)})
    assert found.tokens.eq(0).all()
    torch.testing.assert_close(found.full.float(), dictionary.encode(rows).amax(1), atol=1e-5, rtol=1e-5)
    given = InsertionTest().run(
        model, SITE, dictionary, x, latents, {"a": torch.rand(4, *GRID)}, tokens=torch.tensor([0, 3, 5, 17])
    )
    assert given.tokens.tolist() == [0, 3, 5, 17]


@pytest.mark.parametrize("unit", ["tokens", "pixels"])
def test_curves_do_not_depend_on_batches(vit: tuple, unit: str) -> None:
    model, dictionary, x = vit
    latents, _ = pairs_of(model, SITE, dictionary, x, 2)
    scores = {name: torch.rand(4, *GRID) for name in "ab"}
    test = InsertionTest(unit=unit, canvas="zero")
    one, three, all_ = (
        replace(test, batch_size=size).run(model, SITE, dictionary, x, latents, scores) for size in (1, 3, 64)
    )
    torch.testing.assert_close(one.values, all_.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(three.values, all_.values, atol=1e-5, rtol=1e-5)
    alone = test.run(model, SITE, dictionary, x[2:3], latents[2:3], {n: s[2:3] for n, s in scores.items()})
    torch.testing.assert_close(alone.values[:, 0], all_.values[:, 2], atol=1e-5, rtol=1e-5)


def test_deletion_ends_where_insertion_begins(vit: tuple) -> None:
    model, dictionary, x = vit
    latents, _ = pairs_of(model, SITE, dictionary, x, 2)
    scores = {"a": torch.rand(4, *GRID)}
    put = InsertionTest(steps=4).run(model, SITE, dictionary, x, latents, scores)
    negative = {"a": -scores["a"]}
    taken = InsertionTest(steps=4, delete=True).run(model, SITE, dictionary, x, latents, negative)
    torch.testing.assert_close(put.values.flip(2), taken.values, atol=1e-5, rtol=1e-5)
    assert torch.equal(put.full, taken.full)


def test_patches_of_a_network_of_convolutions(cnn: tuple) -> None:
    """A position sees 7 x 7 pixels: patches that do not touch them change nothing."""
    model, dictionary, x = cnn
    latents = pairs_of(model, "second", dictionary, x, 0)[0]
    tokens = torch.tensor([0, 0, 0, 0])  # the upper left: pixels 0..4 of each side
    near = torch.zeros(4, 8, 8)
    near[:, :3, :3] = 1
    test = InsertionTest(unit="pixels", steps=[9, 30])
    found = test.run(model, "second", dictionary, x, latents, {"near": near, "far": -near}, tokens=tokens)
    torch.testing.assert_close(found.values[0, :, 1:], found.full[:, None].expand(4, 3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values[1, :, :3], found.empty[:, None].expand(4, 3), atol=1e-5, rtol=1e-5)
    with pytest.raises(SiteError, match="known"):
        InsertionTest().run(model, "second", dictionary, x, latents, {"near": near})


def test_nothing_is_left_on_the_model(vit: tuple) -> None:
    model, dictionary, x = vit
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    InsertionTest(canvas="noise").run(model, SITE, dictionary, x[:1], torch.tensor([0]), {"a": torch.rand(1, *GRID)})
    with pytest.raises(InputError):
        InsertionTest().run(model, SITE, dictionary, x[:1], torch.tensor([0]), {"a": torch.rand(1, 3, 3)})
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.rand(1, *GRID)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.set_rng_state(state)


def test_what_cannot_be(vit: tuple) -> None:
    model, dictionary, x = vit
    latents, scores = torch.tensor([1]), {"a": torch.rand(1, *GRID)}
    run = InsertionTest().run
    with pytest.raises(InputError, match="dictionary of 20"):
        run(model, SITE, dictionary, x[:1], torch.tensor([20]), scores)
    with pytest.raises(InputError, match="expected N, N"):
        run(model, SITE, dictionary, x, latents, scores)
    with pytest.raises(InputError, match="tokens"):
        run(model, SITE, dictionary, x[:1], latents, scores, tokens=torch.tensor([18]))
    with pytest.raises(InputError, match="no scores"):
        run(model, SITE, dictionary, x[:1], latents, {})
    with pytest.raises(SiteError):
        run(model, "patch_embed", dictionary, x[:1], latents, scores)  # before the mixed tokens
    with pytest.raises(InputError, match="sum"):
        InsertionTest(token="sum").run(model, SITE, dictionary, x[:1], latents, scores)
    for wrong in ({"unit": "token"}, {"canvas": "grey"}, {"reading": "mean"}, {"unit": "pixels", "canvas": "position"}):
        with pytest.raises(UnknownNameError):
            InsertionTest(**wrong)  # type: ignore[arg-type]
    training = transformer().train()
    training.pos_drop = nn.Dropout(0.5)
    with pytest.raises(ModelError, match="training"):
        run(training, SITE, dictionary, x[:1], latents, scores)


def test_names_say_the_settings() -> None:
    assert InsertionTest().name == "tokens, position"
    assert InsertionTest(unit="pixels", reading="max", delete=True).name == "pixels, zero, max, deletion"
    assert InsertionTest(canvas=torch.zeros(3)).name == "tokens, tensor [3]"
