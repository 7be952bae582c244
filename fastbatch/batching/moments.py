"""First and second moments of rows' gradients, from sums that a pass over the rows leaves."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..plan import Plan
from ..protocol import Feed, PerSample, Program

__all__ = ["add_batch", "add_rows", "interval", "moments", "quantile", "square", "squares_of", "sums_of"]

Array = np.ndarray


def squares_of(program: Program, plan: Plan, feed: Feed, first_row: int, gradient: Array) -> Array:
    """Of each row of `feed` its weight w and |w g|^2 (2, n), where g is its gradient.

    The sum of w g is added to `gradient` (N,). Class weights count as row weights; frozen parameters are in no |g|^2.

    Raises
    ------
    ArgumentError
        When the optimizer freezes some tensors of norm layers and not others: rows' norms are not taken apart so far.
    """
    trained = {name: setting is not None for name, setting in plan.settings.items()}
    dense = sum(name.endswith(".w") for name in trained)
    norms = {part for name, part in trained.items() if name.startswith("norm")}
    if len(norms) > 1:
        raise ArgumentError("noise scale: expected the norm layers frozen all or none, got some of their tensors")
    weights, biases = ([trained.get(f"{layer}.{kind}", False) for layer in range(dense)] for kind in "wb")
    inputs, deltas = np.empty((2, dense, feed.rows))
    squares, weight = np.empty((2, feed.rows))
    asked = PerSample(weight=weight, input_norms=inputs, delta_norms=deltas, norm_norms=squares)
    program.accumulate(feed, first_row, gradient, rows=asked)
    squares *= norms == {True}
    # a bias is a weight whose input is 1
    squares += ((inputs * np.array(weights)[:, None] + np.array(biases)[:, None]) * deltas).sum(axis=0)
    return np.stack([weight, squares])


def sums_of(rows: Array) -> Array:
    """n, sum w, sum w^2 and sum |w g|^2 of all rows together: of pieces one by one the last bits would differ."""
    weight, squares = rows
    return np.array([len(weight), weight.sum(), np.square(weight).sum(), squares.sum()])


def add_rows(program: Program, plan: Plan, feed: Feed, first_row: int, gradient: Array) -> Array:
    """The sums of the rows of `feed`, each a sample, and into `gradient` (N,) that of their gradients."""
    return sums_of(squares_of(program, plan, feed, first_row, gradient))


def add_batch(program: Program, plan: Plan, feed: Feed, first_row: int, gradient: Array) -> Array:
    """The same with the whole of `feed` as one sample of its total weight: for norms over rows.

    `gradient` (N,) must be zeros.
    """
    weight = program.accumulate(feed, first_row, gradient).weight
    return np.array([feed.rows, weight, weight**2, square(plan, gradient)])


def square(plan: Plan, a: Array, b: Array | None = None) -> float:
    """``a @ a``, or ``a @ b``, over the parameters that are trained, summed in float64; inf beyond its range."""
    total = 0.0
    for segment in plan.segments:
        one = a[segment.begin : segment.end].astype(np.float64)
        other = one if b is None else b[segment.begin : segment.end].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            total += float((one * other).sum())  # pairwise: np.dot sums in the order of somebody's threads
    return total


def moments(sums: Any, squared_sum: Any, population: float) -> tuple[Any, Any]:
    """Unbiased estimates of tr Sigma and |G|^2 from sums as :func:`add_rows` gives and the square of the gradient sum.

    |G|^2 is the mean of ``g_i @ g_j`` over all pairs i != j, by the products of their weights, and tr Sigma is n times
    what the square of the weighted mean gradient of the n rows has above it. At weight 1, with mean square norm s and
    mean gradient of square q, these are ``(n q - s) / (n - 1)`` and ``(s - q) n / (n - 1)``: McCandlish et al. 2018,
    appendix A.1, at B_small = 1. Of rows drawn without replacement from `population` the mean gradient of these is
    meant, and q exceeds its square by ``(1 / n - 1 / population) tr Sigma``.
    """
    rows, weight, squared_weight, squares = sums
    with np.errstate(all="ignore"):
        q = squared_sum / weight**2
        noise = (squares - squared_weight * q) / (weight**2 - squared_weight)
        return rows * noise, q - (1 - rows / population) * noise


def quantile(level: float, freedom: int) -> float:
    """Of Student's t, two-sided: Abramowitz and Stegun 26.7.5; within 1e-3 of it from 7 degrees of freedom on."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def interval(trace: float, norm: float, covariance: Array, width: float) -> tuple[float, float]:
    """Fieller's interval of ``trace / norm``: the ratios r >= 0 with ``|trace - r norm| <= width`` deviations.

    It ends at infinity where `norm` is within `width` deviations of 0.
    """
    (v, c), (_, u) = (width**2 * covariance).tolist()
    # a r^2 - 2 b r + d <= 0
    a, b, d = norm**2 - u, trace * norm - c, trace**2 - v
    root = math.sqrt(max(b * b - a * d, 0.0))
    if a > 0 and norm > 0:
        return max(0.0, (b - root) / a), max(0.0, (b + root) / a)
    if a < 0 < d:  # between a negative root and a positive one lie the ratios that are left out
        return (b - root) / a, math.inf
    return 0.0, math.inf
