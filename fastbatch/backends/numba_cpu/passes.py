"""Passes over elements: one loop around each rule of `scalars`, chosen by the rule's number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import scalars
from ..scalars.arithmetic import wide
from .machine import HAS_MASKS, apart, inner, magnitude_bits, plus, pointer, switch
from .own import call_loss, call_move, call_prepare, call_slope, call_value
from .tiles import copy_vector, vector_lanes

__all__ = [
    "ACTIVATION_INDEX", "LOSS_INDEX", "NORMED", "OPTIMIZER_INDEX", "activate", "constants_of", "copy",
    "cross_entropy", "dropout", "element_loss", "is_bad", "move", "pull", "scale_by_slope", "square_sum",
    "squares_of_step", "sum_of",
]  # fmt: skip

ACTIVATION_INDEX = {name: row for row, name in enumerate(scalars.ACTIVATIONS)}
LOSS_INDEX = {name: row for row, name in enumerate([*scalars.ELEMENT_LOSSES, *scalars.ROW_LOSSES])}
OPTIMIZER_INDEX = {name: row for row, name in enumerate(scalars.OPTIMIZERS)}
MOST_ROWS = 4096  # numbers above are addresses, of operations of a user's own

u64, f64 = np.uint64, np.float64  # float() of a float32 is one, too


@inner
def copy(n, source, to):
    """Stretches of any length; most are a row of some ten elements, where a loop's scalar rest is all there is."""
    if HAS_MASKS:
        lanes = vector_lanes(source)
        for i in range(0, n, lanes):
            copy_vector(plus(source, i), plus(to, i), n - i)
    else:
        for i in range(n):
            to[i] = source[i]


