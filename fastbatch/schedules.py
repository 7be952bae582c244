"""Learning-rate schedules: immutable descriptions without state, functions of the number of updates made so far.

An optimizer takes one in place of a number: ``fb.Adam(lr=fb.schedules.Cosine(1e-3, 1000))``. Update t, counted from 0
over the life of a trainer, runs at ``schedule(t)``. Where torch.optim.lr_scheduler has the same schedule, with one
``scheduler.step()`` behind every update, the rates are its.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from .errors import ArgumentError, as_float, named_fields, unknown_name

__all__ = ["SCHEDULES", "Constant", "Cosine", "Exponential", "OneCycle", "Schedule", "Step", "Warmup"]

Array = np.ndarray

# What float32, in which models are trained, holds: a larger rate is infinite there
LARGEST = float(np.finfo(np.float32).max)
_RATE = "a finite number >= 0 that float32 can hold", 0, LARGEST

# Updates whose rates are worked out together when one is asked for: 10 us once, 0.3 us for each of the others.
BLOCK = 512


@dataclass(frozen=True)
class Schedule:
    """Base of every schedule; a subclass states `_rates`."""

    def __call__(self, t: int) -> float:
        """Learning rate of update `t`, counted from 0; bit for bit ``values(t, 1)[0]``."""
        block, place = divmod(self._integer("t", t, 0), BLOCK)
        return _block(self, block)[place]

    def values(self, first: int, count: int) -> Array:
        """Learning rates of the updates `first` .. `first + count - 1`, (count,) float64.

        No bit depends on where the updates are cut into calls.

        Raises
        ------
        ArgumentError
            For a negative or non-integer argument, and for rates that are not one number >= 0 for each update, or grow
            beyond float32.
        """
        first, count = self._integer("first", first, 0), self._integer("count", count, 0)
        t = np.arange(first, first + count, dtype=np.float64)
        with np.errstate(over="ignore"):
            rates = np.asarray(self._rates(t))
        if rates.dtype.kind not in "fiu" or rates.shape != t.shape:
            raise ArgumentError(
                f"{self}: expected rates of a real dtype and shape {t.shape}, got {rates.dtype} {rates.shape}"
            )
        bad = ~((rates >= 0) & (rates <= LARGEST))
        if bad.any():
            raise ArgumentError(
                f"{self}: expected finite rates >= 0 that float32 can hold, got {rates[bad][0]} at update "
                f"{int(t[bad][0])}"
            )
        return rates.astype(np.float64, copy=False)

    def _rates(self, t: Array) -> Array:
        """Rates of the updates `t`, float64 and whole; each a function of its own element alone."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Name and numbers as JSON holds them; :meth:`from_dict` reads them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "name": type(self).__name__,
            **{name: value.to_dict() if isinstance(value, Schedule) else value for name, value in values.items()},
        }

    @staticmethod
    def from_dict(description: dict[str, Any]) -> Schedule:
        """The schedule that :meth:`to_dict` described.

        Raises
        ------
        ArgumentError, TypeError
            For an unknown name, a value out of range, or an unknown or missing field.
        """
        if not isinstance(description, dict):
            raise ArgumentError(f"Schedule.from_dict: expected a dict as to_dict gives it, got {description!r}")
        name = description.get("name")
        if not isinstance(name, str) or name not in SCHEDULES:
            raise unknown_name("Schedule.from_dict(name=)", name, SCHEDULES)
        values = {key: value for key, value in description.items() if key != "name"}
        return SCHEDULES[name](
            **{key: Schedule.from_dict(value) if isinstance(value, dict) else value for key, value in values.items()}
        )

    def _integer(self, name: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ArgumentError(f"{type(self).__name__}({name}=): expected an integer >= {least}, got {value!r}")
        return int(value)

    def _number(self, name: str, value: object, expected: str, low: float, high: float = math.inf) -> float:
        """A finite number in [`low`, `high`], which `expected` says in words."""
        number = as_float(value)
        if not low <= number <= high or number == math.inf:
            raise ArgumentError(f"{type(self).__name__}({name}=): expected {expected}, got {value!r}")
        return number

    def _set(self, **values: float) -> None:
        """Keep what was checked: NumPy's numbers become Python's, which JSON can hold."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


@lru_cache(maxsize=64)
def _block(schedule: Schedule, block: int) -> list[float]:
    return schedule.values(block * BLOCK, BLOCK).tolist()


_POSITIVE = math.ulp(0.0)  # the smallest number above 0: turns [low, high] into a bound that leaves 0 out


@named_fields
@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate for ever, as the number itself; for ``Warmup(steps, Constant(lr))``.

    Parameters
    ----------
    lr : float

    Raises
    ------
    ArgumentError
        For a rate that is negative or not finite.
    """

    lr: float

    def __post_init__(self) -> None:
        self._set(lr=self._number("lr", self.lr, *_RATE))

    def _rates(self, t: Array) -> Array:
        return np.full_like(t, self.lr)


@named_fields
@dataclass(frozen=True)
class Step(Schedule):
    """``lr * gamma ** (t // every)``, torch's StepLR(step_size=every, gamma).

    Parameters
    ----------
    lr : float
    every : int
        Updates between two falls.
    gamma : float, default 0.1
        Above 0.

    Raises
    ------
    ArgumentError
        For a number out of range.
    """

    lr: float
    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._set(
            lr=self._number("lr", self.lr, *_RATE),
            every=self._integer("every", self.every, 1),
            gamma=self._number("gamma", self.gamma, "a finite number > 0", _POSITIVE),
        )

    def _rates(self, t: Array) -> Array:
        return self.lr * np.power(self.gamma, t // self.every)


@named_fields
@dataclass(frozen=True)
class Exponential(Schedule):
    """``lr * gamma ** t``, torch's ExponentialLR(gamma).

    Parameters
    ----------
    lr : float
    gamma : float
        Above 0.

    Raises
    ------
    ArgumentError
        For a number out of range.
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        self._set(
            lr=self._number("lr", self.lr, *_RATE),
            gamma=self._number("gamma", self.gamma, "a finite number > 0", _POSITIVE),
        )

    def _rates(self, t: Array) -> Array:
        return self.lr * np.power(self.gamma, t)


@named_fields
@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `lr` at update 0 to `min_lr` at update `total_steps`, where it stays.

    torch's CosineAnnealingLR(T_max=total_steps, eta_min=min_lr) up to there; torch's then rises again.

    Parameters
    ----------
    lr : float
    total_steps : int
    min_lr : float, default 0
        At most `lr`.

    Raises
    ------
    ArgumentError
        For a number out of range.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR", 2016, arXiv:1608.03983.
    """

    lr: float
    total_steps: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        lr = self._number("lr", self.lr, *_RATE)
        self._set(
            lr=lr,
            total_steps=self._integer("total_steps", self.total_steps, 1),
            min_lr=self._number("min_lr", self.min_lr, f"a number from 0 to lr={lr}", 0, lr),
        )

    def _rates(self, t: Array) -> Array:
        return _half_cosine(self.lr, self.min_lr, np.minimum(t / self.total_steps, 1))


@named_fields
@dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line up to the first rate of `then`, which begins, at its own update 0, after `steps` updates.

    Update t < steps runs at ``then(0) * (t + 1) / (steps + 1)``: no update is wasted at rate 0, the last of the line
    stands one even step below `then`, and `then` keeps its full length. In torch's words SequentialLR of LinearLR(
    start_factor=1 / (steps + 1), total_iters=steps) and `then`, with milestones=[steps]; LinearLR's own defaults
    (start_factor=1/3) begin higher.

    Parameters
    ----------
    steps : int
        0 leaves `then` alone.
    then : Schedule

    Raises
    ------
    ArgumentError
        For steps < 0, or something else than a schedule behind them.
    """

    steps: int
    then: Schedule

    def __post_init__(self) -> None:
        self._set(steps=self._integer("steps", self.steps, 0))
        if not isinstance(self.then, Schedule):
            hint = f"; did you mean Constant({self.then!r})?" if isinstance(self.then, Real) else ""
            raise ArgumentError(f"Warmup(then=): expected a schedule, got {self.then!r}{hint}")

    def _rates(self, t: Array) -> Array:
        line = self.then(0) * ((t + 1) / (self.steps + 1))
        return np.where(t < self.steps, line, self.then._rates(np.maximum(t - self.steps, 0)))


@named_fields
@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to `max_lr` and down to almost nothing, each by half a cosine; torch's OneCycleLR(max_lr, total_steps).

    From ``max_lr / div_factor`` at update 0 to `max_lr` at update ``pct_start * total_steps - 1``, then to
    ``max_lr / div_factor / final_div_factor`` at update ``total_steps - 1``, where it stays. torch's default also
    moves the momentum; this is its cycle_momentum=False.

    Parameters
    ----------
    max_lr : float
    total_steps : int
    pct_start : float, default 0.3
        Share of the updates that rise, in [0, 1].
    div_factor : float, default 25
        At least 1.
    final_div_factor : float, default 1e4
        At least 1.

    Raises
    ------
    ArgumentError
        For a number out of range.

    References
    ----------
    .. [1] L. Smith and N. Topin, "Super-Convergence", 2017, arXiv:1708.07120.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        self._set(
            max_lr=self._number("max_lr", self.max_lr, *_RATE),
            total_steps=self._integer("total_steps", self.total_steps, 1),
            pct_start=self._number("pct_start", self.pct_start, "a number in [0, 1]", 0, 1),
            div_factor=self._number("div_factor", self.div_factor, "a finite number >= 1", 1),
            final_div_factor=self._number("final_div_factor", self.final_div_factor, "a finite number >= 1", 1),
        )

    def _rates(self, t: Array) -> Array:
        last = self.total_steps - 1
        top = self.pct_start * self.total_steps - 1  # not whole in general, and below 0 when nothing rises
        low = self.max_lr / self.div_factor
        up = _half_cosine(low, self.max_lr, np.clip(t / top, 0, 1)) if top > 0 else np.full_like(t, self.max_lr)
        if top >= last:
            return up
        down = _half_cosine(self.max_lr, low / self.final_div_factor, np.clip((t - top) / (last - top), 0, 1))
        return np.where(t < top, up, down)


def _half_cosine(start: float, end: float, share: Array) -> Array:
    """From `start` at share 0 to `end` at share 1: ``end + (start - end) (1 + cos(pi share)) / 2``.

    As a squared sine of what is left, which keeps its digits where 1 + cos cancels, and ends at `end` exactly.
    """
    return end + (start - end) * np.square(np.sin(math.pi / 2 * (1 - share)))


SCHEDULES: dict[str, type[Schedule]] = {
    cls.__name__: cls for cls in (Constant, Step, Exponential, Cosine, Warmup, OneCycle)
}
