#include "dev/chardev.h"

#include "base/alarm.h"
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/thread.h"
#include "dev/console_log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define CHUNK_BYTES 4096u
#define INPUT_BYTES 1024u
#define FLUSH_CHUNKS 16u /* per turn of the loop, so that others get theirs */

/* One direction's descriptor and its place in the loop. */
struct channel {
    int fd;
    struct loop_fd *handler;
    bool is_socket;
    bool is_plain; /* a regular file: always ready, unknown to epoll */
};

struct chardev {
    struct loop *loop;
    const struct chardev_frontend_ops *ops;
    void *opaque;
    struct channel in;
    struct channel out;
    struct channel listener;
    uint8_t input[INPUT_BYTES]; /* the loop's thread: read, not yet taken */
    size_t input_len;
    size_t input_start;
    struct alarm *stall_alarm;
    struct console_log *log; /* NULL: none */

    struct mutex mutex; /* LOCK_RANK_LEAF: all below */
    uint8_t ring[CHARDEV_RING_BYTES];
    size_t ring_start;
    size_t ring_len;
    bool has_output;  /* there is, or may come, somebody who reads */
    bool has_peer;    /* out.fd is open */
    bool is_lossy;    /* the peer has stopped reading */
    bool room_wanted; /* tell the frontend when there is room */
    bool flush_queued;
    bool input_queued;
    struct chardev_stats stats;
};

static void input_pump(struct chardev *chardev);
static void output_flush(void *opaque);
static void in_ready(void *opaque, uint32_t events);

/* ---- descriptors ---- */

/*
 * A descriptor of our own for stdio: the same terminal or pipe opened again,
 * so that O_NONBLOCK does not reach the shell that shares the old one.
 */
