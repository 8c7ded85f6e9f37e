"""What contributions of all blocks of a language model cost, against its bare passes: length, depth, memory.

    python benchmarks/text_cost.py [--lengths 128,256,512] [--layers 2,4,8] [--width 256] [--repeats 3]
                                   [--device cuda --dtype bfloat16] [--runs "AttnLRP+ActGrad"]

A Llama with random weights (RMSNorm, SwiGLU, two queries' heads a keys' head), one text, the logit of one token behind
it. The bare pass is forward and backward to the embeddings, parameters frozen. These are timed in alternation with it:
AttnLRP of the tokens, with and without checkpointed blocks; and, at the outputs of all blocks and at the hidden units
of all MLPs together, ActGrad, one pass; ActGrad from the neutral baseline, one more forward pass; hidden integrated
gradients with 10 intervals, 11 passes. The ratio is the median of the pairs'. All are run once on a short text before.

Seconds are of processor time on a CPU, so that another load counts little, and of the clock on a GPU. Memory is the
largest allocated above the loaded model: on a GPU its own count, on a CPU the process's, each run in a process of its
own; --no-held does without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from backlight.contributions import HiddenIntegratedGradients, contribute, default_sites
from backlight.engine import checkpointed
from backlight.engine.targets import Logit
from backlight.engine.token_targets import At
from backlight.methods.attn_lrp import AttnLRP
from backlight.models.language_models import LanguageModel, Text, load_language_model
from backlight.text import text_baseline

STEPS = 10
RUNS = ["AttnLRP", "AttnLRP, checkpointed", "ActGrad", "ActGrad from neutral", f"IG-{STEPS}"]


def language_model(settings: argparse.Namespace, layers: int, length: int) -> tuple[LanguageModel, Text]:
    torch.manual_seed(0)
    width = settings.width
    config = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": layers,
              "num_attention_heads": max(width // 64, 2), "num_key_value_heads": max(width // 128, 1),
              "vocab_size": settings.vocabulary, "max_position_embeddings": max(length, 4096)}  # fmt: skip
    found = load_language_model("llama", pretrained=False, config=config, dtype=getattr(torch, settings.dtype))
    found.model.requires_grad_(False).to(settings.device)
    return found, found.read_ids([torch.randint(3, settings.vocabulary, (length,)).tolist()])


def runs(found: LanguageModel, text: Text) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    target, start = At(Logit(5)), text_baseline(found, text)
    sites = (*default_sites(found.network), *default_sites(found.network, "mlp"))

    def bare() -> None:
        leaf = text.embeddings.detach().requires_grad_()
        torch.autograd.grad(found.network(leaf, text.mask).logits[0, -1, 5], leaf)

    def contributions(algorithm: str | HiddenIntegratedGradients, baseline: torch.Tensor | None) -> object:
        return contribute(
            found.network, text.embeddings, sites, target, algorithm=algorithm, baseline=baseline,
            additional_forward_args=(text.mask,),
        )  # fmt: skip

    lrp = AttnLRP(found.network)

    def tokens() -> object:
        return lrp.explain(text.embeddings, target, additional_forward_args=(text.mask,))

    def checkpointed_tokens() -> object:
        with checkpointed(found.network, default_sites(found.network)):
            return tokens()

    return {
        "bare": bare,
        "AttnLRP": tokens,
        "AttnLRP, checkpointed": checkpointed_tokens,
        "ActGrad": lambda: contributions("ActGrad", None),
        "ActGrad from neutral": lambda: contributions("ActGrad", start),
        f"IG-{STEPS}": lambda: contributions(HiddenIntegratedGradients(STEPS), start),
    }


def chosen(settings: argparse.Namespace) -> list[str]:
    return RUNS if settings.runs is None else settings.runs.split("+")


def warm_up(found: LanguageModel) -> None:
    """What is loaded on use is not what a text costs."""
    for run in runs(found, found.read_ids([[3, 4, 5, 6]])).values():
        run()


def seconds(run: Callable[[], object], device: str) -> float:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    begun = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - begun


def peak(run: Callable[[], object], device: str) -> float:
    """MiB above what was there."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on: loading had one of its own
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def memory(settings: argparse.Namespace, layers: int, length: int, name: str) -> float:
    """In a process of its own: a process gives nothing back."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", name, "--layers", str(layers)]
    command += ["--lengths", str(length)]
    for option in ("width", "vocabulary", "device", "dtype"):
        command += [f"--{option}", str(getattr(settings, option))]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is not held for later
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=given_back)
    return float(done.stdout.split()[-1])


def row(settings: argparse.Namespace, layers: int, length: int) -> str:
    found, text = language_model(settings, layers, length)
    named = {name: run for name, run in runs(found, text).items() if name == "bare" or name in chosen(settings)}
    warm_up(found)
    pairs: dict[str, list[float]] = {name: [] for name in named}
    own = []
    for _ in range(settings.repeats):
        for name, run in named.items():
            bare = seconds(named["bare"], settings.device)
            own.append(bare)
            pairs[name].append(seconds(run, settings.device) / bare)
    ratios = {name: statistics.median(values) for name, values in pairs.items() if name != "bare"}
    held = {name: memory(settings, layers, length, name) for name in named} if settings.held else {}
    cells = [str(layers), str(length), f"{1000 * statistics.median(own):.0f} ms"]
    cells += [f"{ratio:.2f}" for ratio in ratios.values()] + [f"{value:.0f}" for value in held.values()]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,256,512")
    parser.add_argument("--layers", default="2,4,8")
    for name, default in {"width": 256, "vocabulary": 1024, "repeats": 3}.items():
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--no-held", dest="held", action="store_false", help="time alone")
    parser.add_argument("--runs", help="those wanted, with + between; all by default")
    parser.add_argument("--memory", help="print the MiB of one run, and nothing else")
    settings = parser.parse_args()
    lengths, layers = ([int(one) for one in text.split(",")] for text in (settings.lengths, settings.layers))
    if settings.memory:
        found, text = language_model(settings, layers[0], lengths[0])
        warm_up(found)
        print(peak(runs(found, text)[settings.memory], settings.device))
        return
    names = [name for name in RUNS if name in chosen(settings)]
    print(
        "| "
        + " | ".join(["layers", "tokens", "bare", *names, *(["MiB: bare", *names] if settings.held else [])])
        + " |"
    )
    most = max(layers)
    for depth, length in [(depth, lengths[0]) for depth in layers] + [(most, length) for length in lengths[1:]]:
        print(row(settings, depth, length), flush=True)


if __name__ == "__main__":
    main()
