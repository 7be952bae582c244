/* Walks steps, stages and phases. No arithmetic on data of its own: every number is touched through the kernel table.
 *
 * A step has two phases. Phase A by batch rows: gather, forward, loss, deltas of all stages; rows are independent, so
 * there is no barrier between stages. Phase B by rows of the weights: dw over the whole batch, met by the optimizer.
 * A barrier follows each. Whether a step may update is known after phase A (DESIGN.md, D5).
 */
#define _GNU_SOURCE
#include "fastbatch.h"
#include "simd/fpmode.h"

#include <string.h>
#include <time.h>

typedef struct lane { /* what one thread tells the others; a cache line each */
    double bound;     /* on any element of the gradient sum over its rows */
    int bad;
    char pad[64 - sizeof(double) - sizeof(int)];
} lane;

typedef struct frame {
    const fb_network *net;
    const fb_kernels *k;
    const fb_feed *feed;
    char *arena;
    int64_t first_dense;
    int training;
    lane *lanes;      /* one per thread; written before a barrier, read after it */
    /* fb_run */
    int64_t first, last, deadline;
    double lr;
    fb_sums sums;
    fb_outcome outcome;
    int stop;
    /* fb_accumulate, fb_forward, fb_backward, fb_update, fb_predict */
    int64_t first_row, dz_stride, arena_bytes, block;
    const char *dz;
    char *gradient;
    double scale;
    const fb_per_sample *samples;
} frame;

typedef struct range { int64_t begin, end; } range;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Thread t's share of n items, cut at multiples of `unit` so that no tile is split. */
static range share(int64_t n, int64_t unit, int t, int threads)
{
    const int64_t units = (n + unit - 1) / unit;
    range r = {units * t / threads * unit, units * (t + 1) / threads * unit};
    return (range){r.begin < n ? r.begin : n, r.end < n ? r.end : n};
}

static frame make_frame(const fb_network *net, char *arena, const fb_feed *feed)
{
    frame f = {.net = net, .k = net->kernels, .feed = feed, .arena = arena, .training = 1};
    while (net->stages[f.first_dense].w < 0) f.first_dense++;
    return f;
}

static int64_t weight_rows(const fb_stage *s) { return s->inputs + (s->b >= 0); }

/* -- phase A -------------------------------------------------------------------------------------------------------- */

/* The input of stage k for batch row r. Rows used in order are read where they lie. */
static const char *stage_input(const frame *f, const char *arena, int64_t k, int64_t base, int64_t r, int64_t *ld)
{
    const fb_stage *s = &f->net->stages[k];
    if (k == 0 && !f->feed->order) {
        *ld = f->feed->x_stride / f->k->size;
        return f->feed->x + (base + r) * f->feed->x_stride;
    }
    *ld = s->x_ld;
    return arena + s->x + r * s->x_ld * f->k->size;
}

/* Batch rows [rows.begin, rows.end) of the batch that starts at row `base` of the pass. */
static void forward(const frame *f, char *arena, int64_t base, range rows, uint32_t update)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_feed *feed = f->feed;
    const int64_t n = rows.end - rows.begin;
    if (feed->order)
        k->gather(n, net->stages[0].inputs, feed->x, feed->x_stride, feed->order + base + rows.begin,
                  arena + net->stages[0].x + rows.begin * net->stages[0].x_ld * k->size, net->stages[0].x_ld);
    for (int64_t i = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        const int64_t skip = rows.begin * s->out_ld * k->size;
        char *a = arena + s->a + skip, *out = arena + s->out + skip;
        int64_t ld;
        const char *x = stage_input(f, arena, i, base, rows.begin, &ld);
        if (s->w >= 0)
            k->dense_forward(n, s->inputs, s->outputs, x, ld, net->parameters + s->w,
                             s->b >= 0 ? net->parameters + s->b : NULL, (int)s->activation, arena + s->z + skip, a,
                             s->out_ld);
        else
            k->activate((int)s->activation, n, s->outputs, x, ld, a, s->out_ld);
        if (f->training && s->threshold < 256)
            k->dropout(n, s->outputs, a, out, s->out_ld, net->seed, update, (uint32_t)s->layer,
                       f->first_row + rows.begin, s->threshold);
    }
    if (feed->outputs) {
        const fb_stage *s = &net->stages[net->stage_count - 1];
        k->gather(n, s->outputs, arena + s->out + rows.begin * s->out_ld * k->size, s->out_ld * k->size, NULL,
                  feed->outputs + (base + rows.begin) * s->outputs * k->size, s->outputs);
    }
}

