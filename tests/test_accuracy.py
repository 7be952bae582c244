"""docs/accuracy.md is what the functions do: sampled here, every float32 and far more float64 by `make ulp`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "accuracy"))
import document  # noqa: E402

MACHINE = platform.machine()
MISSING = [tool for tool in ("make", os.environ.get("CC", "cc")) if not shutil.which(tool)]
PUBLISHED = {
    (machine, dtype): document.published(machine, dtype)
    for machine in ("x86_64", "aarch64")
    for dtype in document.DTYPES
}
both = pytest.mark.parametrize("dtype", document.DTYPES)


@both
def test_the_comments_state_the_published_figures(dtype):
    """'Max ulp A / B': baseline, and the worst of the targets with fused multiply-add."""
    text = (ROOT / {"float32": "csrc/simd/math_f32.h", "float64": "csrc/simd/math_f64.h"}[dtype]).read_text()
    stated = {
        name: (float(plain), float(fused))
        for plain, fused, name in re.findall(
            r"Max ulp (\d+\.\d+) / (\d+\.\d+)(?:(?!INLINE|Max ulp).)*INLINE vec (\w+)\(", text, re.DOTALL
        )
    }
    expected = {
        name: (row["baseline"], max(worst for target, worst in row.items() if target != "baseline"))
        for name, row in PUBLISHED["x86_64", dtype].items()
    }
    assert stated == expected


def test_the_page_names_every_function():
    for (machine, dtype), rows in PUBLISHED.items():
        assert list(rows) == list(document.arguments(dtype)), (machine, dtype)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif((MACHINE, "float32") not in PUBLISHED, reason=f"no table for {MACHINE}")
@both
def test_a_sample_stays_below(dtype):
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # make sanitize
    subprocess.run(["make", "--silent", "build/ulp/ulp"], cwd=ROOT, check=True, env=environment)
    # a part of what either table was made from: every float32, or every 97th; samples
    command = {"float32": ["build/ulp/ulp", str(43 * 97)], "float64": ["build/ulp/ulp_f64", "60000"]}[dtype]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) >= 2 * len(PUBLISHED[MACHINE, dtype])
    for line in lines:
        function, target, _, count, worst, at, wrong = line.split()
        assert int(count) > 1e5
        assert int(wrong) == 0, line
        # a bound that a sample of a million does not come near would be a stale one
        bound = PUBLISHED[MACHINE, dtype][function][target]
        assert bound / 2 < float(worst) <= bound, f"{function} on {target}: {worst} ulp at {at}, published {bound}"


def test_a_result_of_the_wrong_kind_is_not_published():
    with pytest.raises(SystemExit, match="of the wrong kind"):
        document.table(["exp_ baseline 1 100 1.25 0.5 1"], "float32")
    assert "| `exp_` |" in document.table(["exp_ baseline 1 100 1.25 0.5 0"], "float32")
