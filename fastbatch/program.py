"""Programs for any backend: forward, gradients, step and run composed from the four kernels.

A backend that is fast on its own offers a fused program; its contract is to equal this composition within the bounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock

import numpy as np

from . import ops
from .backends import default_name, select
from .checks import as_array, as_given, as_rows, count, is_foreign, weight_unit
from .errors import ArgumentError, DivergenceError
from .model import Sequential
from .plan import Norm, Plan, Stage, make_plan
from .protocol import Backend, Feed, PerSample, Program, State, Steps, Sums

__all__ = ["ComposedProgram", "gradient_norms", "make_program", "predict", "predict_rows"]

Array = np.ndarray

# Inputs that fused steps cannot read as they lie are converted so many bytes at a time: they stay in L2.
_CONVERTED_BYTES = 1 << 19


@dataclass
class _Trace:
    """What forward leaves for backward, one per stage."""

    stage: Stage
    x: Array
    normal: Array | None  # the norm's output before gamma and beta, and one over the deviation
    factor: Array | None
    groups: list[slice]  # rows that share their statistics
    saved: Array | None
    mask: Array | None


class ComposedProgram:
    """The program protocol from the four kernels; the specification of every fused run.

    Training steps are the backend's own where it has fused ones.
    """

    def __init__(self, plan: Plan, kernels: Backend, state: State, num_threads: int | None = None) -> None:
        self.plan, self.kernels, self.state = plan, kernels, state
        self._num_threads = num_threads
        self._steps = kernels.steps(plan, state, num_threads)
        self.lock = RLock()
        self._pending: Callable[[Array, Array], None] | None = None
        self._scale: Array | None = None
        self._shift: Array | None = None
        self.running: Array | None = None  # statistics that the next update makes those of the state

    @property
    def threads_used(self) -> int:
        return 1 if self._steps is None else self._steps.threads_used

    @property
    def tile_rows(self) -> int:
        return 1 if self._steps is None else self._steps.tile_rows

    def scale_inputs(self, scale: Array | None, shift: Array | None) -> None:
        self._scale, self._shift = scale, shift

    def retune(self, plan: Plan) -> None:
        self.plan = plan
        self._steps = self.kernels.steps(plan, self.state, self._num_threads)

    def _affine(self, stage: Stage, flat: Array) -> tuple[Array, Array | None]:
        i, o = stage.inputs, stage.outputs
        assert stage.w is not None
        w = flat[stage.w : stage.w + i * o].reshape(i, o)
        return w, None if stage.b is None else flat[stage.b : stage.b + o]

    def _of_norm(self, norm: Norm, width: int, flat: Array) -> tuple[Array, Array]:
        return flat[norm.gamma : norm.gamma + width], flat[norm.beta : norm.beta + width]

    @np.errstate(all="ignore")
    def _normalise(self, norm: Norm, x: Array, running: Array | None) -> tuple[Array, Array, Array, list[slice]]:
        """Output of the norm, and what its backward needs; moves `running`, which is given in training."""
        rows, width = x.shape
        gamma, beta = self._of_norm(norm, width, self.state.parameters)
        if not norm.over_rows:
            normal, factor = ops.norms.normalise(x, *ops.norms.moments(x, 1), norm.eps)
            return normal * gamma + beta, normal, factor, []
        mean, var = (slice(start, start + width) for start in (norm.mean, norm.var) if start is not None)
        if running is None:
            normal, factor = ops.norms.normalise(x, self.state.buffers[mean], self.state.buffers[var], norm.eps)
            return normal * gamma + beta, normal, factor, []
        size = norm.ghost_size or rows
        groups = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        normal, factor = np.empty_like(x), np.empty_like(x)
        for group in groups:
            n, moments = len(x[group]), ops.norms.moments(x[group], 0)
            normal[group], factor[group] = ops.norms.normalise(x[group], *moments, norm.eps)
            if n > 1:
                new = moments[0][0], moments[1][0] * x.dtype.type(n / (n - 1))
                for where, value in zip((mean, var), new):
                    running[where] = ops.norms.running(running[where], value, norm.momentum)
        return normal * gamma + beta, normal, factor, groups

    def _forward(
        self, x: Array, first_row: int, training: bool, running: Array | None = None
    ) -> tuple[Array, list[_Trace]]:
        """Outputs and traces; in training statistics go into `running`, or nowhere."""
        traces = []
        identity = ops.get_activation("identity")
        if training and running is None:
            running = self.state.buffers.copy()
        for stage in self.plan.stages:
            saves, z = stage.activation.saves, x
            normal, factor = None, None
            groups: list[slice] = []
            a = np.empty((len(x), stage.outputs), x.dtype)
            if stage.has_dense:
                w, b = self._affine(stage, self.state.parameters)
                z = np.empty_like(a)
                if stage.norm is None:
                    self.kernels.dense_forward(x, w, b, stage.activation, a, z if saves == "z" else None)
                else:
                    self.kernels.dense_forward(x, w, b, identity, z, None)
            if stage.norm is not None:
                z, normal, factor, groups = self._normalise(stage.norm, z, running if training else None)
            if stage.norm is not None or not stage.has_dense:
                a[...] = stage.activation.value(z)
            saved, mask = {"none": None, "a": a, "z": z}[saves], None
            if training and stage.has_dropout:
                rows = np.arange(first_row, first_row + len(x))
                mask = ops.random.dropout_mask(
                    self.state.seed, int(self.state.steps[0]), stage.layer, rows, stage.outputs, stage.threshold
                )
                a = self._masked(a, mask, stage)
            traces.append(_Trace(stage, x, normal, factor, groups, saved, mask))
            x = a
        return x, traces

    @np.errstate(all="ignore")
    def _masked(self, a: Array, mask: Array, stage: Stage) -> Array:
        return np.where(mask, a * a.dtype.type(256 / stage.threshold), 0).astype(a.dtype, copy=False)

    def _backward(self, da: Array, traces: list[_Trace], gradient: Array, rows: PerSample | None = None) -> None:
        layer = sum(stage.has_dense for stage in self.plan.stages)
        identity = ops.get_activation("identity")
        for trace in reversed(traces):
            stage, saved, activation = trace.stage, trace.saved, trace.stage.activation
            if trace.mask is not None:
                da = self._masked(da, trace.mask, stage)
            if stage.norm is not None:
                da = self._norm_backward(da, trace, gradient, rows or PerSample())
                saved, activation = None, identity
            if stage.has_dense:
                w, _ = self._affine(stage, self.state.parameters)
                dw, db = self._affine(stage, gradient)
                dx = np.empty_like(trace.x) if stage.needs_dx else None
                layer -= 1
                if rows is not None:
                    self._norms(da, trace.x, saved, activation, layer, rows)
                below = dx
                if rows is not None and rows.scale is not None:
                    # once for dx, whose dw is dropped, and once for dw
                    scratch = np.zeros_like(dw)
                    self.kernels.dense_backward(da, trace.x, w, saved, activation, scratch, None, dx)
                    da, dx = self._scaled(da, rows.scale), None
                self.kernels.dense_backward(da, trace.x, w, saved, activation, dw, db, dx)
                if below is None:
                    return
                da = below
            elif saved is not None:
                da = da * activation.slope(saved)

    @np.errstate(all="ignore")
    def _norm_backward(self, da: Array, trace: _Trace, gradient: Array, rows: PerSample) -> Array:
        """Adds dgamma and dbeta to `gradient`; returns the gradient with respect to what the norm read."""
        stage, normal, factor = trace.stage, trace.normal, trace.factor
        assert stage.norm is not None
        assert normal is not None
        assert factor is not None
        dz = da if trace.saved is None else da * stage.activation.slope(trace.saved)
        if rows.norm_norms is not None:
            for terms in (dz, dz * normal):
                rows.norm_norms += np.square(terms, dtype=np.float64).sum(axis=1)
        counted = dz if rows.scale is None else self._scaled(dz, rows.scale)
        dgamma, dbeta = self._of_norm(stage.norm, stage.outputs, gradient)
        dgamma += (counted * normal).sum(axis=0)
        dbeta += counted.sum(axis=0)
        d = dz * self._of_norm(stage.norm, stage.outputs, self.state.parameters)[0]
        if not stage.norm.over_rows:
            return ops.norms.normalise_backward(d, normal, factor, 1)
        dx = np.empty_like(d)
        for group in trace.groups:
            dx[group] = ops.norms.normalise_backward(d[group], normal[group], factor[group], 0)
        return dx

    @np.errstate(all="ignore")
    def _norms(
        self, da: Array, x: Array, saved: Array | None, activation: ops.Activation, layer: int, rows: PerSample
    ) -> None:
        if rows.input_norms is not None:
            rows.input_norms[layer] = np.square(x, dtype=np.float64).sum(axis=1)
        if rows.delta_norms is not None:
            dz = da if saved is None else da * activation.slope(saved)
            rows.delta_norms[layer] = np.square(dz, dtype=np.float64).sum(axis=1)

    @np.errstate(all="ignore")
    def _scaled(self, da: Array, scale: Array) -> Array:
        return da * scale[:, None]

    @np.errstate(all="ignore")
    def _losses(self, outputs: Array, y: Array, weight: Array | None, rows: PerSample) -> None:
        loss, _, share = self.plan.loss.rows(outputs, y)
        weight = np.ones(len(y)) if weight is None else weight
        if rows.loss is not None:
            rows.loss[:] = weight * loss
        if rows.weight is not None:
            rows.weight[:] = weight * share

    @np.errstate(all="ignore")
    def _inputs(self, x: Array) -> Array:
        """Rows as they lie, as inputs of the network."""
        x = np.ascontiguousarray(x, self.plan.dtype)
        return x if self._scale is None else x * self._scale + self._shift

    def _batch(self, feed: Feed, rows: slice | Array) -> tuple[Array, Array, Array | None]:
        index = rows if feed.order is None else feed.order[rows]
        return self._inputs(feed.x[index]), feed.y[index], None if feed.weight is None else feed.weight[index]

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        deadline = time.monotonic() + budget
        self._pending = self.running = None
        if self._steps is not None and feed.mix is None:
            return self._run_fused(self._steps, feed, first, last, lrs, budget, sums)
        for step in range(first, last):
            rows = slice(step * feed.batch, min((step + 1) * feed.batch, feed.rows))
            # only ratios of weights matter within a step; a power of two brings them to where float32 holds them
            weight = self._batch(feed, rows)[2]
            unit = 1.0 if weight is None else weight_unit(weight)
            gradient, batch = np.zeros(self.plan.num_parameters, self.plan.dtype), Sums()
            running = self.state.buffers.copy()
            for start in range(rows.start, rows.stop, feed.most):
                piece = slice(start, min(start + feed.most, rows.stop))
                batch += self._piece(feed, piece, start - rows.start, unit, gradient, running)
            if not np.isfinite(batch.loss):
                raise DivergenceError.at("loss", batch.mean(), int(self.state.steps[0]))
            scale = 1 / batch.weight if batch.weight else 0.0
            batch.totals[:2] /= unit
            if self.plan.sums_objective:
                batch = self._objective(batch, rows.stop - rows.start)
            self._update(gradient, scale, float(lrs[step - first]), (sums, batch), running, unit)
            if time.monotonic() >= deadline:
                return step + 1
        return last

    @np.errstate(all="ignore")
    def _objective(self, batch: Sums, rows: int) -> Sums:
        """What a step of `rows` rows counts for in scikit-learn's mean over an epoch; nothing without weight."""
        if not batch.weight:
            return Sums()
        penalty = 0.0
        for segment in self.plan.segments:
            if segment.optimizer.by_weight:
                part = self.state.parameters[segment.begin : segment.end]
                penalty += 0.5 * segment.optimizer.decay * float(np.square(part, dtype=np.float64).sum())
        return Sums(rows * ((batch.loss + penalty) / batch.weight), rows)

    def _run_fused(self, steps: Steps, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        if self._scale is None and not feed.noise and steps.takes(feed.x):
            return steps.run(feed, first, last, lrs, budget, sums)
        deadline = time.monotonic() + budget
        at_a_time = max(1, _CONVERTED_BYTES // (feed.batch * self.plan.inputs * np.dtype(self.plan.dtype).itemsize))
        step = first
        while step < last:
            stop = min(step + at_a_time, last)
            rows = slice(step * feed.batch, min(stop * feed.batch, feed.rows))
            x, y, weight = self._batch(feed, rows)
            if feed.noise:
                x = x + x.dtype.type(feed.noise) * self._noise(feed, step, len(x))
            outputs = None if feed.outputs is None else feed.outputs[rows]
            part = Feed(x, y, weight, batch=feed.batch, outputs=outputs, piece=feed.piece)
            left = deadline - time.monotonic()
            made = steps.run(part, 0, stop - step, lrs[step - first : stop - first], left, sums)
            step += made
            if time.monotonic() >= deadline:
                break
        return step

    def _noise(self, feed: Feed, step: int, count: int) -> Array:
        """Of the `count` rows of some steps, of which the first is `step`."""
        made, parts = int(self.state.steps[0]), []
        for start in range(0, count, feed.batch):
            rows = np.arange(min(feed.batch, count - start))
            update = made + start // feed.batch
            parts.append(ops.random.gaussian(self.state.seed, update, rows, self.plan.inputs, self.plan.dtype))
        return np.concatenate(parts)

    def _piece(self, feed: Feed, rows: slice, first_row: int, unit: float, gradient: Array, running: Array) -> Sums:
        """Add the gradient sums of these rows of a step, weights times `unit`; statistics go into `running`."""
        x, y, weight = self._batch(feed, rows)
        total = None
        if feed.mix is not None:
            x, y, weight, total = self._mixed(feed, rows, first_row, x, y, weight)
        if feed.noise:
            x = x + x.dtype.type(feed.noise) * ops.random.gaussian(
                self.state.seed, int(self.state.steps[0]), first_row + np.arange(len(x)), x.shape[1], self.plan.dtype
            )
        outputs, traces = self._forward(x, first_row, True, running)
        da = np.empty_like(outputs)
        sums = self.kernels.loss(outputs, y, self.plan.loss, weight if weight is None else weight * unit, da)
        if total is not None:
            sums.totals[1] = unit * total
        self._backward(da, traces, gradient)
        if feed.outputs is not None:
            feed.outputs[rows] = outputs
        return sums

    @np.errstate(all="ignore")
    def _mixed(
        self, feed: Feed, rows: slice, first_row: int, x: Array, y: Array, weight: Array | None
    ) -> tuple[Array, Array, Array | None, float | None]:
        """Inputs, targets and weights of these rows as `feed.mix` says, and their total weight where those do not."""
        assert feed.mix is not None
        start = rows.start - first_row
        share, shift = (values[start // feed.batch] for values in feed.mix)
        if share == 1:
            return x, y, weight, None
        places = first_row + np.arange(len(x)) + shift
        others = self._batch(feed, start + places % min(feed.batch, feed.rows - start))
        real, ones = x.dtype.type, np.ones(len(x))
        own, rest = (
            share * (ones if weight is None else weight),
            (1 - share) * (ones if others[2] is None else others[2]),
        )
        both, total = own + rest, None
        keep = np.divide(own, both, out=np.ones_like(own), where=both > 0)[:, None]
        targets = y, others[1]
        if y.ndim == 1:
            per_output = self.plan.loss.per_output
            classes = np.broadcast_to(np.array(1 if per_output is None else per_output, real), self.plan.outputs)
            total = float((own * classes[targets[0]] + rest * classes[targets[1]]).sum(dtype=np.float64))
            targets = tuple(np.eye(self.plan.outputs, dtype=real)[labels] for labels in targets)
        mixed = keep.astype(real) * targets[0] + (1 - keep).astype(real) * targets[1]
        return real(share) * x + real(1 - share) * others[0], mixed, both, total

    def admit(self, rows: int) -> None:
        """Every number of rows is fine."""

    def reserve(self, rows: int) -> None:
        """Memory comes with each call."""

    def accumulate(
        self,
        feed: Feed,
        first_row: int,
        gradient: Array | None,
        sums: Sums | None = None,
        rows: PerSample | None = None,
    ) -> Sums:
        x, y, weight = self._batch(feed, slice(0, feed.rows))
        if self._steps is not None and len(x):
            self._pending = None  # its arena
            return self._steps.accumulate(Feed(x, y, weight, batch=len(x)), first_row, gradient, sums or Sums(), rows)
        if gradient is None:
            gradient = np.zeros(self.plan.num_parameters, self.plan.dtype)
        outputs, traces = self._forward(x, first_row, training=True)
        da = np.empty_like(outputs)
        piece = self.kernels.loss(outputs, y, self.plan.loss, weight, da)
        if rows is not None:
            self._losses(outputs, y, weight, rows)
            if rows.norm_norms is not None:
                rows.norm_norms[:] = 0
        self._backward(da, traces, gradient, rows)
        return piece if sums is None else sums + piece

    def forward(self, x: Array, first_row: int, training: bool) -> Array:
        if not training:
            outputs = np.empty((len(x), self.plan.outputs), self.plan.dtype)
            self.predict(x, outputs)
            return outputs
        x = self._inputs(x)
        running = (self.state.buffers if self.running is None else self.running).copy()
        if self._steps is not None and len(x):
            outputs = self._steps.forward(x, first_row, running)
            self._pending = partial(self._steps.backward, x, first_row)
        else:
            outputs, traces = self._forward(x, first_row, True, running)
            self._pending = partial(self._through, traces)
        self.running = running
        return outputs

    def _through(self, traces: list[_Trace], dz: Array, gradient: Array) -> None:
        self._backward(dz, traces, gradient)

    def backward(self, dz: Array, gradient: Array) -> None:
        if self._pending is None:
            raise ArgumentError("backward: expected a forward(x, training=True) before it, got none")
        through, self._pending = self._pending, None
        through(dz, gradient)

    def update(self, gradient: Array, scale: float, lr: float) -> None:
        running, self.running = self.running, None
        if self._steps is not None:
            self._steps.update(gradient, scale, lr, running)
            return
        self._update(gradient, scale, lr, (Sums(), Sums()), running)

    @np.errstate(all="ignore")
    def _update(
        self,
        gradient: Array,
        scale: float,
        lr: float,
        also: tuple[Sums, Sums],
        running: Array | None,
        unit: float = 1.0,
    ) -> None:
        """One update; with it the second of `also`, and the norm, is added to the first, and buffers become `running`.

        The batch's weights were multiplied by `unit`.
        """
        gradient = gradient * gradient.dtype.type(scale)
        if not np.isfinite(gradient).all():
            bad = gradient[~np.isfinite(gradient)][0]
            raise DivergenceError.at("gradient", float(bad), int(self.state.steps[0]))
        gradient, norm = self._clipped(gradient)
        sums, batch = also
        total = sums + batch + Sums(norm=norm)
        state, t = self.state, int(self.state.steps[0]) + 1
        parameters, slots = state.parameters.copy(), state.slots.copy()
        for segment in self.plan.segments:
            at = slice(segment.begin, segment.end)
            part = np.ascontiguousarray(slots[:, at])
            row = segment.optimizer.at_scale(scale * unit)
            self.kernels.update(row, parameters[at], gradient[at], part, t, lr * segment.lr_factor)
            slots[:, at] = part
        for stage, limit in zip(self.plan.stages, self.plan.column_limits):
            if limit is not None:
                ops.hold_columns(self._affine(stage, parameters)[0], limit)
        writes = [(state.parameters, parameters), (state.slots, slots), (state.steps, np.array([t]))]
        writes.append((sums.totals, total.totals))
        if running is not None:
            writes.append((state.buffers, running))
        try:
            _write(writes)
        except KeyboardInterrupt:  # between two of the writes: make all of them, then let it pass
            _write(writes)
            raise

    def _clipped(self, gradient: Array) -> tuple[Array, float]:
        """The gradient of an update, and its norm before; the norm is 0 where it is not limited."""
        plan, norm = self.plan, 0.0
        if plan.max_norm is not None:
            parts = (gradient[segment.begin : segment.end] for segment in plan.segments)  # frozen ones are in none
            norm = float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts)))
            if not np.isfinite(norm):
                raise DivergenceError.at("gradient", norm, int(self.state.steps[0]))
            gradient = gradient * gradient.dtype.type(min(1.0, plan.max_norm / (norm + 1e-6)))  # torch's constant
        if plan.clip_value is not None:
            gradient = np.clip(gradient, -plan.clip_value, plan.clip_value)
        return gradient, norm

    def predict(self, x: Array, out: Array) -> None:
        steps = self._steps
        if steps is not None and self._scale is None and steps.takes(x) and steps.predict(x, out):
            return
        rows = self._inputs(x)
        if steps is None or not steps.predict(rows, out):
            out[...] = self._forward(rows, 0, training=False)[0]

    def fast_step(self, x: object, y: object, lr: float) -> None:
        return None

    def fast_predict(self, x: object) -> None:
        return None


def _write(pairs: list[tuple[Array, Array]]) -> None:
    for target, values in pairs:
        target[...] = values


def make_program(
    plan: Plan, state: State, backend: str = "auto", num_threads: int | None = None, training: bool = True
) -> tuple[str, Program]:
    """The backend that runs `plan`, by name, and its program: fused where offered, composed otherwise.

    Raises
    ------
    BackendError
        When the backend is unknown, missing, or does not support the plan.
    """
    chosen = select(backend, plan, training)
    program = chosen.program(plan, state, num_threads)
    return chosen.name, ComposedProgram(plan, chosen, state, num_threads) if program is None else program


def _inference_program(model: Sequential) -> Program:
    """The program of model.predict, made on first use and kept by the model; it holds the model's buffer only."""
    wanted, cached = default_name(), model._inference
    if cached is None or cached[0] != wanted:
        plan = make_plan(model, ops.get_loss("mse"), ops.SGD())
        slots = np.empty((0, plan.num_parameters), model.dtype)
        state = State(model.parameters, slots, np.zeros(1, np.int64), 0, model.buffers)
        cached = model._inference = wanted, make_program(plan, state, training=False)[1]
    return cached[1]


# Rows whose activations are alive together in predict and gradient_norms: enough to amortise a call, small enough for
# the caches.
PREDICT_ROWS = 4096


def predict(model: Sequential, X, batch_size: int | None = None, validate: bool = True) -> Array:
    """See :meth:`fastbatch.Sequential.predict`."""
    if batch_size is None:
        outputs = _inference_program(model).fast_predict(X)
        if outputs is None and validate and is_foreign(X):
            outputs = _inference_program(model).fast_predict(as_array(X, "X"))
        if outputs is not None:
            return outputs
    if validate:
        x = as_rows(X, model.input_size, model.dtype, "X", model.first_dense, empty=True)
    else:
        x = as_given(X, model.input_size, model.dtype)
    block = PREDICT_ROWS if batch_size is None else count("batch_size", batch_size)
    return predict_rows(_inference_program(model), x, model, block)


def predict_rows(program: Program, x: Array, model: Sequential, block: int = PREDICT_ROWS) -> Array:
    """Outputs (n, O) of `program`, one of `model`, for rows that have passed the door, `block` of them at a time."""
    out = np.empty((len(x), model.output_size), model.dtype)
    for start in range(0, len(x), block):
        program.predict(x[start : start + block], out[start : start + block])
    return out


@np.errstate(all="ignore")
def gradient_norms(program: Program, feed: Feed, biases: Sequence[bool]) -> Array:
    """Norm of each row's own loss gradient (n,) float64, without its weight, for rows that have passed the door.

    `biases` says of each dense layer whether it has one. The first row of `feed` is row 0 of the logical batch.
    """
    squares, total = np.empty(feed.rows), np.empty(feed.rows)
    for start in range(0, feed.rows, PREDICT_ROWS):
        part = slice(start, start + PREDICT_ROWS)
        x, y, weight = feed.x[part], feed.y[part], None if feed.weight is None else feed.weight[part]
        inputs, deltas = np.empty((2, len(biases), len(x)))
        norms = squares[part]
        rows = PerSample(weight=total[part], input_norms=inputs, delta_norms=deltas, norm_norms=norms)
        program.accumulate(Feed(x, y, weight, batch=len(x)), start, None, rows=rows)
        inputs += np.array(biases)[:, None]  # a bias is a weight whose input is 1
        norms += np.einsum("ln,ln->n", inputs, deltas)
    # a class weight is a weight like any other; where it is 0 there is no gradient
    return np.divide(np.sqrt(squares), total, out=np.zeros_like(squares), where=total > 0)


Sequential._predict = staticmethod(predict)
