"""Arrays that begin on a cache line."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["ALIGNMENT", "zeros"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def zeros(shape: int | tuple[int, ...], dtype) -> np.ndarray:
    """``np.zeros`` whose first element begins a cache line.

    NumPy promises 16 bytes, by luck of the heap: every row of weights then straddles two lines, which costs 4 % of a
    step of 784-128-10.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
