"""Times fastbatch beside its peers and writes benchmarks/results/<cpu>.json, docs/speed.svg and the table in README.md.

    python benchmarks/readme.py            every workload but the heavy one, about 3 minutes on two quiet cores
    python benchmarks/readme.py --all      all of them

Every contestant does the same work (peers.py) and is checked on five steps before it is timed. A sample is one shuffled
epoch; samples of all contestants and thread counts are interleaved, so that a slow minute of the machine hits all
alike; the median counts, at the thread count that is best for the contestant on this workload.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from peers import CONTESTANTS, CPUS, Contestant, Fastbatch, verify
from workloads import BY_NAME, WORKLOADS, Workload

import fastbatch as fb

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmark: written by benchmarks/readme.py -->", "<!-- /benchmark -->"
COLORS = {"fastbatch": "#0b6e99", "NumPy": "#b8b8b8", "PyTorch eager": "#dd8452"}


def measure(workload: Workload, contestants: list[type[Contestant]], samples: int) -> dict[str, dict]:
    """Contestant -> {"us": median per step, "threads", "samples": {threads: [us per step]}}."""
    X, y = workload.data()
    verify(workload, X, y, contestants)
    # below a million operations nobody shares a step out
    runs = [
        (c.name, threads, c, c(workload, X, y))
        for c in contestants
        for threads in (c.threads if workload.flops_per_step > 10**6 else c.threads[:1])
    ]
    times: dict[str, dict[str, list[float]]] = {c.name: {} for c in contestants}
    warm_up: dict[tuple[str, int | None], float] = {}
    for sample in range(-1, samples):
        for name, threads, contestant, run in runs:
            # what was hopeless in the warm-up (more threads than the work is worth) is not waited for again
            if sample >= 0 and warm_up[name, threads] > 2 * min(t for (n, _), t in warm_up.items() if n == name):
                continue
            with contestant.limited(threads):
                time.sleep(0.01)  # helpers of the one before stop spinning
                start = time.perf_counter()
                run.epoch()
                seconds = time.perf_counter() - start
            if sample < 0:
                warm_up[name, threads] = seconds
            else:
                times[name].setdefault(str(threads or "auto"), []).append(1e6 * seconds / workload.steps)
    found = {}
    for name, by_threads in times.items():
        best = min(by_threads, key=lambda threads: statistics.median(by_threads[threads]))
        rounded = {threads: [round(t, 2) for t in values] for threads, values in by_threads.items()}
        found[name] = {"us": round(statistics.median(by_threads[best]), 2), "threads": best, "samples": rounded}
    return found


def machine(contestants: list[type[Contestant]]) -> dict[str, object]:
    info = fb.info()
    return {
        "cpu": info["cpu"],
        "cpus": CPUS,
        "target": info["target"],
        "python": platform.python_version(),
        "versions": {c.name: c.version() for c in contestants},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def digits(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def title(workload: Workload) -> str:
    """What is trained, as the table says it; a network without hidden layers has no activation."""
    shape = "-".join(map(str, workload.dims))
    return f"{shape} {workload.act}" if len(workload.dims) > 2 else shape


def table(about: dict, results: dict[str, dict]) -> str:
    names = list(about["versions"])
    peers = names[1:]
    head = ["network", "loss", "optimizer", "batch", *peers, names[0], "nearest peer / fastbatch"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---" + "|--:" * (len(head) - 3) + "|"]
    for name, found in results.items():
        w = BY_NAME[name]
        nearest = min(found[peer]["us"] for peer in peers)
        cells = [title(w), {"ce": "cross entropy"}.get(w.loss, w.loss), {"sgd": "SGD", "adam": "Adam"}[w.opt]]
        cells += [str(w.batch), *(digits(found[n]["us"]) for n in peers), digits(found[names[0]]["us"])]
        lines.append("| " + " | ".join([*cells, f"{nearest / found[names[0]]['us']:.2f}"]) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += [
        "",
        f"Microseconds per training step, float32: median of whole shuffled epochs, each at its best thread count; "
        f"{about['cpu']}, {about['cpus']} CPUs, target {about['target']}; {versions}. Above 1 in the last column "
        "fastbatch is faster, below 1 slower.",
    ]
    return "\n".join(lines)


def write_readme(text: str) -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def write_picture(about: dict, results: dict[str, dict]) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    names = list(about["versions"])
    height = 0.8 / len(names)
    # text stays text, and nothing in the file changes but the numbers
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastbatch", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 0.5 + 0.55 * len(results)), layout="constrained")
        axes = figure.subplots()
        for k, name in enumerate(names):
            rows = [row + (k - (len(names) - 1) / 2) * height for row in range(len(results))]
            values = [found[name]["us"] for found in results.values()]
            axes.barh(rows, values, height, label=name, color=COLORS[name])
        titles = [f"{title(BY_NAME[n])}, batch {BY_NAME[n].batch}" for n in results]
        axes.set_yticks(range(len(results)), titles, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(f"us per training step, lower is better ({about['cpu']}, {about['cpus']} CPUs)", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(ROOT / "docs" / "speed.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the heavy workload too")
    parser.add_argument("--samples", type=int, default=5, help="epochs per contestant (default: %(default)s)")
    parser.add_argument("--only", default="", help="workloads whose name holds this; prints and writes nothing")
    arguments = parser.parse_args()
    contestants = [c for c in CONTESTANTS if c.version() is not None]
    if Fastbatch not in contestants or len(contestants) < 2:
        sys.exit("nothing to compare with")
    about = machine(contestants)
    if about["load"][0] > 0.5:
        print(f"load {about['load'][0]}: something else is running, the numbers will say so too", file=sys.stderr)
    start = time.perf_counter()
    results = {}
    for workload in WORKLOADS:
        if arguments.only in workload.name and (arguments.all or not workload.heavy):
            results[workload.name] = found = measure(workload, contestants, arguments.samples)
            print(
                f"{workload.name:36}", *(f"{n} {r['us']:.1f} us ({r['threads']})" for n, r in found.items()), sep="  "
            )
    print(f"{time.perf_counter() - start:.0f} s")
    if arguments.only:
        return
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", str(about["cpu"]).lower())).strip("-")
    path = ROOT / "benchmarks" / "results" / f"{slug}-{about['cpus']}cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    write_readme(table(about, results))
    write_picture(about, results)
    print(f"wrote {path.relative_to(ROOT)}, docs/speed.svg, README.md")


if __name__ == "__main__":
    main()
