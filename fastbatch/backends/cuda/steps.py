"""Steps of a plan on the device: what a call uploads, queues, waits for and brings back.

The host owns parameters and slots, so that views of them are always current: a call uploads them, and brings them back
once, when all of its updates are made. In between nothing is waited for but the end of a slice of time.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from threading import RLock
from typing import Any

import numpy as np

from ...checks import weight_unit
from ...errors import DivergenceError
from ...plan import Plan
from ...protocol import Feed, PerSample, State, Sums
from .layout import device_plan, inference_plan
from .memory import Memory, Rows
from .shim import SIMULATED, Graph, as_device, cuda, free_bytes, is_on_device, stream
from .streaming import streamed
from .tiles import TILE_ROWS
from .updates import BAD_LOSS, OK

__all__ = ["Steps"]

Array = np.ndarray

# Learning rates that are on the device at a time, so steps that are queued before the host looks again.
_RATES = 8 if SIMULATED else 4096
# Rows of predict that are on the device at a time.
_PREDICT_ROWS = 16 if SIMULATED else 65536
# Inputs that are more than this share of what is free are streamed in blocks, of so many bytes.
_SHARE, BLOCK_BYTES = 0.5, 1 << 28


class Steps:
    """See :class:`fastbatch.protocol.Steps`. One call at a time; `predict` waits for its turn."""

    threads_used = 1
    tile_rows = TILE_ROWS

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan = plan = device_plan(plan)
        self.state = state
        self._lock = RLock()
        self._queue = stream()
        self._memory: Memory | None = None
        self._inference: Memory | None = None
        self._held: tuple[weakref.ref, tuple[Any, ...], tuple[Any, Any, Any]] | None = None
        self._order: Any = None
        self._graph: tuple[tuple[object, ...], Graph] | None = None
        self._pace: float | None = None  # seconds of a step
        updated = [range(s.begin, s.end) for s in plan.segments]
        self._trained = [any(at in part for part in updated for at in stage.places) for stage in plan.stages]
        trained = (i for i, stage in enumerate(plan.stages) if stage.is_trained)
        self._first_trained = next(trained, len(plan.stages))

    # -- memory --------------------------------------------------------------------------------------------------------

    def _reserve(self, rows: int, rates: int = 1) -> Memory:
        found = self._memory
        if found is None or rows > found.rows or rates > found.rates:
            rows, rates = (rows, rates) if found is None else (max(rows, found.rows), max(rates, found.rates))
            self._memory = self._graph = None  # what was taken is free before more is asked for
            found = self._memory = Memory(self.plan, rows, rates)
            seed = np.uint64(self.state.seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64)
            found.host[0]["seed"] = seed
        return found

    def _upload(self, memory: Memory) -> None:
        memory.put(0, self.state.parameters, self._queue)
        memory.put("slots", self.state.slots, self._queue)
        memory.put("buffers", self.state.buffers, self._queue)

    def _commit(
        self, memory: Memory, made: int, sums: Sums | None, totals: Array | None, running: Array | None = None
    ) -> None:
        """Everything that `made` updates have changed, at once as far as Ctrl-C is concerned."""
        state = self.state
        writes = [(state.parameters, memory.fetch(0, state.parameters.shape, self._queue))]
        writes.append((state.slots, memory.fetch("slots", state.slots.shape, self._queue)))
        self._queue.synchronize()
        writes.append((state.steps, state.steps + made))
        if sums is not None and totals is not None:
            writes.append((sums.totals, totals))
        if running is not None:
            writes.append((state.buffers, running))
        try:
            _write(writes)
        except KeyboardInterrupt:  # between two of the writes: make all of them, then let it pass
            _write(writes)
            raise

    # -- rows ----------------------------------------------------------------------------------------------------------

    def takes(self, x: Any) -> bool:
        """Whether the gather can read these rows as they lie."""
        return is_on_device(x) or (x.dtype.isnative and x.dtype.kind in "fiu" and x.dtype != np.float16)

    def _on_device(self, feed: Feed) -> tuple[Any, Any, Any]:
        """x, y in one line, and weight there; kept as long as feeds say that they are the same."""
        places = tuple(map(_place, (feed.x, feed.y, feed.weight)))
        if self._held is not None and self._held[0]() is feed.same and self._held[1] == places:
            return self._held[2]
        self._held = None
        x, y = self._sent(feed.x), self._sent(feed.y).ravel()
        found = x, y, None if feed.weight is None else self._sent(feed.weight)
        if feed.same is not None:
            self._held = weakref.ref(feed.same, self._forget), places, found
        return found

    def _forget(self, gone: weakref.ref) -> None:
        """A fit is over: what was sent for it makes room."""
        if self._held is not None and self._held[0] is gone:
            self._held = self._graph = None

    def _sent(self, array: Any) -> Any:
        if is_on_device(array):
            return as_device(array)
        return cuda.to_device(np.ascontiguousarray(array), stream=self._queue)

    def _rows(self, feed: Feed) -> Rows:
        order = None
        if feed.order is not None:  # to where the last one was, so that what was recorded with it can be repeated
            if self._order is None or self._order.size != feed.order.size:
                self._order = cuda.device_array(feed.order.size, np.int64)
            self._order.copy_to_device(np.ascontiguousarray(feed.order), stream=self._queue)
            order = self._order
        return Rows(*self._on_device(feed), order, feed.y.ndim == 1)

    # -- training ------------------------------------------------------------------------------------------------------

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        """See :meth:`fastbatch.protocol.Program.run`; `feed` has rows that it takes, and no noise."""
        with self._lock:
            return self._run(feed, first, last, lrs, time.monotonic() + budget, sums)

    def _run(self, feed: Feed, first: int, last: int, lrs: Array, deadline: float, sums: Sums) -> int:
        memory = self._reserve(feed.most, min(last - first, _RATES))
        memory.labelled = feed.y.ndim == 1
        self._upload(memory)
        batch, at = min(feed.batch, feed.rows), int(self.state.steps[0])
        loss, weight, norm = sums.totals.tolist()
        memory.begin(
            self._queue,
            batch=batch,
            piece=feed.most,
            made=at,
            judged=1,
            moves=1,
            sum_loss=loss,
            sum_weight=weight,
            sum_norm=norm,
        )
        lowest = self._trained.index(True) if any(self._trained) else len(self.plan.stages)
        kept, step = None, first
        if feed.outputs is not None:
            kept = cuda.device_array(max(feed.outputs.size, 1), self.plan.dtype)
        for rows, begin, end, start, total in self._blocks(feed, first, last):
            memory.state(self._queue)
            memory.write(self._queue, base=(begin - start) * batch, total=total, shift=start * batch)
            while step < end:
                step = self._slice(memory, rows, feed, step, end, lrs[step - first :], deadline, lowest, kept)
                if memory.host[0]["status"] != OK or time.monotonic() >= deadline:
                    break
            if step < end:
                break
        f = memory.host[0]
        made = int(f["made"]) - at
        if kept is not None and feed.outputs is not None and made:
            part = feed.outputs[first * batch : (first + made) * batch]
            start = first * batch * self.plan.outputs
            part[...] = kept[start : start + part.size].copy_to_host().reshape(part.shape)
        running = memory.fetch("buffers", self.state.buffers.shape, self._queue)
        self._commit(memory, made, sums, np.array([f["sum_loss"], f["sum_weight"], f["sum_norm"]]), running)
        if f["status"] != OK:
            what = "loss" if f["status"] == BAD_LOSS else "gradient"
            raise DivergenceError.at(what, float(f["value"]), int(self.state.steps[0]))
        return first + made

    def _slice(
        self, memory: Memory, rows: Rows, feed: Feed, step: int, end: int, lrs: Array, deadline: float, lowest: int,
        kept: Any,
    ) -> int:  # fmt: skip
        """Queue as many steps as there is time for, and wait for them; the index of the next one."""
        start = time.monotonic()
        count = min(end - step, memory.rates)
        if self._pace is None:
            count = min(count, 4)
        else:
            count = max(1, min(count, int((deadline - start) / self._pace)))
        memory.lrs[:count].copy_to_device(np.ascontiguousarray(lrs[:count], np.float64), stream=self._queue)
        memory.units[:count].copy_to_device(self._units(feed, step, count), stream=self._queue)
        memory.write(self._queue, index=0)
        self._queue_steps(memory, rows, feed, count, lowest, kept)
        made = int(memory.host[0]["made"])
        memory.state(self._queue)
        self._queue.synchronize()
        self._pace = (time.monotonic() - start) / count
        return step + int(memory.host[0]["made"]) - made

    def _units(self, feed: Feed, step: int, count: int) -> Array:
        """Powers of two that bring the weights of each step near 1."""
        if feed.weight is None:
            return np.ones(count)
        weight = feed.weight if feed.order is None else feed.weight[feed.order]
        return np.array([weight_unit(weight[k * feed.batch :][: feed.batch]) for k in range(step, step + count)])

    def _queue_steps(self, memory: Memory, rows: Rows, feed: Feed, count: int, lowest: int, kept: Any) -> None:
        pieces = range(0, min(feed.batch, feed.rows), feed.most)

        def step(queue: Any) -> None:
            for at in pieces:
                if memory.is_small:
                    memory.gradients_of_stretches(rows, at, at > 0, queue)
                else:
                    memory.gather(rows, at, queue)
                    memory.forward(at, queue)
                    memory.losses(at, queue)
                    memory.backward(lowest, at, queue)
                    memory.gradients(lowest, at, at > 0, queue)
                if kept is not None:
                    memory.keep(kept, at, queue)
            memory.update(queue)

        key = memory, *rows.given, kept
        if self._graph is None or not _identical(self._graph[0], key):
            self._graph = None
            step(self._queue)
            count -= 1
            if not SIMULATED and count:
                self._queue.synchronize()
                self._graph = key, Graph(step)
        for _ in range(count):
            if self._graph is None:
                step(self._queue)
            else:
                self._graph[1].launch(self._queue)

    def _blocks(self, feed: Feed, first: int, last: int) -> Iterator[tuple[Rows, int, int, int, int]]:
        """Rows on the device, with the steps (begin, end) that they are for, that of their first row, and their number.

        All at once where there is room; else in blocks, the next of which is gathered and sent on a queue of its own
        while the steps of the one before are made.
        """
        batch = min(feed.batch, feed.rows)
        if is_on_device(feed.x) or feed.x.nbytes <= _SHARE * free_bytes() or self._is_held(feed):
            yield self._rows(feed), first, last, 0, feed.rows
            return
        steps = max(1, BLOCK_BYTES // (batch * feed.x.shape[1] * feed.x.itemsize))
        for k, rows in enumerate(
            streamed(feed, first * batch, min(last * batch, feed.rows), steps * batch, self._queue)
        ):
            begin = first + k * steps
            end = min(begin + steps, last)
            yield rows, begin, end, begin, min(end * batch, feed.rows) - begin * batch

    def _is_held(self, feed: Feed) -> bool:
        return self._held is not None and feed.same is not None and self._held[0]() is feed.same

    def accumulate(
        self, feed: Feed, first_row: int, gradient: Array | None, sums: Sums, rows: PerSample | None = None
    ) -> Sums:
        """See :meth:`fastbatch.protocol.Program.accumulate`; `feed` has at least one row, all that it takes."""
        with self._lock:
            memory, queue, asked = self._reserve(feed.rows), self._queue, rows or PerSample()
            memory.labelled = feed.y.ndim == 1
            self._upload(memory)
            memory.begin(
                queue, total=feed.rows, batch=feed.rows, piece=feed.rows, first_row=first_row,
                made=int(self.state.steps[0]), loss_before=sums.loss, weight_before=sums.weight,
            )  # fmt: skip
            memory.units[:1].copy_to_device(np.ones(1), stream=queue)
            lowest = self._first_trained
            memory.gather(self._rows(feed), 0, queue)
            memory.forward(0, queue)
            memory.losses(0, queue)
            memory.backward(lowest, 0, queue)
            memory.per_sample(lowest, asked, queue)
            if gradient is not None:
                memory.put("gradient", gradient, queue)
                memory.gradients(lowest, 0, True, queue)
                found = memory.fetch("gradient", gradient.shape, queue)
            f = memory.state(queue)
            queue.synchronize()
            if gradient is not None:
                gradient[...] = found
            for name, field in (("loss", "row_loss"), ("weight", "row_share")):
                if getattr(asked, name) is not None:
                    getattr(asked, name)[...] = memory.doubles(field, feed.rows)
            return Sums(float(f["loss"]), float(f["weight"]), sums.norm)

    def forward(self, x: Array, first_row: int, running: Array) -> Array:
        """See :meth:`fastbatch.protocol.Steps.forward`."""
        with self._lock:
            memory, queue = self._reserve(len(x)), self._queue
            self._upload(memory)
            memory.put("buffers", running, queue)
            self._begin_pass(memory, len(x), first_row)
            memory.gather(Rows(self._sent(x), None, None, None, None), 0, queue)
            memory.forward(0, queue)
            found = memory.fetch(int(memory.layout.stages[-1]["out"]), (len(x), self.plan.outputs), queue)
            moved = memory.fetch("running", running.shape, queue)
            queue.synchronize()
            running[...] = moved
            return found

    def backward(self, x: Array, first_row: int, dz: Array, gradient: Array) -> None:
        """See :meth:`fastbatch.protocol.Steps.backward`."""
        with self._lock:
            memory, queue = self._reserve(len(x)), self._queue
            self._begin_pass(memory, len(x), first_row)
            memory.put(int(memory.layout.stages[-1]["dy"]), np.asarray(dz, self.plan.dtype), queue)
            memory.put("gradient", gradient, queue)
            memory.backward(self._first_trained, 0, queue)
            memory.gradients(self._first_trained, 0, True, queue)
            found = memory.fetch("gradient", gradient.shape, queue)
            queue.synchronize()
            gradient[...] = found

    def _begin_pass(self, memory: Memory, rows: int, first_row: int) -> None:
        made = int(self.state.steps[0])
        memory.begin(self._queue, total=rows, batch=rows, piece=rows, first_row=first_row, made=made, moves=1)

    def update(self, gradient: Array, scale: float, lr: float, running: Array | None) -> None:
        """See :meth:`fastbatch.protocol.Steps.update`."""
        with self._lock:
            memory, queue = self._reserve(1), self._queue
            self._upload(memory)
            memory.put("gradient", gradient, queue)
            memory.begin(queue, scale=scale, made=int(self.state.steps[0]))
            memory.lrs[:1].copy_to_device(np.array([lr], np.float64), stream=queue)
            memory.units[:1].copy_to_device(np.ones(1), stream=queue)
            memory.update(queue)
            f = memory.state(queue)
            queue.synchronize()
            if f["status"] != OK:
                raise DivergenceError.at("gradient", float(np.abs(gradient).max()) * scale, int(self.state.steps[0]))
            self._commit(memory, 1, None, None, running)

    # -- inference -----------------------------------------------------------------------------------------------------

    def predict(self, x: Array, out: Array) -> bool:
        """See :meth:`fastbatch.protocol.Steps.predict`."""
        with self._lock:
            most = min(len(x), _PREDICT_ROWS)
            if self._inference is None or self._inference.rows < most:
                self._inference = None
                self._inference = Memory(inference_plan(self.plan), most, training=False)
            memory, queue = self._inference, self._queue
            memory.put(0, self.state.parameters, queue)
            memory.put("buffers", self.state.buffers, queue)
            for start in range(0, len(x), most or 1):
                part = x[start : start + most]
                memory.begin(queue, total=len(part), batch=len(part), piece=len(part))
                memory.gather(Rows(self._sent(part), None, None, None, None), 0, queue)
                memory.forward(0, queue)
                place = int(memory.layout.stages[-1]["out"])
                found = memory.fetch(place, (len(part), self.plan.outputs), queue)
                queue.synchronize()
                out[start : start + most] = found
        return True


def _place(array: Any) -> tuple[Any, ...]:
    """Which numbers of an object's an array is a view of."""
    if array is None:
        return ()
    for interface in ("__array_interface__", "__cuda_array_interface__"):
        if hasattr(array, interface):
            return getattr(array, interface)["data"], array.shape, array.strides, array.dtype
    return id(array), array.shape, array.strides, array.dtype


def _identical(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other))


def _write(pairs: list[tuple[Array, Array]]) -> None:
    for target, values in pairs:
        target[...] = values
