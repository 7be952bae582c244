"""Fifty steps by Keras' own train_on_batch and by a trainer of the same model; the largest differences, as JSON."""

from __future__ import annotations

import json

import keras
import numpy as np
from helpers import difference

import fastbatch.keras as fbk

L, O = keras.layers, keras.optimizers
SETTINGS = {
    "adam": (lambda: O.Adam(0.01), "sparse_categorical_crossentropy", "softmax", L.LayerNormalization),
    "sgd": (
        lambda: O.SGD(O.schedules.CosineDecay(0.05, 40, alpha=0.1), momentum=0.9, nesterov=True, weight_decay=0.01),
        "mse", None, L.BatchNormalization,
    ),
    "nadam": (lambda: O.Nadam(0.01, global_clipnorm=0.1), "binary_crossentropy", "sigmoid", None),
}  # fmt: skip

found = {}
for name, (optimizer, loss, end, norm) in SETTINGS.items():
    keras.utils.set_random_seed(1)
    # without a bias that a norm takes away again, whose gradient is rounding
    hidden = [L.Dense(16, use_bias=norm is None), *([norm()] if norm else []), L.Activation("tanh")]
    model = keras.Sequential([L.Input((7,)), *hidden, L.Dense(4, activation=end)])
    model.compile(optimizer=optimizer(), loss=loss)
    trainer, rng, losses = fbk.trainer_from_keras(model), np.random.default_rng(0), []
    for _ in range(50):
        x, labels = rng.standard_normal((32, 7)).astype(np.float32), rng.integers(0, 4, 32)
        y = labels if end == "softmax" else np.eye(4, dtype=np.float32)[labels]
        model.reset_metrics()
        losses.append([trainer.step(x, y), float(model.train_on_batch(x, y))])
    ours, theirs = np.array(losses).T
    weights, variances = [0.0], [0.0]
    for own, other in zip(trainer.model.get_weights(), fbk.from_keras(model).get_weights()):
        for k, (a, b) in enumerate((a, b) for a, b in zip(own, other) if a is not None):
            (variances if k == 3 else weights).append(float(difference(a, b)))
    found[name] = {"losses": difference(ours, theirs), "weights": max(weights), "variances": max(variances)}
print(json.dumps(found))
