"""Programs: the fused run of a backend against the composition of the four kernels, and both against the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import (
    DTYPES,
    FUSED,
    LOSS_NAMES,
    MAIN_OPTIMIZERS,
    NETS,
    OPTIMIZERS,
    SUBJECTS,
    NetCase,
    few_nets,
    is_ordered,
    net_cases,
    parametrize,
    program_of,
    rng_of,
    targets,
)
from tiers import thin

import fastbatch as fb
from fastbatch import ops
from fastbatch.plan import make_plan
from fastbatch.protocol import Feed, State, Sums

FOREVER = 1e6
LR = 0.02
LRS = LR / (1 + 0.1 * np.arange(1000))  # one for each step, and none like another
RATES = np.full(2, 1e-3)


def snapshot(state: State) -> tuple[np.ndarray, ...]:
    return state.parameters.copy(), state.slots.copy(), state.steps.copy()


def assert_same_state(got, expected, what: str) -> None:
    for g, e, name in zip(got, expected, ("parameters", "slots", "steps")):
        oracle.assert_same_bits(g, e, f"{what}: {name}")


def run(case: NetCase, feed: Feed, stops: tuple[int, ...] = (), made: tuple | None = None, lrs=LRS):
    """State, outputs and sums after one pass, interrupted at `stops`."""
    _, state, program = made or case.program()
    feed.outputs = np.full((feed.rows, case.O), np.nan, case.dtype)
    sums = Sums()
    for first, last in zip((0, *stops), (*stops, feed.steps)):
        assert program.run(feed, first, last, lrs[first:last], FOREVER, sums) == last
    return (*snapshot(state), feed.outputs), sums


def assert_same_runs(got, expected, what: str) -> None:
    (state, sums), (expected_state, expected_sums) = got, expected
    assert_same_state(state[:3], expected_state[:3], what)
    oracle.assert_same_bits(state[3], expected_state[3], f"{what}: outputs")
    assert (sums.loss, sums.weight) == (expected_sums.loss, expected_sums.weight), what


# -- one step ----------------------------------------------------------------------------------------------------------


@thin(1, "numbers", "dtype")
@parametrize(net_cases())
def test_gradient(case):
    oracle.check_gradient(case)


@thin(1, "numbers", "dtype")
@parametrize(net_cases())
def test_step_is_gradient_then_update(case, order_of_sums):
    """A run of one step, which may never hold the gradient, gives the bits of accumulate and update."""
    feed = case.feed()
    plan, state, program = case.program()
    gradient = np.zeros_like(state.parameters)
    sums = program.accumulate(feed, 0, gradient)
    before = snapshot(state)
    program.update(gradient, 1 / sums.weight if sums.weight else 0.0, LR)
    exact_p, ep, exact_slots, eslots = oracle.update_network(
        plan, before[0], gradient / (sums.weight or 1), before[1], 1, LR, case.dtype
    )
    oracle.assert_within(state.parameters, exact_p, ep, f"{case.id}: parameters")
    oracle.assert_within(state.slots, exact_slots, eslots, f"{case.id}: slots")
    after, run_sums = run(case, case.feed())
    assert_same_state(after[:3], snapshot(state), case.id)
    assert int(after[2][0]) == 1
    if plan.sums_objective:
        sums = Sums(feed.rows * (sums.loss / sums.weight), feed.rows) if sums.weight else Sums()
    assert (run_sums.loss, run_sums.weight) == (sums.loss, sums.weight)
    outputs, bound = oracle.network(plan, replace_parameters(state, before), feed)[4:]
    oracle.assert_within(after[3], outputs, bound, f"{case.id}: outputs")


def replace_parameters(state: State, before) -> State:
    return replace(state, parameters=before[0], slots=before[1], steps=before[2])


@parametrize(few_nets(loss="mse"))
def test_forward_and_backward_are_the_gradient(case):
    """forward and backward with the loss's own slope between them add up to accumulate."""
    plan, state, program = case.program()
    feed, first_row = case.feed(), 5
    outputs = program.forward(feed.x, first_row, training=True)
    weight = np.ones(len(feed.x)) if feed.weight is None else feed.weight
    dz = plan.loss.elements(outputs, feed.y)[1] * (weight / case.O)[:, None].astype(case.dtype)
    gradient = np.zeros_like(state.parameters)
    program.backward(dz.astype(case.dtype), gradient)
    _, _, exact, bound, exact_outputs, eoutputs = oracle.network(plan, state, feed, first_row)
    oracle.assert_within(outputs, exact_outputs, eoutputs, f"{case.id}: outputs")
    oracle.assert_within(gradient, exact, 2 * bound, f"{case.id}: gradient")
    with pytest.raises(fb.ArgumentError, match=r"backward: expected a forward"):
        program.backward(dz.astype(case.dtype), gradient)


