"""A plan's numbers on the device, and the launches of which its calls are made."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plan import Norm, Plan
from ...protocol import PerSample
from .. import scalars
from . import batch_norms, choice, norms, own, passes, tiles, updates
from .layout import layout_of
from .passes import LANES, LOSS_ROWS
from .shim import SIMULATED, cuda, guarded
from .stretch import is_small, stretches
from .tensor import FMA, tiles_for
from .tiles import SMALL, TILE_ROWS, Tile
from .updates import BLOCKS, THREADS

__all__ = ["Memory", "Rows"]

_COUNTED = (
    "total", "base", "shift", "batch", "piece", "first_row", "index", "made", "judged", "status", "bad", "moves",
    "loss_before", "weight_before", "loss", "weight", "scale", "sum_loss", "sum_weight", "sum_norm", "value",
)  # fmt: skip

Array = np.ndarray

# Blocks of a pass over elements, at most: some for every multiprocessor, each thread takes what is left over.
_MOST_BLOCKS = 2 if SIMULATED else 1056
# Whether small networks have kernels of their own; no bit depends on it.
SMALL_NETWORKS = True
# Large tiles where they fill the device, which has some 130 multiprocessors.
_FULL = 2 if SIMULATED else 132
# Numbers that the gradients of stretches may take: 256 MiB of float32
_PARTIAL = 1 << 26


class Rows:
    """Rows of a feed on the device: x (n, I), y (n,) or (n * O,), weight (n,) or None, order or None."""

    def __init__(self, x: Any, y: Any, weight: Any, order: Any, labelled: bool | None) -> None:
        self.given = x, y, weight, order
        self.target = passes.NONE if labelled is None else passes.LABELS if labelled else passes.VALUES

    def arguments(self, nothing: Any, no_weight: Any) -> tuple[Any, Any, Any, Any]:
        """What kernels are given, with stand-ins for what is not there."""
        x, y, weight, order = self.given
        given = nothing if y is None else y, no_weight if weight is None else weight
        return x, *given, nothing if order is None else order

    def variant(self) -> tuple[str, bool, bool]:
        return self.target, self.given[3] is not None, self.given[2] is not None


class Memory:
    """Tables and numbers of a plan for at most `rows` rows at a time, and one method for each phase of a step.

    Every method queues launches on `queue`, a stream or a graph that records, and returns at once. None of them
    depends on how far a run has come, which the device counts by itself: so a step can be recorded and repeated.
    """

    def __init__(self, plan: Plan, rows: int, rates: int = 1, training: bool = True) -> None:
        self.plan, self.rows, self.rates, self.training = plan, rows, rates, training
        dtype, n = np.dtype(plan.dtype), plan.num_parameters
        self._arithmetic = [choice.arithmetic(plan, stage) for stage in plan.stages]
        self._loss, self._rule = own.loss(plan.loss, plan.dtype), own.optimizer(plan.optimizer, plan.dtype)
        stretches = -(-rows // TILE_ROWS)
        blocks = sum(-(-s.inputs // SMALL.rows) * -(-s.outputs // SMALL.columns) for s in plan.stages if s.has_dense)
        fits = training and stretches <= max(1, _PARTIAL // max(n, 1))
        # else one block makes the sums of all stretches, one after the other, to the same bits
        self._apart = fits and stretches > 1 and blocks < 2 * _FULL
        self.is_small = fits and SMALL_NETWORKS and is_small(plan)
        made = layout_of(plan, rows, stretches if self._apart or self.is_small else 0, training)
        guarded(f"{rows} rows at a time", made.reals * dtype.itemsize + made.doubles * 8)
        self.layout, self.host = made, made.frame
        self.m = cuda.device_array(max(made.reals, 1), dtype)
        self.d = cuda.device_array(max(made.doubles, 1), np.float64)
        self.frame, self.stages = cuda.to_device(made.frame), cuda.to_device(made.stages)
        self.segments = cuda.to_device(made.segments)
        self.lrs, self.units = cuda.device_array(rates, np.float64), cuda.device_array(rates, np.float64)
        self._nothing = cuda.to_device(np.zeros(1, np.int64))
        self._no_weight = cuda.to_device(np.zeros(1))
        start = int(made.frame[0]["hyper"])
        self.d[start : start + made.hyper.size].copy_to_device(made.hyper.ravel())
        if training:
            self.put("weights", _output_weights(plan))

    # -- numbers in and out --------------------------------------------------------------------------------------------

    def part(self, place: str | int, size: int) -> Any:
        """The `size` reals of a field of the frame, or from an offset on."""
        start = int(self.host[0][place]) if isinstance(place, str) else int(place)
        return self.m[start : start + size]

    def put(self, place: str | int, values: Array, queue: Any = 0) -> None:
        if values.size:
            self.part(place, values.size).copy_to_device(np.ascontiguousarray(values).ravel(), stream=queue)

    def fetch(self, place: str | int, shape: tuple[int, ...], queue: Any = 0) -> Array:
        found = np.empty(shape, self.plan.dtype)
        if found.size:
            self.part(place, found.size).copy_to_host(found.reshape(-1), stream=queue)
        return found

    def doubles(self, field: str, size: int) -> Array:
        start = int(self.host[0][field])
        return self.d[start : start + size].copy_to_host()

    def begin(self, queue: Any = 0, **fields: float) -> None:
        """A call begins: what is counted is 0 but for these fields of the frame."""
        for name in _COUNTED:
            self.host[0][name] = 0
        self.write(queue, **fields)

    def write(self, queue: Any = 0, **fields: float) -> None:
        """Set fields of the frame, of which `state` has told the others."""
        for name, value in fields.items():
            self.host[0][name] = value
        self.frame.copy_to_device(self.host, stream=queue)

    def state(self, queue: Any = 0) -> Any:
        """The frame as the device has left it."""
        self.frame.copy_to_host(self.host, stream=queue)
        return self.host[0]

    # -- launches ------------------------------------------------------------------------------------------------------

    def product(self, kind: int, i: int, activation: str, rows: int, columns: int) -> tuple[Any, Tile]:
        """The kernel for a product of stage i with so many outputs, and its tile."""
        dtype, arithmetic = self.plan.dtype, self._arithmetic[i]
        small, large = tiles_for(arithmetic)
        across, down = large.grid(rows, columns)
        tile = large if across * down >= _FULL else small
        if kind == tiles.WEIGHT:
            return tiles.weight_gradient(dtype, tile, arithmetic), tile
        of_kind = tiles.forward if kind == tiles.FORWARD else tiles.input_gradient
        return of_kind(dtype, tile, activation, arithmetic), tile

    def _flat(self, elements: int, queue: Any) -> tuple:
        return max(1, min(_MOST_BLOCKS, -(-elements // THREADS))), THREADS, queue

    def gather(self, rows: Rows, at: int, queue: Any) -> None:
        given = rows.arguments(self._nothing, self._no_weight)
        run = passes.gather(self.plan.dtype, *rows.variant())
        run[self._flat(self.rows * self.plan.inputs, queue)](
            self.frame, self.stages, self.m, self.d, *given, self.units, at
        )

    def keep(self, outputs: Any, at: int, queue: Any) -> None:
        """The outputs of a piece, written where those of a pass are kept."""
        run = passes.keep(self.plan.dtype)
        run[self._flat(self.rows * self.plan.outputs, queue)](self.frame, self.stages, self.m, outputs, at)

    def forward(self, at: int, queue: Any) -> None:
        dtype = self.plan.dtype
        for i, stage in enumerate(self.plan.stages):
            name, elements = stage.activation.name, self.rows * stage.outputs
            given = self.frame, self.stages, self.m, i, at
            if stage.has_dense:
                run, tile = self.product(tiles.FORWARD, i, name, self.rows, stage.outputs)
                run[tile.grid(self.rows, stage.outputs), tile.threads, queue](*given, False, False)
            elif stage.norm is not None:
                self._normalise(i, stage.norm, at, queue)
            else:
                passes.activate(dtype, name)[self._flat(elements, queue)](*given)
            if stage.has_dropout:
                passes.drop(dtype, "a", "out", "identity")[self._flat(elements // 16, queue)](*given)

    def _lines(self, queue: Any) -> tuple:
        """A line of lanes for each row."""
        return max(1, min(_MOST_BLOCKS, -(-self.rows // LOSS_ROWS))), (LANES, LOSS_ROWS), queue

    def _columns(self, i: int, norm: Norm, queue: Any) -> tuple:
        """A block for some columns of each part of the rows."""
        _, parts = norms.parts_of(norm.ghost_size, self.rows)
        across = -(-self.plan.stages[i].outputs // LANES)
        return (min(_MOST_BLOCKS, across), max(1, min(_MOST_BLOCKS, parts))), (LANES, LOSS_ROWS), queue

    def _normalise(self, i: int, norm: Norm, at: int, queue: Any) -> None:
        dtype, stage = self.plan.dtype, self.plan.stages[i]
        name, given = stage.activation.name, (self.frame, self.stages, self.m, i, at)
        flat = self._flat(self.rows * stage.outputs, queue)
        if not norm.over_rows:
            norms.normal_rows(dtype, name)[self._lines(queue)](*given)
        elif self.training:
            batch_norms.moments(dtype)[self._columns(i, norm, queue)](*given)
            batch_norms.combine_moments(dtype)[flat](*given)
            batch_norms.normal_columns(dtype, name)[flat](*given)
        else:
            batch_norms.still_columns(dtype, name)[flat](*given)

    def _through_norm(self, i: int, norm: Norm, at: int, queue: Any) -> None:
        """The gradient of what the norm of stage i read, from that of what it made."""
        dtype, given = self.plan.dtype, (self.frame, self.stages, self.m, i, at)
        if not norm.over_rows:
            norms.slope_rows(dtype)[self._lines(queue)](*given)
            return
        flat = self._flat(self.rows * self.plan.stages[i].outputs, queue)
        norms.slope_parts(dtype, True)[self._columns(i, norm, queue)](*given)
        batch_norms.combine_slopes(dtype)[flat](*given)
        batch_norms.slope_columns(dtype)[flat](*given)

    def _norm_gradient(self, i: int, norm: Norm, at: int, add: bool, queue: Any) -> None:
        dtype, given = self.plan.dtype, (self.frame, self.stages, self.m, i, at)
        norms.slope_parts(dtype, norm.over_rows)[self._columns(i, norm, queue)](*given)
        norms.add_gradient(dtype)[self._flat(2 * self.plan.stages[i].outputs, queue)](*given, add)

    def gradients_of_stretches(self, rows: Rows, at: int, add: bool, queue: Any) -> None:
        """Everything up to the gradient, by blocks that each take a stretch of rows through."""
        plan, given = self.plan, rows.arguments(self._nothing, self._no_weight)
        hidden, last = plan.stages[0].activation.name, plan.stages[-1].activation.name
        arithmetic = next((name for name in self._arithmetic if name != FMA), FMA)
        narrow = choice.least(arithmetic)
        run = stretches(plan.dtype, hidden, last, self._loss, *rows.variant(), arithmetic, narrow)
        run[-(-self.rows // TILE_ROWS), tiles_for(arithmetic)[1].threads, queue](
            self.frame, self.stages, self.m, self.d, *given, self.units, at
        )
        updates.tally()[1, THREADS, queue](self.frame, self.d, at)
        run = updates.add_parts(plan.dtype)
        run[self._flat(plan.num_parameters, queue)](self.frame, self.m, 0, plan.num_parameters, at, add)

    def losses(self, at: int, queue: Any) -> None:
        """Losses of a piece, and the gradient of their sum with respect to the outputs."""
        grid = max(1, min(_MOST_BLOCKS, -(-self.rows // LOSS_ROWS)))
        run = passes.losses(self.plan.dtype, self._loss, self.labelled)
        run[grid, (LANES, LOSS_ROWS), queue](self.frame, self.stages, self.m, self.d, at)
        updates.tally()[1, THREADS, queue](self.frame, self.d, at)

    labelled = False

    def backward(self, lowest: int, at: int, queue: Any) -> None:
        """Deltas of the stages from the last down to `lowest`."""
        plan = self.plan
        fused = False
        for i in range(len(plan.stages) - 1, lowest - 1, -1):
            stage = plan.stages[i]
            given = self.frame, self.stages, self.m, i, at
            if not fused:
                self.delta(i, at, queue)
            if i == lowest:
                return
            fused = stage.has_dense and not plan.stages[i - 1].has_dropout
            if stage.has_dense:
                name = plan.stages[i - 1].activation.name if fused else "identity"
                run, tile = self.product(tiles.INPUT, i, name, self.rows, stage.inputs)
                run[tile.grid(self.rows, stage.inputs), tile.threads, queue](*given, False, False)
            elif stage.norm is not None:
                self._through_norm(i, stage.norm, at, queue)

    def delta(self, i: int, at: int, queue: Any) -> None:
        """dz of stage i from the gradient of what it hands up."""
        stage, dtype = self.plan.stages[i], self.plan.dtype
        given, elements = (self.frame, self.stages, self.m, i, at), self.rows * stage.outputs
        if stage.has_dropout:
            passes.drop(dtype, "dy", "dy", stage.activation.name)[self._flat(elements // 16, queue)](*given)
        elif stage.activation.saves != "none":
            passes.deltas(dtype, stage.activation.name)[self._flat(elements, queue)](*given)

    def gradients(self, lowest: int, at: int, add: bool, queue: Any) -> None:
        """Gradient sums of the stages from `lowest` on."""
        dtype = self.plan.dtype
        for i in range(lowest, len(self.plan.stages)):
            stage = self.plan.stages[i]
            if stage.norm is not None:
                self._norm_gradient(i, stage.norm, at, add, queue)
            if stage.w is None:
                continue
            height, width = stage.inputs, stage.outputs
            run, tile = self.product(tiles.WEIGHT, i, "identity", height, width)
            across, down = tile.grid(height, width)
            parts = -(-self.rows // TILE_ROWS) if self._apart else 1
            run[(across, down, parts), tile.threads, queue](
                self.frame, self.stages, self.m, i, at, add and not self._apart, self._apart
            )
            if self._apart:
                end = stage.w + (height + (stage.b is not None)) * width
                run = updates.add_parts(dtype)
                run[self._flat(end - stage.w, queue)](self.frame, self.m, stage.w, end, at, add)

    def update(self, queue: Any) -> None:
        """One update from the gradient, if it may be made; the next step is then the device's current one."""
        grid = BLOCKS, max(len(self.plan.segments), 1)
        updates.inspect(self.plan.dtype)[grid, THREADS, queue](self.frame, self.segments, self.m, self.d)
        self.move(queue)
        count = int(self.host[0]["buffer_count"])
        if count:
            batch_norms.keep_running(self.plan.dtype)[self._flat(count, queue)](self.frame, self.m)

    def move(self, queue: Any) -> None:
        """The update without a look at the gradient."""
        plan, rule = self.plan, self._rule
        dtype, shared = plan.dtype, ((BLOCKS, max(len(plan.segments), 1)), THREADS, queue)
        numbers = self.frame, self.segments, self.m, self.d
        updates.decide(rule)[1, 1, queue](self.frame, self.segments, self.d, self.lrs, self.units)
        if scalars.OPTIMIZERS[rule].direction:
            updates.directions(dtype, rule)[shared](*numbers)
            updates.rates(rule)[1, 1, queue](self.frame, self.segments, self.d)
        updates.move(dtype, rule)[shared](*numbers)
        for i, limit in enumerate(plan.column_limits):
            if limit is not None:
                run = updates.hold_columns(dtype)
                run[self._flat(plan.stages[i].outputs, queue)](self.frame, self.stages, self.m, i)

    def per_sample(self, lowest: int, rows: PerSample, queue: Any) -> None:
        """Norms of each row's inputs and deltas; then the rows' factors of the gradient, of which deltas are done."""
        if rows.norm_norms is not None:
            found = cuda.to_device(np.zeros(self.rows))
            for i, stage in enumerate(self.plan.stages):
                if stage.norm is not None:
                    run = norms.row_squares(self.plan.dtype)
                    run[self._flat(self.rows, queue)](self.frame, self.stages, self.m, i, found)
            rows.norm_norms[...] = found.copy_to_host()[: rows.norm_norms.size]
        stages = [i for i, stage in enumerate(self.plan.stages) if stage.has_dense]
        if rows.input_norms is not None or rows.delta_norms is not None:
            inputs, deltas = (cuda.to_device(np.zeros((len(stages), self.rows))) for _ in range(2))
            for layer, i in enumerate(stages):
                run = passes.row_norms(self.plan.dtype)
                run[self._flat(self.rows, queue)](self.frame, self.stages, self.m, i, layer, inputs, deltas)
            for asked, found in ((rows.input_norms, inputs), (rows.delta_norms, deltas)):
                if asked is not None:
                    asked[...] = found.copy_to_host()[:, : asked.shape[1]]
        if rows.scale is not None:
            scale = cuda.to_device(np.ascontiguousarray(rows.scale))
            for i in range(lowest, len(self.plan.stages)):
                if not self.plan.stages[i].is_trained:
                    continue
                run = passes.scale_rows(self.plan.dtype)
                run[self._flat(self.rows, queue)](self.frame, self.stages, self.m, i, scale)


def _output_weights(plan: Plan) -> Array:
    given = 1.0 if plan.loss.per_output is None else plan.loss.per_output
    return np.ascontiguousarray(np.broadcast_to(np.asarray(given, plan.dtype), plan.outputs))
