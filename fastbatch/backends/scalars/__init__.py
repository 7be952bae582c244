"""What each name of the registries means for one number: the rules that compiled backends put into their loops.

Functions of scalars, in the part of Python that Numba compiles for any target: they are called on NumPy scalars just as
well. A rule computes in the type of its first argument, so ``real = type(z)`` and every constant is ``real(c)``: a bare
one would make float32 arithmetic float64. Meanings are those of :mod:`fastbatch.ops`; nothing here knows an array's
shape, a thread or a device.
"""

from __future__ import annotations

from .activations import ACTIVATIONS
from .functions import exp, sign
from .losses import ELEMENT_LOSSES, ROW_LOSSES
from .optimizers import CONSTANTS, HYPERS, OPTIMIZERS, Rule
from .random import philox

__all__ = [
    "ACTIVATIONS", "CONSTANTS", "ELEMENT_LOSSES", "HYPERS", "OPTIMIZERS", "ROW_LOSSES", "Rule", "exp", "philox", "sign",
]  # fmt: skip
