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

    def report(self, int64_t batch, int asked, int threads, int64_t steps, int64_t ns):
        """What became of it."""
        cdef fb_stretch stretch
        stretch.threads = asked
        fb_report(&self.sizes[self.size_of(batch)], stretch, threads, steps * batch, ns)


# -- the fast path: what can be used as it lies ------------------------------------------------------------------------

cdef bint _labels_in_range(const int64_t *labels, int64_t n, int64_t classes, int64_t *copy) noexcept nogil:
    """Copies what it checks: another thread may write to the caller's array before the kernels index by it."""
    cdef int64_t i, label
    cdef bint good = True
    for i in range(n):
        label = labels[i]
        copy[i] = label
        good &= 0 <= label < classes
    return good


# Least and most of floats as targets; "values" may be anything, "masked" nothing. 5e-324 is the smallest above 0.
_RANGES = {"values": (-float("inf"), float("inf")), "classes": (0, 1), "binary": (0, 1), "counts": (0, float("inf")),
           "positive": (5e-324, float("inf")), "masked": (1, 0)}

ctypedef fused real:
    float
    double


cdef bint _between(const real *y, int64_t n, double least, double most) noexcept nogil:
    """False for NaN, too."""
    cdef int64_t i
    cdef bint good = True
    for i in range(n):
        good &= least <= y[i] <= most
    return good


_ROWS_OF_SOURCES = {np.dtype(name).str[1:]: row for row, name in enumerate(sources)}


# Flops of a step that, alone, is over sooner than the interpreter's lock would be handed to another thread and back.
cdef enum:
    _BRIEF = 100_000


