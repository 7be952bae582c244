"""Small networks: one block takes a stretch of rows through the whole of a step, from the gather to its gradient.

Between two layers the block waits for its own threads, not a kernel for the one before, and what a stretch works on
stays in the caches next to it. The tiles, losses and sums are those of the kernels that do one thing each, and so are
the bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ...plan import Plan
from .. import scalars
from . import passes
from .passes import LANES, rows_from
from .shim import cuda, kernel
from .tensor import tiles_for
from .tiles import FORWARD, INPUT, TILE_ROWS, WEIGHT, tile_of, way_of

__all__ = ["MOST_UNITS", "is_small", "stretches"]

# A wider layer has tiles enough for the device, and panels that would have to be read again for each stretch.
MOST_UNITS = 128


def is_small(plan: Plan) -> bool:
    """Whether a block can take rows through: narrow dense layers, activations alike but for the last."""
    first = plan.stages[0].activation.name
    return all(
        stage.has_dense and not stage.has_dropout and max(stage.inputs, stage.outputs) <= MOST_UNITS
        for stage in plan.stages
    ) and all(stage.activation.name == first for stage in plan.stages[:-1])


@cache
def stretches(
    dtype: str,
    hidden: str,
    last: str,
    loss: str,
    target: str,
    ordered: bool,
    weighted: bool,
    arithmetic: str,
    narrow: int,
) -> Any:
    """``kernel(frame, stages, m, d, x, y, weight, order, units, at)``: block k does the k-th stretch of a piece.

    It leaves the rows' losses, and the gradient of the sum of its own in the k-th of `partial`. Layers with a side
    below `narrow` have multiply-adds, whatever the arithmetic of the others.
    """
    gathered = passes.gather_of(dtype, target, ordered, weighted)
    tile = tiles_for(arithmetic)[1]
    across, down = tile.threads
    threads, high, wide = across * down, tile.rows, tile.columns
    lines = threads // LANES
    of_rows = passes.losses_of(dtype, loss, target == passes.LABELS, lines)
    hidden_tile = tile_of(dtype, tile, FORWARD, scalars.ACTIVATIONS[hidden][0], arithmetic, narrow)
    last_tile = tile_of(dtype, tile, FORWARD, scalars.ACTIVATIONS[last][0], arithmetic, narrow)
    input_tile = tile_of(dtype, tile, INPUT, scalars.ACTIVATIONS[hidden][1], arithmetic, narrow)
    weight_tile = tile_of(dtype, tile, WEIGHT, scalars.ACTIVATIONS["identity"][0], arithmetic, narrow)
    slope = scalars.ACTIVATIONS[last][1]
    real = np.dtype(dtype).type
    of_a, of_b = tile.panels(way_of(tile, arithmetic).pad)
    assert threads == LANES * lines

    def stretch(frame, stages, m, d, x, y, weight, order, units, at):
        f = frame[0]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        begin = cuda.blockIdx.x * TILE_ROWS
        end = min(rows, begin + TILE_ROWS)
        if begin >= end:
            return
        t, n = cuda.threadIdx.y * across + cuda.threadIdx.x, f["stages"]
        a = cuda.shared.array(of_a, real)
        b = cuda.shared.array(of_b, real)
        gathered(frame, stages, m, d, x, y, weight, order, units, at, begin, end, t, threads)
        cuda.syncthreads()
        for i in range(n):
            for row0 in range(begin, end, high):
                for column0 in range(0, stages[i]["outputs"], wide):
                    if i < n - 1:
                        hidden_tile(stages, m, a, b, i, begin, end, row0, column0, 0, False)
                    else:
                        last_tile(stages, m, a, b, i, begin, end, row0, column0, 0, False)
            cuda.syncthreads()
        of_rows(frame, stages, m, d, begin, end, lines, t % LANES, t // LANES)
        cuda.syncthreads()
        s = stages[n - 1]
        if s["saved"] >= 0:
            for e in range(begin * s["outputs"] + t, end * s["outputs"], threads):
                m[s["dy"] + e] *= slope(m[s["saved"] + e])
            cuda.syncthreads()
        for i in range(n - 1, 0, -1):
            for row0 in range(begin, end, high):
                for column0 in range(0, stages[i]["inputs"], wide):
                    input_tile(stages, m, a, b, i, begin, end, row0, column0, 0, False)
            cuda.syncthreads()
        for i in range(n):
            to = f["partial"] + cuda.blockIdx.x * f["count"] + stages[i]["w"]
            for row0 in range(0, stages[i]["inputs"], high):
                for column0 in range(0, stages[i]["outputs"], wide):
                    weight_tile(stages, m, a, b, i, begin, end, row0, column0, to, False)

    return kernel(stretch)
