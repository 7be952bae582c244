/* What this machine can do at best: multiply-adds per second and the latency of a barrier. For `fastbatch bench`. */
#define _GNU_SOURCE
#include "fastbatch.h"

#include <time.h>

typedef struct measured {
    const fb_kernels *kernels;
    int64_t loops;
    int64_t flops, ns;         /* of thread 0, which leaves the last barrier when all are done */
} measured;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void multiply_adds(void *context, int thread, int threads)
{
    measured *round = context;
    volatile double sink;
    double sum = 0;
    fb_wait_for_all(threads);
    const int64_t start = now_ns();
    const int64_t flops = round->kernels->multiply_adds(round->loops, &sum);
    sink = sum;
    (void)sink;
    fb_wait_for_all(threads);
    if (thread == 0) round->ns = now_ns() - start, round->flops = flops;
}

static void barriers(void *context, int thread, int threads)
{
    measured *round = context;
    fb_wait_for_all(threads);
    const int64_t start = now_ns();
    for (int64_t i = 0; i < round->loops; i++) fb_wait_for_all(threads);
    if (thread == 0) round->ns = now_ns() - start;
}

double fb_measure_peak(const fb_kernels *kernels, int threads, int64_t loops)
{
    measured round = {.kernels = kernels, .loops = loops};
    if (fb_parallel(multiply_adds, &round, threads, FB_WAIT_FOR_PARKED) != threads) return __builtin_nan("");
    return (double)round.flops * threads / (double)round.ns;
}

double fb_measure_barrier(int threads, int64_t loops)
{
    measured round = {.loops = loops};
    if (fb_parallel(barriers, &round, threads, FB_WAIT_FOR_PARKED) != threads) return __builtin_nan("");
    return (double)round.ns / (double)loops;
}
