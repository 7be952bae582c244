"""Operations of a user's own: rows of the tables of rules, under names that tell them and their dtype from others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from ... import ops
from ...ops.formula import Formula
from ...plan import Plan
from .. import scalars
from ..scalars.compiled import as_they_are, gist, no_slope, typed
from .shim import SIMULATED, compiles, inner

__all__ = ["activation", "loss", "optimizer", "refusal"]

_numbers = count()


def activation(row: ops.Activation, dtype: str) -> str:
    """The name of its rule in `scalars.ACTIVATIONS`."""
    return row.name if row.formula is None else _name("activation", row.formula, dtype)


def loss(row: ops.Loss, dtype: str) -> str:
    """The same of `scalars.ELEMENT_LOSSES`, or of a loss that is none of elements."""
    return row.name if row.formula is None else _name("loss", row.formula, dtype)


def optimizer(row: ops.Optimizer, dtype: str) -> str:
    """The same of `scalars.OPTIMIZERS`."""
    return row.rule if row.formula is None else _name("optimizer", row.formula, dtype)


def refusal(plan: Plan) -> str | None:
    """Which of the plan's operations has no compiled form, and why; None where all have."""
    found: list[tuple[str, Formula | None]] = [("activation", stage.activation.formula) for stage in plan.stages]
    found += [("loss", plan.loss.formula), ("optimizer", plan.optimizer.formula)]
    reasons = (_reason(kind, formula, plan.dtype) for kind, formula in found if formula is not None)
    return next((reason for reason in reasons if reason), None)


@cache
def _name(kind: str, formula: Formula, dtype: str) -> str:
    table, made = _MADE[kind]
    name = f"{formula.name} {dtype} {next(_numbers)}"
    table.own[name] = made(formula, np.dtype(dtype).type)
    return name


@cache
def _reason(kind: str, formula: Formula, dtype: str) -> str:
    """Why it cannot be compiled for the device, or nothing; the simulator compiles nothing."""
    if SIMULATED:
        return ""
    try:
        row, real = _MADE[kind][1](formula, np.dtype(dtype).type), np.dtype(dtype).type(0)
        if isinstance(row, scalars.Rule):
            compiles(row.prepare, np.zeros(scalars.HYPERS), 0.0, 1, 0.0, 0.0, np.zeros(scalars.CONSTANTS))
            compiles(row.move, *[real] * 5, (real,) * scalars.CONSTANTS)
        elif kind == "loss":
            compiles(row[1], *[real] * 5)
        else:
            for function in row:
                compiles(function, real)
    except Exception as error:  # of the user's code; Numba passes on what its own lowering raises
        return (
            f"{formula.name!r} cannot be compiled by Numba for the device: {gist(error)}; docs/custom.md says what a "
            "function may hold"
        )
    return ""


def _activation(formula: Formula, real: type) -> tuple[Callable, Callable]:
    made: dict[Any, Any] = {}
    value = typed(formula.value, real, made, inner)
    slope = typed(formula.slope or no_slope, real, made, inner)

    @inner
    def own_value(z):
        return real(value(z))

    @inner
    def own_slope(z):
        return real(slope(z))

    return own_value, own_slope


def _loss(formula: Formula, real: type) -> tuple[Callable, Callable]:
    made: dict[Any, Any] = {}
    value = typed(formula.value, real, made, inner)
    slope = typed(formula.slope or no_slope, real, made, inner)

    @inner
    def own_element(a, y, c, g, h):
        return real(value(a, y)), real(slope(a, y))

    return lambda parameter, weighted: (0.0, 0.0), own_element


def _optimizer(formula: Formula, real: type) -> scalars.Rule:
    names = [f"k{i}" for i in range(formula.count)]
    slots = [f"s{i}" for i in range(formula.slots)]
    settings = [f"h[{1 + i}]" for i in range(len(formula.hyper))]
    constants = [f"c[{1 + i}]" for i in range(formula.count)]
    lines = [
        "def own_prepare(h, lr, t, norm_p, norm_u, c):",
        "    c[0] = h[0]",
        f"    {', '.join(names)}, = constants({', '.join(['lr', 'double(t)', *settings])})",
        *(f"    c[{1 + i}] = {name}" for i, name in enumerate(names)),
        "def own_move(p, g, s0, s1, s2, c):",
        f"    {', '.join(['p', *slots])} = step({', '.join(['p', 'g + c[0] * p', *slots, *constants])})",
        "    return real(p), real(s0), real(s1), real(s2)",
    ]
    space: dict[str, Any] = {
        "real": real,
        "double": np.float64,
        "step": typed(formula.value, real, {}, inner),
        "constants": typed(formula.constants or as_they_are, np.float64, {}, inner),
    }
    exec("\n".join(lines), space)
    hyper = ("weight_decay", *formula.hyper)
    return scalars.Rule(hyper, formula.slots, inner(space["own_prepare"]), inner(space["own_move"]))


_MADE: dict[str, tuple[Any, Callable]] = {
    "activation": (scalars.ACTIVATIONS, _activation),
    "loss": (scalars.ELEMENT_LOSSES, _loss),
    "optimizer": (scalars.OPTIMIZERS, _optimizer),
}
