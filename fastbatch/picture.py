"""The check before a picture: everything that could fail after the work has been waited for."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ArgumentError, BackendError

__all__ = ["check_file", "check_picture"]


def check_file(name: str, path: str | os.PathLike) -> None:
    """ArgumentError unless the folder of `path` exists; `name` is the argument's."""
    if not Path(path).absolute().parent.is_dir():
        raise ArgumentError(f"{name}: expected a folder that exists, got {Path(path).parent}")


def check_picture(name: str, path: str | os.PathLike, extra: str) -> None:
    """The same, BackendError without matplotlib (`extra` installs it), ArgumentError for an ending it cannot write."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(f"a picture needs matplotlib: pip install 'fastbatch[{extra}]' ({error})") from error
    endings = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:] not in endings:
        raise ArgumentError(f"{name}: expected a file name ending in .{', .'.join(sorted(endings))}; got {path}")
    check_file(name, path)
