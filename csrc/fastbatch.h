/* fastbatch: the only header Cython reads.
 *
 * Shapes: B batch rows, I inputs, O outputs, N parameters, S slots. Row-major. Element type: the table's dtype.
 * Offsets into the parameters and the arena are in bytes, -1 meaning absent; leading dimensions are in elements.
 */
#ifndef FASTBATCH_H
#define FASTBATCH_H

#include <stddef.h>
#include <stdint.h>

/* [dense] [norm] [activation] [dropout]; laid out by fastbatch/arena.py, STAGE_FIELDS in the same order. */
typedef struct fb_stage {
    int64_t inputs, outputs;
    int64_t w, b;              /* into the parameters; b lies right behind w, as row I of it */
    int64_t product_activation; /* row of activations.def, behind the product: identity where a norm follows */
    int64_t activation;        /* the stage's own */
    int64_t threshold, layer;  /* dropout keeps a byte below threshold; 256 keeps all */
    int64_t x, x_ld;           /* input rows; x of stage 0 is the gather's target */
    int64_t out, out_ld;       /* what the next stage reads; all below but stats have the same leading dimension */
    int64_t z, a;              /* where product, or norm, and activation go; any of z, a, out may be the same memory */
    int64_t saved;             /* what the slope reads: z, a or nothing */
    int64_t dy, dz;            /* gradients with respect to out, then z; and to the product. One where there is no norm */
    int64_t gamma, beta;       /* into the parameters; absent where there is no norm */
    int64_t mean, var;         /* running statistics, into the buffers; absent for a norm over units */
    int64_t ghost;             /* rows that share their statistics; 0 for all of a batch */
    int64_t u;                 /* what the norm reads; absent where that is the input */
    int64_t stats;             /* (B, 2) as norm_rows has it; over rows, FB_STATS rows for each group; -1: not kept */
    double eps, momentum;
    double column_norm;        /* an update holds the columns of w to it; 0: any */
} fb_stage;

/* Of a group: mean, variance, factor, and the sums of dy along the normalised x and alone. */
enum { STATS_MEAN, STATS_VAR, STATS_FACTOR, STATS_ALONG, STATS_SUM, FB_STATS };

typedef struct fb_loss {
    int kind;                  /* row of losses.def */
    double parameter;
    const void *per_output;    /* (O,) or NULL */
    double of_value, of_slope; /* of a mean over elements: what their sums, and what their slopes are divided by */
} fb_loss;

#define FB_MAX_THREADS 64
/* Purposes, bits 16 to 31 of a counter's third word; 3 and 5 are those of fastbatch/ops/random.py alone. */
enum { PHILOX_DROPOUT = 1, PHILOX_SHUFFLE = 2, PHILOX_NOISE = 4 };

/* The gradient of the weights is made in blocks of rows (of w), columns and depth (rows of the batch). A thread's scratch
 * holds one block of sums and one of x: ROWS * (min(COLUMNS, padded O) + min(DEPTH, B)) elements at most. */
#define FB_BLOCK_ROWS 120 /* a multiple of every target's tile rows: strips of x are whole tiles */
#define FB_BLOCK_COLUMNS 512
#define FB_BLOCK_DEPTH 336

/* The gradient of a small network is summed from parts of the batch, so many at a time (gradient.c), between barriers:
 * 4-32-16-1 of 2048 rows on two threads 85 us with 8, 72 with 32, 68 with 128. */
#define FB_PARTS 32
#define FB_PART_ROWS 32

/* Operands on their way into the caches: the calling thread's own memory, aligned to 64 bytes, allocated on first use, as
 * it is too much for the stack of some platforms' threads (pool.c). For bfloat16, in its elements: 512 KiB that stay in L2,
 * 16 KiB in L1. */
#define FB_PACK_RESIDENT 262144
#define FB_PACK_PASSING 8192
#define FB_PACK_BYTES (2 * (FB_PACK_RESIDENT + FB_PACK_PASSING))
void *fb_pack(void);
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FB_HAS_BF16
#endif

#define FB_MAX_SLOTS 3
#define FB_MAX_HYPER 8
#define FB_MAX_CONSTANTS 12
/* Constants of every rule: what l1 adds to the gradient, times sign(p), and the share that p loses before the rule. */
#define FB_L1 (FB_MAX_CONSTANTS - 1)
#define FB_AHEAD (FB_MAX_CONSTANTS - 2)

