"""Sequential and MLP: a list of layers and one flat buffer with all their parameters."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from . import checks, memory, ops, storage
from .errors import (
    ArgumentError,
    CheckpointError,
    ShapeError,
    did_you_mean,
    missing_operations,
    named_keywords,
    unknown_name,
)
from .layers import BUFFERED, LAYERS, NAMES, Activation, BatchNorm, Dense, Dropout, Layer, LayerNorm, layout

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
        All parameters: w, b of every Dense and gamma, beta of every norm in the order of the layers, no padding. A live
        view: it shows every update as soon as the call that made it returns, and what is written through it is seen by
        the next call.
    buffers : ndarray
        Running mean and variance of every BatchNorm in order, no padding; as live. Training moves them, gradients do
        not.
    weights : list of (w (I, O), b (O,) or None)
        Views into `parameters`, one pair per Dense.
    norms : list of (gamma (O,), beta (O,))
        Views into `parameters`, one pair per LayerNorm or BatchNorm.
    running : list of (mean (O,), var (O,))
        Views into `buffers`, one pair per BatchNorm.
    num_parameters : int
    layers : tuple of Layer
    input_size, output_size, seed : int
    dtype : str
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
        parts = layout(self.layers, self.input_size)
        self.output_size = [part for part in parts if part.name == "w"][-1].shape[1]
        sizes = [sum(part.size for part in parts if part.buffered is which) for which in (False, True)]
        self._parameters, self._buffers = (memory.zeros(size, self.dtype) for size in sizes)
        self._tensors: dict[int, dict[str, np.ndarray]] = {}  # views, by layer and name
        offsets = [0, 0]
        for part in parts:
            start = offsets[part.buffered]
            offsets[part.buffered] = start + part.size
            flat = self._buffers if part.buffered else self._parameters
            self._tensors.setdefault(part.layer, {})[part.name] = flat[start : start + part.size].reshape(part.shape)
        own = self._tensors.values()
        self._weights = [(t["w"], t.get("b")) for t in own if "w" in t]
        self._norms = [(t["gamma"], t["beta"]) for t in own if "gamma" in t]
        self._running = [(t["mean"], t["var"]) for t in own if "mean" in t]

    def _initialize(self) -> None:
        dense = [k for k, layer in enumerate(self.layers) if isinstance(layer, Dense)]
        for number, (k, (w, _)) in enumerate(zip(dense, self._weights)):
            layer = self.layers[k]
            behind = [after for after in self.layers[k + 1 :] if not isinstance(after, (LayerNorm, BatchNorm))]
            assert isinstance(layer, Dense)
            name = layer.activation
            if name == "identity" and behind and isinstance(behind[0], Activation):
                name = behind[0].name
            draw = ops.get_initializer(layer.init, ops.get_activation(name).gain)
            w[:] = draw(ops.random.generator(self.seed, number), *w.shape)
        for gamma, _ in self._norms:
            gamma[:] = 1
        for _, var in self._running:
            var[:] = 1

    @property
    def buffers(self) -> np.ndarray:
        return self._buffers

    @property
    def norms(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(self._norms)

    @property
    def running(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(self._running)

    @property
    def parameters(self) -> np.ndarray:
        return self._parameters

    @property
    def weights(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        return list(self._weights)

    @property
    def num_parameters(self) -> int:
        return self._parameters.size

    def get_weights(self) -> list[tuple[np.ndarray | None, ...]]:
        """Copies of all that the model has learnt.

        Returns
        -------
        list of tuple of ndarray
            One for each layer that holds something, in order: (w (I, O), b (O,)) of a Dense, b being None without a
            bias; (gamma, beta) (O,) of a LayerNorm; (gamma, beta, mean, var) of a BatchNorm, with its running
            statistics.
        """
        names = (NAMES[type(self.layers[k])] for k in self._tensors)
        return [
            tuple(own[name].copy() if name in own else None for name in wanted)
            for wanted, own in zip(names, self._tensors.values())
        ]

    @named_keywords
    def set_weights(self, weights: Sequence[tuple[np.ndarray | None, ...]]) -> None:
        """Copy weights into the model.

        Parameters
        ----------
        weights : list of tuple of array_like
            As :meth:`get_weights` gives them; of any real dtype.

        Raises
        ------
        ShapeError, DTypeError
            When the number of tuples or a shape differs, or a dtype is not real; nothing is changed then.
        """
        weights = list(weights)
        if len(weights) != len(self._tensors):
            raise ShapeError(f"set_weights: expected {len(self._tensors)} {self._wanted()}, got {len(weights)}")
        new, numbers = [], dict.fromkeys(LAYERS, 0)
        for values, (k, tensors) in zip(weights, self._tensors.items()):
            kind = type(self.layers[k])
            names, where = NAMES[kind], f"{kind.__name__} {numbers[kind.__name__]}"
            numbers[kind.__name__] += 1
            if not isinstance(values, (tuple, list)) or len(values) != len(names):
                size = f" of {len(values)}" if isinstance(values, (tuple, list)) else ""
                shape = "a pair" if len(names) == 2 else f"{len(names)} arrays"
                raise ShapeError(
                    f"set_weights: expected {shape} ({', '.join(names)}), got {type(values).__name__}{size}: {where}"
                )
            for name, value in zip(names, values):
                own = tensors.get(name)
                value = None if value is None else checks.as_real(value, f"set_weights: {name} of {where}")
                got, expected = (None if v is None else v.shape for v in (value, own))
                if got != expected:
                    raise ShapeError(f"set_weights: expected {name} {expected}, got {got}: {where}")
                if own is not None:
                    new.append((own, value))
        for own, value in new:
            own[:] = value

    def _wanted(self) -> str:
        return "tuples, one per Dense and norm" if self._norms else "pairs (w, b)"

    @named_keywords
    def predict(self, X, batch_size: int | None = None, validate: bool = True) -> np.ndarray:
        """Outputs of the last layer, (n, O); dropout is off. Safe from many threads at once.

        Parameters
        ----------
        X : (n, I) array_like
        batch_size : int, optional
            Rows per block; bounds memory and changes nothing else.
        validate : bool, default True
            False converts nothing: X must be a C-contiguous (n, I) ndarray of the model's dtype.

        Returns
        -------
        (n, O) ndarray of the model's dtype

        Raises
        ------
        ShapeError, DTypeError
            When X is not a real (n, I) array; with ``validate=False``, when it is not one that needs no conversion.
        ArgumentError
            For a batch_size < 1.
        """
        return Sequential._predict(self, X, batch_size, validate)

    @named_keywords
    def predict_proba(self, X, batch_size: int | None = None, validate: bool = True) -> np.ndarray:
        """Probabilities: softmax or sigmoid, as the loss the model was trained with says.

        Parameters
        ----------
        X, batch_size, validate
            As of :meth:`predict`.

        Returns
        -------
        (n, O) ndarray of the model's dtype

        Raises
        ------
        ArgumentError
            When the model was not trained, or with a loss that predicts no probabilities.
        """
        if self.loss is None:
            raise ArgumentError(
                "predict_proba: expected a model trained with cross_entropy, bce or focal, got an untrained one"
            )
        return self.loss.probabilities(self.predict(X, batch_size, validate))

    def summary(self) -> str:
        """The model as text.

        Returns
        -------
        str
            One line per layer: description, output width, parameters.
        """
        wide = max(len(str(layer)) for layer in self.layers)
        lines = [f"{'layer':<{wide}}{'outputs':>10}{'parameters':>14}"]
        width = self.input_size
        for k, layer in enumerate(self.layers):
            own = self._tensors.get(k, {})
            count = sum(own[name].size for name in own if name not in BUFFERED)
            width = layer.units if isinstance(layer, Dense) else width
            lines.append(f"{layer!s:<{wide}}{width:>10}{count:>14,}")
        lines.append(f"{self.input_size} inputs, {self.num_parameters:,} parameters, {self.dtype}")
        missing = [
            ("activation", name) for name in map(_activation_of, self.layers) if name and name not in ops.ACTIVATIONS
        ]
        return "\n".join([*lines, missing_operations(missing)] if missing else lines)

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
        """An independent model.

        Returns
        -------
        Sequential
            The same layers, values and loss.
        """
        return copy.deepcopy(self)

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        for name in ("_tensors", "_weights", "_norms", "_running", "_inference"):
            del state[name]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        parameters, buffers = state["_parameters"], state["_buffers"]
        self._allocate()
        self._parameters[:], self._buffers[:] = parameters, buffers

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

        Those of norms are ``"norm<number>.gamma"``, ``.beta``, ``.mean`` and ``.var``.

        The file is written beside `path` and renamed, so that `path` is either the old or the new file.

        Parameters
        ----------
        path : path

        Raises
        ------
        OSError
            When the file cannot be written; the old one is untouched.
        """
        import json

        tensors, description = model_parts(self)
        storage.write(path, tensors, {"model": json.dumps(description)})

    @named_keywords
    def export_c(
        self, path: str | os.PathLike, *, output: str = "outputs", input_scale=None, dtype: str | None = None
    ) -> None:
        """Write one C99 file that predicts: weights and two functions, math.h is all it needs.

        ``void <name>_predict(const float *x, float *y)`` takes one row, ``<name>_predict_batch(x, y, rows)`` many;
        `name` is that of the file, with ``_`` for what C does not take. They keep nothing between calls, so threads may
        share them. The file is written beside `path` and renamed.

        Parameters
        ----------
        path : path
        output : {"outputs", "probabilities"}, default "outputs"
            What :meth:`predict` or what :meth:`predict_proba` gives.
        input_scale : (scale, shift), optional
            What x is multiplied by and shifted to first, such as a trainer's ``input_scale``.
        dtype : {"float32", "float64"}, optional
            float or double; the model's own by default.

        Raises
        ------
        ArgumentError
            For a bad value, and for probabilities of a model whose loss has none.
        DataError
            For a parameter that is not finite in `dtype`.
        OSError
            When the file cannot be written; the old one is untouched.
        """
        from .c_source import c_source, name_of

        storage.write_bytes(path, c_source(self, name_of(path), output, input_scale, dtype).encode())


