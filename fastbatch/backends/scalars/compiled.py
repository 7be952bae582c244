"""Formulas of a user's own as compiled functions over contiguous elements, which kernels call by address.

A call is for a whole block: the scalar function is inlined into the loop around it, and the call costs nothing.
Addresses stay valid as long as the process lives.
"""

from __future__ import annotations

import inspect
import math
import re
import types as python
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types

from ...errors import BackendError
from ...ops.formula import Formula, copied
from . import functions
from .arithmetic import wide
from .patience import announced

__all__ = ["activation", "as_they_are", "gist", "loss", "no_slope", "optimizer", "typed"]

_OPTIONS = {"error_model": "numpy"}
_HOUSE: dict[Any, Callable] = {
    function: getattr(functions, name)
    for name in ("exp", "expm1", "log", "log1p", "tanh")
    for function in (getattr(math, name), getattr(np, name))
}
# of which Numba makes nothing, or nothing for a device
_HOUSE.update({np.sign: functions.sign, np.absolute: functions.absolute, np.fabs: functions.absolute})
_HOUSE.update({np.square: functions.square, np.power: functions.power, np.sqrt: functions.root})


_jitted = numba.njit(**_OPTIONS)


def typed(function: Callable, real: type, made: dict[Any, Any], jit: Callable = _jitted) -> Callable:
    """A copy of `function` that computes in `real`: its constants are of that type, and exp, expm1, tanh the library's.

    A bare constant would make float32 arithmetic float64, and a call of the C library keeps a loop from being turned
    into vectors. What has been copied is `made`; `jit` is what compiles the copies.
    """
    if function in made:
        return made[function]
    return copied(
        function,
        made,
        lambda what: _value(what, real, made, jit),
        lambda constant: real(constant) if type(constant) is float else constant,
        lambda copy: jit(_bindable(copy)),
    )


def _bindable(copy: Any) -> Any:
    """Numba binds no keyword-only parameters: those with defaults become ordinary ones, behind the others."""
    code, given = copy.__code__, copy.__kwdefaults__ or {}
    if len(given) == code.co_kwonlyargcount > 0 and not code.co_flags & inspect.CO_VARARGS:
        count = code.co_argcount + code.co_kwonlyargcount
        names = code.co_varnames[code.co_argcount : count]
        copy.__defaults__ = (*(copy.__defaults__ or ()), *(given[name] for name in names))
        copy.__code__, copy.__kwdefaults__ = code.replace(co_argcount=count, co_kwonlyargcount=0), None
    return copy


def _value(value: Any, real: type, made: dict[Any, Any], jit: Callable) -> Any:
    """What a name means inside the copy."""
    if type(value) is float:
        return real(value)
    if isinstance(value, python.FunctionType):
        return typed(value, real, made, jit)
    if value is math or value is np:
        module = python.ModuleType(value.__name__)
        numbers = {name: real(number) for name, number in vars(value).items() if type(number) is float}
        module.__dict__.update({**vars(value), **numbers})
        module.__dict__.update({name: _HOUSE[f] for name, f in vars(value).items() if _is_key(f) and f in _HOUSE})
        if value is np:
            module.__dict__["clip"] = functions.clamp  # Numba's is of arrays only
        return module
    return _HOUSE.get(value, value) if _is_key(value) else value


def _is_key(value: Any) -> bool:
    return isinstance(value, (python.BuiltinFunctionType, np.ufunc))


def _address(formula: Formula, loop: Callable, *signature: Any) -> int:
    try:
        with announced(f"{formula.name!r}, once in each process"):
            compiled = numba.cfunc(types.void(*signature), **_OPTIONS)(loop)
    except Exception as error:  # of the user's code; Numba passes on what its own lowering raises
        raise BackendError(
            f"{formula.name!r} cannot be compiled by Numba, so that only backend 'reference' can run it: "
            f"{gist(error)}; docs/custom.md says what a function may hold"
        ) from error
    _alive.append(compiled)
    return compiled.address


