"""The memory of a fused program, sized by its plan: every offset in one block. Nothing is allocated here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .memory import ALIGNMENT
from .plan import Plan

__all__ = ["STAGE_FIELDS", "Arena", "inference_arena", "training_arena"]

# The fields of `fb_stage` in csrc/fastbatch.h, all int64, in order. Offsets into parameters and arena are in bytes,
# leading dimensions in elements; -1 is absent. The last three are the bits of doubles.
STAGE_FIELDS = (
    "inputs", "outputs", "w", "b", "product_activation", "activation", "threshold", "layer",
    "x", "x_ld", "out", "out_ld", "z", "a", "saved", "dy", "dz",
    "gamma", "beta", "mean", "var", "ghost", "u", "stats", "eps", "momentum", "column_norm",
)  # fmt: skip
STAGE_DTYPE = np.dtype([(name, np.int64) for name in STAGE_FIELDS])


@dataclass(frozen=True)
class Arena:
    """Where everything lies in one block of memory, for at most `rows` rows.

    Attributes
    ----------
    rows, nbytes : int
    stages : structured ndarray of STAGE_DTYPE
    y, row_loss, row_weight, row_share, gradient, running : int
        Byte offsets of the gathered targets (rows, ld), of each row's loss, weight and share of the total weight
        (float64), of the unfused gradient (N,), and of running statistics that wait for the end of a step in pieces.
    scratch, scratch_bytes, threads : int
        Where the threads' scratch begins, the bytes of each thread's, and their number.
    parts, part_bytes : int
        Where the gradients of the parts of a batch begin, and the bytes of each; -1 for a large network.
    purposes : dict of str to int
        Bytes by purpose.
    """

    rows: int
    nbytes: int
    stages: np.ndarray
    y: int
    row_loss: int
    row_weight: int
    row_share: int
    gradient: int
    running: int
    scratch: int
    scratch_bytes: int
    threads: int
    parts: int
    part_bytes: int
    purposes: dict[str, int]


class _Carver:
    """Hands out aligned byte ranges, and remembers what for."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.purposes: dict[str, int] = {}

    def take(self, purpose: str, nbytes: int) -> int:
        offset = self.nbytes
        taken = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes += taken
        self.purposes[purpose] = self.purposes.get(purpose, 0) + taken
        return offset


