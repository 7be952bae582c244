"""The fast path of step and predict against the careful one: same bits, errors and state, and taken where it should."""

from __future__ import annotations

import copy
import itertools
import math
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch import threads as threads_
from fastbatch.training import door

I, O, B = 5, 4, 6

pytestmark = pytest.mark.skipif(
    not next(row["available"] for row in fb.backends() if row["name"] == "c"), reason="the c backend is missing"
)

X, VALUES = make_data("mse", B, I, O)
SHARES = np.abs(VALUES)
LABELS = np.array([0, 3, 1, 2, 2, 0])


class Subclass(np.ndarray):
    pass


def _strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def _misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def _frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _with(a, value, at=(2, 1)):
    a = a.copy()
    a[at[: a.ndim]] = value
    return a


# What an array can be besides its values; the first three are used as they lie.
KINDS = {
    "plain": lambda a: a,
    "read-only": _frozen,
    "inside another": lambda a: np.concatenate([a, a, a])[B : 2 * B],
    "strided": _strided,
    "backwards": lambda a: a[::-1][::-1].copy()[::-1],
    "columns first": lambda a: _strided(a) if a.ndim == 1 else np.asfortranarray(a),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": _misaligned,
    "subclass": lambda a: a.view(Subclass),
    "list": lambda a: a.tolist(),
    "wider": lambda a: a.astype(np.float64),
    "rows of one": lambda a: np.broadcast_to(a[:1], a.shape),
}
FAST_KINDS = {"plain", "read-only", "inside another"}

# name -> loss, outputs, y, whether the fast path takes it
TARGETS = {
    "mse (B, O)": ("mse", O, VALUES, True),
    "mse (B,)": ("mse", 1, VALUES[:, 0].copy(), True),
    "mse (B, 1)": ("mse", 1, VALUES[:, :1].copy(), True),
    "huber": ("huber", O, VALUES, True),
    "bce (B, O)": ("bce", O, SHARES, True),
    "focal": ("focal", O, SHARES, True),
    "quantile": ("quantile", O, VALUES, True),
    "poisson": ("poisson", O, np.floor(3 * SHARES), True),
    "tweedie (B,)": ("tweedie", 1, SHARES[:, 0].copy(), True),
    "gamma": ("gamma", O, SHARES + np.float32(0.1), True),
    "labels, one ignored": (fb.losses.CrossEntropy(ignore_index=1), O, LABELS, False),
    "bce (B,)": ("bce", 1, SHARES[:, 0].copy(), True),
    "labels": ("cross_entropy", O, LABELS, True),
    "labels (B, 1)": ("cross_entropy", O, LABELS[:, None], False),
    "labels int32": ("cross_entropy", O, LABELS.astype(np.int32), False),
    "labels uint64": ("cross_entropy", O, LABELS.astype(np.uint64), False),
    "labels of floats": ("cross_entropy", O, LABELS.astype(np.float32), False),
    "labels of one class": ("cross_entropy", 1, np.zeros(B, np.int64), True),
    "distributions": ("cross_entropy", O, SHARES, True),
    "distributions of one class": ("cross_entropy", 1, SHARES[:, :1].copy(), True),
    "booleans": ("bce", 1, VALUES[:, 0] > 0, False),
}


def _pair(loss="mse", outputs=O, **options):
    """Two trainers after one step each, the second without the fast path; the first notes what its fast path says."""
    fast, careful = (make_trainer(loss, sizes=(I, 7, outputs), backend="c", **options) for _ in range(2))
    kinds = {"values": VALUES, "counts": SHARES, "positive": SHARES, "binary": SHARES, "classes": LABELS % outputs}
    y = kinds[fast.loss.targets]
    said = []
    for trainer in (fast, careful):
        trainer.step(X, y[:, :outputs] if y.ndim == 2 else y)
    program = fast._program
    taken = program.fast_step
    program.fast_step = lambda *arguments: said.append(taken(*arguments)) or said[-1]
    careful._program.fast_step = lambda *arguments: None
    return fast, careful, said


def _assert_same(fast, careful):
    assert fast.threads_used == careful.threads_used
    assert fast.model.loss == careful.model.loss
    assert_same_bits(fast.model.parameters, careful.model.parameters)
    assert fast.steps == careful.steps
    if fast.model.output_size == 1 and fast.loss.targets == "classes":
        return  # the softmax of one output is 1, whatever the weights: nothing moves
    assert_same_trainer(copy.deepcopy(fast), copy.deepcopy(careful))


