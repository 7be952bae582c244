"""The gradient noise scale: estimates against explicit gradients and known answers, batches that follow it, rates."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer
from hypothesis import given
from hypothesis import strategies as st

import fastbatch as fb
from fastbatch import storage
from fastbatch.batching import NoiseScale, noise_scale, scale_lr
from fastbatch.batching import noise as noise_module
from fastbatch.batching.moments import add_batch, interval, moments, quantile
from fastbatch.batching.noise import NoiseEstimate, as_state, due, follow, ratio, rows_of
from fastbatch.data.orders import epoch_order

backends = pytest.mark.parametrize("backend", BACKENDS)
ROWS, SIZE = 70, 8


def gradients_of(trainer, x, y) -> np.ndarray:
    """Each row's own gradient (n, N) float64, of the parameters that are trained."""
    rows = np.stack([trainer.gradients(x[i : i + 1], y[i : i + 1])[1] for i in range(len(x))]).astype(np.float64)
    trained = np.zeros(rows.shape[1], bool)
    for segment in trainer._plan.segments:
        trained[segment.begin : segment.end] = True
    return rows[:, trained]


def by_pairs(g, weight=None) -> tuple[float, float]:
    """tr Sigma and |G|^2 from means over pairs of rows, which owe nothing to sums of squares."""
    p = np.full(len(g), 1 / len(g)) if weight is None else weight / weight.sum()
    pairs = np.outer(p, p) * (1 - np.eye(len(g)))
    norm = (pairs * (g @ g.T)).sum() / pairs.sum()
    if weight is None:
        return np.var(g, axis=0, ddof=1).sum(), norm
    return len(g) * (np.square(p @ g).sum() - norm), norm


def weights_of(n: int) -> np.ndarray:
    return np.resize([1.0, 2.0, 0.0, 0.5, 3.0], n)


# -- against explicit gradients ----------------------------------------------------------------------------------------

NETS = {
    "plain": {},
    "cross entropy": {"loss": "cross_entropy", "activation": "relu"},
    "layer norm": {"norm": "layer"},
    "frozen layer": {"optimizer": fb.SGD(0.1, frozen=(0,))},
    "frozen bias": {"optimizer": fb.SGD(0.1, frozen=("0.b", "1.w"))},
    "frozen norm": {"norm": "layer", "optimizer": fb.SGD(0.1, frozen=("norm0.gamma", "norm0.beta"))},
    "float32": {"dtype": "float32"},
}


