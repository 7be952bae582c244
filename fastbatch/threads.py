"""Thread policy: how many threads a program may use. The results do not depend on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from .cpus import available, explain, quota
from .errors import ArgumentError, named_fields

__all__ = ["allowed", "follow", "get_num_threads", "limit_from_outside", "reason", "set_num_threads"]

# Below about this much work per step a second core costs more in barriers than it gives
# (measured crossover 1 to 2 MFLOP on two cores; two barriers of 0.05 to 0.2 us each). Where steps are
# repeated this is the start and the bound, and measuring decides (csrc/tune.c).
MIN_FLOPS_PER_THREAD = 1_000_000
ALONE_BELOW = 2 * MIN_FLOPS_PER_THREAD

MAX_THREADS = 64  # FB_MAX_THREADS of csrc/fastbatch.h

_requested: int | None = None
_exact = False
_outside: int | None = None
_followers: list[Callable[[int, bool], None]] = []


@functools.cache  # 1.5 us a look; read when first asked, as OpenMP does
def _from_environment() -> tuple[int, str] | None:
    for name in ("FASTBATCH_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text:
            if text.isdigit() and int(text) > 0:
                return int(text), name
            if name.startswith("FASTBATCH"):
                raise ArgumentError(f"{name}: expected an integer >= 1, got {text!r}")
    return None


def _asked() -> int:
    """The bound but for threadpoolctl's."""
    if _requested is not None:
        return _requested
    found = _from_environment()
    return available() if found is None else found[0]


def get_num_threads() -> int:
    """Upper bound on the threads of one program.

    Returns
    -------
    int
        What :func:`set_num_threads` has set, FASTBATCH_NUM_THREADS or OMP_NUM_THREADS, or the CPUs available; at most
        what threadpoolctl allows.

    Raises
    ------
    ArgumentError
        When FASTBATCH_NUM_THREADS is no integer >= 1.
    """
    return _asked() if _outside is None else min(_asked(), _outside)


def reason() -> str:
    """Why :func:`get_num_threads` is what it is."""
    if _outside is not None and _outside < _asked():
        return "threadpoolctl"
    if _requested is not None:
        return "set_num_threads"
    found = _from_environment()
    if found is not None:
        return f"environment {found[1]}; {explain()}"
    return f"{explain()}; small steps use fewer, results do not depend on it"


def limit_from_outside(n: int) -> None:
    """A bound beside that of :func:`set_num_threads`, for threadpoolctl; back to what was before lifts it."""
    global _outside
    _outside = n if 0 < n < _asked() else None


def follow(follower: Callable[[int, bool], None]) -> None:
    """Call ``follower(quota, exact)`` now and whenever that changes; quota is 0 where there is none."""
    _followers.append(follower)
    follower(quota() or 0, _exact)


def _tell() -> None:
    for follower in _followers:
        follower(quota() or 0, _exact)


@named_fields
class set_num_threads:
    """Set the upper bound on threads; as a context manager, until the block ends.

    Parameters
    ----------
    n : int or None
        None goes back to the default.
    exact : bool, default False
        Use `n` threads whatever the work, for tests; callers at the same time share the CPUs all the same. Results are
        the same bits either way.

    Raises
    ------
    ArgumentError
        For something else than an integer >= 1 or None.
    """

    def __init__(self, n: int | None, exact: bool = False) -> None:
        global _requested, _exact
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ArgumentError(f"set_num_threads(n): expected an integer >= 1 or None, got {n!r}")
        self._before = _requested, _exact
        _requested, _exact = n, exact and n is not None
        _tell()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        global _requested, _exact
        _requested, _exact = self._before
        _tell()


def allowed(limit: int | None, flops: float) -> int:
    """Threads for a piece of work of `flops`, under the process-wide bound and the trainer's own `limit`."""
    if _exact:
        return min(_requested or 1, limit or MAX_THREADS, _outside or MAX_THREADS, MAX_THREADS)
    if flops < ALONE_BELOW:  # first, and without a conversion: a step of a microsecond asks, too
        return 1
    # available(): more threads than CPUs would spin against each other
    return min(
        int(flops // MIN_FLOPS_PER_THREAD),
        available(),
        get_num_threads(),
        limit or MAX_THREADS,
        MAX_THREADS,
    )
