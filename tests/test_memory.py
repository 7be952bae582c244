"""Memory: nothing grows, nothing is written outside its array, no input is changed."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import oracle
import pytest
from cases import OPTIMIZERS, NetCase, few_nets, parametrize, program_of

from fastbatch.arena import training_arena
from fastbatch.protocol import Feed, PerSample, State, Sums


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@parametrize(few_nets(B=40))
def test_everything_stays_inside_its_array(case):
    """Parameters, slots, outputs and gradient lie between guards during a whole run; inputs keep their bits."""
    made = case.model()
    plan, state = case.plan(made), case.state(made)
    parameters, slots = oracle.Guarded(state.parameters), oracle.Guarded(state.slots)
    steps = oracle.Guarded(state.steps)
    state = State(parameters.array, slots.array, steps.array, state.seed)
    program = program_of(case.subject, plan, state)
    rows = 3 * case.B - 11
    feed = case.feed(rows)
    outputs = oracle.Guarded(np.zeros((rows, case.O), case.dtype))
    given = {
        "x": oracle.Guarded(feed.x),
        "y": oracle.Guarded(feed.y),
        "order": oracle.Guarded(np.random.default_rng(1).permutation(rows)),
    }
    if feed.weight is not None:
        given["weight"] = oracle.Guarded(feed.weight)
    gradient = oracle.Guarded(np.zeros(plan.num_parameters, case.dtype))
    arrays = {name: guard.array for name, guard in given.items()}
    program.run(Feed(**arrays, batch=case.B, outputs=outputs.array), 0, 3, np.full(3, 0.01), 1e6, Sums())
    del arrays["order"]
    program.accumulate(Feed(**arrays, batch=rows), 0, gradient.array)
    z = program.forward(given["x"].array, 0, training=True)
    dz = oracle.Guarded(np.ones_like(z))
    program.backward(dz.array, gradient.array)
    program.update(gradient.array, 1e-3, 0.01)
    program.predict(given["x"].array, outputs.array)
    for name, guard in {**given, "dz": dz}.items():
        guard.check_unchanged(f"{case.id}: {name}")
    for name, guard in {"parameters": parameters, "slots": slots, "steps": steps}.items():
        guard.check(f"{case.id}: {name}")
    outputs.check(f"{case.id}: outputs")
    gradient.check(f"{case.id}: gradient")
    assert int(steps.array[0]) == 4
    assert np.isfinite(parameters.array).all()
    assert np.isfinite(outputs.array).all()


def test_repeated_runs_do_not_grow(subject):
    case = NetCase(subject, "dropout", "tanh", "mse", "adam", B=32)
    _, _, program = case.program()
    feed, sums = case.feed(96), Sums()
    gradient = np.zeros(case.model().num_parameters, case.dtype)

    def work() -> None:
        program.run(feed, 0, feed.steps, np.full(feed.steps, 1e-3), 1e6, sums)
        program.accumulate(feed, 0, gradient)
        program.accumulate(feed, 0, None, rows=PerSample(loss=np.empty(96), input_norms=np.empty((2, 96))))
        program.backward(program.forward(feed.x, 0, training=True), gradient)
        program.predict(feed.x, np.empty((96, case.O), case.dtype))

    for _ in range(5):
        work()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        before, rss = tracemalloc.get_traced_memory()[0], resident()
        for _ in range(30):
            work()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000, f"{grown} bytes of Python and NumPy memory after 30 repetitions"
    # an arena that were made anew and kept each time would be more
    assert resident() - rss < 4 << 20


def test_a_fused_run_allocates_nothing_per_step(fused):
    case = NetCase(fused, "six", "tanh", "cross_entropy", "adam", B=8)
    _, _, program = case.program()
    feed, lrs = case.feed(8000), np.full(1000, 1e-3)
    program.run(feed, 0, 10, lrs, 1e6, Sums())
    peaks = []
    for steps in (10, 1000):
        tracemalloc.start()
        program.run(feed, 0, steps, lrs, 1e6, Sums())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4096


@parametrize([case for case in few_nets() if case.net == "dropout"])
def test_programs_are_released(case):
    import weakref

    _, state, program = case.program()
    program.run(case.feed(), 0, 1, np.full(1, 0.01), 1e6, Sums())
    ghost, buffer = weakref.ref(program) if hasattr(program, "__weakref__") else None, weakref.ref(state.parameters)
    del program, state
    gc.collect()
    assert ghost is None or ghost() is None
    assert buffer() is None


@pytest.mark.parametrize("rows", [1, 7, 64])
@parametrize(few_nets(subjects=("reference",)))
def test_arena_ranges_do_not_overlap(case, rows):
    """What the plan hands out is disjoint, aligned and inside; memory that is shared on purpose has one offset."""
    from fastbatch import ops

    plan = case.plan(case.model())
    arena = training_arena(
        plan, rows, {name: k for k, name in enumerate(ops.ACTIVATIONS)}, (128, 512, 1024), (8, 32), 3, 5
    )
    ranges = {
        ("y", -1): (arena.y, rows * int(arena.stages[-1]["out_ld"]) * 4),
        ("row_loss", -1): (arena.row_loss, 8 * rows),
        ("row_weight", -1): (arena.row_weight, 8 * rows),
        ("row_share", -1): (arena.row_share, 8 * rows),
        ("gradient", -1): (arena.gradient, 4 * plan.num_parameters),
        ("scratch", -1): (arena.scratch, 3 * arena.scratch_bytes),
        ("parts", -1): (arena.parts, -(-rows // 32) * arena.part_bytes),
    }
    for k, row in enumerate(arena.stages):
        assert row["x_ld"] >= row["inputs"]
        assert row["out_ld"] >= row["outputs"]
        for field in ("x", "out", "z", "a", "dz"):
            ld = rows * row[f"{'x' if field == 'x' else 'out'}_ld"]
            if row[field] >= 0:
                ranges[field, k] = int(row[field]), int(ld) * 4
    spans = sorted(set(ranges.values()))
    for (start, size), (following, _) in zip(spans, [*spans[1:], (arena.nbytes, 0)]):
        assert start % 64 == 0
        assert start + size <= following
    assert sum(arena.purposes.values()) == arena.nbytes
    deltas = [int(row["dz"]) for row in arena.stages]
    assert len(set(deltas)) == len(deltas)


def test_slots_are_where_the_optimizer_says():
    for name, row in OPTIMIZERS.items():
        slots = np.zeros((row.slots, 3))
        for t in (1, 2):
            row.update(np.ones(3), np.ones(3), slots, t, 0.1)
        assert slots.all(), f"{name}: a slot that is never written"
