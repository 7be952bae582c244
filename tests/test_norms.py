"""LayerNorm and BatchNorm: against torch, the oracle and their own promises of statistics, splits and threads."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import BATCH_NETS, FUSED, SUBJECTS, NetCase, parametrize

import fastbatch as fb
from fastbatch import ops
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Feed, Sums

LRS = np.full(100, 0.02)
BACKENDS = [name for name in ("c", "numba", "reference") if any(subject.split("-")[0] == name for subject in SUBJECTS)]
backends = pytest.mark.parametrize("backend", BACKENDS)


def batch_cases(subjects=tuple(SUBJECTS), rows=(13, 40, 300)) -> list[NetCase]:
    acts = ("tanh", "gelu", "relu", "silu")
    return [
        NetCase(
            subject, net, acts[i % len(acts)], "mse" if i % 2 else "cross_entropy", B=B, weighted=B == 40, dtype=dtype
        )
        for subject in subjects
        for i, net in enumerate(BATCH_NETS)
        for B in rows
        for dtype in ("float32", "float64")[: 2 if B == 40 else 1]
    ]


# -- programs ----------------------------------------------------------------------------------------------------------


@parametrize(batch_cases())
def test_gradient_of_batch_norms(case):
    _, state, _ = made = case.program()
    before = state.buffers.copy()
    oracle.check_gradient(case, made)
    oracle.assert_same_bits(state.buffers, before, f"{case.id}: running statistics")


@parametrize(batch_cases(FUSED))
def test_runs_with_batch_norms_equal_the_composition(case):
    """Parameters in norm, running statistics per element: a ragged last batch, shuffled rows."""
    found = []
    for subject in (case.subject, "reference"):
        here = replace(case, subject=subject)
        _, state, program = here.program()
        feed = here.feed(4 * case.B + 3, order=np.random.default_rng(0).permutation(4 * case.B + 3))
        sums = Sums()
        program.run(feed, 0, feed.steps, LRS[: feed.steps], 1e6, sums)
        found.append((state, sums))
    (fused, sums), (exact, expected) = found
    assert sums.loss == pytest.approx(expected.loss, rel=1e-3)
    oracle.assert_norm_close(fused.parameters, exact.parameters, 1e-3, case.id)
    oracle.assert_within(fused.buffers, exact.buffers, 1e-3 * np.abs(exact.buffers) + 1e-3, f"{case.id}: buffers")
    assert np.abs(exact.buffers - case.program()[1].buffers).max() > 0.05


@parametrize(batch_cases(FUSED, rows=(13, 300)))
def test_threads_change_no_bit(case, order_of_sums):
    def everything():
        _, state, program = case.program()
        feed = case.feed(case.B + 45)
        gradient = np.zeros_like(state.parameters)
        program.accumulate(case.feed(), 0, gradient)
        out = np.empty((case.B, case.O), np.float32)
        outputs = program.forward(case.feed().x, 0, training=True)
        program.backward(np.ones_like(outputs), gradient)
        program.update(gradient, 1e-3, 0.01)
        program.run(feed, 0, feed.steps, LRS[: feed.steps], 1e6, Sums())
        program.predict(case.feed().x, out)
        return state.parameters.copy(), state.buffers.copy(), gradient, outputs, out

    with fb.set_num_threads(1, exact=True):
        alone = everything()
    for threads in (2, 3, 5):
        with fb.set_num_threads(threads, exact=True):
            for got, expected in zip(everything(), alone):
                oracle.assert_same_bits(got, expected, f"{case.id}: {threads} threads")


@parametrize(batch_cases(rows=(13,)))
def test_predict_uses_the_running_statistics(case):
    plan, state, program = case.program()
    feed = case.feed()
    out = np.empty((case.B, case.O), case.dtype)
    program.predict(feed.x, out)
    x = feed.x.astype(np.float64)
    flat, buffers = state.parameters.astype(np.float64), state.buffers.astype(np.float64)
    for stage in plan.stages:
        if stage.has_dense:
            w = flat[stage.w :][: stage.inputs * stage.outputs].reshape(stage.inputs, stage.outputs)
            x = x @ w + (0 if stage.b is None else flat[stage.b :][: stage.outputs])
        if stage.norm is not None:
            norm, o = stage.norm, stage.outputs
            mean, var = (
                (buffers[norm.mean :][:o], buffers[norm.var :][:o]) if norm.over_rows else ops.norms.moments(x, 1)
            )
            x = (x - mean) / np.sqrt(var + norm.eps) * flat[norm.gamma :][:o] + flat[norm.beta :][:o]
        x = np.asarray(stage.activation.value(x))
    np.testing.assert_allclose(out, x, rtol=1e-3, atol=1e-4)
    oracle.assert_same_bits(program.forward(feed.x, 0, training=False), out, "forward without training")


@parametrize(batch_cases(rows=(40,)))
def test_forward_backward_update_is_a_step(case):
    """Statistics wait for the update; a gradient and a run leave nothing behind."""
    plan, state, program = case.program()
    start = state.buffers.copy()
    x, y = case.feed().x, case.feed().y
    outputs = program.forward(x, 0, training=True)
    oracle.assert_same_bits(state.buffers, start, "running statistics before the update")
    da = np.empty_like(outputs)
    sums = SUBJECTS[case.subject].loss(outputs, y, plan.loss, None, da)
    gradient = np.zeros_like(state.parameters)
    program.backward(da, gradient)
    program.update(gradient, 1 / sums.weight, 0.02)
    _, other, whole = case.program()
    whole.run(Feed(x, y, batch=case.B), 0, 1, LRS[:1], 1e6, Sums())
    oracle.assert_same_bits(state.buffers, other.buffers, f"{case.id}: running statistics")
    assert not np.array_equal(state.buffers, start)
    moved = state.buffers.copy()
    program.update(gradient, 1e-3, 0.02)  # nothing was seen since
    oracle.assert_same_bits(state.buffers, moved, f"{case.id}: a second update")


@parametrize(batch_cases(rows=(40,)))
def test_divergence_leaves_the_running_statistics(case):
    _, state, program = case.program()
    feed = case.feed()
    feed.x[3, 1] = np.inf
    before = [a.copy() for a in (state.parameters, state.buffers, state.slots)]
    with pytest.raises(fb.DivergenceError):
        program.run(feed, 0, 1, LRS[:1], 1e6, Sums())
    for got, expected in zip((state.parameters, state.buffers, state.slots), before):
        oracle.assert_same_bits(got, expected, case.id)


@parametrize([NetCase(s, n, "relu", "mse", B=40) for s in FUSED for n in ("norm", "norms", "blocknorms")])
@pytest.mark.parametrize("size", [1e-30, 1e18, 1e30, 3e38])
def test_layer_norm_of_any_size_updates_or_stops(case, size):
    """Inputs near the ends of float32: finite parameters after a step, or DivergenceError with nothing changed."""
    _, state, program = case.program()
    feed, before = case.feed(), state.parameters.copy()
    feed.x[:] = np.sign(feed.x) * np.float32(size)
    try:
        program.run(feed, 0, 1, LRS[:1], 1e6, Sums())
    except fb.DivergenceError:
        oracle.assert_same_bits(state.parameters, before, case.id)
    assert np.isfinite(state.parameters).all()


@backends
@pytest.mark.parametrize("norm", [fb.LayerNorm(), fb.BatchNorm(), fb.BatchNorm(ghost_size=16)])
def test_an_overflow_of_beta_alone_changes_nothing(backend, norm):
    """More parameters than a small network has; sums of beta leave float32, those of the weights do not."""
    model = fb.Sequential([fb.Dense(90), norm, fb.Dense(1)], input_size=100)
    model.weights[0][0][:] *= 1e10
    model.weights[1][0][:] = 0
    model.weights[1][0][0] = 1e20
    trainer = fb.Trainer(model, "mse", fb.SGD(lr=1e-30), backend=backend)
    x = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    outputs = trainer.forward(x)
    before, buffers = model.parameters.copy(), model.buffers.copy()
    with pytest.raises(fb.DivergenceError, match="gradient"):
        trainer.step(x, outputs - np.float32(1e17))
    oracle.assert_same_bits(model.parameters, before, "parameters")
    oracle.assert_same_bits(model.buffers, buffers, "buffers")
    trainer.step(x, outputs - np.float32(1e15))
    assert np.isfinite(model.parameters).all()
    assert not np.array_equal(model.parameters, before)


# -- teeth -------------------------------------------------------------------------------------------------------------


def _forgets_the_mean(d, normal, factor, axis):
    return factor * (d - normal * (d * normal).mean(axis=axis, keepdims=True))


def _forgets_the_deviation(d, normal, factor, axis):
    return factor * (d - d.mean(axis=axis, keepdims=True))


MUTANTS = {
    "dx without the mean's part": ("normalise_backward", _forgets_the_mean),
    "dx without the deviation's part": ("normalise_backward", _forgets_the_deviation),
    "eps outside the root": ("normalise", lambda x, m, v, e: ((x - m) / (np.sqrt(v) + e), 1 / (np.sqrt(v) + e))),
    "variance of a sample": ("moments", lambda x, a: (x.mean(a, keepdims=True), x.var(a, ddof=1, keepdims=True))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("net", ["norm", "norms", "batch", "ghosts", "blockghosts"])
def test_mutants_of_norms_are_rejected(net, mutant, monkeypatch):
    case = NetCase("reference", net, "tanh", "mse", B=40, dtype="float64")
    oracle.check_gradient(case)
    name, function = MUTANTS[mutant]
    monkeypatch.setattr(ops.norms, name, function)
    with pytest.raises(AssertionError):
        oracle.check_gradient(case)


@pytest.mark.parametrize("wrong", [2, 5, None])
def test_wrong_ghosts_are_rejected(wrong):
    case = NetCase("reference", "ghosts", "tanh", "mse", B=40, dtype="float64")
    plan, state, program = case.program()
    stages = [
        stage if stage.norm is None else replace(stage, norm=replace(stage.norm, ghost_size=wrong))
        for stage in plan.stages
    ]
    program.plan = replace(plan, stages=tuple(stages))
    with pytest.raises(AssertionError):
        oracle.check_gradient(case, (plan, state, program))


# -- torch -------------------------------------------------------------------------------------------------------------


def twins(kind: str, dtype: str, ghost: int | None = None):
    """The same network of ours and of torch, with the same weights."""
    torch = pytest.importorskip("torch")
    made = {"layer": fb.LayerNorm(), "batch": fb.BatchNorm(momentum=0.2, ghost_size=ghost)}[kind]
    other = {"layer": torch.nn.LayerNorm, "batch": lambda n: torch.nn.BatchNorm1d(n, momentum=0.2)}[kind]
    # a bias before a norm over rows has no gradient but rounding, of which Adam makes full steps
    bias = kind == "layer"
    layers = [fb.Dense(32, bias=bias), made, fb.Activation("relu"), fb.Dense(24, "tanh"), made, fb.Dense(3)]
    ours = fb.Sequential(layers, input_size=9, seed=1, dtype=dtype)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(9, 32, bias=bias), other(32), torch.nn.ReLU(), torch.nn.Linear(32, 24), torch.nn.Tanh(),
        other(24), torch.nn.Linear(24, 3),
    ).to(getattr(torch, dtype))  # fmt: skip
    linear = [module for module in theirs if isinstance(module, torch.nn.Linear)]
    for module, (w, b) in zip(linear, ours.weights):
        module.weight.data[:] = torch.tensor(w.T.copy())
        if b is not None:
            module.bias.data[:] = torch.tensor(b)
    return ours, theirs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e20), ("float32", 1e30), ("float64", 1e155)])
def test_rows_whose_squares_overflow_come_out_as_beta(backend, dtype, size):
    """As torch has them in float32, as long as the sums of its own are finite."""
    torch = pytest.importorskip("torch")
    model = fb.Sequential([fb.LayerNorm(), fb.Dense(6, bias=False)], input_size=6, dtype=dtype)
    model.weights[0][0][:] = np.eye(6)
    model.norms[0][1][:] = np.arange(6)
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(dtype)
    x[1] *= size
    with np.errstate(all="ignore"):
        found = fb.Trainer(model, "mse", backend=backend).predict(x)
    assert np.array_equal(found[1], np.arange(6))
    assert np.abs(found[[0, 2]] - np.arange(6)).max() > 0.1
    if size == 1e20:
        beta = torch.arange(6, dtype=torch.float32)
        theirs = torch.nn.functional.layer_norm(torch.tensor(x), (6,), bias=beta).numpy()
        np.testing.assert_allclose(found, theirs, atol=1e-5)


CLOSE = {"float32": 1e-4, "float64": 1e-9}


@pytest.mark.parametrize(("backend", "dtype"), [(b, d) for b in BACKENDS for d in CLOSE])
@pytest.mark.parametrize("kind", ["layer", "batch"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fifty_steps_of_torch(backend, dtype, kind, optimizer):
    ours, theirs = twins(kind, dtype)
    import torch

    lr = {"adam": 3e-3, "sgd": 0.05}[optimizer]
    trainer = fb.Trainer(ours, "mse", {"adam": fb.Adam, "sgd": fb.SGD}[optimizer](lr=lr), backend=backend)
    update = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](theirs.parameters(), lr)
    rng = np.random.default_rng(0)
    for step in range(50):
        x = rng.standard_normal((32, 9)).astype(dtype)
        y = np.tanh(x[:, :3] * x[:, 3:6]).astype(dtype)
        loss = trainer.step(x, y)
        update.zero_grad()
        expected = torch.nn.functional.mse_loss(theirs(torch.tensor(x)), torch.tensor(y))
        expected.backward()
        update.step()
        assert abs(loss - expected.item()) <= CLOSE[dtype], f"step {step}"
    theirs.eval()
    share = 100 * CLOSE[dtype]
    np.testing.assert_allclose(ours.predict(x), theirs(torch.tensor(x)).detach().numpy(), rtol=share, atol=share)
    norms = [module for module in theirs if hasattr(module, "running_mean")]
    assert len(norms) == len(ours.running)
    for module, (mean, var) in zip(norms, ours.running):
        np.testing.assert_allclose(mean, module.running_mean, rtol=share, atol=share)
        np.testing.assert_allclose(var, module.running_var, rtol=share, atol=share)


@backends
def test_ghost_batches_are_torch_on_each(backend):
    """Statistics of 8, 8 and 4 rows: outputs and running statistics as torch's module has them, called on each part."""
    ours, theirs = twins("batch", "float32", ghost=8)
    import torch

    trainer = fb.Trainer(ours, "mse", fb.SGD(lr=0.0), backend=backend)
    x = np.random.default_rng(1).standard_normal((20, 9)).astype(np.float32)
    expected = np.concatenate([theirs(torch.tensor(x[k : k + 8])).detach().numpy() for k in (0, 8, 16)])
    np.testing.assert_allclose(trainer.forward(x), expected, rtol=1e-4, atol=1e-5)
    trainer.backward(np.zeros((20, 3)))
    trainer.update()
    for module, (mean, var) in zip([theirs[1], theirs[5]], ours.running):
        np.testing.assert_allclose(mean, module.running_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(var, module.running_var, rtol=1e-4, atol=1e-5)


@backends
def test_one_row_has_no_variance(backend):
    """Where torch raises: beta comes out, and the running statistics stay."""
    model = fb.Sequential([fb.Dense(4), fb.BatchNorm(), fb.Dense(2)], input_size=3)
    model.norms[0][1][:] = [1, 2, 3, 4]
    trainer = fb.Trainer(model, "mse", backend=backend)
    w, b = model.weights[1]
    np.testing.assert_allclose(trainer.forward(np.ones((1, 3)))[0], [1, 2, 3, 4] @ w + b, rtol=1e-6)
    before = model.buffers.copy()
    trainer.step(np.ones((1, 3), np.float32), np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(model.buffers, before)


# -- trainer -----------------------------------------------------------------------------------------------------------


@backends
def test_micro_batches(backend):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 6)), rng.standard_normal((96, 2))
    layers = [fb.Dense(20), fb.LayerNorm(), fb.Dropout(0.2), fb.Dense(16), fb.BatchNorm(ghost_size=8), fb.Dense(2)]
    trainer = fb.Trainer(fb.Sequential(layers, input_size=6), "mse", backend=backend)
    loss, whole = trainer.gradients(x, y)
    for size in (8, 16, 24, 32, 64, 96, 100):
        got, gradient = trainer.gradients(x, y, micro_batch_size=size)
        np.testing.assert_allclose(gradient, whole, rtol=1e-4, atol=1e-6)
        assert got == pytest.approx(loss, rel=1e-5)
        if backend != "reference" and size % trainer.tile_rows == 0:
            oracle.assert_same_bits(gradient, whole, f"micro_batch_size={size}")
    for size in (1, 4, 12, 95):
        with pytest.raises(fb.ArgumentError, match="a multiple of 8, over which BatchNorm"):
            trainer.gradients(x, y, micro_batch_size=size)
    trainer = fb.Trainer(fb.MLP([6, 5, 2], norm="batch"), "mse", backend=backend)
    with pytest.raises(fb.ArgumentError, match=r"all 96 rows of the logical batch, over which BatchNorm.* got 32"):
        trainer.gradients(x, y, micro_batch_size=32)
    trainer.gradients(x, y, micro_batch_size=96)


