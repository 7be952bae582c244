"""A step, as threads walk it: rows (rows.py), then parameters (gradient, look, update).

Threads share rows in the first part and parameters in the second, and meet in between. Every number that is summed is
summed in an order that threads do not decide. Whether a step may update is known before anything is written.
"""

from __future__ import annotations

import math

import numpy as np

from ..scalars import CONSTANTS, HYPERS
from .machine import ONE, ZERO, inner, merged, now, plus, pointer, size_of
from .norms import norm_gradient
from .passes import constants_of, copy, is_bad, move, pull, square_sum, squares_of_step
from .rows import per_sample, prepare_rows, row_of
from .tables import (
    BAD_GRADIENT,
    BAD_LOSS,
    BLOCK,
    DELTAS,
    GRADIENTS,
    LINE,
    OK,
    OUTPUTS,
    RUN,
    SAYS,
    SPARE,
    STOP,
    TILE,
    UPDATE,
    frame_at,
    input_of,
    meet,
    segment_at,
    share_of,
    stage_at,
)  # fmt: skip
from .tiles import product, weight_gradient

__all__ = ["walk"]

# -- parameters --------------------------------------------------------------------------------------------------------


@inner
def _add_gradient(one, f, stages, base, rows, add, t, threads):
    """`gradient` = the sums over these rows or, with `add`, += ."""
    size = size_of(one)
    zeros = pointer(f.zeros, one)
    panel = pointer(f.panels + t * f.panel_bytes, one)
    for i in range(f.lowest, f.stages):
        s = stage_at(stages, i)
        if s.gamma >= 0:
            norm_gradient(one, f, stages, i, base, rows, add, t, threads)
        if s.w < 0:
            continue
        dz = pointer(f.arena + s.dz, one)
        x, ld = input_of(one, f, stages, i, base, ZERO)
        begin, end = share_of(s.inputs, TILE, t, threads)
        to = pointer(f.gradient + s.w + begin * s.outputs * size, one)
        start, start_row = (to, s.outputs) if add else (zeros, ZERO)
        if end > begin:
            weight_gradient(one, end - begin, s.outputs, rows, plus(x, begin), ld, dz, s.out_ld, start, start_row, to,
                            panel)  # fmt: skip
        if s.b >= 0 and i % threads == t:
            bias = pointer(f.gradient + s.b, one)
            if rows == 1:
                before = bias if add else zeros
                for j in range(s.outputs):
                    bias[j] = before[j] + dz[j]
                continue
            product(one, ONE, s.outputs, rows, pointer(f.one, one), ZERO, ZERO, dz, s.out_ld, ONE,
                    bias if add else zeros, ZERO, bias, s.outputs, panel)  # fmt: skip


@inner
def _blocks(segment):
    return (segment.end - segment.begin + BLOCK - 1) // BLOCK


@inner
def _apply(one, f, segments, scale, unit, lr, made, t, threads):
    """One update from `scale` times the sums; a status, the same on every thread."""
    size = size_of(one)
    says, norms = pointer(f.shared + 8 * SAYS, 0), pointer(f.norms, 0.0)
    blocks = 0
    for i in range(f.segments):
        blocks += _blocks(segment_at(segments, i))
    mine, end = share_of(blocks, ONE, t, threads)
    bad, at = 0, 0
    for i in range(f.segments):
        segment = segment_at(segments, i)
        for j in range(_blocks(segment)):
            if mine <= at < end:
                first = segment.begin + j * BLOCK
                n = min(BLOCK, segment.end - first)
                g = pointer(f.gradient + first * size, one)
                bad |= is_bad(one, n, g, scale)
                if f.max_norm > 0.0:
                    norms[2 * at] = square_sum(n, g)
            at += 1
    says[LINE * t] = bad
    meet(f, threads)
    for k in range(threads):
        bad |= says[LINE * k]
    if bad:
        return BAD_GRADIENT
    factor = 1.0
    if f.max_norm > 0.0:
        squares = 0.0
        for k in range(blocks):
            squares += norms[2 * k]
        norm = math.sqrt(squares) * scale
        if t == 0:
            f.norm = norm
        if not norm < np.inf:
            return BAD_GRADIENT
        factor = min(1.0, f.max_norm / (norm + 1e-6))  # torch's constant
    scratch = pointer(f.scratch + t * 2 * BLOCK * 8, one)
    u = plus(scratch, BLOCK)
    c = pointer(f.scratch + threads * 2 * BLOCK * 8 + t * 256, 0.0)
    normed = False
    for i in range(f.segments):
        normed |= segment_at(segments, i).normed != 0
    for take_norms in range(1 if normed else 0, -1, -1):
        if normed:
            meet(f, threads)
        at = 0
        for i in range(f.segments):
            segment = segment_at(segments, i)
            count = _blocks(segment)
            if at >= end or at + count <= mine:
                at += count
                continue
            hyper = pointer(f.hyper + i * HYPERS * 8, 0.0)
            norm_p, norm_u = 0.0, 0.0
            if segment.normed != 0 and take_norms == 0:
                for j in range(at, at + count):
                    norm_p += norms[2 * j]
                    norm_u += norms[2 * j + 1]
            decay = hyper[0]
            if segment.by_weight != 0.0:
                hyper = plus(c, CONSTANTS)
                for k in range(HYPERS):
                    hyper[k] = pointer(f.hyper + i * HYPERS * 8, 0.0)[k]
                hyper[0] = decay * scale * unit
            constants_of(segment.rule, hyper, lr * segment.lr_factor, made, math.sqrt(norm_p), math.sqrt(norm_u), c)
            for j in range(count):
                if mine <= at + j < end:
                    first = segment.begin + j * BLOCK
                    n = min(BLOCK, segment.end - first)
                    p = pointer(f.parameters + first * size, one)
                    s = pointer(f.slots + first * size, one)
                    g = pointer(f.gradient + first * size, one)
                    if scale * factor != 1.0 or f.clip_value > 0.0 or segment.l1 > 0.0:
                        pull(one, n, p, g, scale * factor, f.clip_value, segment.l1, scratch)
                        g = scratch
                    if take_norms:
                        found = squares_of_step(one, segment.normed, n, p, g, s, f.count, c, u)
                        norms[2 * (at + j)], norms[2 * (at + j) + 1] = found
                    else:
                        move(segment.rule, one, n, p, g, s, f.count, c)
            at += count
    return OK


