/* Phase A, by batch rows: gather, forward, loss, deltas. Rows are independent, so there is no barrier between stages;
 * but for what is shared out by columns between two barriers: products whose weights are more than their rows, and the
 * statistics of norms over rows. */
#include "frame.h"

#include <string.h>

frame fb_frame(const fb_network *net, char *arena, const fb_feed *feed)
{
    frame f = {.net = net, .k = net->kernels, .feed = feed, .arena = arena, .training = 1};
    while (net->stages[f.first_trained].w < 0 && net->stages[f.first_trained].gamma < 0) f.first_trained++;
    for (int64_t i = 0; i < net->stage_count; i++) f.coupled |= net->stages[i].mean >= 0;
    return f;
}

const char *fb_stage_input(const frame *f, const char *arena, int64_t k, int64_t base, int64_t r, int64_t *ld)
{
    const fb_stage *s = &f->net->stages[k];
    if (k == 0 && !in_arena(f->feed)) {
        *ld = f->feed->x_stride / f->k->size;
        return f->feed->x + (base + r) * f->feed->x_stride;
    }
    *ld = s->x_ld;
    return arena + s->x + r * s->x_ld * f->k->size;
}

static inline void fetch(const frame *f, char *arena, int64_t base, range rows, uint32_t update)
{
    const fb_feed *feed = f->feed;
    const fb_stage *s = &f->net->stages[0];
    const int64_t n = rows.end - rows.begin, first = base + rows.begin;
    const int64_t *index = feed->order ? feed->order + first : NULL;
    const char *from = index ? feed->x : feed->x + first * feed->x_stride;
    char *x = arena + s->x + rows.begin * s->x_ld * f->k->size;
    if (feed->input) f->k->convert(feed->input, n, s->inputs, from, feed->x_stride, index, x, s->x_ld);
    else f->k->gather(n, s->inputs, from, feed->x_stride, index, x, s->x_ld);
    if (feed->mix_share) fb_mix_inputs(f, base, rows, x, s->x_ld);
    if (feed->input && feed->input->noise > 0)
        f->k->noise(n, s->inputs, x, s->x_ld, f->net->seed, update, f->first_row + rows.begin, feed->input->noise);
}

void fb_put_outputs(const frame *f, const char *arena, int64_t base, range rows)
{
    const fb_kernels *k = f->k;
    const fb_stage *s = &f->net->stages[f->net->stage_count - 1];
    k->gather(rows.end - rows.begin, s->outputs, arena + s->out + rows.begin * s->out_ld * k->size, s->out_ld * k->size,
              NULL, f->feed->outputs + (base + rows.begin) * s->outputs * k->size, s->outputs);
}

const char *fb_single_input(const frame *f, int64_t base, uint32_t update)
{
    const fb_feed *feed = f->feed;
    if (!feed->input) return feed->x + (feed->order ? feed->order[base] : base) * feed->x_stride;
    fetch(f, f->arena, base, (range){0, 1}, update);
    return f->arena + f->net->stages[0].x;
}

const char *fb_norm_input(const frame *f, const char *arena, int64_t k, int64_t base, int64_t r, int64_t *ld)
{
    const fb_stage *s = &f->net->stages[k];
    if (s->u < 0) return fb_stage_input(f, arena, k, base, r, ld);
    *ld = s->out_ld;
    return arena + s->u + r * s->out_ld * f->k->size;
}

/* Thread c.t's columns, over all rows of the batch, group by group. */
static void batch_moments(const frame *f, int64_t i, int64_t base, crew c)
{
    const fb_stage *s = &f->net->stages[i];
    const range mine = columns_of(s, c.t, c.threads);
    for (piece at = {{0, 0}, 0, 0}; at.at.end < c.batch;) {
        at = group_at(s, c.batch, at.at.end, c.batch);
        int64_t ld;
        const char *x = fb_norm_input(f, f->arena, i, base, at.at.begin, &ld);
        char *var = group_stats(f, s, at.group, STATS_VAR), *factor = group_stats(f, s, at.group, STATS_FACTOR);
        const int64_t skip = mine.begin * f->k->size;
        f->k->norm_moments(at.group_rows, mine.begin, mine.end, x, ld, group_stats(f, s, at.group, STATS_MEAN), var);
        f->k->norm_factors(mine.end - mine.begin, var + skip, s->eps, factor + skip);
    }
}

