"""Instance-specific effective receptive fields of tokens: which patches, and pixels, a token is made of.

The iERF of a scalar z of the hidden tokens (a token, a channel of it, a direction, an SAE latent) is its relevance at
the patch tokens under AttnLRP, with the l2 norm over channels as the score of a patch (CAFE, iERF paper, section 3):
A(p) = |x_p * g_p|_2, where x_p is the patch token and g_p the cotangent of z there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.attribution import attribute
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost
from backlight.engine.rules import RuleSet
from backlight.engine.sites import INPUT, captured
from backlight.engine.targets import Target, as_target, pick
from backlight.errors import InputError, SiteError, TargetError
from backlight.methods.token_layout import AUTO, TokenLayout, TokenSites, as_tokens, find_sites, grid_of
from backlight.rules.attn_lrp import attn_lrp
from backlight.shapes import Float


@dataclass(frozen=True, eq=False)
class TokenUnit(Target):
    """A scalar of one token h of a site `[N, L, D]`: |h|, one of its channels, or <d, h> for a direction d.

    |h| is <h / |h|, h> with h / |h| held: both have the gradient h / |h|. `token`, `channel`, `row`: one for all, or
    one a sample. `directions`: `[K, D]`, of which `row` says which is meant.

    Raises:
        SiteError: the site is not `[N, L, D]`.
        TargetError: a token or channel out of range, directions of another width.
    """

    site: str
    token: Any
    channel: Any = None
    directions: Tensor | None = None
    row: Any = 0
    per_sample = ("token", "channel", "row")

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.site,)

    def score(self, outputs: Any, hidden: Any) -> Tensor:
        value = hidden[self.site]
        if value.ndim != 3:
            raise SiteError(f"site {self.site!r} has shape {list(value.shape)}, not tokens [N, L, D]")
        chosen, length = torch.as_tensor(self.token), value.shape[1]
        if int(chosen.max()) >= length or int(chosen.min()) < -length:
            raise TargetError(f"token {self.token} is out of range: site {self.site!r} has {length} tokens")
        vectors = pick(value, self.token)
        if self.channel is not None:
            return pick(vectors, self.channel)
        if self.directions is None:
            return torch.linalg.vector_norm(vectors, dim=1)
        if self.directions.ndim != 2 or self.directions.shape[1] != vectors.shape[1]:
            raise TargetError(f"directions {list(self.directions.shape)} for tokens of width {vectors.shape[1]}")
        directions = self.directions.to(vectors)
        return (vectors * directions[torch.as_tensor(self.row, device=vectors.device)]).sum(1)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Of some tokens: `norm`, the l2 norm over channels of value times cotangent, and `signed`, its sum."""

    norm: Float[Tensor, "T *tokens"]
    signed: Float[Tensor, "T *tokens"]


@dataclass(frozen=True, eq=False)
class EffectiveFields:
    """The fields of T scalars.

    `patches` `[T, h, w]`: the relevance of each patch's content, at the output of the patch embedding. `position`
    `[T, h, w]`: that of what is added to it, the position embedding. `prefix` `[T, P]`: that of the class token (first)
    and of registers or a distillation token, with what is added to them. `sequence` `[T, h, w]`: content and position
    embedding as one vector, as at the first block's input. `pixels` `[T, C, H, W]`: value times cotangent at the input,
    where asked for. `scores` `[T]`: the scalars.

    Norms are unsigned, do not sum to the score, and are not additive: |a + b| is not |a| + |b|. The signed sums are.
    """

    patches: TokenScores
    position: TokenScores
    prefix: TokenScores
    sequence: TokenScores
    scores: Float[Tensor, "T"]
    layout: TokenLayout
    pixels: Float[Tensor, "T C H W"] | None = None
    coverage: Coverage = field(default_factory=Coverage)
    cost: Cost = field(default_factory=Cost)

    @property
    def shares(self) -> Float[Tensor, "T h w"]:
        """Each patch's share of the norms of all patches: sums to 1 (to 0 where nothing has relevance)."""
        norm = self.patches.norm
        return norm / _whole(norm.flatten(1).sum(1))[:, None, None]

    @property
    def absorbed(self) -> dict[str, Float[Tensor, "T"]]:
        """Shares of the norms of everything: patches, position, class token, registers; they sum to 1."""
        parts = {
            "patches": self.patches.norm.flatten(1).sum(1),
            "position": self.position.norm.flatten(1).sum(1),
            "class": self.prefix.norm[:, :1].sum(1),
            "registers": self.prefix.norm[:, 1:].sum(1),
        }
        whole = _whole(torch.stack(list(parts.values())).sum(0))
        return {name: part / whole for name, part in parts.items()}


