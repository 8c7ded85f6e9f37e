"""Checkpointed modules: the same values and relevance from less that is held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backlight.contributions import contribute
from backlight.engine import Coverage, Unit, attribute, checkpointed, edited, patched, running
from backlight.errors import InputError, ModelError, SiteError, UncoveredOperationError, UnknownNameError
from backlight.methods import method
from backlight.rules import attn_lrp, soft_pullback

WIDTH = 8


class Block(nn.Module):
    """Attention and a gated layer; writes to what it is given; a mask by name and a tuple, as Hugging Face's have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.gate, self.down = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.act = nn.SiLU()

    def forward(self, hidden: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, None]:
        hidden *= 0.9
        q, k, v = self.qkv(self.norm(hidden)).unflatten(2, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = hidden + self.out(mixed)
        mixed = self.down(self.act(self.gate(hidden)) * self.up(hidden))
        mixed += hidden
        return mixed, None


class Tower(nn.Module):
    """Blocks one after another; `calls` counts them."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            hidden, _ = block(hidden, mask=mask)
        return self.head(hidden[:, -1])


BLOCKS = [f"blocks.{k}" for k in range(4)]
SITES = ["input", "blocks.1", "blocks.1:input", "blocks.2.out", "blocks.2.down:input", "blocks.3"]


@pytest.fixture
def tower() -> Tower:
    return Tower().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 3, dtype=torch.float64)


def answers(coverage: Coverage) -> set[tuple[str, str, int, frozenset[str]]]:
    return {(row.operation, row.rule, row.calls, frozenset(row.layers)) for row in coverage}


@contextlib.contextmanager
def held() -> Iterator[dict[int, Tensor]]:
    """What autograd holds, by memory."""
    found: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        found[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield found


@pytest.mark.parametrize("layers", [BLOCKS, BLOCKS[1:3], [*BLOCKS, "blocks.2.act", "blocks.0.norm"]], ids=len)
@pytest.mark.parametrize("rules", [None, attn_lrp(), soft_pullback()], ids=["gradient", "AttnLRP", "soft"])
def test_relevance_is_what_it_is_without(tower: Tower, x: Tensor, layers: list[str], rules: Any) -> None:
    settings = {"sites": SITES} if rules is None else {"sites": SITES, "rules": rules}
    plain = attribute(tower, x, 2, **settings)
    with checkpointed(tower, layers):
        found = attribute(tower, x, 2, **settings)
    assert found.scores is not None
    assert plain.scores is not None
    assert torch.equal(found.scores, plain.scores)
    for site in SITES:
        assert torch.allclose(found.values[site], plain.values[site], rtol=1e-12, atol=1e-15), site
        assert plain.values[site].abs().max() > 0
    assert answers(found.coverage) == answers(plain.coverage)


def test_every_method_that_reads_at_the_input_gives_its_relevance(tower: Tower, x: Tensor) -> None:
    methods: dict[str, dict[str, Any]] = {
        "CPLRP": {}, "InputXGradient": {}, "IntegratedGradients": {"n_steps": 3}, "SmoothGrad": {"n_samples": 3},
        "PullbackAscent": {"n_steps": 3}, "Pullback": {},
    }  # fmt: skip
    for name, settings in methods.items():
        plain = method(name)(tower, **settings).explain(x, 2).value
        with checkpointed(tower, BLOCKS):
            found = method(name)(tower, **settings).explain(x, 2).value
        assert torch.allclose(found, plain, rtol=1e-10, atol=1e-14), name


@pytest.mark.parametrize("algorithm", ["ActGrad", "HiddenIntegratedGradients"])
def test_contributions_inside_are_what_they_are_without(tower: Tower, x: Tensor, algorithm: str) -> None:
    sites = [*BLOCKS, *(f"{block}.down:input" for block in BLOCKS)]
    plain = contribute(tower, x, sites, 2, algorithm=algorithm)
    with checkpointed(tower, BLOCKS):
        found = contribute(tower, x, sites, 2, algorithm=algorithm)
    for site in sites:
        assert torch.allclose(found.values[site], plain.values[site], rtol=1e-10, atol=1e-14), site


def test_what_is_held_is_what_goes_into_the_blocks(tower: Tower) -> None:
    x = torch.randn(1, 50, 3, dtype=torch.float64)
    between = 50 * WIDTH * x.element_size()  # of one tensor between two blocks

    def bytes_held(layers: list[str]) -> int:
        with held() as found, checkpointed(tower, layers):
            seen: list[int] = []

            def last(outputs: Tensor) -> Tensor:
                seen.append(sum(value.untyped_storage().nbytes() for value in found.values()))
                return outputs[:, 2]

            attribute(tower, x, last)
        return seen[0]

    assert bytes_held(BLOCKS) <= 6 * between
    assert bytes_held([]) > 25 * between


def test_outputs_are_bit_for_bit_and_nothing_is_left(tower: Tower, x: Tensor) -> None:
    with torch.no_grad():
        before = tower(x)
    hooks = {name: (dict(m._forward_hooks), dict(m._forward_pre_hooks)) for name, m in tower.named_modules()}
    with checkpointed(tower, BLOCKS):
        assert torch.equal(tower(x), before)  # outside an explanation they do nothing
        assert tower(x).requires_grad
        seen: list[Tensor] = []

        def last(outputs: Tensor) -> Tensor:
            seen.append(outputs.detach())
            return outputs[:, 1]

        attribute(tower, x, last, rules=attn_lrp())
    assert torch.equal(seen[0], before)
    assert {n: (dict(m._forward_hooks), dict(m._forward_pre_hooks)) for n, m in tower.named_modules()} == hooks


def test_a_failure_inside_leaves_gradients_on(tower: Tower, x: Tensor) -> None:
    def fail(value: Tensor) -> Tensor:
        raise ValueError("inside")

    with checkpointed(tower, BLOCKS):
        with edited(tower, {"blocks.2.norm": fail}), pytest.raises(ValueError, match="inside"):
            attribute(tower, x, 2)
        assert torch.is_grad_enabled()
        assert attribute(tower, x, 2).value.abs().max() > 0


def test_a_block_that_is_called_twice_is_computed_again_twice(x: Tensor) -> None:
    class Again(Tower):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            for _ in range(3):
                hidden, _ = self.blocks[0](hidden)
            return self.head(hidden[:, -1])

    tower = Again().double().eval()
    plain = attribute(tower, x, 2, rules=attn_lrp(), sites=["input", "blocks.0#1"])
    with checkpointed(tower, "blocks.0"):
        found = attribute(tower, x, 2, rules=attn_lrp(), sites=["input", "blocks.0#1"])
        for site, value in plain.values.items():
            assert torch.allclose(found.values[site], value, rtol=1e-12), site
        with pytest.raises(SiteError, match="numbers a call"):
            attribute(tower, x, 2, sites="blocks.0.out#1")


def test_edits_of_blocks_act_once_or_are_refused(tower: Tower, x: Tensor) -> None:
    def double(value: Tensor) -> Tensor:
        return 2 * value

    for site in ("blocks.1", "blocks.1:input", "blocks.1.norm"):
        with patched(tower, {site: double}):
            plain = attribute(tower, x, 2).value
        outside = site != "blocks.1:input"
        with contextlib.ExitStack() as stack:
            for context in (patched(tower, {site: double}), checkpointed(tower, BLOCKS))[:: 1 if outside else -1]:
                stack.enter_context(context)
            assert torch.allclose(attribute(tower, x, 2).value, plain, rtol=1e-12), site
        if site != "blocks.1.norm":
            with contextlib.ExitStack() as stack:
                for context in (patched(tower, {site: double}), checkpointed(tower, BLOCKS))[:: -1 if outside else 1]:
                    stack.enter_context(context)
                with pytest.raises(ModelError, match="would act twice"):
                    attribute(tower, x, 2)


def test_the_backward_pass_may_be_in_another_thread(tower: Tower, x: Tensor) -> None:
    """As autograd's is for a GPU."""
    plain = attribute(tower, x, 2, rules=attn_lrp()).value
    leaf = x.clone().requires_grad_()
    with checkpointed(tower, BLOCKS), torch.enable_grad():
        with running(tower, attn_lrp()) as run:
            run.keep(leaf)
            score = tower(leaf)[:, 2].sum()
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(torch.autograd.grad, score, leaf).result()[0]
    assert torch.allclose(found, plain, rtol=1e-12)


@pytest.mark.gpu
def test_on_a_gpu(tower: Tower, x: Tensor) -> None:
    tower, x = tower.cuda(), x.cuda()
    plain = attribute(tower, x, 2, rules=attn_lrp(), sites=SITES)
    with checkpointed(tower, BLOCKS), torch.autocast("cuda", torch.bfloat16):
        half = attribute(tower, x, 2, rules=attn_lrp())
    with checkpointed(tower, BLOCKS):
        found = attribute(tower, x, 2, rules=attn_lrp(), sites=SITES)
    for site in SITES:
        assert torch.allclose(found.values[site], plain.values[site], rtol=1e-9, atol=1e-12), site
    assert torch.isfinite(half.value).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_on_again(tower: Tower, x: Tensor, dtype: torch.dtype) -> None:
    tower.float()
    with torch.autocast("cpu", dtype):
        plain = attribute(tower, x.float(), 2, rules=attn_lrp())
        with checkpointed(tower, BLOCKS):
            found = attribute(tower, x.float(), 2, rules=attn_lrp())
    with checkpointed(tower, BLOCKS):
        whole = attribute(tower, x.float(), 2, rules=attn_lrp())
    assert torch.allclose(found.value, plain.value, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found.value, whole.value, rtol=1e-5, atol=1e-7)


def test_an_operation_without_a_rule_is_named(tower: Tower, x: Tensor) -> None:
    tower.blocks[1].act = nn.Sequential(nn.SiLU(), _Cube())
    with checkpointed(tower, BLOCKS), pytest.raises(UncoveredOperationError, match=r"blocks\.1\.act\.1"):
        attribute(tower, x, 2, rules=soft_pullback())


class _Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfcx(x)


def test_what_cannot_be_checkpointed_is_refused(tower: Tower, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"blocks\.0"), checkpointed(tower, "blocks.9"):
        pass
    with checkpointed(tower, BLOCKS):
        with pytest.raises(InputError, match="differentiated itself"):
            attribute(tower, x.requires_grad_(), 2, create_graph=True)
        with pytest.raises(InputError, match="biases"):
            attribute(tower, x, 2, bias=True)
        with pytest.raises(InputError, match="features"):
            attribute(tower, x, 2, sites="@features")
        for name in ("SRD", "FullGrad"):
            with pytest.raises(InputError, match="whole pass"):
                method(name)(tower).attribute(x, target=2)
        with pytest.raises(SiteError, match=r"the target reads site 'blocks\.1\.out'"):
            attribute(tower, x, Unit("blocks.1.out", 3))
        with pytest.raises(SiteError, match="leave that module out"):
            _maps(tower, x, "blocks.1.out")
    tower.blocks[1].act = _Swish()
    with checkpointed(tower, "blocks.1.act.gate"), pytest.raises(ModelError, match="its gate"):
        attribute(tower, x, 2, rules=attn_lrp())


class _Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def _maps(tower: Tower, x: Tensor, site: str) -> Any:
    from backlight.contributions import contribution_maps

    return contribution_maps(tower, x, site, 2)


def test_a_model_that_checkpoints_itself_is_refused_with_the_way_out(x: Tensor) -> None:
    class Own(Tower):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            for block in self.blocks:
                hidden, _ = checkpoint(block, hidden, use_reentrant=False)
            return self.head(hidden[:, -1])

    with pytest.raises(ModelError, match="checkpointed"):
        attribute(Own().double().eval(), x, 2, rules=attn_lrp())
