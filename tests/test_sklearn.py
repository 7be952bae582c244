"""fastbatch.sklearn beside scikit-learn's own MLP: the same numbers, the same signatures, the same places to stand in.

The published suite runs in test_sklearn_suite. Bounds: with the same draws both do the same arithmetic in another order
of sums, so curves in float64 agree to rounding carried on through the updates; 1e-9 leaves it three digits and lets no
wrong factor pass. float32 is held to the 1e-4 that the door promises.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbatch as fb

sklearn = pytest.importorskip("sklearn", reason="parity with scikit-learn needs it; CI names it in FASTBATCH_EXPECT")
doors = pytest.importorskip("fastbatch.sklearn", reason="needs scikit-learn >= 1.7")

import joblib  # noqa: E402
import scipy.sparse  # noqa: E402
from sklearn import datasets, neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.ensemble import BaggingClassifier  # noqa: E402
from sklearn.exceptions import ConvergenceWarning, NotFittedError  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402
from threadpoolctl import ThreadpoolController  # noqa: E402

from fastbatch.sklearn import MLPClassifier, MLPRegressor  # noqa: E402
from fastbatch.sklearn.lbfgs import QUIET_BLAS  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROOT = Path(__file__).parents[1]
NAMES = ("MLPClassifier", "MLPRegressor")
EPOCHS = 50


def data(kind: str, n: int = 150):
    """Name of the estimator, X and y."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(n, 6))
    z = X @ rng.normal(size=(6, 3)) + 0.3 * rng.normal(size=(n, 3))
    targets = {
        "binary": z[:, 0] > 0,
        "multiclass": np.array(["a", "b", "c"])[z.argmax(axis=1)],
        "multilabel": (z > 0).astype(int),
        "values": z[:, 0],
        "several values": z,
        "counts": rng.poisson(np.exp(0.5 * z[:, 0])).astype(float),
        "several counts": rng.poisson(np.exp(0.5 * z)).astype(float),
    }
    return NAMES[kind not in ("binary", "multiclass", "multilabel")], X, targets[kind]


def both(name: str, X, y, *args, **settings):
    """scikit-learn's estimator and ours, fitted alike."""
    settings = {"hidden_layer_sizes": (20, 9), "max_iter": EPOCHS, "random_state": 3, "batch_size": 32, **settings}
    pair = [getattr(module, name)(**settings) for module in (neural_network, doors)]
    for estimator in pair:
        estimator.fit(X, y, *args)
    return pair


def assert_same_course(theirs, ours, bound: float = 1e-9) -> None:
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_
    assert len(ours.loss_curve_) == len(theirs.loss_curve_)
    scale = np.maximum(1, np.abs(theirs.loss_curve_))
    assert (np.abs(np.subtract(ours.loss_curve_, theirs.loss_curve_)) <= bound * scale).all()
    for own, their in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_):
        assert own.dtype == their.dtype
        assert np.linalg.norm(own - their) <= 100 * bound * max(1, np.linalg.norm(their))


KINDS = ("binary", "multiclass", "multilabel", "values", "several values")


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_curve_is_scikit_learns(kind, solver, weighted):
    name, X, y = data(kind)
    weight = np.random.default_rng(1).uniform(0.2, 3, len(X)) if weighted else None
    theirs, ours = both(name, X, y, weight, solver=solver, alpha=0.05, learning_rate_init=0.01)
    assert len(ours.loss_curve_) >= 20
    assert_same_course(theirs, ours)
    assert np.array_equal(ours.predict(X), theirs.predict(X)) or name == "MLPRegressor"


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "identity"},
        {"activation": "logistic"},
        {"activation": "tanh", "shuffle": False},
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5},
        {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.3, "tol": 1e-2, "n_iter_no_change": 2},
        {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.7},
        {"solver": "sgd", "momentum": 0},
        {"early_stopping": True, "n_iter_no_change": 4, "learning_rate_init": 0.02},
        {"early_stopping": True, "validation_fraction": 0.3, "shuffle": False},
        {"batch_size": "auto", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
        {"batch_size": 1, "max_iter": 3},
        {"hidden_layer_sizes": (), "tol": 1e-2},
        {"hidden_layer_sizes": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["binary", "multiclass", "values"])
def test_every_setting_follows_scikit_learn(kind, settings):
    name, X, y = data(kind)
    if kind == "multiclass":  # scikit-learn before 1.8 cannot stop early on words
        y = np.unique(y, return_inverse=True)[1]
    theirs, ours = both(name, X, y, **settings)
    assert_same_course(theirs, ours)
    if "early_stopping" in settings:
        assert np.allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-9, atol=1e-12)
        assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_, rel=1e-9)


@pytest.mark.parametrize("kind", ["counts", "several counts"])
def test_poisson(kind):
    _, X, y = data(kind)
    theirs, ours = both("MLPRegressor", X, y, loss="poisson", learning_rate_init=0.01, alpha=0.1)
    assert_same_course(theirs, ours)
    assert np.allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_within_the_bound_of_the_door(kind):
    name, X, y = data(kind)
    theirs, ours = both(name, X.astype(np.float32), y.astype(np.float32) if y.dtype.kind == "f" else y)
    assert_same_course(theirs, ours, 1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "counts"])
def test_lbfgs_ends_where_scikit_learn_does(kind):
    name, X, y = data(kind)
    extra = {"loss": "poisson"} if kind == "counts" else {}
    weight = np.random.default_rng(1).uniform(0.2, 3, len(X))
    settings = {"solver": "lbfgs", "alpha": 1.0, "activation": "tanh", "hidden_layer_sizes": (5,), **extra}
    theirs, ours = both(name, X, y, weight, max_iter=30, **settings)
    # another order of sums, another line search where scikit-learn's loss and gradient do not belong together
    bound = 0.05 if kind == "several values" else 1e-5
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=bound)
    assert not hasattr(ours, "loss_curve_")


