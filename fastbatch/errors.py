"""The exception family, and the did-you-mean that every unknown name and keyword gets."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import TypeVar

__all__ = [
    "ArgumentError",
    "BackendError",
    "BusyError",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "DivergenceError",
    "FastbatchError",
    "ShapeError",
]


class FastbatchError(Exception):
    """Base of every error that fastbatch raises on purpose."""


class ShapeError(FastbatchError, ValueError):
    """An array has the wrong number of dimensions, rows or columns."""


class DTypeError(FastbatchError, TypeError):
    """An array has a dtype that cannot be used, such as object or complex."""


class ArgumentError(FastbatchError, ValueError):
    """A value is outside its range, or a name is unknown."""


class DataError(FastbatchError, ValueError):
    """The data holds something that cannot be trained on: NaN, Inf, a label out of range, a negative weight."""


class BackendError(FastbatchError, RuntimeError):
    """A backend, target or optional package is missing or cannot run what was asked for."""


class CheckpointError(FastbatchError, ValueError):
    """A file is not a fastbatch file, is damaged, or was written by a newer version."""


class DivergenceError(FastbatchError, ArithmeticError):
    """The loss or the gradient stopped being finite.

    Parameters and optimizer slots are those that the failing step started from.

    Attributes
    ----------
    step : int
        The update that failed, counted from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    @classmethod
    def at(cls, what: str, value: float, steps: int) -> DivergenceError:
        """The error for the update after `steps` successful ones."""
        return cls(
            f"{what}: expected a finite number, got {value} at step {steps + 1}; parameters and optimizer state are "
            "those the step started from (try a smaller lr, or scale the inputs)",
            steps + 1,
        )

    def __reduce__(self):
        return type(self), (self.args[0], self.step)


class BusyError(FastbatchError, RuntimeError):
    """Two threads used one trainer at the same time."""


# What the neighbouring libraries call the same thing; consulted before spelling distance.
_ELSEWHERE = {
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "beta_1": "betas",
    "beta_2": "betas",
    "b1": "betas",
    "b2": "betas",
    "epsilon": "eps",
    "alpha": "weight_decay",
    "rho": "alpha",
    "use_bias": "bias",
    "kernel_initializer": "init",
    "max_iter": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "n_jobs": "num_threads",
    "random_state": "seed",
    "validation_fraction": "validation_split",
    "binary_cross_entropy": "bce",
    "binary_crossentropy": "bce",
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "crossentropy": "cross_entropy",
    "ce": "cross_entropy",
    "log_loss": "cross_entropy",
    "squared_error": "mse",
    "mean_squared_error": "mse",
    "l2": "mse",
    "absolute_error": "mae",
    "mean_absolute_error": "mae",
    "l1": "mae",
    "pinball": "quantile",
    "pinball_loss": "quantile",
    "poisson_nll": "poisson",
    "focal_loss": "focal",
    "smooth_l1": "huber",
    "swish": "silu",
    "lrelu": "leaky_relu",
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
    "kaiming_normal": "he_normal",
    "kaiming_uniform": "he_uniform",
    "acc": "accuracy",
    "roc_auc": "auc",
    "r2_score": "r2",
    "confusion_matrix": "confusion",
    "f1_macro": "f1",
    "f1_score": "f1",
    "linear": "dense",
    "mlpclassifier": "mlp",
    "mlpregressor": "mlp",
    "bfloat16": "bf16",
    "fp32": "float32",
    "cpu": "c",
    "native": "c",
    "numpy": "reference",
}


# Keywords that belong to another call than the one they are often given to.
_BELONGS = {
    "lr": "the optimizer: optimizer=fb.Adam(lr=...)",
    "weight_decay": "the optimizer: optimizer=fb.AdamW(weight_decay=...)",
    "batch_size": "Trainer.fit",
    "callbacks": "Trainer.fit",
    "class_weight": "Trainer.fit",
    "epochs": "Trainer.fit",
    "sample_weight": "Trainer.fit",
    "validation_data": "Trainer.fit",
    "validation_split": "Trainer.fit",
    "loss": "Trainer",
    "metrics": "Trainer",
    "optimizer": "Trainer",
}


def _belongs(name: str, label: str) -> str:
    """Where a keyword is at home that a trainer or model was given and does not have, or an empty string."""
    owner = _BELONGS.get(_ELSEWHERE.get(name.lower(), name))
    asked = label.startswith(("fastbatch.Trainer", "fastbatch.Sequential", "fastbatch.MLP"))
    return f"; it belongs to {owner}" if owner and asked else ""


def as_float(value: object) -> float:
    """A real number as a float; NaN, which no range holds, for anything else and for integers beyond every float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest choice, or an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    guess = by_lower.get(_ELSEWHERE.get(name.lower(), name.lower()))
    if guess is None:
        close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
        guess = by_lower[close[0]] if close else None
    return f"; did you mean {guess!r}?" if guess else ""


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> ArgumentError:
    """Build the error for a name that no registry row has."""
    choices = sorted(choices)
    hint = did_you_mean(name, choices) if isinstance(name, str) else ""
    if isinstance(name, type):  # Adam where Adam() was meant
        hint = f"; did you mean {name.__name__}()?"
    return ArgumentError(f"{kind}: expected one of {', '.join(choices)}; got {name!r}{hint}")


def missing_operations(missing: Iterable[tuple[str, str]]) -> str:
    """What to do about operations of a user's own, (kind, name), of a model, that nobody has registered."""
    missing = list(dict.fromkeys(missing))
    names = " and ".join(f"{kind} {name!r}" for kind, name in missing)
    decorators = " and ".join(dict.fromkeys(f"@fb.{kind}" for kind, _ in missing))
    return (
        f"the model needs the custom {names}, which nobody has registered here: run the module that defines "
        f"{'it' if len(missing) == 1 else 'them'} with {decorators} before"
    )


F = TypeVar("F", bound=Callable)


def named_keywords(function: F, name: str | None = None) -> F:
    """Make an unknown keyword a TypeError with a did-you-mean. The signature stays visible to ``inspect``."""
    code = function.__code__  # inspect.signature says the same and takes a hundred times longer at import
    known = [p for p in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if p not in ("self", "cls")]
    accepted = frozenset(known)
    label = name or f"fastbatch.{function.__qualname__.removesuffix('.__init__')}"
    label = label.replace("fastbatch.Steps.", "fastbatch.Trainer.")  # a base that users do not know

    @functools.wraps(function)
    def checked(*args, **kwargs):
        if not kwargs:  # two thirds of the time of the way below
            return function(*args)
        try:
            return function(*args, **kwargs)
        except TypeError:  # Python has refused an unknown keyword before the function began; looked at only now
            unknown = next((k for k in kwargs if k not in accepted), None)
            if unknown is None:
                raise
        hint = did_you_mean(unknown, known) or _belongs(unknown, label)
        raise TypeError(f"{unknown!r} is not a parameter of {label}{hint}")

    return checked  # type: ignore[return-value]


C = TypeVar("C", bound=type)


def named_fields(cls: C) -> C:
    """Class decorator: :func:`named_keywords` for the constructor."""
    cls.__init__ = named_keywords(cls.__init__, f"fastbatch.{cls.__name__}")  # type: ignore[misc]
    return cls
