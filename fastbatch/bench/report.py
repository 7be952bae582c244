"""Results as a table for a terminal and as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .contestants import CONTESTANTS, Contestant
from .harness import NOT_INSTALLED

__all__ = ["digits", "draw", "footnotes", "head", "row", "title"]

_DERIVED = ("ratio", "GFLOP/s", "roofline", "threads")


def digits(value: float) -> str:
    """Three or more digits, with thousands apart."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def title(workload: dict) -> str:
    """What is trained; a network without hidden layers has no activation."""
    shape = "-".join(map(str, workload["dims"]))
    return f"{shape} {workload['act']}" if len(workload["dims"]) > 2 else shape


def _line(first: str, names: Sequence[str], cells: Sequence[str]) -> str:
    widths = [max(len(name), 9) for name in (*names, *_DERIVED)]
    return f"{first:<36}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths))


def head(contestants: Sequence[type[Contestant]]) -> str:
    """The first line of the table."""
    names = [contestant.name for contestant in contestants]
    return _line("us per step", names, [*names, *_DERIVED])


def _time(entry: dict) -> str:
    if "us" in entry:
        return digits(entry["us"])
    return "-" if entry["error"] == NOT_INSTALLED else "error"


def row(result: dict) -> str:
    """The line of one workload."""
    entries = result["contestants"]
    cells = [_time(entry) for entry in entries.values()]
    ours = next(iter(entries.values()))
    cells += [f"{result['ratio']:.2f}" if "ratio" in result else "-"]
    cells += [digits(result["gflops"]) if "gflops" in result else "-"]
    cells += [f"{result['share']:.1%}" if "share" in result else "-", str(ours.get("threads", "-"))]
    return _line(result["workload"]["name"], list(entries), cells)


def footnotes(about: dict, results: dict[str, dict]) -> str:
    """What the columns mean, what is missing and why, and where it was measured."""
    peaks = ", ".join(f"{gflops} GFLOP/s on {n}" for n, gflops in about["peak_gflops"].items())
    barriers = ", ".join(f"{ns} ns between {n}" for n, ns in about["barrier_ns"].items())
    lines = [
        "Median of whole shuffled epochs, each contestant at its best thread count; compile time excluded.",
        "ratio: best peer / fastbatch, above 1 fastbatch is faster. GFLOP/s and threads: of fastbatch.",
        "roofline: share of the multiply-adds that as many cores do in registers. A step bound by memory or by",
        "its overhead is held against the same number: a small share there says what bounds it, not what is lost.",
        f"ceilings: {peaks} core(s), target {about['target']}" + (f"; barrier {barriers} threads" if barriers else ""),
    ]
    lines += [f"{name}: {NOT_INSTALLED}" for name, version in about["versions"].items() if version is None]
    for name, result in results.items():
        for contestant, entry in result["contestants"].items():
            if "error" in entry and entry["error"] != NOT_INSTALLED:
                lines.append(f"error: {contestant} on {name}: {entry['error']}")
    versions = [f"{name} {version}" for name, version in about["versions"].items() if version is not None]
    place = f"{about['cpu']}, {about['cpus']} CPU(s), {about['platform']}, Python {about['python']}"
    lines.append(f"{place}; {', '.join(versions)}")
    if about["load"][0] > 0.5:
        lines.append(f"load {about['load'][0]} at the start: something else was running, the numbers say so too")
    return "\n".join(lines)


def draw(about: dict, results: dict[str, dict], path: str | os.PathLike) -> None:
    """Bars per workload and contestant, logarithmic; the ending of `path` chooses the format."""
    import matplotlib
    from matplotlib.figure import Figure

    colors = {contestant.name: contestant.color for contestant in CONTESTANTS}
    ran = [n for n in about["versions"] if any("us" in result["contestants"][n] for result in results.values())]
    height = 0.84 / max(1, len(ran))
    # text stays text, and in a repeated SVG nothing changes but the numbers
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastbatch", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 1 + (0.25 + 0.1 * len(ran)) * len(results)), layout="constrained")
        axes = figure.subplots()
        for k, name in enumerate(ran):
            entries = [result["contestants"][name] for result in results.values()]
            timed = [(at, entry["us"]) for at, entry in enumerate(entries) if "us" in entry]
            places = [at + (k - (len(ran) - 1) / 2) * height for at, _ in timed]
            axes.barh(places, [us for _, us in timed], height, label=name, color=colors.get(name))
        titles = [f"{title(r['workload'])}, batch {r['workload']['batch']}" for r in results.values()]
        axes.set_yticks(range(len(results)), titles, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(f"us per training step, lower is better ({about['cpu']}, {about['cpus']} CPUs)", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if ran:
            axes.legend(frameon=False, fontsize=8)
        metadata = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, dpi=150, metadata=metadata)
