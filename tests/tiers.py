"""Which of many cases run by default: `thin` names a few of each group, the rest is marked `exhaustive`."""

from __future__ import annotations

import collections
import zlib
from collections.abc import Iterable
from dataclasses import is_dataclass

import pytest

# names of the axis that says where a case runs
PLACES = ("subject", "fused", "backend")


def thin(keep: int, *per: str) -> pytest.MarkDecorator:
    """By default only `keep` cases for each combination of the axes `per`, chosen by a hash of their ids.

    Axes are parameters, fixtures, or attributes of the parameter `case`. Beyond that number a case runs that is the
    first to bring a value of any axis to a backend or target: all of them see all values. The others are `exhaustive`.
    What is not collected does not count, so that a case that is named by its id always runs.
    """
    return pytest.mark.thin(keep, *per)


def axes(params: dict) -> dict:
    """The axes of a case: its parameters, a dataclass among them by its fields."""
    found = {}
    for name, value in params.items():
        found.update(vars(value) if is_dataclass(value) else {name: value})
    return found


def chosen(cases: Iterable[tuple[str, dict]], keep: int, per: tuple[str, ...]) -> set[str]:
    """Names of the cases (name, parameters) that run by default."""
    names, kept, seen = set(), collections.Counter(), set()
    for name, params in sorted(cases, key=lambda case: (zlib.crc32(case[0].encode()), case[0])):
        values = axes(params)
        group = tuple(values[axis] if axis in values else getattr(params["case"], axis) for axis in per)
        place = next((values[name] for name in PLACES if name in values), None)
        brings = {(place, *pair) for pair in values.items()}
        if kept[group] < keep or not brings <= seen:
            names.add(name)
            kept[group] += 1
            seen |= brings
    return names


def mark(items: list[pytest.Item]) -> None:
    """Marks as `exhaustive` what `thin` leaves out, test function by test function."""
    functions = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("thin"):
            functions[item.nodeid.partition("[")[0]].append(item)
    for group in functions.values():
        keep, *per = group[0].get_closest_marker("thin").args
        names = chosen([(item.name, item.callspec.params) for item in group], keep, tuple(per))
        for item in group:
            if item.name not in names:
                item.add_marker("exhaustive")
