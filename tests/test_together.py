"""Everything with everything: random networks, losses, optimizers and settings of a fit, drawn from a seed.

What must hold of every combination: backends c and numba compute what the reference does, no bit depends on threads or
pieces (of numba's where its own kernels sum), and a fit that is interrupted, saved, read and resumed ends with the bits
of one that was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import assert_same_bits

import fastbatch as fb
from fastbatch import ops
from fastbatch.backends import is_available
from fastbatch.program import ComposedProgram

ROWS_AT_MOST = 90
# seeds: by default and in all; those of numba, of which few find what is its own, are others
SEEDS = {"c": (48, range(1000)), "numba": (16, range(1000, 1200))}


class Draw:
    """A recipe: all of it is a function of `seed`, every trainer that `trainer` makes is the same."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.dtype = self.of("float64", "float64", "float32")
        self.inputs, self.outputs = self.size(1, 3, 7, 20), self.size(1, 2, 5, 17)
        self.loss = self._loss()
        if self.loss.name == "cross_entropy":
            self.outputs = max(2, self.outputs)
        self.options: dict[str, Any] = {"seed": int(rng.integers(2**63))}
        self.ghost = self.of(None, 8, 32)
        self.normed = False  # with a BatchNorm
        self.layers = self._layers()
        self.optimizer = self._optimizer()
        # these rules make a step of a gradient that is 0 but for rounding: in front of norms, which undo shifts and
        # scales, and where slopes that jump cancel
        odd = isinstance(self.optimizer, (fb.Lion, fb.LAMB, fb.LARS, fb.Adagrad))
        norms = any(isinstance(layer, (fb.BatchNorm, fb.LayerNorm)) for layer in self.layers)
        self.comparable = not (odd and (norms or self.loss.kinks))
        if self.dtype == "float32":  # and there the others do, too
            self.comparable = isinstance(self.optimizer, fb.SGD)
        if self.maybe():
            self.options["semantics"] = self.of("sklearn", "keras")
        if self.maybe(0.25):
            self.options["max_grad_norm"] = self.of(0.01, 0.3, 1e6)
        if self.maybe(0.25):
            self.options["clip_value"] = self.of(1e-3, 0.1)
        self.fit = self._fit()

    def of(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def size(self, *likely: int) -> int:
        return int(self.of(*likely, 1 + self.rng.integers(70)))

    def maybe(self, share: float = 0.3) -> bool:
        return bool(self.rng.random() < share)

    def _loss(self) -> ops.Loss:
        name = self.of(*ops.LOSSES)
        settings: dict[str, Any] = {
            "huber": {"delta": self.of(0.1, 1.0, 50.0)},
            "quantile": {"q": self.of(0.01, 0.5, 0.9)},
            "tweedie": {"power": self.of(1.1, 1.9)},
            "bce": {"pos_weight": self.of(None, 3.0)},
            "focal": {"gamma": self.of(0.0, 2.0), "alpha": self.of(None, 0.25)},
        }.get(name, {})
        if name == "cross_entropy":
            settings = {"label_smoothing": self.of(0.0, 0.0, 0.2), "ignore_index": self.of(None, None, -100)}
        return ops.LOSSES[name](**settings)

    def _layers(self) -> list:
        layers: list = []
        if self.maybe(0.15):
            layers.append(self._norm())
        if self.maybe(0.15):
            layers.append(fb.Dropout(self.of(0.05, 0.5)))
        for _ in range(self.rng.integers(3)):
            norm = self._norm() if self.maybe() else None
            # the gradient of a bias in front of a BatchNorm is rounding, which some rules make a step of
            bias = not isinstance(norm, fb.BatchNorm) and not self.maybe(0.15)
            layers.append(fb.Dense(self.size(1, 8, 64, 200), bias=bias))
            if norm is not None:
                layers.append(norm)
            layers.append(fb.Activation(self.of(*ops.ACTIVATIONS)))
            if self.maybe():
                layers.append(fb.Dropout(self.of(0.05, 0.5)))
        return [*layers, fb.Dense(self.outputs, bias=not self.maybe(0.15))]

    def _norm(self):
        if self.maybe(0.5):
            return fb.LayerNorm(eps=self.of(1e-5, 1e-2))
        self.normed = True
        return fb.BatchNorm(eps=self.of(1e-5, 1e-2), momentum=self.of(0.1, 0.9), ghost_size=self.ghost)

    def _optimizer(self) -> ops.Optimizer:
        rule = ops.OPTIMIZERS[self.of(*ops.OPTIMIZERS)]
        rate = self.of(1e-3, 1e-2)
        schedules = fb.schedules
        settings: dict[str, Any] = {
            "lr": self.of(rate, rate, schedules.Warmup(3, schedules.Cosine(rate, 20)), schedules.Step(rate, 2, 0.5))
        }
        names = rule.__dataclass_fields__
        for name, value in (
            ("l1", 0.01), ("weight_decay", 0.1), ("max_norm", 0.5), ("decay_bias", False), ("momentum", 0.9),
            ("nesterov", True), ("amsgrad", True), ("centered", True), ("decoupled_weight_decay", True),
        ):  # fmt: skip
            if name in names and self.maybe() and not (name == "nesterov" and not settings.get("momentum")):
                settings[name] = value
        last = sum(isinstance(layer, fb.Dense) for layer in self.layers) - 1
        if self.maybe(0.2):
            settings["frozen"] = self.of((0,), (-1,), tuple(range(last + 1)))
        if self.maybe(0.2):
            settings["groups"] = {int(self.of(0, last)): self.of({"lr_factor": 0.1}, {"max_norm": 0.2}, {"l1": 0.1})}
        return rule(**settings)

    def _fit(self) -> dict[str, Any]:
        batch = self.size(1, 8, 32, 64)
        found: dict[str, Any] = {"epochs": int(self.of(1, 2, 3)), "verbose": 0, "batch_size": batch}
        self.pieces = 0  # rows of micro-batches that change no bit, in tiles
        if self.normed:
            unit = self.ghost or 1
            found["batch_size"] = unit * self.of(1, 2, 3) if self.ghost else batch
            self.options["gradient_accumulation_steps"] = int(self.of(1, 2)) if self.ghost else 1
            self.pieces = int(np.lcm(unit, 32)) if self.ghost else 0
        else:
            self.options["gradient_accumulation_steps"] = int(self.of(1, 1, 2, 3))
            if self.maybe(0.2):
                noise = fb.batching.NoiseScale(target=0.5, max=40, every=1, rows=40)
                found["batch_size"] = self.of("full", {0: 8, 1: 40}, fb.batching.Grow(8, every=1, max=40), noise)
                last = sum(isinstance(layer, fb.Dense) for layer in self.layers) - 1
                trained = set(range(last + 1)) - {layer % (last + 1) for layer in self.optimizer.frozen}
                if found["batch_size"] is noise and not trained:  # which is refused
                    found["batch_size"] = batch
            sizes = found["batch_size"]
            if (
                self.options["gradient_accumulation_steps"] == 1
                or sizes == "full"
                or (type(sizes) is int and sizes % 32 == 0)
            ):
                self.pieces = 32
        if self.maybe():
            found["augment"] = [fb.augment.Mixup(self.of(1e-3, 0.2, 1.0, 1e3))]
        if self.maybe(0.2):
            found["augment"] = [*found.get("augment", []), fb.augment.Noise(self.of(1e-3, 0.5))]
        for name, share, choices in (
            ("shuffle", 0.2, [False]), ("drop_last", 0.2, [True]), ("validation_split", 0.3, [0.1, 0.4]),
            ("input_scale", 0.3, ["standardize", (0.5, 1.0)]), ("max_steps", 0.2, [1, 5]),
        ):  # fmt: skip
            if self.maybe(share):
                found[name] = self.of(*choices)
        if found.get("shuffle", True) and self.maybe(0.2):
            found["sampling"] = "weights"
        if self.loss.targets == "classes" and self.maybe():
            found["class_weight"] = self.of("balanced", {0: 0.0, 1: 3.0})
        if self.maybe():
            found["sample_weight"] = True
        self.metrics = {"classes": ["f1", "confusion"], "binary": ["accuracy"]}.get(self.loss.targets, ["r2", "mae"])
        self.metrics = self.metrics if self.maybe() else []
        self.data()
        if len(self.x) < 10:
            found.pop("validation_split", None)
        return found

    @property
    def mixed(self) -> bool:
        return any(isinstance(step, fb.augment.Mixup) for step in self.fit.get("augment", []))

    @property
    def has_norms(self) -> bool:
        return any(isinstance(layer, (fb.LayerNorm, fb.BatchNorm)) for layer in self.layers)

    def data(self) -> None:
        rng, rows = self.rng, int(self.of(2, 3, 33, 64, 65, ROWS_AT_MOST))
        x = rng.normal(size=(rows, self.inputs))
        targets = self.loss.targets
        if targets == "classes":
            y = rng.integers(0, self.outputs, rows)
            if self.loss.ignored is not None:
                y[rng.random(rows) < 0.3] = self.loss.ignored
        elif targets == "binary":
            y = rng.integers(0, 2, (rows, self.outputs))
        elif targets in ("counts", "positive"):
            y = rng.integers(targets == "positive", 5, (rows, self.outputs)).astype(self.dtype)
        else:
            y = rng.normal(size=(rows, self.outputs)).astype(self.dtype)
        kind = self.of("float32", "float64", "float16", "uint8", "int64")
        x = np.abs(x * 3).astype(kind) if kind in ("uint8", "int64") else x.astype(kind)
        self.x = self.of(x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2])
        self.y = y
        self.weight = rng.random(rows) * rng.integers(0, 3, rows)
        self.shares = rng.random(rows) + 0.1

    def trainer(self, **options) -> fb.Trainer:
        model = fb.Sequential(self.layers, input_size=self.inputs, seed=1, dtype=self.dtype)
        # away from 0, where rounding decides about the sign that l1 and Lion take
        model.parameters[:] += np.random.default_rng(2).uniform(0.05, 0.1, model.num_parameters)
        return fb.Trainer(model, self.loss, self.optimizer, self.metrics, **self.options, **options)

    def arguments(self, **others) -> dict[str, Any]:
        found = {**self.fit, **others}
        if "sample_weight" in found:
            found["sample_weight"] = self.weight
        if "sampling" in found:
            found["sampling"] = self.shares
        return found

    def run(self, threads: int = 1, others: dict | None = None, **options) -> fb.Trainer:
        with fb.set_num_threads(threads, exact=True):
            trainer = self.trainer(**options)
            trainer.fit(self.x, self.y, **self.arguments(**(others or {})))
        return trainer


