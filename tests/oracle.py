"""Truth in float64, bounds that every correct implementation meets, and the assertions that hold results to them.

Bounds are per element. u is the unit roundoff, gamma(n) = n u / (1 - n u); a sum of n products in any order, with or
without fused multiply-add, is within gamma(n) of exact relative to the sum of magnitudes (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). An error e of the input of f moves the result by at most sup|f'| e.
Every `e...` is such a bound on the value beside it. Two allowances are common to all: float64 truth is itself rounded
(added to u), and arguments and results, also those half way, below the smallest normal number may count as zero
(`TINY`; times what the formula multiplies them with, see `_reach`).
"""

from __future__ import annotations

from itertools import product

import numpy as np
from cases import DenseCase, LossCase, NetCase, UpdateCase

from fastbatch import ops
from fastbatch.plan import Plan
from fastbatch.protocol import Feed, State, Sums

Array = np.ndarray
U = {"float32": 2.0**-24 + 2.0**-53, "float64": 2.0**-53 + 2.0**-53}
TINY = {name: 2 * float(np.finfo(name).tiny) for name in U}
# Roundings granted to a loss element or an optimizer rule: at most a dozen operations, elementary functions at 2 ulp
ROUNDINGS = 16
# |f''| of every activation stays below this between kinks (test_ops holds the registry to it)
CURVATURE = 2.0


def gamma(n: int, dtype: str) -> float:
    return n * U[dtype] / (1 - n * U[dtype])


# -- assertions --------------------------------------------------------------------------------------------------------


def assert_within(got: Array, exact: Array, bound: Array, what: str, dtype: str | None = None) -> None:
    """Every element of `got` is within `bound` of `exact`; NaN where exact is NaN, the same infinity where infinite.

    An exact value that does not fit `dtype`, by default that of `got`, may come out as infinity. A bound that is not
    finite would accept anything and is refused.
    """
    got = np.asarray(got)
    exact, bound = np.broadcast_to(exact, got.shape), np.broadcast_to(bound, got.shape)
    number = np.isfinite(exact)
    if not np.isfinite(bound[number]).all():
        raise AssertionError(f"{what}: the bound itself is not finite, so it would accept anything")
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.float64) - exact)
        fits = error <= bound
        largest = float(np.finfo(dtype or got.dtype).max)
        fits |= np.isinf(got) & (np.sign(got) == np.sign(exact)) & (np.abs(exact) + bound >= largest)
        fits = np.where(number, fits, np.where(np.isnan(exact), np.isnan(got), got == exact))
        if fits.all():
            return
        excess = np.where(fits, -1.0, np.where(np.isfinite(error), error / np.maximum(bound, 1e-300), np.inf))
    at = np.unravel_index(int(np.argmax(excess)), got.shape) if got.ndim else ()
    raise AssertionError(
        f"{what}{list(map(int, at))}: expected {exact[at]!r} +- {bound[at]:.3g}, got {got[at]!r} "
        f"({excess[at]:.3g} times the bound); {np.count_nonzero(~fits)} of {got.size} elements are out"
    )


def assert_same_bits(got: Array, expected: Array, what: str) -> None:
    got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    assert got.shape == expected.shape, f"{what}: expected shape {expected.shape}, got {got.shape}"
    assert got.dtype == expected.dtype, f"{what}: expected {expected.dtype}, got {got.dtype}"
    if got.tobytes() != expected.tobytes():
        size = got.dtype.itemsize
        differ = (got.reshape(-1).view(np.uint8) != expected.reshape(-1).view(np.uint8)).reshape(-1, size).any(axis=1)
        at = int(np.argmax(differ))
        raise AssertionError(
            f"{what}[{at}] (flat): expected the bits of {expected.reshape(-1)[at]!r}, got {got.reshape(-1)[at]!r}; "
            f"{np.count_nonzero(differ)} of {got.size} elements differ"
        )


