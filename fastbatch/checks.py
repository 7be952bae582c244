"""The door: arguments become arrays that kernels can trust, or an error that says expected, got and where.

Every check happens before anything is changed. Messages carry the path of the offending thing.
"""

from __future__ import annotations

import math

import numpy as np

from . import ops
from .errors import ArgumentError, DataError, DTypeError, ShapeError

__all__ = [
    "as_batch_size",
    "as_class_weight",
    "as_inputs",
    "as_targets",
    "as_weight",
    "check_finite",
    "check_outputs",
    "count",
    "first_nonfinite",
    "flag",
    "fraction",
]

Array = np.ndarray

# rows looked at together when scanning for NaN: bounds the temporary to a few megabytes
_SCAN = 1 << 19


def _as_array(value, where: str) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{where}: expected a rectangular array, got rows of different lengths") from error


def _real(value, where: str) -> Array:
    array = _as_array(value, where)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"{where}: expected a real or integer dtype, got {array.dtype}")
    return array


def _convert(array: Array, dtype: str) -> Array:
    """`array` in `dtype` with unit inner stride; a view where it already is."""
    array = array.astype(dtype, copy=False)
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    inner = array.strides[-1] if array.ndim and array.size else array.itemsize
    if inner == array.itemsize and array.flags.aligned and all(s >= 0 for s in array.strides):
        return array
    return array.copy(order="C")


def as_inputs(value, width: int, dtype: str, where: str = "X", layer: str = "", empty: bool = False) -> Array:
    """Inputs as (n, `width`) of `dtype`, rows contiguous; `empty` admits n = 0.

    Raises
    ------
    ShapeError, DTypeError
    """
    array = _real(value, where)
    if array.ndim != 2 or array.shape[1] != width:
        hint = f"; for one row use {where}[None, :], for one feature {where}[:, None]" if array.ndim == 1 else ""
        raise ShapeError(f"{where}: expected shape (n, {width}), got {array.shape}{layer and ': ' + layer}{hint}")
    if not empty and len(array) == 0:
        raise ShapeError(f"{where}: expected at least 1 row, got shape {array.shape}")
    return _convert(array, dtype)


def as_targets(value, loss: ops.Loss, rows: int, outputs: int, dtype: str, where: str = "y") -> Array:
    """Targets as the loss takes them: (n,) int64 labels, or (n, O) of `dtype`.

    Raises
    ------
    ShapeError, DTypeError
    DataError
        For labels outside 0 .. O-1, floats that are not whole numbers, or numbers outside [0, 1].
    """
    array = _real(value, where)
    if array.ndim == 0 or len(array) != rows:
        raise ShapeError(f"{where}: expected {rows} rows as in X, got shape {array.shape}")
    if loss.targets == "classes":
        if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1 and outputs != 1):
            return _as_labels(array.reshape(rows), outputs, loss, where)
        if array.shape != (rows, outputs):
            raise ShapeError(
                f"{where}: expected labels ({rows},) or distributions ({rows}, {outputs}) "
                f"for {loss.name}, got shape {array.shape}"
            )
        if array.size and (array.min() < 0 or array.max() > 1):
            raise DataError(f"{where}: expected probabilities in [0, 1] for {loss.name}, got {_outside(array)}")
        return _convert(array, dtype)
    if array.shape != (rows, outputs) and not (outputs == 1 and array.shape == (rows,)):
        either = f"({rows},) or " if outputs == 1 else ""
        raise ShapeError(f"{where}: expected shape {either}({rows}, {outputs}) for {loss.name}, got {array.shape}")
    if loss.targets == "binary" and array.size and (array.min() < 0 or array.max() > 1):
        raise DataError(f"{where}: expected numbers in [0, 1] for {loss.name}, got {_outside(array)}")
    return _convert(array.reshape(rows, outputs), dtype)


def check_outputs(loss: ops.Loss, outputs: int) -> None:
    """ShapeError when the loss carries weights for another number of outputs."""
    weights = loss.per_output
    if weights is not None and len(weights) not in (1, outputs):
        raise ShapeError(f"{loss.name}: expected {outputs} weights, one per output, got {len(weights)}")


def _outside(array: Array) -> str:
    return f"values from {array.min()} to {array.max()}"


