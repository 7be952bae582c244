/* Phase B, by parameters: the sums of x^T dz over the batch, met by the optimizer.
 *
 * A large network's rows of weights are shared out, each over the whole batch, and no more than a block of the gradient
 * ever exists. A small one's would have every thread fetch the activations of all others for little work; there the
 * batch is cut into parts of FB_PART_ROWS rows, whose gradients are summed in order: each thread reads its own rows, and
 * what is exchanged is the gradient. The order is that of the rows alone, so bits do not depend on the threads, nor on
 * splits of the batch at multiples of FB_PART_ROWS.
 */
#include "frame.h"

static char *scratch_of(const frame *f, int t) { return f->arena + f->net->scratch + t * f->net->scratch_bytes; }

static int64_t weight_rows(const fb_stage *s) { return s->inputs + (s->b >= 0); }

static fb_slice slice_at(const fb_network *net, int64_t offset)
{
    return (fb_slice){net->parameters + offset, NULL, net->slots + offset, net->parameter_count, 0, net->clip_value};
}

/* Of rows [rows.begin, rows.end) of the batch and the columns: gradient of gamma and beta = or, with `add`, +=. */
static void norm_gradient(const frame *f, int64_t i, int64_t base, range rows, int64_t batch, range columns, int add,
                          char *gradient)
{
    const fb_kernels *k = f->k;
    const fb_stage *s = &f->net->stages[i];
    const char *dy = f->arena + s->dy;
    const int64_t row = s->out_ld * k->size;
    int64_t ld;
    if (s->mean < 0) {
        const char *u = fb_norm_input(f, f->arena, i, base, rows.begin, &ld);
        k->norm_rows_sums(rows.end - rows.begin, columns.begin, columns.end, u, ld,
                          f->arena + s->stats + rows.begin * 2 * k->size, dy + rows.begin * row, s->out_ld, add,
                          gradient + s->gamma, gradient + s->beta);
        return;
    }
    for (piece at = {{0, rows.begin}, 0, 0}; at.at.end < rows.end; add = 1) {
        at = group_at(s, batch, at.at.end, rows.end);
        const char *u = fb_norm_input(f, f->arena, i, base, at.at.begin, &ld);
        k->norm_columns_sums(at.at.end - at.at.begin, columns.begin, columns.end, u, ld,
                             group_stats(f, s, at.group, STATS_MEAN), group_stats(f, s, at.group, STATS_FACTOR),
                             dy + at.at.begin * row, s->out_ld, add, gradient + s->gamma, gradient + s->beta);
    }
}

/* The rows that thread t gathers next, if there are any. */
static fb_ahead rows_ahead(const frame *f, int64_t base, int t, int threads)
{
    const fb_feed *feed = f->feed;
    const fb_input *input = feed->input;
    if (!feed->order || base >= feed->rows || (input && input->step != input->size)) return (fb_ahead){0};
    const range next = share(feed->rows - base < feed->piece ? feed->rows - base : feed->piece, f->k->tile_rows, t, threads);
    return (fb_ahead){feed->x, feed->x_stride, f->net->stages[0].inputs * (input ? input->size : f->k->size),
                      feed->order + base + next.begin, next.end - next.begin, 0};
}

/* The segment of the parameter at a byte offset, or NULL where it is frozen. */
static const fb_segment *segment_at(const fb_network *net, int64_t offset)
{
    const int64_t at = offset / net->kernels->size;
    for (int64_t i = 0; i < net->segment_count; i++)
        if (net->segments[i].begin <= at && at < net->segments[i].end) return &net->segments[i];
    return NULL;
}

int64_t fb_first_trained(const fb_network *net)
{
    for (int64_t i = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->w >= 0 && (segment_at(net, s->w) || (s->b >= 0 && segment_at(net, s->b)))) return i;
        if (s->gamma >= 0 && (segment_at(net, s->gamma) || segment_at(net, s->beta))) return i;
    }
    return net->stage_count;
}

