"""Augmentation of the batches of a fit: immutable descriptions, applied to inputs where they are gathered."""

from __future__ import annotations

from dataclasses import dataclass

from . import checks
from .errors import ArgumentError, named_fields

__all__ = ["Augmentation", "Noise", "noise_of"]


@dataclass(frozen=True)
class Augmentation:
    """Base of every augmentation."""


@named_fields
@dataclass(frozen=True)
class Noise(Augmentation):
    """Adds Gaussian noise to the inputs of training batches, fresh in every update.

    Parameters
    ----------
    std : float
        Standard deviation, in units of the inputs as the network sees them: behind ``input_scale``.

    Raises
    ------
    ArgumentError
        For a negative or non-finite number.
    """

    std: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", checks.number("Noise(std=)", self.std))


def noise_of(augment) -> float:
    """Standard deviation of the noise in ``augment``, 0 without any; ArgumentError for what is no augmentation."""
    given = tuple(augment) if isinstance(augment, (list, tuple)) else (augment,)
    for one in given:
        if not isinstance(one, Augmentation):
            raise ArgumentError(f"fit(augment=): expected a list of fastbatch.augment objects, got {one!r}")
    if len(given) > 1:
        raise ArgumentError(f"fit(augment=): expected each kind once, got {list(given)}")
    return given[0].std if given else 0.0
