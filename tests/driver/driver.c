/* Runs a case file (tests/drive.py) on one target, without Python: for cross-compiled and emulated targets.
 *
 *     driver                       the targets: name, dtype, lanes, tile rows, tile vectors, usable, kernels in the table
 *     driver TARGET DTYPE FILE     exit status 0: every element of every output within its bound, nothing else touched
 *     driver TARGET DTYPE FILE K   the same with a table whose kernel K, counted from 0, does nothing
 *
 * A case is a list of named arrays. An output comes with its exact values and its bounds; everything else that is not
 * scratch is to stay as it was, bit for bit, and so are the margins around every array. What runs a network does it twice:
 * the bits are those of one thread without the kernels for a row alone.
 */
#include "fastbatch.h"
#include "simd/fpmode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MARGIN = 64 * 8, MAX_ARRAYS = 48 }; /* bytes: more than the widest vector overruns */

typedef struct array {
    char name[16];
    int32_t role;              /* 'i' input, 'o' output, 's' scratch */
    int32_t kind;              /* 'f' float, 'd' double; by size 'l' 8, 'i' 4, 'h' 2, 'c' 1 */
    int64_t rows, columns;
} array;

typedef struct held {
    array as;
    size_t bytes;
    char *data, *block, *before;
    double *exact, *bound;     /* of an output */
} held;

typedef struct test {
    char verb[16], name[128];
    int32_t count, thread_count;
    held arrays[MAX_ARRAYS];
} test;

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "driver: %s: %s\n", what, detail);
    exit(2);
}

static void *memory(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!p) fail("out of memory", "");
    return p;
}

static void take(FILE *file, void *to, size_t bytes)
{
    if (bytes && fread(to, bytes, 1, file) != 1) fail("the case file", "ends too early");
}

static size_t size_of(int32_t kind)
{
    return kind == 'c' ? 1 : kind == 'h' ? 2 : kind == 'f' || kind == 'i' ? 4 : 8;
}

/* The array one element away from a cache line; both margins, all ones, read as NaN. Scratch stands on a line. */
static void read_array(FILE *file, held *h)
{
    take(file, &h->as, sizeof h->as);
    const size_t n = (size_t)(h->as.rows * h->as.columns), size = size_of(h->as.kind);
    const size_t skew = h->as.role == 's' ? 0 : size;
    h->bytes = n * size;
    h->block = memory(h->bytes + 2 * MARGIN + skew);
    h->before = memory(h->bytes);
    h->data = h->block + MARGIN + skew;
    memset(h->block, 0xff, h->bytes + 2 * MARGIN + skew);
    take(file, h->data, h->bytes);
    memcpy(h->before, h->data, h->bytes);
    h->exact = h->bound = NULL;
    if (h->as.role == 'o') {
        take(file, h->exact = memory(n * sizeof(double)), n * sizeof(double));
        take(file, h->bound = memory(n * sizeof(double)), n * sizeof(double));
    }
}

static int read_test(FILE *file, test *t)
{
    if (fread(t->verb, sizeof t->verb, 1, file) != 1) return 0;
    take(file, t->name, sizeof t->name);
    take(file, &t->count, sizeof t->count);
    take(file, &t->thread_count, sizeof t->thread_count);
    if (t->count > MAX_ARRAYS) fail(t->name, "more arrays than MAX_ARRAYS");
    for (int i = 0; i < t->count; i++) read_array(file, &t->arrays[i]);
    return 1;
}

static void release(test *t)
{
    for (int i = 0; i < t->count; i++) {
        held *h = &t->arrays[i];
        free(h->block), free(h->before), free(h->exact), free(h->bound);
    }
}

/* -- what a kernel is given ----------------------------------------------------------------------------------------- */

static held *maybe(test *t, const char *name)
{
    for (int i = 0; i < t->count; i++)
        if (strcmp(t->arrays[i].as.name, name) == 0) return &t->arrays[i];
    return NULL;
}

