"""What inputs are multiplied by and shifted to."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

__all__ = ["standardization"]

# elements looked at together: a few megabytes of float64
_BLOCK = 1 << 18

# A column whose standard deviation is below this share of its mean is constant but for rounding.
_CONSTANT = 1e-12


def standardization(x: np.ndarray, rows: np.ndarray | int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift that give a column of `x` mean 0 and standard deviation 1 over `rows`; a constant one becomes 0.

    Parameters
    ----------
    x : (n, I) ndarray of any real dtype
    rows : int or (m,) ndarray of int64
        Number of rows, or the indices of those that count.
    dtype : str
        Of the result.

    Returns
    -------
    scale, shift : (I,) ndarray
        Mean and squared deviations are summed in float64, block by block, and merged as in [1]_; divided by the number
        of rows, as scikit-learn's StandardScaler does.

    Raises
    ------
    DataError
        When the mean or deviation of a column is not finite, or too small or large for `dtype`.

    References
    ----------
    .. [1] T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
       1979.
    """
    total = rows if isinstance(rows, int) else len(rows)
    mean, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    block = max(1, _BLOCK // x.shape[1])
    with np.errstate(all="ignore"):
        for start in range(0, total, block):
            index = slice(start, min(start + block, total))
            part = x[index if isinstance(rows, int) else rows[index]].astype(np.float64)
            new = part.mean(axis=0)
            part -= new
            apart, share = new - mean, len(part) / (start + len(part))
            squares += np.einsum("ij,ij->j", part, part) + apart * apart * (start * share)
            mean += apart * share
        deviation = np.sqrt(squares / total)
        constant = deviation <= _CONSTANT * np.abs(mean)
        scale = (1 / np.where(constant, 1, deviation)).astype(dtype)
        shift = (-mean * scale.astype(np.float64)).astype(dtype)
    bad = ~(np.isfinite(scale) & np.isfinite(shift) & (scale > 0))
    if bad.any():
        column = int(np.argmax(bad))
        raise DataError(
            f"input_scale='standardize': expected columns that {dtype} can standardize, got mean {mean[column]} and "
            f"standard deviation {deviation[column]} in column {column} of X"
        )
    return scale, shift