def test_fits_that_overlap_leave_blas_its_threads():
    def threads() -> list[int]:
        return [row["num_threads"] for row in ThreadpoolController().info() if row["user_api"] == "blas"]

    before = threads()
    QUIET_BLAS.__enter__()
    QUIET_BLAS.__enter__()
    QUIET_BLAS.__exit__()
    assert set(threads()) <= {1}
    QUIET_BLAS.__exit__()
    assert threads() == before


def test_lbfgs_has_one_thread_of_blas_inside(monkeypatch):
    _, X, y = data("values")
    controller, inside, gradients = ThreadpoolController(), [], fb.Trainer.gradients
    if not controller.select(user_api="blas").info():
        pytest.skip("a BLAS that threadpoolctl does not know")

    def recorded(*args):
        inside.extend(row["num_threads"] for row in controller.info() if row["user_api"] == "blas")
        return gradients(*args)

    monkeypatch.setattr(fb.Trainer, "gradients", recorded)
    with controller.limit(limits=2, user_api="blas"):
        MLPRegressor(solver="lbfgs", max_iter=2).fit(X, y)
    assert set(inside) == {1}


# -- the contract of scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)], ids=NAMES)
def test_estimator_checks(estimator):
    found = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(found) > 50
    assert not [(row["check_name"], row["exception"]) for row in found if row["status"] not in ("passed", "skipped")]


@pytest.mark.parametrize("name", NAMES)
def test_signatures_begin_with_scikit_learns(name):
    theirs, ours = (inspect.signature(getattr(module, name)).parameters for module in (neural_network, doors))
    shared = list(ours)[: len(theirs)]
    assert shared == list(theirs)
    for parameter in shared:
        assert (ours[parameter].kind, ours[parameter].default) == (theirs[parameter].kind, theirs[parameter].default)
    assert all(ours[parameter].kind is inspect.Parameter.KEYWORD_ONLY for parameter in list(ours)[len(theirs) :])
    for method in ("fit", "partial_fit", "predict", "score"):
        first, second = (
            inspect.signature(getattr(getattr(m, name), method)).parameters for m in (neural_network, doors)
        )
        assert list(second)[: len(first)] == list(first), method


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("kind", KINDS)
def test_fitted_attributes_are_there(kind, solver):
    name, X, y = data(kind)
    theirs, ours = both(name, X, y, solver=solver, max_iter=3)
    public = {key for key in vars(theirs) if key.endswith("_") and not key.startswith("_")}
    assert public <= set(vars(ours))
    for key in public - {"coefs_", "intercepts_"}:
        kinds = [
            float if key == "best_validation_score_" and getattr(each, key) else type(getattr(each, key))
            for each in (ours, theirs)
        ]
        assert kinds[0] is kinds[1], key
    for key in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.predict(X).dtype == theirs.predict(X).dtype
    if name == "MLPClassifier":
        assert np.array_equal(ours.classes_, theirs.classes_)
        assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-8 if solver == "adam" else 1e-3)
        assert np.allclose(ours.predict_log_proba(X), np.log(ours.predict_proba(X)))


def test_partial_fit_follows_scikit_learn():
    name, X, y = data("multiclass")
    pair = [getattr(module, name)(random_state=0, solver="sgd", learning_rate="invscaling", learning_rate_init=0.4)
            for module in (neural_network, doors)]  # fmt: skip
    for estimator in pair:
        for start in (0, 50, 0, 100):
            estimator.partial_fit(X[start : start + 50], y[start : start + 50], classes=["a", "b", "c"])
    assert_same_course(*pair)
    assert pair[1].n_iter_ == 1


def test_epochs_of_partial_fit_are_those_of_fit_to_the_bit():
    _, X, y = data("values")
    settings = {"shuffle": False, "random_state": 0, "batch_size": 32}
    whole, parts = MLPRegressor(max_iter=5, **settings).fit(X, y), MLPRegressor(**settings)
    for _ in range(5):
        parts.partial_fit(X, y)
    assert whole.loss_curve_ == parts.loss_curve_
    assert all(map(np.array_equal, whole.coefs_, parts.coefs_))


def test_a_row_at_a_time_without_validation_is_the_same():
    _, X, y = data("multiclass")
    checked, quick = (MLPClassifier(random_state=0).partial_fit(X[:9], y[:9], classes=["a", "b", "c"]) for _ in "ab")
    for k in range(20):
        checked.partial_fit(X[k : k + 1], y[k : k + 1])
        quick.partial_fit(X[k : k + 1], y[k : k + 1], validate=False)
    assert all(map(np.array_equal, checked.coefs_, quick.coefs_))
    for end in (30, 40):
        weight = np.linspace(1, 2, end - 20).tolist()
        checked.partial_fit(X[20:end], y[20:end], weight)
        quick.partial_fit(X[20:end], y[20:end], weight, validate=False)
    quick.set_params(callbacks=[fb.LambdaCallback()])
    checked.partial_fit(X[:1], y[:1])
    quick.partial_fit(X[:1], y[:1], validate=False)
    assert all(map(np.array_equal, checked.coefs_, quick.coefs_))
    assert np.array_equal(checked.predict(X), quick.predict(X, validate=False))
    assert np.array_equal(checked.predict_proba(X), quick.predict_proba(X, validate=False))


@pytest.mark.parametrize("kind", ["multiclass", "values"])
@pytest.mark.parametrize(("rows", "targets", "weights"), [(9, 8, None), (1, 9, None), (9, 9, 8), (1, 1, 2)])
def test_lengths_are_compared_without_validation(kind, rows, targets, weights):
    name, X, y = data(kind)
    estimator = getattr(doors, name)(random_state=0)
    estimator.partial_fit(X, y, **({"classes": np.unique(y)} if kind == "multiclass" else {}))
    before, seen = [w.copy() for w in estimator.coefs_], estimator.t_
    weight = None if weights is None else np.ones(weights)
    with pytest.raises(fb.ShapeError, match=rf": expected {rows} rows as in X, got {weights or targets}"):
        estimator.partial_fit(X[:rows], y[:targets], weight, validate=False)
    assert all(map(np.array_equal, estimator.coefs_, before))
    assert estimator.t_ == seen


