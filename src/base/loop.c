#include "base/loop.h"

#include "base/io.h"
#include "base/thread.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>

#define LOOP_BATCH 32

/* A circular list; a node that is on no list points to itself. */
struct node {
    struct node *prev, *next;
};

struct loop_fd {
    struct node node; /* on loop->fds, or on loop->graves once removed */
    struct loop *loop;
    loop_fd_fn fn; /* NULL once removed */
    void *opaque;
    int fd;
    uint32_t events;
    bool can_be_held;
};

struct loop_timer {
    struct node node; /* on loop->timers or on the list of due ones while armed */
    struct node all;  /* on loop->all_timers */
    struct loop *loop;
    loop_fn fn;
    void *opaque;
    uint64_t deadline_ns;
};

struct deferred {
    struct deferred *next;
    loop_fn fn;
    void *opaque;
};

struct loop {
    int epoll_fd;
    int wake_fd;
    int timer_fd;
    uint64_t armed_ns; /* what timer_fd is set to; 0: not set */
    atomic_bool stopping;
    atomic_bool want_held;
    bool is_held; /* as the handlers' events say */
    struct node fds;
    struct node graves; /* removed handlers that the batch at hand may still name */
    struct node timers; /* armed, earliest first */
    struct node all_timers;
    struct mutex lock; /* guards the queue of deferred calls */
    struct deferred *queue_head;
    struct deferred **queue_tail;
};

static void node_init(struct node *node)
{
    node->prev = node;
    node->next = node;
}

static bool node_alone(const struct node *node)
{
    return node->next == node;
}

static void node_unlink(struct node *node)
{
    node->prev->next = node->next; /* NOLINT(clang-analyzer-unix.Malloc): loses track of rings */
    node->next->prev = node->prev;
    node_init(node);
}

static void node_insert_before(struct node *place, struct node *node)
{
    node->prev = place->prev;
    node->next = place;
    place->prev->next = node;
    place->prev = node;
}

static int loop_watch(struct loop *loop, int fd, uint32_t events, void *tag)
{
    struct epoll_event event = {.events = events, .data.ptr = tag};

    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int loop_open(struct loop *loop)
{
    int rc;

    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        return -errno;
    }
    loop->wake_fd = io_eventfd();
    if (loop->wake_fd < 0) {
        return loop->wake_fd;
    }
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (loop->timer_fd < 0) {
        return -errno;
    }
    rc = loop_watch(loop, loop->wake_fd, EPOLLIN, &loop->wake_fd);
    return rc < 0 ? rc : loop_watch(loop, loop->timer_fd, EPOLLIN, &loop->timer_fd);
}

int loop_create(struct loop **ret_loop)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    int rc;

    if (loop == NULL) {
        return -ENOMEM;
    }
    loop->epoll_fd = loop->wake_fd = loop->timer_fd = -1;
    node_init(&loop->fds);
    node_init(&loop->graves);
    node_init(&loop->timers);
    node_init(&loop->all_timers);
    mutex_init(&loop->lock, LOCK_RANK_LEAF);
    loop->queue_tail = &loop->queue_head;
    rc = loop_open(loop);
    if (rc < 0) {
        loop_destroy(loop);
        return rc;
    }
    *ret_loop = loop;
    return 0;
}

static void loop_free_handlers(struct node *list)
{
    while (!node_alone(list)) {
        struct loop_fd *handler = container_of(list->next, struct loop_fd, node);

        node_unlink(&handler->node);
        free(handler);
    }
}

static void loop_close(int fd)
{
    if (fd >= 0) {
        (void)close(fd);
    }
}

