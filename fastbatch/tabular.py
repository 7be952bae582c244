"""``fastbatch train`` and ``fastbatch predict``: a CSV or Parquet file to a model, and a model to predictions."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checks, storage
from .arrays import as_array
from .data.scaling import standardization
from .data.splits import validation_split
from .errors import ArgumentError, BackendError, CheckpointError, DataError, DTypeError
from .model import MLP, Sequential, model_from, model_parts
from .ops.optimizers import Adam
from .training import EarlyStopping, Trainer

__all__ = ["TASKS", "predict_table", "train_table"]

TASKS = ("auto", "classification", "regression")

# Whole numbers of more values than that are taken for amounts, not for classes
_MOST_CLASSES = 20

# Share of the largest output by which the saved model may differ from the one that was trained on scaled columns
_FOLDING = 1e-3

# Epochs without a better validation loss
_PATIENCE = 10


def train_table(
    path: str,
    target: str,
    *,
    out: str,
    task: str = "auto",
    drop: Sequence[str] = (),
    hidden: Sequence[int] = (64, 64),
    epochs: int = 100,
    batch_size: int | str = 32,
    lr: float = 1e-3,
    validation: float = 0.2,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    """Train on a table and save a model that takes its columns as they are; prints what is done and the score."""
    checks.batch_size(batch_size, "--batch-size")
    checks.count("--epochs", epochs)
    checks.seed("--seed", seed)
    if checks.fraction("--validation", validation) == 0:
        raise ArgumentError("--validation: expected a share of the rows above 0, by which the model is chosen; got 0")
    storage.folder_of(out)
    table = Table(path)
    for name in (target, *drop):
        table.need(name)
    names = [name for name in table.names if name != target and name not in drop]
    if not names:
        raise DataError(f"{path}: expected columns beside the target {target!r}, got none")
    y, classes, why = _targets(table.column(target), target, task)
    x = _numbers(table, names, "or leave them out with --drop")
    rows, held_out = validation_split(y if classes is not None else y[:, None], validation, seed)
    what = "regression" if classes is None else f"classification, {len(classes)} classes"
    print(f"{path}: {len(x)} rows, {len(rows)} to train on, {len(held_out)} held out; {len(names)} columns")
    print(f"target {target}: {what}, because {why}")

    model = MLP([len(names), *hidden, 1 if classes is None else len(classes)], seed=seed, dtype=dtype)
    scale, shift = np.ones(1), np.zeros(1)
    if classes is None:
        scale, shift = standardization(y[:, None], rows, "float64")
    scaled = y if classes is not None else y * scale + shift
    trainer = Trainer(model, "mse" if classes is None else "cross_entropy", Adam(lr=lr), seed=seed)
    history = trainer.fit(
        x[rows], scaled[rows], batch_size=batch_size, epochs=epochs, verbose=1, input_scale="standardize",
        validation_data=(x[held_out], scaled[held_out]), callbacks=[EarlyStopping("val_loss", patience=_PATIENCE)],
    )  # fmt: skip
    _fold(trainer, x[rows[:1000]], scale, shift)

    tensors, description = model_parts(model)
    about = {"columns": names, "target": target, "classes": classes}
    storage.write(out, tensors, {"model": json.dumps(description), "table": json.dumps(about)})
    best = int(np.argmin(history["val_loss"])) + 1
    print(f"{len(history['val_loss'])} epochs, the weights of epoch {best}, with the least validation loss: {out}")
    print(_score(model, x[held_out], y[held_out], classes))


def predict_table(model_path: str, path: str, *, out: str | None = None, probabilities: bool = False) -> None:
    """Predictions for the rows of a table, as CSV with a header."""
    if out is not None:
        storage.folder_of(out)
        for source in (model_path, path):
            if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
                raise ArgumentError(f"--out: expected another file than those that are read, got {out}")
    tensors, metadata = storage.read(model_path)
    if "table" not in metadata:
        raise CheckpointError(f"{model_path}: expected a model of `fastbatch train`, got one without names of columns")
    with storage.damaged(model_path, "description of the model"):
        model, about = model_from(json.loads(metadata["model"]), tensors), json.loads(metadata["table"])
        names, target, classes = about["columns"], about["target"], about["classes"]
    if probabilities and classes is None:
        raise ArgumentError(f"--probabilities: expected a model of classes, got one of amounts: {model_path}")
    table = Table(path)
    missing = [name for name in names if name not in table.names]
    if missing:
        raise DataError(
            f"{path}: expected the columns that {model_path} was trained on, got none named {_list(missing)}"
        )
    outputs = model.predict(_numbers(table, names, "as they were in training"))
    if probabilities:
        assert model.loss is not None
        header = [f"{target}={name}" for name in classes]
        rows: Iterable = ([str(value) for value in row] for row in model.loss.probabilities(outputs))
    elif classes is not None:
        header, rows = [target], ([classes[k]] for k in outputs.argmax(axis=1))
    else:
        header, rows = [target], ([str(value)] for value in outputs[:, 0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    if out is None:
        print(text.getvalue(), end="", flush=True)
    else:
        storage.write_bytes(out, text.getvalue().encode())


class Table:
    """A file of columns, read by pyarrow or else by pandas.

    Raises
    ------
    BackendError
        When neither is installed.
    ArgumentError
        For a name that ends in neither .csv nor .parquet.
    DataError
        For a file that cannot be parsed.
    """

    def __init__(self, path: str) -> None:
        self.path, kind = path, Path(path).suffix.lower()
        if kind not in (".csv", ".parquet"):
            raise ArgumentError(f"{path}: expected a file named .csv or .parquet, got {kind or 'no ending'!r}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: expected a file, got none")
        read, self._select = _reader(kind)
        try:
            self._table = read(path)
        except ImportError as error:  # pandas reads Parquet through others
            raise BackendError(f"{kind} needs pyarrow: pip install 'fastbatch[tables]' ({error})") from error
        except ValueError as error:  # both libraries' errors of parsing are
            raise DataError(f"{path}: expected a table with a header, got what cannot be parsed: {error}") from error
        self.names = [str(name) for name in getattr(self._table, "column_names", self._table.columns)]
        if len(set(self.names)) != len(self.names):
            raise DataError(f"{path}: expected names of columns that differ, got {_list(self.names)}")
        if len(self._table) == 0:
            raise DataError(f"{path}: expected at least 1 row, got none")

    def need(self, name: str) -> None:
        if name not in self.names:
            raise ArgumentError(f"{self.path}: expected one of the columns {_list(self.names)}; got {name!r}")

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self._table[name])

    def numbers(self, names: list[str]) -> np.ndarray:
        return as_array(self._select(self._table, names), self.path)


def _reader(kind: str) -> tuple[Any, Any]:
    """Functions that read a file, and that pick columns."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        read = pyarrow.csv.read_csv if kind == ".csv" else pyarrow.parquet.read_table
        return read, lambda table, names: table.select(names)
    try:
        import pandas
    except ImportError as error:
        raise BackendError(f"tables need pyarrow or pandas: pip install 'fastbatch[tables]' ({error})") from error
    return pandas.read_csv if kind == ".csv" else pandas.read_parquet, lambda table, names: table[names]


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _numbers(table: Table, names: list[str], hint: str) -> np.ndarray:
    try:
        x = table.numbers(names)
    except DTypeError as error:
        raise DTypeError(f"{error}; encode them as numbers, {hint}") from error
    bad = checks.first_nonfinite(x)
    if bad is not None:
        row, column = bad
        raise DataError(
            f"{table.path}: expected finite numbers, got {x[row, column]} in row {row} of {names[column]!r}"
        )
    return x


