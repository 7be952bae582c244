"""The registries: what every name means, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ArgumentError, unknown_name
from . import random
from .activations import ACTIVATIONS, SYNONYMS, Activation
from .initializers import AUTO, INITIALIZERS, Initializer
from .losses import LOSSES, Loss
from .metrics import METRICS
from .optimizers import OPTIMIZERS, SGD, Adam, Optimizer

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "SGD",
    "Activation",
    "Adam",
    "Loss",
    "Optimizer",
    "get_activation",
    "get_initializer",
    "get_loss",
    "get_metrics",
    "get_optimizer",
    "random",
]


def get_activation(name: str) -> Activation:
    """Row of the activation registry; synonyms are resolved. ArgumentError with a did-you-mean."""
    row = ACTIVATIONS.get(SYNONYMS.get(name, name)) if isinstance(name, str) else None
    if row is None:
        raise unknown_name("activation", name, ACTIVATIONS)
    return row


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


def get_metrics(names: str | Sequence[str], loss: Loss) -> dict:
    """Metric functions by name; refuses one that is not defined for what the loss predicts."""
    found = {}
    for name in names if isinstance(names, (list, tuple)) else (names,):
        if not isinstance(name, str) or name not in METRICS:
            raise unknown_name("metrics", name, METRICS)
        function, targets = METRICS[name]
        if loss.targets not in targets:
            raise ArgumentError(
                f"metrics: {name!r} is not defined for loss {loss.name!r}, which predicts {loss.targets}"
            )
        found[name] = function
    return found
