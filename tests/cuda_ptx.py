"""Compiles every kernel that steps of some networks launch, for GPUs that are not here; prints what became of them.

The device is stood in for by arrays of the host: a launch compiles the kernel for the types that it is given, and runs
nothing. So nothing is listed that no step uses, and no step uses what is not compiled. One line of JSON each: the
kernel, its target, and what ptxas says where it is installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import types as python
from pathlib import Path
from typing import ClassVar

import numpy as np


def _ptxas() -> str | None:
    import importlib.util

    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return None


PTXAS = _ptxas()


class Array(np.ndarray):
    """An array of the host that can be asked what those of the device can."""

    def copy_to_device(self, values, stream=0):
        self[...] = values

    def copy_to_host(self, values=None, stream=0):
        if values is None:
            return np.array(self)
        values[...] = self


class Launched:
    """A kernel that is compiled, once for each target and types, when it is launched."""

    seen: ClassVar[set] = set()

    def __init__(self, function):
        self.function = function

    def __getitem__(self, configuration):
        return self._launch

    def _launch(self, *arguments):
        from numba import cuda, types
        from numba.cuda.typing import typeof

        given = []
        for argument in arguments:
            found = typeof.typeof(argument.view(np.ndarray) if isinstance(argument, Array) else argument)
            given.append(found.copy(readonly=False) if isinstance(found, types.Array) else found)
        for cc in CAPABILITIES:
            DEVICE.compute_capability = cc
            key = (self.function, tuple(given), cc)
            if key in Launched.seen:
                continue
            Launched.seen.add(key)
            text, _ = cuda.compile_ptx(self.function, tuple(given), cc=cc)
            print(json.dumps({"kernel": self.function.__qualname__, "cc": cc, "real": REAL, **measured(text, cc)}))


def measured(text: str, cc: tuple[int, int]) -> dict:
    """Accesses to memory of an unknown kind, arithmetic in double, and what ptxas says of registers and memory."""
    found: dict = {
        "mma": sorted(set(re.findall(r"\bmma\.sync\.aligned\.(m\d+n\d+k\d+)", text))),
        "generic": len(re.findall(r"\b(?:ld|st)\.[fbu]\d+", text)),
        "double": sorted(set(re.findall(r"\b(?:add|mul|fma|div|sqrt|sub)[.\w]*\.f64\b", text))),
    }
    if PTXAS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.ptx")
            path.write_text(text)
            target = f"sm_{cc[0]}{cc[1]}"
            command = [PTXAS, "-v", f"-arch={target}", str(path), "-o", str(Path(folder, "kernel.cubin"))]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for name, pattern in {
            "stack": r"(\d+) bytes stack frame",
            "spilled": r"(\d+) bytes spill stores",
            "registers": r"Used (\d+) registers",
            "shared": r"(\d+) bytes smem",
        }.items():
            found[name] = max(map(int, re.findall(pattern, said)), default=0)
    return found


CAPABILITIES = [tuple(map(int, text.split("."))) for text in sys.argv[1].split(",")]
REAL = sys.argv[2]
DEVICE = python.SimpleNamespace(compute_capability=CAPABILITIES[0])


def install() -> None:
    """Put the stand-ins in place, before anything of the backend is imported."""
    from numba import cuda
    from numba.cuda import dispatcher

    def array(shape, dtype=np.float64, **_):
        return np.zeros(shape, dtype).view(Array)

    of_device = cuda.jit
    cuda.jit = lambda function=None, device=False, **rest: (
        of_device(function, device=device, **rest) if device or function is None else Launched(function)
    )
    dispatcher.get_current_device = cuda.get_current_device = lambda: DEVICE
    cuda.device_array = array
    cuda.to_device = lambda values, **_: np.array(values).view(Array)
    cuda.stream = lambda: python.SimpleNamespace(synchronize=lambda: None)
    room = python.SimpleNamespace(free=1 << 34, total=1 << 34)
    cuda.current_context = lambda: python.SimpleNamespace(get_memory_info=lambda: room)


def nets(count: int):
    """Networks, losses and optimizers that together launch everything, or `count` of each kind.

    With each whether the device's tensor cores serve float32.
    """
    import fastbatch as fb
    from fastbatch import ops
    from fastbatch.plan import make_plan

    dtype = REAL
    everything = list(ops.ACTIVATIONS)
    optimizers = [*ops.OPTIMIZERS.values()]
    losses = [ops.get_loss(name) for name in ops.LOSSES]
    for k in range(min(count, max(len(everything), len(optimizers), len(losses)))):
        loss, name = losses[k % len(losses)], everything[k % len(everything)]
        small = fb.MLP([9, 64, 64, 4], activation=name, dtype=dtype)  # a kernel takes its rows through
        yield small, make_plan(small, loss, fb.Adam()), False
        layers = [fb.Dense(300, name), fb.Dropout(0.3), fb.BatchNorm(ghost_size=70), fb.Activation(name), fb.Dense(7)]
        layers += [fb.LayerNorm(), fb.Activation(name), fb.Dense(7, name), fb.Dense(4)]
        model = fb.Sequential(layers, input_size=9, dtype=dtype)
        yield model, make_plan(model, loss, optimizers[k % len(optimizers)](max_norm=1.0), max_norm=1.0), False
        if dtype == "float32":
            wide = fb.Sequential([fb.Dense(256, name), fb.Dense(256, name), fb.Dense(4)], input_size=9, dtype=dtype)
            for precision in ("float32", "bf16"):
                yield wide, make_plan(wide, loss, fb.SGD(), precision), True
                yield small, make_plan(small, loss, fb.Adam(), precision), True


def own_nets():
    """Of operations of one's own, with the functions of math and NumPy that have rules of their own on a device."""
    import math

    import fastbatch as fb
    from fastbatch.plan import make_plan

    def above(z, *, low=0.5):
        return z if z > low else np.sqrt(np.abs(z)) + math.log1p(math.exp(-abs(z)))

    @fb.activation
    def own_activation(z):
        return above(z) + np.square(np.tanh(z)) * np.power(np.fabs(z), 1.5) + np.clip(z, -1.0, 1.0) + np.sign(z)

    @fb.loss
    def own_loss(a, y):
        return np.maximum(a - y, 0.5 * (y - a)) + np.log(np.exp(-abs(a - y)) + 1.0)

    @fb.optimizer(slots=2, kept=0.9, constants=lambda lr, t, kept: (lr / (1.0 - kept**t), kept))
    def own_optimizer(p, g, s, v, rate, kept):
        s, v = kept * s + g, kept * v + g * g
        return p - rate * s / (math.sqrt(v) + 1e-8), s, v

    for sizes in ([9, 64, 64, 4], [9, 300, 7, 4]):
        model = fb.MLP(sizes, activation="own_activation", dtype=REAL)
        yield model, make_plan(model, own_loss(), own_optimizer(0.01)), False


