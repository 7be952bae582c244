"""Plan: the stages of one program, and what updates which parameters. Pure functions of the description."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

from . import ops
from .errors import ArgumentError
from .layers import Activation, BatchNorm, Dense, Dropout, LayerNorm
from .model import Sequential

__all__ = [
    "BF16_NARROW",
    "BF16_WIDTH",
    "Norm",
    "Plan",
    "Segment",
    "Stage",
    "check_derivatives",
    "check_micro_batch",
    "make_plan",
]

# Parameters up to which activations are more to exchange between threads than gradients are: 32 KiB of float32, in L1.
# Of float64 both are twice as much.
SMALL_GRADIENT = 8192

# Layers with a side below this have float32 products in precision bf16, too (csrc/kernels/dense_bf16.inc).
BF16_WIDTH = 16
BF16_NARROW = (
    f"precision bf16 does not pay: no layer has {BF16_WIDTH} inputs and {BF16_WIDTH} outputs, and narrower ones are "
    "multiplied in float32; use precision='float32'"
)


@dataclass(frozen=True)
class Norm:
    """The norm of a stage, over a row's units or over the rows of a batch.

    Attributes
    ----------
    gamma, beta : int
        Offsets into the parameter buffer, in elements.
    eps : float
    mean, var : int or None
        Offsets of the running statistics into the buffers, in elements; None for a norm over units.
    momentum : float
    ghost_size : int or None
        Rows that share their statistics; None for all of a batch.
    """

    gamma: int
    beta: int
    eps: float
    mean: int | None = None
    var: int | None = None
    momentum: float = 0.0
    ghost_size: int | None = None

    @property
    def over_rows(self) -> bool:
        return self.mean is not None


@dataclass(frozen=True)
class Stage:
    """``[dense] [norm] [activation] [dropout]``: the canonical part of a network. Each of the four may be absent.

    Attributes
    ----------
    inputs, outputs : int
        Widths; equal where there is no dense part.
    w, b : int or None
        Offsets into the parameter buffer, in elements.
    norm : Norm or None
    activation : ops.Activation
    threshold : int
        Dropout keeps a unit when its random byte is below this; 256 keeps all.
    layer : int
        Index of the Dropout in the model; keys its random numbers.
    needs_dx : bool
        Whether the gradient with respect to the stage's input is used by an earlier dense part or norm.
    """

    inputs: int
    outputs: int
    w: int | None
    b: int | None
    activation: ops.Activation
    threshold: int
    layer: int
    needs_dx: bool
    norm: Norm | None = None

    @property
    def has_dense(self) -> bool:
        return self.w is not None

    @property
    def in_bf16(self) -> bool:
        """Whether precision bf16 has its products in bfloat16."""
        return self.has_dense and min(self.inputs, self.outputs) >= BF16_WIDTH

    @property
    def is_trained(self) -> bool:
        """Whether it has parameters."""
        return self.has_dense or self.norm is not None

    @property
    def places(self) -> tuple[int | None, ...]:
        """Where its parameters begin."""
        return self.w, self.b, *(() if self.norm is None else (self.norm.gamma, self.norm.beta))

    @property
    def has_dropout(self) -> bool:
        return self.threshold < 256


@dataclass(frozen=True)
class Segment:
    """Parameters [begin, end) that one description updates, at `lr_factor` times the rate."""

    begin: int
    end: int
    optimizer: ops.Optimizer
    lr_factor: float


T = TypeVar("T")


class remembered(Generic[T]):
    """functools.cached_property without the lock of Python 3.11, which a process that forks may hand down taken."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, one: None, owner: type) -> remembered[T]: ...
    @overload
    def __get__(self, one: object, owner: type) -> T: ...
    def __get__(self, one: object | None, owner: type) -> T | remembered[T]:
        if one is None:
            return self
        value = one.__dict__[self.name] = self.compute(one)
        return value


