/* What one call does, and the pieces it is made of: rows.c by batch rows, gradient.c by parameters. Internal to the files
 * that walk stages and phases; no arithmetic on data of their own: every number is touched through the kernel table.
 */
#ifndef FB_FRAME_H
#define FB_FRAME_H

#include "fastbatch.h"

typedef struct lane { /* what one thread tells the others; two cache lines each, which Intel's CPUs fetch together */
    double bound;     /* on any element of the gradient sum over its rows, or its share's largest element */
    int loss_bad, gradient_bad;
    char pad[128 - sizeof(double) - 2 * sizeof(int)];
} lane;

typedef struct frame {
    const fb_network *net;
    const fb_kernels *k;
    const fb_feed *feed;
    char *arena;
    int64_t first_trained; /* stage; those before it have no parameters */
    int training;
    int single;       /* a step of one row may take row_forward and row_backward */
    int plain;        /* and row_update */
    int coupled;      /* statistics over rows: in phase A all threads meet at every such norm */
    lane *lanes;      /* one per thread; written before a barrier, read after it */
    double *penalties; /* FB_PENALTY_PARTS, alike: of stretches of the parameters, where they are reported */
    /* fb_run */
    int64_t first, last, deadline;
    int64_t made;     /* updates before step `first` */
    const double *lr; /* of step `first` and those after it; fb_update: of its one */
    fb_sums sums;
    fb_outcome outcome;
    int stop[2];      /* behind a step: of even and of odd ones, as thread 0 may be done with a step of one row, which has no
                       * barrier but its last, while another thread still looks at the step before */
    double norm;      /* of the last gradient applied, before clipping */
    /* fb_accumulate, fb_forward, fb_backward, fb_update, fb_predict */
    int64_t first_row, dz_stride, arena_bytes, block;
    const char *dz;
    char *gradient;
    double scale;
    const fb_per_sample *samples;
    char *running;    /* statistics that fb_forward moves */
} frame;

/* Who works on a batch: thread t of `threads`, and the rows of the whole batch. */
typedef struct crew { int64_t batch; int t, threads; } crew;

typedef struct range { int64_t begin, end; } range;

/* Of one update. */
typedef struct moment {
    double lr;
    int64_t t;        /* counted from 1 */
    double unit;      /* of the batch's weights (fb_weight_unit) */
    double constants[FB_MAX_CONSTANTS]; /* where the network is uniform: made early, as their divisions take long */
} moment;

static inline void set_moment(moment *m, const fb_network *net, double lr, int64_t t, double unit)
{
    m->lr = lr, m->t = t, m->unit = unit;
    if (net->uniform) fb_prepare(&net->segments[0].optimizer, lr, t, 1, NULL, m->constants);
}

/* Thread t's share of n items, cut at multiples of `unit` so that no tile is split. Thread 0 always has one. */
static inline range share(int64_t n, int64_t unit, int t, int threads)
{
    const int64_t units = (n + unit - 1) / unit;
    const int64_t first = (units * t + threads - 1) / threads, next = (units * (t + 1) + threads - 1) / threads;
    range r = {first * unit, next * unit};
    return (range){r.begin < n ? r.begin : n, r.end < n ? r.end : n};
}

/* Stretches of the parameters whose penalties are summed apart, then in order: the same bits for any number of threads. */
#define FB_PENALTY_PARTS 64

static inline int in_parts(const fb_network *net) { return net->parts >= 0; }

/* Batch rows that are shared out at a time: all, or as many as there are parts for. Then thread t's share of those from
 * row `chunk` on. */
static inline int64_t chunk_rows(const fb_network *net, int64_t rows)
{
    return in_parts(net) && rows > FB_PARTS * FB_PART_ROWS ? FB_PARTS * FB_PART_ROWS : rows;
}

static inline range chunk_share(const frame *f, int64_t rows, int64_t chunk, int t, int threads)
{
    const int64_t most = chunk_rows(f->net, rows), n = rows - chunk < most ? rows - chunk : most;
    const range r = share(n, in_parts(f->net) ? FB_PART_ROWS : f->k->tile_rows, t, threads);
    return (range){chunk + r.begin, chunk + r.end};
}

/* Phase A's own rows: as many at a time as phase B takes, or, where the rows are coupled, all at once. */
static inline int64_t pass_rows(const frame *f, int64_t rows) { return f->coupled ? rows : chunk_rows(f->net, rows); }

static inline range pass_share(const frame *f, int64_t rows, int64_t chunk, int t, int threads)
{
    return f->coupled ? share(rows, FB_PART_ROWS, t, threads) : chunk_share(f, rows, chunk, t, threads);
}

/* The next rows of such a share from `begin` on: of a small network few enough that what a stage leaves is in a near cache
 * when the next reads it. Barriers inside are met once by every thread, rows or none. */
#define PASS_ROWS 128
static inline range pass_from(const frame *f, range mine, int64_t begin)
{
    const int whole = f->coupled || !in_parts(f->net) || mine.end - begin <= PASS_ROWS;
    return (range){begin, whole ? mine.end : begin + PASS_ROWS};
}