typedef struct fb_optimizer {
    int64_t rule;              /* row of optimizers.def */
    double l1, lr_factor;      /* the rate of the step is multiplied by lr_factor */
    double by_weight;          /* not 0: weight_decay is divided by the total weight of the batch */
    double ahead;              /* weight decay in front of the rule: p loses the rate times this of itself */
    double hyper[FB_MAX_HYPER];
} fb_optimizer;

/* Elements [begin, end) of the parameters and what updates them; laid out by fastbatch/backends/native.py. */
typedef struct fb_segment {
    int64_t begin, end;
    fb_optimizer optimizer;
} fb_segment;

/* The norms of a tensor are sums over blocks of so many elements of it, in order. */
#define FB_NORM_BLOCK 4096

/* A stretch of parameters and what updates them: p, slots and g are moved along together. */
typedef struct fb_slice {
    void *p;                   /* (n,) */
    const void *g;             /* (n,) gradient sum; `scale` makes it a gradient */
    void *slots;               /* slot s of the stretch starts at slots + s * slot_stride elements */
    int64_t slot_stride;
    int64_t n;
    double clip_value;         /* no element of the gradient is larger; 0: any. None is NaN then */
} fb_slice;

/* Rows that will be gathered next: fetched a few lines at a time between tiles, which hides most of their latency. */
typedef struct fb_ahead {
    const char *x;
    int64_t stride, bytes;     /* of a row */
    const int64_t *order;
    int64_t rows, at;          /* rows left; byte of the first of them */
} fb_ahead;

/* How rows of a caller's array become inputs. */
typedef struct fb_input {
    int kind;                  /* row of sources.def */
    int64_t size, step;        /* bytes of an element, and from one column to the next */
    const void *scale, *shift; /* (I,) elements: x * scale + shift; NULL together */
    double noise;              /* standard deviation of what is added to that in training; 0: nothing */
} fb_input;

struct fb_network;

