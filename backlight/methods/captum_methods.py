"""DeepLIFT, GradientSHAP, KernelSHAP, LIME and Occlusion: Captum's, under Backlight's `attribute`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.engine.paths import baseline_like
from backlight.engine.run import running
from backlight.errors import InputError, MissingExtraError, ModelError
from backlight.methods.baseline import PERTURBATIONS, Baseline, Scored
from backlight.shapes import Float, Int

# numbers are selected, which the engine counts as structural and DeepLIFT as non-linear
_SELECTIONS = frozenset(
    "max_pool adaptive_max_pool fractional_max_pool maximum minimum fmax fmin max min amax amin aminmax topk sort "
    "kthvalue median abs".split()
)
_AFFINE_IN_EVALUATION = frozenset(["batch_norm"])


def _captum(name: str) -> Any:
    try:
        return getattr(import_module("captum.attr"), name)
    except ModuleNotFoundError:
        raise MissingExtraError("captum", "baselines") from None


@dataclass(kw_only=True)
class CaptumMethod(Baseline):
    """A method of Captum. `baseline`: zero by default; see `backlight.engine.paths.baseline_like`."""

    baseline: Any = None

    def start(self, scored: Scored, x: Float[Tensor, "1 *shape"]) -> Tensor:
        """The baseline of the sample; of `[N, ...]` its own."""
        given = self.baseline
        if isinstance(given, Tensor) and given.ndim == x.ndim and len(given) == scored.samples:
            given = given[scored.row : scored.row + 1]  # type: ignore[operator]
        return baseline_like(given, x.detach()).clone()


@dataclass(kw_only=True)
class DeepLIFT(CaptumMethod):
    """Differences to a baseline, carried back through activations by the rescale rule.

    Captum hooks modules of its own list (ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, MaxPool, Softmax), each called
    once; through everything else it lets the gradient pass without a word. `strict` refuses that. `explain(...)` gives
    as `residual` the difference of the scores less the attributions' sum: rounding, but for its max-pooling rule where
    the baseline varies in space.
    """

    source: ClassVar[str] = "Shrikumar, Greenside, Kundaje 2017, by Captum"
    formula: ClassVar[str] = "(x - b) * m, m through an activation: (a(z) - a(z_b)) / (z - z_b)"
    passes: ClassVar[str] = "3"

    def prepare(self, scored: Scored, x: Tensor) -> None:
        supported = set(import_module(_captum("DeepLift").__module__).SUPPORTED_NON_LINEAR)
        if self.strict:
            scored.row = 0
            _check_modules(scored, x[:1], supported)

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Tensor:
        scored.limit = None  # the input and its baseline are one pass
        start = self.start(scored, x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
            try:
                found = _captum("DeepLift")(scored).attribute(x.requires_grad_(), start).detach()
            except (RuntimeError, AssertionError) as error:
                raise ModelError(f"Captum's DeepLIFT cannot explain this network: {error}") from error
        with torch.no_grad():
            after, before = scored(torch.cat([x.detach(), start])).split(1)
        scored.residuals.append(after - before - found.sum())
        return found


def _check_modules(scored: Scored, x: Tensor, supported: set[type]) -> None:
    """Raise ModelError where an operation is non-linear and no module that Captum hooks, called once."""
    calls: dict[str, int] = {}
    handles = []
    modules = {name: module for name, module in scored.named_modules() if type(module) in supported}
    for name, module in modules.items():

        def count(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        handles.append(module.register_forward_hook(count))
    try:
        with torch.enable_grad(), running(scored, samples=1) as run:
            scored(x.detach().requires_grad_())
            table = run.coverage
    finally:
        for handle in handles:
            handle.remove()
    for row in table:
        if row.operation in _AFFINE_IN_EVALUATION or (row.rule == "exact" and row.operation not in _SELECTIONS):
            continue
        unseen = [layer for layer in row.layers if layer not in modules]
        if unseen:
            place = unseen[0].removeprefix("model").removeprefix(".")
            raise ModelError(
                f"Captum's DeepLIFT does not see {row.operation!r} in layer {place or '(root)'!r}: it is no module of "
                f"{', '.join(sorted(known.__name__ for known in supported))}, and would get the plain gradient; "
                "strict=False lets it"
            )
    for name, times in calls.items():
        place = name.removeprefix("model").removeprefix(".")
        if times > 1:
            raise ModelError(f"Captum's DeepLIFT needs a module of its own for each call: {place!r} ran {times} times")
        if modules[name]._backward_hooks:
            raise ModelError(f"Captum's DeepLIFT leaves out {place!r}, which has backward hooks: remove them")


@dataclass(kw_only=True)
class GradientSHAP(CaptumMethod):
    """Expected gradients: the gradient at random points between random baselines and the noisy input.

    `baseline`: also a distribution, a tensor `[B, ...]` of B baselines to draw from.
    """

    source: ClassVar[str] = "Lundberg and Lee 2017; Erion et al. 2021, by Captum"
    formula: ClassVar[str] = "mean over b, t ~ U(0, 1), n of (x + n - b) * grad s(b + t (x + n - b))"
    passes: ClassVar[str] = "n_samples"

    n_samples: int = 20
    stdev: float = 0.0
    seed: int = 0

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Tensor:
        given = self.baseline
        several = isinstance(given, Tensor) and given.ndim == x.ndim and len(given) != scored.samples
        baselines = given.to(x) if several else self.start(scored, x)
        _seed(self.seed)
        scored.limit = limit
        return _captum("GradientShap")(scored).attribute(
            x, baselines, n_samples=_positive("n_samples", self.n_samples), stdevs=float(self.stdev)
        )


@dataclass(kw_only=True)
class Occlusion(CaptumMethod):
    """The drop of the score when a sliding window is replaced by the baseline, averaged over windows.

    `window`, `stride`: in pixels, over all channels at once; a tuple gives each axis, channels included.
    """

    source: ClassVar[str] = "Zeiler and Fergus 2014, by Captum"
    formula: ClassVar[str] = "mean over windows that hold i of s(x) - s(x with the baseline inside the window)"

    window: Any = 32
    stride: Any = 16

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Tensor:
        space = x.ndim - 2
        window = tuple(self.window) if isinstance(self.window, (tuple, list)) else (x.shape[1], *(self.window,) * space)
        stride = tuple(self.stride) if isinstance(self.stride, (tuple, list)) else (1, *(self.stride,) * space)
        if len(window) != x.ndim - 1 or len(stride) != x.ndim - 1 or min(*window, *stride) < 1:
            raise InputError(f"window {window} and stride {stride} do not fit an input {list(x.shape[1:])}")
        for size, width, step in zip(x.shape[1:], window, stride, strict=True):
            if width > size or (step > width and width != size):
                raise InputError(
                    f"windows {window} every {stride} over {list(x.shape[1:])}: no window may be larger than the "
                    "input, and no stride larger than its window"
                )
        with torch.no_grad():
            return _captum("Occlusion")(scored).attribute(
                x,
                sliding_window_shapes=tuple(map(int, window)),
                strides=tuple(map(int, stride)),
                baselines=self.start(scored, x),
                perturbations_per_eval=limit or PERTURBATIONS,
            )


@dataclass(kw_only=True)
class Surrogate(CaptumMethod):
    """A linear model of the score, fitted to perturbed inputs in which features are replaced by the baseline.

    `feature_mask`: the feature of each entry, integers from 0 that broadcast to the input (one mask a sample: `[N,
    ...]`); None: square patches with sides of `patch` pixels, over all channels.
    """

    passes: ClassVar[str] = "n_samples"

    n_samples: int = 500
    patch: int = 32
    feature_mask: Tensor | None = None
    seed: int = 0

    def features(self, scored: Scored, x: Float[Tensor, "1 *shape"]) -> Int[Tensor, "1 *any"]:
        """The feature of each entry of the sample.

        Raises:
            InputError: a mask of another shape or type; a single feature.
        """
        mask = (
            patches(x, _positive("patch", self.patch)) if self.feature_mask is None else self.feature_mask.to(x.device)
        )
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise InputError(f"a feature mask holds integers, not {mask.dtype}")
        if mask.ndim == x.ndim and len(mask) == scored.samples:
            mask = mask[scored.row : scored.row + 1]  # type: ignore[operator]
        try:
            mask.expand_as(x)
        except RuntimeError:
            raise InputError(f"feature mask {list(mask.shape)} does not broadcast to {list(x.shape)}") from None
        mask = mask.reshape((1,) * (x.ndim - mask.ndim) + tuple(mask.shape)).long()
        mask = mask - mask.min()
        if int(mask.max()) < 1:
            raise InputError("a single feature cannot be compared with others: a smaller patch, or another mask")
        return mask

    def fit(self, method: Any, scored: Scored, x: Tensor, mask: Tensor, limit: int | None) -> Tensor:
        """Captum's attribution."""
        _seed(self.seed)
        try:
            return method.attribute(
                x,
                baselines=self.start(scored, x),
                feature_mask=mask,
                n_samples=_positive("n_samples", self.n_samples),
                perturbations_per_eval=limit or PERTURBATIONS,
            )
        except (ValueError, AssertionError) as error:
            if "sklearn" in str(error) or "scikit" in str(error):
                raise MissingExtraError("scikit-learn", "baselines") from None
            raise


