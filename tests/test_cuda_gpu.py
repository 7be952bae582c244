"""What only a GPU can show: graphs, queues beside each other, real tiles and sizes. `make test-gpu` runs it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import SUBJECTS, DenseCase, parametrize, rng_of

import fastbatch as fb
from fastbatch.backends import get, gpu

pytest.importorskip("numba_cuda")

from fastbatch.backends.cuda import choice, steps, tiles
from fastbatch.backends.cuda.shim import Graph, cuda
from fastbatch.backends.cuda.tensor import BF16, TF32

pytestmark = pytest.mark.gpu

if gpu() is None:
    pytest.skip("no GPU", allow_module_level=True)

SUBJECTS["cuda"] = get("cuda")

# around the edges of both tiles, of the depth of their panels, and of stretches of rows
SHAPES = [
    (1, 1, 1),
    (31, 33, 32),
    (33, 31, 1),
    (127, 17, 65),
    (129, 784, 63),
    (300, 401, 270),
    (1025, 64, 64),
    (4096, 70, 130),
]


@parametrize(
    [DenseCase("forward", "cuda", dtype, "tanh", *shape) for dtype in ("float32", "float64") for shape in SHAPES]
)
def test_dense_forward(case):
    oracle.check_dense_forward(get("cuda"), case)


@parametrize(
    [DenseCase("backward", "cuda", dtype, "gelu", *shape) for dtype in ("float32", "float64") for shape in SHAPES]
)
def test_dense_backward(case):
    oracle.check_dense_backward(get("cuda"), case)


def fitted(
    backend: str, sizes=(784, 512, 256, 10), batch: int = 128, rows: int = 1500, epochs: int = 2, x=None, **options
):
    rng = rng_of("gpu")
    given = rng.standard_normal((rows, sizes[0])).astype(np.float32)
    y = rng.integers(0, sizes[-1], rows)
    model = fb.MLP(list(sizes), dropout=0.2, seed=1)
    trainer = fb.Trainer(
        model, "cross_entropy", fb.SGD(lr=1e-2, momentum=0.9), backend=backend, seed=3, max_grad_norm=5.0, **options
    )
    history = trainer.fit(given if x is None else x(given), y, batch_size=batch, epochs=epochs, verbose=0)
    return model.parameters.copy(), history["loss"]


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((784, 512, 256, 10), 128), ((8, 64, 64, 4), 64), ((64, 64, 64, 64, 10), 1400), ((256, 1024, 1024, 100), 700)],
    ids=str,
)  # fmt: skip
def test_fits_are_those_of_c(sizes, batch):
    ours, theirs = fitted("cuda", sizes, batch), fitted("c", sizes, batch)
    oracle.assert_norm_close(ours[0], theirs[0], 1e-4, "parameters")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4)


@pytest.mark.parametrize("arithmetic", [TF32, BF16])
def test_tensor_cores_are_right(arithmetic):
    """Before they are judged by their speed, which is another machine's matter."""
    assert choice.wrong(arithmetic) == ""
    assert choice.trial(arithmetic).gain > 0


@pytest.mark.parametrize("tensor", [False, True], ids=["multiply-adds", "tensor cores"])
def test_either_arithmetic_fits_like_c(tensor, monkeypatch):
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("" if tensor else "not asked for", 2.0))
    ours, theirs = fitted("cuda"), fitted("c")
    oracle.assert_norm_close(ours[0], theirs[0], 1e-4, "parameters")
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("not asked for" if tensor else "", 2.0))
    assert fitted("cuda")[0].tobytes() != ours[0].tobytes(), "the same bits: it is not chosen"


def test_bf16_learns_like_float32(monkeypatch):
    monkeypatch.setattr(choice, "trial", lambda *given: choice.Trial("", 2.0))
    rounded, exact = fitted("cuda", precision="bf16"), fitted("cuda")
    assert rounded[0].tobytes() == fitted("cuda", precision="bf16")[0].tobytes()
    assert rounded[0].tobytes() != exact[0].tobytes()
    np.testing.assert_allclose(rounded[1], exact[1], rtol=0.02)


def test_runs_repeat_to_the_bit():
    first, second = fitted("cuda"), fitted("cuda")
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1] == second[1]


def test_a_graph_makes_the_steps_that_launches_make(monkeypatch):
    recorded, made = [], fitted("cuda")
    monkeypatch.setattr(steps, "Graph", lambda record: recorded.append(record) or Graph(record))
    again = fitted("cuda")
    assert recorded
    monkeypatch.setattr(steps, "SIMULATED", True)
    alone = fitted("cuda")
    assert made[0].tobytes() == again[0].tobytes() == alone[0].tobytes()


def test_streamed_rows_are_the_same_rows(monkeypatch):
    whole = fitted("cuda")
    monkeypatch.setattr(steps, "_SHARE", 0.0)
    monkeypatch.setattr(steps, "BLOCK_BYTES", 784 * 4 * 128 * 3)
    assert fitted("cuda")[0].tobytes() == whole[0].tobytes()


@pytest.mark.parametrize("protocol", ["array interface", "DLPack"])
def test_tensors_of_torch_are_read_where_they_lie(protocol):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU here")
    rng, found = rng_of("torch"), []
    x, y = rng.standard_normal((500, 20)).astype(np.float32), rng.integers(0, 5, 500)
    for here in (True, False):
        trainer = fb.Trainer(fb.MLP([20, 300, 5], norm="batch", seed=1), "cross_entropy", backend="cuda", seed=2)
        given = (x, y) if here else tuple(torch.tensor(a, device="cuda") for a in (x, y))
        if protocol == "DLPack" and not here:
            given = tuple(map(Lent, given))
        trainer.fit(*given, batch_size=64, epochs=2, verbose=0)
        found.append((trainer.model.parameters.tobytes(), trainer.predict(given[0]).tobytes()))
    assert found[0] == found[1]


class Lent:
    """What has no other protocol than DLPack."""

    def __init__(self, tensor) -> None:
        self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__


def test_more_memory_than_there_is_is_an_error():
    total = cuda.current_context().get_memory_info().total
    rows = total // (4 * 4096)
    trainer = fb.Trainer(fb.MLP([1, 4096, 1]), "mse", backend="cuda")
    x = np.zeros((rows, 1), np.float32)
    with pytest.raises(fb.BackendError, match="MiB of device memory"):
        trainer.fit(x, x, batch_size=rows, verbose=0)


def test_tiles_are_those_of_a_gpu():
    assert tiles.LARGE.threads == (16, 16)
