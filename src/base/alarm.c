#include "base/alarm.h"

#include "base/clock.h"
#include "base/io.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>

struct alarm {
    int fd;
    struct loop_fd *handler;
    loop_fn fn;
    void *opaque;
};

static void alarm_ready(void *opaque, uint32_t events)
{
    struct alarm *alarm = opaque;

    (void)events;
    if (io_eventfd_drain(alarm->fd) != 0) { /* a timerfd reads like an eventfd */
        alarm->fn(alarm->opaque);
    }
}

int alarm_create(struct loop *loop, loop_fn fn, void *opaque, struct alarm **ret_alarm)
{
    struct alarm *alarm = calloc(1, sizeof(*alarm));
    int rc = 0;

    if (alarm == NULL) {
        return -ENOMEM;
    }
    alarm->fn = fn;
    alarm->opaque = opaque;
    alarm->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (alarm->fd < 0) {
        rc = -errno;
    } else {
        rc = loop_add_fd(loop, alarm->fd, EPOLLIN, alarm_ready, alarm, &alarm->handler);
    }
    if (rc == 0) {
        rc = loop_mark_held(alarm->handler);
    }
    if (rc != 0) {
        alarm_destroy(alarm);
        return rc;
    }
    *ret_alarm = alarm;
    return 0;
}

void alarm_destroy(struct alarm *alarm)
{
    if (alarm == NULL) {
        return;
    }
    loop_remove_fd(alarm->handler);
    if (alarm->fd >= 0) {
        (void)close(alarm->fd);
    }
    free(alarm);
}

void alarm_arm(struct alarm *alarm, uint64_t deadline_ns)
{
    const struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                     .tv_nsec = (long)(deadline_ns % NS_PER_S)},
    };

    /* Cannot fail: a valid descriptor and a normalized time. */
    (void)timerfd_settime(alarm->fd, TFD_TIMER_ABSTIME, &spec, NULL);
}