def _same(got: fb.Trainer, expected: fb.Trainer) -> None:
    assert (got.steps, got.epochs) == (expected.steps, expected.epochs)
    for name in ("parameters", "buffers"):
        assert_same_bits(getattr(got.model, name), getattr(expected.model, name))
    assert_same_bits(got._slots, expected._slots)
    assert got.history.keys() == expected.history.keys()
    for name in got.history.keys() - {"time"}:
        np.testing.assert_array_equal(got.history[name], expected.history[name], err_msg=name)


def _close(got, expected, tolerance: float, what: str) -> None:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    size = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * size, err_msg=what)


class Stop(fb.Callback):
    """Saves and ends the fit at an update, through an error."""

    def __init__(self, at: int, path) -> None:
        self.every_n_steps, self.path = at, path

    def on_chunk_end(self, steps, logs) -> None:
        if self.trainer.steps == self.every_n_steps:
            self.trainer.save(self.path)
            raise InterruptedError


@pytest.mark.parametrize(
    ("backend", "seed"),
    [
        pytest.param(backend, seed, marks=[pytest.mark.exhaustive] if k >= default else [])
        for backend, (default, seeds) in SEEDS.items()
        for k, seed in enumerate(seeds)
    ],
)
def test_any_combination(backend, seed, tmp_path):
    if not is_available(backend):
        pytest.skip(f"backend {backend} is not available")
    check(Draw(seed), tmp_path, backend)


