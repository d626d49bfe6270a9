/*
 * User-mode network: libslirp ends the guest's connections here and makes
 * them again with ordinary sockets of this process.
 *
 * libslirp wants to be asked before each poll which descriptors it waits for.
 * They live in an epoll set of their own, which the loop watches as one
 * descriptor and which follows libslirp's wishes after each batch of work.
 */
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "netdev/netdev_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

/*
 * Guest and slirp end on the same wire, so frames may be long, which saves most
 * of the work per byte. Without window scaling (libslirp has none) four of this
 * size fill a window: fewer would wait for delayed acknowledgements.
 */
#define USER_MTU 16384u
#define MAX_FDS 65536u
/* Descriptors that the guest's connections leave to everything else in this process. */
#define SPARE_FDS 128u
#define EVENT_BATCH 64

#define NETWORK 0x0a000200u /* 10.0.2.0 */
#define NETMASK 0xffffff00u
#define HOST_ADDRESS 0x0a000202u
#define DNS_ADDRESS 0x0a000203u
#define GUEST_ADDRESS 0x0a00020fu

#define ETHERTYPE_OFFSET 12u
#define IP_OFFSET 14u
#define IP_HEADER_BYTES 20u
#define IP_PROTOCOL 9u
#define TCP_FLAGS 13u
#define TCP_SYN 0x02u
#define TCP_ACK 0x10u

/* One descriptor of libslirp's, found by its number. */
struct watch {
    uint32_t events;  /* as in the epoll set; 0: not in it */
    uint32_t revents; /* of the batch at hand */
    unsigned seen;    /* the last round it was asked for in */
};

struct user_net {
    struct netdev netdev;
    Slirp *slirp;
    int epoll_fd;
    struct loop_fd *handler;
    struct loop_timer *timer;
    struct watch *watches;
    size_t watch_count;
    unsigned round;
    int newest_fd; /* the last one that came into the set */
    int fd_limit;  /* from this number on, the guest gets no new connections */
    bool is_full;
    unsigned forward_count;
    struct netdev_forward forwards[NETDEV_MAX_FORWARDS]; /* as they were asked for */
    uint16_t forward_ports[NETDEV_MAX_FORWARDS];
};

struct user_timer {
    struct loop_timer *timer;
    SlirpTimerCb fn;
    void *opaque;
};

static struct user_net *to_user(struct netdev *netdev)
{
    return container_of(netdev, struct user_net, netdev);
}

static ssize_t on_packet(const void *frame, size_t len, void *opaque)
{
    struct user_net *user = opaque;

    netdev_deliver(&user->netdev, frame, len);
    return (ssize_t)len;
}

static void on_guest_error(const char *message, void *opaque)
{
    (void)opaque;
    log_guest("user network: %s", message);
}

static int64_t get_clock(void *opaque)
{
    (void)opaque;
    return (int64_t)clock_monotonic_ns();
}

static void on_user_timer(void *opaque)
{
    struct user_timer *timer = opaque;

    timer->fn(timer->opaque);
}

static void *timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque)
{
    struct user_net *user = opaque;
    struct user_timer *timer = calloc(1, sizeof(*timer));

    if (!timer) {
        return NULL;
    }
    timer->fn = fn;
    timer->opaque = fn_opaque;
    if (loop_add_timer(user->netdev.loop, on_user_timer, timer, &timer->timer) < 0) {
        free(timer);
        return NULL;
    }
    return timer;
}

static void timer_free(void *opaque_timer, void *opaque)
{
    struct user_timer *timer = opaque_timer;

    (void)opaque;
    if (timer) {
        loop_remove_timer(timer->timer);
        free(timer);
    }
}

static void timer_mod(void *opaque_timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *timer = opaque_timer;

    (void)opaque;
    if (timer) {
        loop_arm_timer(timer->timer, expire_ms > 0 ? (uint64_t)expire_ms * 1000000u : 0);
    }
}

