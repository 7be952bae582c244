"""Ctrl-C, and many threads at once."""

from __future__ import annotations

import _thread
import contextlib
import copy
import math
import os
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest
from helpers import BACKENDS, OUTPUTS, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch.data.orders import epoch_order
from fastbatch.ops import adam
from fastbatch.training import fit as fit_module
from fastbatch.training.door import fit_data

backends = pytest.mark.parametrize("backend", BACKENDS)

# The contract is 100 ms or one step; on a busy machine anything below this is not a hang.
BOUND = 2.0


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c():
    """A test run started in the background inherits "ignore"."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


WAYS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGINT),
    "raise_signal": lambda: signal.raise_signal(signal.SIGINT),
    "interrupt_main": _thread.interrupt_main,
}


class CtrlC(fb.Callback):
    """Sends SIGINT from another thread, `delay` seconds after the first chunk of a fit."""

    def __init__(self, way, delay):
        self.sent = None
        self.timer = threading.Timer(delay, self.send, [way])

    def send(self, way):
        self.sent = time.monotonic()
        way()

    def on_chunk_end(self, steps, logs):
        if not self.timer.is_alive() and self.sent is None:
            self.timer.start()


def _interrupted(trainer, x, y, way, delay=0.1, **options):
    """Fit until Ctrl-C; returns the seconds it took to come back."""
    ctrl_c = CtrlC(way, delay)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(x, y, epochs=10**7, callbacks=[ctrl_c], **options)
        seconds = time.monotonic() - ctrl_c.sent
    finally:
        ctrl_c.timer.cancel()
    print(f"back {1e3 * seconds:.1f} ms after the signal, {trainer.steps} steps made")
    assert seconds < BOUND
    return seconds


def _replay(trainer, x, y, batch):
    """A fresh trainer after as many steps of the same order, one by one."""
    made, twin = trainer.steps, make_trainer(**trainer.recipe)
    per_epoch = -(-len(x) // batch)
    for epoch in range(-(-made // per_epoch)):
        order = epoch_order(len(x), twin.seed, epoch, True, twin.backend)
        for step in range(min(per_epoch, made - epoch * per_epoch)):
            rows = order[step * batch : (step + 1) * batch]
            twin.step(x[rows], y[rows])
    return twin


def _trainer(**recipe):
    trainer = make_trainer(**recipe)
    trainer.recipe = recipe
    return trainer


@backends
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_stops_a_long_fit_between_two_steps(backend, way):
    x, y = make_data("cross_entropy", 2000, inputs=64)
    # about 0.1 ms a step on either backend: a few thousand steps to replay
    trainer = _trainer(loss="cross_entropy", sizes=(64, 64, OUTPUTS), dropout=0.2, seed=3, backend=backend)
    held = trainer.model.parameters
    _interrupted(trainer, x, y, WAYS[way], batch_size=64)
    assert np.isfinite(held).all()
    assert trainer.steps > 0
    twin = _replay(trainer, x, y, 64)
    assert_same_bits(held, twin.model.parameters)
    twin.epochs = trainer.epochs
    assert_same_trainer(trainer, twin)
    assert trainer.epochs == trainer.steps // 32 or trainer.steps % 32 == 0
    history = trainer.fit(x, y, batch_size=64)
    twin.fit(x, y, batch_size=64)
    assert len(history["loss"]) == 1
    assert_same_trainer(trainer, twin)


def test_ctrl_c_in_one_long_epoch_of_two_threads():
    # one epoch takes minutes: only the slices inside it can be what lets the signal in
    x, y = make_data("cross_entropy", 200_000, inputs=100)
    with fb.set_num_threads(2, exact=True):
        trainer = _trainer(loss="cross_entropy", sizes=(100, 300, 200, OUTPUTS), seed=1)
        _interrupted(trainer, x, y, WAYS["kill"], delay=0.05, batch_size=8)
        assert 0 < trainer.steps < 25_000
        assert trainer.epochs == 0
        assert trainer.history == {}
        twin = _replay(trainer, x, y, 8)
        assert_same_trainer(trainer, twin)


@backends
def test_ctrl_c_again_and_again(backend):
    x, y = make_data(n=500)
    trainer = make_trainer(backend=backend)
    for _ in range(5):
        before = trainer.steps
        _interrupted(trainer, x, y, WAYS["kill"], delay=0.01, batch_size=10)
        assert trainer.steps > before
        assert np.isfinite(trainer.model.parameters).all()
    other = threading.Thread(target=trainer.fit, args=(x, y), kwargs={"epochs": 2})
    epochs = trainer.epochs
    other.start()
    other.join()
    assert trainer.epochs == epochs + 2, "the interrupted fit has kept its lock: another thread cannot train"


def _go_on(trainer, x, y, callbacks):
    """The rest of the last fit, with the same data."""
    fit = trainer._fit
    data = fit_data(trainer.model, trainer.loss, trainer.seed, x, y, None, None, **fit.settings.of_data)
    return fit.run(trainer, data, callbacks)


def _assert_same_fits(trainer, history, alone, x, y, options):
    """Of a fit that went on, and one that is left alone."""
    alone.fit(x, y, **options)
    assert_same_trainer(trainer, alone)
    assert {**history, "time": None} == {**alone.history, "time": None}


@backends
def test_a_fit_goes_on_from_where_ctrl_c_has_left_it(backend, monkeypatch):
    """To the bit, with the history of a fit that was left alone."""
    monkeypatch.setattr(fit_module, "CHUNK", 0.002)
    x, y = make_data("cross_entropy", 120_000 if backend == "c" else 20_000, inputs=64)
    recipe = {"loss": "cross_entropy", "sizes": (64, 64, OUTPUTS), "dropout": 0.2, "seed": 3, "metrics": "accuracy"}
    trainer, alone = (make_trainer(**recipe, backend=backend) for _ in range(2))
    options = {"batch_size": 16, "epochs": 2, "validation_split": 0.1}
    _interrupt(lambda hooks: trainer.fit(x, y, callbacks=hooks, **options))
    for _ in range(2):
        assert trainer._fit.step > 0
        _interrupt(lambda hooks: _go_on(trainer, x, y, hooks))
    _assert_same_fits(trainer, _go_on(trainer, x, y, []), alone, x, y, options)


def _interrupt(call):
    """`call` with hooks that send Ctrl-C 1 ms after the first chunk: while the next one runs, most likely."""
    ctrl_c = CtrlC(WAYS["kill"], 0.001)
    with pytest.raises(KeyboardInterrupt):
        call([ctrl_c])


@backends
def test_ctrl_c_before_a_program_can_say_what_it_has_done(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=200)
    trainer, alone = (make_trainer(backend=backend, metrics="mae") for _ in range(2))
    options, run, steps = {"batch_size": 1, "epochs": 2}, trainer._program.run, []

    def interrupted(*arguments):
        run(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer._program, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, **options)
    while trainer._fit.step < 200:
        steps.append(trainer._fit.step)
        assert len(set(steps)) == len(steps), "it makes no progress"
        with pytest.raises(KeyboardInterrupt):
            _go_on(trainer, x, y, [])
    assert len(steps) > 2
    assert trainer.steps == 200
    monkeypatch.undo()
    _assert_same_fits(trainer, _go_on(trainer, x, y, []), alone, x, y, options)


@backends
def test_a_fit_goes_on_where_validation_was_interrupted(backend, monkeypatch):
    x, y = make_data(n=100)
    trainer, alone = (make_trainer(backend=backend, metrics="mae") for _ in range(2))
    options = {"epochs": 2, "validation_split": 0.1}
    evaluate, calls = fit_module.evaluate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*args)

    monkeypatch.setattr(fit_module, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, **options)
    assert (trainer.epochs, trainer.history) == (1, {})
    _assert_same_fits(trainer, _go_on(trainer, x, y, []), alone, x, y, options)


def test_ctrl_c_inside_the_update_of_the_reference(monkeypatch):
    """The reference's optimizer is Python: a signal may arrive between two of its statements."""
    x, y = make_data()
    trainer, twin = (make_trainer(backend="reference") for _ in range(2))
    trainer.step(x, y), twin.step(x, y)

    def sqrt(value):
        signal.raise_signal(signal.SIGINT)
        return math.sqrt(value)

    monkeypatch.setattr(adam, "math", types.SimpleNamespace(sqrt=sqrt))
    with pytest.raises(KeyboardInterrupt):
        trainer.step(x, y)
    monkeypatch.undo()
    if trainer.steps > 1:
        twin.step(x, y)
    assert_same_trainer(trainer, twin)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer")
