"""How many rows make a batch, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import checks
from ..errors import ArgumentError, as_float, named_fields
from .noise import NoiseScale

__all__ = ["EXPECTED", "Grow", "as_plain", "from_plain", "least_rows", "most_rows", "policy_of", "rows_at"]

EXPECTED = (
    'an integer >= 1, "full", "noise", fb.batching.Grow, fb.batching.NoiseScale, a dict {epoch: size} or a function of '
    "the epoch"
)


@named_fields
@dataclass(frozen=True)
class Grow:
    """``start * factor ** (epoch // every)`` rows, to the nearest, and never more than `max`.

    Epochs are those of the trainer, from 0: a second fit goes on where the first one ended.

    Parameters
    ----------
    start : int
    factor : float, default 2
        Above 1.
    every : int, default 10
        Epochs between two changes.
    max : int, default 4096
        At least `start`.

    Raises
    ------
    ArgumentError
        For a number out of range.
    """

    start: int
    factor: float = 2
    every: int = 10
    max: int = 4096

    def __post_init__(self) -> None:
        start = checks.count("Grow(start=)", self.start)
        values = {
            "start": start,
            "factor": self._factor(),
            "every": checks.count("Grow(every=)", self.every),
            "max": checks.count("Grow(max=)", self.max, f"an integer >= start, which is {start}", least=start),
        }
        for name, value in values.items():  # NumPy's numbers become Python's, which JSON can hold
            object.__setattr__(self, name, value)

    def _factor(self) -> float:
        value = self.factor
        if not 1 < as_float(value) < math.inf:
            raise ArgumentError(f"Grow(factor=): expected a finite number > 1, got {value!r}")
        return float(value)

    def __call__(self, epoch: int) -> int:
        """Rows of a batch in `epoch`, counted from 0."""
        changes = checks.count("Grow: epoch", epoch, "an integer >= 0", least=0) // self.every
        if changes * math.log(self.factor) >= math.log(self.max / self.start):
            return self.max  # before the power can overflow
        return min(self.max, round(self.start * self.factor**changes))


# What a file may name
SCHEDULES: dict[str, type] = {"Grow": Grow, "NoiseScale": NoiseScale}


def as_plain(value: Any) -> Any:
    """What `fit` takes as batch_size, checked: a number, a dict that JSON can hold, or the caller's function.

    "full" is the largest number there is, "noise" the defaults of NoiseScale. A Grow is ``{"name": "Grow", ...}``, a
    NoiseScale likewise, a dict of epochs ``{"name": "epochs", "sizes": [[epoch, size], ...]}`` in ascending order.
    """
    if isinstance(value, str) and value == "noise":
        value = NoiseScale()
    if isinstance(value, (Grow, NoiseScale)):
        return {"name": type(value).__name__, **asdict(value)}
    if isinstance(value, Mapping):
        sizes = [
            [checks.count("batch_size: epoch", epoch, "an integer >= 0", least=0), checks.batch_size(size)]
            for epoch, size in value.items()
        ]
        if not any(epoch == 0 for epoch, _ in sizes):
            raise ArgumentError(f"batch_size: expected a dict with epoch 0, got epochs {sorted(value)}")
        return {"name": "epochs", "sizes": sorted(sizes)}
    if isinstance(value, str) and value == "auto":
        raise ArgumentError(f"batch_size: expected {EXPECTED}; got 'auto', which a later version brings")
    if callable(value) and not isinstance(value, type):
        return value
    return checks.batch_size(value, expected=EXPECTED)


def from_plain(plain: Any) -> Any:
    """What :func:`as_plain` was given, but for "full" and "noise": from a file, so it is to be checked again."""
    if not isinstance(plain, dict):
        return plain
    return _schedule(plain) if plain["name"] in SCHEDULES else dict(plain["sizes"])


def _schedule(plain: dict[str, Any]) -> Any:
    return SCHEDULES[plain["name"]](**{name: value for name, value in plain.items() if name != "name"})


def policy_of(plain: Any) -> NoiseScale | None:
    """The policy that :func:`as_plain` has noted, where sizes follow from measurements; None for everything else."""
    found = isinstance(plain, dict) and plain["name"] == "NoiseScale"
    return _schedule(plain) if found else None


def rows_at(plain: Any, epoch: int) -> int:
    """Rows of a batch in `epoch` of the trainer, as :func:`as_plain` has noted them; not for a NoiseScale."""
    if isinstance(plain, int):
        return plain
    if callable(plain):
        return checks.batch_size(plain(epoch), f"batch_size({epoch})")
    if plain["name"] == "Grow":
        return _schedule(plain)(epoch)
    return next(size for first, size in reversed(plain["sizes"]) if first <= epoch)


def most_rows(plain: Any, last: int) -> int | None:
    """The most that a schedule gives in the epochs up to `last`; None for one size and where nobody can know."""
    if isinstance(plain, int) or callable(plain):
        return None
    policy = policy_of(plain)
    if policy is not None:
        return policy.max
    if plain["name"] == "Grow":
        return rows_at(plain, last)
    return max(size for epoch, size in plain["sizes"] if epoch <= last)


def least_rows(plain: Any, size: int, epoch: int, last: int) -> int:
    """The least of `size`, that of `epoch`, and of what is known of the epochs up to `last`.

    Only a dict gets smaller; what a function or a NoiseScale will say nobody knows.
    """
    named = plain["sizes"] if isinstance(plain, dict) and plain["name"] == "epochs" else ()
    return min([size, *(later for first, later in named if epoch < first <= last)])
