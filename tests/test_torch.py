"""Fifty steps against torch autograd and torch.optim; as a program, the table of the differences.

Bounds. Losses: 1e-4 relative in float32, 1e-9 in float64, at every one of the 50 steps. Parameters: per tensor,
``||W - Wt|| / ||Wt||`` under the same numbers. A rounding error of a gradient is about 1e-7 of it; SGD carries it on
linearly, hence the room. Adam divides a gradient by its own size, so an element whose gradient is rounding noise moves
by up to lr in either direction: single elements tell nothing, their norm does. The gradients of the first step are held
element by element to a running error bound, which any order of summation meets and a wrong factor does not.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import BACKENDS, difference
from tiers import thin

import fastbatch as fb
from fastbatch import kernels, ops

torch = pytest.importorskip("torch", reason="parity with torch needs torch; CI installs it")

pytestmark = pytest.mark.torch

STEPS, BATCH, SIZES = 50, 32, (12, 24, 16, 5)
U = {"float32": 2.0**-24, "float64": 2.0**-53}
BOUND = {"float32": 1e-4, "float64": 1e-9}
OUTPUTS = SIZES[-1]

_optim = torch.optim
_SGD, _ADAM, _ADAMW = _optim.SGD, _optim.Adam, _optim.AdamW
OPTIMIZERS = {
    "sgd": (fb.SGD, _SGD, {"lr": 0.05}),
    "sgd, decay": (fb.SGD, _SGD, {"lr": 0.05, "weight_decay": 0.02}),
    "momentum": (fb.SGD, _SGD, {"lr": 0.02, "momentum": 0.9}),
    "momentum, dampening, decay": (
        fb.SGD, _SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
    ),
    "nesterov": (fb.SGD, _SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "nesterov, decay": (fb.SGD, _SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    "adam": (fb.Adam, _ADAM, {}),
    "adam, decay": (fb.Adam, _ADAM, {"lr": 3e-3, "weight_decay": 0.02}),
    "adam, betas, eps": (fb.Adam, _ADAM, {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4}),
    "adamw": (fb.AdamW, _ADAMW, {}),
    "adamw, decay": (fb.AdamW, _ADAMW, {"lr": 3e-3, "weight_decay": 0.1}),
    "adam, amsgrad": (fb.Adam, _ADAM, {"amsgrad": True}),
    "adamw, amsgrad": (fb.AdamW, _ADAMW, {"lr": 3e-3, "betas": (0.8, 0.9), "amsgrad": True}),
    "rmsprop": (fb.RMSprop, _optim.RMSprop, {"lr": 1e-3}),
    "rmsprop, momentum, decay": (
        fb.RMSprop, _optim.RMSprop, {"lr": 1e-3, "alpha": 0.9, "eps": 1e-4, "momentum": 0.8, "weight_decay": 0.02},
    ),
    "rmsprop, centered": (fb.RMSprop, _optim.RMSprop, {"lr": 1e-3, "centered": True, "alpha": 0.9}),
    "rmsprop, centered, momentum": (
        fb.RMSprop, _optim.RMSprop, {"lr": 1e-3, "centered": True, "momentum": 0.5, "eps": 1e-3},
    ),
    "adagrad": (fb.Adagrad, _optim.Adagrad, {}),
    "adagrad, all": (
        fb.Adagrad, _optim.Adagrad,
        {"lr": 0.02, "lr_decay": 0.01, "weight_decay": 0.02, "initial_accumulator_value": 0.1, "eps": 1e-3},
    ),
    "nadam": (fb.NAdam, _optim.NAdam, {}),
    "nadam, all": (
        fb.NAdam, _optim.NAdam,
        {"betas": (0.8, 0.95), "momentum_decay": 0.05, "weight_decay": 0.02, "decoupled_weight_decay": True},
    ),
    "nadam, decay": (fb.NAdam, _optim.NAdam, {"weight_decay": 0.02}),
}  # fmt: skip


class Pinball(torch.nn.Module):
    """The quantile loss, which torch does not have."""

    def __init__(self, q=0.5, reduction="mean"):
        super().__init__()
        self.q, self.reduction = q, reduction

    def forward(self, z, y):
        loss = torch.maximum(self.q * (y - z), (self.q - 1) * (y - z))
        return loss.mean() if self.reduction == "mean" else loss


LOSSES = {
    "mse": torch.nn.MSELoss,
    "cross_entropy": torch.nn.CrossEntropyLoss,
    "bce": torch.nn.BCEWithLogitsLoss,
    "poisson": torch.nn.PoissonNLLLoss,
    "quantile": Pinball,
}
ACTIVATIONS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU}

losses = pytest.mark.parametrize("loss", LOSSES)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
_FLOAT32 = [pytest.param(*p.values, "float32", id=f"{p.id}-float32", marks=p.marks) for p in BACKENDS]
_FLOAT64 = [pytest.param(*p.values, "float64", id=f"{p.id}-float64", marks=p.marks) for p in BACKENDS]
both = pytest.mark.parametrize(("backend", "dtype"), [*_FLOAT32, *_FLOAT64])
strictest = pytest.mark.parametrize(("backend", "dtype"), [_FLOAT32[0], *_FLOAT64])


def _data(loss, dtype, rows=STEPS * BATCH, seed=0, inputs=SIZES[0]):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)).astype(dtype)
    if loss == "cross_entropy":
        return x, rng.integers(0, OUTPUTS, rows)
    if loss == "poisson":
        return x, rng.poisson(1.5, (rows, OUTPUTS)).astype(dtype)
    y = rng.standard_normal((rows, OUTPUTS))
    return x, (y > 0.3).astype(dtype) if loss == "bce" else y.astype(dtype)


def _model(activation, dtype, sizes=SIZES):
    model = fb.MLP(list(sizes), activation=activation, dtype=dtype)
    # biases start at zero; here every tensor has a norm to compare with from the first step on
    rng = np.random.default_rng(1)
    for _, b in model.weights:
        b[:] = rng.uniform(-0.5, 0.5, b.shape)
    return model


def _torch_twin(model, activation, dtype=None):
    """nn.Sequential with copies of the weights."""
    dtype = dtype or model.dtype
    layers = []
    for w, b in model.weights:
        linear = torch.nn.Linear(*w.shape, dtype=getattr(torch, dtype))
        linear.weight.data = torch.tensor(w.T.astype(dtype))
        linear.bias.data = torch.tensor(b.astype(dtype))
        layers += [linear, ACTIVATIONS[activation]()]
    return torch.nn.Sequential(*layers[:-1])


def _tensors(module):
    """Parameters in the layout of `model.weights`, flattened into one list."""
    return [p.detach().numpy().T if p.ndim == 2 else p.detach().numpy() for p in module.parameters()]


def parity(loss, activation, optimizer, backend, dtype):
    """Train both for 50 steps; returns the worst relative loss difference and the worst tensor difference."""
    ours, theirs, options = OPTIMIZERS[optimizer]
    x, y = _data(loss, dtype)
    model = _model(activation, dtype)
    module = _torch_twin(model, activation)
    trainer = fb.Trainer(model, loss, ours(**options), backend=backend)
    stepper, criterion = theirs(module.parameters(), **options), LOSSES[loss]()
    worst = 0.0
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        value = trainer.step(x[rows], y[rows])
        stepper.zero_grad()
        expected = criterion(module(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
        expected.backward()
        stepper.step()
        worst = max(worst, abs(value - expected.item()) / abs(expected.item()))
    ours_now = [part for pair in model.weights for part in pair]
    return worst, max(difference(got, wanted) for got, wanted in zip(ours_now, _tensors(module)))


# every activation under the rules themselves; their options do not meet an activation, one is enough
NAMED = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "nadam")
FIFTY = [
    (name, activation) for name in OPTIMIZERS for activation in ACTIVATIONS if name in NAMED or activation == "tanh"
]


@thin(1, "optimizer", "activation")
@strictest
@losses
@pytest.mark.parametrize(("optimizer", "activation"), FIFTY)
def test_fifty_steps(backend, dtype, optimizer, loss, activation):
    worst_loss, worst_tensor = parity(loss, activation, optimizer, backend, dtype)
    assert worst_loss <= BOUND[dtype]
    assert worst_tensor <= BOUND[dtype]


@losses
@pytest.mark.parametrize("wrong", [{"lr": 0.0505}, {"lr": 0.05, "weight_decay": 1e-2}])
def test_the_bound_rejects_a_wrong_constant(loss, wrong, monkeypatch):
    """lr off by a hundredth, or a forgotten decay, must not pass as rounding."""
    monkeypatch.setitem(OPTIMIZERS, "wrong", (fb.SGD, lambda p, **_: _SGD(p, **wrong), {"lr": 0.05}))
    worst = parity(loss, "tanh", "wrong", "reference", "float32")
    assert max(worst) > BOUND["float32"]


# -- gradients of the first step, element by element ---------------------------------------------------------------


def _gamma(n, u):
    return n * u / (1 - n * u)


# max |f''|: how far a slope moves with its argument; gelu and silu at 0, tanh at atanh(1/sqrt(3))
_CURVATURE = {"relu": 0.0, "tanh": 0.77, "gelu": 0.8, "silu": 0.5}


def _slope(activation, z):
    row = ops.ACTIVATIONS[activation]
    return row.slope(row.value(z) if row.saves == "a" else z)


def _gradient_bound(model, activation, loss, x, y, u):
    """Per-element bounds on the gradient of the mean loss, one per tensor: running error analysis in float64.

    ``e_*`` bounds the error of the computed ``*``. Products use gamma(n) for n summands in any order (Higham, Accuracy
    and Stability, section 3.1); functions get the ULP budget of their row in the registry; slopes move by at most
    max |f''| times the error of their argument, and by 1 where relu's argument may have changed sign.
    """
    row = ops.ACTIVATIONS[activation]
    a, e_a = x.astype(np.float64), np.zeros(x.shape)
    trace = []
    for k, (w, b) in enumerate(model.weights):
        w, b = np.float64(w), np.float64(b)
        z = a @ w + b
        e_z = e_a @ np.abs(w) + _gamma(len(w) + 1, u) * ((np.abs(a) + e_a) @ np.abs(w) + np.abs(b))
        last = k == len(model.weights) - 1
        slope = np.ones_like(z) if last else _slope(activation, z)
        e_slope = 0 * z if last else _CURVATURE[activation] * e_z + row.ulp * u
        if activation == "relu" and not last:
            e_slope = np.where(np.abs(z) <= e_z, 1.0, e_slope)
        trace.append((w, a, e_a, slope, e_slope))
        if not last:
            a, e_a = row.value(z), 1.13 * e_z + row.ulp * u * np.maximum(np.abs(row.value(z)), np.abs(z * slope))
    _, d, _ = ops.LOSSES[loss]().rows(z, y)
    # slope of each loss: 2/O for mse, at most 1/(4 O) for bce, a jump for
    # quantile, exp(z)/O for poisson; softmax moves by p (exp(2 e) - 1)
    if loss == "mse":
        e_d = 2 / OUTPUTS * e_z + 4 * u * np.abs(d)
    elif loss == "bce":
        e_d = e_z / (4 * OUTPUTS) + 8 * u / OUTPUTS
    elif loss == "quantile":
        e_d = (np.abs(z - y) <= e_z + u * (np.abs(z) + np.abs(y))) / OUTPUTS + 4 * u * np.abs(d)
    elif loss == "poisson":
        e_d = (np.exp(z) * (np.expm1(e_z) + 4 * u) + 4 * u * np.abs(d) * OUTPUTS + u * y) / OUTPUTS
    else:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        e_d = p / p.sum(axis=1, keepdims=True) * np.expm1(2 * e_z.max(axis=1, keepdims=True)) + 16 * u
    rows, bounds = len(x), []
    for w, a, e_a, slope, e_slope in reversed(trace):
        dz, e_dz = d * slope, e_d * (np.abs(slope) + e_slope) + np.abs(d) * e_slope + 2 * u * np.abs(d * slope)
        size = np.abs(dz) + e_dz
        more = _gamma(rows + 2, u)
        e_w = e_a.T @ size + np.abs(a).T @ e_dz + more * ((np.abs(a) + e_a).T @ size)
        e_b = e_dz.sum(axis=0) + more * size.sum(axis=0)
        bounds = [e_w / rows, e_b / rows, *bounds]
        d, e_d = dz @ w.T, e_dz @ np.abs(w).T + _gamma(w.shape[1], u) * (size @ np.abs(w).T)
    return bounds


# The bound grows with every width it passes: small ones keep it far below the gradients.
SMALL, ROWS = (4, 4, 4, OUTPUTS), 8


def _first_gradients(backend, dtype, loss, activation):
    x, y = _data(loss, dtype, ROWS, seed=2, inputs=SMALL[0])
    model = _model(activation, dtype, SMALL)
    module = _torch_twin(model, activation, "float64")
    labels = torch.from_numpy(y if loss == "cross_entropy" else y.astype(np.float64))
    expected = LOSSES[loss]()(module(torch.from_numpy(x.astype(np.float64))), labels)
    expected.backward()
    exact = [p.grad.numpy().T if p.ndim == 2 else p.grad.numpy() for p in module.parameters()]
    value, flat = fb.Trainer(model, loss, backend=backend).gradients(x, y)
    ends = np.cumsum([part.size for part in exact])
    got = [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), exact)]
    # float64 against float64: both are rounded, so each gets the bound once
    bounds = _gradient_bound(model, activation, loss, x, y, U[dtype] * (1 if dtype == "float32" else 2))
    return value, expected.item(), got, exact, bounds


def _within(got, exact, bounds):
    return all(np.all(np.abs(g - t) <= bound) for g, t, bound in zip(got, exact, bounds))


@both
@losses
@activations
def test_gradients_of_the_first_step(backend, dtype, loss, activation):
    value, expected, got, exact, bounds = _first_gradients(backend, dtype, loss, activation)
    assert value == pytest.approx(expected, rel=100 * U[dtype])
    assert _within(got, exact, bounds)


@losses
@activations
def test_the_gradient_bound_has_teeth(loss, activation):
    _, _, got, exact, bounds = _first_gradients("reference", "float32", loss, activation)
    for k in range(len(got)):
        for mutant in (got[k] * 1.001, got[k] * (ROWS - 1) / ROWS, got[k][::-1], np.zeros_like(got[k])):
            assert not _within([*got[:k], mutant, *got[k + 1 :]], exact, bounds)


# -- losses with their options -------------------------------------------------------------------------------------


def _plain(formula):
    """A loss that torch does not have, as the mean of an elementwise formula of its tensors."""
    return lambda z, y: formula(z, y).mean()


def _focal(gamma, alpha=None):
    def formula(z, y):
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        one, zero = (1, 1) if alpha is None else (alpha, 1 - alpha)
        return entropy * torch.where(y == 1, one * q**gamma, zero * p**gamma)

    return _plain(formula)


_W, _P = [0.5, 2.0, 1.0, 0.0, 3.0], [0.2, 1.0, 4.0, 0.0, 2.0]
OPTIONS = {
    "mse": (fb.losses.MSE(), torch.nn.MSELoss()),
    "mae": (fb.losses.MAE(), torch.nn.L1Loss()),
    "huber": (fb.losses.Huber(), torch.nn.HuberLoss()),
    "huber 0.3": (fb.losses.Huber(delta=0.3), torch.nn.HuberLoss(delta=0.3)),
    "huber 2.5": (fb.losses.Huber(delta=2.5), torch.nn.HuberLoss(delta=2.5)),
    "bce": (fb.losses.BCE(), torch.nn.BCEWithLogitsLoss()),
    "bce, pos_weight": (
        fb.losses.BCE(pos_weight=_P), torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(_P, dtype=torch.float64)),
    ),
    "bce, one pos_weight": (
        fb.losses.BCE(pos_weight=3.0), torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=torch.float64)),
    ),
    "quantile": (fb.losses.Quantile(), Pinball()),
    "quantile 0.9": (fb.losses.Quantile(0.9), Pinball(0.9)),
    "poisson": (fb.losses.Poisson(), torch.nn.PoissonNLLLoss()),
    "tweedie 1.7": (
        fb.losses.Tweedie(1.7), _plain(lambda z, y: y * torch.exp(-0.7 * z) / 0.7 + torch.exp(0.3 * z) / 0.3),
    ),
    "gamma": (fb.losses.Gamma(), _plain(lambda z, y: z + y * torch.exp(-z))),
    "focal": (fb.losses.Focal(), _focal(2)),
    "focal 0.5, alpha": (fb.losses.Focal(0.5, 0.2), _focal(0.5, 0.2)),
    "cross_entropy": (fb.losses.CrossEntropy(), torch.nn.CrossEntropyLoss()),
    "cross_entropy, weight": (
        fb.losses.CrossEntropy(weight=_W), torch.nn.CrossEntropyLoss(weight=torch.tensor(_W, dtype=torch.float64)),
    ),
    "cross_entropy, smoothing": (
        fb.losses.CrossEntropy(label_smoothing=0.1), torch.nn.CrossEntropyLoss(label_smoothing=0.1),
    ),
    "cross_entropy, both": (
        fb.losses.CrossEntropy(weight=_W, label_smoothing=0.2),
        torch.nn.CrossEntropyLoss(weight=torch.tensor(_W, dtype=torch.float64), label_smoothing=0.2),
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize(
    ("name", "targets"),
    [(name, "hard") for name in OPTIONS]
    # what takes a share of either for a target between 0 and 1 in focal, nobody else says
    + [(name, "soft") for name, (ours, _) in OPTIONS.items() if ours.targets == "classes" or ours.name == "bce"],
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_losses_with_their_options(backend, dtype, name, targets, scale):
    ours, theirs = OPTIONS[name]
    rng = np.random.default_rng(0)
    a = (scale * rng.standard_normal((40, OUTPUTS))).astype(dtype)
    if ours.targets == "values":
        y = rng.standard_normal((40, OUTPUTS)).astype(dtype)
    elif ours.log_link:
        a = np.clip(a, -20, 20)
        y = rng.gamma(1.0, size=(40, OUTPUTS)).astype(dtype)
        y[::3] = 1 if ours.targets == "positive" else 0
    elif targets == "soft":
        y = rng.dirichlet(np.ones(OUTPUTS), 40).astype(dtype)
    else:
        y = rng.integers(0, OUTPUTS, 40) if ours.targets == "classes" else rng.integers(0, 2, a.shape).astype(dtype)
    z = torch.tensor(a.astype(np.float64), requires_grad=True)
    expected = theirs(z, torch.from_numpy(y if y.ndim == 1 else y.astype(np.float64)))
    expected.backward()
    value, da = kernels.loss(ours, a, y, backend=backend)
    u = U[dtype]
    assert value == pytest.approx(expected.item(), rel=40 * u)
    # a slope is a difference of numbers up to the largest weight: absolute, per element, in units of the mean's 1/B
    largest = max(1.0, *(ours.per_output or [1.0]), scale if name == "mse" else 1.0, ours.parameter)
    if ours.log_link:  # of exponentials whose arguments are rounded
        largest = (1 + np.abs(a)) * (np.abs(z.grad.numpy()) * a.size + y * np.maximum(1, np.exp(-a.astype(float))))
    assert np.all(np.abs(da - z.grad.numpy()) <= 40 * u * largest / 40)
    evaluated = fb.Trainer(fb.MLP([OUTPUTS, OUTPUTS], dtype=dtype), ours, backend=backend)
    evaluated.model.set_weights([(np.eye(OUTPUTS), np.zeros(OUTPUTS))])
    assert evaluated.evaluate(a, y)["loss"] == pytest.approx(expected.item(), rel=40 * u)
    assert evaluated.step(a, y) == pytest.approx(expected.item(), rel=40 * u)


@both
@losses
def test_sample_weights_are_a_weighted_mean(backend, dtype, loss):
    x, y = _data(loss, dtype, rows=40, seed=3)
    weight = np.random.default_rng(4).uniform(0, 2, 40)
    model = _model("tanh", dtype)
    module = _torch_twin(model, "tanh", "float64")
    target = torch.from_numpy(y if y.ndim == 1 else y.astype(np.float64))
    rows = LOSSES[loss](reduction="none")(module(torch.from_numpy(x.astype(np.float64))), target)
    rows = rows if rows.ndim == 1 else rows.mean(dim=1)
    w = torch.from_numpy(weight)
    expected = (rows * w).sum() / w.sum()
    expected.backward()
    exact = np.concatenate([(p.grad.T if p.ndim == 2 else p.grad).numpy().ravel() for p in module.parameters()])
    value, gradient = fb.Trainer(model, loss, backend=backend).gradients(x, y, weight)
    assert value == pytest.approx(expected.item(), rel=100 * U[dtype])
    assert difference(gradient, exact) < 100 * U[dtype]


@both
@pytest.mark.parametrize("index", [-100, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, _W])
def test_ignored_labels(backend, dtype, index, smoothing, weight):
    """torch's ignore_index, outside the classes and inside: value, gradient, evaluate, and a step."""
    rng = np.random.default_rng(5)
    x, y = _data("cross_entropy", dtype, rows=40, seed=3)
    y[rng.random(40) < 0.3] = index
    classes = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    criterion = torch.nn.CrossEntropyLoss(weight=classes, ignore_index=index, label_smoothing=smoothing)
    ours = fb.losses.CrossEntropy(weight=weight, ignore_index=index, label_smoothing=smoothing)
    model = _model("tanh", dtype)
    module = _torch_twin(model, "tanh", "float64")
    outputs = module(torch.from_numpy(x.astype(np.float64)))
    outputs.retain_grad()
    expected = criterion(outputs, torch.from_numpy(y))
    expected.backward()
    exact = np.concatenate([(p.grad.T if p.ndim == 2 else p.grad).numpy().ravel() for p in module.parameters()])
    trainer = fb.Trainer(model, ours, fb.SGD(lr=0.5), backend=backend)
    u, before = U[dtype], model.parameters.copy()
    value, gradient = trainer.gradients(x, y)
    assert value == pytest.approx(expected.item(), rel=100 * u)
    assert difference(gradient, exact) < 100 * u
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(value, rel=100 * u)
    value, da = kernels.loss(ours, outputs.detach().numpy().astype(dtype), y, backend=backend)
    assert value == pytest.approx(expected.item(), rel=100 * u)
    assert difference(da, outputs.grad.numpy()) < 100 * u
    assert not da[y == index].any()
    for _ in range(2):  # the second could take the fast path
        model.parameters[:] = before
        assert trainer.step(x, y) == pytest.approx(expected.item(), rel=100 * u)
        assert difference(before - model.parameters, 0.5 * exact) < 1e4 * u


