"""Which arithmetic the products of a layer have: tensor cores where this device is right with them, and faster.

By measurement, once in a process, of a product that decides for all: what an instruction's name promises does not tell.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ... import ops
from ...plan import BF16_NARROW, BF16_WIDTH, Plan, Stage
from . import tiles
from .layout import layout_of
from .measure import timed
from .panels import Tile
from .shim import SIMULATED, capability, cuda
from .tensor import BF16, FMA, TENSOR_LARGE, TENSOR_SMALL, TF32

__all__ = ["Trial", "arithmetic", "bf16_refusal", "described", "least", "trial", "wrong"]

# Layers with both sides at least this wide are multiplied by tensor cores in float32, whose bounds that many terms keep
# (tensor.FEWEST); up to the second one a product is as much a matter of memory, and judged by itself.
WIDTH, WIDE = 64, 256

# Of the product that is timed: its inputs and outputs at most, its rows at most, and all three multiplied, which takes
# a GPU some 0.1 ms, so that launches do not count.
_WIDEST, _MOST_ROWS, _PRODUCTS, _ROUNDS = (16, 16, 1 << 12, 1) if SIMULATED else (1024, 1 << 17, 1 << 32, 9)
# Rows and columns of the product that is checked, with edges of both tiles.
_CHECKED, _TERMS = (19, 11) if SIMULATED else (203, 91), 64


class Trial(NamedTuple):
    """What became of an arithmetic: `refused` says why it is not used, "" where it is, `gain` how much faster it is."""

    refused: str
    gain: float


def arithmetic(plan: Plan, stage: Stage) -> str:
    """Of the products of a stage: a rule about the layer, since no bit may depend on rows."""
    if not stage.has_dense:
        return FMA
    if plan.precision == "bf16":
        return BF16 if stage.in_bf16 else FMA
    side = min(stage.inputs, stage.outputs)
    if plan.dtype != "float32" or side < WIDTH:
        return FMA
    return FMA if trial(TF32, *_judge(side)).refused else TF32


def least(arithmetic: str) -> int:
    """The side from which layers have an arithmetic."""
    return {FMA: 0, TF32: WIDTH, BF16: BF16_WIDTH}[arithmetic]


def _judge(side: int) -> tuple[int, int]:
    """Inputs and outputs of the product that decides for float32 layers of such a least side: of two sizes."""
    return (_WIDEST, _WIDEST) if side >= WIDE else (WIDTH, WIDTH)


def bf16_refusal(plan: Plan) -> str | None:
    """Why precision bf16 cannot run on this device, or would not pay: by its largest layer, as on a CPU."""
    dense = [stage for stage in plan.stages if stage.has_dense]
    wide = [stage for stage in dense if stage.in_bf16]
    if not dense:
        return None
    if not wide:
        return BF16_NARROW
    largest = max(wide, key=lambda stage: stage.inputs * stage.outputs)
    refused = trial(BF16, min(largest.inputs, _WIDEST), min(largest.outputs, _WIDEST)).refused
    return f"precision bf16 {refused}; use precision='float32'" if refused else None


def described() -> str:
    """What tensor cores are used for on this device, and what they gain, in words."""
    words = [
        f"{what} {made.refused or f'{made.gain:.1f} times as fast'}"
        for what, made in (
            (f"float32 layers from {WIDTH} units on", trial(TF32, *_judge(WIDTH))),
            (f"from {WIDE} on", trial(TF32, *_judge(WIDE))),
            ("precision bf16", trial(BF16, *_judge(WIDE))),
        )
    ]
    return f"products of {', '.join(words)}, measured now"


@cache
def trial(arithmetic: str, inputs: int, outputs: int) -> Trial:
    """Whether tensor cores serve a layer here; the first time it takes the seconds that kernels take to compile."""
    if SIMULATED:
        return Trial("", 1.0)
    found = capability()
    if found < (8, 0):
        return Trial(f"is not available (compute capability {found[0]}.{found[1]}, from 8.0 on GPUs have it)", 0.0)
    reason = wrong(arithmetic)
    if reason:
        return Trial(f"is not available ({reason})", 0.0)
    gain = _gain(arithmetic, inputs, outputs)
    if gain < 1.1:
        shape = f"({_rows(inputs, outputs)}, {inputs}) x ({inputs}, {outputs})"
        return Trial(f"does not pay: the product {shape} takes {1 / gain:.2f} of float32's time here", gain)
    return Trial("", gain)


def _rows(inputs: int, outputs: int) -> int:
    return min(_MOST_ROWS, _PRODUCTS // (inputs * outputs))


@cache
def wrong(arithmetic: str) -> str:
    """In which tile products are beyond the bounds of float32, or "": of few terms, where these are tightest."""
    rng, (rows, columns) = np.random.default_rng(0), _CHECKED
    bits = 7 if arithmetic == BF16 else 23  # numbers that are exact in the precision
    x, w = (rng.integers(-(2**bits), 2**bits, shape) / 2.0**bits for shape in ((rows, _TERMS), (_TERMS, columns)))
    bound = (_TERMS + 1) * 2.0**-24 * (np.abs(x) @ np.abs(w))
    for tile in (TENSOR_SMALL, TENSOR_LARGE):
        product = _Product(x, w, tile, arithmetic)
        product.launch()
        error = np.abs(product.found() - x @ w) / bound
        if not error.max() <= 1.0:
            return f"a tile of {tile.rows} x {tile.columns} is off by {error.max():.3g} times float32's bound"
    return ""


def _gain(arithmetic: str, inputs: int, outputs: int) -> float:
    """How often faster than multiply-adds a product is; the best of some rounds, in turns."""
    x, w = np.ones((_rows(inputs, outputs), inputs)), np.ones((inputs, outputs))
    products = [_Product(x, w, TENSOR_LARGE, name) for name in (FMA, arithmetic)]
    best = [np.inf, np.inf]
    for _ in range(1 + _ROUNDS):  # the first compiles
        for i, product in enumerate(products):
            best[i] = min(best[i], timed(product.launch))
    return best[0] / best[1]


class _Product:
    """x w on the device, by the kernel of a layer."""

    def __init__(self, x: np.ndarray, w: np.ndarray, tile: Tile, arithmetic: str) -> None:
        rows, columns = self.shape = len(x), w.shape[1]
        identity = ops.get_activation("identity")
        stage = Stage(x.shape[1], columns, 0, None, identity, 256, 0, False)
        plan = Plan((stage,), "float32", ops.get_loss("mse"), ops.SGD(), w.size)
        made = layout_of(plan, rows, 0, training=False)
        for name in ("total", "batch", "piece"):
            made.frame[0][name] = rows
        host = np.zeros(made.reals, np.float32)
        host[: w.size] = w.ravel()
        start = int(made.stages[0]["x"])
        host[start : start + x.size] = x.ravel()
        self.m: Any = cuda.to_device(host)
        self.tables = cuda.to_device(made.frame), cuda.to_device(made.stages)
        self.at = int(made.stages[0]["a"])
        self.run = tiles.forward("float32", tile, "identity", arithmetic)
        self.configuration = tile.grid(rows, columns), tile.threads

    def launch(self) -> None:
        self.run[self.configuration](*self.tables, self.m, 0, 0, False, False)

    def found(self) -> np.ndarray:
        rows, columns = self.shape
        return self.m.copy_to_host()[self.at : self.at + rows * columns].reshape(self.shape).astype(np.float64)
