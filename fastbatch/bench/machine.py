"""Where it was measured: the machine, its ceilings, and the versions of everything that ran."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone

from ..backends import get
from ..info import info
from ..threads import available
from .contestants import Contestant

__all__ = ["barrier_ns", "machine", "peak_gflops", "slug"]

_ROUNDS = 20  # of about half a millisecond: the first ones wake the helpers and settle the clock


def peak_gflops(target: str, threads: int) -> float:
    """Multiply-adds in registers, the best of 20 rounds: what no kernel of this target can pass."""
    from .. import _native

    return max(_native.measure_peak(target, threads) for _ in range(_ROUNDS))


def barrier_ns(threads: int) -> float:
    """Nanoseconds of one barrier, the best of 20 rounds; a step has two."""
    from .. import _native

    return min(_native.measure_barrier(threads) for _ in range(_ROUNDS))


def machine(contestants: Sequence[type[Contestant]]) -> dict:
    """CPU, target, ceilings, versions (None for what is not installed), load, date.

    Raises
    ------
    BackendError
        Without the c backend there is nothing to measure.
    """
    target: str = get("c").target  # type: ignore[attr-defined]
    about, cpus = info(), available()
    return {
        "cpu": about["cpu"],
        "cpus": cpus,
        "platform": about["platform"],
        "target": target,
        "peak_gflops": {str(n): round(peak_gflops(target, n), 1) for n in range(1, cpus + 1)},
        "barrier_ns": {str(n): round(barrier_ns(n), 1) for n in range(2, cpus + 1)},
        "python": platform.python_version(),
        "versions": {contestant.name: contestant.version() for contestant in contestants},
        "numpy": about["numpy"],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def slug(about: dict) -> str:
    """A file name for results: CPU, number of CPUs, version."""
    cpu = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", about["cpu"].lower())).strip("-")
    return f"{cpu}-{about['cpus']}cpu-{about['versions']['fastbatch']}"
