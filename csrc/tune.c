/* How many threads, by measurement. The bits of a result do not depend on it, so the choice can change while running.
 *
 * The number that the work suggests (fastbatch/threads.py) is the start and the bound. Then, about every PERIOD_NS, the
 * choice is compared with the next power of two below or above: PAIRS pairs of short stretches, interleaved, medians of ns
 * per row; the first stretch after each change of threads is not counted, since data have to move between caches. What a
 * comparison costs beyond the choice is at most 1 / SHARE of the time, or the next one waits. Time is that of the program's
 * own steps: one that runs for a moment now and then would otherwise do little but compare.
 *
 * Short stretches do not see the stalls of a thread that loses its CPU to a neighbour for 4 ms now and then, and all wait
 * for it. So the choice is held by the mean of the better half of the time since the last comparison, too, and a new choice
 * is on trial until the next one: when that mean exceeds what it replaced, it goes; too little time passes. A second core can be worth nothing for seconds at a time (a busy
 * neighbour, a virtual CPU that was moved), so no verdict is final.
 */
#include "fastbatch.h"

enum {
    PAIRS = 3,
    TURNS = 4 * PAIRS,          /* choice: settle, measure; other: settle, measure */
    MISSES = 4,                 /* helpers that could not be had, until the comparison is given up */
    STRETCH_NS = 100000,        /* of a comparison; longer than what settling takes on networks of small steps */
    PERIOD_NS = 50000000,
    SOON_NS = 12500000,         /* from a change to fewer threads to the first look back: what took the CPUs may be gone */
    ENOUGH_NS = 10000000,       /* for a mean */
    HALF_NS = PERIOD_NS / 2,
    SHARE = 40,
    WAKE_NS = 200000,           /* a step from which on it pays to wait for a helper that wakes */
    CALL_NS = 1000000,          /* work of a call, likewise */
    LONG_NS = 100000,           /* a step after which a helper that was woken meanwhile sleeps again (SPIN_NS of pool.c) */
    SLOW_NS = 300000,           /* a step of which SLOW_STEPS come before the first comparison: the start is quite sure, */
    SLOW_STEPS = 10,            /* the other long */
    SETTLED_NS = 1000000        /* a step in which settling and waking are lost */
};

/* More threads have to gain 5 % to be chosen; once chosen they stay until they lose. */
static const double GAIN = 0.95;
/* A comparison ends when the other takes so much longer in one stretch. */
static const double HOPELESS = 1.25;

_Static_assert(PAIRS == 3 && sizeof ((fb_tuner *)0)->rates == 2 * PAIRS * sizeof(double), "a median of three");
static double median(const double *x)
{
    const double low = x[0] < x[1] ? x[0] : x[1], high = x[0] < x[1] ? x[1] : x[0];
    return x[2] < low ? low : x[2] > high ? high : x[2];
}

static void settle(fb_tuner *tuner)
{
    const double wait = SHARE * tuner->lost;
    tuner->next = tuner->clock + (wait > PERIOD_NS ? (int64_t)wait : PERIOD_NS);
    tuner->other = 0;
    tuner->ns = tuner->rows = tuner->half_ns = tuner->half_rows = 0;
}

static double larger(double a, double b) { return a > b ? a : b; }

/* ns per row with the choice since the last comparison, 0 when seen too briefly; of two halves the better, as a thread that
 * loses its CPU again and again does so in both, and what other threads of the process leave behind passes. */
static double mean_of(const fb_tuner *tuner)
{
    const double ns = tuner->ns - tuner->half_ns;
    const double second = ns > ENOUGH_NS ? ns / (tuner->rows - tuner->half_rows) : 0;
    if (!tuner->half_rows) return second;
    const double first = tuner->half_ns / tuner->half_rows;
    return second > 0 && second < first ? second : first;
}

/* 0 when the choice was on trial and has failed. */
static int passed(fb_tuner *tuner)
{
    const int failed = tuner->former && mean_of(tuner) > tuner->former_rate;
    if (failed) {
        tuner->lost = tuner->ns - tuner->former_rate * tuner->rows;
        tuner->threads = tuner->former;
        tuner->rate = tuner->former_rate;
    }
    tuner->former = 0;
    return !failed;
}