/* Rows `mine` of the weights of stage i, whose parameters `segment` updates. */
static void update_rows(const frame *f, int64_t i, int64_t base, int64_t rows, range mine, const fb_segment *segment,
                        const moment *now, double scale, int t, fb_ahead *ahead)
{
    const fb_network *net = f->net;
    const fb_stage *s = &net->stages[i];
    double constants[FB_MAX_CONSTANTS] = {0};
    if (!segment || mine.begin >= mine.end) return;
    if (!net->uniform) fb_prepare(&segment->optimizer, now->lr, now->t, scale * now->unit, NULL, constants);
    int64_t ld;
    const char *x = fb_stage_input(f, f->arena, i, base, 0, &ld);
    f->k->dense_update(rows, s->inputs, s->outputs, x, ld, f->arena + s->dz, s->out_ld, mine.begin, mine.end,
                       (int)segment->optimizer.rule, net->uniform ? now->constants : constants, scale,
                       slice_at(net, s->w), scratch_of(f, t), ahead);
}

static fb_slice slice_of(const frame *f, const char *gradient, range r)
{
    fb_slice s = slice_at(f->net, r.begin * f->k->size);
    s.g = gradient + r.begin * f->k->size;
    s.n = r.end - r.begin;
    return s;
}

static int64_t norm_blocks(const fb_segment *s) { return (s->end - s->begin + FB_NORM_BLOCK - 1) / FB_NORM_BLOCK; }

/* Thread t's share of the blocks whose squares make the norms. */
static void take_norms(const frame *f, const char *gradient, double scale, double factor, const moment *now, int t,
                       int threads)
{
    const fb_network *net = f->net;
    int64_t total = 0, block = 0;
    for (int64_t i = 0; i < net->segment_count; i++) total += norm_blocks(&net->segments[i]);
    const range mine = share(total, 1, t, threads);
    for (int64_t i = 0; i < net->segment_count; i++) {
        const fb_segment *segment = &net->segments[i];
        const int64_t count = norm_blocks(segment), first = mine.begin > block ? mine.begin - block : 0;
        const fb_slice whole = slice_of(f, gradient, (range){segment->begin, segment->end});
        double constants[FB_MAX_CONSTANTS] = {0};
        const double none[2] = {0};
        fb_prepare(&segment->optimizer, now->lr, now->t, scale * now->unit, none, constants);
        for (int64_t j = first; j < count && block + j < mine.end; j++)
            f->k->update_norms((int)segment->optimizer.rule, constants, scale * factor,
                               fb_part_of(f->k, whole, j * FB_NORM_BLOCK), net->norms + 2 * (block + j));
        block += count;
    }
}

/* A penalty by weight is of the mean gradient, whatever clipping makes of that: `scale` says it, not `factor`. */
static void update_share(const frame *f, const char *gradient, double scale, double factor, const moment *now, range mine)
{
    const fb_network *net = f->net;
    const double *parts = net->norms;
    if (net->uniform) {
        f->k->update((int)net->segments[0].optimizer.rule, now->constants, scale * factor,
                     slice_of(f, gradient, mine));
        return;
    }
    for (int64_t i = 0; i < net->segment_count; i++) {
        const fb_segment *segment = &net->segments[i];
        const range part = {segment->begin > mine.begin ? segment->begin : mine.begin,
                            segment->end < mine.end ? segment->end : mine.end};
        double norms[2] = {0}, constants[FB_MAX_CONSTANTS] = {0};
        if (parts)
            for (int64_t j = 0; j < norm_blocks(segment); j++, parts += 2) norms[0] += parts[0], norms[1] += parts[1];
        if (part.begin >= part.end) continue;
        for (int j = 0; j < 2; j++) norms[j] = __builtin_sqrt(norms[j]);
        fb_prepare(&segment->optimizer, now->lr, now->t, scale * now->unit, norms, constants);
        f->k->update((int)segment->optimizer.rule, constants, scale * factor, slice_of(f, gradient, part));
    }
}

