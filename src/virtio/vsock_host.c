/* The host's side of the socket device: unix sockets. */
#include "base/log.h"
#include "base/loop.h"
#include "virtio/vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define COMMAND_MAX_BYTES 32u /* "CONNECT 4294967295\n" and a little */
#define LISTEN_BACKLOG 64
#define FIRST_HOST_PORT (1u << 30)
#define PORT_SUFFIX_BYTES 11u /* _4294967295 */

static struct vsock_conn *new_conn(struct virtio_vsock *vsock, int fd)
{
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        struct vsock_conn *conn = &vsock->conns[i];

        if (conn->state == VSOCK_FREE) {
            *conn = (struct vsock_conn){.vsock = vsock, .fd = fd};
            return conn;
        }
    }
    return NULL;
}

void vsock_host_close(struct vsock_conn *conn)
{
    loop_remove_fd(conn->handler);
    (void)close(conn->fd); /* a peer that went away is no news here */
    free(conn->buffer);
    *conn = (struct vsock_conn){.vsock = conn->vsock, .fd = -1};
}

void vsock_host_finish(struct vsock_conn *conn)
{
    if (conn->buffer_len > 0) {
        return; /* the handler comes back here when it is written */
    }
    if (conn->state == VSOCK_DRAINING) {
        vsock_host_close(conn);
        return;
    }
    if (conn->guest_ended && conn->guest_closed) {
        conn->due = VSOCK_DUE_RST;
    } else if (conn->guest_ended) {
        (void)shutdown(conn->fd, SHUT_WR); /* fails when the peer is gone already */
    }
}

void vsock_host_watch(struct vsock_conn *conn)
{
    uint32_t events = 0;
    bool wants_bytes =
        conn->state == VSOCK_OPEN && !conn->can_read && !conn->host_ended && !conn->guest_closed;

    if (conn->state == VSOCK_COMMAND || wants_bytes) {
        events |= EPOLLIN;
    }
    if (conn->buffer_len > 0) {
        events |= EPOLLOUT;
    }
    if (conn->handler && events != conn->watched) {
        if (loop_set_events(conn->handler, events) != 0) {
            log_error("virtio-vsock: cannot watch a connection");
        }
        conn->watched = events;
    }
}

static void flush_buffer(struct vsock_conn *conn)
{
    while (conn->buffer_len > 0) {
        ssize_t n = send(conn->fd, conn->buffer + conn->buffer_start, conn->buffer_len,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n < 0) {
            conn->buffer_len = 0;
            conn->host_ended = true;
            conn->due |= VSOCK_DUE_RST;
            return;
        }
        conn->fwd_cnt += (uint32_t)n;
        conn->buffer_start += (uint32_t)n;
        conn->buffer_len -= (uint32_t)n;
    }
    conn->buffer_start = 0;
    if (conn->fwd_cnt != conn->told_fwd_cnt) {
        conn->due |= VSOCK_DUE_CREDIT;
    }
    if (conn->guest_ended || conn->state == VSOCK_DRAINING) {
        vsock_host_finish(conn);
    }
}

static bool keep(struct vsock_conn *conn, const uint8_t *data, uint32_t len)
{
    if (len > VSOCK_BUFFER_BYTES - conn->buffer_len) {
        return false;
    }
    if (!conn->buffer) {
        conn->buffer = malloc(VSOCK_BUFFER_BYTES);
        if (!conn->buffer) {
            return false;
        }
    }
    if (conn->buffer_start > VSOCK_BUFFER_BYTES - conn->buffer_len - len) {
        memmove(conn->buffer, conn->buffer + conn->buffer_start, conn->buffer_len);
        conn->buffer_start = 0;
    }
    memcpy(conn->buffer + conn->buffer_start + conn->buffer_len, data, len);
    conn->buffer_len += len;
    return true;
}