/* One table per target and dtype. Nothing here allocates, locks or fails. */
typedef struct fb_kernels {
    const char *target, *dtype;
    int lanes, tile_rows, tile_vectors;
    int64_t size;              /* bytes of an element */

    /* dst (rows, width) <- src rows index[0..rows) or, without index, 0..rows; src_stride in bytes */
    void (*gather)(int64_t rows, int64_t width, const char *src, int64_t src_stride, const int64_t *index, void *dst,
                   int64_t dst_ld);
    /* The same from an array that `input` describes, aligned for its type. */
    void (*convert)(const fb_input *input, int64_t rows, int64_t width, const char *src, int64_t src_stride,
                    const int64_t *index, void *dst, int64_t dst_ld);
    /* Row r of dst (rows, width) becomes s = share[r * share_step] of itself and 1 - s of a row of such an array, or
     * without `input` of one of elements. |error| <= 3u (s |own| + (1 - s) |other|). */
    void (*mix)(const fb_input *input, int64_t rows, int64_t width, const char *src, int64_t src_stride,
                const int64_t *index, const double *share, int64_t share_step, void *dst, int64_t dst_ld);
    /* dst (rows, width) <- one-hot rows of labels; share[r] *= per_output[label] where given */
    void (*one_hot)(int64_t rows, int64_t width, const int64_t *labels, const int64_t *index, const void *per_output,
                    void *dst, int64_t dst_ld, double *share);
    /* The same of one-hot rows and other labels; part[r] += rest[r], times per_output[label] where given. */
    void (*mix_labels)(int64_t rows, int64_t width, const int64_t *labels, const int64_t *index, const void *per_output,
                       const double *share, const double *rest, void *dst, int64_t dst_ld, double *part);
    /* Columns [begin, end) of z (B, O) = x w + b; a = activation(z), which may be the same memory. 2BI(end - begin) flops.
     * Layers of up to 4 outputs may be made whole whatever the columns: they are not to be split.
     * |error of z| <= gamma(I + 1) (|x| |w| + |b|), gamma(n) = n u / (1 - n u), for any target. */
    void (*dense_forward)(int64_t rows, int64_t inputs, int64_t outputs, const void *x, int64_t x_ld, const void *w,
                          const void *b, int activation, int64_t begin, int64_t end, void *z, void *a, int64_t out_ld);
    /* a = activation(z), and dz *= slope(saved) */
    void (*activate)(int activation, int64_t rows, int64_t width, const void *z, int64_t z_ld, void *a, int64_t a_ld);
    void (*slope)(int activation, int64_t rows, int64_t width, const void *saved, void *dz, int64_t ld);
    /* Columns [begin, end) of dx (B, I) = dz w^T. 2B(end - begin)O flops. Layers of up to 4 inputs may be made whole. */
    void (*dense_backward_rows)(int64_t rows, int64_t inputs, int64_t outputs, const void *dz, int64_t dz_ld,
                                const void *w, int64_t begin, int64_t end, void *dx, int64_t dx_ld);
    /* Rows [begin, end) of dw = x^T dz, row I being db = the column sums of dz; with `add` on top of what is there.
     * 2B(end - begin)O flops. Like w above, dz is read in whole vectors inside (B, dz_ld) and never beyond. `ahead` may
     * be NULL. */
    void (*dense_backward_weights)(int64_t batch, int64_t inputs, int64_t outputs, const void *x, int64_t x_ld,
                                   const void *dz, int64_t dz_ld, int64_t begin, int64_t end, int add, void *dw,
                                   void *db, void *scratch, fb_ahead *ahead);
    /* The same sums, met by the optimizer while in cache, instead of written; `slice` is that of row 0 of w, `ahead` may
     * be NULL. */
    void (*dense_update)(int64_t batch, int64_t inputs, int64_t outputs, const void *x, int64_t x_ld, const void *dz,
                         int64_t dz_ld, int64_t begin, int64_t end, int rule, const double *constants, double scale,
                         fb_slice slice, void *scratch, fb_ahead *ahead);
    /* All stages on one row, for networks of products and activations alone, in the bits of the kernels above: z and a of
     * every stage; then, from dy of the last, which is overwritten, dz of every stage, and whether no element of the
     * gradient can overflow; then the gradient (N,), or what a rule without norms makes of it, which is not clipped.
     * NULL where there is no such form. */
    void (*row_forward)(const struct fb_network *net, char *arena, const void *x);
    int (*row_backward)(const struct fb_network *net, char *arena, const void *x);
    void (*row_gradient)(const struct fb_network *net, const char *arena, const void *x, void *gradient);
    void (*row_update)(const struct fb_network *net, char *arena, const void *x, int rule, const double *constants,
                       double scale);
    /* Random words: two of 64 bits for each of the `count` Philox counters from {first, purpose} on; room for a multiple
     * of 8 counters. */
    void (*philox)(uint64_t first, uint64_t purpose, uint64_t key, int64_t count, uint64_t *words);
    /* dst = src where kept, scaled by 256 / threshold, else 0; rows are first_row .. of the logical batch */
    void (*dropout)(int64_t rows, int64_t width, const void *src, void *dst, int64_t ld, uint64_t seed, uint32_t update,
                    uint32_t layer, int64_t first_row, int64_t threshold);
    /* x += std * Gaussian noise; rows are first_row .. of the logical batch */
    void (*noise)(int64_t rows, int64_t width, void *x, int64_t ld, uint64_t seed, uint32_t update, int64_t first_row,
                  double std);
    /* da (B, O) = gradient of the loss sum; row_loss[r] = weight[r] * loss of row r. y is (B, O), weight is a factor.
     * Padding of da's last row may become zero. */
    void (*loss)(const fb_loss *loss, int64_t rows, int64_t outputs, const void *a, int64_t a_ld, const void *y,
                 int64_t y_ld, const double *weight, void *da, int64_t da_ld, double *row_loss);
    void (*update)(int rule, const double *constants, double scale, fb_slice slice);
    /* For rules that are normed: sums of the squares of p and of u, in double, in an order that depends on n only. */
    void (*update_norms)(int rule, const double *constants, double scale, fb_slice slice, double *norms);
    /* Columns [begin, end) of w (rows, width) whose norm exceeds `most` are scaled down to it. Squares (of float32: exact) are
     * summed in double, one chain a column; |error| of an element <= 2u. 2 rows (end - begin) flops, as many where any is. */
    void (*hold_columns)(int64_t rows, int64_t width, int64_t begin, int64_t end, double most, void *w);
    /* Largest magnitude in (rows, width) as bits, ordered like the magnitudes with Inf and NaN on top. */
    uint64_t (*peak)(int64_t rows, int64_t width, const void *x, int64_t ld);
    double (*peak_value)(uint64_t bits);
    /* sums (n,) += `count` parts (n,), `stride` elements apart, one after the other; returns peak. */
    uint64_t (*fold)(int64_t n, int64_t count, const void *parts, int64_t stride, void *sums);
    /* norms[r] = squared Euclidean norm of row r of x (rows, width): squares (of float32: exact) summed in double in an
     * order that depends on the width only. Relative error <= gamma(width) of double. 2 rows width flops. */
    void (*row_norms)(int64_t rows, int64_t width, const void *x, int64_t ld, double *norms);
    /* Sum of the squares of (n,) elements, in short chains of elements: relative error below 50 u, if none of them is of
     * a size whose square leaves the range. */
    double (*squares)(int64_t n, const void *x);
    /* Row r of x (rows, width) *= scale[r]. */
    void (*scale_rows)(int64_t rows, int64_t width, void *x, int64_t ld, const void *scale);
    /* Norm over units: y = gamma (x - mean) factor + beta by rows, factor = 1 / sqrt(variance + eps). stats (rows, 2) are
     * mean and factor, or NULL; x may be y. A row's bits depend on its width only. */
    void (*norm_rows)(int64_t rows, int64_t width, const void *x, int64_t x_ld, double eps, const void *gamma,
                      const void *beta, void *stats, void *y, int64_t y_ld);
    void (*norm_rows_backward)(int64_t rows, int64_t width, const void *x, int64_t x_ld, const void *stats,
                               const void *gamma, const void *dy, int64_t dy_ld, void *dx, int64_t dx_ld);
    /* Of columns [begin, end): dgamma = sum over rows of dy (x - mean) factor, dbeta = sum of dy, each one chain; with
     * `add` on top of what is there. */
    void (*norm_rows_sums)(int64_t rows, int64_t begin, int64_t end, const void *x, int64_t x_ld, const void *stats,
                           const void *dy, int64_t dy_ld, int add, void *dgamma, void *dbeta);
    /* norms[r] += squared norm of what row r adds to dgamma and dbeta, summed in double. */
    void (*norm_rows_norms)(int64_t rows, int64_t width, const void *x, int64_t x_ld, const void *stats, const void *dy,
                            int64_t dy_ld, double *norms);
    /* Norm over rows: the same with mean and factor (width,) by columns, of columns [begin, end) where given. Moments are
     * one chain for each column. `group` is the number of rows whose sums `along` and `sum` are. */
    void (*norm_moments)(int64_t rows, int64_t begin, int64_t end, const void *x, int64_t x_ld, void *mean, void *var);
    void (*norm_factors)(int64_t width, const void *var, double eps, void *factor);
    void (*norm_columns)(int64_t rows, int64_t width, const void *x, int64_t x_ld, const void *mean, const void *factor,
                         const void *gamma, const void *beta, void *y, int64_t y_ld);
    void (*norm_columns_sums)(int64_t rows, int64_t begin, int64_t end, const void *x, int64_t x_ld, const void *mean,
                              const void *factor, const void *dy, int64_t dy_ld, int add, void *dgamma, void *dbeta);
    void (*norm_columns_backward)(int64_t rows, int64_t width, const void *x, int64_t x_ld, const void *mean,
                                  const void *factor, const void *gamma, int64_t group, const void *along,
                                  const void *sum, const void *dy, int64_t dy_ld, void *dx, int64_t dx_ld);
    /* running (1 - momentum) + momentum value unbiased, of columns [begin, end) */
    void (*norm_running)(int64_t begin, int64_t end, const void *value, double unbiased, double momentum, void *running);
    /* Multiply-adds in registers, for the ceiling; returns the flops made, adds to `sum` so that they are made. */
    int64_t (*multiply_adds)(int64_t loops, double *sum);
    double limit;              /* largest finite element */
} fb_kernels;

