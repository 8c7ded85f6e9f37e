"""Concepts: a dictionary fitted to a bank's vectors, with the codes of every one of them, in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.bank import Bank
from backlight.concepts.concepts_codes import CODES, REPORT, STATISTICS, Coder, LargestOfImage, Told, write_codes
from backlight.contributions.decompose import chosen, decompose_rows
from backlight.contributions.decomposed import ArrayRows, Decomposed, open_decomposed
from backlight.decompositions import Decomposition
from backlight.decompositions.checkpoints import content
from backlight.decompositions.decomposition import Progress
from backlight.decompositions.folder import read_json, read_tensors
from backlight.displayed import Displayed
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.identity import combined_hash, names_hash, plain, tensor_hash
from backlight.shapes import Float
from backlight.store.rows import Rows, TensorRows

OWN = "encoder"  # the codes that the dictionary itself gives


class Concepts(Displayed):
    """A fitted dictionary with its bank, site and codes. `fit_concepts` makes one, `Concepts.open` reads it.

    Attributes:
        folder, site: where it lies; the layer.
        dictionary: fitted to raw vectors; `atoms` are its concept vectors `[K, C]`.
        coder: whose codes these are: "encoder", the dictionary's own, or the name of another coder's (`codings`).
        codes: `[n, K]`, a row for each of the bank's, in its order; read in pieces.
        statistics: `alive` `[K]` (on in some row), `frequency` `[K]` (share of rows it is on in) and `explained` `[K]`
            (R2 lost without it), the last two of held-out rows where there are some.
        report: scores of fitted and held-out rows.
        held_out: `[n]`, the rows that were not fitted; whole images.
    """

    def __init__(self, decomposed: Decomposed, coder: str = OWN, bank: Bank | None = None) -> None:
        self.decomposed, self.coder, self._bank = decomposed, coder, bank
        self.folder, self.site, self.dictionary = decomposed.folder, decomposed.site, decomposed.decomposition
        self.held_out: np.ndarray = decomposed.held_out
        if coder == OWN:
            self.codes: Rows = decomposed.loadings
            self.report: dict[str, Any] = decomposed.report
            found = {name: getattr(decomposed, name) for name in ("alive", "frequency", "explained")}
        else:
            place = self.folder / "codes" / coder
            self.codes, self.report = ArrayRows(place / CODES), read_json(place / REPORT)
            found, _ = read_tensors(place / STATISTICS)
        self.statistics: dict[str, Tensor] = found

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        coder: str | None = None,
        *,
        bank: Bank | str | os.PathLike[str] | None = None,
    ) -> Concepts:
        """What `fit_concepts` wrote.

        Args:
            coder: one of `codings`, or the beginning of its name; None: the dictionary's own codes.
            bank: where the bank is now, if not where it was; or the bank, with its network and images.

        Raises:
            InputError: nothing was fitted there, or not to the end.
            UnknownNameError: no codes of that name.
        """
        place = Path(folder)
        known = codings(place)
        if coder is None:
            chosen_coder = OWN
        else:
            fitting = [name for name in known if name == coder] or [
                name for name in known if name.lower().startswith(coder.lower())
            ]
            if len(fitting) != 1:
                hint = f"several begin so: {', '.join(fitting)}" if fitting else ""
                raise UnknownNameError("coder of these concepts", coder, known, hint)
            chosen_coder = fitting[0]
        given = bank if isinstance(bank, Bank) else None
        moved = bank.folder if isinstance(bank, Bank) else bank
        return cls(open_decomposed(place, moved), chosen_coder, given)

    def __len__(self) -> int:
        return len(self.dictionary.modes)

    def __repr__(self) -> str:
        kind = type(self.dictionary).__name__
        return f"Concepts({str(self.folder)!r}, {len(self)} of {kind} at {self.site} of {self.model_name})"

    @property
    def model_name(self) -> str:
        """The network's name."""
        return str(self.decomposed.identity["data"]["model"])

    @property
    def own_codes(self) -> bool:
        """Whether the codes are the dictionary's own."""
        return self.coder == OWN

    @cached_property
    def bank(self) -> Bank:
        """The bank that the dictionary was fitted to.

        Raises:
            InputError: there is none any more, or another one.
        """
        store = self.decomposed.store  # which checks the images
        return self._bank if self._bank is not None else Bank(store)

    @cached_property
    def rows(self) -> Rows:
        """The bank's vectors at the site, raw."""
        return self.bank.rows(self.site)

    def of_images(self, rows: Rows | None = None) -> LargestOfImage:
        """The largest code of each image, `[images, K]`; of other `rows` in the bank's order, their largest entry."""
        return LargestOfImage(self.codes if rows is None else rows, self.bank.image(self.site).numpy(), len(self.bank))