@backends
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("net", NETS)
def test_estimates_are_those_of_explicit_gradients(net, weighted, backend):
    recipe = {"dtype": "float64", "backend": backend, **NETS[net]}
    if backend == "numba" and (weighted or net not in ("plain", "float32")):
        pytest.skip("the same sums behind the same arrays")
    x, y = make_data(recipe.get("loss", "mse"), ROWS)
    weight = weights_of(ROWS) if weighted else None
    trainer = make_trainer(**recipe)
    found = noise_scale(trainer, x, y, SIZE, sample_weight=weight)
    g = gradients_of(trainer, x, y)
    trace, norm = by_pairs(g, weight)
    close = {"rel": 2e-4 if recipe["dtype"] == "float32" else 1e-10}
    assert found.trace == pytest.approx(trace, **close)
    assert found.squared_norm == pytest.approx(norm, **close)
    assert found.noise_scale == pytest.approx(trace / norm, **close)
    assert (found.rows, found.batch_size, found.level) == (ROWS, SIZE, 0.95)
    # the interval: batches left out one by one
    batches, order = -(-ROWS // SIZE), epoch_order(ROWS, trainer.seed, 0, True, trainer.backend)
    edges = [ROWS * k // batches for k in range(batches + 1)]
    left = []
    for k in range(batches):
        kept = np.delete(order, slice(edges[k], edges[k + 1]))
        left.append(by_pairs(g[kept], None if weight is None else weight[kept]))
    covariance = (batches - 1) ** 2 / batches * np.cov(np.array(left).T)
    expected = interval(trace, norm, covariance, quantile(0.95, batches - 1))
    assert (found.low, found.high) == pytest.approx(expected, rel=2e-3 if recipe["dtype"] == "float32" else 1e-8)
    assert found.low < found.noise_scale < found.high


@backends
def test_of_a_batch_norm_batches_are_the_samples(backend):
    if backend == "numba":
        pytest.skip("composed there as in the reference")
    x, y = make_data(n=ROWS)
    trainer = make_trainer(norm="batch", dtype="float64", backend=backend)
    found = noise_scale(trainer, x, y, 7)
    order = epoch_order(ROWS, trainer.seed, 0, True, trainer.backend)
    g = np.stack([trainer.gradients(x[rows], y[rows])[1] for rows in order.reshape(10, 7)])
    trace, norm = by_pairs(g)
    assert found.trace == pytest.approx(7 * trace, rel=1e-10)
    assert found.squared_norm == pytest.approx(norm, rel=1e-10)


def test_zero_weights_before_a_softmax():
    """|g|^2 = (1 - 1 / K)(|x|^2 + 1), whatever the label."""
    x, y = make_data("cross_entropy", 64)
    trainer = make_trainer("cross_entropy", sizes=(5, 4), dtype="float64")
    trainer.model.parameters[:] = 0
    found = noise_scale(trainer, x, y, 8, population=64)
    exact = 0.75 * (np.square(x.astype(np.float64)).sum(axis=1) + 1).mean()
    assert found.trace * (1 - 1 / 64) + found.squared_norm == pytest.approx(exact, rel=1e-12)


@backends
def test_every_row_has_a_dropout_of_its_own(backend):
    """Rows that are all alike, so that their order is none: the gradient is that of one batch of them."""
    x, y = (np.repeat(values[:1], 64, axis=0) for values in make_data())
    trainer = make_trainer(dropout=0.5, backend=backend)
    gradient = trainer.gradients(x, y)[1].astype(np.float64)
    found = noise_scale(trainer, x, y, SIZE, population=64)
    assert found.squared_norm == pytest.approx(gradient @ gradient, rel=1e-5)
    history = trainer.fit(x, y, batch_size=NoiseScale(rows=64, min=7, max=7), micro_batch_size=7)
    assert history["noise_scale"] == pytest.approx([found.noise_scale], rel=1e-4)


@backends
def test_nothing_of_the_trainer_changes(backend):
    x, y = make_data(n=ROWS)
    trainer, twin = (make_trainer(backend=backend, dropout=0.3) for _ in range(2))
    for one in (trainer, twin):
        one.fit(x, y, batch_size=16, epochs=2)
    first, second = (noise_scale(trainer, x, y, SIZE) for _ in range(2))
    assert first == second
    assert_same_trainer(trainer, twin)


def test_a_forward_that_waits_is_dropped_not_mixed_up():
    x, y = make_data(n=ROWS)
    trainer = make_trainer()
    z = trainer.forward(x)
    noise_scale(trainer, x, y, SIZE)
    with pytest.raises(fb.ArgumentError, match="backward: expected a forward"):
        trainer.backward(z)


@pytest.mark.parametrize("sizes", [(5, 16, 4), (40, 300, 4)])
def test_bits_do_not_depend_on_threads(sizes):
    x, y = make_data(n=600, inputs=sizes[0])
    found = []
    for threads in (1, 2):
        with fb.set_num_threads(threads, exact=True):
            trainer = make_trainer(sizes=sizes)
            found.append(noise_scale(trainer, x, y, 64))
            found.append(trainer.fit(x, y, batch_size=NoiseScale(every=1), epochs=3)["noise_scale"])
    assert found[:2] == found[2:]


def test_bits_do_not_depend_on_pieces():
    x, y = make_data(n=1000, inputs=40)
    found = []
    for pieces in (None, 32, 96):
        trainer = make_trainer(sizes=(40, 300, 4))
        found.append(trainer.fit(x, y, batch_size=NoiseScale(rows=900, every=1), epochs=3, micro_batch_size=pieces))
    if trainer.backend == "reference":
        pytest.skip("its sums go by pieces")
    assert found[0]["noise_scale"] == found[1]["noise_scale"] == found[2]["noise_scale"]


def test_the_order_of_rows_does_not_matter(rng):
    x, y = make_data(n=ROWS)
    trainer, order = make_trainer(dtype="float64"), rng.permutation(ROWS)
    one, other = noise_scale(trainer, x, y, SIZE), noise_scale(trainer, x[order], y[order], SIZE)
    assert one.trace == pytest.approx(other.trace, rel=1e-12)
    assert one.squared_norm == pytest.approx(other.squared_norm, rel=1e-12)
    smaller = noise_scale(trainer, x, y, 3)
    assert one.noise_scale == pytest.approx(smaller.noise_scale, rel=1e-10)


def test_every_row_k_times():
    """The mean gradient and the mean square stay; tr Sigma is (kn / (kn - 1)) / (n / (n - 1)) times what it was."""
    x, y = make_data(n=ROWS)
    trainer = make_trainer(dtype="float64")
    one, three = (noise_scale(trainer, np.tile(x, (k, 1)), np.tile(y, (k, 1)), SIZE) for k in (1, 3))
    growth = (3 * ROWS / (3 * ROWS - 1)) / (ROWS / (ROWS - 1))
    assert three.trace == pytest.approx(one.trace * growth, rel=1e-10)
    assert three.squared_norm + three.trace / (3 * ROWS) == pytest.approx(
        one.squared_norm + one.trace / ROWS, rel=1e-10
    )
    twice = noise_scale(trainer, x, y, SIZE, sample_weight=np.full(ROWS, 7.0))
    assert twice.noise_scale == pytest.approx(one.noise_scale, rel=1e-10)


# -- known answers -----------------------------------------------------------------------------------------------------

D, NOISE = 16, 0.25  # Linear regression: x ~ N(0, I), residual e of length 1, label noise of this variance


def regression(seed: int, n: int, bias: bool = False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D))
    return x, x @ np.full(D, 1 / math.sqrt(D)) + math.sqrt(NOISE) * rng.normal(size=n)


def at_zero() -> fb.Trainer:
    model = fb.Sequential([fb.Dense(1, bias=False)], input_size=D, dtype="float64")
    model.parameters[:] = 0
    return fb.Trainer(model, "mse", fb.SGD(lr=0.01))


EXACT = (D + 1) + NOISE * D  # 21: of the loss z^2, gradients are twice as long, and their ratio the same


def test_linear_regression():
    found = noise_scale(at_zero(), *regression(0, 20_000), 100)
    assert found.low < EXACT < found.high
    assert found.high - found.low < 0.1 * EXACT
    assert found.trace == pytest.approx(4 * EXACT, rel=0.05)
    assert found.squared_norm == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("n", "size"), [(400, 10), (100, 10)])
