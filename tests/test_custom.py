"""Operations of one's own: what is refused, and that they are what a built-in of the same formula is."""

from __future__ import annotations

import copy
import importlib
import logging
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cases import C_TARGETS, SUBJECTS
from own_ops import own_adam, own_huber, own_momentum, own_silu, own_silu_slope

import fastbatch as fb
from fastbatch import ops
from fastbatch.errors import ArgumentError, CheckpointError

# Other tests run over the registries as the library made them
OWN = [(ops.ACTIVATIONS, "own_silu"), (ops.LOSSES, "own_huber")]
OWN += [(ops.OPTIMIZERS, "own_adam"), (ops.OPTIMIZERS, "own_momentum")]
KEPT = [(registry, name, registry.pop(name)) for registry, name in OWN]


@pytest.fixture(autouse=True)
def _registered():
    for registry, name, row in KEPT:
        registry[name] = row
    yield
    for registry, name in OWN:
        registry.pop(name)


RNG = np.random.default_rng(0)
X = RNG.standard_normal((203, 7)).astype(np.float32)
Y = RNG.standard_normal((203, 3)).astype(np.float32)

BACKENDS = [row["name"] for row in fb.backends() if row["available"] and row["device"] == "cpu"]
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def trained(backend, dtype="float32", activation="silu", loss="huber", optimizer=None, threads=1, epochs=3, **options):
    model = fb.MLP([7, 33, 18, 3], activation=activation, seed=4, dtype=dtype)
    trainer = fb.Trainer(model, loss, optimizer or fb.Adam(0.01), backend=backend, num_threads=threads, **options)
    trainer.fit(X.astype(dtype), Y.astype(dtype), epochs=epochs, batch_size=37, verbose=0)
    return trainer


def close(a, b, dtype):
    np.testing.assert_allclose(a, b, rtol=0, atol={"float32": 3e-5, "float64": 1e-12}[dtype])


@backends
@dtypes
@pytest.mark.parametrize(
    "own",
    [
        {"activation": "own_silu"},
        {"loss": "own_huber"},
        {"optimizer": own_adam(0.01)},
        {"optimizer": own_momentum(0.01, momentum=0.5)},
        {"activation": "own_silu", "loss": own_huber(), "optimizer": own_adam(0.01, weight_decay=0.01, l1=1e-3)},
    ],
    ids=["activation", "loss", "optimizer", "hyper", "all"],
)
def test_is_what_the_built_in_of_its_formula_is(own, dtype, backend):
    built_in = {"optimizer": fb.Adam(0.01)}
    if own.get("optimizer") == own_momentum(0.01, momentum=0.5):
        built_in["optimizer"] = fb.SGD(0.01, momentum=0.5)
    if "activation" in own and "loss" in own:
        built_in["optimizer"] = fb.Adam(0.01, weight_decay=0.01, l1=1e-3)
    expected = trained(backend, dtype, **built_in)
    got = trained(backend, dtype, **{**built_in, **own})
    close(got.model.parameters, expected.model.parameters, dtype)
    close(got.slots, expected.slots, dtype)
    close(got.history["loss"], expected.history["loss"], dtype)
    close(got.model.predict(X), expected.model.predict(X), dtype)


@backends
def test_wide_and_single_outputs(backend):
    for width in (1, 40, 1300):
        y = RNG.standard_normal((50, width)).astype(np.float32)
        found = []
        for loss in ("huber", "own_huber"):
            trainer = fb.Trainer(fb.MLP([7, 5, width], seed=1), loss, fb.SGD(0.1), backend=backend)
            trainer.fit(X[:50], y, epochs=1, batch_size=13, verbose=0)
            found.append((trainer.model.parameters.copy(), trainer.history["loss"]))
        close(*(parameters for parameters, _ in found), "float32")
        np.testing.assert_allclose(*(losses for _, losses in found), rtol=1e-5)


