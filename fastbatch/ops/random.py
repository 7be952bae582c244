"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011) and what is drawn from it.

Every number is a pure function of a key and a counter. Nothing is stored, so a mask or a shuffle is the same for any
thread count, any split into micro-batches, any backend, and after a resume.
"""

from __future__ import annotations

import numpy as np

__all__ = ["dropout_mask", "dropout_threshold", "generator", "permutation", "philox"]

# Purposes keep the streams of one seed apart; a counter word carries layer | purpose << 16.
DROPOUT, SHUFFLE = 1, 2

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: tuple, key: int) -> list[np.ndarray]:
    """Philox4x32-10 block cipher.

    Parameters
    ----------
    counter : tuple of 4 array_like of int
        The four 32-bit counter words, broadcast against each other.
    key : int
        64-bit key, low word first.

    Returns
    -------
    list of 4 ndarray of uint64
        The four 32-bit output words.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*[np.asarray(word, np.uint64) for word in counter])
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def dropout_threshold(rate: float) -> int:
    """Number of byte values out of 256 for which a unit is kept, at least 1; 256 keeps everything.

    The rate that runs is ``1 - T / 256``, within 1/512 of the one asked for, and kept units are scaled by ``256 / T``,
    so the expectation is exact for the rate that runs.
    """
    return max(1, round(256 * (1 - rate)))


def dropout_mask(seed: int, update: int, layer: int, rows: np.ndarray, units: int, threshold: int) -> np.ndarray:
    """Which units are kept.

    Parameters
    ----------
    seed, update, layer : int
        Trainer seed, number of updates made so far, index of the layer.
    rows : (B,) ndarray of int
        Position of each row in the logical batch.
    units : int
    threshold : int
        From :func:`dropout_threshold`.

    Returns
    -------
    (B, units) ndarray of bool
    """
    blocks = -(-units // 16)
    words = philox((np.arange(blocks)[None, :], rows[:, None], layer | DROPOUT << 16, update & 0xFFFFFFFF), seed)
    little_endian = np.stack(words, axis=-1).astype("<u4")
    # not "< threshold": 256 is no uint8, and comparing with it crashes NumPy 2.0
    return little_endian.view(np.uint8).reshape(len(rows), 16 * blocks)[:, :units] <= threshold - 1


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle ``0 .. n-1``: Fisher-Yates from the top, ``j = floor(word64 * (i + 1) / 2^64)``.

    A 64-bit word is two consecutive Philox words, low first; the bias of the multiplication is below ``n / 2^64``.

    Returns
    -------
    (n,) ndarray of int64
    """
    blocks = np.arange((n + 1) // 2)
    w0, w1, w2, w3 = philox((blocks & 0xFFFFFFFF, blocks >> 32, SHUFFLE << 16, epoch & 0xFFFFFFFF), seed)
    word = np.stack([w0 | w1 << _SHIFT, w2 | w3 << _SHIFT], axis=1).ravel()
    order = list(range(n))
    for i, w in zip(range(n - 1, 0, -1), word.tolist()):
        j = w * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """NumPy generator for draws that happen once (initial weights, splits), one independent stream per tuple."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