def test_the_interval_covers_as_often_as_it_says(n, size):
    """500 draws: at 95 % the count has a standard deviation of 1 %; a hundred rows of such norms are few."""
    trainer = at_zero()
    found = [noise_scale(trainer, *regression(seed, n), size) for seed in range(500)]
    share = np.mean([one.low <= EXACT <= one.high for one in found])
    print(f"{share:.3f}, ends: {np.mean([one.high < EXACT for one in found]):.3f} below")
    assert (0.92 if n == 400 else 0.89) <= share <= 0.985
    assert np.mean([one.trace for one in found]) == pytest.approx(4 * EXACT, rel=0.02)
    assert np.mean([one.squared_norm for one in found]) == pytest.approx(4, rel=0.05)
    narrow = np.mean(
        [
            o.low <= EXACT <= o.high
            for o in (noise_scale(trainer, *regression(s, n), size, level=0.5) for s in range(200))
        ]
    )
    assert 0.4 <= narrow <= 0.62


def test_both_estimators_agree(monkeypatch):
    """Norms of single rows, and norms at two batch sizes: the same number, the second with far more noise."""
    trainer, data = at_zero(), regression(0, 8000)
    rows = noise_scale(trainer, *data, 10)
    monkeypatch.setattr(noise_module, "add_rows", add_batch)
    sizes = noise_scale(trainer, *data, 10)
    assert rows != sizes
    assert max(rows.low, sizes.low) < min(rows.high, sizes.high)
    assert sizes.low < EXACT < sizes.high
    assert sizes.noise_scale == pytest.approx(rows.noise_scale, rel=0.15)


def test_single_rows_have_less_noise_than_small_batches(monkeypatch):
    """Var tr Sigma at B = 64: (B - 1) / (M - 1) times lower than of M = 8 batches, for Gaussian gradients."""
    rng, one, eight = np.random.default_rng(0), [], []
    for _ in range(4000):
        g = rng.normal(size=(64, 30))
        total = g.sum(axis=0)
        small = np.square(g.reshape(8, 8, -1).mean(axis=1)).sum(axis=1)
        one.append(moments([64, 64, 64, np.square(g).sum()], total @ total, math.inf)[0])
        eight.append(moments([64, 64, 8 * 64, (64 * small).sum()], total @ total, math.inf)[0])
    assert np.var(eight) / np.var(one) == pytest.approx(63 / 7, rel=0.12)
    assert np.mean(one) == pytest.approx(30, rel=0.01)
    assert np.mean(eight) == pytest.approx(30, rel=0.01)


def test_the_two_size_form(rng):
    """McCandlish et al. 2018, appendix A.1, as printed there."""
    g, small, big = rng.normal(size=(96, 7)) + 0.2, 8, 96
    at_small = np.square(g.reshape(12, 8, 7).mean(axis=1)).sum(axis=1).mean()
    at_big = np.square(g.mean(axis=0)).sum()
    norm = (big * at_big - small * at_small) / (big - small)
    trace = (at_small - at_big) / (1 / small - 1 / big)
    weights = np.full(12, 8.0)
    sums = [96, weights.sum(), np.square(weights).sum(), 12 * 64 * at_small]
    assert moments(sums, 96**2 * at_big, math.inf) == pytest.approx((trace, norm), rel=1e-12)


def test_rows_drawn_without_replacement(rng):
    """Of 200 rows 100 are drawn; what is asked for is the gradient of the 200."""
    g = rng.normal(size=(200, 12)) + 0.35
    exact = np.square(g.mean(axis=0)).sum()
    trace = np.var(g, axis=0, ddof=1).sum()
    found = []
    for _ in range(4000):
        drawn = rng.choice(g, 100, replace=False)
        total = drawn.sum(axis=0)
        sums = [100, 100, 100, np.square(drawn).sum()]
        found.append([moments(sums, total @ total, n)[1] for n in (200, math.inf)])
    (with_it, without), error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert abs(with_it - exact) < 4 * error[0]
    assert abs(without - (exact - trace / 200)) < 4 * error[1]
    assert trace / 200 > 10 * error[1]


