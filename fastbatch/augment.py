"""Augmentation of the batches of a fit: immutable descriptions, applied to rows where they are gathered."""

from __future__ import annotations

from dataclasses import dataclass

from . import checks
from .errors import ArgumentError, named_fields

__all__ = ["AUGMENTATIONS", "Augmentation", "Mixup", "Noise", "parts_of"]


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


@named_fields
@dataclass(frozen=True)
class Mixup(Augmentation):
    """Trains on mixtures of two rows and of their targets (Zhang et al. 2018, arXiv:1710.09412).

    In every update one share l of the distribution Beta(alpha, alpha) is drawn, folded to max(l, 1 - l), and each row
    of the batch becomes l of itself and 1 - l of another one: ``x_i l + x_j (1 - l)``, behind ``input_scale`` and
    before `Noise`. Targets are mixed alike. docs/data.md says what that means for each loss, and for row weights.

    Parameters
    ----------
    alpha : float
        1 makes all shares as likely, 0.2 mostly leaves rows nearly as they are.

    Raises
    ------
    ArgumentError
        For a number below 1e-30, or what is none.
    """

    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.positive("Mixup(alpha=)", self.alpha))


AUGMENTATIONS: dict[str, type[Augmentation]] = {"noise": Noise, "mixup": Mixup}


def parts_of(augment) -> tuple[float, float | None]:
    """Standard deviation of the noise in ``augment``, 0 without any, and alpha of its mixing, None without.

    ArgumentError for what is no augmentation.
    """
    given = tuple(augment) if isinstance(augment, (list, tuple)) else (augment,)
    found: dict[type, Augmentation] = {}
    for one in given:
        if not isinstance(one, Augmentation):
            raise ArgumentError(f"fit(augment=): expected a list of fastbatch.augment objects, got {one!r}")
        if type(one) in found:
            raise ArgumentError(f"fit(augment=): expected each kind once, got {list(given)}")
        found[type(one)] = one
    noise, mixup = found.get(Noise), found.get(Mixup)
    return (
        noise.std if isinstance(noise, Noise) else 0.0,
        mixup.alpha if isinstance(mixup, Mixup) else None,
    )
