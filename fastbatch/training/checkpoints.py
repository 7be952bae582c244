"""Trainers in files: what a checkpoint holds, and the trainer that is made of it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks, ops, storage
from .._version import __version__
from ..augment import AUGMENTATIONS
from ..backends import get as get_backend
from ..backends import is_available
from ..batching.noise import as_state
from ..errors import ArgumentError, CheckpointError, ShapeError
from ..layers import LAYERS
from ..model import OF_THE_TRAINER, model_from, model_parts
from ..schedules import SCHEDULES
from .fit import Fit, Settings
from .history import History

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["load", "save"]

# Classes whose objects a file may describe, by name; a user's own come with `load(custom=)`.
REGISTRIES: tuple[Mapping[str, type], ...] = (
    LAYERS, ops.LOSSES, ops.OPTIMIZERS, SCHEDULES, AUGMENTATIONS, {"fit": Settings}
)  # fmt: skip

# Attributes of a trainer that files hold as they are; one that an older file lacks keeps its first value.
ATTRIBUTES = ("epochs", "lr_factor", "_gradient", "_gradient_rows", "_running", "_input_scale", "_noise")


def _known() -> dict[str, Any]:
    return {cls.__name__: cls for registry in REGISTRIES for cls in registry.values()}


def save(trainer: Trainer, path: str | os.PathLike) -> None:
    """See :meth:`fastbatch.Trainer.save`."""
    import json

    tensors, model = model_parts(trainer.model)
    fit = trainer._fit
    state = {
        "arguments": {
            "loss": trainer.loss,
            "optimizer": trainer.optimizer,
            "metrics": [ops.as_given(name, metric) for name, metric in trainer.metrics.items()],
            **{name: getattr(trainer, name) for name in _options(type(trainer))},
        },
        "machine": _machine(trainer),
        "slots": trainer._slots,
        "steps": trainer.steps,
        "attributes": {name: getattr(trainer, name) for name in ATTRIBUTES},
        "history": dict(trainer.history),
        "fit": None if fit is None else {"settings": fit.settings, "progress": fit.progress(trainer)},
    }
    coded = storage.encode(state, tensors, OF_THE_TRAINER.rstrip("/"))
    metadata = {"model": json.dumps(model), "trainer": json.dumps(coded)}
    storage.write(path, tensors, {**metadata, "crc32": storage.checksum(tensors, metadata)})


def _options(cls: type) -> list[str]:
    """Keyword-only arguments of the constructor; a trainer keeps each as an attribute of that name."""
    parameters = inspect.signature(cls).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _machine(trainer: Trainer) -> dict[str, str]:
    """What bits depend on besides the numbers in the file."""
    kernels = get_backend(trainer.backend)
    target = getattr(kernels, "bf16_target" if trainer.precision == "bf16" else "target", f"NumPy {np.__version__}")
    return {"fastbatch": __version__, "backend": trainer.backend, "target": target, "precision": trainer.precision}


def load(cls: type[Trainer], path: str | os.PathLike, custom: Sequence[Callable]) -> Trainer:
    """See :meth:`fastbatch.Trainer.load`."""
    import json

    known = {**_known(), **_named(custom)}
    tensors, metadata = storage.read(path)
    if "trainer" not in metadata:
        raise CheckpointError(f"{path}: expected a trainer, got a model; fastbatch.load reads it")
    if "crc32" not in metadata:  # files of models have none
        raise CheckpointError(f"{path}: the file is damaged: expected a checksum, got none")
    with storage.damaged(path, "description of the trainer"):
        coded = json.loads(metadata["trainer"])
        missing = sorted(set(storage.names(coded)) - known.keys())
        if missing:
            raise CheckpointError(
                f"{path}: expected the functions and classes {', '.join(missing)}, which it names, got none; pass them "
                f"in Trainer.load(path, custom=[{', '.join(missing)}]), or register them "
                "with @fb.loss or @fb.optimizer before"
            )
        state = storage.decode(coded, tensors, known)
        arguments = state["arguments"]
        if not is_available(arguments["backend"]):
            arguments["backend"] = "auto"  # warned of below
        trainer = cls(model_from(json.loads(metadata["model"]), tensors), **arguments)
        _fill(trainer, state)
    here = _machine(trainer)
    moved = [f"{name} {then} (here {here[name]})" for name, then in state["machine"].items() if then != here[name]]
    if moved:
        warnings.warn(
            f"{path}: written with {', '.join(moved)}; training goes on, but the same bits are not promised",
            RuntimeWarning,
            stacklevel=4,  # the caller of Trainer.load
        )
    return trainer


def _named(custom: Sequence[Callable]) -> dict[str, Callable]:
    found = {}
    for own in custom if isinstance(custom, (list, tuple)) else [custom]:
        name = getattr(own, "__name__", None)
        if not callable(own) or not isinstance(name, str):
            raise ArgumentError(f"Trainer.load(custom=): expected functions and classes with names, got {own!r}")
        found[name] = own
    return found


def _fill(trainer: Trainer, state: dict[str, Any]) -> None:
    slots = state["slots"]
    if slots.shape != trainer._slots.shape or slots.dtype != trainer._slots.dtype:
        raise ShapeError(
            f"expected optimizer state {trainer._slots.dtype} {trainer._slots.shape}, got {slots.dtype} {slots.shape}"
        )
    attributes = {name: state["attributes"].get(name, getattr(trainer, name)) for name in ATTRIBUTES}
    # kernels rely on these
    for name, like in (("_gradient", trainer.model.parameters), ("_running", trainer.model.buffers)):
        value = attributes[name]
        if value is not None and (value.shape != like.shape or value.dtype != like.dtype):
            raise ShapeError(f"{name}: expected {like.dtype} {like.shape}, got {value.dtype} {value.shape}")
    for name in ("epochs", "_gradient_rows"):
        checks.count(name, attributes[name], "an integer >= 0", least=0)
    attributes["_noise"] = as_state(attributes["_noise"])
    scale = attributes.pop("_input_scale")
    if scale is not None:
        scale = checks.as_scale(scale, trainer.model.input_size, trainer.model.dtype)
    trainer._slots[:] = slots
    trainer._steps[0] = checks.count("steps", state["steps"], "an integer >= 0", least=0)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    trainer._scale(scale)
    trainer.history = History({name: list(values) for name, values in state["history"].items()})
    if state["fit"] is not None:
        trainer._fit = Fit.from_progress(state["fit"]["settings"], trainer.history, state["fit"]["progress"])
