"""The rows of a step, as threads share them: gather, forward, losses, deltas, and what is asked of each row."""

from __future__ import annotations

from .machine import ONE, ZERO, inner, merged, plus, pointer, size_of
from .norms import norm_backward, norm_forward, norm_squares
from .passes import (
    LOSS_INDEX,
    activate,
    copy,
    cross_entropy,
    dropout,
    element_loss,
    scale_by_slope,
    square_sum,
    sum_of,
)
from .tables import DELTAS, OUTPUTS, TILE, input_of, share_of, stage_at
from .tiles import affine, product

__all__ = ["per_sample", "prepare_rows", "row_of"]

_CROSS_ENTROPY = LOSS_INDEX["cross_entropy"]


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
def row_of(f, row):
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
            weight = unit * pointer(f.weight, 0.0)[row_of(f, base + r)]
        row_weight[r] = row_share[r] = weight
    if f.loss == _CROSS_ENTROPY:
        labels = pointer(f.labels, 0)
        for r in range(begin, end):
            label = -1
            if f.labels != 0:
                label = labels[row_of(f, base + r)]
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
def prepare_rows(verb, one, f, stages, base, rows, first_row, unit, made, t, threads):
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
def per_sample(one, f, stages, begin, end):
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
