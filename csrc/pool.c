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

enum { MAX_HELPERS = FB_MAX_THREADS - 1, SPIN_NS = 50000, SPINS_BEFORE_YIELD = 200 };

typedef struct helper {
    int thread;
    uint64_t seen;                  /* ticket at its start */
    pthread_cond_t wake;
    _Atomic int parked;
} helper;

static struct {
    pthread_mutex_t in_use;
    pthread_mutex_t parking;
    int started;                    /* helpers; guarded by in_use */
    helper helpers[MAX_HELPERS];
    _Atomic uint64_t ticket;        /* number of the task << 8 | threads of the task, caller included */
    _Atomic int working;            /* helpers that have not finished the task */
    fb_task task;
    void *context;
    _Atomic int arrived;            /* at the barrier */
    _Atomic uint64_t generation;    /* of the barrier */
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER, .parking = PTHREAD_MUTEX_INITIALIZER};

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

static uint64_t next_ticket(helper *self, uint64_t seen, int spin)
{
    const int64_t until = now_ns() + SPIN_NS;
    uint64_t ticket;
    while (spin) {
        for (int i = 0; i < 100; i++, relax())
            if ((ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire)) != seen) return ticket;
        spin = now_ns() < until;
    }
    pthread_mutex_lock(&pool.parking);
    atomic_store(&self->parked, 1);
    while ((ticket = atomic_load(&pool.ticket)) == seen) pthread_cond_wait(&self->wake, &pool.parking);
    atomic_store(&self->parked, 0);
    pthread_mutex_unlock(&pool.parking);
    return ticket;
}

static void *work(void *argument)
{
    helper *self = argument;
    uint64_t seen = self->seen;
    for (int mine = 1;;) { /* a helper that the last task did without parks at once and is not waited for */
        seen = next_ticket(self, seen, mine);
        const int threads = (int)(seen & 255);
        mine = self->thread < threads;
        if (mine) {
            pool.task(pool.context, self->thread, threads);
            atomic_fetch_sub_explicit(&pool.working, 1, memory_order_release);
        }
    }
    return NULL;
}

static void forget_helpers(void) /* in the child of a fork: only the forking thread lives on */
{
    pthread_mutex_init(&pool.in_use, NULL);
    pthread_mutex_init(&pool.parking, NULL);
    pool.started = 0;
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
    while (pool.started < helpers) {
        helper *next = &pool.helpers[pool.started];
        next->thread = pool.started + 1;
        next->seen = atomic_load(&pool.ticket);
        next->parked = 0;
        pthread_cond_init(&next->wake, NULL);
        pthread_t id;
        if (pthread_create(&id, NULL, work, next) != 0) break;
        pthread_detach(id);
        pool.started++;
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
    if (threads > pool.started + 1) threads = pool.started + 1;
    pool.task = task;
    pool.context = context;
    atomic_store(&pool.working, threads - 1);
    atomic_store(&pool.ticket, ((atomic_load(&pool.ticket) >> 8) + 1) << 8 | (uint64_t)threads);
    for (int t = 0; t < threads - 1; t++)
        if (atomic_load(&pool.helpers[t].parked)) {
            pthread_mutex_lock(&pool.parking);
            pthread_cond_signal(&pool.helpers[t].wake);
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
