"""fastbatch.torch against torch itself: the same module trained by fused steps and by autograd and torch.optim.

Bounds are those of test_torch: 1e-4 in float32 and 1e-9 in float64 of each loss and, in norm, of each tensor.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, difference
from tiers import thin

import fastbatch as fb
from fastbatch import checks, ops

torch = pytest.importorskip("torch", reason="the door to torch needs torch; CI installs it")
from test_torch import BOUND, OPTIMIZERS  # noqa: E402

import fastbatch.torch as fbt  # noqa: E402
from fastbatch.torch.modules import ACTIVATIONS  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.torch

STEPS, BATCH, INPUTS, OUTPUTS = 50, 32, 12, 5
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def _module(dtype="float32", activation=nn.Tanh, seed=1):
    torch.manual_seed(seed)
    parts = [
        nn.Linear(INPUTS, 24),
        activation(),
        nn.Sequential(nn.Linear(24, 16), activation()),
        nn.Linear(16, OUTPUTS),
    ]
    return nn.Sequential(*parts).to(getattr(torch, dtype))


def _normed(dtype="float32"):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(INPUTS, 24, bias=False), nn.BatchNorm1d(24, momentum=0.3), nn.ReLU(), nn.Dropout(0.0),
        nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16), nn.GELU()), nn.Identity(), nn.BatchNorm1d(16, affine=False),
        nn.Linear(16, 16), nn.LayerNorm(16, bias=False), nn.LayerNorm(16, elementwise_affine=False),
        nn.Linear(16, OUTPUTS),
    ).to(getattr(torch, dtype))  # fmt: skip


def _rows(dtype="float32", kind="values", steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((steps, BATCH, INPUTS)).astype(dtype))
    shape = (steps, BATCH, OUTPUTS)
    if kind == "labels":
        return x, torch.from_numpy(rng.integers(0, OUTPUTS, shape[:2]))
    y = {
        "values": lambda: rng.standard_normal(shape),
        "binary": lambda: rng.integers(0, 2, shape),
        "counts": lambda: rng.poisson(1.5, shape),
        "soft": lambda: rng.dirichlet(np.ones(OUTPUTS), shape[:2]),
    }[kind]()
    return x, torch.from_numpy(y.astype(dtype))


@pytest.fixture(autouse=True)
def _counts_of_nadam(request):
    """torch keeps NAdam's product of momenta in its default dtype, and rounds updates in float64 to float32 with it."""
    before = torch.get_default_dtype()
    if "float64" in request.node.name or request.node.originalname in IN_FLOAT64:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


IN_FLOAT64 = ("test_torch_may_take_over_and_give_back", "test_state_dicts_go_both_ways")


