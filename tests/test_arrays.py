"""Tables, tensors and other holders of numbers: read where they lie, refused with the reason, handed back."""

from __future__ import annotations

import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from helpers import assert_same_bits

import fastbatch as fb
from fastbatch import checks
from fastbatch.arrays import as_array

ROWS, WIDTH = 60, 4
NAMES = ["height", "weight", "age", "dose"]
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int64)


def import_of(name: str):
    return pytest.importorskip(name, reason=f"needs {name}; CI names it in FASTBATCH_EXPECT")


def pandas_table(columns: dict):
    return import_of("pandas").DataFrame(columns)


def polars_table(columns: dict):
    return import_of("polars").DataFrame(columns)


def arrow_table(columns: dict):
    return import_of("pyarrow").table(columns)


def arrow_batch(columns: dict):
    return import_of("pyarrow").RecordBatch.from_pydict(columns)


TABLES = {"pandas": pandas_table, "polars": polars_table, "pyarrow": arrow_table, "pyarrow-batch": arrow_batch}

OF_Y = {
    "pandas": lambda y: import_of("pandas").Series(y),
    "polars": lambda y: import_of("polars").Series(y),
    "pyarrow": lambda y: import_of("pyarrow").chunked_array([y[:20], y[20:]]),
    "torch": lambda y: import_of("torch").from_numpy(y),
    "jax": lambda y: import_of("jax.numpy").asarray(y),
    "list": lambda y: y.tolist(),
}


class OnlyDLPack:
    """What offers nothing but the protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class OnlyArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


HOLDERS = {
    **{
        name: lambda x, make=make: make({name: x[:, k] for k, name in enumerate(NAMES)})
        for name, make in TABLES.items()
    },
    "torch": lambda x: import_of("torch").from_numpy(x),
    "torch-transposed": lambda x: import_of("torch").from_numpy(np.ascontiguousarray(x.T)).T,
    "jax": lambda x: import_of("jax.numpy").asarray(x),
    "dlpack": OnlyDLPack,
    "array": OnlyArray,
    "list": lambda x: x.tolist(),
}


def everything(x, y, weight=None) -> list:
    """What a trainer makes of x and y at every place that takes them."""
    trainer = fb.Trainer(fb.MLP([WIDTH, 8, 2], seed=1), optimizer=fb.Adam(0.01), seed=2)
    history = trainer.fit(x, y, batch_size=16, epochs=2, sample_weight=weight, validation_data=(x, y), verbose=0)
    found = [history["loss"], history["val_loss"], trainer.step(x, y, weight), trainer.evaluate(x, y, weight)]
    found += [trainer.predict(x), trainer.model.predict(x), trainer.model.predict_proba(x), trainer.gradients(x, y)[1]]
    found += [trainer.gradient_norms(x, y), trainer.partial_fit(x, y).forward(x), trainer.model.parameters]
    return found


@pytest.mark.parametrize("kind", HOLDERS)
def test_x_is_taken_from_everything(kind):
    for got, wanted in zip(everything(HOLDERS[kind](X), Y), everything(X, Y), strict=True):
        if isinstance(wanted, np.ndarray):
            assert_same_bits(got, wanted)
        else:
            assert got == wanted


@pytest.mark.parametrize("kind", OF_Y)
def test_targets_and_weights_are_taken_from_everything(kind):
    weight = np.linspace(0, 2, ROWS)
    with np.errstate(all="raise"):
        got = everything(X, OF_Y[kind](Y), OF_Y[kind](weight))
    single = kind == "jax"  # JAX holds float32 unless told otherwise
    wanted = everything(X, Y, weight.astype(np.float32) if single else weight)
    assert_same_bits(got[-1], wanted[-1])


# -- without a copy ----------------------------------------------------------------------------------------------------

SHARED = {
    "torch": lambda x: (t := import_of("torch").from_numpy(x.copy()), t.data_ptr()),
    "torch-transposed": lambda x: (t := import_of("torch").from_numpy(np.ascontiguousarray(x.T)).T, t.data_ptr()),
    "jax": lambda x: (a := import_of("jax.numpy").array(x), a.unsafe_buffer_pointer()),
    "dlpack": lambda x: (OnlyDLPack(x), x.ctypes.data),
    "pandas": lambda x: (f := import_of("pandas").DataFrame(x), f.to_numpy(copy=False).ctypes.data),
    "polars": lambda x: (
        f := import_of("polars").DataFrame(np.asfortranarray(x)),
        f.to_numpy(allow_copy=False).ctypes.data,
    ),
}


@pytest.mark.parametrize("kind", SHARED)
def test_x_is_read_where_it_lies(kind):
    """The pointer that the kernels get, and the memory that a fit takes: 32 MB of x."""
    x = np.zeros((1 << 17, 64), np.float32)
    held, pointer = SHARED[kind](x)
    assert checks.as_rows(held, 64, "float32").ctypes.data == pointer
    trainer, y = fb.Trainer(fb.MLP([64, 2])), np.zeros(len(x), np.int64)
    tracemalloc.start()
    try:
        trainer.fit(held, y, batch_size=1024, verbose=0)
        trainer.evaluate(held, y)
        trainer.predict(held)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_what_comes_out_is_shared_by_dlpack():
    torch = import_of("torch")
    trainer = fb.Trainer(fb.MLP([WIDTH, 8, 2]))
    tensor = torch.from_dlpack(trainer.model.parameters)
    assert tensor.data_ptr() == trainer.model.parameters.ctypes.data
    before = tensor.clone()
    trainer.step(X, Y)
    assert not torch.equal(tensor, before), "live, as the view is"
    assert_same_bits(tensor.numpy(), trainer.model.parameters)
    tensor.zero_()
    assert not trainer.predict(X).any()
    assert torch.from_dlpack(trainer.predict(X)).shape == (ROWS, 2)


# -- tables ------------------------------------------------------------------------------------------------------------

MIXED = {"a": [1, 2, 3], "b": [True, False, True], "c": [0.5, -1.0, 2.0]}


@pytest.mark.parametrize("kind", TABLES)
def test_numbers_of_several_dtypes(kind):
    got = as_array(TABLES[kind](MIXED), "X")
    assert got.dtype == np.float64
    assert got.tolist() == [[1, 1, 0.5], [2, 0, -1], [3, 1, 2]]


@pytest.mark.parametrize("kind", TABLES)
def test_columns_that_are_no_numbers_are_named(kind):
    dates = np.array(["2026-01-01"] * 3, "datetime64[ms]")
    table = TABLES[kind]({"a": [1, 2, 3], "colour": ["red", "blue", "red"], "c": [0.5, 1, 2], "day": dates})
    for take in (lambda: as_array(table, "X"), lambda: fb.MLP([4, 2]).predict(table)):
        with pytest.raises(fb.DTypeError, match=r"^X: expected numeric columns, got colour \(.+\), day \(.+\)$"):
            take()
    many = TABLES[kind]({f"word{k}": ["x"] for k in range(20)})
    with pytest.raises(fb.DTypeError, match=r"got word0 \(.*word7 \([^,]*\) and 12 more$"):
        as_array(many, "X")


@pytest.mark.parametrize("kind", TABLES)
def test_a_missing_number_is_a_nan_that_is_named(kind):
    table = TABLES[kind]({"a": [1.0, 2.0], "b": [1.0, None]})
    with pytest.raises(fb.DataError, match="X: expected finite numbers, got nan in row 1, column 1"):
        fb.Trainer(fb.MLP([2, 2])).fit(table, [0, 1], verbose=0)


def test_pandas_own_dtypes():
    pandas = import_of("pandas")
    frame = pandas.DataFrame(MIXED).astype({"a": "Int64", "b": "boolean", "c": "Float32"})
    assert as_array(frame, "X").tolist() == [[1, 1, 0.5], [2, 0, -1], [3, 1, 2]]
    frame.loc[1, ["a", "b"]] = pandas.NA
    np.testing.assert_array_equal(as_array(frame, "X"), [[1, 1, 0.5], [np.nan, np.nan, -1], [3, 1, 2]])
    numbers = pandas.DataFrame({"a": pandas.Series([1, 2], dtype="category"), "b": [1.0, 2.0]})
    with pytest.raises(fb.DTypeError, match=r"got a \(category\)$"):
        as_array(numbers, "X")


# -- what cannot be read -----------------------------------------------------------------------------------------------


class Elsewhere:
    """An array of a GPU that copies itself when it is asked to, as JAX's do."""

    device = "cuda:0"

    def __dlpack_device__(self):
        return 2, 0

    def __array__(self, dtype=None, copy=None):
        return X


