"""Checkpoints while the fit runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import ArgumentError, named_keywords
from ..monitor import Monitor, numbers_of
from .base import Callback, Logs, check_folder

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(Callback):
    """Writes what ``trainer.save`` writes, at `path`, while the fit runs; called after the other callbacks.

    Parameters
    ----------
    path : path
        May hold ``{epoch}`` (completed, over the life of the trainer), ``{steps}`` (updates) and the numbers of the
        epoch's history by name, each with a format: ``"run-{epoch:03d}-{val_loss:.3f}.fb"``; between epochs there is
        only ``{loss}``. Without them one file is written again and again.
    every_n_steps : int, optional
        Also whenever ``trainer.steps`` is a multiple of it.
    every_n_epochs : int or None, default 1
        At the end of every so many epochs.
    monitor : str, optional
        Only when this quantity of history is better than ever before, and only the best file is kept: under a name with
        fields the one before is deleted. Not together with every_n_steps, for there is history at the end of epochs
        only.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" knows it of the library's own losses and metrics by name.

    Attributes
    ----------
    last_path : Path or None
        Of the last file written.
    best : float or None
        The monitored value it was written at. A further fit starts afresh.

    Raises
    ------
    ArgumentError
        For a bad value; out of ``fit``, when the folder does not exist, or history has no number that `monitor` or
        `path` names.
    """

    runs_last = True
    steers = False

    @named_keywords
    def __init__(
        self,
        path: str | os.PathLike,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        monitor: str | None = None,
        *,
        mode: str = "auto",
    ) -> None:
        owner = "ModelCheckpoint"
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentError(f"{owner}(path=): expected a path, got {path!r}")
        self.path = os.fspath(path)
        self.every_n_steps = None if every_n_steps is None else checks.count(f"{owner}(every_n_steps=)", every_n_steps)
        self.every_n_epochs = (
            None if every_n_epochs is None else checks.count(f"{owner}(every_n_epochs=)", every_n_epochs)
        )
        if self.every_n_steps is None and self.every_n_epochs is None:
            raise ArgumentError(f"{owner}: expected every_n_steps or every_n_epochs, got None for both")
        if monitor is not None and self.every_n_steps is not None:
            raise ArgumentError(f"{owner}: expected monitor or every_n_steps, got both")
        self.monitor = None if monitor is None else Monitor(owner, monitor, mode)
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.last_path: Path | None = None

    def on_train_begin(self) -> None:
        if "{" not in os.path.dirname(self.path):
            check_folder("ModelCheckpoint(path=)", self.path)
        self._begin()
        self._seen = self.trainer.steps

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        every, now = self.every_n_steps, self.trainer.steps
        if every is not None and now // every != self._seen // every:
            self._seen = now
            self._save(logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.every_n_epochs is None or (epoch + 1) % self.every_n_epochs:
            return
        if self.monitor is None:
            self._save(logs)
            return
        value, best, before = self.monitor.read(logs), self.best, self.last_path
        if not self.monitor.improves(value, best):
            return
        self.best = value  # before the file is written, which holds it
        try:
            self._save(logs)
        except BaseException:
            self.best = best
            raise
        if before is not None and before != self.last_path:
            before.unlink(missing_ok=True)

    def _save(self, logs: Logs) -> None:
        fields = {**numbers_of(logs), "epoch": self.trainer.epochs, "steps": self.trainer.steps}
        try:
            path = Path(self.path.format_map(fields))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ArgumentError(
                f"ModelCheckpoint(path=): expected fields among {', '.join(sorted(fields))}, "
                f"got {self.path!r} ({type(error).__name__}: {error})"
            ) from error
        before, self.last_path = self.last_path, path
        try:
            self.trainer.save(path)
        except BaseException:
            self.last_path = before
            raise

    def get_state(self) -> dict[str, Any]:
        last = None if self.last_path is None else os.fspath(self.last_path)
        return {"best": self.best, "last_path": last, "seen": self._seen}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self._seen = state["best"], state["seen"]
        self.last_path = None if state["last_path"] is None else Path(state["last_path"])
