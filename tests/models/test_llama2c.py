"""llama2.c's files as Hugging Face's Llama: the logits and tokens of a literal implementation."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from backlight.errors import ModelError
from backlight.models.llama2c import load_llama2c, load_llama2c_tokens, read_llama2c, read_tokens

DATA = Path(__file__).parents[2].parent / "shared/data/weights"
WEIGHTS, TOKENS = DATA / "aidreams260K.bin", DATA / "tok512.bin"
real = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")


def write(path: Path, *, kv_heads: int = 2, shared: bool = True) -> dict[str, np.ndarray]:
    """A random model of two layers, four heads of four."""
    draw = np.random.default_rng(0)
    width, hidden, layers, heads, vocabulary, length, head = 16, 24, 2, 4, 11, 9, 4
    shapes = {"embedding": (vocabulary, width), "att": (layers, width), "wq": (layers, width, width),
              "wk": (layers, kv_heads * head, width), "wv": (layers, kv_heads * head, width),
              "wo": (layers, width, width), "ffn": (layers, width), "w1": (layers, hidden, width),
              "w2": (layers, width, hidden), "w3": (layers, hidden, width), "norm": (width,),
              "cos": (length, head // 2), "sin": (length, head // 2)}  # fmt: skip
    if not shared:
        shapes["classifier"] = (vocabulary, width)
    arrays = {name: draw.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}
    header = struct.pack("<7i", width, hidden, layers, heads, kv_heads, vocabulary if shared else -vocabulary, length)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    return arrays


def literal(a: dict[str, np.ndarray], tokens: list[int], heads: int, kv_heads: int) -> np.ndarray:
    """The logits at every position, by loops, with rotary embeddings of neighbouring entries."""

    def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        x = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** (i / len(x))
            x[i], x[i + 1] = (x[i] * np.cos(angle) - x[i + 1] * np.sin(angle),
                              x[i] * np.sin(angle) + x[i + 1] * np.cos(angle))  # fmt: skip
        return x

    x = a["embedding"][tokens].astype(np.float64)
    head = x.shape[1] // heads
    for layer in range(len(a["wq"])):
        h = rms(x, a["att"][layer])
        q, k, v = (h @ a[name][layer].T for name in ("wq", "wk", "wv"))
        mixed = np.zeros_like(x)
        for one in range(heads):
            own, shared = slice(one * head, (one + 1) * head), one // (heads // kv_heads)
            theirs = slice(shared * head, (shared + 1) * head)
            for t in range(len(tokens)):
                scores = np.array([turned(q[t, own], t) @ turned(k[s, theirs], s) for s in range(t + 1)]) / head**0.5
                weights = np.exp(scores - scores.max())
                mixed[t, own] = weights / weights.sum() @ v[: t + 1, theirs]
        x = x + mixed @ a["wo"][layer].T
        h = rms(x, a["ffn"][layer])
        gate = h @ a["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ a["w3"][layer].T)) @ a["w2"][layer].T
    return rms(x, a["norm"]) @ a.get("classifier", a["embedding"]).T


@pytest.mark.parametrize(("kv_heads", "shared"), [(4, True), (2, True), (1, False)])
def test_logits_are_those_of_a_literal_implementation(tmp_path: Path, kv_heads: int, shared: bool) -> None:
    arrays = write(tmp_path / "m.bin", kv_heads=kv_heads, shared=shared)
    model = load_llama2c(tmp_path / "m.bin")
    tokens = [1, 4, 10, 0, 7, 7, 3]
    with torch.no_grad():
        ours = model(torch.tensor([tokens])).logits[0]
    np.testing.assert_allclose(ours, literal(arrays, tokens, 4, kv_heads), atol=1e-4)
    assert not model.training


@real
def test_the_trained_model_is_the_literal_one_and_knows_its_texts() -> None:
    header, state = read_llama2c(WEIGHTS)
    content, offset = WEIGHTS.read_bytes(), 28
    arrays = {}
    w, f, n, v = header.width, header.hidden, header.layers, header.vocabulary
    for name, shape in {"embedding": (v, w), "att": (n, w), "wq": (n, w, w), "wk": (n, w, w), "wv": (n, w, w),
                        "wo": (n, w, w), "ffn": (n, w), "w1": (n, f, w), "w2": (n, w, f), "w3": (n, f, w),
                        "norm": (w,)}.items():  # fmt: skip
        arrays[name] = np.frombuffer(content, "<f4", int(np.prod(shape)), offset).reshape(shape)
        offset += 4 * int(np.prod(shape))
    model, tokenizer = load_llama2c(WEIGHTS), load_llama2c_tokens(TOKENS, header.vocabulary)
    text = "Echoes of prior knowledge hum, a gentle hum of precision"
    tokens = tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    np.testing.assert_allclose(logits, literal(arrays, tokens, header.heads, header.kv_heads), atol=1e-4)
    assert float(loss) < 2.5  # the logarithm of 512 tokens is 6.2
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert state["lm_head.weight"].shape == (512, 64)


def merged(text: str, tokens: list[tuple[str, float]]) -> list[int]:
    """llama2.c's tokeniser: characters, or their bytes; then the adjacent pair whose token scores best, until none."""
    numbers = {name: number for number, (name, _) in reversed(list(enumerate(tokens)))}
    found: list[int] = []
    for character in " " + text:
        found += [numbers[character]] if character in numbers else [byte + 3 for byte in character.encode()]
    while True:
        pairs = [(tokens[numbers[name]][1], -i, numbers[name]) for i in range(len(found) - 1)
                 if (name := tokens[found[i]][0] + tokens[found[i + 1]][0]) in numbers]  # fmt: skip
        if not pairs:
            return [1, *found]
        _, place, number = max(pairs)
        found[-place : -place + 2] = [number]


@real
@pytest.mark.parametrize(
    "text", ["Once upon a time", "Lily and Tom  went\nto the park.", "Zebra?! naïve 漢字", "a", "the theatre's End"]
)
def test_tokens_are_those_of_a_literal_tokeniser(text: str) -> None:
    tokenizer = load_llama2c_tokens(TOKENS, 512)
    assert tokenizer(text)["input_ids"] == merged(text, read_tokens(TOKENS, 512))
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.bin")
    (tmp_path / "short.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:-4])
    (tmp_path / "other.bin").write_bytes(b"\x89PNG" * 20)
    with pytest.raises(ModelError, match="asks for"):
        read_llama2c(tmp_path / "short.bin")
    with pytest.raises(ModelError, match="in llama2"):
        read_llama2c(tmp_path / "other.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="too short"):
        read_llama2c(tmp_path / "empty.bin")
    with pytest.raises(ModelError, match="cannot read"):
        read_llama2c(tmp_path / "none.bin")
    with pytest.raises(ModelError, match="tokens of llama2"):
        read_tokens(tmp_path / "other.bin", 512)
