"""The numba backend: kernels and fused steps that Numba compiles on this machine, where there was no C compiler."""

from __future__ import annotations

import numpy as np

from ... import memory, ops
from ...plan import Plan
from ...protocol import Program, State, Sums
from .. import scalars
from . import entries
from .machine import VECTOR_BYTES
from .own import hyper_of, loss_number, row_number, rule_number
from .passes import ACTIVATION_INDEX, LOSS_INDEX, NORMED, OPTIMIZER_INDEX
from .steps import Steps, address, loss_constants, loss_weights
from .tiles import PANEL, ROWS

__all__ = ["Numba"]

Array = np.ndarray

# Swaps of a shuffle in one call: some 10 ms, so that Ctrl-C is heard in between.
_SWAPS = 1 << 18
# Words of it that are drawn together
_WORDS = 64


def _call(verb: int, dtype: str, numbers: list[int], values: tuple[float, ...] = ()) -> None:
    given, also = np.array(numbers, np.int64), np.array(values)
    entries.of(dtype)(verb, np.dtype(dtype).type(1), 0, 0, 0, address(given), address(also), 0, 1)


def _number(activation: ops.Activation, dtype: str) -> int:
    return row_number(ACTIVATION_INDEX, activation, dtype)


class Numba:
    name = "numba"

    def shape(self, dtype: str) -> tuple[int, int, int]:
        """Lanes of a vector, rows of a tile, vectors of a tile."""
        widest = max(ROWS)
        return VECTOR_BYTES // np.dtype(dtype).itemsize, ROWS[widest], widest

    def supports(self, plan: Plan) -> str | None:
        if plan.precision == "bf16":
            return "precision bf16 lives in the c backend"
        where = "fastbatch/backends/scalars"
        for stage in plan.stages:
            if stage.activation.formula is None and stage.activation.name not in ACTIVATION_INDEX:
                return f"activation {stage.activation.name!r} has no row in {where}/activations.py"
        if plan.loss.formula is None and plan.loss.name not in LOSS_INDEX:
            return f"loss {plan.loss.name!r} has no row in {where}/losses.py"
        if plan.optimizer.formula is None and plan.optimizer.rule not in OPTIMIZER_INDEX:
            return f"optimizer rule {plan.optimizer.rule!r} has no row in {where}/optimizers.py"
        return None

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, activation: ops.Activation, a: Array, z: Array | None
    ) -> None:
        if not len(x):
            return
        b = np.zeros(w.shape[1], w.dtype) if b is None else b
        panel = memory.zeros(PANEL, np.uint8)
        arrays = (address(v) for v in (x, w, b, a if z is None else z, a, panel))
        _call(entries.FORWARD, x.dtype.name, [len(x), *w.shape, *arrays, _number(activation, x.dtype.name)])

    def dense_backward(
        self,
        da: Array,
        x: Array,
        w: Array,
        saved: Array | None,
        activation: ops.Activation,
        dw: Array,
        db: Array | None,
        dx: Array | None,
    ) -> None:
        if not len(x):
            return
        dz = da if saved is None else da.copy()
        panel, zeros, ones = memory.zeros(PANEL, np.uint8), np.zeros(w.shape[0], w.dtype), np.ones(1, w.dtype)
        arrays = [address(v) for v in (x, w, dz, dw, db, dx)]
        index = _number(activation, x.dtype.name)
        last = [index, *map(address, (saved, panel, zeros, ones))]
        _call(entries.BACKWARD, x.dtype.name, [len(x), *w.shape, *arrays, *last])

    def loss(self, a: Array, y: Array, loss: ops.Loss, weight: Array | None, da: Array) -> Sums:
        rows, outputs = a.shape
        share = weight = np.ones(rows) if weight is None else weight.astype(np.float64)
        weights = loss_weights(loss, outputs, 1, a.dtype.name)
        labels = y if y.ndim == 1 else None
        if labels is not None:
            share = weight * weights[labels]
        targets = None if y.ndim == 1 else np.ascontiguousarray(y)
        row_loss, values = np.empty(rows), np.empty(outputs, a.dtype)
        arrays = [address(v) for v in (a, targets, labels, weights, weight, da, row_loss, values)]
        constants = (*loss_constants(loss), loss.parameter, *loss.divisors(outputs))
        _call(
            entries.LOSS, a.dtype.name, [rows, outputs, loss_number(LOSS_INDEX, loss, a.dtype.name), *arrays], constants
        )
        return Sums(float(row_loss.sum()), float(share.sum()))

    def update(self, optimizer: ops.Optimizer, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        values, hyper, spare = hyper_of(optimizer), np.zeros(scalars.HYPERS), np.empty(scalars.CONSTANTS)
        hyper[: len(values)] = values
        if optimizer.l1:
            g = g + p.dtype.type(optimizer.l1) * np.sign(p)
        if optimizer.ahead:
            p -= p.dtype.type(lr * optimizer.ahead) * p
        u = np.empty_like(p)
        arrays = [address(v) for v in (p, g, slots, hyper, spare, u)]
        index = rule_number(OPTIMIZER_INDEX, optimizer, p.dtype.name)
        _call(entries.MOVE, p.dtype.name, [len(p), index, *arrays, t, NORMED.get(optimizer.rule, 0)], (lr,))

    def permutation(self, n: int, seed: int, epoch: int) -> Array:
        order = np.arange(n, dtype=np.int64)
        key = int(np.uint64(seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64))
        words = np.empty((2, _WORDS), np.uint64)
        for begin in range(0, n - 1, _SWAPS):
            entries.permute()(order, key, epoch & 0xFFFFFFFF, begin, min(begin + _SWAPS, n - 1), *words)
        return order

    def program(self, plan: Plan, state: State, num_threads: int | None) -> Program | None:
        return None

    def steps(self, plan: Plan, state: State, num_threads: int | None) -> Steps | None:
        """Fused steps; None for what is left to composition: right, but slower."""
        composed = plan.sums_objective or any(segment.optimizer.ahead for segment in plan.segments)
        return None if composed else Steps(plan, state, num_threads)