def test_all_rows_there_are_leave_no_doubt():
    x, y = make_data(n=ROWS)
    trainer = make_trainer(dtype="float64")
    for weight in (None, weights_of(ROWS)):
        found = noise_scale(trainer, x, y, SIZE, sample_weight=weight, population=ROWS)
        gradient = trainer.gradients(x, y, weight)[1]
        assert found.squared_norm == pytest.approx(gradient @ gradient, rel=1e-12)
        assert found.low == pytest.approx(found.noise_scale, rel=1e-7)
        assert found.high == pytest.approx(found.noise_scale, rel=1e-7)
    assert noise_scale(trainer, x, y, SIZE, population=ROWS + 1).low < found.low * 2


def test_weights_of_rows(rng):
    """Weights 1 .. 8 are worth 6.353 rows of 8 (Kish); |G|^2 is unbiased also where they go with the gradients."""
    weight, found = np.arange(1.0, 9), []
    kish = weight.sum() ** 2 / np.square(weight).sum()
    assert kish == pytest.approx(6.353, abs=1e-3)
    for _ in range(8000):
        h = weight[:, None] * (rng.normal(size=(8, 20)) * 1.04 + 0.31)
        total = h.sum(axis=0)
        found.append(moments([8, weight.sum(), np.square(weight).sum(), np.square(h).sum()], total @ total, math.inf))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert abs(mean[0] * kish / 8 - 20 * 1.04**2) < 4 * error[0]
    assert abs(mean[1] - 20 * 0.31**2) < 4 * error[1]
    two = np.where(np.arange(40) % 2, 1.0, 4.0)[:, None]  # classes of weight 4 and 1, the first with larger gradients
    exact, found = 5 * np.square((4 * 2.0 + 1 * -0.5) / 5), []
    for _ in range(4000):
        h = two * (np.where(two > 1, 2.0, -0.5) + rng.normal(size=(40, 5)) * two * 5)
        total = h.sum(axis=0)
        found.append(moments([40, two.sum(), np.square(two).sum(), np.square(h).sum()], total @ total, math.inf)[1])
    # pairs of one row and itself are left out, so that classes are met in slightly other proportions
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(4000) + 0.05 * exact)


@pytest.mark.parametrize(
    ("level", "freedom", "exact"),
    [(0.95, 7, 2.3646), (0.95, 10, 2.2281), (0.95, 30, 2.0423), (0.99, 9, 3.2498), (0.9, 8, 1.8595)],
)  # fmt: skip
def test_quantiles_of_students_t(level, freedom, exact):
    assert quantile(level, freedom) == pytest.approx(exact, rel=1e-3)


@given(
    trace=st.floats(-2, 10), norm=st.floats(-2, 10), v=st.floats(0.01, 4), u=st.floats(0.01, 4), c=st.floats(-0.9, 0.9)
)
def test_the_interval_is_what_is_not_rejected(trace, norm, v, u, c):
    covariance = np.array([[v, c * math.sqrt(u * v)], [c * math.sqrt(u * v), u]])
    low, high = interval(trace, norm, covariance, 2.0)
    assert 0 <= low <= high

    def kept(r):
        return (trace - r * norm) ** 2 / (v - 2 * r * covariance[0, 1] + r * r * u) <= 4

    assert math.isfinite(high) or norm <= 2 * math.sqrt(u) * (1 + 1e-9)
    if trace > 2 * math.sqrt(v) and norm > -2 * math.sqrt(u):
        inside = np.linspace(low, min(high, low + 100), 9)[1:-1]
        assert all(map(kept, inside))
        assert not kept(low * (1 - 1e-6))
        assert high == math.inf or not kept(high * (1 + 1e-6))


def test_a_gradient_that_is_lost_in_noise_has_no_upper_end(rng):
    x = rng.normal(size=(200, D))
    found = noise_scale(at_zero(), x, rng.normal(size=200), 20)
    assert found.high == math.inf
    assert 0 < found.low < math.inf
    assert "inf" in str(found)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"batch_size": 0}, fb.ArgumentError, "batch_size: expected an integer >= 1, got 0"),
        ({"batch_size": 16}, fb.ArgumentError, "expected 8 batches or more for an interval, got 5: 70 rows with"),
        ({"level": 1}, fb.ArgumentError, "level: expected a number between 0 and 1, got 1"),
        ({"level": "95"}, fb.ArgumentError, "level: expected a number between 0 and 1"),
        ({"population": 69}, fb.ArgumentError, "population: expected an integer >= 70, got 69"),
        ({"sample_weight": np.r_[1.0, 1, np.zeros(68)]}, fb.DataError, "sample_weight: expected weights above 0 in 8"),
        ({"sample_weight": np.ones(3)}, fb.ShapeError, "sample_weight: expected shape"),
        ({"X": np.full((70, 5), np.nan)}, fb.DataError, "X: expected finite numbers"),
        ({"X": np.ones((70, 4))}, fb.ShapeError, "X: expected shape"),
        ({"trainer": 3}, fb.ArgumentError, "expected a Trainer, got int"),
    ],
)
def test_noise_scale_refuses(arguments, error, words):
    x, y = make_data(n=70)
    trainer = make_trainer()
    with pytest.raises(error, match=words):
        noise_scale(**{"trainer": trainer, "X": x, "y": y, "batch_size": 8, **arguments})


