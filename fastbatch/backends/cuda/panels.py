"""Tiles: how the threads of a block share the outputs of a product, and how they multiply two panels."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .shim import SIMULATED, inner

__all__ = ["LARGE", "SMALL", "Tile", "Way", "of_fma", "panel_of"]


class Tile(NamedTuple):
    """A block makes rows x columns outputs, `depth` of k at a time; a thread high x wide = `sums` of them."""

    rows: int
    columns: int
    depth: int
    high: int
    wide: int

    @property
    def threads(self) -> tuple[int, int]:
        return self.columns // self.wide, self.rows // self.high

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        return -(-columns // self.columns), -(-rows // self.rows)

    def panels(self, pad: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the panels in shared memory, whose lines are longer by `pad` than the tile."""
        return (self.depth, self.rows + pad), (self.depth, self.columns + pad)


# Threads share panels out evenly: their number is a multiple of rows, columns and depth. In the simulator a thread of a
# block is one of Python's, which takes about a millisecond: there are few.
SMALL = Tile(4, 4, 4, 2, 2) if SIMULATED else Tile(32, 32, 32, 2, 2)
LARGE = Tile(8, 4, 2, 4, 1) if SIMULATED else Tile(128, 64, 16, 8, 4)


@cache
def panel_of(dtype: str, width: int, depth: int, threads: int, turned: bool) -> tuple[int, Any, Any]:
    """How threads bring a panel (depth, width) into shared memory: elements of each, fetch, and store.

    ``fetch(found, m, origin, stride, line, lines, place, places, t)`` reads those of thread t, from line and place on,
    of the matrix (lines, places) at `origin` of m, its lines `stride` apart; what is outside of it is zero.
    ``store(panel, found, t)`` puts them there. The lines of the matrix run along k, and so down the panel, where
    `turned`. A thread has the same place in every line that it reads. Its index has no sign: what a negative
    one means, from the end, costs four instructions.
    """
    along = depth if turned else width
    step, count = threads // along, width * depth // threads
    assert threads % along == 0
    zero = np.dtype(dtype).type(0)

    @inner
    def fetch(found, m, origin, stride, line, lines, place, places, t):
        line += t // along
        place += t % along
        left = np.int32(min(lines - line, step * count) if place < places else 0)
        at, jump = np.uint64(origin + line * stride + place), np.uint64(step * stride)
        for j in range(count):
            found[j] = m[at] if np.int32(j * step) < left else zero
            at += jump

    @inner
    def store(panel, found, t):
        line, place = t // along, t % along
        for j in range(count):
            if turned:
                panel[place, line + j * step] = found[j]
            else:
                panel[line + j * step, place] = found[j]

    return count, fetch, store


class Way(NamedTuple):
    """How a block multiplies panels a (depth, rows) and b (depth, columns), and which outputs are a thread's.

    Attributes
    ----------
    pad : int
        By how much lines of panels are longer, so that threads meet in as few banks as possible.
    shape : tuple of int
        Of the sums that a thread has.
    multiply : callable
        ``inner(a, b, sums, t, plain)`` adds the panels' products to the sums of thread t, `plain` by multiply-adds.
    row, column : callable
        ``inner(t, r, c)``: where in the tile the sum (r, c) of thread t belongs.
    """

    pad: int
    shape: tuple[int, int]
    multiply: Any
    row: Any
    column: Any


@cache
def of_fma(tile: Tile) -> Way:
    """Multiply-adds: each sum is one chain over k. A pad of one keeps a panel that is turned out of a single bank."""
    depth, (across, down) = tile.depth, tile.threads
    high, wide = tile.high, tile.wide

    @inner
    def row(t, r, c):
        return t // across + r * down

    @inner
    def column(t, r, c):
        return t % across + c * across

    @inner
    def multiply(a, b, sums, t, plain):
        tx, ty = t % across, t // across
        for k in range(depth):
            for r in range(high):
                for c in range(wide):
                    sums[r, c] += a[k, ty + r * down] * b[k, tx + c * across]

    return Way(1, (high, wide), multiply, row, column)
