"""Products by tensor cores: in the simulator, whose `mma` the lanes of a warp make of each other's words, or on a GPU.

`WIDTH` is set to 1, so that small networks have them, too; with few terms a sum of split operands is allowed what
splitting and cutting off cost (`SPLIT` roundings, see tensor.FEWEST), 1/270 of what TF32 alone would need.
"""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from dataclasses import replace

import bf16
import cases
import numpy as np
import oracle
import pytest
import test_program
from cases import DenseCase, dense_cases, few_nets, net_cases, parametrize
from helpers import difference, make_data, make_trainer
from simulator import steady

import fastbatch as fb
import fastbatch.plan as stage_module
from fastbatch.backends import get, is_available
from fastbatch.protocol import Sums

pytest.importorskip("numba_cuda")
if not is_available("cuda"):
    pytest.skip("no GPU, and no NUMBA_ENABLE_CUDASIM=1 with numba-cuda installed", allow_module_level=True)

from test_cuda_device import clipped_steps, few, served

from fastbatch.backends.cuda import choice, memory, panels, tensor, tiles
from fastbatch.backends.cuda.shim import SIMULATED
from fastbatch.backends.cuda.tensor import BF16, FMA, TF32

cases.SUBJECTS["cuda"] = get("cuda")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SPLIT = 30
SHAPES = [(1, 1, 1), (3, 5, 2), (17, 9, 8), (9, 16, 17), (16, 33, 7), (35, 20, 34)]
if not SIMULATED:
    SHAPES += [(129, 784, 63), (300, 401, 210), (1025, 64, 64), (4096, 270, 130)]
NETS = [case for case in served(net_cases(["cuda"])) if case.dtype == "float32" and case.net != "narrow"]  # 10 s each


@pytest.fixture(autouse=True)
def _steady():
    with steady() if SIMULATED else nullcontext():
        yield


@pytest.fixture
def split(monkeypatch):
    """Layers of any width are multiplied in TF32."""
    gamma = oracle.gamma
    monkeypatch.setattr(choice, "WIDTH", 1)
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("", 2.0))
    monkeypatch.setattr(memory, "SMALL_NETWORKS", False)
    monkeypatch.setattr(oracle, "gamma", lambda n, dtype: gamma(n + SPLIT * (dtype == "float32"), dtype))


# -- float32 -----------------------------------------------------------------------------------------------------------


@parametrize([DenseCase("forward", "cuda", "float32", "tanh", *shape) for shape in SHAPES])
def test_dense_forward(case, split):
    oracle.check_dense_forward(get("cuda"), case)


@parametrize([DenseCase("backward", "cuda", "float32", "gelu", *shape) for shape in SHAPES])
def test_dense_backward(case, split):
    oracle.check_dense_backward(get("cuda"), case)


@parametrize(few(dense_cases("forward", [("cuda", "float32")]), 1, "activation"))
def test_every_activation(case, split):
    oracle.check_dense_forward(get("cuda"), case)
    oracle.check_dense_backward(get("cuda"), replace(case, verb="backward"))


@pytest.mark.parametrize("large", [False, True], ids=["small tiles", "large tiles"])
def test_wide_layers_keep_the_bounds_of_float32(large, monkeypatch):
    """All three products, of 70 terms and more: nothing is added to the bounds."""
    monkeypatch.setattr(choice, "WIDTH", 64)
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("", 2.0))
    monkeypatch.setattr(memory, "_FULL", 1 if large else 1 << 30)
    used = recorded(monkeypatch)
    shape = (21, 70, 65)
    oracle.check_dense_forward(get("cuda"), DenseCase("forward", "cuda", "float32", "identity", *shape))
    if not SIMULATED:  # its stretches are short
        oracle.check_dense_backward(get("cuda"), DenseCase("backward", "cuda", "float32", "identity", 150, 70, 65))
    assert used == {TF32}


def recorded(monkeypatch) -> set[str]:
    """Arithmetics of the products that are launched from now on."""
    used, original = set(), memory.Memory.product

    def product(self, kind, i, *rest):
        used.add(self._arithmetic[i])
        return original(self, kind, i, *rest)

    monkeypatch.setattr(memory.Memory, "product", product)
    return used


@parametrize(few(NETS, 1, "loss"))
def test_gradient(case, split):
    oracle.check_gradient(case)


