"""Mixup: shares of the distribution that is documented, and the loss of a mixture written out as that of two rows."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, difference, make_data, make_trainer

import fastbatch as fb
from fastbatch import ops
from fastbatch.ops.random import mixing
from fastbatch.plan import make_plan
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Feed, State, Sums

backends = pytest.mark.parametrize("backend", BACKENDS)
SUBJECTS = [name for name in cases.SUBJECTS if name == "reference" or name in cases.FUSED]
subjects = pytest.mark.parametrize("subject", SUBJECTS)

# -- what is drawn -----------------------------------------------------------------------------------------------------

# distribution functions of Beta(alpha, alpha)
FUNCTIONS = {
    0.5: lambda s: 2 / np.pi * np.arcsin(np.sqrt(s)),
    1.0: lambda s: s,
    2.0: lambda s: s * s * (3 - 2 * s),
    3.0: lambda s: s**3 * (10 - 15 * s + 6 * s * s),
}
DRAWS = 200_000


@pytest.mark.parametrize("alpha", FUNCTIONS)
def test_shares_are_of_the_folded_beta_distribution(alpha):
    share = np.sort(mixing(alpha, np.full(DRAWS, 64), 3, 5)[0])
    expected = 2 * FUNCTIONS[alpha](share) - 1
    ranks = np.arange(DRAWS + 1) / DRAWS
    apart = max(np.abs(expected - ranks[1:]).max(), np.abs(expected - ranks[:-1]).max())
    assert apart < 1.95 / np.sqrt(DRAWS)  # Kolmogorov-Smirnov, 0.1 %


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 7.0, 1000.0])
def test_moments_of_shares(alpha):
    """Central moments of Beta(a, a): 1 / (4 (2a + 1)) and 3 / (16 (2a + 1) (2a + 3))."""
    square = (mixing(alpha, np.full(DRAWS, 64), 3, 5)[0] - 0.5) ** 2
    second, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(square.mean() - second) < 4 * np.sqrt((fourth - second**2) / DRAWS)
    assert (square**2).mean() == pytest.approx(fourth, rel=0.03)


@pytest.mark.parametrize("alpha", [1e-30, 0.2, 1.0, 1e6])
def test_shares_and_what_they_leave_are_float32_numbers(alpha):
    share = mixing(alpha, np.full(1000, 9), 1, 1)[0]
    assert ((share >= 0.5) & (share <= 1)).all()
    assert (share.astype(np.float32) == share).all()
    assert ((1 - share).astype(np.float32) == 1 - share).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 2**31])
def test_shifts_reach_every_other_row_and_never_the_row_itself(rows):
    share, shift = mixing(1.0, np.full(20_000, rows), 1, 1)
    if rows == 1:
        assert (share == 1).all()
        assert (shift == 0).all()
    elif rows <= 10:
        counts = np.bincount(shift, minlength=rows)
        assert len(counts) == rows
        assert counts[0] == 0
        assert np.abs(counts[1:] - 20_000 / (rows - 1)).max() < 5 * np.sqrt(20_000 / (rows - 1))
    else:
        assert 0 < shift.min() < 0.01 * rows
        assert 0.99 * rows < shift.max() < rows


def test_draws_are_keyed_by_seed_epoch_and_step():
    rows = np.full(50, 1000)
    share, shift = mixing(0.7, rows, 1, 2)
    assert len(set(share.tolist())) == 50
    assert [part[:7].tolist() for part in (share, shift)] == [part.tolist() for part in mixing(0.7, rows[:7], 1, 2)]
    for seed, epoch in ((2, 2), (1, 3)):
        others = mixing(0.7, rows, seed, epoch)
        assert not (others[0] == share).any()
        assert (others[1] != shift).mean() > 0.9
    assert (mixing(0.7, np.full(50, 8), 1, 2)[0] == share).all()


# -- inputs ------------------------------------------------------------------------------------------------------------


def mixture(rows, batch, seed=0):
    """Shares and shifts of a pass; one step in five is left alone."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(batch, rows - batch * np.arange(-(-rows // batch)))
    share = rng.integers(2**23, 2**24, len(sizes)) / 2**24
    share[3::5] = 1
    return share, np.array([rng.integers(1, max(size, 2)) for size in sizes])


