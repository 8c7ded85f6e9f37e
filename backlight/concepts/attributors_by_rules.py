"""Attributors that send z_k back by rules: one pass, read at the patch tokens or the pixels; and SRD's shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from backlight.concepts.attributors import LatentAttributor, LatentScores, in_cells, joined
from backlight.concepts.latent_units import LatentTask, activations
from backlight.engine.attribution import attribute
from backlight.engine.evaluation import Cost
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.errors import SiteError
from backlight.methods.srd import SRD as SharingRatios
from backlight.methods.token_fields import TokenFields
from backlight.rules import DEFAULT_TEMPERATURE, attn_lrp, cp_lrp, soft_pullback
from backlight.rules.temperature import TemperatureSetting


@dataclass(kw_only=True)
class ByRules(LatentAttributor):
    """Value times cotangent of z under a rule set, at the patch tokens or the pixels: one forward and backward pass.

    `strict`: raise where no rule answers for an operation.
    """

    strict: bool = True

    def rules(self) -> RuleSet:
        """How cotangents travel back."""
        raise NotImplementedError

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        if not self.on_tokens(task):
            return self._at_pixels(task, pixels)
        model, unit = task.stopped
        found = TokenFields(model, rules=self.rules(), strict=self.strict).explain(
            task.images, unit, count=len(task), pixels=pixels
        )
        return LatentScores(
            found.sequence, found.scores, found.prefix, found.position, found.patches, found.pixels, None, found.cost
        )

    def _at_pixels(self, task: LatentTask, pixels: bool) -> LatentScores:
        model, unit = task.stopped
        found = attribute(model, task.each, unit, rules=self.rules(), readout="value", strict=self.strict)
        value = found.value.float() if found.value.itemsize < 4 else found.value
        assert found.scores is not None
        kept = value if pixels else None
        return LatentScores(in_cells(value, task.grid), found.scores, pixels=kept, cost=found.cost)


@dataclass(kw_only=True)
class AttnLRP(ByRules):
    """Plain AttnLRP, without gamma: what the paper's lab uses, and the default."""

    source: ClassVar[str] = "Achtibat et al. 2024; iERF paper, section 3"
    formula: ClassVar[str] = "|x_p * g_p|_2; q, k get 1/4, v 1/2 of the gradient, activations f(z)/z, deviations held"

    def rules(self) -> RuleSet:
        return attn_lrp()


@dataclass(kw_only=True)
class CPLRP(ByRules):
    """AttnLRP with the attention weights held."""

    source: ClassVar[str] = "Ali et al. 2022"
    formula: ClassVar[str] = "|x_p * g_p|_2; q, k are held, activations f(z)/z, deviations are held"

    def rules(self) -> RuleSet:
        return cp_lrp()


@dataclass(kw_only=True)
class GradientTimesInput(ByRules):
    """The plain gradient times the patch token."""

    source: ClassVar[str] = "Shrikumar et al. 2016"
    formula: ClassVar[str] = "|x_p * dz/dx_p|_2"

    def rules(self) -> RuleSet:
        return GRADIENT


@dataclass(kw_only=True)
class SoftPullback(ByRules):
    """The token times the soft pullback: gates softened, attention weights and deviations held."""

    source: ClassVar[str] = "Semantic Pullbacks, section 3.2, equation 5"
    formula: ClassVar[str] = "|x_p * g_p|_2, g the pullback with gates G(z / tau)"

    temperature: TemperatureSetting = DEFAULT_TEMPERATURE

    def rules(self) -> RuleSet:
        return soft_pullback(self.temperature)


@dataclass(kw_only=True)
class SRD(LatentAttributor):
    """z_k shared among pixels as SRD shares the layer's positions: sum_i z_k(i) iERF(h_i), for convolutional networks.

    A position's field is that of its whole feature vector: relevance in SRD is one number a position, so two latents
    at the same token have the same field, up to z. Conserved: patches sum to z where no vector on the way is zero. The
    site's output has to be an activation, a sum or a concatenation. One pass for all latents of an image.
    """

    source: ClassVar[str] = "Han et al. 2024; iERF paper, section 3"
    formula: ClassVar[str] = "sum_i z_k(i) iERF(h_i)(p), summed over the pixels of a patch"

    readout: str = "signed"
    bias: str = "norm"

    def explain(self, task: LatentTask, pixels: bool = False) -> LatentScores:
        """The scores of T latents, image by image."""
        if self.level == "tokens":
            raise SiteError("SRD gives relevance to pixels, not to tokens: level='pixels'")
        if len(task.images) == 1:
            return self._of_image(task, pixels)
        rows = torch.arange(len(task), device=task.latents.device)
        return joined([self._of_image(task.part(row), pixels) for row in rows.split(1)])

    def _of_image(self, task: LatentTask, pixels: bool) -> LatentScores:
        operator = SharingRatios(task.model, bias=self.bias).prepare(task.images)
        if operator.size(task.site) != task.grid:
            raise SiteError(f"{task.site!r} is no map of {list(task.grid)} positions with a relevance of its own")
        z = activations(task.model, task.site, task.dictionary, task.images, task.latents).values[0].T  # [T, L]
        if task.tokens is not None:
            z = torch.zeros_like(z).scatter(1, task.tokens[:, None], z.gather(1, task.tokens[:, None]))
        seeds = z.unflatten(1, task.grid)[None].to(task.images)
        parts = [operator.relevance(part, at=task.site) for part in seeds.split(64, 1)]
        maps = torch.cat(parts, 1)[0][:, None]  # [T, 1, H, W]
        residual = z.sum(1).to(maps) - maps.flatten(1).sum(1)
        kept = maps.expand(-1, task.images.shape[1], -1, -1) / task.images.shape[1] if pixels else None
        return LatentScores(in_cells(maps, task.grid), z.sum(1), pixels=kept, residual=residual, cost=Cost(2, 1))
