"""Callbacks: hooks between epochs and between chunks of steps. Absent callbacks cost nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, named_keywords

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["Callback", "LambdaCallback", "ProgressBar"]

Logs = dict[str, float]


class Callback:
    """Base of every callback; each hook does nothing.

    Weights read through the model's views are those after the last update; what a hook writes through them is what the
    next step starts from. ``self.trainer.stop_training = True`` ends the fit after the hook.

    Attributes
    ----------
    trainer : Trainer
        Set before ``on_train_begin``.
    """

    trainer: Trainer

    def on_train_begin(self) -> None: ...

    def on_train_end(self) -> None:
        """Also called when the fit ends by an exception."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """`epoch` counts from 0 within this fit; `logs` holds "epochs", "steps" (per epoch) and "batch_size"."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """`logs` holds what history gets."""

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        """After every slice of about 50 ms: `steps` of this epoch are made, `logs["loss"]` is their mean loss."""


class LambdaCallback(Callback):
    """Callback from plain functions, given by the names of the hooks.

    Parameters
    ----------
    on_train_begin, on_train_end : callable ()
    on_epoch_begin, on_epoch_end : callable (epoch, logs)
    on_chunk_end : callable (steps, logs)
    """

    @named_keywords
    def __init__(
        self,
        *,
        on_train_begin: Callable[[], object] | None = None,
        on_train_end: Callable[[], object] | None = None,
        on_epoch_begin: Callable[[int, Logs], object] | None = None,
        on_epoch_end: Callable[[int, Logs], object] | None = None,
        on_chunk_end: Callable[[int, Logs], object] | None = None,
    ) -> None:
        hooks = {
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_chunk_end": on_chunk_end,
        }
        for name, hook in hooks.items():
            if hook is not None:
                if not callable(hook):
                    raise ArgumentError(f"LambdaCallback({name}=): expected a callable, got {hook!r}")
                setattr(self, name, hook)


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
        Print one line per epoch, to stdout.
    """

    INTERVAL = 0.1

    @named_keywords
    def __init__(self, *, bar: bool = True, lines: bool = False) -> None:
        self.show_bar, self.show_lines = bar, lines
        self._bar: Any = None  # tqdm's, or what stands in for it
        self._drawn = 0.0

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._epoch, self._epochs, self._steps = epoch, int(logs["epochs"]), int(logs["steps"])
        if self.show_bar and self._bar is None:
            self._bar = _make_bar(self._epochs * self._steps)

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        now = time.monotonic()
        if self._bar is not None and (now - self._drawn >= self.INTERVAL or self._last(steps)):
            self._drawn = now
            self._move(steps, logs)
            self._bar.refresh()

    def _move(self, steps: int, logs: Logs) -> None:
        self._bar.n = self._epoch * self._steps + steps
        self._bar.set_description(f"epoch {self._epoch + 1}/{self._epochs} loss {logs['loss']:.4g}", refresh=False)

    def _last(self, steps: int) -> bool:
        return self._epoch + 1 == self._epochs and steps == self._steps

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if not self.show_lines:
            return
        apart = ("lr", "batch_size", "time")
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in logs.items() if k not in apart and np.ndim(v) == 0)
        width = len(str(self._epochs))
        line = f"epoch {epoch + 1:{width}d}/{self._epochs}  {numbers}  {_duration(logs['time'])}"
        if self._bar is None:
            print(line)
        else:
            self._move(self._steps, logs)  # the line makes the bar redraw itself
            self._bar.write(line)

    def on_train_end(self) -> None:
        if self._bar is not None:
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
