"""Optimizers: immutable descriptions, and in NumPy what each one does to a parameter.

Defaults, keywords and arithmetic are torch's (torch.optim 2.x). A description holds no state: the slots belong to the
trainer, so one object may serve many of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar

import numpy as np

from ..errors import ArgumentError, named_fields
from ..schedules import Schedule

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "Optimizer"]

Array = np.ndarray


@dataclass(frozen=True)
class Optimizer:
    """Base of every optimizer.

    A subclass states `rule` (the row of ``csrc/ops/optimizers.def`` that runs it),
    `constants()` (the numbers that row asks for, by name) and `update`. `lr` is a number or a schedule; what runs is
    `rate` or `rates` of the update.
    """

    lr: float | Schedule = 1e-3
    rule: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, (bool, np.bool_)):
                    self._refuse(field.name, "True or False")
            elif field.type.startswith("float"):
                if field.name == "lr" and isinstance(value, Schedule):
                    continue
                if (
                    isinstance(value, bool)
                    or not isinstance(value, Real)
                    or not (math.isfinite(value) and float(value) >= 0)
                ):
                    self._refuse(field.name, "a finite number >= 0" + " or a schedule" * (field.name == "lr"))
            elif not (
                isinstance(value, (tuple, list))
                and len(value) == 2
                and all(isinstance(beta, Real) and 0 <= float(beta) < 1 for beta in value)
            ):
                self._refuse(field.name, "a pair of numbers in [0, 1)")

    def _refuse(self, name: str, expected: str) -> None:
        raise ArgumentError(f"{type(self).__name__}({name}=): expected {expected}, got {getattr(self, name)!r}")

    def rate(self, t: int) -> float:
        """Learning rate of update `t`, counted from 0."""
        return self.lr(t) if isinstance(self.lr, Schedule) else float(self.lr)

    def rates(self, first: int, count: int) -> Array:
        """Learning rates of the updates `first` .. `first + count - 1`, (count,) float64."""
        return self.lr.values(first, count) if isinstance(self.lr, Schedule) else np.full(count, float(self.lr))

    @property
    def slots(self) -> int:
        """Number of state values per parameter, S."""
        raise NotImplementedError

    def constants(self) -> dict[str, float]:
        """The hyperparameters that the rule reads, by name, without the learning rate."""
        raise NotImplementedError

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        """Update `p` (N,) and `slots` (S, N) in place from the gradient `g` (N,); `t` counts updates from 1."""
        raise NotImplementedError


@named_fields
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, torch.optim.SGD.

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
    momentum : float, default 0
        ``buf = momentum * buf + (1 - dampening) * g``; the first update sets ``buf = g``.
    dampening : float, default 0
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.
    nesterov : bool, default False
        Step along ``g + momentum * buf``; needs momentum > 0 and dampening = 0.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, or nesterov without momentum.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ArgumentError(
                "SGD(nesterov=True): expected momentum > 0 and dampening = 0, "
                f"got momentum={self.momentum}, dampening={self.dampening}"
            )

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "momentum" if self.momentum else "sgd"

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0

    def constants(self) -> dict[str, float]:
        if not self.momentum:
            return {"weight_decay": self.weight_decay}
        return {
            "momentum": self.momentum,
            "dampening": self.dampening,
            "weight_decay": self.weight_decay,
            "nesterov": float(self.nesterov),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.momentum:
            buf = slots[0]
            buf[:] = g if t == 1 else self.momentum * buf + (1 - self.dampening) * g
            g = g + self.momentum * buf if self.nesterov else buf
        p -= lr * g


@named_fields
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980), torch.optim.Adam.

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
    betas : (float, float), default (0.9, 0.999)
        Decay of the running means of g and g^2.
    eps : float, default 1e-8
        Added to the bias-corrected root, outside it; above 0, or a parameter without a gradient would become 0 / 0.
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, or a beta outside [0, 1).
    """

    rule: ClassVar[str] = "adam"
    decoupled: ClassVar[bool] = False

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps == 0:
            self._refuse("eps", "a finite number > 0")

    @property
    def slots(self) -> int:
        return 2

    def constants(self) -> dict[str, float]:
        return {
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "decoupled": float(self.decoupled),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        (beta1, beta2), (m, v) = self.betas, slots
        if self.decoupled:
            p *= 1 - lr * self.weight_decay
        elif self.weight_decay:
            g = g + self.weight_decay * p
        m += (1 - beta1) * (g - m)
        v[:] = beta2 * v + (1 - beta2) * g * g
        p -= lr / (1 - beta1**t) * m / (np.sqrt(v) / math.sqrt(1 - beta2**t) + self.eps)


@named_fields
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101), torch.optim.AdamW.

    Parameters are those of :class:`Adam`; ``weight_decay`` defaults to 1e-2 and shrinks the parameter by
    ``lr * weight_decay`` instead of entering the gradient.
    """

    decoupled: ClassVar[bool] = True
    weight_decay: float = 1e-2


OPTIMIZERS: dict[str, type[Optimizer]] = {cls.__name__.lower(): cls for cls in (SGD, Adam, AdamW)}
