"""Fused multiply-add, and polynomials made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types
from numba.extending import intrinsic, overload, register_jitable

__all__ = ["FEATURES", "HAS_FMA", "multiply_add", "polynomial", "wide"]


def _features() -> dict[str, bool]:
    """What Numba compiles for: of this CPU, unless NUMBA_CPU_FEATURES says otherwise."""
    asked = numba.config.CPU_FEATURES
    if asked is not None:
        return {name[1:]: name[0] == "+" for name in asked.split(",") if name}
    if numba.config.CPU_NAME == "generic":
        return {}
    return dict(llvm.get_host_cpu_features())


FEATURES = _features()
HAS_FMA = bool(FEATURES.get("fma") or FEATURES.get("neon"))


def multiply_add(x: Any, y: Any, z: Any) -> Any:
    """``x y + z`` of one type, rounded once where the instruction exists: a call of the C library would take 20 ns.

    An operation of its own and no licence to contract: a loop and its scalar rest round alike.
    """
    return x * y + z


@intrinsic
def _multiply_add(typingctx, x, y, z):
    def generate(context, builder, signature, args):
        x, y, z = args
        return builder.fma(x, y, z) if HAS_FMA else builder.fadd(builder.fmul(x, y), z)

    return x(x, x, x), generate


@overload(multiply_add)
def _(x, y, z):
    return lambda x, y, z: _multiply_add(x, y, z)


def polynomial(real: type, *coefficients: float) -> Callable:
    """``c0 + c1 x + ...`` by Horner's rule, in `real`."""
    names = [f"c{i}" for i in range(len(coefficients))]
    lines = [f"    y = multiply_add(y, x, {name})\n" for name in reversed(names[:-1])]
    space: dict[str, Any] = {name: real(c) for name, c in zip(names, coefficients)}
    space["multiply_add"] = multiply_add
    exec(f"def polynomial(x):\n    y = {names[-1]}\n{''.join(lines)}    return y", space)
    return register_jitable(space["polynomial"])


@intrinsic
def wide(typingctx):
    """Has LLVM turn loops of the function that calls it into vectors of 512 bits, where it prefers 256."""

    def generate(context, builder, signature, args):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own list lacks it
        return context.get_dummy_value()

    return types.void(), generate
