"""The contestants: fastbatch and what its users would otherwise run, each at its best, all doing the same work.

A contestant starts from ``workload.init()``; ``step(x, y)`` makes one update and returns the loss before it, and
``epoch()`` visits all rows once: shuffle, gather each batch, forward, loss, backward, update, and the mean loss.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import numpy as np
from workloads import Workload

import fastbatch as fb

__all__ = ["CONTESTANTS", "Contestant", "Fastbatch", "NumPy", "Torch", "verify"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Contestant:
    """What is timed. `threads` lists the settings that are tried; the fastest counts."""

    name: ClassVar[str]
    threads: ClassVar[tuple[int | None, ...]] = tuple(sorted({1, CPUS}))

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError

    @classmethod
    def version(cls) -> str | None:
        """Version of the library behind it, None when it is not installed."""
        raise NotImplementedError

    @staticmethod
    def limited(threads: int | None) -> AbstractContextManager:
        """Sets the number of threads for a block."""
        return nullcontext()

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        raise NotImplementedError

    def epoch(self) -> float:
        raise NotImplementedError


class Fastbatch(Contestant):
    name = "fastbatch"
    threads = (None,)  # it picks by itself

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        model = fb.MLP(workload.dims, activation=workload.act)
        model.set_weights(workload.init())
        loss = "cross_entropy" if workload.loss == "ce" else "mse"
        optimizer = fb.SGD(lr=workload.lr) if workload.opt == "sgd" else fb.Adam(lr=workload.lr)
        self.trainer = fb.Trainer(model, loss, optimizer, backend="c")
        self.X, self.y, self.batch = X, y, workload.batch

    @classmethod
    def version(cls) -> str | None:
        return fb.__version__

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        return self.trainer.step(x, y)

    def epoch(self) -> float:
        # check_finite reads all data once per fit, whatever the number of epochs; the others do not look
        history = self.trainer.fit(self.X, self.y, batch_size=self.batch, verbose=0, check_finite=False)
        return history["loss"][0]


class NumPy(Contestant):
    """A hand-written training step: buffers made once, `out=` everywhere, one optimizer pass over all parameters."""

    name = "NumPy"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y, self.workload = X, y, workload
        self.rng = np.random.default_rng(0)
        init = workload.init()
        self.p = np.concatenate([part.ravel() for pair in init for part in pair])
        self.g = np.empty_like(self.p)
        self.weights, self.gradients = ([], [])
        offset = 0
        for w, b in init:
            for flat, views in ((self.p, self.weights), (self.g, self.gradients)):
                stop = offset + w.size
                views.append((flat[offset:stop].reshape(w.shape), flat[stop : stop + b.size]))
            offset += w.size + b.size
        if workload.opt == "adam":
            self.m, self.v = np.zeros_like(self.p), np.zeros_like(self.p)
        self.s1, self.s2 = np.empty_like(self.p), np.empty_like(self.p)
        self.t = 0
        rows = workload.batch
        self.x = np.empty((rows, workload.dims[0]), np.float32)
        self.target = np.empty((rows, *y.shape[1:]), y.dtype)
        self.a = [np.empty((rows, width), np.float32) for width in workload.dims[1:]]
        self.d = [np.empty((rows, width), np.float32) for width in workload.dims[1:]]
        self.slope = [np.empty((rows, width), np.float32) for width in workload.dims[1:-1]]
        self.rows = np.arange(rows)

    @classmethod
    def version(cls) -> str | None:
        return np.__version__

    @staticmethod
    def limited(threads: int | None) -> AbstractContextManager:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            return nullcontext()
        return threadpool_limits(threads, user_api="blas")

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        last = len(self.a) - 1
        tanh = self.workload.act == "tanh"
        a = x
        for k, ((w, b), out) in enumerate(zip(self.weights, self.a)):
            np.matmul(a, w, out=out)
            out += b
            if k < last and tanh:
                np.tanh(out, out=out)
            elif k < last:
                np.maximum(out, 0, out=out)
            a = out
        loss = self._loss(a, y, self.d[last])
        for k in range(last, -1, -1):
            dw, db = self.gradients[k]
            np.matmul((self.a[k - 1] if k else x).T, self.d[k], out=dw)
            np.sum(self.d[k], axis=0, out=db)
            if k:
                d, hidden, slope = self.d[k - 1], self.a[k - 1], self.slope[k - 1]
                np.matmul(self.d[k], self.weights[k][0].T, out=d)
                if tanh:
                    np.multiply(hidden, hidden, out=slope)
                    np.subtract(1, slope, out=slope)
                    d *= slope
                else:
                    d *= np.greater(hidden, 0, out=slope)
        self._update()
        return loss

    def _loss(self, a: np.ndarray, y: np.ndarray, d: np.ndarray) -> float:
        """Mean loss; `d` gets its gradient."""
        if self.workload.loss == "mse":
            np.subtract(a, y, out=d)
            flat = d.ravel()
            loss = float(flat @ flat) / d.size
            d *= 2 / d.size
            return loss
        np.subtract(a, a.max(axis=1, keepdims=True), out=d)
        chosen = float(d[self.rows, y].sum())
        np.exp(d, out=d)
        total = d.sum(axis=1, keepdims=True)
        loss = (float(np.log(total).sum()) - chosen) / len(d)
        d /= total
        d[self.rows, y] -= 1
        d *= 1 / len(d)
        return loss

    def _update(self) -> None:
        p, g, s1, s2, lr = self.p, self.g, self.s1, self.s2, self.workload.lr
        self.t += 1
        if self.workload.opt == "sgd":
            np.multiply(g, lr, out=s1)
            p -= s1
            return
        m, v = self.m, self.v
        m *= BETA1
        np.multiply(g, 1 - BETA1, out=s1)
        m += s1
        v *= BETA2
        np.multiply(g, g, out=s1)
        s1 *= 1 - BETA2
        v += s1
        np.sqrt(v, out=s1)
        s1 *= 1 / (1 - BETA2**self.t) ** 0.5
        s1 += EPS
        np.divide(m, s1, out=s2)
        s2 *= lr / (1 - BETA1**self.t)
        p -= s2

    def epoch(self) -> float:
        order, batch, total = self.rng.permutation(len(self.X)), self.workload.batch, 0.0
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            # mode="clip": with "raise", take would write to a buffer first
            np.take(self.X, rows, axis=0, out=self.x, mode="clip")
            np.take(self.y, rows, axis=0, out=self.target, mode="clip")
            total += self.step(self.x, self.target)
        return total * batch / len(order)


class Torch(Contestant):
    """PyTorch, eager, with the fused optimizer."""

    name = "PyTorch eager"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        import torch
        from torch import nn

        self.torch, self.batch = torch, workload.batch
        self.X, self.y = torch.from_numpy(X), torch.from_numpy(y)
        modules: list[nn.Module] = []
        for i, o in zip(workload.dims, workload.dims[1:]):
            modules += [nn.Linear(i, o), nn.Tanh() if workload.act == "tanh" else nn.ReLU()]
        self.model = nn.Sequential(*modules[:-1])
        with torch.no_grad():
            for module, (w, b) in zip(modules[::2], workload.init()):
                module.weight.copy_(torch.from_numpy(w.T))
                module.bias.copy_(torch.from_numpy(b))
        self.criterion = nn.CrossEntropyLoss() if workload.loss == "ce" else nn.MSELoss()
        optimizer = torch.optim.SGD if workload.opt == "sgd" else torch.optim.Adam
        self.optimizer = optimizer(self.model.parameters(), lr=workload.lr, fused=True)

    @classmethod
    def version(cls) -> str | None:
        try:
            import torch
        except ImportError:
            return None
        return torch.__version__

    @staticmethod
    def limited(threads: int | None) -> AbstractContextManager:
        import torch

        torch.set_num_threads(threads or CPUS)
        return nullcontext()

    def _step(self, x, y):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.criterion(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(self._step(self.torch.from_numpy(x), self.torch.from_numpy(y)))

    def epoch(self) -> float:
        order, total = self.torch.randperm(len(self.X)), 0.0
        for rows in order.split(self.batch):
            total += self._step(self.X[rows], self.y[rows])
        return float(total) * self.batch / len(order)


CONTESTANTS: tuple[type[Contestant], ...] = (Fastbatch, NumPy, Torch)


def verify(workload: Workload, X: np.ndarray, y: np.ndarray, contestants: list[type[Contestant]]) -> None:
    """Five steps on the same batches must give the same losses within 1e-4, or nothing is worth timing."""
    b = workload.batch
    batches = [(X[k * b : (k + 1) * b], y[k * b : (k + 1) * b]) for k in range(5)]
    expected: list[float] = []
    for contestant in contestants:
        fresh = contestant(workload, X, y)
        losses = [fresh.step(*batch) for batch in batches]
        expected = expected or losses
        worst = max(abs(got - want) / max(1.0, abs(want)) for got, want in zip(losses, expected))
        if not worst < 1e-4:
            raise SystemExit(f"{workload.name}: {contestant.name} computes something else, losses {losses}, {expected}")
