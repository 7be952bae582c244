"""Norms: of rows over their units, of columns over the rows of a group. Moments are taken in two passes, as in C."""

from __future__ import annotations

import numba
import numpy as np

from ..scalars.arithmetic import multiply_add, wide
from ..scalars.norms import factor_of, moved, normal, of_mean, shifted
from .machine import OPTIONS, ZERO, apart, inner, merged, plus, pointer, size_of
from .passes import square_sum
from .tables import TILE, input_of, meet, share_of, stage_at

__all__ = ["STATISTICS", "norm_backward", "norm_forward", "norm_gradient", "norm_squares"]

# Of each column of a group: what its forward pass keeps, and the two sums of its backward pass.
STATISTICS = 5
_MEAN, _VAR, _FACTOR, _ALONG, _SUM = range(STATISTICS)

# Sums of a row, in an order that its width decides: without leave to reorder, an addition would wait for the one
# before. Each is one loop of one function that is not copied into others and stores nothing, so there is one order.
_sums = numba.njit(fastmath={"reassoc"}, **OPTIONS)


# -- rows --------------------------------------------------------------------------------------------------------------


@_sums
def _total(one, n, x):
    apart()
    wide()
    total = type(one)(0)
    for i in range(n):
        total += x[i]
    return total


@_sums
def _squares(one, n, x, mean):
    apart()
    wide()
    total = type(one)(0)
    for i in range(n):
        d = x[i] - mean
        total += d * d
    return total


@_sums
def _slopes(one, n, x, mean, factor, gamma, dy):
    """Sums of dy gamma, and of that times what gamma was multiplied with."""
    apart()
    wide()
    total, along = type(one)(0), type(one)(0)
    for i in range(n):
        d = dy[i] * gamma[i]
        total += d
        along += d * normal(x[i], mean, factor)
    return total, along


@_sums
def _normal_squares(n, x, mean, factor, dy):
    apart()
    total = 0.0
    for i in range(n):
        d = np.float64(dy[i] * normal(x[i], mean, factor))
        total += d * d
    return total


@inner
def _normal_row(n, x, mean, factor, gamma, beta, y):
    apart()
    wide()
    for i in range(n):
        y[i] = shifted(normal(x[i], mean, factor), gamma[i], beta[i])


@inner
def _slope_row(n, x, mean, factor, gamma, total, along, dy, dx):
    apart()
    wide()
    for i in range(n):
        dx[i] = factor * of_mean(dy[i] * gamma[i], normal(x[i], mean, factor), total, along)


@inner
def _add_row(n, x, mean, factor, dy, along, total):
    apart()
    wide()
    for i in range(n):
        along[i] = multiply_add(dy[i], normal(x[i], mean, factor), along[i])
        total[i] += dy[i]


@inner
def _norm_rows(one, rows, width, x, ld, eps, gamma, beta, stats, y, y_ld):
    apart()
    real, count = type(one), type(one)(width)
    for r in range(rows):
        row = plus(x, r * ld)
        mean = _total(one, width, row) / count
        factor = factor_of(_squares(one, width, row, mean) / count, real(eps))
        stats[2 * r], stats[2 * r + 1] = mean, factor
        _normal_row(width, row, mean, factor, gamma, beta, plus(y, r * y_ld))


@inner
def _norm_rows_backward(one, rows, width, x, ld, stats, gamma, dy, dx, d_ld):
    apart()
    count = type(one)(width)
    for r in range(rows):
        row, own, mean, factor = plus(x, r * ld), plus(dy, r * d_ld), stats[2 * r], stats[2 * r + 1]
        total, along = _slopes(one, width, row, mean, factor, gamma, own)
        _slope_row(width, row, mean, factor, gamma, total / count, along / count, own, plus(dx, r * d_ld))


# -- columns -----------------------------------------------------------------------------------------------------------


@inner
def _moments(one, rows, n, x, ld, eps, mean, var, factor):
    """Every column is one chain over the rows."""
    apart()
    wide()
    real = type(one)
    share = real(1) / real(rows)
    for i in range(n):
        mean[i] = var[i] = real(0)
    for r in range(rows):
        for i in range(n):
            mean[i] += x[r * ld + i]
    for i in range(n):
        mean[i] *= share
    for r in range(rows):
        for i in range(n):
            d = x[r * ld + i] - mean[i]
            var[i] = multiply_add(d, d, var[i])
    for i in range(n):
        var[i] *= share
    for i in range(n):
        factor[i] = factor_of(var[i], real(eps))


