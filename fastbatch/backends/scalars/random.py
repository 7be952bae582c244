"""Random numbers of a counter."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

__all__ = ["philox"]

u64 = np.uint64


@register_jitable(inline="always")  # so that a loop over counters is turned into vectors
def philox(c0, c1, c2, c3, seed):
    """Philox4x32-10: four words from a counter of four and a key of 64 bits, all uint64."""
    low, shift = u64(0xFFFFFFFF), u64(32)
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        p0, p1 = c0 * u64(0xD2511F53), c2 * u64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + u64(0x9E3779B9)) & low, (k1 + u64(0xBB67AE85)) & low
    return c0, c1, c2, c3
