"""The gradient noise scale: its estimate, and batch sizes that follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..data.orders import epoch_order
from ..errors import ArgumentError, DataError, DivergenceError, as_float, named_fields, named_keywords
from ..plan import Plan
from ..protocol import Feed, Program
from .moments import add_batch, add_rows, interval, moments, quantile, square, squares_of, sums_of

if TYPE_CHECKING:
    from ..training import Trainer

__all__ = [
    "NoiseEstimate", "NoiseScale", "as_state", "due", "follow", "measure", "noise_scale", "ratio", "rows_of", "within",
]  # fmt: skip

Array = np.ndarray

# Batches that an interval needs: the t distribution has heavy tails below
BATCHES = 8

# Rows trained on for each row that is measured, at least. A row measured costs as much as 1.1 rows trained on where
# products dominate (784-128-10), 1.7 to 2.4 on 8-64-64-4
SHARE = 40

# Of a measurement, where there are eight times as many
ROWS = 1024


def ratio(trace: float, norm: float) -> float:
    """The noise scale; inf where the gradient cannot be told from 0, NaN where nothing has been measured."""
    if math.isnan(norm):
        return math.nan
    return max(trace, 0.0) / norm if norm > 0 else math.inf


@dataclass(frozen=True)
class NoiseEstimate:
    """What :func:`noise_scale` found. Printed, it is one line.

    Attributes
    ----------
    noise_scale : float
        ``trace / squared_norm`` in rows; inf where the rows do not show a gradient at all.
    low, high : float
        Confidence interval of it; `high` is inf where they cannot tell the gradient from 0.
    level : float
        Of the interval.
    trace : float
        Trace of the covariance of single rows' gradients: B times what the gradient of B rows has of noise, squared,
        with the spread of row weights in it.
    squared_norm : float
        Of the mean gradient, unbiased, and therefore below 0 at times.
    rows, batch_size : int
        Rows used, and of a batch.
    """

    noise_scale: float
    low: float
    high: float
    level: float
    trace: float
    squared_norm: float
    rows: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"noise scale {self.noise_scale:.4g} rows ({self.level:.4g}: {self.low:.4g} to {self.high:.4g}), "
            f"from {self.rows} rows"
        )


@named_keywords
def noise_scale(
    trainer: Trainer, X, y, batch_size: int, *, sample_weight=None, population: int | None = None, level: float = 0.95
) -> NoiseEstimate:
    """The simple gradient noise scale ``tr(Sigma) / |G|^2`` at the present weights; model and trainer stay as they are.

    G is the mean gradient of the loss and Sigma the covariance of single rows' gradients, over the parameters that the
    optimizer trains, without penalties. A batch of so many rows has a gradient whose noise is as long as itself:
    smaller batches waste little, larger ones save few steps [1]_.

    All n rows of X make one estimate. Each row's squared norm is known (:meth:`fastbatch.Trainer.gradient_norms`),
    which is the two-size estimator of [1]_, appendix A.1, at sizes 1 and n, the one of least variance. With BatchNorm,
    where single rows have no gradients, the sizes are `batch_size` and n. The interval is Fieller's for a ratio, with
    the covariance of both estimates from a jackknife over batches, into which the trainer's seed shuffles the rows.

    Costs three to five times :meth:`fastbatch.Trainer.gradients` of the rows, `batch_size` at a time.

    Parameters
    ----------
    trainer : Trainer
    X, y : array_like
        As in :meth:`fastbatch.Trainer.fit`: rows drawn at random from what the model trains on.
    batch_size : int
        Rows worked on at a time, and of a unit of the jackknife: at most an eighth of the rows.
    sample_weight : (n,) array_like, optional
        Row weights: the noise scale is that of rows with such weights, of which more are needed than of equal ones.
    population : int, optional
        Number of rows that X was drawn from without replacement, whose noise scale is asked for: with ``len(X)`` it
        is exact, and the interval a point. None means no end of rows.
    level : float, default 0.95
        Of the interval.

    Returns
    -------
    NoiseEstimate

    Raises
    ------
    ArgumentError
        For a number out of range, fewer than 8 batches, batches of one row with BatchNorm, norm layers of which only
        some tensors are frozen, and where nothing is trained.
    ShapeError, DTypeError, DataError, BusyError
    DivergenceError
        When a gradient is not finite.

    References
    ----------
    .. [1] S. McCandlish et al., "An empirical model of large-batch training", 2018, arXiv:1812.06162.
    """
    if not hasattr(trainer, "_program"):
        raise ArgumentError(f"noise_scale: expected a Trainer, got {type(trainer).__name__}")
    if not trainer._plan.segments:
        raise ArgumentError("noise_scale: expected parameters to train, got an optimizer that freezes all of them")
    size = checks.count("noise_scale: batch_size", batch_size)
    level = as_float(level)
    if not 0 < level < 1:
        raise ArgumentError(f"noise_scale: level: expected a number between 0 and 1, got {level!r}")
    with trainer._busy:
        data = trainer._data(X, y, sample_weight, ("X", "y", "sample_weight"))
        rows = len(data.x)
        of = (
            math.inf
            if population is None
            else checks.count("noise_scale: population", population, f"an integer >= {rows}", rows)
        )
        batches = -(-rows // size)
        if batches < BATCHES:
            raise ArgumentError(
                f"noise_scale: expected {BATCHES} batches or more for an interval, got {batches}: {rows} rows with "
                f"batch_size {size}"
            )
        if trainer.model.buffers.size and rows < 2 * batches:
            raise ArgumentError(
                "noise_scale: batch_size: expected batches of 2 rows or more with BatchNorm, one row having no "
                f"variance, got {rows} rows in {batches} batches"
            )
        checks.check_finite(data.x, "X", X, trainer.model.dtype)
        checks.check_finite(data.y, "y", y)
        trainer._forward_shape = None
        order = epoch_order(rows, trainer.seed, trainer.epochs, True, trainer.backend)
        assert order is not None
        edges = [rows * k // batches for k in range(batches + 1)]  # none is much smaller than the others
        plan, program = trainer._plan, trainer._program
        add = add_batch if trainer.model.buffers.size else add_rows
        total = np.zeros(trainer.model.num_parameters)
        sums, products = np.empty((4, batches)), np.empty((2, batches))

        def batch(k: int) -> tuple[Feed, Array]:
            part = data.take(order[edges[k] : edges[k + 1]])
            return Feed(part.x, part.y, part.weight, batch=len(part.x)), np.zeros_like(trainer.model.parameters)

        for k in range(batches):
            feed, gradient = batch(k)
            sums[:, k] = add(program, plan, feed, edges[k], gradient)
            total += gradient
        for k in range(batches):  # again: to keep all of them would be so many times the parameters
            feed, gradient = batch(k)
            program.accumulate(feed, edges[k], gradient)
            products[:, k] = square(plan, gradient, total), square(plan, gradient)
    if np.count_nonzero(sums[1]) < BATCHES:
        raise DataError(f"sample_weight: expected weights above 0 in {BATCHES} batches of {size} rows, got fewer")
    whole_sums, squared = sums.sum(axis=1), square(plan, total)
    trace, norm = map(float, moments(whole_sums, squared, of))
    if not math.isfinite(trace):
        raise DivergenceError.at("gradient", trace, trainer.steps)
    left = np.stack(moments(whole_sums[:, None] - sums, squared - 2 * products[0] + products[1], of))
    left -= left.mean(axis=1, keepdims=True)
    # the interval is of a ratio, and takes fourth powers of gradients; a power of two moves no bit
    unit = math.ldexp(1.0, min(1000, -math.frexp(max(abs(trace), abs(norm)))[1]))
    left *= unit
    covariance = (batches - 1) / batches * (1 - rows / of) * (left @ left.T)
    low, high = interval(unit * trace, unit * norm, covariance, quantile(level, batches - 1))
    return NoiseEstimate(ratio(trace, norm), low, high, level, trace, norm, rows, size)


def measure(
    program: Program, plan: Plan, data: Feed, chosen: Array, piece: int, population: float
) -> tuple[float, float]:
    """tr Sigma and |G|^2 of the rows `chosen` of `data`, `piece` at a time; NaN where nothing tells them apart."""
    gradient, each = np.zeros(plan.num_parameters, plan.dtype), np.empty((2, len(chosen)))
    for start in range(0, len(chosen), piece):
        rows = chosen[start : start + piece]
        weight = None if data.weight is None else data.weight[rows]
        feed = Feed(data.x[rows], data.y[rows], weight, batch=len(rows))
        each[:, start : start + piece] = squares_of(program, plan, feed, start, gradient)
    trace, norm = moments(sums_of(each), square(plan, gradient), population)
    return float(trace), float(norm)


@named_fields
@dataclass(frozen=True)
class NoiseScale:
    """Batches of `target` times the gradient noise scale, measured as the fit goes on.

    A measurement takes the gradients of some rows, drawn at random, as an epoch begins. Its two numbers, tr Sigma and
    |G|^2, are averaged over time each for itself, and their ratio is the noise scale. The first one sets the size, to
    `min` times a power of two, or `max`; each further one doubles or halves it where what is wanted has left it by more
    than 2^0.75. With ``min == max`` the size stays, and ``history["noise_scale"]`` is all that is asked for.

    Rows of an update are counted: with ``gradient_accumulation_steps`` the batch is that much smaller. Gradients are
    those of the loss at the rows, with dropout, without augmentation and penalties. The lr is left alone.

    Parameters
    ----------
    target : float, default 1.0
        At 1 a training takes twice the fewest steps and twice the fewest rows that it could; at k,
        ``1 + 1 / k`` times the steps and ``1 + k`` times the rows (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.7).
    min : int, default 8
    max : int, default 4096
        At least `min`.
    rows : int, optional
        Of a measurement: they tell noise scales up to about as many. By default 1024, or an eighth of those there are.
    every : int, optional
        Epochs from one measurement to the next; the first epoch has one. By default as many as it takes to train on 40
        rows for each that is measured.
    decay : float, default 0.5
        Weight of what was measured an epoch ago in the averages, squared for two epochs and so on; 0 looks at the last
        measurement only.

    Raises
    ------
    ArgumentError
        For a number out of range; by `fit` for a model with BatchNorm, in which rows have no gradients of their own,
        and where the optimizer freezes everything.
    """

    target: float = 1.0
    min: int = 8
    max: int = 4096
    rows: int | None = None
    every: int | None = None
    decay: float = 0.5

    def __post_init__(self) -> None:
        least = checks.count("NoiseScale(min=)", self.min)
        target = checks.limit("NoiseScale(target=)", self.target)
        if target is None:
            raise ArgumentError("NoiseScale(target=): expected a finite number > 0, got None")
        rows, every = self.rows, self.every
        values = {
            "target": target,
            "min": least,
            "max": checks.count("NoiseScale(max=)", self.max, f"an integer >= min, which is {least}", least=least),
            "rows": rows if rows is None else checks.count("NoiseScale(rows=)", rows, "an integer >= 2 or None", 2),
            "every": every if every is None else checks.count("NoiseScale(every=)", every, "an integer >= 1 or None"),
            "decay": checks.fraction("NoiseScale(decay=)", self.decay),
        }
        for name, value in values.items():  # NumPy's numbers become Python's, which JSON can hold
            object.__setattr__(self, name, value)


State = dict[str, Any]


def rows_of(policy: NoiseScale, total: int) -> int:
    """Rows of a measurement where there are `total`."""
    return min(policy.rows or min(ROWS, max(total // 8, 2)), total)


def due(policy: NoiseScale, state: State, epoch: int, total: int) -> bool:
    """Whether `epoch`, of so many rows, begins with a measurement, where there has been one."""
    every = policy.every or -(-SHARE * rows_of(policy, total) // total)
    return epoch - state["epoch"] >= every


def follow(policy: NoiseScale, state: State | None, epoch: int, found: tuple[float, float], batches: int) -> State:
    """The state behind `epoch`'s measurement and the size that follows, where an update takes `batches` batches.

    What is not finite is not averaged: the update will say what is wrong.
    """
    before = state or {"epoch": epoch, "trace": math.nan, "squared_norm": math.nan, "size": None}
    trace, norm = before["trace"], before["squared_norm"]
    if all(map(math.isfinite, found)):
        keep = 0.0 if math.isnan(norm) else policy.decay ** (epoch - before["epoch"])
        trace, norm = (keep * old + (1 - keep) * new if keep else new for old, new in zip((trace, norm), found))
    wanted = policy.target * ratio(trace, norm) / batches
    return {"epoch": epoch, "trace": trace, "squared_norm": norm, "size": _size(policy, before["size"], wanted)}


def _size(policy: NoiseScale, size: int | None, wanted: float) -> int:
    if size is None:
        start = policy.min if math.isnan(wanted) else within(policy, wanted)
        size = policy.min * 2 ** round(math.log2(start / policy.min))
    elif wanted > 2**0.75 * size:
        size *= 2
    elif wanted < 2**-0.75 * size:
        size //= 2
    return within(policy, size)


def within(policy: NoiseScale, size: Any) -> Any:
    """`size`, or the end of the policy's range where it is beyond."""
    return min(max(size, policy.min), policy.max)


def as_state(value: Any) -> State | None:
    """What a NoiseScale remembers, out of a file: None, or epoch, trace, squared_norm and size."""
    if value is None:
        return None
    return {
        "epoch": checks.count("noise scale: epoch", value["epoch"], "an integer >= 0", least=0),
        "trace": float(value["trace"]),
        "squared_norm": float(value["squared_norm"]),
        "size": checks.count("noise scale: size", value["size"]),
    }
