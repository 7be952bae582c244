"""Writes what README.md and docs/speed.md show, and benchmarks/results/<machine>-<version>.json, from a measurement.

python benchmarks/readme.py            every workload but the heavy one; some ten minutes on two quiet cores
python benchmarks/readme.py --all      all of them
python benchmarks/readme.py --memory   peak memory alone; the times stay those of the results that are there
python benchmarks/readme.py --from benchmarks/results/some.json    writes them again, measures nothing
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import memory

from fastbatch.bench import bench, contestants, workloads
from fastbatch.bench.contestants import Fastbatch
from fastbatch.bench.harness import NOT_INSTALLED
from fastbatch.bench.machine import machine, slug
from fastbatch.bench.report import digits, draw, title

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmark: written by benchmarks/readme.py -->", "<!-- /benchmark -->"
LOSSES, OPTIMIZERS = {"ce": "cross entropy", "mse": "mse"}, {"sgd": "SGD", "adam": "Adam"}


def cell(entry: dict) -> str:
    return digits(entry["us"]) if "us" in entry else "error" if entry["error"] != NOT_INSTALLED else ""


def table(about: dict, results: dict[str, dict]) -> str:
    """Markdown; fastbatch stands last, beside the ratio."""
    ours, *peers = (name for name, version in about["versions"].items() if version is not None)
    head = ["network", "loss", "optimizer", "batch", *peers, ours, "best peer / fastbatch", "of the roofline"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---" + "|--:" * (len(head) - 3) + "|"]
    for result in results.values():
        w, entries = result["workload"], result["contestants"]
        cells = [title(w), LOSSES[w["loss"]], OPTIMIZERS[w["opt"]], str(w["batch"])]
        cells += [cell(entries[name]) for name in (*peers, ours)]
        cells += [f"{result['ratio']:.2f}" if "ratio" in result else "", f"{result.get('share', 0):.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    versions = {c.library: about["versions"][c.name] for c in contestants.CONTESTANTS if about["versions"].get(c.name)}
    peak = " and ".join(f"{gflops:.0f} on {threads}" for threads, gflops in about["peak_gflops"].items())
    return "\n".join(
        [
            *lines,
            "",
            "Microseconds per training step, float32: median of whole shuffled epochs, each at its best thread count; "
            f"{about['cpu']}, {about['cpus']} CPUs, target {about['target']}; "
            f"{', '.join(f'{library} {version}' for library, version in versions.items())}. Above 1 in the last column "
            f"but one fastbatch is faster, below 1 slower. The roofline is what the cores do in registers: {peak} "
            "thread(s), GFLOP/s.",
        ]
    )


def memory_table(peaks: dict[str, dict]) -> str:
    """Markdown, MiB."""
    names = [name for name in next(iter(peaks.values())) if any("library" in row[name] for row in peaks.values())]
    lines = [f"| network | batch | {' | '.join(names)} |", "|---|--:" + "|--:" * len(names) + "|"]
    for workload, row in peaks.items():
        w = workloads.BY_NAME[workload]
        cells = [title(asdict(w)), str(w.batch), *(memory.cell(row[name]) for name in names)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(page: str, text: str) -> None:
    """Replace what stands between the marks of `page`."""
    path = ROOT / page
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the heavy workload too")
    parser.add_argument("--memory", action="store_true", help="peak memory alone")
    parser.add_argument("--samples", type=int, default=5, help="epochs per contestant (default: %(default)s)")
    parser.add_argument("--from", dest="source", type=Path, help="results to write again")
    arguments = parser.parse_args()
    results = ROOT / "benchmarks" / "results"
    if arguments.memory:
        arguments.source = results / f"{slug(machine([Fastbatch]))}.json"
    if arguments.source:
        found = json.loads(arguments.source.read_text())
    else:
        found = bench(heavy=arguments.all, samples=arguments.samples)
    if arguments.memory or not arguments.source:
        found["memory"] = memory.peaks(memory.NAMES, contestants.select())
    about = found["machine"]
    path = results / f"{slug(about)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    write("README.md", table(about, found["results"]))
    draw(about, found["results"], ROOT / "docs" / "speed.svg")
    if "memory" in found:
        write("docs/speed.md", memory_table(found["memory"]))
    print(f"wrote {path.relative_to(ROOT)}, README.md, docs/speed.md, docs/speed.svg")


if __name__ == "__main__":
    main()