static int descriptor_reopen(int fd, int access)
{
    char path[32];
    struct stat st;

    if (fstat(fd, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))) {
        int again = 0;

        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        again = open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (again >= 0) {
            return again;
        }
    }
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static void channel_classify(struct channel *channel)
{
    struct stat st;

    channel->is_socket = fstat(channel->fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

static ssize_t channel_write(const struct channel *channel, const void *data, size_t len)
{
    ssize_t n = 0;

    do {
        n = channel->is_socket ? send(channel->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL)
                               : write(channel->fd, data, len);
    } while (n < 0 && errno == EINTR);
    return n;
}

static ssize_t channel_read(const struct channel *channel, void *data, size_t len)
{
    ssize_t n = 0;

    do {
        n = channel->is_socket ? recv(channel->fd, data, len, MSG_DONTWAIT)
                               : read(channel->fd, data, len);
    } while (n < 0 && errno == EINTR);
    return n;
}

static int channel_watch(struct chardev *chardev, struct channel *channel, uint32_t events,
                         loop_fd_fn fn)
{
    int rc = loop_add_fd(chardev->loop, channel->fd, events, fn, chardev, &channel->handler);

    if (rc == -EPERM) {
        channel->is_plain = true; /* epoll refuses regular files: they never block */
        rc = 0;
    }
    return rc;
}

static void channel_close(struct channel *channel)
{
    loop_remove_fd(channel->handler);
    if (channel->fd >= 0) {
        (void)close(channel->fd);
    }
    *channel = (struct channel){.fd = -1};
}

static void channel_events(struct channel *channel, uint32_t events)
{
    if (channel->handler != NULL && loop_set_events(channel->handler, events) != 0) {
        log_warn("a console's descriptor can no longer be watched, ignoring");
    }
}

/* ---- peers ---- */

static void peer_lost(struct chardev *chardev)
{
    channel_close(&chardev->in);
    channel_close(&chardev->out);
    chardev->input_len = 0;
    mutex_lock(&chardev->mutex);
    chardev->has_peer = false;
    chardev->is_lossy = false;
    chardev->has_output = chardev->listener.fd >= 0;
    mutex_unlock(&chardev->mutex);
    channel_events(&chardev->listener, EPOLLIN);
    chardev->ops->output_ready(chardev->opaque);
}

static void output_lost(struct chardev *chardev)
{
    if (chardev->listener.fd >= 0) {
        input_pump(chardev); /* its last words */
        if (chardev->out.fd >= 0) {
            peer_lost(chardev);
        }
        return;
    }
    channel_close(&chardev->out);
    mutex_lock(&chardev->mutex);
    chardev->has_peer = false;
    chardev->has_output = false;
    chardev->ring_len = 0;
    mutex_unlock(&chardev->mutex);
    chardev->ops->output_ready(chardev->opaque);
}

static void input_lost(struct chardev *chardev)
{
    if (chardev->listener.fd >= 0) {
        peer_lost(chardev);
    } else {
        channel_close(&chardev->in);
    }
}

/* ---- output ---- */

static void out_ready(void *opaque, uint32_t events)
{
    if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
        output_lost(opaque);
    } else {
        output_flush(opaque);
    }
}

/* Takes n written bytes out of the ring; true: the frontend waits to hear of it. */
static bool ring_consume(struct chardev *chardev, size_t n)
{
    bool wanted = false;

    mutex_lock(&chardev->mutex);
    chardev->ring_start = (chardev->ring_start + n) % CHARDEV_RING_BYTES;
    chardev->ring_len -= n;
    chardev->stats.out_bytes += n;
    chardev->is_lossy = false;
    wanted = chardev->room_wanted;
    chardev->room_wanted = false;
    mutex_unlock(&chardev->mutex);
    return wanted;
}

static size_t ring_peek(struct chardev *chardev, uint8_t *data, size_t max)
{
    size_t n = 0;

    mutex_lock(&chardev->mutex);
    n = chardev->ring_len;
    if (n > CHARDEV_RING_BYTES - chardev->ring_start) {
        n = CHARDEV_RING_BYTES - chardev->ring_start;
    }
    n = n > max ? max : n;
    memcpy(data, &chardev->ring[chardev->ring_start], n);
    chardev->flush_queued = n != 0;
    mutex_unlock(&chardev->mutex);
    return n;
}

/* Writes until the ring is empty or the peer is full. */
static void output_flush(void *opaque)
{
    struct chardev *chardev = opaque;
    uint8_t data[CHUNK_BYTES];
    bool wanted = false;

    for (unsigned i = 0; chardev->out.fd >= 0; i++) {
        size_t len = ring_peek(chardev, data, sizeof(data));
        ssize_t n = 0;

        if (len == 0) {
            channel_events(&chardev->out, 0);
            break;
        }
        if (i >= FLUSH_CHUNKS && !chardev->out.is_plain) {
            channel_events(&chardev->out, EPOLLOUT);
            break;
        }
        n = channel_write(&chardev->out, data, len);
        if (n < 0 && errno == EAGAIN) {
            channel_events(&chardev->out, EPOLLOUT);
            break;
        }
        if (n <= 0) {
            output_lost(chardev);
            return;
        }
        wanted |= ring_consume(chardev, (size_t)n);
    }
    if (wanted) {
        chardev->ops->output_ready(chardev->opaque);
    }
}

/* The peer has not read for a while: from now on output is dropped. */
static void output_stalled(void *opaque)
{
    struct chardev *chardev = opaque;
    bool stalled = false;

    mutex_lock(&chardev->mutex);
    stalled = chardev->room_wanted && chardev->ring_len == CHARDEV_RING_BYTES;
    chardev->is_lossy |= stalled;
    chardev->room_wanted = false;
    mutex_unlock(&chardev->mutex);
    if (stalled) {
        chardev->ops->output_ready(chardev->opaque);
    }
}

size_t chardev_room(struct chardev *chardev)
{
    size_t room = CHARDEV_RING_BYTES;

    mutex_lock(&chardev->mutex);
    if (chardev->has_peer && !chardev->is_lossy) {
        room = CHARDEV_RING_BYTES - chardev->ring_len;
        if (room == 0 && !chardev->room_wanted) {
            chardev->room_wanted = true;
            alarm_arm(chardev->stall_alarm, clock_monotonic_ns() + CHARDEV_STALL_NS);
        }
    }
    mutex_unlock(&chardev->mutex);
    return room;
}

/* Appends; what does not fit pushes out the oldest bytes, or is dropped while a peer is there. */
static size_t ring_append_locked(struct chardev *chardev, const uint8_t *data, size_t len)
{
    size_t room = CHARDEV_RING_BYTES - chardev->ring_len;
    size_t taken = len;

    if (len > room && !chardev->has_peer) {
        size_t drop = len - room;

        chardev->ring_start = (chardev->ring_start + drop) % CHARDEV_RING_BYTES;
        chardev->ring_len -= drop;
        chardev->stats.dropped_bytes += drop;
    } else if (len > room) {
        taken = room;
    }
    for (size_t i = 0; i < taken; i++) {
        size_t at = (chardev->ring_start + chardev->ring_len) % CHARDEV_RING_BYTES;

        chardev->ring[at] = data[i];
        chardev->ring_len++;
    }
    return taken;
}

size_t chardev_write(struct chardev *chardev, const uint8_t *data, size_t len)
{
    bool defer = false;
    size_t taken = len;

    len = len > CHARDEV_RING_BYTES ? CHARDEV_RING_BYTES : len;
    mutex_lock(&chardev->mutex);
    if (chardev->has_output) {
        taken = ring_append_locked(chardev, data, len);
        if (taken < len && chardev->is_lossy) {
            chardev->stats.dropped_bytes += len - taken;
            taken = len;
        }
        defer = chardev->has_peer && !chardev->flush_queued;
        chardev->flush_queued |= defer;
    }
    mutex_unlock(&chardev->mutex);
    if (chardev->log != NULL) {
        console_log_add(chardev->log, data, taken);
    }
    if (defer && loop_defer(chardev->loop, output_flush, chardev) != 0) {
        mutex_lock(&chardev->mutex);
        chardev->flush_queued = false; /* the next write tries again */
        mutex_unlock(&chardev->mutex);
    }
    return taken;
}

/* ---- input ---- */

static void in_ready(void *opaque, uint32_t events)
{
    (void)events;
    input_pump(opaque);
}

static void input_deferred(void *opaque)
{
    struct chardev *chardev = opaque;

    mutex_lock(&chardev->mutex);
    chardev->input_queued = false;
    mutex_unlock(&chardev->mutex);
    input_pump(chardev);
}

void chardev_input_ready(struct chardev *chardev)
{
    bool defer = false;

    mutex_lock(&chardev->mutex);
    defer = !chardev->input_queued;
    chardev->input_queued = true;
    mutex_unlock(&chardev->mutex);
    if (defer && loop_defer(chardev->loop, input_deferred, chardev) != 0) {
        mutex_lock(&chardev->mutex);
        chardev->input_queued = false;
        mutex_unlock(&chardev->mutex);
    }
}

/* Hands what was read to the frontend; true when all of it was taken. */
static bool input_give(struct chardev *chardev)
{
    size_t taken = 0;

    if (chardev->input_len == 0) {
        return true;
    }
    taken = chardev->ops->input(chardev->opaque, &chardev->input[chardev->input_start],
                                chardev->input_len);
    chardev->input_start += taken;
    chardev->input_len -= taken;
    return chardev->input_len == 0;
}

/* Until chardev_input_ready(). Not by asking for no events: a hang-up is always reported. */
static void input_pause(struct chardev *chardev)
{
    loop_remove_fd(chardev->in.handler);
    chardev->in.handler = NULL;
}

static void input_resume(struct chardev *chardev)
{
    if (chardev->in.is_plain) {
        chardev_input_ready(chardev); /* more of the file at the next turn */
    } else if (chardev->in.handler == NULL &&
               channel_watch(chardev, &chardev->in, EPOLLIN, in_ready) != 0) {
        input_lost(chardev);
    }
}

static void input_pump(struct chardev *chardev)
{
    ssize_t n = 0;

    if (!input_give(chardev)) {
        input_pause(chardev);
        return;
    }
    if (chardev->in.fd < 0) {
        return;
    }
    n = channel_read(&chardev->in, chardev->input, sizeof(chardev->input));
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        input_lost(chardev);
        return;
    }
    if (n > 0) {
        mutex_lock(&chardev->mutex);
        chardev->stats.in_bytes += (uint64_t)n;
        mutex_unlock(&chardev->mutex);
        chardev->input_start = 0;
        chardev->input_len = (size_t)n;
        if (!input_give(chardev)) {
            input_pause(chardev);
            return;
        }
    }
    input_resume(chardev);
}

