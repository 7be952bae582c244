"""Every metric against scikit-learn's, on random and degenerate rows, with weights and without; and in a trainer."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from helpers import BACKENDS, OUTPUTS, make_data, make_trainer

import fastbatch as fb
from fastbatch import ops

sklearn = pytest.importorskip("sklearn.metrics", reason="parity of metrics needs scikit-learn; CI installs it")

backends = pytest.mark.parametrize("backend", BACKENDS)
N, K = 60, 4
RTOL = 1e-12


def measured(name, loss, a, y, weight=None):
    return ops.measure(ops.get_metrics(name, loss), a, y, weight, loss)[name]


def weights(kind: str, rng, n: int = N):
    """None, positive ones, or ones of which a third are 0; and which rows count."""
    if kind == "plain":
        return None, np.ones(n, bool)
    weight = rng.uniform(0.1, 3, n)
    if kind == "zeros":
        weight[rng.permutation(n)[: n // 3]] = 0
    return weight, weight > 0


weighted = pytest.mark.parametrize("kind", ["plain", "weighted", "zeros"])

# what is true and what is decided: usual, a class nobody has, one nobody decides, one neither, all the same, all right
LABELS = {
    "usual": (range(K), range(K)),
    "missing in y": ((0, 1, 3), range(K)),
    "never decided": (range(K), (0, 2, 3)),
    "missing in both": ((0, 1), (0, 3)),
    "one class": ((2,), range(K)),
    "one decision": (range(K), (1,)),
    "disjoint": ((0, 1), (2, 3)),
}


def classes_data(name: str, rng):
    there, decided = (np.array(list(part)) for part in LABELS[name])
    y, p = rng.choice(there, N), rng.choice(decided, N)
    a = rng.random((N, K), np.float32)
    a[np.arange(N), p] += 1
    return a, y, p


AVERAGES = {"": "macro", "_micro": "micro", "_weighted": "weighted"}
SCORES = {"precision": sklearn.precision_score, "recall": sklearn.recall_score, "f1": sklearn.f1_score}
scores = pytest.mark.parametrize(("score", "suffix"), [(score, suffix) for score in SCORES for suffix in AVERAGES])


@weighted
@pytest.mark.parametrize("data", LABELS)
@scores
def test_scores_of_classes(rng, score, suffix, data, kind):
    a, y, p = classes_data(data, rng)
    weight, kept = weights(kind, rng)
    given = None if weight is None else weight[kept]
    expected = SCORES[score](y[kept], p[kept], average=AVERAGES[suffix], sample_weight=given, zero_division=0)
    got = measured(score + suffix, fb.losses.CrossEntropy(), a, y, weight)
    assert type(got) is float
    assert got == pytest.approx(expected, rel=RTOL, abs=1e-15)


@weighted
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("data", ["usual", "no positive", "nothing decided", "neither"])
@scores
def test_scores_of_binary_outputs(rng, score, suffix, data, outputs, kind):
    a, y = rng.standard_normal((N, outputs)).astype(np.float32), rng.random((N, outputs)) < 0.4
    if data in ("no positive", "neither"):
        y[:, 0] = False
    if data in ("nothing decided", "neither"):
        a[:, 0] = -np.abs(a[:, 0])
    weight, kept = weights(kind, rng)
    given = None if weight is None else weight[kept]
    # one output: sklearn's multilabel code takes no single column, its mean over one label is "binary"
    average = AVERAGES[suffix] if outputs > 1 else "binary"
    true, decided = (part[kept] if outputs > 1 else part[kept, 0] for part in (y, a > 0))
    expected = SCORES[score](true, decided, average=average, sample_weight=given, zero_division=0)
    got = measured(score + suffix, fb.losses.BCE(), a, y.astype(np.float32), weight)
    assert got == pytest.approx(expected, rel=RTOL, abs=1e-15)


@weighted
@pytest.mark.parametrize("data", LABELS)
def test_accuracy_and_confusion(rng, data, kind):
    a, y, p = classes_data(data, rng)
    weight, _ = weights(kind, rng)
    loss = fb.losses.CrossEntropy()
    expected = sklearn.accuracy_score(y, p, sample_weight=weight)
    assert measured("accuracy", loss, a, y, weight) == pytest.approx(expected, rel=RTOL)
    table = measured("confusion", loss, a, y, weight)
    assert table.shape == (K, K)
    expected = sklearn.confusion_matrix(y, p, sample_weight=weight, labels=range(K))
    np.testing.assert_allclose(table, expected, rtol=RTOL)
    # distributions count as their largest class
    soft = 0.7 * np.eye(K)[y] + 0.3 / K
    np.testing.assert_array_equal(measured("confusion", loss, a, soft, weight), table)


@weighted
def test_confusion_of_binary_outputs(rng, kind):
    a, y = rng.standard_normal((N, 3)), rng.random((N, 3)) < 0.4
    weight, _ = weights(kind, rng)
    expected = sklearn.multilabel_confusion_matrix(y, a > 0, sample_weight=weight)
    np.testing.assert_allclose(measured("confusion", fb.losses.BCE(), a, y, weight), expected, rtol=RTOL)
    one = measured("confusion", fb.losses.BCE(), a[:, :1], y[:, :1], weight)
    np.testing.assert_allclose(one, expected[0], rtol=RTOL)
    assert one.shape == (2, 2)


@weighted
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k(rng, k, kind):
    a, y = rng.standard_normal((N, K)), rng.integers(0, K, N)
    weight, _ = weights(kind, rng)
    expected = sklearn.top_k_accuracy_score(y, a, k=k, sample_weight=weight, labels=range(K))
    assert measured(f"top_{k}", fb.losses.CrossEntropy(), a, y, weight) == pytest.approx(expected, rel=RTOL)


def test_top_k_has_a_default_an_end_and_an_order():
    loss, rng = fb.losses.CrossEntropy(), np.random.default_rng(0)
    a, y = rng.integers(0, 3, (200, 8)).astype(np.float32), rng.integers(0, 8, 200)  # many equal outputs
    assert measured("top_1", loss, a, y) == measured("accuracy", loss, a, y)
    assert measured("top_k", loss, a, y) == measured("top_5", loss, a, y) < 1
    assert measured("top_8", loss, a, y) == measured("top_99", loss, a, y) == 1


@weighted
@pytest.mark.parametrize("ties", [False, True])
def test_auc_of_binary_outputs(rng, ties, kind):
    a, y = rng.standard_normal((N, 3)), rng.random((N, 3)) < 0.4
    a = np.round(a) if ties else a
    weight, _ = weights(kind, rng)
    loss = fb.losses.BCE()
    expected = sklearn.roc_auc_score(y, a, sample_weight=weight, average="macro")
    assert measured("auc", loss, a, y.astype(float), weight) == pytest.approx(expected, rel=RTOL)
    expected = sklearn.roc_auc_score(y[:, 0], a[:, 0], sample_weight=weight)
    assert measured("auc", loss, a[:, :1], y[:, :1].astype(float), weight) == pytest.approx(expected, rel=RTOL)


@weighted
def test_auc_of_classes(rng, kind):
    a, y = 3 * rng.standard_normal((N, K)), rng.integers(0, K, N)
    weight, _ = weights(kind, rng)
    loss = fb.losses.CrossEntropy()
    p = loss.probabilities(a)
    expected = np.mean([sklearn.roc_auc_score(y == k, p[:, k], sample_weight=weight) for k in range(K)])
    assert measured("auc", loss, a, y, weight) == pytest.approx(expected, rel=RTOL)
    if weight is None:
        expected = sklearn.roc_auc_score(y, p, multi_class="ovr", average="macro")
        assert measured("auc", loss, a, y) == pytest.approx(expected, rel=RTOL)
    # a class without rows has no curve: the mean is over the others
    y[y == 2] = 1
    expected = np.mean([sklearn.roc_auc_score(y == k, p[:, k], sample_weight=weight) for k in (0, 1, 3)])
    assert measured("auc", loss, a, y, weight) == pytest.approx(expected, rel=RTOL)


def test_auc_without_a_pair_is_nan(rng):
    a = rng.standard_normal((N, K))
    assert math.isnan(measured("auc", fb.losses.CrossEntropy(), a, np.full(N, 2)))
    assert math.isnan(measured("auc", fb.losses.BCE(), a, np.zeros((N, K))))
    # the only positive row weighs nothing
    assert math.isnan(measured("auc", fb.losses.BCE(), a[:, :1], np.eye(N)[:, :1], 1 - np.eye(N)[0]))


VALUES = {"mse": sklearn.mean_squared_error, "mae": sklearn.mean_absolute_error, "r2": sklearn.r2_score}


@weighted
@pytest.mark.parametrize("loss", ["mse", "quantile", "poisson", "gamma"])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_errors_of_values(rng, name, loss, outputs, kind):
    a = rng.standard_normal((N, outputs)).astype(np.float32)
    y = rng.gamma(1.0, size=(N, outputs)).astype(np.float32)
    weight, _ = weights(kind, rng)
    mean = np.exp(a, dtype=np.float64) if loss in ("poisson", "gamma") else a.astype(np.float64)
    expected = VALUES[name](y.astype(np.float64), mean, sample_weight=weight)
    assert measured(name, ops.get_loss(loss), a, y, weight) == pytest.approx(expected, rel=1e-10)


@weighted
def test_r2_of_constant_targets(rng, kind):
    """1 when met exactly, else 0, in the mean with the others; also where a rounded mean is not the constant."""
    a, y = rng.standard_normal((N, 3)), rng.standard_normal((N, 3))
    y[:, 0] = a[:, 0] = 0.1
    y[:, 1] = 0.1
    weight, kept = weights(kind, rng)
    loss, given = fb.losses.MSE(), None if weight is None else weight[kept]
    own = sklearn.r2_score(y[kept, 2], a[kept, 2], sample_weight=given)
    assert measured("r2", loss, a[:, :1], y[:, :1], weight) == 1
    assert measured("r2", loss, a[:, 1:2], y[:, 1:2], weight) == 0
    assert measured("r2", loss, a, y, weight) == pytest.approx((1 + 0 + own) / 3, rel=1e-10)
    # a row that differs and weighs nothing does not make the target vary
    if kind == "zeros":
        y[np.argmin(weight), 1] = 7
        assert measured("r2", loss, a[:, 1:2], y[:, 1:2], weight) == 0
    assert math.isnan(measured("r2", loss, a[:1], y[:1]))


@pytest.mark.parametrize("name", ops.METRICS)
def test_no_weight_at_all(name):
    """0, a table of 0, or NaN: no warning, no exception."""
    row = next(cls() for cls in ops.LOSSES.values() if cls.targets in ops.METRICS[name][1])
    a = np.ones((5, 3))
    y = np.zeros(5, np.int64) if row.targets == "classes" else np.ones((5, 3))
    got = measured(name, row, a, y, np.zeros(5))
    if name in ("auc", "r2"):
        assert math.isnan(got)
    else:
        assert not np.any(got)


# -- in a trainer ------------------------------------------------------------------------------------------------------


def spread(y_true, y_pred):
    """A user's metric; of module level, so that a trainer that has it can be pickled."""
    assert y_pred.ndim == 2
    assert len(y_true) == len(y_pred)
    return np.ptp(y_pred) + len(y_true)


