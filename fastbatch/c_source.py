"""One C99 file with the weights of a model and a function that predicts; it needs math.h and nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._version import __version__
from .errors import unknown_name
from .stages import Affine, RowNorm, Scale, Softmax, Stage, stages_of

if TYPE_CHECKING:
    from .model import Sequential

__all__ = ["c_source", "name_of"]

# Of one element z; {f} is the suffix of float. NaN goes through, and where exp overflows the quotient is 0, its limit.
_ACTIVATIONS = {
    "relu": "z < 0 ? 0 : z",
    "leaky_relu": "z > 0 ? z : 0.01{f} * z",
    "elu": "z > 0 ? z : expm1{f}(z)",
    "tanh": "tanh{f}(z)",
    "sigmoid": "z >= 0 ? 1 / (1 + exp{f}(-z)) : exp{f}(z) / (1 + exp{f}(z))",
    "softplus": "(z < 0 ? 0 : z) + log1p{f}(exp{f}(-fabs{f}(z)))",
    "gelu": "z * erfc{f}(z * -0.70710678118654752{f}) / 2",
    "gelu_tanh": "z / (1 + exp{f}(-1.5957691216057308{f} * (z + 0.044715{f} * z * z * z)))",
    "silu": "z / (1 + exp{f}(-z))",
}

_AFFINE = """\
static void {name}_affine(const {real} *x, const {real} *restrict w, const {real} *b, long inputs, long outputs,
                          {real} *restrict z)
{{
    for (long o = 0; o < outputs; o++)
        z[o] = b ? b[o] : 0;
    for (long i = 0; i < inputs; i++, w += outputs)
        for (long o = 0; o < outputs; o++)
            z[o] += x[i] * w[o];
}}
"""

_ROW_NORM = """\
static void {name}_row_norm(const {real} *x, const {real} *gamma, const {real} *beta, double eps, long width, {real} *z)
{{
    double mean = 0, var = 0;
    for (long o = 0; o < width; o++)
        mean += (double)x[o] / (double)width;
    for (long o = 0; o < width; o++)
        var += ((double)x[o] - mean) * ((double)x[o] - mean) / (double)width;
    for (long o = 0; o < width; o++)
        z[o] = ({real})(((double)x[o] - mean) / sqrt(var + eps)) * gamma[o] + beta[o];
}}
"""

_SOFTMAX = """\
static void {name}_softmax(const {real} *x, long width, {real} *z)
{{
    {real} top = x[0], sum = 0;
    for (long o = 1; o < width; o++)
        top = x[o] > top ? x[o] : top;
    for (long o = 0; o < width; o++) {{
        z[o] = exp{f}(x[o] - top);
        sum += z[o];
    }}
    for (long o = 0; o < width; o++)
        z[o] /= sum;
}}
"""

_HEAD = """\
/* Written by fastbatch {version}: {inputs} inputs -> {outputs} outputs, {dtype}, {what}.
 *
{summary}
 *
 * Declarations for those who call it; any number of threads may call at once. A call takes {stack} bytes of stack.
 */
#include <math.h>