@backends
@dtypes
@pytest.mark.parametrize("widths", [(1, 1), (2, 2), (40, 3), (17, 1)], ids=str)
def test_a_row_alone(backend, dtype, widths):
    """Steps of one row take a shorter way, which a first stage without weights bars; not a bit differs."""
    layers = [layer for width in widths for layer in (fb.Dense(width), fb.Activation("own_silu"))]
    found = []
    for first in ([], [fb.Activation("identity")]):
        model = fb.Sequential([*first, *layers], input_size=7, seed=3, dtype=dtype)
        trainer = fb.Trainer(model, "own_huber", own_adam(lr=0.01), backend=backend)
        history = trainer.fit(X[:40].astype(dtype), Y[:40, : widths[-1]].astype(dtype), batch_size=1, epochs=2)
        found.append((model.parameters.tobytes(), history["loss"]))
    assert found[0] == found[1]


@backends
def test_with_a_norm_dropout_clipping_and_weights(backend):
    found = []
    for activation, loss, optimizer in (("silu", "huber", fb.Adam(0.01)), ("own_silu", "own_huber", own_adam(0.01))):
        model = fb.MLP([7, 20, 3], activation=activation, norm="layer", dropout=0.25, seed=2)
        trainer = fb.Trainer(model, loss, optimizer, backend=backend, max_grad_norm=0.5, clip_value=0.1)
        trainer.fit(X, Y, epochs=2, batch_size=50, sample_weight=np.linspace(0, 2, len(X)), verbose=0)
        found.append(model.parameters.copy())
    close(*found, "float32")


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if name != "reference"])
@dtypes
def test_kernels_of_every_target(subject, dtype):
    """Each verb against the reference, at widths beside those of vectors and of blocks that own functions are given."""
    backend, reference = SUBJECTS[subject], SUBJECTS["reference"]
    row, loss, optimizer = ops.get_activation("own_silu"), own_huber(), own_adam(0.01, weight_decay=0.1, l1=0.01)
    for rows, inputs, outputs in ((1, 1, 1), (3, 5, 17), (70, 3, 33), (600, 2, 1), (2, 3, 1030)):
        x, w, b = (RNG.standard_normal(shape).astype(dtype) for shape in ((rows, inputs), (inputs, outputs), outputs))
        y, da = (3 * RNG.standard_normal((2, rows, outputs))).astype(dtype)
        weight = RNG.random(rows)
        found = []
        for kernels in (backend, reference):
            a, z, d = np.zeros((3, rows, outputs), dtype)
            dw, db, dx, p = np.zeros_like(w), np.zeros_like(b), np.zeros_like(x), w.ravel().copy()
            kernels.dense_forward(x, w, b, row, a, z)
            kernels.dense_backward(da, x, w, z, row, dw, db, dx)
            sums = kernels.loss(a, y, loss, weight, d)
            slots = np.full((2, p.size), 0.5, dtype)
            kernels.update(optimizer, p, dw.ravel(), slots, 3, 0.01)
            found.append((a, z, dw, db, dx, d, np.array([sums.loss, sums.weight]), p, slots))
        for got, expected in zip(*found):
            bound = {"float32": 2e-6, "float64": 1e-14}[dtype] * max(1, rows, inputs)
            np.testing.assert_allclose(got, expected, rtol=bound, atol=bound * np.abs(expected).max())


@backends
def test_groups_frozen_layers_and_other_settings(backend):
    found = []
    for each in (backend, "reference"):
        optimizer = own_momentum(0.01, groups={0: {"momentum": 0.1, "lr_factor": 2.0}}, frozen=(1,))
        trainer = trained(each, optimizer=optimizer)
        trainer.retune(own_momentum(0.02, momentum=0.3))
        trainer.fit(X, Y, epochs=1, batch_size=37, verbose=0)
        found.append(trainer.model.parameters)
    close(*found, "float32")