static held *find(test *t, const char *name)
{
    held *h = maybe(t, name);
    if (!h) fail(t->name, name);
    return h;
}

static void *at(test *t, const char *name)
{
    held *h = maybe(t, name);
    return h ? h->data : NULL;
}

static double number(test *t, const char *name) { return *(double *)find(t, name)->data; }
static int64_t integer(test *t, const char *name) { return *(int64_t *)find(t, name)->data; }

static int row_of(test *t, const char *name, const char *const *names)
{
    const held *h = find(t, name);
    for (int i = 0; names[i]; i++)
        if (strlen(names[i]) == h->bytes && memcmp(names[i], h->data, h->bytes) == 0) return i;
    fail(t->name, "a name without a row in csrc/ops");
    return -1;
}

static fb_loss loss_of(test *t)
{
    const double *divisors = at(t, "divisors");
    return (fb_loss){row_of(t, "loss", fb_loss_names), number(t, "parameter"), at(t, "per_output"), divisors[0], divisors[1]};
}

/* Segments of one rule, whose row here need not be that of the library that wrote them. */
static const fb_segment *segments_of(test *t, int64_t *count)
{
    const held *h = find(t, "segments");
    if (h->bytes % sizeof(fb_segment)) fail(t->name, "another fb_segment");
    *count = (int64_t)(h->bytes / sizeof(fb_segment));
    const fb_segment *found = at(t, "segments");
    for (int64_t i = 0; i < *count; i++)
        if (found[i].optimizer.rule != row_of(t, "rule", fb_optimizer_names)) fail(t->name, "another row of optimizers.def");
    return found;
}

/* -- one function per verb: the only place that knows how a kernel is called ---------------------------------------- */

static void dense_forward(const fb_kernels *k, test *t)
{
    const array x = find(t, "x")->as, a = find(t, "a")->as;
    k->dense_forward(x.rows, x.columns, a.columns, at(t, "x"), x.columns, at(t, "w"), at(t, "b"),
                     row_of(t, "activation", fb_activation_names), 0, a.columns, at(t, maybe(t, "z") ? "z" : "a"),
                     at(t, "a"), a.columns);
}

static void dense_backward(const fb_kernels *k, test *t)
{
    const array x = find(t, "x")->as, dz = find(t, "dz")->as;
    if (maybe(t, "saved"))
        k->slope(row_of(t, "activation", fb_activation_names), dz.rows, dz.columns, at(t, "saved"), at(t, "dz"),
                 dz.columns);
    k->dense_backward_weights(x.rows, x.columns, dz.columns, at(t, "x"), x.columns, at(t, "dz"), dz.columns, 0,
                              x.columns + (maybe(t, "db") != NULL), 1, at(t, "dw"), at(t, "db"), NULL, NULL);
    if (!maybe(t, "dx")) return;
    k->dense_backward_rows(x.rows, x.columns, dz.columns, at(t, "dz"), dz.columns, at(t, "w"), 0, x.columns,
                           at(t, "dx"), x.columns);
}

static void activate(const fb_kernels *k, test *t)
{
    const array a = find(t, "a")->as;
    k->activate(row_of(t, "activation", fb_activation_names), a.rows, a.columns, at(t, "z"), a.columns, at(t, "a"),
                a.columns);
}

static void slope(const fb_kernels *k, test *t)
{
    const array dz = find(t, "dz")->as;
    k->slope(row_of(t, "activation", fb_activation_names), dz.rows, dz.columns, at(t, "saved"), at(t, "dz"), dz.columns);
}

