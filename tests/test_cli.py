"""The command line, as a user starts it, and what importing the package brings along."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import fastbatch as fb
from fastbatch.cli import main

OPTIONAL = ["torch", "jax", "sklearn", "matplotlib", "pandas", "tqdm", "safetensors", "numba", "scipy", "threadpoolctl"]
OPTIONAL += ["onnx", "polars", "pyarrow"]


def _run(*arguments, **environment):
    """``python -m fastbatch ...`` in a process of its own, without the FASTBATCH variables of this one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTBATCH_")}
    return subprocess.run(
        [sys.executable, "-m", "fastbatch", *map(str, arguments)],
        env={**clean, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def _assert_one_line(result, *words):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("fastbatch: ")
    for word in words:
        assert word in line


# -- info ----------------------------------------------------------------------------------------------------------


def test_info_says_what_is_chosen():
    result = _run("info")
    assert result.returncode == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"fastbatch {fb.__version__}, Python {sys.version.split()[0]}, NumPy ")
    for word in ("cpu", "threads", "backends", "reference"):
        assert any(line.split()[0] == word for line in lines)
    for row in fb.backends():
        state = "available" if row["available"] else f"not available: {row['reason']}"
        assert any(line.split(maxsplit=2)[::2] == [row["name"], state] for line in lines)


def test_info_follows_the_environment():
    result = _run("info", FASTBATCH_BACKEND="reference", FASTBATCH_NUM_THREADS="1")
    assert result.returncode == 0
    assert re.search(r"^backends +reference \(.*FASTBATCH_BACKEND", result.stdout, re.MULTILINE)
    assert re.search(r"^threads +up to 1 \(environment FASTBATCH_NUM_THREADS", result.stdout, re.MULTILINE)


def test_version():
    result = _run("--version")
    assert (result.returncode, result.stdout) == (0, f"fastbatch {fb.__version__}\n")


def test_the_installed_command_is_the_module():
    command = os.path.join(os.path.dirname(sys.executable), "fastbatch")
    if not os.path.exists(command):
        pytest.skip("the package is on the path but not installed: there is no command")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"fastbatch {fb.__version__}\n"


# -- errors --------------------------------------------------------------------------------------------------------

BAD_ENVIRONMENT = [  # a process each
    ("FASTBATCH_BACKEND", "refrence", ["'refrence'; did you mean 'reference'?"]),
    ("FASTBATCH_NUM_THREADS", "0", ["FASTBATCH_NUM_THREADS", "'0'", ">= 1"]),
    pytest.param(
        "FASTBATCH_NUM_THREADS", "two", ["FASTBATCH_NUM_THREADS", "'two'", ">= 1"], marks=pytest.mark.exhaustive
    ),
    pytest.param(
        "FASTBATCH_NUM_THREADS", "-1", ["FASTBATCH_NUM_THREADS", "'-1'", ">= 1"], marks=pytest.mark.exhaustive
    ),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD_ENVIRONMENT)
def test_a_bad_environment_is_one_line(name, value, words):
    _assert_one_line(_run("info", **{name: value}), *words)


def test_a_target_that_cannot_be_had_is_an_error_that_info_explains():
    if not fb.backends()[0]["available"]:
        pytest.skip("without the c backend there is no target to choose")
    words = "'nonsense'", "expected one of"
    page = _run("info", FASTBATCH_TARGET="nonsense")
    assert page.returncode == 0
    assert all(word in page.stdout for word in words)


@pytest.mark.exhaustive  # imports scikit-learn once more
def test_a_target_that_cannot_be_had_ends_the_demo(tmp_path):
    if not fb.backends()[0]["available"]:
        pytest.skip("without the c backend there is no target to choose")
    words = "'nonsense'", "expected one of"
    demo = _run("demo", "--epochs", 1, "--out", tmp_path / "curve.png", FASTBATCH_TARGET="nonsense")
    assert demo.returncode == 1
    assert all(word in demo.stderr for word in words)


def test_the_target_does_not_matter_to_who_does_not_use_it():
    code = (
        "import numpy as np, fastbatch as fb\n"
        "t = fb.Trainer(fb.MLP([2, 2]), 'mse')\n"
        "t.step(np.ones((3, 2)), np.ones((3, 2)))\n"
        "print(t.backend)"
    )
    environment = {**os.environ, "FASTBATCH_BACKEND": "reference", "FASTBATCH_TARGET": "nonsense"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "reference"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "-1"], ["epochs: expected", "-1"]),
        (["--epochs", "0"], ["epochs: expected", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--out", "{}/no such folder/curve.png"], ["no such folder"]),
        (["--out", "{}/curve.nonsense"], ["nonsense"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_argument_of_the_demo_is_one_line(arguments, words, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    arguments = [text.replace("{}", str(tmp_path)) for text in arguments]
    # what is left unsaid is cheap: an error must come before, or right after, one epoch
    defaults = ["--epochs", "1", "--out", str(tmp_path / "curve.png")]
    assert main(["demo", *defaults, *arguments]) == 1  # anything raised here is a traceback there
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fastbatch: ")
    for word in words:
        assert word in line


@pytest.mark.exhaustive  # what the cases above say, by a process
def test_an_unwritable_path_exits_with_one(tmp_path):
    pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    _assert_one_line(_run("demo", "--epochs", 1, "--out", tmp_path / "no such folder" / "curve.png"), "no such folder")


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_the_demo_without_its_libraries_names_them(missing, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", "--epochs", "1", "--out", str(tmp_path / "curve.png")]) == 1
    assert "pip install 'fastbatch[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["demo", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (
            ["train", "t.csv", "--target", "y", "--hidden", "8,many"],
            "--hidden: expected widths such as 64,64, got '8,many'",
        ),
        (["train", "t.csv", "--target", "y", "--batch-size", "all"], "expected a number of rows or full, got 'all'"),
    ],
)
def test_usage_errors_are_argparses(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: fastbatch")
    assert words in said


# -- demo ----------------------------------------------------------------------------------------------------------


def _accuracy(result):
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"test accuracy: [01]\.\d{3}", last)
    return float(last.rpartition(" ")[2])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of five epochs: the process's result and the picture's path. `.ci/run` begins with the demo, too."""
    pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    picture = tmp_path_factory.mktemp("demo") / "curve.png"
    return _run("demo", "--epochs", 5, "--out", picture), picture


@pytest.mark.exhaustive
def test_the_demo_learns_and_ends_with_the_accuracy(demo):
    result, _ = demo
    # one in ten by chance; five epochs are a twelfth of the default
    assert 0.9 < _accuracy(result) <= 1


@pytest.mark.exhaustive
def test_the_demo_draws_the_curve(demo):
    result, picture = demo
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(picture) in result.stdout


@pytest.mark.exhaustive
def test_the_demo_prints_every_epoch_and_what_ran(demo):
    result, _ = demo
    epochs = [line for line in result.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == [f"{k}/5" for k in range(1, 6)]
    for word in ("loss ", "accuracy ", "val_loss ", "val_accuracy "):
        assert all(word in line for line in epochs)
    assert "epoch 5/5" in result.stderr  # the bar
    info = fb.info()
    ran = f"backend {info['backend']}" + (f", target {info['target']}" if info["backend"] == "c" else "")
    assert re.search(rf"^{ran}, \d+ thread\(s\)", result.stdout, re.MULTILINE)


@pytest.mark.exhaustive  # sixty epochs
def test_the_demo_of_the_readme_reaches_its_accuracy(tmp_path):
    pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    if not fb.backends()[0]["available"]:
        pytest.skip("sixty epochs are for the c backend")
    assert _accuracy(_run("demo", "--out", tmp_path / "curve.png")) >= 0.97


@pytest.mark.exhaustive  # imports scikit-learn once more
def test_the_demo_runs_on_the_reference(tmp_path):
    pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    result = _run("demo", "--epochs", 2, "--out", tmp_path / "curve.png", FASTBATCH_BACKEND="reference")
    assert _accuracy(result) > 0.5
    assert "backend reference" in result.stdout


# -- import --------------------------------------------------------------------------------------------------------


def _python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_import_brings_nothing_optional():
    code = f"import fastbatch, sys; print(sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    assert _python(code).strip() == "[]"


def test_training_brings_nothing_optional():
    code = (
        "import fastbatch as fb, numpy as np, sys\n"
        "t = fb.Trainer(fb.MLP([2, 4, 2]))\n"
        "t.fit(np.ones((8, 2)), np.zeros(8, int), validation_split=0.5, verbose=0)\n"
        f"print(sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    )
    assert _python(code).strip() == "[]"


def test_import_touches_no_warning_filter_and_prints_nothing():
    code = (
        "import numpy, warnings\n"
        "before, errors = list(warnings.filters), numpy.geterr()\n"
        "import fastbatch\n"
        "assert warnings.filters == before and numpy.geterr() == errors"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.exhaustive  # five processes
def test_import_time_is_reported():
    code = (
        "import time, numpy\nstart = time.perf_counter()\nimport fastbatch\nprint(1e3 * (time.perf_counter() - start))"
    )
    times = [float(_python(code)) for _ in range(5)]
    print(f"import fastbatch over NumPy: {min(times):.1f} ms at best, {sorted(times)[2]:.1f} ms median of 5")
    assert len(times) == 5
