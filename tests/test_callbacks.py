"""The callbacks that come with the library: when they act, what they leave behind, and that a fit outlives them."""

from __future__ import annotations

import copy
import csv
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKENDS, Recorder, assert_same_bits, assert_same_trainer, make_data, make_trainer

import fastbatch as fb
from fastbatch.training.callbacks import steps_to_stop

backends = pytest.mark.parametrize("backend", BACKENDS)


class Stub:
    """What a callback sees of a trainer."""

    def __init__(self, lr=0.1):
        self.model, self.optimizer = fb.MLP([2, 3, 1], seed=1), fb.SGD(lr=lr)
        self.steps = self.epochs = 0
        self.stop_training, self.lr_factor = False, 1.0


def play(hook, values, name="val_loss", trainer=None, end=True):
    """Epochs whose history is one number; epoch k leaves k in every parameter. Epochs made before the stop."""
    hook.trainer = trainer = trainer or Stub()
    hook.on_train_begin()
    made = 0
    for epoch, value in enumerate(values):
        hook.on_epoch_begin(epoch, {"epochs": len(values), "steps": 1, "batch_size": 1})
        trainer.steps += 1
        trainer.epochs += 1
        trainer.model.parameters[:] = epoch
        hook.on_chunk_end(1, {"loss": value})
        hook.on_epoch_end(epoch, {name: value})
        made += 1
        if trainer.stop_training:
            break
    if end:
        hook.on_train_end()
    return made


# -- early stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "patience", "made", "best"),
    [
        ([3, 2, 1, 2, 2, 2, 2], 2, 5, 2),
        ([3, 2, 1, 2, 0, 2, 2, 2], 2, 7, 4),
        ([3, 2, 1], 2, 3, 2),
        ([1, 2, 3], 0, 2, 0),
        ([1, 2, 3], 1, 2, 0),
        ([3, 2.95, 2.91, 2.85, 2.8], 3, 5, 3),  # 2.91 is within min_delta of 3, and 2.8 of 2.85
        ([3, 2.95, 2.95, 1], 2, 3, 0),
        ([math.nan, 2, math.nan, math.nan, 1], 2, 4, 1),
        ([math.inf, 2, 1], 2, 3, 2),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_early_stopping_stops_and_goes_back(values, patience, made, best, sign):
    stopping = fb.EarlyStopping("val_loss" if sign > 0 else "val_accuracy", patience, min_delta=0.1)
    assert play(stopping, [sign * value for value in values], stopping.monitor.name) == made
    assert (stopping.best_epoch, stopping.best) == (best, sign * values[best])
    assert stopping.stopped_epoch == (made - 1 if stopping.trainer.stop_training else None)
    assert set(stopping.trainer.model.parameters) == {best}


def test_early_stopping_without_a_way_back():
    stopping = fb.EarlyStopping(patience=1, restore_best_weights=False)
    assert play(stopping, [1, 2, 3]) == 2
    assert set(stopping.trainer.model.parameters) == {1}


def test_early_stopping_of_nothing_but_nan_puts_nothing_back():
    stopping = fb.EarlyStopping(patience=3)
    assert play(stopping, [math.nan] * 5) == 3
    assert (stopping.best, stopping.best_epoch) == (None, None)
    assert set(stopping.trainer.model.parameters) == {2}


def test_early_stopping_puts_buffers_back(monkeypatch):
    monkeypatch.setattr(fb.Sequential, "buffers", np.zeros(3), raising=False)

    class Counts(fb.EarlyStopping):
        def on_epoch_end(self, epoch, logs):
            self.trainer.model.buffers[:] = 10 + epoch
            super().on_epoch_end(epoch, logs)

    stopping = Counts(patience=2)
    play(stopping, [3, 1, 2, 2])
    assert stopping.trainer.model.buffers.tolist() == [11.0] * 3


@backends
def test_early_stopping_in_a_fit(backend):
    """The trainer stops, has the weights of its best epoch, and its history goes on to where it stopped."""
    x, y = make_data("cross_entropy", 40)
    trainer = make_trainer("cross_entropy", fb.SGD(lr=0.5), backend=backend)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((40, 5), np.float32), rng.integers(0, 4, 40))
    stopping = fb.EarlyStopping(patience=3)
    history = trainer.fit(x, y, epochs=200, validation_data=noise, callbacks=[stopping])
    assert len(history["loss"]) == stopping.best_epoch + 4 < 200
    assert stopping.best == history["val_loss"][stopping.best_epoch]
    assert trainer.evaluate(*noise)["loss"] == pytest.approx(stopping.best, rel=1e-6)
    assert trainer.epochs == len(history["loss"])
    trainer.fit(x, y, epochs=1, validation_data=noise, callbacks=[stopping])
    assert stopping.best_epoch == 0


