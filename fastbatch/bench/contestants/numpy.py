"""NumPy: a hand-written training step, buffers made once, `out=` everywhere, one optimizer pass over all parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from ... import ops
from ...errors import BackendError
from ..workloads import Workload
from .contestant import BETA1, BETA2, EPS, Contestant

__all__ = ["NumPy"]


class NumPy(Contestant):
    key, name, library = "numpy", "NumPy", "numpy"
    color = "#b8b8b8"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        if workload.act == "gelu":
            raise BackendError("activation 'gelu' needs erf, which NumPy does not have")
        self.X, self.y, self.workload = X, y, workload
        self.activation = ops.get_activation(workload.act)
        self.rng = np.random.default_rng(0)
        init = workload.init()
        self.p = np.concatenate([part.ravel() for pair in init for part in pair])
        self.g = np.empty_like(self.p)
        self.weights: list[tuple[np.ndarray, np.ndarray]] = []
        self.gradients: list[tuple[np.ndarray, np.ndarray]] = []
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
        self.z = self.slope if self.activation.saves == "z" else self.a
        self.rows = np.arange(rows)

    @classmethod
    def settings(cls) -> tuple[int | None, ...]:
        try:
            import threadpoolctl  # noqa: F401
        except ImportError:  # its BLAS cannot be told from here
            return (None,)
        return super().settings()

    @classmethod
    def limited(cls, threads: int | None) -> AbstractContextManager:
        if threads is None:
            return nullcontext()
        from threadpoolctl import threadpool_limits

        return threadpool_limits(threads, user_api="blas")

    def _step(self, x: np.ndarray, y: np.ndarray) -> float:
        last = len(self.a) - 1
        a = x
        for k, ((w, b), out) in enumerate(zip(self.weights, self.a)):
            z = self.z[k] if k < last else out
            np.matmul(a, w, out=z)
            z += b
            if k < last:
                self._activate(z, out)
            a = out
        loss = self._loss(a, y, self.d[last])
        for k in range(last, -1, -1):
            dw, db = self.gradients[k]
            np.matmul((self.a[k - 1] if k else x).T, self.d[k], out=dw)
            np.sum(self.d[k], axis=0, out=db)
            if k:
                np.matmul(self.d[k], self.weights[k][0].T, out=self.d[k - 1])
                self._slope(k - 1)
        self._update()
        return loss

    def _activate(self, z: np.ndarray, out: np.ndarray) -> None:
        if self.activation.name == "relu":
            np.maximum(z, 0, out=out)
        elif self.activation.name == "tanh":
            np.tanh(z, out=out)
        elif self.activation.name != "identity":
            out[...] = self.activation.value(z)

    def _slope(self, k: int) -> None:
        """Multiplies the gradient of layer `k` by the slope of its activation."""
        d, hidden, slope = self.d[k], self.a[k], self.slope[k]
        if self.activation.name == "relu":
            d *= np.greater(hidden, 0, out=slope)
        elif self.activation.name == "tanh":
            np.multiply(hidden, hidden, out=slope)
            np.subtract(1, slope, out=slope)
            d *= slope
        elif self.activation.name != "identity":
            d *= self.activation.slope(self.z[k])

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
        batch, total = self.workload.batch, 0.0
        self.order = self.rng.permutation(len(self.X))
        for start in range(0, len(self.order), batch):
            rows = self.order[start : start + batch]
            # mode="clip": with "raise", take would write to a buffer first
            np.take(self.X, rows, axis=0, out=self.x, mode="clip")
            np.take(self.y, rows, axis=0, out=self.target, mode="clip")
            total += self._step(self.x, self.target)
        return total * batch / len(self.order)

    def last_order(self) -> np.ndarray:
        return self.order
