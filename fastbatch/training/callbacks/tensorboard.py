"""History for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from ...errors import ArgumentError, BackendError, named_keywords
from ..monitor import numbers_of
from .base import Callback, Logs

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes every number of history as a scalar, one point per epoch, with tensorboardX or torch.utils.tensorboard.

    Parameters
    ----------
    log_dir : path
        One folder per run; a fit adds a file to it.

    Raises
    ------
    BackendError
        When neither package is installed.
    """

    steers = False

    @named_keywords
    def __init__(self, log_dir: str | os.PathLike) -> None:
        if not isinstance(log_dir, (str, os.PathLike)):
            raise ArgumentError(f"TensorBoard(log_dir=): expected a path, got {log_dir!r}")
        self.log_dir = os.fspath(log_dir)
        _writer_class()
        self._writer: Any = None

    def on_train_begin(self) -> None:
        self._writer = _writer_class()(self.log_dir)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        for name, value in numbers_of(logs).items():
            self._writer.add_scalar(name, float(value), self.trainer.epochs)
        self._writer.flush()

    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> Any:
    try:
        from tensorboardX import SummaryWriter  # first: it does not import torch
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendError(f"TensorBoard needs a writer: pip install tensorboardX ({error})") from error
    return SummaryWriter
