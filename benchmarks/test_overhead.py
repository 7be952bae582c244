"""What a call from Python costs above the work in C: ``pytest benchmarks/test_overhead.py --benchmark-only``.

The work is what one step, or one row, takes inside a call that makes thousands of them; ``extra_info`` has it as
``kernel_us``, and the rest as ``overhead_us``.
"""

from __future__ import annotations

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
def net(request) -> tuple[fb.Trainer, np.ndarray, np.ndarray]:
    """A trainer whose updates change nothing to speak of, and STEPS rows for it."""
    sizes, loss = NETS[request.param]
    trainer = fb.Trainer(fb.MLP(sizes), loss, fb.SGD(lr=1e-6), backend="c")
    x = np.random.default_rng(0).standard_normal((STEPS, sizes[0]), np.float32)
    y = np.zeros(STEPS, np.int64) if loss == "cross_entropy" else np.zeros((STEPS, 1), np.float32)
    return trainer, x, y


def _report(benchmark, kernel: float) -> None:
    if benchmark.enabled:
        taken = benchmark.stats["median"]
        benchmark.extra_info.update(kernel_us=1e6 * kernel, overhead_us=1e6 * (taken - kernel))


@pytest.mark.parametrize("call", ["positional", "by keyword"])
def test_step_of_one_row(benchmark, net, call):
    trainer, x, y = net

    def fit() -> None:
        trainer.fit(x, y, batch_size=1, shuffle=False, verbose=0, check_finite=False)

    fit()
    kernel = min(timeit.repeat(fit, number=1, repeat=5)) / STEPS
    arguments = ((x[:1], y[:1]), {}) if call == "positional" else ((), {"x": x[:1], "y": y[:1]})
    benchmark.pedantic(trainer.step, *arguments, warmup_rounds=5, rounds=50, iterations=2000)
    _report(benchmark, kernel)


@pytest.mark.parametrize("owner", ["model", "trainer"])
def test_predict_of_one_row(benchmark, net, owner):
    trainer, x, _ = net
    trainer = fb.Trainer(trainer.model, trainer.loss, backend="c", num_threads=1)
    kernel = min(timeit.repeat(lambda: trainer.predict(x[:ROWS]), number=20, repeat=5)) / 20 / ROWS
    with fb.set_backend("c"):
        predict = trainer.model.predict if owner == "model" else trainer.predict
        benchmark.pedantic(predict, (x[:1],), warmup_rounds=5, rounds=50, iterations=2000)
    _report(benchmark, kernel)
