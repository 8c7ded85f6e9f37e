"""A layer as concepts: what a model has there at some images, told by the atoms of a dictionary and a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.contributions.reduction import Layout, layout_of
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.sites import captured
from backlight.errors import InputError
from backlight.shapes import Float

Encode = Callable[[Tensor], Tensor]  # PFVs [n, C] to codes [n, K]


def vectors_of(value: Float[Tensor, "N *site"], layout: Layout) -> Float[Tensor, "N P C"]:
    """A site's pointwise feature vectors (PFVs), one a position; tokens with their prefix first."""
    return layout.flattened(value).transpose(1, 2)


def value_of(vectors: Float[Tensor, "N P C"], layout: Layout, shape: tuple[int, ...]) -> Float[Tensor, "N *site"]:
    """The site's tensor that has these PFVs. `shape`: its shape without the samples."""
    if layout.kind == "vectors":
        return vectors.squeeze(1)
    if layout.kind == "maps":
        return vectors.transpose(1, 2).reshape(len(vectors), *shape)
    return vectors.reshape(len(vectors), *shape)


@dataclass(frozen=True, eq=False)
class Coded:
    """PFVs x = U V + offset + residual of N images at a site (iERF paper, section VI-A).

    Attributes:
        site: the address.
        vectors: `[N, P, C]`, what the model has there.
        codes: `[N, P, K]`, the coefficients U, signed or not as the coder has it.
        atoms: `[K, C]`, the concept vectors V.
        offset: `[C]`, what the dictionary adds; None: nothing.
        layout: where channels and positions are in the site's tensor, of `shape` without the samples.
    """

    site: str
    vectors: Float[Tensor, "N P C"]
    codes: Float[Tensor, "N P K"]
    atoms: Float[Tensor, "atoms channels"]
    offset: Float[Tensor, "channels"] | None
    layout: Layout
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        n, positions, channels = self.vectors.shape
        if self.codes.shape != (n, positions, len(self.atoms)) or self.atoms.shape[1] != channels:
            raise InputError(
                f"PFVs {list(self.vectors.shape)}, codes {list(self.codes.shape)} and atoms {list(self.atoms.shape)} "
                "do not fit: expected [N, P, C], [N, P, K] and [K, C]"
            )

    @property
    def base(self) -> Float[Tensor, "C"]:
        """What is there without any concept."""
        return self.vectors.new_zeros(self.vectors.shape[2]) if self.offset is None else self.offset

    @property
    def reconstruction(self) -> Float[Tensor, "N P C"]:
        """U V + offset."""
        return self.codes @ self.atoms + self.base

    @property
    def residual(self) -> Float[Tensor, "N P C"]:
        """What the concepts do not tell."""
        return self.vectors - self.reconstruction

    @property
    def relative_error(self) -> Float[Tensor, "N"]:
        """The l2 norm of the residual by that of the PFVs, an image (Rel-l2 of Table III)."""
        return self.residual.flatten(1).norm(dim=1) / self.vectors.flatten(1).norm(dim=1).clamp(min=1e-30)

    def image(self, number: int) -> Coded:
        """The same of one image."""
        own = slice(number, number + 1)
        return Coded(
            self.site, self.vectors[own], self.codes[own], self.atoms, self.offset, self.layout, self.shape
        )  # fmt: skip


def code_sites(
    model: nn.Module,
    inputs: Float[Tensor, "N ..."],
    sites: dict[str, tuple[Encode, Tensor, Tensor | None]],
    *,
    layouts: dict[str, Layout] | None = None,
) -> dict[str, Coded]:
    """What a model has at sites, coded: one forward pass.

    `sites`: by address, (encode, atoms `[K, C]`, offset `[C]` or None). `layouts`: where they are not to be told.

    Raises:
        SiteError, UnknownNameError: a site that is not there, or whose layout cannot be told.
        ModelError: a model in training mode.
    """
    check_evaluation_mode(model)
    with torch.no_grad(), captured(model, sites) as found:
        model(inputs)
    coded = {}
    for site, (encode, atoms, offset) in sites.items():
        value = found[site].detach()
        layout = (layouts or {}).get(site) or layout_of(value, model, site, size=inputs.shape[2:])
        vectors = vectors_of(value, layout).contiguous()
        with torch.no_grad():
            codes = encode(vectors.flatten(0, 1)).to(vectors).unflatten(0, vectors.shape[:2])
        coded[site] = Coded(
            site,
            vectors,
            codes,
            atoms.to(vectors),
            None if offset is None else offset.to(vectors),
            layout,
            tuple(value.shape[1:]),
        )
    return coded
