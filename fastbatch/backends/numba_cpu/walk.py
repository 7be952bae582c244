"""A step, as threads walk it: rows (gather, forward, loss, deltas), then parameters (gradient, look, update).

Threads share rows in the first part and parameters in the second, and meet in between. Every number that is summed is
summed in an order that threads do not decide. Whether a step may update is known before anything is written.
"""

from __future__ import annotations

import math

import numpy as np

from ..scalars import CONSTANTS, HYPERS
from .machine import ONE, ZERO, inner, merged, now, plus, pointer, size_of
from .norms import norm_backward, norm_forward, norm_gradient, norm_squares
from .passes import (
    LOSS_INDEX,
    activate,
    constants_of,
    copy,
    cross_entropy,
    dropout,
    element_loss,
    is_bad,
    move,
    pull,
    scale_by_slope,
    square_sum,
    squares_of_step,
    sum_of,
)
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
)
from .tiles import affine, product, weight_gradient

__all__ = ["walk"]

_CROSS_ENTROPY = LOSS_INDEX["cross_entropy"]


# -- rows --------------------------------------------------------------------------------------------------------------


@inner
def _gather(one, f, stages, base, begin, end):
    """Inputs that an order names, and the targets of rows."""
    size, width = size_of(one), stage_at(stages, 0).inputs
    order = pointer(f.order, 0)
    if f.order != 0 and width == 1:
        x, to = pointer(f.x, one), pointer(f.arena + stage_at(stages, 0).x, one)
        for r in range(begin, end):
            to[r] = x[order[base + r] * f.x_stride]
    elif f.order != 0:
        for r in range(begin, end):
            copy(width, pointer(f.x + order[base + r] * f.x_stride * size, one),
                 pointer(f.arena + stage_at(stages, 0).x + r * stage_at(stages, 0).x_ld * size, one))  # fmt: skip
    last = stage_at(stages, f.stages - 1)
    if f.y != 0 and last.out_ld == 1:
        y, to = pointer(f.y, one), pointer(f.arena + f.y_copy, one)
        for r in range(begin, end):
            row = order[base + r] if f.order != 0 else base + r
            to[r] = y[row * f.y_stride]
    elif f.y != 0:
        for r in range(begin, end):
            row = order[base + r] if f.order != 0 else base + r
            copy(last.outputs, pointer(f.y + row * f.y_stride * size, one),
                 pointer(f.arena + f.y_copy + r * last.out_ld * size, one))  # fmt: skip


@inner
def _forward(one, f, stages, base, rows_of_batch, begin, end, first_row, update, panel, t, threads):
    size = size_of(one)
    zeros, rows = pointer(f.zeros, one), end - begin
    for i in range(f.stages):
        s = stage_at(stages, i)
        skip = begin * s.out_ld * size
        z, a = pointer(f.arena + s.z + skip, one), pointer(f.arena + s.a + skip, one)
        x, ld = input_of(one, f, stages, i, base, begin)
        if s.w >= 0:
            bias = pointer(f.parameters + s.b, one) if s.b >= 0 else zeros
            w = pointer(f.parameters + s.w, one)
            to = z if s.gamma < 0 else pointer(f.arena + s.u + skip, one)
            affine(one, rows, s.outputs, s.inputs, x, ld, w, bias, to, s.out_ld, panel)
        if s.gamma >= 0:
            norm_forward(one, f, stages, i, base, rows_of_batch, begin, end, t, threads)
        if s.w >= 0 or s.gamma >= 0:
            if s.z != s.a:
                copy(rows * s.out_ld, z, a)
        else:
            for r in range(rows):
                copy(s.outputs, plus(x, r * ld), plus(a, r * s.out_ld))
        # padding counts as data, rows become one stretch: it holds numbers that nobody reads
        activate(s.activation, rows * s.out_ld, a)
        if s.threshold < 256:
            dropout(one, rows, s.outputs, a, s.out_ld, pointer(f.arena + s.out + skip, one), f.seed, update, s.layer,
                    first_row + begin, s.threshold)  # fmt: skip
    if f.outputs != 0:
        s = stage_at(stages, f.stages - 1)
        for r in range(begin, end):
            copy(s.outputs, pointer(f.arena + s.out + r * s.out_ld * size, one),
                 pointer(f.outputs + (base + r) * s.outputs * size, one))  # fmt: skip


@inner
def _row_of(f, row):
    return pointer(f.order, 0)[row] if f.order != 0 else row