def pairs(feed):
    """Of every place in the pass: step, row, and the row that it is mixed with."""
    order = np.arange(feed.rows) if feed.order is None else feed.order
    step = np.arange(feed.rows) // feed.batch
    first = step * feed.batch
    size = np.minimum(feed.batch, feed.rows - first)
    partner = first + (np.arange(feed.rows) - first + feed.mix[1][step]) % size
    return step, order, order[partner]


def program_of(subject, width, dtype, program=ComposedProgram):
    model = fb.Sequential([fb.Dense(width)], input_size=width, dtype=dtype)
    w, b = model.weights[0]
    w[:], b[:] = np.eye(width), 0
    plan = make_plan(model, ops.get_loss("mse"), fb.SGD(0.0))
    state = State(model.parameters, np.zeros((0, model.num_parameters), dtype), np.zeros(1, np.int64), 5)
    backend = cases.SUBJECTS[subject]
    return (program is ComposedProgram and backend.program(plan, state, 3)) or program(plan, backend, state)


def check_inputs(subject, x, order, dtype="float32", threads=1, program=ComposedProgram, piece=None, batch=8):
    """What an identity network reads; |error| <= 3u (s |a| + (1 - s) |b|) behind 2u of each for scale and shift."""
    network = program_of(subject, x.shape[1], dtype, program)
    scale, shift = (np.linspace(*ends, x.shape[1]).astype(dtype) for ends in ((1.7, 0.9), (-0.3, 0.6)))
    network.scale_inputs(scale, shift)
    rows = len(x) if order is None else len(order)
    outputs = np.empty((rows, x.shape[1]), dtype)
    feed = Feed(x, np.zeros(x.shape, dtype), None, order, batch, outputs, piece=piece, mix=mixture(rows, batch))
    with fb.set_num_threads(threads, exact=True):
        network.run(feed, 0, feed.steps, np.zeros(feed.steps), 1e3, Sums())
    step, own, other = pairs(feed)
    share = feed.mix[0][step][:, None]
    a, b = (x[index].astype(np.float64) * scale + shift for index in (own, other))
    sizes = (np.abs(x[index].astype(np.float64) * scale) + np.abs(shift) for index in (own, other))
    size_a, size_b = sizes
    exact = share * a + (1 - share) * b
    bound = 5.01 * np.finfo(dtype).eps / 2 * (share * size_a + (1 - share) * size_b)
    error = np.abs(outputs - exact)
    assert (error <= bound).all(), (error / (bound + 1e-300)).max()
    return outputs


LAYOUTS = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
}


