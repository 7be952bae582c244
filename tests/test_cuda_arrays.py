"""Arrays in the memory of a device, given to trainers of the cuda backend: in the simulator, which has none."""

from __future__ import annotations

import types as python

import numpy as np
import pytest
from cases import rng_of

import fastbatch as fb
from fastbatch.backends import get

pytest.importorskip("numba_cuda")

from test_cuda_device import _steady, pytestmark  # noqa: F401  skips where there is no device

from fastbatch.backends.cuda import shim, steps
from fastbatch.backends.cuda.shim import SIMULATED, cuda

if not SIMULATED:
    pytest.skip("pretends that memory of the host is a device's; test_cuda_gpu.py has tensors", allow_module_level=True)


class ByInterface:
    """Memory of the host that says it is a device's."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.__cuda_array_interface__ = array, {**array.__array_interface__, "version": 3}


class ByDLPack:
    """The same, by the other protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options):
        assert options["stream"] == 1
        return self.array.__dlpack__()


def of_host(rows) -> object:
    """What is at an address of theirs, where the device is simulated."""
    given = rows.__cuda_array_interface__
    held = python.SimpleNamespace(__array_interface__={**given, "version": 3}, owner=rows)
    return cuda.to_device(np.ascontiguousarray(held))


@pytest.fixture(autouse=True)
def _memory_of_the_host(monkeypatch):
    monkeypatch.setattr(steps, "as_device", of_host)
    monkeypatch.setattr(shim, "as_device", of_host)


def trainer(**options) -> fb.Trainer:
    return fb.Trainer(fb.MLP([5, 9, 3], seed=1), "cross_entropy", backend="cuda", **options)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that are part of a wider array, labels, weights."""
    rng = rng_of("there")
    wide = rng.standard_normal((22, 7)).astype(np.float32)
    return wide[1:, 1:6], rng.integers(0, 3, 21), rng.uniform(0, 2, 21).astype(np.float32)


KINDS = pytest.mark.parametrize("there", [ByInterface, ByDLPack], ids=["interface", "dlpack"])


@KINDS
@pytest.mark.parametrize(
    "options", [{}, {"shuffle": False, "drop_last": True}, {"sampling": "balanced", "class_weight": "balanced"}]
)
def test_a_fit_reads_rows_where_they_lie(there, options):
    """Labels, weights and validation rows lie there, too; one epoch has a ragged last batch."""
    found = []
    for place in (there, np.asarray):
        x, y, weight = map(place, data())
        made = trainer()
        history = made.fit(
            x, y, sample_weight=weight, validation_data=(x, y, weight), batch_size=8, epochs=2, verbose=0, **options
        )
        found.append((made.model.parameters.tobytes(), history["loss"], history["val_loss"]))
    assert found[0] == found[1]


@KINDS
def test_rows_are_not_fetched(there, monkeypatch):
    """y is looked at by the CPU, x is not."""
    fetched, original = [], shim.fetched
    monkeypatch.setattr(
        type(get("cuda")), "fetched", staticmethod(lambda v, where: fetched.append(where) or original(v, where))
    )
    x, y, weight = map(there, data())
    trainer().fit(x, y, sample_weight=weight, batch_size=8, epochs=1, verbose=0)
    assert fetched == ["y", "sample_weight"]


@KINDS
def test_predict_evaluate_and_step(there):
    x, y, weight = data()
    ours, theirs = trainer(), trainer()
    assert ours.step(there(x), there(y), there(weight)) == theirs.step(x, y, weight)
    assert (
        ours.partial_fit(there(x), y).model.parameters.tobytes() == theirs.partial_fit(x, y).model.parameters.tobytes()
    )
    outputs = ours.predict(there(x))
    assert type(outputs) is np.ndarray
    assert outputs.tobytes() == theirs.predict(x).tobytes()
    assert ours.evaluate(there(x), there(y), there(weight)) == theirs.evaluate(x, y, weight)
    assert ours.predict(there(x[:0])).shape == (0, 3)


@KINDS
def test_bytes_are_converted_there(there):
    rng = rng_of("bytes")
    x, y = rng.integers(0, 255, (13, 5)).astype(np.uint8), rng.integers(0, 3, 13)
    assert trainer().predict(there(x)).tobytes() == trainer().predict(x.astype(np.float32)).tobytes()
    losses = [trainer().fit(place(x), y, epochs=1, verbose=0)["loss"] for place in (there, np.asarray)]
    assert losses[0] == losses[1]


@KINDS
def test_what_is_not_read_there_is_refused(there):
    x, y, _ = data()
    given, made = there(x), trainer()
    for refused in ({"validation_split": 0.2}, {"input_scale": "standardize"}, {"augment": fb.augment.Noise(0.1)}):
        with pytest.raises(fb.DTypeError, match="in the memory of the CPU for this"):
            made.fit(given, y, batch_size=8, verbose=0, **refused)
    with pytest.raises(fb.DTypeError, match="NumPy can look at"):
        made.gradients(given, y)
    for wrong in (lambda: made.fit(there(x[:, :4]), y, verbose=0), lambda: made.predict(there(x[:, :4]))):
        with pytest.raises(fb.ShapeError, match=r"expected shape \(n, 5\) on the device, got \(21, 4\)"):
            wrong()
    with pytest.raises(fb.DataError, match=r"^y: expected"):
        made.fit(given, there(y + 1), verbose=0)
    with pytest.raises(fb.DTypeError, match="but float16 on a device"):
        made.fit(there(x.astype(np.float16)), y, verbose=0)
    with pytest.raises(fb.FastbatchError):
        fb.Trainer(fb.MLP([5, 3]), "cross_entropy", backend="reference").fit(given, y, verbose=0)
    x = x.copy()
    x[3, 2] = np.nan
    with pytest.raises(fb.DivergenceError):
        made.step(there(x), y)


def test_what_cannot_be_lent_is_said():
    class Refusing(ByDLPack):
        def __dlpack__(self, **options):
            raise RuntimeError("it asks for a gradient")

    with pytest.raises(fb.DTypeError, match=r"X: expected what .* got Refusing: it asks for a gradient"):
        trainer().fit(Refusing(data()[0]), data()[1], verbose=0)
