"""One fit: what was asked for, how far it has come, and the loop that takes it on from there."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks, ops
from ..augment import noise_of
from ..data.orders import epoch_order
from ..protocol import Feed, Sums
from ..schedules import Schedule
from .callbacks import Callback, steps_to_stop
from .door import FitData
from .evaluation import evaluate
from .history import History

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["Fit", "Settings"]

Array = np.ndarray

# Seconds that one call into a program may take before Python looks at signals, bars and callbacks.
CHUNK = 0.05

# Updates in one call at most: 2 MB of learning rates, for about CHUNK seconds of the shortest steps.
CHUNK_STEPS = 1 << 18


@dataclass
class Settings:
    """What a fit was asked for besides data and callbacks, checked: numbers, flags and class weights.

    Attributes
    ----------
    batch_size : int
        More than there are rows is all of them, and so is "full" here.
    epochs, shuffle, drop_last, validation_split, class_weight, check_finite, augment
        As in :meth:`fastbatch.Trainer.fit`.
    """

    batch_size: Any
    epochs: int
    shuffle: bool
    drop_last: bool
    validation_split: float
    class_weight: dict[int, float] | str | None
    check_finite: bool
    augment: Any = ()

    def __post_init__(self) -> None:
        self.batch_size = checks.as_batch_size(self.batch_size, sys.maxsize)
        self.epochs = checks.count("epochs", self.epochs, "an integer >= 0", least=0)
        self.shuffle = checks.flag("shuffle", self.shuffle)
        self.drop_last = checks.flag("drop_last", self.drop_last)
        self.validation_split = checks.fraction("validation_split", self.validation_split)
        self.check_finite = checks.flag("check_finite", self.check_finite)
        self.noise = noise_of(self.augment)

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
    counted : bool
        Whether ``trainer.epochs`` counts the running epoch already: all updates are made, validation is not.
    hooks : list of Callback
        Empty unless the fit is running.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.history = History()
        self.epoch = 0
        self.hooks: list[Callback] = []
        self._source: tuple[float | Schedule, float] | None = None
        self._first, self._lrs = 0, np.empty(0)
        self._rest()

    def _rest(self) -> None:
        """Progress between two epochs."""
        self.order_epoch: int | None = None
        self.step, self.sums = 0, Sums()
        self.outputs: Array | None = None
        self.counted = False

    def run(self, trainer: Trainer, data: FitData, hooks: list[Callback]) -> History:
        """Go on to the end, or until a callback stops the trainer."""
        trainer.history, trainer.stop_training = self.history, False
        trainer.model.loss = trainer.loss
        self.hooks = hooks
        try:
            with ExitStack() as ends:
                for hook in hooks:
                    hook.trainer = trainer
                    ends.callback(hook.on_train_end)
                    hook.on_train_begin()
                while self.epoch < self.settings.epochs and not trainer.stop_training:
                    if not self._epoch(trainer, data):
                        break
        finally:
            self.hooks = []
        return self.history

    def _epoch(self, trainer: Trainer, data: FitData) -> bool:
        """The running epoch from where it stands, or the next one; False when a callback stops it half way."""
        start = time.perf_counter()
        feed = self._feed(trainer, data)
        for hook in self.hooks:
            hook.on_epoch_begin(
                self.epoch, {"epochs": self.settings.epochs, "steps": feed.steps, "batch_size": feed.batch}
            )
        if not self._updates(trainer, feed):
            return False
        if not self.counted:
            trainer.epochs += 1
            self.counted = True
        logs = self._results(trainer, feed, data)
        logs["time"] = time.perf_counter() - start
        self.history.append(logs)
        self.epoch += 1
        self._rest()
        for hook in self.hooks:
            hook.on_epoch_end(self.epoch - 1, logs)
        return True

    def _feed(self, trainer: Trainer, data: FitData) -> Feed:
        """The pass of the running epoch."""
        if self.order_epoch is None:
            self.order_epoch = trainer.epochs
        shuffle, backend = self.settings.shuffle, trainer.backend
        order = epoch_order(data.rows, trainer.seed, self.order_epoch, shuffle, backend, data.cumulative)
        feed = data.feed(order, min(self.settings.batch_size, data.total), self.settings.drop_last)
        if trainer.metrics and self.outputs is None:
            self.outputs = np.empty((feed.rows, trainer.model.output_size), trainer.model.dtype)
        feed.outputs, feed.noise = self.outputs, self.settings.noise
        return feed

    def _updates(self, trainer: Trainer, feed: Feed) -> bool:
        """The epoch's updates from `step` on, in slices of time; False when a callback stops them half way."""
        steps = feed.steps
        while self.step < steps:
            if trainer.stop_training:
                return False
            self._chunk(trainer, feed, min(steps, self.step + CHUNK_STEPS))
            for hook in self.hooks:
                hook.on_chunk_end(self.step, {"loss": self.sums.mean()})
        return True

    def _chunk(self, trainer: Trainer, feed: Feed, last: int) -> None:
        before = trainer.steps
        stop = steps_to_stop(self.hooks, before)
        if stop is not None:
            last = min(last, self.step + stop)
        lrs = self._rates(trainer, last - self.step)
        try:
            trainer._program.run(feed, self.step, last, lrs, CHUNK, self.sums)
        finally:  # Ctrl-C is heard before the call can say how many steps were made; memory says it
            self.step += trainer.steps - before

    def _rates(self, trainer: Trainer, steps: int) -> Array:
        """The learning rate of each of the next `steps` updates; those made ahead are kept for the next call."""
        source, first = (trainer.optimizer.lr, trainer.lr_factor), trainer.steps
        start = first - self._first if isinstance(trainer.optimizer.lr, Schedule) else 0
        if self._source != source or not 0 <= start <= len(self._lrs) - steps:
            self._source, self._first, start = source, first, 0
            self._lrs = trainer.lr_factor * trainer.optimizer.rates(first, steps)
        return self._lrs[start : start + steps]

    def _results(self, trainer: Trainer, feed: Feed, data: FitData) -> dict[str, Any]:
        """What history gets, but for the time."""
        logs: dict[str, Any] = {"loss": self.sums.mean()}
        if feed.outputs is not None:
            index = slice(feed.rows) if feed.order is None else feed.order
            weight = None if feed.weight is None else feed.weight[index]
            logs.update(ops.measure(trainer.metrics, feed.outputs, feed.y[index], weight, trainer.loss))
        if data.validation is not None:
            logs.update({f"val_{name}": value for name, value in evaluate(trainer, data.validation).items()})
        logs.update(lr=trainer._rate(max(trainer.steps - 1, 0)), batch_size=feed.batch)
        return logs
