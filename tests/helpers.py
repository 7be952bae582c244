"""Small data, small trainers, and what "the same" means: shared by the tests above the kernels."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastbatch as fb
from fastbatch import ops

INPUTS, OUTPUTS = 5, 4

BACKENDS = [
    pytest.param(
        row["name"],
        id=str(row["name"]),
        marks=pytest.mark.skipif(not row["available"], reason=f"backend {row['name']}: {row['reason']}"),
    )
    for row in fb.backends()
    if row["device"] == "cpu"
]


def make_data(loss: str = "mse", n: int = 70, inputs: int = INPUTS, outputs: int = OUTPUTS, seed: int = 0):
    """X (n, inputs) float32 and learnable targets of the kind that `loss` takes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, inputs), np.float32)
    z = x @ rng.standard_normal((inputs, outputs), np.float32)
    kind = ops.LOSSES[loss].targets
    if kind == "classes":
        return x, z.argmax(axis=1)
    if kind == "binary":
        return x, (z > 0).astype(np.float32)
    if kind in ("counts", "positive"):
        return x, np.exp(np.tanh(z)).round(0 if kind == "counts" else 3).astype(np.float32)
    return x, np.tanh(z)


def make_trainer(
    loss="mse",
    optimizer="adam",
    *,
    sizes=(INPUTS, 16, OUTPUTS),
    activation="tanh",
    dropout=0.0,
    norm=None,
    dtype="float32",
    seed=0,
    **options,
) -> fb.Trainer:
    model = fb.MLP(list(sizes), activation=activation, dropout=dropout, norm=norm, dtype=dtype, seed=seed)
    return fb.Trainer(model, loss, optimizer, seed=seed, **options)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    if not same_bits(got, expected):
        np.testing.assert_array_equal(got, expected, strict=True)
        pytest.fail("equal values of different bits: a zero has changed its sign")


def assert_same_trainer(got: fb.Trainer, expected: fb.Trainer) -> None:
    """Same parameters, statistics, counters and (by what one more step does to copies) optimizer state."""
    assert (got.steps, got.epochs) == (expected.steps, expected.epochs)
    assert_same_bits(got.model.parameters, expected.model.parameters)
    assert_same_bits(got.model.buffers, expected.model.buffers)
    x, y = make_data(expected.loss.name, 8, expected.model.input_size, expected.model.output_size, seed=99)
    twins = [copy.deepcopy(trainer) for trainer in (got, expected)]
    assert twins[0].step(x, y) == twins[1].step(x, y)
    assert_same_bits(twins[0].model.parameters, twins[1].model.parameters)
    assert not same_bits(twins[0].model.parameters, got.model.parameters), "a step that moves nothing shows nothing"


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """``||got - expected|| / ||expected||`` in float64."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected))


class Recorder(fb.Callback):
    """Writes down every hook."""

    def __init__(self, calls: list | None = None, name: str = "") -> None:
        self.calls = [] if calls is None else calls
        self.name = name

    def _note(self, hook: str, *arguments) -> None:
        self.calls.append((self.name + hook, *arguments))

    def on_train_begin(self):
        self._note("train_begin")

    def on_train_end(self):
        self._note("train_end")

    def on_epoch_begin(self, epoch, logs):
        self._note("epoch_begin", epoch, dict(logs))

    def on_epoch_end(self, epoch, logs):
        self._note("epoch_end", epoch, dict(logs))

    def on_chunk_end(self, steps, logs):
        self._note("chunk_end", steps, dict(logs))
