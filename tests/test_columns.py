"""Few rows on wide layers: products that threads share out by columns (csrc/rows.c) have the bits of one thread."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_same_bits, make_data

import fastbatch as fb

INPUTS, OUTPUTS = 41, 5
# wide enough for three threads: 128 columns each, and 32 where rows do not go round
WIDTHS = (500, 409)


def _layers(*between):
    """Two wide layers with `between` behind the first and, in the other order, before the last."""
    return [
        fb.Dense(WIDTHS[0]), fb.Activation("tanh"), *between,
        fb.Dense(WIDTHS[1]), *between[::-1], fb.Activation("silu"), fb.Dense(OUTPUTS),
    ]  # fmt: skip


NETWORKS = {
    "plain": _layers(),
    "dropout": _layers(fb.Dropout(0.3)),
    "layer-norm": _layers(fb.LayerNorm()),
    "batch-norm": _layers(fb.BatchNorm()),
    "ghosts": _layers(fb.BatchNorm(ghost_size=8), fb.Dropout(0.1)),
    "norm-first": [fb.LayerNorm(), *_layers()],
    "dropout-first": [fb.Dropout(0.2), *_layers()],
    "narrow-between": [fb.Dense(WIDTHS[0]), fb.Activation("relu"), fb.Dense(4), fb.Dense(WIDTHS[1]), fb.Dense(OUTPUTS)],
}
SETTINGS = {
    "sgd": {"optimizer": fb.SGD(lr=0.01)},
    "adam": {"optimizer": fb.Adam(lr=0.01)},
    "decay": {"optimizer": fb.SGD(lr=0.01, momentum=0.9, weight_decay=0.1)},
    "frozen": {"optimizer": fb.SGD(lr=0.01, frozen=(0,))},
    "clipped": {"optimizer": fb.Adam(lr=0.01), "max_grad_norm": 0.1},
    "float64": {"optimizer": fb.Adam(lr=0.01)},
}


def _everything(network, setting, batch):
    """Parameters and statistics of a fit and of steps, a gradient, outputs."""
    dtype = "float64" if setting == "float64" else "float32"
    model = fb.Sequential(NETWORKS[network], input_size=INPUTS, dtype=dtype, seed=3)
    trainer = fb.Trainer(model, "mse", seed=4, backend="c", **SETTINGS[setting])
    x, y = make_data("mse", 5 * batch + batch // 2, INPUTS, OUTPUTS)
    trainer.fit(x, y, batch_size=batch, epochs=2)
    trainer.step(x[:batch], y[:batch])
    _, gradient = trainer.gradients(x[:batch], y[:batch])
    return model.parameters.copy(), model.buffers.copy(), gradient, trainer.predict(x)


def _check(network, setting, batch):
    with fb.set_num_threads(1, exact=True):
        alone = _everything(network, setting, batch)
    assert np.isfinite(alone[0]).all()
    for threads in (2, 3):
        with fb.set_num_threads(threads, exact=True):
            for got, expected in zip(_everything(network, setting, batch), alone):
                assert_same_bits(got, expected)


# 7 rows are fewer than tiles go round, 100 as many columns as a thread may take; 300 are shared out by rows in part
@pytest.mark.parametrize("batch", [2, 7, 100, 300])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network, batch):
    _check(network, "adam", batch)


@pytest.mark.parametrize("batch", [1, 33])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, batch):
    _check("plain", setting, batch)
