"""Stop when nothing improves any more, and go back to where it was best."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ... import checks
from ...errors import named_keywords
from ..monitor import Monitor
from .base import Callback, Logs

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Ends the fit after `patience` epochs in a row without improvement, and puts the best weights back.

    The best weights are put back when the fit ends, by this callback or at its last epoch. They are not when it ends by
    an exception or Ctrl-C, so that the trainer can go on from where it was; :meth:`restore` does it by hand. Optimizer
    state and counters are left as they are.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in history.
    patience : int, default 10
    min_delta : float, default 1e-4
        An epoch improves when it is better than the best one by more than this.
    restore_best_weights : bool, default True
        Costs a copy of the parameters per improvement.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" knows it of the library's own losses and metrics by name.

    Attributes
    ----------
    best : float or None
        Best value of this fit.
    best_epoch : int or None
        Its epoch, from 0 within the fit: an index into history.
    wait : int
        Epochs since.
    stopped_epoch : int or None
        The epoch that ended the fit.

    Raises
    ------
    ArgumentError
        For a bad value; out of ``fit``, behind the first epoch, when history has no such name.
    """

    @named_keywords
    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 1e-4,
        restore_best_weights: bool = True,
        *,
        mode: str = "auto",
    ) -> None:
        self.monitor = Monitor("EarlyStopping", monitor, mode)
        self.patience = checks.count("EarlyStopping(patience=)", patience, "an integer >= 0", 0)
        self.min_delta = checks.number("EarlyStopping(min_delta=)", min_delta)
        self.restore_best_weights = checks.flag("EarlyStopping(restore_best_weights=)", restore_best_weights)
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self.wait = 0
        self._kept: list[np.ndarray] = []  # copies of the arrays of _arrays(), and below
        self._last: list[np.ndarray] = []  # what the best ones have replaced, where something else ended the fit

    def on_train_begin(self) -> None:
        self._begin()
        self._handled = sys.exc_info()[1]  # what an except block around the fit is dealing with

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return self.stopped_epoch is not None

    def _arrays(self) -> list[np.ndarray]:
        model = self.trainer.model
        buffers = getattr(model, "buffers", None)
        return [model.parameters] if buffers is None else [model.parameters, buffers]

    def _copies(self) -> list[np.ndarray]:
        return [array.copy() for array in self._arrays()]

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self.monitor.read(logs)
        if self.monitor.improves(value, self.best, self.min_delta):
            self.best, self.best_epoch, self.wait = value, epoch, 0
            if self.restore_best_weights:
                self._kept = self._copies()
            return
        self.wait += 1
        if self.wait >= self.patience:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True

    def on_train_end(self) -> None:
        if sys.exc_info()[1] is self._handled:
            if self._kept and not self.ended:
                self._last = self._copies()
            self.restore()

    def restore(self) -> None:
        """Put the best weights so far into the model; nothing happens where none were kept."""
        for array, kept in zip(self._arrays(), self._kept):
            array[...] = kept

    def get_state(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("best", "best_epoch", "stopped_epoch", "wait")}
        copies = {"kept": self._kept, "last": self._last}
        return {**numbers, **{f"{name}_{k}": array for name, kept in copies.items() for k, array in enumerate(kept)}}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.stopped_epoch, self.wait = state["stopped_epoch"], state["wait"]
        arrays = self._arrays()
        self._kept = [np.array(state[f"kept_{k}"]) for k in range(len(arrays)) if f"kept_{k}" in state]
        for k, array in enumerate(arrays):
            array[...] = state.get(f"last_{k}", array)
        if self.ended:
            self.trainer.stop_training = True
