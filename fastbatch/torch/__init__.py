"""PyTorch: its modules to and from models, and training steps on a module's own parameters."""

from .fused import FusedStep, fuse
from .modules import from_torch, to_torch

__all__ = ["FusedStep", "from_torch", "fuse", "to_torch"]
