"""Tensor cores: panels multiplied by `mma.sync`, 32 threads of a warp together, on devices from compute capability 8.0.

Operands are rounded to bfloat16, or split into two numbers of TF32, 11 bits each, of whose four products the largest
three are made: TF32 for float32 programs, whose bounds such sums keep. The products of 8 or 16 k at a time are added by
the instruction, which cuts off what is below the largest one's last bit; such a block is then added to the sum before
as any float32 is. Chains of blocks begin at the same k everywhere, so no bit depends on the tile.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from .panels import LARGE, SMALL, Tile, Way
from .shim import SIMULATED, cuda, inner, instruction

__all__ = ["BF16", "FEWEST", "FMA", "TENSOR_LARGE", "TENSOR_SMALL", "TF32", "of_tensor", "tiles_for"]

FMA, TF32, BF16 = "fma", "tf32", "bf16"  # arithmetics of products

# Blocks of the simulator that have a whole warp, and two.
TENSOR_SMALL = Tile(16, 8, 16, 2, 2) if SIMULATED else SMALL
TENSOR_LARGE = Tile(32, 32, 16, 8, 2) if SIMULATED else LARGE


def tiles_for(arithmetic: str) -> tuple[Tile, Tile]:
    """The small and the large one."""
    return (SMALL, LARGE) if arithmetic == FMA else (TENSOR_SMALL, TENSOR_LARGE)


# Terms from which a sum of split operands keeps float32's bound of n + 1 roundings for n terms: splitting both costs up
# to 8 of them (2 for each operand, 4 for the product of both rests), cutting off 18 in a block of 8, and there is one
# more for each block. Stretches of the simulator have no more than eight.
FEWEST = 4 if SIMULATED else 64


@cache
def of_tensor(tile: Tile, arithmetic: str) -> Way:
    """Warps, side by side in the tile, multiply fragments of 16 x 8 outputs.

    Lane 4 g + t of a warp has of A, (16, k), the rows g and g + 8, of B, (k, 8), the column g, and of the result the
    rows g and g + 8 in the columns 2 t and 2 t + 1 (PTX ISA, "Matrix fragments for mma.m16n8k8" and "k16"). It takes
    two neighbours along k where they lie, in TF32, too: their places in the instruction are others, in A and B alike.
    With a pad of 4 the lanes of a warp meet nowhere when they read.
    """
    split = arithmetic == TF32
    block = 8 if split else 16
    neighbour, far = (0, 1) if split else (1, 8)
    depth, high = tile.depth, max(1, tile.high // 4)
    wide = tile.high * tile.wide // (4 * high)
    across = tile.columns // (8 * wide)
    word, zero = np.uint32, np.float32(0)
    mma, head, rest = _mma(arithmetic), _head if split else _pair, _rest

    @inner
    def row(t, f, e):
        return t // 32 // across * (16 * high) + f // wide * 16 + t % 32 // 4 + e // 2 * 8

    @inner
    def column(t, f, e):
        return t // 32 % across * (8 * wide) + f % wide * 8 + t % 4 * 2 + e % 2

    @inner
    def multiply(a, b, sums, t, plain):
        if plain:
            for k in range(depth):
                for f in range(high * wide):
                    for e in range(4):
                        sums[f, e] += a[k, row(t, f, e)] * b[k, column(t, f, e)]
            return
        of_a, rest_of_a = cuda.local.array((high, 4), word), cuda.local.array((high, 4), word)
        of_b, rest_of_b = cuda.local.array((wide, 2), word), cuda.local.array((wide, 2), word)
        row0 = t // 32 // across * (16 * high) + t % 32 // 4
        column0 = t // 32 % across * (8 * wide) + t % 32 // 4
        for k0 in range(0, depth, block):
            for f in range(high):
                for q in range(4):
                    k, r = k0 + t % 4 * 2 + q // 2 * far, row0 + f * 16 + q % 2 * 8
                    of_a[f, q] = head(a[k, r], a[k + neighbour, r])
                    if split:
                        rest_of_a[f, q] = rest(a[k, r], of_a[f, q])
            for g in range(wide):
                for q in range(2):
                    k, c = k0 + t % 4 * 2 + q * far, column0 + g * 8
                    of_b[g, q] = head(b[k, c], b[k + neighbour, c])
                    if split:
                        rest_of_b[g, q] = rest(b[k, c], of_b[g, q])
            for f in range(high):
                for g in range(wide):
                    d0, d1, d2, d3 = zero, zero, zero, zero
                    if split:  # the smallest products first
                        d0, d1, d2, d3 = mma(
                            rest_of_a[f, 0], rest_of_a[f, 1], rest_of_a[f, 2], rest_of_a[f, 3],
                            of_b[g, 0], of_b[g, 1], d0, d1, d2, d3,
                        )  # fmt: skip
                        d0, d1, d2, d3 = mma(
                            of_a[f, 0], of_a[f, 1], of_a[f, 2], of_a[f, 3],
                            rest_of_b[g, 0], rest_of_b[g, 1], d0, d1, d2, d3,
                        )  # fmt: skip
                    d0, d1, d2, d3 = mma(
                        of_a[f, 0], of_a[f, 1], of_a[f, 2], of_a[f, 3], of_b[g, 0], of_b[g, 1], d0, d1, d2, d3
                    )
                    sums[f * wide + g, 0] += d0
                    sums[f * wide + g, 1] += d1
                    sums[f * wide + g, 2] += d2
                    sums[f * wide + g, 3] += d3

    return Way(4, (high * wide, 4), multiply, row, column)


# -- instructions ------------------------------------------------------------------------------------------------------


def _emulated(arithmetic: str) -> Any:
    """`mma` in the simulator: lanes leave what they hold, and the first of a warp multiplies for all of them."""
    size = 1 if arithmetic == TF32 else 2  # numbers in a word

    @inner
    def mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        t = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        given = cuda.shared.array((2, 1024, 6), np.uint32)
        sums = cuda.shared.array((2, 1024, 4), np.float32)
        turn = _turn()  # whoever is late still reads the sums of the time before
        given[turn, t] = a0, a1, a2, a3, b0, b1
        sums[turn, t] = c0, c1, c2, c3
        cuda.syncthreads()
        if t % 32 == 0:
            sums[turn, t : t + 32] = _multiplied(given[turn, t : t + 32], sums[turn, t : t + 32], size)
        cuda.syncthreads()
        return tuple(sums[turn, t])

    return mma


def _multiplied(words: np.ndarray, start: np.ndarray, size: int) -> np.ndarray:
    """C + A B (32, 4), as lanes hold them, of words (32, 6): four of A, two of B."""
    words = words.reshape(8, 4, 6)  # rows of A, or columns of B; four lanes along k
    a = np.stack([_numbers(words[..., q:4:2], size) for q in range(2)], axis=1)  # (8, 2, K)
    b = _numbers(words[..., 4:], size).reshape(4, 2, -1)  # (columns of a lane, 2, K)
    products = a[:, None, :, None] * b[None, :, None]  # (8, 4, 2, 2, K)
    return _cut_off(products, start.reshape(8, 4, 2, 2)).reshape(32, 4)


def _turn() -> int:
    """0 and 1 by turns for each thread of a block."""
    me: Any = threading.current_thread()
    me.turn = 1 - getattr(me, "turn", 0)
    return me.turn


def _numbers(words: np.ndarray, size: int) -> np.ndarray:
    """Rows of A, or columns of B, along k (8, K): words (8, 4 lanes, 2), the second those of the upper half of k."""
    halves = [words] if size == 1 else [words << np.uint32(16), words & np.uint32(0xFFFF0000)]
    found = np.stack([half.view(np.float32) for half in halves], axis=-1)  # (8, t, upper, number)
    return found.transpose(0, 2, 1, 3).reshape(8, -1).astype(np.float64)


def _cut_off(products: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The sums of exact products along the last axis and `start`, each cut off below the last bit of the largest in
    float32, as is the sum.

    Devices keep a bit or more below that (Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores,
    PeerJ Computer Science 7, 2021).
    """
    terms = np.concatenate([products, start[..., None].astype(np.float64)], axis=-1)
    top = np.abs(terms).max(axis=-1)
    with np.errstate(all="ignore"):
        unit = 2.0 ** (np.frexp(np.where(np.isfinite(top), top, 1))[1] - 24)
        exact = np.trunc(terms / unit[..., None]).sum(axis=-1) * unit
        found = exact.astype(np.float32)
        found = np.where(np.abs(found) <= np.abs(exact), found, np.nextafter(found, np.float32(0)))
        return np.where(np.isfinite(top), found, terms.sum(axis=-1).astype(np.float32))