@backends
def test_gradient_norms_are_those_of_single_rows(backend):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 6)), rng.standard_normal((7, 2))
    trainer = fb.Trainer(fb.MLP([6, 20, 12, 2], norm="layer", activation="tanh"), "mse", backend=backend)
    expected = [np.linalg.norm(trainer.gradients(x[i : i + 1], y[i : i + 1])[1]) for i in range(7)]
    np.testing.assert_allclose(trainer.gradient_norms(x, y), expected, rtol=1e-4)
    trainer = fb.Trainer(fb.MLP([6, 20, 2], norm="batch"), "mse", backend=backend)
    with pytest.raises(fb.ArgumentError, match="without BatchNorm"):
        trainer.gradient_norms(x, y)


@backends
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_fit_learns(backend, norm):
    rng = np.random.default_rng(0)
    x = 100 + 50 * rng.standard_normal((600, 8))
    y = (x[:, 0] * x[:, 1] > 10000).astype(int)
    model = fb.MLP([8, 32, 32, 2], norm=norm, dropout=0.1)
    model = fb.Sequential([fb.BatchNorm(), *model.layers], input_size=8)
    trainer = fb.Trainer(model, backend=backend)
    history = trainer.fit(x, y, epochs=15, verbose=0, validation_split=0.2)
    assert history["val_accuracy"][-1] > 0.85
    again = pickle.loads(pickle.dumps(trainer))
    np.testing.assert_array_equal(again.predict(x), trainer.predict(x))
    trainer.fit(x, y, epochs=2, verbose=0)
    again.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(again.model.buffers, model.buffers)
    np.testing.assert_array_equal(again.model.parameters, model.parameters)


