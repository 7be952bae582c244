"""``fastbatch bench``: measure, print as it goes, save."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..picture import check_file, check_picture
from . import contestants, workloads
from .harness import measure
from .machine import machine
from .report import draw, footnotes, head, row

__all__ = ["bench"]


def _progress(where: str) -> Callable[[str], None]:
    """Writes a line on stderr over the last one, where stderr is a terminal."""

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{where}{text}", end="", file=sys.stderr, flush=True)

    return show


def bench(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    heavy: bool = False,
    peers: Sequence[str] | None = None,
    samples: int = 5,
    json_path: str | os.PathLike | None = None,
    plot_path: str | os.PathLike | None = None,
) -> dict:
    """Time fastbatch and its peers on this machine; prints a row per workload as soon as it is measured.

    Parameters
    ----------
    names : sequence of str
        Workloads whose name holds one of these; without any, all but the heavy ones.
    quick, heavy : bool
        Fewer steps and, without `names`, four workloads; the heavy ones too.
    peers : sequence of str, optional
        Keys of the peers; by default all that are not fastbatch on another backend.
    samples : int, default 5
        Epochs per contestant and thread count.
    json_path, plot_path : path, optional
        Where the results and the picture go; neither is written without.

    Returns
    -------
    dict
        "machine" and "results" by workload, as in the JSON.

    Raises
    ------
    ArgumentError, BackendError
        Before anything is measured.
    KeyboardInterrupt
        On Ctrl-C, after the workloads that were done have been saved.
    """
    chosen, field = workloads.select(names, quick, heavy), contestants.select(peers)
    if json_path is not None:
        check_file("json", json_path)
    if plot_path is not None:
        check_picture("plot", plot_path, "bench")
    clear = _progress("")
    clear("the ceilings of this machine")
    found: dict = {"machine": machine(field), "results": {}}
    clear("")
    print(head(field), flush=True)
    try:
        for k, workload in enumerate(chosen, 1):
            progress = _progress(f"[{k}/{len(chosen)}] {workload.name}: ")
            result = measure(workload, field, samples, found["machine"]["peak_gflops"], progress)
            found["results"][workload.name] = result
            clear("")
            print(row(result), flush=True)
    finally:
        clear("")
        print(footnotes(found["machine"], found["results"]))
        if json_path is not None:
            Path(json_path).write_text(json.dumps(found, indent=1) + "\n")
            print(f"results: {json_path}")
        if plot_path is not None and found["results"]:
            draw(found["machine"], found["results"], plot_path)
            print(f"picture: {plot_path}")
    return found
