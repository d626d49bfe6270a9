/* The sockets and the thread of the GDB stub, and how the machine stops and goes on. */
#include "machine/gdbstub.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/path.h"
#include "base/thread.h"
#include "machine/gdb_session.h"
#include "machine/machine.h"

#define SIGNAL_INT 2
#define SIGNAL_TRAP 5

struct gdbstub {
    struct machine *machine;
    struct loop *loop;
    pthread_t thread;
    bool has_thread;
    int listen_fd;
    struct loop_fd *listen_handler;
    char unix_path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* empty for TCP */

    /* Of the stub's thread. */
    int peer_fd;
    struct loop_fd *peer_handler;
    struct gdb_session session;
    size_t sent;   /* of session.out */
    char in[2048]; /* read, and not yet all fed */
    size_t in_len;
    size_t in_used;
    bool is_running; /* resumed for the peer, who waits for a stop */
    bool is_interrupted;

    /* The first vCPU that met something since the last stop, plus 1. */
    _Atomic unsigned hit_cpu;
};

/* ---- peer ---- */

static void peer_close(struct gdbstub *stub)
{
    if (stub->peer_fd < 0) {
        return;
    }
    loop_remove_fd(stub->peer_handler);
    stub->peer_handler = NULL;
    (void)close(stub->peer_fd);
    stub->peer_fd = -1;
}

/* The guest goes on as if no debugger had been there. */
static void peer_detach(struct gdbstub *stub)
{
    peer_close(stub);
    if (machine_pause(stub->machine) == 0) {
        memset(&stub->session.debug, 0, sizeof(stub->session.debug));
        stub->session.steps = false;
        if (gdb_session_arm(&stub->session, false) < 0) {
            log_warn("gdb: cannot remove breakpoints, ignoring");
        }
        if (machine_resume(stub->machine) < 0) {
            log_debug("gdb: the machine ended meanwhile");
        }
    }
    stub->is_running = false;
}

static void peer_flush(struct gdbstub *stub)
{
    struct gdb_session *session = &stub->session;

    while (stub->peer_fd >= 0 && stub->sent < session->out_len) {
        const ssize_t n = send(stub->peer_fd, session->out + stub->sent,
                               session->out_len - stub->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            stub->sent += (size_t)n;
        } else if (errno != EINTR) {
            break;
        }
    }
    if (stub->sent == session->out_len) {
        stub->sent = 0;
        session->out_len = 0;
    }
}

/* The machine has stopped for the peer: says so once. */
static void report_stop(struct gdbstub *stub, unsigned signal_number)
{
    const unsigned hit = atomic_exchange(&stub->hit_cpu, 0);

    stub->is_running = false;
    stub->is_interrupted = false;
    gdb_session_stopped(&stub->session, signal_number, hit != 0 ? hit - 1 : stub->session.cpu);
}

static void interrupt(struct gdbstub *stub)
{
    if (!stub->is_running) {
        return;
    }
    stub->is_interrupted = true;
    if (machine_pause(stub->machine) == 0 && stub->is_running) {
        report_stop(stub, atomic_load(&stub->hit_cpu) != 0 ? SIGNAL_TRAP : SIGNAL_INT);
    }
}

static void run(struct gdbstub *stub)
{
    atomic_store(&stub->hit_cpu, 0);
    stub->is_running = true;
    if (machine_resume(stub->machine) < 0) {
        stub->is_running = false;
        gdb_session_reply(&stub->session, "W00");
    }
}

static void obey(struct gdbstub *stub, enum gdb_want want)
{
    switch (want) {
    case GDB_WANT_NOTHING:
        break;
    case GDB_WANT_RUN:
        run(stub);
        break;
    case GDB_WANT_INTERRUPT:
        interrupt(stub);
        break;
    case GDB_WANT_DETACH:
        peer_flush(stub);
        peer_detach(stub);
        break;
    case GDB_WANT_KILL:
        peer_flush(stub);
        peer_close(stub);
        machine_stop(stub->machine);
        break;
    }
}

