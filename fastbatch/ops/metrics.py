"""Metrics: numbers reported beside the loss, weighted where rows are weighted.

Each means what scikit-learn's function of that name does with ``sample_weight``, on the rows whose weight is not 0.
Outputs are logits: a decision is the largest one (cross_entropy) or the sign of each (bce, focal); targets that are no
labels count as their largest class, or as positive above 1/2. precision, recall and f1 are macro averages without a
suffix, and of binary outputs those over outputs. What has no value is 0 (``zero_division=0``: a class that was never
decided has precision 0, a mean over no rows is 0) or, for auc and r2, NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .losses import Loss

__all__ = ["METRICS", "Metric", "as_given", "custom", "measure", "top_k"]

Array = np.ndarray
Metric = Callable[[Array, Array, "Array | None", Loss], Any]  # of outputs, targets, row weights and loss


def measure(metrics: Mapping[str, Metric], a: Array, y: Array, weight: Array | None, loss: Loss) -> dict[str, Any]:
    """Metrics of outputs `a` (n, O) against targets `y`; a float each, an array for "confusion".

    Raises
    ------
    ArgumentError
        When a user's function returns something that is not a number.
    """
    if weight is not None and metrics and not weight.all():
        kept = np.flatnonzero(weight)
        a, y, weight = a[kept], y[kept], weight[kept]
    return {name: function(a, y, weight, loss) for name, function in metrics.items()}


def custom(function: Callable[[Array, Array], float]) -> Metric:
    """The metric of a user's ``function(y_true, y_pred)``, which is not told of weights; NaN of no rows."""
    return partial(_custom, function=function)


def as_given(name: str, metric: Metric) -> str | Callable:
    """What a trainer was given: the name, or the user's function."""
    if isinstance(metric, partial) and metric.func is _custom:
        return metric.keywords["function"]
    return name


def _custom(a: Array, y: Array, weight: Array | None, loss: Loss, function: Callable) -> float:
    value = function(y, a) if len(a) else float("nan")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"metrics: expected a number from {function.__name__}, got {value!r}") from error


def _mean(rows: Array, weight: Array | None) -> float:
    """Weighted mean of `rows` (n,); 0 of no rows."""
    if len(rows) == 0:
        return 0.0
    if weight is None:
        return float(rows.mean())
    return float(rows @ weight.astype(np.float64) / weight.sum(dtype=np.float64))


def _labels(y: Array) -> Array:
    return y if y.ndim == 1 else y.argmax(axis=1)


