"""Arrays on disk that outgrow memory, and the extraction that fills them."""

from backlight.store.collected import Collected
from backlight.store.crew import ExtractionError
from backlight.store.extraction import Progress, extract
from backlight.store.pictures import ArraySamples
from backlight.store.rows import Chosen, Rows, TensorRows, pieces, shuffled
from backlight.store.store import Store
from backlight.store.worker import Collecting, Collector

__all__ = [
    "ArraySamples",
    "Chosen",
    "Collected",
    "Collecting",
    "Collector",
    "ExtractionError",
    "Progress",
    "Rows",
    "Store",
    "TensorRows",
    "extract",
    "pieces",
    "shuffled",
]