@inner
def _losses(one, f, stages, base, begin, end, unit):
    """Losses of rows and the gradient of their sum; row weights times `unit`."""
    size = size_of(one)
    s = stage_at(stages, f.stages - 1)
    weights, values = pointer(f.weights, one), pointer(f.values, one)
    row_loss, row_weight, row_share = (pointer(f.row_loss, 0.0), pointer(f.row_weight, 0.0), pointer(f.row_share, 0.0))
    for r in range(begin, end):
        weight = 1.0
        if f.weight != 0:
            weight = unit * pointer(f.weight, 0.0)[_row_of(f, base + r)]
        row_weight[r] = row_share[r] = weight
    if f.loss == _CROSS_ENTROPY:
        labels = pointer(f.labels, 0)
        for r in range(begin, end):
            label = -1
            if f.labels != 0:
                label = labels[_row_of(f, base + r)]
                row_share[r] *= float(weights[label])
            at = r * s.out_ld * size
            row_loss[r] = row_weight[r] * cross_entropy(
                one, s.outputs, pointer(f.arena + s.out + at, one), label, pointer(f.arena + f.y_copy + at, one),
                weights, f.parameter, row_weight[r], pointer(f.arena + s.dy + at, one),
            )  # fmt: skip
        return
    g, h = type(one)(f.g), type(one)(f.h)
    rows, width = end - begin, s.outputs
    if s.out_ld == 1:  # rows of one output are one line
        at = begin * size
        da = pointer(f.arena + s.dy + at, one)
        element_loss(f.loss, rows, pointer(f.arena + s.out + at, one), pointer(f.arena + f.y_copy + at, one), weights,
                     g, h, plus(values, begin), da)  # fmt: skip
        of_value, of_slope = f.of_value, f.of_slope
        for r in range(begin, end):
            row_loss[r] = row_weight[r] * (values[r] / of_value)
        for r in range(rows):
            da[r] *= type(one)(row_weight[begin + r] / of_slope)
        return
    for r in range(begin, end):
        skip = r * s.out_ld
        at = skip * size
        da = pointer(f.arena + s.dy + at, one)
        element_loss(f.loss, width, pointer(f.arena + s.out + at, one), pointer(f.arena + f.y_copy + at, one), weights,
                     g, h, plus(values, skip), da)  # fmt: skip
        row_loss[r] = row_weight[r] * (sum_of(width, plus(values, skip)) / f.of_value)
        factor = type(one)(row_weight[r] / f.of_slope)
        for j in range(width):
            da[j] *= factor


@inner
def _backward(one, f, stages, base, rows_of_batch, begin, end, first_row, update, panel, t, threads):
    """Deltas of all stages that have, or are followed by, something to train."""
    size, rows = size_of(one), end - begin
    for k in range(f.stages - f.lowest):
        i = f.stages - 1 - k
        s = stage_at(stages, i)
        skip = begin * s.out_ld * size
        dy = pointer(f.arena + s.dy + skip, one)
        if s.threshold < 256:
            dropout(one, rows, s.outputs, dy, s.out_ld, dy, f.seed, update, s.layer, first_row + begin, s.threshold)
        if s.saved >= 0:
            scale_by_slope(s.activation, rows * s.out_ld, pointer(f.arena + s.saved + skip, one), dy)
        if s.gamma >= 0 and (s.w >= 0 or i > f.lowest):
            norm_backward(one, f, stages, i, base, rows_of_batch, begin, end, t, threads)
        if i == f.lowest:
            return
        dz = pointer(f.arena + s.dz + skip, one)
        below = stage_at(stages, i - 1)
        dx = pointer(f.arena + below.dy + begin * below.out_ld * size, one)
        if s.w >= 0:
            product(one, rows, s.inputs, s.outputs, dz, s.out_ld, ONE, pointer(f.parameters + s.w, one), ONE, s.outputs,
                    pointer(f.zeros, one), ZERO, dx, below.out_ld, panel)  # fmt: skip
        else:
            copy(rows * s.out_ld, dz, dx)


@merged
def _prepare_rows(verb, one, f, stages, base, rows, first_row, unit, made, t, threads):
    """Of these rows, the first of which is row `first_row` of the step, all but gradients."""
    begin, end = share_of(rows, TILE, t, threads)
    update = made & 0xFFFFFFFF
    panel = pointer(f.panels + t * f.panel_bytes, one)
    if verb == DELTAS:
        _given_deltas(one, f, stages, begin, end)
    else:
        _gather(one, f, stages, base, begin, end)
        _forward(one, f, stages, base, rows, begin, end, first_row, update, panel, t, threads)
        if verb == OUTPUTS:
            return
        _losses(one, f, stages, base, begin, end, unit)
    _backward(one, f, stages, base, rows, begin, end, first_row, update, panel, t, threads)


@inner
def _given_deltas(one, f, stages, begin, end):
    size, s = size_of(one), stage_at(stages, f.stages - 1)
    for r in range(begin, end):
        copy(s.outputs, pointer(f.y + r * f.y_stride * size, one),
             pointer(f.arena + s.dy + r * s.out_ld * size, one))  # fmt: skip


@inner
def _per_sample(one, f, stages, begin, end):
    """Of these rows what is asked for; then each row's factor in the gradient, behind the deltas passed down."""
    size, layer = size_of(one), 0
    inputs, deltas = pointer(f.input_norms, 0.0), pointer(f.delta_norms, 0.0)
    for i in range(f.lowest, f.stages):
        s = stage_at(stages, i)
        if s.gamma >= 0:
            norm_squares(one, f, stages, i, begin, end)
        if s.w < 0:
            continue
        for r in range(begin, end):
            x, _ = input_of(one, f, stages, i, ZERO, r)
            dz = pointer(f.arena + s.dz + r * s.out_ld * size, one)
            if f.input_norms != 0:
                inputs[layer * f.rows + r] = square_sum(s.inputs, x)
            if f.delta_norms != 0:
                deltas[layer * f.rows + r] = square_sum(s.outputs, dz)
            if f.scales != 0:
                factor = pointer(f.scales, one)[r]
                for j in range(s.outputs):
                    dz[j] *= factor
        layer += 1


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
            top = max(top, weight[_row_of(f, r)])
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
            _prepare_rows(verb, one, f, stages, base + at, some, f.first_row + at, unit, made + index, t, threads)
            if verb == OUTPUTS:
                return
            if verb == GRADIENTS:
                begin, end = share_of(rows, TILE, t, threads)
                _per_sample(one, f, stages, begin, end)
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
