"""input_scale: what is trained on, where it holds, and how it leaves with the model."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastbatch as fb
from fastbatch.data.scaling import standardization
from fastbatch.data.splits import validation_split

BACKENDS = [row["name"] for row in fb.backends() if row["available"] and row["device"] == "cpu"]
ROWS, WIDTH = 53, 19


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (ROWS, WIDTH)).astype(np.uint8)
    return x, np.arange(ROWS) % 3


def trainer_of(backend: str, **keywords) -> fb.Trainer:
    return fb.Trainer(fb.MLP([WIDTH, 9, 3], seed=1), backend=backend, seed=2, **keywords)


SCALE = np.linspace(0.01, 0.02, WIDTH).astype(np.float32)
SHIFT = np.linspace(-1, 1, WIDTH).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_method_sees_the_scaled_inputs(data, backend):
    """Against a trainer that is handed scaled rows: to the bit without rounding in the scale, for powers of two."""
    x, y = data
    plain = (x * np.float32(1 / 128) - np.float32(0.5)).astype(np.float32)
    got, wanted = trainer_of(backend), trainer_of(backend)
    got.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y), input_scale=(1 / 128, -0.5))
    wanted.fit(plain, y, batch_size=8, verbose=0, validation_data=(plain, y))
    assert got.history["loss"] == wanted.history["loss"]
    assert got.history["val_loss"] == wanted.history["val_loss"]
    given = {"bytes": x, "float32, the fast path": x.astype(np.float32)}
    for rows in given.values():
        assert got.step(rows, y) == wanted.step(plain, y)
        assert got.predict(rows).tobytes() == wanted.predict(plain).tobytes()
        assert got.predict(rows[:3]).tobytes() == wanted.predict(plain[:3]).tobytes()
        assert got.evaluate(rows, y) == wanted.evaluate(plain, y)
        for one, other in zip(got.gradients(rows, y), wanted.gradients(plain, y)):
            assert np.array_equal(one, other)
        assert np.array_equal(got.gradient_norms(rows, y), wanted.gradient_norms(plain, y))
        for trainer, inputs in ((got, rows), (wanted, plain)):
            trainer.backward(trainer.forward(inputs))
            trainer.update()
        assert np.array_equal(got.model.parameters, wanted.model.parameters)
    got.fit(x, y, batch_size=8, verbose=0)  # goes on with it
    wanted.fit(plain, y, batch_size=8, verbose=0)
    assert np.array_equal(got.model.parameters, wanted.model.parameters)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("order", "CF")
def test_a_scale_for_each_column(data, backend, dtype, order):
    x, y = data
    x = x.astype(dtype, order=order)
    got, wanted = trainer_of(backend), trainer_of(backend)
    got.input_scale = SCALE, SHIFT
    scaled = x.astype(np.float32) * SCALE + SHIFT
    for shuffle in (True, False):
        got.fit(x, y, batch_size=8, verbose=0, shuffle=shuffle)
        wanted.fit(scaled, y, batch_size=8, verbose=0, shuffle=shuffle)
    # one rounding of x less where multiply-add is one instruction
    np.testing.assert_allclose(got.model.parameters, wanted.model.parameters, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.predict(x), wanted.predict(scaled), rtol=1e-4, atol=1e-5)


def test_bits_depend_neither_on_threads_nor_on_the_dtype_of_x(data):
    x, y = data
    found = set()
    for threads in (1, 2, 3):
        for rows in (x, x.astype(np.float32), np.asfortranarray(x.astype(np.float64))):
            with fb.set_num_threads(threads, exact=True):
                trainer = trainer_of(BACKENDS[0])
                trainer.fit(rows, y, batch_size=40, verbose=0, input_scale=(SCALE, SHIFT))
            found.add(trainer.model.parameters.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardize_gives_mean_0_and_deviation_1(dtype):
    rng = np.random.default_rng(1)
    x = np.asfortranarray(rng.normal(size=(100_000, 6)) * [1e-3, 1, 1e4, 1, 1, 0] + [0, 1e3, 0, -5, 1e-30, 0.1])
    scale, shift = standardization(x, len(x), dtype)
    got = x.astype(dtype).astype(np.float64) * scale + shift
    expected = np.array([1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-4 if dtype == "float32" else 1e-9)
    np.testing.assert_allclose(got.std(axis=0), expected, rtol=1e-4 if dtype == "float32" else 1e-9, atol=1e-7)


def test_standardize_looks_at_training_rows_only(data):
    x, y = data
    trainer = trainer_of(BACKENDS[0])
    trainer.fit(x, y, verbose=0, validation_split=0.3, input_scale="standardize")
    rows, _ = validation_split(y, 0.3, 2)
    scale, shift = trainer.input_scale
    np.testing.assert_allclose(1 / scale, x[rows].std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(-shift / scale, x[rows].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_folded_the_model_takes_raw_inputs(data, backend):
    x, y = data
    trainer = trainer_of(backend)
    trainer.fit(x, y, verbose=0, input_scale="standardize")
    before = trainer.predict(x)
    assert np.abs(trainer.model.predict(x) - before).max() > 0.1
    trainer.fold_input_scale()
    assert trainer.input_scale is None
    np.testing.assert_allclose(trainer.model.predict(x), before, atol=1e-5)
    np.testing.assert_allclose(trainer.predict(x), before, atol=1e-5)
    bits = trainer.model.parameters.tobytes()
    trainer.fold_input_scale()
    assert trainer.model.parameters.tobytes() == bits


@pytest.mark.parametrize("layers", [[fb.Dropout(0.1), fb.Dense(3)], [fb.Dense(3, bias=False)]])
def test_what_cannot_take_the_scale_says_so(layers):
    trainer = fb.Trainer(fb.Sequential(layers, input_size=WIDTH))
    trainer.input_scale = 2, 1
    before = trainer.model.parameters.tobytes()
    with pytest.raises(fb.ArgumentError, match="fold_input_scale: expected"):
        trainer.fold_input_scale()
    assert trainer.model.parameters.tobytes() == before
    assert trainer.input_scale[1][0] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_survives_pickling(data, backend):
    x, y = data
    trainer = trainer_of(backend)
    trainer.fit(x, y, verbose=0, input_scale="standardize")
    again = pickle.loads(pickle.dumps(trainer))
    assert again.predict(x).tobytes() == trainer.predict(x).tobytes()
    assert again.step(x, y) == trainer.step(x, y)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("standardise", fb.ArgumentError, "did you mean 'standardize'"),
        (3, fb.ArgumentError, "input_scale: expected None"),
        ((1, 2, 3), fb.ArgumentError, "input_scale: expected None"),
        ((np.ones(3), 0), fb.ShapeError, "scale: expected a number or shape"),
        ((1, np.nan), fb.DataError, "shift: expected finite"),
        ((1e300, 0), fb.DataError, "scale: expected numbers|scale: expected finite"),
        (("a", 0), fb.DTypeError, "scale: expected a real"),
    ],
)
def test_what_is_no_scale_is_refused_before_anything_changes(data, value, error, words):
    x, y = data
    trainer = trainer_of(BACKENDS[0])
    trainer.input_scale = 2, 0
    before = trainer.model.parameters.tobytes()
    with pytest.raises(error, match=words):
        trainer.fit(x, y, verbose=0, input_scale=value)
    assert trainer.model.parameters.tobytes() == before
    assert trainer.steps == 0
    assert (trainer.input_scale[0] == 2).all()


def test_a_column_that_no_float32_scale_standardizes_is_refused(data):
    x, y = data
    x = x.astype(np.float64)
    x[:, 4] *= 1e-42
    with pytest.raises(fb.DataError, match="column 4"):
        trainer_of(BACKENDS[0]).fit(x, y, verbose=0, input_scale="standardize")