static void update_fused(const frame *f, int64_t base, int64_t rows, const moment *now, double scale, int t, int threads)
{
    const fb_network *net = f->net;
    fb_ahead ahead = rows_ahead(f, base + rows, t, threads);
    for (int64_t i = f->first_trained; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->gamma >= 0) {
            const range columns = columns_of(s, t, threads);
            char *gradient = f->arena + net->gradient;
            norm_gradient(f, i, base, (range){0, rows}, rows, columns, 0, gradient);
            for (int which = 0; which < 2; which++) {
                const int64_t at = (which ? s->beta : s->gamma) / f->k->size;
                update_share(f, gradient, scale, 1, now, (range){at + columns.begin, at + columns.end});
            }
        }
        if (s->w < 0) continue;
        const range mine = share(weight_rows(s), f->k->tile_rows, t, threads);
        const fb_segment *w = segment_at(net, s->w), *b = s->b >= 0 ? segment_at(net, s->b) : w;
        if (w == b) {
            update_rows(f, i, base, rows, mine, w, now, scale, t, &ahead);
            continue;
        }
        const int64_t inputs = s->inputs; /* the bias is the row behind */
        update_rows(f, i, base, rows, (range){mine.begin, mine.end < inputs ? mine.end : inputs}, w, now, scale, t, &ahead);
        update_rows(f, i, base, rows, (range){mine.begin > inputs ? mine.begin : inputs, mine.end}, b, now, scale, t,
                    &ahead);
    }
}

/* Of rows [rows.begin, rows.end) and rows [begin, end) of the weights of stage i: gradient = or, with `add`, +=. */
static void stage_gradient(const frame *f, int64_t i, int64_t base, range rows, range weights, int add, char *gradient,
                           int t, fb_ahead *ahead)
{
    const fb_stage *s = &f->net->stages[i];
    int64_t ld;
    const char *x = fb_stage_input(f, f->arena, i, base, rows.begin, &ld);
    if (weights.begin < weights.end)
        f->k->dense_backward_weights(rows.end - rows.begin, s->inputs, s->outputs, x, ld,
                                     f->arena + s->dz + rows.begin * s->out_ld * f->k->size, s->out_ld, weights.begin,
                                     weights.end, add, gradient + s->w, s->b >= 0 ? gradient + s->b : NULL,
                                     scratch_of(f, t), ahead);
}

/* Where thread t's share of the parameters begins: between units where there are any. */
static int64_t cut_at(const fb_network *net, int t, int threads)
{
    const int64_t at = net->parameter_count * t / threads;
    for (int64_t i = 0; i < net->unit_count; i++)
        if (net->units[i].begin >= at) return net->units[i].begin;
    return net->parameter_count;
}

static range parameters_of(const frame *f, int t, int threads)
{
    if (!f->net->unit_count) return share(f->net->parameter_count, 16, t, threads);
    return (range){cut_at(f->net, t, threads), cut_at(f->net, t + 1, threads)};
}

/* Of the units that end in `mine`. Frozen parameters are in no segment and do not count. Squares of float32 elements that leave its
 * range do, unless `exact` asks for double. */
static void sum_squares(const frame *f, const char *gradient, range mine, int exact)
{
    const fb_network *net = f->net;
    for (int64_t i = 0; i < net->unit_count; i++) {
        fb_unit *unit = &net->units[i];
        if (unit->end <= mine.begin || unit->end > mine.end) continue;
        unit->squares = 0;
        for (int64_t s = 0; s < net->segment_count; s++) {
            const fb_segment *segment = &net->segments[s];
            const int64_t begin = unit->begin > segment->begin ? unit->begin : segment->begin;
            const int64_t end = unit->end < segment->end ? unit->end : segment->end;
            if (begin >= end) continue;
            const char *g = gradient + begin * f->k->size;
            double part = 0;
            if (exact) f->k->row_norms(1, end - begin, g, end - begin, &part);
            else part = f->k->squares(end - begin, g);
            unit->squares += part;
        }
    }
}

static double total_of_squares(const fb_network *net)
{
    double total = 0;
    for (int64_t i = 0; i < net->unit_count; i++) total += net->units[i].squares;
    return total;
}

/* Norm of a gradient whose squares are summed, behind a barrier. Those too large for float32 make the total infinite, and
 * those too small, below 1e-38 each, do not count beside 1e-30 each: else all are summed again in double. */
static double norm_of(const frame *f, const char *gradient, range mine, int threads)
{
    const double total = total_of_squares(f->net);
    if (total >= 1e-30 * (double)f->net->parameter_count && total <= f->k->limit) return __builtin_sqrt(total);
    fb_wait_for_all(threads);
    sum_squares(f, gradient, mine, 1);
    fb_wait_for_all(threads);
    return __builtin_sqrt(total_of_squares(f->net)); /* one instruction */
}

