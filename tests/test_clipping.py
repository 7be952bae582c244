"""Gradients held to a norm or a value: torch's numbers, the same bits for any number of threads."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from helpers import (
    BACKENDS,
    INPUTS,
    OUTPUTS,
    assert_same_bits,
    assert_same_trainer,
    difference,
    make_data,
    make_trainer,
)

import fastbatch as fb

backends = pytest.mark.parametrize("backend", BACKENDS)
SMALL, LARGE = (INPUTS, 16, OUTPUTS), (INPUTS, 300, 40, OUTPUTS)  # on either side of plan.SMALL_GRADIENT
sizes = pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
# from below the gradients of make_data to above them, so that some updates are clipped and some are not
LIMITS = {
    "norm": {"max_grad_norm": 0.5},
    "value": {"clip_value": 0.02},
    "both": {"max_grad_norm": 0.5, "clip_value": 0.02},
}
limits = pytest.mark.parametrize("limit", LIMITS)


def _with_torch(trainer, x, y, batch, epochs):
    """Norms before clipping, in torch in float64, whose module is trained beside `trainer`; and its parameters."""
    torch = pytest.importorskip("torch")
    layers = []
    settings = [trainer._plan.settings[f"{layer}.w"] for layer in range(len(trainer.model.weights))]
    for (w, b), setting in zip(trainer.model.weights, settings, strict=True):
        layers += [torch.nn.Linear(*w.shape, dtype=torch.float64), torch.nn.Tanh()]
        layers[-2].requires_grad_(setting is not None)
        layers[-2].weight.data = torch.tensor(w.T.astype(np.float64))
        layers[-2].bias.data = torch.tensor(b.astype(np.float64))
    module = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.tensor(x.astype(np.float64)), torch.tensor(y.astype(np.float64))
    norms = []
    for _ in range(epochs):
        for start in range(0, len(x), batch):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(x[start : start + batch]), y[start : start + batch]).backward()
            # infinity measures and leaves the gradient alone
            most = trainer.max_grad_norm or float("inf")
            norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), most).item())
            if trainer.clip_value:
                torch.nn.utils.clip_grad_value_(module.parameters(), trainer.clip_value)
            optimizer.step()
    flat = [part for layer in layers[::2] for part in (layer.weight.detach().T.ravel(), layer.bias.detach())]
    return np.array(norms), np.concatenate(flat)


@backends
@sizes
@limits
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_clips_the_same(backend, sizes, limit, dtype):
    x, y = make_data(n=70)
    trainer = make_trainer(
        optimizer=fb.SGD(lr=0.1, momentum=0.9), sizes=sizes, dtype=dtype, backend=backend, **LIMITS[limit]
    )
    norms, parameters = _with_torch(trainer, x, y, 20, 5)
    history = trainer.fit(x, y, batch_size=20, epochs=5, shuffle=False)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert difference(trainer.model.parameters, parameters) < tolerance
    if trainer.max_grad_norm is None:
        assert "grad_norm" not in history
    else:
        np.testing.assert_allclose(history["grad_norm"], norms.reshape(5, 4).mean(axis=1), rtol=tolerance)
        assert norms.min() < trainer.max_grad_norm < norms.max(), "no update that is clipped beside one that is not"


@backends
@sizes
@pytest.mark.parametrize("frozen", [0, -1])
def test_torch_leaves_frozen_layers_out(backend, sizes, frozen):
    """Parameters that require no gradient are neither in the norm nor clipped."""
    x, y = make_data(n=70)
    trainer = make_trainer(
        optimizer=fb.SGD(lr=0.1, momentum=0.9, frozen=[frozen]), sizes=sizes, dtype="float64", backend=backend,
        max_grad_norm=0.05,
    )  # fmt: skip
    whole = np.linalg.norm(trainer.gradients(x[:20], y[:20])[1])
    norms, parameters = _with_torch(trainer, x, y, 20, 5)
    history = trainer.fit(x, y, batch_size=20, epochs=5, shuffle=False)
    assert difference(trainer.model.parameters, parameters) < 1e-12
    np.testing.assert_allclose(history["grad_norm"], norms.reshape(5, 4).mean(axis=1), rtol=1e-12)
    assert 0.05 < norms[0] < 0.99 * whole, "some of it is frozen, and the rest is clipped"


@sizes
@limits
def test_threads_change_no_bit(sizes, limit):
    x, y = make_data("cross_entropy", 333)
    trainers = []
    for threads in (1, 2, 3):
        with fb.set_num_threads(threads, exact=True):
            trainers.append(make_trainer("cross_entropy", sizes=sizes, dropout=0.1, **LIMITS[limit]))
            trainers[-1].fit(x, y, batch_size=100, epochs=2)
            if trainers[-1].backend == "c":
                assert trainers[-1].threads_used == threads
    for other in trainers[1:]:
        assert_same_trainer(other, trainers[0])
        assert {**other.history, "time": 0} == {**trainers[0].history, "time": 0}


@backends
@sizes
def test_a_norm_that_is_not_reached_changes_no_bit(backend, sizes):
    x, y = make_data()
    clipped, plain = (make_trainer(sizes=sizes, backend=backend, max_grad_norm=limit) for limit in (1e6, None))
    norm = np.linalg.norm(clipped.gradients(x, y)[1])
    assert clipped.fit(x, y, batch_size="full")["grad_norm"] == [pytest.approx(norm, rel=1e-5)]
    plain.fit(x, y, batch_size="full")
    assert "grad_norm" not in plain.history
    assert_same_trainer(clipped, plain)


@backends
@sizes
@limits
def test_every_way_to_an_update_clips(backend, sizes, limit):
    x, y = make_data("mse", 30)
    recipe = {"sizes": sizes, "backend": backend, "optimizer": fb.SGD(lr=1.0), **LIMITS[limit]}
    by_fit, by_step, by_list, by_hand = (make_trainer(**recipe) for _ in range(4))
    for _ in range(3):
        by_fit.fit(x, y, batch_size="full", shuffle=False)
        by_step.step(x, y)
        by_list.step(x.tolist(), y.tolist())  # beside the fast path
        z = by_hand.forward(x)
        by_hand.backward(2 * (z - y) / z.size)
        by_hand.update()
    assert_same_bits(by_step.model.parameters, by_fit.model.parameters)
    assert_same_bits(by_list.model.parameters, by_fit.model.parameters)
    assert difference(by_hand.model.parameters, by_fit.model.parameters) < 1e-5
    before, gradient = by_hand.model.parameters.copy(), by_hand.gradients(x, 20 * y)[1]
    by_hand.step(x, 20 * y)
    moved = before - by_hand.model.parameters
    assert np.linalg.norm(gradient) > 2
    if "max_grad_norm" in LIMITS[limit]:
        assert np.linalg.norm(moved) <= by_hand.max_grad_norm * (1 + 1e-5)
    if "clip_value" in LIMITS[limit]:
        assert np.abs(moved).max() == pytest.approx(by_hand.clip_value, abs=1e-6)


def test_a_copy_clips_too():
    x, y = make_data()
    trainer = make_trainer(**LIMITS["both"])
    assert_same_trainer(copy.deepcopy(trainer), trainer)
    twin = copy.deepcopy(trainer)
    for one in (trainer, twin):
        one.fit(x, 10 * y)
    assert_same_trainer(twin, trainer)


@backends
@sizes
@limits
def test_what_is_not_finite_is_not_clipped_to_something(backend, sizes, limit):
    """Infinity times 0 would be NaN, and infinity held to a value a number."""
    x, y = make_data()
    trainer = make_trainer(sizes=sizes, backend=backend, **LIMITS[limit])
    trainer.step(x, y)
    before = trainer.model.parameters.copy()
    dz = np.full_like(y, 3e38)
    trainer.forward(np.abs(x) + 1)
    trainer.backward(dz)
    with pytest.raises(fb.DivergenceError, match="gradient"):
        trainer.update()
    assert_same_bits(trainer.model.parameters, before)
    assert trainer.steps == 1


@backends
@sizes
def test_a_large_gradient_is_clipped_where_its_square_overflows(backend, sizes):
    x, y = make_data()
    trainer = make_trainer(sizes=sizes, backend=backend, optimizer=fb.SGD(lr=1.0), max_grad_norm=0.5)
    before = trainer.model.parameters.copy()
    trainer.forward(x)
    trainer.backward(np.full_like(y, 1e30))
    trainer.update()
    assert np.linalg.norm(trainer.model.parameters - before) == pytest.approx(0.5, rel=1e-4)


@backends
@limits
def test_a_batch_of_no_weight_is_a_gradient_of_norm_0(backend, limit):
    x, y = make_data()
    trainer = make_trainer(optimizer=fb.SGD(lr=1.0), backend=backend, **LIMITS[limit])
    before = trainer.model.parameters.copy()
    history = trainer.fit(x, y, sample_weight=np.zeros(len(x)))
    assert_same_bits(trainer.model.parameters, before)
    assert history.get("grad_norm", [0.0]) == [0.0]


@pytest.mark.parametrize("name", ["max_grad_norm", "clip_value"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", [1.0]])
def test_limits_are_numbers_above_0(name, value):
    with pytest.raises(fb.ArgumentError, match=rf"Trainer\({name}=\): expected a finite number > 0 or None, got"):
        make_trainer(**{name: value})


@backends
@sizes
def test_the_norm_leaves_frozen_layers_out(backend, sizes):
    """torch's is over the parameters that have a gradient."""
    x, y = make_data(n=40)
    model = make_trainer(sizes=sizes).model
    for frozen in range(len(model.weights)):
        trainer = make_trainer(
            optimizer=fb.SGD(lr=1.0, frozen=[frozen]), sizes=sizes, backend=backend, max_grad_norm=1e6
        )
        gradient, at = trainer.gradients(x, y)[1], 0
        for layer, (w, b) in enumerate(trainer.model.weights):
            gradient[at : at + w.size + b.size] *= layer != frozen
            at += w.size + b.size
        assert trainer.fit(x, y, batch_size="full")["grad_norm"] == [pytest.approx(np.linalg.norm(gradient), rel=1e-5)]


