"""Looks for the networks on which fastbatch does worst against its best peer.

    python benchmarks/grid.py --seconds 600 [--seed 0] [--json grid.json]

Half of the time goes to points drawn at random from the whole grid, the other half to neighbours of the worst point
that still has some. Every point is verified like any workload; all are kept in the JSON, which a later run goes on
from. Ends with the worst ten, and with the points where a contestant failed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path

from fastbatch import ops
from fastbatch.bench import Workload, contestants, machine, measure

WIDTHS, BATCHES, DEPTHS = (1, 2048), (1, 8192), (1, 12)
# where vectors, tiles and caches end, one beside it, and primes
EDGES = sorted(
    {2**k + d for k in range(12) for d in (-1, 0, 1) if 1 <= 2**k + d <= 2048} | {13, 61, 127, 251, 509, 1021}
)
PEERS = ("numpy", "torch", "jax-scan")
FLOPS_PER_EPOCH = 2e8
LR = 1e-5  # small, so that no network of the grid diverges; the time does not depend on it


def workload_of(dims: tuple[int, ...], act: str, loss: str, opt: str, batch: int) -> Workload:
    name = f"{'-'.join(map(str, dims))}-{act}-{loss}-{opt}-b{batch}"
    one = Workload(name, dims, act, loss, opt, batch, 1, LR)
    inputs = dims[0] * batch  # per step; those of an epoch stay below 100 MB
    steps = min(FLOPS_PER_EPOCH / one.flops_per_step, 25e6 / inputs, 1000)
    return replace(one, steps=max(3, int(steps)))


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def width(rng: random.Random) -> int:
    return rng.choice(EDGES) if rng.random() < 0.5 else log_uniform(rng, *WIDTHS)


def drawn(rng: random.Random) -> Workload:
    """Half of the networks have hidden layers of one width, as most do."""
    depth = rng.randint(*DEPTHS)
    if rng.random() < 0.5:
        dims = (width(rng), *[width(rng)] * (depth - 1), width(rng))
    else:
        dims = tuple(width(rng) for _ in range(depth + 1))
    act, loss, opt = rng.choice(list(ops.ACTIVATIONS)), rng.choice(["mse", "ce"]), rng.choice(["sgd", "adam"])
    return workload_of(dims, act, loss, opt, log_uniform(rng, *BATCHES))


def neighbour(rng: random.Random, point: dict) -> Workload:
    """One quantity changed: a width or the batch by a little or to an edge, a layer more or less, another name."""
    dims, act, loss, opt, batch = list(point["dims"]), point["act"], point["loss"], point["opt"], point["batch"]
    what = rng.choice(["width", "width", "batch", "batch", "depth", "act", "loss", "opt"])
    near = rng.choice([0.5, 0.75, 1.25, 2.0])
    if what == "width":
        k = rng.randrange(len(dims))
        dims[k] = rng.choice([dims[k] - 1, dims[k] + 1, int(dims[k] * near), width(rng)])
        dims[k] = min(max(dims[k], WIDTHS[0]), WIDTHS[1])
    elif what == "batch":
        batch = min(max(rng.choice([batch - 1, batch + 1, int(batch * near)]), BATCHES[0]), BATCHES[1])
    elif what == "depth":
        k = rng.randrange(len(dims))
        longer = len(dims) == 2 or (rng.random() < 0.5 and len(dims) <= DEPTHS[1])
        dims[k : k + 1] = [dims[k], dims[k]] if longer else []
    elif what == "act":
        act = rng.choice(list(ops.ACTIVATIONS))
    elif what == "loss":
        loss = {"mse": "ce", "ce": "mse"}[loss]
    else:
        opt = {"sgd": "adam", "adam": "sgd"}[opt]
    return workload_of(tuple(dims), act, loss, opt, batch)


def line(point: dict) -> str:
    """A point that has a ratio."""
    us, nearest = point["us"], point["nearest"]
    return f"{point['ratio']:7.2f}  {us['fastbatch']:>10.1f} us  {nearest:14} {us[nearest]:>10.1f} us  {point['name']}"


def point_of(found: dict) -> dict:
    """A result, short enough to keep thousands."""
    w, entries = found["workload"], found["contestants"]
    point = {name: w[name] for name in ("name", "dims", "act", "loss", "opt", "batch", "flops_per_step")}
    point["us"] = {name: entry["us"] for name, entry in entries.items() if "us" in entry}
    point["errors"] = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    return point | {key: found[key] for key in ("ratio", "nearest", "share") if key in found}


def search(arguments: argparse.Namespace, found: dict) -> None:
    """Adds points to ``found["points"]`` until the time is over."""
    points, rng = found["points"], random.Random(arguments.seed + len(found["points"]))
    field = contestants.select(arguments.peers)
    known = {point["name"] for point in points}
    start = time.monotonic()
    while (spent := time.monotonic() - start) < arguments.seconds:
        rated = sorted((p for p in points if "ratio" in p), key=lambda p: p["ratio"])
        if spent < arguments.seconds / 2 or not rated:
            workload = drawn(rng)
        else:
            workload = neighbour(rng, rng.choice(rated[:5]))
        if workload.name in known or workload.flops_per_step > arguments.max_flops:
            continue
        if workload.loss == "ce" and workload.dims[-1] == 1:
            continue  # of one class the loss is a constant, and a compiler leaves the work out
        known.add(workload.name)
        point = point_of(measure(workload, field, arguments.samples, found["machine"]["peak_gflops"]))
        points.append(point)
        print(line(point) if "ratio" in point else f"{point['name']}: {point['errors']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="time budget (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5, help="epochs per contestant (default: %(default)s)")
    parser.add_argument("--max-flops", type=float, default=2e10, help="per step; leaves out what takes minutes")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=",".join(PEERS))
    parser.add_argument("--json", type=Path, default=Path("grid.json"), help="all points (default: %(default)s)")
    arguments = parser.parse_args()
    found: dict = {"points": json.loads(arguments.json.read_text())["points"] if arguments.json.exists() else []}
    found["machine"] = machine(contestants.select(arguments.peers))
    try:
        search(arguments, found)
    except KeyboardInterrupt:
        print("stopped")
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    rated = sorted((point for point in found["points"] if "ratio" in point), key=lambda point: point["ratio"])
    print(f"\n{len(found['points'])} points; the worst ten, best peer / fastbatch:")
    print("\n".join(map(line, rated[:10])))
    for point in found["points"]:
        for name, error in point["errors"].items():
            print(f"error: {name} on {point['name']}: {error}")


if __name__ == "__main__":
    main()