static void start_comparison(fb_tuner *tuner, double step)
{
    if (tuner->threads == 1) tuner->upward = 1;
    if (tuner->threads == tuner->most) tuner->upward = 0;
    int below = 1, above = 1; /* powers of two */
    while (2 * below < tuner->threads) below *= 2;
    while (above <= tuner->threads) above *= 2;
    tuner->other = !tuner->upward ? below : above < tuner->most ? above : tuner->most;
    tuner->upward = !tuner->upward;
    tuner->stride = step > SETTLED_NS ? 2 : 1;
    tuner->turn = tuner->stride - 1;
    tuner->misses = 0;
    tuner->lost = 0;
    tuner->mean = mean_of(tuner);
}

fb_stretch fb_choose_threads(fb_tuner *tuner, int most, int64_t steps, int64_t batch, double flops, int64_t now)
{
    if (tuner->threads == 0 || tuner->threads > most) tuner->threads = most;
    if (tuner->other > most) tuner->other = 0;
    if (tuner->former > most) tuner->former = 0;
    tuner->most = most;
    const double step = tuner->rate * (double)batch; /* ns */
    if (step > 0 && !tuner->other && tuner->clock >= tuner->next) {
        if (passed(tuner)) start_comparison(tuner, step);
        else settle(tuner);
    }
    fb_stretch stretch = {tuner->threads, FB_WAKE_PARKED, INT64_MAX, INT64_MAX};
    /* the time alone does not say it: it may hold a helper's waking, and would then prove itself */
    const int hard = flops > FB_WORTH_WAKING && (step == 0 || step * tuner->threads > WAKE_NS);
    if (hard || (step > LONG_NS && step * tuner->threads * (double)steps > CALL_NS)) stretch.patience = FB_WAIT_FOR_PARKED;
    else if (steps == 1) stretch.patience = FB_TAKE_AWAKE;
    if (!tuner->other) {
        const int64_t left = tuner->next - tuner->clock, half = HALF_NS - (int64_t)tuner->ns;
        if (step > 0) stretch.until = now + (tuner->half_rows || left < half ? left : half);
        else stretch.steps = 1; /* the first ever */
        return stretch;
    }
    const int of_other = tuner->turn % 4 >= 2;
    if (of_other) stretch.threads = tuner->other;
    stretch.steps = step < STRETCH_NS ? (int64_t)(STRETCH_NS / step) : 1;
    if (of_other) stretch.until = now + 4 * (int64_t)(step * (double)stretch.steps);
    return stretch;
}

void fb_report(fb_tuner *tuner, fb_stretch stretch, int threads, int64_t rows, int64_t ns)
{
    tuner->clock += ns;
    if (rows == 0) return;
    const double rate = (double)ns / (double)rows;
    const int as_asked = threads == stretch.threads;
    if (!tuner->other) {
        if (tuner->rate == 0 && ns > SLOW_NS) tuner->next = tuner->clock + SLOW_STEPS * ns;
        if (as_asked || tuner->rate == 0) tuner->rate = rate;
        if (as_asked) tuner->ns += (double)ns, tuner->rows += (double)rows;
        if (!tuner->half_rows && tuner->ns >= HALF_NS) tuner->half_ns = tuner->ns, tuner->half_rows = tuner->rows;
        return;
    }
    if (!as_asked) {
        if (++tuner->misses == MISSES) settle(tuner);
        return;
    }
    const int of_other = tuner->turn % 4 >= 2, counts = tuner->turn % 2;
    if (of_other) tuner->lost += (rate - larger(tuner->rate, tuner->mean)) * (double)rows;
    else if (counts) tuner->rate = rate;
    if (counts) tuner->rates[of_other][tuner->turn / 4] = rate;
    tuner->turn += tuner->stride;
    if (tuner->turn < TURNS && !(of_other && counts && rate > HOPELESS * larger(tuner->rate, tuner->mean))) return;
    if (tuner->turn >= TURNS) {
        const double choice = larger(median(tuner->rates[0]), tuner->mean), other = median(tuner->rates[1]);
        if (other < choice * (tuner->other > tuner->threads ? GAIN : 1)) {
            tuner->former = tuner->threads;
            tuner->former_rate = choice;
            tuner->threads = tuner->other;
            tuner->rate = other;
        }
    }
    settle(tuner);
    if (tuner->former > tuner->threads) tuner->next = tuner->clock + SOON_NS;
}
