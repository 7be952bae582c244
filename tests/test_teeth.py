"""The checks can fail: every deliberate mutant is rejected by the very assertions that the other tests use."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import C_TARGETS, SUBJECTS, DenseCase, LossCase, NetCase, UpdateCase, few_nets, parametrize

from fastbatch import ops
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Sums

HOST = C_TARGETS[-1] if C_TARGETS else "reference"


class Mutant:
    """A backend that is right but for the functions it is given."""

    name = "mutant"

    def __init__(self, **wrong) -> None:
        self._host = SUBJECTS[HOST]
        for name, function in wrong.items():
            setattr(self, name, lambda *args, f=function: f(self._host, *args))

    def __getattr__(self, name: str):
        return getattr(self._host, name)

    def program(self, plan, state, num_threads):
        return None


def poke(array: np.ndarray, index: int) -> None:
    """Write one element at a flat index that need not be inside."""
    ctypes.c_float.from_address(array.ctypes.data + index * array.itemsize).value = 1.0


# -- dense_forward -----------------------------------------------------------------------------------------------------


def forward(change):
    """A mutant of dense_forward: `change(host, x, w, b, act, a, z)` after, or instead of, the right call."""

    def wrong(host, x, w, b, act, a, z):
        host.dense_forward(x, w, b, act, a, z)
        change(host, x, w, b, act, a, z)

    return wrong


def _swap_weights(host, x, w, b, act, a, z):
    w = w.copy()
    w[0, 0], w[-1, -1] = w[-1, -1], w[0, 0]
    host.dense_forward(x, w, b, act, a, z)


def _stale(*at):
    def change(host, x, w, b, act, a, z):
        a[at] = 3.5

    return change


FORWARD = {
    "forgets the bias": forward(lambda h, x, w, b, act, a, z: h.dense_forward(x, w, None, act, a, z)),
    "z for a": forward(lambda h, x, w, b, act, a, z: h.dense_forward(x, w, b, ops.get_activation("identity"), a, None)),
    "drops the last lane": forward(_stale(slice(None), -1)),
    "drops the last row": forward(_stale(-1)),
    "one wrong element": forward(_stale(3, 4)),
    "scaled by 1.001": forward(lambda h, x, w, b, act, a, z: np.multiply(a, np.float32(1.001), out=a)),
    "swapped weights": forward(_swap_weights),
    "transposed weights": forward(
        lambda h, x, w, b, act, a, z: h.dense_forward(x, np.ascontiguousarray(w.T).reshape(w.shape), b, act, a, z)
    ),
    "forgets the last input": forward(
        lambda h, x, w, b, act, a, z: h.dense_forward(
            np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(w[:-1]), b, act, a, z
        )
    ),
    "rounds the inputs to bfloat16": forward(
        lambda h, x, w, b, act, a, z: h.dense_forward(
            (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), w, b, act, a, z
        )
    ),
    "NaN": forward(lambda h, x, w, b, act, a, z: a.__setitem__((0, 0), np.nan)),
    "one past the end": forward(lambda h, x, w, b, act, a, z: poke(a, a.size)),
    "one before the start": forward(lambda h, x, w, b, act, a, z: poke(a, -1)),
    "a cache line past the end": forward(lambda h, x, w, b, act, a, z: poke(a, a.size + 15)),
    "writes to its input": forward(lambda h, x, w, b, act, a, z: x.__setitem__((0, 0), 0)),
    "writes past its input": forward(lambda h, x, w, b, act, a, z: poke(w, w.size)),
    "does nothing": lambda h, x, w, b, act, a, z: None,
}
LAYERS = [DenseCase("forward", HOST, "float32", act, 9, 13, 33) for act in ("identity", "tanh", "gelu", "relu")]


@parametrize(LAYERS)
def test_the_host_is_right(case):
    oracle.check_dense_forward(Mutant(), case)
    oracle.check_dense_backward(Mutant(), case)


def in_float32(verb):
    """The host's function with its arrays rounded to float32 and its results widened again."""

    def wrong(host, *args):
        narrow = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in args]
        result = getattr(host, verb)(*narrow)
        for given, got in zip(args, narrow):
            if got is not given:
                wide = got.astype(np.float64)
                given[...] = np.where(given.astype(np.float32) == got, given, wide)  # what is only read stays as it was
        return result

    return Mutant(**{verb: wrong})


