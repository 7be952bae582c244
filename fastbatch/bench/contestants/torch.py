"""PyTorch, eager, with the fused optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import numpy as np

from ...threads import available
from ..workloads import Workload
from .contestant import Contestant

__all__ = ["TorchEager"]


class TorchEager(Contestant):
    key, name, library = "torch", "PyTorch eager", "torch"
    color = "#dd8452"
    device: ClassVar[str] = "cpu"

    def __init__(self, workload: Workload, X: np.ndarray, y: np.ndarray) -> None:
        import torch
        from torch import nn

        activations: dict[str, Callable[[], nn.Module]] = {
            "identity": nn.Identity,
            "relu": nn.ReLU,
            "leaky_relu": nn.LeakyReLU,
            "elu": nn.ELU,
            "tanh": nn.Tanh,
            "sigmoid": nn.Sigmoid,
            "softplus": nn.Softplus,
            "gelu": nn.GELU,
            "gelu_tanh": lambda: nn.GELU("tanh"),
            "silu": nn.SiLU,
        }
        self.torch, self.batch = torch, workload.batch
        self.X, self.y = torch.from_numpy(X).to(self.device), torch.from_numpy(y).to(self.device)
        modules: list[nn.Module] = []
        with torch.no_grad():
            for w, b in workload.init():
                linear = nn.Linear(*w.shape)
                linear.weight.copy_(torch.from_numpy(w.T))
                linear.bias.copy_(torch.from_numpy(b))
                modules += [linear, activations[workload.act]()]
        model = nn.Sequential(*modules[:-1]).to(self.device)
        criterion = nn.CrossEntropyLoss() if workload.loss == "ce" else nn.MSELoss()
        optimizer = torch.optim.SGD if workload.opt == "sgd" else torch.optim.Adam
        self.optimizer = optimizer(model.parameters(), lr=workload.lr, fused=True)
        self.loss = lambda x, y: criterion(model(x), y)

    @classmethod
    def limited(cls, threads: int | None) -> AbstractContextManager:
        import torch

        torch.set_num_threads(threads or available())
        return nullcontext()

    def epoch(self) -> float:
        self.order, total = self.torch.randperm(len(self.X), device=self.device), 0.0
        for rows in self.order.split(self.batch):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.X[rows], self.y[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total) * self.batch / len(self.order)

    def last_order(self) -> np.ndarray:
        return self.order.cpu().numpy()
