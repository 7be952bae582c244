"""The progress bar, with tqdm where it is installed."""

from __future__ import annotations

import sys
import time
from typing import Any

from ...errors import ArgumentError, named_keywords
from ..monitor import numbers_of
from .base import Callback, Logs

__all__ = ["ProgressBar", "bar_for"]


class _PlainBar:
    """What is used of tqdm, for when tqdm is not installed: one line, rewritten."""

    def __init__(self, total: int, **_: object) -> None:
        self.total, self.n, self.text, self.width = total, 0, "", 0

    def set_description(self, text: str, refresh: bool = False) -> None:
        self.text = text

    def refresh(self) -> None:
        done = 30 * self.n // self.total
        line = f"{self.text} [{'#' * done}{'.' * (30 - done)}] {self.n}/{self.total}"
        self._put(line)
        self.width = len(line)

    def _put(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self.width))  # blanks over what is left of a longer line
        sys.stderr.flush()

    def write(self, text: str) -> None:
        self._put("")
        sys.stderr.write("\r")
        sys.stderr.flush()
        print(text)

    def close(self) -> None:
        if self.n:
            sys.stderr.write("\n")


class ProgressBar(Callback):
    """Progress over all steps of a fit, redrawn at most every 0.1 s, with tqdm where it is installed.

    Parameters
    ----------
    bar : bool, default True
        Draw the bar, to stderr.
    lines : bool, default False
        Print one line per epoch, to stdout; beside a bar those of epochs shorter than 0.1 s come together.
    """

    steers = False
    INTERVAL = 0.1

    @named_keywords
    def __init__(self, *, bar: bool = True, lines: bool = False) -> None:
        self.show_bar, self.show_lines = bar, lines
        self._bar: Any = None  # tqdm's, or what stands in for it
        self._drawn = self._written = 0.0
        self._waiting: list[str] = []  # lines that wait for their turn: one costs the bar 60 us

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._epoch, self._epochs, self._steps = epoch, int(logs["epochs"]), int(logs["steps"])
        if self.show_bar and self._bar is None:
            self._bar = _make_bar(self._epochs * self._steps)

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._drawn >= self.INTERVAL or self._last(steps):
            self._drawn = now
            self._move(steps, logs)
            self._bar.refresh()
        if self._waiting and now - self._written >= self.INTERVAL:
            self._write(now)

    def _move(self, steps: int, logs: Logs) -> None:
        self._bar.n = self._epoch * self._steps + steps
        self._bar.set_description(f"epoch {self._epoch + 1}/{self._epochs} loss {logs['loss']:.4g}", refresh=False)

    def _last(self, steps: int) -> bool:
        return self._epoch + 1 == self._epochs and steps == self._steps

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if not self.show_lines:
            return
        apart = ("lr", "batch_size", "time")
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in numbers_of(logs).items() if k not in apart)
        width = len(str(self._epochs))
        line = f"epoch {epoch + 1:{width}d}/{self._epochs}  {numbers}  {_duration(logs['time'])}"
        if self._bar is None:
            print(line)
        else:
            self._waiting.append(line)
            now = time.monotonic()
            if now - self._written >= self.INTERVAL:
                self._move(self._steps, logs)  # the lines make the bar redraw itself
                self._write(now)

    def _write(self, now: float) -> None:
        self._written = now
        self._bar.write("\n".join(self._waiting))
        self._waiting.clear()

    def on_train_end(self) -> None:
        if self._bar is not None:
            if self._waiting:
                self._write(0.0)  # the next fit's first line at once
            self._bar.close()
            self._bar = None


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _make_bar(total: int):
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(total)
    # miniters: the callback decides when to draw
    return tqdm(total=total, unit="step", mininterval=0, miniters=1, dynamic_ncols=True, file=sys.stderr)


def bar_for(verbose: object) -> ProgressBar | None:
    """The progress bar that ``fit(verbose=)`` asks for; ArgumentError for anything but "auto", 0, 1, 2."""
    if isinstance(verbose, str) and verbose == "auto":
        return ProgressBar() if sys.stderr is not None and sys.stderr.isatty() else None
    if not isinstance(verbose, (bool, int)) or verbose not in (0, 1, 2):
        raise ArgumentError(f'verbose: expected "auto", 0, 1 or 2, got {verbose!r}')
    if verbose == 0:
        return None
    return ProgressBar(bar=verbose == 1, lines=True)
