"""Elementary functions of float32, with methods, coefficients and bounds of csrc/simd/math_f32.h.

Free of branches, because a call of the C library keeps a loop from being turned into vectors. The bounds hold with and
without fused multiply-add.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .arithmetic import multiply_add, polynomial

__all__ = ["exp", "expm1", "log", "log1p_unit", "normal_cdf", "normal_pdf", "sigmoid", "tanh"]

f32, i32 = np.float32, np.int32

_LOG2E = f32(1.44269504)
_LN2_HI, _LN2_LO = f32(0.693145751953125), f32(1.42860677e-06)
# Added to a number it rounds to an integer n, and n + 127 is in the low bits
_ROUND = f32(12582912 + 127)
_ROUND_HALF = f32(12582912 + 126)
_INF = f32(np.inf)

_exp_rest = polynomial(f32, 0.50000226, 0.1666321, 0.041854367, 0.007869288, 0.0019120505)
_expm1_rest = polynomial(f32, 0.49999997, 0.16666546, 0.041667443, 0.008366253, 0.0013869946)
_log_rest = polynomial(
    f32, -0.5, 0.3333333, -0.2500082, 0.20001242, -0.16623409, 0.14201581, -0.13159613, 0.127622, -0.076363996
)
_log1p_rest = polynomial(
    f32, -0.4999993, 0.33330464, -0.2495802, 0.19692121, -0.15344977, 0.10661371, -0.057460483, 0.02008846,
    -0.0032910742,
)  # fmt: skip
_cdf_above = polynomial(f32, 0.5, 0.43500173, 0.18080068, 0.039813798, 0.0039947685)
_cdf_below = polynomial(f32, 1.0, 1.6678883, 1.1923801, 0.4630439, 0.09980602, 0.010013251)


@register_jitable
def _power_of_two(rounded):
    return i32(f32(rounded).view(i32) << i32(23)).view(f32)


@register_jitable
def _minus_n_ln2(x, n):
    return multiply_add(n, -_LN2_LO, multiply_add(n, -_LN2_HI, x))


@register_jitable
def _expm1_reduced(r):
    """e^r - 1 for |r| <= ln 2 / 2."""
    return multiply_add(r * r, _expm1_rest(r), r)


@register_jitable
def exp(x):
    x = f32(-88) if x < f32(-88) else x
    x = f32(89) if x > f32(89) else x
    # rounded down, and a hair off 1/2, so that e^0 is 1 and the exponent runs over exactly 0 .. 255
    rounded = multiply_add(x, _LOG2E, f32(-0.499996)) + _ROUND
    r = _minus_n_ln2(x, rounded - _ROUND)
    return (multiply_add(r * r, _exp_rest(r), r) + f32(1)) * _power_of_two(rounded)


@register_jitable
def expm1(x):
    x = f32(-25) if x < f32(-25) else x
    x = f32(89) if x > f32(89) else x
    rounded = multiply_add(x, _LOG2E, _ROUND_HALF)
    p = _expm1_reduced(_minus_n_ln2(x, rounded - _ROUND_HALF))
    half = _power_of_two(rounded)
    return multiply_add(half, p, half - f32(0.5)) * f32(2)


@register_jitable
def log(x):
    bits = f32(x if f32(1.1754944e-38) <= x < _INF else f32(1)).view(i32)
    e = i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    n, f = f32(e), i32(bits - i32(e << i32(23))).view(f32) - f32(1)
    y = multiply_add(n, _LN2_HI, multiply_add(f * f, _log_rest(f), n * _LN2_LO) + f)
    y = -_INF if x < f32(1.1754944e-38) else y
    y = y if x < _INF else x  # inf and NaN
    return f32(np.nan) if x < f32(0) else y


@register_jitable
def log1p_unit(u):
    return multiply_add(u * u, _log1p_rest(u), u)


@register_jitable
def tanh(x):
    a = abs(x) * f32(2)
    a = f32(20) if a > f32(20) else a
    rounded = multiply_add(a, _LOG2E, _ROUND)
    p = _expm1_reduced(_minus_n_ln2(a, rounded - _ROUND))
    scale = _power_of_two(rounded)
    e = multiply_add(scale, p, scale - f32(1))
    y = e / (e + f32(2))
    return -y if x < f32(0) else y


@register_jitable
def sigmoid(x):
    x = -x
    x = f32(-88) if x < f32(-88) else x
    x = f32(89) if x > f32(89) else x
    rounded = multiply_add(x, _LOG2E, _ROUND)
    p = _expm1_reduced(_minus_n_ln2(x, rounded - _ROUND))
    return f32(1) / multiply_add(p + f32(1), _power_of_two(rounded), f32(1))


@register_jitable
def _gauss(a):
    """e^(-a^2 / 2) for 0 <= a <= 13.27. The top bits of a have an exact square; the rest joins after reduction."""
    top = i32(f32(a).view(i32) & i32(-4096)).view(f32)
    rounded = multiply_add(a * a, f32(-0.5) * _LOG2E, _ROUND)
    r = _minus_n_ln2(top * top * f32(-0.5), rounded - _ROUND)
    p = _expm1_reduced(multiply_add((a - top) * f32(-0.5), a + top, r))
    return (p + f32(1)) * _power_of_two(rounded)


@register_jitable
def _magnitude(x):
    a = abs(x)
    return f32(13.27) if a > f32(13.27) else a


@register_jitable
def normal_cdf(x):
    a = _magnitude(x)
    tail = _gauss(a) * _cdf_above(a) / _cdf_below(a)
    return tail if x < f32(0) else f32(1) - tail


@register_jitable
def normal_pdf(x):
    return _gauss(_magnitude(x)) * f32(0.3989422804014327)
