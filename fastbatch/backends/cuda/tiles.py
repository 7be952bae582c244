"""Products of matrices: a block of threads makes a tile of the result from panels in shared memory.

Every output is summed in one chain over k in ascending order, of terms or of a tensor core's blocks of them, in
registers, by one thread: no bit depends on the tile. Of a weight gradient the chain begins anew every `TILE_ROWS` rows,
and the sums of these stretches are added in their order, whether one block makes all of them or each has a block of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .. import scalars
from .panels import LARGE, SMALL, Tile, Way, of_fma, panel_of
from .passes import rows_from
from .shim import SIMULATED, cuda, inner, kernel
from .tensor import FEWEST, FMA, TF32, of_tensor

__all__ = [
    "FORWARD", "INPUT", "LARGE", "SMALL", "TILE_ROWS", "WEIGHT", "Tile", "forward", "input_gradient", "tile_of",
    "way_of", "weight_gradient",
]  # fmt: skip


# Rows of a batch that add up to one stretch of a sum.
TILE_ROWS = 8 if SIMULATED else 128

FORWARD, INPUT, WEIGHT = range(3)  # kinds of products


@cache
def forward(dtype: str, tile: Tile, activation: str, arithmetic: str = FMA) -> Any:
    """``kernel(frame, stages, m, i, at, False, False)``: a = activation(x w + b), and z where it is kept."""
    return _product(dtype, tile, FORWARD, scalars.ACTIVATIONS[activation][0], arithmetic)


@cache
def input_gradient(dtype: str, tile: Tile, activation: str, arithmetic: str = FMA) -> Any:
    """``kernel(frame, stages, m, i, at, False, False)``: dz of the stage below stage i, whose activation is given.

    With "identity" that is the gradient of what the stage below hands up.
    """
    return _product(dtype, tile, INPUT, scalars.ACTIVATIONS[activation][1], arithmetic)


@cache
def weight_gradient(dtype: str, tile: Tile, arithmetic: str = FMA) -> Any:
    """``kernel(frame, stages, m, i, at, add, apart)``: dw and db of stage i.

    They are written to `gradient`, or added to it. With `apart` block z makes the sums of the z-th stretch of rows, and
    leaves them in `partial`.
    """
    return _product(dtype, tile, WEIGHT, scalars.ACTIVATIONS["identity"][0], arithmetic)


def way_of(tile: Tile, arithmetic: str) -> Way:
    return of_fma(tile) if arithmetic == FMA else of_tensor(tile, arithmetic)


def _product(dtype: str, tile: Tile, kind: int, function: Callable, arithmetic: str) -> Any:
    one_tile = tile_of(dtype, tile, kind, function, arithmetic)
    tile_rows, tile_columns = tile.rows, tile.columns
    real = np.dtype(dtype).type
    of_a, of_b = tile.panels(way_of(tile, arithmetic).pad)

    def product(frame, stages, m, i, at, add, apart):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        row0, column0 = cuda.blockIdx.y * tile_rows, cuda.blockIdx.x * tile_columns
        a = cuda.shared.array(of_a, real)
        b = cuda.shared.array(of_b, real)
        if kind != WEIGHT:
            one_tile(stages, m, a, b, i, 0, rows, row0, column0, 0, False)
        elif apart:
            begin, to = cuda.blockIdx.z * TILE_ROWS, f["partial"] + cuda.blockIdx.z * f["count"] + s["w"]
            if begin < rows:
                one_tile(stages, m, a, b, i, begin, min(rows, begin + TILE_ROWS), row0, column0, to, False)
        else:
            for begin in range(0, rows, TILE_ROWS):
                end = min(rows, begin + TILE_ROWS)
                one_tile(stages, m, a, b, i, begin, end, row0, column0, f["gradient"] + s["w"], add or begin > 0)

    return kernel(product)


def tile_of(dtype: str, tile: Tile, kind: int, function: Callable, arithmetic: str = FMA, narrow: int = 0) -> Any:
    """``inner(stages, m, a, b, i, first, last, row0, column0, to, add)``: the outputs of a tile, by a block's threads.

    Rows `first` to `last` of a piece are those of the result, or are summed over. A weight gradient is written to `to`
    in m, or added to what is there; below it the tiles of its first row leave the gradient of the bias. `a` and `b` are
    room for the panels. Layers with a side below `narrow` are multiplied by multiply-adds, and so are stretches of few
    rows where operands are split: a rule about the stretch, so no bit depends on pieces.
    """
    real = np.dtype(dtype).type
    zero = real(0)
    _, (high, wide), multiply, row_of, column_of = way_of(tile, arithmetic)
    depth, fewest = tile.depth, FEWEST if kind == WEIGHT and arithmetic == TF32 else 0
    across, down = tile.threads
    tile_columns = tile.columns
    of_a, fetch_a, store_a = panel_of(dtype, tile.rows, depth, across * down, kind != WEIGHT)
    of_b, fetch_b, store_b = panel_of(dtype, tile.columns, depth, across * down, kind == INPUT)

    @inner
    def one_tile(stages, m, a, b, i, first, last, row0, column0, to, add):
        s = stages[i]
        inputs, outputs = s["inputs"], s["outputs"]
        x, w, dy = s["x"], s["w"], s["dy"]
        begin = 0
        if kind == FORWARD:
            M, N, end = last, outputs, inputs
        elif kind == INPUT:
            M, N, end = last, inputs, outputs
        else:
            M, N, begin, end = inputs, outputs, first, last
        t = cuda.threadIdx.y * across + cuda.threadIdx.x
        has_bias = kind == WEIGHT and s["b"] >= 0 and row0 == 0 and t < tile_columns and column0 + t < N
        bias = zero
        plain = (narrow > 0 and min(inputs, outputs) < narrow) or (fewest > 0 and last - first < fewest)
        a_next = cuda.local.array(of_a, real)
        b_next = cuda.local.array(of_b, real)
        sums = cuda.local.array((high, wide), real)
        for r in range(high):
            for c in range(wide):
                sums[r, c] = zero
        for k0 in range(begin - depth, end, depth):
            ahead = k0 + depth
            if k0 >= begin:
                store_a(a, a_next, t)
                store_b(b, b_next, t)
                cuda.syncthreads()
            if ahead < end:  # on their way while the panels before are multiplied
                if kind == WEIGHT:
                    fetch_a(a_next, m, x, M, ahead, end, row0, M, t)
                else:
                    fetch_a(a_next, m, x if kind == FORWARD else dy, end, row0, M, ahead, end, t)
                if kind == INPUT:
                    fetch_b(b_next, m, w, end, column0, N, ahead, end, t)
                else:
                    fetch_b(b_next, m, w if kind == FORWARD else dy, N, ahead, end, column0, N, t)
            if k0 >= begin:
                multiply(a, b, sums, t, plain)
                if has_bias:
                    for k in range(depth):
                        bias += b[k, t]
                cuda.syncthreads()
        if kind == FORWARD:
            to = s["a"]
        elif kind == INPUT:
            to = stages[i - 1]["dy"]
        for r in range(high):
            for c in range(wide):
                row, column = row0 + row_of(t, r, c), column0 + column_of(t, r, c)
                if row < M and column < N:
                    v, place = sums[r, c], np.uint64(to + row * N + column)
                    if kind == FORWARD and s["b"] >= 0:
                        v += m[s["b"] + column]
                    m[place] = m[place] + v if add else v
        if has_bias:
            place = to + M * N + column0 + t
            m[place] = m[place] + bias if add else bias
        if kind == WEIGHT:
            return
        # by itself: with a long function in it LLVM leaves the loop above, and with it the sums in local memory
        kept = s["z"] if kind == FORWARD else stages[i - 1]["saved"]
        for r in range(high):
            for c in range(wide):
                row, column = row0 + row_of(t, r, c), column0 + column_of(t, r, c)
                if row < M and column < N:
                    place, saved = np.uint64(to + row * N + column), np.uint64(kept + row * N + column)
                    v = m[place]
                    if kind == FORWARD:
                        if kept >= 0:
                            m[saved] = v
                        m[place] = function(v)
                    elif kept >= 0:
                        m[place] = v * function(m[saved])

    return one_tile
