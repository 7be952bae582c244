"""What a backend is: four kernels, a statement of what it supports and, where it chooses, a fused program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from . import ops
from .plan import Plan

__all__ = ["Backend", "Device", "Feed", "PerSample", "Program", "State", "Steps", "Sums"]

Array = np.ndarray


@dataclass
class State:
    """The numbers that training changes. One owner, the trainer; programs hold references.

    Attributes
    ----------
    parameters : (N,) ndarray
        The model's own buffer.
    slots : (S, N) ndarray
        Optimizer state.
    steps : (1,) ndarray of int64
        Updates made so far. Programs count here, in memory, so that no interrupt can separate it from the parameters.
    seed : int
        Key of the dropout masks.
    buffers : ndarray
        Running statistics, the model's own; an update moves them with the parameters.
    """

    parameters: Array
    slots: Array
    steps: Array
    seed: int
    buffers: Array = field(default_factory=lambda: np.empty(0))


@dataclass
class Feed:
    """Rows to visit, as a program takes them: validated; y converted, with contiguous rows.

    Attributes
    ----------
    x : (n, I) ndarray
        Of a dtype in :data:`fastbatch.checks.SOURCES`, with any strides: converted batch by batch.
    y : (n,) ndarray of int64, or (n, O) ndarray of the plan's dtype
    weight : (n,) ndarray of float64, or None
    order : (m,) ndarray of int64, or None for all rows in order
    batch : int
        Rows per step; the last step takes what is left.
    piece : int, optional
        Rows of a step that are worked on at a time, which bounds memory; all by default. No bit depends on it at
        multiples of `Program.tile_rows`.
    outputs : (m, O) ndarray, optional
        Filled with the outputs before each update, in the order visited.
    noise : float
        Standard deviation of what `run` adds to the inputs, :func:`fastbatch.ops.random.gaussian` of the update.
    mix : (share (steps,) float64, shift (steps,) int64), optional
        Row r of the batch of n rows that step s takes becomes share[s] of itself and the rest of row (r + shift[s]) mod
        n in `run`, before noise; a share of 1 leaves it as it is. The row weight, which is w of the first and v of the
        second, becomes ``share w + (1 - share) v``, and the target, labels being one-hot, the mean of the two by these
        terms. Class weights of labels are mixed by the same terms into the total weight.
    same : object, optional
        Feeds that name the same object have the same numbers in the same x, y and weight: a device may keep them.
    """

    x: Array
    y: Array
    weight: Array | None = None
    order: Array | None = None
    batch: int = 1
    outputs: Array | None = None
    noise: float = 0.0
    piece: int | None = None
    mix: tuple[Array, Array] | None = None
    same: object | None = None

    @property
    def rows(self) -> int:
        return len(self.x if self.order is None else self.order)

    @property
    def steps(self) -> int:
        return -(-self.rows // self.batch)

    @property
    def most(self) -> int:
        """Rows worked on at a time, at most."""
        return min(self.rows, self.batch, self.batch if self.piece is None else self.piece)


class Sums:
    """Weighted sums over the rows visited; additive over batches.

    Attributes
    ----------
    totals : (3,) ndarray of float64
        Loss, weight, and of each update the norm of its gradient before clipping, 0 where the norm is not limited.
        Programs add to it in place, so that no interrupt can separate the sums from the steps.
    """

    def __init__(self, loss: float = 0.0, weight: float = 0.0, norm: float = 0.0) -> None:
        self.totals = np.array([loss, weight, norm], np.float64)

    @property
    def loss(self) -> float:
        return float(self.totals[0])

    @property
    def weight(self) -> float:
        return float(self.totals[1])

    @property
    def norm(self) -> float:
        return float(self.totals[2])

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(self.totals + other.totals).tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sums) and self.totals.tolist() == other.totals.tolist()

    def __repr__(self) -> str:
        return f"Sums({self.loss}, {self.weight}, {self.norm})"

    def mean(self) -> float:
        """Loss per unit of weight; 0 where the weight is 0."""
        loss, weight, _ = self.totals.tolist()
        return loss / weight if weight else 0.0


@dataclass
class PerSample:
    """What `accumulate` is asked for, or told, of each of the B rows of its feed; what is None costs nothing.

    The arrays are the caller's, of exactly these shapes and dtypes, index 0 being the first row of the feed. The last
    axis is contiguous, so a stretch of a longer array will do. Numbers are written over what was there; their bits do
    not depend on threads or, where those of the outputs do not, on the rows beside them.

    Row i's gradient is the outer product of the input and the delta of each dense stage, so its squared norm is the sum
    over these stages of ``delta_norms * (input_norms + 1)``, without the 1 where there is no bias (Goodfellow 2015,
    arXiv:1510.01799), and of `norm_norms`. It is that of the row's term of the gradient sum: of the loss times the
    row's weight. With norms over rows a row has no gradient of its own.

    Attributes
    ----------
    loss : (B,) ndarray of float64, optional
        Loss of each row times its weight; their sum is `Sums.loss`.
    weight : (B,) ndarray of float64, optional
        Each row's share of the total weight, row weight times class weight; their sum is `Sums.weight`.
    input_norms : (L, B) ndarray of float64, optional
        Squared Euclidean norm of what each of the L dense stages read, behind the dropout before it: what the weights'
        gradient multiplies. Stages in the order of the model.
    delta_norms : (L, B) ndarray of float64, optional
        Squared Euclidean norm of each dense stage's dz, the gradient of `loss` with respect to its pre-activation: with
        the row's weight, before `scale`.
    norm_norms : (B,) ndarray of float64, optional
        Squared Euclidean norm of what each row adds to the gradients of gamma and beta of all norms over units.
    scale : (B,) ndarray of the plan's dtype, optional
        Row i enters dw, db, dgamma and dbeta times ``scale[i]``. Nothing else sees it: sums, losses, norms and the
        deltas passed down are those without.
    """

    loss: Array | None = None
    weight: Array | None = None
    input_norms: Array | None = None
    delta_norms: Array | None = None
    norm_norms: Array | None = None
    scale: Array | None = None


class Lock(Protocol):
    """A reentrant lock, such as threading.RLock. Its methods are functions in C: Ctrl-C is not heard in them."""

    def acquire(self, blocking: bool) -> bool:
        """Take it, or say False; never waits where `blocking` is False."""

    def __exit__(self, kind: Any, value: Any, traceback: Any, /) -> None:
        """Give it back."""


class Program(Protocol):
    """One network with its loss and optimizer, ready to run. Gradients are sums: nothing has divided them.

    Attributes
    ----------
    lock : Lock
        Held by the caller of everything below but predict; the fast path takes it itself.
    threads_used : int
        Threads that the last run ran on.
    tile_rows : int
        Where the order of sums does not depend on the split of a batch into pieces: at multiples of this many rows.
    running : ndarray or None
        Statistics of the training forwards since the last update, which the next one makes those of the state.
    """

    running: Array | None

    @property
    def lock(self) -> Lock: ...

    @property
    def threads_used(self) -> int: ...

    @property
    def tile_rows(self) -> int: ...

    def scale_inputs(self, scale: Array | None, shift: Array | None) -> None:
        """The network reads ``x * scale + shift`` from now on, (I,) arrays of the plan's dtype; None twice: x.

        Everything below does, the fast path included. No forward may be waiting for its backward.
        """

    def retune(self, plan: Plan) -> None:
        """Update as `plan` says from now on: another optimizer with the same slots is all that may differ.

        No forward may be waiting for its backward.
        """

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        """Make the updates `first` to `last` (exclusive) of one pass over `feed`, at the learning rates `lrs`.

        `lrs` (last - first,) float64 has one rate for each of them. Stops early, between two updates, once `budget`
        seconds have passed, and returns the index of the next step. Adds to `sums`: an update is counted in `State`,
        in `sums` and in the outputs of `feed`, or in none of them, also when Ctrl-C ends the call. Raises
        DivergenceError before the failing update changes anything.
        """

    def admit(self, rows: int) -> None:
        """Refuse to train on `rows` rows at a time where what the plan asks for does not pay: a BackendError says why.

        Asked before a single step, and before a fit; `run` does not ask, for what is left of an epoch may be few rows.
        """

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows at a time, so that no later call of as many has to."""

    def accumulate(
        self,
        feed: Feed,
        first_row: int,
        gradient: Array | None,
        sums: Sums | None = None,
        rows: PerSample | None = None,
    ) -> Sums:
        """Add the gradient sums of all rows of `feed`, one piece of a logical batch, to `gradient` (N,).

        Without a `gradient` the weights' gradients, a third of the work, are not computed: for what `rows` asks alone.
        Returns `sums`, those of the pieces before, with this one added.
        """

    def forward(self, x: Array, first_row: int, training: bool) -> Array:
        """Outputs (B, O); with `training`, dropout is on and what backward needs is kept, `x` itself among it."""

    def backward(self, dz: Array, gradient: Array) -> None:
        """Add the gradient of ``sum(dz * outputs)`` of the last training forward to `gradient` (N,)."""

    def update(self, gradient: Array, scale: float, lr: float) -> None:
        """One optimizer update from ``scale * gradient``, clipped as the plan says.

        Raises DivergenceError when that is not finite.
        """

    def predict(self, x: Array, out: Array) -> None:
        """Outputs with dropout off, into `out` (n, O). Safe from many threads at once."""

    # The fast path, for steps of a microsecond: the caller's own arguments, looked at and used by the program itself.
    # It takes the common case only, and says None to everything else with nothing changed: what it cannot use as it
    # lies, what it has no memory for yet, whatever may be an error. The careful path then does the work or raises, so
    # that each rule and each message exists once. The bits are the same. A composed program always says None.

    def fast_step(self, x: object, y: object, lr: float) -> float | None:
        """One step on the rows `x`, `y` and its loss, or None."""

    def fast_predict(self, x: object) -> Array | None:
        """Outputs (n, O) with dropout off, or None. Safe from many threads at once."""


