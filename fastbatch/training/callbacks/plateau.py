"""Lower the learning rate when nothing improves any more."""

from __future__ import annotations

from typing import Any

from ... import checks
from ...errors import ArgumentError, named_keywords, unknown_name
from ..monitor import Monitor
from .base import Callback, Logs

__all__ = ["ReduceLROnPlateau"]

THRESHOLD_MODES = ("rel", "abs")


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by `factor` after more than `patience` epochs in a row without improvement.

    torch's ReduceLROnPlateau, stepped once an epoch. What changes is ``trainer.lr_factor`` (1.0 in a new trainer), by
    which every rate of the optimizer's lr is multiplied, number or schedule; it outlives the fit.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in history.
    factor : float, default 0.1
        In (0, 1).
    patience : int, default 10
        Epochs without improvement that are borne; the next one lowers the rate.
    threshold : float, default 1e-4
    threshold_mode : {"rel", "abs"}, default "rel"
        An epoch improves when it is better than the best one by more than `threshold`, in shares of the best value's
        size ("rel") or as it is ("abs"). torch takes the share of the value itself, and so lets a negative quantity
        get worse.
    cooldown : int, default 0
        Epochs behind a reduction that do not count.
    min_lr : float, default 0
        A reduction goes no lower than this; of a schedule, at the update where it takes place.
    eps : float, default 1e-8
        A reduction of the rate by no more than this is left out.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" knows it of the library's own losses and metrics by name.

    Attributes
    ----------
    best : float or None
        Best value of this fit.
    wait : int
        Epochs since, without those of a cooldown.
    cooling : int
        Epochs of the cooldown that are left.

    Raises
    ------
    ArgumentError
        For a bad value; out of ``fit``, behind the first epoch, when history has no such name.
    """

    @named_keywords
    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        *,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        mode: str = "auto",
    ) -> None:
        owner = "ReduceLROnPlateau"
        self.monitor = Monitor(owner, monitor, mode)
        self.factor = checks.number(f"{owner}(factor=)", factor)
        if not 0 < self.factor < 1:
            raise ArgumentError(f"{owner}(factor=): expected a number in (0, 1), got {factor!r}")
        if threshold_mode not in THRESHOLD_MODES:
            raise unknown_name(f"{owner}(threshold_mode=)", threshold_mode, THRESHOLD_MODES)
        self.threshold, self.threshold_mode = checks.number(f"{owner}(threshold=)", threshold), threshold_mode
        self.patience = checks.count(f"{owner}(patience=)", patience, "an integer >= 0", 0)
        self.cooldown = checks.count(f"{owner}(cooldown=)", cooldown, "an integer >= 0", 0)
        self.min_lr = checks.number(f"{owner}(min_lr=)", min_lr)
        self.eps = checks.number(f"{owner}(eps=)", eps)
        self.on_train_begin()

    def on_train_begin(self) -> None:
        self.best: float | None = None
        self.wait = self.cooling = 0

    def _improves(self, value: float) -> bool:
        size = abs(self.best) if self.threshold_mode == "rel" and self.best is not None else 1.0
        return self.monitor.improves(value, self.best, self.threshold * size)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self.monitor.read(logs)
        if self._improves(value):
            self.best, self.wait = value, 0
        else:
            self.wait += 1
        if self.cooling:
            self.cooling -= 1
            self.wait = 0
        if self.wait > self.patience:
            self._reduce()
            self.cooling, self.wait = self.cooldown, 0

    def _reduce(self) -> None:
        trainer = self.trainer
        rate = trainer.optimizer.rate(trainer.steps)
        old = trainer.lr_factor * rate
        new = max(old * self.factor, self.min_lr)
        if old - new > self.eps:
            trainer.lr_factor = new / rate

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self.wait, "cooling": self.cooling}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.wait, self.cooling = state["best"], state["wait"], state["cooling"]