static void norm_forward(const frame *f, char *arena, int64_t i, int64_t base, range rows, crew c)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_stage *s = &net->stages[i];
    const char *gamma = net->parameters + s->gamma, *beta = net->parameters + s->beta;
    char *z = arena + s->z + rows.begin * s->out_ld * k->size;
    int64_t ld;
    const char *u = fb_norm_input(f, arena, i, base, rows.begin, &ld);
    if (s->mean < 0) {
        char *stats = s->stats >= 0 ? arena + s->stats + rows.begin * 2 * k->size : NULL;
        k->norm_rows(rows.end - rows.begin, s->outputs, u, ld, s->eps, gamma, beta, stats, z, s->out_ld);
        return;
    }
    if (!f->training) {
        char *factor = arena + s->stats;
        k->norm_factors(s->outputs, net->buffers + s->var, s->eps, factor);
        k->norm_columns(rows.end - rows.begin, s->outputs, u, ld, net->buffers + s->mean, factor, gamma, beta, z,
                        s->out_ld);
        return;
    }
    fb_wait_for_all(c.threads);
    batch_moments(f, i, base, c);
    fb_wait_for_all(c.threads);
    for (piece at = {{0, rows.begin}, 0, 0}; at.at.end < rows.end;) {
        at = group_at(s, c.batch, at.at.end, rows.end);
        u = fb_norm_input(f, arena, i, base, at.at.begin, &ld);
        k->norm_columns(at.at.end - at.at.begin, s->outputs, u, ld, group_stats(f, s, at.group, STATS_MEAN),
                        group_stats(f, s, at.group, STATS_FACTOR), gamma, beta,
                        arena + s->z + at.at.begin * s->out_ld * k->size, s->out_ld);
    }
}

/* Whether a product of so many columns is shared out by columns: a thread reads its columns of w and all rows, instead of
 * all of w and its rows, so w should be the larger; and it copies what it reads of w for all rows. Narrow panels cost more
 * than that saves (784-128 of 32 rows on two threads 105 us by columns, 92 by rows; 784-512-256 of 128 rows 1200, 1300), but
 * where rows do not go round the alternative is a thread that waits. */
static int by_columns(const frame *f, int64_t columns, crew c)
{
    if (c.threads == 1 || in_parts(f->net) || 2 * columns < 3 * c.batch) return 0;
    return columns >= c.threads * (c.batch < c.threads * f->k->tile_rows ? 32 : 128);
}

/* Stage i's product of these rows and, of it, these columns. */
static void product(const frame *f, char *arena, int64_t i, int64_t base, range rows, range columns)
{
    const fb_network *net = f->net;
    const fb_stage *s = &net->stages[i];
    const int64_t skip = rows.begin * s->out_ld * f->k->size;
    const int normed = s->gamma >= 0;
    int64_t ld;
    const char *x = fb_stage_input(f, arena, i, base, rows.begin, &ld);
    f->k->dense_forward(rows.end - rows.begin, s->inputs, s->outputs, x, ld, net->parameters + s->w,
                        s->b >= 0 ? net->parameters + s->b : NULL, (int)s->product_activation, columns.begin, columns.end,
                        arena + (normed ? s->u : s->z) + skip, arena + (normed ? s->u : s->a) + skip, s->out_ld);
}

void fb_rows_forward(const frame *f, char *arena, int64_t base, range rows, crew c, uint32_t update)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_feed *feed = f->feed;
    const int64_t n = rows.end - rows.begin;
    int met = !in_arena(feed); /* whether the threads have met since the last of them wrote what is read next */
    if (in_arena(feed)) fetch(f, arena, base, rows, update);
    for (int64_t i = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        const int64_t skip = rows.begin * s->out_ld * k->size;
        char *a = arena + s->a + skip, *out = arena + s->out + skip;
        int64_t ld;
        const char *x = fb_stage_input(f, arena, i, base, rows.begin, &ld);
        const int normed = s->gamma >= 0, split = s->w >= 0 && by_columns(f, s->outputs, c);
        if (split) {
            if (!met) fb_wait_for_all(c.threads);
            product(f, arena, i, base, (range){0, c.batch}, columns_of(s, c.t, c.threads));
            fb_wait_for_all(c.threads);
        } else if (s->w >= 0)
            product(f, arena, i, base, rows, (range){0, s->outputs});
        met = split && !normed && s->threshold == 256;
        if (normed) {
            norm_forward(f, arena, i, base, rows, c);
            k->activate((int)s->activation, n, s->out_ld, arena + s->z + skip, s->out_ld, a, s->out_ld);
        } else if (s->w < 0)
            k->activate((int)s->activation, n, s->outputs, x, ld, a, s->out_ld);
        if (f->training && s->threshold < 256)
            k->dropout(n, s->outputs, a, out, s->out_ld, net->seed, update, (uint32_t)s->layer,
                       f->first_row + rows.begin, s->threshold);
    }
    if (feed->outputs) fb_put_outputs(f, arena, base, rows);
}

