"""How the time per step of fastbatch grows with batch, width, depth and threads, beside the roofline.

    python benchmarks/growth.py [--quick]      writes benchmarks/results/growth-<machine>.json and docs/growth.svg

Around one network (64-256-256-10 relu, cross entropy, Adam, batch 128) one quantity is changed at a time. The roofline
is the time of the same multiply-adds in registers, on one core and on all of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fastbatch as fb
from fastbatch.bench import Workload, contestants, machine, measure
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


def network(batch: int, width: int, depth: int) -> Workload:
    """`depth` hidden layers of `width`; an epoch is as long as FLOPS_PER_EPOCH asks, at least five steps."""
    dims = (64, *[width] * depth, 10)
    one = Workload(f"b{batch}-w{width}-d{depth}", dims, "relu", "ce", "adam", batch, 1)
    steps = min(max(5, int(FLOPS_PER_EPOCH / one.flops_per_step)), 2000)
    return Workload(one.name, dims, "relu", "ce", "adam", batch, steps)


def grow(quick: bool) -> dict:
    field = contestants.select([])
    about = machine(field)
    points = {}
    for axis, values in AXES.items():
        points[axis] = []
        for value in values[::3] if quick and axis != "threads" else values:
            with fb.set_num_threads(value if axis == "threads" else None, exact=axis == "threads"):
                workload = network(**{**BASE, axis: value} if axis != "threads" else BASE)
                found = measure(workload, field, 5, about["peak_gflops"])
            ours = found["contestants"]["fastbatch"]
            if "error" in ours:
                raise SystemExit(f"{workload.name}: {ours['error']}")
            flops = workload.flops_per_step
            point = {"at": value, "us": ours["us"], "threads": ours["threads"], "share": found["share"]}
            point["roofline_us"] = {n: round(flops / gflops / 1e3, 4) for n, gflops in about["peak_gflops"].items()}
            points[axis].append(point)
            print(
                f"{axis:8}{value:6}  {ours['us']:10.2f} us  {ours['threads']} thread(s)  {found['share']:6.1%}",
                flush=True,
            )
    return {"machine": about, "base": BASE, "points": points}


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
