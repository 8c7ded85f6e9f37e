"""Backlight explains what PyTorch networks do."""

from backlight import torchvision_ops

torchvision_ops.install()

__version__ = "0.1.0.dev0"
