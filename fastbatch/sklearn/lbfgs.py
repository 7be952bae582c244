"""The solver lbfgs: SciPy's L-BFGS-B on the trainer's gradients."""

from __future__ import annotations

import functools
import threading
import warnings
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning

from ..errors import DivergenceError
from ..layers import layout
from . import settings, sparse
from .rows import Rows, offset, weight_of

if TYPE_CHECKING:
    from .base import BaseMLP

__all__ = ["QUIET_BLAS", "fit"]

Array = np.ndarray


class _QuietBlas:
    """BLAS of one thread while any fit is in it.

    Threads of OpenBLAS spin for 100 ms behind each of SciPy's short calls, against those of the gradients: an iteration
    on digits then takes 2.2 ms instead of 1.3. Counted, because limits of threadpoolctl that overlap without being
    nested, as those of fits in two threads do, would stay behind.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()


@functools.cache  # a look at all libraries that are loaded: milliseconds
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # which scikit-learn depends on

    return ThreadpoolController()


QUIET_BLAS = _QuietBlas()


def fit(estimator: BaseMLP, rows: Rows) -> None:
    """Minimise the mean loss over all rows with scikit-learn's penalty; sets loss_ and n_iter_.

    What is minimised has the gradient of scikit-learn. Of a squared error of several outputs that is the sum over the
    outputs, while scikit-learn hands the mean to its line search, and loss_ holds it here, too.
    """
    trainer = settings.trainer_of(estimator, estimator._model, estimator._loss)
    model, parameters = trainer.model, trainer.model.parameters
    total = float(len(rows) if rows.weight is None else rows.weight.sum())
    weight = weight_of(rows, trainer.loss)
    decay = estimator.alpha / total
    outputs = model.output_size if trainer.loss.name == "mse" else 1
    parts = [part for part in layout(model.layers, model.input_size) if not part.buffered]
    penalised = np.concatenate([np.full(part.size, part.name == "w") for part in parts])

    def mean_gradient() -> tuple[float, Array]:
        if not issparse(rows.X):
            loss, gradient = trainer.gradients(rows.X, rows.targets, rows.weight)
            return loss, gradient.astype(np.float64)
        loss, gradient = 0.0, np.zeros(parameters.size)
        for part in map(rows.take, sparse.blocks(rows.X)):
            share = weight_of(part, trainer.loss) / weight
            one, own = trainer.gradients(part.X.toarray(), part.targets, part.weight)
            loss, gradient = loss + share * one, gradient + share * own
        return loss, gradient

    def objective(values: Array) -> tuple[float, Array]:
        parameters[:] = values
        loss, gradient = mean_gradient()
        kept = np.where(penalised, values, 0.0)
        return outputs * loss + 0.5 * decay * (kept @ kept), gradient + decay * kept

    iterations = count(1)

    def say(values: Array) -> None:
        print(f"Iteration {next(iterations)}")

    with QUIET_BLAS:
        found = scipy.optimize.minimize(
            objective,
            parameters.astype(np.float64),
            method="L-BFGS-B",
            jac=True,
            callback=say if estimator.verbose else None,
            options={"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol},
        )
    if not np.isfinite(found.fun):
        raise DivergenceError.at("loss", float(found.fun), int(found.nit))
    parameters[:] = found.x
    penalty = 0.5 * decay * float(np.square(found.x[penalised]).sum())
    constant = offset(trainer.loss, rows.targets, rows.weight)
    estimator.loss_ = np.float64((found.fun - penalty) / outputs + penalty + constant)
    estimator.n_iter_ = min(int(found.nit), estimator.max_iter)
    if found.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {found.nit} iterations (status={found.status}): {found.message}. "
            "Increase max_iter or max_fun, or scale the data.",
            ConvergenceWarning,
            stacklevel=6,
        )
