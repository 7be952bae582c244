"""The four kernels on every target that this CPU can run, each checked against the reference first.

The tables at the end have GFLOP/s and the share of one core's peak, multiply-adds of the dtype in registers; that of
the bfloat16 engines is float32's, which they pass. The rest is bound by memory or by its own arithmetic: elements per
nanosecond. The extra info has the same numbers (``--benchmark-json``).
"""

from __future__ import annotations

import numpy as np
import pytest

from fastbatch import _native, ops
from fastbatch.backends.native import Native
from fastbatch.backends.reference import Reference

SHAPES = [(32, 784, 128), (128, 46, 46), (128, 784, 512), (256, 256, 128)]
LOSSES = {name: ops.get_loss(name) for name in ops.LOSSES}
OPTIMIZERS = {name: ops.get_optimizer(name) for name in ops.OPTIMIZERS} | {"sgd-momentum": ops.SGD(momentum=0.9)}
REFERENCE = Reference()
IDENTITY = _native.activations.index("identity")


def uniform(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def close_product(got: np.ndarray, left: np.ndarray, right: np.ndarray, rounding: float) -> None:
    """Within what rounded operands and sums in the dtype of `got` allow."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    bound = (2 * rounding + rounding**2 + left.shape[1] * np.finfo(got.dtype).eps) * (np.abs(left) @ np.abs(right))
    assert (np.abs(got - left @ right) <= bound).all()


@pytest.fixture
def note_product(note_flops, engine):
    """``note_product(kernel, shape, n)``: n flops a round on this engine."""

    def put(kernel: str, shape: tuple[int, int, int], n: int) -> None:
        column, target, dtype, _ = engine
        row = f"{kernel} {shape[0]} x {shape[1]} x {shape[2]}"
        share = 0.5 if dtype == "float64" else 1.0  # half as many lanes
        note_flops("products: GFLOP/s, share of one core's peak", row, column, n, target, share=share)

    return put


@pytest.fixture
def note_elements(note, benchmark, target):
    """``note_elements(row, count)``: so many elements a round on this target."""

    def put(row: str, count: int) -> None:
        if benchmark.enabled:
            rate = count / benchmark.stats["median"] / 1e9
            note("elements per ns on one core", row, {target: f"{rate:.2f}"}, elements_per_ns=rate)

    return put


@pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}-I{0[1]}-O{0[2]}".format)
def test_dense_forward(benchmark, note_product, engine, shape):
    B, I, O = shape
    _, target, dtype, rounding = engine
    x, w, b, a = uniform(B, I, dtype=dtype), uniform(I, O, dtype=dtype), np.zeros(O, dtype), np.empty((B, O), dtype)
    kernels = _native.Kernels(target, dtype)
    kernels.dense_forward(x, w, b, IDENTITY, a, a)
    close_product(a, x, w, rounding)
    benchmark(kernels.dense_forward, x, w, b, IDENTITY, a, a)
    note_product("forward", shape, 2 * B * I * O)


@pytest.mark.parametrize("need_dx", [True, False], ids=["dx", "no-dx"])
@pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}-I{0[1]}-O{0[2]}".format)
def test_dense_backward(benchmark, note_product, engine, shape, need_dx):
    B, I, O = shape
    _, target, dtype, rounding = engine
    dz, x, w = uniform(B, O, dtype=dtype), uniform(B, I, dtype=dtype), uniform(I, O, dtype=dtype)
    dw, db, dx = np.zeros_like(w), np.zeros(O, dtype), np.empty_like(x) if need_dx else None
    kernels = _native.Kernels(target, dtype)
    kernels.dense_backward(dz, x, w, dw, db, dx)
    close_product(dw, x.T, dz, rounding)
    close(db, dz.sum(0))
    if dx is not None:
        close_product(dx, dz, w.T, rounding)
    benchmark(kernels.dense_backward, dz, x, w, dw, db, dx)
    note_product("dw and dx" if need_dx else "dw", shape, (4 if need_dx else 2) * B * I * O)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activation(benchmark, note_elements, target, activation):
    """A product with one input, so that the activation is the work."""
    B, O = 128, 512
    x, w, b, row = uniform(B, 1), uniform(1, O), uniform(O), ops.get_activation(activation)
    a, z, expected = (np.empty((B, O), np.float32) for _ in range(3))
    saved = z if row.saves == "z" else None
    backend = Native(target)
    REFERENCE.dense_forward(x, w, b, row, expected, None)
    backend.dense_forward(x, w, b, row, a, saved)
    close(a, expected)
    benchmark(backend.dense_forward, x, w, b, row, a, saved)
    note_elements(f"activation {activation}", B * O)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss(benchmark, note_elements, target, loss):
    B, O = 256, 10
    row = LOSSES[loss]
    if row.targets == "classes":
        y = np.random.default_rng(0).integers(O, size=B)
    else:
        y = np.abs(uniform(B, O, seed=1)) if row.targets == "binary" else uniform(B, O, seed=1)
    a, da, expected = uniform(B, O), np.empty((B, O), np.float32), np.empty((B, O), np.float32)
    backend = Native(target)
    exact = REFERENCE.loss(a, y, row, None, expected).mean()
    assert backend.loss(a, y, row, None, da).mean() == pytest.approx(exact, rel=1e-4)
    close(da, expected)
    benchmark(backend.loss, a, y, row, None, da)
    note_elements(f"loss {loss}", B * O)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update(benchmark, note_elements, target, optimizer):
    N, row = 100_000, OPTIMIZERS[optimizer]
    g = uniform(N, seed=1)
    states = [(uniform(N), np.zeros((row.slots, N), np.float32)) for _ in range(2)]
    for backend, (p, slots) in zip((Native(target), REFERENCE), states):
        backend.update(row, p, g, slots, 1, row.lr)
    close(states[0][0], states[1][0])
    p, slots = states[0]
    benchmark(Native(target).update, row, p, g, slots, 2, row.lr)
    note_elements(f"update {optimizer}", N)
