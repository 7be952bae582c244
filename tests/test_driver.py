"""The C driver (tests/driver/driver.c) accepts every target, and rejects what is wrong. `make test-arm` is its use."""

from __future__ import annotations

import os
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


def test_every_target_passes(driver):
    targets = drive.targets(driver)
    assert set(targets) == {(name.removeprefix("c-"), dtype) for name in cases.C_TARGETS for dtype in cases.DTYPES}
    for (name, dtype), shape in targets.items():
        assert shape == cases.SUBJECTS[f"c-{name}"].shape(dtype)
        result = judge(driver, (name, dtype), drive.calls(name, dtype, shape))
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def one_of_each(driver) -> dict[str, drive.Call]:
    name, shape = next(iter(drive.targets(driver).items()))
    found = {}
    for call in drive.calls(*name, shape):
        found[call.verb] = call  # the last one: not a width of 1, not the identity
    return found


VERBS = [
    "dense_forward",
    "dense_backward",
    "activate",
    "slope",
    "loss",
    "update",
    "dropout",
    "gather",
    "accumulate",
    "run",
]


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
