"""The benchmark of this machine: fastbatch and every installed peer side by side, beside the roofline.

``fastbatch bench`` is :func:`bench`; benchmarks/ in the repository uses the same parts. Nothing here is imported unless
it is asked for.
"""

from __future__ import annotations

from .command import bench
from .contestants import CONTESTANTS
from .gpu import bench_gpu
from .harness import measure, verify
from .machine import machine
from .workloads import WORKLOADS, Workload

__all__ = ["CONTESTANTS", "WORKLOADS", "Workload", "bench", "bench_gpu", "machine", "measure", "verify"]
