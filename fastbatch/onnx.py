"""ONNX files: ``export(model, path)``. Needs the package onnx: ``pip install 'fastbatch[onnx]'``."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from . import checks, storage
from ._version import __version__
from .errors import ArgumentError, BackendError, named_keywords, unknown_name
from .model import Sequential, model_parts
from .stages import Affine, RowNorm, Scale, Softmax, Stage, stages_of

__all__ = ["OPSET", "export"]

# All that is needed has been there since 13 (ONNX 1.8, 2020). LayerNormalization, of 17, is not needed:
# onnxruntime 1.31 takes the variance as mean(x^2) - mean(x)^2, 7e-5 off in float32 at mean 3000 and deviation 3.
OPSET = 13

# Operators of one input that have the name's meaning
_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}),
}
# In float64 onnxruntime (1.31) has no Elu, Softplus and Erf, and alpha is a float32
_NARROW = {"leaky_relu", "elu", "softplus", "gelu"}


@named_keywords
def export(
    model: Sequential,
    path: str | os.PathLike,
    *,
    output: str = "outputs",
    input_scale=None,
    dtype: str | None = None,
    opset: int = OPSET,
) -> None:
    """Write an ONNX file that computes what ``model.predict`` does, from ``x`` (batch, I) to ``y`` (batch, O).

    The number of rows is free. The file's metadata has the version of fastbatch, the description of the
    layers and the loss. It is checked by onnx.checker, written beside `path` and renamed.

    Parameters
    ----------
    model : Sequential
    path : path
    output : {"outputs", "probabilities"}, default "outputs"
        What ``predict`` or what ``predict_proba`` gives.
    input_scale : (scale, shift), optional
        What x is multiplied by and shifted to first, such as a trainer's ``input_scale``.
    dtype : {"float32", "float64"}, optional
        Of x, y and the weights; the model's own by default.
    opset : int, default 13
        Version of the operators that the file asks for, for tools that want another one.

    Raises
    ------
    ArgumentError
        For something that is no model, a bad value, probabilities of a model whose loss has none, and gelu in float64,
        which onnxruntime cannot run.
    DataError
        For a parameter that is not finite in `dtype`.
    BackendError
        Without the package onnx.
    OSError
        When the file cannot be written; the old one is untouched.
    """
    if not isinstance(model, Sequential):
        hint = "; export(trainer.model, path, input_scale=trainer.input_scale)" if hasattr(model, "model") else ""
        raise ArgumentError(f"export(model=): expected a model of fastbatch, got {type(model).__name__}{hint}")
    try:
        import onnx
    except ImportError as error:
        raise BackendError(f"fastbatch.onnx.export needs onnx: pip install 'fastbatch[onnx]' ({error})") from error
    latest = onnx.defs.onnx_opset_version()
    if not OPSET <= checks.count("export(opset=)", opset) <= latest:
        raise ArgumentError(
            f"export(opset=): expected {OPSET} .. {latest}, which onnx {onnx.__version__} knows, got {opset}"
        )
    opsets = [onnx.helper.make_opsetid("", int(opset))]
    stages, dtype = stages_of(model, output, input_scale, dtype, "export")
    graph = _Graph(dtype, opset)
    for stage in stages:
        graph.add(stage)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.value], ["y"]))
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "fastbatch",
            [onnx.helper.make_tensor_value_info("x", kind, ["batch", model.input_size])],
            [onnx.helper.make_tensor_value_info("y", kind, ["batch", model.output_size])],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
            doc_string=model.summary(),
        ),
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="fastbatch",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(made, {"output": output, "model": json.dumps(model_parts(model)[1])})
    onnx.checker.check_model(made, full_check=True)
    storage.write_bytes(path, made.SerializeToString())


class _Graph:
    """Nodes and arrays so far; `value` is the name of what the last node gives."""

    def __init__(self, dtype: str, opset: int) -> None:
        self.dtype, self.opset, self.value = dtype, opset, "x"
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, stage: Stage) -> None:
        x = self.value
        if isinstance(stage, Affine):
            self._node("Gemm", x, *(self._array(part) for part in (stage.w, stage.b) if part is not None))
        elif isinstance(stage, Scale):
            if stage.centre is not None:
                x = self._node("Sub", x, self._array(stage.centre))
            self._node("Add", self._node("Mul", x, self._array(stage.factor)), self._array(stage.offset))
        elif isinstance(stage, RowNorm):
            x = self._node("Sub", x, self._mean(x))
            variance = self._mean(self._node("Mul", x, x))
            deviation = self._node("Sqrt", self._node("Add", variance, self._number(stage.eps)))
            normal = self._node("Div", x, deviation)
            self._node("Add", self._node("Mul", normal, self._array(stage.gamma)), self._array(stage.beta))
        elif isinstance(stage, Softmax):
            self._node("Softmax", x, axis=1)
        else:
            self._activation(stage.name, x)

    def _activation(self, name: str, z: str) -> None:
        if name in _NARROW and self.dtype == "float64":
            self._wide(name, z)
        elif name in _OPERATORS:
            operator, attributes = _OPERATORS[name]
            self._node(operator, z, **attributes)
        elif name == "gelu":
            erf = self._node("Erf", self._node("Mul", z, self._number(0.5**0.5)))
            self._node("Mul", self._node("Mul", z, self._number(0.5)), self._node("Add", erf, self._number(1)))
        elif name == "silu":
            self._node("Mul", z, self._node("Sigmoid", z))
        elif name == "gelu_tanh":  # z sigmoid(2u), the same function as z (1 + tanh u) / 2
            cube = self._node("Mul", self._node("Mul", z, z), self._node("Mul", z, self._number(0.044715)))
            u = self._node("Mul", self._node("Add", z, cube), self._number((8 / np.pi) ** 0.5))
            self._node("Mul", z, self._node("Sigmoid", u))
        else:
            names = ["identity", "gelu", "gelu_tanh", "silu", *_OPERATORS]
            raise unknown_name("export: activation", name, names)

    def _wide(self, name: str, z: str) -> None:
        if name == "gelu":
            raise ArgumentError(
                "export: expected float32 for gelu, got float64, in which onnxruntime has no Erf; pass dtype='float32'"
            )
        zero = self._number(0)
        positive = self._node("Max", z, zero)
        if name == "leaky_relu":
            rest = self._node("Mul", self._node("Min", z, zero), self._number(0.01))
        elif name == "elu":
            rest = self._node("Sub", self._node("Exp", self._node("Min", z, zero)), self._number(1))
        else:
            decay = self._node("Exp", self._node("Neg", self._node("Abs", z)))
            rest = self._node("Log", self._node("Add", decay, self._number(1)))
        self._node("Add", positive, rest)

    def _mean(self, x: str) -> str:
        """Of each row; 18 has made an input of the attribute."""
        if self.opset < 18:
            return self._node("ReduceMean", x, axes=[1])
        return self._node("ReduceMean", x, self._array(np.array([1])))

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx.helper import make_node

        self.value = f"{operator}_{len(self.nodes)}"
        self.nodes.append(make_node(operator, inputs, [self.value], name=self.value, **attributes))
        return self.value

    def _array(self, values: np.ndarray) -> str:
        name = f"array_{len(self.arrays)}"
        self.arrays[name] = values
        return name

    def _number(self, value: float) -> str:
        return self._array(np.array(value, self.dtype))
