# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Pointers in, GIL out. No maths, and no loops over data but the range checks of targets in the fast path;
`backends/native.py` decides what is called."""

from libc.stdint cimport int64_t, uint64_t
cimport cython
cimport numpy as cnp

ctypedef char *address

cnp.import_array()


cdef extern from "fastbatch.h" nogil:
    ctypedef struct fb_stage:
        pass
    ctypedef struct fb_loss:
        int kind
        double parameter
        const void *per_output
    ctypedef struct fb_optimizer:
        int rule
        double hyper[8]
    ctypedef struct fb_slice:
        void *p
        const void *g
        void *slots
        int64_t slot_stride
        int64_t n
    ctypedef struct fb_kernels:
        const char *target
        int lanes, tile_rows, tile_vectors
        void (*dense_forward)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, const void *, int, void *,
                              void *, int64_t) noexcept nogil
        void (*slope)(int, int64_t, int64_t, const void *, void *, int64_t) noexcept nogil
        void (*dense_backward_rows)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, void *,
                                    int64_t) noexcept nogil
        void (*dense_backward_weights)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t,
                                       int64_t, int64_t, int, void *, void *, void *, void *) noexcept nogil
        void (*loss)(const fb_loss *, int64_t, int64_t, const void *, int64_t, const void *, int64_t, const double *,
                     void *, int64_t, double *) noexcept nogil
        void (*update)(int, const double *, double, fb_slice) noexcept nogil
    const char **fb_activation_names
    const char **fb_loss_names
    const char **fb_optimizer_names
    const char **fb_optimizer_hyper
    void fb_prepare(const fb_optimizer *, double, int64_t, double *)
    ctypedef struct fb_target:
        const char *name
        int usable
        const fb_kernels *f32
        const char *reason
    const fb_target *fb_targets()
    const fb_target *fb_bf16_targets()
    const fb_target *fb_find_target(const char *)
    ctypedef struct fb_network:
        const fb_kernels *kernels
        const fb_stage *stages
        int64_t stage_count
        char *parameters
        int64_t parameter_count
        char *slots
        int64_t *steps
        uint64_t seed
        fb_loss loss
        fb_optimizer optimizer
        int64_t y, row_loss, row_weight, row_share, gradient, scratch, scratch_bytes, parts, part_bytes
    ctypedef struct fb_feed:
        const char *x
        int64_t x_stride
        const char *y
        int64_t y_stride
        const int64_t *labels
        const double *weight
        const int64_t *order
        int64_t rows, batch
        char *outputs
    ctypedef struct fb_sums:
        double loss, weight
    ctypedef struct fb_per_sample:
        double *loss
        double *weight
        double *input_norms
        double *delta_norms
        int64_t input_stride, delta_stride
        const void *scale
    ctypedef struct fb_outcome:
        int64_t next
        int status
        double value
        int threads
    ctypedef enum fb_patience:
        FB_TAKE_AWAKE, FB_WAKE_PARKED, FB_WAIT_FOR_PARKED
    ctypedef struct fb_tuner:
        int threads
    ctypedef struct fb_stretch:
        int threads
        fb_patience patience
        int64_t steps, until
    fb_stretch fb_choose_threads(fb_tuner *, int, int64_t, int64_t, double, int64_t)
    void fb_report(fb_tuner *, fb_stretch, int, int64_t, int64_t, int64_t)
    void fb_set_thread_policy(int, int)
    fb_outcome fb_run(const fb_network *, char *, const fb_feed *, int64_t, int64_t, double, int64_t, int, fb_tuner *,
                      fb_sums *)
    fb_sums fb_accumulate(const fb_network *, char *, const fb_feed *, int64_t, char *, int, fb_sums,
                          const fb_per_sample *)
    void fb_forward(const fb_network *, char *, const fb_feed *, int64_t, int)
    void fb_backward(const fb_network *, char *, const fb_feed *, int64_t, const char *, int64_t, char *, int)
    int fb_update(const fb_network *, const char *, double, double, int)
    void fb_predict(const fb_network *, char *, int64_t, int64_t, const fb_feed *, int)
    double fb_measure_peak(const fb_kernels *, int, int64_t)
    double fb_measure_barrier(int, int64_t)
    void fb_permutation(const fb_kernels *, int64_t, uint64_t, unsigned int, int64_t, int64_t, int64_t *)
    int FB_OK, FB_LOSS_NOT_FINITE, FB_GRADIENT_NOT_FINITE, FB_BLOCK_ROWS, FB_BLOCK_COLUMNS, FB_BLOCK_DEPTH
    int FB_PARTS, FB_PART_ROWS

cdef extern from "simd/fpmode.h" nogil:
    ctypedef unsigned long fp_mode
    fp_mode fp_enter()
    void fp_leave(fp_mode)

OK = FB_OK
LOSS_NOT_FINITE = FB_LOSS_NOT_FINITE
# rows, columns and depth of a block of weight gradients: what a thread's scratch holds
UPDATE_BLOCK = (FB_BLOCK_ROWS, FB_BLOCK_COLUMNS, FB_BLOCK_DEPTH)
# parts of a batch whose gradients are summed in order, in small networks: how many at a time, and rows of each
PARTS = (FB_PARTS, FB_PART_ROWS)
GRADIENT_NOT_FINITE = FB_GRADIENT_NOT_FINITE


cdef list _names(const char **table):
    found = []
    while table[len(found)] != NULL:
        found.append(table[len(found)].decode())
    return found


activations = _names(<const char **>fb_activation_names)
losses = _names(<const char **>fb_loss_names)
optimizers = dict(zip(_names(<const char **>fb_optimizer_names), [tuple(text.split(", ")) for text in _names(<const char **>fb_optimizer_hyper)]))


def targets():
    """Names of the compiled targets and whether this CPU can run them, best last."""
    cdef const fb_target *row = fb_targets()
    found = {}
    while row.name != NULL:
        found[row.name.decode()] = bool(row.usable)
        row += 1
    return found


def measure_peak(str target, int threads=1, int64_t loops=200_000):
    """GFLOP/s of multiply-adds in registers on `threads` threads together; NaN when the pool cannot give them."""
    cdef const fb_kernels *k = fb_find_target(target.encode()).f32
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


cdef inline int64_t _stride(object array) except -1:
    return 0 if array is None else cnp.PyArray_STRIDE(<cnp.ndarray?>array, 0)


cdef fb_loss _loss(int kind, double parameter, object per_output):
    cdef fb_loss loss
    loss.kind = kind
    loss.parameter = parameter
    loss.per_output = _data(per_output)
    return loss


cdef fb_optimizer _optimizer(int rule, tuple hyper):
    cdef fb_optimizer optimizer
    optimizer.rule = rule
    for i, value in enumerate(hyper):
        optimizer.hyper[i] = value
    return optimizer


cdef class Kernels:
    """The kernel table of one target. Arrays are float32, C-contiguous, and trusted."""
    cdef const fb_kernels *k

    def __init__(self, str target):
        self.k = fb_find_target(target.encode()).f32

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
            self.k.dense_forward(rows, inputs, outputs, xp, inputs, wp, bp, activation, zp, ap, outputs)
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
                self.k.dense_backward_rows(rows, inputs, outputs, zp, outputs, wp, dxp, inputs)
            fp_leave(mode)

    def permutation(self, cnp.ndarray order, uint64_t seed, uint64_t epoch, int64_t begin, int64_t end):
        cdef int64_t n = len(order)
        cdef int64_t *out = <int64_t *>cnp.PyArray_DATA(order)
        with nogil:
            fb_permutation(self.k, n, seed, <unsigned int>epoch, begin, end, out)

    def loss(self, int kind, double parameter, per_output, a, y, weight, da, row_loss):
        cdef fp_mode mode
        cdef fb_loss loss = _loss(kind, parameter, per_output)
        cdef int64_t rows = a.shape[0], outputs = a.shape[1]
        cdef address ap = _data(a), yp = _data(y), dp = _data(da)
        cdef double *weights = <double *>_data(weight)
        cdef double *values = <double *>_data(row_loss)
        with nogil:
            mode = fp_enter()
            self.k.loss(&loss, rows, outputs, ap, outputs, yp, outputs, weights, dp, outputs, values)
            fp_leave(mode)

    def update(self, int rule, tuple hyper, double lr, int64_t t, p, g, slots):
        cdef fp_mode mode
        cdef fb_optimizer optimizer = _optimizer(rule, hyper)
        cdef double constants[8]
        cdef fb_slice at
        at.p = _data(p)
        at.g = _data(g)
        at.slots = _data(slots)
        at.slot_stride = at.n = len(p)
        with nogil:
            mode = fp_enter()
            fb_prepare(&optimizer, lr, t, constants)
            self.k.update(rule, constants, 1.0, at)
            fp_leave(mode)


def set_thread_policy(int quota, bint exact):
    """CPUs granted besides the affinity mask (0: no limit), and whether thread counts are taken literally."""
    fb_set_thread_policy(quota, exact)


@cython.auto_pickle(False)
cdef class Tuner:
    """What was measured of a program on different numbers of threads, by the power of two of its batch."""
    cdef fb_tuner sizes[32]

    cdef int size_of(self, int64_t batch) noexcept nogil:
        cdef int size = 0
        while batch > 1 and size < 31:
            batch >>= 1
            size += 1
        return size

    def choose(self, int most, int64_t steps, int64_t batch, double flops, int64_t now):
        """Threads, whether to wait for parked helpers, steps and end of the next stretch; what fb_run asks."""
        cdef fb_stretch stretch = fb_choose_threads(&self.sizes[self.size_of(batch)], most, steps, batch, flops, now)
        return stretch.threads, stretch.patience == FB_WAIT_FOR_PARKED, stretch.steps, stretch.until

    def report(self, int64_t batch, int asked, int threads, int64_t steps, int64_t ns, int64_t now):
        """What became of it."""
        cdef fb_stretch stretch
        stretch.threads = asked
        fb_report(&self.sizes[self.size_of(batch)], stretch, threads, steps * batch, ns, now)


# -- the fast path: what can be used as it lies ------------------------------------------------------------------------

cdef inline bint _plain(object array, int kind, int ndim) noexcept:
    """Exactly an ndarray of this dtype, C-contiguous, aligned and in native byte order."""
    return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(<cnp.ndarray>array) == kind
            and cnp.PyArray_NDIM(<cnp.ndarray>array) == ndim and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array))


cdef bint _labels_in_range(const int64_t *labels, int64_t n, int64_t classes, int64_t *copy) noexcept nogil:
    """Copies what it checks: another thread may write to the caller's array before the kernels index by it."""
    cdef int64_t i, label
    cdef bint good = True
    for i in range(n):
        label = labels[i]
        copy[i] = label
        good &= 0 <= label < classes
    return good


