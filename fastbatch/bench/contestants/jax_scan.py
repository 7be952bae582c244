"""JAX, a whole epoch in one jitted `lax.scan` with donated state; NumPy draws the permutation."""

from __future__ import annotations

from ..workloads import Workload
from .jax import JaxStep, make_update

__all__ = ["JaxScan"]


class JaxScan(JaxStep):
    key, name = "jax-scan", "JAX scan"
    color = "#5b4a8a"

    def _compiled(self, workload: Workload):
        import jax

        update = make_update(workload)

        def epoch(state, total, X, y, order):
            def step(carry, rows):
                state, total = carry
                state, loss = update(state, X[rows], y[rows])
                return (state, total + loss), None

            return jax.lax.scan(step, (state, total), order)[0]

        return epoch

    def epoch(self) -> float:
        self.state, total = self.run(self.state, self.zero + 0, self.X, self.y, self._shuffle())
        return float(total) / self.steps
