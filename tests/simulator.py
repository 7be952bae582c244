"""numba-cuda's simulator as the tests need it: repeatable, quick, with memory that shows when it was not written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["steady"]

_lock = threading.Lock()


def _empty(shape, dtype):
    found = np.empty(shape, dtype)
    found.fill(np.nan if found.dtype.kind == "f" else 0)
    return found


def _shared(self, shape, dtype, alignment=None):
    """The array of the line that asks, one for all threads: the simulator's own may make two when they ask at once."""
    frame = sys._getframe(1)
    caller = frame.f_code, frame.f_lineno
    with _lock:
        if caller not in self._allocations:
            self._allocations[caller] = _empty(shape, dtype)
        return self._allocations[caller]


def _local(self, shape, dtype, alignment=None):
    return _empty(shape, dtype)


@contextmanager
def steady() -> Iterator[None]:
    """Within the block memory of blocks and threads begins as NaN, and threads take turns soon.

    The simulator's main thread spins; with the usual 5 ms until it lets others in, all takes six times as long.
    """
    from numba.cuda.simulator.kernelapi import FakeCUDALocal, FakeCUDAShared

    before = sys.getswitchinterval(), FakeCUDAShared.array, FakeCUDALocal.array
    sys.setswitchinterval(5e-6)
    FakeCUDAShared.array, FakeCUDALocal.array = _shared, _local
    try:
        yield
    finally:
        sys.setswitchinterval(before[0])
        FakeCUDAShared.array, FakeCUDALocal.array = before[1:]
