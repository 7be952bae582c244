# -- arrays as they lie, those of other libraries among them -----------------------------------------------------------
#
# DLPack's C exchange API, https://dmlc.github.io/dlpack/latest/c_api.html: dlpack.h of version 1.3, which keeps the
# layout of all 1.x. torch has it since 2.10. A call takes 20 ns, x.numpy() 500.

from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.object cimport Py_TYPE, descrgetfunc
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

import inspect

ctypedef struct dl_tensor:
    char *data
    int32_t device, device_number, ndim
    uint8_t code, bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

ctypedef int (*dl_look)(PyObject *, dl_tensor *) noexcept

ctypedef struct dl_exchange:
    uint32_t major, minor
    void *before
    void *allocate
    void *lend
    void *take
    dl_look look
    void *stream

cdef enum:
    DL_INT = 0
    DL_FLOAT = 2
    DL_CPU = 1

_LOOKS = {}  # address of dl_look by type


cdef dl_look _look_of(kind) except *:
    """How tensors of exactly this type are looked at, or NULL."""
    cdef dl_exchange *api
    found = _LOOKS.get(kind)
    if found is None:
        capsule = kind.__dict__.get("__dlpack_c_exchange_api__")
        if capsule is None:
            return NULL
        api = <dl_exchange *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
        found = _LOOKS[kind] = <size_t>api.look if api.major == 1 else 0
    return <dl_look><size_t>found


cdef bint _plain(object array, int kind, int ndim) noexcept:
    """Exactly an ndarray of this dtype, C-contiguous, aligned and in native byte order."""
    return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(<cnp.ndarray>array) == kind
            and cnp.PyArray_NDIM(<cnp.ndarray>array) == ndim and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array))


ctypedef struct lying:
    const char *data
    int64_t rows, columns


cdef bint _lies(object value, int kind, int ndim, lying *found) except -1:
    """Whether this is an array of NumPy, or a tensor on the CPU that no gradient is asked of, that can be read as it
    lies: of this dtype, 1-D or 2-D, C-contiguous, aligned and in native byte order."""
    cdef dl_tensor t
    cdef dl_look look
    cdef int size = 4 if kind == cnp.NPY_FLOAT32 else 8
    if cnp.PyArray_CheckExact(value):
        if not _plain(value, kind, ndim):
            return False
        found.data = <const char *>cnp.PyArray_DATA(<cnp.ndarray>value)
        found.rows = cnp.PyArray_DIM(<cnp.ndarray>value, 0)
        found.columns = cnp.PyArray_DIM(<cnp.ndarray>value, 1) if ndim == 2 else 1
        return True
    look = _look_of(type(value))
    if look == NULL:
        return False
    if look(<PyObject *>value, &t):  # the careful path says why
        PyErr_Clear()
        return False
    if (t.device != DL_CPU or t.ndim != ndim or t.lanes != 1 or t.bits != 8 * size
            or t.code != (DL_INT if kind == cnp.NPY_INT64 else DL_FLOAT)):
        return False
    found.data = t.data + t.byte_offset
    found.rows = t.shape[0]
    found.columns = t.shape[1] if ndim == 2 else 1
    return (<size_t>found.data % size == 0
            and (found.rows < 2 or t.strides[0] == found.columns)
            and (found.columns < 2 or t.strides[1] == 1)
            and getattr(value, "requires_grad", False) is False)


# -- what is looked at before every step -------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Watch:
    """Whether tensors lie where they lay, ask for gradients as they did, and dicts hold the same objects or none.

    Parameters
    ----------
    kind : type
        Of the tensors, which may be of subclasses of it.
    tensors : sequence of tensors
        Whose places are looked at.
    learnt : sequence of tensors
        Whose requires_grad is.
    dicts, empty : sequence of dict
        What is in `empty` is looked at for its length only.
    """
    cdef dl_look look
    cdef tuple tensors, learnt, required, dicts, held, empty
    cdef object places  # (n, 2): address and first stride
    cdef object kind, requires  # the descriptor, which takes half as long as the attribute
    cdef descrgetfunc get

    def __init__(self, kind, tensors, learnt, dicts, empty):
        cdef Py_ssize_t i
        cdef int64_t *place
        self.kind, self.look = kind, _look_of(kind)
        self.requires = inspect.getattr_static(kind, "requires_grad")
        self.get = Py_TYPE(self.requires).tp_descr_get
        self.tensors, self.learnt, self.dicts, self.empty = tuple(tensors), tuple(learnt), tuple(dicts), tuple(empty)
        self.places = np.empty((len(self.tensors), 2), np.int64)
        place = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>self.places)
        for i in range(len(self.tensors)):
            self.find(self.tensors[i], place + 2 * i)
        self.required = tuple([t.requires_grad for t in self.learnt])
        self.held = tuple([tuple([each for item in d.items() for each in item]) for d in self.dicts])

    cdef int find(self, tensor, int64_t *place) except -1:
        cdef dl_tensor t
        if self.look != NULL:
            if self.look(<PyObject *>tensor, &t) == 0:
                place[0] = <int64_t>(t.data + t.byte_offset)
                place[1] = t.strides[0] if t.ndim else 0
                return 0
            PyErr_Clear()  # on a device without memory, for one
        place[0], place[1] = tensor.data_ptr(), (tensor.stride() or (0,))[0]
        return 0

    def same(self):
        cdef Py_ssize_t i, k, position
        cdef PyObject *key
        cdef PyObject *value
        cdef int64_t place[2]
        cdef int64_t *then = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>self.places)
        cdef tuple held
        for i in range(len(self.empty)):
            if PyDict_Size(self.empty[i]):
                return False
        for i in range(len(self.dicts)):
            d, held = self.dicts[i], <tuple>self.held[i]
            if 2 * PyDict_Size(d) != len(held):
                return False
            k = position = 0
            while PyDict_Next(d, &position, &key, &value):
                if key != <PyObject *>held[k] or value != <PyObject *>held[k + 1]:
                    return False
                k += 2
        for i in range(len(self.learnt)):
            if self.get(self.requires, self.learnt[i], self.kind) is not self.required[i]:
                return False
        for i in range(len(self.tensors)):
            self.find(self.tensors[i], place)
            if place[0] != then[2 * i] or place[1] != then[2 * i + 1]:
                return False
        return True
