"""What a trained model computes, as a list of few kinds of stages: what exporters write down.

Dropout is not in it, BatchNorm is a scale by column, and what a trainer does to its inputs and the probabilities of its
loss are stages like others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import checks, ops
from .errors import ArgumentError, unknown_name
from .layers import Activation, BatchNorm, Dense, LayerNorm

if TYPE_CHECKING:
    from .model import Sequential

__all__ = ["OUTPUTS", "Activation", "Affine", "RowNorm", "Scale", "Softmax", "Stage", "stages_of"]

Array = np.ndarray

OUTPUTS = ("outputs", "probabilities")


@dataclass(frozen=True)
class Affine:
    """``x @ w + b``, w (I, O), b (O,) or None."""

    w: Array
    b: Array | None


@dataclass(frozen=True)
class Scale:
    """``(x - centre) * factor + offset`` by column; None where nothing is subtracted.

    Subtracted first, not folded into the offset: a column far from 0 would lose its digits to ``centre * factor``.
    """

    centre: Array | None
    factor: Array
    offset: Array


@dataclass(frozen=True)
class RowNorm:
    """A row's mean 0, its variance 1, then ``gamma * x + beta``."""

    gamma: Array
    beta: Array
    eps: float


@dataclass(frozen=True)
class Softmax:
    """Over a row."""


Stage = Affine | Scale | RowNorm | Softmax | Activation


def stages_of(model: Sequential, output: str, input_scale, dtype: str | None, where: str) -> tuple[list[Stage], str]:
    """Stages of `model` with arrays of one dtype, and that dtype; no stage is the identity.

    Parameters
    ----------
    model : Sequential
    output : {"outputs", "probabilities"}
        What ``predict`` or what ``predict_proba`` gives.
    input_scale : (scale, shift) or None
        As of a trainer: x is first multiplied and shifted.
    dtype : {"float32", "float64"}, optional
        The model's own if None.
    where : str
        Of whom error messages speak.

    Raises
    ------
    ArgumentError
        For an unknown output or dtype, and for probabilities of a model whose loss has none.
    DataError
        For a parameter that `dtype` cannot hold, or that is not finite.
    ShapeError, DTypeError
        For an input_scale of another shape or kind.
    """
    dtype = model.dtype if dtype is None else checks.as_dtype(dtype)
    if output not in OUTPUTS:
        raise unknown_name(f"{where}: output", output, OUTPUTS)
    stages: list[Stage] = []
    if input_scale is not None:
        stages.append(Scale(None, *checks.as_scale(input_scale, model.input_size, dtype)))
    stages += _of_layers(model, dtype, where)
    if output == "probabilities":
        stages.append(_probabilities(model, where))
    return [stage for stage in stages if stage != Activation("identity")], dtype


def _of_layers(model: Sequential, dtype: str, where: str) -> Iterator[Stage]:
    for k, layer in enumerate(model.layers):
        tensors = {}
        own = model._tensors.get(k, {})
        for name, values in own.items():
            with np.errstate(over="ignore"):  # becomes Inf, which the check reports
                tensors[name] = values.astype(dtype)
            checks.check_finite(tensors[name], f"{where}: {name} of layer {k} {type(layer).__name__}", values)
        if isinstance(layer, Dense):
            yield Affine(tensors["w"], tensors.get("b"))
            yield _built_in(layer.activation, where)
        elif isinstance(layer, Activation):
            yield _built_in(layer.name, where)
        elif isinstance(layer, LayerNorm):
            yield RowNorm(tensors["gamma"], tensors["beta"], layer.eps)
        elif isinstance(layer, BatchNorm):
            factor = own["gamma"] / np.sqrt(own["var"].astype(np.float64) + layer.eps)
            yield Scale(tensors["mean"], factor.astype(dtype), tensors["beta"])


def _built_in(name: str, where: str) -> Activation:
    ops.built_in_activation(name, where)
    return Activation(name)


def _probabilities(model: Sequential, where: str) -> Stage:
    kinds: dict[str, Stage] = {"classes": Softmax(), "binary": Activation("sigmoid")}
    kind = None if model.loss is None else kinds.get(model.loss.targets)
    if kind is None:
        loss = "no training" if model.loss is None else f"loss {model.loss.name}"
        raise ArgumentError(
            f"{where}(output='probabilities'): expected a model trained with cross_entropy, bce or focal, got {loss}"
        )
    return kind
