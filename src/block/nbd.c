/* The connection to an NBD server, and the thread that has it. */
#include "block/nbd.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "block/nbd_int.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define PATIENCE_MS 60000u
#define CONNECT_MS 10000u
#define RETRY_NS 1000000000ull
#define DEFAULT_MIN_BLOCK 512u          /* of servers that do not say */
#define DEFAULT_MAX_BYTES (32u << 20)   /* what every server takes */
#define MAX_SIZE_BYTES (INT64_MAX >> 1) /* sums of offsets stay in range */

bool nbd_is_address(const char *path)
{
    return strncmp(path, "nbd://", 6) == 0 || strncmp(path, "nbd+unix://", 11) == 0 ||
           strncmp(path, "nbds://", 7) == 0 || strncmp(path, "nbds+unix://", 12) == 0;
}

void nbd_list_init(struct nbd_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

void nbd_list_append(struct nbd_list *list, struct nbd_op *op)
{
    op->next = NULL;
    *list->end = op;
    list->end = &op->next;
}

struct nbd_op *nbd_list_take(struct nbd_list *list)
{
    struct nbd_op *op = list->first;

    if (op) {
        list->first = op->next;
        if (!list->first) {
            list->end = &list->first;
        }
    }
    return op;
}

void nbd_submit(struct nbd_file *nbd, struct nbd_op *op)
{
    bool is_first;

    mutex_lock(&nbd->lock);
    is_first = !nbd->queued.first;
    nbd_list_append(&nbd->queued, op);
    mutex_unlock(&nbd->lock);
    if (is_first) {
        io_eventfd_signal(nbd->event_fd);
    }
}

/* ---- connecting ---- */

static int fail(const struct nbd_file *nbd, struct err *err)
{
    int code = nbd->lib.get_errno();

    return err_set(err, code > 0 ? -code : -EIO, "cannot use '%s': %s", nbd->address,
                   nbd->lib.get_error());
}

static bool must_stop(struct nbd_file *nbd)
{
    bool must;

    mutex_lock(&nbd->lock);
    must = nbd->is_stopping;
    mutex_unlock(&nbd->lock);
    return must;
}

/* Until the server is ready, for as long as it may take. */
static int await_ready(struct nbd_file *nbd, struct nbd_handle *handle, struct err *err)
{
    uint64_t deadline = clock_monotonic_ns() + CONNECT_MS * NS_PER_MS;

    while (!nbd->lib.aio_is_ready(handle)) {
        uint64_t now = clock_monotonic_ns();

        if (now >= deadline || must_stop(nbd)) {
            return err_set(err, -ETIMEDOUT, "cannot use '%s': its server does not answer",
                           nbd->address);
        }
        if (nbd->lib.poll(handle, (int)((deadline - now) / NS_PER_MS) + 1) < 0) {
            return fail(nbd, err);
        }
        if (nbd->lib.aio_is_dead(handle) || nbd->lib.aio_is_closed(handle)) {
            return err_set(err, -EIO, "cannot use '%s': its server hangs up", nbd->address);
        }
    }
    return 0;
}

static int ask(const struct nbd_file *nbd, struct nbd_handle *handle, struct nbd_export *export)
{
    int64_t size = nbd->lib.get_size(handle);
    int64_t min = nbd->lib.get_block_size(handle, LIBNBD_SIZE_MINIMUM);
    int64_t max = nbd->lib.get_block_size(handle, LIBNBD_SIZE_MAXIMUM);

    if (size < 0 || size > MAX_SIZE_BYTES || min < 0 || max < 0) {
        return -EIO;
    }
    *export = (struct nbd_export){
        .size_bytes = (uint64_t)size,
        .min_block = min == 0 ? DEFAULT_MIN_BLOCK : (uint32_t)min,
        .max_bytes = max == 0 || max > DEFAULT_MAX_BYTES ? DEFAULT_MAX_BYTES : (uint32_t)max,
        .is_read_only = nbd->lib.is_read_only(handle) > 0,
        .can_flush = nbd->lib.can_flush(handle) > 0,
        .can_fua = nbd->lib.can_fua(handle) > 0,
        .can_trim = nbd->lib.can_trim(handle) > 0,
        .can_zero = nbd->lib.can_zero(handle) > 0,
        .has_status = nbd->lib.can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
    };
    export->max_bytes -= export->max_bytes % export->min_block;
    if (export->min_block > 65536 || (export->min_block & (export->min_block - 1u)) != 0 ||
        export->max_bytes == 0) {
        return -EPROTO;
    }
    /* An end that whole blocks do not reach cannot be had. */
    export->size_bytes -= export->size_bytes % export->min_block;
    return 0;
}

/* Where TCP alone would wait for a quarter of an hour. */
static void notice_silence(struct nbd_file *nbd, int fd)
{
    int on = 1;
    int wait = (int)nbd->patience_ms;

    /* All three fail on a local socket, which needs none of them. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &wait, sizeof(wait));
}

static int connect_handle(struct nbd_file *nbd, struct err *err, struct nbd_handle **ret_handle,
                          struct nbd_export *ret_export)
{
    struct nbd_handle *handle = nbd->lib.create();
    int r;

    if (!handle) {
        return err_set(err, -ENOMEM, "no memory for a connection");
    }
    if (nbd->lib.set_uri_allow_tls(handle, LIBNBD_TLS_DISABLE) < 0 ||
        nbd->lib.set_uri_allow_transports(handle, LIBNBD_ALLOW_TRANSPORT_TCP |
                                                      LIBNBD_ALLOW_TRANSPORT_UNIX) < 0 ||
        nbd->lib.add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd->lib.aio_connect_uri(handle, nbd->address) < 0) {
        r = fail(nbd, err);
    } else {
        r = await_ready(nbd, handle, err);
    }
    if (r == 0) {
        r = ask(nbd, handle, ret_export);
        r = r < 0 ? err_set(err, r, "cannot use '%s': its server asks for what cannot be done",
                            nbd->address)
                  : 0;
    }
    if (r < 0) {
        nbd->lib.close(handle);
        return r;
    }
    notice_silence(nbd, nbd->lib.aio_get_fd(handle));
    *ret_handle = handle;
    return 0;
}

/* The same export as before, in all that was promised to those above. */
static bool is_same(const struct nbd_export *a, const struct nbd_export *b)
{
    return a->size_bytes == b->size_bytes && a->min_block >= b->min_block &&
           a->is_read_only == b->is_read_only && a->can_flush == b->can_flush &&
           a->can_fua == b->can_fua && a->can_trim == b->can_trim && a->can_zero == b->can_zero &&
           a->has_status == b->has_status && a->max_bytes <= b->max_bytes;
}

/* True when there is a connection. */
static bool connect_again(struct nbd_file *nbd)
{
    struct nbd_export export = {0};
    struct nbd_handle *handle = NULL;
    struct err err = {0};

    if (nbd->handle) {
        return true;
    }
    if (nbd->is_lost || clock_monotonic_ns() < nbd->retry_at_ns) {
        return false;
    }
    if (connect_handle(nbd, &err, &handle, &export) == 0 && !is_same(&nbd->export, &export)) {
        nbd->lib.close(handle);
        handle = NULL;
        nbd->is_lost = true;
        (void)err_set(&err, -EIO, "'%s' is another disk than before", nbd->address);
    }
    if (!handle) {
        nbd->retry_at_ns = clock_monotonic_ns() + RETRY_NS;
        log_warn("%s", err.text);
        return false;
    }
    log_info("'%s' is back", nbd->address);
    nbd->handle = handle;
    return true;
}

/* ---- requests, on the thread ---- */

static bool changes_disk(const struct nbd_op *op)
{
    return op->kind == NBD_WRITE || op->kind == NBD_ZERO || op->kind == NBD_TRIM;
}

static void put_under_way(struct nbd_file *nbd, struct nbd_op *op)
{
    if (!nbd->under_way) {
        nbd->deadline_ns = clock_monotonic_ns() + nbd->patience_ms * NS_PER_MS;
    }
    op->next_under = nbd->under_way;
    op->prev_under = &nbd->under_way;
    if (op->next_under) {
        op->next_under->prev_under = &op->next_under;
    }
    nbd->under_way = op;
    nbd->writes_under_way += changes_disk(op);
}

static void finish(struct nbd_op *op, int result)
{
    struct nbd_file *nbd = op->nbd;

    if (op->prev_under) {
        *op->prev_under = op->next_under;
        if (op->next_under) {
            op->next_under->prev_under = op->prev_under;
        }
        nbd->writes_under_way -= changes_disk(op);
    }
    if (changes_disk(op) && result == 0) {
        nbd->writes_done++;
    } else if (op->kind == NBD_FLUSH && result == 0 && op->writes_before > nbd->writes_safe) {
        nbd->writes_safe = op->writes_before;
    } else if (op->kind == NBD_FLUSH && result < 0) {
        atomic_store(&nbd->flush_failed, true); /* what the server dropped once is lost */
    }
    free(op->bounce);
    op->result = result;
    op->done(op);
}

/* The connection is over, and with it all that was under way. */
static void lose(struct nbd_file *nbd, bool was_silent)
{
    if (!nbd->handle) {
        return;
    }
    log_warn("the server of '%s' %s", nbd->address,
             was_silent ? "has been silent for too long" : "is gone");
    nbd->lib.close(nbd->handle);
    nbd->handle = NULL;
    nbd_list_init(&nbd->answered);
    /* A silent server may still carry out what it was sent, after anything sent later. */
    nbd->is_lost |= was_silent && nbd->writes_under_way > 0;
    if (nbd->export.can_flush && nbd->writes_done > nbd->writes_safe) {
        atomic_store(&nbd->flush_failed, true);
    }
    while (nbd->under_way) {
        finish(nbd->under_way, -EIO);
    }
}

/* Whether a request can be answered without the server. */
static bool answer_here(struct nbd_op *op)
{
    struct nbd_file *nbd = op->nbd;

    if (op->kind != NBD_FLUSH) {
        return false;
    }
    if (atomic_load(&nbd->flush_failed)) {
        finish(op, -EIO);
        return true;
    }
    if (!nbd->export.can_flush || nbd->writes_done == nbd->writes_safe) {
        op->writes_before = nbd->writes_safe;
        finish(op, 0);
        return true;
    }
    return false;
}

static void start(struct nbd_op *op)
{
    struct nbd_file *nbd = op->nbd;
    int r;

    if (answer_here(op)) {
        return;
    }
    if (!connect_again(nbd)) {
        finish(op, -EIO);
        return;
    }
    put_under_way(nbd, op);
    r = nbd_op_send(op);
    if (r < 0) {
        finish(op, r);
    }
}

static void start_queued(struct nbd_file *nbd)
{
    struct nbd_list taken;

    mutex_lock(&nbd->lock);
    taken = nbd->queued;
    if (!taken.first) {
        taken.end = &taken.first;
    }
    nbd_list_init(&nbd->queued);
    mutex_unlock(&nbd->lock);
    while (taken.first) {
        struct nbd_op *op = taken.first;

        taken.first = op->next;
        start(op);
    }
}

static void handle_answers(struct nbd_file *nbd)
{
    struct nbd_op *op;

    if (nbd->answered.first) {
        nbd->deadline_ns = clock_monotonic_ns() + nbd->patience_ms * NS_PER_MS;
    }
    while ((op = nbd_list_take(&nbd->answered)) != NULL) {
        int r = op->result;

        if (r < 0 || nbd_op_advance(op)) {
            finish(op, r);
            continue;
        }
        r = nbd_op_send(op);
        if (r < 0) {
            finish(op, r);
        }
    }
}

static int time_left_ms(const struct nbd_file *nbd)
{
    uint64_t now;

    if (!nbd->under_way) {
        return -1;
    }
    now = clock_monotonic_ns();
    return now >= nbd->deadline_ns ? 0 : (int)((nbd->deadline_ns - now) / NS_PER_MS) + 1;
}

static void lose_if_dead(struct nbd_file *nbd)
{
    if (nbd->handle && (nbd->lib.aio_is_dead(nbd->handle) || nbd->lib.aio_is_closed(nbd->handle))) {
        handle_answers(nbd);
        lose(nbd, false);
    }
}

/* Waits for requests and for the server, and lets the handle work. */
static void wait_and_work(struct nbd_file *nbd)
{
    struct pollfd fds[2] = {{.fd = nbd->event_fd, .events = POLLIN}, {.fd = -1}};
    unsigned direction = 0;
    int r = 0;

    if (nbd->handle) {
        direction = nbd->lib.aio_get_direction(nbd->handle);
        fds[1].fd = nbd->lib.aio_get_fd(nbd->handle);
        fds[1].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                                (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    }
    if (poll(fds, 2, nbd->answered.first ? 0 : time_left_ms(nbd)) < 0) {
        return; /* interrupted */
    }
    (void)io_eventfd_drain(nbd->event_fd);
    if (fds[1].revents & (POLLIN | POLLHUP | POLLERR)) {
        r = nbd->lib.aio_notify_read(nbd->handle);
    } else if (fds[1].revents & POLLOUT) {
        r = nbd->lib.aio_notify_write(nbd->handle);
    }
    if (r < 0) {
        log_debug("'%s': %s", nbd->address, nbd->lib.get_error());
    }
}

static void *thread_main(void *opaque)
{
    struct nbd_file *nbd = opaque;

    while (!must_stop(nbd)) {
        start_queued(nbd);
        lose_if_dead(nbd);
        wait_and_work(nbd);
        handle_answers(nbd);
        lose_if_dead(nbd);
        if (nbd->handle && time_left_ms(nbd) == 0) {
            lose(nbd, true);
        }
    }
    if (nbd->handle) {
        (void)nbd->lib.aio_disconnect(nbd->handle, 0); /* a courtesy; closing says it too */
        nbd->lib.close(nbd->handle);
    }
    return NULL;
}

/* ---- life ---- */

void nbd_close_file(struct nbd_file *nbd)
{
    if (nbd->has_thread) {
        mutex_lock(&nbd->lock);
        nbd->is_stopping = true;
        mutex_unlock(&nbd->lock);
        io_eventfd_signal(nbd->event_fd);
        (void)pthread_join(nbd->thread, NULL); /* ours and joinable */
    } else if (nbd->handle) {
        nbd->lib.close(nbd->handle);
    }
    nbd_lib_close(&nbd->lib);
    if (nbd->event_fd >= 0) {
        (void)close(nbd->event_fd); /* an eventfd has nothing to lose */
    }
    (void)pthread_cond_destroy(&nbd->over);
    mutex_done(&nbd->lock);
    free(nbd->address);
    free(nbd);
}

static int begin(struct nbd_file *nbd, const struct nbd_options *options, struct err *err)
{
    int r;

    nbd->address = strdup(options->address);
    nbd->event_fd = io_eventfd();
    if (!nbd->address || nbd->event_fd < 0) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    r = nbd_lib_open(&nbd->lib, err);
    if (r == 0) {
        r = connect_handle(nbd, err, &nbd->handle, &nbd->export);
    }
    if (r < 0) {
        return r;
    }
    if (nbd->export.is_read_only && !options->read_only) {
        return err_set(err, -EROFS, "the server of '%s' only lets it be read; open it read-only",
                       nbd->address);
    }
    nbd->file = (struct block_file){
        .ops = nbd->export.has_status ? &nbd_file_ops_status : &nbd_file_ops,
        .fd = -1,
        .is_read_only = options->read_only,
        .is_device = true,
        .alignment = 1,
    };
    r = thread_start(&nbd->thread, "io/nbd", thread_main, nbd);
    if (r < 0) {
        return err_set_errno(err, r, "cannot start a disk's thread");
    }
    nbd->has_thread = true;
    return 0;
}

int nbd_open(const struct nbd_options *options, struct err *err, struct block_file **ret_file)
{
    struct nbd_file *nbd = calloc(1, sizeof(*nbd));
    struct block_file *file;
    int r;

    if (!nbd) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    nbd->event_fd = -1;
    nbd->patience_ms = options->patience_ms != 0 ? options->patience_ms : PATIENCE_MS;
    mutex_init(&nbd->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&nbd->over, NULL); /* cannot fail on Linux */
    nbd_list_init(&nbd->queued);
    nbd_list_init(&nbd->answered);
    r = begin(nbd, options, err);
    if (r < 0) {
        nbd_close_file(nbd);
        return r;
    }
    file = &nbd->file;
    r = nbd->export.min_block > 1 ? block_file_make_aligned(nbd->export.min_block, err, &file) : 0;
    if (r == 0) {
        *ret_file = file;
    }
    return r;
}
