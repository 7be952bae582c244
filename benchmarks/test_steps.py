"""Time per training step and of predict, with pytest-benchmark: ``pytest benchmarks --benchmark-only``.

Each workload is checked against the NumPy reference before it is timed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from workloads import WORKLOADS, Workload

import fastbatch as fb

FLOPS_PER_ROUND = 2e8  # a few milliseconds to a few hundred, so that calls weigh little and a round does not last


def trainer(workload: Workload, backend: str) -> fb.Trainer:
    model = fb.MLP(workload.dims, activation=workload.act)
    model.set_weights(workload.init())
    loss = "cross_entropy" if workload.loss == "ce" else "mse"
    optimizer = fb.SGD(lr=workload.lr) if workload.opt == "sgd" else fb.Adam(lr=workload.lr)
    return fb.Trainer(model, loss, optimizer, backend=backend)


@pytest.fixture(scope="module", params=[w for w in WORKLOADS if not w.heavy], ids=lambda w: w.name)
def workload(request) -> Workload:
    steps = int(FLOPS_PER_ROUND / request.param.flops_per_step)
    return replace(request.param, steps=min(max(steps, 5), request.param.steps))


@pytest.fixture(scope="module")
def data(workload) -> tuple[np.ndarray, np.ndarray]:
    return workload.data()


def test_step(benchmark, workload, data):
    X, y = data
    candidate, reference = trainer(workload, "c"), trainer(workload, "reference")
    for k in range(3):
        rows = slice(k * workload.batch, (k + 1) * workload.batch)
        assert candidate.step(X[rows], y[rows]) == pytest.approx(reference.step(X[rows], y[rows]), rel=1e-4, abs=1e-5)

    benchmark.extra_info.update(steps=workload.steps, flops_per_step=workload.flops_per_step)
    benchmark(candidate.fit, X, y, batch_size=workload.batch, verbose=0, check_finite=False)
    if benchmark.enabled:
        benchmark.extra_info["us_per_step"] = 1e6 * benchmark.stats["median"] / workload.steps


def test_predict(benchmark, workload, data):
    X, _ = data
    model = trainer(workload, "c").model
    with fb.set_backend("reference"):
        expected = model.predict(X)
    with fb.set_backend("c"):
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-4)
        benchmark(model.predict, X)
