"""Batches that follow the gradient noise scale, resumed to the bit, and rates that follow batches."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch import storage
from fastbatch.batching import NoiseScale, noise_scale, scale_lr
from fastbatch.batching import noise as noise_module
from fastbatch.batching.moments import moments
from fastbatch.batching.noise import NoiseEstimate, as_state, due, follow, ratio, rows_of

backends = pytest.mark.parametrize("backend", BACKENDS)
ROWS, SIZE = 70, 8


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": 0}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"target": None}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"target": 10**400}, r"NoiseScale\(target=\): expected a finite number > 0"),
        ({"min": 0}, r"NoiseScale\(min=\): expected an integer >= 1, got 0"),
        ({"max": 7}, r"NoiseScale\(max=\): expected an integer >= min, which is 8, got 7"),
        ({"rows": 1}, r"NoiseScale\(rows=\): expected an integer >= 2 or None, got 1"),
        ({"every": 0}, r"NoiseScale\(every=\): expected an integer >= 1 or None, got 0"),
        ({"decay": 1.0}, r"NoiseScale\(decay=\): expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_noise_scale_policy_refuses(values, words):
    with pytest.raises(fb.ArgumentError, match=words):
        NoiseScale(**values)


@backends
def test_a_fit_with_batch_norm_is_refused(backend):
    x, y = make_data()
    trainer = make_trainer(norm="batch", backend=backend)
    before = copy.deepcopy(trainer)
    with pytest.raises(fb.ArgumentError, match="expected a model without BatchNorm for a NoiseScale"):
        trainer.fit(x, y, batch_size="noise")
    assert_same_trainer(trainer, before)


@backends
def test_a_fit_in_which_all_is_frozen_is_refused(backend):
    x, y = make_data(n=ROWS)
    trainer = make_trainer(optimizer=fb.SGD(0.1, frozen=(0, 1)), backend=backend)
    with pytest.raises(fb.ArgumentError, match="batch_size: expected parameters to train for a NoiseScale, got an opt"):
        trainer.fit(x, y, "noise")
    assert (trainer.steps, len(trainer.history)) == (0, 0)


# -- batches that follow -----------------------------------------------------------------------------------------------


def test_averages_are_of_both_numbers_and_clamped_behind():
    policy, state = NoiseScale(decay=0.5), None
    found = [(100.0, 1.0), (100.0, -0.5), (100.0, 0.25), (120.0, 4.0)]
    trace, norm = found[0]
    for epoch, (t, g) in enumerate(found):
        state = follow(policy, state, epoch, (t, g), 1)
        trace, norm = (t, g) if epoch == 0 else ((trace + t) / 2, (norm + g) / 2)
        assert (state["trace"], state["squared_norm"], state["epoch"]) == (trace, norm, epoch)
    assert ratio(trace, norm) == pytest.approx(110 / 2.125)
    state = follow(policy, state, 6, (10.0, 1.0), 1)  # three epochs later: an eighth of what was
    assert state["trace"] == pytest.approx(trace / 8 + 10 * 7 / 8)
    assert follow(NoiseScale(decay=0), state, 7, (5.0, 2.0), 1)["trace"] == 5.0


def test_an_average_that_is_clamped_before_is_off():
    """Noise scale 1000 seen by batches of 32 in 200 dimensions: most of single batches are far off, half below 0."""
    rng, policy, state, exact = np.random.default_rng(0), NoiseScale(decay=0.999, max=10**6), None, 1000
    mean = np.full(200, math.sqrt(1 / 200))
    for epoch in range(6000):
        g = mean + rng.normal(size=(32, 200)) * math.sqrt(exact / 200)
        total = g.sum(axis=0)
        state = follow(policy, state, epoch, moments([32, 32, 32, np.square(g).sum()], total @ total, math.inf), 1)
    assert ratio(state["trace"], state["squared_norm"]) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("found", [(math.nan, 1.0), (1.0, math.inf), (math.nan, math.nan)])
def test_what_is_not_finite_is_left_out(found):
    state = follow(NoiseScale(), None, 0, (100.0, 1.0), 1)
    assert follow(NoiseScale(), state, 1, found, 1) == {**state, "epoch": 1}
    first = follow(NoiseScale(), None, 0, found, 1)
    assert first["size"] == 8
    assert math.isnan(ratio(first["trace"], first["squared_norm"]))
    assert follow(NoiseScale(), first, 1, (100.0, 1.0), 1)["trace"] == 100.0
    assert follow(NoiseScale(), {**first, "size": 32}, 1, found, 1)["size"] == 32


def test_sizes_move_by_one_step_either_way_and_not_for_little():
    policy, state, sizes = NoiseScale(min=8, max=100, decay=0), None, []
    for epoch, scale in enumerate([40, 50, 60, 1e9, math.inf, 70, 60, 55, 3, 3, 3, 3, 9]):
        state = follow(policy, state, epoch, (scale, 1.0) if scale < math.inf else (1.0, -1.0), 1)
        sizes.append(state["size"])
    assert sizes == [32, 32, 64, 100, 100, 100, 100, 50, 25, 12, 8, 8, 8]
    of_four = follow(policy, None, 0, (256.0, 1.0), 4)
    assert of_four["size"] == 64
    assert follow(NoiseScale(target=0.25), None, 0, (256.0, 1.0), 1)["size"] == 64
    assert follow(NoiseScale(max=50), None, 0, (1e9, 1.0), 1)["size"] == 50


def test_when_it_is_measured():
    policy = NoiseScale()
    assert [rows_of(policy, n) for n in (1, 8, 100, 1400, 8192, 10**6)] == [1, 2, 12, 175, 1024, 1024]
    assert rows_of(NoiseScale(rows=50), 40) == 40
    every = {n: next(e for e in range(1, 99) if due(policy, {"epoch": 0}, e, n)) for n in (1400, 8192, 16384, 41_000)}
    assert every == {1400: 5, 8192: 5, 16384: 3, 41_000: 1}
    assert not due(NoiseScale(every=3), {"epoch": 5}, 7, 10**6)
    assert due(NoiseScale(every=3), {"epoch": 5}, 8, 100)


POLICY = NoiseScale(target=0.5, min=2, rows=40, every=2)
FAST = fb.Adam(lr=0.05)  # gradients shrink, and the noise scale grows, in a few epochs


@backends
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_fit_is_one_of_these_sizes(backend, weighted):
    """Sizes follow from what the rows say; everything else is a fit of each epoch's size; fits go on."""
    x, y = make_data(n=96)
    options = {"sample_weight": np.resize([1.0, 2.0, 0.0, 0.5, 3.0], 96)} if weighted else {}
    whole, parts, by_hand, named = (make_trainer(optimizer=FAST, backend=backend, dropout=0.2) for _ in range(4))
    history = whole.fit(x, y, batch_size=POLICY, epochs=14, **options)
    found = [parts.fit(x, y, batch_size=POLICY, epochs=n, **options) for n in (1, 2, 11)]
    for name in ("batch_size", "noise_scale", "loss"):
        assert [value for part in found for value in part[name]] == history[name]
    assert_same_trainer(parts, whole)
    losses = [by_hand.fit(x, y, batch_size=size, **options)["loss"][0] for size in history["batch_size"]]
    assert losses == history["loss"]
    assert_same_trainer(by_hand, whole)
    assert history["noise_scale"][::2] == history["noise_scale"][1::2]
    assert len(set(history["noise_scale"])) == 7
    assert len(set(history["batch_size"])) > 1
    # "noise" is the defaults
    fresh = make_trainer(optimizer=FAST, backend=backend, dropout=0.2)
    assert named.fit(x, y, batch_size="noise")["batch_size"] == fresh.fit(x, y, batch_size=NoiseScale())["batch_size"]
    assert "noise_scale" not in make_trainer(backend=backend).fit(x, y)