void loop_destroy(struct loop *loop)
{
    if (loop == NULL) {
        return;
    }
    loop_free_handlers(&loop->fds);
    loop_free_handlers(&loop->graves);
    while (!node_alone(&loop->all_timers)) {
        loop_remove_timer(container_of(loop->all_timers.next, struct loop_timer, all));
    }
    while (loop->queue_head != NULL) {
        struct deferred *call = loop->queue_head;

        loop->queue_head = call->next;
        free(call);
    }
    loop_close(loop->epoll_fd);
    loop_close(loop->wake_fd);
    loop_close(loop->timer_fd);
    mutex_done(&loop->lock);
    free(loop);
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stopping, true);
    io_eventfd_signal(loop->wake_fd);
}

int loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn fn, void *opaque,
                struct loop_fd **ret_handler)
{
    struct loop_fd *handler = calloc(1, sizeof(*handler));
    int rc;

    if (handler == NULL) {
        return -ENOMEM;
    }
    *handler =
        (struct loop_fd){.loop = loop, .fn = fn, .opaque = opaque, .fd = fd, .events = events};
    rc = loop_watch(loop, fd, events, handler);
    if (rc < 0) {
        free(handler);
        return rc;
    }
    node_insert_before(&loop->fds, &handler->node);
    *ret_handler = handler;
    return 0;
}

static int loop_tell_events(const struct loop_fd *handler)
{
    bool is_held = handler->loop->is_held && handler->can_be_held;
    struct epoll_event event = {.events = is_held ? 0 : handler->events,
                                .data.ptr = (void *)(uintptr_t)handler};

    return epoll_ctl(handler->loop->epoll_fd, EPOLL_CTL_MOD, handler->fd, &event) < 0 ? -errno : 0;
}

int loop_set_events(struct loop_fd *handler, uint32_t events)
{
    handler->events = events;
    return loop_tell_events(handler);
}

int loop_mark_held(struct loop_fd *handler)
{
    handler->can_be_held = true;
    return loop_tell_events(handler);
}

void loop_hold(struct loop *loop, bool is_held)
{
    atomic_store(&loop->want_held, is_held);
    io_eventfd_signal(loop->wake_fd);
}

static void loop_follow_hold(struct loop *loop)
{
    bool is_held = atomic_load(&loop->want_held);

    if (is_held == loop->is_held) {
        return;
    }
    loop->is_held = is_held;
    for (struct node *node = loop->fds.next; node != &loop->fds; node = node->next) {
        const struct loop_fd *handler = container_of(node, struct loop_fd, node);

        if (handler->can_be_held) {
            (void)loop_tell_events(handler); /* registered, so it cannot fail */
        }
    }
}

void loop_remove_fd(struct loop_fd *handler)
{
    if (handler == NULL) {
        return;
    }
    /* Fails only when the descriptor is gone already, and then nothing is watched. */
    (void)epoll_ctl(handler->loop->epoll_fd, EPOLL_CTL_DEL, handler->fd, NULL);
    handler->fn = NULL;
    node_unlink(&handler->node);
    node_insert_before(&handler->loop->graves, &handler->node);
}

/* Sets timer_fd to the earliest deadline, where that has changed to an earlier one. */
static void loop_update_clock(struct loop *loop)
{
    struct itimerspec spec = {0};
    uint64_t earliest;

    if (node_alone(&loop->timers)) {
        return; /* an idle expiry is harmless and saves a system call per disarm */
    }
    earliest = container_of(loop->timers.next, struct loop_timer, node)->deadline_ns;
    if (loop->armed_ns != 0 && loop->armed_ns <= earliest) {
        return;
    }
    if (earliest == 0) {
        earliest = 1; /* zero would disarm */
    }
    spec.it_value.tv_sec = (time_t)(earliest / 1000000000ull);
    spec.it_value.tv_nsec = (long)(earliest % 1000000000ull);
    (void)timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec,
                          NULL); /* valid by construction */
    loop->armed_ns = earliest;
}