# -- the model ---------------------------------------------------------------------------------------------------------


def mixed(**options) -> fb.Sequential:
    layers = [fb.LayerNorm(), fb.Dense(4), fb.BatchNorm(), fb.Activation("relu"), fb.Dense(2, bias=False)]
    return fb.Sequential(layers, input_size=3, **options)


def test_parameters_and_buffers_are_laid_out_in_the_order_of_the_layers():
    model = mixed()
    (g0, b0), (g1, b1) = model.norms
    (w0, c0), (w1, c1) = model.weights
    for i, part in enumerate((g0, b0, w0, c0, g1, b1, w1)):
        part[:] = i
    sizes = (3, 3, 12, 4, 4, 4, 8)
    np.testing.assert_array_equal(model.parameters, np.repeat(np.arange(7), sizes))
    assert c1 is None
    ((mean, var),) = model.running
    mean[:], var[:] = 1, 2
    np.testing.assert_array_equal(model.buffers, [1] * 4 + [2] * 4)
    assert model.num_parameters == sum(sizes)


def test_norms_begin_as_the_identity():
    model = mixed()
    for gamma, beta in model.norms:
        assert (gamma == 1).all()
        assert (beta == 0).all()
    assert (model.running[0][0] == 0).all()
    assert (model.running[0][1] == 1).all()
    assert fb.MLP([3, 4, 2]).buffers.size == 0