cdef bint _in_unit_interval(const float *y, int64_t n) noexcept nogil:
    """False for NaN, too."""
    cdef int64_t i
    cdef bint good = True
    for i in range(n):
        good &= 0 <= y[i] <= 1
    return good


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


cdef class Network:
    """An fb_network and references to the memory it points into."""
    cdef fb_network net
    cdef object held, held_in_arena
    cdef int64_t inputs, outputs
    cdef bint takes_labels, takes_shares
    cdef double flops_per_row, flops_per_step
    cdef object allowed, limit
    cdef Tuner tuner
    cdef Lock lock
    # of the arena
    cdef char *arena
    cdef int64_t arena_bytes, rows
    cdef int64_t *labels
    cdef list spares
    cdef public object pending
    cdef readonly int threads_used
    cdef int threads  # that the arena has scratch for

    def __init__(self, str target, parameters, slots, steps, uint64_t seed, int loss, double loss_parameter, per_output,
                 int rule, tuple hyper, int64_t inputs, int64_t outputs, str targets, double flops_per_row,
                 double flops_per_step, allowed, limit, Lock lock):
        """`targets` is what the loss takes; ``allowed(limit, flops)`` the number of threads for a piece of work.

        A step costs flops_per_row for each of its rows, and flops_per_step whatever their number.
        """
        self.held = (parameters, slots, steps, per_output)
        self.net.kernels = fb_find_target(target.encode()).f32
        self.net.parameters = _data(parameters)
        self.net.parameter_count = len(parameters)
        self.net.slots = _data(slots)
        self.net.steps = <int64_t *>_data(steps)
        self.net.seed = seed
        self.net.loss = _loss(loss, loss_parameter, per_output)
        self.net.optimizer = _optimizer(rule, hyper)
        self.inputs = inputs
        self.outputs = outputs
        self.takes_labels = targets == "classes"
        self.takes_shares = targets in ("classes", "binary")
        self.flops_per_row, self.flops_per_step = flops_per_row, flops_per_step
        self.allowed = allowed
        self.tuner = Tuner()
        self.limit = limit
        self.lock = lock
        self.spares = []
        self.threads_used = 1

    def place(self, arena, memory, labels):
        """Lay the network out as `arena` says: in `memory`, or for predict in memory of each call.

        `labels` (rows,) int64 is room for those of a step on the fast path.
        """
        if arena.stages.itemsize != sizeof(fb_stage):
            raise ValueError("fb_stage of csrc/fastbatch.h and STAGE_FIELDS of plan.py differ")
        self.held_in_arena = (arena.stages, memory, labels)
        self.net.stages = <const fb_stage *>_data(arena.stages)
        self.net.stage_count = len(arena.stages)
        self.net.y, self.net.row_loss, self.net.row_weight = arena.y, arena.row_loss, arena.row_weight
        self.net.row_share, self.net.gradient = arena.row_share, arena.gradient
        self.net.scratch, self.net.scratch_bytes = arena.scratch, arena.scratch_bytes
        self.net.parts, self.net.part_bytes = arena.parts, arena.part_bytes
        self.threads = arena.threads
        self.arena = _data(memory)
        self.arena_bytes = arena.nbytes
        self.labels = <int64_t *>_data(labels)
        self.rows = arena.rows

    cdef fb_feed feed(self, x, y, weight, order, int64_t batch, outputs) except *:
        cdef fb_feed feed
        feed.x = _data(x)
        feed.x_stride = _stride(x)
        feed.labels = NULL
        feed.y = NULL
        feed.y_stride = 0
        if y is not None and y.ndim == 1:
            feed.labels = <const int64_t *>_data(y)
        elif y is not None:
            feed.y = _data(y)
            feed.y_stride = _stride(y)
        feed.weight = <const double *>_data(weight)
        feed.order = <const int64_t *>_data(order)
        feed.rows = len(x) if order is None else len(order)
        feed.batch = batch
        feed.outputs = _data(outputs)
        return feed

    def run(self, x, y, weight, order, int64_t batch, outputs, int64_t first, int64_t last, double lr,
            int64_t budget_ns, int threads, cnp.ndarray sums):
        """Returns next step, status, what was not finite; `sums` (2,) float64 is added to."""
        cdef fb_feed feed = self.feed(x, y, weight, order, batch, outputs)
        cdef fb_sums *total = <fb_sums *>cnp.PyArray_DATA(sums)
        cdef fb_outcome outcome
        with nogil:
            outcome = fb_run(&self.net, self.arena, &feed, first, last, lr, budget_ns, threads,
                             &self.tuner.sizes[self.tuner.size_of(batch)], total)
        self.threads_used = outcome.threads
        return outcome.next, outcome.status, outcome.value

    def accumulate(self, x, y, weight, int64_t first_row, gradient, int threads, double loss, double total,
                   rows):
        cdef fb_feed feed = self.feed(x, y, weight, None, len(x), None)
        cdef address g = _data(gradient)
        cdef fb_per_sample samples
        cdef fb_per_sample *asked = NULL
        cdef fb_sums sums
        if rows is not None:
            samples.loss, samples.weight = <double *>_data(rows.loss), <double *>_data(rows.weight)
            samples.input_norms = <double *>_data(rows.input_norms)
            samples.delta_norms = <double *>_data(rows.delta_norms)
            samples.input_stride = _stride(rows.input_norms) // <int64_t>sizeof(double)
            samples.delta_stride = _stride(rows.delta_norms) // <int64_t>sizeof(double)
            samples.scale = _data(rows.scale)
            asked = &samples
        sums.loss = loss
        sums.weight = total
        with nogil:
            sums = fb_accumulate(&self.net, self.arena, &feed, first_row, g, threads, sums, asked)
        return sums.loss, sums.weight

    def forward(self, x, int64_t first_row, outputs, int threads):
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), outputs)
        with nogil:
            fb_forward(&self.net, self.arena, &feed, first_row, threads)

    def backward(self, x, int64_t first_row, dz, gradient, int threads):
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), None)
        cdef address d = _data(dz), g = _data(gradient)
        cdef int64_t stride = _stride(dz)
        with nogil:
            fb_backward(&self.net, self.arena, &feed, first_row, d, stride, g, threads)

    def update(self, gradient, double scale, double lr, int threads):
        cdef address g = _data(gradient)
        cdef int status
        with nogil:
            status = fb_update(&self.net, g, scale, lr, threads)
        return status

    def predict(self, x, outputs, arenas, int threads):
        """`arenas` is the memory of `threads` arenas, one behind the other."""
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), outputs)
        cdef address memory = _data(arenas)
        with nogil:
            fb_predict(&self.net, memory, self.arena_bytes, self.rows, &feed, threads)

    cdef bint takes(self, object y, int64_t n, fb_feed *feed):
        """Whether `y` can be used as it lies, for `n` rows; then `feed` points to it."""
        feed.y_stride = self.outputs * sizeof(float)
        if self.takes_labels and _plain(y, cnp.NPY_INT64, 1):
            feed.labels = self.labels
            return cnp.PyArray_DIM(<cnp.ndarray>y, 0) == n and _labels_in_range(
                <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>y), n, self.outputs, self.labels)
        if not _plain(y, cnp.NPY_FLOAT32, 2):
            if self.takes_labels or self.outputs != 1 or not _plain(y, cnp.NPY_FLOAT32, 1):
                return False
        elif cnp.PyArray_DIM(<cnp.ndarray>y, 1) != self.outputs:
            return False
        feed.y = <const char *>cnp.PyArray_DATA(<cnp.ndarray>y)
        return cnp.PyArray_DIM(<cnp.ndarray>y, 0) == n and (
            not self.takes_shares or _in_unit_interval(<const float *>feed.y, n * self.outputs))

    def fast_step(self, x, y, double lr):
        """See `Program.fast_step` of protocol.py."""
        cdef fb_feed feed
        cdef fb_sums sums
        cdef fb_outcome outcome
        cdef int threads
        if not _plain(x, cnp.NPY_FLOAT32, 2) or cnp.PyArray_DIM(<cnp.ndarray>x, 1) != self.inputs:
            return None
        feed.x = <const char *>cnp.PyArray_DATA(<cnp.ndarray>x)
        feed.x_stride = self.inputs * sizeof(float)
        feed.rows = feed.batch = cnp.PyArray_DIM(<cnp.ndarray>x, 0)
        feed.y = feed.outputs = NULL
        feed.labels = feed.order = NULL
        feed.weight = NULL
        # Python, and so a signal's handler, may run here but not below: it might step this trainer and move the arena
        threads = self.allowed(self.limit, feed.rows * self.flops_per_row + self.flops_per_step)
        if not self.lock.take():
            return None
        try:
            if self.pending is not None or threads > self.threads or not 0 < feed.rows <= self.rows or not self.takes(y, feed.rows, &feed):
                return None
            sums.loss = sums.weight = 0
            with nogil:
                outcome = fb_run(&self.net, self.arena, &feed, 0, 1, lr, 0, threads,
                                 &self.tuner.sizes[self.tuner.size_of(feed.rows)], &sums)
            if outcome.status != FB_OK:
                return None
            self.threads_used = outcome.threads
            return sums.loss / sums.weight if sums.weight else 0.0
        finally:
            self.lock.give()

    def fast_predict(self, x):
        """See `Program.fast_predict` of protocol.py."""
        cdef fb_feed feed
        cdef cnp.npy_intp shape[2]
        if not _plain(x, cnp.NPY_FLOAT32, 2) or cnp.PyArray_DIM(<cnp.ndarray>x, 1) != self.inputs:
            return None
        feed.rows = feed.batch = cnp.PyArray_DIM(<cnp.ndarray>x, 0)
        if not 0 < feed.rows <= self.rows or self.allowed(self.limit, feed.rows * self.flops_per_row) != 1:
            return None
        spare = self.take_spare()
        if spare is None:
            return None
        shape[0], shape[1] = feed.rows, self.outputs
        outputs = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT32, 0)
        feed.x = <const char *>cnp.PyArray_DATA(<cnp.ndarray>x)
        feed.x_stride = self.inputs * sizeof(float)
        feed.y = NULL
        feed.labels = feed.order = NULL
        feed.weight = NULL
        feed.outputs = <char *>cnp.PyArray_DATA(outputs)
        cdef address memory = _data(spare)
        with nogil:
            fb_predict(&self.net, memory, self.arena_bytes, self.rows, &feed, 1)
        self.keep_spare(spare)
        return outputs

    cpdef take_spare(self):
        """An arena that no call is using, or None."""
        try:
            return self.spares.pop()
        except IndexError:
            return None

    cpdef keep_spare(self, arena):
        """Keep `arena` for the next call. At most four, so that a burst of threads does not hold memory for ever."""
        if len(self.spares) < 4:
            self.spares.append(arena)
