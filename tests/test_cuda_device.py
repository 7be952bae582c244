"""The cuda backend's kernels and steps, held to the same oracle as any other's: in numba-cuda's simulator, or on a GPU.

    NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/test_cuda_device.py

The simulator runs kernels, threads and barriers as Python does. What it cannot show (types, registers, warps, queues,
graphs, speed) is listed in DESIGN.md; `test_cuda.py` compiles the kernels, `test_cuda_gpu.py` needs a GPU.
"""

from __future__ import annotations

import functools
import json
from contextlib import nullcontext
from dataclasses import replace

import cases
import numpy as np
import oracle
import pytest
import test_program
import test_samples
from cases import NetCase, dense_cases, few_nets, loss_cases, net_cases, parametrize, update_cases
from simulator import steady
from tiers import chosen

import fastbatch as fb
from fastbatch import ops
from fastbatch.backends import get, is_available
from fastbatch.bench import gpu
from fastbatch.bench.harness import wall
from fastbatch.bench.workloads import Workload
from fastbatch.plan import make_plan
from fastbatch.protocol import Feed, PerSample, State, Sums

pytest.importorskip("numba_cuda")

from fastbatch.backends.cuda import measure, memory, steps, tiles, updates
from fastbatch.backends.cuda.shim import SIMULATED, cuda

if not is_available("cuda"):
    pytest.skip("no GPU, and no NUMBA_ENABLE_CUDASIM=1 with numba-cuda installed", allow_module_level=True)

cases.SUBJECTS["cuda"] = get("cuda")

# a simulated thread is one of Python's, and overflows as NumPy does
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BOTH = (("cuda", "float32"), ("cuda", "float64"))
LR = 0.02


@pytest.fixture(autouse=True)
def _steady():
    with steady() if SIMULATED else nullcontext():
        yield


def few(found: list, keep: int, *axes: str) -> list:
    """`keep` cases for each value of these axes, and each value of every other axis."""
    names = chosen([(case.id, {"case": case, **vars(case)}) for case in found], keep, axes)
    return [case for case in found if case.id in names]


def served(found: list[NetCase]) -> list[NetCase]:
    """Those that the backend does not refuse, without the large ones."""
    return [case for case in found if case.net in cases.NETS and get("cuda").supports(case.plan(case.model())) is None]


# -- kernels -----------------------------------------------------------------------------------------------------------


@parametrize(dense_cases("forward", BOTH))
def test_dense_forward(case):
    oracle.check_dense_forward(get("cuda"), case)


@parametrize(dense_cases("backward", BOTH))
def test_dense_backward(case):
    oracle.check_dense_backward(get("cuda"), case, need_dx=case.bias or case.B % 2 == 0)


@parametrize(few(loss_cases(BOTH), 1, "loss"))
def test_loss(case):
    oracle.check_loss(get("cuda"), case)


@parametrize(few(update_cases(BOTH), 1, "optimizer"))
def test_update(case):
    oracle.check_update(get("cuda"), case)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_shuffles_are_those_of_the_specification(n):
    for seed, epoch in ((0, 0), (2**64 - 1, 3), (5, 2**32 + 1)):
        assert get("cuda").permutation(n, seed, epoch).tolist() == ops.random.permutation(n, seed, epoch).tolist()


# -- steps -------------------------------------------------------------------------------------------------------------


@parametrize(few(served(net_cases(["cuda"])), 1, "net", "activation"))
def test_gradient(case):
    oracle.check_gradient(case)


@parametrize(few(served(net_cases(["cuda"])), 1, "optimizer"))
def test_run_is_the_composition(case, monkeypatch):
    """Every optimizer, some steps with a ragged last batch, against the reference composed of its kernels."""
    monkeypatch.setattr(test_program, "STEPS", 3)
    test_program.test_run_equals_the_composition(case)