def test_gradients_that_overflow_are_said():
    x, y = make_data(n=ROWS)
    trainer = make_trainer(activation="relu")
    trainer.model.parameters[:] = 1e30
    with pytest.raises(fb.DivergenceError, match="expected a finite number"):
        noise_scale(trainer, x, y, SIZE)


def test_half_frozen_norms_are_refused():
    x, y = make_data(n=ROWS)
    trainer = make_trainer(norm="layer", optimizer=fb.SGD(0.1, frozen=("norm0.gamma",)))
    for use in (lambda: noise_scale(trainer, x, y, SIZE), lambda: trainer.fit(x, y, batch_size="noise")):
        with pytest.raises(fb.ArgumentError, match="expected the norm layers frozen all or none"):
            use()
    assert (trainer.steps, trainer.epochs) == (0, 0)


def test_nothing_is_trained():
    x, y = make_data(n=ROWS)
    trainer = make_trainer(sizes=(5, 6, 4), optimizer=fb.SGD(0.1, frozen=(0, 1)))
    with pytest.raises(fb.ArgumentError, match="expected parameters to train, got an optimizer that freezes all"):
        noise_scale(trainer, x, y, SIZE)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": 0}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"target": None}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"target": 10**400}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"min": 0}, r"NoiseScale\(min=\): expected an integer >= 1, got 0"),
        ({"max": 7}, r"NoiseScale\(max=\): expected an integer >= min, which is 8, got 7"),
        ({"rows": 1}, r"NoiseScale\(rows=\): expected an integer >= 2 or None, got 1"),
        ({"every": 0}, r"NoiseScale\(every=\): expected an integer >= 1 or None, got 0"),
        ({"decay": 1.0}, r"NoiseScale\(decay=\): expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_noise_scale_policy_refuses(values, words):
    with pytest.raises(fb.ArgumentError, match=words):
        NoiseScale(**values)


@backends
def test_a_fit_with_batch_norm_is_refused(backend):
    x, y = make_data()
    trainer = make_trainer(norm="batch", backend=backend)
    before = copy.deepcopy(trainer)
    with pytest.raises(fb.ArgumentError, match="expected a model without BatchNorm for a NoiseScale"):
        trainer.fit(x, y, batch_size="noise")
    assert_same_trainer(trainer, before)


# -- batches that follow -----------------------------------------------------------------------------------------------


def test_averages_are_of_both_numbers_and_clamped_behind():
    policy, state = NoiseScale(decay=0.5), None
    found = [(100.0, 1.0), (100.0, -0.5), (100.0, 0.25), (120.0, 4.0)]
    trace, norm = found[0]
    for epoch, (t, g) in enumerate(found):
        state = follow(policy, state, epoch, (t, g), 1)
        trace, norm = (t, g) if epoch == 0 else ((trace + t) / 2, (norm + g) / 2)
        assert (state["trace"], state["squared_norm"], state["epoch"]) == (trace, norm, epoch)
    assert ratio(trace, norm) == pytest.approx(110 / 2.125)
    state = follow(policy, state, 6, (10.0, 1.0), 1)  # three epochs later: an eighth of what was
    assert state["trace"] == pytest.approx(trace / 8 + 10 * 7 / 8)
    assert follow(NoiseScale(decay=0), state, 7, (5.0, 2.0), 1)["trace"] == 5.0


def test_an_average_that_is_clamped_before_is_off():
    """Noise scale 1000 seen by batches of 32 in 200 dimensions: most of single batches are far off, half below 0."""
    rng, policy, state, exact = np.random.default_rng(0), NoiseScale(decay=0.999, max=10**6), None, 1000
    mean = np.full(200, math.sqrt(1 / 200))
    for epoch in range(6000):
        g = mean + rng.normal(size=(32, 200)) * math.sqrt(exact / 200)
        total = g.sum(axis=0)
        state = follow(policy, state, epoch, moments([32, 32, 32, np.square(g).sum()], total @ total, math.inf), 1)
    assert ratio(state["trace"], state["squared_norm"]) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("found", [(math.nan, 1.0), (1.0, math.inf), (math.nan, math.nan)])
def test_what_is_not_finite_is_left_out(found):
    state = follow(NoiseScale(), None, 0, (100.0, 1.0), 1)
    assert follow(NoiseScale(), state, 1, found, 1) == {**state, "epoch": 1}
    first = follow(NoiseScale(), None, 0, found, 1)
    assert first["size"] == 8
    assert math.isnan(ratio(first["trace"], first["squared_norm"]))
    assert follow(NoiseScale(), first, 1, (100.0, 1.0), 1)["trace"] == 100.0
    assert follow(NoiseScale(), {**first, "size": 32}, 1, found, 1)["size"] == 32


def test_sizes_move_by_one_step_either_way_and_not_for_little():
    policy, state, sizes = NoiseScale(min=8, max=100, decay=0), None, []
    for epoch, scale in enumerate([40, 50, 60, 1e9, math.inf, 70, 60, 55, 3, 3, 3, 3, 9]):
        state = follow(policy, state, epoch, (scale, 1.0) if scale < math.inf else (1.0, -1.0), 1)
        sizes.append(state["size"])
    assert sizes == [32, 32, 64, 100, 100, 100, 100, 50, 25, 12, 8, 8, 8]
    of_four = follow(policy, None, 0, (256.0, 1.0), 4)
    assert of_four["size"] == 64
    assert follow(NoiseScale(target=0.25), None, 0, (256.0, 1.0), 1)["size"] == 64
    assert follow(NoiseScale(max=50), None, 0, (1e9, 1.0), 1)["size"] == 50


def test_when_it_is_measured():
    policy = NoiseScale()
    assert [rows_of(policy, n) for n in (1, 8, 100, 1400, 8192, 10**6)] == [1, 2, 12, 175, 1024, 1024]
    assert rows_of(NoiseScale(rows=50), 40) == 40
    every = {n: next(e for e in range(1, 99) if due(policy, {"epoch": 0}, e, n)) for n in (1400, 8192, 16384, 41_000)}
    assert every == {1400: 5, 8192: 5, 16384: 3, 41_000: 1}
    assert not due(NoiseScale(every=3), {"epoch": 5}, 7, 10**6)
    assert due(NoiseScale(every=3), {"epoch": 5}, 8, 100)


POLICY = NoiseScale(target=0.5, min=2, rows=40, every=2)
FAST = fb.Adam(lr=0.05)  # gradients shrink, and the noise scale grows, in a few epochs


@backends
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_fit_is_one_of_these_sizes(backend, weighted):
    """Sizes follow from what the rows say; everything else is a fit of each epoch's size; fits go on."""
    x, y = make_data(n=96)
    options = {"sample_weight": weights_of(96)} if weighted else {}
    whole, parts, by_hand, named = (make_trainer(optimizer=FAST, backend=backend, dropout=0.2) for _ in range(4))
    history = whole.fit(x, y, batch_size=POLICY, epochs=14, **options)
    found = [parts.fit(x, y, batch_size=POLICY, epochs=n, **options) for n in (1, 2, 11)]
    for name in ("batch_size", "noise_scale", "loss"):
        assert [value for part in found for value in part[name]] == history[name]
    assert_same_trainer(parts, whole)
    losses = [by_hand.fit(x, y, batch_size=size, **options)["loss"][0] for size in history["batch_size"]]
    assert losses == history["loss"]
    assert_same_trainer(by_hand, whole)
    assert history["noise_scale"][::2] == history["noise_scale"][1::2]
    assert len(set(history["noise_scale"])) == 7
    assert len(set(history["batch_size"])) > 1
    # "noise" is the defaults
    fresh = make_trainer(optimizer=FAST, backend=backend, dropout=0.2)
    assert named.fit(x, y, batch_size="noise")["batch_size"] == fresh.fit(x, y, batch_size=NoiseScale())["batch_size"]
    assert "noise_scale" not in make_trainer(backend=backend).fit(x, y)


@pytest.mark.parametrize("how", ["shuffled", "in order", "function", "pieces", "class weights", "scaled"])
def test_what_a_fit_measures(how):
    """All rows measured: exactly the noise scale of these rows at the weights that the epoch begins with."""
    x, y = make_data("cross_entropy", 96)
    options = {
        "in order": {"shuffle": False}, "function": {"shuffle": lambda epoch: np.arange(96)[::-1]},
        "pieces": {"micro_batch_size": 5}, "class weights": {"class_weight": {0: 2.0, 1: 0.5}},
        "scaled": {"input_scale": (0.5, 1.0)},
    }.get(how, {})  # fmt: skip
    trainer = make_trainer("cross_entropy", dtype="float64")
    trainer.fit(x, y, epochs=1, **{**options, "micro_batch_size": None})
    weight = np.select([y == 0, y == 1], [2.0, 0.5], 1.0) if how == "class weights" else None
    exact = noise_scale(trainer, x, y, 8, sample_weight=weight, population=96)
    history = trainer.fit(x, y, batch_size=NoiseScale(rows=96, every=1), epochs=1, **options)
    assert history["noise_scale"] == pytest.approx([exact.noise_scale], rel=1e-9)


def test_rows_are_drawn_at_random_where_they_are_not_visited_so(monkeypatch):
    """Rows sorted by label: the first of them would show one class."""
    seen = []
    monkeypatch.setattr("fastbatch.training.noise.measure", lambda *a: seen.append(a) or (1.0, 1.0))
    x, y = make_data("cross_entropy", 800)
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    for how in (False, True, lambda epoch: np.arange(400)):
        trainer = make_trainer("cross_entropy")
        trainer.fit(x, y, batch_size=NoiseScale(rows=100, every=1), epochs=2, shuffle=how)
    trainer.fit(x, y, batch_size=NoiseScale(rows=100, every=1), sampling="balanced")
    chosen = [call[3] for call in seen]
    assert [len(np.unique(rows)) == 100 for rows in chosen[:6]] == [True] * 6
    assert all(len(np.unique(y[rows])) == 4 for rows in chosen[:4])
    assert max(map(np.max, chosen[4:6])) < 400
    assert not any(np.array_equal(*pair) for pair in (chosen[:2], chosen[2:4], chosen[4:6]))
    assert [call[5] for call in seen] == [800, 800, 800, 800, 400, 400, math.inf]


def test_a_size_that_stays_only_tells(monkeypatch):
    x, y = make_data(n=96)
    told, plain = make_trainer(), make_trainer()
    history = told.fit(x, y, batch_size=NoiseScale(min=16, max=16, every=1), epochs=3)
    plain.fit(x, y, batch_size=16, epochs=3)
    assert_same_trainer(told, plain)
    assert all(value > 0 for value in history["noise_scale"])
    assert history["batch_size"] == [16] * 3


@backends
def test_rows_of_an_update_are_counted(backend):
    x, y = make_data(n=96)
    sizes = []
    for batches in (1, 4):
        trainer = make_trainer(backend=backend, gradient_accumulation_steps=batches)
        policy = NoiseScale(target=4.0, min=1, rows=96)
        sizes.append(trainer.fit(x, y, batch_size=policy)["batch_size"][0])
    assert sizes[0] == 4 * sizes[1]


def test_a_fit_that_diverges_says_so_as_ever():
    x, y = make_data(n=96)
    trainer = make_trainer(activation="relu")
    trainer.model.parameters[:] = 1e25
    with pytest.raises(fb.DivergenceError, match="at step 1"):
        trainer.fit(x, y, batch_size="noise")


@pytest.mark.parametrize("policies", [(8, 32, 64, 128), (64, 64, 8, 32)], ids=["up", "down"])
def test_sizes_are_the_policys_before_its_first_measurement(policies):
    x, y = make_data(n=600)
    trainer, made = make_trainer(), []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: made.append(getattr(trainer._program, "_rows", None)))
    first, second = NoiseScale(min=policies[0], max=policies[1]), NoiseScale(min=policies[2], max=policies[3])
    trainer.fit(x, y, batch_size=first)
    measured = dict(trainer._noise)
    history = trainer.fit(x, y, batch_size=second, epochs=3, callbacks=[hook])
    assert trainer._noise["epoch"] == measured["epoch"]  # none was due
    assert history["batch_size"] == [min(max(measured["size"], second.min), second.max)] * 3 != [measured["size"]] * 3
    assert len(set(made)) == 1


