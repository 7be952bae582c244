"""The contestants: fastbatch and what its users would otherwise run, each at its best, all doing the same work.

One file each, and one row here. Libraries are imported when a contestant is made, never before.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import unknown_name
from .contestant import Contestant
from .fastbatch import Fastbatch, FastbatchNumba
from .jax import JaxStep
from .jax_scan import JaxScan
from .numpy import NumPy
from .torch import TorchEager
from .torch_compile import TorchCompile

__all__ = ["CONTESTANTS", "Contestant", "Fastbatch", "select"]

CONTESTANTS: tuple[type[Contestant], ...] = (
    Fastbatch,
    FastbatchNumba,
    NumPy,
    TorchEager,
    TorchCompile,
    JaxStep,
    JaxScan,
)


def select(keys: Sequence[str] | None = None) -> list[type[Contestant]]:
    """fastbatch and the peers with these keys, or all of other projects; ArgumentError for an unknown key."""
    peers = {contestant.key: contestant for contestant in CONTESTANTS[1:]}
    for key in keys or ():
        if key not in peers:
            raise unknown_name("peer", key, peers)
    if keys is None:
        keys = [key for key, peer in peers.items() if not issubclass(peer, Fastbatch)]
    return [Fastbatch, *(peer for key, peer in peers.items() if key in keys)]
