"""What a contestant is: something that trains on a workload, one shuffled epoch at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import numpy as np

from ...threads import available
from ..workloads import Workload

__all__ = ["BETA1", "BETA2", "EPS", "Contestant"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Contestant:
    """Starts from ``workload.init()`` on ``X, y = workload.data()``; as fast as its library allows.

    Attributes
    ----------
    key, name, color : str
        What the command line calls it, what tables call it, its bar in pictures.
    library : str
        The distribution behind it.
    tolerance : float
        How near to the reference's its losses are, relative to a loss above 1, else absolute. Sums in another order
        move them by 1e-6, but one relu unit whose z is zero to rounding, open here and shut there, moved them by 2e-4
        within six steps (1024-2048-2048-1000, one unit in two million).
    """

    key: ClassVar[str]
    name: ClassVar[str]
    color: ClassVar[str]
    library: ClassVar[str]
    tolerance: ClassVar[float] = 1e-3

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError

    @classmethod
    def version(cls) -> str | None:
        """Version of the library, None when it is not installed."""
        try:
            return version(cls.library)
        except PackageNotFoundError:
            return None

    @classmethod
    def settings(cls) -> tuple[int | None, ...]:
        """Thread counts that are tried, the fastest counts; None is the library's own choice."""
        return tuple(sorted({1, available()}))

    @classmethod
    def limited(cls, threads: int | None) -> AbstractContextManager:
        """Sets the number of threads for a block."""
        return nullcontext()

    def threads_used(self, setting: int | None) -> int | None:
        """Threads of the last epoch under this setting; None where the library does not say."""
        return setting

    def epoch(self) -> float:
        """Shuffle, and for each batch: gather, forward, loss, backward, update. The mean loss before each update."""
        raise NotImplementedError

    def last_order(self) -> np.ndarray:
        """The shuffle of the last epoch, (n,)."""
        raise NotImplementedError