def test_memory_is_made_once():
    x, y = make_data(n=600)
    trainer = make_trainer()
    if trainer.backend != "c":
        pytest.skip("the arena is the c backend's")
    rows = []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: rows.append(trainer._program._rows))
    trainer.fit(x, y, batch_size=NoiseScale(max=512, every=1), epochs=3, callbacks=[hook])
    assert set(rows) == {512}
    small = make_trainer()
    small.fit(x, y, batch_size=NoiseScale(max=512, rows=600), micro_batch_size=50)
    assert small._program._rows == 50


# -- going on ----------------------------------------------------------------------------------------------------------


class Stop(fb.Callback):
    every_n_steps = 1

    def __init__(self, at):
        self.at = at

    def on_chunk_end(self, steps, logs):
        self.trainer.stop_training = self.trainer.steps == self.at


@backends
@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize("at", [1, 17, 40])
def test_an_interrupted_fit_goes_on_with_its_bits(backend, through, at, tmp_path, monkeypatch):
    x, y = make_data(n=96)
    whole, trainer = (make_trainer(optimizer=FAST, backend=backend, dropout=0.2) for _ in range(2))
    for one in (whole, trainer):
        one.fit(x, y, batch_size=POLICY, epochs=1)
    before = trainer.steps
    whole.fit(x, y, batch_size=POLICY, epochs=6)
    trainer.fit(x, y, batch_size=POLICY, epochs=6, callbacks=[Stop(before + at)])
    assert trainer.steps == before + at
    calls = []
    if through == "file":
        trainer.save(tmp_path / "t")
        trainer = fb.Trainer.load(tmp_path / "t")
    else:
        measure = noise_module.measure
        monkeypatch.setattr("fastbatch.training.noise.measure", lambda *a: calls.append(1) or measure(*a))
    trainer.resume(x, y)
    for name in whole.history.keys() - {"time"}:
        assert trainer.history[name] == whole.history[name]
    assert_same_trainer(trainer, whole)
    assert trainer._noise == whole._noise
    if through == "memory":
        assert len(calls) <= 3  # the running epoch is not measured again
    more = [one.fit(x, y, batch_size=POLICY, epochs=3)["noise_scale"] for one in (trainer, whole)]
    assert more[0] == more[1]


