/* Steps. Each has two phases: A by batch rows (rows.c), B by parameters (gradient.c). Whether a step may update is known
 * before anything is written (DESIGN.md, D5). */
#define _GNU_SOURCE
#include "frame.h"
#include "simd/fpmode.h"

#include <string.h>
#include <time.h>

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Phase A of the rows from `base` on, which stay in the arena; `bounded` with a bound on their gradient. */
static void prepare_rows(const frame *f, int64_t base, int64_t rows, double unit, int bounded, uint32_t update, int t,
                         int threads)
{
    lane *own = &f->lanes[t];
    const crew c = {rows, t, threads};
    for (int64_t chunk = 0; chunk < rows; chunk += pass_rows(f, rows)) {
        const range mine = pass_share(f, rows, chunk, t, threads);
        range pass = {mine.begin, mine.begin};
        do {
            pass = pass_from(f, mine, pass.end);
            fb_rows_forward(f, f->arena, base, pass, c, update);
            fb_rows_loss(f, base, pass, unit);
            fb_rows_backward(f, base, pass, c, update);
            own->loss_bad |= !fb_rows_are_finite(f, pass);
            if (bounded) own->bound = fb_rows_bound(f, base, pass, rows);
        } while (pass.end < mine.end);
    }
}

/* A step whose rows are not in the arena all at once: the sums of its pieces, in the order of the rows, are added in
 * memory, and one total weight divides them. Running statistics move in a copy, which the update makes the buffers. */
static int step_in_pieces(frame *shared, int64_t base, int64_t rows, double unit, uint32_t update, const moment *now,
                          int t, int threads, fb_sums *sums)
{
    frame f = *shared; /* first_row is of this thread: another may be in the piece before */
    char *gradient = f.arena + f.net->gradient, *running = f.arena + f.net->running;
    const size_t buffers = (size_t)(f.net->buffer_count * f.k->size);
    if (t == 0) memcpy(running, f.net->buffers, buffers); /* before the first barrier, behind which it moves */
    for (int64_t at = 0, n; at < rows; at += n) {
        n = rows - at < f.feed->piece ? rows - at : f.feed->piece;
        f.first_row = at;
        prepare_rows(&f, base + at, n, unit, 0, update, t, threads);
        fb_wait_for_all(threads);
        fb_sum_gradient(&f, base + at, n, at > 0, gradient, t, threads);
        fb_move_running(&f, (crew){n, t, threads}, running);
        if (t == 0) sums->loss = fb_total_loss(&f, n, sums->loss);
        sums->weight = fb_total_weight(&f, n, sums->weight);
        fb_wait_for_all(threads);
    }
    if (fb_loss_is_bad(&f, threads)) return FB_LOSS_NOT_FINITE;
    const int status = fb_apply_gradient(shared, gradient, sums->weight > 0 ? 1 / sums->weight : 0, now, t, threads);
    if (t == 0 && status == FB_OK) memcpy(f.net->buffers, running, buffers);
    return status;
}

static int is_chain(const fb_network *net)
{
    for (int64_t i = 0; i < net->stage_count; i++) {
        const fb_stage *s = &net->stages[i];
        if (s->w < 0 || s->gamma >= 0 || s->threshold < 256) return 0;
    }
    return 1;
}

/* A step of one row, on one thread: whatever walks over rows or shares them out costs more than it does. */
static int step_of_one(frame *f, int64_t base, double unit, const moment *now, uint32_t update)
{
    char *gradient = f->arena + f->net->gradient;
    const char *x = fb_single_input(f, base, update);
    f->k->row_forward(f->net, f->arena, x);
    if (f->feed->outputs) fb_put_outputs(f, f->arena, base, (range){0, 1});
    fb_rows_loss(f, base, (range){0, 1}, unit);
    if (!fb_rows_are_finite(f, (range){0, 1})) return FB_LOSS_NOT_FINITE;
    const int safe = f->k->row_backward(f->net, f->arena, x);
    const double weight = fb_total_weight(f, 1, 0), scale = weight > 0 ? 1 / weight : 0;
    if (f->net->objective) fb_take_penalties(f, 0, 1);
    if (f->plain && safe && scale <= 1) {
        f->k->row_update(f->net, f->arena, x, (int)f->net->segments[0].optimizer.rule, now->constants, scale);
        return FB_OK;
    }
    f->k->row_gradient(f->net, f->arena, x, gradient);
    return fb_apply_gradient(f, gradient, scale, now, 0, 1);
}

