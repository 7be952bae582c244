"""The C driver (tests/driver/driver.c) accepts every target, and rejects what is wrong. `make test-arm` is its use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest

if not cases.C_TARGETS:
    pytest.skip("the C extension is not built: its rows name what the driver is asked for", allow_module_level=True)
import drive

ROOT = Path(__file__).parents[1]
MISSING = [tool for tool in ("make", os.environ.get("CC", "cc")) if not shutil.which(tool)]
# the driver is the kernels compiled once more: half a minute
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def driver() -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # make sanitize
    command = ["make", "--silent", f"-j{os.cpu_count()}", "build/driver/driver"]
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return [str(ROOT / "build/driver/driver")]


def judge(driver: list[str], target: tuple[str, str], found: list) -> subprocess.CompletedProcess:
    return drive.judge(driver, target, found, capture_output=True, text=True)


TARGETS = [(name.removeprefix("c-"), dtype) for name in cases.C_TARGETS for dtype in cases.DTYPES]


def test_the_driver_has_the_targets_of_the_library(driver):
    targets = drive.targets(driver)
    assert targets == {(name, dtype): cases.SUBJECTS[f"c-{name}"].shape(dtype) for name, dtype in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
def test_every_target_passes(driver, target):
    result = judge(driver, target, drive.calls(*target, drive.targets(driver)[target]))
    assert result.returncode == 0, result.stdout + result.stderr


TABLE = re.search(r"typedef struct fb_kernels \{.*?\n\} fb_kernels;", (ROOT / "csrc/fastbatch.h").read_text(), re.S)[0]
KERNELS = re.findall(r"\(\*(\w+)\)\(", TABLE)


@pytest.fixture(scope="module", params=cases.DTYPES)
def some_of_all(request, driver, tmp_path_factory) -> list[str]:
    """Target, dtype and a file with fewer cases."""
    target = TARGETS[-1][0], request.param
    path = tmp_path_factory.mktemp("driver") / "some.cases"
    with open(path, "wb") as file:
        for call in drive.calls(*target, drive.targets(driver)[target], every=24):
            call.write(file)
    return [*target, str(path)]


def test_some_of_all_pass(driver, some_of_all):
    assert subprocess.run([*driver, *some_of_all]).returncode == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_of_the_table_is_needed(driver, some_of_all, kernel):
    """One that does nothing is found, by a wrong number or a crash: so no kernel runs on no emulated target."""
    listed = subprocess.run(driver, check=True, capture_output=True, text=True).stdout
    assert {int(line.split()[-1]) for line in listed.splitlines()} == {len(KERNELS)}
    result = subprocess.run([*driver, *some_of_all, str(KERNELS.index(kernel))], capture_output=True, timeout=60)
    assert result.returncode not in (0, 2), result.stderr


@pytest.fixture(scope="module")
def one_of_each(driver) -> dict[str, drive.Call]:
    name, shape = next(iter(drive.targets(driver).items()))
    found = {}
    for call in drive.calls(*name, shape):
        found[call.verb] = call  # the last one: not a width of 1, not the identity
    return found


VERBS = [
    "dense_forward", "dense_backward", "activate", "slope", "loss", "update", "dropout", "gather", "convert", "mix",
    "noise", "permutation", "multiply_adds", "accumulate", "run", "predict",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_expectation_is_rejected(driver, one_of_each, verb):
    assert set(one_of_each) == set(VERBS)
    call = one_of_each[verb]
    target = next(iter(drive.targets(driver)))
    assert judge(driver, target, [call]).returncode == 0
    for name in call.outputs:
        if not call.outputs[name].size:
            continue
        exact, bound = (np.broadcast_to(v, call.outputs[name].shape).astype(np.float64) for v in call.expected[name])
        at = np.flatnonzero(np.isfinite(exact))[-1]
        for wrong in (2 * bound.flat[at] + 1e-30 + 1e-2 * abs(exact.flat[at]), np.nan, np.inf):
            moved = exact.copy()
            moved.flat[at] += wrong
            changed = replace(call, expected={**call.expected, name: (moved, bound)})
            result = judge(driver, target, [call, changed])
            assert result.returncode == 1, f"{name} + {wrong}: {result.stdout}{result.stderr}"
            assert f"{call.name}: {name}[" in result.stdout
        unbounded = replace(call, expected={**call.expected, name: (exact, np.full_like(bound, np.inf))})
        assert judge(driver, target, [unbounded]).returncode == 1


def test_a_written_input_and_a_written_margin_are_rejected(driver, one_of_each):
    target = next(iter(drive.targets(driver)))
    call = one_of_each["gather"]
    as_input = replace(call, inputs={**call.inputs, **call.outputs}, outputs={}, expected={})
    result = judge(driver, target, [as_input])
    assert result.returncode == 1
    assert "dst: an input was written" in result.stdout
    # rows one element shorter than what is copied: the end of the last one lies in the margin
    dst = np.zeros((9, int(call.inputs["width"][0]) - 1), np.float32)
    assert dst.shape[1] > 0
    short = replace(call, outputs={"dst": dst}, expected={"dst": (dst, dst + 1e9)})
    result = judge(driver, target, [short])
    assert result.returncode == 1
    assert "beside the array was written" in result.stdout


def test_a_torn_file_is_an_error(driver, tmp_path, one_of_each):
    path = tmp_path / "torn.cases"
    with open(path, "wb") as file:
        one_of_each["gather"].write(file)
    path.write_bytes(path.read_bytes()[:-8])
    target = next(iter(drive.targets(driver)))
    name, dtype = target
    for arguments in ([*target, path], [*target, tmp_path / "none"], ["sse9", dtype, path], [name, "float16", path]):
        assert subprocess.run([*driver, *arguments], capture_output=True).returncode == 2, arguments
    path.write_bytes(b"")
    assert subprocess.run([*driver, *target, path], capture_output=True).returncode == 2
