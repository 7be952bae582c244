"""What precision bf16 means: products of rounded operands, and the bounds that their sums are held to."""

from __future__ import annotations

import numpy as np
from oracle import assert_within, gamma

import fastbatch as fb

__all__ = ["U", "check_product", "exact_gradient", "rounded"]

U = 2.0**-8  # unit roundoff of 8 significant bits


def rounded(x: np.ndarray) -> np.ndarray:
    """To 8 significant bits, nearest even; in float64."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    kept = bits + np.uint32(0x7FFF) + (bits >> 16 & 1) & np.uint32(0xFFFF0000)
    return kept.view(np.float32).astype(np.float64)


def check_product(got, left, right, start, what):
    """Within |x| |w| (2 u + u^2) of the exact product, and within float32's bound of that of rounded operands."""
    terms = left.shape[1] + 4
    size = np.abs(rounded(left)) @ np.abs(rounded(right)) + np.abs(start)
    close = gamma(terms, "float32") * size
    assert_within(got, rounded(left) @ rounded(right) + start, close, f"{what}, rounded operands")
    left, right = left.astype(np.float64), right.astype(np.float64)
    bound = (2 * U + U * U) * (np.abs(left) @ np.abs(right)) + close
    assert_within(got, left @ right + start, bound, what)


def exact_gradient(model: fb.Sequential, x: np.ndarray, y: np.ndarray, rounding) -> np.ndarray:
    """Of the mean squared error of a tanh network, in float64, operands of products rounded by `rounding`."""
    weights = [(w.astype(np.float64), b.astype(np.float64)) for w, b in model.weights]
    inputs, a = [], x.astype(np.float64)
    for k, (w, b) in enumerate(weights):
        inputs.append(a)
        a = rounding(a) @ rounding(w) + b
        a = np.tanh(a) if k < len(weights) - 1 else a
    dz, parts = 2 * (a - y) / y.shape[1], []  # of the sum over rows: the mean is taken of the sums
    for k in reversed(range(len(weights))):
        parts.append(np.concatenate([(rounding(inputs[k]).T @ rounding(dz)).ravel(), dz.sum(axis=0)]))
        dz = (rounding(dz) @ rounding(weights[k][0]).T) * (1 - inputs[k] ** 2)
    return np.concatenate(parts[::-1]) / len(x)
