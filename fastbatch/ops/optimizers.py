"""Optimizers: immutable descriptions, and in NumPy what each one does to a parameter.

Defaults, keywords and arithmetic are torch's (torch.optim 2.x) where it has them. A description holds no state: the
slots belong to the trainer, so one object may serve many of them. The keywords that all of them share are those of
:class:`~fastbatch.ops.optimizer.Optimizer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ArgumentError, named_fields
from ..schedules import Schedule
from .adam import Adam, AdamW, NAdam
from .optimizer import Optimizer

__all__ = [
    "LAMB", "LARS", "OPTIMIZERS", "SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "Optimizer", "RMSprop",
]  # fmt: skip

Array = np.ndarray


@named_fields
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, torch.optim.SGD.

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
    momentum : float, default 0
        ``buf = momentum * buf + (1 - dampening) * g``; the first update sets ``buf = g``. Semantics sklearn and keras:
        ``v = momentum * v - lr * g``, which differs where lr changes.
    dampening : float, default 0
        torch's form only.
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.
    nesterov : bool, default False
        Step along ``g + momentum * buf``; needs momentum > 0 and dampening = 0.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, nesterov without momentum, or dampening in a form that has none.
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
        if self.dampening and self.semantics != "torch":
            raise ArgumentError(f"SGD(dampening=): expected 0 with semantics={self.semantics!r}, got {self.dampening}")

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "momentum" if self.momentum else "sgd"

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0

    @property
    def _velocity(self) -> bool:
        return self.semantics != "torch"

    def constants(self) -> dict[str, float]:
        if not self.momentum:
            return {"weight_decay": self.decay}
        return {
            "weight_decay": self.decay,
            "momentum": self.momentum,
            "dampening": self.dampening,
            "nesterov": float(self.nesterov),
            "velocity": float(self._velocity),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        g = self._penalised(p, g, lr, self.decay)
        if not self.momentum:
            p -= lr * g
            return
        buf = slots[0]
        if self._velocity:  # the slot is -v
            g, lr = lr * g, 1.0
        buf[:] = g if t == 1 else self.momentum * buf + (1 - self.dampening) * g
        p -= lr * (g + self.momentum * buf if self.nesterov else buf)


@named_fields
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop, torch.optim.RMSprop.

    Parameters
    ----------
    lr : float or Schedule, default 1e-2
    alpha : float, default 0.99
        Decay of the running mean of g^2, below 1.
    eps : float, default 1e-8
        Added to the root, above 0; semantics keras: under it.
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.
    momentum : float, default 0
        ``buf = momentum * buf + g / root``; semantics keras: ``lr * g / root``.
    centered : bool, default False
        Divide by the root of an estimate of the variance; one that rounding makes negative counts as 0.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, alpha >= 1, or eps = 0.
    """

    lr: float | Schedule = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_zero("eps")
        if self.alpha >= 1:
            self._refuse("alpha", "a number in [0, 1)")

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "rmsprop_centered" if self.centered else "rmsprop_momentum" if self.momentum else "rmsprop"

    @property
    def slots(self) -> int:
        return 3 if self.centered else 2 if self.momentum else 1

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "alpha": self.alpha,
            "eps": self.eps,
            "momentum": self.momentum,
            "inside": float(self.semantics == "keras"),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        g = self._penalised(p, g, lr, self.decay)
        square = slots[0]
        square[:] = self.alpha * square + (1 - self.alpha) * g * g
        if self.centered:
            slots[2] += (1 - self.alpha) * (g - slots[2])
            square = np.maximum(square - slots[2] * slots[2], 0)
        if self.semantics == "keras":
            step, lr = lr * g / np.sqrt(square + self.eps), 1.0
        else:
            step = g / (np.sqrt(square) + self.eps)
        if len(slots) > 1:
            step = slots[1] = self.momentum * slots[1] + step
        p -= lr * step