def _whole(total: Tensor) -> Tensor:
    return total.where(total > 0, 1)


@dataclass(kw_only=True)
class TokenFields:
    """Effective receptive fields of tokens, channels and directions at any block, down to patches and pixels.

    A(p) = |x_p * g_p|_2 with the cotangent g of a hidden scalar under AttnLRP; iERF paper (Kim, Han, Kwak 2026),
    section 3. One forward and one backward pass a scalar. The scores are norms: unsigned, not conservative; what the
    class token and the position embedding absorb is not in them and is reported beside them.

    Args:
        model: a transformer with patch tokens; timm's, torchvision's and Hugging Face's are known.
        rules: AttnLRP's by default; any rule set serves.
        patches: the site of the patch embedding's output, `[N, L, D]` or a map; "auto" finds it.
        sequence: the site of the sequence with prefix tokens and position embedding, before any normalisation; None:
            there are none of both.
        grid: (height, width) of the patches, where they are not squares that tile the input.
        strict: raise where no rule answers for an operation.
    """

    model: nn.Module = field(kw_only=False)
    rules: RuleSet = field(default_factory=attn_lrp)
    patches: str = AUTO
    sequence: str | None = AUTO
    grid: tuple[int, int] | None = None
    strict: bool = True

    def layout(self, inputs: Float[Tensor, "N C H W"]) -> TokenLayout:
        """Grid and number of prefix tokens at these inputs; costs a forward pass of one."""
        sites = self._sites()
        with torch.no_grad(), captured(self.model, sites.names) as store:
            self.model(inputs[:1])
        return self._layout(sites, store, inputs)

    def of(
        self,
        inputs: Float[Tensor, "N C H W"],
        site: str,
        tokens: Any,
        *,
        channel: Any = None,
        direction: Tensor | None = None,
        pixels: bool = False,
        internal_batch_size: int | None = None,
    ) -> EffectiveFields:
        """The fields of T tokens of a site `[N, L, D]`, such as a block's output.

        Args:
            inputs: one image for all tokens, or T of them.
            tokens: T indices in the sequence (the class token, where there is one, is 0; see `layout` for patches).
            channel: the scalar is this channel of the token; one for all, or T.
            direction: the scalar is <direction, token>; `[D]`, or `[T, D]`. Neither: the token's norm.
            pixels: read the relevance at the input too.
            internal_batch_size: the most tokens in one pass.

        Raises:
            TargetError: a token, channel or direction that does not fit the site.
            SiteError: a site that is not `[N, L, D]`; a model whose patch tokens are not known.
            InputError: numbers of images, tokens and directions that do not agree; patches that are no grid.
        """
        tokens = torch.as_tensor(tokens).reshape(-1)
        count = len(tokens)
        rows: Any = 0
        if direction is not None:
            if channel is not None:
                raise InputError("a channel or a direction, not both")
            direction = direction.reshape(-1, direction.shape[-1])
            if len(direction) not in (1, count):
                raise InputError(f"{len(direction)} directions for {count} tokens")
            rows = torch.arange(count) if len(direction) > 1 else 0
        target = TokenUnit(site, tokens, channel, direction, rows)
        return self.explain(inputs, target, count=count, pixels=pixels, internal_batch_size=internal_batch_size)

    def explain(
        self,
        inputs: Float[Tensor, "N C H W"],
        target: Any,
        *,
        count: int | None = None,
        pixels: bool = False,
        internal_batch_size: int | None = None,
    ) -> EffectiveFields:
        """The fields of any target: a class, a hidden unit, an SAE latent. `count`: the target's number of entries."""
        count = len(inputs) if count is None else count
        if len(inputs) not in (1, count):
            raise InputError(f"{len(inputs)} inputs for {count} targets: give one input, or as many")
        if internal_batch_size is not None and internal_batch_size < 1:
            raise InputError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
        target = as_target(target)
        target.check(count)
        sites = self._sites()
        size = internal_batch_size or count
        parts = []
        for rows in torch.arange(count).split(size):
            batch = inputs[rows.to(inputs.device)] if len(inputs) > 1 else inputs.expand(len(rows), *inputs.shape[1:])
            parts.append(self._fields(batch, target.rows(rows), sites, pixels))
        return _joined(parts)

    def _sites(self) -> TokenSites:
        return find_sites(self.model, self.patches, self.sequence)

    def _layout(self, sites: TokenSites, values: dict[str, Tensor], inputs: Tensor) -> TokenLayout:
        patches, grid = as_tokens(values[sites.patches], sites.patches, self.model)
        count = patches.shape[1]
        height, width = self.grid or grid or grid_of(count, inputs.shape[2:], None)
        grid_of(count, (), (height, width))
        if sites.sequence is None:
            return TokenLayout(height, width, 0)
        sequence = values[sites.sequence]
        if sequence.ndim != 3 or sequence.shape[2] != patches.shape[2] or sequence.shape[1] < count:
            raise SiteError(
                f"the sequence at {sites.sequence!r}, {list(sequence.shape)}, does not hold the {count} tokens "
                f"of width {patches.shape[2]} at {sites.patches!r}"
            )
        return TokenLayout(height, width, sequence.shape[1] - count)

    def _fields(self, inputs: Tensor, target: Target, sites: TokenSites, pixels: bool) -> EffectiveFields:
        """The fields of one batch, one scalar an input."""
        found = attribute(
            self.model,
            inputs,
            target,
            rules=self.rules,
            sites=(*sites.names, *([INPUT] if pixels else [])),
            readout=lambda value, cotangent, difference: torch.stack((value, cotangent), 1),
            strict=self.strict,
        )
        pairs = {site: value.float() if value.itemsize < 4 else value for site, value in found.values.items()}
        layout = self._layout(sites, {site: pair[:, 0] for site, pair in pairs.items()}, inputs)
        x, g = (as_tokens(part, sites.patches, self.model)[0] for part in pairs[sites.patches].unbind(1))
        content = x * g
        whole, prefix = content, content[:, :0]
        if sites.sequence is not None:
            values, cotangents = pairs[sites.sequence].unbind(1)
            if not torch.allclose(cotangents[:, layout.prefix :], g, rtol=1e-3, atol=1e-3 * float(g.abs().max())):
                raise SiteError(
                    f"between {sites.patches!r} and {sites.sequence!r} there is more than a sum with a constant, so "
                    "that the share of the position embedding is not known: name other sites, or sequence=None"
                )
            product = values * cotangents
            prefix, whole = product[:, : layout.prefix], product[:, layout.prefix :]

        def on_grid(product: Tensor) -> TokenScores:
            shape = (len(product), layout.height, layout.width)
            return TokenScores(product.norm(dim=-1).reshape(shape), product.sum(-1).reshape(shape))

        return EffectiveFields(
            patches=on_grid(content),
            position=on_grid(whole - content),
            prefix=TokenScores(prefix.norm(dim=-1), prefix.sum(-1)),
            sequence=on_grid(whole),
            scores=found.scores if found.scores is not None else content.new_zeros(0),
            layout=layout,
            pixels=pairs[INPUT].prod(1) if pixels else None,
            coverage=found.coverage,
            cost=found.cost,
        )


def _joined(parts: list[EffectiveFields]) -> EffectiveFields:
    """One result of several batches'."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> TokenScores:
        every = [getattr(part, name) for part in parts]
        return TokenScores(torch.cat([s.norm for s in every]), torch.cat([s.signed for s in every]))

    coverage, cost = Coverage(), Cost()
    for part in parts:
        coverage.merge(part.coverage)
        cost.forwards += part.cost.forwards
        cost.backwards += part.cost.backwards
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return EffectiveFields(
        patches=joined("patches"),
        position=joined("position"),
        prefix=joined("prefix"),
        sequence=joined("sequence"),
        scores=torch.cat([part.scores for part in parts]),
        layout=parts[0].layout,
        pixels=torch.cat(pixels) if pixels else None,
        coverage=coverage,
        cost=cost,
    )
