"""Batch sizes by the epoch, and limits that end a fit."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from helpers import BACKENDS, Recorder, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch.batching import Grow
from fastbatch.batching.sizes import as_plain, most_rows, rows_at
from fastbatch.data.orders import epoch_order
from fastbatch.training import fit as fit_module

backends = pytest.mark.parametrize("backend", BACKENDS)

SCHEDULES = {
    "grow": (Grow(8, every=2, max=40), [8, 8, 16, 16, 32, 32, 40]),
    "grow by a half": (Grow(5, factor=1.5, every=1), [5, 8, 11, 17, 25, 38, 57]),
    "dict": ({3: 30, 0: 10, 5: "full"}, [10, 10, 10, 30, 30, 70, 70]),
    "callable": (lambda epoch: 7 * (epoch + 1), [7, 14, 21, 28, 35, 42, 49]),
    "beyond the rows": (Grow(50, every=3), [50, 50, 50, 70, 70, 70, 70]),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


@backends
@schedules
def test_sizes_of_the_epochs(backend, name):
    """Each epoch is one of that size; history and hooks say it; fits go on where the last one ended."""
    schedule, sizes = SCHEDULES[name]
    x, y = make_data()
    whole, parts, by_hand = (make_trainer(backend=backend, dropout=0.2, metrics="mae") for _ in range(3))
    recorder = Recorder()
    history = whole.fit(x, y, batch_size=schedule, epochs=7, callbacks=[recorder])
    assert history["batch_size"] == sizes
    begun = [call[2] for call in recorder.calls if call[0] == "epoch_begin"]
    assert begun == [{"epochs": 7, "steps": -(-70 // size), "batch_size": size} for size in sizes]
    found = [parts.fit(x, y, batch_size=schedule, epochs=epochs) for epochs in (1, 3, 3)]
    assert [size for part in found for size in part["batch_size"]] == sizes
    losses = [by_hand.fit(x, y, batch_size=size)["loss"][0] for size in sizes]
    assert history["loss"] == losses
    assert_same_trainer(parts, whole)
    assert_same_trainer(by_hand, whole)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "callable"])
def test_schedules_are_notes_that_json_holds(name):
    schedule, sizes = SCHEDULES[name]
    x, y = make_data()
    trainer = make_trainer()
    trainer.fit(x, y, batch_size=schedule, epochs=1)
    settings = asdict(trainer._fit.settings)
    read = json.loads(json.dumps(settings))
    assert read == settings
    assert fit_module.Settings(**read) == trainer._fit.settings
    assert [min(rows_at(read["batch_size"], epoch), 70) for epoch in range(7)] == sizes
    assert min(most_rows(read["batch_size"], 6), 70) == max(sizes)


def test_memory_is_made_once_for_the_largest():
    x, y = make_data(n=600)
    trainer = make_trainer()
    if trainer.backend != "c":
        pytest.skip("the arena is the c backend's")
    rows = []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: rows.append(trainer._program._rows))
    trainer.fit(x, y, batch_size=Grow(8, every=1, max=512), epochs=5, callbacks=[hook])
    assert set(rows) == {128}  # what the fifth epoch takes
    trainer.fit(x, y, batch_size={0: 8, 6: 300, 20: 400}, epochs=3, micro_batch_size=200, callbacks=[hook])
    assert set(rows) == {128, 200}


def test_grow():
    assert Grow(32) == Grow(start=32, factor=2.0, every=10, max=4096)
    assert [Grow(32)(epoch) for epoch in (0, 9, 10, 19, 69, 70, 80, 10**18)] == [32, 32, 64, 64, 2048, 4096, 4096, 4096]
    assert Grow(3, 1e300, 1)(2) == 4096
    assert Grow(7, max=7)(100) == 7
    assert type(Grow(np.int64(3), np.float32(1.5), np.int32(2)).start) is int
    sizes = [Grow(10, factor=1.01, every=1, max=1000)(epoch) for epoch in range(600)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 1000
    with pytest.raises(fb.ArgumentError, match="Grow: epoch: expected an integer >= 0, got -1"):
        Grow(8)(-1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"start": 0}, r"Grow\(start=\): expected an integer >= 1, got 0"),
        ({"start": 8.0}, r"Grow\(start=\): expected an integer >= 1, got 8.0"),
        ({"start": 8, "factor": 1}, r"Grow\(factor=\): expected a finite number > 1, got 1"),
        ({"start": 8, "factor": float("inf")}, r"Grow\(factor=\): expected a finite number > 1, got inf"),
        ({"start": 8, "factor": "2"}, r"Grow\(factor=\): expected a finite number > 1, got '2'"),
        ({"start": 8, "every": 0}, r"Grow\(every=\): expected an integer >= 1, got 0"),
        ({"start": 8, "max": 7}, r"Grow\(max=\): expected an integer >= start, which is 8, got 7"),
    ],
)
def test_grow_refuses(values, words):
    with pytest.raises(fb.ArgumentError, match=words):
        Grow(**values)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("auto", "'auto', which a later version brings"),
        (Grow, r"expected an integer >= 1, \"full\", \"noise\", fb.batching.Grow, .*, a dict .* got <class"),
        ({}, r"dict with epoch 0, got epochs \[\]"),
        ({1: 32}, r"dict with epoch 0, got epochs \[1\]"),
        ({0: 32, -1: 8}, "batch_size: epoch: expected an integer >= 0, got -1"),
        ({0: 32, "5": 8}, "batch_size: epoch: expected an integer >= 0, got '5'"),
        ({0: 32, 5: 0}, 'batch_size: expected an integer >= 1 or "full", got 0'),
        ({"name": "Grow", "start": 8}, "batch_size: epoch: expected an integer >= 0, got 'name'"),
        (lambda epoch: 2.5, r"batch_size\(0\): expected an integer >= 1 or \"full\", got 2.5"),
        (lambda epoch: None, r"batch_size\(0\): expected"),
    ],
)
def test_what_is_no_batch_size(value, words):
    x, y = make_data()
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match=words):
        trainer.fit(x, y, batch_size=value)
    assert (trainer.steps, trainer.epochs) == (0, 0)


def test_a_function_is_asked_as_an_epoch_begins():
    x, y = make_data()
    trainer, asked = make_trainer(), []

    def size(epoch):
        asked.append((epoch, trainer.steps))
        return np.int64(35) if epoch < 2 else "many"

    with pytest.raises(fb.ArgumentError, match=r"batch_size\(2\): expected .* got 'many'"):
        trainer.fit(x, y, batch_size=size, epochs=5)
    assert asked == [(0, 0), (1, 2), (2, 4)]
    assert trainer.history["batch_size"] == [35, 35]
    assert most_rows(as_plain(size), 5) is None


# -- limits ------------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 14, 100])
def test_max_steps(backend, shuffle, steps):
    """Of 7 updates an epoch. The epoch of the last one ends with it: it is in the history, and it is counted."""
    x, y = make_data()
    trainer, twin = (make_trainer(backend=backend, metrics="mae", dropout=0.2) for _ in range(2))
    options = {"batch_size": 10, "shuffle": shuffle, "validation_data": (x, y)}
    recorder = Recorder()
    history = trainer.fit(x, y, epochs=3, max_steps=steps, callbacks=[recorder], **options)
    made = min(steps, 21)
    epochs, rest = -(-made // 7), made % 7 or 7
    assert (trainer.steps, trainer.epochs) == (made, epochs)
    assert all(len(values) == epochs for values in history.values())
    assert [call[0] for call in recorder.calls].count("epoch_end") == epochs
    if epochs > 1:
        twin.fit(x, y, epochs=epochs - 1, **options)
    order = epoch_order(70, 0, epochs - 1, shuffle, backend)
    order = np.arange(70) if order is None else order
    outputs, losses = [], []
    for step in range(rest):
        rows = order[10 * step : 10 * step + 10]
        outputs.append(twin.forward(x[rows]))
        losses.append(twin.step(x[rows], y[rows]))
    twin.epochs = epochs
    assert history["loss"][-1] == pytest.approx(np.mean(losses), rel=1e-12)
    visited = y[order[: 10 * rest]]
    assert history["mae"][-1] == pytest.approx(np.abs(np.concatenate(outputs) - visited).mean(), rel=1e-5)
    assert history["val_loss"][-1] == twin.evaluate(x, y)["loss"]
    assert_same_trainer(trainer, twin)
    for one in (trainer, twin):  # a second fit begins an epoch, and counts anew
        one.fit(x, y, max_steps=5, **options)
        assert one.steps == made + 5
    assert_same_trainer(trainer, twin)


@backends
def test_max_steps_counts_updates_of_accumulated_batches(backend):
    x, y = make_data()
    trainer = make_trainer(backend=backend, gradient_accumulation_steps=3, max_grad_norm=1.0)
    history = trainer.fit(x, y, batch_size=10, epochs=2, max_steps=5)
    assert (trainer.steps, trainer.epochs) == (5, 2)
    assert len(history["grad_norm"]) == 2


@backends
def test_max_time(backend):
    x, y = make_data(n=200)
    trainer = make_trainer(backend=backend)
    start = time.perf_counter()
    history = trainer.fit(x, y, batch_size=1, epochs=10**9, max_time=0.2)
    taken = time.perf_counter() - start
    print(f"{taken:.3f} s")
    assert 0.2 <= taken < 2
    assert trainer.steps > 0
    assert trainer.epochs == len(history["loss"])
    assert trainer._fit.seconds == pytest.approx(taken, abs=0.1)


@backends
@pytest.mark.parametrize("rows", [70, 60_000])
def test_the_shortest_time_is_an_update(backend, rows):
    """Time that callbacks take counts, too; also where it is over before the first update."""
    x, y = make_data(n=rows, inputs=64)
    trainer = make_trainer(sizes=(64, 300, 40, 4), backend=backend)
    slow = fb.LambdaCallback(on_train_begin=lambda: time.sleep(0.01))
    history = trainer.fit(x, y, batch_size=32, epochs=3, max_time=0.001, callbacks=[slow])
    assert trainer.steps == 1
    assert (trainer.epochs, len(history["loss"])) == (1, 1)


@backends
def test_a_limit_in_an_interrupted_validation(backend, monkeypatch):
    """What goes on has no update left to make, and the epoch is not lost."""
    from test_interrupt import _go_on

    x, y = make_data()
    trainer, alone = (make_trainer(backend=backend) for _ in range(2))
    options = {"batch_size": 10, "epochs": 3, "max_steps": 9, "validation_split": 0.2}
    evaluate, calls = fit_module.evaluate, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(fit_module, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, **options)
    history = _go_on(trainer, x, y, [])
    alone.fit(x, y, **options)
    assert {**history, "time": 0} == {**alone.history, "time": 0}
    assert len(history["loss"]) == 2
    assert_same_trainer(trainer, alone)
    assert _go_on(trainer, x, y, []) == history
    assert trainer.steps == 9


@backends
def test_a_limit_that_is_not_reached_changes_no_bit(backend):
    x, y = make_data()
    limited, plain = (make_trainer(backend=backend) for _ in range(2))
    limited.fit(x, y, epochs=2, max_steps=10**9, max_time=1e9)
    plain.fit(x, y, epochs=2)
    assert_same_bits(limited.model.parameters, plain.model.parameters)
    assert_same_trainer(limited, plain)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_max_steps_is_a_count(value):
    x, y = make_data()
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match="max_steps: expected an integer >= 1 or None, got"):
        trainer.fit(x, y, max_steps=value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "8"])
def test_max_time_is_a_number_above_0(value):
    x, y = make_data()
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match="max_time: expected a finite number > 0 or None, got"):
        trainer.fit(x, y, max_time=value)


@backends
@pytest.mark.parametrize("through", ["memory", "file"])
def test_limits_count_what_an_interrupted_fit_has_done(backend, through, tmp_path):
    """A fit that has reached its limit has ended, and resume adds nothing to it."""
    x, y = make_data()
    options = {"batch_size": {0: 10, 1: 14}, "epochs": 9, "max_steps": 10, "max_time": 1e6, "micro_batch_size": 5}
    recipe = {"backend": backend, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "metrics": "mae"}
    whole, trainer = make_trainer(**recipe), make_trainer(**recipe)
    whole.fit(x, y, **options)
    assert (whole.steps, whole.epochs) == (10, 3)

    class Stop(fb.Callback):
        every_n_steps = 1

        def on_chunk_end(self, steps, logs):
            self.trainer.stop_training = self.trainer.steps == 6

    trainer.fit(x, y, callbacks=[Stop()], **options)
    seconds = trainer._fit.seconds
    assert seconds > 0
    assert trainer._fit.updates == trainer.steps == 6
    if through == "file":
        trainer.save(tmp_path / "trainer")
        trainer = fb.Trainer.load(tmp_path / "trainer")
        assert trainer._fit.seconds == seconds
    for _ in range(2):
        trainer.resume(x, y)
        assert_same_trainer(trainer, whole)
        assert {**trainer.history, "time": 0} == {**whole.history, "time": 0}
    assert trainer._fit.seconds > seconds
