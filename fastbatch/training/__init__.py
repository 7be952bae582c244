"""Trainer, callbacks, history: epochs and everything around them. Python is touched once per chunk of steps."""

from .callbacks import Callback, LambdaCallback, ProgressBar
from .history import History
from .trainer import Trainer

__all__ = ["Callback", "History", "LambdaCallback", "ProgressBar", "Trainer"]
