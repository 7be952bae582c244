cdef class Kernels:
    """The kernel table of one target and dtype. Arrays are of this dtype, C-contiguous, and trusted."""
    cdef const fb_kernels *k

    def __init__(self, str target, str dtype="float32"):
        self.k = fb_find_kernels(target.encode(), dtype.encode())

    @property
    def shape(self):
        """Lanes of a vector, rows of a tile, vectors of a tile."""
        return self.k.lanes, self.k.tile_rows, self.k.tile_vectors

    def dense_forward(self, x, w, b, int activation, z, a):
        cdef fp_mode mode
        cdef int64_t rows = x.shape[0], inputs = x.shape[1], outputs = w.shape[1]
        cdef address xp = _data(x), wp = _data(w), bp = _data(b), zp = _data(z), ap = _data(a)
        with nogil:
            mode = fp_enter()
            self.k.dense_forward(rows, inputs, outputs, xp, inputs, wp, bp, activation, 0, outputs, zp, ap,
                                 outputs)
            fp_leave(mode)

    def slope(self, int activation, saved, dz):
        cdef fp_mode mode
        cdef int64_t rows = dz.shape[0], width = dz.shape[1]
        cdef address sp = _data(saved), dp = _data(dz)
        with nogil:
            mode = fp_enter()
            self.k.slope(activation, rows, width, sp, dp, width)
            fp_leave(mode)

    def dense_backward(self, dz, x, w, dw, db, dx):
        """dw and db are added to."""
        cdef fp_mode mode
        cdef int64_t rows = x.shape[0], inputs = x.shape[1], outputs = w.shape[1]
        cdef address zp = _data(dz), xp = _data(x), wp = _data(w), dwp = _data(dw), dbp = _data(db)
        cdef address dxp = _data(dx)
        with nogil:
            mode = fp_enter()
            self.k.dense_backward_weights(rows, inputs, outputs, xp, inputs, zp, outputs, 0,
                                          inputs + (dbp != NULL), 1, dwp, dbp, NULL, NULL)
            if dxp != NULL:
                self.k.dense_backward_rows(rows, inputs, outputs, zp, outputs, wp, 0, inputs, dxp, inputs)
            fp_leave(mode)

    def permutation(self, cnp.ndarray order, uint64_t seed, uint64_t epoch, int64_t begin, int64_t end):
        cdef int64_t n = len(order)
        cdef int64_t *out = <int64_t *>cnp.PyArray_DATA(order)
        with nogil:
            fb_permutation(self.k, n, seed, <unsigned int>epoch, begin, end, out)

    def loss(self, int kind, double parameter, per_output, tuple divisors, a, y, weight, da, row_loss):
        cdef fp_mode mode
        cdef fb_loss loss = _loss(kind, parameter, per_output, divisors)
        cdef int64_t rows = a.shape[0], outputs = a.shape[1]
        cdef address ap = _data(a), yp = _data(y), dp = _data(da)
        cdef double *weights = <double *>_data(weight)
        cdef double *values = <double *>_data(row_loss)
        with nogil:
            mode = fp_enter()
            self.k.loss(&loss, rows, outputs, ap, outputs, yp, outputs, weights, dp, outputs, values)
            fp_leave(mode)

    def update(self, segments, double lr, int64_t t, p, g, slots):
        """`segments` has one row, for all of `p`."""
        cdef fp_mode mode
        cdef const fb_segment *segment = _segments(segments)
        cdef fb_slice at
        at.p = _data(p)
        at.g = _data(g)
        at.slots = _data(slots)
        at.slot_stride = at.n = len(p)
        at.clip_value = 0
        with nogil:
            mode = fp_enter()
            fb_update_tensor(self.k, &segment.optimizer, lr, t, 1.0, at)
            fp_leave(mode)