@dataclass(kw_only=True)
class LIME(Surrogate):
    """The Lasso that best predicts the score from which features are present, near the input.

    `alpha`: the Lasso's penalty, in units of the score. Scores that vary by less, such as small probabilities, give
    zeros: explain the logit, or lower alpha.
    """

    source: ClassVar[str] = "Ribeiro, Singh, Guestrin 2016, by Captum"
    formula: ClassVar[str] = "w of min_w sum_z k(x, z) (s(z) - <w, z'> - w_0)^2 + alpha |w|_1"

    alpha: float = 0.01

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Tensor:
        method = _captum("Lime")
        lasso = import_module("captum._utils.models.linear_model").SkLearnLasso(alpha=self.alpha)
        return self.fit(method(scored, interpretable_model=lasso), scored, x, self.features(scored, x), limit)


@dataclass(kw_only=True)
class KernelSHAP(Surrogate):
    """Shapley values of the features, from a weighted linear regression on random coalitions."""

    source: ClassVar[str] = "Lundberg and Lee 2017, by Captum"
    formula: ClassVar[str] = "phi of min_phi sum_z pi(z') (s(z) - <phi, z'> - phi_0)^2, pi the Shapley kernel"

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Tensor:
        mask = self.features(scored, x)
        least = int(mask.max()) + 2
        if self.n_samples < least:
            raise InputError(
                f"{self.n_samples} samples do not determine {least - 1} features: n_samples of at least {least}, "
                "better ten times that, or larger patches"
            )
        return self.fit(_captum("KernelShap")(scored), scored, x, mask, limit)


def patches(x: Float[Tensor, "1 *shape"], side: int) -> Int[Tensor, "1 *any"]:
    """Squares of positions, numbered row by row, over all channels."""
    index = torch.zeros((1,) * x.ndim, dtype=torch.long, device=x.device)
    for axis in range(2 if x.ndim > 2 else 1, x.ndim):
        steps = torch.arange(x.shape[axis], device=x.device) // side
        index = index * int(steps[-1] + 1) + steps.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return index


def _seed(seed: int) -> None:
    """Every sample's draws are the same: it does not matter which samples it is explained with."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    return value
