"""Definitions: what the names of the registries mean, in float64, without any backend."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
from cases import LOSS_NAMES, OPTIMIZERS, SUBJECTS, loss_variants, targets

import fastbatch as fb
from fastbatch import ops
from fastbatch.ops import random

PHI_1 = 0.8413447460685429  # normal distribution function at 1
LN2 = math.log(2)

# (argument, value, slope) by hand
KNOWN_ACTIVATIONS = {
    "identity": [(-2, -2, 1), (0, 0, 1), (3, 3, 1)],
    "relu": [(-2, 0, 0), (0, 0, 0), (3, 3, 1)],
    "leaky_relu": [(-2, -0.02, 0.01), (0, 0, 0.01), (3, 3, 1)],
    "elu": [(-LN2, -0.5, 0.5), (0, 0, 1), (3, 3, 1)],
    "tanh": [(0, 0, 1), (LN2, 0.6, 0.64), (-LN2, -0.6, 0.64)],
    "sigmoid": [(0, 0.5, 0.25), (math.log(3), 0.75, 0.1875), (-math.log(3), 0.25, 0.1875)],
    "softplus": [(0, LN2, 0.5), (math.log(3), math.log(4), 0.75)],
    "gelu": [(0, 0, 0.5), (1, PHI_1, PHI_1 + math.exp(-0.5) / math.sqrt(2 * math.pi)), (-1, PHI_1 - 1, None)],
    "gelu_tanh": [(0, 0, 0.5), (1, 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)), None)],
    "silu": [(0, 0, 0.5), (math.log(3), 0.75 * math.log(3), 0.75 * (1 + 0.25 * math.log(3)))],
}


def saved(row: ops.Activation, z: np.ndarray) -> np.ndarray:
    return row.value(z) if row.saves == "a" else z


@pytest.mark.parametrize("name", KNOWN_ACTIVATIONS)
def test_activation_at_known_points(name):
    row = ops.get_activation(name)
    for z, a, slope in KNOWN_ACTIVATIONS[name]:
        z = np.array([z], np.float64)
        assert row.value(z)[0] == pytest.approx(a, rel=1e-14, abs=1e-300)
        if slope is not None:
            assert row.slope(saved(row, z))[0] == pytest.approx(slope, rel=1e-14, abs=1e-300)


# four-point stencil: error h^4 f^(5) / 30 + 2^-53 |f| / h
H = 1e-3


def stencil(f, x: np.ndarray) -> np.ndarray:
    return (f(x - 2 * H) - 8 * f(x - H) + 8 * f(x + H) - f(x + 2 * H)) / (12 * H)


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_slope_is_the_difference_quotient(name):
    row = ops.get_activation(name)
    # the second derivative of elu jumps at 0, so points within the stencil of 0 are left out for all
    z = np.array([v for v in np.linspace(-9, 9, 601) if min(abs(v - k) for k in (0.0, *row.kinks)) > 3 * H])
    oracle.assert_within(row.slope(saved(row, z)), stencil(row.value, z), 1e-10, name)


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_curvature_is_what_the_bounds_assume(name):
    row = ops.get_activation(name)
    z = np.linspace(-9, 9, 4001)
    slope = row.slope(saved(row, z))
    jumps = np.array([abs(z - k).min(initial=1) for k in row.kinks])
    near = np.zeros(len(z) - 1, bool)
    for kink in row.kinks:
        near |= (z[:-1] <= kink) & (z[1:] >= kink) | (np.abs(z[:-1] - kink) < 1e-2)
    assert jumps.size == len(row.kinks)
    assert (np.abs(np.diff(slope) / np.diff(z))[~near] <= oracle.CURVATURE).all()


@pytest.mark.parametrize("name", [name for name, row in ops.ACTIVATIONS.items() if row.kinks])
def test_kinks_are_where_the_slope_jumps(name):
    row = ops.get_activation(name)
    for kink in row.kinks:
        left, at, right = (row.slope(saved(row, np.array([kink + d])))[0] for d in (-1e-9, 0.0, 1e-9))
        assert abs(left - right) > 0.5
        assert at == left  # torch takes the left-hand slope at 0
    others = set(np.linspace(-3, 3, 13)) - set(row.kinks)
    for z in others:
        left, right = (row.slope(saved(row, np.array([z + d])))[0] for d in (-1e-9, 1e-9))
        assert abs(left - right) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activation_saturates_and_keeps_dtype(name, dtype):
    row = ops.get_activation(name)
    z = np.array([-100, -50, 50, 100], dtype)
    with np.errstate(all="raise", under="ignore"):
        a, slope = row.value(z), row.slope(saved(row, z))
    assert a.dtype == dtype
    assert slope.dtype == dtype
    assert np.isfinite(a).all()
    assert np.isfinite(slope).all()
    assert slope[3] in (0, 1) or abs(slope[3] - 1) < 1e-6 or slope[3] < 1e-6
    assert np.isnan(row.value(np.array([np.nan], dtype))).all()


def test_activation_synonyms():
    from fastbatch.ops.activations import SYNONYMS

    for synonym, name in SYNONYMS.items():
        assert synonym not in ops.ACTIVATIONS
        assert ops.get_activation(synonym) is ops.ACTIVATIONS[name]


# -- losses ------------------------------------------------------------------------------------------------------------

# name, options, outputs, target, loss, slope
KNOWN_LOSSES = [
    ("mse", {}, [1, 4], [3, 3], 2.5, [-2, 1]),
    ("mae", {}, [1, 4], [3, 3], 1.5, [-0.5, 0.5]),
    ("mae", {}, [3, 4], [3, 3], 0.5, [0, 0.5]),
    ("huber", {}, [3.5, 5], [3, 3], (0.125 + 1.5) / 2, [0.25, 0.5]),
    ("huber", {"delta": 2.0}, [4, 0], [3, 3], (0.5 + 4) / 2, [0.5, -1]),
    ("cross_entropy", {}, [0, 0], 1, LN2, [0.5, -0.5]),
    ("cross_entropy", {}, [math.log(3), 0], 0, math.log(4 / 3), [-0.25, 0.25]),
    ("cross_entropy", {"weight": [2, 3]}, [0, 0], 1, 3 * LN2, [1.5, -1.5]),
    ("cross_entropy", {"label_smoothing": 0.5}, [math.log(3), 0], 0, math.log(4 / 3) + 0.25 * math.log(3), [0, 0]),
    ("cross_entropy", {}, [0, 0], [0.25, 0.75], LN2, [0.25, -0.25]),
    ("bce", {}, [0, math.log(3)], [1, 0], (LN2 + math.log(4)) / 2, [-0.25, 0.375]),
    ("bce", {"pos_weight": [2.0, 1.0]}, [0, 0], [1, 0], 1.5 * LN2, [-0.5, 0.25]),
    ("quantile", {}, [1, 4], [3, 3], 0.75, [-0.25, 0.25]),
    ("quantile", {"q": 0.9}, [1, 4], [3, 3], (1.8 + 0.1) / 2, [-0.45, 0.05]),
    ("quantile", {"q": 0.9}, [3, 4], [3, 3], 0.05, [0, 0.05]),
    ("poisson", {}, [0, LN2], [3, 0], (1 + 2) / 2, [-1, 1]),
    ("poisson", {}, [LN2, LN2], [2, 3], (4 - 5 * LN2) / 2, [0, -0.5]),
    ("tweedie", {}, [0, 2 * LN2], [1, 0], (4 + 4) / 2, [0, 1]),
    ("tweedie", {"power": 1.25}, [4 * LN2, 0], [16, 3], (32 + 32 / 3 + 12 + 4 / 3) / 2, [0, -1]),
    ("gamma", {}, [0, LN2], [3, 1], (3 + 0.5 + LN2) / 2, [-1, 0.25]),
    ("focal", {}, [0, 0], [1, 0], LN2 / 4, [-(0.5 + LN2) / 8, (0.5 + LN2) / 8]),
    ("focal", {"gamma": 0, "alpha": 0.25}, [0, 0], [1, 0], LN2 / 2, [-0.0625, 0.1875]),
]


@pytest.mark.parametrize("case", KNOWN_LOSSES, ids=lambda case: f"{case[0]}-{case[2]}-{case[3]}")
def test_loss_at_known_points(case):
    name, options, a, y, value, slope = case
    y = np.array([y]) if isinstance(y, int) else np.array([y], np.float64)
    loss, da, _ = ops.LOSSES[name](**options).rows(np.array([a], np.float64), y)
    assert loss[0] == pytest.approx(value, rel=1e-14)
    assert da[0] == pytest.approx(slope, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_loss_slope_is_the_difference_quotient(rng, name, labels):
    row = loss_variants(4)[name]
    a = 2 * rng.standard_normal((6, 4))
    y = targets(row, 6, 4, "float64", rng, labels)
    if y.ndim == 2:  # away from kinks: of |a - y| at 0, of huber at delta
        for kink in (*row.kinks, row.parameter, -row.parameter):
            a += np.where(np.abs(a - y - kink) < 4 * H, 8 * H, 0)
    _, da, _ = row.rows(a, y)
    of_value, of_slope = row.divisors(4)
    da *= of_slope / of_value
    for k in range(4):

        def value(d, k=k):
            moved = a.copy()
            moved[:, k] += d
            return row.rows(moved, y)[0]

        exact = (value(-2 * H) - 8 * value(-H) + 8 * value(H) - value(2 * H)) / (12 * H)
        oracle.assert_within(da[:, k], exact, 1e-10, f"{name}: output {k}")


# whose exponentials end long before 1e4, and what does not punish the wrong by its margin
LOG_LINK = [name for name in LOSS_NAMES if loss_variants(2)[name].log_link]
FOCAL = [name for name in LOSS_NAMES if name.startswith("focal")]


@pytest.mark.parametrize("name", [name for name in LOSS_NAMES if name not in (*LOG_LINK, *FOCAL)])
def test_loss_is_convex_and_finite_far_out(name):
    row = loss_variants(2)[name]
    with np.errstate(all="raise", under="ignore"):
        for size in (100.0, 1e4):
            a = np.array([[size, -size], [-size, size]])
            y = np.array([0, 0]) if row.targets == "classes" else np.array([[1.0, 0], [1, 0]])
            value, da, _ = row.rows(a, y)
            assert np.isfinite(value).all()
            assert np.isfinite(da).all()
            if row.targets != "values":  # right and sure costs nothing, wrong and sure the margin
                smoothing = row.parameter
                assert (value[0] > 1) == (smoothing > 0)
                assert value[1] > 0.4 * size


@pytest.mark.parametrize("name", FOCAL)
def test_focal_loss_far_out(name):
    """Right and sure costs nothing; wrong and sure the margin, times the weight of the class."""
    row = loss_variants(2)[name]
    positive, negative = (1, 1) if row.alpha is None else (row.alpha, 1 - row.alpha)
    with np.errstate(all="raise", under="ignore"):
        for size in (100.0, 1e4):
            a = np.array([[size, -size], [-size, size]])
            value, da, _ = row.rows(a, np.array([[1.0, 0], [1, 0]]))
            assert value == pytest.approx([0, size * (positive + negative) / 2], rel=1e-12, abs=1e-20)
            assert da == pytest.approx(np.array([[0, 0], [-positive / 2, negative / 2]]), rel=1e-12, abs=1e-20)


@pytest.mark.parametrize("name", LOG_LINK)
def test_log_links_are_finite_to_80_and_lowest_at_the_target(subject, name):
    row = loss_variants(1)[name]
    a = np.linspace(-80, 80, 321, dtype=np.float32)[:, None]
    for y in (1.0, 1e-3, 100.0, *([0.0] if row.targets == "counts" else [])):
        target, da = np.full_like(a, y), np.empty_like(a)
        value = [SUBJECTS[subject].loss(a[i : i + 1], target[:1], row, None, da[i : i + 1]).loss for i in range(len(a))]
        assert np.isfinite(value).all()
        assert np.isfinite(da).all()
        assert (da[np.exp(a, dtype=np.float64) > y * 1.0001] > 0).all()
        assert (da[np.exp(a, dtype=np.float64) < y * 0.9999] < 0).all()


@pytest.mark.parametrize("name", LOG_LINK)
@pytest.mark.parametrize("y", [0.0, 2.0])
def test_log_links_further_out(subject, name, y):
    """The loss is its true value, or infinite where float32 cannot hold that: never NaN, so that a step can stop."""
    row = loss_variants(1)[name]
    if y == 0 and row.targets == "positive":
        return
    for size in (-1e30, -1e3, -300, 300, 1e3, 1e30):
        a, da = np.array([[size]], np.float32), np.empty((1, 1), np.float32)
        got = SUBJECTS[subject].loss(a, np.full_like(a, y), row, None, da).loss
        with np.errstate(over="ignore"):
            exact = row.rows(a.astype(np.float64), np.array([[y]]))[0][0]
        assert got == (pytest.approx(exact, rel=1e-4, abs=1e-37) if abs(exact) < 3e38 else np.inf)


def test_limits_of_families():
    """Tweedie between Poisson and gamma, focal of gamma 0, quantile 0.5 of mae: the same numbers another way."""
    rng = np.random.default_rng(0)
    a, y, hit = rng.standard_normal((50, 3)), rng.gamma(2, size=(50, 3)), rng.integers(0, 2, (50, 3)).astype(float)
    pairs = [
        (fb.losses.Tweedie(1 + 1e-9), fb.losses.Poisson(), y, 1e-7),
        (fb.losses.Tweedie(2 - 1e-9), fb.losses.Gamma(), y, 1e-7),
        (fb.losses.Focal(gamma=0), fb.losses.BCE(), hit, 1e-14),
    ]
    for ours, theirs, target, room in pairs:
        assert ours.rows(a, target)[1] == pytest.approx(theirs.rows(a, target)[1], rel=room, abs=room)
    half = [0.5 * part for part in fb.losses.MAE().rows(a, y)[:2]]
    for got, expected in zip(fb.losses.Quantile(0.5).rows(a, y), half):
        assert got == pytest.approx(expected, rel=1e-14)
    weighted = fb.losses.Focal(gamma=0, alpha=0.25).rows(a, hit)[0]
    assert weighted == pytest.approx(0.75 * fb.losses.BCE(pos_weight=1 / 3).rows(a, hit)[0], rel=1e-14)


@pytest.mark.parametrize("row", [fb.losses.Poisson(), fb.losses.Gamma(), fb.losses.Tweedie(1.3)])
def test_deviances_of_scikit_learn(row):
    """Differences between two predictions, in which terms of y alone go: sklearn's deviances are twice the loss."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    y = rng.gamma(2, size=(40, 1))
    power = {"poisson": 1, "gamma": 2, "tweedie": row.parameter}[row.name]
    a, b = rng.standard_normal((2, 40, 1))
    ours = [row.rows(z, y)[0].mean() for z in (a, b)]
    theirs = [metrics.mean_tweedie_deviance(y[:, 0], np.exp(z[:, 0]), power=power) for z in (a, b)]
    assert 2 * (ours[0] - ours[1]) == pytest.approx(theirs[0] - theirs[1], rel=1e-10)


