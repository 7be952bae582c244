"""The noise scale of a running fit: which rows are measured, and when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batching import NoiseScale
from ..batching.noise import due, follow, measure, rows_of, within
from ..data.orders import epoch_order
from ..errors import ArgumentError
from ..protocol import Feed
from .door import FitData

if TYPE_CHECKING:
    from .fit import Settings
    from .trainer import Trainer

__all__ = ["noise_of"]

# Rows measured at a time where batches are smaller: calls of fewer are half overhead
PIECE = 256


def noise_of(
    trainer: Trainer, data: FitData, settings: Settings, policy: NoiseScale, order: np.ndarray | None, epoch: int
) -> dict[str, Any]:
    """What `policy` remembers in `epoch`, which visits rows in `order`: from what it did before, measured if due.

    Raises
    ------
    ArgumentError
        For a model with BatchNorm, and where nothing is trained.
    """
    if not trainer._plan.segments:
        raise ArgumentError(
            "batch_size: expected parameters to train for a NoiseScale, got an optimizer that freezes all of them"
        )
    if trainer.model.buffers.size:
        raise ArgumentError(
            "batch_size: expected a model without BatchNorm for a NoiseScale, got one, in which rows have no gradients "
            "of their own (fb.batching.noise_scale compares batches of two sizes there)"
        )
    visited = data.total if order is None else len(order)
    before = trainer._noise
    if before is not None and not due(policy, before, epoch, visited):
        return {**before, "size": within(policy, before["size"])}  # which another policy may have left
    population = float(visited)
    if data.cumulative is not None:  # drawn with replacement
        population = math.inf
    elif settings.shuffle is not True:  # in an order of somebody else's
        places = epoch_order(visited, trainer.seed, epoch, True, trainer.backend)
        order = places if order is None else order[places]
    assert order is not None
    chosen, given = order[: rows_of(policy, visited)], data.given
    piece = settings.micro_batch_size or max(policy.max, PIECE)
    rows = Feed(given.x, given.y, given.weight)
    found = measure(trainer._program, trainer._plan, rows, chosen, piece, population)
    return follow(policy, before, epoch, found, trainer.gradient_accumulation_steps)
