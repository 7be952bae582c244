"""Loss and metrics of rows, from outputs that training has left or from predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import ops
from ..backends import get as get_backend
from ..program import PREDICT_ROWS, predict_rows
from ..protocol import Sums
from .door import Data

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["evaluate"]


def evaluate(trainer: Trainer, data: Data) -> dict:
    """See :meth:`fastbatch.Trainer.evaluate`."""
    loss, kernels, total = trainer.loss, get_backend(trainer.backend), Sums()
    outputs = predict_rows(trainer._program, data.x, trainer.model)
    for start in range(0, len(data.x), PREDICT_ROWS):
        rows = slice(start, start + PREDICT_ROWS)
        block, part = outputs[rows], data.take(rows)
        total = total + kernels.loss(block, part.y, loss, part.weight, np.empty_like(block))
    accuracy, kinds = ops.METRICS["accuracy"]
    metrics = {**trainer.metrics, "accuracy": accuracy} if loss.targets in kinds else trainer.metrics
    return {"loss": total.mean(), **ops.measure(metrics, outputs, data.y, data.weight, loss)}
