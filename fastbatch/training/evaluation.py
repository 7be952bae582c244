"""Loss and metrics of rows, from outputs that training has left or from predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import ops
from ..backends import get as get_backend
from ..program import PREDICT_ROWS, predict_rows
from ..protocol import Sums
from .door import Data

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["evaluate", "metric_values"]

Array = np.ndarray


def metric_values(
    names: Sequence[str], loss: ops.Loss, outputs: Array, y: Array, weight: Array | None
) -> dict[str, float]:
    return {name: ops.METRICS[name][0](outputs, y, weight, loss) for name in names}


def evaluate(trainer: Trainer, data: Data) -> dict[str, float]:
    """See :meth:`fastbatch.Trainer.evaluate`."""
    loss, kernels, total = trainer.loss, get_backend(trainer.backend), Sums()
    outputs = predict_rows(trainer._program, data.x, trainer.model.output_size)
    for start in range(0, len(data.x), PREDICT_ROWS):
        rows = slice(start, start + PREDICT_ROWS)
        block, part = outputs[rows], data.take(rows)
        total = total + kernels.loss(block, part.y, loss, part.weight, np.empty_like(block))
    names = list(trainer.metrics)
    if loss.targets in ops.METRICS["accuracy"][1] and "accuracy" not in names:
        names.append("accuracy")
    return {"loss": total.mean(), **metric_values(names, loss, outputs, data.y, data.weight)}
