"""Verify first, then warm up, then measure: samples of all contestants and thread counts take turns in one process.

A sample is one shuffled epoch, a turn as many as TURN seconds take. Taking turns makes a slow minute of the machine
hit all alike; the median counts, at the thread count that is best for the contestant on this workload. Whatever happens
to a contestant is in its entry: times, or the reason why there are none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from ..errors import BackendError
from .contestants import Contestant, Fastbatch
from .contestants.fastbatch import trainer_of
from .workloads import Workload

__all__ = ["measure", "verify"]

NOT_INSTALLED = "not installed"

VERIFIED_STEPS = 3
# Seconds that short epochs are repeated for in a turn: the first of them finds caches full of the contestant before.
TURN = 0.03
# Below this much work a second thread costs any contestant more than it gives.
SHARED_FLOPS = 10**6


def wall(call: Callable[[], object]) -> float:
    """Seconds of a call, by the clock on the wall."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def verify(contestant: type[Contestant], workload: Workload, steps: int = VERIFIED_STEPS) -> None:
    """Two short epochs must give the losses that the reference backend gives on the same batches.

    Raises
    ------
    BackendError
        When they do not, or when an epoch does not visit every row once.
    """
    small = replace(workload, steps=steps)
    X, y = small.data()
    run, reference = contestant(small, X, y), trainer_of(small, "reference")
    for epoch in range(2):
        got, order = run.epoch(), run.last_order()
        if not np.array_equal(np.sort(order), np.arange(small.n)):
            raise BackendError(f"{contestant.name} on {workload.name}: expected every row once an epoch, got {order}")
        losses = [reference.step(X[rows], y[rows]) for rows in order.reshape(steps, small.batch)]
        expected = statistics.fmean(losses)
        if not abs(got - expected) <= contestant.tolerance * max(1.0, abs(expected)):
            raise BackendError(
                f"{contestant.name} on {workload.name} computes something else: epoch {epoch + 1} of {steps} steps, "
                f"expected a mean loss of {expected:.6g}, got {got:.6g}"
            )


class _Entrant:
    """A contestant under way on a workload, at each of its thread counts."""

    def __init__(self, contestant: type[Contestant], workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        settings = contestant.settings()
        if workload.flops_per_step <= SHARED_FLOPS:
            settings = settings[:1]
        self.contestant, self.steps = contestant, workload.steps
        self.runs: dict[int | None, Contestant] = {}
        self.times: dict[int | None, list[float]] = {}
        for threads in settings:
            with contestant.limited(threads):
                if not self.runs:
                    verify(contestant, workload)
                self.runs[threads] = run = contestant(workload, X, y)
                run.epoch()  # compiles, allocates, warms the caches
                self.times[threads] = []

    def sample(self, clock: Callable[[Callable[[], object]], float]) -> None:
        """One more turn at each thread count; one that was twice as slow as another from the start gets no more."""
        if all(self.times.values()):
            best = min(times[0] for times in self.times.values())
            for threads in [threads for threads, times in self.times.items() if times[0] > 2 * best]:
                del self.runs[threads], self.times[threads]
        for threads, run in self.runs.items():
            with self.contestant.limited(threads):
                time.sleep(0.01)  # helpers of the one before stop spinning
                turn = time.perf_counter()
                while True:  # short epochs several times: the first finds the caches full of the one before
                    self.times[threads].append(1e6 * clock(run.epoch) / self.steps)
                    if time.perf_counter() - turn > TURN:
                        break

    def entry(self) -> dict:
        best = min(self.times, key=lambda threads: statistics.median(self.times[threads]))
        return {
            "us": round(statistics.median(self.times[best]), 3),
            "threads": self.runs[best].threads_used(best),
            "samples": {str(threads or "auto"): [round(t, 3) for t in times] for threads, times in self.times.items()},
        }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]


def measure(
    workload: Workload,
    contestants: Sequence[type[Contestant]],
    samples: int = 5,
    peaks: dict[str, float] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[Callable[[], object]], float] = wall,
) -> dict:
    """Times every contestant on one workload.

    Parameters
    ----------
    workload : Workload
    contestants : sequence of Contestant classes
    samples : int, default 5
        Turns per contestant and thread count.
    peaks : dict, optional
        ``machine()["peak_gflops"]``, for the share of the roofline.
    progress : callable
        Is told what happens.
    clock : callable
        Seconds that a call takes.

    Returns
    -------
    dict
        "workload"; "contestants": name -> {"us" per step, "threads", "samples"} or {"error": reason}; and where
        fastbatch ran, "gflops", "share" of the roofline at its threads, "nearest" peer and "ratio" of its time to
        fastbatch's.
    """
    X, y = workload.data()
    entries: dict[str, dict] = {}
    entrants: dict[str, _Entrant] = {}
    for contestant in contestants:
        if contestant.version() is None:
            entries[contestant.name] = {"error": NOT_INSTALLED}
            continue
        progress(f"{contestant.name}: verified, then warmed up")
        try:
            entrants[contestant.name] = _Entrant(contestant, workload, X, y)
        except Exception as error:  # whatever a library raises is its result here
            entries[contestant.name] = {"error": _reason(error)}
    for sample in range(samples):
        progress(f"sample {sample + 1} of {samples}")
        for name, entrant in list(entrants.items()):
            try:
                entrant.sample(clock)
            except Exception as error:
                entries[name] = {"error": _reason(error)}
                del entrants[name]
    entries.update({name: entrant.entry() for name, entrant in entrants.items()})
    found: dict = {
        "workload": {**asdict(workload), "flops_per_step": workload.flops_per_step},
        "contestants": {c.name: entries[c.name] for c in contestants},
    }
    ours = entries.get(Fastbatch.name, {})
    if "us" in ours:
        found["gflops"] = round(workload.flops_per_step / ours["us"] / 1e3, 2)
        if peaks:
            found["share"] = round(found["gflops"] / peaks[str(ours["threads"])], 4)
        peers = [c.name for c in contestants if not issubclass(c, Fastbatch)]
        times = {name: entries[name]["us"] for name in peers if "us" in entries[name]}
        if times:
            found["nearest"] = min(times, key=times.__getitem__)
            found["ratio"] = round(times[found["nearest"]] / ours["us"], 3)
    return found