def main() -> None:
    install()
    from fastbatch.backends.cuda import choice, memory, own, steps
    from fastbatch.protocol import Feed, PerSample, State, Sums

    for model, plan, tensor in (*own_nets(), *nets(int(sys.argv[3]))):
        choice.trial = lambda *given, tensor=tensor: choice.Trial("" if tensor else "not this time", 2.0)
        assert own.refusal(plan) is None
        for tiles in sys.argv[4].split(","):
            memory._FULL = 1 if tiles == "large" else 1 << 30
            slots, steps_made = np.zeros((plan.slots, model.num_parameters), REAL), np.zeros(1, np.int64)
            state = State(model.parameters, slots, steps_made, 1, model.buffers)
            made = steps.Steps(plan, state)
            x = np.zeros((2500, 9), REAL)
            y = np.zeros((2500, 4), REAL)
            weight = np.ones(2500)
            feed = Feed(x, y, weight, np.arange(2500), batch=2100, outputs=np.zeros((2500, 4), REAL))
            made.run(feed, 0, 1, np.ones(1), 0.0, Sums())
            if plan.loss.name == "cross_entropy":
                made.run(Feed(x, np.zeros(2500, np.int64), batch=2100), 0, 1, np.ones(1), 0.0, Sums())
            norms = np.zeros((len(model.weights), 50))
            asked = PerSample(
                input_norms=norms, delta_norms=norms.copy(), norm_norms=norms[0].copy(), scale=np.ones(50, REAL)
            )
            if model.layers[0].units == 64:
                continue
            made.accumulate(Feed(x[:50], y[:50], batch=50), 0, np.zeros(model.num_parameters, REAL), Sums(), asked)
            made.predict(x[:50], np.zeros((50, 4), REAL))


if __name__ == "__main__":
    main()
