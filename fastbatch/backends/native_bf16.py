"""Whether products in bfloat16 pay: by measurement, the instructions alone do not tell.

vdpbf16ps has half the rate of float32 on one CPU and twice on another, narrow layers have no bfloat16 products, and few
rows do not repay what it costs to round and pack the weights.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from .. import _native
from ..plan import BF16_NARROW, Plan

__all__ = ["TRIAL_ROWS", "refusal"]

# Rows of the product that decides for these and more, and the most columns on either side: 1 to 4 ms.
TRIAL_ROWS, _TRIAL_WIDTH = 64, 512

_IDENTITY = _native.activations.index("identity")


@cache
def _trial(target: str, bf16_target: str, rows: int, inputs: int, outputs: int, need_dx: bool) -> tuple[float, float]:
    """Seconds of a layer's products, forward and backward, in float32 and in bfloat16: the best of nine, in turns.

    Forward alone refused 16 rows, with which whole steps are 1.1 to 1.3 times as fast; with 8 they are 0.8 to 1.0.
    """
    x, w = np.ones((rows, inputs), np.float32), np.ones((inputs, outputs), np.float32)
    z, dw, dx = np.empty((rows, outputs), np.float32), np.zeros_like(w), np.empty_like(x) if need_dx else None
    repeats = 1 + 2**20 // (TRIAL_ROWS * inputs * outputs)  # beside calls from Python, about a microsecond each
    best = [float("inf")] * 2
    for _ in range(9):  # a lucky one of three let equal code pass as 1.1 times as fast
        for i, name in enumerate((target, bf16_target)):
            kernels = _native.Kernels(name)
            start = time.perf_counter()
            for _ in range(repeats):
                kernels.dense_forward(x, w, None, _IDENTITY, z, z)
                kernels.dense_backward(z, x, w, dw, None, dx)
            best[i] = min(best[i], (time.perf_counter() - start) / repeats)
    return best[0], best[1]


def refusal(plan: Plan, rows: int, target: str, bf16_target: str) -> str | None:
    """Why `bf16_target` would not pay for steps of `rows` rows at a time; None where it does."""
    dense = [stage for stage in plan.stages if stage.has_dense]
    wide = [stage for stage in dense if stage.in_bf16]
    if not dense:
        return None  # nothing to round
    if not wide:
        return BF16_NARROW
    largest = max(wide, key=lambda stage: stage.inputs * stage.outputs)
    rows = min(rows, TRIAL_ROWS)
    inputs, outputs = (min(width, _TRIAL_WIDTH) for width in (largest.inputs, largest.outputs))
    slow, fast = _trial(target, bf16_target, rows, inputs, outputs, largest is not dense[0])
    if slow > 1.1 * fast:
        return None
    at, instead = ("", "") if rows == TRIAL_ROWS else (f" for {rows} rows at a time", " or larger batches")
    return (
        f"precision bf16 does not pay{at}: the products of {rows} rows with weights ({inputs}, {outputs}), the largest "
        f"layer's up to {_TRIAL_WIDTH} wide, take {fast * 1e6:.1f} us here on target {bf16_target}, and "
        f"{slow * 1e6:.1f} us in float32; use precision='float32'{instead}"
    )
