"""Holds a driver (tests/driver/driver.c) to the oracle: `python tests/drive.py DRIVER [EMULATOR ...]`.

Asks the driver for its targets, writes the enumerated cases of each one, with exact values and bounds, to a file, and
lets the driver judge them. The checks of oracle.py run on a recorder in place of a backend, so that a case, its exact
values and its bounds are those that the other tests use.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO
from unittest import mock

import cases
import numpy as np
import oracle
from test_math import flushed, sweep

from fastbatch import _native, ops
from fastbatch.arena import training_arena
from fastbatch.backends import get, native
from fastbatch.plan import Segment
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Sums

Array = np.ndarray
KINDS = {np.dtype(name): kind for name, kind in (("f4", b"f"), ("f8", b"d"), ("i8", b"l"), ("S1", b"c"), ("u1", b"c"))}
STEPS, LR = 4, 0.02
# Of the norm of a tensor or of the loss: ten times what was seen, but for rmsprop with a log link, whose first steps
# are ten times the rate: twice. To forget an update moves either by 1e-3 and more
RUN_SHARE = {"float32": 2e-4, "float64": 5e-13}


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
            head = (name, ord(role), ord(KINDS[a.dtype]), a.size // a.shape[-1] if a.size else len(a), a.shape[-1])
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

    def _network(self, plan, state, feed) -> tuple[dict, dict]:
        arena = training_arena(
            plan, feed.batch, native._ACTIVATIONS, _native.UPDATE_BLOCK, _native.PARTS, 2, _native.STATISTICS
        )
        fields = np.stack([arena.stages[name] for name in arena.stages.dtype.names], axis=1)
        offsets = [arena.y, arena.row_loss, arena.row_weight, arena.row_share, arena.gradient]
        offsets = np.array([*offsets, arena.scratch, arena.scratch_bytes, arena.parts, arena.part_bytes], np.int64)
        target = {"labels" if feed.y.ndim == 1 else "y": feed.y}
        inputs = given(
            x=feed.x, **target, weight=feed.weight, order=feed.order, stages=fields, offsets=offsets,
            **integers(seed=state.seed, rows=feed.rows, batch=feed.batch),
            **loss_row(plan.loss, plan.outputs, plan.dtype), **segments_of(plan.segments),
            **integers(uniform=plan.is_uniform, objective=plan.sums_objective),
        )  # fmt: skip
        return inputs, given(arena=np.zeros(arena.nbytes, "u1"), norms=native._norms(plan))

    def accumulate(self, plan, state, feed, gradient) -> Sums:
        inputs, scratch = self._network(plan, state, feed)
        inputs |= {"parameters": state.parameters, "slots": state.slots, "steps": state.steps}
        self._record("accumulate", inputs, {"gradient": gradient, "sums": np.zeros(2)}, scratch, threads=2)
        return Sums()

    def run(self, plan, state, feed, lrs: Array) -> None:
        inputs, scratch = self._network(plan, state, feed)
        outputs = {"parameters": state.parameters, "slots": state.slots, "steps": state.steps, "sums": np.zeros(2)}
        self._record("run", {**inputs, "lr": lrs}, outputs, scratch, threads=2)


# -- the cases ---------------------------------------------------------------------------------------------------------


def kernels(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """The cases of test_kernels, through the same checks."""
    pairs = [(subject, dtype)]
    checks: list[tuple[Callable, list]] = [
        (oracle.check_dense_forward, cases.dense_cases("forward", pairs)),
        (oracle.check_dense_backward, cases.dense_cases("backward", pairs)),
        (oracle.check_loss, cases.loss_cases(pairs)),
        (oracle.check_update, cases.update_cases(pairs)),
    ]
    for check, found in checks:
        for case in found:
            check(recorder, case)
            yield replace(recorder.call, name=case.id)


def functions(dtype: str) -> Iterator[Call]:
    """The sweeps of test_math."""
    for name, row in ops.ACTIVATIONS.items():
        for where in ("bends", "everywhere"):
            z = sweep(where, dtype)[None]
            with np.errstate(all="ignore"):
                exact, bound = oracle.activate(row, flushed(z).astype(np.float64), np.zeros(z.shape), dtype)
            if name != "identity":  # a copy keeps its bits, subnormal ones too
                bound = bound + oracle.TINY[dtype] * (z != flushed(z))  # a selection keeps subnormal numbers
                inputs = {"z": z, "activation": text(name)}
                yield Call("activate", f"{name}-{where}", inputs, {"a": np.zeros_like(z)}, {"a": (exact, bound)}, {})
            if row.saves == "none":
                continue
            z = z[np.abs(z) < np.finfo(dtype).max / 2][None]
            with np.errstate(all="ignore"):
                saved = np.asarray(row.value(z), z.dtype) if row.saves == "a" else z
                expected = oracle.slope(row, flushed(saved), 0.0, dtype)
            inputs = {"saved": saved, "activation": text(name)}
            yield Call("slope", f"{name}-{where}", inputs, {"dz": np.ones_like(z)}, {"dz": expected}, {})


def copies(subject: str, dtype: str) -> Iterator[Call]:
    """Dropout (exact but for its scale) and gather (exact) at every width of interest."""
    for i, width in enumerate(cases.widths(subject, dtype)):
        rng = cases.rng_of(f"copies {width}")
        src, rows = rng.standard_normal((6, width)).astype(dtype), 6
        threshold, seed = (1, 128, 200, 255)[i % 4], 0x1234567890ABCDEF
        where = {"seed": seed, "update": i, "layer": 3, "first_row": 5 * i}
        mask = ops.random.dropout_mask(seed, i, 3, 5 * i + np.arange(rows), width, threshold) * (256 / threshold)
        exact = src * mask
        yield Call(
            "dropout", f"dropout-{threshold}-{width}", {"src": src, **integers(threshold=threshold, **where)},
            {"dst": np.full_like(src, 3.5)}, {"dst": (exact, 2 * oracle.U[dtype] * np.abs(exact))}, {},
        )  # fmt: skip
        index = rng.integers(0, rows, 9)
        dst = np.full((9, width + 3), 3.5, dtype)
        expected = np.concatenate([src[index], dst[:, width:]], axis=1)
        yield Call(
            "gather", f"gather-{width}", {"src": src, "index": index, **integers(width=width)},
            {"dst": dst}, {"dst": (expected, np.zeros(dst.shape))}, {},
        )  # fmt: skip


class _Program:
    """The one door of a program that `oracle.check_gradient` uses."""

    def __init__(self, recorder: Recorder, plan, state) -> None:
        self.accumulate = lambda feed, first_row, gradient: recorder.accumulate(plan, state, feed, gradient)


def programs(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """Gradients within their bounds; runs of a few steps against the reference in float64, a share of each norm."""
    for case in (case for case in cases.net_cases([subject]) if case.dtype == dtype):
        made = case.model()
        plan, state = case.plan(made), case.state(made)
        oracle.check_gradient(case, (plan, state, _Program(recorder, plan, state)))
        yield replace(recorder.call, name=case.id)
    for case in (case for case in cases.few_nets([subject]) if case.dtype == dtype):
        rows = STEPS * case.B - case.B // 2
        feed = case.feed(rows, order=cases.rng_of(case.id).permutation(rows))
        made = case.model()
        plan, state = case.plan(made), case.state(made)
        lrs = LR / np.arange(1, feed.steps + 1)
        recorder.run(plan, state, feed, lrs)
        _, truth, program = _exact(case)
        y = feed.y if feed.y.ndim == 1 else feed.y.astype(np.float64)
        sums = Sums()
        program.run(replace(feed, x=feed.x.astype(np.float64), y=y), 0, feed.steps, lrs, 1e6, sums)
        expected = {name: _near(plan, getattr(truth, name)) for name in ("parameters", "slots")}
        expected["steps"] = truth.steps, np.zeros(1)
        bounds = doubles(RUN_SHARE[dtype] * abs(sums.loss), 1e-15 * sums.weight)
        expected["sums"] = doubles(sums.loss, sums.weight), bounds
        yield replace(recorder.call, name=f"run-{case.id}", expected=expected)


def _exact(case: cases.NetCase):
    case = replace(case, subject="reference", dtype="float64")
    made = case.model()
    plan, state = case.plan(made), case.state(made)
    return plan, state, ComposedProgram(plan, get("reference"), state)


def _near(plan, exact: Array) -> tuple[Array, Array]:
    bound = np.zeros_like(exact)
    for name, part in oracle.tensors(plan, bound).items():
        part[...] = RUN_SHARE[plan.dtype] * np.linalg.norm(oracle.tensors(plan, exact)[name], axis=-1, keepdims=True)
    return exact, bound


def calls(target: str, dtype: str, shape: tuple[int, int, int]) -> Iterator[Call]:
    recorder, subject = Recorder(shape), f"c-{target}"
    with (
        mock.patch.dict(cases.SUBJECTS, {subject: recorder}),
        mock.patch.object(oracle, "assert_within", recorder.expect),
    ):
        yield from kernels(recorder, subject, dtype)
        yield from functions(dtype)
        yield from copies(subject, dtype)
        yield from programs(recorder, subject, dtype)


# -- the driver --------------------------------------------------------------------------------------------------------


def targets(driver: list[str]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Usable targets of a driver: name and dtype -> lanes, tile rows, tile vectors."""
    listed = subprocess.run(driver, check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {(name, dtype): tuple(map(int, shape)) for name, dtype, *shape, usable in rows if int(usable)}


def judge(
    driver: list[str], target: tuple[str, str], found: Iterator[Call] | list[Call], **options
) -> subprocess.CompletedProcess:
    with tempfile.NamedTemporaryFile(suffix=".cases") as file:
        for call in found:
            call.write(file)
        file.flush()
        return subprocess.run([*driver, *target, file.name], **options)


def main(driver: list[str]) -> int:
    found = targets(driver).items()
    failed = ["-".join(name) for name, shape in found if judge(driver, name, calls(*name, shape)).returncode]
    print(f"failed: {', '.join(failed)}" if failed else "every target passed")
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main([*sys.argv[2:], sys.argv[1]]))
