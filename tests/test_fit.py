"""The object behind `Trainer.fit`: what it hands to programs, what it keeps. How it goes on: test_interrupt."""

from __future__ import annotations

import copy
import json
import pickle
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch.training import fit as fit_module

backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
def test_rates_are_handed_over_in_pieces(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK_STEPS", 3)
    x, y = make_data(n=70)
    sliced, whole = make_trainer(backend=backend), make_trainer(backend=backend)
    ends, lengths, run = [], [], sliced._program.run

    def spy(feed, first, last, lrs, budget, sums):
        lengths.append((last - first, len(lrs)))
        return run(feed, first, last, lrs, budget, sums)

    monkeypatch.setattr(sliced._program, "run", spy)
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: ends.append(steps))
    sliced.fit(x, y, batch_size=10, epochs=2, callbacks=[hook])
    monkeypatch.undo()
    whole.fit(x, y, batch_size=10, epochs=2)
    assert_same_trainer(sliced, whole)
    assert ends == [3, 6, 7] * 2
    assert lengths == [(3, 3), (3, 3), (1, 1)] * 2


@backends
def test_an_optimizer_that_a_callback_sets_gives_the_next_rate(backend):
    x, y = make_data()
    trainer, twin = (make_trainer("mse", fb.SGD(lr=0.1), backend=backend) for _ in range(2))
    slower = fb.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(trainer, "optimizer", replace(trainer.optimizer, lr=0.01))
    )
    history = trainer.fit(x, y, epochs=2, callbacks=[slower])
    assert history["lr"] == [0.1, 0.01]
    twin.fit(x, y)
    twin.optimizer = fb.SGD(lr=0.01)
    twin.fit(x, y)
    assert_same_trainer(trainer, twin)


@backends
def test_a_trainer_keeps_neither_data_nor_callbacks(backend):
    """At once, not when the garbage collector comes by: a callback knows its trainer, which would close a circle."""
    x, y = make_data()
    trainer, hook = make_trainer(backend=backend, metrics="mae"), fb.LambdaCallback()
    trainer.fit(x, y, callbacks=[hook], validation_data=(x, y))
    ghosts = [weakref.ref(thing) for thing in (x, y, hook)]
    del x, y, hook
    assert [ghost() for ghost in ghosts] == [None] * 3
    assert trainer._fit.outputs is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_copy_made_by_a_callback_has_no_fit(duplicate):
    x, y = make_data()
    trainer, twins = make_trainer(), []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: twins.append(duplicate(trainer)))
    trainer.fit(x, y, callbacks=[hook])
    assert twins[0]._fit is None
    twins[0].epochs = trainer.epochs
    for one in (twins[0], trainer):
        one.fit(x, y)
    assert_same_trainer(twins[0], trainer)


def test_settings_are_plain():
    x, y = make_data("cross_entropy")
    trainer = make_trainer("cross_entropy")
    options = {"batch_size": np.int64(8), "epochs": np.int32(1), "shuffle": np.bool_(True), "drop_last": False}
    trainer.fit(x, y, **options, validation_split=np.float32(0.25), class_weight="balanced")
    found = asdict(trainer._fit.settings)
    assert json.loads(json.dumps(found)) == found
    assert found == {
        **options, "validation_split": 0.25, "class_weight": "balanced", "check_finite": True,
        "augment": [], "sampling": None,
        "micro_batch_size": None, "max_steps": None, "max_time": None,
    }  # fmt: skip


# -- an order of one's own ---------------------------------------------------------------------------------------------


@backends
def test_an_order_of_ones_own(backend):
    """Any rows in any order, asked for once an epoch by the trainer's count; the batches are those of single steps."""
    x, y = make_data(n=30)
    orders = [np.arange(30)[::-1], np.array([3, 3, 7], np.int32), np.r_[np.arange(30), np.arange(12)]]
    trainer, twin = (make_trainer(backend=backend) for _ in range(2))
    asked = []

    def order(epoch):
        asked.append(epoch)
        return orders[epoch]

    trainer.fit(x, y, batch_size=8, epochs=1, shuffle=order)
    history = trainer.fit(x, y, batch_size=8, epochs=2, shuffle=order)
    assert asked == [0, 1, 2]
    for rows in orders:
        for start in range(0, len(rows), 8):
            twin.step(x[rows[start : start + 8]], y[rows[start : start + 8]])
    assert_same_bits(trainer.model.parameters, twin.model.parameters)
    assert len(history["loss"]) == 2


@backends
def test_an_order_of_ones_own_with_the_rest_of_a_fit(backend):
    x, y = make_data("cross_entropy", n=30)
    trainer = make_trainer("cross_entropy", metrics=["accuracy"], backend=backend)
    history = trainer.fit(x, y, batch_size=8, shuffle=lambda epoch: np.arange(20), drop_last=True, epochs=2)
    assert trainer.steps == 4
    assert len(history["accuracy"]) == 2
    history = trainer.fit(x, y, batch_size=8, shuffle=lambda epoch: np.arange(5), drop_last=True)
    assert (trainer.steps, history["batch_size"]) == (5, [5])
    whole, stopped = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    settings = {"batch_size": 4, "epochs": 3, "shuffle": lambda epoch: np.roll(np.arange(30), epoch)}
    whole.fit(x, y, **settings)
    stop = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(stopped, "stop_training", epoch == 1))
    stopped.fit(x, y, callbacks=[stop], **settings)
    stopped.resume(x, y)
    assert_same_trainer(whole, stopped)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (lambda epoch: [0, 30], fb.DataError, r"shuffle\(0\): expected rows 0 .. 29, got values from 0 to 30"),
        (lambda epoch: [-1], fb.DataError, "expected rows 0 .. 29"),
        (lambda epoch: [0.0], fb.DTypeError, "indices of an integer dtype, got float64"),
        (lambda epoch: np.empty(0, int), fb.ShapeError, r"shape \(m,\) with m >= 1, got \(0,\)"),
        (lambda epoch: [[1]], fb.ShapeError, r"got \(1, 1\)"),
        ("yes", fb.ArgumentError, "shuffle: expected True or False"),
    ],
)
def test_orders_that_are_none(order, error, message):
    x, y = make_data(n=30)
    trainer = make_trainer()
    before = trainer.model.parameters.copy()
    with pytest.raises(error, match=message):
        trainer.fit(x, y, shuffle=order)
    assert_same_bits(trainer.model.parameters, before)
    for other in ({"validation_split": 0.2}, {"sampling": np.ones(30)}):
        with pytest.raises(fb.ArgumentError, match=f"expected shuffle=True or False with {next(iter(other))}"):
            trainer.fit(x, y, shuffle=lambda epoch: np.arange(30), **other)
