"""From a value at every position to one of every channel, what speaks for the target kept apart from what does not.

The paper's section 10.1, equations 1 and 2: the sign is split at every position first, and each half is then summed
over positions, so that a channel that speaks for the target at one place and against it at another shows both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.engine.sites import Site
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.feature_maps import feature_maps, prefix_tokens
from backlight.models.layers import resolve_layer
from backlight.shapes import Float

KINDS = ("maps", "channels-last", "tokens", "vectors")
_FIRST_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_PREFIX = frozenset(
    "cls_token class_token class_embedding dist_token distillation_token reg_token register_tokens".split()
)


@dataclass(frozen=True)
class Layout:
    """Where channels and positions are in what a site gives.

    - `maps`: `[N, C, *space]` (a time x space tensor too);
    - `channels-last`: `[N, *space, C]`;
    - `tokens`: `[N, L, D]`, of which the first `prefix` are no positions: class, distillation and register tokens;
    - `vectors`: `[N, C]`.

    Raises:
        UnknownNameError: another kind.
        InputError: prefix tokens of what has no tokens.
    """

    kind: str
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("layout", self.kind, KINDS)
        if self.prefix < 0 or (self.prefix and self.kind != "tokens"):
            raise InputError(f"{self.prefix} prefix tokens in a layout of {self.kind!r}")

    @classmethod
    def parse(cls, text: str) -> Layout:
        """`maps`, `channels-last`, `vectors`, `tokens`, `tokens+1` (one prefix token): what `str` gives."""
        kind, _, prefix = text.partition("+")
        if prefix and not prefix.isdigit():
            raise InputError(f"a layout is written KIND or tokens+PREFIX, not {text!r}")
        return cls(kind, int(prefix or 0))

    def __str__(self) -> str:
        return self.kind + (f"+{self.prefix}" if self.prefix else "")

    def flattened(self, value: Float[Tensor, "N *axes"]) -> Float[Tensor, "N C P"]:
        """Channels on axis 1, positions (prefix tokens among them, first) on axis 2; a view where it can be one.

        Raises:
            SiteError: a value of a rank that this layout does not have.
        """
        ranks = {"tokens": (3, 3), "vectors": (2, 2)}.get(self.kind, (3, 64))
        if not ranks[0] <= value.ndim <= ranks[1]:
            raise SiteError(f"a value of shape {list(value.shape)} cannot be read as {self.kind}")
        if self.kind == "vectors":
            return value.unsqueeze(2)
        return (value if self.kind == "maps" else value.movedim(-1, 1)).flatten(2)


@dataclass(frozen=True)
class Signed:
    """What speaks for the target (>= 0) and against it (<= 0), a channel each."""

    positive: Float[Tensor, "N C"]
    negative: Float[Tensor, "N C"]

    @property
    def sum(self) -> Float[Tensor, "N C"]:
        return self.positive + self.negative

    @property
    def concat(self) -> Float[Tensor, "N C2"]:
        """`[P, N]` on the channel axis."""
        return torch.cat((self.positive, self.negative), 1)


def reduce(
    value: Float[Tensor, "N *axes"], layout: Layout, *, class_token: bool = True, heads: int | None = None
) -> Signed:
    """Split by sign at every position, then sum over positions (section 10.1, equation 2).

    P_c = sum_p max(v_cp, 0), N_c = sum_p min(v_cp, 0). Sums are taken in float64 (float32 where the device has none)
    and given in the value's type, float32 at least.

    Args:
        class_token: False leaves the prefix tokens out (the paper sums over all tokens).
        heads: sum over the D / heads consecutive dimensions of each head as well (section 10.5.4): `[N, heads]`. The
            sign is still split at every token and dimension, before any sum.

    Raises:
        SiteError: a value of another rank than the layout's.
        InputError: channels that are no multiple of `heads`.
    """
    flat = layout.flattened(value)
    if not class_token:
        flat = flat[:, :, layout.prefix :]
    wide = torch.float32 if flat.device.type == "mps" else torch.float64
    given = torch.promote_types(value.dtype, torch.float32)
    halves = [part.sum(2, dtype=wide) for part in (flat.clamp(min=0), flat.clamp(max=0))]
    if heads is not None:
        halves = [grouped(part, heads) for part in halves]
    return Signed(halves[0].to(given), halves[1].to(given))


def grouped(channels: Float[Tensor, "N C"], heads: int) -> Float[Tensor, "N heads"]:
    """The sum over the consecutive channels of each head; of reduced rows it is what `reduce(heads=...)` gives.

    Raises:
        InputError: channels that are no multiple of `heads`.
    """
    if heads < 1 or channels.shape[1] % heads:
        raise InputError(f"{channels.shape[1]} channels do not divide into {heads} heads")
    return channels.unflatten(1, (heads, -1)).sum(2)


def layout_of(
    value: Tensor,
    model: nn.Module | None = None,
    site: str | None = None,
    *,
    size: Sequence[int] | None = None,
    layout: Layout | str | None = None,
) -> Layout:
    """Where channels and positions are in what a site gives, told by its rank and by the layers of its module.

    Two axes are vectors. Of others, the channel axis has the width of the layers around the site: convolutions and
    batch norms put channels on axis 1, linear layers and layer norms on the last. What fits both ways is told by the
    rest of the network, then by the proportions of the input. Prefix tokens are those that the model declares (timm's
    `num_prefix_tokens`, else its class, distillation and register tokens), unless they leave no grid of patches.

    Args:
        model, site: whose value it is.
        size: (H, W) of the model's input.
        layout: the answer, where the caller knows it (`"tokens+1"`, a `Layout`).

    Raises:
        SiteError: it cannot be told; the message names `layout=`.
        UnknownNameError: a site or layout that there is not.
    """
    if layout is not None:
        found = Layout.parse(layout) if isinstance(layout, str) else layout
        found.flattened(value)  # of a rank that it can have
        return found
    if value.ndim == 2:
        return Layout("vectors")
    if value.ndim < 2:
        raise SiteError(f"site {site!r} gives {list(value.shape)}: there are no channels")
    module = None
    if model is not None and site is not None:
        module = model if Site.parse(site).layer == "input" else resolve_layer(model, Site.parse(site).layer)
    last = None
    if model is not None and module is not None and site is not None:
        last = _last_by_width(value, module, Site.parse(site).side == "input")
        last = _last_by_family(value, model) if last is None else last
    if last is None and value.ndim > 3 and size is not None and len(size) == value.ndim - 2:
        last = _last_by_proportions(value, size)
    if last is None:
        raise SiteError(
            f"site {site!r} gives {list(value.shape)}, and neither its layers nor its proportions say where the "
            "channels are: pass layout='maps' ([N, C, ...]), 'channels-last' or 'tokens+PREFIX' ([N, L, D])"
        )
    if not last:
        return Layout("maps")
    return Layout("tokens", _prefix(value, model, size)) if value.ndim == 3 else Layout("channels-last")


def _last_by_width(value: Tensor, module: nn.Module, entering: bool) -> bool | None:
    """Whether channels are on the last axis, by the widths of the layers next to the site; None: it fits both or no."""
    widths = list(_widths(module, value.ndim, entering))
    for width, last in widths if entering else reversed(widths):
        fits = (value.shape[1] == width, value.shape[-1] == width)
        if fits[0] != fits[1]:
            return fits[1]
        if all(fits) and len({kind for _, kind in widths}) == 1:
            return last
    return None


def _widths(module: nn.Module, rank: int, entering: bool) -> Iterator[tuple[int, bool]]:
    """(width, whether channels are last) of the layers for values of a rank: of their inputs, or of their outputs."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.weight.ndim == rank:
            yield layer.in_channels if entering else layer.out_channels, False
        elif isinstance(layer, nn.Linear):
            yield layer.in_features if entering else layer.out_features, True
        elif isinstance(layer, _FIRST_NORMS) and (rank == 4 or not isinstance(layer, nn.BatchNorm2d)):
            yield layer.num_features, False
        elif isinstance(layer, nn.LayerNorm) and _normalises_last(layer):
            yield layer.normalized_shape[-1], True


