"""Passes over rows: gather, activations without a product, dropout, losses, deltas, sums of squares.

Threads of a grid share the elements out; a loop takes what is left over. `at` is the first row of a piece in its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .. import scalars
from .shim import SIMULATED, cuda, inner, kernel

__all__ = [
    "LANES",
    "LOSS_ROWS",
    "activate",
    "deltas",
    "drop",
    "gather",
    "gather_of",
    "keep",
    "losses",
    "losses_of",
    "row_norms",
    "rows_from",
    "scale_rows",
]

# Threads that share a row of the loss, and rows of a block of it.
LANES = 4 if SIMULATED else 32
LOSS_ROWS = 2 if SIMULATED else 8
LABELS, VALUES, NONE = "labels", "values", "none"


@inner
def rows_from(frame, at):
    """Rows of the piece that begins at row `at` of the batch, the last of an epoch being what is left of the data."""
    f = frame[0]
    return min(f["piece"], min(f["batch"], f["total"] - f["base"]) - at)


@cache
def gather(dtype: str, target: str, ordered: bool, weighted: bool) -> Any:
    """``kernel(frame, stages, m, d, x, y, weight, order, units, at)``: the rows of a piece, in order, as reals.

    `y` (n,) holds labels, or the values (n * O,) of rows after each other. Row weights come times the step's unit.
    """
    gathered = gather_of(dtype, target, ordered, weighted)

    def gather_rows(frame, stages, m, d, x, y, weight, order, units, at):
        f = frame[0]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        gathered(frame, stages, m, d, x, y, weight, order, units, at, 0, rows, cuda.grid(1), cuda.gridsize(1))

    return kernel(gather_rows)


@cache
def gather_of(dtype: str, target: str, ordered: bool, weighted: bool) -> Any:
    """The same of rows `first` to `last` of the piece, for thread `t` of `threads`."""
    real = np.dtype(dtype).type
    labels, values = target == LABELS, target == VALUES

    @inner
    def gathered(frame, stages, m, d, x, y, weight, order, units, at, first, last, t, threads):
        f = frame[0]
        width, outputs, to = stages[0]["inputs"], stages[f["stages"] - 1]["outputs"], stages[0]["x"]
        for e in range(first * width + t, last * width, threads):
            r, j = e // width, e % width
            row = f["base"] + at + r
            if ordered:
                row = order[row]
            m[to + e] = real(x[row, j])
        if values:
            for e in range(first * outputs + t, last * outputs, threads):
                r, j = e // outputs, e % outputs
                row = f["base"] + at + r
                if ordered:
                    row = order[row]
                m[f["y"] + e] = y[row * outputs + j]
        for r in range(first + t, last, threads):
            row = f["base"] + at + r
            if ordered:
                row = order[row]
            if labels:
                d[f["label"] + r] = y[row]
            if weighted:
                d[f["row_weight"] + r] = units[f["index"]] * weight[row]
            else:
                d[f["row_weight"] + r] = 1.0

    return gathered


@cache
def keep(dtype: str) -> Any:
    """``kernel(frame, stages, m, outputs, at)``: outputs of a piece, into those of a pass (n * O,)."""

    def kept(frame, stages, m, outputs, at):
        f = frame[0]
        s = stages[f["stages"] - 1]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        begin, width = (f["shift"] + f["base"] + at) * s["outputs"], s["outputs"]
        for e in range(cuda.grid(1), rows * width, cuda.gridsize(1)):
            outputs[begin + e] = m[s["out"] + e]

    return kernel(kept)


@cache
def activate(dtype: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: a = activation(x) of stage i, which has no weights."""
    value = scalars.ACTIVATIONS[activation][0]

    def values(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        x, a = s["x"], s["a"]
        for e in range(cuda.grid(1), rows * s["outputs"], cuda.gridsize(1)):
            m[a + e] = value(m[x + e])

    return kernel(values)


@cache
def drop(dtype: str, source: str, to: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: units of stage i dropped on the way from `source` to `to`, fields of it.

    Kept ones come times 256 / threshold, and times the slope of the activation where it is one of what is saved. A
    thread has the 16 units that one block of Philox decides about.
    """
    real = np.dtype(dtype).type
    zero = real(0)
    slope = scalars.ACTIVATIONS[activation][1]
    u64 = np.uint64

    def dropped(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        width, threshold, saved = s["outputs"], s["threshold"], s["saved"]
        blocks = (width + 15) // 16
        factor = real(256) / real(threshold)
        begin, end = s[source], s[to]
        for e in range(cuda.grid(1), rows * blocks, cuda.gridsize(1)):
            r, block = e // blocks, e % blocks
            row = f["first_row"] + at + r
            w0, w1, w2, w3 = scalars.philox(
                u64(block), u64(row), u64(s["layer"] | 1 << 16), u64(f["made"] & 0xFFFFFFFF), u64(f["seed"])
            )
            for j in range(min(16, width - 16 * block)):
                word = w0 if j < 4 else (w1 if j < 8 else (w2 if j < 12 else w3))
                byte = (word >> u64(8 * (j & 3))) & u64(255)
                place = r * width + 16 * block + j
                v = m[begin + place] * factor if byte < u64(threshold) else zero
                if saved >= 0:
                    v *= slope(m[saved + place])
                m[end + place] = v

    return kernel(dropped)


@cache
def deltas(dtype: str, activation: str) -> Any:
    """``kernel(frame, stages, m, i, at)``: dz of stage i from the gradient of its outputs, in place."""
    slope = scalars.ACTIVATIONS[activation][1]

    def slopes(frame, stages, m, i, at):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        dy, saved = s["dy"], s["saved"]
        for e in range(cuda.grid(1), rows * s["outputs"], cuda.gridsize(1)):
            m[dy + e] *= slope(m[saved + e])

    return kernel(slopes)


@cache
def losses(dtype: str, name: str, labelled: bool) -> Any:
    """``kernel(frame, stages, m, d, at)``: loss and share of each row, and the gradient of the losses' sum.

    A line of `LANES` threads has a row; their parts are added in the order of the lanes.
    """
    of_rows = losses_of(dtype, name, labelled)

    def row_losses(frame, stages, m, d, at):
        f = frame[0]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        begin, step = cuda.blockIdx.x * LOSS_ROWS, cuda.gridDim.x * LOSS_ROWS
        of_rows(frame, stages, m, d, begin, rows, step, cuda.threadIdx.x, cuda.threadIdx.y)

    return kernel(row_losses)


@cache
def losses_of(dtype: str, name: str, labelled: bool, lines: int = LOSS_ROWS) -> Any:
    """``inner(frame, stages, m, d, first, last, step, lane, line)``: the same of some rows, `lines` at a time."""
    return _cross_entropy(dtype, labelled, lines) if name in scalars.ROW_LOSSES else _elements(dtype, name, lines)


def _elements(dtype: str, name: str, lines: int) -> Callable:
    real = np.dtype(dtype).type
    element = scalars.ELEMENT_LOSSES[name][1]

    @inner
    def element_losses(frame, stages, m, d, first, rows, step, lane, line):
        f, s = frame[0], stages[frame[0]["stages"] - 1]
        parts = cuda.shared.array((lines, LANES), np.float64)
        width = s["outputs"]
        g, h = real(f["g"]), real(f["h"])
        for row0 in range(first, rows, step):
            r = row0 + line
            value, weight = 0.0, 0.0
            if r < rows:
                weight = d[f["row_weight"] + r]
                factor = real(weight / f["of_slope"])
                for j in range(lane, width, LANES):
                    at_j = r * width + j
                    v, slope = element(m[s["out"] + at_j], m[f["y"] + at_j], m[f["weights"] + j], g, h)
                    value += v
                    m[s["dy"] + at_j] = slope * factor
            parts[line, lane] = value
            cuda.syncthreads()
            if lane == 0 and r < rows:
                total = 0.0
                for k in range(LANES):
                    total += parts[line, k]
                d[f["row_loss"] + r] = weight * (total / f["of_value"])
                d[f["row_share"] + r] = weight
            cuda.syncthreads()

    return element_losses


def _cross_entropy(dtype: str, labelled: bool, lines: int) -> Callable:
    real = np.dtype(dtype).type
    exp = scalars.exp

    @inner
    def cross_entropy(frame, stages, m, d, first, rows, step, lane, line):
        f, s = frame[0], stages[frame[0]["stages"] - 1]
        tops = cuda.shared.array((lines, LANES), real)
        one_part = cuda.shared.array((lines, LANES), np.float64)
        other_part = cuda.shared.array((lines, LANES), np.float64)
        width, smoothing = s["outputs"], f["parameter"]
        spread = smoothing / width
        for row0 in range(first, rows, step):
            r = row0 + line
            there = r < rows
            a = s["out"] + r * width
            top = m[s["out"]]
            if there:
                top = m[a + (lane if lane < width else 0)]
                for j in range(lane + LANES, width, LANES):
                    top = m[a + j] if m[a + j] > top else top
            tops[line, lane] = top
            cuda.syncthreads()
            for k in range(LANES):
                top = tops[line, k] if tops[line, k] > top else top
            part = 0.0
            if there:
                for j in range(lane, width, LANES):
                    v = exp(m[a + j] - top)
                    m[s["dy"] + r * width + j] = v
                    part += v
            one_part[line, lane] = part
            cuda.syncthreads()
            total = 0.0
            for k in range(LANES):
                total += one_part[line, k]
            log_total = math.log(total) if total > 0.0 else total - total
            loss, target, weight, label = 0.0, 0.0, 0.0, -1
            if there:
                weight = d[f["row_weight"] + r]
                if labelled:
                    label = int(d[f["label"] + r])
                for j in range(lane, width, LANES):
                    hot = (1.0 if j == label else 0.0) if labelled else float(m[f["y"] + r * width + j])
                    t = float(m[f["weights"] + j]) * ((1.0 - smoothing) * hot + spread)
                    target += t
                    if t != 0.0:  # a class with no target adds nothing, even at a logit of -inf
                        loss += t * (log_total - float(m[a + j] - top))
            cuda.syncthreads()
            one_part[line, lane] = loss
            other_part[line, lane] = target
            cuda.syncthreads()
            loss, target = 0.0, 0.0
            for k in range(LANES):
                loss += one_part[line, k]
                target += other_part[line, k]
            if there:
                share = target / total
                for j in range(lane, width, LANES):
                    hot = (1.0 if j == label else 0.0) if labelled else float(m[f["y"] + r * width + j])
                    t = float(m[f["weights"] + j]) * ((1.0 - smoothing) * hot + spread)
                    to = s["dy"] + r * width + j
                    m[to] = real(weight * (share * float(m[to]) - t))
                if lane == 0:
                    d[f["row_loss"] + r] = weight * loss
                    d[f["row_share"] + r] = weight * float(m[f["weights"] + label]) if labelled else weight
            cuda.syncthreads()

    return cross_entropy


@cache
def row_norms(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, layer, inputs, deltas)``: squared norms of what stage i read, and of its dz."""

    def squares(frame, stages, m, i, layer, inputs, deltas):
        f, s = frame[0], stages[i]
        for r in range(cuda.grid(1), f["total"], cuda.gridsize(1)):
            x, dz = 0.0, 0.0
            for j in range(s["inputs"]):
                v = float(m[s["x"] + r * s["inputs"] + j])
                x += v * v
            for j in range(s["outputs"]):
                v = float(m[s["dy"] + r * s["outputs"] + j])
                dz += v * v
            inputs[layer, r] = x
            deltas[layer, r] = dz

    return kernel(squares)


@cache
def scale_rows(dtype: str) -> Any:
    """``kernel(frame, stages, m, i, scale)``: each row of stage i's dz times its factor."""

    def scaled(frame, stages, m, i, scale):
        f, s = frame[0], stages[i]
        width = s["outputs"]
        for e in range(cuda.grid(1), f["total"] * width, cuda.gridsize(1)):
            m[s["dy"] + e] *= scale[e // width]

    return kernel(scaled)