@pytest.mark.parametrize("inside", [False, True], ids=["", "within-an-except-block"])
def test_early_stopping_restores_at_the_last_epoch_too(inside):
    """Also where the caller is dealing with an exception, which is not the end of this fit."""
    x, y = make_data(n=40)
    trainer = make_trainer("mse", fb.Adam(lr=3.0))
    stopping = fb.EarlyStopping("loss", patience=50)
    seen = []
    look = fb.LambdaCallback(on_epoch_end=lambda *_: seen.append(trainer.model.parameters.copy()))
    if inside:
        try:
            raise ValueError
        except ValueError:
            trainer.fit(x, y, epochs=12, callbacks=[stopping, look])
    else:
        trainer.fit(x, y, epochs=12, callbacks=[stopping, look])
    assert stopping.stopped_epoch is None
    assert stopping.best_epoch < 11
    assert_same_bits(trainer.model.parameters, seen[stopping.best_epoch])
    assert not np.array_equal(trainer.model.parameters, seen[-1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_early_stopping_leaves_an_interrupted_trainer_as_it_is(error):
    x, y = make_data(n=40)

    def fail(epoch, logs):
        if epoch == 5:
            raise error

    stopping = fb.EarlyStopping("loss", patience=50)
    trainer, plain = (make_trainer("mse", fb.Adam(lr=3.0)) for _ in range(2))
    plain.fit(x, y, epochs=6)
    with pytest.raises(error):
        trainer.fit(x, y, epochs=12, callbacks=[stopping, fb.LambdaCallback(on_epoch_end=fail)])
    assert stopping.best_epoch < 5
    assert_same_trainer(trainer, plain)
    stopping.restore()
    best = make_trainer("mse", fb.Adam(lr=3.0))
    best.fit(x, y, epochs=stopping.best_epoch + 1)
    assert_same_bits(trainer.model.parameters, best.model.parameters)


@pytest.mark.parametrize(
    "make", [fb.EarlyStopping, fb.ReduceLROnPlateau, lambda monitor: fb.ModelCheckpoint("x", monitor=monitor)]
)
@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ("val_loss", ["expected one of batch_size, loss, lr, time", "validation_data or validation_split"]),
        ("los", ["expected one of batch_size, loss, lr, time", "did you mean 'loss'?"]),
        ("loss_of_mine", ["expected one of batch_size"]),
    ],
)
def test_a_missing_monitor_names_what_there_is(make, monitor, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hook = make(monitor) if monitor != "los" else None
    if hook is None:
        with pytest.raises(fb.ArgumentError, match="expected mode='min' or mode='max'"):
            make(monitor)
        hook = make("loss")
        hook.monitor.name = "los"
    trainer, plain = make_trainer(), make_trainer()
    with pytest.raises(fb.ArgumentError) as caught:
        trainer.fit(*make_data(), epochs=3, callbacks=[hook])
    for word in words:
        assert word in str(caught.value)
    plain.fit(*make_data())
    assert_same_trainer(trainer, plain)


BAD = {
    **{f"patience={v!r}": lambda v=v: fb.EarlyStopping(patience=v) for v in (-1, 1.5, True, None)},
    **{f"min_delta={v!r}": lambda v=v: fb.EarlyStopping(min_delta=v) for v in (-1, math.nan, math.inf, True, "0")},
    "restore": lambda: fb.EarlyStopping(restore_best_weights=1),
    **{f"monitor={v!r}": lambda v=v: fb.EarlyStopping(v) for v in (None, 3, "grad_norm", "confusion", "mine")},
    **{f"mode={v!r}": lambda v=v: fb.EarlyStopping(mode=v) for v in ("least", None, 1)},
    **{f"factor={v!r}": lambda v=v: fb.ReduceLROnPlateau(factor=v) for v in (0, 1, 1.5, -0.1, math.nan, True, "0.1")},
    **{f"threshold={v!r}": lambda v=v: fb.ReduceLROnPlateau(threshold=v) for v in (-1, math.inf, None)},
    "threshold_mode": lambda: fb.ReduceLROnPlateau(threshold_mode="relative"),
    **{f"plateau patience={v!r}": lambda v=v: fb.ReduceLROnPlateau(patience=v) for v in (-1, 0.5, None)},
    **{f"cooldown={v!r}": lambda v=v: fb.ReduceLROnPlateau(cooldown=v) for v in (-1, 0.5, None)},
    **{f"min_lr={v!r}": lambda v=v: fb.ReduceLROnPlateau(min_lr=v) for v in (-1, math.nan, None)},
    **{f"eps={v!r}": lambda v=v: fb.ReduceLROnPlateau(eps=v) for v in (-1, math.nan, None)},
    **{f"decay={v!r}": lambda v=v: fb.EMA(v) for v in (1, 1.5, -0.1, math.nan, True, None, "0.9")},
    **{f"ema every={v!r}": lambda v=v: fb.EMA(every_n_steps=v) for v in (0, -1, 1.5, True)},
    **{f"checkpoint path={v!r}": lambda v=v: fb.ModelCheckpoint(v) for v in (None, 3)},
    **{f"checkpoint steps={v!r}": lambda v=v: fb.ModelCheckpoint("x", v) for v in (0, 1.5)},
    **{f"checkpoint epochs={v!r}": lambda v=v: fb.ModelCheckpoint("x", None, v) for v in (0, 1.5)},
    "checkpoint never": lambda: fb.ModelCheckpoint("x", every_n_epochs=None),
    "checkpoint monitor and steps": lambda: fb.ModelCheckpoint("x", 5, monitor="loss"),
    "csv path": lambda: fb.CSVLogger(None),
    "csv append": lambda: fb.CSVLogger("x", append="a"),
    "tensorboard": lambda: fb.TensorBoard(None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name):
    with pytest.raises(fb.ArgumentError, match=r": expected .*[,;] got "):
        BAD[name]()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"), ("val_loss", "min"), ("mse", "min"), ("val_mae", "min"), ("accuracy", "max"), ("top_k", "max"),
        ("top_3", "max"), ("f1", "max"), ("val_f1_micro", "max"), ("precision", "max"), ("recall", "max"),
        ("auc", "max"), ("val_r2", "max"),
    ],
)  # fmt: skip
def test_auto_knows_the_direction_of_the_librarys_names(name, mode):
    assert fb.EarlyStopping(name).monitor.mode == mode
    other = {"min": "max", "max": "min"}[mode]
    assert fb.EarlyStopping(name, mode=other).monitor.mode == other


