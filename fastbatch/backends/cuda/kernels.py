"""The four kernels on arrays of the host: sent, worked on by what steps are made of, brought back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ... import ops
from ...plan import Plan, Stage
from ...protocol import Sums
from . import tiles
from .layout import device_plan
from .memory import Memory, Rows
from .shim import cuda

__all__ = ["dense_backward", "dense_forward", "loss", "update"]

Array = np.ndarray
_IDENTITY = ops.get_activation("identity")
_QUEUE = 0  # the one that every call waits for


def _layer(x: Array, outputs: int, bias: bool, activation: ops.Activation) -> Memory:
    """A layer behind a stage that does nothing, whose outputs are x."""
    inputs = x.shape[1]
    below = Stage(inputs, inputs, None, None, _IDENTITY, 256, 0, False)
    layer = Stage(inputs, outputs, 0, inputs * outputs if bias else None, activation, 256, 0, True)
    plan = Plan((below, layer), x.dtype.name, ops.get_loss("mse"), ops.SGD(), (inputs + bias) * outputs)
    memory = Memory(device_plan(plan), len(x))
    memory.begin(total=len(x), batch=len(x), piece=len(x))
    memory.put(int(memory.layout.stages[1]["x"]), x)
    return memory


def dense_forward(x: Array, w: Array, b: Array | None, activation: ops.Activation, a: Array, z: Array | None) -> None:
    if not len(x):
        return
    memory = _layer(x, w.shape[1], b is not None, activation)
    memory.put(0, w)
    if b is not None:
        memory.put(w.size, b)
    for row, to in ((_IDENTITY, z), (memory.plan.stages[1].activation, a)):
        if to is not None:
            run, tile = memory.product(tiles.FORWARD, 1, row.name, *a.shape)
            run[tile.grid(*a.shape), tile.threads](memory.frame, memory.stages, memory.m, 1, 0, False, False)
            to[...] = memory.fetch(int(memory.layout.stages[1]["a"]), a.shape)


def dense_backward(
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
    memory = _layer(x, w.shape[1], db is not None, activation)
    stages = memory.layout.stages
    memory.put(0, w)
    memory.put(int(stages[1]["dy"]), da)
    memory.put("gradient", dw)
    start = int(memory.host[0]["gradient"])
    if db is not None:
        memory.put(start + dw.size, db)
    if saved is not None:
        memory.put(int(stages[1]["saved"]), saved)
    memory.delta(1, 0, _QUEUE)
    memory.gradients(1, 0, True, _QUEUE)
    dw[...] = memory.fetch(start, dw.shape)
    if db is not None:
        db[...] = memory.fetch(start + dw.size, db.shape)
    if dx is not None:
        run, tile = memory.product(tiles.INPUT, 1, "identity", *x.shape)
        run[tile.grid(*x.shape), tile.threads](memory.frame, memory.stages, memory.m, 1, 0, False, False)
        dx[...] = memory.fetch(int(stages[0]["dy"]), x.shape)


def loss(a: Array, y: Array, loss: ops.Loss, weight: Array | None, da: Array) -> Sums:
    rows, outputs = a.shape
    if not rows:
        return Sums()
    stage = Stage(outputs, outputs, None, None, _IDENTITY, 256, 0, False)
    memory = Memory(Plan((stage,), a.dtype.name, loss, ops.SGD(), 0), rows)
    memory.labelled = y.ndim == 1
    memory.begin(total=rows, batch=rows, piece=rows)
    memory.units[:1].copy_to_device(np.ones(1))
    sent, target = cuda.to_device(np.ascontiguousarray(a)), cuda.to_device(np.ascontiguousarray(y).ravel())
    share = None if weight is None else cuda.to_device(weight)
    memory.gather(Rows(sent, target, share, None, y.ndim == 1), 0, _QUEUE)
    memory.forward(0, _QUEUE)
    memory.losses(0, _QUEUE)
    da[...] = memory.fetch(int(memory.layout.stages[0]["dy"]), da.shape)
    f = memory.state()
    return Sums(float(f["loss"]), float(f["weight"]))


def update(optimizer: ops.Optimizer, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
    if not p.size:
        return
    stage = Stage(p.size, 1, 0, None, _IDENTITY, 256, 0, False)
    alone = replace(optimizer, groups={}, frozen=(), max_norm=None)
    memory = Memory(Plan((stage,), p.dtype.name, ops.get_loss("mse"), alone, p.size), 1)
    segments = memory.layout.segments
    segments["by_weight"] = 0  # whoever calls has divided
    memory.segments.copy_to_device(segments)
    for place, values in ((0, p), ("slots", slots), ("gradient", g)):
        memory.put(place, values)
    memory.begin(scale=1.0, made=t - 1)
    memory.lrs[:1].copy_to_device(np.array([lr]))
    memory.units[:1].copy_to_device(np.ones(1))
    memory.move(_QUEUE)
    p[...] = memory.fetch(0, p.shape)
    slots[...] = memory.fetch("slots", slots.shape)
