"""Trainers side by side in Python threads: what each takes, next to one alone.

    python benchmarks/many_threads.py [callers ...]

A row per workload and number of Python threads that train at once, medians over rounds: microseconds per step of one
trainer alone on one thread and on all CPUs, then of the callers together, fastest and slowest (fairness), the steps
per second of all of them as a multiple of those of one thread alone (on a quiet machine: min(callers, CPUs)), and the
CPU time of a step as a multiple of that of one thread alone, which says the same on a busy machine: 1 wastes nothing.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

import fastbatch as fb
from fastbatch.cpus import available

# sizes, batch: the second core is of little use, of some, of much
NETWORKS = {
    "8-64-64-4 B64": ([8, 64, 64, 4], 64),
    "32-256-128-1 B256": ([32, 256, 128, 1], 256),
    "784-128-10 B128": ([784, 128, 10], 128),
}
ROUNDS = 5
SECONDS = 0.4  # of each run


def _trainer(sizes: list[int], batch: int) -> tuple[fb.Trainer, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch * 100, sizes[0]), dtype=np.float32)
    y = rng.standard_normal((batch * 100, sizes[-1]), dtype=np.float32)
    return fb.Trainer(fb.MLP(sizes, activation="relu"), "mse", fb.SGD(lr=1e-3)), x, y


def _together(trainers: list, batch: int) -> tuple[list[float], float]:
    """Microseconds per step of each, while all are training; CPU time of a step."""
    start, times = threading.Barrier(len(trainers)), [0.0] * len(trainers)
    made, cpu = -sum(trainer.steps for trainer, _, _ in trainers), time.process_time()

    def work(k: int) -> None:
        trainer, x, y = trainers[k]
        steps = -trainer.steps
        start.wait()
        begin = time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            trainer.fit(x, y, batch_size=batch, verbose=0, check_finite=False)
        times[k] = (time.perf_counter() - begin) / (steps + trainer.steps) * 1e6

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(trainers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made += sum(trainer.steps for trainer, _, _ in trainers)
    return times, (time.process_time() - cpu) / made * 1e6


def main() -> None:
    counts = [int(text) for text in sys.argv[1:]] or [2, 4]
    print(f"{available()} CPUs; microseconds per step")
    print(
        "| network | alone, 1 thread | alone, free | callers | fastest | slowest | steps, x alone | CPU time, x alone |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (sizes, batch) in NETWORKS.items():
        trainers = [_trainer(sizes, batch) for _ in range(max(counts))]
        rows: dict[object, list] = {}
        for _ in range(ROUNDS):
            with fb.set_num_threads(1):
                rows.setdefault("one", []).append(_together(trainers[:1], batch))
            for count in [1, *counts]:
                rows.setdefault(count, []).append(_together(trainers[:count], batch))
        one, free = (np.median([times for times, _ in rows[key]]) for key in ("one", 1))
        cost = {key: np.median([cpu for _, cpu in rows[key]]) for key in rows}
        for count in counts:
            runs = np.sort(np.array([times for times, _ in rows[count]]), axis=1)
            fastest, slowest = np.median(runs[:, 0]), np.median(runs[:, -1])
            total = np.median((one / runs).sum(axis=1))
            print(
                f"| {name} | {one:.1f} | {free:.1f} | {count} | {fastest:.1f} | {slowest:.1f} | {total:.2f} | "
                f"{cost[count] / cost['one']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
