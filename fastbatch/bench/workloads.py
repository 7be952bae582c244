"""The work that fastbatch and its peers are timed on. One place, so that all do the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import unknown_name

__all__ = ["BY_NAME", "QUICK", "WORKLOADS", "Workload", "select"]


@dataclass(frozen=True)
class Workload:
    """One network, one optimizer, one batch size and one epoch of made-up data.

    Attributes
    ----------
    dims : tuple of int
        Widths from inputs to outputs.
    act : str
        Activation of the hidden layers.
    loss : {"mse", "ce"}
        "ce" is cross entropy with integer labels.
    opt : {"sgd", "adam"}
    batch, steps : int
        Rows per step, steps per epoch.
    """

    name: str
    dims: tuple[int, ...]
    act: str
    loss: str
    opt: str
    batch: int
    steps: int
    lr: float = 1e-3

    @property
    def n(self) -> int:
        return self.batch * self.steps

    @property
    def flops_per_step(self) -> int:
        """Forward, weight gradient, and input gradient but for the first layer; a multiply-add counts two."""
        return sum(2 * self.batch * i * o * (3 if k else 2) for k, (i, o) in enumerate(zip(self.dims, self.dims[1:])))

    @property
    def heavy(self) -> bool:
        """Whether an epoch takes tens of seconds on two cores."""
        return self.flops_per_step > 10**10

    def data(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, I) float32; labels (n,) int64 for "ce", else targets (n, O) float32."""
        r = np.random.default_rng(seed)
        X = r.standard_normal((self.n, self.dims[0])).astype(np.float32)
        W = r.standard_normal((self.dims[0], self.dims[-1])).astype(np.float32)
        return X, (X @ W).argmax(1).astype(np.int64) if self.loss == "ce" else np.tanh(X @ W).astype(np.float32)

    def init(self, seed: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """Initial weights, one (w (I, O), b (O,)) per layer."""
        r = np.random.default_rng(seed)
        return [
            ((r.standard_normal((i, o)) * np.sqrt(2 / i)).astype(np.float32), np.zeros(o, np.float32))
            for i, o in zip(self.dims, self.dims[1:])
        ]


WORKLOADS = [
    Workload("linreg-1x1-b32-sgd", (1, 1), "relu", "mse", "sgd", 32, 2000, 1e-2),
    Workload("tiny-4-32-16-1-b16-adam", (4, 32, 16, 1), "relu", "mse", "adam", 16, 2000),
    Workload("rl-8-64-64-4-b64-adam", (8, 64, 64, 4), "tanh", "mse", "adam", 64, 2000),
    Workload("torch144633-10-45-45-10-b128-adam", (10, 45, 45, 10), "relu", "mse", "adam", 128, 1000),
    Workload("torch144633-10-46-46-10-b128-adam", (10, 46, 46, 10), "relu", "mse", "adam", 128, 1000),
    Workload("tab-32-256-128-1-b256-adam", (32, 256, 128, 1), "relu", "mse", "adam", 256, 300),
    Workload("mnist-784-128-10-b32-adam", (784, 128, 10), "relu", "ce", "adam", 32, 1000),
    Workload("mnist-784-128-10-b128-adam", (784, 128, 10), "relu", "ce", "adam", 128, 300),
    Workload("mnist-784-512-256-10-b128-adam", (784, 512, 256, 10), "relu", "ce", "adam", 128, 150),
    Workload("mnist-784-512-256-10-b1024-sgd", (784, 512, 256, 10), "relu", "ce", "sgd", 1024, 30, 1e-2),
    Workload("wide-1024-2048-2048-1000-b512-adam", (1024, 2048, 2048, 1000), "relu", "ce", "adam", 512, 6),
    Workload("online-16-32-1-b1-sgd", (16, 32, 1), "tanh", "mse", "sgd", 1, 5000, 1e-2),
]
BY_NAME = {w.name: w for w in WORKLOADS}

# One of each kind: bound by calls, small, by the passes over memory, by the matrix products
QUICK = (
    "tiny-4-32-16-1-b16-adam",
    "torch144633-10-46-46-10-b128-adam",
    "mnist-784-128-10-b32-adam",
    "mnist-784-512-256-10-b128-adam",
)


def select(names: Sequence[str] = (), quick: bool = False, heavy: bool = False) -> list[Workload]:
    """The workloads whose name holds one of `names`, or without names all but the heavy ones.

    Parameters
    ----------
    names : sequence of str
    quick : bool
        A quarter of the steps per epoch; without names, four workloads.
    heavy : bool
        The heavy ones too.

    Raises
    ------
    ArgumentError
        For a name that no workload holds.
    """
    for name in names:
        if not any(name in workload.name for workload in WORKLOADS):
            raise unknown_name("workload", name, BY_NAME)
    if names:
        chosen = [w for w in WORKLOADS if any(name in w.name for name in names)]
    elif quick:
        chosen = [BY_NAME[name] for name in QUICK]
    else:
        chosen = [w for w in WORKLOADS if heavy or not w.heavy]
    return [replace(w, steps=max(5, w.steps // 4)) for w in chosen] if quick else chosen
