"""The object behind `Trainer.fit`: what it hands to programs, what it keeps. How it goes on: test_interrupt."""

from __future__ import annotations

import copy
import json
import pickle
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_trainer, make_data, make_trainer

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
