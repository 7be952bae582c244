"""Tiles: how the threads of a block share the outputs of a product, and how they multiply two panels."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from .shim import SIMULATED, inner

__all__ = ["LARGE", "SMALL", "Tile", "Way", "of_fma"]


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


# In the simulator a thread of a block is one of Python's, which takes about a millisecond: tiles of four.
SMALL = Tile(4, 4, 4, 2, 2) if SIMULATED else Tile(32, 32, 32, 2, 2)
LARGE = Tile(6, 4, 3, 3, 2) if SIMULATED else Tile(128, 64, 16, 8, 4)


class Way(NamedTuple):
    """How a block multiplies panels a (depth, rows) and b (depth, columns), and which outputs are a thread's.

    Attributes
    ----------
    pad : int
        By how much lines of panels are longer, so that threads meet in as few banks as possible.
    shape : tuple of int
        Of the sums that a thread has.
    multiply : callable
        ``inner(a, b, sums, t)`` adds the panels' products to the sums of thread t.
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
    def multiply(a, b, sums, t):
        tx, ty = t % across, t // across
        for k in range(depth):
            for r in range(high):
                for c in range(wide):
                    sums[r, c] += a[k, ty + r * down] * b[k, tx + c * across]

    return Way(1, (high, wide), multiply, row, column)
