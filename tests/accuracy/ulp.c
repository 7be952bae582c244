/* The largest error of every function of csrc/simd/math_f32.h on every target over every float32, in units of the last
 * place. ulp_f64.c does the same for float64.
 *
 *     ulp [EVERY [THREADS [FUNCTION]]]      every EVERY-th bit pattern, 1 by default
 *
 * The reference is libm's double, rounded to nothing: it is within about 1e-8 ulp of float32 (normal_cdf, the worst: the
 * rounding of x / sqrt 2 is amplified by x^2, up to 2e-6 ulp). Subnormal arguments count as zero, and so may results
 * below 2 FLT_MIN, as in tests/oracle.py. An infinity counts as 2^128, so that one which comes too early has an error in ulp as well. Prints
 * one line per function and target: function, target, EVERY, arguments in the domain, largest error, where, and how many
 * results are of the wrong kind: no number or infinite where the exact value is not, or the reverse.
 */
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simd/fpmode.h"

typedef void (*function)(const float *, float *, int64_t);
#define TARGET(name, usable) extern const function fb_##name##_f32[];
#include "targets/targets.def"
#undef TARGET

enum { BLOCK = 4096, MAX_TARGETS = 8, MAX_THREADS = 64 };
static const function *target[MAX_TARGETS];
static const char *target_name[MAX_TARGETS];
static int targets;

static double normal_cdf(double x) { return 0.5 * erfc(-0.70710678118654752440 * x); }
static double normal_pdf(double x) { return 0.39894228040143267794 * exp(-0.5 * x * x); }

#define FUNCTION(name, reference, ...)                                                                                 \
    static void reference_##name(const float *v, double *y, int n)                                                     \
    {                                                                                                                  \
        for (int i = 0; i < n; i++) {                                                                                  \
            const double x = (double)v[i];                                                                             \
            y[i] = reference;                                                                                          \
        }                                                                                                              \
    }
#include "functions.def"
#undef FUNCTION

static const struct { const char *name; void (*reference)(const float *, double *, int); } functions[] = {
#define FUNCTION(name, reference, ...) {#name, reference_##name},
#include "functions.def"
#undef FUNCTION
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

typedef struct finding { double worst; float at; uint64_t count, wrong; } finding;

typedef struct share { int thread, threads, function; uint64_t every; finding found[MAX_TARGETS]; } share;

static float of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Distance in units of the last place of `exact`, as float32 has them; 0 where both are no numbers. */
static double ulps(float got, double exact)
{
    if (isnan(exact) || isnan(got)) return isnan(exact) && isnan(got) ? 0 : INFINITY;
    if (isinf(exact) && isinf(got)) return exact == (double)got ? 0 : INFINITY;
    if (isinf(exact)) return INFINITY;
    double value = isinf(got) ? copysign(0x1p128, (double)got) : (double)got;
    if (fabs(exact) < 2 * (double)FLT_MIN && value == 0) return 0;
    if (fabs(exact) >= 0x1p128) exact = copysign(0x1p128, exact);
    int exponent;
    frexp(exact, &exponent);
    exponent = exponent > 128 ? 128 : exponent < -125 ? -125 : exponent;
    return fabs(value - exact) / ldexp(1, exponent - 24);
}

static int in_domain(int f, float x)
{
    return strcmp(functions[f].name, "log1p_unit_") != 0 || (x >= 0 && x <= 1);
}

static void *sweep(void *context)
{
    share *s = context;
    static _Thread_local float x[BLOCK], y[BLOCK];
    static _Thread_local double exact[BLOCK];
    const uint64_t total = (UINT64_C(1) << 32) / s->every;
    uint64_t next = total * (uint64_t)s->thread / (uint64_t)s->threads;
    const uint64_t end = total * (uint64_t)(s->thread + 1) / (uint64_t)s->threads;
    while (next < end) {
        int n = 0;
        for (; n < BLOCK && next < end; next++) {
            const float v = of_bits((uint32_t)(next * s->every));
            if (in_domain(s->function, v)) x[n++] = fabsf(v) < FLT_MIN ? copysignf(0, v) : v;
        }
        const int used = n;
        for (; n % 64 && n < BLOCK; n++) x[n] = 0;
        functions[s->function].reference(x, exact, used);
        for (int t = 0; t < targets; t++) {
            finding *f = &s->found[t];
            const fp_mode mode = fp_enter();
            target[t][s->function](x, y, n);
            fp_leave(mode);
            f->count += (uint64_t)used;
            for (int i = 0; i < used; i++) {
                /* correctly rounded, so half an ulp at most: cheaper than to measure it, and no maximum */
                if (f->worst >= 0.5 && y[i] == (float)exact[i]) continue;
                const double error = ulps(y[i], exact[i]);
                if (isinf(error)) f->wrong++;
                else if (error > f->worst) f->worst = error, f->at = x[i];
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const uint64_t every = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    const int threads = argc > 2 ? atoi(argv[2]) : 1;
    if (every < 1 || threads < 1 || threads > MAX_THREADS) return fprintf(stderr, "usage: ulp [EVERY [THREADS [FUNCTION]]]\n"), 2;
#define TARGET(name, usable)                                                                                           \
    if (usable) target[targets] = fb_##name##_f32, target_name[targets++] = #name;
#include "targets/targets.def"
#undef TARGET
    static share shares[MAX_THREADS];
    for (int f = 0; f < FUNCTIONS; f++) {
        if (argc > 3 && strcmp(argv[3], functions[f].name)) continue;
        pthread_t id[MAX_THREADS];
        for (int t = 0; t < threads; t++) {
            shares[t] = (share){t, threads, f, every, {{0}}};
            if (pthread_create(&id[t], NULL, sweep, &shares[t])) return fprintf(stderr, "no thread\n"), 2;
        }
        for (int t = 0; t < threads; t++) pthread_join(id[t], NULL);
        for (int k = 0; k < targets; k++) {
            finding all = shares[0].found[k];
            for (int t = 1; t < threads; t++) {
                const finding *one = &shares[t].found[k];
                if (one->worst > all.worst) all.worst = one->worst, all.at = one->at;
                all.count += one->count, all.wrong += one->wrong;
            }
            printf("%s %s %llu %llu %.4f %.9g %llu\n", functions[f].name, target_name[k], (unsigned long long)every,
                   (unsigned long long)all.count, all.worst, (double)all.at, (unsigned long long)all.wrong);
            fflush(stdout);
        }
    }
    return 0;
}
