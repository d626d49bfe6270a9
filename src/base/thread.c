#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#ifdef CORBEL_DEBUG_LOCKS
#define HELD_MAX 16

static _Thread_local enum lock_rank held[HELD_MAX];
static _Thread_local unsigned held_count;

static void rank_push(enum lock_rank rank)
{
    for (unsigned i = 0; i < held_count; i++) {
        if (held[i] >= rank) {
            (void)fprintf(stderr, "lock order: rank %d taken while holding rank %d\n", (int)rank,
                          (int)held[i]);
            abort();
        }
    }
    assert(held_count < HELD_MAX);
    held[held_count++] = rank;
}

static void rank_pop(enum lock_rank rank)
{
    for (unsigned i = held_count; i > 0; i--) {
        if (held[i - 1] == rank) {
            held_count--;
            memmove(&held[i - 1], &held[i], (held_count - (i - 1)) * sizeof(held[0]));
            return;
        }
    }
    (void)fprintf(stderr, "lock order: rank %d released but not held\n", (int)rank);
    abort();
}
#else
static void rank_push(enum lock_rank rank)
{
    (void)rank;
}

static void rank_pop(enum lock_rank rank)
{
    (void)rank;
}
#endif

void mutex_init(struct mutex *mutex, enum lock_rank rank)
{
    int rc = pthread_mutex_init(&mutex->raw, NULL);

    assert(rc == 0); /* glibc's default mutex needs no resources */
    (void)rc;
    mutex->rank = rank;
}

void mutex_done(struct mutex *mutex)
{
    (void)pthread_mutex_destroy(&mutex->raw);
}

/* The analysis cannot see that the raw mutex is the capability. */
NO_LOCK_ANALYSIS void mutex_lock(struct mutex *mutex)
{
    rank_push(mutex->rank);
    int rc = pthread_mutex_lock(&mutex->raw);

    assert(rc == 0);
    (void)rc;
}

NO_LOCK_ANALYSIS bool mutex_trylock(struct mutex *mutex)
{
    if (pthread_mutex_trylock(&mutex->raw) != 0) {
        return false;
    }
    rank_push(mutex->rank);
    return true;
}

NO_LOCK_ANALYSIS void mutex_unlock(struct mutex *mutex)
{
    int rc = pthread_mutex_unlock(&mutex->raw);

    assert(rc == 0);
    (void)rc;
    rank_pop(mutex->rank);
}

struct start {
    void *(*fn)(void *);
    void *opaque;
    char name[16];
};

static void *thread_main(void *opaque)
{
    struct start start = *(struct start *)opaque;

    free(opaque);
    (void)pthread_setname_np(pthread_self(), start.name); /* a nameless thread works as well */
    return start.fn(start.opaque);
}

int thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *opaque)
{
    static const int own_making[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    struct start *start = calloc(1, sizeof(*start));
    sigset_t all, old;
    int rc;

    if (start == NULL) {
        return -ENOMEM;
    }
    start->fn = fn;
    start->opaque = opaque;
    (void)snprintf(start->name, sizeof(start->name), "%s", name);

    /* The new thread inherits the mask, so no signal can reach it in between. */
    (void)sigfillset(&all);
    for (unsigned i = 0; i < ARRAY_LEN(own_making); i++) {
        (void)sigdelset(&all, own_making[i]);
    }
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(ret_thread, NULL, thread_main, start);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        free(start);
        return -rc;
    }
    return 0;
}
