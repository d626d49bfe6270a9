#include "base/log.h"

#include "base/loop.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_BYTES 1024
#define LOG_GUEST_BURST 10
#define LOG_GUEST_WINDOW_NS 1000000000ull

static _Atomic(enum log_level) log_level_now = LOG_LEVEL_WARN;
static const char *_Atomic log_program = "corbel";
static pthread_mutex_t log_limit_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARN] = "warning",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

void log_set_level(enum log_level level)
{
    atomic_store(&log_level_now, level);
}

void log_set_program(const char *name)
{
    atomic_store(&log_program, name);
}

/* One write() per line, so that lines of several threads do not mix. */
static PRINTF_LIKE(2, 0) void log_emit(const char *tag, const char *fmt, va_list args)
{
    char line[LOG_LINE_BYTES];
    size_t used;
    int len = snprintf(line, sizeof(line), "%s: %s: ", atomic_load(&log_program), tag);

    used = len > 0 ? (size_t)len : 0;
    len = vsnprintf(line + used, sizeof(line) - used, fmt, args);
    used += len > 0 ? (size_t)len : 0;
    if (used > sizeof(line) - 2) {
        used = sizeof(line) - 2;
    }
    line[used++] = '\n';
    /* Nowhere to complain when stderr itself is gone. */
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}

static PRINTF_LIKE(2, 3) void log_emit_fmt(const char *tag, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    log_emit(tag, fmt, args);
    va_end(args);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    va_list args;

    if (level > atomic_load_explicit(&log_level_now, memory_order_relaxed)) {
        return;
    }
    va_start(args, fmt);
    log_emit(level_names[level], fmt, args);
    va_end(args);
}

void log_guest_line(struct log_ratelimit *limit, const char *fmt, ...)
{
    va_list args;
    uint64_t now;
    uint32_t dropped = 0;
    bool show;

    if (atomic_load_explicit(&log_level_now, memory_order_relaxed) < LOG_LEVEL_WARN) {
        return;
    }
    now = clock_monotonic_ns();
    (void)pthread_mutex_lock(&log_limit_lock);
    if (limit->window_start_ns == 0 || now - limit->window_start_ns >= LOG_GUEST_WINDOW_NS) {
        dropped = limit->dropped;
        *limit = (struct log_ratelimit){.window_start_ns = now};
    }
    show = limit->in_window < LOG_GUEST_BURST;
    if (show) {
        limit->in_window++;
    } else {
        limit->dropped++;
    }
    (void)pthread_mutex_unlock(&log_limit_lock);

    if (dropped > 0) {
        log_emit_fmt("guest", "(%u more lines like the next one were left out)", dropped);
    }
    if (show) {
        va_start(args, fmt);
        log_emit("guest", fmt, args);
        va_end(args);
    }
}

const char *log_escape(char *out, size_t out_size, const char *text, size_t text_len)
{
    static const char digits[] = "0123456789abcdef";
    size_t used = 0;

    if (out_size == 0) {
        return out;
    }
    for (size_t i = 0; i < text_len; i++) {
        unsigned char c = (unsigned char)text[i];
        bool plain = c >= 0x20 && c < 0x7f && c != '\\';

        if (used + (plain ? 1u : 4u) >= out_size) {
            break;
        }
        if (plain) {
            out[used++] = (char)c;
        } else {
            out[used++] = '\\';
            out[used++] = 'x';
            out[used++] = digits[c >> 4];
            out[used++] = digits[c & 15];
        }
    }
    out[used] = '\0';
    return out;
}
