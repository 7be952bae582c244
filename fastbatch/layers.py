"""Layers: immutable descriptions of what a network is made of. They hold no numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import checks, ops
from .errors import ArgumentError, named_fields

__all__ = [
    "BUFFERED", "LAYERS", "NAMES", "Activation", "BatchNorm", "Dense", "Dropout", "Layer", "LayerNorm", "Tensor",
    "layout",
]  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Base of every layer."""


@named_fields
@dataclass(frozen=True)
class Dense(Layer):
    """Affine map and activation, ``a = activation(x @ w + b)`` with ``w (I, O)`` and ``b (O,)``.

    Parameters
    ----------
    units : int
        Number of outputs, O.
    activation : str, default "identity"
    bias : bool, default True
    init : str, default "auto"
        Initial weights; ``"auto"`` is He-uniform in front of the relu family and Glorot-uniform elsewhere.

    Raises
    ------
    ArgumentError
        For units < 1 or an unknown name.
    """

    units: int
    activation: str = "identity"
    bias: bool = True
    init: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", checks.count("Dense(units=)", self.units))
        if isinstance(self.activation, int):
            raise ArgumentError(
                f"Dense(activation=): expected a name, got {self.activation!r}; Dense(units) takes the number of "
                "outputs, that of inputs follows from the layer before it"
            )
        object.__setattr__(self, "activation", ops.get_activation(self.activation).name)
        object.__setattr__(self, "bias", checks.flag("Dense(bias=)", self.bias))
        ops.get_initializer(self.init)


@named_fields
@dataclass(frozen=True)
class Activation(Layer):
    """An activation on its own; right behind a Dense it is the same as ``Dense(activation=)``.

    Parameters
    ----------
    name : str

    Raises
    ------
    ArgumentError
        For an unknown name.
    """

    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", ops.get_activation(self.name).name)


@named_fields
@dataclass(frozen=True)
class Dropout(Layer):
    """Inverted dropout: in training each unit is zeroed with probability `rate` and the others are scaled up.

    The mask is a pure function of (trainer seed, update, layer, row in the logical batch, unit), see
    :func:`fastbatch.ops.random.dropout_mask`; nothing is stored.

    Parameters
    ----------
    rate : float
        In [0, 1). Rounded to a multiple of 1/256, the scale being exact for the rounded rate.

    Raises
    ------
    ArgumentError
        For a rate outside [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", checks.fraction("Dropout(rate=)", self.rate))


@named_fields
@dataclass(frozen=True)
class LayerNorm(Layer):
    """Each row to mean 0 and variance 1 over its units, then ``gamma * x + beta`` with gamma, beta (O,); as torch's.

    A row whose variance the dtype does not hold, of deviations from 1e19 on in float32 and from 1e154 on in float64,
    becomes beta.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance.

    Raises
    ------
    ArgumentError
        For eps <= 0.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", checks.positive("LayerNorm(eps=)", self.eps))


@named_fields
@dataclass(frozen=True)
class BatchNorm(Layer):
    """Each unit to mean 0 and variance 1 over the rows of a batch, then ``gamma * x + beta``; as torch's BatchNorm1d.

    In training the statistics are those of the logical batch, or of each ghost batch: `ghost_size` rows of it in a row,
    the last one taking what is left. Rows count alike, whatever their weights. Every update moves the running
    statistics once per ghost batch, with the variance divided by one row less; a ghost batch of a single row, which has
    no variance, leaves them alone. Everything without training uses the running statistics, ``model.buffers``.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance.
    momentum : float, default 0.1
        Share of the new in the running statistics, in (0, 1].
    ghost_size : int, optional
        At least 2.

    Raises
    ------
    ArgumentError
        For a value outside its range.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    ghost_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", checks.positive("BatchNorm(eps=)", self.eps))
        momentum = checks.positive("BatchNorm(momentum=)", self.momentum)
        if momentum > 1:
            raise ArgumentError(f"BatchNorm(momentum=): expected a number in (0, 1], got {self.momentum!r}")
        object.__setattr__(self, "momentum", momentum)
        if self.ghost_size is not None:
            size = checks.count("BatchNorm(ghost_size=)", self.ghost_size, "an integer >= 2 or None", least=2)
            object.__setattr__(self, "ghost_size", size)


LAYERS: dict[str, type[Layer]] = {cls.__name__: cls for cls in (Dense, Activation, Dropout, LayerNorm, BatchNorm)}

# What layers hold, in the order of get_weights, and which of it no gradient moves.
NAMES: dict[type, tuple[str, ...]] = {
    Dense: ("w", "b"),
    LayerNorm: ("gamma", "beta"),
    BatchNorm: ("gamma", "beta", "mean", "var"),
}
BUFFERED = ("mean", "var")


class Tensor(NamedTuple):
    """One tensor: the index of its layer, its name there, its shape, its name in files."""

    layer: int
    name: str
    shape: tuple[int, ...]
    key: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def buffered(self) -> bool:
        return self.name in BUFFERED


def layout(layers: Sequence[Layer], width: int) -> list[Tensor]:
    """All tensors, in the order of the layers."""
    parts, dense, norms = [], 0, 0
    for k, layer in enumerate(layers):
        if isinstance(layer, Dense):
            parts.append(Tensor(k, "w", (width, layer.units), f"{dense}.w"))
            width = layer.units
            if layer.bias:
                parts.append(Tensor(k, "b", (width,), f"{dense}.b"))
            dense += 1
        elif type(layer) in NAMES:
            parts += [Tensor(k, name, (width,), f"norm{norms}.{name}") for name in NAMES[type(layer)]]
            norms += 1
    return parts
