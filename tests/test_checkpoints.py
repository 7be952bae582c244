"""Trainers in files, and fits that go on: to the bit, from wherever they were interrupted."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import killed
import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file, save

import fastbatch as fb
from fastbatch import ops, storage
from fastbatch.training import checkpoints
from fastbatch.training import fit as fit_module

backends = pytest.mark.parametrize("backend", BACKENDS)


class Stop(Exception):
    pass


def _assert_same_history(got, expected):
    """But for the time, and with types."""
    assert list(got) == list(expected)
    for name in expected.keys() - {"time"}:
        assert len(got[name]) == len(expected[name])
        for one, other in zip(got[name], expected[name]):
            assert type(one) is type(other)
            assert repr(one) == repr(other)
            assert not isinstance(one, np.ndarray) or same_bits(one, other)


def _assert_same(got, expected):
    """Trainers, to the last bit of what a file holds."""
    _assert_same_history(got.history, expected.history)
    assert (got.lr_factor, got.optimizer, got.loss, got.seed) == (
        expected.lr_factor, expected.optimizer, expected.loss, expected.seed,
    )  # fmt: skip
    assert_same_bits(got._slots, expected._slots)
    assert_same_trainer(got, expected)


def _reloaded(trainer, path, **options):
    trainer.save(path)
    return fb.Trainer.load(path, **options)


# -- there and back ------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("optimizer", ops.OPTIMIZERS)
def test_a_trainer_comes_back(optimizer, backend, tmp_path):
    x, y = make_data("cross_entropy")
    trainer = make_trainer("cross_entropy", optimizer, dropout=0.2, backend=backend, metrics=["top_2", "confusion"])
    trainer.fit(x, y, batch_size=16, epochs=2)
    back = _reloaded(trainer, tmp_path / "t")
    _assert_same(back, trainer)
    assert isinstance(back.history, fb.History)
    assert back.evaluate(x, y).keys() == trainer.evaluate(x, y).keys()
    trainer.fit(x, y, epochs=2), back.fit(x, y, epochs=2)
    _assert_same(back, trainer)


def test_every_argument_comes_back(tmp_path):
    schedule = fb.schedules.Warmup(3, fb.schedules.Cosine(0.1, 9))
    given = {"num_threads": 1, "seed": 7, "backend": "reference", "precision": "float32"}
    loss = fb.losses.CrossEntropy(weight=(1, 2, 0.1, 3), label_smoothing=0.1)
    trainer = fb.Trainer(fb.MLP([5, 3, 4], seed=2), loss, fb.AdamW(schedule, betas=(0.8, 0.9)), "accuracy", **given)
    assert given.keys() <= set(checkpoints._options(fb.Trainer))
    trainer.lr_factor = 0.3
    back = _reloaded(trainer, tmp_path / "t")
    for name in (*checkpoints._options(fb.Trainer), "loss", "optimizer", "metrics", "lr_factor"):
        assert getattr(back, name) == getattr(trainer, name), name
    assert (back.model.layers, back.model.seed) == (trainer.model.layers, trainer.model.seed)
    assert type(back.optimizer.betas) is tuple


def test_every_optimizer_and_loss_may_be_described():
    known = checkpoints._known()
    assert len(known) == sum(len(registry) for registry in checkpoints.REGISTRIES), "two classes share a name"


def test_the_views_of_a_loaded_trainer_are_live(tmp_path):
    x, y = make_data()
    trainer = make_trainer(sizes=(5, 300, 4))
    trainer.fit(x, y)
    back = _reloaded(trainer, tmp_path / "t")
    (w, _), flat = back.model.weights[0], back.model.parameters
    assert flat.ctypes.data % 64 == back._slots.ctypes.data % 64 == 0
    before = w.copy()
    back.step(x, y)
    assert not np.array_equal(w, before)
    assert np.shares_memory(w, flat)
    flat[:] = 0
    assert not back.predict(x).any()


@backends
def test_a_gradient_that_waits_for_its_update_comes_back(backend, tmp_path):
    x, y = make_data()
    trainer = make_trainer(backend=backend, dropout=0.2)
    trainer.backward(trainer.forward(x) - y)
    back = _reloaded(trainer, tmp_path / "t")
    for one in (trainer, back):
        one.backward(one.forward(x) - y)
        one.update()
    _assert_same(back, trainer)


def test_pickles_and_copies_are_what_they_were(tmp_path):
    trainer = make_trainer()
    trainer.fit(*make_data())
    back = _reloaded(trainer, tmp_path / "t")
    for twin in (pickle.loads(pickle.dumps(back)), copy.deepcopy(back)):
        _assert_same(twin, trainer)
        with pytest.raises(fb.ArgumentError, match="got one without any"):
            twin.resume(*make_data())


def test_a_file_is_plain_safetensors_with_json(tmp_path):
    trainer = make_trainer("mse", fb.SGD(lr=0.1))
    trainer.fit(*make_data())
    trainer.save(tmp_path / "t")
    tensors = load_file(tmp_path / "t")
    assert_same_bits(tensors["0.w"], trainer.model.weights[0][0])
    with safe_open(tmp_path / "t", "numpy") as file:
        found = json.loads(file.metadata()["trainer"])
    assert found["steps"] == trainer.steps
    assert found["arguments"]["optimizer"]["fields"]["lr"] == 0.1
    assert os.listdir(tmp_path) == ["t"]


def test_load_reads_the_model_out_of_a_trainers_file(tmp_path):
    trainer = make_trainer("cross_entropy")
    trainer.fit(*make_data("cross_entropy"))
    trainer.save(tmp_path / "t")
    model = fb.load(tmp_path / "t")
    assert_same_bits(model.parameters, trainer.model.parameters)
    assert model.loss == trainer.loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324])
def test_odd_numbers_of_history_come_back(value, tmp_path):
    trainer = make_trainer()
    trainer.history = fb.History(
        loss=[value, 1.0], long=[value] * 100, count=[3, 2**70], mixed=[3, *[value] * 99], table=[np.eye(2)] * 2
    )
    _assert_same_history(_reloaded(trainer, tmp_path / "t").history, trainer.history)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
    hnp.arrays(st.sampled_from(["f4", "f8", "i8", "u1", "?"]), hnp.array_shapes(min_dims=0, min_side=0)),
    st.sampled_from([np.float32(0.1), np.int8(3), np.bool_(True)]), st.lists(st.floats(), min_size=70, max_size=70),
)  # fmt: skip
KEYS = st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.tuples(st.integers(), st.text()), st.none())


@given(
    st.recursive(
        PLAIN,
        lambda inner: st.one_of(
            st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner), st.dictionaries(KEYS, inner)
        ),
    )
)
def test_values_come_back_from_json(value):
    tensors = {}
    text = json.dumps(storage.encode(value, tensors, "here"), allow_nan=False)
    back = storage.decode(json.loads(text), tensors, {})

    def assert_same(got, expected):
        assert type(got) is type(expected)
        if isinstance(expected, (list, tuple)):
            assert len(got) == len(expected)
            for pair in zip(got, expected):
                assert_same(*pair)
        elif isinstance(expected, dict):
            assert list(got) == list(expected)
            for key in expected:
                assert_same(got[key], expected[key])
        elif isinstance(expected, (np.ndarray, np.generic)):
            assert_same_bits(np.asarray(got), np.asarray(expected))
        else:
            assert repr(got) == repr(expected)

    assert_same(back, value)


# -- names of your own ---------------------------------------------------------------------------------------------


def off_by_much(y_true, y_pred):
    return float(abs(y_true - y_pred).max())


@dataclass(frozen=True)
class Halved(fb.schedules.Constant):  # not a Schedule itself: test_schedules lists those
    def _rates(self, t):
        return self.lr / (1 + t)


def test_functions_and_classes_of_the_user_are_named(tmp_path):
    x, y = make_data()
    trainer = make_trainer("mse", fb.SGD(Halved(0.2)), metrics=["mae", off_by_much])
    trainer.fit(x, y)
    trainer.save(tmp_path / "t")
    for custom, missing in (((), "Halved, off_by_much"), ([Halved], "off_by_much"), (off_by_much, "Halved")):
        with pytest.raises(fb.CheckpointError, match=rf"{missing}, which it names.*custom=\[{missing}\]"):
            fb.Trainer.load(tmp_path / "t", custom=custom)
    back = fb.Trainer.load(tmp_path / "t", custom=[off_by_much, Halved])
    _assert_same(back, trainer)
    _assert_same_history(back.fit(x, y), trainer.fit(x, y))
    for wrong in (3, [3], ["off_by_much"]):
        with pytest.raises(fb.ArgumentError, match=r"Trainer.load\(custom=\): expected functions and classes"):
            fb.Trainer.load(tmp_path / "t", custom=wrong)


# -- going on ------------------------------------------------------------------------------------------------------

ROWS, BATCH, EPOCHS = 50, 8, 6
STEPS = 5  # an epoch: 40 rows are trained on


def _hooks(folder):
    return [
        fb.EarlyStopping("val_loss", patience=2),
        fb.ReduceLROnPlateau("loss", patience=0, factor=0.5, threshold=0.5),
        fb.EMA(0.9, every_n_steps=2),
        fb.CSVLogger(folder / "log.csv"),
    ]


def _data():
    x, y = make_data("cross_entropy", ROWS)
    y[::4] = (y[::4] + 1) % 4
    return x, y


def _recipe(backend):
    rate = fb.schedules.OneCycle(0.06, 25)
    return make_trainer(
        "cross_entropy", fb.Adam(rate), dropout=0.2, metrics=["accuracy", "confusion"], backend=backend, seed=3
    )


def _fit(trainer, hooks):
    return trainer.fit(
        *_data(), BATCH, EPOCHS, validation_split=0.2, class_weight={0: 2.0}, sample_weight=np.arange(ROWS) + 1.0,
        callbacks=hooks,
    )  # fmt: skip


def _resume(trainer, hooks):
    return trainer.resume(*_data(), sample_weight=np.arange(ROWS) + 1.0, callbacks=hooks)


class At(fb.Callback):
    """Acts once, behind update `step`; at the end of an epoch instead of the chunk where `closed`."""

    every_n_steps = 1

    def __init__(self, step, act, closed=False):
        self.step, self.act, self.closed = step, act, closed

    def _look(self):
        if self.trainer.steps == self.step:
            self.step = None
            self.act(self.trainer)

    def on_chunk_end(self, steps, logs):
        if not self.closed:
            self._look()

    def on_epoch_end(self, epoch, logs):
        if self.closed:
            self._look()


@pytest.fixture(scope="module", params=BACKENDS)
def alone(request, tmp_path_factory):
    """A fit that nothing interrupts, its average, its log and its backend."""
    folder = tmp_path_factory.mktemp("alone")
    trainer, hooks = _recipe(request.param), _hooks(folder)
    _fit(trainer, hooks)
    assert 2 < hooks[0].stopped_epoch < EPOCHS - 1, "early stopping should end it, and not at once"
    assert trainer.lr_factor < 1
    return trainer, hooks[2].parameters, folder / "log.csv", request.param


def _raise(trainer):
    raise Stop


def _interrupt(trainer):
    raise KeyboardInterrupt


def _stop(trainer):
    trainer.stop_training = True


POINTS = [(step, False) for step in range(1, 4 * STEPS)] + [(STEPS, True), (2 * STEPS, True)]


def _without_time(log):
    return [line.rsplit(",", 1)[0] for line in log.read_text().splitlines()]


def _check_end(trainer, hooks, folder, alone):
    """What training, average and log have come to."""
    _assert_same(trainer, alone[0])
    assert_same_bits(hooks[2].parameters, alone[1])
    assert _without_time(folder / "log.csv") == _without_time(alone[2])


@pytest.mark.parametrize(("step", "closed"), POINTS)
def test_a_file_written_behind_any_update_goes_on(step, closed, alone, tmp_path):
    """What is trained behind the file is lost with its process; a new one makes it again."""
    first, hooks = _recipe(alone[3]), _hooks(tmp_path)
    _fit(first, [*hooks, At(step, lambda trainer: trainer.save(tmp_path / "t"), closed)])
    _check_end(first, hooks, tmp_path, alone)
    back, hooks = fb.Trainer.load(tmp_path / "t"), _hooks(tmp_path)
    assert back.steps == step
    assert len(back.history.get("loss", [])) == (step if closed else step - 1) // STEPS
    history = _resume(back, hooks)
    assert history is back.history
    _check_end(back, hooks, tmp_path, alone)


@pytest.mark.parametrize("act", [_raise, _interrupt, _stop])
@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize(("step", "closed"), [(1, False), (7, False), (10, False), (10, True), (13, False)])
@pytest.mark.parametrize("place", [0, 4])
def test_an_interrupted_fit_goes_on(act, through, step, closed, place, alone, tmp_path):
    """With the callbacks behind the one that raises, too: they see the same epochs and updates."""
    trainer, hooks = _recipe(alone[3]), _hooks(tmp_path)
    hooks.insert(place, At(step, act, closed))
    if act is _stop:
        _fit(trainer, hooks)
    else:
        with pytest.raises((Stop, KeyboardInterrupt)):
            _fit(trainer, hooks)
    assert trainer.steps == step
    if through == "file":
        trainer = _reloaded(trainer, tmp_path / "t")
    hooks = _hooks(tmp_path)
    _resume(trainer, hooks)
    _check_end(trainer, hooks, tmp_path, alone)
    before = trainer.model.parameters.copy()
    assert _resume(trainer, []) is trainer.history  # finished
    assert_same_bits(trainer.model.parameters, before)
    back = _reloaded(trainer, tmp_path / "end")
    _assert_same_history(_resume(back, []), alone[0].history)


def test_again_and_again_with_the_same_callbacks(alone, tmp_path):
    trainer, hooks = _recipe(alone[3]), _hooks(tmp_path)
    with pytest.raises(Stop):
        _fit(trainer, [*hooks, At(3, _raise)])
    for step in (4, 5, 9, 10, 16):
        with pytest.raises(Stop):
            _resume(trainer, [*hooks, At(step, _raise)])
    _resume(trainer, hooks)
    _check_end(trainer, hooks, tmp_path, alone)


def test_a_file_of_the_epoch_that_early_stopping_ends_holds_the_end(alone, tmp_path):
    """Killed between the checkpoint and the best weights: these are put back, and nothing more is trained."""
    trainer = _recipe(alone[3])
    _fit(trainer, [*_hooks(tmp_path), fb.ModelCheckpoint(tmp_path / "t")])
    back = fb.Trainer.load(tmp_path / "t")
    assert not np.array_equal(back.model.parameters, trainer.model.parameters)
    hooks = _hooks(tmp_path)
    _resume(back, hooks)
    _check_end(back, hooks, tmp_path, alone)


@backends
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_fit_with_validation_data_goes_on(backend, shuffle, drop_last, tmp_path):
    x, y = make_data(n=45)
    held = make_data(n=9, seed=1)
    options = {"batch_size": 10, "epochs": 3, "shuffle": shuffle, "drop_last": drop_last, "validation_data": held}
    trainer, whole = (make_trainer(backend=backend) for _ in range(2))
    whole.fit(x, y, **options)
    with pytest.raises(Stop):
        trainer.fit(x, y, **options, callbacks=[At(6, _raise)])
    back = _reloaded(trainer, tmp_path / "t")
    back.resume(x, y, validation_data=held)
    _assert_same(back, whole)


@backends
def test_a_file_written_during_validation_goes_on(backend, tmp_path, monkeypatch):
    """All updates of the epoch are made and counted, and its metrics are those of its own order."""
    recipe = {"backend": backend, "metrics": ["mae", "r2"]}
    trainer, whole = make_trainer(**recipe), make_trainer(**recipe)
    options = {"batch_size": 10, "epochs": 3, "validation_split": 0.2, "sample_weight": np.arange(70) + 1.0}
    whole.fit(X, Y, **options)

    def killed(*_):
        trainer.save(tmp_path / "t")
        raise Stop

    monkeypatch.setattr(fit_module, "evaluate", killed)
    with pytest.raises(Stop):
        trainer.fit(X, Y, **options)
    monkeypatch.undo()
    back = fb.Trainer.load(tmp_path / "t")
    assert (back.epochs, back.history) == (1, {})
    back.resume(X, Y, sample_weight=options["sample_weight"])
    _assert_same(back, whole)


def test_a_state_is_a_copy():
    class Counts(fb.Callback):
        """Hands out what it works with."""

        def __init__(self):
            self.updates = []

        def on_train_begin(self):
            self.updates.clear()

        def on_chunk_end(self, steps, logs):
            self.updates.append(self.trainer.steps)

        def get_state(self):
            return {"updates": self.updates}

        def set_state(self, state):
            self.updates.extend(state["updates"])

    hook = Counts()
    trainer = _interrupted([hook])
    trainer.resume(X, Y, callbacks=[hook, At(0, _stop)])
    assert hook.updates == list(range(1, 22))


def test_what_was_set_on_the_trainer_is_in_the_file(tmp_path):
    x, y = make_data()
    trainer, whole = (make_trainer("mse", fb.SGD(lr=0.1)) for _ in range(2))

    def slower(trainer):
        trainer.optimizer = replace(trainer.optimizer, lr=0.01)

    whole.fit(x, y, batch_size=10, epochs=2, callbacks=[At(3, slower)])
    with pytest.raises(Stop):
        trainer.fit(x, y, batch_size=10, epochs=2, callbacks=[At(3, slower), At(5, _raise)])
    back = _reloaded(trainer, tmp_path / "t")
    back.resume(x, y)
    _assert_same(back, whole)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer")
def test_a_signal_handler_may_save(tmp_path):
    """It runs between any two chunks, also before the fit has counted what the last one made."""
    x, y = make_data("cross_entropy", 20_000, inputs=64)
    recipe = {"loss": "cross_entropy", "sizes": (64, 64, 4), "dropout": 0.2, "metrics": "accuracy"}
    trainer, whole = make_trainer(**recipe), make_trainer(**recipe)
    files, ended = [], []

    def handler(*_):
        if ended:  # the last signal may be heard behind the fit, and must not set the clock again
            return
        files.append(trainer.steps)
        trainer.save(tmp_path / str(len(files) - 1))
        if len(files) < 4:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # not before this one has returned

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.013)
    try:
        trainer.fit(x, y, batch_size=16, epochs=4)
    finally:
        ended.append(True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    whole.fit(x, y, batch_size=16, epochs=4)
    _assert_same(trainer, whole)
    assert files
    for k, steps in enumerate(files):
        back = fb.Trainer.load(tmp_path / str(k))
        assert back.steps == steps
        back.resume(x, y)
        _assert_same(back, whole)


# -- what cannot go on ---------------------------------------------------------------------------------------------


def _interrupted(hooks=(), loss="mse", **options):
    trainer = make_trainer(loss)
    with pytest.raises(Stop):
        trainer.fit(*make_data(loss), batch_size=10, epochs=3, callbacks=[*hooks, At(9, _raise)], **options)
    return trainer


def _refused(trainer, error, words, *data, **options):
    before = copy.deepcopy(trainer)
    with pytest.raises(error, match=words):
        trainer.resume(*data, **options)
    assert_same_trainer(trainer, before)
    assert trainer.history == before.history


X, Y = make_data()
OTHERS = {
    "fewer rows": ((X[:-1], Y[:-1]), {}, r"the X of .*, float32 \(70, 5\), got float32 \(69, 5\)"),
    "X": ((X + 1e-6, Y), {}, r"the X of the interrupted fit, float32 \(70, 5\), got other values"),
    "order": ((X[::-1], Y[::-1]), {}, "the X of"),
    "y": ((X, Y + 1), {}, "the y of the interrupted fit"),
    "weights": ((X, Y), {"sample_weight": np.ones(70)}, r"the row weights of .*, none, got float64 \(70,\)"),
    "validation": ((X, Y), {"validation_data": (X, Y)}, r"the validation X of .*, none, got float32 \(70, 5\)"),
}


@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_data_are_refused(name, through, tmp_path):
    data, options, words = OTHERS[name]
    trainer = _interrupted()
    if through == "file":
        trainer = _reloaded(trainer, tmp_path / "t")
    _refused(trainer, fb.DataError, words, *data, **options)
    trainer.resume(X, Y)
    assert trainer.steps == 21


def test_data_that_are_missing_are_refused():
    trainer = _interrupted(validation_data=(X, Y, np.ones(70)), sample_weight=np.ones(70))
    weight = {"sample_weight": np.ones(70)}
    _refused(trainer, fb.DataError, "row weights of .*got none", X, Y, validation_data=(X, Y, np.ones(70)))
    _refused(trainer, fb.DataError, "validation X of .*got none", X, Y, **weight)
    _refused(trainer, fb.DataError, "validation row weights of .*got none", X, Y, **weight, validation_data=(X, Y))
    trainer.resume(X, Y, **weight, validation_data=(X, Y, np.ones(70)))


def test_large_data_are_sampled_from_end_to_end():
    x, y = make_data(n=100_000, inputs=300)
    trainer = make_trainer(sizes=(300, 2, 4))
    with pytest.raises(Stop):
        trainer.fit(x, y, batch_size=50_000, epochs=3, callbacks=[At(1, _raise)])
    for row, column in ((0, 0), (0, 299), (99_999, 0), (99_999, 299)):
        kept = x[row, column]
        x[row, column] += 1
        _refused(trainer, fb.DataError, "X of", x, y)
        x[row, column] = kept
    trainer.resume(x.astype(np.float64), y)  # the same behind the door


def test_a_trainer_without_a_fit():
    _refused(make_trainer(), fb.ArgumentError, "expected a trainer with an interrupted fit, got one without any", X, Y)


@pytest.mark.parametrize("through", ["memory", "file"])
def test_updates_since_the_fit_are_refused(through, tmp_path):
    trainer = _interrupted()
    trainer.step(X, Y)
    if through == "file":
        trainer = _reloaded(trainer, tmp_path / "t")
    _refused(trainer, fb.ArgumentError, "after 9 updates, got 10", X, Y)


def test_a_running_fit_is_not_resumed():
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match="expected a fit that has ended, got one that is running"):
        trainer.fit(X, Y, callbacks=[At(1, lambda trainer: trainer.resume(X, Y))])


def test_callbacks_that_steer_are_needed_again():
    stopping = {"monitor": "loss"}
    trainer = _interrupted([fb.EarlyStopping(**stopping), fb.ReduceLROnPlateau("loss")])
    words = r"resume\(callbacks=\): expected those of the interrupted fit again, got none for "
    _refused(trainer, fb.ArgumentError, words + "EarlyStopping, ReduceLROnPlateau", X, Y)
    _refused(trainer, fb.ArgumentError, words + "EarlyStopping", X, Y, callbacks=[fb.ReduceLROnPlateau("loss")])
    trainer.resume(X, Y, callbacks=[fb.ReduceLROnPlateau("loss"), fb.EarlyStopping(**stopping)])


def test_two_callbacks_of_one_class_get_their_states_in_order():
    kinds = ("loss", "val_loss")
    trainer = _interrupted([fb.EarlyStopping(kind, patience=9) for kind in kinds], validation_split=0.2)
    new = [fb.EarlyStopping(kind, patience=9) for kind in kinds]
    trainer.resume(X, Y, callbacks=new)
    assert [hook.best for hook in new] == [min(trainer.history[kind]) for kind in kinds]


def test_a_callback_that_steers_and_was_not_there_is_warned_of():
    trainer = _interrupted()
    with pytest.warns(RuntimeWarning, match="EarlyStopping was not part of the interrupted fit") as caught:
        trainer.resume(X, Y, callbacks=[fb.EarlyStopping("loss")])
    assert caught[0].filename == __file__


def test_callbacks_that_only_look_may_come_and_go(tmp_path):
    trainer, whole = _interrupted([fb.EMA(), fb.ModelCheckpoint(tmp_path / "t")]), make_trainer()
    trainer.resume(X, Y, callbacks=[fb.CSVLogger(tmp_path / "log.csv")])
    whole.fit(X, Y, batch_size=10, epochs=3)
    _assert_same(trainer, whole)


def test_a_state_that_no_file_can_hold(tmp_path):
    class Odd(fb.Callback):
        def get_state(self):
            return {"thing": [object()]}

    (tmp_path / "t").write_bytes(b"old")
    trainer = _interrupted([Odd()])
    with pytest.raises(fb.CheckpointError, match=r"callbacks/0/2/thing/0: expected numbers.*got object"):
        trainer.save(tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == b"old"


def test_a_callback_that_cannot_go_on_leaves_the_fit_as_it_was(tmp_path):
    log = tmp_path / "log.csv"
    trainer = _interrupted([fb.EarlyStopping("loss"), fb.CSVLogger(log)])
    rows = log.read_bytes()
    log.write_bytes(b"")
    hooks = [fb.EarlyStopping("loss"), fb.CSVLogger(log)]
    _refused(trainer, fb.ArgumentError, "bytes of the interrupted fit, got 0", X, Y, callbacks=hooks)
    log.write_bytes(rows)
    trainer.resume(X, Y, callbacks=hooks)
    assert len(log.read_text().splitlines()) == 4


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """The file of an interrupted fit."""
    _interrupted([fb.EarlyStopping("loss")]).save(tmp_path / "saved")
    return tmp_path / "saved"


def _unreadable(path, *words, load=fb.Trainer.load):
    with pytest.raises(fb.CheckpointError) as caught:
        load(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def _parts(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return load_file(path), json.loads(data[8 : 8 + length])["__metadata__"]


def _rewrite(path, change):
    """The file with another description, as if it had been written so."""
    tensors, metadata = _parts(path)
    state = json.loads(metadata["trainer"])
    change(state)
    metadata["trainer"] = json.dumps(state)
    metadata["crc32"] = storage.checksum(tensors, metadata)
    path.write_bytes(save(tensors, metadata))


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_truncated_file(saved, cut):
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) * cut // 100])
    _unreadable(saved, "safetensors")


def test_no_damaged_byte_goes_unnoticed(saved):
    data = saved.read_bytes()
    for position in range(0, len(data), 97):
        broken = bytearray(data)
        broken[position] ^= 0x11
        saved.write_bytes(broken)
        _unreadable(saved)
    # the times in a file move what the steps above hit; without its name the checksum would not be looked for
    saved.write_bytes(data.replace(b'"crc32"', b'"crc33"'))
    _unreadable(saved, "checksum")
    for position in range(len(data) - 8, len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        saved.write_bytes(broken)
        _unreadable(saved, "checksum")
        _unreadable(saved, "checksum", load=fb.load)


def test_foreign_files(saved, tmp_path):
    make_trainer().model.save(tmp_path / "model")
    _unreadable(tmp_path / "model", "expected a trainer, got a model; fastbatch.load reads it")
    (tmp_path / "other").write_bytes(save({"w": np.zeros(3)}))
    _unreadable(tmp_path / "other", "another safetensors file")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    _unreadable(tmp_path / "pickle", "unreadable")
    with pytest.raises(FileNotFoundError):
        fb.Trainer.load(tmp_path / "nothing")


def test_a_newer_format_is_refused_by_name(saved):
    tensors, metadata = _parts(saved)
    saved.write_bytes(save(tensors, {**metadata, "format_version": str(storage.FORMAT_VERSION + 1)}))
    _unreadable(saved, f"got {storage.FORMAT_VERSION + 1}", "newer fastbatch", "pip install -U fastbatch")


def test_fields_that_an_older_version_did_not_have_take_their_defaults(saved):
    def older(state):
        del state["arguments"]["precision"], state["arguments"]["optimizer"]["fields"]["eps"]
        del state["fit"]["progress"]["counted"], state["attributes"]["lr_factor"]

    _rewrite(saved, older)
    back, whole = fb.Trainer.load(saved), make_trainer()
    back.resume(X, Y, callbacks=[fb.EarlyStopping("loss")])
    whole.fit(X, Y, batch_size=10, epochs=3)
    _assert_same(back, whole)


DAMAGE = {
    "steps": lambda s: s.update(steps="many"),
    "no slots": lambda s: s.pop("slots"),
    "slots": lambda s: s.update(slots={"!": "array", "key": "0.w"}),
    "no tensor": lambda s: s.update(slots={"!": "array", "key": "nothing"}),
    "kind": lambda s: s.update(slots={"!": "odd"}),
    "loss": lambda s: s["arguments"].update(loss="nothing"),
    "keyword": lambda s: s["arguments"].update(speed=3),
    "lr": lambda s: s["arguments"]["optimizer"]["fields"].update(lr=-1),
    "settings": lambda s: s["fit"]["settings"]["fields"].update(epochs=-1),
    "sums": lambda s: s["fit"]["progress"].update(sums=[1, 2]),
    "history": lambda s: s.update(history=3),
    "all": lambda s: s.clear(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_description(saved, name):
    _rewrite(saved, DAMAGE[name])
    _unreadable(saved, "description of the trainer is damaged")


def test_an_unknown_class_is_named(saved):
    _rewrite(saved, lambda s: s["arguments"]["optimizer"].update(name="Muon"))
    _unreadable(saved, "Muon", "custom=[Muon]")


@pytest.mark.parametrize("name", ["backend", "target", "fastbatch"])
def test_a_trainer_that_was_moved_says_so(saved, name):
    _rewrite(saved, lambda s: s["machine"].update({name: "elsewhere"}))
    with pytest.warns(RuntimeWarning, match=rf"written with {name} elsewhere \(here .*bits are not promised") as caught:
        back = fb.Trainer.load(saved)
    assert caught[0].filename == __file__
    back.resume(X, Y, callbacks=[fb.EarlyStopping("loss")])
    assert back.steps == 21


def test_a_backend_that_is_missing_here_is_replaced_and_named(saved):
    def moved(state):
        state["machine"]["backend"] = state["arguments"]["backend"] = "cuda"

    _rewrite(saved, moved)
    with pytest.warns(RuntimeWarning, match="written with backend cuda"):
        assert fb.Trainer.load(saved).backend in ("c", "reference")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file(fails, error, saved, monkeypatch):
    def fail(*_):
        raise error

    old, trainer = saved.read_bytes(), make_trainer()
    trainer.fit(X, Y)
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(type(error)):
        trainer.save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == old
    assert os.listdir(saved.parent) == [saved.name]


def test_what_is_renamed_is_on_the_disk_and_so_is_the_name(tmp_path, monkeypatch):
    calls = []

    def spy(name, kind):
        real = getattr(os, name)

        def called(*arguments):
            calls.append(f"{name} {kind(*arguments)}")
            return real(*arguments)

        monkeypatch.setattr(os, name, called)

    spy("fsync", lambda handle: "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
    spy("replace", lambda old, new: new.name)
    make_trainer().save(tmp_path / "t")
    if os.path.isdir("/proc/self/fd"):
        assert calls == ["fsync file", "replace t", "fsync folder"]


# -- ModelCheckpoint -----------------------------------------------------------------------------------------------


@backends
def test_every_file_of_a_model_checkpoint_goes_on(backend, tmp_path):
    trainer, whole = (make_trainer(backend=backend, dropout=0.1, metrics="mae") for _ in range(2))
    trainer.fit(X, Y, 10, 3, callbacks=[fb.ModelCheckpoint(tmp_path / "{steps}", every_n_steps=2)])
    whole.fit(X, Y, 10, 3)
    _assert_same(trainer, whole)
    files = sorted(int(path.name) for path in tmp_path.iterdir())
    assert files == sorted({*range(2, 22, 2), 7, 14, 21})
    for steps in files:
        back = fb.Trainer.load(tmp_path / str(steps))
        assert back.steps == steps
        _assert_same_history(back.resume(X, Y, callbacks=[fb.ModelCheckpoint(tmp_path / "x")]), whole.history)
        _assert_same(back, whole)


def test_the_best_model_of_a_monitored_checkpoint(tmp_path):
    trainer, hook = make_trainer(), fb.ModelCheckpoint(tmp_path / "best", monitor="loss")
    history = trainer.fit(X, Y, 10, 4, callbacks=[hook])
    back = fb.Trainer.load(tmp_path / "best")
    assert back.history["loss"][-1] == min(history["loss"]) == hook.best


def test_the_file_of_a_checkpoint_goes_on_being_written(tmp_path):
    """Deleted files of the interrupted run are not needed, and the best so far is remembered."""
    recipe = {"monitor": "loss", "mode": "max"}  # the first epoch is the best one
    hooks = [fb.ModelCheckpoint(tmp_path / "{epoch}", **recipe), At(9, _raise)]
    with pytest.raises(Stop):
        make_trainer().fit(X, Y, 10, 3, callbacks=hooks)
    back, hook = fb.Trainer.load(tmp_path / "1"), fb.ModelCheckpoint(tmp_path / "{epoch}", **recipe)
    (tmp_path / "1").unlink()
    history = back.resume(X, Y, callbacks=[hook])
    assert hook.best == history["loss"][0] == max(history["loss"])
    assert list(tmp_path.iterdir()) == []


# -- SIGKILL -------------------------------------------------------------------------------------------------------


def _kill_again_and_again(folder: Path, backend: str, epochs: int, times: int, seed: int) -> list[int]:
    """Runs `killed.py` until it is done, and kills the first `times` of its processes; epochs that each announced."""
    rng = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fb.__file__).parents[1]), *sys.path])}
    made = []
    for process in range(times + 1):
        # a process is killed in its second epoch or in one of the two behind it, at any moment
        last, began = rng.randrange(1, 4), time.monotonic()
        with subprocess.Popen(
            [sys.executable, killed.__file__, folder, backend, str(epochs)], stdout=subprocess.PIPE, env=environment
        ) as child:
            made.append(0)
            for _ in child.stdout:
                made[-1] += 1
                now = time.monotonic()
                if process < times and made[-1] == last:
                    time.sleep(rng.random() * (now - began if last > 1 else 0.01))
                    child.kill()
                if made[-1] == 1:
                    began = time.monotonic()
        assert child.returncode == (0 if process == times else -signal.SIGKILL)
    return made


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(
    ("backend", "times", "seed"),
    [
        pytest.param("c", 5, 0, marks=BACKENDS[0].marks),
        pytest.param("c", 25, 1, marks=(*BACKENDS[0].marks, pytest.mark.exhaustive)),
        pytest.param("reference", 25, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(backend, times, seed, tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    epochs = 7 * times  # no process makes more than four of them before it is killed, as a rule
    whole = killed.run(tmp_path / "whole", backend, epochs)
    assert whole.lr_factor < 1, "the plateau should have been met"
    made = _kill_again_and_again(tmp_path / "killed", backend, epochs, times, seed)
    print(f"epochs behind which processes were killed: {made[:-1]}; the last one made {made[-1]}")
    end = fb.Trainer.load(tmp_path / "killed" / "end", custom=[killed.mean_output])
    _assert_same(end, whole)
    assert_same_bits(np.fromfile(tmp_path / "killed" / "average", np.float32), whole.average)
    assert _without_time(tmp_path / "killed" / "log.csv") == _without_time(tmp_path / "whole" / "log.csv")
