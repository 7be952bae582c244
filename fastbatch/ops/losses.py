"""Losses: immutable descriptions, and in NumPy the value and slope of each sample; what a loss is, ``loss.py`` says.

Definitions and keywords are torch's where torch has the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ArgumentError, as_float, named_fields
from .activations import ACTIVATIONS
from .loss import Loss, between, weights

__all__ = [
    "BCE",
    "LOSSES",
    "MAE",
    "MSE",
    "CrossEntropy",
    "Focal",
    "Gamma",
    "Huber",
    "Loss",
    "Poisson",
    "Quantile",
    "Tweedie",
]

Array = np.ndarray


@named_fields
@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared error, ``mean (a - y)^2`` over all elements.

    Semantics sklearn: half of it, with the slope ``a - y`` whatever the number of outputs.
    """

    name: ClassVar[str] = "mse"

    def divisors(self, outputs: int) -> tuple[float, float]:
        return (2.0 * outputs, 2.0) if self.semantics == "sklearn" else super().divisors(outputs)

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
        super().__post_init__()
        if not 0 < as_float(self.delta) < math.inf:
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
class Quantile(Loss):
    """Quantile (pinball) loss: ``q (y - a)`` where the target is above, ``(1 - q) (a - y)`` where it is below.

    What minimises it is the q-quantile of y (Koenker and Bassett 1978); q = 0.5 is half of mae. Slope 0 at 0.

    Parameters
    ----------
    q : float, default 0.5

    Raises
    ------
    ArgumentError
        For q outside (0, 1).
    """

    name: ClassVar[str] = "quantile"
    kinks: ClassVar[tuple[float, ...]] = (0.0,)
    q: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        between("Quantile(q=)", self.q, 0, 1)

    @property
    def parameter(self) -> float:
        return float(self.q)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        e, q = a - y, a.dtype.type(self.q)
        rest = a.dtype.type(1 - self.q)
        return e * np.where(e < 0, -q, rest), np.where(e < 0, -q, np.where(e > 0, rest, e))


@named_fields
@dataclass(frozen=True)
class Poisson(Loss):
    """Poisson negative log-likelihood of counts, ``exp(a) - y a``, without terms of y alone.

    The outputs are the logarithm of the mean: torch.nn.PoissonNLLLoss with its defaults. Targets are >= 0. Semantics
    sklearn: summed over the outputs of a row.
    """

    name: ClassVar[str] = "poisson"
    targets: ClassVar[str] = "counts"
    log_link: ClassVar[bool] = True

    def divisors(self, outputs: int) -> tuple[float, float]:
        return (1.0, 1.0) if self.semantics == "sklearn" else super().divisors(outputs)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        mean = np.exp(a)
        return mean - y * a, mean - y


@named_fields
@dataclass(frozen=True)
class Tweedie(Loss):
    """Tweedie deviance for targets >= 0 with a mass at 0: half of it, without terms of y alone.

    ``y exp((1 - p) a) / (p - 1) + exp((2 - p) a) / (2 - p)`` with outputs that are the logarithm of the mean, from the
    unit deviance of Jorgensen, "Exponential dispersion models" (1987). scikit-learn's tweedie_deviance is twice that.

    Parameters
    ----------
    power : float, default 1.5
        p: the variance is proportional to mean^p. Poisson is the limit 1, Gamma the limit 2.

    Raises
    ------
    ArgumentError
        For power outside (1, 2).
    """

    name: ClassVar[str] = "tweedie"
    targets: ClassVar[str] = "counts"
    log_link: ClassVar[bool] = True
    power: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        between("Tweedie(power=)", self.power, 1, 2, " (Poisson() is 1, Gamma() is 2)")

    @property
    def parameter(self) -> float:
        return float(self.power)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        g, h = a.dtype.type(self.power - 1), a.dtype.type(2 - self.power)
        # 0 where y is, also where the exponential is infinite
        below = np.multiply(y, np.exp(-g * a), out=np.zeros_like(a), where=y > 0)
        above = np.exp(h * a)
        return below / g + above / h, above - below


@named_fields
@dataclass(frozen=True)
class Gamma(Loss):
    """Gamma negative log-likelihood with unit shape, ``y exp(-a) + a``: half of the deviance, without terms of y alone.

    The outputs are the logarithm of the mean. Targets are > 0. The limit of Tweedie for power 2.
    """

    name: ClassVar[str] = "gamma"
    targets: ClassVar[str] = "positive"
    log_link: ClassVar[bool] = True

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        ratio = y * np.exp(-a)
        return a + ratio, 1 - ratio