def gist(error: Exception) -> str:
    """What Numba means, of some thirty lines; the rest is in the cause."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    telling = [
        line for line in lines if line.startswith(("No impl", "Unknown", "Untyped", "Use of", "Cannot", "Invalid"))
    ]
    return (telling or [line for line in lines if line and not line.startswith("Failed in")] or ["no reason given"])[0]


_alive: list[Any] = []


def _types(dtype: str) -> tuple[type, Any]:
    real = np.dtype(dtype).type
    return real, types.CPointer(numba.typeof(real(0)))


def no_slope(*point):
    """Of a formula without a derivative."""
    return math.nan


@cache
def activation(formula: Formula, dtype: str) -> tuple[int, int]:
    """``value(n, a)``, in place, and ``slope(n, saved, d)``, which multiplies d."""
    real, pointer = _types(dtype)
    made: dict[Any, Any] = {}
    value = typed(formula.value, real, made)
    slope = typed(formula.slope or no_slope, real, made)

    def values(n, a):
        wide()
        for i in range(n):
            a[i] = real(value(a[i]))

    def slopes(n, saved, d):
        wide()
        for i in range(n):
            d[i] *= real(slope(saved[i]))

    return (
        _address(formula, values, types.int64, pointer),
        _address(formula, slopes, types.int64, pointer, pointer),
    )


@cache
def loss(formula: Formula, dtype: str) -> tuple[int, int]:
    """``elements(n, a, y, values, da)``, and nothing."""
    real, pointer = _types(dtype)
    made: dict[Any, Any] = {}
    value = typed(formula.value, real, made)
    slope = typed(formula.slope or no_slope, real, made)

    def elements(n, a, y, values, da):
        wide()
        for i in range(n):
            values[i] = real(value(a[i], y[i]))
            da[i] = real(slope(a[i], y[i]))

    return _address(formula, elements, types.int64, pointer, pointer, pointer, pointer), 0


@cache
def optimizer(formula: Formula, dtype: str) -> tuple[int, int]:
    """``prepare(lr, t, h, c)`` in double, and ``move(n, p, g, s, stride, c)``.

    `h` has weight_decay and the settings, `c` the same weight_decay and the constants of the update.
    """
    real, pointer = _types(dtype)
    doubles = types.CPointer(types.float64)
    names = [f"k{i}" for i in range(formula.count)]
    slots = [f"s[i + {i} * stride]" for i in range(formula.slots)]
    found = [f"s{i}" for i in range(formula.slots)]
    lines = [
        "def prepare(lr, t, h, c):",
        "    c[0] = h[0]",
        f"    {', '.join(names)}, = constants(lr, t, {', '.join(f'h[{1 + i}]' for i in range(len(formula.hyper)))})",
        *(f"    c[{1 + i}] = {name}" for i, name in enumerate(names)),
        "def move(n, p, g, s, stride, c):",
        "    wide()",
        "    l2 = real(c[0])",
        *(f"    {name} = real(c[{1 + i}])" for i, name in enumerate(names)),
        "    for i in range(n):",
        f"        {', '.join(['q', *found])} = step({', '.join(['p[i]', 'g[i] + l2 * p[i]', *slots, *names])})",
        "        p[i] = real(q)",
        *(f"        {slot} = real({name})" for slot, name in zip(slots, found)),
    ]
    made: dict[Any, Any] = {}
    space: dict[str, Any] = {
        "real": real,
        "wide": wide,
        "step": typed(formula.value, real, made),
        "constants": typed(formula.constants or as_they_are, np.float64, {}),
    }
    exec("\n".join(lines), space)
    return (
        _address(formula, space["prepare"], types.float64, types.float64, doubles, doubles),
        _address(formula, space["move"], types.int64, pointer, pointer, pointer, types.int64, doubles),
    )


def as_they_are(*numbers):
    return numbers