def _activation_of(layer: Layer) -> str:
    return layer.activation if isinstance(layer, Dense) else layer.name if isinstance(layer, Activation) else ""


def model_parts(model: Sequential) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and description of a model, as files hold them."""
    tensors = {part.key: model._tensors[part.layer][part.name] for part in layout(model.layers, model.input_size)}
    return tensors, {
        "layers": [[type(layer).__name__, asdict(layer)] for layer in model.layers],
        "input_size": model.input_size,
        "seed": model.seed,
        "dtype": model.dtype,
        "loss": None if model.loss is None else [model.loss.name, asdict(model.loss)],
    }


@named_keywords
def load(path: str | os.PathLike) -> Sequential:
    """Read a model that :meth:`Sequential.save` wrote, or that of a file of :meth:`Trainer.save`.

    Parameters
    ----------
    path : path

    Returns
    -------
    Sequential

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
    _check_names(description)
    layers = [LAYERS[name](**fields) for name, fields in description["layers"]]
    parts = layout(layers, description["input_size"])
    shapes = {part.key: part.shape for part in parts}
    # before anything is allocated: a damaged description may ask for any size
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != description["dtype"] for tensor in tensors.values()):
        raise ShapeError(f"expected tensors {shapes} of {description['dtype']}, got {found}")
    model = Sequential.__new__(Sequential)  # __init__ would draw weights only to drop them
    model._describe(layers, description["input_size"], description["seed"], description["dtype"])
    for part in parts:
        model._tensors[part.layer][part.name][:] = tensors[part.key]
    if description["loss"] is not None:
        name, fields = description["loss"]
        model.loss = ops.LOSSES[name](**fields)
    return model


