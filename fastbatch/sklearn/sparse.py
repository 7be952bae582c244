"""Sparse X that would not fit into memory as a dense array: rows are made dense as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse

from ..batching.sizes import as_plain, rows_at
from ..errors import ArgumentError
from .rows import Rows, weight_of

if TYPE_CHECKING:
    from .base import BaseMLP
    from .epochs import Epochs

__all__ = ["applied", "blocks", "check", "fit", "opened"]

Array = np.ndarray

# Bytes up to which X is made dense as a whole: kernels gather batches from there, which is several times as fast
DENSE_BYTES = 1 << 28

# Bytes of rows that are dense at a time where no batch says how many
BLOCK_BYTES = 1 << 25


def opened(X) -> Any:
    """`X` as an array, or as CSR rows where that would take more than DENSE_BYTES."""
    if not issparse(X):
        return X
    return X.toarray() if _row_bytes(X) * X.shape[0] <= DENSE_BYTES else X.tocsr()


def _row_bytes(X) -> int:
    return X.shape[1] * X.dtype.itemsize


def blocks(X) -> Iterator[slice]:
    """Rows to be looked at together: all of an array."""
    rows = X.shape[0]
    step = max(1, BLOCK_BYTES // _row_bytes(X)) if issparse(X) else rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def applied(function: Callable[[Array], Array], X) -> Array:
    """``function(X)`` of dense rows."""
    if not issparse(X):
        return function(X)
    return np.concatenate([function(X[rows].toarray()) for rows in blocks(X)])


def check(estimator: BaseMLP, X, policy: Any) -> None:
    """Whether :func:`fit` will do for sparse rows `X`.

    Raises
    ------
    ArgumentError
        With callbacks or ema, which are told of what happens within a fit, and batches that follow the noise scale.
    """
    asked = {"callbacks": list(estimator.callbacks) or None, "ema": estimator.ema, "batch_size": policy}
    for name, value in asked.items():
        if value is not None:
            expected = "a number or a schedule" if name == "batch_size" else "none"
            raise ArgumentError(
                f"{name}: expected {expected} with a sparse X of {_row_bytes(X) * X.shape[0] >> 20} MiB as a dense "
                f"array, which single steps are made on, got {value!r}"
            )


def fit(
    estimator: BaseMLP, rows: Rows, ours: Epochs, batch: Any, epochs: int, order: Callable[[int], Array] | None
) -> None:
    """What :meth:`fastbatch.Trainer.fit` makes of dense rows, by single steps with the same bits.

    `ours` is told of the epochs; `order` gives the rows of each, None being all as they lie.
    """
    plain = as_plain(batch)
    trainer = estimator._optimizer.trainer
    ours.trainer, trainer.stop_training = trainer, False
    dense = np.empty((0, rows.X.shape[1]), rows.X.dtype)
    for epoch in range(epochs):
        ours.on_epoch_begin(epoch, {})
        visited = np.arange(len(rows)) if order is None else order(epoch)
        size = min(rows_at(plain, trainer.epochs), len(visited))
        if size > len(dense):
            dense = np.empty((size, dense.shape[1]), dense.dtype)
        loss, counted = 0.0, 0
        for start in range(0, len(visited), size):
            part = rows.take(visited[start : start + size])
            inputs = part.X.toarray(out=dense[: len(part)])
            # weights of rows count within a batch only, as in scikit-learn
            loss += len(part) * trainer.step(inputs, part.targets, part.weight)
            if weight_of(part, trainer.loss) > 0:
                counted += len(part)
        trainer.epochs += 1
        ours.on_epoch_end(epoch, {"loss": loss / max(counted, 1)})
        if trainer.stop_training:
            return
