"""The trainer: fits, steps, gradients, evaluation, callbacks, history, every kind of array."""

from __future__ import annotations

import copy
import io
import sys

import numpy as np
import pytest
from helpers import (
    BACKENDS,
    INPUTS,
    OUTPUTS,
    Recorder,
    assert_same_bits,
    assert_same_trainer,
    difference,
    make_data,
    make_trainer,
    same_bits,
)
from tiers import thin

import fastbatch as fb
from fastbatch import ops
from fastbatch.data.orders import epoch_order
from fastbatch.data.splits import validation_split
from fastbatch.training import fit as fit_module

backends = pytest.mark.parametrize("backend", BACKENDS)
LOSSES = sorted(ops.LOSSES)
U = 2.0**-24  # unit roundoff of float32


# -- fit -----------------------------------------------------------------------------------------------------------


@backends
def test_fit_learns_a_function_and_generalises(backend):
    x, y = make_data("cross_entropy", 600)
    trainer = make_trainer("cross_entropy", fb.Adam(lr=1e-2), backend=backend)
    before = trainer.evaluate(x[400:], y[400:])
    trainer.fit(x[:400], y[:400], batch_size=16, epochs=12)
    after = trainer.evaluate(x[400:], y[400:])
    assert after["loss"] < 0.4 * before["loss"]
    assert after["accuracy"] > 0.9


@thin(2, "backend", "optimizer")
@backends
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", sorted(ops.OPTIMIZERS))
def test_every_loss_and_optimizer_by_name_reduces_the_loss(backend, loss, optimizer):
    x, y = make_data(loss, 64)
    trainer = make_trainer(loss, optimizer, backend=backend)
    losses = trainer.fit(x, y, batch_size=8, epochs=10)["loss"]
    assert losses[-1] < losses[0]
    assert trainer.loss == ops.LOSSES[loss]()
    assert trainer.optimizer == ops.OPTIMIZERS[optimizer]()


@backends
@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_every_activation_by_name_learns(backend, activation):
    x, y = make_data("mse", 64)
    trainer = make_trainer("mse", fb.Adam(lr=1e-2), activation=activation, backend=backend)
    losses = trainer.fit(x, y, batch_size=8, epochs=10)["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_names_of_optimizers_are_free_of_case_and_none_is_adam():
    assert make_trainer("mse", "AdamW").optimizer == fb.AdamW()
    assert make_trainer("mse", None).optimizer == fb.Adam(lr=1e-3)


@pytest.mark.parametrize(("synonym", "name"), sorted(ops.activations.SYNONYMS.items()))
def test_synonyms_of_activations_are_the_same_network(synonym, name):
    x, y = make_data()
    a, b = (make_trainer(activation=each) for each in (synonym, name))
    a.fit(x, y), b.fit(x, y)
    assert_same_trainer(a, b)


def test_one_description_serves_many_trainers():
    x, y = make_data()
    optimizer, loss = fb.Adam(lr=1e-2), fb.losses.MSE()
    first = make_trainer(loss, optimizer)
    first.fit(x, y, epochs=3)
    second, fresh = make_trainer(loss, optimizer), make_trainer("mse", fb.Adam(lr=1e-2))
    second.fit(x, y), fresh.fit(x, y)
    assert_same_trainer(second, fresh)


@backends
def test_history_holds_one_entry_per_epoch(backend):
    x, y = make_data("cross_entropy")
    trainer = make_trainer("cross_entropy", fb.SGD(lr=0.05), metrics=["accuracy"], backend=backend)
    history = trainer.fit(x, y, batch_size=16, epochs=3, validation_data=(x[:10], y[:10]))
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "batch_size", "time"}
    assert all(len(values) == 3 for values in history.values())
    assert history["lr"] == [0.05] * 3
    assert history["batch_size"] == [16] * 3
    assert all(seconds > 0 for seconds in history["time"])
    assert trainer.history is history
    assert trainer.epochs == 3
    assert trainer.steps == 3 * 5
    evaluated = trainer.evaluate(x[:10], y[:10])
    assert (history["val_loss"][-1], history["val_accuracy"][-1]) == (evaluated["loss"], evaluated["accuracy"])
    assert trainer.fit(x, y)["loss"] != history["loss"]
    assert len(trainer.history["loss"]) == 1


@backends
def test_history_loss_is_the_weighted_mean_of_the_losses_before_each_update(backend):
    x, y = make_data(n=70)
    weight = np.random.default_rng(1).uniform(0, 2, 70)
    trainer = make_trainer("mse", "sgd", backend=backend)
    twin = copy.deepcopy(trainer)
    history = trainer.fit(x, y, batch_size=16, sample_weight=weight, shuffle=False)
    rows = [slice(start, start + 16) for start in range(0, 70, 16)]
    losses = [twin.step(x[r], y[r], weight[r]) for r in rows]
    expected = np.average(losses, weights=[weight[r].sum() for r in rows])
    assert history["loss"] == [pytest.approx(expected, rel=1e-12)]
    assert_same_trainer_but_epochs(trainer, twin)


def assert_same_trainer_but_epochs(got, expected):
    """Steps made by hand count no epochs."""
    expected.epochs = got.epochs
    assert_same_trainer(got, expected)


def test_zero_epochs_is_a_fit_of_nothing():
    x, y = make_data()
    trainer = make_trainer()
    twin = copy.deepcopy(trainer)
    assert trainer.fit(x, y, epochs=0) == {}
    assert_same_trainer(trainer, twin)


# -- the same bits -------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", fb.SGD(lr=0.01, momentum=0.9, nesterov=True)], ids=repr)
def test_two_fits_continue_each_other(backend, optimizer):
    x, y = make_data("cross_entropy")
    once, twice = (make_trainer("cross_entropy", optimizer, dropout=0.3, backend=backend) for _ in range(2))
    whole = once.fit(x, y, batch_size=16, epochs=4)
    parts = [twice.fit(x, y, batch_size=16, epochs=2) for _ in range(2)]
    assert_same_trainer(twice, once)
    assert parts[0]["loss"] + parts[1]["loss"] == whole["loss"]


@backends
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_steps_over_the_same_rows_are_the_fit(backend, loss, weighted):
    x, y = make_data(loss, 53)
    weight = np.random.default_rng(1).uniform(0, 2, 53) if weighted else None
    fitted, stepped = (make_trainer(loss, dropout=0.25, seed=3, backend=backend) for _ in range(2))
    fitted.fit(x, y, batch_size=16, epochs=2, sample_weight=weight)
    for epoch in range(2):
        order = epoch_order(53, 3, epoch, True, backend)
        for start in range(0, 53, 16):
            rows = order[start : start + 16]
            stepped.step(x[rows], y[rows], None if weight is None else weight[rows])
    assert_same_trainer_but_epochs(fitted, stepped)