def test_every_metric_that_is_a_number_has_a_direction():
    for name in set(fb.ops.METRICS) - {"confusion"}:
        assert fb.EarlyStopping(name).monitor.mode in ("min", "max")


# -- plateau -------------------------------------------------------------------------------------------------------

PLATEAUS = [
    {},
    {"patience": 0},
    {"patience": 1, "factor": 0.5},
    {"patience": 2, "factor": 0.5, "cooldown": 3},
    {"patience": 1, "factor": 0.5, "threshold": 0.3},
    {"patience": 1, "factor": 0.5, "threshold": 0.3, "threshold_mode": "abs"},
    {"patience": 0, "factor": 0.3, "min_lr": 0.004},
    {"patience": 0, "factor": 0.3, "eps": 0.01},
]


@pytest.mark.torch
@pytest.mark.parametrize("options", PLATEAUS, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", range(3))
def test_plateau_is_torchs(options, mode, seed):
    torch = pytest.importorskip("torch", reason="rates of torch need torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, **options)
    hook = fb.ReduceLROnPlateau("loss", mode=mode, **options)
    hook.trainer = trainer = Stub(0.1)
    hook.on_train_begin()
    values = np.abs(np.random.default_rng(seed).normal(1, 0.5, 60)) + 2 / (1 + np.arange(60))
    values[[7, 20]] = math.nan
    falls = 0
    for value in values:
        before = trainer.lr_factor
        scheduler.step(value)
        hook.on_epoch_end(0, {"loss": value})
        falls += trainer.lr_factor < before
        assert trainer.lr_factor * 0.1 == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert falls


def test_plateau_of_a_negative_quantity_does_not_take_worse_for_better():
    hook = fb.ReduceLROnPlateau("val_r2", factor=0.5, patience=1, threshold=0.1)
    play(hook, [-5.0, -5.2, -5.2], "val_r2")
    assert (hook.best, hook.trainer.lr_factor) == (-5.0, 0.5)


def test_plateau_bounds_a_schedule_where_it_stands():
    trainer = Stub(fb.schedules.Step(0.1, 2))
    play(fb.ReduceLROnPlateau(patience=0, factor=0.5, min_lr=0.03), [1, 2], trainer=trainer)
    assert trainer.lr_factor == 1.0  # at update 2 the schedule is below min_lr by itself
    trainer = Stub(fb.schedules.Step(0.1, 10))
    play(fb.ReduceLROnPlateau(patience=0, factor=0.5, min_lr=0.03), [1, 2, 3, 4], trainer=trainer)
    assert trainer.lr_factor * 0.1 == pytest.approx(0.03, rel=1e-15)
    trainer = Stub(0.0)
    play(fb.ReduceLROnPlateau(patience=0), [1, 2, 3], trainer=trainer)
    assert trainer.lr_factor == 1.0


@backends
def test_plateau_in_a_fit(backend):
    x, y = make_data(n=32)
    trainer = make_trainer("mse", fb.SGD(lr=0.5), backend=backend)
    twin = make_trainer("mse", fb.SGD(lr=0.5), backend=backend)
    history = trainer.fit(x, y, epochs=4, callbacks=[fb.ReduceLROnPlateau("loss", 0.5, 0, threshold=0.99)])
    assert history["lr"] == [0.5, 0.5, 0.25, 0.125]
    for factor in (1.0, 1.0, 0.5, 0.25):
        twin.lr_factor = factor
        twin.fit(x, y)
    twin.lr_factor = trainer.lr_factor
    assert_same_trainer(trainer, twin)


# -- chunks --------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("every", [1, 3, 4, 7, 100])
def test_chunks_end_at_every_multiple(backend, every):
    """A hook that counts steps is called at each multiple of them; no bit of the training changes."""
    x, y = make_data(n=70)
    hook, seen = Recorder(), []
    hook.every_n_steps = every
    trainer, plain = (make_trainer("mse", "adam", dropout=0.2, backend=backend) for _ in range(2))
    look = fb.LambdaCallback(on_chunk_end=lambda steps, logs: seen.append(trainer.steps))
    history = trainer.fit(x, y, batch_size=10, epochs=3, callbacks=[hook, look])
    assert {step for step in range(1, 22) if step % every == 0} <= set(seen)
    assert seen == sorted(set(seen))
    assert history["loss"] == plain.fit(x, y, batch_size=10, epochs=3)["loss"]
    assert_same_trainer(trainer, plain)


def test_steps_to_stop_is_the_nearest():
    hooks = [fb.EMA(every_n_steps=5), fb.EMA(), fb.EMA(every_n_steps=7)]
    assert [steps_to_stop(hooks, steps) for steps in (0, 4, 5, 6, 7, 34, 35)] == [5, 1, 2, 1, 3, 1, 5]
    assert steps_to_stop([fb.EMA()], 3) is None
    assert steps_to_stop([], 3) is None


# -- averages ------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("every", [1, 3])
def test_ema_is_the_average_of_its_looks(backend, every):
    x, y = make_data(n=70)
    ema, decay = fb.EMA(0.9, every_n_steps=every), 0.9
    trainer, twin = (make_trainer("mse", "adam", backend=backend) for _ in range(2))
    expected, last = twin.model.parameters.astype(np.float64), 0
    trainer.fit(x, y, batch_size=10, epochs=2, shuffle=False, callbacks=[ema])
    trainer.fit(x, y, batch_size=10, epochs=1, shuffle=False, callbacks=[ema])
    for t in range(21):
        rows = slice(10 * (t % 7), 10 * (t % 7) + 10)
        twin.step(x[rows], y[rows])
        if (t + 1) % every == 0:
            w = decay ** (t + 1 - last)
            expected, last = w * expected + (1 - w) * twin.model.parameters, t + 1
    assert_same_bits(trainer.model.parameters, twin.model.parameters)
    np.testing.assert_allclose(ema.parameters, expected, rtol=1e-6, atol=1e-7)
    assert ema.parameters.dtype == trainer.model.dtype
    assert np.abs(ema.parameters - trainer.model.parameters).max() > 1e-4


def test_ema_looks_at_the_end_of_chunks():
    x, y = make_data(n=70)
    ema, trainer = fb.EMA(0.5), make_trainer()
    start = trainer.model.parameters.copy()
    trainer.fit(x, y, batch_size=10, callbacks=[ema])
    share = 0.5**7  # one chunk: seven updates of 50 ms at the most
    np.testing.assert_allclose(ema.parameters, share * start + (1 - share) * trainer.model.parameters, rtol=1e-5)


def test_ema_stays_in_float64():
    """Forty thousand looks that move the average by less than a float32 can show still move it."""
    hook = fb.EMA(0.9999, every_n_steps=1)
    hook.trainer = trainer = Stub()
    trainer.model.parameters[:] = 1.0
    hook.on_train_begin()
    trainer.model.parameters[:] = 1.0 + 2.0**-12
    for _ in range(40000):
        trainer.steps += 1
        hook.on_chunk_end(1, {})
    np.testing.assert_allclose(hook._average - 1, 2.0**-12 * (1 - 0.9999**40000), rtol=1e-6)


def test_ema_weights_of_a_model_with_norms():
    x, y = make_data(n=70)
    model = fb.MLP([x.shape[1], 5, y.shape[1]], norm="batch")
    ema = fb.EMA(0.9, every_n_steps=1)
    fb.Trainer(model, "mse").fit(x, y, epochs=2, callbacks=[ema])
    twin = fb.MLP([x.shape[1], 5, y.shape[1]], norm="batch")
    twin.set_weights(ema.weights())
    assert_same_bits(twin.parameters, ema.parameters)
    assert_same_bits(twin.buffers, model.buffers)


def test_ema_weights_and_swap():
    x, y = make_data(n=70)
    ema, trainer = fb.EMA(0.9, every_n_steps=1), make_trainer()
    for call in (ema.weights, lambda: ema.parameters, lambda: ema.swap().__enter__()):
        with pytest.raises(fb.ArgumentError, match="EMA: expected a fit before it"):
            call()
    trainer.fit(x, y, epochs=3, callbacks=[ema])
    own, view = trainer.model.parameters.copy(), trainer.model.parameters
    twin = trainer.model.copy()
    twin.set_weights(ema.weights())
    assert_same_bits(twin.parameters, ema.parameters)
    assert_same_bits(trainer.model.parameters, own)
    with ema.swap():
        assert_same_bits(view, ema.parameters)
        averaged = trainer.evaluate(x, y)
    assert_same_bits(view, own)
    assert averaged == fb.Trainer(twin, "mse").evaluate(x, y)
    assert averaged != trainer.evaluate(x, y)
    with pytest.raises(RuntimeError, match="inside"), ema.swap():
        raise RuntimeError("inside")
    assert_same_bits(view, own)


def test_ema_of_another_trainer_begins_anew():
    ema, first, second = fb.EMA(0.9), make_trainer(), make_trainer(sizes=(5, 3, 4))
    first.fit(*make_data(), callbacks=[ema])
    second.fit(*make_data(), callbacks=[ema])
    assert ema.parameters.shape == (second.model.num_parameters,)


# -- files ---------------------------------------------------------------------------------------------------------


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_history_as_it_grows(tmp_path):
    path, seen = tmp_path / "log.csv", []
    trainer = make_trainer("cross_entropy", metrics="accuracy")
    look = fb.LambdaCallback(on_epoch_end=lambda *_: seen.append(len(_rows(path))))
    x, y = make_data("cross_entropy")
    history = trainer.fit(x, y, epochs=3, validation_split=0.2, callbacks=[fb.CSVLogger(path), look])
    assert seen == [1, 2, 3]
    rows = _rows(path)
    assert list(rows[0]) == ["epoch", *history]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == values
    assert "np.float" not in path.read_text()


def test_csv_skips_arrays(tmp_path):
    logger = fb.CSVLogger(tmp_path / "log.csv")
    logger.trainer = Stub()
    logger.on_train_begin()
    logger.on_epoch_end(0, {"loss": np.float32(0.5), "confusion": np.eye(2), "name": "x"})
    logger.on_train_end()
    assert (tmp_path / "log.csv").read_text() == "epoch,loss\n0,0.5\n"


def test_csv_starts_anew_or_appends(tmp_path):
    x, y = make_data()
    path, trainer = tmp_path / "log.csv", make_trainer()
    for append, expected in ((False, [1, 2]), (True, [1, 2, 3, 4]), (False, [5, 6])):
        trainer.fit(x, y, epochs=2, callbacks=[fb.CSVLogger(str(path), append=append)])
        assert [int(row["epoch"]) for row in _rows(path)] == expected


def test_csv_of_other_columns_is_refused_and_kept(tmp_path):
    x, y = make_data()
    path, trainer = tmp_path / "log.csv", make_trainer()
    trainer.fit(x, y, callbacks=[fb.CSVLogger(path)])
    before = path.read_bytes()
    with pytest.raises(fb.ArgumentError, match=r"expected the columns .*'loss'.*, got .*'val_loss'"):
        trainer.fit(x, y, validation_split=0.2, callbacks=[fb.CSVLogger(path, append=True)])
    assert path.read_bytes() == before
    trainer.fit(x, y, callbacks=[fb.CSVLogger(path, append=True)])
    assert [row["epoch"] for row in _rows(path)] == ["1", "3"]


def test_csv_appends_to_what_is_not_there(tmp_path):
    (tmp_path / "empty.csv").touch()
    for name in ("new.csv", "empty.csv"):
        make_trainer().fit(*make_data(), callbacks=[fb.CSVLogger(tmp_path / name, append=True)])
        assert len(_rows(tmp_path / name)) == 1


@pytest.mark.parametrize("make", [fb.CSVLogger, fb.ModelCheckpoint])
def test_a_missing_folder_is_refused_before_anything_is_trained(tmp_path, make):
    trainer = make_trainer()
    with pytest.raises(fb.ArgumentError, match=rf"{make.__name__}\(path=\): expected a folder that exists"):
        trainer.fit(*make_data(), callbacks=[make(tmp_path / "missing" / "file")])
    assert trainer.steps == 0


@pytest.fixture
def saved(monkeypatch):
    """A ``trainer.save`` that writes a file, and the list of (name, steps, parameters) it wrote."""
    files = []

    def save(self, path):
        Path(path).write_text(str(self.steps))
        files.append((Path(path).name, self.steps, self.model.parameters.copy()))

    monkeypatch.setattr(fb.Trainer, "save", save, raising=False)
    return files


@backends
def test_checkpoints_by_epochs_and_steps(backend, saved, tmp_path):
    x, y = make_data(n=70)
    trainer = make_trainer(backend=backend)
    hooks = [
        fb.ModelCheckpoint(tmp_path / "always"),
        fb.ModelCheckpoint(tmp_path / "e{epoch:02d}", every_n_epochs=2),
        fb.ModelCheckpoint(tmp_path / "s{steps}", every_n_steps=4, every_n_epochs=None),
    ]
    trainer.fit(x, y, batch_size=10, epochs=5, callbacks=hooks)
    by_steps = {f"s{k}" for k in range(4, 36, 4)}
    assert {path.name for path in tmp_path.iterdir()} == {"always", "e02", "e04", *by_steps}
    assert [(name, steps) for name, steps, _ in saved if name[0] == "s"] == [(f"s{k}", k) for k in range(4, 36, 4)]
    assert [steps for name, steps, _ in saved if name == "always"] == [7, 14, 21, 28, 35]
    assert [steps for name, steps, _ in saved if name[0] == "e"] == [14, 28]
    assert hooks[1].last_path == tmp_path / "e04"
    plain = make_trainer(backend=backend)
    plain.fit(x, y, batch_size=10, epochs=5)
    assert_same_trainer(trainer, plain)


def test_a_monitored_checkpoint_keeps_the_best_only(saved, tmp_path):
    trainer = Stub()
    trainer.save = types.MethodType(fb.Trainer.save, trainer)
    hook = fb.ModelCheckpoint(tmp_path / "m-{epoch}-{val_loss:.1f}.fb", monitor="val_loss")
    play(hook, [3.0, 2.0, 2.5, 2.0, math.nan, 1.5, 9.0], trainer=trainer)
    assert [name for name, *_ in saved] == ["m-1-3.0.fb", "m-2-2.0.fb", "m-6-1.5.fb"]
    assert [path.name for path in tmp_path.iterdir()] == ["m-6-1.5.fb"]
    assert (hook.best, hook.last_path) == (1.5, tmp_path / "m-6-1.5.fb")
    hook = fb.ModelCheckpoint(str(tmp_path / "one"), monitor="val_accuracy")
    play(hook, [0.1, 0.3, 0.2], "val_accuracy", trainer=trainer)
    assert (tmp_path / "one").read_text() == "9"


def test_a_checkpoint_that_cannot_be_written_is_not_the_best(tmp_path):
    trainer = Stub()

    def fail(path):
        raise OSError("disk full")

    trainer.save = fail
    hook = fb.ModelCheckpoint(tmp_path / "x", monitor="val_loss")
    with pytest.raises(OSError, match="disk full"):
        play(hook, [1.0], trainer=trainer)
    assert (hook.best, hook.last_path) == (None, None)


def test_unknown_fields_of_a_path_are_refused(saved, tmp_path):
    for path in ("{epok}", "{}", "{epoch:z}", "{epoch"):
        with pytest.raises(
            fb.ArgumentError, match=r"ModelCheckpoint\(path=\): expected fields among batch_size, epoch"
        ):
            make_trainer().fit(*make_data(), callbacks=[fb.ModelCheckpoint(tmp_path / path)])


def test_checkpoints_come_after_the_other_callbacks(tmp_path, monkeypatch):
    """A file must hold what the others have made of the epoch, wherever the checkpoint stands in the list."""
    stopping, seen = fb.EarlyStopping("loss"), []
    monkeypatch.setattr(fb.Trainer, "save", lambda self, path: seen.append(stopping.best), raising=False)
    trainer = make_trainer()
    history = trainer.fit(*make_data(), epochs=3, callbacks=[fb.ModelCheckpoint(tmp_path / "x"), stopping])
    assert seen == list(np.minimum.accumulate(history["loss"]))


def test_tensorboard_writes_scalars(monkeypatch, tmp_path):
    points, closed = [], []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            points.append((name, value, step))

        def flush(self):
            points.append("flush")

        def close(self):
            closed.append(self.folder)

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    trainer = make_trainer()
    history = trainer.fit(*make_data(), epochs=2, callbacks=[fb.TensorBoard(tmp_path / "run")])
    expected = []
    for epoch in (1, 2):
        expected += [(name, values[epoch - 1], epoch) for name, values in history.items()] + ["flush"]
    assert points == expected
    assert closed == [str(tmp_path / "run")]


def test_tensorboard_without_a_writer_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(fb.BackendError, match="pip install tensorboardX"):
        fb.TensorBoard(tmp_path)


# -- state ---------------------------------------------------------------------------------------------------------


def _through_a_file(state):
    """What a checkpoint does: arrays as arrays, the rest through strict JSON."""
    arrays = {name: value.copy() for name, value in state.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in state.items() if name not in arrays}
    return {**arrays, **json.loads(json.dumps(rest, allow_nan=False))}


VALUES = [5.0, 4.0, 4.5, 3.0, 3.5, 3.6, 3.7, 2.0, 2.1, 2.2, 2.3, 2.4]
STATEFUL = {
    "EarlyStopping": lambda folder: fb.EarlyStopping(patience=4),
    "ReduceLROnPlateau": lambda folder: fb.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1),
    "EMA": lambda folder: fb.EMA(0.8, every_n_steps=2),
    "ModelCheckpoint": lambda folder: fb.ModelCheckpoint(folder / "{epoch}", monitor="val_loss"),
    "ModelCheckpoint-steps": lambda folder: fb.ModelCheckpoint(folder / "{epoch}", every_n_steps=3),
    "CSVLogger": lambda folder: fb.CSVLogger(folder / "log.csv"),
}


def _epochs(hook, trainer, epochs):
    """Two updates an epoch; whether each of the epochs ended the fit, and the factor it left."""
    seen = []
    for epoch in epochs:
        for steps in (1, 2):
            trainer.steps += 1
            trainer.model.parameters[:] = trainer.steps
            hook.on_chunk_end(steps, {"loss": VALUES[epoch]})
        trainer.epochs += 1
        trainer.stop_training = False
        hook.on_epoch_end(epoch, {"val_loss": VALUES[epoch], "loss": 1.0})
        seen.append((trainer.stop_training, trainer.lr_factor))
    return seen


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("cut", range(1, len(VALUES)))
def test_a_callback_goes_on_from_its_state(name, cut, tmp_path, saved):
    """Two epochs behind a checkpoint are lost and made again by a new callback: the outcome is that of one go."""

    def start(folder):
        hook, trainer = STATEFUL[name](folder), Stub()
        trainer.save = types.MethodType(fb.Trainer.save, trainer)
        hook.trainer = trainer
        hook.on_train_begin()
        return hook, trainer

    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    whole, trainer = start(tmp_path / "whole")
    seen = _epochs(whole, trainer, range(len(VALUES)))
    whole.on_train_end()

    first, lost = start(tmp_path / "cut")
    assert _epochs(first, lost, range(cut)) == seen[:cut]
    state, counters = _through_a_file(first.get_state()), (lost.steps, lost.epochs, lost.lr_factor)
    _epochs(first, lost, range(cut, min(cut + 2, len(VALUES))))
    first.on_train_end()
    second, resumed = start(tmp_path / "cut")
    second.set_state(state)
    resumed.steps, resumed.epochs, resumed.lr_factor = counters
    assert _epochs(second, resumed, range(cut, len(VALUES))) == seen[cut:]
    second.on_train_end()

    assert_same_bits(resumed.model.parameters, trainer.model.parameters)
    one, two = (_through_a_file(hook.get_state()) for hook in (whole, second))
    paths = [state.pop("last_path", None) for state in (one, two)]
    assert len({path and Path(path).name for path in paths}) == 1
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key])
    files, others = ({path.name: path.read_text() for path in (tmp_path / f).iterdir()} for f in ("whole", "cut"))
    assert files.items() <= others.items()
    assert files or not name.startswith(("CSV", "Model"))