REFUSED = {
    "half a validation set": ({}, lambda X, y: {"X_val": X}),
    "another width": ({}, lambda X, y: {"X_val": X[:, :2], "y_val": y}),
    "an unknown class": ({}, lambda X, y: {"X_val": X, "y_val": np.resize(["a", "?"], len(y))}),
    "too few to split": ({"early_stopping": True, "validation_fraction": 0.001}, lambda X, y: {}),
    "no such scorer": ({"early_stopping": True, "scoring": "nonsense"}, lambda X, y: {}),
    "no such loss": ({"loss": "nonsense"}, lambda X, y: {}),
    "no callback": ({"callbacks": [3]}, lambda X, y: {}),
    "size 0": ({"batch_size": lambda epoch: 0}, lambda X, y: {}),
}


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_fit_changes_nothing(case, fitted):
    _, X, y = data("multiclass")
    settings, more = REFUSED[case]
    estimator = MLPClassifier((5,), max_iter=2, random_state=np.random.RandomState(0))
    if fitted:
        estimator.fit(X[:100], y[:100])
        coefs = [w.copy() for w in estimator.coefs_]
    estimator.set_params(**settings)
    before, draws = dict(vars(estimator)), estimator.random_state.get_state()[1].copy()
    place = estimator.random_state.get_state()[2]
    with pytest.raises((ValueError, TypeError)):
        estimator.fit(X, y, **more(X, y))
    after = vars(estimator)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())
    assert np.array_equal(estimator.random_state.get_state()[1], draws)
    assert estimator.random_state.get_state()[2] == place
    if fitted:
        assert all(map(np.array_equal, estimator.coefs_, coefs))


@pytest.mark.parametrize("kind", ["multiclass", "values"])
def test_a_refused_first_partial_fit_changes_nothing(kind):
    name, X, y = data(kind)
    estimator = getattr(doors, name)(loss="nonsense", random_state=0)
    before = dict(vars(estimator))
    with pytest.raises(fb.ArgumentError):
        estimator.partial_fit(X, y, **({"classes": np.unique(y)} if kind == "multiclass" else {}))
    assert vars(estimator) == before


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_warm_start_follows_scikit_learn(solver):
    name, X, y = data("multiclass")
    pair = [getattr(module, name)(random_state=0, warm_start=True, max_iter=6, solver=solver)
            for module in (neural_network, doors)]  # fmt: skip
    for estimator in pair:
        estimator.fit(X, y).fit(X, y)
    assert_same_course(*pair)
    assert len(pair[1].loss_curve_) == 12


def test_partial_fit_goes_on_with_the_network_of_the_last_fit():
    _, X, y = data("values")
    estimator = MLPRegressor(random_state=0, max_iter=2).fit(X, y)
    estimator.set_params(solver="lbfgs").fit(X, y).set_params(solver="adam", learning_rate_init=0.1)
    before, after = estimator.predict(X), estimator.partial_fit(X, y).predict(X)
    assert np.abs(after - before).max() > 0.01


# -- weights that are seen and set -------------------------------------------------------------------------------------


def test_coefs_are_live():
    _, X, y = data("values")
    estimator = MLPRegressor(hidden_layer_sizes=(4,), max_iter=2).fit(X, y)
    before, view = estimator.predict(X), estimator.coefs_[0]
    estimator.partial_fit(X, y)
    assert view is estimator.coefs_[0]
    assert not np.array_equal(before, estimator.predict(X))
    estimator.coefs_[-1][:] = 0
    assert np.allclose(estimator.predict(X), estimator.intercepts_[-1])
    estimator.intercepts_ = [b * 0 for b in estimator.intercepts_]
    assert not estimator.predict(X).any()
    estimator.coefs_[0] = np.zeros((6, 5))
    with pytest.raises(fb.ShapeError, match=r"coefs_\[0\]: expected shape \(6, 4\), got \(6, 5\)"):
        estimator.predict(X)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_copies_go_on_to_the_bit(copied, norm):
    _, X, y = data("multiclass")
    estimator = MLPClassifier(random_state=0, max_iter=3, norm=norm, dropout=0.2).fit(X, y)
    estimator.coefs_[0] = estimator.coefs_[0] + 0.25
    twin = copied(estimator)
    assert np.array_equal(twin.predict_proba(X), estimator.predict_proba(X))
    if copied is copy.copy:
        return  # shares the network, as a shallow copy of scikit-learn's shares arrays
    for each in (estimator, twin):
        each.partial_fit(X, y)
    assert np.array_equal(twin.predict_proba(X), estimator.predict_proba(X))
    assert twin.loss_curve_ == estimator.loss_curve_
    assert twin.coefs_[0] is not estimator.coefs_[0]


def test_what_joblib_maps_read_only_is_trained_further(tmp_path):
    """loky hands large arrays to its workers so, too."""
    _, X, y = data("multiclass")
    estimator = MLPClassifier(random_state=0, max_iter=3, norm="batch").fit(X, y)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    twin = joblib.load(tmp_path / "estimator.joblib", mmap_mode="r")
    assert np.array_equal(twin.predict_proba(X), estimator.predict_proba(X))
    for each in (estimator, twin):
        each.partial_fit(X, y)
    assert np.array_equal(twin.predict_proba(X), estimator.predict_proba(X))


