"""Operations of a user's own in this backend: where a row of a switch has its number, they have an address."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ... import ops
from ...ops.formula import Formula
from ...plan import Plan
from .. import scalars
from ..scalars import compiled

__all__ = [
    "activation_numbers", "call_loss", "call_move", "call_prepare", "call_slope", "call_value", "hyper_of",
    "loss_number", "own", "row_number", "rule_number",
]  # fmt: skip

Array = np.ndarray


def _caller(names: str) -> Callable:
    """``call(address, ...)`` of a function at an address."""

    def generate(context, builder, signature, args):
        given = [context.get_value_type(each) for each in signature.args[1:]]
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), given).as_pointer())
        builder.call(function, args[1:])
        return context.get_dummy_value()

    space: dict[str, Any] = {"types": types, "generate": generate}
    exec(
        f"def call(typingctx, address, {names}):\n    return types.void(types.intp, {names}), generate",
        space,
    )
    return intrinsic(space["call"])


call_value = _caller("n, a")
call_slope = _caller("n, saved, d")
call_loss = _caller("n, a, y, values, da")
call_prepare = _caller("lr, t, h, c")
call_move = _caller("n, p, g, s, stride, c")


@cache
def own(kind: str, formula: Formula, dtype: str) -> Array:
    """The addresses of its functions; the address of this array, which lives as long as the process, is its number."""
    return np.array(getattr(compiled, kind)(formula, dtype), np.int64)


def _number(kind: str, formula: Formula, dtype: str) -> int:
    return own(kind, formula, dtype).__array_interface__["data"][0]


def activation_numbers(index: dict[str, int], plan: Plan) -> dict[str, int]:
    """`index` with those of the plan's own activations."""
    rows = [stage.activation for stage in plan.stages]
    return {**index, **{row.name: row_number(index, row, plan.dtype) for row in rows}}


def row_number(index: dict[str, int], row: ops.Activation, dtype: str) -> int:
    return index[row.name] if row.formula is None else _number("activation", row.formula, dtype)


def loss_number(index: dict[str, int], loss: ops.Loss, dtype: str) -> int:
    return index[loss.name] if loss.formula is None else _number("loss", loss.formula, dtype)


def rule_number(index: dict[str, int], optimizer: ops.Optimizer, dtype: str) -> int:
    return index[optimizer.rule] if optimizer.formula is None else _number("optimizer", optimizer.formula, dtype)


def hyper_of(optimizer: ops.Optimizer) -> list[float]:
    """What the rule reads, in its order."""
    constants = optimizer.constants()
    names = constants if optimizer.formula is not None else scalars.OPTIMIZERS[optimizer.rule].hyper
    return [constants[name] for name in names]
