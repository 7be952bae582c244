"""A small network of torch, 10 -> width -> width -> 10, trained in batches of 128 by torch and by fused steps.

The shapes are those of https://github.com/pytorch/pytorch/issues/144633, where width 46 took nine times as long as 45.
"""

import copy
import os
import sys
import time

import torch
from torch import nn

import fastbatch.torch as fbt

BATCH, BATCHES = 128, int(sys.argv[1]) if len(sys.argv) > 1 else 100
if os.environ.get("OMP_NUM_THREADS") is None:
    torch.set_num_threads(1)  # torch's own best for networks of this size

torch.manual_seed(0)
inputs = torch.randn(BATCHES, BATCH, 10)
targets = inputs + 0.01 * torch.randn(BATCHES, BATCH, 10)


def by_torch(network, loss_fn, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def microseconds(step):
    """Of a step, in the best of many stretches of ten, so that a busy machine is not what is measured; and the loss."""
    best = float("inf")
    for _ in range(5):
        for first in range(0, BATCHES, 10):
            start = time.perf_counter()
            for x, y in zip(inputs[first : first + 10], targets[first : first + 10]):
                loss = step(x, y)
            best = min(best, time.perf_counter() - start)
    return best / 10 * 1e6, loss


print("width  torch (us)  fused (us)  times as fast  last loss of torch, of fused")
for width in (32, 45, 46, 64, 128, 256):
    network = nn.Sequential(nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 10))
    twin = copy.deepcopy(network)
    loss_fn = nn.MSELoss()
    eager = by_torch(twin, loss_fn, torch.optim.Adam(twin.parameters()))
    fused = fbt.fuse(network, loss_fn, torch.optim.Adam(network.parameters()))  # the changed line

    (before, expected), (after, got) = microseconds(eager), microseconds(fused)
    print(f"{width:5d}{before:12.1f}{after:12.1f}{before / after:15.1f}  {expected:.6f}, {got:.6f}")
    assert abs(got - expected) < 0.05 * expected + 1e-6, "both learn the same"
