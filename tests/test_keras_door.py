"""fastbatch.keras against Keras: predictions, weights, and twenty steps of what compile() was told.

Bounds: 1e-5 of the norm of predictions, in float64, too, which Keras narrows on the way; 1e-4 after twenty steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, difference

import fastbatch as fb
from fastbatch import ops

keras = pytest.importorskip("keras", reason="the door to Keras needs keras")

import fastbatch.keras as fbk  # noqa: E402

L = keras.layers
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

INPUTS, OUTPUTS, BATCH, STEPS = 7, 4, 16, 20
CLOSE = 1e-5


def _random(model, seed=0):
    """Weights that no initializer would draw, moving statistics among them."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.2, 1.2, w.shape) * rng.choice([-1, 1], (*w.shape[:-1], 1)) if w.ndim > 1
                       else rng.uniform(0.2, 1.2, w.shape) for w in model.get_weights()])  # fmt: skip
    return model


def _sequential(dtype="float32", end=None):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    layers = [
        L.Input((INPUTS,), dtype=dtype), L.Dense(9, activation="tanh"),
        L.BatchNormalization(momentum=0.8, epsilon=1e-2), L.Dropout(0.3),
        L.Dense(8, use_bias=False), L.LayerNormalization(), L.Activation("gelu"), L.BatchNormalization(scale=False),
        L.LayerNormalization(center=False), L.Dense(OUTPUTS, activation=end),
    ]  # fmt: skip
    model = keras.Sequential(layers)
    keras.config.set_dtype_policy(before)
    return _random(model)


def _functional():
    start = L.Input((INPUTS,))
    inner = keras.Sequential([L.Dense(5, activation="relu"), L.ELU()], name="inner")
    return _random(
        keras.Model(start, L.ReLU()(L.Dense(OUTPUTS)(inner(L.LeakyReLU(negative_slope=0.01)(L.Dense(6)(start))))))
    )


def _x(dtype="float32", rows=BATCH):
    return np.random.default_rng(1).standard_normal((rows, INPUTS)).astype(dtype)


def _keras_predict(model, x):
    x = keras.ops.convert_to_tensor(x, dtype=x.dtype.name)  # else in Keras' default dtype
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_from_keras_and_back(dtype):
    theirs, x = _sequential(dtype), _x(dtype)
    model = fbk.from_keras(theirs)
    assert model.dtype == dtype
    expected = _keras_predict(theirs, x)
    assert difference(model.predict(x), expected) < CLOSE
    twin = fbk.to_keras(model)
    assert difference(_keras_predict(twin, x), expected) < CLOSE
    again = fbk.from_keras(twin)
    assert_same_bits(again.parameters, model.parameters)
    assert_same_bits(again.buffers, model.buffers)
    theirs.layers[0].set_weights([0 * w for w in theirs.layers[0].get_weights()])
    assert difference(model.predict(x), expected) < CLOSE  # copies


def test_functional_chains_and_models_in_models():
    theirs, x = _functional(), _x()
    assert difference(fbk.from_keras(theirs).predict(x), _keras_predict(theirs, x)) < CLOSE


def test_layers_that_belong_to_several_models(tmp_path):
    """A model read from a file, the front part of one, and one whose layers another one has, too."""
    theirs, x = _sequential(), _x()
    theirs.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_same_bits(fbk.from_keras(again).parameters, fbk.from_keras(theirs).parameters)
    front = keras.Model(theirs.inputs, theirs.layers[3].output)
    assert difference(fbk.from_keras(front).predict(x), _keras_predict(front, x)) < CLOSE
    start = L.Input((INPUTS,))
    other = keras.Model(start, theirs.layers[0](start))
    for model in (other, theirs):
        assert difference(fbk.from_keras(model).predict(x), _keras_predict(model, x)) < CLOSE


def test_images_are_flattened():
    theirs = _random(keras.Sequential([L.Input((3, 4, 2)), L.Flatten(), L.Dense(5, activation="relu"), L.Dense(2)]))
    x = np.random.default_rng(0).standard_normal((6, 3, 4, 2)).astype(np.float32)
    model = fbk.from_keras(theirs)
    assert difference(model.predict(x.reshape(6, -1)), _keras_predict(theirs, x)) < CLOSE
    model.parameters[:] *= 0.5
    assert difference(_keras_predict(fbk.to_keras(model, into=theirs), x), model.predict(x.reshape(6, -1))) < CLOSE