@named_fields
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy of a softmax over logits, torch.nn.CrossEntropyLoss.

    Targets are labels or distributions; with `ignore_index` labels only.

    Parameters
    ----------
    weight : sequence of float, optional
        One weight per class. With integer labels the mean divides by the sum of the weights of the labels.
    label_smoothing : float, default 0.0
        Share of the target spread evenly over all K classes.
    ignore_index : int, optional
        Rows with this label, which need not be a class, count as rows of weight 0: nothing in the gradient, nothing in
        the total that the mean divides by, nothing in metrics. torch's default of -100 has to be asked for.

    Raises
    ------
    ArgumentError
        For a negative or non-finite weight, label_smoothing outside [0, 1], or an ignore_index that is no integer.
    """

    name: ClassVar[str] = "cross_entropy"
    targets: ClassVar[str] = "classes"
    weight: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", weights("CrossEntropy(weight=)", self.weight))
        if not 0 <= as_float(self.label_smoothing) <= 1:
            raise ArgumentError(
                f"CrossEntropy(label_smoothing=): expected a number in [0, 1], got {self.label_smoothing!r}"
            )
        index = self.ignore_index
        if index is not None and (isinstance(index, bool) or not isinstance(index, (int, np.integer))):
            raise ArgumentError(f"CrossEntropy(ignore_index=): expected an integer or None, got {index!r}")
        object.__setattr__(self, "ignore_index", None if index is None else int(index))

    @property
    def parameter(self) -> float:
        return float(self.label_smoothing)

    @property
    def per_output(self) -> tuple[float, ...] | None:
        return self.weight

    @property
    def ignored(self) -> int | None:
        return self.ignore_index

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

    Semantics sklearn: summed over the outputs of a row.

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
        super().__post_init__()
        object.__setattr__(self, "pos_weight", weights("BCE(pos_weight=)", self.pos_weight))

    @property
    def per_output(self) -> tuple[float, ...] | None:
        return self.pos_weight

    def divisors(self, outputs: int) -> tuple[float, float]:
        return (1.0, 1.0) if self.semantics == "sklearn" else super().divisors(outputs)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        positive = np.array(self.pos_weight if self.pos_weight is not None else 1, a.dtype)
        scale = 1 + (positive - 1) * y
        tail = np.log1p(np.exp(-np.abs(a))) + np.maximum(-a, 0)
        return (1 - y) * a + scale * tail, scale * ACTIVATIONS["sigmoid"].value(a) - positive * y

    def probabilities(self, a: Array) -> Array:
        return ACTIVATIONS["sigmoid"].value(a)


@named_fields
@dataclass(frozen=True)
class Focal(Loss):
    """Focal loss on logits: binary cross entropy in which what is right already counts little, mean over elements.

    ``-(1 - p)^gamma ln p`` for a positive, ``-p^gamma ln(1 - p)`` for a negative, p = sigmoid(a); a target between 0
    and 1 takes its share of either. Lin et al., "Focal loss for dense object detection" (2017), arXiv:1708.02002.

    Parameters
    ----------
    gamma : float, default 2.0
        0 is bce.
    alpha : float, optional
        Weight of positives; that of negatives is 1 - alpha. By default both are 1.

    Raises
    ------
    ArgumentError
        For gamma < 0 or not finite, or alpha outside (0, 1).
    """

    name: ClassVar[str] = "focal"
    targets: ClassVar[str] = "binary"
    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= as_float(self.gamma) < math.inf:
            raise ArgumentError(f"Focal(gamma=): expected a finite number >= 0, got {self.gamma!r}")
        if self.alpha is not None:
            between("Focal(alpha=)", self.alpha, 0, 1)

    @property
    def parameter(self) -> float:
        return float(self.gamma)

    @property
    def per_output(self) -> tuple[float, ...] | None:
        return None if self.alpha is None else (float(self.alpha),)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        real = a.dtype.type
        positive, negative = (real(1),) * 2 if self.alpha is None else (real(self.alpha), real(1 - self.alpha))
        gamma, tail = real(self.gamma), np.log1p(np.exp(-np.abs(a)))
        u, v = np.maximum(a, 0) + tail, np.maximum(-a, 0) + tail  # -ln(1 - p) and -ln p
        p, q = ACTIVATIONS["sigmoid"].value(a), ACTIVATIONS["sigmoid"].value(-a)
        one, zero = positive * y * np.exp(-gamma * u), negative * (1 - y) * np.exp(-gamma * v)
        return one * v + zero * u, zero * (gamma * q * u + p) - one * (gamma * p * v + q)

    def probabilities(self, a: Array) -> Array:
        return ACTIVATIONS["sigmoid"].value(a)


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls for cls in (MSE, MAE, Huber, Quantile, Poisson, Tweedie, Gamma, CrossEntropy, BCE, Focal)
}
