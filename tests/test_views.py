"""Live views, copies, pickles, other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from helpers import (
    BACKENDS,
    OUTPUTS,
    assert_same_bits,
    assert_same_trainer,
    make_data,
    make_trainer,
    same_bits,
)

import fastbatch as fb
from fastbatch.training import fit as fit_module

backends = pytest.mark.parametrize("backend", BACKENDS)


class Held:
    """Views taken once, and what must be true of them ever after."""

    def __init__(self, model: fb.Sequential) -> None:
        self.model = model
        self.parameters, self.weights = model.parameters, model.weights
        self.last = self.parameters.copy()

    def assert_moved(self) -> None:
        """Live, and not what they were at the last call."""
        fresh = np.concatenate([part.ravel() for pair in self.model.get_weights() for part in pair])
        flat = np.concatenate([part.ravel() for pair in self.weights for part in pair])
        assert_same_bits(flat, fresh)
        assert_same_bits(self.parameters, fresh)
        assert not same_bits(self.parameters, self.last)
        self.last = fresh


# -- reading -------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_views_held_across_every_call_that_updates(backend, optimizer):
    x, y = make_data(n=40)
    trainer = make_trainer("mse", optimizer, backend=backend)
    held = Held(trainer.model)
    for _ in range(2):
        trainer.step(x, y)
        held.assert_moved()
        trainer.partial_fit(x, y)
        held.assert_moved()
        trainer.fit(x, y, batch_size=16, epochs=2)
        held.assert_moved()
        trainer.fit(x, y, batch_size="full")
        held.assert_moved()
        # a batch larger than any before makes the c backend lay out new memory
        trainer.step(np.repeat(x, 9, axis=0), np.repeat(y, 9, axis=0))
        held.assert_moved()
        trainer.backward(trainer.forward(x) - y)
        trainer.update()
        held.assert_moved()
    assert trainer.model.parameters is held.parameters
    assert all(a is b for pair, kept in zip(trainer.model.weights, held.weights) for a, b in zip(pair, kept))
    # the model computes with what the views show
    (w1, b1), (w2, b2) = held.weights
    np.testing.assert_allclose(trainer.predict(x), np.tanh(x @ w1 + b1) @ w2 + b2, rtol=1e-4, atol=1e-5)


@backends
def test_views_show_the_last_update_inside_callbacks(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=200)
    trainer = make_trainer("mse", backend=backend)
    held = Held(trainer.model)
    chunks = []

    def on_chunk_end(steps, logs):
        held.assert_moved()
        chunks.append((trainer.steps, held.parameters.copy()))

    ends = []

    def on_epoch_end(epoch, logs):
        ends.append(held.parameters.copy())

    hooks = fb.LambdaCallback(on_chunk_end=on_chunk_end, on_epoch_end=on_epoch_end)
    trainer.fit(x, y, batch_size=1, epochs=2, callbacks=[hooks])
    assert len(chunks) >= 4
    assert len(ends) == 2
    assert_same_bits(ends[1], trainer.model.parameters)
    replay = make_trainer("mse", backend=backend)
    replay.fit(x, y, batch_size=1)
    assert_same_bits(ends[0], replay.model.parameters)
    assert next(parameters for steps, parameters in chunks if steps == 200).tobytes() == ends[0].tobytes()


@backends
def test_views_after_divergence_are_those_the_failing_step_started_from(backend):
    x, y = make_data(n=40)
    trainer, twin = make_trainer("mse", "sgd", backend=backend), make_trainer("mse", "sgd", backend=backend)
    held = Held(trainer.model)
    poisoned = x.copy()
    poisoned[35, 2] = np.nan
    with pytest.raises(fb.DivergenceError, match="step 4") as caught:
        trainer.fit(poisoned, y, batch_size=10, shuffle=False, check_finite=False)
    assert caught.value.step == 4
    for start in (0, 10, 20):
        twin.step(x[start : start + 10], y[start : start + 10])
    assert_same_bits(held.parameters, twin.model.parameters)
    assert_same_trainer(trainer, twin)
    trainer.step(x, y), twin.step(x, y)
    assert_same_bits(held.parameters, twin.model.parameters)


@backends
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_views_after_an_exception_in_a_callback(backend, error, monkeypatch):
    def fail(steps, logs):
        raise error

    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=400)
    trainer = make_trainer("mse", backend=backend)
    held = Held(trainer.model)
    with pytest.raises(error):
        trainer.fit(x, y, batch_size=1, shuffle=False, callbacks=[fb.LambdaCallback(on_chunk_end=fail)])
    made = trainer.steps
    assert 0 < made < 400
    held.assert_moved()
    replay = make_trainer("mse", backend=backend)
    for row in range(made):
        replay.step(x[row : row + 1], y[row : row + 1])
    assert_same_bits(held.parameters, replay.model.parameters)
    trainer.step(x, y)
    held.assert_moved()


def test_the_list_of_weights_is_the_callers():
    model = fb.MLP([3, 4, 2])
    model.weights.clear()
    assert len(model.weights) == 2
    with pytest.raises(AttributeError):
        model.parameters = np.zeros(model.num_parameters, np.float32)


# -- writing -------------------------------------------------------------------------------------------------------


def _through_weights(model, values):
    offset = 0
    for pair in model.weights:
        for part in pair:
            part[...] = values[offset : offset + part.size].reshape(part.shape)
            offset += part.size


def _through_parameters(model, values):
    model.parameters[:] = values


def _through_set_weights(model, values):
    other = model.copy()
    other.parameters[:] = values
    model.set_weights(other.get_weights())


writers = pytest.mark.parametrize("write", [_through_weights, _through_parameters, _through_set_weights])

CALLS = {
    "predict": lambda t, x, y: t.predict(x),
    "model.predict": lambda t, x, y: t.model.predict(x),
    "evaluate": lambda t, x, y: t.evaluate(x, y)["loss"],
    "gradients": lambda t, x, y: t.gradients(x, y)[1],
    "gradient_norms": lambda t, x, y: t.gradient_norms(x, y),
    "forward": lambda t, x, y: t.forward(x),
    "backward": lambda t, x, y: (t.backward(t.forward(x)), t.update(), t.model.parameters.copy())[2],
    "step": lambda t, x, y: (t.step(x, y), t.model.parameters.copy())[1],
    "fit": lambda t, x, y: (t.fit(x, y, batch_size=16), t.model.parameters.copy())[1],
}


@backends
@writers
@pytest.mark.parametrize("call", CALLS)
def test_what_is_written_between_calls_is_seen_by_the_next(backend, write, call):
    # three layers: the middle ones are read through transposed copies in the c backend
    x, y = make_data(n=40)
    written, fresh = (make_trainer("mse", "sgd", sizes=(5, 16, 12, OUTPUTS), backend=backend) for _ in range(2))
    written.fit(x, y), written.predict(x), written.model.predict(x), written.gradients(x, y)
    stale = CALLS[call](copy.deepcopy(written), x, y)
    values = np.random.default_rng(5).standard_normal(written.model.num_parameters).astype(np.float32) / 4
    write(written.model, values)
    fresh.fit(x, y)  # the same counters
    fresh = copy.deepcopy(fresh)
    fresh.model.parameters[:] = values
    fresh = pickle.loads(pickle.dumps(fresh))
    got, expected = CALLS[call](written, x, y), CALLS[call](fresh, x, y)
    assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
    assert np.asarray(got).tobytes() != np.asarray(stale).tobytes()


@backends
@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_chunk_end", "on_epoch_end"])
def test_what_is_written_inside_a_callback_is_seen_by_the_next_step(backend, hook):
    x, y = make_data(n=40)
    trainer, by_hand = (make_trainer("mse", "sgd", sizes=(5, 16, 12, OUTPUTS), backend=backend) for _ in range(2))
    held = trainer.model.weights

    def halve(*_):
        for w, b in held:
            w *= np.float32(0.5)
            b *= np.float32(0.5)

    # one step an epoch: every hook falls between two steps
    trainer.fit(x, y, batch_size=40, epochs=3, shuffle=False, callbacks=[fb.LambdaCallback(**{hook: halve})])
    parameters = by_hand.model.parameters
    for epoch in range(3):
        if hook == "on_epoch_begin" or (hook == "on_train_begin" and epoch == 0):
            parameters *= np.float32(0.5)
        by_hand.step(x, y)
        if hook in ("on_chunk_end", "on_epoch_end"):
            parameters *= np.float32(0.5)
    assert_same_bits(trainer.model.parameters, parameters)
    plain = make_trainer("mse", "sgd", sizes=(5, 16, 12, OUTPUTS), backend=backend)
    plain.fit(x, y, batch_size=40, epochs=3, shuffle=False)
    assert not same_bits(plain.model.parameters, parameters)


@backends
def test_writing_in_the_middle_of_an_epoch(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=300)
    trainer, by_hand = (make_trainer("mse", "sgd", sizes=(5, 8, 8, OUTPUTS), backend=backend) for _ in range(2))
    at = []

    def once(steps, logs):
        if not at:
            trainer.model.parameters[:] *= np.float32(0.5)
            at.append(steps)

    trainer.fit(x, y, batch_size=1, shuffle=False, callbacks=[fb.LambdaCallback(on_chunk_end=once)])
    assert 0 < at[0] < 300
    for row in range(300):
        by_hand.step(x[row : row + 1], y[row : row + 1])
        if row + 1 == at[0]:
            by_hand.model.parameters[:] *= np.float32(0.5)
    assert_same_bits(trainer.model.parameters, by_hand.model.parameters)


def test_two_trainers_on_one_model_see_each_others_updates():
    x, y = make_data(n=40)
    model = make_trainer().model
    first, second = fb.Trainer(model, "mse", "sgd"), fb.Trainer(model, "mae", "adam")
    reference = copy.deepcopy(model)
    for _ in range(3):
        first.step(x, y), second.step(x, y)
    one, two = fb.Trainer(reference, "mse", "sgd"), None
    for _ in range(3):
        one.step(x, y)
        if two is None:
            two = fb.Trainer(reference, "mae", "adam")
        two.step(x, y)
    assert_same_bits(model.parameters, reference.parameters)
    assert (first.steps, second.steps) == (3, 3)


# -- get_weights, set_weights --------------------------------------------------------------------------------------


def test_get_weights_copies():
    model = fb.MLP([3, 4, 2])
    before = model.parameters.copy()
    for w, b in model.get_weights():
        w[:] = 9
        b[:] = 9
    assert_same_bits(model.parameters, before)


def test_set_weights_copies_and_keeps_views():
    model = fb.MLP([3, 4, 2])
    held, new = model.weights, fb.MLP([3, 4, 2], seed=1).get_weights()
    model.set_weights(new)
    for (w, b), (new_w, new_b) in zip(held, new):
        assert_same_bits(w, new_w)
        assert_same_bits(b, new_b)
    new[0][0][:] = 9
    assert not (model.parameters == 9).any()


def test_set_weights_takes_lists_float64_and_its_own_views():
    model, other = fb.MLP([3, 4, 2]), fb.MLP([3, 4, 2], seed=1)
    model.set_weights([[w.astype(np.float64).tolist(), b.astype(np.float64)] for w, b in other.weights])
    assert_same_bits(model.parameters, other.parameters)
    model.set_weights(model.weights)
    assert_same_bits(model.parameters, other.parameters)


def test_weights_of_a_layer_without_bias():
    model = fb.Sequential([fb.Dense(4, bias=False), fb.Dense(2)], input_size=3)
    assert model.weights[0][1] is None
    assert model.get_weights()[0][1] is None
    twin = fb.Sequential([fb.Dense(4, bias=False), fb.Dense(2)], input_size=3, seed=1)
    twin.set_weights(model.get_weights())
    assert_same_bits(twin.parameters, model.parameters)


# -- copies --------------------------------------------------------------------------------------------------------

MODEL_COPIES = {
    "copy()": lambda m: m.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", MODEL_COPIES)
def test_a_copy_of_a_model_is_equal_and_independent(how):
    x, y = make_data("cross_entropy")
    trainer = make_trainer("cross_entropy")
    trainer.fit(x, y)
    model = trainer.model
    twin = MODEL_COPIES[how](model)
    assert type(twin) is type(model)
    assert_same_bits(twin.parameters, model.parameters)
    assert_same_bits(twin.predict_proba(x), model.predict_proba(x))
    assert (twin.layers, twin.input_size, twin.seed, twin.dtype, twin.loss, twin.summary()) == (
        model.layers, model.input_size, model.seed, model.dtype, model.loss, model.summary(),
    )  # fmt: skip
    before = twin.parameters.copy()
    assert all(np.shares_memory(part, twin.parameters) for pair in twin.weights for part in pair)
    assert not np.shares_memory(twin.parameters, model.parameters)
    trainer.fit(x, y)
    assert_same_bits(twin.parameters, before)
    fb.Trainer(twin, "cross_entropy").step(x, y)
    assert not same_bits(twin.parameters, before)


TRAINER_COPIES = {
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
}


@backends
@pytest.mark.parametrize("how", TRAINER_COPIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", fb.SGD(lr=0.01, momentum=0.9)], ids=repr)
def test_a_copy_of_a_trainer_goes_on_to_the_same_bits(backend, how, optimizer):
    x, y = make_data("cross_entropy")
    trainer, whole = (
        make_trainer("cross_entropy", optimizer, dropout=0.3, metrics="accuracy", backend=backend) for _ in range(2)
    )
    whole.fit(x, y, batch_size=16, epochs=2)
    trainer.fit(x, y, batch_size=16, epochs=2)
    twin = TRAINER_COPIES[how](trainer)
    assert twin.history == trainer.history
    assert twin.backend == trainer.backend == backend
    before = trainer.model.parameters.copy()
    a = twin.fit(x, y, batch_size=16, epochs=2, validation_split=0.1)
    assert_same_bits(trainer.model.parameters, before)
    assert trainer.steps == whole.steps
    b = whole.fit(x, y, batch_size=16, epochs=2, validation_split=0.1)
    assert_same_trainer(twin, whole)
    assert {**a, "time": None} == {**b, "time": None}


@backends
def test_a_trainer_pickled_in_the_middle_of_a_fit(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=200)
    trainer = make_trainer("mse", dropout=0.3, backend=backend)
    kept = []

    def keep(steps, logs):
        if not kept:
            kept.append((steps, pickle.dumps(trainer)))

    trainer.fit(x, y, batch_size=1, shuffle=False, callbacks=[fb.LambdaCallback(on_chunk_end=keep)])
    steps, data = kept[0]
    assert 0 < steps < 200
    twin = pickle.loads(data)
    assert twin.steps == steps
    for row in range(steps, 200):
        twin.step(x[row : row + 1], y[row : row + 1])
    twin.epochs = trainer.epochs
    assert_same_trainer(twin, trainer)


@backends
def test_a_trainer_copied_between_backward_and_update(backend):
    x, y = make_data(n=16)
    trainer = make_trainer("mse", backend=backend)
    trainer.backward(trainer.forward(x) - y)
    twin = pickle.loads(pickle.dumps(trainer))
    for each in (trainer, twin):
        each.update()
    assert_same_trainer(twin, trainer)


def test_copies_that_share_a_model_keep_sharing_it():
    model = make_trainer().model
    trainers = [fb.Trainer(model, "mse"), fb.Trainer(model, "mse", "sgd")]
    for how in (copy.deepcopy, TRAINER_COPIES["pickle"]):
        a, b, twin = how([*trainers, model])
        assert a.model is b.model is twin
        assert twin is not model


# -- processes -----------------------------------------------------------------------------------------------------


def _go_on(trainer, model, threads, x, y):
    """What a child process does with what it was given."""
    with fb.set_num_threads(threads, exact=True):
        trainer.fit(x, y, batch_size=16, epochs=2)
        return trainer.model.parameters.copy(), trainer.steps, model.predict(x)


def _child(connection, *arguments):
    connection.send(_go_on(*arguments))


def _in_a_process(context, *arguments):
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, *arguments))
    process.start()
    send.close()
    try:
        assert receive.poll(120), "the child process hangs"
        return receive.recv()
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
# Python 3.12 warns of every fork beside threads; that ours survive it is what is tested
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_model_and_trainer_go_through_another_process(start):
    x, y = make_data("cross_entropy", 64, inputs=40)
    trainer = make_trainer("cross_entropy", sizes=(40, 64, OUTPUTS), dropout=0.2)
    with fb.set_num_threads(2, exact=True):
        trainer.fit(x, y, batch_size=16)  # the pool of threads exists when the process starts
        if trainer.backend == "c":
            assert trainer.threads_used == 2
    model = trainer.model.copy()
    before = trainer.model.parameters.copy()
    parameters, steps, z = _in_a_process(multiprocessing.get_context(start), trainer, model, 2, x, y)
    assert_same_bits(trainer.model.parameters, before)
    for threads in (2, 1):
        expected = _go_on(copy.deepcopy(trainer), model, threads, x, y)
        assert_same_bits(parameters, expected[0])
        assert steps == expected[1] == trainer.steps + 8
        assert_same_bits(z, expected[2])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_inside_a_fit(monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data("cross_entropy", 256, inputs=40)
    with fb.set_num_threads(2, exact=True):
        trainer, alone = (make_trainer("cross_entropy", sizes=(40, 64, OUTPUTS)) for _ in range(2))
        results = []

        def fork(epoch, logs):
            other = make_trainer("cross_entropy", sizes=(40, 64, OUTPUTS), seed=7)
            results.append(_in_a_process(multiprocessing.get_context("fork"), other, other.model.copy(), 2, x, y)[0])
            other.fit(x, y, batch_size=16, epochs=2)
            assert_same_bits(results[-1], other.model.parameters)

        trainer.fit(x, y, batch_size=16, epochs=2, callbacks=[fb.LambdaCallback(on_epoch_end=fork)])
        alone.fit(x, y, batch_size=16, epochs=2)
    assert len(results) == 2
    assert_same_trainer(trainer, alone)
