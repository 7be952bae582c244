"""Elementwise functions of every target over the whole range of a dtype, against float64, within `Activation.ulp`."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import C_TARGETS, DTYPES, SUBJECTS

from fastbatch import ops


def sweep(name: str, dtype: str = "float32") -> np.ndarray:
    """A fine grid where functions bend, or bit patterns at equal distances, so every kind there is."""
    if name == "bends":
        end = {"float32": 110, "float64": 760}[dtype]
        z = np.concatenate([np.linspace(-20, 20, 20001), np.linspace(-1e-3, 1e-3, 2001), np.linspace(-end, end, 4001)])
        return z.astype(dtype)
    bits = np.arange(0, 2**32, 99991, dtype=np.uint64)
    every = bits.astype(np.uint32).view(np.float32) if dtype == "float32" else (bits * 2**32 + bits).view(np.float64)
    largest, tiny = np.finfo(dtype).max, np.finfo(dtype).tiny
    subnormal = np.finfo(dtype).smallest_subnormal
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, largest, -largest, tiny, -tiny, subnormal, -subnormal]
    return np.concatenate([np.array(special, dtype), every])


def flushed(z: np.ndarray) -> np.ndarray:
    """What kernels of C and Numba see: subnormals count as zero (csrc/simd/fpmode.h)."""
    return np.where(np.abs(z) < np.finfo(z.dtype).tiny, np.copysign(0, z), z)


def flushes(subject: str) -> bool:
    return subject in C_TARGETS or subject == "numba"


def as_read(subject: str, z: np.ndarray) -> np.ndarray:
    return flushed(z) if flushes(subject) else z


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["bends", "everywhere"])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_value(subject, activation, where, dtype):
    row, z = ops.get_activation(activation), sweep(where, dtype)
    # 0 x 0 leaves every bias as it is
    x, w = np.zeros((1, 1), dtype), np.zeros((1, z.size), dtype)
    a, kept = np.empty((1, z.size), dtype), np.empty((1, z.size), dtype)
    with np.errstate(all="ignore"):
        SUBJECTS[subject].dense_forward(x, w, z, row, a, kept if row.saves == "z" else None)
        z = as_read(subject, z)
        exact, bound = oracle.activate(row, z.astype(np.float64), np.zeros(z.size), dtype)
    if row.saves == "z":
        assert np.array_equal(kept[0], z, equal_nan=True)
    oracle.assert_within(a[0], exact, bound, f"{activation} on {subject}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["bends", "everywhere"])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_slope(subject, activation, where, dtype):
    row, z = ops.get_activation(activation), sweep(where, dtype)
    # what comes out of a healthy forward pass, with room for a difference quotient in the bound
    z = z[np.abs(z) < np.finfo(dtype).max / 2]
    with np.errstate(all="ignore"):
        saved = np.asarray(row.value(z), dtype)[None] if row.saves == "a" else z[None]
        dz = np.zeros((1, z.size), dtype)
        SUBJECTS[subject].dense_backward(
            np.ones_like(dz),
            np.ones((1, 1), dtype),
            dz,
            None if row.saves == "none" else saved,
            row,
            dz,
            None,
            None,
        )
        exact, bound = oracle.slope(row, as_read(subject, saved), 0.0, dtype)
    oracle.assert_within(dz, exact, bound, f"slope of {activation} on {subject}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_monotone_and_in_range(subject, activation, dtype):
    """Rounding must not carry a sigmoid past 1 or a tanh past 1, nor relu below 0."""
    row, z = ops.get_activation(activation), np.sort(sweep("bends", dtype))
    a = np.empty((1, z.size), dtype)
    kept = np.empty_like(a) if row.saves == "z" else None
    SUBJECTS[subject].dense_forward(np.zeros((1, 1), dtype), np.zeros((1, z.size), dtype), z, row, a, kept)
    exact = np.asarray(row.value(z.astype(np.float64)))
    assert a.min() >= exact.min().astype(dtype) - 24 * oracle.U[dtype] * abs(exact.min())
    assert a.max() <= np.nextafter(exact.max().astype(dtype), np.dtype(dtype).type(np.inf))
    if activation in ("tanh", "sigmoid"):
        assert np.abs(a).max() <= 1