@parametrize(few(NETS, 1, "optimizer"))
def test_run_is_the_composition(case, split, monkeypatch):
    monkeypatch.setattr(test_program, "STEPS", 2)
    test_program.test_run_equals_the_composition(case)


@pytest.mark.parametrize("full", [1, 1000], ids=["large tiles", "small tiles"])
@pytest.mark.parametrize("partial", [0, 1 << 20], ids=["one after the other", "apart"])
def test_no_bit_depends_on_tiles_pieces_or_blocks_of_stretches(full, partial, split, monkeypatch):
    expected = split_steps()
    monkeypatch.setattr(memory, "_FULL", full)
    monkeypatch.setattr(memory, "_PARTIAL", partial)
    used = recorded(monkeypatch)
    assert clipped_steps(piece=tiles.TILE_ROWS * (2 if partial else 1)) == expected
    assert used == {TF32}


@functools.cache
def split_steps() -> tuple:
    return clipped_steps()


@parametrize([case for case in served(few_nets(["cuda"])) if case.net in ("nobias", "six") and case.dtype == "float32"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_small_networks_have_the_bits_of_others(case, precision, split, monkeypatch):
    """The kernel that takes rows through has both arithmetics, as the kernels of single layers have."""
    width = 8
    monkeypatch.setattr(choice, "WIDTH", width)
    monkeypatch.setattr(stage_module, "BF16_WIDTH", width)
    monkeypatch.setattr(choice, "BF16_WIDTH", width)
    found, rows = [], tiles.TILE_ROWS + 3
    for small in (True, False):
        monkeypatch.setattr(memory, "SMALL_NETWORKS", small)
        model = case.model()
        plan, state = replace(case.plan(model), precision=precision), case.state(model)
        program, sums = cases.program_of(get("cuda"), plan, state), Sums()
        program.run(replace(case.feed(rows), batch=rows), 0, 1, np.full(1, 0.1), 1e6, sums)
        made = program._steps._reserve(1)
        assert made.is_small == small
        found.append((state.parameters.tobytes(), sums.loss, made._arithmetic))
    assert found[0] == found[1]
    rounds = BF16 if precision == "bf16" else TF32
    assert set(found[0][2]) == {FMA, rounds}
    assert found[0][2] == [rounds if min(s.inputs, s.outputs) >= width else FMA for s in plan.stages]


@pytest.mark.skipif(not SIMULATED, reason="a GPU has no other tiles")
def test_tiles_of_a_gpu(monkeypatch):
    """A block of 256 threads each, as on a device: which lane of which warp has what."""
    monkeypatch.setattr(choice, "TENSOR_SMALL", panels.Tile(32, 32, 32, 2, 2))
    monkeypatch.setattr(choice, "TENSOR_LARGE", panels.Tile(128, 64, 16, 8, 4))
    monkeypatch.setattr(choice, "_CHECKED", (31, 29))
    for arithmetic in (TF32, BF16):
        assert choice.wrong.__wrapped__(arithmetic) == ""


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_rounds_to_infinity_changes_nothing(precision, split):
    """The largest float32 is infinite in 8 or 11 bits; relu hides that from the loss, the gradient must not."""
    trainer = make_trainer("mse", "sgd", sizes=(16, 16, 16), activation="relu", backend="cuda", precision=precision)
    trainer.model.weights[0][0][:] = -1e-3
    before = trainer.model.parameters.copy()
    x, y = make_data("mse", 9, 16, 16)
    x[:, 0] = np.finfo(np.float32).max
    x[:, 1:] = 0
    with pytest.raises(fb.DivergenceError):
        trainer.step(x, y)
    np.testing.assert_array_equal(trainer.model.parameters, before)


# -- bf16 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_bf16(monkeypatch):
    """Precision bf16 runs where it does not pay."""
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("", 2.0))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_products_in_bf16(shape, monkeypatch):
    """Of rounded operands, within float32's bound; the gradient of the bias is a sum of float32."""
    monkeypatch.setattr(choice, "arithmetic", lambda plan, stage: BF16 if stage.has_dense else FMA)
    data = DenseCase("backward", "cuda", "float32", "identity", *shape).data()
    x, w, b, dz, dw, db = (data[name] for name in ("x", "w", "b", "da", "dw", "db"))
    start, db_start = dw.copy(), db.copy()
    identity, z, dx = fb.ops.get_activation("identity"), np.zeros_like(dz), np.zeros_like(x)
    get("cuda").dense_forward(x, w, b, identity, z, None)
    get("cuda").dense_backward(dz, x, w, None, identity, dw, db, dx)
    bf16.check_product(z, x, w, b.astype(np.float64), "z")
    bf16.check_product(dw, x.T, dz, start.astype(np.float64), "dw")
    bf16.check_product(dx, dz, w.T, 0.0, "dx")
    size = np.abs(dz).sum(0, dtype=np.float64) + np.abs(db_start)
    oracle.assert_within(db, dz.sum(0, dtype=np.float64) + db_start, oracle.gamma(len(x) + 1, "float32") * size, "db")


@pytest.mark.parametrize("full", [1, 1000], ids=["large tiles", "small tiles"])
def test_a_program_rounds_operands_and_nothing_else(full, in_bf16, monkeypatch):
    monkeypatch.setattr(memory, "_FULL", full)
    sizes = (37, 20, 17)
    trainer = make_trainer(sizes=sizes, precision="bf16", backend="cuda")
    x, y = make_data("mse", 19, sizes[0], sizes[-1])
    _, gradient = trainer.gradients(x, y)
    expected = bf16.exact_gradient(trainer.model, x, y, bf16.rounded)
    effect = difference(bf16.exact_gradient(trainer.model, x, y, np.asarray), expected)
    assert 1e-4 < effect < 3 * len(sizes) * bf16.U
    assert difference(gradient, expected) < max(effect / 10, 1e-5)
    whole = trainer.gradients(x, y, micro_batch_size=tiles.TILE_ROWS)[1]
    np.testing.assert_array_equal(whole, gradient)


# Rows of which rounding takes no value over a kink of its activation.
BF16_CASES = [replace(case, net=("wide", "dropped")[k % 2], B=10, O=3) for k, case in enumerate(few(NETS, 1, "loss"))]


@pytest.fixture
def wide_nets(monkeypatch):
    monkeypatch.setitem(cases.ALL_NETS, "wide", lambda act, o: (17, [cases.D(20, act), cases.D(16, act), cases.D(o)]))
    monkeypatch.setitem(
        cases.ALL_NETS, "dropped", lambda act, o: (16, [cases.P(0.25), cases.D(33, act), cases.P(0.5), cases.D(o, act)])
    )


@parametrize(BF16_CASES)
def test_bf16_is_near_float32(case, in_bf16, wide_nets):
    """Every activation, loss and optimizer, one step: as far from the reference as rounding operands takes it."""
    found = []
    for backend, precision in (("cuda", "bf16"), ("cuda", "float32"), ("reference", "float32")):
        model = case.model()
        plan, state = replace(case.plan(model), precision=precision), case.state(model)
        program, gradient = cases.program_of(get(backend), plan, state), np.zeros_like(state.parameters)
        sums = program.accumulate(case.feed(), 0, gradient)
        found.append((gradient, sums.loss))
    rounded, ours, exact = found
    assert rounded[0].tobytes() != ours[0].tobytes()
    assert difference(rounded[0], exact[0]) < 12 * bf16.U
    assert rounded[1] == pytest.approx(exact[1], rel=8 * bf16.U, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learns_like_float32(optimizer, in_bf16):
    x, y = make_data("cross_entropy", 32, 16, 16)
    losses = {}
    for precision in ("float32", "bf16"):
        trainer = make_trainer(
            "cross_entropy", optimizer, sizes=(16, 24, 16), activation="relu", precision=precision, backend="cuda"
        )
        losses[precision] = trainer.fit(x, y, batch_size=16, epochs=2, verbose=False)["loss"]
        assert trainer.model.parameters.dtype == np.float32
    assert losses["bf16"] != losses["float32"], "the same bits: float32 ran"
    assert losses["bf16"][-1] == pytest.approx(losses["float32"][-1], rel=0.02)


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_trials():
    choice.trial.cache_clear()
    yield
    choice.trial.cache_clear()


def test_a_slower_or_wrong_device_is_not_given_it(fresh_trials, monkeypatch):
    monkeypatch.setattr(choice, "SIMULATED", False)
    monkeypatch.setattr(choice, "_WIDEST", 1024)
    asked = []
    wide = fb.MLP([256, 256, 256, 10], seed=0)
    plan = make_trainer_plan(wide)
    for capability, wrong, gain, text in (
        ((7, 5), "", 2.0, "compute capability 7.5"),
        ((9, 0), "a tile is off", 2.0, "a tile is off"),
        ((9, 0), "", 1.05, "does not pay"),
        ((9, 0), "", 2.0, ""),
    ):
        choice.trial.cache_clear()
        monkeypatch.setattr(choice, "capability", lambda capability=capability: capability)
        monkeypatch.setattr(choice, "wrong", lambda arithmetic, wrong=wrong: wrong)
        monkeypatch.setattr(choice, "_gain", lambda *given, gain=gain: asked.append(given) or gain)
        assert [choice.arithmetic(plan, stage) for stage in plan.stages] == [FMA if text else TF32] * 2 + [FMA]
        assert text in choice.trial(TF32, 1024, 1024).refused
        refused = get("cuda").supports(replace(plan, precision="bf16"))
        assert (refused is None) == (not text)
        if refused:
            assert text in refused
            assert refused.endswith("use precision='float32'")
    assert asked[-2:] == [(TF32, 1024, 1024), (BF16, 256, 256)], "one product for all wide layers; the largest layer's"
    narrow = make_trainer_plan(fb.MLP([63, 64, 128, 64], seed=0))
    assert [choice.arithmetic(narrow, stage) for stage in narrow.stages] == [FMA, TF32, TF32]
    assert asked[-1] == (TF32, 64, 64)
    assert choice.arithmetic(replace(plan, dtype="float64"), plan.stages[0]) == FMA


def test_info_says_what_became_of_it(fresh_trials, monkeypatch):
    assert get("cuda").tensor_cores == (
        "products of float32 layers from 64 units on 1.0 times as fast, from 256 on 1.0 times as fast, "
        "precision bf16 1.0 times as fast, measured now"
    )
    refused = choice.Trial("does not pay: slow", 1.0)
    monkeypatch.setattr(choice, "trial", lambda *given: refused)
    assert choice.described().count("does not pay: slow") == 3
    info = sys.modules["fastbatch.info"]
    monkeypatch.setattr(info, "gpu", lambda: get("cuda"))
    assert "products of float32 layers from 64 units on does not pay: slow" in str(fb.info())
    monkeypatch.setattr(info, "gpu", lambda: None)
    assert "does not pay: slow" not in str(fb.info())


def make_trainer_plan(model: fb.Sequential):
    return fb.plan.make_plan(model, fb.ops.get_loss("cross_entropy"), fb.Adam())


def test_narrow_networks_are_refused():
    with pytest.raises(fb.BackendError, match="does not pay: no layer has 16 inputs and 16 outputs"):
        fb.Trainer(fb.MLP([8, 15, 4]), precision="bf16", backend="cuda")


# -- teeth -------------------------------------------------------------------------------------------------------------


def eight_bits(monkeypatch) -> None:
    monkeypatch.setattr(tensor, "_KEPT", np.uint32(0xFFFF0000))


def without_rests(monkeypatch) -> None:
    monkeypatch.setattr(tensor, "_rest", lambda x, head: np.uint32(0))
    forget(tensor.of_tensor)


def one_k_for_two(monkeypatch) -> None:
    original = tensor._numbers
    monkeypatch.setattr(tensor, "_numbers", lambda words, size: original(words[[0, 0, 2, 3]], size))


def forget(made) -> None:
    for cached in (made, tiles.forward, tiles.input_gradient, tiles.weight_gradient):
        cached.cache_clear()


@pytest.mark.skipif(not SIMULATED, reason="changes the simulated instruction, or what is compiled")
@pytest.mark.parametrize("mutant", [eight_bits, without_rests, one_k_for_two], ids=lambda mutant: mutant.__name__)
def test_mutants_are_rejected(mutant, split, monkeypatch):
    case = DenseCase("forward", "cuda", "float32", "tanh", 17, 9, 8)
    oracle.check_dense_forward(get("cuda"), case)
    assert choice.wrong.__wrapped__(TF32) == ""
    mutant(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            oracle.check_dense_forward(get("cuda"), case)
        assert "times float32's bound" in choice.wrong.__wrapped__(TF32)
    finally:
        forget(tensor.of_tensor)
