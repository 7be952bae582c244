"""JAX, one jitted call per step: the data live on the device, the batch is gathered inside, the state is donated.

XLA's CPU threads are made once per process and cannot be set later, so JAX runs with its own choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..workloads import Workload
from .contestant import BETA1, BETA2, EPS, Contestant

__all__ = ["JaxStep", "make_update"]


def make_update(workload: Workload):
    """``update(state, x, y) -> (state, loss)`` to be jitted; state is (parameters, m, v, t)."""
    import jax
    import jax.numpy as jnp

    activation = {
        "identity": lambda z: z,
        "tanh": jnp.tanh,
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
        "gelu_tanh": jax.nn.gelu,
    }.get(workload.act) or getattr(jax.nn, workload.act)
    lr = workload.lr

    def loss(parameters, x, y):
        for w, b in parameters[:-1]:
            x = activation(x @ w + b)
        w, b = parameters[-1]
        a = x @ w + b
        if workload.loss == "mse":
            return jnp.mean((a - y) ** 2)
        chosen = jnp.take_along_axis(a, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(a, axis=1) - chosen)

    def update(state, x, y):
        parameters, m, v, t = state
        value, g = jax.value_and_grad(loss)(parameters, x, y)
        t = t + 1
        if workload.opt == "sgd":
            return (jax.tree.map(lambda p, g: p - lr * g, parameters, g), m, v, t), value
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
        rate, scale = lr / (1 - BETA1**t), 1 / jnp.sqrt(1 - BETA2**t)
        parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * scale + EPS), parameters, m, v)
        return (parameters, m, v, t), value

    return update


class JaxStep(Contestant):
    key, name, library = "jax", "JAX step", "jax"
    color = "#8c7ab8"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        import jax
        import jax.numpy as jnp

        # copies: what is donated must not be NumPy's memory
        self.X, self.y = jnp.array(X), jnp.array(y)
        self.steps, self.batch = workload.steps, workload.batch
        self.rng = np.random.default_rng(0)
        parameters = [(jnp.array(w), jnp.array(b)) for w, b in workload.init()]
        m, v = (jax.tree.map(jnp.zeros_like, parameters) if workload.opt == "adam" else None for _ in range(2))
        self.state = parameters, m, v, jnp.float32(0)
        self.zero = jnp.float32(0)
        self.run: Any = jax.jit(self._compiled(workload), donate_argnums=(0, 1))

    def _compiled(self, workload: Workload):
        update = make_update(workload)

        def step(state, total, X, y, rows):
            state, loss = update(state, X[rows], y[rows])
            return state, total + loss

        return step

    @classmethod
    def settings(cls) -> tuple[int | None, ...]:
        return (None,)

    def _shuffle(self) -> np.ndarray:
        self.order = self.rng.permutation(len(self.X)).astype(np.int32)
        return self.order.reshape(self.steps, self.batch)

    def epoch(self) -> float:
        total = self.zero + 0
        for rows in self._shuffle():
            self.state, total = self.run(self.state, total, self.X, self.y, rows)
        return float(total) / self.steps

    def last_order(self) -> np.ndarray:
        return self.order
