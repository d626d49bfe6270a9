#include "base/loop.h"

#include "base/io.h"
#include "base/thread.h"
#include "test.h"

#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* What callbacks share: a trace of who was called, and the loop to stop. */
struct trace {
    struct loop *loop;
    char order[32];
    size_t used;
    struct loop_timer *timer;
    struct loop_fd *handlers[2];
    int fds[2];
};

static void note(struct trace *trace, char who)
{
    if (trace->used < sizeof(trace->order) - 1) {
        trace->order[trace->used++] = who;
    }
}

static int setup(void **state)
{
    struct trace *trace = calloc(1, sizeof(*trace));

    if (trace == NULL || loop_create(&trace->loop) < 0) {
        return -1;
    }
    *state = trace;
    return 0;
}

static int teardown(void **state)
{
    struct trace *trace = *state;

    loop_destroy(trace->loop);
    free(trace);
    return 0;
}

static void on_a(void *opaque)
{
    note(opaque, 'a');
}

static void on_b(void *opaque)
{
    note(opaque, 'b');
}

static void on_last(void *opaque)
{
    struct trace *trace = opaque;

    note(trace, '.');
    loop_stop(trace->loop);
}

static void test_deferred_calls_run_in_order(void **state)
{
    struct trace *trace = *state;

    assert_int_equal(loop_defer(trace->loop, on_a, trace), 0);
    assert_int_equal(loop_defer(trace->loop, on_b, trace), 0);
    assert_int_equal(loop_defer(trace->loop, on_a, trace), 0);
    assert_int_equal(loop_defer(trace->loop, on_last, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "aba.");
}

static void on_defer_more(void *opaque)
{
    struct trace *trace = opaque;

    note(trace, 'm');
    assert_int_equal(loop_defer(trace->loop, on_last, trace), 0);
}

static void test_deferred_from_deferred_still_runs(void **state)
{
    struct trace *trace = *state;

    assert_int_equal(loop_defer(trace->loop, on_defer_more, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "m.");
}

static void *defer_from_thread(void *opaque)
{
    struct trace *trace = opaque;

    return loop_defer(trace->loop, on_last, trace) == 0 ? trace : NULL;
}

static void test_defer_from_another_thread_wakes_the_loop(void **state)
{
    struct trace *trace = *state;
    pthread_t thread;
    void *result = NULL;

    assert_int_equal(thread_start(&thread, "other", defer_from_thread, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, trace);
    assert_string_equal(trace->order, ".");
}

static void test_stop_before_run_returns_at_once_and_only_once(void **state)
{
    struct trace *trace = *state;

    loop_stop(trace->loop);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_int_equal(loop_defer(trace->loop, on_last, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, ".");
}

static void test_timers_fire_by_deadline_and_disarmed_ones_do_not(void **state)
{
    struct trace *trace = *state;
    uint64_t now = clock_monotonic_ns();
    struct loop_timer *a, *b, *last, *never;

    assert_int_equal(loop_add_timer(trace->loop, on_last, trace, &last), 0);
    assert_int_equal(loop_add_timer(trace->loop, on_a, trace, &a), 0);
    assert_int_equal(loop_add_timer(trace->loop, on_b, trace, &b), 0);
    assert_int_equal(loop_add_timer(trace->loop, on_a, trace, &never), 0);
    loop_arm_timer(last, now + 3000000);
    loop_arm_timer(never, now);
    loop_arm_timer(a, now + 2000000);
    loop_arm_timer(b, now + 4000000);
    loop_arm_timer(b, now + 1000000);
    loop_disarm_timer(never);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "ba.");
    assert_true(clock_monotonic_ns() >= now + 3000000); /* never early */
    loop_remove_timer(a);
    loop_remove_timer(b);
    loop_remove_timer(last);
    loop_remove_timer(never);
}

static void on_tick(void *opaque)
{
    struct trace *trace = opaque;

    note(trace, 't');
    if (trace->used == 3) {
        loop_remove_timer(trace->timer);
        loop_stop(trace->loop);
        return;
    }
    loop_arm_timer(trace->timer, 0); /* long past: due again, but other events get their turn */
}

static void test_timer_armed_in_its_own_callback_does_not_starve_others(void **state)
{
    struct trace *trace = *state;

    assert_int_equal(loop_add_timer(trace->loop, on_tick, trace, &trace->timer), 0);
    loop_arm_timer(trace->timer, 0);
    assert_int_equal(loop_defer(trace->loop, on_a, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_int_equal(trace->used, 3);
    assert_non_null(strchr(trace->order, 'a'));
}

/* Each of two ready handlers removes both: whichever comes first, the other must stay silent. */
static void on_fd_remove_both(void *opaque, uint32_t events)
{
    struct trace *trace = opaque;

    note(trace, (events & EPOLLIN) != 0 ? 'r' : '?');
    loop_remove_fd(trace->handlers[0]);
    loop_remove_fd(trace->handlers[1]);
    assert_int_equal(loop_defer(trace->loop, on_last, trace), 0);
}

static void test_handler_removed_while_its_event_waits_is_not_called(void **state)
{
    struct trace *trace = *state;

    for (int i = 0; i < 2; i++) {
        trace->fds[i] = io_eventfd();
        assert_true(trace->fds[i] >= 0);
        io_eventfd_signal(trace->fds[i]);
        assert_int_equal(loop_add_fd(trace->loop, trace->fds[i], EPOLLIN, on_fd_remove_both, trace,
                                     &trace->handlers[i]),
                         0);
    }
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "r.");
    (void)close(trace->fds[0]);
    (void)close(trace->fds[1]);
}

static void on_fd_note(void *opaque, uint32_t events)
{
    struct trace *trace = opaque;

    note(trace, (events & EPOLLOUT) != 0 ? 'w' : 'r');
    loop_stop(trace->loop);
}

static void test_set_events_changes_what_is_heard(void **state)
{
    struct trace *trace = *state;
    struct loop_fd *handler;
    int fd = io_eventfd();

    assert_true(fd >= 0);
    assert_int_equal(loop_add_fd(trace->loop, fd, EPOLLIN, on_fd_note, trace, &handler), 0);
    assert_int_equal(loop_set_events(handler, EPOLLOUT), 0);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "w");
    loop_remove_fd(handler);
    (void)close(fd);
}

static void on_a_and_stop(void *opaque)
{
    struct trace *trace = opaque;

    note(trace, 'a');
    loop_stop(trace->loop);
}

static void run_deferred(struct trace *trace)
{
    assert_int_equal(loop_defer(trace->loop, on_a_and_stop, trace), 0);
    assert_int_equal(loop_run(trace->loop), 0);
}

static void test_what_happens_while_held_is_told_afterwards(void **state)
{
    struct trace *trace = *state;
    struct loop_fd *handler;
    int fd = io_eventfd();

    assert_true(fd >= 0);
    assert_int_equal(loop_add_fd(trace->loop, fd, EPOLLIN, on_fd_note, trace, &handler), 0);
    assert_int_equal(loop_mark_held(handler), 0);
    loop_hold(trace->loop, true);
    run_deferred(trace);
    io_eventfd_signal(fd);
    assert_int_equal(loop_set_events(handler, EPOLLIN), 0);
    run_deferred(trace);
    assert_string_equal(trace->order, "aa");
    loop_hold(trace->loop, false);
    assert_int_equal(loop_run(trace->loop), 0);
    assert_string_equal(trace->order, "aar");
    loop_remove_fd(handler);
    (void)close(fd);
}

static void test_destroy_frees_what_is_still_registered(void **state)
{
    struct trace *trace = *state;
    struct loop_fd *handler;
    struct loop_timer *timer;
    int fd = io_eventfd();

    assert_true(fd >= 0);
    assert_int_equal(loop_add_fd(trace->loop, fd, EPOLLIN, on_fd_note, trace, &handler), 0);
    assert_int_equal(loop_add_timer(trace->loop, on_a, trace, &timer), 0);
    loop_arm_timer(timer, UINT64_MAX);
    assert_int_equal(loop_defer(trace->loop, on_a, trace), 0);
    loop_destroy(trace->loop); /* the leak checker of the sanitizer build has the last word */
    trace->loop = NULL;
    assert_int_equal(close(fd), 0);
    assert_string_equal(trace->order, "");
}

#define LOOP_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(test_deferred_calls_run_in_order),
        LOOP_TEST(test_deferred_from_deferred_still_runs),
        LOOP_TEST(test_defer_from_another_thread_wakes_the_loop),
        LOOP_TEST(test_stop_before_run_returns_at_once_and_only_once),
        LOOP_TEST(test_timers_fire_by_deadline_and_disarmed_ones_do_not),
        LOOP_TEST(test_timer_armed_in_its_own_callback_does_not_starve_others),
        LOOP_TEST(test_handler_removed_while_its_event_waits_is_not_called),
        LOOP_TEST(test_set_events_changes_what_is_heard),
        LOOP_TEST(test_what_happens_while_held_is_told_afterwards),
        LOOP_TEST(test_destroy_frees_what_is_still_registered),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
