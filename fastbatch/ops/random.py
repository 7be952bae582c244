"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011) and what is drawn from it.

Every number is a pure function of a key and a counter. Nothing is stored, so a mask or a shuffle is the same for any
thread count, any split into micro-batches, any backend, and after a resume.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "draws", "dropout_mask", "dropout_threshold", "gaussian", "generator", "mixing", "permutation", "philox",
]  # fmt: skip

# Purposes keep the streams of one seed apart; a counter word carries layer | purpose << 16.
DROPOUT, SHUFFLE, SAMPLE, NOISE, MIXUP = 1, 2, 3, 4, 5

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


# z = u p(s) with s = sqrt(-ln(1 - u^2)) inverts the normal distribution function at u = 2 Phi(z) - 1. A minimax fit of
# relative error 5.4e-5 up to the largest u, where z = 5.4; the distribution function of the result is right to 1.3e-5.
_NORMAL = (
    1.2533808946609497, -0.0023126606829464436, 0.3402058780193329, -0.016098503023386, 0.003919433336704969,
    0.047024551779031754, -0.04592321440577507, 0.01663464866578579, -0.002722563687711954, 0.0001701445144135505,
)  # fmt: skip


def gaussian(seed: int, update: int, rows: np.ndarray, units: int, dtype: str) -> np.ndarray:
    """Normal numbers of mean 0 and variance 1.

    Parameters
    ----------
    seed, update : int
        Trainer seed, number of updates made so far.
    rows : (B,) ndarray of int
        Position of each row in the logical batch.
    units : int
    dtype : str

    Returns
    -------
    (B, units) ndarray of `dtype`
        A Philox block serves 4 units. The upper 24 bits of a word are u, symmetric and never -1, 0 or 1, so the mean is
        0 and no number is larger than 5.42.
    """
    blocks = -(-units // 4)
    words = philox((np.arange(blocks)[None, :], rows[:, None], NOISE << 16, update & 0xFFFFFFFF), seed)
    word = np.stack(words, axis=-1).astype(np.uint32).view(np.int32).reshape(len(rows), 4 * blocks)[:, :units]
    real = np.dtype(dtype).type
    u = ((word >> 8).astype(dtype) + real(0.5)) * real(2.0**-23)
    s = np.sqrt(-np.log((1 - u) * (1 + u)))
    z = np.full_like(s, _NORMAL[-1])
    for coefficient in _NORMAL[-2::-1]:
        z = z * s + real(coefficient)
    return u * z


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


def draws(cumulative: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Indices drawn with replacement, each in proportion to its weight; ascending, which is six times as fast.

    Parameters
    ----------
    cumulative : (n,) ndarray of float64
        Running sum of the weights; the last one is above 0.
    count, seed, epoch : int

    Returns
    -------
    (count,) ndarray of int64
        Where the weights have summed up to more than u of their total, for each u of the upper 53 bits of two
        consecutive Philox words, low first. A weight of 0 is never drawn.
    """
    blocks = np.arange((count + 1) // 2)
    w0, w1, w2, w3 = philox((blocks & 0xFFFFFFFF, blocks >> 32, SAMPLE << 16, epoch & 0xFFFFFFFF), seed)
    word = np.stack([w0 | w1 << _SHIFT, w2 | w3 << _SHIFT], axis=1).ravel()[:count]
    # below the total, as (1 - 2^-53) c never rounds to a normal c
    return np.searchsorted(cumulative, np.sort(word >> np.uint64(11)) * 2.0**-53 * cumulative[-1], side="right")


def mixing(alpha: float, rows: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """How the rows of each batch of an epoch are mixed with each other.

    Parameters
    ----------
    alpha : float
        Above 0.
    rows : (steps,) ndarray of int64
        Of each logical batch, below 2^32.
    seed, epoch : int

    Returns
    -------
    share : (steps,) ndarray of float64
        max(l, 1 - l) for an l of the distribution Beta(alpha, alpha): what a row keeps of itself. Folding changes
        nothing, since l at a shift s and 1 - l at rows - s make the same batch but for its order. A multiple of
        2^-24, so that no dtype rounds it or what it leaves of 1. 1 for a batch of one row.
    shift : (steps,) ndarray of int64
        From 1 to rows - 1, each as likely but for rows / 2^32; 0 for a batch of one row. Row r is mixed with row
        (r + shift) mod rows.

    Notes
    -----
    ``t = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v)`` has Student's distribution with 2 alpha degrees of freedom
    (Bailey, Math. Comp. 62, 1994), and ``1/2 + t / 2 / sqrt(2 alpha + t^2)`` is then Beta(alpha, alpha).
    """
    step = np.arange(len(rows))
    w0, w1, w2, _ = philox((step & 0xFFFFFFFF, step >> 32, MIXUP << 16, epoch & 0xFFFFFFFF), seed)
    u, v = ((word + 0.5) * 2.0**-32 for word in (w0, w1))
    with np.errstate(over="ignore", divide="ignore"):  # infinities are the limits they stand for
        odds = np.expm1(-np.log(u) / alpha) * np.square(np.cos(2 * np.pi * v))
        share = np.rint((0.5 + 0.5 / np.sqrt(1 + 1 / odds)) * 2**24) * 2.0**-24
    shift = 1 + (w2 * np.maximum(rows - 1, 0).astype(np.uint64) >> _SHIFT).astype(np.int64)
    alone = rows < 2
    return np.where(alone, 1.0, share), np.where(alone, 0, shift)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """NumPy generator for draws that happen once (initial weights, splits), one independent stream per tuple."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
