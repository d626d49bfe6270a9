/* What a server exports. */
#include "block/nbd.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "block/nbd_lib.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_NS 10000000000ull

/* One look at a server. */
struct look {
    struct nbd_lib lib;
    struct nbd_handle *handle;
    const char *server;
    uint64_t deadline_ns; /* for all of it: a server may be as slow as this, or silent */
    struct nbd_listed *list;
    unsigned count;
    unsigned left_out;
};

static int fail(const struct look *look, struct err *err)
{
    int code = look->lib.get_errno();

    return err_set(err, code > 0 ? -code : -EIO, "cannot look at '%s': %s", look->server,
                   look->lib.get_error());
}

static bool is_negotiating(const struct look *look)
{
    return look->lib.aio_is_negotiating(look->handle) > 0;
}

/* Until the server has answered. */
static int await(const struct look *look, const bool *is_done, struct err *err)
{
    while (is_done != NULL ? !*is_done : !is_negotiating(look)) {
        uint64_t now = clock_monotonic_ns();

        if (now >= look->deadline_ns) {
            return err_set(err, -ETIMEDOUT, "cannot look at '%s': its server does not answer",
                           look->server);
        }
        if (look->lib.poll(look->handle, (int)((look->deadline_ns - now) / NS_PER_MS) + 1) < 0) {
            return fail(look, err);
        }
        if (look->lib.aio_is_dead(look->handle) > 0 || look->lib.aio_is_closed(look->handle) > 0) {
            return err_set(err, -EIO, "cannot look at '%s': its server hangs up", look->server);
        }
    }
    return 0;
}

struct completion {
    bool is_done;
    int error;
};

static int on_completion(void *opaque, int *error)
{
    struct completion *completion = opaque;

    completion->is_done = true;
    completion->error = *error;
    return 1;
}

/* The name is the server's word. */
static int on_export(void *opaque, const char *name, const char *description)
{
    struct look *look = opaque;
    size_t len = strlen(name);
    bool is_good = len < NBD_LISTED_NAME_BYTES && look->count < NBD_MAX_LISTED;

    (void)description;
    for (size_t i = 0; is_good && i < len; i++) {
        is_good = (unsigned char)name[i] >= ' ' && name[i] != 0x7f;
    }
    if (is_good) {
        memcpy(look->list[look->count++].name, name, len + 1);
    } else {
        look->left_out++;
    }
    return 0;
}

static int connect_to(struct look *look, struct err *err)
{
    look->handle = look->lib.create();
    if (look->handle == NULL) {
        return err_set(err, -ENOMEM, "no memory for a connection");
    }
    if (look->lib.set_uri_allow_tls(look->handle, LIBNBD_TLS_DISABLE) < 0 ||
        look->lib.set_uri_allow_transports(look->handle, LIBNBD_ALLOW_TRANSPORT_TCP |
                                                             LIBNBD_ALLOW_TRANSPORT_UNIX) < 0 ||
        look->lib.set_opt_mode(look->handle, true) < 0 ||
        look->lib.aio_connect_uri(look->handle, look->server) < 0) {
        return fail(look, err);
    }
    return await(look, NULL, err);
}

static int ask_names(struct look *look, struct err *err)
{
    struct completion completion = {.is_done = false};
    const nbd_list_callback each = {.callback = on_export, .user_data = look};
    const nbd_completion_callback done = {.callback = on_completion, .user_data = &completion};
    int r = look->lib.aio_opt_list(look->handle, each, done) < 0
                ? fail(look, err)
                : await(look, &completion.is_done, err);

    return r == 0 && completion.error != 0
               ? err_set(err, -ENOTSUP, "the server of '%s' does not tell what it exports",
                         look->server)
               : r;
}

