"""Learning-rate schedules: torch's rates update by update, the same bits however they are asked for, JSON, errors."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import warnings

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_trainer, difference, make_data, make_trainer

import fastbatch as fb
from fastbatch import schedules
from fastbatch.schedules import Constant, Cosine, Exponential, OneCycle, Schedule, Step, Warmup

backends = pytest.mark.parametrize("backend", BACKENDS)

EXAMPLES = [
    Constant(0.1),
    Step(0.1, 7),
    Step(0.1, 1, 0.9),
    Step(0.01, 30, 1.5),
    Exponential(0.1, 0.99),
    Exponential(1e-6, 1.01),
    Cosine(1e-3, 100),
    Cosine(0.1, 1),
    Cosine(0.1, 777, 1e-5),
    Warmup(10, Constant(0.1)),
    Warmup(0, Exponential(0.1, 0.9)),
    Warmup(25, Cosine(1e-3, 300, 1e-6)),
    Warmup(5, Warmup(3, Step(0.1, 10))),
    OneCycle(0.1, 100),
    OneCycle(0.1, 1),
    OneCycle(0.3, 97, pct_start=0.5, div_factor=10, final_div_factor=100),
    OneCycle(0.3, 50, pct_start=0.0),
    OneCycle(0.3, 50, pct_start=1.0),
]
examples = pytest.mark.parametrize("schedule", EXAMPLES, ids=str)


def test_every_schedule_has_an_example():
    assert {type(schedule) for schedule in EXAMPLES} == set(schedules.SCHEDULES.values())
    ours = [cls for cls in Schedule.__subclasses__() if cls.__module__.startswith("fastbatch.")]
    assert {cls.__name__ for cls in ours} == set(schedules.SCHEDULES)


# -- torch ---------------------------------------------------------------------------------------------------------


def _torch_rates(make, lr, count):
    """Rates that updates 0 .. count - 1 run at when torch's scheduler steps behind every update."""
    torch = pytest.importorskip("torch", reason="rates of torch need torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR warns about itself
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        rates = []
        for _ in range(count):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return np.array(rates)


def _warm(steps, then):
    def make(s, o):
        first = s.LinearLR(o, start_factor=1 / (steps + 1), total_iters=steps)
        return s.SequentialLR(o, [first, then(s, o)], milestones=[steps])

    return make


TORCH = {
    "step": (Step(0.1, 7, 0.5), lambda s, o: s.StepLR(o, 7, 0.5), 0.1, 300),
    "step-default": (Step(0.1, 30), lambda s, o: s.StepLR(o, 30), 0.1, 200),
    "exponential": (Exponential(0.1, 0.99), lambda s, o: s.ExponentialLR(o, 0.99), 0.1, 1000),
    "cosine": (Cosine(0.1, 1000, 1e-4), lambda s, o: s.CosineAnnealingLR(o, 1000, 1e-4), 0.1, 1001),
    "cosine-odd": (Cosine(1e-3, 37, 1e-5), lambda s, o: s.CosineAnnealingLR(o, 37, 1e-5), 1e-3, 38),
    "one-cycle": (OneCycle(0.1, 1000), lambda s, o: s.OneCycleLR(o, 0.1, 1000, cycle_momentum=False), 0.1, 999),
    "one-cycle-odd": (
        OneCycle(0.3, 97, pct_start=0.45, div_factor=10, final_div_factor=50),
        lambda s, o: s.OneCycleLR(o, 0.3, 97, pct_start=0.45, div_factor=10, final_div_factor=50, cycle_momentum=False),
        0.3,
        96,
    ),
    "warmup-step": (Warmup(10, Step(0.1, 7, 0.5)), _warm(10, lambda s, o: s.StepLR(o, 7, 0.5)), 0.1, 100),
    "warmup-exponential": (Warmup(3, Exponential(0.1, 0.9)), _warm(3, lambda s, o: s.ExponentialLR(o, 0.9)), 0.1, 60),
    "warmup-cosine": (
        Warmup(25, Cosine(0.1, 200, 1e-3)),
        _warm(25, lambda s, o: s.CosineAnnealingLR(o, 200, 1e-3)),
        0.1,
        226,
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TORCH)
def test_rates_are_those_of_torch(name):
    schedule, make, lr, count = TORCH[name]
    # the absolute part is of the last digits of the peak, which 1 + cos leaves standing where torch nears 0
    np.testing.assert_allclose(schedule.values(0, count), _torch_rates(make, lr, count), rtol=1e-12, atol=1e-16 * lr)


@pytest.mark.torch
def test_cosine_to_zero_is_torchs_to_the_size_of_the_rate():
    """torch's recursion loses relative digits where it nears 0; absolutely it stays as close."""
    torchs = _torch_rates(lambda s, o: s.CosineAnnealingLR(o, 100), 0.1, 101)
    np.testing.assert_allclose(Cosine(0.1, 100).values(0, 101), torchs, rtol=0, atol=1e-12 * 0.1)


@pytest.mark.torch
@backends
@pytest.mark.parametrize("name", ["cosine-odd", "warmup-step", "one-cycle-odd"])
def test_training_under_a_schedule_follows_torch(backend, name):
    torch = pytest.importorskip("torch", reason="a trajectory of torch needs torch")
    schedule, make, lr, count = TORCH[name]
    x, y = make_data(n=8)
    trainer = make_trainer(
        "mse", fb.SGD(lr=schedule), backend=backend, dtype="float64" if backend != "c" else "float32"
    )
    (w1, b1), (w2, b2) = [[torch.tensor(v, dtype=torch.float64) for v in pair] for pair in trainer.model.get_weights()]
    parameters = [v.requires_grad_() for v in (w1, b1, w2, b2)]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        for _ in range(min(count, 40)):
            trainer.step(x, y)
            optimizer.zero_grad()
            z = torch.tanh(torch.tensor(x, dtype=torch.float64) @ w1 + b1) @ w2 + b2
            torch.nn.functional.mse_loss(z, torch.tensor(y, dtype=torch.float64)).backward()
            optimizer.step()
            scheduler.step()
    flat = np.concatenate([v.detach().numpy().ravel() for v in parameters])
    assert difference(trainer.model.parameters, flat) < (1e-5 if backend == "c" else 1e-12)


# -- by hand -------------------------------------------------------------------------------------------------------


def test_known_rates():
    assert Constant(0.5).values(3, 2).tolist() == [0.5, 0.5]
    assert Step(1.0, 2, 0.5).values(0, 5).tolist() == [1, 1, 0.5, 0.5, 0.25]
    assert Exponential(1.0, 0.5).values(0, 4).tolist() == [1, 0.5, 0.25, 0.125]
    np.testing.assert_allclose(Cosine(1.0, 4).values(0, 5), [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0], atol=1e-16)
    np.testing.assert_allclose(Warmup(3, Constant(1.0)).values(0, 5), [0.25, 0.5, 0.75, 1, 1], rtol=1e-15)
    one = OneCycle(1.0, 10).values(0, 10)
    assert (one[0], one[2], one[9]) == (pytest.approx(1 / 25), 1.0, pytest.approx(1 / 25 / 1e4))
    assert one.argmax() == 2


@pytest.mark.parametrize(
    ("schedule", "last", "value"),
    [(Cosine(0.1, 50, 0.01), 50, 0.01), (OneCycle(0.1, 50), 49, 0.1 / 25 / 1e4), (OneCycle(1.0, 50, 1.0), 49, 1.0)],
)
def test_past_the_end_the_last_value_stays(schedule, last, value):
    assert schedule(last) == pytest.approx(value, rel=1e-15)
    assert schedule(last) != schedule(last - 1)
    assert set(schedule.values(last, 200)) == {schedule(last)}
    assert schedule(10**9) == schedule(last)
    later = Warmup(7, schedule)
    assert later(last + 7) == later(10**9) == schedule(last)


def test_cosine_keeps_its_digits_near_its_end():
    """The last update of a million: lr * sin^2(pi / 2e6), where 1 + cos would hold four digits."""
    assert Cosine(1.0, 10**6)(10**6 - 1) == pytest.approx(math.sin(math.pi / 2e6) ** 2, rel=1e-9, abs=0)


@examples
def test_rates_are_finite_and_never_negative(schedule):
    values = schedule.values(0, 1000)
    assert values.dtype == np.float64
    assert values.shape == (1000,)
    assert (values >= 0).all()
    assert np.isfinite(values).all()


@examples
def test_no_bit_depends_on_how_updates_are_cut(schedule):
    whole = schedule.values(0, 1200)
    for size in (1, 2, 3, 5, 8, 13, 512, 600):
        pieces = [schedule.values(first, size) for first in range(0, 1200, size)]
        assert np.concatenate(pieces)[:1200].tobytes() == whole.tobytes(), size
    assert [schedule(t) for t in range(1200)] == whole.tolist()
    assert type(schedule(np.int64(5))) is float
    assert schedule.values(7, 0).shape == (0,)


# -- descriptions --------------------------------------------------------------------------------------------------


@examples
def test_a_schedule_goes_through_json_pickle_and_copy(schedule):
    description = json.loads(json.dumps(schedule.to_dict()))
    assert description["name"] == type(schedule).__name__
    for twin in (Schedule.from_dict(description), pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert twin.values(0, 300).tobytes() == schedule.values(0, 300).tobytes()
    assert eval(repr(schedule), vars(schedules)) == schedule


@examples
def test_a_schedule_is_frozen_and_hashable(schedule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 1)
    assert len({schedule, copy.deepcopy(schedule)}) == 1


def test_numbers_of_numpy_become_pythons():
    schedule = Cosine(np.float32(0.5), np.int32(10), np.float64(0.25))
    assert json.loads(json.dumps(schedule.to_dict())) == {
        "name": "Cosine",
        "lr": 0.5,
        "total_steps": 10,
        "min_lr": 0.25,
    }


NUMBERS = [-0.1, math.nan, math.inf, True, "0.1", None, 1j, [0.1]]
COUNTS = [0, -1, 2.0, True, "3", None]
BAD = {
    **{f"Constant-{v!r}": (Constant, {"lr": v}) for v in NUMBERS},
    **{f"Step-{v!r}": (Step, {"lr": v, "every": 1}) for v in NUMBERS},
    **{f"Step-every-{v!r}": (Step, {"lr": 1, "every": v}) for v in COUNTS},
    **{f"Step-gamma-{v!r}": (Step, {"lr": 1, "every": 1, "gamma": v}) for v in [*NUMBERS, 0, 0.0]},
    **{f"Exponential-{v!r}": (Exponential, {"lr": v, "gamma": 0.9}) for v in NUMBERS},
    **{f"Exponential-gamma-{v!r}": (Exponential, {"lr": 1, "gamma": v}) for v in [*NUMBERS, 0.0]},
    **{f"Cosine-{v!r}": (Cosine, {"lr": v, "total_steps": 5}) for v in NUMBERS},
    **{f"Cosine-total-{v!r}": (Cosine, {"lr": 1, "total_steps": v}) for v in COUNTS},
    **{f"Cosine-min-{v!r}": (Cosine, {"lr": 1, "total_steps": 5, "min_lr": v}) for v in [*NUMBERS, 1.1]},
    **{f"Warmup-{v!r}": (Warmup, {"steps": v, "then": Constant(1)}) for v in COUNTS[1:]},
    **{f"Warmup-then-{v!r}": (Warmup, {"steps": 1, "then": v}) for v in (0.1, None, Constant, "cosine")},
    **{f"OneCycle-{v!r}": (OneCycle, {"max_lr": v, "total_steps": 5}) for v in NUMBERS},
    **{f"OneCycle-total-{v!r}": (OneCycle, {"max_lr": 1, "total_steps": v}) for v in COUNTS},
    **{
        f"OneCycle-{name}-{v!r}": (OneCycle, {"max_lr": 1, "total_steps": 5, name: v})
        for name, worst in (("pct_start", 1.1), ("div_factor", 0.9), ("final_div_factor", 0.0))
        for v in [*NUMBERS, worst]
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name):
    cls, values = BAD[name]
    with pytest.raises(fb.ArgumentError, match=rf"{cls.__name__}\(\w+=\): expected .*, got "):
        cls(**values)


def test_a_number_behind_a_warmup_is_told_its_name():
    with pytest.raises(fb.ArgumentError, match=r"did you mean Constant\(0.1\)\?"):
        Warmup(5, 0.1)


def test_unknown_keywords_get_a_did_you_mean():
    with pytest.raises(TypeError, match="did you mean 'lr'"):
        Cosine(learning_rate=0.1, total_steps=5)


@pytest.mark.parametrize("bad", [-1, 1.0, True, None])
def test_bad_updates_are_refused(bad):
    for call in (Constant(0.1), lambda t: Constant(0.1).values(t, 1), lambda t: Constant(0.1).values(0, t)):
        with pytest.raises(fb.ArgumentError, match="expected an integer >= 0"):
            call(bad)


@pytest.mark.parametrize(("first", "found"), [(100, "3.4.*e.38 at update 128"), (2000, "inf at update 2000")])
def test_a_rate_beyond_float32_names_its_update(first, found):
    assert Exponential(1.0, 2.0).values(0, 128)[127] == 2.0**127
    with pytest.raises(fb.ArgumentError, match=f"got {found}"):
        Exponential(1.0, 2.0).values(first, 100)


@pytest.mark.parametrize("bad", [None, {}, {"name": "Cosin"}, {"name": 3}, {"lr": 1.0}])
def test_bad_descriptions_are_refused(bad):
    with pytest.raises(fb.ArgumentError, match=r"Schedule.from_dict"):
        Schedule.from_dict(bad)


# -- optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(fb.ops.OPTIMIZERS))
def test_every_optimizer_takes_a_schedule(name):
    cls, schedule = fb.ops.OPTIMIZERS[name], Step(0.1, 2, 0.5)
    optimizer = cls(lr=schedule)
    assert optimizer.rates(1, 3).tolist() == [0.1, 0.05, 0.05]
    assert [optimizer.rate(t) for t in (1, 2)] == [0.1, 0.05]
    assert cls(lr=1).rates(5, 2).tolist() == [1.0, 1.0]
    assert cls(lr=0.25).rate(9) == 0.25
    assert optimizer == cls(lr=Step(0.1, 2, 0.5))


@pytest.mark.parametrize("bad", [Cosine, "cosine", None, -1.0, math.nan, [0.1], lambda t: 0.1])
def test_other_rates_are_refused(bad):
    with pytest.raises(fb.ArgumentError, match=r"Adam\(lr=\): expected a finite number >= 0 .* or a schedule, got"):
        fb.Adam(lr=bad)


def test_a_schedule_is_for_the_rate_alone():
    with pytest.raises(fb.ArgumentError, match=r"SGD\(momentum=\)"):
        fb.SGD(momentum=Constant(0.9))


def test_kernels_update_takes_the_rate_of_its_update():
    p = np.ones(3, np.float32)
    fb.kernels.update(fb.SGD(lr=Step(0.5, 1, 0.5)), p, np.ones(3, np.float32), np.empty((0, 3), np.float32), 2)
    assert p.tolist() == [0.75] * 3


# -- trainers ------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("optimizer", sorted(fb.ops.OPTIMIZERS))
def test_a_constant_schedule_is_the_number(backend, optimizer):
    x, y = make_data()
    cls = fb.ops.OPTIMIZERS[optimizer]
    a, b = (make_trainer("mse", cls(lr=lr), backend=backend) for lr in (0.01, Constant(0.01)))
    a.fit(x, y, epochs=2, batch_size=16), b.fit(x, y, epochs=2, batch_size=16)
    assert_same_trainer(b, a)


@backends
def test_fit_runs_each_update_at_its_rate(backend):
    """Two fits under a schedule are the steps, over the same rows, each at the number the schedule gives."""
    x, y = make_data(n=70)
    schedule = Warmup(3, Cosine(0.05, 9, 1e-3))
    trainer = make_trainer("mse", fb.Adam(lr=schedule), backend=backend)
    twin = make_trainer("mse", fb.Adam(lr=schedule), backend=backend)
    by_hand = make_trainer("mse", fb.Adam(lr=1.0), backend=backend)
    history = trainer.fit(x, y, batch_size=16, epochs=2, shuffle=False)
    assert history["lr"] == [schedule(4), schedule(9)]
    for t in range(10):
        rows = slice(16 * (t % 5), 16 * (t % 5) + 16)
        by_hand.lr_factor = schedule(t)
        assert twin.step(x[rows], y[rows]) == by_hand.step(x[rows], y[rows])
    for other in (twin, by_hand):
        assert other.model.parameters.tobytes() == trainer.model.parameters.tobytes()


@backends
def test_update_runs_at_its_rate(backend):
    x, y = make_data(n=8)
    trainer = make_trainer("mse", fb.SGD(lr=Step(0.5, 1, 0.5)), backend=backend)
    for rate in (0.5, 0.25, 0.125):
        before = trainer.model.parameters.copy()
        gradient = trainer.gradients(x, y)[1]
        z = trainer.forward(x)
        trainer.backward(2 * (z - y) / z.size)
        trainer.update()
        np.testing.assert_allclose(trainer.model.parameters, before - rate * gradient, rtol=1e-4, atol=1e-5)


@backends
def test_lr_factor_multiplies_numbers_and_schedules(backend):
    x, y = make_data(n=32)
    for lr in (0.5, Constant(0.5)):
        quarter = make_trainer("mse", fb.SGD(lr=0.125), backend=backend)
        trainer = make_trainer("mse", fb.SGD(lr=lr), backend=backend)
        assert trainer.lr_factor == 1.0
        trainer.lr_factor = 0.25
        for each in (trainer, quarter):
            each.step(x, y)
            each.step(x, y)
            each.fit(x, y, batch_size=8)
        assert trainer.model.parameters.tobytes() == quarter.model.parameters.tobytes()
        assert trainer.history["lr"] == [0.125]


def test_a_trainer_under_a_schedule_is_pickled_with_it():
    x, y = make_data()
    trainer = make_trainer("mse", fb.Adam(lr=Cosine(0.1, 20)))
    trainer.lr_factor = 0.5
    trainer.fit(x, y)
    twin = pickle.loads(pickle.dumps(trainer))
    trainer.fit(x, y), twin.fit(x, y)
    assert_same_trainer(twin, trainer)
