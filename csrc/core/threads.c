/* SPDX-License-Identifier: BSD-3-Clause
   The pool: workers that help a caller with the parts of one job at a time.

   A part belongs to whoever takes it off a counter, so a worker that comes late, or not at all, costs nothing: the
   caller does what nobody else has begun, and waits only for parts that a worker is in the middle of. What a part
   computes never depends on who does it. But each thread begins with parts of its own, the same ones in every job, so
   that it finds in its core's cache what it left there; then it takes what others have not begun.

   There are no workers before the first job, and none after a fork: the child makes its own when it needs them. They
   are detached, take no signals, and hold nothing that must be tidied up at exit. A second caller finds the pool
   reserved and does without. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include "../pyneuro.h"

enum {
    LINE = 64,                   /* bytes of a cache line, or more */
    SPIN = 200 * 1000,           /* ns of looking out for the next job, or for the last part, before sleep */
    CREDIT = 8 * 1000 * 1000,    /* ns: what workers may have gained counts up to this when they are late */
    DEBT = 64 * 1000 * 1000,     /* ns: and what they have lost us, up to this: the process may have been stopped */
    REST = 16,                   /* times that we do without them */
    UNEQUAL = 3                  /* times as long as another a part may take by itself */
};

static struct {
    /* The job: written by the caller that holds the pool, read by whoever has taken a part. */
    int  (*part)(void *what, int number);
    void  *what;
    int    parts;
    /* Kept by the caller that holds the pool. */
    int     workers;             /* alive and not dismissed */
    int64_t credit;              /* ns that they have gained */
    _Atomic int64_t rest_until;  /* ns: until then calls do without them */

    _Alignas(LINE) _Atomic uint32_t bell;         /* counts jobs and dismissals; idle workers watch it */
    _Atomic int asleep;                           /* workers that watch it in their sleep */
    _Atomic int spin;                             /* whether there is a core for each thread */
    _Atomic int homes;                            /* threads that have parts of their own */
    _Alignas(LINE) _Atomic uint32_t unfinished;   /* parts that are not done; the caller watches it */
    _Atomic int waiting;                          /* the caller does so in its sleep */
    _Atomic int status;                           /* of a part that failed */
    _Atomic int64_t spent, shortest;              /* ns: in all parts, and in one */
    _Alignas(LINE) atomic_flag reserved;
    struct {
        _Alignas(LINE) _Atomic int unclaimed;     /* of its parts, those that nobody has begun */
        _Atomic int dismissed;                    /* workers of this number that are to go: a new one may be there before */
    } home[PN_MAX_THREADS];
} pool = {.reserved = ATOMIC_FLAG_INIT};

static _Atomic int wanted;       /* threads, the caller among them; 0: as many as there are cores for us */
static _Atomic int quota;        /* cores' worth of time that we may use; 0: no limit */
static _Atomic int cores;        /* as found when the pool started; 0: it has not */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Sleeping until a word changes. The sleeper counts itself before it looks at the word, and who changes the word does
   so before it looks for sleepers: one of the two sees the other. */
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
static void doze(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void rouse(_Atomic uint32_t *word, int sleepers)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, sleepers, NULL, NULL, 0);
}
static void new_beds(void) {}
#else
static pthread_mutex_t bedroom = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t  alarm_clock = PTHREAD_COND_INITIALIZER;
static void doze(_Atomic uint32_t *word, uint32_t seen)
{
    pthread_mutex_lock(&bedroom);
    if (atomic_load(word) == seen) pthread_cond_wait(&alarm_clock, &bedroom);
    pthread_mutex_unlock(&bedroom);
}
static void rouse(_Atomic uint32_t *word, int sleepers)
{
    pthread_mutex_lock(&bedroom);
    pthread_cond_broadcast(&alarm_clock);
    pthread_mutex_unlock(&bedroom);
}
static void new_beds(void)       /* in the child of a fork: who held them is gone */
{
    pthread_mutex_init(&bedroom, NULL);
    pthread_cond_init(&alarm_clock, NULL);
}
#endif