static double row_weight(const fb_feed *feed, int64_t row)
{
    return feed->weight ? feed->weight[feed->order ? feed->order[row] : row] : 1;
}

/* A power of two that brings the weights of a step near 1, or 1 where float32 holds them as they are. Only their ratios
 * matter within a step, and a power of two changes no bit of the result. */
static double weight_unit(const fb_feed *feed, int64_t base, int64_t rows)
{
    double top = 0;
    if (feed->weight)
        for (int64_t r = base; r < base + rows; r++) top = row_weight(feed, r) > top ? row_weight(feed, r) : top;
    if (top == 0 || (top > 0x1p-64 && top < 0x1p64)) return 1;
    double unit = 1; /* bounded, so that neither it nor a weight of the size of the smallest double leaves the range */
    while (top * unit < 1 && unit < 0x1p1000) unit *= 2;
    while (top * unit >= 2 && unit > 0x1p-1000) unit /= 2;
    return unit;
}

/* Loss of each row and dz of the last stage. */
static void losses(const frame *f, int64_t base, range rows, double unit)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_feed *feed = f->feed;
    const fb_stage *s = &net->stages[net->stage_count - 1];
    const int64_t n = rows.end - rows.begin, skip = rows.begin * s->out_ld * k->size;
    const int64_t *index = feed->order ? feed->order + base + rows.begin : NULL;
    const int64_t start = feed->order ? 0 : base + rows.begin;
    char *y = f->arena + net->y + skip;
    double *weight = (double *)(f->arena + net->row_weight) + rows.begin;
    double *part = (double *)(f->arena + net->row_share) + rows.begin;
    if (feed->weight)
        for (int64_t r = 0; r < n; r++) part[r] = weight[r] = unit * row_weight(feed, base + rows.begin + r);
    else
        for (int64_t r = 0; r < n; r++) part[r] = weight[r] = 1;
    if (feed->labels)
        k->one_hot(n, s->outputs, feed->labels + start, index, net->loss.per_output, y, s->out_ld, part);
    else
        k->gather(n, s->outputs, feed->y + start * feed->y_stride, feed->y_stride, index, y, s->out_ld);
    double *row_loss = (double *)(f->arena + net->row_loss) + rows.begin;
    k->loss(&net->loss, n, s->outputs, f->arena + s->out + skip, s->out_ld, y, s->out_ld, weight, f->arena + s->dz + skip,
            s->out_ld, row_loss);
}

/* Deltas of all stages from dz of the last, down to the first dense stage, which asks for no dx. */
static void backward(const frame *f, range rows, uint32_t update)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const int64_t n = rows.end - rows.begin;
    for (int64_t i = net->stage_count - 1;; i--) {
        const fb_stage *s = &net->stages[i];
        const int64_t skip = rows.begin * s->out_ld * k->size;
        char *dz = f->arena + s->dz + skip;
        if (s->threshold < 256)
            k->dropout(n, s->outputs, dz, dz, s->out_ld, net->seed, update, (uint32_t)s->layer,
                       f->first_row + rows.begin, s->threshold);
        /* padding counts as data here, rows become one stretch: it holds numbers that nobody reads */
        if (s->saved >= 0) k->slope((int)s->activation, n, s->out_ld, f->arena + s->saved + skip, dz, s->out_ld);
        if (i == f->first_dense) return;
        const fb_stage *below = s - 1;
        char *dx = f->arena + below->dz + rows.begin * below->out_ld * k->size;
        if (s->w >= 0)
            k->dense_backward_rows(n, s->inputs, s->outputs, dz, s->out_ld, net->parameters + s->w, dx, below->out_ld);
        else
            k->gather(n, s->outputs, dz, s->out_ld * k->size, NULL, dx, below->out_ld);
    }
}