@pytest.mark.skipif(not C_TARGETS, reason="the c backend is not available")
def test_without_numba_c_says_what_is_missing_and_auto_warns(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(fb.BackendError, match=r"activation 'own_silu' is compiled by Numba.*fastbatch\[numba\]"):
        trained("c", activation="own_silu")
    registry = sys.modules["fastbatch.backends"]
    monkeypatch.setitem(registry._loaded, "numba", "it is not there")
    with pytest.warns(RuntimeWarning, match="runs on NumPy, 10 to 100 times slower: loss 'own_huber'"):
        assert fb.Trainer(fb.MLP([7, 3]), "own_huber").backend == "reference"


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_what_numba_cannot_compile_is_said(backend):
    def own_text(z):
        return float(str(z))

    def own_sum(z):
        return math.fsum((z,))

    for function, gist in ((own_text, "could not convert string"), (own_sum, "Unknown attribute 'fsum'")):
        name = function.__name__
        fb.activation(derivative=lambda z: 1.0)(function)
        try:
            with pytest.raises(fb.BackendError, match=f"'{name}' cannot be compiled by Numba.*: {gist}.*") as error:
                trained(backend, activation=name)
            assert "custom.md" in str(error.value)
            assert len(str(error.value)) < 300
        finally:
            del ops.ACTIVATIONS[name]


@pytest.mark.skipif("numba" not in SUBJECTS, reason="the numba backend is not available")
def test_the_gist_of_a_message_keeps_its_letters():
    from fastbatch.backends.scalars.compiled import gist

    assert (
        gist(TypeError("\x1b[1m\x1b[1mmissing a required argument: 'm'\x1b[0m")) == "missing a required argument: 'm'"
    )


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_the_same_bits_on_any_number_of_threads(backend):
    own = {"activation": "own_silu", "loss": "own_huber", "optimizer": own_adam(0.01)}
    x, y = RNG.standard_normal((700, 100)).astype(np.float32), RNG.standard_normal((700, 5)).astype(np.float32)
    found = {}
    for count in (1, 2):
        model = fb.MLP([100, 250, 230, 5], activation=own["activation"])
        trainer = fb.Trainer(model, own["loss"], own["optimizer"], backend=backend, num_threads=count)
        trainer.fit(x, y, epochs=2, batch_size=350, verbose=0)
        found[count] = model.parameters.copy()
    assert np.array_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("kind", "function", "derivative", "says"),
    [
        (
            fb.activation,
            lambda z: np.sin(z),
            lambda z: -np.cos(z),
            ["wrong at (-19.713)", "expected 0.64", "got -0.64"],
        ),
        (fb.activation, lambda z: z**2, lambda z: z, ["wrong at"]),
        (fb.activation, lambda z: z if z > 3 else 0.0, lambda z: 0.0, ["wrong at (3.0", "expected 1", "got 0"]),
        (fb.loss, lambda a, y: (a - y) ** 2, lambda a, y: 2 * (y - a), ["wrong at (-19.713, -3.217)"]),
        (fb.activation, lambda z: math.exp(z), lambda z: math.exp(z), ["at (10000)", "OverflowError"]),
        (fb.activation, lambda z: np.log(abs(z)), lambda z: 1 / z, ["expected a finite number at (0)"]),
        (fb.activation, lambda z: None, None, ["expected a number at", "got None"]),
        (fb.activation, lambda z: undefined, None, ["expected a number at (-10000)", "NameError"]),  # noqa: F821
        (fb.activation, lambda z: z**0.5, None, ["expected a number at (-10000)", "got nan"]),
        (fb.activation, lambda z: np.where(z > 0, z, 0.0), None, ["got array(0.)", "if z > 0.0 else"]),
        (fb.activation, lambda z, y: z, None, ["expected a function of (z)", "(z, y)"]),
        (fb.activation, lambda z: z, lambda: 1.0, ["derivative: expected a function of (z)", "<lambda>()"]),
        (fb.activation, lambda z: z, 1.0, ["derivative: expected a function of (z)", "got 1.0"]),
        (fb.loss, lambda a: a, None, ["expected a function of (a, y)", "(a)"]),
    ],
)
def test_what_is_wrong_is_refused_and_the_point_named(kind, function, derivative, says):
    function.__name__ = "refused"
    with pytest.raises(ArgumentError) as error:
        kind(derivative=derivative)(function)
    assert all(part in str(error.value) for part in ["refused", *says]), error.value
    assert "refused" not in ops.ACTIVATIONS
    assert "refused" not in ops.LOSSES


