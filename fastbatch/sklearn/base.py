"""What both estimators do with their arguments: checks, the network there is, outputs, copies."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import checks, ops
from ..errors import ArgumentError, DivergenceError, ShapeError
from ..model import Sequential
from . import lbfgs, settings, sparse, stochastic
from .rows import Rows, Solver

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks to support."""

    def with_callbacks(method):
        return method


__all__ = ["PARAMETERS", "BaseMLP", "NotFiniteError", "with_callbacks"]

Array = np.ndarray

# What the docstrings of both share
PARAMETERS = """
    solver : {"adam", "sgd", "lbfgs"}, default "adam"
    alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle, random_state, tol, verbose
        scikit-learn's, with its defaults. batch_size also takes what :meth:`fastbatch.Trainer.fit` does.
    warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon
        scikit-learn's, with its defaults.
    n_iter_no_change, max_fun
        scikit-learn's, with its defaults.
    dropout : float, default 0
        Behind every hidden layer.
    norm : {None, "layer", "batch"}, default None
        Between a hidden layer and its activation.
    scoring : None, "loss", str or callable, default None
        What early stopping watches: the default score, minus the validation loss, or a scorer of scikit-learn.
    max_grad_norm : float, optional
        The mean gradient of an update, without the penalty, is scaled down to this norm where it is longer.
    callbacks : sequence of fastbatch.Callback, default ()
    ema : float, optional
        Decay per update of an average of the parameters, looked at behind every epoch; it is what fit leaves behind.
    backend : str, default "auto"
    n_jobs : int, optional
        Upper bound on threads; None and -1: the library picks. The result does not depend on it.
    dtype : {None, "float32", "float64"}, default None
        What is trained in. None: float32 for X of float32, float64 for everything else.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        Live views into the network. Arrays put in their place are taken over by the next call.
    loss_, best_loss_, loss_curve_, n_iter_, t_, n_layers_, n_outputs_, out_activation_, n_features_in_,
    feature_names_in_, validation_scores_, best_validation_score_
        As in scikit-learn.
    validation_loss_curve_ : list of float or None
        Loss of the validation rows behind every epoch, without the penalty.

    Raises
    ------
    ArgumentError
        Out of fit, for a parameter out of range. It is a ValueError, as all errors of data are.
    """


class NotFiniteError(DivergenceError, ValueError):
    """DivergenceError that is scikit-learn's ValueError, too."""


