"""How many rows make a batch: sizes by the epoch, the noise of gradients, rates for other sizes."""

from .noise import NoiseScale, noise_scale
from .rates import scale_lr
from .sizes import Grow

__all__ = ["Grow", "NoiseScale", "noise_scale", "scale_lr"]
