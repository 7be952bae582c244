"""LayerNorm and BatchNorm of the cuda backend: what test_norms.py asks of any, in the simulator or on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import test_norms
import test_samples
from cases import BATCH_NETS, NetCase, parametrize

import fastbatch as fb
from fastbatch.protocol import Sums

pytest.importorskip("numba_cuda")

import test_cuda_device
from test_cuda_device import _steady, pytestmark  # noqa: F401  skips where there is no device

from fastbatch.backends.cuda import batch_norms, norms, tiles

LAYERS = ("norm", "norms")


def batch_cases(rows: tuple[int, ...]) -> list[NetCase]:
    """Small networks: a thread of the simulator is one of Python's."""
    return [case for case in test_norms.batch_cases(["cuda"], rows) if case.net != "blockghosts"]


@parametrize(batch_cases((1, 13, 40)))
def test_gradient_of_batch_norms(case):
    test_norms.test_gradient_of_batch_norms(case)


@parametrize(batch_cases((13,)))
def test_runs_are_the_composition(case):
    test_norms.test_runs_with_batch_norms_equal_the_composition(case)


@parametrize([*batch_cases((13,)), NetCase("cuda", "norms", "silu", "mse", dtype="float64")])
def test_predict_uses_the_running_statistics(case):
    test_norms.test_predict_uses_the_running_statistics(case)


@parametrize([*batch_cases((13,)), *(NetCase("cuda", net, "gelu", "mse") for net in ("tail", "apart"))])
def test_forward_backward_update_is_a_step(case):
    if case.net in BATCH_NETS:
        test_norms.test_forward_backward_update_is_a_step(case)
        return
    plan, state, program = case.program()
    outputs, gradient = program.forward(case.feed().x, 3, training=True), np.zeros_like(state.parameters)
    da = np.empty_like(outputs)
    test_norms.SUBJECTS["cuda"].loss(outputs, case.feed().y, plan.loss, None, da)
    program.backward(da, gradient)
    other = np.zeros_like(gradient)
    program.accumulate(case.feed(), 3, other)
    oracle.assert_same_bits(gradient, other, case.id)


@parametrize(batch_cases((40,))[::2])
def test_divergence_leaves_the_running_statistics(case):
    test_norms.test_divergence_leaves_the_running_statistics(case)


@parametrize([NetCase("cuda", net, "tanh", "mse", B=5) for net in LAYERS])
def test_per_sample(case):
    test_samples.check_per_sample(case)


@parametrize([NetCase("cuda", net, "tanh", "mse", B=5) for net in LAYERS])
def test_rows_enter_times_their_scale(case):
    test_cuda_device.test_rows_enter_times_their_scale(case)


@parametrize([NetCase("cuda", net, "tanh", "cross_entropy", "adam", B=24) for net in (*LAYERS, "ghosts")])
def test_no_bit_depends_on_pieces_or_cuts(case):
    """Pieces at multiples of the tile and of ghost batches; the second half is given later."""
    size = 3 * tiles.TILE_ROWS if case.net == "ghosts" else tiles.TILE_ROWS
    case = replace(case, B=2 * size)
    found = []
    for piece, cut in ((None, False), (size, False), (None, True)):
        _, state, program = case.program()
        feed, lrs, sums = replace(case.feed(2 * case.B), piece=piece), np.full(2, 0.02), Sums()
        for first, last in ((0, 1), (1, 2)) if cut else ((0, 2),):
            program.run(feed, first, last, lrs[first:last], 1e6, sums)
        found.append((state.parameters.tobytes(), state.buffers.tobytes()))
    assert found[0] == found[1] == found[2]


def test_one_row_has_no_variance():
    test_norms.test_one_row_has_no_variance("cuda")


def test_a_fit_is_that_of_the_reference():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((21, 5)).astype(np.float32), rng.integers(0, 3, 21)
    found = []
    for backend in ("cuda", "reference"):
        layers = [fb.Dense(9), fb.LayerNorm(), fb.Activation("gelu"), fb.Dropout(0.3), fb.BatchNorm(ghost_size=4)]
        model = fb.Sequential([*layers, fb.Dense(3)], input_size=5, seed=1)
        trainer = fb.Trainer(model, "cross_entropy", fb.Adam(lr=1e-2), backend=backend, seed=3, max_grad_norm=1.0)
        history = trainer.fit(x, y, epochs=2, batch_size=8, verbose=0, validation_data=(x[:7], y[:7]))
        found.append((model.parameters, model.buffers, np.array(history["loss"] + history["val_loss"])))
    for ours, theirs in zip(*found):
        oracle.assert_norm_close(ours, theirs, 1e-5, "parameters, running statistics, losses")


# -- teeth -------------------------------------------------------------------------------------------------------------


def slopes_without_sums(monkeypatch) -> None:
    monkeypatch.setattr(batch_norms, "combine_slopes", lambda dtype: _Otherwise(None))


def running_statistics_stay(monkeypatch) -> None:
    monkeypatch.setattr(batch_norms, "keep_running", lambda dtype: _Otherwise(None))


def gradients_written_over(monkeypatch) -> None:
    original = norms.add_gradient
    monkeypatch.setattr(norms, "add_gradient", lambda dtype: _Otherwise(original(dtype)))


def statistics_of_columns_as_those_of_rows(monkeypatch) -> None:
    original = norms.slope_parts
    monkeypatch.setattr(norms, "slope_parts", lambda dtype, over_rows: original(dtype, False))


class _Otherwise:
    """A kernel that is not launched, or always told not to add."""

    def __init__(self, run) -> None:
        self.run = run

    def __getitem__(self, configuration):
        return lambda *given: self.run and self.run[configuration](*given[:-1], False)


@pytest.mark.parametrize(
    "mutant",
    [slopes_without_sums, running_statistics_stay, gradients_written_over, statistics_of_columns_as_those_of_rows],
    ids=lambda mutant: mutant.__name__,
)
def test_mutants_are_rejected(mutant, monkeypatch):
    case = NetCase("cuda", "batch", "tanh", "mse", B=2 * tiles.TILE_ROWS + 3)
    check = oracle.check_gradient
    if mutant is running_statistics_stay:
        check = test_norms.test_runs_with_batch_norms_equal_the_composition
    check(case)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(replace(case, activation="gelu"))  # memory may still hold what is not computed