static void unwatch(struct user_net *user, int fd)
{
    if (fd >= 0 && (size_t)fd < user->watch_count && user->watches[fd].events != 0) {
        /* Fails when the descriptor is closed already, and then it left the set by itself. */
        (void)epoll_ctl(user->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        user->watches[fd].events = 0;
    }
}

/* A number may come again for another socket: what we knew of it is void. */
static void on_fd_change(int fd, void *opaque)
{
    unwatch(opaque, fd);
}

static void on_notify(void *opaque)
{
    (void)opaque; /* each batch of work ends by asking libslirp anyway */
}

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = get_clock,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = on_fd_change,
    .unregister_poll_fd = on_fd_change,
    .notify = on_notify,
};

/* SLIRP_POLL_* and EPOLL* by pairs. */
static const struct {
    int slirp;
    uint32_t epoll;
} event_map[] = {
    {SLIRP_POLL_IN, EPOLLIN},   {SLIRP_POLL_OUT, EPOLLOUT}, {SLIRP_POLL_PRI, EPOLLPRI},
    {SLIRP_POLL_ERR, EPOLLERR}, {SLIRP_POLL_HUP, EPOLLHUP},
};

static uint32_t to_epoll(int events)
{
    uint32_t result = 0;

    for (size_t i = 0; i < ARRAY_LEN(event_map); i++) {
        result |= (events & event_map[i].slirp) ? event_map[i].epoll : 0;
    }
    return result;
}

static int from_epoll(uint32_t events)
{
    int result = 0;

    for (size_t i = 0; i < ARRAY_LEN(event_map); i++) {
        result |= (events & event_map[i].epoll) ? event_map[i].slirp : 0;
    }
    return result;
}

static bool grow_watches(struct user_net *user, int fd)
{
    size_t need = (size_t)fd + 1;
    struct watch *bigger;

    if (need <= user->watch_count) {
        return true;
    }
    if (need > MAX_FDS) {
        return false;
    }
    need = (need + 63) & ~(size_t)63;
    bigger = realloc(user->watches, need * sizeof(*bigger));
    if (!bigger) {
        return false;
    }
    memset(bigger + user->watch_count, 0, (need - user->watch_count) * sizeof(*bigger));
    user->watches = bigger;
    user->watch_count = need;
    return true;
}