/* -- registries (registry.c): names in row order, NULL at the end --------------------------------------------------- */
/* Rows from FB_OWN on are a user's own operations, whose functions are compiled elsewhere and work on `n` contiguous
 * elements of one dtype: of an activation value(n, a), in place, and slope(n, saved, d), which multiplies d; of a loss
 * elements(n, a, y, values, slopes); of an optimizer prepare(lr, t, hyper, constants) and
 * move(n, p, g, slots, stride, constants). */
#define FB_OWN (1 << 16)
#define FB_MOST_OWN 1024
typedef void (*fb_own_value)(int64_t, void *);
typedef void (*fb_own_slope)(int64_t, const void *, void *);
typedef void (*fb_own_loss)(int64_t, const void *, const void *, void *, void *);
typedef void (*fb_own_prepare)(double, double, const double *, double *);
typedef void (*fb_own_move)(int64_t, void *, const void *, void *, int64_t, const double *);
typedef union fb_own {
    void *address;
    fb_own_value value;
    fb_own_slope slope;
    fb_own_loss loss;
    fb_own_prepare prepare;
    fb_own_move move;
} fb_own;
extern fb_own fb_own_rows[FB_MOST_OWN][2];
/* The row of an operation of these functions; -1 where there are FB_MOST_OWN. Not for two threads at once. */
int fb_register(void *first, void *second);
extern const char *const fb_activation_names[];
extern const char *const fb_loss_names[];
extern const char *const fb_source_names[];
extern const char *const fb_optimizer_names[];
extern const char *const fb_optimizer_hyper[];  /* comma-separated names, in the order of fb_optimizer.hyper */
extern const int fb_optimizer_slots[];
extern const int fb_optimizer_normed[];         /* whether norms of whole tensors enter */
/* `constants` (FB_MAX_CONSTANTS,) of update t, counted from 1, at gradient = scale * sum. `norms` (2,): of the parameters
 * and of u, 0 while they are being taken; NULL where the rule is not normed. */
