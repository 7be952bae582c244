"""How the time per step of fastbatch grows with batch, width, depth and threads, beside the roofline.

    python benchmarks/growth.py [--quick]      writes benchmarks/results/growth-<machine>.json and docs/growth.svg

Around one network (64-256-256-10 relu, cross entropy, Adam, batch 128) one quantity is changed at a time. The roofline
is the time of the same multiply-adds in registers, on one core and on all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import fastbatch as fb
from fastbatch.bench import Workload, machine, verify
from fastbatch.bench.contestants import Fastbatch
from fastbatch.bench.harness import wall
from fastbatch.bench.machine import slug

ROOT = Path(__file__).resolve().parent.parent
CPUS = fb.info()["num_threads"]
BASE = {"batch": 128, "width": 256, "depth": 2}
AXES: dict[str, list[int]] = {
    "batch": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
    "width": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],
    "depth": [1, 2, 3, 4, 6, 8, 12],
    "threads": list(range(1, CPUS + 1)),
}
FLOPS_PER_EPOCH = 4e8  # a few milliseconds
# All points take turns, so that a slow minute of the machine hits them alike, and the median of the turns counts.
ROUNDS, TURN = 11, 0.05


def network(batch: int, width: int, depth: int) -> Workload:
    """`depth` hidden layers of `width`; an epoch is as long as FLOPS_PER_EPOCH asks, at least five steps."""
    dims = (64, *[width] * depth, 10)
    one = Workload(f"b{batch}-w{width}-d{depth}", dims, "relu", "ce", "adam", batch, 1)
    steps = min(max(5, int(FLOPS_PER_EPOCH / one.flops_per_step)), 2000)
    return Workload(one.name, dims, "relu", "ce", "adam", batch, steps)


class Point:
    """A network under way, allowed `threads` threads (None: as many as pay)."""

    def __init__(self, shape: tuple[int, int, int], threads: int | None) -> None:
        self.workload, self.threads = network(*shape), threads
        verify(Fastbatch, self.workload)
        self.run = Fastbatch(self.workload, *self.workload.data())
        self.times: list[float] = []
        self.turn()
        self.times.clear()  # allocated, and the number of threads found

    def turn(self) -> None:
        """One more time per step: the median of the epochs that TURN seconds take."""
        epochs = []
        with fb.set_num_threads(self.threads, exact=self.threads is not None):
            start = time.perf_counter()
            while not epochs or time.perf_counter() - start < TURN:
                epochs.append(wall(self.run.epoch))
        self.times.append(1e6 * statistics.median(epochs) / self.workload.steps)

    def found(self, at: int, peaks: dict[str, float]) -> dict:
        us, flops, used = statistics.median(self.times), self.workload.flops_per_step, self.run.threads_used(None)
        return {
            "at": at,
            "us": round(us, 3),
            "range": [round(min(self.times), 3), round(max(self.times), 3)],
            "threads": used,
            "share": round(flops / us / 1e3 / peaks[str(used)], 4),
            "roofline_us": {n: round(flops / gflops / 1e3, 4) for n, gflops in peaks.items()},
        }


def grow(quick: bool) -> dict:
    about = machine([Fastbatch])
    points: dict[tuple, Point] = {}  # what several axes share is measured once
    axes: dict[str, list[tuple[int, Point]]] = {}
    for axis, values in AXES.items():
        axes[axis] = []
        for at in values[::3] if quick and axis != "threads" else values:
            shape = tuple({**BASE, axis: at}[name] for name in BASE)
            key = shape, at if axis == "threads" else None
            if key not in points:
                points[key] = Point(*key)
            axes[axis].append((at, points[key]))
    for _ in range(3 if quick else ROUNDS):
        for point in points.values():
            point.turn()
    found = {axis: [point.found(at, about["peak_gflops"]) for at, point in line] for axis, line in axes.items()}
    for axis, line in found.items():
        for p in line:
            spread = "{:.2f} to {:.2f}".format(*p["range"])
            print(f"{axis:8}{p['at']:6}  {p['us']:10.2f} us ({spread})  {p['threads']} thread(s)  {p['share']:6.1%}")
    return {"machine": about, "base": BASE, "points": found}


def draw(found: dict, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastbatch", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        for axes, (axis, points) in zip(figure.subplots(2, 2).flat, found["points"].items()):
            at = [point["at"] for point in points]
            axes.plot(at, [point["us"] for point in points], "o-", ms=3, color="#0b6e99", label="fastbatch")
            for threads, style in ((1, "--"), (found["machine"]["cpus"], ":")):
                roofline = [point["roofline_us"][str(threads)] for point in points]
                axes.plot(at, roofline, style, color="#888888", lw=1, label=f"roofline, {threads} core(s)")
            if axis == "threads":
                axes.set_xticks(at)
            else:
                axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set(xlabel=axis, ylabel="us per step")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=8)
        about = found["machine"]
        base = "64-256-256-10 relu, cross entropy, Adam, batch 128, one quantity changed at a time"
        figure.suptitle(f"{base}\n{about['cpu']}, {about['cpus']} CPUs, target {about['target']}", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every third point; prints and writes nothing")
    arguments = parser.parse_args()
    found = grow(arguments.quick)
    if arguments.quick:
        return
    path = ROOT / "benchmarks" / "results" / f"growth-{slug(found['machine'])}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, ROOT / "docs" / "growth.svg")
    print(f"wrote {path.relative_to(ROOT)}, docs/growth.svg")


if __name__ == "__main__":
    main()