/* |sum_b x dz| <= rows max|x| max|dz| for every dw of every stage, and the same with x = 1 for db. */
static double gradient_bound(const frame *f, int64_t base, range rows)
{
    const fb_kernels *k = f->k;
    const int64_t n = rows.end - rows.begin;
    double most = 0;
    for (int64_t i = f->first_dense; i < f->net->stage_count && n; i++) {
        const fb_stage *s = &f->net->stages[i];
        if (s->w < 0) continue;
        int64_t ld;
        const char *x = stage_input(f, f->arena, i, base, rows.begin, &ld);
        const int in_arena = i > 0 || f->feed->order; /* padding is zero or what an activation makes of zero */
        double px = k->peak_value(k->peak(n, in_arena ? ld : s->inputs, x, ld));
        double pd = k->peak_value(k->peak(n, s->out_ld, f->arena + s->dz + rows.begin * s->out_ld * k->size, s->out_ld));
        double bound = (double)n * (px < 1 ? 1 : px) * pd;
        if (most == most && !(bound <= most)) most = bound; /* a NaN comes in and stays */
    }
    return most;
}

static int all_finite(const double *x, int64_t n)
{
    int bad = 0; /* no sum: that would be a chain of additions, 4 cycles a row */
    for (int64_t i = 0; i < n; i++) bad |= !(x[i] - x[i] == 0);
    return !bad;
}

/* Every thread sums all rows in row order, on from `total`: the same bits for all of them, for any number of them, and
 * for any split of a batch into pieces. */
static double total_weight(const frame *f, int64_t rows, double total)
{
    const double *part = (const double *)(f->arena + f->net->row_share);
    if (!f->feed->weight && !(f->feed->labels && f->net->loss.per_output)) return total + (double)rows;
    for (int64_t r = 0; r < rows; r++) total += part[r];
    return total;
}

static double total_loss(const frame *f, int64_t rows, double total)
{
    const double *row_loss = (const double *)(f->arena + f->net->row_loss);
    for (int64_t r = 0; r < rows; r++) total += row_loss[r];
    return total;
}

/* -- phase B -------------------------------------------------------------------------------------------------------- */

static char *scratch_of(const frame *f, int t) { return f->arena + f->net->scratch + t * f->net->scratch_bytes; }

static fb_slice slice_at(const fb_network *net, int64_t offset)
{
    return (fb_slice){net->parameters + offset, NULL, net->slots + offset, net->parameter_count, 0};
}

/* The rows that thread t gathers in the next step, if there is one. */
static fb_ahead rows_ahead(const frame *f, int64_t base, int t, int threads)
{
    const fb_feed *feed = f->feed;
    if (!feed->order || base >= feed->rows) return (fb_ahead){0};
    const range next = share(feed->rows - base < feed->batch ? feed->rows - base : feed->batch, f->k->tile_rows, t, threads);
    return (fb_ahead){feed->x, feed->x_stride, f->net->stages[0].inputs * f->k->size, feed->order + base + next.begin,
                      next.end - next.begin, 0};
}

static void update_fused(const frame *f, int64_t base, int64_t rows, const double *constants, double scale, int t,
                         int threads)
{
    const fb_network *net = f->net;
    fb_ahead ahead = rows_ahead(f, base + rows, t, threads);
    for (int64_t i = f->first_dense; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->w < 0) continue;
        const range mine = share(weight_rows(s), f->k->tile_rows, t, threads);
        int64_t ld;
        const char *x = stage_input(f, f->arena, i, base, 0, &ld);
        f->k->dense_update(rows, s->inputs, s->outputs, x, ld, f->arena + s->dz, s->out_ld, mine.begin, mine.end,
                           net->optimizer.rule, constants, scale, slice_at(net, s->w),
                           scratch_of(f, t), &ahead);
    }
}

/* gradient (N,) = or, with `add`, += the sums over the batch. */
static void gradient_sums(const frame *f, int64_t base, int64_t rows, int add, char *gradient, int t, int threads)
{
    fb_ahead ahead = rows_ahead(f, base + rows, t, threads);
    for (int64_t i = f->first_dense; i < f->net->stage_count; i++) {
        const fb_stage *s = &f->net->stages[i];
        if (s->w < 0) continue;
        const range mine = share(weight_rows(s), f->k->tile_rows, t, threads);
        int64_t ld;
        const char *x = stage_input(f, f->arena, i, base, 0, &ld);
        f->k->dense_backward_weights(rows, s->inputs, s->outputs, x, ld, f->arena + s->dz, s->out_ld, mine.begin,
                                     mine.end, add, gradient + s->w, s->b >= 0 ? gradient + s->b : NULL,
                                     scratch_of(f, t), &ahead);
    }
}

