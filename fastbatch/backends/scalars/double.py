"""Elementary functions of float64: single.py with the coefficients and bounds of csrc/simd/math_f64.h."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .arithmetic import multiply_add, polynomial

__all__ = ["exp", "expm1", "log", "log1p_unit", "normal_cdf", "normal_pdf", "sigmoid", "tanh"]

f64, i64, u64 = np.float64, np.int64, np.uint64

_LOG2E = f64(1.4426950408889634)
_LN2_HI, _LN2_LO = f64(0.6931471804855391), f64(7.440617110012397e-11)
_ROUND = f64(6755399441055744 + 1023)
_ROUND_HALF = f64(6755399441055744 + 1022)
_INF = f64(np.inf)
_2_52 = f64(2**52)

_exp_rest = polynomial(
    f64, 0.4999999999999741, 0.16666666666789853, 0.04166666664389715, 0.008333333556326341, 0.0013888875787221558,
    0.00019841759827766474, 2.478964822166347e-05, 2.7745716462797224e-06, 2.571209536521826e-07,
    3.5064142365875446e-08,
)  # fmt: skip
_expm1_rest = polynomial(
    f64, 0.5, 0.16666666666666677, 0.04166666666666663, 0.008333333333321494, 0.001388888888891218,
    0.00019841269886371445, 2.4801587260177477e-05, 2.7557244024459933e-06, 2.7557334357261193e-07,
    2.5109086797180715e-08, 2.0894937771514525e-09,
)  # fmt: skip
_log_rest = polynomial(
    f64, 0.666666666666663, 0.4000000000015895, 0.28571428547691263, 0.22222223978068675, 0.18181743671795025,
    0.1538656468256538, 0.13300917538273016, 0.12106488965746953, 0.08338486200245865, 0.170213486732214,
)  # fmt: skip
_cdf_above = polynomial(
    f64, 0.5, 0.8267533973533869, 0.677778606957797, 0.3559306818529582, 0.13135182253230257, 0.03543127340952244,
    0.007065116675430906, 0.0010296009592558868, 0.0001053429856439172, 6.880967959901672e-06, 2.2057009791459653e-07,
)  # fmt: skip
_cdf_below = polynomial(
    f64, 1.0, 2.4513913555096396, 2.8114845289623376, 1.9953673048139753, 0.9760099179068521, 0.3464372232504751,
    0.09135936286842015, 0.017972571144188626, 0.0025980749051296615, 0.0002646085935894947, 1.7248028845153745e-05,
    5.528872439707059e-07,
)  # fmt: skip


@register_jitable
def _power_of_two(rounded):
    return i64(f64(rounded).view(i64) << i64(52)).view(f64)


@register_jitable
def _minus_n_ln2(x, n):
    return multiply_add(n, -_LN2_LO, multiply_add(n, -_LN2_HI, x))


@register_jitable
def _expm1_reduced(r):
    """e^r - 1 for |r| <= ln 2 / 2."""
    return multiply_add(r * r, _expm1_rest(r), r)


@register_jitable
def exp(x):
    x = f64(-709) if x < f64(-709) else x
    x = f64(710) if x > f64(710) else x
    rounded = multiply_add(x, _LOG2E, f64(-0.499999999999)) + _ROUND
    # no offset can tell ln(DBL_MAX) from 1024 ln 2: from 1023 the multiplication overflows by itself
    rounded = _ROUND + f64(1023) if rounded > _ROUND + f64(1023) else rounded
    r = _minus_n_ln2(x, rounded - _ROUND)
    return (multiply_add(r * r, _exp_rest(r), r) + f64(1)) * _power_of_two(rounded)


@register_jitable
def expm1(x):
    x = f64(-50) if x < f64(-50) else x
    x = f64(710) if x > f64(710) else x
    rounded = multiply_add(x, _LOG2E, _ROUND_HALF)
    p = _expm1_reduced(_minus_n_ln2(x, rounded - _ROUND_HALF))
    half = _power_of_two(rounded)
    return multiply_add(half, p, half - f64(0.5)) * f64(2)


@register_jitable
def _minus_log1p(f):
    """s and t with f - ln(1 + f) = s t for f in [sqrt(1/2) - 1, 1]."""
    s = f / (f + f64(2))
    z = s * s
    return s, multiply_add(-z, _log_rest(z), f)


@register_jitable
def log(x):
    bits = f64(x if f64(2.2250738585072014e-308) <= x < _INF else f64(1)).view(i64)
    # by way of 2^52 and without a sign, since AVX2 can neither shift nor convert 64 bits otherwise
    biased = u64(u64(bits + i64((1023 << 52) - 0x3FE6A09E667F3BCD)) >> u64(52))
    n = u64(biased | u64(0x4330000000000000)).view(f64) - (_2_52 + f64(1023))
    f = i64(bits - i64(i64(i64(biased) - i64(1023)) << i64(52))).view(f64) - f64(1)
    s, t = _minus_log1p(f)
    y = multiply_add(n, _LN2_HI, f - multiply_add(s, t, n * -_LN2_LO))
    y = -_INF if x < f64(2.2250738585072014e-308) else y
    y = y if x < _INF else x  # inf and NaN
    return f64(np.nan) if x < f64(0) else y


@register_jitable
def log1p_unit(u):
    s, t = _minus_log1p(u)
    return multiply_add(-s, t, u)


@register_jitable
def tanh(x):
    a = abs(x) * f64(2)
    a = f64(40) if a > f64(40) else a
    rounded = multiply_add(a, _LOG2E, _ROUND)
    p = _expm1_reduced(_minus_n_ln2(a, rounded - _ROUND))
    scale = _power_of_two(rounded)
    e = multiply_add(scale, p, scale - f64(1))
    y = e / (e + f64(2))
    return -y if x < f64(0) else y


@register_jitable
def sigmoid(x):
    x = -x
    x = f64(-709) if x < f64(-709) else x
    x = f64(710) if x > f64(710) else x
    rounded = multiply_add(x, _LOG2E, _ROUND)
    p = _expm1_reduced(_minus_n_ln2(x, rounded - _ROUND))
    return f64(1) / multiply_add(p + f64(1), _power_of_two(rounded), f64(1))


@register_jitable
def _gauss(a):
    """e^(-a^2 / 2) for 0 <= a <= 37.66. The top bits of a have an exact square; the rest joins after reduction."""
    top = i64(f64(a).view(i64) & i64(-0x8000000)).view(f64)
    rounded = multiply_add(a * a, f64(-0.5) * _LOG2E, _ROUND)
    r = _minus_n_ln2(top * top * f64(-0.5), rounded - _ROUND)
    p = _expm1_reduced(multiply_add((a - top) * f64(-0.5), a + top, r))
    return (p + f64(1)) * _power_of_two(rounded)


@register_jitable
def _magnitude(x):
    a = abs(x)
    return f64(37.66) if a > f64(37.66) else a


@register_jitable
def normal_cdf(x):
    a = _magnitude(x)
    tail = _gauss(a) * (_cdf_above(a) / _cdf_below(a))
    return tail if x < f64(0) else f64(1) - tail


@register_jitable
def normal_pdf(x):
    return _gauss(_magnitude(x)) * f64(0.3989422804014327)
