"""Time per training step, of whole epochs and of predict, on every workload; checked against the reference first."""

from __future__ import annotations

import numpy as np
import pytest

import fastbatch as fb
from fastbatch.bench.contestants import Fastbatch
from fastbatch.bench.contestants.fastbatch import trainer_of
from fastbatch.bench.harness import verify


def test_step(benchmark, flops, workload, data):
    """`trainer.step` on one batch that stays in the cache."""
    x, y = (part[: workload.batch] for part in data)
    trainer, reference = trainer_of(workload, "c"), trainer_of(workload, "reference")
    for _ in range(3):
        assert trainer.step(x, y) == pytest.approx(reference.step(x, y), rel=1e-4, abs=1e-5)
    benchmark(trainer.step, x, y)
    flops(workload.flops_per_step, fb.info()["target"], trainer.threads_used)


def test_epoch(benchmark, flops, workload, data):
    """`trainer.fit` over all rows: shuffle and gather too."""
    verify(Fastbatch, workload)
    trainer = trainer_of(workload, "c")
    benchmark(trainer.fit, *data, batch_size=workload.batch, verbose=0, check_finite=False)
    flops(workload.steps * workload.flops_per_step, fb.info()["target"], trainer.threads_used)
    if benchmark.enabled:
        benchmark.extra_info["us_per_step"] = 1e6 * benchmark.stats["median"] / workload.steps


def test_predict(benchmark, flops, workload, data):
    X, _ = data
    model = trainer_of(workload, "c").model
    with fb.set_backend("reference"):
        expected = model.predict(X)
    products = sum(2 * len(X) * i * o for i, o in zip(workload.dims, workload.dims[1:]))
    with fb.set_backend("c"), fb.set_num_threads(1):
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-4)
        benchmark(model.predict, X)
    flops(products, fb.info()["target"])