def test_clone_and_set_params():
    _, X, y = data("multiclass")
    estimator = MLPClassifier(random_state=0, max_iter=3, activation=["gelu", "tanh"], hidden_layer_sizes=(5, 4))
    twin = clone(estimator.fit(X, y))
    assert twin.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(X)
    assert twin.set_params(activation="relu", dropout=0.1).fit(X, y).dropout == 0.1


# -- where it stands in for scikit-learn's -----------------------------------------------------------------------------


def test_tools_of_scikit_learn():
    _, X, y = data("multiclass")
    estimator = MLPClassifier(random_state=0, max_iter=15, hidden_layer_sizes=8, learning_rate_init=0.02)
    pipeline = make_pipeline(StandardScaler(), estimator)
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__dropout": [0.0, 0.1]}, cv=2)
    alone = search.fit(X, y).cv_results_["mean_test_score"]
    search.set_params(n_jobs=2)
    assert np.array_equal(search.fit(X, y).cv_results_["mean_test_score"], alone)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert np.array_equal(clone(search).fit(X, y).cv_results_["mean_test_score"], alone)
        bagged = BaggingClassifier(estimator, n_estimators=3, n_jobs=2, random_state=0).fit(X, y)
    assert np.array_equal(
        bagged.predict(X), BaggingClassifier(estimator, n_estimators=3, random_state=0).fit(X, y).predict(X)
    )
    assert cross_val_score(estimator, X, y, cv=3).mean() > 0.6
    assert CalibratedClassifierCV(estimator, cv=2).fit(X, y).predict_proba(X).shape == (len(X), 3)


