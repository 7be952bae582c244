"""Losses that are a mean over elements: value and slope, from output a, target y, the output's weight c, g and h."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from .functions import clamp, exp, larger, log1p_unit, sigmoid, sign
from .table import Table

__all__ = ["ELEMENT_LOSSES", "ROW_LOSSES"]


@register_jitable
def mse(a, y, c, g, h):
    e = a - y
    return e * e, e + e


@register_jitable
def mae(a, y, c, g, h):
    return abs(a - y), sign(a - y)


@register_jitable
def huber(a, y, c, g, h):
    real = type(a)
    e = a - y
    size = abs(e)
    value = real(0.5) * e * e if size <= h else h * (size - real(0.5) * h)
    return value, clamp(e, -h, h)


@register_jitable
def quantile(a, y, c, g, h):
    real = type(a)
    e = a - y
    slope = -h if e < real(0) else (g if e > real(0) else e)
    return e * (-h if e < real(0) else g), slope


@register_jitable
def poisson(a, y, c, g, h):
    mean = exp(a)
    return mean - y * a, mean - y


@register_jitable
def _times_exp(y, x):
    """0 where y is, also where the exponential is infinite."""
    real = type(y)
    return y * exp(x) if y > real(0) else real(0)


@register_jitable
def tweedie(a, y, c, g, h):
    below, above = _times_exp(y, -g * a), exp(h * a)
    return below / g + above / h, above - below


@register_jitable
def gamma(a, y, c, g, h):
    ratio = y * exp(-a)
    return a + ratio, type(a)(1) - ratio


@register_jitable
def bce(a, y, c, g, h):
    one, zero = type(a)(1), type(a)(0)
    scale = one + (c - one) * y
    tail = log1p_unit(exp(-abs(a))) + larger(-a, zero)
    return (one - y) * a + scale * tail, scale * sigmoid(a) - c * y


@register_jitable
def focal(a, y, c, g, h):
    one, zero = type(a)(1), type(a)(0)
    tail = log1p_unit(exp(-abs(a)))
    u, v = larger(a, zero) + tail, larger(-a, zero) + tail  # -ln(1 - p) and -ln p
    p, q = sigmoid(a), sigmoid(-a)
    right, wrong = c * y * exp(-h * u), (g - c) * (one - y) * exp(-h * v)
    return right * v + wrong * u, wrong * (h * q * u + p) - right * (h * p * v + q)


# name -> (constants g and h from the parameter and whether outputs have weights, element)
ELEMENT_LOSSES: Table[tuple[Callable[[float, bool], tuple[float, float]], Callable]] = Table(
    {
        "mse": (lambda p, weighted: (0, 0), mse),
        "mae": (lambda p, weighted: (0, 0), mae),
        "huber": (lambda p, weighted: (0, p), huber),
        "quantile": (lambda p, weighted: (1 - p, p), quantile),
        "poisson": (lambda p, weighted: (0, 0), poisson),
        "tweedie": (lambda p, weighted: (p - 1, 2 - p), tweedie),
        "gamma": (lambda p, weighted: (0, 0), gamma),
        "bce": (lambda p, weighted: (0, 0), bce),
        "focal": (lambda p, weighted: (1 if weighted else 2, p), focal),
    }
)
# those that are no mean over elements: loops of their own
ROW_LOSSES = ("cross_entropy",)
