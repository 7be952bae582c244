"""Around fused steps: what is changed behind them, modes and memory of torch, and how tensors are read."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from helpers import assert_same_bits

import fastbatch as fb

torch = pytest.importorskip("torch", reason="the door to torch needs torch; CI installs it")
from test_torch_door import INPUTS, OUTPUTS, Twins, _adam, _module, _rows, _schedulers, _torch_step  # noqa: E402

import fastbatch.torch as fbt  # noqa: E402
from fastbatch._native import Watch  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.torch


def _dropped(rate=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh()), nn.Dropout(rate), nn.LayerNorm(8), nn.Linear(8, OUTPUTS),
        nn.LeakyReLU(),
    )  # fmt: skip


def _fused(module, loss_fn=None, optimizer=_adam):
    optimizer = optimizer(module)
    return fbt.fuse(module, loss_fn or nn.MSELoss(), optimizer), optimizer


# -- what is changed behind a fused step -------------------------------------------------------------------------------

CHANGES = {
    "a layer more": (lambda m, o: m.append(nn.ReLU()), "that was fused, with None, got .*relu.* there"),
    "another activation": (lambda m, o: m[0].__setitem__(1, nn.ReLU()), "with .*tanh.*, got .*relu"),
    "another rate": (lambda m, o: setattr(m[1], "p", 0.9), r"with LayerNorm.*, got Dropout\(rate=0.9"),
    "another eps": (lambda m, o: setattr(m[2], "eps", 0.1), r"got LayerNorm\(eps=0.1"),
    "a layer of the same kind": (
        lambda m, o: m.__setitem__(3, nn.Linear(8, OUTPUTS)), "module.3.weight is another parameter than the optimizer",
    ),
    "a hook": (lambda m, o: m[0][1].register_forward_hook(print), r"module.0.1 \(Tanh\) has forward hooks"),
    "a hook of a chain": (lambda m, o: m[0].register_forward_pre_hook(print), r"\(Sequential\) has forward pre"),
    "another slope": (lambda m, o: setattr(m[4], "negative_slope", 0.9), r"module.4: .*got Leaky.*slope=0.9"),
    "a forward of a layer": (lambda m, o: setattr(m[4], "forward", abs), r"module.4 .* has a forward of"),
    "a forward of a chain": (lambda m, o: setattr(m[0], "forward", abs), r"module.0 .* has a forward of"),
    "a hook of the optimizer": (lambda m, o: o.register_step_post_hook(print), "the optimizer has step post hooks"),
    "shared memory": (lambda m, o: m.share_memory(), "module.0.0.weight lies in memory that processes share"),
    "a dtype": (lambda m, o: m.double(), "module.0.0.weight: expected .*float32.*got .*float64"),
    "a device": (lambda m, o: m[2].to("meta"), "module.2.weight: expected .*got .*on meta"),
    "amsgrad": (
        lambda m, o: o.param_groups[0].update(amsgrad=True),
        "Adam: expected .*state that was fused, exp_avg, exp_avg_sq, got some that keep .*max_exp_avg_sq: fuse again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_step_can_follow_is_refused(name):
    change, words = CHANGES[name]
    module = _dropped()
    step, optimizer = _fused(module)
    x, y = (rows[0] for rows in _rows(steps=1))
    step(x, y)
    change(module, optimizer)
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):  # it is not forgotten
        with pytest.raises(fb.ArgumentError, match=f"^step: .*{words}"):
            step(x, y)
    for now, then in zip(module.state_dict().values(), before.values()):
        assert now.device.type == "meta" or torch.equal(now, then)


@pytest.mark.parametrize(
    ("loss_fn", "change", "words"),
    [
        (nn.CrossEntropyLoss, {"label_smoothing": 0.5}, "expected the loss that was fused.*label_smoothing=0.0"),
        (nn.CrossEntropyLoss, {"weight": torch.rand(OUTPUTS)}, "expected the loss that was fused"),
        (nn.CrossEntropyLoss, {"reduction": "sum"}, "expected reduction='mean', got 'sum'"),
        (nn.HuberLoss, {"delta": 2.0}, "expected the loss that was fused, Huber"),
    ],
)
def test_a_loss_that_changes_is_seen(loss_fn, change, words):
    loss_fn = loss_fn()
    step, _ = _fused(_module(), loss_fn)
    x, y = (rows[0] for rows in _rows(kind="labels" if isinstance(loss_fn, nn.CrossEntropyLoss) else "values", steps=1))
    step(x, y)
    for name, value in change.items():
        setattr(loss_fn, name, value)
    with pytest.raises(fb.ArgumentError, match=words):
        step(x, y)


def test_eval_and_back():
    module = _dropped(0.25)
    module.eval()
    step, _ = _fused(module)
    x, y = (rows[0] for rows in _rows(steps=1))
    for _ in range(2):
        with pytest.raises(fb.ArgumentError, match=r"module.1 \(Dropout\): expected training mode"):
            step(x, y)
        module.train()
        step(x, y)
        module.eval()


def test_a_hook_of_a_gradient_is_seen_when_something_else_has_changed():
    module = _dropped()
    step, optimizer = _fused(module)
    x, y = (rows[0] for rows in _rows(steps=1))
    step(x, y)
    handle = module[3].weight.register_hook(abs)
    optimizer.param_groups[0]["betas"] = (0.8, 0.99)
    with pytest.raises(fb.ArgumentError, match=r"^step: module\.3\.weight has gradient hooks"):
        step(x, y)
    handle.remove()
    step(x, y)


def test_hooks_for_all_modules():
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        with pytest.raises(fb.ArgumentError, match="global forward hooks"):
            _fused(_module())
    finally:
        handle.remove()
    step, _ = _fused(_module())
    x, y = (rows[0] for rows in _rows(steps=1))
    step(x, y)
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *arguments: None)
    try:
        with pytest.raises(fb.ArgumentError, match="global forward pre hooks"):
            step(x, y)
    finally:
        handle.remove()
    step(x, y)


def test_weights_that_lie_where_others_belong():
    """A transposed view of the same memory, and two that change places; and their moments."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.Tanh(), nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, OUTPUTS))
    twins = Twins(module, _adam)
    for k, (x, y) in enumerate(zip(*_rows(steps=12))):
        for module, optimizer in ((twins.module, twins.optimizer), (twins.twin, twins.other)):
            a, b = module[0].weight, module[2].weight
            if k == 4:
                a.data = a.data.T
            if k == 8:
                a.data, b.data = b.data, a.data
                one, other = optimizer.state[a], optimizer.state[b]
                one["exp_avg"], other["exp_avg"] = other["exp_avg"], one["exp_avg"]
        twins.step(x, y)
    twins.agree()


