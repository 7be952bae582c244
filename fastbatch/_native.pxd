"""What `_native` uses of the C side; only members that it touches are named."""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "fastbatch.h" nogil:
    ctypedef struct fb_stage:
        pass
    ctypedef struct fb_loss:
        int kind
        double parameter
        const void *per_output
        double of_value, of_slope
    ctypedef struct fb_optimizer:
        pass
    ctypedef struct fb_segment:
        fb_optimizer optimizer
    ctypedef struct fb_unit:
        double squares
    ctypedef struct fb_slice:
        void *p
        const void *g
        void *slots
        int64_t slot_stride
        int64_t n
        double clip_value
    ctypedef struct fb_kernels:
        const char *target
        int64_t size
        int lanes, tile_rows, tile_vectors
        void (*dense_forward)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, const void *, int, int64_t,
                              int64_t, void *, void *, int64_t) noexcept nogil
        void (*slope)(int, int64_t, int64_t, const void *, void *, int64_t) noexcept nogil
        void (*dense_backward_rows)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, int64_t,
                                    void *, int64_t) noexcept nogil
        void (*dense_backward_weights)(int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t,
                                       int64_t, int64_t, int, void *, void *, void *, void *) noexcept nogil
        void (*loss)(const fb_loss *, int64_t, int64_t, const void *, int64_t, const void *, int64_t, const double *,
                     void *, int64_t, double *) noexcept nogil
    const char **fb_activation_names
    const char **fb_loss_names
    const char **fb_source_names
    const char **fb_optimizer_names
    const char **fb_optimizer_hyper
    const int *fb_optimizer_normed
    int fb_register(void *, void *)
    void fb_update_tensor(const fb_kernels *, const fb_optimizer *, double, int64_t, double, fb_slice)
    ctypedef struct fb_target:
        const char *name
        int usable
        const char *reason
    const fb_target *fb_targets()
    const fb_target *fb_bf16_targets()
    const fb_kernels *fb_find_kernels(const char *, const char *)
    ctypedef struct fb_network:
        const fb_kernels *kernels
        const fb_stage *stages
        int64_t stage_count
        char *parameters
        int64_t parameter_count
        char *slots
        char *buffers
        int64_t buffer_count
        int64_t *steps
        uint64_t seed
        fb_loss loss
        const fb_segment *segments
        int64_t segment_count
        int uniform
        double *norms
        fb_unit *units
        int64_t unit_count
        int64_t y, row_loss, row_weight, row_share, gradient, running, scratch, scratch_bytes, parts, part_bytes
        double max_norm, clip_value
        int columns_held
        int objective
    ctypedef struct fb_input:
        int kind
        int64_t size, step
        const void *scale
        const void *shift
        double noise
    ctypedef struct fb_feed:
        const char *x
        int64_t x_stride
        const fb_input *input
        const char *y
        int64_t y_stride
        const int64_t *labels
        const double *weight
        const int64_t *order
        int64_t rows, batch, piece
        char *outputs
        const double *mix_share
        const int64_t *mix_shift
    ctypedef struct fb_sums:
        double loss, weight, norm
    ctypedef struct fb_per_sample:
        double *loss
        double *weight
        double *input_norms
        double *delta_norms
        int64_t input_stride, delta_stride
        double *norm_norms
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
    void fb_report(fb_tuner *, fb_stretch, int, int64_t, int64_t)
    void fb_set_thread_policy(int, int)
    int fb_exact()
    fb_outcome fb_run(const fb_network *, char *, const fb_feed *, int64_t, int64_t, const double *, int64_t, int,
                      fb_tuner *, fb_sums *)
    fb_sums fb_accumulate(const fb_network *, char *, const fb_feed *, int64_t, char *, int, fb_sums,
                          const fb_per_sample *)
    void fb_forward(const fb_network *, char *, const fb_feed *, int64_t, int, char *)
    void fb_backward(const fb_network *, char *, const fb_feed *, int64_t, const char *, int64_t, char *, int)
    int fb_update(const fb_network *, const char *, double, double, int, const char *)
    void fb_predict(const fb_network *, char *, int64_t, int64_t, const fb_feed *, int)
    double fb_measure_peak(const fb_kernels *, int, int64_t)
    double fb_measure_barrier(int, int64_t)
    void fb_permutation(const fb_kernels *, int64_t, uint64_t, unsigned int, int64_t, int64_t, int64_t *)
    int FB_OK, FB_LOSS_NOT_FINITE, FB_GRADIENT_NOT_FINITE, FB_BLOCK_ROWS, FB_BLOCK_COLUMNS, FB_BLOCK_DEPTH
    int FB_PARTS, FB_PART_ROWS, FB_MAX_HYPER, FB_NORM_BLOCK, FB_STATS


cdef extern from "simd/fpmode.h" nogil:
    ctypedef unsigned long fp_mode
    fp_mode fp_enter()
    void fp_leave(fp_mode)
