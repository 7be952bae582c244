"""What a trainer consists of: what follows from its arguments, what may be set and what is then made anew, copies."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .. import checks, memory, ops
from ..errors import ArgumentError, named_keywords
from ..layers import Dense
from ..model import Sequential
from ..plan import check_derivatives, make_plan
from ..program import make_program
from ..protocol import State
from ..schedules import LARGEST, Schedule
from .door import Exclusive
from .fit import Fit
from .steps import Steps

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Attributes"]

Array = np.ndarray

# Attributes that say what a trainer was made for: programs, state and files follow from them
FIXED = frozenset({
    "model", "loss", "optimizer", "metrics", "num_threads", "precision", "semantics", "max_grad_norm", "clip_value",
    "gradient_accumulation_steps", "seed",
})  # fmt: skip


class Attributes(Steps):
    """Base of :class:`fastbatch.Trainer`, which makes the rest of these."""

    backend: str
    num_threads: int | None
    precision: str
    semantics: str
    max_grad_norm: float | None
    clip_value: float | None
    seed: int
    _slots: Array
    _fit: Fit | None  # the running fit, or the last one
    _input_scale: tuple[Array, Array] | None

    def _connect(self, backend: str) -> None:
        state = State(self.model.parameters, self._slots, self._steps, self.seed, self.model.buffers)
        self._plan = make_plan(
            self.model, self.loss, self.optimizer, self.precision, self.max_grad_norm, self.clip_value
        )
        check_derivatives(self._plan)
        self.backend, self._program = make_program(self._plan, state, backend, self.num_threads)
        self._busy = Exclusive(self._program.lock)
        self._forward_shape = None
        self._fit = None
        self._program.scale_inputs(*self._input_scale or (None, None))

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        for name in ("_plan", "_program", "_busy", "_forward_shape", "_fit"):
            del state[name]
        return {**state, "_running": self._running}

    def __setstate__(self, state: dict) -> None:
        running = state["_running"]
        self.__dict__.update({name: value for name, value in state.items() if name != "_running"})
        # steps write to these, and joblib hands over arrays that are mapped read-only
        self._slots = memory.zeros(state["_slots"].shape, self.model.dtype)
        self._slots[...] = state["_slots"]
        self._steps = state["_steps"].copy()
        if self._gradient is not None:
            self._gradient = self._gradient.copy()
        self._connect(state["backend"])
        self._running = None if running is None else running.copy()

    def __setattr__(self, name: str, value: object) -> None:
        if name in FIXED and name in self.__dict__ and not (name == "optimizer" and self._differs_in_lr(value)):
            hint = " (trainer.retune takes other settings of the same rule)" if name == "optimizer" else ""
            own, got = ("a model" if isinstance(v, Sequential) else repr(v) for v in (getattr(self, name), value))
            raise ArgumentError(
                f"trainer.{name}: expected what the trainer was made with, {own}, got {got}; "
                f"make a new Trainer of the model{hint}"
            )
        super().__setattr__(name, value)

    def _differs_in_lr(self, value: object) -> bool:
        """Whether `value` is this optimizer but for its rate, which is read at every step."""
        own = self.optimizer
        return isinstance(value, type(own)) and replace(value, lr=own.lr) == own

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a shallow copy would share the model and the counters under a lock of its own

    def __repr__(self) -> str:
        return f"Trainer({self.loss}, {self.optimizer}, backend={self.backend!r}, steps={self.steps})"

    @property
    def tile_rows(self) -> int:
        """Splits into micro-batches at multiples of this many rows change no bit."""
        return self._program.tile_rows

    @property
    def threads_used(self) -> int:
        """Threads that the last fit or step ran on."""
        return self._program.threads_used

    @property
    def lr_factor(self) -> float:
        return self._lr_factor

    @lr_factor.setter
    def lr_factor(self, value: float) -> None:
        factor, lr = checks.number("trainer.lr_factor", value), self.optimizer.lr
        if not isinstance(lr, Schedule) and lr * factor > LARGEST:
            raise ArgumentError(f"trainer.lr_factor: expected a rate that float32 can hold, got {value!r} times {lr!r}")
        self._lr_factor = factor

    @property
    def input_scale(self) -> tuple[Array, Array] | None:
        return None if self._input_scale is None else (self._input_scale[0].copy(), self._input_scale[1].copy())

    @input_scale.setter
    def input_scale(self, value) -> None:
        with self._busy:
            self._scale(None if value is None else checks.as_scale(value, self.model.input_size, self.model.dtype))

    def _scale(self, value: tuple[Array, Array] | None) -> None:
        self._input_scale = value
        self._forward_shape = None
        self._program.scale_inputs(*value or (None, None))

    @named_keywords
    def fold_input_scale(self) -> None:
        """Move ``input_scale`` into the first layer's weights and bias: the model then takes x as it is.

        Outputs change by rounding only. The optimizer's state stays that of the weights before, so fold when training
        is over: before ``model.save``, ``model.predict`` or an export.

        Raises
        ------
        ArgumentError
            When the first layer is not Dense, or has no bias to take the shift. Nothing has been changed then.
        """
        with self._busy:
            if self._input_scale is None:
                return
            scale, shift = (part.astype(np.float64) for part in self._input_scale)
            first = self.model.layers[0]
            if not isinstance(first, Dense):
                raise ArgumentError(f"fold_input_scale: expected Dense as the first layer, got {first}")
            if not first.bias and shift.any():
                raise ArgumentError("fold_input_scale: expected a first layer with a bias to take the shift, got none")
            w, b = self.model.weights[0]
            if b is not None:
                b += (shift @ w).astype(b.dtype)
            w *= scale[:, None].astype(w.dtype)
            self._scale(None)

    @property
    def slots(self) -> Array:
        return self._slots

    @named_keywords
    def retune(self, optimizer: ops.Optimizer) -> None:
        """Go on with other settings of the optimizer, in the middle of training: its state and `steps` stay.

        Parameters
        ----------
        optimizer : Optimizer
            Of the same update rule: ``dataclasses.replace(trainer.optimizer, weight_decay=0.1)``. Every number may
            differ, `lr`, `groups` and `frozen`, too.

        Raises
        ------
        ArgumentError
            When its state would be another, or it names a layer that the model lacks. Nothing has been changed then.
        """
        with self._busy:
            if not isinstance(optimizer, ops.Optimizer):
                raise ArgumentError(f"retune: expected an Optimizer, got {type(optimizer).__name__}")
            if self.semantics != "torch":
                optimizer = replace(optimizer, semantics=self.semantics)
            if (optimizer.rule, optimizer.slots) != (self.optimizer.rule, self.optimizer.slots):
                raise ArgumentError(
                    f"retune: expected an optimizer with the state of {self.optimizer}, got {optimizer}; a new Trainer "
                    "begins with another"
                )
            plan = make_plan(self.model, self.loss, optimizer, self.precision, self.max_grad_norm, self.clip_value)
            self._program.retune(plan)
            self._plan, self._forward_shape = plan, None
            super().__setattr__("optimizer", optimizer)