/* Feeds what was read, as long as there is room for one more answer. */
static void peer_feed(struct gdbstub *stub)
{
    struct gdb_session *session = &stub->session;

    while (stub->peer_fd >= 0 && stub->in_used < stub->in_len &&
           session->out_len + GDB_REPLY_MAX <= sizeof(session->out)) {
        size_t used = 0;
        const enum gdb_want want = gdb_session_feed(session, stub->in + stub->in_used,
                                                    stub->in_len - stub->in_used, &used);
        stub->in_used += used;
        obey(stub, want);
    }
    if (stub->in_used == stub->in_len) {
        stub->in_used = stub->in_len = 0;
    }
}

/* A peer that does not read its answers is not read from. */
static void peer_watch(struct gdbstub *stub)
{
    if (stub->peer_fd < 0) {
        return;
    }
    const uint32_t events =
        stub->sent < stub->session.out_len ? (uint32_t)EPOLLOUT : (uint32_t)EPOLLIN;
    if (loop_set_events(stub->peer_handler, events) < 0) {
        peer_detach(stub);
    }
}

static void on_peer(void *opaque, uint32_t events)
{
    struct gdbstub *stub = opaque;

    peer_flush(stub);
    if (stub->in_len == 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        const ssize_t n = recv(stub->peer_fd, stub->in, sizeof(stub->in), MSG_DONTWAIT);
        if (n > 0) {
            stub->in_len = (size_t)n;
            stub->in_used = 0;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            peer_detach(stub);
            return;
        }
    }
    do {
        peer_feed(stub);
        peer_flush(stub);
    } while (stub->peer_fd >= 0 && stub->in_used < stub->in_len && stub->session.out_len == 0);
    peer_watch(stub);
}

static void on_listen(void *opaque, uint32_t events)
{
    struct gdbstub *stub = opaque;
    const int yes = 1;
    int fd = accept4(stub->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)events;
    if (fd < 0) {
        return;
    }
    if (stub->peer_fd >= 0) {
        log_warn("gdb: a second debugger is turned away");
        (void)close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)); /* fails on unix sockets */
    gdb_session_init(&stub->session, stub->machine);
    stub->sent = stub->in_len = stub->in_used = 0;
    stub->is_running = stub->is_interrupted = false;
    if (loop_add_fd(stub->loop, fd, EPOLLIN, on_peer, stub, &stub->peer_handler) < 0) {
        (void)close(fd);
        return;
    }
    stub->peer_fd = fd;
    /* A debugger finds a stopped guest; one that has ended can still be looked at. */
    const bool is_paused = machine_pause(stub->machine) == 0;
    log_info("gdb: a debugger is here%s", is_paused ? "" : ", the machine has ended");
}

/* ---- the machine tells ---- */

static void on_state(void *opaque)
{
    struct gdbstub *stub = opaque;
    struct machine_status status;

    machine_status(stub->machine, &status);
    if (stub->peer_fd < 0 || !stub->is_running) {
        return;
    }
    if (status.state == MACHINE_PAUSED) {
        report_stop(stub, stub->is_interrupted ? SIGNAL_INT : SIGNAL_TRAP);
    } else if (status.state == MACHINE_ENDED) {
        char text[8];
        stub->is_running = false;
        (void)snprintf(text, sizeof(text), "W%02x",
                       status.end == MACHINE_END_DEBUG_EXIT ? status.debug_exit_code : 0u);
        gdb_session_reply(&stub->session, text);
    }
    peer_flush(stub);
    peer_watch(stub);
}

void gdbstub_state_changed(struct gdbstub *stub)
{
    if (stub != NULL && loop_defer(stub->loop, on_state, stub) < 0) {
        log_warn("gdb: no memory to tell the debugger of a stop, ignoring");
    }
}

/* On the vCPU's thread. */
static void on_debug(void *opaque, unsigned cpu, const struct vmexit *exit)
{
    struct gdbstub *stub = opaque;
    unsigned none = 0;

    (void)exit;
    (void)atomic_compare_exchange_strong(&stub->hit_cpu, &none, cpu + 1); /* the first one counts */
}

/* ---- life ---- */

