"""What a call from Python costs above the work in C, and what `import fastbatch` costs.

The work is what one step, or one row, takes inside a call that makes thousands of them. Results are checked against the
reference first.
"""

from __future__ import annotations

import subprocess
import sys
import timeit

import numpy as np
import pytest

import fastbatch as fb

STEPS = 20_000
ROWS = 4096  # of one call of predict: as many as stay together

NETS = {
    "1-1-mse": ((1, 1), "mse"),
    "16-32-1-mse": ((16, 32, 1), "mse"),
    "16-32-1-bce": ((16, 32, 1), "bce"),
    "16-32-4-ce": ((16, 32, 4), "cross_entropy"),
}


@pytest.fixture(params=NETS)
def net(request) -> tuple[str, fb.Trainer, fb.Trainer, np.ndarray, np.ndarray]:
    """Its name, a trainer whose updates change nothing to speak of and one on the reference, and STEPS rows."""
    sizes, loss = NETS[request.param]
    trainers = [fb.Trainer(fb.MLP(sizes), loss, fb.SGD(lr=1e-6), backend=name) for name in ("c", "reference")]
    x = np.random.default_rng(0).standard_normal((STEPS, sizes[0]), np.float32)
    y = np.zeros(STEPS, np.int64) if loss == "cross_entropy" else np.zeros((STEPS, 1), np.float32)
    return request.param, *trainers, x, y


@pytest.fixture
def note_overhead(benchmark, note):
    """``note_overhead(row, kernel)`` after the timing: seconds of the work, and what the call takes above them."""

    def put(row: str, kernel: float) -> None:
        if benchmark.enabled:
            work, above = 1e6 * kernel, 1e6 * (benchmark.stats["median"] - kernel)
            cells = {"work us": f"{work:.3f}", "above us": f"{above:.3f}"}
            note("calls of one row", row, cells, kernel_us=work, overhead_us=above)

    return put


@pytest.mark.parametrize("call", ["positional", "by keyword"])
def test_step_of_one_row(benchmark, note_overhead, net, call):
    name, trainer, reference, x, y = net
    for row in range(3):
        one = slice(row, row + 1)
        assert trainer.step(x[one], y[one]) == pytest.approx(reference.step(x[one], y[one]), rel=1e-4)

    def fit() -> None:
        trainer.fit(x, y, batch_size=1, shuffle=False, verbose=0, check_finite=False)

    fit()
    kernel = min(timeit.repeat(fit, number=1, repeat=5)) / STEPS
    arguments = ((x[:1], y[:1]), {}) if call == "positional" else ((), {"x": x[:1], "y": y[:1]})
    benchmark.pedantic(trainer.step, *arguments, warmup_rounds=5, rounds=50, iterations=2000)
    note_overhead(f"step {name} {call}", kernel)


@pytest.mark.parametrize("owner", ["model", "trainer"])
def test_predict_of_one_row(benchmark, note_overhead, net, owner):
    name, trainer, reference, x, _ = net
    trainer = fb.Trainer(trainer.model, trainer.loss, backend="c", num_threads=1)
    np.testing.assert_allclose(trainer.predict(x[:ROWS]), reference.predict(x[:ROWS]), rtol=1e-4, atol=1e-6)
    kernel = min(timeit.repeat(lambda: trainer.predict(x[:ROWS]), number=20, repeat=5)) / 20 / ROWS
    with fb.set_backend("c"):
        predict = trainer.model.predict if owner == "model" else trainer.predict
        np.testing.assert_allclose(predict(x[:1]), reference.predict(x[:1]), rtol=1e-4, atol=1e-6)
        benchmark.pedantic(predict, (x[:1],), warmup_rounds=5, rounds=50, iterations=2000)
    note_overhead(f"{owner}.predict {name}", kernel)


def test_import(benchmark, note):
    """`import fastbatch` in a fresh interpreter that has imported NumPy; the table has the import alone."""
    code = "import time, numpy; t = time.perf_counter(); import fastbatch; print(1e3 * (time.perf_counter() - t))"
    times = []

    def start() -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))

    benchmark.pedantic(start, rounds=5, iterations=1)
    note("import", "import fastbatch, NumPy being there", {"ms": f"{min(times):.1f}"}, import_ms=min(times))