class Steps(Protocol):
    """The inner part of a program: training steps, where a backend fuses these and leaves the rest composed.

    The bits of `run` are those of `accumulate` and `update`. Feeds have at least one row, no noise and inputs that
    `takes` has accepted.
    """

    @property
    def threads_used(self) -> int: ...

    @property
    def tile_rows(self) -> int:
        """As that of :class:`Program`."""

    def takes(self, x: Array) -> bool:
        """Whether these rows can be read as they lie; else they are converted beforehand."""

    def run(self, feed: Feed, first: int, last: int, lrs: Array, budget: float, sums: Sums) -> int:
        """As :meth:`Program.run`."""

    def accumulate(
        self, feed: Feed, first_row: int, gradient: Array | None, sums: Sums, rows: PerSample | None
    ) -> Sums:
        """As :meth:`Program.accumulate`."""

    def forward(self, x: Array, first_row: int, running: Array) -> Array:
        """As :meth:`Program.forward` in training, of at least one row; moves `running`, a copy of the buffers."""

    def backward(self, x: Array, first_row: int, dz: Array, gradient: Array) -> None:
        """As :meth:`Program.backward`, behind a forward of the same `x` and `first_row`."""

    def update(self, gradient: Array, scale: float, lr: float, running: Array | None) -> None:
        """As :meth:`Program.update`; with it the buffers become `running`, where given."""

    def predict(self, x: Array, out: Array) -> bool:
        """As :meth:`Program.predict`; False where that is left to composition."""


