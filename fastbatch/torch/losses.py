"""Losses of torch as those of fastbatch."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..errors import ArgumentError
from .modules import import_torch

__all__ = ["describe"]

KNOWN = (
    "MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss", "PoissonNLLLoss", "CrossEntropyLoss", "BCEWithLogitsLoss",
)  # fmt: skip

HINTS = {
    "NLLLoss": "; CrossEntropyLoss takes the outputs before LogSoftmax",
    "BCELoss": "; BCEWithLogitsLoss takes the outputs before Sigmoid",
    "type": "; an object of it, with ()",
    "partial": "; objects take settings: nn.CrossEntropyLoss(label_smoothing=0.1)",
    "function": "; for a loss of your own, fastbatch.Trainer(from_torch(module)) has forward, backward and update",
}

# Functions that mean one of them with its defaults.
FUNCTIONS = {
    "mse_loss": "MSELoss",
    "l1_loss": "L1Loss",
    "huber_loss": "HuberLoss",
    "smooth_l1_loss": "SmoothL1Loss",
    "poisson_nll_loss": "PoissonNLLLoss",
    "cross_entropy": "CrossEntropyLoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
}


def describe(loss_fn, outputs: int, caller: str) -> tuple[ops.Loss, int | None]:
    """The loss, and a label outside 0 .. outputs - 1 whose rows it ignores, or None."""
    torch = import_torch()
    nn = torch.nn
    for function, name in FUNCTIONS.items():
        if loss_fn is getattr(nn.functional, function):
            loss_fn = getattr(nn, name)()
    kind = type(loss_fn)
    where = f"{caller}: loss_fn ({kind.__name__})"
    if kind not in (getattr(nn, name) for name in KNOWN):
        hint = HINTS.get(kind.__name__, HINTS["function"])
        raise ArgumentError(f"{where}: expected one of {', '.join(KNOWN)}; got {loss_fn!r}{hint}")
    if loss_fn.reduction != "mean":
        raise ArgumentError(f"{where}: expected reduction='mean', got {loss_fn.reduction!r}")
    if kind is nn.MSELoss:
        return ops.losses.MSE(), None
    if kind is nn.L1Loss:
        return ops.losses.MAE(), None
    if kind is nn.HuberLoss:
        return ops.losses.Huber(loss_fn.delta), None
    if kind is nn.SmoothL1Loss:
        if loss_fn.beta not in (0, 1):
            raise ArgumentError(
                f"{where}: expected beta 1, which is HuberLoss, or 0, which is L1Loss, got {loss_fn.beta}"
            )
        return (ops.losses.Huber() if loss_fn.beta else ops.losses.MAE()), None
    if kind is nn.PoissonNLLLoss:
        if not loss_fn.log_input or loss_fn.full:
            raise ArgumentError(f"{where}: expected log_input=True and full=False, got {_settings(loss_fn)}")
        return ops.losses.Poisson(), None
    if kind is nn.BCEWithLogitsLoss:
        if loss_fn.weight is not None:
            raise ArgumentError(f"{where}: expected weight=None (pos_weight is supported), got a tensor")
        return ops.losses.BCE(_numbers(loss_fn.pos_weight)), None
    index, inside = loss_fn.ignore_index, 0 <= loss_fn.ignore_index < outputs
    loss = ops.losses.CrossEntropy(_numbers(loss_fn.weight), loss_fn.label_smoothing, index if inside else None)
    return loss, None if inside else index


def _settings(loss_fn) -> str:
    return f"log_input={loss_fn.log_input}, full={loss_fn.full}"


def _numbers(tensor) -> Any:
    return None if tensor is None else tensor.detach().cpu().double().numpy()
