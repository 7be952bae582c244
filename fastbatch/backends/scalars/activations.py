"""Activations: the value of z, the slope at what is saved."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from .functions import clamp, exp, expm1, larger, log1p_unit, normal_cdf, normal_pdf, sigmoid, tanh
from .table import Table

__all__ = ["ACTIVATIONS"]


@register_jitable
def identity(z):
    return z


@register_jitable
def identity_slope(s):
    return type(s)(1)


@register_jitable
def relu(z):
    return larger(z, type(z)(0))


@register_jitable
def relu_slope(a):
    real = type(a)
    return real(1) if a > real(0) else real(0)


@register_jitable
def leaky_relu(z):
    real = type(z)
    return z if z > real(0) else real(0.01) * z


@register_jitable
def leaky_relu_slope(a):
    real = type(a)
    return real(1) if a > real(0) else real(0.01)


@register_jitable
def elu(z):
    real = type(z)
    below = expm1(real(0) if z > real(0) else z)
    return z if z > real(0) else below


@register_jitable
def elu_slope(a):
    real = type(a)
    return real(1) if a > real(0) else a + real(1)


@register_jitable
def tanh_slope(a):
    return type(a)(1) - a * a


@register_jitable
def sigmoid_slope(a):
    return a * (type(a)(1) - a)


@register_jitable
def softplus(z):
    return larger(z, type(z)(0)) + log1p_unit(exp(-abs(z)))


@register_jitable
def gelu(z):
    return z * normal_cdf(z)


@register_jitable
def gelu_slope(z):
    return normal_cdf(z) + z * normal_pdf(z)


@register_jitable
def _gelu_argument(z):
    real = type(z)
    return real(1.5957691216057308) * (real(0.044715) * z * z * z + z)  # 2 sqrt(2 / pi)


@register_jitable
def gelu_tanh(z):
    return z * sigmoid(_gelu_argument(z))


@register_jitable
def gelu_tanh_slope(z):
    real = type(z)
    z = clamp(z, real(-1e4), real(1e4))  # z^2 overflows later, beside a factor that is 0
    s = sigmoid(_gelu_argument(z))
    return s + z * s * (real(1) - s) * real(1.5957691216057308) * (real(3 * 0.044715) * z * z + real(1))


@register_jitable
def silu(z):
    return z * sigmoid(z)


@register_jitable
def silu_slope(z):
    real = type(z)
    s = sigmoid(z)
    return s * (z * (real(1) - s) + real(1))


# name -> (value, slope); what is saved, `fastbatch.ops.activations` says
ACTIVATIONS: Table[tuple[Callable, Callable]] = Table(
    {
        "identity": (identity, identity_slope),
        "relu": (relu, relu_slope),
        "leaky_relu": (leaky_relu, leaky_relu_slope),
        "elu": (elu, elu_slope),
        "tanh": (tanh, tanh_slope),
        "sigmoid": (sigmoid, sigmoid_slope),
        "softplus": (softplus, sigmoid),
        "gelu": (gelu, gelu_slope),
        "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
        "silu": (silu, silu_slope),
    }
)
