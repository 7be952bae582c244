"""What stands between the arguments of a trainer's methods and its programs: one thread at a time, rows, hooks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..errors import ArgumentError, BusyError
from ..protocol import Feed
from .callbacks import Callback, bar_for

__all__ = ["Data", "Exclusive", "feed_of", "hooks_of"]

Array = np.ndarray


class Exclusive:
    """A lock that refuses instead of waiting; the thread that holds it may enter again (callbacks)."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                "trainer: expected one thread at a time, got a second one; give every thread a trainer of its own "
                "(model.predict may be shared)"
            )

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


@dataclass
class Data:
    """Rows that have passed the door."""

    x: Array
    y: Array
    weight: Array | None

    def weigh(self, factor: Array) -> None:
        """Multiply the row weights by `factor` (n,)."""
        self.weight = checks.normalised(factor if self.weight is None else factor * self.weight)

    def take(self, rows: Array | slice) -> Data:
        return Data(self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])


def feed_of(data: Data, order: Array | None, used: int, batch: int) -> Feed:
    if order is not None:
        return Feed(data.x, data.y, data.weight, order[:used], batch)
    rows = slice(used)
    return Feed(data.x[rows], data.y[rows], None if data.weight is None else data.weight[rows], None, batch)


def hooks_of(callbacks: Sequence[Callback], verbose: int | str) -> list[Callback]:
    hooks: list[Any] = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    for hook in hooks:
        if not isinstance(hook, Callback):
            raise ArgumentError(f"callbacks: expected a list of fastbatch.Callback objects, got {hook!r}")
    bar = bar_for(verbose)
    return hooks if bar is None else [*hooks, bar]