def test_schedulers_that_work_on_others():
    """Chains of them, restarts, and momentum that goes with the rate."""

    def sgd(module):
        return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def one_after_the_other(optimizer):
        warm = _schedulers.LinearLR(optimizer, 0.1, total_iters=5)
        return _schedulers.SequentialLR(optimizer, [warm, _schedulers.CosineAnnealingLR(optimizer, 15)], milestones=[5])

    def together(optimizer):
        parts = _schedulers.ExponentialLR(optimizer, 0.95), _schedulers.CosineAnnealingWarmRestarts(optimizer, 7)
        return _schedulers.ChainedScheduler(parts)

    cyclic = partial(_schedulers.CyclicLR, base_lr=1e-3, max_lr=0.05, step_size_up=4, base_momentum=0.5)
    for make, optimizer in ((one_after_the_other, _adam), (together, _adam), (cyclic, sgd)):
        twins = Twins(_module(), optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, about its own chains
            both = [make(each) for each in (twins.optimizer, twins.other)]
            for x, y in zip(*_rows(steps=20)):
                twins.step(x, y)
                for scheduler in both:
                    scheduler.step()
        twins.agree()


@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("others", ["all", "first", "last"])
@pytest.mark.parametrize(
    "rate", [np.nan, np.inf, -np.inf, -1.0, -1e-300, 1e39, "a", "1", None, [0.1], torch.tensor(np.nan)]
)
def test_a_rate_that_is_none(rate, others, split):
    """Nothing is trained, on the fast path nor the careful one; a right rate goes on."""

    def sgd(module):
        groups = [{"params": [*module[0].parameters()]}, {"params": [*module[-1].parameters()], "lr": 0.02}]
        return torch.optim.SGD(groups if split else module.parameters(), lr=0.01)

    module = _module()
    step, optimizer = _fused(module, optimizer=sgd)
    x, y = (rows[0] for rows in _rows(steps=1))
    step(x, y)
    then = [group["lr"] for group in optimizer.param_groups]
    before = copy.deepcopy(module.state_dict())
    changed = optimizer.param_groups[{"all": slice(None), "first": slice(1), "last": slice(-1, None)}[others]]
    for group in changed:
        group["lr"] = rate
    for weight in (None, None, torch.ones(len(x))):
        with pytest.raises(fb.ArgumentError, match=r"^step: optimizer, lr: expected a finite number >= 0 .*, got "):
            step(x, y, weight)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    for group, lr in zip(optimizer.param_groups, then):
        group["lr"] = lr
    step(x, y)
    assert not torch.equal(module[0].weight, before["0.weight"])


def test_a_rate_that_is_none_at_fuse():
    module = _module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = np.nan
    with pytest.raises(fb.ArgumentError, match=r"^fuse: optimizer, lr: expected a finite number >= 0 .*, got nan"):
        fbt.fuse(module, nn.MSELoss(), optimizer)


def test_momentum_that_comes_and_goes_takes_a_new_fuse():
    twins = Twins(_module(), lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9))
    for k, (x, y) in enumerate(zip(*_rows(steps=9))):
        if k in (3, 6):
            for optimizer in (twins.optimizer, twins.other):
                optimizer.param_groups[0]["momentum"] = 0.9 * (k == 6)
            with pytest.raises(fb.ArgumentError, match=r"momentum_buffer.*fuse again"):
                twins.fused(x, y)
            twins.fused = fbt.fuse(twins.module, nn.MSELoss(), twins.optimizer)
        twins.step(x, y)
    twins.agree(states=False)


