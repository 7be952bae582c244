/* Threads: one set of helpers per process, started on first use. The only file that knows them.
 *
 * A helper that has nothing to do spins for about SPIN_NS, then parks on a condition variable; waking it costs tens of
 * microseconds, a spin in vain costs a core. Barriers spin, and yield once the wait is longer than any healthy one, so
 * that more threads than CPUs make progress. One task runs at a time: whoever finds the pool in use runs alone, which
 * changes no result. After a fork the child starts without helpers.
 */
#define _GNU_SOURCE
#include "fastbatch.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { MAX_HELPERS = 63, SPIN_NS = 50000, SPINS_BEFORE_YIELD = 1000 };

static struct {
    pthread_mutex_t in_use;
    pthread_mutex_t parking;
    pthread_cond_t wake;
    int helpers;                    /* started; guarded by in_use */
    _Atomic uint64_t ticket;        /* one more for every task */
    _Atomic int parked;
    _Atomic int working;            /* helpers that have not finished the task */
    fb_task task;
    void *context;
    int threads;                    /* of the task, caller included */
    _Atomic int arrived;            /* at the barrier */
    _Atomic uint64_t generation;    /* of the barrier */
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER, .parking = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static uint64_t next_ticket(uint64_t seen)
{
    const int64_t until = now_ns() + SPIN_NS;
    uint64_t ticket;
    for (;;) {
        for (int i = 0; i < 100; i++, relax())
            if ((ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire)) != seen) return ticket;
        if (now_ns() > until) break;
    }
    pthread_mutex_lock(&pool.parking);
    atomic_fetch_add(&pool.parked, 1);
    while ((ticket = atomic_load(&pool.ticket)) == seen) pthread_cond_wait(&pool.wake, &pool.parking);
    atomic_fetch_sub(&pool.parked, 1);
    pthread_mutex_unlock(&pool.parking);
    return ticket;
}

typedef struct helper_start { int thread; uint64_t seen; } helper_start;
static helper_start starts[MAX_HELPERS];

static void *helper(void *argument)
{
    const helper_start *start = argument;
    const int thread = start->thread;
    for (uint64_t seen = start->seen;;) {
        seen = next_ticket(seen);
        if (thread < pool.threads) pool.task(pool.context, thread, pool.threads);
        atomic_fetch_sub_explicit(&pool.working, 1, memory_order_release);
    }
    return NULL;
}

static void forget_helpers(void) /* in the child of a fork: only the forking thread lives on */
{
    pthread_mutex_init(&pool.in_use, NULL);
    pthread_mutex_init(&pool.parking, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.helpers = 0;
    pool.parked = 0;
    pool.working = 0;
    pool.arrived = 0;
}

static void grow(int helpers)
{
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, forget_helpers) == 0;
    if (helpers > MAX_HELPERS) helpers = MAX_HELPERS;
    sigset_t all, before; /* signals belong to the application's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.helpers < helpers) {
        helper_start *start = &starts[pool.helpers];
        *start = (helper_start){pool.helpers + 1, atomic_load(&pool.ticket)};
        pthread_t id;
        if (pthread_create(&id, NULL, helper, start) != 0) break;
        pthread_detach(id);
        pool.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int fb_parallel(fb_task task, void *context, int threads)
{
    if (threads <= 1 || pthread_mutex_trylock(&pool.in_use) != 0) {
        task(context, 0, 1);
        return 1;
    }
    grow(threads - 1);
    if (threads > pool.helpers + 1) threads = pool.helpers + 1;
    pool.task = task;
    pool.context = context;
    pool.threads = threads;
    atomic_store(&pool.working, pool.helpers);
    atomic_fetch_add(&pool.ticket, 1);
    if (atomic_load(&pool.parked) > 0) {
        pthread_mutex_lock(&pool.parking);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.parking);
    }
    task(context, 0, threads);
    for (int i = 0; atomic_load_explicit(&pool.working, memory_order_acquire) > 0; i++)
        i < SPINS_BEFORE_YIELD ? relax() : (void)sched_yield();
    pthread_mutex_unlock(&pool.in_use);
    return threads;
}

void fb_wait_for_all(int threads)
{
    if (threads == 1) return;
    const uint64_t generation = atomic_load_explicit(&pool.generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.generation, generation + 1, memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&pool.generation, memory_order_acquire) == generation; i++)
        i < SPINS_BEFORE_YIELD ? relax() : (void)sched_yield();
}
