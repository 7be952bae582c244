"""Fused steps of a plan: memory, tables of what there is, and threads that walk it."""

from __future__ import annotations

import time
from threading import Thread

import numpy as np

from ... import memory, ops, threads
from ...arena import training_arena
from ...errors import DivergenceError
from ...plan import Plan
from ...protocol import Feed, PerSample, State, Sums
from .. import scalars
from . import entries
from .norms import STATISTICS
from .own import activation_numbers, hyper_of, loss_number, rule_number
from .passes import ACTIVATION_INDEX, LOSS_INDEX, NORMED, OPTIMIZER_INDEX
from .tables import BAD_LOSS, BLOCK, FRAME, LINE, OK, SAYS, SEGMENT
from .tiles import PANEL

__all__ = ["Steps", "address", "loss_constants"]

Array = np.ndarray

# Flops that take as long as a parameter's update.
_UPDATE_FLOPS = 40
# Flops of a step from which on a second thread pays: there is no measuring here, and below it waits more than it works.
_WORTH_THREADS = 2e7


def address(array: Array | None) -> int:
    return 0 if array is None else array.__array_interface__["data"][0]


def loss_constants(loss: ops.Loss) -> tuple[float, float]:
    if loss.formula is not None or loss.name in scalars.ROW_LOSSES:
        return 0.0, 0.0
    return scalars.ELEMENT_LOSSES[loss.name][0](loss.parameter, loss.per_output is not None)


def loss_weights(loss: ops.Loss, outputs: int, rows: int, dtype: str) -> Array:
    """The weight of each output; of a single one as often as there are rows, which are one line then."""
    given = 1.0 if loss.per_output is None else loss.per_output
    weights = np.broadcast_to(np.asarray(given, dtype), outputs)
    return np.ascontiguousarray(np.broadcast_to(weights, max(rows, 1)) if outputs == 1 else weights)


