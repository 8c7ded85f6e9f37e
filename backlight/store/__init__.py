"""Arrays on disk that outgrow memory, and the extraction that fills them."""

from backlight.store.rows import Chosen, Rows, TensorRows, pieces, shuffled
from backlight.store.store import Store

__all__ = ["Chosen", "Rows", "Store", "TensorRows", "pieces", "shuffled"]
