"""Splits into a training and a validation part."""

from __future__ import annotations

import numpy as np

from ..errors import ArgumentError
from ..ops.random import generator

__all__ = ["validation_split"]

_STREAM = 1_000_003  # keeps the split's draws apart from those of the initial weights


def validation_split(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random split of the rows; for integer labels (n,) each class is split in the same proportion.

    Parameters
    ----------
    y : (n,) ndarray of int64, or (n, O) ndarray
    share : float
        Of the rows that go to validation, in (0, 1).
    seed : int

    Returns
    -------
    training, validation : ndarray of int64
        Ascending row indices.

    Raises
    ------
    ArgumentError
        When one of the parts would be empty.
    """
    n = len(y)
    order = generator(seed, _STREAM).permutation(n)
    wanted = round(n * share)
    if not 0 < wanted < n:
        raise ArgumentError(f"validation_split: expected at least one row in each part, got {wanted} of {n} rows")
    if y.ndim == 1:
        # rank of a row inside its class, as a fraction; the lowest fractions over all classes go to validation
        by_class = order[np.argsort(y[order], kind="stable")]
        _, first, count = np.unique(y[by_class], return_index=True, return_counts=True)
        rank = np.arange(n) - np.repeat(first, count)
        fraction = (rank + 0.5) / np.repeat(count, count)
        order = by_class[np.argsort(fraction, kind="stable")]
    return np.sort(order[wanted:]), np.sort(order[:wanted])