def test_csv_refuses_to_go_on_behind_a_shorter_file(tmp_path):
    logger = fb.CSVLogger(tmp_path / "log.csv")
    play(logger, [1.0, 2.0])
    state = logger.get_state()
    (tmp_path / "log.csv").write_text("epoch\n")
    logger.on_train_begin()
    with pytest.raises(fb.ArgumentError, match=r"bytes of the interrupted fit, got 6"):
        logger.set_state(state)


def test_callbacks_without_state_have_none():
    for hook in (fb.Callback(), fb.LambdaCallback(), fb.ProgressBar()):
        assert hook.get_state() == {}
        hook.set_state({})


# -- a fit outlives its callbacks ----------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end", "on_chunk_end"])
def test_a_trainer_outlives_an_exception_in_a_callback(backend, hook):
    """What raises comes out of fit as it is, and the trainer is that of a fit which stopped at the same place."""
    x, y = make_data(n=70)

    class Oops(Exception):
        pass

    def after(act):
        calls = iter(range(100))

        def each(*_):
            if next(calls) == 3:
                act()

        callback = fb.LambdaCallback(**{hook: each})
        callback.every_n_steps = 3  # calls behind the updates 3, 6, 7 and 9, in the middle of the second epoch
        return callback

    def fail():
        raise Oops

    trainer, stopped = (make_trainer("mse", "adam", dropout=0.1, backend=backend) for _ in range(2))
    with pytest.raises(Oops):
        trainer.fit(x, y, batch_size=10, epochs=5, callbacks=[after(fail)])
    stopped.fit(x, y, batch_size=10, epochs=5, callbacks=[after(lambda: setattr(stopped, "stop_training", True))])
    assert_same_trainer(trainer, stopped)
    assert trainer.history["loss"] == stopped.history["loss"] != []
    trainer.fit(x, y, batch_size=10), stopped.fit(x, y, batch_size=10)
    assert_same_trainer(trainer, stopped)