def _torch_step(module, loss_fn, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(module(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _agree(module, twin, dtype="float32"):
    for (name, ours), theirs in zip(module.state_dict().items(), twin.state_dict().values()):
        assert ours.shape == theirs.shape
        if theirs.is_floating_point() and theirs.any():
            assert difference(ours.numpy(), theirs.numpy()) <= BOUND[dtype], name
        else:
            assert torch.equal(ours, theirs), name


def _states_agree(optimizer, other, dtype="float32"):
    ours, theirs = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert list(ours) == list(theirs)
    for index, entry in theirs.items():
        assert list(ours[index]) == list(entry)
        for key, value in entry.items():
            assert ours[index][key].shape == value.shape
            assert difference(ours[index][key].numpy(), value.numpy()) <= 10 * BOUND[dtype], key


class Twins:
    """A module trained by fused steps, and its copy trained by torch, on the same rows."""

    def __init__(self, module, optimizer, loss_fn=None, loss_ours=None, dtype="float32", **options):
        """``optimizer(module)`` makes one."""
        self.dtype, loss_fn = dtype, loss_fn or nn.MSELoss()
        self.module, self.twin = module, copy.deepcopy(module)
        self.optimizer, self.other = optimizer(self.module), optimizer(self.twin)
        self.fused = fbt.fuse(self.module, loss_ours or loss_fn, self.optimizer, **options)
        self.plain = _torch_step(self.twin, loss_fn, self.other)
        self.by_torch = _torch_step(self.module, loss_fn, self.optimizer)

    def step(self, x, y, ours=None):
        got, expected = (ours or self.fused)(x, y), self.plain(x, y)
        assert abs(got - expected) <= BOUND[self.dtype] * abs(expected)

    def agree(self, states=True):
        _agree(self.module, self.twin, self.dtype)
        if states:
            _states_agree(self.optimizer, self.other, self.dtype)


def _adam(module):
    return torch.optim.Adam(module.parameters(), lr=3e-3)


# -- fifty steps -------------------------------------------------------------------------------------------------------


@thin(1, "name")
@dtypes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_of_every_optimizer(name, dtype):
    _, cls, options = OPTIMIZERS[name]
    twins = Twins(_module(dtype), lambda module: cls(module.parameters(), **options), dtype=dtype)
    for x, y in zip(*_rows(dtype)):
        twins.step(x, y)
    twins.agree()


_W = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
LOSSES = {
    "mse": (nn.MSELoss(), "values"),
    "mae": (nn.L1Loss(), "values"),
    "huber": (nn.HuberLoss(delta=0.7), "values"),
    "smooth l1": (nn.SmoothL1Loss(), "values"),
    "smooth l1, beta 0": (nn.SmoothL1Loss(beta=0.0), "values"),
    "poisson": (nn.PoissonNLLLoss(), "counts"),
    "bce": (nn.BCEWithLogitsLoss(), "binary"),
    "bce, pos_weight": (nn.BCEWithLogitsLoss(pos_weight=_W + 0.5), "binary"),
    "cross entropy": (nn.CrossEntropyLoss(), "labels"),
    "cross entropy, soft": (nn.CrossEntropyLoss(weight=_W), "soft"),
    "cross entropy, all": (nn.CrossEntropyLoss(weight=_W, label_smoothing=0.1), "labels"),
    "cross entropy, a class ignored": (nn.CrossEntropyLoss(weight=_W, ignore_index=1), "labels"),
    "cross entropy, ignored": (nn.CrossEntropyLoss(label_smoothing=0.1), "ignored"),
    "function": (nn.functional.mse_loss, "values"),
    "cross entropy, function": (nn.functional.cross_entropy, "labels"),
    "bce, function": (nn.functional.binary_cross_entropy_with_logits, "binary"),
}


@thin(1, "name")
@dtypes
@pytest.mark.parametrize("name", LOSSES)
def test_fifty_steps_of_every_loss(name, dtype):
    loss_fn, kind = LOSSES[name]
    x, y = _rows(dtype, "labels" if kind == "ignored" else kind)
    if kind == "ignored":
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.3] = -100
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).to(getattr(torch, dtype))
    twins = Twins(_module(dtype), _adam, loss_fn, dtype=dtype)
    for a, b in zip(x, y):
        twins.step(a, b)
    twins.agree()


@thin(1, "name")
@backends
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fifty_steps_of_every_activation(name, backend):
    kind, settings = ACTIVATIONS[name]
    twins = Twins(_module(activation=lambda: getattr(nn, kind)(**settings)), _adam, backend=backend)
    for x, y in zip(*_rows()):
        twins.step(x, y)
    twins.agree()


@backends
@dtypes
def test_fifty_steps_with_norms(backend, dtype):
    """Running statistics and num_batches_tracked, what eval() makes of them, and what is not learnt."""
    twins = Twins(_normed(dtype), _adam, dtype=dtype, backend=backend)
    x, y = _rows(dtype)
    for a, b in zip(x, y):
        twins.step(a, b)
    twins.agree()
    assert twins.module[1].num_batches_tracked.item() == STEPS
    with torch.no_grad():
        ours, theirs = (module.eval()(x[0]) for module in (twins.module, twins.twin))
    assert difference(ours.numpy(), theirs.numpy()) <= BOUND[dtype]
    assert difference(twins.fused.trainer.predict(x[0]), theirs.numpy()) <= BOUND[dtype]


@pytest.mark.parametrize("wrong", [{"lr": 3.03e-3}, {"betas": (0.9, 0.99)}, {"weight_decay": 1e-2}])
def test_the_bound_rejects_a_wrong_constant(wrong):
    twins = Twins(_module(), _adam)
    twins.other.param_groups[0].update(wrong)

    def fifty_steps():
        for x, y in zip(*_rows()):
            twins.step(x, y)
        twins.agree()

    with pytest.raises(AssertionError):
        fifty_steps()


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1}, {"clip_value": 0.01}])
def test_a_fused_step_is_a_step_of_a_trainer(options):
    """To the bit, with dropout; from NumPy arrays too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, OUTPUTS))
    trainer = fb.Trainer(fbt.from_torch(module), "mse", fb.AdamW(lr=1e-2), seed=5, **options)
    step = fbt.fuse(module, nn.MSELoss(), torch.optim.AdamW(module.parameters(), lr=1e-2), seed=5, **options)
    for i, (x, y) in enumerate(zip(*_rows(steps=6))):
        pair = (x, y) if i % 2 else (x.numpy(), y.numpy())
        assert step(*pair) == trainer.step(x.numpy(), y.numpy())
    assert_same_bits(module[0].weight.detach().numpy(), trainer.model.weights[0][0].T)
    weight = torch.arange(BATCH, dtype=torch.float32)
    assert step(x, y, weight) == trainer.step(x, y, weight)
    assert_same_bits(module[3].bias.detach().numpy(), trainer.model.weights[1][1])


# -- groups and schedules ----------------------------------------------------------------------------------------------


def _two_groups(module):
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 1e-2, "betas": (0.8, 0.99)}]
    return torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.0)


_schedulers = torch.optim.lr_scheduler
SCHEDULES = {
    "none": lambda optimizer: None,
    "steps": lambda optimizer: _schedulers.StepLR(optimizer, 7, 0.5),
    "cosine": lambda optimizer: _schedulers.CosineAnnealingLR(optimizer, STEPS),
    "warmup from 0": lambda optimizer: _schedulers.LambdaLR(optimizer, lambda t: t / STEPS),
    "one cycle, which moves betas": lambda optimizer: _schedulers.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1),
}


@thin(3, "schedule")
@backends
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("groups", [_adam, _two_groups], ids=["one", "two"])
@pytest.mark.parametrize("make", [_module, _normed], ids=["plain", "norms"])
def test_groups_and_schedulers(groups, schedule, make, backend):
    twins = Twins(make(), groups, backend=backend)
    both = [SCHEDULES[schedule](optimizer) for optimizer in (twins.optimizer, twins.other)]
    for x, y in zip(*_rows()):
        twins.step(x, y)
        for scheduler in both:
            if scheduler is not None:
                scheduler.step()
    twins.agree()


def test_a_plateau():
    twins = Twins(_module(), _adam)
    both = [_schedulers.ReduceLROnPlateau(each, patience=2) for each in (twins.optimizer, twins.other)]
    for x, y in zip(*_rows()):
        twins.step(x, y)
        for scheduler in both:
            scheduler.step(1.0)
    assert twins.optimizer.param_groups[0]["lr"] < 1e-8
    twins.agree()


@pytest.mark.parametrize("what", ["requires_grad", "not in the optimizer"])
def test_what_is_not_trained_stays(what):
    def optimizer(module):
        if what == "requires_grad":
            module[0].weight.requires_grad_(False)
            return _adam(module)
        return torch.optim.Adam([p for name, p in module.named_parameters() if name != "0.weight"], lr=3e-3)

    twins = Twins(_module(), optimizer)
    before = twins.module[0].weight.detach().clone()
    for x, y in zip(*_rows(steps=5)):
        twins.step(x, y)
    twins.agree()
    assert torch.equal(twins.module[0].weight, before)


def test_freezing_and_thawing_on_the_way():
    """Freezing is followed; what begins later than the others has counts of its own, which only momentum lacks."""
    x, y = _rows()
    for cls, options in ((torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}), (torch.optim.Adam, {})):
        twins = Twins(_module(), lambda module, cls=cls, options=options: cls(module.parameters(), **options))
        for module in (twins.module, twins.twin):
            module[3].bias.requires_grad_(cls is torch.optim.Adam)
        twins.step(x[0], y[0])
        twins.step(x[1], y[1])
        for module in (twins.module, twins.twin):
            module[0].requires_grad_(False)
            module[3].bias.requires_grad_(True)
        twins.step(x[2], y[2])
        twins.step(x[3], y[3])
        twins.agree()
        twins.module[0].requires_grad_(True)
        if cls is torch.optim.Adam:
            before = twins.module[0].weight.detach().clone()
            with pytest.raises(fb.ArgumentError, match=r"updated as often as each other.*\[2.0, 4.0\]"):
                twins.fused(x[4], y[4])
            assert torch.equal(before, twins.module[0].weight)
        else:
            twins.twin[0].requires_grad_(True)
            twins.step(x[4], y[4])
            twins.agree()


# -- torch in between --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first", ["torch", "fused"])
def test_torch_may_take_over_and_give_back(name, first):
    """Blocks of five steps in turn on one module and one optimizer: the state goes along, whoever makes it first."""
    _, cls, options = OPTIMIZERS[name]
    twins = Twins(_module("float64"), lambda module: cls(module.parameters(), **options), dtype="float64")
    for k, (x, y) in enumerate(zip(*_rows("float64", steps=20))):
        twins.step(x, y, twins.by_torch if (k // 5 + (first == "torch")) % 2 else None)
    twins.agree()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("to", ["torch", "fused"])
def test_state_dicts_go_both_ways(name, to):
    _, cls, options = OPTIMIZERS[name]
    x, y = _rows("float64", steps=16)

    def make(module):
        return cls(module.parameters(), **options)

    twins = Twins(_module("float64"), make, dtype="float64")
    for a, b in zip(x[:8], y[:8]):
        twins.step(a, b)
    source = (twins.module, twins.optimizer) if to == "torch" else (twins.twin, twins.other)
    saved = [copy.deepcopy(each.state_dict()) for each in source]
    if to == "torch":
        module = _module("float64", seed=9)
        optimizer = make(module)
        step = _torch_step(module, nn.MSELoss(), optimizer)
    else:  # over what other steps have left
        other = Twins(_module("float64", seed=9), make, dtype="float64")
        for a, b in zip(x[:3], y[:3]):
            other.step(a, b)
        module, optimizer, step = other.module, other.optimizer, other.fused
    module.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for a, b in zip(x[8:], y[8:]):
        assert step(a, b) == pytest.approx(twins.plain(a, b), rel=BOUND["float64"])
    _agree(module, twins.twin, "float64")
    _states_agree(optimizer, twins.other, "float64")


def _replace_data(twins):
    for module in (twins.module, twins.twin):
        for p in module.parameters():
            p.data = p.data.clone() * 1.1


def _load_weights(twins):
    for module in (twins.module, twins.twin):
        module.load_state_dict(_normed().state_dict())


def _write_in_place(twins):
    for module in (twins.module, twins.twin):
        with torch.no_grad():
            module[0].weight.mul_(0.5)


def _new_statistics(twins):
    for module in (twins.module, twins.twin):
        module[1].running_mean = torch.ones(24)
        module[1].reset_parameters()
        module[6].running_var = torch.full((16,), 2.0)


def _no_state(twins):
    for optimizer in (twins.optimizer, twins.other):
        optimizer.state.clear()


def _new_moments(twins):
    for optimizer in (twins.optimizer, twins.other):
        for state in optimizer.state.values():
            state["exp_avg"] = torch.ones_like(state["exp_avg"])


def _new_entries(twins):
    for optimizer in (twins.optimizer, twins.other):
        for p in list(optimizer.state):
            optimizer.state[p] = copy.deepcopy(optimizer.state[p])
            optimizer.state[p]["exp_avg_sq"] *= 4


def _half_rate(twins):
    for optimizer in (twins.optimizer, twins.other):
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
        optimizer.param_groups[0]["weight_decay"] = 0.1


def _second_fuse(twins):
    twins.fused(torch.zeros(4, INPUTS), torch.zeros(4, OUTPUTS))
    twins.plain(torch.zeros(4, INPUTS), torch.zeros(4, OUTPUTS))
    twins.fused = fbt.fuse(twins.module, nn.MSELoss(), twins.optimizer)


@pytest.mark.parametrize(
    "change",
    [
        _replace_data, _load_weights, _write_in_place, _new_statistics, _no_state, _new_moments, _new_entries,
        _half_rate, _second_fuse,
    ],
)  # fmt: skip
def test_what_is_changed_from_outside_is_seen(change):
    twins = Twins(_normed(), _adam)
    x, y = _rows(steps=12)
    for k, (a, b) in enumerate(zip(x, y)):
        if k == 5:
            change(twins)
        twins.step(a, b)
        assert twins.module[0].weight.data_ptr() == twins.fused.trainer.model.weights[0][0].ctypes.data
    twins.agree()


def test_a_new_group_on_the_way():
    def optimizer(module):
        return torch.optim.SGD(module[:2].parameters(), lr=0.05)

    twins = Twins(_module(), optimizer)
    x, y = _rows(steps=8)
    for k, (a, b) in enumerate(zip(x, y)):
        if k == 4:
            for module, each in ((twins.module, twins.optimizer), (twins.twin, twins.other)):
                each.add_param_group({"params": module[3].parameters(), "lr": 0.01})
        twins.step(a, b)
    twins.agree()


# -- what is refused ---------------------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x)


def _tied():
    a = nn.Linear(4, 4)
    return nn.Sequential(a, nn.ReLU(), a)


def _hooked(kind):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    getattr(module[1], kind)(lambda *arguments: None)
    return module


def _seq(*parts):
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), *parts))


MODULES = {
    "own": (lambda: nn.Sequential(Own(), nn.Linear(3, 2)), ["module.0 (Own)", "forward may do anything"]),
    "not a module": (lambda: torch.relu, ["expected a torch.nn.Module, got builtin_function_or_method"]),
    "conv": (lambda: _seq(nn.Conv1d(3, 3, 1)), ["module.1.1", "got Conv1d", "Linear"]),
    "softmax": (lambda: _seq(nn.LogSoftmax(dim=1)), ["module.1.1", "LogSoftmax; CrossEntropyLoss"]),
    "lazy": (lambda: _seq(nn.LazyLinear(2)), ["module.1.1", "run the module once"]),
    "slope": (lambda: _seq(nn.LeakyReLU(0.2)), ["module.1.1", "negative_slope", "0.01", "0.2"]),
    "alpha": (lambda: _seq(nn.ELU(2.0)), ["module.1.1", "alpha", "2.0"]),
    "beta": (lambda: _seq(nn.Softplus(beta=2)), ["module.1.1", "beta", "2"]),
    "threshold": (lambda: _seq(nn.Softplus(threshold=5)), ["module.1.1", "threshold", "5"]),
    "dropout 1": (lambda: _seq(nn.Dropout(1.0)), ["module.1.1", "p < 1"]),
    "two dimensions": (lambda: _seq(nn.LayerNorm((2, 3))), ["module.1.1", "last dimension alone"]),
    "no statistics": (lambda: _seq(nn.BatchNorm1d(3, track_running_stats=False)), ["module.1.1", "running statistics"]),
    "cumulative": (lambda: _seq(nn.BatchNorm1d(3, momentum=None)), ["module.1.1", "momentum"]),
    "flatten": (lambda: _seq(nn.Flatten(0)), ["module.1.1", "start_dim=1"]),
    "widths": (lambda: _seq(nn.Linear(5, 2)), ["module.1.1", "expected 3 inputs", "in_features=5"]),
    "norm's width": (lambda: _seq(nn.BatchNorm1d(5)), ["module.1.1", "expected 3 inputs"]),
    "half": (
        lambda: nn.Sequential(nn.Linear(4, 3).bfloat16()),
        ["module.0.weight", "float32 or float64, got bfloat16"],
    ),
    "two dtypes": (lambda: _seq(nn.Linear(3, 2).double()), ["module.1.1.weight", "expected float32", "float64"]),
    "device": (lambda: nn.Sequential(nn.Linear(4, 3, device="meta")), ["module.0.weight", "on the CPU", "meta"]),
    "tied": (_tied, ["module.2.weight is shared with module.0.weight"]),
    "forward hook": (lambda: _hooked("register_forward_hook"), ["module.1 (ReLU) has forward hooks"]),
    "pre hook": (lambda: _hooked("register_forward_pre_hook"), ["module.1 (ReLU) has forward pre hooks"]),
    "backward hook": (lambda: _hooked("register_full_backward_hook"), ["module.1 (ReLU) has backward hooks"]),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
        ["module.0 (Param"],
    ),
    "no layer": (lambda: nn.Sequential(nn.ReLU()), ["at least one Linear"]),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("caller", ["fuse", "from_torch"])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_are_refused(name, caller):
    make, words = MODULES[name]
    module = make()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(fb.FastbatchError) as caught:
        fbt.from_torch(module) if caller == "from_torch" else fbt.fuse(module, nn.MSELoss(), optimizer)
    for word in (caller, *words):
        assert word in str(caught.value)


def _optim(cls, **options):
    return lambda module: cls(module.parameters(), **options)


def _with_hook(module):
    optimizer = _adam(module)
    optimizer.register_step_post_hook(lambda *arguments: None)
    return optimizer


def _with_gradient_hook(module):
    module[3].weight.register_post_accumulate_grad_hook(lambda p: None)
    return _adam(module)


def _foreign(module):
    return torch.optim.Adam([*module.parameters(), nn.Parameter(torch.zeros(2, 7))])


def _half_born(module):
    optimizer = _adam(module)
    optimizer.state[module[0].weight] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(24, INPUTS)}
    return optimizer


_optimizers = torch.optim
WRONG = {
    "optimizer": ({"optimizer": _optim(_optimizers.Adadelta)}, ["optimizer", "Adadelta", "RMSprop"]),
    "not an optimizer": ({"optimizer": lambda module: "adam"}, ["torch.optim.Optimizer, got str"]),
    "maximize": ({"optimizer": _optim(_optimizers.SGD, maximize=True)}, ["SGD, group 0", "maximize=False"]),
    "differentiable": ({"optimizer": _optim(_optimizers.Adam, differentiable=True)}, ["differentiable=False"]),
    "step hook": ({"optimizer": _with_hook}, ["optimizer has step post hooks"]),
    "gradient hook": ({"optimizer": _with_gradient_hook}, ["module.3.weight has gradient hooks"]),
    "foreign": ({"optimizer": _foreign}, ["group 0", "parameters of the module", "(2, 7)"]),
    "half born": ({"optimizer": _half_born}, ["module.0.bias begins at update 0"]),
    "two slots": (
        {"optimizer": lambda m: _optimizers.SGD([{"params": [m[0].weight]}, {"params": [m[0].bias], "momentum": 0.5}])},
        ["SGD(groups=", "slots stay the same"],
    ),
    "loss": ({"loss": nn.KLDivLoss()}, ["loss_fn (KLDivLoss)", "MSELoss"]),
    "own loss": ({"loss": lambda a, b: (a - b).sum()}, ["loss_fn (function)", "forward, backward and update"]),
    "nll": ({"loss": nn.NLLLoss()}, ["CrossEntropyLoss takes the outputs before LogSoftmax"]),
    "probabilities": ({"loss": nn.BCELoss()}, ["BCEWithLogitsLoss takes the outputs before Sigmoid"]),
    "sum": ({"loss": nn.MSELoss(reduction="sum")}, ["MSELoss", "reduction='mean', got 'sum'"]),
    "beta": ({"loss": nn.SmoothL1Loss(beta=0.5)}, ["SmoothL1Loss", "beta 1", "0.5"]),
    "full": ({"loss": nn.PoissonNLLLoss(full=True)}, ["PoissonNLLLoss", "full=False"]),
    "weight": ({"loss": nn.BCEWithLogitsLoss(weight=torch.ones(OUTPUTS))}, ["BCEWithLogitsLoss", "weight=None"]),
    "classes": ({"loss": nn.CrossEntropyLoss(weight=torch.ones(3))}, ["expected 5 weights", "got 3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_fuse_refuses(name):
    wrong, words = WRONG[name]
    module = _module()
    places = [p.data_ptr() for p in module.parameters()]
    with pytest.raises(fb.FastbatchError) as caught:
        fbt.fuse(module, wrong.get("loss", nn.MSELoss()), wrong.get("optimizer", _adam)(module))
    for word in words:
        assert word in str(caught.value)
    assert places == [p.data_ptr() for p in module.parameters()]


def test_what_a_step_refuses():
    """Nothing has been trained then, and the next one goes on."""
    module = nn.Sequential(nn.Linear(INPUTS, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, OUTPUTS))
    optimizer = _adam(module)
    step = fbt.fuse(module, nn.MSELoss(), optimizer)
    x, y = _rows(steps=1)
    x, y = x[0], y[0]
    step(x, y)
    before = copy.deepcopy([module.state_dict(), optimizer.state_dict()])

    def refused(error, match, *arguments):
        with pytest.raises(error, match=match):
            step(*arguments)
        assert optimizer.state_dict()["state"][0]["step"] == before[1]["state"][0]["step"]
        for (key, now), then in zip(module.state_dict().items(), before[0].values()):
            assert torch.equal(now, then), key

    refused(fb.ShapeError, "x: expected shape", x[:, 1:], y)
    refused(fb.ShapeError, "y: expected", x, y[1:])
    refused(fb.DTypeError, "requires grad", x.clone().requires_grad_(), y)
    refused(fb.DTypeError, "y: .*BFloat16", x, y.bfloat16())
    refused(fb.DataError, "y: expected finite numbers", x, y * math.inf)
    refused(fb.DivergenceError, "step 2", x, y + 1e30)
    module[1].eval()
    refused(fb.ArgumentError, r"module.1 \(Dropout\): expected training mode", x, y)
    module.train()
    optimizer.param_groups[0]["maximize"] = True
    refused(fb.ArgumentError, "maximize=False", x, y)
    optimizer.param_groups[0]["maximize"] = False
    module[0].weight.data = module[0].weight.data.double()
    with pytest.raises(fb.ArgumentError, match=r"module.0.weight: expected .*float32.*got .*float64"):
        step(x, y)
    module[0].weight.data = module[0].weight.data.float()
    assert step(x, y) > 0
    assert optimizer.state_dict()["state"][0]["step"] == 2
    module[3].bias = nn.Parameter(torch.zeros(OUTPUTS))
    with pytest.raises(fb.ArgumentError, match=r"module.3.bias is another parameter than the optimizer's"):
        step(x, y)
    with pytest.raises(fb.ArgumentError, match="fuse the copy"):
        copy.deepcopy(step)


def test_what_torch_would_have_ignored_is_no_row_at_all():
    """torch's loss is NaN then; here the update counts and nothing moves but what momentum moves."""
    module = _module()
    step = fbt.fuse(module, nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), lr=1.0))
    before = copy.deepcopy(module.state_dict())
    assert step(torch.ones(3, INPUTS), torch.full((3,), -100)) == 0
    assert all(torch.equal(now, then) for now, then in zip(module.state_dict().values(), before.values()))
    with pytest.raises(fb.DataError, match="got 5"):
        step(torch.ones(3, INPUTS), torch.tensor([0, -100, 5]))


