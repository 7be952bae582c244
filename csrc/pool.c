/* Threads: helpers that start on first use and are shared by all callers of the process. The only file that knows them.
 *
 * Callers and the helpers at work never outnumber the CPUs: callers are counted, each has a fair share, and who holds
 * more than his share when others come gives it back at the end of a step (`fb_team_is_stale`). A helper that has nothing
 * to do spins for SPIN_NS, then parks on a condition variable; waking it costs 50 to 80 us, a spin in vain costs a core.
 * Barriers spin, and yield once the wait is longer than any healthy one, so that more threads than CPUs make progress.
 * After a fork the child starts without helpers.
 */
#define _GNU_SOURCE
#include "fastbatch.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_HELPERS = FB_MAX_THREADS - 1,
    SPIN_NS = 200000,
    SPINS_BEFORE_YIELD = 200,
    LINES = 128 /* bytes; two cache lines, which Intel's CPUs fetch together */
};

struct helper;

/* A caller, thread 0, and its helpers for one task. Lives on the caller's stack. */
typedef struct team {
    fb_task task;
    void *context;
    int threads;
    int most_callers;           /* up to so many callers the team may stay as large as it is */
    const struct helper *awaited; /* was parked and would have been of use */
    struct helper *helpers[MAX_HELPERS];
    _Alignas(LINES) _Atomic uint32_t arrivals; /* at all barriers so far; the only thing that changes during a task */
} team;

#ifdef __linux__
typedef cpu_set_t affinity;
#else
typedef int affinity;
#endif

typedef struct helper {
    _Alignas(LINES) _Atomic uint32_t tasks; /* handed to it; what it spins on */
    team *team;                             /* of the last one */
    int thread;
    _Alignas(LINES) _Atomic int parked;     /* written by the helper */
    _Alignas(LINES) pthread_cond_t wake;
    int nudged;                             /* guarded by parking */
    int busy;                               /* in a team; this and what follows is guarded by lock */
    uint32_t seen;                          /* tasks when it was started */
    pthread_t id;
    affinity cpus;
} helper;