def test_a_signal_handler_of_the_caller_runs_during_a_fit():
    x, y = make_data(n=5000, inputs=64)
    trainer = make_trainer(sizes=(64, 128, OUTPUTS))
    steps = []

    def handler(*_):
        steps.append(trainer.steps)
        if len(steps) == 3:
            trainer.stop_training = True

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        trainer.fit(x, y, batch_size=8, epochs=10**7)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(steps) >= 3
    assert steps == sorted(steps)
    assert trainer.steps >= steps[2] > 0


# -- one trainer, two threads --------------------------------------------------------------------------------------

GUARDED = {
    "fit": lambda t, x, y: t.fit(x, y),
    "step": lambda t, x, y: t.step(x, y),
    "partial_fit": lambda t, x, y: t.partial_fit(x, y),
    "gradients": lambda t, x, y: t.gradients(x, y),
    "gradient_norms": lambda t, x, y: t.gradient_norms(x, y),
    "forward": lambda t, x, y: t.forward(x),
    "backward": lambda t, x, y: t.backward(y),
    "update": lambda t, x, y: t.update(),
    "evaluate": lambda t, x, y: t.evaluate(x, y),
    "resume": lambda t, x, y: t.resume(x, y),
    "save": lambda t, x, y: t.save("never written"),
}


