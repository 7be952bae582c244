"""Whose formula is meant where torch, scikit-learn and Keras differ under one name: docs/optimizers.md."""

from __future__ import annotations

from ..errors import unknown_name

__all__ = ["SEMANTICS", "check_semantics"]

SEMANTICS = ("torch", "sklearn", "keras")


def check_semantics(where: str, value: object) -> None:
    """ArgumentError with a did-you-mean unless `value` is one of them."""
    if value not in SEMANTICS:
        raise unknown_name(f"{where}(semantics=)", value, SEMANTICS)
