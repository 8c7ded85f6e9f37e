"""What the edges of a concept graph cost: against the bare passes that theory needs, and against one pair at a time.

Six pairs of layers of EfficientNet-Lite0 and of ResNet-50 with random weights, the last of them to classes; 20 targets
each, Integrated Gradients with 20 steps. Theory: for each pair 20 forward passes of the layers in between and 20 x 20
backward ones; bare, that is the same blocks as an `nn.Sequential`, frozen, in batches of the same size. One pair at a
time: one parent's coefficients, by autograd through the code, measured for the strongest parents of one target, and
multiplied by the number of active parents and of targets. CPU seconds of one thread, measured in alternation.

    python benchmarks/concept_graph_speed.py [--model resnet50] [--steps 20] [--targets 20] [--repeats 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import backlight
from backlight.graph.coded import Coded, code_sites, value_of
from backlight.graph.icat import edges, score_of
from backlight.graph.operators import IntegratedGradients

SITES = {
    "efficientnet_lite0": [f"blocks.{n}" for n in range(1, 7)],
    "resnet50": ["layer1.2", "layer2.3", "layer3.0", "layer3.2", "layer3.5", "layer4.2"],
}
ON = 16  # concepts of a PFV


def between(model: nn.Module, start: str, stop: str | None) -> nn.Sequential:
    """The blocks between two sites, as they are."""
    blocks = [name for name, module in model.named_modules() if name in _blocks(model)]
    order = blocks[blocks.index(start) + 1 :]
    if stop is not None:
        return nn.Sequential(*(model.get_submodule(name) for name in order[: order.index(stop) + 1]))
    tail = ["conv_head", "bn2", "global_pool", "classifier"] if hasattr(model, "conv_head") else ["global_pool", "fc"]
    return nn.Sequential(*(model.get_submodule(name) for name in (*order, *tail)))


def settled(model: nn.Module, size: int) -> nn.Module:
    """The random network with statistics of its own activations, which would fade out, and with blocks that are on."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        torch.nn.init.ones_(norm.weight)  # 0 in the last of a residual block, which would pass its input on as it is
    with torch.no_grad():
        model.train()(torch.randn(2, 3, size, size))
    return model.eval()


def _blocks(model: nn.Module) -> set[str]:
    if hasattr(model, "blocks"):
        return {f"blocks.{n}" for n in range(len(model.blocks))}
    return {f"layer{stage}.{n}" for stage in range(1, 5) for n in range(len(model.get_submodule(f"layer{stage}")))}


def layers(model: nn.Module, x: Tensor, sites: list[str]) -> dict[str, Coded]:
    """Random dictionaries with eight times as many atoms as channels, and random sparse codes."""
    draw = torch.Generator().manual_seed(0)

    def made(channels: int) -> tuple[Callable[[Tensor], Tensor], Tensor, None]:
        def encode(vectors: Tensor) -> Tensor:
            codes = torch.zeros(len(vectors), 8 * channels)
            chosen = torch.randint(0, 8 * channels, (len(vectors), ON), generator=draw)
            return codes.scatter_(1, chosen, torch.rand(len(vectors), ON, generator=draw))

        return encode, torch.randn(8 * channels, channels, generator=draw), None

    with torch.no_grad(), backlight.engine.captured(model, sites) as found:
        model(x)
    return code_sites(model, x, {site: made(found[site].shape[1]) for site in sites})


def bare(part: nn.Module, value: Tensor, steps: int, targets: int) -> None:
    """The passes that theory needs."""
    batch = value.repeat(steps, *(1,) * (value.ndim - 1)).requires_grad_()
    later = part(batch)
    cotangent = torch.randn(later.shape, generator=torch.Generator().manual_seed(0))
    for target in range(targets):
        torch.autograd.grad(later, batch, cotangent, retain_graph=target + 1 < targets)


def naive(part: nn.Module, parents: Coded, score: Callable[[Tensor], Tensor], parent: int, steps: int) -> float:
    """One edge: Integrated Gradients of one parent's coefficients."""
    places = ((torch.arange(steps) + 0.5) / steps)[:, None, None]
    own = parents.codes[0][:, parent : parent + 1]
    scaled = (places * own).requires_grad_()
    rest = places * (parents.vectors[0] - own @ parents.atoms[parent : parent + 1])
    value = value_of(rest + scaled @ parents.atoms[parent : parent + 1], parents.layout, parents.shape)
    (gradient,) = torch.autograd.grad(score(part(value)).sum(), scaled)
    return float((gradient.mean(0) * own).sum())


def timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def pair(model: nn.Module, x: Tensor, coded: dict[str, Coded], start: str, stop: str | None, given: argparse.Namespace):
    """(seconds of the edges, of the bare passes, of one pair at a time, largest difference of an edge)."""
    parents, children = coded[start], None if stop is None else coded[stop]
    there = torch.arange(given.targets) if children is None else children.codes[0].any(0).nonzero().flatten()
    targets = there[: given.targets].tolist()
    part = between(model, start, stop)
    attribution = IntegratedGradients(n_steps=given.steps, rule="riemann_middle")
    value = value_of(parents.vectors, parents.layout, parents.shape)
    scores, rows = score_of(children, targets), torch.zeros(given.steps, dtype=torch.long)
    ours = theory = 0.0
    bare(part, value, given.steps, 1)  # the first call of a shape plans its convolutions
    for _ in range(given.repeats):
        theory += timed(lambda: bare(part, value, given.steps, given.targets)) / given.repeats
        ours += timed(lambda: edges(model, x, parents, children, targets, attribution=attribution)) / given.repeats
    found = edges(model, x, parents, children, targets[:1], attribution=attribution).values[0, 0]
    active = (parents.codes[0] != 0).any(0).nonzero().flatten()
    off, alone = 0.0, 0.0
    for parent in found.abs().topk(given.pairs).indices.tolist():
        kept: list[float] = []
        alone += timed(
            lambda parent=parent, kept=kept: kept.append(
                naive(part, parents, lambda later: scores.of(later, 0, rows), parent, given.steps)
            )
        )
        off = max(off, abs(kept[0] - float(found[parent])) / float(found.abs().max()))
    return ours, theory, alone / given.pairs * len(active) * given.targets, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SITES), action="append")
    for name, default in (("steps", 20), ("targets", 20), ("repeats", 1), ("pairs", 3), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.model or SITES:
        torch.manual_seed(0)
        model = backlight.load(name, pretrained=False).model.requires_grad_(False)
        model = settled(model, given.size)
        x = torch.randn(1, 3, given.size, given.size)
        coded = layers(model, x, SITES[name])
        total = [0.0, 0.0, 0.0]
        edges(model, x, coded[SITES[name][-1]], None, [0])  # what the first call imports
        for start, stop in zip(SITES[name], (*SITES[name][1:], None), strict=True):
            *seconds, off = pair(model, x, coded, start, stop, given)
            total = [before + new for before, new in zip(total, seconds, strict=True)]
            print(f"{name} {start} -> {stop or 'classes'}: {seconds[0]:.2f} s of CPU, {seconds[0] / seconds[1]:.2f} x "
                  f"the bare passes, 1/{seconds[2] / seconds[0]:.0f} of one pair at a time; largest difference of an "
                  f"edge {off:.0e}", flush=True)  # fmt: skip
        print(f"{name}: {total[0]:.1f} s, {total[0] / total[1]:.2f} x the bare passes, 1/{total[2] / total[0]:.0f}")


if __name__ == "__main__":
    main()
