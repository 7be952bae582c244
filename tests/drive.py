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
from dataclasses import replace
from itertools import islice
from unittest import mock

import cases
import numpy as np
import oracle
from driver_calls import THREADS, Call, Recorder, doubles, given, integers, source_of, text
from test_math import flushed, sweep

from fastbatch import _native, ops
from fastbatch.backends import get
from fastbatch.plan import Plan
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Feed, PerSample, Sums

Array = np.ndarray
STEPS, LR = 4, 0.02
# Of the norm of a tensor or of the loss: ten times what was seen, but for rmsprop with a log link, whose first steps
# are ten times the rate: twice. To forget an update moves either by 1e-3 and more
RUN_SHARE = {"float32": 2e-4, "float64": 5e-13}
# Of a normal number: a logarithm and a polynomial of ten terms, of what a difference from 1 has lost
NOISE_SHARE = {"float32": 1e-5, "float64": 1e-13}


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


def sources(dtype: str) -> Iterator[Call]:
    """Arrays of every type, near and far columns, to rows of elements: one rounding; scaled and mixed a few more."""
    u = oracle.U[dtype]
    for i, (name, width) in enumerate((name, width) for name in _native.sources for width in (1, 33, 300)):
        rng = cases.rng_of(f"sources {name} {width}")
        x = _any_of(name, (7, width), rng)
        x = np.asfortranarray(x) if i % 2 else x
        index = rng.integers(0, len(x), 9) if i % 3 else np.arange(5)
        order = given(order=index if i % 3 else None)
        with np.errstate(all="ignore"):
            exact = x[index].astype(dtype).astype(np.float64)
        dst = rng.standard_normal((len(index), width + 3)).astype(dtype)
        beside = dst[:, width:]
        inputs = {**source_of(x, "as it lies"), **order, **integers(width=width)}
        expected = np.concatenate([exact, beside], axis=1), np.zeros(dst.shape)
        yield Call("convert", f"convert-{name}-{width}", inputs, {"dst": dst}, {"dst": expected}, {})
        if name.startswith("float"):
            x, exact = (np.nan_to_num(np.clip(a, -1e4, 1e4)) for a in (x, exact))
        scale, shift = rng.standard_normal((2, width)).astype(dtype)
        size = np.abs(exact * scale) + np.abs(shift)
        exact, bound = exact * scale + shift.astype(np.float64), 2 * u * size
        inputs = inputs | source_of(x, dtype, 0.0, scale, shift)
        padded = np.concatenate([exact, beside], axis=1), np.pad(bound, ((0, 0), (0, 3)))
        yield Call("convert", f"convert-{name}-{width}-scaled", inputs, {"dst": dst}, {"dst": padded}, {})
        share = rng.random(len(index) if i % 2 else 1)
        own, rest = share[:, None] * dst[:, :width].astype(np.float64), 1 - share[:, None]
        bound = 3 * u * (np.abs(own) + rest * np.abs(exact)) + rest * bound
        mixed = np.concatenate([own + rest * exact, beside], axis=1), np.pad(bound, ((0, 0), (0, 3)))
        yield Call("mix", f"mix-{name}-{width}", {**inputs, "share": share}, {"dst": dst.copy()}, {"dst": mixed}, {})


