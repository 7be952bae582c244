"""Adam and those that follow it closely: AdamW and NAdam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import named_fields
from ..schedules import Schedule
from .optimizer import Optimizer

__all__ = ["Adam", "AdamW", "NAdam"]

Array = np.ndarray


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
        Added to the bias-corrected root, outside it (semantics sklearn and keras: to the root before it is corrected);
        above 0, or a parameter without a gradient would become 0 / 0.
    weight_decay : float, default 0
        Coupled L2: ``weight_decay * p`` is added to the gradient.
    amsgrad : bool, default False
        Divide by the root of the largest running mean of g^2 so far (Reddi et al., arXiv:1904.09237).
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, or a beta outside [0, 1).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_zero("eps")

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "adam_max" if self.amsgrad else "adam"

    @property
    def slots(self) -> int:
        return 3 if self.amsgrad else 2

    @property
    def _folded(self) -> bool:
        return self.semantics != "torch"

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "decoupled": float(self.shrinks),
            "folded": float(self._folded),
        }

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        (beta1, beta2), m, v = self.betas, slots[0], slots[1]
        g = self._penalised(p, g, lr, 0.0 if self.shrinks else self.decay)
        if self.shrinks:
            p *= 1 - lr * self.weight_decay
        m += (1 - beta1) * (g - m)
        v[:] = beta2 * v + (1 - beta2) * g * g
        if self.amsgrad:
            slots[2] = v = np.maximum(slots[2], v)
        root = math.sqrt(1 - beta2**t)
        p -= lr / (1 - beta1**t) * m / (np.sqrt(v) / root + (self.eps / root if self._folded else self.eps))


@named_fields
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101), torch.optim.AdamW.

    Parameters
    ----------
    lr, betas, eps, amsgrad
        As of :class:`Adam`.
    weight_decay : float, default 1e-2
        Shrinks the parameter by ``lr * weight_decay`` instead of entering the gradient.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        As :class:`Adam`.
    """

    shrinks: ClassVar[bool] = True
    weight_decay: float = 1e-2


@named_fields
@dataclass(frozen=True)
class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat 2016), torch.optim.NAdam.

    Parameters
    ----------
    lr : float or Schedule, default 2e-3
    betas, eps, weight_decay
        As of :class:`Adam`.
    momentum_decay : float, default 4e-3
        The momentum of update t is ``betas[0] * (1 - 0.5 * 0.96 ** (t * momentum_decay))``.
    decoupled_weight_decay : bool, default False
        Shrink the parameter by ``lr * weight_decay``, as AdamW does.
    **settings
        l1, decay_bias, frozen, groups, max_norm, semantics: see :class:`~fastbatch.ops.optimizer.Optimizer`.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number, eps = 0, or a beta outside [0, 1).
    """

    lr: float | Schedule = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False

    rule: ClassVar[str] = "nadam"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_zero("eps")

    @property
    def shrinks(self) -> bool:  # type: ignore[override]
        return self.decoupled_weight_decay

    @property
    def slots(self) -> int:
        return 2

    def constants(self) -> dict[str, float]:
        return {
            "weight_decay": self.decay,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "warmth": 0.96**self.momentum_decay,
            "decoupled": float(self.shrinks),
        }

    def _momentum(self, t: int) -> float:
        return self.betas[0] * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        (beta1, beta2), (m, v) = self.betas, slots
        g = self._penalised(p, g, lr, 0.0 if self.shrinks else self.decay)
        if self.shrinks:
            p *= 1 - lr * self.weight_decay
        m += (1 - beta1) * (g - m)
        v[:] = beta2 * v + (1 - beta2) * g * g
        # the product of the momenta is at most beta1^t, and of no account below 2^-60
        past = math.prod(map(self._momentum, range(1, t + 1))) if beta1**t > 2.0**-60 else 0.0
        now, then = self._momentum(t), self._momentum(t + 1)
        root = np.sqrt(v) / math.sqrt(1 - beta2**t) + self.eps
        p -= (lr * (1 - now) / (1 - past) * g + lr * then / (1 - past * then) * m) / root