/* What the sums get of a step whose weights were multiplied by `unit`. */
static fb_sums sums_of_step(const frame *f, int64_t rows, double loss, double weight, double unit)
{
    if (!f->net->objective) return (fb_sums){loss / unit, weight / unit, 0};
    if (!(weight > 0)) return (fb_sums){0};
    return (fb_sums){(double)rows * ((loss + unit * fb_penalty(f)) / weight), (double)rows, 0};
}

static void run(void *context, int t, int threads)
{
    frame *f = context;
    const fb_network *net = f->net;
    const fp_mode mode = fp_enter();
    const int64_t made = f->made;
    moment now = {0};
    /* a look at the clock costs about 25 ns: rare where a step is of that order */
    const int64_t look_every = f->feed->batch * net->parameter_count < 20000 ? 64 : 1;
    for (int64_t s = f->first; s < f->last; s++) {
        const int64_t base = s * f->feed->batch, left = f->feed->rows - base;
        const int64_t rows = left < f->feed->batch ? left : f->feed->batch;
        const uint32_t update = (uint32_t)(made + s - f->first);
        const double unit = fb_weight_unit(f->feed, base, rows);
        set_moment(&now, net, f->lr[s - f->first], made + s - f->first + 1, unit);
        const int whole = rows <= f->feed->piece;
        int status;
        fb_sums sums = {0};
        f->lanes[t].loss_bad = 0;
        if (rows == 1 && f->single && (threads == 1 || in_parts(net))) {
            status = t == 0 ? step_of_one(f, base, unit, &now, update) : FB_OK;
        } else if (whole) {
            if (net->objective) fb_take_penalties(f, t, threads);
            prepare_rows(f, base, rows, unit, !fb_holds_gradient(net), update, t, threads);
            status = fb_apply(f, base, rows, &now, t, threads);
        } else {
            if (net->objective) fb_take_penalties(f, t, threads);
            status = step_in_pieces(f, base, rows, unit, update, &now, t, threads, &sums);
        }
        if (whole && status == FB_OK) fb_move_running(f, (crew){rows, t, threads}, net->buffers);
        if (t == 0) {
            const double loss = whole ? fb_total_loss(f, rows, 0) : sums.loss;
            const double weight = whole ? fb_total_weight(f, rows, 0) : sums.weight;
            f->outcome.status = status;
            f->stop[s & 1] = 1;
            if (status == FB_OK) {
                const fb_sums step = sums_of_step(f, rows, loss, weight, unit);
                f->sums.loss += step.loss;
                f->sums.weight += step.weight;
                f->sums.norm += f->norm;
                f->outcome.next = s + 1;
                *net->steps = made + s - f->first + 1;
                f->stop[s & 1] = (s - f->first + 1) % look_every == 0 && (now_ns() >= f->deadline || fb_team_is_stale());
            } else {
                f->outcome.value = status == FB_LOSS_NOT_FINITE ? (weight > 0 ? loss / weight : loss) : __builtin_inf();
            }
        }
        fb_wait_for_all(threads);
        if (f->stop[s & 1]) break;
    }
    fp_leave(mode);
}

static double step_flops(const fb_network *net, int64_t rows) { return 6.0 * (double)rows * (double)net->parameter_count; }

fb_outcome fb_run(const fb_network *net, char *arena, const fb_feed *feed, int64_t first, int64_t last,
                  const double *lr, int64_t budget_ns, int threads, fb_tuner *tuner, fb_sums *sums)
{
    lane lanes[FB_MAX_THREADS];
    double penalties[FB_PENALTY_PARTS];
    frame f = fb_frame(net, arena, feed);
    f.lanes = lanes;
    if (!in_parts(net)) f.first_trained = fb_first_trained(net); /* parts are summed and looked at whole */
    f.plain = net->uniform && !net->norms && !(net->max_norm > 0) && net->clip_value == 0 && !net->columns_held;
    f.single = net->kernels->row_forward && is_chain(net) && (in_parts(net) || f.plain);
    f.penalties = penalties;
    f.outcome.next = first;
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
        f.made = *net->steps;
        f.lr = lr + (f.first - first);
        f.last = stretch.steps < last - f.first ? f.first + stretch.steps : last;
        f.deadline = stretch.until < deadline ? stretch.until : deadline;
        const int used = fb_parallel(run, &f, stretch.threads, stretch.patience);
        if (!tuned || stretch.threads == tuner->threads || !f.outcome.threads) f.outcome.threads = used;
        if (f.outcome.next == last && !tuned) break;
        const int64_t end = now_ns();
        if (tuned)
            fb_report(tuner, stretch, used, (f.outcome.next - f.first) * feed->batch, end - now);
        now = end;
    } while (f.outcome.status == FB_OK && f.outcome.next < last && now < deadline);
    *sums = f.sums;
    return f.outcome;
}