# -- steps beside others -----------------------------------------------------------------------------------------------


def test_two_fused_steps_on_one_module():
    """In turn, with optimizers of their own, or losses: each finds what the other has left."""
    twins = Twins(_module(), _adam)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in (twins.module, twins.twin)]
    steps = [
        (twins.fused, twins.plain),
        (
            fbt.fuse(twins.module, nn.MSELoss(), optimizers[0]),
            _torch_step(twins.twin, nn.MSELoss(), optimizers[1]),
        ),
        (
            fbt.fuse(twins.module, nn.L1Loss(), twins.optimizer),
            _torch_step(twins.twin, nn.L1Loss(), twins.other),
        ),
    ]
    for k, (x, y) in enumerate(zip(*_rows(steps=12))):
        fused, plain = steps[k // 2 % 3]
        assert fused(x, y) == pytest.approx(plain(x, y), rel=1e-4)
    twins.agree()


def test_copies_of_a_fused_module_and_its_optimizer():
    twins = Twins(_module(), _adam)
    x, y = _rows(steps=6)
    for a, b in zip(x[:3], y[:3]):
        twins.step(a, b)
    module, optimizer = copy.deepcopy((twins.module, twins.optimizer))
    before = copy.deepcopy(module.state_dict())
    twins.fused(x[0], y[0])
    assert all(torch.equal(now, then) for now, then in zip(module.state_dict().values(), before.values()))
    step = fbt.fuse(module, nn.MSELoss(), optimizer)
    for a, b in zip(x[3:], y[3:]):
        assert step(a, b) == pytest.approx(twins.plain(a, b), rel=1e-4)


@pytest.mark.parametrize("born", [False, True])
def test_in_inference_mode(born):
    """torch goes on with what has been made there."""
    module, twin = _module(), _module()
    x, y = (rows[0] for rows in _rows(steps=1))
    if born:
        step, optimizer = _fused(module)
    with torch.inference_mode():
        if not born:
            step, optimizer = _fused(module)
        step(x.clone(), y.clone())
    _torch_step(module, nn.MSELoss(), optimizer)(x, y)
    step(x, y)
    plain = _torch_step(twin, nn.MSELoss(), _adam(twin))
    for _ in range(3):
        plain(x, y)
    for ours, theirs in zip(module.parameters(), twin.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-4)


# -- modules in other clothes ------------------------------------------------------------------------------------------


class Chain(nn.Sequential):
    """A subclass that does what its base does."""


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = _module()

    def forward(self, x):
        return self.net(x)


def _with_forward():
    module = _module()
    module[1].forward = lambda x: 2 * x
    return module


def _with_tensor_hook():
    module = _module()
    module[0].weight.register_hook(lambda gradient: 0 * gradient)
    return module


def _tied_by_memory():
    module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    module[1].weight.data = module[0].weight.data
    return module


def test_a_subclass_of_sequential():
    twins = Twins(Chain(*_module()), _adam)
    for x, y in zip(*_rows(steps=5)):
        twins.step(x, y)
    twins.agree()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Doubled(*_module()), r"module \(Doubled\): .*forward may do anything"),
        (Holder, r"module \(Holder\): .*anything; module.net could be given instead"),
        (lambda: nn.DataParallel(_module()), r"\(DataParallel\): .*; module.module could be given instead"),
        (lambda: torch.compile(_module()), r"\(OptimizedModule\): .*; module._orig_mod could be given instead"),
        (_with_forward, r"module.1 \(Tanh\) has a forward of its own"),
        (_with_tensor_hook, "module.0.weight has gradient hooks"),
        (_tied_by_memory, "module.1.weight is shared with module.0.weight"),
        (lambda: _module().share_memory(), "module.0.weight lies in memory that processes share"),
    ],
)
def test_modules_that_do_something_else(make, words):
    module = make()
    with pytest.raises(fb.ArgumentError, match=f"^fuse: .*{words}"):
        _fused(module)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [(nn.MSELoss, r"an object of it, with \(\)"), (partial(nn.functional.cross_entropy), "objects take settings")],
)
def test_losses_that_are_nearly_right(loss_fn, words):
    with pytest.raises(fb.ArgumentError, match=f"^fuse: loss_fn .*{words}"):
        _fused(_module(), loss_fn)