def test_the_quantile_is_what_minimises_it():
    y = np.random.default_rng(2).gamma(2, size=999)
    for q in (0.05, 0.5, 0.9):
        value = [fb.losses.Quantile(q).rows(np.full((999, 1), a), y[:, None])[0].sum() for a in np.sort(y)]
        assert abs(np.argmin(value) / 999 - q) < 2e-3


def test_share_is_the_label_weight():
    row = fb.losses.CrossEntropy(weight=[1, 2, 4])
    assert row.rows(np.zeros((3, 3)), np.array([2, 0, 1]))[2].tolist() == [4, 1, 2]
    assert row.rows(np.zeros((1, 3)), np.array([[0.5, 0.5, 0]]))[2].tolist() == [1]


# -- optimizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_finds_the_bottom_of_a_bowl(name):
    row = OPTIMIZERS[name]
    p, slots = np.array([3.0, -2.0]), np.zeros((row.slots, 2))
    row.begin(slots)
    # sums of squares only grow; a trust coefficient is a thousandth
    lr = {fb.Adagrad: 0.5, fb.LARS: 100.0}.get(type(row), 0.05)
    for t in range(1, 401):
        row.update(p, 2 * p, slots, t, lr)
    assert np.abs(p).max() < 0.2


def test_first_updates_by_hand():
    def after(row, steps=1):
        p, slots = np.array([1.0]), np.zeros((row.slots, 1))
        for t in range(1, steps + 1):
            row.update(p, np.array([2.0]), slots, t, row.lr)
        return p[0]

    assert after(fb.SGD(lr=0.1)) == pytest.approx(0.8)
    assert after(fb.SGD(lr=0.1, weight_decay=0.5)) == pytest.approx(1 - 0.1 * 2.5)
    # buf = 2, then 0.9 * 2 + 2
    assert after(fb.SGD(lr=0.1, momentum=0.9), 2) == pytest.approx(1 - 0.1 * (2 + 3.8))
    # the first buffer is g whatever the dampening
    assert after(fb.SGD(lr=0.1, momentum=0.9, dampening=0.5), 2) == pytest.approx(1 - 0.1 * (2 + 2.8))
    assert after(fb.SGD(lr=0.1, momentum=0.9, nesterov=True)) == pytest.approx(1 - 0.1 * (2 + 1.8))
    # Adam's first step is lr along the sign
    assert after(fb.Adam(lr=0.1)) == pytest.approx(0.9, rel=1e-7)
    assert after(fb.AdamW(lr=0.1, weight_decay=0.5)) == pytest.approx(0.95 - 0.1, rel=1e-7)
    assert after(fb.Adam(lr=0.1, weight_decay=0.5)) == pytest.approx(0.9, rel=1e-7)
    assert after(fb.Adam(lr=0.1), 3) == pytest.approx(0.7, rel=1e-7)