def lambda_of_two(p, g, lr, t):
    return p - lr * g, 0.0


def test_names_of_built_ins_and_what_an_optimizer_returns():
    def relu(z):
        return z

    def adam(p, g, lr, t):
        return p

    def mse(a, y):
        return a

    def short(p, g, m, lr, t):
        return p - lr * g

    for kind, function in ((fb.activation, relu), (fb.optimizer, adam), (fb.loss, mse)):
        with pytest.raises(ArgumentError, match="name of a built-in"):
            kind(function)
    with pytest.raises(ArgumentError, match="expected 2 finite numbers"):
        fb.optimizer(slots=1)(short)
    with pytest.raises(ArgumentError, match=r"expected a function of \(p, g, lr, t\), got short\(p, g, m, lr, t\)"):
        fb.optimizer(short)
    with pytest.raises(ArgumentError, match=r"constants: expected a function of \(lr, t, beta\), got"):
        fb.optimizer(constants=lambda lr, t: (lr,), beta=0.5)(short)
    with pytest.raises(ArgumentError, match=r"expected a function of \(p, g, constant 1\), got short"):
        fb.optimizer(constants=lambda lr, t: (lr,))(short)
    with pytest.raises(ArgumentError, match="expected 1 finite numbers"):
        fb.optimizer(lambda_of_two)
    with pytest.raises(ArgumentError, match="every optimizer has"):
        fb.optimizer(weight_decay=0.1)
    with pytest.raises(ArgumentError, match="made by def"):
        fb.activation(np.tanh)
    with pytest.raises(ArgumentError, match="from 0 to 3"):
        fb.optimizer(slots=4)


def test_constants_are_looked_at_over_many_updates_and_under_every_setting():
    def own_late(p, g, rate):
        return p - rate * g

    with pytest.raises(ArgumentError, match=r"own_late.*: expected at most 8 finite constants, got .*inf.* at t=10$"):
        fb.optimizer(constants=lambda lr, t: (lr / (t - 10),))(own_late)
    with pytest.raises(ArgumentError, match=r"own_late.*: expected 1 constants as at t=1, got .* at t=100$"):
        fb.optimizer(constants=lambda lr, t: (lr,) * (1 + (t > 10)))(own_late)
    with pytest.raises(ArgumentError, match=r"own_late: expected a number at \(0.001, 10\), got ValueError"):
        fb.optimizer(constants=lambda lr, t: (lr * math.sqrt(2 - t),))(own_late)
    made = fb.optimizer(constants=lambda lr, t, beta: (lr / (1 - beta**t),), beta=0.9)(own_late)
    try:
        made(0.1, beta=0.99)
        with pytest.raises(ArgumentError, match=r"^own_late: expected at most 8 finite constants, got .* at t=1$"):
            made(0.1, beta=1.0)
        with pytest.raises(ArgumentError, match=r"^own_late: expected at most 8 finite constants, got .* at t=1$"):
            made(0.1, groups={0: {"beta": 1.0}})
    finally:
        del ops.OPTIMIZERS["own_late"]


@backends
def test_without_a_derivative_it_predicts_and_is_not_trained(backend):
    @fb.activation
    def own_square(z):
        return z * z

    try:
        model = fb.MLP([7, 4, 3], activation="own_square", seed=1)
        with fb.set_backend(backend):
            assert np.isfinite(model.predict(X)).all()
        with pytest.raises(ArgumentError, match="derivative of activation 'own_square'"):
            fb.Trainer(model, "mse", backend=backend)
    finally:
        del ops.ACTIVATIONS["own_square"]


def test_names_are_those_of_the_registries():
    assert "own_silu" in str(fb.MLP([2, 3, 1], activation="own_silu").summary())
    with pytest.raises(ArgumentError, match="did you mean 'own_silu'"):
        fb.Dense(3, activation="own_sulu")
    with pytest.raises(ArgumentError, match="did you mean 'own_huber'"):
        fb.Trainer(fb.MLP([2, 1]), "own_hubr")
    assert fb.Trainer(fb.MLP([2, 1]), "mse", "own_adam").optimizer == own_adam()
    with pytest.raises(TypeError, match="did you mean 'beta1'"):
        own_adam(beta01=0.5)


