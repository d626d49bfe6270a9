/*
 * libnbd, loaded when the first address asks for it: what it brings along (TLS, XML, Unicode
 * tables) is not for each monitor to carry. libnbd(3) tells what the functions do.
 */
#ifndef CORBEL_BLOCK_NBD_LIB_H
#define CORBEL_BLOCK_NBD_LIB_H

#include "base/compiler.h"
#include "base/error.h"

#include <libnbd.h>
#include <stdbool.h>

#define NBD_LIB_FUNCTIONS(X) \
    X(add_meta_context)      \
    X(aio_block_status)      \
    X(aio_connect_uri)       \
    X(aio_disconnect)        \
    X(aio_flush)             \
    X(aio_get_direction)     \
    X(aio_get_fd)            \
    X(aio_is_closed)         \
    X(aio_is_dead)           \
    X(aio_is_negotiating)    \
    X(aio_is_ready)          \
    X(aio_notify_read)       \
    X(aio_notify_write)      \
    X(aio_opt_info)          \
    X(aio_opt_list)          \
    X(aio_pread)             \
    X(aio_pwrite)            \
    X(aio_trim)              \
    X(aio_zero)              \
    X(can_flush)             \
    X(can_fua)               \
    X(can_meta_context)      \
    X(can_trim)              \
    X(can_zero)              \
    X(close)                 \
    X(create)                \
    X(get_block_size)        \
    X(get_errno)             \
    X(get_error)             \
    X(get_size)              \
    X(is_read_only)          \
    X(poll)                  \
    X(set_export_name)       \
    X(set_opt_mode)          \
    X(set_uri_allow_tls)     \
    X(set_uri_allow_transports)

struct nbd_lib {
    void *object; /* NULL: not loaded */
/* What is declared stands in no parentheses. */
#define NBD_LIB_MEMBER(name) __typeof__(&nbd_##name) name; // NOLINT(bugprone-macro-parentheses)
    NBD_LIB_FUNCTIONS(NBD_LIB_MEMBER)
#undef NBD_LIB_MEMBER
};

/* Fills lib; -ENOPKG when the library is not installed. */
int nbd_lib_open(struct nbd_lib *lib, struct err *err) MUST_CHECK;
/* Accepts one that was not opened. Each nbd_lib has a share of its own in the library. */
void nbd_lib_close(struct nbd_lib *lib);

#endif