def test_norms_do_not_hide_the_activation_from_the_initial_weights():
    plain = fb.Sequential([fb.Dense(4, "relu"), fb.Dense(2)], input_size=3)
    for norm in ("layer", "batch"):
        model = fb.MLP([3, 4, 2], norm=norm)
        np.testing.assert_array_equal(model.weights[0][0], plain.weights[0][0])


def test_mlp_puts_norms_between_dense_and_activation():
    kinds = [type(layer).__name__ for layer in fb.MLP([3, 4, 5, 2], norm="layer", dropout=0.5).layers]
    assert kinds == ["Dense", "LayerNorm", "Activation", "Dropout"] * 2 + ["Dense"]
    assert isinstance(fb.MLP([3, 4, 2], norm="batch").layers[1], fb.BatchNorm)
    for wrong in ("layers", True, fb.LayerNorm()):
        with pytest.raises(fb.ArgumentError, match=r"MLP\(norm=\): expected one of"):
            fb.MLP([3, 4, 2], norm=wrong)


def test_weights_make_the_way_there_and_back():
    model, other = mixed(seed=1), mixed(seed=2)
    rng = np.random.default_rng(0)
    model.parameters[:], model.buffers[:] = rng.random(model.num_parameters), rng.random(8)
    weights = model.get_weights()
    assert [len(values) for values in weights] == [2, 2, 4, 2]
    assert weights[3][1] is None
    other.set_weights(weights)
    np.testing.assert_array_equal(other.parameters, model.parameters)
    np.testing.assert_array_equal(other.buffers, model.buffers)
    before = other.parameters.copy()
    for wrong, message in (
        (weights[:3], "expected 4 tuples, one per Dense and norm, got 3"),
        ([*weights[:2], weights[2][:2], weights[3]], r"expected 4 arrays \(gamma, beta, mean, var\), got tuple of 2"),
        ([(np.ones(4), np.ones(3)), *weights[1:]], r"expected gamma \(3,\), got \(4,\): LayerNorm 0"),
    ):
        with pytest.raises(fb.ShapeError, match=message):
            other.set_weights(wrong)
    np.testing.assert_array_equal(other.parameters, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_copies_and_files_keep_everything(tmp_path, dtype):
    model = mixed(dtype=dtype)
    rng = np.random.default_rng(0)
    model.parameters[:], model.buffers[:] = rng.random(model.num_parameters), rng.random(8)
    model.save(tmp_path / "model.safetensors")
    x = rng.standard_normal((5, 3))
    copies = [
        model.copy(),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        fb.load(tmp_path / "model.safetensors"),
    ]
    for twin in copies:
        assert twin.layers == model.layers
        np.testing.assert_array_equal(twin.parameters, model.parameters)
        np.testing.assert_array_equal(twin.buffers, model.buffers)
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))
        twin.running[0][0][:] = 7
        twin.norms[0][0][:] = 7
        assert (twin.buffers[:4] == 7).all()
        assert not (model.buffers[:4] == 7).any()
        assert not (model.parameters[:3] == 7).any()