def test_files_say_what_is_missing(tmp_path):
    trainer = trained("reference", activation="own_silu", loss="own_huber", optimizer=own_adam(0.01), epochs=1)
    trainer.save(tmp_path / "t.fb")
    trainer.model.save(tmp_path / "m.fb")
    again = fb.Trainer.load(tmp_path / "t.fb")
    assert type(again.optimizer) is own_adam
    for each in (trainer, again):
        each.fit(X, Y, epochs=1, batch_size=37, verbose=0)
    assert np.array_equal(again.model.parameters, trainer.model.parameters)
    assert isinstance(fb.load(tmp_path / "m.fb").loss, own_huber)
    for registry, name in OWN:
        registry.pop(name)
    try:
        with pytest.raises(CheckpointError, match=r"activation 'own_silu' and loss 'own_huber'"):
            fb.load(tmp_path / "m.fb")
        with pytest.raises(CheckpointError, match=r"own_adam, own_huber"):
            fb.Trainer.load(tmp_path / "t.fb")
    finally:
        for registry, name, row in KEPT:
            registry[name] = row


def test_pickle_in_this_process_and_in_a_new_one(tmp_path):
    trainer = trained("reference", activation="own_silu", loss="own_huber", optimizer=own_adam(0.01), epochs=1)
    twin = pickle.loads(pickle.dumps(trainer))
    assert twin.optimizer == trainer.optimizer
    (tmp_path / "t.pickle").write_bytes(pickle.dumps(trainer))
    code = f"import sys, pickle; sys.path[:0] = {sys.path!r}; pickle.load(open({str(tmp_path / 't.pickle')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pickled_model_names_what_nobody_has_registered(tmp_path, monkeypatch):
    """Where it is unpickled, a loss or an optimizer; where it is used, an activation."""
    trainer = trained("reference", activation="own_silu", optimizer=own_adam(0.01), epochs=1)
    lossy = trained("reference", loss="own_huber", epochs=1).model
    pickled = [pickle.dumps(each) for each in (trainer.model, lossy, trainer.optimizer)]
    for registry, name in OWN:
        registry.pop(name)
    monkeypatch.setattr("fastbatch.custom.import_module", lambda name: None)  # is imported here, and does nothing again
    try:
        for pickle_, says in zip(pickled[1:], ("loss 'own_huber'", "optimizer 'own_adam'")):
            with pytest.raises(ArgumentError, match=rf"needs the custom {says}.*@fb\.{says.split()[0]} before"):
                pickle.loads(pickle_)
        model = pickle.loads(pickled[0])
        says = r"needs the custom activation 'own_silu', which nobody has registered here: .* @fb\.activation before"
        for use in (model.predict, lambda x: fb.Trainer(model, "mse"), lambda x: model.export_c(tmp_path / "m.c")):
            with pytest.raises(ArgumentError, match=says):
                use(X)
        assert "needs the custom activation 'own_silu'" in model.summary()
        with pytest.raises(CheckpointError, match=says):
            fb.model.model_from(fb.model.model_parts(model)[1], {})
    finally:
        for registry, name, row in KEPT:
            registry[name] = row
    assert "needs" not in model.summary()
    np.testing.assert_array_equal(model.predict(X), trainer.model.predict(X))


def test_what_was_registered_again_is_not_pickled_by_the_name_of_another():
    before = own_huber()

    def again(a, y):
        return a - y

    again.__name__ = "own_huber"
    try:
        fb.loss(again)
        with pytest.raises(ArgumentError, match="'own_huber' is not the one"):
            pickle.dumps(before)
        assert type(copy.deepcopy(before)) is own_huber
    finally:
        ops.LOSSES["own_huber"] = own_huber