def assert_norm_close(got: Array, exact: Array, share: float, what: str) -> None:
    """The norm of the difference is at most `share` of the norm of `exact`: for sums of many roundings, per tensor."""
    exact = np.asarray(exact, np.float64)
    norm, error = np.linalg.norm(exact), np.linalg.norm(np.asarray(got, np.float64) - exact)
    if not error <= share * norm:
        raise AssertionError(f"{what}: expected a difference of norm <= {share:.3g} x {norm:.6g}, got {error:.6g}")


class Guarded:
    """An array inside a larger block. The margins hold NaN: to read them spoils a result, to write them is seen.

    `skew` moves the array by that many elements from a 64-byte boundary.
    """

    MARGIN = 64  # elements: more than the widest vector overruns

    def __init__(self, values: Array, skew: int = 1) -> None:
        values = np.asarray(values)
        size, margin = values.dtype.itemsize, self.MARGIN
        raw = np.empty((values.size + 2 * margin + skew) * size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        block = raw[start : start + (values.size + 2 * margin + skew) * size].view(values.dtype)
        self._guard = np.nan if values.dtype.kind == "f" else -(2**62)
        block[:] = self._guard
        self._before, self._after = block[: margin + skew], block[margin + skew + values.size :]
        self.array = block[margin + skew : margin + skew + values.size].reshape(values.shape)
        self.array[...] = values
        self._values = values.copy()
        self._margins = self._before.tobytes(), self._after.tobytes()

    def check(self, what: str) -> None:
        for side, now, then in zip(("before", "after"), (self._before, self._after), self._margins):
            if now.tobytes() != then:
                hit = np.frombuffer(then, np.uint8) != np.frombuffer(now.tobytes(), np.uint8)
                at = int(np.argmax(hit)) // now.dtype.itemsize
                raise AssertionError(f"{what}: element {at} of the margin {side} the array was written to")

    def check_unchanged(self, what: str) -> None:
        self.check(what)
        assert_same_bits(self.array, self._values, f"{what} (an input)")


# -- one layer ---------------------------------------------------------------------------------------------------------


def affine(x: Array, w: Array, b: Array | None, dtype: str, ex: Array | float = 0.0) -> tuple[Array, Array]:
    """z and its bound: gamma(I + 1) (|x| |w| + |b|), whatever the order of the sum."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    with np.errstate(invalid="ignore"):
        size, moved = (np.abs(x) + ex) @ np.abs(w), np.broadcast_to(ex, x.shape) @ np.abs(w)
        z = x @ w
        if b is not None:
            z, size = z + b, size + np.abs(b)
        # each product may lose a subnormal factor or result
        lost = TINY[dtype] * ((1 + np.abs(x)).sum(axis=1)[:, None] + np.abs(w).sum(axis=0))
        return z, np.where(np.isfinite(z), gamma(x.shape[1] + 1, dtype) * size + moved + lost, 0.0)


def _slope_at(act: ops.Activation, z: Array) -> Array:
    return act.slope(act.value(z) if act.saves == "a" else z)


def activate(act: ops.Activation, z: Array, ez: Array, dtype: str) -> tuple[Array, Array]:
    """a and its bound: sup|f'| over [z - ez, z + ez] times ez, and the row's own budget in ulp."""
    with np.errstate(all="ignore"):
        a = np.asarray(act.value(z))
        reach = np.max([np.abs(_slope_at(act, z + d)) for d in (-ez, 0.0, ez)], axis=0)
        # f' may peak inside the interval: by at most f'' e; where it is 0 on all three the function is flat
        reach = np.where(reach > 0, reach + CURVATURE * ez, 0.0) if ez.any() else reach
        steep = np.where(np.isfinite(z), np.abs(z) * reach, 0.0)
        ulp = act.ulp * 2 * U[dtype] * np.maximum(np.abs(a) + reach * ez, steep)
    return a, reach * ez + ulp + (TINY[dtype] * _reach(z, dtype) if act.ulp else 0.0)


def _reach(z: Array, dtype: str) -> Array:
    """1 + |z|: what an exponential that underflows is multiplied with; further out the product is far below TINY."""
    return 1 + np.minimum(np.abs(z), 128.0 if dtype == "float32" else 1024.0)


def slope(act: ops.Activation, saved: Array | None, esaved: Array | float, dtype: str) -> tuple[Array, Array]:
    """f' from what was saved, and its bound.

    A formula of a few operations is within (ulp + 4) ulp of max(|f'|, |s f''|): the second is what cancellation leaves,
    1 - a^2 at the ends of tanh or the zero of gelu's slope. An error of `saved` moves it by the difference it makes.
    """
    if act.saves == "none":
        return np.float64(1.0), np.float64(0.0)
    s = saved.astype(np.float64)
    with np.errstate(all="ignore"):
        d = act.slope(s)
        h = 1e-6 * np.maximum(1.0, np.abs(s))
        steep = np.abs(s) * np.abs(act.slope(s + h) - act.slope(s - h)) / (2 * h)
        own = (act.ulp + 4) * 2 * U[dtype] * np.maximum(np.abs(d), steep) + TINY[dtype] * _reach(s, dtype) ** 2
        moved = np.max([np.abs(act.slope(s + e) - d) for e in (-np.asarray(esaved), np.asarray(esaved))], axis=0)
        moved = moved + CURVATURE * np.square(esaved) * (moved > 0)
    return d, own + moved


def delta(da: Array, eda: Array | float, d: Array, ed: Array, dtype: str) -> tuple[Array, Array]:
    dz = da * d
    return dz, (np.abs(da) + eda) * ed + eda * np.abs(d) + 2 * U[dtype] * np.abs(dz) + TINY[dtype]


def weight_gradient(x, ex, dz, edz, dtype: str, start: Array | float = 0.0) -> tuple[Array, Array]:
    """x^T dz + start within gamma(B + 1) of the sum of magnitudes; `x` of ones gives db."""
    ax, adz = np.abs(x) + ex, np.abs(dz) + edz
    bound = gamma(len(x) + 1, dtype) * (ax.T @ adz + np.abs(start))
    bound = bound + np.abs(x).T @ edz + np.broadcast_to(ex, x.shape).T @ adz
    return x.T @ dz + start, bound + TINY[dtype] * ((1 + ax).sum(axis=0)[:, None] + adz.sum(axis=0))


def input_gradient(dz, edz, w, dtype: str) -> tuple[Array, Array]:
    """dz w^T within gamma(O + 1) of the sum of magnitudes."""
    w = w.astype(np.float64).T
    adz = np.abs(dz) + edz
    lost = TINY[dtype] * ((1 + adz).sum(axis=1)[:, None] + np.abs(w).sum(axis=0))
    return dz @ w, gamma(len(w) + 1, dtype) * (adz @ np.abs(w)) + edz @ np.abs(w) + lost


def normalise(x, ex, eps: float, axis: int, dtype: str) -> dict[str, tuple[Array, Array]]:
    """The normalised x, and one over the deviation, along `axis`: each with its bound.

    Moments are sums of n terms; a difference from the mean errs with both. The factor falls with the variance, so its
    ends are those of the interval of the variance. sqrt, quotient and the sum with eps are a few roundings more.
    """
    n, u = x.shape[axis], U[dtype]
    mean = x.mean(axis=axis, keepdims=True)
    emean = np.mean(ex + gamma(n + 1, dtype) * (np.abs(x) + ex), axis=axis, keepdims=True)
    d = x - mean
    ed = ex + emean + u * (np.abs(d) + ex + emean)
    var = np.square(d).mean(axis=axis, keepdims=True)
    top = np.square(np.abs(d) + ed).mean(axis=axis, keepdims=True) * (1 + gamma(n + 3, dtype)) + TINY[dtype]
    low = np.square(np.maximum(np.abs(d) - ed, 0)).mean(axis=axis, keepdims=True) * (1 - gamma(n + 3, dtype))
    factor = 1 / np.sqrt(var + eps)
    ends = [np.abs(1 / np.sqrt(v + eps) - factor) for v in (low, top)]
    efactor = np.maximum(*ends) + 4 * u * (factor + ends[0])
    normal = d * factor
    enormal = ed * (factor + efactor) + np.abs(d) * efactor + 2 * u * np.abs(normal) + TINY[dtype]
    return {"normal": (normal, enormal), "factor": (factor, efactor)}


def normalise_backward(d, ed, found: dict, axis: int, dtype: str) -> tuple[Array, Array]:
    """dx = factor (d - mean(d) - normal mean(d normal)), each mean a sum of n terms."""
    (normal, en), (factor, ef), n, u = found["normal"], found["factor"], d.shape[axis], U[dtype]
    ad, an = np.abs(d) + ed, np.abs(normal) + en
    s, a = (v.mean(axis=axis, keepdims=True) for v in (d, d * normal))
    es = np.mean(ed + gamma(n + 1, dtype) * ad, axis=axis, keepdims=True)
    ea = np.mean(ed * an + np.abs(d) * en + gamma(n + 3, dtype) * ad * an, axis=axis, keepdims=True)
    t = d - s - normal * a
    et = ed + es + en * (np.abs(a) + ea) + np.abs(normal) * ea
    et = et + 4 * u * (ad + np.abs(s) + es + an * (np.abs(a) + ea))
    dx = factor * t
    return dx, ef * (np.abs(t) + et) + factor * et + 4 * u * np.abs(dx) + TINY[dtype] * (1 + factor + ef)


def scaled(v, ev, by: Array, dtype: str) -> tuple[Array, Array]:
    """v times exact numbers."""
    return v * by, ev * np.abs(by) + U[dtype] * (np.abs(v) + ev) * np.abs(by) + TINY[dtype]


def groups_of(norm, rows: int) -> list[tuple[slice, int]]:
    """Rows that are normalised together, and along which axis."""
    if not norm.over_rows:
        return [(slice(0, rows), 1)]
    size = norm.ghost_size or rows
    return [(slice(start, start + size), 0) for start in range(0, rows, size)]


# -- losses ------------------------------------------------------------------------------------------------------------


def loss(
    row: ops.Loss, a: Array, y: Array, weight: Array | None, dtype: str, ea: Array | float = 0.0
) -> tuple[Sums, Sums, Array, Array]:
    """Sums, their bounds, da, its bound.

    Elements: the value is that of arguments perturbed by ROUNDINGS u, so within K u (|v| + (|a| + |y|) |v'|) with K =
    ROUNDINGS; where the target is a probability, v is a difference of terms as large as |a|, so |v'| counts as 1. The
    mean over O adds gamma(O) of the magnitudes. The slope is within K u of |v'|, again of 1 + |y| for probabilities.
    Under a log link v = f(a) + y g(a), and either term counts with its size: y g is what a second y adds. Its
    exponentials have arguments rounded by |a| u.
    Softmax: with s = a - max a, exp(s) is within (4 + |s|) u, the total within gamma(O) more, the logarithm of the
    total within that absolutely; the products t s add gamma(O) |t s|. Row weights are one more rounding.
    """
    a, u, k = a.astype(np.float64), U[dtype], ROUNDINGS * U[dtype]
    width = a.shape[1]
    r = np.ones(len(a)) if weight is None else weight.astype(np.float64)
    c = 1.0 if row.per_output is None else np.broadcast_to(np.array(row.per_output, np.float64), (width,))
    y64 = y.astype(np.float64) if y.ndim == 2 else y
    ea = np.broadcast_to(np.asarray(ea, np.float64), a.shape)
    with np.errstate(all="ignore"):
        value, da, share = row.rows(a, y64)
        if row.targets == "classes":
            hot = np.eye(width)[y] if y.ndim == 1 else y64
            t = c * ((1 - row.parameter) * hot + row.parameter / width)
            s = np.abs(a - a.max(axis=1, keepdims=True))
            total = t.sum(axis=1)
            ts = np.where(t > 0, t * s, 0)
            p = np.exp(-s)
            norm = p.sum(axis=1)
            p /= norm[:, None]
            relative = gamma(2 * width, dtype) + (ROUNDINGS + 2 * np.where(p > 0, s, 0)) * u
            # log-softmax moves by at most twice the largest change of a logit
            shift = 2 * ea.max(axis=1)
            evalue = total * ((gamma(width, dtype) + k) * (1 + np.log(norm)) + shift)
            evalue += gamma(width + 8, dtype) * ts.sum(axis=1)
            eda = p * total[:, None] * (relative + np.expm1(shift)[:, None]) + k * t + TINY[dtype] * total[:, None]
        else:
            v, dv = row.elements(a, y64)
            # the slope of a convex loss is monotone: the ends of the interval bound it
            moved = np.max([np.abs(row.elements(a + d, y64)[1] - dv) for d in (-ea, ea)], axis=0)
            if row.name == "focal":  # the only one that is not convex
                moved = moved + CURVATURE * np.square(ea)
            # what the slope is a difference of: probabilities times weights of positives (c) and negatives (at most 1)
            terms, size = np.maximum(c, 1.0) * (1 + np.abs(y64)) if row.targets == "binary" else 0.0, np.abs(v)
            if row.log_link:
                v2, dv2 = row.elements(a, 2 * y64)
                terms = (1 + np.abs(a)) * (np.abs(dv) + moved + np.abs(dv2 - dv))
                size = size + np.abs(v2 - v) + terms
            steep = np.maximum(np.abs(dv) + moved, np.max(c) if row.targets == "binary" else 0.0)
            ev = k * (size + (np.abs(a) + np.abs(y64)) * steep) + steep * ea
            of_value, of_slope = row.divisors(width)
            evalue = (ev.sum(axis=1) + gamma(width, dtype) * np.abs(v).sum(axis=1)) / of_value
            eda = (moved + k * (np.abs(dv) + moved + terms) + TINY[dtype]) / of_slope
        eda = r[:, None] * (eda + 4 * u * np.abs(da)) + TINY[dtype]
    sums = Sums(float((r * value).sum()), float((r * share).sum()))
    bounds = Sums(
        float((r * (evalue + 4 * u * np.abs(value))).sum()) + TINY[dtype], 4 * u * float((r * np.abs(share)).sum())
    )
    return sums, bounds, r[:, None] * da, eda


# -- updates -----------------------------------------------------------------------------------------------------------


def update(row: ops.Optimizer, p, g, slots, t: int, lr: float, dtype: str) -> tuple[Array, Array, Array, Array]:
    """p and slots after the update, and their bounds.

    A rule is a short formula without cancellation other than between its arguments, so its result is the exact one for
    arguments perturbed by K u, K = ROUNDINGS / 2, rounded by K u. The largest deviation over all corners of that
    perturbation bounds the first part to first order; holds for any rule of the registry. Where norms enter, a step is
    proportional to them, and may scale as its arguments do: its own roundings come on top.
    """
    k = ROUNDINGS / 2 * U[dtype]
    p, g, slots = (v.astype(np.float64) for v in (p, g, slots))

    def after(signs: tuple[float, ...]) -> tuple[Array, Array]:
        new_p, new_slots = p * (1 + signs[0] * k), slots * (1 + np.reshape(signs[2:], (-1, 1)) * k)
        row.update(new_p, g * (1 + signs[1] * k), new_slots, t, lr)
        return new_p, new_slots

    exact_p, exact_slots = after((0.0,) * (2 + len(slots)))
    corners = [after(signs) for signs in product((-1.0, 1.0), repeat=2 + len(slots))]
    ep = np.max([np.abs(new - exact_p) for new, _ in corners], axis=0) + k * np.abs(exact_p) + TINY[dtype]
    if row.normed:
        ep += k * np.abs(exact_p - p)
    # what decays with t is a power in double, within t 2^-53 of it (csrc/registry.c); two of them meet in a step
    ep += 2 * t * 2.0**-53 * np.abs(exact_p - p)
    eslots = np.max([np.abs(new - exact_slots) for _, new in corners], axis=0) + k * np.abs(exact_slots) + TINY[dtype]
    return exact_p, ep, exact_slots, eslots


def update_network(plan: Plan, p, g, slots, t: int, lr: float, dtype: str) -> tuple[Array, Array, Array, Array]:
    """The same for all parameters of a network, segment by segment; frozen ones stay as they are."""
    found = [p.astype(np.float64), np.zeros(p.shape), slots.astype(np.float64), np.zeros(slots.shape)]
    for segment in plan.segments:
        at = slice(segment.begin, segment.end)
        parts = update(segment.optimizer, p[at], g[at], slots[:, at], t, lr * segment.lr_factor, dtype)
        for whole, part in zip(found, parts):
            whole[..., at] = part
    return tuple(found)


# -- networks ----------------------------------------------------------------------------------------------------------


def network(plan: Plan, state: State, feed: Feed, first_row: int = 0) -> tuple[Sums, Sums, Array, Array, Array, Array]:
    """Sums, gradient sums and outputs of one batch, each with its bound: the errors of all stages followed through.

    An independent walk over the stages in float64; dropout is exact but for two roundings of its scale.
    """
    dtype, flat = plan.dtype, state.parameters.astype(np.float64)
    index = slice(None) if feed.order is None else feed.order
    x, ex = feed.x[index].astype(np.float64), np.zeros((feed.rows, plan.inputs))
    trail = []
    for stage in plan.stages:
        i, o, act = stage.inputs, stage.outputs, stage.activation
        w = b = None
        z, ez = x, ex
        if stage.has_dense:
            w = flat[stage.w : stage.w + i * o].reshape(i, o)
            b = None if stage.b is None else flat[stage.b : stage.b + o]
            z, ez = affine(x, w, b, dtype, ex)
        normals = []
        if stage.norm is not None:
            g, shift = flat[stage.norm.gamma :][:o], flat[stage.norm.beta :][:o]
            for group, axis in groups_of(stage.norm, len(z)):
                normals.append((group, axis, normalise(z[group], ez[group], stage.norm.eps, axis, dtype)))
            normal, enormal = (np.concatenate([found["normal"][k] for _, _, found in normals]) for k in (0, 1))
            z, ez = scaled(normal, enormal, g, dtype)
            z, ez = z + shift, ez + U[dtype] * (np.abs(z) + ez + np.abs(shift))
        a, ea = activate(act, z, ez, dtype)
        saved = {"none": (None, 0.0), "a": (a, ea), "z": (z, ez)}[act.saves]
        mask = None
        if stage.has_dropout:
            rows = np.arange(first_row, first_row + len(x))
            kept = ops.random.dropout_mask(state.seed, int(state.steps[0]), stage.layer, rows, o, stage.threshold)
            mask = kept * (256 / stage.threshold)
            a, ea = a * mask, ea * mask + 2 * U[dtype] * np.abs(a) * mask
        trail.append((stage, x, ex, w, normals, saved, mask))
        x, ex = a, ea
    y, weight = feed.y[index], None if feed.weight is None else feed.weight[index]
    sums, esums, da, eda = loss(plan.loss, x, y, weight, dtype, ex)
    gradient, bound = np.zeros(plan.num_parameters), np.zeros(plan.num_parameters)
    for stage, sx, esx, w, normals, (saved, esaved), mask in reversed(trail):
        if mask is not None:
            da, eda = da * mask, eda * mask + 2 * U[dtype] * np.abs(da) * mask
        d, ed = slope(stage.activation, saved, esaved, dtype)
        dz, edz = delta(da, eda, d, ed, dtype)
        if normals:
            normal, enormal = (np.concatenate([found["normal"][k] for _, _, found in normals]) for k in (0, 1))
            o, g = stage.outputs, flat[stage.norm.gamma :][: stage.outputs]
            # of x^T dz with x the normalised rows, the products of a unit with itself
            size, esize = np.abs(dz) + edz, np.abs(normal) + enormal
            along = edz * esize + np.abs(dz) * enormal + gamma(len(dz) + 2, dtype) * size * esize + TINY[dtype]
            gradient[stage.norm.gamma :][:o] = (dz * normal).sum(axis=0)
            bound[stage.norm.gamma :][:o] = along.sum(axis=0)
            gradient[stage.norm.beta :][:o] = dz.sum(axis=0)
            bound[stage.norm.beta :][:o] = (edz + gamma(len(dz) + 1, dtype) * size + TINY[dtype]).sum(axis=0)
            d, ed = scaled(dz, edz, g, dtype)
            dz, edz = np.empty_like(d), np.empty_like(d)
            for group, axis, found in normals:
                dz[group], edz[group] = normalise_backward(d[group], ed[group], found, axis, dtype)
        da, eda = dz, edz
        if not stage.has_dense:
            continue
        parts = [(stage.w, sx, esx)]
        if stage.b is not None:
            parts.append((stage.b, np.ones((len(sx), 1)), 0.0))
        for offset, left, eleft in parts:
            g, eg = weight_gradient(left, eleft, dz, edz, dtype)
            gradient[offset : offset + g.size], bound[offset : offset + g.size] = g.ravel(), eg.ravel()
        if not stage.needs_dx:
            break
        da, eda = input_gradient(dz, edz, w, dtype)
    return sums, esums, gradient, bound, x, ex


# -- the checks: what the tests run on backends and test_teeth on mutants ----------------------------------------------


def _guarded(values: dict[str, Array | None], skew: int = 1) -> dict[str, Guarded]:
    return {name: Guarded(value, skew) for name, value in values.items() if value is not None}


def check_dense_forward(backend, case: DenseCase, data: dict | None = None, skew: int = 1) -> None:
    data = data or case.data()
    act, shape = case.row, (case.B, case.O)
    held = _guarded({name: data[name] for name in ("x", "w", "b")}, skew)
    a = Guarded(np.full(shape, 3.5, case.dtype), skew)
    z = Guarded(np.full(shape, 3.5, case.dtype), skew) if act.saves == "z" else None
    arrays = {name: guard.array for name, guard in held.items()}
    backend.dense_forward(arrays["x"], arrays["w"], arrays.get("b"), act, a.array, None if z is None else z.array)
    for name, guard in held.items():
        guard.check_unchanged(f"{case.id}: {name}")
    exact_z, ez = affine(data["x"], data["w"], data["b"], case.dtype)
    exact_a, ea = activate(act, exact_z, ez, case.dtype)
    a.check(f"{case.id}: a")
    assert_within(a.array, exact_a, ea, f"{case.id}: a")
    if z is not None:
        z.check(f"{case.id}: z")
        assert_within(z.array, exact_z, ez, f"{case.id}: z")


def check_dense_backward(backend, case: DenseCase, data: dict | None = None, skew: int = 1, need_dx=True) -> None:
    data = data or case.data()
    act, dtype = case.row, case.dtype
    with np.errstate(all="ignore"):
        z = data["x"] @ data["w"] + (0 if data["b"] is None else data["b"])
        saved = {"none": None, "a": np.asarray(act.value(z)), "z": z}[act.saves]
    held = _guarded({"da": data["da"], "x": data["x"], "w": data["w"], "saved": saved}, skew)
    dw = Guarded(data["dw"], skew)
    db = Guarded(data["db"], skew) if case.bias else None
    dx = Guarded(np.full((case.B, case.I), 3.5, dtype), skew) if need_dx else None
    arrays = {name: guard.array for name, guard in held.items()}
    backend.dense_backward(
        arrays["da"], arrays["x"], arrays["w"], arrays.get("saved"), act, dw.array, db and db.array, dx and dx.array
    )
    for name, guard in held.items():
        guard.check_unchanged(f"{case.id}: {name}")
    x, da = data["x"].astype(np.float64), data["da"].astype(np.float64)
    d, ed = slope(act, saved, 0.0, dtype)
    dz, edz = delta(da, 0.0, d, ed, dtype)
    dw.check(f"{case.id}: dw")
    assert_within(dw.array, *weight_gradient(x, 0.0, dz, edz, dtype, data["dw"]), f"{case.id}: dw")
    if db is not None:
        ones = np.ones((case.B, 1))
        db.check(f"{case.id}: db")
        exact, bound = weight_gradient(ones, 0.0, dz, edz, dtype, data["db"][None])
        assert_within(db.array, exact[0], bound[0], f"{case.id}: db")
    if dx is not None:
        dx.check(f"{case.id}: dx")
        assert_within(dx.array, *input_gradient(dz, edz, data["w"], dtype), f"{case.id}: dx")


def check_loss(backend, case: LossCase, data: dict | None = None, skew: int = 1) -> None:
    data = data or case.data()
    held = _guarded(data, skew)
    da = Guarded(np.full(data["a"].shape, 3.5, case.dtype), skew)
    arrays = {name: guard.array for name, guard in held.items()}
    got = backend.loss(arrays["a"], arrays["y"], case.row, arrays.get("weight"), da.array)
    for name, guard in held.items():
        guard.check_unchanged(f"{case.id}: {name}")
    sums, esums, exact, bound = loss(case.row, data["a"], data["y"], data["weight"], case.dtype)
    da.check(f"{case.id}: da")
    assert_within(da.array, exact, bound, f"{case.id}: da")
    assert_within(np.float64(got.loss), sums.loss, esums.loss, f"{case.id}: loss", case.dtype)
    assert_within(np.float64(got.weight), sums.weight, esums.weight, f"{case.id}: weight")


def check_update(backend, case: UpdateCase, data: dict | None = None, skew: int = 1) -> None:
    data = data or case.data()
    p, g, slots = (Guarded(data[name], skew) for name in ("p", "g", "slots"))
    exact_p, ep, exact_slots, eslots = update(case.row, **data, t=case.t, lr=case.row.lr, dtype=case.dtype)
    backend.update(case.row, p.array, g.array, slots.array, case.t, case.row.lr)
    g.check_unchanged(f"{case.id}: g")
    for guard, exact, bound, name in ((p, exact_p, ep, "p"), (slots, exact_slots, eslots, "slots")):
        guard.check(f"{case.id}: {name}")
        assert_within(guard.array, exact, bound, f"{case.id}: {name}")


def tensors(plan: Plan, flat: Array) -> dict[str, Array]:
    """The parts of a flat (N,) or (S, N) array by stage."""
    found = {}
    for k, stage in enumerate(plan.stages):
        if stage.has_dense:
            size = stage.inputs * stage.outputs
            found[f"{k}.w"] = flat[..., stage.w : stage.w + size]
            if stage.b is not None:
                found[f"{k}.b"] = flat[..., stage.b : stage.b + stage.outputs]
        if stage.norm is not None:
            found[f"{k}.gamma"] = flat[..., stage.norm.gamma : stage.norm.gamma + stage.outputs]
            found[f"{k}.beta"] = flat[..., stage.norm.beta : stage.norm.beta + stage.outputs]
    return found


def check_gradient(case: NetCase, made: tuple | None = None, first_row: int = 0) -> None:
    """Gradient sums of one batch: per element within the bound, and per tensor within a share of its norm."""
    plan, state, program = made or case.program()
    feed = case.feed()
    start = rng_start(case, plan)
    gradient = Guarded(start)
    sums, esums, exact, bound, _, _ = network(plan, state, feed, first_row)
    before = state.parameters.copy()
    got = program.accumulate(feed, first_row, gradient.array)
    assert_same_bits(state.parameters, before, f"{case.id}: parameters (an input)")
    gradient.check(f"{case.id}: gradient")
    bound = bound + gamma(len(feed.x) + 2, plan.dtype) * np.abs(start)
    assert_within(gradient.array, exact + start, bound, f"{case.id}: gradient")
    assert_within(np.float64(got.loss), sums.loss, esums.loss, f"{case.id}: loss", case.dtype)
    assert_within(np.float64(got.weight), sums.weight, esums.weight, f"{case.id}: weight")


def rng_start(case: NetCase, plan: Plan) -> Array:
    """What a gradient buffer holds before: not zero, so that writing is told from adding."""
    pattern = np.resize([0.125, -0.25, 0.5, 1.0, -2.0], plan.num_parameters)
    return (pattern * 1e-3).astype(case.dtype)
