"""What stands between the arguments of a trainer's methods and its programs: one thread at a time, rows, hooks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from .. import checks, ops
from ..arrays import DeviceRows, is_on_device
from ..data.scaling import standardization
from ..data.splits import validation_split as split_rows
from ..errors import ArgumentError, BusyError, DataError, ShapeError, did_you_mean
from ..model import Sequential
from ..protocol import Device, Feed, Lock
from .callbacks import Callback, bar_for

__all__ = [
    "Data", "Exclusive", "Fingerprint", "FitData", "check_same", "data_of", "fingerprint", "fit_data", "hooks_of",
    "inputs_of", "sampling_of", "scale_of",
]  # fmt: skip

Array = np.ndarray

# Shape, dtype and checksum by name; None for what was not given
Fingerprint = dict[str, tuple[tuple[int, ...], str, str] | None]

# Elements of an array that a checksum reads at most, evenly spaced rows of evenly spaced columns: a millisecond
SAMPLE_ROWS, SAMPLE_COLUMNS = 1024, 256


class Exclusive:
    """Holds the lock of a program and refuses instead of waiting; a thread that holds it may enter again (callbacks).

    Ctrl-C is heard between the bytecodes of Python functions. So none runs between the moment that the lock is taken
    and the one in which `with` knows it, nor on the way out: before anything is taken the properties give functions
    in C.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    @property
    def __enter__(self) -> Callable[[], bool]:
        return partial(any, chain(map(self._lock.acquire, (False,)), map(self._refuse, (None,))))

    @property
    def __exit__(self) -> Callable[..., None]:
        return self._lock.__exit__

    def _refuse(self, _: None) -> bool:
        raise BusyError(
            "trainer: expected one thread at a time, got a second one; give every thread a trainer of its own "
            "(model.predict may be shared)"
        )


@dataclass
class Data:
    """Rows that have passed the door."""

    x: Array
    y: Array
    weight: Array | None

    def weigh(self, factor: Array) -> None:
        """Multiply the row weights by `factor` (n,)."""
        self.weight = checks.normalised(factor if self.weight is None else factor * self.weight)

    def take(self, rows: Array | slice) -> Data:
        return Data(self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])


def inputs_of(model: Sequential, x, where: str = "x", empty: bool = False, device: Device | None = None) -> Array:
    if device is not None and is_on_device(x):
        rows: Any = DeviceRows(device.seen(x, where), where)
        if rows.shape[1] != model.input_size:
            raise ShapeError(f"{where}: expected shape (n, {model.input_size}) on the device, got {rows.shape}")
        return rows
    return checks.as_rows(x, model.input_size, model.dtype, where, model.first_dense, empty)


def data_of(
    model: Sequential,
    loss: ops.Loss,
    x,
    y,
    weight,
    names: tuple[str, str, str] = ("x", "y", "sample_weight"),
    device: Device | None = None,
) -> Data:
    """Arguments may lie on `device`: x stays there, y and weights are looked at here, and so are copied."""
    inputs = inputs_of(model, x, names[0], device=device)
    if device is not None and not len(inputs):
        raise ShapeError(f"{names[0]}: expected at least 1 row, got shape {inputs.shape}")
    y, weight = (
        device.fetched(given, where) if device is not None and is_on_device(given) else given
        for given, where in zip((y, weight), names[1:])
    )
    targets = checks.as_targets(y, loss, len(inputs), model.output_size, model.dtype, names[1])
    return Data(inputs, *checks.leave_out(targets, checks.as_weight(weight, len(inputs), names[2]), loss))


@dataclass
class FitData:
    """What a fit reads.

    Attributes
    ----------
    given : Data
    rows : int or (m,) ndarray of int64
        Number of rows, all of them trained on; or the indices of those that are.
    validation : Data, optional
    cumulative : (m,) ndarray of float64, optional
        Running sum of what training rows are drawn by.
    """

    given: Data
    rows: int | Array
    validation: Data | None
    cumulative: Array | None = None

    @property
    def total(self) -> int:
        return self.rows if isinstance(self.rows, int) else len(self.rows)

    def feed(self, order: Array | None, batch: int, drop_last: bool) -> Feed:
        """One pass over the training rows in `order`, None being that in which they lie."""
        total = self.total if order is None else len(order)
        used = total - total % batch if drop_last else total
        if order is not None:
            return Feed(self.given.x, self.given.y, self.given.weight, order[:used], batch)
        part = self.given.take(slice(used))
        return Feed(part.x, part.y, part.weight, None, batch)


def fit_data(
    model: Sequential,
    loss: ops.Loss,
    seed: int,
    X,
    y,
    sample_weight,
    validation_data,
    *,
    validation_split: float,
    class_weight: dict[int, float] | str | None,
    check_finite: bool,
    device: Device | None = None,
) -> FitData:
    """The data of :meth:`fastbatch.Trainer.fit`, checked and split; rows on a device are not looked at."""
    given = data_of(model, loss, X, y, sample_weight, ("X", "y", "sample_weight"), device)
    data = FitData(given, len(given.x), None)
    if validation_data is not None:
        data.validation = _validation(model, loss, validation_data, validation_split, device)
    if validation_split:
        labels = checks.labels_of(given.y, loss)
        data.rows, held_out = split_rows(given.y if labels is None else labels, validation_split, seed)
        data.validation = given.take(held_out)
    if class_weight is not None:
        index = slice(data.rows) if isinstance(data.rows, int) else data.rows
        counted = None if given.weight is None else given.weight[index]
        table = checks.class_table(class_weight, given.y[index], loss, model.output_size, counted)
        given.weigh(checks.class_factors(table, given.y, loss, "y"))
        if data.validation is not None:
            data.validation.weigh(checks.class_factors(table, data.validation.y, loss, "validation y"))
    if check_finite:
        checks.check_finite(given.x, "X", X, model.dtype)
        checks.check_finite(given.y, "y", y)
        checks.check_finite(model.parameters, "model.parameters")
        if data.validation is not None:
            checks.check_finite(data.validation.x, "validation X", dtype=model.dtype)
            checks.check_finite(data.validation.y, "validation y")
    return data