@backends
def test_all_of_them_together_change_no_bit(backend, tmp_path, saved):
    """Callbacks that only look: the same training as without any."""
    x, y = make_data("cross_entropy")
    hooks = [
        fb.EarlyStopping("loss", restore_best_weights=False),
        fb.EMA(0.9, every_n_steps=3),
        fb.CSVLogger(tmp_path / "log.csv"),
        fb.ModelCheckpoint(tmp_path / "x", every_n_steps=5),
        fb.ProgressBar(bar=False),
        Recorder(),
    ]
    trainer, plain = (make_trainer("cross_entropy", backend=backend) for _ in range(2))
    trainer.fit(x, y, epochs=4, batch_size=10, callbacks=hooks), plain.fit(x, y, epochs=4, batch_size=10)
    assert_same_trainer(trainer, plain)
    assert_same_trainer(copy.deepcopy(trainer), plain)


# -- history -------------------------------------------------------------------------------------------------------


def _history():
    history = fb.History()
    for k in range(4):
        history.append(
            {
                "loss": 10.0**-k,
                "accuracy": [0.1, 0.9, 0.5, 0.6][k],
                "confusion": np.eye(2),
                "val_loss": [3.0, 1.0, 2.0, math.nan][k],
                "val_accuracy": 0.5,
                "lr": 0.1 * 0.5**k,
                "batch_size": 32,
                "grad_norm": 1.0 + k,
                "time": 0.5,
            }
        )
    return history