/* ---- life cycle ---- */

static void peer_arrived(void *opaque, uint32_t events)
{
    struct chardev *chardev = opaque;
    int fd = accept4(chardev->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)events;
    if (fd < 0) {
        return; /* it went away again */
    }
    chardev->in = (struct channel){.fd = fd, .is_socket = true};
    chardev->out = (struct channel){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), .is_socket = true};
    if (chardev->out.fd < 0 || channel_watch(chardev, &chardev->in, EPOLLIN, in_ready) != 0 ||
        channel_watch(chardev, &chardev->out, 0, out_ready) != 0) {
        channel_close(&chardev->in);
        channel_close(&chardev->out);
        return;
    }
    channel_events(&chardev->listener, 0);
    mutex_lock(&chardev->mutex);
    chardev->has_peer = true;
    mutex_unlock(&chardev->mutex);
    output_flush(chardev);
}

static int channels_watch(struct chardev *chardev)
{
    int rc = 0;

    if (chardev->listener.fd >= 0) {
        rc = channel_watch(chardev, &chardev->listener, EPOLLIN, peer_arrived);
    }
    if (rc == 0 && chardev->in.fd >= 0) {
        channel_classify(&chardev->in);
        rc = channel_watch(chardev, &chardev->in, EPOLLIN, in_ready);
    }
    if (rc == 0 && chardev->out.fd >= 0) {
        channel_classify(&chardev->out);
        rc = channel_watch(chardev, &chardev->out, 0, out_ready);
    }
    if (rc == 0 && chardev->in.is_plain) {
        chardev_input_ready(chardev);
    }
    return rc;
}