@inner
def _normal_columns(n, x, mean, factor, gamma, beta, y):
    apart()
    wide()
    for i in range(n):
        y[i] = shifted(normal(x[i], mean[i], factor[i]), gamma[i], beta[i])


@inner
def _add_columns(rows, n, x, ld, mean, factor, dy, d_ld, along, total):
    apart()
    wide()
    for r in range(rows):
        for i in range(n):
            d = dy[r * d_ld + i]
            along[i] = multiply_add(d, normal(x[r * ld + i], mean[i], factor[i]), along[i])
            total[i] += d


@inner
def _slope_columns(n, share, x, mean, factor, gamma, along, total, dy, dx):
    apart()
    wide()
    for i in range(n):
        left = of_mean(dy[i], normal(x[i], mean[i], factor[i]), total[i] * share, along[i] * share)
        dx[i] = factor[i] * gamma[i] * left


@inner
def _move(one, n, value, unbiased, momentum, running):
    apart()
    factor = type(one)(unbiased)
    for i in range(n):
        running[i] = moved(running[i], value[i] * factor, momentum)


# -- stages ------------------------------------------------------------------------------------------------------------


@inner
def _norm_input(one, f, stages, i, base, r):
    """Where row r of what the norm of stage i reads is, and the stride of its rows."""
    s = stage_at(stages, i)
    if s.u < 0:
        return input_of(one, f, stages, i, base, r)
    return pointer(f.arena + s.u + r * s.out_ld * size_of(one), one), s.out_ld


@inner
def _statistics(one, f, s, group, which, column):
    return pointer(f.arena + s.stats + ((group * STATISTICS + which) * s.out_ld + column) * size_of(one), one)


@inner
def _group_at(s, rows, at):
    """The group of row `at` of so many rows, where it begins and where it ends."""
    size = s.ghost if s.ghost > 0 else rows
    group = at // size
    return group, group * size, min(rows, (group + 1) * size)


@merged
def _batch_moments(one, f, stages, i, base, rows, t, threads):
    """Of thread t's columns over all rows, group by group; groups of a single row have no variance and move nothing."""
    s, size = stage_at(stages, i), size_of(one)
    begin, end = share_of(s.outputs, TILE, t, threads)
    n, stop = end - begin, 0
    eps, momentum = np.int64(s.eps).view(np.float64), np.int64(s.momentum).view(np.float64)
    while stop < rows and n > 0:
        group, start, stop = _group_at(s, rows, stop)
        x, ld = _norm_input(one, f, stages, i, base, start)
        mean, var = _statistics(one, f, s, group, _MEAN, begin), _statistics(one, f, s, group, _VAR, begin)
        count = stop - start
        _moments(one, count, n, plus(x, begin), ld, eps, mean, var, _statistics(one, f, s, group, _FACTOR, begin))
        if f.moved != 0 and count > 1:
            _move(one, n, mean, 1.0, momentum, pointer(f.moved + s.mean + begin * size, one))
            _move(one, n, var, count / (count - 1), momentum, pointer(f.moved + s.var + begin * size, one))


@inner
def norm_forward(one, f, stages, i, base, rows, begin, end, t, threads):
    """z of these of the batch's rows; statistics over rows are shared out by columns between two meetings."""
    apart()
    s, size = stage_at(stages, i), size_of(one)
    gamma, beta = pointer(f.parameters + s.gamma, one), pointer(f.parameters + s.beta, one)
    if s.mean < 0:
        x, ld = _norm_input(one, f, stages, i, base, begin)
        _norm_rows(one, end - begin, s.outputs, x, ld, np.int64(s.eps).view(np.float64), gamma, beta,
                   pointer(f.arena + s.stats + begin * 2 * size, one),
                   pointer(f.arena + s.z + begin * s.out_ld * size, one), s.out_ld)  # fmt: skip
        return
    meet(f, threads)
    _batch_moments(one, f, stages, i, base, rows, t, threads)
    meet(f, threads)
    for r in range(begin, end):
        group, _, _ = _group_at(s, rows, r)
        x, _ = _norm_input(one, f, stages, i, base, r)
        mean, factor = _statistics(one, f, s, group, _MEAN, ZERO), _statistics(one, f, s, group, _FACTOR, ZERO)
        _normal_columns(s.outputs, x, mean, factor, gamma, beta,
                        pointer(f.arena + s.z + r * s.out_ld * size, one))  # fmt: skip