@backends
@pytest.mark.parametrize("loss", ops.LOSSES)
def test_fit_and_evaluate_report_every_metric(backend, loss):
    x, y = make_data(loss, 50)
    kind = ops.LOSSES[loss].targets
    names = [name for name, (_, kinds) in ops.METRICS.items() if kind in kinds]
    names += ["top_3"] if kind == "classes" else []
    weight = np.random.default_rng(0).uniform(0, 2, 50)
    trainer = make_trainer(loss, fb.SGD(lr=0.0), metrics=[*names, spread], backend=backend)
    history = trainer.fit(x, y, batch_size=16, sample_weight=weight, validation_data=(x[:20], y[:20], weight[:20]))
    for prefix, got in (("", trainer.evaluate(x, y, weight)), ("val_", trainer.evaluate(x[:20], y[:20], weight[:20]))):
        assert set(got) == {"loss", *names, "spread"}
        for name, value in got.items():
            np.testing.assert_allclose(history[prefix + name][0], value, rtol=1e-6)
    if kind == "classes":
        assert history["confusion"][0].shape == (OUTPUTS, OUTPUTS)
    assert {k for k in history if "confusion" not in k} == {
        *(prefix + name for prefix in ("", "val_") for name in ("loss", *names, "spread") if name != "confusion"),
        "lr",
        "batch_size",
        "time",
    }