@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu"])
def test_float64_through_float32_is_rejected(activation):
    case = DenseCase("forward", HOST, "float64", activation, 9, 13, 33)
    with pytest.raises(AssertionError, match="times the bound"):
        oracle.check_dense_forward(in_float32("dense_forward"), case)
    with pytest.raises(AssertionError, match="times the bound"):
        oracle.check_dense_backward(in_float32("dense_backward"), replace(case, verb="backward"))
    with pytest.raises(AssertionError, match="times the bound"):
        oracle.check_loss(in_float32("loss"), LossCase(HOST, "float64", "cross_entropy", 9, 13, False, True))
    with pytest.raises(AssertionError, match="times the bound"):
        oracle.check_update(in_float32("update"), UpdateCase(HOST, "float64", "adam", 13, 2))


@pytest.mark.parametrize("name", FORWARD)
@parametrize(LAYERS)
def test_forward_mutant(case, name):
    if name == "z for a" and case.activation == "identity":
        return  # there it is right
    with pytest.raises(AssertionError):
        oracle.check_dense_forward(Mutant(dense_forward=FORWARD[name]), case)


# -- dense_backward ----------------------------------------------------------------------------------------------------


def backward(change):
    def wrong(host, da, x, w, saved, act, dw, db, dx):
        change(host, da, x, w, saved, act, dw, db, dx)

    return wrong


def after(change):
    def wrong(host, da, x, w, saved, act, dw, db, dx):
        host.dense_backward(da, x, w, saved, act, dw, db, dx)
        change(dw, db, dx)

    return wrong


def _without_rows(keep):
    def wrong(host, da, x, w, saved, act, dw, db, dx):
        host.dense_backward(da, x, w, saved, act, np.zeros_like(dw), np.zeros_like(db), dx)
        parts = [np.ascontiguousarray(v[keep]) if v is not None else None for v in (da, x, saved)]
        host.dense_backward(parts[0], parts[1], w, parts[2], act, dw, db, None)

    return wrong


def _overwrites(host, da, x, w, saved, act, dw, db, dx):
    dw[:], db[:] = 0, 0
    host.dense_backward(da, x, w, saved, act, dw, db, dx)


