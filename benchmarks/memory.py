"""Peak resident memory of fastbatch and each peer: one fresh process per workload and contestant.

    python benchmarks/memory.py [names...] [--peers numpy,torch] [--json PATH]

"library" is what the process holds once the library is imported; "training" is the most that building the network and
two epochs add beside the data. Linux only: it resets and reads the high-water mark in /proc. Without names: one
workload of each kind, some two minutes. benchmarks/readme.py publishes them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fastbatch.bench import CONTESTANTS, contestants, workloads
from fastbatch.bench.contestants import Contestant
from fastbatch.bench.harness import NOT_INSTALLED

NAMES = (*workloads.QUICK, "mnist-784-512-256-10-b1024-sgd")

MODULES = {"fastbatch": "fastbatch", "numpy": "numpy", "torch": "torch", "torch-compile": "torch"}
MODULES |= {"jax": "jax.numpy", "jax-scan": "jax.numpy"}


def mib(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def child(key: str, name: str) -> None:
    """What the process of its own does: prints one line of JSON."""
    contestant = next(c for c in CONTESTANTS if c.key == key)
    workload = workloads.BY_NAME[name]
    importlib.import_module(MODULES[key])
    library = mib("VmRSS")
    X, y = workload.data()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew: making the data is not meant
    before = mib("VmRSS")
    run = contestant(workload, X, y)
    for _ in range(2):
        run.epoch()
    print(json.dumps({"library": library, "training": mib("VmHWM") - before}))


def peak(key: str, name: str) -> dict:
    command = [sys.executable, __file__, "--child", key, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return {field: round(value, 1) for field, value in json.loads(done.stdout.splitlines()[-1]).items()}


def peaks(names: Sequence[str], field: Sequence[type[Contestant]]) -> dict[str, dict]:
    """Workload -> contestant -> "library" and "training" in MiB, or "error"; prints a line of each workload."""
    results: dict[str, dict] = {}
    print("MiB: library + training".ljust(36), *(f"{c.name:>17}" for c in field))
    for workload in workloads.select(names):
        row = {c.name: peak(c.key, workload.name) if c.version() else {"error": NOT_INSTALLED} for c in field}
        results[workload.name] = row
        print(f"{workload.name:36}", *(f"{cell(entry):>17}" for entry in row.values()), flush=True)
        for name, entry in row.items():
            if "error" in entry:
                print(f"  {name}: {entry['error']}")
    return results


def cell(entry: dict) -> str:
    return f"{entry['library']:.0f} + {entry['training']:.1f}" if "library" in entry else "error"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="workloads whose name holds one of these (default: one of each kind)")
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), help="such as numpy,torch,jax-scan (default: all)"
    )
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--child", nargs=2, metavar=("CONTESTANT", "WORKLOAD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    results = peaks(arguments.names or NAMES, contestants.select(arguments.peers))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