def _normalises_last(layer: nn.Module) -> bool:
    """A layer norm over the last axis; timm's and torchvision's `LayerNorm2d` is over axis 1."""
    return isinstance(layer, nn.LayerNorm) and not type(layer).__name__.endswith("2d")


def _last_by_family(value: Tensor, model: nn.Module) -> bool | None:
    """False in a network of convolutions of that rank without layer norms; True for three axes without such ones."""
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) and m.weight.ndim == value.ndim for m in model.modules())
    if not convolutions:
        return True if value.ndim == 3 else None
    return None if any(map(_normalises_last, model.modules())) else False


def _last_by_proportions(value: Tensor, size: Sequence[int]) -> bool | None:
    """Whether only channels on the last axis leave a map of the input's proportions; None where both do."""
    maps = feature_maps(value.new_empty((1, *value.shape[1:]), device="meta"), size)
    if maps.shape[2:] == value.shape[1:-1] and maps.shape[1] == value.shape[-1] and value.shape[1] != value.shape[-1]:
        return True
    return None if len(set(value.shape[1:])) == 1 else False


def _prefix(value: Tensor, model: nn.Module | None, size: Sequence[int] | None) -> int:
    """The number of tokens before the patches: as declared, unless what is left would be no grid of patches."""
    declared = getattr(model, "num_prefix_tokens", None)
    if not isinstance(declared, int):
        named = dict(model.named_parameters()) if model is not None else {}
        tokens = [p for name, p in named.items() if name.rpartition(".")[2] in _PREFIX]
        declared = sum(p.shape[-2] if p.ndim > 1 else 1 for p in tokens)
    if not declared or size is None:
        return declared
    for skipped in (declared, 0):
        rest = value[:1, skipped:]
        try:
            left = prefix_tokens(rest, feature_maps(rest, size)).shape[1]
        except SiteError:
            continue
        if not left or not skipped:
            return skipped + left
    return declared