static void loss(const fb_kernels *k, test *t)
{
    const array a = find(t, "a")->as;
    const fb_loss row = loss_of(t);
    double *share = at(t, "share"), *row_loss = at(t, "row_loss"), *sums = at(t, "sums");
    if (maybe(t, "labels"))
        k->one_hot(a.rows, a.columns, at(t, "labels"), NULL, row.per_output, at(t, "y"), a.columns, share);
    k->loss(&row, a.rows, a.columns, at(t, "a"), a.columns, at(t, "y"), a.columns, at(t, "weight"), at(t, "da"),
            a.columns, row_loss);
    for (int64_t r = 0; r < a.rows; r++) sums[0] += row_loss[r], sums[1] += share[r];
}

static void update(const fb_kernels *k, test *t)
{
    int64_t count;
    const fb_segment *segment = segments_of(t, &count);
    const int64_t n = find(t, "p")->as.columns;
    fb_update_tensor(k, &segment->optimizer, number(t, "lr"), integer(t, "t"), 1,
                     (fb_slice){at(t, "p"), at(t, "g"), at(t, "slots"), n, n, 0});
}

static void dropout(const fb_kernels *k, test *t)
{
    const array dst = find(t, "dst")->as;
    k->dropout(dst.rows, dst.columns, at(t, "src"), at(t, "dst"), dst.columns, (uint64_t)integer(t, "seed"),
               (uint32_t)integer(t, "update"), (uint32_t)integer(t, "layer"), integer(t, "first_row"),
               integer(t, "threshold"));
}

static void gather(const fb_kernels *k, test *t)
{
    const array dst = find(t, "dst")->as;
    k->gather(dst.rows, integer(t, "width"), at(t, "src"), find(t, "src")->as.columns * k->size, at(t, "index"),
              at(t, "dst"), dst.columns);
}

/* How rows of x become inputs; NULL where they are elements as they lie. */
static const fb_input *input_of(test *t, fb_input *input)
{
    if (!maybe(t, "source")) return NULL;
    *input = (fb_input){row_of(t, "source", fb_source_names), (int64_t)size_of(find(t, "x")->as.kind), integer(t, "step"),
                        at(t, "scale"), at(t, "shift"), number(t, "noise")};
    return input;
}

static void convert(const fb_kernels *k, test *t)
{
    const array dst = find(t, "dst")->as;
    fb_input input;
    k->convert(input_of(t, &input), dst.rows, integer(t, "width"), at(t, "x"), integer(t, "x_stride"), at(t, "order"),
               at(t, "dst"), dst.columns);
}

static void mix(const fb_kernels *k, test *t)
{
    const array dst = find(t, "dst")->as;
    fb_input input;
    k->mix(input_of(t, &input), dst.rows, integer(t, "width"), at(t, "x"), integer(t, "x_stride"), at(t, "order"),
           at(t, "share"), find(t, "share")->as.columns > 1, at(t, "dst"), dst.columns);
}

static void noise(const fb_kernels *k, test *t)
{
    const array dst = find(t, "dst")->as;
    k->noise(dst.rows, integer(t, "width"), at(t, "dst"), dst.columns, (uint64_t)integer(t, "seed"),
             (uint32_t)integer(t, "update"), integer(t, "first_row"), number(t, "std"));
}

static void permutation(const fb_kernels *k, test *t)
{
    const int64_t n = find(t, "order")->as.columns;
    fb_permutation(k, n, (uint64_t)integer(t, "seed"), (uint32_t)integer(t, "epoch"), 0, n - 1, at(t, "order"));
}

/* What each chain of sums goes to. */
static void multiply_adds(const fb_kernels *k, test *t)
{
    const int64_t loops = integer(t, "loops");
    double sum = 0;
    const int64_t flops = k->multiply_adds(loops, &sum);
    *(double *)at(t, "limit") = sum / ((double)flops / (2 * (double)loops));
}

