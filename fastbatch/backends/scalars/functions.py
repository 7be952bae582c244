"""Elementary functions of a scalar, of its own type.

Those of float32 are branch-free polynomials, because a call of the C library keeps a loop from being turned into
vectors; coefficients and bounds are those of csrc/simd/math_f32.h, which hold with and without fused multiply-add.
Those of float64 are the C library's.
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import register_jitable

__all__ = ["clamp", "exp", "expm1", "larger", "log1p_unit", "normal_cdf", "normal_pdf", "sigmoid", "sign", "tanh"]

f32 = np.float32
i32 = np.int32


@register_jitable
def _is_single(real):
    return real(1) + real(1e-10) == real(1)


@register_jitable
def clamp(x, low, high):
    """NaN stays."""
    x = low if x < low else x
    return high if x > high else x


@register_jitable
def _shifted(x, bias):
    """x / ln 2 rounded to an integer n, as a number whose low bits are n + bias."""
    return x * f32(1.44269504) + (f32(12582912) + bias)


@register_jitable
def _power_of_two(shifted):
    return i32(f32(shifted).view(i32) << i32(23)).view(f32)


@register_jitable
def _minus_n_ln2(x, n):
    return (x - n * f32(0.693145751953125)) - n * f32(1.42860677e-06)


@register_jitable
def _expm1_reduced(r):
    """e^r - 1 for |r| <= ln 2 / 2."""
    q = f32(0.0013869946)
    q = q * r + f32(0.008366253)
    q = q * r + f32(0.041667443)
    q = q * r + f32(0.16666546)
    q = q * r + f32(0.49999997)
    return r * r * q + r


@register_jitable
def _exp_single(x):
    x = clamp(x, f32(-88), f32(89))
    # rounded down, and a hair off 1/2, so that e^0 is 1 and the exponent runs over exactly 0 .. 255
    shifted = (x * f32(1.44269504) - f32(0.499996)) + (f32(12582912) + f32(127))
    r = _minus_n_ln2(x, shifted - (f32(12582912) + f32(127)))
    q = f32(0.0019120505)
    q = q * r + f32(0.007869288)
    q = q * r + f32(0.041854367)
    q = q * r + f32(0.1666321)
    q = q * r + f32(0.50000226)
    return ((r * r * q + r) + f32(1)) * _power_of_two(shifted)


@register_jitable
def _expm1_single(x):
    x = clamp(x, f32(-25), f32(89))
    shifted = _shifted(x, f32(126))
    p = _expm1_reduced(_minus_n_ln2(x, shifted - (f32(12582912) + f32(126))))
    half = _power_of_two(shifted)
    return (half * p + (half - f32(0.5))) * f32(2)


@register_jitable
def _log1p_unit_single(u):
    q = f32(-0.0032910742)
    q = q * u + f32(0.02008846)
    q = q * u + f32(-0.057460483)
    q = q * u + f32(0.10661371)
    q = q * u + f32(-0.15344977)
    q = q * u + f32(0.19692121)
    q = q * u + f32(-0.2495802)
    q = q * u + f32(0.33330464)
    q = q * u + f32(-0.4999993)
    return u * u * q + u


@register_jitable
def _tanh_single(x):
    a = abs(x) * f32(2)
    a = f32(20) if a > f32(20) else a
    shifted = _shifted(a, f32(127))
    p = _expm1_reduced(_minus_n_ln2(a, shifted - (f32(12582912) + f32(127))))
    scale = _power_of_two(shifted)
    e = scale * p + (scale - f32(1))
    y = e / (e + f32(2))
    return -y if x < f32(0) else y


@register_jitable
def _sigmoid_single(x):
    x = clamp(-x, f32(-88), f32(89))
    shifted = _shifted(x, f32(127))
    p = _expm1_reduced(_minus_n_ln2(x, shifted - (f32(12582912) + f32(127))))
    return f32(1) / ((p + f32(1)) * _power_of_two(shifted) + f32(1))


@register_jitable
def _gauss_single(a):
    """e^(-a^2 / 2) for 0 <= a <= 13.27. The top bits of a have an exact square; the rest joins after reduction."""
    top = i32(f32(a).view(i32) & i32(-4096)).view(f32)
    shifted = _shifted(a * a * f32(-0.5), f32(127))
    r = _minus_n_ln2(top * top * f32(-0.5), shifted - (f32(12582912) + f32(127)))
    p = _expm1_reduced((a - top) * f32(-0.5) * (a + top) + r)
    return (p + f32(1)) * _power_of_two(shifted)


@register_jitable
def _normal_cdf_single(x):
    a = abs(x)
    a = f32(13.27) if a > f32(13.27) else a
    p = f32(0.0039947685)
    p = p * a + f32(0.039813798)
    p = p * a + f32(0.18080068)
    p = p * a + f32(0.43500173)
    p = p * a + f32(0.5)
    q = f32(0.010013251)
    q = q * a + f32(0.09980602)
    q = q * a + f32(0.4630439)
    q = q * a + f32(1.1923801)
    q = q * a + f32(1.6678883)
    q = q * a + f32(1)
    tail = _gauss_single(a) * p / q
    return tail if x < f32(0) else f32(1) - tail


@register_jitable
def exp(x):
    real = type(x)
    return real(_exp_single(f32(x))) if _is_single(real) else real(np.exp(x))


@register_jitable
def expm1(x):
    real = type(x)
    return real(_expm1_single(f32(x))) if _is_single(real) else real(np.expm1(x))


@register_jitable
def log1p_unit(u):
    """ln(1 + u) for u in [0, 1]."""
    real = type(u)
    return real(_log1p_unit_single(f32(u))) if _is_single(real) else real(np.log1p(u))


@register_jitable
def tanh(x):
    real = type(x)
    return real(_tanh_single(f32(x))) if _is_single(real) else real(np.tanh(x))


@register_jitable
def sigmoid(x):
    real = type(x)
    if _is_single(real):
        return real(_sigmoid_single(f32(x)))
    e = np.exp(-abs(x))  # of a number <= 0 on both sides: no overflow, and all digits on the left
    return (real(1) if x >= real(0) else e) / (real(1) + e)


@register_jitable
def normal_cdf(x):
    real = type(x)
    if _is_single(real):
        return real(_normal_cdf_single(f32(x)))
    return real(0.5) * real(math.erfc(-x * real(0.7071067811865476)))


@register_jitable
def normal_pdf(x):
    real = type(x)
    a = abs(x)
    if _is_single(real):
        a = f32(13.27) if a > f32(13.27) else f32(a)
        return real(_gauss_single(a) * f32(0.3989422804014327))
    return real(np.exp(real(-0.5) * x * x)) * real(0.3989422804014327)


@register_jitable
def sign(x):
    """0 and NaN as they are."""
    real = type(x)
    return real(1) if x > real(0) else (real(-1) if x < real(0) else x)


@register_jitable
def larger(a, b):
    """The larger one, and NaN where the first is."""
    return b if a < b else a
