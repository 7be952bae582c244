"""Models in other hands: C files that a compiler takes without a warning, ONNX files that onnxruntime runs."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

import fastbatch as fb
import fastbatch.onnx
from fastbatch import ops
from fastbatch.c_source import name_of

CC = os.environ.get("CC", "cc")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-O1", "-shared", "-fPIC"]
needs_cc = pytest.mark.skipif(not shutil.which(CC), reason=f"not installed: {CC}")

INPUTS = 6
# of the largest output; C and onnxruntime sum in orders of their own
BOUNDS = {"float32": 1e-5, "float64": 1e-13}

NETWORKS = {
    **{
        name: [fb.Dense(16, activation=name), fb.Dense(5, bias=False), fb.Activation(name), fb.Dense(4)]
        for name in ops.ACTIVATIONS
    },
    "one": [fb.Dense(3)],
    "plain": [fb.Dense(3, bias=False)],
    "leading": [fb.Activation("tanh"), fb.Dropout(0.5), fb.Dense(7), fb.Dropout(0.2), fb.Dense(2)],
    "rows": [fb.LayerNorm(), fb.Dense(9), fb.LayerNorm(eps=0.1), fb.Activation("relu"), fb.Dense(3), fb.LayerNorm()],
    "columns": [fb.BatchNorm(), fb.Dense(9), fb.BatchNorm(eps=0.1), fb.Activation("relu"), fb.Dense(3), fb.BatchNorm()],
}


def made(name: str, dtype: str) -> fb.Sequential:
    """With no parameter or statistic at the value where forgetting it makes no difference."""
    rng = np.random.default_rng(len(name))
    model = fb.Sequential(NETWORKS[name], input_size=INPUTS, dtype=dtype)
    model.parameters[:] = rng.normal(size=model.num_parameters)
    for mean, var in model.running:
        mean[:] = rng.normal(size=mean.shape)
        var[:] = rng.uniform(0.3, 3, var.shape)
    if name == "columns":
        model.running[0][0][:] += 300  # years, say: the digits that a folded shift would lose
    return model


def rows(name: str, dtype: str) -> np.ndarray:
    x = np.random.default_rng(7).normal(size=(50, INPUTS)) * 3 + {"rows": 30, "columns": 300}.get(name, 0)
    return x.astype(dtype)


def exact(model: fb.Sequential, x: np.ndarray) -> np.ndarray:
    twin = fb.Sequential(model.layers, input_size=INPUTS, dtype="float64")
    twin.parameters[:], twin.buffers[:] = model.parameters, model.buffers
    return twin.predict(x)


def assert_close(got: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= BOUNDS[dtype] * np.abs(expected).max()


class Compiled:
    """The two functions of a C file."""

    def __init__(self, path, outputs: int, dtype: str) -> None:
        library = path.with_suffix(".so")
        done = subprocess.run([CC, *FLAGS, "-o", library, path, "-lm"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.functions = ctypes.CDLL(str(library))
        self.name, self.outputs, self.dtype = name_of(path), outputs, dtype

    def one(self, row: np.ndarray) -> np.ndarray:
        y = np.full(self.outputs + 1, np.nan, self.dtype)
        getattr(self.functions, f"{self.name}_predict")(
            ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(y.ctypes.data)
        )
        assert np.isnan(y[-1]), "written beside y"
        return y[:-1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.full((len(x) + 1, self.outputs), np.nan, self.dtype)
        arguments = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(len(x))
        getattr(self.functions, f"{self.name}_predict_batch")(*arguments)
        assert np.isnan(y[-1]).all(), "written beside y"
        return y[:-1]


def in_c(model: fb.Sequential, folder, dtype: str | None = None, **options) -> Compiled:
    model.export_c(folder / "net.c", dtype=dtype, **options)
    return Compiled(folder / "net.c", model.output_size, dtype or model.dtype)


def in_onnx(model: fb.Sequential, folder, **options):
    """The file as a function of x."""
    runtime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime")
    pytest.importorskip("onnx", reason="needs onnx and onnxruntime")
    fastbatch.onnx.export(model, folder / "net.onnx", **options)
    session = runtime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    return lambda x: session.run(["y"], {"x": x})[0]


WRITERS = [pytest.param(in_c, id="c", marks=needs_cc), pytest.param(in_onnx, id="onnx")]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("write", WRITERS)
def test_outputs_are_those_of_the_model(write, name, dtype, tmp_path):
    model, x = made(name, dtype), rows(name, dtype)
    if write is in_onnx and (name, dtype) == ("gelu", "float64"):
        pytest.importorskip("onnx", reason="needs onnx and onnxruntime")
        with pytest.raises(fb.ArgumentError, match=r"expected float32 for gelu, got float64, .*pass dtype='float32'"):
            in_onnx(model, tmp_path)
        return
    predict = write(model, tmp_path)
    if write is in_onnx:  # onnxruntime warns of what is not used
        graph = pytest.importorskip("onnx", reason="needs onnx").load(tmp_path / "net.onnx").graph
        assert {array.name for array in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert_close(predict(x), exact(model, x), dtype)
    assert_close(predict(x), model.predict(x), dtype)
    assert predict(x[:0]).shape == (0, model.output_size)
    x[3, 2] = np.nan
    bad = np.isnan(predict(x)).any(axis=1)
    assert bad[3], "NaN goes through"
    assert bad.sum() == 1


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_probabilities(write, loss, tmp_path):
    model, x = made("relu", "float32"), rows("relu", "float32")
    model.loss = ops.LOSSES[loss]()
    predict = write(model, tmp_path, output="probabilities")
    assert_close(predict(x), model.predict_proba(x), "float32")
    model.parameters[:] *= 100  # logits of 1e6
    (tmp_path / "large").mkdir()  # a library that is loaded stays as it is
    assert_close(write(model, tmp_path / "large", output="probabilities")(x), model.predict_proba(x), "float32")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["relu", "leading", "rows"])
def test_input_scale_is_written_too(write, name, tmp_path):
    """Also in front of what fold_input_scale refuses."""
    model, x = made(name, "float32"), rows("columns", "float32")
    scale = (np.linspace(0.1, 0.3, INPUTS), np.linspace(-90, -30, INPUTS))
    trainer = fb.Trainer(model, "mse")
    trainer.input_scale = scale
    got = write(model, tmp_path, input_scale=trainer.input_scale)(x)
    # x about 300: what is left of a product and a shift of 90 has 90 units in the last place of itself
    assert np.abs(got - trainer.predict(x)).max() <= 1e-4 * np.abs(got).max()
    assert np.abs(got - model.predict(x)).max() > 1e-2 * np.abs(got).max()


@pytest.mark.parametrize("write", WRITERS)
def test_a_model_in_float64_may_leave_as_float32(write, tmp_path):
    model, x = made("gelu", "float64"), rows("gelu", "float32")
    assert_close(write(model, tmp_path, dtype="float32")(x), model.predict(x), "float32")
    model.weights[1][0][2, 1] = 1e40
    with pytest.raises(fb.DataError, match=r"w of layer 1 Dense: expected numbers that float32 can hold, got 1e\+40"):
        write(model, tmp_path, dtype="float32")


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_refused_leaves_the_old_file(write, tmp_path, monkeypatch):
    model = made("relu", "float32")
    write(model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(fb.ArgumentError, match=r"output: expected one of outputs, probabilities; got 'probs'"):
        write(model, tmp_path, output="probs")
    with pytest.raises(fb.ArgumentError, match=r"expected a model trained with cross_entropy.*got no training"):
        write(model, tmp_path, output="probabilities")
    model.loss = ops.LOSSES["mse"]()
    with pytest.raises(fb.ArgumentError, match=r"expected a model trained with cross_entropy.*got loss mse"):
        write(model, tmp_path, output="probabilities")
    with pytest.raises(fb.ShapeError, match="input_scale: shift: expected a number or shape"):
        write(model, tmp_path, input_scale=(1, [1, 2]))
    model.weights[0][1][3] = np.nan
    with pytest.raises(fb.DataError, match=r"b of layer 0 Dense: expected finite numbers, got nan in row 3"):
        write(model, tmp_path)
    with pytest.raises(TypeError, match=r"'input_scal' is not a parameter of .*did you mean 'input_scale'"):
        write(model, tmp_path, input_scal=(1, 0))
    own = ops.Activation("mine", lambda z: z, np.ones_like, "none", "he")
    monkeypatch.setitem(ops.ACTIVATIONS, "mine", own)
    with pytest.raises(fb.ArgumentError, match=r"activation: expected one of .*gelu.*; got 'mine'"):
        write(fb.Sequential([fb.Dense(2, activation="mine")], input_size=3), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- C -----------------------------------------------------------------------------------------------------------------


@needs_cc
def test_one_row_and_many_threads(tmp_path):
    model, x = made("rows", "float32"), rows("rows", "float32")
    predict = in_c(model, tmp_path)
    wanted = predict(x)
    assert (np.array([predict.one(row) for row in x]) == wanted).all()
    with ThreadPoolExecutor(4) as pool:  # ctypes lets go of the GIL, for 10 ms a call: they meet
        got = list(pool.map(predict, [np.tile(np.roll(x, k, axis=0), (1000, 1)) for k in range(8)]))
    for k in range(8):
        assert (got[k] == np.tile(np.roll(wanted, k, axis=0), (1000, 1))).all()


@needs_cc
def test_two_models_in_one_program(tmp_path):
    """No name of a file that another one has as well."""
    for name in ("a", "b"):
        made("rows", "float32").export_c(tmp_path / f"{name}.c")
    (tmp_path / "both.c").write_text('#include "a.c"\n#include "b.c"\n')
    command = [CC, *FLAGS, "-o", tmp_path / "both.so", tmp_path / "both.c", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_cc
def test_weights_are_exact(tmp_path):
    """Also those below the normal numbers, and zeros with a sign: a network that hands a weight through."""
    values = [-0.0, 1e-45, -1.17549421e-38, 3.4028235e38, 0.1, -1 / 3]
    model = fb.Sequential([fb.Dense(6)], input_size=6)
    model.weights[0][0][:] = 0
    model.weights[0][1][:] = values
    got = in_c(model, tmp_path)(np.full((1, 6), -0.0, np.float32))
    assert got.tolist() == [np.array(values, np.float32).tolist()]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("net.c", "net"),
        ("/some/where/my-model v2.c", "my_model_v2"),
        ("7.c", "model_7"),
        ("_x_.c", "x"),
        ("ä.c", "model"),
        (".c", "c"),
        ("digits.small.c", "digits_small"),
    ],
)
def test_names(path, name):
    assert name_of(path) == name


@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=pytest.mark.exhaustive)])
def test_both_compilers_take_every_network(compiler, tmp_path):
    """Under more warnings than are asked for, and without a note from analysis at the level that a release takes."""
    if not shutil.which(compiler):
        pytest.skip(f"not installed: {compiler}")
    more = ["-Wshadow", "-Wdouble-promotion", "-Wstrict-prototypes", "-O3"]
    for name in NETWORKS:
        for dtype in BOUNDS:
            made(name, dtype).export_c(tmp_path / f"{name}_{dtype}.c")
    sources = sorted(tmp_path.glob("*.c"))
    assert len(sources) == 2 * len(NETWORKS)
    done = subprocess.run([compiler, *FLAGS[:-2], *more, "-c", *sources], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# -- ONNX --------------------------------------------------------------------------------------------------------------


def test_the_file_says_what_it_is(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    model = made("columns", "float64")
    model.loss = ops.LOSSES["huber"](delta=0.5)
    fastbatch.onnx.export(model, tmp_path / "net.onnx")
    read = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(read, full_check=True)
    assert [(each.domain, each.version) for each in read.opset_import] == [("", fastbatch.onnx.OPSET)]
    assert (read.producer_name, read.producer_version) == ("fastbatch", fb.__version__)
    for value, name, width in ((read.graph.input, "x", INPUTS), (read.graph.output, "y", 3)):
        assert [each.name for each in value] == [name]
        kind = value[0].type.tensor_type
        assert kind.elem_type == onnx.TensorProto.DOUBLE
        assert [each.dim_param or each.dim_value for each in kind.shape.dim] == ["batch", width]
    props = {each.key: each.value for each in read.metadata_props}
    assert props["output"] == "outputs"
    description = json.loads(props["model"])
    assert description["loss"][0] == "huber"
    assert [layer[0] for layer in description["layers"]] == [type(layer).__name__ for layer in model.layers]


def test_other_opsets(tmp_path):
    """Up to what onnxruntime runs: the operators mean the same in all of them."""
    onnx = pytest.importorskip("onnx", reason="needs onnx and onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime")
    ran = set()
    for opset in range(fastbatch.onnx.OPSET, onnx.defs.onnx_opset_version() + 1):
        for name in NETWORKS:
            model, x = made(name, "float32"), rows(name, "float32")
            with suppress(runtime.capi.onnxruntime_pybind11_state.Fail):  # newer than it knows
                assert_close(in_onnx(model, tmp_path, opset=opset)(x), exact(model, x), "float32")
                ran.add(opset)
            assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == opset
    assert len(ran) > 5
    for opset in (12, 1000, 13.5):
        with pytest.raises(fb.ArgumentError, match=r"opset=\).*expected"):
            fastbatch.onnx.export(model, tmp_path / "net.onnx", opset=opset)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_of_onnx_agrees(name, tmp_path):
    """The standard's own evaluator: what is written does not lean on a habit of onnxruntime."""
    reference = pytest.importorskip("onnx.reference", reason="needs onnx")
    model, x = made(name, "float32"), rows(name, "float32")
    fastbatch.onnx.export(model, tmp_path / "net.onnx")
    with np.errstate(all="ignore"):  # what its sigmoid warns of is left out of its result
        got = reference.ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"x": x})[0]
    assert_close(got, exact(model, x), "float32")


def test_a_trainer_is_told_what_to_hand_over(tmp_path):
    trainer = fb.Trainer(made("relu", "float32"))
    with pytest.raises(fb.ArgumentError, match=r"got Trainer; export\(trainer.model, path, input_scale=trainer.input"):
        fastbatch.onnx.export(trainer, tmp_path / "net.onnx")


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(fb.BackendError, match=r"needs onnx: pip install 'fastbatch\[onnx\]'"):
        fastbatch.onnx.export(made("relu", "float32"), tmp_path / "net.onnx")
