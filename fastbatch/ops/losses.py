"""Losses: immutable descriptions, and in NumPy the value and slope of each sample.

``rows(a, y)`` gives per-sample numbers that nothing has divided yet: the loss of each row, its gradient with respect to
the row's outputs, and the row's share of the total weight. A batch with row weights r then has the loss
``sum(r * loss) / sum(r * share)`` and the gradient ``r * da / sum(r * share)``. Definitions and keywords are torch's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import numpy as np

from ..errors import ArgumentError, named_fields
from .activations import ACTIVATIONS

__all__ = ["BCE", "LOSSES", "MAE", "MSE", "CrossEntropy", "Huber", "Loss"]

Array = np.ndarray


@dataclass(frozen=True)
class Loss:
    """Base of every loss.

    Attributes
    ----------
    name : str
        The row of ``csrc/ops/losses.def``.
    targets : {"values", "classes", "binary"}
        What `y` holds: float values, class labels (or one distribution per row), numbers in [0, 1].
    kinks : tuple of float
        Values of ``a - y`` where the slope jumps.
    """

    name: ClassVar[str]
    targets: ClassVar[str] = "values"
    kinks: ClassVar[tuple[float, ...]] = ()

    @property
    def parameter(self) -> float:
        """The one scalar that the loss is given, 0 where it has none."""
        return 0.0

    @property
    def per_output(self) -> tuple[float, ...] | None:
        """One weight per output, or None."""
        return None

    def rows(self, a: Array, y: Array) -> tuple[Array, Array, Array]:
        """Value, slope and share of total weight of each sample.

        Parameters
        ----------
        a : (B, O) ndarray
            Outputs of the network.
        y : (B, O) ndarray of a's dtype, or (B,) ndarray of int64 (labels, cross_entropy only)

        Returns
        -------
        loss (B,), da (B, O), share (B,)
        """
        value, slope = self.elements(a, y)
        return value.mean(axis=1), slope / a.dtype.type(a.shape[1]), np.ones(len(a), a.dtype)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        """Value and slope element by element, for the losses that are a mean over elements."""
        raise NotImplementedError

    def probabilities(self, a: Array) -> Array:
        """What the outputs say as probabilities; ArgumentError for a loss that has none."""
        raise ArgumentError(
            f"predict_proba: expected a model trained with cross_entropy or bce, this one was trained with {self.name}"
        )


def _weights(name: str, values) -> tuple[float, ...] | None:
    if values is None:
        return None
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all() or (array < 0).any():
        raise ArgumentError(f"{name}: expected finite numbers >= 0, one per output, got {values!r}")
    return tuple(array.tolist())


@named_fields
@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared error, ``mean (a - y)^2`` over all elements."""

    name: ClassVar[str] = "mse"

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        e = a - y
        return e * e, 2 * e


@named_fields
@dataclass(frozen=True)
class MAE(Loss):
    """Mean absolute error, ``mean |a - y|``; slope 0 at 0."""

    name: ClassVar[str] = "mae"
    kinks: ClassVar[tuple[float, ...]] = (0.0,)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        e = a - y
        return np.abs(e), np.sign(e)


@named_fields
@dataclass(frozen=True)
class Huber(Loss):
    """Huber loss: ``e^2 / 2`` for ``|e| <= delta``, ``delta (|e| - delta / 2)`` beyond.

    Parameters
    ----------
    delta : float, default 1.0

    Raises
    ------
    ArgumentError
        For delta <= 0 or not finite.
    """

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.delta, Real) and math.isfinite(self.delta) and self.delta > 0):
            raise ArgumentError(f"Huber(delta=): expected a finite number > 0, got {self.delta!r}")

    @property
    def parameter(self) -> float:
        return float(self.delta)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        e = a - y
        size = np.abs(e)
        value = np.where(size <= self.delta, 0.5 * e * e, self.delta * (size - 0.5 * self.delta))
        return value.astype(a.dtype, copy=False), np.clip(e, -self.delta, self.delta)


@named_fields
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy of a softmax over logits, torch.nn.CrossEntropyLoss.

    Parameters
    ----------
    weight : sequence of float, optional
        One weight per class. With integer labels the mean divides by the sum of the weights of the labels.
    label_smoothing : float, default 0.0
        Share of the target spread evenly over all K classes.

    Raises
    ------
    ArgumentError
        For a negative or non-finite weight, or label_smoothing outside [0, 1].
    """

    name: ClassVar[str] = "cross_entropy"
    targets: ClassVar[str] = "classes"
    weight: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _weights("CrossEntropy(weight=)", self.weight))
        if not (isinstance(self.label_smoothing, Real) and 0 <= self.label_smoothing <= 1):
            raise ArgumentError(
                f"CrossEntropy(label_smoothing=): expected a number in [0, 1], got {self.label_smoothing!r}"
            )

    @property
    def parameter(self) -> float:
        return float(self.label_smoothing)

    @property
    def per_output(self) -> tuple[float, ...] | None:
        return self.weight

    def rows(self, a: Array, y: Array) -> tuple[Array, Array, Array]:
        k = a.shape[1]
        classes = np.broadcast_to(np.array(1 if self.weight is None else self.weight, a.dtype), k)
        if y.ndim == 1:
            target, share = np.zeros_like(a), classes[y]
            target[np.arange(len(y)), y] = 1
        else:
            target, share = y, np.ones(len(a), a.dtype)
        target = classes * ((1 - self.label_smoothing) * target + self.label_smoothing / k)
        shifted = a - a.max(axis=1, keepdims=True)
        exponential = np.exp(shifted)
        total = exponential.sum(axis=1, keepdims=True)
        # a class with no target adds nothing, even at a logit of -inf (masked actions)
        loss = np.where(target != 0, target * (np.log(total) - shifted), 0).sum(axis=1)
        return loss, exponential / total * target.sum(axis=1, keepdims=True) - target, share

    def probabilities(self, a: Array) -> Array:
        exponential = np.exp(a - a.max(axis=1, keepdims=True)) if a.size else a
        return exponential / exponential.sum(axis=1, keepdims=True)


@named_fields
@dataclass(frozen=True)
class BCE(Loss):
    """Binary cross entropy of a sigmoid over logits, mean over elements, torch.nn.BCEWithLogitsLoss.

    Parameters
    ----------
    pos_weight : float or sequence of float, optional
        Weight of the positive class, one number or one per output.

    Raises
    ------
    ArgumentError
        For a negative or non-finite weight.
    """

    name: ClassVar[str] = "bce"
    targets: ClassVar[str] = "binary"
    pos_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos_weight", _weights("BCE(pos_weight=)", self.pos_weight))

    @property
    def per_output(self) -> tuple[float, ...] | None:
        return self.pos_weight

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        positive = np.array(self.pos_weight if self.pos_weight is not None else 1, a.dtype)
        scale = 1 + (positive - 1) * y
        tail = np.log1p(np.exp(-np.abs(a))) + np.maximum(-a, 0)
        return (1 - y) * a + scale * tail, scale * ACTIVATIONS["sigmoid"].value(a) - positive * y

    def probabilities(self, a: Array) -> Array:
        return ACTIVATIONS["sigmoid"].value(a)


LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (MSE, MAE, Huber, CrossEntropy, BCE)}
