"""A step in pieces is the step: sums and one total weight, divided once."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from cases import FUSED, program_of
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
from tiers import thin

import fastbatch as fb
from fastbatch import ops
from fastbatch.data.orders import epoch_order
from fastbatch.plan import make_plan
from fastbatch.protocol import Feed, State, Sums

backends = pytest.mark.parametrize("backend", BACKENDS)
SMALL, LARGE = (INPUTS, 16, OUTPUTS), (INPUTS, 300, 40, OUTPUTS)  # on either side of plan.SMALL_GRADIENT
sizes = pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
ROWS = 72


# -- the property: any split, within the bound of any order of summation -----------------------------------------------


def _compositions() -> list[list[int]]:
    """Every micro-batch size, and 200 random compositions of the rows."""
    whole = [[size] * (ROWS // size) + [ROWS % size] * (ROWS % size > 0) for size in range(1, ROWS + 1)]
    rng = np.random.default_rng(7)
    for _ in range(200):
        cuts = np.flatnonzero(rng.random(ROWS - 1) < rng.choice([0.03, 0.2, 0.7])) + 1
        whole.append(np.diff([0, *cuts, ROWS]).tolist())
    return whole


def _program(subject: str, dtype: str, sizes):
    model = fb.MLP(list(sizes), activation="tanh", dropout=0.3, dtype=dtype, seed=1)
    loss = ops.get_loss(fb.losses.CrossEntropy(weight=(0.5, 1.0, 2.0, 1.5), label_smoothing=0.1))
    plan = make_plan(model, loss, ops.SGD())
    state = State(model.parameters, np.empty((0, model.num_parameters), dtype), np.zeros(1, np.int64), 5)
    return program_of(subject, plan, state)


def _pieces(program, data, composition) -> tuple[np.ndarray, Sums]:
    x, y, weight = data
    gradient, sums, start = np.zeros(program.plan.num_parameters, x.dtype), Sums(), 0
    for rows in composition:
        part = slice(start, start + rows)
        sums = program.accumulate(Feed(x[part], y[part], weight[part], batch=rows), start, gradient, sums)
        start += rows
    return gradient, sums


@thin(2, "subject")
@pytest.mark.parametrize("sizes", [SMALL, (INPUTS, 120, 80, OUTPUTS)], ids=["small", "large"])
@pytest.mark.parametrize(
    ("subject", "dtype"), [(name, dtype) for name in (*FUSED, "reference") for dtype in ("float32", "float64")]
)
def test_any_split_is_the_full_batch(subject, dtype, sizes):
    x, y = make_data("cross_entropy", ROWS)
    weight = np.random.default_rng(0).uniform(0, 2, ROWS) * (np.arange(ROWS) % 9 != 4)
    data = x.astype(dtype), y, weight
    program = _program(subject, dtype, sizes)
    exact = _program("reference", "float64", sizes)
    # |x||d| of a row is the magnitude of its own gradient
    rows = np.array([_one_row(exact, (x.astype(np.float64), y, weight), row) for row in range(ROWS)])
    magnitude, u = np.abs(rows).sum(axis=0), np.finfo(dtype).eps / 2
    bound = ROWS * u / (1 - ROWS * u) * magnitude if dtype == "float32" else 1e-12 * np.linalg.norm(magnitude)
    whole, total = _pieces(program, data, [ROWS])
    assert difference(whole, rows.sum(axis=0)) < (1e-5 if dtype == "float32" else 1e-12)
    worst = 0.0
    for composition in _compositions():
        split, sums = _pieces(program, data, composition)
        error = np.abs(split.astype(np.float64) - whole)
        assert (error <= bound).all(), composition
        worst = max(worst, (error[magnitude > 0] / np.broadcast_to(bound, error.shape)[magnitude > 0]).max())
        assert sums.loss == pytest.approx(total.loss, rel=1e-13 if "c-" in subject or dtype == "float64" else 1e-6)
        assert sums.weight == pytest.approx(total.weight, rel=1e-14)
        if subject in FUSED and not any(np.cumsum(composition)[:-1] % program.tile_rows):
            assert_same_bits(split, whole)
            assert sums == total
    print(f"worst of {len(_compositions())} splits: {worst:.3f} of the bound")


def _one_row(program, data, row: int) -> np.ndarray:
    gradient, part = np.zeros(program.plan.num_parameters), slice(row, row + 1)
    program.accumulate(Feed(data[0][part], data[1][part], data[2][part], batch=1), row, gradient)
    return gradient


# -- in fit ------------------------------------------------------------------------------------------------------------

RECIPE = {"loss": fb.losses.CrossEntropy(label_smoothing=0.1), "dropout": 0.25, "seed": 3}


def _fitted(sizes, options, n=333, **recipe):
    x, y = make_data("cross_entropy", n)
    trainer = make_trainer(**{**RECIPE, "sizes": sizes, **recipe})
    weight = np.random.default_rng(1).uniform(0, 2, n)
    trainer.fit(x, y, sample_weight=weight, class_weight="balanced", **{"epochs": 2, **options})
    return trainer


def _assert_same_fit(got, expected, apart=("time",)):
    assert_same_trainer(got, expected)
    for name in set(expected.history) - set(apart):
        assert got.history[name] == expected.history[name], name


@sizes
@pytest.mark.parametrize("clip", [{}, {"max_grad_norm": 0.1}, {"clip_value": 0.01}], ids=["", "norm", "value"])
@pytest.mark.parametrize("tiles", [1, 3])
def test_micro_batches_of_a_fit_change_no_bit(sizes, clip, tiles):
    whole = _fitted(sizes, {"batch_size": 130}, metrics="accuracy", **clip)
    if whole.backend != "c":
        pytest.skip("the contract of bits is the c backend's")
    micro = tiles * whole.tile_rows
    pieces = [_fitted(sizes, {"batch_size": 130, "micro_batch_size": micro}, metrics="accuracy", **clip)]
    for threads in (1, 2, 3):
        with fb.set_num_threads(threads, exact=True):
            pieces.append(_fitted(sizes, {"batch_size": 130, "micro_batch_size": micro}, metrics="accuracy", **clip))
            assert pieces[-1].threads_used == threads
    for other in pieces:
        _assert_same_fit(other, whole)


@backends
@sizes
@pytest.mark.parametrize("micro", [1, 7, 50, 129, 1000])
def test_micro_batches_of_any_size_agree_to_rounding(backend, sizes, micro):
    recipe = {"backend": backend, "optimizer": fb.SGD(lr=0.1, momentum=0.9)}
    whole = _fitted(sizes, {"batch_size": 130}, **recipe)
    pieces = _fitted(sizes, {"batch_size": 130, "micro_batch_size": micro}, **recipe)
    assert difference(pieces.model.parameters, whole.model.parameters) < 2e-6
    np.testing.assert_allclose(pieces.history["loss"], whole.history["loss"], rtol=1e-6)
    assert (pieces.steps, pieces.history["batch_size"]) == (whole.steps, whole.history["batch_size"])


@backends
@sizes
@pytest.mark.parametrize("n", [320, 333, 350])
@pytest.mark.parametrize("micro", [None, 16, 64])
def test_accumulated_batches_are_their_concatenation(backend, sizes, n, micro):
    """Rows that are left at the end of an epoch are an update over their own weight, whole batches or not."""
    recipe = {"backend": backend, "optimizer": fb.SGD(lr=0.1, momentum=0.9), "metrics": "accuracy"}
    whole = _fitted(sizes, {"batch_size": 96}, n, **recipe)
    accumulated = _fitted(
        sizes, {"batch_size": 32, "micro_batch_size": micro}, n, gradient_accumulation_steps=3, **recipe
    )
    assert accumulated.history["batch_size"] == [32, 32]
    assert accumulated.steps == whole.steps == 2 * 4
    if backend == "c" and (micro or 32) % whole.tile_rows == 0:
        vars(accumulated)["gradient_accumulation_steps"] = 1  # what differs, and should
        _assert_same_fit(accumulated, whole, apart=("time", "batch_size"))
    else:
        assert difference(accumulated.model.parameters, whole.model.parameters) < 2e-6
        np.testing.assert_allclose(accumulated.history["loss"], whole.history["loss"], rtol=1e-6)


@backends
def test_drop_last_drops_from_the_last_batch_only(backend):
    """Of 110 rows in batches of 20, two to a step: 10 are dropped, and a single batch is the last step."""
    x, y = make_data(n=110)
    trainer, twin = make_trainer(backend=backend, gradient_accumulation_steps=2), make_trainer(backend=backend)
    trainer.fit(x, y, batch_size=20, drop_last=True)
    order = epoch_order(110, 0, 0, True, backend)
    for start, end in ((0, 40), (40, 80), (80, 100)):
        twin.step(x[order[start:end]], y[order[start:end]])
    assert trainer.steps == 3
    assert difference(trainer.model.parameters, twin.model.parameters) < 1e-6


@backends
def test_steps_outside_a_fit_always_update(backend):
    x, y = make_data()
    trainer, plain = make_trainer(backend=backend, gradient_accumulation_steps=4), make_trainer(backend=backend)
    for one in (trainer, plain):
        one.step(x, y)
        one.partial_fit(x, y)
    assert trainer.steps == 2
    assert_same_trainer(trainer, plain)


@backends
def test_weights_beyond_float32_are_brought_near_1_by_step(backend):
    """By one factor for all pieces of a step, or the pieces would count differently."""
    x, y = make_data(n=64)
    weight = np.repeat([1e-300, 1e-290], 32) * np.random.default_rng(0).uniform(1, 2, 64)
    recipe = {"backend": backend, "optimizer": fb.SGD(lr=0.1)}
    whole, pieces = make_trainer(**recipe), make_trainer(**recipe)
    for one, micro in ((whole, None), (pieces, 32)):
        feed = Feed(x, y, weight, batch=64, piece=micro)
        one._program.run(feed, 0, 1, np.full(1, 0.1), 0.0, Sums())
    assert difference(pieces.model.parameters, whole.model.parameters) < 1e-7
    light = make_trainer(**recipe)
    light.step(x[32:], y[32:], weight[32:])  # the rows that count
    assert difference(whole.model.parameters, light.model.parameters) < 1e-7


def test_memory_is_that_of_a_piece():
    x, y = make_data("mse", 4096, inputs=64)
    trainers = [make_trainer(sizes=(64, 256, OUTPUTS)) for _ in range(3)]
    if trainers[0].backend != "c":
        pytest.skip("the arena is the c backend's")
    trainers[0].fit(x, y, batch_size="full", micro_batch_size=32)
    trainers[1].fit(x, y, batch_size=32)
    trainers[2].fit(x, y, batch_size="full")
    assert [trainer._program._rows for trainer in trainers] == [32, 32, 4096]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@backends
@sizes
@pytest.mark.parametrize("row", [0, 40, 95])
def test_a_piece_that_diverges_takes_its_step_with_it(backend, sizes, row):
    """The second step of the fit, in its first, middle or last piece."""
    x, y = make_data(n=192)
    x[96 + row] = np.nan
    trainer, twin = (make_trainer(sizes=sizes, backend=backend, gradient_accumulation_steps=3) for _ in range(2))
    with pytest.raises(fb.DivergenceError, match=r"loss: .* at step 2"):
        trainer.fit(x, y, batch_size=32, shuffle=False, check_finite=False)
    twin.fit(x[:96], y[:96], batch_size=32, shuffle=False)
    twin.epochs = 0
    assert_same_trainer(trainer, twin)
    assert trainer._fit.step == 1
    assert trainer._fit.sums.mean() == twin.history["loss"][0]


@backends
@pytest.mark.parametrize("inputs", [1, 9000], ids=["small", "large"])
def test_a_gradient_that_overflows_in_a_late_piece_changes_nothing(backend, inputs):
    """The loss e^2 = 1e36 is finite in float32, the gradient x e = 1e43 is not."""
    x, y = np.ones((96, inputs), np.float32), np.zeros((96, 1), np.float32)
    x[90:], y[90:] = 1e25, 1e18
    trainer = fb.Trainer(fb.MLP([inputs, 1], init="zeros"), "mse", backend=backend)
    with pytest.raises(fb.DivergenceError, match=r"gradient: .* at step 1"):
        trainer.fit(x, y, batch_size="full", micro_batch_size=32, shuffle=False)
    assert_same_bits(trainer.model.parameters, np.zeros(inputs + 1, np.float32))
    assert trainer.steps == 0


def test_ctrl_c_between_two_pieces_of_the_reference(monkeypatch):
    """Its pieces are Python: nothing of the step is applied, and a further fit makes it whole."""
    x, y = make_data(n=96)
    trainer, twin = (make_trainer(backend="reference", gradient_accumulation_steps=3) for _ in range(2))
    piece, calls = trainer._program._piece, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return piece(*arguments)

    monkeypatch.setattr(trainer._program, "_piece", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(x, y, batch_size=32)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (len(calls), trainer.steps, trainer._fit.step, trainer._fit.updates) == (2, 0, 0, 0)
    assert trainer._fit.sums == Sums()
    assert_same_trainer(trainer, twin)
    monkeypatch.undo()
    for one in (trainer, twin):
        one.fit(x, y, batch_size=32)
    assert_same_trainer(trainer, twin)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", None])
def test_accumulation_is_counted_in_batches(value):
    with pytest.raises(fb.ArgumentError, match="gradient_accumulation_steps: expected an integer >= 1, got"):
        make_trainer(gradient_accumulation_steps=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_micro_batches_have_rows(value):
    x, y = make_data()
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match="micro_batch_size: expected an integer >= 1 or None, got"):
        trainer.fit(x, y, micro_batch_size=value)
    assert trainer.steps == 0
