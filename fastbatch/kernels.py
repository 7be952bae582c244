"""The four kernels on plain arrays, for people who build on them.

Arrays are float32 or float64, all of one dtype; a backend that does not have the dtype is refused by name, and "auto"
takes the first that has it. Shapes are those of DESIGN.md: x (B, I), w (I, O), b (O,), a (B, O).
"""

from __future__ import annotations

import numpy as np

from . import checks, ops
from .backends import select
from .errors import ArgumentError, DTypeError, ShapeError, named_keywords
from .plan import Plan, Stage
from .protocol import Backend

__all__ = ["dense_backward", "dense_forward", "loss", "update"]

Array = np.ndarray


def _backend(name: str, dtype: str, **parts) -> Backend:
    """The backend for a one-stage plan of `dtype` with the given activation, loss or optimizer."""
    stage = Stage(1, 1, 0, 1, parts.get("activation", ops.get_activation("identity")), 256, 0, False)
    plan = Plan((stage,), dtype, parts.get("loss", ops.get_loss("mse")), parts.get("optimizer", ops.SGD()), 2)
    return select(name, plan)


def _array(value, where: str, shape: tuple[int | None, ...], dtype: str | None = None) -> Array:
    array = np.asarray(value)
    allowed = ("float32", "float64") if dtype is None else (dtype,)
    if array.dtype.name not in allowed or not array.dtype.isnative:
        raise DTypeError(f"{where}: expected {' or '.join(allowed)} in native byte order, got {array.dtype.str}")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape)):
        expected = "(" + ", ".join("n" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ShapeError(f"{where}: expected shape {expected}, got {array.shape}")
    return np.require(array, requirements=["C", "A"])


def _weights(value, x: Array, dtype: str) -> Array:
    w = _array(value, "w", (x.shape[1], None), dtype)
    if w.size == 0:
        raise ShapeError(f"w: expected at least 1 input and 1 output, got shape {w.shape}")
    return w


def _in_place(value, where: str, shape: tuple[int | None, ...], dtype: str | None = None) -> Array:
    array = _array(value, where, shape, dtype)
    if array is not value or not array.flags.writeable:
        raise ArgumentError(f"{where}: expected a writable C-contiguous ndarray, it is changed in place")
    return array


def _apart(where: str, array: Array, **others: Array | None) -> None:
    for name, other in others.items():
        if other is not None and np.may_share_memory(array, other):
            raise ArgumentError(f"{where}: expected memory of its own, got memory shared with {name}")


@named_keywords
def dense_forward(x, w, b=None, activation: str = "identity", *, out: Array | None = None, backend: str = "auto"):
    """``a = activation(x @ w + b)``; 2 B I O flops.

    Parameters
    ----------
    x : (B, I) array_like
    w : (I, O) array_like
    b : (O,) array_like, optional
    activation : str, default "identity"
    out : (B, O) ndarray, optional
        Written and returned as `a`.
    backend : str, default "auto"

    Returns
    -------
    a : (B, O) ndarray
    saved : (B, O) ndarray or None
        What :func:`dense_backward` needs: `a`, z, or nothing, as the activation's row says.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, BackendError
    """
    row = ops.get_activation(activation)
    x = _array(x, "x", (None, None))
    dtype = checks.as_dtype(x.dtype)
    w = _weights(w, x, dtype)
    b = None if b is None else _array(b, "b", (w.shape[1],), dtype)
    shape = len(x), w.shape[1]
    a = np.empty(shape, dtype) if out is None else _in_place(out, "out", shape, dtype)
    _apart("out", a, x=x, w=w, b=b)
    z = np.empty(shape, dtype) if row.saves == "z" else None
    _backend(backend, dtype, activation=row).dense_forward(x, w, b, row, a, z)
    return a, {"none": None, "a": a, "z": z}[row.saves]


@named_keywords
def dense_backward(
    da, x, w, saved: Array | None, activation: str = "identity", *, need_dx: bool = True, backend: str = "auto"
):
    """Gradients of a dense layer from `da` (B, O), the gradient with respect to its activation; 4 B I O flops.

    Parameters
    ----------
    da : (B, O) array_like
    x, w, activation
        As given to :func:`dense_forward`.
    saved : (B, O) ndarray or None
        As returned by :func:`dense_forward`.
    need_dx : bool, default True
        False leaves out dx and a third of the work.
    backend : str, default "auto"

    Returns
    -------
    dw : (I, O) ndarray
    db : (O,) ndarray
    dx : (B, I) ndarray, or None without `need_dx`

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, BackendError
    """
    row = ops.get_activation(activation)
    x = _array(x, "x", (None, None))
    dtype = checks.as_dtype(x.dtype)
    w = _weights(w, x, dtype)
    da = _array(da, "da", (len(x), w.shape[1]), dtype)
    if row.saves != "none":
        saved = _array(saved, "saved", da.shape, dtype)
    dw, db = np.zeros_like(w), np.zeros(w.shape[1], dtype)
    dx = np.empty_like(x) if checks.flag("need_dx", need_dx) else None
    _backend(backend, dtype, activation=row).dense_backward(da, x, w, saved, row, dw, db, dx)
    return dw, db, dx


@named_keywords
def loss(name: str | ops.Loss, a, y, *, backend: str = "auto") -> tuple[float, Array]:
    """Mean loss of outputs `a` (B, O) against targets `y`, and its gradient with respect to `a`.

    Parameters
    ----------
    name : str or Loss
    a : (B, O) array_like
    y : array_like
        Labels (B,), or (B, O); as in :meth:`fastbatch.Trainer.fit`.
    backend : str, default "auto"

    Returns
    -------
    value : float
    da : (B, O) ndarray

    Raises
    ------
    ShapeError, DTypeError, DataError, ArgumentError, BackendError
    """
    row = ops.get_loss(name)
    a = _array(a, "a", (None, None))
    if len(a) == 0:
        raise ShapeError(f"a: expected at least 1 row, got shape {a.shape}")
    checks.check_outputs(row, a.shape[1])
    dtype = checks.as_dtype(a.dtype)
    y, weight = checks.leave_out(checks.as_targets(y, row, len(a), a.shape[1], dtype), None, row)
    y = np.ascontiguousarray(y)
    da = np.empty_like(a)
    sums = _backend(backend, dtype, loss=row).loss(a, y, row, weight, da)
    da *= a.dtype.type(1 / sums.weight if sums.weight else 0)
    return sums.mean(), da


@named_keywords
def update(optimizer: ops.Optimizer, p: Array, g, slots: Array, t: int, *, backend: str = "auto") -> None:
    """One optimizer update of `p` (N,) and `slots` (S, N) in place from the gradient `g` (N,).

    Parameters
    ----------
    optimizer : Optimizer
    p : (N,) ndarray
    g : (N,) array_like
    slots : (S, N) ndarray
        S is ``optimizer.slots``; before the first update zeros, but for Adagrad's ``initial_accumulator_value``.
    t : int
        Number of this update, from 1.
    backend : str, default "auto"

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, BackendError
    """
    optimizer = ops.get_optimizer(optimizer)
    if optimizer.max_norm is not None:
        raise ArgumentError(f"update: expected an optimizer without max_norm, p (N,) has no columns; got {optimizer}")
    p = _in_place(p, "p", (None,))
    dtype = checks.as_dtype(p.dtype)
    g = _array(g, "g", (len(p),), dtype)
    slots = _in_place(slots, "slots", (optimizer.slots, len(p)), dtype)
    _apart("p", p, g=g, slots=slots)
    _apart("slots", slots, g=g)
    t = checks.count("t", t)
    _backend(backend, dtype, optimizer=optimizer).update(optimizer, p, g, slots, t, optimizer.rate(t - 1))