class Lent:
    """An array of Numba on a GPU: another protocol, and it copies itself, too."""

    __cuda_array_interface__: ClassVar = {"version": 3, "shape": X.shape, "typestr": "<f4", "data": (4096, False)}
    __array__ = Elsewhere.__array__


def of_torch(make):
    return lambda: make(import_of("torch"))


REFUSED = {
    "grad": (of_torch(lambda t: t.ones(3, WIDTH, requires_grad=True)), fb.DTypeError, r"got Tensor: .*\.detach\(\)"),
    "meta": (
        of_torch(lambda t: t.ones(3, WIDTH, device="meta")),
        fb.DTypeError,
        "NumPy can look at, got Tensor: .*meta",
    ),
    "sparse": (of_torch(lambda t: t.ones(3, WIDTH).to_sparse()), fb.DTypeError, r"got Tensor: .*to_dense"),
    "bfloat16": (of_torch(lambda t: t.ones(3, WIDTH).bfloat16()), fb.DTypeError, "got Tensor: .*BFloat16"),
    "jax-bfloat16": (lambda: import_of("jax.numpy").ones((3, WIDTH), "bfloat16"), fb.DTypeError, "got bfloat16"),
    "cuda": (Elsewhere, fb.DTypeError, "NumPy can look at, got Elsewhere: its memory is that of cuda:0"),
    "numba": (Lent, fb.DTypeError, "NumPy can look at, got Lent: its memory is that of another device"),
    "lazy": (lambda: polars_table(MIXED).lazy(), fb.DTypeError, r"got a LazyFrame; \.collect\(\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(kind):
    make, error, words = REFUSED[kind]
    value = make()
    trainer = fb.Trainer(fb.MLP([WIDTH, 2]))
    for where, call in (("X", lambda: trainer.fit(value, Y)), ("x", lambda: trainer.step(value, Y))):
        with pytest.raises(error, match=f"^{where}: .*{words}"):
            call()
    if kind != "lazy":  # labels of any kind are told how to become numbers
        with pytest.raises(error, match=f"^y: .*{words}"):
            trainer.fit(X, value)
    assert trainer.steps == 0
