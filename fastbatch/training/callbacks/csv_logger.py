"""History as a table in a file, written while the fit runs."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, TextIO

from ... import checks
from ...errors import ArgumentError, named_keywords
from ..monitor import numbers_of
from .base import Callback, Logs, check_folder

__all__ = ["CSVLogger"]


class CSVLogger(Callback):
    """One row per epoch: the epoch, counted from 1 over the life of the trainer, and every number of history.

    Rows are in the file as soon as their epoch ends. Arrays, such as a confusion matrix, have no column.

    Parameters
    ----------
    path : path
    append : bool, default False
        Go on behind what the file holds; its header must name the columns of this fit. False: a fit starts the file
        anew.

    Raises
    ------
    ArgumentError
        At the start of a fit, when the folder does not exist; behind an epoch, when its columns are not those of the
        file, which is left as it was.
    """

    steers = False

    @named_keywords
    def __init__(self, path: str | os.PathLike, append: bool = False) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentError(f"CSVLogger(path=): expected a path, got {path!r}")
        self.path, self.append = Path(path), checks.flag("CSVLogger(append=)", append)
        self._file: TextIO | None = None
        self._size: int | None = None

    def on_train_begin(self) -> None:
        check_folder("CSVLogger(path=)", self.path)
        self._columns: list[str] = []
        self._keep = self.append
        self._size = None  # bytes of the file behind the last row

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        row = {"epoch": self.trainer.epochs, **numbers_of(logs)}
        if self._file is None:
            self._open(list(row))
        if list(row) != self._columns:
            raise ArgumentError(f"CSVLogger: expected the columns {self._columns} of {self.path}, got {list(row)}")
        assert self._file is not None
        csv.writer(self._file, lineterminator="\n").writerow(str(value) for value in row.values())
        self._file.flush()
        self._size = os.fstat(self._file.fileno()).st_size

    def _open(self, columns: list[str]) -> None:
        old = self._header() if self._keep else []
        self._columns = old or columns
        self._file = open(self.path, "a" if old else "w", newline="", encoding="utf-8")  # noqa: SIM115
        if not old:
            csv.writer(self._file, lineterminator="\n").writerow(columns)

    def _header(self) -> list[str]:
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                return next(csv.reader(file), [])
        except FileNotFoundError:
            return []

    def on_train_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get_state(self) -> dict[str, Any]:
        return {"size": self._size}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on behind the rows that the file held then; later ones are of epochs that are made again."""
        size = state["size"]
        if size is None:
            return
        held = self.path.stat().st_size if self.path.exists() else 0
        if held < size:
            raise ArgumentError(
                f"CSVLogger: expected {self.path} with the {size} bytes of the interrupted fit, got {held}"
            )
        os.truncate(self.path, size)
        self._keep, self._size = True, size
