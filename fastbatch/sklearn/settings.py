"""What the parameters of an estimator may be, and the network, loss and optimizer that they describe."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from .. import checks, ops
from ..batching.sizes import as_plain
from ..cpus import available
from ..errors import ArgumentError, did_you_mean
from ..layers import Activation, BatchNorm, Dense, Dropout, Layer, LayerNorm
from ..model import Sequential
from ..training import Trainer

__all__ = [
    "STOCHASTIC", "activations_of", "check_parameters", "hidden_sizes", "initialise", "layers_of", "loss_of",
    "model_dtype", "trainer_of",
]  # fmt: skip

STOCHASTIC = ("sgd", "adam")
NORMS: dict[str, type[Layer]] = {"layer": LayerNorm, "batch": BatchNorm}

# scikit-learn's names of losses, and what they are here
LOSS_NAMES = {
    "log_loss": "cross_entropy",
    "squared_error": "mse",
    "absolute_error": "mae",
    "mean_squared_error": "mse",
    "mean_absolute_error": "mae",
}

Array = np.ndarray
Test = tuple[Callable[[Any], bool], str]


def _real(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Test:
    def test(value: Any) -> bool:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        number = float(value)
        return (low < number if open_low else low <= number) and (number < high if open_high else number <= high)

    above = f"{'>' if open_low else '>='} {low}"
    within = f"in {'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
    return test, f"a finite number {above if high == math.inf else within}"


def _count(low: int, extra: str = "", also: Callable[[Any], bool] = lambda value: False) -> Test:
    def test(value: Any) -> bool:
        number = isinstance(value, Integral) and not isinstance(value, (bool, np.bool_)) and int(value) >= low
        return number or also(value)

    return test, f"an integer >= {low}{extra}"


def _flag() -> Test:
    return (lambda value: isinstance(value, (bool, np.bool_))), "True or False"


def _choice(*names: str | None) -> Test:
    def test(value: Any) -> bool:
        return (value is None or isinstance(value, str)) and value in names

    return test, " or ".join(map(repr, names))


RULES: dict[str, Test] = {
    "solver": _choice("lbfgs", *STOCHASTIC),
    "alpha": _real(0),
    "learning_rate": _choice("constant", "invscaling", "adaptive"),
    "learning_rate_init": _real(0, open_low=True),
    "power_t": _real(0),
    "max_iter": _count(1),
    "shuffle": _flag(),
    "tol": _real(0),
    "verbose": _count(0, " or True or False", lambda value: isinstance(value, (bool, np.bool_))),
    "warm_start": _flag(),
    "momentum": _real(0, 1),
    "nesterovs_momentum": _flag(),
    "early_stopping": _flag(),
    "validation_fraction": _real(0, 1, open_high=True),
    "beta_1": _real(0, 1, open_high=True),
    "beta_2": _real(0, 1, open_high=True),
    "epsilon": _real(0, open_low=True),
    "n_iter_no_change": _count(1, " or numpy.inf", lambda value: isinstance(value, float) and value == math.inf),
    "max_fun": _count(1),
    "dropout": _real(0, 1, open_high=True),
    "norm": _choice(None, *NORMS),
    "n_jobs": (lambda value: value is None or _count(1)[0](abs(value) if isinstance(value, Integral) else value),
               "an integer other than 0, or None"),
    "ema": (lambda value: value is None or _real(0, 1, open_high=True)[0](value), "a number in [0, 1) or None"),
    "scoring": (lambda value: value is None or isinstance(value, str) or callable(value),
                "None, 'loss', the name of a scorer or a callable"),
}  # fmt: skip


def check_parameters(estimator: Any) -> None:
    """ArgumentError, with the names of scikit-learn, for the first parameter that is out of range."""
    for name, (test, expected) in RULES.items():
        value = getattr(estimator, name)
        if not test(value):
            choices = [word.strip("'") for word in expected.split(" or ")] if isinstance(value, str) else []
            hint = did_you_mean(value, choices) if choices else ""
            raise ArgumentError(f"{type(estimator).__name__}({name}=): expected {expected}, got {value!r}{hint}")
    hidden_sizes(estimator)
    activations_of(estimator)
    _check_batch_size(estimator)
    for name in ("dropout", "max_grad_norm", "ema"):
        if estimator.solver == "lbfgs" and getattr(estimator, name):
            raise ArgumentError(f"{name}: expected solver 'sgd' or 'adam' with it, got 'lbfgs'")
    if estimator.solver == "lbfgs" and estimator.norm == "batch":
        raise ArgumentError("norm='batch': expected solver 'sgd' or 'adam' with it, got 'lbfgs'")


def _check_batch_size(estimator: Any) -> None:
    value = estimator.batch_size
    if not (isinstance(value, str) and value == "auto"):
        as_plain(value)


def hidden_sizes(estimator: Any) -> list[int]:
    """``hidden_layer_sizes`` as a list."""
    value = estimator.hidden_layer_sizes
    sizes: list[Any] = [value] if isinstance(value, Integral) else list(value) if hasattr(value, "__iter__") else [0]
    if isinstance(value, str) or not all(_count(1)[0](size) for size in sizes):
        raise ArgumentError(f"hidden_layer_sizes: expected integers >= 1, got {value!r}")
    return [int(size) for size in sizes]


def activations_of(estimator: Any) -> list[str]:
    """The activation of each hidden layer, by its name here."""
    value, layers = estimator.activation, len(hidden_sizes(estimator))
    names = [value] * layers if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or len(names) != layers:
        raise ArgumentError(f"activation: expected a name, or a list of {layers}, one per hidden layer, got {value!r}")
    if isinstance(value, str):
        ops.get_activation(value)  # also where there is no hidden layer
    return [ops.get_activation(name).name for name in names]


def num_threads(estimator: Any) -> int | None:
    """Upper bound on threads from ``n_jobs``: None and -1 leave the choice to the library, -2 spares one CPU, ..."""
    jobs = estimator.n_jobs
    if jobs is None or jobs == -1:
        return None
    return int(jobs) if jobs > 0 else max(1, available() + 1 + int(jobs))


def layers_of(estimator: Any, outputs: int) -> list[Layer]:
    """Dense -> norm -> activation -> dropout of each hidden layer, and the last Dense; weights begin as zeros."""
    layers: list[Layer] = []
    for units, activation in zip(hidden_sizes(estimator), activations_of(estimator)):
        if estimator.norm is None:
            layers.append(Dense(units, activation=activation, init="zeros"))
        else:
            layers += [Dense(units, init="zeros"), NORMS[estimator.norm](), Activation(activation)]
        if estimator.dropout:
            layers.append(Dropout(float(estimator.dropout)))
    return [*layers, Dense(outputs, init="zeros")]


def initialise(estimator: Any, pairs: list[tuple[Array, Array]], random_state: np.random.RandomState) -> None:
    """Draw weights and biases as scikit-learn does (Glorot and Bengio 2010), in its order."""
    names = activations_of(estimator) or [estimator.activation]
    for (w, b), name in zip(pairs, [*names, names[-1]]):
        bound = np.sqrt((2.0 if ops.get_activation(name).name == "sigmoid" else 6.0) / sum(w.shape))
        w[:] = random_state.uniform(-bound, bound, w.shape)
        b[:] = random_state.uniform(-bound, bound, b.shape)


def loss_of(value: Any, *, classifier: bool, labels: int) -> ops.Loss:
    """The loss that ``loss=`` names; log_loss of two classes, or of `labels` = 0 (multilabel), is bce.

    Raises
    ------
    ArgumentError
        For an unknown loss, and one that does not fit the kind of estimator.
    """
    where = "MLPClassifier(loss=)" if classifier else "MLPRegressor(loss=)"
    if not isinstance(value, (str, ops.Loss)):
        hint = ""
        if not classifier and isinstance(value, (tuple, list, Integral)):
            hint = "; since scikit-learn 1.7 loss is the first parameter: MLPRegressor(hidden_layer_sizes=...)"
        raise ArgumentError(f"{where}: expected a name or an object of fastbatch.losses, got {value!r}{hint}")
    name = LOSS_NAMES.get(value, value) if isinstance(value, str) else value
    loss = ops.get_loss("bce" if name == "cross_entropy" and labels <= 2 else name)
    if (loss.targets in ("classes", "binary")) is not classifier:
        kind = "classification" if classifier else "regression"
        raise ArgumentError(f"{where}: expected a loss for {kind}, got {loss.name!r}")
    if classifier and labels == 0 and loss.targets == "classes":
        raise ArgumentError(f"{where}: expected log_loss, bce or focal for multilabel targets, got {loss.name!r}")
    if loss.ignored is not None:
        raise ArgumentError(f"{where}: expected a loss without ignore_index; give such rows sample_weight 0")
    return loss


def optimizer_of(estimator: Any) -> ops.Optimizer:
    """scikit-learn's solver, for a trainer with its semantics."""
    lr, decay = float(estimator.learning_rate_init), float(estimator.alpha)
    if estimator.solver == "sgd":
        momentum = float(estimator.momentum)
        nesterov = bool(estimator.nesterovs_momentum) and momentum > 0
        return ops.SGD(lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    betas = (float(estimator.beta_1), float(estimator.beta_2))
    return ops.Adam(lr, betas=betas, eps=float(estimator.epsilon), weight_decay=decay)


def trainer_of(estimator: Any, model: Sequential, loss: ops.Loss, seed: int = 0) -> Trainer:
    """A trainer with slots as they are before the first update."""
    return Trainer(
        model,
        loss,
        optimizer_of(estimator),
        backend=estimator.backend,
        num_threads=num_threads(estimator),
        semantics="sklearn",
        max_grad_norm=estimator.max_grad_norm,
        seed=seed,
    )


def model_dtype(estimator: Any, X: np.ndarray) -> str:
    """What the network is trained in: what was asked for, else float32 for float32 and float64 for everything else."""
    if estimator.dtype is not None:
        return checks.as_dtype(estimator.dtype)
    return "float32" if X.dtype == np.float32 else "float64"