class Steps:
    """Many steps in one call, GIL released, nothing allocated; the arithmetic of `run` is that of the other two.

    Memory is for the largest batch seen so far. `threads_used` is that of the last run.
    """

    tile_rows = 1

    def __init__(self, plan: Plan, state: State, num_threads: int | None) -> None:
        self.plan, self.state, self.num_threads = plan, state, num_threads
        self.threads_used = 1
        self._one = np.dtype(plan.dtype).type(1)
        self._frame = np.zeros(1, FRAME)
        self._rows = self._threads = 0
        self._segments = np.zeros(len(plan.segments), SEGMENT)
        self._hyper = np.zeros((max(len(plan.segments), 1), scalars.HYPERS))
        for row, hyper, segment in zip(self._segments, self._hyper, plan.segments):
            optimizer = segment.optimizer
            row["begin"], row["end"], row["normed"] = segment.begin, segment.end, NORMED.get(optimizer.rule, 0)
            row["rule"] = rule_number(OPTIMIZER_INDEX, optimizer, plan.dtype)
            row["l1"], row["lr_factor"] = optimizer.l1, segment.lr_factor
            row["by_weight"] = optimizer.by_weight
            values = hyper_of(optimizer)
            hyper[: len(values)] = values
        self._blocks = sum(-(-(s.end - s.begin) // BLOCK) for s in plan.segments)
        updated = [range(s.begin, s.end) for s in plan.segments]
        self._trained = [any(at in part for part in updated for at in stage.places) for stage in plan.stages]
        trained = (i for i, stage in enumerate(plan.stages) if stage.is_trained)
        self._first_trained = next(trained, len(plan.stages))
        self._wide = np.dtype(plan.dtype).itemsize // 4  # float64 takes twice as long

    def _count(self, rows: int) -> int:
        """Threads for steps of `rows` rows."""
        flops = self._wide * (rows * self.plan.flops_per_row + _UPDATE_FLOPS * self.plan.num_parameters)
        return threads.allowed(self.num_threads, flops if flops > _WORTH_THREADS else 0.0)

    def reserve(self, rows: int, count: int) -> None:
        """Make room for `rows` rows at a time on `count` threads."""
        if rows <= self._rows and count <= self._threads:
            return
        plan, size, f = self.plan, np.dtype(self.plan.dtype).itemsize, self._frame[0]
        rows, count = max(rows, self._rows), max(count, self._threads)
        arena = training_arena(plan, rows, activation_numbers(ACTIVATION_INDEX, plan), (0, 0, 0), (0, 1), 0, STATISTICS)
        widest = max(max(stage.inputs, stage.outputs) for stage in plan.stages) + 64
        self._memory = {
            "arena": memory.zeros(arena.nbytes, np.uint8),
            "weights": loss_weights(plan.loss, plan.outputs, rows, plan.dtype),
            "values": memory.zeros(rows * int(arena.stages[-1]["out_ld"]) * size, np.uint8),
            "zeros": memory.zeros(widest * size, np.uint8),
            "panels": memory.zeros(count * PANEL, np.uint8),
            "scratch": memory.zeros(count * (16 * BLOCK + 256), np.uint8),
            "norms": memory.zeros(16 * (self._blocks + 1), np.uint8),
            "shared": memory.zeros(8 * (SAYS + LINE * count), np.uint8),
            "hyper": self._hyper,
            "one": np.ones(1, plan.dtype),
        }
        for name, array in self._memory.items():
            f[name] = address(array)
        self._stages = arena.stages
        base = f["arena"]
        f["panel_bytes"], f["y_copy"], f["stages"], f["segments"] = PANEL, arena.y, len(plan.stages), len(plan.segments)
        f["row_loss"], f["row_weight"] = base + arena.row_loss, base + arena.row_weight
        f["row_share"], f["gradient"] = base + arena.row_share, base + arena.gradient
        self._own_gradient = f["gradient"]
        f["buffers"], f["buffer_count"] = address(self.state.buffers), self.state.buffers.size
        self._running = base + arena.running if self.state.buffers.size else 0
        lines = {"row_loss": arena.row_loss, "row_share": arena.row_share}
        self._rows_of = {name: self._memory["arena"][at : at + 8 * rows].view(np.float64) for name, at in lines.items()}
        f["parameters"], f["slots"] = address(self.state.parameters), address(self.state.slots)
        f["count"], f["steps"] = plan.num_parameters, address(self.state.steps)
        f["seed"] = np.uint64(self.state.seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64)
        f["loss"], f["parameter"] = loss_number(LOSS_INDEX, plan.loss, plan.dtype), plan.loss.parameter
        f["g"], f["h"] = loss_constants(plan.loss)
        f["held"] = any(plan.column_limits)
        f["of_value"], f["of_slope"] = plan.loss.divisors(plan.outputs)
        f["max_norm"], f["clip_value"] = plan.max_norm or 0.0, plan.clip_value or 0.0
        # of tables, NumPy writes down all fields before it says where they are: 60 us for the three
        self._tables = address(self._frame), address(self._stages), address(self._segments)
        self._rows, self._threads = rows, count

    def _feed(self, feed: Feed) -> None:
        """`x` has contiguous rows of the plan's dtype."""
        f, size = self._frame[0], np.dtype(self.plan.dtype).itemsize
        labels = feed.y.ndim == 1
        f["x"], f["x_stride"] = address(feed.x), feed.x.strides[0] // size
        f["labels"], f["y"] = (address(feed.y), 0) if labels else (0, address(feed.y))
        f["y_stride"] = 0 if labels else feed.y.strides[0] // size
        f["weight"], f["order"], f["outputs"] = address(feed.weight), address(feed.order), address(feed.outputs)
        f["rows"], f["batch"], f["piece"] = feed.rows, min(feed.batch, feed.rows), feed.most

    def _walk(self, verb: int, count: int) -> None:
        """One of the verbs on `count` threads, this one being the first."""
        self._memory["shared"][:] = 0
        call = entries.of(self.plan.dtype)
        arguments = verb, self._one, *self._tables, 0, 0
        helpers = [Thread(target=call, args=(*arguments, t, count), daemon=True) for t in range(1, count)]
        for helper in helpers:
            helper.start()
        try:
            call(*arguments, 0, count)
        finally:
            for helper in helpers:
                helper.join()
        self.threads_used = count

    def takes(self, x: Array) -> bool:
        """Whether `run` can read these rows as they lie."""
        size = x.itemsize
        return x.dtype == np.dtype(self.plan.dtype) and x.strides[1] == size and x.strides[0] % size == 0

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        """See :meth:`fastbatch.protocol.Program.run`; `feed` has rows that it takes, and no noise."""
        count = self._count(feed.most)
        self.reserve(feed.most, count)
        self._feed(feed)
        f = self._frame[0]
        lrs = np.ascontiguousarray(lrs, np.float64)
        f["first"], f["last"], f["lrs"], f["sums"] = first, last, address(lrs), address(sums.totals)
        f["deadline"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(min(budget, 1e9) * 1e9)
        f["next"], f["status"], f["norm"], f["gradient"] = first, OK, 0.0, self._own_gradient
        f["first_row"] = f["weight_before"] = 0
        f["moved"] = self._running
        f["lowest"] = self._trained.index(True) if any(self._trained) else len(self.plan.stages)
        self._walk(entries.RUN, count)
        if f["status"] != OK:
            what = "loss" if f["status"] == BAD_LOSS else "gradient"
            raise DivergenceError.at(what, float(f["value"]), int(self.state.steps[0]))
        return int(f["next"])

    def accumulate(
        self, feed: Feed, first_row: int, gradient: Array | None, sums: Sums, rows: PerSample | None = None
    ) -> Sums:
        """See :meth:`fastbatch.protocol.Program.accumulate`; `feed` has at least one row, all that it takes."""
        count = self._count(feed.rows)
        self.reserve(feed.rows, count)
        self._feed(feed)
        f, total = self._frame[0], sums + Sums()
        f["sums"], f["first_row"], f["gradient"] = address(total.totals), first_row, address(gradient)
        f["first"], f["last"], f["loss_before"], f["weight_before"] = 0, 1, total.loss, total.weight
        f["lowest"], f["moved"] = self._first_trained, 0
        asked, own = rows or PerSample(), {}
        for name in ("input_norms", "delta_norms", "norm_norms"):
            if getattr(asked, name) is not None:
                own[name] = np.zeros(getattr(asked, name).shape)
            f[name] = address(own.get(name))
        f["scales"] = address(asked.scale)
        self._walk(entries.GRADIENTS, count)
        for name, array in own.items():
            getattr(asked, name)[...] = array
        for name in ("loss", "weight"):
            if getattr(asked, name) is not None:
                values = self._rows_of["row_share" if name == "weight" else "row_loss"]
                getattr(asked, name)[...] = values[: feed.rows]
        return total

    def _pass(self, verb: int, x: Array, first_row: int, y: Array | None, outputs: Array | None) -> None:
        f, rows = self._frame[0], len(x)
        self._feed(Feed(x, x if y is None else y, batch=rows, outputs=outputs))
        f["y"] = address(y)
        f["first"], f["last"], f["first_row"], f["lowest"] = 0, 1, first_row, self._first_trained
        self._walk(verb, min(self._count(rows), self._threads))

    def forward(self, x: Array, first_row: int, running: Array) -> Array:
        """Outputs of a training pass over at least one row, which moves `running`; backward finds the rest here."""
        self.reserve(len(x), self._count(len(x)))
        outputs = np.empty((len(x), self.plan.outputs), self.plan.dtype)
        self._frame[0]["moved"] = address(running) if running.size else 0
        self._pass(entries.OUTPUTS, x, first_row, None, outputs)
        return outputs

    def backward(self, x: Array, first_row: int, dz: Array, gradient: Array) -> None:
        """Adds to `gradient` what `dz` means for the parameters; `x` as in the forward just before."""
        self._frame[0]["moved"], self._frame[0]["gradient"] = 0, address(gradient)
        self._pass(entries.DELTAS, x, first_row, np.ascontiguousarray(dz, self.plan.dtype), None)

    def update(self, gradient: Array, scale: float, lr: float, running: Array | None) -> None:
        """See :meth:`fastbatch.protocol.Program.update`."""
        self.reserve(1, 1)
        f, rate, unseen = self._frame[0], np.array([lr]), Sums()
        f["gradient"], f["status"], f["lrs"], f["sums"] = address(gradient), OK, address(rate), address(unseen.totals)
        f["first"], f["last"], f["scale"], f["piece"] = 0, 1, scale, 1
        f["moved"] = 0 if running is None or not running.size else address(running)
        self._walk(entries.UPDATE, 1)
        if f["status"] != OK:
            raise DivergenceError.at("gradient", float(np.abs(gradient).max()) * scale, int(self.state.steps[0]))

    def predict(self, x: Array, out: Array) -> bool:
        """See :meth:`fastbatch.protocol.Steps.predict`."""
        return False
