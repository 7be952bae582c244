"""The tables that steps walk: what a program is, where its memory is, and how threads share and meet."""

from __future__ import annotations

import numpy as np

from ...arena import STAGE_DTYPE
from .machine import ZERO, inner, pointer, records, size_of, wait_for_all

__all__ = [
    "BAD_GRADIENT", "BAD_LOSS", "BLOCK", "DELTAS", "FRAME", "GRADIENTS", "LINE", "OK", "OUTPUTS", "RUN", "SAYS",
    "SEGMENT", "SPARE", "STOP", "TILE", "UPDATE", "frame_at", "input_of", "meet", "segment_at", "share_of", "stage_at",
]  # fmt: skip

# What a program is, where its memory is (addresses), and how a call has ended.
FRAME = np.dtype(
    [
        *((name, np.int64) for name in (
            "parameters", "slots", "count", "steps", "seed", "arena", "y_copy", "row_loss", "row_weight", "row_share",
            "gradient", "weights", "values", "zeros", "panels", "panel_bytes", "scratch", "hyper", "norms", "shared",
            "stages", "segments", "lowest", "loss", "weighted", "labels", "x", "x_stride", "y", "y_stride", "weight",
            "order", "rows", "batch", "piece", "outputs", "first_row", "first", "last", "lrs", "sums", "deadline",
            "next", "status", "one", "input_norms", "delta_norms", "scales", "held", "norm_norms",
            "buffers", "moved", "buffer_count",
        )),
        *((name, np.float64) for name in (
            "g", "h", "parameter", "of_value", "of_slope", "max_norm", "clip_value", "norm", "value", "scale",
            "loss_before", "weight_before",
        )),
    ]
)  # fmt: skip
SEGMENT = np.dtype(
    [
        *((name, np.int64) for name in ("begin", "end", "rule", "normed")),
        *((name, np.float64) for name in ("l1", "lr_factor", "by_weight")),
    ]
)
# Of a table's address and an index, the row
frame_at, stage_at, segment_at = map(records, (FRAME, STAGE_DTYPE, SEGMENT))
# Elements of a parameter that are worked on at a time: a gradient, three slots and they are 40 KiB of float32.
BLOCK = 2048
# Rows, of a batch or of weights, that are shared out together
TILE = np.int64(8)
# Words of `shared`: the counter of arrivals, then what each thread says, a cache line apart.
COUNTER, STOP, SPARE, SAYS = 0, 16, 32, 64
LINE = 16
OK, BAD_LOSS, BAD_GRADIENT = 0, 1, 2
RUN, GRADIENTS, UPDATE, OUTPUTS, DELTAS = range(5)


@inner
def share_of(n, unit, t, threads):
    """Thread t's part of n things, in multiples of `unit`."""
    if threads == 1:  # divisions are 10 to 20 ns each, and a step of one row has eight of them
        return ZERO, n
    units = (n + unit - 1) // unit
    return min(n, units * t // threads * unit), min(n, units * (t + 1) // threads * unit)


@inner
def meet(f, threads):
    wait_for_all(pointer(f.shared, 0), threads)


@inner
def input_of(one, f, stages, i, base, r):
    """Where row r of stage i's input is, and the stride of its rows."""
    size = size_of(one)
    if i == 0 and f.order == 0:
        return pointer(f.x + (base + r) * f.x_stride * size, one), f.x_stride
    ld = stage_at(stages, i).x_ld
    return pointer(f.arena + stage_at(stages, i).x + r * ld * size, one), ld