def _as(dtype, a):
    return a.astype(dtype) if a.dtype == np.float32 else a


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("optimizer", "dtype"), [("sgd", "float32"), ("adam", "float32"), ("adam", "float64")])
def test_every_kind_of_targets_gives_the_bits_of_the_careful_path(name, optimizer, dtype):
    loss, outputs, y, taken = TARGETS[name]
    x, y = _as(dtype, X), _as(dtype, y)
    fast, careful, said = _pair(loss, outputs, optimizer=optimizer, dropout=0.2, dtype=dtype)
    for rows in (slice(B), slice(1, 4), slice(2, 3), slice(B)):
        got = fast.step(x[rows], y[rows])
        assert type(got) is float
        assert got == careful.step(x[rows], y[rows])
    assert [value is not None for value in said] == [taken] * 4
    _assert_same(fast, careful)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["x", "y", "labels"])
def test_every_kind_of_array_gives_the_bits_of_the_careful_path(where, kind):
    fast, careful, said = _pair("cross_entropy" if where == "labels" else "mse")
    x, y = X, LABELS if where == "labels" else VALUES
    if where == "x":
        x = KINDS[kind](x)
    else:
        y = KINDS[kind](y)
    for _ in range(2):
        assert fast.step(x, y) == careful.step(x, y)
    assert [value is not None for value in said] == [kind in FAST_KINDS] * 2
    _assert_same(fast, careful)


HUGE = np.float32(3e38)
# name -> loss, x, y
BAD = {
    "x narrow": ("mse", X[:, :4].copy(), VALUES),
    "x wide": ("mse", np.c_[X, X], VALUES),
    "x one row": ("mse", X[0], VALUES),
    "x three dimensions": ("mse", X[None], VALUES),
    "x empty": ("mse", X[:0], VALUES[:0]),
    "x None": ("mse", None, VALUES),
    "x text": ("mse", X.astype(str), VALUES),
    "x complex": ("mse", X.astype(complex), VALUES),
    "x NaN": ("mse", _with(X, np.nan), VALUES),
    "x Inf": ("mse", _with(X, -np.inf), VALUES),
    "x masked": ("mse", np.ma.masked_array(X, mask=X > 0), VALUES),
    "y rows": ("mse", X, VALUES[:-1]),
    "y more rows": ("mse", X[:-1], VALUES),
    "y columns": ("mse", X, VALUES[:, :3].copy()),
    "y flat": ("mse", X, VALUES[:, 0].copy()),
    "y number": ("mse", X, np.float32(1)),
    "y None": ("mse", X, None),
    "y NaN": ("mse", X, _with(VALUES, np.nan)),
    "y Inf": ("mse", X, _with(VALUES, np.inf)),
    "y too large": ("mse", X, _with(VALUES, HUGE)),
    "both NaN": ("mse", _with(X, np.nan), _with(VALUES, np.nan)),
    "bce below 0": ("bce", X, _with(SHARES, -0.1)),
    "bce above 1": ("bce", X, _with(SHARES, 1.5)),
    "bce NaN": ("bce", X, _with(SHARES, np.nan)),
    "bce labels": ("bce", X, LABELS),
    "label -1": ("cross_entropy", X, _with(LABELS, -1)),
    "label O": ("cross_entropy", X, _with(LABELS, O)),
    "label huge": ("cross_entropy", X, _with(LABELS, 2**62)),
    "label half": ("cross_entropy", X, _with(LABELS.astype(np.float32), 0.5)),
    "labels too few": ("cross_entropy", X, LABELS[:-1]),
    "labels words": ("cross_entropy", X, LABELS.astype(str)),
    "distributions NaN": ("cross_entropy", X, _with(SHARES, np.nan)),
    "distributions above 1": ("cross_entropy", X, _with(SHARES, 2)),
    "distributions narrow": ("cross_entropy", X, SHARES[:, :3].copy()),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BAD)
def test_errors_are_those_of_the_careful_path(name, dtype):
    loss, x, y = BAD[name]
    if dtype == "float64":
        x, y = (_as(dtype, a) if isinstance(a, np.ndarray) else a for a in (x, y))
        y = y * 1e200 if name == "y too large" else y
    fast, careful, said = _pair(loss, dtype=dtype)
    caught = []
    for trainer in (fast, careful):
        with pytest.raises(fb.FastbatchError) as error:
            trainer.step(x, y)
        caught.append((type(error.value), str(error.value), vars(error.value)))
    assert caught[0] == caught[1]
    assert said == [None]
    assert fast.steps == 1
    _assert_same(fast, careful)


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3e38), ("float64", 1.7e308)])
def test_a_gradient_that_overflows_under_a_finite_loss(dtype, largest):
    caught = []
    for fast in (True, False):
        model = fb.MLP([1, 1], dtype=dtype)
        model.parameters[:] = 0
        trainer = fb.Trainer(model, "mae", "sgd", backend="c")
        x, y = np.full((4, 1), largest, dtype), np.ones((4, 1), dtype)
        for _ in range(2):
            trainer.step(np.zeros_like(x), y)
        if not fast:
            trainer._program.fast_step = lambda *arguments: None
        before = model.parameters.copy()
        with pytest.raises(fb.DivergenceError, match="gradient") as error:
            trainer.step(x, y)
        assert_same_bits(model.parameters, before)
        caught.append((str(error.value), error.value.step, trainer.steps))
    assert caught[0] == caught[1]
    assert caught[0][1:] == (3, 2)


