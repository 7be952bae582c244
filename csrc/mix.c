/* Mixup: rows of a step and their targets mixed with other rows of the same step, wherever in the pass those lie. */
#include "frame.h"

/* Of the logical batch that the rows from `base` on belong to. */
typedef struct mixture {
    double share;
    int64_t first, rows, shift; /* its first row in the pass, and their number */
} mixture;

static mixture mixture_of(const frame *f, int64_t base)
{
    const fb_feed *feed = f->feed;
    const int64_t first = base - f->first_row, step = first / feed->batch, left = feed->rows - first;
    return (mixture){feed->mix_share[step], first, left < feed->batch ? left : feed->batch, feed->mix_shift[step]};
}

/* The rows that row r and those behind it, up to `end`, are mixed with, as far as they lie side by side in the pass. */
enum { MOST = 64 };
typedef struct partners {
    int64_t first, count;
    const int64_t *index; /* NULL: rows from `first` on */
} partners;

static partners partners_of(const frame *f, const mixture *m, int64_t r, int64_t end)
{
    const int64_t place = (f->first_row + r + m->shift) % m->rows, left = m->rows - place;
    int64_t count = end - r < left ? end - r : left;
    if (count > MOST) count = MOST;
    return (partners){m->first + place, count, f->feed->order ? f->feed->order + m->first + place : NULL};
}

void fb_mix_inputs(const frame *f, int64_t base, range rows, char *x, int64_t ld)
{
    const fb_feed *feed = f->feed;
    const mixture m = mixture_of(f, base);
    if (m.share == 1) return;
    for (int64_t r = rows.begin, n; r < rows.end; r += n) {
        const partners p = partners_of(f, &m, r, rows.end);
        n = p.count;
        f->k->mix(feed->input, n, f->net->stages[0].inputs, feed->x + (p.index ? 0 : p.first * feed->x_stride),
                  feed->x_stride, p.index, &m.share, 0, x + (r - rows.begin) * ld * f->k->size, ld);
    }
}

/* The term of a row is w_i l(z, y_i) share + w_j l(z, y_j) (1 - share) where the loss is linear in y: that is the loss of one
 * target, the mean of the two by these weights, times their sum. */
void fb_mix_targets(const frame *f, int64_t base, range rows, double unit, char *y, int64_t ld, double *weight, double *part)
{
    const fb_feed *feed = f->feed;
    const int64_t outputs = f->net->stages[f->net->stage_count - 1].outputs;
    const mixture m = mixture_of(f, base);
    double share[MOST], rest[MOST];
    if (m.share == 1) return;
    for (int64_t r = rows.begin, n; r < rows.end; r += n) {
        const partners p = partners_of(f, &m, r, rows.end);
        double *weights = weight + (r - rows.begin), *parts = part + (r - rows.begin);
        char *targets = y + (r - rows.begin) * ld * f->k->size;
        n = p.count;
        for (int64_t i = 0; i < n; i++) {
            const double own = m.share * weights[i];
            rest[i] = (1 - m.share) * (feed->weight ? unit * row_weight(feed, p.first + i) : 1);
            weights[i] = own + rest[i];
            share[i] = weights[i] > 0 ? own / weights[i] : 1;
            parts[i] *= m.share;
        }
        if (feed->labels) {
            f->k->mix_labels(n, outputs, feed->labels + (p.index ? 0 : p.first), p.index, f->net->loss.per_output, share,
                             rest, targets, ld, parts);
            continue;
        }
        for (int64_t i = 0; i < n; i++) parts[i] += rest[i];
        f->k->mix(NULL, n, outputs, feed->y + (p.index ? 0 : p.first * feed->y_stride), feed->y_stride, p.index, share,
                  1, targets, ld);
    }
}
