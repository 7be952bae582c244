"""Odd values from users, their callbacks, schedules and files: refused by name, before anything has changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers import BACKENDS, make_data, make_trainer

import fastbatch as fb
from fastbatch import storage

backends = pytest.mark.parametrize("backend", BACKENDS)
X, Y = make_data()
HUGE = 10**400  # no float holds it


@pytest.mark.parametrize(
    "make",
    [
        lambda: fb.augment.Noise(HUGE),
        lambda: fb.augment.Mixup(HUGE),
        lambda: fb.SGD(lr=HUGE),
        lambda: fb.SGD(lr=0.1, max_norm=HUGE),
        lambda: fb.SGD(lr=0.1, groups={0: {"lr_factor": HUGE}}),
        lambda: fb.Adam(betas=(HUGE, 0.9)),
        lambda: fb.schedules.Constant(HUGE),
        lambda: fb.batching.Grow(8, factor=HUGE),
        lambda: fb.losses.Huber(delta=HUGE),
        lambda: fb.losses.Focal(gamma=HUGE),
        lambda: fb.losses.Quantile(q=HUGE),
        lambda: fb.Dropout(HUGE),
        lambda: make_trainer(max_grad_norm=HUGE),
        lambda: make_trainer().fit(X, Y, max_time=HUGE),
        lambda: make_trainer("cross_entropy").fit(*make_data("cross_entropy"), class_weight={0: HUGE}),
    ],
)
def test_integers_beyond_every_float(make):
    with pytest.raises(fb.ArgumentError, match=r"expected .* got "):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fb.SGD(lr=1e39),
        lambda: fb.Adam(weight_decay=1e39),
        lambda: fb.SGD(lr=0.1, groups={0: {"lr": 1e39}}),
        lambda: fb.SGD(lr=1e30, groups={0: {"lr_factor": 1e9}}),
        lambda: fb.schedules.Constant(1e39),
        lambda: fb.schedules.OneCycle(1e39, 100),
        lambda: setattr(make_trainer(optimizer=fb.SGD(lr=1e30)), "lr_factor", 1e9),
    ],
)
def test_numbers_beyond_float32(make):
    with pytest.raises(fb.ArgumentError, match=r"expected .* that float32 can hold.*, got "):
        make()


def test_the_largest_float32_is_a_rate():
    largest = float(np.finfo(np.float32).max)
    assert fb.SGD(lr=largest).rate(0) == fb.schedules.Constant(largest)(0) == largest


@dataclass(frozen=True)
class Odd(fb.schedules.Schedule):
    kind: str

    def _rates(self, t):
        return {
            "number": 1e-3, "short": np.full(1, 1e-3), "long": np.full(9999, 1e-3), "2-D": np.full((len(t), 1), 1e-3),
            "complex": t * 1j, "none": None, "words": "fast", "negative": t * 0 - 1e-3, "nan": t * np.nan,
            "huge": t * 0 + 1e39,
        }[self.kind]  # fmt: skip


@backends
@pytest.mark.parametrize(
    "kind", ["number", "short", "long", "2-D", "complex", "none", "words", "negative", "nan", "huge"]
)
def test_schedules_that_give_something_else_than_rates(kind, backend):
    trainer = make_trainer(optimizer=fb.SGD(lr=Odd(kind)), backend=backend)
    before = trainer.model.parameters.copy()
    for run in (lambda: trainer.step(X, Y), lambda: trainer.fit(X, Y, batch_size=8)):
        with pytest.raises(fb.ArgumentError, match=r"Odd.*expected .*rates .*got"):
            run()
    assert np.array_equal(trainer.model.parameters, before)
    assert trainer.steps == 0


def _with_norm():
    model = fb.MLP([X.shape[1], 8, Y.shape[1]], norm="batch")
    return fb.Trainer(model, "mse")


class Refuses(fb.Callback):
    def on_train_begin(self):
        raise fb.ArgumentError("Refuses: expected another fit, got this one")


@pytest.mark.parametrize(
    "arguments",
    [
        {"micro_batch_size": 7},
        {"batch_size": lambda epoch: 0},
        {"callbacks": [Refuses()]},
        {"callbacks": [fb.ModelCheckpoint("no/such/folder/run")]},
    ],
    ids=["cut ghosts", "size 0", "callback", "folder"],
)
def test_a_refused_fit_leaves_what_it_could_have_replaced(arguments):
    trainer = _with_norm()
    history = trainer.fit(X, Y, batch_size=20, epochs=2, input_scale=(2, 0))
    fit = trainer._fit
    with pytest.raises(fb.ArgumentError):
        trainer.fit(X, Y, **{"batch_size": 20, **arguments}, input_scale="standardize")
    assert trainer.history is history
    assert trainer._fit is fit
    assert np.array_equal(trainer.input_scale[0], np.full(X.shape[1], 2))


@pytest.mark.parametrize("every", [-1, -3, 0, 2.5, "3", True, float("nan")])
def test_every_n_steps_of_a_callback(every):
    hook = fb.Callback()
    hook.every_n_steps = every
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match=r"Callback.every_n_steps: expected an integer >= 1 or None, got"):
        trainer.fit(X, Y, callbacks=[hook])
    assert trainer.steps == 0


def test_a_fit_within_a_fit_is_refused_and_the_outer_one_can_be_resumed():
    trainer, whole = make_trainer(), make_trainer()
    hook = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: trainer.fit(X, Y))
    with pytest.raises(fb.ArgumentError, match="expected a fit that has ended, got one that is running"):
        trainer.fit(X, Y, epochs=3, callbacks=[hook])
    trainer.resume(X, Y)
    whole.fit(X, Y, epochs=3)
    assert np.array_equal(trainer.model.parameters, whole.model.parameters)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), HUGE, "half", None])
def test_lr_factor(value):
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match=r"trainer.lr_factor: expected a finite number >= 0, got"):
        trainer.lr_factor = value
    assert trainer.lr_factor == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", fb.MLP([5, 4])), ("loss", fb.losses.MAE()), ("optimizer", fb.SGD(lr=0.1)), ("metrics", ["r2"]),
        ("max_grad_norm", 1.0), ("clip_value", 1.0), ("gradient_accumulation_steps", 4), ("seed", 5),
        ("optimizer", fb.Adam(weight_decay=0.1)), ("semantics", "keras"), ("precision", "bf16"), ("num_threads", 1),
    ],
)  # fmt: skip
def test_what_a_trainer_was_made_with_stays(name, value):
    trainer = make_trainer(optimizer="adam")
    kept = getattr(trainer, name)
    with pytest.raises(fb.ArgumentError, match=rf"trainer.{name}: expected what the trainer was made with, .* got"):
        setattr(trainer, name, value)
    assert getattr(trainer, name) is kept
    trainer.optimizer = replace(trainer.optimizer, lr=0.5)
    assert trainer.optimizer.lr == 0.5


def test_values_that_are_missing_in_a_table_are_named():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X).astype("Float64")
    table.iloc[3, 1] = pandas.NA
    with pytest.raises(fb.DataError, match="X: expected finite numbers, got nan in row 3, column 1"):
        make_trainer().fit(table, Y)


def test_images_are_told_how_to_become_rows():
    with pytest.raises(fb.ShapeError, match=r"expected shape \(n, 6\), got \(9, 2, 3\).*X.reshape\(len\(X\), -1\)"):
        make_trainer(sizes=(6, 4)).fit(np.zeros((9, 2, 3)), np.zeros((9, 4)))


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    with pytest.raises(OSError, match="expected a file or nothing there"):
        make_trainer().save(tmp_path)
    assert not list(tmp_path.iterdir())


def _progress(**values):
    return lambda state, tensors: state["fit"]["progress"].update(values)


def _attributes(**values):
    return lambda state, tensors: state["attributes"].update(values)


def _settings(**values):
    return lambda state, tensors: state["fit"]["settings"]["fields"].update(values)


def _array(at: str, shape: tuple[int, ...], dtype="float32"):
    """The array at a place of the description is another one."""

    def edit(state, tensors):
        *path, last = at.split("/")
        for name in path:
            state = state[name]
        tensors["edited"] = np.zeros(shape, dtype)
        state[last] = {"!": "array", "key": "edited"}

    return edit


EDITS = {
    "step": _progress(step=-1),
    "epoch": _progress(epoch=1.5),
    "order_epoch": _progress(order_epoch="x"),
    "updates": _progress(updates=None),
    "seconds": _progress(seconds=-1),
    "outputs": _array("fit/progress/outputs", (70, 1)),
    "outputs dtype": _array("fit/progress/outputs", (70, 4), "float64"),
    "outputs number": _progress(outputs=5),
    "callbacks": _progress(callbacks=[[1, 2]]),
    "sums": _array("fit/progress/sums", (1,), "float64"),
    "batch 0": _settings(batch_size=0),
    "batch -5": _settings(batch_size=-5),
    "batch dict": _settings(batch_size={"name": "epochs", "sizes": [[0, 0]]}),
    "batch Grow": _settings(batch_size={"name": "Grow", "start": 0}),
    "gradient": _array("attributes/_gradient", (3,)),
    "running": _array("attributes/_running", (3,)),
    "scale": _attributes(_input_scale=[{"!": "float", "value": "nan"}, 0]),
    "rows": _attributes(_gradient_rows=-1),
    "epochs": _attributes(epochs=-1),
    "lr_factor": _attributes(lr_factor=-1),
    "steps": lambda state, tensors: state.update(steps=10**30),
    "history": lambda state, tensors: state.update(history={"loss": 5}),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_checkpoints(name, tmp_path):
    """With a checksum that is right: what kernels rely on is looked at, too."""
    path, trainer = tmp_path / "run", make_trainer(metrics=["r2"])

    def stop(*_):
        trainer.save(path)
        raise InterruptedError

    hook = fb.LambdaCallback(on_chunk_end=stop)
    hook.every_n_steps = 3
    with pytest.raises(InterruptedError):
        trainer.fit(X, Y, batch_size=10, epochs=2, callbacks=[hook])
    tensors, metadata = storage.read(path)
    state, tensors = json.loads(metadata["trainer"]), dict(tensors)
    EDITS[name](state, tensors)
    metadata = {"model": metadata["model"], "trainer": json.dumps(state)}
    storage.write(path, tensors, {**metadata, "crc32": storage.checksum(tensors, metadata)})
    with pytest.raises(fb.CheckpointError, match=r"expected .* got |is damaged"):
        fb.Trainer.load(path).resume(X, Y)