@pytest.mark.parametrize("name", [name for name in ops.ACTIVATIONS if name != "gelu_tanh"])
def test_every_activation(name):
    model = fb.Sequential([fb.Dense(6, name), fb.Dense(3), fb.Activation(name)], input_size=INPUTS, seed=3)
    theirs, x = fbk.to_keras(model), 3 * _x()
    assert difference(_keras_predict(theirs, x), model.predict(x)) < CLOSE
    assert difference(fbk.from_keras(theirs).predict(x), model.predict(x)) < CLOSE


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_probabilities_at_the_end(end):
    theirs, x = _sequential(end=end), _x()
    if end == "sigmoid":
        theirs.compile(loss="binary_crossentropy")
    model = fbk.from_keras(theirs)
    assert difference(model.predict_proba(x), _keras_predict(theirs, x)) < CLOSE
    twin = fbk.to_keras(model, probabilities=True)
    assert difference(_keras_predict(twin, x), _keras_predict(theirs, x)) < CLOSE
    for w, _ in model.weights:
        w *= 0.5
    assert fbk.to_keras(model, into=theirs) is theirs
    assert difference(model.predict_proba(x), _keras_predict(theirs, x)) < CLOSE
    with pytest.raises(fb.ShapeError, match="into="):
        fbk.to_keras(fb.MLP([INPUTS, OUTPUTS]), into=theirs)
    model.norms[2][0][:] = 2
    with pytest.raises(fb.ArgumentError, match=r"into= holds no norm2\.gamma"):
        fbk.to_keras(model, into=theirs)


def _settings(activation="tanh", dropout=0.2, eps=1e-3, momentum=0.1, ghosts=None, last="identity"):
    norms = [fb.LayerNorm(eps), fb.Activation(activation), fb.Dropout(dropout)]
    more = [fb.Dense(4), fb.BatchNorm(eps, momentum, ghosts), fb.Dense(3, last)]
    return fb.Sequential([fb.Dense(6, "relu"), *norms, *more], input_size=INPUTS, seed=2)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"activation": "sigmoid"}, "expected .*sigmoid.* in place 3, activations counted, got .*tanh"),
        ({"activation": "identity"}, "expected Dropout.* in place 3, activations counted, got .*tanh"),
        ({"dropout": 0.3}, r"expected Dropout.*0\.3.* got Dropout.*0\.2"),
        ({"dropout": 0}, "expected Dense.* got Dropout"),
        ({"eps": 1e-5}, r"expected LayerNorm.*1e-05.* got LayerNorm.*0\.001"),
        ({"momentum": 0.2}, r"expected BatchNorm.*momentum=0\.2.* got BatchNorm.*momentum=0"),
        ({"ghosts": 4}, "expected BatchNorm.*ghost_size=4.* got BatchNorm.*ghost_size=None"),
        ({"last": "relu"}, "expected .*relu.* in place 8, activations counted, got none"),
        ({"last": "sigmoid"}, "expected .*sigmoid.* in place 8, activations counted, got none"),
    ],
)
def test_into_a_network_that_does_something_else(other, words):
    theirs = fbk.to_keras(_settings())
    before = theirs.get_weights()
    with pytest.raises(fb.ArgumentError, match=rf"^to_keras\(into=\): {words}"):
        fbk.to_keras(_settings(**other), into=theirs)
    assert all(map(np.array_equal, theirs.get_weights(), before))


@pytest.mark.parametrize("last", ["identity", "relu", "sigmoid"])
def test_into_a_network_of_the_same_settings(last):
    model = _settings(last=last)
    theirs = fbk.to_keras(model)
    model.parameters[:] *= 0.5
    assert difference(_keras_predict(fbk.to_keras(model, into=theirs), _x()), model.predict(_x())) < CLOSE


