"""The four kernels on every target that this CPU can run, each checked against the reference first.

`gflops` and `share_of_peak` of one core are in the extra info (``--benchmark-json``). The others
are bound by memory or by their own arithmetic; they report elements per nanosecond.
"""

from __future__ import annotations

import numpy as np
import pytest

from fastbatch import ops
from fastbatch.backends.native import Native
from fastbatch.backends.reference import Reference

SHAPES = [(32, 784, 128), (128, 46, 46), (128, 784, 512), (256, 256, 128)]
LOSSES = {name: ops.get_loss(name) for name in ops.LOSSES}
OPTIMIZERS = {name: ops.get_optimizer(name) for name in ops.OPTIMIZERS} | {"sgd-momentum": ops.SGD(momentum=0.9)}
REFERENCE = Reference()


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def elements(benchmark, count: int) -> None:
    if benchmark.enabled:
        benchmark.extra_info["elements_per_ns"] = count / benchmark.stats["median"] / 1e9


@pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}-I{0[1]}-O{0[2]}".format)
def test_dense_forward(benchmark, flops, target, shape):
    B, I, O = shape
    x, w, b, row = uniform(B, I), uniform(I, O), uniform(O), ops.get_activation("identity")
    a, expected = np.empty((B, O), np.float32), np.empty((B, O), np.float32)
    REFERENCE.dense_forward(x, w, b, row, expected, None)
    backend = Native(target)
    benchmark(backend.dense_forward, x, w, b, row, a, None)
    close(a, expected)
    flops(2 * B * I * O, target)


@pytest.mark.parametrize("need_dx", [True, False], ids=["dx", "no-dx"])
@pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}-I{0[1]}-O{0[2]}".format)
def test_dense_backward(benchmark, flops, target, shape, need_dx):
    B, I, O = shape
    da, x, w, row = uniform(B, O), uniform(B, I), uniform(I, O), ops.get_activation("identity")
    outputs = [(np.zeros_like(w), np.zeros(O, np.float32), np.empty_like(x) if need_dx else None) for _ in range(2)]
    backend = Native(target)
    backend.dense_backward(da, x, w, None, row, *outputs[0])
    REFERENCE.dense_backward(da, x, w, None, row, *outputs[1])
    for got, expected in zip(*outputs):
        if expected is not None:
            close(got, expected)
    benchmark(backend.dense_backward, da, x, w, None, row, *outputs[0])
    flops((4 if need_dx else 2) * B * I * O, target)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activation(benchmark, target, activation):
    """A product with one input, so that the activation is the work."""
    B, O = 128, 512
    x, w, b, row = uniform(B, 1), uniform(1, O), uniform(O), ops.get_activation(activation)
    a, z, expected = (np.empty((B, O), np.float32) for _ in range(3))
    saved = z if row.saves == "z" else None
    REFERENCE.dense_forward(x, w, b, row, expected, None)
    backend = Native(target)
    benchmark(backend.dense_forward, x, w, b, row, a, saved)
    close(a, expected)
    elements(benchmark, B * O)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss(benchmark, target, loss):
    B, O = 256, 10
    row = LOSSES[loss]
    if row.targets == "classes":
        y = np.random.default_rng(0).integers(O, size=B)
    else:
        y = np.abs(uniform(B, O, seed=1)) if row.targets == "binary" else uniform(B, O, seed=1)
    a, da, expected = uniform(B, O), np.empty((B, O), np.float32), np.empty((B, O), np.float32)
    exact = REFERENCE.loss(a, y, row, None, expected).mean()
    backend = Native(target)
    sums = benchmark(backend.loss, a, y, row, None, da)
    assert sums.mean() == pytest.approx(exact, rel=1e-4)
    close(da, expected)
    elements(benchmark, B * O)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update(benchmark, target, optimizer):
    N, row = 100_000, OPTIMIZERS[optimizer]
    g = uniform(N, seed=1)
    states = [(uniform(N), np.zeros((row.slots, N), np.float32)) for _ in range(2)]
    for backend, (p, slots) in zip((Native(target), REFERENCE), states):
        backend.update(row, p, g, slots, 1, row.lr)
    close(states[0][0], states[1][0])
    p, slots = states[0]
    benchmark(Native(target).update, row, p, g, slots, 2, row.lr)
    elements(benchmark, N)