@thin(2, "batch")  # what threads share does not know the loss
@pytest.mark.parametrize("batch", [1, 7, 64, 300])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_and_two_threads_give_the_same_bits(loss, batch):
    x, y = make_data(loss, 300, inputs=33, outputs=9)
    weight = np.random.default_rng(1).uniform(0, 2, 300)
    results = []
    for threads in (1, 2):
        with fb.set_num_threads(threads, exact=True):
            trainer = make_trainer(loss, sizes=(33, 70, 41, 9), activation="gelu", dropout=0.2)
            history = trainer.fit(
                x, y, batch_size=batch, epochs=2, sample_weight=weight, validation_data=(x[:50], y[:50])
            )
            if trainer.backend == "c":
                assert trainer.threads_used == threads
            results.append((trainer, history, trainer.predict(x), trainer.gradients(x, y, weight)))
    (a, history_a, z_a, (loss_a, g_a)), (b, history_b, z_b, (loss_b, g_b)) = results
    assert_same_trainer(a, b)
    assert_same_bits(z_a, z_b)
    assert_same_bits(g_a, g_b)
    assert loss_a == loss_b
    assert history_a["loss"] == history_b["loss"]
    assert history_a["val_loss"] == history_b["val_loss"]


@backends
def test_the_seed_decides_shuffles_and_dropout(backend):
    x, y = make_data()

    def parameters(**options):
        model = fb.MLP([INPUTS, 16, OUTPUTS], dropout=0.5 if options.pop("dropout", False) else 0.0)
        trainer = fb.Trainer(model, "mse", backend=backend, seed=options.pop("seed"))
        trainer.fit(x, y, batch_size=16, **options)
        return model.parameters

    assert_same_bits(parameters(seed=1, dropout=True), parameters(seed=1, dropout=True))
    assert not same_bits(parameters(seed=1), parameters(seed=2))
    assert not same_bits(
        parameters(seed=1, shuffle=False, dropout=True), parameters(seed=2, shuffle=False, dropout=True)
    )
    assert_same_bits(parameters(seed=1, shuffle=False), parameters(seed=2, shuffle=False))


