"""Attributors that compare the picture with one whose patches are blank: integrated gradients, Shapley values.

Patches are replaced at the first block's input, where they are tokens (the class token and registers stay), or in the
picture, where they are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.attributors import LatentAttributor, LatentScores, cell_numbers, in_cells, joined
from backlight.concepts.insertion_latents import DEFAULT_CANVAS
from backlight.concepts.latent_units import LatentTask
from backlight.concepts.token_canvas import token_canvas
from backlight.engine.evaluation import Cost
from backlight.engine.paths import line_rule
from backlight.engine.segment import Segment
from backlight.engine.sites import INPUT
from backlight.errors import InputError, MissingExtraError
from backlight.methods.baseline import unchanged
from backlight.methods.token_fields import TokenScores
from backlight.methods.token_layout import as_tokens, find_sites
from backlight.metrics.canvas import canvas_of
from backlight.shapes import Float, Int


class Patches:
    """One latent on one picture, as a function of its patches; `x` has them all, `blank` none.

    `on_tokens`: patches are tokens of the first block's input, `[L, D]`, of which the first `prefix` are none; else
    they are cells of the picture `[C, H, W]`. `baseline`: a canvas of tokens (`token_canvas`; None: "position", the
    position embedding alone) or of pixels (`backlight.metrics.canvas.canvas_of`; None: "zero"). Passes run from the
    patches to the latent's layer, no further.
    """

    def __init__(self, task: LatentTask, on_tokens: bool, baseline: Any, limit: int, seed: int = 0) -> None:
        self.task, self.on_tokens, self.limit = task, on_tokens, limit
        baseline = DEFAULT_CANVAS["tokens" if on_tokens else "pixels"] if baseline is None else baseline
        self.cost = Cost(forwards=2)
        self.prefix = 0
        if not on_tokens:
            self.segment = Segment(task.model, task.images, INPUT, task.site)
            self.x = task.images[0].detach()
            self.blank = canvas_of(baseline, task.images.detach(), seed)[0]
            return
        sites = find_sites(task.model)
        start = sites.sequence or sites.patches
        self.segment = Segment(task.model, task.images, start, task.site)
        self.x = as_tokens(self.segment.start_value, start, task.model)[0][0]
        blank = token_canvas(task.model, task.images, baseline, seed=seed, sites=sites)[0]
        self.prefix = len(self.x) - len(blank)
        self.blank = torch.cat((self.x[: self.prefix], blank))

    @cached_property
    def cells(self) -> Int[Tensor, "H W"]:
        """The patch of each pixel."""
        return cell_numbers((self.x.shape[1], self.x.shape[2]), self.task.grid, self.x.device)

    def masked(self, masks: Float[Tensor, "B P"]) -> Float[Tensor, "B *shape"]:
        """The picture with the patches that are 1 in a mask, and the others blank."""
        masks = masks.to(self.x)
        if self.on_tokens:
            kept = torch.cat((masks.new_ones(len(masks), self.prefix), masks), 1)[..., None]
        else:
            kept = masks[:, self.cells][:, None]
        return self.blank + kept * (self.x - self.blank)

    def z(self, values: Float[Tensor, "B *shape"]) -> Float[Tensor, "B"]:
        """z at versions of the picture, without gradients."""
        self.cost.forwards += len(values)
        with torch.no_grad():
            return torch.cat([self._z(part) for part in values.split(self.limit)])

    def gradients(self, values: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """dz / dpatches at versions of the picture."""
        self.cost.forwards += len(values)
        self.cost.backwards += len(values)
        found = []
        for part in values.split(self.limit):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                z = self._z(leaf)
            found += torch.autograd.grad(z.sum(), leaf, materialize_grads=True)
        return torch.cat(found)

    def _z(self, values: Tensor) -> Float[Tensor, "B"]:
        rows = torch.zeros(len(values), dtype=torch.long)
        form = self.segment.start_value.shape[1:]
        if self.on_tokens and len(form) == 3 and form[0] == values.shape[2]:  # a convolution's map, channels first
            values = values.mT
        at = self.segment(values.reshape(len(values), *form), rows)
        return self.task.unit.rows(rows)(None, {self.task.site: at})

    def scores(self, product: Float[Tensor, "*shape"]) -> tuple[TokenScores, TokenScores | None]:
        """Of the patches, and of prefix tokens where there are any."""
        if not self.on_tokens:
            return in_cells(product[None], self.task.grid), None
        every = TokenScores(product.norm(dim=-1)[None], product.sum(-1)[None])
        patches, prefix = (
            TokenScores(*(part[:, where] for part in (every.norm, every.signed)))
            for where in (slice(self.prefix, None), slice(self.prefix))
        )
        shaped = TokenScores(*(part.unflatten(1, self.task.grid) for part in (patches.norm, patches.signed)))
        return shaped, prefix


@dataclass(kw_only=True)
class ByChange(LatentAttributor):
    """An attributor that explains one latent on one picture at a time."""

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        rows = torch.arange(len(task), device=task.latents.device)
        return joined([self.explain_one(task.part(row)) for row in rows.split(1)])

    def explain_one(self, task: LatentTask) -> LatentScores:
        """The scores of one latent."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Gradient(ByChange):
    """The length of the plain gradient at a patch; `readout="signed"`: the sum of its entries."""

    source: ClassVar[str] = "Simonyan et al. 2014"
    formula: ClassVar[str] = "|dz/dx_p|_2"

    def explain_one(self, task: LatentTask) -> LatentScores:
        picture = Patches(task, self.on_tokens(task), None, self.internal_batch_size)
        patches, prefix = picture.scores(picture.gradients(picture.x[None])[0])
        return LatentScores(patches, picture.z(picture.x[None]), prefix, cost=picture.cost)


