"""Sequential and MLP: a list of layers and one flat buffer with all their parameters."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from . import checks, memory, ops, storage
from .errors import ArgumentError, ShapeError, did_you_mean, named_keywords
from .layers import LAYERS, Activation, Dense, Dropout, Layer

__all__ = ["MLP", "Sequential", "load"]

# What the names of tensors begin with that a trainer has written beside those of its model
OF_THE_TRAINER = "trainer/"

_OF_THE_TRAINER = {
    "backward", "compile", "evaluate", "fit", "fit_generator", "forward", "gradient_norms", "gradients", "partial_fit",
    "score", "step", "train", "train_on_batch", "train_step", "update",
}  # fmt: skip


class Sequential:
    """A stack of layers on one flat parameter buffer.

    Parameters
    ----------
    layers : sequence of Layer
    input_size : int
        Number of input features, I.
    seed : int, default 0
        Seed of the initial weights.
    dtype : {"float32", "float64"}, default "float32"

    Attributes
    ----------
    parameters : (N,) ndarray
        All parameters: w then b of every Dense in order, no padding. A live view: it shows every update as soon as the
        call that made it returns, and what is written through it is seen by the next call.
    weights : list of (w (I, O), b (O,) or None)
        Views into `parameters`, one pair per Dense.
    num_parameters : int
    loss : Loss or None
        The loss that the model was trained with; ``predict_proba`` follows it.

    Raises
    ------
    ArgumentError
        For an empty list, something that is not a layer, or a bad input_size, seed or dtype.
    """

    # predict needs a backend, which stands above this module; program.py hands it down
    _predict: ClassVar[Callable[[Sequential, object, int | None, bool], np.ndarray]]

    @named_keywords
    def __init__(self, layers: Sequence[Layer], *, input_size: int, seed: int = 0, dtype: str = "float32") -> None:
        self._describe(layers, input_size, seed, dtype)
        self._initialize()

    def _describe(self, layers: Sequence[Layer], input_size: int, seed: int, dtype: str) -> None:
        if not isinstance(layers, (list, tuple)):
            raise ArgumentError(f"Sequential(layers=): expected a list of layers, got {type(layers).__name__}")
        self.layers = tuple(layers)
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise ArgumentError(f"Sequential: expected layers, got {layer!r} at position {i}")
        if not any(isinstance(layer, Dense) for layer in self.layers):
            raise ArgumentError("Sequential: expected at least one Dense layer, got none")
        self.input_size = checks.count("Sequential(input_size=)", input_size)
        self.seed = checks.seed("Sequential(seed=)", seed)
        self.dtype = checks.as_dtype(dtype)
        self.loss: ops.Loss | None = None
        k, first = next((k, layer) for k, layer in enumerate(self.layers) if isinstance(layer, Dense))
        self.first_dense = f"layer {k} Dense({self.input_size} -> {first.units})"  # what X meets, in error messages
        self._allocate()

    def _allocate(self) -> None:
        self._inference: tuple[str, Any] | None = None  # program.py keeps the program of predict here
        shapes = _dense_shapes(self.layers, self.input_size)
        self.output_size = shapes[-1][1]
        self._parameters = memory.zeros(sum(i * o + o * bias for i, o, bias in shapes), self.dtype)
        self._weights, offset = [], 0
        for i, o, bias in shapes:
            w = self._parameters[offset : offset + i * o].reshape(i, o)
            offset += i * o
            b = self._parameters[offset : offset + o] if bias else None
            offset += o * bias
            self._weights.append((w, b))

    def _initialize(self) -> None:
        dense = [k for k, layer in enumerate(self.layers) if isinstance(layer, Dense)]
        for number, (k, (w, _)) in enumerate(zip(dense, self._weights)):
            layer, behind = self.layers[k], self.layers[k + 1 : k + 2]
            assert isinstance(layer, Dense)
            name = layer.activation
            if name == "identity" and behind and isinstance(behind[0], Activation):
                name = behind[0].name
            draw = ops.get_initializer(layer.init, ops.get_activation(name).gain)
            w[:] = draw(ops.random.generator(self.seed, number), *w.shape)

    @property
    def parameters(self) -> np.ndarray:
        return self._parameters

    @property
    def weights(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        return list(self._weights)

    @property
    def num_parameters(self) -> int:
        return self._parameters.size

    def get_weights(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Copies of the weights, one (w, b) pair per Dense."""
        return [(w.copy(), None if b is None else b.copy()) for w, b in self._weights]

    @named_keywords
    def set_weights(self, weights: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> None:
        """Copy `weights`, as :meth:`get_weights` gives them, into the model.

        Raises
        ------
        ShapeError, DTypeError
            When the number of pairs or a shape differs, or a dtype is not real; nothing is changed then.
        """
        weights = list(weights)
        if len(weights) != len(self._weights):
            raise ShapeError(f"set_weights: expected {len(self._weights)} pairs (w, b), got {len(weights)}")
        new = []
        for k, (pair, (w, b)) in enumerate(zip(weights, self._weights)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ShapeError(f"set_weights: expected a pair (w, b), got {type(pair).__name__}: Dense {k}")
            for name, value, own in zip("wb", pair, (w, b)):
                value = None if value is None else checks.as_real(value, f"set_weights: {name} of Dense {k}")
                got, expected = (None if v is None else v.shape for v in (value, own))
                if got != expected:
                    raise ShapeError(f"set_weights: expected {name} {expected}, got {got}: Dense {k}")
                if own is not None:
                    new.append((own, value))
        for own, value in new:
            own[:] = value

    @named_keywords
    def predict(self, X, batch_size: int | None = None, validate: bool = True) -> np.ndarray:
        """Outputs of the last layer, (n, O); dropout is off. Safe from many threads at once.

        Parameters
        ----------
        X : (n, I) array_like
        batch_size : int, optional
            Rows per block; bounds memory and changes nothing else.
        validate : bool, default True
            False skips the checks for a C-contiguous (n, I) array of the model's dtype.

        Raises
        ------
        ShapeError, DTypeError
            When X is not a real (n, I) array.
        """
        return Sequential._predict(self, X, batch_size, validate)

    @named_keywords
    def predict_proba(self, X, batch_size: int | None = None, validate: bool = True) -> np.ndarray:
        """Probabilities, (n, O): softmax or sigmoid, as the loss the model was trained with says.

        Raises
        ------
        ArgumentError
            When the model was not trained, or with a loss that predicts no probabilities.
        """
        if self.loss is None:
            raise ArgumentError(
                "predict_proba: expected a model trained with cross_entropy or bce, got an untrained one"
            )
        return self.loss.probabilities(self.predict(X, batch_size, validate))

    def summary(self) -> str:
        """One line per layer: description, output width, parameters."""
        wide = max(len(str(layer)) for layer in self.layers)
        lines = [f"{'layer':<{wide}}{'outputs':>10}{'parameters':>14}"]
        weights, width = iter(self._weights), self.input_size
        for layer in self.layers:
            count = 0
            if isinstance(layer, Dense):
                w, b = next(weights)
                width, count = layer.units, w.size + (0 if b is None else b.size)
            lines.append(f"{layer!s:<{wide}}{width:>10}{count:>14,}")
        lines.append(f"{self.input_size} inputs, {self.num_parameters:,} parameters, {self.dtype}")
        return "\n".join(lines)

    __repr__ = summary

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there; says where the neighbouring libraries' methods of training are."""
        hint = ""
        if name in _OF_THE_TRAINER:
            hint = "; models are trained by fastbatch.Trainer(model, loss, optimizer).fit(X, y)"
        elif not name.startswith("_"):  # what pickle, copy and IPython ask for is asked in vain as fast as ever
            hint = did_you_mean(name, [word for word in dir(self) if not word.startswith("_")])
        raise AttributeError(f"{type(self).__name__} object has no attribute {name!r}{hint}")

    def copy(self) -> Sequential:
        """An independent model with the same layers, values and loss."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        del state["_weights"], state["_inference"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        values = state["_parameters"]
        self._allocate()
        self._parameters[:] = values

    def __deepcopy__(self, memo: dict) -> Sequential:
        twin = object.__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __copy__(self) -> Sequential:
        return copy.deepcopy(self)  # a shallow copy would share the buffer, and a write to one would train the other

    # -- files ---------------------------------------------------------------------------------------------------------

    @named_keywords
    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file: tensors ``"<Dense>.w"``, ``"<Dense>.b"`` and the description in its metadata.

        The file is written beside `path` and renamed, so that `path` is either the old or the new file.
        """
        import json

        tensors, description = model_parts(self)
        storage.write(path, tensors, {"model": json.dumps(description)})


def model_parts(model: Sequential) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and description of a model, as files hold them."""
    tensors = {}
    for k, (w, b) in enumerate(model.weights):
        tensors[f"{k}.w"] = w
        if b is not None:
            tensors[f"{k}.b"] = b
    return tensors, {
        "layers": [[type(layer).__name__, asdict(layer)] for layer in model.layers],
        "input_size": model.input_size,
        "seed": model.seed,
        "dtype": model.dtype,
        "loss": None if model.loss is None else [model.loss.name, asdict(model.loss)],
    }


def _dense_shapes(layers: Sequence[Layer], width: int) -> list[tuple[int, int, bool]]:
    """(I, O, bias) of every Dense."""
    shapes = []
    for layer in layers:
        if isinstance(layer, Dense):
            shapes.append((width, layer.units, layer.bias))
            width = layer.units
    return shapes


@named_keywords
def load(path: str | os.PathLike) -> Sequential:
    """Read a model that :meth:`Sequential.save` wrote, or that of a file of :meth:`Trainer.save`.

    Raises
    ------
    CheckpointError
        When the file is damaged, is not fastbatch's, or has a newer format version.
    FileNotFoundError
    """
    import json

    tensors, metadata = storage.read(path)
    with storage.damaged(path, "description of the model"):
        return model_from(json.loads(metadata["model"]), tensors)


def model_from(description: dict, tensors: dict[str, np.ndarray]) -> Sequential:
    """The model that :func:`model_parts` took apart; tensors of a trainer's own are left alone."""
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(OF_THE_TRAINER)}
    layers = [LAYERS[name](**fields) for name, fields in description["layers"]]
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (i, o, bias) in enumerate(_dense_shapes(layers, description["input_size"])):
        shapes[f"{k}.w"] = (i, o)
        if bias:
            shapes[f"{k}.b"] = (o,)
    # before anything is allocated: a damaged description may ask for any size
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != description["dtype"] for tensor in tensors.values()):
        raise ShapeError(f"expected tensors {shapes} of {description['dtype']}, got {found}")
    model = Sequential.__new__(Sequential)  # __init__ would draw weights only to drop them
    model._describe(layers, description["input_size"], description["seed"], description["dtype"])
    model.set_weights([(tensors[f"{k}.w"], tensors.get(f"{k}.b")) for k in range(len(model._weights))])
    if description["loss"] is not None:
        name, fields = description["loss"]
        model.loss = ops.LOSSES[name](**fields)
    return model


