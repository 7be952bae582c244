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
#define OPTIMIZER(name, slot_count, hyper_names, constant_names, prepare, rule) #name,
#include "ops/optimizers.def"
#undef OPTIMIZER
    NULL};

const int fb_optimizer_slots[] = {
#define OPTIMIZER(name, slot_count, hyper_names, constant_names, prepare, rule) slot_count,
#include "ops/optimizers.def"
#undef OPTIMIZER
};

const char *const fb_optimizer_hyper[] = {
#define EXPANDED_TEXT(...) TEXT(__VA_ARGS__)
#define OPTIMIZER(name, slot_count, hyper_names, constant_names, prepare, rule) EXPANDED_TEXT(hyper_names),
#include "ops/optimizers.def"
#undef OPTIMIZER
    NULL};

/* b^t for b <= 1 by squaring, within t 2^-53 relatively, which is what a rounding of b does to it; no libm, whose bits
 * differ between systems. What 1 - b^t cannot feel counts as 0. */
static double power(double b, int64_t t)
{
    double result = 1;
    for (; t > 0 && result > 0x1p-60; t >>= 1, b *= b)
        if (t & 1) result *= b;
    return result > 0x1p-60 ? result : 0;
}

#define OPTIMIZER(name, slot_count, hyper_names, constant_names, prepare, rule)                                                        \
    struct hyper_##name { double hyper_names; };                                                                             \
    struct constants_##name { double constant_names; };                                                                     \
    _Static_assert(sizeof(struct hyper_##name) <= FB_MAX_HYPER * sizeof(double), #name ": too many hyperparameters");  \
    _Static_assert(sizeof(struct constants_##name) <= FB_MAX_CONSTANTS * sizeof(double), #name ": too many constants"); \
    static void prepare_##name(const struct hyper_##name *h, double lr, int64_t t, struct constants_##name *c)         \
    {                                                                                                                  \
        (void)t;                                                                                                       \
        prepare                                                                                                        \
    }
#include "ops/optimizers.def"
#undef OPTIMIZER

void fb_prepare(const fb_optimizer *optimizer, double lr, int64_t t, double *constants)
{
    int rule = 0;
#define OPTIMIZER(name, slot_count, hyper_names, constant_names, prepare, body)                                                       \
    if (optimizer->rule == rule++) {                                                                                   \
        prepare_##name((const void *)optimizer->hyper, lr, t, (void *)constants);                                      \
        return;                                                                                                        \
    }
#include "ops/optimizers.def"
#undef OPTIMIZER
}