static struct {
    _Alignas(LINES) _Atomic int callers;
    _Alignas(LINES) _Atomic int cpus;       /* of the last caller that wanted helpers */
    _Atomic int quota;                      /* CPUs granted to the process, 0 when not limited */
    _Atomic int exact;                      /* as many threads as asked for, whatever it costs */
    _Atomic int64_t last_end;               /* of a task that wanted helpers */
    _Alignas(LINES) pthread_mutex_t lock;
    int started, busy;
    pthread_mutex_t parking;
    helper helpers[MAX_HELPERS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .parking = PTHREAD_MUTEX_INITIALIZER};

/* The running task's team, and its arrivals when all have come to the last barrier that this thread has passed. */
static _Thread_local struct { team *team; uint32_t passed; } self;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

void *fb_pack(void)
{
    static _Alignas(64) _Thread_local char memory[FB_PACK_BYTES];
    return memory;
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void wait_for(team *m, uint32_t arrivals) /* or more: others may have come to the next barrier */
{
    for (int i = 0; (int32_t)(atomic_load_explicit(&m->arrivals, memory_order_acquire) - arrivals) < 0; i++)
        i < SPINS_BEFORE_YIELD ? relax() : (void)sched_yield();
}

/* One word and one atomic addition: on two cores of a Xeon 20 to 90 ns less, after work of 0.2 to 0.5 us, than a counter
 * that the last one resets beside a generation that the others watch, and than one flag and line per thread. */
static inline uint32_t arrive(team *m) { return atomic_fetch_add_explicit(&m->arrivals, 1, memory_order_acq_rel) + 1; }

void fb_wait_for_all(int threads)
{
    if (threads == 1) return;
    team *m = self.team;
    const uint32_t all = self.passed += (uint32_t)threads;
    if (arrive(m) != all) wait_for(m, all);
}

/* -- helpers -------------------------------------------------------------------------------------------------------- */

static void park(helper *h, uint32_t seen)
{
    pthread_mutex_lock(&pool.parking);
    atomic_store(&h->parked, 1);
    while (atomic_load(&h->tasks) == seen && !h->nudged) pthread_cond_wait(&h->wake, &pool.parking);
    h->nudged = 0;
    atomic_store(&h->parked, 0);
    pthread_mutex_unlock(&pool.parking);
}

static void wait_for_task(helper *h, uint32_t seen)
{
    for (;;) {
        const int64_t until = now_ns() + SPIN_NS;
        do { /* two callers on two CPUs: a helper that spins takes time from one of them */
            for (int i = 0; i < 100; i++, relax())
                if (atomic_load_explicit(&h->tasks, memory_order_acquire) != seen) return;
        } while (now_ns() < until &&
                 2 * atomic_load_explicit(&pool.callers, memory_order_relaxed) <=
                     atomic_load_explicit(&pool.cpus, memory_order_relaxed));
        park(h, seen);
    }
}

static void wake(helper *h, int nudged)
{
    pthread_mutex_lock(&pool.parking);
    h->nudged = nudged;
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&pool.parking);
}

static void *work(void *argument)
{
    helper *h = argument;
    for (uint32_t seen = h->seen;; seen++) {
        wait_for_task(h, seen);
        team *m = h->team;
        self.team = m;
        self.passed = 0;
        m->task(m->context, h->thread, m->threads);
        arrive(m); /* the team may be gone right after */
    }
    return NULL;
}

static void start_helpers(int wanted, const affinity *cpus)
{
    sigset_t all, before; /* signals belong to the application's threads, but for those of one's own mistakes */
    sigfillset(&all);
    sigdelset(&all, SIGSEGV), sigdelset(&all, SIGBUS), sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.started < wanted && pool.started < MAX_HELPERS) {
        helper *h = &pool.helpers[pool.started];
        h->seen = atomic_load(&h->tasks);
        h->parked = h->nudged = h->busy = 0;
        h->cpus = *cpus; /* inherited */
        pthread_cond_init(&h->wake, NULL);
        if (pthread_create(&h->id, NULL, work, h) != 0) break;
        pthread_detach(h->id);
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void forget_helpers(void) /* in the child of a fork: only the forking thread lives on, and it is not in here */
{
    pthread_mutex_init(&pool.lock, NULL);
    pthread_mutex_init(&pool.parking, NULL);
    pool.callers = 0;
    pool.started = pool.busy = 0;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

/* -- teams ---------------------------------------------------------------------------------------------------------- */

/* CPUs that the calling thread may run on. Asked anew each time, 0.1 us: masks change while a process runs. */
static int cpus_of_caller(affinity *cpus)
{
    int count;
#ifdef __linux__
    if (sched_getaffinity(0, sizeof *cpus, cpus) != 0) CPU_ZERO(cpus); /* more CPUs than the mask has bits */
    count = CPU_COUNT(cpus) ? CPU_COUNT(cpus) : (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    *cpus = count = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
    const int quota = atomic_load_explicit(&pool.quota, memory_order_relaxed);
    return quota && quota < count ? quota : count;
}

/* Helpers work where their caller may. */
static void follow(helper *h, const affinity *cpus)
{
    if (memcmp(&h->cpus, cpus, sizeof *cpus) == 0) return;
    h->cpus = *cpus;
#ifdef __linux__
    if (CPU_COUNT(cpus)) pthread_setaffinity_np(h->id, sizeof *cpus, cpus);
#endif
}

static void gather(team *m, int wanted, int callers, fb_patience patience)
{
    affinity allowed;
    int cpus = cpus_of_caller(&allowed);
    atomic_store_explicit(&pool.cpus, cpus, memory_order_relaxed);
    if (fb_exact()) {
        patience = FB_WAIT_FOR_PARKED;
        if (cpus < wanted) cpus = wanted;
    }
    if (wanted > cpus / callers) wanted = cpus / callers;
    if (wanted > 1) {
        /* who comes back within the spin of a helper that wakes now finds it awake */
        if (patience == FB_TAKE_AWAKE && now_ns() - atomic_load(&pool.last_end) < SPIN_NS / 2) patience = FB_WAKE_PARKED;
        pthread_mutex_lock(&pool.lock);
        start_helpers(pool.busy + wanted - 1, &allowed);
        int room = cpus - callers - pool.busy;
        for (helper *h = pool.helpers; h < pool.helpers + pool.started && m->threads < wanted && room > 0; h++) {
            if (h->busy) continue;
            room--;
            if (patience != FB_WAIT_FOR_PARKED && atomic_load(&h->parked)) {
                m->awaited = h;
                if (patience == FB_WAKE_PARKED) wake(h, 1);
                continue;
            }
            h->busy = 1;
            follow(h, &allowed);
            m->helpers[m->threads - 1] = h;
            m->threads++;
        }
        pool.busy += m->threads - 1;
        pthread_mutex_unlock(&pool.lock);
    }
    m->most_callers = m->threads > 1 ? cpus / m->threads : INT_MAX;
}

static void start(team *m)
{
    m->arrivals = 0;
    for (int t = 1; t < m->threads; t++) {
        helper *h = m->helpers[t - 1];
        h->team = m;
        h->thread = t;
        atomic_fetch_add(&h->tasks, 1);
        if (atomic_load(&h->parked)) wake(h, 0);
    }
}

static void finish(team *m)
{
    fb_wait_for_all(m->threads);
    pthread_mutex_lock(&pool.lock);
    for (int t = 1; t < m->threads; t++) m->helpers[t - 1]->busy = 0;
    pool.busy -= m->threads - 1;
    pthread_mutex_unlock(&pool.lock);
}

int fb_parallel(fb_task task, void *context, int threads, fb_patience patience)
{
    const int callers = atomic_fetch_add_explicit(&pool.callers, 1, memory_order_relaxed) + 1;
    int used = 1;
    if (threads <= 1) {
        task(context, 0, 1);
    } else {
        team m = {.task = task, .context = context, .threads = 1};
        gather(&m, threads < FB_MAX_THREADS ? threads : FB_MAX_THREADS, callers, patience);
        self.team = &m;
        self.passed = 0;
        if (m.threads > 1) start(&m);
        task(context, 0, m.threads);
        if (m.threads > 1) finish(&m);
        self.team = NULL;
        used = m.threads;
        atomic_store_explicit(&pool.last_end, now_ns(), memory_order_relaxed);
    }
    atomic_fetch_sub_explicit(&pool.callers, 1, memory_order_relaxed);
    return used;
}

int fb_team_is_stale(void)
{
    const team *m = self.team;
    if (!m) return 0;
    return atomic_load_explicit(&pool.callers, memory_order_relaxed) > m->most_callers ||
           (m->awaited && !atomic_load_explicit(&m->awaited->parked, memory_order_relaxed));
}

void fb_set_thread_policy(int quota, int exact)
{
    atomic_store(&pool.quota, quota);
    atomic_store(&pool.exact, exact);
}

/* For threadpoolctl, which knows a library by a symbol of its own (fastbatch/threadpools.py). */
__attribute__((visibility("default"))) const int fastbatch_threads = 1;

int fb_exact(void) { return atomic_load_explicit(&pool.exact, memory_order_relaxed); }
