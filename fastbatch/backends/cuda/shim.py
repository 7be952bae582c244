"""The only file that imports numba-cuda, so that its successor can be put in its place.

Kernels are Python functions that name `cuda` of this module; they run on a device, or in the simulator where
NUMBA_ENABLE_CUDASIM is 1, as Python threads. Numba's own `numba.cuda` is deprecated: without the package there is an
ImportError, although that module could be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba_cuda  # noqa: F401  puts itself in the place of numba.cuda
import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.core import config

from ...errors import BackendError, DTypeError

__all__ = [
    "SIMULATED", "Graph", "as_device", "capability", "compiles", "cuda", "described",
    "event", "fetched", "free_bytes", "guarded", "inner", "instruction", "is_on_device", "kernel",
    "missing", "seen", "stream",
]  # fmt: skip

SIMULATED = bool(config.ENABLE_CUDASIM)
# Kernels of one block, such as the decision about an update, are no oversight; Numba would warn at each launch.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
_SIMULATED_ARRAY = type(cuda.to_device(np.zeros(1))) if SIMULATED else ()


def kernel(function: Callable) -> Any:
    """`function` as a kernel: compiled when it is launched first, for the types that it is given."""
    return cuda.jit(function)


def inner(function: Callable) -> Any:
    """`function` for kernels to call."""
    return cuda.jit(device=True)(function)


def instruction(text: str, results: str, operands: str) -> Any:
    """An instruction of PTX for kernels to call, not for the simulator.

    Its registers $0, $1 ... are the results, then the operands: each "f", a float32, or "r", a word of 32 bits. Threads
    of a warp execute it together: no compiler may move it into a branch.
    """
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    kinds = {"f": (types.float32, ir.FloatType()), "r": (types.uint32, ir.IntType(32))}
    found = [kinds[kind] for kind in results]
    result = found[0][0] if len(found) == 1 else types.UniTuple(found[0][0], len(found))
    low = found[0][1] if len(found) == 1 else ir.LiteralStructType([kind for _, kind in found])
    called = ir.FunctionType(low, [kinds[kind][1] for kind in operands])
    constraints = ",".join([*(f"={kind}" for kind in results), *operands])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [
            context.cast(builder, value, given, kinds[kind][0])
            for value, given, kind in zip(cgutils.unpack_tuple(builder, args[0]), signature.args[0], operands)
        ]
        made = builder.call(ir.InlineAsm(called, text, constraints), values, attrs=("convergent",))
        if len(found) == 1:
            return made
        return cgutils.pack_array(builder, [builder.extract_value(made, k) for k in range(len(found))])

    @intrinsic
    def of_ptx(typingctx, *args):
        return result(types.StarArgTuple(args)), generate

    return of_ptx


def capability() -> tuple[int, int]:
    """Of the device, by which it is known what instructions it has."""
    major, minor = cuda.get_current_device().compute_capability
    return major, minor


def compiles(function: Any, *samples: Any) -> None:
    """Compile what `inner` has made for the device and arguments like these, and keep nothing: for the error."""
    from numba.cuda.typing import typeof

    target = cuda.get_current_device().compute_capability
    cuda.compile_ptx(function.py_func, tuple(map(typeof.typeof, samples)), device=True, cc=target)


def missing() -> str | None:
    """None, or what keeps kernels from running here and what to do about it."""
    if SIMULATED:
        return None
    from numba.cuda.cudadrv.driver import driver

    if not driver.is_available:
        reason = " ".join(str(driver.initialization_error).split())
        return f"{reason} (install NVIDIA's driver, r525 or newer, and see that nvidia-smi lists the GPU)"
    try:
        count = len(cuda.gpus)
    except Exception as error:  # the driver's own errors have no common base
        return f"the driver found no usable GPU: {error} (see that nvidia-smi lists it, and CUDA_VISIBLE_DEVICES)"
    if not count:
        return "the driver found no GPU (see that nvidia-smi lists it, and CUDA_VISIBLE_DEVICES)"
    major, minor = capability()
    if major < 7:
        return f"the GPU has compute capability {major}.{minor}, kernels are for 7.0 and newer"
    return None


def described() -> str:
    """The device by name."""
    if SIMULATED:
        return "the simulator of numba-cuda, for tests"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return f"{name}, {cuda.current_context().get_memory_info().total / 2**30:.0f} GiB"


def free_bytes() -> int:
    """Memory of the device that nobody has taken."""
    return 1 << 34 if SIMULATED else int(cuda.current_context().get_memory_info().free)


def is_on_device(array: Any) -> bool:
    """Whether these numbers lie in memory of the device."""
    return hasattr(array, "__cuda_array_interface__") or isinstance(array, _SIMULATED_ARRAY)


def as_device(array: Any) -> Any:
    """The numbers of such an array as kernels take them: no copy."""
    return array if isinstance(array, _SIMULATED_ARRAY) else cuda.as_cuda_array(array)


class _Seen:
    """What is lent by DLPack, for as long as this lives."""

    def __init__(self, view: Any) -> None:
        self._view, size = view, view.dtype.itemsize
        strides = None if view.strides is None else tuple(step * size for step in view.strides)
        self.__cuda_array_interface__ = {
            "version": 3, "shape": tuple(view.shape), "strides": strides, "typestr": view.dtype.str,
            "data": (view.ptr, view.readonly),
        }  # fmt: skip


def seen(value: Any, where: str) -> Any:
    """See :meth:`fastbatch.protocol.Device.seen`."""
    try:
        if hasattr(value, "__cuda_array_interface__"):
            return value
        from cuda.core.utils import StridedMemoryView

        # 1 is the default queue, for which those of this backend wait
        return _Seen(StridedMemoryView.from_dlpack(value, stream_ptr=1))
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError, KeyError) as error:
        raise DTypeError(f"{where}: expected what kernels can look at, got {type(value).__name__}: {error}") from error


def fetched(value: Any, where: str) -> np.ndarray:
    """See :meth:`fastbatch.protocol.Device.fetched`."""
    return as_device(seen(value, where)).copy_to_host()


def stream() -> Any:
    """A queue of launches and copies."""
    return cuda.stream()


def event() -> Any:
    """A place in a queue that another one can wait for."""
    return cuda.event() if SIMULATED else cuda.event(timing=False)


class Graph:
    """Launches that were recorded once, and are repeated by one call each time.

    Parameters
    ----------
    record : callable
        ``record(stream)`` launches kernels that have run before: nothing may be compiled while it is recorded.
    """

    def __init__(self, record: Callable[[Any], None]) -> None:
        from cuda.core import Device

        device = Device()
        device.set_current()
        builder = device.create_graph_builder()
        builder.begin_building()
        try:
            record(builder)
        except BaseException:
            builder.end_building()
            raise
        self._graph = builder.end_building().complete()

    def launch(self, queue: Any) -> None:
        """Once more, behind what is in the `queue`."""
        from cuda.core import Stream

        self._graph.launch(Stream.from_handle(int(queue)))


def guarded(what: str, nbytes: int) -> None:
    """BackendError where the device has no room for `nbytes` more."""
    free = free_bytes()
    if nbytes > free:
        raise BackendError(
            f"backend 'cuda': expected {nbytes / 2**20:.0f} MiB of device memory for {what}, got {free / 2**20:.0f} "
            "MiB that are free; take smaller batches or micro_batch_size=, or end what else runs there"
        )