@named_fields
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011), torch.optim.Adagrad.

    Parameters
    ----------
    lr : float or Schedule, default 1e-2
    lr_decay : float, default 0
        Update t, counted from 1, has the rate ``lr / (1 + (t - 1) * lr_decay)``.
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.
    initial_accumulator_value : float, default 0
        What the sums of g^2 begin with; Keras' default is 0.1.
    eps : float, default 1e-10
        Added to the root, above 0; semantics keras: under it.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, or eps = 0.
    """

    lr: float | Schedule = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    rule: ClassVar[str] = "adagrad"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_zero("eps")

    @property
    def slots(self) -> int:
        return 1

    def begin(self, slots: Array) -> None:
        slots[0] = self.initial_accumulator_value

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "lr_decay": self.lr_decay,
            "eps": self.eps,
            "inside": float(self.semantics == "keras"),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        g = self._penalised(p, g, lr, self.decay)
        slots[0] += g * g
        root = np.sqrt(slots[0] + self.eps) if self.semantics == "keras" else np.sqrt(slots[0]) + self.eps
        p -= lr / (1 + (t - 1) * self.lr_decay) * g / root


@named_fields
@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al., arXiv:2302.06675): steps of ``lr`` along a sign. Wants an lr 3 to 10 times below AdamW's.

    Parameters
    ----------
    lr : float or Schedule, default 1e-4
    betas : (float, float), default (0.9, 0.99)
        Weight of the running mean of g in the step, and its decay.
    weight_decay : float, default 0
        Decoupled: the parameter shrinks by ``lr * weight_decay``.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, or a beta outside [0, 1).
    """

    lr: float | Schedule = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    rule: ClassVar[str] = "lion"
    shrinks: ClassVar[bool] = True

    @property
    def slots(self) -> int:
        return 1

    def constants(self) -> dict[str, float]:
        return {"weight_decay": self.decay, "beta1": self.betas[0], "beta2": self.betas[1]}

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        (beta1, beta2), m = self.betas, slots[0]
        g = self._penalised(p, g, lr)
        p *= 1 - lr * self.weight_decay
        p -= lr * np.sign(m + (1 - beta1) * (g - m))
        m += (1 - beta2) * (g - m)


def _norm(x: Array) -> float:
    return math.sqrt(np.square(x, dtype=np.float64).sum())


@named_fields
@dataclass(frozen=True)
class LAMB(Optimizer):
    """LAMB (You et al., arXiv:1904.00962) for large batches: Adam's step, scaled to the norm of each tensor.

    Weights and bias of a layer are a tensor each. The step is ``lr * |p| / |u| * u``, or ``lr * u`` where a norm is 0,
    with ``u = m / (sqrt(v) + eps) + weight_decay * p``, both means corrected. Meant with
    :class:`fastbatch.schedules.Warmup`.

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-6
    weight_decay : float, default 0
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, eps = 0, or a beta outside [0, 1).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0

    rule: ClassVar[str] = "lamb"
    normed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_zero("eps")

    @property
    def slots(self) -> int:
        return 2

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        (beta1, beta2), (m, v) = self.betas, slots
        g = self._penalised(p, g, lr)
        m += (1 - beta1) * (g - m)
        v[:] = beta2 * v + (1 - beta2) * g * g
        u = m / (1 - beta1**t) / (np.sqrt(v) / math.sqrt(1 - beta2**t) + self.eps) + self.decay * p
        of_p, of_u = _norm(p), _norm(u)
        p -= (lr * of_p / of_u if of_p and of_u else lr) * u


@named_fields
@dataclass(frozen=True)
class LARS(Optimizer):
    """LARS (You et al., arXiv:1708.03888) for large batches: momentum whose rate follows the norms of each tensor.

    Weights and bias of a layer are a tensor each, with
    ``rate = lr * trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)``, or ``lr`` where a norm is 0, and
    ``buf = momentum * buf + rate * (g + weight_decay * p); p -= buf``. Meant with :class:`fastbatch.schedules.Warmup`.

    Parameters
    ----------
    lr : float or Schedule, default 1.0
    momentum : float, default 0.9
    weight_decay : float, default 0
    trust_coefficient : float, default 1e-3
    eps : float, default 0
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number.
    """

    lr: float | Schedule = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 1e-3
    eps: float = 0.0

    rule: ClassVar[str] = "lars"
    normed: ClassVar[bool] = True
    ahead: ClassVar[float] = 0.0  # Keras has no LARS, whose lr is far from a share of p

    @property
    def slots(self) -> int:
        return 1

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "momentum": self.momentum,
            "trust": self.trust_coefficient,
            "eps": self.eps,
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        g = self._penalised(p, g, lr)
        of_p, of_g = _norm(p), _norm(g)
        if of_p and of_g:
            lr = lr * self.trust_coefficient * of_p / (of_g + self.decay * of_p + self.eps)
        slots[0] = self.momentum * slots[0] + lr * (g + self.decay * p)
        p -= slots[0]


OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls for cls in (SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, Lion, LAMB, LARS)
}