def test_workers_share_the_cpus():
    """loky tells its workers how many threads are theirs; that is heard where none is asked for."""
    share = max(1, joblib.cpu_count() // 2)
    script = (
        "import joblib, fastbatch\n"
        "print(joblib.Parallel(n_jobs=2)(joblib.delayed(fastbatch.get_num_threads)() for _ in range(2)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=_clean())
    assert all(int(n) <= share for n in re.findall(r"\d+", found.stdout))


def _clean() -> dict[str, str]:
    import os

    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return {**kept, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("matrix", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_rows(matrix):
    _, X, y = data("multiclass")
    X = np.where(X > 0.5, X, 0)
    dense, sparse = (MLPClassifier(random_state=0, max_iter=4).fit(rows, y) for rows in (X, matrix(X)))
    assert np.array_equal(dense.predict_proba(X), sparse.predict_proba(matrix(X)))
    assert sparse.partial_fit(matrix(X[:5]), y[:5]).score(matrix(X), y) > 0.3


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("extra", [{}, {"early_stopping": True}, {"shuffle": False, "dropout": 0.2, "norm": "batch"}])
@pytest.mark.parametrize(
    "loss", ["log_loss", fb.losses.CrossEntropy(weight=(1.0, 2.0, 0.5))], ids=["plain", "weighted"]
)
def test_a_sparse_x_that_memory_does_not_hold_is_dense_a_batch_at_a_time(monkeypatch, solver, extra, loss):
    _, X, y = data("multiclass")
    if solver == "lbfgs":
        extra = {}
    weight = np.random.default_rng(0).uniform(0.2, 2, len(X))
    estimator = MLPClassifier(random_state=0, max_iter=6, batch_size=32, solver=solver, loss=loss, **extra)
    X = scipy.sparse.csc_matrix(np.where(X > 0.5, X, 0))
    dense = clone(estimator).fit(X, y, weight)
    part = MLPClassifier(random_state=0, max_iter=2, batch_size=fb.batching.Grow(16, every=1))
    parts = [clone(part).fit(X, y).partial_fit(X, y)]
    monkeypatch.setattr("fastbatch.sklearn.sparse.DENSE_BYTES", 64)
    monkeypatch.setattr("fastbatch.sklearn.sparse.BLOCK_BYTES", 17 * 6 * 8)
    monkeypatch.setattr(fb.Trainer, "fit", None)
    found = clone(estimator).fit(X, y, weight)
    parts.append(clone(part).fit(X, y).partial_fit(X, y))
    exact = {"rtol": 1e-6} if solver == "lbfgs" else {"rtol": 0, "atol": 0}  # which sums in another order
    for one, other in ((dense, found), parts):
        assert all(np.allclose(a, b, **exact) for a, b in zip(one.coefs_, other.coefs_))
        assert one.loss_ == pytest.approx(other.loss_, rel=1e-12 if solver != "lbfgs" else 1e-6)
    if solver != "lbfgs":
        assert np.allclose(found.loss_curve_, dense.loss_curve_, rtol=1e-12)
        assert found.t_ == dense.t_
        assert found.n_iter_ == 6
    if "early_stopping" in extra:
        assert np.allclose(found.validation_scores_, dense.validation_scores_, rtol=1e-12)
        assert np.allclose(found.validation_loss_curve_, dense.validation_loss_curve_, rtol=1e-12)
    assert np.array_equal(found.predict_proba(X), found.predict_proba(X.toarray()))


@pytest.mark.parametrize("loss", ["log_loss", fb.losses.CrossEntropy(weight=(0.0, 1.0, 2.0))], ids=["rows", "classes"])
def test_batches_without_weight_are_in_no_loss(monkeypatch, loss):
    _, X, y = data("multiclass", 96)
    order = np.argsort(y)
    X, y, weight = scipy.sparse.csr_matrix(X[order]), y[order], np.ones(96)
    if loss == "log_loss":
        weight[16:32] = 0
    estimator = MLPClassifier(random_state=0, max_iter=4, batch_size=16, shuffle=False, loss=loss)
    dense = clone(estimator).fit(X, y, weight)
    monkeypatch.setattr("fastbatch.sklearn.sparse.DENSE_BYTES", 64)
    found = clone(estimator).fit(X, y, weight)
    assert np.allclose(found.loss_curve_, dense.loss_curve_, rtol=1e-12)
    if loss != "log_loss":
        for each in (dense, found):
            each.partial_fit(X[:20], y[:20])
        assert found.loss_ == dense.loss_ == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema": 0.9}, "ema: expected none with a sparse X of 0 MiB as a dense array"),
        ({"callbacks": (fb.LambdaCallback(),)}, "callbacks: expected none with a sparse X of 0 MiB as a dense array"),
        ({"batch_size": "noise"}, "batch_size: expected a number or a schedule with a sparse X"),
        ({"batch_size": fb.batching.NoiseScale()}, "batch_size: expected a number or a schedule with a sparse X"),
        ({"batch_size": "noise", "norm": "batch"}, "batch_size: expected a number or a schedule with norm='batch'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_refusal_leaves_the_estimator_as_it_was(monkeypatch, method, settings, words):
    _, X, y = data("multiclass")
    estimator = MLPClassifier(max_iter=3, norm=settings.get("norm"), warm_start=method == "partial_fit").fit(X, y)
    before, labels = [w.copy() for w in estimator.coefs_], list(estimator.classes_)
    if "norm" not in settings:
        monkeypatch.setattr("fastbatch.sklearn.sparse.DENSE_BYTES", 64)
        X = scipy.sparse.csr_matrix(X)
    if method == "partial_fit" and "ema" in settings:
        words = "expected ema=None"
    with pytest.raises(ValueError, match=words):
        getattr(estimator.set_params(**settings), method)(X, np.where(y == "a", "b", y) if method == "fit" else y)
    assert estimator.n_iter_ == 3
    assert list(estimator.classes_) == labels
    assert all(np.array_equal(a, w) for a, w in zip(before, estimator.coefs_))


def test_a_sparse_x_is_never_dense_as_a_whole(monkeypatch):
    monkeypatch.setattr("fastbatch.sklearn.sparse.DENSE_BYTES", 1 << 20)
    monkeypatch.setattr("fastbatch.sklearn.sparse.BLOCK_BYTES", 1 << 18)
    X = scipy.sparse.random(4000, 500, 0.01, format="csc", random_state=0)
    y = np.arange(4000) % 2
    tracemalloc.start()
    try:
        MLPClassifier(4, max_iter=1, early_stopping=True, random_state=0).fit(X, y).predict(X)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4000 * 500 * 8 / 4


def test_sparse_labels_come_back_sparse():
    name, X, y = data("multilabel")
    theirs, ours = both(name, X, scipy.sparse.csr_matrix(y), max_iter=5)
    assert scipy.sparse.issparse(ours.predict(X))
    assert np.array_equal(ours.predict(X).toarray(), theirs.predict(X).toarray())
    assert ours.score(X, y) == theirs.score(X, y)
    first = MLPClassifier().partial_fit(X, scipy.sparse.csr_matrix(y), classes=[0, 1, 2])
    assert scipy.sparse.issparse(first.predict(X))


def test_metadata_is_routed():
    """What may be asked for is scikit-learn's and the validation rows; how to call (validate=) is no metadata."""
    _, X, y = data("multiclass")
    weight = np.random.default_rng(0).uniform(0.2, 2, len(X))
    asked = {name: set(vars(getattr(MLPClassifier().get_metadata_routing(), name))["_requests"])
             for name in ("fit", "partial_fit", "predict", "predict_proba", "score")}  # fmt: skip
    assert asked == {
        "fit": {"sample_weight", "X_val", "y_val", "sample_weight_val"},
        "partial_fit": {"sample_weight", "classes"},
        "predict": set(), "predict_proba": set(), "score": {"sample_weight"},
    }  # fmt: skip
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = MLPClassifier(random_state=0, max_iter=5)
        estimator.set_fit_request(sample_weight=True, X_val=True, y_val=True).set_score_request(sample_weight=True)
        estimator.set_partial_fit_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), estimator)
        pipeline.transform_input = ["X_val"]
        pipeline.fit(X, y, sample_weight=weight, X_val=X[:40], y_val=y[:40])
    Z = StandardScaler().fit_transform(X)
    plain = MLPClassifier(random_state=0, max_iter=5).fit(Z, y, weight, X_val=Z[:40], y_val=y[:40])
    assert pipeline[-1].loss_curve_ == plain.loss_curve_
    assert pipeline[-1].validation_scores_ == plain.validation_scores_
    assert pipeline.score(X, y, sample_weight=weight) == plain.score(Z, y, weight)


def test_tables():
    pandas = pytest.importorskip("pandas", reason="tables need pandas or polars")
    _, X, y = data("binary")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    estimator = MLPClassifier(random_state=0, max_iter=5, early_stopping=True, scoring="roc_auc")
    estimator.fit(frame, pandas.Series(y), X_val=frame, y_val=y)
    plain = MLPClassifier(random_state=0, max_iter=5, early_stopping=True, scoring="roc_auc").fit(
        X, y, X_val=X, y_val=y
    )
    assert list(estimator.feature_names_in_) == list("abcdef")
    assert np.array_equal(estimator.predict_proba(frame), plain.predict_proba(X))
    with pytest.warns(UserWarning, match="feature names"):
        estimator.predict(X)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[list("bacdef")])


def test_polars():
    polars = pytest.importorskip("polars", reason="polars is not installed")
    _, X, y = data("multiclass")
    frame = polars.DataFrame({name: X[:, k] for k, name in enumerate("abcdef")})
    estimator = MLPClassifier(random_state=0, max_iter=3).fit(frame, polars.Series(y))
    assert np.array_equal(estimator.predict(frame), MLPClassifier(random_state=0, max_iter=3).fit(X, y).predict(X))
    names = getattr(StandardScaler().fit(frame), "feature_names_in_", None)  # what this scikit-learn makes of it
    assert np.array_equal(getattr(estimator, "feature_names_in_", None), names)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "bool"])