@backends
def test_a_second_thread_is_refused_and_disturbs_nothing(backend):
    x, y = make_data(n=100)
    trainer, alone = make_trainer(backend=backend), make_trainer(backend=backend)
    inside, leave = threading.Event(), threading.Event()

    def hold(steps, logs):
        inside.set()
        assert leave.wait(60)

    fit = threading.Thread(
        target=trainer.fit, args=(x, y), kwargs={"epochs": 2, "callbacks": [fb.LambdaCallback(on_chunk_end=hold)]}
    )
    fit.start()
    try:
        assert inside.wait(60)
        for call in GUARDED.values():
            with pytest.raises(fb.BusyError, match="one thread at a time"):
                call(trainer, x, y)
        z = trainer.predict(x)  # may be shared
        assert z.shape == y.shape
    finally:
        leave.set()
        fit.join()
    alone.fit(x, y, epochs=2)
    assert_same_trainer(trainer, alone)
    trainer.step(x, y)  # free again, for any thread


def test_threads_that_hammer_one_trainer_either_step_or_are_refused():
    x, y = make_data(n=64, inputs=64)
    trainer, alone = (make_trainer(sizes=(64, 128, OUTPUTS)) for _ in range(2))
    refused, odd = [0] * 4, []
    start = threading.Barrier(4)

    def hammer(k):
        start.wait()
        made, deadline = 0, time.monotonic() + 60
        while made < 50 and time.monotonic() < deadline:
            try:
                trainer.step(x, y)
                made += 1
            except fb.BusyError:
                refused[k] += 1
            except BaseException as error:
                odd.append(error)
                return
            time.sleep(1e-4)  # hands the GIL on, in the middle of the others' steps

    _all(hammer, 4)
    assert odd == []
    assert trainer.steps == 4 * 50
    print(f"{trainer.steps} steps made, {sum(refused)} refused")
    for _ in range(trainer.steps):
        alone.step(x, y)
    assert_same_trainer(trainer, alone)


def _all(work, count):
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_error_gives_the_trainer_back():
    x, y = make_data()
    trainer = make_trainer()
    with pytest.raises(fb.ShapeError):
        trainer.fit(x, y[:-1])
    losses = []
    thread = threading.Thread(target=lambda: losses.append(trainer.step(x, y)))
    thread.start()
    thread.join()
    assert len(losses) == 1


