"""What Python calls: one function for each dtype, compiled on first use and kept in a cache.

One, because what is compiled with one is not shared with another, and most of it is what all have in common.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numba
import numpy as np

from ...arena import STAGE_DTYPE
from .. import scalars
from .machine import ONE, ZERO, entry, inner, plus, pointer, sources
from .passes import (
    LOSS_INDEX,
    activate,
    add_rows,
    constants_of,
    copy,
    cross_entropy,
    element_loss,
    move,
    scale_by_slope,
    squares_of_step,
    sum_of,
)
from .tiles import product
from .walk import FRAME, GRADIENTS, RUN, SEGMENT, UPDATE, walk

__all__ = ["BACKWARD", "FORWARD", "GRADIENTS", "LOSS", "MOVE", "NOTHING", "RUN", "UPDATE", "of", "permute"]

FORWARD, BACKWARD, LOSS, MOVE = range(3, 7)
_CROSS_ENTROPY = LOSS_INDEX["cross_entropy"]
_log = logging.getLogger("fastbatch")
# Seconds; what takes longer is announced.
PATIENCE = 1.0
_lock = threading.RLock()


@inner
def _forward(one, n):
    rows, inputs, outputs = n[0], n[1], n[2]
    z, a = pointer(n[6], one), pointer(n[7], one)
    product(one, rows, outputs, inputs, pointer(n[3], one), inputs, ONE, pointer(n[4], one), outputs, ONE,
            pointer(n[5], one), ZERO, z, outputs, pointer(n[8], one))  # fmt: skip
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
    product(one, inputs, outputs, rows, x, ONE, inputs, dz, outputs, ONE, dw, outputs, dw, outputs, panel)
    if n[7] != 0:
        add_rows(rows, outputs, dz, outputs, pointer(n[7], one))
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
        if verb <= UPDATE:
            walk(verb, one, frame, stages, segments, t, threads)
        elif verb == FORWARD:
            _forward(one, numbers)
        elif verb == BACKWARD:
            _backward(one, numbers)
        elif verb == LOSS:
            _loss(one, numbers, values)
        else:
            _move(one, numbers, values)

    def permute(order, seed, epoch, begin, end):
        """Swaps [begin, end) of a Fisher-Yates shuffle, `begin` even."""
        mark  # noqa: B018
        u64 = np.uint64
        n = len(order)
        for swap in range(begin, end):
            block = u64(swap >> 1)
            words = scalars.philox(block & u64(0xFFFFFFFF), block >> u64(32), u64(2 << 16), u64(epoch), u64(seed))
            low, high = (words[0], words[1]) if swap & 1 == 0 else (words[2], words[3])
            i = n - 1 - swap
            # floor(word64 (i + 1) / 2^64) from its halves
            size = u64(i + 1)
            j = np.int64((high * size + (low * size >> u64(32))) >> u64(32))
            order[i], order[j] = order[j], order[i]

    return entry(call), entry(permute)


@cache
def _dispatchers() -> tuple[Callable, Callable]:
    return _functions(sources())


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Says what is being compiled where that takes longer than PATIENCE, and how long it took."""
    begin = time.monotonic()
    said = threading.Event()

    def say() -> None:
        said.set()
        _log.warning("numba backend: compiling %s, once for this version and CPU (10 to 30 s)", what)

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        _log.warning("numba backend: compiled %s in %.0f s", what, time.monotonic() - begin)


def _compiled(function: Callable, what: str, *samples: object) -> Callable:
    with _lock, announced(what):
        function.compile(tuple(map(numba.typeof, samples)))  # type: ignore[attr-defined]
    return function


# Of a call that has no use for them
NOTHING = np.zeros(1, FRAME), np.zeros(1, STAGE_DTYPE), np.zeros(1, SEGMENT), np.zeros(1, np.int64), np.zeros(1)


@cache
def of(dtype: str) -> Callable:
    """``call(verb, one, frame, stages, segments, numbers, values, t, threads)`` for elements of `dtype`.

    The verbs of steps read the tables, those of kernels `numbers` (sizes and addresses) and `values`.
    """
    return _compiled(_dispatchers()[0], f"kernels of {dtype}", 0, np.dtype(dtype).type(1), *NOTHING, 0, 1)


@cache
def permute() -> Callable:
    return _compiled(_dispatchers()[1], "shuffles", np.zeros(1, np.int64), 0, 0, 0, 0)
