/* The largest error of every function of csrc/simd/math_f64.h on every target, in units of the last place.
 *
 *     ulp_f64 [SAMPLES [THREADS [FUNCTION]]]      2^20 samples by default, in each of the ways below
 *
 * There are too many float64 for all of them: SAMPLES bit patterns, so every kind there is, SAMPLES numbers in each of five
 * intervals where functions bend, and the 2048 neighbours of every critical argument: where an exponent changes, where a
 * result becomes 0, infinite or 1, where a branch of the formula begins. A smaller number of samples is a part of a larger.
 * The reference is libm's long double, of 64 bits at least, with the rounding of squares put right. Output, subnormal numbers
 * and infinities as in ulp.c, SAMPLES in place of EVERY.
 */
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#include "simd/fpmode.h"

typedef void (*function)(const double *, double *, int64_t);
#define TARGET(name, usable) extern const function fb_##name##_f64[];
#include "targets/targets.def"
#undef TARGET

enum { BLOCK = 4096, MAX_TARGETS = 8, MAX_THREADS = 64, NEIGHBOURS = 1024 };
static const function *target[MAX_TARGETS];
static const char *target_name[MAX_TARGETS];
static int targets;

/* x / sqrt 2 = t + r, and erfc(t + r) = erfc(t) - 2 / sqrt(pi) e^(-t^2) r: rounding t alone would cost x^2 2^-64. */
static long double normal_cdf(long double x)
{
    if (fabs(x) > 64) return x > 0; /* a NaN goes on */
    const long double half_root = 0.707106781186547524400844362104849039L, root_pi = 1.12837916709551257389615890312154517L;
    const double high = (double)half_root;
    const long double low = -4.8336466567264567e-17L; /* sqrt(1/2) - high */
    const long double t = -x * half_root;
    const long double r = fma(-x, (long double)high, -t) - x * low;
    return (erfc(t) - root_pi * exp(-t * t) * r) / 2;
}

/* x^2 = s + r */
static long double normal_pdf(long double x)
{
    if (fabs(x) > 64) return 0;
    const long double s = x * x, r = fma(x, x, -s);
    return 0.398942280401432677939946059934381868L * exp(-s / 2) * (1 - r / 2);
}

#define FUNCTION(name, reference, ...)                                                                                 \
    static void reference_##name(const double *v, long double *y, int n)                                               \
    {                                                                                                                  \
        for (int i = 0; i < n; i++) {                                                                                  \
            const long double x = v[i];                                                                                \
            y[i] = reference;                                                                                          \
        }                                                                                                              \
    }
#include "functions.def"
#undef FUNCTION

