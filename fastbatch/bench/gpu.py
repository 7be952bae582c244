"""``fastbatch bench --gpu``: conformance, then fastbatch and its peers on this machine's GPU, by the device's clock."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ..backends import get
from ..errors import unknown_name
from ..picture import check_file
from .contestants.contestant import Contestant
from .contestants.gpu import GPU_CONTESTANTS, FastbatchCuda
from .harness import measure, verify
from .report import digits, head, row
from .workloads import Workload

__all__ = ["GPU_WORKLOADS", "TARGETS", "bench_gpu"]

GPU_WORKLOADS = (
    Workload("rl-8-64-64-4-b64-adam", (8, 64, 64, 4), "tanh", "mse", "adam", 64, 1000),
    Workload("mnist-784-512-256-10-b128-adam", (784, 512, 256, 10), "relu", "ce", "adam", 128, 469),
    Workload("mnist-784-512-256-10-b4096-adam", (784, 512, 256, 10), "relu", "ce", "adam", 4096, 15),
    Workload("fused-64x4-b16384-adam", (64, 64, 64, 64, 64), "relu", "mse", "adam", 1 << 14, 32),
    Workload("fused-64x4-b262144-adam", (64, 64, 64, 64, 64), "relu", "mse", "adam", 1 << 18, 4),
    Workload("wide-1024-2048-2048-1000-b4096-adam", (1024, 2048, 2048, 1000), "relu", "ce", "adam", 4096, 10),
)
# us per step on an H200, from DESIGN.md; the two others are to be ahead of every peer
TARGETS = {"mnist-784-512-256-10-b128-adam": 30.0, "fused-64x4-b16384-adam": 40.0, "fused-64x4-b262144-adam": 500.0}


def _chosen(names: Sequence[str]) -> list[Workload]:
    for name in names:
        if not any(name in workload.name for workload in GPU_WORKLOADS):
            raise unknown_name("workload", name, {workload.name: workload for workload in GPU_WORKLOADS})
    return [w for w in GPU_WORKLOADS if not names or any(name in w.name for name in names)]


def machine(field: Sequence[type[Contestant]]) -> dict:
    """The device with its measured ceilings, and the versions of everything."""
    from ..backends.cuda import choice
    from ..backends.cuda import measure as ceilings

    return {
        "device": get("cuda").device,  # type: ignore[attr-defined]
        "peak_gflops": {"1": round(ceilings.gflops(), 1)},
        "bandwidth_gbs": round(ceilings.bandwidth(), 1),
        "tensor": choice.described(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "versions": {contestant.name: contestant.version() for contestant in field},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def bench_gpu(names: Sequence[str] = (), *, samples: int = 5, json_path: str | os.PathLike | None = None) -> dict:
    """Losses of every workload against the reference, then times; prints as it goes.

    Parameters
    ----------
    names : sequence of str
        Workloads whose name holds one of these; all without any.
    samples : int, default 5
    json_path : path, optional
        Where the results go; by the name of the device, in the working directory, without.

    Returns
    -------
    dict
        "machine" and "results" by workload, as in the JSON.

    Raises
    ------
    BackendError
        Without a GPU, and where losses are not those of the reference: nothing is timed then.
    """
    chosen, field = _chosen(names), GPU_CONTESTANTS
    device = get("cuda").device  # type: ignore[attr-defined]
    path = Path(json_path or f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json")
    check_file("json", path)
    from ..backends.cuda.measure import timed

    for workload in chosen:
        verify(FastbatchCuda, workload)
        print(f"losses of the reference: {workload.name}", flush=True)
    found: dict = {"machine": machine(field), "results": {}}
    print(head(field), flush=True)
    try:
        for workload in chosen:
            result = measure(workload, field, samples, found["machine"]["peak_gflops"], clock=timed)
            found["results"][workload.name] = result
            print(row(result), flush=True)
    finally:
        print(_footnotes(found))
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"results: {path}")
    return found


def _footnotes(found: dict) -> str:
    about = found["machine"]
    lines = [
        "Median of whole shuffled epochs by events on the device, data there before; compile time excluded.",
        "roofline: share of the float32 multiply-adds that the device does in registers, without tensor cores.",
        f"{about['device']}: {about['peak_gflops']['1']:,} GFLOP/s, {about['bandwidth_gbs']:,} GB/s, measured now",
        f"tensor cores: {about['tensor']}",
    ]
    for name, result in found["results"].items():
        for contestant, entry in result["contestants"].items():
            if "error" in entry:
                lines.append(f"{contestant} on {name}: {entry['error']}")
        ours = next(iter(result["contestants"].values()))
        if name in TARGETS and "us" in ours:
            lines.append(f"target of {name}: {digits(TARGETS[name])} us, got {digits(ours['us'])}")
    return "\n".join(lines)
