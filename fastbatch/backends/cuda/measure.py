"""The ceilings of a device, and its clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shim import SIMULATED, cuda, kernel

__all__ = ["bandwidth", "gflops", "timed"]

_CHAINS = 8  # that do not wait for each other
_THREADS = 2 if SIMULATED else 256
_ROUNDS = 1 if SIMULATED else 5
_STEPS = 2 if SIMULATED else 1 << 14
_BLOCKS = 1 if SIMULATED else 132 * 16
_BYTES = 1 << 8 if SIMULATED else 1 << 30


def _multiply_adds(out, steps):
    sums = cuda.local.array(_CHAINS, np.float32)
    x = np.float32(cuda.threadIdx.x) * np.float32(1e-9)
    for k in range(_CHAINS):
        sums[k] = x
    for _ in range(steps):
        for k in range(_CHAINS):
            sums[k] = sums[k] * x + x
    total = np.float32(0)
    for k in range(_CHAINS):
        total += sums[k]
    out[cuda.grid(1)] = total


def _copied(x, to):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        to[i] = x[i]


def timed(call: Callable[[], object]) -> float:
    """Seconds of `call` by the device's clock, from what was queued before it to the end of what it has queued."""
    start, end = cuda.event(), cuda.event()
    cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def gflops() -> float:
    """Multiply-adds of float32 in registers, counted as two, outside the tensor cores; the best of some rounds."""
    run, out = kernel(_multiply_adds), cuda.device_array(_BLOCKS * _THREADS, np.float32)
    run[_BLOCKS, _THREADS](out, 1)  # compiles
    flops = 2.0 * _CHAINS * _STEPS * out.size
    return max(flops / abs(timed(lambda: run[_BLOCKS, _THREADS](out, _STEPS))) / 1e9 for _ in range(_ROUNDS))


def bandwidth() -> float:
    """GB/s of a copy in the device's memory, bytes read and written; the best of some rounds."""
    run = kernel(_copied)
    x, to = (cuda.device_array(_BYTES // 4, np.float32) for _ in range(2))
    run[_BLOCKS, _THREADS](x, to)
    return max(2.0 * _BYTES / abs(timed(lambda: run[_BLOCKS, _THREADS](x, to))) / 1e9 for _ in range(_ROUNDS))
