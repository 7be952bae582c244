"""What a loss is: a description that gives the value and slope of each sample, divided by nothing yet.

``rows(a, y)`` gives per-sample numbers: the loss of each row, its gradient with respect to the row's outputs, and the
row's share of the total weight. A batch with row weights r then has the loss ``sum(r * loss) / sum(r * share)`` and the
gradient ``r * da / sum(r * share)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import ArgumentError, as_float
from .formula import Formula
from .semantics import check_semantics

__all__ = ["Loss", "between", "weights"]

Array = np.ndarray


@dataclass(frozen=True)
class Loss:
    """Base of every loss.

    Parameters
    ----------
    semantics : {"torch", "sklearn", "keras"}, default "torch"
        Whose value, slope and mean over an epoch are meant: docs/optimizers.md.

    Attributes
    ----------
    name : str
        The row of ``csrc/ops/losses.def``.
    targets : {"values", "counts", "positive", "classes", "binary"}
        What `y` holds: float values, those >= 0, those > 0, class labels (or one distribution per row), numbers in
        [0, 1].
    log_link : bool
        Outputs are the logarithm of what they predict.
    kinks : tuple of float
        Values of ``a - y`` where the slope jumps.
    formula : Formula or None
        Of one of a user's own.
    """

    name: ClassVar[str]
    targets: ClassVar[str] = "values"
    kinks: ClassVar[tuple[float, ...]] = ()
    log_link: ClassVar[bool] = False
    formula: ClassVar[Formula | None] = None

    semantics: str = field(default="torch", kw_only=True)

    def __post_init__(self) -> None:
        check_semantics(type(self).__name__, self.semantics)

    @property
    def parameter(self) -> float:
        """The one scalar that the loss is given, 0 where it has none."""
        return 0.0

    @property
    def per_output(self) -> tuple[float, ...] | None:
        """One weight per output, or None."""
        return None

    @property
    def ignored(self) -> int | None:
        """The label whose rows do not count, or None. They get weight 0 at the door: no backend sees the label."""
        return None

    def divisors(self, outputs: int) -> tuple[float, float]:
        """What a row's sums of :meth:`elements` over its outputs are divided by: that of values, and each slope.

        scikit-learn's are not those of a function and its gradient where there is more than one output.
        """
        return float(outputs), float(outputs)

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
        of_value, of_slope = map(a.dtype.type, self.divisors(a.shape[1]))
        return value.sum(axis=1) / of_value, slope / of_slope, np.ones(len(a), a.dtype)

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        """Value and slope element by element, for the losses that are a mean over elements, before any division."""
        raise NotImplementedError

    def probabilities(self, a: Array) -> Array:
        """What the outputs say as probabilities; ArgumentError for a loss that has none."""
        raise ArgumentError(
            "predict_proba: expected a model trained with cross_entropy, bce or focal, this one was trained with "
            f"{self.name}"
        )

    def predicted(self, a: Array) -> Array:
        """What the outputs say of values, in float64: themselves, or their exponential under a log link."""
        a = a.astype(np.float64)
        with np.errstate(over="ignore"):
            return np.exp(a) if self.log_link else a


def between(name: str, value, low: float, high: float, hint: str = "") -> None:
    if not low < as_float(value) < high:
        raise ArgumentError(f"{name}: expected a number in ({low}, {high}), got {value!r}{hint}")


def weights(name: str, values) -> tuple[float, ...] | None:
    if values is None:
        return None
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all() or (array < 0).any():
        raise ArgumentError(f"{name}: expected finite numbers >= 0, one per output, got {values!r}")
    return tuple(array.tolist())