def test_a_fit_begun_anew_does_not_know_the_epoch_that_was_not_completed():
    x, y = make_data(n=96)
    trainer, twin = make_trainer(), make_trainer()
    trainer.fit(x, y, batch_size=POLICY, epochs=2, callbacks=[Stop(3)])
    assert trainer._noise is None
    twin.fit(x, y, batch_size=POLICY, epochs=2, callbacks=[Stop(3)])
    exact = noise_scale(trainer, x, y, 8, population=96).noise_scale
    policy = NoiseScale(rows=96)
    assert trainer.fit(x, y, batch_size=policy)["noise_scale"] == pytest.approx([exact], rel=1e-4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"size": 0}, "noise scale: size: expected an integer >= 1, got 0"),
        ({"epoch": -1}, "noise scale: epoch: expected an integer >= 0, got -1"),
        ({"trace": "much"}, "damaged"),
    ],
)
@pytest.mark.parametrize("place", ["attributes", "progress"])
def test_edited_files_are_refused(place, value, words, tmp_path):
    x, y = make_data(n=96)
    trainer = make_trainer()
    trainer.fit(x, y, batch_size=POLICY, epochs=3, callbacks=[Stop(60)])
    trainer.save(tmp_path / "t")
    tensors, metadata = storage.read(tmp_path / "t")
    coded = json.loads(metadata["trainer"])
    state = coded["attributes"]["_noise"] if place == "attributes" else coded["fit"]["progress"]["noise"]
    state.update(value)
    metadata["trainer"] = json.dumps(coded)
    del metadata["crc32"]
    storage.write(tmp_path / "t", tensors, {**metadata, "crc32": storage.checksum(tensors, metadata)})
    with pytest.raises(fb.CheckpointError, match=words):
        fb.Trainer.load(tmp_path / "t")