def codings(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the codes that a folder of concepts has."""
    return [OWN, *sorted(path.parent.name for path in (Path(folder) / "codes").glob(f"*/{REPORT}"))]


def fit_concepts(
    bank: Bank,
    site: str,
    method: str | Decomposition = "BisectingKMeans",
    out: str | os.PathLike[str] = "concepts",
    *,
    modes: int | str | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    **settings: Any,
) -> Concepts:
    """Fit a dictionary to a site's vectors, as they are, and write it with the codes that it gives every vector.

    A run that was stopped, also by a kill, goes on; a folder that is finished is read. Images are held out whole: no
    image has vectors on both sides.

    Args:
        method: a name of `DECOMPOSITIONS`, with a preset as in "MatryoshkaSAE:bussmann", or one with its settings.
        out: the folder, of this one dictionary.
        modes: concepts, their number or a multiple of the channels, "8x"; None is the method's.
        held_out: the share of images, drawn by `seed`, that are scored and not fitted; 0 is none.
        settings: of the method.

    Raises:
        InputError: settings or vectors that do not fit; a folder with other settings, or in use.
        UnknownNameError: an unknown method, preset, setting or site.
    """
    rows, image = bank.rows(site), bank.image(site).numpy()
    if not rows.shape[0]:
        raise InputError(f"the bank has no vector at {site!r}: no image has a positive relevance there")
    one = chosen(method, modes, seed, settings)
    labels = np.asarray(bank.labels)[image] if "labels" in one.needs else None
    data = {"bank": plain(bank.identity), "names": names_hash(bank.images), "model": bank.model_name}
    several = len(image) > len(np.unique(image))
    found = decompose_rows(
        one,
        rows,
        out,
        {"site": site, "quantity": "pfvs", "sign": "sum", "data": data},
        source=bank.folder,
        held_out=held_out,
        seed=seed,
        groups=image if several else None,
        scaled=False,
        labels=labels,
        device=device,
        progress=progress,
    )
    found._store = bank.store
    return Concepts(found, bank=bank)


def encode_concepts(
    concepts: Concepts,
    rows: Bank | Rows | Float[Tensor, "n C"] | None = None,
    coder: str | Coder = "Lasso",
    out: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Told | None = None,
    **settings: Any,
) -> Concepts | Rows:
    """Code vectors by another coder than the dictionary's own, so that dictionaries can be compared, or k-means have
    codes of more than one concept.

    Of the concepts' own bank (`rows=None`), the codes are kept in the concepts' folder, and the concepts are returned
    with them. Of another bank or other rows they are kept in `out`, and returned. A kill loses the piece under way.

    Args:
        coder: a name of `CODERS` ("Lasso", "OMP", "TopK", "Amortised") with its `settings`, or a coder.

    Raises:
        InputError: vectors of another width; no `out` for other rows; a folder with other codes.
    """
    one = _coder(coder, settings)
    about = {"coder": type(one).__name__, "settings": _settings(one)}
    own = rows is None
    given = concepts.rows if rows is None else rows.rows(concepts.site) if isinstance(rows, Bank) else rows
    found: Rows = TensorRows(given) if isinstance(given, Tensor) else given
    width = concepts.dictionary.modes.shape[1]
    if found.shape[1] != width:
        raise InputError(f"the concepts are of {width} channels, the rows have {found.shape[1]}")
    if own == (out is not None):
        raise InputError("give out= for other rows than the concepts' own, whose codes are kept in their folder")
    name = f"{type(one).__name__}-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]}"
    place = concepts.folder / "codes" / name if out is None else Path(out)
    dictionary = combined_hash(*(tensor_hash(one) for _, one in sorted(concepts.dictionary.state.items())))
    identity = {**about, "site": concepts.site, "rows": content(found), "dictionary": dictionary}
    held_out = concepts.held_out if own else None
    write_codes(concepts.dictionary, found, one, place, identity, held_out, torch.device(device), progress)
    return Concepts(concepts.decomposed, name, concepts.bank) if own else ArrayRows(place / CODES)


def _coder(coder: str | Coder, settings: dict[str, Any]) -> Coder:
    if not isinstance(coder, str):
        if settings:
            raise InputError("settings of a coder are given twice: with it, and beside it")
        return coder
    from backlight.decompositions.codes import coder as by_name

    return by_name(coder, **settings)


def _settings(coder: Any) -> dict[str, Any]:
    return plain(asdict(coder)) if is_dataclass(coder) and not isinstance(coder, type) else {}