bool vsock_host_write(struct vsock_conn *conn, const uint8_t *data, uint32_t len)
{
    ssize_t n = 0;

    if (conn->buffer_len == 0 && len > 0) {
        do {
            n = send(conn->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        } while (n < 0 && errno == EINTR);
        if (n < 0 && errno != EAGAIN) {
            return false;
        }
        n = n < 0 ? 0 : n;
        conn->fwd_cnt += (uint32_t)n;
    }
    return (uint32_t)n == len || keep(conn, data + n, len - (uint32_t)n);
}

uint32_t vsock_host_read(struct vsock_conn *conn, uint8_t *data, uint32_t len)
{
    ssize_t n;

    do {
        n = recv(conn->fd, data, len, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0) {
        return (uint32_t)n;
    }
    conn->can_read = false;
    if (n == 0 || errno != EAGAIN) {
        conn->host_ended = true;
        conn->due |= VSOCK_DUE_SHUTDOWN;
    }
    return 0;
}

static bool port_is_used(const struct virtio_vsock *vsock, uint32_t port)
{
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        if (vsock->conns[i].state != VSOCK_FREE && vsock->conns[i].host_port == port) {
            return true;
        }
    }
    return false;
}

static uint32_t pick_host_port(struct virtio_vsock *vsock)
{
    do {
        vsock->next_host_port++;
        if (vsock->next_host_port < FIRST_HOST_PORT) {
            vsock->next_host_port = FIRST_HOST_PORT;
        }
    } while (port_is_used(vsock, vsock->next_host_port));
    return vsock->next_host_port;
}

/* "CONNECT N": false when it is not that. */
static bool parse_command(const char *line, uint32_t *ret_port)
{
    static const char verb[] = "CONNECT ";
    uint64_t port = 0;
    const char *digit = line + sizeof(verb) - 1;

    if (strncmp(line, verb, sizeof(verb) - 1) != 0 || *digit == '\0') {
        return false;
    }
    for (; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9') {
            return false;
        }
        port = port * 10 + (uint64_t)(*digit - '0');
        if (port > UINT32_MAX) {
            return false;
        }
    }
    *ret_port = (uint32_t)port;
    return true;
}

/* Takes no byte beyond the newline: what follows is the guest's. */
static void read_command(struct vsock_conn *conn)
{
    char line[COMMAND_MAX_BYTES + 1];
    ssize_t n = recv(conn->fd, line, COMMAND_MAX_BYTES, MSG_PEEK | MSG_DONTWAIT);
    char *end;

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
    if (!end) {
        if (n <= 0 || n == (ssize_t)COMMAND_MAX_BYTES) {
            vsock_host_close(conn);
        }
        return;
    }
    n = recv(conn->fd, line, (size_t)(end - line) + 1, MSG_DONTWAIT);
    *end = '\0';
    if (n <= 0 || !virtio_dev_is_live(&conn->vsock->dev) ||
        !parse_command(line, &conn->guest_port)) {
        vsock_host_close(conn);
        return;
    }
    conn->host_port = pick_host_port(conn->vsock);
    conn->state = VSOCK_REQUESTED;
    conn->due = VSOCK_DUE_REQUEST;
}

void vsock_host_accepted(struct vsock_conn *conn)
{
    char line[32];
    int len = snprintf(line, sizeof(line), "OK %u\n", conn->host_port);

    conn->state = VSOCK_OPEN;
    if (len < 0 || send(conn->fd, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) != len) {
        conn->due = VSOCK_DUE_RST; /* the program is gone */
    }
}

static void on_socket(void *opaque, uint32_t events)
{
    struct vsock_conn *conn = opaque;
    struct virtio_vsock *vsock = conn->vsock;
    bool is_gone = (events & (EPOLLHUP | EPOLLERR)) != 0;

    virtio_dev_lock(&vsock->dev);
    if (conn->state == VSOCK_COMMAND) {
        read_command(conn);
    } else {
        if (conn->buffer_len > 0 && ((events & EPOLLOUT) || is_gone)) {
            flush_buffer(conn);
        }
        if (conn->state == VSOCK_OPEN && ((events & EPOLLIN) || is_gone) && !conn->host_ended) {
            conn->can_read = true;
        }
        if (is_gone && (conn->host_ended || conn->guest_closed || conn->state != VSOCK_OPEN) &&
            conn->state != VSOCK_FREE) {
            conn->due |= VSOCK_DUE_RST; /* nothing more to read: no use in waiting */
        }
    }
    if (is_gone && conn->state != VSOCK_FREE) {
        /* Reported until the handler is gone, whatever it asks for. */
        loop_remove_fd(conn->handler);
        conn->handler = NULL;
    }
    vsock_pump(vsock);
    virtio_dev_unlock(&vsock->dev);
}

