"""Dense networks trained on mini-batches at the speed of the hardware."""

from . import augment, batching, schedules
from ._version import __version__
from .backends import backends, set_backend
from .custom import activation, loss, optimizer
from .errors import (
    ArgumentError,
    BackendError,
    BusyError,
    CheckpointError,
    DataError,
    DivergenceError,
    DTypeError,
    FastbatchError,
    ShapeError,
)
from .errors import did_you_mean as _did_you_mean
from .layers import Activation, BatchNorm, Dense, Dropout, LayerNorm
from .model import MLP, Sequential, load
from .ops import losses
from .ops.optimizers import LAMB, LARS, SGD, Adagrad, Adam, AdamW, Lion, NAdam, RMSprop
from .threads import get_num_threads, set_num_threads
from .training import (
    EMA,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
    ReduceLROnPlateau,
    TensorBoard,
    Trainer,
)

from . import kernels  # isort: skip  (needs the backends, which program.py has set up by now)
from .info import info  # isort: skip
from .threadpools import introduce as _introduce  # isort: skip

_introduce(backends)

__all__ = [
    "EMA",
    "LAMB",
    "LARS",
    "MLP",
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "ArgumentError",
    "BackendError",
    "BatchNorm",
    "BusyError",
    "CSVLogger",
    "Callback",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "Dense",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "FastbatchError",
    "History",
    "LambdaCallback",
    "LayerNorm",
    "Lion",
    "ModelCheckpoint",
    "NAdam",
    "ProgressBar",
    "RMSprop",
    "ReduceLROnPlateau",
    "Sequential",
    "ShapeError",
    "TensorBoard",
    "Trainer",
    "__version__",
    "activation",
    "augment",
    "backends",
    "batching",
    "get_num_threads",
    "info",
    "kernels",
    "load",
    "loss",
    "losses",
    "optimizer",
    "schedules",
    "set_backend",
    "set_num_threads",
]


def __getattr__(name: str):
    inside = next((m for m in (augment, batching, losses, schedules) if name in m.__all__), None)
    if inside is not None:
        hint = f"; did you mean fb.{inside.__name__.rpartition('.')[2]}.{name}?"
    else:
        hint = "" if name.startswith("_") else _did_you_mean(name, __all__)
    raise AttributeError(f"module 'fastbatch' has no attribute {name!r}{hint}")