static fb_network network_of(const fb_kernels *k, test *t)
{
    const int64_t *offsets = at(t, "offsets");
    const held *stages = find(t, "stages");
    if (stages->as.columns * (int64_t)sizeof(int64_t) != sizeof(fb_stage)) fail(t->name, "another fb_stage");
    int64_t segment_count;
    const fb_segment *segments = segments_of(t, &segment_count);
    return (fb_network){.kernels = k, .stages = at(t, "stages"), .stage_count = stages->as.rows,
                        .parameters = at(t, "parameters"), .parameter_count = find(t, "parameters")->as.columns,
                        .slots = at(t, "slots"), .steps = at(t, "steps"), .seed = (uint64_t)integer(t, "seed"),
                        .loss = loss_of(t), .segments = segments, .segment_count = segment_count,
                        .uniform = (int)integer(t, "uniform"), .norms = at(t, "norms"), .y = offsets[0], .row_loss = offsets[1],
                        .row_weight = offsets[2], .row_share = offsets[3], .gradient = offsets[4],
                        .scratch = offsets[5], .scratch_bytes = offsets[6], .parts = offsets[7],
                        .part_bytes = offsets[8], .running = offsets[9], .objective = (int)integer(t, "objective"),
                        .buffers = at(t, "buffers"), .buffer_count = find(t, "buffers")->as.columns,
                        .units = at(t, "units"), .unit_count = maybe(t, "units") ? find(t, "units")->as.rows : 0,
                        .max_norm = number(t, "max_norm"), .clip_value = number(t, "clip_value"),
                        .columns_held = (int)integer(t, "columns_held")};
}

static fb_feed feed_of(const fb_kernels *k, test *t, fb_input *input)
{
    const held *y = maybe(t, "y");
    return (fb_feed){.x = at(t, "x"), .x_stride = integer(t, "x_stride"), .input = input_of(t, input), .y = at(t, "y"),
                     .y_stride = y ? y->as.columns * k->size : 0, .labels = at(t, "labels"), .weight = at(t, "weight"),
                     .order = at(t, "order"), .rows = integer(t, "rows"), .batch = integer(t, "batch"),
                     .piece = integer(t, "piece"), .outputs = at(t, "outputs"), .mix_share = at(t, "mix_share"),
                     .mix_shift = at(t, "mix_shift")};
}

static void accumulate(const fb_kernels *k, test *t)
{
    const fb_network net = network_of(k, t);
    const held *norms = maybe(t, "input_norms");
    const int64_t stride = norms ? norms->as.columns : 0;
    const fb_per_sample samples = {at(t, "row_loss"), at(t, "row_weight"), at(t, "input_norms"), at(t, "delta_norms"),
                                   stride, stride, at(t, "norm_norms"), at(t, "row_scale")};
    fb_input input;
    const fb_feed feed = feed_of(k, t, &input);
    const fb_sums sums = fb_accumulate(&net, at(t, "arena"), &feed, 0, at(t, "gradient"), t->thread_count, (fb_sums){0},
                                       &samples);
    memcpy(at(t, "sums"), &sums, 2 * sizeof(double));
}

static void run(const fb_kernels *k, test *t)
{
    const fb_network net = network_of(k, t);
    fb_input input;
    const fb_feed feed = feed_of(k, t, &input);
    const int64_t steps = (feed.rows + feed.batch - 1) / feed.batch, forever = INT64_C(1) << 60;
    fb_tuner tuner = {0};
    fb_sums sums = {0};
    const fb_outcome outcome = fb_run(&net, at(t, "arena"), &feed, 0, steps, at(t, "lr"), forever, t->thread_count, &tuner,
                                      &sums);
    if (outcome.threads != t->thread_count) fail(t->name, "fewer threads than asked for");
    memcpy(at(t, "sums"), &sums, sizeof sums);
    memcpy(at(t, "outcome"), (double[]){(double)outcome.next, outcome.status}, 2 * sizeof(double));
}

static void predict(const fb_kernels *k, test *t)
{
    const fb_network net = network_of(k, t);
    fb_input input;
    const fb_feed feed = feed_of(k, t, &input);
    fb_predict(&net, at(t, "arena"), find(t, "arena")->as.columns / 2, feed.piece, &feed, t->thread_count);
}

