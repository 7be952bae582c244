"""What a call costs beside its arithmetic, and what `import fastbatch` costs."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

import fastbatch as fb

NETWORKS = {"smallest": [1, 1], "small": [16, 32, 1]}


def trainers(dims: list[int]) -> list[fb.Trainer]:
    return [fb.Trainer(fb.MLP(dims, seed=0), "mse", fb.SGD(lr=1e-3), backend=name) for name in ("c", "reference")]


def us_per_step_of_fit(trainer: fb.Trainer, steps: int = 2000) -> float:
    """One row a step inside one call: the arithmetic and its bookkeeping without Python."""
    X = np.ones((steps, trainer.model.input_size), np.float32)
    y = np.ones((steps, trainer.model.output_size), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        trainer.fit(X, y, batch_size=1, verbose=0, check_finite=False)
        times.append(1e6 * (time.perf_counter() - start) / steps)
    return min(times)


@pytest.mark.parametrize("network", NETWORKS)
def test_step_of_one_row(benchmark, network):
    trainer, reference = trainers(NETWORKS[network])
    x = np.ones((1, trainer.model.input_size), np.float32)
    y = np.ones((1, trainer.model.output_size), np.float32)
    assert trainer.step(x, y) == pytest.approx(reference.step(x, y), rel=1e-4)
    kernel = us_per_step_of_fit(trainer)
    benchmark(trainer.step, x, y)
    if benchmark.enabled:
        benchmark.extra_info["kernel_us"] = kernel
        benchmark.extra_info["overhead_us"] = 1e6 * benchmark.stats["median"] - kernel


@pytest.mark.parametrize("network", NETWORKS)
def test_predict_of_one_row(benchmark, network):
    trainer, _ = trainers(NETWORKS[network])
    model, rows = trainer.model, 4096
    x = np.ones((1, model.input_size), np.float32)
    with fb.set_backend("reference"):
        expected = model.predict(x)
    with fb.set_backend("c"), fb.set_num_threads(1):
        np.testing.assert_allclose(model.predict(x), expected, rtol=1e-5)
        many = np.ones((rows, model.input_size), np.float32)
        start = time.perf_counter()
        model.predict(many)
        kernel = 1e6 * (time.perf_counter() - start) / rows
        benchmark(model.predict, x)
    if benchmark.enabled:
        benchmark.extra_info["kernel_us"] = kernel
        benchmark.extra_info["overhead_us"] = 1e6 * benchmark.stats["median"] - kernel


def test_import(benchmark):
    """`import fastbatch` in a fresh interpreter that has imported NumPy; the extra info has the import alone."""
    code = "import time, numpy; t = time.perf_counter(); import fastbatch; print(1e3 * (time.perf_counter() - t))"
    times = []

    def start() -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))

    benchmark.pedantic(start, rounds=5, iterations=1)
    benchmark.extra_info["import_ms"] = min(times)
