"""The regressor: scikit-learn's signature, values and counts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if

from .. import ops
from ..errors import named_keywords
from . import settings
from .base import PARAMETERS, BaseMLP, with_callbacks
from .rows import Rows

__all__ = ["MLPRegressor"]

Array = np.ndarray


class MLPRegressor(RegressorMixin, BaseMLP):
    __doc__ = f"""scikit-learn's MLPRegressor on fastbatch's kernels.

    Parameters
    ----------
    loss : str or fastbatch.losses object, default "squared_error"
        "squared_error", "poisson", "absolute_error", "huber", "quantile", "gamma", "tweedie" or an object. Poisson,
        gamma and Tweedie have a log link: predictions are the exponential of the outputs.
    hidden_layer_sizes : int or sequence of int, default (100,)
    activation : str or list of str, default "relu"
        Any activation of fastbatch; a list has one for each hidden layer.{PARAMETERS}"""

    _classifies = False

    # how to call is no metadata
    __metadata_request__partial_fit: ClassVar = {"validate": UNUSED}
    __metadata_request__predict: ClassVar = {"validate": UNUSED}

    @named_keywords
    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        norm=None,
        scoring=None,
        max_grad_norm=None,
        callbacks=(),
        ema=None,
        backend="auto",
        n_jobs=None,
        dtype=None,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.norm = norm
        self.scoring = scoring
        self.max_grad_norm = max_grad_norm
        self.callbacks = callbacks
        self.ema = ema
        self.backend = backend
        self.n_jobs = n_jobs
        self.dtype = dtype

    @with_callbacks
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Train.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            A sparse one is made dense, beyond 256 MiB a batch at a time.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation rows, instead of a part of X with ``early_stopping=True``; without it they are only looked at.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, X_val, y_val, sample_weight_val)

    @available_if(lambda self: self._check_solver())
    def partial_fit(self, X, y, sample_weight=None, *, validate=True):
        """One epoch over these rows.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        validate : bool, default True
            False, behind the first call, takes X and y as ndarrays without looking.

        Returns
        -------
        self
        """
        with nullcontext() if "_optimizer" in self.__dict__ else self._refused_unchanged():
            return self._partial_fit(X, y, sample_weight, validate)

    def predict(self, X, *, validate=True):
        """Values.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        validate : bool, default True
            False takes an ndarray without looking for NaN and names of columns.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), of the dtype that was trained in
        """
        outputs = self._outputs(X, validate)
        if self.out_activation_ == "exp":
            with np.errstate(over="ignore"):
                outputs = np.exp(outputs)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def _learn_y(self, y, first: bool) -> None:
        """There is nothing to learn."""

    def _resolved(self) -> tuple[ops.Loss, str]:
        loss = settings.loss_of(self.loss, classifier=False, labels=0)
        return loss, "exp" if loss.log_link else "identity"

    def _targets(self, y) -> Array:
        return y.reshape(len(y), -1)

    def _outputs_of(self, targets: Array) -> int:
        return targets.shape[1]

    def _score_of(self, outputs: Array, rows: Rows) -> float:
        if not np.isfinite(self._loss.predicted(outputs)).all():
            return float("nan")
        r2, _ = ops.METRICS["r2"]  # r2_score takes 200 us more
        return float(r2(outputs, rows.targets, rows.weight, self._loss))
