"""From the sums over rows to the parameters: totals, a look at the gradient, the decision, the update.

A step that may not update is known before anything is written: its status stays, and the kernels of steps behind it in
the queue do nothing.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from .. import scalars
from ..scalars import CONSTANTS, HYPERS
from .passes import rows_from
from .shim import SIMULATED, cuda, inner, kernel
from .tiles import TILE_ROWS

__all__ = [
    "BAD_GRADIENT", "BAD_LOSS", "BLOCKS", "OK", "THREADS", "add_parts", "decide", "directions", "hold_columns",
    "inspect", "move", "rates", "tally",
]  # fmt: skip

OK, BAD_LOSS, BAD_GRADIENT = 0, 1, 2
# Threads of a block, and blocks that share a segment of the parameters.
THREADS = 2 if SIMULATED else 256
BLOCKS = 2 if SIMULATED else 128


@cache
def tally() -> Any:
    """``kernel(frame, d, at)``, of one block: adds the losses and weights of a piece to those of the step."""

    def totals(frame, d, at):
        f = frame[0]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        stretches = (rows + TILE_ROWS - 1) // TILE_ROWS
        for k in range(cuda.threadIdx.x, stretches, THREADS):
            loss, weight = 0.0, 0.0
            for r in range(k * TILE_ROWS, min(rows, (k + 1) * TILE_ROWS)):
                loss += d[f["row_loss"] + r]
                weight += d[f["row_share"] + r]
            d[f["tally"] + 2 * k] = loss
            d[f["tally"] + 2 * k + 1] = weight
        cuda.syncthreads()
        if cuda.threadIdx.x == 0 and rows > 0:
            loss, weight = f["loss"], f["weight"]
            if at == 0:
                loss, weight = f["loss_before"], f["weight_before"]
            for k in range(stretches):
                loss += d[f["tally"] + 2 * k]
                weight += d[f["tally"] + 2 * k + 1]
            frame[0]["loss"] = loss
            frame[0]["weight"] = weight
            frame[0]["scale"] = 1.0 / weight if weight > 0.0 else 0.0
            if f["judged"] != 0 and not math.isfinite(loss):
                frame[0]["status"] = BAD_LOSS
                frame[0]["value"] = loss / weight if weight > 0.0 else loss

    return kernel(totals)


@cache
def add_parts(dtype: str) -> Any:
    """``kernel(frame, m, begin, end, at, add)``: the gradient of parameters begin .. end from those of stretches."""
    real = np.dtype(dtype).type

    def added(frame, m, begin, end, at, add):
        f = frame[0]
        if f["status"] != 0:
            return
        rows = rows_from(frame, at)
        if rows <= 0:
            return
        parts = (rows + TILE_ROWS - 1) // TILE_ROWS
        for i in range(begin + cuda.grid(1), end, cuda.gridsize(1)):
            v = m[f["gradient"] + i] if add else real(0)
            for k in range(parts):
                v += m[f["partial"] + k * f["count"] + i]
            m[f["gradient"] + i] = v

    return kernel(added)


@cache
def inspect(dtype: str) -> Any:
    """``kernel(frame, segments, m, d)``: is every element finite, and the sum of squares of each block's.

    Block x of those in a row y looks at segment y. Where the objective has a penalty, squares of parameters are summed.
    """
    real = np.dtype(dtype).type

    def inspected(frame, segments, m, d):
        f, segment = frame[0], segments[cuda.blockIdx.y]
        if f["status"] != 0:
            return
        parts = cuda.shared.array(THREADS, np.float64)
        scale = real(f["scale"])
        t, bad, squares, penalty = cuda.threadIdx.x, False, 0.0, 0.0
        for i in range(segment["begin"] + cuda.blockIdx.x * THREADS + t, segment["end"], BLOCKS * THREADS):
            g = m[f["gradient"] + i]
            if not math.isfinite(g * scale):
                bad = True
            if f["max_norm"] > 0.0:
                squares += float(g) * float(g)
            if f["objective"] != 0:
                penalty += float(m[i]) * float(m[i])
        if bad:
            frame[0]["bad"] = 1  # all who write here write the same
        if f["max_norm"] > 0.0:
            parts[t] = squares
            cuda.syncthreads()
            if t == 0:
                squares = 0.0
                for k in range(THREADS):
                    squares += parts[k]
                d[f["squares"] + cuda.blockIdx.y * BLOCKS + cuda.blockIdx.x] = squares
            cuda.syncthreads()
        if f["objective"] != 0:
            parts[t] = penalty
            cuda.syncthreads()
            if t == 0:
                penalty = 0.0
                for k in range(THREADS):
                    penalty += parts[k]
                d[f["penalties"] + cuda.blockIdx.y * BLOCKS + cuda.blockIdx.x] = penalty

    return kernel(inspected)


@cache
def decide(rule: str) -> Any:
    """``kernel(frame, segments, d, lrs, units)``, one thread: may it update, with which constants; the next step."""
    prepare = scalars.OPTIMIZERS[rule].prepare

    def decided(frame, segments, d, lrs, units):
        f = frame[0]
        if f["status"] != 0:
            return
        norm, factor, bad = 0.0, 1.0, f["bad"] != 0
        if f["max_norm"] > 0.0 and not bad:
            for k in range(f["segments"] * BLOCKS):
                norm += d[f["squares"] + k]
            norm = math.sqrt(norm) * f["scale"]
            bad = not math.isfinite(norm)
            factor = min(1.0, f["max_norm"] / (norm + 1e-6))  # torch's constant
        if bad:
            frame[0]["status"] = BAD_GRADIENT
            frame[0]["value"] = math.inf
            return
        index = f["index"]
        lr, unit = lrs[index], units[index]
        hyper = cuda.local.array(HYPERS, np.float64)
        constants = cuda.local.array(CONSTANTS, np.float64)
        for k in range(f["segments"]):
            segment = segments[k]
            for j in range(HYPERS):
                hyper[j] = d[f["hyper"] + k * HYPERS + j]
            if segment["by_weight"] != 0.0:
                hyper[0] *= f["scale"] * unit
            prepare(hyper, lr * segment["lr_factor"], f["made"] + 1, 0.0, 0.0, constants)
            for j in range(CONSTANTS):
                d[f["constants"] + k * CONSTANTS + j] = constants[j]
        frame[0]["rate"], frame[0]["factor"] = lr, factor * f["scale"]
        loss, weight = f["loss"] / unit, f["weight"] / unit
        if f["objective"] != 0:  # scikit-learn's mean over an epoch: a step counts by its rows
            rows = float(min(f["batch"], f["total"] - f["base"]))
            for k in range(f["segments"]):
                penalty = 0.0
                for j in range(k * BLOCKS, (k + 1) * BLOCKS):
                    penalty += d[f["penalties"] + j]
                loss += segments[k]["penalty"] * penalty
            loss = rows * (loss / weight) if weight > 0.0 else 0.0
            weight = rows if weight > 0.0 else 0.0
        frame[0]["sum_loss"] = f["sum_loss"] + loss
        frame[0]["sum_weight"] = f["sum_weight"] + weight
        frame[0]["sum_norm"] = f["sum_norm"] + norm
        frame[0]["made"] = f["made"] + 1
        frame[0]["index"] = index + 1
        frame[0]["base"] = f["base"] + f["batch"]

    return kernel(decided)


def _pulled(dtype: str) -> Any:
    """The gradient of parameter i as an update takes it: scaled, held, with the penalty that enters it."""
    real = np.dtype(dtype).type
    sign = scalars.sign

    @inner
    def pulled(f, segment, m, p, i):
        g = m[f["gradient"] + i] * real(f["factor"])
        high = real(f["clip_value"])
        if high > real(0):
            g = high if g > high else (-high if g < -high else g)
        l1 = real(segment["l1"])
        if l1 > real(0):
            g += l1 * sign(p)
        return g

    return pulled


@inner
def _constants(real, f, d, k):
    c = f["constants"] + k * CONSTANTS
    return (
        real(d[c]), real(d[c + 1]), real(d[c + 2]), real(d[c + 3]), real(d[c + 4]), real(d[c + 5]), real(d[c + 6]),
        real(d[c + 7]), real(d[c + 8]),
    )  # fmt: skip


@cache
def directions(dtype: str, rule: str) -> Any:
    """``kernel(frame, segments, m, d)``: sums of squares of the parameters and of the rule's direction, by blocks."""
    real, pulled = np.dtype(dtype).type, _pulled(dtype)
    row = scalars.OPTIMIZERS[rule]
    slots, direction = row.slots, row.direction or row.move  # only rules that have one come here

    def directed(frame, segments, m, d):
        f, segment = frame[0], segments[cuda.blockIdx.y]
        if f["status"] != 0:
            return
        of_p = cuda.shared.array(THREADS, np.float64)
        of_u = cuda.shared.array(THREADS, np.float64)
        c, n, s = _constants(real, f, d, cuda.blockIdx.y), f["count"], f["slots"]
        t, norm_p, norm_u = cuda.threadIdx.x, 0.0, 0.0
        for i in range(segment["begin"] + cuda.blockIdx.x * THREADS + t, segment["end"], BLOCKS * THREADS):
            p = m[i]
            s0 = m[s + i] if slots > 0 else real(0)
            s1 = m[s + n + i] if slots > 1 else real(0)
            u = float(direction(p, pulled(f, segment, m, p, i), s0, s1, real(0), c))
            norm_p += float(p) * float(p)
            norm_u += u * u
        of_p[t] = norm_p
        of_u[t] = norm_u
        cuda.syncthreads()
        if t == 0:
            norm_p, norm_u = 0.0, 0.0
            for k in range(THREADS):
                norm_p += of_p[k]
                norm_u += of_u[k]
            to = f["norms"] + 2 * (cuda.blockIdx.y * BLOCKS + cuda.blockIdx.x)
            d[to] = norm_p
            d[to + 1] = norm_u

    return kernel(directed)


