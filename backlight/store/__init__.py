"""Arrays on disk that outgrow memory, and the extraction that fills them."""

from backlight.store.rows import Chosen, Rows, TensorRows, pieces, shuffled

__all__ = ["Chosen", "Rows", "TensorRows", "pieces", "shuffled"]
