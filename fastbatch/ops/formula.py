"""Formulas of one's own: scalar functions in Python, and what registers keep of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError

__all__ = ["Formula"]

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
        except (ArithmeticError, ValueError) as error:
            where = ", ".join(f"{float(number):g}" for number in point)
            raise ArgumentError(
                f"{self.name}: expected a number at ({where}), got {type(error).__name__}: {error} (functions of NumPy "
                "return inf or nan where those of math raise)"
            ) from error


def _tuple(found: object) -> tuple[float, ...]:
    return found if isinstance(found, tuple) else (found,)