def _targets(values: np.ndarray, name: str, task: str) -> tuple[np.ndarray, list | None, str]:
    """Numbers of classes and their values, or amounts and None; and why."""
    words = values.dtype.kind not in "fiub"
    missing = (
        [v is None or v != v or v == "" for v in values.tolist()] if words else np.isnan(values.astype(np.float64))
    )
    if np.any(missing):
        raise DataError(f"target {name!r}: expected a value in every row, got none in row {int(np.argmax(missing))}")
    if words or values.dtype.kind == "b":
        if task == "regression":
            raise ArgumentError(f"--task regression: expected a target of numbers, got {values.dtype} in {name!r}")
        why, decided = ("its values are no numbers" if words else "its values are true and false"), "classification"
    else:
        whole = bool((values == np.floor(values)).all())
        few = whole and len(np.unique(values)) <= _MOST_CLASSES
        decided = "classification" if few else "regression"
        why = f"its values are {'whole' if whole else 'no whole'} numbers"
        why += f", {'at most' if few else 'more than'} {_MOST_CLASSES} different ones" if whole else ""
    if task != "auto":
        decided, why = task, f"--task {task} says so"
    if decided == "regression":
        checks.check_finite(values, f"target {name!r}")
        return values.astype(np.float64), None, why
    not_text = [isinstance(v, bytes) for v in values.tolist()] if words else [False]
    if any(not_text):
        raise DataError(f"target {name!r}: expected text in UTF-8, got {values[not_text.index(True)]!r}")
    classes, y = np.unique(values.astype(str) if words else values, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"target {name!r}: expected at least 2 classes, got only {classes.tolist()}")
    return y, classes.tolist(), why


def _fold(trainer: Trainer, x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    """Make the model take columns as they are and give amounts as they are, and see that it does."""
    before = trainer.predict(x).astype(np.float64)
    trainer.fold_input_scale()
    off = np.abs(trainer.model.predict(x) - before).max() / np.abs(before).max()
    if not off <= _FOLDING:
        raise DataError(
            f"expected a model of raw columns within {_FOLDING:g} of that of scaled ones, got {off:.1g}: columns lie "
            "further from 0 than their spread allows in float32; --dtype float64 has the digits"
        )
    w, b = trainer.model.weights[-1]
    assert b is not None
    w /= scale
    b -= shift
    b /= scale


def _score(model: Sequential, x: np.ndarray, y: np.ndarray, classes: list | None) -> str:
    outputs = model.predict(x).astype(np.float64)
    if classes is not None:
        return f"validation accuracy: {np.mean(outputs.argmax(axis=1) == y):.3f}"
    squares = np.mean((outputs[:, 0] - y) ** 2)
    return f"validation r2: {1 - squares / max(np.var(y), np.finfo(float).tiny):.3f}, rmse: {np.sqrt(squares):.6g}"