def test_rows_of_other_dtypes_are_trained_on_as_they_lie(dtype):
    _, X, y = data("multiclass")
    X = (8 * X).clip(0, 255).astype(dtype)
    ours = MLPClassifier(random_state=0, max_iter=5).fit(X, y)
    assert ours.coefs_[0].dtype == np.float64
    twin = MLPClassifier(random_state=0, max_iter=5).fit(X.astype(float), y)
    assert np.array_equal(ours.predict_proba(X), twin.predict_proba(X.astype(float)))


# -- what scikit-learn does not have -----------------------------------------------------------------------------------


def test_class_weight_is_a_row_weight():
    _, X, y = data("multiclass")
    table = {"a": 3.0, "c": 0.5}
    by_class = MLPClassifier(random_state=0, max_iter=5, class_weight=table).fit(X, y)
    by_row = MLPClassifier(random_state=0, max_iter=5).fit(X, y, [table.get(label, 1.0) for label in y])
    assert by_class.loss_curve_ == by_row.loss_curve_
    parts = [MLPClassifier(random_state=0, class_weight={"c": 4.0}), MLPClassifier(random_state=0)]
    parts[0].partial_fit(X[:6], y[:6], classes=["a", "b", "c"])
    parts[1].partial_fit(X[:6], y[:6], np.where(y[:6] == "c", 4.0, 1.0), classes=["a", "b", "c"])
    assert np.array_equal(parts[0].coefs_[0], parts[1].coefs_[0])


def test_balanced_weights_of_training_hold_for_validation():
    _, X, y = data("binary")
    X_val, y_val = X[:40], y[:40]
    rows = np.flatnonzero(~y)[:60].tolist() + np.flatnonzero(y)[:12].tolist()
    estimator = MLPClassifier(random_state=0, max_iter=5, class_weight="balanced")
    estimator.fit(X[rows], y[rows], X_val=X_val, y_val=y_val)
    weight = np.where(y_val, 72 / 24, 72 / 120)
    right = estimator.predict(X_val) == y_val
    assert estimator.validation_scores_[-1] == pytest.approx(np.average(right, weights=weight))
    expected = log_loss(y_val, estimator.predict_proba(X_val), sample_weight=weight)
    assert estimator.validation_loss_curve_[-1] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "values", "several values", "counts"])
def test_validation_rows_are_looked_at(kind):
    name, X, y = data(kind)
    weight = np.random.default_rng(0).uniform(0.1, 2, 50)
    settings = {"loss": "poisson"} if kind == "counts" else {}
    estimator = getattr(doors, name)(random_state=0, max_iter=4, **settings)
    estimator.fit(X[50:], y[50:], X_val=X[:50], y_val=y[:50], sample_weight_val=weight)
    assert len(estimator.validation_scores_) == len(estimator.validation_loss_curve_) == 4
    assert estimator.validation_scores_[-1] == pytest.approx(estimator.score(X[:50], y[:50], weight))
    alone = getattr(doors, name)(random_state=0, max_iter=4, **settings).fit(X[50:], y[50:])
    assert alone.loss_curve_ == estimator.loss_curve_
    assert alone.validation_scores_ is None


@pytest.mark.parametrize(
    "scoring", ["loss", "neg_log_loss", "balanced_accuracy", lambda e, X, y: -float(e.coefs_[0][0, 0])]
)
def test_early_stopping_watches_what_it_is_told(scoring):
    _, X, y = data("multiclass")
    estimator = MLPClassifier(random_state=0, max_iter=40, early_stopping=True, scoring=scoring, n_iter_no_change=3)
    estimator.set_params(learning_rate_init=0.05).fit(X[50:], y[50:], X_val=X[:50], y_val=y[:50])
    scores = estimator.validation_scores_
    assert estimator.best_validation_score_ == max(scores)
    if scoring == "loss":
        assert np.allclose(scores, -np.array(estimator.validation_loss_curve_))
        assert log_loss(y[:50], estimator.predict_proba(X[:50])) == pytest.approx(-max(scores))
    if scoring == "neg_log_loss":
        assert np.allclose(scores, -np.array(estimator.validation_loss_curve_))
    if callable(scoring):
        assert -estimator.coefs_[0][0, 0] == max(scores)


def test_layers_are_those_asked_for():
    _, X, y = data("multiclass")
    estimator = MLPClassifier((7, 5), ["gelu", "logistic"], norm="layer", dropout=0.25, max_iter=2).fit(X, y)
    assert estimator._model.layers == (
        fb.Dense(7, init="zeros"), fb.LayerNorm(), fb.Activation("gelu"), fb.Dropout(0.25),
        fb.Dense(5, init="zeros"), fb.LayerNorm(), fb.Activation("sigmoid"), fb.Dropout(0.25),
        fb.Dense(3, init="zeros"),
    )  # fmt: skip
    assert [w.shape for w in estimator.coefs_] == [(6, 7), (7, 5), (5, 3)]
    one, other = (MLPClassifier(random_state=1, dropout=0.3, max_iter=3).fit(X, y) for _ in range(2))
    assert one.loss_curve_ == other.loss_curve_


@pytest.mark.parametrize(
    ("kind", "loss", "activation"),
    [
        ("binary", fb.losses.CrossEntropy(label_smoothing=0.1), "softmax"),
        ("binary", fb.losses.Focal(), "logistic"),
        ("multiclass", "focal", "logistic"),
        ("multilabel", "focal", "logistic"),
        ("values", "absolute_error", "identity"),
        ("several values", fb.losses.Huber(delta=0.5), "identity"),
        ("counts", fb.losses.Tweedie(), "exp"),
    ],
    ids=str,
)
def test_other_losses(kind, loss, activation):
    name, X, y = data(kind)
    estimator = getattr(doors, name)(loss=loss, random_state=0, max_iter=150, learning_rate_init=0.01).fit(X, y)
    assert estimator.out_activation_ == activation
    assert estimator.score(X, y) > (0.25 if kind == "counts" else 0.85)
    if name == "MLPClassifier" and kind != "multilabel":
        assert np.allclose(estimator.predict_proba(X).sum(axis=1), 1)
        assert np.array_equal(estimator.classes_[estimator.predict_proba(X).argmax(axis=1)], estimator.predict(X))


