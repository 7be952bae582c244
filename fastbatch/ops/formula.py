"""Formulas of one's own: scalar functions in Python, and what registers keep of them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import numpy as np

from ..errors import ArgumentError

__all__ = ["Formula", "copied", "frozen"]

Array = np.ndarray
Number = Callable[..., float]


@dataclass(frozen=True, eq=False)
class Formula:
    """Scalar functions behind a row of a registry, from which every backend makes its own loops.

    Attributes
    ----------
    name : str
    value : callable
        ``value(z)`` of an activation, ``value(a, y)`` of a loss; of an optimizer
        ``(p, s0 ..) = value(p, g, s0 .., c0 ..)`` with the constants of the update.
    slope : callable or None
        The derivative by the first argument, of the same arguments; None where there is none to train with, and of
        optimizers.
    slots : int
        State values per parameter, of an optimizer.
    hyper : tuple of str
    constants : callable or None
        ``constants(lr, t, *hyper)``, once per update; None: these numbers themselves.
    count : int
        How many constants there are.
    """

    name: str
    value: Callable
    slope: Number | None = None
    slots: int = 0
    hyper: tuple[str, ...] = ()
    constants: Callable | None = None
    count: int = 0

    def prepared(self, lr: float, t: int, hyper: list[float]) -> tuple[float, ...]:
        """The constants of update `t`."""
        given = np.float64(lr), np.float64(t), *map(np.float64, hyper)
        return given if self.constants is None else self.constants(*given)

    def values(self, *arrays: Array) -> Array:
        """``value`` element by element, in double and rounded once."""
        return self._each(self.value, *arrays)

    def slopes(self, *arrays: Array) -> Array:
        if self.slope is None:
            raise ArgumentError(f"{self.name}: expected a derivative to train with, got none; give derivative=")
        return self._each(self.slope, *arrays)

    def _each(self, function: Number, *arrays: Array) -> Array:
        wide = [array.astype(np.float64).ravel() for array in arrays]
        found = np.array([self.at(function, *point) for point in zip(*wide)], np.float64)
        return found.reshape(arrays[0].shape).astype(arrays[0].dtype)

    def moved(self, p: Array, g: Array, slots: Array, constants: tuple[float, ...]) -> None:
        """``value`` of an optimizer on each parameter, in place, in double and rounded once."""
        wide = [array.astype(np.float64) for array in (p, g, *slots)]
        found = np.array([_tuple(self.at(self.value, *point, *constants)) for point in zip(*wide)], np.float64)
        p[:] = found[:, 0]
        slots[:] = found[:, 1:].T

    def at(self, function: Callable, *point: float):
        """`function` at a point; ArgumentError that names it where Python raises and compiled code would not."""
        try:
            return function(*point)
        except Exception as error:  # of the user's code
            where = ", ".join(f"{float(number):g}" for number in point)
            of_math = isinstance(error, (ArithmeticError, ValueError))
            hint = " (functions of NumPy return inf or nan where those of math raise)" if of_math else ""
            raise ArgumentError(
                f"{self.name}: expected a number at ({where}), got {type(error).__name__}: {error}{hint}"
            ) from error


def copied(function: Any, value: Callable[[Any], Any], constant: Callable[[Any], Any]) -> Callable:
    """A copy of `function` with `value` of all that its names mean now, and `constant` of what stands in its code."""
    code = function.__code__
    given = {name: value(what) for name, what in function.__globals__.items() if name in code.co_names}
    given["__builtins__"] = builtins
    cells = tuple(CellType(value(cell.cell_contents)) for cell in function.__closure__ or ())
    defaults = tuple(map(value, function.__defaults__ or ())) or None
    code = code.replace(co_consts=tuple(map(constant, code.co_consts)))
    return FunctionType(code, given, function.__name__, defaults, cells)


def frozen(function: Callable) -> Callable:
    """A copy that later changes of variables do not reach: compiled code would not see them, the reference would."""
    made: dict[Any, Any] = {}

    def value(what: Any) -> Any:
        if not isinstance(what, FunctionType) or what.__module__.partition(".")[0] in ("numpy", "math"):
            return what
        if what not in made:
            made[what] = what  # of one that calls itself
            made[what] = copied(what, value, lambda constant: constant)
        return made[what]

    return value(function)


def _tuple(found: object) -> tuple[float, ...]:
    return found if isinstance(found, tuple) else (found,)