def _accuracy(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    """Share of right decisions; of elements where every output is one (bce)."""
    if loss.targets == "binary":
        return _mean(((a > 0) == (y > 0.5)).mean(axis=1), weight)
    return _mean(a.argmax(axis=1) == _labels(y), weight)


def _top_k(a: Array, y: Array, weight: Array | None, loss: Loss, k: int) -> float:
    """Share of rows whose label is among the k largest outputs; of equal ones the first counts as larger."""
    label = _labels(y)[:, None]
    own = np.take_along_axis(a, label, axis=1)
    before = (a > own) | ((a == own) & (np.arange(a.shape[1]) < label))
    return _mean(before.sum(axis=1) < k, weight)


def top_k(k: int) -> Metric:
    """The metric of "top_<k>"."""
    return partial(_top_k, k=k)


def _confusion(a: Array, y: Array, weight: Array | None, loss: Loss) -> Array:
    """Weight of rows by label (down) and decision (across): (K, K), (2, 2) for one binary output, (O, 2, 2) for O."""
    if loss.targets == "classes":
        return _table(_labels(y), a.argmax(axis=1), weight, a.shape[1])
    tables = [_table(t, p, weight, 2) for t, p in zip((y > 0.5).T, (a > 0).T)]
    return tables[0] if len(tables) == 1 else np.stack(tables)


def _table(label: Array, decision: Array, weight: Array | None, classes: int) -> Array:
    cells = np.bincount(label.astype(np.int64) * classes + decision, weight, minlength=classes * classes)
    return cells.reshape(classes, classes)


def _decisions(a: Array, y: Array, weight: Array | None, loss: Loss) -> tuple[Array, Array, Array]:
    """Weight of what is right, of what was decided and of what was there, by class or by binary output.

    A class that neither `y` nor a decision holds is left out; a binary output never is.
    """
    table = _confusion(a, y, weight, loss)
    if loss.targets == "classes":
        right, decided, there = np.diagonal(table), table.sum(axis=0), table.sum(axis=1)
        seen = (decided > 0) | (there > 0)
        return right[seen], decided[seen], there[seen]
    table = table.reshape(-1, 2, 2)
    return table[:, 1, 1], table[:, 0, 1] + table[:, 1, 1], table[:, 1].sum(axis=1)


def _ratio(above: Array, below: Array) -> Array:
    """`above` / `below`, 0 where that is 0 / 0."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


def _score(a: Array, y: Array, weight: Array | None, loss: Loss, kind: str, average: str) -> float:
    """precision, recall or f1, averaged over classes or binary outputs."""
    right, decided, there = _decisions(a, y, weight, loss)
    support = there
    if average == "micro":
        right, decided, there = right.sum(keepdims=True), decided.sum(keepdims=True), there.sum(keepdims=True)
    scores = {
        "precision": lambda: _ratio(right, decided),
        "recall": lambda: _ratio(right, there),
        "f1": lambda: _ratio(2 * right, decided + there),
    }[kind]()
    if average == "weighted":
        return float(_ratio(scores @ support, support.sum()))
    return _mean(scores, None)


def _auc(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    """Area under the ROC curve: of a binary output, else the mean over outputs, or over classes against the rest.

    The mean leaves out what has no positive or no negative row; NaN where nothing is left.
    """
    if loss.targets == "classes":
        positive, scores = _labels(y)[:, None] == np.arange(a.shape[1]), loss.probabilities(a.astype(np.float64))
    else:
        positive, scores = y > 0.5, a
    weight = np.ones(len(a)) if weight is None else weight.astype(np.float64)
    areas = [area for p, s in zip(positive.T, scores.T) if not np.isnan(area := _area(p, s, weight))]
    return float(np.mean(areas)) if areas else float("nan")


def _area(positive: Array, score: Array, weight: Array) -> float:
    """Share of pairs of a positive and a negative row, by weight, that `score` puts in order; equal scores half."""
    _, place = np.unique(score, return_inverse=True)
    ones, zeros = np.bincount(place, weight * positive), np.bincount(place, weight * ~positive)
    pairs = ones.sum() * zeros.sum()
    return float(ones @ (np.cumsum(zeros) - zeros / 2) / pairs) if pairs > 0 else float("nan")


def _mse(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    return _mean(np.square(loss.predicted(a) - y).mean(axis=1), weight)


def _mae(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    return _mean(np.abs(loss.predicted(a) - y).mean(axis=1), weight)


def _r2(a: Array, y: Array, weight: Array | None, loss: Loss) -> float:
    """1 - squared error / variance, mean over outputs; of a constant target 1 when met exactly, else 0.

    NaN for fewer than two rows.
    """
    if len(a) < 2:
        return float("nan")
    y = y.astype(np.float64)
    w = np.full(len(y), 1 / len(y)) if weight is None else weight / weight.sum()
    error, spread = w @ np.square(loss.predicted(a) - y), w @ np.square(y - w @ y)
    spread[y.min(axis=0) == y.max(axis=0)] = 0  # which a rounded mean would hide
    explained = 1 - np.divide(error, spread, out=(error > 0).astype(np.float64), where=spread > 0)
    return float(explained.mean())


_VALUES, _CLASSES, _DECISIONS = ("values", "counts", "positive"), ("classes",), ("classes", "binary")

# name -> (function, the kinds of target it is defined for)
METRICS: dict[str, tuple[Metric, tuple[str, ...]]] = {
    "accuracy": (_accuracy, _DECISIONS),
    "top_k": (top_k(5), _CLASSES),
    **{
        kind + suffix: (partial(_score, kind=kind, average=average), _DECISIONS)
        for kind in ("precision", "recall", "f1")
        for suffix, average in (("", "macro"), ("_micro", "micro"), ("_weighted", "weighted"))
    },
    "auc": (_auc, _DECISIONS),
    "confusion": (_confusion, _DECISIONS),
    "mse": (_mse, _VALUES),
    "mae": (_mae, _VALUES),
    "r2": (_r2, _VALUES),
}