def test_nothing_is_left_behind_by_a_step_that_was_no_good():
    fast, careful, said = _pair()
    for x, y in ((_with(X, np.nan), VALUES), (X, VALUES), (X[:, :2], VALUES), (X, VALUES)):
        for trainer in (fast, careful):
            try:
                trainer.step(x, y)
            except fb.FastbatchError:
                continue
    assert [value is None for value in said] == [True, False, True, False]
    _assert_same(fast, careful)


def test_what_the_careful_path_is_for():
    fast, careful, said = _pair()
    weight = np.arange(B) / 7
    more = np.concatenate([X, X]), np.concatenate([VALUES, VALUES])
    for arguments in ((X, VALUES, weight), more, more):
        assert fast.step(*arguments) == careful.step(*arguments)
    assert [value is not None for value in said] == [False, True], "weights never ask, more rows wait for memory once"
    _assert_same(fast, careful)
    assert fast.partial_fit(x=X, y=VALUES) is fast
    assert said[-1] is not None


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_a_forward_that_waits_is_dropped_as_ever(norm):
    """For its backward; or, as far as it has seen statistics, for the update."""
    fast, careful, said = _pair(norm=norm)
    for trainer in (fast, careful):
        trainer.forward(X[:2])
        trainer.step(X, VALUES)
        with pytest.raises(fb.ArgumentError, match="forward"):
            trainer.backward(VALUES[:2])
        trainer.step(X, VALUES)
        trainer.forward(X)
        trainer.backward(VALUES)
        trainer.step(X, VALUES)  # leaves the gradient that waits for update
        trainer.update()
    assert [value is not None for value in said] == [False, True, norm != "batch"]
    _assert_same(fast, careful)


def test_the_learning_rate_and_the_loss_are_read_at_each_step():
    fast, careful, said = _pair()
    for trainer in (fast, careful):
        trainer.optimizer = replace(trainer.optimizer, lr=0.5)
        trainer.step(X, VALUES)
        trainer.model.loss = fb.losses.Huber()
        trainer.step(X, VALUES)
    assert [value is not None for value in said] == [True], (
        "predict_proba follows the trainer: the careful path sets it"
    )
    assert fast.model.loss == fast.loss
    _assert_same(fast, careful)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_fast_path_asks_for_its_threads(threads):
    fast, careful, said = _pair("cross_entropy", num_threads=2)
    with fb.set_num_threads(threads, exact=True):
        for _ in range(2):  # the first makes room for the scratch of so many
            assert fast.step(X, LABELS) == careful.step(X, LABELS)
            assert fast.threads_used == min(threads, 2)
    assert said[-1] is not None
    _assert_same(fast, careful)


def test_a_signal_handler_may_step_the_trainer_in_the_middle_of_a_step(monkeypatch):
    """The thread policy is the only Python that runs in the middle; the memory of the step moves below it."""
    x, y = make_data("cross_entropy", 3000, I, O)
    armed, allowed = [], threads_.allowed

    def interrupted(limit, flops):
        if armed:
            armed.pop()
            trainer.step(x, y)
        return allowed(limit, flops)

    monkeypatch.setattr(threads_, "allowed", interrupted)
    monkeypatch.setattr(threads_, "ALONE_BELOW", 0)  # smaller steps do not ask
    trainer, alone = (make_trainer("cross_entropy", backend="c") for _ in range(2))
    trainer.step(X, LABELS), alone.step(X, LABELS)
    armed.append(True)
    loss = trainer.step(X, LABELS)
    assert not armed
    alone.step(x, y)
    assert loss == alone.step(X, LABELS)
    assert_same_trainer(trainer, alone)


def test_steps_of_a_loop_are_the_fit():
    x, y = make_data("cross_entropy", 60, I, O)
    stepped, fitted = (make_trainer("cross_entropy", dropout=0.3, backend="c") for _ in range(2))
    for start in range(0, 60, 7):
        stepped.step(x[start : start + 7], y[start : start + 7])
    fitted.fit(x, y, batch_size=7, shuffle=False)
    stepped.epochs = 1
    assert_same_trainer(stepped, fitted)


# -- predict -------------------------------------------------------------------------------------------------------