static const struct { const char *name; void (*call)(const fb_kernels *, test *); } verbs[] = {
    {"dense_forward", dense_forward}, {"dense_backward", dense_backward}, {"activate", activate}, {"slope", slope},
    {"loss", loss}, {"update", update}, {"dropout", dropout}, {"gather", gather}, {"convert", convert}, {"mix", mix},
    {"noise", noise}, {"permutation", permutation}, {"multiply_adds", multiply_adds}, {"accumulate", accumulate},
    {"run", run}, {"predict", predict}};
enum { VERBS = sizeof verbs / sizeof *verbs };

/* -- verdict -------------------------------------------------------------------------------------------------------- */

static double value(const held *h, int64_t i)
{
    return h->as.kind == 'f' ? (double)((float *)h->data)[i]
         : h->as.kind == 'd' ? ((double *)h->data)[i]
                             : (double)((int64_t *)h->data)[i];
}

/* Error by bound; above 1, or infinite where the kinds of the numbers differ, is a failure. As tests/oracle.py has it: an
 * exact value that does not fit may come out as infinity. */
static double ratio_of(double got, double exact, double bound, double largest)
{
    if (exact != exact) return got != got ? 0 : __builtin_inf();
    if (exact - exact != 0) return got == exact ? 0 : __builtin_inf();
    if (got - got != 0 && got * exact > 0 && __builtin_fabs(exact) + bound >= largest) return 0;
    const double error = __builtin_fabs(got - exact);
    return !(bound < __builtin_inf()) || error != error ? __builtin_inf() : error == 0 ? 0 : error / bound;
}

/* The worst ratio of a test; complains about what is wrong. */
static double judge(const test *t)
{
    double worst = 0;
    for (int i = 0; i < t->count; i++) {
        const held *h = &t->arrays[i];
        for (const char *p = h->block; p < h->data + h->bytes + MARGIN; p++)
            if ((p < h->data || p >= h->data + h->bytes) && *p != (char)0xff) {
                printf("%s: %s: byte %td beside the array was written\n", t->name, h->as.name, p - h->data);
                worst = __builtin_inf();
                break;
            }
        if (h->as.role == 'i' && memcmp(h->data, h->before, h->bytes)) {
            printf("%s: %s: an input was written\n", t->name, h->as.name);
            worst = __builtin_inf();
        }
        const double largest = h->as.kind == 'f' ? __FLT_MAX__ : __DBL_MAX__;
        double most = 0;
        int64_t place = 0;
        for (int64_t j = 0; h->exact && j < h->as.rows * h->as.columns; j++) {
            const double ratio = ratio_of(value(h, j), h->exact[j], h->bound[j], largest);
            if (ratio > most) most = ratio, place = j;
        }
        if (most > 1)
            printf("%s: %s[%lld, %lld]: expected %.9g +- %.3g, got %.9g\n", t->name, h->as.name,
                   (long long)(place / h->as.columns), (long long)(place % h->as.columns), h->exact[place],
                   h->bound[place], value(h, place));
        worst = most > worst ? most : worst;
    }
    return worst;
}

static void call(void (*verb)(const fb_kernels *, test *), const fb_kernels *k, test *t)
{
    const fp_mode mode = fp_enter();
    verb(k, t);
    fp_leave(mode);
}

