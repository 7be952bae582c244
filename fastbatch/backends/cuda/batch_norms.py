"""BatchNorm: moments of groups of rows from those of their parts, normal rows, deltas, running statistics."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .. import scalars
from ..scalars import norms as rules
from .norms import ALONG, FACTOR, MEAN, STATISTICS, SUM, VAR, counts, of_lines, part_at
from .passes import LANES, LOSS_ROWS, rows_from
from .shim import cuda, kernel

__all__ = [
    "combine_moments", "combine_slopes", "keep_running", "moments", "normal_columns", "slope_columns", "still_columns",
]  # fmt: skip


@cache
def moments(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: of each part and column the sum, and the squares around the part's mean."""
    real = np.dtype(dtype).type

    def moments_of_parts(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        found = cuda.shared.array((LOSS_ROWS, LANES), real)
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width, lane, line = s["outputs"], cuda.threadIdx.x, cuda.threadIdx.y
        groups, each, _ = counts(s, rows)
        for k in range(cuda.blockIdx.y, groups * each, cuda.gridDim.y):
            _, begin, end = part_at(s, rows, k)
            for column0 in range(cuda.blockIdx.x * LANES, width, cuda.gridDim.x * LANES):
                j = column0 + lane
                last = end if j < width else begin
                part = real(0)
                for r in range(begin + line, last, LOSS_ROWS):
                    part += m[s["x"] + r * width + j]
                found[line, lane] = part
                total = of_lines(found, lane)
                mean = total / real(max(end - begin, 1))
                part = real(0)
                for r in range(begin + line, last, LOSS_ROWS):
                    d = m[s["x"] + r * width + j] - mean
                    part += d * d
                found[line, lane] = part
                squares = of_lines(found, lane)
                if line == 0 and j < width:
                    m[s["parts"] + 2 * k * width + j] = total
                    m[s["parts"] + (2 * k + 1) * width + j] = squares

    return kernel(moments_of_parts)


@cache
def combine_moments(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: mean, variance and factor of the columns of each group, from its parts."""
    real = np.dtype(dtype).type
    factor_of = rules.factor_of

    def combined_moments(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width = s["outputs"]
        groups, each, size = counts(s, rows)
        for e in range(cuda.grid(1), groups * width, cuda.gridsize(1)):
            group, j = e // width, e % width
            count = real(min(rows, (group + 1) * size) - group * size)
            mean, var = real(0), real(0)
            for k in range(group * each, (group + 1) * each):
                mean += m[s["parts"] + 2 * k * width + j]
            mean /= count
            for k in range(group * each, (group + 1) * each):
                _, begin, end = part_at(s, rows, k)
                if begin < end:
                    n = real(end - begin)
                    d = m[s["parts"] + 2 * k * width + j] / n - mean
                    var += m[s["parts"] + (2 * k + 1) * width + j] + n * d * d
            var /= count
            to = s["stats"] + group * STATISTICS * width + j
            m[to + MEAN * width] = mean
            m[to + VAR * width] = var
            m[to + FACTOR * width] = factor_of(var, real(s["eps"]))

    return kernel(combined_moments)


@cache
def normal_columns(dtype: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: a, and z where it is kept, of a stage that begins with a BatchNorm.

    The first threads move the running statistics of a column, group after group; groups of one row have no variance.
    """
    real = np.dtype(dtype).type
    value = scalars.ACTIVATIONS[activation][0]
    normal, shifted, moved = rules.normal, rules.shifted, rules.moved

    def normal_column(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width = s["outputs"]
        groups, _, size = counts(s, rows)
        for e in range(cuda.grid(1), rows * width, cuda.gridsize(1)):
            r, j = e // width, e % width
            of = s["stats"] + r // size * STATISTICS * width + j
            z = shifted(
                normal(m[s["x"] + e], m[of + MEAN * width], m[of + FACTOR * width]), m[s["gamma"] + j], m[s["beta"] + j]
            )
            if s["z"] >= 0:
                m[s["z"] + e] = z
            m[s["a"] + e] = value(z)
        if f["moves"] != 0:
            source = f["buffers"] if at == 0 else f["running"]
            for j in range(cuda.grid(1), width, cuda.gridsize(1)):
                mean, var = m[source + s["mean"] + j], m[source + s["var"] + j]
                for group in range(groups):
                    of = s["stats"] + group * STATISTICS * width + j
                    count = min(rows, (group + 1) * size) - group * size
                    if count > 1:
                        unbiased = real(count / (count - 1))
                        mean = moved(mean, m[of + MEAN * width], s["momentum"])
                        var = moved(var, m[of + VAR * width] * unbiased, s["momentum"])
                m[f["running"] + s["mean"] + j] = mean
                m[f["running"] + s["var"] + j] = var

    return kernel(normal_column)


@cache
def still_columns(dtype: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: the same from the running statistics."""
    real = np.dtype(dtype).type
    value = scalars.ACTIVATIONS[activation][0]
    factor_of, normal, shifted = rules.factor_of, rules.normal, rules.shifted

    def still_column(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        rows = rows_from(frame, at)
        width, eps = s["outputs"], real(s["eps"])
        for e in range(cuda.grid(1), rows * width, cuda.gridsize(1)):
            j = e % width
            mean, var = m[f["buffers"] + s["mean"] + j], m[f["buffers"] + s["var"] + j]
            z = shifted(normal(m[s["x"] + e], mean, factor_of(var, eps)), m[s["gamma"] + j], m[s["beta"] + j])
            m[s["a"] + e] = value(z)

    return kernel(still_column)


@cache
def combine_slopes(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: these sums of the columns of each group, from its parts."""
    real = np.dtype(dtype).type

    def combined_slopes(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width = s["outputs"]
        groups, each, _ = counts(s, rows)
        for e in range(cuda.grid(1), groups * width, cuda.gridsize(1)):
            group, j = e // width, e % width
            along, total = real(0), real(0)
            for k in range(group * each, (group + 1) * each):
                along += m[s["parts"] + 2 * k * width + j]
                total += m[s["parts"] + (2 * k + 1) * width + j]
            to = s["stats"] + group * STATISTICS * width + j
            m[to + ALONG * width] = along
            m[to + SUM * width] = total

    return kernel(combined_slopes)


@cache
def slope_columns(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: the gradient of what the BatchNorm of stage i read."""
    real = np.dtype(dtype).type
    normal, of_mean = rules.normal, rules.of_mean

    def slope_column(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width, to = s["outputs"], stages[i - 1]["dy"]
        _, _, size = counts(s, rows)
        for e in range(cuda.grid(1), rows * width, cuda.gridsize(1)):
            r, j = e // width, e % width
            group = r // size
            of = s["stats"] + group * STATISTICS * width + j
            share = real(1) / real(min(rows, (group + 1) * size) - group * size)
            factor = m[of + FACTOR * width]
            left = of_mean(
                m[s["dy"] + e],
                normal(m[s["x"] + e], m[of + MEAN * width], factor),
                m[of + SUM * width] * share,
                m[of + ALONG * width] * share,
            )
            m[to + e] = factor * m[s["gamma"] + j] * left

    return kernel(slope_column)


@cache
def keep_running(dtype: str) -> Any:
    """``kernel(frame, m)``: the running statistics of the step that was made are those of the network."""

    def kept_running(frame, m):
        f = frame[0]
        if f["status"] != 0:
            return
        for e in range(cuda.grid(1), f["buffer_count"], cuda.gridsize(1)):
            m[f["buffers"] + e] = m[f["running"] + e]

    return kernel(kept_running)