class Device(Protocol):
    """A backend with memory of its own, in which arguments may lie."""

    def seen(self, value: Any, where: str) -> Any:
        """The same numbers with ``__cuda_array_interface__``, not copied; DTypeError where that cannot be."""

    def fetched(self, value: Any, where: str) -> Array:
        """A copy in the memory of the CPU."""


class Backend(Protocol):
    """The four kernels. Outputs belong to the caller; inputs are trusted, `checks` has seen them."""

    name: str

    def supports(self, plan: Plan) -> str | None:
        """None, or the reason why this backend cannot run `plan`."""

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, activation: ops.Activation, a: Array, z: Array | None
    ) -> None:
        """``a = activation(x @ w + b)``, shapes (B, I), (I, O), (O,), (B, O); also writes z (B, O) when given."""

    def dense_backward(
        self,
        da: Array,
        x: Array,
        w: Array,
        saved: Array | None,
        activation: ops.Activation,
        dw: Array,
        db: Array | None,
        dx: Array | None,
    ) -> None:
        """``dz = da * slope(saved)``; dw (I, O) and db (O,) are added to, dx (B, I) is written when given."""

    def loss(self, a: Array, y: Array, loss: ops.Loss, weight: Array | None, da: Array) -> Sums:
        """Weighted sums of the loss; `da` (B, O) is the gradient of the loss sum."""

    def update(self, optimizer: ops.Optimizer, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        """Update p (N,) and slots (S, N) in place from the gradient g (N,); t counts updates from 1."""

    def permutation(self, n: int, seed: int, epoch: int) -> Array:
        """Shuffle of 0 .. n-1 (n,) int64, as :func:`fastbatch.ops.random.permutation` defines it."""

    def program(self, plan: Plan, state: State, num_threads: int | None) -> Program | None:
        """A fused program, or None: `fastbatch.program` then composes one from the four kernels."""

    def steps(self, plan: Plan, state: State, num_threads: int | None) -> Steps | None:
        """Fused steps for the composed program, or None: it then makes them of kernels, too."""