@subjects
@pytest.mark.parametrize("width", [1, 3, 16, 29, 300])
@pytest.mark.parametrize("source", ["float32", "uint8", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_mixed_where_they_are_gathered(subject, width, source, layout):
    rng = np.random.default_rng(width)
    x = LAYOUTS[layout](rng.integers(0, 50, (45, width)).astype(source))
    plain = check_inputs(subject, x, None)
    assert_same_bits(check_inputs(subject, x, np.arange(45)), plain)
    assert_same_bits(check_inputs(subject, x, None, piece=3), plain)
    check_inputs(subject, x, rng.permutation(45)[:37], batch=37)


@subjects
def test_inputs_of_double_precision_and_many_threads(subject):
    x = np.random.default_rng(0).normal(size=(300, 37))
    check_inputs(subject, x, None, "float64")
    x = x.astype(np.float32)
    found = {check_inputs(subject, x, None, threads=threads, batch=128).tobytes() for threads in (1, 2, 3)}
    assert len(found) == 1


# -- the loss ----------------------------------------------------------------------------------------------------------

ROWS, WIDTH, CLASSES = 53, 6, 5
LOSSES = {
    **{name: cls() for name, cls in ops.LOSSES.items()},
    "smoothed": ops.LOSSES["cross_entropy"](label_smoothing=0.1),
    "class weights": ops.LOSSES["cross_entropy"](weight=(1, 2, 0.5, 3, 1)),
    "ignoring": ops.LOSSES["cross_entropy"](ignore_index=2),
    "positive weight": ops.LOSSES["bce"](pos_weight=3.0),
    "alpha": ops.LOSSES["focal"](alpha=0.3),
}
# Not linear in y: the loss of a mixed target is less than the mean of two losses
CURVED = ("mse", "mae", "huber", "quantile")


def targets_of(loss, dtype, distributions=False):
    x, y = make_data(loss.name, ROWS, WIDTH, CLASSES)
    if distributions:
        y = np.random.default_rng(1).dirichlet(np.ones(CLASSES), ROWS)
    return x.astype(dtype), y if y.ndim == 1 else y.astype(dtype)


def trainer_of(loss, backend, dtype, **options):
    model = fb.MLP([WIDTH, 9, CLASSES], activation="tanh", dtype=dtype, seed=4)
    return fb.Trainer(model, loss, fb.SGD(0.05), backend=backend, **options)


def as_composed(trainer, program):
    trainer._program = program(trainer._plan, cases.SUBJECTS["reference"], trainer._program.state)
    return trainer


def check_loss(name, backend, dtype, weighted, distributions=False, program=None, unit=1.0):
    """A pass with mixed rows against steps on 2 B rows: each mixture twice, with target and weight of either row."""
    loss = LOSSES[name]
    x, y = targets_of(loss, dtype, distributions)
    rng = np.random.default_rng(2)
    weight = unit * rng.integers(0, 4, ROWS) * 0.37 if weighted else None
    if loss.ignored is not None:
        weight = np.where(y == loss.ignored, 0.0, 1.0 if weight is None else weight)
    feed = Feed(x, y, weight, rng.permutation(ROWS), 12, mix=mixture(ROWS, 12))
    got, by_hand = trainer_of(loss, backend, dtype), trainer_of(loss, backend, dtype)
    if program:
        as_composed(got, program)
    sums, expected = Sums(), Sums()
    got._program.run(feed, 0, feed.steps, np.full(feed.steps, 0.05), 1e3, sums)
    step, own, other = pairs(feed)
    for s in range(feed.steps):
        i, j, share = own[step == s], other[step == s], feed.mix[0][s]
        mixed = (share * x[i].astype(np.float64) + (1 - share) * x[j]).astype(dtype)
        w, v = (np.ones(len(i)) if weight is None else weight[index] for index in (i, j))
        w, v = share * w, (1 - share) * v
        if name in CURVED:
            keep = np.divide(w, w + v, out=np.ones(len(i)), where=w + v > 0)[:, None]
            target = (keep * y[i].astype(np.float64) + (1 - keep) * y[j]).astype(dtype)
            part = Feed(mixed, target, w + v, batch=len(i))
        else:
            part = Feed(np.tile(mixed, (2, 1)), np.concatenate([y[i], y[j]]), np.concatenate([w, v]), batch=2 * len(i))
        by_hand._program.run(part, 0, 1, np.full(1, 0.05), 1e3, expected)
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    assert difference(got.model.parameters, by_hand.model.parameters) < tolerance
    assert sums.loss == pytest.approx(expected.loss, rel=10 * tolerance)
    assert sums.weight == pytest.approx(expected.weight, rel=tolerance)


@backends
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_both_rows(name, backend, dtype, weighted):
    check_loss(name, backend, dtype, weighted)


@backends
@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_weights_of_any_size_are_mixed(backend, unit):
    check_loss("class weights", backend, "float32", True, unit=unit)


@backends
@pytest.mark.parametrize("name", ["cross_entropy", "class weights"])
def test_distributions_are_mixed(name, backend):
    check_loss(name, backend, "float64", True, distributions=True)


@backends
def test_mse_of_mixed_targets_has_the_gradient_of_both_rows(backend):
    """And a loss that is less by share (1 - share) |y_i - y_j|^2, as docs/data.md says."""
    x, y = targets_of(LOSSES["mse"], "float64")
    feed = Feed(x, y, batch=ROWS, mix=mixture(ROWS, ROWS))
    share, (_, i, j) = feed.mix[0][0], pairs(feed)
    got, both = (trainer_of("mse", backend, "float64") for _ in range(2))
    sums = Sums()
    got._program.run(feed, 0, 1, np.full(1, 0.05), 1e3, sums)
    mixed, weight = share * x[i] + (1 - share) * x[j], np.repeat([share, 1 - share], ROWS)
    loss = both.step(np.tile(mixed, (2, 1)), np.concatenate([y[i], y[j]]), weight)
    assert difference(got.model.parameters, both.model.parameters) < 1e-13
    assert sums.mean() == pytest.approx(loss - share * (1 - share) * np.square(y[i] - y[j]).mean(), rel=1e-12)


def test_rows_of_no_weight_leave_the_other_row():
    """Its target alone counts, and its weight for its share; two of no weight count nothing."""
    x, y = targets_of(LOSSES["mse"], "float64")
    weight = np.zeros(ROWS)
    weight[:20] = 1
    for backend in (row.values[0] for row in BACKENDS):
        trainer, sums = trainer_of("mse", backend, "float64"), Sums()
        feed = Feed(
            x, np.where(weight[:, None] > 0, y, 1e100), weight, batch=ROWS, mix=(np.array([0.75]), np.array([20]))
        )
        trainer._program.run(feed, 0, 1, np.full(1, 0.05), 1e3, sums)
        assert sums.weight == 20 * 0.75 + 20 * 0.25
        assert np.isfinite(sums.loss)
        assert np.isfinite(trainer.model.parameters).all()


# -- mutants -----------------------------------------------------------------------------------------------------------


def mutant(change):
    """A composed program whose mixture `change` spoils: (x, y, weight, total) of the right one, then of the rows."""

    class Mutant(ComposedProgram):
        def _mixed(self, feed, rows, first_row, x, y, weight):
            right = super()._mixed(feed, rows, first_row, x, y, weight)
            return right if right[0] is x else change(right, x, y, weight)

    return Mutant


class WrongPartner(ComposedProgram):
    def _mixed(self, feed, rows, first_row, *own):
        wrong = Feed(**{**vars(feed), "mix": (feed.mix[0], feed.mix[1] + 1)})
        return super()._mixed(wrong, rows, first_row, *own)


class WrongStep(ComposedProgram):
    def _mixed(self, feed, rows, first_row, *own):
        wrong = Feed(**{**vars(feed), "mix": (np.roll(feed.mix[0], 1), feed.mix[1])})
        return super()._mixed(wrong, rows, first_row, *own)


class WithinThePiece(ComposedProgram):
    def _mixed(self, feed, rows, first_row, *own):
        step = (rows.start - first_row) // feed.batch
        share, shift = (np.full(feed.rows, part[step]) for part in feed.mix)
        wrong = Feed(**{**vars(feed), "batch": len(own[0]), "mix": (share, shift)})
        return super()._mixed(wrong, rows, 0, *own)


class WithoutWeights(ComposedProgram):
    """Targets, that is: weights are mixed."""

    def _mixed(self, feed, rows, first_row, x, y, weight):
        right = super()._mixed(feed, rows, first_row, x, y, weight)
        plain = super()._mixed(Feed(**{**vars(feed), "weight": None}), rows, first_row, x, y, None)
        return right[0], plain[1], right[2], right[3]


def one_hot(y):
    return np.eye(CLASSES)[y] if y.ndim == 1 else y


INPUT_MUTANTS = {
    "rows as they are": mutant(lambda right, x, y, w: (x, *right[1:])),
    "another row": WrongPartner,
    "another step's share": WrongStep,
    "rows of the piece alone": WithinThePiece,
    "mixed the other way": mutant(lambda right, x, y, w: (x + right[0].mean() - right[0], *right[1:])),
    "share off by 1e-5": mutant(lambda right, x, y, w: (right[0] + np.float32(1e-5) * (x - right[0]), *right[1:])),
}
LOSS_MUTANTS = {
    "inputs alone": mutant(lambda right, x, y, w: (right[0], one_hot(y), *right[2:])),
    "weights alone unmixed": mutant(lambda right, x, y, w: (right[0], right[1], w, right[3])),
    "class weights of the row itself": mutant(lambda right, x, y, w: (*right[:3], None)),
    "targets mixed without weights": WithoutWeights,
    "another row": WrongPartner,
    "another step's share": WrongStep,
}


@pytest.mark.parametrize("name", INPUT_MUTANTS)
def test_input_mutants_are_rejected(name):
    x = np.random.default_rng(3).normal(size=(45, 29)).astype(np.float32)
    check_inputs("reference", x, None, program=mutant(lambda right, *_: right), piece=3)
    with pytest.raises(AssertionError):
        check_inputs("reference", x, None, program=INPUT_MUTANTS[name], piece=3)


@pytest.mark.parametrize("name", LOSS_MUTANTS)
def test_loss_mutants_are_rejected(name):
    check_loss("class weights", "reference", "float64", True, program=mutant(lambda right, *_: right))
    with pytest.raises(AssertionError):
        check_loss("class weights", "reference", "float64", True, program=LOSS_MUTANTS[name])


# -- fits --------------------------------------------------------------------------------------------------------------

MIX = fb.augment.Mixup(0.4)
NOISE = fb.augment.Noise(0.1)


def fitted(loss="cross_entropy", n=333, epochs=2, make=None, **options):
    x, y = make_data(loss, n)
    trainer = make_trainer(loss, **(make or {}))
    trainer.fit(x, y, batch_size=96, epochs=epochs, verbose=0, **{"augment": [MIX], **options})
    return trainer


SETTINGS = {
    "plain": {},
    "dropout": {"make": {"dropout": 0.2}},
    "double": {"make": {"dtype": "float64"}},
    "large": {"make": {"sizes": (5, 300, 40, 4)}},
    "accumulated": {"make": {"gradient_accumulation_steps": 2}},
    "clipped": {"make": {"max_grad_norm": 0.1, "clip_value": 0.01}},
    "held": {"make": {"optimizer": fb.SGD(0.5, max_norm=0.7)}},
    "class_weight": {"class_weight": {0: 0.5, 1: 3.0}},
    "scaled": {"input_scale": "standardize"},
    "in order": {"shuffle": False},
    "noise": {"augment": [MIX, NOISE]},
    "sampled": {"sampling": "balanced"},
    "values": {"loss": "mse"},
    "drop_last": {"drop_last": True},
    "one row left": {"n": 289},
}
settings = pytest.mark.parametrize("setting", SETTINGS)


@settings
def test_backends_agree_and_no_bit_depends_on_threads_or_pieces(setting):
    options = SETTINGS[setting]
    make = options.get("make", {})
    reference = fitted(**{**options, "make": {**make, "backend": "reference"}})
    found = []
    for threads, micro in ((1, None), (2, None), (3, 64), (1, 32)):
        with fb.set_num_threads(threads, exact=True):
            found.append(fitted(**options, micro_batch_size=micro))
    for other in found[1:]:
        assert_same_trainer(other, found[0])
    assert difference(found[0].model.parameters, reference.model.parameters) < (1e-11 if setting == "double" else 2e-5)
    plain = fitted(**{**options, "augment": [part for part in options.get("augment", ()) if part is not MIX]})
    assert difference(found[0].model.parameters, plain.model.parameters) > 1e-3, "nothing was mixed"


@backends
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_see_mixed_rows(backend, norm):
    x, y = make_data("cross_entropy", 200)
    norms = fb.LayerNorm() if norm == "layer" else fb.BatchNorm(ghost_size=32)
    trainers = []
    for name in (backend, backend, "reference"):
        model = fb.Sequential([fb.Dense(20), norms, fb.Activation("relu"), fb.Dense(4)], input_size=5, seed=1)
        trainers.append(fb.Trainer(model, optimizer=fb.SGD(0.1), backend=name))
        micro = 32 if len(trainers) == 2 else None
        trainers[-1].fit(x, y, batch_size=96, epochs=2, augment=MIX, micro_batch_size=micro, verbose=0)
    if backend == "c":
        assert_same_trainer(trainers[1], trainers[0])
    assert difference(trainers[1].model.parameters, trainers[2].model.parameters) < 1e-4
    assert trainers[0].model.buffers.tolist() == pytest.approx(trainers[2].model.buffers.tolist(), abs=1e-4)


@backends
def test_both_augmentations_in_any_order(backend):
    make = {"backend": backend}
    one, other = (fitted(augment=augment, make=make) for augment in ([MIX, NOISE], (NOISE, MIX)))
    assert_same_trainer(one, other)
    for alone in (MIX, NOISE):
        assert difference(fitted(augment=alone, make=make).model.parameters, one.model.parameters) > 1e-4


@backends
def test_noise_comes_behind_mixing(backend):
    """It would else be mixed, too, and smaller for it."""
    x = np.zeros((4000, 8), np.float32)
    network = program_of(backend if backend == "reference" else cases.FUSED[-1], 8, "float32")
    feed = Feed(x, x, batch=4000, outputs=np.empty_like(x), noise=1.0, mix=(np.array([0.5]), np.array([7])))
    network.run(feed, 0, 1, np.zeros(1), 1e3, Sums())
    assert feed.outputs.std() == pytest.approx(1, abs=0.02)


@backends
def test_fits_go_on(backend):
    make = {"backend": backend, "dropout": 0.1}
    once, twice = fitted(epochs=4, make=make), fitted(epochs=2, make=make)
    x, y = make_data("cross_entropy", 333)
    twice.fit(x, y, batch_size=96, epochs=2, augment=[MIX], verbose=0)
    assert_same_trainer(twice, once)


@backends
def test_a_fit_interrupted_in_an_epoch_ends_with_the_same_bits(backend, tmp_path):
    class Stop(fb.Callback):
        every_n_steps = 5
        steers = False

        def on_chunk_end(self, steps, logs):
            self.trainer.stop_training = self.trainer.steps >= 5

    x, y = make_data("cross_entropy", 333)
    make = {"backend": backend}
    whole = fitted(epochs=3, make=make, augment=[MIX, NOISE])
    broken = fitted(epochs=3, make=make, augment=[MIX, NOISE], callbacks=[Stop()])
    assert 0 < broken.steps % 4 < 4, "not in the middle of an epoch"
    broken.save(tmp_path / "t")
    loaded = fb.Trainer.load(tmp_path / "t")
    loaded.resume(x, y, verbose=0)
    assert_same_trainer(loaded, whole)
    assert loaded.history["loss"] == whole.history["loss"]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int32", "float64"])
def test_dtypes_of_x_change_no_bit(dtype):
    x, y = make_data("cross_entropy", 100)
    x = (20 * np.abs(x)).astype(dtype)
    found = []
    for given in (x, x.astype(np.float32), np.asfortranarray(x)):
        trainer = make_trainer("cross_entropy")
        trainer.fit(given, y, batch_size=30, epochs=2, augment=MIX, input_scale=(0.05, 0), verbose=0)
        found.append(trainer)
    for other in found[1:]:
        assert_same_bits(other.model.parameters, found[0].model.parameters)


@backends
def test_training_alone_is_mixed(backend):
    x, y = make_data("cross_entropy", 100)
    trainer = make_trainer("cross_entropy", backend=backend, metrics=["accuracy"])
    trainer.fit(x, y, batch_size=30, epochs=3, augment=MIX, validation_data=(x, y), verbose=0)
    assert trainer.history["val_loss"][-1] == trainer.evaluate(x, y)["loss"]
    twin = make_trainer("cross_entropy", backend=backend)
    stepped = make_trainer("cross_entropy", backend=backend)
    twin.fit(x, y, batch_size=30, augment=MIX, verbose=0)
    twin.model.parameters[:] = stepped.model.parameters
    assert twin.step(x, y) == stepped.step(x, y), "a step was mixed"


@backends
def test_metrics_compare_mixed_outputs_with_the_row_s_own_target(backend):
    """A row keeps at least half of itself."""
    x, y = make_data("cross_entropy", 64)
    seen = []

    def note(y_true, y_pred):
        seen.append((y_true.copy(), y_pred.copy()))
        return 0.0

    trainer = make_trainer("cross_entropy", backend=backend, metrics=[note], optimizer=fb.SGD(0.0))
    trainer.fit(x, y, batch_size=64, shuffle=False, augment=MIX, verbose=0)
    share, shift = (part[0] for part in mixing(0.4, np.array([64]), 0, 0))
    mixed = share * x + (1 - share) * np.roll(x, -shift, axis=0)
    np.testing.assert_array_equal(seen[0][0], y)
    np.testing.assert_allclose(seen[0][1], trainer.predict(mixed.astype(np.float32)), rtol=1e-4, atol=1e-6)


@backends
def test_batches_of_one_row_are_not_mixed(backend):
    x, y = make_data("cross_entropy", 9)
    trainers = [make_trainer("cross_entropy", backend=backend) for _ in range(2)]
    for trainer, augment in zip(trainers, ([MIX], [])):
        trainer.fit(x, y, batch_size=1, epochs=2, augment=augment, verbose=0)
    assert_same_trainer(*trainers)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_alpha_is_a_number_above_0(alpha):
    with pytest.raises(fb.ArgumentError, match=r"Mixup\(alpha=\): expected"):
        fb.augment.Mixup(alpha)


def test_each_kind_comes_once():
    with pytest.raises(fb.ArgumentError, match=r"fit\(augment=\): expected each kind once"):
        fitted(augment=[MIX, NOISE, MIX])
