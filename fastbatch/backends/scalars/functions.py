"""Elementary functions of a number, of its own type: those of single.py or of double.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from . import double, single

__all__ = [
    "absolute", "clamp", "exp", "expm1", "larger", "log", "log1p", "log1p_unit", "normal_cdf", "normal_pdf", "power",
    "root", "sigmoid", "sign", "square", "tanh",
]  # fmt: skip


def _by_type(name: str) -> Callable:
    """The function of that name, chosen where a call is compiled."""
    of_single, of_double = getattr(single, name), getattr(double, name)

    def function(x: Any) -> Any:
        return of_single(x) if isinstance(x, np.float32) else of_double(np.float64(x))

    def compiled(x):
        chosen, real = (of_single, np.float32) if x == types.float32 else (of_double, np.float64)
        return lambda x: chosen(real(x))

    overload(function)(compiled)
    function.__name__ = name
    return function


exp, expm1, log, tanh, sigmoid = map(_by_type, ("exp", "expm1", "log", "tanh", "sigmoid"))
log1p_unit, normal_cdf, normal_pdf = map(_by_type, ("log1p_unit", "normal_cdf", "normal_pdf"))  # of u in [0, 1]; of any


@register_jitable
def log1p(x):
    """ln(1 + x): of the rounded sum, and what rounding took from it."""
    real = type(x)
    u = real(1) + x
    y = log(u) + (x - (u - real(1))) / u
    y = -real(np.inf) if u == real(0) else y
    return x if x == real(np.inf) else y


@register_jitable
def clamp(x, low, high):
    """NaN stays."""
    x = low if x < low else x
    return high if x > high else x


@register_jitable
def sign(x):
    """0 and NaN as they are."""
    real = type(x)
    return real(1) if x > real(0) else (real(-1) if x < real(0) else x)


@register_jitable
def larger(a, b):
    """The larger one, and NaN where the first is."""
    return b if a < b else a


@register_jitable
def absolute(x):
    return abs(x)


@register_jitable
def square(x):
    return x * x


@register_jitable
def power(x, y):
    return x**y


def root(x: Any) -> Any:
    """The square root; NaN of negative numbers, where Python's ``math.sqrt`` raises."""
    return np.sqrt(x)


@overload(root)
def _(x):
    return lambda x: math.sqrt(x)
