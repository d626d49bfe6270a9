/*
 * File descriptors: whole reads and writes, eventfds, memfds, non-blocking.
 *
 * All retry EINTR. Any thread; the caller owns every descriptor.
 */
#ifndef CORBEL_BASE_IO_H
#define CORBEL_BASE_IO_H

#include "base/compiler.h"

#include <stdint.h>
#include <sys/types.h>

/* Reads until len bytes or end of file: the count, or a negative errno. */
ssize_t io_read_full(int fd, void *buf, size_t len) MUST_CHECK;
ssize_t io_pread_full(int fd, void *buf, size_t len, uint64_t offset) MUST_CHECK;

/* Writes all: 0, or a negative errno (a short write has become -EIO or -ENOSPC). */
int io_write_full(int fd, const void *buf, size_t len) MUST_CHECK;
int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset) MUST_CHECK;

/* A non-blocking, close-on-exec eventfd with value 0, or a negative errno. */
int io_eventfd(void) MUST_CHECK;
/* Adds 1; never blocks, errors cannot happen on a live eventfd. Async-signal-safe. */
void io_eventfd_signal(int fd);
/* Reads and clears; returns the count (0 when it was not signalled). */
uint64_t io_eventfd_drain(int fd);

/* A close-on-exec memfd of size bytes, or a negative errno. */
int io_memfd(const char *name, uint64_t size_bytes) MUST_CHECK;

int io_set_nonblock(int fd) MUST_CHECK;

/* Reads a whole regular file of at most max_bytes into malloc'd *ret_data and ends it with a NUL
 * that *ret_len does not count. -EFBIG when larger, -EISDIR or -EINVAL when not a regular file. */
int io_read_file(const char *path, size_t max_bytes, void **ret_data, size_t *ret_len) MUST_CHECK;
/* The same of the last max_bytes of a file of any length; -ELOOP when path is a link. */
int io_read_tail(const char *path, size_t max_bytes, void **ret_data, size_t *ret_len) MUST_CHECK;

#endif