/* Fills in and out with descriptors of our own; config's are left alone. */
static int channels_open(struct chardev *chardev, const struct chardev_config *config)
{
    if (config->in_fd >= 0) {
        chardev->in.fd = config->keep_fds ? descriptor_reopen(config->in_fd, O_RDONLY)
                                          : fcntl(config->in_fd, F_DUPFD_CLOEXEC, 3);
        if (chardev->in.fd < 0) {
            return -errno;
        }
    }
    if (config->out_fd >= 0) {
        chardev->out.fd = config->keep_fds ? descriptor_reopen(config->out_fd, O_WRONLY)
                                           : fcntl(config->out_fd, F_DUPFD_CLOEXEC, 3);
        if (chardev->out.fd < 0) {
            return -errno;
        }
    }
    if (config->listen_fd >= 0) {
        chardev->listener.fd = fcntl(config->listen_fd, F_DUPFD_CLOEXEC, 3);
        if (chardev->listener.fd < 0) {
            return -errno;
        }
    }
    if (!config->keep_fds) {
        const int fds[3] = {chardev->in.fd, chardev->out.fd, chardev->listener.fd};

        for (unsigned i = 0; i < 3; i++) {
            int rc = fds[i] >= 0 ? io_set_nonblock(fds[i]) : 0;

            if (rc != 0) {
                return rc;
            }
        }
    }
    return 0;
}

static void originals_close(const struct chardev_config *config)
{
    if (config->in_fd >= 0) {
        (void)close(config->in_fd);
    }
    if (config->out_fd >= 0 && config->out_fd != config->in_fd) {
        (void)close(config->out_fd);
    }
    if (config->listen_fd >= 0) {
        (void)close(config->listen_fd);
    }
}

int chardev_create(struct loop *loop, const struct chardev_config *config,
                   struct chardev **ret_chardev)
{
    struct chardev *chardev = calloc(1, sizeof(*chardev));
    int rc = 0;

    if (chardev == NULL) {
        return -ENOMEM;
    }
    chardev->loop = loop;
    chardev->in.fd = chardev->out.fd = chardev->listener.fd = -1;
    mutex_init(&chardev->mutex, LOCK_RANK_LEAF);
    rc = alarm_create(loop, output_stalled, chardev, &chardev->stall_alarm);
    if (rc == 0) {
        rc = channels_open(chardev, config);
    }
    if (rc == 0) {
        rc = channels_watch(chardev);
    }
    if (rc != 0) {
        chardev_destroy(chardev);
        return rc;
    }
    chardev->has_peer = chardev->out.fd >= 0;
    chardev->has_output = chardev->has_peer || chardev->listener.fd >= 0;
    if (!config->keep_fds) {
        originals_close(config);
    }
    *ret_chardev = chardev;
    return 0;
}

void chardev_destroy(struct chardev *chardev)
{
    if (chardev == NULL) {
        return;
    }
    for (bool more = chardev->out.fd >= 0; more;) {
        uint8_t data[CHUNK_BYTES];
        size_t len = ring_peek(chardev, data, sizeof(data));
        ssize_t n = len != 0 ? channel_write(&chardev->out, data, len) : 0;

        more = n > 0;
        if (more) {
            (void)ring_consume(chardev, (size_t)n); /* nobody waits any more */
        }
    }
    channel_close(&chardev->in);
    channel_close(&chardev->out);
    channel_close(&chardev->listener);
    alarm_destroy(chardev->stall_alarm);
    console_log_destroy(chardev->log);
    mutex_done(&chardev->mutex);
    free(chardev);
}

void chardev_set_frontend(struct chardev *chardev, const struct chardev_frontend_ops *ops,
                          void *opaque)
{
    chardev->ops = ops;
    chardev->opaque = opaque;
}

void chardev_set_log(struct chardev *chardev, struct console_log *log)
{
    chardev->log = log;
}

void chardev_stats(struct chardev *chardev, struct chardev_stats *ret_stats)
{
    mutex_lock(&chardev->mutex);
    *ret_stats = chardev->stats;
    mutex_unlock(&chardev->mutex);
}