static int listen_tcp(const char *listen_at, struct err *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[32];
    const int yes = 1;
    const char *colon = strrchr(listen_at, ':');
    char *end = NULL;

    if (colon == NULL || (size_t)(colon - listen_at) >= sizeof(host)) {
        return err_set(err, -EINVAL, "gdb: \"%s\" is neither HOST:PORT nor unix:PATH", listen_at);
    }
    memcpy(host, listen_at, (size_t)(colon - listen_at));
    host[colon - listen_at] = '\0';
    const unsigned long port = strtoul(colon + 1, &end, 10);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || *end != '\0' || port == 0 ||
        port > UINT16_MAX) {
        return err_set(err, -EINVAL, "gdb: \"%s\" is neither HOST:PORT nor unix:PATH", listen_at);
    }
    address.sin_port = htons((uint16_t)port);
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, -errno, "gdb: cannot make a socket");
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)); /* a convenience */
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0) {
        return err_set_errno(err, -errno, "gdb: cannot listen at %s", listen_at);
    }
    return steal_fd(&fd);
}

static int listen_unix(struct gdbstub *stub, const char *path, struct err *err)
{
    struct sockaddr_un address;

    if (*path == '\0' || path_to_unix(path, &address) < 0) {
        return err_set(err, -EINVAL, "gdb: the socket's path must have 1 to %zu bytes",
                       sizeof(address.sun_path) - 1);
    }
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, -errno, "gdb: cannot make a socket");
    }
    /* Whoever connects owns the guest: only this user. Before bind, so that no moment is open. */
    if (fchmod(fd, S_IRUSR | S_IWUSR) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        return err_set_errno(err, -errno, "gdb: cannot listen at \"%s\"", path);
    }
    (void)snprintf(stub->unix_path, sizeof(stub->unix_path), "%s", path);
    if (listen(fd, 1) < 0) {
        return err_set_errno(err, -errno, "gdb: cannot listen at \"%s\"", path);
    }
    return steal_fd(&fd);
}

static void *thread_main(void *opaque)
{
    struct gdbstub *stub = opaque;
    const int rc = loop_run(stub->loop);

    if (rc < 0) {
        log_error("gdb: the stub's loop failed: %s", strerror(-rc));
    }
    return NULL;
}

static int stub_open(struct gdbstub *stub, const char *listen_at, struct err *err)
{
    int rc = loop_create(&stub->loop);

    if (rc < 0) {
        return err_set_errno(err, rc, "gdb: cannot make a loop");
    }
    stub->listen_fd = strncmp(listen_at, "unix:", 5) == 0 ? listen_unix(stub, listen_at + 5, err)
                                                          : listen_tcp(listen_at, err);
    if (stub->listen_fd < 0) {
        return stub->listen_fd;
    }
    rc = loop_add_fd(stub->loop, stub->listen_fd, EPOLLIN, on_listen, stub, &stub->listen_handler);
    if (rc < 0) {
        return err_set_errno(err, rc, "gdb: cannot watch the socket");
    }
    rc = thread_start(&stub->thread, "gdb/0", thread_main, stub);
    if (rc < 0) {
        return err_set_errno(err, rc, "gdb: cannot start a thread");
    }
    stub->has_thread = true;
    machine_set_debug_listener(stub->machine, on_debug, stub);
    return 0;
}

int gdbstub_create(struct machine *machine, const char *listen_at, struct err *err,
                   struct gdbstub **ret_stub)
{
    struct gdbstub *stub = calloc(1, sizeof(*stub));

    if (stub == NULL) {
        return err_set_errno(err, -ENOMEM, "gdb");
    }
    stub->machine = machine;
    stub->listen_fd = -1;
    stub->peer_fd = -1;
    const int rc = stub_open(stub, listen_at, err);
    if (rc < 0) {
        gdbstub_destroy(stub);
        return rc;
    }
    *ret_stub = stub;
    return 0;
}

void gdbstub_destroy(struct gdbstub *stub)
{
    if (stub == NULL) {
        return;
    }
    if (stub->has_thread) {
        machine_set_debug_listener(stub->machine, NULL, NULL);
        loop_stop(stub->loop);
        (void)pthread_join(stub->thread, NULL);
        on_state(stub); /* the peer still hears how it ended */
    }
    peer_close(stub);
    loop_remove_fd(stub->listen_handler);
    if (stub->listen_fd >= 0) {
        (void)close(stub->listen_fd);
    }
    if (stub->unix_path[0] != '\0') {
        (void)unlink(stub->unix_path); /* ours; gone already is as good */
    }
    loop_destroy(stub->loop);
    free(stub);
}