def test_a_cell_that_runs_again_replaces_its_operation():
    for factor in (1.0, 2.0):

        @fb.activation(derivative=lambda z, factor=factor: factor)
        def own_line(z, factor=factor):
            return factor * z

        model = fb.MLP([7, 4, 3], activation="own_line", init="he_uniform", seed=1)
        with fb.set_backend("reference"):
            outputs = model.predict(X)
            linear = fb.MLP([7, 4, 3], activation="identity", init="he_uniform", seed=1).predict(X)
        np.testing.assert_allclose(outputs, factor * linear, rtol=1e-4, atol=1e-5)
    del ops.ACTIVATIONS["own_line"]


@backends
def test_what_a_function_refers_to_is_that_of_its_registration(backend):
    """On the reference, too, which calls it, and of functions that it calls."""
    factor = 2.0

    def times(z):
        return factor * z

    @fb.activation(derivative=lambda z: 2.0)
    def own_times(z):
        return times(z)

    try:
        model = fb.MLP([7, 4, 3], activation="own_times", init="he_uniform", seed=1)
        factor = 3.0
        with fb.set_backend(backend):
            outputs = model.predict(X)
            linear = fb.MLP([7, 4, 3], activation="identity", init="he_uniform", seed=1).predict(X)
        np.testing.assert_allclose(outputs, 2.0 * linear, rtol=1e-4, atol=1e-5)
    finally:
        del ops.ACTIVATIONS["own_times"]


SCALE = 2.0


def own_global_halves(z):
    return z if abs(z) <= 1.0 else 2.0 * own_global_halves(0.5 * z)


def nested(z):
    def inner(u):
        return u * SCALE

    return inner(z)


def keyword(z, *, k=SCALE):
    return k * z


def defaulted(z):
    return keyword(z) + 0.0 * keyword(z, k=3.0)


TABLE = np.array([2.0, 5.0])


def looked_up(z):
    return TABLE[0] * z


def generated(z):
    return sum(z * SCALE for _ in range(1))


@pytest.mark.parametrize("function", [nested, keyword, defaulted, looked_up, generated])
@backends
def test_names_inside_keywords_and_arrays_are_kept(function, backend, monkeypatch):
    name = function.__name__
    fb.activation(derivative=lambda z: 2.0)(function)
    try:
        monkeypatch.setitem(globals(), "SCALE", 3.0)
        monkeypatch.setitem(keyword.__kwdefaults__, "k", 3.0)
        TABLE[0] = 3.0
        model = fb.MLP([7, 4, 3], activation=name, init="he_uniform", seed=1)
        with fb.set_backend(backend):
            if function is generated and backend != "reference":
                with pytest.raises(fb.BackendError, match="'generated' cannot be compiled"):
                    model.predict(X)
                return
            outputs = model.predict(X)
            linear = fb.MLP([7, 4, 3], activation="identity", init="he_uniform", seed=1).predict(X)
        np.testing.assert_allclose(outputs, 2.0 * linear, rtol=1e-4, atol=1e-5)
    finally:
        TABLE[0] = 2.0
        del ops.ACTIVATIONS[name]


@pytest.mark.parametrize("where", ["module", "function", "nowhere"])
@backends
def test_a_function_may_call_itself(where, backend):
    """Its name is not bound yet where a decorator sees it, or to what a cell had made before."""

    def own_local_halves(z):
        return z if abs(z) <= 1.0 else 2.0 * own_local_halves(0.5 * z)

    space = {"own_halves": lambda z: 0.0 * z}
    exec("def own_halves(z):\n    return z if abs(z) <= 1.0 else 2.0 * own_halves(0.5 * z)", text := dict(space))
    function = {"module": own_global_halves, "function": own_local_halves, "nowhere": text["own_halves"]}[where]
    text.update(space)
    if where == "function":
        del own_local_halves
    name = function.__name__
    fb.activation(derivative=lambda z: 1.0)(function)
    try:
        model = fb.MLP([7, 4, 3], activation=name, init="he_uniform", seed=1)
        with fb.set_backend(backend):
            outputs = model.predict(5 * X)
            linear = fb.MLP([7, 4, 3], activation="identity", init="he_uniform", seed=1).predict(5 * X)
        np.testing.assert_allclose(outputs, linear, rtol=1e-4, atol=1e-5)
    finally:
        del ops.ACTIVATIONS[name]