# -- the table -----------------------------------------------------------------------------------------------------


def table() -> str:
    """Worst differences after 50 steps over the four activations, by optimizer and loss."""
    subjects = [("c", "float32"), ("reference", "float32"), ("reference", "float64")]
    available = {row["name"] for row in fb.backends() if row["available"]}
    subjects = [subject for subject in subjects if subject[0] in available]
    lines = [f"{STEPS} steps of {BATCH} rows, MLP {'-'.join(map(str, SIZES))}, torch {torch.__version__}; worst over "
             f"{', '.join(ACTIVATIONS)}: relative loss difference / ||W - Wt|| / ||Wt||"]  # fmt: skip
    lines.append(f"{'optimizer':<28}{'loss':<15}" + "".join(f"{' '.join(s):<22}" for s in subjects))
    for optimizer in OPTIMIZERS:
        for loss in LOSSES:
            cells = []
            for backend, dtype in subjects:
                pairs = [parity(loss, activation, optimizer, backend, dtype) for activation in ACTIVATIONS]
                worst_loss, worst_tensor = (max(column) for column in zip(*pairs))
                over = " !" * (max(worst_loss, worst_tensor) > BOUND[dtype] or math.isnan(worst_loss))
                cells.append(f"{worst_loss:.1e} / {worst_tensor:.1e}{over:<4}")
            lines.append(f"{optimizer:<28}{loss:<15}" + "".join(f"{cell:<22}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
