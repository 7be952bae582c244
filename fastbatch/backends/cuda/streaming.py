"""Inputs larger than the device's memory: blocks of rows, gathered and sent while the one before is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...protocol import Feed
from .memory import Rows
from .shim import cuda, event, stream

__all__ = ["streamed"]


class _Buffer:
    """Room for a block on both sides; that of the host is pinned, so that the copy runs beside the kernels."""

    def __init__(self, feed: Feed, rows: int) -> None:
        given = [feed.x, feed.y] + ([] if feed.weight is None else [feed.weight])
        self.host = [cuda.pinned_array((rows, *array.shape[1:]), array.dtype) for array in given]
        self.device = [cuda.device_array(array.size, array.dtype) for array in self.host]
        self.sent = event()

    def send(self, feed: Feed, begin: int, end: int, queue: Any) -> Rows:
        """Rows `begin` to `end` of a pass, on their way when this returns; `sent` is when they have come."""
        index = np.arange(begin, end) if feed.order is None else feed.order[begin:end]
        count, arrived = end - begin, []
        for source, host, device in zip((feed.x, feed.y, feed.weight), self.host, self.device):
            assert source is not None
            np.take(source, index, 0, host[:count], mode="clip")  # without a copy in between; all are valid
            size = host[:count].size
            device[:size].copy_to_device(host[:count].reshape(-1), stream=queue)
            arrived.append(device[:size])
        self.sent.record(queue)
        x = arrived[0].reshape(count, feed.x.shape[1])
        return Rows(x, arrived[1], arrived[2] if feed.weight is not None else None, None, feed.y.ndim == 1)


def streamed(feed: Feed, first: int, last: int, rows: int, queue: Any) -> Iterator[Rows]:
    """Rows `first` to `last` of a pass, in blocks of `rows`.

    Who asks for the next block has waited for the kernels that read the one before the last.
    """
    buffers, sending = (_Buffer(feed, rows), _Buffer(feed, rows)), stream()
    with ThreadPoolExecutor(1) as helper:

        def send(k: int) -> Any:
            begin = first + k * rows
            if begin >= last:
                return None
            return helper.submit(buffers[k % 2].send, feed, begin, min(begin + rows, last), sending)

        k, coming = 0, send(0)
        while coming is not None:
            block = coming.result()
            buffers[k % 2].sent.wait(queue)
            coming = send(k + 1)
            yield block
            k += 1