@inner
def _hold_columns(one, f, stages, t, threads):
    """Columns of weights whose norm exceeds their stage's limit are scaled down to it."""
    for i in range(f.stages):
        s = stage_at(stages, i)
        if s.column_norm <= 0:  # the bits of a double
            continue
        most = np.int64(s.column_norm).view(np.float64)
        w = pointer(f.parameters + s.w, one)
        begin, end = share_of(s.outputs, TILE, t, threads)
        for j in range(begin, end):
            squares = 0.0
            for k in range(s.inputs):
                v = np.float64(w[k * s.outputs + j])
                squares += v * v
            norm = math.sqrt(squares)
            if norm > most:
                factor = type(one)(most / norm)
                for k in range(s.inputs):
                    w[k * s.outputs + j] *= factor


# -- calls -------------------------------------------------------------------------------------------------------------


@inner
def _unit_of(f, base, rows):
    """A power of two that brings the weights of a step near 1, or 1 where any dtype holds them as they are."""
    top = 0.0
    if f.weight != 0:
        weight = pointer(f.weight, 0.0)
        for r in range(base, base + rows):
            top = max(top, weight[row_of(f, r)])
    if top == 0.0 or 2.0**-64 < top < 2.0**64:
        return 1.0
    unit = 1.0
    while top * unit < 1.0 and unit < 2.0**1000:
        unit *= 2.0
    while top * unit >= 2.0 and unit > 2.0**-1000:
        unit /= 2.0
    return unit


@inner
def _totals(f, rows, loss, weight):
    """Sums continued over these rows, in their order."""
    row_loss, row_share = pointer(f.row_loss, 0.0), pointer(f.row_share, 0.0)
    for r in range(rows):
        loss += row_loss[r]
        weight += row_share[r]
    return loss, weight


@merged
def walk(verb, one, frame, stages, segments, t, threads):
    """Steps `first` to `last` of a pass, as thread t; or one half of a single step.

    RUN makes whole steps. GRADIENTS adds the sums over all rows to `gradient`, and to `sums`. UPDATE takes `gradient`,
    times `scale`. OUTPUTS is a forward pass alone; DELTAS takes its gradient `y` and adds those of parameters.
    """
    f = frame_at(frame, ZERO)
    steps, lrs, sums = pointer(f.steps, 0), pointer(f.lrs, 0.0), pointer(f.sums, 0.0)
    stop = pointer(f.shared + 8 * STOP, 0)
    made = steps[0]
    # a look at the clock costs about 25 ns: rare where a step is of that order; a power of two
    look_every = 64 if f.batch * f.count < 20000 else 1
    for s in range(f.first, f.last):
        base = s * f.batch
        rows = min(f.batch, f.rows - base) if verb != UPDATE else 0
        index = s - f.first
        unit = _unit_of(f, base, rows) if verb == RUN else 1.0
        loss, weight = 0.0, f.weight_before
        if verb == GRADIENTS:
            loss = f.loss_before
        if verb == RUN and f.moved != 0 and t == 0:
            copy(f.buffer_count, pointer(f.buffers, one), pointer(f.moved, one))
        for at in range(0, rows, f.piece):
            some = min(f.piece, rows - at)
            prepare_rows(verb, one, f, stages, base + at, some, f.first_row + at, unit, made + index, t, threads)
            if verb == OUTPUTS:
                return
            if verb == GRADIENTS:
                begin, end = share_of(rows, TILE, t, threads)
                per_sample(one, f, stages, begin, end)
            meet(f, threads)
            if f.gradient != 0:
                _add_gradient(one, f, stages, base + at, some, at > 0 or verb != RUN, t, threads)
            loss, weight = _totals(f, some, loss, weight)
            if at + some < rows:
                meet(f, threads)
        if verb == GRADIENTS and t == 0:
            sums[0], sums[1] = loss, weight
        if verb in (GRADIENTS, DELTAS):
            return
        status = OK if loss - loss == 0.0 else BAD_LOSS
        if status == OK:
            meet(f, threads)
            scale = f.scale if verb == UPDATE else (1.0 / weight if weight > 0.0 else 0.0)
            status = _apply(one, f, segments, scale, unit, lrs[index], made + index + 1, t, threads)
            if status == OK and f.held != 0:
                meet(f, threads)
                _hold_columns(one, f, stages, t, threads)
        if t == 0:
            f.status = status
            stop[0] = status
            if status == OK:
                sums[0] += loss / unit
                sums[1] += weight / unit
                sums[2] += f.norm
                f.next = s + 1
                steps[0] = made + index + 1
                if f.moved != 0:
                    copy(f.buffer_count, pointer(f.moved, one), pointer(f.buffers, one))
                if (index + 1) & (look_every - 1) == 0 and now(pointer(f.shared + 8 * SPARE, 0)) >= f.deadline:
                    stop[0] = 1
            else:
                f.value = (loss / weight if weight > 0.0 else loss) if status == BAD_LOSS else np.inf
        meet(f, threads)
        if stop[0] != 0:
            break
