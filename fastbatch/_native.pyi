"""Types of the compiled module. Arrays are trusted: dtype, shape and contiguity are the caller's business."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arena import Arena
from .protocol import PerSample

_Reals = NDArray[np.floating[Any]]
_Indices = NDArray[np.int64]
_Doubles = NDArray[np.float64]
_Rows = NDArray[Any]  # of any dtype in `sources` and any strides

OK: int
LOSS_NOT_FINITE: int
GRADIENT_NOT_FINITE: int
UPDATE_BLOCK: tuple[int, int, int]
PARTS: tuple[int, int]
MAX_HYPER: int
NORM_BLOCK: int
STATISTICS: int

activations: list[str]
losses: list[str]
sources: list[str]
optimizers: dict[str, tuple[str, ...]]
normed: list[str]

def register(first: int, second: int) -> int: ...
def targets() -> dict[str, bool]: ...
def measure_peak(target: str, threads: int = 1, loops: int = 200_000, dtype: str = "float32") -> float: ...
def measure_barrier(threads: int, loops: int = 10_000) -> float: ...
def bf16_targets() -> dict[str, str]: ...

class Kernels:
    def __init__(self, target: str, dtype: str = "float32") -> None: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def dense_forward(self, x: _Rows, w: _Reals, b: _Reals | None, activation: int, z: _Reals, a: _Reals) -> None: ...
    def permutation(self, order: _Indices, seed: int, epoch: int, begin: int, end: int) -> None: ...
    def slope(self, activation: int, saved: _Reals | None, dz: _Reals) -> None: ...
    def dense_backward(
        self, dz: _Reals, x: _Reals, w: _Reals, dw: _Reals, db: _Reals | None, dx: _Reals | None
    ) -> None: ...
    def loss(
        self,
        kind: int,
        parameter: float,
        per_output: _Reals | None,
        divisors: tuple[float, float],
        a: _Reals,
        y: _Reals,
        weight: _Doubles,
        da: _Reals,
        row_loss: _Doubles,
    ) -> None: ...
    def update(self, segments: NDArray[np.void], lr: float, t: int, p: _Reals, g: _Reals, slots: _Reals) -> None: ...

def set_thread_policy(quota: int, exact: bool) -> None: ...

class Tuner:
    def choose(self, most: int, steps: int, batch: int, flops: float, now: int) -> tuple[int, bool, int, int]: ...
    def report(self, batch: int, asked: int, threads: int, steps: int, ns: int) -> None: ...

class Lock:
    def acquire(self, blocking: bool) -> bool: ...
    def __exit__(self, *exc: object) -> None: ...

class Watch:
    def __init__(
        self,
        kind: type,
        tensors: Iterable[object],
        learnt: Iterable[object],
        dicts: Iterable[dict],
        empty: Iterable[dict],
    ) -> None: ...
    def same(self) -> bool: ...

class Network:
    pending: tuple[_Reals, int] | None
    running: _Reals | None
    least_rows: int
    @property
    def threads_used(self) -> int: ...
    def __init__(
        self,
        target: str,
        parameters: _Reals,
        slots: _Reals,
        buffers: _Reals,
        steps: _Indices,
        seed: int,
        loss: int,
        loss_parameter: float,
        per_output: _Reals | None,
        divisors: tuple[float, float],
        segments: NDArray[np.void],
        uniform: bool,
        norms: _Doubles | None,
        units: NDArray[np.void] | None,
        inputs: int,
        outputs: int,
        targets: str,
        flops_per_row: float,
        flops_per_step: float,
        allowed: Callable[[int | None, float], int],
        alone_below: float,
        limit: int | None,
        lock: Lock,
        max_norm: float,
        clip_value: float,
        columns_held: bool,
        objective: bool,
    ) -> None: ...
    def update_by(
        self, segments: NDArray[np.void], uniform: bool, norms: _Doubles | None, columns_held: bool
    ) -> None: ...
    def scale_inputs(self, scale: _Reals | None, shift: _Reals | None) -> None: ...
    def place(self, arena: Arena, memory: NDArray[np.uint8] | None, labels: _Indices | None) -> None: ...
    def run(
        self,
        x: _Rows,
        y: _Reals | _Indices | None,
        weight: _Doubles | None,
        order: _Indices | None,
        batch: int,
        piece: int,
        outputs: _Reals | None,
        first: int,
        last: int,
        lrs: _Doubles,
        budget_ns: int,
        threads: int,
        sums: _Doubles,
        noise: float,
        share: _Doubles | None,
        shift: _Indices | None,
    ) -> tuple[int, int, float]: ...
    def accumulate(
        self,
        x: _Rows,
        y: _Reals | _Indices | None,
        weight: _Doubles | None,
        first_row: int,
        gradient: _Reals | None,
        threads: int,
        loss: float,
        total: float,
        rows: PerSample | None,
    ) -> tuple[float, float]: ...
    def forward(self, x: _Rows, first_row: int, outputs: _Reals, threads: int, running: _Reals) -> None: ...
    def backward(self, x: _Rows, first_row: int, dz: _Reals, gradient: _Reals, threads: int) -> None: ...
    def update(self, gradient: _Reals, scale: float, lr: float, threads: int, running: _Reals | None) -> int: ...
    def predict(self, x: _Rows, outputs: _Reals, arenas: NDArray[np.uint8], threads: int) -> None: ...
    def fast_step(self, x: object, y: object, lr: float) -> float | None: ...
    def fast_predict(self, x: object) -> _Reals | None: ...
    def take_spare(self) -> NDArray[np.uint8] | None: ...
    def keep_spare(self, arena: NDArray[np.uint8]) -> None: ...