def test_callbacks_see_the_validation():
    _, X, y = data("multiclass")
    stop = fb.EarlyStopping("val_loss", patience=2, min_delta=0)
    estimator = MLPClassifier(random_state=0, max_iter=400, tol=0, learning_rate_init=0.05, callbacks=[stop])
    estimator.fit(X[50:], y[50:], X_val=X[:50], y_val=y[:50])
    curve = estimator.validation_loss_curve_
    assert stop.best == min(curve)
    assert len(curve) == stop.best_epoch + 3 < 400
    assert log_loss(y[:50], estimator.predict_proba(X[:50])) == pytest.approx(stop.best)


def test_clipping_callbacks_dtype_threads_and_backends():
    _, X, y = data("values")
    seen = []
    hook = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    free = MLPRegressor(random_state=0, max_iter=4, callbacks=[hook]).fit(X, 100 * y)
    assert [logs["loss"] for logs in seen] == free.loss_curve_
    clipped = MLPRegressor(random_state=0, max_iter=4, max_grad_norm=0.1, solver="sgd").fit(X, 100 * y)
    assert np.linalg.norm(np.subtract(clipped.coefs_[0], _initial(X, y).coefs_[0])) < 0.01
    single = MLPRegressor(random_state=0, max_iter=4, dtype="float32").fit(X, y)
    assert single.coefs_[0].dtype == single.predict(X).dtype == np.float32
    one, two = (MLPRegressor(random_state=0, max_iter=4, n_jobs=n).fit(X, y) for n in (1, 2))
    assert one.loss_curve_ == two.loss_curve_
    slow = MLPRegressor(random_state=0, max_iter=4, backend="reference").fit(X, y)
    assert np.allclose(slow.loss_curve_, one.loss_curve_, rtol=1e-9)
    grown = MLPRegressor(random_state=0, max_iter=4, batch_size=fb.batching.Grow(16, every=2)).fit(X, y)
    assert len(grown.loss_curve_) == 4


def _initial(X, y):
    return MLPRegressor(random_state=0, max_iter=1, learning_rate_init=1e-30, solver="sgd").fit(X, y)


@pytest.mark.parametrize("early", [False, True])
def test_batches_follow_the_noise_scale(early):
    _, X, y = data("multiclass", 600)
    sizes = []
    seen = fb.LambdaCallback(on_epoch_begin=lambda epoch, logs: sizes.append(logs["batch_size"]))
    estimator = MLPClassifier(random_state=0, max_iter=30, batch_size="noise", early_stopping=early, tol=0)
    estimator.set_params(callbacks=[seen], learning_rate_init=0.01).fit(X, y)
    assert min(sizes) < max(sizes) <= 600
    assert sizes[0] != 200
    twin = clone(estimator).set_params(batch_size=fb.batching.NoiseScale(), callbacks=()).fit(X, y)
    assert twin.loss_curve_ == estimator.loss_curve_
    assert (
        clone(estimator)
        .set_params(batch_size=fb.batching.NoiseScale(min=64, max=64), callbacks=())
        .fit(X, y)
        .loss_curve_
        == clone(estimator).set_params(batch_size=64, callbacks=()).fit(X, y).loss_curve_
    )
    if not early:
        again = pickle.loads(pickle.dumps(twin))
        for each in (twin, again):
            each.partial_fit(X, y)
        assert twin.loss_curve_ == again.loss_curve_


def test_ema_leaves_the_average_behind():
    _, X, y = data("values")
    settings = {"random_state": 0, "shuffle": False, "batch_size": len(X), "hidden_layer_sizes": 5}
    average = _initial_of(settings, X, y)
    plain = MLPRegressor(**settings, max_iter=6)
    for _ in range(6):
        plain.partial_fit(X, y)
        average = [0.5 * a + 0.5 * w for a, w in zip(average, plain.coefs_)]
    averaged = MLPRegressor(**settings, max_iter=6, ema=0.5).fit(X, y)
    assert all(np.allclose(a, w, rtol=1e-12) for a, w in zip(average, averaged.coefs_))
    watched = MLPRegressor(**settings, max_iter=6, ema=0.5).fit(X, y, X_val=X, y_val=y)
    assert watched.validation_scores_[-1] == pytest.approx(watched.score(X, y))


def _initial_of(settings, X, y) -> list[np.ndarray]:
    found = MLPRegressor(**settings, max_iter=1, learning_rate_init=1e-30).fit(X, y)
    return [w.copy() for w in found.coefs_]


