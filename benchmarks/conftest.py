"""What the suites share: targets, ceilings, workloads cut to rounds of a few milliseconds, the tables at the end."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from fastbatch import _native
from fastbatch.bench.machine import peak_gflops
from fastbatch.bench.report import digits
from fastbatch.bench.workloads import WORKLOADS, Workload

FLOPS_PER_ROUND = 2e8  # a few milliseconds to a few hundred, so that calls weigh little and a round does not last

peak = functools.cache(peak_gflops)

TARGETS = [name for name, usable in _native.targets().items() if usable]

# column of the table, target, dtype, unit roundoff of the operands
ENGINES = [(target, target, "float32", 0.0) for target in TARGETS]
ENGINES += [(f"{target} float64", target, "float64", 0.0) for target in TARGETS]
ENGINES += [
    (f"{name} bf16", name, "float32", 2.0**-8) for name, missing in _native.bf16_targets().items() if not missing
]

# title -> row -> column -> cell, in the order of what ran
TABLES: dict[str, dict[str, dict[str, str]]] = {}


@pytest.fixture(params=TARGETS)
def target(request) -> str:
    return request.param


@pytest.fixture(params=ENGINES, ids=lambda engine: engine[0].replace(" ", "-"))
def engine(request) -> tuple[str, str, str, float]:
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
def note(benchmark):
    """``note(title, row, cells, **numbers)`` after the timing: a line of a table at the end, and for the JSON."""

    def put(title: str, row: str, cells: dict[str, str], **numbers: float) -> None:
        TABLES.setdefault(title, {}).setdefault(row, {}).update(cells)
        benchmark.extra_info.update(numbers)

    return put


@pytest.fixture
def note_flops(benchmark, note):
    """``note_flops(title, row, column, n, target, threads)``: `n` flops a round, beside the ceiling of the target."""

    def put(title: str, row: str, column: str, n: float, target: str, threads: int = 1, share: float = 1.0) -> None:
        if benchmark.enabled:
            gflops = n / benchmark.stats["median"] / 1e9
            of_peak = gflops / (share * peak(target, threads))
            cells = {column: f"{digits(gflops)} {of_peak:4.0%}"}
            note(title, row, cells, gflops=gflops, share_of_peak=of_peak, threads=threads)

    return put


def pytest_terminal_summary(terminalreporter) -> None:
    for title, rows in TABLES.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        first = max(map(len, rows))
        width = 2 + max(len(text) for cells in rows.values() for text in (*columns, *cells.values()))
        terminalreporter.write_sep("-", title)
        terminalreporter.write_line(" " * first + "".join(f"{column:>{width}}" for column in columns))
        for row, cells in rows.items():
            terminalreporter.write_line(f"{row:{first}}" + "".join(f"{cells.get(c, ''):>{width}}" for c in columns))