static bool watch_new(struct vsock_conn *conn, uint32_t events)
{
    conn->watched = events;
    return loop_add_fd(conn->vsock->dev.loop, conn->fd, events, on_socket, conn, &conn->handler) ==
           0;
}

struct vsock_conn *vsock_host_connect(struct virtio_vsock *vsock, uint32_t host_port,
                                      uint32_t guest_port)
{
    struct sockaddr_un address = vsock->address;
    size_t len = strlen(address.sun_path);
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct vsock_conn *conn;

    /* Room for the suffix was checked at creation. */
    (void)snprintf(address.sun_path + len, sizeof(address.sun_path) - len, "_%u", host_port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        return NULL;
    }
    conn = new_conn(vsock, fd);
    if (!conn || !watch_new(conn, EPOLLIN)) {
        return NULL;
    }
    (void)steal_fd(&fd); /* conn's now */
    conn->state = VSOCK_OPEN;
    conn->host_port = host_port;
    conn->guest_port = guest_port;
    return conn;
}

static void on_listen(void *opaque, uint32_t events)
{
    struct virtio_vsock *vsock = opaque;
    int fd = accept4(vsock->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct vsock_conn *conn;

    (void)events; /* only EPOLLIN is asked for */
    if (fd < 0) {
        return;
    }
    virtio_dev_lock(&vsock->dev);
    conn = new_conn(vsock, fd);
    if (!conn || !watch_new(conn, EPOLLIN)) {
        log_warn("virtio-vsock: too many connections, ignoring one from the host");
        (void)close(fd); /* the program reads the end of file */
    } else {
        conn->state = VSOCK_COMMAND;
    }
    virtio_dev_unlock(&vsock->dev);
}

/* A socket file that nobody listens on is a leftover of a process that was killed. */
static bool remove_leftover(const struct sockaddr_un *address)
{
    struct stat st;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || lstat(address->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
        errno != ECONNREFUSED) {
        return false;
    }
    return unlink(address->sun_path) == 0;
}

static int open_listener(struct virtio_vsock *vsock)
{
    const struct sockaddr *address = (const struct sockaddr *)&vsock->address;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (fd < 0) {
        return -errno;
    }
    r = bind(fd, address, sizeof(vsock->address));
    if (r != 0 && errno == EADDRINUSE && remove_leftover(&vsock->address)) {
        r = bind(fd, address, sizeof(vsock->address));
    }
    if (r != 0) {
        return -errno;
    }
    if (listen(fd, LISTEN_BACKLOG) != 0) {
        r = -errno;
        (void)unlink(vsock->address.sun_path); /* ours, just made */
        return r;
    }
    vsock->listen_fd = steal_fd(&fd);
    return 0;
}

int vsock_host_listen(struct virtio_vsock *vsock, const char *path, struct err *err)
{
    size_t len = strlen(path);
    int r;

    vsock->listen_fd = -1;
    if (len == 0 || len + PORT_SUFFIX_BYTES >= sizeof(vsock->address.sun_path)) {
        return err_set(err, -EINVAL, "vsock path '%s' must have 1 to %zu bytes", path,
                       sizeof(vsock->address.sun_path) - PORT_SUFFIX_BYTES - 1);
    }
    vsock->address.sun_family = AF_UNIX;
    memcpy(vsock->address.sun_path, path, len + 1);
    r = open_listener(vsock);
    if (r == -EADDRINUSE) {
        return err_set(err, r, "vsock path '%s' is in use; stop its owner or choose another path",
                       path);
    }
    if (r == 0) {
        r = loop_add_fd(vsock->dev.loop, vsock->listen_fd, EPOLLIN, on_listen, vsock,
                        &vsock->listen_handler);
    }
    return r == 0 ? 0 : err_set_errno(err, r, "cannot listen on vsock path '%s'", path);
}

void vsock_host_done(struct virtio_vsock *vsock)
{
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        if (vsock->conns[i].state != VSOCK_FREE) {
            vsock_host_close(&vsock->conns[i]);
        }
    }
    loop_remove_fd(vsock->listen_handler);
    if (vsock->listen_fd >= 0) {
        (void)close(vsock->listen_fd);         /* nothing to lose */
        (void)unlink(vsock->address.sun_path); /* somebody may have removed it already */
    }
}