cdef class Network:
    """An fb_network and references to the memory it points into."""
    cdef fb_network net
    cdef object held, held_in_arena, held_of_update
    cdef object held_scale
    cdef fb_input as_it_lies  # rows of elements
    cdef const fb_input *input_of_rows  # the same, or NULL without a scale
    cdef int64_t inputs, outputs
    cdef bint takes_labels, takes_any
    cdef double least, most
    cdef int kind  # of the elements, and their bytes
    cdef int64_t size
    cdef double flops_per_row, flops_per_step
    cdef object allowed, limit
    cdef double alone_below
    cdef Tuner tuner
    cdef Lock lock
    # of the arena
    cdef char *arena
    cdef int64_t arena_bytes, rows
    cdef int64_t *labels
    cdef list spares
    cdef public object pending  # rows of a forward that waits for its backward
    cdef public object running  # statistics that wait for the update
    cdef public int64_t least_rows  # from which on precision is known to pay: fewer take the careful path
    cdef readonly int threads_used
    cdef int threads  # that the arena has scratch for

    def __init__(self, str target, parameters, slots, buffers, steps, uint64_t seed, int loss, double loss_parameter,
                 per_output, tuple divisors, segments, bint uniform, norms, units, int64_t inputs, int64_t outputs,
                 str targets, double flops_per_row, double flops_per_step, allowed, double alone_below, limit, Lock lock,
                 double max_norm, double clip_value, bint columns_held, bint objective):
        """`targets` is what the loss takes, or "masked" for labels that the fast path leaves alone.

        ``allowed(limit, flops)`` is the number of threads for a piece of work: 1 below `alone_below` unless it is exact.

        A step costs flops_per_row for each of its rows, and flops_per_step whatever their number. `max_norm` and
        `clip_value` are 0 where nothing is clipped; `columns_held` says whether any stage has a column_norm.

        `objective`: as in csrc/fastbatch.h.
        """
        self.held = (parameters, slots, buffers, steps, per_output, units)
        self.as_it_lies.kind = _ROWS_OF_SOURCES[parameters.dtype.str[1:]]
        self.as_it_lies.size = self.as_it_lies.step = parameters.itemsize
        self.as_it_lies.scale = self.as_it_lies.shift = NULL
        self.as_it_lies.noise = 0
        self.input_of_rows = NULL
        self.net.kernels = fb_find_kernels(target.encode(), parameters.dtype.name.encode())
        self.size = self.net.kernels.size
        self.kind = cnp.NPY_FLOAT32 if self.size == sizeof(float) else cnp.NPY_FLOAT64
        self.net.parameters = _data(parameters)
        self.net.parameter_count = len(parameters)
        self.net.slots = _data(slots)
        self.net.buffers = _data(buffers)
        self.net.buffer_count = len(buffers)
        self.net.steps = <int64_t *>_data(steps)
        self.net.seed = seed
        self.net.loss = _loss(loss, loss_parameter, per_output, divisors)
        self.update_by(segments, uniform, norms, columns_held)
        if units is not None and units.itemsize != sizeof(fb_unit):
            raise ValueError("fb_unit of csrc/fastbatch.h and UNIT_DTYPE of native.py differ")
        self.net.units = <fb_unit *>_data(units)
        self.net.unit_count = 0 if units is None else len(units)
        self.net.max_norm, self.net.clip_value = max_norm, clip_value
        self.net.objective = objective
        self.inputs = inputs
        self.outputs = outputs
        self.takes_labels = targets == "classes"
        self.takes_any = targets == "values"
        self.least, self.most = _RANGES[targets]
        self.flops_per_row, self.flops_per_step = flops_per_row, flops_per_step
        self.allowed, self.alone_below = allowed, alone_below
        self.tuner = Tuner()
        self.limit = limit
        self.lock = lock
        self.spares = []
        self.threads_used = self.least_rows = 1

    def update_by(self, segments, bint uniform, norms, bint columns_held):
        """What updates which parameters from now on; no call may be running."""
        self.net.segments = _segments(segments)
        self.net.segment_count = len(segments)
        self.net.uniform = uniform
        self.net.norms = <double *>_data(norms)
        self.net.columns_held = columns_held
        self.held_of_update = segments, norms

    def place(self, arena, memory, labels):
        """Lay the network out as `arena` says: in `memory`, or for predict in memory of each call.

        `labels` (rows,) int64 is room for those of a step on the fast path.
        """
        if arena.stages.itemsize != sizeof(fb_stage):
            raise ValueError("fb_stage of csrc/fastbatch.h and STAGE_FIELDS of arena.py differ")
        self.held_in_arena = (arena.stages, memory, labels)
        self.net.stages = <const fb_stage *>_data(arena.stages)
        self.net.stage_count = len(arena.stages)
        self.net.y, self.net.row_loss, self.net.row_weight = arena.y, arena.row_loss, arena.row_weight
        self.net.row_share, self.net.gradient, self.net.running = arena.row_share, arena.gradient, arena.running
        self.net.scratch, self.net.scratch_bytes = arena.scratch, arena.scratch_bytes
        self.net.parts, self.net.part_bytes = arena.parts, arena.part_bytes
        self.threads = arena.threads
        self.arena = _data(memory)
        self.arena_bytes = arena.nbytes
        self.labels = <int64_t *>_data(labels)
        self.rows = arena.rows

    def scale_inputs(self, scale, shift):
        """Inputs are x * scale + shift from now on, (I,) elements; None for both: x."""
        self.held_scale = scale, shift
        self.as_it_lies.scale, self.as_it_lies.shift = _data(scale), _data(shift)
        self.input_of_rows = NULL if scale is None else &self.as_it_lies

    cdef const fb_input *describe(self, cnp.ndarray x, double noise, fb_input *input) except? NULL:
        """`input` filled in for `x` (n, I), or NULL where its rows can be read as they lie."""
        input[0] = self.as_it_lies
        input.kind = _ROWS_OF_SOURCES[x.dtype.str[1:]]
        input.size = cnp.PyArray_ITEMSIZE(x)
        input.step = input.size if cnp.PyArray_DIM(x, 1) == 1 else cnp.PyArray_STRIDE(x, 1)
        input.noise = noise
        if noise == 0 and input.kind == self.as_it_lies.kind and input.step == input.size and cnp.PyArray_STRIDE(x, 0) >= 0:
            return self.input_of_rows
        return input

    cdef fb_feed feed(self, x, y, weight, order, int64_t batch, int64_t piece, outputs, fb_input *input,
                      double noise=0) except *:
        """`input` is room for what it may point to."""
        cdef fb_feed feed
        feed.x = _data(x)
        feed.x_stride = _stride(x)
        feed.input = self.describe(x, noise, input)
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
        feed.batch, feed.piece = batch, piece
        feed.outputs = _data(outputs)
        feed.mix_share = NULL
        feed.mix_shift = NULL
        return feed

    def run(self, x, y, weight, order, int64_t batch, int64_t piece, outputs, int64_t first, int64_t last,
            cnp.ndarray lrs, int64_t budget_ns, int threads, cnp.ndarray sums, double noise, share, shift):
        """Returns next step, status, what was not finite; `sums` (3,) float64 is added to."""
        cdef fb_input input
        cdef fb_feed feed = self.feed(x, y, weight, order, batch, piece, outputs, &input, noise)
        feed.mix_share, feed.mix_shift = <const double *>_data(share), <const int64_t *>_data(shift)
        cdef const double *rates = <const double *>cnp.PyArray_DATA(lrs)
        cdef fb_sums *total = <fb_sums *>cnp.PyArray_DATA(sums)
        cdef fb_outcome outcome
        with nogil:
            outcome = fb_run(&self.net, self.arena, &feed, first, last, rates, budget_ns, threads,
                             &self.tuner.sizes[self.tuner.size_of(piece)], total)
        self.threads_used = outcome.threads
        return outcome.next, outcome.status, outcome.value

    def accumulate(self, x, y, weight, int64_t first_row, gradient, int threads, double loss, double total,
                   rows):
        cdef fb_input input
        cdef fb_feed feed = self.feed(x, y, weight, None, len(x), len(x), None, &input)
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
            samples.norm_norms = <double *>_data(rows.norm_norms)
            samples.scale = _data(rows.scale)
            asked = &samples
        sums.loss = loss
        sums.weight = total
        sums.norm = 0
        with nogil:
            sums = fb_accumulate(&self.net, self.arena, &feed, first_row, g, threads, sums, asked)
        return sums.loss, sums.weight

    def forward(self, x, int64_t first_row, outputs, int threads, running):
        cdef fb_input input
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), len(x), outputs, &input)
        cdef address moved = _data(running)
        with nogil:
            fb_forward(&self.net, self.arena, &feed, first_row, threads, moved)

    def backward(self, x, int64_t first_row, dz, gradient, int threads):
        cdef fb_input input
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), len(x), None, &input)
        cdef address d = _data(dz), g = _data(gradient)
        cdef int64_t stride = _stride(dz)
        with nogil:
            fb_backward(&self.net, self.arena, &feed, first_row, d, stride, g, threads)

    def update(self, gradient, double scale, double lr, int threads, running):
        """`running` is what the buffers become, or None."""
        cdef address g = _data(gradient), moved = _data(running)
        cdef int status
        with nogil:
            status = fb_update(&self.net, g, scale, lr, threads, moved)
        return status

    def predict(self, x, outputs, arenas, int threads):
        """`arenas` is the memory of `threads` arenas, one behind the other."""
        cdef fb_input input
        cdef fb_feed feed = self.feed(x, None, None, None, len(x), len(x), outputs, &input)
        cdef address memory = _data(arenas)
        with nogil:
            fb_predict(&self.net, memory, self.arena_bytes, self.rows, &feed, threads)

    cdef int threads_for(self, double flops) except -1:
        if flops < self.alone_below and not fb_exact():  # what `allowed` says after 90 ns
            return 1
        return self.allowed(self.limit, flops)

    cdef bint takes(self, object y, int64_t n, fb_feed *feed):
        """Whether `y` can be used as it lies, for `n` rows; then `feed` points to it."""
        cdef lying found
        feed.y_stride = self.outputs * self.size
        if self.takes_labels and _lies(y, cnp.NPY_INT64, 1, &found):
            feed.labels = self.labels
            return found.rows == n and _labels_in_range(<const int64_t *>found.data, n, self.outputs, self.labels)
        if not _lies(y, self.kind, 2, &found):
            if self.takes_labels or self.outputs != 1 or not _lies(y, self.kind, 1, &found):
                return False
        elif found.columns != self.outputs:
            return False
        feed.y = found.data
        return found.rows == n and (
            self.takes_any
            or (_between(<const float *>feed.y, n * self.outputs, self.least, self.most) if self.kind == cnp.NPY_FLOAT32
                else _between(<const double *>feed.y, n * self.outputs, self.least, self.most)))

    cdef fb_outcome one_step(self, const fb_feed *feed, double lr, int threads, fb_sums *sums) noexcept nogil:
        return fb_run(&self.net, self.arena, feed, 0, 1, &lr, 0, threads,
                      &self.tuner.sizes[self.tuner.size_of(feed.rows)], sums)

    def fast_step(self, x, y, double lr):
        """See `Program.fast_step` of protocol.py."""
        cdef fb_feed feed
        cdef fb_sums sums
        cdef fb_outcome outcome
        cdef lying found
        cdef int threads
        cdef double flops
        if not _lies(x, self.kind, 2, &found) or found.columns != self.inputs:
            return None
        feed.x = found.data
        feed.x_stride = self.inputs * self.size
        feed.input = self.input_of_rows
        feed.rows = feed.batch = feed.piece = found.rows
        feed.y = feed.outputs = NULL
        feed.labels = feed.order = feed.mix_shift = NULL
        feed.weight = feed.mix_share = NULL
        # Python, and so a signal's handler, may run here but not below: it might step this trainer and move the arena
        flops = feed.rows * self.flops_per_row + self.flops_per_step
        threads = self.threads_for(flops)
        if not self.lock.take():
            return None
        try:
            if (self.pending is not None or self.running is not None or threads > self.threads
                    or not self.least_rows <= feed.rows <= self.rows or not self.takes(y, feed.rows, &feed)):
                return None
            sums.loss = sums.weight = sums.norm = 0
            if threads == 1 and flops < _BRIEF:
                outcome = self.one_step(&feed, lr, threads, &sums)
            else:
                with nogil:
                    outcome = self.one_step(&feed, lr, threads, &sums)
            if outcome.status != FB_OK:
                return None
            self.threads_used = outcome.threads
            return sums.loss / sums.weight if sums.weight else 0.0
        finally:
            self.lock.give()

    def fast_predict(self, x):
        """See `Program.fast_predict` of protocol.py."""
        cdef fb_feed feed
        cdef lying found
        cdef cnp.npy_intp shape[2]
        if not _lies(x, self.kind, 2, &found) or found.columns != self.inputs:
            return None
        feed.rows = feed.batch = found.rows
        if not 0 < feed.rows <= self.rows or self.threads_for(feed.rows * self.flops_per_row) != 1:
            return None
        spare = self.take_spare()
        if spare is None:
            return None
        shape[0], shape[1] = feed.rows, self.outputs
        outputs = cnp.PyArray_EMPTY(2, shape, self.kind, 0)
        feed.x = found.data
        feed.x_stride = self.inputs * self.size
        feed.input = self.input_of_rows
        feed.y = NULL
        feed.labels = feed.order = feed.mix_shift = NULL
        feed.weight = feed.mix_share = NULL
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