class BaseMLP(CallbackSupportMixin, BaseEstimator):
    """Base of both estimators.

    `coefs_` and `intercepts_` are views into the network's parameters; arrays put in their place are copied into it by
    the next call.
    """

    _classifies: ClassVar[bool]
    _loss: ops.Loss
    _model: Sequential
    _optimizer: Solver
    _no_improvement_count: int
    loss_curve_: list[float]
    best_loss_: Any
    best_validation_score_: Any
    validation_scores_: Any
    validation_loss_curve_: Any
    n_iter_: int
    t_: int

    # -- what the two differ in ----------------------------------------------------------------------------------------

    @abstractmethod
    def _learn_y(self, y: Array, first: bool) -> None:
        """Learn the classes of `y`, where it is the first; else compare them with those known."""

    @abstractmethod
    def _resolved(self) -> tuple[ops.Loss, str]:
        """What `loss` means for the classes there are, and what `out_activation_` is called with it."""

    @abstractmethod
    def _targets(self, y: Array) -> Array:
        """`y` as the loss takes it; DataError for an unknown class."""

    @abstractmethod
    def _outputs_of(self, targets: Array) -> int:
        """Width of the last layer."""

    @abstractmethod
    def _score_of(self, outputs: Array, rows: Rows) -> float:
        """scikit-learn's default score."""

    def _weighted(self, weight: Array | None, y: Array, learn: bool = False) -> Array | None:
        """Row weights times class weights; those of "balanced" are learnt from `y` or known."""
        return weight

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _check_X_y(self, X, y, reset: bool) -> tuple[Any, Array]:
        if _is_floats(X) and _is_numbers(y, len(X), self._classifies):
            if reset:
                self.n_features_in_ = X.shape[1]
                self.__dict__.pop("feature_names_in_", None)
            if X.shape[1] == self.n_features_in_ and "feature_names_in_" not in self.__dict__:
                return X, y
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=not self._classifies,
            dtype="numeric",
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return sparse.opened(X), y

    def _fit(self, X, y, sample_weight, X_val=None, y_val=None, sample_weight_val=None) -> BaseMLP:
        with self._refused_unchanged():
            settings.check_parameters(self)
            first = "coefs_" not in self.__dict__ or not self.warm_start
            X, y = self._check_X_y(X, y, first)
            if self.solver in settings.STOCHASTIC:
                stochastic.check(self, X, settings.layers_of(self, 1))
            self._learn_y(y, first)
            weight = None if sample_weight is None else _check_sample_weight(sample_weight, X)
            weight = self._weighted(weight, y, learn=True)
            random_state = check_random_state(self.random_state)
            rows = Rows(X, y, self._begin(X, y, first, random_state), weight)
            held_out = None
            if X_val is not None or y_val is not None or sample_weight_val is not None:
                held_out = self._held_out(X_val, y_val, sample_weight_val)
            try:
                if self.solver == "lbfgs":
                    lbfgs.fit(self, rows)
                else:
                    stochastic.fit(self, rows, held_out, random_state)
            except DivergenceError as error:
                raise _not_finite(error) from error
        return self

    @contextlib.contextmanager
    def _refused_unchanged(self) -> Iterator[None]:
        """What an error finds before the first update is put back, a generator's place, too."""
        before, generator = dict(self.__dict__), self.random_state
        drawn = generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else None
        try:
            yield
        except Exception as error:
            solver = self.__dict__.get("_optimizer")
            begun = solver is not before.get("_optimizer") and solver is not None and solver.trainer.steps > 0
            if not begun and not isinstance(error, DivergenceError):
                self.__dict__.clear()
                self.__dict__.update(before)
                if drawn is not None:
                    generator.set_state(drawn)
            raise

    def _held_out(self, X_val, y_val, sample_weight_val) -> Rows:
        if X_val is None or y_val is None:
            raise ArgumentError("fit: expected X_val and y_val together, got one of them")
        if self.solver == "lbfgs":
            raise ArgumentError("fit(X_val=): expected solver 'sgd' or 'adam' with it, got 'lbfgs'")
        X, y = self._check_X_y(X_val, y_val, reset=False)
        weight = None if sample_weight_val is None else _check_sample_weight(sample_weight_val, X)
        return Rows(X, y, self._targets(y), self._weighted(weight, y))

    def _partial_fit(self, X, y, sample_weight, validate: bool) -> BaseMLP:
        if self.early_stopping:
            raise ArgumentError("partial_fit does not support early_stopping=True")
        if self.ema is not None:
            raise ArgumentError("partial_fit: expected ema=None, an average over a fit, got a number")
        known = "_optimizer" in self.__dict__
        random_state, weight = None, sample_weight
        if not known:
            settings.check_parameters(self)
        if validate or not known:
            first = "coefs_" not in self.__dict__
            X, y = self._check_X_y(X, y, first)
            if first:
                self._learn_y(y, "classes_" not in self.__dict__)
            weight = None if weight is None else _check_sample_weight(weight, X)
        else:
            weight = None if weight is None else np.asarray(weight)
            for name, array in (("y", y), ("sample_weight", weight)):
                if array is not None and len(array) != X.shape[0]:
                    raise ShapeError(f"{name}: expected {X.shape[0]} rows as in X, got {len(array)}")
        stochastic.check(self, X, self._model.layers if known else settings.layers_of(self, 1))
        if known:
            self._ready()
            targets = self._targets(y)
        else:
            random_state = check_random_state(self.random_state)
            targets = self._begin(X, y, "coefs_" not in self.__dict__, random_state)
            self._optimizer = stochastic.solver(self, random_state)
        try:
            stochastic.one_epoch(self, Rows(X, y, targets, self._weighted(weight, y)), random_state)
        except DivergenceError as error:
            raise _not_finite(error) from error
        return self

    # -- the network ---------------------------------------------------------------------------------------------------

    def _begin(self, X: Array, y: Array, first: bool, random_state: np.random.RandomState) -> Array:
        """Make the network for these data, or look at the one there is; the targets."""
        self._loss, self.out_activation_ = self._resolved()
        targets = self._targets(y)
        outputs = self._outputs_of(targets)
        if first:
            self._build(X, outputs)
            settings.initialise(self, self._pairs(), random_state)
            self.n_iter_ = self.t_ = 0
        else:
            self._adopt(X, outputs)
        if self.solver in settings.STOCHASTIC:
            self._begin_curves(first)
        self.n_outputs_, self.n_layers_ = outputs, len(self.coefs_) + 1
        return targets

    def _begin_curves(self, first: bool) -> None:
        if not first and "loss_curve_" in self.__dict__ and (self.best_loss_ is None) is bool(self.early_stopping):
            return
        self._no_improvement_count, self.loss_curve_ = 0, []
        self.best_loss_ = None if self.early_stopping else np.inf
        self.best_validation_score_ = -np.inf if self.early_stopping else None
        self.validation_scores_ = self.validation_loss_curve_ = None

    def _build(self, X: Array, outputs: int) -> None:
        layers, dtype = settings.layers_of(self, outputs), settings.model_dtype(self, X)
        self._model = Sequential(layers, input_size=X.shape[1], dtype=dtype)
        self.__dict__.pop("_optimizer", None)
        self._show()

    def _pairs(self) -> list[tuple[Array, Array]]:
        """Every Dense here has a bias."""
        return cast("list[tuple[Array, Array]]", self._model.weights)

    def _show(self) -> None:
        self.coefs_ = [w for w, _ in self._pairs()]
        self.intercepts_ = [b for _, b in self._pairs()]

    def _adopt(self, X: Array, outputs: int) -> None:
        """Make sure that the network is what the parameters say, with the weights that the user sees."""
        if "_model" not in self.__dict__:
            mine = self.coefs_, self.intercepts_
            self._build(X, outputs)
            self.coefs_, self.intercepts_ = mine
        layers = tuple(settings.layers_of(self, outputs))
        if layers != self._model.layers:
            raise ArgumentError(
                "fit: expected the network of the fit before, with warm_start or partial_fit, got other layers: "
                f"{', '.join(map(str, layers))}"
            )
        self._ready()

    def _ready(self) -> Sequential:
        """The network, with the arrays that the user has put into coefs_ and intercepts_."""
        if "_model" not in self.__dict__:
            check_is_fitted(self)
        for k, (w, b) in enumerate(self._model._weights):
            if self.coefs_[k] is not w or self.intercepts_[k] is not b:
                self._take()
                break
        return self._model

    def _take(self) -> None:
        moves = []
        for k, own in enumerate(self._pairs()):
            for name, array, value in zip(("coefs_", "intercepts_"), own, (self.coefs_[k], self.intercepts_[k])):
                if np.shape(value) != array.shape:
                    raise ShapeError(f"{name}[{k}]: expected shape {array.shape}, got {np.shape(value)}")
                moves.append((array, value))
        for array, value in moves:
            array[...] = value
        self._show()

    # -- outputs -------------------------------------------------------------------------------------------------------

    def _outputs(self, X, validate: bool) -> Array:
        """Outputs of the last layer (n, O), before the last activation."""
        model = self._ready()
        if not validate:
            return model.predict(X)
        if not self._is_plain(X):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype="numeric", reset=False)
        return sparse.applied(model.predict, X)

    def _is_plain(self, X) -> bool:
        """Whether validate_data would only give `X` back."""
        return _is_floats(X) and X.shape[1] == self.n_features_in_ and "feature_names_in_" not in self.__dict__

    def _check_solver(self) -> bool:
        if self.solver not in settings.STOCHASTIC:
            raise AttributeError(f"partial_fit: expected solver 'sgd' or 'adam', got {self.solver!r}")
        return True

    # -- copies --------------------------------------------------------------------------------------------------------

    def _as_fitted(self) -> dict[str, Any]:
        """What makes a copy of this estimator one whose fit has ended here; for callbacks of scikit-learn."""
        model = self._model.copy()
        pairs = cast("list[tuple[Array, Array]]", model.weights)
        coefs, intercepts = [w for w, _ in pairs], [b for _, b in pairs]
        return {"_model": model, "coefs_": coefs, "intercepts_": intercepts, "loss_curve_": list(self.loss_curve_)}

    def __getstate__(self) -> dict:
        if "_model" in self.__dict__:
            self._ready()
        state = super().__getstate__()
        views = ("coefs_", "intercepts_") if "_model" in state else ()
        return {name: value for name, value in state.items() if name not in views}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if "_model" in self.__dict__:
            self._show()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


# validate_data takes 50 us for X and as much for y, where all it does is to give these back


def _is_floats(X) -> bool:
    plain = type(X) is np.ndarray and X.ndim == 2 and X.size > 0 and X.dtype.char in "fd"
    return plain and checks.first_nonfinite(X) is None


def _is_numbers(y, rows: int, classes: bool) -> bool:
    plain = type(y) is np.ndarray and y.ndim == 1 and len(y) == rows and y.dtype.kind in ("biu" if classes else "fiu")
    return plain and checks.first_nonfinite(y) is None


def _not_finite(error: DivergenceError) -> NotFiniteError:
    return NotFiniteError(
        "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
        f"preprocessed. ({error})",
        error.step,
    )
