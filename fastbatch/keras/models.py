"""Models of Keras as models of fastbatch, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from types import ModuleType
from typing import Any

from .. import checks, ops
from ..errors import ArgumentError, BackendError, DTypeError, ShapeError, named_keywords, unknown_name
from ..layers import Activation, BatchNorm, Dense, Dropout, Layer, LayerNorm, layout
from ..model import Sequential, model_parts

__all__ = ["Found", "from_keras", "import_keras", "model_of", "read", "to_keras"]

# Name there, name here. Settings of the functions are their defaults.
ACTIVATIONS = {
    "linear": "identity", "relu": "relu", "elu": "elu", "tanh": "tanh", "sigmoid": "sigmoid", "softplus": "softplus",
    "gelu": "gelu", "silu": "silu",
}  # fmt: skip


def import_keras() -> ModuleType:
    try:
        import keras
    except ImportError as error:
        raise BackendError(f"fastbatch.keras needs keras 3: pip install 'fastbatch[keras]' ({error})") from error
    return keras


@dataclass
class Found:
    """What a Keras model consists of.

    Attributes
    ----------
    layers : list of Layer
    holders : list of (str, keras layer, list of str)
        Where it is in the model, itself, and what files of models call its weights.
    probabilities : str
        "softmax" or "sigmoid" where the last activation is one that the loss takes over, else "".
    """

    layers: list[Layer] = field(default_factory=list)
    holders: list[tuple[str, Any, list[str]]] = field(default_factory=list)
    probabilities: str = ""
    input_size: int = 0
    dtype: str = ""


@named_keywords
def from_keras(model) -> Sequential:
    """The model that computes what a Keras model does, with copies of its weights and moving statistics.

    A softmax at the end is left to the loss: `predict` gives what goes into it, and `predict_proba` what Keras'
    predict does. So is a sigmoid of a model that is compiled with a binary_crossentropy of probabilities.

    Parameters
    ----------
    model : keras.Model
        Sequential or a functional chain, also of others, of InputLayer, Dense, Activation, ReLU, ELU, LeakyReLU,
        Softmax, Dropout, BatchNormalization, LayerNormalization, and Flatten of inputs, which
        :meth:`Sequential.predict` then expects flat.

    Returns
    -------
    Sequential

    Raises
    ------
    ArgumentError, DTypeError, ShapeError, BackendError
        For what fastbatch does not have; names the layer and the reason.
    """
    return model_of(read(model, "from_keras"))


def model_of(found: Found) -> Sequential:
    model = Sequential(found.layers, input_size=found.input_size, dtype=found.dtype)
    tensors = model_parts(model)[0]
    for _, layer, names in found.holders:
        for name, value in zip(names, layer.get_weights()):
            tensors[name][:] = value
    if found.probabilities:
        model.loss = ops.losses.CrossEntropy() if found.probabilities == "softmax" else ops.losses.BCE()
    return model


@named_keywords
def to_keras(model: Sequential, *, probabilities: bool = False, into=None):
    """The Keras model that computes what `model` does, with copies of its weights and running statistics.

    Parameters
    ----------
    model : Sequential
    probabilities : bool, default False
        End with the softmax or sigmoid of the loss that the model was trained with: Keras' predict is then
        `predict_proba`.
    into : keras.Model, optional
        Write the weights into this one instead, of the same layers: one that :func:`from_keras` has read.

    Returns
    -------
    keras.Sequential, or `into`

    Raises
    ------
    ArgumentError, ShapeError
        For what Keras does not have, or another network than `into`, in what its layers do, too. Nothing has been
        changed then.
    """
    keras = import_keras()
    if not isinstance(model, Sequential):
        raise ArgumentError(f"to_keras: expected a fastbatch Sequential, got {type(model).__name__}")
    twin = into if into is not None else _build(keras, model, checks.flag("to_keras(probabilities=)", probabilities))
    found = read(twin, "to_keras", of_loss=True)
    tensors = model_parts(model)[0]
    shapes = {part.key: part.shape for part in layout(found.layers, found.input_size)}
    if shapes != {name: array.shape for name, array in tensors.items()}:
        raise ShapeError(f"to_keras: expected a model of tensors {shapes} for into=, got {model.summary()}")
    _check_alike(model, found)
    held = {name for _, _, names in found.holders for name in names}
    for name in tensors.keys() - held:  # center=False, scale=False
        if (tensors[name] != name.endswith("gamma")).any():
            raise ArgumentError(f"to_keras: into= holds no {name}: expected it to be {int(name.endswith('gamma'))}")
    for _, layer, names in found.holders:
        layer.set_weights([tensors[name] for name in names])
    return twin


def _check_alike(model: Sequential, found: Found) -> None:
    """ArgumentError where layers of `model` do something else than those of the Keras model in the same place."""
    expected, got = _apart(model.layers), _apart(found.layers)
    if found.probabilities == "sigmoid" and len(expected) > len(got):  # the model's own, not one that a loss takes over
        got.append(Activation("sigmoid"))
    for place, (ours, theirs) in enumerate(zip_longest(expected, got)):
        alike = type(ours) is type(theirs) and all(
            math.isclose(value, other, rel_tol=1e-9) if isinstance(value, float) else value == other
            for value, other in zip(vars(ours).values(), vars(theirs).values())
        )
        if not alike:
            raise ArgumentError(
                f"to_keras(into=): expected {ours or 'no layer'} in place {place}, activations counted, got "
                f"{theirs or 'none'}"
            )


def _apart(layers: Iterable[Layer]) -> list[Layer]:
    """`layers` with activations for themselves, and without those that change nothing."""
    found: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Dense):
            found += [Dense(layer.units, bias=layer.bias), Activation(layer.activation)]
        else:
            found.append(layer)
    return [layer for layer in found if layer not in (Activation("identity"), Dropout(0))]


def _build(keras: Any, model: Sequential, probabilities: bool):
    layers, dtype = keras.layers, model.dtype
    parts: list[Any] = [layers.Input((model.input_size,), dtype=dtype)]
    for k, layer in enumerate(model.layers):
        where = f"to_keras: layer {k}, {layer}"
        if isinstance(layer, Dense):
            parts.append(layers.Dense(layer.units, use_bias=layer.bias, dtype=dtype))
            if layer.activation != "identity":
                parts.append(_activation(keras, layer.activation, where, dtype))
        elif isinstance(layer, Activation):
            parts.append(_activation(keras, layer.name, where, dtype))
        elif isinstance(layer, Dropout):
            parts.append(layers.Dropout(layer.rate, dtype=dtype))
        elif isinstance(layer, LayerNorm):
            parts.append(layers.LayerNormalization(epsilon=layer.eps, dtype=dtype))
        elif isinstance(layer, BatchNorm):
            if layer.ghost_size is not None:
                raise ArgumentError(f"{where}: Keras has no ghost batches")
            parts.append(layers.BatchNormalization(momentum=1 - layer.momentum, epsilon=layer.eps, dtype=dtype))
    if probabilities:
        ends = {"cross_entropy": "softmax", "bce": "sigmoid"}
        if model.loss is None or model.loss.name not in ends:
            raise ArgumentError(
                "to_keras(probabilities=True): expected a model trained with cross_entropy or bce, this one was "
                f"trained with {None if model.loss is None else model.loss.name}"
            )
        parts.append(layers.Activation(ends[model.loss.name], dtype=dtype))
    return keras.Sequential(parts)


def _activation(keras: Any, name: str, where: str, dtype: str):
    if name == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=0.01, dtype=dtype)
    ops.built_in_activation(name, where)
    there = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if name not in there:
        raise ArgumentError(f"{where}: Keras has no {name} by a name")
    return keras.layers.Activation(there[name], dtype=dtype)


# -- what a model consists of ------------------------------------------------------------------------------------------


def read(model, caller: str, of_loss: bool = False) -> Found:
    """What `model` consists of; `of_loss` leaves a sigmoid at the end to the loss, however it is compiled."""
    keras = import_keras()
    if not isinstance(model, keras.Model):
        raise ArgumentError(f"{caller}: expected a keras.Model, got {type(model).__name__}")
    parts = list(_chain(keras, model, "", caller))
    shape = getattr(model, "input_shape", None) if model.built else None
    flattens = bool(parts) and isinstance(parts[0][1], keras.layers.Flatten)
    if not isinstance(shape, tuple) or (len(shape) != 2 and not flattens) or None in shape[1:]:
        what = "one not built" if shape is None else shape
        raise ShapeError(f"{caller}: expected a model of inputs (n, I), or one that flattens them first, got {what}")
    found, dense, norms = Found(input_size=math.prod(shape[1:])), 0, 0
    for number, (path, part) in enumerate(parts):
        where = f"{caller}: {path} ({type(part).__name__})"
        last = number == len(parts) - 1
        layers, names = _layers(keras, part, where, dense, norms)
        function = getattr(part, "activation", None)
        if isinstance(part, keras.layers.Softmax) or function is keras.activations.softmax:
            if not last:
                raise ArgumentError(f"{where}: expected a softmax at the end only, where the loss takes it over")
            found.probabilities = "softmax"
        found.layers += layers
        for layer in layers:
            dense += isinstance(layer, Dense)
            norms += isinstance(layer, (LayerNorm, BatchNorm))
        if names:
            found.holders.append((path, part, names))
            _check_dtype(found, part, where)
    if not dense:
        raise ArgumentError(f"{caller}: expected at least one Dense in the model, got none")
    end = found.layers[-1]
    if end == Activation("sigmoid") and (of_loss or _takes_probabilities(keras, model)):
        found.layers.pop()
        found.probabilities = "sigmoid"
    return found


def _takes_probabilities(keras: Any, model) -> bool:
    loss = getattr(model, "loss", None)
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if loss is keras.losses.binary_crossentropy:
        return True
    return isinstance(loss, keras.losses.BinaryCrossentropy) and not loss.get_config()["from_logits"]


def _chain(keras: Any, model, path: str, caller: str) -> Iterator[tuple[str, Any]]:
    if type(model).__module__.partition(".")[0] != "keras":
        raise ArgumentError(
            f"{caller}: expected Sequential or a functional chain, got the class {type(model).__name__}"
        )
    for part in model.layers if isinstance(model, keras.Sequential) else _in_order(model, path, caller):
        inside = f"{path}{part.name}"
        if isinstance(part, keras.Model):
            yield from _chain(keras, part, f"{inside}.", caller)
        elif not isinstance(part, keras.layers.InputLayer):
            yield inside, part


def _in_order(model, path: str, caller: str) -> list:
    """The operations of a functional model, if each but the first takes what the one before it gives.

    Nodes are of this model: its layers may be parts of others, too.
    """
    parts: list = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        nodes = model._nodes_by_depth[depth]
        part = nodes[0].operation
        if len(nodes) > 1 or len(nodes[0].input_tensors) != bool(parts) or part in parts:
            where = f"{caller}: {path}{part.name} ({type(part).__name__})"
            raise ArgumentError(f"{where}: expected a chain, each layer used once")
        parts.append(part)
    return parts


def _check_dtype(found: Found, part, where: str) -> None:
    dtype = part.variable_dtype
    if dtype not in checks.DTYPES or part.compute_dtype != dtype:
        raise DTypeError(f"{where}: expected float32 or float64, got {part.compute_dtype} on {dtype} weights")
    if found.dtype not in ("", dtype):
        raise DTypeError(f"{where}: expected {found.dtype} as the layers before, got {dtype}")
    found.dtype = dtype


def _layers(keras: Any, part, where: str, dense: int, norms: int) -> tuple[list[Layer], list[str]]:
    """The layers that do what `part` does, but for a softmax, and the names of its weights."""
    kinds, kind = keras.layers, type(part)

    def only(**settings: Any) -> None:
        for key, value in settings.items():
            if getattr(part, key) != value:
                raise ArgumentError(f"{where}: expected {key}={value!r}, got {getattr(part, key)!r}")

    if kind is kinds.Dense:
        names = [f"{dense}.w", *([f"{dense}.b"] if part.use_bias else [])]
        if len(part.get_weights()) != len(names):
            raise ArgumentError(f"{where}: expected its own kernel and bias, got {len(part.get_weights())} arrays")
        return [Dense(part.units, bias=part.use_bias), *_function(keras, part.activation, where)], names
    if kind is kinds.Activation:
        return _function(keras, part.activation, where), []
    if kind is kinds.ReLU:
        only(max_value=None, negative_slope=0, threshold=0)
        return [Activation("relu")], []
    if kind is kinds.LeakyReLU:
        only(negative_slope=0.01)
        return [Activation("leaky_relu")], []
    if kind is kinds.ELU:
        only(alpha=1.0)
        return [Activation("elu")], []
    if kind is kinds.Softmax:
        only(axis=-1)
        return [], []
    if kind is kinds.Flatten:
        return [], []
    if kind is kinds.Dropout:
        only(noise_shape=None)
        return ([Dropout(part.rate)] if part.rate else []), []
    names = [f"norm{norms}.{name}" for name, has in (("gamma", part.scale), ("beta", part.center)) if has] if kind in (
        kinds.BatchNormalization, kinds.LayerNormalization) else []  # fmt: skip
    if kind is kinds.BatchNormalization:
        if part.axis not in (-1, 1) or getattr(part, "renorm", False):
            raise ArgumentError(f"{where}: expected axis=-1 without renorm, got axis={part.axis}")
        return [BatchNorm(part.epsilon, 1 - part.momentum)], [*names, f"norm{norms}.mean", f"norm{norms}.var"]
    if kind is kinds.LayerNormalization:
        if part.axis not in (-1, 1, [-1], [1]) or getattr(part, "rms_scaling", False):
            raise ArgumentError(f"{where}: expected axis=-1 without rms_scaling, got axis={part.axis}")
        return [LayerNorm(part.epsilon)], names
    known = (
        "Activation, BatchNormalization, Dense, Dropout, ELU, Flatten, InputLayer, LayerNormalization, LeakyReLU, "
        "ReLU, Softmax"
    )
    scales = kind in (kinds.Normalization, kinds.Rescaling)
    hint = "; leave it out of the model, and call it on X or set trainer.input_scale" if scales else ""
    raise ArgumentError(f"{where}: expected one of {known}; got {kind.__name__}{hint}")


def _function(keras: Any, function, where: str) -> list[Layer]:
    if function is keras.activations.softmax or function is keras.activations.linear:
        return []
    for theirs, ours in ACTIVATIONS.items():
        if function is getattr(keras.activations, theirs):
            return [Activation(ours)]
    name = getattr(function, "__name__", repr(function))
    raise unknown_name(f"{where}: activation", name, [*ACTIVATIONS, "softmax (at the end)"])
