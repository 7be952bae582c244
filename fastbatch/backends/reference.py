"""The reference: the four kernels in NumPy, obvious and dtype-generic. It is the specification, so it is never fast."""

from __future__ import annotations

import numpy as np

from .. import ops
from ..plan import Plan
from ..protocol import Program, State, Steps, Sums

__all__ = ["Reference"]

Array = np.ndarray


# Overflow is part of the specification: it shows in the values, which the program checks, and not as a warning.
_quiet = np.errstate(all="ignore")


class Reference:
    name = "reference"

    def supports(self, plan: Plan) -> str | None:
        return "precision bf16 lives in the c backend" if plan.precision == "bf16" else None

    @_quiet
    def dense_forward(
        self, x: Array, w: Array, b: Array | None, activation: ops.Activation, a: Array, z: Array | None
    ) -> None:
        pre = x @ w if b is None else x @ w + b
        a[...] = activation.value(pre)
        if z is not None:
            z[...] = pre

    @_quiet
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
        dz = da if saved is None else da * activation.slope(saved)
        dw += x.T @ dz
        if db is not None:
            db += dz.sum(axis=0)
        if dx is not None:
            dx[...] = dz @ w.T

    @_quiet
    def loss(self, a: Array, y: Array, loss: ops.Loss, weight: Array | None, da: Array) -> Sums:
        value, slope, share = loss.rows(a, y)
        if weight is not None:
            value, slope, share = value * weight, slope * weight[:, None], share * weight
        da[...] = slope
        return Sums(float(value.sum(dtype=np.float64)), float(share.sum(dtype=np.float64)))

    @_quiet
    def update(self, optimizer: ops.Optimizer, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        optimizer.update(p, g, slots, t, lr)

    def permutation(self, n: int, seed: int, epoch: int) -> Array:
        return ops.random.permutation(n, seed, epoch)

    def program(self, plan: Plan, state: State, num_threads: int | None) -> Program | None:
        return None

    def steps(self, plan: Plan, state: State, num_threads: int | None) -> Steps | None:
        return None
