"""The cuda backend where there is no GPU: what is missing is named, every kernel compiles for GPUs that are not here.

`test_cuda_device.py` runs them in numba-cuda's simulator or on a GPU, `test_cuda_gpu.py` on a GPU only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastbatch as fb
from fastbatch.backends import DEVICE_FLOPS, is_available

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("numba_cuda") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="numba-cuda is not installed")
CUDA = next(row for row in fb.backends() if row["name"] == "cuda")


def run_python(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env={**os.environ, **environment},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_package_is_named():
    code = """
    import sys
    sys.modules["numba_cuda"] = None
    import fastbatch as fb
    print(fb.backends()[-1])
    try:
        fb.Trainer(fb.MLP([2, 1]), "mse", backend="cuda")
    except fb.BackendError as error:
        print(error)
    """
    text = run_python("-c", textwrap.dedent(code))
    assert text.count("pip install 'fastbatch[cuda]'") == 2
    assert "'available': False" in text


@needs_package
@pytest.mark.skipif(is_available("cuda"), reason="there is a GPU")
def test_a_missing_driver_is_named():
    assert "driver" in str(CUDA["reason"])
    with pytest.raises(fb.BackendError, match=r"backend 'cuda' is not available: .*nvidia-smi"):
        fb.Trainer(fb.MLP([2, 1]), "mse", backend="cuda")
    assert str(CUDA["reason"]) in str(fb.info())


def test_auto_asks_for_a_gpu_only_where_it_is_sure_to_pay():
    """A small network does not even import numba-cuda; predict never leaves the CPU."""
    code = """
    import sys, warnings, numpy as np, fastbatch as fb
    backends = sys.modules['fastbatch.backends']
    asked, load = [], backends._load
    backends._load = lambda name: asked.append(name) or load(name)
    fb.Trainer(fb.MLP([784, 512, 256, 10]), "cross_entropy")
    large = fb.MLP([1024, 2048, 2048, 1000])
    large.predict(np.zeros((1, 1024), np.float32))
    print("cuda" in asked)
    fb.Trainer(large, "cross_entropy")
    print("cuda" in asked)
    """
    assert run_python("-c", textwrap.dedent(code)).split() == ["False", "True"]
    assert 2 * 3 * 784 * 512 < DEVICE_FLOPS < 2 * 3 * 2048 * 2048


def test_too_little_memory_is_an_error_with_numbers():
    code = """
    import fastbatch as fb, numpy as np
    from fastbatch.backends.cuda import shim
    shim.free_bytes = lambda: 1 << 20
    trainer = fb.Trainer(fb.MLP([100, 3000, 1]), "mse", backend="cuda")
    try:
        trainer.fit(np.zeros((200, 100)), np.zeros(200), batch_size=100, verbose=0)
    except fb.BackendError as error:
        print(error)
    """
    if not INSTALLED:
        pytest.skip("numba-cuda is not installed")
    text = run_python("-c", textwrap.dedent(code), NUMBA_ENABLE_CUDASIM="1")
    assert "MiB of device memory for 100 rows at a time, got 1 MiB" in text
    assert "micro_batch_size" in text


# -- compilation -------------------------------------------------------------------------------------------------------

# Kernels that compute in the network's type alone; in the others losses, totals and constants are doubles by design.
IN_REAL = (
    "product", "values", "slopes", "dropped", "kept", "added", "scaled",
    "normal_row", "slope_row", "moments_of_parts", "still_column", "slopes_of_parts", "combined_slopes", "slope_column",
)  # fmt: skip


def check_compiled(capability: str, real: str, nets: int, tiles: str) -> int:
    """Every kernel that steps of so many networks launch becomes PTX and machine code that stays in registers."""
    lines = run_python(str(HERE / "cuda_ptx.py"), capability, real, str(nets), tiles).splitlines()
    rows = [json.loads(line) for line in lines]
    names = {row["kernel"] for row in rows}
    for part in (
        "product",
        "gather",
        "losses",
        "totals",
        "inspected",
        "decided",
        "moved",
        "dropped",
        "added",
        "kept",
        "stretch",
        "normal_row",
        "normal_column",
        "still_column",
    ):
        assert any(part in name for name in names), part
    blocks: set[str] = set()
    for row in rows:
        assert "spilled" in row, "ptxas was not found: nvidia-cuda-nvcc-cu12 has it"
        assert row["spilled"] <= (0 if real == "float32" else 64), row
        assert row["shared"] <= 48 * 1024, row
        assert not row["generic"], row  # panels are known to be in shared memory
        if row["mma"]:
            assert row["kernel"].endswith(("product", "stretch")), row
            blocks.update(row["mma"])
        if real == "float32":
            assert row["stack"] == 0, row
            assert not row["double"] or not row["kernel"].endswith(IN_REAL), row
    assert blocks == ({"m16n8k8", "m16n8k16"} if real == "float32" else set())  # TF32 and bfloat16
    return len(rows)


@needs_package
@pytest.mark.exhaustive
def test_kernels_compile_for_a_gpu_that_is_not_here():
    assert check_compiled("9.0", "float32", 1, "small") >= 15


@needs_package
@pytest.mark.gpu
@pytest.mark.parametrize(("capability", "real"), [("9.0", "float32"), ("8.0", "float64")])
def test_every_kernel_compiles(capability, real):
    assert check_compiled(capability, real, 99, "large,small") >= 90
