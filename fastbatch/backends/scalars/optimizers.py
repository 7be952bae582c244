"""Optimizers: the constants of an update, and what it does to one parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numba.extending import register_jitable

from .functions import larger, sign
from .table import Table

__all__ = ["CONSTANTS", "HYPERS", "OPTIMIZERS", "Rule"]


@dataclass(frozen=True)
class Rule:
    """One row of the registry.

    Attributes
    ----------
    hyper : tuple of str
        Numbers that `prepare` reads from `h`, in this order, by their names in ``Optimizer.constants``; weight_decay
        first.
    slots : int
    prepare : callable
        ``prepare(h, lr, t, norm_p, norm_u, c)``, once per update in double: fills the constants `c`, at most 9. The
        norms are those of the parameters and of the direction, where the rule is normed and they are known, else 0.
    move : callable
        ``move(p, g, s0, s1, s2, c)``: the parameter and its slots after the update.
    direction : callable or None
        ``direction(p, g, s0, s1, s2, c)``: u, of a rule whose rate depends on norms.
    """

    hyper: tuple[str, ...]
    slots: int
    prepare: Callable
    move: Callable
    direction: Callable | None = None


@register_jitable
def _sgd_prepare(h, lr, t, norm_p, norm_u, c):
    c[0], c[1] = lr, h[0]


@register_jitable
def _sgd(p, g, s0, s1, s2, c):
    return p - c[0] * (g + c[1] * p), s0, s1, s2


@register_jitable
def _momentum_prepare(h, lr, t, norm_p, norm_u, c):
    first, velocity = t == 1, h[4] != 0.0
    unit = lr if velocity else 1.0  # the slot is in units of p, so that a change of the rate leaves it alone
    c[0], c[1] = 1.0 if velocity else lr, h[0]
    c[2] = 0.0 if first else h[1]
    c[3] = unit * (1.0 if first else 1.0 - h[2])
    c[4], c[5] = (unit, h[1]) if h[3] != 0.0 else (0.0, 1.0)


@register_jitable
def _momentum(p, g, s0, s1, s2, c):
    g = g + c[1] * p
    s0 = c[2] * s0 + c[3] * g
    return p - c[0] * (c[5] * s0 + c[4] * g), s0, s1, s2


@register_jitable
def _adam_prepare(h, lr, t, norm_p, norm_u, c):
    decoupled = h[4] != 0.0
    c[0] = 1.0 - lr * h[0] if decoupled else 1.0
    c[1] = 0.0 if decoupled else h[0]
    c[2], c[3], c[4] = 1.0 - h[1], h[2], 1.0 - h[2]
    c[5] = lr / (1.0 - h[1] ** t)
    c[6] = 1.0 / math.sqrt(1.0 - h[2] ** t)
    c[7] = h[3] * c[6] if h[5] != 0.0 else h[3]  # folded: eps enters before the bias is corrected


@register_jitable
def _adam(p, g, s0, s1, s2, c):
    g = g + c[1] * p
    s0 = s0 + c[2] * (g - s0)
    s1 = c[3] * s1 + c[4] * g * g
    return p * c[0] - c[5] * s0 / (math.sqrt(s1) * c[6] + c[7]), s0, s1, s2


@register_jitable
def _adam_max(p, g, s0, s1, s2, c):
    g = g + c[1] * p
    s0 = s0 + c[2] * (g - s0)
    s1 = c[3] * s1 + c[4] * g * g
    s2 = larger(s1, s2)
    return p * c[0] - c[5] * s0 / (math.sqrt(s2) * c[6] + c[7]), s0, s1, s2


@register_jitable
def _rmsprop_prepare(h, lr, t, norm_p, norm_u, c):
    inside = h[4] != 0.0  # eps under the root, and momentum in units of p
    c[0], c[1], c[2], c[5] = h[0], h[1], 1.0 - h[1], h[3]
    c[3], c[4] = (h[2], 0.0) if inside else (0.0, h[2])
    c[6], c[7] = (lr, 1.0) if inside else (1.0, lr)


@register_jitable
def _rmsprop(p, g, s0, s1, s2, c):
    g = g + c[0] * p
    s0 = c[1] * s0 + c[2] * g * g
    return p - c[7] * (c[6] * g / (math.sqrt(s0 + c[3]) + c[4])), s0, s1, s2


@register_jitable
def _rmsprop_momentum(p, g, s0, s1, s2, c):
    g = g + c[0] * p
    s0 = c[1] * s0 + c[2] * g * g
    s1 = c[5] * s1 + c[6] * g / (math.sqrt(s0 + c[3]) + c[4])
    return p - c[7] * s1, s0, s1, s2


@register_jitable
def _rmsprop_centered(p, g, s0, s1, s2, c):
    g = g + c[0] * p
    s0 = c[1] * s0 + c[2] * g * g
    s2 = s2 + c[2] * (g - s2)
    variance = larger(s0 - s2 * s2, type(p)(0))
    s1 = c[5] * s1 + c[6] * g / (math.sqrt(variance + c[3]) + c[4])
    return p - c[7] * s1, s0, s1, s2


@register_jitable
def _adagrad_prepare(h, lr, t, norm_p, norm_u, c):
    c[0] = h[0]
    c[1], c[2] = (h[2], 0.0) if h[3] != 0.0 else (0.0, h[2])
    c[3] = lr / (1.0 + (t - 1) * h[1])


@register_jitable
def _adagrad(p, g, s0, s1, s2, c):
    g = g + c[0] * p
    s0 = s0 + g * g
    return p - c[3] * g / (math.sqrt(s0 + c[1]) + c[2]), s0, s1, s2


@register_jitable
def _nadam_momentum(h, t):
    return h[1] * (1.0 - 0.5 * h[4] ** t)


@register_jitable
def _nadam_prepare(h, lr, t, norm_p, norm_u, c):
    decoupled = h[5] != 0.0
    past, k = 1.0, 1
    while k <= t and past > 2.0**-60:  # at most beta1^t, and of no account below
        past *= _nadam_momentum(h, k)
        k += 1
    past = past if past > 2.0**-60 else 0.0
    now, then = _nadam_momentum(h, t), _nadam_momentum(h, t + 1)
    c[0] = 1.0 - lr * h[0] if decoupled else 1.0
    c[1] = 0.0 if decoupled else h[0]
    c[2], c[3], c[4] = 1.0 - h[1], h[2], 1.0 - h[2]
    c[5], c[6] = 1.0 / math.sqrt(1.0 - h[2] ** t), h[3]
    c[7], c[8] = lr * (1.0 - now) / (1.0 - past), lr * then / (1.0 - past * then)


@register_jitable
def _nadam(p, g, s0, s1, s2, c):
    g = g + c[1] * p
    s0 = s0 + c[2] * (g - s0)
    s1 = c[3] * s1 + c[4] * g * g
    return p * c[0] - (c[7] * g + c[8] * s0) / (math.sqrt(s1) * c[5] + c[6]), s0, s1, s2


@register_jitable
def _lion_prepare(h, lr, t, norm_p, norm_u, c):
    c[0], c[1], c[2], c[3] = 1.0 - lr * h[0], 1.0 - h[1], 1.0 - h[2], lr


@register_jitable
def _lion(p, g, s0, s1, s2, c):
    return p * c[0] - c[3] * sign(s0 + c[1] * (g - s0)), s0 + c[2] * (g - s0), s1, s2


@register_jitable
def _lamb_prepare(h, lr, t, norm_p, norm_u, c):
    c[0], c[1], c[2], c[3] = h[0], 1.0 - h[1], h[2], 1.0 - h[2]
    c[4], c[5], c[6] = 1.0 / (1.0 - h[1] ** t), 1.0 / math.sqrt(1.0 - h[2] ** t), h[3]
    c[7] = lr * (norm_p / norm_u) if norm_p > 0.0 and norm_u > 0.0 else lr


@register_jitable
def _lamb_direction(p, g, s0, s1, s2, c):
    s0 = s0 + c[1] * (g - s0)
    s1 = c[2] * s1 + c[3] * g * g
    return c[4] * s0 / (math.sqrt(s1) * c[5] + c[6]) + c[0] * p


@register_jitable
def _lamb(p, g, s0, s1, s2, c):
    u = _lamb_direction(p, g, s0, s1, s2, c)
    return p - c[7] * u, s0 + c[1] * (g - s0), c[2] * s1 + c[3] * g * g, s2


@register_jitable
def _lars_prepare(h, lr, t, norm_p, norm_u, c):
    c[0], c[1] = h[0], h[1]
    below = norm_u + h[0] * norm_p + h[3]
    c[2] = lr * (h[2] * norm_p / below) if norm_p > 0.0 and norm_u > 0.0 else lr


@register_jitable
def _lars_direction(p, g, s0, s1, s2, c):
    return g


@register_jitable
def _lars(p, g, s0, s1, s2, c):
    s0 = c[1] * s0 + c[2] * (g + c[0] * p)
    return p - s0, s0, s1, s2


_ADAM = ("weight_decay", "beta1", "beta2", "eps", "decoupled", "folded")
_RMSPROP = ("weight_decay", "alpha", "eps", "momentum", "inside")
OPTIMIZERS: Table[Rule] = Table(
    {
        "sgd": Rule(("weight_decay",), 0, _sgd_prepare, _sgd),
        "momentum": Rule(
            ("weight_decay", "momentum", "dampening", "nesterov", "velocity"), 1, _momentum_prepare, _momentum
        ),
        "adam": Rule(_ADAM, 2, _adam_prepare, _adam),
        "adam_max": Rule(_ADAM, 3, _adam_prepare, _adam_max),
        "rmsprop": Rule(_RMSPROP, 1, _rmsprop_prepare, _rmsprop),
        "rmsprop_momentum": Rule(_RMSPROP, 2, _rmsprop_prepare, _rmsprop_momentum),
        "rmsprop_centered": Rule(_RMSPROP, 3, _rmsprop_prepare, _rmsprop_centered),
        "adagrad": Rule(("weight_decay", "lr_decay", "eps", "inside"), 1, _adagrad_prepare, _adagrad),
        "nadam": Rule(("weight_decay", "beta1", "beta2", "eps", "warmth", "decoupled"), 2, _nadam_prepare, _nadam),
        "lion": Rule(("weight_decay", "beta1", "beta2"), 1, _lion_prepare, _lion),
        "lamb": Rule(("weight_decay", "beta1", "beta2", "eps"), 2, _lamb_prepare, _lamb, _lamb_direction),
        "lars": Rule(("weight_decay", "momentum", "trust", "eps"), 1, _lars_prepare, _lars, _lars_direction),
    }
)
HYPERS = 8  # room for `hyper` of any rule
CONSTANTS = 9  # and for its constants