@parametrize(few_nets(B=200))
def test_predict_has_no_dropout(case):
    plan, state, program = case.program()
    feed = case.feed()
    out = oracle.Guarded(np.zeros((200, case.O), case.dtype))
    program.predict(feed.x, out.array)
    out.check("out")
    still = replace(plan, stages=tuple(replace(stage, threshold=256) for stage in plan.stages))
    outputs, bound = oracle.network(still, state, feed)[4:]
    oracle.assert_within(out.array, outputs, bound, f"{case.id}: outputs")
    oracle.assert_same_bits(program.forward(feed.x, 0, training=False), out.array, "forward without training")
    program.predict(feed.x[:0], out.array[:0])


# -- many steps --------------------------------------------------------------------------------------------------------

STEPS = 12


def size_of_gradients(row: ops.Optimizer, slots: np.ndarray) -> np.ndarray:
    """Of each parameter, where the step does not shrink with it."""
    if isinstance(row, fb.Lion):
        return np.abs(slots[0])
    if isinstance(row, (fb.SGD, fb.LARS)):
        return np.ones(1)
    return np.sqrt(slots[0 if isinstance(row, (fb.RMSprop, fb.Adagrad)) else 1])


def close(a: np.ndarray, b: np.ndarray, share: float) -> bool:
    return bool(np.linalg.norm(a - b) <= share * np.linalg.norm(b) / 4)


def exact_parameters(case: NetCase, rows: int, order: np.ndarray) -> np.ndarray:
    """After the same run in float64, by the composition."""
    feed = case.feed(rows, order=order)
    feed.x = feed.x.astype(np.float64)
    feed.y = feed.y if feed.y.ndim == 1 else feed.y.astype(np.float64)
    return run(replace(case, subject="reference", dtype="float64"), feed)[0][0]


@thin(1, "numbers", "dtype")
@parametrize(net_cases(FUSED))
def test_run_equals_the_composition(case):
    """Whole runs agree in norm and loss; not per element: under Adam a rounding-level gradient may change its sign.

    An element that has met only such gradients moves by lr either way, and is left out.
    """
    rows = STEPS * case.B - case.B // 2  # a ragged last batch
    order = rng_of(case.id).permutation(rows)
    plan, _, _ = case.program()
    # under a log link the slope is an exponential: batches of one row diverge at the full rate
    lrs = LRS / 10 if plan.loss.log_link else LRS
    fused, sums = run(case, case.feed(rows, order=order), lrs=lrs)
    composed, expected = run(replace(case, subject="reference"), case.feed(rows, order=order), lrs=lrs)
    assert int(fused[2][0]) == int(composed[2][0]) == STEPS
    root = size_of_gradients(plan.optimizer, composed[1])
    known = root >= 1e-4 * root.max()
    share = 2e-3
    if case.dtype == "float32" and not close(fused[0] * known, composed[0] * known, share):
        # a run that float32 itself leads astray: the fused one may stray as far as four times NumPy's
        exact = exact_parameters(case, rows, order)
        share = max(share, 8 * np.linalg.norm((composed[0] - exact) * known) / np.linalg.norm(exact * known))
        assert share < 0.05
    for name, tensor in oracle.tensors(plan, composed[0] * known).items():
        oracle.assert_norm_close(oracle.tensors(plan, fused[0] * known)[name], tensor, share, f"{case.id}: {name}")
    assert sums.loss == pytest.approx(expected.loss, rel=2e-4 if share == 2e-3 else share, abs=1e-6 * expected.weight)
    assert sums.weight == pytest.approx(expected.weight, rel=1e-6)


