"""The C backend: the four kernels of csrc/ on caller's arrays, and the fused program that runs whole epochs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .. import _native, memory, ops, threads
from ..arena import inference_arena, training_arena
from ..errors import ArgumentError, BackendError, DivergenceError, did_you_mean
from ..plan import Plan, Segment
from ..protocol import Feed, PerSample, State, Sums
from . import native_bf16
from .native_own import Rows, missing

__all__ = ["FusedProgram", "Native"]

Array = np.ndarray

_ACTIVATIONS = {name: row for row, name in enumerate(_native.activations)}
_LOSSES = {name: row for row, name in enumerate(_native.losses)}
_OPTIMIZERS = {name: row for row, name in enumerate(_native.optimizers)}
_ROWS = Rows(_native.register, _ACTIVATIONS, _LOSSES, _OPTIMIZERS)


def _choose_target(name: str | None) -> str:
    """The target to run: `name`, or the best usable one; BackendError lists what could be forced.

    A target of bfloat16 products leaves the others to the best one.
    """
    targets, bf16 = _native.targets(), _native.bf16_targets()
    usable = [target for target, works in targets.items() if works]
    if not name or not bf16.get(name, "absent"):
        return usable[-1]
    if name in bf16:
        raise BackendError(f"target {name!r}: {bf16[name]}")
    if name not in usable:
        why = "this CPU cannot run it" if name in targets else "it is not one of the compiled targets"
        raise BackendError(f"target {name!r}: {why}; expected one of {', '.join(usable)}{did_you_mean(name, usable)}")
    return name


# fb_segment of csrc/fastbatch.h
SEGMENT_DTYPE = np.dtype(
    [
        *((name, np.int64) for name in ("begin", "end", "rule")),
        *((name, np.float64) for name in ("l1", "lr_factor", "by_weight", "ahead")),
        ("hyper", np.float64, _native.MAX_HYPER),
    ]
)


def _segments(segments: Sequence[Segment], dtype: str) -> Array:
    table = np.zeros(len(segments), SEGMENT_DTYPE)
    for row, segment in zip(table, segments):
        optimizer, constants = segment.optimizer, segment.optimizer.constants()
        row["begin"], row["end"], row["rule"] = segment.begin, segment.end, _ROWS.rule(optimizer, dtype)
        row["l1"], row["lr_factor"], row["by_weight"] = optimizer.l1, segment.lr_factor, optimizer.by_weight
        row["ahead"] = optimizer.ahead
        names = list(constants) if optimizer.formula is not None else _native.optimizers[optimizer.rule]
        row["hyper"][: len(names)] = [constants[name] for name in names]
    return table


def _norms(plan: Plan) -> Array | None:
    """Memory of the norms of blocks of the parameters."""
    if not plan.optimizer.normed:
        return None
    return np.zeros((sum(-(-(s.end - s.begin) // _native.NORM_BLOCK) for s in plan.segments), 2))


# fb_unit of csrc/fastbatch.h
UNIT_DTYPE = np.dtype([("begin", np.int64), ("end", np.int64), ("squares", np.float64)])
_UNITS = 64  # about; threads share the parameters out by them
_UNIT_ROWS = 24  # whole tiles of every target


def _units(plan: Plan) -> Array | None:
    """Stretches whose squares are summed apart where the norm is limited: whole rows of weights, or a norm."""
    if plan.max_norm is None:
        return None
    ends = []
    for stage in plan.stages:
        if stage.w is not None:
            rows = stage.inputs + (stage.b is not None)
            at_once = -(-plan.num_parameters // (_UNITS * stage.outputs * _UNIT_ROWS)) * _UNIT_ROWS
            ends += [stage.w + min(row + at_once, rows) * stage.outputs for row in range(0, rows, at_once)]
        if stage.norm is not None:
            ends.append(stage.norm.beta + stage.outputs)
    table = np.zeros(len(ends), UNIT_DTYPE)
    table["end"] = ends
    table["begin"][1:] = ends[:-1]
    return table


def _per_output(loss: ops.Loss, outputs: int, dtype: str) -> Array | None:
    return None if loss.per_output is None else np.ascontiguousarray(np.broadcast_to(loss.per_output, outputs), dtype)


threads.follow(_native.set_thread_policy)

# Rows that a product of the weights' gradient takes at a time in bfloat16; BLOCK_K of csrc/kernels/dense_bf16.inc.
_BF16_ROWS = 32

# Swaps of a shuffle in one call: some 10 ms, so that Ctrl-C is heard in between.
_SWAPS = 1 << 18


class Native:
    """The four kernels. `target` forces an instruction set; by default FASTBATCH_TARGET or the best usable one.

    Attributes
    ----------
    target : str
    bf16_target : str or None
        What precision bf16 runs on: the forced one, or the best usable one; None where a float32 target was forced.
    """

    name = "c"

    def __init__(self, target: str | None = None) -> None:
        target = target or os.environ.get("FASTBATCH_TARGET") or None
        self.target = _choose_target(target)
        found = _native.bf16_targets()
        self._bf16_forced = target in found
        usable = [name for name, missing in found.items() if not missing and target in (None, name)]
        self.bf16_target = usable[-1] if usable else None
        self.bf16_missing = (
            f"target {target} was forced, and it has no bfloat16 products; {' and '.join(found)} have"
            if target and found
            else "; ".join(f"{name}: {missing}" for name, missing in found.items())
            or "bfloat16 targets are compiled for x86-64 Linux only"
        )
        self._kernels = {dtype: _native.Kernels(self.target, dtype) for dtype in ("float32", "float64")}

    def shape(self, dtype: str) -> tuple[int, int, int]:
        """Lanes of a vector, rows of a tile, vectors of a tile."""
        return self._kernels[dtype].shape

    def supports(self, plan: Plan) -> str | None:
        reason = missing(plan)
        if reason is not None:
            return reason
        for stage in plan.stages:
            if stage.activation.formula is None and stage.activation.name not in _ACTIVATIONS:
                return f"activation {stage.activation.name!r} has no row in csrc/ops/activations.def"
        if plan.loss.formula is None and plan.loss.name not in _LOSSES:
            return f"loss {plan.loss.name!r} has no row in csrc/ops/losses.def"
        if plan.optimizer.formula is None and plan.optimizer.rule not in _OPTIMIZERS:
            return f"optimizer rule {plan.optimizer.rule!r} has no row in csrc/ops/optimizers.def"
        return self._bf16_refusal(plan, native_bf16.TRIAL_ROWS) if plan.precision == "bf16" else None

    def _bf16_refusal(self, plan: Plan, rows: int) -> str | None:
        """Why precision bf16 cannot run here, or would not pay for so many rows at a time."""
        if self.bf16_target is None:
            return f"precision bf16 is not available ({self.bf16_missing}); use precision='float32'"
        if self._bf16_forced:
            return None
        return native_bf16.refusal(plan, rows, self.target, self.bf16_target)

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, activation: ops.Activation, a: Array, z: Array | None
    ) -> None:
        row = _ROWS.activation(activation, x.dtype.name)
        self._kernels[x.dtype.name].dense_forward(x, w, b, row, a if z is None else z, a)

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
        dz, kernels = da, self._kernels[x.dtype.name]
        if activation.saves != "none":
            dz = da.copy()
            kernels.slope(_ROWS.activation(activation, x.dtype.name), saved, dz)
        kernels.dense_backward(dz, x, w, dw, db, dx)

    def loss(self, a: Array, y: Array, loss: ops.Loss, weight: Array | None, da: Array) -> Sums:
        weight = np.ones(len(a)) if weight is None else weight.astype(np.float64)
        share = weight
        per_output = _per_output(loss, a.shape[1], a.dtype.name)
        if y.ndim == 1:
            labels, y = y, np.zeros_like(a)
            y[np.arange(len(labels)), labels] = 1
            if per_output is not None:
                share = weight * per_output[labels]
        row_loss = np.empty(len(a))
        self._kernels[a.dtype.name].loss(
            _ROWS.loss(loss, a.dtype.name), loss.parameter, per_output, loss.divisors(a.shape[1]), a, y, weight,
            da, row_loss,
        )  # fmt: skip
        return Sums(float(row_loss.sum()), float(share.sum()))

    def update(self, optimizer: ops.Optimizer, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        segments = _segments([Segment(0, len(p), optimizer, 1.0)], p.dtype.name)
        self._kernels[p.dtype.name].update(segments, lr, t, p, g, slots)

    def permutation(self, n: int, seed: int, epoch: int) -> Array:
        order = np.arange(n, dtype=np.int64)
        for begin in range(0, n - 1, _SWAPS):
            self._kernels["float32"].permutation(order, seed, epoch & 0xFFFFFFFF, begin, min(begin + _SWAPS, n - 1))
        return order

    def program(self, plan: Plan, state: State, num_threads: int | None) -> FusedProgram:
        if plan.precision != "bf16":
            return FusedProgram(plan, state, self.target, num_threads)
        assert self.bf16_target is not None  # supports() has said so, and that many rows pay
        return FusedProgram(
            plan, state, self.bf16_target, num_threads, native_bf16.TRIAL_ROWS, partial(self._bf16_refusal, plan)
        )

    def steps(self, plan: Plan, state: State, num_threads: int | None) -> None:
        """Its programs are fused as a whole."""


# Rows of a block in predict: its activations stay in L2 for networks a few hundred wide.
_PREDICT_BLOCK = 128

# Share of a step's work that is the forward pass; weight and input gradients are as large each.
_FORWARD = 1 / 3

# The update of a parameter takes as long as so many flops of a product (0.3 ns against 150 GFLOP/s).
_UPDATE_FLOPS = 40

# So does what is done to an input or output of a stage besides the products: gather, activation, slope, loss (0.4 ns).
_ELEMENT_FLOPS = 60


class FusedProgram:
    """The program protocol in C: one call runs as many steps as fit its time budget, GIL released, nothing allocated.

    Memory is one arena for the largest batch seen so far; a larger batch makes a new one before anything runs. Predict
    has arenas of its own, one for each call at a time. `refusal` says why steps of fewer than `least_rows` rows are
    refused, or None.
    """

    def __init__(
        self,
        plan: Plan,
        state: State,
        target: str,
        num_threads: int | None,
        least_rows: int = 1,
        refusal: Callable[[int], str | None] | None = None,
    ) -> None:
        self.plan, self.state, self.target, self.num_threads = plan, state, target, num_threads
        self._refusal = refusal
        self.lock = _native.Lock()
        # by what threads are shared out: flops of float32 that take as long; products in bfloat16 a quarter or less
        wide = np.dtype(plan.dtype).itemsize // 4
        elements = plan.stages[0].inputs + sum(stage.outputs for stage in plan.stages)
        self._flops_per_row = plan.flops_per_row * wide / (4 if plan.precision == "bf16" else 1)
        self._flops_per_row += _ELEMENT_FLOPS * wide * elements
        self._update_flops = _UPDATE_FLOPS * wide * plan.num_parameters
        self._rows = self._threads_reserved = -1
        self._training = self._network(1.0)
        self._training.least_rows = least_rows
        self._inference = self._network(_FORWARD)
        self._inference_arena = inference_arena(plan, _PREDICT_BLOCK, _ROWS.activations(plan))
        self._inference.place(self._inference_arena, None, None)
        # bound methods of the extension, without a frame of Python in between
        self.fast_step, self.fast_predict = self._training.fast_step, self._inference.fast_predict

    def _network(self, share: float) -> _native.Network:
        """The network in C; its calls do `share` of the work of a step."""
        plan, state = self.plan, self.state
        return _native.Network(
            self.target,
            state.parameters,
            state.slots,
            state.buffers,
            state.steps,
            state.seed,
            _ROWS.loss(plan.loss, plan.dtype),
            plan.loss.parameter,
            _per_output(plan.loss, plan.outputs, plan.dtype),
            plan.loss.divisors(plan.outputs),
            _segments(plan.segments, plan.dtype),
            plan.is_uniform,
            _norms(plan),
            _units(plan),
            plan.inputs,
            plan.outputs,
            "masked" if plan.loss.ignored is not None else plan.loss.targets,
            share * self._flops_per_row,
            0.0 if share == _FORWARD else self._update_flops,
            threads.allowed,
            threads.ALONE_BELOW,
            self.num_threads,
            self.lock,
            plan.max_norm or 0.0,
            plan.clip_value or 0.0,
            any(plan.column_limits),
            plan.sums_objective,
        )

    def _reserve(self, rows: int, threads_: int) -> None:
        if rows > self._rows or threads_ > self._threads_reserved:
            rows, threads_ = max(rows, self._rows), max(threads_, self._threads_reserved)
            arena = training_arena(
                self.plan, rows, _ROWS.activations(self.plan), _native.UPDATE_BLOCK, _native.PARTS,
                threads_, _native.STATISTICS,
            )  # fmt: skip
            self._training.place(arena, memory.zeros(arena.nbytes, np.uint8), np.empty(rows, np.int64))
            self._rows, self._threads_reserved = rows, threads_

    def _threads(self, rows: int, share: float = 1.0) -> int:
        # a program of any share but the forward pass ends in an update, now or later
        update = 0 if share == _FORWARD else self._update_flops
        return threads.allowed(self.num_threads, share * rows * self._flops_per_row + update)

    def scale_inputs(self, scale: Array | None, shift: Array | None) -> None:
        for network in (self._training, self._inference):
            network.scale_inputs(scale, shift)

    def retune(self, plan: Plan) -> None:
        table, norms = _segments(plan.segments, plan.dtype), _norms(plan)
        for network in (self._training, self._inference):
            network.update_by(table, plan.is_uniform, norms, any(plan.column_limits))
        before, self.plan = self.plan, plan
        if plan.column_limits != before.column_limits and self._rows > 0:  # they are in the table of stages
            rows, self._rows = self._rows, 0
            self._reserve(rows, self._threads_reserved)

    @property
    def running(self) -> Array | None:
        return self._training.running  # where the fast path sees it

    @running.setter
    def running(self, value: Array | None) -> None:
        self._training.running = value

    @property
    def tile_rows(self) -> int:
        if self.plan.is_small:
            return _native.PARTS[1]
        return _BF16_ROWS if self.plan.precision == "bf16" else 1

    @property
    def threads_used(self) -> int:
        return self._training.threads_used

    def _diverged(self, status: int, value: float) -> DivergenceError:
        what = "loss" if status == _native.LOSS_NOT_FINITE else "gradient"
        return DivergenceError.at(what, value, int(self.state.steps[0]))

    def _begin(self, rows: int) -> int:
        """Makes room for a pass over `rows` rows, where a forward may have left something; its number of threads."""
        self._training.pending = None
        threads_ = self._threads(rows)
        self._reserve(rows, threads_)
        return threads_

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        piece = feed.most
        threads_ = self._begin(piece)
        self.running = None
        step, status, value = self._training.run(
            feed.x, feed.y, feed.weight, feed.order, min(feed.batch, feed.rows), piece, feed.outputs, first, last, lrs,
            int(budget * 1e9), threads_, sums.totals, feed.noise, *feed.mix or (None, None),
        )  # fmt: skip
        if status != _native.OK:
            raise self._diverged(status, value)
        return step

    def admit(self, rows: int) -> None:
        if self._refusal is None or rows >= self._training.least_rows:
            return
        reason = self._refusal(rows)
        if reason is not None:
            raise BackendError(reason)
        self._training.least_rows = rows

    def reserve(self, rows: int) -> None:
        self._begin(rows)

    def accumulate(
        self,
        feed: Feed,
        first_row: int,
        gradient: Array | None,
        sums: Sums | None = None,
        rows: PerSample | None = None,
    ) -> Sums:
        before = sums or Sums()
        threads_ = self._begin(feed.rows)
        return Sums(
            *self._training.accumulate(
                feed.x, feed.y, feed.weight, first_row, gradient, threads_, before.loss, before.weight, rows
            )
        )

    def forward(self, x: Array, first_row: int, training: bool) -> Array:
        out = np.empty((len(x), self.plan.outputs), self.plan.dtype)
        if not training:
            self.predict(x, out)
            return out
        self._begin(len(x))  # backward's threads, too
        running = (self.state.buffers if self.running is None else self.running).copy()
        self._training.forward(x, first_row, out, self._threads(len(x), _FORWARD), running)
        self.running = running if running.size else None  # else the fast path would have to ask which it is
        self._training.pending = x, first_row
        return out

    def backward(self, dz: Array, gradient: Array) -> None:
        if self._training.pending is None:
            raise ArgumentError("backward: expected a forward(x, training=True) before it, got none")
        (x, first_row), self._training.pending = self._training.pending, None
        threads_ = min(self._threads(len(x), 1 - _FORWARD), self._threads_reserved)
        self._training.backward(x, first_row, dz, gradient, threads_)

    def update(self, gradient: Array, scale: float, lr: float) -> None:
        self._reserve(1, 1)
        threads_ = threads.allowed(self.num_threads, self._update_flops)
        running, self.running = self.running, None
        status = self._training.update(gradient, scale, lr, threads_, running)
        if status != _native.OK:
            raise self._diverged(status, float(np.abs(gradient).max()) * scale)

    def predict(self, x: Array, out: Array) -> None:
        count, nbytes = self._threads(len(x), _FORWARD), self._inference_arena.nbytes
        if count > 1:
            self._inference.predict(x, out, memory.zeros(count * nbytes, np.uint8), count)
            return
        arena = self._inference.take_spare()
        if arena is None:
            arena = memory.zeros(nbytes, np.uint8)
        self._inference.predict(x, out, arena, 1)
        self._inference.keep_spare(arena)