# -- many threads --------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside training"])
def test_many_threads_predict_at_once(backend, busy):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 40)).astype(np.float32)
    model = fb.MLP([40, 80, 7], activation="tanh")
    trainer = fb.Trainer(model, "mse", backend=backend)
    parts = [x[k : 600 + k] for k in range(6)]
    with fb.set_num_threads(2, exact=True), fb.set_backend(backend):
        expected = [model.predict(part) for part in parts]
        expected_by_trainer = [trainer.predict(part) for part in parts]
        fresh = model.copy()  # whose program the threads make at the same moment
        wrong, done, start = [], threading.Event(), threading.Barrier(6 + busy)

        def predict(k):
            try:
                start.wait()
                for _ in range(15):
                    for predicted, right in (
                        (fresh.predict(parts[k]), expected[k]),
                        (trainer.predict(parts[k]), expected_by_trainer[k]),
                    ):
                        if predicted.tobytes() != right.tobytes():
                            wrong.append(k)
            except BaseException as error:
                wrong.append(error)

        def train():
            other = make_trainer(sizes=(40, 90, OUTPUTS), backend=backend)
            rows, targets = make_data(n=64, inputs=40)
            start.wait()
            while not done.is_set():
                other.fit(rows, targets)

        beside = threading.Thread(target=train)
        if busy:
            beside.start()
        _all(predict, 6)
        done.set()
        if busy:
            beside.join()
    assert wrong == []


@backends
@pytest.mark.parametrize("threads", [1, 2])
def test_many_trainers_in_many_threads_give_the_bits_of_one_alone(backend, threads):
    x, y = make_data("cross_entropy", 200, inputs=30)

    def train(k, trainers):
        trainer = make_trainer(
            "cross_entropy", sizes=(30, 50 + k, OUTPUTS), dropout=0.2, seed=k, metrics="accuracy", backend=backend
        )
        for _ in range(3):
            trainer.fit(x, y, batch_size=16 + k, epochs=2, validation_split=0.2)
            trainer.gradients(x, y)
            trainer.evaluate(x, y)
        trainers[k] = trainer

    alone, together = [None] * 6, [None] * 6
    with fb.set_num_threads(threads, exact=True):
        for k in range(6):
            train(k, alone)
        _all(lambda k: train(k, together), 6)
    for a, b in zip(alone, together):
        assert b is not None, "a thread has died"
        assert_same_trainer(b, a)
        assert {**a.history, "time": None} == {**b.history, "time": None}


def test_copies_taken_while_others_train():
    x, y = make_data(n=64)
    trainer = make_trainer()
    trainer.fit(x, y)
    frozen = copy.deepcopy(trainer)
    results = [None] * 4

    def work(k):
        twin = copy.deepcopy(frozen)
        twin.fit(x, y, epochs=5)
        results[k] = twin

    _all(work, 4)
    trainer.fit(x, y, epochs=5)
    for twin in results:
        assert_same_trainer(twin, trainer)


PACKAGE = os.path.dirname(fb.__file__)


class AtLine:
    """Raises KeyboardInterrupt in front of the line of the library that is number `left` from here."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._line


@pytest.mark.parametrize("part", [pytest.param(k, marks=[pytest.mark.exhaustive] if k else []) for k in range(7)])
def test_ctrl_c_in_front_of_any_line_loses_nothing(part):
    """Every seventh line of a fit of two epochs, in the default tier."""
    x, y = make_data("cross_entropy", 40)

    def fresh():
        rate = fb.schedules.Cosine(0.1, 9)
        return make_trainer("cross_entropy", fb.SGD(lr=rate, momentum=0.9), dropout=0.1, metrics=["f1"], backend="c")

    options = {"batch_size": 16, "epochs": 2, "validation_split": 0.2, "augment": fb.augment.Mixup(0.3), "verbose": 0}
    whole, left, before = fresh(), part + 1, sys.gettrace()
    whole.fit(x, y, **options)
    while True:
        trainer, ctrl_c = fresh(), AtLine(left)
        sys.settrace(ctrl_c)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                trainer.fit(x, y, **options)
        finally:
            sys.settrace(before)
        if trainer._fit is None:
            trainer.fit(x, y, **options)
        trainer.resume(x, y)
        assert (trainer.steps, trainer.epochs) == (whole.steps, whole.epochs), left
        assert_same_bits(trainer.model.parameters, whole.model.parameters)
        assert trainer.history["loss"] == whole.history["loss"], left
        assert trainer.history["val_loss"] == whole.history["val_loss"], left
        if ctrl_c.left > 0:
            break
        left += 7
