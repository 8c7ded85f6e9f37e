"""AttnLRP and CP-LRP against LXT, where it is right.

LXT pins an older transformers than ours: these tests run in an environment of their own, with the extra `oracles`, and
are skipped elsewhere. LXT patches the classes of torch and transformers for good, so that it works in another process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backlight
from backlight.engine import attribute
from backlight.methods import method

pytest.importorskip("lxt")
transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

ROOT = Path(__file__).resolve().parents[2]
LENGTH, SIZE = 6, 24
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": SIZE, "mlp_dim": 48,
        "num_classes": 5,
    },
    "gpt2": {"n_embd": SIZE, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 16},
    "llama": {
        "hidden_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "vocab_size": 11,
    },
}  # fmt: skip

# makes the network again, patches it, and writes value times gradient; a language model is given embeddings
PROGRAM = """
import sys
import backlight, torch, transformers, torchvision
from importlib import import_module
from lxt.efficient import monkey_patch
name, variant, path = sys.argv[1:]
given = torch.load(path + "/given.pt", weights_only=False)
if name == "vit":
    from lxt.efficient.models import vit_torch
    monkey_patch(torchvision.models.vision_transformer)
    model = torchvision.models.VisionTransformer(**given["config"])
else:
    parts = import_module(f"lxt.efficient.models.{name}")
    monkey_patch(import_module(f"transformers.models.{name}.modeling_{name}"), patch_map=getattr(parts, variant))
    config = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[name](**given["config"])
    model = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}[name](config)
model = model.double().eval()
model.load_state_dict(given["weights"])
for parameter in model.parameters():
    parameter.requires_grad_(False)
x = given["x"].requires_grad_()
score = model(x)[0, 3] if name == "vit" else model(inputs_embeds=x, use_cache=False).logits[0, -1, 3]
score.backward()
torch.save((x * x.grad).detach(), path + "/found.pt")
"""


class Embedded(nn.Module):
    """A language model from its embeddings to the logits of the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x, use_cache=False).logits[:, -1]


def network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """(the network with random weights and biases, its configuration)."""
    config = CONFIGS[name]
    model: nn.Module
    if name == "vit":
        model = torchvision.models.VisionTransformer(**config)
    elif name == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + 0.2 * noise)
    return model, config


def by_lxt(name: str, variant: str, model: nn.Module, config: dict[str, Any], x: Tensor, folder: Path) -> Tensor:
    torch.save({"weights": model.state_dict(), "config": config, "x": x}, folder / "given.pt")
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, name, variant, str(folder)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    [("gpt2", "attnLRP", 1e-7), ("gpt2", "cp_LRP", 1e-7), ("llama", "attnLRP", 1e-7), ("vit", "cp_LRP", 1e-7)],
)
def test_relevance_is_lxt_s(name: str, variant: str, tolerance: float, tmp_path: Path) -> None:
    model, config = network(name)
    shape = (1, 3, 32, 32) if name == "vit" else (1, LENGTH, SIZE)
    x = torch.randn(shape, dtype=torch.float64)
    expected = by_lxt(name, variant, model, config, x, tmp_path)
    explainer = method("AttnLRP" if variant == "attnLRP" else "CPLRP")(model if name == "vit" else Embedded(model))
    found = explainer.attribute(x, 3)
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"{name} {variant}: {error:.1e}")
    assert error < tolerance
    plain = attribute(explainer.model, x, 3, readout="value").value
    assert float((plain - expected).abs().max() / expected.abs().max()) > 1e-2


def test_a_gate_of_lxt_s_cp_lrp_is_held_where_ours_shares(tmp_path: Path) -> None:
    """LXT holds SwiGLU's gate in CP-LRP, so that the other factor gets all; here each factor gets half."""
    model, config = network("llama")
    x = torch.randn(1, LENGTH, SIZE, dtype=torch.float64)
    expected = by_lxt("llama", "cp_LRP", model, config, x, tmp_path)
    found = backlight.CPLRP(Embedded(model)).attribute(x, 3)
    assert float((found - expected).abs().max() / expected.abs().max()) > 1e-2