@pytest.mark.parametrize("how", ["shuffled", "in order", "function", "pieces", "class weights", "scaled"])
def test_what_a_fit_measures(how):
    """All rows measured: exactly the noise scale of these rows at the weights that the epoch begins with."""
    x, y = make_data("cross_entropy", 96)
    options = {
        "in order": {"shuffle": False}, "function": {"shuffle": lambda epoch: np.arange(96)[::-1]},
        "pieces": {"micro_batch_size": 5}, "class weights": {"class_weight": {0: 2.0, 1: 0.5}},
        "scaled": {"input_scale": (0.5, 1.0)},
    }.get(how, {})  # fmt: skip
    trainer = make_trainer("cross_entropy", dtype="float64")
    trainer.fit(x, y, epochs=1, **{**options, "micro_batch_size": None})
    weight = np.select([y == 0, y == 1], [2.0, 0.5], 1.0) if how == "class weights" else None
    exact = noise_scale(trainer, x, y, 8, sample_weight=weight, population=96)
    history = trainer.fit(x, y, batch_size=NoiseScale(rows=96, every=1), epochs=1, **options)
    assert history["noise_scale"] == pytest.approx([exact.noise_scale], rel=1e-9)


def test_rows_are_drawn_at_random_where_they_are_not_visited_so(monkeypatch):
    """Rows sorted by label: the first of them would show one class."""
    seen = []
    monkeypatch.setattr("fastbatch.training.noise.measure", lambda *a: seen.append(a) or (1.0, 1.0))
    x, y = make_data("cross_entropy", 800)
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    for how in (False, True, lambda epoch: np.arange(400)):
        trainer = make_trainer("cross_entropy")
        trainer.fit(x, y, batch_size=NoiseScale(rows=100, every=1), epochs=2, shuffle=how)
    trainer.fit(x, y, batch_size=NoiseScale(rows=100, every=1), sampling="balanced")
    chosen = [call[3] for call in seen]
    assert [len(np.unique(rows)) == 100 for rows in chosen[:6]] == [True] * 6
    assert all(len(np.unique(y[rows])) == 4 for rows in chosen[:4])
    assert max(map(np.max, chosen[4:6])) < 400
    assert not any(np.array_equal(*pair) for pair in (chosen[:2], chosen[2:4], chosen[4:6]))
    assert [call[5] for call in seen] == [800, 800, 800, 800, 400, 400, math.inf]