static range rows_of(const fb_stage *s, range parameters, int64_t size)
{
    const int64_t first = s->w / size, rows = weight_rows(s);
    const int64_t begin = (parameters.begin - first) / s->outputs, end = (parameters.end - first) / s->outputs;
    return (range){begin < 0 ? 0 : begin > rows ? rows : begin, end < 0 ? 0 : end > rows ? rows : end};
}

/* Thread t's rows of the weights of every stage. Where the norm is wanted they are those that it will update, and squares
 * are summed while a block of them is in a near cache. */
static void by_weights(const frame *f, int64_t base, int64_t rows, int add, char *gradient, int t, int threads)
{
    const fb_network *net = f->net;
    const range mine = parameters_of(f, t, threads), batch = {0, rows};
    fb_ahead ahead = rows_ahead(f, base + rows, t, threads);
    for (int64_t i = f->first_trained; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        const int64_t first = s->w / f->k->size, gamma = s->gamma / f->k->size;
        if (s->gamma >= 0 && !net->unit_count)
            norm_gradient(f, i, base, batch, rows, columns_of(s, t, threads), add, gradient);
        if (s->gamma >= 0 && mine.begin <= gamma && gamma < mine.end && net->unit_count) {
            norm_gradient(f, i, base, batch, rows, (range){0, s->outputs}, add, gradient);
            sum_squares(f, gradient, (range){gamma, gamma + 2 * s->outputs}, 0);
        }
        if (s->w < 0) continue;
        if (!net->unit_count) {
            stage_gradient(f, i, base, batch, share(weight_rows(s), f->k->tile_rows, t, threads), add, gradient, t, &ahead);
            continue;
        }
        const range own = rows_of(s, mine, f->k->size);
        for (int64_t r = own.begin, end; r < own.end; r = end) {
            end = own.end - r < FB_BLOCK_ROWS ? own.end : r + FB_BLOCK_ROWS;
            stage_gradient(f, i, base, batch, (range){r, end}, add, gradient, t, &ahead);
            sum_squares(f, gradient, (range){first + r * s->outputs, first + end * s->outputs}, 0);
        }
    }
}

static int64_t penalty_width(const fb_network *net)
{
    const int64_t part = (net->parameter_count + FB_PENALTY_PARTS - 1) / FB_PENALTY_PARTS;
    return (part + 15) / 16 * 16;
}

void fb_take_penalties(const frame *f, int t, int threads)
{
    const fb_network *net = f->net;
    const int64_t width = penalty_width(net), size = f->k->size;
    const range mine = share(net->parameter_count, width, t, threads);
    for (int64_t at = mine.begin; at < mine.end; at += width) {
        double total = 0;
        for (int64_t s = 0; s < net->segment_count; s++) {
            const fb_segment *segment = &net->segments[s];
            const int64_t begin = at > segment->begin ? at : segment->begin;
            const int64_t end = at + width < segment->end ? at + width : segment->end;
            double part = 0;
            if (begin >= end || segment->optimizer.by_weight == 0) continue;
            f->k->row_norms(1, end - begin, net->parameters + begin * size, end - begin, &part);
            total += 0.5 * segment->optimizer.hyper[0] * part;
        }
        f->penalties[at / width] = total;
    }
}

double fb_penalty(const frame *f)
{
    double total = 0;
    for (int64_t i = 0; i * penalty_width(f->net) < f->net->parameter_count; i++) total += f->penalties[i];
    return total;
}

/* Of rows [rows.begin, rows.end), all stages: gradient = their sums. */
static void part_gradient(const frame *f, int64_t base, range rows, int64_t batch, char *gradient, int t, fb_ahead *ahead)
{
    for (int64_t i = f->first_trained; i < f->net->stage_count; i++) {
        const fb_stage *s = &f->net->stages[i];
        if (s->gamma >= 0) norm_gradient(f, i, base, rows, batch, (range){0, s->outputs}, 0, gradient);
        if (s->w >= 0) stage_gradient(f, i, base, rows, (range){0, weight_rows(s)}, 0, gradient, t, ahead);
    }
}

/* Thread 0 has the first parts and adds each while it is in L1; the others leave theirs side by side. Then everyone adds
 * those to its share of `gradient`, whose largest magnitude is returned. */
