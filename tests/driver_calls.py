"""What the C driver (tests/driver/driver.c) is asked for, and a backend that records it with what is expected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
from cases import NetCase

from fastbatch import _native, ops
from fastbatch.arena import Arena, inference_arena, training_arena
from fastbatch.backends import native
from fastbatch.plan import Plan, Segment
from fastbatch.protocol import Feed, PerSample, State, Sums

Array = np.ndarray
THREADS = 2  # of every network
# integers by their size alone
KINDS = {"f4": b"f", "f8": b"d", "S1": b"c"}
_BY_SIZE = {1: b"c", 2: b"h", 4: b"i", 8: b"l"}


def kind_of(dtype: np.dtype) -> bytes:
    return KINDS.get(dtype.str[1:]) or _BY_SIZE[dtype.itemsize]


@dataclass
class Call:
    """One call of the driver. `outputs` are compared with `expected`: exact values and bounds by name."""

    verb: str
    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    expected: dict[str, tuple[Array, Array]]
    scratch: dict[str, Array]
    threads: int = 1

    def write(self, file: BinaryIO) -> None:
        assert self.outputs.keys() == self.expected.keys(), f"{self.name}: an output without an expectation"
        roles = [(b"i", self.inputs), (b"o", self.outputs), (b"s", self.scratch)]
        arrays = [(role, name, np.atleast_2d(a)) for role, group in roles for name, a in group.items()]
        file.write(np.array((self.verb, self.name, len(arrays), self.threads), "S16,S128,i4,i4").tobytes())
        for role, name, a in arrays:
            head = (name, ord(role), ord(kind_of(a.dtype)), a.size // a.shape[-1] if a.size else len(a), a.shape[-1])
            file.write(np.array(head, "S16,i4,i4,i8,i8").tobytes() + a.tobytes())
            for values in self.expected[name] if role == b"o" else ():
                file.write(np.broadcast_to(np.asarray(values, np.float64), a.shape).tobytes())


def text(value: str) -> Array:
    return np.frombuffer(value.encode(), "S1")


def integers(**values: int) -> dict[str, Array]:
    return {name: np.array([value]).astype(np.int64) for name, value in values.items()}


def doubles(*values: float) -> Array:
    return np.array(values, np.float64)


def given(**arrays: Array | None) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if array is not None}


def loss_row(row: ops.Loss, outputs: int, dtype: str) -> dict[str, Array]:
    weights = native._per_output(row, outputs, dtype)
    divisors = doubles(*row.divisors(outputs))
    return given(loss=text(row.name), parameter=doubles(row.parameter), per_output=weights, divisors=divisors)


def segments_of(found) -> dict[str, Array]:
    """fb_segment as int64, which is how it is aligned, and the rule by name, for the driver to check its number."""
    table = np.frombuffer(native._segments(found, "float32").tobytes(), np.int64)
    return {"segments": table, "rule": text(found[0].optimizer.rule)}


def optimizer_row(row: ops.Optimizer) -> dict[str, Array]:
    return segments_of([Segment(0, 0, row, 1.0)])


def source_of(x: Array, dtype: str, noise: float = 0.0, scale: Array | None = None, shift: Array | None = None) -> dict:
    """Rows of a caller's array, C- or Fortran-contiguous, and how they become inputs of `dtype`."""
    step = x.strides[1] if x.shape[1] > 1 else x.itemsize
    found = given(x=x.T if step > x.itemsize else x, scale=scale, shift=shift, **integers(x_stride=x.strides[0]))
    if x.dtype == dtype and step == x.itemsize and not noise and scale is None:
        return found
    return found | {"source": text(x.dtype.name), "noise": doubles(noise), **integers(step=step)}