# -- initializers ------------------------------------------------------------------------------------------------------

FAN = {"he": lambda i, o: 2 / i, "glorot": lambda i, o: 2 / (i + o), "lecun": lambda i, o: 1 / i}


@pytest.mark.parametrize("name", ops.INITIALIZERS)
def test_initializer_scale(name):
    i, o = 300, 200
    w = ops.get_initializer(name)(random.generator(1), i, o)
    assert w.shape == (i, o)
    if name == "zeros":
        assert not w.any()
        return
    if name == "orthogonal":
        oracle.assert_within(w.T @ w, np.eye(o), 1e-12, "columns")
        wide = ops.get_initializer(name)(random.generator(1), o, i)
        oracle.assert_within(wide @ wide.T, np.eye(o), 1e-12, "rows")
        return
    family, _, kind = name.partition("_")
    variance = FAN[family](i, o)
    # 60000 draws: the variance is known to 0.6 % (one sigma, normal), the mean to 0.004 sigma
    assert w.var() == pytest.approx(variance, rel=0.03)
    assert abs(w.mean()) < 5 * math.sqrt(variance / w.size)
    if kind == "uniform":
        limit = math.sqrt(3 * variance)
        assert 0.999 * limit < np.abs(w).max() <= limit
    else:
        assert np.abs(w).max() > 3.5 * math.sqrt(variance)