/* Thread t's stretch of `scale * gradient`: is it finite? Then its update. */
static int finite_share(const frame *f, const char *gradient, double scale, range mine)
{
    const fb_kernels *k = f->k;
    return k->peak_value(k->peak(1, mine.end - mine.begin, gradient + mine.begin * k->size, 0)) * scale <= k->limit;
}

static void update_share(const frame *f, const char *gradient, double scale, const double *constants, range mine)
{
    fb_slice s = slice_at(f->net, mine.begin * f->k->size);
    s.g = gradient + mine.begin * f->k->size;
    s.n = mine.end - mine.begin;
    f->k->update(f->net->optimizer.rule, constants, scale, s);
}

static int any_bad(const frame *f, int threads)
{
    for (int t = 0; t < threads; t++)
        if (f->lanes[t].bad) return 1;
    return 0;
}

/* A gradient of so many elements stays in L1 or L2: looking at it costs less than bounding it, and one update of all
 * parameters less than one of each layer (one thread, us a step: 4-32-16-1 1.45 -> 1.37, 10-45-45-10 21.6 -> 20.5). */
#define SMALL_GRADIENT 8192
static int small(const fb_network *net) { return net->parameter_count <= SMALL_GRADIENT; }

/* Small, or it might overflow: dw to memory, look, then update. Cannot overflow: dw straight into the optimizer. 0 when
 * not finite. Half the limit leaves room for what rounding adds to a sum; a scale above 1 (small weights) enlarges the
 * sum. */
static int update_checked(frame *f, int64_t base, int64_t rows, const double *constants, double scale, int t,
                          int threads)
{
    double bound = 0;
    for (int i = 0; i < threads; i++) bound += f->lanes[i].bound;
    if (!(scale <= f->k->limit)) return 0;
    if (!small(f->net) && bound * (scale > 1 ? scale : 1) <= f->k->limit / 2) {
        update_fused(f, base, rows, constants, scale, t, threads);
        return 1;
    }
    const range mine = share(f->net->parameter_count, 16, t, threads);
    char *gradient = f->arena + f->net->gradient;
    gradient_sums(f, base, rows, 0, gradient, t, threads);
    fb_wait_for_all(threads);
    f->lanes[t].bad = !finite_share(f, gradient, scale, mine);
    fb_wait_for_all(threads);
    if (any_bad(f, threads)) return 0;
    update_share(f, gradient, scale, constants, mine);
    return 1;
}

/* -- entries -------------------------------------------------------------------------------------------------------- */

static void run(void *context, int t, int threads)
{
    frame *f = context;
    const fb_network *net = f->net;
    const fp_mode mode = fp_enter();
    const int64_t made = *net->steps;
    /* a look at the clock costs about 25 ns: rare where a step is of that order */
    const int64_t look_every = f->feed->batch * net->parameter_count < 20000 ? 64 : 1;
    for (int64_t s = f->first; s < f->last; s++) {
        const int64_t base = s * f->feed->batch, left = f->feed->rows - base;
        const int64_t rows = left < f->feed->batch ? left : f->feed->batch;
        const uint32_t update = (uint32_t)(made + s - f->first);
        const range mine = share(rows, f->k->tile_rows, t, threads);
        double constants[FB_MAX_CONSTANTS] = {0}; /* made here, where their long divisions do not wait for each other */
        fb_prepare(&net->optimizer, f->lr, made + s - f->first + 1, constants);
        forward(f, f->arena, base, mine, update);
        const double unit = weight_unit(f->feed, base, rows);
        losses(f, base, mine, unit);
        backward(f, mine, update);
        f->lanes[t].bad = !all_finite((double *)(f->arena + net->row_loss) + mine.begin, mine.end - mine.begin);
        f->lanes[t].bound = small(net) ? 0 : gradient_bound(f, base, mine);
        fb_wait_for_all(threads);

        const double weight = total_weight(f, rows, 0), scale = weight > 0 ? 1 / weight : 0;
        int status = any_bad(f, threads) ? FB_LOSS_NOT_FINITE : FB_OK;
        if (status == FB_OK) {
            if (!update_checked(f, base, rows, constants, scale, t, threads)) status = FB_GRADIENT_NOT_FINITE;
        }
        if (t == 0) {
            const double loss = total_loss(f, rows, 0);
            f->outcome.status = status;
            if (status == FB_OK) {
                f->sums.loss += loss / unit;
                f->sums.weight += weight / unit;
                f->outcome.next = s + 1;
                *net->steps = made + s - f->first + 1;
                f->stop = (s - f->first + 1) % look_every == 0 && (now_ns() >= f->deadline || fb_team_is_stale());
            } else {
                f->outcome.value = status == FB_LOSS_NOT_FINITE ? loss * scale : __builtin_inf();
                f->stop = 1;
            }
        }
        fb_wait_for_all(threads);
        if (f->stop) break;
    }
    fp_leave(mode);
}

