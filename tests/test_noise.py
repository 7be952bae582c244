"""The gradient noise scale: estimates against explicit gradients and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_trainer, make_data, make_trainer
from hypothesis import given
from hypothesis import strategies as st

import fastbatch as fb
from fastbatch.batching import NoiseScale, noise_scale
from fastbatch.batching import noise as noise_module
from fastbatch.batching.moments import add_batch, interval, moments, quantile
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


@pytest.mark.parametrize("size", [2.0**-260, 2.0**-450, 2.0**250, 2.0**450])
def test_an_interval_of_tiny_or_huge_gradients(size):
    """Its numbers are fourth powers of them."""
    x, y = make_data(n=ROWS)
    model = fb.MLP([x.shape[1], 4, y.shape[1]], dtype="float64", seed=1)
    w, b = model.weights[-1]
    w[:], b[:] = 0, 0  # so that gradients are in proportion to y
    plain, scaled = (noise_scale(fb.Trainer(model, "mse"), x, y.astype(float) * unit, SIZE) for unit in (1.0, size))
    assert plain.low < plain.noise_scale < plain.high < math.inf
    for name in ("noise_scale", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-12)


@pytest.mark.parametrize(("rows", "size"), [(64, 1), (15, 2)])
def test_batches_of_one_row_have_no_variance(rows, size):
    x, y = make_data(n=rows)
    with pytest.raises(fb.ArgumentError, match=r"expected batches of 2 rows or more with BatchNorm, .* got"):
        noise_scale(make_trainer(norm="batch"), x, y, size)
    noise_scale(make_trainer(norm="layer"), x, y, size)


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