def test_callbacks_of_scikit_learn():
    callback = pytest.importorskip("sklearn.callback", reason="since scikit-learn 1.9")
    _, X, y = data("multiclass")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    estimator = MLPClassifier(random_state=0, max_iter=6).set_callbacks(monitor).fit(X, y)
    scores = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 6
    assert scores[-1] == pytest.approx(estimator.score(X, y))
    assert scores[0] < scores[-1]

    class Stop:
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...
        def on_fit_task_end(self, estimator, context):
            return context.task_name == "epoch" and context.task_id == 2

    assert MLPClassifier(max_iter=6).set_callbacks(Stop()).fit(X, y).n_iter_ == 3
    make_pipeline(StandardScaler(), MLPClassifier(max_iter=3)).set_callbacks(Stop()).fit(X, y)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "adm"}, "solver=.*'adm'; did you mean 'adam'"),
        ({"alpha": -1.0}, "alpha=.*>= 0, got -1.0"),
        ({"max_iter": 2.5}, "max_iter=.*integer >= 1, got 2.5"),
        ({"beta_1": 1.0}, r"beta_1=.*in \[0, 1\), got 1.0"),
        ({"n_iter_no_change": 0}, "n_iter_no_change="),
        ({"shuffle": 1}, "shuffle=.*True or False"),
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes: expected integers >= 1"),
        ({"hidden_layer_sizes": "ab"}, "hidden_layer_sizes"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"activation": ["relu", "relu"]}, "a list of 1, one per hidden layer"),
        ({"batch_size": "nosie"}, 'expected an integer >= 1, "full", "noise"'),
        ({"batch_size": 0}, "batch_size"),
        ({"norm": "group"}, "norm="),
        ({"dropout": 1.0}, "dropout="),
        ({"dropout": 0.1, "solver": "lbfgs"}, "dropout: expected solver 'sgd' or 'adam'"),
        ({"norm": "batch", "solver": "lbfgs"}, "norm='batch'"),
        ({"loss": "squared_error"}, "expected a loss for classification, got 'mse'"),
        ({"loss": fb.losses.CrossEntropy(ignore_index=3)}, "without ignore_index"),
        ({"loss": "hubert"}, "did you mean 'huber'"),
        ({"dtype": "float16"}, "dtype: expected one of float32, float64"),
        ({"backend": "gpu"}, "gpu"),
        ({"n_jobs": 0}, "n_jobs="),
        ({"ema": 2}, "ema="),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"scoring": 3}, "scoring="),
        ({"callbacks": [3]}, "callbacks: expected a list of fastbatch.Callback"),
        ({"verbose": "yes"}, "verbose="),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_parameters_are_named_as_scikit_learn_names_them(settings, message):
    _, X, y = data("multiclass")
    with pytest.raises((ValueError, fb.BackendError), match=message):
        MLPClassifier(**settings).fit(X, y)


def test_other_refusals():
    _, X, y = data("multiclass")
    with pytest.raises(ValueError, match=r"loss is the first parameter: MLPRegressor\(hidden_layer_sizes="):
        MLPRegressor((50, 50)).fit(X, X[:, 0])
    with pytest.raises(TypeError, match=r"'dropuot' is not a parameter of .*; did you mean 'dropout'"):
        MLPClassifier(dropuot=0.1)
    with pytest.raises(ValueError, match="X_val and y_val together"):
        MLPClassifier().fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="expected solver 'sgd' or 'adam' with it"):
        MLPClassifier(solver="lbfgs").fit(X, y, X_val=X, y_val=y)
    with pytest.raises(ValueError, match=r"classes \['a' 'b' 'c'\], got .*'z'.* in row 1"):
        MLPClassifier(max_iter=1).fit(X, y, X_val=X[:2], y_val=np.array(["a", "z"]))
    known = MLPClassifier().partial_fit(X, y, classes=["a", "b", "c"])
    for strange in (["d"], [7], [True]):
        with pytest.raises(ValueError, match=r"classes \['a' 'b' 'c'\], got .* in row 0"):
            known.partial_fit(X[:1], strange)
    with pytest.raises(ValueError, match=r"expected those known, \['a' 'b' 'c'\], got \['a' 'b'\]"):
        known.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="expected classes in the first call"):
        MLPClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match="expected a dict as class_weight, got 'balanced'"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="expected ema=None"):
        MLPRegressor(ema=0.9).partial_fit(X, X[:, 0])
    with pytest.raises(ValueError, match="expected the network of the fit before"):
        MLPRegressor(max_iter=1, warm_start=True).fit(X, X[:, 0]).set_params(hidden_layer_sizes=3).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="expected numbers >= 0 for poisson"):
        MLPRegressor("poisson").fit(X, X[:, 0])
    with pytest.warns(UserWarning, match="batch_size: 500 is more than the 150 samples"):
        MLPRegressor(max_iter=1, batch_size=500).fit(X, X[:, 0])


def test_divergence_is_said():
    _, X, y = data("values")
    settings = {"solver": "sgd", "learning_rate_init": 1e6, "activation": "identity", "random_state": 0}
    with pytest.raises(ValueError, match="non-finite parameter weights") as caught:
        MLPRegressor(**settings).fit(X, y)
    assert isinstance(caught.value, fb.DivergenceError)
    assert caught.value.step > 1
    stopped = MLPRegressor(**settings, early_stopping=True)
    with pytest.warns(RuntimeWarning, match="the best weights so far are kept"):
        stopped.fit(X, y)
    assert np.isnan(stopped.validation_scores_[-1])
    assert np.isfinite(stopped.predict(X)).all()


def test_warnings_and_prints(capsys):
    _, X, y = data("multiclass")
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\)"):
        MLPClassifier(max_iter=2, verbose=True).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Iteration 1", "Iteration 2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MLPClassifier(max_iter=200, tol=10.0, n_iter_no_change=2).fit(X, y)

    def interrupt(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        estimator = MLPClassifier(callbacks=[fb.LambdaCallback(on_epoch_end=interrupt)]).fit(X, y)
    assert estimator.n_iter_ == 3
    assert estimator.predict(X).shape == (len(X),)


# -- the module --------------------------------------------------------------------------------------------------------


def test_the_door_is_opened_by_its_import_only():
    script = "import sys, fastbatch; assert not {'sklearn', 'scipy', 'fastbatch.sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env=_clean())
    without = (
        "import sys; sys.modules['sklearn'] = None\n"
        "try: import fastbatch.sklearn\n"
        "except ImportError as error: assert \"pip install 'fastbatch[sklearn]'\" in str(error), error\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", without], check=True, env=_clean())


def test_digits():
    X, y = datasets.load_digits(return_X_y=True)
    estimator = MLPClassifier(random_state=0, max_iter=30).fit(X[:1400] / 16, y[:1400])
    assert estimator.score(X[1400:] / 16, y[1400:]) > 0.85