def whole_lines(width: int, dtype: str) -> int:
    """`width` elements, padded to whole cache lines."""
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    return -(-width // per_line) * per_line


def leading_dimension(width: int, dtype: str) -> int:
    """Row stride in elements: whole cache lines, so that every vector of a row is inside its array; 1 for one column.

    From a quarter of a page on an odd number of lines, so that a column of rows does not fall into a few sets of a
    cache.
    """
    if width == 1:
        return 1
    padded = whole_lines(width, dtype)
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    return padded + per_line if padded >= 16 * per_line and padded // per_line % 2 == 0 else padded


def _stage_table(plan: Plan, activation_index: dict[str, int]) -> np.ndarray:
    size = np.dtype(plan.dtype).itemsize
    table = np.full(len(plan.stages), -1, STAGE_DTYPE)
    for row, stage, limit in zip(table, plan.stages, plan.column_limits):
        row["inputs"], row["outputs"] = stage.inputs, stage.outputs
        row["column_norm"] = np.float64(limit or 0.0).view(np.int64)
        row["w"] = -1 if stage.w is None else stage.w * size
        row["b"] = -1 if stage.b is None else stage.b * size
        row["activation"] = row["product_activation"] = activation_index[stage.activation.name]
        if stage.norm is not None:
            norm = stage.norm
            row["product_activation"] = activation_index["identity"]
            row["gamma"], row["beta"] = norm.gamma * size, norm.beta * size
            row["mean"], row["var"] = (-1 if at is None else at * size for at in (norm.mean, norm.var))
            row["ghost"] = norm.ghost_size or 0
            row["eps"], row["momentum"] = np.array([norm.eps, norm.momentum]).view(np.int64)
        row["threshold"], row["layer"] = stage.threshold, stage.layer
        row["x_ld"] = leading_dimension(stage.inputs, plan.dtype)
        row["out_ld"] = leading_dimension(stage.outputs, plan.dtype)
    return table


def training_arena(
    plan: Plan,
    rows: int,
    activation_index: dict[str, int],
    update_block: tuple[int, int, int],
    parts: tuple[int, int],
    threads: int,
    statistics: int,
) -> Arena:
    """Memory of forward, backward and update for batches of at most `rows` rows.

    `update_block`: rows, columns and depth of a block of weight gradients, scratch of each of `threads` threads.
    `parts`: how many parts of a batch there are at a time, and rows of each. `statistics`: numbers that a norm over
    rows keeps of each unit and ghost batch.
    """
    size, carve = np.dtype(plan.dtype).itemsize, _Carver()
    table = _stage_table(plan, activation_index)
    table[0]["x"] = carve.take("activations", rows * int(table[0]["x_ld"]) * size)
    for k, (row, stage) in enumerate(zip(table, plan.stages)):
        block = rows * int(row["out_ld"]) * size
        if k > 0:
            row["x"] = table[k - 1]["out"]
        row["out"] = row["z"] = row["a"] = carve.take("activations", block)
        row["dy"] = row["dz"] = carve.take("deltas", block)
        if stage.norm is not None:
            row["dz"] = carve.take("deltas", block)
            if stage.has_dense:
                row["u"] = carve.take("activations", block)
            lines = 2 * rows
            if stage.norm.over_rows:
                groups = -(-rows // (stage.norm.ghost_size or rows))
                lines = statistics * groups * int(row["out_ld"])
            row["stats"] = carve.take("rows", lines * size)
        saves = stage.activation.saves
        if saves == "z" and stage.is_trained:
            row["z"] = row["saved"] = carve.take("activations", block)
        elif saves == "z":
            row["saved"] = row["x"]
        elif saves == "a" and stage.has_dropout:
            row["z"] = row["a"] = row["saved"] = carve.take("activations", block)
        elif saves == "a":
            row["saved"] = row["out"]
    out_ld = int(table[-1]["out_ld"])
    y = carve.take("targets", rows * out_ld * size)
    row_loss, row_weight, row_share = (carve.take("rows", rows * 8) for _ in range(3))
    gradient = carve.take("gradient", plan.num_parameters * size)
    buffers = sum(2 * stage.outputs for stage in plan.stages if stage.norm is not None and stage.norm.over_rows)
    running = carve.take("statistics", buffers * size)
    widest = max((whole_lines(stage.outputs, plan.dtype) for stage in plan.stages if stage.has_dense), default=0)
    block_rows, block_columns, block_depth = update_block
    scratch_bytes = block_rows * (min(block_columns, widest) + min(block_depth, rows)) * size
    scratch = carve.take("scratch", threads * scratch_bytes)
    first_part, part_bytes = -1, 0
    if plan.is_small:
        most, part_rows = parts
        part_bytes = whole_lines(plan.num_parameters, plan.dtype) * size
        first_part = carve.take("gradient", min(most, -(-rows // part_rows)) * part_bytes)
    return Arena(
        rows,
        carve.nbytes,
        table,
        y,
        row_loss,
        row_weight,
        row_share,
        gradient,
        running,
        scratch,
        scratch_bytes,
        threads,
        first_part,
        part_bytes,
        carve.purposes,
    )


def inference_arena(plan: Plan, rows: int, activation_index: dict[str, int]) -> Arena:
    """Memory of a forward pass without backward: two buffers that the stages use in turn."""
    size, carve = np.dtype(plan.dtype).itemsize, _Carver()
    table = _stage_table(plan, activation_index)
    widest = max(int(row["out_ld"]) for row in table)
    buffers = [carve.take("activations", rows * widest * size) for _ in range(2)]
    inputs = carve.take("activations", rows * int(table[0]["x_ld"]) * size)  # of rows not read where they lie
    for k, (row, stage) in enumerate(zip(table, plan.stages)):
        row["x"] = inputs if k == 0 else table[k - 1]["out"]
        row["out"] = row["z"] = row["a"] = buffers[k % 2]
        row["threshold"] = 256
        if stage.norm is not None:
            row["u"] = row["out"] if stage.has_dense else -1
            row["stats"] = carve.take("rows", stage.outputs * size) if stage.norm.over_rows else -1
    return Arena(rows, carve.nbytes, table, -1, -1, -1, -1, -1, -1, -1, 0, 0, -1, 0, carve.purposes)