@dataclass(kw_only=True)
class IntegratedGradients(ByChange):
    """The mean gradient on the line from the blank picture, times the difference. `baseline`: see `Patches`.

    Which latents are on is decided anew at each point of the line, at the same token. Signed scores sum to z less that
    of the blank picture, up to quadrature and to the jumps of z where a latent enters the k largest: `residual`. From
    tokens of "zero" it takes a thousand steps: a normalisation turns the whole way within its epsilon of zero.
    """

    source: ClassVar[str] = "Sundararajan, Taly, Yan 2017"
    formula: ClassVar[str] = "|(x_p - b_p) * integral_0^1 dz/dx_p (b + t (x - b)) dt|_2"
    passes: ClassVar[str] = "n_steps"

    n_steps: int = 32
    rule: str = "gausslegendre"
    baseline: Any = None
    seed: int = 0

    def explain_one(self, task: LatentTask) -> LatentScores:
        picture = Patches(task, self.on_tokens(task), self.baseline, self.internal_batch_size, self.seed)
        difference = picture.x - picture.blank
        nodes, weights = line_rule(self.rule, self.n_steps)
        total = torch.zeros_like(picture.x, dtype=torch.promote_types(picture.x.dtype, torch.float32))
        for start in range(0, len(nodes), self.internal_batch_size):
            piece = slice(start, start + self.internal_batch_size)
            steps = torch.as_tensor(nodes[piece]).to(picture.x).reshape(-1, *(1,) * difference.ndim)
            gradients = picture.gradients(picture.blank + steps * difference)
            total += torch.tensordot(torch.as_tensor(weights[piece]).to(total), gradients.to(total), 1)
        patches, prefix = picture.scores(difference * total)
        whole, blank = picture.z(torch.stack((picture.x, picture.blank)))
        residual = whole - blank - patches.signed.sum((1, 2)).to(whole)
        return LatentScores(patches, whole[None], prefix, residual=residual, cost=picture.cost)


@dataclass(kw_only=True)
class KernelSHAP(ByChange):
    """Shapley values of the patches, from a weighted regression on random coalitions, by Captum.

    `n_samples`: coalitions, a forward pass each; at least two more than there are features. `block`: patches along a
    side that are one feature and share its value equally. `baseline`: see `Patches`. Signed by nature: that is what
    `scores` gives.
    """

    source: ClassVar[str] = "Lundberg and Lee 2017, by Captum"
    formula: ClassVar[str] = "phi of min_phi sum_m pi(m) (z(m) - <phi, m> - phi_0)^2, pi the Shapley kernel"
    passes: ClassVar[str] = "n_samples"

    readout: str = "signed"
    n_samples: int = 1024
    block: int = 1
    baseline: Any = None
    seed: int = 0

    def explain_one(self, task: LatentTask) -> LatentScores:
        picture = Patches(task, self.on_tokens(task), self.baseline, self.internal_batch_size, self.seed)
        number = self._features(task.grid).to(picture.x.device)
        count = int(number.max()) + 1
        if count < 2 or self.n_samples < count + 2:
            raise InputError(
                f"{self.n_samples} samples do not determine {count} features: n_samples of at least {count + 2}, "
                "better ten times that, or larger blocks of patches"
            )
        phi = self._fitted(picture, number, count)
        signed = (phi / torch.bincount(number).to(phi))[number].reshape(1, *task.grid)
        whole, blank = picture.z(torch.stack((picture.x, picture.blank)))
        residual = (whole - blank - signed.sum().to(whole))[None]
        return LatentScores(TokenScores(signed.abs(), signed), whole[None], residual=residual, cost=picture.cost)

    def _features(self, grid: tuple[int, int]) -> Int[Tensor, "P"]:
        """The feature of each patch."""
        if self.block < 1:
            raise InputError(f"block must be at least 1, got {self.block}")
        rows, columns = (torch.arange(length) // self.block for length in grid)
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()

    def _fitted(self, picture: Patches, number: Tensor, count: int) -> Tensor:
        try:
            method = import_module("captum.attr").KernelShap
        except ModuleNotFoundError:
            raise MissingExtraError("captum", "baselines") from None
        wide = torch.promote_types(picture.x.dtype, torch.float32)
        present = torch.ones(1, count, dtype=wide, device=picture.x.device)
        with unchanged(picture.task.model):
            torch.manual_seed(self.seed)
            np.random.seed(self.seed % 2**32)
            try:
                return method(lambda masks: picture.z(picture.masked(masks[:, number]))).attribute(
                    present,
                    baselines=torch.zeros_like(present),
                    n_samples=self.n_samples,
                    perturbations_per_eval=self.internal_batch_size,
                )[0]
            except (ValueError, AssertionError) as error:
                if "sklearn" in str(error) or "scikit" in str(error):
                    raise MissingExtraError("scikit-learn", "baselines") from None
                raise
