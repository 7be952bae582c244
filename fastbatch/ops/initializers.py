"""Initial weights by name. Biases start at zero."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

__all__ = ["INITIALIZERS"]

Initializer = Callable[["np.random.Generator", int, int], np.ndarray]  # quoted: numpy.random costs 10 ms to import


def _normal(variance: Callable[[int, int], float]) -> Initializer:
    return lambda rng, i, o: rng.standard_normal((i, o)) * sqrt(variance(i, o))


def _uniform(variance: Callable[[int, int], float]) -> Initializer:
    def draw(rng: np.random.Generator, i: int, o: int) -> np.ndarray:
        limit = sqrt(3 * variance(i, o))
        return rng.uniform(-limit, limit, (i, o))

    return draw


def _orthogonal(rng: np.random.Generator, i: int, o: int) -> np.ndarray:
    # Saxe et al., arXiv:1312.6120; the sign of R's diagonal makes the distribution uniform over orthogonal matrices
    q, r = np.linalg.qr(rng.standard_normal((max(i, o), min(i, o))))
    q *= np.sign(np.diag(r))
    return q if i >= o else q.T


def _he(i: int, o: int) -> float:
    return 2 / i


def _glorot(i: int, o: int) -> float:
    return 2 / (i + o)


def _lecun(i: int, o: int) -> float:
    return 1 / i


# name -> draw(rng, I, O) in float64; He et al. 2015, Glorot & Bengio 2010, LeCun et al. 1998
INITIALIZERS: dict[str, Initializer] = {
    "he_normal": _normal(_he),
    "he_uniform": _uniform(_he),
    "glorot_normal": _normal(_glorot),
    "glorot_uniform": _uniform(_glorot),
    "lecun_normal": _normal(_lecun),
    "lecun_uniform": _uniform(_lecun),
    "orthogonal": _orthogonal,
    "zeros": lambda rng, i, o: np.zeros((i, o)),
}
# what init="auto" draws for the gain that an activation asks for
AUTO = {"he": "he_uniform", "glorot": "glorot_uniform"}
