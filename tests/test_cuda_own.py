"""Operations of one's own on the cuda backend, in the simulator or on a GPU: what the built-in of their formula is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import test_custom
from cases import rng_of
from own_ops import own_adam, own_huber, own_momentum
from test_custom import _registered  # noqa: F401  a fixture

import fastbatch as fb
from fastbatch import ops
from fastbatch.backends import get

pytest.importorskip("numba_cuda")

from test_cuda_device import _steady, pytestmark  # noqa: F401  skips where there is no device

from fastbatch.backends.cuda.shim import SIMULATED

OWN = {
    "activation": {"activation": "own_silu"},
    "loss": {"loss": "own_huber"},
    "optimizer": {"optimizer": own_adam(0.01)},
    "hyper": {"optimizer": own_momentum(0.01, momentum=0.5)},
    "all": {"activation": "own_silu", "loss": own_huber(), "optimizer": own_adam(0.01, weight_decay=0.01, l1=1e-3)},
}
BUILT_IN = {
    "hyper": {"optimizer": fb.SGD(0.01, momentum=0.5)},
    "all": {"optimizer": fb.Adam(0.01, weight_decay=0.01, l1=1e-3)},
}


def trained(dtype: str, norm: str | None, backend: str = "cuda", **given) -> fb.Trainer:
    options = {"activation": "silu", "loss": "huber", "optimizer": fb.Adam(0.01), **given}
    rng = rng_of("own")
    x, y = rng.standard_normal((11, 5)).astype(dtype), rng.standard_normal((11, 3)).astype(dtype)
    model = fb.MLP([5, 7, 3], activation=options["activation"], norm=norm, dropout=0.2, seed=4, dtype=dtype)
    trainer = fb.Trainer(model, options["loss"], options["optimizer"], backend=backend, max_grad_norm=1.0)
    trainer.fit(x, y, epochs=2, batch_size=6, verbose=0, sample_weight=np.linspace(0, 2, 11))
    return trainer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OWN)
def test_is_what_the_built_in_of_its_formula_is(name, dtype):
    norm = "layer" if name == "all" else None
    got, expected = trained(dtype, norm, **OWN[name]), trained(dtype, norm, **BUILT_IN.get(name, {}))
    for ours, theirs in (
        (got.model.parameters, expected.model.parameters),
        (got.slots, expected.slots),
        (got.history["loss"], expected.history["loss"]),
    ):
        test_custom.close(ours, theirs, dtype)


def test_a_small_network_of_theirs():
    """Without dropout one kernel takes rows through all layers."""
    rng, found = rng_of("small"), []
    x, y = (rng.standard_normal((11, 3)).astype(np.float32) for _ in range(2))
    for activation, loss in (("own_silu", "own_huber"), ("silu", "huber")):
        trainer = fb.Trainer(fb.MLP([3, 5, 3], activation=activation, seed=1), loss, fb.SGD(0.1), backend="cuda")
        trainer.fit(x, y, epochs=2, batch_size=6, verbose=0)
        assert trainer._program._steps._reserve(1).is_small
        found.append(np.concatenate([trainer.model.parameters, trainer.predict(x).ravel()]))
    test_custom.close(*found, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels(dtype):
    """Those on arrays of the host, against the reference."""
    rng, found = rng_of("kernels"), []
    row, loss, optimizer = ops.get_activation("own_silu"), own_huber(), own_adam(0.01, weight_decay=0.1)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 5), (5, 7), 7))
    y, da = (3 * rng.standard_normal((2, 3, 7))).astype(dtype)
    for kernels in (get("cuda"), get("reference")):
        a, z, d = np.zeros((3, 3, 7), dtype)
        kernels.dense_forward(x, w, b, row, a, z)
        dw, db, dx = np.zeros_like(w), np.zeros_like(b), np.zeros_like(x)
        kernels.dense_backward(da, x, w, z, row, dw, db, dx)
        sums = kernels.loss(a, y, loss, np.array([0.5, 0.0, 2.0]), d)
        p, slots = w.copy().ravel(), np.zeros((2, w.size), dtype)
        kernels.update(optimizer, p, dw.ravel(), slots, 3, 0.01)
        found.append((a, z, dw, db, dx, d, p, slots, np.array([sums.loss, sums.weight])))
    for ours, theirs in zip(*found):
        oracle.assert_norm_close(ours, theirs, {"float32": 1e-5, "float64": 1e-12}[dtype], "a result")


def times(factor: float) -> None:
    @fb.activation(derivative=lambda z: factor)
    def own_factor(z):
        return factor * z


def test_two_of_a_name_are_two():
    """What is registered again replaces the one before; trainers that are there keep theirs."""
    try:
        made, found, x = [], [], np.ones((1, 2))
        for factor in (1.0, 3.0):
            times(factor)
            made.append(fb.Trainer(fb.MLP([2, 3, 1], activation="own_factor", seed=1), "mse", backend="cuda"))
            found.append(made[-1].predict(x))
        test_custom.close(found[1], 3 * found[0], "float32")
        assert made[0].predict(x) == found[0]
    finally:
        ops.ACTIVATIONS.pop("own_factor")


@pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing; test_cuda.py asks the compiler")
def test_what_cannot_be_compiled_is_refused_by_name():
    try:

        @fb.activation(derivative=lambda z: 1.0 if z > math.pi else 0.0)
        def own_sorted(z):
            return max(sorted([z, math.pi]))

        with pytest.raises(fb.BackendError, match=r"'own_sorted' cannot be compiled by Numba for the device: .*sorted"):
            fb.Trainer(fb.MLP([2, 3, 1], activation="own_sorted"), "mse", backend="cuda")
    finally:
        ops.ACTIVATIONS.pop("own_sorted")


def test_another_rule_is_noticed():
    case = {**OWN["all"], "optimizer": replace(OWN["all"]["optimizer"], beta1=0.8)}
    got, expected = trained("float64", None, **case), trained("float64", None, **BUILT_IN["all"])
    with pytest.raises(AssertionError):
        test_custom.close(got.model.parameters, expected.model.parameters, "float64")