static const struct { const char *name; void (*reference)(const double *, long double *, int); } functions[] = {
#define FUNCTION(name, reference, ...) {#name, reference_##name},
#include "functions.def"
#undef FUNCTION
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

typedef struct finding { double worst, at; uint64_t count, wrong; } finding;

typedef struct share { int thread, threads, function; uint64_t samples; finding found[MAX_TARGETS]; } share;

static double of_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Vigna's splitmix64 as a function of a counter. */
static uint64_t random_bits(uint64_t counter)
{
    uint64_t z = (counter + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static const double intervals[][2] = {{-1, 1}, {0, 2}, {-40, 40}, {-745, 712}, {-0x1p-8, 0x1p-8}};
enum { INTERVALS = sizeof intervals / sizeof *intervals };
static const double critical[] = {0x1p-1022, 1e-300, 0x1p-54, 0x1p-27, 0.70710678118654752440, 1, 1.41421356237309504880,
                                  9.53, 19.061547465398495, 37.6471, 37.6496, 37.66, 38.4, 708.39641853226410622,
                                  709.08956571282405153, 709.436139, 709.78271289338397310, 710, 745.13, DBL_MAX};
enum { CRITICAL = sizeof critical / sizeof *critical, HALVES = 24 }; /* and HALVES multiples of ln2 / 2 */

/* Argument k of all; those near critical points, of either sign, come first. */
static double argument(uint64_t k)
{
    const uint64_t around = (uint64_t)(CRITICAL + HALVES) * 2 * 2 * NEIGHBOURS;
    if (k < around) {
        const uint64_t point = k / (4 * NEIGHBOURS), place = k % (2 * NEIGHBOURS);
        const double x = point < CRITICAL ? critical[point] : (double)(point - CRITICAL + 1) * 0.34657359027997265471;
        return of_bits(((bits_of(x) + place - NEIGHBOURS) & INT64_MAX) | (k / (2 * NEIGHBOURS) & 1) << 63);
    }
    k -= around;
    const uint64_t bits = random_bits(k);
    const int way = (int)(k % (INTERVALS + 1));
    if (way == INTERVALS) return of_bits(bits);
    const double *ends = intervals[way];
    return ends[0] + (ends[1] - ends[0]) * (double)(bits >> 11) * 0x1p-53;
}

static uint64_t arguments(uint64_t samples)
{
    return (uint64_t)(CRITICAL + HALVES) * 4 * NEIGHBOURS + (INTERVALS + 1) * samples;
}

/* Distance in units of the last place of `exact`, as float64 has them; 0 where both are no numbers. */
static double ulps(double got, long double exact)
{
    if (isnan(exact) || isnan(got)) return isnan(exact) && isnan(got) ? 0 : INFINITY;
    if (isinf(exact) && isinf(got)) return exact == (long double)got ? 0 : INFINITY;
    if (isinf(exact)) return INFINITY;
    const long double most = 0x1p1024L, value = isinf(got) ? copysign(most, (long double)got) : (long double)got;
    if (fabs(exact) < 2 * (long double)DBL_MIN && value == 0) return 0;
    if (fabs(exact) >= most) exact = copysign(most, exact);
    int exponent;
    frexp(exact, &exponent);
    exponent = exponent > 1024 ? 1024 : exponent < -1021 ? -1021 : exponent;
    return (double)(fabs(value - exact) / ldexp(1.0L, exponent - 53));
}

static int in_domain(int f, double x)
{
    return strcmp(functions[f].name, "log1p_unit_") != 0 || (x >= 0 && x <= 1);
}

static void *sweep(void *context)
{
    share *s = context;
    static _Thread_local double x[BLOCK], y[BLOCK];
    static _Thread_local long double exact[BLOCK];
    const uint64_t total = arguments(s->samples);
    uint64_t next = total * (uint64_t)s->thread / (uint64_t)s->threads;
    const uint64_t end = total * (uint64_t)(s->thread + 1) / (uint64_t)s->threads;
    while (next < end) {
        int n = 0;
        for (; n < BLOCK && next < end; next++) {
            const double v = argument(next);
            if (in_domain(s->function, v)) x[n++] = fabs(v) < DBL_MIN ? copysign(0.0, v) : v;
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
    const uint64_t samples = argc > 1 ? strtoull(argv[1], NULL, 10) : UINT64_C(1) << 20;
    const int threads = argc > 2 ? atoi(argv[2]) : 1;
    if (samples < 1 || threads < 1 || threads > MAX_THREADS)
        return fprintf(stderr, "usage: ulp_f64 [SAMPLES [THREADS [FUNCTION]]]\n"), 2;
#define TARGET(name, usable)                                                                                           \
    if (usable) target[targets] = fb_##name##_f64, target_name[targets++] = #name;
#include "targets/targets.def"
#undef TARGET
    static share shares[MAX_THREADS];
    for (int f = 0; f < FUNCTIONS; f++) {
        if (argc > 3 && strcmp(argv[3], functions[f].name)) continue;
        pthread_t id[MAX_THREADS];
        for (int t = 0; t < threads; t++) {
            shares[t] = (share){t, threads, f, samples, {{0}}};
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
            printf("%s %s %llu %llu %.4f %.17g %llu\n", functions[f].name, target_name[k], (unsigned long long)samples,
                   (unsigned long long)all.count, all.worst, all.at, (unsigned long long)all.wrong);
            fflush(stdout);
        }
    }
    return 0;
}
