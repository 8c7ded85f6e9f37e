"""Checkpoints of other libraries, written by hand: codes and reconstructions against what they stand for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions import Decomposition
from backlight.decompositions.foreign import load_foreign
from backlight.errors import InputError, UnknownNameError

K, C = 30, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = drawn(50, C, seed=9) * 2 + 0.5
W_ENC, B_ENC = drawn(C, K, seed=1), drawn(K, seed=2)
W_DEC, B_DEC = drawn(K, C, seed=3), drawn(C, seed=4)
THRESHOLD = drawn(K, seed=5) + 0.5  # some are negative
R_MAG, B_MAG = 0.3 * drawn(K, seed=6), drawn(K, seed=7)


def same(one: Decomposition, z: Tensor, told: Tensor, tmp_path: Path) -> None:
    assert 0.02 < float((z > 0).float().mean()) < 0.98
    torch.testing.assert_close(one.encode(X), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.decode(z), told, rtol=1e-4, atol=1e-5)
    some = torch.tensor([3, 1, 29])
    torch.testing.assert_close(one.latents(X, some), z[:, some], rtol=1e-4, atol=1e-5)
    one.save(tmp_path / "ours")
    assert torch.equal(Decomposition.load(tmp_path / "ours").encode(X), one.encode(X))


def kept(z: Tensor, k: int) -> Tensor:
    top = z.topk(k, dim=1)
    return torch.zeros_like(z).scatter(1, top.indices, top.values)


def saelens(place: Path, config: dict[str, Any], **others: Tensor) -> Path:
    place.mkdir(exist_ok=True)
    (place / "cfg.json").write_text(json.dumps({"d_in": C, "d_sae": K, **config}))
    tensors = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, **others}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "sae_weights.safetensors")
    return place


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens(architecture: str, applied: bool, tmp_path: Path) -> None:
    config = {"architecture": architecture, "apply_b_dec_to_input": applied, "k": 4}
    others = {
        "jumprelu": {"threshold": THRESHOLD},
        "gated": {"b_gate": B_ENC.clone(), "r_mag": R_MAG, "b_mag": B_MAG},
    }
    one = load_foreign(saelens(tmp_path / "sae", config, **others.get(architecture, {})))
    given = X - B_DEC if applied else X
    p = given @ W_ENC + B_ENC
    if architecture == "gated":
        z = (p > 0) * F.relu(given @ (W_ENC * R_MAG.exp()) + B_MAG)
    else:
        z = {"standard": p.relu(), "topk": kept(p, 4).relu(), "jumprelu": (p * (p > THRESHOLD)).relu()}[architecture]
    same(one, z, z @ W_DEC + B_DEC, tmp_path)


def test_saelens_rescaled_layer_norm_and_training_checkpoints(tmp_path: Path) -> None:
    config = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}
    length = W_DEC.norm(dim=1)
    z = kept(((X - B_DEC) @ W_ENC + B_ENC) * length, 4).relu()
    same(load_foreign(saelens(tmp_path / "a", config)), z, (z / length) @ W_DEC + B_DEC, tmp_path)

    one = load_foreign(saelens(tmp_path / "b", {"architecture": "standard", "normalize_activations": "layer_norm"}))
    mean, std = X.mean(1, keepdim=True), X.std(1, keepdim=True)
    z = (((X - mean) / (std + 1e-5) - B_DEC) @ W_ENC + B_ENC).relu()
    torch.testing.assert_close(one.encode(X), z * std, rtol=1e-3, atol=1e-4)  # in the rows' units
    torch.testing.assert_close(one.reconstruct(X), (z @ W_DEC + B_DEC) * std + mean, rtol=1e-3, atol=1e-3)

    for architecture in ("batchtopk", "matryoshka_batchtopk"):
        place = saelens(tmp_path / "c", {"architecture": architecture, "k": 4.0}, topk_threshold=torch.tensor(1.5))
        p = (X - B_DEC) @ W_ENC + B_ENC
        z = p * (p > 1.5)
        same(load_foreign(place, "saelens"), z, z @ W_DEC + B_DEC, tmp_path)
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    assert (load_foreign(saelens(tmp_path / "d", old)).encode(X) > 0).sum(1).max() == 5


def dictionary_learning(place: Path, name: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    place.mkdir(exist_ok=True)
    torch.save(tensors, place / "ae.pt")
    (place / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, **trainer}}))
    return place


def test_dictionary_learning(tmp_path: Path) -> None:
    linear = {"encoder.weight": W_ENC.T, "decoder.weight": W_DEC.T}
    matrices = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    number = {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(1.5)}
    p = (X - B_DEC) @ W_ENC + B_ENC
    bare = X @ W_ENC + B_ENC
    gated = (p > 0) * F.relu((X - B_DEC) @ W_ENC * R_MAG.exp() + B_MAG)
    sizes = torch.tensor([2, 3, 5, 20])
    cases: list[tuple[str, dict[str, Tensor], dict[str, Any], Tensor]] = [
        ("AutoEncoder", {**linear, "encoder.bias": B_ENC, "bias": B_DEC}, {}, p.relu()),
        ("AutoEncoderTopK", {**linear, "encoder.bias": B_ENC, "b_dec": B_DEC, **number}, {}, kept(p.relu(), 4)),
        ("BatchTopKSAE", {**linear, "encoder.bias": B_ENC, "b_dec": B_DEC, **number}, {}, p * (p > 1.5)),
        ("MatryoshkaBatchTopKSAE", {**matrices, **number, "group_sizes": sizes}, {}, p * (p > 1.5)),
        ("JumpReluAutoEncoder", {**matrices, "threshold": THRESHOLD}, {}, (bare * (bare > THRESHOLD)).relu()),
        (
            "JumpReluAutoEncoder",
            {**matrices, "threshold": THRESHOLD},
            {"apply_b_dec_to_input": True},
            (p * (p > THRESHOLD)).relu(),
        ),
        (
            "GatedAutoEncoder",
            {**linear, "decoder_bias": B_DEC, "r_mag": R_MAG, "gate_bias": B_ENC, "mag_bias": B_MAG},
            {},
            gated,
        ),
    ]
    for name, tensors, trainer, z in cases:
        place = dictionary_learning(tmp_path / "sae", name, tensors, **trainer)
        one = load_foreign(place)
        same(one, z, z @ W_DEC + B_DEC, tmp_path)
        if name == "MatryoshkaBatchTopKSAE":
            assert one.prefixes() == [2, 5, 10, 30]  # type: ignore[attr-defined]
        if name not in ("AutoEncoderTopK", "BatchTopKSAE") and not trainer:
            torch.testing.assert_close(load_foreign(place / "ae.pt").encode(X), one.encode(X))
    untold = dictionary_learning(tmp_path / "sae", "BatchTopKSAE", cases[2][1])
    with pytest.raises(InputError, match="kind='AutoEncoderTopK'"):
        load_foreign(untold / "ae.pt")
    torch.testing.assert_close(load_foreign(untold / "ae.pt", kind="BatchTopKSAE").encode(X), cases[2][3])


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_overcomplete(ending: str, tmp_path: Path) -> None:
    tensors = {
        "encoder.final_block.0.weight": W_ENC.T.contiguous(),
        "encoder.final_block.0.bias": B_ENC,
        "dictionary._weights": W_DEC,
        "dictionary.multiplier": torch.tensor(0.3),
    }
    file = tmp_path / f"sae.{ending}"

    def write(written: dict[str, Tensor]) -> None:
        save_file(written, file) if ending == "safetensors" else torch.save(written, file)

    write(tensors)
    p, modes = X @ W_ENC + B_ENC, W_DEC * torch.tensor(0.3).exp()
    same(load_foreign(file, kind="SAE"), p.relu(), p.relu() @ modes, tmp_path)
    z = kept(p.relu(), 6)
    same(load_foreign(file, "overcomplete", kind="TopKSAE", k=6), z, z @ modes, tmp_path)
    theta = float(p.flatten().sort().values[-200])
    z = p * (p >= theta)
    one = load_foreign(file, kind="BatchTopKSAE", threshold=theta)
    assert int((one.encode(X) > 0).sum()) == 200
    same(one, z, z @ modes, tmp_path)
    with pytest.raises(InputError, match="does not say what it is"):
        load_foreign(file)
    write({**tensors, "encoder.mlp_blocks.0.weight": B_DEC})
    with pytest.raises(InputError, match="linear one is read"):
        load_foreign(file, kind="SAE")
    write({**tensors, "thresholds": THRESHOLD})
    z = (p * (p > THRESHOLD.exp())).relu()
    same(load_foreign(file), z, z @ modes, tmp_path)


class Harmful:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"dictionary.x": Harmful()}, tmp_path / "bad.pt")
    for format in ("auto", "overcomplete", "dictionary_learning"):
        with pytest.raises(InputError, match="tensors alone"):
            load_foreign(tmp_path / "bad.pt", format)
    assert not (tmp_path / "harmed").exists()
    torch.save([B_DEC], tmp_path / "list.pt")
    with pytest.raises(InputError, match="more than named tensors"):
        load_foreign(tmp_path / "list.pt")
    with pytest.raises(InputError, match="SAELens"):
        load_foreign(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_foreign(tmp_path / "none.pt")
    with pytest.raises(UnknownNameError, match="saelens"):
        load_foreign(tmp_path, "sae_lens")
    with pytest.raises(UnknownNameError, match="topk"):
        load_foreign(saelens(tmp_path / "a", {"architecture": "top_k"}))
    with pytest.raises(InputError, match="fold"):
        load_foreign(saelens(tmp_path / "a", {"normalize_activations": "expected_average_only_in"}))
    with pytest.raises(InputError, match="has no 'threshold'"):
        load_foreign(saelens(tmp_path / "a", {"architecture": "jumprelu"}))
    with pytest.raises(InputError, match="expected \\[30, 8\\]"):
        load_foreign(saelens(tmp_path / "a", {"architecture": "standard"}, W_enc=W_ENC.T))