def _any_of(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Numbers of all sizes of a type, of float16 the subnormal ones, infinities and NaN, too."""
    dtype = np.dtype(name)
    if name == "bool":
        return rng.random(shape) < 0.5
    if name == "float16" or dtype.kind in "iu":
        return np.frombuffer(rng.bytes(shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(dtype)


def drawn(dtype: str) -> Iterator[Call]:
    """Noise, shuffles, and the chains whose rate is this machine's best."""
    for i, (rows, width) in enumerate(((70, 1), (9, 3), (70, 5), (11, 16), (9, 29), (67, 33), (8, 130), (5, 300))):
        rng = cases.rng_of(f"noise {width}")
        x = rng.standard_normal((rows, width + 2)).astype(dtype)
        where = {"seed": 0x1234567890ABCDEF, "update": i, "first_row": 3 * i}
        z = ops.random.gaussian(where["seed"], i, 3 * i + np.arange(rows), width, "float64")
        exact = x + 0.25 * np.pad(z, ((0, 0), (0, 2)))
        bound = NOISE_SHARE[dtype] * np.abs(exact - x) + np.pad(
            2 * oracle.U[dtype] * np.abs(exact[:, :width]), ((0, 0), (0, 2))
        )
        inputs = {"std": doubles(0.25), **integers(width=width, **where)}
        yield Call("noise", f"noise-{width}", inputs, {"dst": x}, {"dst": (exact, bound)}, {})
    for n in (2, 3, 64, 1001):
        order, exact = np.arange(n), ops.random.permutation(n, 7, n)
        inputs = integers(seed=7, epoch=n)
        yield Call("permutation", f"permutation-{n}", inputs, {"order": order}, {"order": (exact, np.zeros(n))}, {})
    one = doubles(1)
    yield Call(
        "multiply_adds", "multiply_adds", integers(loops=200), {"limit": np.zeros(1)}, {"limit": (one, 0 * one)}, {}
    )


def programs(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """Gradients within their bounds; runs of a few steps against the reference in float64, a share of each norm."""
    for case in (case for case in cases.net_cases([subject]) if case.dtype == dtype):
        oracle.check_gradient(case, recorder.program(case))
        yield replace(recorder.call, name=case.id)
    for case in (case for case in cases.few_nets([subject]) if case.dtype == dtype):
        rows = STEPS * case.B - case.B // 2
        feed = case.feed(rows, order=cases.rng_of(case.numbers).permutation(rows))
        for small in (True, False):
            yield stepped(recorder, case, feed, small=small)


def stepped(
    recorder: Recorder,
    case: cases.NetCase,
    feed: Feed,
    name: str = "",
    *,
    small: bool = True,
    threads: int = THREADS,
    columns: float | None = None,
    **limits: float,
) -> Call:
    """A run against the reference in float64, within a share of each norm.

    `small` networks sum gradients from parts of the batch. `columns` limits the norm of columns, `limits` gradients.
    """

    def limited(plan: Plan) -> Plan:
        return replace(plan, optimizer=replace(plan.optimizer, max_norm=columns), **limits)

    made = case.model()
    plan, state = limited(case.plan(made)), case.state(made)
    lrs = LR / np.arange(1, feed.steps + 1)
    with mock.patch("fastbatch.plan.SMALL_GRADIENT", 8192 if small else 0):
        recorder.run(plan, state, replace(feed, outputs=np.zeros((feed.rows, plan.outputs), plan.dtype)), lrs, threads)
    key = " ".join(map(str, (case.numbers, case.dtype, feed.rows, feed.order is None, name, columns, limits)))
    if key not in _TRUTH:
        _TRUTH[key] = _after(case, feed, lrs, limited)
    name = "-".join(["run", case.id] + ["blocks"] * (not small) + [name] * bool(name))
    return replace(recorder.call, name=name, expected=_TRUTH[key])


_TRUTH: dict[str, dict[str, tuple[Array, Array]]] = {}  # the same for every target


def _after(
    case: cases.NetCase, feed: Feed, lrs: Array, change: Callable[[Plan], Plan]
) -> dict[str, tuple[Array, Array]]:
    """What a run in float64 leaves, with bounds."""
    plan, state, program = _exact(case, change)
    feed = replace(_doubled(feed), outputs=np.zeros((feed.rows, plan.outputs)))
    sums, share = Sums(), RUN_SHARE[case.dtype]
    program.run(feed, 0, feed.steps, lrs, 1e6, sums)
    expected = {
        name: (exact, _of_norms(plan, exact, share))
        for name, exact in (("parameters", state.parameters), ("slots", state.slots))
    }
    expected |= {
        name: (exact, np.full(exact.shape, share * np.linalg.norm(exact)))
        for name, exact in (("buffers", state.buffers), ("outputs", feed.outputs))
    }
    expected |= {"steps": (state.steps, np.zeros(1)), "outcome": (doubles(feed.steps, _native.OK), np.zeros(2))}
    return expected | {"sums": (sums.totals, np.abs(sums.totals) * (share, 1e-15, share))}


def _doubled(feed: Feed) -> Feed:
    return replace(feed, x=feed.x.astype(np.float64), y=feed.y if feed.y.ndim == 1 else feed.y.astype(np.float64))


def _exact(case: cases.NetCase, change: Callable[[Plan], Plan] = lambda plan: plan):
    case = replace(case, subject="reference", dtype="float64")
    made = case.model()
    plan, state = change(case.plan(made)), case.state(made)
    return plan, state, ComposedProgram(plan, get("reference"), state)


def _of_norms(plan: Plan, exact: Array, share: float) -> Array:
    """A share of each tensor's norm; of that of all, too: a bias in front of a norm has no gradient but roundings."""
    bound = np.zeros_like(exact)
    bound += 1e-3 * share * np.linalg.norm(exact, axis=-1, keepdims=True)
    for name, part in oracle.tensors(plan, bound).items():
        part += share * np.linalg.norm(oracle.tensors(plan, exact)[name], axis=-1, keepdims=True)
    return bound


def settings(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """What a network and a run can be asked for besides: paths of csrc/ that the networks of `programs` do not take."""

    def net(name: str, B: int, **changes) -> cases.NetCase:
        return cases.NetCase(subject, name, **{"activation": "tanh", "loss": "mse", "B": B, "dtype": dtype, **changes})

    def ordered(case: cases.NetCase, rows: int, **changes) -> Feed:
        return case.feed(rows, order=cases.rng_of(case.numbers).permutation(rows), **changes)

    labels = {"loss": "cross_entropy+weight"}
    sgd, adam = {"optimizer": "sgd+momentum+nesterov"}, {"optimizer": "adam+eps"}
    # steps of one row
    for i, name in enumerate(("linear", "two", "nobias", "narrow", "six")):
        case = net(name, 1, **(labels if i % 2 else {}), **(adam if i % 3 else sgd))
        yield stepped(recorder, case, case.feed(5))
        yield stepped(recorder, case, ordered(case, 5), small=False, threads=1)
        yield stepped(recorder, case, case.feed(5), "clipped", clip_value=0.05)
    # norms over rows, of a batch and of ghost batches; products shared out by columns
    for i, (name, B) in enumerate((name, B) for name in (*cases.BATCH_NETS, *cases.WIDE_NETS) for B in (7, 33)):
        case = net(name, B, **(labels if i % 2 else {}), **(adam if i % 3 else sgd))
        oracle.check_gradient(case, recorder.program(case))
        yield replace(recorder.call, name=case.id)
        for small in (True, False)[name in cases.WIDE_NETS :]:
            yield stepped(recorder, case, ordered(case, 3 * B - B // 2), small=small)
    # limits of gradients and of columns; a penalty that is part of the loss
    for small in (True, False):
        for i, optimizer in enumerate(("sgd+momentum+nesterov", "adam+eps", "lamb+weight_decay")):
            case = net(("two", "batch", "norm")[i], 40, optimizer=optimizer, weighted=True)
            feed = ordered(case, 130)
            yield stepped(recorder, case, feed, "clip", small=small, clip_value=0.01)
            yield stepped(recorder, case, feed, "norm", small=small, max_norm=0.1)
            yield stepped(recorder, case, feed, "both", small=small, max_norm=0.5, clip_value=0.05)
            yield stepped(recorder, case, feed, "columns", small=small, columns=0.6)
        case = net("two", 40, loss="bce+semantics", optimizer="sgd+weight_decay")
        yield stepped(recorder, case, ordered(case, 130), "objective", small=small)
    # inputs of other types, noise, mixtures, pieces of a batch
    for i, loss in enumerate(("mse", "cross_entropy+weight", "cross_entropy", "bce")):
        case = net(("two", "norm", "dropout", "nobias")[i], 33, loss=loss, weighted=i % 2 == 0, labels=i != 2, **adam)
        plain, rng = case.feed(100), cases.rng_of(case.numbers)
        order = rng.permutation(100) if i % 2 else None
        mix = np.array([0.3, 1, 0.8, 0.5]), rng.integers(0, 33, 4)
        bytes_ = np.clip(20 * plain.x + 100, 0, 255).astype(np.uint8)
        for name, changes in {
            "noise": {"noise": 0.3},
            "mix": {"mix": mix, "order": order},
            "all": {"mix": mix, "noise": 0.2, "order": order, "x": plain.x.astype(np.float16)},
            "far": {"x": np.asfortranarray(plain.x), "order": order},
            "bytes": {"x": bytes_, "order": order},
            "piece": {"piece": 32, "order": order, "mix": mix},
        }.items():
            yield stepped(recorder, case, replace(plain, **changes), name)
            yield stepped(recorder, case, replace(plain, **changes), name, small=False, clip_value=0.05)


def samples(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """What is asked for, and said, of each row of a gradient; outputs without training."""
    share = RUN_SHARE[dtype]

    def near(exact: Array) -> tuple[Array, Array]:
        return exact, share * np.linalg.norm(exact, axis=-1, keepdims=True) + np.zeros(exact.shape)

    for i, (name, activation) in enumerate((("two", "tanh"), ("norms", "silu"), ("norm", "gelu"), ("wide", "tanh"))):
        case = cases.NetCase(subject, name, activation, "mse", B=33, weighted=i % 2 == 0, dtype=dtype)
        made = case.model()
        plan, state, feed = case.plan(made), case.state(made), case.feed()
        rows = 2, sum(stage.has_dense for stage in plan.stages), case.B
        scale = cases.rng_of(name).random(case.B).astype(dtype)
        got, exact = (PerSample(*np.zeros((2, case.B)), *np.zeros(rows), np.zeros(case.B), scale) for _ in range(2))
        recorder.accumulate(plan, state, feed, np.zeros(plan.num_parameters, dtype), got)
        call, gradient = recorder.call, np.zeros(plan.num_parameters)
        program = _exact(case)[2]
        sums = program.accumulate(_doubled(feed), 0, gradient, None, exact)
        expected = {name: near(getattr(exact, name)) for name in ("input_norms", "delta_norms", "norm_norms")}
        expected |= {"row_loss": near(exact.loss), "row_weight": near(exact.weight)}
        expected |= {"gradient": (gradient, _of_norms(plan, gradient, share)), "sums": near(sums.totals[:2])}
        yield replace(call, name=f"samples-{case.id}", expected=expected)
    for name in ("dropout", "norms", *cases.BATCH_NETS):
        case = cases.NetCase(subject, name, "silu", "mse", B=16, dtype=dtype)
        made = case.model()
        feed, exact = case.feed(70, outputs=np.zeros((70, case.O), dtype)), np.zeros((70, case.O))
        recorder.predict(case.plan(made), case.state(made), feed)
        _exact(case)[2].predict(feed.x.astype(np.float64), exact)
        yield replace(recorder.call, name=f"predict-{case.id}", expected={"outputs": near(exact)})


def divergence(recorder: Recorder, subject: str, dtype: str) -> Iterator[Call]:
    """A gradient that overflows, and a loss that is no number: nothing changes."""
    for what, x in ((_native.GRADIENT_NOT_FINITE, 0.9 * np.finfo(dtype).max), (_native.LOSS_NOT_FINITE, np.inf)):
        for B, small in ((1, True), (1, False), (40, True), (40, False)):
            case = cases.NetCase(subject, "linear", "identity", "mse", O=1, B=B, dtype=dtype)
            made = case.model()
            made.parameters[:] = 0  # an output of 0, and a slope of 4
            plan, state, feed = case.plan(made), case.state(made), case.feed()
            feed.x[:], feed.y[:] = x, -2
            with mock.patch("fastbatch.plan.SMALL_GRADIENT", 8192 if small else 0):
                recorder.run(plan, state, feed, doubles(LR), 1 if B == 1 else THREADS)
            expected = {name: (array, np.zeros(array.shape)) for name, array in recorder.call.outputs.items()}
            expected["outcome"] = doubles(0, what), np.zeros(2)
            yield replace(recorder.call, name=f"diverges-{what}-{B}-{small}", expected=expected)


def calls(target: str, dtype: str, shape: tuple[int, int, int], every: int = 1) -> Iterator[Call]:
    """All cases of a target; of those that differ in shapes and rows of the registries alone one of `every`."""
    recorder, subject = Recorder(shape), f"c-{target}"
    with (
        mock.patch.dict(cases.SUBJECTS, {subject: recorder}),
        mock.patch.object(oracle, "assert_within", recorder.expect),
    ):
        for many in (kernels, programs):
            yield from islice(many(recorder, subject, dtype), 0, None, every)
        yield from functions(dtype)
        yield from copies(subject, dtype)
        yield from sources(dtype)
        yield from drawn(dtype)
        for few in (settings, samples, divergence):
            yield from few(recorder, subject, dtype)


# -- the driver --------------------------------------------------------------------------------------------------------


def targets(driver: list[str]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Usable targets of a driver: name and dtype -> lanes, tile rows, tile vectors."""
    listed = subprocess.run(driver, check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {(name, dtype): tuple(map(int, shape)) for name, dtype, *shape, usable, _ in rows if int(usable)}


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