void fb_prepare(const fb_optimizer *optimizer, double lr, int64_t t, double scale, const double *norms,
                double *constants);
/* One update of a tensor on its own. */
void fb_update_tensor(const fb_kernels *kernels, const fb_optimizer *optimizer, double lr, int64_t t, double scale,
                      fb_slice slice);
/* Elements [begin, begin + FB_NORM_BLOCK) of a slice, or as many as it has. */
static inline fb_slice fb_part_of(const fb_kernels *kernels, fb_slice s, int64_t begin)
{
    const int64_t left = s.n - begin, skip = begin * kernels->size;
    return (fb_slice){(char *)s.p + skip, (const char *)s.g + skip, (char *)s.slots + skip, s.slot_stride,
                      left < FB_NORM_BLOCK ? left : FB_NORM_BLOCK, s.clip_value};
}

/* -- targets (dispatch.c) ------------------------------------------------------------------------------------------- */
typedef struct fb_target {
    const char *name;
    int usable;
    const fb_kernels *f32, *f64; /* by dtype; NULL where there is none */
    const char *reason;        /* not NULL where a table of products in bfloat16 is not usable */
} fb_target;
/* Best last; NULL name at the end. */
const fb_target *fb_targets(void);
/* The same for tables whose products are in bfloat16, and only those: `reason` says why one is not usable. */
const fb_target *fb_bf16_targets(void);
/* Of either list by name, or NULL. */
const fb_target *fb_find_target(const char *name);
/* Its table for "float32" or "float64", or NULL. */
const fb_kernels *fb_find_kernels(const char *target, const char *dtype);

/* -- threads (pool.c) ----------------------------------------------------------------------------------------------- */
typedef void (*fb_task)(void *context, int thread, int threads);
/* What to do about a helper that sleeps: leave it, unless the caller comes back so soon that it would be of use then; go
 * on without it and wake it for the next task; or start with it, which costs the first barrier 50 to 80 us. */
typedef enum fb_patience { FB_TAKE_AWAKE, FB_WAKE_PARKED, FB_WAIT_FOR_PARKED } fb_patience;
/* Runs task on up to `threads` threads, the caller being thread 0, and returns how many: fewer where other callers have
 * their share of the CPUs, where helpers are parked, or cannot be started. */