int loop_add_timer(struct loop *loop, loop_fn fn, void *opaque, struct loop_timer **ret_timer)
{
    struct loop_timer *timer = calloc(1, sizeof(*timer));

    if (timer == NULL) {
        return -ENOMEM;
    }
    *timer = (struct loop_timer){.loop = loop, .fn = fn, .opaque = opaque};
    node_init(&timer->node);
    node_insert_before(&loop->all_timers, &timer->all);
    *ret_timer = timer;
    return 0;
}

void loop_arm_timer(struct loop_timer *timer, uint64_t deadline_ns)
{
    struct node *place;

    node_unlink(&timer->node);
    timer->deadline_ns = deadline_ns;
    for (place = timer->loop->timers.next; place != &timer->loop->timers; place = place->next) {
        if (container_of(place, struct loop_timer, node)->deadline_ns > deadline_ns) {
            break;
        }
    }
    node_insert_before(place, &timer->node);
    loop_update_clock(timer->loop);
}

void loop_disarm_timer(struct loop_timer *timer)
{
    node_unlink(&timer->node);
}

void loop_remove_timer(struct loop_timer *timer)
{
    if (timer == NULL) {
        return;
    }
    node_unlink(&timer->node);
    node_unlink(&timer->all);
    free(timer);
}

int loop_defer(struct loop *loop, loop_fn fn, void *opaque)
{
    struct deferred *call = malloc(sizeof(*call));
    bool was_empty;

    if (call == NULL) {
        return -ENOMEM;
    }
    *call = (struct deferred){.fn = fn, .opaque = opaque};
    mutex_lock(&loop->lock);
    was_empty = loop->queue_head == NULL;
    *loop->queue_tail = call;
    loop->queue_tail = &call->next;
    mutex_unlock(&loop->lock);
    if (was_empty) {
        io_eventfd_signal(loop->wake_fd);
    }
    return 0;
}

static void loop_run_deferred(struct loop *loop)
{
    struct deferred *call;

    mutex_lock(&loop->lock);
    call = loop->queue_head;
    loop->queue_head = NULL;
    loop->queue_tail = &loop->queue_head;
    mutex_unlock(&loop->lock);
    while (call != NULL) {
        struct deferred *next = call->next;

        call->fn(call->opaque);
        free(call);
        call = next;
    }
}

/* Runs the timers due now; one that is armed again waits for the next round. */
static void loop_run_timers(struct loop *loop)
{
    uint64_t now = clock_monotonic_ns();
    struct node due;

    (void)io_eventfd_drain(loop->timer_fd);
    loop->armed_ns = 0;
    node_init(&due);
    while (!node_alone(&loop->timers)) {
        struct loop_timer *timer = container_of(loop->timers.next, struct loop_timer, node);

        if (timer->deadline_ns > now) {
            break;
        }
        node_unlink(&timer->node);
        node_insert_before(&due, &timer->node);
    }
    while (!node_alone(&due)) {
        struct loop_timer *timer = container_of(due.next, struct loop_timer, node);

        node_unlink(&timer->node);
        timer->fn(timer->opaque);
    }
    loop_update_clock(loop);
}

static void loop_dispatch(struct loop *loop, const struct epoll_event *event)
{
    if (event->data.ptr == &loop->wake_fd) {
        (void)io_eventfd_drain(loop->wake_fd);
        loop_follow_hold(loop);
        loop_run_deferred(loop);
    } else if (event->data.ptr == &loop->timer_fd) {
        loop_run_timers(loop);
    } else {
        struct loop_fd *handler = event->data.ptr;

        if (handler->fn != NULL) {
            handler->fn(handler->opaque, event->events);
        }
    }
}

int loop_run(struct loop *loop)
{
    struct epoll_event events[LOOP_BATCH];

    while (!atomic_load(&loop->stopping)) {
        int n = epoll_wait(loop->epoll_fd, events, LOOP_BATCH, -1);

        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        for (int i = 0; i < n; i++) {
            loop_dispatch(loop, &events[i]);
        }
        loop_free_handlers(&loop->graves);
    }
    atomic_store(&loop->stopping, false);
    return 0;
}
