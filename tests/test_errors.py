"""Bad input: the right exception, words that help, and nothing changed."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from decimal import Decimal

import numpy as np
import pytest
from helpers import BACKENDS, INPUTS, OUTPUTS, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch import kernels, ops

backends = pytest.mark.parametrize("backend", BACKENDS)
N = 20
LOSSES = ("mse", "cross_entropy", "bce", "poisson", "tweedie", "gamma", "focal")
DATA = {loss: make_data(loss, N) for loss in LOSSES}


def _set(array, index, value, dtype=None):
    array = array.astype(dtype or array.dtype)
    array[index] = value
    return array


def _named(name):
    """A function of that name."""

    def function(y_true, y_pred):
        return 0.0

    function.__name__ = name
    return function


@pytest.fixture(scope="module")
def trained():
    """One trainer per loss that has momentum, epochs and steps to lose; tests copy it."""
    trainers = {}
    for loss in LOSSES:
        trainers[loss] = make_trainer(loss, "adam", dropout=0.2)
        trainers[loss].fit(*DATA[loss], batch_size=8, epochs=2, verbose=0)
    return trainers


def _unchanged(trainer, call, error, words):
    """`call` raises `error` with `words`, and leaves `trainer` as it was and working. Returns the message."""
    before = copy.deepcopy(trainer)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert type(caught.value) is error
    assert_same_trainer(trainer, before)
    assert trainer.history == before.history
    x, y = make_data(trainer.loss.name, N)
    assert trainer.fit(x, y)["loss"] == before.fit(x, y)["loss"]
    assert_same_trainer(trainer, before)
    return message


# -- X, y and weights ----------------------------------------------------------------------------------------------

X, Y = DATA["mse"]
LABELS = DATA["cross_entropy"][1]
BINARY = DATA["bce"][1]
COUNTS = DATA["poisson"][1]
OBJECTS = np.array([[None] * INPUTS] * N, object)

BAD_X = {
    "1-D": (X[0], fb.ShapeError, ["(n, 5)", "(5,)", "[None, :]"]),
    "0-D": (np.float32(1), fb.ShapeError, ["(n, 5)", "()"]),
    "a number": (1.5, fb.ShapeError, ["(n, 5)", "()"]),
    "3-D": (X[None], fb.ShapeError, ["(n, 5)", "(1, 20, 5)"]),
    "too wide": (np.c_[X, X], fb.ShapeError, ["(n, 5)", "(20, 10)"]),
    "too narrow": (X[:, :4], fb.ShapeError, ["(n, 5)", "(20, 4)"]),
    "transposed": (X.T, fb.ShapeError, ["(n, 5)", "(5, 20)"]),
    "objects": (OBJECTS, fb.DTypeError, ["real or integer", "object"]),
    "decimals": ([[Decimal(1)] * INPUTS] * N, fb.DTypeError, ["object"]),
    "huge integers": ([[10**30] * INPUTS] * N, fb.DTypeError, ["object"]),
    "strings": (X.astype(str), fb.DTypeError, ["real or integer", "<U"]),
    "bytes": (X.astype("S8"), fb.DTypeError, ["real or integer", "S8"]),
    "complex": (X.astype(complex), fb.DTypeError, ["real or integer", "complex128"]),
    "dates": (X.astype("M8[s]"), fb.DTypeError, ["real or integer", "datetime64"]),
    "durations": (X.astype("m8[s]"), fb.DTypeError, ["real or integer", "timedelta64"]),
    "records": (np.zeros((N, INPUTS), [("a", "f4")]), fb.DTypeError, ["real or integer"]),
    "ragged": ([[1.0] * INPUTS, [1.0] * 3] * 10, fb.ShapeError, ["rectangular"]),
    "None": (None, fb.DTypeError, ["object"]),
    "a dict": ({}, fb.DTypeError, ["object"]),
    "a string": ("X", fb.DTypeError, ["<U1"]),
}

BAD_Y = {
    "mse": {
        "too few": (Y[:-1], fb.ShapeError, ["20 rows", "(19, 4)"]),
        "too many": (np.r_[Y, Y], fb.ShapeError, ["20 rows", "(40, 4)"]),
        "flat": (Y[:, 0], fb.ShapeError, ["(20, 4)", "(20,)", "mse"]),
        "column": (Y[:, :1], fb.ShapeError, ["(20, 4)", "(20, 1)"]),
        "one row": (Y[:1], fb.ShapeError, ["20 rows", "(1, 4)"]),
        "wide": (np.c_[Y, Y], fb.ShapeError, ["(20, 4)", "(20, 8)"]),
        "3-D": (Y[..., None], fb.ShapeError, ["(20, 4)", "(20, 4, 1)"]),
        "a number": (1.0, fb.ShapeError, ["20 rows", "()"]),
        "objects": (Y.astype(object), fb.DTypeError, ["object"]),
        "strings": (Y.astype(str), fb.DTypeError, ["<U"]),
        "complex": (Y * 1j, fb.DTypeError, ["complex"]),
        "ragged": ([[1.0] * 4, [1.0]] * 10, fb.ShapeError, ["rectangular"]),
        "None": (None, fb.DTypeError, ["object"]),
    },
    "cross_entropy": {
        "too few": (LABELS[:-1], fb.ShapeError, ["20 rows", "(19,)"]),
        "too large": (_set(LABELS, 7, 4), fb.DataError, ["0 .. 3", "got 4", "row 7"]),
        "far too large": (_set(LABELS, 7, 2**62), fb.DataError, ["0 .. 3", "row 7"]),
        "too large for int64": (_set(LABELS, 7, 2**64 - 1, np.uint64), fb.DataError, ["0 .. 3", "row 7"]),
        "negative": (_set(LABELS, 3, -1), fb.DataError, ["0 .. 3", "got -1", "row 3"]),
        "between": (_set(LABELS, 3, 0.5, float), fb.DataError, ["integer labels", "0.5", "row 3"]),
        "NaN": (_set(LABELS, 3, np.nan, float), fb.DataError, ["integer labels", "nan", "row 3"]),
        "Inf": (_set(LABELS, 3, np.inf, float), fb.DataError, ["0 .. 3", "inf", "row 3"]),
        "a huge float": (_set(LABELS, 3, 1e30, float), fb.DataError, ["0 .. 3", "1e+30", "row 3"]),
        "names": (np.array(list("abcd"))[LABELS], fb.DTypeError, ["<U1"]),
        "two columns": (np.c_[LABELS, LABELS], fb.ShapeError, ["(20,)", "(20, 4)", "(20, 2)", "cross_entropy"]),
        "distributions above 1": (np.full((N, 4), 1.5), fb.DataError, ["[0, 1]", "1.5"]),
        "distributions below 0": (np.full((N, 4), -0.5), fb.DataError, ["[0, 1]", "-0.5"]),
        "objects": (LABELS.astype(object), fb.DTypeError, ["object"]),
    },
    "poisson": {
        "too few": (COUNTS[:-1], fb.ShapeError, ["20 rows", "(19, 4)"]),
        "flat": (COUNTS[:, 0], fb.ShapeError, ["(20, 4)", "(20,)", "poisson"]),
        "negative": (_set(COUNTS, (4, 1), -0.5), fb.DataError, ["numbers >= 0", "poisson", "-0.5", "row 4"]),
        "two negative": (_set(_set(COUNTS, (9, 0), -2), (5, 3), -7, int), fb.DataError, [">= 0", "-7", "row 5"]),
    },
    "tweedie": {"negative": (_set(COUNTS, (0, 3), -2), fb.DataError, ["numbers >= 0", "tweedie", "-2", "row 0"])},
    "gamma": {
        "zero": (_set(COUNTS + 1, (19, 0), 0), fb.DataError, ["numbers > 0", "gamma", "got 0", "row 19"]),
        "negative": (_set(COUNTS + 1, (3, 2), -1), fb.DataError, ["numbers > 0", "-1", "row 3"]),
        "zero in float32": (_set(COUNTS + 1, (3, 2), 1e-60, float), fb.DataError, ["numbers > 0", "1e-60", "row 3"]),
    },
    "focal": {"two": (_set(BINARY, (4, 1), 2), fb.DataError, ["[0, 1]", "focal", "2"])},
    "bce": {
        "too few": (BINARY[:-1], fb.ShapeError, ["20 rows", "(19, 4)"]),
        "two": (_set(BINARY, (4, 1), 2), fb.DataError, ["[0, 1]", "bce", "2"]),
        "integer two": (_set(BINARY, (4, 1), 2, int), fb.DataError, ["[0, 1]", "bce", "2"]),
        "minus one": (_set(BINARY, (4, 1), -1), fb.DataError, ["[0, 1]", "-1"]),
        "flat": (BINARY[:, 0], fb.ShapeError, ["(20, 4)", "(20,)", "bce"]),
        "column": (BINARY[:, :1], fb.ShapeError, ["(20, 4)", "(20, 1)"]),
    },
}

BAD_WEIGHT = {
    "negative": (np.r_[np.ones(N - 1), -0.5], fb.DataError, [">= 0", "-0.5", "row 19"]),
    "NaN": (_set(np.ones(N), 4, np.nan), fb.DataError, [">= 0", "nan", "row 4"]),
    "Inf": (_set(np.ones(N), 4, np.inf), fb.DataError, ["finite", "inf", "row 4"]),
    "too few": (np.ones(N - 1), fb.ShapeError, ["(20,)", "(19,)"]),
    "column": (np.ones((N, 1)), fb.ShapeError, ["(20,)", "(20, 1)"]),
    "a number": (1.0, fb.ShapeError, ["(20,)", "()"]),
    "strings": (np.array(["1"] * N), fb.DTypeError, ["<U1"]),
    "complex": (np.ones(N, complex), fb.DTypeError, ["complex"]),
    "objects": (np.array([1] * N, object), fb.DTypeError, ["object"]),
}

TAKES_XY = {
    "fit": lambda t, x, y, w=None: t.fit(x, y, sample_weight=w),
    "step": lambda t, x, y, w=None: t.step(x, y, w),
    "partial_fit": lambda t, x, y, w=None: t.partial_fit(x, y, w),
    "gradients": lambda t, x, y, w=None: t.gradients(x, y, w),
    "gradient_norms": lambda t, x, y: t.gradient_norms(x, y),
    "evaluate": lambda t, x, y, w=None: t.evaluate(x, y, w),
    "validation_data": lambda t, x, y, w=None: t.fit(*DATA[t.loss.name], validation_data=(x, y, w)),
}
TAKES_X = {
    "predict": lambda t, x: t.predict(x),
    "model.predict": lambda t, x: t.model.predict(x),
    "model.predict_proba": lambda t, x: t.model.predict_proba(x),
    "forward": lambda t, x: t.forward(x),
}


@pytest.mark.parametrize("bad", BAD_X)
@pytest.mark.parametrize("call", [*TAKES_XY, *TAKES_X])
def test_bad_x(trained, call, bad):
    x, error, words = BAD_X[bad]
    trainer = copy.deepcopy(trained["cross_entropy"])
    if call in TAKES_XY:
        message = _unchanged(trainer, lambda: TAKES_XY[call](trainer, x, LABELS), error, words)
    else:
        message = _unchanged(trainer, lambda: TAKES_X[call](trainer, x), error, words)
    name = {"fit": "X", "evaluate": "X", "predict": "X", "model.predict": "X", "model.predict_proba": "X"}
    assert message.startswith(name.get(call, "validation X" if call == "validation_data" else "x") + ":")


@pytest.mark.parametrize("call", [*TAKES_XY, "forward"])
def test_no_rows(trained, call):
    trainer = copy.deepcopy(trained["mse"])
    x, y = np.empty((0, INPUTS)), np.empty((0, OUTPUTS))
    run = (lambda: trainer.forward(x)) if call == "forward" else (lambda: TAKES_XY[call](trainer, x, y))
    _unchanged(trainer, run, fb.ShapeError, ["at least 1 row", "(0, 5)"])


@pytest.mark.parametrize("call", TAKES_XY)
@pytest.mark.parametrize(("loss", "bad"), [(loss, bad) for loss, cases in BAD_Y.items() for bad in cases])
def test_bad_y(trained, call, loss, bad):
    y, error, words = BAD_Y[loss][bad]
    trainer = copy.deepcopy(trained[loss])
    message = _unchanged(trainer, lambda: TAKES_XY[call](trainer, X, y), error, words)
    assert message.startswith("validation y:" if call == "validation_data" else "y:")


@pytest.mark.parametrize("call", [call for call in TAKES_XY if call != "gradient_norms"])
@pytest.mark.parametrize("bad", BAD_WEIGHT)
def test_bad_sample_weight(trained, call, bad):
    weight, error, words = BAD_WEIGHT[bad]
    trainer = copy.deepcopy(trained["mse"])
    message = _unchanged(trainer, lambda: TAKES_XY[call](trainer, X, Y, weight), error, words)
    assert "sample_weight: expected" in message


# -- NaN and Inf ---------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y", "validation X", "validation y"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite_data_is_refused_by_place(backend, value, where, dtype):
    if backend == "c" and dtype == "float64":
        backend = "auto"
    trainer = make_trainer("mse", dtype=dtype, backend=backend)
    data = {"X": X, "y": Y, "validation X": X, "validation y": Y}
    data[where] = _set(data[where], (13, 2), value)
    validation = data["validation X"], data["validation y"]
    _unchanged(
        trainer,
        lambda: trainer.fit(data["X"], data["y"], validation_data=validation),
        fb.DataError,
        [f"{where}: expected finite", str(value), "row 13", "column 2"],
    )


@backends
@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_data_in_a_step(backend, where, value):
    trainer = make_trainer("mse", backend=backend)
    data = {"x": X, "y": Y}
    data[where] = _set(data[where], (13, 2), value)
    _unchanged(
        trainer,
        lambda: trainer.step(**data),
        fb.DataError,
        [f"{where}: expected finite", str(value), "row 13", "column 2"],
    )


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_nan_in_probabilities(trained, loss):
    y = _set(BINARY, (13, 2), np.nan)
    trainer = copy.deepcopy(trained[loss])
    _unchanged(trainer, lambda: trainer.fit(X, y), fb.DataError, ["y: expected", "nan", "row 13"])


def test_infinities_of_both_signs_are_named_without_a_warning(trained):
    trainer = copy.deepcopy(trained["mse"])
    x = _set(_set(X, (3, 1), np.inf), (13, 2), -np.inf)
    _unchanged(trainer, lambda: trainer.fit(x, Y), fb.DataError, ["X: expected finite", "inf", "row 3", "column 1"])


def test_numbers_beyond_the_models_dtype_are_named_without_a_warning(trained):
    trainer = copy.deepcopy(trained["mse"])
    x = _set(X, (3, 1), 1e300, np.float64)
    _unchanged(trainer, lambda: trainer.fit(x, Y), fb.DataError, ["X: expected", "float32", "1e+300", "row 3"])


def test_large_finite_numbers_are_finite():
    x = np.full((N, INPUTS), 1e308)
    trainer = make_trainer("mse", "sgd", dtype="float64")
    trainer.fit(x, Y)
    assert trainer.steps == 1
    big = make_trainer("mse", "sgd")
    big.fit(np.full((N, INPUTS), 3e38, np.float32), Y, validation_split=0.2)
    assert big.steps == 1


@backends
@pytest.mark.parametrize("where", ["X", "y"])
def test_without_the_check_the_step_refuses(backend, where):
    x, y = X, Y
    if where == "X":
        x = _set(X, (13, 2), np.nan)
    else:
        y = _set(Y, (13, 2), np.nan)
    trainer, twin = make_trainer("mse", backend=backend), make_trainer("mse", backend=backend)
    with pytest.raises(fb.DivergenceError, match="step 4") as caught:
        trainer.fit(x, y, batch_size=4, shuffle=False, check_finite=False)
    assert caught.value.step == 4
    twin.fit(X[:12], Y[:12], batch_size=4, shuffle=False)
    twin.epochs = 0
    assert_same_trainer(trainer, twin)


@pytest.mark.parametrize("at", [0, -1])
def test_weights_that_are_not_finite_are_refused(trained, at):
    trainer = copy.deepcopy(trained["mse"])
    good = trainer.model.parameters[at]
    trainer.model.parameters[at] = np.nan
    with pytest.raises(fb.DataError, match=r"model\.parameters: expected finite"):
        trainer.fit(X, Y)
    trainer.model.parameters[at] = good
    assert_same_trainer(trainer, trained["mse"])


# -- divergence ----------------------------------------------------------------------------------------------------


def test_a_wrong_width_names_the_layer(trained):
    trainer = copy.deepcopy(trained["mse"])
    wide = np.c_[X, X]
    _unchanged(trainer, lambda: trainer.fit(wide, Y), fb.ShapeError, ["X: expected", "layer 0 Dense(5 -> 16)"])
    behind = fb.Trainer(fb.Sequential([fb.Dropout(0.1), fb.Dense(4)], input_size=INPUTS), "mse")
    _unchanged(behind, lambda: behind.step(wide, Y), fb.ShapeError, ["x: expected", "layer 1 Dense(5 -> 4)"])


@backends
@pytest.mark.parametrize("optimizer", ["sgd", "adam", fb.SGD(lr=1e-3, momentum=0.9)], ids=["sgd", "adam", "momentum"])
@pytest.mark.parametrize("call", ["fit", "step"])
def test_divergence_names_the_step_and_keeps_what_it_started_from(backend, optimizer, call):
    trainer, twin = (make_trainer("mse", optimizer, activation="identity", backend=backend) for _ in range(2))
    for each in (trainer, twin):
        each.fit(X, Y, batch_size=5, epochs=2, shuffle=False)
    huge = (X * np.float32(1e25)).astype(np.float32)  # finite, but its square is not
    run = {"fit": lambda: trainer.fit(huge, Y), "step": lambda: trainer.step(huge, Y)}[call]
    held = trainer.model.parameters
    before = held.copy()
    with pytest.raises(fb.DivergenceError) as caught:
        run()
    assert caught.value.step == trainer.steps + 1 == 9
    assert "step 9" in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)
    assert_same_bits(held, before)
    assert_same_trainer(trainer, twin)


@backends
def test_an_exploding_fit_ends_in_divergence(backend):
    # y = w x by gradient descent far beyond the stable step: the error grows by a constant factor each step
    x = np.ones((8, 1), np.float32)
    trainer = fb.Trainer(fb.MLP([1, 1]), "mse", fb.SGD(lr=100.0), backend=backend)
    values = []
    hook = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: values.append(trainer.model.parameters.copy()))
    with pytest.raises(fb.DivergenceError) as caught:
        trainer.fit(x, x * 3, batch_size="full", epochs=200, callbacks=[hook])
    assert caught.value.step == trainer.steps + 1 == len(values) + 1
    assert 5 < trainer.steps < 50
    assert_same_bits(trainer.model.parameters, values[-1])
    assert np.isfinite(trainer.model.parameters).all()
    assert len(trainer.history["loss"]) == len(values)


# e = 1e18: the loss e^2 = 1e36 is finite in float32, the gradient x * e = 1e43 is not. And by its weight a small sum
# becomes a gradient of 9.9e18 * 2 * 1.8e19
@pytest.mark.parametrize(
    ("rows", "value", "target", "weight"), [(4, 1e25, 1e18, 1), (1, 1e25, 1e18, 1), (1, 9.9e18, 1.8e19, 1e-10)]
)
@backends
def test_a_gradient_that_overflows_under_a_finite_loss(backend, rows, value, target, weight):
    trainer = fb.Trainer(fb.MLP([1, 1], init="zeros"), "mse", "sgd", backend=backend)
    x, y = np.full((rows, 1), value, np.float32), np.full((rows, 1), target, np.float32)
    w = np.full(rows, weight)
    twin = copy.deepcopy(trainer)
    for call in (lambda: trainer.step(x, y, sample_weight=w), lambda: trainer.fit(x, y, sample_weight=w)):
        with pytest.raises(fb.DivergenceError, match=r"gradient: expected a finite number, got .*inf.* at step 1"):
            call()
        assert_same_bits(trainer.model.parameters, twin.model.parameters)
        assert trainer.steps == 0
    trainer.step(x * 0 + 1, y * 0 + 1)
    twin.step(x * 0 + 1, y * 0 + 1)
    assert_same_bits(trainer.model.parameters, twin.model.parameters)


@backends
def test_update_from_a_gradient_that_is_not_finite(backend):
    trainer = make_trainer("mse", "adam", activation="identity", backend=backend)
    trainer.step(X, Y)
    twin = copy.deepcopy(trainer)
    trainer.forward(X * np.float32(1e25))
    trainer.backward(Y * np.float32(1e25))
    with pytest.raises(fb.DivergenceError, match="step 2"):
        trainer.update()
    assert_same_trainer(trainer, twin)
    with pytest.raises(fb.ArgumentError, match="backward"):
        trainer.update()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_backward_refuses_what_is_not_finite(trained, value):
    trainer = copy.deepcopy(trained["mse"])
    trainer.forward(X)
    _unchanged(
        trainer, lambda: trainer.backward(_set(Y, (3, 1), value)), fb.DataError, ["dz: expected finite", "row 3"]
    )


@pytest.mark.parametrize(
    ("dz", "error", "words"),
    [
        (Y[:-1], fb.ShapeError, ["(20, 4)", "(19, 4)"]),
        (Y[:, :3], fb.ShapeError, ["(n, 4)", "(20, 3)"]),
        (Y[:, 0], fb.ShapeError, ["(n, 4)", "(20,)"]),
        (Y * 1j, fb.DTypeError, ["complex"]),
        (1.0, fb.ShapeError, ["(n, 4)", "()"]),
    ],
)
def test_bad_dz_leaves_the_forward_standing(trained, dz, error, words):
    trainer, twin = copy.deepcopy(trained["mse"]), copy.deepcopy(trained["mse"])
    trainer.forward(X), twin.forward(X)
    with pytest.raises(error) as caught:
        trainer.backward(dz)
    for word in ("dz: expected", *words):
        assert word in str(caught.value)
    for each in (trainer, twin):
        each.backward(Y)
        each.update()
    assert_same_trainer(trainer, twin)


# -- arguments of fit and its neighbours ---------------------------------------------------------------------------


def _fit(**options):
    return lambda t: t.fit(X, Y, **options)


BAD_ARGUMENTS = {
    **{
        f"batch_size={value!r}": (_fit(batch_size=value), fb.ArgumentError, ["batch_size: expected", "full"])
        for value in (0, -1, 1.0, 32.5, True, None, "Full", "auto ", "32", [32], (), np.float32(4), np.array([4, 4]))
    },
    **{
        f"epochs={value!r}": (_fit(epochs=value), fb.ArgumentError, ["epochs: expected", repr(value)])
        for value in (-1, 1.0, True, None, "10", [1])
    },
    **{
        f"verbose={value!r}": (_fit(verbose=value), fb.ArgumentError, ["verbose: expected", "auto"])
        for value in (3, -1, 1.5, "yes", None, [1])
    },
    **{
        f"validation_split={value!r}": (_fit(validation_split=value), fb.ArgumentError, ["validation_split: expected"])
        for value in (-0.1, 1.0, 1, 2, "0.1", None, True, float("nan"), float("inf"), [0.1])
    },
    "validation_split of no row": (_fit(validation_split=0.001), fb.ArgumentError, ["at least one row", "0 of 20"]),
    "validation_split of all rows": (_fit(validation_split=0.999), fb.ArgumentError, ["at least one row", "20 of 20"]),
    "both validations": (
        _fit(validation_split=0.1, validation_data=(X, Y)),
        fb.ArgumentError,
        ["validation_data or validation_split"],
    ),
    **{
        f"validation_data {name}": (_fit(validation_data=value), fb.ArgumentError, ["validation_data: expected (X, y)"])
        for name, value in {"an array": X, "one": (X,), "four": (X, Y, None, None), "a dict": {"X": X}, "0": 0}.items()
    },
    **{
        f"{flag}={value!r}": (_fit(**{flag: value}), fb.ArgumentError, [f"{flag}: expected True or False", repr(value)])
        for flag in ("shuffle", "drop_last", "check_finite")
        for value in (None, 1, "no")
    },
    **{
        f"callbacks={value!r}": (_fit(callbacks=value), fb.ArgumentError, ["callbacks: expected", "Callback"])
        for value in ([print], [None], [fb.ProgressBar], fb.ProgressBar, "bar", print, 5, None, [fb.ProgressBar(), 1])
    },
    **{
        f"class_weight={value!r}": (
            lambda t, value=value: t.fit(X, LABELS, class_weight=value),
            fb.ArgumentError,
            ["class_weight: expected", *words],
        )
        for value, words in [
            ("balance", ["'balanced'", "'balance'"]),
            ([1, 1, 1, 1], ["dict", "list"]),
            (2.0, ["dict", "float"]),
            ({4: 1.0}, ["0 .. 3", "4"]),
            ({-1: 1.0}, ["0 .. 3", "-1"]),
            ({"a": 1.0}, ["0 .. 3", "'a'"]),
            ({0.5: 1.0}, ["0 .. 3", "0.5"]),
            ({True: 1.0}, ["0 .. 3", "True"]),
            ({1: -1.0}, [">= 0", "-1.0", "class 1"]),
            ({1: float("nan")}, ["finite", "nan", "class 1"]),
            ({1: float("inf")}, ["finite", "inf", "class 1"]),
            ({1: "2"}, ["finite", "'2'", "class 1"]),
            ({1: None}, ["finite", "None", "class 1"]),
            ({1: np.complex64(1)}, ["finite", "class 1"]),
        ]
    },
    "class_weight without classes": (
        _fit(class_weight="balanced"),
        fb.ArgumentError,
        ["class_weight: expected integer labels", "mse"],
    ),
    "class_weight with distributions": (
        lambda t: t.fit(X, np.full((N, OUTPUTS), 0.25), class_weight={0: 1.0}),
        fb.ArgumentError,
        ["class_weight: expected integer labels", "cross_entropy"],
    ),
    **{
        f"micro_batch_size={value!r}": (
            lambda t, value=value: t.gradients(X, Y, micro_batch_size=value),
            fb.ArgumentError,
            ["micro_batch_size: expected an integer >= 1", repr(value)],
        )
        for value in (0, -1, 2.0, True, "8")
    },
    **{
        f"predict batch_size={value!r}": (
            lambda t, value=value: t.model.predict(X, batch_size=value),
            fb.ArgumentError,
            ["batch_size: expected an integer >= 1", repr(value)],
        )
        for value in (0, -1, 2.0, True, "full")
    },
    **{
        f"forward training={value!r}": (
            lambda t, value=value: t.forward(X, training=value),
            fb.ArgumentError,
            ["training: expected True or False"],
        )
        for value in (None, 1, "yes")
    },
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(trained, name):
    call, error, words = BAD_ARGUMENTS[name]
    loss = "cross_entropy" if "class_weight" in name and name != "class_weight without classes" else "mse"
    trainer = copy.deepcopy(trained[loss])
    _unchanged(trainer, lambda: call(trainer), error, words)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_chunk_end"])
@pytest.mark.parametrize("value", [5, "print", [print]])
def test_a_hook_that_cannot_be_called_is_refused_at_once(hook, value):
    with pytest.raises(fb.ArgumentError, match=f"{hook}.*callable"):
        fb.LambdaCallback(**{hook: value})


# -- unknown names -------------------------------------------------------------------------------------------------

MODEL = fb.MLP([INPUTS, 4, OUTPUTS])

UNKNOWN_NAMES = [
    (lambda: fb.MLP([3, 4, 2], activation="rleu"), "activation", "rleu", "relu"),
    (lambda: fb.MLP([3, 2], activation="gleu"), "activation", "gleu", "gelu"),
    (lambda: fb.MLP([3, 4, 2], activation="Tanh"), "activation", "Tanh", "tanh"),
    (lambda: fb.Dense(3, activation="swsh"), "activation", "swsh", None),
    (lambda: fb.Dense(3, activation="lrelu"), "activation", "lrelu", "leaky_relu"),
    (lambda: fb.Activation("sigmiod"), "activation", "sigmiod", "sigmoid"),
    (lambda: fb.Activation("softpuls"), "activation", "softpuls", "softplus"),
    (lambda: fb.Dense(3, activation=None), "activation", None, None),
    (lambda: fb.Dense(3, activation=np.tanh), "activation", np.tanh, None),
    (lambda: fb.Dense(3, init="he"), "init", "he", None),
    (lambda: fb.Dense(3, init="he_unifrom"), "init", "he_unifrom", "he_uniform"),
    (lambda: fb.MLP([3, 2], init="golrot_normal"), "init", "golrot_normal", "glorot_normal"),
    (lambda: fb.MLP([3, 2], init=0), "init", 0, None),
    (lambda: fb.Trainer(MODEL, "crossentropy"), "loss", "crossentropy", "cross_entropy"),
    (lambda: fb.Trainer(MODEL, "cross-entropy"), "loss", "cross-entropy", "cross_entropy"),
    (lambda: fb.Trainer(MODEL, "binary_crossentropy"), "loss", "binary_crossentropy", "bce"),
    (
        lambda: fb.Trainer(MODEL, "sparse_categorical_crossentropy"),
        "loss",
        "sparse_categorical_crossentropy",
        "cross_entropy",
    ),
    (lambda: fb.Trainer(MODEL, "log_loss"), "loss", "log_loss", "cross_entropy"),
    (lambda: fb.Trainer(MODEL, "squared_error"), "loss", "squared_error", "mse"),
    (lambda: fb.Trainer(MODEL, "MSE"), "loss", "MSE", "mse"),
    (lambda: fb.Trainer(MODEL, "l1"), "loss", "l1", "mae"),
    (lambda: fb.Trainer(MODEL, None), "loss", None, None),
    (lambda: fb.Trainer(MODEL, fb.losses.MSE), "loss", fb.losses.MSE, "MSE()"),
    (lambda: fb.Trainer(MODEL, optimizer="adm"), "optimizer", "adm", "adam"),
    (lambda: fb.Trainer(MODEL, optimizer="sdg"), "optimizer", "sdg", "sgd"),
    (lambda: fb.Trainer(MODEL, optimizer=fb.Adam), "optimizer", fb.Adam, "Adam()"),
    (lambda: fb.Trainer(MODEL, optimizer=1e-3), "optimizer", 1e-3, None),
    (lambda: fb.Trainer(MODEL, metrics=["acuracy"]), "metrics", "acuracy", "accuracy"),
    (lambda: fb.Trainer(MODEL, metrics="acc"), "metrics", "acc", "accuracy"),
    (lambda: fb.Trainer(MODEL, metrics=[None]), "metrics", None, None),
    (lambda: fb.Trainer(MODEL, metrics=[dict]), "metrics", dict, "dict()"),
    (lambda: fb.Trainer(MODEL, metrics="top_0"), "metrics", "top_0", "top_k"),
    (lambda: fb.Trainer(MODEL, metrics="f1_score"), "metrics", "f1_score", "f1"),
    (lambda: fb.Trainer(MODEL, metrics="roc_auc"), "metrics", "roc_auc", "auc"),
    (lambda: fb.Trainer(MODEL, "pinball"), "loss", "pinball", "quantile"),
]


@pytest.mark.parametrize(("call", "kind", "name", "meant"), UNKNOWN_NAMES, ids=[repr(row[2]) for row in UNKNOWN_NAMES])
def test_unknown_names(call, kind, name, meant):
    with pytest.raises(fb.ArgumentError) as caught:
        call()
    message = str(caught.value)
    registry = {
        "activation": ops.ACTIVATIONS,
        "init": ops.INITIALIZERS,
        "loss": ops.LOSSES,
        "optimizer": ops.OPTIMIZERS,
        "metrics": ops.METRICS,
    }[kind]
    assert message.startswith(f"{kind}: expected one of ")
    assert f"got {name!r}" in message
    assert all(known in message for known in registry)
    if meant:
        quoted = meant if isinstance(name, type) else repr(meant)
        assert message.endswith(f"; did you mean {quoted}?")
    else:
        assert "did you mean" not in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cpu", "c"), ("numpy", "reference"), ("refrence", "reference"), ("tpu", None), (None, None), (3, None)],
)
@pytest.mark.parametrize(
    "call", [lambda name: fb.Trainer(MODEL, "mse", backend=name), fb.set_backend], ids=["Trainer", "set_backend"]
)
def test_unknown_backends(call, name, meant):
    with pytest.raises(fb.BackendError) as caught:
        call(name)
    assert "backend: expected auto, c, numba, reference" in str(caught.value)
    assert repr(name) in str(caught.value)
    assert (f"did you mean {meant!r}?" in str(caught.value)) == bool(meant)


def test_a_backend_that_cannot_run_the_model_says_why(monkeypatch):
    if not fb.backends()[0]["available"]:
        pytest.skip("the c backend is not built: it cannot refuse")
    from fastbatch.backends import native

    monkeypatch.delitem(native._ACTIVATIONS, "gelu")
    with pytest.raises(fb.BackendError, match=r"'c' cannot run this model: activation 'gelu' has no row"):
        fb.Trainer(fb.MLP([3, 2, 2], activation="gelu"), "mse", backend="c")


# -- unknown keywords ----------------------------------------------------------------------------------------------

TRAINER = make_trainer()
DENSE = [fb.Dense(2)]
P = np.zeros(3, np.float32)

UNKNOWN_KEYWORDS = {
    "MLP": (lambda **k: fb.MLP([3, 2], **k), {"hidden": None, "activaton": "activation", "random_state": "seed"}),
    "Sequential": (
        lambda **k: fb.Sequential(DENSE, **k),
        {"input_sise": "input_size", "random_state": "seed", "zzz": None},
    ),
    "Dense": (
        lambda **k: fb.Dense(3, **k),
        {"use_bias": "bias", "kernel_initializer": "init", "actvation": "activation", "zzz": None},
    ),
    "Activation": (lambda **k: fb.Activation(**k), {"nme": "name"}),
    "Dropout": (lambda **k: fb.Dropout(**k), {"rte": "rate", "zzz": None}),
    "LayerNorm": (lambda **k: fb.LayerNorm(**k), {"epss": "eps", "zzz": None}),
    "BatchNorm": (lambda **k: fb.BatchNorm(**k), {"momentun": "momentum", "ghost_sise": "ghost_size"}),
    "SGD": (lambda **k: fb.SGD(**k), {"learning_rate": "lr", "momentun": "momentum", "nestrov": "nesterov"}),
    "Adam": (
        lambda **k: fb.Adam(**k),
        {
            "learning_rate": "lr",
            "learning_rate_init": "lr",
            "beta_1": "betas",
            "epsilon": "eps",
            "weightdecay": "weight_decay",
        },
    ),
    "AdamW": (lambda **k: fb.AdamW(**k), {"learning_rate": "lr", "ams_grad": "amsgrad"}),
    "RMSprop": (lambda **k: fb.RMSprop(**k), {"rho": "alpha", "center": "centered", "group": "groups"}),
    "Adagrad": (lambda **k: fb.Adagrad(**k), {"lrdecay": "lr_decay", "froze": "frozen"}),
    "NAdam": (lambda **k: fb.NAdam(**k), {"learning_rate": "lr", "semantic": "semantics"}),
    "Lion": (lambda **k: fb.Lion(**k), {"beta_1": "betas", "eps": None}),
    "LAMB": (lambda **k: fb.LAMB(**k), {"epsilon": "eps", "decay_biases": "decay_bias"}),
    "LARS": (lambda **k: fb.LARS(**k), {"trust_coeff": "trust_coefficient", "nesterov": None}),
    "losses.MSE": (lambda **k: fb.losses.MSE(**k), {"reduction": None}),
    "losses.MAE": (lambda **k: fb.losses.MAE(**k), {"reduction": None}),
    "losses.Huber": (lambda **k: fb.losses.Huber(**k), {"dleta": "delta"}),
    "losses.Quantile": (lambda **k: fb.losses.Quantile(**k), {"quantile": None}),
    "losses.Poisson": (lambda **k: fb.losses.Poisson(**k), {"log_input": None}),
    "losses.Tweedie": (lambda **k: fb.losses.Tweedie(**k), {"powr": "power"}),
    "losses.Gamma": (lambda **k: fb.losses.Gamma(**k), {"shape": None}),
    "losses.BCE": (lambda **k: fb.losses.BCE(**k), {"pos_weights": "pos_weight"}),
    "losses.Focal": (lambda **k: fb.losses.Focal(**k), {"gama": "gamma"}),
    "losses.CrossEntropy": (
        lambda **k: fb.losses.CrossEntropy(**k),
        {"label_smooting": "label_smoothing", "weights": "weight"},
    ),
    "Trainer": (
        lambda **k: fb.Trainer(MODEL, "mse", **k),
        {"n_jobs": "num_threads", "random_state": "seed", "optimiser": "optimizer", "metric": "metrics", "zzz": None},
    ),
    "Trainer.fit": (
        lambda **k: TRAINER.fit(X, Y, **k),
        {
            "epoch": "epochs",
            "max_iter": "epochs",
            "n_epochs": "epochs",
            "batchsize": "batch_size",
            "callback": "callbacks",
            "validation_fraction": "validation_split",
            "sample_weights": "sample_weight",
            "zzz": None,
        },
    ),
    "Trainer.step": (lambda **k: TRAINER.step(X, Y, **k), {"sample_weights": "sample_weight"}),
    "Trainer.partial_fit": (
        lambda **k: TRAINER.partial_fit(X, Y, **k),
        {"sample_weights": "sample_weight", "classes": None},
    ),
    "Trainer.gradients": (lambda **k: TRAINER.gradients(X, Y, **k), {"micro_batch": "micro_batch_size"}),
    "Trainer.gradient_norms": (lambda **k: TRAINER.gradient_norms(X, Y, **k), {"sample_weight": None}),
    "Trainer.forward": (lambda **k: TRAINER.forward(X, **k), {"trainig": "training"}),
    "Trainer.backward": (lambda **k: TRAINER.backward(**k), {"dzz": "dz"}),
    "Trainer.update": (lambda **k: TRAINER.update(**k), {"lr": None}),
    "Trainer.fold_input_scale": (lambda **k: TRAINER.fold_input_scale(**k), {"scale": None}),
    "Trainer.evaluate": (lambda **k: TRAINER.evaluate(X, Y, **k), {"sample_weights": "sample_weight"}),
    "Trainer.predict": (lambda **k: TRAINER.predict(**k), {"x": "X"}),
    "model.predict": (lambda **k: MODEL.predict(X, **k), {"batchsize": "batch_size", "validat": "validate"}),
    "model.predict_proba": (lambda **k: MODEL.predict_proba(X, **k), {"batchsize": "batch_size"}),
    "Trainer.save": (lambda **k: TRAINER.save(**k), {"pth": "path"}),
    "Trainer.load": (lambda **k: fb.Trainer.load("x", **k), {"custm": "custom"}),
    "Trainer.resume": (lambda **k: TRAINER.resume(X, Y, **k), {"callback": "callbacks", "epochs": None}),
    "Trainer.retune": (lambda **k: TRAINER.retune(**k), {"optimiser": "optimizer"}),
    "model.save": (lambda **k: MODEL.save(**k), {"pth": "path"}),
    "model.set_weights": (lambda **k: MODEL.set_weights(**k), {"weight": "weights"}),
    "load": (lambda **k: fb.load(**k), {"pth": "path"}),
    "activation": (lambda **k: fb.activation(**k), {"derivativ": "derivative", "gian": "gain"}),
    "loss": (lambda **k: fb.loss(**k), {"derivativ": "derivative", "target": "targets"}),
    "augment.Noise": (lambda **k: fb.augment.Noise(**k), {"sdt": "std"}),
    "augment.Mixup": (lambda **k: fb.augment.Mixup(**k), {"alhpa": "alpha"}),
    "batching.Grow": (lambda **k: fb.batching.Grow(8, **k), {"facter": "factor", "most": None}),
    "batching.NoiseScale": (lambda **k: fb.batching.NoiseScale(**k), {"taget": "target", "most": None}),
    "batching.noise_scale": (lambda **k: fb.batching.noise_scale(TRAINER, X, Y, 2, **k), {"populations": "population"}),
    "batching.scale_lr": (lambda **k: fb.batching.scale_lr(0.1, 8, 16, **k), {"noise": "noise_scale", "rul": "rule"}),
    "schedules.Constant": (lambda **k: fb.schedules.Constant(**k), {"learning_rate": "lr"}),
    "schedules.Step": (lambda **k: fb.schedules.Step(0.1, **k), {"step_size": None, "gama": "gamma"}),
    "schedules.Exponential": (lambda **k: fb.schedules.Exponential(0.1, **k), {"gama": "gamma"}),
    "schedules.Cosine": (lambda **k: fb.schedules.Cosine(0.1, **k), {"total_step": "total_steps", "eta_min": None}),
    "schedules.Warmup": (lambda **k: fb.schedules.Warmup(5, **k), {"than": "then"}),
    "schedules.OneCycle": (
        lambda **k: fb.schedules.OneCycle(0.1, **k),
        {"total_step": "total_steps", "div_facter": "div_factor"},
    ),
    "EarlyStopping": (
        lambda **k: fb.EarlyStopping(**k),
        {"patients": "patience", "restore_best": "restore_best_weights"},
    ),
    "ReduceLROnPlateau": (lambda **k: fb.ReduceLROnPlateau(**k), {"fctor": "factor", "coldown": "cooldown"}),
    "ModelCheckpoint": (
        lambda **k: fb.ModelCheckpoint("x", **k),
        {"every_n_step": "every_n_steps", "save_best_only": None},
    ),
    "CSVLogger": (lambda **k: fb.CSVLogger("x", **k), {"apend": "append", "separator": None}),
    "TensorBoard": (lambda **k: fb.TensorBoard(**k), {"logdir": "log_dir"}),
    "EMA": (lambda **k: fb.EMA(**k), {"dekay": "decay"}),
    "LambdaCallback": (lambda **k: fb.LambdaCallback(**k), {"on_epoch_ends": "on_epoch_end", "zzz": None}),
    "ProgressBar": (lambda **k: fb.ProgressBar(**k), {"line": "lines"}),
    "History.plot": (lambda **k: fb.History().plot(**k), {"pth": "path"}),
    "set_num_threads": (lambda **k: fb.set_num_threads(1, **k), {"exactly": "exact"}),
    "set_backend": (lambda **k: fb.set_backend(**k), {"nme": "name"}),
    "kernels.dense_forward": (lambda **k: kernels.dense_forward(X, X.T, **k), {"activaton": "activation", "ot": "out"}),
    "kernels.dense_backward": (lambda **k: kernels.dense_backward(X, X, X, X, **k), {"needs_dx": "need_dx"}),
    "kernels.loss": (lambda **k: kernels.loss("mse", X, X, **k), {"backed": "backend"}),
    "kernels.update": (lambda **k: kernels.update(fb.SGD(), P, P, P, 1, **k), {"backed": "backend"}),
}
_ROWS = [(name, word, meant) for name, (_, words) in UNKNOWN_KEYWORDS.items() for word, meant in words.items()]


@pytest.mark.parametrize(("name", "word", "meant"), _ROWS, ids=[f"{row[0]}-{row[1]}" for row in _ROWS])
def test_unknown_keywords(name, word, meant):
    before = TRAINER.model.parameters.copy()
    with pytest.raises(TypeError) as caught:
        UNKNOWN_KEYWORDS[name][0](**{word: 1})
    message = str(caught.value)
    assert repr(word) in message
    if meant:
        assert f"did you mean {meant!r}?" in message
    else:
        assert "did you mean" not in message
    assert_same_bits(TRAINER.model.parameters, before)
    assert TRAINER.steps == 0


# What people bring along from the neighbouring libraries, and where they are sent
MISTAKES = {
    "lr-of-trainer": (lambda: fb.Trainer(MODEL, lr=1), "of fastbatch.Trainer; it belongs to the optimizer: optimizer="),
    "alpha-of-trainer": (lambda: fb.Trainer(MODEL, alpha=1), r"the optimizer: optimizer=fb.AdamW\(weight_decay=...\)"),
    "batch-of-trainer": (lambda: fb.Trainer(MODEL, batch_size=1), "fastbatch.Trainer; it belongs to Trainer.fit"),
    "max_iter-of-trainer": (lambda: fb.Trainer(MODEL, max_iter=1), "it belongs to Trainer.fit"),
    "loss-of-model": (lambda: fb.MLP([2, 2], loss="mse"), "fastbatch.MLP; it belongs to Trainer"),
    "lr-of-step": (lambda: TRAINER.step(X, X, lr=1), "of fastbatch.Trainer.step; it belongs to the optimizer"),
    "torch-linear": (lambda: fb.Dense(10, 20), "expected a name, got 20; Dense.units. takes the number of outputs"),
    "other-module": (lambda: fb.Grow, r"no attribute 'Grow'; did you mean fb\.batching\.Grow\?"),
    "loss-of-package": (lambda: fb.CrossEntropy, r"did you mean fb\.losses\.CrossEntropy\?"),
    "sampling": (lambda: TRAINER.fit(X, Y, sampling="uniform"), "None, \"balanced\" or weights .n,., got 'uniform'"),
    "scaling": (lambda: TRAINER.fit(X, Y, input_scale="minmax"), ".scale, shift. or \"standardize\", got 'minmax'"),
    "val_acc": (lambda: fb.EarlyStopping("val_acc"), "mode='max' with it, got 'auto'; did you mean 'accuracy'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_newcomers(name):
    call, words = MISTAKES[name]
    with pytest.raises((TypeError, ValueError, AttributeError), match=words):
        call()


def test_sparse_matrices_and_tables_with_words_say_what_came():
    sparse = pytest.importorskip("scipy.sparse", reason="sparse matrices are scipy's")
    with pytest.raises(fb.DTypeError, match=r"^X: .*, got a sparse csr_matrix; \.toarray"):
        TRAINER.predict(sparse.csr_matrix(X))
    pandas = pytest.importorskip("pandas", reason="tables are pandas'")
    with pytest.raises(fb.DTypeError, match=r"^X: .*expected numeric columns, got b \(\w+\), d \(\w+\)$"):
        TRAINER.predict(pandas.DataFrame({"a": [1], "b": ["x"], "c": [0.5], "d": ["y"]}))


def test_every_public_callable_is_in_the_table():
    """A new public class or function needs a row above."""
    modules = {"augment", "batching", "kernels", "losses", "schedules"}
    silent = {"Callback", "History", "backends", "get_num_threads", "info", "__version__", "optimizer"} | modules
    errors = {name for name in fb.__all__ if name.endswith("Error")}
    assert {name for name in UNKNOWN_KEYWORDS if "." not in name} == set(fb.__all__) - silent - errors
    for module, prefix in (
        (fb.augment, "augment."),
        (fb.batching, "batching."),
        (kernels, "kernels."),
        (fb.losses, "losses."),
        (fb.schedules, "schedules."),
    ):
        apart = ("Augmentation", "LOSSES", "Loss", "SCHEDULES", "Schedule", "AUGMENTATIONS", "parts_of")
        public = {prefix + name for name in module.__all__ if name not in apart}
        assert public == {name for name in UNKNOWN_KEYWORDS if name.startswith(prefix)}
    methods = {f"Trainer.{n}" for n in dir(fb.Trainer) if n[0] != "_" and callable(getattr(fb.Trainer, n))}
    assert methods == {name for name in UNKNOWN_KEYWORDS if name.startswith("Trainer.")}


# -- descriptions --------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")

BAD_DESCRIPTIONS = {
    **{
        f"{cls.__name__}({field}={value!r})": (
            lambda cls=cls, field=field, value=value: cls(**{field: value}),
            [f"{cls.__name__}({field}=): expected"],
        )
        for cls, names in {
            fb.SGD: ["lr", "momentum", "dampening", "weight_decay"],
            fb.Adam: ["lr", "eps", "weight_decay"],
            fb.AdamW: ["lr", "eps", "weight_decay"],
            fb.RMSprop: ["lr", "alpha", "eps", "weight_decay", "momentum", "l1"],
            fb.Adagrad: ["lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"],
            fb.NAdam: ["lr", "eps", "weight_decay", "momentum_decay"],
            fb.Lion: ["lr", "weight_decay"],
            fb.LAMB: ["lr", "eps", "weight_decay"],
            fb.LARS: ["lr", "momentum", "weight_decay", "trust_coefficient", "eps"],
        }.items()
        for field in names
        for value in (-1e-3, NAN, INF, "0.1", None, [0.1], True, 1j)
    },
    **{
        f"{cls.__name__}(betas={value!r})": (
            lambda cls=cls, value=value: cls(betas=value),
            [f"{cls.__name__}(betas=): expected a pair"],
        )
        for cls in (fb.Adam, fb.AdamW, fb.NAdam, fb.Lion, fb.LAMB)
        for value in (
            0.9,
            (),
            (0.9,),
            (0.9, 0.99, 0.999),
            (0.9, 1.0),
            (-0.1, 0.9),
            ("0.9", 0.9),
            (0.9, NAN),
            None,
            "ab",
            (0.9, True),
        )
    },
    "nesterov without momentum": (lambda: fb.SGD(nesterov=True), ["nesterov", "momentum > 0"]),
    "nesterov with dampening": (
        lambda: fb.SGD(momentum=0.9, dampening=0.1, nesterov=True),
        ["nesterov", "dampening = 0", "0.1"],
    ),
    **{
        f"nesterov={value!r}": (
            lambda value=value: fb.SGD(momentum=0.9, nesterov=value),
            ["SGD(nesterov=): expected True or False"],
        )
        for value in ("no", 2, None)
    },
    **{
        f"Huber(delta={value!r})": (
            lambda value=value: fb.losses.Huber(delta=value),
            ["Huber(delta=): expected", "> 0"],
        )
        for value in (0, -1.0, NAN, INF, "1", None)
    },
    **{
        f"CrossEntropy(label_smoothing={value!r})": (
            lambda value=value: fb.losses.CrossEntropy(label_smoothing=value),
            ["label_smoothing", "[0, 1]"],
        )
        for value in (-0.1, 1.1, NAN, "0.1", None)
    },
    **{
        f"CrossEntropy(weight={value!r})": (
            lambda value=value: fb.losses.CrossEntropy(weight=value),
            ["CrossEntropy(weight=): expected finite"],
        )
        for value in ((1, -1), (1, NAN), (1, INF), "ab", ("a", "b"), ((1, 2), (3, 4)), (1j, 1), {0: 1})
    },
    **{
        f"BCE(pos_weight={value!r})": (
            lambda value=value: fb.losses.BCE(pos_weight=value),
            ["BCE(pos_weight=): expected finite"],
        )
        for value in (-1, NAN, INF, "1", ((1, 2),))
    },
    **{
        f"Dense({value!r})": (
            lambda value=value: fb.Dense(value),
            ["Dense(units=): expected an integer >= 1", repr(value)],
        )
        for value in (0, -3, 2.0, True, "3", None)
    },
    **{
        f"Dense(bias={value!r})": (
            lambda value=value: fb.Dense(3, bias=value),
            ["Dense(bias=): expected True or False"],
        )
        for value in (None, 1, "no")
    },
    **{
        f"Dropout({value!r})": (lambda value=value: fb.Dropout(value), ["Dropout(rate=): expected a number in [0, 1)"])
        for value in (1, 1.0, -0.1, NAN, "0.5", None, True)
    },
    **{
        f"MLP({value!r})": (lambda value=value: fb.MLP(value), words)
        for value, words in [
            ([3], ["MLP(sizes=)", "[3]"]),
            ([], ["MLP(sizes=)", "[]"]),
            (3, ["MLP(sizes=)", "3"]),
            (None, ["MLP(sizes=)", "None"]),
            ([3, 0], [">= 1", "0"]),
            ([0, 3], [">= 1", "0"]),
            ([3, 4.0, 2], [">= 1", "4.0"]),
            ([3.5, 2], [">= 1", "3.5"]),
            ("32", ["list", "32"]),
        ]
    },
    "MLP dropout of 1": (lambda: fb.MLP([3, 2], dropout=1.0), ["Dropout(rate=)", "1.0"]),
    "no layers": (lambda: fb.Sequential([], input_size=3), ["at least one Dense"]),
    "no Dense": (lambda: fb.Sequential([fb.Dropout(0.5)], input_size=3), ["at least one Dense"]),
    "not a layer": (
        lambda: fb.Sequential([fb.Dense(3), "relu"], input_size=3),
        ["expected layers", "'relu'", "position 1"],
    ),
    "a class": (lambda: fb.Sequential([fb.Dense], input_size=3), ["expected layers", "position 0"]),
    "one layer": (lambda: fb.Sequential(fb.Dense(3), input_size=3), ["Sequential", "expected", "layers"]),
    **{
        f"input_size={value!r}": (
            lambda value=value: fb.Sequential(DENSE, input_size=value),
            ["input_size=", "integer >= 1", repr(value)],
        )
        for value in (0, -1, 2.0, True, "3", None, (3,))
    },
    **{
        f"seed={value!r}": (lambda value=value: fb.MLP([3, 2], seed=value), ["seed=", "2**64", repr(value)])
        for value in (-1, 2**64, 0.5, None, "0", True)
    },
    **{
        f"Trainer seed={value!r}": (lambda value=value: fb.Trainer(MODEL, "mse", seed=value), ["seed=", "2**64"])
        for value in (-1, 2**64, 0.5, None)
    },
    **{
        f"dtype={value!r}": (
            lambda value=value: fb.MLP([3, 2], dtype=value),
            ["dtype: expected one of float32, float64"],
        )
        for value in ("float16", "int32", "double32", None, object, 32, "complex64")
    },
    **{
        f"Trainer({value!r})": (lambda value=value: fb.Trainer(value), ["model=", "Sequential", type(value).__name__])
        for value in (None, "mlp", [3, 2], fb.MLP)
    },
    **{
        f"num_threads={value!r}": (
            lambda value=value: fb.Trainer(MODEL, "mse", num_threads=value),
            ["num_threads: expected an integer >= 1"],
        )
        for value in (0, -1, 1.5, "2", True)
    },
    **{
        f"set_num_threads({value!r})": (lambda value=value: fb.set_num_threads(value), ["integer >= 1", repr(value)])
        for value in (0, -1, 1.5, "2", True)
    },
    **{
        f"Quantile({value!r})": (lambda value=value: fb.losses.Quantile(value), ["Quantile(q=): expected", "(0, 1)"])
        for value in (0, 1, -0.1, np.nan, "0.5", None, True)
    },
    **{
        f"Tweedie({value!r})": (lambda value=value: fb.losses.Tweedie(value), ["Tweedie(power=)", "(1, 2)", "Gamma()"])
        for value in (1, 2, 0, 3.0, np.nan, "1.5")
    },
    **{
        f"Focal(gamma={value!r})": (lambda value=value: fb.losses.Focal(gamma=value), ["Focal(gamma=)", ">= 0"])
        for value in (-1, np.inf, np.nan, "2")
    },
    **{
        f"Focal(alpha={value!r})": (lambda value=value: fb.losses.Focal(alpha=value), ["Focal(alpha=)", "(0, 1)"])
        for value in (0, 1, -0.1, np.nan, (0.5, 0.5))
    },
    **{
        f"CrossEntropy(ignore_index={value!r})": (
            lambda value=value: fb.losses.CrossEntropy(ignore_index=value),
            ["ignore_index=): expected an integer or None"],
        )
        for value in (1.0, "0", True, (1, 2))
    },
    "accuracy of mse": (
        lambda: fb.Trainer(MODEL, "mse", metrics=["accuracy"]),
        ["'accuracy'", "'mse'", "expected one of mse, mae, r2"],
    ),
    "top_3 of bce": (lambda: fb.Trainer(MODEL, "bce", metrics=["top_3"]), ["'top_3'", "'bce'", "expected one of"]),
    "r2 of bce": (lambda: fb.Trainer(MODEL, "bce", metrics="r2"), ["'r2'", "'bce'"]),
    "auc of poisson": (lambda: fb.Trainer(MODEL, "poisson", metrics="auc"), ["'auc'", "'poisson'", "counts"]),
    "two lambdas": (
        lambda: fb.Trainer(MODEL, "mse", metrics=[lambda y, z: 0, lambda y, z: 1]),
        ["metrics: expected functions with names of their own", "<lambda>"],
    ),
    "no name": (lambda: fb.Trainer(MODEL, "mse", metrics=functools.partial(max)), ["names of their own", "None"]),
    **{
        f"named {name}": (
            lambda name=name: fb.Trainer(MODEL, "mse", metrics=_named(name)),
            ["names of their own", name],
        )
        for name in ("loss", "accuracy", "val_own", "lr")
    },
    "mae of classes": (lambda: fb.Trainer(MODEL, "cross_entropy", metrics=["mae"]), ["'mae'", "'cross_entropy'"]),
    "metrics=5": (lambda: fb.Trainer(MODEL, "mse", metrics=5), ["metrics: expected", "5"]),
}


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_bad_descriptions(name):
    call, words = BAD_DESCRIPTIONS[name]
    threads = fb.get_num_threads()
    with pytest.raises(fb.ArgumentError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert fb.get_num_threads() == threads


@backends
@pytest.mark.parametrize(
    "loss",
    [fb.losses.CrossEntropy(weight=(1, 2, 3)), fb.losses.CrossEntropy(weight=2.0), fb.losses.BCE(pos_weight=(1, 2))],
    ids=repr,
)
def test_weights_of_a_loss_are_one_per_output(backend, loss):
    with pytest.raises(fb.ShapeError, match="4 weights"):
        fb.Trainer(MODEL, loss, backend=backend)


@backends
def test_one_pos_weight_is_for_all_outputs(backend):
    one, four = (make_trainer(fb.losses.BCE(pos_weight=w), backend=backend) for w in (3.0, (3.0, 3.0, 3.0, 3.0)))
    one.fit(X, BINARY), four.fit(X, BINARY)
    assert_same_bits(one.model.parameters, four.model.parameters)


# -- set_weights ---------------------------------------------------------------------------------------------------

_W = [(np.ones((5, 4), np.float32), np.ones(4, np.float32)), (np.ones((4, 4), np.float32), np.ones(4, np.float32))]

BAD_WEIGHTS = {
    "too few": (_W[:1], fb.ShapeError, ["2 pairs", "1"]),
    "too many": ([*_W, _W[0]], fb.ShapeError, ["2 pairs", "3"]),
    "flat": ([part for pair in _W for part in pair], fb.ShapeError, ["2 pairs", "4"]),
    "not pairs": ([np.ones((5, 4)), np.ones((4, 4))], fb.ShapeError, ["pair (w, b)", "Dense 0"]),
    "transposed": ([(_W[0][0].T, _W[0][1]), _W[1]], fb.ShapeError, ["w (5, 4)", "(4, 5)", "Dense 0"]),
    "second": ([_W[0], (_W[1][0], np.ones(3))], fb.ShapeError, ["b (4,)", "(3,)", "Dense 1"]),
    "no bias": ([_W[0], (_W[1][0], None)], fb.ShapeError, ["b (4,)", "None", "Dense 1"]),
    "strings": ([_W[0], (_W[1][0].astype(str), _W[1][1])], fb.DTypeError, ["Dense 1", "real"]),
    "words": ([_W[0], (np.full((4, 4), "w"), _W[1][1])], fb.DTypeError, ["Dense 1", "real"]),
    "complex": ([_W[0], (_W[1][0] * 1j, _W[1][1])], fb.DTypeError, ["Dense 1", "complex"]),
    "objects": ([_W[0], (np.full((4, 4), None), _W[1][1])], fb.DTypeError, ["Dense 1", "object"]),
    "ragged": ([_W[0], ([[1, 2], [3]], _W[1][1])], fb.ShapeError, ["Dense 1"]),
}


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
def test_bad_weights(bad):
    weights, error, words = BAD_WEIGHTS[bad]
    model = fb.MLP([5, 4, 4])
    before = model.parameters.copy()
    with pytest.raises(error) as caught:
        model.set_weights(weights)
    for word in ("set_weights", "expected", *words):
        assert word in str(caught.value)
    assert_same_bits(model.parameters, before)
    model.set_weights(_W)
    assert (model.parameters == 1).all()


# -- the exceptions themselves -------------------------------------------------------------------------------------

FAMILY = {
    fb.ShapeError: ValueError,
    fb.DTypeError: TypeError,
    fb.ArgumentError: ValueError,
    fb.BackendError: Exception,
    fb.CheckpointError: Exception,
    fb.DataError: ValueError,
    fb.DivergenceError: Exception,
    fb.BusyError: Exception,
}


def test_the_family_is_complete():
    assert {name for name in fb.__all__ if name.endswith("Error")} == {
        "FastbatchError",
        *(cls.__name__ for cls in FAMILY),
    }
    for cls, base in FAMILY.items():
        assert issubclass(cls, (fb.FastbatchError, base))
        assert issubclass(cls, fb.FastbatchError)
        assert issubclass(cls, base)


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_exceptions_are_picklable(cls, protocol):
    error = cls("what happened", 17) if cls is fb.DivergenceError else cls("what happened")
    error.note = "kept"
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is cls
    assert str(twin) == "what happened"
    if cls is fb.DivergenceError:
        assert twin.step == 17
    assert str(copy.copy(error)) == str(copy.deepcopy(error)) == "what happened"


def test_an_error_of_a_thread_can_be_pickled_as_raised():
    trainer, errors = make_trainer(), []

    def diverge():
        try:
            trainer.fit(X * np.float32(np.nan), Y, check_finite=False)
        except fb.DivergenceError as error:
            errors.append(pickle.loads(pickle.dumps(error)))

    thread = threading.Thread(target=diverge)
    thread.start()
    thread.join()
    assert errors[0].step == 1
    assert "step 1" in str(errors[0])


# -- what must not reach the kernels -----------------------------------------------------------------------------------


def test_masked_entries_are_refused():
    x, y = np.ones((6, 5), np.float32), np.array([0, 1, 2, -9, 0, 1])
    trainer = fb.Trainer(fb.MLP([5, 4, 3]))
    before = trainer.model.parameters.copy()
    for call in (
        lambda: trainer.fit(x, np.ma.masked_array(y, mask=y < 0)),
        lambda: trainer.step(x, np.maximum(y, 0), np.ma.masked_array(np.where(y < 0, -1.0, 1.0), mask=y < 0)),
        lambda: trainer.step(np.ma.masked_array(x, mask=x > 0), np.maximum(y, 0)),
    ):
        with pytest.raises(fb.DataError, match="masked"):
            call()
    assert_same_bits(trainer.model.parameters, before)
    trainer.step(np.ma.masked_array(x), np.ma.masked_array(np.maximum(y, 0)))


def test_matrices_are_arrays():
    x, y = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    plain, matrix = fb.Trainer(fb.MLP([5, 4, 3])), fb.Trainer(fb.MLP([5, 4, 3]))
    plain.step(x, y)
    with pytest.warns(PendingDeprecationWarning):  # NumPy's own, of the class
        x, y = np.asmatrix(x), np.asmatrix(y[:, None])
    matrix.step(x, y)
    assert_same_bits(matrix.model.parameters, plain.model.parameters)


def test_labels_are_read_once():
    """A caller who relabels his own array between two epochs does not reach into a running fit."""
    x, y = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    quiet, loud = fb.Trainer(fb.MLP([5, 4, 3])), fb.Trainer(fb.MLP([5, 4, 3]))
    quiet.fit(x, y, epochs=3)
    own = y.copy()
    loud.fit(x, own, epochs=3, callbacks=[fb.LambdaCallback(on_epoch_end=lambda epoch, logs: own.fill(-(2**40)))])
    assert_same_bits(loud.model.parameters, quiet.model.parameters)


def test_class_weight_wants_labels_in_the_validation_data_too():
    x, y = np.ones((6, 5), np.float32), np.array([0, 1, 2, 0, 1, 2])
    trainer = fb.Trainer(fb.MLP([5, 4, 3]))
    with pytest.raises(fb.ArgumentError, match="validation y"):
        trainer.fit(x, y, class_weight="balanced", validation_data=(x, np.eye(3)[y]))
    assert trainer.steps == 0


@pytest.mark.parametrize("shared", ["x", "w"])
def test_out_has_memory_of_its_own(shared):
    arrays = {"x": np.ones((4, 4), np.float32), "w": np.ones((4, 4), np.float32)}
    with pytest.raises(fb.ArgumentError, match=f"shared with {shared}"):
        fb.kernels.dense_forward(**arrays, out=arrays[shared])


def test_updates_do_not_read_what_they_write():
    p, slots = np.ones(4, np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(fb.ArgumentError, match="shared with g"):
        fb.kernels.update(fb.Adam(), p, p, slots, 1)
    with pytest.raises(fb.ArgumentError, match="shared with g"):
        fb.kernels.update(fb.Adam(), p, slots[0], slots, 1)
    assert (p == 1).all()


def test_adam_needs_an_eps():
    with pytest.raises(fb.ArgumentError, match="eps"):
        fb.Adam(eps=0)


def test_running_without_the_kernels_is_said_aloud(monkeypatch):
    from fastbatch.backends import _loaded

    monkeypatch.setitem(_loaded, "c", "no compiler was found")
    monkeypatch.delenv("FASTBATCH_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning, match=r"no compiler was found.*fastbatch info"):
        trainer = fb.Trainer(fb.MLP([3, 2]))
    there = {backend["name"] for backend in fb.backends() if backend["available"]}
    assert trainer.backend == ("numba" if "numba" in there else "reference")
    with pytest.raises(fb.BackendError, match="no compiler was found"):
        fb.Trainer(fb.MLP([3, 2]), backend="c")


def test_labels_that_are_words_get_a_hint():
    trainer = fb.Trainer(fb.MLP([2, 4, 2]))
    with pytest.raises(fb.DTypeError, match=r"np\.unique"):
        trainer.fit(np.ones((2, 2)), np.array(["cat", "dog"]))


def test_forgetting_the_loss_of_a_regression_gets_a_hint():
    trainer = fb.Trainer(fb.MLP([2, 4, 1]))
    with pytest.raises(fb.DataError, match="loss='mse'"):
        trainer.fit(np.ones((2, 2)), np.array([0.5, 1.5]))
    with pytest.raises(fb.DataError, match="loss='bce'"):
        trainer.fit(np.ones((2, 2)), np.array([0, 1]))


def test_saving_into_no_folder_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder that exists, got .*missing"):
        fb.MLP([2, 2]).save(tmp_path / "missing" / "model.safetensors")


@pytest.mark.parametrize("name", ["fit", "step", "compile", "partial_fit", "evaluate", "train_on_batch"])
def test_what_a_trainer_does_a_model_points_to(name):
    model = fb.MLP([2, 3])
    with pytest.raises(
        AttributeError, match=rf"Sequential object has no attribute '{name}'.*fastbatch\.Trainer\(model"
    ):
        getattr(model, name)
    assert not hasattr(model, name)


def test_attributes_that_are_nearly_there():
    model = fb.MLP([2, 3])
    for owner, name, meant in (
        (model, "predict_probability", "predict_proba"),
        (model, "weight", "weights"),
        (fb, "Linear", "Dense"),
        (fb, "MLPClassifier", "MLP"),
        (fb, "trainer", "Trainer"),
        (fb, "AdamWW", "AdamW"),
    ):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean '{meant}'"):
            getattr(owner, name)
    for owner in (model, fb):
        for name in ("zzzzzz", "__array__", "_parameter"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}'$"):
                getattr(owner, name)


@backends
@pytest.mark.parametrize(("loss", "far"), [("poisson", 200.0), ("tweedie", 500.0), ("gamma", -200.0)])
def test_a_prediction_whose_exponential_overflows_is_a_divergence(backend, loss, far):
    x, y = make_data(loss, N)
    trainer = make_trainer(loss, backend=backend)
    trainer.step(x, y)
    trainer.model.weights[-1][1][2] = far
    before = trainer.model.parameters.copy()
    for call in (lambda: trainer.step(x, y), lambda: trainer.fit(x, y)):
        with pytest.raises(fb.DivergenceError, match="loss: expected a finite number, got inf at step 2"):
            call()
        assert_same_bits(trainer.model.parameters, before)
    trainer.model.weights[-1][1][2] = 0
    assert np.isfinite(trainer.step(x, y))