BACKWARD = {
    "overwrites instead of adding": _overwrites,
    "drops the last row of the batch": _without_rows(slice(None, -1)),
    "drops the first row of the batch": _without_rows(slice(1, None)),
    "forgets the slope": lambda h, da, x, w, s, act, *out: h.dense_backward(
        da, x, w, None, ops.get_activation("identity"), *out
    ),
    "forgets db": after(lambda dw, db, dx: db.__isub__(db)),
    "mean for sum": after(lambda dw, db, dx: dw.__itruediv__(9)),
    "dw scaled by 1.001": after(lambda dw, db, dx: dw.__imul__(np.float32(1.001))),
    "dx scaled by 1.001": after(lambda dw, db, dx: dx.__imul__(np.float32(1.001))),
    "last lane of dx": after(lambda dw, db, dx: dx.__setitem__((slice(None), -1), 3.5)),
    "last row of dw": after(lambda dw, db, dx: dw.__setitem__(-1, 0)),
    "w instead of its transpose": lambda h, da, x, w, s, act, dw, db, dx: h.dense_backward(
        da, x, np.ascontiguousarray(w[::-1]), s, act, dw, db, dx
    ),
    "past the end of dw": after(lambda dw, db, dx: poke(dw, dw.size)),
    "past the end of db": after(lambda dw, db, dx: poke(db, db.size)),
    "past the end of dx": after(lambda dw, db, dx: poke(dx, dx.size)),
    "slope applied in place": lambda h, da, x, w, s, act, *out: (
        h.dense_backward(da, x, w, s, act, *out),
        da.__imul__(np.float32(0.5)),
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
@parametrize(LAYERS)
def test_backward_mutant(case, name):
    if name == "forgets the slope" and case.activation == "identity":
        return
    with pytest.raises(AssertionError):
        oracle.check_dense_backward(Mutant(dense_backward=BACKWARD[name]), case)


# -- loss --------------------------------------------------------------------------------------------------------------


def loss_after(change):
    def wrong(host, a, y, loss, weight, da):
        sums = host.loss(a, y, loss, weight, da)
        return change(a, sums, da) or sums

    return wrong


LOSS = {
    "mean for sum": loss_after(lambda a, sums, da: Sums(sums.loss / len(a), sums.weight)),
    "da of the mean": loss_after(lambda a, sums, da: da.__itruediv__(len(a)) is None),
    "ignores the weights": lambda h, a, y, loss, weight, da: h.loss(a, y, loss, None, da),
    "weights rows twice": lambda h, a, y, loss, weight, da: h.loss(a, y, loss, weight * weight, da),
    "forgets the last row": loss_after(lambda a, sums, da: da.__setitem__(-1, 0)),
    "forgets the last output": loss_after(lambda a, sums, da: da.__setitem__((slice(None), -1), 0)),
    "da scaled by 1.001": loss_after(lambda a, sums, da: da.__imul__(np.float32(1.001)) is None),
    "loss scaled by 1.001": loss_after(lambda a, sums, da: Sums(sums.loss * 1.001, sums.weight)),
    "counts rows for weight": loss_after(lambda a, sums, da: Sums(sums.loss, len(a))),
    "past the end of da": loss_after(lambda a, sums, da: poke(da, da.size)),
    "opposite sign": loss_after(lambda a, sums, da: np.negative(da, out=da) is None),
    "rows swapped": loss_after(lambda a, sums, da: da.__setitem__(slice(None), da[::-1].copy())),
}


@pytest.mark.parametrize("name", LOSS)
@pytest.mark.parametrize("loss", ops.LOSSES)
def test_loss_mutant(loss, name):
    case = LossCase(HOST, "float32", loss, 9, 13, True, True)
    oracle.check_loss(Mutant(), case)
    with pytest.raises(AssertionError):
        oracle.check_loss(Mutant(loss=LOSS[name]), case)


# -- update ------------------------------------------------------------------------------------------------------------


def _stale_slot(k):
    def wrong(host, optimizer, p, g, slots, t, lr):
        kept = slots[k].copy()
        host.update(optimizer, p, g, slots, t, lr)
        slots[k] = kept

    return wrong


def _without_last(host, optimizer, p, g, slots, t, lr):
    part = np.ascontiguousarray(slots[:, :-1])
    host.update(optimizer, p[:-1], g[:-1], part, t, lr)
    slots[:, :-1] = part


def update_after(change):
    def wrong(host, optimizer, p, g, slots, t, lr):
        host.update(optimizer, p, g, slots, t, lr)
        change(p, slots)

    return wrong


UPDATE = {
    "first slot stale": _stale_slot(0),
    "last slot stale": _stale_slot(-1),
    "counts from 0": lambda h, o, p, g, s, t, lr: h.update(o, p, g, s, t + 1, lr),
    "lr scaled by 1.001": lambda h, o, p, g, s, t, lr: h.update(o, p, g, s, t, lr * 1.001),
    "gradient scaled by 1.001": lambda h, o, p, g, s, t, lr: h.update(o, p, g * np.float32(1.001), s, t, lr),
    "uphill": lambda h, o, p, g, s, t, lr: h.update(o, p, -g, s, t, lr),
    "drops the last element": _without_last,
    "past the end of p": update_after(lambda p, slots: poke(p, p.size)),
    "past the end of the slots": update_after(lambda p, slots: poke(slots, slots.size)),
    "does nothing": lambda h, o, p, g, s, t, lr: None,
}


# of every rule, and where t matters (under momentum at 1 only) for that which counts it
RULES = {
    "sgd+momentum": "sgd+momentum+dampening",
    "sgd+semantics+momentum": None,
    "adam": "adam",
    "adam+amsgrad": "adam+amsgrad",
    "adamw": "adamw",
    "rmsprop": None,
    "rmsprop+momentum": None,
    "rmsprop+centered": None,
    "adagrad": "adagrad+lr_decay",
    "nadam": "nadam",
    "lion": None,
    "lamb": "lamb+weight_decay",
    "lars+weight_decay": None,
}


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [(row, name) for row, counted in RULES.items() for name in UPDATE if counted or name != "counts from 0"],
)
def test_update_mutant(optimizer, name):
    if name == "counts from 0":
        case = UpdateCase(HOST, "float32", RULES[optimizer], 13, 1)
    else:
        case = UpdateCase(HOST, "float32", optimizer, 13, 2)
    oracle.check_update(Mutant(), case)
    with pytest.raises(AssertionError):
        oracle.check_update(Mutant(update=UPDATE[name]), case)


# -- programs ----------------------------------------------------------------------------------------------------------


def _scaled(host, *args):
    host.dense_backward(*args)
    args[5].__imul__(np.float32(1.001))


@parametrize(few_nets(SUBJECTS))
def test_network_bound_is_not_vacuous(case):
    """A gradient that is 1e-3 off is rejected for every net, however deep, but for that of four norms.

    Its bound is up to 4e-3 of the gradient: each norm divides what rounding has left by what may be a small deviation.
    """
    share = np.float32(1e-2 if case.net == "norms" else 1e-3)
    plan, state, program = case.program()
    oracle.check_gradient(case, (plan, state, program))
    honest = program.accumulate

    def scaled(feed, first_row, gradient):
        before = gradient.copy()
        sums = honest(feed, first_row, gradient)
        gradient += share * (gradient - before)
        return sums

    program.accumulate = scaled
    with pytest.raises(AssertionError, match="gradient"):
        oracle.check_gradient(case, (plan, state, program))


PROGRAM = {
    "forgets a bias": {"dense_forward": FORWARD["forgets the bias"]},
    "forgets a slope": {"dense_backward": BACKWARD["forgets the slope"]},
    "drops a row": {"dense_backward": BACKWARD["drops the last row of the batch"]},
    "overwrites": {"dense_backward": BACKWARD["overwrites instead of adding"]},
    "ignores row weights": {"loss": LOSS["ignores the weights"]},
    "mean for sum": {"loss": LOSS["da of the mean"]},
}


@pytest.mark.parametrize("name", PROGRAM)
@pytest.mark.parametrize("net", ["two", "dropout", "tail", "six"])
def test_program_mutant(net, name):
    case = NetCase(HOST, net, "tanh", "mse", weighted=True)
    oracle.check_gradient(case, case.program(Mutant()))
    with pytest.raises(AssertionError):
        oracle.check_gradient(case, case.program(Mutant(**PROGRAM[name])))


@pytest.mark.parametrize("what", ["seed", "update", "row", "layer"])
@pytest.mark.parametrize("net", ["dropout", "apart", "tail", "twice"])
def test_wrong_dropout_key(net, what):
    case = NetCase(HOST, net, "tanh", "mse")
    plan, state, _ = case.program()
    right = ComposedProgram(plan, SUBJECTS[HOST], state)
    oracle.check_gradient(case, (plan, state, right), first_row=2)
    wrong = ComposedProgram(plan, SUBJECTS[HOST], state)
    honest = ComposedProgram.accumulate

    class Off(ComposedProgram):
        def accumulate(self, feed, first_row, gradient):
            if what == "row":
                return honest(self, feed, 0, gradient)
            steps, seed = self.state.steps, self.state.seed
            stages = self.plan.stages
            try:
                if what == "seed":
                    self.state.seed = seed + 1
                elif what == "update":
                    self.state.steps = steps + 1
                else:
                    from dataclasses import replace

                    moved = tuple(replace(stage, layer=stage.layer + 1) for stage in stages)
                    self.plan = replace(self.plan, stages=moved)
                return honest(self, feed, first_row, gradient)
            finally:
                self.state.steps, self.state.seed, self.plan = steps, seed, plan

    wrong.__class__ = Off
    with pytest.raises(AssertionError):
        oracle.check_gradient(case, (plan, state, wrong), first_row=2)


# -- the helpers themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "exact", "bound"),
    [
        ([1.0, 2.0], [1.0, 2.1], 0.05),
        ([1.0, np.nan], [1.0, 2.0], 1.0),
        ([1.0, np.inf], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [1.0, np.nan], 1.0),
        ([1.0, np.inf], [1.0, -np.inf], 1.0),
        ([1.0, 2.0], [1.0, np.inf], 1.0),
        ([1.0, 2.0], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [1.0, 2.0], np.nan),
        ([1.0, -np.inf], [1.0, 1e39], 1.0),
    ],
)
def test_assert_within_rejects(got, exact, bound):
    with pytest.raises(AssertionError):
        oracle.assert_within(np.array(got, np.float32), np.array(exact), bound, "values")


