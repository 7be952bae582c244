"""Numbers out of an epoch's logs, and which way is better: for the callbacks that watch one, and for History."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..errors import ArgumentError, did_you_mean, unknown_name

__all__ = ["MODES", "Monitor", "better", "numbers_of"]

MODES = ("auto", "min", "max")

# First words of names, behind "val_"
_LOWER = ("loss", "mae", "mse")
_HIGHER = ("accuracy", "auc", "f1", "precision", "r2", "recall", "top")


def better(name: str) -> str | None:
    """ "min" where less of `name` is better, "max" where more is, None where the name does not say."""
    word = name.removeprefix("val_").partition("_")[0]
    return "min" if word in _LOWER else "max" if word in _HIGHER else None


def numbers_of(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `logs` that are one number, without arrays such as a confusion matrix."""
    return {name: value for name, value in logs.items() if isinstance(value, Real)}


class Monitor:
    """One quantity of the epochs, by name.

    Attributes
    ----------
    sign : float
        Times the quantity, less is better.
    """

    def __init__(self, owner: str, name: str, mode: str = "auto") -> None:
        if not isinstance(name, str):
            raise ArgumentError(f"{owner}(monitor=): expected a name in history, got {name!r}")
        if mode not in MODES:
            raise unknown_name(f"{owner}(mode=)", mode, MODES)
        direction = better(name) if mode == "auto" else mode
        if direction is None:
            word = name.removeprefix("val_").partition("_")[0]
            raise ArgumentError(
                f"{owner}(monitor={name!r}): expected mode='min' or mode='max' with it, got 'auto'"
                f"{did_you_mean(word, (*_LOWER, *_HIGHER))}"
            )
        self.owner, self.name, self.mode = owner, name, direction
        self.sign = 1.0 if direction == "min" else -1.0

    def read(self, logs: Mapping[str, Any]) -> float:
        """The quantity; ArgumentError where the epoch has none of that name."""
        numbers = numbers_of(logs)
        if self.name not in numbers:
            where = f"{self.owner}(monitor=)"
            if self.name.startswith("val_") and not any(name.startswith("val_") for name in numbers):
                raise ArgumentError(
                    f"{where}: expected one of {', '.join(sorted(numbers))}; got {self.name!r}, which fit measures "
                    "with validation_data or validation_split"
                )
            raise unknown_name(where, self.name, numbers)
        return float(numbers[self.name])

    def improves(self, value: float, best: float | None, by: float = 0.0) -> bool:
        """Whether `value` is better than `best` (None: nothing yet) by more than `by`; never for NaN or a first Inf."""
        if best is None:
            return math.isfinite(value)
        return self.sign * (best - value) > by
