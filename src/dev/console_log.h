/*
 * The last of what a console showed, in a file that outlives the process.
 *
 * Bytes wait for a moment in a bounded buffer, then the loop's thread writes
 * them: whoever adds them never waits for a disk. The file keeps the last
 * CONSOLE_LOG_KEEP_BYTES at least and never grows beyond twice as much. What
 * cannot be written is lost, with a line in the log.
 */
#ifndef CORBEL_DEV_CONSOLE_LOG_H
#define CORBEL_DEV_CONSOLE_LOG_H

#include "base/compiler.h"

#include <stddef.h>
#include <stdint.h>

#define CONSOLE_LOG_KEEP_BYTES (256u << 10)

struct console_log;
struct loop;

/*
 * Goes on behind what is in the file, a regular one that is open for reading
 * and writing; the descriptor stays the caller's. -EINVAL when it is none,
 * -ENOMEM, -EMFILE.
 */
int console_log_create(struct loop *loop, int fd, struct console_log **ret_log) MUST_CHECK;
/* The loop is stopped; writes out what waits. Accepts NULL. */
void console_log_destroy(struct console_log *log);

/* Any thread; never blocks. */
void console_log_add(struct console_log *log, const uint8_t *data, size_t len);

#endif
