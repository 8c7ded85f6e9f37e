"""CAFE: a driver away from the firing token is found; equal to the fields of directions; tokens, batches, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explicit_rules import drawn, relative
from routed_network import SIDE, Routed, dictionary_of, drawn_dictionary, routed_image
from torch import nn

from backlight.concepts.attributors import ATTRIBUTORS, attributor
from backlight.concepts.cafe import Cafe
from backlight.concepts.latent_units import LatentUnit, activations, choose_tokens
from backlight.decompositions import KMeans
from backlight.errors import InputError, SiteError, TargetError, UnknownNameError
from backlight.methods.token_fields import TokenFields
from backlight.methods.token_layout import TokenLayout

timm = pytest.importorskip("timm")


def vit(**settings: Any) -> Any:
    made = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=24, patch_size=8, depth=2, num_classes=5, embed_dim=12,
        num_heads=3, **settings,
    )  # fmt: skip
    return drawn(made)


def images(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


READS = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.float64)


def reading() -> Any:
    """Latent 0 is on where much was written to channel 3."""
    return dictionary_of(READS, torch.tensor([-0.5, 0], dtype=torch.float64))


@pytest.mark.parametrize("name", ["AttnLRP", "CPLRP", "IntegratedGradients", "GradientTimesInput", "SoftPullback"])
@pytest.mark.parametrize(("asker", "driver"), [((0, 1), (4, 3)), ((3, 3), (1, 0))])
def test_the_driver_is_found_away_from_the_firing_token(name: str, asker: Any, driver: Any) -> None:
    found = Cafe(Routed(), reading(), "blocks.0", attributor=name).explain(routed_image(asker, driver), 0)
    assert found.positions.tolist() == [list(asker)]  # it fires at the asker, and nowhere else
    assert (found.activation > 0).sum() == 1
    best = int(found.map[0].argmax())
    assert divmod(best, SIDE) == driver
    assert found.map[0].flatten()[best] / found.map[0].abs().sum() > 0.5


@pytest.mark.parametrize("name", ["Gradient", "KernelSHAP"])
def test_asker_and_driver_share_where_either_changes_the_value(name: str) -> None:
    """Blank the asker, and nothing is read: to a game of patches, both are needed; a gradient knows no contents."""
    how = attributor(name, **({"n_samples": 600} if name == "KernelSHAP" else {}))
    found = Cafe(Routed(), reading(), "blocks.0", attributor=how).explain(routed_image((0, 1), (4, 3)), 0)
    order = found.map[0].flatten().argsort(descending=True)
    assert {divmod(int(place), SIDE) for place in order[:2]} == {(0, 1), (4, 3)}
    shares = found.map[0].flatten()[order] / found.map[0].abs().sum()
    assert shares[1] > 0.6 * shares[0]
    assert shares[2] < 0.2 * shares[0]


def test_activation_ranking_does_not_find_the_driver() -> None:
    found = Cafe(Routed(), reading(), "blocks.0", attributor="ActivationRanking").explain(
        routed_image((0, 1), (4, 3)), 0
    )
    assert divmod(int(found.map[0].argmax()), SIDE) == (0, 1)
    assert found.map[0, 4, 3] == 0


@pytest.mark.parametrize("k", [None, 3])
def test_the_field_of_a_latent_that_is_on_is_that_of_its_encoder_row(k: int | None) -> None:
    model, dictionary, x = vit(), drawn_dictionary(12, k=k), images()
    found = Cafe(model, dictionary, "blocks.0").explain(x, range_of(dictionary))
    fields = TokenFields(model)
    for number in range(len(found)):
        if found.z[number] == 0:
            assert found.patches.norm[number].abs().max() == 0
            continue
        token, row = int(found.tokens[number]), dictionary.state["encoder"][number]
        expected = fields.of(x, "blocks.0", [token], direction=row)
        assert relative(found.patches.norm[number], expected.sequence.norm[0]) < 1e-12
        assert relative(found.patches.signed[number], expected.sequence.signed[0]) < 1e-12
        assert relative(found.prefix.norm[number], expected.prefix.norm[0]) < 1e-12
        assert found.z[number].item() == pytest.approx(expected.scores[0].item(), rel=1e-12)
    assert (found.z > 0).sum() >= 4


def range_of(dictionary: Any) -> list[int]:
    return list(range(len(dictionary.modes)))


def test_activations_are_what_the_dictionary_encodes() -> None:
    model, dictionary, x = vit(), drawn_dictionary(12, k=2), images(3)
    found = activations(model, "blocks.1", dictionary, x, batch_size=2)
    from backlight.engine import captured

    with torch.no_grad(), captured(model, ["blocks.1"]) as store:
        model(x)
    for image in range(3):
        codes = dictionary.encode(store["blocks.1"][image])
        assert torch.allclose(found.values[image], codes, atol=1e-12)
        assert torch.allclose(found.patches[image].flatten(1).T, codes[1:], atol=1e-12)
        assert torch.allclose(found.prefix[image].T, codes[:1], atol=1e-12)


def test_a_batch_equals_its_single_runs() -> None:
    model, dictionary, x = vit(), drawn_dictionary(12, k=3), images(3)
    cafe = Cafe(model, dictionary, "blocks.1", batch_size=2)
    together = cafe.explain(x, [4, 0, 4], pixels=True)
    for number, latent in enumerate([4, 0, 4]):
        alone = cafe.explain(x[number : number + 1], latent, pixels=True)
        assert together.tokens[number] == alone.tokens[0]
        for one in ("activation", "prefix_activation", "map", "pixels", "z"):
            assert torch.allclose(getattr(together, one)[number], getattr(alone, one)[0], rtol=1e-9, atol=1e-12), one


def test_a_sum_over_tokens_is_the_sum_of_signed_fields() -> None:
    model, dictionary, x = vit(), drawn_dictionary(12), images()
    whole = Cafe(model, dictionary, "blocks.1", token="sum").explain(x, 2)
    parts = Cafe(model, dictionary, "blocks.1").explain(x, 2, tokens=torch.arange(10))
    assert whole.tokens.tolist() == [-1]
    assert whole.positions.tolist() == [[-1, -1]]
    assert torch.allclose(whole.patches.signed[0], parts.patches.signed.sum(0), atol=1e-10)
    assert whole.z[0].item() == pytest.approx(float(parts.z.sum()))
    assert float(whole.patches.norm.sum()) < float(parts.patches.norm.sum())  # norms are not additive


def test_tokens_are_chosen_as_asked() -> None:
    values, layout = torch.tensor([[5.0, 1, 3, 2, 0], [0, 0, 0, 1, 2]]), TokenLayout(2, 2, 1)
    for token, expected in (("argmax", [0, 4]), ("patch", [2, 4]), ("class", [0, 0]), (3, [3, 3]), (-1, [4, 4])):
        chosen = choose_tokens(values, token, layout)
        assert chosen is not None
        assert chosen.tolist() == expected
    assert choose_tokens(values, "sum", layout) is None
    with pytest.raises(UnknownNameError, match="close matches: argmax"):
        choose_tokens(values, "argmx", layout)
    with pytest.raises(InputError, match="no class token"):
        choose_tokens(values, "class", TokenLayout(1, 5, 0))
    with pytest.raises(InputError, match="the layer has 5"):
        choose_tokens(values, 5, layout)


def test_the_class_token_and_its_share() -> None:
    found = Cafe(vit(), drawn_dictionary(12), "blocks.1", token="class").explain(images(), [0, 1, 2])
    assert found.tokens.tolist() == [0, 0, 0]
    assert found.positions.tolist() == [[-1, -1]] * 3
    assert found.class_activation is not None
    assert torch.equal(found.class_activation, found.z)
    share = found.prefix_share
    assert share is not None
    norms = found.prefix.norm.sum(1) / (found.prefix.norm.sum(1) + found.patches.norm.sum((1, 2))).clamp(min=1e-300)
    assert torch.allclose(share, norms)


def test_the_strongest_latents_of_an_image() -> None:
    model, dictionary, x = vit(), drawn_dictionary(12, k=2), images()
    cafe = Cafe(model, dictionary, "blocks.1")
    z = activations(model, "blocks.1", dictionary, x).values[0].amax(0)
    assert cafe.strongest(x, 3).tolist() == z.argsort(descending=True)[:3].tolist()
    assert len(cafe.strongest(x, 99)) == int((z > 0).sum())


def test_a_map_s_positions_are_tokens() -> None:
    dictionary = drawn_dictionary(4)
    value = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    found = LatentUnit("at", dictionary, torch.tensor([1, 2]), torch.tensor([7, 3]))(None, {"at": value})
    for sample, (latent, token) in enumerate(((1, 7), (2, 3))):
        code = dictionary.encode(value[sample, :, token // 5, token % 5][None])
        assert found[sample] == pytest.approx(code[0, latent].item())
    last = LatentUnit("at", dictionary, 1, 7)(None, {"at": value.movedim(1, 3)})
    assert last[0] == pytest.approx(found[0].item())


def test_nothing_is_left_on_the_model_nor_the_dictionary() -> None:
    model, dictionary = vit(), drawn_dictionary(12, k=2)
    before = {name: tensor.clone() for name, tensor in dictionary.state.items()}
    state = torch.random.get_rng_state()
    for name in ATTRIBUTORS:
        if name == "SRD":
            continue
        settings = {"n_samples": 12} if name == "KernelSHAP" else {"n_steps": 2} if "Integrated" in name else {}
        Cafe(model, dictionary, "blocks.0", attributor=attributor(name, **settings)).explain(images(), 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(dictionary.state[name], tensor) for name, tensor in before.items())
    assert not any(tensor.requires_grad for tensor in dictionary.state.values())


def test_what_does_not_fit_is_named() -> None:
    model, dictionary, x = vit(), drawn_dictionary(12), images()
    cafe = Cafe(model, dictionary, "blocks.1")
    with pytest.raises(TargetError, match="latent \\[6\\] is out of range: there are 6"):
        cafe.explain(x, 6)
    with pytest.raises(TargetError, match="token \\[99\\]"):
        cafe.explain(x, 0, tokens=99)
    with pytest.raises(InputError, match="2 images, 3 latents"):
        cafe.explain(images(2), [0, 1, 2])
    with pytest.raises(SiteError, match="the dictionary 7 channels"):
        Cafe(model, drawn_dictionary(7), "blocks.1").explain(x, 0)
    with pytest.raises(UnknownNameError, match="close matches: AttnLRP"):
        Cafe(model, dictionary, "blocks.1", attributor="atnlrp")
    with pytest.raises(UnknownNameError, match="setting of AttnLRP"):
        attributor("AttnLRP", gamma=1)
    means = KMeans(n_modes=2).fit(torch.randn(10, 12))
    with pytest.raises(InputError, match="encoder"):
        Cafe(model, means, "blocks.1").explain(x, 0)


def test_a_latent_that_is_off_has_an_empty_field() -> None:
    dictionary = drawn_dictionary(12, bias=-1e3)
    found = Cafe(vit(), dictionary, "blocks.1").explain(images(), 0)
    assert found.map.abs().max() == 0
    assert found.z.tolist() == [0]


class Twice(nn.Module):
    """A layer that runs twice, and what follows it, which has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 4, 1), nn.ReLU()
        self.after = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.after(self.shared(self.first(x)))).cummax(1).values.mean((2, 3))


def test_what_follows_the_layer_takes_no_part_and_several_calls_are_refused() -> None:
    model, x = Twice().double(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    calls: list[int] = []
    model.after.register_forward_hook(lambda *given: calls.append(1))
    found = Cafe(model, drawn_dictionary(4, bias=1.0), "first").explain(x, 0)  # cummax has no rule: it is not reached
    assert len(calls) == 1  # for the layout
    row = drawn_dictionary(4).state["encoder"][0] @ model.first.weight[:, :, 0, 0]
    row_, column = found.positions[0].tolist()
    expected = (row * x[0, :, row_, column]).norm()
    assert found.map[0, row_, column].item() == pytest.approx(expected.item())
    with pytest.raises(SiteError, match="was reached 2 times"):
        Cafe(model, drawn_dictionary(4), "shared").explain(x, 0)
