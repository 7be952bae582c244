"""Rows drawn with replacement: which, how often, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

import fastbatch as fb
from fastbatch.data.orders import epoch_order
from fastbatch.ops.random import draws
from fastbatch.training.door import fit_data, sampling_of

BACKENDS = [row["name"] for row in fb.backends() if row["available"] and row["device"] == "cpu"]


def data(rows: int = 200):
    """Row i is named by its only input; class 0 is rare."""
    return np.arange(rows)[:, None], (np.arange(rows) % 10 > 0).astype(np.int64)


class Recorder:
    """A metric that is shown the targets in the order visited."""

    __name__ = "seen"

    def __init__(self):
        self.seen = []

    def __call__(self, y, outputs):
        self.seen.append(y.copy())
        return 0.0


def fitted(backend: str, y=None, loss="cross_entropy", **keywords):
    x, labels = data()
    seen = Recorder()
    trainer = fb.Trainer(fb.MLP([1, 3, 2]), loss, backend=backend, seed=3, metrics=[seen])
    trainer.fit(x, labels if y is None else y, batch_size=16, verbose=0, check_finite=False, **keywords)
    return trainer, seen.seen


@pytest.mark.parametrize("weight", [np.arange(7.0), np.array([0, 0, 3, 0, 1, 0, 0]), np.array([1e-300, 2e-300, 0])])
def test_frequencies(weight):
    n = 70_000
    found = np.bincount(draws(np.cumsum(weight), n, 5, 0), minlength=len(weight))
    share = weight / weight.sum()
    assert (found[weight == 0] == 0).all()
    assert (np.abs(found - n * share) <= 5 * np.sqrt(n * share * (1 - share))).all()


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("total", [1.0, 3.0, 2.0**-64, 1 + 2.0**-52, 2 - 2.0**-52])
def test_the_smallest_and_the_largest_word_draw_rows_with_a_weight(word, total, monkeypatch):
    words = [np.full(2, word, np.uint64)] * 4
    monkeypatch.setattr("fastbatch.ops.random.philox", lambda counter, key: words)
    assert draws(np.array([0.0, total, total]), 3, 0, 0).tolist() == [1, 1, 1]


def test_draws_are_those_of_seed_and_epoch():
    cumulative = np.cumsum(np.ones(50))
    orders = [epoch_order(50, seed, epoch, True, BACKENDS[0], cumulative) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert len({order.tobytes() for order in orders}) == 3
    assert (epoch_order(50, 1, 0, True, "reference", cumulative) == orders[0]).all()
    assert not (np.sort(orders[0]) == orders[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_balanced_draws_classes_equally_often(backend):
    _, seen = fitted(backend, sampling="balanced", epochs=20)
    rare = np.concatenate(seen) == 0
    assert len(rare) == 20 * 200
    assert abs(rare.mean() - 0.5) < 0.04
    _, seen = fitted(backend, epochs=20)
    assert abs((np.concatenate(seen) == 0).mean() - 0.1) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_held_out_and_rows_of_weight_0_are_not_drawn(backend):
    weight = np.ones(200)
    weight[:150] = 0
    x, _ = data()
    values = x.astype(np.float64)
    model = fb.MLP([1, 1])
    seen = Recorder()
    trainer = fb.Trainer(model, "mse", fb.SGD(1e-9), backend=backend, metrics=[seen])
    trainer.fit(x, values, sampling=weight, validation_split=0.5, epochs=3, verbose=0)
    drawn, held_out = np.concatenate(seen.seen[0::2]), seen.seen[1]
    assert drawn.min() >= 150
    assert not set(drawn.ravel().tolist()) & set(held_out.ravel().tolist())
    assert len(seen.seen[0]) == 100


def test_fits_add_up():
    weight = np.linspace(0, 1, 200)
    trainer, _ = fitted(BACKENDS[0], sampling=weight, epochs=3)
    again, _ = fitted(BACKENDS[0], sampling=weight, epochs=1)
    x, y = data()
    again.fit(x, y, batch_size=16, epochs=2, sampling=weight, verbose=0)
    assert again.model.parameters.tobytes() == trainer.model.parameters.tobytes()


def test_ignored_labels_are_not_drawn():
    y = data()[1]
    y[:100] = -100
    trainer, _ = fitted(BACKENDS[0], y, fb.losses.CrossEntropy(ignore_index=-100), sampling="balanced")
    plain, _ = fitted(BACKENDS[0], y, fb.losses.CrossEntropy(ignore_index=-100))
    assert trainer.steps == plain.steps
    given = fit_data(
        trainer.model, trainer.loss, 0, data()[0], y, None, None, validation_split=0.0, class_weight=None,
        check_finite=True,
    )  # fmt: skip
    cumulative = sampling_of(trainer.model, trainer.loss, given, "balanced", True)
    assert (cumulative[:100] == 0).all()


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"sampling": "balance"}, fb.ArgumentError, "did you mean 'balanced'"),
        ({"sampling": np.ones(3)}, fb.ShapeError, "sampling: expected shape"),
        ({"sampling": -np.ones(200)}, fb.DataError, "sampling: expected finite weights >= 0"),
        ({"sampling": np.zeros(200)}, fb.DataError, "sampling: expected weights above 0"),
        ({"sampling": np.ones(200), "shuffle": False}, fb.ArgumentError, "expected shuffle=True"),
        ({"sampling": "balanced", "loss": "mse", "y": np.zeros((200, 2))}, fb.ArgumentError, "integer labels"),
    ],
)
def test_what_is_refused(keywords, error, words):
    with pytest.raises(error, match=words):
        fitted(BACKENDS[0], **keywords)
