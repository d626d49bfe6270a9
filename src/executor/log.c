/*
 * base/log.h without a descriptor: lines go to the shared pages, where the
 * monitor finds them. Guest code may write there as it likes; the monitor
 * escapes and limits what it prints.
 */
#include "base/log.h"

#include "executor/executor.h"

#include <stdarg.h>
#include <stdio.h>

static struct executor_shared *_Atomic log_shared;

void executor_log_to(struct executor_shared *shared)
{
    atomic_store(&log_shared, shared);
}

static PRINTF_LIKE(1, 0) void log_add(const char *fmt, va_list args)
{
    struct executor_shared *shared = atomic_load(&log_shared);

    if (shared != NULL) {
        /* Two threads at once may share a line; that costs one of them. */
        uint32_t count = atomic_load(&shared->log_count);
        char *line = shared->log[count % EXECUTOR_LOG_LINES];

        (void)vsnprintf(line, EXECUTOR_LOG_BYTES, fmt, args);
        atomic_store(&shared->log_count, count + 1);
    }
}

void log_line(enum log_level level, const char *fmt, ...)
{
    va_list args;

    if (level <= LOG_LEVEL_WARN) {
        va_start(args, fmt);
        log_add(fmt, args);
        va_end(args);
    }
}

void log_guest_line(struct log_ratelimit *limit, const char *fmt, ...)
{
    va_list args;

    (void)limit; /* the monitor's */
    va_start(args, fmt);
    log_add(fmt, args);
    va_end(args);
}
