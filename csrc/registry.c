/* Names of the rows, and the once-per-step part of the optimizers. Target-independent: the same bits everywhere. */
#include "fastbatch.h"

const char *const fb_activation_names[] = {
#define ACTIVATION(name, saves, value, slope) #name,
#include "ops/activations.def"
#undef ACTIVATION
    NULL};

const char *const fb_loss_names[] = {
#define ELEMENT_LOSS(name, g, h, value, slope) #name,
#define ROW_LOSS(name) #name,
#include "ops/losses.def"
#undef ELEMENT_LOSS
#undef ROW_LOSS
    NULL};

const char *const fb_source_names[] = {
#define SOURCE(name, type, value) #name,
#include "ops/sources.def"
#undef SOURCE
    NULL};

#define TEXT(...) #__VA_ARGS__
#define HYPER(...) __VA_ARGS__
#define CONSTANTS(...) __VA_ARGS__
#define PREPARE(...) __VA_ARGS__
#define RULE(...)

const char *const fb_optimizer_names[] = {
#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, rule) #name,
#include "ops/optimizers.def"
#undef OPTIMIZER
    NULL};

const int fb_optimizer_slots[] = {
#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, rule) slot_count,
#include "ops/optimizers.def"
#undef OPTIMIZER
};

const int fb_optimizer_normed[] = {
#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, rule) normed,
#include "ops/optimizers.def"
#undef OPTIMIZER
};

const char *const fb_optimizer_hyper[] = {
#define EXPANDED_TEXT(...) TEXT(__VA_ARGS__)
#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, rule) EXPANDED_TEXT(hyper_names),
#include "ops/optimizers.def"
#undef OPTIMIZER
    NULL};

/* b^t for b <= 1 by squaring, within t 2^-53 relatively, which is what a rounding of b does to it; no libm, whose bits
 * differ between systems. What 1 - b^t cannot feel counts as 0. */
static double power(double b, int64_t t)
{
    double result = 1;
    for (; t > 0 && result > 0x1p-60; t >>= 1, b *= b) {
        const double factor[2] = {1, b}; /* the low bits of t change too often to be predicted */
        result *= factor[t & 1];
    }
    return result > 0x1p-60 ? result : 0;
}

/* NAdam's momentum of update t, and the product of those up to it: at most b^t, so that few factors make it nothing. */
static double momentum_at(double b, double warmth, int64_t t) { return b * (1 - 0.5 * power(warmth, t)); }

static double momenta(double b, double warmth, int64_t t)
{
    double product = power(b, t) > 0, decay = 1;
    for (int64_t i = 0; i < t && product > 0x1p-60; i++) {
        decay *= warmth;
        product *= b * (1 - 0.5 * decay);
    }
    return product > 0x1p-60 ? product : 0;
}

#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, rule)                                \
    struct hyper_##name { double hyper_names; };                                                                       \
    struct constants_##name { double constant_names; };                                                                \
    _Static_assert(sizeof(struct hyper_##name) <= FB_MAX_HYPER * sizeof(double), #name ": too many hyperparameters");  \
    _Static_assert(offsetof(struct hyper_##name, weight_decay) == 0, #name ": weight_decay comes first");              \
    _Static_assert(sizeof(struct constants_##name) <= FB_AHEAD * sizeof(double), #name ": too many constants");        \
    _Static_assert(slot_count <= FB_MAX_SLOTS, #name ": too many slots");                                              \
    static void prepare_##name(const struct hyper_##name *h, double lr, int64_t t, const double *norms,                \
                               struct constants_##name *c)                                                             \
    {                                                                                                                  \
        (void)t, (void)norms;                                                                                          \
        prepare                                                                                                        \
    }
#include "ops/optimizers.def"
#undef OPTIMIZER

fb_own fb_own_rows[FB_MOST_OWN][2];

int fb_register(void *first, void *second)
{
    static int count;
    if (count == FB_MOST_OWN) return -1;
    fb_own_rows[count][0].address = first;
    fb_own_rows[count][1].address = second;
    return FB_OWN + count++;
}

void fb_prepare(const fb_optimizer *optimizer, double lr, int64_t t, double scale, const double *norms,
                double *constants)
{
    int rule = 0;
    double hyper[FB_MAX_HYPER];
    for (int i = 0; i < FB_MAX_HYPER; i++) hyper[i] = optimizer->hyper[i];
    if (optimizer->by_weight != 0) hyper[0] *= scale;
    lr *= optimizer->lr_factor;
    constants[FB_L1] = optimizer->l1;
    constants[FB_AHEAD] = lr * optimizer->ahead;
    if (optimizer->rule >= FB_OWN) {
        fb_own_rows[optimizer->rule - FB_OWN][0].prepare(lr, (double)t, hyper, constants);
        return;
    }
#define OPTIMIZER(name, slot_count, normed, hyper_names, constant_names, prepare, body)                                \
    if (optimizer->rule == rule++) {                                                                                   \
        prepare_##name((const void *)hyper, lr, t, norms, (void *)constants);                                          \
        return;                                                                                                        \
    }
#include "ops/optimizers.def"
#undef OPTIMIZER
}

void fb_update_tensor(const fb_kernels *kernels, const fb_optimizer *optimizer, double lr, int64_t t, double scale,
                      fb_slice slice)
{
    double norms[2] = {0}, constants[FB_MAX_CONSTANTS] = {0};
    fb_prepare(optimizer, lr, t, scale, norms, constants);
    if (optimizer->rule < FB_OWN && fb_optimizer_normed[optimizer->rule]) {
        for (int64_t i = 0; i < slice.n; i += FB_NORM_BLOCK) {
            double part[2];
            kernels->update_norms((int)optimizer->rule, constants, scale, fb_part_of(kernels, slice, i), part);
            norms[0] += part[0], norms[1] += part[1];
        }
        for (int i = 0; i < 2; i++) norms[i] = __builtin_sqrt(norms[i]);
        fb_prepare(optimizer, lr, t, scale, norms, constants);
    }
    kernels->update((int)optimizer->rule, constants, scale, slice);
}