def test_a_state_comes_back():
    assert as_state(None) is None
    state = follow(NoiseScale(), None, 3, (100.0, -1.0), 1)
    assert as_state(json.loads(json.dumps(state))) == state


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rules_for_rates():
    assert scale_lr(0.1, 256, 8192) == pytest.approx(3.2)  # Goyal et al. 2017
    assert scale_lr(0.1, 256, 8192, "sqrt") == pytest.approx(0.1 * math.sqrt(32))
    gain = scale_lr(1.0, 250, 4000, "adascale", 1000)
    assert gain == pytest.approx(16 * 1250 / 5000)
    best = {batch: 1 / (1 + 1000 / batch) for batch in (250, 1000, 4000)}  # McCandlish et al. 2018, eq. 2.6
    assert gain == pytest.approx(best[4000] / best[250])
    steps = {batch: 1 + 1000 / batch for batch in best}
    assert (steps[250], steps[1000], steps[4000]) == (5, 2, 1.25)
    assert scale_lr(1.0, 250, 1000, "adascale", 1000) == pytest.approx(steps[250] / steps[1000])
    # AdaScale's r of S workers with sigma^2 = tr Sigma / B0 and mu^2 = |G|^2
    sigma, mu, workers = 84.0 / 32, 4.0, 8
    assert scale_lr(1.0, 32, 256, "adascale", 84 / 4) == pytest.approx((sigma + mu) / (sigma / workers + mu))
    assert scale_lr(0.3, 32, 256, "adascale", 0) == pytest.approx(0.3)
    assert scale_lr(0.3, 32, 256, "adascale", math.inf) == pytest.approx(2.4)
    assert scale_lr(0.3, 256, 32, rule="adascale", noise_scale=math.inf) == pytest.approx(0.3 / 8)
    found = NoiseEstimate(1000.0, 900.0, 1100.0, 0.95, 1000.0, 1.0, 10, 1)
    assert scale_lr(1.0, 250, 4000, "adascale", found) == gain


@pytest.mark.parametrize("rule", ["linear", "sqrt", "adascale"])
@pytest.mark.parametrize("size", [1, 32, 1000])
def test_rates_there_and_back(rule, size):
    assert scale_lr(0.1, 32, 32, rule, 100) == 0.1
    assert scale_lr(scale_lr(0.1, 32, size, rule, 100), size, 32, rule, 100) == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "lineer"}, "did you mean 'linear'"),
        ({"rule": "adascale"}, "expected the noise scale, noise_scale=, got None"),
        ({"rule": "adascale", "noise_scale": -1}, "noise_scale: expected a number >= 0 or a NoiseEstimate, got -1"),
        ({"noise_scale": "big"}, "noise_scale: expected a number >= 0"),
        ({"old_batch": 0}, "old_batch: expected an integer >= 1, got 0"),
        ({"new_batch": 1.5}, "new_batch: expected an integer >= 1, got 1.5"),
        ({"lr": -1}, "lr: expected a finite number >= 0, got -1"),
    ],
)
def test_scale_lr_refuses(arguments, words):
    with pytest.raises(fb.ArgumentError, match=words):
        scale_lr(**{"lr": 0.1, "old_batch": 32, "new_batch": 64, **arguments})


def test_parameters_are_not_touched_by_a_measurement():
    x, y = make_data(n=96)
    trainer = make_trainer()
    before = trainer.model.parameters.copy()
    noise_scale(trainer, x, y, 8)
    assert_same_bits(trainer.model.parameters, before)