def test_auto_follows_the_activation_behind():
    from fastbatch.ops.initializers import AUTO

    for name, row in ops.ACTIVATIONS.items():
        drawn = ops.get_initializer("auto", row.gain)
        assert drawn is ops.INITIALIZERS[AUTO[row.gain]]
        for layers in ([fb.Dense(50, name)], [fb.Dense(50), fb.Activation(name)]):
            w = fb.Sequential(layers, input_size=70, seed=4).weights[0][0]
            expected = drawn(random.generator(4, 0), 70, 50).astype(np.float32)
            oracle.assert_same_bits(w, expected, f"{name} {layers}")
    a, b = (fb.MLP([5, 4, 3], seed=seed).parameters for seed in (0, 1))
    assert a.tobytes() != b.tobytes()


# -- random numbers ----------------------------------------------------------------------------------------------------

# Random123's kat_vectors for philox4x32-10
KAT = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KAT)
def test_philox_known_answers(counter, key, words):
    got = random.philox(counter, key[0] | key[1] << 32)
    assert " ".join(f"{int(word):08x}" for word in got) == words


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_dropout_keeps_the_share_it_says(rate):
    threshold = random.dropout_threshold(rate)
    assert abs(1 - rate - threshold / 256) <= 1 / 512 or threshold == 1
    mask = random.dropout_mask(7, 3, 1, np.arange(2000), 50, threshold)
    share = threshold / 256
    sigma = math.sqrt(share * (1 - share) / mask.size)
    assert abs(mask.mean() - share) <= 4 * sigma
    # neither columns nor rows are special, and neighbours in any direction are independent
    for axis in (0, 1):
        spread = math.sqrt(share * (1 - share) / mask.shape[axis])
        assert np.abs(mask.mean(axis=axis) - share).max() <= 5 * spread + 4 / mask.shape[axis]
    if 0 < share < 1:
        m = mask - share
        for a, b in ((m[1:], m[:-1]), (m[:, 1:], m[:, :-1]), (m[:, 16:], m[:, :-16])):
            assert abs((a * b).mean()) <= 4 * share * (1 - share) / math.sqrt(a.size)


