"""The case list: what is tested, in which shapes. Everything comes from the registries and from the targets' shapes.

A case draws its numbers from its own id, so that an id names the very numbers that failed (see README.md).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, replace
from itertools import chain, combinations

import numpy as np
import pytest

import fastbatch as fb
from fastbatch import checks, ops
from fastbatch.backends import get
from fastbatch.plan import Plan, Stage, make_plan
from fastbatch.program import ComposedProgram
from fastbatch.protocol import Feed, State

Array = np.ndarray
DTYPES = checks.DTYPES
SHORT = {"float32": "f32", "float64": "f64"}
PRIMES = (2, 5, 7, 11, 13, 31)
# (B, I, O) beyond every block of the kernels: rows, depth, columns, strips, panels copied and turned, their memory
BLOCKS = ((300, 401, 210), (1100, 130, 61), (40, 701, 531), (70, 1100, 3), (257, 64, 64), (9, 2, 200))
BLOCKS += ((3, 33792, 4), (3, 33793, 4))


def _subjects() -> dict[str, object]:
    """Every available backend of the CPU; one that has targets, once per usable target."""
    found = {}
    for row in fb.backends():
        if row["available"] and row["device"] == "cpu":
            backend = get(row["name"])
            if hasattr(backend, "target"):
                from fastbatch import _native

                usable = [name for name, works in _native.targets().items() if works]
                found.update({f"{row['name']}-{name}": type(backend)(name) for name in usable})
            else:
                found[row["name"]] = backend
    return found


SUBJECTS = _subjects()
C_TARGETS = tuple(name for name, backend in SUBJECTS.items() if hasattr(backend, "target"))
# those that fuse steps
BRIEF = ("numba", "cuda")  # what only some shapes are tried on: another implementation, held to the same numbers
FUSED = tuple(name for name, backend in SUBJECTS.items() if hasattr(backend, "shape"))


@functools.cache
def supported(subject: str, dtype: str) -> bool:
    stage = Stage(1, 1, 0, 1, ops.get_activation("identity"), 256, 0, False)
    return SUBJECTS[subject].supports(Plan((stage,), dtype, ops.get_loss("mse"), ops.SGD(), 2)) is None


def program_of(backend, plan: Plan, state: State, num_threads: int | None = None):
    """The program on a backend, or on the subject of that name: its own, or composed."""
    backend = SUBJECTS[backend] if isinstance(backend, str) else backend
    return backend.program(plan, state, num_threads) or ComposedProgram(plan, backend, state, num_threads)


PAIRS = tuple((name, dtype) for name in SUBJECTS for dtype in DTYPES if supported(name, dtype))


def rng_of(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))


def normal(rng: np.random.Generator, dtype: str) -> Callable[..., Array]:
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


def pairwise(**axes: Iterable) -> list[dict]:
    """Few cases in which every two values of two different axes meet at least once (greedy, deterministic)."""
    values = {name: list(axis) for name, axis in axes.items()}
    # combinations() keeps the order of the names, so that a pair has one spelling
    names = list(values)

    def pairs_of(case: dict) -> list:
        return list(combinations([(name, case[name]) for name in names if name in case], 2))

    opened = dict.fromkeys(((a, u), (b, v)) for a, b in combinations(names, 2) for u in values[a] for v in values[b])
    cases = []
    while opened:
        case = dict(next(iter(opened)))
        for name in names:
            if name not in case:
                case[name] = max(
                    values[name], key=lambda v, n=name: sum(pair in opened for pair in pairs_of({**case, n: v}))
                )
        for pair in pairs_of(case):
            opened.pop(pair, None)
        cases.append(case)
    return cases


def shape_of(subject: str, dtype: str) -> tuple[int, int, int]:
    """Lanes, tile rows and tile vectors; of a backend without them any."""
    backend = SUBJECTS[subject]
    return backend.shape(dtype) if hasattr(backend, "shape") else (4, 4, 2)


def widths(subject: str, dtype: str) -> list[int]:
    """Column counts at which lanes and tiles begin, end and run over."""
    lanes, _, vectors = shape_of(subject, dtype)
    tile = lanes * vectors
    if subject in BRIEF:
        return sorted({1, lanes - 1, lanes, 2 * lanes + 1, tile + 1})
    return sorted({1, lanes - 1, lanes, lanes + 1, 2 * lanes, tile - 1, tile, tile + 1, *PRIMES} - {0})


def batches(subject: str, dtype: str) -> list[int]:
    _, tile, _ = shape_of(subject, dtype)
    if subject in BRIEF:
        return [1, 7, 12, 17]  # rows left over by tiles of 8 and of 6: of 4, 2 and 1
    return sorted({1, tile - 1, tile, tile + 1, 2 * tile, *PRIMES} - {0})


def is_ordered(case) -> bool:
    """Whether sums have an order that neither threads nor splits of a batch decide: not where NumPy makes them."""
    if case.subject not in FUSED or case.subject in C_TARGETS:
        return case.subject in C_TARGETS
    made = case.model()
    return SUBJECTS[case.subject].steps(case.plan(made), case.state(made), None) is not None


def parametrize(cases: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


# -- dense -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseCase:
    """One dense layer; `data` gives x (B, I), w (I, O), b, da (B, O), and starting values of dw and db."""

    verb: str
    subject: str
    dtype: str
    activation: str
    B: int
    I: int
    O: int
    bias: bool = True

    @property
    def id(self) -> str:
        parts = [self.verb, self.activation, SHORT[self.dtype], self.subject, f"B{self.B}", f"I{self.I}", f"O{self.O}"]
        return "-".join(parts + ["nobias"] * (not self.bias))

    @property
    def row(self) -> ops.Activation:
        return ops.get_activation(self.activation)

    def data(self) -> dict[str, Array]:
        rng = rng_of(self.id)
        draw = normal(rng, self.dtype)
        x = draw(self.B, self.I)
        # |z| from 1/4 to 8: both sides of every kink, and well into saturation
        w = (draw(self.I, self.O) * (rng.choice([0.25, 1, 4]) / np.sqrt(self.I))).astype(self.dtype)
        b = draw(self.O) if self.bias else None
        return {"x": x, "w": w, "b": b, "da": draw(self.B, self.O), "dw": draw(self.I, self.O), "db": draw(self.O)}


def dense_cases(verb: str, pairs: Iterable[tuple[str, str]] = PAIRS) -> list[DenseCase]:
    found = []
    for subject, dtype in pairs:
        wide = widths(subject, dtype)
        axes = {"activation": ops.ACTIVATIONS, "B": batches(subject, dtype), "I": wide, "O": wide}
        if not hasattr(SUBJECTS[subject], "shape"):  # no tiles: each value once is enough
            n = max(map(len, axes.values()))
            rows = [{k: list(v)[(i * 5 + i // 7) % len(v)] for k, v in axes.items()} for i in range(4 * n)]
            rows = list({tuple(row.values()): row for row in rows}.values())
        else:
            rows = pairwise(**axes)
            rows += [{"activation": "tanh", "B": B, "I": I, "O": O} for B, I, O in BLOCKS]
        found += [DenseCase(verb, subject, dtype, **row, bias=i % 4 != 3) for i, row in enumerate(rows)]
    return found


# -- losses ------------------------------------------------------------------------------------------------------------


# where no rule finds a value that is allowed, or one under which a step is not mostly rounding
ALTERNATIVES = {"power": 1.8, "alpha": 0.3, "momentum_decay": 0.2, "lr_decay": 0.01, "l1": 0.01, "eps": 0.01}


def _alternative(cls: type, field, outputs: int):
    """A value that is not the default: another number, one weight per output, the other truth value."""
    if field.name in ALTERNATIVES:
        return ALTERNATIVES[field.name]
    default = field.default
    assert default is not MISSING, f"{field.name}: a description has a default for everything"
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return "sklearn" if issubclass(cls, ops.Loss) else "keras"
    if default is None:
        return tuple(0.5 + 0.25 * k for k in range(outputs))
    if isinstance(default, tuple):
        return tuple(0.8 + 0.1 * k for k in range(len(default)))
    return 0.3 if default == 0 else default * 0.3


def variants(
    cls: type, outputs: int = 1, skip: tuple[str, ...] = (), sizes: tuple[int, ...] | None = None
) -> dict[str, object]:
    """Every combination of default and non-default values of a description's fields that it accepts.

    `sizes` are numbers of fields with other values, -1 meaning all.
    """
    optional = [field for field in fields(cls) if field.name not in skip]
    counts = range(len(optional) + 1) if sizes is None else [n % (len(optional) + 1) for n in sizes]
    found: dict[str, object] = {}
    for chosen in chain.from_iterable(combinations(optional, n) for n in counts):
        try:
            row = cls(**{field.name: _alternative(cls, field, outputs) for field in chosen})
        except fb.ArgumentError:
            continue
        name = getattr(cls, "name", cls.__name__.lower())
        found["+".join([name, *(field.name for field in chosen)])] = row
    return found


def loss_variants(outputs: int) -> dict[str, ops.Loss]:
    # the label to ignore is a matter of the door: no backend sees it; of semantics, what the loss is divided by
    found = {}
    for cls in ops.LOSSES.values():
        same = cls(semantics="sklearn").divisors(2) == cls().divisors(2)
        found |= variants(cls, outputs, skip=("ignore_index", "semantics") if same else ("ignore_index",))
    return found


LOSS_NAMES = tuple(loss_variants(3))


@dataclass(frozen=True)
class LossCase:
    subject: str
    dtype: str
    loss: str
    B: int
    O: int
    weighted: bool
    labels: bool

    @property
    def id(self) -> str:
        parts = ["loss", self.loss, SHORT[self.dtype], self.subject, f"B{self.B}", f"O{self.O}"]
        return "-".join(parts + ["weighted"] * self.weighted + ["soft"] * (self.classes and not self.labels))

    @property
    def row(self) -> ops.Loss:
        return loss_variants(self.O)[self.loss]

    @property
    def classes(self) -> bool:
        return self.row.targets == "classes"

    @property
    def narrow(self) -> bool:
        """Kernels have a form of their own for rows no wider than a vector."""
        return shape_of(self.subject, self.dtype)[0] >= self.O

    def data(self) -> dict[str, Array | None]:
        rng = rng_of(self.id)
        a = (rng.standard_normal((self.B, self.O)) * rng.choice([0.5, 2, 8])).astype(self.dtype)
        y = targets(self.row, self.B, self.O, self.dtype, rng, self.labels)
        if y.ndim == 2 and self.B > 1:
            # e = 0, the kink of mae and where terms of a log link cancel
            y[0] = self.row.predicted(a[0]) if self.row.targets not in ("classes", "binary") else np.clip(a[0], 0, 1)
        weight = rng.uniform(0.1, 2, self.B) * (np.arange(self.B) != 1) if self.weighted else None
        return {"a": a, "y": y, "weight": weight}


def targets(loss: ops.Loss, rows: int, outputs: int, dtype: str, rng, labels: bool = True) -> Array:
    if loss.targets == "classes" and labels:
        return rng.integers(0, outputs, rows)
    if loss.targets == "classes":
        return rng.dirichlet(np.ones(outputs), rows).astype(dtype)
    if loss.targets == "binary":
        return np.where(rng.random((rows, outputs)) < 0.8, rng.random((rows, outputs)) < 0.5, 0.3).astype(dtype)
    if loss.targets == "counts":
        return rng.poisson(1.5, (rows, outputs)).astype(dtype)
    if loss.targets == "positive":
        return rng.gamma(2.0, size=(rows, outputs)).astype(dtype)
    return rng.standard_normal((rows, outputs)).astype(dtype)


def loss_cases(pairs: Iterable[tuple[str, str]] = PAIRS) -> list[LossCase]:
    return [
        LossCase(subject, dtype, **row)
        for subject, dtype in pairs
        for row in pairwise(
            loss=LOSS_NAMES,
            O=widths(subject, dtype),
            B=batches(subject, dtype),
            weighted=(False, True),
            labels=(True, False),
        )
        # for the other kinds of target the two are one case
        if row["labels"] or row["loss"].startswith("cross_entropy")
    ]


# -- updates -----------------------------------------------------------------------------------------------------------

# what is a matter of layers is no matter of a kernel
OF_LAYERS = ("lr", "decay_bias", "frozen", "groups")
# each field alone, all together, and in pairs where one leans on another
SIZES = {ops.SGD: (0, 1, 2), ops.Adam: (0, 1, 2, -1)}
OPTIMIZERS: dict[str, ops.Optimizer] = {
    name: replace(row, lr=0.05)
    for cls in ops.OPTIMIZERS.values()
    for name, row in variants(cls, skip=OF_LAYERS, sizes=SIZES.get(cls, (0, 1, -1))).items()
}
# per class the defaults and the fullest variant; the rest is left to the kernel tests
MAIN_OPTIMIZERS = tuple(
    names[k]
    for cls in ops.OPTIMIZERS.values()
    for names in [[name for name, row in OPTIMIZERS.items() if type(row) is cls]]
    for k in (0, -1)
)


@dataclass(frozen=True)
class UpdateCase:
    subject: str
    dtype: str
    optimizer: str
    N: int
    t: int

    @property
    def id(self) -> str:
        return f"update-{self.optimizer}-{SHORT[self.dtype]}-{self.subject}-N{self.N}-t{self.t}"

    @property
    def row(self) -> ops.Optimizer:
        return OPTIMIZERS[self.optimizer]

    def data(self) -> dict[str, Array]:
        rng = rng_of(self.id)
        draw = normal(rng, self.dtype)
        # beyond t = 1 what three updates leave, so that slots fit each other
        slots = np.zeros((self.row.slots, self.N))
        self.row.begin(slots)
        for t in range(1, min(self.t, 4)):
            self.row.update(rng.standard_normal(self.N), rng.standard_normal(self.N), slots, t, 0.05)
        return {"p": draw(self.N), "g": draw(self.N), "slots": slots.astype(self.dtype)}


def update_cases(pairs: Iterable[tuple[str, str]] = PAIRS) -> list[UpdateCase]:
    return [
        UpdateCase(subject, dtype, **row)
        for subject, dtype in pairs
        for row in pairwise(optimizer=OPTIMIZERS, N=widths(subject, dtype), t=(1, 2, 1000))
    ]


# -- networks ----------------------------------------------------------------------------------------------------------

Layers = Callable[[str, int], tuple[int, list]]
D, A, P, LN, BN = fb.Dense, fb.Activation, fb.Dropout, fb.LayerNorm, fb.BatchNorm
NETS: dict[str, Layers] = {
    "linear": lambda act, o: (5, [D(o)]),
    "two": lambda act, o: (13, [D(17, act), D(o)]),
    "nobias": lambda act, o: (16, [D(8, act, bias=False), D(o, bias=False)]),
    "dropout": lambda act, o: (7, [P(0.25), D(31, act), P(0.5), D(o)]),
    "apart": lambda act, o: (4, [A(act), D(11), A(act), P(0.3), A(act), D(o), A("identity")]),
    "tail": lambda act, o: (3, [D(33, act), D(o), P(0.2), A(act)]),
    "narrow": lambda act, o: (64, [D(65, act), D(1, act), D(o, act)]),
    "twice": lambda act, o: (1, [D(5), P(0.5), P(0.25), D(6, bias=False), A(act), A(act), D(o)]),
    "norm": lambda act, o: (7, [D(33), LN(), A(act), P(0.25), D(o)]),
    "norms": lambda act, o: (9, [LN(), D(21, act), LN(1e-3), P(0.3), LN(), D(17, bias=False), LN(), A(act), D(o)]),
    "six": lambda act, o: (3, [*(D(n, act) for n in (9, 8, 7, 13, 4)), D(o)]),
}

FLOAT64_NETS = ("dropout", "narrow")

# beyond the blocks of the kernels, like BLOCKS; too large for every test
LARGE_NETS: dict[str, Layers] = {
    "blocks": lambda act, o: (300, [D(530, act), D(200, act), D(o)]),
    "blocknorms": lambda act, o: (130, [LN(), D(87), LN(), A(act), D(o)]),
}

# rows depend on each other there, and on no weight; for tests that know it
BATCH_NETS: dict[str, Layers] = {
    "batch": lambda act, o: (7, [D(33), BN(), A(act), P(0.25), D(o)]),
    "batches": lambda act, o: (9, [BN(), D(21, act), BN(1e-3, 0.3), LN(), D(17, bias=False), BN(), A(act), D(o)]),
    "ghosts": lambda act, o: (5, [D(19), BN(ghost_size=4), A(act), D(18), BN(ghost_size=6), A(act), D(o)]),
    "blockghosts": lambda act, o: (130, [BN(), D(87), BN(ghost_size=32), A(act), D(o)]),
}

# whose products two threads share out by columns where a batch has few rows
WIDE_NETS: dict[str, Layers] = {
    "wide": lambda act, o: (41, [D(300, act), D(320, act), D(o)]),
    "widebatch": lambda act, o: (21, [D(310), BN(), A(act), P(0.25), D(300, act), D(o)]),
}
ALL_NETS = {**NETS, **LARGE_NETS, **BATCH_NETS, **WIDE_NETS}


@dataclass(frozen=True)
class NetCase:
    subject: str
    net: str
    activation: str
    loss: str
    optimizer: str = "sgd"
    O: int = 3
    B: int = 13
    weighted: bool = False
    labels: bool = True
    dtype: str = "float32"

    @property
    def id(self) -> str:
        parts = ["net", self.net, self.activation, self.loss, self.optimizer, SHORT[self.dtype], self.subject]
        parts += [f"B{self.B}", f"O{self.O}"] + ["weighted"] * self.weighted + ["soft"] * (not self.labels)
        return "-".join(parts)

    @property
    def numbers(self) -> str:
        """What the numbers depend on: not the subject, so that two of them can be compared."""
        return replace(self, subject="", dtype="float32").id

    def model(self) -> fb.Sequential:
        inputs, layers = ALL_NETS[self.net](self.activation, self.O)
        made = fb.Sequential(layers, input_size=inputs, seed=3, dtype=self.dtype)
        rng = rng_of(self.numbers)
        for w, b in made.weights:
            # wider than the usual initial weights: saturation, and units on both sides of a kink
            w[:] = rng.standard_normal(w.shape) / np.sqrt(len(w))
            if b is not None:
                b[:] = 0.3 * rng.standard_normal(b.shape)
        for gamma, beta in made.norms:
            gamma[:] = rng.uniform(0.5, 1.5, gamma.shape) * rng.choice([-1, 1], gamma.shape)
            beta[:] = 0.3 * rng.standard_normal(beta.shape)
        for mean, var in made.running:
            mean[:], var[:] = 0.3 * rng.standard_normal(mean.shape), rng.uniform(0.5, 2, var.shape)
        return made

    def plan(self, made: fb.Sequential) -> Plan:
        return make_plan(made, loss_variants(self.O)[self.loss], OPTIMIZERS[self.optimizer])

    def state(self, made: fb.Sequential) -> State:
        slots = np.zeros((OPTIMIZERS[self.optimizer].slots, made.num_parameters), made.dtype)
        OPTIMIZERS[self.optimizer].begin(slots)
        return State(made.parameters, slots, np.zeros(1, np.int64), 0x1234567890ABCDEF, made.buffers)

    def program(self, backend=None) -> tuple[Plan, State, object]:
        """Plan, state and program on `backend`, by default on the subject: fused where offered."""
        backend = SUBJECTS[self.subject] if backend is None else backend
        made = self.model()
        plan, state = self.plan(made), self.state(made)
        return plan, state, program_of(backend, plan, state)

    def feed(self, rows: int | None = None, **changes) -> Feed:
        rows = self.B if rows is None else rows
        rng = rng_of(f"{self.numbers} {rows}")
        inputs, _ = ALL_NETS[self.net](self.activation, self.O)
        x = rng.standard_normal((rows, inputs)).astype(self.dtype)
        y = targets(loss_variants(self.O)[self.loss], rows, self.O, self.dtype, rng, self.labels)
        weight = rng.uniform(0, 2, rows) if self.weighted else None
        return Feed(**{"x": x, "y": y, "weight": weight, "batch": self.B, **changes})


def net_cases(subjects: Iterable[str] = tuple(SUBJECTS)) -> list[NetCase]:
    """Every net with every activation, every activation with every loss, and so on for every two axes."""
    rows = pairwise(
        dtype=DTYPES,
        activation=ops.ACTIVATIONS,
        loss=LOSS_NAMES,
        net=NETS,
        optimizer=MAIN_OPTIMIZERS,
        O=(1, 3, 10),
        B=(1, 8, 13),
        weighted=(False, True),
        labels=(True, False),
    )
    # pairwise takes the first of equals, so that few are float64
    rows += [{**row, "dtype": "float64"} for row in rows[::6]]
    rows = list({tuple(row.values()): row for row in rows}.values())
    large = [
        {"net": net, "activation": "tanh", "loss": "cross_entropy", "optimizer": "adam", "O": 10, "B": 300, "dtype": d}
        for net in LARGE_NETS
        for d in DTYPES
    ]
    return [
        NetCase(subject, **row) for subject in subjects for row in (rows[::2] if subject in BRIEF else rows) + large
    ]


def few_nets(subjects: Iterable[str] = tuple(SUBJECTS), **fixed) -> list[NetCase]:
    """One case per net, the other axes in turn: for properties that do not depend on the numbers.

    Float32 all of them; float64, the same code, those of FLOAT64_NETS.
    """
    acts = [name for name in ops.ACTIVATIONS if name != "identity"]
    return [
        NetCase(
            subject,
            net,
            acts[i % len(acts)],
            **{"loss": LOSS_NAMES[i % len(LOSS_NAMES)], "optimizer": MAIN_OPTIMIZERS[i % len(MAIN_OPTIMIZERS)],
               "weighted": i % 2 == 1, "dtype": dtype, **fixed},
        )
        for subject in subjects
        for dtype in DTYPES
        for i, net in enumerate(NETS)
        if dtype == "float32" or net in FLOAT64_NETS
    ]  # fmt: skip
