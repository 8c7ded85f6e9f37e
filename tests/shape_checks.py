"""Shapes and types checked at run time: every annotated function of the package, by an import hook of `conftest.py`.

jaxtyping's own hook does the same, at several times the cost: it makes checked functions of functions inside functions
at each call, and checks arguments twice.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from types import ModuleType
from typing import Any, TypeVar, get_args, get_type_hints
from unittest.mock import patch

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

F = TypeVar("F", bound=Callable)
TYPED = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
MARK = "shapes1"  # of the bytecode that is kept: a new one wherever `_Marked` changes


def checked(function: F) -> F:
    """The function with its annotations checked; as it is where one is a protocol or `Self`, which cannot be checked.

    Axes of one name have one size in all that a call takes and gives.
    """
    hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    if not hints:
        return function
    if inspect.isgeneratorfunction(function):  # checked where it is called, not where it is first asked for a value
        return jaxtyped(function, typechecker=_typed)
    function.__annotations__ = hints
    found = _typed(function)
    shaped = found is not function and any(map(_shaped, hints.values()))
    return jaxtyped(found, typechecker=None) if shaped else found


def _typed(function: F) -> F:
    try:
        return TYPED(function)
    except (BeartypeDecorHintPep3119Exception, BeartypeDecorHintPep673Exception):
        return function


def checked_class(cls: type) -> type:
    """The class; where it is a dataclass, what it is made with is checked."""
    if is_dataclass(cls) and inspect.isfunction(vars(cls).get("__init__")):
        cls.__init__ = checked(cls.__init__)  # type: ignore[misc]
    return cls


def _resolved(hint: Any, function: Callable) -> Any:
    """An annotation as a type; anything where it has none at run time."""
    if not isinstance(hint, str):
        return hint

    def stub() -> None: ...

    stub.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(stub, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _shaped(hint: Any) -> bool:
    """Whether a type names axes."""
    if isinstance(hint, list):
        return any(map(_shaped, hint))
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_shaped, get_args(hint)))


class _Marked(ast.NodeTransformer):
    """Decorates a module's functions, methods and classes. Functions inside functions are left alone: their shapes are
    those of the function that made them."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        first = 1 + max((place for place, one in enumerate(node.body) if _opens(one)), default=-1)
        node.body.insert(first, ast.Import([ast.alias(__name__)]))
        return ast.fix_missing_locations(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(self._decorator("checked"))  # the innermost: others may lose the annotations
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, self._decorator("checked_class"))  # after `dataclass`
        return node

    def _decorator(self, name: str) -> ast.expr:
        return ast.Attribute(ast.Name(__name__, ast.Load()), name, ast.Load())


def _opens(node: ast.stmt) -> bool:
    """Whether it must stay first: a module's docstring, and imports from `__future__`."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or (isinstance(node, ast.ImportFrom) and node.module == "__future__")


class _Loader(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:  # type: ignore[override]
        return compile(_Marked().visit(ast.parse(data)), path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        marked = partial(cache_from_source, optimization=MARK)  # beside the bytecode of the package as it is
        with patch("importlib._bootstrap_external.cache_from_source", lambda path, *_, **__: marked(path)):
            super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, modules: Collection[str]) -> None:
        self.modules = frozenset(modules)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(modules: Collection[str]) -> None:
    """Check these modules from their import on."""
    sys.meta_path.insert(0, _Finder(modules))