def test_a_size_that_stays_only_tells(monkeypatch):
    x, y = make_data(n=96)
    told, plain = make_trainer(), make_trainer()
    history = told.fit(x, y, batch_size=NoiseScale(min=16, max=16, every=1), epochs=3)
    plain.fit(x, y, batch_size=16, epochs=3)
    assert_same_trainer(told, plain)
    assert all(value > 0 for value in history["noise_scale"])
    assert history["batch_size"] == [16] * 3


@backends
def test_rows_of_an_update_are_counted(backend):
    x, y = make_data(n=96)
    sizes = []
    for batches in (1, 4):
        trainer = make_trainer(backend=backend, gradient_accumulation_steps=batches)
        policy = NoiseScale(target=4.0, min=1, rows=96)
        sizes.append(trainer.fit(x, y, batch_size=policy)["batch_size"][0])
    assert sizes[0] == 4 * sizes[1]


def test_a_fit_that_diverges_says_so_as_ever():
    x, y = make_data(n=96)
    trainer = make_trainer(activation="relu")
    trainer.model.parameters[:] = 1e25
    with pytest.raises(fb.DivergenceError, match="at step 1"):
        trainer.fit(x, y, batch_size="noise")


@pytest.mark.parametrize("policies", [(8, 32, 64, 128), (64, 64, 8, 32)], ids=["up", "down"])
def test_sizes_are_the_policys_before_its_first_measurement(policies):
    x, y = make_data(n=600)
    trainer, made = make_trainer(), []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: made.append(getattr(trainer._program, "_rows", None)))
    first, second = NoiseScale(min=policies[0], max=policies[1]), NoiseScale(min=policies[2], max=policies[3])
    trainer.fit(x, y, batch_size=first)
    measured = dict(trainer._noise)
    history = trainer.fit(x, y, batch_size=second, epochs=3, callbacks=[hook])
    assert trainer._noise["epoch"] == measured["epoch"]  # none was due
    assert history["batch_size"] == [min(max(measured["size"], second.min), second.max)] * 3 != [measured["size"]] * 3
    assert len(set(made)) == 1