static double step_flops(const fb_network *net, int64_t rows) { return 6.0 * (double)rows * (double)net->parameter_count; }

fb_outcome fb_run(const fb_network *net, char *arena, const fb_feed *feed, int64_t first, int64_t last, double lr,
                  int64_t budget_ns, int threads, fb_tuner *tuner, fb_sums *sums)
{
    lane lanes[FB_MAX_THREADS];
    frame f = make_frame(net, arena, feed);
    f.lanes = lanes;
    f.outcome.next = first;
    f.lr = lr;
    f.sums = *sums;
    const int tuned = threads > 1 && !fb_exact();
    int64_t now = now_ns();
    const int64_t deadline = now + budget_ns;
    do { /* in stretches, between which the number of threads may change; the bits do not */
        fb_stretch stretch = {threads, FB_WAIT_FOR_PARKED, INT64_MAX, INT64_MAX};
        if (tuned)
            stretch = fb_choose_threads(tuner, threads, last - f.outcome.next, feed->batch,
                                        step_flops(net, feed->batch), now);
        f.first = f.outcome.next;
        f.last = stretch.steps < last - f.first ? f.first + stretch.steps : last;
        f.deadline = stretch.until < deadline ? stretch.until : deadline;
        f.stop = 0;
        const int used = fb_parallel(run, &f, stretch.threads, stretch.patience);
        if (!tuned || stretch.threads == tuner->threads || !f.outcome.threads) f.outcome.threads = used;
        if (f.outcome.next == last && !tuned) break;
        const int64_t end = now_ns();
        if (tuned)
            fb_report(tuner, stretch, used, (f.outcome.next - f.first) * feed->batch, end - now, end);
        now = end;
    } while (f.outcome.status == FB_OK && f.outcome.next < last && now < deadline);
    *sums = f.sums;
    return f.outcome;
}

/* Of these rows what is asked for; then each row's factor in dw and db. After backward, which reads deltas unscaled. */
static void per_sample(const frame *f, range rows)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_per_sample *ask = f->samples;
    const int64_t n = rows.end - rows.begin;
    const size_t bytes = (size_t)n * sizeof(double);
    if (ask->loss) memcpy(ask->loss + rows.begin, (double *)(f->arena + net->row_loss) + rows.begin, bytes);
    if (ask->weight) memcpy(ask->weight + rows.begin, (double *)(f->arena + net->row_share) + rows.begin, bytes);
    for (int64_t i = f->first_dense, layer = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->w < 0) continue;
        int64_t ld;
        const char *x = stage_input(f, f->arena, i, 0, rows.begin, &ld);
        char *dz = f->arena + s->dz + rows.begin * s->out_ld * k->size;
        if (ask->input_norms)
            k->row_norms(n, s->inputs, x, ld, ask->input_norms + layer * ask->input_stride + rows.begin);
        if (ask->delta_norms)
            k->row_norms(n, s->outputs, dz, s->out_ld, ask->delta_norms + layer * ask->delta_stride + rows.begin);
        if (ask->scale)
            k->scale_rows(n, s->outputs, dz, s->out_ld, (const char *)ask->scale + rows.begin * k->size);
        layer++;
    }
}

/* A task of about `flops` per row and parameter: short ones do not wait for a helper that sleeps. */
static void parallel(fb_task task, frame *f, int threads, double flops, int64_t rows)
{
    flops *= (double)rows * (double)f->net->parameter_count;
    fb_parallel(task, f, threads, flops > FB_WORTH_WAKING ? FB_WAIT_FOR_PARKED : FB_TAKE_AWAKE);
}

