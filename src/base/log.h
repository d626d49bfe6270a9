/*
 * Logging to stderr, one line each, with levels.
 *
 * error: an asked-for thing did not happen. warn: abnormal but survived.
 * info: a rare change of state. debug: for us. log_guest() is for what the
 * guest did wrong: rate-limited per call site so that no guest can flood the
 * log. Strings from outside are escaped by the caller (log_escape). Any thread.
 */
#ifndef CORBEL_BASE_LOG_H
#define CORBEL_BASE_LOG_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Lines above this level are dropped; the default is LOG_LEVEL_WARN. */
void log_set_level(enum log_level level);

/* The name that begins every line ("corbel-vmm"); must outlive the process. */
void log_set_program(const char *name);

void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* At most LOG_GUEST_BURST lines per call site and second; the rest are counted. */
struct log_ratelimit {
    uint64_t window_start_ns;
    uint32_t in_window;
    uint32_t dropped;
};

void log_guest_line(struct log_ratelimit *limit, const char *fmt, ...) PRINTF_LIKE(2, 3);

#define log_guest(...)                        \
    do {                                      \
        static struct log_ratelimit limit_;   \
        log_guest_line(&limit_, __VA_ARGS__); \
    } while (0)

/* Copies text to out (out_size bytes) with control bytes as \xNN; returns out. */
const char *log_escape(char *out, size_t out_size, const char *text, size_t text_len);

#endif