/* A power of two that brings the weights of a step near 1, or 1 where any dtype holds them as they are. Only their ratios
 * matter within a step, and a power of two changes no bit of the result. */
double fb_weight_unit(const fb_feed *feed, int64_t base, int64_t rows)
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

void fb_rows_loss(const frame *f, int64_t base, range rows, double unit)
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
    if (feed->mix_share) fb_mix_targets(f, base, rows, unit, y, s->out_ld, weight, part);
    double *row_loss = (double *)(f->arena + net->row_loss) + rows.begin;
    k->loss(&net->loss, n, s->outputs, f->arena + s->out + skip, s->out_ld, y, s->out_ld, weight, f->arena + s->dy + skip,
            s->out_ld, row_loss);
}

static void batch_sums(const frame *f, int64_t i, int64_t base, crew c)
{
    const fb_stage *s = &f->net->stages[i];
    const range mine = columns_of(s, c.t, c.threads);
    for (piece at = {{0, 0}, 0, 0}; at.at.end < c.batch;) {
        at = group_at(s, c.batch, at.at.end, c.batch);
        int64_t ld;
        const char *u = fb_norm_input(f, f->arena, i, base, at.at.begin, &ld);
        f->k->norm_columns_sums(at.group_rows, mine.begin, mine.end, u, ld, group_stats(f, s, at.group, STATS_MEAN),
                                group_stats(f, s, at.group, STATS_FACTOR),
                                f->arena + s->dy + at.at.begin * s->out_ld * f->k->size, s->out_ld, 0,
                                group_stats(f, s, at.group, STATS_ALONG), group_stats(f, s, at.group, STATS_SUM));
    }
}

/* dz from dy. */
static void norm_backward(const frame *f, int64_t i, int64_t base, range rows, crew c)
{
    const fb_kernels *k = f->k;
    const fb_stage *s = &f->net->stages[i];
    const char *gamma = f->net->parameters + s->gamma;
    int64_t ld;
    const char *u = fb_norm_input(f, f->arena, i, base, rows.begin, &ld);
    if (s->mean < 0) {
        const int64_t skip = rows.begin * s->out_ld * k->size;
        k->norm_rows_backward(rows.end - rows.begin, s->outputs, u, ld, f->arena + s->stats + rows.begin * 2 * k->size,
                              gamma, f->arena + s->dy + skip, s->out_ld, f->arena + s->dz + skip, s->out_ld);
        return;
    }
    fb_wait_for_all(c.threads);
    batch_sums(f, i, base, c);
    fb_wait_for_all(c.threads);
    for (piece at = {{0, rows.begin}, 0, 0}; at.at.end < rows.end;) {
        at = group_at(s, c.batch, at.at.end, rows.end);
        const int64_t skip = at.at.begin * s->out_ld * k->size;
        u = fb_norm_input(f, f->arena, i, base, at.at.begin, &ld);
        k->norm_columns_backward(at.at.end - at.at.begin, s->outputs, u, ld, group_stats(f, s, at.group, STATS_MEAN),
                                 group_stats(f, s, at.group, STATS_FACTOR), gamma, at.group_rows,
                                 group_stats(f, s, at.group, STATS_ALONG), group_stats(f, s, at.group, STATS_SUM),
                                 f->arena + s->dy + skip, s->out_ld, f->arena + s->dz + skip, s->out_ld);
    }
}

