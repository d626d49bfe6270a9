/* The clients of an NBD server: a thread for each. */
#include "base/log.h"
#include "base/thread.h"
#include "block/nbd_server.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/time.h>

#define MAX_CLIENTS 32u
#define GREETING_SECONDS 10
#define ANSWER_SECONDS 60 /* for a client to take some of an answer */

struct connection {
    struct nbd_client client;
    const struct nbd_served *served;
    int fd; /* -1: the place is free */
    pthread_t thread;
    atomic_bool is_over; /* to be joined */
};

static int receive_all(struct nbd_client *client, void *buf, size_t len)
{
    const struct connection *c = container_of(client, struct connection, client);
    char *at = buf;

    while (len > 0) {
        ssize_t n = recv(c->fd, at, len, 0);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 ? -ECONNRESET : -errno;
        }
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int send_all(struct nbd_client *client, const void *buf, size_t len)
{
    const struct connection *c = container_of(client, struct connection, client);
    const char *at = buf;

    while (len > 0) {
        ssize_t n = send(c->fd, at, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static void set_timeout(int fd, int option, int seconds)
{
    struct timeval t = {.tv_sec = seconds};

    (void)setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t)); /* cannot fail on a socket */
}

/* From now on it may be idle for as long as it likes. */
static void on_greeted(struct nbd_client *client)
{
    set_timeout(container_of(client, struct connection, client)->fd, SO_RCVTIMEO, 0);
}

static void *connection_main(void *opaque)
{
    struct connection *c = opaque;

    nbd_server_talk(c->served, &c->client);
    (void)shutdown(c->fd, SHUT_RDWR); /* it may have hung up first */
    atomic_store(&c->is_over, true);
    return NULL;
}

static void join(struct connection *c)
{
    (void)pthread_join(c->thread, NULL); /* ours and joinable */
    (void)close(c->fd);
    c->fd = -1;
}

static struct connection *find_place(struct connection *connections)
{
    struct connection *found = NULL;

    for (unsigned i = 0; i < MAX_CLIENTS; i++) {
        if (connections[i].fd >= 0 && atomic_load(&connections[i].is_over)) {
            join(&connections[i]);
        }
        if (connections[i].fd < 0) {
            found = &connections[i];
        }
    }
    return found;
}

static void take_client(const struct nbd_served *served, struct connection *connections, int fd)
{
    struct connection *c = find_place(connections);

    if (c == NULL) {
        log_warn("more than %u clients of a disk; one is turned away", MAX_CLIENTS);
        (void)close(fd);
        return;
    }
    c->client =
        (struct nbd_client){.receive = receive_all, .send = send_all, .greeted = on_greeted};
    c->served = served;
    c->fd = fd;
    atomic_store(&c->is_over, false);
    set_timeout(fd, SO_RCVTIMEO, GREETING_SECONDS);
    set_timeout(fd, SO_SNDTIMEO, ANSWER_SECONDS);
    if (thread_start(&c->thread, "nbd", connection_main, c) < 0) {
        log_warn("no thread for a client of a disk; it is turned away");
        (void)close(fd);
        c->fd = -1;
    }
}

static int take_clients(const struct nbd_served *served, struct connection *connections,
                        int listener, int stop_fd)
{
    struct pollfd fds[] = {{.fd = stop_fd, .events = POLLIN}, {.fd = listener, .events = POLLIN}};

    for (;;) {
        int fd;

        if (poll(fds, ARRAY_LEN(fds), -1) < 0) {
            if (errno != EINTR) {
                return -errno;
            }
            continue;
        }
        if (fds[0].revents != 0) {
            return 0;
        }
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            take_client(served, connections, fd);
        } else if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK) {
            return -errno;
        } /* otherwise the client changed its mind, or there is no room for it now */
    }
}

int nbd_server_run(const struct nbd_served *served, int listener, int stop_fd, struct err *err)
{
    struct connection *connections = calloc(MAX_CLIENTS, sizeof(*connections));
    int r;

    if (connections == NULL) {
        return err_set(err, -ENOMEM, "no memory for clients");
    }
    for (unsigned i = 0; i < MAX_CLIENTS; i++) {
        connections[i].fd = -1;
    }
    r = take_clients(served, connections, listener, stop_fd);
    for (unsigned i = 0; i < MAX_CLIENTS; i++) {
        if (connections[i].fd >= 0) {
            (void)shutdown(connections[i].fd, SHUT_RDWR); /* its thread wakes up and leaves */
        }
    }
    for (unsigned i = 0; i < MAX_CLIENTS; i++) {
        if (connections[i].fd >= 0) {
            join(&connections[i]);
        }
    }
    free(connections);
    return r < 0 ? err_set_errno(err, r, "clients cannot be waited for") : 0;
}
