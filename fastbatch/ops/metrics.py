"""Metrics: numbers reported beside the loss, weighted where rows are weighted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .losses import Loss

__all__ = ["METRICS"]

Array = np.ndarray


def _mean(rows: Array, weight: Array | None) -> float:
    if weight is None:
        return float(rows.mean())
    total = weight.sum(dtype=np.float64)
    return float(rows @ weight.astype(np.float64) / total) if total else 0.0


def _accuracy(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    """Share of right decisions: the largest output against the label, or each element on its side of 1/2 (bce)."""
    if loss.targets == "binary":
        right = ((a > 0) == (y > 0.5)).mean(axis=1)
    else:
        right = a.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))
    return _mean(right, weight)


def _mse(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    return _mean(np.square(np.subtract(a, y, dtype=np.float64)).mean(axis=1), weight)


def _mae(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    return _mean(np.abs(np.subtract(a, y, dtype=np.float64)).mean(axis=1), weight)


# name -> (function(outputs, targets, row weights, loss) -> float, the kinds of target it is defined for)
METRICS: dict[str, tuple[Callable[[Array, Array, Array | None, Loss], float], tuple[str, ...]]] = {
    "accuracy": (_accuracy, ("classes", "binary")),
    "mse": (_mse, ("values",)),
    "mae": (_mae, ("values",)),
}