/* libslirp waits for fd; what we return is what get_revents() is asked with. */
static int add_poll(int fd, int slirp_events, void *opaque)
{
    struct user_net *user = opaque;
    uint32_t events = to_epoll(slirp_events);
    struct epoll_event event = {.events = events, .data.fd = fd};
    struct watch *watch;

    if (fd < 0 || events == 0 || !grow_watches(user, fd)) {
        return -1;
    }
    user->is_full |= fd >= user->fd_limit;
    watch = &user->watches[fd];
    watch->seen = user->round;
    if (watch->events == events) {
        return fd;
    }
    if (watch->events == 0) {
        user->newest_fd = fd;
    }
    if (epoll_ctl(user->epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0 &&
        (errno != ENOENT || epoll_ctl(user->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)) {
        return -1;
    }
    watch->events = events;
    return fd;
}

static int get_revents(int index, void *opaque)
{
    struct user_net *user = opaque;

    if (index < 0 || (size_t)index >= user->watch_count) {
        return 0;
    }
    return from_epoll(user->watches[index].revents);
}

/* Makes the epoll set and the timer what libslirp wants now. */
static void update_watches(struct user_net *user)
{
    uint32_t timeout_ms = UINT32_MAX;

    user->round++;
    user->is_full = false;
    slirp_pollfds_fill(user->slirp, &timeout_ms, add_poll, user);
    for (size_t fd = 0; fd < user->watch_count; fd++) {
        if (user->watches[fd].events != 0 && user->watches[fd].seen != user->round) {
            unwatch(user, (int)fd);
        }
    }
    if (timeout_ms != UINT32_MAX) {
        loop_arm_timer(user->timer, clock_monotonic_ns() + timeout_ms * 1000000ull);
    } else {
        loop_disarm_timer(user->timer);
    }
}

static void run_slirp(struct user_net *user, struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        if ((size_t)events[i].data.fd < user->watch_count) {
            user->watches[events[i].data.fd].revents = events[i].events;
        }
    }
    slirp_pollfds_poll(user->slirp, 0, get_revents, user);
    for (int i = 0; i < count; i++) {
        if ((size_t)events[i].data.fd < user->watch_count) {
            user->watches[events[i].data.fd].revents = 0;
        }
    }
    update_watches(user);
    netdev_deliver_done(&user->netdev);
    if (netdev_is_waiting(&user->netdev)) {
        /* Reading goes on when the card has room. */
        if (loop_set_events(user->handler, 0) != 0) {
            log_error("user network: cannot pause its sockets");
        }
    }
}

static void on_sockets(void *opaque, uint32_t loop_events)
{
    struct user_net *user = opaque;
    struct epoll_event events[EVENT_BATCH];
    int count = epoll_wait(user->epoll_fd, events, EVENT_BATCH, 0);

    (void)loop_events; /* only EPOLLIN is asked for */
    run_slirp(user, events, count > 0 ? count : 0);
}

static void on_timer(void *opaque)
{
    run_slirp(opaque, NULL, 0);
}

/* libslirp makes a socket for it: any IPv4 packet but those of a TCP connection under way. */
static bool may_open_socket(const uint8_t *frame, size_t len)
{
    size_t ip_header;

    if (len < IP_OFFSET + IP_HEADER_BYTES || frame[ETHERTYPE_OFFSET] != 0x08 ||
        frame[ETHERTYPE_OFFSET + 1] != 0x00) {
        return false;
    }
    ip_header = (frame[IP_OFFSET] & 0xfu) * 4u;
    if (frame[IP_OFFSET + IP_PROTOCOL] != IPPROTO_TCP ||
        len < IP_OFFSET + ip_header + TCP_FLAGS + 1) {
        return true;
    }
    return (frame[IP_OFFSET + ip_header + TCP_FLAGS] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static bool user_send(struct netdev *netdev, const void *frame, size_t len)
{
    struct user_net *user = to_user(netdev);

    if (user->is_full && may_open_socket(frame, len)) {
        return false;
    }
    slirp_input(user->slirp, frame, (int)len);
    return true;
}

static void user_send_done(struct netdev *netdev)
{
    update_watches(to_user(netdev));
    netdev_deliver_done(netdev);
}

static void user_resume(struct netdev *netdev)
{
    if (loop_set_events(to_user(netdev)->handler, EPOLLIN) != 0) {
        log_error("user network: cannot resume its sockets");
    }
}

static uint16_t user_forward_port(struct netdev *netdev, unsigned index)
{
    const struct user_net *user = to_user(netdev);

    return index < user->forward_count ? user->forward_ports[index] : 0;
}

static void user_destroy(struct netdev *netdev)
{
    struct user_net *user = to_user(netdev);

    if (user->slirp) {
        slirp_cleanup(user->slirp);
    }
    loop_remove_fd(user->handler);
    if (user->epoll_fd >= 0) {
        (void)close(user->epoll_fd); /* nothing to lose */
    }
    netdev_done(netdev);
    free(user->watches);
    free(user);
}

static struct in_addr address(uint32_t host_order)
{
    return (struct in_addr){.s_addr = htonl(host_order)};
}

/* The port of the socket that add_forward() has just opened. */
static int find_port(struct user_net *user, uint16_t *ret_port)
{
    struct sockaddr_in name = {0};
    socklen_t len = sizeof(name);

    user->newest_fd = -1;
    update_watches(user);
    if (user->newest_fd < 0 || getsockname(user->newest_fd, (struct sockaddr *)&name, &len) != 0) {
        return -EIO;
    }
    *ret_port = ntohs(name.sin_port);
    return 0;
}

static int add_forward(struct user_net *user, const struct netdev_forward *forward, struct err *err)
{
    char host[INET_ADDRSTRLEN] = "?";
    struct in_addr host_address = address(forward->host_address);
    const char *protocol = forward->is_udp ? "UDP" : "TCP";
    uint16_t port = 0;

    (void)inet_ntop(AF_INET, &host_address, host, sizeof(host)); /* cannot fail: it fits */
    errno = 0;
    if (slirp_add_hostfwd(user->slirp, forward->is_udp, host_address, forward->host_port,
                          address(GUEST_ADDRESS), forward->guest_port) != 0) {
        int code = errno != 0 ? -errno : -EIO;

        if (code == -EADDRINUSE) {
            return err_set(err, code,
                           "host port %s:%u (%s) is in use by another program; choose another "
                           "one, or 0 for any free port",
                           host, forward->host_port, protocol);
        }
        return err_set_errno(err, code, "cannot forward host port %s:%u (%s)", host,
                             forward->host_port, protocol);
    }
    if (find_port(user, &port) != 0) {
        return err_set(err, -EIO, "cannot learn which host port forwards to guest port %u",
                       forward->guest_port);
    }
    user->forwards[user->forward_count] = *forward;
    user->forward_ports[user->forward_count++] = port;
    return 0;
}

static bool is_same_forward(const struct netdev_forward *a, const struct netdev_forward *b)
{
    return a->host_address == b->host_address && a->host_port == b->host_port &&
           a->guest_port == b->guest_port && a->is_udp == b->is_udp;
}

static bool has_forward(const struct netdev_forward *forwards, unsigned count,
                        const struct netdev_forward *forward)
{
    for (unsigned i = 0; i < count; i++) {
        if (is_same_forward(&forwards[i], forward)) {
            return true;
        }
    }
    return false;
}

/* Closes what is not wanted, the rest stays in its order. */
static void close_other_forwards(struct user_net *user, const struct netdev_forward *forwards,
                                 unsigned count)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < user->forward_count; i++) {
        const struct netdev_forward *f = &user->forwards[i];

        if (!has_forward(forwards, count, f)) {
            (void)slirp_remove_hostfwd(user->slirp, f->is_udp, address(f->host_address),
                                       user->forward_ports[i]);
            continue;
        }
        user->forwards[kept] = *f;
        user->forward_ports[kept++] = user->forward_ports[i];
    }
    user->forward_count = kept;
    update_watches(user);
}

static int open_missing_forwards(struct user_net *user, const struct netdev_forward *forwards,
                                 unsigned count, struct err *err)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < count; i++) {
        if (!has_forward(user->forwards, user->forward_count, &forwards[i])) {
            rc = add_forward(user, &forwards[i], err);
        }
    }
    return rc;
}