def test_summary_says_first_last_and_best():
    text = _history().summary()
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert text.splitlines()[0] == "4 epochs, 2 s"
    assert text.splitlines()[1].split() == ["first", "last", "best", "at", "epoch"]
    assert lines == {
        "loss": ["1", "0.001", "0.001", "4"],
        "accuracy": ["0.1", "0.6", "0.9", "2"],
        "val_loss": ["3", "nan", "1", "2"],
        "val_accuracy": ["0.5", "0.5", "0.5", "1"],
        "lr": ["0.1", "0.0125"],
        "batch_size": ["32", "32"],
        "grad_norm": ["1", "4"],
    }
    assert str(_history()) == text
    assert str(fb.History()) == "0 epochs"
    assert str(fb.History(val_loss=[math.nan])).splitlines()[2].split() == ["val_loss", "nan", "nan"]


def test_plot_has_a_panel_for_what_is_a_number_and_changes(tmp_path):
    pytest.importorskip("matplotlib", reason="plot needs matplotlib")
    history = _history()
    figure = history.plot(path=tmp_path / "curves.svg")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "grad norm", "lr"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear", "linear"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1, 1]
    history["batch_size"] = [32, 32, 64, 64]
    panels = history.plot().axes
    assert [axes.get_ylabel() for axes in panels][-1] == "batch size"
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in panels] == [(2, 3)] * 5
    assert panels[-1].lines[0].get_ydata().tolist() == [32, 32, 64, 64]