@pytest.mark.parametrize("full", [1, 1000], ids=["large tiles", "small tiles"])
@pytest.mark.parametrize("partial", [0, 1 << 20], ids=["one after the other", "apart"])
def test_no_bit_depends_on_tiles_pieces_or_blocks_of_stretches(full, partial, monkeypatch):
    monkeypatch.setattr(memory, "_FULL", full)
    monkeypatch.setattr(memory, "_PARTIAL", partial)
    assert clipped_steps(piece=tiles.TILE_ROWS * (2 if partial else 1)) == plain_steps()


@functools.cache
def plain_steps() -> tuple[bytes, Sums]:
    found = clipped_steps()
    assert clipped_steps(seed=6) != found
    return found


@parametrize([case for case in served(few_nets(["cuda"])) if case.net in ("linear", "two", "nobias", "six")])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy+label_smoothing"])
def test_small_networks_have_the_bits_of_others(case, loss, monkeypatch):
    """One block takes a stretch of rows through all layers, or a kernel does one thing for all rows."""
    case, found = replace(case, loss=loss, B=2 * tiles.TILE_ROWS + 3), []
    feed = case.feed(3 * case.B // 2, order=cases.rng_of(case.id).permutation(3 * case.B // 2))
    for small in (True, False):
        monkeypatch.setattr(memory, "SMALL_NETWORKS", small)
        found.append(test_program.run(case, replace(feed, piece=None if small else tiles.TILE_ROWS)))
        made = case.program()[2]._steps._reserve(4)
        assert made.is_small == small
    test_program.assert_same_runs(*found, case.id)


def clipped_steps(backend: str = "cuda", piece: int | None = None, seed: int = 5, **feed) -> tuple[bytes, Sums]:
    """Parameters after steps with everything: dropout, weights, clipping, limits of columns, groups, penalties."""
    model = fb.MLP([5, 9, 7, 3], activation="tanh", dropout=0.3, seed=1)
    loss = fb.losses.CrossEntropy(weight=(0.5, 1.0, 2.0), label_smoothing=0.1)
    optimizer = fb.LAMB(l1=1e-3, groups={0: {"lr_factor": 0.5}, 1: {"max_norm": 0.7}}, frozen=("2.b",))
    plan = make_plan(model, loss, optimizer, max_norm=0.4, clip_value=0.1)
    state = State(model.parameters, np.zeros((2, model.num_parameters), np.float32), np.zeros(1, np.int64), seed)
    rng = cases.rng_of("steps")
    x, y = rng.integers(0, 9, (50, 5)).astype(np.float32), rng.integers(0, 3, 50)
    given = {"x": x, "y": y, "weight": rng.uniform(0, 2, 50), "order": rng.permutation(50), **feed}
    program, sums = cases.program_of(backend, plan, state), Sums()
    assert program.run(Feed(batch=19, piece=piece, **given), 0, 3, np.full(3, 0.01), 1e6, sums) == 3
    assert int(state.steps[0]) == 3
    return state.parameters.tobytes(), sums


def test_everything_at_once_is_the_reference():
    (ours, sums), (theirs, expected) = plain_steps(), clipped_steps("reference")
    got, exact = (np.frombuffer(data, np.float32) for data in (ours, theirs))
    oracle.assert_norm_close(got, exact, 1e-5, "parameters")
    assert (sums.loss, sums.norm) == pytest.approx((expected.loss, expected.norm), rel=1e-5)
    assert sums.weight == pytest.approx(expected.weight, rel=1e-12)


@pytest.mark.parametrize("source", ["uint8", "int64", "float64", "float16", ">f4", "columns"])
def test_sources_are_converted_there(source):
    x = cases.rng_of("steps").integers(0, 9, (50, 5)).astype(np.float32)
    assert clipped_steps(x=np.asfortranarray(x) if source == "columns" else x.astype(source)) == plain_steps()


@pytest.mark.parametrize("source", ["float32", "uint8"])
def test_rows_on_the_device_are_read_there(source, monkeypatch):
    """Whatever has __cuda_array_interface__, with any strides, is not sent."""
    x = cases.rng_of("steps").integers(0, 9, (50, 5)).astype(source)
    there = cuda.to_device(x)
    assert steps.is_on_device(there)
    monkeypatch.setattr(steps, "_SHARE", 0.0)  # nor streamed
    assert clipped_steps(x=there) == plain_steps()


@pytest.mark.parametrize("ordered", [True, False])
def test_streamed_rows_are_the_same_rows(ordered, monkeypatch):
    """What does not fit comes in blocks, with the outputs and the bits of what does."""
    given = {} if ordered else {"order": None}
    found = []
    for share in (0.5, 0.0):
        monkeypatch.setattr(steps, "_SHARE", share)
        monkeypatch.setattr(steps, "BLOCK_BYTES", 2 * 19 * 5 * 4)
        outputs = np.full((50, 3), np.nan, np.float32)
        found.append((clipped_steps(outputs=outputs, **given), outputs.tobytes()))
    assert found[0] == found[1]
    assert not np.isnan(outputs).any()


@parametrize(served(few_nets(["cuda"]))[::2])
def test_a_run_may_be_cut_anywhere(case):
    rows = 3 * case.B + 3
    whole = test_program.run(case, case.feed(rows))
    test_program.assert_same_runs(test_program.run(case, case.feed(rows), (1, 3)), whole, case.id)


@parametrize(served(few_nets(["cuda"]))[1::2])
def test_a_step_is_gradient_then_update(case):
    plan, state, program = case.program()
    feed, gradient = case.feed(), np.zeros_like(state.parameters)
    sums = program.accumulate(feed, 0, gradient)
    program.update(gradient, 1 / sums.weight if sums.weight else 0.0, test_program.LR)
    after, run_sums = test_program.run(case, case.feed())
    test_program.assert_same_state(after[:3], test_program.snapshot(state), case.id)
    if plan.sums_objective:
        sums = Sums(feed.rows * (sums.loss / sums.weight), feed.rows) if sums.weight else Sums()
    assert (run_sums.loss, run_sums.weight) == (sums.loss, sums.weight)


@parametrize(served(few_nets(["cuda"], B=5))[:4])
def test_per_sample(case):
    test_samples.check_per_sample(case)


@parametrize(served(few_nets(["cuda"], B=5))[:2])
def test_rows_enter_times_their_scale(case):
    _, state, program = case.program()
    feed, share = case.feed(), cases.rng_of(case.id).uniform(0, 2, 5).astype(case.dtype)
    found, exact = (np.zeros_like(state.parameters) for _ in range(2))
    program.accumulate(feed, 0, found, Sums(), PerSample(scale=share))
    case.program(get("reference"))[2].accumulate(feed, 0, exact, Sums(), PerSample(scale=share))
    oracle.assert_norm_close(found, exact, 1e-5, case.id)


@parametrize(served(few_nets(["cuda"], B=37))[::3])
def test_predict_has_no_dropout(case):
    """More rows than are on the device at a time."""
    plan, state, program = case.program()
    feed, out = case.feed(), oracle.Guarded(np.zeros((37, case.O), case.dtype))
    program.predict(feed.x, out.array)
    out.check("out")
    still = replace(plan, stages=tuple(replace(stage, threshold=256) for stage in plan.stages))
    exact, bound = oracle.network(still, state, feed)[4:]
    oracle.assert_within(out.array, exact, bound, f"{case.id}: outputs")
    program.predict(feed.x[:0], out.array[:0])


# -- what may not be updated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_diverges_changes_nothing(where):
    """The steps before it are made and counted, those behind it in the queue do nothing."""
    model = fb.MLP([2, 1], seed=1)
    model.parameters[:] = 0
    x, y = np.ones((12, 2), np.float32), np.ones((12, 1), np.float32)
    x[7], y[7] = (1, 1e25) if where == "loss" else (1e25, 1e15)
    plan, left = make_plan(model, ops.get_loss("mse"), fb.SGD(), max_norm=1.0), []
    for backend in ("reference", "cuda"):
        state = State(model.parameters.copy(), np.zeros((0, 3), np.float32), np.zeros(1, np.int64), 0)
        program, sums = cases.program_of(backend, plan, state), Sums()
        feed = Feed(x, y, batch=3)
        with pytest.raises(fb.DivergenceError, match=where):
            program.run(feed, 0, 4, np.full(4, 1e-15), 1e6, sums)
        left.append((int(state.steps[0]), state.parameters, sums.weight))
    assert left[0][0] == left[1][0] == 2
    np.testing.assert_allclose(left[1][1], left[0][1], rtol=1e-6)
    assert left[0][2] == left[1][2]


def test_an_update_from_a_bad_gradient_is_refused():
    model = fb.MLP([2, 3, 1], seed=1)
    plan = make_plan(model, ops.get_loss("mse"), fb.Adam())
    state = State(model.parameters, np.zeros((2, 13), np.float32), np.zeros(1, np.int64), 0)
    program, before = cases.program_of("cuda", plan, state), test_program.snapshot(state)
    gradient = np.zeros(13, np.float32)
    gradient[4] = np.nan
    with pytest.raises(fb.DivergenceError, match="gradient"):
        program.update(gradient, 1.0, LR)
    test_program.assert_same_state(test_program.snapshot(state), before, "state")


# -- trainers ----------------------------------------------------------------------------------------------------------


def trained(backend: str, **options) -> tuple:
    rng = cases.rng_of("trainer")
    x, y = rng.standard_normal((21, 5)).astype(np.float32), rng.integers(0, 3, 21)
    model = fb.MLP([5, 9, 3], activation="gelu", dropout=0.3, seed=1)
    trainer = fb.Trainer(model, "cross_entropy", fb.Adam(lr=1e-2), backend=backend, seed=3, metrics=["accuracy"])
    history = trainer.fit(x, y, epochs=2, batch_size=8, verbose=0, validation_data=(x[:7], y[:7]), **options)
    results = trainer.evaluate(x, y)
    return model.parameters, np.array(history["loss"] + history["val_loss"] + history["accuracy"]), results


FITS = {
    "plain": {},
    "pieces": {"micro_batch_size": 4},
    "noise": {"augment": fb.augment.Noise(0.1)},
    "mixup": {"augment": fb.augment.Mixup(0.3)},
    "weights": {"sample_weight": np.linspace(0, 2, 21)},
}


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
def test_a_fit_is_that_of_the_reference(options):
    """Shuffles, masks, noise and mixtures are the same numbers: whole fits agree."""
    ours, theirs = trained("cuda", **options), trained("reference", **options)
    oracle.assert_norm_close(ours[0], theirs[0], 1e-5, "parameters")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_losses_in_the_sense_of_sklearn(limit):
    """A step counts by its rows, with the penalty of what decays by weight; one without weight does not."""
    rng, found = cases.rng_of("sklearn"), []
    x, y, weight = rng.standard_normal((21, 5)), rng.standard_normal((21, 3)), rng.uniform(0.1, 2, 21)
    weight[:8] = 0
    weight[16:] *= 2.0**-80
    for backend in ("cuda", "reference"):
        row = fb.SGD(lr=0.01, weight_decay=3.0, groups={-1: {"weight_decay": 0.5}}, frozen=(1,))
        model = fb.MLP([5, 9, 7, 3], norm="layer", seed=1, dtype="float64")
        trainer = fb.Trainer(model, "mse", row, backend=backend, semantics="sklearn", max_grad_norm=limit)
        losses = trainer.fit(x, y, 8, epochs=2, shuffle=False, sample_weight=weight, verbose=0)["loss"]
        found.append([*losses, trainer.step(x, y)])
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_what_a_fit_keeps_is_read_again_by_the_next(monkeypatch):
    """Within a fit x is sent once; a caller may change it between two fits."""
    rng = cases.rng_of("kept")
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.standard_normal((8, 1)).astype(np.float32)
    sent = []
    original = steps.Steps._sent
    monkeypatch.setattr(steps.Steps, "_sent", lambda self, array: sent.append(array) or original(self, array))
    found = []
    for backend in ("cuda", "reference"):
        given = x.copy()
        trainer = fb.Trainer(fb.MLP([3, 1], seed=0), "mse", fb.SGD(lr=0.1), backend=backend)
        trainer.fit(given, y, epochs=3, batch_size=4, verbose=0)
        given *= 2
        trainer.fit(given, y, epochs=1, batch_size=4, verbose=0)
        found.append(trainer.model.parameters)
    assert sum(array.shape == (8, 3) for array in sent) == 2
    oracle.assert_norm_close(*found, 1e-6, "parameters")


def test_a_race_begins_with_the_losses_of_the_reference(monkeypatch, tmp_path, capsys):
    """Of a network that the simulator can train; the clock and the ceilings of a simulated device mean nothing."""
    workload = Workload("small", (3, 4, 2), "tanh", "mse", "adam", 4, 2)
    monkeypatch.setattr(gpu, "GPU_WORKLOADS", (workload,))
    monkeypatch.setattr(measure, "gflops", lambda: 1.0)
    monkeypatch.setattr(measure, "timed", wall)
    found = gpu.bench_gpu(samples=1, json_path=tmp_path / "found.json")
    ours = found["results"]["small"]["contestants"]["fastbatch"]
    assert ours["us"] > 0
    assert json.loads((tmp_path / "found.json").read_text())["results"].keys() == {"small"}
    assert capsys.readouterr().out.startswith("losses of the reference: small")
    monkeypatch.setattr(memory, "SMALL_NETWORKS", False)
    forward = tiles.forward
    monkeypatch.setattr(tiles, "forward", lambda dtype, tile, _, *rest: forward(dtype, tile, "identity", *rest))
    with pytest.raises(fb.BackendError, match="computes something else"):
        gpu.bench_gpu(samples=1, json_path=tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


# -- teeth -------------------------------------------------------------------------------------------------------------

MUTANT_CASE = NetCase("cuda", "dropout", "tanh", "cross_entropy", "adam", weighted=True)


def without_deltas(monkeypatch) -> None:
    monkeypatch.setattr(memory.Memory, "delta", lambda self, i, at, queue: None)


def another_slope(monkeypatch) -> None:
    original = tiles.input_gradient
    monkeypatch.setattr(
        tiles, "input_gradient", lambda dtype, tile, name, *rest: original(dtype, tile, "identity", *rest)
    )


def mask_of_another_row(monkeypatch) -> None:
    original = memory.Memory.begin
    monkeypatch.setattr(memory.Memory, "begin", lambda self, *a, **k: original(self, *a, **{**k, "first_row": 1}))


def weight_forgotten(monkeypatch) -> None:
    original = memory.Rows.variant
    monkeypatch.setattr(memory.Rows, "variant", lambda self: (*original(self)[:2], False))


def first_stretch_only(monkeypatch) -> None:
    original = updates.add_parts
    monkeypatch.setattr(updates, "add_parts", lambda dtype: _Shortened(original(dtype)))
    monkeypatch.setattr(memory, "_FULL", 1000)


class _Shortened:
    """A kernel that is launched for one parameter less."""

    def __init__(self, run) -> None:
        self.run = run

    def __getitem__(self, configuration):
        return lambda frame, m, begin, end, *rest: self.run[configuration](frame, m, begin, end - 1, *rest)


@pytest.mark.parametrize(
    "mutant", [without_deltas, another_slope, mask_of_another_row, weight_forgotten, first_stretch_only],
    ids=lambda mutant: mutant.__name__,
)  # fmt: skip
def test_mutants_are_rejected(mutant, monkeypatch):
    case = replace(MUTANT_CASE, net="six") if mutant is another_slope else MUTANT_CASE
    case = replace(case, B=2 * tiles.TILE_ROWS + 3) if mutant is first_stretch_only else case
    oracle.check_gradient(case)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        oracle.check_gradient(case)
