"""What stands between the arguments of a trainer's methods and its programs: one thread at a time, rows, hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from .. import checks
from ..errors import ArgumentError, BusyError
from ..protocol import Feed, Lock
from .callbacks import Callback, bar_for

__all__ = ["Data", "Exclusive", "feed_of", "hooks_of"]

Array = np.ndarray


class Exclusive:
    """Holds the lock of a program and refuses instead of waiting; a thread that holds it may enter again (callbacks).

    Ctrl-C is heard between the bytecodes of Python functions. So none runs between the moment that the lock is taken
    and the one in which `with` knows it, nor on the way out: before anything is taken the properties give functions
    in C.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    @property
    def __enter__(self) -> Callable[[], bool]:
        return partial(any, chain(map(self._lock.acquire, (False,)), map(self._refuse, (None,))))

    @property
    def __exit__(self) -> Callable[..., None]:
        return self._lock.__exit__

    def _refuse(self, _: None) -> bool:
        raise BusyError(
            "trainer: expected one thread at a time, got a second one; give every thread a trainer of its own "
            "(model.predict may be shared)"
        )


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