def test_a_matrix_is_kept_out_of_lines_and_pictures(capsys):
    x, y = make_data("cross_entropy", 50)
    trainer = make_trainer("cross_entropy", metrics=("confusion", "accuracy"))
    history = trainer.fit(x, y, epochs=2, verbose=2)
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "confusion" not in printed
    assert history["confusion"][1].sum() == 50
    pytest.importorskip("matplotlib")
    assert [axes.get_ylabel() for axes in history.plot().axes] == ["loss", "accuracy"]
    pytest.importorskip("pandas")
    frame = history.to_pandas()
    np.testing.assert_array_equal(frame["confusion"][2], history["confusion"][1])


def test_a_function_is_a_metric():
    x, y = make_data("cross_entropy", 50)
    trainer = make_trainer("cross_entropy", metrics=[spread, "f1"])
    expected = np.ptp(trainer.predict(x)) + 50
    for twin in (trainer, copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert twin.evaluate(x, y)["spread"] == pytest.approx(expected)
    # it is not told of weights, and does not see rows that have none
    counted = trainer.evaluate(x, y, np.arange(50) < 20)["spread"]
    assert counted == pytest.approx(np.ptp(trainer.predict(x[:20])) + 20)
    assert math.isnan(trainer.evaluate(x, y, np.zeros(50))["spread"])

    def words(y_true, y_pred):
        return "good"

    with pytest.raises(fb.ArgumentError, match="expected a number from words, got 'good'"):
        make_trainer("cross_entropy", metrics=words).evaluate(x, y)


# -- labels that do not count ------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("index", [-100, 1, 2**40])
def test_an_ignored_row_is_one_of_weight_0(backend, index):
    """In fit, evaluate, metrics, per-sample norms and balanced class weights: to the bit, on any route."""
    x, y = make_data("cross_entropy", 80)
    rng = np.random.default_rng(0)
    gone = (rng.random(80) < 0.3) | (y == index)
    marked = np.where(gone, index, y)
    options = {"backend": backend, "metrics": ["f1", "auc", "confusion"]}
    ours = make_trainer(fb.losses.CrossEntropy(ignore_index=index, label_smoothing=0.1), **options)
    theirs = make_trainer(fb.losses.CrossEntropy(label_smoothing=0.1), **options)
    weight = rng.uniform(0.5, 2, 80)
    for given in (None, weight):
        zero = np.where(gone, 0, 1 if given is None else given)
        a = ours.fit(x, marked, batch_size=16, epochs=2, sample_weight=given, class_weight={0: 3})
        b = theirs.fit(x, np.where(gone, 0, y), batch_size=16, epochs=2, sample_weight=zero, class_weight={0: 3})
        for name in ("loss", "f1", "auc", "confusion"):
            np.testing.assert_array_equal(a[name], b[name])
        assert ours.model.parameters.tobytes() == theirs.model.parameters.tobytes()
        got, expected = ours.evaluate(x, marked, given), theirs.evaluate(x, np.where(gone, 0, y), zero)
        np.testing.assert_equal(got, expected)
        np.testing.assert_allclose(got["confusion"].sum(), zero.sum())
    assert ours.step(x, marked) == theirs.step(x, np.where(gone, 0, y), (~gone).astype(float))
    norms = ours.gradient_norms(x, marked)
    np.testing.assert_array_equal(norms[gone], 0)
    np.testing.assert_allclose(norms[~gone], ours.gradient_norms(x[~gone], y[~gone]), rtol=1e-5)
    # balanced: of the rows that count
    a = ours.fit(x, marked, batch_size=80, shuffle=False, class_weight="balanced")
    table = {int(k): (~gone).sum() / (len(set(y[~gone])) * n) for k, n in zip(*np.unique(y[~gone], return_counts=True))}
    theirs.fit(x, np.where(gone, 0, y), batch_size=80, shuffle=False, sample_weight=~gone, class_weight=table)
    np.testing.assert_allclose(ours.model.parameters, theirs.model.parameters, rtol=1e-5, atol=1e-7)


@backends
def test_only_ignored_rows(backend):
    """torch's mean over nothing is NaN; here a step of no weight has loss 0 and gradient 0."""
    x, _ = make_data("cross_entropy", 10)
    trainer = make_trainer(fb.losses.CrossEntropy(ignore_index=-1), backend=backend)
    for _ in range(2):
        before = trainer.model.parameters.copy()
        loss, gradient = trainer.gradients(x, np.full(10, -1))
        assert (loss, gradient.any()) == (0, False)
        assert trainer.evaluate(x, np.full(10, -1)) == {"loss": 0, "accuracy": 0}
        assert trainer.step(x, np.full(10, -1)) == 0
        assert trainer.model.parameters.tobytes() == before.tobytes()


def test_only_the_label_named_is_ignored():
    x, y = make_data("cross_entropy", 10)
    marked = y.copy()
    marked[4] = -100
    loss = fb.losses.CrossEntropy(ignore_index=-100)
    for _ in range(2):  # the second time on the fast path, where there is one
        trainer = make_trainer("cross_entropy")
        trainer.step(x, y)
        with pytest.raises(fb.DataError, match=r"0 \.\. 3 .* got -100 in row 4"):
            trainer.step(x, marked)
    marked[7] = -1
    trainer = make_trainer(loss)
    for kind in (np.int64, np.int32, np.float32):
        with pytest.raises(fb.DataError, match=r"0 \.\. 3 .* got -1(\.0)? in row 7"):
            trainer.step(x, marked.astype(kind))
    with pytest.raises(fb.ShapeError, match=r"labels .* with ignore_index"):
        trainer.step(x, np.eye(OUTPUTS, dtype=np.float32)[y])
    with pytest.raises(fb.ShapeError, match=r"labels .* with ignore_index"):
        fb.kernels.loss(loss, np.ones((10, 4), np.float32), np.eye(OUTPUTS, dtype=np.float32)[y])
