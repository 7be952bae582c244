"""Words that Numba lacks: pointers, atomic counters, the clock; and how functions are compiled.

Kernels take pointers, as C would: an array costs a reference count at every call, and an index that may be negative a
comparison that keeps loops from being turned into vectors.
"""

from __future__ import annotations

import hashlib
import inspect
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..scalars.arithmetic import FEATURES

__all__ = [
    "ONE", "ZERO", "apart", "arrive", "call_llvm", "entry", "flush_subnormals", "give_way", "inner", "look",
    "magnitude_bits", "merged", "now", "plus", "pointer", "records", "restore_modes", "size_of", "sources", "switch",
    "wait_for_all",
]  # fmt: skip

# No flag of fast math: every operation is rounded as written, so that no bit depends on which loop an element fell
# into. Division by zero is infinity, not an exception.
OPTIONS = {"error_model": "numpy", "nogil": True}
inner = numba.njit(**OPTIONS)
# Becomes part of its only caller: LLVM optimizes all that a function calls, to any depth, once for each level above it.
merged = numba.njit(inline="always", **OPTIONS)


def sources() -> str:
    """A fingerprint of the rules and of this package: Numba looks at the file of the outermost function only."""
    here = Path(__file__).parent
    text = b"".join(path.read_bytes() for path in sorted([*here.glob("*.py"), *here.parent.glob("scalars/*.py")]))
    return hashlib.sha256(text).hexdigest()


def entry(function: Callable) -> Callable:
    """Compile what Python calls, in the disk cache where one can be written to.

    The function's closure must hold the fingerprint of the sources, which makes it part of the cache's key.
    """
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package's directory nor the user's cache nor NUMBA_CACHE_DIR
        return numba.njit(**OPTIONS)(function)


@intrinsic
def apart(typingctx):
    """Keeps the function that calls it out of its callers: each copy would be optimized anew, for minutes."""

    def generate(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def switch(functions: Sequence[Callable]) -> Callable:
    """One function of a number and the arguments of all: calls the one of that number.

    Written out as text, since a function that calls the rest of a list would be compiled once for each.
    """
    names = list(inspect.signature(functions[0]).parameters)
    given = ", ".join(names)
    lines = [f"def chosen(kind, {given}):"]
    lines += [f"    if kind == {k}:\n        return function_{k}({given})" for k in range(len(functions) - 1)]
    lines += [f"    return function_{len(functions) - 1}({given})"]
    namespace: dict[str, Callable] = {f"function_{k}": function for k, function in enumerate(functions)}
    exec("\n".join(lines), namespace)
    return inner(namespace["chosen"])


# Numbers that are arguments: a literal one would make Numba compile the function anew for it.
ZERO, ONE = np.int64(0), np.int64(1)


# -- pointers ----------------------------------------------------------------------------------------------------------


@intrinsic
def pointer(typingctx, address, like):
    """The address as a pointer to numbers of the type of `like`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.intp, like), generate


@intrinsic
def plus(typingctx, p, elements):
    """The pointer `elements` further."""

    def generate(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return p(p, types.intp), generate


def records(dtype: np.dtype) -> Callable:
    """``at(address, i)``, row i of a table of them: an array of records would be counted at every look."""
    kind = numba.from_dtype(dtype)

    @intrinsic
    def at(typingctx, address, i):
        def generate(context, builder, signature, args):
            place = builder.add(args[0], builder.mul(args[1], ir.Constant(args[1].type, dtype.itemsize)))
            return builder.inttoptr(place, context.get_value_type(kind))

        return kind(types.intp, types.intp), generate

    return at


@inner
def size_of(one):
    """Bytes of a number of one's type."""
    real = type(one)
    return 4 if real(1) + real(1e-10) == real(1) else 8


@intrinsic
def magnitude_bits(typingctx, x):
    """The bits of |x| as an integer, which orders numbers as they are, NaN above infinity."""

    def generate(context, builder, signature, args):
        kind = context.get_value_type(signature.return_type)
        size = signature.return_type.bitwidth
        return builder.and_(builder.bitcast(args[0], kind), ir.Constant(kind, (1 << (size - 1)) - 1))

    return (types.int32 if x == types.float32 else types.int64)(x), generate


# -- subnormal numbers -------------------------------------------------------------------------------------------------

# Bits that flush results and read arguments as 0: of MXCSR, and of FPCR, which has one for both
_ZEROS = {"x86_64": 0x8040, "AMD64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(platform.machine(), 0)
_ON_ARM = _ZEROS == 1 << 24


def call_llvm(builder, name, result, *arguments):
    """Calls LLVM's function of that name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _set_modes(builder, modes):
    if _ON_ARM:
        call_llvm(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), modes)
    elif _ZEROS:
        place = cgutils.alloca_once_value(builder, builder.trunc(modes, ir.IntType(32)))
        call_llvm(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(place, ir.IntType(8).as_pointer()))


@intrinsic
def flush_subnormals(typingctx):
    """Has this thread take subnormal numbers as 0, as in C; the modes before.

    Slots of units that have died out decay into them and stay: each costs 150 cycles, and an Adam step four times as
    long.
    """

    def generate(context, builder, signature, args):
        i64 = ir.IntType(64)
        if _ON_ARM:
            before = call_llvm(builder, "llvm.aarch64.get.fpcr", i64)
        elif _ZEROS:
            place = cgutils.alloca_once(builder, ir.IntType(32))
            call_llvm(
                builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(place, ir.IntType(8).as_pointer())
            )
            before = builder.zext(builder.load(place), i64)
        else:
            before = ir.Constant(i64, 0)
        _set_modes(builder, builder.or_(before, ir.Constant(i64, _ZEROS)))
        return before

    return types.int64(), generate


@intrinsic
def restore_modes(typingctx, modes):
    """What `flush_subnormals` has returned."""

    def generate(context, builder, signature, args):
        _set_modes(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# -- threads -----------------------------------------------------------------------------------------------------------


@intrinsic
def arrive(typingctx, p):
    """Adds 1 to what p points to and returns what was there."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def look(typingctx, p):
    """What p points to, as other threads have left it."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(args[0], "seq_cst", 8)

    return types.int64(types.CPointer(types.int64)), generate


give_way = types.ExternalFunction("sched_yield", types.int32())
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.CPointer(types.int64)))
MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)
SPINS = 2000


@inner
def now(spare):
    """CLOCK_MONOTONIC in ns; `spare` has room for two numbers."""
    _clock(MONOTONIC, spare)
    return spare[0] * 1000000000 + spare[1]


@inner
def wait_for_all(counter, threads):
    """All arrivals are counted in one word, and everybody waits for the next multiple."""
    if threads == 1:
        return
    goal = (arrive(counter) // threads + 1) * threads
    spins = 0
    while look(counter) < goal:
        spins += 1
        if spins > SPINS:
            give_way()


# -- the instruction set -----------------------------------------------------------------------------------------------


VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
HAS_MASKS = bool(FEATURES.get("avx512f"))
REGISTERS = 32 if HAS_MASKS or FEATURES.get("neon") else 16