# -- conversion --------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("make", [_module, _normed], ids=["plain", "norms"])
def test_from_torch_and_back(make, dtype):
    module = make(dtype)
    x, y = _rows(dtype, steps=3)
    for a, b in zip(x, y):  # running statistics of their own
        _torch_step(module, nn.MSELoss(), _adam(module))(a, b)
    model = fbt.from_torch(module)
    drawn = torch.get_rng_state()
    back = fbt.to_torch(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    with torch.no_grad():
        expected, again = module.eval()(x[0]).numpy(), back.eval()(x[0]).numpy()
    assert difference(model.predict(x[0]), expected) <= BOUND[dtype] / 100
    assert difference(again, expected) <= BOUND[dtype] / 100
    module[0].weight.data.zero_()
    model.parameters[:] = 1
    with torch.no_grad():
        assert_same_bits(back(x[0]).numpy(), again)  # copies on either side


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_every_activation_there_and_back(activation):
    layers = [fb.Dense(6, activation), fb.Dropout(0.25), fb.Activation(activation), fb.Dense(2, bias=False)]
    model = fb.Sequential(layers, input_size=4, seed=3)
    module = fbt.to_torch(model).eval()
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        assert difference(module(x).numpy(), model.predict(x)) < 1e-5
    twin = fbt.from_torch(module)
    assert_same_bits(twin.parameters, model.parameters)
    assert_same_bits(twin.predict(x), model.predict(x))


def test_a_linear_alone():
    module = nn.Linear(4, 2)
    model = fbt.from_torch(module)
    assert_same_bits(model.weights[0][0], module.weight.detach().numpy().T)
    step = fbt.fuse(module, nn.MSELoss(), torch.optim.SGD(module.parameters(), lr=0.1))
    assert step(torch.ones(3, 4), torch.zeros(3, 2)) > step(torch.ones(3, 4), torch.zeros(3, 2))
    with pytest.raises(fb.ArgumentError, match="ghost"):
        fbt.to_torch(fb.Sequential([fb.Dense(2), fb.BatchNorm(ghost_size=4)], input_size=2))
    with pytest.raises(fb.ArgumentError, match="expected a fastbatch Sequential, got Linear"):
        fbt.to_torch(module)


def test_images_are_flattened():
    module = nn.Sequential(nn.Dropout(0.0), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    twins = Twins(module, _adam, nn.CrossEntropyLoss())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        twins.step(torch.randn(6, 1, 3, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator))
    twins.agree()


# -- tensors at the door of a trainer ----------------------------------------------------------------------------------


def _of_jax(array):
    jax = pytest.importorskip("jax", reason="compared with JAX arrays")
    return jax.numpy.asarray(array)


@pytest.mark.parametrize("convert", [torch.from_numpy, _of_jax], ids=["torch", "jax"])
def test_tensors_are_arrays(convert):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((90, INPUTS)).astype(np.float32), rng.standard_normal((90, OUTPUTS)).astype(np.float32)
    tensors = convert(X), convert(y)
    assert np.shares_memory(checks.as_array(tensors[0], "X"), checks.as_array(tensors[0], "X")), "a copy each"
    ours, theirs = (fb.Trainer(fb.MLP([INPUTS, 8, OUTPUTS]), "mse") for _ in range(2))
    for trainer, rows in ((ours, tensors), (theirs, (X, y))):
        trainer.fit(*rows, epochs=2, verbose=0)
        trainer.step(*rows)
        trainer.partial_fit(*rows)
    assert_same_bits(ours.model.parameters, theirs.model.parameters)
    assert ours.evaluate(*tensors) == theirs.evaluate(X, y)
    assert ours.gradients(*tensors)[0] == theirs.gradients(X, y)[0]
    for predict in (ours.predict, ours.model.predict):
        assert_same_bits(predict(tensors[0]), theirs.predict(X))
    assert torch.from_numpy(ours.predict(X)).shape == torch.from_dlpack(ours.predict(X)).shape == (90, OUTPUTS)


def test_a_tensor_is_not_copied():
    x = torch.zeros(5, INPUTS)
    assert checks.as_array(x, "x").ctypes.data == x.data_ptr()
    assert checks.as_array(x.T, "x").ctypes.data == x.data_ptr()


@pytest.mark.parametrize(
    ("x", "word"),
    [(torch.zeros(2, INPUTS, requires_grad=True), "detach"), (torch.zeros(2, INPUTS).bfloat16(), "BFloat16"),
     (torch.zeros(2, INPUTS, device="meta"), "meta")],
)  # fmt: skip
def test_tensors_that_numpy_cannot_look_at(x, word):
    trainer = fb.Trainer(fb.MLP([INPUTS, OUTPUTS]), "mse")
    for call in (trainer.predict, trainer.model.predict, lambda x: trainer.step(x, np.zeros((2, OUTPUTS)))):
        with pytest.raises(fb.DTypeError, match=rf"[xX]: expected what NumPy can look at, got Tensor.*{word}"):
            call(x)
