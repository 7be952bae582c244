"""What a model of Keras was told by compile(), as a trainer."""

from __future__ import annotations

import re
from typing import Any

from .. import ops
from ..errors import ArgumentError, named_keywords, unknown_name
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
        Keywords of :class:`fastbatch.Trainer`, which go before what the model says.

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
    loss = _loss(keras, model.loss, found)
    config = model.get_compile_config()
    if config["loss_weights"] is not None:
        raise ArgumentError(f"trainer_from_keras: expected loss_weights=None, got {config['loss_weights']!r}")
    given = {"semantics": "keras", **_limits(model.optimizer)}
    given["optimizer"] = _optimizer(keras, model.optimizer, found)
    metrics = [*_flat(config["metrics"]), *_flat(config["weighted_metrics"])]
    given["metrics"] = list(dict.fromkeys(map(_metric, metrics)))
    return Trainer(model_of(found), loss, **{**given, **options})


def _flat(metrics) -> list:
    return [] if metrics is None else list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _metric(given) -> str:
    """Of a name, or of what Keras writes of an object."""
    settings = {}
    if isinstance(given, dict) and "class_name" in given:
        settings = {key: value for key, value in given["config"].items() if key not in ("name", "dtype")}
        given = re.sub(r"(?<=[a-zK])(?=[A-Z])", "_", given["class_name"]).lower()
    if not isinstance(given, str) or given not in METRICS:
        raise unknown_name("trainer_from_keras: metrics", given, METRICS)
    if settings.items() - {"threshold": 0.5, "k": 5}.items():
        raise ArgumentError(f"trainer_from_keras: metrics ({given}): expected Keras' defaults, got {settings}")
    return METRICS[given]


def _loss(keras: Any, given, found: Found) -> ops.Loss:
    where = "trainer_from_keras: loss"
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


def _limits(optimizer) -> dict[str, Any]:
    config = optimizer.get_config()
    for name in ("clipnorm", "use_ema", "loss_scale_factor"):
        if config.get(name):
            hint = "; global_clipnorm is max_grad_norm" if name == "clipnorm" else ""
            raise ArgumentError(f"trainer_from_keras: optimizer: expected {name} not set, got {config[name]!r}{hint}")
    return {
        "max_grad_norm": config.get("global_clipnorm"),
        "clip_value": config.get("clipvalue"),
        "gradient_accumulation_steps": config.get("gradient_accumulation_steps") or 1,
    }


def _optimizer(keras: Any, optimizer, found: Found) -> ops.Optimizer:
    name, config = type(optimizer).__name__, optimizer.get_config()
    where = f"trainer_from_keras: optimizer ({name})"
    if name not in OPTIMIZERS or not isinstance(optimizer, getattr(keras.optimizers, name)):
        raise unknown_name("trainer_from_keras: optimizer", name, OPTIMIZERS)
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
    if name == "ExponentialDecay":
        if config["staircase"]:
            return Step(lr, config["decay_steps"], config["decay_rate"])
        return Exponential(lr, config["decay_rate"] ** (1 / config["decay_steps"]))
    if name == "CosineDecay" and config["warmup_target"] is None:
        return Cosine(lr, config["decay_steps"], config["alpha"] * lr)
    raise ArgumentError(
        f"{where}: expected a number, ExponentialDecay or CosineDecay without warmup as learning_rate, got {name} "
        f"{config}; fastbatch.schedules has others, for optimizer="
    )
