"""scikit-learn's bookkeeping of a stochastic fit, as a callback of the trainer: curves, stopping, learning rates."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import get as get_backend
from ..training import EMA, Callback
from ..training.callbacks.base import Logs
from . import sparse
from .rows import Task, Validation

if TYPE_CHECKING:
    from .base import BaseMLP

__all__ = ["Epochs"]

Array = np.ndarray


class Epochs(Callback):
    """What scikit-learn notes and decides behind every epoch.

    Parameters
    ----------
    estimator : BaseMLP
        Gets loss_, loss_curve_, n_iter_, t_ and the curves and bests of validation.
    rows : int
        That an epoch trains on.
    validation : Validation, optional
    offset : float
        Added to every loss: what the trainer leaves out because no parameter changes it.
    task : Task, optional
        Told of every epoch.
    ema : EMA, optional
        Its average is what validation sees.

    Attributes
    ----------
    stopped : bool
        Whether it has ended the fit.
    """

    def __init__(
        self,
        estimator: BaseMLP,
        rows: int,
        validation: Validation | None = None,
        offset: float = 0.0,
        task: Task | None = None,
        ema: EMA | None = None,
    ) -> None:
        self.estimator, self.rows, self.validation, self.offset = estimator, rows, validation, offset
        self.task, self.ema = task, ema
        self.stopped = False
        self._subtask: Any = None
        self._best: list[Array] = []

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        if self.task is not None:
            self._subtask = self.task.context.subcontext(task_name="epoch")
            self._subtask.call_on_fit_task_begin(estimator=self.estimator, **self.task.seen)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        estimator, solver = self.estimator, self.estimator._optimizer
        estimator.n_iter_ += 1
        estimator.t_ += self.rows
        loss = estimator.loss_ = np.float64(logs["loss"] + self.offset)
        estimator.loss_curve_.append(loss)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")
        if self.validation is not None:
            self._validate(self.validation, logs)
        if not estimator.early_stopping:
            self._watch(loss)
        solver.epoch_ended(estimator.t_)
        if estimator._no_improvement_count > estimator.n_iter_no_change:
            self.stopped = solver.stalled()
            self._say("stopping" if self.stopped else f"learning rate {solver.learning_rate:g}")
            if not self.stopped:
                estimator._no_improvement_count = 0
        if self.task is not None:
            self.stopped |= self._subtask.call_on_fit_task_end(
                estimator=estimator, reconstruction_attributes=estimator._as_fitted, **self.task.seen
            )
        if self.stopped:
            self.trainer.stop_training = True

    def _say(self, what: str) -> None:
        if self.estimator.verbose:
            watched = "Validation score" if self.estimator.early_stopping else "Training loss"
            print(
                f"{watched} did not improve by more than tol={self.estimator.tol:g} for "
                f"{self.estimator.n_iter_no_change} epochs: {what}"
            )

    def _validate(self, validation: Validation, logs: Logs) -> None:
        with contextlib.nullcontext() if self.ema is None else self.ema.swap():
            self._note(validation)
        # for callbacks behind this one
        logs["val_loss"] = self.estimator.validation_loss_curve_[-1]
        logs["val_score"] = self.estimator.validation_scores_[-1]

    @np.errstate(over="ignore", invalid="ignore")  # on the way to where the trainer stops it
    def _note(self, validation: Validation) -> None:
        estimator, trainer, rows = self.estimator, self.trainer, validation.rows
        outputs = sparse.applied(trainer.predict, rows.x)
        sums = get_backend(trainer.backend).loss(outputs, rows.y, trainer.loss, rows.weight, np.empty_like(outputs))
        loss = sums.mean() + validation.offset
        score = -loss if validation.score is None else float(validation.score(outputs))
        estimator.validation_loss_curve_.append(loss)
        estimator.validation_scores_.append(score)
        if estimator.verbose:
            print(f"Validation score: {score:f}")
        if not estimator.early_stopping:
            return
        self._count(score < estimator.best_validation_score_ + estimator.tol)
        if score > estimator.best_validation_score_:
            estimator.best_validation_score_ = score
            self._best = [array.copy() for array in self._arrays()]

    def _watch(self, loss: float) -> None:
        estimator = self.estimator
        self._count(loss > estimator.best_loss_ - estimator.tol)
        estimator.best_loss_ = min(estimator.best_loss_, loss)

    def _count(self, stalled: bool) -> None:
        self.estimator._no_improvement_count = self.estimator._no_improvement_count + 1 if stalled else 0

    def _arrays(self) -> list[Array]:
        model = self.trainer.model
        return [model.parameters, model.buffers]

    def restore(self) -> None:
        """Put the best weights back, where an epoch of this fit was the best."""
        for array, best in zip(self._arrays(), self._best):
            array[...] = best