def test_dropout_mask_is_keyed_by_all_of_its_arguments():
    args = {"seed": 1, "update": 2, "layer": 3, "rows": np.arange(40), "units": 37, "threshold": 128}
    mask = random.dropout_mask(**args)
    assert mask.shape == (40, 37)
    for change in ({"seed": 2}, {"seed": 1 + 2**40}, {"update": 3}, {"layer": 4}, {"rows": np.arange(1, 41)}):
        assert 0.4 < (random.dropout_mask(**{**args, **change}) != mask).mean() < 0.6
    # a unit's fate depends neither on the width nor on which rows are asked for together
    wide = random.dropout_mask(**{**args, "units": 80})
    assert (wide[:, :37] == mask).all()
    assert (random.dropout_mask(**{**args, "rows": np.array([5, 3, 5])}) == mask[[5, 3, 5]]).all()
    # fewer kept means kept before
    fewer = random.dropout_mask(**{**args, "threshold": 100})
    assert not (fewer & ~mask).any()


SIZES = sorted({0, 1, 2, 3, *(2**k + d for k in (2, 5, 8, 11) for d in (-1, 0, 1))})


@pytest.mark.parametrize("n", SIZES)
def test_permutation(n):
    orders = {}
    for name, backend in SUBJECTS.items():
        for seed in (0, 2**63 + 5):
            for epoch in (0, 1, 2**32 - 1):
                order = backend.permutation(n, seed, epoch)
                assert order.dtype == np.int64
                assert sorted(order.tolist()) == list(range(n))
                expected = orders.setdefault((seed, epoch), order)
                oracle.assert_same_bits(order, expected, f"{name}: n={n} seed={seed} epoch={epoch}")
    if n > 20:
        assert len({order.tobytes() for order in orders.values()}) == len(orders)


def test_permutation_is_uniform():
    """Every item is equally likely in every place: 4 x 4 counts of 6000 shuffles, within 5 sigma."""
    counts = np.zeros((4, 4))
    for epoch in range(6000):
        counts[np.arange(4), random.permutation(4, 9, epoch)] += 1
    sigma = math.sqrt(6000 * 0.25 * 0.75)
    assert np.abs(counts - 1500).max() <= 5 * sigma
    long = random.permutation(4096, 1, 0)
    shift = np.abs(long - np.arange(4096)).mean() / 4096
    assert shift == pytest.approx(1 / 3, abs=0.02)
    assert np.count_nonzero(long == np.arange(4096)) <= 8
