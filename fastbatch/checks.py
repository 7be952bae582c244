"""The door: arguments become arrays that kernels can trust, or an error that says expected, got and where.

Every check happens before anything is changed. Messages carry the path of the offending thing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from . import ops
from .arrays import NUMBERS, DeviceRows, as_array, is_foreign
from .errors import ArgumentError, DataError, DTypeError, ShapeError, as_float

__all__ = [
    "DTYPES",
    "SOURCES",
    "as_array",
    "as_dtype",
    "as_given",
    "as_inputs",
    "as_order",
    "as_real",
    "as_rows",
    "as_scale",
    "as_targets",
    "as_weight",
    "batch_size",
    "check_finite",
    "check_outputs",
    "class_factors",
    "class_table",
    "count",
    "first_nonfinite",
    "flag",
    "fraction",
    "is_foreign",
    "labels_of",
    "leave_out",
    "limit",
    "normalised",
    "number",
    "seed",
    "weight_unit",
]

Array = np.ndarray

DTYPES = ("float32", "float64")

# What backends read as it lies, in native byte order and aligned.
SOURCES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_SOURCE_DTYPES = frozenset(map(np.dtype, SOURCES))

# rows looked at together when scanning for NaN: bounds the temporary to a few megabytes
_SCAN = 1 << 19


def as_real(value, where: str) -> Array:
    """`value` as an array of a real or integer dtype; ShapeError for ragged rows, DTypeError for anything else."""
    array = as_array(value, where)
    if array.dtype.kind not in NUMBERS:
        got = str(array.dtype)
        if hasattr(value, "tocsr"):
            got = f"a sparse {type(value).__name__}; .toarray() makes it dense"
        elif hasattr(value, "collect"):
            got = f"a {type(value).__name__}; .collect() makes it a table"
        raise DTypeError(f"{where}: expected a real or integer dtype, got {got}")
    return array


def _convert(array: Array, dtype: str) -> Array:
    """`array` in `dtype` with unit inner stride; a view where it already is."""
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes Inf, for check_finite to report
        array = array.astype(dtype, copy=False)
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    inner = array.strides[-1] if array.ndim and array.size else array.itemsize
    if inner == array.itemsize and array.flags.aligned and all(s >= 0 for s in array.strides):
        return array
    return array.copy(order="C")


def as_rows(value, width: int, dtype: str, where: str = "X", layer: str = "", empty: bool = False) -> Array:
    """Inputs as (n, `width`), as they lie: of a dtype in SOURCES, with any strides; `empty` admits n = 0.

    What backends cannot read (another dtype or byte order, elements off their alignment) comes out in `dtype`.

    Raises
    ------
    ShapeError, DTypeError
    """
    array = as_real(value, where)
    if array.ndim != 2 or array.shape[1] != width:
        hint = f"; for one row use {where}[None, :], for one feature {where}[:, None]" if array.ndim == 1 else ""
        if array.ndim > 2 and math.prod(array.shape[1:]) == width:
            hint = f"; {where}.reshape(len({where}), -1) makes rows of these"
        raise ShapeError(f"{where}: expected shape (n, {width}), got {array.shape}{layer and ': ' + layer}{hint}")
    if not empty and len(array) == 0:
        raise ShapeError(f"{where}: expected at least 1 row, got shape {array.shape}")
    if array.dtype in _SOURCE_DTYPES and array.flags.aligned:
        return array
    return _convert(array, dtype)


def as_given(value, width: int, dtype: str, where: str = "X") -> Array:
    """Inputs that need no conversion: no look at more than what kernels rely on.

    Raises
    ------
    ShapeError, DTypeError
    """
    expected = f"{where} with validate=False: expected a C-contiguous {dtype} ndarray of shape (n, {width})"
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise DTypeError(f"{expected}, got {getattr(value, 'dtype', type(value).__name__)}")
    if value.ndim != 2 or value.shape[1] != width or not (value.flags.c_contiguous and value.flags.aligned):
        raise ShapeError(f"{expected}, got shape {value.shape} with strides {value.strides}")
    return value


def as_inputs(value, width: int, dtype: str, where: str) -> Array:
    """The same in `dtype`, rows contiguous; a view where that is how they lie."""
    return _convert(as_rows(value, width, dtype, where), dtype)


def as_order(value, rows: int, where: str) -> Array:
    """Indices of rows as (m,) of int64, m >= 1, each in 0 .. `rows` - 1; kernels read by them.

    Raises
    ------
    ShapeError, DTypeError, DataError
    """
    array = as_array(value, where)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{where}: expected indices of an integer dtype, got {array.dtype}")
    if array.ndim != 1 or len(array) == 0:
        raise ShapeError(f"{where}: expected indices of shape (m,) with m >= 1, got {array.shape}")
    if array.min() < 0 or array.max() >= rows:
        raise DataError(f"{where}: expected rows 0 .. {rows - 1}, got {_outside(array)}")
    return np.array(array, np.int64)  # a copy: the caller may write to his own while the epoch runs


def as_scale(value, width: int, dtype: str) -> tuple[Array, Array]:
    """``input_scale`` as scale and shift, (`width`,) of `dtype` each.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
    DataError
        For a number that is not finite in `dtype`.
    """
    if isinstance(value, str) or not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ArgumentError(f'input_scale: expected None, (scale, shift) or "standardize", got {value!r}')
    parts = []
    for name, part in zip(("scale", "shift"), value):
        array = as_real(part, f"input_scale: {name}")
        if array.shape not in ((), (width,)):
            raise ShapeError(f"input_scale: {name}: expected a number or shape ({width},), got {array.shape}")
        array = np.ascontiguousarray(np.broadcast_to(_convert(array, dtype), width))
        check_finite(array, f"input_scale: {name}")
        parts.append(array)
    return parts[0], parts[1]


def as_targets(value, loss: ops.Loss, rows: int, outputs: int, dtype: str, where: str = "y") -> Array:
    """Targets as the loss takes them: (n,) int64 labels, or (n, O) of `dtype`.

    A label that the loss ignores comes out as -1; see :func:`leave_out`.

    Raises
    ------
    ShapeError, DTypeError
    DataError
        For labels outside 0 .. O-1, floats that are not whole numbers, or numbers outside the range of the loss.
    """
    array = as_array(value, where)
    if loss.targets == "classes" and array.dtype.kind in "OSUT":
        raise DTypeError(
            f"{where}: expected integer labels for {loss.name}, got {array.dtype}; "
            f"np.unique({where}, return_inverse=True)[1] numbers them"
        )
    array = as_real(array, where)
    if array.ndim == 0 or len(array) != rows:
        raise ShapeError(f"{where}: expected {rows} rows as in X, got shape {array.shape}")
    if loss.targets == "classes":
        if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1 and outputs != 1):
            return _as_labels(array.reshape(rows), outputs, loss, where)
        if loss.ignored is not None:
            raise ShapeError(
                f"{where}: expected labels ({rows},) for {loss.name} with ignore_index, got shape {array.shape}"
            )
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
    converted = _convert(array.reshape(rows, outputs), dtype)
    if loss.targets in ("counts", "positive"):
        # as converted: a number too small for the dtype has become 0
        bad = converted < 0 if loss.targets == "counts" else converted <= 0
        if bad.any():
            row = int(np.argmax(bad)) // outputs
            value = array.reshape(rows, outputs)[row][bad[row]][0]
            sign = ">=" if loss.targets == "counts" else ">"
            raise DataError(f"{where}: expected numbers {sign} 0 for {loss.name}, got {value} in row {row}")
    return converted


def leave_out(y: Array, weight: Array | None, loss: ops.Loss) -> tuple[Array, Array | None]:
    """Targets and row weights (n,) in which a label that the loss ignores is class 0 with weight 0."""
    if loss.ignored is None:
        return y, weight
    ignored = y < 0
    return np.where(ignored, 0, y), np.where(ignored, 0.0, 1.0 if weight is None else weight)


def check_outputs(loss: ops.Loss, outputs: int) -> None:
    """ShapeError when the loss carries weights for another number of outputs."""
    weights = loss.per_output
    if weights is not None and len(weights) != outputs and not (loss.targets == "binary" and len(weights) == 1):
        raise ShapeError(f"{loss.name}: expected {outputs} weights, one per output, got {len(weights)}")


def _outside(array: Array) -> str:
    return f"values from {array.min()} to {array.max()}"


def _as_labels(array: Array, classes: int, loss: ops.Loss, where: str) -> Array:
    if array.dtype.kind == "f":
        whole = array == np.floor(array)
        if not whole.all():
            row = int(np.argmin(whole))
            raise DataError(
                f"{where}: expected integer labels for {loss.name}, got {array[row]} in row {row}"
                " (for regression use loss='mse')"
            )
    if array.size and (array.min() < 0 or array.max() >= classes):
        outside = (array < 0) | (array >= classes)
        if loss.ignored is not None:
            outside &= array != loss.ignored
        if outside.any():
            row = int(np.argmax(outside))
            hint = " (for one logit use loss='bce', for regression loss='mse')" if classes == 1 else ""
            raise DataError(
                f"{where}: expected labels 0 .. {classes - 1} for {loss.name}, got {array[row]} in row {row}{hint}"
            )
    # a copy: kernels index by labels, and the caller may write to his own between two epochs
    labels = np.array(array, np.int64)
    if loss.ignored is not None:
        labels[array == loss.ignored] = -1
    return labels


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
    array = as_real(value, where)
    if array.shape != (rows,):
        raise ShapeError(f"{where}: expected shape ({rows},), got {array.shape}")
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{where}: expected finite weights >= 0, got {array[row]} in row {row}")
    return normalised(np.ascontiguousarray(array, np.float64))


def weight_unit(weight: Array) -> float:
    """A power of two that brings weights (n,) near 1 where float32 could not hold them, 1.0 elsewhere.

    Only ratios matter in a weighted mean, and a power of two changes no bit of the results.
    """
    top = weight.max(initial=0)
    if not top or 2.0**-64 < top < 2.0**64:
        return 1.0
    return 2.0 ** float(np.clip(1 - np.frexp(top)[1], -1000, 1000))


def normalised(weight: Array) -> Array:
    """Weights (n,) times their :func:`weight_unit`."""
    return weight * weight_unit(weight)


def labels_of(y: Array, loss: ops.Loss) -> Array | None:
    """Class of each row (n,), 0 or 1 for one binary output; None where rows have no class."""
    if loss.targets == "classes" and y.ndim == 1:
        return y
    if loss.targets == "binary" and y.shape[1] == 1:
        return (y[:, 0] > 0.5).astype(np.int64)
    return None


def class_factors(table: Array, y: Array, loss: ops.Loss, where: str) -> Array:
    """Weight of each row (n,) by its class; ArgumentError where rows have no class."""
    labels = labels_of(y, loss)
    if labels is None:
        raise ArgumentError(f"class_weight: expected integer labels in {where}, got targets of shape {y.shape}")
    return table[labels]


def class_table(value, y: Array, loss: ops.Loss, outputs: int, weight: Array | None = None) -> Array:
    """Weight of each class (K,) from ``class_weight``.

    A dict, where a missing class counts 1, or "balanced": n / (K * count) over the K classes present in `y`. Where the
    loss ignores a label, rows of `weight` 0 do not count.

    Raises
    ------
    ArgumentError
        When the targets are not integer labels, or a class or weight is out of range.
    """
    where, labels = "class_weight", labels_of(y, loss)
    if labels is None:
        raise ArgumentError(f"{where}: expected integer labels in y, got {loss.name} with targets of shape {y.shape}")
    if loss.ignored is not None and weight is not None:
        labels = labels[weight > 0]
    classes = 2 if loss.targets == "binary" else outputs
    if isinstance(value, str) and value == "balanced":
        counts = np.bincount(labels, minlength=classes)
        return len(labels) / (max(np.count_nonzero(counts), 1) * np.maximum(counts, 1))
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{where}: expected a dict or 'balanced', got {type(value).__name__} {value!r}")
    table = np.ones(classes)
    for label, weight in value.items():
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
            raise ArgumentError(f"{where}: expected classes 0 .. {classes - 1}, got {label!r}")
        if not 0 <= as_float(weight) < math.inf:
            raise ArgumentError(f"{where}: expected finite weights >= 0, got {weight!r} for class {label}")
        table[label] = weight
    return table


def first_nonfinite(array: Array, dtype: str | None = None) -> tuple[int, ...] | None:
    """Index of the first NaN or Inf, in `dtype` where that is given, or None. One pass; memory bounded by a block."""
    if array.dtype.kind != "f" or array.size == 0:
        return None
    narrower = dtype is not None and np.dtype(dtype).itemsize < array.itemsize
    block = max(1, _SCAN // max(1, array[0].size))
    for start in range(0, len(array), block):
        part = array[start : start + block]
        # NaN and Inf survive a sum; one in double cannot overflow for float32, and is looked at again if it does
        with np.errstate(all="ignore"):
            part = part.astype(dtype) if narrower else part
            if math.isfinite(part.sum(dtype=np.float64)):
                continue
        bad = ~np.isfinite(part)
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            return (start + int(index[0]), *map(int, index[1:]))
    return None


def _place(index: Sequence[int]) -> str:
    return f"row {index[0]}" + (f", column {index[1]}" if len(index) > 1 else "")


def check_finite(array: Array, where: str, given=None, dtype: str | None = None) -> None:
    """DataError when `array` holds NaN or Inf, or what becomes one in `dtype`; names the first place.

    `given` is what `array` was converted from: a number too large for the dtype is reported as it was. Rows on a device
    are not looked at.
    """
    if isinstance(array, DeviceRows):
        return
    index = first_nonfinite(array, dtype)
    if index is None:
        return
    place = _place(index)
    before = array if given is None else as_array(given, where)
    value = before[index] if before.shape == array.shape else array[index]
    if np.isfinite(value):
        raise DataError(f"{where}: expected numbers that {dtype or array.dtype} can hold, got {value} in {place}")
    raise DataError(f"{where}: expected finite numbers, got {value} in {place}")


def batch_size(value, where: str = "batch_size", expected: str = 'an integer >= 1 or "full"') -> int:
    """Rows of a batch; "full" is more than there can be."""
    return sys.maxsize if isinstance(value, str) and value == "full" else count(where, value, expected)


def count(where: str, value, expected: str = "an integer >= 1", least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{where}: expected {expected}, got {value!r}")
    return int(value)


def number(where: str, value) -> float:
    """A finite number >= 0."""
    if not 0 <= as_float(value) < math.inf:
        raise ArgumentError(f"{where}: expected a finite number >= 0, got {value!r}")
    return float(value)


def limit(where: str, value) -> float | None:
    """A finite number > 0, or None for none."""
    if value is None:
        return None
    if not 0 < as_float(value) < math.inf:
        raise ArgumentError(f"{where}: expected a finite number > 0 or None, got {value!r}")
    return float(value)


def positive(where: str, value) -> float:
    """A finite number >= 1e-30: float32 holds it, and one over its root."""
    if number(where, value) < 1e-30:
        raise ArgumentError(f"{where}: expected a number > 0, at least 1e-30; got {value!r}")
    return float(value)


def fraction(where: str, value) -> float:
    """A number in [0, 1)."""
    if not 0 <= as_float(value) < 1:
        raise ArgumentError(f"{where}: expected a number in [0, 1), got {value!r}")
    return float(value)


def seed(where: str, value) -> int:
    """An integer in [0, 2**64)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**64:
        raise ArgumentError(f"{where}: expected an integer in [0, 2**64), got {value!r}")
    return int(value)


def as_dtype(value) -> str:
    """The name of a dtype that models come in."""
    try:
        name = None if value is None else np.dtype(value).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise ArgumentError(f"dtype: expected one of {', '.join(DTYPES)}; got {value!r}")
    return name


def flag(where: str, value) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{where}: expected True or False, got {value!r}")
    return bool(value)
