"""Backends under test, and the promise that what CI names did run.

FASTBATCH_EXPECT="c,reference,numba,torch,sklearn,keras,cc" fails the session when a backend, a peer or the C compiler
of that list is not available, so that a skip cannot pass for a success.
"""

from __future__ import annotations

import collections
import importlib
import os
import shutil
import subprocess
import sys

import cases
import numpy as np
import pytest
import tiers

import fastbatch as fb

os.environ.setdefault("KERAS_BACKEND", "numpy")  # the formulas of its optimizers, and no other library

NAMES = {*cases.SUBJECTS, *(str(row["name"]) for row in fb.backends() if row["available"])}
# Compiles the float64 kernels of the numba backend, 20 s, and leaves them in its cache
COMPILE = """import numpy as np, fastbatch as fb
fb.Trainer(fb.MLP([2, 1], dtype="float64"), "mse", backend="numba").step(np.zeros((1, 2)), np.zeros((1, 1)))"""
_compiling: list[subprocess.Popen] = []
_ran: collections.Counter[tuple[str, str]] = collections.Counter()  # by backend or target, and suite
_left: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)  # reasons


def _missing(expected: str) -> list[str]:
    known = {row["name"]: row["reason"] for row in fb.backends()}
    missing = []
    for name in filter(None, map(str.strip, expected.split(","))):
        if name in known:
            missing += [f"backend {name}: {known[name]}"] * bool(known[name])
        elif name.partition("-")[0] in known:  # a target, such as c-avx2
            missing += [f"target {name}: not usable here"] * (name not in cases.SUBJECTS)
        elif name == "cc":
            compiler = os.environ.get("CC", "cc")
            missing += [f"compiler {compiler}: not installed"] * (not shutil.which(compiler))
        else:
            try:
                importlib.import_module(name)
            except ImportError as error:
                missing.append(f"peer {name}: {error}")
    return missing


def pytest_sessionstart(session: pytest.Session) -> None:
    missing = _missing(os.environ.get("FASTBATCH_EXPECT", ""))
    if missing:
        pytest.exit("FASTBATCH_EXPECT names what is not available: " + "; ".join(missing), returncode=3)
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.collectonly
    if whole and "numba" in cases.SUBJECTS:  # beside collection, and beside float32 in the first test that asks for it
        command = [sys.executable, "-c", COMPILE]
        _compiling.append(subprocess.Popen(command, cwd=config.rootpath, stderr=subprocess.DEVNULL))


def pytest_sessionfinish() -> None:
    for process in _compiling:
        process.kill()
        process.wait()


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch = sys.modules.get("torch")
    if torch and torch.get_num_threads() > 1:  # they spin over small networks: 50 steps take 3 s instead of 0.05 s
        torch.set_num_threads(1)
    if _compiling and "numba" in _subjects(item) and tiers.axes(item.callspec.params).get("dtype") != "float32":
        _compiling.pop().wait()


def _subjects(item: pytest.Item) -> set[str]:
    """The backends and targets that the parameters of a test name."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return {name for name in (*params.values(), getattr(params.get("case"), "subject", "")) if isinstance(name, str)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suites", action="store_true", help="end with what ran and what did not, per backend and file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    places = [(name, report.fspath) for name in dict(report.user_properties).get("subjects", ())]
    if report.skipped:
        reason = getattr(report, "wasxfail", "") or report.longrepr[2].removeprefix("Skipped: ")
        for place in places:
            _left[place][reason] += 1
    elif report.when == "call":
        _ran.update(places)


@pytest.hookimpl(tryfirst=True)  # before -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.mark(items)
    for item in items:
        item.user_properties.append(("subjects", sorted(_subjects(item) & NAMES)))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        tier = next((name for name in ("exhaustive", "gpu") if item.get_closest_marker(name)), "default")
        for name in dict(item.user_properties)["subjects"]:
            _left[name, item.location[0]][f"not selected ({tier} tier)"] += 1


def _reasons(places: list[tuple[str, str]]) -> str:
    found = sum((_left[place] for place in places), collections.Counter())
    return ", ".join(f"{count} {reason}" for reason, count in found.most_common())


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    places = sorted({*_ran, *_left})
    subjects = {name: [place for place in places if place[0] == name] for name in sorted(NAMES)}
    counts = ", ".join(f"{name} {sum(_ran[place] for place in own)}" for name, own in subjects.items())
    terminalreporter.write_line(f"tests that ran per backend and target: {counts}")
    for name, own in subjects.items():
        if _reasons(own):
            terminalreporter.write_line(f"not run of {name}: {_reasons(own)}")
    if config.getoption("suites"):
        for place in places:
            terminalreporter.write_line(f"{' '.join(place)}: {_ran[place]} ran; not run: {_reasons([place]) or 0}")


@pytest.fixture(params=list(cases.SUBJECTS))
def subject(request) -> str:
    """Name of a backend or target; `cases.SUBJECTS` has it."""
    return request.param


@pytest.fixture(params=cases.FUSED)
def fused(request) -> str:
    """Name of a target that offers fused programs."""
    return request.param


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the test's own id."""
    return cases.rng_of(request.node.name)


@pytest.fixture
def public(monkeypatch):
    """``public(subject)`` makes `fastbatch.kernels` and trainers run that target, and gives the backend's name."""

    def use(subject: str) -> str:
        name = subject.partition("-")[0]
        monkeypatch.setitem(sys.modules["fastbatch.backends"]._loaded, name, cases.SUBJECTS[subject])
        return name

    return use


@pytest.fixture(params=["parts", "blocks"])
def order_of_sums(request, monkeypatch) -> str:
    """Gradients as small networks have them summed, from parts of the batch, and as large ones, in one chain."""
    monkeypatch.setattr("fastbatch.plan.SMALL_GRADIENT", 8192 if request.param == "parts" else 0)
    return request.param