@dataclass(frozen=True)
class Plan:
    """What one program computes: stages, loss and optimizer rule. Backends read nothing else about the model.

    `precision` "bf16" rounds the operands of products to bfloat16; everything else is of `dtype`. The mean gradient is
    scaled down to the norm `max_norm`, then each of its elements is held to +-`clip_value`; None leaves either out.
    """

    stages: tuple[Stage, ...]
    dtype: str
    loss: ops.Loss
    optimizer: ops.Optimizer
    num_parameters: int
    precision: str = "float32"
    max_norm: float | None = None
    clip_value: float | None = None

    @property
    def inputs(self) -> int:
        return self.stages[0].inputs

    @property
    def outputs(self) -> int:
        return self.stages[-1].outputs

    @property
    def slots(self) -> int:
        return self.optimizer.slots

    @remembered
    def tensors(self) -> tuple[tuple[str, int, int, int], ...]:
        """Of every tensor of parameters, in order: its name in files of models, its dense layer, begin and end."""
        found, dense, norms = [], 0, 0
        for stage in self.stages:
            if stage.w is not None:
                found.append((f"{dense}.w", dense, stage.w, stage.w + stage.inputs * stage.outputs))
                if stage.b is not None:
                    found.append((f"{dense}.b", dense, stage.b, stage.b + stage.outputs))
                dense += 1
            if stage.norm is not None:
                layer = max(dense - 1, 0)  # a norm goes with the dense layer before it, or the first
                for name, start in (("gamma", stage.norm.gamma), ("beta", stage.norm.beta)):
                    found.append((f"norm{norms}.{name}", layer, start, start + stage.outputs))
                norms += 1
        return tuple(found)

    @remembered
    def settings(self) -> dict[str, tuple[ops.Optimizer, float] | None]:
        """Of each tensor by name the description of its update and its factor of the rate; None where frozen."""
        return self.optimizer.settings({name: layer for name, layer, *_ in self.tensors})

    @remembered
    def segments(self) -> tuple[Segment, ...]:
        """What updates which parameters, in order; frozen ones are in none. One per tensor where norms are taken."""
        found: list[Segment] = []
        for name, _, begin, end in self.tensors:
            setting = self.settings[name]
            if setting is None:
                continue
            row, factor = setting
            part = Segment(begin, end, row if name.endswith(".w") else row.of_bias(), factor)
            last = found[-1] if found else None
            if last and not row.normed and last.end == begin and replace(last, begin=begin, end=end) == part:
                part = replace(part, begin=found.pop().begin)
            found.append(part)
        return tuple(found)

    @remembered
    def column_limits(self) -> tuple[float | None, ...]:
        """Of each stage the norm that an update holds the columns of w to; None without one, and where w is frozen."""
        weights = iter([name for name, *_ in self.tensors if name.endswith(".w")])
        found = [self.settings[next(weights)] if stage.has_dense else None for stage in self.stages]
        return tuple(None if setting is None else setting[0].max_norm for setting in found)

    @property
    def is_uniform(self) -> bool:
        """Whether all parameters are updated alike, whatever the batch and their values."""
        segments = self.segments
        whole = len(segments) == 1 and segments[0].end - segments[0].begin == self.num_parameters
        return whole and not segments[0].optimizer.normed and not segments[0].optimizer.by_weight

    @property
    def sums_objective(self) -> bool:
        """Whether a run's `Sums` are scikit-learn's: of a step its rows times the mean loss with penalties by weight.

        Else they are the loss times the weight, and the weight.
        """
        return self.loss.semantics == "sklearn"

    @property
    def ghost_rows(self) -> int | None:
        """Rows at whose multiples a batch may be split, as far as norms over rows care; None: nowhere."""
        sizes = [stage.norm.ghost_size for stage in self.stages if stage.norm is not None and stage.norm.over_rows]
        return None if None in sizes else math.lcm(*(size for size in sizes if size is not None))

    @property
    def is_small(self) -> bool:
        """Whether the gradient is held whole, summed from parts of the batch (csrc/gradient.c)."""
        return self.num_parameters <= SMALL_GRADIENT

    @property
    def flops_per_row(self) -> int:
        """Multiply-adds of one training row counted as two: forward, weight gradient, input gradient where needed."""
        return sum(2 * s.inputs * s.outputs * (3 if s.needs_dx else 2) for s in self.stages if s.has_dense)


# Where in a stage a layer's part stands; Dense opens one.
_PLACES = {LayerNorm: 1, BatchNorm: 1, Activation: 2, Dropout: 3}


def make_plan(
    model: Sequential,
    loss: ops.Loss,
    optimizer: ops.Optimizer,
    precision: str = "float32",
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> Plan:
    """Lower the layers of `model` to stages."""
    identity = ops.get_activation("identity")
    stages: list[Stage] = []
    width, offset, in_buffers, trained = model.input_size, 0, 0, False
    place = 3  # of the open stage's last part
    for index, layer in enumerate(model.layers):
        if isinstance(layer, Dense):
            b = offset + width * layer.units
            activation = ops.recall_activation(layer.activation)
            stages.append(
                Stage(width, layer.units, offset, b if layer.bias else None, activation, 256, 0, needs_dx=trained)
            )
            width, offset, trained = layer.units, b + layer.units * layer.bias, True
            place = 0 if activation is identity else 2
            continue
        if place >= _PLACES[type(layer)]:
            stages.append(Stage(width, width, None, None, identity, 256, 0, needs_dx=trained))
        place = _PLACES[type(layer)]
        if isinstance(layer, (LayerNorm, BatchNorm)):
            norm = Norm(offset, offset + width, layer.eps)
            if isinstance(layer, BatchNorm):
                mean, in_buffers = in_buffers, in_buffers + 2 * width
                norm = replace(norm, mean=mean, var=mean + width, momentum=layer.momentum, ghost_size=layer.ghost_size)
            stages[-1] = replace(stages[-1], norm=norm)
            offset, trained = offset + 2 * width, True
        elif isinstance(layer, Activation):
            stages[-1] = replace(stages[-1], activation=ops.recall_activation(layer.name))
        elif isinstance(layer, Dropout):
            stages[-1] = replace(stages[-1], threshold=ops.random.dropout_threshold(layer.rate), layer=index)
    plan = Plan(tuple(stages), model.dtype, loss, optimizer, offset, precision, max_norm, clip_value)
    _ = plan.segments  # complains about layers and tensors that are not there
    return plan


def check_derivatives(plan: Plan) -> None:
    """ArgumentError where something of a user's own has no derivative: it can predict only."""
    for kind, formula in [*(("activation", s.activation.formula) for s in plan.stages), ("loss", plan.loss.formula)]:
        if formula is not None and formula.slope is None:
            raise ArgumentError(
                f"Trainer: expected a derivative of {kind} {formula.name!r} to train with, got none; "
                f"register it with @fb.{kind}(derivative=...)"
            )


def check_micro_batch(plan: Plan, size: int, rows: int, where: str = "micro_batch_size") -> None:
    """ArgumentError where pieces of `size` rows would cut a ghost batch of a batch of `rows` rows."""
    ghost = plan.ghost_rows
    if size >= rows or (ghost is not None and size % ghost == 0):
        return
    whole = f"all {rows} rows of the logical batch" if ghost is None else f"a multiple of {ghost}"
    other = f". BatchNorm(ghost_size={size}) takes them over {size} rows" if size > 1 else ""
    raise ArgumentError(
        f"{where}: expected {whole}, over which BatchNorm(ghost_size={ghost}) takes its statistics; got {size}{other}"
    )
