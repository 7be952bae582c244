"""What Python calls: one function for each dtype, compiled on first use and kept in a cache.

One, because what is compiled with one is not shared with another, and most of it is what all have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .. import scalars
from ..scalars.patience import announced
from .machine import ONE, ZERO, entry, flush_subnormals, inner, plus, pointer, restore_modes, sources
from .passes import (
    LOSS_INDEX,
    activate,
    constants_of,
    copy,
    cross_entropy,
    element_loss,
    move,
    scale_by_slope,
    squares_of_step,
    sum_of,
)
from .tables import DELTAS, GRADIENTS, OUTPUTS, RUN, UPDATE
from .tiles import affine, product, weight_gradient
from .walk import walk

__all__ = [
    "BACKWARD", "DELTAS", "FORWARD", "GRADIENTS", "LOSS", "MOVE", "OUTPUTS", "RUN", "UPDATE", "of", "permute",
]  # fmt: skip

FORWARD, BACKWARD, LOSS, MOVE = range(DELTAS + 1, DELTAS + 5)
_CROSS_ENTROPY = LOSS_INDEX["cross_entropy"]
_lock = threading.RLock()


@inner
def _forward(one, n):
    rows, inputs, outputs = n[0], n[1], n[2]
    z, a = pointer(n[6], one), pointer(n[7], one)
    affine(one, rows, outputs, inputs, pointer(n[3], one), inputs, pointer(n[4], one), pointer(n[5], one), z, outputs,
           pointer(n[8], one))  # fmt: skip
    if n[6] != n[7]:
        copy(rows * outputs, z, a)
    activate(n[9], rows * outputs, a)


@inner
def _backward(one, n):
    rows, inputs, outputs = n[0], n[1], n[2]
    x, w, dz, dw = pointer(n[3], one), pointer(n[4], one), pointer(n[5], one), pointer(n[6], one)
    panel = pointer(n[11], one)
    if n[10] != 0:
        scale_by_slope(n[9], rows * outputs, pointer(n[10], one), dz)
    weight_gradient(one, inputs, outputs, rows, x, inputs, dz, outputs, dw, outputs, dw, panel)
    if n[7] != 0:
        bias = pointer(n[7], one)
        product(one, ONE, outputs, rows, pointer(n[13], one), ZERO, ZERO, dz, outputs, ONE, bias, ZERO, bias, outputs,
                panel)  # fmt: skip
    if n[8] != 0:
        zeros, dx = pointer(n[12], one), pointer(n[8], one)
        product(one, rows, inputs, outputs, dz, outputs, ONE, w, ONE, outputs, zeros, ZERO, dx, inputs, panel)


@inner
def _loss(one, n, v):
    rows, outputs, kind = n[0], n[1], n[2]
    a, y, c, da = pointer(n[3], one), pointer(n[4], one), pointer(n[6], one), pointer(n[8], one)
    labels, weight, row_loss = pointer(n[5], 0), pointer(n[7], 0.0), pointer(n[9], 0.0)
    values = pointer(n[10], one)
    for r in range(rows):
        at = r * outputs
        if kind == _CROSS_ENTROPY:
            label = labels[r] if n[5] != 0 else -1
            row_loss[r] = weight[r] * cross_entropy(
                one, outputs, plus(a, at), label, plus(y, at), c, v[2], weight[r], plus(da, at)
            )
        else:
            element_loss(kind, outputs, plus(a, at), plus(y, at), c, type(one)(v[0]), type(one)(v[1]), values,
                         plus(da, at))  # fmt: skip
            row_loss[r] = weight[r] * (sum_of(outputs, values) / v[3])
            factor = type(one)(weight[r] / v[4])
            for j in range(outputs):
                da[at + j] *= factor


@inner
def _move(one, n, v):
    count, rule, stride = n[0], n[1], n[0]
    p, g, s = pointer(n[2], one), pointer(n[3], one), pointer(n[4], one)
    h, c, u = pointer(n[5], 0.0), pointer(n[6], 0.0), pointer(n[7], one)
    constants_of(rule, h, v[0], n[8], 0.0, 0.0, c)
    if n[9] != 0:
        norm_p, norm_u = squares_of_step(one, n[9], count, p, g, s, stride, c, u)
        constants_of(rule, h, v[0], n[8], np.sqrt(norm_p), np.sqrt(norm_u), c)
    move(rule, one, count, p, g, s, stride, c)


def _functions(mark: str) -> tuple[Callable, Callable]:
    """Both, with the fingerprint of all sources in their closures."""

    def call(verb, one, frame, stages, segments, numbers, values, t, threads):
        mark  # noqa: B018
        n, v, modes = pointer(numbers, 0), pointer(values, 0.0), flush_subnormals()
        if verb <= DELTAS:
            walk(verb, one, frame, stages, segments, t, threads)
        elif verb == FORWARD:
            _forward(one, n)
        elif verb == BACKWARD:
            _backward(one, n)
        elif verb == LOSS:
            _loss(one, n, v)
        else:
            _move(one, n, v)
        restore_modes(modes)

    def permute(order, seed, epoch, begin, end, even, odd):
        """Swaps [begin, end) of a Fisher-Yates shuffle, `begin` even; their words go into `even` and `odd`."""
        mark  # noqa: B018
        u64 = np.uint64
        mask, half, key = u64(0xFFFFFFFF), u64(32), u64(seed)
        n, room = len(order), len(even)
        for first in range(begin, end, 2 * room):
            for i in range(u64(room)):
                block = u64(first >> 1) + i
                words = scalars.philox(block & mask, block >> half, u64(2 << 16), u64(epoch), key)
                even[i], odd[i] = words[1] << half | words[0], words[3] << half | words[2]
            for swap in range(first, min(first + 2 * room, end)):
                i = u64(n - 1 - swap)
                word = odd[(swap - first) >> 1] if swap & 1 else even[(swap - first) >> 1]
                # floor(word (i + 1) / 2^64) from its halves
                j = ((word >> half) * (i + u64(1)) + ((word & mask) * (i + u64(1)) >> half)) >> half
                order[i], order[j] = order[j], order[i]

    return entry(call), entry(permute)


@cache
def _dispatchers() -> tuple[Callable, Callable]:
    return _functions(sources())


def _compiled(function: Callable, what: str, *samples: object) -> Callable:
    with _lock, announced(f"{what}, once for this version and CPU"):
        function.compile(tuple(map(numba.typeof, samples)))  # type: ignore[attr-defined]
    return function


@cache
def of(dtype: str) -> Callable:
    """``call(verb, one, frame, stages, segments, numbers, values, t, threads)`` for elements of `dtype`.

    All but `one` are integers: addresses, or 0. The verbs of steps read the tables, those of kernels `numbers` (sizes
    and addresses) and `values`.
    """
    return _compiled(_dispatchers()[0], f"kernels of {dtype}", 0, np.dtype(dtype).type(1), *[0] * 7)


@cache
def permute() -> Callable:
    words = np.zeros(1, np.uint64)
    return _compiled(_dispatchers()[1], "shuffles", np.zeros(1, np.int64), 0, 0, 0, 0, words, words)