void {name}_predict(const {real} *x, {real} *y);                  /* x[{inputs}] -> y[{outputs}] */
void {name}_predict_batch(const {real} *x, {real} *y, long rows); /* x[rows][{inputs}] -> y[rows][{outputs}] */
"""

_BATCH = """\
void {name}_predict_batch(const {real} *x, {real} *y, long rows)
{{
    for (long row = 0; row < rows; row++)
        {name}_predict(x + row * {inputs}, y + row * {outputs});
}}
"""


def name_of(path: str | os.PathLike) -> str:
    """The prefix of every name in the file: its own name as far as C takes it, "model_" before what is no letter."""
    stem = Path(path).stem if Path(path).suffix else Path(path).name
    name = re.sub(r"[^0-9A-Za-z]+", "_", stem).strip("_")
    return name if name[:1].isalpha() else f"model_{name}".rstrip("_")


def c_source(model: Sequential, name: str, output: str, input_scale, dtype: str | None) -> str:
    """The file as text; arguments and errors as of :meth:`Sequential.export_c`."""
    stages, dtype = stages_of(model, output, input_scale, dtype, "export_c")
    writer = _Writer(name, dtype)
    body = [line for k, stage in enumerate(stages) for line in writer.lines(k, stage, model.input_size)]
    what = "outputs of the last layer" if output == "outputs" else "probabilities"
    given = {
        "version": __version__, "inputs": model.input_size, "outputs": model.output_size, "dtype": dtype, "what": what,
        "stack": sum(writer.buffers.values()) * np.dtype(dtype).itemsize,
        "summary": "\n".join(f" * {line}" for line in model.summary().splitlines()), **writer.words,
    }  # fmt: skip
    buffers = [f"    {writer.real} {buffer}[{size}];" for buffer, size in writer.buffers.items()]
    end = f"    for (long o = 0; o < {model.output_size}; o++)\n        y[o] = {writer.last}[o];"
    predict = [f"void {name}_predict(const {writer.real} *x, {writer.real} *y)", "{", *buffers, *body, end, "}\n"]
    parts = [
        _HEAD.format(**given),
        *writer.arrays,
        *writer.helpers.values(),
        "\n".join(predict),
        _BATCH.format(**given),
    ]
    return "\n".join(parts)


class _Writer:
    """Turns stages into lines, and remembers what these need: arrays, helpers, and the widths of two buffers."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.real, self.f = ("float", "f") if dtype == "float32" else ("double", "")
        self.words = {"name": name, "real": self.real, "f": self.f}
        self.arrays: list[str] = []
        self.helpers: dict[str, str] = {}
        self.buffers: dict[str, int] = {}
        self.last, self.width = "", 0  # the buffer that holds the values so far ("": still in x), and their number

    def lines(self, k: int, stage: Stage, inputs: int) -> list[str]:
        source, width = self.last or "x", self.width or inputs
        if isinstance(stage, Affine):
            target, width = "b" if source == "a" else "a", stage.w.shape[1]
        else:
            target = self.last or "a"
        self.last, self.width = target, width
        self.buffers[target] = max(width, self.buffers.get(target, 0))
        loop, each = f"    for (long o = 0; o < {width}; o++)", f"        {target}[o] ="
        if isinstance(stage, Affine):
            b = "0" if stage.b is None else self._array(f"b{k}", stage.b)
            return [
                self._call("affine", _AFFINE, source, self._array(f"w{k}", stage.w), b, len(stage.w), width, target)
            ]
        if isinstance(stage, RowNorm):
            gamma, beta = self._array(f"gamma{k}", stage.gamma), self._array(f"beta{k}", stage.beta)
            return [self._call("row_norm", _ROW_NORM, source, gamma, beta, float(stage.eps).hex(), width, target)]
        if isinstance(stage, Softmax):
            return [self._call("softmax", _SOFTMAX, source, width, target)]
        if isinstance(stage, Scale):
            x = f"{source}[o]"
            if stage.centre is not None:
                x = f"({x} - {self._array(f'centre{k}', stage.centre)}[o])"
            factor, offset = self._array(f"factor{k}", stage.factor), self._array(f"offset{k}", stage.offset)
            return [loop, f"{each} {x} * {factor}[o] + {offset}[o];"]
        formula = _ACTIVATIONS.get(stage.name)
        if formula is None:
            raise unknown_name("export_c: activation", stage.name, ["identity", *_ACTIVATIONS])
        head = f"static {self.real} {self.name}_{stage.name}({self.real} z)"
        self.helpers[stage.name] = f"{head}\n{{\n    return {formula.format(**self.words)};\n}}\n"
        return [loop, f"{each} {self.name}_{stage.name}({source}[o]);"]

    def _call(self, helper: str, text: str, *arguments: object) -> str:
        self.helpers[helper] = text.format(**self.words)
        return f"    {self.name}_{helper}({', '.join(map(str, arguments))});"

    def _array(self, what: str, values: np.ndarray) -> str:
        name, numbers = f"{self.name}_{what}", _numbers(values, self.f)
        self.arrays.append(f"static const {self.real} {name}[{values.size}] = {{\n{numbers}\n}};\n")
        return name


def _numbers(values: np.ndarray, suffix: str) -> str:
    """Exact: hexadecimal, without the zeros at their end."""
    texts = [re.sub(r"\.?0*p", "p", value.hex()) + suffix for value in values.ravel().tolist()]
    rows = (", ".join(texts[start : start + 6]) for start in range(0, len(texts), 6))
    return ",\n".join(f"    {row}" for row in rows)
