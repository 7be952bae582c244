# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Pointers in, GIL out. No maths, and no loops over data but the range checks of targets in the fast path;
`backends/native.py` decides what is called."""

cimport cython
cimport numpy as cnp

import numpy as np

ctypedef char *address

cnp.import_array()

OK = FB_OK
LOSS_NOT_FINITE = FB_LOSS_NOT_FINITE
# rows, columns and depth of a block of weight gradients: what a thread's scratch holds
UPDATE_BLOCK = (FB_BLOCK_ROWS, FB_BLOCK_COLUMNS, FB_BLOCK_DEPTH)
# parts of a batch whose gradients are summed in order, in small networks: how many at a time, and rows of each
PARTS = (FB_PARTS, FB_PART_ROWS)
MAX_HYPER = FB_MAX_HYPER
NORM_BLOCK = FB_NORM_BLOCK
STATISTICS = FB_STATS
GRADIENT_NOT_FINITE = FB_GRADIENT_NOT_FINITE


cdef list _names(const char **table):
    found = []
    while table[len(found)] != NULL:
        found.append(table[len(found)].decode())
    return found


activations = _names(<const char **>fb_activation_names)
losses = _names(<const char **>fb_loss_names)
sources = _names(<const char **>fb_source_names)
optimizers = dict(zip(_names(<const char **>fb_optimizer_names), [tuple(text.split(", ")) for text in _names(<const char **>fb_optimizer_hyper)]))
# rules that want the norms of whole tensors
normed = [name for row, name in enumerate(optimizers) if fb_optimizer_normed[row]]


def register(size_t first, size_t second):
    """Row of an operation of a user's own, from the addresses of its functions; -1 where there is no room."""
    return fb_register(<void *>first, <void *>second)


def targets():
    """Names of the compiled targets and whether this CPU can run them, best last."""
    cdef const fb_target *row = fb_targets()
    found = {}
    while row.name != NULL:
        found[row.name.decode()] = bool(row.usable)
        row += 1
    return found


def measure_peak(str target, int threads=1, int64_t loops=200_000, str dtype="float32"):
    """GFLOP/s of multiply-adds in registers on `threads` threads together; NaN when the pool cannot give them."""
    cdef const fb_kernels *k = fb_find_kernels(target.encode(), dtype.encode())
    cdef double found
    with nogil:
        found = fb_measure_peak(k, threads, loops)
    return found


def measure_barrier(int threads, int64_t loops=10_000):
    """Nanoseconds of one barrier between `threads` threads; NaN when the pool cannot give them."""
    cdef double found
    with nogil:
        found = fb_measure_barrier(threads, loops)
    return found


def bf16_targets():
    """Names of the compiled targets with products in bfloat16 and why they cannot run here (empty: they can), best last."""
    cdef const fb_target *row = fb_bf16_targets()
    found = {}
    while row.name != NULL:
        found[row.name.decode()] = "" if row.usable else row.reason.decode()
        row += 1
    return found


cdef inline char *_data(object array) except? NULL:
    return NULL if array is None else <char *>cnp.PyArray_DATA(<cnp.ndarray?>array)


cdef inline int64_t _stride(object array) except? -1:
    return 0 if array is None else cnp.PyArray_STRIDE(<cnp.ndarray?>array, 0)


cdef fb_loss _loss(int kind, double parameter, object per_output, tuple divisors):
    cdef fb_loss loss
    loss.kind = kind
    loss.parameter = parameter
    loss.per_output = _data(per_output)
    loss.of_value, loss.of_slope = divisors
    return loss


cdef const fb_segment *_segments(table) except? NULL:
    if table.itemsize != sizeof(fb_segment):
        raise ValueError("fb_segment of csrc/fastbatch.h and SEGMENT_DTYPE of native.py differ")
    return <const fb_segment *>_data(table)


def set_thread_policy(int quota, bint exact):
    """CPUs granted besides the affinity mask (0: no limit), and whether thread counts are taken literally."""
    fb_set_thread_policy(quota, exact)


cdef extern from *:
    unsigned long PyThread_get_thread_ident() nogil
    unsigned long __atomic_load_n(unsigned long *, int) nogil
    void __atomic_store_n(unsigned long *, unsigned long, int) nogil
    bint __atomic_compare_exchange_n(unsigned long *, unsigned long *, unsigned long, bint, int, int) nogil
    int __ATOMIC_ACQUIRE, __ATOMIC_RELEASE, __ATOMIC_RELAXED


cdef class Lock:
    """A reentrant lock that never waits; 2 ns where acquire and release of a threading.RLock take 90."""
    cdef unsigned long owner  # its thread, or 0
    cdef int64_t depth

    cdef bint take(self) noexcept:
        cdef unsigned long me = PyThread_get_thread_ident(), free = 0
        if __atomic_load_n(&self.owner, __ATOMIC_RELAXED) != me and not __atomic_compare_exchange_n(
                &self.owner, &free, me, False, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED):
            return False
        self.depth += 1
        return True

    cdef void give(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            __atomic_store_n(&self.owner, 0, __ATOMIC_RELEASE)

    def acquire(self, blocking):
        return self.take()

    def __exit__(self, *exc):
        self.give()


# one module, so that calls between the parts stay inline
include "_native_kernels.pxi"
include "_native_tensors.pxi"
include "_native_network.pxi"
