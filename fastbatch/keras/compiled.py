"""What a model of Keras was told by compile(), as a trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from .. import ops
from ..errors import ArgumentError, as_float, named_keywords, unknown_name
from ..layers import layout
from ..schedules import Cosine, Exponential, Schedule, Step
from ..training import Trainer
from .models import Found, import_keras, model_of, read

__all__ = ["trainer_from_keras"]

METRICS = {
    "accuracy": "accuracy", "acc": "accuracy", "sparse_categorical_accuracy": "accuracy",
    "categorical_accuracy": "accuracy", "binary_accuracy": "accuracy", "mse": "mse", "mean_squared_error": "mse",
    "mae": "mae", "mean_absolute_error": "mae", "top_k_categorical_accuracy": "top_k",
    "sparse_top_k_categorical_accuracy": "top_k",
}  # fmt: skip
LOSSES = (
    "MeanSquaredError", "MeanAbsoluteError", "Huber", "SparseCategoricalCrossentropy", "CategoricalCrossentropy",
    "BinaryCrossentropy",
)  # fmt: skip
# All are a mean; what they divide by differs under sample_weight, which here is the total weight.
REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
# Class there: class here, and its keywords by their names there.
_ADAM = {"beta_1": "", "beta_2": "", "epsilon": "eps", "amsgrad": "amsgrad"}
OPTIMIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "SGD": ("sgd", {"momentum": "momentum", "nesterov": "nesterov"}),
    "Adam": ("adam", _ADAM),
    "AdamW": ("adamw", _ADAM),
    "Nadam": ("nadam", {"beta_1": "", "beta_2": "", "epsilon": "eps"}),
    "RMSprop": ("rmsprop", {"rho": "alpha", "momentum": "momentum", "epsilon": "eps", "centered": "centered"}),
    "Adagrad": ("adagrad", {"initial_accumulator_value": "initial_accumulator_value", "epsilon": "eps"}),
    "Lion": ("lion", {"beta_1": "", "beta_2": ""}),
}


@named_keywords
def trainer_from_keras(model, **options: Any) -> Trainer:
    """A trainer of :func:`from_keras` of a compiled model: its loss, optimizer and metrics, and what is not trainable.

    The optimizer begins anew; its formula is Keras' (``semantics="keras"``).

    Parameters
    ----------
    model : keras.Model
        Compiled with mean_squared_error, mean_absolute_error, huber, or a sparse, categorical or binary crossentropy;
        SGD, Adam, AdamW, Nadam, RMSprop, Adagrad or Lion, whose learning rate is a number, ExponentialDecay or
        CosineDecay; metrics that are accuracy, top_k, mse or mae, by name or as objects.
    **options
        Keywords of :class:`fastbatch.Trainer`, which stand for what the model says of them; that is not read then. An
        `optimizer` has its own `frozen`, too.

    Returns
    -------
    Trainer

    Raises
    ------
    ArgumentError
        For a model that is not compiled, or settings that fastbatch does not have; names them.
    """
    keras, found = import_keras(), read(model, "trainer_from_keras")
    if not model.compiled:
        raise ArgumentError("trainer_from_keras: expected a compiled model, got one without compile()")
    for path, part, _ in found.holders:
        for name in ("kernel_regularizer", "bias_regularizer", "gamma_regularizer", "beta_regularizer",
                     "kernel_constraint", "bias_constraint", "activity_regularizer"):  # fmt: skip
            if getattr(part, name, None) is not None:
                raise ArgumentError(f"trainer_from_keras: {path}: expected {name}=None, got {getattr(part, name)!r}")
        if isinstance(part, keras.layers.BatchNormalization) and not part.trainable:
            raise ArgumentError(
                f"trainer_from_keras: {path}: expected trainable=True, got False, for which Keras normalizes by moving "
                "statistics in training, too"
            )
    told = model._compile_config.config  # as it was given: get_compile_config() asks all of it for a get_config
    optimizer = model.optimizer
    parts: dict[str, Callable[[], Any]] = {
        "loss": lambda: _loss(keras, model.loss, told["loss_weights"], found),
        "optimizer": lambda: _optimizer(keras, optimizer, found),
        "metrics": lambda: _metrics(keras, told),
        "max_grad_norm": lambda: _max_grad_norm(optimizer),
        "clip_value": lambda: optimizer.clipvalue,
        "gradient_accumulation_steps": lambda: optimizer.gradient_accumulation_steps or 1,
        "semantics": lambda: "keras",
    }
    return Trainer(model_of(found), **{name: part() for name, part in parts.items() if name not in options}, **options)


def _metrics(keras: Any, told: dict[str, Any]) -> list[str]:
    given = [*_flat(told["metrics"]), *_flat(told["weighted_metrics"])]
    return list(dict.fromkeys(_metric(keras, metric) for metric in given))


def _flat(metrics) -> list:
    return [] if metrics is None else list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _metric(keras: Any, given) -> str:
    where = "trainer_from_keras: metrics"
    if (name := getattr(given, "__name__", "")) and getattr(keras.metrics, name, None) is given:
        given = name
    if isinstance(given, str) and given in METRICS:
        return METRICS[given]
    name = type(given).__name__
    if not isinstance(given, keras.metrics.Metric) or type(given) is not getattr(keras.metrics, name, None):
        raise unknown_name(
            where, getattr(given, "__name__", given if isinstance(given, (str, list)) else name), METRICS
        )
    if name == "Accuracy":
        raise ArgumentError(
            f"{where}: expected 'accuracy', got Accuracy(), which counts outputs that are equal to their targets"
        )
    key = re.sub(r"(?<=[a-zK])(?=[A-Z])", "_", name).lower()
    if key not in METRICS:
        raise unknown_name(where, key, METRICS)
    settings = {key: value for key, value in given.get_config().items() if key not in ("name", "dtype")}
    if settings.items() - {"threshold": 0.5, "k": 5}.items():
        raise ArgumentError(f"{where} ({key}): expected Keras' defaults, got {settings}")
    return METRICS[key]


def _loss(keras: Any, given, weights, found: Found) -> ops.Loss:
    where = "trainer_from_keras: loss"
    if weights is not None:
        raise ArgumentError(f"trainer_from_keras: expected loss_weights=None, got {weights!r}")
    loss = keras.losses.get(given) if isinstance(given, str) else given
    if not isinstance(loss, keras.losses.Loss):  # a function stands for the class of its name
        loss = next((cls() for name in LOSSES if (cls := getattr(keras.losses, name))().fn is loss), loss)
    name = type(loss).__name__
    if name not in LOSSES:
        raise unknown_name(where, getattr(given, "__name__", given if isinstance(given, str) else name), LOSSES)
    config = loss.get_config()
    if config["reduction"] not in REDUCTIONS:
        expected = " or ".join(map(repr, REDUCTIONS))
        raise ArgumentError(f"{where} ({name}): expected reduction={expected}, got {config['reduction']!r}")
    if "from_logits" in config:
        end = "sigmoid" if name == "BinaryCrossentropy" else "softmax"
        if config["from_logits"] == (found.probabilities == end):
            got = f"a model that ends with {found.probabilities or 'no ' + end}"
            raise ArgumentError(f"{where} ({name}): expected from_logits={not config['from_logits']} of {got}")
    if name == "BinaryCrossentropy":
        if config["label_smoothing"]:
            raise ArgumentError(f"{where} ({name}): expected label_smoothing=0, got {config['label_smoothing']}")
        return ops.losses.BCE()
    if name == "Huber":
        return ops.losses.Huber(loss._fn_kwargs["delta"])  # its config forgets it
    if name.endswith("Crossentropy"):
        return ops.losses.CrossEntropy(
            label_smoothing=config.get("label_smoothing", 0.0), ignore_index=config.get("ignore_class")
        )
    return ops.losses.MSE() if name == "MeanSquaredError" else ops.losses.MAE()


def _max_grad_norm(optimizer) -> float | None:
    if optimizer.clipnorm:
        raise ArgumentError(
            f"trainer_from_keras: optimizer: expected clipnorm not set, got {optimizer.clipnorm!r}; global_clipnorm is "
            "max_grad_norm"
        )
    return optimizer.global_clipnorm


def _optimizer(keras: Any, optimizer, found: Found) -> ops.Optimizer:
    name, config = type(optimizer).__name__, optimizer.get_config()
    where = f"trainer_from_keras: optimizer ({name})"
    if name not in OPTIMIZERS or not isinstance(optimizer, getattr(keras.optimizers, name)):
        raise unknown_name("trainer_from_keras: optimizer", name, OPTIMIZERS)
    for setting in ("use_ema", "loss_scale_factor"):
        if config.get(setting):
            raise ArgumentError(f"trainer_from_keras: optimizer: expected {setting} not set, got {config[setting]!r}")
    ours, keywords = OPTIMIZERS[name]
    numbers: dict[str, Any] = {here: config[there] for there, here in keywords.items() if here}
    if "beta_1" in keywords:
        numbers["betas"] = config["beta_1"], config["beta_2"]
    if ours == "nadam":
        numbers["momentum_decay"] = 1.0  # what Keras has no name for
    if config["weight_decay"] is not None:
        numbers["weight_decay"] = config["weight_decay"]
        numbers["groups"] = {
            key: {"weight_decay": 0.0}
            for _, part, names in found.holders
            for key, variable in zip(names, part.weights)
            if not optimizer._use_weight_decay(variable) and not key.endswith((".mean", ".var"))
        }
    frozen = [key for _, part, names in found.holders if not part.trainable for key in names]
    learnt = [part.key for part in layout(found.layers, found.input_size) if not part.buffered]
    held = {key for _, _, names in found.holders for key in names}
    constant = [key for key in learnt if key not in held]  # center=False, scale=False
    absent = [key for key in frozen if key not in learnt]
    return ops.OPTIMIZERS[ours](
        lr=_rate(config["learning_rate"], where),
        frozen=tuple(k for k in [*frozen, *constant] if k not in absent),
        **numbers,
    )


def _rate(given, where: str) -> float | Schedule:
    if not isinstance(given, dict):
        return float(given)
    name, config = given["class_name"], given["config"]
    lr = config.get("initial_learning_rate")
    where = f"{where}: learning_rate ({name})"

    def number(setting: str, expected: str, fits: Callable[[float], bool]) -> float:
        value = as_float(config[setting])
        if not fits(value):
            raise ArgumentError(f"{where}: expected {setting} {expected}, got {config[setting]!r}")
        return value

    def steps() -> int:
        return int(number("decay_steps", "of an integer >= 1", lambda n: n >= 1 and n.is_integer()))

    if name == "ExponentialDecay":
        rate = number("decay_rate", "above 0", lambda rate: 0 < rate < math.inf)
        if config["staircase"]:
            return Step(lr, steps(), rate)
        return Exponential(lr, rate ** (1 / config["decay_steps"]))
    if name == "CosineDecay" and config["warmup_target"] is None:
        return Cosine(lr, steps(), number("alpha", "from 0 to 1", lambda share: 0 <= share <= 1) * lr)
    raise ArgumentError(
        f"{where}: expected a number, ExponentialDecay or CosineDecay without warmup, got {config}; "
        "fastbatch.schedules has others, for optimizer="
    )
