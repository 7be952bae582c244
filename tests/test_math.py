"""Elementwise functions of every target over the whole range of float32, against float64, within `Activation.ulp`."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import FUSED, SUBJECTS

from fastbatch import ops


def sweep(name: str) -> np.ndarray:
    """float32 numbers: a fine grid where functions bend, or every 99991st bit pattern, so every kind there is."""
    if name == "bends":
        z = np.concatenate([np.linspace(-20, 20, 20001), np.linspace(-1e-3, 1e-3, 2001), np.linspace(-110, 110, 4001)])
        return z.astype(np.float32)
    every = np.arange(0, 2**32, 99991, dtype=np.uint64).astype(np.uint32).view(np.float32)
    largest = np.finfo(np.float32).max
    tiny = np.finfo(np.float32).tiny
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, largest, -largest, tiny, -tiny, 1e-45, -1e-45], np.float32)
    return np.concatenate([special, every])


def flushed(z: np.ndarray) -> np.ndarray:
    """What C kernels see: subnormals count as zero (csrc/simd/fpmode.h)."""
    return np.where(np.abs(z) < np.finfo(z.dtype).tiny, np.copysign(0, z), z)


def as_read(subject: str, z: np.ndarray) -> np.ndarray:
    return flushed(z) if subject in FUSED else z


@pytest.mark.parametrize("where", ["bends", "everywhere"])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_value(subject, activation, where):
    row, z = ops.get_activation(activation), sweep(where)
    # 0 x 0 leaves every bias as it is
    x, w = np.zeros((1, 1), np.float32), np.zeros((1, z.size), np.float32)
    a, kept = np.empty((1, z.size), np.float32), np.empty((1, z.size), np.float32)
    with np.errstate(all="ignore"):
        SUBJECTS[subject].dense_forward(x, w, z, row, a, kept if row.saves == "z" else None)
        z = as_read(subject, z)
        exact, bound = oracle.activate(row, z.astype(np.float64), np.zeros(z.size), "float32")
    if row.saves == "z":
        assert np.array_equal(kept[0], z, equal_nan=True)
    oracle.assert_within(a[0], exact, bound, f"{activation} on {subject}")


@pytest.mark.parametrize("where", ["bends", "everywhere"])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_slope(subject, activation, where):
    row, z = ops.get_activation(activation), sweep(where)
    z = z[np.isfinite(z)]  # what comes out of a healthy forward pass
    with np.errstate(all="ignore"):
        saved = np.asarray(row.value(z), np.float32)[None] if row.saves == "a" else z[None]
        dz = np.zeros((1, z.size), np.float32)
        SUBJECTS[subject].dense_backward(
            np.ones_like(dz),
            np.ones((1, 1), np.float32),
            dz,
            None if row.saves == "none" else saved,
            row,
            dz,
            None,
            None,
        )
        exact, bound = oracle.slope(row, as_read(subject, saved), 0.0, "float32")
    oracle.assert_within(dz, exact, bound, f"slope of {activation} on {subject}")


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_monotone_and_in_range(subject, activation):
    """Rounding must not carry a sigmoid past 1 or a tanh past 1, nor relu below 0."""
    row, z = ops.get_activation(activation), np.sort(sweep("bends"))
    a = np.empty((1, z.size), np.float32)
    kept = np.empty_like(a) if row.saves == "z" else None
    SUBJECTS[subject].dense_forward(np.zeros((1, 1), np.float32), np.zeros((1, z.size), np.float32), z, row, a, kept)
    exact = np.asarray(row.value(z.astype(np.float64)))
    assert a.min() >= np.float32(exact.min()) - 24 * 2.0**-24 * abs(exact.min())
    assert a.max() <= np.nextafter(np.float32(exact.max()), np.float32(np.inf))
    if activation in ("tanh", "sigmoid"):
        assert np.abs(a).max() <= 1
