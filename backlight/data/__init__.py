"""Pictures and class names: reading, preprocessing, samples, folders."""

from backlight.data.classes import ClassNames
from backlight.data.folders import image_paths
from backlight.data.images import Preprocessing, as_image, read_image
from backlight.data.samples import sample_image, sample_images, sample_names

__all__ = [
    "ClassNames",
    "Preprocessing",
    "as_image",
    "image_paths",
    "read_image",
    "sample_image",
    "sample_images",
    "sample_names",
]