def test_every_epoch_has_its_own_order():
    orders = [epoch_order(50, 0, epoch, True, "reference").tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


# -- batches -------------------------------------------------------------------------------------------------------


@backends
def test_full_and_larger_than_the_data_are_all_rows(backend):
    x, y = make_data(n=41)
    trainers = {}
    for batch in (41, "full", 1000, np.int64(41)):
        trainers[batch] = make_trainer(backend=backend)
        history = trainers[batch].fit(x, y, batch_size=batch, epochs=3)
        assert trainers[batch].steps == 3
        assert history["batch_size"] == [41] * 3
    for trainer in trainers.values():
        assert_same_trainer(trainer, trainers[41])


@backends
@pytest.mark.parametrize(("batch", "steps"), [(1, 41), (7, 6), (20, 3), (40, 2), (41, 1)])
def test_the_last_batch_takes_what_is_left(backend, batch, steps):
    x, y = make_data(n=41)
    trainer = make_trainer(backend=backend)
    trainer.fit(x, y, batch_size=batch)
    assert trainer.steps == steps


@backends
@pytest.mark.parametrize("shuffle", [True, False])
def test_drop_last_leaves_out_the_rest_of_the_order(backend, shuffle):
    x, y = make_data("cross_entropy", 41)
    dropped, by_hand = (make_trainer("cross_entropy", metrics="accuracy", backend=backend) for _ in range(2))
    history = dropped.fit(x, y, batch_size=20, shuffle=shuffle, drop_last=True)
    assert dropped.steps == 2
    order = epoch_order(41, 0, 0, shuffle, backend)
    rows = (np.arange(41) if order is None else order)[:40]
    expected = by_hand.fit(x[rows], y[rows], batch_size=20, shuffle=False)
    assert_same_trainer(dropped, by_hand)
    assert history["loss"] == expected["loss"]
    assert history["accuracy"] == expected["accuracy"]


@backends
def test_without_shuffle_rows_come_as_they_lie(backend):
    x, y = make_data(n=50)
    fitted, stepped = make_trainer(backend=backend), make_trainer(backend=backend)
    fitted.fit(x, y, batch_size=16, epochs=2, shuffle=False)
    for _ in range(2):
        for start in range(0, 50, 16):
            stepped.step(x[start : start + 16], y[start : start + 16])
    assert_same_trainer_but_epochs(fitted, stepped)


# -- validation ----------------------------------------------------------------------------------------------------


@backends
def test_validation_changes_no_training(backend):
    x, y = make_data("cross_entropy", 90)
    plain, watched = (make_trainer("cross_entropy", dropout=0.3, backend=backend) for _ in range(2))
    plain.fit(x[:60], y[:60], epochs=3)
    history = watched.fit(x[:60], y[:60], epochs=3, validation_data=(x[60:], y[60:]))
    assert_same_trainer(watched, plain)
    assert history["val_loss"][-1] == plain.evaluate(x[60:], y[60:])["loss"]


def test_validation_data_may_carry_weights():
    x, y = make_data()
    weight = np.r_[np.zeros(60), np.ones(10)]
    trainer = make_trainer()
    history = trainer.fit(x, y, validation_data=(x, y, weight))
    assert history["val_loss"] == [pytest.approx(trainer.evaluate(x[60:], y[60:])["loss"], rel=1e-6)]


@backends
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_validation_split_is_the_fit_of_one_part_watching_the_other(backend, loss):
    x, y = make_data(loss, 90)
    split, by_hand = make_trainer(loss, seed=4, backend=backend), make_trainer(loss, seed=4, backend=backend)
    history = split.fit(x, y, batch_size=16, epochs=3, validation_split=0.3)
    training, held_out = validation_split(y, 0.3, 4)
    expected = by_hand.fit(
        x[training], y[training], batch_size=16, epochs=3, validation_data=(x[held_out], y[held_out])
    )
    assert_same_trainer(split, by_hand)
    assert history["loss"] == expected["loss"]
    assert history["val_loss"] == expected["val_loss"]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_validation_split_is_random_disjoint_and_complete(share):
    values = np.zeros((200, 1))
    training, held_out = validation_split(values, share, 0)
    assert len(held_out) == round(200 * share)
    assert sorted([*training, *held_out]) == list(range(200))
    again, other = validation_split(values, share, 0)[1], validation_split(values, share, 1)[1]
    assert held_out.tolist() == again.tolist()
    assert held_out.tolist() != other.tolist()
    # half of the held-out rows come from either half of the data, within 4.5 sigma of the hypergeometric law
    in_front = np.count_nonzero(held_out < 100)
    assert abs(in_front - len(held_out) / 2) <= 4.5 * np.sqrt(200 * share * (1 - share) / 4) + 1


@pytest.mark.parametrize("share", [0.1, 0.2, 0.37, 0.5])
def test_validation_split_keeps_the_proportions_of_the_classes(share):
    y = np.repeat([0, 1, 2, 3], [300, 100, 40, 10])
    _, held_out = validation_split(np.random.default_rng(0).permutation(y), share, 0)
    labels = np.random.default_rng(0).permutation(y)[held_out]
    counts = np.bincount(labels, minlength=4)
    assert np.abs(counts - share * np.array([300, 100, 40, 10])).max() <= 1


def test_a_second_fit_holds_out_the_same_rows():
    x, y = make_data(n=60)
    marked = np.where(np.isin(np.arange(60), validation_split(y, 0.25, 0)[1])[:, None], np.float32(0), x)
    # held-out rows are zero in `marked`: were one of them trained on, the two trainers would part
    a, b = make_trainer(), make_trainer()
    for _ in range(3):
        a.fit(x, y, validation_split=0.25), b.fit(marked, y, validation_split=0.25)
    assert_same_trainer(a, b)


def test_validation_split_takes_the_sample_weights_along():
    x, y = make_data(n=60)
    weight = np.random.default_rng(2).uniform(0.1, 2, 60)
    training, held_out = validation_split(y, 0.25, 0)
    split, by_hand = make_trainer(), make_trainer()
    history = split.fit(x, y, validation_split=0.25, sample_weight=weight)
    validation = x[held_out], y[held_out], weight[held_out]
    expected = by_hand.fit(x[training], y[training], sample_weight=weight[training], validation_data=validation)
    assert_same_trainer(split, by_hand)
    assert history["val_loss"] == expected["val_loss"]


def test_class_weight_weighs_the_validation_rows_too():
    x, y = make_data("cross_entropy", 60)
    training, held_out = validation_split(y, 0.25, 0)
    split, by_hand = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    table = {0: 5.0, 1: 0.1}
    weight = np.array([table.get(label, 1.0) for label in y])
    history = split.fit(x, y, validation_split=0.25, class_weight=table)
    validation = x[held_out], y[held_out], weight[held_out]
    expected = by_hand.fit(x[training], y[training], sample_weight=weight[training], validation_data=validation)
    assert_same_trainer(split, by_hand)
    assert history["val_loss"] == expected["val_loss"]
    given = make_trainer("cross_entropy")
    given.fit(x[training], y[training], class_weight=table, validation_data=validation[:2])
    assert given.history["val_loss"] == expected["val_loss"]


def test_balanced_class_weight_counts_the_training_rows():
    x, y = make_data("cross_entropy", 60)
    training, _ = validation_split(y, 0.25, 0)
    counts = np.bincount(y[training])
    weight = (len(training) / (np.count_nonzero(counts) * counts))[y]
    split, by_hand = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    split.fit(x, y, validation_split=0.25, class_weight="balanced")
    by_hand.fit(x[training], y[training], sample_weight=weight[training])
    assert_same_trainer(split, by_hand)


# -- weights -------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_two_is_the_row_twice(backend, loss):
    x, y = make_data(loss, 12)
    trainer = make_trainer(loss, backend=backend)
    twice = np.r_[np.arange(12), [3, 7]]
    weight = np.bincount(twice).astype(float)
    value, gradient = trainer.gradients(x, y, weight)
    expected_value, expected = trainer.gradients(x[twice], y[twice])
    assert value == pytest.approx(expected_value, rel=1e-6)
    assert difference(gradient, expected) < 100 * U


@backends
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_zero_is_not_there(backend, loss):
    x, y = make_data(loss, 40)
    weight = np.r_[np.ones(30), np.zeros(10)]
    with_zeros, without = make_trainer(loss, backend=backend), make_trainer(loss, backend=backend)
    a = [with_zeros.step(x, y, weight) for _ in range(5)]
    b = [without.step(x[:30], y[:30]) for _ in range(5)]
    assert a == pytest.approx(b, rel=1e-6)
    assert difference(with_zeros.model.parameters, without.model.parameters) < 1e-5


@backends
@pytest.mark.parametrize("loss", LOSSES)
def test_total_weight_zero_is_a_counted_update_of_nothing(backend, loss):
    x, y = make_data(loss, 20)
    trainer = make_trainer(loss, "sgd", backend=backend)
    before = trainer.model.parameters.copy()
    assert trainer.step(x, y, np.zeros(20)) == 0
    value, gradient = trainer.gradients(x, y, np.zeros(20))
    assert value == 0
    assert not gradient.any()
    assert trainer.fit(x, y, batch_size=5, sample_weight=np.zeros(20))["loss"] == [0]
    assert_same_bits(trainer.model.parameters, before)
    assert trainer.steps == 5


@backends
def test_class_weight_is_a_row_weight(backend):
    x, y = make_data("cross_entropy", 60)
    table = np.array([1.0, 3.0, 0.5, 1.0])
    by_class, by_row, both, product = (make_trainer("cross_entropy", backend=backend) for _ in range(4))
    by_class.fit(x, y, class_weight={1: 3.0, 2: 0.5})
    by_row.fit(x, y, sample_weight=table[y])
    assert_same_trainer(by_class, by_row)
    rows = np.random.default_rng(0).uniform(0.5, 2, 60)
    both.fit(x, y, class_weight={1: 3.0, 2: 0.5}, sample_weight=rows)
    product.fit(x, y, sample_weight=table[y] * rows)
    assert_same_trainer(both, product)


def test_balanced_gives_every_class_the_same_total_weight():
    x, _ = make_data("cross_entropy", 60)
    y = np.repeat([0, 1, 3], [40, 15, 5])  # class 2 is absent
    balanced, by_hand = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    balanced.fit(x, y, class_weight="balanced")
    by_hand.fit(x, y, sample_weight=np.choose(y, [60 / (3 * 40), 60 / (3 * 15), 0, 60 / (3 * 5)]))
    assert_same_trainer(balanced, by_hand)


def test_balanced_on_one_bce_output():
    x, _ = make_data("bce", 60)
    y = np.repeat([0, 1], [45, 15])
    balanced, by_hand = (make_trainer("bce", sizes=(INPUTS, 8, 1)) for _ in range(2))
    balanced.fit(x, y, class_weight="balanced")
    by_hand.fit(x, y, sample_weight=np.choose(y, [60 / (2 * 45), 60 / (2 * 15)]))
    assert_same_trainer(balanced, by_hand)


@backends
def test_the_weight_of_cross_entropy_divides_as_torch_divides(backend):
    x, y = make_data("cross_entropy", 40)
    weight = (1.0, 2.0, 0.25, 3.0)
    trainer = make_trainer(fb.losses.CrossEntropy(weight=weight), backend=backend)
    z = trainer.predict(x).astype(np.float64)
    rows = np.log(np.exp(z).sum(axis=1)) - z[np.arange(40), y]
    expected = np.average(rows, weights=np.take(weight, y))
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.step(x, y) == pytest.approx(expected, rel=1e-5)


# -- gradients -----------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_changes_nothing(backend, loss):
    x, y = make_data(loss)
    trainer = make_trainer(loss, dropout=0.3, backend=backend)
    trainer.fit(x, y)
    twin = copy.deepcopy(trainer)
    first, again = trainer.gradients(x, y), trainer.gradients(x, y)
    assert first[0] == again[0]
    assert_same_bits(first[1], again[1])
    assert first[1].shape == trainer.model.parameters.shape
    assert_same_trainer(trainer, twin)


@backends
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_is_what_the_next_update_uses_dropout_included(backend, loss):
    x, y = make_data(loss)
    trainer = make_trainer(loss, fb.SGD(lr=1.0), dropout=0.4, backend=backend)
    trainer.fit(x, y)
    before = trainer.model.parameters.copy()
    value, gradient = trainer.gradients(x, y)
    assert trainer.step(x, y) == value
    # the fused update scales by 1/B inside p - lr * (g / B); gradients() rounds g / B once more
    assert np.all(np.abs(trainer.model.parameters - (before - gradient)) <= 4 * U * (np.abs(before) + np.abs(gradient)))
    assert not same_bits(trainer.gradients(x, y)[1], gradient)


@thin(2, "tiles", "order_of_sums")
@pytest.mark.parametrize("tiles", [1, 2, 3, 1000])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("threads", [1, 2])
def test_micro_batches_change_no_bit(loss, tiles, threads, order_of_sums):
    x, y = make_data(loss, 170)
    weight = np.random.default_rng(0).uniform(0, 2, 170)
    trainer = make_trainer(loss, dropout=0.3, activation="silu")
    if trainer.backend != "c":
        pytest.skip("the contract of bits is the c backend's; reference sums through BLAS")
    with fb.set_num_threads(threads, exact=True):
        whole = trainer.gradients(x, y, weight)
        parts = trainer.gradients(x, y, weight, micro_batch_size=tiles * trainer.tile_rows)
    assert_same_bits(parts[1], whole[1])
    assert parts[0] == pytest.approx(whole[0], rel=1e-14)


@pytest.mark.parametrize("size", [1, 32, 70])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_of_the_reference_agree_to_rounding(loss, size):
    x, y = make_data(loss)
    trainer = make_trainer(loss, dropout=0.3, dtype="float64", backend="reference")
    whole, parts = trainer.gradients(x, y), trainer.gradients(x, y, micro_batch_size=size)
    assert parts[0] == pytest.approx(whole[0], rel=1e-13)
    assert difference(parts[1], whole[1]) < 1e-13


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_against_central_differences(loss):
    x, y = make_data(loss, 20)
    trainer = make_trainer(loss, dtype="float64", dropout=0.3, backend="reference")
    weight = np.random.default_rng(0).uniform(0, 2, 20)
    value, gradient = trainer.gradients(x, y, weight)
    parameters, h = trainer.model.parameters, 1e-6
    for k in range(0, len(parameters), 7):
        at = parameters[k]
        ends = []
        for shift in (h, -h):
            parameters[k] = at + shift
            ends.append(trainer.gradients(x, y, weight)[0])
        parameters[k] = at
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(gradient[k], rel=1e-6, abs=1e-8)
    assert trainer.gradients(x, y, weight)[0] == value


# -- forward, backward, update -------------------------------------------------------------------------------------


def _mse_slope(z, y):
    return 2 * (z - y) / np.float32(z.size)


@backends
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", fb.SGD(lr=0.01, momentum=0.9)], ids=repr)
def test_forward_backward_update_is_the_step(backend, dropout, optimizer):
    # 32 rows of 4 outputs: every division is by a power of two, hence exact, and the bits must agree
    x, y = make_data(n=32)
    by_hand, stepped = (make_trainer("mse", optimizer, dropout=dropout, backend=backend) for _ in range(2))
    for _ in range(4):
        z = by_hand.forward(x)
        by_hand.backward(_mse_slope(z, y))
        by_hand.update()
        stepped.step(x, y)
    assert_same_trainer(by_hand, stepped)


@backends
def test_forward_backward_update_of_odd_sizes_is_the_step_to_rounding(backend):
    x, y = make_data(n=37, outputs=3)
    by_hand, stepped = (make_trainer("mse", "sgd", sizes=(INPUTS, 16, 3), backend=backend) for _ in range(2))
    for _ in range(5):
        by_hand.backward(_mse_slope(by_hand.forward(x), y))
        by_hand.update()
        stepped.step(x, y)
    assert by_hand.steps == stepped.steps == 5
    assert difference(by_hand.model.parameters, stepped.model.parameters) < 20 * U


@backends
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_backward_adds_until_update_as_one_logical_batch(backend, dropout):
    x, y = make_data(n=64)
    by_hand, stepped = (make_trainer("mse", "adam", dropout=dropout, backend=backend) for _ in range(2))
    for _ in range(3):
        for rows in (slice(0, 32), slice(32, 64)):
            z = by_hand.forward(x[rows])
            by_hand.backward(2 * (z - y[rows]) / np.float32(y.size))
        by_hand.update()
        stepped.step(x, y)
    if backend == "c":
        assert_same_trainer(by_hand, stepped)
    else:
        assert difference(by_hand.model.parameters, stepped.model.parameters) < 1e-5


@backends
def test_backward_uses_dz_as_given(backend):
    x, y = make_data(n=16)
    once, twice = (make_trainer("mse", fb.SGD(lr=0.125), backend=backend) for _ in range(2))
    before = once.model.parameters.copy()
    dz = _mse_slope(once.forward(x), y)
    once.backward(dz)
    once.update()
    twice.forward(x)
    twice.backward(2 * dz)
    twice.update()
    step = once.model.parameters - before
    assert difference(twice.model.parameters - before, 2 * step) < 1e-4
    assert step.any()


@backends
def test_forward_without_training_is_predict(backend):
    x, _ = make_data()
    trainer = make_trainer(dropout=0.5, backend=backend)
    assert_same_bits(trainer.forward(x, training=False), trainer.predict(x))
    assert not same_bits(trainer.forward(x), trainer.predict(x))
    assert_same_bits(trainer.forward(x), trainer.forward(x))


@backends
def test_backward_keeps_a_copy_of_what_forward_saw(backend):
    x, y = make_data(n=32)
    buffer = x.copy()
    refilled, kept = make_trainer(backend=backend), make_trainer(backend=backend)
    z = refilled.forward(buffer)
    buffer[:] = 7
    refilled.backward(_mse_slope(z, y))
    refilled.update()
    kept.backward(_mse_slope(kept.forward(x), y))
    kept.update()
    assert_same_trainer(refilled, kept)


@backends
def test_backward_and_update_out_of_turn_are_refused(backend):
    x, y = make_data(n=8)
    trainer = make_trainer(backend=backend)
    twin = copy.deepcopy(trainer)
    dz = _mse_slope(trainer.predict(x), y)
    with pytest.raises(fb.ArgumentError, match="forward"):
        trainer.backward(dz)
    with pytest.raises(fb.ArgumentError, match="backward"):
        trainer.update()
    for between in (
        lambda: trainer.forward(x, training=False),
        lambda: trainer.gradients(x, y),
        lambda: trainer.backward(dz),
    ):
        trainer.forward(x)
        between()
        with pytest.raises(fb.ArgumentError, match="forward"):
            trainer.backward(dz)
    trainer.update()  # of the one backward above
    twin.forward(x)
    twin.backward(dz)
    twin.update()
    assert_same_trainer(trainer, twin)
    with pytest.raises(fb.ArgumentError, match="backward"):
        trainer.update()


@backends
def test_backward_after_a_fit_in_between_is_refused(backend):
    x, y = make_data(n=8)
    trainer = make_trainer(backend=backend)
    dz = _mse_slope(trainer.forward(x), y)
    trainer.fit(x, y)
    twin = copy.deepcopy(trainer)
    with pytest.raises(fb.ArgumentError, match="forward"):
        trainer.backward(dz)
    assert_same_trainer(trainer, twin)


@backends
def test_backward_after_an_update_in_between_is_refused(backend):
    # what forward left belongs to weights and a dropout mask that are gone
    x, y = make_data(n=8)
    trainer = make_trainer(dropout=0.5, backend=backend)
    dz = _mse_slope(trainer.forward(x), y)
    trainer.backward(dz)
    trainer.forward(x)
    trainer.update()
    with pytest.raises(fb.ArgumentError, match="forward"):
        trainer.backward(dz)


# -- without training ----------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_evaluate_against_the_formulas(backend, weighted):
    x, labels = make_data("cross_entropy", 90)
    weight = np.random.default_rng(0).uniform(0, 3, 90) if weighted else None
    trainer = make_trainer("cross_entropy", dropout=0.5, backend=backend)
    z = trainer.predict(x).astype(np.float64)
    rows = np.log(np.exp(z).sum(axis=1)) - z[np.arange(90), labels]
    got = trainer.evaluate(x, labels, weight)
    assert got["loss"] == pytest.approx(np.average(rows, weights=weight), rel=1e-5)
    assert got["accuracy"] == pytest.approx(np.average(z.argmax(axis=1) == labels, weights=weight), rel=1e-12)
    assert 0 < got["accuracy"] < 1

    x, y = make_data("mse", 90)
    trainer = make_trainer("mse", metrics=("mse", "mae"), backend=backend)
    e = trainer.predict(x).astype(np.float64) - y
    got = trainer.evaluate(x, y, weight)
    assert set(got) == {"loss", "mse", "mae"}
    assert got["loss"] == pytest.approx(np.average((e * e).mean(axis=1), weights=weight), rel=1e-5)
    assert got["mse"] == pytest.approx(got["loss"], rel=1e-5)
    assert got["mae"] == pytest.approx(np.average(np.abs(e).mean(axis=1), weights=weight), rel=1e-5)

    x, y = make_data("bce", 90)
    trainer = make_trainer("bce", backend=backend)
    z = trainer.predict(x).astype(np.float64)
    rows = (np.logaddexp(0, z) - y * z).mean(axis=1)
    got = trainer.evaluate(x, y, weight)
    assert got["loss"] == pytest.approx(np.average(rows, weights=weight), rel=1e-5)
    assert got["accuracy"] == pytest.approx(np.average(((z > 0) == y).mean(axis=1), weights=weight), rel=1e-12)


@backends
def test_evaluate_changes_nothing_and_needs_no_training(backend):
    x, y = make_data("cross_entropy")
    trainer = make_trainer("cross_entropy", dropout=0.5, backend=backend)
    twin = copy.deepcopy(trainer)
    assert trainer.evaluate(x, y) == trainer.evaluate(x, y)
    assert_same_trainer(trainer, twin)


@backends
def test_evaluate_of_more_rows_than_a_block(backend):
    x, y = make_data("cross_entropy", 9001, inputs=2)
    trainer = make_trainer("cross_entropy", sizes=(2, 3, OUTPUTS), backend=backend)
    halves = [trainer.evaluate(x[part], y[part]) for part in (slice(0, 5000), slice(5000, 9001))]
    whole = trainer.evaluate(x, y)
    for name in ("loss", "accuracy"):
        expected = (5000 * halves[0][name] + 4001 * halves[1][name]) / 9001
        assert whole[name] == pytest.approx(expected, rel=1e-10)


@backends
def test_predict_of_no_rows(backend):
    trainer = make_trainer("cross_entropy", backend=backend)
    empty = np.empty((0, INPUTS), np.float32)
    assert trainer.predict(empty).shape == (0, OUTPUTS)
    assert trainer.model.predict(empty).shape == (0, OUTPUTS)
    trainer.fit(*make_data("cross_entropy"))
    assert trainer.model.predict_proba(empty).shape == (0, OUTPUTS)


@backends
def test_predict_is_the_formula(backend):
    x, _ = make_data()
    trainer = make_trainer(backend=backend)
    (w1, b1), (w2, b2) = ([p.astype(np.float64) for p in pair] for pair in trainer.model.weights)
    assert difference(trainer.predict(x), np.tanh(x @ w1 + b1) @ w2 + b2) < 30 * U


@pytest.mark.parametrize("size", [1, 2, 31, 1000])
def test_predict_in_blocks_changes_no_bit(size):
    x, _ = make_data(n=333, inputs=19)
    model = fb.MLP([19, 40, 7], activation="gelu")
    if fb.info()["backend"] != "c":
        pytest.skip("the contract of bits is the c backend's; reference sums through BLAS")
    whole = model.predict(x)
    assert_same_bits(model.predict(x, batch_size=size), whole)
    assert_same_bits(model.predict(x, validate=False), whole)
    assert_same_bits(np.concatenate([model.predict(row[None]) for row in x[:40]]), whole[:40])


def test_without_validation_only_what_needs_no_conversion():
    model = fb.MLP([3, 4, 2])
    good = np.ones((5, 3), np.float32)
    assert_same_bits(model.predict(good, validate=False), model.predict(good))
    assert model.predict(good[:0], validate=False).shape == (0, 2)
    unaligned = np.frombuffer(b"0" + good.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 3)
    for bad in (good[:, :2], good.T, np.asfortranarray(good), good[0], good[::2], unaligned):
        with pytest.raises(fb.ShapeError, match=r"X with validate=False: expected a C-contiguous float32 ndarray of"):
            model.predict(bad, validate=False)
    for bad in (good.astype(np.float64), good.astype(">f4"), good.tolist()):
        with pytest.raises(fb.DTypeError, match="X with validate=False"):
            model.predict(bad, validate=False)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_predict_proba_follows_the_loss(loss):
    x, y = make_data(loss)
    trainer = make_trainer(loss)
    trainer.step(x, y)
    z = trainer.predict(x).astype(np.float64)
    expected = 1 / (1 + np.exp(-z)) if loss == "bce" else np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(trainer.model.predict_proba(x), expected, rtol=1e-5)


def test_predict_proba_stays_finite_for_huge_logits():
    for loss in ("cross_entropy", "bce"):
        x, y = make_data(loss)
        trainer = make_trainer(loss)
        trainer.step(x, y)
        trainer.model.weights[-1][1][:] = [3e4, -3e4, 0, 0]
        got = trainer.model.predict_proba(x)
        assert np.isfinite(got).all()
        assert (got[:, 0] == 1).all()
        assert (got[:, 1] == 0).all()


@backends
def test_partial_fit_is_step_and_returns_the_trainer(backend):
    x, y = make_data("cross_entropy")
    weight = np.linspace(0, 1, len(x))
    partial, stepped = (make_trainer("cross_entropy", backend=backend) for _ in range(2))
    for _ in range(3):
        assert partial.partial_fit(x, y, weight) is partial
        stepped.step(x, y, weight)
    assert_same_trainer(partial, stepped)


# -- arrays of every kind ------------------------------------------------------------------------------------------


class _Array:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class _DLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _misaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)
    out = raw[1:].view(a.dtype).reshape(a.shape)
    out[...] = a
    assert not out.flags.aligned
    return out


