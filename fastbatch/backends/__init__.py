"""The registry of backends: an ordered table, loaded lazily; the first that is available and supports a plan runs."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, cast

from ..errors import BackendError, did_you_mean, named_fields
from ..plan import Plan
from ..protocol import Backend

if TYPE_CHECKING:
    from .cuda import Cuda

__all__ = ["backends", "default_name", "get", "gpu", "is_available", "select", "set_backend"]

# name -> (module, class, device, what to do where it cannot be imported); the order is the preference of "auto"
_TABLE = {
    "c": ("native", "Native", "cpu", "a compiler was missing at installation, or the package was not built in place"),
    "numba": ("numba_cpu", "Numba", "cpu", "pip install 'fastbatch[numba]'"),
    "reference": ("reference", "Reference", "cpu", ""),
    "cuda": ("cuda", "Cuda", "gpu", "pip install 'fastbatch[cuda]'"),
}

# Flops of a training row from which "auto" takes a GPU: layers of some 1000 units. Below, a step on it is mostly
# launches, and a CPU with many cores may be as fast.
DEVICE_FLOPS = 10_000_000

_loaded: dict[str, Backend | str] = {}
_requested: str | None = None


def _load(name: str) -> Backend | str:
    """The backend, or the reason why there is none."""
    if name not in _loaded:
        module, cls, _, advice = _TABLE[name]
        try:
            _loaded[name] = getattr(importlib.import_module(f"{__name__}.{module}"), cls)()
        except ImportError as error:
            _loaded[name] = f"{error} ({advice})"
        except BackendError as error:  # asked for something that it does not have, such as FASTBATCH_TARGET
            _loaded[name] = str(error)
    return _loaded[name]


def _check_name(name: object) -> str:
    if name != "auto" and name not in _TABLE:
        hint = did_you_mean(name, _TABLE) if isinstance(name, str) else ""
        raise BackendError(f"backend: expected auto, {', '.join(_TABLE)}; got {name!r}{hint}")
    return str(name)


def backends() -> list[dict[str, object]]:
    """Every backend, in the order in which "auto" prefers them.

    Returns
    -------
    list of dict
        "name", "available" (bool), "reason" why not (empty when available) and "device".
    """
    rows = []
    for name, (_, _, device, _) in _TABLE.items():
        found = _load(name)
        missing = found if isinstance(found, str) else ""
        rows.append({"name": name, "available": not missing, "reason": missing, "device": device})
    return rows


def is_available(name: str) -> bool:
    """Whether there is a backend of that name here; loads no other."""
    return name in _TABLE and not isinstance(_load(name), str)


def get(name: str) -> Backend:
    """The backend called `name`; BackendError with the reason when it is unknown or missing."""
    found = _load(_check_name(name))
    if isinstance(found, str):
        raise BackendError(f"backend {name!r} is not available: {found}")
    return found


def gpu() -> Cuda | None:
    """The cuda backend where there is a GPU; None without one, and in the simulator."""
    found = _load("cuda")
    return None if isinstance(found, str) or not cast("Cuda", found).is_real else cast("Cuda", found)


def default_name() -> str:
    """What "auto" starts from: `set_backend`, FASTBATCH_BACKEND, or "auto"."""
    return _requested or _check_name(os.environ.get("FASTBATCH_BACKEND") or "auto")


def select(name: str, plan: Plan, training: bool = True) -> Backend:
    """The backend for `plan`, which "auto" runs on a GPU where that is sure to pay: large networks, in training.

    Raises
    ------
    BackendError
        When a named backend is missing or does not support the plan; "auto" moves on to the next one instead, and
        ``fastbatch info`` says what is available and why.
    """
    if _check_name(name) == "auto":
        name = default_name()
    forced = os.environ.get("FASTBATCH_TARGET")
    if name == "auto" and training and not forced and plan.flops_per_row >= DEVICE_FLOPS:
        device = gpu()
        if device is not None and device.supports(plan) is None:
            return device
    if name == "auto" and plan.precision == "bf16":
        name = "c"  # the only one on a CPU that has it: an error with its reasons, not another precision
    if name != "auto":
        backend = get(name)
        reason = backend.supports(plan)
        if reason is not None:
            raise BackendError(f"backend {name!r} cannot run this model: {reason}")
        return backend
    if forced:
        get("c")  # a target was asked for: without it an error, not another backend
    # one after the other: Numba takes half a second to import
    candidates = (found for found in map(_load, _TABLE) if not isinstance(found, str))
    chosen = next(backend for backend in candidates if backend.supports(plan) is None)
    missing = _load("c")
    if not isinstance(missing, str) and chosen.name == "reference":
        missing = get("c").supports(plan) or ""
    if isinstance(missing, str):
        instead = "is compiled by Numba, up to 2 times" if chosen.name == "numba" else "runs on NumPy, 10 to 100 times"
        warnings.warn(  # shown once per place by Python's own filter
            f"fastbatch {instead} slower: {missing}; see `fastbatch info`", RuntimeWarning, stacklevel=2
        )
    return chosen


@named_fields
class set_backend:
    """Set the backend that "auto" means in this process; as a context manager, until the block ends.

    Parameters
    ----------
    name : str
        One of :func:`backends`, or "auto" for the choice of the library.

    Raises
    ------
    BackendError
        When it is unknown or not available.
    """

    def __init__(self, name: str) -> None:
        global _requested
        if _check_name(name) != "auto":
            get(name)
        self._before = _requested
        _requested = None if name == "auto" else name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        global _requested
        _requested = self._before