static uint64_t by_parts(const frame *f, int64_t base, int64_t rows, int add, char *gradient, int t, int threads)
{
    const fb_network *net = f->net;
    const fb_kernels *k = f->k;
    const int64_t stride = net->part_bytes / k->size;
    const range mine = parameters_of(f, t, threads);
    char *parts = f->arena + net->parts, *share_of_gradient = gradient + mine.begin * k->size;
    uint64_t top = 0;
    for (int64_t chunk = 0, n; chunk < rows; chunk += n) {
        n = chunk_rows(net, rows - chunk);
        const range own = chunk_share(f, rows, chunk, t, threads);
        fb_ahead ahead = rows_ahead(f, base + rows, t, threads);
        for (int64_t r = own.begin; r < own.end; r += FB_PART_ROWS) {
            const range part = {r, r + FB_PART_ROWS < own.end ? r + FB_PART_ROWS : own.end};
            if (r == 0 && !add) {
                part_gradient(f, base, part, rows, gradient, t, &ahead);
            } else if (t == 0) {
                part_gradient(f, base, part, rows, parts, t, &ahead);
                k->fold(net->parameter_count, 1, parts, stride, gradient);
            } else {
                part_gradient(f, base, part, rows, parts + (r - chunk) / FB_PART_ROWS * net->part_bytes, t, &ahead);
            }
        }
        fb_wait_for_all(threads);
        const int64_t added = (chunk_share(f, rows, chunk, 0, threads).end - chunk + FB_PART_ROWS - 1) / FB_PART_ROWS;
        const int64_t count = (n + FB_PART_ROWS - 1) / FB_PART_ROWS;
        if (added < count)
            top = k->fold(mine.end - mine.begin, count - added, parts + added * net->part_bytes + mine.begin * k->size,
                          stride, share_of_gradient);
        else top = k->peak(1, mine.end - mine.begin, share_of_gradient, 0);
        if (chunk + n < rows) fb_wait_for_all(threads);
    }
    return top;
}

void fb_sum_gradient(const frame *f, int64_t base, int64_t rows, int add, char *gradient, int t, int threads)
{
    if (in_parts(f->net)) by_parts(f, base, rows, add, gradient, t, threads);
    else by_weights(f, base, rows, add, gradient, t, threads);
}

int fb_holds_gradient(const fb_network *net) { return in_parts(net) || net->max_norm > 0 || net->norms; }

int fb_loss_is_bad(const frame *f, int threads)
{
    for (int t = 0; t < threads; t++)
        if (f->lanes[t].loss_bad) return 1;
    return 0;
}

static int gradient_is_bad(const frame *f, int threads)
{
    for (int t = 0; t < threads; t++)
        if (f->lanes[t].gradient_bad) return 1;
    return 0;
}

/* Of its share of the gradient thread t has seen `top`, the largest magnitude. Same answer on all threads. */
static int is_finite(frame *f, uint64_t top, double scale, int t, int threads)
{
    const double limit = f->k->limit;
    f->lanes[t].gradient_bad = !(scale <= limit && f->k->peak_value(top) * scale <= limit);
    fb_wait_for_all(threads);
    return !gradient_is_bad(f, threads);
}

static uint64_t peak_of_share(const frame *f, const char *gradient, range mine)
{
    return f->k->peak(1, mine.end - mine.begin, gradient + mine.begin * f->k->size, 0);
}

/* Thread t's share of the update by `factor * scale * gradient`, which is finite. */
static void apply_finite(frame *f, const char *gradient, double scale, double factor, const moment *now, int t,
                         int threads)
{
    if (f->net->norms) {
        take_norms(f, gradient, scale, factor, now, t, threads);
        fb_wait_for_all(threads);
    }
    update_share(f, gradient, scale, factor, now, parameters_of(f, t, threads));
}

/* Squares are summed, behind a barrier. The norm says that all elements are finite, but for a few of the largest. */
static int apply_limited(frame *f, const char *gradient, double scale, const moment *now, int t, int threads)
{
    const range mine = parameters_of(f, t, threads);
    const double norm = scale * norm_of(f, gradient, mine, threads), factor = f->net->max_norm / (norm + 1e-6); /* the constant is torch's */
    if (!(norm <= f->k->limit) && !is_finite(f, peak_of_share(f, gradient, mine), scale, t, threads))
        return FB_GRADIENT_NOT_FINITE;
    if (!(norm - norm == 0)) return FB_GRADIENT_NOT_FINITE;
    if (t == 0) f->norm = norm;
    apply_finite(f, gradient, scale, factor < 1 ? factor : 1, now, t, threads);
    return FB_OK;
}

