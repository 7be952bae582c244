"""The classifier: scikit-learn's signature, classes of any kind, probabilities."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight, compute_sample_weight
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .. import ops
from ..errors import ArgumentError, DataError, ShapeError, named_keywords
from . import settings
from .base import PARAMETERS, BaseMLP, with_callbacks
from .rows import Rows

__all__ = ["MLPClassifier"]

Array = np.ndarray


class MLPClassifier(ClassifierMixin, BaseMLP):
    __doc__ = f"""scikit-learn's MLPClassifier on fastbatch's kernels.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
    activation : str or list of str, default "relu"
        Any activation of fastbatch; a list has one for each hidden layer.
    loss : str or fastbatch.losses object, default "log_loss"
        A loss of classes ("log_loss", CrossEntropy) or of binary outputs (BCE, Focal), one against the rest.
    class_weight : None, "balanced", dict or list of dict, default None
        Multiplies sample_weight, in training and in validation.{PARAMETERS}"""

    _classifies = True
    classes_: Array

    # how to call is no metadata
    __metadata_request__partial_fit: ClassVar = {"validate": UNUSED}
    __metadata_request__predict: ClassVar = {"validate": UNUSED}
    __metadata_request__predict_proba: ClassVar = {"validate": UNUSED}
    __metadata_request__predict_log_proba: ClassVar = {"validate": UNUSED}

    @named_keywords
    def __init__(
        self,
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
        loss="log_loss",
        class_weight=None,
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
        self.loss = loss
        self.class_weight = class_weight
        self.dropout = dropout
        self.norm = norm
        self.scoring = scoring
        self.max_grad_norm = max_grad_norm
        self.callbacks = callbacks
        self.ema = ema
        self.backend = backend
        self.n_jobs = n_jobs
        self.dtype = dtype

    # -- methods of scikit-learn ---------------------------------------------------------------------------------------

    @with_callbacks
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Train.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            A sparse one is made dense, beyond 256 MiB a batch at a time.
        y : array-like of shape (n_samples,) or, multilabel, (n_samples, n_labels)
        sample_weight : array-like of shape (n_samples,), optional
        X_val, y_val, sample_weight_val : optional
            Validation rows, instead of a part of X with ``early_stopping=True``; without it they are only looked at.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, X_val, y_val, sample_weight_val)

    @available_if(lambda self: self._check_solver())
    def partial_fit(self, X, y, sample_weight=None, classes=None, *, validate=True):
        """One epoch over these rows.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array-like, optional
            All there will be; the first call needs them.
        validate : bool, default True
            False, behind the first call, takes X as an ndarray and y as an ndarray of known classes without looking.

        Returns
        -------
        self
        """
        with nullcontext() if "_optimizer" in self.__dict__ else self._refused_unchanged():
            if classes is not None or "classes_" not in self.__dict__:
                self._first_classes(classes, y)
            if self.class_weight is not None and "_class_weights" not in self.__dict__:
                if not isinstance(self.class_weight, dict):
                    raise ArgumentError(f"partial_fit: expected a dict as class_weight, got {self.class_weight!r}")
                self._class_weights = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
            return self._partial_fit(X, y, sample_weight, validate)

    def predict(self, X, *, validate=True):
        """Classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        validate : bool, default True
            False takes an ndarray without looking for NaN and names of columns.

        Returns
        -------
        ndarray of shape (n_samples,) or, multilabel, (n_samples, n_labels) of 0 and 1
            A sparse matrix where the labels of the first fit were sparse.
        """
        outputs = self._outputs(X, validate)
        if self._multilabel:
            labels = (outputs > 0).astype(np.int64)
            return csr_matrix(labels) if self._sparse_labels else labels
        index = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(np.intp)
        return self.classes_[np.minimum(index, len(self.classes_) - 1)]

    def predict_proba(self, X, *, validate=True):
        """Probabilities.

        Parameters
        ----------
        X, validate
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`. Multilabel: (n_samples, n_labels), that of each label on its own.
        """
        outputs = self._outputs(X, validate)
        found = self._loss.probabilities(outputs)
        if self._multilabel:
            return found
        if found.shape[1] == 1:
            return np.hstack([1 - found, found])
        return found if self.out_activation_ == "softmax" else found / found.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X, *, validate=True):
        """The logarithm of :meth:`predict_proba`, of the same shape."""
        found = self.predict_proba(X, validate=validate)
        with np.errstate(divide="ignore"):
            return np.log(found, out=found)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    # -- classes -------------------------------------------------------------------------------------------------------

    def _first_classes(self, classes, y) -> None:
        if classes is None:
            raise ArgumentError("partial_fit: expected classes in the first call, got None")
        if type_of_target(y).startswith("multilabel"):
            self._learn(y if issparse(y) else np.asarray(y))
            return
        classes = unique_labels(classes)
        if "classes_" in self.__dict__ and not np.array_equal(classes, self.classes_):
            raise ArgumentError(f"partial_fit(classes=): expected those known, {self.classes_}, got {classes}")
        self.classes_, self._multilabel = classes, False

    def _learn(self, y: Array) -> None:
        if not issparse(y) and y.ndim == 1 and y.dtype.kind in "biu":  # type_of_target takes 100 us to say so
            found = np.unique(y)
            if len(found) <= len(y) // 2:  # else scikit-learn has a warning
                self.classes_, self._multilabel = found, False
                return
        kind = type_of_target(y, input_name="y")
        if kind not in ("binary", "multiclass", "multilabel-indicator"):
            check_classification_targets(y)  # raises, but for several classes per row
            raise ArgumentError(f"y: expected one class per row, or 0 and 1 for each label, got {kind} targets")
        self._multilabel, self._sparse_labels = kind == "multilabel-indicator", issparse(y)
        self.classes_ = np.arange(y.shape[1]) if self._multilabel else np.unique(y)

    def _learn_y(self, y, first: bool) -> None:
        if first or "classes_" not in self.__dict__:
            self._learn(y)
        elif self.warm_start and not self._multilabel:
            classes = unique_labels(y)
            if set(classes) != set(self.classes_):
                raise ArgumentError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )

    def _resolved(self) -> tuple[ops.Loss, str]:
        labels = 0 if self._multilabel else len(self.classes_)
        loss = settings.loss_of(self.loss, classifier=True, labels=labels)
        return loss, "softmax" if loss.targets == "classes" else "logistic"

    def _targets(self, y) -> Array:
        if self._multilabel:
            y = np.asarray(y.toarray() if issparse(y) else y)
            if y.ndim != 2 or y.shape[1] != len(self.classes_):
                raise ShapeError(f"y: expected labels ({len(y)}, {len(self.classes_)}), got shape {y.shape}")
            return y
        # methods: np.searchsorted and np.all take 2 of 20 us more, all() of one row most of another
        index = self.classes_.searchsorted(y)
        known = self.classes_.take(index, mode="clip") == y
        if not (known[0] if len(known) == 1 else known.all()):
            row = int(np.argmin(known))
            raise DataError(f"y: expected classes {self.classes_}, got {y[row]!r} in row {row}")
        if self.out_activation_ == "softmax":
            return index
        return index[:, None] if len(self.classes_) <= 2 else np.eye(len(self.classes_))[index]

    def _outputs_of(self, targets: Array) -> int:
        return len(self.classes_) if targets.ndim == 1 else targets.shape[1]

    def _score_of(self, outputs: Array, rows: Rows) -> float:
        targets = rows.targets
        if targets.ndim == 1:
            right = outputs.argmax(axis=1) == targets
        elif self._multilabel or outputs.shape[1] == 1:
            right = ((outputs > 0) == targets).all(axis=1)
        else:
            right = outputs.argmax(axis=1) == targets.argmax(axis=1)
        return float(right.mean() if rows.weight is None else np.average(right, weights=rows.weight))

    def _weighted(self, weight: Array | None, y, learn: bool = False) -> Array | None:
        if self.class_weight is None:
            return weight
        if self._multilabel:
            own = compute_sample_weight(self.class_weight, y)
        else:
            if learn:
                self._class_weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            own = self._class_weights[np.searchsorted(self.classes_, y)]
        return own if weight is None else own * weight
