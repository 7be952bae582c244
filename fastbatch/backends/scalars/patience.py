"""Compilation that takes long says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["announced"]

# Seconds; what takes longer is announced.
PATIENCE = 1.0
_log = logging.getLogger("fastbatch")


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Says that Numba is compiling `what` where that takes longer than PATIENCE, and how long it took."""
    begin = time.monotonic()
    said = threading.Event()

    def say() -> None:
        said.set()
        _log.warning("numba: compiling %s", what)

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        _log.warning("numba: compiled %s in %.1f s", what.partition(",")[0], time.monotonic() - begin)
