"""What this installation can do here, what it chooses, and why."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from . import threads
from ._version import __version__
from .backends import DEVICE_FLOPS, backends, default_name, get, gpu
from .cpus import available

if TYPE_CHECKING:
    from .backends.cuda import Cuda

__all__ = ["Info", "info"]


class Info(dict):
    """A dict whose text is the page that ``fastbatch info`` prints."""

    def __str__(self) -> str:
        lines = [
            f"fastbatch {self['version']}, Python {self['python']}, NumPy {self['numpy']}, {self['platform']}",
            f"cpu       {self['cpu']}",
            f"threads   up to {self['num_threads']} ({self['num_threads_reason']})",
            "backends  " + f"{self['backend']} ({self['backend_reason']})",
        ]
        if self["barrier_ns"]:
            barrier = f"barrier   {self['barrier_ns']:.0f} ns between {self['barrier_threads']} threads, measured now"
            lines.insert(-1, barrier)
        for row in self["backends"]:
            state = "available" if row["available"] else f"not available: {row['reason']}"
            lines.append(f"            {row['name']:<10} {row['device']:<4} {state}")
        if self["tensor_cores"]:
            lines.append(f"tensor    cores of the GPU: {self['tensor_cores']}")
        if self["targets"]:
            lines.append(f"targets   {self['target']} ({self['target_reason']})")
            for name, usable in self["targets"].items():
                lines.append(f"            {name:<10} {'usable' if usable else 'compiled, but this CPU lacks it'}")
            lines.append(f"bf16      {self['bf16_target'] or 'not available'} ({self['bf16_reason']})")
            for name, missing in self["bf16_targets"].items():
                lines.append(f"            {name:<10} {missing or 'usable'}")
        return "\n".join(lines)

    __repr__ = __str__


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _of_device(device: Cuda | None) -> str:
    """When "auto" takes the GPU instead; nothing where there is none."""
    if device is None:
        return ""
    return (
        f"; cuda on {device.device} trains networks of {DEVICE_FLOPS / 1e6:.0f} MFLOP a row and more, "
        "and any with backend='cuda'"
    )


def info() -> Info:
    """Version, CPU, threads, backends and targets: what is chosen and why.

    Returns
    -------
    Info
        A dict; ``print(fastbatch.info())`` is readable.
    """
    rows, device = backends(), gpu()
    wanted = default_name()
    chosen = wanted if wanted != "auto" else next(str(row["name"]) for row in rows if row["available"])
    if wanted != "auto":
        why = "set_backend or environment FASTBATCH_BACKEND"
    elif chosen == "c":
        why = f"the compiled kernels, float32 and float64{_of_device(device)}"
    elif chosen == "numba":
        why = (
            "the C kernels are missing, see below; Numba compiles others, up to 2 times slower, for some 30 s on first "
            "use. Install a C compiler and reinstall: pip install --force-reinstall --no-binary fastbatch fastbatch"
        )
    else:
        why = (
            "the compiled kernels are missing, see below; expect it to be 10 to 100 times slower. Install a C compiler "
            "and reinstall, or: pip install 'fastbatch[numba]'"
        )
    found = Info(
        version=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu(),
        num_threads=threads.get_num_threads(),
        num_threads_reason=threads.reason(),
        backend=chosen,
        backend_reason=why,
        backends=rows,
        barrier_ns=None,
        barrier_threads=min(threads.get_num_threads(), available()),
        tensor_cores=device.tensor_cores if device else None,
        target=None,
        target_reason="",
        targets={},
        bf16_target=None,
        bf16_reason="",
        bf16_targets={},
    )
    if any(row["name"] == "c" and row["available"] for row in rows):
        from . import _native

        forced = os.environ.get("FASTBATCH_TARGET")
        if found["barrier_threads"] > 1:
            # the median: a neighbour on one of the CPUs, for a while, makes it 50 times longer
            times = [_native.measure_barrier(found["barrier_threads"], 1000) for _ in range(9)]
            measured = [ns for ns in times if ns == ns]  # NaN: other callers have the helpers
            found["barrier_ns"] = median(measured) if measured else None
        found["targets"] = _native.targets()
        found["target"] = get("c").target  # type: ignore[attr-defined]
        found["bf16_targets"] = _native.bf16_targets()
        found["bf16_target"] = get("c").bf16_target  # type: ignore[attr-defined]
        of_bf16 = forced in found["bf16_targets"]
        found["target_reason"] = (
            "environment FASTBATCH_TARGET" if forced and not of_bf16 else "the best that this CPU can run"
        )
        if of_bf16:
            found["bf16_reason"] = "environment FASTBATCH_TARGET; runs even where it does not pay"
        elif found["bf16_target"]:
            found["bf16_reason"] = "for Trainer(precision='bf16'), refused for networks that float32 measures faster on"
        else:
            found["bf16_reason"] = get("c").bf16_missing  # type: ignore[attr-defined]
    return found