/* Looks at a word until it is no longer what was seen: awake for a while, then asleep. */
static void await(_Atomic uint32_t *word, uint32_t seen, _Atomic int *sleepers)
{
    if (atomic_load_explicit(&pool.spin, memory_order_relaxed)) {
        int64_t until = now() + SPIN;
        do {
            for (int i = 0; i < 32; i++) {
                if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
                relax();
            }
        } while (now() < until);
    }
    atomic_fetch_add(sleepers, 1);
    if (atomic_load(word) == seen) doze(word, seen);       /* or a signal ended it: callers look again */
    atomic_fetch_sub(sleepers, 1);
}

/* The first part of a home, and of the one after it. */
static int first_part(int home, int homes, int parts) { return (int)((int64_t)parts * home / homes); }

/* A part of a home that nobody has begun, or -1. What the job is can be read once a part of it is taken. */
static int claim(int home)
{
    _Atomic int *unclaimed = &pool.home[home].unclaimed;
    int left = atomic_load_explicit(unclaimed, memory_order_relaxed);
    while (left > 0 && !atomic_compare_exchange_weak(unclaimed, &left, left - 1)) {}
    if (left <= 0) return -1;
    return first_part(home + 1, atomic_load_explicit(&pool.homes, memory_order_relaxed), pool.parts) - left;
}

static void do_part(int number)
{
    int64_t start = now();
    int status = pool.part(pool.what, number);
    if (status) atomic_store_explicit(&pool.status, status, memory_order_relaxed);
    int64_t took = now() - start, least = atomic_load_explicit(&pool.shortest, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool.spent, took, memory_order_relaxed);
    while (took < least && !atomic_compare_exchange_weak(&pool.shortest, &least, took)) {}
    /* The last one ends the job, whose fields are its caller's again. */
    if (atomic_fetch_sub(&pool.unfinished, 1) == 1 && atomic_load(&pool.waiting)) rouse(&pool.unfinished, 1);
}

/* Does parts until all are begun. */
static void work(int thread)
{
    const int homes = atomic_load_explicit(&pool.homes, memory_order_relaxed);
    for (int i = 0; i < homes; i++)
        for (int number; (number = claim((thread + i) % homes)) >= 0;) do_part(number);
}

static int is_dismissed(int thread)
{
    _Atomic int *dismissed = &pool.home[thread].dismissed;
    int left = atomic_load_explicit(dismissed, memory_order_relaxed);
    while (left > 0 && !atomic_compare_exchange_weak(dismissed, &left, left - 1)) {}
    return left > 0;
}

static void *worker(void *number)
{
    const int thread = (int)(intptr_t)number;
    for (;;) {
        uint32_t seen = atomic_load_explicit(&pool.bell, memory_order_acquire);
        if (is_dismissed(thread)) return NULL;
        work(thread);
        await(&pool.bell, seen, &pool.asleep);
    }
}

static void ring(int workers)
{
    atomic_fetch_add(&pool.bell, 1);
    if (atomic_load(&pool.asleep)) rouse(&pool.bell, workers);
}

/* The child has the thread that forked and no other, whatever those were at. */
static void in_child(void)
{
    pool.workers = 0;
    pool.credit = 0;
    atomic_store(&pool.rest_until, 0);
    atomic_store(&pool.asleep, 0);
    for (int i = 0; i < PN_MAX_THREADS; i++) {
        atomic_store(&pool.home[i].unclaimed, 0);
        atomic_store(&pool.home[i].dismissed, 0);
    }
    atomic_store(&pool.unfinished, 0);
    atomic_store(&pool.waiting, 0);
    atomic_store(&cores, 0);
    atomic_flag_clear(&pool.reserved);
    new_beds();
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

/* The cores that this process may run on. */
static int count_cores(void)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int count = online < 1 ? 1 : online > PN_MAX_THREADS ? PN_MAX_THREADS : (int)online;
#ifdef __linux__
    cpu_set_t mask;                             /* fails where there are more cores than it has room for */
    if (sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) < count) count = CPU_COUNT(&mask);
#endif
    return count;
}

int pn_get_num_threads(void)
{
    int threads = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (threads) return threads;
    threads = atomic_load_explicit(&cores, memory_order_relaxed);
    if (!threads) threads = count_cores();
    int most = atomic_load_explicit(&quota, memory_order_relaxed);
    return most && most < threads ? most : threads;
}

void pn_set_num_threads(int threads)
{
    atomic_store_explicit(&wanted, threads < 1 ? 1 : threads > PN_MAX_THREADS ? PN_MAX_THREADS : threads,
                          memory_order_relaxed);
    atomic_store_explicit(&pool.rest_until, 0, memory_order_relaxed);
}

