"""Shuffles, on the CPU: each swap waits for the one before."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .. import scalars

__all__ = ["permutation"]

Array = np.ndarray
u64 = np.uint64


@cache
def _compiled() -> Callable:
    @numba.njit(nogil=True)
    def permute(order, seed, epoch):
        n = len(order)
        for swap in range(n - 1):
            block = u64(swap >> 1)
            words = scalars.philox(block & u64(0xFFFFFFFF), block >> u64(32), u64(2 << 16), u64(epoch), u64(seed))
            low, high = (words[0], words[1]) if swap & 1 == 0 else (words[2], words[3])
            i = n - 1 - swap
            # floor(word64 (i + 1) / 2^64) from its halves
            size = u64(i + 1)
            j = np.int64((high * size + (low * size >> u64(32))) >> u64(32))
            order[i], order[j] = order[j], order[i]

    return permute


def permutation(n: int, seed: int, epoch: int) -> Array:
    """See :func:`fastbatch.ops.random.permutation`."""
    order = np.arange(n, dtype=np.int64)
    key = int(np.uint64(seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64))
    _compiled()(order, key, epoch & 0xFFFFFFFF)
    return order