/* Whether a network's outputs have other bits on one thread without the kernels for a row alone. */
static int depends(void (*verb)(const fb_kernels *, test *), const fb_kernels *k, test *t)
{
    fb_kernels others = *k;
    others.row_forward = NULL;
    int differ = 0;
    for (int i = 0; i < t->count; i++) {
        held *h = &t->arrays[i];
        char *first = memory(h->bytes); /* in place of what was there before, which goes back to where it was */
        memcpy(first, h->data, h->bytes);
        memcpy(h->data, h->before, h->bytes);
        free(h->before);
        h->before = first;
    }
    test again = *t;
    again.thread_count = 1;
    call(verb, &others, &again);
    for (int i = 0; i < t->count; i++) {
        const held *h = &t->arrays[i];
        if (h->as.role != 'o' || memcmp(h->data, h->before, h->bytes) == 0) continue;
        printf("%s: %s: other bits on one thread by the kernels for many rows\n", t->name, h->as.name);
        differ = 1;
    }
    return differ;
}

/* The table from its first kernel to its last is nothing but pointers to functions. */
enum {
    FIRST_KERNEL = offsetof(fb_kernels, gather),
    KERNELS = (offsetof(fb_kernels, limit) - FIRST_KERNEL) / sizeof(void (*)(void))
};

static void nothing(void) {}

static fb_kernels without(const fb_kernels *k, const char *kernel)
{
    fb_kernels table = *k;
    char *end;
    const long which = strtol(kernel, &end, 10);
    if (end == kernel || *end || which < 0 || which >= KERNELS) fail(kernel, "not a kernel of the table");
    void (*const dead)(void) = nothing;
    memcpy((char *)&table + FIRST_KERNEL + (size_t)which * sizeof dead, &dead, sizeof dead);
    return table;
}

static int list_targets(void)
{
    for (const fb_target *t = fb_targets(); t->name; t++)
        for (int wide = 0; wide < 2; wide++) {
            const fb_kernels *k = wide ? t->f64 : t->f32;
            printf("%s %s %d %d %d %d %d\n", t->name, k->dtype, k->lanes, k->tile_rows, k->tile_vectors, t->usable,
                   (int)KERNELS);
        }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 1) return list_targets();
    if (argc != 4 && argc != 5) fail("usage", "driver [TARGET DTYPE FILE [KERNEL]]");
    const fb_target *target = fb_find_target(argv[1]);
    if (!target || !target->usable) fail(argv[1], "not a target, or this CPU cannot run it");
    const fb_kernels *found = fb_find_kernels(argv[1], argv[2]);
    if (!found || strcmp(found->dtype, argv[2])) fail(argv[2], "not a dtype");
    const fb_kernels table = argc == 5 ? without(found, argv[4]) : *found, *kernels = &table;
    FILE *file = fopen(argv[3], "rb");
    if (!file) fail(argv[3], "cannot be read");
    struct { int cases, failed; double worst; char name[128]; } sum[VERBS] = {0};
    int cases = 0, failed = 0;
    fb_set_thread_policy(0, 1); /* as many threads as a case says */
    for (test t; read_test(file, &t); cases++) {
        int v = 0;
        while (v < VERBS && strcmp(verbs[v].name, t.verb)) v++;
        if (v == VERBS) fail(t.name, "a verb that the driver does not know");
        call(verbs[v].call, kernels, &t);
        double worst = judge(&t);
        if (maybe(&t, "stages") && depends(verbs[v].call, kernels, &t)) worst = __builtin_inf();
        sum[v].cases++, sum[v].failed += worst > 1, failed += worst > 1;
        if (worst >= sum[v].worst) sum[v].worst = worst, memcpy(sum[v].name, t.name, sizeof t.name);
        release(&t);
    }
    fclose(file);
    printf("%-10s %-8s %-15s %6s %7s  %-10s\n", "target", "dtype", "kernel", "cases", "failed", "worst error / bound");
    for (int v = 0; v < VERBS; v++)
        if (sum[v].cases)
            printf("%-10s %-8s %-15s %6d %7d  %-10.3g %s\n", argv[1], argv[2], verbs[v].name, sum[v].cases, sum[v].failed,
                   sum[v].worst, sum[v].name);
    if (!cases) fail(argv[3], "no cases");
    return failed ? 1 : 0;
}
