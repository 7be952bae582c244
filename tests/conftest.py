"""Backends under test, and the promise that what CI names did run.

FASTBATCH_EXPECT="c,reference,numba,torch,sklearn,keras,cc" fails the session when a backend, a peer or the C compiler
of that list is not available, so that a skip cannot pass for a success.
"""

from __future__ import annotations

import collections
import importlib
import os
import shutil
import sys

import cases
import numpy as np
import pytest
import tiers

import fastbatch as fb

os.environ.setdefault("KERAS_BACKEND", "numpy")  # the formulas of its optimizers, and no other library

_ran: collections.Counter[str] = collections.Counter()


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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        _ran.update(dict(report.user_properties).get("subjects", ()))


@pytest.hookimpl(tryfirst=True)  # before -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.mark(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    params = getattr(getattr(item, "callspec", None), "params", {})
    named = {getattr(params.get("case"), "subject", None), params.get("subject"), params.get("fused")}
    item.user_properties.append(("subjects", sorted(named & set(cases.SUBJECTS))))


def pytest_terminal_summary(terminalreporter) -> None:
    counts = ", ".join(f"{name} {_ran[name]}" for name in cases.SUBJECTS)
    terminalreporter.write_line(f"tests that ran per backend and target: {counts}")


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