def _as_labels(array: Array, classes: int, loss: ops.Loss, where: str) -> Array:
    if array.dtype.kind == "f":
        whole = array == np.floor(array)
        if not whole.all():
            row = int(np.argmin(whole))
            raise DataError(f"{where}: expected integer labels for {loss.name}, got {array[row]} in row {row}")
    if array.size and (array.min() < 0 or array.max() >= classes):
        row = int(np.argmax((array < 0) | (array >= classes)))
        raise DataError(f"{where}: expected labels 0 .. {classes - 1} for {loss.name}, got {array[row]} in row {row}")
    return np.ascontiguousarray(array, np.int64)


def as_weight(value, rows: int, where: str = "sample_weight") -> Array | None:
    """Row weights as (n,) of float64, or None.

    Raises
    ------
    ShapeError, DTypeError
    DataError
        For a negative or non-finite weight.
    """
    if value is None:
        return None
    array = _real(value, where)
    if array.shape != (rows,):
        raise ShapeError(f"{where}: expected shape ({rows},), got {array.shape}")
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{where}: expected finite weights >= 0, got {array[row]} in row {row}")
    weight = np.ascontiguousarray(array, np.float64)
    top = weight.max(initial=0)
    if top and not 2.0**-64 < top < 2.0**64:
        # only ratios matter, and float32 would lose such numbers; a power of two changes no bit of the results
        weight = np.ldexp(weight, -np.frexp(top)[1])
    return weight


def as_class_weight(value, y: Array, loss: ops.Loss, outputs: int) -> Array | None:
    """Row weights (n,) of float64 from ``class_weight``.

    A dict, where a missing class counts 1, or "balanced": n / (K * count) over the K classes present.

    Raises
    ------
    ArgumentError
        When the targets are not integer labels, or a class or weight is out of range.
    """
    if value is None:
        return None
    where = "class_weight"
    if loss.targets == "classes" and y.ndim == 1:
        labels, classes = y, outputs
    elif loss.targets == "binary" and outputs == 1:
        labels, classes = (y[:, 0] > 0.5).astype(np.int64), 2
    else:
        raise ArgumentError(f"{where}: expected integer labels in y, got {loss.name} with targets of shape {y.shape}")
    if isinstance(value, str):
        if value != "balanced":
            raise ArgumentError(f"{where}: expected a dict or 'balanced', got {value!r}")
        counts = np.bincount(labels, minlength=classes)
        present = np.count_nonzero(counts)
        return (len(labels) / (present * np.maximum(counts, 1)))[labels]
    table = np.ones(classes)
    try:
        items = list(value.items())
    except AttributeError:
        raise ArgumentError(f"{where}: expected a dict or 'balanced', got {type(value).__name__}") from None
    for label, weight in items:
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
            raise ArgumentError(f"{where}: expected classes 0 .. {classes - 1}, got {label!r}")
        if not isinstance(weight, (int, float, np.number)) or not math.isfinite(weight) or weight < 0:
            raise ArgumentError(f"{where}: expected finite weights >= 0, got {weight!r} for class {label}")
        table[label] = weight
    return table[labels]


def first_nonfinite(array: Array) -> tuple[int, ...] | None:
    """Index of the first NaN or Inf, or None. One pass; memory bounded by a block."""
    if array.dtype.kind != "f" or array.size == 0:
        return None
    block = max(1, _SCAN // max(1, array[0].size))
    for start in range(0, len(array), block):
        part = array[start : start + block]
        # NaN and Inf survive a sum; one in double cannot overflow for float32, and is looked at again if it does
        if math.isfinite(part.sum(dtype=np.float64)):
            continue
        bad = ~np.isfinite(part)
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            return (start + int(index[0]), *map(int, index[1:]))
    return None


def check_finite(array: Array, where: str) -> None:
    """DataError when `array` holds NaN or Inf; names the first place."""
    index = first_nonfinite(array)
    if index is not None:
        place = f"row {index[0]}" + (f", column {index[1]}" if len(index) > 1 else "")
        raise DataError(f"{where}: expected finite numbers, got {array[index]} in {place}")


def as_batch_size(value, rows: int) -> int:
    """``batch_size`` as a number of rows: an int >= 1, capped at `rows`, or "full"."""
    if value == "full" and isinstance(value, str):
        return rows
    return min(count("batch_size", value, 'an integer >= 1 or "full"'), rows)


def count(where: str, value, expected: str = "an integer >= 1", least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{where}: expected {expected}, got {value!r}")
    return int(value)


def fraction(where: str, value) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value < 1:
        raise ArgumentError(f"{where}: expected a number in [0, 1), got {value!r}")
    return float(value)


def flag(where: str, value) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{where}: expected True or False, got {value!r}")
    return bool(value)
