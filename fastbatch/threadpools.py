"""The door for threadpoolctl: `threadpool_info` lists fastbatch, `threadpool_limits` bounds its threads.

threadpoolctl finds libraries by the names of the shared objects that are loaded and by a symbol in them, and has to be
told of ours. It is never imported for that: it is told when it is there already, or when someone imports it later.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import threads
from ._version import __version__

__all__ = ["introduce"]

_NAME = "threadpoolctl"


def _register(threadpoolctl: ModuleType, load: Callable[[], object]) -> None:
    if not hasattr(threadpoolctl, "register"):  # older than 3.2: has no door
        return

    class FastbatchController(threadpoolctl.LibController):  # type: ignore[name-defined]
        user_api = internal_api = "fastbatch"
        filename_prefixes = ("_native",)
        check_symbols = ("fastbatch_threads",)  # csrc/pool.c

        def get_num_threads(self) -> int:
            return threads.get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            threads.limit_from_outside(num_threads)

        def get_version(self) -> str:
            return __version__

    load()
    threadpoolctl.register(FastbatchController)


class _Loader(Loader):
    """threadpoolctl's own loader, and a word to the module when it is loaded."""

    def __init__(self, loader: Loader, load: Callable[[], object]) -> None:
        self._loader, self._load = loader, load

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module, self._load)


class _Finder(MetaPathFinder):
    """Waits for the import of threadpoolctl, once."""

    def __init__(self, load: Callable[[], object]) -> None:
        self._load = load

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader, self._load)
        return spec


def introduce(load: Callable[[], object]) -> None:
    """Tell threadpoolctl of fastbatch, now or when it is imported; `load` makes sure that the extension is loaded."""
    if _NAME in sys.modules:
        _register(sys.modules[_NAME], load)
    else:
        sys.meta_path.insert(0, _Finder(load))