def test_summary_counts_gamma_and_beta():
    lines = mixed().summary().splitlines()
    assert lines[1].split()[-2:] == ["3", "6"]
    assert lines[3].split()[-2:] == ["4", "8"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fb.LayerNorm(0), r"LayerNorm\(eps=\): expected a number > 0"),
        (lambda: fb.LayerNorm("1"), r"LayerNorm\(eps=\)"),
        (lambda: fb.BatchNorm(eps=float("nan")), r"BatchNorm\(eps=\)"),
        (lambda: fb.BatchNorm(momentum=0), r"BatchNorm\(momentum=\)"),
        (lambda: fb.BatchNorm(momentum=1.5), r"BatchNorm\(momentum=\): expected a number in \(0, 1\], got 1.5"),
        (lambda: fb.BatchNorm(ghost_size=1), r"BatchNorm\(ghost_size=\): expected an integer >= 2 or None, got 1"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(fb.ArgumentError, match=message):
        make()


def test_the_composed_program_of_the_c_kernels_has_norms_too():
    for net in ("norm", "batches"):
        case = NetCase("reference", net, "tanh", "mse", B=20)
        for subject in FUSED[:1]:
            plan, state, _ = case.program()
            oracle.check_gradient(case, (plan, state, ComposedProgram(plan, SUBJECTS[subject], state)))