/* As they were asked for, each with its port. */
static void sort_forwards(struct user_net *user, const struct netdev_forward *forwards,
                          unsigned count)
{
    uint16_t ports[NETDEV_MAX_FORWARDS] = {0};

    for (unsigned i = 0; i < count; i++) {
        for (unsigned j = 0; j < user->forward_count; j++) {
            if (is_same_forward(&forwards[i], &user->forwards[j])) {
                ports[i] = user->forward_ports[j];
            }
        }
    }
    memcpy(user->forwards, forwards, count * sizeof(forwards[0]));
    memcpy(user->forward_ports, ports, sizeof(ports));
    user->forward_count = count;
}

static int user_set_forwards(struct netdev *netdev, const struct netdev_forward *forwards,
                             unsigned count, struct err *err)
{
    struct user_net *user = to_user(netdev);
    struct netdev_forward before[NETDEV_MAX_FORWARDS];
    unsigned before_count = user->forward_count;
    int rc;

    if (count > NETDEV_MAX_FORWARDS) {
        return err_set(err, -E2BIG, "at most %d port forwards are possible", NETDEV_MAX_FORWARDS);
    }
    for (unsigned i = 0; i < count; i++) {
        if (has_forward(forwards, i, &forwards[i])) {
            return err_set(err, -EINVAL, "the forward to guest port %u is given twice",
                           forwards[i].guest_port);
        }
    }
    memcpy(before, user->forwards, sizeof(before));
    close_other_forwards(user, forwards, count);
    rc = open_missing_forwards(user, forwards, count, err);
    if (rc < 0) {
        struct err ignored;

        close_other_forwards(user, before, before_count);
        (void)open_missing_forwards(user, before, before_count, &ignored); /* as far as it goes */
        return rc;
    }
    sort_forwards(user, forwards, count);
    return 0;
}

