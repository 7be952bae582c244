"""Where everything lies on the device: tables that kernels read, and two blocks of numbers that they work on.

`m` holds the reals of a plan, `d` doubles; offsets into both, in elements, stand in the tables. A kernel is so given
four arrays, whatever the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ... import ops
from ...plan import Norm, Plan, Stage
from .. import scalars
from . import own
from .norms import STATISTICS, parts_of
from .tiles import TILE_ROWS
from .updates import BLOCKS

__all__ = ["Layout", "device_plan", "inference_plan", "layout_of"]

Array = np.ndarray

# What a program is, where its numbers are, and how far it has come.
FRAME = np.dtype(
    [
        *((name, np.int64) for name in (
            "count", "stages", "segments", "slots", "gradient", "partial", "weights", "y",
            "row_loss", "row_share", "row_weight", "label", "tally", "squares", "norms", "constants", "hyper",
            "total", "base", "shift", "batch", "piece", "first_row", "index", "made", "judged", "status", "bad", "seed",
            "moves", "buffers", "running", "buffer_count", "objective", "penalties",
        )),
        *((name, np.float64) for name in (
            "g", "h", "parameter", "of_value", "of_slope", "max_norm", "clip_value",
            "loss_before", "weight_before", "loss", "weight", "scale", "factor", "rate", "sum_loss", "sum_weight",
            "sum_norm", "value",
        )),
    ],
    align=True,
)  # fmt: skip
STAGE = np.dtype(
    [
        *((name, np.int64) for name in (
            "inputs", "outputs", "w", "b", "x", "z", "a", "out", "saved", "dy", "threshold", "layer",
            "gamma", "beta", "mean", "var", "ghost", "stats", "parts",
        )),
        *((name, np.float64) for name in ("column_norm", "eps", "momentum")),
    ],
    align=True,
)  # fmt: skip
SEGMENT = np.dtype(
    [
        *((name, np.int64) for name in ("begin", "end")),
        *((name, np.float64) for name in ("l1", "lr_factor", "by_weight", "ahead", "penalty")),
    ],
    align=True,
)


@dataclass(frozen=True)
class Layout:
    """Tables of a plan for at most `rows` rows at a time, and the elements of both blocks.

    Attributes
    ----------
    rows : int
    frame, stages, segments : structured ndarray
    hyper : (segments, HYPERS) ndarray of float64
    reals, doubles : int
    """

    rows: int
    frame: Array
    stages: Array
    segments: Array
    hyper: Array
    reals: int
    doubles: int


class _Carver:
    def __init__(self) -> None:
        self.used = 0

    def take(self, elements: int) -> int:
        """Where the next `elements` begin: on a line of 128 bytes, which is what a warp reads at once."""
        start, self.used = self.used, self.used + -(-elements // 32) * 32
        return start


def layout_of(plan: Plan, rows: int, parts: int, training: bool = True) -> Layout:
    """Sizes and offsets.

    Parameters
    ----------
    plan : Plan
    rows : int
        At a time, at most.
    parts : int
        Gradients of stretches of rows that are held at once.
    training : bool
        Without it there is room for a forward only.
    """
    m, d = _Carver(), _Carver()
    frame, stages = np.zeros(1, FRAME), np.zeros(len(plan.stages), STAGE)
    segments = np.zeros(max(len(plan.segments), 1), SEGMENT)
    n, f = plan.num_parameters, frame[0]
    m.take(n)  # the parameters are the first
    f["count"], f["stages"], f["segments"] = n, len(stages), len(plan.segments)
    if training:
        f["slots"], f["gradient"] = m.take(plan.slots * n), m.take(n)
        f["weights"], f["y"] = m.take(plan.outputs), m.take(rows * plan.outputs)
    f["partial"] = m.take(parts * n)
    f["buffer_count"] = buffers = _buffer_count(plan)
    f["buffers"], f["running"] = m.take(buffers), m.take(buffers)
    below = m.take(rows * plan.inputs)
    for row, stage, limit in zip(stages, plan.stages, plan.column_limits):
        size, saves = rows * stage.outputs, stage.activation.saves
        row["inputs"], row["outputs"], row["threshold"] = stage.inputs, stage.outputs, stage.threshold
        row["w"], row["b"] = -1 if stage.w is None else stage.w, -1 if stage.b is None else stage.b
        row["layer"], row["column_norm"] = stage.layer, limit or 0.0
        row["x"] = below
        row["z"] = -1 if saves != "z" else (m.take(size) if stage.is_trained else below)
        row["a"] = row["out"] = m.take(size)
        if stage.has_dropout and saves == "a":
            row["out"] = m.take(size)
        row["saved"] = {"none": -1, "a": row["a"], "z": row["z"]}[saves]
        row["gamma"] = -1
        if stage.norm is not None:
            _place_norm(row, stage.norm, rows, m)
        below = row["out"]
    for i in reversed(range(len(stages))):  # nothing happens to a delta between two stages without weights
        if training:
            same = i + 1 < len(stages) and not plan.stages[i + 1].is_trained
            stages[i]["dy"] = stages[i + 1]["dy"] if same else m.take(rows * plan.stages[i].outputs)
    for name in ("row_loss", "row_share", "row_weight", "label"):
        f[name] = d.take(rows)
    f["tally"] = d.take(2 * -(-rows // TILE_ROWS))
    f["squares"], f["norms"] = d.take(len(segments) * BLOCKS), d.take(2 * len(segments) * BLOCKS)
    f["objective"], f["penalties"] = plan.sums_objective, d.take(len(segments) * BLOCKS)
    f["constants"], f["hyper"] = d.take(len(segments) * scalars.CONSTANTS), d.take(len(segments) * scalars.HYPERS)
    f["parameter"], f["max_norm"], f["clip_value"] = plan.loss.parameter, plan.max_norm or 0.0, plan.clip_value or 0.0
    f["g"], f["h"] = _loss_constants(plan.loss, plan.dtype)
    f["of_value"], f["of_slope"] = plan.loss.divisors(plan.outputs)
    hyper = np.zeros((len(segments), scalars.HYPERS))
    for row, values, segment in zip(segments, hyper, plan.segments):
        optimizer, constants = segment.optimizer, segment.optimizer.constants()
        row["begin"], row["end"], row["l1"] = segment.begin, segment.end, optimizer.l1
        row["lr_factor"], row["by_weight"], row["ahead"] = segment.lr_factor, optimizer.by_weight, optimizer.ahead
        row["penalty"] = 0.5 * optimizer.decay if optimizer.by_weight else 0.0
        names = scalars.OPTIMIZERS[own.optimizer(optimizer, plan.dtype)].hyper
        values[: len(names)] = [constants[name] for name in names]
    return Layout(rows, frame, stages, segments, hyper, m.used, d.used)


def _place_norm(row: Any, norm: Norm, rows: int, m: _Carver) -> None:
    """What the norm of a stage reads and keeps."""
    groups, parts = parts_of(norm.ghost_size, rows)
    row["gamma"], row["beta"], row["eps"] = norm.gamma, norm.beta, norm.eps
    row["mean"], row["var"] = -1 if norm.mean is None else norm.mean, -1 if norm.var is None else norm.var
    row["ghost"], row["momentum"] = norm.ghost_size or 0, norm.momentum
    row["stats"] = m.take(groups * STATISTICS * row["outputs"] if norm.over_rows else 2 * rows)
    row["parts"] = m.take(2 * parts * row["outputs"])


def _buffer_count(plan: Plan) -> int:
    return sum(2 * stage.outputs for stage in plan.stages if stage.norm is not None and stage.norm.over_rows)


def device_plan(plan: Plan) -> Plan:
    """The plan with norms in stages of their own, so that products know nothing of them, and activations by rule."""
    stages: list[Stage] = []
    for stage in plan.stages:
        stage = replace(stage, activation=replace(stage.activation, name=own.activation(stage.activation, plan.dtype)))
        if stage.norm is None or not stage.has_dense:
            stages.append(stage)
            continue
        stages.append(replace(stage, norm=None, activation=ops.get_activation("identity"), threshold=256))
        stages.append(replace(stage, inputs=stage.outputs, w=None, b=None, needs_dx=True))
    return replace(plan, stages=tuple(stages))


def inference_plan(plan: Plan) -> Plan:
    """The plan without what only training needs."""
    return replace(plan, stages=tuple(replace(stage, threshold=256) for stage in plan.stages))


def _loss_constants(loss: ops.Loss, dtype: str) -> tuple[float, float]:
    if loss.name in scalars.ROW_LOSSES:
        return 0.0, 0.0
    return scalars.ELEMENT_LOSSES[own.loss(loss, dtype)][0](loss.parameter, loss.per_output is not None)
