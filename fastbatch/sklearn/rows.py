"""What the parts of a fit hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import xlogy

from .. import ops
from ..training import Trainer
from ..training.door import Data

if TYPE_CHECKING:
    from .base import BaseMLP

__all__ = ["Rows", "Solver", "Task", "Validation", "offset", "weight_of"]

Array = np.ndarray

# The adaptive rate is divided by the one as long as it is above the other
ADAPTIVE_FACTOR, ADAPTIVE_LEAST = 5.0, 1e-6


@dataclass
class Rows:
    """Checked rows: inputs (an array, or CSR), what the user calls their targets, what the loss takes, weights."""

    X: Any
    y: Array
    targets: Array
    weight: Array | None

    def __len__(self) -> int:
        return self.X.shape[0]

    def take(self, index: Array | slice) -> Rows:
        weight = None if self.weight is None else self.weight[index]
        return Rows(self.X[index], self.y[index], self.targets[index], weight)


def weight_of(rows: Rows, loss: ops.Loss) -> float:
    """What the mean loss of these rows was divided by."""
    share = np.ones(len(rows)) if rows.weight is None else rows.weight
    if loss.targets == "classes" and loss.per_output is not None:
        share = share * np.asarray(loss.per_output)[rows.targets]
    return float(share.sum())


def offset(loss: ops.Loss, targets: Array, weight: Array | None) -> float:
    """What scikit-learn's mean loss has besides the trainer's, which leaves out what no parameter changes."""
    if loss.name != "poisson":
        return 0.0
    return float(np.average((xlogy(targets, targets) - targets).sum(axis=1), weights=weight))


class Solver:
    """The trainer of a fit, which `partial_fit` goes on with, and scikit-learn's schedule of its learning rate."""

    def __init__(self, trainer: Trainer, estimator: BaseMLP) -> None:
        self.trainer = trainer
        self.initial = self.learning_rate = float(estimator.learning_rate_init)
        self.schedule = estimator.learning_rate if estimator.solver == "sgd" else "constant"
        self.power = float(estimator.power_t)

    def _set(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.trainer.lr_factor = learning_rate / self.initial

    def epoch_ended(self, seen: int) -> None:
        """`seen` rows have been trained on in all."""
        if self.schedule == "invscaling":
            self._set(self.initial / (seen + 1) ** self.power)

    def stalled(self) -> bool:
        """Nothing improves any more: whether the fit ends, or goes on with a smaller rate."""
        if self.schedule != "adaptive" or self.learning_rate <= ADAPTIVE_LEAST:
            return True
        self._set(self.learning_rate / ADAPTIVE_FACTOR)
        return False


@dataclass
class Validation:
    """Rows that are not trained on.

    Attributes
    ----------
    rows : Data
        As kernels take them.
    score : callable or None
        How good outputs for them are, more being better; None: minus the loss.
    offset : float
        What is added to their loss.
    """

    rows: Data
    score: Callable[[Array], float] | None
    offset: float


@dataclass
class Task:
    """A fit as callbacks of scikit-learn see it: its context, and what else their hooks may ask for."""

    context: Any
    seen: dict[str, Any]