@inner
def _add_group(one, f, stages, i, base, group, start, stop, first, n, along, total):
    """Adds the sums of dgamma and dbeta of a group's rows [start, stop), of `n` columns."""
    s = stage_at(stages, i)
    x, ld = _norm_input(one, f, stages, i, base, start)
    dy = pointer(f.arena + s.dy + (start * s.out_ld + first) * size_of(one), one)
    _add_columns(stop - start, n, plus(x, first), ld, _statistics(one, f, s, group, _MEAN, first),
                 _statistics(one, f, s, group, _FACTOR, first), dy, s.out_ld, along, total)  # fmt: skip


@inner
def norm_backward(one, f, stages, i, base, rows, begin, end, t, threads):
    """dz from dy of these of the batch's rows."""
    apart()
    s, size = stage_at(stages, i), size_of(one)
    gamma = pointer(f.parameters + s.gamma, one)
    skip = begin * s.out_ld * size
    if s.mean < 0:
        x, ld = _norm_input(one, f, stages, i, base, begin)
        _norm_rows_backward(one, end - begin, s.outputs, x, ld, pointer(f.arena + s.stats + begin * 2 * size, one),
                            gamma, pointer(f.arena + s.dy + skip, one), pointer(f.arena + s.dz + skip, one),
                            s.out_ld)  # fmt: skip
        return
    meet(f, threads)
    first, last = share_of(s.outputs, TILE, t, threads)
    n, stop = last - first, 0
    while stop < rows and n > 0:
        group, start, stop = _group_at(s, rows, stop)
        along, total = _statistics(one, f, s, group, _ALONG, first), _statistics(one, f, s, group, _SUM, first)
        for j in range(n):
            along[j] = total[j] = type(one)(0)
        _add_group(one, f, stages, i, base, group, start, stop, first, n, along, total)
    meet(f, threads)
    for r in range(begin, end):
        group, start, stop = _group_at(s, rows, r)
        x, _ = _norm_input(one, f, stages, i, base, r)
        at = r * s.out_ld * size
        _slope_columns(s.outputs, type(one)(1) / type(one)(stop - start), x, _statistics(one, f, s, group, _MEAN, ZERO),
                       _statistics(one, f, s, group, _FACTOR, ZERO), gamma, _statistics(one, f, s, group, _ALONG, ZERO),
                       _statistics(one, f, s, group, _SUM, ZERO), pointer(f.arena + s.dy + at, one),
                       pointer(f.arena + s.dz + at, one))  # fmt: skip


@inner
def norm_gradient(one, f, stages, i, base, rows, add, t, threads):
    """Gradient of gamma and beta = or, with `add`, += : thread t's columns, each one chain over the rows."""
    apart()
    s, size = stage_at(stages, i), size_of(one)
    first, last = share_of(s.outputs, TILE, t, threads)
    n, stop = last - first, 0
    along = pointer(f.gradient + s.gamma + first * size, one)
    total = pointer(f.gradient + s.beta + first * size, one)
    if not add:
        for j in range(n):
            along[j] = total[j] = type(one)(0)
    if s.mean < 0 and n > 0:
        stats = pointer(f.arena + s.stats, one)
        x, ld = _norm_input(one, f, stages, i, base, ZERO)
        dy = pointer(f.arena + s.dy + first * size, one)
        for r in range(rows):
            _add_row(n, plus(x, r * ld + first), stats[2 * r], stats[2 * r + 1], plus(dy, r * s.out_ld), along, total)
    while s.mean >= 0 and stop < rows and n > 0:
        group, start, stop = _group_at(s, rows, stop)
        _add_group(one, f, stages, i, base, group, start, stop, first, n, along, total)


@inner
def norm_squares(one, f, stages, i, begin, end):
    """Of rows under a LayerNorm, squared gradients of gamma and beta where they are asked for; then rows' factors."""
    apart()
    s, size = stage_at(stages, i), size_of(one)
    for r in range(begin, end):
        dy = pointer(f.arena + s.dy + r * s.out_ld * size, one)
        if f.norm_norms != 0:
            x, _ = _norm_input(one, f, stages, i, ZERO, r)
            stats = pointer(f.arena + s.stats + r * 2 * size, one)
            pointer(f.norm_norms, 0.0)[r] += square_sum(s.outputs, dy) + _normal_squares(
                s.outputs, x, stats[0], stats[1], dy
            )
        if f.scales != 0:
            factor = pointer(f.scales, one)[r]
            for j in range(s.outputs):
                dy[j] *= factor
