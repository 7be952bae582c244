"""fastbatch: `Trainer.fit` on the c backend, and on the one that stands in for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..._version import __version__
from ...data.orders import epoch_order
from ...model import MLP
from ...ops.optimizers import SGD, Adam
from ...training import Trainer
from ..workloads import Workload
from .contestant import Contestant

__all__ = ["Fastbatch", "FastbatchNumba", "trainer_of"]


def trainer_of(workload: Workload, backend: str, precision: str = "float32") -> Trainer:
    """A trainer at the workload's initial weights."""
    model = MLP(workload.dims, activation=workload.act)
    model.set_weights(workload.init())
    loss = "cross_entropy" if workload.loss == "ce" else "mse"
    optimizer = SGD(lr=workload.lr) if workload.opt == "sgd" else Adam(lr=workload.lr)
    return Trainer(model, loss, optimizer, backend=backend, precision=precision)


class Fastbatch(Contestant):
    key = name = library = "fastbatch"
    color = "#0b6e99"
    backend: ClassVar[str] = "c"
    precision: ClassVar[str] = "float32"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        self.trainer = trainer_of(workload, self.backend, self.precision)
        self.X, self.y, self.batch = X, y, workload.batch

    @classmethod
    def version(cls) -> str | None:
        return __version__

    @classmethod
    def settings(cls) -> tuple[int | None, ...]:
        return (None,)

    def threads_used(self, setting: int | None) -> int | None:
        return self.trainer.threads_used

    def epoch(self) -> float:
        # check_finite reads all data once per fit, whatever the number of epochs; the others do not look
        history = self.trainer.fit(self.X, self.y, batch_size=self.batch, verbose=0, check_finite=False)
        return history["loss"][0]

    def last_order(self) -> np.ndarray:
        order = epoch_order(len(self.X), self.trainer.seed, self.trainer.epochs - 1, True, self.backend)
        assert order is not None
        return order


class FastbatchNumba(Fastbatch):
    key, name, library = "numba", "fastbatch on Numba", "numba"
    color = "#6fb1cf"
    backend = "numba"

    @classmethod
    def version(cls) -> str | None:
        return super(Fastbatch, cls).version()