class Recorder:
    """A backend that computes nothing and remembers what it was asked for, with the shape of a target and dtype."""

    name = "recorder"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = lambda dtype: shape
        self.call: Call | None = None

    def _record(self, verb: str, inputs: dict, outputs: dict, scratch: dict | None = None, threads: int = 1) -> None:
        self.call = Call(verb, "", inputs, outputs, {}, scratch or {}, threads)

    def expect(self, got: Array, exact: Array, bound: Array, what: str, dtype: str | None = None) -> None:
        """In place of `oracle.assert_within`."""
        assert self.call is not None
        names = [name for name, array in self.call.outputs.items() if array is got]
        if names:
            self.call.expected[names[0]] = exact, bound
        else:
            at = ("loss", "weight").index(what.rpartition(": ")[2])
            pair = self.call.expected.setdefault("sums", (np.zeros(2), np.zeros(2)))
            pair[0][at], pair[1][at] = exact, bound

    def dense_forward(self, x, w, b, activation, a, z) -> None:
        self._record("dense_forward", given(x=x, w=w, b=b, activation=text(activation.name)), given(a=a, z=z))

    def dense_backward(self, da, x, w, saved, activation, dw, db, dx) -> None:
        inputs = given(x=x, w=w, saved=saved, activation=text(activation.name))
        self._record("dense_backward", inputs, given(dw=dw, db=db, dx=dx), {"dz": da})

    def loss(self, a, y, loss, weight, da) -> Sums:
        weight = np.ones(len(a)) if weight is None else weight.astype(np.float64)
        inputs, scratch = {"a": a, "weight": weight}, {"share": weight.copy(), "row_loss": np.zeros(len(a))}
        if y.ndim == 1:
            inputs["labels"], scratch["y"] = y, np.full_like(a, 3.5)
        else:
            inputs["y"] = y
        inputs |= loss_row(loss, a.shape[1], a.dtype.name)
        self._record("loss", inputs, {"da": da, "sums": np.zeros(2)}, scratch)
        return Sums()

    def update(self, optimizer, p, g, slots, t, lr) -> None:
        inputs = {"g": g, "lr": doubles(lr), **integers(t=t), **optimizer_row(optimizer)}
        self._record("update", inputs, {"p": p, "slots": slots})

    def _network(self, plan: Plan, state: State, feed: Feed, arena: Arena, copies: int = 1) -> tuple[dict, dict]:
        fields = np.stack([arena.stages[name] for name in arena.stages.dtype.names], axis=1)
        offsets = [arena.y, arena.row_loss, arena.row_weight, arena.row_share, arena.gradient, arena.scratch]
        offsets += [arena.scratch_bytes, arena.parts, arena.part_bytes, arena.running]
        share, shift = feed.mix or (None, None)
        inputs = given(
            weight=feed.weight, order=feed.order, stages=fields, offsets=np.array(offsets, np.int64),
            mix_share=share, mix_shift=shift, **{"labels" if feed.y.ndim == 1 else "y": feed.y},
            max_norm=doubles(plan.max_norm or 0), clip_value=doubles(plan.clip_value or 0),
            **source_of(feed.x, plan.dtype, feed.noise),
            **integers(seed=state.seed, rows=feed.rows, batch=min(feed.batch, feed.rows), piece=feed.most),
            **loss_row(plan.loss, plan.outputs, plan.dtype), **segments_of(plan.segments),
            **integers(uniform=plan.is_uniform, objective=plan.sums_objective, columns_held=any(plan.column_limits)),
        )  # fmt: skip
        units = native._units(plan)
        units = None if units is None else units.view(np.int64).reshape(len(units), -1)
        return inputs, given(arena=np.zeros(copies * arena.nbytes, "u1"), norms=native._norms(plan), units=units)

    def _training(self, plan: Plan, state: State, feed: Feed) -> tuple[dict, dict]:
        arena = training_arena(
            plan, feed.most, native._ACTIVATIONS, _native.UPDATE_BLOCK, _native.PARTS, THREADS, _native.STATISTICS
        )
        return self._network(plan, state, feed, arena)

    def program(self, case: NetCase) -> tuple[Plan, State, object]:
        """For `oracle.check_gradient`, which uses this one door of a program."""
        made = case.model()
        plan, state = case.plan(made), case.state(made)
        accumulate = lambda feed, first_row, gradient: self.accumulate(plan, state, feed, gradient)  # noqa: E731
        return plan, state, SimpleNamespace(accumulate=accumulate)

    def accumulate(self, plan: Plan, state: State, feed: Feed, gradient: Array, rows: PerSample | None = None) -> Sums:
        inputs, scratch = self._training(plan, state, replace(feed, batch=feed.rows))
        inputs |= {name: getattr(state, name) for name in ("parameters", "slots", "steps", "buffers")}
        outputs = {"gradient": gradient, "sums": np.zeros(2)}
        if rows is not None:
            asked = ("input_norms", "delta_norms", "norm_norms")
            outputs |= {
                "row_loss": rows.loss,
                "row_weight": rows.weight,
                **{name: getattr(rows, name) for name in asked},
            }
            inputs["row_scale"] = rows.scale
        self._record("accumulate", inputs, outputs, scratch, THREADS)
        return Sums()

    def run(self, plan: Plan, state: State, feed: Feed, lrs: Array, threads: int = THREADS) -> None:
        inputs, scratch = self._training(plan, state, feed)
        outputs = {name: getattr(state, name) for name in ("parameters", "slots", "steps", "buffers")}
        outputs |= {"sums": np.zeros(3), "outcome": np.zeros(2), "outputs": feed.outputs}
        self._record("run", {**inputs, "lr": lrs}, given(**outputs), scratch, threads)

    def predict(self, plan: Plan, state: State, feed: Feed) -> None:
        """In blocks of `feed.most` rows."""
        arena = inference_arena(plan, feed.most, native._ACTIVATIONS)
        inputs, scratch = self._network(plan, state, feed, arena, THREADS)
        inputs |= {name: getattr(state, name) for name in ("parameters", "slots", "steps", "buffers")}
        self._record("predict", inputs, {"outputs": feed.outputs}, scratch, THREADS)