# -- tensors as they lie -----------------------------------------------------------------------------------------------


class Tensor(torch.Tensor):
    """A class whose operations may do anything."""


PLAIN = {
    "as it is": lambda x: x,
    "one row": lambda x: x[:1],
    "one row, strides of its own": lambda x: x.T.contiguous().T[:1].clone(memory_format=torch.preserve_format),
    "in the middle": lambda x: torch.cat([x, x])[3 : 3 + len(x)],
}
CONVERTED = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "transposed": lambda x: x.T.contiguous().T,
    "every second": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda x: x[:1].expand(len(x), -1),
    "subclass": lambda x: x.as_subclass(Tensor),
}


@pytest.mark.parametrize("kind", [*PLAIN, *CONVERTED])
def test_a_step_reads_any_tensor(kind):
    torch.manual_seed(0)
    x, y = torch.randn(6, INPUTS), torch.randn(6, OUTPUTS)
    held = {**PLAIN, **CONVERTED}[kind](x)
    y = y[: len(held)]
    ours, theirs = (fb.Trainer(fb.MLP([INPUTS, 8, OUTPUTS]), "mse") for _ in range(2))
    for trainer in (ours, theirs):
        trainer.step(np.zeros((8, INPUTS), np.float32), np.zeros((8, OUTPUTS), np.float32))
    numbers = np.ascontiguousarray(held.float().numpy())
    fast = ours._program.fast_step(held, y, 0.0)
    if fast is not None:
        assert fast == theirs._program.fast_step(numbers, y.numpy(), 0.0)
    if kind in PLAIN and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert fast is not None, "copied"
    elif kind in CONVERTED:
        assert fast is None
    assert ours.step(held, y) == theirs.step(numbers, y.numpy())
    assert_same_bits(ours.predict(held), theirs.predict(numbers))
    assert_same_bits(ours.model.predict(held), theirs.model.predict(numbers))


