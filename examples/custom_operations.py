"""An activation, a loss and an optimizer of one's own, each beside the built-in that is nearest to it."""

import math
import time

import numpy as np

import fastbatch as fb


def softplus_tanh(z):
    """tanh(ln(1 + e^z)) from e^-|z|, which does not overflow."""
    e = np.exp(-abs(z))
    n = 1.0 + 2.0 * e if z >= 0.0 else e * (e + 2.0)
    return n / (n + 2.0 * e * e if z >= 0.0 else n + 2.0)


def mish_slope(z):
    t, e = softplus_tanh(z), np.exp(-abs(z))
    sigmoid = 1.0 / (1.0 + e) if z >= 0.0 else e / (1.0 + e)
    return t + z * sigmoid * (1.0 - t * t)


@fb.activation(derivative=mish_slope)
def mish(z):
    return z * softplus_tanh(z)


@fb.loss(derivative=lambda a, y: (a - y) / math.sqrt(1.0 + (a - y) * (a - y)))
def pseudo_huber(a, y):
    return math.sqrt(1.0 + (a - y) * (a - y)) - 1.0


@fb.optimizer(slots=1, momentum=0.9)
def sign_momentum(p, g, s, lr, t, momentum):
    s = momentum * s + (1.0 - momentum) * g
    return p - lr * (1.0 if s > 0.0 else -1.0 if s < 0.0 else 0.0), s


rng = np.random.default_rng(0)
X = rng.standard_normal((4096, 32)).astype(np.float32)
y = np.sin(X[:, :4]).sum(axis=1, keepdims=True) + 0.1 * rng.standard_t(2, (4096, 1)).astype(np.float32)

ROWS = [
    ("silu", "huber", fb.Lion(1e-3)),
    ("mish", "huber", fb.Lion(1e-3)),
    ("silu", "pseudo_huber", fb.Lion(1e-3)),
    ("silu", "huber", sign_momentum(1e-3)),
    ("mish", "pseudo_huber", sign_momentum(1e-3)),
]
print("activation  loss          optimizer       last loss   ms an epoch")
for activation, loss, optimizer in ROWS:
    trainer = fb.Trainer(fb.MLP([32, 64, 64, 1], activation=activation, seed=0), loss, optimizer)
    trainer.fit(X, y, epochs=1, verbose=0)  # compiles what is new
    start = time.perf_counter()
    history = trainer.fit(X, y, epochs=20, verbose=0)
    took = (time.perf_counter() - start) / 20 * 1e3
    print(f"{activation:11} {loss:13} {type(optimizer).__name__:15} {history['loss'][-1]:9.4f} {took:13.2f}")
    assert history["loss"][-1] < 0.5 * history["loss"][0]
