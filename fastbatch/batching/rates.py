"""Learning rates for other batch sizes."""

from __future__ import annotations

import math
from typing import Any

from .. import checks
from ..errors import ArgumentError, as_float, named_keywords, unknown_name
from .noise import NoiseEstimate

__all__ = ["scale_lr"]

RULES = ("linear", "sqrt", "adascale")


@named_keywords
def scale_lr(
    lr: float, old_batch: int, new_batch: int, rule: str = "linear", noise_scale: float | NoiseEstimate | None = None
) -> float:
    """The learning rate for batches of `new_batch` rows of a training that is tuned at `old_batch`.

    With k = new_batch / old_batch:

    - "linear": ``lr * k`` [1]_, for SGD while the batch is well below the noise scale. It overshoots beyond.
    - "sqrt": ``lr * sqrt(k)``, for Adam and its like while noise dominates [2]_.
    - "adascale": ``lr * k * (noise_scale + old_batch) / (noise_scale + new_batch)``: linear below the noise scale, no
      more than ``1 + noise_scale / old_batch`` beyond. It is the gain of AdaScale SGD [3]_, and the ratio of the best
      rates ``1 / (1 + noise_scale / batch)`` of [4]_, eq. 2.6, with the simple noise scale.

    Parameters
    ----------
    lr : float
    old_batch, new_batch : int
        Rows of an update.
    rule : {"linear", "sqrt", "adascale"}, default "linear"
    noise_scale : float or NoiseEstimate, optional
        In rows, :func:`noise_scale`; inf is allowed. "adascale" needs it, the others do not look at it.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        For an unknown rule, a number out of range, and "adascale" without a noise scale.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, large minibatch SGD", 2017, arXiv:1706.02677.
    .. [2] S. Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms", 2022, arXiv:2205.10287.
    .. [3] T. Johnson et al., "AdaScale SGD", 2020, arXiv:2007.05105.
    .. [4] S. McCandlish et al., "An empirical model of large-batch training", 2018, arXiv:1812.06162.
    """
    lr = checks.number("scale_lr: lr", lr)
    old, new = checks.count("scale_lr: old_batch", old_batch), checks.count("scale_lr: new_batch", new_batch)
    noise = None if noise_scale is None else _rows(noise_scale)
    if rule == "linear":
        return lr * (new / old)
    if rule == "sqrt":
        return lr * math.sqrt(new / old)
    if rule != "adascale":
        raise unknown_name("scale_lr(rule=)", rule, RULES)
    if noise is None:
        raise ArgumentError("scale_lr(rule='adascale'): expected the noise scale, noise_scale=, got None")
    return lr * (new / old) * (1.0 if noise == math.inf else (noise + old) / (noise + new))


def _rows(value: Any) -> float:
    found = value.noise_scale if isinstance(value, NoiseEstimate) else as_float(value)
    if not found >= 0:
        raise ArgumentError(f"scale_lr: noise_scale: expected a number >= 0 or a NoiseEstimate, got {value!r}")
    return found
