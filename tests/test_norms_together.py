"""Norms with what else a trainer does: settings of layers, clipping, steps in pieces, checkpoints."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from helpers import BACKENDS, INPUTS, OUTPUTS, assert_same_bits, difference, make_data

import fastbatch as fb

backends = pytest.mark.parametrize("backend", BACKENDS)
sizes = pytest.mark.parametrize("units", [16, 300], ids=["small", "large"])  # on either side of plan.SMALL_GRADIENT
GHOST = 32


def _trainer(units=16, ghost=GHOST, dropout=0.0, backend="auto", dtype="float64", optimizer=None, **options):
    """A norm in front of all, one behind each hidden layer, of either kind."""
    layers = [
        fb.LayerNorm(), fb.Dense(units), fb.BatchNorm(ghost_size=ghost), fb.Activation("tanh"), fb.Dropout(dropout),
        fb.Dense(40), fb.LayerNorm(), fb.Activation("tanh"), fb.Dense(OUTPUTS),
    ]  # fmt: skip
    model = fb.Sequential(layers, input_size=INPUTS, dtype=dtype)
    return fb.Trainer(model, "mse", optimizer or fb.SGD(lr=0.1, momentum=0.9), backend=backend, **options)


def _fit(trainer, rows=150, batch_size=64, epochs=2, **options):
    trainer.fit(*make_data(n=rows), batch_size=batch_size, epochs=epochs, **options)
    return trainer


def _close(one, other, tolerance=1e-9):
    assert difference(one.model.parameters, other.model.parameters) < tolerance
    assert difference(one.model.buffers, other.model.buffers) < tolerance


OPTIMIZERS = {
    "decay": {"optimizer": fb.AdamW(lr=0.01, weight_decay=0.5, decay_bias=False)},
    "groups": {"optimizer": fb.Adam(lr=0.01, groups={0: {"lr_factor": 0.1}, -1: {"weight_decay": 0.3}})},
    "frozen": {"optimizer": fb.SGD(lr=0.1, frozen=(0,))},
    "lamb": {"optimizer": fb.LAMB(lr=0.05, weight_decay=0.1)},
    "lars": {"optimizer": fb.LARS(lr=1.0, trust_coefficient=0.1)},
    "sklearn": {"optimizer": fb.SGD(lr=0.1, weight_decay=1.0, semantics="sklearn")},
    "norm": {"max_grad_norm": 0.3},
    "value": {"clip_value": 0.01},
    "pieces": {"gradient_accumulation_steps": 2},
}


@sizes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_means_the_same_in_both_backends(name, units):
    one, other = (_fit(_trainer(units, backend=backend, **OPTIMIZERS[name])) for backend in ("auto", "reference"))
    _close(one, other)
    assert not np.array_equal(one.model.parameters, _fit(_trainer(units)).model.parameters)


@backends
@sizes
def test_norms_go_with_the_dense_layer_before_them(units, backend):
    """The one in front of all goes with the first. Statistics move in frozen layers, too."""
    trainer = _trainer(units, backend=backend, optimizer=fb.SGD(lr=0.1, frozen=(0,)))
    before, buffers = [part.copy() for pair in trainer.model.norms for part in pair], trainer.model.buffers.copy()
    _fit(trainer)
    kept = [np.array_equal(part, old) for part, old in zip((p for pair in trainer.model.norms for p in pair), before)]
    assert kept == [True] * 4 + [False] * 2
    assert (trainer.model.buffers != buffers).all()


@backends
def test_gamma_and_beta_are_biases_to_decay(backend):
    for decays in (True, False):
        optimizer = fb.SGD(lr=0.1, weight_decay=0.5, decay_bias=decays)
        trainer = _trainer(backend=backend, optimizer=optimizer)
        x, y = make_data(n=64)
        before = trainer.model.parameters.copy()
        gradient = trainer.gradients(x, y)[1]
        gamma = trainer.model.norms[1][0]
        at = (gamma.ctypes.data - trainer.model.parameters.ctypes.data) // gamma.itemsize
        part = slice(at, at + gamma.size)
        trainer.step(x, y)
        expected = before[part] - 0.1 * (gradient[part] + 0.5 * decays * before[part])
        assert difference(gamma, expected) < 1e-12


@backends
@sizes
@pytest.mark.parametrize("limit", [{}, {"max_grad_norm": 0.3}, {"clip_value": 0.01}], ids=["any", "norm", "value"])
def test_a_step_in_pieces_is_the_step(units, backend, limit):
    """Running statistics move piece by piece, and once per ghost batch either way."""
    recipe = {"units": units, "dropout": 0.2, "backend": backend, **limit}
    whole = _fit(_trainer(**recipe), batch_size=128)
    for twin in (
        _fit(_trainer(**recipe), batch_size=128, micro_batch_size=GHOST),
        _fit(_trainer(**recipe), batch_size=128, micro_batch_size=2 * GHOST),
        _fit(_trainer(**recipe, gradient_accumulation_steps=2), batch_size=64),
    ):
        _close(twin, whole, 1e-12)
        if backend != "reference":
            assert_same_bits(twin.model.parameters, whole.model.parameters)
            assert_same_bits(twin.model.buffers, whole.model.buffers)


@sizes
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": GHOST}], ids=["whole", "pieces"])
def test_threads_change_no_bit(units, options):
    trainers = []
    for threads in (1, 2, 3):
        with fb.set_num_threads(threads, exact=True):
            trainers.append(_fit(_trainer(units, dropout=0.2, max_grad_norm=0.3), batch_size=128, **options))
            if trainers[-1].backend == "c":
                assert trainers[-1].threads_used == threads
    for other in trainers[1:]:
        assert_same_bits(other.model.parameters, trainers[0].model.parameters)
        assert_same_bits(other.model.buffers, trainers[0].model.buffers)


@backends
def test_pieces_that_cut_a_ghost_batch_are_refused(backend):
    for trainer, options, words in (
        (_trainer(backend=backend), {"micro_batch_size": 33}, "micro_batch_size: expected a multiple of 32"),
        (_trainer(ghost=None, backend=backend), {"micro_batch_size": 32}, "micro_batch_size: expected all [0-9]+ rows"),
        (
            _trainer(ghost=None, backend=backend, gradient_accumulation_steps=2),
            {},
            "batch_size with gradient_accumulation_steps: expected all [0-9]+ rows",
        ),
    ):
        before = trainer.model.parameters.copy()
        with pytest.raises(fb.ArgumentError, match=words):
            _fit(trainer, **options)
        assert_same_bits(trainer.model.parameters, before)
        assert trainer.steps == 0
    _fit(_trainer(ghost=None, backend=backend), micro_batch_size=64)
    _fit(_trainer(ghost=None, backend=backend, gradient_accumulation_steps=2), rows=60)


@backends
@sizes
def test_a_piece_that_diverges_leaves_the_statistics(units, backend):
    x, y = make_data(n=128)
    y = y.astype(np.float64)
    y[100] = 1e300
    trainer = _trainer(units, backend=backend)
    before = trainer.model.parameters.copy(), trainer.model.buffers.copy()
    with pytest.raises(fb.DivergenceError):
        trainer.fit(x, y, batch_size=128, micro_batch_size=GHOST, shuffle=False)
    assert_same_bits(trainer.model.parameters, before[0])
    assert_same_bits(trainer.model.buffers, before[1])


class _Stop(fb.Callback):
    every_n_steps = 1

    def on_chunk_end(self, steps, logs):
        self.trainer.stop_training = self.trainer.steps == 3


@backends
@pytest.mark.parametrize("through", ["memory", "file"])
def test_an_interrupted_fit_goes_on_with_its_statistics(through, backend, tmp_path):
    recipe = {"dropout": 0.2, "backend": backend, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3}
    whole = _fit(_trainer(**recipe), batch_size=32, epochs=3)
    trainer = _fit(_trainer(**recipe), batch_size=32, epochs=3, callbacks=[_Stop()])
    assert trainer.steps == 3 < whole.steps
    if through == "file":
        trainer.save(tmp_path / "trainer")
        trainer = fb.Trainer.load(tmp_path / "trainer")
    trainer.resume(*make_data(n=150))
    assert trainer.steps == whole.steps
    assert_same_bits(trainer.model.parameters, whole.model.parameters)
    assert_same_bits(trainer.model.buffers, whole.model.buffers)


@backends
@pytest.mark.parametrize("through", ["copy", "file"])
def test_statistics_that_wait_for_their_update_come_back(through, backend, tmp_path):
    x, y = make_data(n=64)
    trainer = _trainer(backend=backend)
    trainer.backward(trainer.forward(x) - y)
    if through == "file":
        trainer.save(tmp_path / "trainer")
        back = fb.Trainer.load(tmp_path / "trainer")
    else:
        back = copy.deepcopy(trainer)
    before = trainer.model.buffers.copy()
    for one in (trainer, back):
        assert_same_bits(one.model.buffers, before)
        one.update()
    assert_same_bits(back.model.buffers, trainer.model.buffers)
    assert (trainer.model.buffers != before).all()