/* 1 when the server knows the export, 0 when it does not any more. */
static int ask_one(struct look *look, struct nbd_listed *listed, struct err *err)
{
    struct completion completion = {.is_done = false};
    const nbd_completion_callback done = {.callback = on_completion, .user_data = &completion};
    int64_t size;
    int r;

    if (look->lib.set_export_name(look->handle, listed->name) < 0 ||
        look->lib.aio_opt_info(look->handle, done) < 0) {
        return fail(look, err);
    }
    r = await(look, &completion.is_done, err);
    if (r < 0 || completion.error != 0) {
        return r;
    }
    size = look->lib.get_size(look->handle);
    if (size < 0) {
        return 0;
    }
    listed->size_bytes = (uint64_t)size;
    listed->is_read_only = look->lib.is_read_only(look->handle) > 0;
    return 1;
}

static int look_at(struct look *look, struct err *err)
{
    unsigned kept = 0;
    int r = nbd_lib_open(&look->lib, err);

    if (r == 0) {
        r = connect_to(look, err);
    }
    if (r == 0) {
        r = ask_names(look, err);
    }
    for (unsigned i = 0; r >= 0 && i < look->count; i++) {
        r = ask_one(look, &look->list[i], err);
        if (r > 0) {
            look->list[kept++] = look->list[i];
        }
    }
    look->count = kept;
    return r < 0 ? r : 0;
}

int nbd_list_exports(const char *server, struct err *err, struct nbd_listed **ret_list,
                     unsigned *ret_count)
{
    struct look look = {.server = server, .deadline_ns = clock_monotonic_ns() + PATIENCE_NS};
    int r;

    look.list = calloc(NBD_MAX_LISTED, sizeof(*look.list));
    r = look.list == NULL ? err_set(err, -ENOMEM, "out of memory") : look_at(&look, err);
    if (look.handle != NULL) {
        look.lib.close(look.handle);
    }
    nbd_lib_close(&look.lib);
    if (r < 0) {
        free(look.list);
        return r;
    }
    if (look.left_out > 0) {
        log_warn("%u exports of '%s' have names that cannot be used here, or are too many; "
                 "ignoring them",
                 look.left_out, server);
    }
    *ret_list = look.list;
    *ret_count = look.count;
    return 0;
}

/* Where an export's name goes: behind the first slash after the host, or before the query. */
static int find_place(const char *server, size_t *ret_head, const char **ret_tail)
{
    static const char tcp[] = "nbd://";
    static const char local[] = "nbd+unix://";
    bool is_local = strncmp(server, local, sizeof(local) - 1) == 0;
    size_t head = is_local ? sizeof(local) - 1 : sizeof(tcp) - 1;

    if (!is_local && strncmp(server, tcp, sizeof(tcp) - 1) != 0) {
        return -EINVAL;
    }
    head += strcspn(server + head, "/?#");
    *ret_head = head;
    *ret_tail = server + head + (server[head] == '/');
    return is_local == (strncmp(*ret_tail, "?socket=", 8) == 0) && (is_local || **ret_tail == '\0')
               ? 0
               : -EINVAL;
}

int nbd_export_address(const char *server, const char *name, char *out, size_t size)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._";
    char escaped[3 * NBD_LISTED_NAME_BYTES + 1];
    const char *tail;
    size_t head;
    size_t at = 0;
    int n;

    if (strlen(name) >= NBD_LISTED_NAME_BYTES) {
        return -ENAMETOOLONG;
    }
    if (find_place(server, &head, &tail) < 0) {
        return -EINVAL;
    }
    for (const char *p = name; *p != '\0'; p++) {
        at += (size_t)snprintf(escaped + at, sizeof(escaped) - at,
                               strchr(plain, *p) != NULL ? "%c" : "%%%02X", (unsigned char)*p);
    }
    escaped[at] = '\0';
    n = snprintf(out, size, "%.*s/%s%s", (int)head, server, escaped, tail);
    return n >= 0 && (size_t)n < size ? 0 : -ENAMETOOLONG;
}
