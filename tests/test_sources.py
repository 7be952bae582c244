"""X of every dtype and layout gives the bits that the converted array gives, and is never converted as a whole."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from tiers import thin

import fastbatch as fb
from fastbatch import _native, checks

WIDTHS = (1, 5, 16, 37)
ROWS = 41


def values(dtype: str, width: int, rows: int = ROWS) -> np.ndarray:
    """Numbers over the range of `dtype`, as far as a network can train on them; halves below the normal ones, too."""
    rng = np.random.default_rng(width)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random((rows, width)) < 0.5
    if kind in "iu":
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, (rows, width), dtype, endpoint=True)
        x[rng.random(x.shape) < 0.1] = info.max
        return x
    x = rng.normal(size=(rows, width))
    if dtype == "float16":
        x[::3] *= 1e-6
    return x.astype(dtype)


def reversed_rows(x):
    return x[::-1].copy()[::-1]


def reversed_columns(x):
    return x[:, ::-1].copy()[:, ::-1]


def strided(x):
    room = np.zeros((2 * len(x), 3 * x.shape[1]), x.dtype)
    room[::2, ::3] = x
    return room[::2, ::3]


def padded_rows(x):
    room = np.zeros((len(x), x.shape[1] + 3), x.dtype)
    room[:, : x.shape[1]] = x
    return room[:, : x.shape[1]]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return raw[1:].view(x.dtype).reshape(x.shape)


def swapped(x):
    return x.astype(x.dtype.newbyteorder())


LAYOUTS = {
    "c": np.ascontiguousarray,
    "f": np.asfortranarray,
    "strided": strided,
    "padded": padded_rows,
    "read-only": read_only,
    "negative-rows": reversed_rows,
    "negative-columns": reversed_columns,
    "misaligned": misaligned,
    "swapped": swapped,
}

BACKENDS = [row["name"] for row in fb.backends() if row["available"] and row["device"] == "cpu"]


def trained(x, y, backend: str, shuffle: bool = True) -> fb.Trainer:
    model = fb.MLP([x.shape[1], 7, 3], seed=1)
    trainer = fb.Trainer(model, optimizer=fb.Adam(1e-3), backend=backend, seed=2)
    trainer.fit(x, y, batch_size=8, epochs=2, shuffle=shuffle, verbose=0)
    return trainer


@functools.cache
def of_converted(dtype: str, width: int, backend: str) -> dict:
    return everything(values(dtype, width).astype(np.float32), backend)


def everything(x, backend: str) -> dict:
    """What a trainer makes of `x`, as bytes and numbers."""
    y, found = np.arange(ROWS) % 3, {}
    for shuffle in (True, False):
        trainer = trained(x, y, backend, shuffle)
        found |= {f"fit {shuffle}": trainer.model.parameters.tobytes(), f"loss {shuffle}": trainer.history["loss"]}
    loss, gradient = trainer.gradients(x, y, micro_batch_size=11)
    found |= {"gradients": (loss, gradient.tobytes()), "evaluate": trainer.evaluate(x, y)}
    found |= {"predict": trainer.predict(x).tobytes(), "model.predict": trainer.model.predict(x).tobytes()}
    found |= {"gradient_norms": trainer.gradient_norms(x, y).tobytes(), "step": trainer.step(x, y)}
    trainer.backward(trainer.forward(x) * np.float32(1e-20))  # 64-bit integers are large
    trainer.update()
    return {**found, "update": trainer.model.parameters.tobytes()}


@thin(4, "dtype", "backend")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", checks.SOURCES)
def test_every_dtype_and_layout_has_the_bits_of_the_converted_array(dtype, layout, backend):
    for width in WIDTHS:
        plain = values(dtype, width)
        x = LAYOUTS[layout](plain)
        assert (x == plain).all()
        got = everything(x, backend)
        for name, wanted in of_converted(dtype, width, backend).items():
            assert got[name] == wanted, f"width {width}: {name}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_and_columns_may_be_broadcast(backend):
    y = np.arange(ROWS) % 3
    for x in (np.broadcast_to(values("uint8", 5, 1), (ROWS, 5)), np.broadcast_to(values("float32", 1), (ROWS, 5))):
        got, wanted = trained(x, y, backend), trained(x.astype(np.float32, order="C"), y, backend)
        assert got.model.parameters.tobytes() == wanted.model.parameters.tobytes()


def test_a_row_of_each_source_is_named_alike():
    assert tuple(_native.sources) == checks.SOURCES


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves(backend):
    """Every finite float16, through a network that is the identity."""
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)][:, None]
    model = fb.Sequential([fb.Dense(1, bias=False)], input_size=1)
    model.parameters[:] = 1
    out = fb.Trainer(model, loss="mse", backend=backend).predict(x)
    assert (out == x.astype(np.float32)).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mapped_file_is_read_where_it_lies(tmp_path, threads):
    path, plain = tmp_path / "x.npy", values("uint8", 37)
    np.save(path, plain)
    x, y = np.load(path, mmap_mode="r"), np.arange(ROWS) % 3
    with fb.set_num_threads(threads, exact=True):
        got = trained(x, y, BACKENDS[0])
    assert got.model.parameters.tobytes() == trained(plain, y, BACKENDS[0]).model.parameters.tobytes()


def test_a_strided_view_reads_no_byte_beside_it():
    """NaN between the rows and columns of a view does not reach the network."""
    room = np.full((2 * ROWS, 15), np.nan)
    room[::2, 1:10:2] = values("float64", 5)
    x, y = room[::2, 1:10:2], np.arange(ROWS) % 3
    assert np.isfinite(trained(x, y, BACKENDS[0]).model.parameters).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", "CF")
def test_bytes_are_never_converted_as_a_whole(order, backend):
    """25 MB of uint8 would be 100 MB of float32."""
    x = np.zeros((32000, 784), np.uint8, order=order)
    y = np.zeros(len(x), np.int64)
    trainer = fb.Trainer(fb.MLP([784, 4]), backend=backend)
    tracemalloc.start()
    try:
        trainer.fit(x, y, batch_size=64, verbose=0)
        trainer.evaluate(x, y)
        trainer.predict(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6