static inline range columns_of(const fb_stage *s, int t, int threads) { return share(s->outputs, 16, t, threads); }

/* Rows [at.begin, at.end) of the batch and the group they belong to: as many of the rows as belong to one group. */
typedef struct piece { range at; int64_t group, group_rows; } piece;

static inline piece group_at(const fb_stage *s, int64_t batch, int64_t begin, int64_t end)
{
    const int64_t size = s->ghost ? s->ghost : batch, g = begin / size, next = (g + 1) * size;
    const int64_t stop = next < end ? next : end;
    return (piece){{begin, stop}, g, (next < batch ? next : batch) - g * size};
}

static inline char *group_stats(const frame *f, const fb_stage *s, int64_t group, int which)
{
    return f->arena + s->stats + (group * FB_STATS + which) * s->out_ld * f->k->size;
}

frame fb_frame(const fb_network *net, char *arena, const fb_feed *feed);

/* Whether stage 0 reads the arena. */
static inline int in_arena(const fb_feed *feed) { return feed->order || feed->input || feed->mix_share; }

static inline double row_weight(const fb_feed *feed, int64_t row)
{
    return feed->weight ? feed->weight[feed->order ? feed->order[row] : row] : 1;
}

/* The input of stage k for batch row r of the batch that starts at row `base` of the pass. Rows used in order are read
 * where they lie. */
const char *fb_stage_input(const frame *f, const char *arena, int64_t k, int64_t base, int64_t r, int64_t *ld);

/* The same of what the norm of stage k reads. */
const char *fb_norm_input(const frame *f, const char *arena, int64_t k, int64_t base, int64_t r, int64_t *ld);

/* -- rows.c: batch rows [rows.begin, rows.end) of the batch that starts at row `base` of the pass --------------------- */
/* The outputs of these rows to where the caller wants them. */
void fb_put_outputs(const frame *f, const char *arena, int64_t base, range rows);
/* Where the inputs of the batch's first row are: in the arena, once made, where they are converted on the way. */
const char *fb_single_input(const frame *f, int64_t base, uint32_t update);
void fb_rows_forward(const frame *f, char *arena, int64_t base, range rows, crew c, uint32_t update);
/* A power of two that brings the weights of a step near 1. */
double fb_weight_unit(const fb_feed *feed, int64_t base, int64_t rows);
/* Loss of each row and dz of the last stage. */
void fb_rows_loss(const frame *f, int64_t base, range rows, double unit);
/* Deltas of all stages from dz of the last, down to the first trained stage, which asks for no dx. */
void fb_rows_backward(const frame *f, int64_t base, range rows, crew c, uint32_t update);
void fb_rows_per_sample(const frame *f, range rows);
/* Whether the losses of the rows are finite. */
int fb_rows_are_finite(const frame *f, range rows);
/* Thread c.t's share of the running statistics moves by those of the batch. */
void fb_move_running(const frame *f, crew c, char *running);
/* A bound on every element of the gradient sum over the rows. */
double fb_rows_bound(const frame *f, int64_t base, range rows, int64_t batch);
/* Sums over all rows of the batch in row order, on from `total`: the same bits for every thread, for any number of them,
 * and for any split of a batch into pieces. */
double fb_total_weight(const frame *f, int64_t rows, double total);
double fb_total_loss(const frame *f, int64_t rows, double total);

/* -- mix.c: the rows above, once they are in the arena at x or y, with others of their step --------------------------- */
void fb_mix_inputs(const frame *f, int64_t base, range rows, char *x, int64_t ld);
/* Of weights (times `unit`) and each row's share of the total those of the rows come in. */
void fb_mix_targets(const frame *f, int64_t base, range rows, double unit, char *y, int64_t ld, double *weight,
                    double *part);

/* -- gradient.c ----------------------------------------------------------------------------------------------------- */
/* gradient (N,) = or, with `add`, += sums over the rows, complete after the next barrier. All have their deltas, after a
 * barrier unless the network is in parts. */
void fb_sum_gradient(const frame *f, int64_t base, int64_t rows, int add, char *gradient, int t, int threads);
/* Whether phase B holds the gradient and looks at it, so that no bound on it is needed. */
int fb_holds_gradient(const fb_network *net);
int fb_loss_is_bad(const frame *f, int threads);
/* Phase B of a step whose rows are done: FB_OK, or which not finite and nothing changed. Same answer on all threads. */
int fb_apply(frame *f, int64_t base, int64_t rows, const moment *now, int t, int threads);
/* Thread t's share of the update by `scale * gradient`, clipped, if the whole is finite; limits on columns as in fb_apply. */
int fb_apply_gradient(frame *f, const char *gradient, double scale, const moment *now, int t, int threads);
/* Thread t's share of the penalties by weight of the parameters as they are, 1/2 weight_decay |p|^2, complete after the
 * next barrier; then their sum. */
void fb_take_penalties(const frame *f, int t, int threads);
double fb_penalty(const frame *f);
/* The first stage with parameters that are updated; stage_count where there is none. */
int64_t fb_first_trained(const fb_network *net);

#endif