def _field(a):
    record = np.zeros(a.shape, [("pad", np.int8), ("value", a.dtype)])
    record["value"] = a
    return record["value"]


def _memmap(a, folder):
    np.save(folder / "rows.npy", a)
    return np.load(folder / "rows.npy", mmap_mode="r")


_F4 = np.float32
# every one holds the zeros and ones that it is given, exactly
KINDS = {
    "float64": lambda a, _: a.astype(np.float64),
    "float16": lambda a, _: a.astype(np.float16),
    "longdouble": lambda a, _: a.astype(np.longdouble),
    "int64": lambda a, _: a.astype(np.int64),
    "int8": lambda a, _: a.astype(np.int8),
    "uint8": lambda a, _: a.astype(np.uint8),
    "uint64": lambda a, _: a.astype(np.uint64),
    "bool": lambda a, _: a.astype(bool),
    "big-endian": lambda a, _: a.astype(">f4"),
    "big-endian float64": lambda a, _: a.astype(">f8"),
    "F-ordered": lambda a, _: np.asfortranarray(a),
    "every other row": lambda a, _: np.repeat(a, 2, axis=0)[::2],
    "every other column": lambda a, _: np.repeat(a, 2, axis=-1)[..., ::2],
    "columns of a wider array": lambda a, _: np.concatenate([a, a + 1], axis=-1)[..., : a.shape[-1]],
    "rows upside down": lambda a, _: a[::-1].copy()[::-1],
    "columns back to front": lambda a, _: a[..., ::-1].copy()[..., ::-1],
    "misaligned": lambda a, _: _misaligned(a.astype(_F4)),
    "field of records": lambda a, _: _field(a.astype(_F4)),
    "read-only": lambda a, _: _read_only(a),
    "memmap": lambda a, folder: _memmap(a, folder),
    "list": lambda a, _: a.tolist(),
    "tuple": lambda a, _: tuple(a.tolist()),
    "__array__": lambda a, _: _Array(a),
    "__dlpack__": lambda a, _: _DLPack(a),
}
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def _zeros_and_ones(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(_F4)


@backends
@each_kind
def test_every_kind_of_x_trains_alike(backend, kind, tmp_path):
    x, y = _zeros_and_ones((40, INPUTS)), make_data("cross_entropy", 40)[1]
    plain, other = (make_trainer("cross_entropy", dropout=0.2, backend=backend) for _ in range(2))
    given = KINDS[kind](x, tmp_path)
    for trainer, rows in ((plain, x), (other, given)):
        trainer.fit(rows, y, batch_size=16, validation_data=(rows, y))
        trainer.fit(rows, y, batch_size=16, shuffle=False)
        trainer.step(rows, y)
    assert_same_trainer(other, plain)
    assert plain.history == {**other.history, "time": plain.history["time"]}
    assert plain.evaluate(x, y) == plain.evaluate(given, y)
    assert_same_bits(plain.predict(given), plain.predict(x))
    assert_same_bits(plain.model.predict(given), plain.model.predict(x))
    assert_same_bits(plain.gradients(given, y)[1], plain.gradients(x, y)[1])
    assert_same_bits(plain.forward(given), plain.forward(x))


@each_kind
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_every_kind_of_y_trains_alike(loss, kind, tmp_path):
    x, y = make_data(loss, 40)[0], _zeros_and_ones((40, OUTPUTS))
    plain, other = make_trainer(loss), make_trainer(loss)
    given = KINDS[kind](y, tmp_path)
    for trainer, targets in ((plain, y), (other, given)):
        trainer.fit(x, targets, batch_size=16)
        trainer.fit(x, targets, batch_size=16, shuffle=False)
        trainer.step(x, targets)
    assert_same_trainer(other, plain)


@each_kind
def test_every_kind_of_labels_trains_alike(kind, tmp_path):
    x, y = make_data("cross_entropy", 40)[0], _zeros_and_ones(40)
    plain, other = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    plain.fit(x, y.astype(np.int64), batch_size=16)
    other.fit(x, KINDS[kind](y, tmp_path), batch_size=16)
    assert_same_trainer(other, plain)


@each_kind
def test_every_kind_of_sample_weight_trains_alike(kind, tmp_path):
    x, y = make_data("mse", 40)
    weight = _zeros_and_ones(40)
    plain, other = make_trainer(), make_trainer()
    plain.fit(x, y, batch_size=16, sample_weight=weight)
    other.fit(x, y, batch_size=16, sample_weight=KINDS[kind](weight, tmp_path))
    assert_same_trainer(other, plain)


@backends
@pytest.mark.parametrize(
    "shape", [lambda y: y[:, None], lambda y: np.eye(OUTPUTS)[y], lambda y: np.eye(OUTPUTS, dtype=int)[y]]
)
def test_shapes_of_labels(backend, shape):
    x, y = make_data("cross_entropy", 40)
    plain, other = (make_trainer("cross_entropy", metrics="accuracy", backend=backend) for _ in range(2))
    a, b = plain.fit(x, y), other.fit(x, shape(y))
    assert_same_trainer(other, plain)
    assert a["accuracy"] == b["accuracy"]


@backends
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_one_output_takes_flat_and_column_targets(backend, loss):
    x, y = make_data(loss, 40, outputs=1)
    flat, column = (make_trainer(loss, sizes=(INPUTS, 8, 1), backend=backend) for _ in range(2))
    flat.fit(x, y.ravel()), column.fit(x, y)
    assert_same_trainer(flat, column)


@pytest.mark.torch
def test_torch_tensors_are_arrays():
    torch = pytest.importorskip("torch", reason="torch tensors as input need torch")
    x, y = make_data("cross_entropy", 40)
    plain, other = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    plain.fit(x, y)
    other.fit(torch.from_numpy(x), torch.from_numpy(y))
    assert_same_trainer(other, plain)
    assert_same_bits(other.predict(_DLPack(torch.from_numpy(x))), plain.predict(x))


def test_inputs_are_never_written_to():
    x, y = make_data()
    weight = np.linspace(0, 1, len(x))
    kept = x.copy(), y.copy(), weight.copy()
    trainer = make_trainer(dropout=0.5)
    trainer.fit(x, y, sample_weight=weight, epochs=2, validation_split=0.2)
    trainer.step(x, y, weight)
    trainer.gradients(x, y, weight, micro_batch_size=8)
    trainer.forward(x)
    dz = np.ones_like(y)
    trainer.backward(dz)
    trainer.update()
    trainer.evaluate(x, y, weight)
    for array, copied in zip((x, y, weight, dz), (*kept, np.ones_like(y))):
        assert_same_bits(array, copied)


# -- metrics -------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize(
    ("loss", "names"), [("cross_entropy", ["accuracy"]), ("bce", "accuracy"), ("mse", ("mae", "mse"))]
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_metrics_of_training_are_those_of_evaluate_when_nothing_moves(backend, loss, names, weighted):
    x, y = make_data(loss, 50)
    weight = np.random.default_rng(0).uniform(0, 2, 50) if weighted else None
    trainer = make_trainer(loss, fb.SGD(lr=0.0), metrics=names, backend=backend)
    history = trainer.fit(x, y, batch_size=16, sample_weight=weight)
    evaluated = trainer.evaluate(x, y, weight)
    for name in ("loss", *([names] if isinstance(names, str) else names)):
        assert history[name] == [pytest.approx(evaluated[name], rel=1e-6)]


def test_metrics_of_training_are_those_before_each_update():
    x, y = make_data("mse", 48)
    trainer, twin = (make_trainer("mse", fb.SGD(lr=0.1), metrics="mse") for _ in range(2))
    history = trainer.fit(x, y, batch_size=16, epochs=2)
    assert history["mse"] == pytest.approx(history["loss"], rel=1e-6)
    twin.fit(x, y, batch_size=16, epochs=2)
    assert twin.evaluate(x, y)["mse"] < history["mse"][-1]


# -- callbacks -----------------------------------------------------------------------------------------------------


@backends
def test_hooks_come_in_order(backend):
    x, y = make_data(n=40)
    calls = []
    trainer = make_trainer(backend=backend)
    history = trainer.fit(x, y, batch_size=16, epochs=2, callbacks=[Recorder(calls, "a."), Recorder(calls, "b.")])
    assert [call[0] for call in calls[:4]] == ["a.train_begin", "b.train_begin", "a.epoch_begin", "b.epoch_begin"]
    mine = [call for call in calls if call[0].startswith("a.")]
    hooks = [call[0][2:] for call in mine]
    compressed = [hook for k, hook in enumerate(hooks) if hook != "chunk_end" or hooks[k - 1] != "chunk_end"]
    epoch = ["epoch_begin", "chunk_end", "epoch_end"]
    assert compressed == ["train_begin", *epoch, *epoch, "train_end"]
    begins = [call for call in mine if call[0] == "a.epoch_begin"]
    assert begins == [("a.epoch_begin", k, {"epochs": 2, "steps": 3, "batch_size": 16}) for k in range(2)]
    ends = [call for call in mine if call[0] == "a.epoch_end"]
    assert [call[1] for call in ends] == [0, 1]
    assert [call[2]["loss"] for call in ends] == history["loss"]
    chunks = [call for call in mine if call[0] == "a.chunk_end"]
    assert chunks[-1][1] == 3
    assert chunks[-1][2]["loss"] == history["loss"][-1]


@backends
def test_chunks_end_between_two_steps(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=400)
    sliced, whole = make_trainer(backend=backend), make_trainer(backend=backend)
    recorder = Recorder()
    history = sliced.fit(x, y, batch_size=1, callbacks=recorder)
    monkeypatch.undo()
    assert whole.fit(x, y, batch_size=1)["loss"] == history["loss"]
    assert_same_trainer(sliced, whole)
    steps = [call[1] for call in recorder.calls if call[0] == "chunk_end"]
    assert len(steps) >= 5
    assert steps == sorted(set(steps))
    assert steps[-1] == 400


@backends
def test_stop_training_after_an_epoch(backend):
    x, y = make_data(n=40)
    trainer = make_trainer(backend=backend)
    stop = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(trainer, "stop_training", epoch == 1))
    history = trainer.fit(x, y, batch_size=16, epochs=10, callbacks=[stop])
    assert len(history["loss"]) == 2
    assert (trainer.epochs, trainer.steps) == (2, 6)
    assert len(trainer.fit(x, y, epochs=3)["loss"]) == 3