def check(draw: Draw, folder, backend: str = "c") -> str:
    try:
        one = draw.run(backend=backend)
    except fb.DivergenceError:
        with pytest.raises(fb.DivergenceError):
            draw.run(backend="reference")
        return "diverged"
    program = one._program
    if not isinstance(program, ComposedProgram) or program._steps is not None:  # sums are not NumPy's
        _same(draw.run(threads=2, backend=backend), one)
        if draw.pieces and not (backend == "numba" and draw.mixed and draw.has_norms):  # whose sums are NumPy's
            _same(draw.run(threads=2, others={"micro_batch_size": draw.pieces}, backend=backend), one)

    if not draw.comparable:
        return _interrupted(draw, one, folder, backend)
    other = draw.run(backend="reference")
    tolerance = 1e-7 if draw.dtype == "float64" else 2e-2
    assert (one.steps, one.epochs) == (other.steps, other.epochs)
    _close(one.model.parameters, other.model.parameters, tolerance, "parameters")
    _close(one.model.buffers, other.model.buffers, tolerance, "buffers")
    for name in ("loss", "val_loss", "grad_norm"):
        _close(one.history.get(name, 0), other.history.get(name, 0), tolerance, name)
    return _interrupted(draw, one, folder, backend)


def _interrupted(draw: Draw, one: fb.Trainer, folder, backend: str) -> str:
    """Saved and resumed, from the file and in place."""
    if one.steps > 1:
        at, path = 1 + one.steps // 2, folder / "run.fb"
        broken = draw.trainer(backend=backend)
        with pytest.raises(InterruptedError):
            broken.fit(draw.x, draw.y, **draw.arguments(callbacks=[Stop(at, path)]))
        again = fb.Trainer.load(path)
        weight = draw.weight if "sample_weight" in draw.fit else None
        for trainer in (again, broken):
            trainer.resume(draw.x, draw.y, sample_weight=weight)
            _same(trainer, one)
    return "done"