int fb_parallel(fb_task task, void *context, int threads, fb_patience patience);
/* All threads of the running task; may be called any number of times. */
void fb_wait_for_all(int threads);
/* For thread 0: the task had better end soon and start anew, because other callers have come or a helper has woken. */
int fb_team_is_stale(void);
/* CPUs granted to the process besides its affinity mask (0: no limit), and whether to take thread counts literally. */
void fb_set_thread_policy(int quota, int exact);
int fb_exact(void);
/* Flops from which on it pays to wait for a helper that sleeps: about 200 us of one core. */
#define FB_WORTH_WAKING 3e7

/* -- how many threads (tune.c) -------------------------------------------------------------------------------------- */
/* What was measured of one program and one size of batch. Zero is a valid start. */
typedef struct fb_tuner {
    int threads;               /* the choice */
    int most;                  /* that is tried */
    int other;                 /* what it is being compared with; 0 when nothing is */
    int turn, stride, misses;  /* of the comparison */
    int upward;                /* next time compare with more threads, not fewer */
    int64_t clock, next;       /* time spent in steps so far, and when the next comparison is due, ns */
    double lost;               /* ns that the comparison has cost beyond the choice */
    double rate;               /* ns per row with the choice, when last seen; 0 when not yet */
    double rates[2][3];        /* of the comparison: choice, other */
    double ns, rows;           /* with the choice since the last comparison */
    double half_ns, half_rows; /* the first of them; 0 when not yet */
    double mean;               /* ns per row of those, in the better half, when the comparison began; 0: too few */
    int former;                /* choice, while the new one is on trial; 0 when none is */
    double former_rate;        /* what the new one must not exceed */
} fb_tuner;

/* A stretch of steps to run, and how. */
typedef struct fb_stretch {
    int threads;
    fb_patience patience;
    int64_t steps;             /* at most */
    int64_t until;             /* time, ns: stop between steps then */
} fb_stretch;

/* The next of up to `steps` steps of `batch` rows. `most` threads are the start and the bound, `flops` is the work of a
 * step, `now` CLOCK_MONOTONIC in ns. */
fb_stretch fb_choose_threads(fb_tuner *tuner, int most, int64_t steps, int64_t batch, double flops,
                             int64_t now);
/* What became of it: threads that ran, rows done, time taken. */
void fb_report(fb_tuner *tuner, fb_stretch stretch, int threads, int64_t rows, int64_t ns);

/* -- programs (run.c) ----------------------------------------------------------------------------------------------- */
/* Parameters [begin, end), whole rows of one stage's weights or the parameters of its norm, and the sum of the squares of
 * their gradient; laid out by fastbatch/backends/native.py. */
typedef struct fb_unit {
    int64_t begin, end;
    double squares;
} fb_unit;

typedef struct fb_network {
    const fb_kernels *kernels;
    const fb_stage *stages;
    int64_t stage_count;
    char *parameters;
    int64_t parameter_count;
    char *slots;               /* (S, N) */
    char *buffers;             /* running statistics */
    int64_t buffer_count;
    int64_t *steps;            /* updates made; run and update count here */
    uint64_t seed;
    fb_loss loss;
    /* What updates the parameters, in order and without overlap; what no segment has is frozen. `uniform`: there is one, of
     * all parameters, and its constants follow from the rate alone. */
    const fb_segment *segments;
    int64_t segment_count;
    int uniform;
    double *norms;             /* (blocks of all segments, 2) where the rule is normed, else NULL */
    int64_t y, row_loss, row_weight, row_share, gradient, running, scratch; /* arena offsets */
    int64_t scratch_bytes;     /* of one thread */
    int64_t parts, part_bytes; /* gradients of FB_PARTS parts of a batch, one behind the other; -1 where N is large */
    fb_unit *units;            /* all parameters, in order, where max_norm is not 0 */
    int64_t unit_count;
    double max_norm;           /* of the mean gradient, which is scaled down to it; 0: any */
    double clip_value;         /* then of each of its elements; 0: any */
    int columns_held;          /* whether any stage has a column_norm */
    int objective;             /* sums count rows, and of each the step's mean loss with its penalties by weight */
} fb_network;