O = keras.optimizers
SETTINGS = {
    "sgd": (lambda: O.SGD(0.05, weight_decay=0.1), "mse", "values"),
    "nesterov": (lambda: O.SGD(0.05, momentum=0.9, nesterov=True), "mean_absolute_error", "values"),
    "adam": (lambda: O.Adam(0.01), "sparse_categorical_crossentropy", "labels"),
    "adam, decay": (lambda: O.Adam(0.01, weight_decay=0.1, amsgrad=True), keras.losses.Huber(delta=0.5), "values"),
    "adamw": (lambda: O.AdamW(0.01), keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "one-hot"),
    "nadam": (lambda: O.Nadam(0.01, weight_decay=0.1), "binary_crossentropy", "binary"),
    "rmsprop": (lambda: O.RMSprop(0.01, momentum=0.5, centered=True), keras.losses.mean_squared_error, "values"),
    "adagrad": (lambda: O.Adagrad(0.05), keras.losses.BinaryCrossentropy(from_logits=True), "binary logits"),
    "lion": (
        lambda: O.Lion(0.003, weight_decay=0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), "logits",
    ),
    "clipped": (lambda: O.Adam(0.01, clipvalue=0.02), "mse", "values"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_twenty_steps_of_what_compile_was_told(name):
    """Keras' loss and Keras' optimizer, on gradients of ours, which every backend of Keras can do."""
    optimizer, loss, kind = SETTINGS[name]
    rng = np.random.default_rng(2)
    end = {"labels": "softmax", "one-hot": "softmax", "binary": "sigmoid"}.get(kind, "linear")
    layers = [L.Dense(9, activation="tanh"), L.LayerNormalization(), L.Dense(OUTPUTS, activation=end)]
    theirs = _random(keras.Sequential([L.Input((INPUTS,)), *layers]))
    theirs.compile(optimizer=optimizer(), loss=loss, metrics=["mae"] if kind == "values" else [])
    trainer = fbk.trainer_from_keras(theirs)
    loss_fn = keras.losses.get(loss)
    for _ in range(STEPS):
        x = rng.standard_normal((BATCH, INPUTS)).astype(np.float32)
        labels = rng.integers(0, OUTPUTS, BATCH)
        if kind in ("labels", "logits"):
            y = labels
        elif kind == "one-hot":
            y = np.eye(OUTPUTS, dtype=np.float32)[labels]
        else:
            y = (rng.standard_normal if kind == "values" else lambda shape: rng.integers(0, 2, shape))((BATCH, OUTPUTS))
            y = y.astype(np.float32)
        value = np.mean(keras.ops.convert_to_numpy(loss_fn(y, theirs(x))))
        _, flat = trainer.gradients(x, y)
        assert trainer.step(x, y) == pytest.approx(value, rel=1e-4)
        ends = np.cumsum([v.value.shape[0] * (v.value.shape[1] if len(v.shape) > 1 else 1) for v in theirs.variables])
        pieces = zip(np.split(flat, ends[:-1]), theirs.trainable_variables)
        grads = [keras.ops.convert_to_tensor(piece.reshape(v.shape)) for piece, v in pieces]
        theirs.optimizer.apply(grads, theirs.trainable_variables)
    for ours, other in zip(trainer.model.get_weights(), fbk.from_keras(theirs).get_weights()):
        for part, exact in zip(ours, other):
            assert difference(part, exact) < 1e-4
    fbk.to_keras(trainer.model, into=theirs)  # and back
    got = trainer.model.predict_proba(x) if end != "linear" else trainer.predict(x)
    assert difference(_keras_predict(theirs, x), got) < 1e-5


@pytest.mark.exhaustive  # imports Keras and torch once more; test_semantics has 50 updates of its optimizers
def test_fifty_steps_of_keras_own_training():
    """By its backend torch, in a process of its own: the one here is numpy, which cannot train.

    Its moving variance is of n where ours is of n - 1: 1/32 for each of the 50 steps, at 1 % each.
    """
    pytest.importorskip("torch", reason="the backend by which Keras trains")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "keras_training.py"], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert max(found["losses"], found["weights"]) < 1e-4, name
        assert found["variances"] == 0 if name != "sgd" else 5e-3 < found["variances"] < 2e-2


def test_limits_metrics_and_what_is_not_trainable():
    theirs = _sequential()
    theirs.layers[0].trainable = False
    theirs.layers[4].trainable = False
    theirs.compile(
        optimizer=O.Adam(1e-2, global_clipnorm=0.5, gradient_accumulation_steps=2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1), metrics=["acc"],
    )  # fmt: skip
    trainer = fbk.trainer_from_keras(theirs, num_threads=1, seed=3)
    assert (trainer.max_grad_norm, trainer.gradient_accumulation_steps, list(trainer.metrics)) == (0.5, 2, ["accuracy"])
    assert trainer.loss == fb.losses.CrossEntropy(ignore_index=1, semantics="keras")
    assert trainer.optimizer.semantics == "keras"
    before = trainer.model.get_weights()
    trainer.step(_x(), np.arange(BATCH) % OUTPUTS)
    moved = [
        [bool((a != b).any()) for a, b in zip(now, then) if a is not None]
        for now, then in zip(trainer.model.get_weights(), before)
    ]
    assert moved[0] == [False, False]
    assert moved[3] == [False, False]
    assert moved[4] == [False, True, True, True]  # scale=False
    assert moved[5] == [True, False]  # center=False


S = O.schedules
RATES = {
    "exponential": lambda: S.ExponentialDecay(0.1, 10, 0.5),
    "exponential in fractions": lambda: S.ExponentialDecay(0.1, 2.5, 0.5),
    "in stairs": lambda: S.ExponentialDecay(0.1, 10, 0.5, staircase=True),
    "in stairs of a float": lambda: S.ExponentialDecay(0.1, 10.0, 0.5, staircase=True),
    "cosine": lambda: S.CosineDecay(0.1, 15, alpha=0.2),
}


@pytest.mark.parametrize("name", RATES)
def test_schedules(name):
    theirs = _told_of(optimizer=O.SGD(RATES[name]()))
    ours, exact = fbk.trainer_from_keras(theirs).optimizer, RATES[name]()
    for t in range(25):
        assert ours.rate(t) == pytest.approx(float(keras.ops.convert_to_numpy(exact(t))), rel=1e-5)


def test_metrics_and_parameters_that_do_not_decay():
    optimizer = O.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
    metrics = [keras.metrics.MeanAbsoluteError(name="mine")]
    theirs = _told_of(
        L.BatchNormalization(), optimizer=optimizer, metrics=metrics, weighted_metrics=["mae", "mean_squared_error"]
    )
    trainer = fbk.trainer_from_keras(theirs)
    assert list(trainer.metrics) == ["mae", "mse"]
    before = [[part.copy() for part in parts] for parts in trainer.model.get_weights()]
    x = np.zeros((BATCH, INPUTS), np.float32)  # no gradient but of what is added
    trainer.step(x, np.zeros((BATCH, 4), np.float32))
    (w, b), (gamma, *_) = trainer.model.get_weights()
    assert np.allclose(w, before[0][0] * (1 - 0.01 * 0.5))
    assert_same_bits(gamma, before[1][0])
    assert_same_bits(b, before[0][1])
    for metric, count in (("sparse_top_k_categorical_accuracy", "top_k"), ("acc", "accuracy")):
        labels = _told_of(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean"), metrics=[metric]
        )
        assert list(fbk.trainer_from_keras(labels).metrics) == [count]
    classes = [keras.metrics.SparseCategoricalAccuracy(), keras.metrics.SparseTopKCategoricalAccuracy(k=5)]
    labels = _told_of(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=classes)
    assert list(fbk.trainer_from_keras(labels).metrics) == ["accuracy", "top_k"]


def test_training_here_and_evaluating_there_and_back():
    """In turn: loss and accuracy are those of the other side."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, INPUTS)).astype(np.float32)
    y = x[:, :3].argmax(axis=1)
    theirs = keras.Sequential([L.Input((INPUTS,)), L.Dense(16, activation="relu"), L.BatchNormalization(),
                               L.Dropout(0.1), L.Dense(3, activation="softmax")])  # fmt: skip
    theirs.compile(O.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
    for _ in range(2):
        trainer = fbk.trainer_from_keras(theirs)
        before = trainer.evaluate(x, y)["loss"]
        trainer.fit(x, y, batch_size=25, epochs=4, verbose=0)
        fbk.to_keras(trainer.model, into=theirs)
        probabilities = _keras_predict(theirs, x)
        found = trainer.evaluate(x, y)
        assert found["loss"] < before
        assert found["loss"] == pytest.approx(-np.log(probabilities[np.arange(200), y]).mean(), rel=1e-4)
        assert found["accuracy"] == (probabilities.argmax(axis=1) == y).mean()
        theirs.set_weights([0.9 * w for w in theirs.get_weights()])  # as Keras may do between


def _of(*layers):
    return keras.Sequential([L.Input((INPUTS,)), L.Dense(4), *layers])


def _twice():
    dense = L.Dense(INPUTS)
    start = L.Input((INPUTS,))
    return keras.Model(start, dense(dense(start)))


def _skip():
    start = L.Input((INPUTS,))
    return keras.Model(start, L.Add()([L.Dense(INPUTS)(start), start]))


def _two_outputs():
    start = L.Input((INPUTS,))
    middle = L.Dense(4)(start)
    return keras.Model(start, [L.Dense(2)(middle), L.Dense(3)(middle)])


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


REFUSED = {
    "conv": (lambda: _of(L.Reshape((2, 2)), L.Conv1D(3, 1)), ["reshape", "got Reshape"]),
    "slope": (lambda: _of(L.LeakyReLU(name="leak")), ["leak (LeakyReLU)", "negative_slope=0.01", "0.3"]),
    "activation": (lambda: _of(L.Activation("mish")), ["activation", "mish", "tanh"]),
    "softmax inside": (lambda: _of(L.Softmax(), L.Dense(2)), ["softmax", "at the end only"]),
    "ceiling": (lambda: _of(L.ReLU(max_value=6)), ["max_value=None", "6"]),
    "noise shape": (lambda: _of(L.Dropout(0.5, noise_shape=(None, 1))), ["noise_shape=None"]),
    "twice": (_twice, ["each layer used once"]),
    "skip": (_skip, ["each layer used once"]),
    "own": (Own, ["expected Sequential or a functional chain, got the class Own"]),
    "not a model": (lambda: L.Dense(3), ["expected a keras.Model, got Dense"]),
    "not built": (lambda: keras.Sequential([L.Dense(3)]), ["inputs (n, I)"]),
    "images": (lambda: keras.Sequential([L.Input((2, 3)), L.Dense(3)]), ["inputs (n, I)", "(None, 2, 3)"]),
    "scale": (lambda: _of(L.Rescaling(0.1, name="pixels")), ["pixels (Rescaling)", "set trainer.input_scale"]),
    "standardize": (lambda: _of(L.Normalization(mean=0.0, variance=2.0)), ["(Normalization)", "call it on X"]),
    "two outputs": (_two_outputs, ["each layer used once"]),
    "no dense": (lambda: keras.Sequential([L.Input((2,)), L.ReLU()]), ["at least one Dense"]),
    "mixed": (lambda: _of(L.Dense(2, dtype="mixed_float16", name="half")), ["half (Dense)", "float16 on float32"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(fb.FastbatchError) as caught:
        fbk.from_keras(make())
    for word in ("from_keras", *words):
        assert word in str(caught.value)


def _compiled(**settings):
    model = _of(L.Dense(3, kernel_regularizer=settings.pop("regularizer", None), activation=settings.pop("end", None)))
    model.compile(**{"optimizer": O.SGD(0.1), "loss": "mse", **settings})
    return model


def _told_of(*layers, **settings):
    model = _of(*layers)
    model.compile(**{"optimizer": O.SGD(0.1), "loss": "mse", **settings})
    return model


TOLD = {
    "nothing": (lambda: _of(L.Dense(3)), ["expected a compiled model"]),
    "regularizer": (lambda: _compiled(regularizer="l2"), ["kernel_regularizer=None"]),
    "loss": (lambda: _compiled(loss="log_cosh"), ["loss", "log_cosh", "MeanSquaredError"]),
    "own loss": (lambda: _compiled(loss=lambda a, b: a), ["loss", "<lambda>"]),
    "sum": (lambda: _compiled(loss=keras.losses.MeanSquaredError(reduction="sum")), ["reduction", "'sum'"]),
    "probabilities": (lambda: _compiled(loss="sparse_categorical_crossentropy"), ["from_logits=True", "no softmax"]),
    "logits": (
        lambda: _compiled(loss=keras.losses.CategoricalCrossentropy(from_logits=True), end="softmax"),
        ["from_logits=False", "ends with softmax"],
    ),
    "smoothing": (
        lambda: _compiled(loss=keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)),
        ["label_smoothing=0"],
    ),
    "optimizer": (lambda: _compiled(optimizer="adadelta"), ["optimizer", "Adadelta", "RMSprop"]),
    "schedule": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.PiecewiseConstantDecay([10], [0.1, 0.01]))),
        ["ExponentialDecay or CosineDecay", "PiecewiseConstantDecay", "schedules has others"],
    ),
    "warmup": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.CosineDecay(0.0, 9, warmup_target=0.1, warmup_steps=3))),
        ["without warmup", "'warmup_steps': 3"],
    ),
    "clipnorm": (lambda: _compiled(optimizer=O.SGD(0.1, clipnorm=1.0)), ["clipnorm", "global_clipnorm is max_grad"]),
    "ema": (lambda: _compiled(optimizer=O.SGD(0.1, use_ema=True)), ["use_ema"]),
    "metric": (lambda: _compiled(metrics=["auc"]), ["metrics", "auc", "accuracy"]),
    "equality": (lambda: _compiled(metrics=[keras.metrics.Accuracy()]), ["metrics", "Accuracy()", "equal to their"]),
    "another class of metrics": (lambda: _compiled(metrics=[keras.metrics.AUC()]), ["metrics", "auc", "accuracy"]),
    "no decay": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.ExponentialDecay(0.1, 10, 0))),
        ["ExponentialDecay", "decay_rate above 0, got 0"],
    ),
    "fractional stairs": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.ExponentialDecay(0.1, 2.5, 0.5, staircase=True))),
        ["ExponentialDecay", "decay_steps of an integer >= 1, got 2.5"],
    ),
    "fractional cosine": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.CosineDecay(0.1, 2.5))),
        ["CosineDecay", "decay_steps of an integer >= 1, got 2.5"],
    ),
    "rising cosine": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.CosineDecay(0.1, 5, alpha=2.0))),
        ["CosineDecay", "alpha from 0 to 1, got 2.0"],
    ),
    "settings of a metric": (
        lambda: _compiled(metrics=[keras.metrics.BinaryAccuracy(threshold=0.3)]), ["binary_accuracy", "0.3"],
    ),
    "metrics of several outputs": (lambda: _compiled(metrics=[["mae"]]), ["metrics", "['mae']"]),
    "weights of losses": (lambda: _compiled(loss_weights=2.0), ["loss_weights=None, got 2.0"]),
    "statistics": (
        lambda: _told_of(L.BatchNormalization(trainable=False, name="still")),
        ["still", "moving statistics in training"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_settings_that_are_refused(name):
    make, words = TOLD[name]
    with pytest.raises(fb.ArgumentError) as caught:
        fbk.trainer_from_keras(make())
    for word in ("trainer_from_keras", *words):
        assert word in str(caught.value)


GIVEN = {
    "loss": (lambda: _compiled(loss="log_cosh"), ops.losses.MAE(semantics="keras")),
    "optimizer": (
        lambda: _compiled(optimizer=O.SGD(O.schedules.PiecewiseConstantDecay([10], [0.1, 0.01]))),
        ops.optimizers.Adam(lr=fb.schedules.Step(0.1, 5), semantics="keras"),
    ),
    "another optimizer": (lambda: _compiled(optimizer="adadelta"), ops.optimizers.SGD(lr=0.1, semantics="keras")),
    "metrics": (lambda: _compiled(metrics=["auc"]), ["mae"]),
    "max_grad_norm": (lambda: _compiled(optimizer=O.SGD(0.1, clipnorm=1.0)), 2.0),
    "clip_value": (lambda: _compiled(optimizer=O.SGD(0.1, clipvalue=1.0)), 0.5),
    "gradient_accumulation_steps": (lambda: _compiled(optimizer=O.SGD(0.1, gradient_accumulation_steps=2)), 3),
    "semantics": (lambda: _compiled(optimizer=O.SGD(0.1)), "torch"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_is_not_read_from_the_model(name):
    make, value = GIVEN[name]
    keyword = name.removeprefix("another ")
    trainer = fbk.trainer_from_keras(make(), **{keyword: value})
    assert (list(trainer.metrics) if keyword == "metrics" else getattr(trainer, keyword)) == value
    trainer.step(_x(), np.ones((BATCH, 3), np.float32))


class _NoConfig(O.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def test_a_schedule_that_cannot_be_written_down():
    theirs = _compiled(optimizer=O.SGD(_NoConfig()), metrics=[keras.metrics.mean_squared_error], loss_weights=2.0)
    trainer = fbk.trainer_from_keras(theirs, optimizer=ops.optimizers.SGD(lr=0.1), loss="mse")
    assert list(trainer.metrics) == ["mse"]


def test_models_that_keras_does_not_have():
    for layers, word in (
        ([fb.Dense(2, "gelu_tanh")], "gelu_tanh"),
        ([fb.Dense(2), fb.BatchNorm(ghost_size=4)], "ghost"),
    ):
        with pytest.raises(fb.ArgumentError, match=f"to_keras: layer .*{word}"):
            fbk.to_keras(fb.Sequential(layers, input_size=2))
    with pytest.raises(fb.ArgumentError, match=r"probabilities=True.*None"):
        fbk.to_keras(fb.MLP([2, 3]), probabilities=True)
    with pytest.raises(fb.ArgumentError, match="got Sequential"):
        fbk.to_keras(_of())