static void accumulate_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const int64_t rows = f->feed->rows;
    const uint32_t update = (uint32_t)*f->net->steps;
    const range mine = share(rows, f->k->tile_rows, t, threads);
    forward(f, f->arena, 0, mine, update);
    losses(f, 0, mine, 1);
    backward(f, mine, update);
    if (f->samples) per_sample(f, mine);
    fb_wait_for_all(threads);
    if (f->gradient) gradient_sums(f, 0, rows, 1, f->gradient, t, threads);
    if (t == 0) f->sums = (fb_sums){total_loss(f, rows, f->sums.loss), total_weight(f, rows, f->sums.weight)};
    fp_leave(mode);
}

fb_sums fb_accumulate(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, char *gradient,
                      int threads, fb_sums sums, const fb_per_sample *samples)
{
    frame f = make_frame(net, arena, feed);
    f.sums = sums;
    f.first_row = first_row;
    f.gradient = gradient;
    f.samples = samples;
    parallel(accumulate_all, &f, threads, 6, feed->rows);
    return f.sums;
}

static void forward_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    forward(f, f->arena, 0, share(f->feed->rows, f->k->tile_rows, t, threads), (uint32_t)*f->net->steps);
    fp_leave(mode);
}

void fb_forward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, int threads)
{
    frame f = make_frame(net, arena, feed);
    f.first_row = first_row;
    parallel(forward_all, &f, threads, 2, feed->rows);
}

static void backward_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const fb_stage *s = &f->net->stages[f->net->stage_count - 1];
    const range mine = share(f->feed->rows, f->k->tile_rows, t, threads);
    f->k->gather(mine.end - mine.begin, s->outputs, f->dz + mine.begin * f->dz_stride, f->dz_stride, NULL,
                 f->arena + s->dz + mine.begin * s->out_ld * f->k->size, s->out_ld);
    fb_wait_for_all(threads);
    backward(f, mine, (uint32_t)*f->net->steps);
    fb_wait_for_all(threads);
    gradient_sums(f, 0, f->feed->rows, 1, f->gradient, t, threads);
    fp_leave(mode);
}

void fb_backward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, const char *dz,
                 int64_t dz_stride, char *gradient, int threads)
{
    frame f = make_frame(net, arena, feed);
    f.first_row = first_row;
    f.dz = dz;
    f.dz_stride = dz_stride;
    f.gradient = gradient;
    parallel(backward_all, &f, threads, 4, feed->rows);
}

static void update_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const range mine = share(f->net->parameter_count, 16, t, threads);
    f->lanes[t].bad = !finite_share(f, f->gradient, f->scale, mine);
    fb_wait_for_all(threads);
    if (!any_bad(f, threads)) {
        double constants[FB_MAX_CONSTANTS] = {0};
        fb_prepare(&f->net->optimizer, f->lr, *f->net->steps + 1, constants);
        update_share(f, f->gradient, f->scale, constants, mine);
    } else if (t == 0) {
        f->outcome.status = FB_GRADIENT_NOT_FINITE;
    }
    fp_leave(mode);
}

int fb_update(const fb_network *net, const char *gradient, double scale, double lr, int threads)
{
    lane lanes[FB_MAX_THREADS];
    frame f = make_frame(net, NULL, NULL);
    f.lanes = lanes;
    f.gradient = (char *)gradient; /* read only here */
    f.scale = scale;
    f.lr = lr;
    parallel(update_all, &f, threads, 10, 1);
    if (f.outcome.status == FB_OK) ++*net->steps;
    return f.outcome.status;
}

static void predict_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const range mine = share(f->feed->rows, f->k->tile_rows, t, threads);
    for (int64_t r = mine.begin; r < mine.end; r += f->block)
        forward(f, f->arena + t * f->arena_bytes, r,
                (range){0, mine.end - r < f->block ? mine.end - r : f->block}, 0);
    fp_leave(mode);
}

void fb_predict(const fb_network *net, char *arena, int64_t arena_bytes, int64_t block, const fb_feed *feed,
                int threads)
{
    frame f = make_frame(net, arena, feed);
    f.training = 0;
    f.arena_bytes = arena_bytes;
    f.block = block;
    parallel(predict_all, &f, threads, 2, feed->rows);
}