typedef struct fb_feed {
    const char *x;
    int64_t x_stride;          /* bytes */
    const fb_input *input;     /* what x is, or NULL for rows of elements that can be read where they lie */
    const char *y;             /* (n, O) elements, or NULL */
    int64_t y_stride;
    const int64_t *labels;     /* (n,) instead of y */
    const double *weight;      /* (n,) or NULL */
    const int64_t *order;      /* (rows,) or NULL for 0 .. rows-1 */
    int64_t rows, batch;       /* of the pass, of a step */
    int64_t piece;             /* rows of a step that are in the arena at a time; at most those of a batch */
    char *outputs;             /* (rows, O) or NULL */
    const double *mix_share;   /* of each step of the pass what rows keep of themselves, or NULL; 1: all */
    const int64_t *mix_shift;  /* row r of a step is mixed with row r + shift of it, which comes round */
} fb_feed;

/* Of rows; and of updates the norms before clipping, where there is a limit to them. */
typedef struct fb_sums { double loss, weight, norm; } fb_sums;

/* What is asked for, or said, of each row of a feed; any member may be NULL. Meanings: PerSample in fastbatch/protocol.py.
 * The norms have one row per dense stage, strides in elements. */
typedef struct fb_per_sample {
    double *loss, *weight;     /* (rows,) */
    double *input_norms, *delta_norms;
    int64_t input_stride, delta_stride;
    double *norm_norms;        /* (rows,) */
    const void *scale;         /* (rows,) elements */
} fb_per_sample;

enum { FB_OK, FB_LOSS_NOT_FINITE, FB_GRADIENT_NOT_FINITE };

typedef struct fb_outcome {
    int64_t next;              /* first step not made */
    int status;
    double value;              /* what was not finite */
    int threads;               /* that ran */
} fb_outcome;

/* Steps [first, last) of one pass over the feed, step s at the rate lr[s - first]; stops between steps once budget_ns have
 * passed. On up to `threads` threads, as many as the tuner finds best. */
fb_outcome fb_run(const fb_network *net, char *arena, const fb_feed *feed, int64_t first, int64_t last,
                  const double *lr, int64_t budget_ns, int threads, fb_tuner *tuner, fb_sums *sums);
/* gradient (N,) += sums over all rows of the feed as one batch whose first logical row is first_row; returns `sums`
 * continued row by row. Without a gradient dw is not computed; samples may be NULL. */
fb_sums fb_accumulate(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, char *gradient,
                      int threads, fb_sums sums, const fb_per_sample *samples);
/* Outputs (rows, O) of a training forward; what backward needs stays in the arena. Moves `running`, laid out as the
 * network's buffers. */
void fb_forward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, int threads, char *running);
/* gradient += from dz (rows, O), after fb_forward with training on the same feed. */
void fb_backward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, const char *dz,
                 int64_t dz_stride, char *gradient, int threads);
/* One update from scale * gradient, clipped, and the buffers become `running` unless that is NULL;
 * FB_GRADIENT_NOT_FINITE changes nothing. */
int fb_update(const fb_network *net, const char *gradient, double scale, double lr, int threads, const char *running);
/* Forward without training in blocks of `block` rows; one arena of arena_bytes per thread. */
void fb_predict(const fb_network *net, char *arena, int64_t arena_bytes, int64_t block, const fb_feed *feed,
                int threads);

/* Swaps [begin, end) of the n - 1 swaps of a Fisher-Yates shuffle of order (n,), begin even; in pieces, so that Ctrl-C
 * is heard (order.c; fastbatch/ops/random.py is the specification) */
void fb_permutation(const fb_kernels *kernels, int64_t n, uint64_t seed, uint32_t epoch, int64_t begin, int64_t end, int64_t *order);

/* -- this machine at its best (measure.c) --------------------------------------------------------------------------- */
/* GFLOP/s of multiply-adds in registers on `threads` threads together; NaN when fewer could be had. */
double fb_measure_peak(const fb_kernels *kernels, int threads, int64_t loops);
/* Nanoseconds of one barrier between `threads` threads; NaN when fewer could be had. */
double fb_measure_barrier(int threads, int64_t loops);

#endif
