"""Layers: immutable descriptions of what a network is made of. They hold no numbers."""

from __future__ import annotations

from dataclasses import dataclass

from . import checks, ops
from .errors import named_fields

__all__ = ["LAYERS", "Activation", "Dense", "Dropout", "Layer"]


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
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", checks.fraction("Dropout(rate=)", self.rate))


LAYERS: dict[str, type[Layer]] = {cls.__name__: cls for cls in (Dense, Activation, Dropout)}
