"""``fastbatch train`` and ``fastbatch predict``: tables in, a model of raw columns, predictions out."""

from __future__ import annotations

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

import fastbatch as fb
from fastbatch.cli import main

ROWS = 300
RNG = np.random.default_rng(0)
# far from 0 and of unlike spreads: a model that is not told so learns nothing
COLUMNS = {
    "year": RNG.integers(1990, 2030, ROWS),
    "income": RNG.normal(50_000, 9000, ROWS).round(2),
    "member": RNG.random(ROWS) < 0.5,
    "dose": RNG.normal(0, 1e-3, ROWS),
}
SCORE = (COLUMNS["year"] - 2010) / 12 + (COLUMNS["income"] - 50_000) / 9000 + COLUMNS["member"]
KIND = np.where(SCORE > 0.5, "high, indeed", np.where(SCORE < -0.5, "low", "Ärger"))
PRICE = 300_000 + 40_000 * SCORE
X = np.column_stack(list(COLUMNS.values())).astype(np.float64)


def write(path, columns) -> str:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
        pyarrow.write_table(pytest.importorskip("pyarrow").table(columns), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values())])
    return str(path)


def read(text: str) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(text.splitlines())
    return header, rows


@pytest.fixture(params=["pyarrow", "pandas"])
def reader(request, monkeypatch) -> str:
    pytest.importorskip(request.param, reason=f"needs {request.param}")
    if request.param == "pandas":
        monkeypatch.setitem(sys.modules, "pyarrow.csv", None)  # not all of pyarrow, which pandas itself may use
    return request.param


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: exit status, standard output, last line of errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        return status, out, (error.strip().splitlines() or [""])[-1]

    return run


def trained(command, *arguments) -> str:
    status, out, error = command("train", *arguments)
    assert status == 0, error
    return out


def test_classes(command, reader, tmp_path):
    table = write(tmp_path / "people.csv", {**COLUMNS, "kind": KIND})
    out = trained(command, table, "--target", "kind", "--out", "people.safetensors", "--lr", 0.01)
    assert f"{table}: 300 rows, 240 to train on, 60 held out; 4 columns\n" in out
    assert "target kind: classification, 3 classes, because its values are no numbers\n" in out
    score = float(re.search(r"^validation accuracy: (\d\.\d{3})$", out, re.MULTILINE)[1])
    assert 0.85 < score <= 1

    status, out, _ = command("predict", "people.safetensors", table)
    header, rows = read(out)
    assert (status, header) == (0, ["kind"])
    got = np.array([row[0] for row in rows])
    assert np.mean(got == KIND) > 0.9
    model = fb.load("people.safetensors")
    assert model.num_parameters == 4 * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3
    names = np.unique(KIND)
    assert (names[model.predict(X).argmax(axis=1)] == got).all(), "the model takes raw columns in the table's order"

    status, out, _ = command("predict", "people.safetensors", table, "--probabilities")
    header, rows = read(out)
    assert header == [f"kind={name}" for name in names]
    np.testing.assert_array_equal(np.array(rows, np.float32), model.predict_proba(X))