@named_keywords
def MLP(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    init: str = "auto",
    seed: int = 0,
    dtype: str = "float32",
) -> Sequential:
    """Multi-layer perceptron: Dense, activation and dropout for every hidden layer, a linear Dense at the end.

    Parameters
    ----------
    sizes : sequence of int
        Widths from the inputs to the outputs, at least two.
    activation : str, default "relu"
        Of the hidden layers.
    dropout : float, default 0.0
        Rate behind every hidden layer.
    init : str, default "auto"
    seed : int, default 0
    dtype : {"float32", "float64"}, default "float32"

    Returns
    -------
    Sequential

    Raises
    ------
    ArgumentError
        For fewer than two sizes, or a bad value.
    """
    if not isinstance(sizes, (list, tuple)) or len(sizes) < 2:
        raise ArgumentError(f"MLP(sizes=): expected a list of at least an input and an output width, got {sizes!r}")
    layers: list[Layer] = []
    for units in sizes[1:-1]:
        layers.append(Dense(units, activation=activation, init=init))
        if dropout:
            layers.append(Dropout(dropout))
    ops.get_activation(activation)
    Dropout(dropout)
    layers.append(Dense(sizes[-1], init=init))
    return Sequential(layers, input_size=sizes[0], seed=seed, dtype=dtype)