def _spy(program, monkeypatch):
    said, taken = [], program.fast_predict
    monkeypatch.setattr(program, "fast_predict", lambda x: said.append(taken(x)) or said[-1])
    return said


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_careful_path(kind, dtype, monkeypatch):
    trainer = make_trainer("mse", backend="c", dtype=dtype)
    x = KINDS[kind](X.astype(dtype))
    with fb.set_backend("c"):
        careful = trainer.model.predict(x, batch_size=4)  # which never asks
        trainer.model.predict(X)
        assert_same_bits(trainer.predict(x), careful)
        said = _spy(trainer._program, monkeypatch), _spy(trainer.model._inference[1], monkeypatch)
        for call in (trainer.predict, trainer.model.predict, lambda x: trainer.model.predict(X=x)):
            assert_same_bits(call(x), careful)
    taken = kind in FAST_KINDS or (kind, dtype) == ("wider", "float64")
    assert [value is not None for values in said for value in values] == [taken] * 3


@pytest.mark.parametrize("rows", [0, 1, 2, 127, 128, 129, 5000])
def test_any_number_of_rows(rows, monkeypatch):
    model = make_trainer("mse").model
    x = make_data("mse", rows, I)[0]
    with fb.set_backend("c"):
        model.predict(X)
        said = _spy(model._inference[1], monkeypatch)
        assert_same_bits(model.predict(x), model.predict(x, batch_size=100))
    assert (said[0] is not None) == (0 < rows <= 128)


@pytest.mark.parametrize("name", [name for name in BAD if name.startswith("x ")])
def test_predict_refuses_what_it_refused(name):
    model, x = make_trainer("mse").model, BAD[name][1]
    caught = []
    with fb.set_backend("c"):
        model.predict(X)
        for options in ({}, {"batch_size": 10}):
            try:
                caught.append(model.predict(x, **options).tobytes())
            except fb.FastbatchError as error:
                caught.append((type(error), str(error)))
    assert caught[0] == caught[1]


def test_predictions_have_memory_of_their_own():
    model = make_trainer("mse").model
    first = model.predict(X)
    kept = first.copy()
    second = model.predict(-X)
    assert not np.shares_memory(first, second)
    assert_same_bits(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable


def test_predict_sees_the_weights_of_now_and_the_backend_of_now():
    model = make_trainer("mse").model
    with fb.set_backend("c"):
        before = model.predict(X)
        model.parameters[:] *= 2
        assert (model.predict(X) != before).any()
        program = model._inference[1]
    with fb.set_backend("reference"):
        model.predict(X)
        assert model._inference[1] is not program
    assert copy.deepcopy(model)._inference is None


def test_a_burst_of_threads_leaves_a_few_arenas():
    model = make_trainer("mse").model
    with fb.set_backend("c"):
        expected = model.predict(X)
        wrong, start = [], threading.Barrier(12)

        def predict():
            start.wait()
            for _ in range(200):
                if model.predict(X).tobytes() != expected.tobytes():
                    wrong.append(1)

        threads = [threading.Thread(target=predict) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        network, kept = model._inference[1]._inference, 0
        while network.take_spare() is not None:
            kept += 1
    assert 1 <= kept <= 4


# -- the lock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", ["gradients", "evaluate"])
def test_ctrl_c_at_any_bytecode_of_the_door_leaves_it_open(backend, call):
    """Raised where Python looks at signals, and anywhere else: in no place is the lock left behind."""
    trainer = make_trainer(backend=backend)
    x, y = make_data(n=8)
    codes = {value.fget.__code__ for value in vars(door.Exclusive).values() if isinstance(value, property)}
    codes |= {value.__code__ for value in vars(door.Exclusive).values() if hasattr(value, "__code__")}

    def tracer(frame, event, _):
        nonlocal left
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return tracer

    for at in range(1, 1000):
        left, before = at, sys.gettrace()
        sys.settrace(tracer)
        try:
            getattr(trainer, call)(x, y)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        free = []
        thread = threading.Thread(target=lambda free=free: free.append(trainer.step(x, y)))
        thread.start()
        thread.join()
        assert len(free) == 1, f"bytecode {at} of the door has kept the lock"
        if left > 0:
            break
    assert 5 < at < 999


def test_ctrl_c_in_a_loop_of_fast_steps_keeps_the_count():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trainer, alone = (make_trainer(backend="c") for _ in range(2))
        x, y = make_data(n=8)
        timer = threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            all(math.isfinite(trainer.step(x, y)) for _ in itertools.count())
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(trainer.steps):
        alone.step(x, y)
    assert_same_trainer(trainer, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lock_is_reentrant_for_its_thread_and_no_other(backend):
    lock = make_trainer(backend=backend)._program.lock
    others = []

    def ask():
        others.append(lock.acquire(False))
        if others[-1]:
            lock.__exit__(None, None, None)

    def other():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    other()
    assert lock.acquire(False)
    assert lock.acquire(False)
    other()
    lock.__exit__(None, None, None)
    other()
    lock.__exit__(None, None, None)
    other()
    assert others == [True, False, False, True]