_KEPT = np.uint32(0xFFFFE000)  # the upper 19 bits of a float32 are its sign, exponent, and 10 of TF32
_HALF = np.uint32(0x1000)

if SIMULATED:
    _mma = cache(_emulated)

    def _bits(x):
        return np.asarray(x, np.float32).view(np.uint32)[()]

    def _real(word):
        return np.asarray(word, np.uint32).view(np.float32)[()]

    def _pair(x, y):
        low, high = (_bits(v) + np.uint32(0x7FFF) + (_bits(v) >> np.uint32(16) & np.uint32(1)) for v in (x, y))
        return low >> np.uint32(16) | high & np.uint32(0xFFFF0000)

else:
    _SHAPES = {TF32: ("m16n8k8", "tf32"), BF16: ("m16n8k16", "bf16")}

    @cache
    def _mma(arithmetic: str) -> Any:
        shape, kind = _SHAPES[arithmetic]
        text = (
            f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
            "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        )
        return instruction(text, "ffff", "rrrrrrffff")

    _bits = instruction("mov.b32 $0, $1;", "r", "f")
    _real = instruction("mov.b32 $0, $1;", "f", "r")
    _pair = instruction("cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff")  # the first of two is in the lower half


@inner
def _head(x, same):
    """x to 11 bits, nearest. NaN may become a number: it is in the rest."""
    return (_bits(x) + _HALF) & _KEPT


@inner
def _rest(x, head):
    """What is left of x: 12 bits and the last one cut off, so at most 2 units of 2^-24 of x."""
    return _bits(x - _real(head)) & _KEPT