def test_a_single_epoch_is_a_point():
    pytest.importorskip("matplotlib", reason="plot needs matplotlib")
    (axes,) = fb.History(loss=[0.5]).plot().axes
    assert axes.lines[0].get_marker() == "o"
    assert axes.get_xlim()[0] < 1 < axes.get_xlim()[1]


@pytest.mark.parametrize(("package", "method"), [("matplotlib.figure", "plot"), ("pandas", "to_pandas")])
def test_a_missing_package_is_named(monkeypatch, package, method):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fb.BackendError, match=rf"History.{method} needs {package.partition('.')[0]}: pip install"):
        getattr(_history(), method)()


def test_a_line_of_progress_leaves_arrays_out(capsys):
    bar = fb.ProgressBar(bar=False, lines=True)
    bar.on_epoch_begin(0, {"epochs": 1, "steps": 1, "batch_size": 1})
    bar.on_epoch_end(0, {"loss": 0.5, "confusion": np.eye(2), "lr": 0.1, "batch_size": 1, "time": 1.0})
    assert capsys.readouterr().out == "epoch 1/1  loss 0.5000  1 s\n"


@pytest.mark.parametrize(("interval", "writes"), [(3600.0, [1, 4]), (0.0, [1, 1, 1, 1, 1])])
def test_lines_beside_a_bar_come_together(monkeypatch, interval, writes):
    """The first at once, what waits with the end; none is lost, also where a fit breaks."""
    monkeypatch.setattr(fb.ProgressBar, "INTERVAL", interval)
    texts = []
    monkeypatch.setattr("fastbatch.training.callbacks.progress._PlainBar.write", lambda self, text: texts.append(text))
    monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y = make_data()
    bar = fb.ProgressBar(lines=True)
    make_trainer().fit(x, y, epochs=5, verbose=0, callbacks=[bar])
    assert [len(text.splitlines()) for text in texts] == writes
    assert [line.split()[1] for text in texts for line in text.splitlines()] == [f"{k}/5" for k in range(1, 6)]
    del texts[:]
    stop = fb.LambdaCallback(on_epoch_end=lambda epoch, logs: [][epoch - 3])
    with pytest.raises(IndexError):
        make_trainer().fit(x, y, epochs=5, verbose=0, callbacks=[bar, stop])
    assert texts[0].startswith("epoch 1/5")