/* Groups of a single row have no variance and are passed over. */
void fb_move_running(const frame *f, crew c, char *running)
{
    for (int64_t i = 0; f->coupled && i < f->net->stage_count; i++) { /* also of frozen layers */
        const fb_stage *s = &f->net->stages[i];
        if (s->mean < 0) continue;
        const range mine = columns_of(s, c.t, c.threads);
        for (piece at = {{0, 0}, 0, 0}; at.at.end < c.batch;) {
            at = group_at(s, c.batch, at.at.end, c.batch);
            if (at.group_rows < 2) continue;
            const double unbiased = (double)at.group_rows / (double)(at.group_rows - 1);
            f->k->norm_running(mine.begin, mine.end, group_stats(f, s, at.group, STATS_MEAN), 1, s->momentum,
                               running + s->mean);
            f->k->norm_running(mine.begin, mine.end, group_stats(f, s, at.group, STATS_VAR), unbiased, s->momentum,
                               running + s->var);
        }
    }
}

/* These columns of dx of stage i for all rows; with `slope` times that of the stage below. */
static void columns_backward(const frame *f, int64_t i, range columns, int64_t rows, int slope)
{
    const fb_kernels *k = f->k;
    const fb_stage *s = &f->net->stages[i], *below = s - 1;
    char *dx = f->arena + below->dy;
    const int64_t skip = columns.begin * k->size;
    k->dense_backward_rows(rows, s->inputs, s->outputs, f->arena + s->dz, s->out_ld, f->net->parameters + s->w,
                           columns.begin, columns.end, dx, below->out_ld);
    if (slope && below->saved >= 0)
        k->slope((int)below->activation, rows, columns.end - columns.begin, f->arena + below->saved + skip, dx + skip,
                 below->out_ld);
}

void fb_rows_backward(const frame *f, int64_t base, range rows, crew c, uint32_t update)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const int64_t n = rows.end - rows.begin;
    int met = 0, sloped = 0; /* whether the threads have met, as in forward; whether dy has its slope */
    for (int64_t i = net->stage_count - 1; i >= f->first_trained; i--) { /* nothing where all layers are frozen */
        const fb_stage *s = &net->stages[i];
        const int64_t skip = rows.begin * s->out_ld * k->size;
        char *dy = f->arena + s->dy + skip, *dz = f->arena + s->dz + skip;
        if (s->threshold < 256)
            k->dropout(n, s->outputs, dy, dy, s->out_ld, net->seed, update, (uint32_t)s->layer,
                       f->first_row + rows.begin, s->threshold);
        /* padding counts as data here, rows become one stretch: it holds numbers that nobody reads */
        if (s->saved >= 0 && !sloped)
            k->slope((int)s->activation, n, s->out_ld, f->arena + s->saved + skip, dy, s->out_ld);
        if (s->gamma >= 0 && (s->w >= 0 || i > f->first_trained)) norm_backward(f, i, base, rows, c);
        if (i == f->first_trained) return;
        const fb_stage *below = s - 1;
        char *dx = f->arena + below->dy + rows.begin * below->out_ld * k->size;
        const int split = s->w >= 0 && by_columns(f, s->inputs, c);
        if (split && !met) fb_wait_for_all(c.threads);
        sloped = split && below->threshold == 256; /* dropout comes first */
        met = sloped && below->gamma < 0;
        if (split) {
            columns_backward(f, i, share(s->inputs, 16, c.t, c.threads), c.batch, sloped);
            fb_wait_for_all(c.threads);
        } else if (s->w >= 0)
            k->dense_backward_rows(n, s->inputs, s->outputs, dz, s->out_ld, net->parameters + s->w, 0, s->inputs, dx,
                                   below->out_ld);
        else
            k->gather(n, s->outputs, dz, s->out_ld * k->size, NULL, dx, below->out_ld);
    }
}

/* |dgamma| <= rows max|dy| max|normal|, and |normal| <= sqrt(terms of a variance) as long as no difference overflows. */
static double norm_bound(const frame *f, int64_t i, int64_t base, range rows, int64_t batch)
{
    const fb_kernels *k = f->k;
    const fb_stage *s = &f->net->stages[i];
    const int64_t n = rows.end - rows.begin;
    int64_t ld;
    const char *u = fb_norm_input(f, f->arena, i, base, rows.begin, &ld);
    const double top = k->peak_value(k->peak(n, s->outputs, u, ld));
    const int64_t groups = s->ghost ? (batch + s->ghost - 1) / s->ghost : 1;
    const double stats = k->peak_value(s->mean < 0
                                           ? k->peak(n, 2, f->arena + s->stats + rows.begin * 2 * k->size, 2)
                                           : k->peak(groups * FB_STATS, s->outputs, f->arena + s->stats, s->out_ld));
    if (!(top <= k->limit / 4 && stats <= k->limit)) return __builtin_inf();
    const double pd = k->peak_value(k->peak(n, s->outputs, f->arena + s->dy + rows.begin * s->out_ld * k->size, s->out_ld));
    return (double)n * __builtin_sqrt((double)(s->mean < 0 ? s->outputs : batch)) * pd;
}