static const struct netdev_ops user_ops = {
    .send = user_send,
    .send_done = user_send_done,
    .resume = user_resume,
    .forward_port = user_forward_port,
    .set_forwards = user_set_forwards,
    .destroy = user_destroy,
};

/* A guest may open connections without end; the process must keep descriptors for itself. */
static int choose_fd_limit(void)
{
    struct rlimit limit = {.rlim_cur = 0};

    (void)getrlimit(RLIMIT_NOFILE, &limit); /* cannot fail with these arguments */
    if (limit.rlim_cur > MAX_FDS) {
        limit.rlim_cur = MAX_FDS;
    }
    return limit.rlim_cur > 2 * SPARE_FDS ? (int)(limit.rlim_cur - SPARE_FDS)
                                          : (int)(limit.rlim_cur / 2);
}

static int start_slirp(struct user_net *user, const struct netdev_user_config *config,
                       struct err *err)
{
    const SlirpConfig slirp_config = {
        .version = 4,
        .restricted = config->is_isolated,
        .in_enabled = true,
        .vnetwork = address(NETWORK),
        .vnetmask = address(NETMASK),
        .vhost = address(HOST_ADDRESS),
        .vdhcp_start = address(GUEST_ADDRESS),
        .vnameserver = address(DNS_ADDRESS),
        .if_mtu = USER_MTU,
        .if_mru = USER_MTU,
        .disable_host_loopback = config->deny_host_loopback,
    };
    int r = 0;

    user->slirp = slirp_new(&slirp_config, &callbacks, user);
    if (!user->slirp) {
        return err_set(err, -EIO, "cannot start the user network");
    }
    for (unsigned i = 0; i < config->forward_count && r == 0; i++) {
        r = add_forward(user, &config->forwards[i], err);
    }
    return r;
}

int netdev_user_create(const struct netdev_user_config *config, struct err *err,
                       struct netdev **ret_netdev)
{
    struct user_net *user = calloc(1, sizeof(*user));
    int r;

    if (!user) {
        return err_set(err, -ENOMEM, "no memory for the user network");
    }
    user->epoll_fd = -1;
    user->fd_limit = choose_fd_limit();
    r = netdev_init(&user->netdev, &user_ops, NETDEV_CAN_TX_CSUM | NETDEV_RX_CSUM_OK, USER_MTU);
    if (r < 0) {
        free(user);
        return err_set_errno(err, r, "cannot make the network's event loop");
    }
    user->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    r = user->epoll_fd < 0 ? -errno : 0;
    if (r == 0) {
        r = loop_add_fd(user->netdev.loop, user->epoll_fd, EPOLLIN, on_sockets, user,
                        &user->handler);
    }
    if (r == 0) {
        r = loop_add_timer(user->netdev.loop, on_timer, user, &user->timer);
    }
    if (r < 0) {
        (void)err_set_errno(err, r, "cannot start the user network");
    } else {
        r = start_slirp(user, config, err);
    }
    if (r < 0) {
        user_destroy(&user->netdev);
        return r;
    }
    *ret_netdev = &user->netdev;
    return 0;
}