@pytest.mark.parametrize("labels", [True, False])
def test_targets_are_read_as_they_lie(labels):
    loss = "cross_entropy" if labels else "mse"
    trainer = fb.Trainer(fb.MLP([INPUTS, 1 if not labels else OUTPUTS]), loss)
    x, y = torch.randn(6, INPUTS), torch.arange(6) % OUTPUTS if labels else torch.randn(6)
    trainer.step(x, y)
    fast = trainer._program.fast_step
    assert fast(x, y.repeat(2)[::2], 0.0) is None
    assert fast(x, y.int(), 0.0) is None
    assert fast(x, y[:5], 0.0) is None
    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert fast(x, y, 0.0) == fast(x.numpy(), y.numpy(), 0.0)
    if labels:
        assert fast(x, y + 1, 0.0) is None
        with pytest.raises(fb.DataError, match=r"expected labels 0 .. 4"):
            trainer.step(x, y + 1)
    else:
        with pytest.raises(fb.DTypeError, match=r"y: .*requires grad"):
            trainer.step(x, y.clone().requires_grad_())


def test_a_trainer_says_how_a_module_becomes_a_model():
    with pytest.raises(fb.ArgumentError, match=r"got Sequential; fastbatch\.torch\.from_torch makes one of it"):
        fb.Trainer(_module())


OLDER = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
import fastbatch as fb, fastbatch.torch as fbt
module = torch.nn.Sequential(torch.nn.Linear(4, 3))
optimizer = torch.optim.Adam(module.parameters())
step = fbt.fuse(module, torch.nn.MSELoss(), optimizer)
trainer = fb.Trainer(fbt.from_torch(module), "mse", fb.Adam())
x, y = torch.randn(5, 4), torch.randn(5, 3)
assert trainer._program.fast_step(x, y, 1e-3) is None
for k in range(4):
    assert step(x, y) == trainer.step(x.numpy(), y.numpy())
    if k == 1:
        module[0].weight.data = module[0].weight.data.clone()
    assert step._look() == (k != 1)
assert (trainer.predict(x) == step.trainer.predict(x.numpy())).all()
module[0].bias.requires_grad_(False)
assert not step._look()
"""


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="all tests are of an older torch")
def test_a_torch_without_the_interface_in_c():
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_watch_sees_each_kind_of_change():
    parameters, entries, hooks = [nn.Parameter(torch.zeros(3, 3)) for _ in range(3)], {"a": 1.5, "b": "x"}, {}
    changes = [
        lambda: parameters[1].requires_grad_(False),
        lambda: setattr(parameters[2], "data", torch.zeros(3, 3)),
        lambda: setattr(parameters[0], "data", parameters[0].data.T),
        lambda: entries.update(a=1.25),
        lambda: entries.update(c=1),
        lambda: entries.pop("b"),
        lambda: hooks.update({1: print}),
    ]
    for change in changes:
        watch = Watch(torch.Tensor, parameters, parameters, [entries], [hooks])
        assert watch.same()
        assert watch.same()
        change()
        assert not watch.same()
    hooks.clear()
    assert Watch(torch.Tensor, [torch.zeros(2, device="meta"), torch.tensor(1.0)], [], [], [{}]).same()