def test_assert_within_names_the_worst_element():
    got = np.zeros((3, 4), np.float32)
    got[1, 2], got[2, 3] = 1e-3, 1.0
    with pytest.raises(AssertionError, match=r"thing\[2, 3\].*2 of 12"):
        oracle.assert_within(got, np.zeros((3, 4)), 1e-4, "thing")
    oracle.assert_within(got, np.zeros((3, 4)), 1.0, "thing")


def test_one_bad_element_does_not_hide_in_a_norm_or_in_bits():
    exact = np.ones(1000)
    with pytest.raises(AssertionError):
        oracle.assert_norm_close(np.where(np.arange(1000) == 7, np.nan, exact), exact, 1e-3, "tensor")
    with pytest.raises(AssertionError):
        oracle.assert_norm_close(exact * 1.002, exact, 1e-3, "tensor")
    with pytest.raises(AssertionError, match=r"x\[1\].*1 of 2"):
        oracle.assert_same_bits(np.array([1.0, 0.0]), np.array([1.0, -0.0]), "x")
    with pytest.raises(AssertionError, match="float32"):
        oracle.assert_same_bits(np.zeros(2, np.float32), np.zeros(2), "x")


@pytest.mark.parametrize("at", [-64, -1, 6, 69])
def test_guards_see_a_write(at):
    guard = oracle.Guarded(np.zeros((2, 3), np.float32))
    guard.check("array")
    poke(guard.array, at)
    with pytest.raises(AssertionError, match="margin"):
        guard.check("array")
    inside = oracle.Guarded(np.zeros((2, 3), np.float32))
    inside.array[1, 1] = -0.0
    with pytest.raises(AssertionError, match="input"):
        inside.check_unchanged("array")
