"""Keras: its models to and from fastbatch's, and what compile() was told as a trainer. Needs keras 3."""

from .compiled import trainer_from_keras
from .models import from_keras, to_keras

__all__ = ["from_keras", "to_keras", "trainer_from_keras"]
