"""Networks by name, with their preprocessing, class names and layer addresses."""

from backlight.models.layers import find_layers, layer_names, resolve_layer
from backlight.models.loaded import LoadedModel
from backlight.models.loading import available_models, load
from backlight.models.pixels import PixelModel

__all__ = [
    "LoadedModel",
    "PixelModel",
    "available_models",
    "find_layers",
    "layer_names",
    "load",
    "resolve_layer",
]
