"""The contestants on a GPU, each at its best: data on the device, no word from the host within a step where it can."""

from __future__ import annotations

import numpy as np

from ...data.orders import epoch_order
from ...errors import BackendError
from ...protocol import Feed, Sums
from ..workloads import Workload
from .contestant import Contestant
from .fastbatch import Fastbatch
from .jax_scan import JaxScan
from .torch import TorchEager
from .torch_compile import TorchCompile

__all__ = [
    "GPU_CONTESTANTS", "FastbatchCuda", "FastbatchCudaBf16", "JaxGpu", "TorchGpu", "TorchGpuCompile", "TorchGpuGraph",
]  # fmt: skip


class FastbatchCuda(Fastbatch):
    """Epochs of one fit: x and y have been sent, everything else that an epoch needs is in its time."""

    backend = "cuda"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        super().__init__(workload, X, y)
        self.steps, self.epochs, self.lr = workload.steps, 0, workload.lr

    def epoch(self) -> float:
        sums, order = Sums(), self._order(self.epochs)
        feed = Feed(self.X, self.y, None, order, self.batch, same=self)
        done, self.epochs = 0, self.epochs + 1
        while done < self.steps:
            lrs = np.full(self.steps - done, self.lr)
            done = self.trainer._program.run(feed, done, self.steps, lrs, 60.0, sums)
        return sums.mean()

    def _order(self, epoch: int) -> np.ndarray:
        order = epoch_order(len(self.X), self.trainer.seed, epoch, True, self.backend)
        assert order is not None
        return order

    def last_order(self) -> np.ndarray:
        return self._order(self.epochs - 1)


class FastbatchCudaBf16(FastbatchCuda):
    """Operands of products have 8 bits: no peer of those in float32."""

    key, name = "bf16", "fastbatch bf16"
    color = "#6fb1cf"
    precision = "bf16"
    tolerance = 2e-2


class _OnGpu(Contestant):
    """One process drives the device; threads of the CPU have no part in it."""

    @classmethod
    def settings(cls) -> tuple[int | None, ...]:
        return (None,)


class TorchGpu(_OnGpu, TorchEager):
    device = "cuda"


class TorchGpuCompile(_OnGpu, TorchCompile):
    device = "cuda"


class TorchGpuGraph(TorchGpu):
    """A whole step, gather and update with it, as one recorded graph."""

    key, name = "torch-graph", "PyTorch graph"
    color = "#c44e52"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        super().__init__(workload, X, y)
        torch, self.steps = self.torch, workload.steps
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        start = [p.detach().clone() for p in parameters]
        self.rows = torch.arange(self.batch, device="cuda")
        self.total = torch.zeros((), device="cuda")
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        with torch.no_grad():  # as if none of these steps had been made
            for p, value in zip(parameters, start):
                p.copy_(value)
                for state in self.optimizer.state[p].values():
                    if torch.is_tensor(state):
                        state.zero_()

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.X[self.rows], self.y[self.rows])
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def epoch(self) -> float:
        self.order = self.torch.randperm(len(self.X), device="cuda")
        self.total.zero_()
        for rows in self.order.split(self.batch):
            self.rows.copy_(rows)
            self.graph.replay()
        return float(self.total) / self.steps


class JaxGpu(JaxScan):
    """`lax.scan` over an epoch; JAX takes the GPU by itself where its plugin is installed."""

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        import jax

        if jax.default_backend() != "gpu":
            raise BackendError(f"JAX: expected its GPU plugin (pip install 'jax[cuda12]'), got {jax.default_backend()}")
        super().__init__(workload, X, y)


GPU_CONTESTANTS: tuple[type[Contestant], ...] = (
    FastbatchCuda, TorchGpu, TorchGpuCompile, TorchGpuGraph, JaxGpu, FastbatchCudaBf16,
)  # fmt: skip
