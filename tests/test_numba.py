"""What is the numba backend's own: rules of scalars, registries, compilation, threads, and standing in for C."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from cases import OPTIMIZERS, loss_variants, program_of, rng_of, targets
from tiers import thin

import fastbatch as fb
from fastbatch import ops
from fastbatch.backends import get, is_available
from fastbatch.plan import make_plan
from fastbatch.protocol import Feed, State, Sums

pytest.importorskip("numba")

import numba

from fastbatch.backends import numba_cpu, scalars
from fastbatch.backends.numba_cpu import machine
from fastbatch.backends.scalars import patience

# -- registries and rules ----------------------------------------------------------------------------------------------


def test_names_agree():
    rules = {row.rule for row in OPTIMIZERS.values()}
    losses = {*scalars.ELEMENT_LOSSES, *scalars.ROW_LOSSES}
    for what, python, ours in (
        ("activations", set(ops.ACTIVATIONS), set(scalars.ACTIVATIONS)),
        ("losses", set(ops.LOSSES), losses),
        ("optimizers", rules, set(scalars.OPTIMIZERS)),
    ):
        assert not python - ours, f"{python - ours}: add a row to fastbatch/backends/scalars/{what}.py"
        assert not ours - python, f"{ours - python}: add a row to fastbatch/ops/{what}.py"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters_and_slots_agree(name):
    row = OPTIMIZERS[name]
    rule = scalars.OPTIMIZERS[row.rule]
    assert set(rule.hyper) == set(row.constants())
    assert rule.hyper[0] == "weight_decay"  # which is divided by the weight of a batch where semantics are sklearn's
    assert len(rule.hyper) <= scalars.HYPERS
    assert rule.slots == row.slots
    assert (rule.direction is not None) == row.normed


@pytest.mark.parametrize("name", scalars.ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rules_are_functions_of_numpy_scalars(name, dtype):
    """Called as plain Python, in the type of their argument: what another target compiles can be tried without it."""
    row, (value, slope) = ops.get_activation(name), scalars.ACTIVATIONS[name]
    for z in np.linspace(-6, 6, 41).astype(dtype):
        a = value(z)
        assert type(a) is np.dtype(dtype).type
        exact = float(row.value(np.array([z], np.float64))[0])
        assert abs(float(a) - exact) <= 64 * np.finfo(dtype).eps * max(abs(exact), 1e-3)
        saved = a if row.saves == "a" else z
        exact = float(row.slope(np.array([saved], np.float64))[0])
        assert abs(float(slope(saved)) - exact) <= 64 * np.finfo(dtype).eps * max(abs(exact), 1)


# Arguments, and the errors in units of the last place that csrc/simd/math_f32.h and math_f64.h state for C
FUNCTIONS = {
    "exp": ((-80, 88), np.exp, 1.7),
    "expm1": ((-60, 88), np.expm1, 1.95),
    "log": ((1e-30, 1e3), np.log, 0.94),
    "log1p": ((-0.999, 50), np.log1p, 1.8),
    "log1p_unit": ((0, 1), np.log1p, 1.55),
    "sigmoid": ((-80, 80), lambda x: 1 / (1 + np.exp(-x)), 2.5),
    "tanh": ((-12, 12), np.tanh, 2.62),
    "normal_pdf": ((-12, 12), lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.longdouble(np.pi)), 2.3),
}


@thin(1, "name")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_exact_as_those_of_c(name, dtype):
    (low, high), exact, most = FUNCTIONS[name]
    function = getattr(scalars.functions, name)

    @numba.njit(error_model="numpy")
    def each(x, found):
        for i in range(len(x)):
            found[i] = function(x[i])

    rng = rng_of(name)
    near = rng.uniform(max(low, -0.3), min(high, 1.3), 20000)
    x = np.concatenate([rng.uniform(low, high, 20000), near]).astype(dtype)
    found, wide = np.empty_like(x), exact(x.astype(np.longdouble))
    each(x, found)
    with np.errstate(all="ignore"):
        error = np.abs(found - wide) / np.spacing(np.abs(wide).astype(dtype)).astype(np.longdouble)
    normal = np.abs(wide) >= np.finfo(dtype).tiny * 2
    assert error[normal].max() < most
    assert np.isnan(function(np.dtype(dtype).type(np.nan)))
    by_hand = [float(function(value)) for value in x[:20]]  # without fused multiply-add
    np.testing.assert_allclose(by_hand, wide[:20].astype(np.float64), rtol=most * 2 * np.finfo(dtype).eps)


def test_subnormal_numbers_are_zero_in_kernels_and_numbers_again_behind_them():
    """Slots of dead units decay into them; an Adam step took four times as long from there on."""
    p, g = np.ones(5, np.float32), np.zeros(5, np.float32)
    slots = np.full((2, 5), 1e-39, np.float32)
    fb.kernels.update(fb.Adam(), p, g, slots, 5, backend="numba")
    assert (slots[0] == 0).all()
    assert (slots[0] + np.float32(1e-40) > 0).all()


@pytest.mark.parametrize("name", scalars.ELEMENT_LOSSES)
def test_losses_are_functions_of_numpy_scalars(name):
    for row in loss_variants(1).values():
        if row.name != name:
            continue
        constants, element = scalars.ELEMENT_LOSSES[name]
        g, h = (np.float64(v) for v in constants(row.parameter, row.per_output is not None))
        c = np.float64(1 if row.per_output is None else row.per_output[0])
        y = targets(row, 9, 1, "float64", rng_of(name))
        for a, target in zip(np.linspace(-3, 3, 9), y[:, 0]):
            value, slope = row.elements(np.array([[a]]), np.array([[target]]))
            found = element(np.float64(a), target, c, g, h)
            assert found == pytest.approx((value[0, 0], slope[0, 0]), rel=1e-12, abs=1e-12)


def test_philox_is_that_of_the_specification():
    words = scalars.philox(*map(np.uint64, (7, 3, 1 << 16, 9)), np.uint64(0x1234567890ABCDEF))
    assert list(words) == [int(word) for word in ops.random.philox((7, 3, 1 << 16, 9), 0x1234567890ABCDEF)]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_shuffles_are_those_of_the_specification(n):
    for seed, epoch in ((0, 0), (2**64 - 1, 3), (5, 2**32 + 1)):
        found = get("numba").permutation(n, seed, epoch) if n else np.empty(0, np.int64)
        assert found.tolist() == ops.random.permutation(n, seed, epoch).tolist()


# -- steps -------------------------------------------------------------------------------------------------------------


def steps_of(dtype: str = "float32", sizes=(6, 300, 70, 3), batch: int = 64, threads: int = 1, piece=None, **feed):
    """Parameters after one pass with everything that steps have: dropout, weights, clipping, momenta."""
    model = fb.MLP(list(sizes), activation="tanh", dropout=0.3, dtype=dtype, seed=1)
    loss = ops.get_loss(fb.losses.CrossEntropy(weight=(0.5, 1.0, 2.0), label_smoothing=0.1))
    plan = make_plan(model, loss, fb.LAMB(l1=1e-3, groups={0: {"lr_factor": 0.5}}), max_norm=0.4, clip_value=0.1)
    state = State(model.parameters, np.zeros((2, model.num_parameters), dtype), np.zeros(1, np.int64), 5)
    rng = rng_of("steps")
    x, y = rng.integers(0, 9, (300, sizes[0])).astype(dtype), rng.integers(0, 3, 300)
    given = {"x": x, "y": y, "weight": rng.uniform(0, 2, 300), "order": rng.permutation(300), **feed}
    program, sums = program_of("numba", plan, state, threads), Sums()
    with fb.set_num_threads(threads, exact=True):
        done = program.run(Feed(batch=batch, piece=piece, **given), 0, 5, np.full(5, 0.01), 1e6, sums)
    assert done == 5
    assert program.threads_used == threads
    return state.parameters.tobytes(), sums


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("threads", "piece"), [(2, None), (3, None), (1, 16), (3, 24), (1, 7)])
def test_no_bit_depends_on_threads_or_pieces(dtype, threads, piece):
    assert steps_of(dtype, threads=threads, piece=piece) == steps_of(dtype)


@pytest.mark.parametrize("kind", ["uint8", "float16", "int64", "big-endian", "columns", "float64"])
def test_inputs_that_have_to_be_converted(kind, monkeypatch):
    """In blocks of a few steps, to the bits of what is converted beforehand."""
    x = rng_of("steps").integers(0, 9, (300, 6)).astype(np.float32)
    others = {"big-endian": x.astype(">f4"), "columns": np.asfortranarray(x)}
    monkeypatch.setattr("fastbatch.program._CONVERTED_BYTES", 4 * 6 * 64 * 2)
    assert steps_of(x=others[kind] if kind in others else x.astype(kind)) == steps_of(x=x)


# -- forward and backward ---------------------------------------------------------------------------------------------


def _normed(threads=None):
    layers = [
        fb.Dense(24),
        fb.BatchNorm(ghost_size=8),
        fb.Activation("tanh"),
        fb.Dense(16),
        fb.LayerNorm(),
        fb.Dense(3),
    ]
    return fb.Trainer(fb.Sequential(layers, input_size=5), "mse", backend="numba", num_threads=threads)


def test_backward_on_more_threads_than_forward():
    """It finds the memory that forward has reserved, for that many threads; bits are the same."""
    x = rng_of("threads").standard_normal((40, 5)).astype(np.float32)
    found = []
    for count in (1, 4):
        trainer = _normed()
        with fb.set_num_threads(1, exact=True):
            trainer.forward(x)
        with fb.set_num_threads(count, exact=True):
            trainer.backward(np.ones((40, 3), np.float32))
        trainer.update()
        found.append((trainer.model.parameters.copy(), trainer.model.buffers.copy()))
    for got, expected in zip(found[1], found[0]):
        np.testing.assert_array_equal(got, expected)


def test_a_gradient_between_forward_and_backward_takes_their_memory():
    model = _normed().model
    plan = make_plan(model, ops.get_loss("mse"), ops.SGD())
    state = State(model.parameters, np.empty((0, model.num_parameters), "f"), np.zeros(1, np.int64), 0, model.buffers)
    program = program_of("numba", plan, state)
    x = np.ones((16, 5), np.float32)
    gradient = np.zeros_like(state.parameters)
    program.forward(x, 0, training=True)
    program.accumulate(Feed(x, np.ones((16, 3), np.float32), batch=16), 0, gradient)
    with pytest.raises(fb.ArgumentError, match="expected a forward"):
        program.backward(np.ones((16, 3), np.float32), gradient)


def test_statistics_of_a_step_that_failed_do_not_enter_the_next():
    x = rng_of("failed").standard_normal((32, 5)).astype(np.float32)
    y = np.zeros((32, 3), np.float32)
    one, other = _normed(), _normed()
    with pytest.raises(fb.DivergenceError):
        one.step(x, y + np.float32(3e38))
    for trainer in (one, other):
        trainer.step(x, y)
    np.testing.assert_array_equal(one.model.buffers, other.model.buffers)


# -- compilation -------------------------------------------------------------------------------------------------------


def test_the_fingerprint_covers_every_source():
    here = Path(numba_cpu.__file__).parent
    before = machine.sources()
    for path in (here / "tiles.py", here.parent / "scalars" / "losses.py"):
        text = path.read_bytes()
        try:
            path.write_bytes(text + b"\n")
            assert machine.sources() != before, path
        finally:
            path.write_bytes(text)
    assert machine.sources() == before


def test_slow_compilation_is_announced(caplog, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.01)
    with caplog.at_level(logging.WARNING, "fastbatch"):
        with patience.announced("a test"):
            pass
        assert not caplog.messages
        with patience.announced("a test"):
            time.sleep(0.2)
    assert caplog.messages[0].startswith("numba: compiling a test")
    assert caplog.messages[1].startswith("numba: compiled a test in ")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HIDE_C = "import sys; sys.modules['fastbatch._native'] = None\n"


def test_numba_is_not_imported_where_c_is_there():
    if not is_available("c"):
        pytest.skip("the c backend is not available")
    code = """
    import sys, numpy as np, fastbatch as fb
    fb.Trainer(fb.MLP([2, 3, 1]), "mse").fit(np.zeros((8, 2)), np.zeros((8, 1)), verbose=0)
    print("numba" in sys.modules)
    """
    assert run_python(code).split() == ["False"]


def test_it_stands_in_for_c_and_says_so():
    code = """
    import warnings, numpy as np, fastbatch as fb
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fb.Trainer(fb.MLP([2, 3, 1]), "mse")
    print(trainer.backend, "|", caught[0].message)
    print(fb.info())
    """
    text = run_python(HIDE_C + textwrap.dedent(code))
    chosen, warning = text.splitlines()[0].split(" | ")
    assert chosen == "numba"
    assert "compiled by Numba, up to 2 times slower" in warning
    assert "fastbatch info" in warning
    assert "Install a C compiler and reinstall" in text


def test_where_neither_is_there_numpy_runs():
    code = """
    import warnings, fastbatch as fb
    warnings.simplefilter("ignore")
    print(fb.Trainer(fb.MLP([2, 3, 1]), "mse").backend)
    print([row["reason"] for row in fb.backends() if row["name"] == "numba"])
    """
    text = run_python(HIDE_C + "sys.modules['numba'] = None\n" + textwrap.dedent(code))
    assert text.split()[0] == "reference"
    assert "pip install 'fastbatch[numba]'" in text


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch):
    """Numba raises where it finds no place for a cache; compiling in every process is what remains."""

    def no_place(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: ("compiled", function)

    monkeypatch.setattr(machine.numba, "njit", no_place)
    assert machine.entry(math.sqrt) == ("compiled", math.sqrt)
