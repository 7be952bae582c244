"""The registries: what every name means, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ArgumentError, missing_operations, unknown_name
from . import norms, random
from .activations import ACTIVATIONS, SYNONYMS, Activation
from .initializers import AUTO, INITIALIZERS, Initializer
from .losses import LOSSES, Loss
from .metrics import METRICS, Metric, as_given, custom, measure, top_k
from .optimizer import hold_columns
from .optimizers import OPTIMIZERS, SGD, Adam, Optimizer
from .semantics import SEMANTICS, check_semantics

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "SEMANTICS",
    "SGD",
    "Activation",
    "Adam",
    "Loss",
    "Optimizer",
    "as_given",
    "built_in_activation",
    "check_semantics",
    "get_activation",
    "get_initializer",
    "get_loss",
    "get_metrics",
    "get_optimizer",
    "hold_columns",
    "measure",
    "norms",
    "random",
    "recall_activation",
]


def get_activation(name: str) -> Activation:
    """Row of the activation registry; synonyms are resolved. ArgumentError with a did-you-mean."""
    row = ACTIVATIONS.get(SYNONYMS.get(name, name)) if isinstance(name, str) else None
    if row is None:
        raise unknown_name("activation", name, ACTIVATIONS)
    return row


def recall_activation(name: str) -> Activation:
    """Row of an activation that a layer has. Layers are made of names that are there: one that is not was a user's."""
    if name not in ACTIVATIONS:
        raise ArgumentError(missing_operations([("activation", name)]))
    return ACTIVATIONS[name]


def built_in_activation(name: str, where: str) -> None:
    """ArgumentError for one of a user's own, where another library is to run it."""
    if recall_activation(name).formula is not None:
        raise ArgumentError(
            f"{where}: activation {name!r} is an operation of your own (fb.activation), which only fastbatch can "
            "run; expected built-in ones"
        )


def get_initializer(name: str, gain: str = "glorot") -> Initializer:
    """Initializer by name; ``"auto"`` follows the gain of the activation behind the layer."""
    if name == "auto":
        name = AUTO[gain]
    if not isinstance(name, str) or name not in INITIALIZERS:
        raise unknown_name("init", name, ["auto", *INITIALIZERS])
    return INITIALIZERS[name]


def get_loss(loss: str | Loss) -> Loss:
    """A loss object as it is, a name with its defaults."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return LOSSES[loss]()


def get_optimizer(optimizer: str | Optimizer | None) -> Optimizer:
    """An optimizer object as it is, a name with its defaults, None for ``Adam(lr=1e-3)``."""
    if optimizer is None:
        return Adam()
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer.lower() not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer.lower()]()


def get_metrics(metrics: str | Callable | Sequence[str | Callable], loss: Loss) -> dict[str, Metric]:
    """Metrics by name; refuses one that is not defined for what the loss predicts.

    "top_3" and the like are "top_k" for another k. A callable goes by its ``__name__``.
    """
    found: dict[str, Metric] = {}
    for metric in metrics if isinstance(metrics, (list, tuple)) else (metrics,):
        if callable(metric) and not isinstance(metric, type):
            name = getattr(metric, "__name__", None)
            taken = {*found, *METRICS, "loss", "lr", "batch_size", "grad_norm", "noise_scale", "time"}
            if not isinstance(name, str) or name in taken or name.startswith("val_"):
                raise ArgumentError(f"metrics: expected functions with names of their own, got {name!r} of {metric!r}")
            found[name] = custom(metric)
            continue
        row = METRICS.get(metric) if isinstance(metric, str) else None
        if row is None and isinstance(metric, str) and metric.startswith("top_") and metric[4:].isdecimal():
            row = (top_k(int(metric[4:])), METRICS["top_k"][1]) if int(metric[4:]) else None
        if row is None:
            raise unknown_name("metrics", metric, METRICS)
        if loss.targets not in row[1]:
            fitting = ", ".join(name for name, (_, kinds) in METRICS.items() if loss.targets in kinds)
            raise ArgumentError(
                f"metrics: {metric!r} is not defined for loss {loss.name!r}, which predicts {loss.targets}; "
                f"expected one of {fitting}"
            )
        found[metric] = row[0]
    return found