@inner
def sum_of(n, x):
    """In four chains: in order, an addition would wait for the one before."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    i = 0
    while i + 4 <= n:
        a, b, c, d = a + x[i], b + x[i + 1], c + x[i + 2], d + x[i + 3]
        i += 4
    while i < n:
        a += x[i]
        i += 1
    return (a + b) + (c + d)


@inner
def square_sum(n, x):
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    i = 0
    while i + 4 <= n:
        e, f, g, h = f64(x[i]), f64(x[i + 1]), f64(x[i + 2]), f64(x[i + 3])
        a, b, c, d = a + e * e, b + f * f, c + g * g, d + h * h
        i += 4
    while i < n:
        a += f64(x[i]) * f64(x[i])
        i += 1
    return (a + b) + (c + d)


# -- activations -------------------------------------------------------------------------------------------------------


def _value_loop(value: Callable) -> Callable:
    @inner
    def loop(n, a):  # in place: one array cannot overlap another
        apart()
        wide()
        for i in range(n):
            a[i] = value(a[i])

    return loop


def _slope_loop(slope: Callable) -> Callable:
    @inner
    def loop(n, saved, d):
        apart()
        wide()
        for i in range(n):
            d[i] *= slope(saved[i])

    return loop


_activate = switch([_value_loop(value) for value, _ in scalars.ACTIVATIONS.values()])
_scale_by_slope = switch([_slope_loop(slope) for _, slope in scalars.ACTIVATIONS.values()])


@inner
def activate(kind, n, a):
    if kind > MOST_ROWS:
        call_value(pointer(kind, 0)[0], n, a)
    else:
        _activate(kind, n, a)


@inner
def scale_by_slope(kind, n, saved, d):
    if kind > MOST_ROWS:
        call_slope(pointer(kind, 0)[1], n, saved, d)
    else:
        _scale_by_slope(kind, n, saved, d)


@inner
def dropout(one, rows, width, x, ld, to, seed, update, layer, first_row, threshold):
    """A unit is kept where its byte is below the threshold, times 256 / threshold; `to` may be x."""
    apart()
    scale = type(one)(256.0 / threshold)
    for r in range(rows):
        for block in range((width + 15) // 16):
            words = scalars.philox(u64(block), u64(first_row + r), u64(layer | 1 << 16), u64(update), u64(seed))
            for i in range(16):
                j = 16 * block + i
                if j < width:
                    byte = (words[i >> 2] >> u64(8 * (i & 3))) & u64(255)
                    at = r * ld + j
                    to[at] = x[at] * scale if byte < u64(threshold) else type(one)(0)


# -- losses ------------------------------------------------------------------------------------------------------------


def _element_loop(element: Callable) -> Callable:
    @inner
    def loop(n, a, y, c, g, h, values, da):
        apart()
        for i in range(n):
            values[i], da[i] = element(a[i], y[i], c[i], g, h)

    return loop


_element_loss = switch([_element_loop(element) for _, element in scalars.ELEMENT_LOSSES.values()])


@inner
def element_loss(kind, n, a, y, c, g, h, values, da):
    if kind > MOST_ROWS:
        call_loss(pointer(kind, 0)[0], n, a, y, values, da)
    else:
        _element_loss(kind, n, a, y, c, g, h, values, da)


@inner
def cross_entropy(one, width, a, label, y, c, smoothing, factor, da):
    """Loss of a row and, times `factor`, its slope; the target is a label, or y where that is negative."""
    apart()
    top = a[0]
    for j in range(1, width):
        top = a[j] if a[j] > top else top
    for j in range(width):
        da[j] = scalars.exp(a[j] - top)
    total = sum_of(width, da)
    log_total = math.log(total)
    spread = smoothing / width
    loss, target = 0.0, 0.0
    for j in range(width):
        hot = (1.0 if j == label else 0.0) if label >= 0 else f64(y[j])
        t = f64(c[j]) * ((1.0 - smoothing) * hot + spread)
        target += t
        if t != 0.0:  # a class with no target adds nothing, even at a logit of -inf
            loss += t * (log_total - f64(a[j] - top))
    share = target / total
    for j in range(width):
        hot = (1.0 if j == label else 0.0) if label >= 0 else f64(y[j])
        t = f64(c[j]) * ((1.0 - smoothing) * hot + spread)
        da[j] = type(one)(factor * (share * f64(da[j]) - t))
    return loss


# -- updates -----------------------------------------------------------------------------------------------------------


def _move_loop(rule: scalars.Rule) -> Callable:
    slots, step = rule.slots, rule.move

    @inner
    def loop(one, n, p, g, s, stride, constants):
        apart()
        real = type(one)
        k = constants
        c = (real(k[0]), real(k[1]), real(k[2]), real(k[3]), real(k[4]), real(k[5]), real(k[6]), real(k[7]), real(k[8]))
        s1, s2 = plus(s, stride), plus(s, 2 * stride)
        for i in range(n):
            a = s[i] if slots > 0 else real(0)
            b = s1[i] if slots > 1 else real(0)
            d = s2[i] if slots > 2 else real(0)
            p[i], a, b, d = step(p[i], g[i], a, b, d, c)
            if slots > 0:
                s[i] = a
            if slots > 1:
                s1[i] = b
            if slots > 2:
                s2[i] = d

    return loop


def _direction_loop(rule: scalars.Rule) -> Callable:
    slots, direction = rule.slots, rule.direction or rule.move  # only rules that have one come here

    @inner
    def loop(one, n, p, g, s, stride, constants, u):
        apart()
        real = type(one)
        k = constants
        c = (real(k[0]), real(k[1]), real(k[2]), real(k[3]), real(k[4]), real(k[5]), real(k[6]), real(k[7]), real(k[8]))
        s1 = plus(s, stride)
        for i in range(n):
            a = s[i] if slots > 0 else real(0)
            b = s1[i] if slots > 1 else real(0)
            u[i] = direction(p[i], g[i], a, b, real(0), c)

    return loop


_rules = list(scalars.OPTIMIZERS.values())
_directed = [name for name, rule in scalars.OPTIMIZERS.items() if rule.direction]
# 1 and more where the rate depends on norms
NORMED = {name: 1 + _directed.index(name) if rule.direction else 0 for name, rule in scalars.OPTIMIZERS.items()}
_constants_of = switch([rule.prepare for rule in _rules])
_move = switch([_move_loop(rule) for rule in _rules])
_direction = switch([_direction_loop(scalars.OPTIMIZERS[name]) for name in _directed])


@inner
def constants_of(kind, h, lr, t, norm_p, norm_u, c):
    if kind > MOST_ROWS:
        call_prepare(pointer(kind, 0)[0], lr, f64(t), h, c)
    else:
        _constants_of(kind, h, lr, t, norm_p, norm_u, c)


@inner
def move(kind, one, n, p, g, s, stride, c):
    if kind > MOST_ROWS:
        call_move(pointer(kind, 0)[1], n, p, g, s, stride, c)
    else:
        _move(kind, one, n, p, g, s, stride, c)


@inner
def pull(one, n, p, gradient, scale, most, l1, g):
    """g = scale * gradient, held to +-`most` where that is above 0, with the penalty that enters it."""
    apart()
    real = type(one)
    factor = real(scale)
    for i in range(n):
        g[i] = gradient[i] * factor
    if most > 0.0:
        high = real(most)
        for i in range(n):
            g[i] = high if g[i] > high else (-high if g[i] < -high else g[i])
    if l1 > 0.0:
        share = real(l1)
        for i in range(n):
            g[i] += share * scalars.sign(p[i])


@inner
def is_bad(one, n, gradient, scale):
    """Whether an element of scale * gradient is not finite: the largest of the bits but the sign, as integers."""
    real = type(one)
    factor, top = real(scale), magnitude_bits(real(0))
    for i in range(n):
        bits = magnitude_bits(gradient[i] * factor)
        top = bits if bits > top else top
    return 1 if top >= magnitude_bits(real(np.inf)) else 0


@inner
def squares_of_step(one, normed, n, p, g, s, stride, constants, u):
    """Sums of squares of the parameters and of the rule's direction, which is left in u."""
    _direction(normed - 1, one, n, p, g, s, stride, constants, u)
    return square_sum(n, p), square_sum(n, u)