static double larger(double most, double bound) /* a NaN comes in and stays */
{
    return most == most && !(bound <= most) ? bound : most;
}

/* |sum_b x dz| <= rows max|x| max|dz| for every dw of every stage, and the same with x = 1 for db. */
double fb_rows_bound(const frame *f, int64_t base, range rows, int64_t batch)
{
    const fb_kernels *k = f->k;
    const int64_t n = rows.end - rows.begin;
    double most = 0;
    for (int64_t i = f->first_trained; i < f->net->stage_count && n; i++) {
        const fb_stage *s = &f->net->stages[i];
        if (s->gamma >= 0) most = larger(most, norm_bound(f, i, base, rows, batch));
        if (s->w < 0) continue;
        int64_t ld;
        const char *x = fb_stage_input(f, f->arena, i, base, rows.begin, &ld);
        const int padded = i > 0 || in_arena(f->feed); /* with zeros or what an activation makes of zero */
        double px = k->peak_value(k->peak(n, padded ? ld : s->inputs, x, ld));
        double pd = k->peak_value(k->peak(n, s->out_ld, f->arena + s->dz + rows.begin * s->out_ld * k->size, s->out_ld));
        most = larger(most, (double)n * (px < 1 ? 1 : px) * pd);
    }
    return most;
}

int fb_rows_are_finite(const frame *f, range rows)
{
    const double *row_loss = (const double *)(f->arena + f->net->row_loss);
    int bad = 0; /* no sum: that would be a chain of additions, 4 cycles a row */
    for (int64_t r = rows.begin; r < rows.end; r++) bad |= !(row_loss[r] - row_loss[r] == 0);
    return !bad;
}

double fb_total_weight(const frame *f, int64_t rows, double total)
{
    const double *part = (const double *)(f->arena + f->net->row_share);
    if (!f->feed->weight && !(f->feed->labels && f->net->loss.per_output)) return total + (double)rows;
    for (int64_t r = 0; r < rows; r++) total += part[r];
    return total;
}

double fb_total_loss(const frame *f, int64_t rows, double total)
{
    const double *row_loss = (const double *)(f->arena + f->net->row_loss);
    for (int64_t r = 0; r < rows; r++) total += row_loss[r];
    return total;
}

/* Of these rows what is asked for; then each row's factor in dw and db. After backward, which reads deltas unscaled. */
void fb_rows_per_sample(const frame *f, range rows)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const fb_per_sample *ask = f->samples;
    const int64_t n = rows.end - rows.begin;
    const size_t bytes = (size_t)n * sizeof(double);
    if (ask->loss) memcpy(ask->loss + rows.begin, (double *)(f->arena + net->row_loss) + rows.begin, bytes);
    if (ask->weight) memcpy(ask->weight + rows.begin, (double *)(f->arena + net->row_share) + rows.begin, bytes);
    if (ask->norm_norms) memset(ask->norm_norms + rows.begin, 0, bytes);
    for (int64_t i = f->first_trained, layer = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->gamma >= 0 && ask->norm_norms) {
            int64_t ld;
            const char *u = fb_norm_input(f, f->arena, i, 0, rows.begin, &ld);
            k->norm_rows_norms(n, s->outputs, u, ld, f->arena + s->stats + rows.begin * 2 * k->size,
                               f->arena + s->dy + rows.begin * s->out_ld * k->size, s->out_ld,
                               ask->norm_norms + rows.begin);
        }
        if (s->gamma >= 0 && ask->scale)
            k->scale_rows(n, s->outputs, f->arena + s->dy + rows.begin * s->out_ld * k->size, s->out_ld,
                          (const char *)ask->scale + rows.begin * k->size);
        if (s->w < 0) continue;
        int64_t ld;
        const char *x = fb_stage_input(f, f->arena, i, 0, rows.begin, &ld);
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
