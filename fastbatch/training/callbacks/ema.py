"""Exponential moving average of the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import checks
from ...errors import ArgumentError, named_keywords
from .base import Callback, Logs

__all__ = ["EMA"]


class EMA(Callback):
    """Keeps an exponential moving average of the parameters; the training does not see it.

    The average moves where the callback looks: with n updates since the last look it becomes ``decay**n * average +
    (1 - decay**n) * parameters``. Looks at every update are the textbook average; with fewer, the parameters of one
    look stand for those of all updates since the last.

    It begins as the parameters at the start of the first fit and goes on through further fits of that trainer.

    Parameters
    ----------
    decay : float, default 0.999
        Per update, in [0, 1).
    every_n_steps : int, optional
        Look whenever ``trainer.steps`` is a multiple of it: the same average in every run. 1 costs a pass over the
        parameters and a turn through Python per update. Default: at the end of every chunk, about 50 ms apart, and of
        every epoch; free of charge, but where chunks end is a matter of time, and so are the last digits.

    Raises
    ------
    ArgumentError
        For a value out of range.

    Notes
    -----
    Kept in float64: in float32 an average with decay 0.9999 stops moving 6e-4 before it arrives. BatchNorm's running
    statistics are averages already and are not touched.
    """

    steers = False

    @named_keywords
    def __init__(self, decay: float = 0.999, *, every_n_steps: int | None = None) -> None:
        self.decay = checks.fraction("EMA(decay=)", decay)
        self.every_n_steps = None if every_n_steps is None else checks.count("EMA(every_n_steps=)", every_n_steps)
        self._average: np.ndarray | None = None
        self._of: object = None

    def on_train_begin(self) -> None:
        trainer = self.trainer
        if self._of is not trainer:
            self._average, self._seen = trainer.model.parameters.astype(np.float64), trainer.steps
        self._of = trainer

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        now, every = self.trainer.steps, self.every_n_steps or 1
        if now // every == self._seen // every:
            return
        average = self._needed()
        average += (1 - self.decay ** (now - self._seen)) * (self.trainer.model.parameters - average)
        self._seen = now

    def _needed(self) -> np.ndarray:
        if self._average is None:
            raise ArgumentError("EMA: expected a fit before it, got none")
        return self._average

    @property
    def parameters(self) -> np.ndarray:
        """The average as a flat array (N,) of the model's dtype, laid out like ``model.parameters``; a copy.

        Raises
        ------
        ArgumentError
            Before the first fit.
        """
        return self._needed().astype(self.trainer.model.dtype)

    def weights(self) -> list[tuple[np.ndarray | None, ...]]:
        """Copies of the averaged weights, for ``set_weights`` of a model.

        Returns
        -------
        list of tuple of ndarray
            As ``model.get_weights()`` gives the trained ones.

        Raises
        ------
        ArgumentError
            Before the first fit.
        """
        average, twin = self.parameters, self.trainer.model.copy()
        twin.parameters[:] = average
        return twin.get_weights()

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Within ``with ema.swap():`` the model has the averaged parameters; behind it, those it had before.

        Raises
        ------
        ArgumentError
            Before the first fit.
        """
        average, own = self.parameters, self.trainer.model.parameters
        before = own.copy()
        own[:] = average
        try:
            yield
        finally:
            own[:] = before

    def get_state(self) -> dict[str, Any]:
        return {"average": self._needed(), "seen": self._seen}

    def set_state(self, state: dict[str, Any]) -> None:
        self._average, self._seen = np.array(state["average"], np.float64), state["seen"]
