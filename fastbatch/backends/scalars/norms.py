"""Norms of one number: moments come from whoever has the rows or columns."""

from __future__ import annotations

import math

from numba.extending import register_jitable

from .arithmetic import multiply_add

__all__ = ["factor_of", "moved", "normal", "of_mean", "shifted"]


@register_jitable
def factor_of(variance, eps):
    """One over the deviation."""
    real = type(variance)
    return real(1) / real(math.sqrt(variance + eps))


@register_jitable
def normal(x, mean, factor):
    return (x - mean) * factor


@register_jitable
def shifted(normal, gamma, beta):
    return multiply_add(normal, gamma, beta)


@register_jitable
def of_mean(d, normal, mean, along):
    """What is left of `d` without what its mean, and that of `d` times normal, say: times the factor it is dx."""
    return d - mean - normal * along


@register_jitable
def moved(running, value, momentum):
    """The running statistic after another value."""
    real = type(running)
    return multiply_add(real(momentum), value, real(1.0 - momentum) * running)