void pn_set_cpu_quota(int most) { atomic_store_explicit(&quota, most, memory_order_relaxed); }

/* As many workers as `threads` asks for, or as there can be. */
static void hire(int threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);

    if (pool.workers >= threads) {
        for (; pool.workers >= threads; pool.workers--) atomic_fetch_add(&pool.home[pool.workers].dismissed, 1);
        ring(PN_MAX_THREADS);
    }
    if (pool.workers < threads - 1) {
        /* Signals are for the threads that Python knows; but a crash is to be reported where it happens. */
        sigset_t signals, before;
        sigfillset(&signals);
        sigdelset(&signals, SIGSEGV);
        sigdelset(&signals, SIGBUS);
        sigdelset(&signals, SIGFPE);
        sigdelset(&signals, SIGILL);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_sigmask(SIG_SETMASK, &signals, &before);
        for (pthread_t thread; pool.workers < threads - 1; pool.workers++)
            if (pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(pool.workers + 1))) break;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        if (pool.workers < threads - 1) pn_set_num_threads(pool.workers + 1);     /* not to try each time */
    }
}

int pn_reserve(void)
{
    int here = atomic_load_explicit(&cores, memory_order_relaxed);
    if (!here) atomic_store_explicit(&cores, here = count_cores(), memory_order_relaxed);
    int threads = pn_get_num_threads();
    if (threads < 2 || atomic_flag_test_and_set_explicit(&pool.reserved, memory_order_acquire)) return 1;
    if (now() >= atomic_load_explicit(&pool.rest_until, memory_order_relaxed)) {
        if (pool.workers != threads - 1) hire(threads);
        atomic_store_explicit(&pool.spin, threads <= here, memory_order_relaxed);
        if (pool.workers) return pool.workers + 1;
    }
    atomic_flag_clear_explicit(&pool.reserved, memory_order_release);
    return 1;
}

int pn_parallel(int (*part)(void *what, int number), void *what, int parts)
{
    int64_t start = now();
    pool.part = part;
    pool.what = what;
    pool.parts = parts;
    atomic_store_explicit(&pool.status, PN_OK, memory_order_relaxed);
    atomic_store_explicit(&pool.spent, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.shortest, INT64_MAX, memory_order_relaxed);
    atomic_store(&pool.unfinished, (uint32_t)parts);
    const int homes = pool.workers + 1;
    atomic_store_explicit(&pool.homes, homes, memory_order_relaxed);
    for (int i = 0; i < homes; i++)
        atomic_store_explicit(&pool.home[i].unclaimed, first_part(i + 1, homes, parts) - first_part(i, homes, parts),
                              memory_order_release);
    ring(parts - 1);

    work(0);
    for (uint32_t left; (left = atomic_load_explicit(&pool.unfinished, memory_order_acquire));)
        await(&pool.unfinished, left, &pool.waiting);
    int64_t end = now();

    /* On a busy machine a thread may lose its core in the middle of a part, and the others wait for it. If that costs
       more than the workers gain we do without them for a while, so that in the long run it takes no more than 1 / REST
       of the time. Alone the job takes what its parts take, but what a part took without a core does not count: that
       is what makes it so much longer than another. */
    int64_t alone = atomic_load_explicit(&pool.spent, memory_order_relaxed);
    int64_t usual = atomic_load_explicit(&pool.shortest, memory_order_relaxed) * UNEQUAL * parts;
    pool.credit += (alone < usual ? alone : usual) - (end - start);
    if (pool.credit > CREDIT) pool.credit = CREDIT;
    if (pool.credit < -DEBT) pool.credit = -DEBT;
    if (pool.credit < 0) {
        atomic_store_explicit(&pool.rest_until, end - REST * pool.credit, memory_order_relaxed);
        pool.credit = 0;
    }
    int status = atomic_load_explicit(&pool.status, memory_order_relaxed);
    atomic_flag_clear_explicit(&pool.reserved, memory_order_release);
    return status;
}

/* For threadpoolctl, which finds them by name. */
__attribute__((visibility("default"))) int pyneuro_get_num_threads(void) { return pn_get_num_threads(); }
__attribute__((visibility("default"))) void pyneuro_set_num_threads(int threads) { pn_set_num_threads(threads); }
