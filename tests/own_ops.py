"""Operations of one's own that test_custom.py uses: a module, so that another process can import it."""

from __future__ import annotations

import math

import numpy as np

import fastbatch as fb


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def own_silu_slope(z):
    s = sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@fb.activation(derivative=own_silu_slope)
def own_silu(z):
    return z * sigmoid(z)


def own_huber_slope(a, y):
    return min(max(a - y, -1.0), 1.0)


@fb.loss(derivative=own_huber_slope)
def own_huber(a, y):
    e = abs(a - y)
    return 0.5 * e * e if e <= 1.0 else e - 0.5


@fb.optimizer(
    slots=2, beta1=0.9, beta2=0.999, constants=lambda lr, t, beta1, beta2: (
        1.0 - beta1, beta2, 1.0 - beta2, lr / (1.0 - beta1**t), 1.0 / math.sqrt(1.0 - beta2**t)
    )
)  # fmt: skip
def own_adam(p, g, m, v, take1, keep2, take2, rate, root):
    m = m + take1 * (g - m)
    v = keep2 * v + take2 * g * g
    return p - rate * m / (math.sqrt(v) * root + 1e-8), m, v


@fb.optimizer(slots=1, momentum=0.9)
def own_momentum(p, g, s, lr, t, momentum):
    s = momentum * s + g
    return p - lr * s, s
