"""Orders: which row comes when."""

from __future__ import annotations

import numpy as np

from ..backends import get
from ..ops.random import draws

__all__ = ["epoch_order"]


def epoch_order(
    rows: np.ndarray | int, seed: int, epoch: int, shuffle: bool, backend: str, cumulative: np.ndarray | None = None
) -> np.ndarray | None:
    """Order of one epoch, or None where rows are visited as they lie.

    Parameters
    ----------
    rows : int or (m,) ndarray of int64
        Number of rows, or the indices of those that belong to the training part.
    seed, epoch : int
        The shuffle is a function of these two and the number of rows.
    shuffle : bool
    backend : str
        Whose implementation of the one permutation to use.
    cumulative : (m,) ndarray of float64, optional
        Running sum of weights: as many rows are drawn with replacement in proportion to them.
    """
    if not shuffle:
        return None if isinstance(rows, int) else rows
    n = rows if isinstance(rows, int) else len(rows)
    order = get(backend).permutation(n, seed, epoch)
    if cumulative is not None:
        order = draws(cumulative, n, seed, epoch)[order]
    return order if isinstance(rows, int) else rows[order]
