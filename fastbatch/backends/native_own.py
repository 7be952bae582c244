"""Operations of a user's own in C: rows behind those of csrc/ops, of functions that Numba compiles."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

from .. import ops
from ..errors import BackendError
from ..ops.formula import Formula
from ..plan import Plan

__all__ = ["Rows", "missing"]


def missing(plan: Plan) -> str | None:
    """Why what is a user's own in `plan` cannot run here, or None."""
    own = [("activation", stage.activation.formula) for stage in plan.stages]
    own += [("loss", plan.loss.formula), ("optimizer", plan.optimizer.formula)]
    for kind, formula in own:
        if formula is not None:
            try:
                importlib.import_module("numba")
            except ImportError as error:
                return (
                    f"{kind} {formula.name!r} is compiled by Numba, which is not available: {error} "
                    "(pip install 'fastbatch[numba]')"
                )
    return None


class Rows:
    """Numbers of what a plan names: of the registries in C, or of functions that are registered on first use.

    Parameters
    ----------
    register : callable
        ``register(first, second)`` gives the row of two addresses, or -1 where there is no room.
    activations, losses, optimizers : mapping of str
        The registries in C; those of optimizers by rule, in order.
    """

    def __init__(
        self,
        register: Callable[[int, int], int],
        activations: Mapping[str, int],
        losses: Mapping[str, int],
        optimizers: Mapping[str, int],
    ) -> None:
        self._register, self._own, self._lock = register, dict[tuple[str, Formula, str], int](), RLock()
        self._activations, self._losses, self._optimizers = activations, losses, optimizers

    def activation(self, row: ops.Activation, dtype: str) -> int:
        return self._activations[row.name] if row.formula is None else self._row("activation", row.formula, dtype)

    def activations(self, plan: Plan) -> dict[str, int]:
        """All, with those of the plan's own."""
        found = {stage.activation.name: self.activation(stage.activation, plan.dtype) for stage in plan.stages}
        return {**self._activations, **found}

    def loss(self, loss: ops.Loss, dtype: str) -> int:
        return self._losses[loss.name] if loss.formula is None else self._row("loss", loss.formula, dtype)

    def rule(self, optimizer: ops.Optimizer, dtype: str) -> int:
        formula = optimizer.formula
        return self._optimizers[optimizer.rule] if formula is None else self._row("optimizer", formula, dtype)

    def _row(self, kind: str, formula: Formula, dtype: str) -> int:
        key = kind, formula, dtype
        if key in self._own:  # without the lock, which a process that forks may hand down taken
            return self._own[key]
        with self._lock:  # two threads would register it twice
            if key not in self._own:
                # Numba takes half a second to import
                compiled: Any = importlib.import_module("fastbatch.backends.scalars.compiled")
                row = self._register(*getattr(compiled, kind)(formula, dtype))
                if row < 0:
                    raise BackendError(f"{kind} {formula.name!r}: too many operations were registered in this process")
                self._own[key] = row
            return self._own[key]
