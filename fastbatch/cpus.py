"""How many CPUs this process may use: affinity mask and cgroup quota."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["available", "explain", "quota"]


def _mounts(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Where the cpu controller is mounted: version of cgroup, part of the hierarchy, place in the file system."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            _, _, _, part, place = fields.split(" ")[:5]
            yield (2 if kind == "cgroup2" else 1), PurePosixPath(part), PurePosixPath(place)


def _groups(root: Path) -> dict[int, PurePosixPath]:
    """This process's cgroup of version 2, and that of version 1 for the cpu controller."""
    groups = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            groups[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            groups[1] = PurePosixPath(path)
    return groups


def _limit_of(folder: Path, version: int) -> float | None:
    """CPUs that one cgroup grants, None without a limit."""
    try:
        if version == 2:
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:  # the root group has no such file
        return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def cgroup_limit(root: Path = Path("/")) -> int | None:
    """CPUs that the cgroups of this process and all above them grant (versions 1 and 2); None without a limit.

    Rounded down, but never to 0: what a thread takes beyond the quota is paid back by all of them being stopped for
    the rest of the period, mostly at a barrier.
    """
    limits = []
    try:
        groups = _groups(root)
        for version, part, place in _mounts(root):
            if version not in groups:
                continue
            group = groups[version]
            # a container sees its own part of the hierarchy as the mount's root
            inside = group.relative_to(part) if group.is_relative_to(part) else PurePosixPath()
            for depth in range(len(inside.parts) + 1):
                folder = root / place.relative_to("/") / PurePosixPath(*inside.parts[:depth])
                limits.append(_limit_of(folder, version))
    except (OSError, ValueError):  # no /proc (macOS), or not as expected
        return None
    granted = [limit for limit in limits if limit is not None]
    return max(1, int(min(granted))) if granted else None


@functools.cache
def quota() -> int | None:
    """:func:`cgroup_limit` when first asked: reading it takes 50 to 100 us, and a container starts with its quota."""
    return cgroup_limit()


def _mask() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity mask
        return os.cpu_count() or 1


def available() -> int:
    """CPUs that the calling thread may run on. The affinity mask is read anew each time: it takes less than 1 us."""
    return min(_mask(), quota() or sys.maxsize)


def explain() -> str:
    """Where :func:`available` comes from."""
    return f"{_mask()} CPUs in the affinity mask, cgroup quota {quota() or 'none'}"
