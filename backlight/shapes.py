"""Shape annotations. With jaxtyping installed they are checkable (the test suite checks them); without, they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ModuleNotFoundError:

        class _Shape:
            """`Float[Tensor, "N C H W"]` is the plain type when nothing checks it."""

            def __class_getitem__(cls, item: tuple) -> type:
                return item[0]

        Bool = Float = Int = UInt8 = _Shape

__all__ = ["Bool", "Float", "Int", "UInt8"]
