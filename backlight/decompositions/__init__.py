"""Decompositions: rows `[n, C]` as loadings `[n, K]` of modes `[K, C]`.

    from backlight.decompositions import ThresholdSAE
    fitted = ThresholdSAE(n_modes=64, epochs=20).fit(rows)
    loadings = fitted.encode(x)          # [n, K]
    fitted.decode(loadings)              # [n, C]
    fitted.modes                         # [K, C]

A new decomposition is a file here and a line in `DECOMPOSITIONS`; the command line, the documentation and the
conformance tests read it from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from backlight.decompositions.decomposition import Decomposition, Epoch
from backlight.errors import UnknownNameError

DECOMPOSITIONS: dict[str, str] = {
    "ThresholdSAE": "threshold_sae",
    "ReLUSAE": "relu_sae",
    "TopKSAE": "topk_sae",
    "BatchTopKSAE": "batch_topk_sae",
    "MatryoshkaSAE": "matryoshka_sae",
    "JumpReLUSAE": "jump_relu_sae",
    "ArchetypalSAE": "archetypal_sae",
    "NMF": "nmf",
    "PCA": "pca",
    "KMeans": "k_means",
    "BisectingKMeans": "bisecting_k_means",
    "SparseDictionaryLearning": "sparse_dictionary_learning",
    "ClassMeans": "class_means",
}


def decomposition(name: str) -> type[Decomposition]:
    """A decomposition's class by its name; case, hyphens and underscores do not matter.

    Raises:
        UnknownNameError: a name that is not in `DECOMPOSITIONS`.
    """
    plain = {known.lower(): known for known in DECOMPOSITIONS}
    key = name.replace("_", "").replace("-", "").lower()
    if key not in plain:
        raise UnknownNameError("decomposition", name, DECOMPOSITIONS)
    return getattr(import_module(f"{__name__}.{DECOMPOSITIONS[plain[key]]}"), plain[key])


def __getattr__(name: str) -> Any:
    if name in DECOMPOSITIONS:
        return decomposition(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["DECOMPOSITIONS", "Decomposition", "Epoch", "decomposition"]
