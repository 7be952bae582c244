"""Activations: what each name means, in NumPy.

A row gives ``value(z)`` and ``slope(saved)``, where `saved` is what ``saves`` names: the activation ``"a"``, the
pre-activation ``"z"``, or nothing. Functions keep the dtype of their argument and let NaN through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .formula import Formula

__all__ = ["ACTIVATIONS", "SYNONYMS", "Activation"]

Array = np.ndarray


@dataclass(frozen=True)
class Activation:
    """One row of the registry.

    Attributes
    ----------
    name : str
    value : callable
        ``a = value(z)``.
    slope : callable
        ``da/dz = slope(saved)``; at a kink the right-hand choice of torch.
    saves : {"none", "a", "z"}
        What the backward pass needs.
    gain : {"he", "glorot"}
        The initialization that ``init="auto"`` picks for a layer followed by this activation.
    kinks : tuple of float
        Points where the derivative jumps; difference checks stay away from them.
    ulp : float
        Budget for an implementation in either dtype, in units in the last place of ``max(|a|, |z| |slope|)``.
    formula : Formula or None
        Of one of a user's own.
    """

    name: str
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    saves: str
    gain: str
    kinks: tuple[float, ...] = ()
    ulp: float = 8.0
    formula: Formula | None = None


def _sigmoid(z: Array) -> Array:
    # exp of a non-positive number on both sides: no overflow, full relative accuracy for z << 0
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e)).astype(z.dtype, copy=False)


def _softplus(z: Array) -> Array:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _normal_cdf(z: Array) -> Array:
    # erfc keeps relative accuracy in the left tail, where 1 + erf cancels
    flat = (-z.astype(np.float64) * math.sqrt(0.5)).ravel().tolist()
    return np.array([0.5 * math.erfc(v) for v in flat], np.float64).reshape(z.shape)


def _gelu(z: Array) -> Array:
    return (z * _normal_cdf(z)).astype(z.dtype)


def _gelu_slope(z: Array) -> Array:
    wide = z.astype(np.float64)
    return (_normal_cdf(z) + wide * np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)).astype(z.dtype)


_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715


def _gelu_tanh(z: Array) -> Array:
    # z (1 + tanh u) / 2 = z sigmoid(2u): the same function without the cancellation at u << 0 (arXiv:1606.08415)
    return z * _sigmoid(2 * _TANH_SCALE * (z + _TANH_CUBIC * z**3))


def _gelu_tanh_slope(z: Array) -> Array:
    z = np.clip(z, -1e4, 1e4)  # where the slope is 0 or 1 already; z^2 overflows later, beside a factor that is 0
    s = _sigmoid(2 * _TANH_SCALE * (z + _TANH_CUBIC * z**3))
    return s + z * s * (1 - s) * 2 * _TANH_SCALE * (1 + 3 * _TANH_CUBIC * z * z)


def _silu_slope(z: Array) -> Array:
    s = _sigmoid(z)
    return s * (1 + z * (1 - s))


def _piecewise(condition: Array, a: Array | float, b: Array | float, like: Array) -> Array:
    return np.where(condition, a, b).astype(like.dtype, copy=False)


_LEAK = 0.01

_ROWS = (
    Activation("identity", lambda z: z, np.ones_like, "none", "glorot", ulp=0),
    Activation(
        "relu", lambda z: np.maximum(z, 0), lambda a: _piecewise(a > 0, 1, 0, a), "a", "he", kinks=(0.0,), ulp=0
    ),
    Activation(
        "leaky_relu",
        lambda z: np.where(z > 0, z, _LEAK * z).astype(z.dtype),
        lambda a: _piecewise(a > 0, 1, _LEAK, a),
        "a",
        "he",
        kinks=(0.0,),
        ulp=1,
    ),
    Activation(
        "elu",
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda a: _piecewise(a > 0, 1, a + 1, a),
        "a",
        "he",
    ),
    Activation("tanh", np.tanh, lambda a: 1 - a * a, "a", "glorot"),
    Activation("sigmoid", _sigmoid, lambda a: a * (1 - a), "a", "glorot"),
    Activation("softplus", _softplus, _sigmoid, "z", "he"),
    Activation("gelu", _gelu, _gelu_slope, "z", "he", ulp=24),
    Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_slope, "z", "he", ulp=24),
    Activation("silu", lambda z: z * _sigmoid(z), _silu_slope, "z", "he"),
)

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}
SYNONYMS = {"linear": "identity", "logistic": "sigmoid", "swish": "silu"}
