"""LayerNorm, and what it has in common with BatchNorm: sums over columns, gradients of gamma and beta.

On the device a norm begins a stage of its own: the dense part before it has handed up what it reads. A line of `LANES`
threads has a row of a LayerNorm. Columns are summed by parts, of up to `TILE_ROWS` rows of a group, which are added in
their order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .. import scalars
from ..scalars import norms as rules
from ..scalars.arithmetic import multiply_add
from .passes import LANES, LOSS_ROWS, rows_from
from .shim import cuda, inner, kernel
from .tiles import TILE_ROWS

__all__ = [
    "ALONG", "FACTOR", "MEAN", "STATISTICS", "SUM", "VAR", "add_gradient", "counts", "normal_rows", "of_lines",
    "part_at", "parts_of", "row_squares", "slope_parts", "slope_rows",
]  # fmt: skip

# Of each column of a group: what its forward pass keeps, and the two sums of its backward pass.
STATISTICS = 5
MEAN, VAR, FACTOR, ALONG, SUM = range(STATISTICS)


def parts_of(ghost_size: int | None, rows: int) -> tuple[int, int]:
    """Groups of so many rows, and the parts of all of them."""
    size = min(ghost_size or rows, rows) or 1
    groups = -(-rows // size)
    return groups, groups * -(-size // TILE_ROWS)


# -- rows --------------------------------------------------------------------------------------------------------------


@inner
def _of_lanes(parts, line):
    """What the lanes of a line have found, added in their order; all threads of the block come here."""
    cuda.syncthreads()
    total = parts[line, 0]
    for k in range(1, LANES):
        total += parts[line, k]
    cuda.syncthreads()
    return total


@cache
def normal_rows(dtype: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: a, and z where it is kept, of a stage that begins with a LayerNorm."""
    real = np.dtype(dtype).type
    value = scalars.ACTIVATIONS[activation][0]
    factor_of, normal, shifted = rules.factor_of, rules.normal, rules.shifted

    def normal_row(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        parts = cuda.shared.array((LOSS_ROWS, LANES), real)
        rows = rows_from(frame, at)
        width, lane, line = s["outputs"], cuda.threadIdx.x, cuda.threadIdx.y
        for row0 in range(cuda.blockIdx.x * LOSS_ROWS, rows, cuda.gridDim.x * LOSS_ROWS):
            r = row0 + line
            end = width if r < rows else 0
            x = s["x"] + r * width
            part = real(0)
            for j in range(lane, end, LANES):
                part += m[x + j]
            parts[line, lane] = part
            mean = _of_lanes(parts, line) / real(width)
            part = real(0)
            for j in range(lane, end, LANES):
                d = m[x + j] - mean
                part += d * d
            parts[line, lane] = part
            factor = factor_of(_of_lanes(parts, line) / real(width), real(s["eps"]))
            if lane == 0 and r < rows:
                m[s["stats"] + 2 * r] = mean
                m[s["stats"] + 2 * r + 1] = factor
            for j in range(lane, end, LANES):
                z = shifted(normal(m[x + j], mean, factor), m[s["gamma"] + j], m[s["beta"] + j])
                if s["z"] >= 0:
                    m[s["z"] + r * width + j] = z
                m[s["a"] + r * width + j] = value(z)

    return kernel(normal_row)


@cache
def slope_rows(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: the gradient of what the LayerNorm of stage i read."""
    real = np.dtype(dtype).type
    normal, of_mean = rules.normal, rules.of_mean

    def slope_row(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        sums = cuda.shared.array((LOSS_ROWS, LANES), real)
        products = cuda.shared.array((LOSS_ROWS, LANES), real)
        rows = rows_from(frame, at)
        width, lane, line = s["outputs"], cuda.threadIdx.x, cuda.threadIdx.y
        to = stages[i - 1]["dy"]
        for row0 in range(cuda.blockIdx.x * LOSS_ROWS, rows, cuda.gridDim.x * LOSS_ROWS):
            r = row0 + line
            there = r < rows
            end, row = width if there else 0, r * width
            mean = m[s["stats"] + 2 * r] if there else real(0)
            factor = m[s["stats"] + 2 * r + 1] if there else real(0)
            total, along = real(0), real(0)
            for j in range(lane, end, LANES):
                d = m[s["dy"] + row + j] * m[s["gamma"] + j]
                total += d
                along = multiply_add(d, normal(m[s["x"] + row + j], mean, factor), along)
            sums[line, lane] = total
            products[line, lane] = along
            total = _of_lanes(sums, line) / real(width)
            along = _of_lanes(products, line) / real(width)
            for j in range(lane, end, LANES):
                d = m[s["dy"] + row + j] * m[s["gamma"] + j]
                left = of_mean(d, normal(m[s["x"] + row + j], mean, factor), total, along)
                m[to + row + j] = factor * left

    return kernel(slope_row)


@cache
def row_squares(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, norms)``: adds each row's squared gradients of the gamma and beta of stage i."""
    normal = rules.normal

    def normal_squares(frame, stages, m, i, norms):
        f, s = frame[0], stages[i]
        width = s["outputs"]
        for r in range(cuda.grid(1), f["total"], cuda.gridsize(1)):
            mean, factor, total = m[s["stats"] + 2 * r], m[s["stats"] + 2 * r + 1], 0.0
            for j in range(width):
                d = m[s["dy"] + r * width + j]
                along = float(d * normal(m[s["x"] + r * width + j], mean, factor))
                total += float(d) * float(d) + along * along
            norms[r] += total

    return kernel(normal_squares)


# -- columns -----------------------------------------------------------------------------------------------------------


@inner
def counts(s, rows):
    """Groups, parts of each, and rows of each but the last."""
    size = rows
    if s["ghost"] > 0:
        size = min(s["ghost"], rows)
    return (rows + size - 1) // size, (size + TILE_ROWS - 1) // TILE_ROWS, size


@inner
def part_at(s, rows, k):
    """The group of part k of these rows, where the part begins and ends; nothing behind the last row of a group."""
    _, each, size = counts(s, rows)
    group = k // each
    begin = group * size + k % each * TILE_ROWS
    return group, begin, min(begin + TILE_ROWS, min((group + 1) * size, rows))


@inner
def of_lines(parts, lane):
    """What the lines of a column have found, added in their order; all threads of the block come here."""
    cuda.syncthreads()
    total = parts[0, lane]
    for k in range(1, LOSS_ROWS):
        total += parts[k, lane]
    cuda.syncthreads()
    return total


@cache
def slope_parts(dtype: str, over_rows: bool) -> Any:
    """``kernel(frame, stages, m, i, at)``: of each part and column the sums that make the gradients of gamma, beta."""
    real = np.dtype(dtype).type
    normal = rules.normal

    def slopes_of_parts(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        sums = cuda.shared.array((LOSS_ROWS, LANES), real)
        products = cuda.shared.array((LOSS_ROWS, LANES), real)
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width, lane, line = s["outputs"], cuda.threadIdx.x, cuda.threadIdx.y
        groups, each, _ = counts(s, rows)
        for k in range(cuda.blockIdx.y, groups * each, cuda.gridDim.y):
            group, begin, end = part_at(s, rows, k)
            for column0 in range(cuda.blockIdx.x * LANES, width, cuda.gridDim.x * LANES):
                j = column0 + lane
                last = end if j < width else begin
                total, along = real(0), real(0)
                for r in range(begin + line, last, LOSS_ROWS):
                    if over_rows:
                        of = s["stats"] + group * STATISTICS * width + j
                        mean, factor = m[of + MEAN * width], m[of + FACTOR * width]
                    else:
                        mean, factor = m[s["stats"] + 2 * r], m[s["stats"] + 2 * r + 1]
                    d = m[s["dy"] + r * width + j]
                    total += d
                    along = multiply_add(d, normal(m[s["x"] + r * width + j], mean, factor), along)
                sums[line, lane] = total
                products[line, lane] = along
                total = of_lines(sums, lane)
                along = of_lines(products, lane)
                if line == 0 and j < width:
                    m[s["parts"] + 2 * k * width + j] = along
                    m[s["parts"] + (2 * k + 1) * width + j] = total

    return kernel(slopes_of_parts)


@cache
def add_gradient(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, at, add)``: gradients of gamma and beta are the parts' sums, or grow by them."""
    real = np.dtype(dtype).type

    def added_norm(frame, stages, m, i, at, add):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        width = s["outputs"]
        groups, each, _ = counts(s, rows)
        for e in range(cuda.grid(1), 2 * width, cuda.gridsize(1)):
            which, j = e // width, e % width
            to = f["gradient"] + (s["gamma"] if which == 0 else s["beta"]) + j
            v = m[to] if add else real(0)
            for k in range(groups * each):
                v += m[s["parts"] + (2 * k + which) * width + j]
            m[to] = v

    return kernel(added_norm)
