"""Precision bf16: products of bfloat16 operands, summed in float32; everything else is float32 and tested elsewhere."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import cases
import numpy as np
import pytest
from bf16 import U, check_product, exact_gradient, rounded
from helpers import assert_same_bits, difference, make_data, make_trainer, same_bits
from oracle import Guarded, assert_within, gamma

import fastbatch as fb

try:
    from fastbatch import _native
    from fastbatch.backends import native, native_bf16
except ImportError:
    pytest.skip("the c backend is not built", allow_module_level=True)

ENGINES = [
    pytest.param(name, id=name, marks=pytest.mark.skipif(bool(missing), reason=f"{name}: {missing}"))
    for name, missing in _native.bf16_targets().items()
]
if not ENGINES:
    pytest.skip("bfloat16 targets are compiled for x86-64 Linux only", allow_module_level=True)
# blocks are 16 rows or columns and 32 along k, panels 32; 512 and 1024 along k and 256 rows are pieces of memory
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65)
SHAPES = [tuple(row.values()) for row in cases.pairwise(B=EDGES, I=EDGES, O=EDGES)]
SHAPES += [(300, 401, 210), (1100, 130, 61), (40, 1101, 531), (70, 2100, 40), (1025, 33, 600), (513, 40, 40)]


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv("FASTBATCH_TARGET", raising=False)


@pytest.fixture
def backend(monkeypatch):
    """``backend(engine)`` makes precision bf16 run on that engine, measurement aside, as FASTBATCH_TARGET does."""

    def use(engine: str) -> None:
        monkeypatch.setitem(sys.modules["fastbatch.backends"]._loaded, "c", native.Native(engine))

    return use


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_products(engine, shape, rng):
    B, I, O = shape
    kernels = _native.Kernels(engine)
    names = {"x": (B, I), "w": (I, O), "b": (O,), "dz": (B, O), "dw": (I, O), "db": (O,)}
    data = {name: rng.standard_normal(size).astype(np.float32) for name, size in names.items()}
    held = {name: Guarded(value, 1) for name, value in data.items()}
    x, w, b, dz, dw, db = (guard.array for guard in held.values())
    z, dx = Guarded(np.full((B, O), 3.5, np.float32), 1), Guarded(np.full((B, I), 3.5, np.float32), 1)
    kernels.dense_forward(x, w, b, _native.activations.index("identity"), z.array, z.array)
    kernels.dense_backward(dz, x, w, dw, db, dx.array)
    for name in ("x", "w", "b", "dz"):
        held[name].check_unchanged(name)
    for guard, name in ((z, "z"), (dx, "dx"), (held["dw"], "dw"), (held["db"], "db")):
        guard.check(name)
    assert_within(db, data["dz"].sum(0, dtype=np.float64) + data["db"], gamma(B + 1, "float32") * (
        np.abs(data["dz"]).sum(0, dtype=np.float64) + np.abs(data["db"])), "db")  # fmt: skip
    if min(I, O) < 16:  # too narrow: float32
        exact = data["x"].astype(np.float64) @ data["w"] + data["b"]
        size = np.abs(data["x"]).astype(np.float64) @ np.abs(data["w"]) + np.abs(data["b"])
        assert_within(z.array, exact, gamma(I + 1, "float32") * size, "z")
        return
    check_product(z.array, data["x"], data["w"], data["b"].astype(np.float64), "z")
    check_product(dw, data["x"].T, data["dz"], data["dw"].astype(np.float64), "dw")
    check_product(dx.array, data["dz"], data["w"].T, 0.0, "dx")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_rounds_operands_and_nothing_else(engine, backend):
    """A tenth of what rounding does: float32 sums make an activation cross a rounding boundary now and then."""
    backend(engine)
    sizes = (70, 50, 33, 17)
    trainer = make_trainer(sizes=sizes, precision="bf16")
    x, y = make_data("mse", 150, sizes[0], sizes[-1])
    _, gradient = trainer.gradients(x, y)
    expected = exact_gradient(trainer.model, x, y, rounded)
    effect = difference(exact_gradient(trainer.model, x, y, np.asarray), expected)
    assert 1e-4 < effect < 3 * len(sizes) * U
    assert difference(gradient, expected) < max(effect / 10, 1e-5)
    reference = make_trainer(sizes=sizes, backend="reference").gradients(x, y)[1]
    assert difference(gradient, reference) < 2 * effect


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("batch", "sizes"), [(37, (40, 100, 65, 20)), (600, (40, 100, 65, 20)), (37, (40, 401, 390, 20))]
)
def test_bits_do_not_depend_on_threads(engine, batch, sizes, backend):
    backend(engine)
    x, y = make_data("cross_entropy", 1300, 40, 20)
    found = []
    for count in (1, 2, 3):
        trainer = make_trainer("cross_entropy", sizes=sizes, dropout=0.1, precision="bf16")
        with fb.set_num_threads(count, exact=True):
            trainer.fit(x, y, batch_size=batch, epochs=1, verbose=False)
            found.append((trainer.model.parameters.copy(), trainer.predict(x)))
        assert trainer.threads_used == count
    for parameters, outputs in found[1:]:
        assert_same_bits(parameters, found[0][0])
        assert_same_bits(outputs, found[0][1])


@pytest.mark.parametrize("engine", ENGINES)
def test_bits_do_not_depend_on_splits_at_tile_rows(engine, backend):
    backend(engine)
    sizes = (70, 90, 33, 17)
    trainer = make_trainer(sizes=sizes, precision="bf16")
    assert (trainer.tile_rows, make_trainer(sizes=sizes).tile_rows) == (32, 1)
    x, y = make_data("mse", 150, 70, 17)
    whole = trainer.gradients(x, y)[1]
    for pieces in (1, 2, 3):
        assert_same_bits(trainer.gradients(x, y, micro_batch_size=pieces * trainer.tile_rows)[1], whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_mixed_rows_and_limits_of_columns(engine, backend):
    backend(engine)
    x, y = make_data("cross_entropy", 300, 40, 20)
    found = {}
    for precision, count, piece in (("float32", 1, None), ("bf16", 1, None), ("bf16", 2, None), ("bf16", 3, 32)):
        optimizer = fb.SGD(0.1, max_norm=0.8)
        trainer = make_trainer("cross_entropy", optimizer, sizes=(40, 64, 20), precision=precision)
        with fb.set_num_threads(count, exact=True):
            trainer.fit(x, y, batch_size=96, epochs=2, augment=fb.augment.Mixup(1.0), micro_batch_size=piece)
        assert max(np.linalg.norm(w, axis=0).max() for w, _ in trainer.model.weights) == pytest.approx(0.8, rel=1e-6)
        found.setdefault(precision, []).append(trainer.model.parameters)
    for other in found["bf16"][1:]:
        assert_same_bits(other, found["bf16"][0])
    exact = found["float32"][0]
    assert 0 < np.linalg.norm(found["bf16"][0] - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_is_what_fit_does(engine, backend):
    backend(engine)
    x, y = make_data("cross_entropy", 96, 40, 20)
    options = {"sizes": (40, 64, 20), "precision": "bf16"}
    stepped, fitted = (make_trainer("cross_entropy", **options) for _ in range(2))
    for start in range(0, 96, 32):
        stepped.step(x[start : start + 32], y[start : start + 32])
    fitted.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=False)
    assert_same_bits(stepped.model.parameters, fitted.model.parameters)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learns_like_float32(engine, optimizer, backend):
    backend(engine)
    x, y = make_data("cross_entropy", 4000, 64, 10)
    losses = {}
    for precision in ("float32", "bf16"):
        trainer = make_trainer(
            "cross_entropy", optimizer, sizes=(64, 128, 64, 10), activation="relu", precision=precision
        )
        losses[precision] = trainer.fit(x, y, batch_size=64, epochs=2, verbose=False)["loss"]
        assert trainer.model.parameters.dtype == np.float32
    assert losses["bf16"] != losses["float32"], "the same bits: float32 ran"
    assert losses["bf16"][-1] == pytest.approx(losses["float32"][-1], rel=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_rounds_to_infinity_changes_nothing(engine, backend):
    """The largest float32 is infinite in 8 bits; relu hides that from the loss, the gradient check must not."""
    backend(engine)
    trainer = make_trainer("mse", sizes=(32, 32, 16), activation="relu", precision="bf16")
    trainer.model.weights[0][0][:] = -1e-3
    before = trainer.model.parameters.copy()
    x, y = make_data("mse", 40, 32, 16)
    x[:, 0] = np.finfo(np.float32).max
    x[:, 1:] = 0
    with pytest.raises(fb.DivergenceError, match="gradient"):
        trainer.step(x, y)
    assert_same_bits(trainer.model.parameters, before)
    assert trainer.steps == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_keep_the_precision(engine, twin, backend):
    backend(engine)
    x, y = make_data("cross_entropy", 64, 40, 20)
    trainer = make_trainer("cross_entropy", sizes=(40, 64, 20), precision="bf16")
    trainer.step(x, y)
    other = twin(trainer)
    plain = make_trainer("cross_entropy", sizes=(40, 64, 20))
    assert other.precision == "bf16"
    assert plain.precision == "float32"
    for each in (trainer, other):
        each.step(x, y)
    assert_same_bits(other.model.parameters, trainer.model.parameters)
    for _ in range(2):
        plain.step(x, y)
    assert not same_bits(plain.model.parameters, trainer.model.parameters)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen(monkeypatch):
    """``chosen(engine)`` is a backend whose bf16 runs on that engine where it pays."""

    def use(engine: str) -> native.Native:
        made = native.Native()
        made.bf16_target = engine
        monkeypatch.setitem(sys.modules["fastbatch.backends"]._loaded, "c", made)
        return made

    return use


@pytest.mark.parametrize("engine", ENGINES)
def test_refused_where_it_measures_slower(engine, chosen, monkeypatch):
    target = chosen(engine).target
    asked = []

    def trial(*arguments):
        asked.append(arguments)
        return 20e-6, 40e-6

    monkeypatch.setattr(native_bf16, "_trial", trial)
    with pytest.raises(fb.BackendError) as caught:
        fb.Trainer(fb.MLP([784, 300, 10]), precision="bf16")
    message = str(caught.value)
    for part in ("pay: the", "64 rows", "(512, 300)", f"40.0 us here on target {engine}", "20.0 us in float32; use"):
        assert part in message
    with pytest.raises(fb.BackendError, match=r"\(300, 400\)"):
        fb.Trainer(fb.MLP([200, 300, 400, 10]), precision="bf16")
    assert asked == [(target, engine, 64, 512, 300, False), (target, engine, 64, 300, 400, True)]
    monkeypatch.setattr(native_bf16, "_trial", lambda *arguments: (40e-6, 20e-6))
    assert fb.Trainer(fb.MLP([784, 300, 10]), precision="bf16").precision == "bf16"


TOO_FEW = {
    "step": lambda t, x, y: t.step(x[:4], y[:4]),
    "step weighted": lambda t, x, y: t.step(x[:4], y[:4], np.ones(4)),
    "partial_fit": lambda t, x, y: t.partial_fit(x[:4], y[:4]),
    "fit": lambda t, x, y: t.fit(x, y, batch_size=4, input_scale=(0.5, 1)),
    "fit of few rows": lambda t, x, y: t.fit(x[:4], y[:4], batch_size=64),
    "micro-batches": lambda t, x, y: t.fit(x, y, batch_size=64, micro_batch_size=4),
    "a dict": lambda t, x, y: t.fit(x, y, batch_size={0: 64, 2: 4}, epochs=3),
    "a function": lambda t, x, y: t.fit(x, y, batch_size=lambda epoch: 4),
    "Grow": lambda t, x, y: t.fit(x, y, batch_size=fb.batching.Grow(4)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("call", TOO_FEW)
def test_few_rows_are_refused_before_anything_changes(engine, call, chosen, monkeypatch):
    """Packing the weights costs more than so few rows gain. On the fast path, too: the step before made room for 64."""
    chosen(engine)
    asked = []

    def trial(target, bf16_target, rows, *shape):
        asked.append(rows)
        return (40e-6, 20e-6) if rows >= 16 else (20e-6, 40e-6)

    monkeypatch.setattr(native_bf16, "_trial", trial)
    x, y = make_data("cross_entropy", 96, 40, 20)
    trainer = make_trainer("cross_entropy", sizes=(40, 64, 20), precision="bf16")
    trainer.step(x[:64], y[:64])
    before, steps, history = trainer.model.parameters.copy(), trainer.steps, trainer.history
    with pytest.raises(
        fb.BackendError, match=r"does not pay for 4 rows at a time: .* 40.0 us.*or larger batches"
    ) as got:
        TOO_FEW[call](trainer, x, y)
    assert "cannot run this model" not in str(got.value)
    assert asked == [64, 4]
    assert (trainer.steps, trainer.epochs, trainer.input_scale) == (steps, 0, None)
    assert trainer.history is history
    assert_same_bits(trainer.model.parameters, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_asked_about_rows(engine, chosen, monkeypatch):
    """Fewer rows once each; more than pay, the rest of an epoch and what does not train never."""
    chosen(engine)
    asked = []
    monkeypatch.setattr(native_bf16, "_trial", lambda *of: asked.append(of[2]) or (40e-6, 20e-6))
    x, y = make_data("cross_entropy", 100, 40, 20)
    trainer = make_trainer("cross_entropy", sizes=(40, 64, 20), precision="bf16")
    trainer.fit(x, y, batch_size=32, epochs=2)  # ends with 4 rows
    trainer.fit(x, y, batch_size={0: 64, 3: 32, 9: 2})
    sizes = iter((64, 4))
    trainer.fit(x, y, batch_size=lambda epoch: next(sizes), epochs=2)  # begun is not refused half way
    for rows in (100, 64, 32, 20, 20, 40):
        trainer.step(x[:rows], y[:rows])
    trainer.gradients(x[:3], y[:3])
    trainer.evaluate(x[:3], y[:3])
    trainer.predict(x[:3])
    assert asked == [64, 32, 20]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forced_engine_takes_any_number_of_rows(engine, backend, monkeypatch):
    backend(engine)
    monkeypatch.setattr(native_bf16, "_trial", lambda *of: pytest.fail("measured"))
    x, y = make_data("cross_entropy", 8, 40, 20)
    trainer = make_trainer("cross_entropy", sizes=(40, 64, 20), precision="bf16")
    trainer.step(x[:1], y[:1])
    trainer.fit(x, y, batch_size=2)
    assert trainer.steps == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_narrow_networks_are_refused(engine, chosen):
    """Layers narrower than 16 have float32 products in either table."""
    chosen(engine)
    with pytest.raises(fb.BackendError, match="does not pay: no layer has 16 inputs and 16 outputs"):
        fb.Trainer(fb.MLP([8, 15, 4]), precision="bf16")


def test_a_forced_target_without_it_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules["fastbatch.backends"]._loaded, "c", native.Native("baseline"))
    with pytest.raises(fb.BackendError, match="target baseline was forced, and it has no bfloat16 products"):
        fb.Trainer(fb.MLP([64, 64, 16]), precision="bf16")


def test_a_cpu_without_it_is_an_error(monkeypatch):
    monkeypatch.setattr(_native, "bf16_targets", lambda: {"amx": "this CPU lacks amx_bf16"})
    monkeypatch.setitem(sys.modules["fastbatch.backends"]._loaded, "c", native.Native())
    with pytest.raises(
        fb.BackendError, match=r"not available \(amx: this CPU lacks amx_bf16\); use precision='float32'"
    ):
        fb.Trainer(fb.MLP([64, 64, 16]), precision="bf16")
    with pytest.raises(fb.BackendError, match=r"target 'amx': this CPU lacks amx_bf16"):
        native.Native("amx")
    assert "amx: this CPU lacks amx_bf16" in str(fb.info())


@pytest.mark.parametrize("engine", ENGINES)
def test_forcing_an_engine_leaves_float32_alone(engine):
    """FASTBATCH_TARGET names an engine: bf16 runs on it even where it does not pay, float32 on the best target."""
    code = (
        "import fastbatch as fb, numpy as np; m = fb.MLP([8, 15, 4]); x = np.ones((4, 8), np.float32)\n"
        "y = x[:, :4]\n"
        "for p in ('float32', 'bf16'): print(fb.Trainer(m, 'mse', precision=p).step(x, y) > 0)\n"
        "i = fb.info(); print(i['target'], i['bf16_target'])"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTBATCH_TARGET": engine},
        capture_output=True,
        text=True,
        check=True,
    )
    best = [name for name, usable in _native.targets().items() if usable][-1]
    assert made.stdout.split() == ["True", "True", best, engine]


def test_unknown_precision():
    with pytest.raises(fb.ArgumentError, match="expected one of bf16, float32; got 'bfloat16'; did you mean 'bf16'"):
        fb.Trainer(fb.MLP([64, 64, 16]), precision="bfloat16")


def test_float64_models_are_refused():
    with pytest.raises(fb.ArgumentError, match="expected a float32 model, got dtype float64"):
        fb.Trainer(fb.MLP([64, 64, 16], dtype="float64"), precision="bf16")


def test_the_reference_does_not_have_it():
    with pytest.raises(fb.BackendError, match="precision bf16 lives in the c backend"):
        fb.Trainer(fb.MLP([64, 64, 16]), precision="bf16", backend="reference")


def test_info_lists_the_engines():
    found = fb.info()
    assert found["bf16_targets"] == _native.bf16_targets()
    assert found["bf16_reason"] in str(found)
