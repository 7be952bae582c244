"""Noise: the same numbers on every backend and target, of the distribution that is documented, in training only."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest

import fastbatch as fb
from fastbatch import ops
from fastbatch.ops.random import gaussian
from fastbatch.plan import make_plan
from fastbatch.protocol import Feed, State, Sums

BACKENDS = [row["name"] for row in fb.backends() if row["available"] and row["device"] == "cpu"]
SUBJECTS = [name for name, backend in cases.SUBJECTS.items() if name == "reference" or name in cases.FUSED]


def phi(z):
    """The normal distribution function."""
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(z, np.float64) / np.sqrt(2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_invert_the_normal_distribution(dtype, monkeypatch):
    """Over words from end to end: relative error of z, which the error of the distribution function follows from."""
    words = np.concatenate([np.arange(0, 2**32, 65537), [2**31 - 1, 2**31, 2**32 - 1, 255, 256]]).astype(np.uint64)
    words = np.resize(words, -(-len(words) // 4) * 4)
    monkeypatch.setattr("fastbatch.ops.random.philox", lambda *_: list(words.reshape(1, -1, 4).transpose(2, 0, 1)))
    z = gaussian(0, 0, np.arange(1), len(words), dtype)[0].astype(np.float64)
    u = ((words.astype(np.uint32).view(np.int32) >> 8) + 0.5) / 2**23
    assert np.abs(phi(z) - (1 + u) / 2).max() < 1.4e-5
    assert 5.3 < np.abs(z).max() < 5.43
    assert (np.sign(z) == np.sign(u)).all()


def test_moments():
    z = gaussian(7, 3, np.arange(512), 2048, "float64")
    n = z.size
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 5 * np.sqrt(spread / n) + 3e-4
    assert abs(np.corrcoef(z[:, :-1].ravel(), z[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]) < 5 / np.sqrt(n)


def test_numbers_are_keyed_by_seed_update_row_and_unit():
    z = gaussian(1, 2, np.arange(5), 11, "float32")
    assert len(set(z.ravel().tolist())) == 55
    assert (gaussian(1, 2, np.arange(3, 5), 11, "float32") == z[3:]).all()
    assert (gaussian(1, 2, np.arange(5), 7, "float32") == z[:, :7]).all()
    assert not (gaussian(2, 2, np.arange(5), 11, "float32") == z).any()
    assert not (gaussian(1, 3, np.arange(5), 11, "float32") == z).any()


def inputs_seen(subject: str, x, std: float = 0.25, threads: int = 1, order=None, batch: int = 8):
    """What an identity network reads in one pass that changes nothing, in the order visited; scaled by 2."""
    width = x.shape[1]
    model = fb.Sequential([fb.Dense(width)], input_size=width)
    w, b = model.weights[0]
    w[:], b[:] = np.eye(width), 0
    plan = make_plan(model, ops.get_loss("mse"), fb.SGD(0.0))
    state = State(model.parameters, np.zeros((0, model.num_parameters), np.float32), np.zeros(1, np.int64), 5)
    program = cases.program_of(subject, plan, state, threads)
    program.scale_inputs(np.full(width, 2, np.float32), np.zeros(width, np.float32))
    outputs = np.empty((len(x), width), np.float32)
    feed = Feed(x, np.zeros(x.shape, np.float32), order=order, batch=batch, outputs=outputs, noise=std)
    with fb.set_num_threads(threads, exact=True):
        assert program.run(feed, 0, feed.steps, np.zeros(feed.steps), 1e3, Sums()) == feed.steps
    assert (program.accumulate(Feed(x, feed.y, batch=len(x)), 0, np.zeros(model.num_parameters, np.float32))).loss > 0
    return outputs


@pytest.mark.parametrize("subject", SUBJECTS)
# batches of 64 rows of 1, 5 and 33 units end where the numbers drawn at a time do
@pytest.mark.parametrize(("width", "batch"), [(1, 64), (3, 8), (5, 64), (16, 8), (29, 8), (33, 64), (130, 8), (300, 8)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_inputs_are_those_of_the_specification(subject, width, batch, dtype):
    rng = np.random.default_rng(width)
    n = 2 * batch + 5
    x = rng.integers(0, 5, (n, width)).astype(dtype)
    rows = [np.arange(batch), np.arange(batch), np.arange(5)]
    noise = np.concatenate([gaussian(5, update, rows[update], width, "float32") for update in range(3)])
    for order in (None, rng.permutation(n)):
        got, plain = inputs_seen(subject, x, order=order, batch=batch), 2.0 * (x if order is None else x[order])
        np.testing.assert_allclose(got, plain + np.float32(0.25) * noise, rtol=1e-5, atol=1e-6)
        assert np.abs(got - plain).max() > 0.1
        assert (inputs_seen(subject, x, 0.0, order=order, batch=batch) == plain).all()


@pytest.mark.parametrize("subject", cases.FUSED)
def test_no_bit_depends_on_the_threads(subject):
    x = np.random.default_rng(0).normal(size=(300, 37)).astype(np.float32)
    found = {inputs_seen(subject, x, threads=threads, batch=128).tobytes() for threads in (1, 2, 3)}
    assert len(found) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_alone_is_noisy(backend):
    x, y = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32), np.arange(64) % 3

    def trainer(**keywords):
        made = fb.Trainer(fb.MLP([6, 8, 3]), backend=backend)
        made.fit(x, y, validation_data=(x, y), verbose=0, **keywords)
        return made

    plain, noisy = trainer(), trainer(augment=[fb.augment.Noise(0.5)])
    assert plain.history["loss"] != noisy.history["loss"]
    assert trainer(augment=fb.augment.Noise(0.0)).history["loss"] == plain.history["loss"]
    assert noisy.history["val_loss"] == [noisy.evaluate(x, y)["loss"]]
    twice = trainer(augment=fb.augment.Noise(0.5))
    assert twice.model.parameters.tobytes() == noisy.model.parameters.tobytes()
    noisy.fit(x, y, verbose=0, augment=fb.augment.Noise(0.5))
    once = trainer(augment=fb.augment.Noise(0.5), epochs=2)
    assert once.model.parameters.tobytes() == noisy.model.parameters.tobytes()


@pytest.mark.parametrize("value", [3, "noise", [fb.augment.Noise(1), fb.augment.Noise(2)], [None]])
def test_what_is_no_augmentation_is_refused(value):
    trainer = fb.Trainer(fb.MLP([2, 2]))
    with pytest.raises(fb.ArgumentError, match=r"fit\(augment=\): expected"):
        trainer.fit(np.zeros((4, 2)), np.zeros(4, int), augment=value, verbose=0)


@pytest.mark.parametrize("std", [-1, float("nan"), float("inf"), "1"])
def test_what_is_no_deviation_is_refused(std):
    with pytest.raises(fb.ArgumentError, match=r"Noise\(std=\): expected"):
        fb.augment.Noise(std)