NORMED = {
    "lamb": fb.LAMB(lr=0.1, weight_decay=0.1),
    "lars": fb.LARS(lr=1.0, weight_decay=0.1, trust_coefficient=0.1),
}


@sizes
@limits
@pytest.mark.parametrize("optimizer", NORMED)
def test_rules_with_norms_see_the_clipped_gradient(sizes, limit, optimizer):
    x, y = make_data(n=70)
    recipe = {"optimizer": NORMED[optimizer], "sizes": sizes, "dtype": "float64"}
    plain = make_trainer(backend="reference", **recipe)
    by_reference, by_default = (make_trainer(backend=name, **recipe, **LIMITS[limit]) for name in ("reference", "auto"))
    for trainer in (plain, by_reference, by_default):
        trainer.fit(x, y, batch_size=20, epochs=3)
    assert difference(by_reference.model.parameters, plain.model.parameters) > 1e-6, "nothing was clipped"
    assert difference(by_default.model.parameters, by_reference.model.parameters) < 1e-11


@backends
def test_a_penalty_by_weight_is_not_clipped(backend):
    x, y = make_data(n=40)
    optimizer = fb.SGD(lr=1.0, weight_decay=3.0, semantics="sklearn")
    for limit in ({"max_grad_norm": 1e-9}, {"clip_value": 1e-9}):
        trainer = make_trainer(optimizer=optimizer, sizes=SMALL, dtype="float64", backend=backend, **limit)
        before = trainer.model.parameters.copy()
        trainer.fit(x, y, batch_size="full")
        w = trainer.model.weights[0][0]
        assert difference(w, before[: w.size].reshape(w.shape) * (1 - 3.0 / 40)) < 1e-6


@backends
@sizes
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_norms_whose_squares_leave_float32(backend, sizes, size):
    """A network of zeros: only the last bias has a gradient, the sum of dz."""
    x, _ = make_data(n=40)
    trainer = make_trainer(optimizer=fb.SGD(lr=1.0), sizes=sizes, backend=backend, max_grad_norm=size / 100)
    trainer.model.parameters[:] = 0
    dz = (size * np.random.default_rng(0).uniform(0.5, 1, (40, OUTPUTS))).astype(np.float32)
    norm = np.linalg.norm(dz.sum(axis=0, dtype=np.float64))
    trainer.forward(x, training=True)
    trainer.backward(dz)
    trainer.update()
    made = np.linalg.norm(trainer.model.parameters.astype(np.float64))
    assert made == pytest.approx(size / 100 * norm / (norm + 1e-6), rel=1e-5)  # the constant is torch's