@parametrize(few_nets())
def test_a_run_may_be_cut_anywhere(case):
    rows = 5 * case.B + 3
    whole = run(case, case.feed(rows))
    for stops in ((1,), (2, 3), (5,)):
        assert_same_runs(run(case, case.feed(rows), stops), whole, f"{case.id}: cut at {stops}")


@parametrize(few_nets())
def test_order_is_a_gather(case):
    """Rows named by an order are the same as those rows copied into place, and the reverse of the order is not."""
    rows = 3 * case.B + 2
    order = rng_of(case.id).permutation(rows)
    feed = case.feed(rows)
    copied = replace(feed, x=feed.x[order], y=feed.y[order], weight=None if feed.weight is None else feed.weight[order])
    shuffled = run(case, replace(feed, order=order))
    assert_same_runs(run(case, copied), shuffled, case.id)
    other = run(case, replace(feed, order=np.ascontiguousarray(order[::-1])))
    assert other[0][0].tobytes() != shuffled[0][0].tobytes()


# of layers as wide as vectors, thin ones, and networks of so few parameters that they are updated at once
ROW_SIZES = (
    (16, 32, 1), (1, 1), (5, 3), (7, 64, 33, 4), (70, 17, 5),
    (2, 2, 2), (1, 1, 1, 1, 2), (3, 16, 1), (40, 3), (90, 1, 4), (2, 3, 15, 2),
)  # fmt: skip
# the last: products that are flushed to zero, added to -0
ROW_SETTINGS = [
    ("tanh", fb.Adam, 0.3, 1),
    ("gelu", fb.Adam, None, 1),
    ("silu", fb.SGD, None, 1),
    ("relu", fb.SGD, None, 1e-25),
]


