"""Thread policy: how many threads a program may use. The results do not depend on it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from .errors import ArgumentError, named_fields

__all__ = ["allowed", "available", "get_num_threads", "reason", "set_num_threads"]

# Below about this much work per step a second core costs more in barriers than it gives
# (measured crossover 1 to 2 MFLOP on two cores; two barriers of 0.05 to 0.2 us each).
MIN_FLOPS_PER_THREAD = 1_000_000

MAX_THREADS = 64  # FB_MAX_THREADS of csrc/fastbatch.h

_requested: int | None = None
_exact = False


@functools.cache
def _cgroup_limit() -> int | None:
    """CPUs that the cgroup grants (version 2), rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def available() -> int:
    """CPUs that this process may run on: affinity mask and cgroup quota."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity mask
        cpus = os.cpu_count() or 1
    return min(cpus, _cgroup_limit() or cpus)


def _from_environment() -> tuple[int, str] | None:
    for name in ("FASTBATCH_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text:
            if text.isdigit() and int(text) > 0:
                return int(text), name
            if name.startswith("FASTBATCH"):
                raise ArgumentError(f"{name}: expected an integer >= 1, got {text!r}")
    return None


def _bound() -> tuple[int, str]:
    """Upper bound on threads and who set it."""
    if _requested is not None:
        return _requested, "set_num_threads"
    found = _from_environment()
    if found is not None:
        return found[0], f"environment {found[1]}; {available()} CPUs available"
    return available(), "CPUs available to this process; small steps use fewer, results do not depend on it"


def get_num_threads() -> int:
    """Upper bound on the threads of one program: `set_num_threads`, FASTBATCH_NUM_THREADS, or the CPUs available."""
    return _bound()[0]


def reason() -> str:
    """Why :func:`get_num_threads` is what it is."""
    return _bound()[1]


@named_fields
class set_num_threads:
    """Set the upper bound on threads; as a context manager, until the block ends.

    Parameters
    ----------
    n : int or None
        None goes back to the default.
    exact : bool, default False
        Use exactly `n` threads whatever the work; for tests. Results are the same bits either way.
    """

    def __init__(self, n: int | None, exact: bool = False) -> None:
        global _requested, _exact
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ArgumentError(f"set_num_threads(n): expected an integer >= 1 or None, got {n!r}")
        self._before = _requested, _exact
        _requested, _exact = n, exact and n is not None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        global _requested, _exact
        _requested, _exact = self._before


def allowed(limit: int | None, flops: float) -> int:
    """Threads for a piece of work of `flops`, under the process-wide bound and the trainer's own `limit`."""
    if _exact:
        return min(_requested or 1, limit or MAX_THREADS, MAX_THREADS)
    if flops < 2 * MIN_FLOPS_PER_THREAD:  # first, and without a conversion: a step of a microsecond asks, too
        return 1
    worth = int(flops // MIN_FLOPS_PER_THREAD)
    bound = get_num_threads()
    if limit is not None:
        bound = min(bound, limit)
    # available(): more threads than CPUs would spin against each other
    return max(1, min(bound, available(), worth, MAX_THREADS))
