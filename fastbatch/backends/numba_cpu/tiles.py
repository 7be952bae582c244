"""Products of matrices: tiles held in registers, written in vectors of LLVM, and the loops around them.

Every output is one chain of multiply-adds over k in ascending order, whatever the tile, the block, or the thread that
makes it, so no bit depends on them. Layers of a single output are the exception: a chain for each lane.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..scalars.arithmetic import HAS_FMA
from .machine import HAS_MASKS, ONE, REGISTERS, VECTOR_BYTES, ZERO, apart, call_llvm, inner, plus, size_of, switch

__all__ = ["PANEL", "affine", "copy_vector", "product", "vector_lanes", "weight_gradient"]

# Rows of a tile by its vectors: as many accumulators as registers allow beside operands.
ROWS = {1: 8, 2: 8, 3: 8, 4: 6} if REGISTERS == 32 else {1: 6, 2: 6}
WIDEST = max(ROWS)
# Depth of a block: a panel of it stays in L2, its tiles' rows of A in L1.
DEPTH = 256
# Bytes of the panel of a thread
PANEL = DEPTH * WIDEST * VECTOR_BYTES
# Rows of B further apart than this miss the stride prefetcher, and powers of two share few sets of L1: they are copied
# where enough tiles use them.
FAR = 1536
FEW = 16

i32, i64 = ir.IntType(32), ir.IntType(64)


def _tile(rows: int, vectors: int, masked: bool):
    """``C (rows, n) = start + A B`` where n fills `vectors` vectors, the last one up to `last` elements if masked."""

    @intrinsic
    def tile(typingctx, a, a_row, a_k, b, b_k, start, start_row, c, c_row, depth, last):
        signature = types.void(a, types.intp, types.intp, a, types.intp, a, types.intp, a, *[types.intp] * 3)
        size = a.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // size

        def generate(context, builder, signature, args):
            a, a_row, a_k, b, b_k, start, start_row, c, c_row, depth, last = args
            element = context.get_value_type(types.float32 if size == 4 else types.float64)
            vector = ir.VectorType(element, lanes)
            name = f"v{lanes}f{8 * size}"
            call = partial(call_llvm, builder)

            def splat(value):
                undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
                one = builder.insert_element(undefined, value, ir.Constant(i32, 0))
                return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))

            if masked:
                places = ir.Constant(ir.VectorType(i64, lanes), list(range(lanes)))
                there = builder.icmp_signed("<", places, splat(last))

            def place(p, j):
                return builder.bitcast(builder.gep(p, [ir.Constant(i64, j * lanes)]), vector.as_pointer())

            def load(p, j):
                if masked and j == vectors - 1:
                    nothing = ir.Constant(vector, [0.0] * lanes)
                    return call(
                        f"llvm.masked.load.{name}.p0", vector, place(p, j), ir.Constant(i32, size), there, nothing
                    )
                return builder.load(place(p, j), align=size)

            def store(value, p, j):
                if masked and j == vectors - 1:
                    call(
                        f"llvm.masked.store.{name}.p0", ir.VoidType(), value, place(p, j), ir.Constant(i32, size), there
                    )
                else:
                    builder.store(value, place(p, j), align=size)

            def multiply_add(x, y, z):
                if HAS_FMA:
                    return call(f"llvm.fma.{name}", vector, x, y, z)
                return builder.fadd(builder.fmul(x, y), z)

            def at_row(p, stride, r):
                return builder.gep(p, [builder.mul(stride, ir.Constant(i64, r))])

            begin = [[load(at_row(start, start_row, r), j) for j in range(vectors)] for r in range(rows)]
            skips = [builder.mul(a_row, ir.Constant(i64, r)) for r in range(rows)]
            before = builder.block
            loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k, pa, pb = builder.phi(i64), builder.phi(a.type), builder.phi(b.type)
            sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
            of_b = [load(pb, j) for j in range(vectors)]
            ends = []
            for r in range(rows):
                of_a = splat(builder.load(builder.gep(pa, [skips[r]])))
                ends.append([multiply_add(of_a, of_b[j], sums[r][j]) for j in range(vectors)])
            following = builder.add(k, ir.Constant(i64, 1))
            steps = [(k, ir.Constant(i64, 0), following)]
            steps += [(pa, a, builder.gep(pa, [a_k])), (pb, b, builder.gep(pb, [b_k]))]
            steps += [(sums[r][j], begin[r][j], ends[r][j]) for r in range(rows) for j in range(vectors)]
            for phi, first, further in steps:
                phi.add_incoming(first, before)
                phi.add_incoming(further, builder.block)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
            builder.position_at_end(done)
            for r in range(rows):
                for j in range(vectors):
                    store(ends[r][j], at_row(c, c_row, r), j)
            return context.get_dummy_value()

        return signature, generate

    return tile


def _column(vectors: int, masked: bool):
    """A column of tiles: ``C (m, n) = start + A B`` for any m, n filling `vectors` vectors."""
    most = ROWS[vectors]
    full, four, two, one = (_tile(rows, vectors, masked) for rows in (most, 4, 2, 1))

    @inner
    def column(m, depth, last, a, a_row, a_k, b, b_k, start, start_row, c, c_row):
        apart()
        i = 0
        while i + most <= m:
            full(plus(a, i * a_row), a_row, a_k, b, b_k, plus(start, i * start_row), start_row, plus(c, i * c_row),
                 c_row, depth, last)  # fmt: skip
            i += most
        if i + 4 <= m:
            four(plus(a, i * a_row), a_row, a_k, b, b_k, plus(start, i * start_row), start_row, plus(c, i * c_row),
                 c_row, depth, last)  # fmt: skip
            i += 4
        if i + 2 <= m:
            two(plus(a, i * a_row), a_row, a_k, b, b_k, plus(start, i * start_row), start_row, plus(c, i * c_row),
                c_row, depth, last)  # fmt: skip
            i += 2
        while i < m:
            one(plus(a, i * a_row), a_row, a_k, b, b_k, plus(start, i * start_row), start_row, plus(c, i * c_row),
                c_row, depth, last)  # fmt: skip
            i += 1

    return column


# Of 1 vector up to WIDEST, then, where a mask costs something, the same for a last one that is whole.
_columns = switch([_column(v, masked) for masked in (True, False)[: 2 - HAS_MASKS] for v in range(1, WIDEST + 1)])


@intrinsic
def vector_lanes(typingctx, p):
    def generate(context, builder, signature, args):
        return ir.Constant(i64, VECTOR_BYTES // (p.dtype.bitwidth // 8))

    return types.int64(p), generate


@intrinsic
def copy_vector(typingctx, source, to, left):
    """A vector, or the first `left` elements of it."""
    size = source.dtype.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def generate(context, builder, signature, args):
        source, to, left = args
        vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes)
        kind, here = vector.as_pointer(), ir.Constant(i32, size)
        some = builder.insert_element(ir.Constant(ir.VectorType(i64, lanes), ir.Undefined), left, ir.Constant(i32, 0))
        some = builder.shuffle_vector(some, some, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))
        there = builder.icmp_signed("<", ir.Constant(ir.VectorType(i64, lanes), list(range(lanes))), some)
        nothing, name = ir.Constant(vector, [0.0] * lanes), f"v{lanes}f{8 * size}.p0"
        source, to = builder.bitcast(source, kind), builder.bitcast(to, kind)

        call = partial(call_llvm, builder)
        found = call(f"llvm.masked.load.{name}", vector, source, here, there, nothing)
        call(f"llvm.masked.store.{name}", ir.VoidType(), found, to, here, there)
        return context.get_dummy_value()

    return types.void(source, to, types.int64), generate


@intrinsic
def _dot(typingctx, a, b, depth):
    """The sum of a[k] b[k], a chain for each lane, and these by halves."""
    size = a.dtype.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def generate(context, builder, signature, args):
        a, b, depth = args
        vector = ir.VectorType(context.get_value_type(signature.return_type), lanes)
        places, nothing = ir.Constant(ir.VectorType(i64, lanes), list(range(lanes))), ir.Constant(vector, [0.0] * lanes)
        name = f"v{lanes}f{8 * size}"

        def call(function, *arguments):
            return call_llvm(builder, function, vector, *arguments)

        def load(p, there):
            p = builder.bitcast(builder.gep(p, [k]), vector.as_pointer())
            if there is None:
                return builder.load(p, align=size)
            return call(f"llvm.masked.load.{name}.p0", p, ir.Constant(i32, size), there, nothing)

        def add(there=None):
            x, y = load(a, there), load(b, there)
            before = builder.load(total)
            found = call(f"llvm.fma.{name}", x, y, before) if HAS_FMA else builder.fadd(before, builder.fmul(x, y))
            builder.store(found, total)

        total = cgutils.alloca_once_value(builder, nothing)
        whole = builder.and_(depth, ir.Constant(i64, -lanes))
        with cgutils.for_range_slice(builder, ir.Constant(i64, 0), whole, ir.Constant(i64, lanes)) as (k, _):
            add()
        k = whole
        with builder.if_then(builder.icmp_signed("<", whole, depth)):
            left = builder.insert_element(ir.Constant(places.type, ir.Undefined), builder.sub(depth, whole), i32(0))
            left = builder.shuffle_vector(left, left, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))
            add(builder.icmp_signed("<", places, left))
        found = builder.load(total)
        while lanes_left := found.type.count // 2:
            halves = [
                ir.Constant(ir.VectorType(i32, lanes_left), [h * lanes_left + i for i in range(lanes_left)])
                for h in (0, 1)
            ]
            low, high = (builder.shuffle_vector(found, found, half) for half in halves)
            found = builder.fadd(low, high)
        return builder.extract_element(found, i32(0))

    return a.dtype(a, b, types.int64), generate


@intrinsic
def _turn(typingctx, a, a_row, c, c_row):
    """C (8, 8) is A (8, 8) turned, in registers: i and j of an element change places bit by bit."""

    def generate(context, builder, signature, args):
        a, a_row, c, c_row = args
        vector = ir.VectorType(a.type.pointee if hasattr(a.type, "pointee") else a.type, 8)
        rows = []
        for r in range(8):
            place = builder.gep(a, [builder.mul(a_row, ir.Constant(i64, r))])
            rows.append(builder.load(builder.bitcast(place, vector.as_pointer()), align=4))
        for h in (4, 2, 1):
            for i in range(8):
                if i & h == 0:
                    low = [8 + (e ^ h) if e & h else e for e in range(8)]
                    high = [8 + e if e & h else e ^ h for e in range(8)]
                    pair = rows[i], rows[i + h]
                    for r, order in ((i, low), (i + h, high)):
                        rows[r] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(i32, 8), order))
        for r in range(8):
            place = builder.gep(c, [builder.mul(c_row, ir.Constant(i64, r))])
            builder.store(rows[r], builder.bitcast(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(a, types.intp, a, types.intp), generate


@inner
def _copy(depth, width, b, b_k, b_j, panel, lead):
    """The block of B as contiguous rows."""
    if b_j == 1:
        for k in range(depth):
            row, to = plus(b, k * b_k), plus(panel, k * lead)
            for j in range(width):
                to[j] = row[j]
        return
    j = 0
    while j + 8 <= width:  # b_k is 1
        k = 0
        while k + 8 <= depth:
            _turn(plus(b, j * b_j + k), b_j, plus(panel, k * lead + j), lead)
            k += 8
        while k < depth:
            for i in range(j, j + 8):
                panel[k * lead + i] = b[i * b_j + k]
            k += 1
        j += 8
    while j < width:
        for k in range(depth):
            panel[k * lead + j] = b[j * b_j + k]
        j += 1


@inner
def _vectors(left):
    """How many of them the next column of tiles has: such that no narrow one is left over where it can be helped."""
    if left <= WIDEST or left >= 2 * WIDEST - 1:
        return min(left, WIDEST)
    return (left + 1) // 2


@inner
def product(one, m, n, depth, a, a_row, a_k, b, b_k, b_j, start, start_row, c, c_row, panel):
    """``C = start + A B`` with A (m, depth), B (depth, n), C (m, n).

    ``a_row`` and ``a_k`` are A's strides in elements, ``b_k`` and ``b_j`` those of B; rows of C and of `start` are
    contiguous, and a stride of 0 between rows of `start` is one row for all. One of b_k and b_j is 1. `panel` has PANEL
    bytes of its own.
    """
    apart()
    size = size_of(one)
    lanes = VECTOR_BYTES // size
    copied = b_j != 1 or (b_k * size > FAR and m > FEW)
    for k in range(0, depth, DEPTH):
        some = min(DEPTH, depth - k)
        j = 0
        while j < n:
            vectors = _vectors((n - j + lanes - 1) // lanes)
            width = min(vectors * lanes, n - j)
            last = width - (vectors - 1) * lanes
            of_b, of_b_k = plus(b, k * b_k + j * b_j), b_k
            if copied:
                _copy(some, width, of_b, b_k, b_j, panel, vectors * lanes)
                of_b, of_b_k = panel, vectors * lanes
            kind = vectors - 1 if HAS_MASKS or last < lanes else vectors - 1 + WIDEST
            of_c = plus(c, j)
            before, before_row = (plus(start, j), start_row) if k == 0 else (of_c, c_row)
            _columns(kind, m, some, last, plus(a, k * a_k), a_row, a_k, of_b, of_b_k, before, before_row, of_c, c_row)
            j += width


@inner
def affine(one, rows, outputs, inputs, x, ld, w, bias, z, z_ld, panel):
    """``z = x w + bias``. A single output would fill one lane of a vector, so there lanes run over inputs."""
    if outputs == 1:
        for r in range(rows):
            z[r * z_ld] = bias[0] + _dot(plus(x, r * ld), w, inputs)
    else:
        product(one, rows, outputs, inputs, x, ld, ONE, w, outputs, ONE, bias, ZERO, z, z_ld, panel)


@inner
def weight_gradient(one, inputs, outputs, rows, x, ld, dz, dz_ld, start, start_row, dw, panel):
    """``dw = start + x^T dz``, by columns of x where there is one of dz: the same chains."""
    if outputs == 1:
        product(one, ONE, inputs, rows, dz, ZERO, dz_ld, x, ld, ONE, start, ZERO, dw, inputs, panel)
    else:
        product(one, inputs, outputs, rows, x, ONE, ld, dz, dz_ld, ONE, start, start_row, dw, outputs, panel)