@pytest.mark.parametrize("subject", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", ROW_SIZES, ids=str)
@pytest.mark.parametrize(("activation", "optimizer", "clip", "size"), ROW_SETTINGS)
def test_a_row_alone_is_a_batch_of_one(subject, dtype, sizes, activation, optimizer, clip, size):
    """Steps of one row take a shorter way, which a first stage without weights bars; not a bit differs."""
    inputs, *widths = sizes
    layers = [fb.Dense(width, activation if width != widths[-1] else "identity") for width in widths]
    layers[0] = replace(layers[0], bias=False)
    loss = fb.losses.MSE() if widths[-1] < 4 else fb.losses.CrossEntropy(weight=np.linspace(0.5, 2, widths[-1]))
    rng = rng_of(f"{sizes} {activation}")
    x = (size * rng.standard_normal((9, inputs))).astype(dtype)
    y = targets(loss, 9, widths[-1], dtype, rng, True)
    weight = rng.choice([0.0, 0.5, 3.0], 9)
    if size != 1:
        y, weight = y if y.ndim == 1 else (size * y).astype(dtype), np.ones(9)
    ran = []
    for first in ([], [fb.Activation("identity")]):
        made = fb.Sequential([*first, *layers], input_size=inputs, seed=3, dtype=dtype)
        if size != 1:
            made.parameters[:] *= np.where(rng_of("kept").random(made.num_parameters) < 0.3, size, -0.0)
        plan = make_plan(made, loss, optimizer(lr=LR), clip_value=clip)
        slots = np.zeros((2, made.num_parameters), dtype)
        state = State(made.parameters, slots, np.zeros(1, np.int64), 1, made.buffers)
        program = program_of(subject, plan, state)
        feed = Feed(x, y, weight, order=rng_of("order").permutation(9), batch=1, noise=0.1 if size == 1 else 0)
        feed.outputs = np.full((9, widths[-1]), np.nan, dtype)
        sums = Sums()
        assert program.run(feed, 0, 9, LRS[:9], FOREVER, sums) == 9
        ran.append(((*snapshot(state), feed.outputs), sums))
    assert_same_runs(*ran, f"{sizes}")


@parametrize(few_nets())
def test_a_subset_and_repeats(case):
    order = np.array([3, 3, 0, 7, 7, 7, 1, 2, 11], np.int64)
    feed = case.feed(12, batch=4)
    copied = replace(feed, x=feed.x[order], y=feed.y[order], weight=None if feed.weight is None else feed.weight[order])
    assert_same_runs(run(case, copied), run(case, replace(feed, order=order)), case.id)


@parametrize(few_nets())
def test_a_batch_larger_than_the_data(case):
    assert_same_runs(run(case, case.feed(5, batch=1000)), run(case, case.feed(5, batch=5)), case.id)


@parametrize(few_nets(FUSED))
def test_rows_with_a_stride(case):
    feed = case.feed(2 * case.B)
    wide = np.full((len(feed.x), feed.x.shape[1] + 5), np.nan, case.dtype)
    wide[:, 2:-3] = feed.x
    changes = {"x": wide[:, 2:-3]}
    if feed.y.ndim == 2:
        tall = np.full((2 * len(feed.y), case.O), np.nan, case.dtype)
        tall[::2] = feed.y
        changes["y"] = tall[::2]
    plain = run(case, case.feed(2 * case.B))
    assert_same_runs(run(case, replace(feed, **changes)), plain, f"{case.id}: in order")
    order = rng_of(case.id).permutation(2 * case.B)
    shuffled = run(case, case.feed(2 * case.B, order=order))
    assert_same_runs(run(case, replace(feed, **changes, order=order)), shuffled, f"{case.id}: shuffled")


@thin(2, "numbers", "dtype")
@parametrize(few_nets())
def test_a_budget_of_nothing_makes_progress(case):
    _, state, program = case.program()
    feed, sums, step, calls = case.feed(200 * case.B), Sums(), 0, 0
    while step < feed.steps:
        before, step = step, program.run(feed, step, feed.steps, LRS[step : feed.steps], 0.0, sums)
        assert step > before
        assert int(state.steps[0]) == step
        calls += 1
    assert calls > 1
    assert_same_state(snapshot(state), run(case, case.feed(200 * case.B))[0][:3], case.id)


@parametrize(few_nets(weighted=True))
def test_weights_are_repeats(case):
    """Integer row weights are the same as rows given several times; weight 0 is absence. Without dropout, that is."""
    plan, state, program = case.program()
    if any(stage.has_dropout for stage in plan.stages):
        case = replace(case, net="six")
        plan, state, program = case.program()
    times = np.array([0, 1, 2, 3, 1, 0, 2])
    feed = case.feed(7)
    weighted, repeated = np.zeros_like(state.parameters), np.zeros_like(state.parameters)
    a = program.accumulate(replace(feed, weight=times.astype(np.float64)), 0, weighted)
    index = np.repeat(np.arange(7), times)
    twice = Feed(feed.x[index], feed.y[index], None, batch=9)
    b = program.accumulate(twice, 0, repeated)
    bound = oracle.network(plan, state, twice)[3]
    oracle.assert_within(weighted, repeated.astype(np.float64), 2 * bound, f"{case.id}: gradient")
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.weight == pytest.approx(b.weight, rel=1e-6)


@parametrize(few_nets())
def test_no_weight_is_a_step_of_nothing(case):
    """Total weight 0: zero gradient, loss 0, and the update is counted."""
    plan, state, program = case.program()
    feed = case.feed(weight=np.zeros(case.B))
    before = snapshot(state)
    sums = Sums()
    assert program.run(feed, 0, 1, LRS[:1], FOREVER, sums) == 1
    assert (sums.loss, sums.weight, sums.mean()) == (0, 0, 0)
    assert int(state.steps[0]) == 1
    exact_p, ep, _, _ = oracle.update_network(plan, before[0], np.zeros_like(before[0]), before[1], 1, LR, case.dtype)
    oracle.assert_within(state.parameters, exact_p, ep, "parameters")


# -- the same bits -----------------------------------------------------------------------------------------------------


# 300 rows: more than there are parts at a time (8 of 32)
@parametrize([replace(case, B=300) for case in few_nets(FUSED) if is_ordered(case)])
def test_any_number_of_threads(case, order_of_sums):
    def everything():
        plan, state, program = case.program()
        feed = case.feed(case.B + 41)
        gradient = np.zeros_like(state.parameters)
        sums = program.accumulate(feed, 0, gradient)
        outputs = program.forward(feed.x, 3, training=True)
        program.backward(outputs, gradient)
        out = np.empty((feed.rows, case.O), case.dtype)
        program.predict(feed.x, out)
        ran = run(case, feed, made=(plan, state, program))
        return [gradient, outputs, out, *ran[0]], (sums.loss, sums.weight, ran[1].loss), program.threads_used

    with fb.set_num_threads(1, exact=True):
        expected, numbers, used = everything()
    assert used == 1
    for threads in (2, 3):
        with fb.set_num_threads(threads, exact=True):
            got, sums, used = everything()
        assert used == threads
        assert sums == numbers
        for g, e, name in zip(got, expected, ("gradient", "outputs", "predictions", *"pst", "run outputs")):
            oracle.assert_same_bits(g, e, f"{case.id}: {name} on {threads} threads")


@thin(3, "subject", "numbers", "dtype")
@parametrize([replace(case, B=23) for case in few_nets()] + [replace(case, B=300) for case in few_nets(FUSED)])
@pytest.mark.parametrize("tiles", [1, 2, 5, 7])
def test_any_split_into_micro_batches(case, tiles, order_of_sums):
    """In pieces of whole tiles: the same bits where the order of sums is fixed, within the bound where NumPy sums."""
    plan, state, program = case.program()
    feed, size = case.feed(), tiles * program.tile_rows

    def accumulate(size: int) -> np.ndarray:
        gradient = np.zeros_like(state.parameters)
        for start in range(0, case.B, size):
            rows = slice(start, start + size)
            weight = None if feed.weight is None else feed.weight[rows]
            program.accumulate(Feed(feed.x[rows], feed.y[rows], weight, batch=size), start, gradient)
        return gradient

    if is_ordered(case):
        oracle.assert_same_bits(accumulate(size), accumulate(case.B), f"{case.id}: in pieces of {size}")
    exact, bound = oracle.network(plan, state, feed)[2:4]
    oracle.assert_within(accumulate(size), exact, 2 * bound, f"{case.id}: in pieces of {size}")


@pytest.mark.parametrize("net", [name for name in NETS if name in ("dropout", "apart", "tail", "twice")])
def test_dropout_is_keyed_by_update_row_and_seed(subject, net):
    case = NetCase(subject, net, "tanh", "mse", B=16)
    feed = case.feed()

    def outputs(first_row: int = 0, update: int = 0, seed: int = 1) -> np.ndarray:
        made = case.model()
        state = replace(case.state(made), seed=seed)
        state.steps[0] = update
        program = program_of(subject, case.plan(made), state)
        return program.forward(feed.x, first_row, training=True)

    same = outputs()
    oracle.assert_same_bits(outputs(), same, "again")
    for change in ({"first_row": 16}, {"update": 1}, {"update": 2**32 - 1}, {"seed": 2}, {"seed": 1 + 2**32}):
        assert outputs(**change).tobytes() != same.tobytes(), change
    # row 0 of a piece that starts at row 3 is row 3 of the whole
    program = case.program()[2]
    whole, part = (program.forward(feed.x[at:], at, training=True) for at in (0, 3))
    oracle.assert_within(part, whole[3:].astype(np.float64), 1e-5 * (1 + np.abs(whole[3:])), "a later piece")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_in_a_run(subject, optimizer):
    case = NetCase(subject, "two", "tanh", "mse", optimizer)
    ran, _ = run(case, case.feed(6 * case.B))
    truth = replace(case, subject="reference", dtype="float64")
    feed = case.feed(6 * case.B)
    exact, _ = run(truth, replace(feed, x=feed.x.astype(float), y=feed.y.astype(float)))
    plan, _, _ = case.program()
    for name, tensor in oracle.tensors(plan, exact[0]).items():
        oracle.assert_norm_close(oracle.tensors(plan, ran[0])[name], tensor, 2e-4, f"{case.id}: {name}")
    for name, tensor in oracle.tensors(plan, exact[1]).items():
        oracle.assert_norm_close(oracle.tensors(plan, ran[1])[name], tensor, 2e-4, f"{case.id}: slots of {name}")


@thin(1, "name")
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_gradient_is_the_difference_quotient(name, activation):
    """The whole network in float64 against central differences, with every parameter moved; kinks kept away from."""
    case = NetCase("reference", "apart", activation, name, B=4, weighted=True, dtype="float64")
    plan, state, program = case.program()
    feed = case.feed()
    gradient = np.zeros_like(state.parameters)
    sums = program.accumulate(feed, 0, gradient)
    assert np.count_nonzero(gradient) > gradient.size / 4
    flat, h = state.parameters, 1e-5
    of_value, of_slope = plan.loss.divisors(case.O)
    gradient *= of_slope / of_value
    for k in range(flat.size):
        kept, values = flat[k], []
        for move in (-h, h):
            flat[k] = kept + move
            values.append(program.accumulate(feed, 0, np.zeros_like(flat)).loss)
        flat[k] = kept
        left, right = (sums.loss - values[0]) / h, (values[1] - sums.loss) / h
        if abs(left - right) > 1e-3 * (1 + abs(left)):  # a kink between them: the slope is one of the two sides
            assert min(left, right) - 1e-3 <= gradient[k] <= max(left, right) + 1e-3
            continue
        assert gradient[k] == pytest.approx((left + right) / 2, rel=1e-5, abs=1e-6), f"parameter {k}"


# -- divergence --------------------------------------------------------------------------------------------------------


def diverging(subject: str, kind: str, optimizer: str, steps_before: int = 0):
    """A program that has made some healthy steps, and a feed that ends them."""
    loss = {"loss": "mse", "nan": "mse", "logit": "cross_entropy"}.get(kind, "mae")
    layers = [fb.Dense(6), fb.Dense(3)]
    made = fb.Sequential(layers, input_size=4, seed=1)
    plan = make_plan(made, ops.get_loss(loss), OPTIMIZERS[optimizer])
    state = State(made.parameters, np.zeros((plan.slots, plan.num_parameters), np.float32), np.zeros(1, np.int64), 0)
    program = program_of(subject, plan, state)
    rng = rng_of(kind)
    x = rng.standard_normal((10, 4)).astype(np.float32)
    y = rng.integers(0, 3, 10) if loss == "cross_entropy" else rng.standard_normal((10, 3)).astype(np.float32)
    feed = Feed(x, y, None, batch=5)
    for _ in range(steps_before):
        program.run(feed, 0, 2, RATES, FOREVER, Sums())
    return plan, state, program, feed


@thin(1, "subject", "kind", "optimizer")
@pytest.mark.parametrize("optimizer", MAIN_OPTIMIZERS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("kind", ["loss", "nan", "logit", "gradient"])
def test_a_step_that_diverges_changes_nothing(subject, kind, optimizer, steps_before, threads):
    plan, state, program, feed = diverging(subject, kind, optimizer, steps_before)
    x = feed.x.copy()
    if kind in ("loss", "logit"):
        x[7] = 3e38
    elif kind == "nan":
        x[7, 1] = np.nan
    else:
        # a finite loss (mae grows like |a|) whose gradient overflows: x of 1e30 meets deltas that w has made 1e10
        x[7] = 1e30
        for stage, size in zip(plan.stages, (1e-7, 1e10)):
            w = state.parameters[stage.w : stage.w + stage.inputs * stage.outputs]
            w[:] = size * np.sign(w)
    before, sums = snapshot(state), Sums()
    first = replace(feed, x=x, outputs=np.empty((10, 3), np.float32))
    with fb.set_num_threads(threads, exact=True), np.errstate(all="ignore"):
        with pytest.raises(fb.DivergenceError, match="loss" if kind != "gradient" else "gradient") as caught:
            program.run(first, 1, 2, RATES, FOREVER, sums)
        assert caught.value.step == int(before[2][0]) + 1
        assert_same_state(snapshot(state), before, f"{subject} {kind}")
        assert (sums.loss, sums.weight) == (0, 0)
        # the same after healthy steps of the same call: those are kept, and counted
        if kind != "gradient":
            with pytest.raises(fb.DivergenceError):
                program.run(first, 0, 2, RATES, FOREVER, sums)
            assert int(state.steps[0]) == int(before[2][0]) + 1
            assert sums.weight == 5
            twin = diverging(subject, kind, optimizer, steps_before)
            twin[2].run(feed, 0, 1, RATES, FOREVER, Sums())
            assert_same_state(snapshot(state), snapshot(twin[1]), "the healthy step")
        # and it goes on
        if kind != "gradient":
            program.run(feed, 1, 2, RATES, FOREVER, sums)
            assert np.isfinite(state.parameters).all()


@thin(2, "subject", "optimizer")
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", MAIN_OPTIMIZERS)
def test_update_refuses_a_gradient_that_is_not_finite(subject, optimizer, threads, poison):
    _, state, program, _ = diverging(subject, "nan", optimizer, 1)
    before = snapshot(state)
    for at in (0, 17, state.parameters.size - 1):
        gradient = np.ones_like(state.parameters)
        gradient[at] = poison
        with (
            fb.set_num_threads(threads, exact=True),
            pytest.raises(fb.DivergenceError, match="gradient"),
            np.errstate(all="ignore"),
        ):
            program.update(gradient, 1.0, 1e-3)
        assert_same_state(snapshot(state), before, f"poisoned at {at}")
    with np.errstate(all="ignore"), pytest.raises(fb.DivergenceError, match="gradient"):
        program.update(np.full_like(state.parameters, 1e30), 1e30, 1e-3)
    assert_same_state(snapshot(state), before, "scaled past the end")


@thin(1, "fused", "optimizer", "order_of_sums")
@pytest.mark.parametrize("optimizer", MAIN_OPTIMIZERS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_checked_and_fused_paths_agree(fused, optimizer, threads, order_of_sums):
    """A row of weight 0 and an input of 1e30, which no weight looks at, lifts the bound over the limit and no sum.

    The second step is healthy: it shows that the checked path has left the transposed weights as the fused one does.
    """
    runs = []
    for size in (0.0, 1e30):
        made = fb.Sequential([fb.Dense(37, "tanh"), fb.Dense(9), fb.Dense(5)], input_size=19, seed=1)
        made.weights[0][0][0] = 0
        plan = make_plan(made, ops.get_loss("mae"), OPTIMIZERS[optimizer])
        state = State(made.parameters, np.zeros((plan.slots, plan.num_parameters), np.float32), np.zeros(1, int), 0)
        rng = rng_of("paths")
        weight = np.ones(40)
        weight[[3, 5]] = 0, 1e12  # bound: 20 rows x 1e30 x 1e12
        feed = Feed(rng.standard_normal((40, 19)), rng.standard_normal((40, 5)), weight, batch=20)
        feed.x, feed.y = feed.x.astype(np.float32), feed.y.astype(np.float32)
        feed.x[:, 0] = 0
        feed.x[3, 0] = size
        with fb.set_num_threads(threads, exact=True):
            program_of(fused, plan, state).run(feed, 0, 2, RATES, FOREVER, Sums())
        runs.append(snapshot(state))
    assert_same_state(runs[1], runs[0], f"{fused}: checked against fused")
    assert np.isfinite(runs[0][0]).all()
    assert runs[0][0].any()


@thin(1, "subject", "optimizer", "order_of_sums")
@pytest.mark.parametrize("weight", [1e-3, 1e-12])
@pytest.mark.parametrize("optimizer", MAIN_OPTIMIZERS)
def test_small_weights_do_not_hide_an_overflow(subject, optimizer, weight, order_of_sums):
    """The sum is finite, the mean is not: dividing by a total weight below 1 can overflow after the check."""
    case = NetCase(subject, "linear", "identity", "mse", optimizer, O=1, B=2)
    _, state, program = case.program()
    state.parameters[:] = 1e-10
    feed = case.feed(weight=np.full(2, weight))
    feed.x[:] = 1e25
    before = snapshot(state)
    with np.errstate(all="ignore"), pytest.raises(fb.DivergenceError, match="gradient"):
        program.run(feed, 0, 1, LRS[:1], FOREVER, Sums())
    assert_same_state(snapshot(state), before, "after the refusal")


def test_a_hidden_infinity_changes_nothing(subject, public):
    """An activation overflows and the next relu hides it from the loss: its gradient is Inf times 0, and a bound of NaN
    in the middle of the network must not give way to the finite one of the layer above."""
    model = fb.MLP([2, 16, 16, 3], activation="relu")
    for (w, _), value in zip(model.weights, (10, -1, 0.1)):
        w[:] = value
    trainer = fb.Trainer(model, "mse", backend=public(subject))
    before = model.parameters.copy()
    with np.errstate(all="ignore"), pytest.raises(fb.DivergenceError, match="gradient"):
        trainer.step(np.full((4, 2), 3e38, np.float32), np.ones((4, 3), np.float32))
    assert model.parameters.tobytes() == before.tobytes()


@pytest.mark.parametrize("weight", [1e-30, 1e-42, 1e-300])
def test_tiny_weights(subject, weight):
    """Equal weights are no weights, however small; or a refusal that changes nothing."""
    case = NetCase(subject, "two", "tanh", "mse")
    _, state, program = case.program()
    before, sums = snapshot(state), Sums()
    try:
        with np.errstate(all="ignore"):
            program.run(case.feed(weight=np.full(case.B, weight)), 0, 1, LRS[:1], FOREVER, sums)
    except fb.DivergenceError:
        assert_same_state(snapshot(state), before, "after the refusal")
        return
    plain, expected = run(case, case.feed())
    oracle.assert_norm_close(state.parameters, plain[0], 1e-5, "parameters")
    assert sums.weight == pytest.approx(weight * case.B, rel=1e-6, abs=0)
    assert sums.mean() == pytest.approx(expected.mean(), rel=1e-5)


def test_one_class_weight_for_all_classes(subject):
    """`CrossEntropy(weight=[c])` passes the trainer's door, so every backend has to take it: it cancels in the mean."""
    row = fb.losses.CrossEntropy(weight=[2.0])
    a = np.array([[1, 2, 3], [0, 1, 0]], np.float32)
    sums = SUBJECTS[subject].loss(a, np.array([0, 2]), row, None, np.empty_like(a))
    plain = SUBJECTS[subject].loss(a, np.array([0, 2]), fb.losses.CrossEntropy(), None, np.empty_like(a))
    assert sums.mean() == pytest.approx(plain.mean(), rel=1e-6)


@parametrize(few_nets())
def test_no_rows(case):
    _, state, program = case.program()
    before = snapshot(state)
    gradient = np.zeros_like(state.parameters)
    sums = program.accumulate(case.feed(0), 0, gradient)
    assert (sums.loss, sums.weight) == (0, 0)
    assert not gradient.any()
    assert program.forward(case.feed(0).x, 0, training=True).shape == (0, case.O)
    assert_same_state(snapshot(state), before, "no rows")
