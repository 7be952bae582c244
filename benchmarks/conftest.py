"""What the suites share: targets, ceilings, workloads cut to rounds of a few milliseconds."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from fastbatch import _native
from fastbatch.bench.machine import peak_gflops
from fastbatch.bench.workloads import WORKLOADS, Workload

FLOPS_PER_ROUND = 2e8  # a few milliseconds to a few hundred, so that calls weigh little and a round does not last

peak = functools.cache(peak_gflops)


@pytest.fixture(params=[name for name, usable in _native.targets().items() if usable])
def target(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[w for w in WORKLOADS if not w.heavy], ids=lambda w: w.name)
def workload(request) -> Workload:
    steps = int(FLOPS_PER_ROUND / request.param.flops_per_step)
    return replace(request.param, steps=min(max(steps, 5), request.param.steps))


@pytest.fixture(scope="module")
def data(workload) -> tuple[np.ndarray, np.ndarray]:
    return workload.data()


@pytest.fixture(autouse=True)
def a_table_for_each_test(request, benchmark):
    benchmark.group = request.node.originalname


@pytest.fixture
def flops(benchmark):
    """``flops(n, target, threads)`` after the timing: GFLOP/s of `n` flops a round, and the share of the ceiling."""

    def note(n: float, target: str, threads: int = 1) -> None:
        if benchmark.enabled:
            gflops = n / benchmark.stats["median"] / 1e9
            benchmark.extra_info.update(gflops=gflops, share_of_peak=gflops / peak(target, threads), threads=threads)

    return note
