"""Columns of weights held to a norm: per element, on every way to an update, and nothing else moved."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from helpers import (
    BACKENDS,
    INPUTS,
    OUTPUTS,
    assert_same_bits,
    assert_same_trainer,
    difference,
    make_data,
    make_trainer,
)

import fastbatch as fb
from fastbatch import ops
from fastbatch.plan import make_plan
from fastbatch.program import ComposedProgram
from fastbatch.protocol import State

backends = pytest.mark.parametrize("backend", BACKENDS)
SMALL, LARGE = (INPUTS, 16, OUTPUTS), (INPUTS, 300, 40, OUTPUTS)  # on either side of plan.SMALL_GRADIENT
sizes = pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
SUBJECTS = [name for name in cases.SUBJECTS if name == "reference" or name in cases.FUSED]
LIMIT = 1.0
# inputs and outputs: one, around the lanes of float32 and float64 in any target, several vectors, primes
SHAPES = [(1, 1), (7, 3), (3, 15), (33, 17), (5, 31), (12, 64), (40, 67), (2, 130)]


def by_definition(w, most):
    """In long double: each column times min(1, most / norm), and which columns that changes."""
    w = w.astype(np.longdouble)
    norm = np.sqrt((w * w).sum(axis=0))
    return w * np.minimum(1, most / np.maximum(norm, 1e-300)), norm > most


def check_columns(before, after, most):
    """Of w (I, O). What is below the limit keeps its bits; else the factor is rounded once and the product once, 2u.

    Behind a sum of I squares in double, whose error is at most I + 1 roundings and half of that in the root.
    """
    exact, held = by_definition(before, most)
    u, double = np.finfo(before.dtype).eps / 2, 2.0**-53
    bound = (2.001 * u + (len(before) / 2 + 3) * double) * np.abs(exact)
    error = np.abs(after - exact)
    assert (error <= bound).all(), (error / (bound + 1e-300)).max()
    assert_same_bits(after[:, ~held], before[:, ~held])


def network(subject, shape, dtype, optimizer):
    """A program of two Dense(O) with biases, and its model; columns of the first from 0.2 to 5 times the limit."""
    inputs, outputs = shape
    model = fb.Sequential([fb.Dense(outputs), fb.Dense(outputs)], input_size=inputs, dtype=dtype)
    rng = np.random.default_rng(inputs * 1000 + outputs)
    model.parameters[:] = rng.normal(size=model.num_parameters)
    w = model.weights[0][0]
    w *= (rng.uniform(0.2, 5, outputs) / np.linalg.norm(w, axis=0)).astype(dtype)
    plan = make_plan(model, ops.get_loss("mse"), optimizer)
    state = State(model.parameters, np.zeros((0, model.num_parameters), dtype), np.zeros(1, np.int64), 5)
    backend = cases.SUBJECTS[subject]
    return model, backend.program(plan, state, 1) or ComposedProgram(plan, backend, state)


def check_update(subject, shape, dtype):
    """An update at rate 0 is the limit alone; the second layer has none."""
    model, program = network(subject, shape, dtype, fb.SGD(0.0, groups={0: {"max_norm": LIMIT}}))
    before = model.parameters.copy()
    program.update(np.ones_like(before), 1.0, 0.0)
    at = shape[0] * shape[1]
    check_columns(before[:at].reshape(shape), model.parameters[:at].reshape(shape), LIMIT)
    assert_same_bits(model.parameters[at:], before[at:])


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_columns_are_held_and_nothing_else(subject, shape, dtype):
    check_update(subject, shape, dtype)


right = ops.hold_columns
MUTANTS = {
    "does nothing": lambda w, most: None,
    "rows for columns": lambda w, most: right(w.T, most),
    "the whole matrix": lambda w, most: right(w.reshape(-1, 1), most),
    "drops the last column": lambda w, most: right(w[:, :-1], most),
    "drops the last row": lambda w, most: w[:-1].__imul__(_factors(w[:-1], most)),
    "raises small columns, too": lambda w, most: w.__imul__((most / np.linalg.norm(w, axis=0)).astype(w.dtype)),
    "norm for square": lambda w, most: w.__imul__(np.minimum(1, most / (w * w).sum(axis=0)).astype(w.dtype)),
    "largest for norm": lambda w, most: w.__imul__(np.minimum(1, most / np.abs(w).max(axis=0)).astype(w.dtype)),
    "limit off by 1e-6": lambda w, most: right(w, most * (1 + 1e-6)),
    "reaches the bias": lambda w, most: (right(w, most), w.base[w.size : w.size + 1].__imul__(0.5)),
    "Keras' epsilon": lambda w, most: w.__imul__(_keras(w, most).astype(w.dtype)),
}


def _factors(w, most):
    return np.minimum(1, most / np.linalg.norm(w, axis=0)).astype(w.dtype)


def _keras(w, most):
    norms = np.sqrt(np.square(w, dtype=np.float64).sum(axis=0, keepdims=True))
    return np.clip(norms, 0, most) / (1e-7 + norms)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name, monkeypatch):
    monkeypatch.setattr(ops, "hold_columns", MUTANTS[name])
    with pytest.raises(AssertionError):
        check_update("reference", (33, 17), "float32")


@backends
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keras_does_the_same_but_for_its_epsilon(backend, dtype):
    x, y = make_data()
    trainer, plain = (
        make_trainer(optimizer=fb.SGD(0.5, max_norm=limit), dtype=dtype, backend=backend) for limit in (0.7, None)
    )
    for one in (trainer, plain):
        one.step(x, y)
    held = []
    for (w, b), (w_plain, b_plain) in zip(trainer.model.weights, plain.model.weights):
        factors = _keras(w_plain, 0.7)
        held += (factors < 1 - 1e-5).ravel().tolist()
        np.testing.assert_allclose(w, w_plain * factors, rtol=1e-6)
        assert_same_bits(b, b_plain)
    assert 0 < sum(held) < len(held), "no column that is held beside one that is not"


# every way to an update: in parts or by tiles, looked at first or not, from pieces, with settings of single layers
WAYS = {
    "plain": {},
    "norm": {"max_grad_norm": 0.5},
    "value": {"clip_value": 0.02},
    "accumulated": {"gradient_accumulation_steps": 2},
    "micro": {"micro_batch_size": 10},
    "biases apart": {"decay_bias": False, "weight_decay": 0.01},
    "frozen": {"frozen": [0]},
    "rows one by one": {"batch_size": 1},
}


def run_both(backend, optimizer, epochs=3, loss="mse", n=70, fit=(), **options):
    """A trainer with the limit, fit; and one without, whose weights NumPy holds after every update."""
    x, y = make_data(loss, n)
    held = make_trainer(loss, optimizer(max_norm=LIMIT), backend=backend, **options)
    plain = make_trainer(loss, optimizer(), backend=backend, **options)
    frozen = held.optimizer.frozen

    class Hold(fb.Callback):
        def on_chunk_end(self, steps, logs):
            for layer, (w, _) in enumerate(plain.model.weights):
                if layer not in frozen:
                    right(w, LIMIT)

    for trainer, hooks in ((held, []), (plain, [Hold()])):
        if hooks:
            hooks[0].every_n_steps = 1
        trainer.fit(x, y, epochs=epochs, callbacks=hooks, **{"batch_size": 20, **dict(fit)})
    return held, plain


@backends
@sizes
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_an_update_holds(backend, sizes, way):
    """To the bit in float32: squares are exact in double, and both add them in the order of the rows."""
    keywords = dict(WAYS[way])
    of_trainer = {name: keywords.pop(name) for name in tuple(keywords) if name.startswith(("max_", "clip", "grad"))}
    fit = {name: keywords.pop(name) for name in tuple(keywords) if name.endswith("batch_size")}
    held, plain = run_both(
        backend, lambda **more: fb.SGD(0.2, momentum=0.9, **keywords, **more), fit=fit, sizes=sizes, **of_trainer
    )
    assert_same_bits(held.model.parameters, plain.model.parameters)
    tops = [np.linalg.norm(w.astype(np.float64), axis=0).max() for w, _ in held.model.weights]
    assert max(tops[len(held.optimizer.frozen) :]) == pytest.approx(LIMIT, rel=1e-6), "nothing was held"


@backends
@pytest.mark.parametrize("name", ops.OPTIMIZERS)
def test_every_optimizer_takes_it(backend, name):
    held, plain = run_both(backend, lambda **more: ops.OPTIMIZERS[name](**{"lr": 0.1, **more}))
    assert_same_bits(held.model.parameters, plain.model.parameters)
    assert_same_bits(held._slots, plain._slots)


@backends
def test_double_precision_and_norms(backend):
    options = {"dtype": "float64", "backend": backend}
    models = [
        fb.Sequential(
            [fb.Dense(30), fb.BatchNorm(ghost_size=10), fb.Activation("relu"), fb.Dense(OUTPUTS)],
            input_size=INPUTS, dtype="float64",
        )
        for _ in range(2)
    ]  # fmt: skip
    x, y = make_data()
    held = fb.Trainer(models[0], "mse", fb.SGD(0.3, max_norm=0.5), backend=options["backend"])
    plain = fb.Trainer(models[1], "mse", fb.SGD(0.3), backend=options["backend"])
    for _ in range(5):
        held.step(x, y)
        plain.step(x, y)
        for w, _ in plain.model.weights:
            right(w, 0.5)
    assert difference(held.model.parameters, plain.model.parameters) < 1e-13
    assert min(gamma.min() for gamma, _ in held.model.norms) > 0.5, "gamma was held"


@backends
def test_single_steps_and_updates_hold(backend):
    x, y = make_data("mse", 30)
    recipe = {"backend": backend, "optimizer": fb.SGD(1.0, max_norm=LIMIT)}
    by_fit, by_step, by_list, by_hand = (make_trainer(**recipe) for _ in range(4))
    for _ in range(3):
        by_fit.fit(x, y, batch_size="full", shuffle=False)
        by_step.step(x, y)
        by_list.step(x.tolist(), y.tolist())  # beside the fast path
        z = by_hand.forward(x)
        by_hand.backward(2 * (z - y) / z.size)
        by_hand.update()
        for w, _ in by_hand.model.weights:
            assert (np.linalg.norm(w.astype(np.float64), axis=0) <= LIMIT * (1 + 1e-6)).all()
    assert_same_bits(by_step.model.parameters, by_fit.model.parameters)
    assert_same_bits(by_list.model.parameters, by_fit.model.parameters)
    assert difference(by_hand.model.parameters, by_fit.model.parameters) < 1e-5


@sizes
def test_threads_change_no_bit(sizes):
    x, y = make_data("cross_entropy", 333)
    trainers = []
    for threads in (1, 2, 3):
        with fb.set_num_threads(threads, exact=True):
            trainers.append(make_trainer("cross_entropy", fb.Adam(0.1, max_norm=0.5), sizes=sizes, dropout=0.1))
            trainers[-1].fit(x, y, batch_size=100, epochs=2)
            if trainers[-1].backend == "c":
                assert trainers[-1].threads_used == threads
    for other in trainers[1:]:
        assert_same_trainer(other, trainers[0])


@backends
def test_layers_have_limits_of_their_own(backend):
    x, y = make_data()
    optimizer = fb.SGD(0.5, max_norm=0.3, groups={0: {"max_norm": 0.6}, 1: {"max_norm": None}})
    trainer = make_trainer(optimizer=optimizer, sizes=(INPUTS, 8, 8, OUTPUTS), backend=backend)
    trainer.fit(x, y, batch_size=10)
    tops = [np.linalg.norm(w, axis=0).max() for w, _ in trainer.model.weights]
    assert tops[0] == pytest.approx(0.6, rel=1e-5)
    assert tops[1] > 0.7
    assert tops[2] == pytest.approx(0.3, rel=1e-5)


@backends
def test_a_limit_that_is_not_reached_changes_no_bit(backend):
    x, y = make_data()
    held, plain = (make_trainer(optimizer=fb.SGD(0.1, max_norm=limit), backend=backend) for limit in (1e6, None))
    for trainer in (held, plain):
        trainer.fit(x, y, batch_size=20, epochs=2)
    assert_same_bits(held.model.parameters, plain.model.parameters)


@backends
@sizes
def test_a_step_that_diverges_holds_nothing(backend, sizes):
    x, y = make_data()
    trainer = make_trainer(sizes=sizes, backend=backend, optimizer=fb.SGD(0.1, max_norm=0.1))
    before = trainer.model.parameters.copy()
    with pytest.raises(fb.DivergenceError):
        trainer.step(np.full_like(x, 1e30), y * 1e30)
    assert_same_bits(trainer.model.parameters, before)


@backends
def test_files_know_it(backend, tmp_path):
    x, y = make_data()
    trainer = make_trainer(optimizer=fb.Adam(0.1, max_norm=0.5, groups={0: {"max_norm": 0.2}}), backend=backend)
    trainer.fit(x, y)
    trainer.save(tmp_path / "t")
    loaded = fb.Trainer.load(tmp_path / "t")
    assert loaded.optimizer == trainer.optimizer
    assert_same_trainer(loaded, trainer)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", [1.0]])
def test_limits_are_numbers_above_0(value):
    with pytest.raises(fb.ArgumentError, match=r"SGD\(max_norm=\): expected a finite number > 0 or None, got"):
        fb.SGD(max_norm=value)
    with pytest.raises(fb.ArgumentError, match=r"Adam\(max_norm=\): expected a finite number > 0 or None, got"):
        fb.Adam(groups={0: {"max_norm": value}})


def test_a_flat_buffer_has_no_columns():
    p = np.ones(4, np.float32)
    with pytest.raises(fb.ArgumentError, match="update: expected an optimizer without max_norm"):
        fb.kernels.update(fb.SGD(max_norm=1.0), p, p.copy(), np.zeros((0, 4), np.float32), 1)
