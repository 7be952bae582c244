/* The calls besides fb_run: gradients, forward, backward and update one by one, predict. */
#include "frame.h"
#include "simd/fpmode.h"

#include <string.h>

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
    const crew c = {rows, t, threads};
    for (int64_t chunk = 0; chunk < rows; chunk += pass_rows(f, rows)) {
        const range mine = pass_share(f, rows, chunk, t, threads);
        range pass = {mine.begin, mine.begin};
        do {
            pass = pass_from(f, mine, pass.end);
            fb_rows_forward(f, f->arena, 0, pass, c, update);
            fb_rows_loss(f, 0, pass, 1);
            fb_rows_backward(f, 0, pass, c, update);
            if (f->samples) fb_rows_per_sample(f, pass);
        } while (pass.end < mine.end);
    }
    fb_wait_for_all(threads);
    if (f->gradient) fb_sum_gradient(f, 0, rows, 1, f->gradient, t, threads);
    if (t == 0) {
        f->sums.loss = fb_total_loss(f, rows, f->sums.loss);
        f->sums.weight = fb_total_weight(f, rows, f->sums.weight);
    }
    fp_leave(mode);
}

fb_sums fb_accumulate(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, char *gradient,
                      int threads, fb_sums sums, const fb_per_sample *samples)
{
    frame f = fb_frame(net, arena, feed);
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
    const crew c = {f->feed->rows, t, threads};
    fb_rows_forward(f, f->arena, 0, share(c.batch, f->k->tile_rows, t, threads), c, (uint32_t)*f->net->steps);
    fb_move_running(f, c, f->running);
    fp_leave(mode);
}

void fb_forward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, int threads, char *running)
{
    frame f = fb_frame(net, arena, feed);
    f.running = running;
    f.first_row = first_row;
    parallel(forward_all, &f, threads, 2, feed->rows);
}

static void backward_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const fb_stage *s = &f->net->stages[f->net->stage_count - 1];
    const int64_t rows = f->feed->rows;
    const crew c = {rows, t, threads};
    for (int64_t chunk = 0; chunk < rows; chunk += pass_rows(f, rows)) {
        const range mine = pass_share(f, rows, chunk, t, threads);
        f->k->gather(mine.end - mine.begin, s->outputs, f->dz + mine.begin * f->dz_stride, f->dz_stride, NULL,
                     f->arena + s->dy + mine.begin * s->out_ld * f->k->size, s->out_ld);
        fb_rows_backward(f, 0, mine, c, (uint32_t)*f->net->steps);
    }
    fb_wait_for_all(threads);
    fb_sum_gradient(f, 0, rows, 1, f->gradient, t, threads);
    fp_leave(mode);
}

void fb_backward(const fb_network *net, char *arena, const fb_feed *feed, int64_t first_row, const char *dz,
                 int64_t dz_stride, char *gradient, int threads)
{
    frame f = fb_frame(net, arena, feed);
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
    moment now = {0};
    set_moment(&now, f->net, *f->lr, *f->net->steps + 1, 1);
    const int status = fb_apply_gradient(f, f->gradient, f->scale, &now, t, threads);
    if (t == 0) f->outcome.status = status;
    fp_leave(mode);
}

int fb_update(const fb_network *net, const char *gradient, double scale, double lr, int threads, const char *running)
{
    lane lanes[FB_MAX_THREADS];
    frame f = fb_frame(net, NULL, NULL);
    f.lanes = lanes;
    f.gradient = (char *)gradient; /* read only here */
    f.scale = scale;
    f.lr = &lr;
    parallel(update_all, &f, threads, 10, 1);
    if (f.outcome.status != FB_OK) return f.outcome.status;
    ++*net->steps;
    if (running) memcpy(net->buffers, running, (size_t)(net->buffer_count * net->kernels->size));
    return f.outcome.status;
}

static void predict_all(void *context, int t, int threads)
{
    frame *f = context;
    const fp_mode mode = fp_enter();
    const range mine = share(f->feed->rows, f->k->tile_rows, t, threads);
    for (int64_t r = mine.begin; r < mine.end; r += f->block)
        fb_rows_forward(f, f->arena + t * f->arena_bytes, r,
                (range){0, mine.end - r < f->block ? mine.end - r : f->block}, (crew){0, 0, 1}, 0);
    fp_leave(mode);
}

void fb_predict(const fb_network *net, char *arena, int64_t arena_bytes, int64_t block, const fb_feed *feed,
                int threads)
{
    frame f = fb_frame(net, arena, feed);
    f.training = 0;
    f.arena_bytes = arena_bytes;
    f.block = block;
    parallel(predict_all, &f, threads, 2, feed->rows);
}
