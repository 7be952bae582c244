"""Callbacks, one file for each."""

from .base import Callback, LambdaCallback, matching_states, states_of, steps_to_stop
from .checkpoint import ModelCheckpoint
from .csv_logger import CSVLogger
from .early_stopping import EarlyStopping
from .ema import EMA
from .plateau import ReduceLROnPlateau
from .progress import ProgressBar, bar_for
from .tensorboard import TensorBoard

__all__ = [
    "EMA",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TensorBoard",
    "bar_for",
    "matching_states",
    "states_of",
    "steps_to_stop",
]
