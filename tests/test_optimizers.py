"""Optimizers beyond one formula: settings of single layers, penalties, norms; whose formula: test_semantics."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, difference

import fastbatch as fb
from fastbatch import ops
from fastbatch.schedules import Exponential

backends = pytest.mark.parametrize("backend", BACKENDS)
SMALL, LARGE = (12, 24, 16, 5), (130, 90, 40, 5)  # gradients in parts; fused updates
sizes = pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
BOUND = {"float32": 1e-4, "float64": 1e-9}
STEPS, BATCH = 50, 32
EVERY = sorted(ops.OPTIMIZERS)


def _model(sizes=SMALL, dtype="float32"):
    model = fb.MLP(list(sizes), activation="tanh", seed=2, dtype=dtype)
    rng = np.random.default_rng(1)
    for _, b in model.weights:
        b[:] = rng.uniform(-0.5, 0.5, b.shape)
    return model


def _data(sizes=SMALL, dtype="float32", rows=STEPS * BATCH):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, sizes[0])).astype(dtype), rng.standard_normal((rows, sizes[-1])).astype(dtype)


def _trained(optimizer, backend, sizes=SMALL, steps=6, dtype="float32", **options):
    trainer = fb.Trainer(_model(sizes, dtype), "mse", optimizer, backend=backend, **options)
    x, y = _data(sizes, dtype, steps * BATCH)
    trainer.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return trainer


def _layers(trainer):
    return [part for pair in trainer.model.weights for part in pair]


# -- settings of single layers -----------------------------------------------------------------------------------------

GROUPS = {0: {"lr": 5e-3, "weight_decay": 0.1}, -1: {"lr_factor": 2.0}}


@backends
@sizes
@pytest.mark.parametrize(
    ("cls", "name", "options"),
    [
        (fb.SGD, "SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02}),
        (fb.AdamW, "AdamW", {"lr": 1e-3, "weight_decay": 0.05}),
        (fb.Adagrad, "Adagrad", {"lr": 0.01, "initial_accumulator_value": 0.1}),
    ],
)
def test_groups_are_parameter_groups_of_torch(backend, sizes, cls, name, options):
    """Weights and biases with settings of their own, and a frozen layer in the middle."""
    torch = pytest.importorskip("torch", reason="groups are compared with torch's")
    model = _model(sizes)
    trainer = fb.Trainer(model, "mse", cls(**options, groups=GROUPS, frozen=[1], decay_bias=False), backend=backend)
    linears = []
    for w, b in model.weights:
        linear = torch.nn.Linear(*w.shape)
        linear.weight.data, linear.bias.data = torch.tensor(w.T.copy()), torch.tensor(b.copy())
        linears += [linear, torch.nn.Tanh()]
    module = torch.nn.Sequential(*linears[:-1])
    plain = {"weight_decay": options.get("weight_decay", 0.0)}
    found = []
    for layer, own in ((0, {"lr": 5e-3, "weight_decay": 0.1}), (4, {"lr": 2 * options["lr"], **plain})):
        found.append({"params": [module[layer].weight], **own})
        found.append({"params": [module[layer].bias], **own, "weight_decay": 0.0})
    stepper = getattr(torch.optim, name)(found, **options)
    x, y = _data(sizes)
    middle = [part.copy() for part in model.weights[1]]
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        trainer.step(x[rows], y[rows])
        stepper.zero_grad()
        torch.nn.functional.mse_loss(module(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()
        stepper.step()
    for ours, theirs in zip(_layers(trainer), (p.detach().numpy().T for p in module.parameters())):
        assert difference(ours, theirs) < BOUND["float32"]
    for ours, before in zip(model.weights[1], middle):
        assert_same_bits(ours, before)


@backends
@sizes
@pytest.mark.parametrize("frozen", [(0,), (0, 1), (-2,), (0, 1, 2)])
@pytest.mark.parametrize("name", ["sgd", "adam", "lamb"])
def test_frozen_layers_keep_their_bits_and_the_others_theirs(backend, sizes, frozen, name):
    """Nothing of a frozen layer changes, its slots neither; the rest moves as if its gradient had been dropped."""
    row = replace(ops.get_optimizer(name), lr=1e-2, **({"momentum": 0.9} if name == "sgd" else {}))
    trainer = _trained(replace(row, frozen=frozen), backend, sizes)
    before, twin = _model(sizes), fb.Trainer(_model(sizes), "mse", row, backend=backend)
    x, y = _data(sizes, rows=6 * BATCH)
    for start in range(0, len(x), BATCH):
        twin.step(x[start : start + BATCH], y[start : start + BATCH])
        for layer in frozen:
            for part, kept in zip(twin.model.weights[layer], before.weights[layer]):
                part[:] = kept
    assert_same_bits(trainer.model.parameters, twin.model.parameters)
    assert trainer.steps == 6
    offset = 0
    for layer, (w, b) in enumerate(before.weights):
        part = trainer._slots[:, offset : offset + w.size + b.size]
        assert part.any() == (layer not in [each % 3 for each in frozen])
        offset += w.size + b.size


@backends
@sizes
@pytest.mark.parametrize("name", EVERY)
def test_any_number_of_threads_and_either_way(backend, sizes, name):
    """Settings of layers, penalties and norms: the same bits on three threads, and from gradients in memory."""
    cls = ops.OPTIMIZERS[name]
    row = cls(lr=1e-2, weight_decay=0.1, l1=1e-3, decay_bias=False, groups={0: {"lr_factor": 0.5}, 1: {"l1": 0.0}})
    runs = []
    for threads in (1, 3):
        with fb.set_num_threads(threads, exact=True):
            runs.append(_trained(row, backend, sizes))
    assert_same_bits(runs[1].model.parameters, runs[0].model.parameters)
    assert_same_bits(runs[1]._slots, runs[0]._slots)
    apart = fb.Trainer(_model(sizes), "mse", row, backend=backend)
    x, y = _data(sizes, rows=6 * BATCH)
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        z = apart.forward(x[rows])
        apart.backward((2 / z.size) * (z - y[rows]))
        apart.update()
    assert difference(apart.model.parameters, runs[0].model.parameters) < (1e-2 if name == "lion" else 1e-5)


@pytest.mark.parametrize("name", EVERY)
@sizes
def test_c_is_the_reference(name, sizes):
    row = ops.OPTIMIZERS[name](lr=1e-2, weight_decay=0.1, l1=1e-3, groups={0: {"lr_factor": 0.5}}, frozen=(1,))
    got, exact = (
        _trained(row, backend, sizes, dtype=dtype) for backend, dtype in (("auto", "float32"), ("reference", "float64"))
    )
    for ours, truth in zip(_layers(got), _layers(exact)):
        assert difference(ours, truth) < BOUND["float32"]


@pytest.mark.parametrize("row", [fb.LAMB(lr=1e-2), fb.LARS(), fb.SGD(weight_decay=0.5, semantics="sklearn")])
def test_a_network_of_one_tensor(row):
    """One segment, and yet its update is not a matter of the rate alone."""
    found = []
    for backend in ("auto", "reference"):
        model = fb.Sequential([fb.Dense(3, bias=False)], input_size=7, seed=1)
        trainer = fb.Trainer(model, "mse", row, backend=backend)
        for _ in range(5):
            trainer.step(np.ones((4, 7), np.float32), np.zeros((4, 3), np.float32))
        found.append(model.parameters)
    assert difference(*found) < 1e-6


@backends
def test_l1_makes_weights_small_and_leaves_zero_alone(backend):
    model = fb.MLP([3, 2], seed=0)
    model.weights[0][0][1] = 0
    before = model.weights[0][0].copy()
    trainer = fb.Trainer(model, "mse", fb.SGD(lr=0.5, l1=0.01, decay_bias=False), backend=backend)
    x = np.zeros((4, 3), np.float32)
    trainer.step(x, np.zeros((4, 2), np.float32))
    np.testing.assert_allclose(model.weights[0][0], before - 0.005 * np.sign(before), rtol=1e-6)
    assert not model.weights[0][0][1].any()


@backends
def test_weight_decay_without_biases(backend):
    for decays in (True, False):
        model = _model()
        before = [(w.copy(), b.copy()) for w, b in model.weights]
        trainer = fb.Trainer(model, "mse", fb.SGD(lr=0.5, weight_decay=0.1, decay_bias=decays), backend=backend)
        x, y = _data(rows=8)
        trainer.step(x, y, sample_weight=np.zeros(8))
        for (w, b), (w0, b0) in zip(model.weights, before):
            np.testing.assert_allclose(w, 0.95 * w0, rtol=1e-5)
            np.testing.assert_allclose(b, 0.95 * b0 if decays else b0, rtol=1e-5)


@backends
def test_schedules_and_factors_reach_all_layers(backend):
    """lr_factor beside a schedule; an lr of a layer under trainer.lr_factor."""
    x, y = _data(rows=8)
    row = fb.SGD(lr=Exponential(0.1, 0.5), groups={0: {"lr_factor": 0.1}})
    same = fb.SGD(lr=0.1, groups={0: {"lr": 0.01}})
    trainers = [fb.Trainer(_model(), "mse", each, backend=backend) for each in (row, same)]
    for step in range(3):
        trainers[1].lr_factor = 0.5**step
        for trainer in trainers:
            trainer.step(x, y)
    assert difference(trainers[0].model.parameters, trainers[1].model.parameters) < 1e-6


def test_an_lr_of_a_layer_is_a_factor():
    """So that it outlives a change of the rate, and a description made anew from its own fields is the same."""
    row = fb.Adam(lr=1e-2, groups={0: {"lr": 1e-3}})
    assert row == fb.Adam(lr=1e-2, groups={0: {"lr_factor": 0.1}}) == replace(row)
    assert replace(row, lr=1.0).groups == row.groups == replace(row, lr=Exponential(1, 0.5)).groups


def test_a_trainer_with_groups_can_be_copied():
    trainer = _trained(fb.AdamW(groups=GROUPS, frozen=(1,)), "auto")
    twins = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
    x, y = _data(rows=BATCH)
    trainer.step(x, y)
    for twin in twins:
        assert twin.optimizer == trainer.optimizer
        twin.step(x, y)
        assert_same_bits(twin.model.parameters, trainer.model.parameters)


WRONG = {
    "key": (
        lambda: fb.Adam(groups={0: {"weight_decy": 0}}),
        ["groups={0: ...}", "weight_decy", "did you mean 'weight_decay'"],
    ),
    "elsewhere": (lambda: fb.Adam(groups={0: {"learning_rate": 0}}), ["did you mean 'lr'"]),
    "value": (lambda: fb.Adam(groups={0: {"eps": -1}}), ["Adam(eps=): expected"]),
    "slots": (lambda: fb.Adam(groups={0: {"amsgrad": True}}), ["slots stay the same"]),
    "rule": (lambda: fb.SGD(momentum=0.9, groups={0: {"momentum": 0}}), ["slots stay the same"]),
    "both rates": (lambda: fb.SGD(groups={0: {"lr": 1, "lr_factor": 1}}), ["got both"]),
    "lr beside a schedule": (
        lambda: fb.SGD(lr=Exponential(1, 0.5), groups={0: {"lr": 1}}),
        ["lr_factor", "Exponential"],
    ),
    "schedule of a layer": (
        lambda: fb.SGD(groups={0: {"lr": Exponential(1, 0.5)}}),
        ["as lr of a layer a finite number"],
    ),
    "factor": (lambda: fb.SGD(groups={0: {"lr_factor": -1}}), ["lr_factor", "-1"]),
    "not a dict": (lambda: fb.SGD(groups=[{"lr": 1}]), ["groups=): expected a dict of layer indices"]),
    "not of dicts": (lambda: fb.SGD(groups={0: 0.1}), ["groups=): expected a dict of layer indices"]),
    "not a layer": (lambda: fb.SGD(groups={0.5: {}}), ["groups=): expected a dict of layer indices"]),
    "frozen number": (lambda: fb.SGD(frozen=0), ["frozen=): expected indices"]),
    "frozen name": (lambda: fb.SGD(frozen="0.b"), ["frozen=): expected indices"]),
    "no such tensor": (
        lambda: fb.Trainer(_model(), "mse", fb.SGD(frozen=["3.w"])),
        ["SGD(frozen=)", "0.b, 0.w", "3.w"],
    ),
    "no group's tensor": (
        lambda: fb.Trainer(_model(), "mse", fb.SGD(groups={"norm0.gamma": {}})),
        ["SGD(groups=)", "norm0.gamma"],
    ),
    "no such layer": (lambda: fb.Trainer(_model(), "mse", fb.SGD(frozen=[3])), ["SGD(frozen=)", "-3 .. 2", "got 3"]),
    "no such group": (lambda: fb.Trainer(_model(), "mse", fb.SGD(groups={-4: {}})), ["SGD(groups=)", "got -4"]),
    "twice": (lambda: fb.Trainer(_model(), "mse", fb.SGD(groups={0: {}, -3: {}})), ["layer 0 is there twice"]),
    "semantics": (lambda: fb.Trainer(_model(), "mse", semantics="pytorch"), ["semantics", "pytorch", "torch"]),
    "of an optimizer": (lambda: fb.Adam(semantics="kears"), ["Adam(semantics=)", "did you mean 'keras'"]),
    "dampening": (lambda: fb.SGD(momentum=0.9, dampening=0.1, semantics="keras"), ["dampening", "keras"]),
    "alpha": (lambda: fb.RMSprop(alpha=1), ["RMSprop(alpha=): expected a number in [0, 1)"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, words = WRONG[name]
    with pytest.raises(fb.ArgumentError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


# -- optimizers that torch does not have -------------------------------------------------------------------------------


def _lion(p, g, s, t, lr):
    s.setdefault("m", np.zeros_like(p))
    p -= lr * (np.sign(0.8 * s["m"] + 0.2 * g) + 0.1 * p)
    s["m"] = 0.95 * s["m"] + 0.05 * g


def _lamb(p, g, s, t, lr):
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
    r = (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.99**t)) + 1e-6) + 0.1 * p
    p -= lr * np.linalg.norm(p) / np.linalg.norm(r) * r


def _lars(p, g, s, t, lr):
    local = 0.02 * np.linalg.norm(p) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(p))
    s["v"] = 0.8 * s.get("v", 0) + lr * local * (g + 0.1 * p)
    p -= s["v"]


LR = Exponential(0.05, 0.97)
PAPERS = {
    "lion": (fb.Lion(LR, (0.8, 0.95), 0.1), _lion),
    "lamb": (fb.LAMB(LR, (0.9, 0.99), weight_decay=0.1), _lamb),
    "lars": (fb.LARS(LR, momentum=0.8, weight_decay=0.1, trust_coefficient=0.02), _lars),
}


def _fifty(row, formula, backend, dtype):
    """Difference of 50 updates of one tensor from random gradients."""
    rng = np.random.default_rng(5)
    p = rng.standard_normal(5000)
    q, slots, memory = p.astype(dtype), np.zeros((row.slots, p.size), dtype), {}
    row.begin(slots)
    for t in range(1, 51):
        g = rng.standard_normal(p.size) * 0.1
        formula(p, g, memory, t, LR(t - 1))
        fb.kernels.update(row, q, g.astype(dtype), slots, t, backend=backend)
    return difference(q, p)


@pytest.mark.parametrize("name", PAPERS)
@backends
def test_fifty_updates_by_the_formula(backend, name):
    row, formula = PAPERS[name]
    assert _fifty(row, formula, backend, "float32") < (1e-3 if name == "lion" else BOUND["float32"])
    assert _fifty(row, formula, "reference", "float64") < BOUND["float64"]


# -- settings of single tensors, and other settings in the middle ------------------------------------------------------


@backends
@pytest.mark.parametrize("fused", [True, False], ids=["step", "update"])
def test_groups_of_tensors_come_on_top_of_those_of_layers(backend, fused):
    """Each tensor moves as it would if its settings were those of all; what is frozen by name stays."""
    x, y = _data((4, 3), rows=BATCH)
    names = ("0.w", "0.b", "norm0.gamma", "norm0.beta", "1.w", "1.b")

    def moved(optimizer):
        model = fb.Sequential([fb.Dense(7, "tanh"), fb.LayerNorm(), fb.Dense(3)], input_size=4)
        model.parameters[:] = np.random.default_rng(0).uniform(0.5, 1.5, model.num_parameters)
        before = model.parameters.copy()
        trainer = fb.Trainer(model, "mse", optimizer, backend=backend)
        if fused:
            trainer.step(x, y)
        else:
            trainer.forward(x)
            trainer.backward(y / BATCH)
            trainer.update()
        (w, b), (gamma, beta), (v, c) = model.weights[0], model.norms[0], model.weights[1]
        shapes = dict(zip(names, (part.size for part in (w, b, gamma, beta, v, c))))
        return dict(zip(names, np.split(model.parameters - before, np.cumsum(list(shapes.values()))[:-1])))

    own = {
        0: {"lr_factor": 2.0, "weight_decay": 0.1},
        "0.b": {"weight_decay": 0.5},
        "norm0.beta": {"lr_factor": 0.25},
        "1.w": {"lr_factor": 0.5},
    }
    got = moved(fb.SGD(lr=0.1, groups=own, frozen=("norm0.gamma", "1.b")))
    alone = {
        "0.w": fb.SGD(lr=0.2, weight_decay=0.1),
        "0.b": fb.SGD(lr=0.2, weight_decay=0.5),
        "norm0.beta": fb.SGD(lr=0.025, weight_decay=0.1),
        "1.w": fb.SGD(lr=0.05),
    }
    for name, optimizer in alone.items():
        assert difference(got[name], moved(optimizer)[name]) < 1e-5, name
    assert not got["norm0.gamma"].any()
    assert not got["1.b"].any()
    first = moved(fb.SGD(lr=0.1, frozen=tuple(name for name in names if name != "norm0.beta")))  # nothing below it
    assert [name for name in names if first[name].any()] == ["norm0.beta"]


@backends
@sizes
@pytest.mark.parametrize("name", EVERY)
def test_a_trainer_goes_on_with_other_settings(backend, sizes, name):
    """Retuned is as made anew with these settings, on the same parameters, state and count."""
    row = ops.OPTIMIZERS[name](lr=1e-2)
    row = replace(row, momentum=0.9) if name == "sgd" else row
    other = replace(row, lr=3e-3, weight_decay=0.1, l1=1e-3, groups={"0.b": {"lr_factor": 3.0}}, frozen=(1,))
    retuned, new = (_trained(row, backend, sizes) for _ in range(2))
    retuned.retune(other)
    assert retuned.optimizer == other
    anew = fb.Trainer(new.model, "mse", other, backend=backend)
    anew.slots[:], anew._steps[:] = new.slots, new.steps
    x, y = _data(sizes, rows=BATCH)
    for trainer in (retuned, anew):
        trainer.step(x, y)
        trainer.fit(x, y, shuffle=False, verbose=0)
    assert_same_bits(retuned.model.parameters, anew.model.parameters)
    assert_same_bits(retuned.slots, anew.slots)
    twin = copy.deepcopy(retuned)
    assert twin.step(x, y) == retuned.step(x, y)
    assert_same_bits(twin.model.parameters, retuned.model.parameters)


def test_retune_refuses_another_state():
    trainer = _trained(fb.SGD(lr=0.1), "reference")
    for wrong, words in (
        (fb.Adam(), "with the state of SGD"),
        ("adam", "an Optimizer, got str"),
        (fb.SGD(frozen=(7,)), "got 7"),
    ):
        before = trainer.optimizer
        with pytest.raises(fb.ArgumentError, match=words):
            trainer.retune(wrong)
        assert trainer.optimizer is before


@backends
@sizes
def test_a_limit_on_columns_comes_and_goes(backend, sizes):
    """It is not in the table of updates: the network is laid out anew, also between a forward and its backward."""
    trainer, x = _trained(fb.SGD(lr=0.1), backend, sizes), _data(sizes, rows=BATCH)[0]
    y = np.zeros((BATCH, sizes[-1]), np.float32)
    norms = np.linalg.norm(trainer.model.weights[1][0], axis=0)
    trainer.forward(x)
    trainer.retune(fb.SGD(lr=0.0, max_norm=0.1))
    with pytest.raises(fb.ArgumentError, match="expected a forward"):
        trainer.backward(y)
    trainer.step(x, y)
    assert np.allclose(np.linalg.norm(trainer.model.weights[1][0], axis=0), np.minimum(norms, 0.1), rtol=1e-5)
    trainer.model.weights[1][0][:] = 1
    trainer.retune(fb.SGD(lr=0.0))
    trainer.step(x, y)
    assert (trainer.model.weights[1][0] == 1).all()
