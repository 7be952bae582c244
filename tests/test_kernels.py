"""The four kernels on every backend and target, held to the oracle; hostile memory and hostile numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import (
    DTYPES,
    LOSS_NAMES,
    OPTIMIZERS,
    SUBJECTS,
    DenseCase,
    LossCase,
    UpdateCase,
    dense_cases,
    loss_cases,
    loss_variants,
    parametrize,
    update_cases,
)
from helpers import BACKENDS
from test_math import flushed, flushes
from tiers import thin

import fastbatch as fb
from fastbatch import ops


@parametrize(dense_cases("forward"))
def test_dense_forward(case):
    oracle.check_dense_forward(SUBJECTS[case.subject], case)


@parametrize(dense_cases("backward"))
def test_dense_backward(case):
    oracle.check_dense_backward(SUBJECTS[case.subject], case, need_dx=case.bias or case.B % 2 == 0)


@thin(2, "subject", "dtype", "loss", "narrow")
@parametrize(loss_cases())
def test_loss(case):
    oracle.check_loss(SUBJECTS[case.subject], case)


@thin(2, "subject", "dtype", "optimizer")
@parametrize(update_cases())
def test_update(case):
    oracle.check_update(SUBJECTS[case.subject], case)


# every displacement of a vector, so that an aligned load where none is granted faults
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skew", [0, 2, 3, 5, 8, 15])
def test_any_alignment(subject, skew, dtype):
    dense = DenseCase("forward", subject, dtype, "gelu", 9, 17, 33)
    oracle.check_dense_forward(SUBJECTS[subject], dense, skew=skew)
    oracle.check_dense_backward(SUBJECTS[subject], replace(dense, verb="backward"), skew=skew)
    oracle.check_loss(SUBJECTS[subject], LossCase(subject, dtype, "cross_entropy", 9, 33, True, False), skew=skew)
    oracle.check_update(SUBJECTS[subject], UpdateCase(subject, dtype, "adam", 33, 2), skew=skew)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(subject, activation, rows):
    case = DenseCase("forward", subject, "float32", activation, rows, 5, 7)
    oracle.check_dense_forward(SUBJECTS[subject], case)
    oracle.check_dense_backward(SUBJECTS[subject], replace(case, verb="backward"))


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_loss_of_no_rows(subject, name):
    a, y = np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)
    sums = SUBJECTS[subject].loss(a, y, loss_variants(3)[name], None, np.empty_like(a))
    assert (sums.loss, sums.weight, sums.mean()) == (0, 0, 0)


# -- numbers at the ends of the range ----------------------------------------------------------------------------------

EXTREME = {
    "float32": {"subnormal": 1e-41, "tiny": 1e-30, "large": 1e15, "huge": 1e30},
    "float64": {"subnormal": 1e-311, "tiny": 1e-200, "large": 1e120, "huge": 1e150},  # the bounds have squares
}
SIZES = tuple(EXTREME["float32"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_extreme_inputs(subject, activation, size, dtype):
    case = DenseCase("forward", subject, dtype, activation, 5, 3, 9)
    data = case.data()
    data["x"] *= EXTREME[dtype][size]
    with np.errstate(all="ignore"):  # the reference overflows and underflows aloud
        oracle.check_dense_forward(SUBJECTS[subject], case, data)
        oracle.check_dense_backward(SUBJECTS[subject], case, data)


@thin(2, "subject", "dtype", "name")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_extreme_outputs(subject, name, size, dtype):
    case = LossCase(subject, dtype, name, 5, 9, False, True)
    data = case.data()
    data["a"] *= EXTREME[dtype][size]
    with np.errstate(all="ignore"):
        oracle.check_loss(SUBJECTS[subject], case, data)


@thin(1, "subject", "dtype", "optimizer")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", ["subnormal", "tiny", "large"])
def test_extreme_gradients(subject, optimizer, size, dtype):
    case = UpdateCase(subject, dtype, optimizer, 9, 3)
    data = case.data()
    data["g"] *= EXTREME[dtype][size]
    if case.row.normed and flushes(subject):
        data["g"] = flushed(data["g"])  # a norm of nothing is a case of its own
    oracle.check_update(SUBJECTS[subject], case, data)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nonfinite_input_reaches_its_row_only(subject, poison):
    case = DenseCase("forward", subject, "float32", "identity", 9, 5, 11)
    data = case.data()
    data["x"][4, 2] = poison
    with np.errstate(invalid="ignore"):
        oracle.check_dense_forward(SUBJECTS[subject], case, data)
        a, _ = fb.kernels.dense_forward(data["x"], data["w"], data["b"], backend=subject.partition("-")[0])
    assert not np.isfinite(a[4]).any()
    assert np.isfinite(np.delete(a, 4, axis=0)).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_nan_comes_through_every_activation(subject, activation, poison, dtype):
    case = DenseCase("forward", subject, dtype, activation, 3, 2, 11)
    data = case.data()
    data["b"][::2] = poison
    with np.errstate(invalid="ignore"):  # 0 x inf in the reference's formulas
        oracle.check_dense_forward(SUBJECTS[subject], case, data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_nan_comes_through_every_loss(subject, name, dtype):
    case = LossCase(subject, dtype, name, 6, 5, False, True)
    for column in range(case.O):
        data = case.data()
        data["a"][2, column] = np.nan
        da = np.zeros_like(data["a"])
        sums = SUBJECTS[subject].loss(data["a"], data["y"], case.row, None, da)
        assert np.isnan(sums.loss)
        assert np.isnan(da[2, column])
        assert np.isfinite(np.delete(da, 2, axis=0)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_logits(subject, smoothing):
    """A class with no target adds nothing at a logit of -inf; one with a target makes the loss infinite."""
    a = np.array([[1, 2, -np.inf], [0, -np.inf, 3]], np.float32)
    y, row, da = np.array([1, 2]), fb.losses.CrossEntropy(label_smoothing=smoothing), np.empty_like(a)
    with np.errstate(invalid="ignore"):
        sums = SUBJECTS[subject].loss(a, y, row, None, da)
    if smoothing:
        assert sums.loss == np.inf
        return
    p = np.exp([[-1, 0, -np.inf], [-3, -np.inf, 0]])
    p /= p.sum(axis=1, keepdims=True)
    exact = -np.log(p[[0, 1], y]).sum()
    oracle.assert_within(np.float64(sums.loss), exact, 1e-5 * exact, "loss")
    oracle.assert_within(da, p - np.eye(3)[y], 1e-6 * p, "da")


# -- the public door ---------------------------------------------------------------------------------------------------


def _strided(a):
    wide = np.full((a.shape[0] * 2, a.shape[1] * 3), np.nan, a.dtype)
    wide[::2, ::3] = a
    return wide[::2, ::3]


def _readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


LAYOUTS = {
    "strided": _strided,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": np.asfortranarray,
    "readonly": _readonly,
    "misaligned": _misaligned,
    "byteswapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "list": lambda a: [list(row) for row in a],
}


def _equals(call, plain, other, native: bool):
    """The same bits from any layout; what is not float32 in native order is refused by name."""
    if not native:
        with pytest.raises(fb.DTypeError, match="expected float32"):
            call(other)
        return
    for got, expected in zip(call(other), call(plain)):
        oracle.assert_same_bits(got, expected, "result")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["x", "w", "da"])
def test_layouts(subject, public, which, layout):
    backend = public(subject)
    case = DenseCase("forward", subject, "float32", "tanh", 6, 5, 9)
    data = case.data()

    def call(value):
        given = {**data, which: value}
        if which != "da":
            a, saved = fb.kernels.dense_forward(given["x"], given["w"], given["b"], "tanh", backend=backend)
        else:
            saved = np.tanh(data["x"] @ data["w"])
            a = saved
        return a, *fb.kernels.dense_backward(given["da"], given["x"], given["w"], saved, "tanh", backend=backend)

    _equals(call, data[which], LAYOUTS[layout](data[which]), native=layout != "byteswapped")


@thin(2, "subject", "name")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_loss_layouts(subject, public, name, layout):
    backend = public(subject)
    data = LossCase(subject, "float32", name, 6, 5, False, False).data()
    row = loss_variants(5)[name]
    _equals(
        lambda a: tuple(map(np.asarray, fb.kernels.loss(row, a, data["y"], backend=backend))),
        data["a"],
        LAYOUTS[layout](data["a"]),
        native=layout != "byteswapped",
    )


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_public_forward_and_backward(subject, public, activation):
    backend = public(subject)
    case = DenseCase("forward", subject, "float32", activation, 7, 5, 13)
    data = case.data()
    out = oracle.Guarded(np.zeros((7, 13), np.float32))
    a, saved = fb.kernels.dense_forward(data["x"], data["w"], data["b"], activation, out=out.array, backend=backend)
    out.check("out")
    assert np.shares_memory(a, out.array)
    z, ez = oracle.affine(data["x"], data["w"], data["b"], "float32")
    exact, ea = oracle.activate(case.row, z, ez, "float32")
    oracle.assert_within(a, exact, ea, "a")
    assert (saved is None) == (case.row.saves == "none")
    dw, db, dx = fb.kernels.dense_backward(data["da"], data["x"], data["w"], saved, activation, backend=backend)
    d, ed = oracle.slope(case.row, saved, 0.0, "float32")
    dz, edz = oracle.delta(data["da"].astype(np.float64), 0.0, d, ed, "float32")
    oracle.assert_within(dw, *oracle.weight_gradient(data["x"].astype(float), 0.0, dz, edz, "float32"), "dw")
    exact, bound = oracle.weight_gradient(np.ones((7, 1)), 0.0, dz, edz, "float32")
    oracle.assert_within(db, exact[0], bound[0], "db")
    oracle.assert_within(dx, *oracle.input_gradient(dz, edz, data["w"], "float32"), "dx")
    without = fb.kernels.dense_backward(
        data["da"], data["x"], data["w"], saved, activation, need_dx=False, backend=backend
    )
    assert without[2] is None
    oracle.assert_same_bits(without[0], dw, "dw without dx")


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_public_loss_is_the_mean(subject, public, name):
    backend = public(subject)
    case = LossCase(subject, "float32", name, 9, 4, False, True)
    data = case.data()
    value, da = fb.kernels.loss(case.row, data["a"], data["y"], backend=backend)
    sums, esums, exact, bound = oracle.loss(case.row, data["a"], data["y"], None, "float32")
    room = 4 * oracle.U["float32"]
    mean = sums.mean()
    oracle.assert_within(np.float64(value), mean, esums.loss / sums.weight + room * abs(mean), "mean")
    oracle.assert_within(da, exact / sums.weight, bound / sums.weight + room * np.abs(exact), "da")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_public_update(subject, public, optimizer):
    backend = public(subject)
    case = UpdateCase(subject, "float32", optimizer, 13, 2)
    data = case.data()
    exact_p, ep, exact_slots, eslots = oracle.update(case.row, **data, t=2, lr=case.row.lr, dtype="float32")
    p, slots = oracle.Guarded(data["p"]), oracle.Guarded(data["slots"])
    fb.kernels.update(case.row, p.array, _strided(data["g"][None])[0], slots.array, 2, backend=backend)
    p.check("p"), slots.check("slots")
    oracle.assert_within(p.array, exact_p, ep, "p")
    oracle.assert_within(slots.array, exact_slots, eslots, "slots")


def _zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


REFUSED = {
    "out-shape": ("dense_forward", {"out": _zeros(6, 8)}, fb.ShapeError, "out: expected shape (6, 9), got (6, 8)"),
    "out-dtype": ("dense_forward", {"out": _zeros(6, 9, dtype="float64")}, fb.DTypeError, "out: expected float32"),
    "out-layout": ("dense_forward", {"out": _zeros(9, 6).T}, fb.ArgumentError, "out: expected a writable C-contiguous"),
    "w": ("dense_forward", {"w": _zeros(4, 9)}, fb.ShapeError, "w: expected shape (5, n), got (4, 9)"),
    "b": ("dense_forward", {"b": _zeros(8)}, fb.ShapeError, "b: expected shape (9,), got (8,)"),
    "no-output": ("dense_forward", {"w": _zeros(5, 0), "b": None}, fb.ShapeError, "w: expected at least 1 input and 1"),
    "no-input": ("dense_backward", {"x": _zeros(6, 0), "w": _zeros(0, 9)}, fb.ShapeError, "w: expected at least 1"),
    "saved": ("dense_backward", {"saved": None}, fb.DTypeError, "saved: expected float32"),
    "saved-shape": ("dense_backward", {"saved": _zeros(6, 8)}, fb.ShapeError, "saved: expected shape (6, 9)"),
    "da": ("dense_backward", {"da": _zeros(5, 9)}, fb.ShapeError, "da: expected shape (6, 9), got (5, 9)"),
    "need_dx": ("dense_backward", {"need_dx": 2}, fb.ArgumentError, "need_dx: expected"),
    "y": ("loss", {"y": _zeros(6, 8)}, fb.ShapeError, "y: expected"),
    "label": ("loss", {"name": "cross_entropy", "y": np.full(6, 9)}, fb.DataError, "y: expected"),
    "no-row": ("loss", {"a": _zeros(0, 9), "y": _zeros(0, 9)}, fb.ShapeError, "a: expected at least 1 row"),
    "slots": ("update", {"slots": _zeros(1, 13)}, fb.ShapeError, "slots: expected shape (2, 13), got (1, 13)"),
    "g": ("update", {"g": _zeros(12)}, fb.ShapeError, "g: expected shape (13,), got (12,)"),
    "t": ("update", {"t": 0}, fb.ArgumentError, "t: expected"),
    "p": ("update", {"p": [0.0] * 13}, fb.ArgumentError, "p: expected a writable C-contiguous ndarray"),
    "max_norm": ("update", {"optimizer": fb.Adam(max_norm=1.0)}, fb.ArgumentError, "without max_norm"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", REFUSED)
def test_public_functions_refuse(backend, what):
    """By name, with what was expected; nothing that was handed over has changed."""
    function, wrong, error, says = REFUSED[what]
    x, w, b, a = _zeros(6, 5), _zeros(5, 9), _zeros(9), _zeros(6, 9)
    given = {
        "dense_forward": {"x": x, "w": w, "b": b, "activation": "tanh", "out": a},
        "dense_backward": {"da": a, "x": x, "w": w, "saved": a, "activation": "tanh"},
        "loss": {"name": "mse", "a": a, "y": a},
        "update": {"optimizer": fb.Adam(), "p": _zeros(13), "g": _zeros(13) + 1, "slots": _zeros(2, 13), "t": 1},
    }[function]
    with pytest.raises(error) as caught:
        getattr(fb.kernels, function)(**{**given, **wrong}, backend=backend)
    assert says in str(caught.value)
    assert not any(given[name].any() for name in {"out", "p", "slots"} & given.keys())


@pytest.mark.parametrize("array", ["x", "w", "b"])
def test_arrays_are_of_one_dtype(subject, public, array):
    backend = public(subject)
    data = DenseCase("forward", subject, "float64", "tanh", 3, 4, 5).data()
    a, _ = fb.kernels.dense_forward(data["x"], data["w"], data["b"], "tanh", backend=backend)
    assert a.dtype == np.float64
    oracle.assert_within(a, np.tanh(data["x"] @ data["w"] + data["b"]), 1e-14, "a")
    mixed = {name: data[name].astype("float32") if name == array else data[name] for name in ("x", "w", "b")}
    with pytest.raises(fb.DTypeError, match=rf"{array if array != 'x' else 'w'}: expected float"):
        fb.kernels.dense_forward(**mixed, backend=backend)
