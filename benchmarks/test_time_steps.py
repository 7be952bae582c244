"""Time per training step, of whole epochs and of predict, on every workload; checked against the reference first."""

from __future__ import annotations

import numpy as np
import pytest

import fastbatch as fb
from fastbatch.bench.contestants import Fastbatch
from fastbatch.bench.contestants.fastbatch import trainer_of
from fastbatch.bench.harness import verify
from fastbatch.bench.report import digits
from fastbatch.bench.workloads import Workload

TABLE = "steps, epochs and predict: GFLOP/s, share of the peak of the threads they took"

# julialang.org/blog/2022/04/simple-chains; no workload of the race, for an epoch is one step
SIMPLE_CHAINS = Workload("simplechains-4-32-16-4-b10000-adam", (4, 32, 16, 4), "tanh", "mse", "adam", 10_000, 1)

# What a layer or the rows of a batch may come with, beside the same network without
EXTRAS = {
    "plain": [],
    "dropout": [fb.Dropout(0.2)],
    "layer norm": [fb.LayerNorm()],
    "batch norm": [fb.BatchNorm()],
}


@pytest.fixture
def note_us(benchmark, note):
    """``note_us(row, column, calls)`` after the timing: microseconds of each of the `calls` of a round."""

    def put(title: str, row: str, column: str, calls: int = 1) -> None:
        if benchmark.enabled:
            us = 1e6 * benchmark.stats["median"] / calls
            note(title, row, {column: digits(us)}, us=us)

    return put


def test_step(benchmark, note_flops, note_us, workload, data):
    """`trainer.step` on one batch that stays in the cache."""
    x, y = (part[: workload.batch] for part in data)
    trainer, reference = trainer_of(workload, "c"), trainer_of(workload, "reference")
    for _ in range(3):
        assert trainer.step(x, y) == pytest.approx(reference.step(x, y), rel=1e-4, abs=1e-5)
    benchmark(trainer.step, x, y)
    note_us(TABLE, workload.name, "step us")
    note_flops(TABLE, workload.name, "step", workload.flops_per_step, fb.info()["target"], trainer.threads_used)


def test_epoch(benchmark, note_flops, note_us, workload, data):
    """`trainer.fit` over all rows: shuffle and gather too."""
    verify(Fastbatch, workload)
    trainer = trainer_of(workload, "c")
    benchmark(trainer.fit, *data, batch_size=workload.batch, verbose=0, check_finite=False)
    flops = workload.steps * workload.flops_per_step
    note_us(TABLE, workload.name, "in an epoch us", workload.steps)
    note_flops(TABLE, workload.name, "in an epoch", flops, fb.info()["target"], trainer.threads_used)


def test_epoch_of_a_full_batch(benchmark, note_flops, note_us):
    """SimpleChains.jl's own: exp of 2 x 2 matrices, 10,000 of them a step, as they lie; it names times per epoch."""
    workload, epochs = SIMPLE_CHAINS, 20
    X, y = workload.data()
    trainer, reference = trainer_of(workload, "c"), trainer_of(workload, "reference")
    options = {"batch_size": "full", "shuffle": False, "verbose": 0, "check_finite": False}
    expected = reference.fit(X, y, epochs=3, **options)["loss"]
    assert trainer.fit(X, y, epochs=3, **options)["loss"] == pytest.approx(expected, rel=1e-4)
    benchmark(trainer.fit, X, y, epochs=epochs, **options)
    flops = epochs * workload.flops_per_step
    note_us(TABLE, workload.name, "in an epoch us", epochs)
    note_flops(TABLE, workload.name, "in an epoch", flops, fb.info()["target"], trainer.threads_used)


def test_predict(benchmark, note_flops, workload, data):
    X, _ = data
    model = trainer_of(workload, "c").model
    with fb.set_backend("reference"):
        expected = model.predict(X)
    products = sum(2 * len(X) * i * o for i, o in zip(workload.dims, workload.dims[1:]))
    with fb.set_backend("c"), fb.set_num_threads(1):
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-4)
        benchmark(model.predict, X)
    note_flops(TABLE, workload.name, "predict", products, fb.info()["target"])


@pytest.mark.parametrize("extra", EXTRAS)
def test_step_with(benchmark, note_us, extra):
    """64-128-128-10 at batch 128, with something between the layers."""
    layers = [layer for _ in range(2) for layer in (fb.Dense(128), *EXTRAS[extra], fb.Activation("relu"))]
    x = np.random.default_rng(0).standard_normal((128, 64), np.float32)
    y = np.random.default_rng(1).integers(10, size=128)
    ours, reference = (
        fb.Trainer(fb.Sequential([*layers, fb.Dense(10)], input_size=64), backend=name) for name in ("c", "reference")
    )
    for _ in range(3):
        assert ours.step(x, y) == pytest.approx(reference.step(x, y), rel=1e-4)
    benchmark(ours.step, x, y)
    note_us("us of a step of 64-128-128-10, batch 128, Adam", extra, "us")


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_rows(benchmark, note_us, dtype, shuffle):
    """Epochs of 784-1 on 64 MiB of float32: reading and converting the rows is the work."""
    X = np.random.default_rng(0).integers(0, 4, (21_400, 784)).astype(dtype)
    y = X[:, 0].astype(np.float32)
    ours, reference = (
        fb.Trainer(fb.MLP([784, 1]), "mse", fb.SGD(lr=1e-6), backend=name) for name in ("c", "reference")
    )
    losses = [t.fit(X[:1000], y[:1000], batch_size=128, shuffle=shuffle, verbose=0)["loss"] for t in (ours, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    benchmark(ours.fit, X, y, batch_size=128, shuffle=shuffle, verbose=0, check_finite=False)
    order = "shuffled" if shuffle else "in order"
    note_us("us of a step of 784-1, batch 128: rows are the work", dtype, order, -(-len(X) // 128))