@backends
def test_stop_training_in_the_middle_of_an_epoch(backend, monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    x, y = make_data(n=400)
    trainer, replay = make_trainer(backend=backend), make_trainer(backend=backend)
    recorder = Recorder()
    stop = fb.LambdaCallback(on_chunk_end=lambda steps, logs: setattr(trainer, "stop_training", True))
    history = trainer.fit(x, y, batch_size=1, epochs=2, callbacks=[stop, recorder])
    assert history == {}
    assert 0 < trainer.steps < 400
    assert trainer.epochs == 0
    assert [call[0] for call in recorder.calls] == ["train_begin", "epoch_begin", "chunk_end", "train_end"]
    for row in epoch_order(400, 0, 0, True, backend)[: trainer.steps]:
        replay.step(x[row][None], y[row][None])
    assert_same_trainer(trainer, replay)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_chunk_end", "on_epoch_end"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_train_end_is_called_after_an_exception(hook, error):
    def fail(*_):
        raise error("from the callback")

    x, y = make_data()
    trainer, recorder = make_trainer(), Recorder()
    with pytest.raises(error, match="from the callback"):
        trainer.fit(x, y, epochs=2, callbacks=[recorder, fb.LambdaCallback(**{hook: fail})])
    assert recorder.calls[-1] == ("train_end",)
    assert [call[0] for call in recorder.calls].count("train_end") == 1
    assert len(trainer.fit(x, y)["loss"]) == 1


def test_history_of_an_interrupted_fit_is_kept():
    def fail(epoch, logs):
        if epoch == 2:
            raise RuntimeError

    x, y = make_data()
    trainer, whole = make_trainer(), make_trainer()
    with pytest.raises(RuntimeError):
        trainer.fit(x, y, epochs=9, callbacks=[fb.LambdaCallback(on_epoch_begin=fail)])
    assert trainer.history["loss"] == whole.fit(x, y, epochs=2)["loss"]
    assert_same_trainer(trainer, whole)


def test_callbacks_see_the_trainer_and_may_use_it():
    x, y = make_data("cross_entropy")
    seen = []

    class Look(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append((self.trainer.steps, self.trainer.evaluate(x, y)["loss"], self.trainer.predict(x).shape))

    trainer, plain = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    trainer.fit(x, y, batch_size=35, epochs=2, callbacks=Look())
    plain.fit(x, y, batch_size=35, epochs=2)
    assert_same_trainer(trainer, plain)
    assert [steps for steps, *_ in seen] == [2, 4]
    assert seen[1][1] == plain.evaluate(x, y)["loss"]


# -- progress ------------------------------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _fit_and_read(capsys, monkeypatch, *, tqdm, terminal=False, **options):
    """What a fit of three epochs writes to stdout and stderr."""
    if tqdm:
        pytest.importorskip("tqdm", reason="the bar with tqdm needs tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    screen = _Terminal()
    if terminal:
        monkeypatch.setattr(sys, "stderr", screen)
    trainer = make_trainer("cross_entropy", metrics=["accuracy"])
    trainer.fit(*make_data("cross_entropy"), epochs=3, batch_size=10, validation_split=0.2, **options)
    captured = capsys.readouterr()
    return captured.out, screen.getvalue() if terminal else captured.err


tqdm_or_not = pytest.mark.parametrize("tqdm", [True, False], ids=["tqdm", "plain"])


@tqdm_or_not
def test_a_bar_and_a_line_per_epoch(capsys, monkeypatch, tqdm):
    out, err = _fit_and_read(capsys, monkeypatch, tqdm=tqdm, verbose=1)
    lines = [line for line in out.replace("\r", "\n").split("\n") if "epoch" in line]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    for name in ("loss ", "accuracy ", "val_loss ", "val_accuracy "):
        assert all(name in line for line in lines)
    assert "epoch 3/3 loss" in err
    assert "18/18" in err


@tqdm_or_not
def test_lines_alone(capsys, monkeypatch, tqdm):
    out, err = _fit_and_read(capsys, monkeypatch, tqdm=tqdm, verbose=2)
    assert [line.split()[1] for line in out.splitlines()] == ["1/3", "2/3", "3/3"]
    assert err == ""


@tqdm_or_not
@pytest.mark.parametrize("verbose", [0, False, "auto"])
def test_silence(capsys, monkeypatch, tqdm, verbose):
    assert _fit_and_read(capsys, monkeypatch, tqdm=tqdm, verbose=verbose) == ("", "")


@tqdm_or_not
def test_auto_draws_on_a_terminal(capsys, monkeypatch, tqdm):
    out, err = _fit_and_read(capsys, monkeypatch, tqdm=tqdm, terminal=True)
    assert out == ""
    assert "epoch 3/3 loss" in err
    assert err.endswith("\n")


@tqdm_or_not
def test_the_progress_bar_as_a_callback_serves_several_fits(capsys, monkeypatch, tqdm):
    if not tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y = make_data()
    bar, trainer = fb.ProgressBar(lines=True), make_trainer()
    for _ in range(2):
        trainer.fit(x, y, epochs=2, verbose=0, callbacks=[bar])
    captured = capsys.readouterr()
    assert captured.out.count("epoch 2/2") == 2
    assert captured.err.count("epoch 2/2 loss") >= 2


@tqdm_or_not
def test_a_bar_closes_when_the_fit_breaks(capsys, monkeypatch, tqdm):
    def fail(steps, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit_and_read(capsys, monkeypatch, tqdm=tqdm, verbose=1, callbacks=[fb.LambdaCallback(on_chunk_end=fail)])
    out, _ = _fit_and_read(capsys, monkeypatch, tqdm=tqdm, verbose=2)
    assert out.count("epoch") == 3


def test_the_bar_is_throttled_by_time(monkeypatch):
    monkeypatch.setattr(fit_module, "CHUNK", 0.0)
    monkeypatch.setattr(fb.ProgressBar, "INTERVAL", 3600.0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    recorder = Recorder()
    make_trainer(backend="reference").fit(*make_data(), batch_size=1, callbacks=recorder)
    assert len([call for call in recorder.calls if call[0] == "chunk_end"]) == 70
    # the first, because nothing was drawn yet, and the last, because it is the last
    assert screen.getvalue().count("\r") == 2


# -- history -------------------------------------------------------------------------------------------------------


def test_history_is_a_dict_of_lists():
    history = fb.History()
    history.append({"loss": 1.0, "lr": 0.1})
    history.append({"loss": 0.5, "lr": 0.1})
    assert history == {"loss": [1.0, 0.5], "lr": [0.1, 0.1]}


def test_history_to_pandas():
    pandas = pytest.importorskip("pandas", reason="to_pandas needs pandas")
    history = make_trainer().fit(*make_data(), epochs=3)
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.index.tolist() == [1, 2, 3]
    assert frame.index.name == "epoch"
    assert {name: frame[name].tolist() for name in frame} == history


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_history_plots_to_a_file(tmp_path, epochs):
    pytest.importorskip("matplotlib", reason="plot needs matplotlib")
    trainer = make_trainer("cross_entropy", metrics="accuracy")
    x, y = make_data("cross_entropy")
    figure = trainer.fit(x, y, epochs=epochs, validation_split=0.2).plot(tmp_path / "curve.png")
    picture = (tmp_path / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 2000
    if epochs:
        loss, accuracy = figure.axes
        assert [axes.get_ylabel() for axes in (loss, accuracy)] == ["loss", "accuracy"]
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
            assert drawn == {"training": trainer.history[name], "validation": trainer.history[f"val_{name}"]}


def test_history_plot_opens_no_window_and_imports_no_pyplot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="plot needs matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    make_trainer().fit(*make_data()).plot(str(tmp_path / "curve.svg"))
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


# -- weights of any size -----------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("step", [1.0, 5.3])  # down to 2^-199, and into float64's subnormals
def test_weights_that_fall_by_many_powers_of_two(backend, step):
    """Only ratios matter within a step: rows weighted by age train however old they are."""
    x, y = make_data(n=200)
    trainer = make_trainer(backend=backend)
    history = trainer.fit(x, y, sample_weight=0.5 ** (step * np.arange(200)), shuffle=False, epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(trainer.model.parameters).all()


def test_the_size_of_a_weight_changes_no_bit():
    x, y = make_data(n=64)
    plain, small = make_trainer(), make_trainer()
    weight = np.random.default_rng(0).uniform(0.5, 2, 64)
    plain.fit(x, y, sample_weight=weight)
    small.fit(x, y, sample_weight=np.ldexp(weight, -500))
    assert_same_trainer(small, plain)


def test_class_weights_of_any_size():
    x, y = make_data("cross_entropy", 60)
    plain, large = make_trainer("cross_entropy"), make_trainer("cross_entropy")
    plain.fit(x, y, class_weight={0: 2.0})
    large.fit(x, y, class_weight={k: 2.0**300 * (1 + (k == 0)) for k in range(4)})
    assert_same_trainer(large, plain)


# -- the ends of a fit -------------------------------------------------------------------------------------------------


def test_every_on_train_end_is_called_whatever_the_others_do():
    ended = []

    def fails() -> None:
        raise RuntimeError("first")

    hooks = [fb.LambdaCallback(on_train_end=lambda: ended.append(1)), fb.LambdaCallback(on_train_end=fails)]
    with pytest.raises(RuntimeError, match="first"):
        make_trainer().fit(*make_data(), callbacks=[*hooks, fb.LambdaCallback(on_train_end=lambda: ended.append(3))])
    assert sorted(ended) == [1, 3]


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin"])
def test_stop_training_at_a_beginning_trains_no_step(hook):
    trainer = make_trainer()

    def stop(*_: object) -> None:
        trainer.stop_training = True

    history = trainer.fit(*make_data(), epochs=3, callbacks=[fb.LambdaCallback(**{hook: stop})])
    assert (trainer.steps, trainer.epochs, dict(history)) == (0, 0, {})


def test_an_exact_number_of_threads_stays_within_the_trainers_bound():
    trainer = make_trainer(num_threads=1)
    with fb.set_num_threads(2, exact=True):
        trainer.step(*make_data())
    assert trainer.threads_used == 1
