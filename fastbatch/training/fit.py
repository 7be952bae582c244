"""One fit: what was asked for, how far it has come, and the loop that takes it on from there."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks, ops
from ..augment import parts_of
from ..batching.noise import as_state, ratio
from ..batching.sizes import as_plain, from_plain, least_rows, most_rows, policy_of, rows_at
from ..data.orders import epoch_order
from ..errors import ArgumentError, CheckpointError, DTypeError
from ..plan import check_micro_batch
from ..protocol import Feed, Sums
from ..schedules import Schedule
from .callbacks import Callback, matching_states, states_of, steps_to_stop
from .door import Fingerprint, FitData, check_same, fingerprint
from .evaluation import evaluate
from .history import History
from .noise import noise_of

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["Fit", "Settings"]

Array = np.ndarray

# Seconds that one call into a program may take before Python looks at signals, bars and callbacks.
CHUNK = 0.05

# Updates in one call at most: 2 MB of learning rates, for about CHUNK seconds of the shortest steps.
CHUNK_STEPS = 1 << 18

# Attributes of a Fit that files hold as they are; one that an older file lacks keeps its first value.
PROGRESS = ("epoch", "order_epoch", "counted", "finished", "outputs", "updates", "seconds", "noise")

States = list[tuple[str, bool, dict[str, Any]]]


@dataclass
class Settings:
    """What a fit was asked for besides data and callbacks, checked: numbers, flags and class weights.

    Attributes
    ----------
    batch_size : int, dict or callable
        As :func:`fastbatch.batching.sizes.as_plain` notes it. More than there are rows is all of them.
    epochs, shuffle, drop_last, validation_split, class_weight, check_finite, micro_batch_size
        As in :meth:`fastbatch.Trainer.fit`.
    max_steps, max_time, augment, sampling
        As in :meth:`fastbatch.Trainer.fit`.
    """

    batch_size: Any
    epochs: int
    shuffle: Any
    drop_last: bool
    validation_split: float
    class_weight: dict[int, float] | str | None
    check_finite: bool
    micro_batch_size: int | None = None
    max_steps: int | None = None
    max_time: float | None = None
    augment: Any = ()
    sampling: Any = None

    def __post_init__(self) -> None:
        self.epochs = checks.count("epochs", self.epochs, "an integer >= 0", least=0)
        if not callable(self.shuffle) or isinstance(self.shuffle, type):
            self.shuffle = checks.flag("shuffle", self.shuffle)
        elif self.validation_split or self.sampling is not None:
            other = "validation_split" if self.validation_split else "sampling"
            raise ArgumentError(f"fit: expected shuffle=True or False with {other}, got a function")
        self.drop_last = checks.flag("drop_last", self.drop_last)
        self.validation_split = checks.fraction("validation_split", self.validation_split)
        self.check_finite = checks.flag("check_finite", self.check_finite)
        if self.micro_batch_size is not None:
            self.micro_batch_size = checks.count("micro_batch_size", self.micro_batch_size, "an integer >= 1 or None")
        if self.max_steps is not None:
            self.max_steps = checks.count("max_steps", self.max_steps, "an integer >= 1 or None")
        self.max_time = checks.limit("max_time", self.max_time)
        self.noise, self.mixup = parts_of(self.augment)
        self.augment = list(self.augment) if isinstance(self.augment, (list, tuple)) else [self.augment]

    @property
    def of_data(self) -> dict[str, Any]:
        """Those that say what is done to the data."""
        names = ("validation_split", "class_weight", "check_finite")
        return {name: getattr(self, name) for name in names}


class Fit:
    """Progress of one fit, and its loop. Data and callbacks come with :meth:`run` and are not kept.

    What is kept is plain: settings, rows of history, counters, two sums and at most one array. With the trainer's
    parameters, slots and counters it says where to go on, also in the middle of an epoch, and also after Ctrl-C: an
    update is counted in all of them or in none.

    Attributes
    ----------
    settings : Settings
    history : History
        One entry per epoch completed.
    epoch : int
        Epochs of this fit that are completed.
    order_epoch : int or None
        ``trainer.epochs`` when the running epoch began, of which its shuffle is a function; None between two epochs.
    step : int
        Updates made in the running epoch.
    sums : Sums
        Over these updates.
    outputs : (m, O) ndarray or None
        Outputs before these updates, where the trainer has metrics.
    noise : dict or None
        Of the running epoch, where a NoiseScale chooses its batches: what the trainer remembers when it is completed.
    counted : bool
        Whether ``trainer.epochs`` counts the running epoch already: all updates are made, validation is not.
    finished : bool
        Nothing is left to do: all epochs are made, or a limit or a callback has ended the fit for good.
    updates : int
        Made in this fit.
    seconds : float
        That it has taken, without the run in progress.
    hooks : list of Callback
        Empty unless the fit is running.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.history = History()
        self.updates = 0
        self.seconds = 0.0
        self.finished = False
        self.hooks: list[Callback] = []
        self._data: FitData | None = None
        self._begun = False  # all hooks are: their states are theirs, not those of the last run
        self._chunk_start: int | None = None
        # of an interrupted run: trainer.steps, what the data was, class, `steers` and state of callbacks
        self._left_at = 0
        self._fingerprint: Fingerprint = {}
        self._states: States | None = None  # None: it has never run
        self._source: tuple[float | Schedule, float] | None = None
        self._first, self._lrs = 0, np.empty(0)
        self.order_epoch: int | None
        self.outputs: Array | None
        self.noise: dict[str, Any] | None
        self._rest(0, Sums())

    def _rest(self, epoch: int, sums: Sums) -> None:
        """Progress in front of `epoch`, in one assignment: there is no call in it in which Ctrl-C is heard."""
        self.epoch, self.order_epoch, self.step, self.sums, self.outputs, self.counted, self.noise = (
            epoch,
            None,
            0,
            sums,
            None,
            False,
            None,
        )

    def run(self, trainer: Trainer, data: FitData, hooks: list[Callback]) -> History:
        """Go on to the end, or until a callback stops the trainer."""
        states = [] if self._states is None else matching_states(hooks, self._states)
        trainer.history, trainer.stop_training = self.history, False
        trainer.model.loss = trainer.loss
        self._start = time.perf_counter()
        try:
            self.hooks, self._data = hooks, data
            with ExitStack() as ends:
                for hook in hooks:
                    hook.trainer = trainer
                    ends.callback(hook.on_train_end)
                    hook.on_train_begin()
                for hook, state in zip(hooks, states):
                    if state is not None:
                        hook.set_state(state)
                self._begun = True
                self._reserve(trainer, data)
                while self.epoch < self.settings.epochs and not trainer.stop_training:
                    if self._over():
                        break
                    if not self._epoch(trainer, data):
                        break
            self.finished = self.epoch >= self.settings.epochs or self._over() or any(hook.ended for hook in hooks)
        finally:
            try:
                self._count(trainer)
                self._leave(trainer)
            finally:
                self.hooks, self._data, self._begun = [], None, False
                self.seconds = self._elapsed()
        return self.history

    def _leave(self, trainer: Trainer) -> None:
        """Note what going on will ask for."""
        if self.finished:
            self._states = None
            return
        progress = self.progress(trainer)
        self._left_at, self._fingerprint, self._states = (progress[name] for name in ("left_at", "data", "callbacks"))

    def progress(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint must hold for :meth:`from_progress`, besides settings and history; at any time."""
        running = self.running
        made = 0 if self._chunk_start is None else trainer.steps - self._chunk_start
        return {
            **{name: getattr(self, name) for name in PROGRESS},
            "step": self.step + made,
            "updates": self.updates + made,
            "seconds": self._elapsed() if running else self.seconds,
            "sums": self.sums.totals,
            "left_at": trainer.steps if running else self._left_at,
            "data": fingerprint(self._data, trainer.model.dtype) if self._data is not None else self._fingerprint,
            "callbacks": states_of(self.hooks) if self._begun else self._states,
        }

    @classmethod
    def from_progress(cls, settings: Settings, history: History, progress: dict[str, Any]) -> Fit:
        """The fit that :meth:`progress` described."""
        fit = cls(settings)
        fit.history = history
        settings.batch_size = as_plain(from_plain(settings.batch_size))
        for name in ("epoch", "updates", "step", "left_at"):
            checks.count(name, progress.get(name, 0), "an integer >= 0", least=0)
        if progress["order_epoch"] is not None:
            checks.count("order_epoch", progress["order_epoch"], "an integer >= 0", least=0)
        checks.number("seconds", progress["seconds"])
        if not isinstance(progress["outputs"], (np.ndarray, type(None))):
            raise DTypeError(f"outputs: expected an array or None, got {progress['outputs']!r}")
        for name in PROGRESS:
            setattr(fit, name, progress.get(name, getattr(fit, name)))
        fit.step = progress["step"]
        fit.noise = as_state(fit.noise)
        loss, weight, norm = progress["sums"]
        fit.sums = Sums(loss, weight, norm)
        fit._left_at, fit._fingerprint = progress["left_at"], progress["data"]
        states = progress["callbacks"]
        fit._states = None if states is None else [(kind, bool(steers), state) for kind, steers, state in states]
        return fit

    def check(self, trainer: Trainer, data: FitData) -> None:
        """Whether it can go on with this trainer and these data.

        Raises
        ------
        ArgumentError
            When the trainer has made other updates since, or the fit is running.
        DataError
            When the data are not those of the interrupted fit.
        """
        if self.running:
            raise ArgumentError("resume: expected a fit that has ended, got one that is running")
        if trainer.steps != self._left_at:
            raise ArgumentError(
                f"resume: expected the trainer as the fit left it, after {self._left_at} updates, got {trainer.steps}"
            )
        check_same(self._fingerprint, data, trainer.model.dtype)

    @property
    def running(self) -> bool:
        return self._data is not None

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._start

    def _limited(self) -> bool:
        """Whether max_steps or max_time is reached."""
        steps, seconds = self.settings.max_steps, self.settings.max_time
        return (steps is not None and self.updates >= steps) or (seconds is not None and self._elapsed() >= seconds)

    def _over(self) -> bool:
        """Whether a limit has ended the fit: it does so between two epochs."""
        return self.order_epoch is None and self.updates > 0 and self._limited()

    def _reserve(self, trainer: Trainer, data: FitData) -> None:
        """Memory for the largest batch that a schedule will ask for, so that its changes cost nothing."""
        settings = self.settings
        most = most_rows(settings.batch_size, trainer.epochs + settings.epochs - self.epoch - 1)
        if most is not None and self.epoch < settings.epochs:
            trainer._program.reserve(min(most, settings.micro_batch_size or most, data.total))

    def _epoch(self, trainer: Trainer, data: FitData) -> bool:
        """The running epoch from where it stands, or the next one; False when a callback stops it half way."""
        start = time.perf_counter()
        feed, size = self._feed(trainer, data)
        for hook in self.hooks:
            hook.on_epoch_begin(self.epoch, {"epochs": self.settings.epochs, "steps": feed.steps, "batch_size": size})
        if not self._updates(trainer, feed):
            return False
        assert self.order_epoch is not None
        trainer.epochs = self.order_epoch + 1  # again where Ctrl-C has kept the rest from happening, as the others here
        if self.noise is not None:
            trainer._noise = self.noise
        self.counted = True
        logs = self._results(trainer, feed, data)
        logs["batch_size"] = size
        logs["time"] = time.perf_counter() - start
        for values in self.history.values():
            del values[self.epoch :]
        self.history.append(logs)
        self._rest(self.epoch + 1, Sums())
        if self.hooks:
            _tell(self.hooks, "on_epoch_end", self.epoch - 1, logs)
        return True

    def _feed(self, trainer: Trainer, data: FitData) -> tuple[Feed, int]:
        """The pass of the running epoch, and the rows of its batches, of which a step may take several."""
        if self.order_epoch is None:
            self.order_epoch = trainer.epochs
        shuffle, backend = self.settings.shuffle, trainer.backend
        order: Array | None
        if callable(shuffle):
            order = checks.as_order(shuffle(self.order_epoch), data.total, f"shuffle({self.order_epoch})")
        else:
            order = epoch_order(data.rows, trainer.seed, self.order_epoch, shuffle, backend, data.cumulative)
        visited = data.total if order is None else len(order)
        policy = policy_of(self.settings.batch_size)
        if policy is None:
            size = min(rows_at(self.settings.batch_size, self.order_epoch), visited)
        else:
            if self.noise is None:
                self.noise = noise_of(trainer, data, self.settings, policy, order, self.order_epoch)
            size = min(self.noise["size"], visited)
        feed = data.feed(order, size, self.settings.drop_last)
        feed.piece = min(size, self.settings.micro_batch_size or size)
        feed.batch = size * trainer.gradient_accumulation_steps
        accumulated = "batch_size with gradient_accumulation_steps"
        where = accumulated if self.settings.micro_batch_size is None else "micro_batch_size"
        check_micro_batch(trainer._plan, feed.piece, min(feed.batch, feed.rows), where)
        if self.updates == 0:  # asked once: a fit that has begun goes on, whatever its sizes become
            last = self.order_epoch + self.settings.epochs - self.epoch - 1
            trainer._program.admit(min(least_rows(self.settings.batch_size, size, self.order_epoch, last), feed.most))
        if trainer.metrics and self.outputs is None:
            self.outputs = np.zeros((feed.rows, trainer.model.output_size), trainer.model.dtype)
        if self.outputs is not None:  # kernels write there, and it may be out of an edited file
            shape, dtype = (feed.rows, trainer.model.output_size), trainer.model.dtype
            if self.outputs.shape != shape or self.outputs.dtype != dtype:
                raise CheckpointError(
                    f"resume: expected outputs {dtype} {shape} of the running epoch, "
                    f"got {self.outputs.dtype} {self.outputs.shape}"
                )
        feed.outputs, feed.noise, feed.same = self.outputs, self.settings.noise, data
        if self.settings.mixup is not None:
            rows = np.minimum(feed.batch, feed.rows - feed.batch * np.arange(feed.steps))
            feed.mix = ops.random.mixing(self.settings.mixup, rows, trainer.seed, self.order_epoch)
        return feed, size

    def _updates(self, trainer: Trainer, feed: Feed) -> bool:
        """The epoch's updates from `step` on, in slices of time; False when a callback stops them half way.

        A limit ends the epoch, though not before its first update.
        """
        steps = feed.steps
        while self.step < steps and not (self.step and self._limited()):
            if trainer.stop_training:
                return False
            self._chunk(trainer, feed, min(steps, self.step + CHUNK_STEPS))
            if self.hooks:
                _tell(self.hooks, "on_chunk_end", self.step, {"loss": self.sums.mean()})
        return True

    def _chunk(self, trainer: Trainer, feed: Feed, last: int) -> None:
        before = trainer.steps
        stop = steps_to_stop(self.hooks, before)
        if stop is not None:
            last = min(last, self.step + stop)
        budget, settings = CHUNK, self.settings
        if settings.max_steps is not None:
            last = min(last, self.step + settings.max_steps - self.updates)
        if settings.max_time is not None:
            budget = max(0.0, min(budget, settings.max_time - self._elapsed()))
        lrs = self._rates(trainer, last - self.step)
        self._chunk_start = before
        try:
            trainer._program.run(feed, self.step, last, lrs, budget, self.sums)
        finally:  # Ctrl-C is heard before the call can say how many steps were made; memory says it
            self._count(trainer)

    def _count(self, trainer: Trainer) -> None:
        """Count the updates of the last chunk, once: again where Ctrl-C was heard on the way to here.

        It is heard in calls, not between the parts of an assignment.
        """
        if self._chunk_start is not None:
            made = trainer.steps - self._chunk_start
            self.step, self.updates, self._chunk_start = self.step + made, self.updates + made, None

    def _rates(self, trainer: Trainer, steps: int) -> Array:
        """The learning rate of each of the next `steps` updates; those made ahead are kept for the next call."""
        source, first = (trainer.optimizer.lr, trainer.lr_factor), trainer.steps
        start = first - self._first if isinstance(trainer.optimizer.lr, Schedule) else 0
        if self._source != source or not 0 <= start <= len(self._lrs) - steps:
            rates = trainer.lr_factor * trainer.optimizer.rates(first, steps)  # calls, in which Ctrl-C is heard
            self._source, self._first, self._lrs, start = source, first, rates, 0
        return self._lrs[start : start + steps]

    def _results(self, trainer: Trainer, feed: Feed, data: FitData) -> dict[str, Any]:
        """What history gets, but for the batch size and the time."""
        logs: dict[str, Any] = {"loss": self.sums.mean()}
        if feed.outputs is not None:
            made = min(self.step * feed.batch, feed.rows)
            index = slice(made) if feed.order is None else feed.order[:made]
            weight = None if feed.weight is None else feed.weight[index]
            logs.update(ops.measure(trainer.metrics, feed.outputs[:made], feed.y[index], weight, trainer.loss))
        if data.validation is not None:
            logs.update({f"val_{name}": value for name, value in evaluate(trainer, data.validation).items()})
        if trainer.max_grad_norm is not None:
            logs["grad_norm"] = self.sums.norm / self.step
        if self.noise is not None:
            logs["noise_scale"] = ratio(self.noise["trace"], self.noise["squared_norm"])
        logs["lr"] = trainer._rate(max(trainer.steps - 1, 0))
        return logs


def _tell(hooks: list[Callback], event: str, *arguments: Any) -> None:
    """Call `hooks`, also those behind one that raises: what they remember must be of the same update."""
    called = 0
    try:
        for hook in hooks:
            called += 1
            getattr(hook, event)(*arguments)
    finally:
        if called < len(hooks):
            _tell(hooks[called:], event, *arguments)
