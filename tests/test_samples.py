"""What accumulate says of each sample, `scale`, and `Trainer.gradient_norms`: held to gradients of single rows."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import FUSED, LOSS_NAMES, NETS, PAIRS, SUBJECTS, NetCase, few_nets, is_ordered, pairwise, parametrize
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer
from test_teeth import HOST, Mutant
from tiers import thin

import fastbatch as fb
from fastbatch import ops
from fastbatch import program as program_module
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Feed, PerSample, Sums
from fastbatch.training import steps as steps_module

backends = pytest.mark.parametrize("backend", BACKENDS)
FIELDS = ("loss", "weight", "input_norms", "delta_norms", "norm_norms")
# of a norm: what rounding leaves between a row alone and the same row among others
CLOSE = {"float32": 2e-5, "float64": 1e-12}
FIRST_ROW = 5


def dense(plan) -> list:
    return [stage for stage in plan.stages if stage.has_dense]


def asked(plan, rows: int, **given) -> PerSample:
    """All numbers asked for; what is not written stays NaN."""
    shapes = {"loss": rows, "weight": rows, "norm_norms": rows, "input_norms": (len(dense(plan)), rows)}
    arrays = {name: np.full(shapes.get(name, shapes["input_norms"]), np.nan) for name in FIELDS}
    return PerSample(**arrays, **given)


def piece(feed: Feed, rows: slice) -> Feed:
    weight = None if feed.weight is None else feed.weight[rows]
    return Feed(feed.x[rows], feed.y[rows], weight, batch=len(feed.x[rows]))


def gradient_of(made, feed: Feed, first_row: int = FIRST_ROW, rows: PerSample | None = None) -> np.ndarray:
    plan, _, program = made
    gradient = np.zeros(plan.num_parameters, feed.x.dtype)
    program.accumulate(feed, first_row, gradient, rows=rows)
    return gradient


def assert_close(got, exact, share: float, what: str, largest: float = 0.0) -> None:
    """`largest` of all rows, where exact has another rounding of the slope: next to its root little else is left."""
    exact = np.asarray(exact, np.float64)
    oracle.assert_within(np.asarray(got), exact, share * (np.abs(exact) + 1e-4 * largest) + 1e-30, what)


def check_per_sample(case: NetCase, made: tuple | None = None) -> None:
    """Every number of every row against a run of accumulate over that row alone; nothing written beside them."""
    plan, state, program = made = made or case.program()
    feed, share = case.feed(), 2 * CLOSE[case.dtype]  # of a square
    guards = {name: oracle.Guarded(array) for name, array in vars(asked(plan, case.B)).items() if array is not None}
    rows = PerSample(**{name: guard.array for name, guard in guards.items()})
    parameters = state.parameters.copy()
    gradient = np.zeros(plan.num_parameters, case.dtype)
    sums = program.accumulate(feed, FIRST_ROW, gradient, Sums(1, 2), rows)
    # norms of composed steps come from NumPy's slopes, the gradient from the kernels'
    two_slopes = isinstance(program, ComposedProgram) and program._steps is None and program.kernels.name != "reference"
    for name, guard in guards.items():
        guard.check(f"{case.id}: {name}")
    oracle.assert_same_bits(state.parameters, parameters, f"{case.id}: parameters (an input)")
    assert_close([sums.loss, sums.weight], [1 + rows.loss.sum(), 2 + rows.weight.sum()], share, f"{case.id}: sums")
    expected = asked(plan, case.B)
    for i in range(case.B):
        alone = np.zeros(plan.num_parameters, case.dtype)
        one = program.accumulate(piece(feed, slice(i, i + 1)), FIRST_ROW + i, alone)
        expected.loss[i], expected.weight[i] = one.loss, one.weight
        for k, stage in enumerate(dense(plan)):
            at = {"w": stage.inputs * stage.outputs, "b": stage.outputs}
            squares = {
                name: np.square(alone[offset : offset + at[name]], dtype=np.float64).sum()
                for name, offset in (("w", stage.w), ("b", stage.b))
                if offset is not None
            }
            where = f"{case.id}: row {i}, dense stage {k}"
            deltas = rows.delta_norms[k]
            products = rows.input_norms[k] * deltas
            assert_close(products[i], squares["w"], share, f"{where}: dw", two_slopes * products.max())
            if stage.b is not None:
                assert_close(deltas[i], squares["b"], share, f"{where}: db", two_slopes * deltas.max())
        own = [t for name, t in oracle.tensors(plan, alone).items() if name.endswith(("gamma", "beta"))]
        expected.norm_norms[i] = sum(np.square(t, dtype=np.float64).sum() for t in own)
    assert_close(rows.loss, expected.loss, share, f"{case.id}: loss")
    assert_close(rows.weight, expected.weight, share, f"{case.id}: weight")
    assert_close(rows.norm_norms, expected.norm_norms, share, f"{case.id}: norm_norms")
    first = plan.stages[0]
    if first.has_dense:
        exact = np.square(feed.x, dtype=np.float64).sum(axis=1)
        assert_close(rows.input_norms[0], exact, first.inputs * 2.0**-52, f"{case.id}: input_norms")
    # to ask, and to ask for less, moves no bit
    oracle.assert_same_bits(gradient_of(made, feed), gradient, f"{case.id}: gradient when nothing is asked")
    without = asked(plan, case.B)
    assert program.accumulate(feed, FIRST_ROW, None, Sums(1, 2), without) == sums
    for name in FIELDS:
        only = PerSample(**{name: getattr(asked(plan, case.B), name)})
        oracle.assert_same_bits(gradient_of(made, feed, rows=only), gradient, f"{case.id}: gradient with {name}")
        for other in (only, without):
            oracle.assert_same_bits(getattr(other, name), getattr(rows, name), f"{case.id}: {name} alone")


def check_scale(case: NetCase, made: tuple | None = None) -> None:
    """A scale is to the gradient, and to nothing else, what a row weight is."""
    plan, state, _ = made = made or case.program()
    feed = case.feed()
    scale = np.resize([0.5, 2.0, 0.0, 0.3, 1.0, 1.7], case.B).astype(case.dtype)
    plain, rows = asked(plan, case.B), asked(plan, case.B, scale=scale)
    before = gradient_of(made, feed, rows=plain)
    got = gradient_of(made, feed, rows=rows)
    for name in FIELDS:
        oracle.assert_same_bits(getattr(rows, name), getattr(plain, name), f"{case.id}: {name} beside a scale")
    weight = scale.astype(np.float64) * (1 if feed.weight is None else feed.weight)
    exact, bound = oracle.network(plan, state, replace(feed, weight=weight), FIRST_ROW)[2:4]
    oracle.assert_within(got, exact, 2 * bound, f"{case.id}: scaled gradient")
    ones = PerSample(scale=np.ones(case.B, case.dtype))
    oracle.assert_same_bits(gradient_of(made, feed, rows=ones), before, f"{case.id}: scale 1")


def sample_cases(pairs=PAIRS) -> list[NetCase]:
    rows = pairwise(
        activation=ops.ACTIVATIONS,
        loss=LOSS_NAMES,
        net=NETS,
        O=(1, 3, 10),
        B=(1, 8, 13),
        weighted=(False, True),
        labels=(True, False),
    )
    return [NetCase(subject, dtype=dtype, **row) for subject, dtype in pairs for row in rows]


# Alone, a row of the reference goes another way through BLAS: in float32 that is not rounding any more where a loss is
# nearly met. float64 is its specification.
EXACT = [pair for pair in PAIRS if pair != ("reference", "float32")]


@thin(2, "numbers", "dtype")
@parametrize(sample_cases(EXACT))
def test_per_sample(case):
    check_per_sample(case)


@parametrize([*few_nets(), *few_nets(weighted=True, dtype="float64", subjects=["reference"])])
def test_scale(case):
    check_scale(case)


@parametrize(few_nets(B=21))
def test_a_scale_of_zeros_and_ones_is_a_subset(case):
    """Rows left out: the same bits where every sum is one chain, within the bound elsewhere."""
    made = plan, state, _ = case.program()
    if any(stage.has_dropout for stage in plan.stages):  # keyed by position: only rows in front may be missing
        keep = np.arange(case.B) >= 8
    else:
        keep = np.arange(case.B) % 3 != 1
    feed = case.feed()
    got = gradient_of(made, feed, rows=PerSample(scale=keep.astype(case.dtype)))
    subset = Feed(feed.x[keep], feed.y[keep], None if feed.weight is None else feed.weight[keep], batch=case.B)
    first_row = FIRST_ROW + int(np.argmax(keep))
    if is_ordered(case):
        oracle.assert_same_bits(got, gradient_of(made, subset, first_row), f"{case.id}: scale 0 and 1")
    exact, bound = oracle.network(plan, state, subset, first_row)[2:4]
    oracle.assert_within(got, exact, 2 * bound, f"{case.id}: scale 0 and 1")


@parametrize([replace(case, B=110) for case in few_nets(FUSED) if is_ordered(case)])
def test_threads_and_splits_change_no_bit(case, order_of_sums):
    made = plan, _, _ = case.program()
    feed = case.feed()
    scale = np.linspace(0, 2, case.B, dtype=case.dtype)

    def pieces(size: int):
        rows, gradient = asked(plan, case.B), np.zeros(plan.num_parameters, case.dtype)
        for start in range(0, case.B, size):
            part = slice(start, start + size)
            stretch = PerSample(**{name: getattr(rows, name)[..., part] for name in FIELDS}, scale=scale[part])
            made[2].accumulate(piece(feed, part), start, gradient, rows=stretch)
        return {**{name: getattr(rows, name) for name in FIELDS}, "gradient": gradient}

    with fb.set_num_threads(1, exact=True):
        expected = pieces(case.B)
    assert not any(np.isnan(array).any() for array in expected.values())
    unit = made[2].tile_rows
    for threads, size in ((1, 1), (1, 2), (1, 3), (2, case.B), (2, 1), (3, case.B), (3, 2)):
        size = min(size * unit, case.B)
        with fb.set_num_threads(threads, exact=True):
            got = pieces(size)
        for name, array in expected.items():
            oracle.assert_same_bits(got[name], array, f"{case.id}: {name}, {threads} threads, pieces of {size}")


@parametrize(few_nets())
def test_no_rows(case):
    made = plan, _, _ = case.program()
    rows = asked(plan, 0, scale=np.empty(0, case.dtype))
    assert not gradient_of(made, case.feed(0), rows=rows).any()


# -- Trainer.gradient_norms ----------------------------------------------------------------------------------------


def check_gradient_norms(trainer: fb.Trainer, x, y) -> None:
    """Against the gradient of each row among the others, which has its own dropout."""
    got = trainer.gradient_norms(x, y)
    assert got.shape == (len(x),)
    assert got.dtype == np.float64
    for i in range(len(x)):
        alone = trainer.gradients(x, y, np.arange(len(x)) == i)[1]
        assert_close(got[i], np.sqrt(np.square(alone, dtype=float).sum()), CLOSE[trainer.model.dtype], f"row {i}")


def any_trainer(backend, loss="mse", activation="tanh", **options) -> fb.Trainer:
    options = {"dropout": 0.3, "dtype": "float32" if backend == "c" else "float64", **options}
    return make_trainer(loss, activation=activation, backend=backend, **options)


@thin(2, "backend", "loss")
@backends
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("loss", ops.LOSSES)
@pytest.mark.parametrize("n", [1, 19])
def test_gradient_norms(backend, loss, activation, n):
    options = {"dtype": "float64"} if n > 1 else {}
    check_gradient_norms(any_trainer(backend, loss, activation, **options), *make_data(loss, n))


@backends
def test_gradient_norms_are_those_of_single_rows(backend):
    trainer = any_trainer(backend, "cross_entropy", dropout=0.0)
    x, y = make_data("cross_entropy", 9)
    alone = [np.linalg.norm(trainer.gradients(x[i : i + 1], y[i : i + 1])[1]) for i in range(9)]
    assert_close(trainer.gradient_norms(x, y), alone, 1e-6, "norms")


@backends
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_norms_with_and_without_biases(backend, bias):
    x, y = make_data()
    layers = [fb.Dense(6, "relu", bias=bias), fb.Dense(8, bias=not bias), fb.Activation("tanh"), fb.Dense(4, bias=bias)]
    model = fb.Sequential(layers, input_size=5, dtype="float32" if backend == "c" else "float64")
    check_gradient_norms(fb.Trainer(model, "mse", backend=backend), x[:7], y[:7])


@backends
def test_class_weights_are_weights(backend):
    """Of one row the weight cancels, and class weight 0 is a gradient of 0."""
    x, y = make_data("cross_entropy", 30)
    weighted = any_trainer(backend, fb.losses.CrossEntropy(weight=[0.25, 3.0, 0.0, 1.0]))
    got, plain = weighted.gradient_norms(x, y), any_trainer(backend, "cross_entropy").gradient_norms(x, y)
    assert set(y) == {0, 1, 2, 3}
    assert_close(got, np.where(y == 2, 0, plain), 1e-6, "norms")


@backends
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("K", [4, 10, 33])
def test_softmax_layer_with_zero_weights(backend, K, bias):
    """p = 1/K and dz = p - y, so |dz|^2 = (1 - 1/K)^2 + (K - 1)/K^2 = 1 - 1/K."""
    rng = np.random.default_rng(K)
    dtype = "float32" if backend == "c" else "float64"
    x, y = rng.standard_normal((50, 7)).astype(dtype), rng.integers(0, K, 50)
    model = fb.Sequential([fb.Dense(K, bias=bias)], input_size=7, dtype=dtype)
    model.parameters[:] = 0
    got = fb.Trainer(model, "cross_entropy", backend=backend).gradient_norms(x, y)
    exact = (1 - 1 / K) * (np.square(x, dtype=float).sum(axis=1) + bias)
    assert_close(got**2, exact, 8 * np.finfo(dtype).eps, "squares")


@backends
@pytest.mark.parametrize("loss", ops.LOSSES)
def test_gradient_norms_change_nothing(backend, loss):
    x, y = make_data(loss)
    trainer = make_trainer(loss, dropout=0.3, backend=backend)
    trainer.fit(x, y)
    twin = copy.deepcopy(trainer)
    assert_same_bits(trainer.gradient_norms(x, y), trainer.gradient_norms(x, y))
    assert_same_trainer(trainer, twin)
    before = trainer.gradient_norms(x, y)
    trainer.step(x, y)
    assert before.tobytes() != trainer.gradient_norms(x, y).tobytes()


@backends
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_reaches_its_row_only(backend, poison):
    """Overflow shows in the value, as in `gradients`, and not as an error or a warning."""
    x, y = make_data(n=9)
    trainer = make_trainer(activation="relu", backend=backend)
    plain = trainer.gradient_norms(x, y)
    x[4] = poison
    got = trainer.gradient_norms(x, y)
    assert not got[4] < 1e30
    assert_close(np.delete(got, 4), np.delete(plain, 4), 1e-6, "the other rows")


@backends
def test_gradient_norms_take_a_forward_away(backend):
    x, y = make_data(n=8)
    trainer = make_trainer(backend=backend)
    trainer.forward(x)
    trainer.gradient_norms(x, y)
    with pytest.raises(fb.ArgumentError, match="forward"):
        trainer.backward(y)


@pytest.mark.parametrize("fused", FUSED)
def test_gradient_norms_in_blocks_and_threads(fused, public, monkeypatch):
    x, y = make_data("cross_entropy", 70)
    trainer = make_trainer("cross_entropy", dropout=0.3, backend=public(fused))
    with fb.set_num_threads(1, exact=True):
        expected = trainer.gradient_norms(x, y)
    for block, threads in ((1, 1), (16, 2), (69, 3), (70, 2)):
        monkeypatch.setattr(program_module, "PREDICT_ROWS", block)
        with fb.set_num_threads(threads, exact=True):
            assert_same_bits(trainer.gradient_norms(x, y), expected)


# -- teeth ---------------------------------------------------------------------------------------------------------


class Liar(ComposedProgram):
    """Right, but for what `lie` does to the numbers of the rows."""

    def accumulate(self, feed, first_row, gradient, sums=None, rows=None):
        honest = super().accumulate(feed, first_row, gradient, sums, rows)
        if rows is not None:
            self.lie(rows, feed)
        return honest


def _times(name: str, factor: float):
    def lie(rows, feed):
        if getattr(rows, name) is not None:
            getattr(rows, name)[...] *= factor

    return lie


def _of_other(name: str, move):
    def lie(rows, feed):
        if getattr(rows, name) is not None:
            getattr(rows, name)[...] = move(getattr(rows, name)).copy()

    return lie


def _unweighted(rows, feed):
    if rows.delta_norms is not None:
        rows.delta_norms /= np.square(np.maximum(feed.weight, 1e-3))


LIES = {
    **{f"{name} off by 1e-3": _times(name, 1.001) for name in FIELDS},
    **{f"{name} of the row before": _of_other(name, lambda v: np.roll(v, 1, axis=-1)) for name in FIELDS},
    **{f"{name} from behind": _of_other(name, lambda v: v[::-1]) for name in ("input_norms", "delta_norms")},
    **{f"{name} not squared": _of_other(name, np.sqrt) for name in ("input_norms", "delta_norms")},
    "the last row is forgotten": _of_other("loss", lambda v: np.where(np.arange(len(v)) < len(v) - 1, v, np.nan)),
    "the weight is left out": _unweighted,
}


OF_NORMS = [lie for lie in LIES if lie.startswith("norm_norms")]


@pytest.mark.parametrize(
    ("net", "lie"),
    [(net, lie) for net in ("two", "dropout", "tail", "six") for lie in LIES if lie not in OF_NORMS]
    + [(net, lie) for net in ("norm", "norms") for lie in LIES],
)
def test_lies_about_rows(net, lie):
    case = NetCase(HOST, net, "tanh", "mse", weighted=True)
    plan, state, _ = case.program()
    program = Liar(plan, SUBJECTS[HOST], state)
    program.lie = lambda rows, feed: None
    check_per_sample(case, (plan, state, program))
    program.lie = LIES[lie]
    with pytest.raises(AssertionError):
        check_per_sample(case, (plan, state, program))


class Scales(ComposedProgram):
    """Scales as `wrong` says; the scale in force lies in `scale`, for the kernels to see."""

    wrong, scale = None, None

    def accumulate(self, feed, first_row, gradient, sums=None, rows=None):
        Scales.scale = rows and rows.scale
        return super().accumulate(feed, first_row, gradient, sums, rows)

    def _scaled(self, da, scale):
        return super()._scaled(da, self.wrong(scale) if self.wrong else scale)


def _scales_what_it_passes_down(host, *args):
    host.dense_backward(*args)
    if args[-1] is not None and Scales.scale is not None:
        args[-1].__imul__(Scales.scale[:, None])


SCALED = {
    "not at all": np.ones_like,
    "squared": np.square,
    "the row before": lambda scale: np.roll(scale, 1),
    "deltas passed down, too": None,
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("net", ["two", "dropout", "tail", "six"])
def test_wrong_scale(net, name):
    case = NetCase(HOST, net, "tanh", "mse", weighted=True)
    plan, state, _ = case.program()
    check_scale(case, (plan, state, Scales(plan, Mutant(), state)))
    wrong = Scales(
        plan, Mutant(dense_backward=_scales_what_it_passes_down) if SCALED[name] is None else Mutant(), state
    )
    wrong.wrong = SCALED[name]
    with pytest.raises(AssertionError, match=r"scaled gradient|delta_norms beside a scale"):
        check_scale(case, (plan, state, wrong))


@pytest.mark.parametrize("forgotten", ["the bias", "a bias that is not there", "dropout's rows"])
def test_wrong_norms_of_gradients(forgotten, monkeypatch):
    x, y = make_data(n=9)
    bias = forgotten != "a bias that is not there"
    model = fb.Sequential([fb.Dense(6, "tanh", bias=bias), fb.Dropout(0.4), fb.Dense(4, bias=bias)], input_size=5)
    trainer = fb.Trainer(model, "mse")
    check_gradient_norms(trainer, x, y)
    honest = steps_module.gradient_norms

    def wrong(program, feed, biases):
        if forgotten == "dropout's rows":
            rows = [Feed(feed.x[i : i + 1], feed.y[i : i + 1]) for i in range(feed.rows)]
            return np.concatenate([honest(program, row, biases) for row in rows])
        return honest(program, feed, [not bias for bias in biases])

    monkeypatch.setattr(steps_module, "gradient_norms", wrong)
    with pytest.raises(AssertionError):
        check_gradient_norms(trainer, x, y)
