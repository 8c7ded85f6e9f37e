"""Let torchvision import beside a torch whose build its compiled operators do not fit.

torchvision's wheels are built for one torch build. Beside another (the CPU build, most often) its shared library does
not load, and `import torchvision` fails on `operator torchvision::nms does not exist`, because it registers shape
functions for operators that were never defined. `install()` adds an import hook: right after `torchvision.extension`
has run, and only if it reports that its operators did not load, the missing operator *schemas* are defined. No
implementation is: calling such an operator still raises, as it should. Where the library loaded, nothing is done.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULE = "torchvision.extension"
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: list[Any] = []  # a torch.library.Library undefines its operators when it is collected


def define_missing(extension: ModuleType) -> bool:
    """Define the schemas if `extension` (torchvision.extension) has no operators. Returns whether it did."""
    if extension._has_ops():
        return False
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _library.append(library)
    return True


class _Loader(Loader):
    def __init__(self, wrapped: Loader) -> None:
        self.wrapped = wrapped

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.wrapped.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.wrapped.exec_module(module)
        define_missing(module)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Add the import hook once. Harmless when torchvision is absent, already imported, or whole."""
    if MODULE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
