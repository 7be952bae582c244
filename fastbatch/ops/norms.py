"""Normalisation in NumPy, generic in dtype: over a row's units (axis 1) or over a batch's rows (axis 0).

Ba, Kiros and Hinton 2016, arXiv:1607.06450; Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

from __future__ import annotations

import numpy as np

__all__ = ["moments", "normalise", "normalise_backward", "running"]

Array = np.ndarray


def moments(x: Array, axis: int) -> tuple[Array, Array]:
    """Mean and variance (divided by their number, not one less) of x (B, O) along `axis`, which is kept."""
    mean = x.mean(axis=axis, keepdims=True)
    return mean, np.square(x - mean).mean(axis=axis, keepdims=True)


def normalise(x: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """``(x - mean) / sqrt(var + eps)`` (B, O), and the factor ``1 / sqrt(var + eps)``."""
    factor = 1 / np.sqrt(var + x.dtype.type(eps))
    return (x - mean) * factor, factor


def normalise_backward(d: Array, normal: Array, factor: Array, axis: int) -> Array:
    """dx from d, the gradient with respect to `normal`, which :func:`normalise` made of its own moments of x."""
    slope = d - d.mean(axis=axis, keepdims=True) - normal * (d * normal).mean(axis=axis, keepdims=True)
    return factor * slope


def running(old: Array, new: Array, momentum: float) -> Array:
    """``(1 - momentum) old + momentum new``: momentum as torch means it."""
    share = old.dtype.type(momentum)
    return (1 - share) * old + share * new
