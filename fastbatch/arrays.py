"""What people hold numbers in, as a NumPy array: anything with ``__array__`` or ``__dlpack__``, tables, lists.

Nothing is copied that NumPy can look at where it lies. No library is imported: what is asked of a table, all have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DataError, DTypeError, ShapeError

__all__ = ["NUMBERS", "DeviceRows", "as_array", "is_foreign", "is_on_device"]

Array = np.ndarray

# Kinds of dtypes that hold real numbers
NUMBERS = "fiub"

# Of DLPack: the CPU's memory, and memory of the CPU that CUDA or ROCm has pinned
_IN_MEMORY = (1, 3, 11)
# Memory of a GPU of CUDA's, and memory that it manages
_ON_DEVICE = (2, 13)

# Columns that an error message names
_NAMED = 8


def as_array(value: Any, where: str) -> Array:
    """`value` as an array of any dtype: itself, or a view of a tensor, array or table where that is possible.

    Raises
    ------
    DataError
        For masked entries.
    DTypeError
        For tables with columns that are no numbers, named; and for what NumPy cannot look at: memory of a GPU, tensors
        that a gradient is asked of.
    ShapeError
        For rows of different lengths.
    """
    if type(value) is np.ndarray:
        return value
    if type(value).__module__ == "torch":  # its __array__ calls numpy(), and takes a third longer
        return _looked_at(value.numpy, value, where)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{where}: expected no masked entries, got {np.ma.count_masked(value)}")
    if isinstance(value, np.ndarray) or not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        if is_on_device(value):
            raise DTypeError(f"{where}: expected what NumPy can look at, got {type(value).__name__} on a device")
        try:
            return np.asarray(value)
        except ValueError as error:
            raise ShapeError(f"{where}: expected a rectangular array, got rows of different lengths") from error
    if hasattr(value, "columns") and (hasattr(value, "dtypes") or hasattr(value, "column_names")):
        return _of_table(value, where)
    return _looked_at(lambda: _by_protocol(value), value, where)


def _by_protocol(value: Any) -> Array:
    if is_on_device(value) or (hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] not in _IN_MEMORY):
        raise TypeError(f"its memory is that of {getattr(value, 'device', 'another device')}")
    return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)


def _looked_at(look: Callable[[], Array], value: Any, where: str) -> Array:
    try:
        return look()
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DTypeError(f"{where}: expected what NumPy can look at, got {type(value).__name__}: {error}") from error


def is_on_device(value: Any) -> bool:
    """Whether these numbers say that they lie in the memory of a GPU, which is all that they are asked."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        try:
            return value.__dlpack_device__()[0] in _ON_DEVICE
        except (ValueError, RuntimeError, BufferError):  # a device that DLPack lacks, "meta": refused elsewhere
            return False
    return hasattr(value, "__cuda_array_interface__")


class DeviceRows:
    """Rows (n, I) in a GPU's memory, which backend "cuda" reads there; whoever wants them as an array is refused.

    Parameters
    ----------
    value : object with ``__cuda_array_interface__``
        Kept alive, not copied.
    where : str
        What messages call it.
    """

    def __init__(self, value: Any, where: str, part: slice = slice(None)) -> None:
        given = value.__cuda_array_interface__
        dtype, shape = np.dtype(given["typestr"]), tuple(given["shape"])
        if len(shape) != 2 or dtype.kind not in "fiu" or (dtype.itemsize == 2 and dtype.kind == "f"):
            raise DTypeError(
                f"{where}: expected rows (n, I) of a real dtype but float16 on a device, got {dtype} {shape}"
            )
        strides = given.get("strides") or (shape[1] * dtype.itemsize, dtype.itemsize)
        start, stop, step = part.indices(shape[0])
        if step != 1:
            self._refuse(where)
        self.owner, self.where, self.dtype, self.ndim = value, where, dtype, 2
        self.shape, self.strides = (max(stop - start, 0), shape[1]), tuple(strides)
        data = given["data"][0] + start * strides[0], given["data"][1]
        self.__cuda_array_interface__ = {**given, "data": data, "shape": self.shape, "strides": self.strides}

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: Any) -> DeviceRows:
        if not isinstance(part, slice):
            self._refuse(self.where)
        return DeviceRows(self, self.where, part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._refuse(self.where)

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        return self._refuse(self.where)

    @staticmethod
    def _refuse(where: str) -> Array:
        raise DTypeError(
            f"{where}: expected rows in the memory of the CPU for this, got such on a device; there backend 'cuda' "
            "reads them in fit, step, evaluate, predict, without validation_split, input_scale, augment or NoiseScale"
        )


def is_foreign(value: Any) -> bool:
    """Whether this is a tensor or array of another library in the CPU's memory, to be looked at as it lies."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray) and not is_on_device(value)


def _of_table(table: Any, where: str) -> Array:
    columns = _columns(table)
    bad = [f"{name} ({dtype})" for name, dtype, numbers in columns if not numbers]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise DTypeError(f"{where}: expected numeric columns, got {', '.join(bad[:_NAMED])}{more}")
    array = np.asarray(table)
    if array.dtype.kind in NUMBERS:
        return array
    # pandas' common dtype of columns that may miss values, or of bool and float, is object
    parts = [_of_series(table.iloc[:, k]) for k in range(len(columns))]
    whole = np.empty((len(table), len(parts)), np.result_type(*parts), order="F")
    for k, part in enumerate(parts):
        whole[:, k] = part
    return whole


def _of_series(series: Any) -> Array:
    array = np.asarray(series)
    return array if array.dtype.kind in NUMBERS else series.to_numpy("float64", na_value=np.nan)


def _columns(table: Any) -> list[tuple[Any, Any, bool]]:
    """Name and dtype of every column, and whether it holds real numbers."""
    if hasattr(table, "column_names"):  # pyarrow
        pairs = [(field.name, str(field.type)) for field in table.schema]
        return [
            (name, dtype, bool(re.fullmatch(r"u?int\d+|bool|halffloat|float|double", dtype))) for name, dtype in pairs
        ]
    found = []
    for name, dtype in zip(table.columns, table.dtypes):
        if hasattr(dtype, "is_float"):  # polars
            numbers = dtype.is_float() or dtype.is_integer() or str(dtype) == "Boolean"
        else:
            numbers = getattr(dtype, "kind", "O") in NUMBERS
        found.append((name, dtype, numbers))
    return found