def _check_names(description: dict) -> None:
    """CheckpointError that names what a user has to register before this model can be loaded."""
    own = [fields.get("activation", fields.get("name")) for _, fields in description["layers"]]
    missing = [("activation", name) for name in own if name is not None and name not in ops.ACTIVATIONS]
    match description["loss"]:
        case [str(name), dict()] if name not in ops.LOSSES:
            missing.append(("loss", name))
    if missing:
        raise CheckpointError(missing_operations(missing))


_NORMS: dict[str, type[Layer]] = {"layer": LayerNorm, "batch": BatchNorm}


@named_keywords
def MLP(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    norm: str | None = None,
    init: str = "auto",
    seed: int = 0,
    dtype: str = "float32",
) -> Sequential:
    """Multi-layer perceptron: Dense, norm, activation, dropout for every hidden layer, a linear Dense at the end.

    Parameters
    ----------
    sizes : sequence of int
        Widths from the inputs to the outputs, at least two.
    activation : str, default "relu"
        Of the hidden layers.
    dropout : float, default 0.0
        Rate behind every hidden layer.
    norm : {"layer", "batch"}, optional
        LayerNorm or BatchNorm between every hidden Dense and its activation.
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
    if norm is not None and (not isinstance(norm, str) or norm not in _NORMS):
        raise unknown_name("MLP(norm=)", norm, ["None", *_NORMS])
    layers: list[Layer] = []
    for units in sizes[1:-1]:
        if norm is None:
            layers.append(Dense(units, activation=activation, init=init))
        else:
            layers += [Dense(units, init=init), _NORMS[norm](), Activation(activation)]
        if dropout:
            layers.append(Dropout(dropout))
    ops.get_activation(activation)
    Dropout(dropout)
    layers.append(Dense(sizes[-1], init=init))
    return Sequential(layers, input_size=sizes[0], seed=seed, dtype=dtype)