@pytest.mark.parametrize("name", ["lr", "t", "weight_decay", "decay", "rate", "update", "rule", "formula"])
def test_settings_have_no_names_that_optimizers_use(name):
    """One named decay was the weight decay, too."""
    with pytest.raises(ArgumentError, match=f"'{name}' is a name that every optimizer has"):
        fb.optimizer(**{name: 0.5})


def test_a_variable_that_is_assigned_later_is_refused():
    def early(z):
        return later * z

    with pytest.raises(ArgumentError, match="early: expected a value of 'later' where it is registered"):
        fb.activation(early)
    later = 2.0
    assert early(later) == 4.0


@pytest.mark.parametrize(
    ("what", "kind", "given"),
    [
        ("loss", fb.loss(derivative=lambda a, y: 1.0), "a, y): return a - y"),
        ("optimizer", fb.optimizer(gamma=0.1), "p, g, lr, t, gamma): return p - gamma * g"),
    ],
)
def test_functions_without_a_module(what, kind, given):
    exec(f"def bare({given}", space := {})
    made = kind(space["bare"])
    try:
        assert np.isfinite(trained("reference", **{what: made()}).model.parameters).all()
    finally:
        ops.LOSSES.pop("bare", None)
        ops.OPTIMIZERS.pop("bare", None)


def test_what_leaves_the_library_names_the_operation_that_cannot(tmp_path):
    onnx = pytest.importorskip("fastbatch.onnx")
    model = fb.MLP([7, 4, 3], activation="own_silu", seed=1)
    for export, path in ((model.export_c, "m.c"), (lambda path: onnx.export(model, path), "m.onnx")):
        with pytest.raises(ArgumentError, match="activation 'own_silu' is an operation of your own"):
            export(tmp_path / path)
        assert not (tmp_path / path).exists()


@pytest.mark.parametrize("door", ["torch", "keras"])
def test_doors_name_the_operation_that_another_library_cannot_run(door):
    pytest.importorskip(door, reason=f"needs {door}")
    hand_over = getattr(importlib.import_module(f"fastbatch.{door}"), f"to_{door}")
    model = fb.MLP([7, 4, 3], activation="own_silu", seed=1)
    with pytest.raises(ArgumentError, match=f"to_{door}: layer 0, .* 'own_silu' is an operation of your own"):
        hand_over(model)
    row = ops.ACTIVATIONS.pop("own_silu")
    try:
        with pytest.raises(ArgumentError, match="needs the custom activation 'own_silu'"):
            hand_over(model)
    finally:
        ops.ACTIVATIONS["own_silu"] = row


@pytest.mark.skipif("numba" not in SUBJECTS, reason="the numba backend is not available")
def test_slow_compilation_is_announced(caplog, monkeypatch):
    from fastbatch.backends.scalars import compiled, patience

    monkeypatch.setattr(patience, "PATIENCE", 0.001)
    with caplog.at_level(logging.WARNING, "fastbatch"):
        compiled.activation(ops.formula.Formula("own_slow", own_silu, own_silu_slope), "float32")
    assert caplog.messages[0] == "numba: compiling 'own_slow', once in each process"
    assert caplog.messages[1].startswith("numba: compiled 'own_slow' in ")


@pytest.mark.skipif("numba" not in SUBJECTS, reason="the numba backend is not available")
def test_float32_is_not_computed_in_double():
    """Of bare constants, globals and functions of math or NumPy: double takes twice as long and more."""
    from fastbatch.backends.scalars import compiled

    before = len(compiled._alive)
    compiled.activation(ops.formula.Formula("silu_again", own_silu, own_silu_slope), "float32")
    texts = [function.inspect_llvm() for function in compiled._alive[before:]]
    assert len(texts) == 2
    assert not any(" double " in text for text in texts)