def sampling_of(model: Sequential, loss: ops.Loss, data: FitData, value, shuffle: bool) -> Array | None:
    """Running sum of what the training rows of `data` are drawn by, from ``sampling``; None where each comes once."""
    if value is None:
        return None
    if not shuffle:
        raise ArgumentError("fit: expected shuffle=True with sampling, which draws rows at random, got False")
    given, rows = data.given, slice(data.rows) if isinstance(data.rows, int) else data.rows
    if isinstance(value, str):
        if value != "balanced":
            hint = did_you_mean(value, ("balanced",))
            raise ArgumentError(f'fit(sampling=): expected None, "balanced" or weights (n,), got {value!r}{hint}')
        counted = None if given.weight is None else given.weight[rows]
        weight = checks.class_factors(
            checks.class_table(value, given.y[rows], loss, model.output_size, counted), given.y, loss, "y"
        )
        if loss.ignored is not None and given.weight is not None:
            weight = np.where(given.weight > 0, weight, 0.0)
    else:
        weight = np.asarray(checks.as_weight(value, len(given.x), "sampling"))
    cumulative = np.cumsum(weight[rows])
    if not 0 < cumulative[-1] < np.inf:
        raise DataError("sampling: expected weights above 0 with a finite sum over the training rows")
    return cumulative


def scale_of(model: Sequential, data: FitData, value) -> tuple[Array, Array] | None:
    """``input_scale`` of a fit on `data` as scale and shift; None where it leaves the trainer's as it is."""
    if value is None:
        return None
    if not isinstance(value, str):
        return checks.as_scale(value, model.input_size, model.dtype)
    if value != "standardize":
        hint = did_you_mean(value, ("standardize",))
        raise ArgumentError(f'fit(input_scale=): expected None, (scale, shift) or "standardize", got {value!r}{hint}')
    return standardization(data.given.x, data.rows, model.dtype)


def fingerprint(data: FitData, dtype: str) -> Fingerprint:
    """What tells these data from others, as a network of `dtype` sees them."""
    found: Fingerprint = {}
    for where, part in (("", data.given), ("validation ", data.validation)):
        for label, name in (("X", "x"), ("y", "y"), ("row weights", "weight")):
            found[where + label] = None if part is None else _print(getattr(part, name), dtype if name == "x" else None)
    return found


def _print(array: Array | None, dtype: str | None) -> tuple[tuple[int, ...], str, str] | None:
    if array is None:
        return None
    if isinstance(array, DeviceRows):
        return array.shape, array.dtype.str, "on a device"
    sample = array
    for axis, most in enumerate((SAMPLE_ROWS, SAMPLE_COLUMNS)[: array.ndim]):
        if array.shape[axis] > most:
            sample = sample.take(np.linspace(0, array.shape[axis] - 1, most).astype(np.int64), axis)
    if dtype is not None:
        sample = sample.astype(dtype)
    digest = hashlib.blake2b(sample.tobytes(), digest_size=16).hexdigest()
    return array.shape, sample.dtype.str, digest


def check_same(expected: Fingerprint, data: FitData, dtype: str) -> None:
    """DataError that says what differs, unless `data` are those of the fingerprint."""
    found = fingerprint(data, dtype)
    for name, then in expected.items():
        now = found[name]
        if now == then:
            continue
        words = ["none" if one is None else f"{np.dtype(one[1])} {one[0]}" for one in (then, now)]
        if words[0] == words[1]:
            words[1] = "other values"
        raise DataError(f"resume: expected the {name} of the interrupted fit, {words[0]}, got {words[1]}")


def _validation(model: Sequential, loss: ops.Loss, value, share: float, device: Device | None) -> Data:
    if share:
        raise ArgumentError("fit: expected validation_data or validation_split, got both")
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        got = f"{len(value)} values" if isinstance(value, (tuple, list)) else type(value).__name__
        raise ArgumentError(f"validation_data: expected (X, y) or (X, y, sample_weight), got {got}")
    x, y, weight = value if len(value) == 3 else (*value, None)
    return data_of(model, loss, x, y, weight, ("validation X", "validation y", "validation sample_weight"), device)


def hooks_of(callbacks: Sequence[Callback], verbose: int | str) -> list[Callback]:
    hooks: list[Any] = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    for hook in hooks:
        if not isinstance(hook, Callback):
            raise ArgumentError(f"callbacks: expected a list of fastbatch.Callback objects, got {hook!r}")
        if hook.every_n_steps is not None:
            checks.count(f"{type(hook).__name__}.every_n_steps", hook.every_n_steps, "an integer >= 1 or None")
    bar = bar_for(verbose)
    return sorted(hooks if bar is None else [*hooks, bar], key=lambda hook: hook.runs_last)