def test_memory_is_made_once():
    x, y = make_data(n=600)
    trainer = make_trainer()
    if trainer.backend != "c":
        pytest.skip("the arena is the c backend's")
    rows = []
    hook = fb.LambdaCallback(on_chunk_end=lambda steps, logs: rows.append(trainer._program._rows))
    trainer.fit(x, y, batch_size=NoiseScale(max=512, every=1), epochs=3, callbacks=[hook])
    assert set(rows) == {512}
    small = make_trainer()
    small.fit(x, y, batch_size=NoiseScale(max=512, rows=600), micro_batch_size=50)
    assert small._program._rows == 50


# -- going on ----------------------------------------------------------------------------------------------------------


class Stop(fb.Callback):
    every_n_steps = 1

    def __init__(self, at):
        self.at = at

    def on_chunk_end(self, steps, logs):
        self.trainer.stop_training = self.trainer.steps == self.at


@backends
@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize("at", [1, 17, 40])
def test_an_interrupted_fit_goes_on_with_its_bits(backend, through, at, tmp_path, monkeypatch):
    x, y = make_data(n=96)
    whole, trainer = (make_trainer(optimizer=FAST, backend=backend, dropout=0.2) for _ in range(2))
    for one in (whole, trainer):
        one.fit(x, y, batch_size=POLICY, epochs=1)
    before = trainer.steps
    whole.fit(x, y, batch_size=POLICY, epochs=6)
    trainer.fit(x, y, batch_size=POLICY, epochs=6, callbacks=[Stop(before + at)])
    assert trainer.steps == before + at
    calls = []
    if through == "file":
        trainer.save(tmp_path / "t")
        trainer = fb.Trainer.load(tmp_path / "t")
    else:
        measure = noise_module.measure
        monkeypatch.setattr("fastbatch.training.noise.measure", lambda *a: calls.append(1) or measure(*a))
    trainer.resume(x, y)
    for name in whole.history.keys() - {"time"}:
        assert trainer.history[name] == whole.history[name]
    assert_same_trainer(trainer, whole)
    assert trainer._noise == whole._noise
    if through == "memory":
        assert len(calls) <= 3  # the running epoch is not measured again
    more = [one.fit(x, y, batch_size=POLICY, epochs=3)["noise_scale"] for one in (trainer, whole)]
    assert more[0] == more[1]


def test_a_fit_begun_anew_does_not_know_the_epoch_that_was_not_completed():
    x, y = make_data(n=96)
    trainer, twin = make_trainer(), make_trainer()
    trainer.fit(x, y, batch_size=POLICY, epochs=2, callbacks=[Stop(3)])
    assert trainer._noise is None
    twin.fit(x, y, batch_size=POLICY, epochs=2, callbacks=[Stop(3)])
    exact = noise_scale(trainer, x, y, 8, population=96).noise_scale
    policy = NoiseScale(rows=96)
    assert trainer.fit(x, y, batch_size=policy)["noise_scale"] == pytest.approx([exact], rel=1e-4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"size": 0}, "noise scale: size: expected an integer >= 1, got 0"),
        ({"epoch": -1}, "noise scale: epoch: expected an integer >= 0, got -1"),
        ({"trace": "much"}, "damaged"),
    ],
)
@pytest.mark.parametrize("place", ["attributes", "progress"])
def test_edited_files_are_refused(place, value, words, tmp_path):
    x, y = make_data(n=96)
    trainer = make_trainer()
    trainer.fit(x, y, batch_size=POLICY, epochs=3, callbacks=[Stop(60)])
    trainer.save(tmp_path / "t")
    tensors, metadata = storage.read(tmp_path / "t")
    coded = json.loads(metadata["trainer"])
    state = coded["attributes"]["_noise"] if place == "attributes" else coded["fit"]["progress"]["noise"]
    state.update(value)
    metadata["trainer"] = json.dumps(coded)
    del metadata["crc32"]
    storage.write(tmp_path / "t", tensors, {**metadata, "crc32": storage.checksum(tensors, metadata)})
    with pytest.raises(fb.CheckpointError, match=words):
        fb.Trainer.load(tmp_path / "t")


