"""Rows of rules by name."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["Table"]

Row = TypeVar("Row")


class Table(dict[str, Row]):
    """The library's rows. Those of a user's own are found by the names that `own` gives them, and are not listed."""

    def __init__(self, rows: dict[str, Row]) -> None:
        super().__init__(rows)
        self.own: dict[str, Any] = {}

    def __missing__(self, name: str) -> Row:
        return self.own[name]
