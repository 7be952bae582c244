"""Writes what `ulp` or `ulp_f64` found (stdin) into docs/accuracy.md: `python document.py MACHINE DTYPE`."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "accuracy.md"


DTYPES = ("float32", "float64")


def markers(machine: str, dtype: str) -> tuple[str, str]:
    return f"<!-- ulp {machine} {dtype} -->\n", f"<!-- end {machine} {dtype} -->"


def arguments(dtype: str) -> dict[str, str]:
    rows = re.findall(r'FUNCTION\((\w+),.*, "(.*)", "(.*)"\)', (HERE / "functions.def").read_text())
    return {name: texts[DTYPES.index(dtype)] for name, *texts in rows}


def table(lines: list[str], dtype: str) -> str:
    """One row per function, one column per target; rounded up, so that the figure is a bound."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        function, target, every, count, worst, at, wrong = line.split()
        if int(wrong):
            raise SystemExit(f"{function} on {target}: {wrong} of {count} results are of the wrong kind")
        found.setdefault(function, {})[target] = f"{math.ceil(float(worst) * 100) / 100:.2f} at {float(at):.6g}"
    targets = list(next(iter(found.values())))
    if dtype == "float64":
        tested = f"6 times {every} random numbers and the neighbours of 44 critical ones (`tests/accuracy/ulp_f64.c`)"
    else:
        tested = "every float32" if every == "1" else f"every {every}th float32"
    rows = [["function", "arguments", *targets], ["---"] * (2 + len(targets))]
    rows += [[f"`{name}`", arguments(dtype)[name], *(by[t] for t in targets)] for name, by in found.items()]
    return f"Tested: {tested}.\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def published(machine: str, dtype: str) -> dict[str, dict[str, float]]:
    """Function -> target -> largest error in ulp, as the page has it."""
    begin, end = markers(machine, dtype)
    block = PAGE.read_text().partition(begin)[2].partition(end)[0]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if "|" in line)
    return {row[0].strip("`"): {t: float(c.split()[0]) for t, c in zip(head[2:], row[2:])} for row in rows}


def main(machine: str, dtype: str) -> None:
    begin, end = markers(machine, dtype)
    text = PAGE.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{PAGE}: expected the markers {begin.strip()} and {end}")
    before, _, rest = text.partition(begin)
    PAGE.write_text(f"{before}{begin}{table(sys.stdin.read().splitlines(), dtype)}{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