def test_a_state_comes_back():
    assert as_state(None) is None
    state = follow(NoiseScale(), None, 3, (100.0, -1.0), 1)
    assert as_state(json.loads(json.dumps(state))) == state


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rules_for_rates():
    assert scale_lr(0.1, 256, 8192) == pytest.approx(3.2)  # Goyal et al. 2017
    assert scale_lr(0.1, 256, 8192, "sqrt") == pytest.approx(0.1 * math.sqrt(32))
    gain = scale_lr(1.0, 250, 4000, "adascale", 1000)
    assert gain == pytest.approx(16 * 1250 / 5000)
    best = {batch: 1 / (1 + 1000 / batch) for batch in (250, 1000, 4000)}  # McCandlish et al. 2018, eq. 2.6
    assert gain == pytest.approx(best[4000] / best[250])
    steps = {batch: 1 + 1000 / batch for batch in best}
    assert (steps[250], steps[1000], steps[4000]) == (5, 2, 1.25)
    assert scale_lr(1.0, 250, 1000, "adascale", 1000) == pytest.approx(steps[250] / steps[1000])
    # AdaScale's r of S workers with sigma^2 = tr Sigma / B0 and mu^2 = |G|^2
    sigma, mu, workers = 84.0 / 32, 4.0, 8
    assert scale_lr(1.0, 32, 256, "adascale", 84 / 4) == pytest.approx((sigma + mu) / (sigma / workers + mu))
    assert scale_lr(0.3, 32, 256, "adascale", 0) == pytest.approx(0.3)
    assert scale_lr(0.3, 32, 256, "adascale", math.inf) == pytest.approx(2.4)
    assert scale_lr(0.3, 256, 32, rule="adascale", noise_scale=math.inf) == pytest.approx(0.3 / 8)
    found = NoiseEstimate(1000.0, 900.0, 1100.0, 0.95, 1000.0, 1.0, 10, 1)
    assert scale_lr(1.0, 250, 4000, "adascale", found) == gain


@pytest.mark.parametrize("rule", ["linear", "sqrt", "adascale"])
@pytest.mark.parametrize("size", [1, 32, 1000])
def test_rates_there_and_back(rule, size):
    assert scale_lr(0.1, 32, 32, rule, 100) == 0.1
    assert scale_lr(scale_lr(0.1, 32, size, rule, 100), size, 32, rule, 100) == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "lineer"}, "did you mean 'linear'"),
        ({"rule": "adascale"}, "expected the noise scale, noise_scale=, got None"),
        ({"rule": "adascale", "noise_scale": -1}, "noise_scale: expected a number >= 0 or a NoiseEstimate, got -1"),
        ({"noise_scale": "big"}, "noise_scale: expected a number >= 0"),
        ({"old_batch": 0}, "old_batch: expected an integer >= 1, got 0"),
        ({"new_batch": 1.5}, "new_batch: expected an integer >= 1, got 1.5"),
        ({"lr": -1}, "lr: expected a finite number >= 0, got -1"),
    ],
)
def test_scale_lr_refuses(arguments, words):
    with pytest.raises(fb.ArgumentError, match=words):
        scale_lr(**{"lr": 0.1, "old_batch": 32, "new_batch": 64, **arguments})


def test_parameters_are_not_touched_by_a_measurement():
    x, y = make_data(n=96)
    trainer = make_trainer()
    before = trainer.model.parameters.copy()
    noise_scale(trainer, x, y, 8)
    assert_same_bits(trainer.model.parameters, before)