static int apply_gradient(frame *f, const char *gradient, double scale, const moment *now, int t, int threads)
{
    const range mine = parameters_of(f, t, threads);
    if (f->net->max_norm > 0) {
        sum_squares(f, gradient, mine, 0);
        fb_wait_for_all(threads);
        return apply_limited(f, gradient, scale, now, t, threads);
    }
    if (!is_finite(f, peak_of_share(f, gradient, mine), scale, t, threads)) return FB_GRADIENT_NOT_FINITE;
    apply_finite(f, gradient, scale, 1, now, t, threads);
    return FB_OK;
}

static double scale_of(const frame *f, int64_t rows)
{
    const double weight = fb_total_weight(f, rows, 0);
    return weight > 0 ? 1 / weight : 0;
}

static int apply_parts(frame *f, int64_t base, int64_t rows, const moment *now, int t, int threads)
{
    char *gradient = f->arena + f->net->gradient;
    if (f->coupled) fb_wait_for_all(threads); /* the rows of phase A are others */
    const uint64_t top = by_parts(f, base, rows, 0, gradient, t, threads); /* and a barrier */
    if (fb_loss_is_bad(f, threads)) return FB_LOSS_NOT_FINITE;
    const double scale = scale_of(f, rows);
    if (f->net->max_norm > 0) {
        sum_squares(f, gradient, parameters_of(f, t, threads), 0);
        fb_wait_for_all(threads);
        return apply_limited(f, gradient, scale, now, t, threads);
    }
    if (!is_finite(f, top, scale, t, threads)) return FB_GRADIENT_NOT_FINITE;
    apply_finite(f, gradient, scale, 1, now, t, threads);
    return FB_OK;
}

static double bound_of(const frame *f, int threads)
{
    double bound = 0;
    for (int i = 0; i < threads; i++) bound += f->lanes[i].bound;
    return bound;
}

/* Of any norm and cannot overflow: dw straight into the optimizer. Might, or norms are asked for: dw to memory, look, then
 * update. Half the limit leaves room for what rounding adds to a sum; a scale above 1 (small weights) enlarges the sum. */
static int apply_blocks(frame *f, int64_t base, int64_t rows, const moment *now, int t, int threads)
{
    fb_wait_for_all(threads);
    if (fb_loss_is_bad(f, threads)) return FB_LOSS_NOT_FINITE;
    const double scale = scale_of(f, rows);
    if (!(scale <= f->k->limit)) return FB_GRADIENT_NOT_FINITE;
    if (!fb_holds_gradient(f->net) && bound_of(f, threads) * (scale > 1 ? scale : 1) <= f->k->limit / 2) {
        update_fused(f, base, rows, now, scale, t, threads);
        return FB_OK;
    }
    char *gradient = f->arena + f->net->gradient;
    by_weights(f, base, rows, 0, gradient, t, threads);
    fb_wait_for_all(threads);
    if (f->net->max_norm > 0) return apply_limited(f, gradient, scale, now, t, threads);
    return apply_gradient(f, gradient, scale, now, t, threads);
}

/* Behind an update, whose parameters are others: thread t's columns of every w that is limited. */
static void hold_columns(const frame *f, int t, int threads)
{
    fb_wait_for_all(threads);
    for (int64_t i = 0; i < f->net->stage_count; i++) {
        const fb_stage *s = &f->net->stages[i];
        const range mine = columns_of(s, t, threads);
        if (s->column_norm > 0)
            f->k->hold_columns(s->inputs, s->outputs, mine.begin, mine.end, s->column_norm, f->net->parameters + s->w);
    }
}

int fb_apply_gradient(frame *f, const char *gradient, double scale, const moment *now, int t, int threads)
{
    const int status = apply_gradient(f, gradient, scale, now, t, threads);
    if (status == FB_OK && f->net->columns_held) hold_columns(f, t, threads);
    return status;
}

int fb_apply(frame *f, int64_t base, int64_t rows, const moment *now, int t, int threads)
{
    const int status = (in_parts(f->net) ? apply_parts : apply_blocks)(f, base, rows, now, t, threads);
    if (status == FB_OK && f->net->columns_held) hold_columns(f, t, threads);
    return status;
}