def test_the_best_epoch_of_the_held_out_rows_is_saved(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = write(
        tmp_path / "noise.csv", {"a": COLUMNS["dose"], "b": RNG.normal(size=ROWS), "y": RNG.random(ROWS) < 0.5}
    )
    out = trained(command, table, "--target", "y", "--lr", 0.01)
    epochs, best = map(int, re.search(r"^(\d+) epochs, the weights of epoch (\d+)", out, re.MULTILINE).groups())
    assert epochs == best + 10 < 100
    scores = re.findall(r"val_accuracy (\S+)", out)
    assert f"validation accuracy: {float(scores[best - 1]):.3f}\n" in out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_amounts(command, tmp_path, ending):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = write(tmp_path / f"homes.{ending}", {**COLUMNS, "price": PRICE})
    out = trained(command, table, "--target", "price", "--hidden", "32", "--lr", 0.01)
    assert "target price: regression, because its values are no whole numbers\n" in out
    found = re.search(r"^validation r2: (\S+), rmse: (\S+)$", out, re.MULTILINE)
    assert 0.95 < float(found[1]) < 1
    status, out, _ = command("predict", "model.safetensors", table, "--out", "prices.csv")
    assert (status, out) == (0, "")
    header, rows = read((tmp_path / "prices.csv").read_text())
    assert header == ["price"]
    assert len(fb.load("model.safetensors").weights) == 2
    error = np.sqrt(np.mean((np.array(rows, float)[:, 0] - PRICE) ** 2))
    assert 0.3 < error / float(found[2]) < 2, "predictions are on the scale of the target, the score of held-out rows"


def test_columns_are_found_by_name(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = write(tmp_path / "a.csv", {**COLUMNS, "name": KIND, "kind": KIND})
    trained(command, table, "--target", "kind", "--drop", "name", "--epochs", 3)
    _, wanted, _ = command("predict", "model.safetensors", table, "--probabilities")
    other = {"new": KIND, **dict(reversed(COLUMNS.items()))}
    _, got, _ = command("predict", "model.safetensors", write(tmp_path / "b.csv", other), "--probabilities")
    assert got == wanted
    del other["dose"], other["year"]
    status, _, error = command("predict", "model.safetensors", write(tmp_path / "c.csv", other))
    assert status == 1
    assert "expected the columns that model.safetensors was trained on, got none named 'year', 'dose'" in error


TARGETS = {
    "text": (KIND, (), "classification, 3 classes", ["high, indeed", "low", "Ärger"]),
    "bool": (SCORE > 0, (), "classification, 2 classes", ["False", "True"]),
    "few": (np.digitize(SCORE, [0, 1]) + 5, (), "classification, 3 classes", ["5", "6", "7"]),
    "few-floats": (np.digitize(SCORE, [0, 1]) + 5.0, (), "classification, 3 classes", ["5.0", "6.0", "7.0"]),
    "as-told": (np.digitize(SCORE, [0, 1]), ("--task", "regression"), "regression, because --task", None),
    "many": (np.arange(ROWS) % 21, (), "regression, because its values are whole numbers, more than 20", None),
    "many-as-told": (np.arange(ROWS) % 21, ("--task", "classification"), "classification, 21 classes", None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_target_is(command, reader, tmp_path, name):
    y, options, words, values = TARGETS[name]
    table = write(tmp_path / "t.csv", {**COLUMNS, "y": y})
    out = trained(command, table, "--target", "y", "--epochs", 2, *options)
    assert f"target y: {words}" in out
    _, rows = read(command("predict", "model.safetensors", table)[1])
    if values is not None:
        assert {row[0] for row in rows} <= set(values)
        header, _ = read(command("predict", "model.safetensors", table, "--probabilities")[1])
        assert header == [f"y={value}" for value in values]


def with_(name: str, row: int, value) -> dict:
    columns = {**COLUMNS, "kind": KIND, "price": PRICE}
    columns[name] = [value if k == row else old for k, old in enumerate(columns[name])]
    return columns


PLAIN = {**COLUMNS, "kind": KIND, "price": PRICE}
BAD = {
    "target": (PLAIN, ["--target", "prize"], "expected one of the columns 'year', .*'price'; got 'prize'"),
    "drop": (PLAIN, ["--drop", "kind,x"], "expected one of the columns .*; got 'x'"),
    "words": (PLAIN, ["--target", "price"], r"expected numeric columns, got kind \(\w+\); encode them .*--drop"),
    "nothing": ({"kind": KIND}, [], "expected columns beside the target 'kind', got none"),
    "missing": (with_("income", 7, None), ["--drop", "price"], "got nan in row 7 of 'income'"),
    "infinite": (with_("dose", 8, "inf"), ["--drop", "price"], "got inf in row 8 of 'dose'"),
    "no-target": (
        with_("price", 5, ""),
        ["--target", "price", "--drop", "kind"],
        "a value in every row, got none in row 5",
    ),
    "no-class": (with_("kind", 3, ""), ["--drop", "price"], "a value in every row, got none in row 3"),
    "seed": (PLAIN, ["--drop", "price", "--seed", "-1"], "--seed: expected an integer"),
    "one-class": ({**COLUMNS, "kind": ["a"] * ROWS}, [], r"expected at least 2 classes, got only \['a'\]"),
    "amount-of-words": (PLAIN, ["--task", "regression", "--drop", "price"], "expected a target of numbers, got object"),
    "far": ({"t": 1e6 + COLUMNS["dose"], "kind": KIND}, [], "--dtype float64 has the digits"),
    "split": (PLAIN, ["--drop", "price", "--validation", "0"], "--validation: expected a share"),
    "epochs": (PLAIN, ["--drop", "price", "--epochs", "0"], "--epochs: expected"),
    "batch": (PLAIN, ["--drop", "price", "--batch-size", "0"], "--batch-size: expected"),
    "width": (PLAIN, ["--drop", "price", "--hidden", "0"], "expected an integer >= 1, got 0"),
    "out": (PLAIN, ["--drop", "price", "--out", "no such folder/m"], "expected a folder that exists, got no such"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_on_is_one_line(command, tmp_path, name):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    columns, options, words = BAD[name]
    table = write(tmp_path / "t.csv", columns)
    status, out, error = command("train", table, "--target", "kind", "--epochs", 2, *options)
    assert status == 1
    assert "epoch" not in out or name == "far", "what is refused is refused before the training"
    assert error.startswith("fastbatch: ")
    assert re.search(words, error)
    assert not list(tmp_path.glob("*.safetensors"))


def test_columns_far_from_zero_have_their_digits_in_float64(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    t = 1e6 + RNG.normal(0, 1e-2, ROWS)
    table = write(tmp_path / "t.csv", {"t": t, "late": t > 1e6})
    out = trained(command, table, "--target", "late", "--dtype", "float64", "--lr", 0.01)
    assert float(re.search(r"accuracy: (.*)", out)[1]) > 0.9
    assert fb.load("model.safetensors").dtype == "float64"


def test_files_that_are_no_tables(command, tmp_path, reader):
    for name, text, words in (
        ("a.txt", "a,b\n1,2\n", "expected a file named .csv or .parquet, got '.txt'"),
        ("a.csv", "", "expected a table with a header, got what cannot be parsed"),
        ("b.csv", "a,b\n", "expected at least 1 row, got none"),
        ("c.csv", "a,b\n1,2,3\n4\n1,2,3,4,5\n", "expected a table with a header, got what cannot be parsed"),
    ):
        (tmp_path / name).write_text(text)
        status, _, error = command("train", name, "--target", "b")
        assert status == 1, name
        assert words in error
    assert "expected a file, got none" in command("train", "nowhere.csv", "--target", "b")[2]
    (tmp_path / "latin.csv").write_bytes("a,k\n1,h\xe4\n2,lo\n3,lo\n".encode("latin-1"))
    status, _, error = command("train", tmp_path / "latin.csv", "--target", "k")
    assert status == 1
    assert error.startswith("fastbatch: ")


def test_only_models_of_the_command_know_columns(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = write(tmp_path / "t.csv", {**COLUMNS, "price": PRICE})
    fb.MLP([4, 1]).save("plain.safetensors")
    status, _, error = command("predict", "plain.safetensors", table)
    assert status == 1
    assert "expected a model of `fastbatch train`, got one without names of columns" in error
    trained(command, table, "--target", "price", "--epochs", 1)
    assert "--out: expected another file" in command("predict", "model.safetensors", table, "--out", table)[2]
    assert (
        "--probabilities: expected a model of classes"
        in command("predict", "model.safetensors", table, "--probabilities")[2]
    )


def test_without_a_library_that_reads_tables(command, tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas", reason="needs pandas")

    def none_of_them(path):
        raise ImportError("Unable to find a usable engine")

    table = write(tmp_path / "t.csv", COLUMNS)
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    monkeypatch.setattr(pandas, "read_parquet", none_of_them)
    assert (
        ".parquet needs pyarrow: pip install 'fastbatch[tables]'" in command("train", "t.parquet", "--target", "y")[2]
    )
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "pyarrow or pandas: pip install 'fastbatch[tables]'" in command("train", table, "--target", "dose")[2]


def test_auto_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command("train", "t.csv", "--target", "y", "--batch-size", "auto")
    assert "expected a number of rows or full; auto is not built yet" in capsys.readouterr().err


def test_a_reader_that_has_enough(command, tmp_path):
    """``fastbatch predict ... | head``: no message, no success."""
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = write(tmp_path / "t.csv", COLUMNS)
    trained(command, table, "--target", "year", "--epochs", 1)
    arguments = [sys.executable, "-m", "fastbatch", "predict", "model.safetensors", table]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
