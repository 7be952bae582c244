"""Formulas of one's own: scalar functions in Python, and what registers keep of them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
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
        return given if self.constants is None else self.at(self.constants, *given)

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


def copied(
    function: Any,
    made: dict[Any, Any],
    value: Callable[[Any], Any],
    constant: Callable[[Any], Any] = lambda constant: constant,
    finished: Callable[[Any], Any] = lambda copy: copy,
) -> Any:
    """A copy of `function` with `value` of all that its names mean now, and `constant` of what stands in its code.

    Also of functions inside it. What `finished` makes of the copy is in `made`, too, from before its names are looked
    up: one of them may be its own.
    """
    code, names = _code(function.__code__, constant)
    given: dict[str, Any] = {"__builtins__": builtins}
    cells = tuple(CellType() for _ in function.__closure__ or ())
    copy = FunctionType(code, given, function.__name__, tuple(map(value, function.__defaults__ or ())) or None, cells)
    copy.__qualname__ = function.__qualname__
    if function.__kwdefaults__:
        copy.__kwdefaults__ = {name: value(what) for name, what in function.__kwdefaults__.items()}
    made[function] = finished(copy)
    given.update({name: value(what) for name, what in function.__globals__.items() if name in names})
    if code.co_name in names and code.co_name == function.__qualname__:
        given[code.co_name] = made[function]  # a decorated function has no name yet, or one from before
    for name, cell, original in zip(code.co_freevars, cells, function.__closure__ or ()):
        try:
            cell.cell_contents = value(original.cell_contents)
        except ValueError:  # nothing there
            if name != code.co_name:
                raise ArgumentError(
                    f"{function.__name__}: expected a value of {name!r} where it is registered, got a variable that "
                    "is assigned later"
                ) from None
            cell.cell_contents = made[function]
    return made[function]


def _code(code: CodeType, constant: Callable[[Any], Any]) -> tuple[CodeType, set[str]]:
    """`code` with `constant` of its constants, and the names of it, both with those of functions inside."""
    names, constants = set(code.co_names), []
    for each in code.co_consts:
        if isinstance(each, CodeType):
            each, inside = _code(each, constant)
            names |= inside
        else:
            each = constant(each)
        constants.append(each)
    return code.replace(co_consts=tuple(constants)), names


def frozen(function: Callable) -> Callable:
    """A copy that later changes of variables do not reach: compiled code would not see them, the reference would."""
    made: dict[Any, Any] = {}

    def value(what: Any) -> Any:
        if isinstance(what, np.ndarray):
            return what.copy()
        if not isinstance(what, FunctionType) or (what.__module__ or "").partition(".")[0] in ("numpy", "math"):
            return what
        return made[what] if what in made else copied(what, made, value)

    return value(function)


def _tuple(found: object) -> tuple[float, ...]:
    return found if isinstance(found, tuple) else (found,)