@cache
def rates(rule: str) -> Any:
    """``kernel(frame, segments, d)``, one thread: the constants of a rule whose rate depends on norms."""
    prepare = scalars.OPTIMIZERS[rule].prepare

    def rated(frame, segments, d):
        f = frame[0]
        if f["status"] != 0:
            return
        hyper = cuda.local.array(HYPERS, np.float64)
        constants = cuda.local.array(CONSTANTS, np.float64)
        for k in range(f["segments"]):
            norm_p, norm_u = 0.0, 0.0
            for j in range(k * BLOCKS, (k + 1) * BLOCKS):
                norm_p += d[f["norms"] + 2 * j]
                norm_u += d[f["norms"] + 2 * j + 1]
            for j in range(HYPERS):
                hyper[j] = d[f["hyper"] + k * HYPERS + j]
            lr = f["rate"] * segments[k]["lr_factor"]
            prepare(hyper, lr, f["made"], math.sqrt(norm_p), math.sqrt(norm_u), constants)
            for j in range(CONSTANTS):
                d[f["constants"] + k * CONSTANTS + j] = constants[j]

    return kernel(rated)


@cache
def move(dtype: str, rule: str) -> Any:
    """``kernel(frame, segments, m, d)``: one update of the parameters and their slots; block row y has segment y."""
    real, pulled = np.dtype(dtype).type, _pulled(dtype)
    row = scalars.OPTIMIZERS[rule]
    slots, step = row.slots, row.move

    def moved(frame, segments, m, d):
        f, segment = frame[0], segments[cuda.blockIdx.y]
        if f["status"] != 0:
            return
        c, n, s = _constants(real, f, d, cuda.blockIdx.y), f["count"], f["slots"]
        shrink = real(f["rate"] * segment["lr_factor"] * segment["ahead"])
        for i in range(segment["begin"] + cuda.grid(1), segment["end"], cuda.gridsize(1)):
            p = m[i]
            g = pulled(f, segment, m, p, i)
            s0 = m[s + i] if slots > 0 else real(0)
            s1 = m[s + n + i] if slots > 1 else real(0)
            s2 = m[s + 2 * n + i] if slots > 2 else real(0)
            p, s0, s1, s2 = step(p - shrink * p, g, s0, s1, s2, c)
            m[i] = p
            if slots > 0:
                m[s + i] = s0
            if slots > 1:
                m[s + n + i] = s1
            if slots > 2:
                m[s + 2 * n + i] = s2

    return kernel(moved)


@cache
def hold_columns(dtype: str) -> Any:
    """``kernel(frame, stages, m, i)``: columns of weights whose norm is above the stage's limit, scaled to it."""
    real = np.dtype(dtype).type

    def held(frame, stages, m, i):
        f, s = frame[0], stages[i]
        if f["status"] != 0:
            return
        outputs, most = s["outputs"], s["column_norm"]
        for j in range(cuda.grid(1), outputs, cuda.gridsize(1)):
            squares = 0.0
            for k in range(s["inputs"]):
                v = float(m[s["w"] + k * outputs + j])
                squares += v * v
            norm = math.sqrt(squares)
            if norm > most:
                factor = real(most / norm)
                for k in range(s["inputs"]):
                    m[s["w"] + k * outputs + j] *= factor

    return kernel(held)
